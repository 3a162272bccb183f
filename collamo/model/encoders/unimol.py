"""The 3D encoder: Uni-Mol (Zhou et al., ICLR 2023), an SE(3)-invariant transformer on distances."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collamo.chem.features import UNIMOL_ELEMENTS
from collamo.data.batch import MoleculeBatch
from collamo.model.configuration import UniMolConfig
from collamo.model.encoders.embeddings import all_rows
from collamo.model.encoders.packing import Packing, frozen_mode
from collamo_kernels import (
    Relations,
    gaussian_basis,
    pair_bias_attention,
    pairwise_distances,
)

#: Lines of Uni-Mol's dict.txt; the id of a token is its line, [MASK] is appended.
UNIMOL_DICTIONARY = (
    *("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
    *UNIMOL_ELEMENTS,
    "[MASK]",
)
PAD, CLS, SEP, UNK = range(4)

#: Gaussians, of all pairs together, that are computed at a time: in float32 they are 2 MiB, which
#: a core keeps in its cache.
GAUSSIANS_AT_ONCE = 2**19

_TOKEN_OF_ELEMENT = torch.full((128,), UNK)
for _symbol, _number in UNIMOL_ELEMENTS.items():
    _TOKEN_OF_ELEMENT[_number] = UNIMOL_DICTIONARY.index(_symbol)


def unimol_inputs(
    atomic_numbers: Tensor, coordinates: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derive Uni-Mol's inputs from atoms and their places.

    Parameters
    ----------
    atomic_numbers
        [B,N] int64; elements outside the dictionary become [UNK] (`unknown_to_unimol` names them).
    coordinates
        [B,N,3] float32 Å; padding is never read.
    valid
        [B,N] bool, True = real atom; real atoms come first.

    Returns
    -------
    src_tokens [B,N+2] int64, src_distance [B,N+2,N+2] float32 Å, src_edge_type [B,N+2,N+2] int64
        [CLS] atoms [SEP] [PAD]…; [CLS] and [SEP] sit at the centroid of the atoms. Pair type of
        (i,j) is token_i · 31 + token_j. Distances and pair types are 0 where either is padding.
    """
    batch, num_atoms = valid.shape
    atoms = _TOKEN_OF_ELEMENT.to(valid.device)[atomic_numbers.clamp(0, 127)]
    tokens = F.pad(atoms.masked_fill(~valid, PAD), (1, 1), value=PAD)
    tokens[:, 0] = CLS
    order = torch.arange(1, num_atoms + 1, device=valid.device)
    last = (order * valid).amax(1) if num_atoms else valid.new_zeros(batch, dtype=torch.long)
    tokens.scatter_(1, last[:, None] + 1, SEP)
    real = tokens != PAD
    places = F.pad(_centred(coordinates, valid), (0, 0, 1, 1))
    distance = pairwise_distances(places, real)
    pair = real[:, :, None] & real[:, None, :]
    size = len(UNIMOL_DICTIONARY)
    edge_type = (tokens[:, :, None] * size + tokens[:, None, :]).masked_fill(~pair, 0)
    return tokens, distance.masked_fill(~pair, 0.0), edge_type


def _centred(coordinates: Tensor, valid: Tensor) -> Tensor:
    """Move the centroid of each molecule's real atoms to the origin; padding becomes 0."""
    inside = valid[..., None]
    coordinates = torch.where(inside, coordinates.float(), 0.0)
    centre = coordinates.sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
    return torch.where(inside, coordinates - centre, 0.0)


class UniMolEncoder(nn.Module):
    """Uni-Mol; parameter names follow its published checkpoint.

    The bias of the first layer comes from Gaussians of the distances; every layer hands its
    attention logits (scaled q·k + bias) on as the bias of the next, so the pair representation
    evolves. Pre-LN, GELU (erf), LayerNorm eps 1e-5.

    Molecules are encoded without their padding, end to end (see `Packing`); the pair representation
    is float32 in half precision too, because every layer adds to it.
    """

    def __init__(self, config: UniMolConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=PAD)
        self.encoder = UniMolTransformer(config)
        self.gbf = PairGaussians(config.num_gaussians, config.vocab_size**2, config.min_sigma)
        self.gbf_proj = GaussianHead(config.num_gaussians, config.num_heads)

    def encode(
        self, molecules: MoleculeBatch, numbers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the levels of these numbers (None: all) of the atoms alone, each [B,N,C].

        [CLS] and [SEP], which `levels` has too, fall away.
        """
        inputs = unimol_inputs(
            molecules.atomic_numbers, molecules.coordinates, molecules.valid("3d")
        )
        return {number: level[:, 1:-1] for number, level in self.levels(*inputs, numbers).items()}

    def forward(
        self, src_tokens: Tensor, src_distance: Tensor, src_edge_type: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        [B,T] int64, [B,T,T] Å, [B,T,T] int64 (see `unimol_inputs`) → representation [B,T,C] and
        pair representation [B,T,T,H] float32, the last layer's logits; both zero in padding.
        """
        inputs = src_tokens, src_distance, src_edge_type
        last = self.config.num_layers
        packing, levels, pairs = self._encode(*inputs, [last], with_pairs=True)
        assert pairs is not None  # because of with_pairs
        return packing.pad(levels[last]), packing.pad_pairs(pairs)

    def levels(
        self,
        src_tokens: Tensor,
        src_distance: Tensor,
        src_edge_type: Tensor,
        numbers: Collection[int] | None = None,
    ) -> dict[int, Tensor]:
        """Return levels by number, each [B,T,C], zero in padding.

        Level 0 is the embedding, level l the output of layer l, the last one normalised. `numbers`
        are the ones to return, None returns all. The last pair representation is not computed.
        """
        numbers = range(self.config.num_layers + 1) if numbers is None else numbers
        inputs = src_tokens, src_distance, src_edge_type
        packing, levels, _ = self._encode(*inputs, numbers, with_pairs=False)
        return {number: packing.pad(level) for number, level in levels.items()}

    def _encode(
        self,
        tokens: Tensor,
        distance: Tensor,
        edge_type: Tensor,
        numbers: Collection[int],
        with_pairs: bool,
    ) -> tuple[Packing, dict[int, Tensor], Tensor | None]:
        """Return the packing, levels [M,C] by number and, if asked, the last logits [H,P]."""
        with frozen_mode(self, distance):
            packing = Packing.of(tokens != PAD)
            bias = self._bias(packing.pack_pairs(distance), packing.pack_pairs(edge_type))
            bias = packing.exclude_padding(bias)
            x = self.embed_tokens(packing.pack(tokens))
            return packing, *self.encoder(x, bias, packing.relations, numbers, with_pairs)

    def _bias(self, distance: Tensor, edge_type: Tensor) -> Tensor:
        """[P] Å, [P] → the first layer's bias [H,P] float32, contiguous."""
        pairs = GAUSSIANS_AT_ONCE // self.config.num_gaussians
        if torch.compiler.is_compiling():
            pairs = len(distance)  # else there would be a graph for every number of parts
        dtype = self.embed_tokens.weight.dtype
        parts = zip(distance.split(pairs), edge_type.split(pairs), strict=True)
        bias = torch.cat([self.gbf_proj(self.gbf(*part).to(dtype)) for part in parts])
        return bias.to(torch.promote_types(dtype, torch.float32)).t().contiguous()


class UniMolTransformer(nn.Module):
    """The stack of layers with the evolving pair bias."""

    def __init__(self, config: UniMolConfig):
        super().__init__()
        self.dropout = config.dropout
        self.emb_layer_norm = nn.LayerNorm(config.hidden_size)
        self.layers = nn.ModuleList(UniMolLayer(config) for _ in range(config.num_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        relations: Relations,
        numbers: Collection[int],
        with_pairs: bool,
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """[M,C] tokens, [H,P] → the levels [M,C] of `numbers`, and the last logits if asked."""
        x = F.dropout(self.emb_layer_norm(x), self.dropout, self.training)
        levels = {0: x}
        for number, layer in enumerate(self.layers, start=1):
            last = number == len(self.layers)
            x, bias = layer(x, bias, relations, with_logits=with_pairs or not last)
            levels[number] = self.final_layer_norm(x) if last else x
            levels = {key: level for key, level in levels.items() if key in numbers}
        return levels, bias


class UniMolLayer(nn.Module):
    """Pre-LN attention and feed-forward; returns its logits beside its output."""

    def __init__(self, config: UniMolConfig):
        super().__init__()
        self.dropout = config.dropout
        self.self_attn = UniMolAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self, x: Tensor, bias: Tensor, relations: Relations, with_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[M,C], [H,P] → the same shapes; see `UniMolAttention`."""
        normed = self.self_attn_layer_norm(x)
        attended, bias = self.self_attn(normed, bias, relations, with_logits)
        x = x + F.dropout(attended, self.dropout, self.training)
        hidden = self.fc1(self.final_layer_norm(x))
        # Where nothing learns, in place: the widest tensor of a layer, 15 MiB for 64 molecules.
        hidden = F.gelu(hidden) if hidden.requires_grad else torch.ops.aten.gelu_(hidden)
        hidden = self.fc2(hidden)
        return x + F.dropout(hidden, self.dropout, self.training), bias


class UniMolAttention(nn.Module):
    """softmax(q·k/√d + bias) v; the logits themselves are the next layer's bias."""

    def __init__(self, config: UniMolConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, bias: Tensor, relations: Relations, with_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[M,C], [H,P] → output [M,C] and the logits [H,P], None without `with_logits`.

        Where no gradient is asked for, the logits are written over `bias`.
        """
        q, k, v = self.in_proj(x).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        dropout_p = self.dropout if self.training else 0.0
        frozen = not (q.requires_grad or bias.requires_grad)  # nobody reads the bias again
        out, logits = pair_bias_attention(
            q,
            k,
            v,
            bias,
            relations,
            dropout_p=dropout_p,
            with_logits=with_logits,
            in_place=frozen,
        )
        return self.out_proj(out.flatten(1)), logits


class PairGaussians(nn.Module):
    """ψ_k = N(mul_t · r + bias_t; μ_k, |σ_k| + floor), t the type of the pair; float32 inside.

    Fresh values are the nominal ones (μ, σ uniform in [0, 3), mul 1, bias 0); the official code
    overwrites them by N(0, 0.02) by accident, which leaves every Gaussian near r = 0.
    """

    def __init__(self, num_gaussians: int, pair_types: int, min_sigma: float):
        super().__init__()
        self.min_sigma = min_sigma
        self.means = UniformEmbedding(1, num_gaussians, 0.0, 3.0)
        self.stds = UniformEmbedding(1, num_gaussians, 0.0, 3.0)
        self.mul = UniformEmbedding(pair_types, 1, 1.0, 1.0)
        self.bias = UniformEmbedding(pair_types, 1, 0.0, 0.0)

    def forward(self, distance: Tensor, pair_type: Tensor) -> Tensor:
        """[…] Å, […] int64 → […,K] float32."""
        pair_type = pair_type.flatten()
        mul, bias = (table(pair_type).float().squeeze(-1) for table in (self.mul, self.bias))
        mean, std = (all_rows(table).float().view(-1) for table in (self.means, self.stds))
        u = mul * distance.flatten().float() + bias
        return gaussian_basis(u, mean, std.abs() + self.min_sigma).unflatten(0, distance.shape)


class UniformEmbedding(nn.Embedding):
    """An embedding that starts uniform in [low, high].

    A class of its own, because an initialiser that goes through modules would take a plain
    embedding for one of tokens: the very accident of the official code.
    """

    def __init__(self, rows: int, width: int, low: float, high: float):
        self.low, self.high = low, high
        super().__init__(rows, width)

    def reset_parameters(self) -> None:
        """Draw the start."""
        nn.init.uniform_(self.weight, self.low, self.high)


class GaussianHead(nn.Module):
    """K Gaussians → K → GELU → one bias per head."""

    def __init__(self, num_gaussians: int, num_heads: int):
        super().__init__()
        self.linear1 = nn.Linear(num_gaussians, num_gaussians)
        self.linear2 = nn.Linear(num_gaussians, num_heads)

    def forward(self, features: Tensor) -> Tensor:
        """[…,K] → […,H]."""
        return self.linear2(F.gelu(self.linear1(features)))
