"""Graphormer's tensors (Ying et al. 2021, microsoft/Graphormer), as the attention here takes them.

Its bias by shortest paths is Φ2d: `relations_of_graphormer` makes relations of a batch's
``spatial_pos``, `hop_table_of_graphormer` the table of its learned weights. Its ``attn_bias`` and
its encoding of edges are a dense ``bias``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.checks import check_tensors
from collamo_kernels.nn.virtual_node import with_virtual_node
from collamo_kernels.relations import Relations
from collamo_kernels.shortest_paths.constants import LONGEST, UNREACHABLE

FAR = 510  # what Graphormer writes for pairs without a path


def relations_of_graphormer(spatial_pos: Tensor, virtual_node: bool = True) -> Relations:
    """Make relations of Graphormer's shortest paths.

    Parameters
    ----------
    spatial_pos
        int64 ``[N, N]`` of one molecule, or ``[B, N, N]``: bonds between two atoms, 510 without a
        path. Or as its collator leaves it, with 1 added and 0 in the padding: the diagonal says
        which.
    virtual_node
        Whether its graph token stands before the atoms, as `with_virtual_node` puts it.

    Returns
    -------
    Relations
        Padded, for tables of 256 columns. Paths longer than 253 bonds count as 253.

    Raises
    ------
    ValueError
        No square matrices of integers, or a diagonal of neither form.

    Examples
    --------
    >>> import torch
    >>> from collamo_kernels.nn import relations_of_graphormer
    >>> relations_of_graphormer(torch.tensor([[0, 510], [510, 0]]), virtual_node=False).hops
    tensor([[[  0, 255],
             [255,   0]]], dtype=torch.uint8)
    """
    check_tensors(spatial_pos=spatial_pos)
    shape = list(spatial_pos.shape)
    if len(shape) not in (2, 3) or shape[-1] != shape[-2] or spatial_pos.is_floating_point():
        raise ValueError(
            f"spatial_pos is {spatial_pos.dtype} {shape}; it must be integers [N, N] or [B, N, N]"
        )
    paths = spatial_pos.long().view(-1, *shape[-2:])
    diagonal = paths.diagonal(dim1=1, dim2=2)
    if not bool(((diagonal == 0) | (diagonal == 1)).all()):
        raise ValueError(
            f"the diagonal of spatial_pos has {int(diagonal.max())}; it must be 0, or 1 where the "
            "collator added 1"
        )
    valid = torch.ones_like(diagonal, dtype=torch.bool)
    if bool(diagonal.any()):
        valid, paths = diagonal == 1, paths - 1
    unreachable = (paths >= FAR) | ~(valid[:, :, None] & valid[:, None, :])
    hops = torch.where(unreachable, UNREACHABLE, paths.clamp(max=LONGEST)).to(torch.uint8)
    relations = Relations(hops=hops, valid=valid)
    return with_virtual_node(relations) if virtual_node else relations


def hop_table_of_graphormer(
    spatial_pos_encoder: Tensor, graph_token_virtual_distance: Tensor | None = None
) -> Tensor:
    """Make the table Φ2d of Graphormer's weights; they get gradients.

    Parameters
    ----------
    spatial_pos_encoder
        ``[512, H]``, its weight: row h + 1 for h bonds, row 511 without a path.
    graph_token_virtual_distance
        ``[1, H]``, its weight: what the graph token's row and column read. None is 0.

    Returns
    -------
    Tensor
        ``hop_bias [H, 256]`` for `coattention` or a `CoAttention` without a table of its own
        (``hop_buckets=0``): column h for h bonds, 254 for the graph token, 255 without a path.
    """
    check_tensors(
        spatial_pos_encoder=spatial_pos_encoder,
        graph_token_virtual_distance=graph_token_virtual_distance,
    )
    if spatial_pos_encoder.dim() != 2 or len(spatial_pos_encoder) != FAR + 2:
        raise ValueError(
            f"spatial_pos_encoder has shape {list(spatial_pos_encoder.shape)}; it must be "
            f"[{FAR + 2}, H], its weight"
        )
    heads = spatial_pos_encoder.shape[1]
    token = graph_token_virtual_distance
    if token is None:
        token = spatial_pos_encoder.new_zeros(1, heads)
    if list(token.shape) != [1, heads]:
        raise ValueError(
            f"graph_token_virtual_distance has shape {list(token.shape)}; it must be [1, {heads}]"
        )
    bonds, far = spatial_pos_encoder[1 : LONGEST + 2], spatial_pos_encoder[FAR + 1 :]
    return torch.cat([bonds, token, far]).t()
