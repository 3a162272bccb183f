import dataclasses

import pytest
from transformers import AutoConfig, PreTrainedConfig

from collamo.errors import UsageError
from collamo.model import CollamoConfig, GinConfig, ProjectorConfig, UniMolConfig
from collamo.model.card import documented, model_card, whose
from collamo.model.configuration import SelfiesEncoderConfig


def test_defaults_are_the_published_sizes():
    config = CollamoConfig.from_overrides("llama2-7b")
    assert config.text_config.hidden_size == 4096
    assert (config.gin_config.num_layers, config.gin_config.hidden_size) == (5, 300)
    unimol = config.unimol_config
    assert (unimol.num_layers, unimol.hidden_size, unimol.num_heads) == (15, 512, 64)


def test_overrides_nested_and_dotted_agree():
    nested = CollamoConfig.from_overrides("tiny", {"projector_config": {"num_layers": 3}})
    dotted = CollamoConfig.from_overrides("tiny", {"projector_config.num_layers": 3})
    assert nested.projector_config.num_layers == dotted.projector_config.num_layers == 3
    assert nested.projector_config.hidden_size == 96  # the preset's other fields stay


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        ({"projector_confg": {}}, "projector_config"),
        ({"projector_config": {"num_layer": 2}}, "num_layers"),
        ({"gin_config.hiden_size": 2}, "hidden_size"),
        ({"text_config": {"hiden_size": 2}}, "hidden_size"),
    ],
)
def test_typo_is_an_error_with_a_suggestion(overrides, hint):
    # transformers itself sets a misspelt key as an attribute and goes on
    with pytest.raises(UsageError, match=f"did you mean '{hint}'"):
        CollamoConfig.from_overrides("tiny", overrides)


def test_unknown_preset_and_wrong_type():
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        CollamoConfig.from_overrides("tny")
    with pytest.raises(UsageError, match="num_layers"):
        CollamoConfig.from_overrides("tiny", {"projector_config.num_layers": "two"})
    with pytest.raises(UsageError, match="radial_head"):
        CollamoConfig.from_overrides("tiny", {"projector_config.radial_head": "conv"})


def test_round_trip(tmp_path):
    config = CollamoConfig.from_overrides("tiny", {"projector_config.num_query_tokens": 5})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, CollamoConfig)
    assert isinstance(again.projector_config, ProjectorConfig)
    ours, theirs = config.to_dict(), again.to_dict()
    assert theirs.pop("_name_or_path") == str(tmp_path)
    assert theirs == {k: v for k, v in ours.items() if k != "_name_or_path"}


@pytest.mark.parametrize(
    "part", [CollamoConfig, GinConfig, ProjectorConfig, SelfiesEncoderConfig, UniMolConfig]
)
def test_every_field_is_documented(part):
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    ours = {f.name for f in dataclasses.fields(part)} - inherited - {"tie_word_embeddings"}
    assert ours
    for name in ours:
        assert name in part.__doc__, f"{part.__name__}.{name}"


@pytest.mark.parametrize("wrong", [["4d"], []])
def test_modalities_are_known_and_some(wrong):
    with pytest.raises(UsageError, match=r"must be one or more of 1d, 2d, 3d"):
        CollamoConfig.from_overrides("tiny", {"modalities": wrong})


@pytest.mark.parametrize(
    "part", ["selfies_config", "gin_config", "unimol_config", "projector_config"]
)
def test_the_card_has_every_constant(part):
    known = {f.name for f in dataclasses.fields(CollamoConfig.sub_configs[part])}
    known -= {f.name for f in dataclasses.fields(PreTrainedConfig)}
    assert set(documented(CollamoConfig.sub_configs[part])) == known


def test_the_card_looks_at_each_value():
    """Its documentation says whose choice the default is, not what was chosen instead."""
    changed = {"projector_config": {"phi2d": False, "num_layers": 2}, "unimol_config.num_layers": 3}
    config = CollamoConfig.from_overrides("llama2-7b", {**changed, "selfies_config.vocab_size": 99})
    for row in (
        "projector_config.phi2d | False | set for this model (the paper's: True)",
        "projector_config.phi3d | True | the paper's",
        "projector_config.num_layers | 2 | set for this model (ours: 5)",
        "projector_config.num_heads | 8 | ours",
        "unimol_config.num_layers | 3 | set for this model (the published encoder's: 15)",
        "unimol_config.num_heads | 64 | the published encoder's",
        "selfies_config.vocab_size | 99 | follows from the data",
    ):
        assert f"| {row} |" in model_card(config)


def test_whose_choice_a_constant_is():
    texts = documented(ProjectorConfig)
    assert whose(texts["modality_dropout"]) == whose(texts["collaboration"]) == "ours"
    assert whose(texts["sinks"]) == "ours"
    assert whose(texts["phi2d"]) == "the paper's"
    assert whose(documented(UniMolConfig)["num_layers"]) == "the published encoder's"
