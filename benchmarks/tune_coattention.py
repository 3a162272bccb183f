"""What each choice of warps takes of a GPU, for the table in `configuration`.

    python benchmarks/tune_coattention.py > tune.csv

compiles the attention, forward and backward, for every bucket, width and dtype with 1 to 16 warps,
and writes registers, spilled bytes and shared memory on sm_80 and sm_90. Where there is a GPU it
also times each choice on real molecules, once its answer has been checked, and marks the fastest.
The shipped table is edited by hand: a choice is a commit with its reason.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator

import torch

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton import launch as launch
from collamo_kernels.coattention.triton.ahead import TYPES, attention
from collamo_kernels.testing import (
    Case,
    Inputs,
    assert_accurate,
    attend,
    attend_eagerly,
    make_inputs,
    with_gradients,
)

WARPS = (1, 2, 4, 8, 16)
CAPABILITIES = 80, 90
# Atoms, from and to.
SIZES = {32: (20, 32), 64: (40, 64), 128: (70, 128), configuration.LOOP: (12, 100)}
SIZES[configuration.TWO_OF_32] = SIZES[64]
COLUMNS = ("pass", "bucket", "width", "dtype", "warps", "shipped")
COLUMNS += tuple(f"sm_{c} {x}" for c in CAPABILITIES for x in ("REG", "STACK", "SHARED"))
COLUMNS += ("median_us", "fastest")


def choices(forward: bool) -> Iterator[tuple[configuration.Bucket, int, torch.dtype, list]]:
    """Yield every bucket, width and dtype, and the configurations that compete for it."""
    shipped = configuration.forward if forward else configuration.backward
    for dtype in (torch.bfloat16, torch.float32):
        for width in configuration.WIDTHS:
            for bucket in configuration.buckets(width, dtype):
                now = shipped(bucket, width, dtype)
                yield bucket, width, dtype, [dataclasses.replace(now, num_warps=w) for w in WARPS]


def inputs_of(bucket: configuration.Bucket, width: int, dtype: torch.dtype) -> Inputs:
    """256 molecules that fill the bucket, 8 heads."""
    low, high = SIZES[bucket]
    sizes = torch.randint(low, high + 1, (256,), generator=torch.Generator().manual_seed(0))
    case = Case("tune", tuple(sizes.tolist()), 8, width, 64, gaussians=128, head="mlp")
    inputs = make_inputs(case, dtype, "cuda")
    inputs.relations.prepare()
    return inputs


def time_with(chosen: configuration.Configuration, forward: bool, inputs: Inputs) -> float:
    """Median µs of the forward pass, or of forward and backward, with this configuration."""
    import triton

    name = "forward" if forward else "backward"
    before = getattr(launch.configuration, name)
    setattr(launch.configuration, name, lambda *_: chosen)
    try:
        out = attend(inputs, "packed", backend="triton")
        exact = attend(inputs.double(), "packed", backend="reference")
        assert_accurate(out, attend_eagerly(inputs), exact)

        def run() -> object:
            if forward:
                with torch.no_grad():
                    return attend(inputs, "packed", backend="triton")
            return with_gradients(lambda x: attend(x, "packed", backend="triton"), inputs)

        return 1e3 * triton.testing.do_bench(run, return_mode="median")
    finally:
        setattr(launch.configuration, name, before)


def rows() -> Iterator[dict]:
    """Yield a row for each choice."""
    for forward in (True, False):
        shipped = configuration.forward if forward else configuration.backward
        for bucket, width, dtype, competing in choices(forward):
            measured = []
            inputs = inputs_of(bucket, width, dtype) if torch.cuda.is_available() else None
            for chosen in competing:
                row = {"pass": "forward" if forward else "backward", "bucket": bucket}
                row |= {"width": width, "dtype": TYPES[dtype], "warps": chosen.num_warps}
                row["shipped"] = int(chosen == shipped(bucket, width, dtype))
                for capability in CAPABILITIES:
                    used = attention(bucket, width, dtype, forward, chosen).compile(capability)
                    row |= {f"sm_{capability} {x}": number for x, number in used.items()}
                if inputs is not None:
                    row["median_us"] = round(time_with(chosen, forward, inputs), 1)
                measured.append(row)
            if inputs is not None:
                min(measured, key=lambda row: row["median_us"])["fastest"] = 1
            yield from measured


def main() -> None:
    """Write the table."""
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows():
        writer.writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
