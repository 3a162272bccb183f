from pathlib import Path

import pytest
import yaml

from collamo.ablation import load_ablation
from collamo.errors import UsageError
from collamo.training.recipe import LoraRecipe, RelationRates, load_recipe, parse_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
ALIGN = {"stage": "align", "data": "d", "output": "o", "llm": "l"}


@pytest.mark.parametrize("name", ["tiny_lm", "stage1", "stage2"])
def test_the_shipped_recipes_are_valid_and_stay_in_the_demo_folder(name):
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    assert recipe.data == "demo/data"
    assert Path(recipe.output).parts[0] == "demo"


def test_the_shipped_recipes_follow_on_from_each_other():
    language_model, align, tune = (
        load_recipe(CONFIGS / f"{name}.yaml") for name in ("tiny_lm", "stage1", "stage2")
    )
    assert align.llm == f"{language_model.output}/final"
    assert tune.init_from == f"{align.output}/final"


def test_a_recipe_of_the_package_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("configs/stage1.yaml") == load_recipe(CONFIGS / "stage1.yaml")
    ablation = load_ablation("configs/ablations/relations.yaml")
    assert [load_recipe(stage).stage for stage in ablation.stages] == ["align", "tune"]
    (tmp_path / "configs").mkdir()
    own = (CONFIGS / "stage1.yaml").read_text().replace("demo/data", "my/data")
    (tmp_path / "configs" / "stage1.yaml").write_text(own)
    assert load_recipe("configs/stage1.yaml").data == "my/data"
    with pytest.raises(UsageError, match=r"recipe configs/stage3.yaml does not exist"):
        load_recipe("configs/stage3.yaml")


def test_lora_defaults_are_those_of_the_predecessor():
    assert LoraRecipe() == LoraRecipe(8, 32, 0.05, ("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian_encoders": True}, r"unknown key 'trian_encoders' \(did you mean 'train_encoders'"),
        ({"lora": {"rnak": 4}}, r"lora: unknown key 'rnak' \(did you mean 'rank'\?\)"),
        ({"tasks": {"per_mol": 4}}, r"tasks: unknown key 'per_mol' \(did you mean 'per_molecule'"),
        ({"training": {"learning_rat": 1}}, r"'training.learning_rat' \(did you mean 'learning_ra"),
        ({"training": {"warmup_ratio": 0.1}}, "training.warmup_ratio is now called warmup_steps"),
        ({"training": {"output_dir": "x"}}, "training.output_dir cannot be set: set `output`"),
        ({"training": {"logging_nan_inf_filter": True}}, "cannot be set"),
        ({"training": {"enable_jit_checkpoint": True}}, "SIGTERM always leaves a sealed checkp"),
        ({"training": {"max_steps": "many"}}, "max_steps: expected a whole number, got 'many'"),
        ({"training": {"max_steps": 1.5}}, "max_steps: expected a whole number, got 1.5"),
        ({"training": {"bf16": "maybe"}}, "bf16: expected true or false, got 'maybe'"),
        ({"training": {"learning_rate": True}}, "learning_rate: expected a number, got True"),
        (
            {"training": {"lr_scheduler_type": "cosin"}},
            r"'cosin' is none of .*did you mean 'cosine",
        ),
        ({"training": 3}, "training: expected `key: value` lines, got 3"),
        ({"stage": "algin"}, r"stage: 'algin' is none of .*did you mean 'align'"),
        ({"data": 3}, "data: expected text, got 3"),
        ({"tasks": {"names": "caption"}}, "tasks: names: expected a list, got 'caption'"),
        ({"tasks": {"per_molecule": 0}}, "tasks.per_molecule must be at least 1"),
        ({"lora": {"dropout": 1.0}}, r"lora.dropout must lie in \[0, 1\)"),
        ({"llm": None}, "stage align needs `llm`"),
        ({"llm": None, "init_from": "x", "gin": "y"}, "gin is read where stage align begins"),
        ({"init_from": "x"}, "drop llm"),
        ({"stage": "tune", "llm": None}, "stage tune needs `init_from`"),
        ({"molecules_as": "smiles"}, "molecules_as: smiles belongs to stage tune"),
        ({"stage": "tune", "llm": None, "molecules_as": "smiles"}, "smiles needs `llm`"),
        (
            {"stage": "tune", "molecules_as": "smiles", "relation_rates": {"radial": 5}},
            "molecules_as: smiles trains no projector",
        ),
        ({"stage": "tune", "molecules_as": "smiles", "gin": "x"}, "gin is read where stage align"),
        ({"tasks": {"longest_answer": 0}}, "tasks.longest_answer must be at least 1"),
        ({"stage": "language_model"}, "trains from nothing"),
        (
            {"tasks": {"shares": {"caption": 0}}},
            "tasks.shares.caption must be above 0",
        ),
        ({"tasks": {"shares": {"caption": "x"}}}, "tasks: shares: caption: expected a number"),
        ({"facts_weight": -1}, "facts_weight must be at least 0"),
        (
            {"stage": "tune", "llm": None, "init_from": "x", "facts_weight": 1},
            "facts_weight belongs to stage align",
        ),
        ({"projector_learning_rate": 0}, "projector_learning_rate must be above 0"),
        (
            {"stage": "language_model", "llm": None, "projector_learning_rate": 1e-4},
            "stage language_model has no projector",
        ),
        ({"relation_rates": {"hop_bias": 0}}, "relation_rates.hop_bias must be above 0"),
        ({"relation_rates": {"radial": -1}}, "relation_rates.radial must be above 0"),
        ({"relation_rates": {"hops": 2}}, "relation_rates: unknown key 'hops'"),
        (
            {"stage": "language_model", "llm": None, "relation_rates": {"radial": 2}},
            "stage language_model has no projector",
        ),
    ],
)
def test_a_wrong_recipe_names_the_key_and_the_way_out(changes, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe({**ALIGN, **changes})


def test_a_bare_no_is_the_strategy_not_a_truth_value(tmp_path):
    path = write(tmp_path, yaml.safe_dump(ALIGN) + "training:\n  eval_strategy: no\n")
    training = load_recipe(path, ["--save_strategy", "no"]).training
    assert training == {"eval_strategy": "no", "save_strategy": "no"}


@pytest.mark.parametrize("key", ["stage", "data", "output"])
def test_a_missing_key_is_named(key):
    with pytest.raises(UsageError, match=f"missing key '{key}'"):
        parse_recipe({k: v for k, v in ALIGN.items() if k != key})


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_overrides_are_dotted_or_short_and_typed(tmp_path):
    path = write(tmp_path, yaml.safe_dump({**ALIGN, "training": {"max_steps": 5}}))
    overrides = [
        *("--training.learning_rate", "1e-4", "--max-steps=7", "--rank", "4"),
        *("--data", "my data", "--tasks.names", "[caption]"),
        *("--train_encoders", "false", "--model.a.b", "3"),
        *("--relation_rates.hop_bias", "30"),
    ]
    recipe = load_recipe(path, overrides)
    assert recipe.training == {"learning_rate": 1e-4, "max_steps": 7}
    assert recipe.lora.rank == 4
    assert recipe.data == "my data"
    assert recipe.tasks.names == ("caption",)
    assert recipe.train_encoders is False
    assert recipe.model == {"a": {"b": 3}}
    assert recipe.relation_rates == RelationRates(hop_bias=30.0, radial=1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--learning-rat", "1"], r"unknown option --learning_rat \(did you mean 'learning_rate'"),
        (["--training.max_step", "1"], r"unknown option --training.max_step .*training.max_steps"),
        (["--lora.rnk", "1"], r"unknown option --lora.rnk \(did you mean 'lora.rank'"),
        (["--nowhere.x", "1"], "unknown option --nowhere.x"),
        (["--max_steps"], "--max_steps needs a value"),
        (["7"], "unexpected argument '7'"),
        (["--max_steps", "[1"], "cannot read the value"),
        (["--max_steps", "soon"], "max_steps: expected a whole number, got 'soon'"),
        (["--data.x", "1"], "unknown option --data.x"),
    ],
)
def test_a_wrong_override_is_a_usage_error(tmp_path, overrides, message):
    path = write(tmp_path, yaml.safe_dump(ALIGN))
    with pytest.raises(UsageError, match=message):
        load_recipe(path, overrides)


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(UsageError, match=r"stage1.yml does not exist \(did you mean .*stage1.yaml"):
        load_recipe(CONFIGS / "stage1.yml")
    with pytest.raises(UsageError, match="is not YAML"):
        load_recipe(write(tmp_path, "a: [1"))
    with pytest.raises(UsageError, match="holds no `key: value` lines"):
        load_recipe(write(tmp_path, "just text"))
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path)
