"""Does the model read the molecule? The same questions with less, or with another molecule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from collamo.evaluation.answers import ALL_MODALITIES, answer
from collamo.evaluation.report import MODEL, WRONG_MOLECULE

ONE_MODALITY = {f"{modality} only": (modality,) for modality in ALL_MODALITIES}


def answer_variants(
    model,
    processor,
    examples: Sequence,
    features: Mapping[int, object],
    wrong: Mapping[int, int],
    *,
    alone: bool = True,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, list[str | None]]:
    """Return the answers to `examples` by variant: the model, a wrong molecule, one modality.

    `features` gives each molecule's `MoleculeFeatures`, `wrong` another molecule for each. A
    question is not asked (None) where the molecule lacks the only modality a variant may see.
    """
    variants: dict[str, tuple[Mapping[int, int], tuple[str, ...]]] = {
        MODEL: ({}, ALL_MODALITIES),
        WRONG_MOLECULE: (wrong, ALL_MODALITIES),
    }
    if alone:
        variants |= {name: ({}, modalities) for name, modalities in ONE_MODALITY.items()}
    answers = {}
    for name, (swapped, modalities) in variants.items():
        shown = [features[swapped.get(e.molecule, e.molecule)] for e in examples]
        asked = [i for i, molecule in enumerate(shown) if has_any(molecule, modalities)]
        texts = answer(
            model,
            processor,
            [(shown[i], examples[i].question) for i in asked],
            modalities=modalities,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=None if progress is None else partial(progress, name),
        )
        found = dict(zip(asked, texts, strict=True))
        answers[name] = [found.get(i) for i in range(len(examples))]
    return answers


def has_any(features, modalities: Sequence[str]) -> bool:
    """Return whether the molecule has one of `modalities`; every molecule has its graph."""
    present = {
        "1d": features.selfies is not None,
        "2d": True,
        "3d": features.conformer.coordinates is not None,
    }
    return any(present[modality] for modality in modalities)
