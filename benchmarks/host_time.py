"""Time of the host a layer of the Triton attention: what Python takes until all is launched.

    python benchmarks/host_time.py [ROUNDS]

On a GPU: from the call until it returns, the GPU being idle before, four molecules of 27 atoms, so
that it is never waited for. Without one: on a driver that compiles for sm_90 and launches nothing,
with tensors of the CPU, whose allocator is not the GPU's; there it is processor time of the thread,
because other work on the machine is not ours. Prints median and minimum; nothing is written.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

import collamo_kernels as ck
from collamo_kernels.testing import Case, Inputs, make_inputs

SIZES = (27, 27, 27, 27)
WIDTH = {"heads": 4, "width": 32}
MLP = {**WIDTH, "gaussians": 16, "head": "mlp"}
CASES = {
    "plain": Case("plain", SIZES, **WIDTH, hops=False, distances=False),
    "hops": Case("hops", SIZES, **WIDTH, distances=False),
    "hops, radial MLP": Case("radial", SIZES, **MLP),
    "the same, coordinates learn": Case("coordinates", SIZES, **MLP),
    "the same, types of atoms": Case("types", SIZES, **MLP, types="atom"),
}
WARM = 10


def device() -> str:
    """Return where to measure; without a GPU, launches do nothing from here on."""
    if torch.cuda.is_available():
        return "cuda"
    import compiled_layer
    from triton.runtime import driver

    from collamo_kernels.coattention.triton import backend

    driver.set_active(compiled_layer.NoDevice())
    backend.unsupported = lambda call: None  # not even tensors of the CPU
    return "cpu"


def layer_of(name: str, where: str) -> tuple[Inputs, Callable[[], torch.Tensor]]:
    """Return the inputs of a case, and a call of its layer."""
    inputs = make_inputs(CASES[name], torch.bfloat16, where)
    relations = inputs.relations
    if relations.coordinates is not None:
        relations.coordinates.requires_grad_("learn" in name or "types" in name)
    relations.prepare()
    arguments = {"hop_bias": inputs.hop_bias, "radial": inputs.radial, "backend": "triton"}
    q, k, v = inputs.q, inputs.k, inputs.v
    return inputs, lambda: ck.coattention(q, k, v, relations=relations, **arguments)


def microseconds(call: Callable[[], object], rounds: int, where: str) -> tuple[float, float]:
    """Return median and minimum."""
    clock = time.perf_counter if where == "cuda" else time.thread_time
    times = []
    for _ in range(WARM + rounds):
        if where == "cuda":
            torch.cuda.synchronize()
        begin = clock()
        call()
        times.append(1e6 * (clock() - begin))
    return statistics.median(times[WARM:]), min(times[WARM:])


def passes(name: str, where: str) -> dict[str, Callable[[], object]]:
    """Return what is timed of a case: inference, the forward of training, and both passes."""
    inputs, forward = layer_of(name, where)
    learned = [x for _, x in inputs.grads() if x.requires_grad]

    def inference() -> None:
        with torch.no_grad():
            forward()

    def both() -> None:
        torch.autograd.grad(forward(), learned, inputs.cotangent, allow_unused=True)

    return {"inference": inference, "forward": forward, "forward + backward": both}


def main(rounds: int) -> None:
    """Print a line a case."""
    where = device()
    torch.set_num_threads(1)
    clock = "until it returns" if where == "cuda" else "processor time, launches do nothing"
    print(f"µs a layer, median (minimum) of {rounds}; {clock}; torch {torch.__version__}")
    for name in CASES:
        figures = []
        for what, call in passes(name, where).items():
            median, least = microseconds(call, rounds, where)
            figures.append(f"{what} {median:.0f} ({least:.0f})")
        print(f"{name}: {', '.join(figures)}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
