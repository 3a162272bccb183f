"""Questions with known answers about a molecule. All wording lives here.

A molecule's facts (motif counts, computed properties) are measured once, by `measure`; turning
them into questions is text only, so shards keep facts and questions are written from them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass

from collamo.chem.conformer import Conformer
from collamo.chem.molecule import Molecule
from collamo.chem.motifs import MOTIFS
from collamo.data.columns import MeasuredColumn
from collamo.data.composed_captions import compose_caption
from collamo.data.facts import PROPERTIES_2D, SIZE_3D, Facts, format_number, measure
from collamo.data.geometry import HETEROATOM_DISTANCE, SHAPE_PROPERTIES, heteroatom_words
from collamo.data.measured_values import MeasuredValue, UnreadValue, in_unit, read_measured
from collamo.data.missing_values import is_missing

TASKS = ("motif_count", "property_2d", "property_3d", "caption", "iupac_name", "measured")
# Our choice: up to four motifs that are there, and as many that are not (one where none is there),
# so that half of the answers are not zero.
MOTIFS_PER_MOLECULE = 4
# Our choice: of the numbers of a shape one, drawn at random, beside two of size. The graph leaves
# them open, so that they are asked at all; a small model learns none: see `write_tasks`.
SHAPES_PER_MOLECULE = 1


@dataclass(frozen=True)
class TaskExample:
    """One question about one molecule.

    Attributes
    ----------
    molecule
        The row number of the molecule in its source (`PreparedData.features` takes it).
    task
        One of `TASKS`.
    target
        What exactly is asked: ``"hydroxyl group"``, ``"logp"``, ``"homo"`` …
    question, answer
        Text. The unit is asked for in the question; the answer is the bare number, after ``<``,
        ``>`` or ``~`` where the source says so.
    value
        The answer as a number, before rounding; None where the answer is text.
    unit
        Of `value`; None where it has none.
    """

    molecule: int
    task: str
    target: str
    question: str
    answer: str
    value: float | None = None
    unit: str | None = None


_GEOMETRY_COLUMNS = {
    column.name: column
    for column in (
        MeasuredColumn("radius_of_gyration", "radius of gyration", "Å", 2),
        MeasuredColumn("longest_distance", "longest distance between two heavy atoms", "Å", 1),
        *(MeasuredColumn(e.target, e.words, e.unit, e.decimals) for e in SHAPE_PROPERTIES),
    )
}


def build_tasks(
    molecule: Molecule,
    conformer: Conformer,
    columns: Mapping[str, str],
    rng: random.Random,
    row: int = 0,
    measured: Mapping[str, MeasuredColumn] | None = None,
) -> list[TaskExample]:
    """Return every question that can be asked about a molecule.

    Parameters
    ----------
    columns
        ``"caption"``, ``"iupac_name"`` and measured columns by name, as text (`SourceRow.columns`).
    rng
        Chooses motifs and wordings; `task_rng` gives one per molecule.
    row
        `TaskExample.molecule`.
    measured
        What the measured columns are (`Source.measured`).
    """
    return write_tasks(measure(molecule, conformer), columns, rng, row, measured)


def write_tasks(
    facts: Facts,
    columns: Mapping[str, str],
    rng: random.Random,
    row: int = 0,
    measured: Mapping[str, MeasuredColumn] | None = None,
    *,
    shapes: int = SHAPES_PER_MOLECULE,
) -> list[TaskExample]:
    """As `build_tasks`, from facts that are already known; text only.

    `shapes` is how many numbers of its shape are asked for. The demo has 0: its language model of
    half a million parameters answered them worse than their median, with one and with three.
    """
    return [
        *_motif_tasks(facts, rng, row),
        *_property_2d_tasks(facts, rng, row),
        *_property_3d_tasks(facts, rng, row, shapes),
        *_text_tasks(facts, columns, rng, row),
        *_measured_tasks(columns, measured or {}, rng, row),
    ]


def task_rng(seed: int, key: str) -> random.Random:
    """Return the random source of one molecule: a function of the seed and its canonical SMILES.

    The same molecule gets the same questions wherever it stands in a file.
    """
    return random.Random(f"{seed} {key}")


_COUNT_WORDINGS = (
    "How many {things} does this molecule have?",
    "How many {things} are in the molecule?",
    "Count the {things} of this molecule.",
    "What is the number of {things} in this molecule?",
)
_VALUE_WORDINGS = (
    "What is the {words} of this molecule{unit}?",
    "Give the {words} of the molecule{unit}.",
    "Estimate the {words} of this molecule{unit}.",
    "How large is the {words} of the molecule{unit}?",
)
_MEASURED_WORDINGS = (
    "What is the {words} of this molecule{unit}?",
    "Give the {words} of the molecule{unit}.",
    "Report the {words} of this molecule{unit}.",
)
_FORMULA_WORDINGS = (
    "What is the molecular formula of this molecule?",
    "Give the molecular formula of the molecule.",
    "Write the formula of this molecule.",
)


def _motif_tasks(facts: Facts, rng: random.Random, row: int) -> list[TaskExample]:
    present = [name for name in MOTIFS if facts.motifs.get(name)]
    absent = [name for name in MOTIFS if not facts.motifs.get(name)]
    motifs = rng.sample(present, min(MOTIFS_PER_MOLECULE, len(present)))
    motifs += rng.sample(absent, min(max(1, len(motifs)), len(absent)))
    return [
        TaskExample(
            row,
            "motif_count",
            name,
            rng.choice(_COUNT_WORDINGS).format(things=f"{name}s"),
            str(facts.motifs.get(name, 0)),
            float(facts.motifs.get(name, 0)),
        )
        for name in motifs
    ]


def _property_2d_tasks(facts: Facts, rng: random.Random, row: int) -> list[TaskExample]:
    formula = TaskExample(
        row, "property_2d", "formula", rng.choice(_FORMULA_WORDINGS), facts.formula
    )
    return [formula] + [
        _number_task(
            row,
            "property_2d",
            MeasuredColumn(entry.target, entry.words, entry.unit, entry.decimals),
            facts.properties[entry.target],
            rng.choice(_COUNT_WORDINGS if entry.counted else _VALUE_WORDINGS),
        )
        for entry in PROPERTIES_2D
        if entry.target in facts.properties
    ]


def _property_3d_tasks(
    facts: Facts, rng: random.Random, row: int, shapes: int
) -> list[TaskExample]:
    sizes = [target for target in SIZE_3D if target in facts.geometry]
    known = [key for key in facts.geometry if key not in SIZE_3D]
    return [
        _number_task(
            row,
            "property_3d",
            _GEOMETRY_COLUMNS.get(key) or _distance_column(key),
            facts.geometry[key],
            rng.choice(_VALUE_WORDINGS),
        )
        for key in sizes + rng.sample(known, min(shapes, len(known)))
    ]


def _distance_column(key: str) -> MeasuredColumn:
    """Return what is asked about the distance of two heteroatoms: one target for all elements."""
    return MeasuredColumn(HETEROATOM_DISTANCE, heteroatom_words(key), "Å", 2)


def _measured_tasks(
    columns: Mapping[str, str],
    measured: Mapping[str, MeasuredColumn],
    rng: random.Random,
    row: int,
) -> list[TaskExample]:
    tasks = []
    for name, column in measured.items():
        try:
            value = read_measured(columns.get(name) or "", column.decimal_comma)
            value = in_unit(value, column.unit)
        except UnreadValue:
            continue
        asked = _in_unit_of(value, column)
        wording = rng.choice(_MEASURED_WORDINGS)
        tasks.append(_number_task(row, "measured", asked, value.number, wording, value.qualifier))
    return tasks


def _in_unit_of(value: MeasuredValue, column: MeasuredColumn) -> MeasuredColumn:
    """Return the column as this value's question calls it: a unit that stayed is the value's."""
    if value.unit is None or value.unit == column.unit:
        return column
    return dataclasses.replace(column, unit=value.unit, decimals=None)


def _number_task(
    row: int, task: str, column: MeasuredColumn, value: float, wording: str, qualifier: str = ""
) -> TaskExample:
    unit = f" in {column.unit}" if column.unit else ""
    question = wording.format(words=column.description, things=column.description, unit=unit)
    answer = qualifier + format_number(value, column.decimals)
    return TaskExample(row, task, column.name, question, answer, value, column.unit)


_CAPTION_WORDINGS = (
    "Describe this molecule.",
    "Write a short description of the molecule.",
    "What can you say about this molecule?",
    "Give a caption for this molecule.",
)
_IUPAC_WORDINGS = (
    "What is the IUPAC name of this molecule?",
    "Give the IUPAC name of the molecule.",
    "Name this molecule by IUPAC rules.",
)


def _text_tasks(
    facts: Facts, columns: Mapping[str, str], rng: random.Random, row: int
) -> list[TaskExample]:
    """Return caption and name; a given caption replaces the composed one."""
    text, name = (_given(columns.get(kind)) for kind in ("caption", "iupac_name"))
    caption = " ".join(text.split()) if text else compose_caption(facts, rng)
    target = "given" if text else "composed"
    tasks = [TaskExample(row, "caption", target, rng.choice(_CAPTION_WORDINGS), caption)]
    if name:
        question = rng.choice(_IUPAC_WORDINGS)
        tasks.append(TaskExample(row, "iupac_name", "iupac_name", question, name))
    return tasks


def _given(text: str | None) -> str | None:
    return None if text is None or is_missing(text) else text.strip()


def corpus_line(example: TaskExample) -> str:
    """Return the plain text of an example, for training a language model."""
    return f"{example.question} {example.answer}"
