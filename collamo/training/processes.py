"""The processes of one training: each GPU has one, they are connected, and the first one writes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from transformers import TrainingArguments

from collamo.errors import CollamoError, UsageError

logger = logging.getLogger(__name__)
T = TypeVar("T")


def is_connected() -> bool:
    """Return whether this is one of several processes that train one model."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Return whether this is the process that writes, of many or alone."""
    return not is_connected() or dist.get_rank() == 0


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if is_connected():
        dist.barrier()


def from_first(make: Callable[[], T]) -> T:
    """Return in every process what `make` returns in the first; where it raises CollamoError there,
    raise it everywhere.

    What the first finds on the disk another one may not: it may have been written since.
    """
    if not is_connected():
        return make()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = make()
        except CollamoError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def check_processes(arguments: TrainingArguments) -> None:
    """Refuse processes that were started together and would train alone, each its own model.

    Several GPUs of one process are left alone but for the first: `Trainer` would copy the model to
    each at every step (`torch.nn.DataParallel`), which has no place for molecules.

    Raises
    ------
    UsageError
        Where a launcher says that there are others, and `arguments` that there are none: on a
        machine without a GPU, as long as nothing asks for the CPU.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and arguments.world_size != started:
        raise UsageError(
            f"{started} processes were started, but they are not connected: each would train a "
            "model of its own, in one folder; without a GPU add --use_cpu true, else start one"
        )
    if arguments.n_gpu > 1:
        logger.warning(
            "training on the first of %d GPUs; on all: torchrun --nproc_per_node %d -m collamo "
            "train …",
            *(arguments.n_gpu, arguments.n_gpu),
        )
        arguments._n_gpu = 1
