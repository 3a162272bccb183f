"""The identity of a checkpoint before a split."""

from collamo.evaluation.examine.split import weights_sha256


def test_the_hash_of_weights_sees_a_bit_and_no_storage():
    import torch

    model = torch.nn.Linear(3, 2)
    before = weights_sha256(model)
    model.weight.data = model.weight.data.t().contiguous().t()
    assert weights_sha256(model) == before
    model.weight.data[0, 0] += 1e-7
    assert weights_sha256(model) != before
    assert weights_sha256(model.bfloat16()) != before
