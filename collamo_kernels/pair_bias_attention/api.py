"""The public `pair_bias_attention`: checks, chooses, calls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from collamo_kernels.backends import choose
from collamo_kernels.checks import check_tensors
from collamo_kernels.coattention.api import check_dropout, check_qkv
from collamo_kernels.pair_bias_attention.call import PairBiasCall
from collamo_kernels.relations import Relations


def pair_bias_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    relations: Relations,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    with_logits: bool = True,
    in_place: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend within each molecule, and hand the logits out: a pair representation that evolves.

    ::

        logits = scale·QKᵀ + bias          out = softmax(logits) V

    The logits are the bias of the next layer in Uni-Mol (Zhou et al., ICLR 2023). Molecules lie end
    to end, without padding. On the CPU no tensor of weights is made, forward or backward; the
    backward works the logits out again from `bias`. Same inputs, same bits.

    Parameters
    ----------
    q, k, v
        ``[T, H, D]``, the atoms of all molecules one after the other; strides as they come, such as
        the thirds of one product. float32, bfloat16, float16 or float64. Get gradients.
    bias
        ``[H, P]`` float32 (or float64, as q), each molecule's n² pairs row-major, query first,
        molecule after molecule: ``P = Σ n²``, as `coattention` takes a packed bias. Gets gradients.
    relations
        Packed: ``Relations(cu_seqlens=…)``. Nothing else of it may be given; a relation's term
        belongs into `bias`.
    scale
        None is 1/√D.
    dropout_p
        Probability that a weight is dropped; the logits are not touched.
    with_logits
        False where nobody reads the logits: they are not written.
    in_place
        True writes the logits over `bias`, contiguous, and returns it: no new memory for them.
        Only where no gradient can be asked for.
    backend
        None takes the best that can serve the input; a name takes that one or raises.

    Returns
    -------
    (Tensor, Tensor or None)
        The output ``[T, H, D]`` in the dtype of q, and the logits ``[H, P]`` in that of `bias`.
        Both get gradients in one backward. A row whose logits are all -∞ gives 0.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device; the message names the argument and the fix.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> two = ck.Relations(cu_seqlens=torch.tensor([0, 2, 3], dtype=torch.int32))  # 2 atoms, 1 atom
    >>> q = k = torch.zeros(3, 1, 4)
    >>> v = torch.tensor([1.0, 3.0, 5.0]).view(3, 1, 1).expand(3, 1, 4)
    >>> out, logits = ck.pair_bias_attention(q, k, v, torch.zeros(1, 5), two)
    >>> out[:, 0, 0].tolist(), logits.shape
    ([2.0, 2.0, 5.0], torch.Size([1, 5]))
    """
    call = checked(q, k, v, bias, relations, scale, dropout_p, with_logits, in_place)
    return choose("pair_bias_attention", backend, call)(call)


def checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    relations: Relations,
    scale: float | None = None,
    dropout_p: float = 0.0,
    with_logits: bool = True,
    in_place: bool = False,
) -> PairBiasCall:
    """Return the call, or raise a ValueError that names the wrong argument."""
    check_tensors(q=q, k=k, v=v, bias=bias)
    cu_seqlens = _checked_cu_seqlens(relations)
    check_qkv(q, k, v, packed=True)
    tokens, heads = q.shape[:2]
    if tokens != relations.num_atoms:
        raise ValueError(
            f"q has {tokens} atoms, but relations.cu_seqlens ends at {relations.num_atoms}"
        )
    if tuple(bias.shape) != (heads, relations.num_pairs):
        raise ValueError(
            f"bias has shape {list(bias.shape)}; it must be [H, P] = {[heads, relations.num_pairs]}"
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    if bias.dtype != wide:
        raise ValueError(f"bias is {bias.dtype}; with q in {q.dtype} it must be {wide}")
    for name, x in (("bias", bias), ("relations.cu_seqlens", cu_seqlens)):
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}; move them together")
    check_dropout(dropout_p)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, bias))
    if in_place and (learns or not bias.is_contiguous()):
        why = "gradients are asked for" if learns else "bias is not contiguous"
        raise ValueError(f"in_place is True, but {why}; leave it out")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return PairBiasCall(q, k, v, bias, relations, scale, dropout_p, with_logits, in_place)


def _checked_cu_seqlens(relations: Relations) -> Tensor:
    if not isinstance(relations, Relations) or relations.cu_seqlens is None:
        raise ValueError("relations must be packed: Relations(cu_seqlens=…)")
    for name in ("hops", "coordinates", "valid", "has_3d", "pair_types", "atom_types"):
        if getattr(relations, name) is not None:
            raise ValueError(f"relations has {name}; add its term to bias and leave it out")
    return relations.cu_seqlens
