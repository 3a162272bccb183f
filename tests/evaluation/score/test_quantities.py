"""Numbers in answers, with their units."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collamo.evaluation.score.quantities import motif_row, parse_quantity, property_row
from collamo.evaluation.score.tasks import COLUMNS, SCORE_STATUSES

HARTREE_IN_EV = 27.211386245988  # CODATA 2018


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("−6.8 eV", "hartree", -6.8 / HARTREE_IN_EV),
        ("0.25 Hartree", "eV", 0.25 * HARTREE_IN_EV),
        ("627.5094740631 kcal/mol", "Ha", 1),
        ("1e-3", "eV", 1e-3),
        ("250 meV", "eV", 0.25),
        ("3 rings", "eV", 3),
        ("1.5 eV", None, 1.5),
        ("1.5 eV", "g/mol", None),
        ("1.5 eV", "points", 1.5),
        ("two eV", "eV", 2),
        ("6.8 ± 0.2 eV", "Hartree", 6.8 / HARTREE_IN_EV),
        ("(6.8 +/- 0.2) eV", "Hartree", 6.8 / HARTREE_IN_EV),
        ("6.8–7.0 eV", "Hartree", 6.8 / HARTREE_IN_EV),
        ("between 6.8 and 7 eV.", "Hartree", 6.8 / HARTREE_IN_EV),
        ("**6.8** eV", "Hartree", 6.8 / HARTREE_IN_EV),
        ("$6.8$ eV", "Hartree", 6.8 / HARTREE_IN_EV),
        ("a 6.8-eV gap", "Hartree", 6.8 / HARTREE_IN_EV),
        ("The gap in eV is 6.8.", "Hartree", 6.8 / HARTREE_IN_EV),
        ("gap (eV): 6.8", "Hartree", 6.8 / HARTREE_IN_EV),
        ("HOMO-LUMO gap [kcal/mol] = 627.5094740631", "Ha", 1),
        ("0.25 a.u.", "eV", 0.25 * HARTREE_IN_EV),
        ("0.25 (see the table in eV)", "Hartree", 0.25),
        ("In A it is 3", "Hartree", 3),
        ("nothing", "eV", None),
    ],
)
def test_energies_are_converted(text, unit, value):
    expected = None if value is None else pytest.approx(value)
    assert parse_quantity(text, unit) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "status"),
    [
        ("0.2499 hartrees", "0.25", "scored"),
        ("0,25", "0.25", "ambiguous_prediction"),
        ("1e308 MeV", "0.25", "unparsed_prediction"),  # too large in Hartree
        ("0.25", "0,25", "ambiguous_reference"),
        ("5 kg", "0.25", "other_unit_prediction"),
        ("0.25", "5 kg", "other_unit_reference"),
        ("none", "0.25", "unparsed_prediction"),
        ("0.25", "none", "unparsed_reference"),
    ],
)
def test_each_row_of_a_property_has_one_status(prediction, reference, status):
    found, values = property_row(prediction, reference, "Hartree", train_mean=1.25)
    assert found == status
    if status.endswith("_reference"):
        assert values == {}
    elif status.endswith("_prediction"):  # never silently 0: charged as silence is
        assert values == {"parsed": 0, "mae_penalised": 1}


@pytest.mark.parametrize(
    ("prediction", "reference", "error"),
    [
        ("6.802846561497 eV", "0.25 Hartree", 0),
        ("180.16 g/mol", "180.16 Da", 0),
        ("1.5", "1.5 eV", 0),
        ("1.5 D", "1.5", 0),
        ("1.0 eV", "1 eV", 0),
    ],
)
def test_without_a_unit_the_references_own_counts(prediction, reference, error):
    status, values = property_row(prediction, reference)
    assert status == "scored"
    assert values["mae"] == pytest.approx(error, abs=1e-9)


def test_a_property_known_by_name_may_have_its_own_unit():
    assert property_row("1.85D", "1.85", "Hartree", known_unit="D") == (
        "scored",
        {"parsed": 1, "mae": 0},
    )
    assert property_row("1.85 kg", "1.85", "Hartree", known_unit="D")[0] == "other_unit_prediction"
    # A unit that converts to the one that was asked for is never the other one.
    assert property_row("1 eV", "1", "eV", known_unit="Hartree")[1]["mae"] == 0


def test_counts_are_read_as_people_write_them():
    assert motif_row("There are none.", "0") == ("scored", {"parsed": 1, "exact": 1, "mae": 0})
    assert motif_row("0,25", "0") == ("ambiguous_prediction", {"parsed": 0, "exact": 0})
    assert motif_row("none", "None") == ("unparsed_reference", {})
    assert property_row("no hydrogen bond donors", "0", counted=True)[1]["mae"] == 0
    assert property_row("no hydrogen bond donors", "0")[0] == "unparsed_prediction"


@pytest.mark.parametrize(
    "text", ["3 rings", "3 in total", "3 C atoms", "It is 3. A ring", "3 (A ring)", "3, J", "3 x"]
)
def test_words_after_a_number_are_no_units(text):
    assert parse_quantity(text, "Hartree") == 3


ANSWERS = st.text() | st.text(alphabet="0123456789.,-−+eE×x*10^⁻³/ '_DKnomlaeVkJÅ°()[]²%")


@settings(max_examples=500, deadline=None)
@given(ANSWERS, ANSWERS, st.sampled_from([None, "eV", "g/mol", "Å²", "points", "K", "%", ""]))
def test_garbage_lands_in_one_counted_status(prediction, reference, unit):
    rows = {
        "motifs": motif_row(prediction, reference),
        "property": property_row(prediction, reference, unit, train_mean=1.0, known_unit="D"),
    }
    for task, (status, values) in rows.items():
        assert status in ("scored", *SCORE_STATUSES[task])
        assert values.keys() <= set(COLUMNS[task])
        assert (values == {}) == status.endswith("_reference")
        assert ("mae" in values) == (status == "scored")
        assert all(not math.isnan(value) for value in values.values())


@settings(max_examples=300, deadline=None)
@given(ANSWERS, st.sampled_from([None, "eV", "g/mol", "Å²", "points"]))
def test_a_reference_is_exactly_itself(text, unit):
    status, values = property_row(text, text, unit)
    assert status.endswith("_reference") or (status, values["mae"]) == ("scored", 0)
    status, values = motif_row(text, text)
    assert status.endswith("_reference") or (status, values["exact"]) == ("scored", 1)
