"""What a machine of a Ray cluster does, without a cluster: the bytes of one machine."""

import dataclasses
import gzip
import sys
from collections import Counter

import pytest

import collamo.data.cluster as cluster
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.sharding import Sharding
from collamo.data.sources import SourceRow
from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.storage import Folder

SMILES = ["CCO", "CCN", "c1ccccc1O", "CC(=O)O", "C1CC", "CCCl", "OCC", "CCBr"]
OPTIONS = PrepareOptions(shard_size=3, conformers=False)
EASY = {"workers": 1, "max_reject_rate": 0.5, "progress": False}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "few.smi"
    path.write_text("".join(f"{smiles}\n" for smiles in SMILES))
    return path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def jobs(source, out):
    """Yield the job of every shard, its rows in the folder, as the driver leaves them."""
    sharding = Sharding(source, OPTIONS, Folder.at(out), out)
    sharding.start()
    for index, rows in sharding.rows(sharding.missing()):
        cluster._store_rows(sharding.folder, index, rows)
        versions = cluster.library_versions(OPTIONS)
        yield cluster._Job(sharding.folder, index, sharding.key, OPTIONS, versions)


def test_shards_prepared_apart_make_the_same_bytes(source, tmp_path):
    prepare(source, tmp_path / "alone", OPTIONS, **EASY)
    out = tmp_path / "out"
    for job in reversed(list(jobs(source, out))):
        before = set(files(out))
        cluster._prepare_shard(job)
        assert Counter(name.rpartition(".")[2] for name in set(files(out)) - before) == {
            "parquet": 1,
            "json": 1,
        }
    prepare(source, out, OPTIONS, **EASY)
    assert files(out) == files(tmp_path / "alone")


def test_what_a_killed_driver_left_is_deleted(source, tmp_path):
    """Without Ray, too: rows, and a shard that was on its way when its machine was lost."""
    prepare(source, tmp_path / "alone", OPTIONS, **EASY)
    out = tmp_path / "out"
    assert list(jobs(source, out))
    (out / f".molecules-00001.parquet.{'0' * 32}.tmp").touch()
    (out / ".theirs.tmp").touch()
    prepare(source, out, OPTIONS, **EASY)
    (out / ".theirs.tmp").unlink()
    assert files(out) == files(tmp_path / "alone")


def test_rows_come_back_as_they_were_read(tmp_path):
    rows = [
        SourceRow(1, "CCO", columns={"caption": 'An "alcohol", µ', "logS": "−1.5"}),
        SourceRow(2, "C\udcff", problem=("encoding", "record is not UTF-8")),
        SourceRow(7, "\n  line\r\n\x85\u2028M  END\n", "molblock", geometry="b3lyp"),
    ]
    cluster._store_rows(Folder.at(tmp_path), 12, iter(rows))
    (file,) = tmp_path.iterdir()
    assert list(cluster._read_rows(file)) == rows
    with gzip.open(file) as lines:
        assert len(list(lines)) == 3


def test_other_versions_and_an_unseen_folder_are_refused(source, tmp_path):
    job, *_ = jobs(source, tmp_path / "out")
    other = dataclasses.replace(job, versions={**job.versions, "rdkit": "2024.3.1"})
    with pytest.raises(CollamoError, match=r"rdkit 2024\.3\.1.*: the bytes would differ"):
        cluster._prepare_shard(other)
    unseen = dataclasses.replace(job, folder=Folder.at(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match=r"does not see .*/elsewhere; give --out"):
        cluster._prepare_shard(unseen)


def test_without_ray_the_extra_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"collamo\[ray\]"):
        prepare(source, tmp_path / "out", OPTIONS, ray="local", **EASY)
