"""CoAttention: relation-biased attention as a layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import init

from collamo_kernels.checks import check_tensors
from collamo_kernels.coattention.api import checked, checked_relations, coattention
from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.cross import cross_attention
from collamo_kernels.coattention.masks import as_bias, check_masks, without_padding_atoms
from collamo_kernels.coattention.reference import attention_weights
from collamo_kernels.radial import GaussianRadial
from collamo_kernels.relations import Relations

HOP_BIAS_STD = 0.02  # Graphormer's initialisation of its spatial encoding
# Where the sinks start, first head to last. Ours: against equal tokens of logit 0 the first tells
# one from two, the last (e³ ≈ 20) ten from twenty.
SINK_RANGE = 0.0, 3.0


class CoAttention(nn.Module):
    """Multi-head attention over atoms, biased by their bonds and distances.

    It stands where nn.MultiheadAttention does: masks, other keys and values, keys of another
    length, input without a batch. What differs: molecules come first (``batch_first``), key and
    value are given by name and default to x, padding comes back as 0, and weights are returned
    only where asked for, of every head.

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
    bias
        Whether the four linear layers add one, as in nn.MultiheadAttention.
    batch_first
        ``[B, N, C]``; False takes and returns ``[N, B, C]``, nn.MultiheadAttention's default.
        Relations, masks and weights have the batch first either way.
    device, dtype
        Of the parameters.

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
        bias: bool = True,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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
        self.batch_first = batch_first
        self.query = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.key = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.value = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.output = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.hop_bias = self.sink = None
        if hop_buckets:
            table = torch.randn(num_heads, hop_buckets, device=device, dtype=dtype)
            self.hop_bias = nn.Parameter(table * HOP_BIAS_STD)
        if isinstance(radial, str):
            radial = GaussianRadial(num_heads).to(device=device, dtype=dtype)
        self.radial: nn.Module | None = radial
        if sink:
            logits = torch.linspace(*SINK_RANGE, num_heads, device=device, dtype=dtype)
            self.sink = nn.Parameter(logits)

    def reset_parameters(self) -> None:
        """Draw every parameter anew, a radial module's too where it can; after ``to_empty``."""
        for layer in (self.query, self.key, self.value, self.output):
            layer.reset_parameters()
        if self.hop_bias is not None:
            init.normal_(self.hop_bias, std=HOP_BIAS_STD)
        if self.sink is not None:
            with torch.no_grad():
                self.sink.copy_(torch.linspace(*SINK_RANGE, self.num_heads))
        reset = getattr(self.radial, "reset_parameters", None)
        if reset is not None:
            reset()

    def forward(
        self,
        x: Tensor,
        relations: Relations | None = None,
        *unnamed: object,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
        hop_bias: Tensor | None = None,
        radial: Callable[..., Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend.

        Parameters
        ----------
        x
            ``[B, N, C]``, or packed ``[T, C]`` with ``relations.cu_seqlens``, or ``[N, C]``, one
            molecule alone: then masks and relations are those of a batch of one.
        relations
            See `Relations`; None is plain attention over all positions.
        *unnamed
            Nothing: what follows has to be named.
        key, value
            What keys and values are made from; key defaults to x, value to key. With relations
            another view of the same atoms, of x's shape. Without, ``[B, M, C]`` of any M: plain
            cross-attention, which PyTorch runs.
        key_padding_mask
            ``[B, M]`` as in nn.MultiheadAttention: bool, True is left out, or floating point that
            is added. With a bool mask x itself is padded there as well, unless there is a key
            without relations: those rows come back as 0, whatever stands in them.
        attn_mask
            ``[N, M]`` or ``[B·H, N, M]`` as in nn.MultiheadAttention: bool, True is left out, or
            floating point, which is added and gets a gradient. Not packed: that takes `bias`.
        need_weights
            Also return the attention map, before dropout (it is built by the definition, at N²
            memory). Its rows sum to 1; with a sink to less, as the sink's own weight is left out.
        hop_bias, radial
            Φ2d and Φ3d owned by the caller, for layers that share them; only where the layer has
            none of its own.
        bias
            Dense ``[B, H, N, M]``, packed ``[H, Σ N_b²]``, on top: a pair representation, or Φ
            from `share_bias`.

        Returns
        -------
        Tensor or (Tensor, Tensor)
            y of x's shape, 0 in the padding; with `need_weights` also ``[B, H, N, M]``, packed
            ``[H, Σ N_b²]``, of one molecule alone ``[H, N, M]``.

        Raises
        ------
        TypeError
            A third argument without a name.
        ValueError
            A wrong shape, dtype or device; the message names the argument and the fix.
        """
        _refuse_unnamed(unnamed)
        relations = checked_relations(relations)
        _check_one_owner("hop_bias", self.hop_bias, hop_bias)
        _check_one_owner("radial", self.radial, radial)
        check_tensors(x=x, key=key, value=value, bias=bias)
        alone = x.dim() == 2 and not relations.packed
        if not relations.packed:
            x = self._to_batch(x, alone)
            key = None if key is None else self._to_batch(key, alone)
            value = None if value is None else self._to_batch(value, alone)
            bias = bias[None] if alone and bias is not None and bias.dim() == 3 else bias
        self._check(x, key, value, relations)
        if key_padding_mask is not None or attn_mask is not None:
            masks = key_padding_mask, attn_mask
            relations, bias = self._masked(x, key, relations, bias, *masks)
        apart = key is not None and relations.device is None
        keys = relations.valid
        if apart and key is not None and key_padding_mask is not None:
            keys = _real_keys(key, key_padding_mask)
        x = _without_padding(x, relations.valid)
        key = x if key is None else _without_padding(key, keys)
        value = key if value is None else _without_padding(value, keys)
        q, k, v = map(self._heads, (self.query(x), self.key(key), self.value(value)))
        dropout_p = self.dropout if self.training else 0.0
        hop_bias = self.hop_bias if hop_bias is None else hop_bias
        radial = self.radial if radial is None else radial
        if apart:
            attended = cross_attention(q, k, v, bias, self.sink, dropout_p)
        else:
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
        y = y if relations.packed else self._from_batch(y, alone)
        if not need_weights:
            return y
        if apart:
            weights = attention_weights(q, k, relations, bias=bias, sink=self.sink)
        else:
            weights = _weights(checked(q, k, k, relations, hop_bias, radial, bias, self.sink))
        return y, weights[0] if alone else weights

    def extra_repr(self) -> str:
        """Name the options in ``print(module)``."""
        buckets = 0 if self.hop_bias is None else self.hop_bias.shape[1]
        options = f"hop_buckets={buckets}, dropout={self.dropout}, sink={self.sink is not None}"
        return f"{self.embed_dim}, {self.num_heads}, {options}"

    def _to_batch(self, x: Tensor, alone: bool) -> Tensor:
        """``[N, C]`` of one alone, ``[B, N, C]`` or ``[N, B, C]`` → ``[B, N, C]``."""
        if alone:
            return x[None]
        return x if self.batch_first or x.dim() != 3 else x.transpose(0, 1)

    def _from_batch(self, y: Tensor, alone: bool) -> Tensor:
        if alone:
            return y[0]
        return y if self.batch_first else y.transpose(0, 1)

    def _masked(
        self,
        x: Tensor,
        key: Tensor | None,
        relations: Relations,
        bias: Tensor | None,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
    ) -> tuple[Relations, Tensor | None]:
        """Turn masks into what the attention takes: atoms that are not valid, and a dense bias."""
        if relations.packed:
            raise ValueError(
                "relations are packed, where nothing is padded and pairs lie in a row; leave "
                "key_padding_mask out, and give attn_mask as bias [H, P]"
            )
        sizes = (
            x.shape[0],
            self.num_heads,
            x.shape[1],
            x.shape[1] if key is None else key.shape[1],
        )
        check_masks(sizes, x.device, key_padding_mask, attn_mask)
        of_atoms = key is None or relations.device is not None
        if of_atoms and key_padding_mask is not None and key_padding_mask.dtype == torch.bool:
            relations = without_padding_atoms(relations, key_padding_mask.view(*x.shape[:2]))
            key_padding_mask = None
        mask = as_bias(sizes, key_padding_mask, attn_mask)
        return relations, mask if bias is None else bias if mask is None else bias + mask

    def _check(
        self, x: Tensor, key: Tensor | None, value: Tensor | None, relations: Relations
    ) -> None:
        dims, shape = (2, "[T, C]") if relations.packed else (3, "[B, N, C]")
        if x.dim() != dims or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x has shape {list(x.shape)}; it must be {shape} with C = {self.embed_dim}"
            )
        valid = relations.valid
        if valid is not None and valid.shape != x.shape[:-1]:
            raise ValueError(
                f"x has shape {list(x.shape)}; with these relations it must be "
                f"{[*valid.shape, self.embed_dim]}, an atom of theirs each"
            )
        if value is not None and (key is None or value.shape != key.shape):
            needed = "a key as well" if key is None else f"the shape of key, {list(key.shape)}"
            raise ValueError(f"value has shape {list(value.shape)}; it needs {needed}")
        if key is None or key.shape == x.shape:
            return
        if relations.device is not None:
            raise ValueError(
                f"key has shape {list(key.shape)}; with relations it must be that of x, "
                f"{list(x.shape)}, another view of the same atoms: leave relations out to attend "
                "to other ones"
            )
        if key.dim() != 3 or (key.shape[0], key.shape[2]) != (x.shape[0], x.shape[2]):
            raise ValueError(
                f"key has shape {list(key.shape)}; it must be [B, M, C] with "
                f"B = {x.shape[0]} and C = {x.shape[2]}"
            )

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, N, C] → [B, H, N, D]``, or packed ``[T, C] → [T, H, D]``."""
        x = x.unflatten(-1, (self.num_heads, -1))
        return x.transpose(1, 2) if x.dim() == 4 else x

    def _merge(self, x: Tensor) -> Tensor:
        return (x.transpose(1, 2) if x.dim() == 4 else x).flatten(-2)


def _refuse_unnamed(unnamed: tuple[object, ...]) -> None:
    if unnamed:
        raise TypeError(
            f"the third argument is a {type(unnamed[0]).__name__} without a name; CoAttention "
            "takes (x, relations), and all else by name: key=, value=, key_padding_mask=, "
            "attn_mask=, bias= (query, key, value of nn.MultiheadAttention are x, key=, value=)"
        )


def _check_one_owner(name: str, own: object, shared: object) -> None:
    if own is not None and shared is not None:
        raise ValueError(
            f"{name} is given, but the layer has its own; build it without "
            "(hop_buckets=0, radial=None) to share one between layers"
        )


def _real_keys(key: Tensor, key_padding_mask: Tensor) -> Tensor | None:
    """Which keys are read, ``[B, M]``; None where a mask of numbers is added, and all are."""
    if key_padding_mask.dtype != torch.bool:
        return None
    return ~key_padding_mask.view(*key.shape[:2])


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
