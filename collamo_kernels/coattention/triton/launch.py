"""Launch the attention's Triton kernels: the tensors of a call, as addresses, strides and grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton import kernels as kernels
from collamo_kernels.coattention.triton import trust
from collamo_kernels.coattention.triton.kernels import Projections, Results
from collamo_kernels.coattention.triton.molecules import Extent, Molecules
from collamo_kernels.coattention.triton.rounds import rounds_of
from collamo_kernels.coattention.triton.terms import LogitTerms
from collamo_kernels.triton_launch import Launch, planned

Choose = Callable[[configuration.Bucket, int, torch.dtype], configuration.Configuration]
Rounds = Iterator[tuple[slice, Tensor | None]]  # heads, and their dL/dlogits
Plan = list[tuple[slice, list[Launch]]]  # heads, and what is launched for them


class Numbers(NamedTuple):
    """What the launches of an attention depend on, but for its tensors."""

    extent: Extent
    heads: int
    width: int  # of a head
    dtype: torch.dtype
    strides: tuple[int, ...]  # of q, k and v
    out_strides: tuple[int, ...]
    bias_strides: tuple[int, ...] | None
    buckets: int
    cells: int
    exact: bool  # whether memory is set aside for an exact Φ3d
    scale: float
    precision: str
    refused: frozenset[configuration.Bucket]

    def launches(self, choose: Choose) -> Iterator[tuple[configuration.Configuration, int]]:
        """Yield configurations, and above how many atoms each takes the molecules that fit it."""
        width, (count, longest, atoms, _, _) = configuration.padded_width(self.width), self.extent
        mean = atoms / max(1, count)
        before = None
        for size in configuration.size_classes(longest, mean, width, self.dtype, self.refused):
            chosen = choose(size.bucket, width, self.dtype)
            if chosen != before:  # forward, up to 64 atoms and more may be one: the loop
                yield chosen, size.above
            before = chosen


class AttentionInputs(NamedTuple):
    """What the attention takes, forward and backward."""

    projections: Projections
    molecules: Molecules
    valid: Tensor | None  # uint8
    terms: LogitTerms
    scale: float

    def numbers(self, q: Tensor, out: Tensor) -> Numbers:
        """Return what plans are made of; `q` has the strides of all three projections."""
        terms, width = self.terms, q.shape[-1]
        refused = trust.refused(q.device, configuration.padded_width(width), q.dtype)
        if configuration.LOOP in refused:  # a compiled graph did not ask
            raise RuntimeError(f"backend 'triton': {trust.why_none(q.device, width, q.dtype)}")
        return Numbers(
            self.molecules.extent,
            *(q.shape[1], width, q.dtype, q.stride(), out.stride()),
            None if terms.bias is None else terms.bias.stride(),
            *(terms.buckets, terms.cells, terms.exact is not None),
            *(self.scale, _precision(q.dtype), refused),
        )


def forward(inputs: AttentionInputs, logits: Tensor | None = None) -> Results:
    """Result, in the shape of q; largest logit and 1 / Σ exp of each row, ``[atoms, H]``.

    `logits` ``[H, pairs]`` float32 is written where it is given: packed layout only.
    """
    q, molecules = inputs.projections.q, inputs.molecules
    rows = (molecules.atoms, q.shape[1])
    row_max, inverse_sum = (q.new_empty(rows, dtype=torch.float32) for _ in range(2))
    results = Results(torch.empty_like(q), row_max, inverse_sum, logits)
    if not molecules.atoms:
        return results
    projections, places = _same_strides(inputs.projections), molecules.places(inputs.valid)
    for heads, launches in _forward_plan(inputs.numbers(projections.q, results.out)):
        terms = inputs.terms.of_heads(heads)
        for launch in launches:
            launch(projections, results, places, terms)
    return results


@planned
def _forward_plan(numbers: Numbers) -> Plan:
    extent, chosen = numbers.extent, list(numbers.launches(configuration.forward))
    return [
        (
            heads,
            [
                Launch(
                    *(kernels.attend, (_tiles(extent, x) * (heads.stop - heads.start),)),
                    **_shared(numbers, x, above, heads),
                )
                for x, above in chosen
            ],
        )
        for heads in rounds_of(numbers.heads, extent.pairs, numbers.exact)
    ]


def backward(
    inputs: AttentionInputs, results: Results, grad: Tensor, bias_learns: bool, sink_learns: bool,
    cleared: Tensor | None, dlogits: Tensor | None = None,
) -> tuple[kernels.Gradients, Rounds]:  # fmt: skip
    """Gradients, those of bias and sink where they learn, and rounds of heads with dL/dlogits.

    Those are kept for `sum_up`, whose segments (`cleared`) each round sets to 0, unless None. Every
    round must be drawn: the kernels run then.
    """
    out = results.out
    dq, dk, dv = (torch.empty_like(out) for _ in range(3))
    bias = inputs.terms.bias
    dbias = like_bias(bias) if bias is not None and bias_learns else None
    dsink = torch.empty_like(results.row_max) if sink_learns else None
    grad = grad if grad.stride() == out.stride() else torch.empty_like(out).copy_(grad)
    gradients = kernels.Gradients(grad, dq, dk, dv, None, dbias, dsink, cleared, dlogits)
    rounds = _backward_rounds(inputs, results, gradients)
    return gradients, rounds if inputs.molecules.atoms else iter(())


def _backward_rounds(
    inputs: AttentionInputs, results: Results, gradients: kernels.Gradients
) -> Rounds:
    projections, places = _same_strides(inputs.projections), inputs.molecules.places(inputs.valid)
    q, cleared, dbias = projections.q, gradients.cleared, gradients.dbias
    plan = _backward_plan(
        inputs.numbers(q, results.out),
        None if cleared is None else len(cleared),
        None if dbias is None else dbias.stride(),
    )
    for heads, launches in plan:
        ds, terms = None, inputs.terms.of_heads(heads)
        if cleared is not None:
            sizes = inputs.molecules.pairs, heads.stop - heads.start
            ds = q.new_empty(sizes, dtype=torch.float32)
        own = gradients._replace(ds=ds)
        for launch in launches:
            launch(projections, results, own, places, terms)
        yield heads, ds


@planned
def _backward_plan(
    numbers: Numbers, cleared: int | None, dbias_strides: tuple[int, ...] | None
) -> Plan:
    """`cleared` words, if any, are set to 0: dL/dlogits are kept then."""
    extent, kept = numbers.extent, cleared is not None
    dbias_b, dbias_h, *_ = _bias_strides(dbias_strides, extent.packed)
    plan: Plan = []
    for heads in rounds_of(numbers.heads, extent.pairs, kept or numbers.exact):
        launches = []
        for chosen, above in numbers.launches(configuration.backward):
            kernel, programs, ways = kernels.differentiate, extent.number, 1
            if chosen.tiles is None:  # a tile's program for keys, and one for queries
                kernel, programs, ways = kernels.differentiate_tile, _tiles(extent, chosen), 2
            launch = Launch(
                *(kernel, (programs * (heads.stop - heads.start), ways)),
                cleared_count=cleared or 0,
                dbias_b=dbias_b,
                dbias_h=dbias_h,
                **_shared(numbers, chosen, above, heads),
            )
            launches.append(launch)
        plan.append((heads, launches))
    return plan


def like_bias(bias: Tensor) -> Tensor:
    """Return where the gradient of a dense bias goes: a row of pairs is in one piece.

    A bias built once is ``[H, pairs]`` in memory, whatever its shape, and so is its gradient.
    """
    shape, stride = bias.shape[-2:], bias.stride()[-2:]
    if bias.dim() == 4 and stride == (shape[1], 1) and 0 not in bias.stride():
        return torch.empty_like(bias)
    return torch.empty_like(bias, memory_format=torch.contiguous_format)


def _tiles(extent: Extent, chosen: configuration.Configuration) -> int:
    """Tiles of a launch; where a molecule is one tile, there is one for each molecule."""
    if chosen.tiles == 1:
        return extent.number
    return extent.tiles(chosen.block, chosen.listed(extent.packed))


def _shared(
    numbers: Numbers, chosen: configuration.Configuration, above: int, heads: slice
) -> dict[str, Any]:
    """Numbers of the kernels forward and backward, and how they are compiled."""
    extent = numbers.extent
    q_b, q_h, q_t = _strides(numbers.strides, extent.packed)
    out_b, out_h, out_t = _strides(numbers.out_strides, extent.packed)
    bias_strides = _bias_strides(numbers.bias_strides, extent.packed)
    build = kernels.Build(
        PRECISION=numbers.precision,
        ALIGN=math.gcd(16, q_b, q_h, q_t, out_b, out_h, out_t),
        PACKED=extent.packed,
        ROWS=numbers.bias_strides is None or numbers.bias_strides[-1] == 1,
        LISTED=chosen.listed(extent.packed),
        SINGLE=chosen.tiles == 1,
        BLOCK=chosen.block,
        HEAD=numbers.width,  # its divisors say how wide loads may be
        WIDTH=configuration.padded_width(numbers.width),
    )
    return {
        "above": above,
        "heads": numbers.heads,
        "first_head": heads.start,
        "group": heads.stop - heads.start,
        "longest": extent.longest,
        "blocks": 1 if chosen.tiles == 1 else extent.blocks(chosen.block),
        "pairs": extent.pairs,
        "buckets": numbers.buckets,
        "cells": numbers.cells,
        "scale": numbers.scale,
        **{"q_b": q_b, "q_h": q_h, "q_t": q_t, "out_b": out_b, "out_h": out_h, "out_t": out_t},
        **{f"bias_{axis}": s for axis, s in zip("bhij", bias_strides, strict=True)},
        "build": build,
        "num_warps": chosen.num_warps,
        "num_stages": 1,  # a molecule has few tiles: nothing to run ahead of
    }


def _precision(dtype: torch.dtype) -> str:
    """Of matrix products: TensorFloat-32 for float32 where PyTorch's own switch allows it.

    Only this attribute tells of every way to set it: after ``torch.backends.fp32_precision`` and
    the like `torch.get_float32_matmul_precision` raises.
    """
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def _strides(strides: tuple[int, ...], packed: bool) -> tuple[int, int, int]:
    """Over molecules, heads and atoms."""
    if packed:
        return 0, strides[1], strides[0]
    return strides[0], strides[1], strides[2]


def _bias_strides(strides: tuple[int, ...] | None, packed: bool) -> tuple[int, ...]:
    """Over molecules, heads, queries and keys; of a packed bias the last is over pairs."""
    if strides is None:
        return 0, 0, 0, 0
    return (0, strides[0], 0, strides[1]) if packed else strides


def _same_strides(projections: Projections) -> Projections:
    q, k, v = projections
    if q.stride(-1) == 1 and q.stride() == k.stride() == v.stride():
        return projections
    return Projections(q.contiguous(), k.contiguous(), v.contiguous())
