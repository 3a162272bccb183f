"""How fast a training is: tokens and molecules a second, and the share of the GPUs' peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from collamo.training.roofline import Rates, peak_of, rates


class Throughput(TrainerCallback):
    """Counts what the steps read; the log of a loss gets ``tokens_per_second`` (without padding),
    ``molecules_per_second`` and, in half precision on a GPU of `PEAKS`, ``mfu``.

    MFU is the FLOPs of `rates` over what all GPUs could have done in the time. The time runs from
    log to log, without what evaluations and checkpoints take.
    """

    def __init__(self, arguments: TrainingArguments):
        half = arguments.bf16 or arguments.fp16
        on_gpu = half and arguments.device.type == "cuda"
        self._peak = peak_of(torch.cuda.get_device_name(arguments.device)) if on_gpu else None
        self._rates: Rates | None = None
        self._counts: list[Tensor] = []
        self._since = self._moment = perf_counter()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Look the weights up once, while nothing is wrapped around them, and start the clock."""
        config = model.config
        self._rates = rates(model, getattr(config, "text_config", config))
        self._counts.clear()
        self._since = perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Remember the moment: what comes now may be an evaluation or a checkpoint."""
        self._moment = perf_counter()

    def on_evaluate(self, args, state, control, **kwargs):
        """Leave the time since the step out."""
        self._pause()

    on_save = on_evaluate

    def add(self, inputs: Mapping[str, Any], molecules: int) -> None:
        """Count a batch; nothing is read from the device before the next log."""
        mask, labels = inputs.get("attention_mask"), inputs["labels"]
        lengths = (torch.ones_like(labels) if mask is None else mask).sum(1)
        valid = inputs.get("atom_valid")
        counts = (
            lengths.sum(),
            (labels[:, 1:] != -100).sum(),
            lengths.square().sum(),
            lengths.new_zeros(()) if valid is None else valid.sum(),
            lengths.new_tensor(molecules),
        )
        self._counts.append(torch.stack(counts).double())

    def report(self, logs: dict[str, float], gather: Callable[[Tensor], Tensor]) -> None:
        """Add the speed since the last report to `logs`; `gather` brings those of all processes."""
        if not self._counts or self._rates is None:
            return
        each = gather(torch.stack(self._counts).sum(0)[None])  # [processes, 5]
        processes, (tokens, scored, pairs, atoms, molecules) = len(each), each.sum(0).tolist()
        seconds = perf_counter() - self._since
        self._counts.clear()
        self._since = perf_counter()
        logs["tokens_per_second"] = round(tokens / seconds, 1)
        if molecules:
            logs["molecules_per_second"] = round(molecules / seconds, 2)
        if self._peak is not None:
            needed = self._rates.flops(tokens, scored, pairs, atoms)
            logs["mfu"] = round(needed / (seconds * processes * self._peak.flops), 4)

    def _pause(self) -> None:
        now = perf_counter()
        self._since += now - max(self._moment, self._since)
        self._moment = now
