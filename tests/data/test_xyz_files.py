"""XYZ files: a SMILES in the comment line, any number of records."""

import pytest

from collamo.data.record_file import RecordFile
from collamo.data.sources import open_source

WATER = "3\nO water\nO 0 0 0.12\nH 0 0.76 -0.47\nH 0 -0.76 -0.47\n"


def test_records_follow_one_another(write):
    source = open_source(write("a.xyz", WATER + "\n" + WATER.replace("water", "again")))
    assert [(row.kind, row.text) for row in source] == [
        ("xyz", WATER),
        ("xyz", WATER.replace("water", "again")),
    ]


@pytest.mark.parametrize("lines", [1, 2, 3, 4])
def test_a_record_that_is_cut_off_is_a_row(write, lines):
    cut = "".join(WATER.splitlines(keepends=True)[:lines])
    first, second = open_source(write("a.xyz", WATER + cut))
    assert first.problem is None
    assert second.problem == (
        "syntax",
        f"file ends after {max(0, lines - 2)} of a record's 3 atoms",
    )


@pytest.mark.parametrize("text", ["three", "-3", "3.0", "9" * 30, "²"])
def test_what_is_no_number_of_atoms_ends_the_file(write, text):
    rows = list(open_source(write("a.xyz", WATER + f"{text}\nO\n" + WATER)))
    assert [row.problem and row.problem[0] for row in rows] == [None, "syntax"]
    assert f"{text[:20]!r}, no number of atoms" in rows[1].problem[1]


def test_a_record_without_all_its_atoms(write):
    (row,) = open_source(write("a.xyz", WATER.replace("3", "4", 1)))
    assert row.problem == ("syntax", "file ends after 3 of a record's 4 atoms")


def test_a_record_of_qm9_that_lacks_a_number(write):
    text = "1\ngdb 1 0 0 0 1 2 3\nC 0 0 0 0\n\nC C\nInChI\n"
    (record,) = RecordFile(write("a.xyz", text))
    assert record.problem[0] == "syntax"
    assert RecordFile(write("b.xyz", text)).columns == ["xyz", "mu", "alpha", "homo"]
