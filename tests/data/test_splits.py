"""Scaffold splits: nothing in two splits, and the shares that were asked for."""

from collections import defaultdict

import pytest
from rdkit import Chem

from collamo.chem.molecule import parse_molecule
from collamo.chem.parent import neutral_form
from collamo.data.sources import open_source
from collamo.data.splits import overlaps, scaffold_of, split_at_random, split_by_scaffold


@pytest.fixture(scope="module")
def molecules():
    canonical = [
        parse_molecule(row.text).canonical_smiles for row in list(open_source("nci"))[:1000]
    ]
    return [(smiles, scaffold_of(smiles)) for smiles in canonical]


def test_scaffolds():
    assert scaffold_of("CCO") == ""
    assert scaffold_of("CC(=O)Oc1ccccc1C(=O)O") == "c1ccccc1"
    assert scaffold_of("C[C@H]1CC[C@@H](C)CC1") == "C1CCCCC1"


def test_a_molecule_at_hand_has_the_scaffold_of_its_smiles(molecules):
    for smiles, scaffold in molecules[:200]:
        assert scaffold_of(smiles, Chem.MolFromSmiles(smiles)) == scaffold


def test_no_molecule_and_no_scaffold_in_two_splits(molecules):
    splits = split_by_scaffold(molecules, (0.8, 0.1, 0.1), seed=0)
    where = defaultdict(set)
    for (canonical, scaffold), split in zip(molecules, splits, strict=True):
        where[canonical].add(split)
        if scaffold:
            where[scaffold].add(split)
    assert all(len(found) == 1 for found in where.values())


def test_shares(molecules):
    splits = split_by_scaffold(molecules, (0.8, 0.1, 0.1), seed=0)
    assert splits.count("test") == splits.count("validation") == 100
    held_out = {m for m, split in zip(molecules, splits, strict=True) if split == "test"}
    assert any(scaffold for _, scaffold in held_out)
    assert any(not scaffold for _, scaffold in held_out)
    assert set(split_by_scaffold(molecules, (1.0, 0.0, 0.0), seed=0)) == {"train"}


def test_seed_and_order(molecules):
    first = split_by_scaffold(molecules, (0.8, 0.1, 0.1), seed=0)
    assert first != split_by_scaffold(molecules, (0.8, 0.1, 0.1), seed=1)
    backwards = split_by_scaffold(molecules[::-1], (0.8, 0.1, 0.1), seed=0)
    assert backwards[::-1] == first


def test_forms_of_one_parent_stay_together_and_the_rest_where_it_was():
    """Acyclic molecules have no scaffold; salts and tautomers of a ring have several."""
    chains = ["C" * length + "(N)C(=O)O" for length in range(2, 42)]
    plain = [(smiles, "") for smiles in chains]
    salts = [(f"{smiles}.Cl", "") for smiles in chains]
    parents = chains * 2
    for seed in range(3):
        splits = split_by_scaffold(plain + salts, (0.6, 0.2, 0.2), seed, parents)
        assert splits[: len(plain)] == splits[len(plain) :]
        assert sorted(splits.count(name) for name in set(splits)) == [16, 16, 48]
        alone = split_by_scaffold(plain, (0.6, 0.2, 0.2), seed)
        assert split_by_scaffold(plain, (0.6, 0.2, 0.2), seed, chains) == alone


def test_parents_tie_scaffolds_together_through_others():
    rings = [(f"{'C' * n}C1CCCC1", f"scaffold {n}") for n in range(60)]
    chain = [f"pair {n // 2}" for n in range(60)]  # 0-1, 2-3, …
    bridged = [f"pair {(n + 1) // 2}" for n in range(60)]
    for parents, tied in ((chain, 2), (bridged, 2)):
        splits = split_by_scaffold(rings, (0.5, 0.25, 0.25), 1, parents)
        by_parent = defaultdict(set)
        for parent, split in zip(parents, splits, strict=True):
            by_parent[parent].add(split)
        assert {len(names) for names in by_parent.values()} == {1}
        assert max(parents.count(parent) for parent in parents) == tied


def test_a_random_split_keeps_parents_together_and_nothing_else(molecules):
    parents = [neutral_form(parse_molecule(smiles).mol).smiles for smiles, _ in molecules]
    splits = split_at_random(parents, (0.8, 0.1, 0.1), seed=0)
    assert splits.count("test") == splits.count("validation") == 100
    assert overlaps(splits, [smiles for smiles, _ in molecules], parents) == {}
    benzenes = {
        s for (_, scaffold), s in zip(molecules, splits, strict=True) if scaffold == "c1ccccc1"
    }
    assert len(benzenes) == 3


def test_what_splits_share_is_counted_by_row():
    splits = ["train", "train", "validation", "test", "test"]
    molecules = ["CO", "CN", "CO", "CN.Cl", "CN"]
    parents = ["CO", "CN", "CO", "CN", "CN"]
    assert overlaps(splits, molecules, parents) == {
        "validation in train": {"molecules": 1, "parents": 1},
        "test in train": {"molecules": 1, "parents": 2},
    }
