"""Read weights that somebody else wrote, without running anything they may have put in the file.

safetensors cannot hold code. A ``.pt`` or ``.pth`` file is a pickle; torch's restricted unpickler
takes tensors, containers, `argparse.Namespace` (Uni-Mol keeps its options beside its weights) and
numpy's numbers and arrays (others keep their best score there), and refuses every other name before
it is imported.

A zipped ``.pt`` and what `write_weights` wrote carry checksums, and every flipped bit is seen. In
other people's safetensors, and in a ``.pt`` older than torch 1.6, only NaN, infinite and absurd
weights are: compare such a download with the digest its source publishes.
"""

from __future__ import annotations

import argparse
import codecs
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.files import give_mode_of_umask, mistaken_for, replacing

#: Beside weights, training frameworks keep options and optimiser states; these hold the weights.
_WRAPPERS = ("model", "model_state_dict", "state_dict")
#: No trained weight is as large; the flip of one bit of an exponent makes such.
LARGEST_WEIGHT = 1e8
#: Where `write_weights` keeps the digest of what it wrote.
_DIGEST = "collamo_sha256"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return name → tensor of a weights file, on the CPU.

    Parameters
    ----------
    path
        ``.safetensors``, ``.pt`` or ``.pth``. A dictionary under "model", "model_state_dict" or
        "state_dict" is unwrapped.

    Raises
    ------
    MissingDependencyError
        If there is no such file.
    UsageError
        For a file of another kind (with its name: a Git LFS pointer, a web page), or one that holds
        no dictionary of tensors.
    CollamoError
        For a truncated or altered file, one with anything but tensors in its pickle, or one with
        NaN, infinite or absurd weights. Nothing in it is executed.
    """
    file = Path(path)
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise MissingDependencyError(f"weights file '{path}' {problem}; give the file itself")
    refuse_another_kind(file)
    if file.suffix == ".safetensors":
        weights = _read_safetensors(file)
    elif file.suffix in (".pt", ".pth"):
        return checked_weights(_unpickle(file), f"weights file '{file}'")
    else:
        raise UsageError(f"weights file '{path}' must end in .safetensors, .pt or .pth")
    return checked_weights(weights, f"weights file '{file}'")


def checked_weights(content: object, name: str) -> dict[str, Tensor]:
    """Return the name → tensor inside `content`, once they are found plausible; see `read_weights`.

    `name` is what errors call it.
    """
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{name} holds {type(content).__name__}, not a dictionary of tensors")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise UsageError(
            f"{name} holds more than tensors: {', '.join(strange)}; save the state dict alone"
        )
    # NaN compares as False as well.
    bad = [
        key
        for key, tensor in content.items()
        if tensor.is_floating_point() and not (tensor.abs() <= LARGEST_WEIGHT).all()
    ]
    if bad:
        values = f"NaN, infinite or beyond {LARGEST_WEIGHT:g}"
        raise CollamoError(f"{name} is damaged: {values} in {', '.join(bad)}; download it again")
    return dict(content)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file beside weights.

    Raises
    ------
    MissingDependencyError
        If there is no such file.
    CollamoError
        For a damaged one.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"'{file.parent}' has no {file.name}; it is not a checkpoint"
        ) from error
    except json.JSONDecodeError as error:
        raise CollamoError(f"'{file}' is not valid JSON: {error}; save it again") from error


def write_weights(weights: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write `weights` as safetensors with `metadata` and a digest that `read_weights` checks."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(file) as temporary:
        save_file(dense, temporary, {"format": "pt", **metadata, _DIGEST: _digest(dense)})
    give_mode_of_umask([file])


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _broken(file, error) from error
    if _DIGEST in metadata and metadata[_DIGEST] != _digest(weights):
        raise _altered(file, "its tensors differ from what was written (SHA-256)")
    return weights


# What else people take for weights.
_PACKED = (
    (rb"\s*[{\[]", ("JSON text", "perhaps a server's refusal; read it, download again")),
    (rb"\x1f\x8b\x08", ("a gzip file", "unpack it")),
)


def refuse_another_kind(file: Path) -> None:
    """Raise UsageError where a file is plainly something else: a Git LFS pointer, a web page."""
    with file.open("rb") as stream:
        start = stream.read(1024)
    if file.suffix == ".safetensors" and start[4:8] == bytes(4):
        return  # it begins with the length of its header, whose low bytes may look like anything
    others = (kind for pattern, kind in _PACKED if re.match(pattern, start))
    if (kind := mistaken_for(start) or next(others, None)) is not None:
        raise UsageError(f"weights file '{file}' is {kind[0]}, not weights: {kind[1]}")


def _unpickle(file: Path) -> object:
    _check_archive(file)
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_values()]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes at random make torch raise anything
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name is None:
            raise _broken(file, error) from None  # torch advises to run what the file says
        raise CollamoError(
            f"weights file '{file}' is refused: its pickle calls for {name[1]}, which is no tensor "
            "and may run code; nothing was executed. If you trust it, save its state dict alone, "
            "as safetensors"
        ) from None


def _numpy_values() -> list[Any]:
    """Return what a pickle calls to make numpy's numbers and arrays: it only copies bytes."""
    makers: dict[str, Any] = {
        "scalar": np.float64(0).__reduce__()[0],
        "_reconstruct": np.zeros(1).__reduce__()[0],
    }
    named = [
        (maker, f"numpy.{core}.multiarray.{name}")
        for name, maker in makers.items()
        for core in ("_core", "core")  # numpy 1 wrote core
    ]
    dtypes = [type(np.dtype(character)) for character in np.typecodes["All"]]
    return [*named, np.ndarray, np.dtype, codecs.encode, *dict.fromkeys(dtypes)]


def _check_archive(file: Path) -> None:
    """Compare the checksums inside a zip file, which torch does not look at."""
    with file.open("rb") as stream:
        if stream.read(2) != b"PK":  # torch < 1.6 wrote no zip files
            return
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise _broken(file, error) from error
    if bad:
        raise _altered(file, f"the checksum of '{bad}' inside does not fit")


def _broken(file: Path, error: Exception) -> CollamoError:
    return CollamoError(
        f"weights file '{file}' is truncated or damaged: {_cause(error)}; download it again"
    )


def _cause(error: Exception) -> str:
    """Return what went wrong in one line, without torch's advice to unpickle without limits."""
    cause = (
        str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")[0]
    )
    sentences = re.split(r"(?<=[.!])\s+", " ".join(cause.split()))
    kept = " ".join(sentence for sentence in sentences if "weights_only" not in sentence)
    return kept[:200] or f"torch cannot read it ({type(error).__name__})"


def _altered(file: Path, reason: str) -> CollamoError:
    return CollamoError(f"weights file '{file}' is damaged: {reason}; download it again")
