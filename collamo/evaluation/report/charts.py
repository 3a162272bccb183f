"""Charts as SVG text: intervals beside each other, stacked shares, curves. No library is needed."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FONT = "font-family='system-ui, sans-serif' font-size='12'"
GREY, INK, RULE = "#8b949e", "#1b1f24", "#d9dee3"


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
    """Intervals on one axis; a dashed line goes down from the first."""

    title: str
    lines: Sequence[Interval]


LABEL, PLOT, NOTE, LINE, HEAD = 155, 250, 190, 21, 62  # pixels


def intervals(panels: Sequence[Panel], columns: int = 2) -> str:
    """Return dots with their intervals, a panel per axis, `columns` panels side by side."""
    width, rows = (
        LABEL + PLOT + NOTE,
        [panels[i : i + columns] for i in range(0, len(panels), columns)],
    )
    parts, top = [], 0.0
    for row in rows:
        for column, panel in enumerate(row):
            parts.append(_panel(panel, column * width, top))
        top += HEAD + LINE * max(len(panel.lines) for panel in row) + 26
    return _svg(width * min(columns, len(panels)), top, parts)


def _panel(panel: Panel, left: float, top: float) -> str:
    bounds = [bound for line in panel.lines for bound in (line.low, line.high)]
    ticks = _ticks(min(bounds), max(bounds))
    low, high = min(ticks[0], *bounds), max(ticks[-1], *bounds)

    def x(value: float) -> float:
        return left + LABEL + PLOT * (value - low) / (high - low)

    end = top + HEAD + LINE * len(panel.lines)
    parts = [_text(left + 8, top + 20, panel.title, weight=600)]
    for tick in ticks:
        parts.append(_line(x(tick), top + HEAD - 14, x(tick), end, RULE))
        parts.append(_text(x(tick), top + HEAD - 18, f"{tick:g}", anchor="middle", colour=GREY))
    first = x(panel.lines[0].value)
    parts.append(_line(first, top + HEAD - 10, first, end, panel.lines[0].colour, dash="3 3"))
    for number, line in enumerate(panel.lines):
        y = top + HEAD + LINE * (number + 0.35)
        parts.append(_text(left + LABEL - 10, y + 4, line.label, anchor="end"))
        parts.append(_line(x(line.low), y, x(line.high), y, line.colour, width=2))
        parts.append(f"<circle cx='{x(line.value):.1f}' cy='{y:.1f}' r='4' fill='{line.colour}'/>")
        parts.append(_text(left + LABEL + PLOT + 12, y + 4, line.note, colour=line.colour))
    return "".join(parts)


def stacked(rows: Mapping[str, Sequence[float]], parts: Mapping[str, str], title: str = "") -> str:
    """Return a bar per row, cut into shares of 1; `parts` gives name → colour of each share."""
    width, drawn = LABEL + 2 * PLOT + 40, [_text(8, 20, title, weight=600)]
    x = LABEL
    for name, colour in parts.items():
        drawn.append(f"<rect x='{x}' y='32' width='12' height='12' fill='{colour}'/>")
        drawn.append(_text(x + 17, 42, name))
        x += 32 + 7 * len(name)
    for number, (label, shares) in enumerate(rows.items()):
        y, start = 58 + 19 * number, float(LABEL)
        drawn.append(_text(LABEL - 10, y + 11, label, anchor="end"))
        for share, colour in zip(shares, parts.values(), strict=True):
            size = 2 * PLOT * share
            drawn.append(
                f"<rect x='{start:.1f}' y='{y}' width='{size:.1f}' height='15' fill='{colour}'/>"
            )
            if share > 0.08:
                ink = "#fff" if colour != RULE else INK
                drawn.append(
                    _text(start + size / 2, y + 11.5, f"{share:.0%}", "middle", ink, size=10)
                )
            start += size
    return _svg(width, 58 + 19 * len(rows) + 8, drawn)


PALETTE = ("#0b5cad", "#c4501b", "#2a7d3f", "#8250df", "#9a6700", "#1b7c83", "#bf3989", "#57606a")


@dataclass(frozen=True)
class Curves:
    """Curves over one axis: name → values at `xs`; None leaves a gap."""

    title: str
    axis: str
    xs: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def curves(charts: Sequence[Curves]) -> str:
    """Return charts of curves side by side, their names beside the last one."""
    width, height = 380, 250
    drawn = [_curves(chart, number * width, width, height) for number, chart in enumerate(charts)]
    names = list(charts[0].lines)
    for number, name in enumerate(names):
        y, colour = 48 + 17 * number, PALETTE[number % len(PALETTE)]
        drawn.append(_line(len(charts) * width, y, len(charts) * width + 18, y, colour, width=2))
        drawn.append(_text(len(charts) * width + 24, y + 4, name))
    return _svg(len(charts) * width + 110, max(height, 60 + 17 * len(names)), drawn)


def _curves(chart: Curves, left: float, width: float, height: float) -> str:
    values = [value for line in chart.lines.values() for value in line]
    ticks = _ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    begin, end = chart.xs[0], chart.xs[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - begin) / ((end - begin) or 1)
        return left + 50 + (width - 75) * across, 36 + (height - 80) * (high - y) / (high - low)

    parts = [_text(left + 8, 20, chart.title, weight=600)]
    for tick in ticks:
        (x, y), (far, _) = place(begin, tick), place(end, tick)
        parts.append(_line(x, y, far, y, RULE))
        parts.append(_text(x - 6, y + 4, f"{tick:g}", "end", GREY))
    for tick in _ticks(begin, end):
        if begin <= tick <= end:
            x, y = place(tick, low)
            parts.append(_text(x, y + 16, f"{tick:g}", "middle", GREY))
    middle, bottom = place((begin + end) / 2, low)
    parts.append(_text(middle, bottom + 34, chart.axis, "middle", GREY))
    for number, line in enumerate(chart.lines.values()):
        points = " ".join(
            "{:.1f},{:.1f}".format(*place(*p)) for p in zip(chart.xs, line, strict=True)
        )
        colour = PALETTE[number % len(PALETTE)]
        parts.append(
            f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.6'/>"
        )
    return "".join(parts)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first = math.floor(low / step)
    return [round((first + i) * step, 12) for i in range(math.ceil(high / step) - first + 1)]


def _text(x, y, text, anchor="start", colour=INK, weight=400, size=12) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}' "
        f"font-weight='{weight}' font-size='{size}'>{html.escape(text)}</text>"
    )


def _line(x1, y1, x2, y2, colour, width=1, dash="") -> str:
    dashes = f" stroke-dasharray='{dash}'" if dash else ""
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' "
        f"stroke-width='{width}'{dashes}/>"
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    size = f"width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}'"
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT}>"
        f"<rect width='100%' height='100%' fill='#fff'/>\n{body}\n</svg>\n"
    )
