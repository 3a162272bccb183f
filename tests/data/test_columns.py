"""Columns by name: in any case, with commas and colons, with the unit that stands in them."""

import pytest

from collamo.data.column_guesses import RANGES, check_guesses
from collamo.data.columns import MEASURED_COLUMNS, ColumnChooser
from collamo.data.header_units import split_unit
from collamo.errors import UsageError


@pytest.mark.parametrize(
    ("column", "words", "unit"),
    [
        ("IC50, nM", "IC50", "nM"),
        ("logS [mol/L]", "logS", "mol/L"),
        ("logS [log mol/L]", "logS", "log mol/L"),
        ("cv (cal/(mol K))", "cv", "cal/(mol K)"),
        ("gap_eV", "gap", "eV"),
        ("homo_ev", "homo", "eV"),
        ("ic50_nM", "ic50", "nM"),
        ("dG_kcal_mol", "dG", "kcal/mol"),
        ("temperature in K", "temperature", "K"),
        ("yield (%)", "yield", "%"),
        *(
            (name, name, None)
            for name in ("logS:exp", "ic50_nm", "vitamin_K", "ph_min", "Ki, exp", "u0_atom", "D")
        ),
        ("rings (number)", "rings (number)", None),
        ("gap [eV] (PBE)", "gap [eV] (PBE)", None),
    ],
)
def test_units_in_names(column, words, unit):
    assert split_unit(column) == (words, unit)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("IC50, nM", {"IC50, nM": "nM"}),
        ("ic50, nm", {"IC50, nM": "nM"}),
        ("IC50, nM:µM", {"IC50, nM": "µM"}),
        ("logS:exp", {"logS:exp": None}),
        ("logS:exp:log mol/L", {"logS:exp": "log mol/L"}),
        ("gap_eV", {"gap_eV": "eV"}),
        ("gap_eV:", {"gap_eV": None}),
        ("gap_eV:meV, homo ,IC50, nM,", {"gap_eV": "meV", "homo": None, "IC50, nM": "nM"}),
        ("a,b", {"a": None, "b": None}),
    ],
)
def test_columns_that_the_user_names(entry, expected):
    chooser = ColumnChooser("a.csv", ["smiles", "IC50, nM", "logS:exp", "gap_eV", "homo", "a", "b"])
    measured = chooser.measured([entry])
    assert {name: column.unit for name, column in measured.items()} == expected
    assert chooser.measured(["IC50, nM"])["IC50, nM"].description == "IC50"


def test_a_name_that_is_none_is_refused():
    chooser = ColumnChooser("a.csv", ["smiles", "IC50, nM"])
    with pytest.raises(UsageError, match="no column 'IC50'"):
        chooser.measured(["IC50, µM"])


def test_guesses_stand_where_the_values_are_in_range():
    assert {name for limits in RANGES.values() for name in limits} == set(MEASURED_COLUMNS)
    guesses = ColumnChooser("a.csv", ["HOMO", "gap", "complexity", "mu"]).guessed()
    hartree = [{"HOMO": "-0.25", "gap": "0.3", "complexity": "100", "mu": "NA"}] * 3
    checked = check_guesses(guesses, hartree)
    assert {name: column.unit for name, column in checked.measured.items()} == {
        "HOMO": "Hartree",
        "gap": "Hartree",
        "complexity": None,
    }
    assert "QM9" in checked.sentences[0]
    assert "HOMO (HOMO energy, Hartree), gap" in checked.sentences[0]
    ev = [{"HOMO": "-7.1", "gap": "0.3", "complexity": "100", "mu": "1"}] * 3
    checked = check_guesses(guesses, ev)
    assert set(checked.measured) == {"complexity"}
    assert "HOMO is outside QM9's -0.6 … -0.05 Hartree in 3 of 3 rows" in checked.sentences[0]
    assert check_guesses(guesses, [{}]).sentences == ()
