"""Train and examine the demo's model with several seeds, and write the table of them all.

    python examples/demo_seeds.py demo --seeds 5 --out results/demo_seeds --page docs/evidence.md

The prepared molecules in demo/data are shared (and made first where they are missing); the seed
reaches every random stream of the three trainings: weights, order, dropout and the questions drawn.
The questions of the examination are the same for all. Each seed has a folder demo/seeds/<seed>, in
which no step that is finished is done again: run the same command to go on.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from collamo.errors import CollamoError, UsageError
from collamo.evaluation.examine.reliance import MODEL, SAME_SIZE, SCATTERED, ZEROED, ZEROED_ALONE
from collamo.evaluation.examine.verdicts import BASELINES, dependence, signed
from collamo.evaluation.report.page import markdown_table, metric_name
from collamo.evaluation.statistics import Estimate
from collamo.files import write_text

ROOT = Path(__file__).resolve().parents[1]
TAKEN_AWAY = (SAME_SIZE, SCATTERED, "without 3d", *ZEROED, *ZEROED_ALONE)
# One thread, as in demo.sh: two cores train two seeds sooner than one seed twice as fast.
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class Row(NamedTuple):
    """A line of the table: a score of one set of answers, or its change against the model's."""

    seed: int
    task: str
    metric: str
    answers: str
    quantity: str
    value: float
    low: float
    high: float
    verdict: str


def main(arguments: Sequence[str]) -> None:
    """Run what is left to do and write ``seeds.csv`` and ``seeds.md``."""
    options = _options(arguments)
    demo, seeds = Path(options.demo).resolve(), range(options.seeds)
    if not (demo / "data" / "manifest.json").is_file():
        _run("prepare", "nci", "--out", demo / "data", *PREPARE)
    with ThreadPoolExecutor(options.jobs) as pool:
        records = list(pool.map(lambda seed: run_seed(demo, seed), seeds))
    rows = [
        row for record in records for row in rows_of(record["seed"], _report(demo, record["seed"]))
    ]
    out = Path(options.out or demo)
    out.mkdir(parents=True, exist_ok=True)
    text = page(rows, records, f"python examples/demo_seeds.py {' '.join(arguments)}")
    write_text(out / "seeds.csv", table_csv(rows))
    write_text(out / "seeds.md", text)
    if options.page:
        put(Path(options.page), text)
    print(text)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("demo", nargs="?", default="demo", help="folder of the demo")
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, …")
    parser.add_argument("--jobs", type=int, default=1, help="seeds that train at the same time")
    parser.add_argument("--out", help="folder of seeds.csv and seeds.md; the demo's own without")
    parser.add_argument("--page", help="Markdown page that shows the tables between its markers")
    return parser.parse_args(arguments)


# As in demo.sh, which says why.
PREPARE = ("--force-field-steps", "100", "--time-limit", "3", "--shape-questions", "0")
EXAMINE = ("--split", "test", "--limit", "1000", "--max-new-tokens", "72", "--diagnose")


def run_seed(demo: Path, seed: int) -> dict[str, Any]:
    """Train and examine one seed, as far as it is not done, and return its record.

    The record has the seed, the commit and the seconds of each step.
    """
    folder, data = demo / "seeds" / str(seed), ("--data", demo / "data")
    tiny_lm, stage1, stage2 = (folder / name for name in ("tiny_lm", "stage1", "stage2"))
    random = ("--seed", str(seed), "--resume")
    starts = {"stage1": ("--llm", tiny_lm / "final"), "stage2": ("--init_from", stage1 / "final")}
    steps = {
        output.name: (
            *("train", f"configs/{output.name}.yaml", *data, "--output", output, *random),
            *starts.get(output.name, ()),
        )
        for output in (tiny_lm, stage1, stage2)
    }
    out = ("--out", folder / "evaluation")
    steps["evaluation"] = ("evaluate", stage2 / "final", *data, *EXAMINE, *out)
    for name, command in steps.items():
        _do_once(folder / f"{name}.done", seed, command)
    done = {name: json.loads((folder / f"{name}.done").read_text()) for name in steps}
    return {
        "seed": seed,
        "commits": sorted({entry["commit"] for entry in done.values()}),
        "seconds": {name: entry["seconds"] for name, entry in done.items()},
    }


def _do_once(done: Path, seed: int, command: Sequence[str | Path]) -> None:
    """Run a command of collamo unless `done` is there, which says how long it took."""
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    _run(*command)
    entry = {"seed": seed, "commit": commit(), "seconds": round(time.monotonic() - begin)}
    write_text(done, json.dumps(entry) + "\n")


def _run(*command: str | Path) -> None:
    words = list(map(str, command))
    print("$ collamo", *words, file=sys.stderr, flush=True)
    process = [sys.executable, "-m", "collamo", *words]
    result = subprocess.run(
        process, cwd=ROOT, env={**os.environ, **QUIET}, stdout=subprocess.DEVNULL, check=False
    )
    if result.returncode:
        raise CollamoError(f"collamo {' '.join(words)} ended with {result.returncode}")


def commit() -> str:
    """Return the commit of this folder, marked where files of it were changed since."""
    run = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+changes"]
    try:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _report(demo: Path, seed: int) -> dict[str, Any]:
    path = demo / "seeds" / str(seed) / "evaluation" / "report.json"
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(seed: int, report: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the lines of one seed's report."""
    for verdict in report["verdicts"]:
        task, metric = verdict["task"], verdict["metric"]
        variants = report["variants"][task]

        def row(
            name: str,
            quantity: str,
            numbers: Mapping[str, float],
            word: str,
            place: tuple[int, str, str] = (seed, task, metric),
        ) -> Row:
            estimate = Estimate(**numbers)
            return Row(*place, name, quantity, *_numbers(estimate), word)

        both = "beats both" if verdict["beats_both"] else "does not beat both"
        yield row(MODEL, "score", variants[MODEL]["metrics"][metric], both)
        for name in BASELINES:
            beaten = "beaten" if verdict["beaten"][name] else "not beaten"
            yield row(name, "score", variants[name]["metrics"][metric], beaten)
        for name in TAKEN_AWAY:
            change = variants[name]["change"]
            yield row(name, "change", change, dependence(Estimate(**change), metric))


def _numbers(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def table_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(
        [*row[:5], *(f"{number:.6g}" for number in row[5:8]), row.verdict] for row in rows
    )
    return text.getvalue()


PAGE = """Made by `{command}` at commit {commits}, with the seeds {seeds}; {seconds} s a seed
(three trainings and the examination). Brackets: 95 % interval over molecules.

### Against the baselines

“Beats both” means that the intervals do not overlap.

{scores}

### What the answers depend on

Change of the score when something is taken away; **bold** where the interval excludes zero and the
answers became worse, *italic* where they became better.

{changes}
"""


def page(rows: Sequence[Row], records: Sequence[Mapping[str, Any]], command: str) -> str:
    """Return the two tables as Markdown, with what made them."""
    seconds = [sum(record["seconds"].values()) for record in records]
    return PAGE.format(
        command=command,
        commits=", ".join(sorted({commit for record in records for commit in record["commits"]})),
        seeds=", ".join(str(record["seed"]) for record in records),
        seconds=f"{min(seconds)} to {max(seconds)}",
        scores="\n".join(_score_table(rows)),
        changes="\n".join(_change_table(rows)),
    )


START, END = "<!-- demo: written by examples/demo_seeds.py -->", "<!-- /demo -->"


def put(path: Path, text: str) -> None:
    """Replace what stands between `START` and `END` in the page at `path`."""
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise UsageError(f"{path} lacks the lines {START} and {END}; add them where tables belong")
    write_text(path, f"{before}{START}\n\n{text.rstrip()}\n\n{END}{after}")


def _by_task(rows: Sequence[Row]) -> dict[str, dict[int, dict[str, Row]]]:
    """Return the rows by task, seed and set of answers."""
    tasks: dict[str, dict[int, dict[str, Row]]] = {}
    for row in rows:
        tasks.setdefault(row.task, {}).setdefault(row.seed, {})[row.answers] = row
    return tasks


def _score_table(rows: Sequence[Row]) -> list[str]:
    lines = []
    for task, seeds in _by_task(rows).items():
        for seed, answers in seeds.items():
            cells = [
                str(Estimate(*answers[name][5:8])) + ("" if _holds(answers[name]) else " ✗")
                for name in (MODEL, *BASELINES)
            ]
            title = f"{task}, {metric_name(answers[MODEL].metric)}"
            lines.append([title, str(seed), *cells])
        won = sum(_holds(answers[MODEL]) for answers in seeds.values())
        lines.append([f"**{task}**", "", f"**beats both in {won} of {len(seeds)}**", "", ""])
    return markdown_table(["task", "seed", MODEL, *BASELINES], lines)


def _holds(row: Row) -> bool:
    return row.verdict in ("beats both", "beaten")


_MARKS = {"worse": "**{}**", "better": "*{}*", "no clear change": "{}"}


def _change_table(rows: Sequence[Row]) -> list[str]:
    lines = []
    for task, seeds in _by_task(rows).items():
        for seed, answers in seeds.items():
            cells = [
                _MARKS[answers[name].verdict].format(signed(Estimate(*answers[name][5:8])))
                for name in TAKEN_AWAY
            ]
            lines.append([task, str(seed), *cells])
        worse = [
            sum(answers[name].verdict == "worse" for answers in seeds.values())
            for name in TAKEN_AWAY
        ]
        lines.append([f"**{task}**", "", *(f"worse in {n} of {len(seeds)}" for n in worse)])
    return markdown_table(["task", "seed", *TAKEN_AWAY], lines)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CollamoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
