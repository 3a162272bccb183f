"""Compile the Triton kernels for a GPU that is not here, and read what they would take of it.

For the tests, which hold every shipped configuration to its limits, and for the tuner.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
import triton
from triton.backends.compiler import GPUTarget

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton import kernels as kernels
from collamo_kernels.coattention.triton import launch_pairs as launch_pairs
from collamo_kernels.coattention.triton import pairs as on_pairs
from collamo_kernels.coattention.triton import table_gradients
from collamo_kernels.coattention.triton.configuration import PAIRS, RADIAL, Configuration
from collamo_kernels.radial import BLOCKS
from collamo_kernels.radial.triton import kernels as radial

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
OWN_TYPE = {"q", "k", "v", "out", "grad", "dq", "dk", "dv", "bias", "dbias"}
SINK = ("sink", "dsink")
LOGITS = ("logits", "dlogits")
WITH_SINK = ", sink"
WITH_LOGITS = ", logits"
POINTERS = {
    "*i64": {"pair_start", "seed", "order", "offsets", "segments", "spot"},
    "*u8": {"valid", "hops", "keys"},
    "*i32": {
        *("cu_seqlens", "tiles", "fits", "known", "first_knot", "pair_types", "atom_types"),
        "cleared",
    },
    "*fp32": {
        *("row_max", "inverse_sum", "hop_bias", "coefficients", "phi", "ds", "u", "geometry"),
        *("rows", "lengths", "parts", "du", "dx", "du_r", "coordinates", "distances", "affine"),
        *("by_query", "by_key", "reach", "layers", "survey", "slope_rows", "knots", "errors"),
        *SINK,
        *LOGITS,
    },
    "*fp64": {"dropout_p"},
    "fp32": {"scale", "limit", "slack", "share"},
}
ABSENT = (
    "seed",
    "dropout_p",
    "bias",
    "dbias",
    "valid",
    *LOGITS,
)  # of the attention, unless asked for


class Argument(NamedTuple):
    """A tensor or a number that a kernel takes: a parameter, or a field of one that is a tuple."""

    path: tuple[int, ...]
    name: str
    type: str  # as Triton's signatures have it


@dataclass(frozen=True)
class Program:
    """One kernel as it is compiled: `constants` by name, None for a pointer that is left out."""

    name: str
    kernel: triton.JITFunction
    num_warps: int
    constants: dict[str, Any] = field(repr=False)
    dtype: torch.dtype = torch.float32

    @property
    def single(self) -> bool:
        """Whether it goes over one tile of the attention, or over none."""
        return getattr(self.constants.get("build"), "SINGLE", True)

    def arguments(self) -> list[Argument]:
        """Return the kernel's arguments, tuples flattened as its launcher does."""
        hints = get_type_hints(self.kernel.fn)
        arguments = []
        for index, parameter in enumerate(self.kernel.arg_names):
            fields = getattr(hints.get(parameter), "_fields", None)
            if fields is None:
                arguments.append(Argument((index,), parameter, self._type(parameter)))
            else:
                paths = ((index, place) for place in range(len(fields)))
                arguments += [
                    Argument(path, name, self._type(name))
                    for path, name in zip(paths, fields, strict=True)
                ]
        return arguments

    def compile(self, capability: int) -> dict[str, int]:
        """Registers and bytes of stack of a thread, bytes of shared memory of a program."""
        arguments, names = self.arguments(), self.kernel.arg_names
        types: dict[str, Any] = {}
        for argument in arguments:
            parameter = names[argument.path[0]]
            if len(argument.path) == 1:
                types[parameter] = argument.type
            else:
                types[parameter] = (*types.get(parameter, ()), argument.type)
        constants = {x.path: self.constants[x.name] for x in arguments if x.type == "constexpr"}
        # What PyTorch allocates begins at a multiple of 16 bytes; heads times width, the stride of
        # atoms, is a multiple of 16 in every model we know.
        aligned = {
            x.path: [["tt.divisibility", 16]]
            for x in arguments
            if x.type[0] == "*" or x.name in ("q_t", "out_t")
        }
        hints = get_type_hints(self.kernel.fn)
        signature = {x: hints[x](*y) if isinstance(y, tuple) else y for x, y in types.items()}
        source = triton.compiler.ASTSource(self.kernel, signature, constants, aligned)
        options = {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": True}
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options=options)
        return {**_resources(built.asm["cubin"]), "SHARED": built.metadata.shared}

    def _type(self, name: str) -> str:
        if name in self.constants:
            return "constexpr"
        if name in OWN_TYPE:
            return f"*{TYPES[self.dtype]}"
        return next((type for type, names in POINTERS.items() if name in names), "i32")


def _resources(cubin: bytes) -> dict[str, int]:
    """By the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", text)}


def attention(
    bucket: configuration.Bucket, width: int, dtype: torch.dtype, forward: bool,
    chosen: Configuration | None = None, absent: Sequence[str] = ABSENT + SINK, packed: bool = True,
    **changes: Any,
) -> Program:  # fmt: skip
    """The attention with hop table and radial table, without dropout, dense bias and sink."""
    choose = configuration.forward if forward else configuration.backward
    chosen = chosen or choose(bucket, width, dtype)
    build = kernels.Build(
        PRECISION="ieee",
        ALIGN=8,
        PACKED=packed,
        ROWS=True,
        LISTED=chosen.listed(packed),
        SINGLE=chosen.tiles == 1,
        BLOCK=chosen.block,
        HEAD=3 * width // 4,  # as 24 in 32: some of the tile is padding
        WIDTH=width,
    )
    name = f"{'forward' if forward else 'backward'} {bucket} atoms, width {width}, {TYPES[dtype]}"
    name += "" if "sink" in absent else WITH_SINK
    name += "" if "logits" in absent else WITH_LOGITS
    kernel = kernels.differentiate_tile if chosen.tiles is None else kernels.differentiate
    kernel = kernels.attend if forward else kernel
    constants = {"build": build._replace(**changes), **dict.fromkeys(absent)}
    return Program(name, kernel, chosen.num_warps, constants, dtype)


def shipped(sink: bool = False) -> Iterator[Program]:
    """Every configuration of the attention; float16 compiles to the same as bfloat16."""
    absent = ABSENT if sink else ABSENT + SINK
    for dtype in (torch.bfloat16, torch.float32):
        for width in configuration.WIDTHS:
            for bucket in configuration.buckets(width, dtype):
                for forward in (True, False):
                    yield attention(bucket, width, dtype, forward, absent=absent)


def shipped_with_logits() -> Iterator[Program]:
    """The attention of `pair_bias_attention`, for heads of Uni-Mol's width."""
    tables = "hops", "hop_bias", "spot", "coefficients", "phi", "fits", "ds", "cleared"
    absent = ("seed", "dropout_p", "valid", *SINK, *tables)
    for bucket in configuration.buckets(16, torch.bfloat16):
        for forward in (True, False):
            yield attention(bucket, 16, torch.bfloat16, forward, absent=absent)


def shipped_on_pairs() -> Iterator[Program]:
    """The kernels on pairs."""
    blocks = {"BLOCK": PAIRS.atoms, "PACKED": True}
    plain = dict.fromkeys(("affine", "pair_types", "atom_types", "du_r", "by_query", "by_key"))
    by_atom, by_pair = blocks | {"pair_types": None}, blocks | {"atom_types": None}
    warps = PAIRS.atoms_warps
    yield Program("u, atom types", on_pairs.stretch, warps, by_atom)
    yield Program("u, pair types", on_pairs.stretch, warps, by_pair)
    yield Program("coordinates", on_pairs.pull, warps, blocks | plain)
    yield Program("coordinates, atom types", on_pairs.pull, warps, by_atom)
    yield Program("coordinates, pair types", on_pairs.pull, warps, by_pair)
    sizes = {"TABLE_BLOCKS": BLOCKS, "PAIRS": PAIRS.pairs, "CELLS": PAIRS.cells}
    for heads in (32, 64):
        for head in ("mlp", "linear"):
            name, build = f"{head}, {heads} heads", _radial_build(head, heads)
            constants = sizes | {"COLUMN": PAIRS.heads, "build": build}
            yield Program(f"locate, {name}", on_pairs.locate, RADIAL.warps, constants)
        constants = {"build": launch_pairs.sum_build(heads)}
        yield Program(f"add_up, {heads} heads", table_gradients.add_up, PAIRS.warps, constants)
        constants = {"build": launch_pairs.finish_build(heads, add=True)}
        yield Program(f"finish, {heads} heads", table_gradients.finish, PAIRS.warps, constants)
    constants = {"PAIRS": PAIRS.pairs}
    yield Program("build", on_pairs.build, PAIRS.warps, constants, torch.bfloat16)
    yield Program(
        "du", on_pairs.slope, PAIRS.warps, {"ADD": True, "PAIRS": 128, "COLUMN": PAIRS.heads}
    )


def _radial_build(head: str, heads: int, chunk: int = RADIAL.chunk) -> radial.Build:
    return radial.Build(head == "mlp", RADIAL.places, chunk, RADIAL.slice, heads)


def shipped_of_radial(heads: int = 32) -> Iterator[Program]:
    """The radial table and the exact Φ3d; any number of Gaussians compiles to the same."""
    table = {"TABLE_BLOCKS": BLOCKS, "TERMS": 2, "SLOPES": True}
    for head in ("mlp", "linear"):
        survey_build = _radial_build(head, heads, RADIAL.survey_chunk)
        survey_build = survey_build._replace(PLACES=RADIAL.blocks, SLICE=RADIAL.survey_slice)
        build = {"build": survey_build}
        yield Program(f"survey, {head}", radial.survey, RADIAL.survey_warps, table | build)
        build = {"build": _radial_build(head, heads)}
        for kernel in (radial.tabulate, radial.evaluate, radial.pull_back, radial.add_exact):
            name = f"{kernel.__name__}, {head}"
            yield Program(name, kernel, RADIAL.warps, table | build)
        build = {"build": _radial_build(head, heads, chunk=RADIAL.table_chunk)}
        yield Program(f"table differentiate, {head}", radial.differentiate, RADIAL.warps, build)
    entries = {"PLACES": RADIAL.places, "ENTRIES": RADIAL.entries}
    yield Program("collect", radial.collect, 4, entries)
