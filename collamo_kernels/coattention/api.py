"""The public `coattention`: checks, chooses, calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from collamo_kernels.backends import choose
from collamo_kernels.checks import check_tensors
from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.relations import Relations

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def coattention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    relations: Relations | None = None,
    hop_bias: Tensor | None = None,
    radial: Callable[..., Tensor] | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention over the atoms of each molecule, biased by bonds and distances.

    ``softmax(scale·QKᵀ + Φ2d + Φ3d + bias) V`` with ``Φ2d[h, i, j] = hop_bias[h, min(hops[i, j],
    S - 2)]`` (unreachable pairs, 255, read column S - 1) and ``Φ3d[h, i, j] = radial(|x_i -
    x_j|)[h]``. With a sink the softmax of row i also runs over a key of logit ``sink[h]`` whose
    value is zero: ``out_i = Σ_j e^l_ij v_j / (Σ_j e^l_ij + e^sink[h])``.

    Parameters
    ----------
    q, k, v
        ``[B, H, N, D]``, or packed ``[T, H, D]`` with ``relations.cu_seqlens``; float16,
        bfloat16, float32 or float64, any strides. Sums and softmax are float32 (float64 for
        float64). Gets gradients.
    relations
        What is known about the pairs, see `Relations`; None is plain attention. A relation that
        is missing adds nothing: no hops, no Φ2d; ``has_3d[b]`` False, no Φ3d for molecule b. Its
        coordinates get gradients when they ask; second ones, for a loss of forces, come from the
        reference alone where `radial` has a table (docs/performance.md has the cost).
    hop_bias
        ``[H, S]`` learned table, S ≥ 2; gets gradients. None adds no Φ2d.
    radial
        Any module or function mapping distances (Å) ``[M] → [M, H]``, such as `GaussianRadial`;
        its parameters get gradients. One with an attribute ``pair_types`` that is not None is
        called with the types of the pairs as well. None adds no Φ3d.
    bias
        Optional dense ``[B, H, N, N]``, or packed ``[H, Σ N_b²]``; -inf excludes a pair. Gets
        gradients.
    sink
        Optional ``[H]``, a learned logit a head; gets gradients. An average cannot count, because
        n equal tokens weigh what one does; with a sink of logit z, n of logit s weigh ``n·e^s /
        (n·e^s + e^z)``. Ours: the paper's softmax is plain.
    scale
        None means 1/√D.
    dropout_p
        Probability of dropping an attention weight, 0 ≤ p < 1; the rest are divided by 1 - p.
        Seeded by ``torch.manual_seed``. The sink's is never dropped: it carries no value.
    backend
        None takes the best that can serve the input; a name takes that one or raises with its
        reason.

    Returns
    -------
    Tensor
        Same shape and dtype as q. Rows of padding, and rows whose every key is excluded, are
        exactly 0 and send back gradients of exactly 0, whatever stands in the padding of the
        inputs.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device; the message names the argument and the fix.
    BackendError
        The named backend cannot serve the input.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> relations = ck.Relations.from_graphs(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2]))
    >>> q = torch.randn(1, 4, 2, 8)
    >>> ck.coattention(q, q, q, relations=relations, hop_bias=torch.zeros(4, 8)).shape
    torch.Size([1, 4, 2, 8])

    Source: CoLLaMo, arXiv 2601.12256; Graphormer (Ying et al. 2021) for Φ2d, Transformer-M (Luo
    et al. 2022) for the sum.
    """
    call = checked(q, k, v, relations, hop_bias, radial, bias, sink, scale, dropout_p)
    return choose("coattention", backend, call)(call)


def checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    relations: Relations | None = None,
    hop_bias: Tensor | None = None,
    radial: Callable[..., Tensor] | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> CoattentionCall:
    """Return the call, or raise a ValueError that names the wrong argument."""
    check_tensors(q=q, k=k, v=v, hop_bias=hop_bias, bias=bias, sink=sink)
    relations = checked_relations(relations)
    check_qkv(q, k, v, relations.packed)
    _check_relations(q, relations)
    heads = q.shape[1]
    if hop_bias is not None:
        _check_hop_bias(hop_bias, heads, q.device)
    if radial is not None and not callable(radial):
        raise ValueError(
            f"radial is a {type(radial).__name__}; it must map distances [M] to [M, H]"
        )
    if bias is not None:
        _check_bias(bias, q, relations)
    if sink is not None:
        _check_sink(sink, heads, q.device)
    check_dropout(dropout_p)
    return CoattentionCall(q, k, v, relations, hop_bias, radial, bias, sink, scale, dropout_p)


def checked_relations(relations: Relations | None) -> Relations:
    """Return `relations`, for None those that add nothing; anything else is a ValueError."""
    if relations is None:
        return Relations()
    if not isinstance(relations, Relations):
        raise ValueError(
            f"relations is a {type(relations).__name__}; "
            "make it Relations(hops=…, coordinates=…, valid=…), where valid is True at real atoms"
        )
    return relations


def check_dropout(dropout_p: float) -> None:
    """Raise a ValueError unless `dropout_p` is a probability below 1."""
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and below 1")


def check_qkv(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    """Raise a ValueError unless the three fit the layout and each other."""
    if packed and q.dim() != 3:
        raise ValueError(
            f"q has shape {list(q.shape)}; relations are packed, so it must be [T, H, D]"
        )
    if not packed and q.dim() != 4:
        raise ValueError(
            f"q has shape {list(q.shape)}; it must be [B, H, N, D], "
            "or [T, H, D] with relations.cu_seqlens"
        )
    if q.shape[-1] == 0:
        raise ValueError(f"q has shape {list(q.shape)}; the head width must be at least 1")
    if q.dtype not in DTYPES:
        raise ValueError(f"q has dtype {q.dtype}; use float16, bfloat16, float32 or float64")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(
                f"{name} has shape {list(x.shape)}; it must be that of q, {list(q.shape)}"
            )
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype}; convert it to that of q, {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}; move it to q's device, {q.device}")


def _check_relations(q: Tensor, relations: Relations) -> None:
    device = relations.device
    if device is not None and device != q.device:
        raise ValueError(f"relations are on {device}; move them to q's: relations.to('{q.device}')")
    if relations.packed:  # its other sizes were checked when it was built
        if relations.num_atoms != q.shape[0]:
            raise ValueError(
                f"q has {q.shape[0]} atoms, but relations.cu_seqlens ends at {relations.num_atoms}"
            )
        if torch.compiler.is_exporting():
            _read_numbers(relations)
        return
    atoms = (q.shape[0], q.shape[2])
    pairs = (*atoms, q.shape[2])
    sizes = {"coordinates": atoms, "valid": atoms, "atom_types": atoms, "has_3d": atoms[:1]}
    sizes |= {"hops": pairs, "pair_types": pairs}
    for name, size in sizes.items():
        tensor = getattr(relations, name)
        if tensor is not None and tuple(tensor.shape[: len(size)]) != size:
            raise ValueError(
                f"relations.{name} has shape {list(tensor.shape)}, "
                f"but q has shape {list(q.shape)}; "
                f"relations.{name} must begin with {list(size)}"
            )


def _read_numbers(relations: Relations) -> None:
    """Let a graph read every number: a strict torch.export takes what none reads for a constant."""
    for number in (relations.max_seqlen, relations.num_atoms, relations.num_pairs):
        torch._check(number is not None and number >= 0)


def _check_hop_bias(hop_bias: Tensor, heads: int, device: torch.device) -> None:
    if hop_bias.dim() != 2 or hop_bias.shape[0] != heads:
        raise ValueError(
            f"hop_bias has shape {list(hop_bias.shape)}; it must be [H, S] with H = {heads}"
        )
    if hop_bias.shape[1] < 2:
        raise ValueError(
            f"hop_bias has {hop_bias.shape[1]} columns; "
            "it needs at least 2, the last for unreachable pairs"
        )
    if hop_bias.dtype not in DTYPES:
        raise ValueError(f"hop_bias has dtype {hop_bias.dtype}; it must be floating point")
    if hop_bias.device != device:
        raise ValueError(f"hop_bias is on {hop_bias.device}; move it to q's device, {device}")


def _check_bias(bias: Tensor, q: Tensor, relations: Relations) -> None:
    if relations.packed:
        shape = [q.shape[1], relations.num_pairs]
    else:
        shape = [q.shape[0], q.shape[1], q.shape[2], q.shape[2]]
    if list(bias.shape) != shape:
        raise ValueError(
            f"bias has shape {list(bias.shape)}; it must be {shape}, use bias.expand(…)"
        )
    if bias.dtype not in DTYPES:
        raise ValueError(f"bias has dtype {bias.dtype}; it must be floating point")
    if bias.device != q.device:
        raise ValueError(f"bias is on {bias.device}; move it to q's device, {q.device}")


def _check_sink(sink: Tensor, heads: int, device: torch.device) -> None:
    if list(sink.shape) != [heads]:
        raise ValueError(
            f"sink has shape {list(sink.shape)}; it must be [H], one logit a head, with H = {heads}"
        )
    if sink.dtype not in DTYPES:
        raise ValueError(f"sink has dtype {sink.dtype}; it must be floating point")
    if sink.device != device:
        raise ValueError(f"sink is on {sink.device}; move it to q's device, {device}")
