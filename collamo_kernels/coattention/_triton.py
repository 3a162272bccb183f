"""Backend 'triton': the attention on a GPU, or in Triton's interpreter on the CPU (for tests).

Triton is imported by the first call that needs it. Φ3d is read from a radial module's table, as on
the CPU; a module without one, or whose table would be too large, is evaluated at every pair and
handed over as a dense bias.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from collamo_kernels.relations import PackedLayout, Relations

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_WIDTH = 128  # of a head: the widest tile
MAX_ATOMS = 32768  # of a molecule
INSTALLED = importlib.util.find_spec("triton") is not None


def unsupported(q: Tensor, relations: Relations, **arguments: object) -> str | None:
    """Return why the Triton attention cannot serve these arguments, or None."""
    if q.device.type != "cuda" and not (INTERPRETED and q.device.type == "cpu"):
        return f"q is on {q.device}; this backend runs on a GPU (or set TRITON_INTERPRET=1)"
    if q.dtype == torch.float64:
        return "float64 runs the reference"
    if q.shape[-1] > MAX_WIDTH:
        return f"head width {q.shape[-1]} > {MAX_WIDTH}"
    longest = relations.max_seqlen if relations.packed else q.shape[2]
    if longest > MAX_ATOMS:
        return f"a molecule of {longest} atoms > {MAX_ATOMS}"
    if not INSTALLED:
        return "Triton is not installed; run: pip install triton"
    if INTERPRETED and q.dtype == torch.bfloat16:
        return "bfloat16 needs a GPU: Triton's interpreter has no such numbers"
    return None


def coattention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    relations: Relations,
    hop_bias: Tensor | None = None,
    radial: Callable | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale·QKᵀ + Φ2d + Φ3d + bias) V; arguments as in `collamo_kernels.coattention`.

    In float16 and bfloat16 the weights are rounded to that type before they meet V, and dL/dlogits
    before they meet Q and K, as tensor cores want them; all sums are float32. In float32 the matrix
    products are IEEE, or TensorFloat-32 after ``torch.set_float32_matmul_precision("high")``.
    """
    from collamo_kernels.coattention import _triton_op as op

    table: dict[str, Any] | None = None
    if radial is not None and relations.coordinates is not None:
        with torch.autocast(q.device.type, enabled=False):
            table = _table(q, relations, radial)
            if table is None:
                phi = _phi(relations, radial).float()
                bias = phi if bias is None else bias.float() + phi
    sorted_pairs = None
    if hop_bias is not None and relations.hops is not None and hop_bias.requires_grad:
        sorted_pairs = relations.pairs_by_hops
    return op.attend(
        *(q, k, v),
        hop_bias=None if hop_bias is None else hop_bias.float(),
        bias=bias.float() if bias is not None and bias.dtype == torch.float64 else bias,
        hops=relations.hops,
        valid=relations.valid,
        cu_seqlens=relations.cu_seqlens,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        dropout_p=dropout_p,
        # Drawn on the device, so that nobody waits for the number.
        seed=torch.randint(2**63 - 1, (1,), device=q.device) if dropout_p > 0 else None,
        hop_order=None if sorted_pairs is None else sorted_pairs.order,
        hop_keys=None if sorted_pairs is None else sorted_pairs.keys,
        max_seqlen=relations.max_seqlen if relations.packed else q.shape[2],
        num_pairs=relations.num_pairs if relations.packed else q.shape[0] * q.shape[2] ** 2,
        **(table or {}),
    )


def _table(q: Tensor, relations: Relations, radial: Callable) -> dict[str, Any] | None:
    # A table's size depends on the data, so a compiled graph has no room for one.
    if not hasattr(radial, "table") or torch.compiler.is_compiling():
        return None
    from collamo_kernels.coattention import _cpu

    return _cpu._table(q, relations, radial)


def _phi(relations: Relations, radial: Callable) -> Tensor:
    """Φ3d of every pair from the module itself, in the layout of a dense bias."""
    from collamo_kernels.coattention.reference import radial_term

    dense = radial_term(relations.padded(), radial)  # [B, H, N, N]
    if not relations.packed:
        return dense
    layout = PackedLayout(relations.cu_seqlens, relations.max_seqlen)
    return layout.pack_pairs(dense.permute(0, 2, 3, 1)).t()
