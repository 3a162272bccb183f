"""What is installed, what is missing, and what each missing piece would give."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the report: what was `found` (None: nothing) and what it `gives`."""

    name: str
    found: str | None
    gives: str
    fix: str
    required: bool = False


# package, what it gives, how to get it
_REQUIRED = (
    ("torch", "tensors and training", "pip install 'torch>=2.11'"),
    ("transformers", "the language model and its Trainer", "pip install 'transformers>=5.17,<6'"),
    ("tokenizers", "text to token ids", "pip install tokenizers"),
    ("safetensors", "checkpoints without pickle", "pip install safetensors"),
    ("peft", "LoRA in stage 2", "pip install peft"),
    ("accelerate", "devices and distributed training", "pip install accelerate"),
    ("rdkit", "molecules and conformers", "pip install rdkit"),
    ("selfies", "the 1D modality", "pip install selfies"),
    ("pyarrow", "shards of prepared data", "pip install pyarrow"),
    ("pebble", "time limits on conformers", "pip install pebble"),
    ("sacrebleu", "BLEU of captions", "pip install sacrebleu"),
    ("nltk", "BLEU and METEOR as published", "pip install nltk"),
    ("rouge-score", "ROUGE of captions", "pip install rouge-score"),
    ("rapidfuzz", "edit distances of molecules", "pip install rapidfuzz"),
    ("httpx2", "entities and judges asked over HTTP", "pip install httpx2"),
    ("tenacity", "the same, asked again when busy", "pip install tenacity"),
)
_OPTIONAL = (
    ("tensorboard", "learning curves while training", "pip install 'collamo[train]'"),
    ("matplotlib", "learning curves as pictures", "pip install 'collamo[train]'"),
    ("triton", "fused attention on an NVIDIA GPU", "pip install 'collamo[gpu]'"),
    (
        "flash-attn",
        "faster attention inside the language model on a GPU",
        "pip install 'collamo[gpu]'",
    ),
    ("bitsandbytes", "a language model of 4 bits", "pip install 'collamo[quantization]'"),
    (
        "torch-cluster",
        "neighbours in structures of over 512 atoms",
        "pip install 'collamo[cluster]'",
    ),
    ("ray", "data preparation over several machines", "pip install 'collamo[ray]'"),
    ("py2opsin", "IUPAC names compared as structures (Java)", "pip install 'collamo[iupac]'"),
    ("gradio", "the demo in a browser", "pip install 'collamo[web]'"),
)


def examine() -> list[Check]:
    """Return every check, required ones first; never raises for a missing piece."""
    checks = [_package(*row, required=True) for row in _REQUIRED]
    checks += [_extension(), _compiler(), _cuda()]
    return checks + [_package(*row) for row in _OPTIONAL]


def healthy(checks: list[Check]) -> bool:
    """Return whether everything required is there."""
    return all(check.found is not None for check in checks if check.required)


def about() -> str:
    """Return one line on the interpreter and the machine."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return f"Python {platform.python_version()}, {machine}"


def _package(name: str, gives: str, fix: str, required: bool = False) -> Check:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = None
    return Check(name, found, gives, fix, required)


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
    found = next(filter(None, map(shutil.which, names)), None)
    fix = "on Debian or Ubuntu: apt install g++"
    return Check("C++ compiler", found, "building the compiled kernels", fix)


def _cuda() -> Check:
    def read() -> str:
        import torch

        if not torch.cuda.is_available():
            raise _Absent("an NVIDIA driver and a CUDA build of torch")
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"

    return _guarded("CUDA GPU", "training and answering on the GPU", read)
