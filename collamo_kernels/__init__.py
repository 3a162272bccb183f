"""collamo_kernels: relation-biased attention over molecules, fast, on CPU and GPU.

``softmax(QKᵀ/√d + Φ2d + Φ3d) V`` with Φ2d looked up by the number of bonds between two atoms and
Φ3d a learned function of their distance. Needs torch; knows no chemistry and no language model.
"""

from collamo_kernels.backends import BACKENDS, BackendError, explain, use_backend
from collamo_kernels.coattention import (
    CoAttention,
    coattention,
    share_bias,
    tabulated_together,
)
from collamo_kernels.extension import build_info
from collamo_kernels.gaussian_basis import gaussian_basis
from collamo_kernels.neighbour_sum import neighbour_sum
from collamo_kernels.pair_bias_attention import pair_bias_attention
from collamo_kernels.pairwise_distances import pairwise_distances
from collamo_kernels.radial import GaussianRadial, RadialTable
from collamo_kernels.radius_graph import radius_graph
from collamo_kernels.relations import Relations
from collamo_kernels.shortest_paths import shortest_paths

# Now, because torch.compile cannot trace an import. None of them imports what is optional.
for _rows in BACKENDS.values():
    for _row in _rows:
        _row.load()

__all__ = [
    "BackendError",
    "CoAttention",
    "GaussianRadial",
    "RadialTable",
    "Relations",
    "build_info",
    "coattention",
    "explain",
    "gaussian_basis",
    "neighbour_sum",
    "pair_bias_attention",
    "pairwise_distances",
    "radius_graph",
    "share_bias",
    "shortest_paths",
    "tabulated_together",
    "use_backend",
]
