import dataclasses
import math

import numpy as np
import pytest
from rdkit.Chem import QED

import collamo.data.facts as facts_module
from collamo.chem.conformer import Conformer, absent_conformer, embed_conformer
from collamo.chem.molecule import parse_molecule, without_isotopes_of_hydrogen
from collamo.data.facts import (
    ELEMENTS,
    PROPERTIES_2D,
    count_elements,
    format_number,
    measure,
    why_unknown,
)


def test_nothing_on_stderr(capfd):
    """RDKit's QED warns of a proton; in a log of 40,000 rows nobody knows of which."""
    measure(parse_molecule("CC[NH3+].[H+].[Cl-].[Cl-]"), absent_conformer("not needed"))
    assert capfd.readouterr().err == ""


def test_radius_of_gyration_weighs_by_mass():
    molecule = parse_molecule("[2H]Cl")
    line = Conformer(np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32), "given")
    light, heavy = 2.014, 35.453
    expected = math.sqrt(light * heavy) / (light + heavy)
    value = measure(molecule, line).geometry["radius_of_gyration"]
    assert format_number(value, 4) == format_number(expected, 4)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (-0.004, 2, "0.00"),
        (-0.006, 2, "-0.01"),
        (2.5, 0, "2"),
        (-40.478931, None, "-40.4789"),
        (-0.0, 0, "0"),
    ],
)
def test_numbers(value, decimals, text):
    assert format_number(value, decimals) == text


def test_property_names_are_unique():
    assert len({entry.target for entry in PROPERTIES_2D}) == len(PROPERTIES_2D)


@pytest.mark.parametrize(
    ("labelled", "plain"),
    [("[2H]C([2H])([2H])O[2H]", "CO"), ("[2H]C([2H])([2H])Oc1ccc([3H])cc1", "COc1ccccc1")],
)
def test_deuterium_changes_the_weight_and_nothing_else_that_is_counted(labelled, plain):
    one, other = (measure(parse_molecule(s), absent_conformer("unused")) for s in (labelled, plain))
    assert one.motifs == other.motifs
    assert one.properties["molecular_weight"] > other.properties["molecular_weight"] + 4
    rest = {name: value for name, value in one.properties.items() if name != "molecular_weight"}
    assert rest == {name: other.properties[name] for name in rest}


def test_qed_is_rdkits():
    smiles = [
        "CC(=O)Oc1ccccc1C(=O)O",
        "[H][H]",
        "[2H]C(Cl)(Cl)Cl",
        "C1CCCCC1N=[N+]=[N-]",
        "C",
        "*CC",
    ]
    smiles += [
        "O=C1NC(=O)C2C1C3C=CC2C3",
        "FC(F)(F)c1cc([N+](=O)[O-])ccc1S(=O)(=O)Cl",
        "[Na+].[Cl-]",
    ]
    for molecule in map(parse_molecule, smiles):
        plain = without_isotopes_of_hydrogen(molecule.mol)
        facts = measure(molecule, absent_conformer("not asked for"))
        assert facts.properties["qed"] == round(QED.qed(plain), 6)


def test_the_longest_distance_is_between_heavy_atoms():
    """C-O in methanol has 1.4 Å; the deuterium atoms are farther apart."""
    methanol = parse_molecule("[2H]C([2H])([2H])O[2H]")
    distance = measure(methanol, embed_conformer(methanol)).geometry["longest_distance"]
    assert 1.38 < distance < 1.45


@pytest.mark.parametrize("smiles", ["[2H]O[2H]", "[H][H]", "[2H][2H]", "[2H]C([2H])([2H])[2H]"])
def test_without_two_heavy_atoms_there_is_no_distance_to_ask_for(smiles):
    molecule = parse_molecule(smiles)
    assert "longest_distance" not in measure(molecule, embed_conformer(molecule)).geometry


@pytest.mark.parametrize(
    ("smiles", "counts"),
    [
        ("[2H]C([2H])([2H])Cl", {"C": 1, "H": 3, "Cl": 1}),
        ("[NH3][Co+3]([NH3])([NH3])([NH3])([NH3])[NH3]", {"H": 18, "N": 6}),  # of no cobalt
        ("CC(=O)[O-].C[NH3+]", {"C": 3, "H": 9, "N": 1, "O": 2}),
        ("FC(Br)(I)CSP", {"C": 2, "H": 4, "F": 1, "Br": 1, "I": 1, "S": 1, "P": 1}),
    ],
)
def test_atoms_are_counted_by_element(smiles, counts):
    formula = measure(parse_molecule(smiles), absent_conformer("unused")).formula
    assert count_elements(formula) == {symbol: counts.get(symbol, 0) for symbol in ELEMENTS}


def test_what_is_no_number_is_no_fact(monkeypatch):
    """QED fails on a molecule, logP overflows float32, in which facts are learned."""
    broken = {"qed": math.nan, "logp": -1e39, "tpsa": math.inf}
    properties = [
        dataclasses.replace(entry, compute=lambda mol, value=broken[entry.target]: value)
        if entry.target in broken
        else entry
        for entry in PROPERTIES_2D
    ]
    monkeypatch.setattr(facts_module, "PROPERTIES_2D", properties)
    facts = measure(parse_molecule("CCO"), absent_conformer("not asked for"))
    assert not broken.keys() & facts.properties.keys()
    assert {name: why_unknown(value) for name, value in facts.unknown.items()} == {
        "qed": "not defined",
        "logp": "infinite",
        "tpsa": "infinite",
    }
