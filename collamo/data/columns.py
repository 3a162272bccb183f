"""What the columns of a file mean: the molecule, a text about it, a measured number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from collamo.data.header_units import split_unit
from collamo.errors import UsageError, suggest

# Names under which files in the wild keep these columns; compared in lower case, blanks and
# hyphens as underscores. The first one present wins.
SMILES_COLUMNS = ("smiles", "canonical_smiles", "isomeric_smiles", "smi")
SELFIES_COLUMNS = ("selfies",)
CAPTION_COLUMNS = ("caption", "description")
INCHI_COLUMNS = ("inchi", "standard_inchi", "pubchem_iupac_inchi")
IUPAC_COLUMNS = ("iupac_name", "iupac", "pubchem_iupac_name")


@dataclass(frozen=True)
class MeasuredColumn:
    """A numeric column that becomes questions: what it is, its unit, decimals of the answer.

    A `decimal_comma` somewhere in it leaves it open what "1,234" means elsewhere.
    """

    name: str
    description: str
    unit: str | None = None
    decimals: int | None = None
    decimal_comma: bool = False


# Columns that are guessed by their names. QM9 as in its publication (Ramakrishnan et al., Sci. Data
# 1, 140022): energies in Hartree (x 27.211386246 = eV), lengths in Bohr radii a0.
MEASURED_COLUMNS: dict[str, MeasuredColumn] = {
    column.name: column
    for column in (
        MeasuredColumn("mu", "dipole moment", "D", 2),
        MeasuredColumn("alpha", "isotropic polarizability", "a0³", 2),
        MeasuredColumn("homo", "HOMO energy", "Hartree", 4),
        MeasuredColumn("lumo", "LUMO energy", "Hartree", 4),
        MeasuredColumn("gap", "HOMO-LUMO gap", "Hartree", 4),
        MeasuredColumn("r2", "electronic spatial extent", "a0²", 1),
        MeasuredColumn("zpve", "zero-point vibrational energy", "Hartree", 4),
        MeasuredColumn("cv", "heat capacity at 298.15 K", "cal/(mol K)", 2),
        MeasuredColumn("u0", "internal energy at 0 K", "Hartree", 2),
        MeasuredColumn("u298", "internal energy at 298.15 K", "Hartree", 2),
        MeasuredColumn("h298", "enthalpy at 298.15 K", "Hartree", 2),
        MeasuredColumn("g298", "free energy at 298.15 K", "Hartree", 2),
        MeasuredColumn("atomization_energy", "atomization energy", "kcal/mol", 1),
        MeasuredColumn("xlogp3", "XLogP3 partition coefficient", None, 1),
        MeasuredColumn("complexity", "PubChem complexity", None, 0),
    )
}


class ColumnChooser:
    """Finds columns by the name that the user gave, or by the names that are known."""

    def __init__(self, source: str, columns: Sequence[str]):
        self.source, self.columns = source, columns

    def column_called(self, name: str) -> str:
        """Return the column that the user named, in any case; UsageError where there is none."""
        column = self._column_like(name)
        if column is None:
            raise UsageError(
                f"{self.source} has no column {name!r}{suggest(name, self.columns)}; "
                f"its columns are {', '.join(self.columns) or '(none)'}"
            )
        return column

    def known_column(self, names: Sequence[str]) -> str | None:
        """Return the column that carries the first of the known `names`, None where none does."""
        normal = [normal_name(column) for column in self.columns]
        for name in map(normal_name, names):
            if name in normal:
                return self._once(self.columns[normal.index(name)])
        return None

    def column(self, name: str | None, names: Sequence[str]) -> str | None:
        """Return the column that the user named, else the one that carries a known name."""
        return self.known_column(names) if name is None else self.column_called(name)

    def guessed(self) -> dict[str, MeasuredColumn]:
        """Return column → what it would be, of those that carry a name of `MEASURED_COLUMNS`."""
        return {
            self._once(column): MEASURED_COLUMNS[normal_name(column)]
            for column in self.columns
            if normal_name(column) in MEASURED_COLUMNS
        }

    def measured(self, entries: Sequence[str]) -> dict[str, MeasuredColumn]:
        """Return column → what it is, of the user's ``"name"`` and ``"name:unit"``, by commas.

        A name may hold commas and colons: what is a column's name as it stands is that column. The
        unit is the user's, else the one in the column's name (`split_unit`).
        """
        measured = {}
        for entry in entries:
            for column, unit in self._named(entry.split(",")):
                name, unit_of_name = split_unit(column)
                words = (name if unit is None else column).replace("_", " ").strip()
                unit = unit_of_name if unit is None else unit or None
                measured[column] = MeasuredColumn(column, words, unit)
        return measured

    def _named(self, parts: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Yield (column, unit) of an entry split at its commas; the longest name comes first."""
        start = 0
        while start < len(parts):
            for end in range(len(parts), start, -1):
                column = self._column_with_unit(",".join(parts[start:end]).strip())
                if column is not None:
                    yield column
                    start = end
                    break
            else:
                name = parts[start].partition(":")[0].strip()
                if name:
                    self.column_called(name)  # raises: there is none
                start += 1

    def _column_with_unit(self, text: str) -> tuple[str, str | None] | None:
        column = self._column_like(text)
        if column is not None:
            return column, None
        for place in reversed([i for i, character in enumerate(text) if character == ":"]):
            column, unit = self._column_like(text[:place].strip()), text[place + 1 :].strip()
            if column is not None and "," not in unit:
                return column, unit
        return None

    def _column_like(self, name: str) -> str | None:
        if name in self.columns:
            return self._once(name)
        return self.known_column([name]) if name else None

    def _once(self, column: str) -> str:
        same = [other for other in self.columns if normal_name(other) == normal_name(column)]
        if len(same) > 1:
            raise UsageError(
                f"{self.source} has the column {column!r} {len(same)} times "
                f"({', '.join(same)}); rename or drop all but one"
            )
        if has_surrogate(column):
            raise UsageError(
                f"{self.source}: the name of the column {column!r} is not UTF-8; convert the file"
            )
        return column


def has_surrogate(text: str) -> bool:
    """Return whether a text holds what UTF-8 cannot: bytes that were not UTF-8, half a pair."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def normal_name(name: str) -> str:
    """Return the form in which names of columns are compared."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
