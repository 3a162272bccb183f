"""Parents looked for where molecules may share one: the same groups as when all are looked for."""

import gzip
import json
import os
import random
import signal
from collections import defaultdict
from itertools import cycle, islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem

import collamo.chem.parent as parent_module
import collamo.data.parents as parents_module
import collamo.data.workers as workers_module
from collamo.chem.conformer_workers import worker_context
from collamo.chem.molecule import parse_molecule
from collamo.chem.parent import Parent, canonical_tautomer, neutral_form
from collamo.chem.rejection import captured_log
from collamo.data.options import PrepareOptions
from collamo.data.parents import Parents, with_neighbours
from collamo.data.prepare import prepare
from collamo.data.splits import joined_by_parent, overlaps, scaffold_of, split_by_scaffold

OPTIONS = PrepareOptions(conformers=False)
PAIRS = [("{}c1ccnc(O)c1", "{}c1cc[nH]c(=O)c1"), ("{}C(=O)CC(=O)OC", "{}C(O)=CC(=O)OC")]


def old_parent(mol):
    """The definition: the canonical tautomer of the molecule itself, whatever others there are."""
    tools = parent_module._standardiser()
    with captured_log():
        forms = tools.tautomers.Enumerate(parent_module._neutral_fragment(mol, tools))
        return Chem.MolToSmiles(tools.tautomers.PickCanonical(forms), isomericSmiles=False)


def real_molecules(shared_data):
    """SMILES from PubChem and MOSES, some as salts, ions or other tautomers too."""
    lines = (shared_data / "pubchem_3k.jsonl").read_text().splitlines()
    texts = [json.loads(line)["smiles"] for line in lines]
    with gzip.open(shared_data / "moses_train.csv.gz", "rt") as file:
        texts += map(str.strip, islice(file, 1, 51))
    mols = map(Chem.MolFromSmiles, texts)
    small = [(m, t) for m, t in zip(mols, texts, strict=True) if m.GetNumHeavyAtoms() <= 16]
    small = random.Random(0).sample(small, 100)
    tools = parent_module._standardiser()
    with captured_log():
        for mol, text in small[:30]:
            forms = map(Chem.MolToSmiles, islice(tools.tautomers.Enumerate(mol), 3))
            yield from filter(Chem.MolFromSmiles, forms)  # it makes some that RDKit cannot read
            yield f"{text}.Cl"
    for mol, text in small:
        Chem.RemoveStereochemistry(mol)
        yield from (text, Chem.MolToSmiles(mol))


def groups(names):
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    return sorted(places.values())


def test_splits_and_counts_are_those_of_all_canonical_tautomers(shared_data):
    molecules = [parse_molecule(text) for text in real_molecules(shared_data)]
    forms = [neutral_form(molecule.mol) for molecule in molecules]
    columns = [[form.smiles for form in forms], [form.tautomer_key for form in forms]]
    asked = with_neighbours(pa.table(columns, names=["neutral_smiles", "tautomer_key"]))
    found = Parents({form: canonical_tautomer(form) for form in asked})
    old = [old_parent(molecule.mol) for molecule in molecules]
    new = [found.of(form.smiles, form.tautomer_key).smiles for form in forms]
    assert groups(new) == groups(old)
    assert len(groups(old)) < len({form.smiles for form in forms}) - 20
    assert 50 < len(asked) < len(molecules) / 2
    canonical = [molecule.canonical_smiles for molecule in molecules]
    assert joined_by_parent(canonical, new) == joined_by_parent(canonical, old) > 150
    pairs = [(smiles, scaffold_of(smiles)) for smiles in canonical]
    for seed in range(5):
        splits = [split_by_scaffold(pairs, (0.8, 0.1, 0.1), seed, names) for names in (old, new)]
        assert splits[0] == splits[1]
        published = random.Random(seed).choices(("train", "validation", "test"), k=len(old))
        counts = [overlaps(published, canonical, names) for names in (old, new)]
        assert counts[0] == counts[1] != {}


@pytest.fixture
def source(tmp_path):
    """Twenty times two tautomers and a salt of one of them, and ten molecules without any."""
    rows = []
    for chain in ("C" * length for length in range(1, 11)):
        for one, other in PAIRS:
            rows += [one.format(chain), other.format(chain), f"{other.format(chain)}.Cl"]
        rows.append(f"{chain}CBr")
    folds = cycle(("train", "valid", "test"))
    lines = [f"{row},{fold}" for row, fold in zip(rows, folds, strict=False)]
    (tmp_path / "source.csv").write_text("\n".join(["smiles,fold", *lines]) + "\n")
    return tmp_path / "source.csv"


@pytest.mark.parametrize("rule", ["scaffold", "random", "column:fold"])
def test_tautomers_have_one_parent_under_every_rule(source, tmp_path, rule):
    options = PrepareOptions(conformers=False, split_by=rule, shard_size=16)
    manifest = prepare(source, tmp_path / "out", options, workers=2, progress=False)
    assert manifest.parents == {"molecules": 70, "parents": 30, "joined": 60, "bounded": 0}
    table = pq.read_table(tmp_path / "out" / "splits.parquet").to_pydict()
    assert [len(set(table["parent"][i : i + 3])) for i in range(0, 70, 7)] == [1] * 10
    places = [{table["split"][place] for place in group} for group in groups(table["parent"])]
    if rule == "column:fold":
        assert manifest.overlaps["test in train"]["parents"] == 20
    else:
        assert (manifest.overlaps, max(map(len, places))) == ({}, 1)


def test_a_search_that_dies_leaves_the_form_its_own_parent(source, tmp_path, monkeypatch):
    if worker_context().get_start_method() != "fork":
        pytest.skip("the fault is put in by patching, which only a forked worker inherits")
    lost = PAIRS[0][0].format("CCC")

    def faulty(smiles):
        if smiles == neutral_form(Chem.MolFromSmiles(lost)).smiles:
            os.kill(os.getpid(), signal.SIGKILL)
        return canonical_tautomer(smiles)

    monkeypatch.setattr(workers_module, "canonical_tautomer", faulty)
    manifest = prepare(source, tmp_path / "out", OPTIONS, workers=2, progress=False)
    assert manifest.rows == {"in": 70, "ok": 70, "rejected": 0}
    assert manifest.parents == {"molecules": 70, "parents": 31, "joined": 59, "bounded": 1}


def test_a_form_that_the_standardiser_failed_for_is_its_own_parent():
    assert Parents({"CO": Parent("OC")}).of("CO", None) == Parent("CO", bounded=True)


def test_nothing_is_looked_for_where_no_two_molecules_can_share_a_parent(tmp_path, monkeypatch):
    (tmp_path / "a.smi").write_text("CCO\nOCC\nCCO.Cl\nCC=O\nCCCC=O\nCc1ccnc(O)c1\n")
    monkeypatch.setattr(parents_module, "find_parents", None)
    manifest = prepare(tmp_path / "a.smi", tmp_path / "out", OPTIONS, workers=1, progress=False)
    assert manifest.parents == {"molecules": 5, "parents": 4, "joined": 2, "bounded": 0}
