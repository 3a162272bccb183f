"""The arguments of the compiled attention's operators, in the order of their schemas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")


class Learned(NamedTuple, Generic[T]):
    """Something of each tensor that can get a gradient, in the order of the backward's results."""

    q: T
    k: T
    v: T
    hop_bias: T
    rows: T
    phi: T
    bias: T
    coordinates: T
    affine: T
    sink: T


class Arguments(NamedTuple):
    """What the forward operator takes; `op` explains each. First all tensors, then numbers."""

    q: Tensor
    k: Tensor
    v: Tensor
    hop_bias: Tensor | None = None
    rows: Tensor | None = None
    slope_rows: Tensor | None = None
    phi: Tensor | None = None
    bias: Tensor | None = None
    coordinates: Tensor | None = None
    affine: Tensor | None = None
    sink: Tensor | None = None
    hops: Tensor | None = None
    valid: Tensor | None = None
    cu_seqlens: Tensor | None = None
    has_3d: Tensor | None = None
    pair_types: Tensor | None = None
    atom_types: Tensor | None = None
    first_knot: Tensor | None = None
    seed: Tensor | None = None
    dropout_p: Tensor | None = None
    low: float = 0.0
    block: float = 1.0
    scale: float = 1.0
    phi_of_all_pairs: bool = False

    @classmethod
    def unflattened(cls, tensors: Iterable[Tensor | None], numbers: Iterable[float]) -> Arguments:
        """Put together what `tensors` and `numbers` took apart."""
        flat: list[Any] = [*tensors, *numbers]
        return cls(*flat)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the tensors, as autograd saves them."""
        flat: tuple[Any, ...] = self
        return flat[:TENSORS]

    def numbers(self) -> tuple[float, ...]:
        """Return the numbers, which autograd does not save."""
        flat: tuple[Any, ...] = self
        return flat[TENSORS:]

    def learned(self) -> Learned[Tensor | None]:
        """Return what can get a gradient."""
        inputs = self.q, self.k, self.v, self.hop_bias, self.rows, self.phi, self.bias
        return Learned(*inputs, self.coordinates, self.affine, self.sink)

    def read(self) -> Learned[Tensor | None]:
        """Likewise, None where the formula does not read it: a hop table without hops, say."""
        learned = self.learned()
        if self.hops is None:
            learned = learned._replace(hop_bias=None)
        return learned if self.rows is not None else learned._replace(coordinates=None, affine=None)

    def with_learned(self, values: dict[str, Any]) -> Arguments:
        """Return the same arguments with other tensors, by name."""
        return self._replace(**values)


TENSORS = Arguments._fields.index("low")  # how many there are
PLACES = tuple(Arguments._fields.index(name) for name in Learned._fields)
ALWAYS = 3  # gradients of q, k and v are always made; of the others `requested` has a bit each


def at_their_places(learned: Learned[T]) -> tuple[T | None, ...]:
    """Return one thing for each argument of the forward operator: None of those never learned."""
    by_name = learned._asdict()
    return tuple(by_name.get(name) for name in Arguments._fields)


def requested_of(needs_gradient: tuple[bool, ...]) -> Learned[bool]:
    """Return which gradients autograd asks for, given what it says of the forward's arguments."""
    return Learned(*(needs_gradient[at] for at in PLACES))


def to_bits(requested: Learned[bool]) -> int:
    """Return `requested` as the backward operator takes it."""
    return sum(1 << bit for bit, asked in enumerate(requested[ALWAYS:]) if asked)


def from_bits(bits: int) -> Learned[bool]:
    """Return what the bits stand for."""
    others = (bool(bits >> bit & 1) for bit in range(len(PLACES) - ALWAYS))
    return Learned(*(True,) * ALWAYS, *others)
