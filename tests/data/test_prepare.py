"""`prepare`: rows in = rows out, the same bytes however it ran, nothing lost."""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import collamo.chem.conformer_workers as conformer_workers_module
import collamo.data.facts as facts_module
import collamo.data.records as records_module
import collamo.data.sharding as sharding_module
import collamo.data.workers as workers_module
from collamo.chem.conformer import embed_conformer
from collamo.chem.conformer_workers import usable_processors, worker_context
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.cli import run
from collamo.data.facts import PROPERTIES_3D, count_elements, measure
from collamo.data.manifest import Manifest
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.data.records import process_row
from collamo.data.shards import NUMBERS, SPLITS
from collamo.data.sources import SourceRow
from collamo.data.splits import scaffold_of
from collamo.errors import CollamoError, TooManyRejectedError, UsageError
from collamo.storage import Folder

MIXED = """smiles,caption,homo
CCO,Ethanol,-0.25
C1CC,unclosed,1
,empty,
CC(=O)Oc1ccccc1C(=O)O,Aspirin,NA
CCO CCN,two,1
OCC,Ethanol again,
C*,a dummy,
[Na+].[Cl-],"A ""salt"", white",-0.3
"""


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text(MIXED)
    return path


@pytest.fixture(scope="module")
def nci(tmp_path_factory):
    out = tmp_path_factory.mktemp("nci") / "data"
    prepare("nci", out, PrepareOptions(limit=48, shard_size=20), workers=2)
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def only_forked():
    if worker_context().get_start_method() != "fork":
        pytest.skip("the fault is put in by patching, which only a forked worker inherits")


def only_with_limited_memory():
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of a worker is bounded on Linux only")


def test_facts_that_are_no_number_are_counted_and_never_learned(tmp_path, monkeypatch, capsys):
    """logP is infinite for ethanol and not defined for aspirin, which has six carbons in a ring."""

    def logp(mol):
        return math.nan if mol.GetRingInfo().NumRings() else math.inf

    properties = [
        dataclasses.replace(entry, compute=logp) if entry.target == "logp" else entry
        for entry in facts_module.PROPERTIES_2D
    ]
    monkeypatch.setattr(facts_module, "PROPERTIES_2D", properties)
    records_module._molecule_columns.cache_clear()
    source, out = tmp_path / "two.csv", tmp_path / "out"
    source.write_text("smiles\nCCO\nCC(=O)Oc1ccccc1C(=O)O\n")
    assert run(["prepare", str(source), "--out", str(out), "--workers", "1"]) == 0
    note = "fact logp: unknown for 2 of 2 molecules (1 infinite, 1 not defined)"
    assert note in capsys.readouterr().err
    data = PreparedData.open(out)
    assert data.manifest.unknown_facts == {"logp": {"infinite": 1, "not defined": 1}}
    facts = np.stack([data.facts(row) for row in (1, 2)])
    assert not np.isinf(facts).any()
    place = len(data.manifest.motifs) + NUMBERS.index("logp")
    assert np.isnan(facts[:, place]).all()
    answers = [e.answer for split in SPLITS for e in data.tasks(split)]
    assert not {"inf", "nan"} & set(answers)
    records_module._molecule_columns.cache_clear()


def test_rows_in_are_rows_ok_plus_rejected(mixed, tmp_path):
    manifest = prepare(mixed, tmp_path / "out", workers=1, max_reject_rate=0.5)
    assert manifest.rows == {"in": 8, "ok": 5, "rejected": 3}
    assert manifest.rejected == {"empty": 1, "unclosed_ring": 1, "white_space": 1}
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [(row["row"], row["text"], row["reason"]) for row in rejected] == [
        (2, "C1CC", "unclosed_ring"),
        (3, "", "empty"),
        (5, "CCO CCN", "white_space"),
    ]
    assert "row 2: SMILES 'C1CC' has an unclosed ring" in rejected[0]["message"]
    data = PreparedData.open(tmp_path / "out")
    rows = {row for split in SPLITS for row in data.molecules(split)}
    assert rows == {1, 4, 6, 7, 8}
    examples = [example for split in SPLITS for example in data.tasks(split)]
    assert {e.molecule: e.answer for e in examples if e.task == "measured"} == {
        1: "-0.2500",
        8: "-0.3000",
    }
    captions = {e.molecule: e.answer for e in examples if e.task == "caption"}
    assert captions[8] == 'A "salt", white'
    with pytest.raises(KeyError, match="rejected"):
        data.features(2)
    with pytest.raises(KeyError, match="outside"):
        data.features(9)


def test_elements_outside_unimols_dictionary_are_counted(tmp_path, capsys):
    """Of molecules with a conformer: without one nothing reads them."""
    (tmp_path / "a.smi").write_text("[He]\n[He].[He]\nCCO\n")
    manifest = prepare(tmp_path / "a.smi", tmp_path / "out", workers=1)
    assert manifest.unknown_elements == {"He": {"molecules": 2, "atoms": 3}}
    assert PreparedData.open(tmp_path / "out").manifest == manifest
    flat = prepare(
        tmp_path / "a.smi", tmp_path / "flat", PrepareOptions(conformers=False), workers=1
    )
    assert flat.unknown_elements == {}


def test_equal_molecules_share_a_split(mixed, tmp_path):
    prepare(
        mixed,
        tmp_path / "out",
        PrepareOptions(split=(0.4, 0.3, 0.3)),
        workers=1,
        max_reject_rate=0.5,
    )
    data = PreparedData.open(tmp_path / "out")
    assert [{1, 6} & set(data.molecules(split)) for split in SPLITS].count({1, 6}) == 1


def test_features_come_back_as_they_were_made(nci):
    data = PreparedData.open(nci)
    for row in (1, 20, 21, 48):
        features = data.features(row)
        molecule = parse_molecule(features.smiles)
        made = featurize(molecule, embed_conformer(molecule))
        assert features.selfies == made.selfies
        for name in ("atom_features", "edge_index", "edge_features", "bond_directions"):
            assert getattr(features, name).dtype == getattr(made, name).dtype
            assert (getattr(features, name) == getattr(made, name)).all()
        assert (features.conformer.coordinates == made.conformer.coordinates).all()
        assert features.conformer.method == made.conformer.method
        assert features.conformer.converged == made.conformer.converged


def test_facts_come_back_as_they_were_measured(nci):
    data = PreparedData.open(nci)
    for row in (1, 20, 48):
        molecule = parse_molecule(data.features(row).smiles)
        facts = measure(molecule, embed_conformer(molecule))
        counts = count_elements(facts.formula).values()
        geometry = [facts.geometry.get(target, np.nan) for target in PROPERTIES_3D]
        expected = [*facts.motifs.values(), *counts, *facts.properties.values(), *geometry]
        np.testing.assert_array_equal(data.facts(row), np.array(expected, np.float32))
    with pytest.raises(KeyError, match="outside"):
        data.facts(10**6)


def test_unknown_facts_are_nan(tmp_path):
    prepare("nci", tmp_path / "out", PrepareOptions(limit=3, conformers=False), workers=1)
    facts = PreparedData.open(tmp_path / "out").facts(3)
    of_the_conformer = len(PROPERTIES_3D)
    assert np.isnan(facts[-of_the_conformer:]).all()
    assert np.isfinite(facts[:-of_the_conformer]).all()


def test_absence_comes_back_with_its_reason(tmp_path):
    manifest = prepare(
        "nci", tmp_path / "out", PrepareOptions(limit=5, conformers=False), workers=1
    )
    assert manifest.conformers == {"none": 5}
    conformer = PreparedData.open(tmp_path / "out").features(3).conformer
    assert conformer.coordinates is None
    assert conformer.reason == "not asked for"


def test_questions_about_shape_are_asked_as_often_as_wanted(nci, tmp_path):
    prepare("nci", tmp_path / "out", PrepareOptions(limit=3, shape_questions=0), workers=1)
    counts = [
        Counter(e.task for e in PreparedData.open(folder).tasks("train") if e.molecule == 2)
        for folder in (tmp_path / "out", nci)
    ]
    assert (counts[0]["property_3d"], counts[1]["property_3d"]) == (2, 3)
    assert counts[0]["caption"] == counts[1]["caption"] == 1


def test_options_reach_the_force_field(nci, tmp_path):
    prepare("nci", tmp_path / "out", PrepareOptions(limit=3, force_field_steps=5), workers=1)
    rough = PreparedData.open(tmp_path / "out").features(2).conformer
    fine = PreparedData.open(nci).features(2).conformer
    assert not rough.converged
    assert (rough.coordinates != fine.coordinates).any()


def test_large_molecules_may_have_steps_of_their_own():
    def conformer_of(smiles, **options):
        record = process_row(SourceRow(1, smiles), PrepareOptions(**options)).record
        return record["conformer_method"], record["conformer_converged"]

    chain = "C" * 24  # 74 atoms with their hydrogens
    assert conformer_of(chain, large_force_field_steps=0) == ("etkdgv3", None)
    assert conformer_of(chain, large_force_field_steps=1) == ("etkdgv3+mmff", False)
    assert conformer_of("CCC", large_force_field_steps=0) == ("etkdgv3+mmff", True)
    assert conformer_of("CCC", force_field_steps=0) == ("etkdgv3", None)


def test_a_molecule_in_several_rows_is_embedded_once(monkeypatch):
    embedded = []

    def counted(molecule, *arguments):
        embedded.append(molecule.smiles)
        return embed_conformer(molecule, *arguments)

    monkeypatch.setattr(records_module, "embed_conformer", counted)
    rows = [SourceRow(n, text, columns={"caption": f"{n}"}) for n, text in enumerate(["NCF"] * 3)]
    options = PrepareOptions(seed=12)
    records = [process_row(row, options).record for row in (*rows, SourceRow(3, "FCN"))]
    assert embedded == ["NCF", "FCN"]
    assert [record["row"] for record in records] == [0, 1, 2, 3]
    assert [dict(record["columns"]) for record in records[:3]] == [
        {"caption": f"{n}"} for n in range(3)
    ]
    assert (records[0]["coordinates"] == records[2]["coordinates"]).all()


def test_the_pace_is_said(mixed, tmp_path, capsys):
    options = PrepareOptions(conformers=False, shard_size=5)
    prepare(mixed, tmp_path, options, workers=1, max_reject_rate=0.5)
    assert re.search(r"^8 rows in [\d.]+ s: [\d.]+ rows/s$", capsys.readouterr().err, re.MULTILINE)
    (tmp_path / "molecules-00001.json").unlink()
    prepare(mixed, tmp_path, options, workers=1, max_reject_rate=0.5)
    assert re.search(r"^3 rows in .* rows/s; 5 were there$", capsys.readouterr().err, re.MULTILINE)
    prepare(mixed, tmp_path, options, workers=1, max_reject_rate=0.5)
    assert "rows/s" not in capsys.readouterr().err


def test_a_daemonic_process_is_told_where_to_prepare(mixed, tmp_path):
    with worker_context().Pool(1) as pool, pytest.raises(UsageError, match="daemonic process"):
        pool.apply(prepare, (mixed, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_slow_molecules_hand_their_neighbours_back(tmp_path, monkeypatch):
    only_forked()
    monkeypatch.setattr(workers_module, "CHUNK_SECONDS", 0.0)
    manifest = prepare(
        "nci", tmp_path / "out", PrepareOptions(limit=20, conformers=False), workers=1
    )
    assert manifest.rows == {"in": 20, "ok": 20, "rejected": 0}


def test_no_molecule_and_no_scaffold_in_two_splits(nci):
    data = PreparedData.open(nci)
    seen = {}
    for split in SPLITS:
        for features in data.molecules(split).values():
            canonical = parse_molecule(features.smiles).canonical_smiles
            for key in {canonical, scaffold_of(canonical) or canonical}:
                assert seen.setdefault(key, split) == split
    assert {split: len(data.molecules(split)) for split in SPLITS} == data.manifest.splits


ACIDS = ["CC{}(N)C(=O)O", "CCC{}(O)C#N", "CC{}(Cl)CO", "NCC{}(C)O", "CSC{}(F)CC"]


def test_forms_of_an_acyclic_molecule_are_in_one_split(tmp_path):
    """Enantiomers, salts, charge states and mapped copies; the manifest says how many it joined."""
    rows = []
    for chain in range(8):
        for acid in ACIDS:
            rows += ["C" * chain + acid.format(centre) for centre in ("[C@H]", "[C@@H]", "[CH:7]")]
            rows.append(rows[-1] + ".Cl")
    (tmp_path / "forms.csv").write_text("\n".join(["smiles", *rows]) + "\n")
    options = PrepareOptions(conformers=False, split=(0.6, 0.2, 0.2))
    manifest = prepare(tmp_path / "forms.csv", tmp_path / "out", options, workers=1)
    splits = pq.read_table(tmp_path / "out" / "splits.parquet")["split"].to_pylist()
    assert len(splits) == len(rows) == 160
    assert all(len(set(splits[i : i + 4])) == 1 for i in range(0, 160, 4))
    assert set(splits) == set(SPLITS)
    assert manifest.parents["molecules"] == manifest.parents["joined"] == 160
    assert manifest.parents["parents"] == 40
    assert manifest.overlaps == {}


def test_a_published_split_is_kept_and_its_overlap_stated(tmp_path):
    (tmp_path / "published.csv").write_text(
        "smiles,fold\nCCO,train\nCCN,Train\nCCO,valid\nCC[NH3+],test\nCCCl,test\nCCBr,\nCCI,7\n"
    )
    options = PrepareOptions(conformers=False, split_by="column:fold")
    manifest = prepare(
        tmp_path / "published.csv", tmp_path / "out", options, workers=1, max_reject_rate=1
    )
    splits = pq.read_table(tmp_path / "out" / "splits.parquet").to_pylist()
    assert [row["split"] for row in splits] == ["train", "train", "validation", "test", "test"]
    assert manifest.overlaps == {
        "validation in train": {"molecules": 1, "parents": 1},
        "test in train": {"molecules": 0, "parents": 1},
    }
    assert (manifest.rows["in"], manifest.rejected) == (7, {"split": 2})
    lines = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "row 6: column 'fold' says nothing, not train" in lines
    assert "row 7: column 'fold' says '7', not train" in lines


def test_a_split_rule_that_is_none_is_refused(tmp_path, mixed):
    for rule in ("scafold", "column:", "row:a"):
        with pytest.raises(UsageError, match="must be scaffold, random, published or column:NAME"):
            PrepareOptions(split_by=rule)
    with pytest.raises(UsageError, match="has no column 'fold'"):
        prepare(mixed, tmp_path / "out", PrepareOptions(split_by="column:fold"))


def test_manifest_counts_what_is_there(nci):
    data = PreparedData.open(nci)
    manifest = data.manifest
    assert manifest.rows["in"] == manifest.rows["ok"] + manifest.rows["rejected"] == 48
    for split in SPLITS:
        assert sum(manifest.tasks[split].values()) == len(data.tasks(split))
        assert {e.molecule for e in data.tasks(split)} <= set(data.molecules(split))
        assert len(list(data.text(split))) == len(data.tasks(split))
    tokens = {t for f in data.molecules("train").values() for t in f.selfies or ()}
    assert list(manifest.selfies_vocabulary) == sorted(tokens)
    data.verify()


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(nci, tmp_path):
    prepare("nci", tmp_path / "one", PrepareOptions(limit=48, shard_size=20), workers=1)
    assert files(tmp_path / "one") == files(nci)


def test_resume_keeps_verified_shards_and_redoes_the_rest(nci, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for name, content in files(nci).items():
        (out / name).write_bytes(content)
    # as a kill leaves it: no manifest, a shard without its sidecar, a truncated one, a stray file
    (out / "manifest.json").unlink()
    (out / "molecules-00001.json").unlink()
    whole = (out / "molecules-00002.parquet").read_bytes()
    (out / "molecules-00002.parquet").write_bytes(whole[:-100])
    kept = (out / "molecules-00000.parquet").stat().st_mtime_ns
    done = []
    original = sharding_module.process_rows

    def watched(rows, *arguments):
        rows = list(rows)
        done.extend(row.number for row in rows)
        return original(iter(rows), *arguments)

    monkeypatch.setattr(sharding_module, "process_rows", watched)
    prepare("nci", out, PrepareOptions(limit=48, shard_size=20), workers=2)
    assert done == list(range(21, 49))
    assert (out / "molecules-00000.parquet").stat().st_mtime_ns == kept
    assert files(out) == files(nci)


def test_bond_directions_come_back(tmp_path):
    (tmp_path / "a.smi").write_text("F/C=C/F\n[Na+].[Cl-]\nF\\C=C\\F\n")
    prepare(tmp_path / "a.smi", tmp_path / "out", workers=1)
    data = PreparedData.open(tmp_path / "out")
    assert data.features(3).bond_directions.tolist() == [2, 2, 0, 0, 2, 2]
    assert data.features(2).bond_directions.tolist() == []


@pytest.mark.parametrize("other", [2, 4, None])
def test_another_format_is_refused_with_the_way_out(nci, tmp_path, other):
    manifest = json.loads((nci / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format_version": other}))
    with pytest.raises(
        CollamoError, match=f"has format {other}, this version of collamo reads 3; run `collamo"
    ):
        PreparedData.open(tmp_path)


def preparing(out, **options):
    """Start `prepare` of `nci` in a process that can be killed."""
    arguments = "nci", out, PrepareOptions(**options)
    process = worker_context().Process(target=prepare, args=arguments, kwargs={"workers": 1})
    process.start()
    return process


@pytest.mark.slow
def test_killed_and_started_again(nci, tmp_path):
    """SIGKILL in the middle of a run, twice; the third run gives the same bytes."""
    only_forked()
    out = tmp_path / "out"
    for _ in range(2):
        before = len(list(out.glob("*.parquet")))
        process = preparing(out, limit=48, shard_size=20)
        while process.is_alive() and len(list(out.glob("*.parquet"))) == before:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    prepare("nci", out, PrepareOptions(limit=48, shard_size=20), workers=2)
    assert files(out) == files(nci)


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again(tmp_path):
    """SIGKILL at five moments over the length of a whole run, files half written among them."""
    only_forked()
    options = {"limit": 16, "shard_size": 6}
    start = time.monotonic()
    preparing(tmp_path / "whole", **options).join()
    seconds = time.monotonic() - start
    for number in range(5):
        out = tmp_path / str(number)
        delay = seconds * (number + random.random()) / 5
        process = preparing(out, **options)
        time.sleep(delay)
        process.kill()
        process.join()
        prepare("nci", out, PrepareOptions(**options), workers=1)
        assert files(out) == files(tmp_path / "whole"), f"killed after {delay:.3f} s"


def spin():
    """Take processor time, and no end, in a session of its own: schedulers share by session."""
    os.setsid()
    while True:
        pass


@pytest.mark.slow
def test_what_else_the_machine_does_changes_no_byte(tmp_path):
    """In time when alone; with the limit on the clock they lose their 3D."""
    (tmp_path / "a.smi").write_text(f"{'C' * 44}O\n{'C' * 48}O\n")
    options = PrepareOptions(time_limit=2.0)
    prepare(tmp_path / "a.smi", tmp_path / "quiet", options, workers=1)
    context = worker_context()
    others = [context.Process(target=spin, daemon=True) for _ in range(8 * usable_processors())]
    for process in others:
        process.start()
    try:
        manifest = prepare(tmp_path / "a.smi", tmp_path / "busy", options, workers=1)
    finally:
        for process in others:
            process.kill()
            process.join()
    assert manifest.conformers == {"etkdgv3+mmff": 2}
    assert files(tmp_path / "busy") == files(tmp_path / "quiet")


def fault_on(monkeypatch, smiles, fault, name="embed_conformer"):
    original = getattr(records_module, name)

    def faulty(molecule, *arguments):
        if molecule.smiles == smiles:
            fault()
        return original(molecule, *arguments)

    monkeypatch.setattr(records_module, name, faulty)
    records_module._molecule_columns.cache_clear()  # a fork inherits what its parent remembers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        (lambda: all(count(1)), "time_limit", "took longer than 1 s of processor time"),
        (lambda: time.sleep(3600), "time_limit", "was not done within 3 s on the clock"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crash", "RDKit crashed (exit code -9)"),
        (lambda: bytearray(5 * 2**30), "memory", "ran out of memory"),
    ],
    ids=["loop", "wait", "crash", "memory"],
)
def test_a_fault_costs_one_conformer_or_one_row(tmp_path, monkeypatch, fault, code, reason):
    only_forked()
    monkeypatch.setattr(conformer_workers_module, "WALL_FACTOR", 3.0 if "clock" in reason else 60.0)
    if code == "memory":
        only_with_limited_memory()
    path = tmp_path / "a.smi"
    path.write_text("\n".join("C" * a + "N" + "C" * b for a in range(1, 7) for b in range(6)))
    fault_on(monkeypatch, "CCCNC", fault)
    manifest = prepare(path, tmp_path / "embedding", PrepareOptions(time_limit=1.0), workers=2)
    assert manifest.rows == {"in": 36, "ok": 36, "rejected": 0}
    assert manifest.conformers["none"] == 1
    conformer = PreparedData.open(tmp_path / "embedding").features(14).conformer
    assert (conformer.coordinates, conformer.reason) == (None, reason)

    fault_on(monkeypatch, "CCCNC", fault, "measure")
    manifest = prepare(path, tmp_path / "facts", PrepareOptions(time_limit=1.0), workers=2)
    assert manifest.rows == {"in": 36, "ok": 35, "rejected": 1}
    assert manifest.rejected == {code: 1}


@pytest.mark.slow
def test_memory_beyond_the_limit_costs_the_conformer(tmp_path):
    """A real one, in a process of its own: a forked worker may use what its parent has freed.

    RDKit needs over 200 MiB to embed a chain of 400 carbons; 60 are allowed.
    """
    only_with_limited_memory()
    path, out = tmp_path / "a.smi", tmp_path / "out"
    path.write_text(f"CCO\n{'C' * 400}\nCCN\n")
    options = ["--out", out, "--workers", "1", "--memory-limit", "0.06"]
    code = "from collamo.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, "prepare", path, *options], check=True)
    data = PreparedData.open(out)
    assert data.manifest.conformers == {"etkdgv3+mmff": 2, "none": 1}
    assert data.manifest.options.memory_limit == 0.06
    assert data.features(2).conformer.reason == "ran out of memory"


def test_an_rdkit_exception_costs_one_row(tmp_path, monkeypatch):
    only_forked()

    def fail():
        raise RuntimeError("Invariant\nViolation")

    fault_on(monkeypatch, "CC", fail, "measure")
    path = tmp_path / "a.smi"
    path.write_text("C\nCC\nCCC\n")
    manifest = prepare(path, tmp_path / "out", workers=1, max_reject_rate=0.5)
    assert manifest.rejected == {"rdkit": 1}
    rejected = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())
    assert rejected["message"] == "row 2: RDKit failed: RuntimeError Invariant Violation"


def test_too_many_rejected_fails_after_writing(mixed, tmp_path):
    with pytest.raises(TooManyRejectedError, match="3 of 8 rows were rejected") as caught:
        prepare(mixed, tmp_path / "out", workers=1)
    assert caught.value.exit_code == 3
    assert PreparedData.open(tmp_path / "out").manifest.rows["ok"] == 5


def test_text_that_is_not_utf8_is_kept_in_the_report(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"smiles\nCC\xff\nC\n")
    manifest = prepare(path, tmp_path / "out", workers=1, max_reject_rate=0.5)
    assert manifest.rejected == {"encoding": 1}
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["text"] == "CC\udcff"


def test_another_preparation_is_not_overwritten(nci):
    with pytest.raises(UsageError, match="another source, other options"):
        prepare("nci", nci, PrepareOptions(limit=48, shard_size=20, seed=1))


def test_shards_with_other_columns_are_not_gone_on_with(mixed, tmp_path, monkeypatch):
    schema = sharding_module.MOLECULE_SCHEMA
    monkeypatch.setattr(sharding_module, "MOLECULE_SCHEMA", pa.schema(list(schema)[:-1]))
    sharding = sharding_module.Sharding(mixed, PrepareOptions(), Folder.at(tmp_path), tmp_path)
    sharding.write({0}, 1, lambda rows: None)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="other versions of collamo or its libraries"):
        prepare(mixed, tmp_path, workers=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"time_limit": 0}, "time_limit is 0"),
        ({"memory_limit": 0}, "memory_limit is 0"),
        ({"force_field_steps": -1}, "force_field_steps is -1"),
        ({"large_force_field_steps": -1}, "large_force_field_steps is -1"),
        ({"shape_questions": -1}, "shape_questions is -1"),
        ({"split": (0.8, 0.1, 0.2)}, "add up to 1"),
        ({"smiles_column": "smiles"}, "no columns"),
    ],
)
def test_bad_options_are_usage_errors(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        prepare("nci", tmp_path / "out", PrepareOptions(**options))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"workers": -1}, "workers is -1"), ({"max_reject_rate": 5}, "between 0 and 1")],
)
def test_bad_arguments_are_usage_errors(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=words):
        prepare("nci", tmp_path / "out", **arguments)


def test_altered_or_missing_files_are_named(nci, tmp_path):
    for name, content in files(nci).items():
        (tmp_path / name).write_bytes(content)
    shard = tmp_path / "molecules-00001.parquet"
    flipped = bytearray(shard.read_bytes())
    flipped[200] ^= 1
    shard.write_bytes(flipped)
    data = PreparedData.open(tmp_path)
    with pytest.raises(CollamoError, match=r"molecules-00001\.parquet was altered"):
        data.features(21)
    assert not (tmp_path / ".mapped" / "index.json").exists()  # nothing is made of damaged shards
    with pytest.raises(CollamoError, match="altered"):
        data.verify()
    shard.write_bytes(flipped[:-1])
    with pytest.raises(CollamoError, match="bytes, the manifest says"):
        PreparedData.open(tmp_path)
    shard.unlink()
    with pytest.raises(CollamoError, match=r"molecules-00001\.parquet is missing"):
        PreparedData.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CollamoError, match="damaged"):
        PreparedData.open(tmp_path)
    with pytest.raises(UsageError, match="no prepared data"):
        PreparedData.open(tmp_path / "nothing")


def test_unknown_split(nci):
    with pytest.raises(UsageError, match="did you mean 'train'"):
        PreparedData.open(nci).tasks("trian")


def test_real_pubchem_rows(shared_data, tmp_path):
    manifest = prepare(
        shared_data / "pubchem_3k.jsonl",
        tmp_path / "out",
        PrepareOptions(limit=60, conformers=False),
    )
    assert manifest.rows == {"in": 60, "ok": 60, "rejected": 0}
    for split in SPLITS:
        counts = manifest.tasks[split]
        assert counts["caption"] == manifest.splits[split]
        assert 0 < counts["iupac_name"] <= manifest.splits[split]
    assert set(manifest.measured) == {"xlogp3", "complexity"}


@pytest.mark.slow
def test_real_records_with_coordinates(shared_data, tmp_path):
    manifest = prepare(shared_data / "gdb1k.sdf", tmp_path / "out", PrepareOptions(limit=210))
    assert manifest.rows == {"in": 210, "ok": 208, "rejected": 2}
    assert manifest.rejected == {"valence": 2}
    assert manifest.conformers == {"given": 208}


def test_every_flipped_bit_of_the_manifest_is_found(mixed, tmp_path):
    """Such as one in a token of the vocabulary, from which another model would be built."""
    prepare(mixed, tmp_path / "out", workers=1, max_reject_rate=0.5)
    path, expected = tmp_path / "out" / "manifest.json", PreparedData.open(tmp_path / "out")
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 37):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(CollamoError):
            assert Manifest.read(path) == expected.manifest, damaged  # white space changes nothing
