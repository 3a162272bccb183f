"""Files written whole or not at all, and what is said where there is no room."""

import errno
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from collamo import cli
from collamo.evaluation.score import rows_file
from collamo.evaluation.score.rows_file import RowsFile
from collamo.files import naming, no_room, replacing_folder, why_full

LARGEST = 20_000
#: Each writes more than `LARGEST` bytes into a file.
WRITERS = {
    "python": lambda path: path.write_bytes(bytes(2 * LARGEST)),
    "safetensors": lambda path: save_file({"x": torch.zeros(LARGEST)}, path),
    "torch": lambda path: torch.save(torch.zeros(LARGEST), path),
    "torch, at its end": lambda path: torch.save([torch.zeros(4800), torch.zeros(100)], path),
    "tokenizers": lambda path: _tokenizer().save(str(path)),
    "pyarrow": lambda path: _table(path),
}


def _tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel({f"word {i}": i for i in range(LARGEST)}, "word 0"))


def _table(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": range(LARGEST)}), path, compression="none", use_dictionary=False)


@pytest.fixture
def largest():
    """No file of this process may have more than `LARGEST` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_that_finds_no_room_names_its_file(writer, tmp_path, largest):
    path = tmp_path / "weights"
    with pytest.raises(OSError, match="File too large") as caught, naming(path):
        WRITERS[writer](path)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    said = no_room(path, why_full(caught.value))
    assert said.startswith(f"{path} cannot be written: a file of this process may have 19.5 KiB")


def test_the_disk_and_what_is_free_on_it_are_named(tmp_path):
    said = no_room(tmp_path / "not" / "there", errno.ENOSPC)
    mount = next(p for p in (tmp_path, *tmp_path.parents) if os.path.ismount(p))
    assert f"No space left on device; the disk at {mount} has" in said
    assert "make room" in said


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="a shape"), naming(tmp_path):
        raise RuntimeError("a shape")
    assert why_full(PermissionError(errno.EACCES, "no")) is None


def test_the_command_line_names_the_file_of_any_writer(tmp_path, monkeypatch, capsys):
    def fails(*args, **kwargs):
        with naming(tmp_path / "final"):
            raise Exception("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cli, "app", fails)
    assert cli.run(["train", "recipe.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'final'} cannot be written: No space left on")
    assert said.endswith("make room and go on with --resume\n")


def test_a_full_standard_output_is_one_line():
    code = "from collamo.cli import main; import sys; sys.argv[1:] = ['--help']; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "error: standard output cannot be written: No space left on device; make room and run the "
        "same command again"
    ]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "final"
    with pytest.raises(FileNotFoundError), replacing_folder(folder) as part:
        shutil.copytree(tmp_path / "half of it is missing", part)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".final.tmp").mkdir()
    (tmp_path / ".final.tmp" / "of a run that was killed").touch()
    for name in ("first", "second"):
        with replacing_folder(folder) as part:
            part.mkdir()
            (part / name).touch()
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_table_that_cannot_even_begin_names_its_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"

    def full(temporary, schema):
        temporary.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows_file.pq, "ParquetWriter", full)
    with pytest.raises(OSError, match="No space left") as caught, RowsFile(path, ["mae"]):
        pass
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
