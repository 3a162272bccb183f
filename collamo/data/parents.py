"""The parents of all molecules of a preparation, looked for where two molecules may share one.

A parent serves to tell whether two molecules share it, and they can only if their neutral forms are
equal or have one `tautomer_key`. Where no other form has its key, a form stands for its parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collamo.chem.parent import Parent
from collamo.data.options import PrepareOptions
from collamo.data.workers import find_parents
from collamo.progress import progress_bar

PARENT_COLUMNS = ("neutral_smiles", "tautomer_key")


@dataclass(frozen=True)
class Parents:
    """Neutral form → parent, for the forms that have a neighbour."""

    found: Mapping[str, Parent]

    @classmethod
    def of_shards(
        cls, shards: Sequence[Path], options: PrepareOptions, workers: int, *, progress: bool
    ) -> Parents:
        """Look for the parents of the molecules in the shards, in worker processes."""
        forms = with_neighbours(
            pa.concat_tables(pq.read_table(path, columns=list(PARENT_COLUMNS)) for path in shards)
        )
        found = {}
        with progress_bar("finding parents", len(forms), show=progress and bool(forms)) as advance:
            for form, parent in find_parents(forms, options, workers) if forms else ():
                found[form] = parent
                advance(1)
        return cls(found)

    def of(self, neutral_smiles: str, tautomer_key: int | None) -> Parent:
        """Return the parent of a molecule, by its columns in the shard."""
        if tautomer_key is None:
            return Parent(neutral_smiles, bounded=True)  # see `NeutralForm`
        return self.found.get(neutral_smiles) or Parent(neutral_smiles)


def with_neighbours(molecules: pa.Table) -> list[str]:
    """Return the different neutral forms whose key another one has too; of `PARENT_COLUMNS`.

    >>> table = {"neutral_smiles": ["CC=O", "C=CO", "CC=O", "CO"], "tautomer_key": [1, 1, 1, 2]}
    >>> sorted(with_neighbours(pa.table(table)))
    ['C=CO', 'CC=O']
    """
    forms = molecules.group_by(list(PARENT_COLUMNS)).aggregate([])
    keys = forms.group_by("tautomer_key").aggregate([("neutral_smiles", "count")])
    shared = keys.filter(pc.greater(keys["neutral_smiles_count"], 1))["tautomer_key"].drop_null()
    return forms.filter(pc.is_in(forms["tautomer_key"], shared))["neutral_smiles"].to_pylist()
