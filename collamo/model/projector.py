"""Co-Proj: three views of a molecule attend with shared relations and become soft tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from collamo.data.batch import MoleculeBatch
from collamo.model.configuration import MODALITIES, ProjectorConfig
from collamo.model.encoders.packing import stays_padded
from collamo_kernels import (
    CoAttention,
    GaussianRadial,
    Relations,
    share_bias,
    tabulated_together,
)

#: Where the logits of zero keys start, from the first head to the last: our choice, measured with
#: the sinks of `CoAttention` (linspace(0, 3)) on the demo's molecules, of 20 to 100 tokens.
ZERO_LOGITS = 1.0, 5.0
#: What layers share of Φ, as keyword arguments of their attention; see `share_bias`.
SharedPhi = Mapping[str, Tensor | Callable[..., Tensor] | None]


class CoProjector(nn.Module):
    """L layers of modality-collaborative attention, gathered by b learned queries.

    For layer l, on a common width C (pre-norm, residual, each followed by a feed-forward block)::

        Ẑ1d = SelfAttn(Z1d)
        Ẑ2d = CoAttn(Z2d; Φ2d + Φ3d)        Ẑ3d = CoAttn(Z3d; Φ2d + Φ3d)
        P⁽ˡ⁺¹⁾ = Attn(P⁽ˡ⁾, [Ẑ1d; Ẑ2d; Ẑ3d], [Ẑ1d; Ẑ2d; Ẑ3d])

    with P⁽⁰⁾ = P_base + Σ_present P_m; an MLP takes P⁽ᴸ⁾ to the language model's width. Both atom
    branches get both relations: that is the collaboration. Source: arXiv 2601.12256, eq. 3.
    Without `collaboration` there is no Φ, and query i of b reads modality ⌊3i/b⌋ alone.

    Parameters
    ----------
    config
        Sizes and options.
    widths
        Channels of each encoder, by modality.
    num_levels
        Levels each encoder returns, by modality.
    text_width
        Channels of the language model.
    """

    def __init__(
        self,
        config: ProjectorConfig,
        widths: Mapping[str, int],
        num_levels: Mapping[str, int],
        text_width: int,
    ):
        super().__init__()
        width = config.hidden_size
        self.inputs = nn.ModuleDict(
            {m: LevelInputs(config, widths[m], num_levels[m]) for m in MODALITIES}
        )
        self.queries = LearnedQueries(config.num_query_tokens, width)
        shared = config.share_relation_bias and has_relation_bias(config)
        self.relation_bias = RelationBias(config) if shared else None
        self.collaboration = config.collaboration
        self.layers = nn.ModuleList(CoProjectorLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(
            nn.Linear(width, text_width), nn.GELU(), nn.Linear(text_width, text_width)
        )

    def forward(
        self, levels: Mapping[str, Mapping[int, Tensor]], molecules: MoleculeBatch
    ) -> Tensor:
        """Turn encoder levels into soft tokens.

        Parameters
        ----------
        levels
            Per modality the encoder's levels by number, each [B,T_m,C_m]: those of `levels_read`.
        molecules
            The flat batch they are of. A modality that is not `present` is not read. Where 2D is
            absent every pair is unreachable, which adds no Φ2d (`RelationBias.hop_table`).

        Returns
        -------
        Tensor
            [B,b,text_width]; zero for a molecule without any modality.
        """
        present, valid = molecules.present, {m: molecules.valid(m) for m in MODALITIES}
        text, atoms = (RealTokens.of(x) for x in (valid["1d"], valid["2d"] | valid["3d"]))
        tokens = {"1d": text, "2d": atoms, "3d": atoms}
        real = {m: tokens[m].pack(valid[m]) for m in MODALITIES}
        pairs, relations = self._relations(molecules, tokens, valid)
        phi = self._shared_phi(pairs)
        z = {m: torch.zeros((), device=present.device) for m in MODALITIES}
        place, reach = self._reach(tokens, real)
        p = self.queries(present)
        with self._tabulated_together(relations):
            for i, layer in enumerate(self.layers):
                z = {m: self.inputs[m](i, z[m], levels[m], tokens[m], real[m]) for m in MODALITIES}
                p, *branches = layer(
                    p, *z.values(), relations=relations, place=place, reach=reach, phi=phi
                )
                z = dict(zip(MODALITIES, branches, strict=True))
        soft = self.head(self.norm(p))
        return torch.where(present.any(1)[:, None, None], soft, 0.0)

    def _relations(
        self,
        molecules: MoleculeBatch,
        tokens: Mapping[str, RealTokens],
        valid: Mapping[str, Tensor],
    ) -> tuple[Relations, dict[str, Relations]]:
        """What is known about pairs of atoms, and about those of each modality: packed as the
        tokens are, or padded."""
        atoms, has_3d = tokens["2d"], molecules.present[:, 2]
        hops, coordinates = molecules.hops, molecules.coordinates.float()
        if atoms.cu_seqlens is None:
            pairs = Relations(hops, coordinates, valid["2d"] | valid["3d"], has_3d)
            relations = {m: Relations(hops, coordinates, valid[m], has_3d) for m in ("2d", "3d")}
            return pairs, {**relations, "1d": Relations(valid=valid["1d"])}
        packed = atoms.pack_pairs(hops), atoms.pack(coordinates)
        pairs = Relations(*packed, has_3d=has_3d, cu_seqlens=atoms.cu_seqlens)
        relations = {m: replace(pairs, valid=atoms.pack(valid[m])) for m in ("2d", "3d")}
        return pairs, {**relations, "1d": Relations(cu_seqlens=tokens["1d"].cu_seqlens)}

    def levels_read(self, modality: str) -> list[int]:
        """Return the numbers of the encoder's levels that are read, ascending."""
        return sorted(set(cast("LevelInputs", self.inputs[modality]).level))

    def _reach(
        self, tokens: Mapping[str, RealTokens], real: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Where the queries find the packed tokens of all modalities, and which each reads.

        Each molecule has T columns, as many of each modality as its longest has. Returns the
        column of every token, [M] int64 into the flattened [B·T], and [B,b,T] bool.
        """
        lengths = [tokens[m].longest for m in MODALITIES]
        # Not `sum`: torch.export cannot save what it makes of that.
        *starts, width = accumulate(lengths, initial=0)
        parts = zip(tokens.values(), starts, strict=True)
        place = torch.cat([t.molecule * width + start + t.number for t, start in parts])
        batch, queries = tokens["1d"].batch, self.queries.base.shape[0]
        there = torch.zeros(batch * width, dtype=torch.bool, device=place.device)
        there = there.index_copy(0, place, torch.cat([real[m] for m in tokens]))
        there = there.view(batch, 1, width)
        if self.collaboration:
            return place, there.expand(-1, queries, -1)
        kind = torch.arange(len(MODALITIES), device=place.device)
        column_kind = torch.cat([x.expand(n) for x, n in zip(kind.unbind(), lengths, strict=True)])
        query_kind = torch.arange(queries, device=place.device) * len(MODALITIES) // queries
        return place, there & (query_kind[:, None] == column_kind)

    def _shared_phi(self, relations: Relations) -> SharedPhi:
        """What layers and branches share of Φ, as keyword arguments of their attention."""
        if self.relation_bias is None:
            return {}
        shared = self.relation_bias()
        return share_bias(
            relations,
            layers=1 if self._computes_again() else 2 * len(self.layers),
            dtype=self._attention_dtype(relations),
            **shared,
        )

    def _computes_again(self) -> bool:
        """Whether layers run again in the backward pass: they must find there what they found."""
        first = cast("CoProjectorLayer", self.layers[0])
        return self.training and first.gradient_checkpointing

    def _attention_dtype(self, relations: Relations) -> torch.dtype:
        device = cast("torch.device", relations.device).type
        half = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if half else self.norm.weight.dtype

    def _tabulated_together(
        self, relations: Mapping[str, Relations]
    ) -> AbstractContextManager[object]:
        """Let layers that have a Φ3d each share the launches that tabulate it."""
        if self._computes_again() or torch.compiler.is_compiling():
            return nullcontext()
        stack = ExitStack()
        for m in ("2d", "3d"):
            layers = (cast("CoProjectorLayer", layer) for layer in self.layers)
            blocks = (cast("BranchBlock", layer.branches[m]) for layer in layers)
            biases = [x.relation_bias for x in blocks if x.relation_bias is not None]
            radials = [x.radial for x in biases]
            dtype = self._attention_dtype(relations[m])
            stack.enter_context(tabulated_together(relations[m], radials, dtype=dtype))
        return stack


@dataclass(frozen=True)
class RealTokens:
    """The real tokens of a padded batch [B,T] one after the other: what the layers work on.

    64 PubChem molecules padded to the longest are 21,120 tokens of three modalities; 5,800 are
    real. A compiled graph works on all of them: see `stays_padded`.

    Attributes
    ----------
    batch
        B.
    index
        [M] int64, place of each in the flattened [B·T].
    molecule, number
        [M] int64, its molecule, and its number among the real ones of that.
    cu_seqlens
        [B+1] int32, their running total; None with padding.
    longest
        The largest number of them in a molecule.
    """

    batch: int
    index: Tensor
    molecule: Tensor
    number: Tensor
    cu_seqlens: Tensor | None
    longest: int

    @classmethod
    def of(cls, real: Tensor) -> RealTokens:
        """[B,T] bool, True = real; without the others where that can be."""
        return cls.with_padding(real) if stays_padded() else cls.without_padding(real)

    @classmethod
    def without_padding(cls, real: Tensor) -> RealTokens:
        """[B,T] bool, True = real."""
        counts = real.sum(1)
        before = F.pad(counts.cumsum(0), (1, 0))
        index = real.flatten().nonzero().squeeze(1)
        molecule = index // max(real.shape[1], 1)
        number = torch.arange(len(index), device=index.device) - before[molecule]
        longest = int(counts.max()) if len(counts) else 0
        return cls(len(real), index, molecule, number, before.int(), longest)

    @classmethod
    def with_padding(cls, real: Tensor) -> RealTokens:
        """[B,T] bool → all B·T of them."""
        batch, length = real.shape
        index = torch.arange(batch * length, device=real.device)
        number = torch.arange(length, device=real.device).repeat(batch)
        molecule = torch.arange(batch, device=real.device).repeat_interleave(length)
        return cls(batch, index, molecule, number, None, length)

    def pack(self, x: Tensor) -> Tensor:
        """[B,T,…] → [M,…]."""
        x = x.flatten(0, 1)
        return x if self.cu_seqlens is None else x.index_select(0, self.index)

    def pack_pairs(self, x: Tensor) -> Tensor:
        """[B,T,T] → [P]: pairs of real tokens of one molecule, row by row."""
        real = x.new_zeros(x.shape[:2], dtype=torch.bool).flatten()
        real = real.index_fill(0, self.index, True).view(x.shape[:2])
        return x[real[:, :, None] & real[:, None, :]]


class LevelInputs(nn.Module):
    """Brings one encoder's levels to the common width.

    Layer 0 gets a level, later layers get one added to their stream if `multi_level` (and the
    encoder has several): of K+1 levels, layer l of L gets number round((l+1)·K/L), so the last
    layer gets the encoder's output. Without `multi_level` layer 0 gets the output.
    """

    def __init__(self, config: ProjectorConfig, width: int, num_levels: int):
        super().__init__()
        several = config.multi_level and num_levels > 1
        count = config.num_layers if several else 1
        self.level = spread_levels(num_levels, count)
        self.maps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.hidden_size))
            for _ in range(count)
        )

    def forward(
        self,
        layer: int,
        z: Tensor,
        levels: Mapping[int, Tensor],
        tokens: RealTokens,
        real: Tensor,
    ) -> Tensor:
        """[M,C] stream (or a zero scalar before layer 0) plus this layer's level.

        Of the packed `tokens`, those of molecules without the modality are not `real` [M].
        """
        if layer >= len(self.maps):
            return z
        level = torch.where(real[:, None], tokens.pack(levels[self.level[layer]]), 0.0)
        return z + self.maps[layer](level)


def spread_levels(num_levels: int, layers: int) -> list[int]:
    """Return which of K+1 levels each of `layers` layers receives: round((l+1)·K/L).

    >>> spread_levels(16, 5)
    [3, 6, 9, 12, 15]
    """
    return [round((i + 1) * (num_levels - 1) / layers) for i in range(layers)]


class LearnedQueries(nn.Module):
    """P⁽⁰⁾ = P_base + Σ_present P_m.

    A module, not a bare parameter of the model: peft's `modules_to_save` ignores those silently.
    """

    def __init__(self, num_tokens: int, width: int):
        super().__init__()
        self.base = nn.Parameter(torch.empty(num_tokens, width))
        self.modality = nn.Parameter(torch.empty(len(MODALITIES), num_tokens, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from well separated queries, hardly moved by the modalities present."""
        nn.init.normal_(self.base, std=1.0)
        nn.init.normal_(self.modality, std=0.02)

    def forward(self, present: Tensor) -> Tensor:
        """[B,3] bool → [B,b,C]."""
        return self.base + torch.einsum("bm,mqc->bqc", present.to(self.base.dtype), self.modality)


class RelationBias(nn.Module):
    """The Φ2d table and the Φ3d function of one attention, or of all that share them; None where
    left out."""

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        table = torch.empty(config.num_heads, config.hop_buckets)
        self.hop_bias = nn.Parameter(table) if config.phi2d else None
        self.radial: GaussianRadial | None = _radial(config) if config.phi3d else None
        self.sinks = config.sinks
        self.reset_parameters()

    def forward(self) -> dict[str, Tensor | Callable[..., Tensor] | None]:
        """Φ as keyword arguments of an attention: a call, so that offloaded weights are brought.

        As a module Φ3d is handed on only where it is read past its `forward`: accelerate moves a
        call's arguments to another device, and these weights may be on none.
        """
        radial: Callable[..., Tensor] | None = self.radial
        if self.radial is not None and not self.radial.is_standard():
            radial = self.radial.__call__
        return {"hop_bias": self.hop_table(), "radial": radial}

    def hop_table(self) -> Tensor | None:
        """[H,S], what the attention reads: with sinks, relative to the column of unreachable pairs.

        In a molecule without 2D every pair is unreachable. The same number in every logit of a row
        is nothing to a plain softmax, but would raise or lower all atoms against their sink.
        """
        if self.hop_bias is None or not self.sinks:
            return self.hop_bias
        return self.hop_bias - self.hop_bias[:, -1:]

    def reset_parameters(self) -> None:
        """Start from a faint Φ2d."""
        if self.hop_bias is not None:
            nn.init.normal_(self.hop_bias, std=0.02)


@contextmanager
def without_phi(model: nn.Module, relations: Collection[str]) -> Iterator[None]:
    """Take Φ2d ("phi2d") and Φ3d ("phi3d") away from every attention of `model` inside the block,
    as if they were zero."""
    biases = [module for module in model.modules() if isinstance(module, RelationBias)]
    own = [(bias, bias.hop_bias, bias.radial) for bias in biases]
    try:
        for bias in biases:
            bias.hop_bias = None if "phi2d" in relations else bias.hop_bias
            bias.radial = None if "phi3d" in relations else bias.radial
        yield
    finally:
        for bias, hop_bias, radial in own:
            bias.hop_bias, bias.radial = hop_bias, radial


def has_relation_bias(config: ProjectorConfig) -> bool:
    """Return whether the branches of atoms attend with any Φ."""
    return config.collaboration and (config.phi2d or config.phi3d)


def _radial(config: ProjectorConfig) -> GaussianRadial:
    return GaussianRadial(
        config.num_heads, config.num_gaussians, config.radial_head, min_sigma=config.min_sigma
    )


class CoProjectorLayer(GradientCheckpointingLayer):
    """One round: each branch attends to itself, then the queries gather from all three."""

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        own = has_relation_bias(config) and not config.share_relation_bias
        self.branches = nn.ModuleDict(
            {
                m: BranchBlock(config, own_bias=own and m != "1d", of_atoms=m != "1d")
                for m in MODALITIES
            }
        )
        self.gather = GatherBlock(config)

    def forward(
        self,
        p: Tensor,
        z1d: Tensor,
        z2d: Tensor,
        z3d: Tensor,
        relations: Mapping[str, Relations],
        place: Tensor,
        reach: Tensor,
        phi: SharedPhi,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B,b,C] queries and packed [M_m,C] branches → the same, one layer on."""
        z = dict(zip(MODALITIES, (z1d, z2d, z3d), strict=True))
        z = {
            m: block(z[m], relations[m], phi if m != "1d" else {})
            for m, block in self.branches.items()
        }
        p = self.gather(p, torch.cat([z[m] for m in MODALITIES]), place, reach)
        return p, z["1d"], z["2d"], z["3d"]


class BranchBlock(nn.Module):
    """z + CoAttn(LN z; Φ), then z + FFN(LN z); self-attention where Φ is nothing.

    The branch of text (`of_atoms` False) has no sinks.
    """

    def __init__(self, config: ProjectorConfig, own_bias: bool, of_atoms: bool):
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CoAttention(
            width, config.num_heads, hop_buckets=0, radial=None, sink=config.sinks and of_atoms
        )
        self.relation_bias = RelationBias(config) if own_bias else None
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, z: Tensor, relations: Relations, phi: SharedPhi) -> Tensor:
        """[M,C] → [M,C]; rows of absent modalities stay finite and unread."""
        own = self.relation_bias
        if own is not None:
            phi = own()
        x = self.attention_norm(z)
        if relations.packed:
            attended = self.attention(x, relations, **phi)
        else:
            shape = cast("Tensor", relations.valid).shape
            attended = self.attention(x.unflatten(0, shape), relations, **phi).flatten(0, 1)
        return self.feed_forward(z + self.dropout(attended))


class GatherBlock(nn.Module):
    """p + Attn(LN p, LN z, LN z), then p + FFN(LN p)."""

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        self.query_norm = nn.LayerNorm(config.hidden_size)
        self.token_norm = nn.LayerNorm(config.hidden_size)
        self.attention = CrossAttention(
            config.hidden_size, config.num_heads, config.zero_attention, config.sinks
        )
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, p: Tensor, tokens: Tensor, place: Tensor, reach: Tensor) -> Tensor:
        """[B,b,C] queries; the others as `CrossAttention` takes them → [B,b,C]."""
        attended = self.attention(self.query_norm(p), self.token_norm(tokens), place, reach)
        return self.feed_forward(p + self.dropout(attended))


class CrossAttention(nn.Module):
    """softmax(q·kᵀ/√d) v over the tokens within reach.

    With `zero_attention` a zero key with a zero value joins them (nn.MultiheadAttention's
    add_zero_attn): n tokens of logit s and value v then give n·eˢ/(n·eˢ + e^z) · v with z = 0,
    which grows with n, where the plain average gives v for every n. One key of logit 0 against 60
    tokens of as much is soon saturated: with `sinks` z is learned, a head each.
    """

    def __init__(self, width: int, num_heads: int, zero_attention: bool, sinks: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.zero_attention = zero_attention
        learned = zero_attention and sinks
        self.zero_logit = nn.Parameter(torch.empty(num_heads)) if learned else None
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start zero keys that saturate from e to e⁵ tokens on, a head each."""
        if self.zero_logit is not None:
            init.copy_(self.zero_logit, torch.linspace(*ZERO_LOGITS, self.num_heads))

    def forward(self, p: Tensor, tokens: Tensor, place: Tensor, reach: Tensor) -> Tensor:
        """Read the tokens.

        Parameters
        ----------
        p
            [B,b,C] queries.
        tokens
            [M,C], of all molecules.
        place
            [M] int64: where in the flattened [B·T] of `reach` each token stands.
        reach
            [B,b,T] bool: which tokens each query reads. False where there is none.

        Returns
        -------
        Tensor
            [B,b,C]; the output's bias for a query with nothing in reach.
        """
        q, k, columns, reach, reads = self._compared(p, tokens, place, reach)
        v = self._spread(self.value(tokens), *columns)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(reach, q.dtype))
        out = torch.where(reads[:, None], out, 0.0)
        return self.output(out.transpose(1, 2).flatten(2))

    def weights(self, p: Tensor, tokens: Tensor, place: Tensor, reach: Tensor) -> Tensor:
        """The softmax alone, [B,H,b,T], with `zero_attention` [B,H,b,T+1]; 0 with nothing in
        reach."""
        q, k, _, reach, reads = self._compared(p, tokens, place, reach)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        mask = self._mask(reach, logits.dtype)
        if mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask, float("-inf"))
        else:
            logits = logits + mask
        return torch.where(reads[:, None], logits.softmax(-1), 0.0)

    def _mask(self, reach: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to the logits: [B,1,b,T] bool, or [B,H,b,T] with the zero key's logits."""
        if self.zero_logit is None:
            return reach[:, None]
        batch, queries, length = reach.shape
        zero = self.zero_logit.to(dtype)[:, None, None].expand(batch, -1, queries, 1)
        tokens = torch.zeros((), dtype=dtype, device=zero.device)
        tokens = tokens.expand(batch, self.num_heads, queries, length - 1)
        return torch.cat([tokens, zero], -1).masked_fill(~reach[:, None], float("-inf"))

    def _compared(
        self, p: Tensor, tokens: Tensor, place: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, int, int], Tensor, Tensor]:
        """Queries [B,H,b,D], keys [B,H,T,D], where tokens stand (as `_spread` takes it), what each
        query may see, and whether that is anything."""
        reads = reach.any(-1, keepdim=True)  # [B, b, 1]
        if self.zero_attention:
            place = place + place // max(reach.shape[-1], 1)  # a column more for each molecule
            reach = F.pad(reach, (0, 1), value=True)
        else:
            reach = reach | ~reads  # a row without keys would be NaN; its result is dropped
        columns = place, reach.shape[0], reach.shape[2]
        q = self.query(p).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return q, self._spread(self.key(tokens), *columns), columns, reach, reads

    def _spread(self, x: Tensor, place: Tensor, batch: int, length: int) -> Tensor:
        """[M,C] → [B,H,T,D], zero where no token stands."""
        out = x.new_zeros(batch * length, x.shape[-1]).index_copy_(0, place, x)
        heads = self.num_heads, x.shape[-1] // self.num_heads
        return out.view(batch, length, *heads).transpose(1, 2)


class FeedForward(nn.Module):
    """x + W₂ GELU(W₁ LN x)."""

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[…,C] → […,C]."""
        return x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))


def drop_modalities(present: Tensor, probability: float) -> Tensor:
    """Drop each present modality of each molecule with `probability`, never all of them.

    [B,3] bool → [B,3] bool. Where every present one was drawn, one of them stays, each equally
    likely. Draws from torch's global generator of the device.
    """
    kept = present & (torch.rand(present.shape, device=present.device) >= probability)
    lottery = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    survivor = F.one_hot(lottery.argmax(1), present.shape[1]).bool() & present
    return torch.where(kept.any(1, keepdim=True), kept, survivor)
