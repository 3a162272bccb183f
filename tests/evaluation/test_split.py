import json

import pytest
from handmade import Example, count, logp

from collamo.evaluation.baselines import TrainStatistics
from collamo.evaluation.report import MODEL, MOST_COMMON, WRONG_MOLECULE
from collamo.evaluation.split import choose_questions, fixed_answers, make_report

COUNTS = [count(i, i % 3) for i in range(60)]
VALUES = [logp(i, float(i)) for i in range(60)]
TRAIN = TrainStatistics.of([*COUNTS, *VALUES])


def report_on(examples, right, wrong, fixed=True):
    answers = {MODEL: right, WRONG_MOLECULE: wrong}
    answers |= fixed_answers(examples, TRAIN) if fixed else {}
    smiles = {e.molecule: "C" for e in examples}
    return make_report(examples, answers, TRAIN, smiles, {"checkpoint": "x"})


def verdict_of(report, task):
    return next(v for v in report.verdicts if v.task == task)


def test_a_model_that_reads_the_molecule_beats_both_baselines():
    shifted = [str((i + 1) % 3) for i in range(60)]
    verdict = verdict_of(report_on(COUNTS, [e.answer for e in COUNTS], shifted), "motif_count")
    assert verdict.beats_both
    assert "beats both baselines" in verdict.sentence
    assert "NOT" not in verdict.sentence


def test_a_model_that_ignores_the_molecule_is_told_so():
    same = ["0"] * 60
    verdict = verdict_of(report_on(COUNTS, same, same), "motif_count")
    assert not verdict.beats_both
    assert "does NOT beat both baselines" in verdict.sentence
    assert "overlap" in verdict.sentence


def test_beating_one_baseline_is_not_beating_both():
    answers = [e.answer if e.molecule % 8 else "9" for e in COUNTS]
    verdict = verdict_of(report_on(COUNTS, answers, answers), "motif_count")
    assert verdict.beaten[MOST_COMMON]
    assert not verdict.beaten[WRONG_MOLECULE]
    assert not verdict.beats_both


def test_a_worse_model_is_called_worse():
    verdict = verdict_of(report_on(COUNTS, ["7"] * 60, [e.answer for e in COUNTS]), "motif_count")
    assert "is WORSE than the wrong molecule baseline" in verdict.sentence


def test_for_errors_less_is_better():
    far = [f"{(i + 30) % 60}" for i in range(60)]
    near = [f"{i + 0.5}" for i in range(60)]
    assert verdict_of(report_on(VALUES, near, far), "property_2d").beats_both
    assert not verdict_of(report_on(VALUES, far, near), "property_2d").beats_both


def test_nothing_to_score_is_no_victory():
    examples = [Example(0, "iupac_name", "iupac_name", "Name?", "ethanol")]
    report = report_on(examples, [None], ["x"])
    assert not report.verdicts[0].beats_both
    assert "cannot be compared" in report.verdicts[0].sentence


def test_files_hold_every_question_and_every_variant(tmp_path):
    report = report_on([*COUNTS, *VALUES], ["1"] * 120, ["2"] * 120)
    report.save(tmp_path)
    read = json.loads((tmp_path / "report.json").read_text())
    for task in ("motif_count", "property_2d"):
        scores = read["by_task"][task][MODEL]
        assert scores["questions"] == 60
        assert scores["scored"] + scores["unparsed"] + scores["skipped"] == 60
        low, value, high = (scores["metrics"]["exact_match"][k] for k in ("low", "value", "high"))
        assert low <= value <= high
    assert read["about"]["questions"] == 120
    text = (tmp_path / "report.md").read_text()
    for verdict in report.verdicts:
        assert verdict.sentence in text
    assert "most common answer" in text
    assert "sacrebleu 13a" in text


def test_the_terminal_shows_the_verdicts(capsys):
    from rich.console import Console

    report = report_on(COUNTS, ["0"] * 60, ["0"] * 60)
    report.show(Console(width=200))
    shown = capsys.readouterr().out
    assert "does NOT beat both baselines" in shown
    assert "motif_count" in shown


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_the_limit_is_per_task_and_follows_the_seed(limit):
    examples = [*COUNTS, *VALUES]
    chosen = choose_questions(examples, limit, seed=3)
    assert chosen == choose_questions(examples, limit, seed=3)
    for task in ("motif_count", "property_2d"):
        assert sum(e.task == task for e in chosen) == min(limit, 60)
    assert choose_questions(examples, None, 0) == examples
