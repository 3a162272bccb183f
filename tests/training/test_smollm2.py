"""The recipes for SmolLM2: the two that are compared train the same way."""

import dataclasses

from trained import CONFIGS

from collamo.training.recipe import load_recipe

FOLDER = CONFIGS / "smollm2"


def test_the_baseline_differs_in_what_stands_for_a_molecule_alone():
    tuned, baseline = (load_recipe(FOLDER / f"{name}.yaml") for name in ("stage2", "smiles"))
    fields = {f.name for f in dataclasses.fields(tuned)}
    differing = {n for n in fields if getattr(tuned, n) != getattr(baseline, n)}
    assert differing == {
        *("output", "molecules_as"),
        *("init_from", "llm", "dtype"),  # what each begins with
        *("projector_learning_rate", "relation_rates"),  # the baseline has no projector
    }


def test_the_stages_follow_on_from_each_other():
    first, second = (load_recipe(FOLDER / f"stage{i}.yaml") for i in (1, 2))
    assert second.init_from == f"{first.output}/final"
    assert first.llm == "smollm2"
    assert first.data == second.data
    assert first.dtype == "bfloat16"
