"""Peak extra memory of one call, measured from outside in a process of its own.

    python benchmarks/memory.py bench_coattention extra_memory ours

prints how many MiB the resident set rose above what stood before the call, at its highest. Linux
only: the high-water mark is reset by writing to /proc/self/clear_refs. It counts everything that
was touched, tensors and a kernel's own scratch alike, which torch's profiler would not see. The
function (of `module`, given the remaining words) prepares the inputs, runs a small case of its own
to load what is loaded lazily, and returns the call.
"""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import sys
from pathlib import Path

RESET_PEAK = "5"


def extra_mib(module: str, function: str, *words: str) -> str:
    """Run this file in a fresh process and return MiB, or "" where that cannot be measured."""
    if not Path("/proc/self/clear_refs").exists():
        return ""
    command = [sys.executable, __file__, module, function, *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return answer.stdout.split()[-1]


def _status(key: str) -> int:
    """One of the sizes of /proc/self/status, KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}; this needs Linux")


def main(module: str, function: str, *words: str) -> None:
    """Measure one call and print MiB."""
    call = getattr(importlib.import_module(module), function)(*words)
    ctypes.CDLL(None).malloc_trim(0)  # else the call could reuse pages that preparing it left over
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = _status("VmRSS")
    kept = call()
    print(f"{(_status('VmHWM') - before) / 1024:.4g}")
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:])
