"""Launch the attention's Triton kernels: the tensors of a call, as addresses, strides and grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton import kernels as kernels
from collamo_kernels.coattention.triton import trust
from collamo_kernels.coattention.triton.kernels import Projections, Results
from collamo_kernels.coattention.triton.molecules import Molecules
from collamo_kernels.coattention.triton.rounds import rounds_of
from collamo_kernels.coattention.triton.terms import LogitTerms
from collamo_kernels.triton_launch import launch

Choose = Callable[[configuration.Bucket, int, torch.dtype], configuration.Configuration]
Rounds = Iterator[tuple[slice, Tensor | None]]  # heads, and their dL/dlogits


@dataclass(frozen=True)
class AttentionInputs:
    """What the attention takes, forward and backward."""

    projections: Projections
    molecules: Molecules
    valid: Tensor | None  # uint8
    terms: LogitTerms
    scale: float
    dropout_p: float

    def launches(self, choose: Choose) -> Iterator[tuple[configuration.Configuration, int]]:
        """Yield configurations, and above how many atoms each takes the molecules that fit it."""
        q, molecules = self.projections.q, self.molecules
        width = configuration.padded_width(q.shape[-1])
        mean = molecules.atoms / max(1, molecules.count)
        refused = trust.refused(q.device, width, q.dtype)
        if configuration.LOOP in refused:  # a compiled graph did not ask
            raise RuntimeError(f"backend 'triton': {trust.why_none(q.device, width, q.dtype)}")
        before = None
        for size in configuration.size_classes(molecules.longest, mean, width, q.dtype, refused):
            chosen = choose(size.bucket, width, q.dtype)
            if chosen != before:  # forward, up to 64 atoms and more may be one: the loop
                yield chosen, size.above
            before = chosen


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
    projections = _same_strides(inputs.projections)
    launches = [
        (_tiles(molecules, chosen), _shared(inputs, projections.q, results.out, chosen, above))
        for chosen, above in inputs.launches(configuration.forward)
    ]
    for heads in rounds_of(q.shape[1], molecules.pairs, inputs.terms.exact is not None):
        count, terms = heads.stop - heads.start, inputs.terms.of_heads(heads)
        for tiles, shared in launches:
            launch(
                *(kernels.attend, (tiles * count,)),
                *(projections, results),
                terms=terms,
                first_head=heads.start,
                group=count,
                **shared,
            )
    return results


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
    projections, molecules = _same_strides(inputs.projections), inputs.molecules
    q, cleared, dbias = projections.q, gradients.cleared, gradients.dbias
    kept = cleared is not None
    launches = [
        (chosen, _shared(inputs, q, results.out, chosen, above))
        for chosen, above in inputs.launches(configuration.backward)
    ]
    dbias_b, dbias_h = (0, 0) if dbias is None else _bias_strides(dbias, molecules.packed)[:2]
    for heads in rounds_of(q.shape[1], molecules.pairs, kept or inputs.terms.exact is not None):
        count = heads.stop - heads.start
        ds = q.new_empty((molecules.pairs, count), dtype=torch.float32) if kept else None
        terms = inputs.terms.of_heads(heads)
        for chosen, shared in launches:
            kernel, programs, ways = kernels.differentiate, molecules.count, 1
            if chosen.tiles is None:  # a tile's program for keys, and one for queries
                kernel, programs, ways = kernels.differentiate_tile, _tiles(molecules, chosen), 2
            launch(
                *(kernel, (programs * count, ways)),
                *(projections, results, gradients._replace(ds=ds)),
                terms=terms,
                first_head=heads.start,
                group=count,
                cleared_count=0 if cleared is None else len(cleared),
                dbias_b=dbias_b,
                dbias_h=dbias_h,
                **shared,
            )
        yield heads, ds


def like_bias(bias: Tensor) -> Tensor:
    """Return where the gradient of a dense bias goes: a row of pairs is in one piece.

    A bias built once is ``[H, pairs]`` in memory, whatever its shape, and so is its gradient.
    """
    shape, stride = bias.shape[-2:], bias.stride()[-2:]
    if bias.dim() == 4 and stride == (shape[1], 1) and 0 not in bias.stride():
        return torch.empty_like(bias)
    return torch.empty_like(bias, memory_format=torch.contiguous_format)


def _tiles(molecules: Molecules, chosen: configuration.Configuration) -> int:
    """Tiles of a launch; where a molecule is one tile, there is one for each molecule."""
    if chosen.tiles == 1:
        return molecules.count
    return molecules.tile_count(chosen.block, chosen.listed(molecules.packed))


def _shared(
    inputs: AttentionInputs, q: Tensor, out: Tensor, chosen: configuration.Configuration,
    above: int,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of the kernels forward and backward."""
    molecules, terms, bias = inputs.molecules, inputs.terms, inputs.terms.bias
    q_b, q_h, q_t = _strides(molecules, q)
    out_b, out_h, out_t = _strides(molecules, out)
    bias_strides = (0, 0, 0, 0) if bias is None else _bias_strides(bias, molecules.packed)
    build = kernels.Build(
        PRECISION=_precision(q.dtype),
        ALIGN=math.gcd(16, q_b, q_h, q_t, out_b, out_h, out_t),
        PACKED=molecules.packed,
        ROWS=bias is None or bias.stride(-1) == 1,
        LISTED=chosen.listed(molecules.packed),
        SINGLE=chosen.tiles == 1,
        BLOCK=chosen.block,
        HEAD=q.shape[-1],  # its divisors say how wide loads may be
        WIDTH=configuration.padded_width(q.shape[-1]),
    )
    return {
        "places": molecules.places(inputs.valid),
        "above": above,
        "heads": q.shape[1],
        "longest": molecules.longest,
        "blocks": 1 if chosen.tiles == 1 else molecules.blocks(chosen.block),
        "pairs": molecules.pairs,
        "buckets": terms.buckets,
        "cells": terms.cells,
        "scale": inputs.scale,
        **{"q_b": q_b, "q_h": q_h, "q_t": q_t, "out_b": out_b, "out_h": out_h, "out_t": out_t},
        **{f"bias_{axis}": s for axis, s in zip("bhij", bias_strides, strict=True)},
        "threshold": math.floor(inputs.dropout_p * 2**32) - 2**31,
        "growth": 1 / (1 - inputs.dropout_p),
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


def _strides(molecules: Molecules, x: Tensor) -> tuple[int, int, int]:
    """Over molecules, heads and atoms."""
    if molecules.packed:
        return 0, x.stride(1), x.stride(0)
    return x.stride(0), x.stride(1), x.stride(2)


def _bias_strides(bias: Tensor, packed: bool) -> tuple[int, ...]:
    """Over molecules, heads, queries and keys; of a packed bias the last is over pairs."""
    return (0, bias.stride(0), 0, bias.stride(1)) if packed else bias.stride()


def _same_strides(projections: Projections) -> Projections:
    q, k, v = projections
    if q.stride(-1) == 1 and q.stride() == k.stride() == v.stride():
        return projections
    return Projections(q.contiguous(), k.contiguous(), v.contiguous())
