"""torch.compile and torch.export of the model as people use them: `make test-compile`.

Apart from the other tests, because torch's code generator takes minutes.
"""

import copy
import json
import logging

import pytest
import torch
from model_helpers import SMALLEST, batches_of_all_sizes, build, compare_steps
from safetensors.torch import load_file
from trained import trained

from collamo.data.batch import MODALITIES, batch_molecules
from collamo.model.exporting import export_soft_tokens
from collamo.training.freezing import freeze_all_but
from collamo.training.stages import train


@pytest.fixture
def own(tokenizer):
    torch._dynamo.reset()
    # Of use to torch's own tools alone; written out for pytest it takes as long as the compiling.
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)
    return build(tokenizer, SMALLEST, num_hidden_layers=1)


@torch.no_grad()
def test_evaluation(own, features):
    model, processor = own
    compiled = torch.compile(model.eval(), fullgraph=True)
    for inputs in batches_of_all_sizes(processor, features)[:3]:
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "parts", [["mol_projector", "selfies_encoder"], None], ids=["frozen encoders", "everything"]
)
def test_training(own, features, parts):
    model, processor = own
    model.config.projector_config.modality_dropout = 0.0  # whose draws are the compiler's own
    if parts:
        freeze_all_but(model, parts)
    eager = copy.deepcopy(model.train())
    compiled = torch.compile(model, fullgraph=True)
    compare_steps(compiled, eager, batches_of_all_sizes(processor, features)[:3])


def losses(folder):
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


SHORT = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "1"]
COMPILED = ["--training.torch_compile", "true"]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_recipe(stage, tmp_path):
    """It learns what it learns without, goes on where it was ended, and its weights have the names
    that they always have."""
    run = trained()
    options = [*SHORT, "--per_device_train_batch_size", "8"]
    if stage == "stage1":
        options += ["--model.projector_config.modality_dropout", "0"]
    torch._dynamo.reset()
    train(run.recipe(stage, tmp_path / "eager", *options))
    train(run.recipe(stage, tmp_path / "compiled", *options, *COMPILED))
    torch.testing.assert_close(
        losses(tmp_path / "compiled"), losses(tmp_path / "eager"), rtol=1e-3, atol=1e-3
    )
    ours, theirs = (
        load_file(tmp_path / x / "final" / "model.safetensors") for x in ("compiled", "eager")
    )
    assert ours.keys() == theirs.keys()
    resumed = run.recipe(stage, tmp_path / "resumed", *options, *COMPILED, "--max_steps", "2")
    train(resumed)
    train(
        run.recipe(stage, tmp_path / "resumed", *options, *COMPILED),
        resume=True,
        allow_changed=["training.max_steps"],
    )
    again = load_file(tmp_path / "resumed" / "final" / "model.safetensors")
    for name, weight in ours.items():
        torch.testing.assert_close(again[name], weight)


@torch.no_grad()
def test_soft_tokens_are_exported_for_any_size(own, features, tmp_path):
    model, _ = own
    torch.export.save(export_soft_tokens(model.eval()), tmp_path / "soft_tokens.pt2")
    program = torch.export.load(tmp_path / "soft_tokens.pt2")
    assert not any("language_model" in name for name in program.state_dict)
    run = program.module()
    for names in (list(features), ["CCO"], ["C"], ["C", "CCO"]):
        for modalities in (MODALITIES, *([m] for m in MODALITIES)):
            batch = batch_molecules([[features[name]] for name in names], {"[C]": 2}, modalities)
            soft = run(**batch.flat().tensors())
            torch.testing.assert_close(soft, model.get_molecule_features(batch).squeeze(1))


def test_what_is_exported_is_in_evaluation_mode(own):
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        export_soft_tokens(own[0].train())
