"""Several models that differ in one thing, trained and examined alike, and the table of them."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from collamo.errors import UsageError
from collamo.evaluation.examine.reliance import MODEL
from collamo.evaluation.report.page import markdown_table, metric_name
from collamo.files import write_text
from collamo.schema import CONFIG, checked, read_yaml
from collamo.training.recipe import Recipe, load_recipe, split_overrides

logger = logging.getLogger(__name__)


@dataclass(frozen=True, config=CONFIG)
class Ablation:
    """A set of variants of one training, read from YAML by `load_ablation`."""

    title: str
    """What is compared, and which table of the paper it repeats."""
    stages: Annotated[tuple[Path, ...], Field(min_length=2, max_length=2)]
    """Recipes of the alignment and of the tuning."""
    variants: dict[Annotated[str, Field(coerce_numbers_to_str=True)], dict[str, Any]]
    """Name → options of the trainings, such as ``model.projector_config.phi2d: false``; what says
    what the model is built from reaches the alignment only."""
    shown: tuple[str, ...] = (MODEL,)
    """Whose scores the table has: the model's, or with "1d only" those it reaches without the rest
    at inference."""


def load_ablation(path: str | Path) -> Ablation:
    """Read the ablation at `path`; recipes are named relative to it.

    Raises
    ------
    UsageError
        For a missing file, an unknown key, or a variant without options of its own in a form
        `collamo train` takes.
    """
    path = Path(path)
    ablation = checked(Ablation, read_yaml(path, "ablation"), str(path))
    stages = tuple(path.parent / stage for stage in ablation.stages)
    return dataclasses.replace(ablation, stages=stages)


def run_ablation(
    ablation: Ablation,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> str:
    """Train and examine every variant under `out`, and return the table as Markdown.

    What is finished is not done again, and a training that was cut off goes on from its newest
    whole checkpoint; ``table.md`` is rewritten after every variant. `overrides` are options of
    `collamo train` for all variants; those that say what the model is built from reach the
    alignment only. The rest is as in `collamo.evaluation.examine.split.evaluate`.

    Raises
    ------
    UsageError
        For settings that differ from those a variant under `out` was begun with.
    """
    variants = [
        _Variant.build(ablation, number, name, out, overrides)
        for number, name in enumerate(ablation.variants)
    ]
    settings = {"split": split, "limit": limit, "max_new_tokens": max_new_tokens, "seed": seed}
    for variant in variants:  # all of them, before the first hour of training
        variant.begin(settings)
    table = ""
    for done, variant in enumerate(variants, 1):
        variant.train()
        variant.examine(settings, batch_size)
        finished = {p.name: p.report() for p in variants[:done]}
        table = _table(ablation, finished)
        write_text(out / "table.md", table)
    return table


@dataclasses.dataclass(frozen=True)
class _Variant:
    """One variant: its folder and its two recipes."""

    name: str
    folder: Path
    align: Recipe
    tune: Recipe

    @classmethod
    def build(cls, ablation: Ablation, number: int, name: str, out: Path, overrides: Sequence[str]):
        folder = out / str(number)
        own = [f"--{key}={json.dumps(value)}" for key, value in ablation.variants[name].items()]
        align_path, tune_path = ablation.stages
        align = load_recipe(align_path, [*overrides, *own, f"--output={folder / 'align'}"])
        _, shared = split_overrides([*overrides, *own])
        start = f"--init_from={folder / 'align' / 'final'}"
        tune = load_recipe(tune_path, [*shared, start, f"--output={folder / 'tune'}"])
        return cls(name, folder, align, tune)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write down the settings, or compare them with those written down."""
        recipes = {name: dataclasses.asdict(getattr(self, name)) for name in ("align", "tune")}
        text = json.dumps({"name": self.name, **recipes, "examination": settings}, indent=1)
        file = self.folder / "settings.json"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, text + "\n")
        elif json.loads(file.read_text(encoding="utf-8")) != json.loads(text):
            raise UsageError(
                f"'{self.folder}' was begun with other settings, see {file}; delete it or give "
                "another --out"
            )

    def train(self) -> None:
        """Run what is not finished of both stages."""
        from collamo.training.stages import train

        for recipe in (self.align, self.tune):
            done = Path(recipe.output) / "done"
            if not done.exists():
                logger.info("%s: stage %s", self.name, recipe.stage)
                train(recipe, resume=True)
                done.touch()

    def examine(self, settings: Mapping[str, Any], batch_size: int) -> None:
        """Evaluate, unless there is a report."""
        if (self.folder / "report.json").exists():
            return
        from collamo.data.prepared import PreparedData
        from collamo.evaluation.examine.split import evaluate
        from collamo.model import load_checkpoint

        logger.info("%s: examination", self.name)
        model, processor = load_checkpoint(Path(self.tune.output) / "final")
        data = PreparedData.open(self.tune.data)
        about = {"variant": self.name}
        options = {**settings, "batch_size": batch_size, "about": about}
        evaluate(model, processor, data, out=self.folder, **options)

    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))


def _table(ablation: Ablation, reports: Mapping[str, dict[str, Any]]) -> str:
    """Return title and table: a row per variant, a column per task and per shown set of answers."""
    first = next(iter(reports.values()))
    columns = [(v["task"], v["metric"], who) for v in first["verdicts"] for who in ablation.shown]
    header = ["", *(f"{task}, {metric_name(metric)}, {who}" for task, metric, who in columns)]
    rows = [
        [name, *(_cell(report["variants"], *column) for column in columns)]
        for name, report in reports.items()
    ]
    note = "Brackets: 95 % bootstrap interval over molecules. One training per row."
    return "\n".join([f"# {ablation.title}", "", *markdown_table(header, rows), "", note, ""])


def _cell(variants: Mapping[str, Any], task: str, metric: str, who: str) -> str:
    estimate = variants.get(task, {}).get(who, {}).get("metrics", {}).get(metric)
    if estimate is None:
        return "–"
    return "{value:.3g} [{low:.3g}, {high:.3g}]".format(**estimate)
