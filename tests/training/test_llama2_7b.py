"""The full-size recipes, on a model without weights."""

import pytest
import torch
from trained import CONFIGS

from collamo.model import CollamoConfig, CollamoForConditionalGeneration
from collamo.training import stages
from collamo.training.recipe import load_recipe


@pytest.fixture
def skeleton():
    """The paper's sizes on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return CollamoForConditionalGeneration(CollamoConfig.from_overrides("llama2-7b"))


def count(model, trained=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def test_stage_1_trains_projector_and_selfies_alone(skeleton):
    recipe = load_recipe(CONFIGS / "llama2_7b" / "stage1.yaml")
    assert recipe.training["max_steps"] == 64_000
    assert count(skeleton.model.language_model) + count(skeleton.lm_head) == 6_738_415_616
    parts = stages.align_parts(recipe)
    stages.freeze_all_but(skeleton, parts)
    projector, selfies = skeleton.model.mol_projector, skeleton.model.selfies_encoder
    assert count(skeleton, trained=True) == count(projector) + count(selfies)


def test_stage_2_trains_projector_and_lora_alone(skeleton):
    recipe = load_recipe(CONFIGS / "llama2_7b" / "stage2.yaml")
    assert recipe.training["max_steps"] == 150_000
    expected = stages.expected_with_lora(skeleton, recipe.lora)
    projector = count(skeleton.model.mol_projector)
    adapted = stages.add_lora(skeleton, recipe.lora)
    stages.assert_trained(adapted, expected, recipe.stage)
    # Rank 8 beside q_proj and v_proj, 4096 × 4096, in 32 layers.
    assert count(adapted, trained=True) == projector + 32 * 2 * 8 * (4096 + 4096)
