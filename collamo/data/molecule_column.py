"""The column of a file that holds the molecule, and how its text is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from collamo.chem.inchi import is_inchi, molecule_from_inchi
from collamo.chem.molecule import Molecule, parse_molecule
from collamo.chem.xyz import molecule_from_xyz
from collamo.data.columns import (
    INCHI_COLUMNS,
    SELFIES_COLUMNS,
    SMILES_COLUMNS,
    ColumnChooser,
    normal_name,
)
from collamo.data.readers import Problem, text_value
from collamo.data.record_file import RecordFile
from collamo.data.sdf_file import MOLBLOCK
from collamo.data.xyz_file import XYZ
from collamo.errors import MoleculeError, UsageError, suggest


def _told_apart(text: str) -> Molecule:
    return molecule_from_inchi(text) if is_inchi(text) else parse_molecule(text)


#: Kind → how its text is read. "smiles" takes SELFIES, InChI and mol blocks too: they are told
#: apart.
MOLECULE_READERS: dict[str, Callable[[str], Molecule]] = {
    "smiles": _told_apart,
    "selfies": Molecule.from_selfies,
    "molblock": Molecule.from_molblock,
    "xyz": molecule_from_xyz,
}
# Formats whose records are a molecule: the column, which has the name of the kind.
_BLOCKS = {"sdf": MOLBLOCK, "xyz": XYZ}


@dataclass(frozen=True)
class MoleculeColumn:
    """A column of molecules and the kind of its texts, a key of `MOLECULE_READERS`."""

    name: str
    kind: str

    def text(self, values: Mapping[str, object]) -> tuple[str, Problem | None]:
        """Return the molecule of a record as text, "" where it has none, and what is wrong."""
        value = values.get(self.name)
        if isinstance(value, list | dict):
            what = "a list" if isinstance(value, list) else "an object"
            reason = f"column {self.name!r} holds {what}; write one molecule a record, as text"
            return text_value(value), ("nested", reason)
        return text_value(value), None


def molecule_column(
    file: RecordFile,
    chooser: ColumnChooser,
    smiles_column: str | None = None,
    selfies_column: str | None = None,
) -> MoleculeColumn:
    """Return the column that the user named, else the mol block, else one with a known name.

    Raises
    ------
    UsageError
        Without such a column, with what is the matter as far as it can be told.
    """
    if smiles_column and selfies_column:
        raise UsageError("name the column of molecules once: --smiles-column or --selfies-column")
    if smiles_column or selfies_column:
        column = chooser.column_called(smiles_column or selfies_column or "")
        kind = column if column == _BLOCKS.get(file.format) else "smiles"
        return MoleculeColumn(column, "selfies" if selfies_column else kind)
    if file.format in _BLOCKS:
        block = _BLOCKS[file.format]
        return MoleculeColumn(block, block)
    for names, kind in (
        (SMILES_COLUMNS, "smiles"),
        (SELFIES_COLUMNS, "selfies"),
        (INCHI_COLUMNS, "smiles"),
    ):
        known = chooser.known_column(names)
        if known is not None:
            return MoleculeColumn(known, kind)
    raise UsageError(
        f"{file.name} has no SMILES column{suggest('smiles', file.columns)}; its columns are "
        f"{', '.join(file.columns) or '(none)'}; {_advice(file)}"
    )


def _advice(file: RecordFile) -> str:
    columns = file.columns
    if file.format == "csv" and len(columns) == 1 and re.search(r"[;\t|]", columns[0]):
        return "separate columns with commas, or with tabs in a .tsv"
    if file.format == "tsv" and len(columns) == 1 and re.search(r"[,;|]", columns[0]):
        return "separate columns with tabs, or name the file .csv if it has commas"
    if columns and re.match(r"#|sep=", columns[0], flags=re.IGNORECASE):
        return f"remove the line {columns[0]!r}, so that the names of the columns come first"
    if file.nested:
        return (
            f"column {min(file.nested)!r} holds lists or objects: write a flat record a molecule, "
            'such as {"smiles": "CCO", "caption": "…"}'
        )
    if file.format in ("csv", "tsv") and (molecule := next(filter(_is_data, columns), None)):
        return (
            f"is the header missing? {molecule!r} is a molecule: write a first line with the names "
            "of the columns, such as smiles and caption, or save bare molecules as .smi"
        )
    return "name the right one with smiles_column (--smiles-column) or selfies_column"


def _is_data(column: str) -> bool:
    if normal_name(column) in ("", "name", "id", "no"):
        return False
    try:
        parse_molecule(column.split()[0])
    except MoleculeError:
        return False
    return True
