"""From ``results/`` to ``docs/evidence.md``, its plots and the README's table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from collamo.evaluation.report.page import markdown_table
from collamo.files import write_text
from evidence.claim import Claim, Finding
from evidence.claims import CLAIMS
from evidence.ledger import RESULTS, ROOT, Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "python -m evidence"
NOT_RUN = "Not run yet."
_START, _END = "<!-- evidence: written by `python -m evidence report` -->", "<!-- /evidence -->"


def write_report(results: Path = RESULTS, docs: Path = ROOT / "docs", readme: Path = ROOT) -> None:
    """Write the page, a figure beside the rows of each claim and beside the page, README's table.

    The page and README keep what stands outside the markers.
    """
    findings = {name: _finding(claim, results) for name, claim in CLAIMS.items()}
    for name, finding in findings.items():
        if finding is not None and finding.draw is not None:
            (docs / "evidence").mkdir(exist_ok=True)
            _draw(finding.draw, docs / "evidence" / f"{name}.svg")
    _replace(docs / "evidence.md", "\n".join(_sections(findings, results)))
    _replace(readme / "README.md", "\n".join(summary(findings)))


def summary(findings: Mapping[str, Finding | None]) -> list[str]:
    """Return the table of all claims: title and verdict."""
    rows = [
        [f"[{CLAIMS[name].title}](docs/evidence.md)", _words(finding)]
        for name, finding in findings.items()
    ]
    return markdown_table(["claim", "measured"], rows)


def _words(finding: Finding | None) -> str:
    return NOT_RUN if finding is None else finding.summary or finding.verdict


def _finding(claim: Claim, results: Path) -> Finding | None:
    ledger = Ledger(claim.name, results)
    return claim.report(ledger) if ledger.rows() else None


def _sections(findings: Mapping[str, Finding | None], results: Path) -> Iterator[str]:
    for name, finding in findings.items():
        claim = CLAIMS[name]
        yield from (f"## {claim.title}", "", f"**The paper.** {claim.paper}", "")
        if finding is None:
            yield from (f"**Verdict.** {NOT_RUN}", "")
        else:
            yield from (f"**Verdict.** {finding.verdict}", "", finding.table, "")
            if finding.draw is not None:
                yield from (f"![{claim.title}](evidence/{name}.svg)", "")
            yield from (_provenance(Ledger(name, results)), "")
        yield f"Rows: `results/{name}/rows.csv`, by `{COMMAND} run {name}`."
        yield ""


def _provenance(ledger: Ledger) -> str:
    """Say where the rows come from."""
    rows = ledger.rows()

    def kinds(column: str) -> str:
        return ", ".join(sorted({row[column] for row in rows}))

    minutes = sum(float(row["seconds"]) for row in rows) / 60
    return (
        f"{len(rows)} runs, {minutes:.0f} minutes, seeds {kinds('seed')}; {kinds('machine')}; "
        f"commit {kinds('commit')}."
    )


def _draw(draw: Callable[[Axes], None], path: Path) -> None:
    """Draw into a file whose bytes depend on the data alone."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "evidence", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
        draw(axes)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _replace(path: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    before, start, rest = path.read_text(encoding="utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise ValueError(f"{path} lacks the lines {_START} and {_END}")
    write_text(path, f"{before}{start}\n\n{text.rstrip()}\n\n{end}{after}")
