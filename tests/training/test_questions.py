from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest

from collamo.data.mapped_file import MappedFile, block_digests
from collamo.data.mapped_questions import MappedQuestions, write_questions
from collamo.data.shards import TASK_SCHEMA
from collamo.data.tasks import TaskExample
from collamo.errors import UsageError
from collamo.training.questions import QuestionDataset


def questions_of(examples, folder):
    """Return the questions as they are read from a prepared folder, of molecules of row atoms."""
    table = pa.Table.from_pylist(list(map(asdict, examples)), schema=TASK_SCHEMA)
    kinds = write_questions(folder, "train", [table], atoms=lambda rows: rows)
    files = {
        path.name: MappedFile(path, path.stat().st_size, block_digests(path))
        for path in folder.iterdir()
    }
    return MappedQuestions(files, "train", kinds)


@dataclass(frozen=True)
class Features:
    """Of a molecule with as many atoms as its row number."""

    row: int

    @property
    def atom_features(self):
        return np.zeros((self.row, 9), np.uint8)


class Data:
    """Three molecules with 5, 2 and 1 questions, and what `PreparedData` offers of them."""

    def questions(self, split):
        with TemporaryDirectory() as folder:  # what is mapped stays readable
            return questions_of(self.tasks(split), Path(folder))

    def tasks(self, split):
        for molecule, count in ((4, 5), (7, 2), (9, 1)):
            for i in range(count):
                task = "caption" if i == 0 else "motif_count"
                yield TaskExample(molecule, task, f"t{i}", f"question {i}?" + "!" * i, str(i))

    def features(self, row):
        return Features(row)


def dataset(per_molecule=2, names=None, seed=0):
    return QuestionDataset(Data(), "train", names=names, per_molecule=per_molecule, seed=seed)


def epoch_of(data, epoch):
    return [e for i in range(len(data)) for e in data.examples(epoch * len(data) + i)]


def test_an_epoch_asks_every_molecule_as_often_as_it_can():
    data = dataset()
    assert len(data) == 3
    for epoch in range(20):
        examples = epoch_of(data, epoch)
        assert [e.molecule for e in examples] == [4, 4, 7, 7, 9]
        assert len({(e.molecule, e.target) for e in examples}) == 5  # none twice


def test_questions_change_with_the_epoch_and_follow_the_seed_alone():
    data = dataset()
    draws = [tuple(e.target for e in epoch_of(data, epoch)) for epoch in range(10)]
    assert len(set(draws)) > 3
    again = dataset()
    assert [tuple(e.target for e in epoch_of(again, i)) for i in reversed(range(10))] == draws[::-1]
    assert draws != [tuple(e.target for e in epoch_of(dataset(seed=1), i)) for i in range(10)]


def test_every_question_gets_its_turn():
    data = dataset(per_molecule=1)
    seen = {e.target for epoch in range(60) for e in epoch_of(data, epoch) if e.molecule == 4}
    assert seen == {"t0", "t1", "t2", "t3", "t4"}


def test_a_share_thins_a_task_out_and_never_empties_a_molecule():
    data = QuestionDataset(
        Data(), "train", names=None, per_molecule=9, seed=0, shares={"caption": 0.25}
    )
    drawn = [epoch_of(data, epoch) for epoch in range(400)]
    captions = sum(e.task == "caption" for examples in drawn for e in examples if e.molecule == 4)
    assert 60 < captions < 140  # 400 × 0.25, four standard deviations each way
    assert all(sum(e.task == "motif_count" for e in examples) == 5 for examples in drawn)
    # Molecule 9 has a caption and nothing else.
    assert all(sum(e.molecule == 9 for e in examples) == 1 for examples in drawn)
    assert drawn[3] == epoch_of(data, 3)


class Answers(Data):
    """The same questions, with answers of 5, 4, 3 … characters."""

    def tasks(self, split):
        for example in super().tasks(split):
            yield replace(example, answer="x" * (5 - int(example.answer)))


def test_long_answers_are_left_out_but_for_the_shortest_of_a_molecule_without_others():
    data = QuestionDataset(Answers(), "train", names=None, per_molecule=9, seed=0, longest_answer=3)
    asked = {(e.molecule, len(e.answer)) for e in epoch_of(data, 0)}
    assert asked == {(4, 3), (4, 2), (4, 1), (7, 4), (9, 5)}


def test_a_share_of_an_unknown_task_is_a_usage_error():
    with pytest.raises(UsageError, match=r"tasks.shares: the train split has no task 'captoin'"):
        QuestionDataset(
            Data(), "train", names=None, per_molecule=1, seed=0, shares={"captoin": 0.5}
        )


def test_items_are_features_questions_answers():
    data = dataset(per_molecule=9, names=("caption",))
    assert len(data) == 3
    assert data[0] == (4, Features(4), ["question 0?"], ["0"], None)
    assert data.length(0) == 4 * 4 + len("question 0?") + len("0")


def test_an_unknown_task_is_a_usage_error():
    with pytest.raises(UsageError, match=r"no task 'captions' \(did you mean 'caption'\?\)"):
        dataset(names=("captions",))
