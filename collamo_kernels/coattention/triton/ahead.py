"""Compile the Triton kernels for a GPU that is not here, and read what they would take of it.

For the tests, which hold every shipped configuration to its limits, and for the tuner.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton import kernels as kernels
from collamo_kernels.coattention.triton import pairs as on_pairs
from collamo_kernels.coattention.triton.configuration import PAIRS, RADIAL, Configuration
from collamo_kernels.radial import BLOCKS
from collamo_kernels.radial.triton import kernels as radial

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
OWN_TYPE = {"q", "k", "v", "out", "grad", "dq", "dk", "dv", "bias", "dbias"}
POINTERS = {
    "*i64": {"pair_start", "seed", "hop_order", "hop_offsets", "cell_order", "segments", "spot"},
    "*u8": {"valid", "hops", "hop_keys"},
    "*i32": {
        *("cu_seqlens", "tiles", "fits", "known", "first_knot", "pair_types"),
        *("atom_types", "hop_counters", "cell_counters", "layer_counters", "counters"),
    },
    "*fp32": {
        *("most", "inverse", "hop_bias", "coefficients", "phi", "ds_all", "ds"),
        *("u", "geometry", "rows", "lengths", "hop_parts", "cell_parts", "du", "dx", "du_r"),
        *("coordinates", "distances", "affine", "of_query", "of_key", "parts", "reach", "layers"),
        *("survey", "slope_rows", "knots", "errors", "layer_parts", "of_layers"),
    },
    "fp32": {"scale", "limit", "slack", "share"},
}


@dataclass(frozen=True)
class Program:
    """One kernel as it is compiled: `constants` by name, None for a pointer that is left out."""

    name: str
    kernel: object
    num_warps: int
    constants: dict = field(repr=False)
    dtype: torch.dtype = torch.float32

    def compile(self, capability: int) -> dict[str, int]:
        """Registers and bytes of stack of a thread, bytes of shared memory of a program."""
        names = self.kernel.arg_names
        constants = {name: value for name, value in self.constants.items() if name in names}
        signature = {x: "constexpr" if x in constants else self._type(x) for x in names}
        # What PyTorch allocates begins at a multiple of 16 bytes; heads times width, the stride of
        # atoms, is a multiple of 16 in every model we know.
        aligned = {
            (at,): [["tt.divisibility", 16]]
            for at, x in enumerate(names)
            if signature[x][0] == "*" or x in ("q_t", "out_t")
        }
        source = triton.compiler.ASTSource(self.kernel, signature, constants, aligned)
        options = {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": True}
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options=options)
        return {**_resources(built.asm["cubin"]), "SHARED": built.metadata.shared}

    def _type(self, name: str) -> str:
        if name in OWN_TYPE:
            return f"*{TYPES[self.dtype]}"
        return next((type for type, names in POINTERS.items() if name in names), "i32")


def _resources(cubin: bytes) -> dict[str, int]:
    """By the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", text)}


def attention(
    of: int | str, width: int, dtype: torch.dtype, forward: bool,
    chosen: Configuration | None = None, **changes: object,
) -> Program:  # fmt: skip
    """The attention with hop table and radial table, without dropout and dense bias."""
    choose = configuration.forward if forward else configuration.backward
    chosen = chosen or choose(of, width, dtype)
    constants = {"THRESHOLD": 0, "KEPT": 1.0, "PRECISION": "ieee", "PACKED": True, "ALIGN": 8}
    constants |= {"SINGLE": chosen.tiles == 1, "BLOCK": chosen.block, "WIDTH": width}
    constants["LISTED"] = chosen.listed(changes.get("PACKED", True))
    constants["HEAD"] = 3 * width // 4  # as 24 in 32: some of the tile is padding
    constants |= dict.fromkeys(("seed", "bias", "dbias", "valid"))
    name = f"{'forward' if forward else 'backward'} {of} atoms, width {width}, {TYPES[dtype]}"
    kernel = kernels.differentiate_tile if chosen.tiles is None else kernels.differentiate
    kernel = kernels.attend if forward else kernel
    return Program(name, kernel, chosen.num_warps, constants | changes, dtype)


def shipped() -> Iterator[Program]:
    """Every configuration of the attention; float16 compiles to the same as bfloat16."""
    for dtype in (torch.bfloat16, torch.float32):
        for width in configuration.WIDTHS:
            for of in configuration.buckets(width, dtype):
                for forward in (True, False):
                    yield attention(of, width, dtype, forward)


def shipped_on_pairs() -> Iterator[Program]:
    """The kernels on pairs."""
    blocks = {
        **{"BLOCK": PAIRS.atoms, "PACKED": True, "PAIRS": PAIRS.pairs, "CELLS": PAIRS.cells},
        **{"HEADS": PAIRS.heads, "CHUNK": PAIRS.chunk, "ENTRIES": PAIRS.entries},
        **{"RUNS": PAIRS.runs, "HOP_ENTRIES": PAIRS.hop_entries, "HOP_RUNS": PAIRS.hop_runs},
        "TABLE_BLOCKS": BLOCKS,
    }
    plain = dict.fromkeys(("affine", "pair_types", "atom_types", "du_r", "of_query", "of_key"))
    by_atom, by_pair = {"pair_types": None}, {"atom_types": None}
    of_atoms = PAIRS.atoms_warps
    yield Program("u, atom types", on_pairs.stretch, of_atoms, blocks | by_atom)
    yield Program("u, pair types", on_pairs.stretch, of_atoms, blocks | by_pair)
    yield Program("coordinates", on_pairs.pull, of_atoms, blocks | plain)
    yield Program("coordinates, atom types", on_pairs.pull, of_atoms, blocks | by_atom)
    yield Program("coordinates, pair types", on_pairs.pull, of_atoms, blocks | by_pair)
    for heads in (32, 64):
        for head in ("mlp", "linear"):
            name = f"{head}, {heads} heads"
            of = blocks | _of_radial(heads) | {"COLUMN": PAIRS.heads, "MLP": head == "mlp"}
            yield Program(f"locate, {name}", on_pairs.locate, RADIAL.warps, of)
            of = of | {"GAUSSIANS": RADIAL.chunk, "CHUNK": PAIRS.chunk, "ENTRIES": PAIRS.entries}
            yield Program(f"add_up, {name}", on_pairs.add_up, RADIAL.warps, of)
    yield Program("build", on_pairs.build, PAIRS.warps, blocks, torch.bfloat16)
    slope = {"ADD": True, "PAIRS": 128}
    yield Program("du", on_pairs.slope, PAIRS.warps, slope)


def _of_radial(heads: int) -> dict:
    return {
        **{"TABLE_BLOCKS": BLOCKS, "PLACES": RADIAL.places, "CHUNK": RADIAL.chunk, "TERMS": 2},
        **{"SLICE": RADIAL.slice, "HEADS": heads, "SLOPES": True, "ADD": True},
        "ENTRIES": RADIAL.entries,
    }


def shipped_of_radial(heads: int = 32) -> Iterator[Program]:
    """The radial table and the exact Φ3d; any number of Gaussians compiles to the same."""
    blocks = _of_radial(heads)
    for head in ("mlp", "linear"):
        of = blocks | {"MLP": head == "mlp"}
        places = of | {"PLACES": RADIAL.blocks}
        yield Program(f"survey, {head}", radial.survey, RADIAL.survey_warps, places)
        for kernel in (radial.tabulate, radial.evaluate, radial.pull_back):
            yield Program(f"{kernel.__name__}, {head}", kernel, RADIAL.warps, of)
        of = of | {"CHUNK": RADIAL.table_chunk}
        yield Program(f"table differentiate, {head}", radial.differentiate, RADIAL.warps, of)
    yield Program("collect", radial.collect, 4, blocks)
