"""Distances in Å and their gradient."""

import math

import pytest
import torch

import collamo_kernels as ck


def test_by_hand():
    x = torch.tensor([[[0.0, 0, 0], [3.0, 4.0, 0.0], [3.0, 4.0, 12.0]]])
    assert ck.pairwise_distances(x)[0].tolist() == [[0, 5, 13], [5, 0, 12], [13, 12, 0]]


def test_no_digits_lost_far_from_the_origin():
    x = torch.tensor([[[1000.0, 1000.0, 1000.0], [1000.0, 1000.0, 1001.5]]])
    assert ck.pairwise_distances(x)[0, 0, 1] == 1.5


def test_padding_is_zero_whatever_stands_there():
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False], [False] * 4])
    wanted = ck.pairwise_distances(x) * (valid[:, :, None] & valid[:, None, :])
    x[~valid] = math.nan
    x.requires_grad_()
    distance = ck.pairwise_distances(x, valid)
    assert torch.equal(distance, wanted)
    (gradient,) = torch.autograd.grad(distance, x, torch.randn_like(distance))
    assert gradient[~valid].abs().max() == 0
    assert gradient.isfinite().all()


def test_gradient_is_zero_where_atoms_meet():
    x = torch.tensor([[[1.0, 2, 3], [1.0, 2, 3], [0.0, 0, 0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(ck.pairwise_distances(x)[0, 0, 1], x)
    assert gradient.abs().max() == 0


def test_gradcheck():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    assert torch.autograd.gradcheck(ck.pairwise_distances, (x, valid))
    assert torch.autograd.gradgradcheck(ck.pairwise_distances, (x, valid))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3)])
def test_nothing_to_measure(shape):
    assert ck.pairwise_distances(torch.zeros(shape)).shape == (*shape[:2], shape[1])


@pytest.mark.parametrize(
    ("coordinates", "valid", "message"),
    [
        (torch.zeros(4, 3), None, "coordinates has shape"),
        (torch.zeros(1, 4, 2), None, "coordinates has shape"),
        (torch.zeros(1, 4, 3).half(), None, "coordinates has dtype"),
        (torch.zeros(1, 4, 3), torch.ones(1, 4), "valid has dtype"),
        (torch.zeros(1, 4, 3), torch.ones(1, 3) > 0, "valid has shape"),
        (torch.zeros(1, 4, 3), torch.ones(1, 4, device="meta") > 0, "valid is on meta"),
    ],
)
def test_wrong_input_is_named(coordinates, valid, message):
    with pytest.raises(ValueError, match=message):
        ck.pairwise_distances(coordinates, valid)
