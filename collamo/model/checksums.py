"""``SHA256SUMS`` beside saved weights: a flipped bit is an error, not another answer.

safetensors has no checksum of its own, and one bit in a tokenizer or a chat template changes every
answer as well. The file is what ``sha256sum`` writes, a line per file, so that ``sha256sum -c
SHA256SUMS`` checks a copy without us. A folder without one (older, saved by another program,
fetched from a hub) is opened unchecked.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from collamo.errors import CollamoError
from collamo.files import file_sha256, give_mode_of_umask, write_text

CHECKSUMS = "SHA256SUMS"
#: What the trainer seals its checkpoints with; it has the digests of their weights too.
MANIFEST = "manifest.json"
#: Weights that all checkpoints of a training have in common.
FROZEN_WEIGHTS = "model-frozen.safetensors"
# The card is edited by hand and read by nobody but people.
_NOT_LISTED = {CHECKSUMS, MANIFEST, "README.md"}
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")


def write_checksums(folder: str | Path, *, weights: bool = True) -> None:
    """Write ``SHA256SUMS`` of the files in `folder` but for the model card, which people edit.

    Whoever may read one of them may read the others. `weights` False keeps what is recorded of
    weights, gigabytes that nobody has written since. Frozen weights, one file for all checkpoints,
    are read once.
    """
    before = {} if weights else _sums(Path(folder))
    names = [path.name for path in sorted(Path(folder).iterdir()) if path.is_file()]
    names = [name for name in names if name not in _NOT_LISTED and not name.startswith(".")]
    kept = {name: before[name] for name in names if _is_weights(name) and name in before}
    files = [Path(folder, name) for name in names if weights or not _is_weights(name)]
    give_mode_of_umask(files)
    digests = kept | {
        file.name: digest for file, digest in zip(files, _digests(files, True), strict=True)
    }
    text = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    write_text(Path(folder) / CHECKSUMS, text)


def verify_checksums(folder: str | Path, *, weights: bool = True) -> None:
    """Raise CollamoError where a file in `folder` is not the bytes that were written.

    Digests come from ``SHA256SUMS`` and, in a checkpoint of the trainer, those of weights from its
    manifest. Without either, and for a file that is in none of them, nothing is checked. Reading
    takes about a second for 1.7 GB on one core with SHA instructions; shards are read side by side.
    `weights` False leaves them for later.
    """
    recorded = _recorded(Path(folder))
    files = [Path(folder) / name for name in recorded if weights or not _is_weights(name)]
    files = [file for file in files if file.is_file()]
    for file, digest in zip(files, _digests(files), strict=True):
        if digest != recorded[file.name]:
            if sum(a != b for a, b in zip(digest, recorded[file.name], strict=True)) == 1:
                raise CollamoError(  # those of two different files have a sixteenth alike
                    f"'{Path(folder, CHECKSUMS)}' or {MANIFEST} beside it is damaged: its SHA-256 "
                    f"of {file.name} differs from the file's in one digit; copy or save the "
                    "checkpoint again"
                )
            raise CollamoError(
                f"{'weights ' if _is_weights(file.name) else ''}file '{file}' is damaged: its "
                f"SHA-256 is {digest[:16]}…, that of what was written "
                f"{recorded[file.name][:16]}…; copy or save the checkpoint again (if the file was "
                f"replaced on purpose, delete {CHECKSUMS} beside it)"
            )
    listed = (name for name in _sums(Path(folder)) if not _is_weights(name))
    lost = sorted(name for name in listed if not Path(folder, name).is_file())
    if lost:
        raise CollamoError(
            f"'{Path(folder, lost[0])}' is missing; copy or save the checkpoint again (if it is "
            f"left out on purpose, delete {CHECKSUMS} beside it)"
        )


def _is_weights(name: str) -> bool:
    return ".safetensors" in name


def _recorded(folder: Path) -> dict[str, str]:
    """Return file name → digest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        sealed = {name: entry["sha256"] for name, entry in files.items() if _is_weights(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sealed = {}  # not ours, or a checkpoint that was never finished; the trainer says so
    return sealed | _sums(folder)


def _sums(folder: Path) -> dict[str, str]:
    """Return what ``SHA256SUMS`` says: file name → digest; nothing where there is none."""
    if not (folder / CHECKSUMS).is_file():
        return {}
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    matches = [(line, _LINE.fullmatch(line)) for line in lines]
    for line, match in matches:
        if match is None:
            raise CollamoError(
                f"'{folder / CHECKSUMS}' is damaged: {line[:80]!r} is no digest with a file name; "
                "copy or save the checkpoint again"
            )
    return {match[2]: match[1] for _, match in matches if match}


def _digests(files: list[Path], written: bool = False) -> list[str]:
    """Return their SHA-256; of files just `written`, frozen weights may be known already."""

    def digest(file: Path) -> str:
        return file_sha256(file, remember=written and file.name == FROZEN_WEIGHTS)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, files))
