"""Checkpoints that can be trusted: a manifest of sizes and checksums, written last.

transformers writes a checkpoint file by file and picks the newest by its number; killed in between
it leaves a newest checkpoint that is incomplete, and a flipped bit in a weights file goes
unnoticed. The manifest is written after everything else is on the disk, so a checkpoint with a
manifest that fits is whole.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from collamo.errors import CollamoError
from collamo.files import file_sha256, flush, give_mode_of_umask, write_text
from collamo.model.checksums import FROZEN_WEIGHTS, MANIFEST

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json`` with size [bytes] and sha256 of every file of `folder`; all of it
    reaches the disk, and others may read it as the umask says.

    Frozen weights, one file for all checkpoints, are read once.
    """
    give_mode_of_umask(sorted(folder.rglob("*.safetensors")))
    files = {}
    for path in _files(folder):
        flush(path)
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path, remember=path.name == FROZEN_WEIGHTS),
        }
    text = json.dumps({"files": files}, indent=1) + "\n"
    write_text(folder / MANIFEST, text, durable=True)


def verify_manifest(folder: Path, *, frozen: bool = True) -> str | None:
    """Return what is wrong with the checkpoint in `folder`, or None where every byte is as
    written.

    `frozen` False trusts frozen weights that this process has read before.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the checkpoint was never finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if file_sha256(path, remember=not frozen and path.name == FROZEN_WEIGHTS) != digest:
            return f"{name} is altered (sha256 differs)"
    return None


def checkpoints(output: Path) -> list[Path]:
    """Return the ``checkpoint-N`` folders of `output`, the newest (largest N) first."""
    if not output.is_dir():
        return []
    matches = {path: _NAME.fullmatch(path.name) for path in output.iterdir() if path.is_dir()}
    numbered = [(int(match[1]), path) for path, match in matches.items() if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def find_last_valid_checkpoint(output: Path) -> Path | None:
    """Return the newest whole checkpoint under `output`, or None where none was ever finished.

    Each broken one passed over is named in the log.

    Raises
    ------
    CollamoError
        If one was finished and none is whole any more: the work of days is not begun anew without a
        word.
    """
    damaged = None
    for folder in checkpoints(Path(output)):
        problem = verify_manifest(folder)
        if problem is None:
            return folder
        logger.warning("skipping %s: %s; delete it", folder, problem)
        if (folder / MANIFEST).exists():
            damaged = damaged or f"{folder}: {problem}"
    if damaged:
        raise CollamoError(
            f"no checkpoint to go on from is whole ({damaged}); copy one back, or delete them to "
            "start anew"
        )
    return None


def delete_old_checkpoints(newest: Path, keep: int | None, best: str | None = None) -> None:
    """Delete all but the `keep` newest checkpoints (None: keep all) and the `best`, once `newest`,
    the one just written, verifies.

    Nothing is deleted while it is not whole, so a good checkpoint exists at every moment. Broken
    ones of later steps, which a resume passed over, stay until they are written anew. Frozen
    weights are not read again: the older ones have the same file.
    """
    if not keep or verify_manifest(newest, frozen=False) is not None:
        return
    folders = checkpoints(newest.parent)
    for folder in folders[folders.index(newest) + keep :]:
        if best is None or folder.resolve() != Path(best).resolve():
            shutil.rmtree(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
