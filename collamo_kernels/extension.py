"""The compiled extension: whether it is there, why not, and how it was built."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

try:
    # Registers torch.ops.collamo_kernels.
    _C: ModuleType | None = importlib.import_module("collamo_kernels._C")
except ImportError as error:
    _C = None
    _IMPORT_ERROR: str | None = str(error)
else:
    _IMPORT_ERROR = None

REINSTALL = "pip install --no-build-isolation --no-deps -e ."
# setup.py writes here why it built nothing: a failed build or one that was switched off.
_RECORD = Path(__file__).with_name("absence.txt")


def _reason() -> str:
    """Return why the compiled kernels cannot be used and what to do."""
    if importlib.util.find_spec("collamo_kernels._C") is not None:
        return f"the extension does not load ({_IMPORT_ERROR}); build it again: {REINSTALL}"
    reason = "it was not built"
    if _RECORD.is_file():
        reason = _RECORD.read_text(encoding="utf-8").strip()
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return f"{reason}; there is no C++ compiler: apt install g++ on Debian, then {REINSTALL}"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return f"{reason}; there are no Python headers: apt install python3-dev, then {REINSTALL}"
    return (
        f"{reason}; build it: pip install 'setuptools>=77' wheel pybind11 ninja, then {REINSTALL}"
    )


# Now, because torch.compile cannot trace a look at files.
_ABSENCE = _reason() if _C is None else None


def why_absent() -> str | None:
    """Return why the compiled kernels cannot be used and what to do, or None if they can."""
    return _ABSENCE


def build_info() -> dict[str, Any]:
    """What is built and present, for ``collamo doctor`` and bug reports. Asks no GPU anything.

    Returns
    -------
    dict
        ``extension`` (bool), ``why_absent`` (str or None), ``compiler``, ``abi_target`` (oldest
        torch it runs with), ``cpu_capability`` ("baseline", "avx2", "avx512"), ``cuda`` (bool:
        CUDA kernels are built in), ``torch``, ``torch_cuda`` (CUDA version of torch, or None),
        ``triton`` (bool).

    Examples
    --------
    >>> sorted(build_info())[:3]
    ['abi_target', 'compiler', 'cpu_capability']
    """
    absent = {"compiler": None, "abi_target": None, "cpu_capability": None, "cuda": False}
    return {
        "extension": _C is not None,
        "why_absent": why_absent(),
        **(absent if _C is None else _C.build_info()),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": importlib.util.find_spec("triton") is not None,
    }
