"""The Ray example: its pieces, what it says without Ray, and with Ray the bytes of `prepare`."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

from collamo.data.options import PrepareOptions
from collamo.data.prepare import count_shards, prepare, prepare_shards
from collamo.errors import MissingDependencyError

EXAMPLE = Path(__file__).parents[1] / "examples/prepare_with_ray.py"
OPTIONS = {"limit": 50, "shard_size": 12, "conformers": False}


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    prepare("nci", out, PrepareOptions(**OPTIONS), workers=1)
    return files(out)


def test_pieces_hold_every_shard_once(example):
    for shards in range(12):
        for count in range(1, 15):
            parts = example["pieces"](shards, count)
            assert [index for part in parts for index in part] == list(range(shards))
            assert len(parts) == min(count, shards)
            assert max(map(len, parts), default=0) - min(map(len, parts), default=0) <= 1


def test_shards_prepared_apart_make_the_same_bytes(example, alone, tmp_path):
    """What the cluster does, without a cluster, the pieces in any order."""
    options = PrepareOptions(**OPTIONS)
    assert count_shards("nci", options) == 5
    for piece in reversed(example["pieces"](5, 3)):
        before = set(files(tmp_path))
        prepare_shards("nci", tmp_path, piece, options, workers=1)
        assert len(set(files(tmp_path)) - before) == 2 * len(piece)  # shards and their sidecars
    prepare("nci", tmp_path, PrepareOptions(**OPTIONS), workers=1)
    assert files(tmp_path) == alone


def test_without_ray_the_extra_is_named(example, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"collamo\[ray\]"):
        example["prepare_on_cluster"]("nci", tmp_path, PrepareOptions(**OPTIONS), 2)
    assert example["main"](["nci", "--out", str(tmp_path)]) == 4
    assert capsys.readouterr().err.startswith("error: ray is not installed; ")


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs pip install 'collamo[ray]'")
def test_on_ray(example, alone, tmp_path):
    rows = example["prepare_on_cluster"]("nci", tmp_path, PrepareOptions(**OPTIONS), 2)
    assert rows == {"in": 50, "ok": 50, "rejected": 0}
    assert files(tmp_path) == alone
