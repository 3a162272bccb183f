"""The full-size recipes: on a model without weights, and one step of both on random ones."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trained import CONFIGS, trained
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from collamo.cli import run
from collamo.data.prepared import PreparedData
from collamo.errors import MissingDependencyError, UsageError
from collamo.model import CollamoConfig, build_model, tiny_llama_config, train_tokenizer
from collamo.model.configuration import GinConfig
from collamo.model.encoders import GinEncoder
from collamo.model.weight_files import write_weights
from collamo.training import freezing, memory, stages, trainer
from collamo.training import plan as plans
from collamo.training.lora import add_lora, expected_with_lora
from collamo.training.recipe import load_recipe

FOLDER = CONFIGS / "llama2_7b"
STAGE_1, STAGE_2 = FOLDER / "stage1.yaml", FOLDER / "stage2.yaml"


@pytest.fixture
def skeleton():
    """The paper's sizes on the meta device: names and shapes, no memory."""
    return plans.skeleton(CollamoConfig.from_overrides("llama2-7b"))


def count(model, trained=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def test_stage_1_trains_projector_and_selfies_alone(skeleton):
    recipe = load_recipe(STAGE_1)
    assert recipe.training["max_steps"] == 64_000
    assert count(skeleton.model.language_model) + count(skeleton.lm_head) == 6_738_415_616
    parts = freezing.align_parts(recipe)
    freezing.freeze_all_but(skeleton, parts)
    projector, selfies = skeleton.model.mol_projector, skeleton.model.selfies_encoder
    assert count(skeleton, trained=True) == count(projector) + count(selfies)


def test_stage_2_trains_projector_and_lora_alone(skeleton):
    recipe = load_recipe(STAGE_2)
    assert recipe.training["max_steps"] == 150_000
    expected = expected_with_lora(skeleton, recipe.lora)
    projector = count(skeleton.model.mol_projector)
    adapted = add_lora(skeleton, recipe.lora)
    freezing.assert_trained(adapted, expected, recipe.stage)
    # Rank 8 beside q_proj and v_proj, 4096 × 4096, in 32 layers.
    assert count(adapted, trained=True) == projector + 32 * 2 * 8 * (4096 + 4096)


# --- the plan ---------------------------------------------------------------------------------


def by_name(plan):
    return {part.name: part for part in plan.parts}


def test_the_plan_of_both_stages():
    first, second = (plans.plan(load_recipe(path), path) for path in (STAGE_1, STAGE_2))
    for plan in (first, second):
        parts = by_name(plan)
        # A row of 4,096 for <mol> in the embeddings and in the output layer.
        language = parts["language_model"].parameters + parts["lm_head"].parameters
        assert language == 6_738_415_616 + 2 * 4096
        assert parts["language_model"].weights == 2 * parts["language_model"].parameters
        assert parts["language_model"].trained == parts["conformer_encoder"].trained == 0
    projector = by_name(first)["mol_projector"]
    assert projector.trained == projector.parameters == by_name(second)["mol_projector"].trained
    held = (projector.weights, projector.gradients, projector.optimizer)
    assert held == tuple(k * projector.parameters for k in (4, 4, 8))
    # peft keeps the projector that was there, too.
    kept = by_name(second)["mol_projector"]
    assert kept.parameters == 2 * kept.trained
    assert by_name(second)["lora"].trained == 32 * 2 * 8 * (4096 + 4096)
    assert "stage1" in " ".join(second.notes)
    assert second.activations > first.activations
    for name in ("parameters", "weights", "optimizer"):
        assert getattr(second.total, name) == sum(getattr(p, name) for p in second.parts)


def test_what_a_plan_depends_on():
    recipe = load_recipe(STAGE_1)
    whole = plans.plan(recipe, STAGE_1)
    quarter = plans.plan(dataclasses.replace(recipe, quantization="4bit"), STAGE_1)
    linear = whole.parts[-2].parameters - 32001 * 4096 - 65 * 4096  # embeddings, norms
    saved = by_name(whole)["language_model"].weights - by_name(quarter)["language_model"].weights
    assert saved == pytest.approx((2 - 0.516) * linear, rel=1e-3)
    thrifty = {**recipe.training, "gradient_checkpointing": True}
    checkpointed = plans.plan(dataclasses.replace(recipe, training=thrifty), STAGE_1)
    assert checkpointed.activations < whole.activations / 3
    assert checkpointed.needed < whole.needed


def test_the_plan_of_many_gpus():
    plan = plans.plan(load_recipe(STAGE_2), STAGE_2)
    copied, cut = (plans.spread(plan, 8, strategy) for strategy in ("ddp", "fsdp2"))
    assert copied.parts == plan.parts
    assert copied.needed - plan.needed == pytest.approx(1.1 * plan.total.gradients)
    assert cut.total.weights == pytest.approx(plan.total.weights / 8)
    assert cut.total.optimizer == pytest.approx(plan.total.optimizer / 8, abs=8)
    # Brought together: two of 32 layers of half-precision numbers at least, and the projector.
    language, projector = by_name(plan)["language_model"], by_name(plan)["mol_projector"]
    assert cut.passing > language.weights / 16 + projector.weights + projector.gradients
    # Each GPU has activations of its own; all else falls to less than a third.
    assert cut.activations == plan.activations
    rest = [p.needed - 1.1 * p.activations for p in (cut, plan)]
    assert rest[0] < rest[1] / 3
    assert plans.spread(plan, 1, "fsdp2") == plan
    with pytest.raises(UsageError, match=r"'fsdp' is none of ddp, fsdp2 \(did you mean 'fsdp2'"):
        plans.spread(plan, 8, "fsdp")
    with pytest.raises(UsageError, match="at least 1"):
        plans.spread(plan, 0, "ddp")


def test_what_cannot_be_planned(tmp_path):
    stage_2 = tmp_path / "stage2.yaml"
    stage_2.write_text(STAGE_2.read_text())
    with pytest.raises(MissingDependencyError, match=r"stage1/final' is not there, nor a recipe"):
        plans.plan(load_recipe(stage_2), stage_2)
    unknown = load_recipe(STAGE_1, ["--llm", "nobody/knows-7b"])
    with pytest.raises(MissingDependencyError, match=r"sizes of 'nobody/knows-7b' .*config\.json"):
        plans.plan(unknown, STAGE_1)
    with pytest.raises(UsageError, match="language_model"):
        plans.plan(load_recipe(CONFIGS / "tiny_lm.yaml"))


def test_the_sizes_of_another_model_come_from_its_folder(tmp_path):
    tiny_llama_config(300).save_pretrained(tmp_path)
    plan = plans.plan(load_recipe(CONFIGS / "stage1.yaml", ["--llm", str(tmp_path)]))
    language = by_name(plan)["language_model"]
    assert language.parameters == count(LlamaForCausalLM(tiny_llama_config(300)))
    assert "encoders train too" in " ".join(plan.notes)


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ((), "No GPU here. It fits: rtx4090, l40s"),
        (("--gpu", "a10"), "It does not fit a10 (22.5 GiB)"),
        (("--gpu", "80"), "It fits 80 GiB"),
        (("--gpu", "a10", "--gpus", "8", "--strategy", "fsdp2"), "It fits a10 (22.5 GiB)"),
    ],
)
def test_the_doctor_shows_the_plan(capsys, options, verdict, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["doctor", "--plan", str(STAGE_2), *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    language = "1.54" if "fsdp2" in options else "12.31"
    assert f"language_model 6,607,347,712 0 {language} 0.00 0.00" in out
    assert "lora 4,194,304 4,194,304" in out
    assert verdict in out


def test_a_gpu_nobody_knows(capsys):
    assert run(["doctor", "--plan", str(STAGE_2), "--gpu", "h10"]) == 2
    assert "did you mean 'h100'" in capsys.readouterr().err
    assert run(["doctor", "--gpu", "h100"]) == 2
    assert "only with --plan" in capsys.readouterr().err


def test_a_plan_takes_what_training_takes(tmp_path):
    """Also where the recipe goes on from what another one will build."""
    llm, gin = tmp_path / "llm", tmp_path / "gin"
    tiny_llama_config(300).save_pretrained(llm)
    gin.mkdir()
    encoder = GinEncoder(GinConfig(num_layers=3, hidden_size=24))
    encoder.config.save_pretrained(gin)
    write_weights(encoder.state_dict(), gin / "model.safetensors", {})
    options = ["--llm", str(llm), "--gin", str(gin), "--unimol=not_here.pt", "--max_steps", "3"]
    for path, stage in ((STAGE_1, "align"), (STAGE_2, "tune")):
        plan = plans.plan_file(path, options)
        assert plan.title == f"stage {stage} on {llm}"
        language = by_name(plan)["language_model"].parameters
        assert language == count(LlamaForCausalLM(tiny_llama_config(300)))
        assert by_name(plan)["graph_encoder"].parameters == count(encoder)
        assert "unimol 'not_here.pt' is not here; planned with the sizes" in " ".join(plan.notes)


def test_a_plan_refuses_what_training_would_ignore(tmp_path):
    (tmp_path / "config.json").touch()
    recipe = tmp_path / "stage2.yaml"
    recipe.write_text(f"stage: tune\ndata: d\noutput: o\ninit_from: {tmp_path}\n")
    with pytest.raises(UsageError, match="fixes what it was built from; drop --llm, --gin"):
        plans.plan_file(recipe, ["--llm", "x", "--gin", "y"])
    with pytest.raises(UsageError, match="did you mean 'unimol'"):
        plans.plan_file(STAGE_1, ["--unimoll", "x"])


# --- one step at full width -----------------------------------------------------------------------


def held(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def kept_by_backward(model, step):
    """Run `step`; the bytes of what autograd kept meanwhile, beside the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(size for size, _ in kept.values())


class WideProducts(TorchDispatchMode):
    """Matrix products of bfloat16 by way of float32: what is kept is the same.

    Of its own a processor without bfloat16 took more than half an hour for one step.
    """

    NAMES = "mm", "addmm", "bmm", "linear", "matmul"  # the latter two without autograd
    PRODUCTS = frozenset(getattr(torch.ops.aten, name).default for name in NAMES)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in self.PRODUCTS or args[0].dtype != torch.bfloat16:
            return function(*args, **(kwargs or {}))
        wide = (x.float() if isinstance(x, torch.Tensor) else x for x in args)
        return function(*wide, **(kwargs or {})).bfloat16()


@pytest.fixture(scope="module")
def full_width():
    """LLaMA-2-7B with one of its 32 layers and random weights in bfloat16: 1.2 GB with the rest."""
    tokenizer = train_tokenizer(["How many hydroxyl groups does it have? 12.5"] * 9, 300)
    text = {**CollamoConfig.from_overrides("llama2-7b").text_config.to_dict()}
    config = LlamaConfig(**{**text, "num_hidden_layers": 1})
    source = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return build_model((source, tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "tune"])
def test_one_step_at_full_width(full_width, stage, tmp_path, monkeypatch):
    """What trains is what is meant to, and the plan's bytes are those that are there.

    Weights, gradients and moments must be exactly the plan's. What autograd keeps may be 0.75 to
    1.33 times the estimate: shapes outside the language model are approximated.
    """
    model, processor = full_width
    config = model.to(torch.bfloat16).config
    path = STAGE_1 if stage == "align" else STAGE_2
    options = ("--max_steps=1", "--save_strategy=no", "--use_cpu=true", "--report_to=none")
    options += (f"--data={trained().data}", f"--output={tmp_path}")
    recipe = load_recipe(path, options)
    if stage == "align":
        parts = freezing.align_parts(recipe)
        freezing.freeze_all_but(model, parts)
        expected = {n for n, _ in model.named_parameters() if freezing.part_of(n) in parts}
    else:
        expected = expected_with_lora(model, recipe.lora)
        model = add_lora(model, recipe.lora)
    planned = memory.count(model, torch.bfloat16, four_bits=False, stage=stage)
    seen = {}
    step = trainer.StageTrainer.training_step

    def watched(self, wrapped, inputs, *args):
        shapes = {name: x.shape for name, x in inputs.items() if isinstance(x, torch.Tensor)}
        seen.update(trainer=self, shapes=shapes)
        seen.update(scored=int((inputs["labels"] != -100).sum()))
        found = []
        seen["kept"] = kept_by_backward(
            model, lambda: found.append(step(self, wrapped, inputs, *args))
        )
        seen["gradients"] = held(p.grad for p in model.parameters() if p.grad is not None)
        return found[0]

    monkeypatch.setattr(trainer.StageTrainer, "training_step", watched)
    with WideProducts():
        stages._fit(recipe, model, processor, PreparedData.open(trained().data), expected, None)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == expected
    assert held(model.parameters()) == sum(part.weights for part in planned)
    assert seen["gradients"] == sum(part.gradients for part in planned)
    moments = seen["trainer"].optimizer.optimizer.state.values()
    assert held(m for s in moments for m in s.values() if m.dim()) == sum(
        part.optimizer for part in planned
    )
    rows, tokens = seen["shapes"]["input_ids"]
    atoms, length = seen["shapes"]["atom_valid"][2], seen["shapes"]["selfies_ids"][2]
    batch = memory.PlannedBatch(rows, tokens, seen["scored"], soft=32, branches=2 * atoms + length)
    lora = recipe.lora if stage == "tune" else None
    trained_numbers = sum(part.trained for part in planned)
    estimate = memory.activation_bytes(config, batch, trained_numbers, lora=lora)
    assert 0.75 < seen["kept"] / estimate < 1.33
