"""The public `gaussian_basis`: checks, chooses, calls."""

from __future__ import annotations

from torch import Tensor

from collamo_kernels.backends import choose
from collamo_kernels.checks import check_tensors
from collamo_kernels.gaussian_basis.call import GaussianBasisCall


def gaussian_basis(
    u: Tensor, centre: Tensor, width: Tensor, *, backend: str | None = None
) -> Tensor:
    """Expand numbers in K normal densities.

    ::

        ψ_k(u) = exp(-½ ((u - μ_k) / s_k)²) / (√(2π)·s_k)

    the pair features of Uni-Mol, Graphormer-3D and Transformer-M. On the CPU one pass forward and
    one backward, which works the densities out again. Sums have one order: same inputs, same bits.

    Parameters
    ----------
    u
        ``[M]`` floating point: distances, Å, or what an affine function makes of them. Gets
        gradients.
    centre, width
        ``[K]``, μ and s > 0 in the unit and dtype of `u`. Get gradients.
    backend
        None takes the best that can serve the input; a name takes that one or raises.

    Returns
    -------
    Tensor
        ``[M, K]``.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device; the message names the argument and the fix.

    Examples
    --------
    >>> import torch
    >>> gaussian_basis(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([2.0]))
    tensor([[0.1995]])
    """
    call = checked(u, centre, width)
    return choose("gaussian_basis", backend, call)(call)


def checked(u: Tensor, centre: Tensor, width: Tensor) -> GaussianBasisCall:
    """Return the call, or raise a ValueError that names the wrong argument."""
    arguments = {"u": u, "centre": centre, "width": width}
    check_tensors(**arguments)
    for name, x in arguments.items():
        if x.dim() != 1 or not x.is_floating_point():
            raise ValueError(
                f"{name} is {x.dtype} {list(x.shape)}; it must be floating point [·], "
                "such as float32"
            )
        if x.dtype != u.dtype or x.device != u.device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}; make it that of u, {u.dtype} on {u.device}"
            )
    if width.shape != centre.shape:
        raise ValueError(
            f"width has shape {list(width.shape)}; it must be that of centre, {list(centre.shape)}"
        )
    return GaussianBasisCall(u, centre, width)
