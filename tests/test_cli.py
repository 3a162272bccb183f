"""Every command on good and bad input: exit code, one clear line, nothing lost."""

import csv
import inspect
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest
from trained import CONFIGS, SMALL_LLAMA, STEP_OPTIONS, trained

from collamo import cli

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

CHAIN = "C" * 20_000
BAD_SMILES = {
    "C1CC": "unclosed ring",
    "": "empty",
    "   ": "empty",
    "CC CO": "blank",
    "CC\nCO": "line",
    CHAIN: "4,?000",
    "C" * 600: "512",
    "not a molecule": "",
}


@pytest.fixture(scope="module")
def run():
    return trained()


@pytest.fixture(autouse=True)
def _no_outside_checkpoint(monkeypatch, tmp_path):
    """No checkpoint of the user's, and no demo folder, decides a test."""
    monkeypatch.delenv("COLLAMO_CHECKPOINT", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def collamo(capsys):
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def assert_fails(result, code, *parts):
    """One `error:` line on stderr with `parts` in it, nothing on stdout, no traceback."""
    found, out, err = result
    assert found == code, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 500
    for part in parts:
        assert part in lines[0]


# the command line itself


def collamo_process(*arguments, **options):
    code = "from collamo.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_the_module_is_the_command_line():
    command = [sys.executable, "-m", "collamo", "prepaer"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys; from collamo.cli import run; code = run(['--help'])\n"
        "heavy = {'torch', 'rdkit', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in (
        "prepare",
        "train",
        "merge",
        "ask",
        "generate",
        "evaluate",
        "compare",
        "doctor",
    ):
        assert command in done.stdout


def test_help_answers_in_less_than_half_a_second():
    """Of processor time, which other work on the machine does not stretch; the best of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert collamo_process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "command", ["prepare", "train", "merge", "ask", "generate", "evaluate", "compare", "doctor"]
)
def test_every_command_explains_itself(collamo, command):
    code, out, err = collamo(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: collamo {command}")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["ask", "CCO"], "Missing argument"),
        (["ask", "CCO", "What?", "--wat"], "No such option: --wat"),
        (["evaluate", "--limit", "0"], "limit"),
        (["evaluate", "--limit", "many"], "integer"),
        (["evaluate", "--split", "tset"], "did you mean 'test'?"),
        (["prepare", "nci"], "out"),
        (["merge", "adapter", ".."], "'..' exists; nothing is overwritten"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(collamo, arguments, part):
    assert_fails(collamo(*arguments), 2, part)


BUILDERS = {
    "train": [CONFIGS / "stage1.yaml", "--data", "DATA", "--output", "OUT"],
    "ablate": [CONFIGS / "ablations" / "relations.yaml", "--out", "OUT", "--data", "DATA"],
    "doctor": ["--plan", CONFIGS / "stage1.yaml"],
}


def test_every_command_that_builds_a_model_takes_its_parts(collamo, run, tmp_path):
    """--llm, --unimol and --gin: where the rest of a recipe is taken, and nowhere else."""
    from collamo.cli import app

    commands = {command.callback.__name__: command for command in app.registered_commands}
    open_ended = {
        name
        for name, command in commands.items()
        if (command.context_settings or {}).get("allow_extra_args")
    }
    assert open_ended == BUILDERS.keys()
    places = {"DATA": run.data, "OUT": tmp_path / "out"}
    llm = ("--llm", run.folder / "tiny_lm" / "final")
    for name, fixed in BUILDERS.items():
        arguments = [places.get(each, each) for each in fixed]
        shown = " ".join(collamo(name, "--help")[1].split())
        assert all(f"--{part} " in shown for part in ("llm", "unimol", "gin"))
        for part, rest in (("llm", ()), ("unimol", llm), ("gin", llm)):
            missing = tmp_path / f"no-{part}.pt"
            _, out, err = collamo(name, *arguments, f"--{part}", missing, *rest)
            assert str(missing) in " ".join((out + err).split()), (name, part)
            shutil.rmtree(places["OUT"], ignore_errors=True)
    encoding = {"unimol", "gin"}
    for name, command in commands.items():
        named = set(inspect.signature(command.callback).parameters)
        assert named & {"llm", *encoding} == (encoding if name == "prepare" else set())


def test_no_command_shows_the_help(collamo):
    code, out, err = collamo()
    assert code == 2
    assert "Usage: collamo" in out + err


def test_only_debug_shows_a_traceback(collamo):
    assert_fails(collamo("train", "nowhere.yaml"), 2, "recipe nowhere.yaml does not exist")
    for arguments in (["--debug", "train", "nowhere.yaml"], ["train", "nowhere.yaml", "--debug"]):
        code, _, err = collamo(*arguments)
        assert code == 2
        assert "Traceback" in err
        assert err.rstrip().splitlines()[-1].startswith("error: recipe nowhere.yaml")


def test_an_interrupt_is_130(collamo, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("collamo.doctor.examine", interrupted)
    assert_fails(collamo("doctor"), 130, "interrupted")


def test_an_unforeseen_error_is_one_line_and_exit_1(collamo, monkeypatch):
    def broken():
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("collamo.doctor.examine", broken)
    assert_fails(collamo("doctor"), 1, "ZeroDivisionError: two lines", "--debug")


def test_a_missing_package_is_exit_4(collamo, monkeypatch):
    def missing():
        import no_such_package  # noqa: F401

    monkeypatch.setattr("collamo.doctor.examine", missing)
    assert_fails(collamo("doctor"), 4, "package 'no_such_package' is not installed")


# prepare


def write_csv(path, rows, header=("smiles",)):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def test_prepare_counts_rows_in_and_out(collamo, tmp_path):
    smiles = ["CCO", "c1ccccc1O", "C1CC", "CC(=O)O", "C" * 300]
    file = write_csv(tmp_path / "few.csv", [[text] for text in smiles])
    out = tmp_path / "data"
    options = ["--max-reject-rate", "0.5", "--workers", "1", "--time-limit", "1"]
    code, text, notes = collamo("prepare", file, "--out", out, *options)
    assert code == 0
    assert "5 rows: 4 ok, 1 rejected" in text
    assert str(out / "rejected.jsonl") in notes
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["conformers"] == {"etkdgv3+mmff": 3, "none": 1}  # 300 atoms: too long for 3D
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rejected] == [3]


def test_prepare_with_too_many_rejected_rows_is_exit_3_and_keeps_them(collamo, tmp_path):
    rows = [["CCO"], ["CCN"], *([smiles] for smiles in BAD_SMILES if smiles.strip())]
    file = write_csv(tmp_path / "bad.csv", rows)
    out = tmp_path / "data"
    result = collamo("prepare", file, "--out", out, "--workers", "1")
    assert_fails(result, 3, f"{len(rows) - 2} of {len(rows)} rows were rejected")
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == len(rows) - 2
    assert all(r["message"] for r in rejected)


def test_prepare_of_nothing_useful_is_a_usage_error(collamo, tmp_path):
    out = tmp_path / "data"
    assert_fails(collamo("prepare", "nowhere.csv", "--out", out), 2, "nowhere.csv")
    file = write_csv(tmp_path / "a.csv", [["CCO"]], header=("smilse",))
    assert_fails(collamo("prepare", file, "--out", out), 2, "smilse")
    result = collamo("prepare", file, "--out", out, "--smiles-column", "smiles")
    assert_fails(result, 2, "did you mean 'smilse'?")


def test_prepare_reads_the_pubchem_file(collamo, shared_data, tmp_path):
    source = shared_data / "pubchem_3k.jsonl"
    options = ["--limit", "40", "--no-conformers", "--workers", "1"]
    code, text, _ = collamo("prepare", source, "--out", tmp_path / "data", *options)
    assert code == 0
    assert text.startswith("40 rows: ")


# train


def test_train_from_the_command_line(collamo, run, tmp_path):
    out = tmp_path / "lm"
    options = [*SMALL_LLAMA, *STEP_OPTIONS, "--max_steps", "2", "--data", run.data]
    code, text, err = collamo("train", CONFIGS / "tiny_lm.yaml", "--output", out, *options)
    assert code == 0, err
    assert text == f"{out}/final\n"  # stdout is for data
    assert (out / "final" / "model.safetensors").is_file()
    assert (out / "checkpoint-2" / "manifest.json").is_file()
    again = [*options, "--max_steps", "5", "--resume"]
    assert collamo("train", CONFIGS / "tiny_lm.yaml", "--output", out, *again)[0] == 0
    assert (out / "checkpoint-5" / "manifest.json").is_file()
    code, _, err = collamo("train", CONFIGS / "tiny_lm.yaml", "--output", out, *options)
    assert code == 2
    assert "already holds checkpoints; go on with --resume" in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--trian_encoders", "true"], "did you mean 'train_encoders'?"),
        (["--training.learning_rat", "1"], "did you mean 'training.learning_rate'?"),
        (["--max_steps", "many"], "expected a whole number"),
        (["--max_steps"], "--max_steps needs a value"),
        (["--data", "nowhere"], "nowhere"),
        (["--stage", "dream"], "'dream' is none of"),
    ],
)
def test_a_wrong_override_is_exit_2(collamo, arguments, part):
    assert_fails(collamo("train", CONFIGS / "stage1.yaml", *arguments), 2, part)


def test_an_unknown_key_in_a_recipe_is_exit_2(collamo, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stage: align\ndata: d\noutput: o\nllm: l\nlora:\n  rnak: 4\n")
    assert_fails(collamo("train", recipe), 2, "r.yaml: lora: unknown key 'rnak'", "'rank'")


def test_an_unknown_model_key_is_exit_2(collamo, run, tmp_path):
    options = ["--data", run.data, "--llm", run.folder / "tiny_lm" / "final"]
    options += ["--output", tmp_path / "o", "--model.projector_config.num_layer", "1"]
    code, _, err = collamo("train", CONFIGS / "stage1.yaml", *options)
    assert code == 2
    assert "did you mean 'num_layers'?" in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["demo/tiny_lm/final", "/nowhere/final"])
@pytest.mark.parametrize(
    ("stage", "option", "kind", "maker"),
    [
        ("stage1", "--llm", "language model", "tiny_lm"),
        ("stage2", "--init_from", "checkpoint", "stage1"),
    ],
)
def test_a_missing_model_folder_is_exit_4(collamo, run, tmp_path, name, stage, option, kind, maker):
    options = ["--data", run.data, "--output", tmp_path / "o", option, name]
    code, out, err = collamo("train", CONFIGS / f"{stage}.yaml", *options)
    assert (code, out) == (4, "")
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {kind} folder '{name}' does not exist; ")
    assert f"`collamo train configs/{maker}.yaml`" in last


def test_a_diverging_run_is_exit_1(collamo, run, tmp_path):
    options = [*run.overrides("stage1", tmp_path / "o"), "--learning_rate", "1e30"]
    code, _, err = collamo("train", CONFIGS / "stage1.yaml", *options, "--warmup_steps", "0")
    assert code == 1
    assert "is NaN or infinite" in err.splitlines()[-1]


# ask


def test_ask_answers_on_stdout(collamo, run):
    question = "How many hydroxyl groups does it have?"
    code, first, err = collamo("ask", "CCO", question, "--checkpoint", run.checkpoint)
    assert code == 0, err
    assert first.endswith("\n")
    assert "error" not in err
    # SELFIES, and the same answer again
    arguments = ["ask", "[C][C][O]", question, "--checkpoint", run.checkpoint]
    assert collamo(*arguments)[1] == first


def test_ask_finds_the_checkpoint_by_itself(collamo, run, monkeypatch, tmp_path):
    monkeypatch.setenv("COLLAMO_CHECKPOINT", str(run.checkpoint))
    assert collamo("ask", "CCO", "Describe it.", "--max-new-tokens", "4")[0] == 0
    monkeypatch.delenv("COLLAMO_CHECKPOINT")
    (tmp_path / "demo" / "stage2").mkdir(parents=True)
    (tmp_path / "demo" / "stage2" / "final").symlink_to(run.checkpoint)
    assert collamo("ask", "CCO", "Describe it.", "--max-new-tokens", "4")[0] == 0


def test_ask_without_weights_is_exit_4(collamo, tmp_path):
    assert_fails(collamo("ask", "CCO", "What?"), 4, "no trained weights", "make demo")
    missing = collamo("ask", "CCO", "What?", "--checkpoint", tmp_path / "nowhere")
    assert_fails(missing, 4, "does not exist")
    assert_fails(collamo("ask", "CCO", "What?", "--checkpoint", tmp_path), 4, "config.json")


@pytest.mark.parametrize("smiles", BAD_SMILES, ids=lambda s: repr(s[:12]))
def test_ask_about_no_molecule_is_one_line_and_exit_1(collamo, run, smiles):
    result = collamo("ask", smiles, "What?", "--checkpoint", run.checkpoint)
    assert_fails(result, 1)


def test_ask_an_empty_question_is_exit_2(collamo, run):
    assert_fails(collamo("ask", "CCO", " ", "--checkpoint", run.checkpoint), 2, "empty")


def test_ask_a_question_longer_than_the_positions_is_exit_2(collamo, run):
    code, out, err = collamo("ask", "CCO", "why " * 5000, "--checkpoint", run.checkpoint)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert re.match(r"error: prompt 0 '.{,80}' has \d+ tokens, .* has 1024 positions", last), err
    assert "Token indices sequence" not in err


def test_ask_with_a_placeholder_in_the_question_is_refused(collamo, run):
    code, out, err = collamo("ask", "CCO", "a <mol> b", "--checkpoint", run.checkpoint)
    assert code == 2
    assert out == ""
    assert "<mol>" in err.splitlines()[-1]


def test_a_molecule_too_large_for_a_conformer_is_answered_without(collamo, run):
    options = ["--checkpoint", run.checkpoint, "--time-limit", "1", "--max-new-tokens", "4"]
    code, _, err = collamo("ask", "C" * 300, "Describe it.", *options)
    assert code == 0
    assert "answered without 3D: no geometry within 1 s" in err


def test_a_damaged_checkpoint_is_one_line(collamo, run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run.checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, out, err = collamo("ask", "CCO", "What?", "--checkpoint", broken)
    assert code in (1, 4)
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    weights.unlink()
    assert collamo("ask", "CCO", "What?", "--checkpoint", broken)[0] == 4


# generate

QUESTION = "How many rings does it have?"


def test_generate_returns_every_row(collamo, run, tmp_path):
    rows = [["CCO", QUESTION, "1"], ["c1ccccc1", QUESTION, "2"]]
    rows += [[smiles, QUESTION, "bad"] for smiles in BAD_SMILES]
    rows += [["CCO", "", "bad"], ["CCO", "a <mol> b", "bad"], ["CCO", "why " * 5000, "bad"]]
    rows += [["CCO", QUESTION, "3"]]
    file = write_csv(tmp_path / "q.csv", rows, header=("smiles", "question", "answer"))
    out = tmp_path / "deep" / "a.csv"
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8", "--out", out]
    code, text, err = collamo("generate", file, *options)
    assert code == 0, err
    assert text == ""
    assert f"{len(rows)} rows: 3 answered, {len(rows) - 3} with errors" in err
    with open(out, newline="", encoding="utf-8") as opened:
        found = list(csv.DictReader(opened))
    assert [f["row"] for f in found] == [str(i) for i in range(1, len(rows) + 1)]
    for (smiles, question, mark), row in zip(rows, found, strict=True):
        assert (row["smiles"], row["question"]) == (smiles, question)
        assert row["input_answer"] == mark  # a column of the user's is never overwritten
        assert row["status"] == ("error" if mark == "bad" else "ok")
        assert bool(row["reason"]) == (mark == "bad")
    assert found[0]["answer"] == found[-1]["answer"]


def test_generate_gives_the_same_bytes_with_any_number_of_workers(collamo, run, tmp_path):
    smiles = ["C" * 20, "CCO", "C1CC", "c1ccccc1", "CCO", "", "C" * 300, "C[C@H](N)C(=O)O"]
    file = write_csv(tmp_path / "q.csv", [[s, QUESTION] for s in smiles], ("smiles", "question"))
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "4", "--time-limit", "1"]
    one = collamo("generate", file, *options, "--workers", "1")
    assert one[0] == 0
    assert one == collamo("generate", file, *options, "--workers", "3")
    rows = [json.loads(line) for line in one[1].splitlines()]
    assert [r["smiles"] for r in rows] == smiles
    assert [i for i, r in enumerate(rows) if r["status"] == "error"] == [2, 5]
    assert rows[2]["reason"].startswith("row 3: SMILES 'C1CC' has an unclosed ring")
    assert rows[6]["reason"] == "answered without 3D: no geometry within 1 s"


def test_generate_jsonl_on_stdout(collamo, run, tmp_path):
    file = tmp_path / "q.jsonl"
    lines = [
        {"molecule": "CCO", "q": QUESTION, "id": 7},
        {"molecule": 3, "q": QUESTION},
        {"molecule": "CC\ud800", "q": QUESTION},
    ]
    text = "\n".join([json.dumps(lines[0]), "{broken", *map(json.dumps, lines[1:])])
    file.write_text(text + "\n")
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8"]
    columns = ["--smiles-column", "molecule", "--question-column", "q"]
    code, out, err = collamo("generate", file, *options, *columns)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [r["status"] for r in rows] == ["ok", "error", "error", "error"]
    assert rows[0]["id"] == 7
    assert "not a JSON object" in rows[1]["reason"]


def test_generate_from_no_file_or_the_wrong_one_is_exit_2(collamo, tmp_path):
    assert_fails(collamo("generate", "nowhere.csv"), 2, "nowhere.csv", "No such file")
    assert_fails(collamo("generate", "q.parquet"), 2, ".csv, .tsv, .jsonl")
    file = write_csv(tmp_path / "q.csv", [["CCO", QUESTION]], header=("smilse", "question"))
    assert_fails(collamo("generate", file), 2, "no column 'smiles'", "did you mean 'smilse'?")
    assert_fails(collamo("generate", file, "--out", "a.xlsx"), 2, "a.xlsx")
    file.write_text("")
    assert_fails(collamo("generate", file), 2, "has no rows; it needs smiles and question")
    file.write_text('smiles,question\nCCO,"open\nCCN,hi\n')
    assert_fails(collamo("generate", file), 2, "record of line 2 is never closed")


def test_generate_without_weights_is_exit_4(collamo, tmp_path):
    file = write_csv(tmp_path / "q.csv", [["CCO", QUESTION]], header=("smiles", "question"))
    assert_fails(collamo("generate", file), 4, "no trained weights")


# a disk that is full


@pytest.mark.parametrize("command", ["prepare", "evaluate", "train"])
def test_no_room_names_the_file_and_the_way_out(run, tmp_path, command):
    """A limit on the size of files stands for it; the same command then goes on."""
    arguments = {
        "prepare": ["nci", "--limit", "200", "--no-conformers", "--workers", "1"],
        "evaluate": ["--checkpoint", run.checkpoint, "--data", run.data, "--limit", "5"],
        "train": [CONFIGS / "stage1.yaml", *run.overrides("stage1", tmp_path), "--max_steps", "1"],
    }[command]
    if command == "evaluate":
        arguments += ["--no-reliance", "--max-new-tokens", "4"]
    if command != "train":
        arguments += ["--out", tmp_path]
    size = 2**17 if command == "train" else 2**13
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    done = collamo_process(command, *map(str, arguments), **limit)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    name = {"prepare": "molecules-00000.parquet", "evaluate": "rows.parquet", "train": ""}[command]
    assert last.startswith("error: "), done.stderr
    assert str(tmp_path / name) in last
    assert "File too large" in last
    assert "make room" in last
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


# evaluate


def test_evaluate_writes_the_report_and_shows_it(collamo, run, tmp_path):
    out = tmp_path / "evaluation"
    options = ["--checkpoint", run.checkpoint, "--data", run.data, "--out", out]
    options += ["--limit", "5", "--max-new-tokens", "8"]
    code, text, err = collamo("evaluate", *options)
    assert code == 0, err
    report = json.loads((out / "report.json").read_text())
    assert {v["task"] for v in report["verdicts"]} >= {"motif_count", "property_2d", "caption"}
    for verdict in report["verdicts"]:
        assert verdict["task"] in text
    variants = report["variants"]["motif_count"]
    assert {"CoLLaMo", "wrong molecule", "same-size molecule", "scattered atoms"} <= set(variants)
    assert {"1d only", "without 2d", "most common answer", "train median"} <= set(variants)
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == report["manifest"]["questions"]
    assert sum(counts["rows"] for counts in report["counts"].values()) == len(rows)
    for counts in report["counts"].values():
        assert sum(counts.values()) == 2 * counts["rows"]
    manifest = report["manifest"]
    assert all(len(manifest[f"{of}_sha256"]) == 64 for of in ("checkpoint", "data"))
    assert manifest["tokenizer"] == "13a"
    assert manifest["versions"]["torch"]
    assert "| CoLLaMo |" in (out / "report.md").read_text()
    # Again with another tokeniser: every answer is there already.
    said = (out / "answers.jsonl").read_text()
    more = ["--tokenizer", "whitespace", "--entities", "offline"]
    assert collamo("evaluate", *options, *more)[0] == 0
    assert (out / "answers.jsonl").read_text() == said + said.splitlines()[-1] + "\n"
    again = json.loads((out / "report.json").read_text())
    assert again["manifest"]["tokenizer"] == "whitespace"
    assert again["manifest"]["entities"] == "offline"
    captions = again["entity_counts"]
    for name in ("rows", "variants"):
        table = pq.read_table(out / f"{name}.parquet")
        asked = zip(table["task"].to_pylist(), table["entity_status"].to_pylist(), strict=True)
        assert {task == "caption" for task, status in asked if status is not None} == {True}
    found = Counter(pq.read_table(out / "rows.parquet")["entity_status"].to_pylist())
    del found[None]
    assert found == {name: n for name, n in captions.items() if name != "rows" and n}
    assert captions["rows"] == again["counts"]["caption"]["rows"] == sum(captions.values()) / 2
    assert "rcharm" in again["scores"]["caption"]
    assert "| entities of captions |" in (out / "report.md").read_text()
    assert pq.read_table(out / "rows.parquet")["prediction"].to_pylist() == [
        row["prediction"] for row in rows
    ]
    code, text, _ = collamo("compare", out, out)
    assert code == 0
    assert "motif_count › exact" in text


def test_evaluate_without_reliance_asks_the_two_of_the_verdict(collamo, run, tmp_path):
    options = ["--checkpoint", run.checkpoint, "--data", run.data, "--out", tmp_path]
    options += ["--limit", "3", "--max-new-tokens", "4", "--no-reliance"]
    assert collamo("evaluate", *options)[0] == 0
    report = json.loads((tmp_path / "report.json").read_text())
    names = {"CoLLaMo", "wrong molecule", "most common answer"}
    assert set(report["variants"]["caption"]) == names
    assert not (tmp_path / "reliance.svg").exists()


def test_an_evaluation_that_was_cut_off_goes_on(collamo, run, tmp_path, monkeypatch):
    from collamo.inference import answers

    options = ["--checkpoint", run.checkpoint, "--data", run.data, "--limit", "2", "--diagnose"]
    options += ["--max-new-tokens", "4", "--batch-size", "1"]
    assert collamo("evaluate", *options, "--out", tmp_path / "whole")[0] == 0
    generate, asked = answers._generate, []

    def counted(*arguments):
        asked.append(1)
        if len(asked) == 30:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(answers, "_generate", counted)
    assert collamo("evaluate", *options, "--out", tmp_path / "cut")[0] == 130
    assert not (tmp_path / "cut" / "report.json").exists()
    # Another question in the same folder would mix two evaluations.
    refused = collamo("evaluate", *options, "--out", tmp_path / "cut", "--seed", "1")
    assert refused[0] == 2
    assert "unfinished evaluation that differs in seed" in refused[2]
    assert collamo("evaluate", *options, "--out", tmp_path / "cut")[0] == 0
    lines = [(tmp_path / name / "answers.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert len(asked) == lines[0].count('"answer"') + 1  # the one that was interrupted
    reports = [(tmp_path / name / "report.json").read_text() for name in ("whole", "cut")]
    assert reports[0] == reports[1]
    found = json.loads(reports[0])["diagnostics"]
    assert found["thresholds"]["flat"] == 0.1
    assert all(finding["sentence"] for finding in found["findings"])
    for name in ("attention", "soft_tokens", "phi", "reliance"):
        assert (tmp_path / "whole" / f"{name}.svg").read_text().count("<svg") == 1
    assert (tmp_path / "whole" / "report.html").read_text().count("<svg") == 4


def test_evaluate_without_data_or_weights(collamo, run, tmp_path):
    assert_fails(collamo("evaluate", "--data", tmp_path / "nowhere"), 2, "nowhere")
    assert_fails(collamo("evaluate", "--data", run.data), 4, "no trained weights")


# doctor


def test_doctor_names_what_is_there_and_what_is_missing(collamo):
    code, out, err = collamo("doctor")
    assert (code, err) == (0, "")
    for name in ("torch", "rdkit", "peft", "compiled kernels", "C++ compiler", "CUDA GPU"):
        assert name in out
    assert "collamo[" in out.replace("\n", "") or "–" not in out


def test_doctor_says_why_there_are_no_compiled_kernels(collamo, monkeypatch):
    import collamo_kernels

    absent = {"extension": False, "why_absent": "the build failed: no such header; apt install it"}
    monkeypatch.setattr(collamo_kernels, "build_info", lambda: absent)
    code, out, _ = collamo("doctor")
    assert code == 0
    row = " ".join(out[out.index("compiled kernels") : out.index("C++ compiler")].split())
    assert "the build" in row
    assert "such header" in row

    def broken():
        raise OSError("undefined symbol")

    monkeypatch.setattr(collamo_kernels, "build_info", broken)
    code, out, _ = collamo("doctor")
    assert code == 0
    assert "undefined" in out[out.index("compiled kernels") : out.index("C++ compiler")]


def test_doctor_fails_where_something_required_is_missing(collamo, monkeypatch):
    from collamo import doctor

    checks = [doctor.Check("peft", None, "LoRA", "pip install peft", required=True)]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    code, out, err = collamo("doctor")
    assert code == 4
    assert "MISSING" in out
    assert "required packages are missing: peft" in err


def test_the_installed_command_runs(tmp_path):
    """In a process of its own, as a user starts it."""
    done = collamo_process("ask", "C1CC", "What?", cwd=tmp_path, env={**os.environ})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: SMILES 'C1CC' has an unclosed ring; fix it or drop the row\n"
