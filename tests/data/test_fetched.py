"""Prepared data at a URL, opened: fetched once, every byte checked, gone on with after a break."""

import hashlib
import json
import multiprocessing

import fsspec
import numpy as np
import pytest

from collamo.data.fetched import local_data
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.errors import CollamoError, UsageError
from collamo.storage import Folder, StorageError

SMILES = ["CCO", "CCN", "c1ccccc1O", "CC(=O)O", "CCCl", "OCC", "CCBr"]
URL = "memory://bucket/data"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "few.smi").write_text("".join(f"{smiles}\n" for smiles in SMILES))
    options = PrepareOptions(shard_size=3, conformers=False)
    prepare(folder / "few.smi", folder / "data", options, workers=1, progress=False)
    return folder / "data"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(prepared, cache):
    """The store that has the data, under /bucket/data."""
    for path in prepared.iterdir():
        if path.is_file():
            Folder.at(URL).store(path)
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


@pytest.fixture
def fetched(monkeypatch):
    """The names of the files that were fetched."""
    fetch, names = Folder.fetch, []

    def spied(self, name, target):
        names.append(name)
        return fetch(self, name, target)

    monkeypatch.setattr(Folder, "fetch", spied)
    return names


def test_data_at_a_url_are_those_of_the_folder(prepared, store, fetched):
    here, there = PreparedData.open(prepared), PreparedData.open(URL)
    assert there.manifest == here.manifest
    there.verify()
    assert list(there.tasks("train")) == list(here.tasks("train"))
    for row in here.molecules("train"):
        assert there.features(row).smiles == here.features(row).smiles
    assert sorted(fetched) == sorted(here.manifest.files)
    fetched.clear()
    assert PreparedData.open(URL).folder == there.folder
    assert fetched == []


def test_a_path_stays_what_it_is(prepared):
    assert local_data(prepared) == local_data(str(prepared)) == prepared


def test_what_was_broken_off_goes_on(store, cache, fetched, monkeypatch):
    get_file = store.get_file

    def break_off(source, target):
        if source.endswith("molecules-00001.parquet"):
            raise ConnectionResetError("gone")
        get_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("collamo.storage.AT_ONCE", 1)
        patch.setattr(store, "get_file", break_off)
        with pytest.raises(StorageError, match=r"data/molecules-00001\.parquet cannot be reached"):
            local_data(URL)
    (local,) = (path for path in (cache / "data").iterdir() if path.is_dir())
    kept = {path.name for path in local.iterdir()}
    assert kept == {"molecules-00000.parquet", "molecules-00000.json"}
    fetched.clear()
    assert local_data(URL) == local
    assert "molecules-00001.parquet" in fetched
    assert kept.isdisjoint(fetched)
    assert not (local / ".arriving").exists()
    PreparedData.open(URL).verify()


def test_data_prepared_anew_are_fetched_anew(prepared, store, tmp_path):
    before = local_data(URL)
    options = PrepareOptions(shard_size=3, conformers=False, limit=4)
    prepare(prepared.parent / "few.smi", tmp_path / "anew", options, workers=1, progress=False)
    for path in (tmp_path / "anew").iterdir():
        if path.is_file():
            Folder.at(URL).store(path)
    assert local_data(URL) != before
    assert PreparedData.open(URL).manifest.rows["in"] == 4
    PreparedData.open(before).verify()


@pytest.mark.parametrize("name", ["molecules-00002.parquet", "tasks-train.parquet"])
def test_other_bytes_and_missing_files_are_named(store, name):
    content = store.cat(f"/bucket/data/{name}")
    store.pipe(f"/bucket/data/{name}", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CollamoError, match=f"{URL}/{name} has other bytes than manifest.json says"):
        local_data(URL)
    store.rm(f"/bucket/data/{name}")
    with pytest.raises(CollamoError, match=f"{URL}/{name} is missing"):
        local_data(URL)
    store.pipe(f"/bucket/data/{name}", content)
    PreparedData.open(URL).verify()


def test_what_is_no_prepared_data_is_said(store, cache):
    with pytest.raises(UsageError, match="memory://bucket/none holds no prepared data"):
        local_data("memory://bucket/none")
    for content in (b"{", b"[]", b'{"files": {"../../x": {"bytes": 1, "sha256": "0"}}}'):
        store.pipe("/bucket/data/manifest.json", content)
        with pytest.raises(CollamoError, match=f"{URL}/manifest.json is damaged"):
            local_data(URL)
    huge = {"files": {"a.parquet": {"bytes": 1 << 60, "sha256": "0", "rows": 1}}}
    store.pipe("/bucket/data/manifest.json", json.dumps(huge).encode())
    with pytest.raises(CollamoError, match=r"takes 1073741824\.0 GiB more, .* COLLAMO_CACHE"):
        local_data(URL)


def test_encoder_outputs_come_along_and_follow_their_index(store, tmp_path):
    def encode(value):
        np.save(tmp_path / "encoded-3d-00000.npy", np.full(4, value, dtype=np.float16))
        content = (tmp_path / "encoded-3d-00000.npy").read_bytes()
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "rows": 4}
        index = {"format_version": 1, "files": {"encoded-3d-00000.npy": entry}}
        store.pipe("/bucket/data/encoded-3d-00000.npy", content)
        store.pipe("/bucket/data/encoded-3d.json", json.dumps(index).encode())

    for value in (1.0, 2.0):
        encode(value)
        local = local_data(URL)
        assert (np.load(local / "encoded-3d-00000.npy") == value).all()
        assert json.loads((local / "encoded-3d.json").read_text())["format_version"] == 1


def _open(url, names):
    PreparedData.open(url).verify()
    names.put(sorted(path.name for path in local_data(url).iterdir()))


def test_processes_that_open_them_together_fetch_them_once(prepared, cache):
    """As the processes of one training do."""
    url, context = f"file://{prepared}", multiprocessing.get_context("fork")
    names = context.Queue()
    processes = [context.Process(target=_open, args=(url, names)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [names.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert found[0] == found[1] == found[2]
    assert ".arriving" not in found[0]
