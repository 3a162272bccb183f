"""The 1D encoder: SELFIES tokens with their positions."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from collamo.data.batch import MoleculeBatch
from collamo.model.configuration import SelfiesEncoderConfig


class SelfiesEncoder(nn.Module):
    """z_t = LayerNorm(E_token[id_t] + E_position[t]), the paper's SELFIES embedding.

    Order matters to the attention that follows, and attention alone does not see it; hence the
    positions.
    """

    def __init__(self, config: SelfiesEncoderConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, selfies_ids: Tensor, valid: Tensor) -> Tensor:
        """Encode padded token ids.

        [B,L] int64 ids, [B,L] bool (True = real token) → [B,L,C], zero in padding. Positions past
        the last share it.
        """
        last = self.position_embedding.num_embeddings - 1
        position = torch.arange(selfies_ids.shape[1], device=selfies_ids.device).clamp(max=last)
        z = self.norm(self.token_embedding(selfies_ids) + self.position_embedding(position))
        return torch.where(valid[..., None], self.dropout(z), 0.0)

    def encode(
        self, molecules: MoleculeBatch, numbers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the one level of the tokens of flat `molecules`: 0, [B,L,C]."""
        return {0: self(molecules.selfies_ids, molecules.valid("1d"))}
