"""Build csrc/ into collamo_kernels._C where that is possible; install pure Python where it is not.

Environment: COLLAMO_NO_EXTENSION=1 compiles nothing. COLLAMO_CPU_ONLY=1 leaves csrc/cuda out;
COLLAMO_FORCE_CUDA=1 insists on it, and on the build succeeding. No GPU is ever asked for.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAME = "collamo_kernels._C"
CXX = ["-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
X86 = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512" + x for x in ("f", "bw", "vl", "dq")]}
X86["avx2_narrow"] = [*X86["avx2"], "-DCOLLAMO_VECTOR_WIDTH=4"]  # attention of few heads
CAPABILITIES = {"baseline": [], **(X86 if platform.machine() in ("x86_64", "AMD64") else {})}
STABLE_ABI = "0x020b000000000000"  # torch 2.11: the oldest torch that the binary runs with
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
    return sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern))


def extension():
    """Describe the extension module, with CUDA where there is a toolkit and a torch for it."""
    wanted = "COLLAMO_FORCE_CUDA" in SET or (cpp.CUDA_HOME and torch.version.cuda)
    cuda = sources("csrc/cuda/*.cu") if wanted and "COLLAMO_CPU_ONLY" not in SET else []
    define = [("TORCH_TARGET_VERSION", STABLE_ABI)] + [("COLLAMO_WITH_CUDA", "1")] * bool(cuda)
    define += [("COLLAMO_WITH_X86", "1")] * (len(CAPABILITIES) > 1)
    kind = cpp.CUDAExtension if cuda else cpp.CppExtension
    files = sources("csrc/*.cpp") + sources("csrc/cpu/*[!l].cpp") + cuda  # *kernel.cpp: see Build
    return kind(NAME, files, define_macros=define, extra_compile_args={"cxx": CXX, "nvcc": ["-O3"]})


class Build(cpp.BuildExtension if cpp else build_ext):
    """Builds the extension, or tells the installing person and `collamo doctor` why not."""

    def build_extension(self, ext):
        """Compile the kernels once per instruction set, then the rest of the module."""
        for name, flags in CAPABILITIES.items():
            ext.extra_objects += self.compiler.compile(
                sources("csrc/cpu/*kernel.cpp"),
                output_dir=os.path.join(self.build_temp, name),
                macros=[("COLLAMO_CAPABILITY", name)],
                extra_postargs=[*CXX, "-ffp-contract=fast", *flags],
            )
        super().build_extension(ext)

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


setup(ext_modules=[extension() if cpp else Extension(NAME, [])], cmdclass={"build_ext": Build})
