"""Workers: same conformers, their order kept; what hangs or crashes is an absence."""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import collamo.chem.conformer as conformer_module
import collamo.chem.conformer_workers as workers_module
from collamo.chem.conformer import embed_conformer
from collamo.chem.conformer_workers import (
    embed_conformer_limited,
    embed_conformers,
    worker_context,
)
from collamo.chem.molecule import parse_molecule


def test_limited_gives_the_same_conformer():
    molecule = parse_molecule("CC(=O)Oc1ccccc1C(=O)O")
    here, there = embed_conformer(molecule), embed_conformer_limited(molecule)
    assert (here.coordinates == there.coordinates).all()
    assert there.method == here.method


@pytest.fixture
def unhurried(monkeypatch):
    """No limit on the clock, which the other work of a busy machine would reach first."""
    monkeypatch.setattr(workers_module, "WALL_FACTOR", 1000.0)


@pytest.mark.timeout(60)  # it ends at all
def test_a_molecule_beyond_the_limit_is_killed_and_absent(unhurried):
    """RDKit needs minutes for this chain and its own time-out is not honoured."""
    conformer = embed_conformer_limited(parse_molecule("C" * 400), seconds=1.0)
    assert conformer.coordinates is None
    assert conformer.reason == "no geometry within 1 s of processor time"


def only_forked():
    if worker_context().get_start_method() != "fork":
        pytest.skip("the fault is put in by patching, which only a forked worker inherits")


def wait_in_embedding(monkeypatch, seconds):
    """Let the embedding wait first, as on a machine that has other things to do."""
    original = conformer_module._embed

    def waiting(*arguments):
        time.sleep(seconds)
        return original(*arguments)

    monkeypatch.setattr(conformer_module, "_embed", waiting)


def test_time_on_the_clock_costs_no_conformer(monkeypatch):
    only_forked()
    wait_in_embedding(monkeypatch, 1.0)
    molecule = parse_molecule("CCO")
    assert embed_conformer_limited(molecule, seconds=0.5).method == "etkdgv3+mmff"
    with worker_context().Pool(1) as pool:
        ((method, _, _),) = pool.apply(embed_within, (["CCO"], 0.5))
    assert method == "etkdgv3+mmff"


@pytest.mark.timeout(60)  # it ends at all
def test_what_waits_forever_is_killed_by_the_clock(monkeypatch):
    only_forked()
    monkeypatch.setattr(workers_module, "WALL_FACTOR", 2.0)
    wait_in_embedding(monkeypatch, 3600)
    reason = "no geometry within 1 s on the clock"
    assert embed_conformer_limited(parse_molecule("CCO"), seconds=0.5).reason == reason
    with worker_context().Pool(1) as pool:
        assert pool.apply(embed_within, (["CCO"], 0.5)) == [("none", reason, None)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.slow
def test_parallel_conformers_come_in_order(workers, unhurried):
    """The first and the last take longest; a hang costs its own conformer only."""
    placed = parse_molecule(Chem.MolToMolBlock(embedded("CCN")))
    molecules = [parse_molecule(s) for s in ("C" * 30, "CCO", "C" * 400, "C")] + [placed]
    found = list(embed_conformers(molecules, seconds=5.0, workers=workers))
    for molecule, conformer in zip(molecules, found, strict=True):
        if molecule.num_atoms == 400:
            assert conformer.coordinates is None
            assert conformer.reason == "no geometry within 5 s of processor time"
        else:
            assert (conformer.coordinates == embed_conformer(molecule).coordinates).all()
    assert found[-1].method == "given"
    assert list(embed_conformers([], workers=workers)) == []


def embedded(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=0) == 0
    return mol


def test_a_crash_is_an_absence(monkeypatch):
    if worker_context().get_start_method() != "fork":
        pytest.skip("the crash is put in by patching, which only a forked worker inherits")
    monkeypatch.setattr(conformer_module, "_embed", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    conformer = embed_conformer_limited(parse_molecule("CCO"))
    assert conformer.coordinates is None
    assert conformer.reason == "RDKit crashed (exit code -9)"


def embed_within(texts, seconds=30.0):
    """What a worker of a loader, a pool or a server does with its molecules."""
    conformers = embed_conformers([parse_molecule(text) for text in texts], seconds=seconds)
    return [(c.method, c.reason, c.coordinates) for c in conformers]


@pytest.mark.slow
def test_a_daemonic_process_embeds_with_the_same_limits():
    """multiprocessing.Pool and DataLoader make daemons, which may have no children of its kind."""
    texts = ["CCO", "C" * 400, "CC(=O)Oc1ccccc1C(=O)O", Chem.MolToMolBlock(embedded("CCN"))]
    with worker_context().Pool(1) as pool:
        conformers = pool.apply(embed_within, (texts, 4.0))
    assert [c[:2] for c in conformers] == [
        ("etkdgv3+mmff", None),
        ("none", "no geometry within 4 s of processor time"),
        ("etkdgv3+mmff", None),
        ("given", None),
    ]
    for place in (0, 2):
        expected = embed_conformer(parse_molecule(texts[place])).coordinates
        assert (conformers[place][2] == expected).all()


def test_a_crash_in_a_daemonic_process_is_an_absence(monkeypatch):
    if worker_context().get_start_method() != "fork":
        pytest.skip("the crash is put in by patching, which only a forked worker inherits")
    monkeypatch.setattr(conformer_module, "_embed", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with worker_context().Pool(1) as pool:
        ((method, reason, _),) = pool.apply(embed_within, (["CCO"],))
    assert (method, reason) == ("none", "RDKit crashed (exit code -9)")


def test_a_lack_of_memory_in_a_daemonic_process_is_an_absence(monkeypatch):
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of a worker is bounded on Linux only")
    monkeypatch.setattr(conformer_module, "_embed", lambda *_: bytearray(2**36))
    with worker_context().Pool(1) as pool:
        ((method, reason, _),) = pool.apply(embed_within, (["CCO"],))
    assert (method, reason) == ("none", "ran out of memory")


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_threads_and_processes_that_are_no_daemons_embed_too(executor):
    options = {"mp_context": worker_context()} if executor is ProcessPoolExecutor else {}
    with executor(2, **options) as workers:
        pairs = list(workers.map(embed_within, [["CCO"], ["CCN"], ["CCCl"], ["CCS"]]))
    assert [method for ((method, _, _),) in pairs] == ["etkdgv3+mmff"] * 4


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up on Linux")
@pytest.mark.timeout(60)  # it ends at all
def test_a_daemon_killed_while_it_embeds_leaves_nothing_behind():
    """What it has forked ends by its own alarm."""
    context = worker_context()
    process = context.Process(target=embed_within, args=(["C" * 400], 2.0), daemon=True)
    process.start()
    child = wait_for(lambda: children_of(process.pid))[0]
    process.kill()
    process.join()
    wait_for(lambda: not running(child))


def children_of(pid):
    return [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(p) == pid]


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None


def running(pid):
    """Whether the process is there and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition):
    while not (value := condition()):
        time.sleep(0.02)
    return value
