"""``collamo bench``."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collamo.cli.command import command
from collamo.errors import UsageError

if TYPE_CHECKING:
    from collamo.benchmark.measurements import Comparison

SdfOption = Annotated[
    Path | None,
    typer.Option(
        "--sdf",
        help="Your molecules: an SDF, or any other file that `collamo prepare` reads. Default: the "
        "NCI molecules inside RDKit.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for a CSV and a picture per operation; rows are only ever added."),
]
CompareOption = Annotated[
    Path | None,
    typer.Option(help="Folder of earlier rows, such as an earlier --out, shown beside these."),
]
CompiledOption = Annotated[
    bool,
    typer.Option(
        "--compiled",
        help="Against torch.compile of the formula and FlexAttention too; compiling takes minutes "
        "and a C++ compiler.",
    ),
]


@command()
def bench(
    sdf: SdfOption = None,
    molecules: Annotated[int, typer.Option(min=1, help="How many make the batch.")] = 64,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the attention.")] = 32,
    width: Annotated[int, typer.Option(min=1, help="Channels of each head.")] = 24,
    gaussians: Annotated[int, typer.Option(min=1, help="Gaussians of Φ3d.")] = 128,
    rounds: Annotated[int, typer.Option(min=3, help="Most times that each is measured.")] = 21,
    compiled: CompiledOption = False,
    out: OutOption = None,
    compare: CompareOption = None,
) -> None:
    """Time attention, hops and distances on your molecules, beside PyTorch, RDKit and SciPy.

    Float32 on the processors here. Every answer is checked before it is timed; all take turns, and
    medians are shown: × says how many times as long as ours a rival takes.
    """
    from collamo.benchmark import (
        Shape,
        measure,
        read_molecules,
        rows_of_folder,
        workloads_of,
    )
    from collamo.benchmark import compare as set_beside

    earlier = {} if compare is None else rows_of_folder(compare)
    if compare is not None and not earlier:
        raise UsageError(f"--compare {compare} holds no rows; give a folder that --out has written")
    if out is not None:
        import matplotlib  # noqa: F401 - that it is missing is said before minutes are spent

    batch, complaints = read_molecules(sdf, molecules)
    _tell_what_is_measured(batch.has_3d.tolist(), complaints, len(batch.molecules) < molecules)
    rows: dict[str, list[dict]] = {}
    for workload in workloads_of(batch, Shape(heads, width, gaussians), compiled=compiled):
        measured = [_signed(row) for row in measure(workload, rounds)]
        rows.setdefault(workload.operation, []).extend(measured)
        show_table(workload.operation, set_beside(measured, earlier.get(workload.operation, [])))
    if out is not None:
        for operation, each in rows.items():
            print(_kept(out, operation, each), file=sys.stderr)


def _tell_what_is_measured(has_3d: list[bool], complaints: list[str], few: bool) -> None:
    import collamo_kernels

    info = collamo_kernels.build_info()
    if not info["extension"]:
        why = info["why_absent"]
        print(
            f"note: ours is plain PyTorch here, without the compiled kernels: {why}",
            file=sys.stderr,
        )
    if complaints:
        print(f"left out: {len(complaints)}, the first: {complaints[0]}", file=sys.stderr)
    if few:
        print(f"the file has only {len(has_3d)} molecules that can be read", file=sys.stderr)
    if not all(has_3d):
        flat = has_3d.count(False)
        print(f"{flat} of {len(has_3d)} have no conformer, and no Φ3d", file=sys.stderr)


def _signed(row: dict) -> dict:
    """Add when, with what and by how many threads a row was measured."""
    import torch

    from collamo.extras import version

    packages = ("torch", "rdkit", "scipy", "collamo")
    found = [f"{name}={version(name)}" for name in packages if version(name) is not None]
    about = {"date": datetime.date.today().isoformat(), "versions": " ".join(found)}
    return about | {"threads": torch.get_num_threads()} | row


def show_table(operation: str, comparisons: Sequence[Comparison]) -> None:
    """Print a table for each workload of an operation, with earlier runs where there are any."""
    from rich.console import Console
    from rich.table import Table

    # In a notebook too as text, so that it stands below its heading.
    console = Console(markup=False, highlight=False, force_jupyter=False)
    for workload in dict.fromkeys(each.workload for each in comparisons):
        lines = [each.cells() for each in comparisons if each.workload == workload]
        table = Table(box=None)
        columns = enumerate(("", "median", "× ours", "earlier runs", "note"))
        shown = [(i, name) for i, name in columns if i < 3 or any(line[i] for line in lines)]
        for i, name in shown:
            table.add_column(name, justify="right" if i in (1, 2) else "left", no_wrap=i < 3)
        for line in lines:
            table.add_row(*(line[i] for i, _ in shown))
        print(f"{operation}: {workload}")
        console.print(table)
        print()


def _kept(out: Path, operation: str, rows: list[dict]) -> Path:
    """Add rows to the CSV of an operation, and draw them; return the file of the picture."""
    from collamo.benchmark import append_rows
    from collamo.benchmark.pictures import picture
    from collamo.files import write_text

    append_rows(out / f"{operation}.csv", rows)
    path = out / f"{operation}.svg"
    drawn = picture(rows)
    assert drawn is not None  # ours was timed
    write_text(path, drawn)
    return path
