"""The optimizer's groups: which parameters have a learning rate or a weight decay of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn
from torch.optim import Optimizer

from collamo.training.freezing import PROJECTOR, part_of
from collamo.training.recipe import Recipe

_RELATIONS = ("hop_bias", "radial")
# Logits with no input in front of them: decay would draw them to the plain softmax.
_LOGITS = (*_RELATIONS, "sink", "zero_logit")


def decaying(names: Iterable[str]) -> list[str]:
    """Return the names of parameters that may decay: none of the projector's Φ and sinks.

    >>> decaying(["mol_projector.gather.zero_logit", "mol_projector.gather.key.weight"])
    ['mol_projector.gather.key.weight']
    """
    return [name for name in names if part_of(name) != PROJECTOR or not _within(name, _LOGITS)]


def own_rates(recipe: Recipe, learning_rate: float) -> dict[str, float]:
    """Return the learning rate of each part that has another one than `learning_rate`, that of all.

    The parts are the projector, and inside it, named after it, ``hop_bias`` and ``radial``.
    """
    projector = recipe.projector_learning_rate
    rates = {} if projector is None else {PROJECTOR: projector}
    base = learning_rate if projector is None else projector
    factors = {name: getattr(recipe.relation_rates, name) for name in _RELATIONS}
    return rates | {name: factor * base for name, factor in factors.items() if factor != 1}


def set_rates(optimizer: Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Move the parameters of each part in `rates` into groups of their own, with their decay.

    A parameter of several parts gets the rate of the last.
    """
    names = {id(p): name for name, p in model.named_parameters() if part_of(name) == PROJECTOR}
    for part, rate in rates.items():
        inside = {key for key, name in names.items() if _within(name, (part,))}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in inside]
            group["params"] = [p for p in group["params"] if id(p) not in inside]
            if own:
                optimizer.add_param_group({**group, "params": own, "lr": rate})


def _within(name: str, parts: Iterable[str]) -> bool:
    return not set(parts).isdisjoint(name.split("."))
