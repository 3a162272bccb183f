"""report.json, report.md and report.html of a predictions file, with the worst rows."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from collamo.chem.draw import draw_molecules_svg
from collamo.chem.molecule import parse_molecule
from collamo.errors import MoleculeError
from collamo.evaluation.report.manifest import how_measured, not_scored
from collamo.evaluation.report.page import (
    Page,
    Picture,
    Report,
    Section,
    metric_name,
    write_report,
)
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.score.shortfalls import shortfalls_section

SHOWN = 12  # worst rows in the reports
SHOWN_CHARACTERS = 300
# The statistic by which rows are ranked, and whether more of it is better.
_WORST_BY = {
    "captions": ("rougeL", True),
    "molecules": ("morgan", True),
    "iupac": ("rougeL", True),
    "motifs": ("mae", False),
    "property": ("mae", False),
}


class WorstRows:
    """Keeps the worst `SHOWN` rows of a stream, earliest first among equals."""

    def __init__(self, task: str):
        self.task = task
        self.column, self._higher = _WORST_BY[task]
        self._heap: list[tuple[float, int, PredictionRow]] = []

    def see(self, row: PredictionRow) -> None:
        """Look at a scored row; one without the statistic is not among the worst."""
        if self.column not in row.values:
            return
        value = row.values[self.column]
        badness = -value if self._higher else value
        heapq.heappush(self._heap, (badness, -row.number, row))
        if len(self._heap) > SHOWN:
            heapq.heappop(self._heap)

    def rows(self) -> list[PredictionRow]:
        """Return the rows, worst first."""
        return [row for _, _, row in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def write_predictions_report(report: Report, worst: WorstRows, out: Path) -> None:
    """Write the report of a predictions file into `out`."""
    write_report(
        report, Page(f"Evaluation of {worst.task}", COUNTING, _sections(report, worst)), out
    )


COUNTING = (
    "Every row is in exactly one of the counts below “rows”. Empty, invalid, unparsed and "
    "ambiguous predictions, and numbers in a unit that does not convert, stay in the scores as "
    "wrong answers; rows without a usable reference, malformed rows and rows that are not UTF-8 "
    "cannot be scored and are only counted."
)


def _sections(report: Report, worst: WorstRows) -> list[Section]:
    manifest, column = report["manifest"], worst.column
    scores = [
        [f"{group}{metric_name(name)}", f"{value:.4f}"]
        for group, name, value in _flat(report["scores"])
    ]
    rows = [
        [str(row.number), f"{row.values[column]:.3f}", _cut(row.reference), _cut(row.prediction)]
        for row in worst.rows()
    ]
    header = ["row", column, "reference", "prediction"]
    sections = [
        Section("Scores", header=["score", "value"], rows=scores),
        *not_scored(manifest),
        _counted("Rows", report["counts"]),
        *shortfalls_section({worst.task: report["shortfalls"]}),
        _counted("Captions and their entities", report.get("entity_counts", {})),
        Section(f"Worst rows by {column}", header=header, rows=rows),
        how_measured(manifest),
    ]
    sections = [section for section in sections if section.rows]
    return sections + (_pictures(worst) if worst.task == "molecules" else [])


def _counted(title: str, counts: dict[str, int]) -> Section:
    rows = [[name, str(count)] for name, count in counts.items()]
    return Section(title, header=["rows", "count"], rows=rows)


def _flat(scores: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, str, float]]:
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{group}{name} › ")
        else:
            yield group, name, value


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _pictures(worst: WorstRows) -> list[Section]:
    """Return the worst pairs drawn side by side, reference left."""
    molecules, legends = [], []
    for row in worst.rows():
        try:
            pair = [parse_molecule(row.reference), parse_molecule(row.prediction)]
        except MoleculeError:  # too large to draw; the table above has the row
            continue
        molecules += pair
        legends += [f"row {row.number}: reference", f"row {row.number}: prediction"]
    if not molecules:
        return []
    drawing = draw_molecules_svg(molecules, legends, columns=2)
    picture = Picture("worst_pairs", drawing, "The worst pairs: reference left, prediction right.")
    return [Section("Worst pairs, drawn", pictures=[picture])]
