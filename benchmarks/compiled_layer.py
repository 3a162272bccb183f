"""What the compiler makes of one layer: every kernel that is launched, without a GPU.

    python benchmarks/compiled_layer.py

runs a layer of each workload of ``gpu.py`` on a driver that compiles for sm_90 and launches
nothing, as a Hopper GPU with Triton 3.6 takes it (`collamo_kernels.coattention.triton.trust`),
reads the machine code, and writes ``data/layer_sm90.csv``, from which `layer_model` derives times:
grid, warps, registers, shared memory, instructions outside and inside of loops, bytes of all
tensors. Takes minutes; run it after a change to a kernel.
"""

from __future__ import annotations

import csv
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gpu
import layer_model
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from collamo_kernels.rivals import backwards
from collamo_kernels.testing import attend

CAPABILITY = 90
TRITON = "3.6.0"  # what is doubted there with it is not taken; it is this Triton that compiles
# Arguments that no program touches where the radial table is fine enough.
UNTOUCHED = {"phi", "du"}


class Launch(NamedTuple):
    """A kernel as it was launched."""

    name: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    compiled: Any


class NoDevice:
    """Triton's driver of a GPU that is not here: its programs are compiled and thrown away."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = self, lambda source, metadata: lambda *arguments: None

    def load_binary(self, *arguments: Any) -> tuple:
        """Module, function, registers, spills, threads at most."""
        return object(), 0, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        """There is none."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return those of an H200."""
        sizes = {"max_shared_mem": 232448, "max_num_regs": 65536, "warpSize": 32}
        return {**sizes, "multiprocessor_count": 132}

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """The default one."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are."""
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """PyTorch's."""
        return torch.cuda

    @staticmethod
    def is_active() -> bool:
        """It is."""
        return True


class Operations(TorchDispatchMode):
    """Counts what PyTorch itself would launch."""

    FREE = ("empty", "detach", "alias", "item", "lift", "_local_scalar_dense")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count an operator that is neither ours nor a view."""
        free = function.is_view or any(word in function._opname for word in self.FREE)
        if function.namespace == "aten" and not free:
            self.count += 1
        return function(*args, **(kwargs or {}))


def launches(workload: gpu.Workload) -> dict[str, tuple[list[Launch], int]]:
    """Launch a layer of a workload; of each pass our kernels, and how many PyTorch launches."""
    from collamo_kernels.coattention.triton import backend, configuration, trust
    from collamo_kernels.pairwise_distances import _triton as on_distances

    def refused(device: torch.device, width: int, dtype: torch.dtype) -> frozenset:
        every = (trust.Choice(dtype, width, x) for x in configuration.buckets(width, dtype))
        capability = divmod(CAPABILITY, 10)
        return frozenset(x.bucket for x in every if trust.doubt(capability, TRITON, x))

    trust.refused = refused
    for module in (backend, on_distances):
        module.unsupported = lambda call: None  # not even tensors of the CPU
    torch.cuda.get_device_capability = lambda device=None: divmod(CAPABILITY, 10)
    driver.set_active(NoDevice())
    recorded: list[Launch] = []
    run = triton.JITFunction.run

    def record(kernel, *arguments, grid, warmup=False, **options):
        compiled = run(kernel, *arguments, grid=grid, warmup=warmup, **options)
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | options
        recorded.append(Launch(kernel.fn.__name__, tuple(grid), named, compiled))
        # Nothing is returned, so that no launcher remembers it and launches it past this.

    triton.JITFunction.run = record
    try:
        inputs = gpu.inputs_of(workload, torch.bfloat16, "cpu")
        inputs.relations.prepare()  # once a batch
        passes = {}
        for name in ("forward", "backward"):
            recorded.clear()
            with Operations() as operations:
                if name == "forward":
                    out = attend(inputs, "packed", backend="triton")
                else:
                    tensors = tuple(tensor for _, tensor in inputs.grads())
                    backwards(out, tensors, inputs.cotangent)
            passes[name] = list(recorded), operations.count
        return passes
    finally:
        triton.JITFunction.run = run


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an argument, of fields too."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        names = getattr(value, "_fields", range(len(value)))
        for name, part in zip(names, value, strict=True):
            if name not in UNTOUCHED:
                yield from tensors_in(part)


def bytes_of(launch: Launch) -> int:
    """Bytes of all tensors a kernel is given, each once."""
    every = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for name, value in launch.arguments.items()
        if name not in UNTOUCHED
        for tensor in tensors_in(value)
    }
    return sum(every.values())


def machine_code(cubin: bytes, what: str) -> str:
    """Ask the cuobjdump that comes with Triton about a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def figures_of(launch: Launch) -> dict[str, str | int]:
    """Return the row of a launch."""
    cubin = launch.compiled.asm["cubin"]
    usage = machine_code(cubin, "--dump-resource-usage")
    code = layer_model.code_of(machine_code(cubin, "--dump-sass"))
    (registers,) = re.findall(r" REG:(\d+)", usage)
    build = launch.arguments.get("build")
    tile = getattr(build, "BLOCK", 0)  # of the attention alone
    tiles = 1 if tile and build.SINGLE else 2 if tile and launch.name == "differentiate" else 0
    return {
        "kernel": launch.name,
        "above": launch.arguments.get("above", 0),
        "tile": tile,
        "tiles": tiles,
        "programs": math.prod(launch.grid),
        "warps": launch.compiled.metadata.num_warps,
        "registers": int(registers),
        "shared": launch.compiled.metadata.shared,
        "bytes": bytes_of(launch),
        "instructions": "/".join(map(str, code.outside)),
        "loops": " ".join("/".join(map(str, block)) for block in code.loops),
    }


def main() -> None:
    """Write the figures of all workloads."""
    with layer_model.FIGURES.open("w", newline="") as file:
        writer = csv.DictWriter(file, layer_model.COLUMNS, lineterminator="\n")
        writer.writeheader()
        for workload in gpu.WORKLOADS:
            for name, (recorded, operations) in launches(workload).items():
                rows = [figures_of(launch) for launch in recorded]
                rows.append({"kernel": layer_model.PYTORCH, "programs": operations})
                for row in rows:
                    absent = dict.fromkeys(layer_model.COLUMNS[3:-2], 0)
                    absent |= {"instructions": "0/0/0", "loops": ""}
                    common = {"workload": workload.name, "pass": name}
                    writer.writerow({**absent, **row, **common})
                    print(name, *row.values(), flush=True)
                file.flush()


if __name__ == "__main__":
    main()
