"""Scaffold splits: nothing in two splits, and the shares that were asked for."""

from collections import defaultdict

import pytest

from collamo.chem.molecule import parse_molecule
from collamo.data.sources import open_source
from collamo.data.splits import scaffold_of, split_by_scaffold


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
