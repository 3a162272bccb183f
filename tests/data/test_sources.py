"""Sources: every record is a row, whatever is wrong with it."""

import gzip

import pytest

from collamo.data.sources import count_rows, open_source
from collamo.errors import UsageError


def texts(source):
    return [row.text for row in source]


def test_the_embedded_set():
    rows = list(open_source("nci"))
    assert len(rows) == 4999
    assert (rows[0].number, rows[0].text, rows[-1].number) == (1, "CC1=CC(=O)C=CC1=O", 4999)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", '\ufeffname,SMILES\r\nx,CCO\r\n\r\ny,"C"\r\n'),
        ("a.tsv", "SMILES\tname\nCCO\t1\nC\t2\n"),
        ("a.jsonl", '{"smiles": "CCO"}\n\n{"id": 3, "smiles": "C"}\n'),
        ("a.smi", "CCO ethanol, the one\n\nC\n"),
        ("a.smi", "smiles name\nCCO 1\nC 2\n"),
    ],
)
def test_every_format_reads_the_same_rows(write, name, content, gz):
    data = content.encode()
    path = write(f"{name}.gz", gzip.compress(data)) if gz else write(name, data)
    source = open_source(path)
    assert texts(source) == ["CCO", "C"]
    assert [row.number for row in source] == [1, 2]
    assert count_rows(source) == 2


def test_sdf_records_keep_their_properties(write):
    block = "x\n\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n    0.0 0.0 0.0 C\nM  END\n"
    content = f"{block}> <caption>\nline one\nline two\n\n> <mu> (2)\n1.5\n\n$$$$\n{block}$$$$\n"
    rows = list(open_source(write("a.sdf", content)))
    assert [row.kind for row in rows] == ["molblock", "molblock"]
    assert rows[0].columns == {"caption": "line one\nline two", "mu": "1.5"}
    assert rows[0].text == block


def test_known_columns_become_tasks(write):
    path = write(
        "a.csv", "Smiles,IUPAC Name,description,homo,other,gap\nCCO,ethanol,A thing,-0.2,9,\n"
    )
    source = open_source(path)
    assert next(iter(source)).columns == {
        "iupac_name": "ethanol",
        "caption": "A thing",
        "homo": "-0.2",
    }
    assert source.guessed["homo"].unit == "Hartree"
    assert not open_source(path, guess_columns=False).guessed
    asked = open_source(path, measured_columns=["other:kcal/mol"])
    assert asked.measured["other"].unit == "kcal/mol"
    assert next(iter(asked)).columns["other"] == "9"


def test_selfies_column(write):
    row = next(iter(open_source(write("a.csv", "selfies\n[C][C]\n"))))
    assert (row.kind, row.text) == ("selfies", "[C][C]")


def test_broken_records_are_rows_with_their_problem(write):
    source = open_source(write("a.csv", "smiles,n\nCCO,1\nCC,2,3\nC\n,\n"))
    assert [(row.number, row.text, row.problem and row.problem[0]) for row in source] == [
        (1, "CCO", None),
        (2, "CC", "fields"),
        (3, "C", "fields"),
        (4, "", None),
    ]
    source = open_source(write("a.jsonl", '{"smiles": "C"}\nnot json\n[1]\n{"other": 1}\n'))
    assert [row.problem and row.problem[0] for row in source] == [None, "json", "json", None]


def test_bytes_that_are_not_utf8_cost_their_row_only(write):
    source = open_source(write("a.csv", b"smiles,caption\nCCO,caf\xe9\nCC,caf\xc3\xa9\n"))
    first, second = source
    assert first.problem[0] == "encoding"
    assert second.problem is None
    assert second.columns["caption"] == "café"


@pytest.mark.parametrize(
    ("name", "content", "arguments", "words"),
    [
        ("a.csv", "a,smlies\n1,C\n", {"smiles_column": "smiles"}, "did you mean 'smlies'"),
        ("a.csv", "a,b\n1,C\n", {}, "no SMILES column; its columns are a, b"),
        ("a.csv", "smiles,Smiles\nC,C\n", {}, "2 times"),
        ("a.csv", "smiles,caption,caption\nC,a,b\n", {}, "2 times"),
        ("a.csv", "", {}, "is empty"),
        ("a.csv", "smiles\nC\n", {"measured_columns": ["mu"]}, "no column 'mu'"),
        ("a.csv", 'smiles\n"' + "C\n" * 100_000, {}, "line 2 is never closed"),
        ("a.csv", 'smiles,caption\nC,a\nCC,"open\nCCC,b\n', {}, "record of line 3 is never closed"),
        ("a.csv", "smiles;caption\nC;a\n", {}, "separate columns with commas"),
        ("a.txt", "smiles,caption\nC,a\n", {}, "separate columns with tabs"),
        ("a.csv", "smiles\nC\n".encode("utf-16"), {}, "UTF-16"),
        ("a.csv.gz", b"smiles\nC\n", {}, "not a gzip file"),
        ("a.smi", "C\n", {"smiles_column": "smiles"}, "SMI file has no columns"),
        ("a.jsonl", "nonsense\n", {}, "no JSON object with columns .line is not a JSON object: Ex"),
        (
            "a.jsonl",
            '{"smiles": "C", "smiles": "CC"}\n',
            {},
            "object with columns .*'smiles' is there twice",
        ),
        ("a.csv", "# ours\nsmiles\nC\n", {}, "remove the line '# ours'"),
        ("a.csv", "sep=,\nsmiles,a\nC,b\n", {}, "remove the line 'sep='"),
        ("a.csv", "<!DOCTYPE html>\n<html></html>\n", {}, "a.csv is an HTML page: the download"),
        ("a.smi.gz", gzip.compress(b"\n<html>"), {}, "a.smi.gz is an HTML page"),
        ("a.sdf", "version https://git-lfs.github.com/spec/v1\n", {}, "is a Git LFS pointer: run"),
        ("a.json", "<?xml version='1.0'?><Error/>", {}, "is an XML page"),
        ("a.csv", b"PK\x03\x04" + bytes(range(256)), {}, "an Excel workbook: unpack it, or save"),
        ("a.tsv", b"PAR1" + bytes(9), {}, "a Parquet file: give it the ending .parquet"),
        ("a.pdb", "C\n", {}, "unknown kind of file"),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(write, name, content, arguments, words):
    with pytest.raises(UsageError, match=words):
        list(open_source(write(name, content), **arguments))


def test_damaged_gzip_is_a_usage_error(write):
    whole = gzip.compress(b"smiles\n" + b"CCO\n" * 10_000)
    with pytest.raises(UsageError, match=r"a\.csv\.gz is a damaged gzip file"):
        list(open_source(write("a.csv.gz", whole[: len(whole) // 2])))


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        open_source(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="is a folder"):
        open_source(tmp_path)


def test_real_files_have_the_rows_that_their_readme_says(shared_data):
    rows = {
        "pubchem_3k.jsonl": 3301,
        "pubchem_3d_101.sdf": 101,
        "gdb1k.sdf": 1000,
        "qm9_500.csv": 499,
        "molt5_small_captions.tsv": 3300,
    }
    for name, count in rows.items():
        source = open_source(shared_data / name)
        found = list(source)
        assert len(found) == count, name
        assert all(row.problem is None for row in found), name
