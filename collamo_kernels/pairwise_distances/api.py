"""The public `pairwise_distances`: checks, chooses, calls."""

from __future__ import annotations

from torch import Tensor

from collamo_kernels.backends import choose
from collamo_kernels.checks import check_tensors
from collamo_kernels.pairwise_distances.call import DistancesCall
from collamo_kernels.relations import check_coordinates, check_valid


def pairwise_distances(
    coordinates: Tensor, valid: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Distances between all atoms of each molecule, ``r_ij = |x_i - x_j|``.

    Parameters
    ----------
    coordinates
        ``[B, N, 3]`` floating point, Å. Gets gradients.
    valid
        ``[B, N]`` bool, True = real atom; None means that all are. Whatever stands in the padding
        of `coordinates` (NaN included) is never read as data.
    backend
        None takes the best that can serve the input; a name takes that one or raises.

    Returns
    -------
    Tensor
        ``[B, N, N]`` Å; float64 for float64 input, float32 otherwise. Zero in padding. The
        gradient at r = 0 (the diagonal, or two atoms in one place) is 0.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device; the message names the argument and the fix.

    Examples
    --------
    >>> import torch
    >>> pairwise_distances(torch.tensor([[[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]]))
    tensor([[[0., 5.],
             [5., 0.]]])
    """
    call = checked(coordinates, valid)
    return choose("pairwise_distances", backend, call)(call)


def checked(coordinates: Tensor, valid: Tensor | None = None) -> DistancesCall:
    """Return the call, or raise a ValueError that names the wrong argument."""
    check_tensors(coordinates=coordinates, valid=valid)
    check_coordinates(coordinates, dims=3)
    if valid is not None:
        check_valid(valid, tuple(coordinates.shape[:2]), coordinates.device)
    return DistancesCall(coordinates, valid)
