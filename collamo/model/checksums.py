"""``SHA256SUMS`` beside saved weights: a flipped bit is an error, not another answer.

safetensors has no checksum of its own. The file is what ``sha256sum`` writes, a line per weights
file, so that ``sha256sum -c SHA256SUMS`` checks a copy without us. A folder without one (older,
saved by another program, fetched from a hub) is opened unchecked.
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
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")


def write_checksums(folder: str | Path) -> None:
    """Write ``SHA256SUMS`` of the weights in `folder`: every shard, and the index of shards.

    Whoever may read the one may read the others.
    """
    files = sorted(Path(folder).glob("*.safetensors*"))
    give_mode_of_umask(files)
    lines = [
        f"{digest}  {file.name}\n" for file, digest in zip(files, _digests(files), strict=True)
    ]
    write_text(Path(folder) / CHECKSUMS, "".join(lines))


def verify_checksums(folder: str | Path) -> None:
    """Raise CollamoError where weights in `folder` are not the bytes that were written.

    Digests come from ``SHA256SUMS`` or, in a checkpoint of the trainer, from its manifest. Without
    either, and for a file that is in none of them, nothing is checked. Reading takes about a second
    for 1.7 GB on one core with SHA instructions; shards are read side by side.
    """
    recorded = _recorded(Path(folder))
    files = [Path(folder) / name for name in recorded]
    files = [file for file in files if ".safetensors" in file.name and file.is_file()]
    for file, digest in zip(files, _digests(files), strict=True):
        if digest != recorded[file.name]:
            raise CollamoError(
                f"weights file '{file}' is damaged: its SHA-256 is {digest[:16]}…, that of what "
                f"was written {recorded[file.name][:16]}…; copy or save the checkpoint again (if "
                f"the file was replaced on purpose, delete {CHECKSUMS} beside it)"
            )


def _recorded(folder: Path) -> dict[str, str]:
    """Return file name → digest."""
    if (folder / CHECKSUMS).is_file():
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        digests = {}
        for line in lines:
            match = _LINE.fullmatch(line)
            if match is None:
                raise CollamoError(
                    f"'{folder / CHECKSUMS}' is damaged: {line[:80]!r} is no digest with a file "
                    "name; copy or save the checkpoint again"
                )
            digests[match[2]] = match[1]
        return digests
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: entry["sha256"] for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # not ours, or a checkpoint that was never finished; the trainer says so


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(file_sha256, files))
