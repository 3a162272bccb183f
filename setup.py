"""Build csrc/ into collamo_kernels._C where that is possible; install pure Python where it is not.

Environment: COLLAMO_NO_EXTENSION=1 compiles nothing. COLLAMO_CPU_ONLY=1 leaves the CUDA kernels
out; COLLAMO_FORCE_CUDA=1 insists on them, and on the build succeeding. No GPU is ever asked for.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

NAME = "collamo_kernels._C"
CXX = ["-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
STABLE_ABI = "0x020b000000000000"  # torch 2.11: the oldest torch that the binary runs with
AVX2 = ["-mavx2", "-mfma"]
AVX512 = ["-mavx512" + part for part in ("f", "bw", "vl", "dq")]
X86 = platform.machine() in ("x86_64", "AMD64")
CAPABILITIES = {"baseline": [], **({"avx2": AVX2, "avx512": AVX512} if X86 else {})}
NARROW = [*AVX2, "-DCOLLAMO_VECTOR_WIDTH=4"]  # attention of few heads
HERE = Path(__file__).parent
SET = {name for name in os.environ if os.environ[name] not in ("", "0")}
cpp, absence = None, "COLLAMO_NO_EXTENSION was set"
if "COLLAMO_NO_EXTENSION" not in SET:
    try:
        import torch
        from torch.utils import cpp_extension as cpp
    except ImportError as error:
        absence = f"there was no torch to build against: {error}"


def sources(pattern):
    """Source files under csrc/, relative and sorted, as setuptools wants them."""
    return sorted(str(path.relative_to(HERE)) for path in (HERE / "csrc").glob(pattern))


KERNELS = sources("*/kernel.cpp")  # compiled once per instruction set


def extension():
    """Describe the extension module, with CUDA where there is a toolkit and a torch for it."""
    toolkit = "COLLAMO_FORCE_CUDA" in SET or (cpp.CUDA_HOME and torch.version.cuda)
    cuda = sources("*/*.cu") if toolkit and "COLLAMO_CPU_ONLY" not in SET else []
    define = [("TORCH_TARGET_VERSION", STABLE_ABI)] + [("COLLAMO_WITH_X86", "1")] * X86
    # USE_CUDA: torch's headers then declare the function that tells the current stream.
    define += [("COLLAMO_WITH_CUDA", "1"), ("USE_CUDA", "1")] * bool(cuda)
    kind = cpp.CUDAExtension if cuda else cpp.CppExtension
    files = [path for path in sources("**/*.cpp") if path not in KERNELS] + cuda
    return kind(NAME, files, define_macros=define, extra_compile_args={"cxx": CXX, "nvcc": ["-O3"]})


class Build(cpp.BuildExtension if cpp else build_ext):
    """Builds the extension, or tells the installing person and `collamo doctor` why not."""

    def build_extension(self, ext):
        """Compile the kernels for each instruction set, then the rest of the module."""
        for name, flags in CAPABILITIES.items():
            self.compile_kernels(ext, KERNELS, name, flags)
        if X86:
            self.compile_kernels(ext, sources("coattention/kernel.cpp"), "avx2_narrow", NARROW)
        super().build_extension(ext)

    def compile_kernels(self, ext, files, name, flags):
        """Add the objects of one instruction set to the module."""
        ext.extra_objects += self.compiler.compile(
            files,
            output_dir=os.path.join(self.build_temp, name),
            macros=[("COLLAMO_CAPABILITY", name)],
            extra_postargs=[*CXX, "-ffp-contract=fast", *flags],
        )

    def run(self):
        """Build, or leave the reason why not in a file where the extension would be."""
        record = Path(self.get_ext_fullpath(NAME)).with_name("absence.txt")
        record.unlink(missing_ok=True)
        try:
            if cpp is None:
                raise RuntimeError(absence)
            super().run()
        except (Exception, SystemExit) as error:
            if "COLLAMO_FORCE_CUDA" in SET:
                raise
            self.extensions = []
            reason = absence if cpp is None else f"the build failed: {' '.join(str(error).split())}"
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(reason + "\n", encoding="utf-8")
            print(f"collamo: pure Python, all works but slower: {reason}", file=sys.stderr)


class BuildPython(build_py):
    """Packs the recipes, so that `collamo train configs/stage1.yaml` finds them without a clone."""

    def run(self):
        """Copy the packages, and configs/ into one; an editable install finds it where it lies."""
        super().run()
        if not self.editable_mode:
            self.copy_tree("configs", os.path.join(self.build_lib, "collamo", "configs"))


setup(
    ext_modules=[extension() if cpp else Extension(NAME, [])],
    cmdclass={"build_ext": Build, "build_py": BuildPython},
)
