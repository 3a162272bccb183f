import pytest
from trained import trained

from collamo.errors import UsageError
from collamo.training import stages
from collamo.training.freezing import assert_trained
from collamo.training.lora import add_lora, expected_with_lora
from collamo.training.recipe import LoraRecipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def model():
    """The model that stage 1 begins with."""
    model, _, _ = stages._start(trained().recipe("stage1"))
    return model


def test_lora_trains_two_matrices_per_target_and_the_whole_projector(model):
    projector = {n for n, _ in model.named_parameters() if ".mol_projector." in n}
    expected = expected_with_lora(model, LoraRecipe())
    adapted = add_lora(model, LoraRecipe())
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert names == expected
    lora = {n for n in names if "lora_" in n}
    assert len(lora) == 2 * 2 * 2  # layers × (q_proj, v_proj) × (A, B)
    assert all(".language_model." in n for n in lora)
    kept = {n.replace("modules_to_save.default.", "") for n in names - lora}
    assert kept == {f"base_model.model.{n}" for n in projector}
    assert_trained(adapted, expected, "tune")


def test_an_unknown_lora_target_is_a_usage_error(model):
    with pytest.raises(UsageError, match=r"no linear layer 'q_prj' \(did you mean 'q_proj'"):
        expected_with_lora(model, LoraRecipe(targets=("q_prj",)))
