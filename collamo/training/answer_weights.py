"""How much an answer weighs in the loss, by its number of tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AnswerWeight = Literal["length", "root", "one"]

UNSCORED = -100  # the label of a token that belongs to no answer, as everywhere in transformers
_EXPONENTS = {"length": 0.0, "root": 0.5, "one": 1.0}


def label_weights(labels: Tensor, answer_weight: AnswerWeight) -> Tensor:
    """[R,T] labels → float32 weights of their losses: w / n on each of the n tokens of an answer.

    w is n, √n or 1. An answer is a run of scored labels, since `CollamoProcessor` puts a prompt in
    front of each; the weight of what is not scored is 0.

    >>> label_weights(torch.tensor([[-100, 5, 6, -100, 7, 8, 9, 2]]), "one").tolist()
    [[0.0, 0.5, 0.5, 0.0, 0.25, 0.25, 0.25, 0.25]]
    """
    scored = labels != UNSCORED
    begins = scored & ~F.pad(scored, (1, 0))[:, :-1]
    answer = begins.flatten().cumsum(0)  # the number of each token's answer, from 1
    tokens = labels.new_zeros(len(answer) + 1, dtype=torch.float32)
    tokens = tokens.index_add(0, answer, scored.flatten().float())  # exact: sums of ones
    weights = tokens[answer].clamp(min=1) ** -_EXPONENTS[answer_weight]
    return torch.where(scored, weights.view_as(labels), 0.0)
