"""Which shipped configurations a machine cannot trust: by a rule, and by what a check found.

`check` runs every configuration against the reference and keeps those that failed, by GPU, Triton
and assembler, in ``failed_configurations.json`` in the folder that ``COLLAMO_KERNELS_CACHE`` names,
else ``~/.cache/collamo_kernels``. No process takes them from then on.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton.configuration import Bucket

SOUND_TRITON = (3, 8)
# Compute capabilities on which older Tritons are known to go wrong, though nobody has seen it here.
# On both tiles of 32 rows are taken, whose products are those of sm_80 (HMMA).
#
# 9.0: in tiles of 64 rows a product in half precision is HGMMA, and its first operand comes from
# registers in most of the backward's (`tl.dot(tl.trans(ds), x)`). Others had wrong dk from that
# very form before Triton 3.7.1 (flash-linear-attention 640, 826, 983, 984, 1262; triton 9433, 9484,
# 9514, 11366), and Triton 3.6 assembles with ptxas 12.8.93, which one of their examples convicts.
# 8.9: ptxas before CUDA 13 goes wrong on what Triton makes (triton 9756 took it back). What exactly
# is not published, so this only keeps to the simplest programs; a check tells.
DOUBTED = ((9, 0), (8, 9))
DOUBTED_ROWS = 64


class Machine(NamedTuple):
    """What decides whether a compiled kernel is right."""

    gpu: str
    capability: tuple[int, int]
    triton: str
    ptxas: str

    def key(self) -> str:
        """Return its name in the file of what failed."""
        capability = ".".join(map(str, self.capability))
        return f"{self.gpu}; {capability}; Triton {self.triton}; ptxas {self.ptxas}"


class Choice(NamedTuple):
    """One of the shipped configurations: what it is chosen by."""

    dtype: torch.dtype
    width: int  # of a head, padded
    bucket: Bucket

    def key(self) -> str:
        """Return its name in the file of what failed."""
        return f"{str(self.dtype).removeprefix('torch.')}, width {self.width}, {self.bucket}"


@functools.cache
def refused(device: torch.device, width: int, dtype: torch.dtype) -> frozenset[Bucket]:
    """Buckets that are not to be taken for such heads on this device."""
    if device.type != "cuda":
        return frozenset()
    every = configuration.buckets(width, dtype)
    capability = torch.cuda.get_device_capability(device)
    doubted = {x for x in every if doubt(capability, triton.__version__, Choice(dtype, width, x))}
    if not failures_file().exists():  # asking for the assembler's version takes a process
        return frozenset(doubted)
    failed = recorded(machine_of(device))
    return frozenset(doubted | {x for x in every if Choice(dtype, width, x).key() in failed})


def why_none(device: torch.device, width: int, dtype: torch.dtype) -> str | None:
    """Return why no configuration can be trusted, where not even the loop, for any size, can be."""
    if configuration.LOOP not in refused(device, configuration.padded_width(width), dtype):
        return None
    return f"its kernels failed the check of this GPU; {failures_file()} says how"


def doubt(capability: tuple[int, int], version: str, choice: Choice) -> bool:
    """Whether the rule forbids a configuration there: see `DOUBTED`."""
    if capability not in DOUBTED or _release(version) >= SOUND_TRITON:
        return False
    return any(
        made(choice.bucket, choice.width, choice.dtype).block >= DOUBTED_ROWS
        for made in (configuration.forward, configuration.backward)
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(x) for x in version.split("+")[0].split(".")[:2])


# --- what a check found ---------------------------------------------------------------------------


def failures_file() -> Path:
    """Return where failed configurations stand."""
    folder = os.environ.get("COLLAMO_KERNELS_CACHE")
    return Path(folder or Path.home() / ".cache" / "collamo_kernels") / "failed_configurations.json"


def machine_of(device: torch.device) -> Machine:
    """Return GPU and compilers of a device."""
    from triton.backends.nvidia.compiler import get_ptxas

    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return Machine(name, (major, minor), triton.__version__, get_ptxas(10 * major + minor).version)


def recorded(machine: Machine) -> dict[str, str]:
    """Return the configurations that failed on a machine, and how; a broken file holds none."""
    try:
        every = json.loads(failures_file().read_text())
        return dict(every.get(machine.key(), {}))
    except (OSError, ValueError, AttributeError):
        return {}


def record(machine: Machine, failed: Iterable[tuple[Choice, str]]) -> None:
    """Keep what a check of all configurations found, in place of what an earlier one did."""
    path = failures_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        every = json.loads(path.read_text())
    except (OSError, ValueError):
        every = {}
    every[machine.key()] = {choice.key(): reason for choice, reason in failed}
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(every, indent=1))
    beside.replace(path)
    refused.cache_clear()
