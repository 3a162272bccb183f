"""Is each configuration of the Triton attention right on this GPU? The first rows of a GPU's run.

    python benchmarks/buckets.py bfloat16 32
    python benchmarks/buckets.py bfloat16 32 doubted

prints a row a configuration of that type and padded width, as `collamo doctor --gpu here` checks
it: the ones this machine takes, or those that `collamo_kernels.coattention.triton.trust` doubts
there by its rule, which are wrong or right to know, but taken by nobody.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import measurements
import torch
from pieces import Piece, python

SHIPPED, DOUBTED = "shipped", "doubted"
DEVICE = "cuda"
DTYPES = ("bfloat16", "float16", "float32")
WIDTHS = (32, 16, 64, 128)  # the benchmarks' first
SECONDS = 150.0  # of a piece: it compiles some 25 kernels, of which each takes about a second


def pieces(
    dtypes: tuple[str, ...] = DTYPES, widths: tuple[int, ...] = WIDTHS, seconds: float = SECONDS
) -> list[Piece]:
    """Return a piece for each type and width, and those for what is doubted behind them."""
    return [
        Piece(
            f"bucket {dtype} {width} {kind}",
            python("benchmarks/buckets.py", dtype, str(width), kind),
            {"OMP_NUM_THREADS": "2"},
            seconds,
        )
        for kind in (SHIPPED, DOUBTED)
        for dtype in dtypes
        for width in widths
        if kind == SHIPPED or dtype != "float32"  # float32 has no product that is doubted
    ]


def check(dtype: str, width: int, kind: str = SHIPPED) -> Iterator[dict]:
    """Check configurations on the GPU here; a row each."""
    from collamo_kernels.coattention.triton import check, trust

    device = torch.device(DEVICE, torch.cuda.current_device())
    chosen = check.choices(getattr(torch, dtype), width, device)
    if kind == DOUBTED:
        taken = chosen
        trust.DOUBTED = ()  # in this process alone
        trust.refused.cache_clear()
        every = check.choices(getattr(torch, dtype), width, device)
        chosen = [choice for choice in every if choice not in taken]
    for choice in chosen:
        start = time.monotonic()
        error = check.verdict_on(choice, DEVICE).error
        yield {
            "dtype": dtype,
            "width": width,
            "bucket": choice.bucket,
            "doubted": "yes" if kind == DOUBTED else "no",
            "right": "no" if error else "yes",
            "seconds": f"{time.monotonic() - start:.1f}",
            "note": error or "",
        }


def avoid_wrong(folder: Path, gpu: str) -> list[str]:
    """Have this machine take no configuration that was found wrong; say which."""
    rows = measurements.rows_of_these_sources(folder, "buckets", gpu)
    wrong = [row for row in rows if (row["right"], row["doubted"]) == ("no", "no")]
    if not wrong:
        return []
    from collamo_kernels.coattention.triton import trust

    def choice(row: dict) -> trust.Choice:
        bucket = int(row["bucket"]) if row["bucket"].isdigit() else row["bucket"]
        return trust.Choice(getattr(torch, row["dtype"]), int(row["width"]), bucket)

    machine = trust.machine_of(torch.device(DEVICE, torch.cuda.current_device()))
    failed = [(choice(row), row["note"]) for row in wrong]
    trust.record(machine, failed)
    return [f"WRONG, and no longer taken: {each.key()}: {reason}" for each, reason in failed]


if __name__ == "__main__":
    for row in check(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]):
        measurements.tell("buckets", [row])
