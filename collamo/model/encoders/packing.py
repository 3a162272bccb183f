"""How a batch is encoded without its padding, and without a record for gradients."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collamo_kernels import Relations


@dataclass(frozen=True)
class Packing:
    """A padded batch [B,T] without its padding: the tokens of all molecules end to end.

    64 PubChem molecules padded to the longest are 5,632 tokens and 495,616 pairs of tokens; packed
    they are 1,935 and 80,019. A graph of torch.compile has the padding all the same: see
    `stays_padded`.

    Attributes
    ----------
    real
        [B,T] bool, the tokens that are no padding.
    place
        [M] int64: where in the flattened [B·T] each real token stands; None with padding, where
        M = B·T.
    pair_place
        [P] int64: where in the flattened [B·T·T] each pair of real tokens of a molecule stands,
        molecule after molecule, row-major; None with padding, where P = B·T·T.
    relations
        Where the molecules are, as attention takes it.
    """

    real: Tensor
    place: Tensor | None
    pair_place: Tensor | None
    relations: Relations

    @classmethod
    def of(cls, real: Tensor) -> Packing:
        """Leave out the tokens that are not `real` [B,T] bool, where that can be."""
        return cls.with_padding(real) if stays_padded() else cls.without_padding(real)

    @classmethod
    def without_padding(cls, real: Tensor) -> Packing:
        """Leave out the tokens that are not `real` [B,T] bool."""
        pairs = real[:, :, None] & real[:, None, :]
        ends = F.pad(real.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
        place, pair_place = (x.flatten().nonzero().squeeze(1) for x in (real, pairs))
        return cls(real, place, pair_place, Relations(cu_seqlens=ends))

    @classmethod
    def with_padding(cls, real: Tensor) -> Packing:
        """Leave everything where it is."""
        relations = Relations.of_equal_sizes(len(real), real.shape[1], real.device)
        return cls(real, None, None, relations)

    def pack(self, x: Tensor) -> Tensor:
        """[B,T] → [M]."""
        return x.flatten() if self.place is None else x.flatten()[self.place]

    def pack_pairs(self, x: Tensor) -> Tensor:
        """[B,T,T] → [P]."""
        return x.flatten() if self.pair_place is None else x.flatten()[self.pair_place]

    def exclude_padding(self, bias: Tensor) -> Tensor:
        """[H,P] → [H,P], -∞ where a token of the pair is padding: nobody attends to it."""
        if self.pair_place is not None:
            return bias
        return bias.masked_fill(~self._real_pairs().flatten(), -math.inf)

    def pad(self, x: Tensor) -> Tensor:
        """[M,C] → [B,T,C], zero in padding."""
        if self.place is None:
            return torch.where(self.real[..., None], x.unflatten(0, self.real.shape), 0.0)
        out = x.new_zeros(self.real.numel(), x.shape[1])
        return out.index_copy_(0, self.place, x).unflatten(0, self.real.shape)

    def pad_pairs(self, x: Tensor) -> Tensor:
        """[H,P] → [B,T,T,H], zero where either is padding."""
        batch, length = self.real.shape
        shape = (batch, length, length, x.shape[0])
        if self.pair_place is None:
            return torch.where(self._real_pairs()[..., None], x.t().reshape(shape), 0.0)
        out = x.new_zeros(batch * length * length, x.shape[0])
        return out.index_copy_(0, self.pair_place, x.t()).view(shape)

    def _real_pairs(self) -> Tensor:
        return self.real[:, :, None] & self.real[:, None, :]


def stays_padded() -> bool:
    """Whether a batch keeps its padding: in a graph of torch.compile or torch.export.

    How much of a batch is padding only its numbers say, and each size that depends on numbers cuts
    a compiled graph in two: there were 61 cuts, and no export. With its padding a batch is one
    graph for all sizes. What that costs is in docs/performance.md.
    """
    return torch.compiler.is_compiling()


def frozen_mode(module: nn.Module, *inputs: Tensor) -> contextlib.AbstractContextManager:
    """Return inference mode where no gradient can be needed, else a context that does nothing.

    Inference mode also spares the counting of versions and views that `torch.no_grad` keeps up, but
    its results must not meet autograd, which cannot save them for a backward pass. So encoders
    leave the mode before they pad: the padded copies, made anyway, are ordinary tensors. In a
    compiled graph, where nothing is counted at run time, it is `torch.no_grad`.
    """
    learns = any(p.requires_grad for p in module.parameters())
    if torch.is_grad_enabled() and (learns or any(x.requires_grad for x in inputs)):
        return contextlib.nullcontext()
    return torch.no_grad() if torch.compiler.is_compiling() else torch.inference_mode()


def in_frozen_mode() -> bool:
    """Whether `frozen_mode` is on: never in a compiled graph, which cannot ask for it."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
