"""Molecules in any form to one batch."""

import json

import pytest
import torch

from collamo.chem.conformer import absent_conformer
from collamo.chem.molecule import parse_molecule
from collamo.errors import CollamoError, MoleculeError
from collamo.model import MoleculeFeatureExtractor


def test_vocabulary_is_in_the_saved_json(tmp_path):
    extractor = MoleculeFeatureExtractor(["[C]", "[O]"], conformer_seed=7)
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["selfies_tokens"] == ["[C]", "[O]"]
    again = MoleculeFeatureExtractor.from_pretrained(tmp_path)
    assert (again.selfies_tokens, again.conformer_seed) == (["[C]", "[O]"], 7)


def test_text_molecule_and_features_give_the_same_tensors(processor, features):
    text = "CC(=O)Oc1ccccc1C(=O)O"
    extractor = processor.feature_extractor
    one, two, three = (extractor([[m]]) for m in (text, parse_molecule(text), features[text]))
    assert one["has_3d"].all()
    for name in one:
        assert torch.equal(one[name], two[name])
        assert torch.equal(one[name], three[name])


def test_conformers_are_embedded_only_where_3d_is_asked_for(processor, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("embedded")

    monkeypatch.setattr("collamo.model.feature_extractor.embed_conformer_limited", refuse)
    batch = processor.feature_extractor([["CCO"]], modalities=("1d", "2d"))
    assert not batch["has_3d"].any()
    with pytest.raises(AssertionError, match="embedded"):
        processor.feature_extractor([["CCO"]])


@pytest.mark.parametrize("modalities", [("3d",), ("1d", "3d"), ("2d", "3d")])
def test_a_molecule_that_is_not_read_is_named(processor, monkeypatch, caplog, modalities):
    monkeypatch.setattr(
        "collamo.model.feature_extractor.embed_conformer_limited",
        lambda *_, **__: absent_conformer("no geometry was found"),
    )
    processor.feature_extractor([["CCO"]], modalities=modalities)
    said = "'CCO' has none of the modalities ['3d'] (no conformer: no geometry was found)"
    assert (said in caplog.text) is (modalities == ("3d",))


@pytest.mark.parametrize("modalities", [(), ("4d",), ("1d", "x")])
def test_unknown_modalities(processor, modalities):
    with pytest.raises((ValueError, CollamoError), match="modalit"):
        processor("<mol>", ["CCO"], modalities=modalities)


def test_bad_smiles_is_named(processor):
    with pytest.raises(MoleculeError, match="C1CC"):
        processor("<mol>", ["C1CC"], modalities=("1d", "2d"))
