"""The weight of an answer in the loss: by hand, over accumulated batches, over devices."""

import dataclasses
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from trained import trained

from collamo.errors import UsageError
from collamo.training import stages
from collamo.training.answer_weights import label_weights
from collamo.training.questions import QuestionCollator, QuestionDataset
from collamo.training.recipe import parse_recipe
from collamo.training.trainer import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
# Two answers in a row, of 2 and 1 tokens; then one of 4 that ends where the row does.
LABELS = torch.tensor([[-100, 5, 2, -100, -100, 7, -100], [-100, -100, -100, 4, 5, 6, 2]])


@pytest.mark.parametrize(
    ("answer_weight", "answers"),
    [("length", [2, 1, 4]), ("root", [2**0.5, 1, 2]), ("one", [1, 1, 1])],
)
def test_an_answer_weighs_its_length_the_root_of_it_or_one(answer_weight, answers):
    weights = label_weights(LABELS, answer_weight)
    assert weights[LABELS == -100].eq(0).all()
    spans = weights[0, 1:3], weights[0, 5:6], weights[1, 3:]
    torch.testing.assert_close(torch.stack([s.sum() for s in spans]), torch.tensor(answers) * 1.0)
    assert all(span.eq(span[0]).all() for span in spans)


def test_nothing_scored_weighs_nothing():
    assert label_weights(torch.full((2, 3), -100), "root").eq(0).all()
    assert label_weights(torch.zeros(2, 0, dtype=torch.int64), "one").shape == (2, 0)


@pytest.fixture(scope="module")
def parts():
    """A trainer whose answers all weigh one, its collator, and ten dialogues of one to three."""
    run = trained()
    recipe = dataclasses.replace(run.recipe("stage2"), answer_weight="one")
    model, processor, data = stages._start(recipe)
    questions = [
        QuestionDataset(data, "train", names=None, per_molecule=count, seed=0) for count in (1, 3)
    ]
    collate = QuestionCollator(processor)
    trainer = make_trainer(
        recipe, model.eval(), processor, train=questions[0], validation=None, collator=collate
    )
    return trainer, collate, [questions[i // 7][i] for i in range(10)]


def test_the_loss_is_the_mean_over_answers(parts):
    trainer, collate, dialogues = parts
    batch = collate(dialogues)
    labels = batch["labels"]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        logits = trainer.model(**batch).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
    )
    scored = labels[:, 1:] != -100
    means = [
        losses[row, [column for column, _ in run]].mean()
        for row in range(len(labels))
        for inside, run in groupby(enumerate(scored[row]), key=lambda place: bool(place[1]))
        if inside
    ]
    assert len(means) == sum(len(dialogue.answers) for dialogue in dialogues)
    torch.testing.assert_close(loss, torch.stack(means).mean())


def test_accumulated_batches_give_the_loss_of_one(parts):
    """Seven dialogues of one answer and three of three: means of batches would weigh otherwise."""
    trainer, collate, dialogues = parts
    split = [collate(dialogues[:7]), collate(dialogues[7:])]
    whole = collate(dialogues)
    device = torch.device("cpu")
    answers = trainer._get_num_items_in_batch(split, device)
    assert answers == trainer._get_num_items_in_batch([whole], device)
    assert answers.item() == pytest.approx(16)
    with torch.no_grad():
        accumulated = sum(
            trainer.compute_loss(trainer.model, dict(b), False, answers) for b in split
        )
        loss = trainer.compute_loss(trainer.model, dict(whole), False, answers)
        alone = trainer.compute_loss(trainer.model, dict(whole))
    torch.testing.assert_close(accumulated, loss)
    torch.testing.assert_close(alone, loss)


def test_answers_are_counted_on_all_devices(parts, monkeypatch):
    trainer, collate, dialogues = parts
    batch, other = collate(dialogues[:7]), torch.tensor(9.0)
    gather = lambda count: torch.stack([count, other])  # noqa: E731
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(gather=gather))
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda _: 2))
    assert trainer._get_num_items_in_batch([batch], torch.device("cpu")).item() == 7 + 9


def test_plain_text_has_no_answers():
    with pytest.raises(UsageError, match="language_model has no answers; drop answer_weight"):
        parse_recipe(
            {"stage": "language_model", "data": "d", "output": "o", "answer_weight": "root"}
        )
