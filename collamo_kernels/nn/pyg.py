"""PyTorch Geometric's GPSConv with an attention that reads relations; needs torch_geometric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GPSConv as PlainGPSConv
from torch_geometric.nn import MessagePassing

from collamo_kernels.coattention import CoAttention
from collamo_kernels.relations import Relations


class GPSConv(PlainGPSConv):
    """A layer of GPS (Rampášek et al. 2022) whose global attention is `CoAttention`.

    PyTorch Geometric's own calls its ``attn`` only where that is an nn.MultiheadAttention or a
    PerformerAttention: any other layer put there is left out, and nothing says so.

    Parameters
    ----------
    channels, conv, heads, dropout, act, act_kwargs, norm, norm_kwargs
        As in ``torch_geometric.nn.GPSConv``.
    attn_kwargs
        Of `CoAttention`: ``hop_buckets``, ``radial``, ``dropout``, ``sink``, ``bias``.

    Examples
    --------
    >>> from collamo_kernels.nn.pyg import GPSConv  # doctest: +SKIP
    >>> layer = GPSConv(64, GINEConv(mlp), heads=4)  # doctest: +SKIP
    >>> relations = ck.Relations.from_pyg(batch, layout="packed").prepare()  # doctest: +SKIP
    >>> x = layer(x, batch.edge_index, batch.batch, relations=relations)  # doctest: +SKIP
    """

    def __init__(
        self,
        channels: int,
        conv: MessagePassing | None,
        heads: int = 1,
        dropout: float = 0.0,
        act: str = "relu",
        act_kwargs: dict[str, Any] | None = None,
        norm: str | None = "batch_norm",
        norm_kwargs: dict[str, Any] | None = None,
        attn_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__(channels, conv, heads, dropout, act, act_kwargs, norm, norm_kwargs)
        self.attn = RelatedAttention(CoAttention(channels, heads, **(attn_kwargs or {})))

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        batch: Tensor | None = None,
        *,
        relations: Relations | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the layer.

        Parameters
        ----------
        x, edge_index, batch, **kwargs
            As in ``torch_geometric.nn.GPSConv``: ``[T, C]`` of the whole batch.
        relations
            Of the same batch, in either layout: ``Relations.from_pyg(batch)``. None is plain
            attention.

        Returns
        -------
        Tensor
            ``[T, C]``.
        """
        self.attn.relations = relations
        try:
            return super().forward(x, edge_index, batch, **kwargs)
        finally:
            self.attn.relations = None


class RelatedAttention(nn.MultiheadAttention):
    """A `CoAttention` that its caller takes for an nn.MultiheadAttention, and calls like one.

    `relations` are those of the next call.
    """

    def __init__(self, attention: CoAttention):
        nn.Module.__init__(self)  # none of its parameters
        self.attention = attention
        self.relations: Relations | None = None

    def _reset_parameters(self) -> None:
        self.attention.reset_parameters()

    def forward(  # type: ignore[override]  # what GPSConv calls, no more
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """``[B, N, C]`` → the same, with the mask of padding, True where nothing stands."""
        relations = self.relations
        if relations is not None and relations.packed:
            atoms = ~key_padding_mask
            y = torch.zeros_like(query)
            y[atoms] = self.attention(query[atoms], relations).to(y.dtype)
            return y, None
        # What is prepared for relations is theirs: the same padding, said again, would lose it.
        said = relations is not None and relations.valid is not None
        return self.attention(
            query, relations, key_padding_mask=None if said else key_padding_mask
        ), None
