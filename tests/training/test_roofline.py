"""FLOPs of a step as PyTorch counts them, and the time that a plan makes of them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trained import CONFIGS
from transformers import LlamaConfig, LlamaForCausalLM

from collamo.cli.plan import _pace
from collamo.model import CollamoConfig
from collamo.training import plan as plans
from collamo.training.freezing import freeze_all_but
from collamo.training.recipe import load_recipe
from collamo.training.roofline import OPTIMIZER_BYTES, PEAKS, Step, least_time, peak_of, rates

ROWS, TOKENS = 3, 24


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_language_model_are_those_that_torch_counts(trained, tied):
    """Frozen, the gradient passes through it to what comes before, as from a projector."""
    config = LlamaConfig(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).requires_grad_(trained)
    embeds = torch.randn(ROWS, TOKENS, 64, requires_grad=True)
    labels = torch.randint(160, (ROWS, TOKENS))
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeds, labels=labels).loss.backward()
    cost = rates(model, config)
    tokens, pairs = ROWS * TOKENS, ROWS * TOKENS**2
    # torch multiplies all pairs of tokens, where half of them are enough.
    needed = cost.flops(tokens, tokens, 2 * pairs, 0)
    assert counter.get_total_flops() == pytest.approx(needed, rel=0.01)


def test_encoders_take_two_flops_a_weight_and_six_where_they_train():
    model = plans.skeleton(CollamoConfig.from_overrides("llama2-7b"))
    text, encoder = model.config.text_config, model.model.conformer_encoder
    cost = []
    for parts in (("mol_projector",), ("mol_projector", "conformer_encoder")):
        freeze_all_but(model, parts)
        cost.append(rates(model, text))
    frozen, trains = cost
    weights = sum(p.numel() for p in encoder.parameters() if p.dim() > 1)
    tables = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, torch.nn.Embedding))
    assert trains.atom - frozen.atom == 4 * (weights - tables)
    assert trains.token == frozen.token
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert frozen.token == 4 * matrices
    assert frozen.scored == 4 * 4096 * text.vocab_size


def test_what_goes_on_side_by_side_is_not_added_up():
    peak = PEAKS["h200"]
    step = Step(flops=1e12, again=0, memory=9.6e9, optimizer=4.8e9, gradients=4.5e9, host=1e-6)
    one, limit = least_time(step.seconds(peak))
    assert (limit, one) == ("weights and activations", pytest.approx(2e-3 + 1e-3))
    eight, _ = least_time(step.seconds(peak, 8))
    assert eight == pytest.approx(one + 2 * 7 / 8 * 0.01)
    slow = Step(flops=1e12, again=0, memory=0, optimizer=0, gradients=0, host=1)
    assert least_time(slow.seconds(peak)) == (1, "launches by the host")


def test_the_plan_predicts_a_step_in_half_precision():
    path = CONFIGS / "llama2_7b" / "stage1.yaml"
    plan = plans.plan(load_recipe(path), path)
    assert plan.step.optimizer == OPTIMIZER_BYTES * plan.total.trained
    assert plan.step.gradients == 4 * plan.total.trained
    tokens = plan.batch.rows * plan.batch.tokens
    assert plan.step.flops > 4 * 6.5e9 * tokens
    checkpointed = ["--gradient_checkpointing=true"]
    again = plans.plan(load_recipe(path, checkpointed), path).step
    assert again.flops == plan.step.flops
    assert again.again == pytest.approx(plan.step.flops / 2, rel=0.02)
    one, eight = _pace(plan, "H200")
    assert one.startswith("On 1 × H200 (derived, not measured): ")
    assert "limited by products of matrices" in eight
    assert "gradients between GPUs" in eight
    assert _pace(plan, "24 GiB") == []
    float32 = plans.plan(load_recipe(path, ["--bf16=false", "--dtype=float32"]), path)
    assert _pace(float32, "h200") == []


def test_a_gpu_is_known_by_the_name_that_torch_gives():
    assert peak_of("NVIDIA H200") is PEAKS["h200"]
    assert peak_of("NVIDIA A10") is PEAKS["a10"]
    assert peak_of("NVIDIA A100-SXM4-80GB") is PEAKS["a100-80gb"]
    assert peak_of("NVIDIA H100 PCIe") is None  # a slower one
