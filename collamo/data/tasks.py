"""Questions with known answers about a molecule. All wording lives here.

A molecule's facts (motif counts, computed properties) are measured once, by `measure`; turning
them into questions is text only, so shards keep facts and questions are written from them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem import QED, Crippen, Descriptors, rdMolDescriptors

from collamo.chem.conformer import Conformer
from collamo.chem.molecule import Molecule, captured_log
from collamo.chem.motifs import GROUP_NAMES, MOTIFS, count_motifs
from collamo.data.sources import MeasuredColumn

TASKS = ("motif_count", "property_2d", "property_3d", "caption", "iupac_name", "measured")
# Our choice: up to four motifs that are there, and as many that are not (one where none is there),
# so that half of the answers are not zero.
MOTIFS_PER_MOLECULE = 4


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
        Text. The unit is asked for in the question; the answer is the bare number.
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


@dataclass(frozen=True)
class Property:
    """A computed property: its target name, how a question calls it, unit, decimals of the answer.

    A `counted` one is asked with "How many …", the others with "What is the …".
    """

    target: str
    words: str
    unit: str | None
    decimals: int
    compute: Callable[[Chem.Mol], float]
    counted: bool = False


def _qed(mol: Chem.Mol) -> float:
    """Return QED (Bickerton et al. 2012); NaN for the few molecules it is not defined for."""
    try:
        with captured_log():  # it warns of a bare proton, without saying of which molecule
            return QED.qed(mol)
    except (ValueError, ZeroDivisionError):
        return float("nan")


PROPERTIES_2D: tuple[Property, ...] = (
    Property("molecular_weight", "molecular weight", "g/mol", 1, Descriptors.MolWt),
    Property("logp", "octanol-water partition coefficient (logP)", None, 2, Crippen.MolLogP),
    Property("tpsa", "topological polar surface area", "Å²", 1, rdMolDescriptors.CalcTPSA),
    Property("qed", "drug-likeness (QED)", None, 2, _qed),
    Property("fraction_sp3", "fraction of sp3 carbons", None, 2, rdMolDescriptors.CalcFractionCSP3),
    Property("hbond_donors", "hydrogen bond donors", None, 0, rdMolDescriptors.CalcNumHBD, True),
    Property(
        "hbond_acceptors", "hydrogen bond acceptors", None, 0, rdMolDescriptors.CalcNumHBA, True
    ),
    Property(
        "rotatable_bonds", "rotatable bonds", None, 0, rdMolDescriptors.CalcNumRotatableBonds, True
    ),
    Property("ring_count", "rings", None, 0, rdMolDescriptors.CalcNumRings, True),
    Property("heavy_atoms", "heavy atoms", None, 0, Chem.Mol.GetNumHeavyAtoms, True),
    Property("formal_charge", "formal charge", None, 0, Chem.GetFormalCharge),
)
# Of the heavy atoms (and the hydrogens that are atoms of `Molecule.mol`).
PROPERTIES_3D = ("radius_of_gyration", "longest_distance")
_PROPERTIES_3D_WORDS = {
    "radius_of_gyration": ("radius of gyration", 2),
    "longest_distance": ("longest distance between two heavy atoms", 1),
}


@dataclass(frozen=True)
class Facts:
    """What is exactly known about a molecule.

    Attributes
    ----------
    formula
        Hill formula, with the net charge.
    motifs
        Count of every motif of `MOTIFS`.
    properties
        Target of `PROPERTIES_2D` → value in its unit; QED is missing where it is not defined.
    geometry
        Target of `PROPERTIES_3D` → value in Å; empty without a conformer or with a single atom.
    """

    formula: str
    motifs: Mapping[str, int]
    properties: Mapping[str, float]
    geometry: Mapping[str, float]


def measure(molecule: Molecule, conformer: Conformer) -> Facts:
    """Compute the facts of one molecule."""
    # Six decimals: sums over atoms differ in the last bit with the order of the atoms.
    mol = molecule.mol
    values = {entry.target: round(float(entry.compute(mol)), 6) for entry in PROPERTIES_2D}
    return Facts(
        formula=rdMolDescriptors.CalcMolFormula(mol),
        motifs=count_motifs(molecule),
        properties={target: value for target, value in values.items() if np.isfinite(value)},
        geometry=_geometry(mol, conformer.coordinates),
    )


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
) -> list[TaskExample]:
    """As `build_tasks`, from facts that are already known; text only."""
    return [
        *_motif_tasks(facts, rng, row),
        *_property_2d_tasks(facts, rng, row),
        *_property_3d_tasks(facts, rng, row),
        *_text_tasks(facts, columns, rng, row),
        *_measured_tasks(columns, measured or {}, rng, row),
    ]


def task_rng(seed: int, key: str) -> random.Random:
    """Return the random source of one molecule: a function of the seed and its canonical SMILES.

    The same molecule gets the same questions wherever it stands in a file.
    """
    return random.Random(f"{seed} {key}")


def _geometry(mol: Chem.Mol, coordinates: np.ndarray | None) -> dict[str, float]:
    """Return R_g = √(Σ mᵢ|rᵢ − r̄|² / Σ mᵢ), r̄ the centre of mass, and max |rᵢ − rⱼ|, both Å."""
    if coordinates is None or len(coordinates) < 2:
        return {}
    r = coordinates.astype(np.float64)  # [N, 3]
    mass = np.array([atom.GetMass() for atom in mol.GetAtoms()])  # [N]; 0 for a dummy atom
    if mass.sum() == 0:
        return {}
    r = r - (mass[:, None] * r).sum(0) / mass.sum()
    squared = (mass * (r * r).sum(1)).sum() / mass.sum()
    span = max(float(((r - r[i]) ** 2).sum(1).max()) for i in range(len(r)))
    return {"radius_of_gyration": float(np.sqrt(squared)), "longest_distance": float(np.sqrt(span))}


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


def format_number(value: float, decimals: int | None) -> str:
    """Return `value` with a fixed number of decimals (None: six digits), never ``-0``."""
    text = f"{value:.6g}" if decimals is None else f"{value:.{decimals}f}"
    return text[1:] if re.fullmatch(r"-0(\.0+)?", text) else text


def _motif_tasks(facts: Facts, rng: random.Random, row: int) -> list[TaskExample]:
    present = [name for name in MOTIFS if facts.motifs.get(name)]
    absent = [name for name in MOTIFS if not facts.motifs.get(name)]
    asked = rng.sample(present, min(MOTIFS_PER_MOLECULE, len(present)))
    asked += rng.sample(absent, min(max(1, len(asked)), len(absent)))
    return [
        TaskExample(
            row,
            "motif_count",
            name,
            rng.choice(_COUNT_WORDINGS).format(things=f"{name}s"),
            str(facts.motifs.get(name, 0)),
            float(facts.motifs.get(name, 0)),
        )
        for name in asked
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


def _property_3d_tasks(facts: Facts, rng: random.Random, row: int) -> list[TaskExample]:
    tasks = []
    for target in PROPERTIES_3D:
        if target in facts.geometry:
            words, decimals = _PROPERTIES_3D_WORDS[target]
            column = MeasuredColumn(target, words, "Å", decimals)
            wording = rng.choice(_VALUE_WORDINGS)
            tasks.append(_number_task(row, "property_3d", column, facts.geometry[target], wording))
    return tasks


def _measured_tasks(
    columns: Mapping[str, str],
    measured: Mapping[str, MeasuredColumn],
    rng: random.Random,
    row: int,
) -> list[TaskExample]:
    tasks = []
    for name, column in measured.items():
        value = parse_measured(columns.get(name))
        if value is not None:
            wording = rng.choice(_MEASURED_WORDINGS)
            tasks.append(_number_task(row, "measured", column, value, wording))
    return tasks


def parse_measured(text: str | None) -> float | None:
    """Return the number in a measured column; None where there is none (blank, ``NA``, ``nan``)."""
    try:
        value = float(text) if text is not None else float("nan")
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _number_task(
    row: int, task: str, column: MeasuredColumn, value: float, wording: str
) -> TaskExample:
    unit = f" in {column.unit}" if column.unit else ""
    question = wording.format(words=column.description, things=column.description, unit=unit)
    answer = format_number(value, column.decimals)
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
    given = columns.get("caption")
    caption = " ".join(given.split()) if given else compose_caption(facts, rng)
    target = "given" if given else "composed"
    tasks = [TaskExample(row, "caption", target, rng.choice(_CAPTION_WORDINGS), caption)]
    if columns.get("iupac_name"):
        question = rng.choice(_IUPAC_WORDINGS)
        name = columns["iupac_name"].strip()
        tasks.append(TaskExample(row, "iupac_name", "iupac_name", question, name))
    return tasks


def compose_caption(facts: Facts, rng: random.Random) -> str:
    """Return 15-40 words about the molecule, every one of them true, in varied wording and order.

    The identity comes first or last; rings, groups and polarity in any order between.
    """
    about = [_rings_sentence(facts, rng), _groups_sentence(facts, rng), _polarity(facts, rng)]
    rng.shuffle(about)
    identity = _identity_sentence(facts, rng)
    parts = [identity, *about] if rng.random() < 0.75 else [*about, identity]
    return " ".join(parts)


def _identity_sentence(facts: Facts, rng: random.Random) -> str:
    weight = format_number(facts.properties["molecular_weight"], 1)
    wording = rng.choice(
        (
            "The molecule {formula} weighs {weight} g/mol.",
            "Its formula is {formula}, {weight} g/mol.",
            "It has the formula {formula}, weighing {weight} g/mol.",
        )
    )
    return wording.format(formula=facts.formula, weight=weight)


def _rings_sentence(facts: Facts, rng: random.Random) -> str:
    rings, aromatic = int(facts.properties["ring_count"]), facts.motifs["aromatic ring"]
    if rings == 0:
        return rng.choice(("It has no rings.", "It is acyclic.", "There are no rings."))
    kind = "all aromatic" if aromatic == rings else f"{aromatic or 'none'} of them aromatic"
    if rings == 1:
        kind = "aromatic" if aromatic else "not aromatic"
        return rng.choice((f"It has one ring, {kind}.", f"Its only ring is {kind}."))
    return rng.choice((f"It has {rings} rings, {kind}.", f"There are {rings} rings, {kind}."))


def _groups_sentence(facts: Facts, rng: random.Random) -> str:
    """Name up to two groups, the larger ones first, as RDKit's file orders them."""
    present = [name for name in GROUP_NAMES.values() if facts.motifs[name]][:2]
    if not present:
        return rng.choice(
            ("It carries none of the common functional groups.", "No common group is attached.")
        )
    listed = [_counted(facts.motifs[name], name) for name in present]
    text = " and ".join(listed)
    return rng.choice((f"It carries {text}.", f"Its groups include {text}."))


def _counted(count: int, name: str) -> str:
    if count == 1:
        return f"{'an' if name[0] in 'aeioN' else 'a'} {name}"
    return f"{count} {name}s"


def _polarity(facts: Facts, rng: random.Random) -> str:
    logp = format_number(facts.properties["logp"], 1)
    donors = _donors(int(facts.properties["hbond_donors"]))
    return rng.choice(
        (
            f"Its logP is {logp} with {donors}.",
            f"With {donors}, its logP is {logp}.",
            f"It has {donors} and a logP of {logp}.",
        )
    )


def _donors(count: int) -> str:
    if count == 0:
        return "no hydrogen bond donors"
    return "one hydrogen bond donor" if count == 1 else f"{count} hydrogen bond donors"


def corpus_line(example: TaskExample) -> str:
    """Return the plain text of an example, for training a language model."""
    return f"{example.question} {example.answer}"
