"""The pictures of docs/performance.md, made from the committed rows.

    python benchmarks/plots.py

writes ``docs/figures/performance/<operation>.svg``, a panel per workload: how many times as long as
ours each rival takes. `bench` runs end with the same pictures of their own rows in build/bench.
"""

from __future__ import annotations

from pathlib import Path

import measurements

from collamo.benchmark import rows_of_folder
from collamo.benchmark.pictures import picture
from collamo.files import write_text

MACHINE = "amd-epyc-avx512-2cores"  # that the page speaks of
FIGURES = measurements.HERE.parent / "docs" / "figures" / "performance"


def pictures(results: Path = measurements.HERE / "results" / MACHINE) -> dict[str, str]:
    """Return operation → SVG text of all that have rivals."""
    drawn = {name: picture(rows) for name, rows in rows_of_folder(results).items()}
    return {name: svg for name, svg in drawn.items() if svg is not None}


if __name__ == "__main__":
    for name, svg in pictures().items():
        write_text(FIGURES / f"{name}.svg", svg)
        print(FIGURES / f"{name}.svg")
