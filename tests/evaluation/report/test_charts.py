"""Charts are SVG that a parser reads, with every label in them, whatever the numbers."""

import xml.etree.ElementTree as ElementTree

import pytest

from collamo.evaluation.report.charts import Curves, Interval, Panel, curves, intervals, stacked


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.text]


@pytest.mark.parametrize("values", [(0.1, 0.0, 0.2), (0, 0, 0), (-3e5, -4e5, 1), (1e-9, 0, 2e-9)])
def test_intervals(values):
    lines = [Interval("<model> & more", *values, note="a note"), Interval("other", *values)]
    svg = intervals([Panel("one", lines), Panel("two", lines), Panel("three", lines[:1])])
    found = texts(svg)
    assert found.count("<model> & more") == 3
    assert {"one", "two", "three", "other", "a note"} <= set(found)
    assert "nan" not in svg


def test_a_dot_lies_where_its_value_is():
    svg = intervals([Panel("t", [Interval("a", 0, 0, 1), Interval("b", 1, 0, 1)])], columns=1)
    dots = [float(e.get("cx")) for e in ElementTree.fromstring(svg).iter() if e.get("cx")]
    lines = [e for e in ElementTree.fromstring(svg).iter() if e.get("stroke-width") == "2"]
    assert dots == [float(lines[0].get("x1")), float(lines[0].get("x2"))]


def test_stacked_shares():
    svg = stacked(
        {"soft token 1": [0.25, 0.75], "soft token 2": [1, 0]}, {"1D": "#111", "2D": "#222"}
    )
    bars = [e for e in ElementTree.fromstring(svg).iter() if e.get("height") == "15"]
    widths = [float(bar.get("width")) for bar in bars]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert widths[2] == pytest.approx(widths[0] + widths[1], rel=0.01)
    assert {"25%", "75%", "100%", "1D", "2D"} <= set(texts(svg))


def test_curves():
    svg = curves([Curves("Φ", "Å", [0, 1, 2], {"head 1": [0, 1, 0], "head 2": [2.0, 2.0, 2.0]})])
    lines = [e.get("points") for e in ElementTree.fromstring(svg).iter() if e.get("points")]
    assert [len(line.split()) for line in lines] == [3, 3]
    assert {"Φ", "Å", "head 1", "head 2"} <= set(texts(svg))
