"""Does the model read the molecule? The same questions with less of it, or with another one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from collamo.chem.features import MoleculeFeatures
from collamo.data.batch import MODALITIES
from collamo.data.tasks import TaskExample
from collamo.evaluation.examine.baselines import same_size_molecules, wrong_molecules
from collamo.evaluation.journal import Journal
from collamo.inference.answers import answer
from collamo.model.projector import without_phi

if TYPE_CHECKING:
    from collamo.model import CollamoForConditionalGeneration, CollamoProcessor, ProjectorConfig

MODEL = "CoLLaMo"
WRONG_MOLECULE = "wrong molecule"
SAME_SIZE = "same-size molecule"
SCATTERED = "scattered atoms"
WITHOUT = {f"without {m}": tuple(o for o in MODALITIES if o != m) for m in MODALITIES}
ALONE = {f"{m} only": (m,) for m in MODALITIES}
#: What the attention over atoms goes without; see `without_phi`.
ZEROED = {
    "Φ2d zeroed": ("phi2d",),
    "Φ3d zeroed": ("phi3d",),
    "Φ2d and Φ3d zeroed": ("phi2d", "phi3d"),
}
#: Both Φ tell which atoms are near, so that either stands in for the other. What the model has of
#: one shows where the other's view is gone: variant → what it is compared with, the Φ zeroed.
ZEROED_ALONE = {
    "Φ2d zeroed without 3d": ("without 3d", ("phi2d",)),
    "Φ3d zeroed without 2d": ("without 2d", ("phi3d",)),
}
# Å³ of the ball for each atom with its hydrogens: a molecule's volume grows by about as much.
VOLUME_PER_ATOM = 18.0


@dataclass(frozen=True)
class Variant:
    """One way to ask: `modalities` that may be seen; `molecules` shown instead of one's own; which
    Φ are `zeroed` in the projector; the variant `against` which its answers are held."""

    name: str
    modalities: tuple[str, ...] = MODALITIES
    molecules: Mapping[int, MoleculeFeatures] = field(default_factory=dict)
    zeroed: tuple[str, ...] = ()
    against: str = MODEL


def make_variants(
    features: Mapping[int, MoleculeFeatures], identity: Mapping[int, str], seed: int, reliance: bool
) -> tuple[list[Variant], dict[str, int]]:
    """Return the ways to ask, and the counts of the pairing by size.

    The model and the wrong molecule (a baseline, drawn from all) always. With `reliance`: each
    modality removed, each alone (the paper's Table 7 has 1D alone), another molecule of the same
    size, atoms scattered at random, and Φ zeroed, also where the other view is gone: whether Φ
    varies says nothing about its use.

    Parameters
    ----------
    features
        Row → features of the molecules that are asked about.
    identity
        Row → canonical SMILES; a duplicate is not another molecule.
    """
    rows = list(features)
    wrong = wrong_molecules(rows, identity, seed)
    variants = [
        Variant(MODEL),
        Variant(WRONG_MOLECULE, molecules={row: features[other] for row, other in wrong.items()}),
    ]
    if not reliance:
        return variants, {}
    sizes = {row: f.num_atoms for row, f in features.items()}
    alike = same_size_molecules(rows, identity, sizes, seed)
    moved = {
        row: scatter_atoms(f, f"{seed} {identity[row]}")
        for row, f in features.items()
        if f.conformer.coordinates is not None and f.num_atoms > 1
    }
    variants += [
        Variant(SAME_SIZE, molecules={row: features[other] for row, other in alike.items()}),
        *(Variant(name, modalities) for name, modalities in WITHOUT.items()),
        *(Variant(name, modalities) for name, modalities in ALONE.items()),
        Variant(SCATTERED, molecules=moved),
        *(Variant(name, zeroed=relations) for name, relations in ZEROED.items()),
        *(
            Variant(name, WITHOUT[against], zeroed=relations, against=against)
            for name, (against, relations) in ZEROED_ALONE.items()
        ),
    ]
    gaps = [abs(sizes[row] - sizes[other]) for row, other in alike.items()]
    counts = {
        "molecules": len(gaps),
        "same_size": gaps.count(0),
        "nearest_size": len(gaps) - gaps.count(0),
        "largest_difference": max(gaps),
    }
    return variants, counts


def count_variants(reliance: bool) -> int:
    """Return how many variants `make_variants` makes."""
    return 2 + (len(WITHOUT) + len(ALONE) + len(ZEROED) + len(ZEROED_ALONE) + 2 if reliance else 0)


def scatter_atoms(features: MoleculeFeatures, key: str) -> MoleculeFeatures:
    """Return the features with every atom moved to a random place in a ball.

    The ball's volume is `VOLUME_PER_ATOM` Å³ times the number of atoms, so nothing of the conformer
    is left, neither shape nor size; hence no rotation or other change of it matters. The places are
    a function of `key` and the number of atoms.
    """
    count = features.num_atoms
    rng = np.random.default_rng(random.Random(key).getrandbits(64))
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = (3 * count * VOLUME_PER_ATOM / (4 * np.pi)) ** (1 / 3)
    places = direction * (radius * rng.random((count, 1)) ** (1 / 3))
    conformer = replace(features.conformer, coordinates=places.astype(np.float32))
    return replace(features, conformer=conformer)


@dataclass(frozen=True)
class Answers:
    """The answers of one variant, None where it was not asked; the questions whose input is that of
    the variant `against` which it is held."""

    texts: list[str | None]
    unchanged: frozenset[int] = frozenset()
    against: str = MODEL


def answer_variants(
    model: CollamoForConditionalGeneration,
    processor: CollamoProcessor,
    examples: Sequence[TaskExample],
    features: Mapping[int, MoleculeFeatures],
    variants: Sequence[Variant],
    journal: Journal,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Answers]:
    """Return the answers to `examples` by variant; one comes after what it is held against.

    A question is not asked (None) where the molecule has none of the modalities that the variant
    may see and the model reads. Where the variant changes nothing (no conformer to remove, no Φ to
    zero), the answer that it is held against stands. What the journal has is not asked again.
    """
    answers: dict[str, Answers] = {}
    named = {variant.name: variant for variant in variants}
    owned = _phi_of(model.config.projector_config)
    for variant in variants:
        rival = named[variant.against]
        asked: list[_Question] = []
        unchanged = {}
        for index, example in enumerate(examples):
            own = features[example.molecule]
            shown = variant.molecules.get(example.molecule, own)
            seen = seen_modalities(shown, variant.modalities, model.config.modalities)
            others = seen_modalities(own, rival.modalities, model.config.modalities)
            zeroed = any(owned.get(name) in seen for name in variant.zeroed)
            if variant is not rival and shown is own and seen == others and not zeroed:
                unchanged[index] = answers[rival.name].texts[index]
            elif seen:
                asked.append(_Question(index, shown, example.question))
        texts = unchanged | _ask(
            model, processor, asked, variant, journal, batch_size, max_new_tokens, progress
        )
        if unchanged and progress is not None:
            progress(variant.name, len(unchanged))
        answers[variant.name] = Answers(
            [texts.get(i) for i in range(len(examples))], frozenset(unchanged), rival.name
        )
    return answers


def _phi_of(config: ProjectorConfig) -> dict[str, str]:
    """Return the Φ that the model has, each with the view it is of."""
    views = {"phi2d": "2d", "phi3d": "3d"}
    return {n: v for n, v in views.items() if config.collaboration and getattr(config, n)}


class _Question(NamedTuple):
    """A question as a variant asks it: its number among all, the molecule shown, the text."""

    number: int
    molecule: MoleculeFeatures
    text: str


def _ask(
    model: CollamoForConditionalGeneration,
    processor: CollamoProcessor,
    asked: Sequence[_Question],
    variant: Variant,
    journal: Journal,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[str, int], None] | None,
) -> dict[int, str | None]:
    """Return question → answer of what is asked, from the journal or the model."""

    def key(question: _Question) -> str:
        return f"{variant.name} {question.number}"

    left = [question for question in asked if key(question) not in journal]
    if progress is not None:
        progress(variant.name, len(asked) - len(left))
    with without_phi(model, variant.zeroed):
        answer(
            model,
            processor,
            [(question.molecule, question.text) for question in left],
            modalities=variant.modalities,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=None if progress is None else partial(progress, variant.name),
            keep=lambda b: journal.put({key(left[place]): text for place, text in b.items()}),
        )
    return {question.number: journal.get(key(question)) for question in asked}


def seen_modalities(
    features: MoleculeFeatures, allowed: Sequence[str], read: Sequence[str]
) -> frozenset[str]:
    """Return which modalities the molecule has, a variant allows and the model reads; every
    molecule has its graph."""
    absent: set[str] = set()
    if features.selfies is None:
        absent.add("1d")
    if features.conformer.coordinates is None:
        absent.add("3d")
    return (frozenset(allowed) & frozenset(read)) - absent
