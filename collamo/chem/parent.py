"""The parent of a molecule: what its salts, charge states, isomers and tautomers have in common.

It is the canonical tautomer of the molecule's neutral form. Finding that takes longer than all else
that is asked of a molecule, and two neutral forms can share it only if their `tautomer_key` is
one; so it is asked for where two or more molecules have the same key (`collamo.data.parents`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rdkit import Chem, RDConfig
from rdkit.Chem import SaltRemover, rdMolDescriptors, rdMolHash, rdqueries
from rdkit.Chem.MolStandardize import rdMolStandardize

from collamo.chem.molecule import without_isotopes_of_hydrogen
from collamo.chem.rejection import captured_log

# Our choice: tautomers, and steps between them, that are looked at. Of 500 PubChem molecules 18 %
# have more; 6 ms a molecule, where 1,000 take 34 ms and 7 % still have more. Of 203 molecules with
# several tautomers, each written as up to seven of them, 188 have one parent (181 at a bound of
# 50, 192 at 200). Counted rather than timed, so that a busy machine finds the same parent.
MAX_TAUTOMERS = 100

# What RDKit's standardiser may rewrite: metals, elements that it writes with or without charges,
# explicit hydrogen (deuterium); charges; sulfur with three neighbours; imidic acids.
_REWRITTEN = [
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "[!#6;!#7;!#8;!#9;!#16;!#17;!#35;!#53]",
        "[!+0]",
        "[#16;D3]",
        "[#6]([OX2H])=,:[#7]",
    )
]
_RADICAL = rdqueries.NumRadicalElectronsGreaterQueryAtom(0)
_ISOTOPE = Chem.MolFromSmarts("[!0*;!#0]")  # [1*] is a label

# Acids of salts that RDKit's list lacks, as in its Salts.txt: no charges, whole fragments. A small
# base is lighter than they are, and would be taken for the counter-ion.
COUNTER_IONS = """
[CH](=O)O	Formate
[CH3][CH2][S](=O)(=O)O	Esylate
c1ccccc1[S](=O)(=O)O	Besylate
c1ccc2ccccc2c1[S](=O)(=O)O	Napsylate
FC(F)(F)[S](=O)(=O)O	Triflate
[Cl](=O)(=O)(=O)O	Perchlorate
[B](F)(F)(F)F	Tetrafluoroborate
OC(=O)[CH2]C(=O)O	Malonate
OC(=O)[CH2][CH2]C(=O)O	Succinate
OC(=O)[CH2][CH](O)C(=O)O	Malate
OC(=O)[CH2]C(O)(C(=O)O)[CH2]C(=O)O	Citrate
[CH3][CH](O)C(=O)O	Lactate
OC(=O)[CH](O)[CH](O)[CH](O)[CH](O)[CH2]O	Gluconate
OC(=O)c1ccccc1	Benzoate
OC(=O)c1ccccc1O	Salicylate
Oc1c(N(=O)O)cc(N(=O)O)cc1N(=O)O	Picrate
"""


@dataclass(frozen=True)
class NeutralForm:
    """A molecule without counter-ions, charge, isotopes and stereo.

    Attributes
    ----------
    smiles
        Canonical SMILES.
    tautomer_key
        Equal for the tautomers of one molecule (`tautomer_key`). None where RDKit's standardiser
        failed: the form is then the molecule without stereo, and its own parent.
    """

    smiles: str
    tautomer_key: int | None


@dataclass(frozen=True)
class Parent:
    """The parent of a molecule.

    Attributes
    ----------
    smiles
        Canonical SMILES; equal parents have equal ones.
    bounded
        Whether `MAX_TAUTOMERS` ended the search, or RDKit failed: the parent is then the best of
        those tautomers, or the neutral form itself, and another form may get another one.
    """

    smiles: str
    bounded: bool = False


def parent_of(mol: Chem.Mol) -> Parent:
    """Return the parent: no counter-ion, charge, isotope or stereo; the canonical tautomer.

    >>> parent_of(Chem.MolFromSmiles("C[C@H]([NH3+])C(=O)[O-].Cl")).smiles
    'CC(N)C(=O)O'
    >>> parent_of(Chem.MolFromSmiles("Oc1ccccn1")) == parent_of(Chem.MolFromSmiles("O=c1cccc[nH]1"))
    True
    """
    form = neutral_form(mol)
    if form.tautomer_key is None:
        return Parent(form.smiles, bounded=True)
    return canonical_tautomer(form.smiles)


def neutral_form(mol: Chem.Mol) -> NeutralForm:
    """Return the molecule without counter-ions, charge, isotopes and stereo.

    RDKit's standardiser does all of it. Counter-ions are those of RDKit's lists and of ours, then
    whatever is not the largest organic fragment.

    >>> neutral_form(Chem.MolFromSmiles("C[C@H]([NH3+])C(=O)[O-].Cl")).smiles
    'CC(N)C(=O)O'
    """
    try:
        with captured_log():
            form = _neutral_fragment(mol, _standardiser())
            return NeutralForm(_flat_smiles(form), tautomer_key(form))
    except (RuntimeError, ValueError):
        return NeutralForm(_flat_smiles(mol), None)


def tautomer_key(mol: Chem.Mol) -> int:
    """Return a number that the tautomers of one molecule share, and few other molecules.

    A tautomer has its hydrogens and bond orders elsewhere. What it keeps is which atoms are bonded,
    how many hydrogens there are, and the charge: 63 bits of the SHA-256 of these.

    >>> enol, ketone, aldehyde = map(Chem.MolFromSmiles, ("C=C(C)O", "CC(C)=O", "CCC=O"))
    >>> tautomer_key(enol) == tautomer_key(ketone), tautomer_key(ketone) == tautomer_key(aldehyde)
    (True, False)
    """
    bonded = rdMolHash.MolHash(mol, rdMolHash.HashFunction.ElementGraph)
    kept = f"{bonded} {rdMolDescriptors.CalcMolFormula(mol)}"
    return int.from_bytes(hashlib.sha256(kept.encode()).digest()[:8]) >> 1


def canonical_tautomer(smiles: str) -> Parent:
    """Return the parent of the molecule whose neutral form has the canonical SMILES `smiles`.

    Equal neutral forms have one parent, however the molecules were written.
    """
    tautomers = _standardiser().tautomers
    try:
        with captured_log():
            mol = Chem.MolFromSmiles(smiles)
            if mol is None:  # RDKit cannot read a few SMILES that it wrote
                return Parent(smiles, bounded=True)
            forms = tautomers.Enumerate(mol)
            best = _flat_smiles(tautomers.PickCanonical(forms))
    except (RuntimeError, ValueError):
        return Parent(smiles, bounded=True)
    return Parent(best, forms.status != rdMolStandardize.TautomerEnumeratorStatus.Completed)


def _flat_smiles(mol: Chem.Mol) -> str:
    return Chem.MolToSmiles(mol, isomericSmiles=False)


def _neutral_fragment(mol: Chem.Mol, tools: _Standardiser) -> Chem.Mol:
    """Return the largest organic fragment, neutral, without isotopes and stereo."""
    mol = Chem.Mol(mol) if _is_standard(mol) else _standardised(mol, tools)
    for (place,) in mol.GetSubstructMatches(_ISOTOPE, maxMatches=mol.GetNumAtoms()):
        mol.GetAtomWithIdx(place).SetIsotope(0)
    mol = without_isotopes_of_hydrogen(mol)
    Chem.RemoveStereochemistry(mol)
    return mol


def _standardised(mol: Chem.Mol, tools: _Standardiser) -> Chem.Mol:
    """Return what RDKit's standardiser and the lists of counter-ions leave of the molecule."""
    mol = tools.salts.StripMol(rdMolStandardize.Cleanup(mol), dontRemoveEverything=True)
    return tools.uncharger.uncharge(tools.largest.choose(tools.fragments.remove(mol)))


def _is_standard(mol: Chem.Mol) -> bool:
    """Return whether `_standardised` has nothing to do; that takes 0.7 ms and more.

    One fragment, so there is none to choose. No charge, so none to move or to neutralise; no metal
    to disconnect. RDKit's normalisations rewrite charges, elements that are left out, sulfoxides
    (three neighbours), halogens on their own and the hydroxyl of an imidic acid.
    """
    if mol.GetNumAtoms() < 2 or len(Chem.GetMolFrags(mol)) > 1:
        return False
    if any(map(mol.HasSubstructMatch, _REWRITTEN)):
        return False
    return not mol.GetAtomsMatchingQuery(_RADICAL)


@dataclass(frozen=True)
class _Standardiser:
    salts: SaltRemover.SaltRemover
    fragments: rdMolStandardize.FragmentRemover
    largest: rdMolStandardize.LargestFragmentChooser
    uncharger: rdMolStandardize.Uncharger
    tautomers: rdMolStandardize.TautomerEnumerator


@lru_cache(maxsize=1)
def _standardiser() -> _Standardiser:
    text = (Path(RDConfig.RDDataDir) / "Salts.txt").read_text(encoding="utf-8") + COUNTER_IONS
    counter_ions = [line for line in text.splitlines() if line and not line.startswith("//")]
    tautomers = rdMolStandardize.TautomerEnumerator()
    tautomers.SetMaxTautomers(MAX_TAUTOMERS)
    tautomers.SetMaxTransforms(MAX_TAUTOMERS)
    # The molecules have no stereo when it sees them; a tenth of its time.
    tautomers.SetReassignStereo(False)
    tautomers.SetRemoveSp3Stereo(False)
    tautomers.SetRemoveBondStereo(False)
    return _Standardiser(
        salts=SaltRemover.SaltRemover(defnData="\n".join(counter_ions)),
        fragments=rdMolStandardize.FragmentRemover(),
        largest=rdMolStandardize.LargestFragmentChooser(True),
        uncharger=rdMolStandardize.Uncharger(),
        tautomers=tautomers,
    )
