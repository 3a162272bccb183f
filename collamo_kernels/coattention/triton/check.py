"""Run every configuration of this machine against the reference: ``collamo doctor --gpu here``.

    python -m collamo_kernels.coattention.triton.check bfloat16 32

checks those of one type and padded width, and prints a line of JSON for each. `check_gpu` runs such
processes side by side: one illegal access ends all CUDA work of its process, and compiling takes
most of the time.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton import trust
from collamo_kernels.coattention.triton.trust import Choice
from collamo_kernels.testing import (
    Case,
    assert_all_accurate,
    attend,
    attend_eagerly,
    make_inputs,
    with_gradients,
)

# Molecules that make the launcher choose a bucket.
SIZES: dict[configuration.Bucket, tuple[int, ...]] = {
    32: (31, 20, 32),
    64: (64, 40, 33),
    128: (128, 65, 127),
    configuration.TWO_OF_32: (33, 64, 40),  # taken where 64 is refused
    configuration.LOOP: (129, 65, 90),
}
WORKERS = 4  # processes on one GPU at a time
LIMIT = 110  # s, of all processes
NOT_CHECKED = "not checked"  # for lack of time; it is taken as before


class Verdict(NamedTuple):
    """What a check found of one configuration; `error` is None where it is right."""

    choice: Choice
    error: str | None


def verdict_on(choice: Choice, device: str, heads: int = 4) -> Verdict:
    """Compare results and all gradients with the reference, for random data."""
    width = 3 * choice.width // 4  # some of the tile is padding
    case = Case("check", SIZES[choice.bucket], heads=heads, width=width, bias=True, sink=True)
    try:
        inputs = make_inputs(case, choice.dtype, device)
        exact = with_gradients(lambda x: attend(x, backend="reference"), inputs.double())
        yardstick = with_gradients(attend_eagerly, inputs)
        actual = with_gradients(lambda x: attend(x, "packed", backend="triton"), inputs)
        assert_all_accurate(actual, yardstick, exact)
    except Exception as error:  # a compiler's, a driver's or ours: it must not be taken
        return Verdict(choice, f"{type(error).__name__}: {error}".splitlines()[0])
    return Verdict(choice, None)


def check_gpu(device: torch.device) -> list[Verdict]:
    """Check every configuration that this machine takes, and record those that failed."""
    groups = [(x, y) for x in configuration.DTYPES for y in configuration.WIDTHS]
    machine = trust.machine_of(device)
    trust.record(machine, [])  # what failed before is tried again
    deadline = time.monotonic() + LIMIT

    def check(group: tuple[torch.dtype, int]) -> list[Verdict]:
        dtype, width = group
        return _check_apart(dtype, width, device, deadline)

    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        checked = list(pool.map(check, groups))
    verdicts = list(itertools.chain.from_iterable(checked))
    failed = [(x, error) for x, error in verdicts if error and not error.startswith(NOT_CHECKED)]
    trust.record(machine, failed)
    return verdicts


def choices(dtype: torch.dtype, width: int, device: torch.device) -> list[Choice]:
    """Return the configurations that are taken for such heads."""
    buckets = configuration.buckets(width, dtype)
    refused = trust.refused(device, width, dtype)
    return [Choice(dtype, width, x) for x in buckets if x not in refused]


def _check_apart(
    dtype: torch.dtype, width: int, device: torch.device, deadline: float
) -> list[Verdict]:
    """Check in a process of its own; what it did not get to has failed."""
    name = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-m", __name__, name, str(width), str(device)]
    left = max(0.1, deadline - time.monotonic())
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        output = done.stdout
        ending = f"its process ended with {done.returncode}: {done.stderr[-300:].strip()}"
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        ending = f"{NOT_CHECKED} after {LIMIT} s"
    found = dict(json.loads(line) for line in output.splitlines() if line.startswith('["'))
    return [Verdict(x, found.get(x.key(), ending)) for x in choices(dtype, width, device)]


def main(arguments: list[str]) -> None:
    """Print a verdict a line."""
    name, width, device = arguments
    for choice in choices(getattr(torch, name), int(width), torch.device(device)):
        verdict = verdict_on(choice, device)
        print(json.dumps([verdict.choice.key(), verdict.error]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
