"""The demo with several seeds: nothing is done twice, and the table says what the reports say."""

import csv
import importlib.util
import io
import json
from pathlib import Path

import pytest

from collamo.errors import CollamoError, UsageError

EXAMPLE = Path(__file__).parents[1] / "examples" / "demo_seeds.py"


@pytest.fixture
def demo_seeds():
    spec = importlib.util.spec_from_file_location("demo_seeds", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(demo_seeds, shift):
    """A report in which only `shift` tells one seed from another."""
    number = {"value": 0.7 + shift, "low": 0.6, "high": 0.8}
    change = {"value": -0.2 - shift, "low": -0.3, "high": -0.1}
    names = ("CoLLaMo", *demo_seeds.BASELINES, *demo_seeds.TAKEN_AWAY)
    variants = {name: {"metrics": {"exact": number}, "change": dict(change)} for name in names}
    variants["Φ2d zeroed"]["change"]["high"] = 0.1
    beaten = {"most common answer": True, "wrong molecule": shift > 0}
    verdict = {"task": "motif_count", "metric": "exact", "beaten": beaten}
    verdict["beats_both"] = all(beaten.values())
    return {"verdicts": [verdict], "variants": {"motif_count": variants}}


@pytest.fixture
def ran(demo_seeds, monkeypatch):
    """Replace the commands: an examination leaves its report; returns all commands."""
    commands = []

    def run(*command):
        commands.append([str(word) for word in command])
        if command[0] == "evaluate":
            out = Path(command[-1])
            out.mkdir(parents=True)
            text = json.dumps(report(demo_seeds, 0.01 * int(out.parent.name)))
            (out / "report.json").write_text(text)

    monkeypatch.setattr(demo_seeds, "_run", run)
    return commands


def test_each_step_of_each_seed_runs_once(demo_seeds, ran, tmp_path, monkeypatch, capsys):
    arguments = [str(tmp_path), "--seeds", "2", "--out", str(tmp_path / "out")]
    demo_seeds.main(arguments)
    of_a_seed = ["train", "train", "train", "evaluate"]
    assert [command[0] for command in ran] == ["prepare", *of_a_seed, *of_a_seed]
    trained = [command for command in ran if command[0] == "train"]
    assert [command[command.index("--seed") + 1] for command in trained] == ["0"] * 3 + ["1"] * 3
    assert all("--resume" in command for command in trained)
    table = (tmp_path / "out" / "seeds.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    # Cut off after the second training of seed 1: the rest is done, and nothing else.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    (tmp_path / "seeds" / "1" / "stage2.done").unlink()
    ran.clear()
    demo_seeds.main(arguments)
    assert [command[1] for command in ran] == ["configs/stage2.yaml"]
    assert (tmp_path / "out" / "seeds.md").read_text() == table


def test_the_tables_say_what_the_reports_say(demo_seeds, ran, tmp_path):
    demo_seeds.main([str(tmp_path), "--seeds", "2", "--jobs", "2"])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "seeds.csv").read_text())))
    assert len(rows) == 2 * (3 + len(demo_seeds.TAKEN_AWAY))
    by_place = {(row["seed"], row["answers"]): row for row in rows}
    assert by_place["1", "CoLLaMo"]["value"] == "0.71"
    assert by_place["1", "CoLLaMo"]["verdict"] == "beats both"
    assert by_place["0", "wrong molecule"]["verdict"] == "not beaten"
    assert by_place["0", "Φ3d zeroed"]["verdict"] == "worse"
    assert by_place["0", "Φ2d zeroed"]["verdict"] == "no clear change"
    text = (tmp_path / "seeds.md").read_text()
    assert "**beats both in 1 of 2**" in text
    assert "worse in 2 of 2" in text
    assert "worse in 0 of 2" in text
    assert "**−0.200 [−0.300, −0.100]**" in text
    assert f"`python examples/demo_seeds.py {tmp_path} --seeds 2 --jobs 2`" in text
    assert "with the seeds 0, 1;" in text


def test_the_page_shows_the_tables_between_its_markers(demo_seeds, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{demo_seeds.START}\nold\n{demo_seeds.END}\nafter\n")
    demo_seeds.put(page, "new\n")
    expected = f"before\n{demo_seeds.START}\n\nnew\n\n{demo_seeds.END}\nafter\n"
    assert page.read_text() == expected
    page.write_text("nothing")
    with pytest.raises(UsageError, match="lacks the lines"):
        demo_seeds.put(page, "new")


def test_a_command_that_fails_is_named(demo_seeds, tmp_path):
    with pytest.raises(CollamoError, match=r"collamo train nowhere\.yaml ended with 2"):
        demo_seeds._run("train", "nowhere.yaml")
