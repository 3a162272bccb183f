"""Charts are SVG that a parser reads, with every label in them, whatever the numbers."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from collamo.evaluation.report.charts import Curves, Interval, Panel, curves, intervals, stacked

PANEL = Panel("t", [Interval("a", 0, 0, 1), Interval("b", 1, 0, 1)])


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.text]


def element(svg, name):
    return next(e for e in ElementTree.fromstring(svg).iter() if e.get("id") == name)


def path(svg, name):
    """Return the points of the path of an element."""
    (drawn,) = (e for e in element(svg, name).iter() if e.tag.endswith("path"))
    numbers = re.findall(r"(-?[\d.]+) (-?[\d.]+)", drawn.get("d"))
    return [(float(x), float(y)) for x, y in numbers]


def dot(svg, name):
    (used,) = (e for e in element(svg, name).iter() if e.tag.endswith("use"))
    return float(used.get("x")), float(used.get("y"))


def place_of(text):
    """Return where a text is anchored: its own place, or where it is moved to."""
    if text.get("x"):
        return float(text.get("x")), float(text.get("y"))
    return tuple(map(float, re.search(r"translate\((\S+) (\S+)\)", text.get("transform")).groups()))


@pytest.mark.parametrize("values", [(0.1, 0.0, 0.2), (0, 0, 0), (-3e5, -4e5, 1), (1e-9, 0, 2e-9)])
def test_intervals(values):
    lines = [Interval("<model> & more", *values, note="a $note$"), Interval("other", *values)]
    svg = intervals([Panel("one", lines), Panel("two", lines), Panel("three", lines[:1])])
    found = texts(svg)
    assert found.count("<model> & more") == 3
    assert {"one", "two", "three", "other", "a $note$"} <= set(found)
    assert "nan" not in svg


def test_a_dot_lies_where_its_value_is():
    svg = intervals([PANEL], columns=1)
    dots = [dot(svg, f"panel-0-value-{number}") for number in (0, 1)]
    ends = [path(svg, f"panel-0-interval-{number}") for number in (0, 1)]
    assert dots[0] == pytest.approx(ends[0][0])
    assert dots[1] == pytest.approx(ends[1][1])
    assert ends[0][0][0] == ends[1][0][0] < ends[0][1][0] == ends[1][1][0]


def test_every_label_lies_inside_the_picture():
    """As wide as matplotlib's own font is; a browser's is narrower."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    lines = [Interval("most common answer", 1.0, -2.5, 3.5, note="+0.858 [+0.573, +1.115]")] * 9
    svg = intervals([Panel("property_2d, scaled_error ↓", lines)] * 3)
    width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split()[2:])
    written = [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]
    assert len(written) > 3 * (2 * 9 + 1)
    for each in written:
        font = FontProperties(family="DejaVu Sans", size=9)
        length = TextPath((0, 0), each.text, prop=font).get_extents().width
        x, y = place_of(each)
        anchor = re.search(r"text-anchor: (\w+)", each.get("style"))
        share = {"end": 1, "middle": 0.5}.get(anchor and anchor[1], 0)
        assert 0 <= x - share * length <= x + (1 - share) * length <= width, each.text
        assert 9 <= y <= height, each.text


def test_the_same_numbers_give_the_same_bytes_and_nothing_is_left_set():
    before = dict(matplotlib.rcParams)
    svg = intervals([PANEL])
    assert svg == intervals([PANEL])
    assert svg.startswith("<svg")
    assert "<metadata" not in svg
    assert dict(matplotlib.rcParams) == before


def test_stacked_shares():
    svg = stacked(
        {"soft token 1": [0.25, 0.75], "soft token 2": [1, 0]}, {"1D": "#111", "2D": "#222"}
    )

    def width(name):
        places = [x for x, _ in path(svg, name)]
        return max(places) - min(places)

    widths = [width(f"share-{row}-{part}") for row in (0, 1) for part in (0, 1)]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert widths[2] == pytest.approx(widths[0] + widths[1], rel=0.01)
    assert widths[3] == pytest.approx(0)
    assert {"25%", "75%", "100%", "1D", "2D"} <= set(texts(svg))


def test_curves():
    svg = curves([Curves("Φ", "Å", [0, 1, 2], {"head 1": [0, 1, 0], "head 2": [2.0, 2.0, 2.0]})])
    points = [path(svg, f"chart-0-curve-{number}") for number in (0, 1)]
    assert [len(each) for each in points] == [3, 3]
    assert points[0][0][1] == points[0][2][1] > points[0][1][1]
    assert {"Φ", "Å", "head 1", "head 2"} <= set(texts(svg))
