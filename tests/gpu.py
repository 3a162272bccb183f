"""Every test that a GPU adds to, and compute-sanitizer: what ``make gpu-test`` runs.

    python tests/gpu.py --out build/gpu-test --seconds 400

runs pieces of the suite side by side, each in a process of its own, because one illegal access ends
all CUDA work of the process that made it. First it asks of every configuration of the attention
whether it is right (`benchmarks/buckets.py`). The folder gets, as soon as there is something to
say:

- ``buckets.csv``: a row a configuration: right or wrong, and how;
- ``tests.csv``: a row a piece: passed, failed or not run;
- ``tests.log``: what all of them print, a line at a time.

No piece is started that has no time left, and what was not run is named. Run again with the same
folder, only what did not pass with these very sources runs.

What needs no GPU is left to ``make test``: the emulated GPU, compiling ahead of time, hypothesis.
Only torch, triton, numpy and pytest may be imported here and by these tests.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import buckets  # noqa: E402
import measurements  # noqa: E402
import torch  # noqa: E402
from pieces import Log, Outcome, Piece, run, stop_when_told  # noqa: E402

SECONDS = 400.0  # with building, seven minutes
WITHOUT_GPU = {"test_properties.py", "test_cuda.py"}
BACKENDS = "reference,cpu,cuda,triton"  # none of them may be skipped
# Half of the processors run pieces, with two threads for torch each.
SETTINGS = {"COLLAMO_TEST_BACKENDS": BACKENDS, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
# Compiling takes a second a kernel, one after the other in a process: so a process a dtype.
TRITON = {
    "bfloat16": "triton and bfloat16",
    "float16": "triton and float16 and not bfloat16",
    "float32": "triton and float32",
    "the rest": "triton and not float16 and not float32",
}
# One tile, several tiles, packed and padded; both tools slow a kernel down tenfold and more.
SANITIZED = ("test_shortest_paths.py", "test_relations.py", "test_pairwise_distances.py")
SANITIZED += ("test_coattention.py",)
FEW = "every_size_equals or sorts_pairs or (triton and accuracy and (around-16 or 127))"
# Tiles of 64 rows in half precision, the only ones whose products are wgmma on Hopper.
WGMMA = "test_triton_on_gpu.py", "tiles_of_64_rows and bfloat16"
SANITIZER_SECONDS = 240.0
# The tool has taken wgmma's operands for larger than they are (compute-sanitizer-samples 19), so
# that what it reports there is for reading.
NOT_COUNTED = {"memcheck, wgmma", "racecheck, wgmma"}


def pytest_of(files: Iterable[str], *options: str) -> tuple[str, ...]:
    """The command that runs some files of tests/kernels, and prints each test as it ends."""
    paths = (str(ROOT / "tests" / "kernels" / name) for name in files)
    command = (sys.executable, "-m", "pytest", "-v", "-rfExX", "-p", "no:cacheprovider")
    return (*command, *paths, *options)


def suites() -> list[Piece]:
    """Every file of tests/kernels, the longest first and in parts."""
    long = "test_coattention.py"

    def piece(name: str, file: str, *options: str) -> Piece:
        return Piece(name, pytest_of([file], *options), SETTINGS)

    parts = [piece(f"test_coattention, Triton, {x}", long, "-k", k) for x, k in TRITON.items()]
    parts.append(piece("test_coattention, others", long, "-k", "not triton"))
    parts.append(piece("test_triton", "test_triton.py", "-k", "TestOnGPU"))
    names = {path.name for path in (ROOT / "tests" / "kernels").glob("test_*.py")}
    rest = sorted(names - WITHOUT_GPU - {long, "test_triton.py"})
    return parts + [piece(name.removesuffix(".py"), name) for name in rest]


def sanitized(tool: str) -> list[Piece]:
    """A few tests under a tool of compute-sanitizer; kernels of PyTorch itself are not checked."""
    options = ("--tool", tool, "--target-processes", "all", "--report-api-errors", "no")
    options += ("--kernel-name-exclude", "kns=2at6native", "--error-exitcode", "9")
    settings = SETTINGS | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    wgmma_file, wgmma = WGMMA
    commands = {
        tool: pytest_of(SANITIZED, "-k", FEW),
        f"{tool}, wgmma": pytest_of([wgmma_file], "-k", wgmma),
    }
    return [
        Piece(name, (compute_sanitizer(), *options, *command), settings, SANITIZER_SECONDS)
        for name, command in commands.items()
    ]


def compute_sanitizer() -> str:
    """Its path: on the PATH, or in the toolkit that nvcc belongs to."""
    nvcc = shutil.which("nvcc")
    toolkits = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    toolkits += [Path(nvcc).resolve().parents[1]] if nvcc else []
    for toolkit in toolkits:
        for folder in ("bin", "compute-sanitizer"):
            path = toolkit / folder / "compute-sanitizer"
            if path.exists():
                return str(path)
    return "compute-sanitizer"


def pieces() -> list[Piece]:
    """Everything, in the order of starting: what answers most first, of the rest the longest."""
    first, *others = (buckets.pieces((dtype,)) for dtype in buckets.DTYPES)
    sanitizers = [piece for tool in ("memcheck", "racecheck") for piece in sanitized(tool)]
    return [*first, *sanitizers, *suites(), *(piece for group in others for piece in group)]


def collected(piece: Piece) -> Piece:
    """The piece that only collects the tests of one: what is tried where there is no GPU."""
    if sys.executable not in piece.command or "pytest" not in piece.command:
        return piece
    command = piece.command[piece.command.index(sys.executable) :]
    return Piece(piece.name, (*command, "--collect-only"), piece.environment)


# --- running them ---------------------------------------------------------------------------------


def run_all(
    chosen: Iterable[Piece],
    folder: Path,
    gpu: str,
    seconds: float = SECONDS,
    workers: int | None = None,
) -> bool:
    """Run pieces side by side, keep and print what each reports; whether all that counts passed."""
    deadline, log = time.monotonic() + seconds, Log(folder / "tests.log")
    before = measurements.rows_of_these_sources(folder, "tests", gpu)
    done = {row["piece"] for row in before if row["passed"] == "yes"}

    def one(piece: Piece) -> Outcome:
        outcome = run(piece, deadline, log, measurements.listener(folder, gpu))
        row = {"piece": piece.name, "seconds": f"{outcome.seconds:.0f}", "note": outcome.summary}
        row["passed"] = "not run" if outcome.code is None else "yes" if outcome.passed else "no"
        measurements.append_gpu(folder, "tests", gpu, [row])
        print(report(outcome), flush=True)
        return outcome

    waiting = [piece for piece in chosen if piece.name not in done]
    for name in sorted(done & {piece.name for piece in chosen}):
        print(f"ok            {name}: passed before")
    with ThreadPoolExecutor(workers or max(2, (os.cpu_count() or 2) // 2)) as pool:
        outcomes = list(pool.map(one, waiting))
    wrong = [
        row
        for row in measurements.rows_of_these_sources(folder, "buckets", gpu)
        if row["right"] == "no"
    ]
    counted = [row for row in wrong if row["doubted"] == "no"]
    for row in wrong:
        kind = "WRONG" if row in counted else "wrong, as doubted, and not taken"
        print(f"{kind}: {row['dtype']}, width {row['width']}, {row['bucket']}: {row['note']}")
    late = [outcome.piece.name for outcome in outcomes if outcome.code is None]
    if late:
        print(f"not run: {'; '.join(late)}")
    good = [x for x in outcomes if x.passed or x.piece.name in NOT_COUNTED]
    print(f"{sum(x.passed for x in outcomes)} of {len(outcomes)} pieces passed; see {folder}")
    return len(good) == len(outcomes) and not counted


def report(outcome: Outcome) -> str:
    """A line about a piece, and the end of what it printed if it failed."""
    state = "ok    " if outcome.passed else "LATE  " if outcome.code is None else "FAILED"
    name = outcome.piece.name
    text = f"{state} {outcome.seconds:4.0f} s  {name}: {outcome.summary}"
    if outcome.passed or outcome.code is None:
        return text
    text += " (not counted)" if name in NOT_COUNTED else ""
    return "\n".join([text, *outcome.tail])


def main(arguments: list[str] | None = None) -> int:
    """Run everything; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-test")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", default="", help="pieces whose names this regex finds")
    parser.add_argument("--collect-only", action="store_true", help="collect tests, run none")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: no NVIDIA GPU answers (torch.cuda.is_available() is False)", file=sys.stderr)
        return 1
    chosen = [piece for piece in pieces() if re.search(options.only, piece.name)]
    if options.collect_only:
        chosen = [collected(piece) for piece in chosen]
    stop_when_told()
    gpu = torch.cuda.get_device_name()
    return 0 if run_all(chosen, options.out, gpu, options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
