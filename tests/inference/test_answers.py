"""The one place where a model answers."""

import pytest
from trained import trained

from collamo.inference.answers import answer
from collamo.model import load_checkpoint


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_no_answer_runs_past_the_last_position(monkeypatch):
    model, processor = load_checkpoint(trained().checkpoint)
    question = "How many rings does it have?"
    prompt = processor(processor.prompt(question), ["C"])["input_ids"].shape[1]
    lengths = []

    def no_end(**inputs):  # an untrained model may stop by itself
        lengths.append(inputs["max_new_tokens"])
        return inputs["input_ids"]

    monkeypatch.setattr(model, "generate", no_end)
    for positions, longest in ((prompt + 3, 3), (prompt + 100, 8)):
        processor.tokenizer.model_max_length = positions
        answer(model, processor, [("C", question)], max_new_tokens=8)
        assert lengths.pop() == longest
