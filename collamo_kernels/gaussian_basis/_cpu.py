"""Backend 'cpu': csrc/gaussian_basis, one pass forward and one backward."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.gaussian_basis import op  # noqa: F401  registers gradients
from collamo_kernels.gaussian_basis.call import GaussianBasisCall


def unsupported(call: GaussianBasisCall) -> str | None:
    """Return why the compiled kernel cannot serve the call, or None."""
    u = call.u
    if u.device.type != "cpu":
        return f"u is on {u.device}; this backend runs on the CPU"
    if u.dtype != torch.float32:
        return f"u is {u.dtype}; this backend takes float32, the reference any"
    return why_absent()


def run(call: GaussianBasisCall) -> Tensor:
    """Call the operator."""
    return torch.ops.collamo_kernels.gaussian_basis(call.u, call.centre, call.width)
