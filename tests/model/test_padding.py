"""What a compiled graph does with padding, run here without a compiler; see `stays_padded`."""

import copy

import pytest
import torch
from model_helpers import build

from collamo.data.batch import MODALITIES, batch_molecules
from collamo.model import projector
from collamo.model.encoders import gin, packing
from collamo.model.encoders.gin import AtomBatchNorm


@pytest.fixture
def keep_padding(monkeypatch):
    def keep():
        for module in (gin, packing, projector):
            monkeypatch.setattr(module, "stays_padded", lambda: True)

    return keep


SETS = [MODALITIES, *([m] for m in MODALITIES)]


@pytest.mark.parametrize("modalities", SETS, ids=["all", *MODALITIES])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("flavour", ["ogb", "pretrain-gnns"])
def test_padding_changes_nothing(tokenizer, features, keep_padding, modalities, learns, flavour):
    """Soft tokens, gradients, and the statistics of batch norms."""
    collaboration = flavour == "ogb"  # without it each query has columns of its own
    overrides = {"gin_config.flavour": flavour, "projector_config.collaboration": collaboration}
    packed, _ = build(tokenizer, overrides)
    packed.config.projector_config.modality_dropout = 0.0
    packed.train(learns)
    padded = copy.deepcopy(packed)
    # A molecule without a bond, two fragments, and a prompt with fewer molecules.
    rows = [[x] for x in features.values()]
    rows[0] = rows[0] * 2
    batch = batch_molecules(rows, {"[C]": 2, "[O]": 3}, modalities)

    def run(model):
        with torch.set_grad_enabled(learns):
            soft = model.get_molecule_features(batch)
        if learns:
            torch.manual_seed(1)
            soft.backward(torch.randn(soft.shape))
        return soft

    expected = run(packed)
    keep_padding()
    torch.testing.assert_close(run(padded), expected)
    if learns:
        for mine, theirs in zip(padded.parameters(), packed.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            if mine.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(padded.buffers(), packed.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batch_norm_passes_over_padding(count):
    torch.manual_seed(0)
    padded, plain = AtomBatchNorm(4), AtomBatchNorm(4)
    real = torch.arange(7) < count
    x = torch.randn(7, 4)
    x[~real] = 1e6
    y = padded(x, real)[real]
    torch.testing.assert_close(y, plain(x[real]) if count else y)
    for mine, theirs in zip(padded.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
