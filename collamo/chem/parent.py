"""The parent of a molecule: what its salts, charge states, isomers and tautomers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rdkit import Chem
from rdkit.Chem import SaltRemover
from rdkit.Chem.MolStandardize import rdMolStandardize

from collamo.chem.molecule import without_isotopes_of_hydrogen
from collamo.chem.rejection import captured_log

# Our choice: tautomers, and steps between them, that are looked at. Of 500 PubChem molecules 18 %
# have more; 6 ms a molecule, where 1,000 take 34 ms and 7 % still have more. Of 203 molecules with
# several tautomers, each written as up to seven of them, 188 have one parent (181 at a bound of
# 50, 192 at 200). Counted rather than timed, so that a busy machine finds the same parent.
MAX_TAUTOMERS = 100


@dataclass(frozen=True)
class Parent:
    """The parent of a molecule.

    Attributes
    ----------
    smiles
        Canonical SMILES; equal parents have equal ones.
    bounded
        Whether `MAX_TAUTOMERS` ended the search: the parent is then the best of those tautomers,
        and another tautomer of the molecule may get another one.
    """

    smiles: str
    bounded: bool = False


def parent_of(mol: Chem.Mol) -> Parent:
    """Return the parent: no counter-ion, charge, isotope or stereo; the canonical tautomer.

    RDKit's standardiser does all of it. Counter-ions are those of RDKit's lists, then whatever is
    not the largest organic fragment. Where RDKit fails, the parent is the molecule without stereo.

    >>> parent_of(Chem.MolFromSmiles("C[C@H]([NH3+])C(=O)[O-].Cl")).smiles
    'CC(N)C(=O)O'
    >>> parent_of(Chem.MolFromSmiles("Oc1ccccn1")) == parent_of(Chem.MolFromSmiles("O=c1cccc[nH]1"))
    True
    """
    try:
        with captured_log():
            return _canonical_tautomer(_neutral_fragment(mol))
    except (RuntimeError, ValueError):
        return Parent(Chem.MolToSmiles(mol, isomericSmiles=False))


def _neutral_fragment(mol: Chem.Mol) -> Chem.Mol:
    """Return the largest organic fragment, neutral, without isotopes and stereo."""
    tools = _standardiser()
    mol = tools.salts.StripMol(rdMolStandardize.Cleanup(mol), dontRemoveEverything=True)
    mol = tools.uncharger.uncharge(tools.largest.choose(tools.fragments.remove(mol)))
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum():  # [1*] is a label
            atom.SetIsotope(0)
    mol = without_isotopes_of_hydrogen(mol)
    Chem.RemoveStereochemistry(mol)
    return mol


def _canonical_tautomer(mol: Chem.Mol) -> Parent:
    tautomers = _standardiser().tautomers
    found = tautomers.Enumerate(mol)
    smiles = Chem.MolToSmiles(tautomers.PickCanonical(found), isomericSmiles=False)
    return Parent(smiles, found.status != rdMolStandardize.TautomerEnumeratorStatus.Completed)


@dataclass(frozen=True)
class _Standardiser:
    salts: SaltRemover.SaltRemover
    fragments: rdMolStandardize.FragmentRemover
    largest: rdMolStandardize.LargestFragmentChooser
    uncharger: rdMolStandardize.Uncharger
    tautomers: rdMolStandardize.TautomerEnumerator


@lru_cache(maxsize=1)
def _standardiser() -> _Standardiser:
    tautomers = rdMolStandardize.TautomerEnumerator()
    tautomers.SetMaxTautomers(MAX_TAUTOMERS)
    tautomers.SetMaxTransforms(MAX_TAUTOMERS)
    return _Standardiser(
        salts=SaltRemover.SaltRemover(),
        fragments=rdMolStandardize.FragmentRemover(),
        largest=rdMolStandardize.LargestFragmentChooser(True),
        uncharger=rdMolStandardize.Uncharger(),
        tautomers=tautomers,
    )
