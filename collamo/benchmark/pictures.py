"""Measurements as a picture: how many times as long as ours each rival takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from collamo.benchmark.measurements import RUNS, Row, number_of, spread
from collamo.evaluation.report.charts import INK, PALETTE, Interval, Panel, intervals

LABEL = 235  # pixels: the longest name of a rival, "FlexAttention, bias ready-built"


def picture(rows: Iterable[Row]) -> str | None:
    """Return SVG text, a panel per workload on a logarithmic axis; None without a rival in time.

    A dot is the median of the last `RUNS` rows of a rival, its line the least and the largest.
    """
    panels: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if number_of(row, "ratio") is not None:
            panel = panels.setdefault((str(row["workload"]), str(row["threads"])), {})
            panel.setdefault(str(row["rival"]), []).append(row)
    drawn = [
        Panel(
            f"{workload}, {threads} thread" + ("" if threads == "1" else "s"),
            [_line(rival, each[-RUNS:]) for rival, each in lines.items()],
            logarithmic=True,
        )
        for (workload, threads), lines in panels.items()
    ]
    return intervals(drawn, columns=1, label=LABEL) if drawn else None


def _line(rival: str, rows: list[Row]) -> Interval:
    ours = rival == "ours"
    ratios, times = (
        [number for row in rows if (number := number_of(row, name)) is not None]
        for name in ("ratio", "median_ms")
    )
    note = _duration(times) if ours else f"{spread(ratios)} ×"
    colour = INK if ours else PALETTE[0]
    middle = statistics.median(ratios)
    return Interval(rival, middle, min(ratios), max(ratios), colour, note)


def _duration(times: list[float]) -> str:
    """Milliseconds, as seconds where they are a thousand: room beside the axis is scarce."""
    if statistics.median(times) < 1000:
        return f"{spread(times)} ms"
    return f"{spread([time / 1000 for time in times])} s"
