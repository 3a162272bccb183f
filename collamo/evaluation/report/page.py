"""The one writer of reports: what was found as JSON, and a page of it as Markdown and HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from collamo.evaluation.statistics import higher_is_better
from collamo.files import write_text

#: An evaluation as plain JSON values, which is what report.json holds.
Report: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A drawing: `svg` text, kept as ``<name>.svg`` beside the Markdown, and what it shows."""

    name: str
    svg: str
    text: str

    @property
    def drawing(self) -> Markup:
        """Return the drawing as a part of a page: it is markup of our own making."""
        return Markup(self.svg[self.svg.index("<svg") :])


@dataclass(frozen=True)
class Section:
    """A part of a page: text, points, a table, pictures; each may be empty.

    `sub` makes it a part of the section before; `folded` hides the table until it is asked for.
    """

    title: str
    text: str = ""
    points: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()
    sub: bool = False
    folded: bool = False

    @property
    def numeric_columns(self) -> list[bool]:
        """Return which columns of the table hold numbers alone: they stand flush right."""
        return [
            all(_NUMERIC.fullmatch(row[i]) for row in self.rows) for i in range(len(self.header))
        ]


_NUMERIC = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?%?( \[.*\])?|–|")


@dataclass(frozen=True)
class Page:
    """A report to read: title, a paragraph, sections."""

    title: str
    text: str
    sections: Sequence[Section] = field(default_factory=list)


def write_report(report: Report, page: Page, out: Path) -> None:
    """Write report.json, report.md with its pictures, and report.html, which holds them; each file
    complete or not at all."""
    for section in page.sections:
        for picture in section.pictures:
            write_text(out / f"{picture.name}.svg", picture.svg)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_text(out / "report.json", text)
    write_text(out / "report.md", _markdown(page))
    write_text(out / "report.html", _html(page))


def _markdown(page: Page) -> str:
    lines = [f"# {page.title}", "", page.text, ""]
    for section in page.sections:
        lines += [f"{'###' if section.sub else '##'} {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        lines += [*(f"- {point}" for point in section.points), ""] if section.points else []
        for picture in section.pictures:
            lines += [f"![{picture.text}]({picture.name}.svg)", ""]
        if section.rows:
            lines += [*markdown_table(section.header, section.rows), ""]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; bars and line breaks in cells are made harmless."""

    def line(cells: Iterable[str]) -> str:
        escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows)]


_TEMPLATE = "page.html.j2"


def _html(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("collamo.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(_TEMPLATE).render(page=page) + "\n"


def metric_name(metric: str) -> str:
    """Return a score as tables call it, with the arrow that says which way is better.

    >>> metric_name("scaled_error")
    'scaled_error ↓'
    """
    return f"{metric} {'↑' if higher_is_better(metric) else '↓'}"
