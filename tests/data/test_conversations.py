"""The library `datasets`: it opens shards, and gets the questions of a prepared folder as chats."""

import builtins

import pytest

from collamo.data.conversations import conversations, to_dataset, with_features
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.errors import MissingDependencyError, UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare("nci", folder, PrepareOptions(limit=20, shard_size=8), workers=1)
    return PreparedData.open(folder)


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="not installed: make test-clients")


def test_a_row_is_a_molecule_with_its_questions(data):
    tasks = data.tasks("train")
    rows = list(conversations(data, "train", turns=3))
    asked = [
        (row["molecule"], question["content"][-1]["text"], answer["content"][0]["text"])
        for row in rows
        for question, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True)
    ]
    assert asked == [(task.molecule, task.question, task.answer) for task in tasks]
    for row in rows:
        assert 2 <= len(row["messages"]) <= 6
        assert [m["role"] for m in row["messages"][:2]] == ["user", "assistant"]
        kinds = [part["type"] for m in row["messages"] for part in m["content"]]
        assert kinds.count("molecule") == 1
        assert kinds[0] == "molecule"
        smiles = row["messages"][0]["content"][0]["smiles"]
        assert smiles == data.features(row["molecule"]).smiles


def test_only_some_tasks(data):
    rows = conversations(data, "train", ["motif_count", "property_3d"])
    questions = [m["content"][-1]["text"] for row in rows for m in row["messages"][::2]]
    tasks = [e for e in data.tasks("train") if e.task in ("motif_count", "property_3d")]
    assert questions == [e.question for e in tasks]


def test_features_take_the_place_of_the_smiles(data):
    row = next(conversations(data, "test"))
    first, *others = with_features(data, row)
    assert first["content"][0]["smiles"].conformer is not None
    assert first["content"][1] == row["messages"][0]["content"][1]
    assert others == row["messages"][1:]
    assert isinstance(row["messages"][0]["content"][0]["smiles"], str)


def test_without_datasets_the_extra_is_named(data, monkeypatch):
    real = builtins.__import__

    def absent(name, *arguments):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependencyError, match=r"needs the extra 'trl'.*'collamo\[trl\]'"):
        to_dataset(data, "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_open_and_stream(datasets, data, streaming, tmp_path):
    paths = [str(path) for path in sorted(data.folder.glob("molecules-*.parquet"))]
    options = {"split": "train", "cache_dir": str(tmp_path), "streaming": streaming}
    table = datasets.load_dataset("parquet", data_files=paths, **options)
    rows = list(table)
    shard = data.table(0).to_pylist()
    assert rows[: len(shard)] == shard
    names = [entry["name"] for entry in rows[0]["properties"]]
    assert "logp" in names


def test_the_card_says_what_is_in_the_folder(datasets, data, tmp_path):
    options = {"cache_dir": str(tmp_path), "streaming": True}
    questions = datasets.load_dataset(str(data.folder), **options)
    for split, rows in questions.items():
        assert [row["answer"] for row in rows] == [task.answer for task in data.tasks(split)]
    rows = list(datasets.load_dataset(str(data.folder), "molecules", split="train", **options))
    assert len(rows) == data.manifest.rows["ok"]
    splits = list(datasets.load_dataset(str(data.folder), "splits", split="train", **options))
    assert [row["row"] for row in splits] == [row["row"] for row in rows]


def test_a_dataset_holds_the_same_rows(datasets, data):
    dataset = to_dataset(data, "train", turns=3)
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.column_names == ["molecule", "messages"]
    assert list(dataset) == list(conversations(data, "train", turns=3))
    with pytest.raises(UsageError, match="no question of nonsense"):
        to_dataset(data, "train", ["nonsense"])
    with pytest.raises(UsageError, match="turns is 0"):
        to_dataset(data, "train", turns=0)
    with pytest.raises(UsageError, match="unknown split 'trian'"):
        to_dataset(data, "trian")
