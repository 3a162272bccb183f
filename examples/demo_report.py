"""Write demo/report.md with its pictures: what `make demo` trained, and what came of it.

    python examples/demo_report.py [demo]

Reads what the commands left in the folder: data/manifest.json, the log.jsonl of the three
trainings, evaluation/report.json and evaluation/rows.parquet.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from collamo.chem.draw import draw_molecules
from collamo.chem.molecule import Molecule
from collamo.errors import CollamoError, UsageError
from collamo.evaluation.examine.reliance import MODEL, WRONG_MOLECULE
from collamo.evaluation.report.page import markdown_table
from collamo.files import write_text
from collamo.training.learning_curve import draw_learning_curve, read_log

STAGES = {
    "tiny_lm": "tiny language model",
    "stage1": "stage 1, alignment",
    "stage2": "stage 2, instruction tuning",
}
DRAWN = 6  # molecules in the picture
TASKS = ("motif_count", "property_2d", "property_3d")  # short answers fit under a drawing


def main(folder: Path) -> Path:
    """Write the report of the demo in `folder` and return its path."""
    evaluation = folder / "evaluation"
    report = json.loads(_read(evaluation / "report.json"))
    manifest = json.loads(_read(folder / "data" / "manifest.json"))
    logs = {name: read_log(folder / stage / "log.jsonl") for stage, name in STAGES.items()}
    curves = draw_learning_curve(logs, folder / "learning_curves.png")
    chosen = held_out(pq.read_table(evaluation / "rows.parquet").to_pylist())
    (folder / "molecules.png").write_bytes(
        draw_molecules(
            [Molecule.from_smiles(rows[0]["smiles"]) for rows in chosen],
            [legend(rows) for rows in chosen],
            columns=3,
        )
    )
    path = folder / "report.md"
    write_text(path, page(manifest, report, logs, curves))
    return path


def _read(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"{path} is missing; run `make demo`, or `collamo evaluate` first")
    return path.read_text(encoding="utf-8")


def held_out(predictions: list[dict]) -> list[list[dict]]:
    """Return a question per task for the first molecules asked all tasks: not the best ones."""
    by_molecule = defaultdict(dict)
    for row in predictions:
        if row["task"] in TASKS:
            by_molecule[row["molecule"]].setdefault(row["task"], row)
    order = sorted(by_molecule.values(), key=lambda rows: -len(rows))  # stable: file order else
    return [list(rows.values()) for rows in order[:DRAWN]]


def legend(rows: list[dict]) -> str:
    """Return target, truth and answer of each question, a line each, as text under a drawing."""
    return "\n".join(
        f"{r['group']}: {r['reference']}, answered {r['prediction'] or '–'}" for r in rows
    )


def page(manifest: dict, report: dict, logs: dict[str, list[dict]], curves: bool) -> str:
    """Return the text of report.md."""
    about = report["manifest"]
    sizes = ", ".join(f"{size} {name}" for name, size in manifest["splits"].items())
    verdicts = "\n".join(
        f"- {'✓' if v['beats_both'] else '✗'} {v['sentence']}" for v in report["verdicts"]
    )
    readings = "\n".join(f"- {v['reading']}" for v in report["verdicts"] if v["reading"])
    training = markdown_table(
        ["stage", "steps", "first loss", "last loss", "time [s]"],
        [training_row(name, log) for name, log in logs.items()],
    )
    answers = markdown_table(
        ["question", "truth", "answer", "answer to a wrong molecule"],
        [[str(row[k]) for k in COLUMNS] for row in report["examples"]],
    )
    return PAGE.format(
        source=manifest["source"],
        sizes=sizes,
        questions=about["questions"],
        molecules=about["molecules"],
        split=about["split"],
        verdicts=verdicts,
        readings=readings,
        curves="![losses of the three trainings](learning_curves.png)" if curves else "",
        training="\n".join(training),
        answers="\n".join(answers),
    )


COLUMNS = ("question", "reference", MODEL, WRONG_MOLECULE)
PAGE = """# CoLLaMo demo

A molecular language model made from nothing on this machine: molecules prepared, a small language
model trained on their text, aligned with the encoders, tuned, and examined on molecules whose
scaffolds it never saw.

- data: {source}; {sizes} molecules
- examined: {questions} questions on {molecules} molecules of the {split} split

## Does it read the molecule?

{verdicts}

What it reads of it, from the same questions with something taken away:

{readings}

![scores with everything, with less, and with other molecules](evaluation/reliance.svg)

Full tables, and what its attention looks at: [evaluation/report.md](evaluation/report.md), or
evaluation/report.html in a browser.

## Training

{curves}

{training}

## Held-out molecules

The first ones of the file that were asked every kind of question, not the best ones.

![molecules with truth and answer](molecules.png)

{answers}
"""


def training_row(name: str, log: list[dict]) -> list[str]:
    """Return the table row of one training."""
    losses = [entry["loss"] for entry in log if "loss" in entry]
    if not losses:
        return [name, "–", "–", "–", "–"]
    seconds = sum(entry.get("train_runtime", 0.0) for entry in log)
    return [name, str(log[-1]["step"]), f"{losses[0]:.3f}", f"{losses[-1]:.3f}", f"{seconds:.0f}"]


if __name__ == "__main__":
    try:
        print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))
    except CollamoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
