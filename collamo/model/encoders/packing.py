"""How a padded batch is encoded without its padding, and without a record for gradients."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collamo_kernels import Relations


@dataclass(frozen=True)
class Packing:
    """A padded batch [B,T] without its padding: the tokens of all molecules end to end.

    64 PubChem molecules padded to the longest are 5,632 tokens and 495,616 pairs of tokens; packed
    they are 1,935 and 80,019.

    Attributes
    ----------
    shape
        (B, T).
    place
        [M] int64: where in the flattened [B·T] each real token stands.
    pair_place
        [P] int64: where in the flattened [B·T·T] each pair of real tokens of a molecule stands,
        molecule after molecule, row-major.
    relations
        Where the molecules are, as attention takes it.
    """

    shape: tuple[int, int]
    place: Tensor
    pair_place: Tensor
    relations: Relations

    @classmethod
    def without_padding(cls, real: Tensor) -> Packing:
        """Leave out the tokens that are not `real` [B,T] bool."""
        pairs = real[:, :, None] & real[:, None, :]
        ends = F.pad(real.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
        place, pair_place = (x.flatten().nonzero().squeeze(1) for x in (real, pairs))
        return cls((real.shape[0], real.shape[1]), place, pair_place, Relations(cu_seqlens=ends))

    def pack(self, x: Tensor) -> Tensor:
        """[B,T] → [M]."""
        return x.flatten()[self.place]

    def pack_pairs(self, x: Tensor) -> Tensor:
        """[B,T,T] → [P]."""
        return x.flatten()[self.pair_place]

    def pad(self, x: Tensor) -> Tensor:
        """[M,C] → [B,T,C], zero in padding."""
        batch, length = self.shape
        out = x.new_zeros(batch * length, x.shape[1])
        return out.index_copy_(0, self.place, x).unflatten(0, self.shape)

    def pad_pairs(self, x: Tensor) -> Tensor:
        """[H,P] → [B,T,T,H], zero where either is padding."""
        batch, length = self.shape
        out = x.new_zeros(batch * length * length, x.shape[0])
        return out.index_copy_(0, self.pair_place, x.t()).view(batch, length, length, x.shape[0])


def frozen_mode(module: nn.Module, *inputs: Tensor) -> contextlib.AbstractContextManager:
    """Return inference mode where no gradient can be needed, else a context that does nothing.

    Inference mode also spares the counting of versions and views that `torch.no_grad` keeps up, but
    its results must not meet autograd, which cannot save them for a backward pass. So encoders
    leave the mode before they pad: the padded copies, made anyway, are ordinary tensors.
    """
    learns = any(p.requires_grad for p in module.parameters())
    if torch.is_grad_enabled() and (learns or any(x.requires_grad for x in inputs)):
        return contextlib.nullcontext()
    return torch.inference_mode()
