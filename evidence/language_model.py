"""What is the projector worth to a language model that speaks English? SmolLM2 with soft tokens,
and told the SMILES as text instead, tuned the same way."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from collamo.data.manifest import MANIFEST
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.errors import MissingDependencyError
from collamo.evaluation.examine.reliance import MODEL, WRONG_MOLECULE
from collamo.evaluation.examine.verdicts import MOST_COMMON
from collamo.evaluation.report.page import markdown_table
from collamo.evaluation.statistics import Estimate, higher_is_better
from evidence.claim import SIZES, Claim, Finding, Metrics, Run, Workplace
from evidence.ledger import ROOT, Ledger, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Captions, IUPAC names and measured properties of PubChem.
FILE = "pubchem_3k.jsonl"
PUBCHEM, QM9, NCI = "PubChem", "QM9", "NCI"
FROZEN = "soft tokens, language model frozen"  # stage 1 alone
SOFT_TOKENS, SMILES = "soft tokens", "SMILES as text"
READERS = (FROZEN, SOFT_TOKENS, SMILES)
#: Task → the score that is reported, and what the report calls it.
SCORES = {
    "caption": ("bleu4", "captions: BLEU-4"),
    "iupac_name": ("bleu4", "IUPAC names: BLEU-4"),
    "measured": ("scaled_error", "measured values: error [standard deviations]"),
}
#: Who answers → prefix of the columns.
ANSWERERS = {MODEL: "", WRONG_MOLECULE: "wrong_", MOST_COMMON: "common_"}
_SEEDS = {"tiny": 1, "cpu": 1, "gpu": 3}
_MOLECULES = {"tiny": 60, "cpu": 2000, "gpu": 3000}
_QUESTIONS = {"tiny": 4, "cpu": 100, "gpu": 300}  # of a task
_GPU = ["--use_cpu=false", "--attn_implementation=null", "--logging_steps=50", "--save_steps=1000"]
_ONE_BATCH = ["--per_device_train_batch_size=32", "--gradient_accumulation_steps=1"]
#: Options of stage 1, and of what follows it.
_OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "cpu": ([], []),
    "gpu": (
        [*_GPU, "--max_steps=600", "--per_device_train_batch_size=64"],
        [*_GPU, "--max_steps=600", *_ONE_BATCH],
    ),
}


def runs(size: str) -> list[Run]:
    """Return every run: PubChem before QM9, the first seed of both readers before the second."""
    sources = [NCI] if size == "tiny" else [PUBCHEM, QM9]
    return [
        {"source": source, "reader": reader, "seed": seed}
        for source in sources
        for seed in range(_SEEDS[size])
        for reader in READERS
    ]


def measure(run: Run, place: Workplace) -> Metrics:
    """Train what `run` says, and score it with `collamo evaluate`.

    Trainings keep checkpoints in the workplace, and evaluations their answers: a run that was cut
    off goes on.
    """
    from collamo.evaluation.examine.split import evaluate
    from collamo.model import load_checkpoint

    data = _prepared(place, str(run["source"]))
    folder = place.data / f"language_model-{place.size}" / f"{run['source']}-{run['seed']}"
    final, steps = _trained(run, place, data, folder)
    model, processor = load_checkpoint(final, device=place.device)
    tasks = ["measured"] if run["reader"] == FROZEN and place.size != "tiny" else list(SCORES)
    report = evaluate(
        *(model, processor, _only(data, tasks)),
        out=final.parent / "evaluation",
        limit=_QUESTIONS[place.size],
        reliance=False,
        batch_size=16 if place.device == "cpu" else 128,
        max_new_tokens=16 if place.size == "tiny" else 160,
    )
    train = data.manifest.splits["train"]
    return {"train": train, "steps": steps, **scores_of(report["variants"])}


def scores_of(variants: Mapping[str, Mapping[str, Any]]) -> dict[str, float | int]:
    """Return the columns of a row from the scores of `collamo evaluate`: values and intervals.

    Of the baselines also the interval of their change from the model's answers, which is paired.
    """
    columns: dict[str, float | int] = {}
    for task, (metric, _) in SCORES.items():
        if task not in variants:
            continue
        columns[f"questions_{task}"] = variants[task][MODEL]["counts"]["rows"]
        for answerer, prefix in ANSWERERS.items():
            estimate = variants[task][answerer]["metrics"].get(metric)
            for end in ("value", "low", "high") if estimate else ():
                columns[f"{prefix}{task}_{end}"] = round(float(estimate[end]), 4)
            change = variants[task][answerer].get("change")
            for end in ("low", "high") if change else ():
                columns[f"{prefix}{task}_change_{end}"] = round(float(change[end]), 4)
    return columns


def _prepared(place: Workplace, source: str) -> PreparedData:
    """Return the prepared molecules of a source; splits keep scaffolds and parents together."""
    count = _MOLECULES[place.size]
    folder = place.data / f"language-{source.lower()}-{count}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / MANIFEST).exists():
            # Short: conformers of large molecules would take most of the time.
            options = PrepareOptions(limit=count, time_limit=3.0, force_field_steps=50)
            prepare(_source(source), folder, options, max_reject_rate=1.0)
    return PreparedData.open(folder)


def _only(data: PreparedData, tasks: Sequence[str]) -> PreparedData:
    """Return the prepared data as if it had no questions but those of `tasks`."""
    asked = copy.copy(data)
    asked.tasks = lambda split: [e for e in data.tasks(split) if e.task in tasks]  # type: ignore
    return asked


def _source(source: str) -> str | Path:
    if source in (NCI, QM9):
        return source.lower()
    file = Path(os.environ.get("COLLAMO_TEST_DATA", "")) / "data" / FILE
    if not file.is_file():
        raise MissingDependencyError(f"COLLAMO_TEST_DATA names no folder with data/{FILE}")
    return file


def _trained(run: Run, place: Workplace, data: PreparedData, folder: Path) -> tuple[Path, int]:
    """Return the tuned model's folder, and the steps of its last stage."""
    from collamo.training.recipe import load_recipe
    from collamo.training.stages import train

    configs = ROOT / "configs" / "smollm2"
    common = [f"--data={data.folder}", f"--seed={run['seed']}", "--report_to=none"]
    first, second = _tiny(place, data) if place.size == "tiny" else _OPTIONS[place.size]
    if run["source"] == QM9:
        second = [*second, "--tasks.names=[measured]"]
    if run["reader"] == SMILES:
        llm = [option for option in first if option.startswith("--llm")]
        options = [*common, *second, *llm, f"--output={folder / 'smiles'}"]
        recipe = load_recipe(configs / "smiles.yaml", options)
    else:
        aligned = load_recipe(
            configs / "stage1.yaml", [*common, *first, f"--output={folder / 'stage1'}"]
        )
        # Both readers with soft tokens begin at this stage, and they may run side by side.
        with FileLock(f"{folder}.lock"):
            start = train(aligned, resume=True)
        if run["reader"] == FROZEN:
            return start, aligned.training["max_steps"]
        options = [*common, *second, f"--output={folder / 'stage2'}", f"--init_from={start}"]
        recipe = load_recipe(configs / "stage2.yaml", options)
    return train(recipe, resume=True), recipe.training["max_steps"]


def _tiny(place: Workplace, data: PreparedData) -> tuple[list[str], list[str]]:
    """Return the options of seconds, with a language model from nothing in SmolLM2's place."""
    from collamo.training.recipe import load_recipe
    from collamo.training.stages import train

    llm = place.data / "tiny_lm"
    with FileLock(f"{llm}.lock"):
        if not (llm / "final" / "config.json").exists():
            sizes = "{hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1}"
            options = [f"--model={sizes}", "--model.vocab_size=300", "--block=32"]
            options += [f"--data={data.folder}", f"--output={llm}", "--max_steps=1"]
            train(load_recipe(ROOT / "configs" / "tiny_lm.yaml", [*options, "--report_to=none"]))
    steps = ["--max_steps=1", "--logging_steps=1"]
    first = [*steps, f"--llm={llm / 'final'}", "--tasks.names=[property_2d]"]
    return first, [*steps, "--tasks.names=[caption, property_2d]"]


# --- the report ---------------------------------------------------------------------------------


def report(ledger: Ledger) -> Finding:
    """Compare, of the largest size that was run, both readers with each other and two baselines."""
    size = next(size for size in reversed(SIZES) if ledger.rows(size=size))
    rows = ledger.rows(size=size)
    header = ["source", "answers by", "seed", *(words for _, words in SCORES.values())]
    lines = [line for row in rows for line in _lines(row, row in _first(rows))]
    found = [row for row in rows if row["source"] == rows[0]["source"]]
    sentences = [_sentence(found, task, reader) for task in SCORES for reader in READERS[:2]]
    steps = {row["reader"]: row["steps"] for row in rows}
    counts = ", ".join(f"{reader} {count}" for reader, count in steps.items())
    note = (
        f"Value with its 95 % interval over test molecules; {rows[0]['train']} molecules to learn "
        f"from (size {size}). Steps of the last stage: {counts}. {_DIRECTION}"
    )
    table = "\n".join([*markdown_table(header, lines), "", note])
    return Finding(
        table,
        " ".join(filter(None, sentences)) or "No score of these rows can be compared.",
        lambda axes: _draw(axes, found),
    )


_DIRECTION = "More BLEU-4 is better, and less error."


def _first(rows: Sequence[Row]) -> list[Row]:
    """Return the first seed's row of each reader and source."""
    firsts: dict[tuple[str, str], Row] = {}
    for row in rows:
        firsts.setdefault((row["source"], row["reader"]), row)
    return list(firsts.values())


def _lines(row: Row, first: bool) -> list[list[str]]:
    """Return the table's lines of a run: the model, the wrong molecule, once the common answer."""
    answerers = {row["reader"]: "", f"{row['reader']}, {WRONG_MOLECULE}": "wrong_"}
    if first and row["reader"] != SMILES:
        answerers[MOST_COMMON] = "common_"
    return [
        [row["source"], name, row["seed"], *(_cell(row, prefix, task) for task in SCORES)]
        for name, prefix in answerers.items()
    ]


def _estimate(row: Row, prefix: str, task: str) -> Estimate | None:
    ends = [row.get(f"{prefix}{task}_{end}", "") for end in ("value", "low", "high")]
    return Estimate(*map(float, ends)) if all(ends) else None


def _cell(row: Row, prefix: str, task: str) -> str:
    estimate = _estimate(row, prefix, task)
    return "–" if estimate is None else str(estimate)


def _sentence(rows: Sequence[Row], task: str, reader: str) -> str:
    """Say whom soft tokens are clearly better than at a task, in every seed.

    By the paired interval of the change from the baselines, and from the other reader by intervals
    that do not overlap.
    """
    seeds = sorted({row["seed"] for row in rows if row["reader"] == reader})
    mine = {row["seed"]: row for row in rows if row["reader"] == reader}
    smiles = {row["seed"]: row for row in rows if row["reader"] == SMILES}

    def change(prefix: str, seed: str) -> Estimate | None:
        ends = [mine[seed].get(f"{prefix}{task}_change_{end}", "") for end in ("low", "high")]
        return Estimate(0.0, *map(float, ends)) if all(ends) else None

    def apart(seed: str) -> Estimate | None:
        """The gap between the two intervals, with a sign as a change; around 0 where they meet."""
        here, there = (
            _estimate(row, "", task) if row else None for row in (mine[seed], smiles.get(seed))
        )
        if here is None or there is None:
            return None
        return Estimate(0.0, there.low - here.high, there.high - here.low)

    rivals = {
        "the commonest answer": [change("common_", seed) for seed in seeds],
        "the wrong molecule": [change("wrong_", seed) for seed in seeds],
        "SMILES as text": [apart(seed) for seed in seeds] if reader == SOFT_TOKENS else [],
    }
    said = [f"{verb} {name}" for name, x in rivals.items() if (verb := _verb(x, task))]
    if not said:
        return ""
    words = SCORES[task][1].partition(":")[0]
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    return f"{words[0].upper()}{words[1:]}: {reader}: {', '.join(said)} ({count})."


def _verb(changes: Sequence[Estimate | None], task: str) -> str:
    """Return what the rival's changes from one's own score say, "" where there is none."""
    verbs = set()
    for change in filter(None, changes):
        worse = change.high < 0 if higher_is_better(SCORES[task][0]) else change.low > 0
        verbs.add("beat" if worse else "lose to" if change.clear else "do not differ clearly from")
    return verbs.pop() if len(verbs) == 1 else "differ by seed from" if verbs else ""


def _draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw each score of the first seed as a share of the commonest answer's."""
    names: list[str] = []
    for row in _first(rows):
        for place, task in enumerate(SCORES):
            mine, common = (_estimate(row, prefix, task) for prefix in ("", "common_"))
            if mine is None or common is None or not common.value:
                continue
            low, value, high = (x / common.value for x in (mine.low, mine.value, mine.high))
            rank = READERS.index(row["reader"])
            height, colour = place + 0.2 * (1 - rank), f"C{rank}"
            label = row["reader"] if row["reader"] not in names else None
            names.append(row["reader"])
            axes.plot([low, high], [height] * 2, color=colour)
            axes.plot(value, height, "o", color=colour, label=label)
    axes.axvline(1, color="0.6", linewidth=1)
    axes.set_yticks(range(len(SCORES)), [words for _, words in SCORES.values()])
    axes.set_xlabel("as a multiple of the commonest answer's score")
    if names:
        axes.legend()


CLAIM = Claim(
    name="language_model",
    title="Soft tokens beside SMILES as text",
    paper="That soft tokens tell a language model more than text does is what the projector is "
    "for; a comparison with the same model, given the SMILES and tuned the same way, is ours. The "
    "language model is SmolLM2-135M-Instruct, the encoders start from nothing, and both readers "
    "see the same questions for as many steps; soft tokens have a stage 1 before, which is shown "
    "alone too.",
    runs=runs,
    measure=measure,
    report=report,
)
