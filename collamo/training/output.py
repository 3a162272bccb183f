"""The folder that a training writes to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from collamo.errors import UsageError
from collamo.files import replacing_folder
from collamo.training.processes import is_first, wait_for_all


@contextlib.contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Keep the output folder for this training; UsageError if another one is running in it.

    The lock goes with its process, however that ends. Of several processes of one training the
    first holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    lock = FileLock(output / "training.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another training is writing to {output}; wait for it, end it, or set --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def prepare_output(output: Path, resume: bool) -> None:
    """Make the output folder; UsageError if it is not a folder or holds another run."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output {output}: {error.strerror}") from None
    if not os.access(output, os.W_OK):
        raise UsageError(f"output {output} cannot be written to")
    if not resume and any(output.glob("checkpoint-*")):
        raise UsageError(
            f"{output} already holds checkpoints; go on with --resume, delete it, or set --output"
        )


class Savable(Protocol):
    """A model, a processor or a tokenizer of transformers."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write it into a folder."""


def save(model: Savable, processor: Savable, folder: Path) -> Path:
    """Write both into `folder`, whole or not at all, and return it.

    The first process does, while the others wait.
    """
    if is_first():
        with replacing_folder(folder) as part:
            model.save_pretrained(str(part))
            processor.save_pretrained(str(part))
    wait_for_all()
    return folder
