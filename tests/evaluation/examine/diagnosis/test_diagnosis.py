"""Failure signatures are found where they are put, and nowhere else."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from collamo.chem.conformer import absent_conformer, embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.evaluation.examine.diagnosis import diagnose as diagnose_module
from collamo.evaluation.examine.diagnosis.diagnose import diagnose
from collamo.evaluation.examine.diagnosis.measures import (
    attention_to_atoms,
    cosines,
    entropy,
    likeness,
    shares_of,
    soft_attention,
)
from collamo.evaluation.examine.diagnosis.observation import Observation
from collamo.evaluation.examine.diagnosis.report import sections
from collamo.model import build_model, tiny_llama_config, train_tokenizer
from collamo.model.projector import CoProjector

SIZES = {
    "selfies_config.hidden_size": 16,
    "gin_config": {"num_layers": 2, "hidden_size": 16},
    "unimol_config": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
}
PROJECTOR = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
PROJECTOR |= {"num_query_tokens": 3, "num_gaussians": 8, "hop_buckets": 16}


@pytest.fixture(scope="module")
def molecules():
    found = []
    for smiles in ("CC(=O)Oc1ccccc1C(=O)O", "CCO", "C", "[Na+].[Cl-]"):
        molecule = parse_molecule(smiles)
        found.append(featurize(molecule, embed_conformer(molecule)))
    flat = parse_molecule("CCN")
    return [*found, featurize(flat, absent_conformer("none"))]


def built(**projector):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["How many rings does it have? 1"] * 9, vocab_size=270)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    llm = LlamaForCausalLM(tiny_llama_config(len(tokenizer), **sizes))
    options = {**SIZES, "projector_config": {**PROJECTOR, **projector}}
    model, processor = build_model((llm, tokenizer), options, preset="tiny")
    return model.eval(), processor


def projector_of(model):
    """The last one: an adapter's copy comes after what it stands for."""
    return [m for m in model.modules() if isinstance(m, CoProjector)][-1]


def sentences(found, word):
    return [one for one in found.findings if word in one.sentence]


def test_entropy_and_likeness_by_hand():
    even, one = torch.full((4,), 0.25), torch.tensor([1.0, 0, 0, 0])
    other = torch.tensor([0, 0.5, 0.5, 0])
    assert entropy(even) == pytest.approx(1)
    assert entropy(one) == 0
    assert entropy(other) == pytest.approx(0.5)
    assert likeness(even, even) == pytest.approx(1)
    assert likeness(one, other) == pytest.approx(0, abs=1e-6)
    # Half of each: S(mixture) = 1.5 bit, S(one) = 0, S(half) = 1 bit; JSD = 1 bit of 1.5 − 0.5.
    half = torch.tensor([0.5, 0.5, 0, 0])
    mixture = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    expected = 1 - (mixture - 0.5)
    assert likeness(one, half) == pytest.approx(expected)
    assert likeness(half, one) == pytest.approx(expected)  # symmetric
    assert cosines(torch.stack([even, even, even])) == pytest.approx(1)
    assert cosines(torch.stack([one, other])) == 0


def test_soft_tokens_are_counted_to_their_views_by_hand():
    weights = torch.tensor([0.1, 0, 0.2, 0, 0.1, 0, 0.3, 0, 0.3]).reshape(1, 1, 9)
    seen = Observation({"1d", "2d", "3d"}, {"1d": 2, "2d": 3, "3d": 3}, [], [weights])
    assert shares_of(seen, 0)[0].tolist() == pytest.approx([0.1, 0.3, 0.3, 0.3])
    atoms = attention_to_atoms(seen)
    assert atoms["2d"] == pytest.approx([2, 0, 1])
    assert atoms["3d"] == pytest.approx([0, 3, 0])
    seen.present.remove("1d")
    assert soft_attention(seen, 0)[0, 0] == pytest.approx([1 / 3, 0, 1 / 6, 0, 1 / 2, 0])


def test_a_fresh_model_is_flat_in_bonds_and_a_strong_table_is_not(molecules):
    model, processor = built()
    found = diagnose(model, processor, molecules)
    (phi,) = found.phi
    assert phi.where == "all layers"
    assert max(phi.phi2d) < 0.1
    (finding,) = sentences(found, "Φ2d (bonds) is flat")
    assert not finding.ok
    assert "2 of 2 heads are flat" in finding.sentence
    with torch.no_grad():
        projector_of(model).relation_bias.hop_bias.copy_(torch.arange(16.0).expand(2, 16))
    found = diagnose(model, processor, molecules)
    assert sentences(found, "Φ2d (bonds) varies")[0].ok
    # By hand: of CCO alone, hops 1 (4 pairs) and 2 (2 pairs).
    (alone,) = diagnose(model, processor, molecules[1:2]).phi
    assert alone.phi2d == pytest.approx([np.std([1, 1, 1, 1, 2, 2])] * 2)


@pytest.mark.parametrize("sinks", [True, False])
def test_spread_stands_beside_that_of_an_untrained_bias(molecules, sinks):
    model, processor = built(sinks=sinks)
    before = torch.get_rng_state()
    found = diagnose(model, processor, molecules)
    assert torch.equal(torch.get_rng_state(), before)
    (phi,) = found.phi
    # Nothing was trained: the start is that of other drawings of the same.
    assert phi.start2d == pytest.approx(np.mean(phi.phi2d), rel=0.5)
    assert phi.start3d == pytest.approx(np.mean(phi.phi3d), rel=0.5)
    again = diagnose(model, processor, molecules)
    assert (phi.start2d, phi.start3d) == (again.phi[0].start2d, again.phi[0].start3d)
    for view, start in (("2d", phi.start2d), ("3d", phi.start3d)):
        (finding,) = sentences(found, f"Φ{view} (")
        assert f"untrained ones vary by {start:.2f}" in finding.sentence
        assert f"only “Φ{view} zeroed” tells" in finding.sentence
    (table,) = [part for part in sections(found, molecules) if part.title.startswith("Spread")]
    assert "no evidence" in table.text
    assert table.rows[0][:3] == ["all layers", "Φ2d", f"{phi.start2d:.2f}"]


def test_what_a_sink_takes_is_told_and_not_counted_as_attention(molecules):
    """Equal logits l and a sink s: n keys of n + e^(s - l) go to tokens, and evenly."""
    model, processor = built(sinks=True, phi2d=False, phi3d=False)
    for layer in projector_of(model).layers:
        for block in layer.branches.values():
            torch.nn.init.zeros_(block.attention.query.weight)
            torch.nn.init.zeros_(block.attention.query.bias)
    found = diagnose(model, processor, molecules[1:2])  # ethanol: three atoms
    expected = np.mean([np.exp(sink) / (3 + np.exp(sink)) for sink in (0, 3)])
    for layer in found.layers:
        assert layer.entropy["2d"] == pytest.approx(1)
        assert layer.to_sink["2d"] == pytest.approx(expected)
        assert layer.to_sink["1d"] == pytest.approx(0, abs=1e-6)


def test_the_projector_of_an_adapter_is_looked_into_not_the_one_before(molecules):
    peft = pytest.importorskip("peft")
    model, processor = built()
    options = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["mol_projector"])
    model = peft.get_peft_model(model, options).eval()
    with torch.no_grad():
        projector_of(model).relation_bias.hop_bias.copy_(torch.arange(16.0).expand(2, 16))
    found = diagnose(model, processor, molecules[:1])
    assert sentences(found, "Φ2d (bonds) varies")


def test_dead_narrow_and_broken_gaussians(molecules):
    model, processor = built()
    radial = projector_of(model).relation_bias.radial
    places = torch.from_numpy(molecules[1].conformer.coordinates).double()
    with torch.no_grad():
        radial.mu.copy_(torch.tensor([1.4, 2.4, 2.4, 300, 1e4, 2.4, 2.4, 2.4]))
        radial.mu[2] = torch.dist(places[0], places[1])  # so narrow that it needs a hit
        radial.sigma.copy_(torch.tensor([0.3, 0.3, 1e-3, 1, 1, 1e4, 0.5, 0.5]))
    (found,) = diagnose(model, processor, molecules).gaussians
    assert found.dead == 3 / 8  # out of reach: two; so wide that it is constant: one
    assert found.smallest_sigma == pytest.approx(0.011)
    assert (found.narrow, found.count, found.finite) == (1, 8, True)
    with torch.no_grad():
        radial.sigma[0] = math.nan
    whole = diagnose(model, processor, molecules)
    assert not whole.gaussians[0].finite
    assert any("NaN or infinite" in one.sentence for one in whole.findings if not one.ok)
    json.dumps(whole.to_json(), allow_nan=False)


def test_views_that_attend_alike_are_told(molecules):
    """Equal maps without content: only Φ is left, and both branches have the same."""
    model, processor = built()
    for layer in projector_of(model).layers:
        for block in layer.branches.values():
            torch.nn.init.zeros_(block.attention.query.weight)
    found = diagnose(model, processor, molecules)
    assert [layer.likeness for layer in found.layers] == pytest.approx([1, 1])
    assert not sentences(found, "2D and 3D attend")[0].ok
    assert found.layers[0].entropy["1d"] == pytest.approx(1)
    assert not sentences(found, "1d: a token")[0].ok


def test_a_view_that_is_ignored_is_told(molecules):
    model, processor = built()
    gather = projector_of(model).layers[-1].gather
    with torch.no_grad():  # all logits equal: shares are those of the numbers of tokens
        gather.attention.query.weight.zero_()
        gather.attention.query.bias.zero_()
    found = diagnose(model, processor, molecules[:1])
    tokens = len(molecules[0].selfies), 13, 13
    whole = sum(tokens) + 1  # the zero key
    assert found.layers[-1].shares == [pytest.approx([*(t / whole for t in tokens), 1 / whole])] * 3
    assert found.layers[-1].soft_likeness == pytest.approx(1)
    assert not sentences(found, "Two soft tokens")[0].ok
    for values in found.atoms[0].values():
        assert values == pytest.approx(np.ones(13))
    model.config.modalities = ("1d", "3d")
    (look,) = sentences(diagnose(model, processor, molecules[:1]), "Soft tokens of the last layer")
    assert not look.ok
    assert look.sentence.endswith("ignored: 2d.")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_relation_bias": False},
        {"sinks": True},
        {"sinks": True, "share_relation_bias": False},
        {"collaboration": False},
        {"phi2d": False},
        {"phi3d": False, "zero_attention": False},
        {"num_query_tokens": 1, "radial_head": "linear"},
    ],
)
def test_every_kind_of_model_is_looked_into_and_left_as_it_was(molecules, options):
    model, processor = built(**options)
    model.train()
    inputs = processor.feature_extractor.batch([[molecules[0]]])
    before = model.eval().get_molecule_features(inputs)
    model.train()
    found = diagnose(model, processor, molecules)
    assert model.training
    assert torch.equal(model.eval().get_molecule_features(inputs), before)
    assert found.molecules == 5
    shared = options.get("share_relation_bias", True)
    assert len(found.phi) == (0 if options.get("collaboration") is False else 1 if shared else 4)
    for layer in found.layers:
        assert np.array(layer.shares).sum(1) == pytest.approx(1)
    json.dumps(found.to_json(), allow_nan=False)
    parts = sections(found, molecules)
    pictures = {picture.name for part in parts for picture in part.pictures}
    assert {"attention", "soft_tokens"} <= pictures
    assert ("phi" in pictures) == bool(found.phi)


@pytest.mark.parametrize("which", [[2], [4], [3]], ids=["one atom", "no conformer", "two ions"])
def test_molecules_with_little_to_see(molecules, which):
    model, processor = built()
    found = diagnose(model, processor, [molecules[i] for i in which])
    json.dumps(found.to_json(), allow_nan=False)
    sections(found, [molecules[i] for i in which])


def test_the_sample_follows_the_seed(molecules, monkeypatch):
    monkeypatch.setattr(diagnose_module, "SAMPLE", 2)
    model, processor = built()
    first, again, other = (diagnose(model, processor, molecules, seed=s) for s in (0, 0, 1))
    assert first.to_json() == again.to_json()
    assert set(first.atoms) == set(again.atoms) != set(other.atoms)
