"""Charts as SVG text: intervals beside each other, stacked shares, curves.

Drawn by matplotlib, with the places of everything in CSS pixels: the labels, numbers and notes of a
chart stand in columns, which no automatic layout keeps. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

GREY, INK, RULE = "#8b949e", "#1b1f24", "#d9dee3"
PALETTE = ("#0b5cad", "#c4501b", "#2a7d3f", "#8250df", "#9a6700", "#1b7c83", "#bf3989", "#57606a")
LABEL, PLOT, NOTE, LINE, HEAD = 155, 250, 190, 21, 62  # pixels
_PER_INCH = 96  # CSS pixels
_POINT = 72 / _PER_INCH  # of a pixel: matplotlib's unit of text and lines


def _style() -> AbstractContextManager[None]:
    """Return matplotlib's settings for a chart; they are read while it is made and written."""
    return matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.size": 12 * _POINT,
            "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
            "svg.hashsalt": "collamo",  # else the names inside are drawn at random
            "text.parse_math": False,
            "text.color": INK,
            "xtick.color": GREY,
            "ytick.color": GREY,
        }
    )


@dataclass(frozen=True)
class Interval:
    """A line of a panel: `label`, the value with its interval, a colour, and a note at the end."""

    label: str
    value: float
    low: float
    high: float
    colour: str = INK
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """Intervals on one axis, by powers of ten if `logarithmic`; a dashed line from the first."""

    title: str
    lines: Sequence[Interval]
    logarithmic: bool = False


@dataclass(frozen=True)
class Curves:
    """Curves over one axis: name → values at `xs`."""

    title: str
    axis: str
    xs: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def intervals(panels: Sequence[Panel], columns: int = 2, label: float = LABEL) -> str:
    """Return dots with their intervals, a panel per axis, `columns` panels side by side.

    Labels have `label` pixels.
    """
    with _style():
        rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
        heights = [HEAD + LINE * max(len(panel.lines) for panel in row) + 26 for row in rows]
        width = label + PLOT + NOTE
        sheet = _Sheet(width * min(columns, len(panels)), sum(heights))
        for number, panel in enumerate(panels):
            row, column = divmod(number, columns)
            place = _Box(column * width, sum(heights[:row]), label, heights[row])
            _draw_panel(sheet, panel, place, f"panel-{number}")
        return sheet.svg()


def _draw_panel(sheet: _Sheet, panel: Panel, labels: _Box, name: str) -> None:
    start, top = labels.left + labels.width, labels.top
    sheet.title(labels.left + 8, top + 20, panel.title)
    axes = sheet.axes(_Box(start, top + HEAD - 12, PLOT, LINE * len(panel.lines) + 12))
    axes.set_ylim(len(panel.lines) - 0.5, -0.5 - 12 / LINE)
    bounds = [bound for line in panel.lines for bound in (line.low, line.high)]
    ticks = _decades(bounds) if panel.logarithmic else _ticks(bounds)
    if panel.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [_number(tick) for tick in ticks])
    axes.set_xlim(ticks[0], ticks[-1])
    axes.xaxis.tick_top()
    axes.grid(axis="x", color=RULE, linewidth=_POINT)
    first = panel.lines[0]
    axes.axvline(first.value, color=first.colour, linewidth=_POINT, dashes=(3, 3))
    axes.set_yticks(range(len(panel.lines)), [line.label for line in panel.lines], color=INK)
    axes.tick_params(axis="y", pad=10 * _POINT)
    for place, line in enumerate(panel.lines):
        ends = Line2D((line.low, line.high), (place, place), color=line.colour)
        ends.set(linewidth=2 * _POINT, gid=f"{name}-interval-{place}", clip_on=False)
        dot = Line2D((line.value,), (place,), color=line.colour, marker="o", linestyle="none")
        dot.set(markersize=8 * _POINT, gid=f"{name}-value-{place}", clip_on=False)
        axes.add_line(ends)
        axes.add_line(dot)
        sheet.text(start + PLOT + 12, _middle(top, place), line.note, line.colour)


def _middle(top: float, place: int) -> float:
    return top + HEAD + LINE * (place + 0.5)


def stacked(rows: Mapping[str, Sequence[float]], parts: Mapping[str, str], title: str = "") -> str:
    """Return a bar per row, cut into shares of 1; `parts` gives name → colour of each share."""
    with _style():
        box = _Box(LABEL, 56, 2 * PLOT, 19 * len(rows))
        sheet = _Sheet(LABEL + box.width + 40, box.top + box.height + 8)
        sheet.title(8, 20, title)
        axes = sheet.axes(box)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks(range(len(rows)), list(rows), color=INK)
        axes.tick_params(axis="y", pad=10 * _POINT)
        for place, shares in enumerate(rows.values()):
            _draw_shares(axes, place, shares, list(parts.values()))
        handles = [Patch(color=colour, label=name) for name, colour in parts.items()]
        sheet.legend(handles, LABEL, 38, columns=len(parts))
        return sheet.svg()


def _draw_shares(axes: Axes, place: int, shares: Sequence[float], colours: Sequence[str]) -> None:
    start = 0.0
    for part, (share, colour) in enumerate(zip(shares, colours, strict=True)):
        (bar,) = axes.barh(place, share, height=15 / 19, left=start, color=colour)
        bar.set_gid(f"share-{place}-{part}")
        if share > 0.08:
            ink = INK if colour == RULE else "#fff"
            middle = start + share / 2
            axes.text(
                middle, place, f"{share:.0%}", ha="center", va="center_baseline", color=ink
            ).set_fontsize(10 * _POINT)
        start += share


def curves(charts: Sequence[Curves]) -> str:
    """Return charts of curves side by side, their names beside the last one."""
    with _style():
        width, height = 380, 250
        names = list(charts[0].lines)
        sheet = _Sheet(len(charts) * width + 110, max(height, 60 + 17 * len(names)))
        for number, chart in enumerate(charts):
            _draw_curves(sheet, chart, _Box(number * width, 0, width, height), f"chart-{number}")
        handles = [
            Line2D([], [], color=colour, linewidth=2 * _POINT, label=name)
            for name, colour in zip(names, _colours(len(names)), strict=True)
        ]
        sheet.legend(handles, len(charts) * width, 40 + 8.5 * len(names))
        return sheet.svg()


def _draw_curves(sheet: _Sheet, chart: Curves, box: _Box, name: str) -> None:
    sheet.title(box.left + 8, 20, chart.title)
    axes = sheet.axes(_Box(box.left + 50, 36, box.width - 75, box.height - 80))
    ticks = _ticks([value for line in chart.lines.values() for value in line])
    axes.set_yticks(ticks, [_number(tick) for tick in ticks])
    axes.set_ylim(ticks[0], ticks[-1])
    begin, end = chart.xs[0], chart.xs[-1]
    places = [tick for tick in _ticks([begin, end]) if begin <= tick <= end]
    axes.set_xticks(places, [_number(tick) for tick in places])
    axes.set_xlim(begin, end if end > begin else begin + 1)
    axes.set_xlabel(chart.axis, color=GREY)
    axes.grid(axis="y", color=RULE, linewidth=_POINT)
    axes.axhline(0, color=GREY, linewidth=_POINT)
    for number, (line, colour) in enumerate(
        zip(chart.lines.values(), _colours(len(chart.lines)), strict=True)
    ):
        (drawn,) = axes.plot(chart.xs, line, color=colour, linewidth=1.6 * _POINT)
        drawn.set_gid(f"{name}-curve-{number}")


def _colours(count: int) -> list[str]:
    return [PALETTE[number % len(PALETTE)] for number in range(count)]


def _ticks(values: Sequence[float]) -> list[float]:
    """Return about four round numbers; the first and the last hold all values between them."""
    locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
    low, high = min(values), max(values)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    return [float(tick) for tick in locator.tick_values(low, high)]


def _decades(values: Sequence[float]) -> list[float]:
    """Return the powers of ten around all values, which are positive; two at least."""
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    return [10.0**power for power in range(low, high + 1)]


def _number(value: float) -> str:
    return f"{value + 0.0:g}"  # −0 + 0 is 0


class _Box(NamedTuple):
    """A part of a sheet [CSS pixels], from the left and from the top."""

    left: float
    top: float
    width: float
    height: float


class _Sheet:
    """A figure measured in CSS pixels from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH), facecolor="#fff")

    def axes(self, box: _Box) -> Axes:
        """Return axes in a box, without a frame; their labels lie outside of it."""
        bottom = 1 - (box.top + box.height) / self.height
        place = (box.left / self.width, bottom, box.width / self.width, box.height / self.height)
        axes = self.figure.add_axes(place, frameon=False)
        axes.tick_params(length=0, pad=6 * _POINT)
        axes.set_axisbelow(True)
        return axes

    def text(
        self, x: float, y: float, text: str, colour: str = INK, weight: str = "normal"
    ) -> None:
        """Write text whose middle lies at the height `y`."""
        place = (x / self.width, 1 - y / self.height)
        written = self.figure.text(*place, text, color=colour, va="center_baseline")
        written.set_fontweight(weight)

    def title(self, x: float, y: float, text: str) -> None:
        """Write the title of a chart."""
        self.text(x, y - 4, text, weight="bold")

    def legend(
        self, handles: Sequence[Patch | Line2D], x: float, y: float, columns: int = 1
    ) -> None:
        """Put a legend whose left edge has its middle at a point."""
        self.figure.legend(
            handles=list(handles),
            loc="center left",
            bbox_to_anchor=(x / self.width, 1 - y / self.height),
            ncols=columns,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.2,
            columnspacing=1.5,
        )

    def svg(self) -> str:
        """Return the picture, from ``<svg`` on, without date or version."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(self.figure).print_svg(buffer, metadata=nothing)
        text = buffer.getvalue()
        return text[text.index("<svg") :]
