"""Files as people write them: every record comes back, or its place is named."""

import contextlib
import csv
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdkit import Chem

import collamo.data.readers as readers
from collamo.data.options import PrepareOptions
from collamo.data.record_file import RecordFile
from collamo.data.records import process_row
from collamo.data.sources import open_source
from collamo.errors import UsageError
from collamo.evaluation.score.predictions import read_predictions
from collamo.inference.question_files import QuestionRow, read_questions, write_answers

COLUMNS = ("smiles", "question", "output", "ground truth", "caption")


def rows(path, **options):
    return [
        (dict(record.values), record.problem and record.problem[0])
        for record in RecordFile(path, **options)
    ]


# Writers that share nothing with the readers


def as_csv(records):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([COLUMNS, *records])
    return buffer.getvalue()


def as_tsv(records):
    return "".join("\t".join(line) + "\n" for line in [COLUMNS, *records])


def as_jsonl(records):
    objects = [dict(zip(COLUMNS, record, strict=True)) for record in records]
    lines = [json.dumps(each, ensure_ascii=i % 2 == 0) for i, each in enumerate(objects)]
    return "".join(f"{line}\n" for line in lines)


def as_json(records):
    objects = [dict(zip(COLUMNS, record, strict=True)) for record in records]
    return json.dumps(objects, indent=len(records) % 3 or None, ensure_ascii=len(records) % 2 == 0)


def as_parquet(records):
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(
        [dict(zip(COLUMNS, record, strict=True)) for record in records],
        schema=pa.schema([(name, pa.string()) for name in COLUMNS]),
    )
    pq.write_table(table, buffer)
    return buffer.getvalue()


def as_smi(records):
    return "".join(f"{record[0]}\t{record[4]}\n" for record in records)


def as_sdf(records):
    buffer = io.StringIO()
    writer = Chem.SDWriter(buffer)
    for record in records:
        mol = Chem.MolFromSmiles(record[0]) or Chem.MolFromSmiles("C")
        mol.SetProp("_Name", record[0])
        for name, text in zip(COLUMNS[1:], record[1:], strict=True):
            mol.SetProp(name, text)
        writer.write(mol)
    writer.close()
    return buffer.getvalue()


HOSTILE = ['"', '"open', 'closed" on', "> <x>", ">", "$$$$", "a,b", "  ", "", "'", "\\t", "NaN"]
HOSTILE += ["{}", "M  END", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\ufeff", "\x00"]
HOSTILE += ["é", "𝛼", "#"]
BREAKS = ["\t", "\n", "\r", "\r\n", "\n\n", "\n$$$$\n", '"\n"', '\n",\n']
SMILES = st.sampled_from(["CCO", "C1CC", "", "[C][C][O]", "c1ccccc1", "CC.O", "[Na+].[Cl-]"])


def texts(pieces):
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r")
    piece = st.one_of(st.sampled_from(pieces), st.text(characters, max_size=3))
    return st.lists(piece).map("".join)


def one_line(text):
    return " ".join(text.replace("\x00", "").splitlines())


PIECES = [text.encode() for text in HOSTILE + BREAKS]
PIECES += [b"smiles", b"CCO", b"\xff", b"[", b"{", b'{"smiles": "C"}', b"\x1f\x8b", b"> <a>\n"]
PIECES += [b"  1  0  0  0  0  0  0  0  0  0999 V2000\n", b"\nM  END\n", b"smiles\tquestion\n"]
READERS = (open_source, read_questions, lambda path: list(read_predictions(path, "captions")))
FORMATS = {
    "csv": (as_csv, texts(HOSTILE + BREAKS)),
    "tsv": (as_tsv, texts(HOSTILE)),
    "txt": (as_tsv, texts(HOSTILE)),
    "jsonl": (as_jsonl, texts(HOSTILE + BREAKS)),
    "json": (as_json, texts(HOSTILE + BREAKS)),
    "parquet": (as_parquet, texts(HOSTILE + BREAKS)),
    "smi": (as_smi, texts(HOSTILE)),
    # A data item is lines that are not blank; what SDWriter makes of others is no SDF.
    "sdf": (as_sdf, texts(HOSTILE).map(one_line).filter(lambda text: not text.startswith("$$$$"))),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", FORMATS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_rows_in_are_rows_out_whatever_they_hold(tmp_path, name, packed, data):
    writer, text = FORMATS[name]
    record = st.tuples(SMILES, text, text, text, text)
    records = data.draw(st.lists(record, min_size=1, max_size=5))
    content = writer(records)
    content = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / (f"a.{name.upper()}.gz" if packed else f"a.{name}")
    path.write_bytes(gzip.compress(content) if packed else content)

    read = rows(path)
    assert len(read) == len(records)
    assert all(problem is None for _, problem in read)
    for record, (values, _) in zip(records, read, strict=True):
        if name == "smi":
            assert (values["smiles"], values["name"].strip()) == (record[0], record[4].strip())
        else:
            for column, text in list(zip(COLUMNS, record, strict=True))[name == "sdf" :]:
                expected = text if name != "sdf" or text.strip() else ""
                assert values[column] == expected

    outcomes = [process_row(row, PrepareOptions(conformers=False)) for row in open_source(path)]
    assert len(outcomes) == len(records)
    assert all(outcome.record or (outcome.code and outcome.message) for outcome in outcomes)
    if name != "smi":
        assert [row.number for row in read_questions(path)] == list(range(1, len(records) + 1))
        scored = list(read_predictions(path, "captions"))
        assert [row.reference for row in scored] == [
            record[3] if name != "sdf" or record[3].strip() else "" for record in records
        ]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from([*FORMATS, "mol"]),
    content=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4))).map(b"".join),
)
def test_no_bytes_crash_a_reader(tmp_path, name, content):
    path = tmp_path / f"a.{name}"
    path.write_bytes(content)
    for reader in READERS:
        with contextlib.suppress(UsageError):
            assert len(list(reader(path))) == len(list(reader(path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_hundred_thousand_records(tmp_path, name):
    """Long files, of which buffers and chunks see a part at a time; 100,000 over all formats."""
    draw = random.Random(name)
    pieces = [piece for piece in HOSTILE if name != "sdf" or (one_line(piece) and piece != "$$$$")]
    pieces += BREAKS if name in ("csv", "jsonl", "json", "parquet") else []
    smiles = ["CCO", "C1CC", "", "[C][C][O]", "c1ccccc1"]

    def text():
        joined = "".join(draw.choices(pieces, k=draw.randrange(6))) + "x" * draw.choice((0, 1, 300))
        return one_line(joined) if name == "sdf" else joined

    records = [(draw.choice(smiles), text(), text(), text(), text()) for _ in range(12_500)]
    content = FORMATS[name][0](records)
    path = tmp_path / f"a.{name}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = open_source(path)
    assert sum(row.problem is None for row in source) == len(records)
    if name != "smi":
        # A line of blanks ends a data item of an SDF.
        expected = [text if name != "sdf" or text.strip() else "" for *_, text, _ in records]
        assert [row.reference for row in read_predictions(path, "captions")] == expected


# One by one


def test_a_tsv_has_no_quotes(write):
    path = write("a.tsv", 'SMILES\tcaption\nCCO\t"open\nCCN\tsecond" one\nCCC\t""\n')
    assert [values["caption"] for values, _ in rows(path)] == ['"open', 'second" one', '""']


def test_answers_in_a_tsv_are_read_back_as_they_were(tmp_path):
    texts = ['The "simplest" alcohol.', '"', "a\tb\r\nc"]
    answered = [QuestionRow(i, {"smiles": "C", "note": text}) for i, text in enumerate(texts, 1)]
    for name in ("a.tsv", "A.TSV.gz"):
        write_answers(answered, tmp_path / name)
        read = [values for values, _ in rows(tmp_path / name)]
        assert [values["note"] for values in read] == ['The "simplest" alcohol.', '"', "a b c"]
        assert [bool(values["reason"]) for values in read] == [False, False, True]
    assert "note are written as blanks" in read[2]["reason"]
    write_answers(answered, tmp_path / "a.csv")
    assert [values["note"] for values, _ in rows(tmp_path / "a.csv")] == texts


def test_a_field_may_be_long(write):
    long = "x" * 200_000
    for name, content in (
        ("a.csv", f"smiles,caption\nC,{long}\n"),
        ("a.tsv", f"smiles\tcaption\nC\t{long}\n"),
        ("a.json", json.dumps([{"smiles": "C", "caption": long}, {"smiles": "N"}])),
    ):
        assert rows(write(name, content))[0][0]["caption"] == long


def test_a_quote_that_takes_too_much_is_refused(write, monkeypatch):
    monkeypatch.setattr(readers, "FIELD_LIMIT", 1000)
    path = write("a.csv", 'smiles\nC\n"' + "C\n" * 1000)
    with pytest.raises(UsageError, match="a quote may be open since the record of line 3"):
        rows(path)


def test_a_quote_at_fault_costs_its_row_or_is_refused(write):
    path = write("a.csv", 'smiles,caption\nCCO,"an" alcohol\nC,b\n')
    assert [problem for _, problem in rows(path)] == ["quotes", None]
    path = write("a.csv", 'smiles,caption\nCCO,"open\nCCN,b\nCCC,closed" on\nC,d\n')
    with pytest.raises(UsageError, match=r"opened in the record of line 2 is closed .* of line 4"):
        rows(path)


def test_a_single_empty_value_is_a_row_and_a_blank_line_is_none(write):
    path = write("a.csv", 'smiles\n""\n\nC\n')
    assert [values["smiles"] for values, _ in rows(path)] == ["", "C"]
    assert len(rows(write("a.csv", "smiles,b\n  \nC,\n\n"))) == 1
    path = write("a.tsv", "\nsmiles\tb\n\nC\t\n\t\n\n")
    assert [values["smiles"] for values, _ in rows(path)] == ["C", ""]
    assert [problem for _, problem in rows(path, keep_blank=True)] == ["blank", None, None, "blank"]


def test_an_empty_smiles_before_a_tab(write):
    path = write("a.smi", "CCO\tone\n\ttwo\n \tthree\nC four of it\r\n\n\t\n")
    assert [tuple(values.values()) for values, _ in rows(path)] == [
        ("CCO", "one"),
        ("", "two"),
        ("", "three"),
        ("C", "four of it"),
        ("", ""),
    ]


def test_lines_that_end_in_carriage_returns(write):
    for name, content in (
        ("a.smi", "CCO a\rC b\r"),
        ("a.csv", "smiles,n\rCCO,a\rC,b\r"),
        ("a.tsv", "smiles\tn\rCCO\ta\rC\tb\r"),
        ("a.jsonl", '{"smiles": "CCO"}\r{"smiles": "C"}\r'),
    ):
        assert [values["smiles"] for values, _ in rows(write(name, content))] == ["CCO", "C"]


def test_a_repeated_name_is_refused_where_it_is_used(write):
    path = write("a.csv", "smiles,question,name,name\nCCO,q,first,second\n")
    assert len(list(open_source(path))) == 1  # neither is read
    with pytest.raises(UsageError, match="column 'name' 2 times"):
        read_questions(path)
    path = write("a.jsonl", '{"smiles": "C", "smiles": "CC"}\n{"smiles": "N"}\n')
    assert [problem for _, problem in rows(path)] == ["json", None]
    with pytest.raises(UsageError, match=r"element 1 .* 'smiles' is there twice"):
        rows(write("a.json", '[{"smiles": "C", "smiles": "CC"}]'))


def test_bytes_that_are_not_utf8_cost_their_question(write):
    path = write("a.csv", b"SMILES,Question,name\nCCO,q,caf\xe9\nC,q,b\n")
    first, second = read_questions(path)
    assert first.reason == "row 1: not UTF-8; convert the file to UTF-8"
    assert second.reason is None
    with pytest.raises(UsageError, match=r"caf\\udce9' is not UTF-8"):
        open_source(write("a.csv", b"smiles,caf\xe9\nC,1\n"), measured_columns=["caf\udce9"])


def test_a_column_that_first_appears_late(write):
    lines = [{"smiles": "C"}] * 150 + [{"smiles": "C", "Caption": "late", "x": 1.5}]
    path = write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    last = list(open_source(path, measured_columns=["X"]))[-1]
    assert last.columns == {"caption": "late", "x": "1.5"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{\n"smiles": "C"\n}', "is no array of objects"),
        ('[{"smiles": "C"} {"smiles": "C"}]', "no comma or ] after element 1"),
        ('[{"smiles": "C"}, {"smiles": C}]', "element 2 is not JSON"),
        ('[{"smiles": "C"},]', "element 2 is not JSON"),
        ('[{"smiles": "C"}', "no comma or ] after element 1"),
        ('[{"smiles": "C"}][{"smiles": "C"}]', "goes on after its array"),
        ("", "is no array of objects"),
        ("[]", "no JSON object"),
    ],
)
def test_json_that_is_no_array_of_objects(write, content, words):
    with pytest.raises(UsageError, match=words):
        list(open_source(write("a.json", content)))


def test_a_column_of_objects_is_rejected(write):
    (row,) = open_source(write("a.json", '{"smiles": {"0": "C"}}'))
    assert row.problem == (
        "nested",
        "column 'smiles' holds an object; write one molecule a record, as text",
    )


def test_json_in_lines_or_an_array(write):
    lines = '{"smiles": "CCO"}\n{"smiles": "C"}\n'
    array = ' [ {"smiles": "CCO"}\n, {"smiles": "C"} ]\n'
    for content in (lines, array, "\ufeff" + array):
        path = write("a.json", content)
        assert [values["smiles"] for values, _ in rows(path)] == ["CCO", "C"]
    assert [problem for _, problem in rows(write("a.json", '[1, null, {"smiles": "C"}]'))] == [
        "json",
        "json",
        None,
    ]


def test_a_long_array_is_read_piece_by_piece(write):
    records = [{"smiles": "C" * (1 + i % 40), "n": i} for i in range(5000)]
    path = write("a.json", json.dumps(records))
    assert [values for values, _ in rows(path)] == records


def test_what_is_no_parquet(write, tmp_path):
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read as Parquet"):
        open_source(write("a.parquet", "smiles\nC\n"))
    with pytest.raises(UsageError, match=r"a\.parquet\.gz cannot be read as Parquet"):
        open_source(write("a.parquet.gz", "smiles\nC\n"))
    table = pa.table({"smiles": [["C"], ["CC"]], "n": [1, 2]})
    pq.write_table(table, tmp_path / "b.parquet")
    source = open_source(tmp_path / "b.parquet")
    assert [row.problem[0] for row in source] == ["nested", "nested"]


# SDF

BLOCK = "x\n\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n    0.0 0.0 0.0 C\nM  END\n"


def test_a_data_line_that_begins_with_a_bracket(write):
    path = write("a.sdf", f"{BLOCK}> <pic50>\n>10000\n> <not a name>\n\n> <b>\n2\n\n$$$$\n")
    ((values, problem),) = rows(path)
    assert values == {"molblock": BLOCK, "pic50": ">10000\n> <not a name>", "b": "2"}
    assert problem is None


def test_records_without_their_end(write):
    item = "> <a>\n1\n\n"
    whole = BLOCK + item
    for content in (f"{BLOCK}{BLOCK}$$$$\n{BLOCK}", f"{whole}{whole}$$$$\n{whole}"):
        read = rows(write("a.sdf", content))
        assert [values["molblock"] for values, _ in read] == [BLOCK] * 3
    # An older writer leaves the version out: what cannot be taken apart is refused.
    old = BLOCK.replace(" V2000", "")
    assert [problem for _, problem in rows(write("a.sdf", f"{old}{old}$$$$\n{old}$$$$\n"))] == [
        "sdf",
        None,
    ]


def test_a_mol_block_inside_a_data_item_is_no_record(write):
    path = write("a.sdf", f"{BLOCK}> <block>\n{BLOCK}\n> <a>\n1\n\n$$$$\n")
    ((values, _),) = rows(path)
    assert values["a"] == "1"
    assert "V2000" in values["block"]
    for text in ("As drawn:", "As\ndrawn:"):
        content = f"{BLOCK}> <block>\n{text}\n{BLOCK}\n> <a>\n1\n\n$$$$\n{BLOCK}$$$$\n"
        (values, _), _ = rows(write("a.sdf", content))
        assert values["a"] == "1"
        assert values["block"].startswith(f"{text}\nx\n")


def test_blank_lines_before_a_record(write):
    path = write("a.sdf", f"\n\n{BLOCK}$$$$\n\n\n\n{BLOCK}$$$$\n\n\n")
    assert [values["molblock"] for values, _ in rows(path)] == [BLOCK, BLOCK]
    nameless = BLOCK.replace("x", "", 1)
    assert rows(write("a.sdf", f"{nameless}$$$$\n"))[0][0]["molblock"] == nameless


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_columns_without_a_name_keep_their_values(write, tmp_path, name):
    lines = [["", "smiles", "question", ""], ["0", "CCO", "why?", "note"]]
    mark = "," if name == "a.csv" else "\t"
    path = write(name, "".join(mark.join(line) + "\n" for line in lines))
    (row,) = read_questions(path)
    assert row.columns == {
        "Unnamed: 0": "0",
        "smiles": "CCO",
        "question": "why?",
        "Unnamed: 3": "note",
    }
    write_answers([row], tmp_path / "out.csv")
    (written,) = csv.DictReader((tmp_path / "out.csv").open())
    assert (written["Unnamed: 0"], written["Unnamed: 3"]) == ("0", "note")
    (row,) = read_questions(write(name, "".join(mark.join(line[:3]) + "\n" for line in lines)))
    assert row.columns[""] == "0"  # one such column has a name that no other has


def test_a_data_item_given_twice(write):
    path = write("a.sdf", f"{BLOCK}> <a>\n1\n\n> <a>\n2\n\n$$$$\n{BLOCK}$$$$\n")
    assert [problem for _, problem in rows(path)] == ["columns", None]


def test_a_mol_file_is_one_record(write):
    for name in ("a.mol", "A.MOL"):
        assert [row.kind for row in open_source(write(name, BLOCK))] == ["molblock"]


# What to do instead


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "CCO,ethanol\nCCN,amine\n", "is the header missing.*'CCO' is a molecule"),
        ("a.txt", "CCO ethanol\nCCN amine\n", "is the header missing.*save bare molecules as .smi"),
        ("a.jsonl", '{"m": {"smiles": ["C"]}}\n', "column 'm' holds lists or objects"),
    ],
)
def test_a_line_says_what_to_do(write, name, content, words):
    with pytest.raises(UsageError, match=words):
        open_source(write(name, content))


@pytest.mark.parametrize("name", ["a", "a.csv", "a.jsonl"])
def test_a_folder_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    for read in READERS:
        with pytest.raises(UsageError, match="is a folder"):
            read(tmp_path / name)


def test_columns_are_named_in_any_case(write):
    path = write("a.CSV", "Molecule,Q,GT,Pred\n[C][C][O],why?,a,b\n")
    (row,) = open_source(path, selfies_column="molecule")
    assert (row.kind, row.text) == ("selfies", "[C][C][O]")
    (row,) = read_questions(path, smiles_column="MOLECULE", question_column="q")
    assert (row.molecule, row.question) == (("[C][C][O]", "smiles"), "why?")
    (row,) = read_predictions(path, "captions")
    assert (row.prediction, row.reference, row.molecule) == ("b", "a", "[C][C][O]")
    with pytest.raises(UsageError, match="once"):
        open_source(path, selfies_column="molecule", smiles_column="molecule")


def test_selfies_and_inchi_are_told_from_smiles(write):
    texts = ["CCO", "[C][C][O]", "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"]
    for content in (texts, ["SMILES", *texts], ["smi", *texts]):
        path = write("a.smi", "".join(f"{text}\n" for text in content))
        made = [process_row(row, PrepareOptions(conformers=False)) for row in open_source(path)]
        assert [outcome.record["canonical_smiles"] for outcome in made] == ["CCO"] * 3
    path = write("a.csv", 'InChI\n"InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"\nInChI=nonsense\n')
    good, bad = (process_row(row, PrepareOptions(conformers=False)) for row in open_source(path))
    assert good.record["canonical_smiles"] == "CCO"
    assert (bad.code, bad.message) == (
        "syntax",
        "InChI 'InChI=nonsense' cannot be read; fix it or drop the row",
    )
