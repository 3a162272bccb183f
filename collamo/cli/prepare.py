"""``collamo prepare``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from collamo.cli.command import command
from collamo.cli.options import (
    SelfiesColumnOption,
    SmilesColumnOption,
    TimeOption,
    WorkersOption,
)
from collamo.errors import UsageError
from collamo.progress import progress_bar
from collamo.storage import is_url

if TYPE_CHECKING:
    from collamo.data.manifest import Manifest


SourceArgument = Annotated[
    str,
    typer.Argument(
        help="nci (inside RDKit), qm9 (the wheel qm9pack) or a CSV, TSV, JSONL, JSON, Parquet, "
        "SMI, SDF, MOL or XYZ file, also at a URL such as s3://bucket/file.csv."
    ),
]
ConformersOption = Annotated[
    str,
    typer.Option(
        help="What embeds a conformer for a molecule that has none: rdkit, or nvmolkit, which does "
        "it on an NVIDIA GPU as far as it can, RDKit the rest."
    ),
]
NoConformersOption = Annotated[bool, typer.Option("--no-conformers", help="Embed none.")]
StepsOption = Annotated[
    int, typer.Option(min=0, help="Longest minimisation of a conformer [steps]; 0: none.")
]
LargeStepsOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="The same for molecules of 70 atoms and more, hydrogens counted; default: as many. 50 "
        "take a sixth off their time and end 27 kcal/mol above the minimum of a long run instead "
        "of 9; 0 take a quarter off and end 200 above it.",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of conformers, splits and questions.")]
MemoryOption = Annotated[
    float, typer.Option(min=0.01, help="Most memory of a worker [GiB]; only on Linux.")
]
RejectOption = Annotated[
    float, typer.Option(min=0, max=1, help="Fail when more than this share of rows is rejected.")
]
RowsOption = Annotated[int | None, typer.Option(min=1, help="Read no more rows than this.")]
ShardOption = Annotated[int, typer.Option(min=1, help="Rows per shard.")]
SplitRuleOption = Annotated[
    str,
    typer.Option(
        help="scaffold, random, published (qm9: 110,000, 10,000 and the rest, drawn with the "
        "seed), or column:NAME to keep the split of a file."
    ),
]
CaptionColumnOption = Annotated[str | None, typer.Option(help="Column of captions.")]
IupacColumnOption = Annotated[str | None, typer.Option(help="Column of IUPAC names.")]
MeasuredColumnsOption = Annotated[
    str,
    typer.Option(
        help="Numeric columns, by commas; logS:log mol/L adds a unit, else a unit in the name "
        "counts: gap_eV. Values in another unit are converted. Of qm9: those to ask for, gap:eV "
        "in eV."
    ),
]
GuessOption = Annotated[
    bool,
    typer.Option(
        help="Ask for columns that carry the names of QM9's or PubChem's, where their values "
        "lie in the range of these."
    ),
]
ShapesOption = Annotated[
    int, typer.Option(min=0, help="Questions about numbers of a molecule's shape.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Let the machines of a Ray cluster make the shards: auto, HOST:PORT or "
        "ray://HOST:PORT; without an address that of RAY_ADDRESS, else Ray on this machine alone. "
        "All machines must see --out; --workers bounds the shards in work.",
    ),
]
EncodeOption = Annotated[
    bool,
    typer.Option("--encode", help="Store the outputs of frozen encoders; training skips them."),
]
UnimolOption = Annotated[
    Path | None,
    typer.Option(help="With --encode: Uni-Mol weights for 3D, the ones that training will use."),
]
GinOption = Annotated[
    Path | None, typer.Option(help="With --encode: GIN weights for 2D, likewise.")
]
LayersOption = Annotated[
    int,
    typer.Option(min=1, help="With --encode: the projector's num_layers, which sets the levels."),
]
DtypeOption = Annotated[
    str, typer.Option(help="With --encode: float16, or float32 at twice the size.")
]


# What stands behind --ray and is an address; anything else, such as the source, is not.
_ADDRESS = re.compile(r"local|auto|ray://.+|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+")


class _PrepareCommand(TyperCommand):
    """A command whose option --ray may stand without a value."""

    def parse_args(self, ctx, args):
        """Give --ray the address that follows it, or the one it has without."""
        return super().parse_args(ctx, _with_address(args))


def _with_address(arguments: list[str]) -> list[str]:
    """Return the arguments with the value of --ray joined to it.

    >>> _with_address(["--ray", "auto", "a.csv"]), _with_address(["--ray=head:6379", "a.csv"])
    (['--ray=auto', 'a.csv'], ['--ray=head:6379', 'a.csv'])
    """
    if "--ray" not in arguments:
        return arguments
    place = arguments.index("--ray")
    behind = arguments[place + 1 :]
    address = os.environ.get("RAY_ADDRESS") or "local"
    if behind and _ADDRESS.fullmatch(behind[0]):
        address, *behind = behind
    return [*arguments[:place], f"--ray={address}", *behind]


@command(cls=_PrepareCommand)
def prepare(
    source: SourceArgument,
    out: Annotated[str, typer.Option(help="Folder to write, a path or a URL such as s3://….")],
    conformers: ConformersOption = "rdkit",
    no_conformers: NoConformersOption = False,
    force_field_steps: StepsOption = 200,
    large_force_field_steps: LargeStepsOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    time_limit: TimeOption = 30.0,
    memory_limit: MemoryOption = 4.0,
    max_reject_rate: RejectOption = 0.05,
    limit: RowsOption = None,
    shard_size: ShardOption = 1000,
    split: SplitRuleOption = "scaffold",
    smiles_column: SmilesColumnOption = None,
    selfies_column: SelfiesColumnOption = None,
    caption_column: CaptionColumnOption = None,
    iupac_column: IupacColumnOption = None,
    measured_columns: MeasuredColumnsOption = "",
    guess_columns: GuessOption = True,
    shape_questions: ShapesOption = 1,
    ray: RayOption = None,
    encode: EncodeOption = False,
    unimol: UnimolOption = None,
    gin: GinOption = None,
    encode_layers: LayersOption = 5,
    encode_dtype: DtypeOption = "float16",
) -> None:
    """Turn a source of molecules into shards, splits and questions."""
    if encode and unimol is None and gin is None:
        raise UsageError("--encode needs weights: give --unimol FILE, --gin FILE or both")
    if not encode and (unimol or gin):
        raise UsageError("--unimol and --gin need --encode; add it")
    if encode and is_url(out):
        raise UsageError(
            f"--encode writes beside shards on a disk, and {out} is a URL; prepare into a folder, "
            "encode, and copy it there"
        )
    from collamo.data.options import PrepareOptions
    from collamo.data.prepare import prepare as prepare_source

    options = PrepareOptions(
        conformers=not no_conformers,
        embedder=conformers,
        force_field_steps=force_field_steps,
        large_force_field_steps=large_force_field_steps,
        seed=seed,
        time_limit=time_limit,
        memory_limit=memory_limit,
        limit=limit,
        shard_size=shard_size,
        split_by=split,
        smiles_column=smiles_column,
        selfies_column=selfies_column,
        caption_column=caption_column,
        iupac_column=iupac_column,
        measured_columns=(measured_columns,) if measured_columns.strip() else (),
        guess_columns=guess_columns,
        shape_questions=shape_questions,
    )
    manifest = prepare_source(
        source, out, options, workers=workers, max_reject_rate=max_reject_rate, ray=ray
    )
    rows, splits = manifest.rows, manifest.splits
    print(
        f"{rows['in']} rows: {rows['ok']} ok, {rows['rejected']} rejected; "
        + ", ".join(f"{count} {name}" for name, count in splits.items())
    )
    for note in _notes(manifest, out):
        print(f"note: {note}", file=sys.stderr)
    if encode:
        _encode(Path(out), rows["ok"], unimol, gin, encode_layers, encode_dtype)


def _notes(manifest: Manifest, out: str) -> Iterator[str]:
    """Yield what the user should know of what was written."""
    if manifest.rows["rejected"]:
        yield f"reasons for the rejected rows: {out.rstrip('/')}/rejected.jsonl"
    for pair, shared in manifest.overlaps.items():
        yield (
            f"{pair}: {shared['molecules']} molecules, and {shared['parents']} with the same "
            "parent (other salts, charges, isomers and tautomers counted)"
        )
    yield from manifest.guesses
    yield from _value_notes(manifest)
    for fact, reasons in manifest.unknown_facts.items():
        yield (
            f"fact {fact}: unknown for {sum(reasons.values())} of {manifest.rows['ok']} molecules ("
            + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            + "); neither asked about nor learned"
        )
    yield from _conformer_notes(manifest)
    for element, counts in manifest.unknown_elements.items():
        yield (
            f"Uni-Mol's dictionary lacks {element} ({counts['atoms']} atoms in "
            f"{counts['molecules']} molecules): the 3D encoder reads it as [UNK]"
        )


def _value_notes(manifest: Manifest) -> Iterator[str]:
    """Yield what of the columns did not become questions, and why."""
    from collamo.data.measured_values import UNREAD

    for column, counts in manifest.values.items():
        others = {name: n for name, n in counts.items() if name not in ("exact", "text")}
        if set(others) - {"blank"}:
            asked = sum(n for name, n in counts.items() if name not in UNREAD)
            yield (
                f"column {column!r}: {asked} of {sum(counts.values())} values asked for; "
                + ", ".join(f"{count} {name}" for name, count in others.items())
            )


def _conformer_notes(manifest: Manifest) -> Iterator[str]:
    """Yield how many molecules have no 3D, or another than their record's, and why."""
    from collamo.data.records import NOT_ASKED_FOR

    absent = {
        reason: count
        for reason, count in manifest.absent_conformers.items()
        if reason != NOT_ASKED_FOR
    }
    for counts, what in ((absent, "have no 3D"), (manifest.embedded_anew, "were embedded anew")):
        if counts:
            yield (
                f"{sum(counts.values())} of {manifest.rows['ok']} molecules {what}: "
                + ", ".join(f"{count} {reason}" for reason, count in list(counts.items())[:5])
                + (f" and {len(counts) - 5} other reasons" if len(counts) > 5 else "")
            )


def _encode(
    out: Path, molecules: int, unimol: Path | None, gin: Path | None, layers: int, dtype: str
) -> None:
    from collamo.model.precompute import store_encoder_outputs

    passes = (unimol is not None) + (gin is not None)
    with progress_bar("encoding", passes * molecules) as advance:
        stored = store_encoder_outputs(
            out, unimol=unimol, gin=gin, layers=layers, dtype=dtype, progress=advance
        )
    for modality, outputs in stored.items():
        origin = outputs.origin
        levels = ", ".join(map(str, origin.levels))
        print(
            f"{modality}: levels {levels} of {origin.channels} channels in {origin.dtype}, "
            f"{outputs.size / 2**20:.1f} MiB, weights {origin.weights[:12]}"
        )
