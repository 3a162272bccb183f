# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where does the time go?
#
# What attention with bonds and distances costs on your own molecules compared with the alternatives,
# which of its parts take the time, and when another attention is the better choice. The figures on
# this page come from whatever machine built it, so compare ratios only;
# [Performance](../performance.md) has figures from a machine that is described.

# %%
import torch
from IPython.display import SVG
from torch.profiler import ProfilerActivity, profile

import collamo_kernels as ck
from collamo.benchmark import Shape, compare, measure, read_molecules, workloads_of
from collamo.benchmark.pictures import picture
from collamo.cli.bench import show_table

print("C++:", ck.build_info()["extension"], "- on", torch.backends.cpu.get_cpu_capability())

# %% [markdown]
# ## Your molecules
#
# Replace `None` by the name of your file, an SDF or any other that `collamo prepare` reads. `None`
# takes the NCI molecules that come with RDKit.

# %%
batch, left_out = read_molecules(None, 24)
print(batch, left_out)

# %% [markdown]
# ## Beside its rivals
#
# Every answer is checked before it is timed, and the rivals take turns. SDPA gets the bias of all
# pairs ready-made and free of charge; the cost of building it is part of the time of `reference`, the
# formula in plain PyTorch. On the command line this is `collamo bench`.
#
# A batch as small as this one is dominated by what does not grow with it: the table of Φ3d is built
# once per step, for 24 molecules as for 240, and SDPA needs none. Take as many molecules as you train
# on.

# %%
shape = Shape(heads=8, width=16)
rows = {}
for workload in workloads_of(batch, shape):
    measured = [
        row | {"threads": torch.get_num_threads()}
        for row in measure(workload, rounds=7, seconds=1.0)
    ]
    rows.setdefault(workload.operation, []).extend(measured)
    show_table(workload.operation, compare(measured, []))

# %%
SVG(picture(rows["coattention"]))

# %%
SVG(picture(rows["shortest_paths"]))

# %% [markdown]
# ## By part of a step
#
# torch's profiler on one layer, forward and backward. The operators of this package are called
# `collamo_kernels::…`; the rest are the linear layers around them.

# %%
layer = ck.CoAttention(embed_dim=shape.heads * shape.width, num_heads=shape.heads)
relations = ck.Relations.from_graphs(batch.edges, batch.ptr, batch.coordinates.detach())
x = torch.randn(*relations.valid.shape, layer.embed_dim)


def step():
    """One forward and backward pass."""
    layer(x, relations).square().mean().backward()


step()
with profile(activities=[ProfilerActivity.CPU]) as profiled:
    for _ in range(5):
        step()
print(
    profiled.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=44
    )
)

# %% [markdown]
# ## Which backend ran, and why not another
#
# `explain` answers for any call.

# %%
q, k, v = torch.randn(3, len(batch.sizes), shape.heads, x.shape[1], shape.width).unbind()
phi = {"hop_bias": layer.hop_bias, "radial": layer.radial}
_ = ck.explain(ck.coattention, q, k, v, relations=relations, **phi)

# %% [markdown]
# ## Keep the figures
#
# `collamo bench --sdf my.sdf --out measured` adds rows to a CSV per operation, and
# `--compare measured` sets them beside the next run. In the repository, `make bench` does so for
# every operation and for a training step.
