"""`prepare` from and to URLs: the bytes of a folder on the disk, resumed from what is there."""

import fsspec
import pytest

import collamo.data.sharding as sharding_module
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.errors import TooManyRejectedError, UsageError
from collamo.storage import Folder, StorageError

SMILES = ["CCO", "CCN", "c1ccccc1O", "CC(=O)O", "C1CC", "CCCl", "OCC", "CCBr"]
OPTIONS = PrepareOptions(shard_size=3, conformers=False)
OUT = "memory://bucket/prepared"
EASY = {"workers": 1, "max_reject_rate": 0.5, "progress": False}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAMO_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "few.smi"
    path.write_text("".join(f"{smiles}\n" for smiles in SMILES))
    return path


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    prepare(source, out, OPTIONS, **EASY)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def stored(location=OUT):
    folder = Folder.at(location)
    return {name: folder.read(name) for name in folder.names()}


def test_the_bytes_are_those_of_a_folder(source, alone, cache, tmp_path):
    with fsspec.open("memory://bucket/few.smi", "wb") as file:
        file.write(source.read_bytes())
    prepare("memory://bucket/few.smi", OUT, OPTIONS, **EASY)
    assert stored() == alone
    other = f"file://{tmp_path}/prepared"
    prepare(f"file://{source}", other, OPTIONS, **EASY)
    assert stored(other) == alone
    assert {path.suffix for path in (cache / "work").iterdir()} == {".lock"}


def test_what_is_there_and_whole_is_kept(source, alone, monkeypatch):
    prepare(source, OUT, OPTIONS, **EASY)
    system = fsspec.filesystem("memory")
    system.rm("/bucket/prepared/molecules-00002.json")
    system.pipe("/bucket/prepared/molecules-00000.parquet", b"damaged")
    made = []
    monkeypatch.setattr(sharding_module, "write_shard", spy(sharding_module.write_shard, made))
    prepare(source, OUT, OPTIONS, **EASY)
    assert made == [0, 2]
    assert stored() == alone


def test_a_run_that_lost_the_store_goes_on(source, alone, cache, monkeypatch):
    store = Folder.store

    def break_off(self, file):
        if file.name == "molecules-00001.json":
            raise StorageError(f"{self} cannot be reached")
        store(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "store", break_off)
        with pytest.raises(StorageError):
            prepare(source, OUT, OPTIONS, **EASY)
    assert "molecules-00000.json" in stored()
    assert "manifest.json" not in stored()
    made = []
    monkeypatch.setattr(sharding_module, "write_shard", spy(sharding_module.write_shard, made))
    prepare(source, OUT, OPTIONS, **EASY)
    assert made == [1, 2]
    assert stored() == alone
    assert {path.suffix for path in (cache / "work").iterdir()} == {".lock"}


def spy(write_shard, made):
    def spied(out, index, *rest):
        made.append(index)
        return write_shard(out, index, *rest)

    return spied


def test_errors_name_the_url(source):
    prepare(source, OUT, OPTIONS, **EASY)
    other = PrepareOptions(shard_size=4, conformers=False)
    with pytest.raises(UsageError, match=f"^{OUT} holds a preparation of another source"):
        prepare(source, OUT, other, **EASY)
    with pytest.raises(TooManyRejectedError, match=f"see {OUT}/rejected.jsonl"):
        prepare(source, OUT, OPTIONS, **{**EASY, "max_reject_rate": 0.0})
    with pytest.raises(UsageError, match=r"'memory://bucket/no\.smi' is no file that is there"):
        prepare("memory://bucket/no.smi", OUT, OPTIONS, **EASY)
