"""What `collaboration` and `modality_dropout` measure: facts read with all views, and with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from collamo.data.facts import ELEMENTS
from collamo.data.prepared import PreparedData
from collamo.data.shards import NUMBERS
from collamo.evaluation.report.page import markdown_table
from collamo.evaluation.statistics import Estimate
from collamo.model.configuration import MODALITIES
from collamo.model.selfies_vocabulary import SelfiesVocabulary
from evidence.claim import SIZES, Metrics, Run, Workplace
from evidence.intervals import interval
from evidence.ledger import Ledger
from evidence.molecules import prepared
from evidence.probe import Budget, Molecules, train_probe

#: What the trained model is asked with, by its name.
VIEWS = {"all views": MODALITIES, **{f"{m.upper()} alone": (m,) for m in MODALITIES}}
#: Molecules of NCI (None: all), steps and batch; at "cpu" those of the demo's first stage.
_SIZES = {
    "tiny": (60, Budget(steps=2, batch=8)),
    "cpu": (None, Budget(steps=400, batch=16)),
    "gpu": (None, Budget(steps=2000, batch=64)),
}
SEEDS = {"tiny": 2, "cpu": 3, "gpu": 5}
# Facts that nearly every molecule has. Of motifs and elements those of one molecule in ten at
# least: the best constant for a rarer one is right almost always.
_FACTS = (
    *("molecular_weight", "logp", "tpsa", "qed", "fraction_sp3", "hbond_donors"),
    *("hbond_acceptors", "rotatable_bonds", "ring_count", "heavy_atoms"),
    *("radius_of_gyration", "longest_distance"),
    *("asphericity", "spherocity", "plane_deviation", "end_to_end_per_bond"),
)
_LEAST_SHARE = 0.1


#: As the demo prepares them.
_PREPARED = {"split": (0.8, 0.1, 0.1), "force_field_steps": 100, "time_limit": 3.0}


def measure(run: Run, place: Workplace, overrides: Mapping[str, object]) -> Metrics:
    """Train one probe on all views and read the test molecules with each of `VIEWS`.

    ``skill …`` is the `skill` of each; details have the errors in standard deviations of the fact,
    [M,F], and those of the ``constant``, the median of the training molecules.
    """
    limit, budget = _SIZES[place.size]
    data = prepared(place.data / f"nci-{limit or 'all'}", lambda: "nci", limit=limit, **_PREPARED)
    vocabulary = SelfiesVocabulary(data.manifest.selfies_vocabulary)
    train, test = _molecules(data)
    options = {"selfies_config.vocab_size": len(vocabulary), "projector_config.sinks": True}
    options |= overrides
    probe = train_probe(train, options, budget, int(run["seed"]), place.device, vocabulary)
    answers = {name: probe.read(test.features, views) for name, views in VIEWS.items()}
    answers["constant"] = np.broadcast_to(np.median(train.values, axis=0), test.values.shape)
    spread = train.values.std(0)
    errors = {name: np.abs(each - test.values) / spread for name, each in answers.items()}
    skills = {f"skill {name}": skill(errors[name], errors["constant"]) for name in VIEWS}
    return {
        "train": len(train.values),
        "test": len(test.values),
        "facts": test.values.shape[1],
        "steps": budget.steps,
        "batch": budget.batch,
        **{name: round(value, 5) for name, value in skills.items()},
        "details": {name: each.astype(np.float16) for name, each in errors.items()},
    }


def skill(errors: np.ndarray, constant: np.ndarray) -> float:
    """Return which share of the best constant's mean absolute error is gone, mean over facts.

    1 is no error and 0 that of the constant; both [M,F].
    """
    return float(_skills(errors, constant, np.ones((1, len(errors))))[0])


def _skills(errors: np.ndarray, constant: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the skill of each resample, which counts the molecules `weights` [R,M] times.

    A fact that the constant has right in all of them says nothing.
    """
    own, other = weights @ errors, weights @ constant  # [R,F]
    return np.nanmean(1 - own / np.where(other > 0, other, np.nan), axis=1)


def _molecules(data: PreparedData) -> tuple[Molecules, Molecules]:
    """Return (train, test): molecules of which every fact is known, with the facts that vary."""
    names = [*data.manifest.motifs, *NUMBERS]
    splits = {split: data.molecules(split) for split in ("train", "test")}
    facts = {
        split: np.array([data.facts(row) for row in features], dtype=float)
        for split, features in splits.items()
    }
    counts = len(data.manifest.motifs) + len(ELEMENTS)
    common = np.nanmean(facts["train"][:, :counts] > 0, axis=0)
    chosen = [i for i in range(counts) if _LEAST_SHARE <= common[i] <= 1 - _LEAST_SHARE]
    chosen += [names.index(name) for name in _FACTS]
    sets = []
    for split, features in splits.items():
        values = facts[split][:, chosen]
        known = np.isfinite(values).all(1)
        rows = [row for row, whole in zip(features, known, strict=True) if whole]
        sets.append(Molecules([features[row] for row in rows], values[known], rows))
    return sets[0], sets[1]


@dataclass(frozen=True)
class Probed:
    """All runs of one variant: name of `VIEWS` or ``constant`` → errors [S,M,F] over its seeds."""

    seeds: Sequence[int]
    errors: Mapping[str, np.ndarray]

    def of(self, seeds: Sequence[int]) -> Probed:
        """Return the runs of some seeds alone."""
        places = [list(self.seeds).index(seed) for seed in seeds]
        return Probed(seeds, {name: errors[places] for name, errors in self.errors.items()})

    def skills(self, view: str) -> list[float]:
        """Return the skill of each seed."""
        pairs = zip(self.errors[view], self.errors["constant"], strict=True)
        return [skill(errors, constant) for errors, constant in pairs]

    def kept(self, view: str) -> Estimate:
        """Return which share of the skill with all views is left with `view` alone."""
        seeds, units = self.errors[view].shape[:2]

        def share(drawn: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return self._skill(view, drawn, weights) / self._skill("all views", drawn, weights)

        return interval(share, seeds, units)

    def better(self, other: Probed, view: str) -> Estimate:
        """Return the skill less that of `other`, over the seeds and molecules that both have."""
        seeds, units = self.errors[view].shape[:2]

        def gain(drawn: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return self._skill(view, drawn, weights) - other._skill(view, drawn, weights)

        return interval(gain, seeds, units)

    def _skill(self, view: str, drawn: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the mean skill of the seeds that each resample drew."""
        pairs = zip(self.errors[view], self.errors["constant"], strict=True)
        skills = np.stack([_skills(*pair, weights) for pair in pairs], axis=1)  # [R,S]
        return (drawn * skills).sum(1) / drawn.sum(1)


def largest_size(ledger: Ledger) -> str:
    """Return the largest size of which there is a row."""
    return next(size for size in reversed(SIZES) if ledger.rows(size=size))


def probed(ledger: Ledger, **settings: object) -> Probed | None:
    """Return the runs with these settings, None where there is none."""
    rows = sorted(ledger.rows(**settings), key=lambda row: int(row["seed"]))
    if not rows:
        return None
    arrays = [ledger.details(row) for row in rows]
    errors = {name: np.stack([a[name] for a in arrays]).astype(float) for name in arrays[0]}
    return Probed([int(row["seed"]) for row in rows], errors)


def table(variants: Mapping[str, Probed], ledger: Ledger, size: str) -> str:
    """Return the table of skills, a figure a seed, with what each view alone keeps."""
    rows = []
    for name, runs in variants.items():
        cells = [" ".join(f"{value:.3f}" for value in runs.skills(view)) for view in VIEWS]
        kept = ["", *(f" ({percent(runs.kept(view))})" for view in list(VIEWS)[1:])]
        rows.append([name, *(cell + share for cell, share in zip(cells, kept, strict=True))])
    first = ledger.rows(size=size)[0]
    note = (
        f"Skill on {first['test']} test molecules, a figure a seed: the share of the best "
        f"constant's mean absolute error that is gone, mean over {first['facts']} facts (motifs "
        "and elements of one molecule in ten at least, computed properties, sizes, shapes), after "
        f"{first['steps']} steps of {first['batch']} on {first['train']} molecules (size {size}). "
        "In brackets what is left of the skill with all views, and its 95 % interval. Encoders, "
        "projector and a linear head; no language model."
    )
    return "\n".join([*markdown_table(["", *VIEWS], rows), "", note])


def percent(share: Estimate) -> str:
    """Return a share with its interval.

    >>> percent(Estimate(0.853, 0.8, 0.9))
    '85 % [80, 90]'
    """
    return f"{share.value:.0%} [{100 * share.low:.0f}, {100 * share.high:.0f}]".replace(
        "%", " %", 1
    )
