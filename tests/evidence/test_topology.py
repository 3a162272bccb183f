"""What the bonds say: regressions find what follows from a description, and see no coordinates."""

import datetime

import numpy as np
import pytest

from collamo.data.facts import PROPERTIES_3D
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from evidence.ledger import Ledger
from evidence.topology import CLAIM, _determination, _graph, predict, report_topology


def test_a_regression_finds_a_plane_a_curve_and_nothing():
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(400, 3)), rng.normal(size=(200, 3))

    def numbers(x):
        curve = np.cos(2 * x[:, 0])
        return np.stack([x @ [1, 2, 3], curve, rng.normal(size=len(x))], axis=1)

    scores = _determination(predict(x, numbers(x), x_test), numbers(x_test))
    assert scores[0] == pytest.approx(1, abs=1e-3)
    assert scores[1] > 0.9
    assert scores[2] < 0.1


def test_no_coordinate_is_described(tmp_path):
    described = []
    for name, options in {"with": {}, "without": {"conformers": False}}.items():
        prepare("nci", tmp_path / name, PrepareOptions(limit=3, **options), workers=1)
        data = PreparedData.open(tmp_path / name)
        described.append([_graph(data, row) for row in (1, 2, 3)])
    np.testing.assert_array_equal(*described)


def test_the_report_orders_numbers_by_what_the_graph_says(tmp_path):
    ledger, rng = Ledger("topology", tmp_path), np.random.default_rng(0)
    true = rng.normal(size=(300, len(PROPERTIES_3D)))
    for predictor, noise in (("heavy atoms", 1.0), ("graph", 0.5)):
        predicted = true + noise * np.linspace(0, 1, len(PROPERTIES_3D)) * rng.normal(
            size=true.shape
        )
        run = {"size": "cpu", "predictor": predictor, "seed": 0}
        metrics = {"train": 9, "test": 300, "details": {"predicted": predicted, "true": true}}
        now = datetime.datetime.now(datetime.UTC)
        ledger.add(run, metrics, started=now, device="cpu")
    finding = report_topology(ledger)
    rows = [line.split("|")[1].strip(" `") for line in finding.table.split("\n")[2:10]]
    assert rows == list(PROPERTIES_3D)
    assert "R² 1.00 and 0.99" in finding.verdict
    assert CLAIM.runs("gpu") == []
