import pytest

from collamo.cli import run
from collamo.errors import UsageError
from collamo.evaluation.comparison import compare
from collamo.evaluation.score.scorer import ScoreOptions
from collamo.evaluation.score.scoring import score_predictions


def evaluated(folder, name, guesses, truths, task="motifs", **options):
    path = folder / f"{name}.tsv"
    rows = "".join(f"{t}\t{g}\n" for t, g in zip(truths, guesses, strict=True))
    path.write_text("ground truth\toutput\n" + rows)
    report = score_predictions(path, ScoreOptions(task, **options), folder / name)
    return folder / name, report


def test_a_clear_difference_a_small_one_and_the_changed_rows(tmp_path):
    truths = list(range(40))
    worse = [t + 1 if t % 2 else t for t in truths]
    a, report_a = evaluated(tmp_path, "a", worse, truths)
    b, report_b = evaluated(tmp_path, "b", truths, truths)
    found = compare(a, b)
    exact = {each.name: each for each in found.differences}["exact"]
    assert (exact.a, exact.b) == (report_a["scores"]["exact"], report_b["scores"]["exact"])
    assert (exact.a, exact.b, exact.change.clear) == (0.5, 1.0, True)
    assert exact.change.low < 0.5 < exact.change.high
    assert found.changed == list(range(2, 41, 2))
    one = [*truths[:-1], 0]
    c, _ = evaluated(tmp_path, "c", one, truths)
    assert not any(each.change.clear for each in compare(b, c).differences)


def test_the_same_twice_differs_nowhere_not_even_in_a_draw(tmp_path):
    texts = [f"a b c d {i}" for i in range(10)]
    options = {"task": "captions", "tokenizer": "whitespace"}
    a, report = evaluated(tmp_path, "a", texts[::-1], texts, **options)
    b, _ = evaluated(tmp_path, "b", texts[::-1], texts, **options)
    found = compare(a, b)
    assert found.changed == []
    assert {each.name: each.a for each in found.differences} == pytest.approx(report["scores"])
    assert all(each.change.low == each.change.high == 0 for each in found.differences)


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    a, _ = evaluated(tmp_path, "a", ["1"], ["1"])
    b, _ = evaluated(tmp_path, "b", ["1"], ["2"])
    c, _ = evaluated(tmp_path, "c", ["1"], ["1"], task="property")
    with pytest.raises(UsageError, match="'reference'"):
        compare(a, b)
    with pytest.raises(UsageError, match="differ in task"):
        compare(a, c)
    with pytest.raises(UsageError, match="holds no evaluation"):
        compare(a, tmp_path)
    assert run(["compare", str(a), str(a)]) == 0
    assert "exact\t1.0000\t1.0000\t0.0000" in capsys.readouterr().out
