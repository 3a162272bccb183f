"""Which weights of the attention dropout drops: a counter-based stream, the same everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF


def drawn(dropout_p: float, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Return seed and p as the operators take them, int64 and float64 ``[1]``; None without.

    Drawn where F.dropout would draw, so torch.manual_seed decides; on the device, so that nobody
    waits for the number.
    """
    if not dropout_p > 0:
        return None, None
    seed = torch.randint(2**63 - 1, (1,), device=device)
    # A product: a compiled graph keeps p a number of its own in one, not in `torch.full`.
    return seed, torch.ones(1, dtype=torch.float64, device=device) * dropout_p


def dropout_factors(seed: Tensor, shape: torch.Size, dropout_p: float) -> Tensor:
    """0 or 1/(1 - p) for each weight ``[B, H, i, j]``: the definition for every backend.

    A weight is kept where the first word of Philox4x32-10 (Salmon et al. 2011), key = seed, counter
    = (j, i, h, b), is at least p·2³². Atoms are counted by their place in the molecule.
    """
    number = int(seed)
    key = [number & WORD, number >> 32 & WORD]
    b, h, i, j = (torch.arange(n) for n in shape)
    c = [j, i[:, None], h[:, None, None], b[:, None, None, None]]
    for _ in range(10):
        a, d = c[0] * MULTIPLIERS[0], c[2] * MULTIPLIERS[1]  # wraps; the 64 bits are right
        high_a, high_d = a >> 32 & WORD, d >> 32 & WORD
        c = [high_d ^ c[1] ^ key[0], d & WORD, high_a ^ c[3] ^ key[1], a & WORD]
        key = [(k + w) & WORD for k, w in zip(key, WEYL, strict=True)]
    kept = c[0].expand(shape) >= math.floor(dropout_p * 2**32)
    return kept.float() / (1 - dropout_p)
