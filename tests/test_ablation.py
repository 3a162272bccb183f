"""`collamo ablate`: every variant trained and examined alike, nothing done twice."""

import json
from pathlib import Path

import pytest
from trained import CONFIGS, SMALL, trained

from collamo import ablation, cli
from collamo.ablation import load_ablation
from collamo.errors import UsageError
from collamo.model import CollamoConfig
from collamo.training.recipe import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
FILES = sorted((CONFIGS / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_is_a_model_or_a_training_of_its_own(path):
    loaded = load_ablation(path)
    models = []
    for options in loaded.variants.values():
        overrides = [f"--{key}={json.dumps(value)}" for key, value in options.items()]
        recipe = load_recipe(loaded.stages[0], overrides)
        model = CollamoConfig.from_overrides("tiny", recipe.model).to_dict()
        models.append((model, recipe.relation_rates))
    assert len(models) >= 2
    assert all(a != b for i, a in enumerate(models) for b in models[:i])
    assert load_recipe(loaded.stages[1]).stage == "tune"


def test_what_is_not_about_building_reaches_both_trainings():
    loaded = load_ablation(CONFIGS / "ablations" / "sinks.yaml")
    number = list(loaded.variants).index("sinks, Φ at the projector's rate")
    variants = [
        ablation._Variant.build(loaded, i, name, Path("out"), [])
        for i, name in enumerate(loaded.variants)
    ]
    rates = [(v.align.relation_rates.hop_bias, v.tune.relation_rates.hop_bias) for v in variants]
    assert rates.pop(number) == (1, 1)
    assert set(rates) == {(30, 30)}
    assert all(v.tune.model == {} for v in variants)


@pytest.fixture
def small(tmp_path):
    """Two variants of a model that trains in a second, and the options for it."""
    run = trained()
    path = tmp_path / "two.yaml"
    stages = [str(CONFIGS / name) for name in ("stage1.yaml", "stage2.yaml")]
    variants = {"both": {}, "no Φ3d": {"model.projector_config.phi3d": False}}
    path.write_text(
        json.dumps({"title": "Two", "stages": stages, "variants": variants, "shown": ["1d only"]})
    )
    options = [*SMALL, "--llm", str(run.folder / "tiny_lm" / "final"), "--data", str(run.data)]
    options += ["--max_steps", "2", "--report_to", "none", "--per_device_train_batch_size=8"]
    out = tmp_path / "out"
    return [str(path), "--out", str(out), "--limit", "2", "--max-new-tokens", "4", *options], out


@pytest.mark.slow
def test_a_table_is_made_and_nothing_is_done_twice(small, capsys):
    arguments, out = small
    assert cli.run(["ablate", *arguments]) == 0
    table = (out / "table.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert [row.strip("| ") for row in rows if "---" not in row] == ["", "both", "no Φ3d"]
    assert "1d only" in table
    for number, phi3d in ((0, True), (1, False)):
        saved = json.loads((out / str(number) / "tune/final/config.json").read_text())
        assert saved["projector_config"]["phi3d"] is phi3d
    # Cut off after the first variant's training: the rest is made again, the training is not.
    (out / "0/report.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in Path(out).rglob("*.safetensors")}
    assert cli.run(["ablate", *arguments]) == 0
    assert (out / "0/report.json").exists()
    assert {p: p.stat().st_mtime_ns for p in Path(out).rglob("*.safetensors")} == before
    assert (out / "table.md").read_text() == table


def test_other_settings_are_refused(small, capsys):
    arguments, out = small
    variant = ablation._Variant.build(load_ablation(arguments[0]), 0, "both", out, arguments[7:])
    variant.begin({"split": "test"})
    variant.begin({"split": "test"})
    assert cli.run(["ablate", *arguments, "--learning_rate", "0.5"]) == 2
    assert "begun with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x", "wrong.yaml: missing key 'stages', 'variants'"),
        (
            "{title: x, stages: [a], variants: {a: {}}}",
            r"stages: expected a list of 2, got \['a'\]",
        ),
        ("{title: x, stages: [a, b], variants: [a]}", "variants: expected `key: value` lines, got"),
        (
            "{title: x, stages: [a, b], variants: {}, shwon: []}",
            r"unknown key 'shwon' \(did you mean 'shown'\?\)",
        ),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_ablation(path)


def test_a_file_that_is_not_there_is_called_an_ablation(tmp_path):
    with pytest.raises(UsageError, match=r"ablation .*nowhere.yaml does not exist"):
        load_ablation(tmp_path / "nowhere.yaml")
