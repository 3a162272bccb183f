"""A transformer layer whose attention reads relations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collamo_kernels.coattention import CoAttention
from collamo_kernels.coattention.masks import check_masks
from collamo_kernels.relations import Relations

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class TransformerEncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer with `CoAttention` as its ``self_attn``; its names are the same.

    Parameters
    ----------
    d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, norm_first, bias
        As in nn.TransformerEncoderLayer.
    batch_first
        ``[B, N, C]``, which is the default here; False takes ``[N, B, C]``.
    device, dtype
        Of the parameters.
    hop_buckets, radial, sink
        As in `CoAttention`; ``hop_buckets=0, radial=None`` for layers that share Φ.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> from collamo_kernels.nn import TransformerEncoderLayer
    >>> relations = ck.Relations.from_graphs(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2]))
    >>> layer = TransformerEncoderLayer(d_model=32, nhead=4, dim_feedforward=64)
    >>> layer(torch.randn(1, 2, 32), relations).shape
    torch.Size([1, 2, 32])
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        hop_buckets: int = 64,
        radial: str | nn.Module | None = "gaussian",
        sink: bool = False,
    ):
        super().__init__()
        if isinstance(activation, str):
            if activation not in ACTIVATIONS:
                raise ValueError(f"activation is {activation!r}; use 'relu', 'gelu' or a function")
            activation = ACTIVATIONS[activation]
        self.self_attn = CoAttention(
            *(d_model, nhead, hop_buckets, radial, dropout, sink, bias, batch_first),
            device=device,
            dtype=dtype,
        )
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias, device, dtype)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias, device, dtype)
        form = layer_norm_eps, True, bias, device, dtype
        self.norm1, self.norm2 = nn.LayerNorm(d_model, *form), nn.LayerNorm(d_model, *form)
        self.dropout, self.dropout1 = nn.Dropout(dropout), nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.activation, self.norm_first = activation, norm_first

    def forward(
        self,
        src: Tensor,
        relations: Relations | None = None,
        *,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        hop_bias: Tensor | None = None,
        radial: Callable[..., Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attend and feed forward.

        Parameters
        ----------
        src
            ``[B, N, C]``, packed ``[T, C]`` with ``relations.cu_seqlens``, or ``[N, C]``, one
            molecule alone.
        relations
            See `Relations`; None is the plain layer.
        src_mask, src_key_padding_mask
            As nn.TransformerEncoderLayer takes them: ``attn_mask`` and ``key_padding_mask`` of
            `CoAttention`.
        hop_bias, radial, bias
            Φ of the caller, as in `CoAttention`; `share_bias` makes them.

        Returns
        -------
        Tensor
            Of src's shape, 0 in the padding, whose rows are not read either.
        """
        valid = self._valid(src, relations, src_key_padding_mask)
        x = _where(valid, src)

        def attend(x: Tensor) -> Tensor:
            masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask}
            phi = {"hop_bias": hop_bias, "radial": radial, "bias": bias}
            return self.dropout1(self.self_attn(x, relations, **masks, **phi))

        if self.norm_first:
            x = x + attend(self.norm1(x))
            return _where(valid, x + self._feed(self.norm2(x)))
        x = self.norm1(x + attend(x))
        return _where(valid, self.norm2(x + self._feed(x)))

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def _valid(
        self, src: Tensor, relations: Relations | None, padding: Tensor | None
    ) -> Tensor | None:
        """Which rows of src are atoms, in src's layout; None: all."""
        if relations is not None and not isinstance(relations, Relations):
            return None  # CoAttention says what is wrong with it
        valid = None if relations is None else relations.valid
        if relations is not None and relations.packed:
            return valid
        if padding is not None and padding.dtype == torch.bool:
            molecules, atoms = self._sizes(src)
            check_masks((molecules, 1, atoms, atoms), src.device, padding, None)
            padding = padding.view(molecules, atoms)
            valid = ~padding if valid is None else valid & ~padding
        if valid is None or src.dim() == 2:
            return None if valid is None else valid[0]
        return valid if self.self_attn.batch_first else valid.t()

    def _sizes(self, src: Tensor) -> tuple[int, int]:
        """B and N."""
        if src.dim() == 2:
            return 1, src.shape[0]
        first, second = src.shape[:2]
        return (first, second) if self.self_attn.batch_first else (second, first)


def _where(valid: Tensor | None, x: Tensor) -> Tensor:
    # Before a norm too: its gradient multiplies what it normalised, and NaN·0 is NaN.
    return x if valid is None else torch.where(valid[..., None], x, 0.0)
