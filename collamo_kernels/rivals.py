"""What the attention is compared with: its formula in PyTorch, SDPA and FlexAttention.

The rivals take the batch padded, because they have no other layout. The radial function counts for
the formula, because it trains; SDPA and FlexAttention have Φ ready-built and still have less to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from collamo_kernels.coattention import coattention
from collamo_kernels.coattention.reference import hop_term, radial_term, valid_pairs
from collamo_kernels.relations import Relations
from collamo_kernels.testing import Inputs, assert_accurate, attend

SDPA = "SDPA, bias ready-built"
COMPILED = ("compiled reference", "FlexAttention, bias ready-built")  # each takes a minute first


class Padded:
    """The same inputs as the rivals take them, [B, H, N, D]; padding is not timed."""

    def __init__(self, inputs: Inputs):
        layout = self.layout = inputs.layout
        tensors = (inputs.q, inputs.k, inputs.v, inputs.cotangent)
        q, k, v, cotangent = (layout.pad(x.detach()).transpose(1, 2).contiguous() for x in tensors)
        self.q, self.k, self.v = (x.requires_grad_() for x in (q, k, v))
        self.cotangent = cotangent
        relations = inputs.relations.padded()
        assert inputs.hop_bias is not None
        assert inputs.radial is not None
        assert relations.coordinates is not None
        self.hop_bias, self.radial = inputs.hop_bias, inputs.radial
        x = relations.coordinates.detach().requires_grad_()
        self.relations = dataclasses.replace(relations, coordinates=x)

    def learned(self) -> tuple[Tensor, ...]:
        """Return everything that gets a gradient."""
        assert self.relations.coordinates is not None
        tables = (self.relations.coordinates, self.hop_bias, *self.radial.parameters())
        return self.q, self.k, self.v, *tables

    def bias(self) -> Tensor:
        """Φ2d + Φ3d [B, H, N, N], -1e30 where there is padding: what SDPA has to be handed."""
        with torch.no_grad():
            by_hops = hop_term(self.relations, self.hop_bias)
            by_distance = radial_term(self.relations, self.radial)
            assert by_hops is not None
            assert by_distance is not None
            assert self.relations.valid is not None
            allowed = valid_pairs(self.relations.valid)[:, None]
            return torch.where(allowed, by_hops + by_distance, -1e30).contiguous()


def backwards(
    out: Tensor, tensors: tuple[Tensor, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """All gradients of (out · cotangent).sum()."""
    return torch.autograd.grad(out, tensors, cotangent, allow_unused=True)


class Rival:
    """A call without arguments; `packed` gives its result in our layout, [T, H, D]."""

    def __init__(
        self,
        forward: Callable[[], Tensor],
        tensors: tuple[Tensor, ...],
        padded: Padded,
        backward: bool,
    ):
        self.forward, self.tensors, self.padded, self.backward = forward, tensors, padded, backward

    def __call__(self) -> Tensor:
        """Run it, with the gradients of `tensors` where they are asked for."""
        with torch.set_grad_enabled(self.backward):
            out = self.forward()
        if self.backward:
            backwards(out, self.tensors, self.padded.cotangent)
        return out

    def packed(self) -> Tensor:
        """Run it, and leave padding out of the result."""
        return self.padded.layout.pack(self().detach().transpose(1, 2))


def rivals_of(inputs: Inputs, backward: bool) -> dict[str, Rival]:
    """Return the rivals by name; those that are compiled are when they are called first."""
    padded = Padded(inputs)
    q, k, v = padded.q, padded.k, padded.v
    bias = padded.bias().requires_grad_(backward)
    compiled = torch.compile(by_definition, dynamic=False)
    flex = torch.compile(flex_attention, dynamic=False)

    def rival(forward: Callable[[], Tensor], tensors: tuple[Tensor, ...]) -> Rival:
        return Rival(forward, tensors, padded, backward)

    def formula(function: Callable[..., Tensor]) -> Rival:
        arguments = (q, k, v, padded.relations, padded.hop_bias, padded.radial)
        return rival(lambda: function(*arguments), padded.learned())

    def sdpa() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def flexible() -> Tensor:
        def biased(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + bias[b, h, i, j]

        return flex(q.detach(), k.detach(), v.detach(), score_mod=biased)

    rivals = {"reference": formula(by_definition), COMPILED[0]: formula(compiled)}
    rivals[SDPA] = rival(sdpa, (q, k, v, bias))
    if not backward:  # FlexAttention has no backward pass on a CPU
        rivals[COMPILED[1]] = rival(flexible, ())
    return rivals


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, relations: Relations, hop_bias: Tensor, radial: nn.Module
) -> Tensor:
    """The formula in plain PyTorch."""
    return coattention(
        *(q, k, v), relations=relations, hop_bias=hop_bias, radial=radial, backend="reference"
    )


def checked(
    rivals: Mapping[str, Rival], yardstick: Tensor, exact: Tensor
) -> dict[str, Rival | str]:
    """Run each rival once; put the reason in the place of one that cannot run."""
    calls: dict[str, Rival | str] = {}
    for name, rival in rivals.items():
        try:
            answer = rival.packed()
        except Exception as error:  # whatever a compiler may throw
            lines = str(error).strip().splitlines() or [""]
            calls[name] = f"does not run: {type(error).__name__}: {lines[0][:80]}"
            continue
        assert_accurate(answer, yardstick, exact, name=name)
        calls[name] = rival
    return calls


def ours_of(inputs: Inputs, backward: bool, backend: str | None = None) -> Callable[[], Any]:
    """Return our call, packed."""

    def forward() -> Tensor:
        with torch.set_grad_enabled(backward):
            return attend(inputs, "packed", backend=backend)

    tensors = tuple(tensor for _, tensor in inputs.grads())
    if not backward:
        return forward
    return lambda: backwards(forward(), tensors, inputs.cotangent)
