"""What else PyTorch offers on a GPU for attention with a bias: the rivals of ``gpu.py``.

The radial function counts for the eager rival and its compilation, because it trains; SDPA and
FlexAttention are handed it ready-built. SDPA is pinned to EFFICIENT_ATTENTION, because the cuDNN
backend returns NaN gradients for some lengths there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from collamo_kernels import rivals as harness
from collamo_kernels.coattention.reference import hop_term, radial_term, valid_pairs
from collamo_kernels.testing import Inputs


def compiled(function: Callable) -> Callable:
    """Compile for these shapes alone.

    Dynamo forgets what it compiled before: otherwise new shapes would be taken as variable, and
    after eight versions of a function it would run uncompiled.
    """
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def aligned(bias: Tensor) -> Tensor:
    """Lay rows 16 numbers apart, as SDPA wants them; it would copy another bias at every call."""
    n = bias.shape[-1]
    return F.pad(bias, (0, -n % 16))[..., :n]


def rivals_of(
    inputs: Inputs, backward: bool, names: tuple[str, ...], compiler: Callable = compiled
) -> dict[str, Callable]:
    """Return the rivals by name: functions without arguments, each with an attribute `packed`."""
    padded, place = harness.Padded(inputs), inputs.layout
    q, k, v, relations = padded.q, padded.k, padded.v, padded.relations
    on_gpu = q.device.type == "cuda"
    ready = aligned(padded.bias().to(q.dtype)).requires_grad_(backward)

    def timed(forward: Callable, tensors: tuple[Tensor, ...]) -> Callable:
        def run() -> Tensor:
            with torch.set_grad_enabled(backward):
                out = forward()
            if backward:
                harness.backwards(out, tensors, padded.cotangent)
            return out

        run.packed = lambda: place.pack(run().detach().transpose(1, 2))
        return run

    def eagerly(function: Callable) -> Callable:
        arguments = (q, k, v, relations, padded.hop_bias, padded.radial)
        return timed(lambda: function(*arguments), padded.learned())

    def sdpa() -> Tensor:
        pinned = sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if on_gpu else contextlib.nullcontext()
        with pinned:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=ready)

    rivals = {}
    if "eager" in names:
        rivals["eager"] = eagerly(eager)
    if "torch.compile" in names:
        rivals["torch.compile"] = eagerly(compiler(eager))
    if "SDPA" in names:
        rivals["SDPA, bias ready-built"] = timed(sdpa, (q, k, v, ready))
    if "FlexAttention" in names:
        for name, options in flex_variants(q.shape[2], backward).items():
            forward, tensors = flexible(padded, backward, options, compiler)
            rivals[name] = timed(forward, tensors)
    return rivals


# For queries shorter than 128 the default may choose its decoding kernel, which has no backward.
FLEX = {
    "FlexAttention": {},
    "FlexAttention, no decoding kernel": {"FORCE_USE_FLEX_ATTENTION": True},
}


def flex_variants(longest: int, backward: bool) -> dict[str, dict]:
    """Return the options that compile to something of their own: each takes some ten seconds."""
    return FLEX if longest < 128 and not backward else {"FlexAttention": {}}


def flexible(
    padded: harness.Padded, backward: bool, options: dict, compiler: Callable
) -> tuple[Callable, tuple[Tensor, ...]]:
    """Hop table looked up in the tile, Φ3d ready-built; heads of less than 16 padded with zeros."""
    hops, valid = padded.relations.hops, padded.relations.valid
    last = padded.hop_bias.shape[1] - 1
    column = torch.where(hops == 255, last, hops.int().clamp(max=last - 1)).int()
    with torch.no_grad():
        phi = radial_term(padded.relations, padded.radial).to(padded.q.dtype).contiguous()
    phi.requires_grad_(backward)
    table = padded.hop_bias.detach().clone().requires_grad_(backward)
    width = padded.q.shape[-1]
    wide = [F.pad(x.detach(), (0, max(0, 16 - width))) for x in (padded.q, padded.k, padded.v)]
    wide = [x.requires_grad_(backward) for x in wide]

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        biased = s + table[h, column[b, i, j]] + phi[b, h, i, j]
        return torch.where(valid[b, j], biased, -float("inf"))

    attend = compiler(flex_attention)

    def forward() -> Tensor:
        extra = {"kernel_options": options} if options else {}
        return attend(*wide, score_mod=score, scale=width**-0.5, **extra)[..., :width]

    return forward, (*wide, table, phi)


def eager(q, k, v, relations, hop_bias, radial) -> Tensor:
    """The attention as one would write it, matrix products in q's type."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    for term in (hop_term(relations, hop_bias), radial_term(relations, radial)):
        logits = logits + term.to(logits.dtype)
    allowed = valid_pairs(relations.valid)[:, None]
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1) @ v


def checked(
    rivals: dict[str, Callable], answer: Tensor, exact: Tensor
) -> dict[str, Callable | str]:
    """Run each rival once; put the reason in the place of one that cannot run or is wrong."""
    calls: dict[str, Callable | str] = {}
    for name, rival in rivals.items():
        try:
            calls[name] = harness.checked({name: rival}, answer, exact)[name]
        except AssertionError as error:
            calls[name] = f"not timed, wrong answer: {str(error).splitlines()[0]}"
    return calls


def failure(error: Exception) -> str:
    """Put an error into a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"does not run: {type(error).__name__}: {lines[0][:80]}"
