"""From a row of the source to the record of a shard, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from collamo.chem.conformer import (
    Conformer,
    absent_conformer,
    embed_conformer,
    given_conformer,
    refusal_note,
)
from collamo.chem.features import featurize
from collamo.chem.molecule import Molecule
from collamo.chem.motifs import MOTIFS
from collamo.chem.parent import neutral_form
from collamo.data.facts import measure
from collamo.data.molecule_column import MOLECULE_READERS
from collamo.data.options import PrepareOptions
from collamo.data.sources import SourceRow
from collamo.data.splits import scaffold_of, split_named
from collamo.errors import MoleculeError

NOT_ASKED_FOR = "not asked for"  # why there is no conformer
# Our choice: molecules whose columns a process keeps, some 5 kB each. A file with several texts or
# measurements a molecule has them one after another.
REMEMBERED = 256


@dataclass(frozen=True)
class Outcome:
    """What became of one record: a shard record, or the reason why not."""

    record: dict[str, object] | None
    code: str | None = None
    message: str | None = None


def process_row(row: SourceRow, options: PrepareOptions, absence: str | None = None) -> Outcome:
    """Return the shard record of one row, or the reason why there is none. Runs in this process."""
    if row.problem is not None:
        return Outcome(None, *row.problem)
    problem = _split_problem(row, options)
    if problem is not None:
        return Outcome(None, "split", problem)
    try:
        columns = _molecule_columns(row.kind, row.text, row.geometry, row.start, options, absence)
    except MoleculeError as error:
        return Outcome(None, getattr(error, "code", "unreadable"), str(error))
    except (RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())[:200]
        return Outcome(None, "rdkit", f"RDKit failed: {type(error).__name__} {message}")
    own = {"row": row.number, "text": title(row), "columns": list(row.columns.items())}
    return Outcome({**own, **columns})


def _split_problem(row: SourceRow, options: PrepareOptions) -> str | None:
    """Return why the row belongs to no split, where a column says to which."""
    text = row.columns.get("split")
    if options.split_column is None or split_named(text) is not None:
        return None
    holds = f"{text!r}" if text else "nothing"
    return (
        f"column {options.split_column!r} says {holds}, not train, validation (valid, val, dev) "
        "or test"
    )


def _conformer(
    molecule: Molecule,
    geometry: str | None,
    start: bytes | None,
    options: PrepareOptions,
    absence: str | None,
) -> Conformer:
    conformer = given_conformer(molecule)
    if conformer is not None:
        return replace(conformer, method=geometry or conformer.method)
    if absence is not None:
        return absent_conformer(absence, options.seed)
    if not options.conformers:
        return absent_conformer("; ".join(filter(None, (NOT_ASKED_FOR, refusal_note(molecule)))))
    return embed_conformer(
        molecule,
        options.seed,
        options.force_field_steps,
        options.large_force_field_steps,
        None if start is None else np.frombuffer(start).reshape(-1, 3),
    )


def title(row: SourceRow) -> str:
    """Return the text of a row in a line: the title of a mol block, the comment of an XYZ block."""
    line = {"molblock": 0, "xyz": 1}.get(row.kind)
    return row.text if line is None else "\n".join(row.text.split("\n")[line : line + 1])


@lru_cache(maxsize=REMEMBERED)
def _molecule_columns(
    kind: str,
    text: str,
    geometry: str | None,
    start: bytes | None,
    options: PrepareOptions,
    absence: str | None,
) -> Mapping[str, object]:
    """Return the columns of a shard that the molecule alone sets."""
    molecule = MOLECULE_READERS[kind](text)
    conformer = _conformer(molecule, geometry, start, options, absence)
    features = featurize(molecule, conformer)
    facts = measure(molecule, conformer)
    coordinates = conformer.coordinates
    neutral = neutral_form(molecule.mol)
    return {
        "smiles": features.smiles,
        "canonical_smiles": molecule.canonical_smiles,
        "scaffold": _scaffold(molecule),
        "neutral_smiles": neutral.smiles,
        "tautomer_key": neutral.tautomer_key,
        "selfies": features.selfies,
        "selfies_reason": molecule.selfies_reason,
        "atom_features": features.atom_features.ravel(),
        "edge_index": features.edge_index.ravel(),
        "edge_features": features.edge_features.ravel(),
        "bond_directions": features.bond_directions,
        "coordinates": None if coordinates is None else coordinates.ravel(),
        "conformer_method": conformer.method,
        "conformer_seed": conformer.seed,
        "conformer_converged": conformer.converged,
        "conformer_reason": conformer.reason,
        "formula": facts.formula,
        "motifs": [facts.motifs[name] for name in MOTIFS],
        "properties": [*facts.properties.items(), *facts.unknown.items()],
        "geometry": list(facts.geometry.items()),
    }


def _scaffold(molecule: Molecule) -> str:
    """Return the scaffold; a SMILES that came canonical, as in many files, is read once."""
    canonical = molecule.canonical_smiles
    came = molecule.smiles == canonical and molecule.source_atoms is None
    return scaffold_of(canonical, molecule.mol if came else None)
