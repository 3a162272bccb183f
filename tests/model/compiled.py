"""torch.compile and torch.export of the model as people use them: `make test-compile`.

Apart from the other tests, because torch's code generator takes minutes. Of the graphs that
test_compiled_model.py counts it makes here the one for any sizes, and in a recipe all.
"""

import copy
import logging
import shutil

import pytest
import torch
from model_helpers import SMALLEST, batches_of_all_sizes, build, compare_steps
from safetensors.torch import load_file
from torch._inductor import config as inductor
from trained import NUDGES, losses_of, trained

from collamo.data.batch import MODALITIES, batch_molecules
from collamo.model.exporting import export_soft_tokens
from collamo.training.freezing import freeze_all_but
from collamo_kernels.testing import assert_accurate


@pytest.fixture(autouse=True)
def _compiler():
    torch._dynamo.reset()
    # Of use to torch's own tools alone; written out for pytest it takes as long as the compiling.
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)
    with inductor.patch(fallback_random=True):  # else it draws, and hides modalities, by itself
        yield


@pytest.fixture
def own(tokenizer):
    return build(tokenizer, SMALLEST, num_hidden_layers=1)


@torch.no_grad()
def test_evaluation(own, features):
    model, processor = own
    compiled = torch.compile(model.eval(), fullgraph=True, dynamic=True)
    for inputs in batches_of_all_sizes(processor, features)[:3]:
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "parts", [["mol_projector", "selfies_encoder"], None], ids=["frozen encoders", "everything"]
)
def test_training(own, features, parts):
    model, processor = own
    if parts:
        freeze_all_but(model, parts)
    eager = copy.deepcopy(model.train())
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    compare_steps(compiled, eager, batches_of_all_sizes(processor, features)[:3])


STEPS = 4


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_recipe(stage, tmp_path):
    """It learns what it learns without, goes on where it was ended, and its weights have the names
    that they always have.

    The yardstick are trainings without the compiler that start one rounding away.
    """
    sizes = [f"--max_steps={STEPS}", f"--save_steps={STEPS // 2}"]
    sizes += ["--per_device_train_batch_size=8"]

    def losses(name, *more, nudge=None, **how):
        torch._dynamo.reset()
        return losses_of(trained().recipe(stage, tmp_path / name, *sizes, *more), nudge, **how)

    others = torch.stack([losses(name, nudge=nudge) for name, nudge in NUDGES.items()])
    eager = losses("eager").expand_as(others)
    compiled = losses("compiled", "--training.torch_compile=true")
    names = [
        load_file(tmp_path / x / "final" / "model.safetensors").keys()
        for x in ("compiled", "eager")
    ]
    assert names[0] == names[1]
    for made in ("final", f"checkpoint-{STEPS}"):
        shutil.rmtree(tmp_path / "compiled" / made)
    rest = losses("compiled", "--training.torch_compile=true", resume=True)
    assert len(rest) == STEPS // 2
    for found in (compiled, torch.cat([compiled[: -len(rest)], rest])):
        for step in range(1, STEPS + 1):
            ours = found.expand_as(others)[:, :step]
            assert_accurate(ours, others[:, :step], eager[:, :step], name=f"step {step}")


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
