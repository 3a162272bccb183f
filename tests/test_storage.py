"""Folders and files at URLs: fetched and stored whole, and one clear line for what goes wrong."""

import errno
import pickle
import sys
import threading
from pathlib import Path

import fsspec
import pytest

from collamo.errors import MissingDependencyError, UsageError
from collamo.storage import Folder, StorageError, is_url, local_file, reaching


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAMO_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "file", "path"])
def folder(request, tmp_path):
    kinds = {"memory": "memory://a/b", "file": f"file://{tmp_path}/a b/c", "path": tmp_path / "d"}
    return Folder.at(kinds[request.param])


def test_files_come_back_as_they_were_stored(folder, tmp_path):
    assert folder.names() == set()
    contents = {"one.txt": b"1", "two.bin": bytes(range(256)) * 1000, ".hidden": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        folder.store(tmp_path / name)
    assert folder.names() == set(contents)
    (tmp_path / "back").mkdir()
    fetched = []
    folder.fetch_all(folder.names(), tmp_path / "back", fetched.append)
    assert {path.name: path.read_bytes() for path in fetched} == contents
    (tmp_path / "one.txt").write_bytes(b"another")  # what is stored again takes its place
    folder.store(tmp_path / "one.txt")
    assert folder.read("one.txt") == b"another"
    folder.delete("one.txt")
    folder.delete("one.txt")
    assert folder.names() == {"two.bin", ".hidden"}
    with pytest.raises(FileNotFoundError):
        folder.fetch("one.txt", tmp_path / "back")


def test_a_folder_is_sent_as_its_location(folder):
    folder.names()  # opened
    sent = pickle.loads(pickle.dumps(folder))
    assert sent == folder
    assert sent.names() == set()


def test_a_path_is_worked_in_and_a_url_in_the_cache(cache, tmp_path):
    with Folder.at(tmp_path / "out").workplace() as place:
        assert place == tmp_path / "out"
    with Folder.at("memory://out").workplace() as place:
        assert place.is_relative_to(cache)
        (place / "left").touch()
    assert not place.exists()
    place.mkdir()
    (place / "of a run that was killed").touch()
    with Folder.at("memory://out/").workplace() as again:
        assert (again, list(again.iterdir())) == (place, [])


def test_nobody_else_works_with_a_url_at_the_same_time():
    with Folder.at("memory://out").workplace():
        caught = []

        def other():
            with pytest.raises(UsageError) as error, Folder.at("memory://out").workplace():
                pass
            caught.append(str(error.value))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "works with memory://out; wait for it" in caught[0]


def test_a_file_at_a_url_is_there_for_the_block(tmp_path):
    with fsspec.open("memory://sources/a.smi", "wb") as file:
        file.write(b"CCO\n")
    with local_file("memory://sources/a.smi") as path:
        assert (path.name, path.read_bytes()) == ("a.smi", b"CCO\n")
    assert not path.exists()
    for location in ("nci", tmp_path / "a.smi"):
        with local_file(location) as same:
            assert same == location
    for missing in ("memory://sources/b.smi", "memory://nowhere/a.smi"):
        with pytest.raises(UsageError, match=f"'{missing}'"), local_file(missing):
            pass
    with pytest.raises(FileNotFoundError, match="inside"), local_file("memory://sources/a.smi"):
        raise FileNotFoundError("inside")  # the block's own is not mistaken for the source


def test_a_url_made_a_path_is_told_from_one():
    assert [is_url(text) for text in ("s3://b/x", "hdfs://host:9/x", "a/b", "C:\\x", "C:/x")] == [
        *(True, True),
        *(False, False, False),
    ]
    with pytest.raises(UsageError, match="give it as text"):
        is_url(Path("s3://bucket/x"))


def test_a_missing_package_and_an_unknown_store_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match=r"gs:// needs a package: pip install gcsfs$"):
        Folder.at("gs://bucket/data").names()
    with pytest.raises(UsageError, match=r"s4://bucket/data: Protocol not known: s4; use s3://"):
        Folder.at("s4://bucket/data").names()


def test_what_goes_wrong_with_a_store_is_one_line():
    with pytest.raises(StorageError) as error, reaching("s3://b/x"):
        raise PermissionError("AccessDenied")
    assert str(error.value) == (
        "s3://b/x: access denied (AccessDenied); check rights and credentials"
    )
    with pytest.raises(StorageError) as error, reaching("s3://b/x"):
        raise KeyError("a")
    assert str(error.value) == "s3://b/x cannot be reached: KeyError: 'a'"
    with pytest.raises(OSError, match="No space") as full, reaching("s3://b/x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not isinstance(full.value, StorageError)


def test_a_fetch_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    folder = Folder.at("memory://out")
    (tmp_path / "a").write_bytes(b"1")
    folder.store(tmp_path / "a")
    system = fsspec.filesystem("memory")

    def break_off(source, target):
        Path(target).write_bytes(b"half")
        raise ConnectionResetError("gone")

    monkeypatch.setattr(system, "get_file", break_off)
    (tmp_path / "back").mkdir()
    with pytest.raises(StorageError, match="memory://out/a cannot be reached: ConnectionReset"):
        folder.fetch_all(["a"], tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []
