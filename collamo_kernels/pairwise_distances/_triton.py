"""Backend 'triton': distances on a GPU, or in Triton's interpreter on the CPU (for tests).

Triton is imported by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from collamo_kernels.coattention.triton.backend import INTERPRETED, why_not_on
from collamo_kernels.pairwise_distances import op
from collamo_kernels.pairwise_distances.call import DistancesCall
from collamo_kernels.triton_library import on_its_gpu

if TYPE_CHECKING:
    from triton import JITFunction

BLOCK = 32  # atoms by atoms of a tile
NUM_WARPS = 4


def unsupported(call: DistancesCall) -> str | None:
    """Return why the Triton kernels cannot serve the call, or None."""
    coordinates = call.coordinates
    device = coordinates.device
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"coordinates is on {device}; this backend runs on a GPU (or set TRITON_INTERPRET=1)"
    if coordinates.dtype == torch.float64:
        return "float64 runs the reference"
    return why_not_on(device, coordinates.dtype)


def run(call: DistancesCall) -> Tensor:
    """Call the operator."""
    return torch.ops.collamo_kernels.pairwise_distances_triton(call.coordinates, call.valid)


def run_forward(coordinates: Tensor, valid: Tensor | None) -> Tensor:
    """Launch what the forward operator stands for: a program a tile."""
    from collamo_kernels.pairwise_distances import _triton_kernels as kernels

    molecules, atoms, _ = coordinates.shape
    distances = coordinates.new_empty((molecules, atoms, atoms))
    tiles = -(-atoms // BLOCK)
    if distances.numel():
        grid = (molecules * tiles, tiles)
        _launch(kernels.measure, grid, coordinates, valid, distances)
    return distances


def run_backward(grad: Tensor, coordinates: Tensor, valid: Tensor | None) -> Tensor:
    """Launch what the backward operator stands for: a program for the atoms of a tile."""
    from collamo_kernels.pairwise_distances import _triton_kernels as kernels

    molecules, atoms, _ = coordinates.shape
    gradient = coordinates.new_empty(coordinates.shape)
    if gradient.numel():
        grid = (molecules * -(-atoms // BLOCK),)
        _launch(kernels.pull, grid, coordinates, valid, grad.contiguous(), gradient)
    return gradient


def _launch(
    kernel: JITFunction,
    grid: tuple[int, ...],
    coordinates: Tensor,
    valid: Tensor | None,
    *arrays: Tensor,
) -> None:
    from collamo_kernels.triton_launch import Launch

    real = None if valid is None else valid.contiguous().view(torch.uint8)
    launch = Launch(kernel, grid, NUM_WARPS, atoms=coordinates.shape[1], BLOCK=BLOCK)
    launch(coordinates.contiguous(), real, *arrays)


SCHEMA = "(Tensor coordinates, Tensor? valid) -> Tensor"
BACKWARD_SCHEMA = "(Tensor grad, Tensor coordinates, Tensor? valid) -> Tensor"
NAME = "pairwise_distances_triton"
for name, function, schema in (
    (NAME, run_forward, SCHEMA),
    (f"{NAME}_backward", run_backward, BACKWARD_SCHEMA),
):
    torch.library.custom_op(
        f"collamo_kernels::{name}", on_its_gpu(function), mutates_args=(), schema=schema
    )
op.register(NAME)
