"""Backend 'triton': the attention on a GPU, or in Triton's interpreter on the CPU (for tests).

Triton is imported by the first call that needs it. Φ3d of a `GaussianRadial` is read from its
table, or worked out at every pair where the table would be too coarse; any other module, and one
that inherits from it and computes something else, is evaluated at every pair by PyTorch and handed
over as a dense bias.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.dropout import drawn
from collamo_kernels.coattention.radial_function import types_of
from collamo_kernels.coattention.triton import tables
from collamo_kernels.radial import GaussianRadial
from collamo_kernels.relations import Relations

if TYPE_CHECKING:
    from collamo_kernels.coattention.triton.phi import HopTerm, RadialTerm

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_WIDTH = 128  # of a head: the widest tile
MAX_ATOMS = 32768  # of a molecule: its pairs are counted in 31 bits
MAX_BUCKETS = 16384  # of the hop table: a column has 15 bits, the sign one of them; hops are uint8
OLDEST, OLDEST_BFLOAT16 = (7, 5), (8, 0)  # compute capabilities
INSTALLED = importlib.util.find_spec("triton") is not None


def unsupported(call: CoattentionCall) -> str | None:
    """Return why the Triton attention cannot serve the call, or None."""
    q, relations, hop_bias = call.q, call.relations, call.hop_bias
    if q.device.type != "cuda" and not (INTERPRETED and q.device.type == "cpu"):
        return f"q is on {q.device}; this backend runs on a GPU (or set TRITON_INTERPRET=1)"
    reason = why_not_on(q.device, q.dtype)
    if reason is not None:
        return reason
    if q.dtype == torch.float64:
        return "float64 runs the reference"
    if q.shape[-1] > MAX_WIDTH:
        return f"head width {q.shape[-1]} > {MAX_WIDTH}"
    if hop_bias is not None and hop_bias.shape[1] > MAX_BUCKETS:
        return f"a hop table of {hop_bias.shape[1]} columns > {MAX_BUCKETS}"
    longest, _ = _extent(q, relations)
    if longest > MAX_ATOMS:
        return f"a molecule of {longest} atoms > {MAX_ATOMS}"
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        from collamo_kernels.coattention.triton import trust

        return trust.why_none(q.device, q.shape[-1], q.dtype)
    if INTERPRETED and q.dtype == torch.bfloat16:
        return "bfloat16 needs a GPU: Triton's interpreter has no such numbers"
    return None


def why_not_on(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why no Triton kernel can run there on numbers of this type, or None.

    A compiled graph cannot ask for a GPU's properties: there a compiler says the rest.
    """
    if not INSTALLED:
        return "Triton is not installed; run: pip install triton"
    if device.type != "cuda" or torch.compiler.is_compiling():
        return None
    if torch.version.hip is not None:
        return "this torch is built for ROCm; the kernels are written and tested for NVIDIA's GPUs"
    capability = torch.cuda.get_device_capability(device)
    number = ".".join(map(str, capability))
    if capability < OLDEST:
        return f"compute capability {number} of {device} < 7.5, the oldest Triton compiles for"
    if capability < OLDEST_BFLOAT16 and dtype == torch.bfloat16:
        return f"compute capability {number} of {device} has no bfloat16, which came with 8.0"
    return None


def _extent(q: Tensor, relations: Relations) -> tuple[int, int]:
    """Atoms of the largest molecule, and the number of pairs, padding included."""
    if relations.max_seqlen is None or relations.num_pairs is None:  # padded
        return q.shape[2], q.shape[0] * q.shape[2] ** 2
    return relations.max_seqlen, relations.num_pairs


def run(call: CoattentionCall) -> Tensor:
    """softmax(scale·QKᵀ + Φ2d + Φ3d + bias) V, with the sink among the keys.

    In float16 and bfloat16 the weights are rounded to that type before they meet V, and dL/dlogits
    before they meet Q and K, as tensor cores want them; all sums are float32. In float32 the matrix
    products are IEEE, or TensorFloat-32 where ``torch.backends.cuda.matmul.fp32_precision`` is
    "tf32", as ``torch.set_float32_matmul_precision("high")`` makes it.
    """
    from collamo_kernels.coattention.triton import op as op

    q, relations, radial, bias = call.q, call.relations, call.radial, call.bias
    radial_term = None
    if radial is not None and relations.coordinates is not None:
        with torch.autocast(q.device.type, enabled=False):
            if tabulated(radial):
                radial_term = _radial_term(q.dtype, q.shape[1], relations, radial)
            else:
                phi = _phi(relations, radial)
                bias = phi if bias is None else bias.float() + phi
    packed, (longest, pairs) = relations.packed, _extent(q, relations)
    if q.stride(-1) != 1:  # the result is laid out as q is, and kernels move whole heads
        q = q.contiguous()
    return op.attend(
        op.Attention(
            *(q, call.k, call.v),
            bias.float() if bias is not None and bias.dtype == torch.float64 else bias,
            None if call.sink is None else call.sink.float(),
            relations.valid,
            relations.cu_seqlens,
            relations.pair_start if packed else None,
            relations.tiles if packed else None,
            *drawn(call.dropout_p, q.device),
            scale=1 / math.sqrt(q.shape[-1]) if call.scale is None else call.scale,
            longest=longest,
            phi=op.Phi(_hop_term(relations, call.hop_bias), radial_term, pairs),
        )
    )


def tabulated(radial: object) -> TypeGuard[GaussianRadial]:
    """Whether the kernels know the formula of a radial function: no class or layer changed it."""
    return isinstance(radial, GaussianRadial) and radial.is_standard()


def pair_bias(
    relations: Relations,
    hop_bias: Tensor | None,
    radial: GaussianRadial | None,
    dtype: torch.dtype,
) -> Tensor:
    """Φ2d + Φ3d of every pair in `dtype`, as `coattention` takes a dense bias."""
    from collamo_kernels.coattention.triton import bias_op as bias_op

    like = relations.hops if relations.coordinates is None else relations.coordinates
    if like is None:
        raise ValueError("the relations have neither hops nor coordinates; give them one of both")
    radial_term = None
    if radial is not None and relations.coordinates is not None:
        with torch.autocast(like.device.type, enabled=False):
            radial_term = _radial_term(dtype, radial.num_heads, relations, radial)
    phi = bias_op.Phi(_hop_term(relations, hop_bias), radial_term, relations.count_pairs())
    bias = bias_op.build_bias(phi, dtype)
    if relations.packed:
        return bias
    molecules, n = like.shape[:2]
    return bias.view(-1, molecules, n, n).transpose(0, 1)


def _hop_term(relations: Relations, hop_bias: Tensor | None) -> HopTerm | None:
    """Φ2d as the operators take it; the order of pairs where the table gets a gradient."""
    from collamo_kernels.coattention.triton.phi import HopTerm

    if hop_bias is None or relations.hops is None:
        return None
    if not hop_bias.requires_grad:
        return HopTerm(hop_bias.float(), relations.hops)
    by_hops = relations.pairs_by_hops
    orders = by_hops.order, by_hops.keys, relations.hop_offsets
    return HopTerm(hop_bias.float(), relations.hops, *orders)


def _radial_term(
    dtype: torch.dtype, heads: int, relations: Relations, radial: GaussianRadial
) -> RadialTerm:
    """Φ3d as the operator takes it: u of each pair, a table, and its parameters for when it fails.

    Nothing is asked of the device: whether the table fits stands there, and the kernels look.
    """
    from collamo_kernels.coattention.triton.phi import RadialTerm
    from collamo_kernels.radial.triton.op import call_argument, tabulate

    if radial.num_heads != heads:
        raise ValueError(f"radial has {radial.num_heads} heads, but q has {heads}")
    coordinates = relations.coordinates
    assert coordinates is not None  # else there is no Φ3d
    types = types_of(relations, radial)
    affine, learned = None, coordinates.requires_grad
    if types.rows and radial.gamma is not None and radial.beta is not None:
        affine = torch.stack([radial.gamma, radial.beta], 1).float()
        learned = learned or affine.requires_grad
    u = relations.distances
    if learned or types.rows:
        packed = relations.packed
        u = call_argument(
            *(coordinates.float(), affine, u, *types),
            relations.cu_seqlens,
            relations.pair_start if packed else None,
            relations.tiles if packed else None,
            relations.max_seqlen if packed else coordinates.shape[1],
        )
    derivative = learned and torch.is_grad_enabled()
    reach = relations.farthest
    table = None if derivative or types.rows else tables.find(radial, reach, dtype)
    if table is None:
        table = tabulate(radial, reach, affine, max(1, types.rows), dtype, derivative)
    order = None
    if table.rows.requires_grad:
        order = relations.pairs_by_distance.order
        if types.rows:  # u changes with γ and β: sorted where the gradient is made
            order = u.new_empty(0, dtype=torch.int64)
    return RadialTerm(
        *(table.rows, table.layers, u, table.first_knot, table.geometry, table.lengths, table.fits),
        pair_order=order,
        slope_rows=table.slope_rows if derivative else None,
        gaussians=table.sizes[0],
        hidden=table.sizes[1],
    )


def _phi(relations: Relations, radial: Callable[..., Tensor]) -> Tensor:
    """Φ3d of every pair from the module itself, in the layout of a dense bias."""
    from collamo_kernels.coattention.reference import radial_term

    dense = radial_term(relations.padded(), radial)  # [B, H, N, N]
    assert dense is not None  # the relations have coordinates
    dense = dense.float()
    if not relations.packed:
        return dense
    return relations.packed_layout().pack_pairs(dense.permute(0, 2, 3, 1)).t()
