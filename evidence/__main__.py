"""``python -m evidence run`` does what is missing; ``python -m evidence report`` writes it up."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from evidence.claim import SIZES, Workplace
from evidence.claims import CLAIMS
from evidence.ledger import RESULTS
from evidence.report import write_report
from evidence.runs import run_missing


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do every run that has no row yet")
    run.add_argument("claims", nargs="*", metavar="CLAIM", help=f"of {', '.join(CLAIMS)}; all")
    run.add_argument("--size", choices=SIZES, default="cpu")
    run.add_argument("--minutes", type=float, help="begin no run that would end later")
    run.add_argument("--jobs", type=int, default=1, help="runs side by side")
    run.add_argument("--data", type=Path, default=Path("build/evidence"), help="prepared data")
    run.add_argument("--out", type=Path, default=RESULTS)
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    report = commands.add_parser("report", help="write docs/evidence.md, figures, README's table")
    report.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.command == "report":
        write_report(options.out)
        return
    unknown = set(options.claims) - set(CLAIMS)
    if unknown:
        parser.error(f"unknown claim {min(unknown)!r}; choose from {', '.join(CLAIMS)}")
    place = Workplace(options.size, options.device, options.data)
    claims = [CLAIMS[name] for name in options.claims or CLAIMS]
    run_missing(claims, place, options.out, minutes=options.minutes, jobs=options.jobs)


if __name__ == "__main__":
    main()
