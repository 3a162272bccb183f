import pytest
from trained import trained

from collamo.errors import CollamoError
from collamo.training import stages
from collamo.training.freezing import PROJECTOR, assert_trained, freeze_all_but, part_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def model():
    """The model that stage 1 begins with."""
    model, _, _ = stages._start(trained().recipe("stage1"))
    return model


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_frozen_encoders_leave_the_projector_alone_in_alignment(model):
    freeze_all_but(model, (PROJECTOR,))
    assert trainable(model) == {
        n for n, _ in model.named_parameters() if n.startswith("model.mol_projector.")
    }
    # The learned queries are among them: PEFT and freezing by name both miss a bare parameter.
    assert any("quer" in name for name in trainable(model))


def test_the_wrong_parameters_are_named(model):
    freeze_all_but(model, (PROJECTOR, "graph_encoder"))
    expected = {n for n, _ in model.named_parameters() if part_of(n) == PROJECTOR}
    with pytest.raises(CollamoError, match=r"unexpected: model\.graph_encoder\.\S+.* …"):
        assert_trained(model, expected, "align")
    freeze_all_but(model, ())
    with pytest.raises(CollamoError, match=r"stage align would train .* missing: model\.mol_proj"):
        assert_trained(model, expected, "align")
