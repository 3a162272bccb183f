"""How a padded batch is encoded without its padding, and without a record for gradients."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from collamo_kernels import Relations

#: Molecules share a block when their sizes, rounded up to a multiple of this, are equal. On a CPU
#: that is no padding at all for a wide encoder: 1, 2, 4 and 8 gave 1.46, 1.50, 1.52 and 1.69 s with
#: 512 channels. A narrow one waits for calls, not for products: 1, 4, 8 and 16 gave a step of
#: training with 64 channels in 553, 520, 464 and 521 ms. Elsewhere fewer, larger products (our
#: choice, not measured on a GPU).
STEP_ON_CPU, STEP_OF_NARROW, STEP_ELSEWHERE = 1, 8, 16
NARROW = 128  # channels


@dataclass(frozen=True)
class SizeBlocks:
    """A padded batch [B,T] cut into blocks of molecules of one size, laid end to end.

    What works token by token sees one tensor [M,…], what works on pairs goes block by block. 64
    PubChem molecules padded to the longest are 5,632 tokens and 495,616 pairs of tokens; cut up
    they are 1,935 and 80,019.

    Attributes
    ----------
    sizes
        (molecules b, tokens n of each) per block; M = Σ b·n.
    place
        [M] int64: where in the flattened [B·T] each packed token stands.
    real
        [M] bool, False for a token of padding inside a block.
    relations
        Per block its real tokens as attention takes them; None where all are.
    shape
        (B, T).
    """

    sizes: tuple[tuple[int, int], ...]
    place: Tensor
    real: Tensor
    relations: tuple[Relations | None, ...]
    shape: tuple[int, int]

    @classmethod
    def of(cls, real: Tensor, width: int) -> SizeBlocks:
        """Cut by `real` [B,T] bool; a molecule without a real token is in no block.

        A molecule ends with its last real token, rounded up as suits an encoder of `width`
        channels on this device.
        """
        batch, length = real.shape
        on_cpu = STEP_OF_NARROW if width <= NARROW else STEP_ON_CPU
        step = on_cpu if real.device.type == "cpu" else STEP_ELSEWHERE
        column = torch.arange(length, device=real.device)
        ends = ((column + 1) * real).amax(1) if length else column.new_zeros(batch)
        rounded = (ends.add(step - 1) // step * step).clamp(max=length)
        rounded, molecules = rounded.sort(stable=True)
        each, counts = rounded.unique_consecutive(return_counts=True)
        counts, each = counts.tolist(), each.tolist()
        parts = zip(molecules.split(counts), each, strict=True)
        places = [(m[:, None] * length + column[:n]).flatten() for m, n in parts]
        place = torch.cat([*places, column[:0]])
        sizes = tuple((b, n) for b, n in zip(counts, each, strict=True) if n)
        packed = real.flatten()[place]
        shares = packed.split([b * n for b, n in sizes])
        whole = torch.stack([x.all() for x in shares]).tolist() if sizes else []
        relations = tuple(
            None if every else Relations(valid=x.view(size))
            for x, size, every in zip(shares, sizes, whole, strict=True)
        )
        return cls(sizes, place, packed, relations, (batch, length))

    def pack(self, x: Tensor) -> Tensor:
        """[B,T,…] → [M,…]."""
        return x.flatten(0, 1)[self.place]

    def pad(self, x: Tensor) -> Tensor:
        """[M,C] → [B,T,C], zero where no token is real."""
        batch, length = self.shape
        out = x.new_zeros(batch * length, x.shape[1])
        x = torch.where(self.real[:, None], x, 0.0)
        return out.index_copy(0, self.place, x).unflatten(0, self.shape)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """[M,…] → [b·n,…] per block."""
        return x.split([b * n for b, n in self.sizes])

    def pairs(self, x: Tensor) -> list[Tensor]:
        """[B,T,T] → [b,n,n] per block."""
        blocks = zip(self._molecules(), self.sizes, strict=True)
        return [x[molecules, :n, :n] for molecules, (_, n) in blocks]

    def pad_pairs(self, parts: list[Tensor], channels: int) -> Tensor:
        """[b,channels,n,n] per block → [B,T,T,channels], zero where either is not real."""
        batch, length = self.shape
        shape = batch, length, length, channels
        dtype = parts[0].dtype if parts else torch.float32
        out = torch.zeros(shape, dtype=dtype, device=self.place.device)
        blocks = zip(self._molecules(), self.sizes, self.relations, parts, strict=True)
        for molecules, (_, n), relations, part in blocks:
            part = part.permute(0, 2, 3, 1)
            if relations is not None:
                valid = relations.valid
                both = valid[:, :, None] & valid[:, None, :]
                part = torch.where(both[..., None], part, 0.0)
            rows = torch.arange(n, device=out.device)
            out[molecules[:, None, None], rows[:, None], rows] = part
        return out

    def _molecules(self) -> list[Tensor]:
        """Per block the numbers of its molecules, [b] int64."""
        starts = zip(self.split(self.place), self.sizes, strict=True)
        return [place[::n] // self.shape[1] for place, (_, n) in starts]


def frozen_mode(module: nn.Module, *inputs: Tensor) -> contextlib.AbstractContextManager:
    """Return inference mode where no gradient can be asked for, else a context that does nothing.

    Inference mode also spares the counting of versions and views that `torch.no_grad` keeps up, but
    its results must not meet autograd, which cannot save them for a backward pass. So encoders
    leave the mode before they pad: the padded copies, made anyway, are ordinary tensors.
    """
    learns = any(p.requires_grad for p in module.parameters())
    if torch.is_grad_enabled() and (learns or any(x.requires_grad for x in inputs)):
        return contextlib.nullcontext()
    return torch.inference_mode()
