"""What is installed, what is missing, and what each missing piece would give."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collamo.errors import UsageError, suggest

if TYPE_CHECKING:  # at run time it would import torch
    from collamo.training.plan import Plan

GIB = 2**30
#: Memory in MiB, as nvidia-smi reports it.
GPUS = {
    **{"rtx4090": 24_564, "a10": 23_028, "l40s": 46_068, "a100-40gb": 40_960},
    **{"a100-80gb": 81_920, "h100": 81_559, "h200": 143_771},
}


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


def gpu_memory(name: str | None) -> tuple[str, int] | None:
    """Return (name, bytes) of a GPU: a key of `GPUS`, a number of GiB, or None for the one here.

    None where there is none here; UsageError for a name that is not known.
    """
    if name is None:
        import torch

        if not torch.cuda.is_available():
            return None
        found = torch.cuda.get_device_properties(0)
        return found.name, found.total_memory
    if name.lower() in GPUS:
        return name, GPUS[name.lower()] * 2**20
    try:
        return f"{float(name):g} GiB", int(float(name) * GIB)
    except ValueError:
        known = ", ".join(GPUS)
        raise UsageError(
            f"--gpu {name!r} is none of {known}{suggest(name, GPUS)}; or give its memory in GiB"
        ) from None


def plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Return a row for each part and their sum: numbers, those trained, GiB held."""
    return [
        (
            part.name,
            f"{part.parameters:,}",
            f"{part.trained:,}",
            *(f"{size / GIB:.2f}" for size in (part.weights, part.gradients, part.optimizer)),
        )
        for part in (*plan.parts, plan.total)
    ]


def plan_summary(plan: Plan, gpu: tuple[str, int] | None) -> list[str]:
    """Return the lines below the table: a step, memory, whether it fits, what was guessed."""
    batch, rows = plan.batch, plan.batch.rows * plan.accumulation
    lines = [
        f"A step of each GPU: {rows} molecules ({batch.rows} at a time), about "
        f"{rows * batch.tokens:,} tokens.",
        f"Activations (an estimate): {plan.activations / GIB:.2f} GiB. With weights, gradients and "
        f"AdamW's moments, a tenth more for fragments and 1 GiB for CUDA: {plan.needed / GIB:.1f} "
        "GiB on each GPU.",
    ]
    if gpu is not None:
        name, memory = gpu
        verdict = "fits" if plan.needed <= memory else "does not fit"
        lines.append(f"It {verdict} {name} ({memory / GIB:.1f} GiB).")
    else:
        fits = [name for name, mib in GPUS.items() if plan.needed <= mib * 2**20]
        lines.append(f"No GPU here. It fits: {', '.join(fits) or 'none of ' + ', '.join(GPUS)}.")
    return [*lines, *(f"Note: {note}." for note in plan.notes)]
