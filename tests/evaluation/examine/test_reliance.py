"""What is taken away, and from whom: variants of the questions, without a trained model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from handmade import count

from collamo.chem.conformer import absent_conformer, embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.evaluation.examine import reliance
from collamo.evaluation.examine.reliance import (
    ALONE,
    MODEL,
    SAME_SIZE,
    SCATTERED,
    WITHOUT,
    WRONG_MOLECULE,
    ZEROED,
    ZEROED_ALONE,
    answer_variants,
    count_variants,
    make_variants,
    scatter_atoms,
)
from collamo.evaluation.journal import Journal
from collamo.model import ProjectorConfig
from collamo.model.projector import RelationBias

SMILES = ["CCO", "CCN", "CCC", "C", "c1ccccc1O"]


def features_of(smiles, conformer=True):
    molecule = parse_molecule(smiles)
    return featurize(molecule, embed_conformer(molecule) if conformer else absent_conformer("none"))


@pytest.fixture(scope="module")
def features():
    return {row: features_of(smiles) for row, smiles in enumerate(SMILES)}


IDENTITY = dict(enumerate(SMILES))


@pytest.fixture
def asked(monkeypatch):
    """Replace the model: it says which molecule and modalities it was shown; returns all calls."""
    calls = []

    def answer(model, processor, pairs, *, modalities, batch_size, max_new_tokens, progress, keep):
        told = f"{modalities}{model.missing()}"
        texts = {i: f"{molecule.smiles} {told}" for i, (molecule, _) in enumerate(pairs)}
        calls.append(list(texts.values()))
        for place, text in texts.items():  # a batch of one
            keep({place: text})

    monkeypatch.setattr(reliance, "answer", answer)
    return calls


class Model(torch.nn.Module):
    """A model that has nothing but its Φ, and says which of them is not there."""

    def __init__(self, read, **projector):
        super().__init__()
        sizes = ProjectorConfig(num_heads=2, num_gaussians=4, hop_buckets=4, **projector)
        self.config = SimpleNamespace(modalities=read, projector_config=sizes)
        self.phi = RelationBias(sizes)

    def missing(self):
        return "".join(
            f" without {name}"
            for name, part in (("Φ2d", self.phi.hop_bias), ("Φ3d", self.phi.radial))
            if part is None
        )


def run(features, tmp_path, read=("1d", "2d", "3d"), with_reliance=True, **projector):
    examples = [count(row, 1) for row in features]
    model = Model(read, **projector)
    identity = {row: f.smiles for row, f in features.items()}
    variants, pairing = make_variants(features, identity, 0, with_reliance)
    assert len(variants) == count_variants(with_reliance)
    with Journal(tmp_path / "answers.jsonl", {}) as journal:
        answers = answer_variants(model, None, examples, features, variants, journal)
    return answers, pairing


def test_every_variant_shows_what_its_name_says(features, asked, tmp_path):
    found, pairing = run(features, tmp_path)
    taken = [SAME_SIZE, *WITHOUT, *ALONE, SCATTERED, *ZEROED, *ZEROED_ALONE]
    assert list(found) == [MODEL, WRONG_MOLECULE, *taken]
    whole = ("1d", "2d", "3d")
    assert found[MODEL].texts == [f"{smiles} {whole}" for smiles in SMILES]
    for name, modalities in (WITHOUT | ALONE).items():
        assert found[name].texts == [f"{smiles} {modalities}" for smiles in SMILES]
    for name in (WRONG_MOLECULE, SAME_SIZE):
        assert not set(found[name].texts) & {None}
        assert all(a != b for a, b in zip(found[name].texts, found[MODEL].texts, strict=True))
    assert pairing == {
        "molecules": 5,
        "same_size": 3,
        "nearest_size": 2,
        "largest_difference": 4,
    }
    assert found[SCATTERED].unchanged == {3}  # one atom cannot be scattered
    missing = (" without Φ2d", " without Φ3d", " without Φ2d without Φ3d")
    for name, words in zip(ZEROED, missing, strict=True):
        assert found[name].texts == [f"{smiles} {whole}{words}" for smiles in SMILES]
        assert found[name].against == MODEL
    alone = {"Φ2d zeroed without 3d": "without Φ2d", "Φ3d zeroed without 2d": "without Φ3d"}
    for name, words in alone.items():
        rival = found[name].against
        assert rival == f"without {name[-2:]}"
        assert found[name].texts == [f"{text} {words}" for text in found[rival].texts]


@pytest.mark.parametrize(
    ("projector", "unchanged"),
    [
        ({"phi2d": False}, {"Φ2d zeroed"}),
        ({"phi3d": False}, {"Φ3d zeroed"}),
        ({"collaboration": False}, set(ZEROED)),
    ],
)
def test_a_phi_that_the_model_lacks_is_not_asked_for(
    features, asked, tmp_path, projector, unchanged
):
    found, _ = run(features, tmp_path, **projector)
    stood = {name for name in ZEROED if found[name].unchanged == set(range(5))}
    assert stood == unchanged


def test_phi_of_a_view_that_is_not_read_changes_nothing(features, asked, tmp_path):
    flat = {0: features_of("CCO", conformer=False), 1: features[1]}
    found, _ = run(flat, tmp_path)
    assert found["Φ3d zeroed"].unchanged == {0}
    assert not found["Φ2d zeroed"].unchanged
    found, _ = run(features, tmp_path, read=("1d", "3d"))
    assert found["Φ2d zeroed"].unchanged == set(range(5))
    alone = found["Φ2d zeroed without 3d"]
    assert alone.unchanged == set(range(5))
    assert alone.texts == found["without 3d"].texts != found[MODEL].texts


def test_a_view_that_is_not_there_cannot_be_taken_away(features, asked, tmp_path):
    flat = {0: features_of("CCO", conformer=False), 1: features[1]}
    found, _ = run(flat, tmp_path)
    assert found["without 3d"].unchanged == {0}
    assert found["without 3d"].texts[0] == found[MODEL].texts[0]
    assert found[SCATTERED].unchanged == {0}
    assert found["3d only"].texts[0] is None
    assert found["3d only"].texts[1] is not None


def test_a_model_of_one_view_is_asked_nothing_without_it(features, asked, tmp_path):
    found, _ = run(features, tmp_path, read=("1d",))
    assert found["without 1d"].texts == found["2d only"].texts == [None] * 5
    assert found["without 3d"].unchanged == found["1d only"].unchanged == set(range(5))


def test_nothing_is_taken_away_unless_asked(features, asked, tmp_path):
    found, pairing = run(features, tmp_path, with_reliance=False)
    assert list(found) == [MODEL, WRONG_MOLECULE]
    assert pairing == {}


def test_what_is_written_down_is_not_asked_again(features, asked, tmp_path, monkeypatch):
    first, _ = run(features, tmp_path)
    lines = (tmp_path / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_bytes(
        b"".join(lines[:9])[:-3]
    )  # the subject and 7 whole answers
    before = sum(map(len, asked))
    asked.clear()
    again, _ = run(features, tmp_path)
    assert again == first
    assert sum(map(len, asked)) == before - 7


def test_scattered_atoms_know_nothing_of_the_conformer(features):
    phenol = features[4]
    angle = 0.7
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    places = (phenol.conformer.coordinates @ turn.T * 3 + 5).astype(np.float32)
    turned = replace(phenol, conformer=replace(phenol.conformer, coordinates=places))
    one, other = (scatter_atoms(f, "0 key").conformer.coordinates for f in (phenol, turned))
    assert np.array_equal(one, other)
    assert one.shape == (7, 3)
    assert one.dtype == np.float32
    assert np.linalg.norm(one, axis=1).max() <= (3 * 7 * 18 / (4 * np.pi)) ** (1 / 3) + 1e-5
    assert not np.array_equal(one, scatter_atoms(phenol, "1 key").conformer.coordinates)
    assert scatter_atoms(phenol, "0 key").smiles == phenol.smiles


def test_the_ball_is_filled_evenly():
    """Half of the volume lies within 0.5^(1/3) of the radius; the centre of mass is the middle."""
    chain = features_of("C" * 400, conformer=False)
    chain = replace(
        chain, conformer=replace(chain.conformer, coordinates=np.zeros((400, 3), np.float32))
    )
    places = scatter_atoms(chain, "k").conformer.coordinates
    radius = (3 * 400 * 18 / (4 * np.pi)) ** (1 / 3)
    inside = (np.linalg.norm(places, axis=1) < radius * 0.5 ** (1 / 3)).mean()
    assert inside == pytest.approx(0.5, abs=0.1)  # four standard deviations of 400 draws
    assert np.abs(places.mean(0)).max() < 0.2 * radius
