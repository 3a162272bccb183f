"""Training that diverges: stopped before it reaches the weights, and never kept as a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from collamo.errors import CollamoError

#: A weight beyond it has exploded. Ours: published language models stay below a few hundred.
LARGEST_WEIGHT = 1e4


class StopOnNonFinite(TrainerCallback):
    """Stop before the first step whose gradient is NaN or infinite reaches the weights.

    transformers by default logs such a loss as 0.0 and trains on. The last good checkpoint stays.

    Parameters
    ----------
    rows
        Rows of the prepared data that the step has seen so far; emptied when the next one begins.
    """

    def __init__(self, rows: list[int]):
        self.rows = rows

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Look the trained parameters up once: walking through the modules took 4 ms a step."""
        self.trained = [p for p in model.parameters() if p.requires_grad]

    def on_step_begin(self, args, state, control, **kwargs):
        """Forget the rows of the step before."""
        self.rows.clear()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Raise CollamoError naming the step and its molecules.

        Clipping comes first and spreads a NaN over all gradients: which one began cannot be seen.
        """
        grads = [p.grad for p in self.trained if p.grad is not None]
        if grads and not torch.nn.utils.get_total_norm(grads).isfinite():
            raise CollamoError(non_finite_message("gradient", state.global_step + 1, self.rows))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Raise CollamoError where a logged loss is NaN or infinite (an evaluation's, say)."""
        for name, value in (logs or {}).items():
            if name.endswith("loss") and not math.isfinite(value):
                raise CollamoError(non_finite_message(name, state.global_step, self.rows))


def non_finite_message(what: str, step: int, rows: Sequence[int] = ()) -> str:
    """Return the one line a user reads when training diverged."""
    seen = list(dict.fromkeys(rows))
    names = ", ".join(map(str, seen[:8])) + (f" and {len(seen) - 8} more" if len(seen) > 8 else "")
    molecules = f" with {'row' if len(seen) == 1 else 'rows'} {names} of the data" if seen else ""
    return (
        f"step {step}: the {what} is NaN or infinite{molecules}; training stopped, the last good "
        "checkpoint is kept; look at those molecules, or lower the rate: --resume "
        "--training.learning_rate RATE --allow-changed training.learning_rate"
    )


def check_weights(parameters: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
    """Raise CollamoError where a trained weight is NaN, infinite or beyond `LARGEST_WEIGHT`.

    Of one that is cut among GPUs each looks at its part.
    """
    for name, parameter in parameters:
        values = parameter.detach()
        values = values.to_local() if isinstance(values, DTensor) else values
        if parameter.requires_grad and values.numel():
            largest = values.abs().max().item()
            if not largest <= LARGEST_WEIGHT:
                raise CollamoError(
                    f"step {step}: {name} holds {largest:.3g}: training has diverged, and this "
                    "state is not kept; the last good checkpoint is; lower the rate: --resume "
                    "--training.learning_rate RATE --allow-changed training.learning_rate"
                )
