"""The mapped files: the same rows as the shards', checked where they are read, in few pages."""

import json
import pickle
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import collamo.data.mapped_batches as batches_module
import collamo.data.mapped_file as file_module
from collamo.data.facts import count_elements
from collamo.data.mapped import DIGESTS, FOLDER, INDEX, open_mapped
from collamo.data.mapped_file import MappedArray, MappedFile, array_writer, block_digests
from collamo.data.mapped_questions import write_questions
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.data.shards import NUMBERS, SPLITS, TASK_SCHEMA, by_name, tasks_path
from collamo.data.tasks import TaskExample
from collamo.errors import CollamoError

# The first, a middle and the last row are rejected; one has no conformer.
SMILES = ("C1CC", "CCO", "[He]", "[Na+].[Cl-]", "", "c1ccccc1O", "[U]", "CCN", "C1C#C1", "x")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapped")
    (folder / "a.csv").write_text(
        "smiles,name\n" + "".join(f"{smiles},x\n" for smiles in SMILES * 8)
    )
    prepare(
        folder / "a.csv",
        folder / "data",
        PrepareOptions(shard_size=7),
        workers=1,
        max_reject_rate=0.5,
    )
    return folder / "data"


@pytest.fixture
def data(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return PreparedData.open(tmp_path / "data")


def mapped_bytes(data):
    return {p.name: p.read_bytes() for p in (data.folder / FOLDER).iterdir()}


def test_prepare_writes_them_and_opening_makes_the_same_where_they_are_not(data):
    written = mapped_bytes(data)
    assert INDEX in written
    shutil.rmtree(data.folder / FOLDER)
    data.features(2)
    assert mapped_bytes(data) == written


def test_rows_are_those_of_the_shards(data):
    rows = 0
    for shard in range(data.num_shards):
        table = data.table(shard)
        for record in table.to_pylist():
            features, rows = data.features(record["row"]), rows + 1
            assert features.smiles == record["smiles"]
            assert features.selfies == (record["selfies"] and tuple(record["selfies"]))
            for name in ("atom_features", "edge_index", "edge_features", "bond_directions"):
                array = getattr(features, name)
                assert array.ravel().tolist() == record[name]
                assert str(array.dtype) in str(table.schema.field(name).type)
            conformer = features.conformer
            flat = None if conformer.coordinates is None else conformer.coordinates.ravel().tolist()
            assert flat == record["coordinates"]
            for field in fields(conformer)[1:]:
                assert getattr(conformer, field.name) == record[f"conformer_{field.name}"]
            known = {
                **count_elements(record["formula"]),
                **by_name(record["properties"]),
                **by_name(record["geometry"]),
            }
            expected = [*record["motifs"], *(known.get(name, np.nan) for name in NUMBERS)]
            np.testing.assert_array_equal(data.facts(record["row"]), np.array(expected, np.float32))
    assert rows == data.manifest.rows["ok"] > batches_module.ROWS * 0.8
    for row in (1, 5, 10, 11, 80):
        with pytest.raises(KeyError, match=f"row {row} was rejected"):
            data.features(row)
    for row in (0, 81):
        with pytest.raises(KeyError, match="outside the 80 prepared rows"):
            data.features(row)


def test_questions_are_those_of_the_file(data):
    for split in SPLITS:
        records = pq.read_table(tasks_path(data.folder, split)).to_pylist()
        expected, questions = [TaskExample(**record) for record in records], data.tasks(split)
        assert list(questions) == expected
        assert [questions[i] for i in range(-1, len(expected) - 1, 3)] == [
            expected[i] for i in range(-1, len(expected) - 1, 3)
        ]
        assert questions[2:5] == expected[2:5]
        with pytest.raises(IndexError):
            questions[len(expected)]


def test_splits_are_read_on_demand(data):
    train = data.molecules("train")
    table = pq.read_table(data.folder / "splits.parquet").to_pylist()
    rows = [entry["row"] for entry in table if entry["split"] == "train"]
    assert list(train) == rows
    assert 1 not in train
    np.testing.assert_array_equal(
        np.concatenate(list(data.facts_of("train"))), [data.facts(row) for row in rows]
    )


def test_other_workers_read_the_same(data):
    again = pickle.loads(pickle.dumps(data))
    assert again.features(2).smiles == "CCO"
    copied = pickle.loads(pickle.dumps(data.mapped))
    assert copied.molecules.features(2).smiles == "CCO"
    assert copied.questions("train")[3] == data.tasks("train")[3]


def test_every_altered_file_is_named_and_made_again_once_deleted(data):
    before = data.features(2)
    for path in sorted((data.folder / FOLDER).iterdir()):
        content = path.read_bytes()
        if path.name in ("lock", INDEX, DIGESTS):
            continue
        path.unlink()  # as a copy would: the file that is mapped stays
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        fresh = PreparedData.open(data.folder)
        with pytest.raises(CollamoError, match=f"{re.escape(path.name)} is missing or was altered"):
            read_all(fresh)
        path.write_bytes(content)
    shutil.rmtree(data.folder / FOLDER)
    read_all(PreparedData.open(data.folder))
    assert before.smiles == "CCO"


def read_all(data):
    rows = [row for split in SPLITS for row in data.molecules(split)]
    for row in rows:
        data.features(row), data.facts(row)
    molecules = data.mapped.molecules
    _ = molecules.atoms[:], molecules.conformer_atoms[:]
    for split in SPLITS:
        questions = data.questions(split)
        list(questions)
        for place in range(len(questions.molecules)):
            questions.size(place, np.arange(1))
        questions.asking(["caption"])


@pytest.mark.parametrize("name", [INDEX, DIGESTS])
def test_a_damaged_index_is_made_anew(data, name, caplog):
    path = data.folder / FOLDER / name
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert data.features(2).smiles == "CCO"
    assert path.read_bytes() == content
    assert "it is made again from the shards" in caplog.text


def test_of_other_shards_they_are_not_used(data, made, tmp_path):
    (tmp_path / "b.csv").write_text("smiles\nCCS\nCCO\n")
    prepare(tmp_path / "b.csv", tmp_path / "other", PrepareOptions(), workers=1)
    shutil.rmtree(tmp_path / "other" / FOLDER)
    shutil.copytree(made / FOLDER, tmp_path / "other" / FOLDER)
    assert PreparedData.open(tmp_path / "other").features(1).smiles == "CCS"


def test_beside_a_folder_that_cannot_be_written_to(data, tmp_path, monkeypatch):
    shutil.rmtree(data.folder / FOLDER)
    monkeypatch.setenv("COLLAMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    assert data.features(2).smiles == "CCO"
    assert not (data.folder / FOLDER).exists()
    (made,) = (tmp_path / "cache" / "mapped").iterdir()
    stamp = (made / INDEX).stat().st_mtime_ns
    assert PreparedData.open(data.folder).features(2).smiles == "CCO"
    assert (made / INDEX).stat().st_mtime_ns == stamp


def test_what_was_cut_off_is_done_again(data, monkeypatch):
    shutil.rmtree(data.folder / FOLDER)
    with monkeypatch.context() as patch:
        patch.setattr("collamo.data.mapped.write_questions", _killed)
        with pytest.raises(KeyboardInterrupt):
            data.features(2)
    assert not (data.folder / FOLDER / INDEX).exists()
    assert PreparedData.open(data.folder).features(2).smiles == "CCO"


def _killed(*arguments):
    raise KeyboardInterrupt


def test_molecules_over_several_tables_stay_whole(tmp_path):
    examples = [
        TaskExample(row, "caption", "composed", f"What is {i}?", "a" * i)
        for row, count in ((2, 3), (5, 1), (6, 4))
        for i in range(count)
    ]
    tables = [
        pa.Table.from_pylist([vars(e) for e in examples[start : start + 2]], schema=TASK_SCHEMA)
        for start in range(0, 8, 2)
    ]
    for name, parts in (("one", [pa.concat_tables(tables)]), ("many", tables)):
        (tmp_path / name).mkdir()
        write_questions(tmp_path / name, "train", parts, lambda rows: rows)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes(), path.name
    with pytest.raises(CollamoError, match="the train split do not stand in the order"):
        write_questions(tmp_path / "one", "train", reversed(tables), lambda rows: rows)


def test_pages_are_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(file_module, "_HELD", 1 << 20)
    with array_writer(tmp_path / "a.npy", "<f8", (1024,)) as writer:
        for i in range(4096):
            writer.append(np.full((1, 1024), i))
    path = tmp_path / "a.npy"
    assert np.load(path, mmap_mode="r").shape == (4096, 1024)
    array = MappedArray(MappedFile(path, path.stat().st_size, block_digests(path)))
    assert [int(array[i : i + 1].sum()) for i in range(4096)] == [1024 * i for i in range(4096)]
    assert resident(path) < 4 << 20  # of 32 MiB


def resident(path):
    """Return how much of a mapped file is resident memory of this process."""
    smaps = Path("/proc/self/smaps").read_text()
    section = smaps[smaps.index(str(path)) :]
    return int(re.search(r"Rss: +(\d+) kB", section)[1]) << 10


def test_opened_batches_are_few(data, monkeypatch):
    monkeypatch.setattr(batches_module, "_OPENED", 1)
    fresh = open_mapped(data.folder, data.manifest, data._checked)
    rows = [row for row in range(1, 81) if SMILES[(row - 1) % 10] in ("CCO", "CCN")]
    assert [fresh.molecules.features(row).smiles for row in rows] == ["CCO", "CCN"] * 8
    assert json.loads((data.folder / FOLDER / INDEX).read_text())["index"]["files"]
