"""A property that is worked out once, and again only when one of its sources changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Owner = TypeVar("Owner")
Value = TypeVar("Value")
State = list[tuple[Tensor | None, int]]  # tensors, and how often each was written to
# Whether `Relations.prepare` was called. False rather than missing: what is missing the compiler
# does not look for again, so that a graph of relations as they came would take prepared ones too.
PREPARED = "_prepared"

SOURCES: dict[str, tuple[str, ...]] = {}  # where a value is kept: what it is made from


class Kept(NamedTuple, Generic[Value]):
    """A value, and the state of what it was made from."""

    state: State
    value: Value


def once(*sources: str) -> Callable[[Callable[[Owner], Value]], Callable[[Owner], Value]]:
    """Keep what a method returns, until an attribute named in `sources` changes.

    What it was made from is kept beside it: a copy that is given other tensors, and a tensor that
    is written to in place, are noticed (not through ``.data`` or memory that is shared with NumPy,
    which PyTorch does not count).

    A compiled graph cannot ask how often a tensor was written to. It takes what `Relations.prepare`
    worked out, as long as the tensors are the same ones, and works out all else itself. There the
    method alone sees to it that the result has no history: `torch.export` takes no `no_grad` inside
    an autocast.
    """

    def decorate(make: Callable[[Owner], Value]) -> Callable[[Owner], Value]:
        key = f"_{make.__name__}"

        @functools.wraps(make)
        def get(self: Owner) -> Value:
            kept: Kept[Value] | None = self.__dict__.get(key)
            if torch.compiler.is_compiling():
                prepared = kept if self.__dict__[PREPARED] else None
                if prepared is not None and _same(prepared.state, self, sources):
                    return prepared.value
                return make(self)
            if kept is None or not unchanged(kept.state, self, sources):
                _refuse_in_capture(make.__name__, state_of(self, sources))
                # What was made in inference mode no later training step could save.
                with torch.inference_mode(False), torch.no_grad():
                    kept = Kept(state_of(self, sources), make(self))
                self.__dict__[key] = kept
            return kept.value

        SOURCES[key] = sources
        return get

    return decorate


def _same(state: State, owner: object, sources: tuple[str, ...]) -> bool:
    """Whether the owner still has the tensors of a state, whatever was written to them."""
    return all(x is getattr(owner, y) for (x, _), y in zip(state, sources, strict=True))


def _refuse_in_capture(name: str, state: State) -> None:
    """Raise where a CUDA graph is being captured: its memory is used again and again."""
    on_gpu = any(x is not None and x.device.type == "cuda" for x, _ in state)
    if on_gpu and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"relations.{name} is not prepared, and would belong to the CUDA graph that is being "
            "captured; call relations.prepare() before the capture"
        )


def state_of(owner: object, sources: tuple[str, ...]) -> State:
    """Return the tensors that `sources` name, with their versions."""
    tensors = [getattr(owner, name) for name in sources]
    return [(x, 0 if x is None else _version(x)) for x in tensors]


def _version(x: Tensor) -> int:
    # A tensor made under inference_mode does not count its changes.
    return 0 if x.is_inference() else x._version


def unchanged(state: State, owner: object, sources: tuple[str, ...]) -> bool:
    """Whether the owner still has the tensors of a state, and nobody wrote to one since."""
    # A layer asks seven times, so that no list is made.
    for (x, version), name in zip(state, sources, strict=True):
        if x is not getattr(owner, name):
            return False
        if x is not None and version != _version(x):
            return False
    return True
