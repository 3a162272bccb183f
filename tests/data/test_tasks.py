"""Questions: the truth is exact, the wording varies, the answer is short."""

import math

import numpy as np
import pytest

from collamo.chem.conformer import Conformer, absent_conformer, embed_conformer
from collamo.chem.molecule import parse_molecule
from collamo.chem.motifs import count_motifs
from collamo.data.columns import MEASURED_COLUMNS, MeasuredColumn
from collamo.data.facts import PROPERTIES_3D, format_number, measure
from collamo.data.tasks import TASKS, build_tasks, task_rng, write_tasks

ASPIRIN = parse_molecule("CC(=O)Oc1ccccc1C(=O)O")


def tasks_of(molecule, columns=None, seed=0, conformer=None, measured=None):
    conformer = conformer or absent_conformer("not needed")
    rng = task_rng(seed, molecule.canonical_smiles)
    return build_tasks(molecule, conformer, columns or {}, rng, row=7, measured=measured)


def answers(tasks, task):
    return {example.target: example.answer for example in tasks if example.task == task}


def test_properties_of_aspirin():
    # PubChem CID 2244: C9H8O4, 180.16 g/mol, TPSA 63.6 Å², 1 donor, 13 heavy atoms; HBA, logP and
    # QED by RDKit's definitions
    assert answers(tasks_of(ASPIRIN), "property_2d") == {
        "formula": "C9H8O4",
        "molecular_weight": "180.2",
        "logp": "1.31",
        "tpsa": "63.6",
        "qed": "0.55",
        "fraction_sp3": "0.11",
        "hbond_donors": "1",
        "hbond_acceptors": "3",
        "rotatable_bonds": "2",
        "ring_count": "1",
        "heavy_atoms": "13",
        "formal_charge": "0",
    }


def test_motif_questions_ask_as_many_absent_as_present():
    truth = count_motifs(ASPIRIN)
    asked = [example for example in tasks_of(ASPIRIN) if example.task == "motif_count"]
    present = [example for example in asked if truth[example.target]]
    assert len(present) == 4
    assert len(asked) == 8
    assert len({example.target for example in asked}) == 8
    for example in asked:
        assert example.answer == str(truth[example.target])
        assert example.value == truth[example.target]
        assert f"{example.target}s" in example.question


def test_a_molecule_without_motifs_is_asked_about_one():
    asked = [e for e in tasks_of(parse_molecule("CC")) if e.task == "motif_count"]
    assert [e.answer for e in asked] == ["0"]


def test_geometry_by_hand():
    """Two carbons 2 Å apart and one on top: R_g = √(Σ d² / n) about the centre."""
    propane = parse_molecule("CCC")
    line = Conformer(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], dtype=np.float32), "given")
    found = answers(tasks_of(propane, conformer=line), "property_3d")
    assert found == {"radius_of_gyration": f"{math.sqrt(2 / 3):.2f}", "longest_distance": "2.0"}


LEUCINOL = parse_molecule("CC(C)CC(N)CCO")  # its nitrogen and its oxygen are four bonds apart
BENT = Conformer(np.cumsum([[1.5, i % 2, i % 3] for i in range(9)], 0, dtype=np.float32), "given")


def test_size_is_always_asked_and_one_number_of_the_shape():
    facts = measure(LEUCINOL, BENT)
    asked = set()
    for seed in range(60):
        tasks = [
            e for e in tasks_of(LEUCINOL, seed=seed, conformer=BENT) if e.task == "property_3d"
        ]
        assert [e.target for e in tasks[:2]] == ["radius_of_gyration", "longest_distance"]
        assert len({e.target for e in tasks}) == len(tasks) == 3
        asked |= {e.target for e in tasks}
        for example in tasks:
            key = next(key for key in facts.geometry if key.startswith(example.target))
            assert example.value == facts.geometry[key]
            decimals = len(example.answer.partition(".")[2])
            assert example.answer == format_number(example.value, decimals)
            assert decimals == (1 if example.target == "longest_distance" else 2)
    assert asked == {*PROPERTIES_3D, "heteroatom_distance"}


@pytest.mark.parametrize(("shapes", "asked"), [(0, 2), (3, 5), (99, 2 + 7)])
def test_as_many_numbers_of_the_shape_are_asked_as_wanted(shapes, asked):
    facts, rng = measure(LEUCINOL, BENT), task_rng(0, LEUCINOL.canonical_smiles)
    tasks = [e for e in write_tasks(facts, {}, rng, shapes=shapes) if e.task == "property_3d"]
    assert [e.target for e in tasks[:2]] == ["radius_of_gyration", "longest_distance"]
    assert len(tasks) == len({e.question for e in tasks}) == asked


def test_the_question_names_the_heteroatoms():
    asked = {
        example.question
        for seed in range(120)
        for example in tasks_of(LEUCINOL, seed=seed, conformer=BENT)
        if example.target == "heteroatom_distance"
    }
    assert len(asked) == 4
    for question in asked:
        assert "distance between the nitrogen atom and the oxygen atom of th" in question
        assert " in Å" in question


def test_no_conformer_no_geometry_question():
    assert not answers(tasks_of(ASPIRIN), "property_3d")
    helium = parse_molecule("[He]")
    assert not answers(tasks_of(helium, conformer=embed_conformer(helium)), "property_3d")


def test_given_text_and_numbers_are_asked_as_given():
    columns = {
        "caption": "A drug.\n It helps.",
        "iupac_name": " 2-acetoxy… ",
        "homo": "-0.25431",
        "mu": "NA",
    }
    known = {name: MEASURED_COLUMNS[name] for name in ("homo", "mu")}
    tasks = tasks_of(ASPIRIN, columns, measured=known)
    assert answers(tasks, "caption") == {"given": "A drug. It helps."}
    assert answers(tasks, "iupac_name") == {"iupac_name": "2-acetoxy…"}
    (homo,) = [example for example in tasks if example.task == "measured"]
    assert (homo.answer, homo.value, homo.unit) == ("-0.2543", -0.25431, "Hartree")
    assert "Hartree" in homo.question
    assert "Hartree" not in homo.answer


def test_a_value_in_another_unit_is_converted_to_the_columns():
    column = MeasuredColumn("ic50", "IC50", "nM")
    expected = {"5.3": (5.3, "nM"), "5.3 nM": (5.3, "nM"), "5.3 µM": (5300, "nM")}
    expected |= {">2 umol/L": (2000, "nM"), "3 mg/L": (3, "mg/L"), "50 %": (50, "%")}
    for text, asked in expected.items():
        tasks = tasks_of(ASPIRIN, {"ic50": text}, measured={"ic50": column})
        (example,) = [example for example in tasks if example.task == "measured"]
        assert (example.value, example.unit) == asked
        assert example.question.endswith((f" in {asked[1]}?", f" in {asked[1]}."))
        assert example.answer == f"{text[0] if text[0] == '>' else ''}{asked[0]:g}"
    gap = {"gap": MeasuredColumn("gap", "gap", "eV", 3)}
    tasks = tasks_of(ASPIRIN, {"gap": "0.25 Hartree"}, measured=gap)
    assert [e.answer for e in tasks if e.task == "measured"] == ["6.803"]


def test_units_are_in_the_question_and_not_in_the_answer():
    for example in tasks_of(ASPIRIN, conformer=embed_conformer(ASPIRIN)):
        assert example.molecule == 7
        assert example.task in TASKS
        if example.unit:
            assert f" in {example.unit}" in example.question
        if example.value is not None:
            assert float(example.answer) == pytest.approx(example.value, abs=0.5)
        assert "{" not in example.question + example.answer


def test_wording_depends_on_seed_and_molecule_alone():
    assert tasks_of(ASPIRIN) == tasks_of(parse_molecule("O=C(O)c1ccccc1OC(C)=O"))
    assert tasks_of(ASPIRIN) != tasks_of(ASPIRIN, seed=1)


def test_several_wordings():
    questions = {
        example.question
        for seed in range(40)
        for example in tasks_of(ASPIRIN, seed=seed)
        if example.target in ("logp", "ring_count")
    }
    assert len(questions) == 8
