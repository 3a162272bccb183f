"""Parents: one for all salts, charge states, isomers, isotopologues and tautomers of a molecule."""

import gzip
import json
from collections import defaultdict
from itertools import islice
from pathlib import Path

import pytest
from rdkit import Chem, RDConfig

import collamo.chem.parent as parent_module
from collamo.chem.molecule import parse_molecule
from collamo.chem.parent import Parent, neutral_form, parent_of, tautomer_key
from collamo.chem.rejection import captured_log

FAMILIES = {
    "CC(O)CN": [
        "C[C@H](O)CN",
        "C[C@@H](O)CN",
        "CC(O)C[NH3+].[Cl-]",
        "CC(O)CN.OS(=O)(=O)O",
        "CC(O)CN.OC(=O)C(O)C(O)C(=O)O",
        "CC(O)CN.OC(=O)/C=C/C(=O)O",
        "[CH3:3][CH:1]([OH:2])[CH2:4][NH2:5]",
        "CC([2H])(O)CN",
        "CC(O)CN.O",
    ],
    "CCCC(=O)O": ["CCCC(=O)[O-].[Na+]", "CCCC(=O)[O-].[K+]", "CCCC([O-])=O"],
    "CC(=O)CC(=O)OC": ["CC(O)=CC(=O)OC", "C/C(O)=C/C(=O)OC"],
    "Cc1cc[nH]c(=O)c1": ["Cc1ccnc(O)c1", "Cc1cc[nH]c(=O)c1.Cl"],
    "CC=CCO": ["C/C=C/CO", "C/C=C\\CO"],
}


@pytest.mark.parametrize("first", FAMILIES)
def test_forms_of_one_molecule_have_one_parent(first):
    parents = {parent_of(parse_molecule(smiles).mol) for smiles in [first, *FAMILIES[first]]}
    assert len(parents) == 1
    assert not parents.pop().bounded


@pytest.mark.parametrize(
    "acid",
    [
        "OC=O",
        "CC(=O)O",
        "OC(=O)C(F)(F)F",
        "CCS(=O)(=O)O",
        "OS(=O)(=O)c1ccccc1",
        "OS(=O)(=O)c1cccc2ccccc12",
        "OS(=O)(=O)C(F)(F)F",
        "OCl(=O)(=O)=O",
        "OC(=O)CC(=O)O",
        "OC(=O)CCC(=O)O",
        "OC(=O)/C=C\\C(=O)O",
        "OC(=O)C(=O)O",
        "OC(=O)C[C@H](O)C(=O)O",
        "OC(=O)CC(O)(CC(=O)O)C(=O)O",
        "C[C@H](O)C(=O)O",
        "OC(=O)[C@H](O)[C@@H](O)[C@H](O)[C@H](O)CO",
        "OC(=O)c1ccccc1",
        "OC(=O)c1ccccc1O",
        "Oc1c([N+](=O)[O-])cc([N+](=O)[O-])cc1[N+](=O)[O-]",
        "Cc1ccc(cc1)S(=O)(=O)O",
        "O[N+](=O)[O-]",
        "OP(=O)(O)O",
    ],
)
def test_a_base_lighter_than_its_acid_is_the_parent(acid):
    base = parent_of(parse_molecule("CCNCC").mol)
    assert parent_of(parse_molecule(f"CCNCC.{acid}").mol) == base
    alone = parent_of(parse_molecule(acid).mol)
    assert alone != base
    if acid.startswith("OC(=O)"):
        salt = acid.replace("OC(=O)", "[Na+].[O-]C(=O)", 1)
        assert parent_of(parse_molecule(salt).mol) == alone


def test_different_molecules_have_different_parents():
    parents = [parent_of(parse_molecule(first).mol).smiles for first in FAMILIES]
    parents += [parent_of(parse_molecule(s).mol).smiles for s in ("CCCN", "CCCO", "c1ccncc1")]
    assert len(set(parents)) == len(parents)


@pytest.mark.parametrize("smiles", ["[Na+].[Cl-]", "[H][H]", "*CC", "[He]", "C[Hg]C", "[H+]", "O"])
def test_what_is_no_organic_molecule_has_a_parent_too(smiles):
    assert parent_of(parse_molecule(smiles).mol).smiles


def test_the_search_for_tautomers_is_bounded_and_says_so():
    peptide = Chem.MolFromSmiles("NCC(=O)" * 12 + "O")
    first, again = parent_of(peptide), parent_of(peptide)
    assert first == again
    assert first.bounded


# One or more for each kind of step that RDKit's enumerator knows, and what they act on together.
MOBILE = [
    *["CC(=O)CC(=O)C", "CC(=O)C=CC", "CC=NC", "CCc1ccccn1", "Oc1ccccn1", "CC(=N)O", "NC(=N)N"],
    *["c1cnc[nH]1", "Cc1n[nH]c2ccccc12", "OC1=CC=CO1", "O=C1CC=CO1", "C=C=O", "C[N+](=O)[O-]"],
    *["C=[N+]([O-])O", "CC=NO", "CCN=O", "O=NC1=CC=C(O)C=C1", "OC#N", "N=C=O", "NC(=N)S(=O)O"],
    *["C#N", "[C-]#[NH+]", "OP(O)O", "CP(=O)O", "SC(=S)N", "CC(=[Se])C", "Nc1nc(N)c2[nH]cnc2n1"],
    *[
        "CC1=NNC(=O)C1=NNc1ccccc1",
        "O=c1[nH]c(=O)c2[nH]c(=O)[nH]c2[nH]1",
        "CC(O)=C([2H])C",
        "[H][H]",
    ],
    "NCC(=O)" * 6 + "O",
]


@pytest.mark.parametrize("smiles", MOBILE)
def test_tautomers_have_one_key(smiles):
    """Of all forms that RDKit finds, as it makes them and read back, bounded or not."""
    mol = Chem.MolFromSmiles(smiles)
    with captured_log():
        forms = list(parent_module._standardiser().tautomers.Enumerate(mol))
        again = filter(None, map(Chem.MolFromSmiles, map(Chem.MolToSmiles, forms)))
        assert {tautomer_key(form) for form in (*forms, *again)} == {tautomer_key(mol)}


def test_equal_parents_have_equal_keys_and_few_others_have():
    with open(Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf", "rb") as file:
        mols = [mol for mol in Chem.ForwardSDMolSupplier(file) if mol is not None][:60]
    mols += [parse_molecule(form).mol for first in FAMILIES for form in (first, *FAMILIES[first])]
    keys = defaultdict(set)
    for mol in mols:
        keys[parent_of(mol).smiles].add(neutral_form(mol).tautomer_key)
    assert all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) > 0.95 * len(keys)


def test_keys_tell_apart_what_is_no_tautomer():
    different = ["CCC(C)=O", "CC(C)C=O", "CCC(C)O", "CCCC=O", "C1COCC1", "CSC(C)C", "CCC(C)[O-]"]
    assert len({tautomer_key(Chem.MolFromSmiles(smiles)) for smiles in different}) == 7
    assert all(0 <= tautomer_key(Chem.MolFromSmiles(smiles)) < 2**63 for smiles in different)


def test_where_the_standardiser_fails_the_parent_is_the_molecule_without_stereo(monkeypatch):
    def fail(mol, tools):
        raise RuntimeError("Pre-condition Violation")

    monkeypatch.setattr(parent_module, "_neutral_fragment", fail)
    assert parent_of(Chem.MolFromSmiles("C[C@H](N)O.Cl")) == Parent("CC(N)O.Cl", bounded=True)


HOSTILE = [
    *["CC(O)=NC", "OC(=N)c1ccccc1", "NC(O)=N", "Oc1ccccn1", "CS(C)=O", "CS(=O)(=O)C", "CS(=O)O"],
    *["CN(=O)=O", "C[N+](=O)[O-]", "CN=N#N", "C=[N+]=[N-]", "c1ccn(=O)cc1", "C[n+]1ccccc1"],
    *["CP(=O)(O)O", "C[Se]C", "C[Na]", "CO[Na]", "C[Hg]C", "[Cl]", "Cl", "O", "[CH3]", "C[CH]C"],
    *[
        "[13CH3]C",
        "[2H]C([2H])([2H])O",
        "[H]/N=C/C",
        "[CH3:1][OH:2]",
        "*CC",
        "C[N+](C)(C)CC(=O)[O-]",
    ],
    *["CC(=O)O", "OC(=O)C(=O)O", "CC(=O)O.CN", "CN.Cl", "[Na+].[Cl-]", "[NH3+]CC([O-])=O", "CBr"],
    *["F[C@H](Cl)Br", "F/C=C/F", "CC(=O)CC(C)=O", "C[Si](C)(C)C", "OB(O)c1ccccc1", "[O-]Cl(=O)=O"],
    *[
        "CS(C)(=O)=NC",
        "C[S+](C)[O-]",
        "FS(F)(F)(F)(F)F",
        "CI(=O)=O",
        "OI(=O)(=O)=O",
        "S=C(N)N",
        "NC#N",
    ],
]


def assert_skipped_only_what_does_nothing(texts):
    """The molecules that skip the standardiser are as it leaves them; return how many skip it."""
    tools = parent_module._standardiser()
    skipped = 0
    for text in texts:
        mol = parse_molecule(text).mol
        if parent_module._is_standard(mol):
            skipped += 1
            with captured_log():
                full = parent_module._standardised(mol, tools)
            assert Chem.MolToSmiles(full) == Chem.MolToSmiles(mol), text
    return skipped


def test_the_standardiser_is_skipped_only_where_it_does_nothing():
    assert 10 < assert_skipped_only_what_does_nothing(HOSTILE) < len(HOSTILE) - 20
    with open(Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf", "rb") as file:
        mols = [mol for mol in Chem.ForwardSDMolSupplier(file) if mol is not None]
    assert assert_skipped_only_what_does_nothing(map(Chem.MolToSmiles, mols)) > 100


@pytest.mark.slow
def test_real_molecules_skip_the_standardiser_only_where_it_does_nothing(shared_data):
    with gzip.open(shared_data / "moses_train.csv.gz", "rt") as file:
        moses = list(islice(map(str.strip, file), 1, 500_001, 100))
    assert assert_skipped_only_what_does_nothing(moses) > 4900
    lines = (shared_data / "pubchem_3k.jsonl").read_text().splitlines()
    pubchem = [json.loads(line)["smiles"] for line in lines]
    pubchem = [text for text in pubchem if Chem.MolFromSmiles(text).GetNumAtoms() <= 512]
    assert assert_skipped_only_what_does_nothing(pubchem) > 1500


def test_finding_a_parent_leaves_the_molecule_alone():
    molecule = parse_molecule("C[C@H]([NH3+])C([2H])O.[Cl-]")
    before = Chem.MolToSmiles(molecule.mol)
    parent_of(molecule.mol)
    assert Chem.MolToSmiles(molecule.mol) == before
