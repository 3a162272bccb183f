"""The one writer of reports: what was found as JSON, and a page of it as Markdown and HTML."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collamo.evaluation.statistics import higher_is_better
from collamo.files import write_text


@dataclass(frozen=True)
class Picture:
    """A drawing: `svg` text, kept as ``<name>.svg`` beside the Markdown, and what it shows."""

    name: str
    svg: str
    text: str


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


@dataclass(frozen=True)
class Page:
    """A report to read: title, a paragraph, sections."""

    title: str
    text: str
    sections: Sequence[Section] = field(default_factory=list)


def write_report(report: dict, page: Page, out: Path) -> None:
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

    def line(cells):
        escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows)]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem }}
h1 {{ font-size: 1.7rem; margin-bottom: .3rem }}
h2 {{ font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #d9dee3 }}
h3 {{ font-size: 1.05rem; margin: 1.4rem 0 .3rem }}
p, li {{ max-width: 62rem }}
table {{ border-collapse: collapse; font-size: .92em; font-variant-numeric: tabular-nums }}
th {{ font-weight: 600; background: #f5f7f9 }}
td, th {{ border-bottom: 1px solid #e3e7eb; padding: .2rem .7rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere }}
td.n, th.n {{ text-align: right; white-space: nowrap; overflow-wrap: normal }}
td:first-child {{ min-width: 7rem }} div.table {{ overflow-x: auto }}
figure {{ margin: 1rem 0 }} figcaption {{ color: #57606a; font-size: .92em; max-width: 62rem }}
svg {{ max-width: 100%; height: auto; background: #fff }}
summary {{ cursor: pointer; color: #0b5cad }}
</style></head><body>
<h1>{title}</h1><p>{text}</p>
{body}
</body></html>
"""


def _html(page: Page) -> str:
    body = "\n".join(part for section in page.sections for part in _html_section(section))
    return _PAGE.format(title=html.escape(page.title), text=html.escape(page.text), body=body)


def _html_section(section: Section) -> Iterator[str]:
    tag = "h3" if section.sub else "h2"
    yield f"<{tag}>{html.escape(section.title)}</{tag}>"
    if section.text:
        yield f"<p>{html.escape(section.text)}</p>"
    if section.points:
        yield f"<ul>{''.join(f'<li>{html.escape(point)}</li>' for point in section.points)}</ul>"
    for picture in section.pictures:
        drawing = picture.svg[picture.svg.index("<svg") :]
        caption = f"<figcaption>{html.escape(picture.text)}</figcaption>"
        yield f"<figure>{drawing}{caption}</figure>"
    if section.rows:
        table = _html_table(section.header, section.rows)
        fold = f"<details><summary>{len(section.rows)} rows</summary>{table}</details>"
        yield fold if section.folded else table


_NUMERIC = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?%?( \[.*\])?|–|")


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # A column of numbers stands flush right.
    right = [all(_NUMERIC.fullmatch(row[i]) for row in rows) for i in range(len(header))]

    def line(tag: str, cells: Sequence[str]) -> str:
        kind = (' class="n"' if number else "" for number in right)
        parts = (
            f"<{tag}{k}>{html.escape(text)}</{tag}>" for k, text in zip(kind, cells, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    lines = [line("th", header), *(line("td", row) for row in rows)]
    return f'<div class="table"><table>{"".join(lines)}</table></div>'


def metric_name(metric: str) -> str:
    """Return a score as tables call it, with the arrow that says which way is better.

    >>> metric_name("scaled_error")
    'scaled_error ↓'
    """
    return f"{metric} {'↑' if higher_is_better(metric) else '↓'}"
