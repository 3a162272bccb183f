"""Written molecules: exact, similar, valid; by hand."""

from collamo.evaluation.score.molecules import molecule_row, molecule_scores
from collamo.evaluation.statistics import Sums


def test_molecules_by_hand():
    status, values = molecule_row("OCC", "CCO")
    assert status == "scored"
    assert values["exact_inchi"] == values["exact_canonical"] == values["morgan"] == 1
    assert values["levenshtein"] == 2
    status, values = molecule_row("C(", "CCO")
    assert (status, values["validity"], values["exact_inchi"]) == ("invalid_prediction", 0, 0)
    assert "morgan" not in values
    assert molecule_row("CCO", "not a molecule") == ("invalid_reference", {})
    # One methyl environment and one bond more: same atoms, another structure.
    assert molecule_row("COC", "CCO")[1]["exact_inchi"] == 0
    # 2-hydroxypyridine and 2-pyridone: one InChI, two canonical SMILES.
    _, tautomers = molecule_row("O=c1cccc[nH]1", "Oc1ccccn1")
    assert (tautomers["exact_inchi"], tautomers["exact_canonical"]) == (1, 0)


def test_a_sentence_is_no_molecule():
    _, sentence = molecule_row("I do not know", "I")
    assert (sentence["validity"], sentence["validity_strict"]) == (1, 0)
    assert molecule_row(" CCO\n", "CCO")[1]["validity_strict"] == 1
    assert molecule_row("C(", "CCO")[1]["validity_strict"] == 0


def test_selfies_are_compared_as_smiles():
    status, values = molecule_row("[C][C][O]", "CCO")
    assert (status, values["exact_inchi"], values["levenshtein"]) == ("scored", 1, 0)
    assert molecule_row("[C][C][Nonsense]", "CCO")[0] == "invalid_prediction"


def test_similarity_is_symmetric_and_all_pairs_count_the_unreadable():
    one, other = molecule_row("CCOC", "CCN")[1], molecule_row("CCN", "CCOC")[1]
    for name in ("maccs", "rdk", "morgan", "levenshtein"):
        assert one[name] == other[name]
    sums = Sums()
    for guess in ("CCO", "C("):
        sums.add(molecule_row(guess, "CCO")[1])
    scores = molecule_scores(sums)
    assert (scores["maccs"], scores["maccs_all"], scores["validity"]) == (1, 0.5, 0.5)


def test_atom_maps_are_no_part_of_a_molecule():
    _, values = molecule_row("[CH3:3][C@H:1]([NH2:2])[OH:9]", "C[C@H](N)O")
    assert values["exact_canonical"] == values["exact_inchi"] == values["rdk"] == 1
    _, other = molecule_row("[CH3:1][OH:2]", "CN")
    assert other["exact_canonical"] == 0
