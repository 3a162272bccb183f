"""Which trained model answers: the one that is named, else the newest that the demo left."""

from __future__ import annotations

import os
from pathlib import Path

from collamo.errors import MissingDependencyError

#: Where `make demo` leaves its models.
DEMO_CHECKPOINTS = ("demo/stage2/final", "demo/stage1/final")
#: A checkpoint folder holds one of these at least.
CHECKPOINT_FILES = ("config.json", "adapter_config.json")


def find_checkpoint(folder: str | Path | None = None) -> Path:
    """Return the checkpoint folder to use.

    None takes the one that the environment variable ``COLLAMO_CHECKPOINT`` names, else the newest
    of `DEMO_CHECKPOINTS` below the working directory.

    Raises
    ------
    MissingDependencyError
        Where there are no trained weights.
    """
    named = folder or os.environ.get("COLLAMO_CHECKPOINT")
    if named:
        return _checked(Path(named))
    demos = [Path(name) for name in DEMO_CHECKPOINTS if _is_checkpoint(Path(name))]
    if not demos:
        raise MissingDependencyError(
            "no trained weights here: name the folder of a checkpoint, set COLLAMO_CHECKPOINT, or "
            "make some: run `make demo` in a clone, elsewhere the four commands of “A first model” "
            "in docs/start.md"
        )
    return max(demos, key=lambda demo: demo.stat().st_mtime)


def _checked(folder: Path) -> Path:
    if _is_checkpoint(folder):
        return folder
    problem = "has no config.json" if folder.is_dir() else "does not exist"
    if folder.is_file():
        problem = "is a file: give its folder"
    raise MissingDependencyError(
        f"checkpoint {folder} {problem}; train one (`make demo`) or name another"
    )


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CHECKPOINT_FILES)
