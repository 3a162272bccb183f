"""Rows of measurements beside earlier ones, timing by turns; no clock is trusted."""

from collamo.benchmark import append_rows, compare, measure, rows_of_folder, timing
from collamo.benchmark.measurements import RUNS
from collamo.benchmark.workloads import Workload


def row(rival, ms, ratio, **others):
    return {"workload": "w", "rival": rival, "threads": 2, "median_ms": ms, "ratio": ratio} | others


def test_a_row_is_set_beside_the_newest_of_its_kind(tmp_path):
    old = [row("SDPA", 9, 90), *(row("SDPA", 10, ratio) for ratio in range(4, 4 + RUNS))]
    old += [row("SDPA", 1, 1, threads=1), row("SDPA", 1, 1, workload="other"), row("ours", 2, 1)]
    append_rows(tmp_path / "op.csv", old[:3])
    append_rows(tmp_path / "op.csv", old[3:])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert list(rows_of_folder(tmp_path)) == ["op"]
    rows = [row("ours", 3, 1), row("SDPA", 27, 9), row("Flex", "", "", note="not here")]
    ours, sdpa, flex = compare(rows, rows_of_folder(tmp_path)["op"])
    assert ours.cells() == ("ours", "3 ms", "1 ×", "2 ms", "")
    assert sdpa.cells() == ("SDPA", "27 ms", "9 ×", "6 (4 to 8) ×", "above all of them")
    assert flex.cells() == ("Flex", "", "", "", "not here")


def test_all_take_turns_until_their_time_is_up(monkeypatch):
    calls = []

    def time(call):
        call()
        return call.seconds

    monkeypatch.setattr(timing, "_time", time)

    def contender(name, seconds):
        def call():
            calls.append(name)

        call.seconds = seconds
        return call

    rivals = {"slow": contender("s", 2.0), "absent": "not installed"}
    rows = measure(Workload("op", "w", contender("o", 0.5), rivals), rounds=9, seconds=4.0)
    # Once each unmeasured; the slow one three times, ours until it has had its four seconds.
    assert "".join(calls) == "os" + "os" * 3 + "o" * 5
    assert [(r["rival"], r.get("ratio"), r.get("rounds"), r["note"]) for r in rows] == [
        ("ours", "1", 8, ""),
        ("slow", "4", 3, ""),
        ("absent", None, None, "not installed"),
    ]
