"""Build csrc/ into collamo_kernels._C where that is possible; install pure Python where it is not.

Environment: COLLAMO_NO_EXTENSION=1 compiles nothing. COLLAMO_CPU_ONLY=1 leaves csrc/cuda out;
COLLAMO_FORCE_CUDA=1 insists on it, and on the build succeeding. No GPU is ever asked for.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import setup

FLAGS = ["-O3", "-g0", "-fvisibility=hidden"]
X86 = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512" + x for x in ("f", "bw", "vl", "dq")]}
CAPABILITIES = {"baseline": [], **(X86 if platform.machine() in ("x86_64", "AMD64") else {})}
STABLE_ABI = "0x020b000000000000"  # torch 2.11: the oldest torch that the binary runs with
HERE = Path(__file__).parent


def notice(reason):
    """Say once, where an installing person can see it, that the fast kernels are missing."""
    if {"egg_info", "dist_info"} & set(sys.argv):  # pip asks for metadata first, then builds
        return
    text = f"collamo: installed without compiled kernels ({reason}).\n"
    text += "collamo: everything works, slower; `collamo doctor` says what is missing."
    print("-" * 78, text, "-" * 78, sep="\n", file=sys.stderr, flush=True)


def switched_on(name):
    """Whether an environment variable is set to something other than 0."""
    return os.environ.get(name, "0") not in ("", "0")


def sources(pattern):
    """Source files under csrc/, relative and sorted, as setuptools wants them."""
    return sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern))


def extension(cpp):
    """Describe the extension module, with CUDA where there is a toolkit and a torch for it."""
    import torch

    force = switched_on("COLLAMO_FORCE_CUDA")
    toolkit = cpp.CUDA_HOME is not None and torch.version.cuda is not None
    cuda = sources("csrc/cuda/*.cu") if force or toolkit else []
    cuda = [] if switched_on("COLLAMO_CPU_ONLY") else cuda
    define = [("TORCH_TARGET_VERSION", STABLE_ABI)] + [("COLLAMO_WITH_CUDA", "1")] * bool(cuda)
    define += [("COLLAMO_WITH_X86", "1")] * (len(CAPABILITIES) > 1)
    kind = cpp.CUDAExtension if cuda else cpp.CppExtension
    return kind(
        "collamo_kernels._C",
        sources("csrc/*.cpp") + sources("csrc/cpu/*[!l].cpp") + cuda,  # *kernel.cpp: see Build
        define_macros=define,
        extra_compile_args={"cxx": FLAGS, "nvcc": ["-O3"]},
    )


def build_arguments():
    """Return what setup() needs to compile, or nothing after a notice why not."""
    if switched_on("COLLAMO_NO_EXTENSION"):
        notice("COLLAMO_NO_EXTENSION is set")
        return {}
    try:
        from torch.utils import cpp_extension as cpp
    except ImportError as error:
        notice(f"{error}; install torch, then `pip install --no-build-isolation .`")
        return {}

    class Build(cpp.BuildExtension):
        def build_extension(self, ext):
            """Compile the attention once per instruction set, then the rest of the module."""
            for name, flags in CAPABILITIES.items():
                ext.extra_objects += self.compiler.compile(
                    ["csrc/cpu/coattention_kernel.cpp"],
                    output_dir=os.path.join(self.build_temp, name),
                    macros=[("COLLAMO_CAPABILITY", name)],
                    extra_postargs=[*FLAGS, "-ffp-contract=fast", "-fno-math-errno", *flags],
                )
            super().build_extension(ext)

        def run(self):
            try:
                super().run()
            except (Exception, SystemExit) as error:
                if switched_on("COLLAMO_FORCE_CUDA"):
                    raise
                self.extensions = []
                notice(str(error).splitlines()[0] if str(error) else type(error).__name__)

    return {"ext_modules": [extension(cpp)], "cmdclass": {"build_ext": Build}}


setup(**build_arguments())
