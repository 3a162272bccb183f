"""CoAttention: relation-biased attention as a layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from collamo_kernels.checks import check_tensors
from collamo_kernels.coattention.api import checked, checked_relations, coattention
from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.reference import attention_weights
from collamo_kernels.radial import GaussianRadial
from collamo_kernels.relations import Relations

HOP_BIAS_STD = 0.02  # Graphormer's initialisation of its spatial encoding
# Where the sinks start, first head to last. Ours: against equal tokens of logit 0 the first tells
# one from two, the last (e³ ≈ 20) ten from twenty.
SINK_RANGE = 0.0, 3.0


class CoAttention(nn.Module):
    """Multi-head attention over atoms, biased by their bonds and distances.

    Parameters of the layer (names are part of the saved state and will stay): ``query``, ``key``,
    ``value``, ``output`` (``nn.Linear(C, C)``; not ``q_proj`` …, so that a LoRA recipe for a
    language model, which matches names by their ends, leaves them alone), ``hop_bias [H, S]``,
    ``radial.*`` and, where asked for, ``sink [H]``.

    Parameters
    ----------
    embed_dim
        C, a multiple of `num_heads`.
    num_heads
        H.
    hop_buckets
        S, the columns of the table Φ2d; the last is for unreachable pairs. 64 is our choice,
        because only 0.7 % of ChEBI-20 has a longer path. 0: the layer owns no table.
    radial
        ``"gaussian"`` for a `GaussianRadial`, None for no Φ3d of its own, or any module mapping
        distances ``[M] → [M, H]``.
    dropout
        Probability of dropping an attention weight while training.
    sink
        Whether each head learns a sink, so that the layer can count tokens and not only average
        them (see `coattention`). Ours, and off: the paper's softmax is plain.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> layer = ck.CoAttention(embed_dim=32, num_heads=4)
    >>> relations = ck.Relations.from_graphs(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2]))
    >>> layer(torch.randn(1, 2, 32), relations).shape
    torch.Size([1, 2, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hop_buckets: int = 64,
        radial: str | nn.Module | None = "gaussian",
        dropout: float = 0.0,
        sink: bool = False,
    ):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}; "
                "change one of them"
            )
        if hop_buckets < 0 or hop_buckets == 1:
            raise ValueError(f"hop_buckets is {hop_buckets}; use 0 for no table, or at least 2")
        if isinstance(radial, str) and radial != "gaussian":
            raise ValueError(f"radial is {radial!r}; use 'gaussian', None or a module")
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)
        table = torch.randn(num_heads, hop_buckets) * HOP_BIAS_STD if hop_buckets else None
        self.hop_bias = None if table is None else nn.Parameter(table)
        self.radial = GaussianRadial(num_heads) if isinstance(radial, str) else radial
        self.sink = nn.Parameter(torch.linspace(*SINK_RANGE, num_heads)) if sink else None

    def forward(
        self,
        x: Tensor,
        relations: Relations | None = None,
        *,
        key_value: Tensor | None = None,
        need_weights: bool = False,
        hop_bias: Tensor | None = None,
        radial: Callable[..., Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend.

        Parameters
        ----------
        x
            ``[B, N, C]``, or packed ``[T, C]`` with ``relations.cu_seqlens``.
        relations
            See `Relations`; None is plain attention over all N positions.
        key_value
            Another view of the same atoms, of x's shape, to take keys and values from; None takes
            x.
        need_weights
            Also return the attention map, before dropout (it is built by the definition, at N²
            memory). Its rows sum to 1; with a sink to less, as the sink's own weight is left out.
        hop_bias, radial
            Φ2d and Φ3d owned by the caller, for layers that share them; only where the layer has
            none of its own.
        bias
            Dense ``[B, H, N, N]``, packed ``[H, Σ N_b²]``, on top: a pair representation, or Φ
            from `share_bias`.

        Returns
        -------
        Tensor or (Tensor, Tensor)
            y of x's shape, 0 in the padding; with `need_weights` also ``[B, H, N, N]``, packed
            ``[H, Σ N_b²]``.
        """
        relations = checked_relations(relations)
        self._check(x, key_value, relations)
        _check_one_owner("hop_bias", self.hop_bias, hop_bias)
        _check_one_owner("radial", self.radial, radial)
        hop_bias = self.hop_bias if hop_bias is None else hop_bias
        radial = self.radial if radial is None else radial
        x = _without_padding(x, relations.valid)
        source = x if key_value is None else _without_padding(key_value, relations.valid)
        q, k, v = map(self._heads, (self.query(x), self.key(source), self.value(source)))
        dropout_p = self.dropout if self.training else 0.0
        attended = coattention(
            *(q, k, v),
            relations=relations,
            hop_bias=hop_bias,
            radial=radial,
            bias=bias,
            sink=self.sink,
            dropout_p=dropout_p,
        )
        y = _without_padding(self.output(self._merge(attended)), relations.valid)
        if not need_weights:
            return y
        return y, _weights(checked(q, k, k, relations, hop_bias, radial, bias, self.sink))

    def extra_repr(self) -> str:
        """Name the options in ``print(module)``."""
        buckets = 0 if self.hop_bias is None else self.hop_bias.shape[1]
        options = f"hop_buckets={buckets}, dropout={self.dropout}, sink={self.sink is not None}"
        return f"{self.embed_dim}, {self.num_heads}, {options}"

    def _check(self, x: Tensor, key_value: Tensor | None, relations: Relations) -> None:
        check_tensors(x=x, key_value=key_value)
        dims, shape = (2, "[T, C]") if relations.packed else (3, "[B, N, C]")
        if x.dim() != dims or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x has shape {list(x.shape)}; it must be {shape} with C = {self.embed_dim}"
            )
        if key_value is not None and key_value.shape != x.shape:
            raise ValueError(
                f"key_value has shape {list(key_value.shape)}; "
                f"it must be that of x, {list(x.shape)}, another view of the same atoms"
            )

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, N, C] → [B, H, N, D]``, or packed ``[T, C] → [T, H, D]``."""
        x = x.unflatten(-1, (self.num_heads, -1))
        return x.transpose(1, 2) if x.dim() == 4 else x

    def _merge(self, x: Tensor) -> Tensor:
        return (x.transpose(1, 2) if x.dim() == 4 else x).flatten(-2)


def _check_one_owner(name: str, own: object, shared: object) -> None:
    if own is not None and shared is not None:
        raise ValueError(
            f"{name} is given, but the layer has its own; build it without "
            "(hop_buckets=0, radial=None) to share one between layers"
        )


def _without_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    # Before a Linear too: its weight gradient multiplies the rows of x, and NaN·0 is NaN.
    return x if valid is None else torch.where(valid[..., None], x, 0.0)


def _weights(call: CoattentionCall) -> Tensor:
    """Attention map of a call, in the layout of a dense bias."""
    q, k, bias, relations = call.q, call.k, call.bias, call.relations
    if not relations.packed:
        return attention_weights(
            *(q, k, relations, call.hop_bias, call.radial, bias), sink=call.sink
        )
    layout = relations.packed_layout()
    q, k = (layout.pad(x).transpose(1, 2) for x in (q, k))
    bias = None if bias is None else layout.pad_pairs(bias.t()).permute(0, 3, 1, 2)
    padded = relations.padded()
    weights = attention_weights(*(q, k, padded, call.hop_bias, call.radial, bias), sink=call.sink)
    return layout.pack_pairs(weights.permute(0, 2, 3, 1)).t()
