"""Backend 'cuda': csrc/shortest_paths/cuda.cu, a search of 64 targets at a time on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import REINSTALL, build_info, why_absent
from collamo_kernels.shortest_paths import op  # noqa: F401  registers the shape of the result
from collamo_kernels.shortest_paths.call import ShortestPathsCall
from collamo_kernels.shortest_paths.checks import check_contents


def unsupported(call: ShortestPathsCall) -> str | None:
    """Return why the search on a GPU cannot serve the call, or None."""
    if call.edge_index.device.type != "cuda":
        return f"edge_index is on {call.edge_index.device}; this backend runs on a GPU"
    if why_absent() is None and not build_info()["cuda"]:
        return (
            f"the extension was built without CUDA; where nvcc is: COLLAMO_FORCE_CUDA=1 {REINSTALL}"
        )
    return why_absent()


def run(call: ShortestPathsCall) -> Tensor:
    """Call the operator.

    The operator wants the edges molecule by molecule, as PyG makes them, and says when they are
    not. Where nobody can wait for its answer they are sorted first.
    """
    search = torch.ops.collamo_kernels.shortest_paths
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return search(_molecule_by_molecule(call.edge_index), call.ptr, call.packed, call.size)
    try:
        return search(call.edge_index, call.ptr, call.packed, call.size)
    except ValueError:
        check_contents(call)
        return search(_molecule_by_molecule(call.edge_index), call.ptr, call.packed, call.size)


def _molecule_by_molecule(edge_index: Tensor) -> Tensor:
    return edge_index[:, edge_index[0].argsort()]
