"""Train, validation and test: by Murcko scaffold, at random, or as a column of the source says."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from collamo.chem.rejection import captured_log

# Our choice: a scaffold with more molecules than a tenth of the test split goes to train, so that
# no single ring system decides the scores. The forms of one parent count as one molecule.
LARGEST_HELD_OUT_SHARE = 0.1


def scaffold_of(canonical_smiles: str, mol: Chem.Mol | None = None) -> str:
    """Return the Murcko scaffold without stereo, "" for an acyclic molecule.

    A function of the canonical SMILES, so that equal molecules have equal scaffolds however they
    were written; `mol` is what RDKit reads from it, where that is at hand.
    """
    with captured_log():
        if mol is None:
            mol = Chem.MolFromSmiles(canonical_smiles)
        if mol is None:  # RDKit cannot read a few SMILES that it wrote; such a molecule is alone
            return canonical_smiles
        return MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False)


def split_by_scaffold(
    molecules: Sequence[tuple[str, str]],
    fractions: tuple[float, float, float],
    seed: int,
    parents: Sequence[str] | None = None,
) -> list[str]:
    """Return the split of each (canonical SMILES, scaffold).

    Molecules with one scaffold stay together; acyclic ones group by canonical SMILES. Groups that
    share one of `parents` (`collamo.chem.parent`), one per molecule, stay together too. Large
    groups go to train; the others, in an order set by the seed, fill test, then validation, then
    train.

    Examples
    --------
    >>> split_by_scaffold([("CCO", ""), ("CCO", "")], (0.8, 0.1, 0.1), seed=0)
    ['train', 'train']
    """
    keys = [scaffold or f"acyclic {canonical}" for canonical, scaffold in molecules]
    if parents is None:
        return _filled(keys, range(len(keys)), fractions, seed)
    return _filled(_joined(keys, parents), parents, fractions, seed)


def split_at_random(
    parents: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> list[str]:
    """Return the split of each molecule: at random, but for those of one parent, together."""
    return _filled(parents, parents, fractions, seed)


def split_by_sizes(total: int, sizes: Mapping[str, int], seed: int) -> list[str]:
    """Return the split of each of `total` molecules: so many at random, and the rest in test.

    Nothing is kept together: the forms of one parent may stand in two splits.

    >>> sorted(split_by_sizes(4, {"train": 2, "validation": 1}, seed=0))
    ['test', 'train', 'train', 'validation']
    """
    order = sorted(range(total), key=lambda place: _rank(str(place), seed))
    names = [name for name, size in sizes.items() for _ in range(size)]
    splits = ["test"] * total
    for place, name in zip(order, names, strict=False):
        splits[place] = name
    return splits


def split_named(text: str | None) -> str | None:
    """Return the split that a published file means; None where it means none.

    >>> split_named(" Valid"), split_named("TEST"), split_named("fold 3")
    ('validation', 'test', None)
    """
    return _NAMES.get((text or "").strip().lower())


def overlaps(
    splits: Sequence[str], molecules: Sequence[str], parents: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return what of a later split an earlier one has too: ``"test in train"`` → counts.

    ``"molecules"``: rows whose molecule (canonical SMILES) is there, ``"parents"``: rows whose
    parent is. Pairs without any are left out.

    >>> overlaps(["train", "test"], ["C[NH3+].[Cl-]", "CN"], ["CN", "CN"])
    {'test in train': {'molecules': 0, 'parents': 1}}
    """
    identities = {"molecules": molecules, "parents": parents}
    counts = {}
    for earlier, later in combinations(("train", "validation", "test"), 2):
        shared = {}
        for kind, values in identities.items():
            held = {value for value, split in zip(values, splits, strict=True) if split == earlier}
            rows = zip(values, splits, strict=True)
            shared[kind] = sum(split == later and value in held for value, split in rows)
        if any(shared.values()):
            counts[f"{later} in {earlier}"] = shared
    return counts


def joined_by_parent(molecules: Sequence[str], parents: Sequence[str]) -> int:
    """Return how many different molecules share their parent with another.

    >>> joined_by_parent(["CN", "C[NH3+].[Cl-]", "CN", "CO"], ["CN", "CN", "CN", "CO"])
    2
    """
    forms: dict[str, set[str]] = defaultdict(set)
    for molecule, parent in zip(molecules, parents, strict=True):
        forms[parent].add(molecule)
    return sum(len(group) for group in forms.values() if len(group) > 1)


def _filled(
    keys: Sequence[str],
    parents: Sequence[Hashable],
    fractions: tuple[float, float, float],
    seed: int,
) -> list[str]:
    """Return the split of each key; equal keys stay together, groups of many parents in train."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    total = len(keys)
    quota = {"test": fractions[2] * total, "validation": fractions[1] * total}
    largest = max(1.0, LARGEST_HELD_OUT_SHARE * quota["test"])
    splits = ["train"] * total
    for key in sorted(groups, key=lambda key: _rank(key, seed)):
        group = groups[key]
        for name, room in quota.items():
            if len(group) <= room and len({parents[position] for position in group}) <= largest:
                quota[name] -= len(group)
                for position in group:
                    splits[position] = name
                break
    return splits


def _joined(keys: Sequence[str], parents: Sequence[str]) -> list[str]:
    """Return for each key the first, by alphabet, of all that parents tie to it, through others."""
    first = {key: key for key in keys}

    def root(key: str) -> str:
        while first[key] != key:
            first[key] = first[first[key]]
            key = first[key]
        return key

    owner: dict[str, str] = {}
    for key, parent in zip(keys, parents, strict=True):
        one, other = sorted((root(key), root(owner.setdefault(parent, key))))
        first[other] = one
    return [root(key) for key in keys]


def _rank(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
