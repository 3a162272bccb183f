"""Checkpoints that can be trusted: a manifest of sizes and checksums, written last.

transformers writes a checkpoint file by file and picks the newest by its number; killed in between
it leaves a newest checkpoint that is incomplete, and a flipped bit in a weights file goes
unnoticed. The manifest is written after everything else is on the disk, so a checkpoint with a
manifest that fits is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json`` with size [bytes] and sha256 of every file of `folder`; all of it
    reaches the disk."""
    files = {}
    for path in _files(folder):
        _flush(path)
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, folder / MANIFEST)
    _flush(folder)


def verify_manifest(folder: Path) -> str | None:
    """Return what is wrong with the checkpoint in `folder`, or None where every byte is as
    written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the checkpoint was never finished"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != recorded["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, {recorded['bytes']} were written"
        if _sha256(path) != recorded["sha256"]:
            return f"{name} is altered (sha256 differs)"
    return None


def checkpoints(output: Path) -> list[Path]:
    """Return the ``checkpoint-N`` folders of `output`, the newest (largest N) first."""
    if not output.is_dir():
        return []
    found = {path: _NAME.fullmatch(path.name) for path in output.iterdir() if path.is_dir()}
    numbered = [(int(match[1]), path) for path, match in found.items() if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def find_last_valid_checkpoint(output: Path) -> Path | None:
    """Return the newest whole checkpoint under `output`, or None; each broken one passed over is
    named in the log."""
    for folder in checkpoints(Path(output)):
        problem = verify_manifest(folder)
        if problem is None:
            return folder
        logger.warning("skipping %s: %s", folder, problem)
    return None


def delete_old_checkpoints(output: Path, keep: int | None, best: str | None = None) -> None:
    """Delete all but the `keep` newest checkpoints (None: keep all) and the `best`, once the
    newest verifies.

    Nothing is deleted while the newest is not whole, so a good checkpoint exists at every moment.
    """
    folders = checkpoints(output)
    if not keep or not folders or verify_manifest(folders[0]) is not None:
        return
    for folder in folders[keep:]:
        if best is None or folder.resolve() != Path(best).resolve():
            shutil.rmtree(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Force a file's (or folder's) content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
