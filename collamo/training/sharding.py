"""A model whose weights are cut among the GPUs (FSDP2 by accelerate), and put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from collamo.errors import UsageError
from collamo.training.freezing import LANGUAGE_MODEL
from collamo.training.processes import is_first

if TYPE_CHECKING:
    from accelerate import FullyShardedDataParallelPlugin


def prepare_sharding(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Say what is cut together: each layer of the language model, and all the rest at once.

    Projector and encoders are small, and Φ's tables of several layers are made in one launch, past
    the call of the layer that owns them. Weights keep their dtype, as on one GPU: those that train
    float32, frozen ones the language model's; accelerate would cast what enters the model, the
    coordinates too.

    Raises
    ------
    UsageError
        For FSDP of version 1, and for stage `language_model`.
    """
    if plugin.fsdp_version != 2:
        raise UsageError("sharding is done by FSDP2: fsdp_version: 2 in the file for accelerate")
    language_model = next(
        (m for name, m in model.named_modules() if name.rpartition(".")[2] == LANGUAGE_MODEL[0]),
        None,
    )
    if language_model is None:
        raise UsageError(
            "stage language_model trains a small model, which is not sharded: "
            "accelerate launch --config_file configs/accelerate/ddp.yaml"
        )
    names = cast("PreTrainedModel", language_model)._no_split_modules
    plugin.transformer_cls_names_to_wrap = sorted(names or [])
    plugin.mixed_precision_policy = None


def check_zero(stage: int) -> None:
    """Refuse DeepSpeed's ZeRO-3, whose parts nothing here puts together: `final` would be empty.

    Raises
    ------
    UsageError
        For stage 3.
    """
    if stage == 3:
        raise UsageError(
            "DeepSpeed's ZeRO-3 cannot write a model in one piece here; FSDP2 does the same: "
            "accelerate launch --config_file configs/accelerate/fsdp2.yaml"
        )


class ReduceUnused(TrainerCallback):
    """Let every GPU send a gradient for each weight, zero where its batch did not use it.

    FSDP2 sends those that are there: a batch without a conformer would send fewer than the others,
    and all would wait, or add up what does not belong together.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Ask for it; UsageError where torch cannot."""
        if not hasattr(model, "set_reduce_scatter_unused_params"):
            raise UsageError("FSDP2 needs torch 2.13 here: a batch may leave weights unused")
        model.set_reduce_scatter_unused_params(True)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what was trained, and the buffers, by name: in the first process, {} in the others.

    All of them must ask.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights = get_model_state_dict(model, options=options)
    return cast("dict[str, Tensor]", weights) if is_first() else {}
