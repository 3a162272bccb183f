"""``make test-faults``: everything that can go wrong around a training, done to a small one.

Kills, signals, flipped bits, files that are cut off or missing, full disks and limits of file
sizes. Printed as a table; exit code 1 where a trial ended in a result that differs without a word,
or in an error that is no single line naming the file. A fixed seed draws the same faults again;
only the moment of a random kill depends on the machine.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import flips
import full_disk
import kills
import torch
import transformers
from trained import CONFIGS, trained
from trials import SILENT, UNCLEAR, VERDICTS, Command, Trial

GROUPS = ("flips", "kills", "signals", "disk", "limits")
# Of the small training of tests/trained.py: a third of its steps, and a checkpoint after each two.
STEPS = ("--max_steps=4", "--save_steps=2", "--logging_steps=1")


def main() -> int:
    """Run the groups that are asked for; return 1 where a trial found a defect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=GROUPS, help="groups to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--flips", type=int, default=20, help="bits flipped in each file")
    parser.add_argument("--writers", nargs="*", help="of disk and limits, such as merge; all")
    parser.add_argument("--log", type=Path, help="CSV file for every trial, as it ends")
    options = parser.parse_args()
    torch.set_num_threads(1)  # what is forked must not wait for threads that it does not have
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    begin = time.monotonic()
    trials = []
    with tempfile.TemporaryDirectory(prefix="collamo-faults-") as folder:
        for trial in run(options, Path(folder)):
            trials.append(trial)
            if trial.verdict in (SILENT, UNCLEAR):
                print(*vars(trial).values(), sep=" | ", file=sys.stderr, flush=True)
            if options.log:
                with options.log.open("a", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerow(vars(trial).values())
    print(table(trials))
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{len(trials)} trials, seed {options.seed}, {minutes:.1f} minutes")
    return int(any(trial.verdict in (SILENT, UNCLEAR) for trial in trials))


def run(options: argparse.Namespace, scratch: Path) -> Iterator[Trial]:
    """Yield the trials of every group."""
    made = trained()
    draw = random.Random(options.seed)

    def stage(name: str):
        return lambda out: [
            "train",
            str(CONFIGS / f"{name}.yaml"),
            *made.overrides(name, out),
            *STEPS,
        ]

    def final(out: Path) -> object:
        return flips.answers(out / "final")()

    if "flips" in options.only:
        for name, folder, read in (
            ("prepared data", made.data, flips.molecules(made.data)),
            ("served: whole model", made.folder / "stage2" / "final", flips.answers),
            ("served: adapter", made.folder / "stage2" / "adapter", flips.answers),
            ("language model", made.folder / "tiny_lm" / "final", flips.language_model),
        ):
            read = read if name == "prepared data" else read(folder)
            yield from flips.attack(name, folder, read, draw, options.flips)
        for name in ("tiny_lm", "stage1", "stage2"):
            newest = made.folder / name / "checkpoint-10"
            yield from flips.attack_newest(f"checkpoint of {name}", newest, draw, options.flips)
    if {"kills", "signals"} & set(options.only):
        whole = scratch / "undisturbed"
        ended = Command(stage("stage1")(whole), scratch)
        start = time.monotonic()
        assert ended.wait().code == 0
        longest, expected = time.monotonic() - start, final(whole)
        if "signals" in options.only:
            yield from kills.stop(stage("stage1"), final, expected, scratch)
        if "kills" in options.only:
            yield from kills.kill(
                stage("stage1"), final, expected, draw, scratch, options.kills, longest
            )
    if {"disk", "limits"} & set(options.only):
        yield from _writers(options, made, scratch, stage, final)


def _writers(options, made, scratch: Path, stage, final) -> Iterator[Trial]:
    """Yield the trials of what writes: each command on disks that are too small."""
    checkpoint = str(made.checkpoint)
    questions = scratch / "questions.csv"
    row = f"CCO,How many rings does this molecule have?,{'a note ' * 200}\n"
    questions.write_text("smiles,question,note\n" + row * 40)
    predictions = scratch / "predictions.csv"
    predictions.write_text(
        "prediction,reference\n" + "".join(f"{i % 7}.5,{i % 5}.0\n" for i in range(200))
    )

    def content(out: Path) -> object:
        return out.read_bytes()

    def report(out: Path) -> object:
        return (out / "report.md").read_text(), (out / "rows.parquet").read_bytes()

    writers: full_disk.Writers = {
        "train (language model)": stage("tiny_lm"),
        "train (align)": stage("stage1"),
        "train (tune)": stage("stage2"),
        "prepare": lambda out: [
            *("prepare", "nci", "--limit=40", "--shard-size=10", "--workers=1"),
            *("--out", str(out)),
        ],
        "generate": lambda out: [
            *("generate", str(questions), "--checkpoint", checkpoint, "--workers=1"),
            *("--max-new-tokens=4", "--out", f"{out}.csv"),
        ],
        "merge": lambda out: ["merge", str(made.folder / "stage2" / "adapter"), str(out)],
        "evaluate": lambda out: [
            *("evaluate", checkpoint, "--data", str(made.data), "--limit=3"),
            *("--max-new-tokens=4", "--out", str(out)),
        ],
        "score": lambda out: [
            *("score", str(predictions), "--task=property"),
            *("--out", str(out)),
        ],
    }
    reads = {
        "train (language model)": lambda out: flips.language_model(out / "final")(),
        "prepare": lambda out: flips.molecules(out)(),
        "generate": lambda out: content(out.with_name(out.name + ".csv")),
        "merge": lambda out: flips.answers(out)(),
        "evaluate": report,
        "score": report,
    }
    mounts = full_disk.can_mount(scratch / "probe")
    if "disk" in options.only and not mounts:
        print("disk full: not tried, for only root may mount a small one", file=sys.stderr)
    for name in options.writers or writers:
        command = writers[name]
        read = reads.get(name, final)
        if "disk" in options.only and mounts:
            yield from full_disk.fill(name, command, read, scratch)
        if "limits" in options.only:
            yield from full_disk.limit(name, command, read, scratch)


def table(trials: list[Trial]) -> str:
    """Return the trials counted, as Markdown: a line for each group, and for each writer."""
    targets: dict[str, dict[str, Counter[str]]] = {}
    for trial in trials:
        found = targets.setdefault(trial.group, {}).setdefault(trial.target, Counter())
        found[trial.verdict] += 1
    rows = []
    for group, by_target in targets.items():
        if group in ("disk full", "ulimit -f"):
            rows += [(group, target, found) for target, found in by_target.items()]
        else:
            name = f"{len(by_target)} files" if len(by_target) > 1 else next(iter(by_target))
            rows.append((group, name, sum(by_target.values(), Counter())))
    lines = [
        f"| fault | done to | {' | '.join(VERDICTS)} |",
        "|---|---|" + "---:|" * len(VERDICTS),
        *(
            f"| {group} | {name} | {' | '.join(str(found[v]) for v in VERDICTS)} |"
            for group, name, found in rows
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
