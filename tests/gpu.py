"""Every test that a GPU adds to, and compute-sanitizer: what ``make gpu-test`` runs.

    python tests/gpu.py

runs pieces of the suite side by side, each in a process of its own, because one illegal access ends
all CUDA work of the process that made it. A piece reports as soon as it ends; its output is kept in
``build/gpu-test/``. What has not ended after `LIMIT` seconds is stopped, and counts as failed.

What needs no GPU is left to ``make test``: the emulated GPU, compiling ahead of time, hypothesis.
Only torch, triton, numpy and pytest may be imported here and by these tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "gpu-test"
LIMIT = 420  # s; with building, eight minutes
WITHOUT_GPU = {"test_properties.py", "test_cuda.py"}
BACKENDS = "reference,cpu,cuda,triton"  # none of them may be skipped
TAIL = 60  # lines of a failed piece that are shown
# One tile, several tiles, packed and padded; both tools slow a kernel down tenfold and more.
SANITIZED = ("test_shortest_paths.py", "test_relations.py", "test_pairwise_distances.py")
SANITIZED += ("test_coattention.py",)
FEW = "every_size_equals or sorts_pairs or (triton and accuracy and (around-16 or 127))"


@dataclass(frozen=True)
class Piece:
    """A command that passes where it exits with 0."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def pytest_of(files: Iterable[str], *options: str) -> tuple[str, ...]:
    """The command that runs some files of tests/kernels."""
    paths = (str(ROOT / "tests" / "kernels" / name) for name in files)
    return (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *paths, *options)


def suites() -> list[Piece]:
    """Every file of tests/kernels, the longest first and in two."""
    long = "test_coattention.py"
    found = [
        Piece("test_coattention, Triton", pytest_of([long], "-k", "triton")),
        Piece("test_coattention, others", pytest_of([long], "-k", "not triton")),
        Piece("test_triton", pytest_of(["test_triton.py"], "-k", "TestOnGPU")),
    ]
    names = {path.name for path in (ROOT / "tests" / "kernels").glob("test_*.py")}
    rest = sorted(names - WITHOUT_GPU - {long, "test_triton.py"})
    return found + [Piece(name.removesuffix(".py"), pytest_of([name])) for name in rest]


def sanitized(tool: str) -> Piece:
    """A few tests under a tool of compute-sanitizer; kernels of PyTorch itself are not checked."""
    options = ("--tool", tool, "--target-processes", "all", "--report-api-errors", "no")
    options += ("--kernel-name-exclude", "kns=2at6native", "--error-exitcode", "9")
    command = (compute_sanitizer(), *options, *pytest_of(SANITIZED, "-k", FEW))
    return Piece(tool, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


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


def run(piece: Piece, deadline: float) -> tuple[bool, str]:
    """Run a piece to its end or the deadline; whether it passed, and what to print of it."""
    log, start = LOGS / f"{piece.name.replace(', ', '-')}.log", time.monotonic()
    ours = {"COLLAMO_TEST_BACKENDS": BACKENDS, "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **ours, **piece.environment}
    with log.open("w") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        try:
            process = subprocess.Popen(
                piece.command, env=environment, cwd=ROOT, start_new_session=True, **streams
            )
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except OSError as error:
            file.write(f"does not start: {error}\n")
            code = -1
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            file.write(f"\nstopped after {time.monotonic() - start:.0f} s\n")
            code = -1
    lines = log.read_text(errors="replace").splitlines() or [""]
    last = next((x for x in reversed(lines) if " passed" in x or " failed" in x), lines[-1])
    text = f"{'ok    ' if code == 0 else 'FAILED'} {time.monotonic() - start:4.0f} s  {piece.name}"
    text += f": {last.strip('= ')}"
    return code == 0, text if code == 0 else "\n".join([text, *lines[-TAIL:], f"({log})"])


def run_all(pieces: Iterable[Piece], limit: float = LIMIT, workers: int | None = None) -> bool:
    """Run pieces side by side and print what each reports; whether all passed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit
    passed = []

    def one(piece: Piece) -> None:
        good, text = run(piece, deadline)
        passed.append(good)
        print(text, flush=True)

    with ThreadPoolExecutor(workers or max(2, (os.cpu_count() or 2) // 2)) as pool:
        list(pool.map(one, pieces))
    print(f"{sum(passed)} of {len(passed)} pieces passed")
    return all(passed)


def main() -> int:
    """Run everything; 0 if all passed."""
    return 0 if run_all([*map(sanitized, ("memcheck", "racecheck")), *suites()]) else 1


if __name__ == "__main__":
    sys.exit(main())
