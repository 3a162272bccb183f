"""report.json, report.md and report.html of a predictions file, with the rows that went worst."""

from __future__ import annotations

import heapq
import html
import json
from collections.abc import Iterator
from pathlib import Path

from collamo.chem.draw import draw_molecules_svg
from collamo.chem.molecule import parse_molecule
from collamo.errors import MoleculeError
from collamo.evaluation.report import markdown_table, write_whole

SHOWN = 12  # worst rows in the reports
SHOWN_CHARACTERS = 300
# By which statistic a row is bad, and whether more of it is better.
_WORST_BY = {
    "captions": ("rougeL", True),
    "molecules": ("morgan", True),
    "iupac": ("rougeL", True),
    "motifs": ("mae", False),
    "property": ("mae", False),
}
_LOWER = ("levenshtein", "mae", "charm", "rcharm")


class Worst:
    """Keeps the worst `SHOWN` rows of a stream, earliest first among equals."""

    def __init__(self, task: str):
        self.task = task
        self.column, self._higher = _WORST_BY[task]
        self._heap: list[tuple[float, int, object]] = []

    def see(self, row) -> None:
        """Look at a judged row; one without the statistic is not among the worst."""
        if self.column not in row.values:
            return
        value = row.values[self.column]
        badness = -value if self._higher else value
        heapq.heappush(self._heap, (badness, -row.number, row))
        if len(self._heap) > SHOWN:
            heapq.heappop(self._heap)

    def rows(self) -> list:
        """Return the rows, worst first."""
        return [row for _, _, row in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def write_report(report: dict, worst: Worst, out: Path) -> None:
    """Write the three files into `out`, each complete or not at all."""
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_whole(out / "report.json", text)
    write_whole(out / "report.md", _markdown(report, worst))
    write_whole(out / "report.html", _html(report, worst))


def _flat(scores: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} › ")
        else:
            yield prefix + name, value


def _tables(report: dict, worst: Worst) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return (title, header, rows) of every table of the report."""
    scores = [
        [f"{name} {'↓' if name.split(' › ')[-1].startswith(_LOWER) else '↑'}", f"{value:.4f}"]
        for name, value in _flat(report["scores"])
    ]
    manifest, column = report["manifest"], worst.column
    absent = [[name, reason] for name, reason in manifest["absent"].items()]
    about = [
        [name, str(value)]
        for name, value in (manifest | manifest["versions"]).items()
        if name not in ("absent", "versions") and value is not None
    ]
    rows = [
        [str(row.number), f"{row.values[column]:.3f}", _cut(row.reference), _cut(row.prediction)]
        for row in worst.rows()
    ]
    return [
        ("Scores", ["score", "value"], scores),
        ("Not scored", ["score", "why"], absent),
        ("Rows", ["rows", "count"], _counted(report["counts"])),
        ("Captions and their entities", ["rows", "count"], _counted(report.get("entity_counts"))),
        (f"Worst rows by {column}", ["row", column, "reference", "prediction"], rows),
        ("How it was measured", ["what", "which"], about),
    ]


def _counted(counts: dict[str, int] | None) -> list[list[str]]:
    return [[name, str(count)] for name, count in (counts or {}).items()]


_COUNTING = (
    "Every row is in exactly one of the counts below “rows”. Empty, invalid and unparsed "
    "predictions stay in the scores as wrong answers; rows without a usable reference, malformed "
    "rows and rows that are not UTF-8 cannot be judged and are only counted."
)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _markdown(report: dict, worst: Worst) -> str:
    lines = [f"# Evaluation of {worst.task}", "", _COUNTING, ""]
    for title, header, rows in _tables(report, worst):
        if rows:
            lines += [f"## {title}", "", *markdown_table(header, rows), ""]
    return "\n".join(lines)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{border-bottom:1px solid #ddd;padding:.2rem .7rem;
text-align:left;vertical-align:top;overflow-wrap:anywhere}}svg{{max-width:100%;height:auto}}</style>
<h1>{title}</h1><p>{counting}</p>
{body}
</html>
"""


def _html(report: dict, worst: Worst) -> str:
    parts = []
    for title, header, rows in _tables(report, worst):
        if rows:
            lines = [_line("th", header), *(_line("td", row) for row in rows)]
            parts.append(f"<h2>{html.escape(title)}</h2><table>{''.join(lines)}</table>")
    if worst.task == "molecules":
        parts.append(_pictures(worst))
    title = f"Evaluation of {worst.task}"
    return _PAGE.format(title=title, counting=_COUNTING, body="\n".join(parts))


def _line(cell: str, texts: list[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{html.escape(text)}</{cell}>' for text in texts)}</tr>"


def _pictures(worst: Worst) -> str:
    """Return the worst pairs drawn side by side, reference left."""
    molecules, legends = [], []
    for row in worst.rows():
        try:
            pair = [parse_molecule(row.reference), parse_molecule(row.prediction)]
        except MoleculeError:  # beyond what is drawn here (size); the table above has the row
            continue
        molecules += pair
        legends += [f"row {row.number}: reference", f"row {row.number}: prediction"]
    if not molecules:
        return ""
    drawing = draw_molecules_svg(molecules, legends, columns=2)
    return "<h2>Worst pairs, drawn</h2>" + drawing[drawing.index("<svg") :]
