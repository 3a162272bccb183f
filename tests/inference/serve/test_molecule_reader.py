"""Texts of strangers: what hangs or crashes costs its own request, and nobody else's."""

import asyncio
import os
import signal
import socket

import pytest

from collamo.chem.conformer_workers import processor_limit
from collamo.errors import MoleculeError
from collamo.inference.conversation import MoleculeText
from collamo.inference.molecules import molecule_features, read_molecule, reading
from collamo.inference.serve import molecule_reader
from collamo.inference.serve.molecule_reader import MoleculeReader

ALL = ("1d", "2d", "3d")
OF_MOLECULE = molecule_reader._of_molecule
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="needs POSIX timers")


@pytest.fixture
def reader():
    reader = MoleculeReader(seconds=0.5, workers=2)
    yield reader
    reader.close()


def smiles(text):
    return MoleculeText("smiles", text)


def read_all(reader, *texts, views=ALL):
    async def read():
        asked = (reader.read(smiles(text), views) for text in texts)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(read())


def test_it_reads_what_ask_reads(reader):
    (found,) = read_all(reader, "c1ccccc1O")
    (expected,) = molecule_features([read_molecule("c1ccccc1O")])
    assert (found.conformer.coordinates == expected.conformer.coordinates).all()
    assert reading(found, ALL) == reading(expected, ALL)
    assert reading(found, ALL)["views"] == list(ALL)


def test_without_3d_nothing_is_embedded(reader):
    found, again = read_all(reader, "CCO", views=("1d",)) + read_all(reader, "CCO")
    assert found.conformer.reason == "3D not requested"
    assert again.conformer.coordinates is not None


def test_what_is_no_molecule_says_why(reader):
    bad, empty, good = read_all(reader, "C1CC", " ", "CCO")
    assert isinstance(bad, MoleculeError)
    assert "unclosed ring" in str(bad)
    assert isinstance(empty, MoleculeError)
    assert good.num_atoms == 3


def test_a_conformer_that_is_not_found_in_time_is_left_out(reader):
    (chain,) = read_all(reader, "C" * 300)
    read = reading(chain, ALL)
    assert read["views"] == ["1d", "2d"]
    assert read["conformer"]["reason"] == "no geometry within 0.5 s of processor time"
    assert read["notes"] == [f"answered without 3D: {read['conformer']['reason']}"]


def strange(molecule, seconds, *work):
    """In a worker, in the place of `_of_molecule`."""
    with processor_limit(seconds):
        while molecule.text == "hang":
            pass
    if molecule.text == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    return OF_MOLECULE(molecule, seconds, *work)


def test_a_text_that_hangs_or_crashes_rdkit_costs_itself_alone(reader, monkeypatch):
    monkeypatch.setattr(molecule_reader, "_of_molecule", strange)
    hang, crash, good = read_all(reader, "hang", "crash", "CCO")
    assert "was not read within 0.5 s of processor time" in str(hang)
    assert "crashes RDKit (exit code -9)" in str(crash)
    assert good.num_atoms == 3


def test_workers_hold_no_socket_of_the_server(reader):
    """A client whose connection the server has closed must see that, whoever was born meanwhile."""
    ours, theirs = socket.socketpair()
    read_all(reader, "CCO")
    ours.close()
    theirs.settimeout(10)
    assert theirs.recv(1) == b""


def test_what_was_read_is_remembered_and_forgotten(reader, monkeypatch):
    monkeypatch.setattr(molecule_reader, "REMEMBERED", 2)
    first, second = read_all(reader, "CCO", "CC")
    assert read_all(reader, "CCO")[0] is first
    read_all(reader, "C")  # "CC" is the one that was not used since
    assert read_all(reader, "CCO")[0] is first
    assert read_all(reader, "CC")[0] is not second


def test_a_request_that_is_given_up_frees_its_worker(reader, monkeypatch):
    monkeypatch.setattr(molecule_reader, "_of_molecule", strange)
    reader.seconds = 600.0

    async def give_up():
        hanging = [asyncio.ensure_future(reader.read(smiles("hang"), ALL)) for _ in range(2)]
        await asyncio.sleep(0.5)
        for task in hanging:
            task.cancel()
        async with asyncio.timeout(60):
            return await reader.read(smiles("CCO"), ALL)

    assert asyncio.run(give_up()).num_atoms == 3
