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
# What attention with bonds and distances costs on molecules of your own, beside what else there
# is; which of its parts that is; and when another attention is the better choice. The figures of
# this page are of whatever machine made it: compare ratios. [Performance](../performance.md) has
# those of a machine that is known.

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
# Put the name of your file in the place of `None`: SDF, or any that `collamo prepare` reads. `None`
# takes molecules of the NCI that come with RDKit.

# %%
batch, left_out = read_molecules(None, 24)
print(batch, left_out)

# %% [markdown]
# ## Beside its rivals
#
# Every answer is checked before it is timed, and all take turns. SDPA is given the bias of all
# pairs ready-built, for nothing: what it would cost to build is in the formula's time, which is
# called `reference`. On a command line this is `collamo bench`.
#
# So small a batch shows what does not grow with it: the table of Φ3d is made once per step, for 24
# molecules as for 240, and SDPA needs none. Take as many molecules as your training does.

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
# torch's profiler on one layer, forward and backward. The operators of this package are
# `collamo::…`; the rest is the linear layers around them.

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
ck.explain(
    ck.coattention, q, k, v, relations=relations, hop_bias=layer.hop_bias, radial=layer.radial
)

# %% [markdown]
# ## Keep the figures
#
# `collamo bench --sdf my.sdf --out measured` adds rows to a CSV per operation, and
# `--compare measured` sets them beside the next run. In the repository, `make bench` does so for
# every operation and for a training step.
