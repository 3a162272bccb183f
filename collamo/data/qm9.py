"""QM9 out of the wheel qm9pack: 133,885 small molecules with a DFT geometry and its properties.

Ramakrishnan, Dral, Rupp and von Lilienfeld, Sci. Data 1, 140022 (2014). The wheel (MIT) keeps the
set as CSV files, which are read as text: its code is not run, and it holds no pickle.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.util
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from collamo.data.columns import MEASURED_COLUMNS, ColumnChooser, MeasuredColumn
from collamo.data.readers import Record
from collamo.data.xyz_file import XYZ, xyz_block
from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.extras import missing_extra
from collamo.files import file_sha256

PACKAGE = "qm9pack"
GEOMETRY = "b3lyp/6-31g(2df,p)"  # the level of theory of geometries and properties
RECORDS = 133_885
# As most papers split the 130,831 that are characterized: these two sizes, and the rest for test.
_SPLIT_SIZES = {"train": 110_000, "validation": 10_000}
#: The properties that are asked for when none is named.
ASKED = ("homo", "lumo", "gap", "mu", "alpha", "r2")
UNCHARACTERIZED = (
    "uncharacterized",
    "QM9 leaves it out: its geometry did not keep the bonds that the SMILES has",
)
HARTREE = 27.211386246  # eV, CODATA 2018

_PARTS = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")
# The wheel's names → QM9's own, which `MEASURED_COLUMNS` explains.
_NAMES = {
    "Dipole_debye": "mu",
    "Polarizability_bohr3": "alpha",
    "HOMO_au": "homo",
    "LUMO_au": "lumo",
    "HOMO_LUMO_gap_au": "gap",
    "R2_bohr2": "r2",
    "ZPVE_au": "zpve",
    "InternalEnergy_0K_au": "u0",
    "InternalEnergy_298K_au": "u298",
    "Enthalphy_298K_au": "h298",
    "GibbsFreeEnergy_298K_au": "g298",
    "Heatcapacity_Cv_cal_mol_K": "cv",
}


class Qm9Wheel:
    """The set as a file of records, which `collamo.data.record_file.RecordFile` is for a real one.

    Record n is QM9's own number n; one that is left out there has the problem `UNCHARACTERIZED`.
    `in_ev` names the energies that are given in eV; the others stay in Hartree.

    Raises
    ------
    MissingDependencyError
        Without the wheel; while reading CollamoError for a wheel that holds something else.
    """

    name = "qm9"
    format = XYZ
    columns = (XYZ, *_NAMES.values())

    def __init__(self, in_ev: Collection[str] = ()):
        self._in_ev = frozenset(in_ev)
        spec = importlib.util.find_spec(PACKAGE)  # does not import it, nor pandas
        if spec is None or not spec.submodule_search_locations:
            raise MissingDependencyError(missing_extra("qm9", PACKAGE))
        folder = Path(spec.submodule_search_locations[0]) / "data"
        self._paths = [folder / name for name in _PARTS]

    def __iter__(self) -> Iterator[Record]:
        expected = 1
        for row in self._rows():
            record, number = self._record(row), int(row["Index"])
            yield from _left_out(range(expected, number))
            yield record
            expected = number + 1
        yield from _left_out(range(expected, RECORDS + 1))

    @cached_property
    def sha256(self) -> str:
        """Of the SHA-256 of the wheel's files."""
        hashes = "".join(file_sha256(path) for path in self._paths)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def _rows(self) -> Iterator[Mapping[str, str]]:
        for path in self._paths:
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    yield from csv.DictReader(file)
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                raise CollamoError(
                    f"{path} cannot be read ({error}); install the wheel {PACKAGE} again"
                ) from None

    def _record(self, row: Mapping[str, str]) -> Record:
        try:
            number = int(row["Index"])
            elements = row["Elements"].strip("[]").replace("'", "").split(",")
            places = row["XYZ_Ang"].strip("[]").split("],[")
            atoms = [
                f"{element} {place.replace(',', ' ')}"
                for element, place in zip(elements, places, strict=True)
            ]
            block = xyz_block(f"{row['SMILES']} gdb_{number}", atoms)
            values = {name: self._value(name, row[column]) for column, name in _NAMES.items()}
        except (KeyError, ValueError) as error:
            raise CollamoError(
                f"{PACKAGE}: record {row.get('Index')} is laid out in another way ({error}); "
                f"install {PACKAGE}==1.0.3"
            ) from None
        return Record({XYZ: block, **values})

    def _value(self, name: str, text: str) -> str:
        return f"{float(text) * HARTREE:.6f}" if name in self._in_ev else text


def split_sizes(records: int) -> dict[str, int]:
    """Return the sizes of the published split, less where only the first `records` are read.

    >>> split_sizes(133_885)
    {'train': 110000, 'validation': 10000}
    """
    return {name: size * records // RECORDS for name, size in _SPLIT_SIZES.items()}


def _left_out(numbers: Iterable[int]) -> Iterator[Record]:
    return (Record({XYZ: f"gdb_{number}"}, UNCHARACTERIZED) for number in numbers)


def qm9_columns(entries: Sequence[str]) -> dict[str, MeasuredColumn]:
    """Return column → what it is, of the user's ``"homo"`` and ``"gap:eV"``; `ASKED` without any.

    Raises
    ------
    UsageError
        For a name that QM9 has not, and a unit that a value is not given in.

    Examples
    --------
    >>> column = qm9_columns(["gap:eV"])["gap"]
    >>> column.unit, column.decimals
    ('eV', 3)
    """
    chooser = ColumnChooser("qm9", Qm9Wheel.columns[1:])
    named = chooser.measured(entries or ASKED)
    return {name: _in_unit(MEASURED_COLUMNS[name], column.unit) for name, column in named.items()}


def _in_unit(column: MeasuredColumn, unit: str | None) -> MeasuredColumn:
    """Return the column in the unit that was asked for; None is QM9's own."""
    if unit in (None, column.unit):
        return column
    if column.unit == "Hartree" and unit == "eV":
        # Our choice: three decimals of an eV, because four of a Hartree are 0.0027 eV.
        return dataclasses.replace(column, unit="eV", decimals=3)
    units = f"{column.unit} or eV" if column.unit == "Hartree" else column.unit
    raise UsageError(f"qm9 gives {column.name} in {units}, not in {unit}")
