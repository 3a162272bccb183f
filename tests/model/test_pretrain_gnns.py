"""A GIN of pretrain-gnns end to end: official inputs from SMILES, a trained model, answers."""

import gzip
import json

import pytest
import torch
from model_helpers import SMALL, build, pretrain_gnns
from rdkit import Chem
from safetensors.torch import save_file
from trained import trained
from transformers import LlamaForCausalLM

from collamo.chem.conformer import absent_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.cli import run as command
from collamo.data.batch import batch_molecules
from collamo.data.prepared import PreparedData
from collamo.model import build_model, load_checkpoint, load_gin, tiny_llama_config
from collamo.model.encoders import gin_inputs
from collamo.model.precompute import (
    encode_molecules,
    use_encoder_outputs,
)
from collamo.training import stages

#: chem/loader.py of pretrain-gnns: an index is the place in its list, another value an error.
ELEMENTS = list(range(1, 119))
CHIRALITY = [Chem.ChiralType.CHI_UNSPECIFIED, Chem.ChiralType.CHI_TETRAHEDRAL_CW]
CHIRALITY += [Chem.ChiralType.CHI_TETRAHEDRAL_CCW]
BONDS = [Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC]
DIRECTIONS = [Chem.BondDir.NONE, Chem.BondDir.ENDUPRIGHT, Chem.BondDir.ENDDOWNRIGHT]
STEREO = (
    "F/C=C/F",
    "F\\C=C\\F",
    "C[C@H](N)O",
    "C[C@@H](N)/C=C/C#N",
    "c1ccccc1",
    "[Na+].[Cl-]",
    "C",
)


def official(smiles):
    """x [N,2], edges [E,2] and edge_attr [E,2], as the official featuriser makes them."""
    mol = Chem.MolFromSmiles(smiles)
    x = [
        [ELEMENTS.index(atom.GetAtomicNum()), CHIRALITY.index(atom.GetChiralTag())]
        for atom in mol.GetAtoms()
    ]
    edges, attributes = [], []
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        edges += [[i, j], [j, i]]
        kind = [BONDS.index(bond.GetBondType()), DIRECTIONS.index(bond.GetBondDir())]
        attributes += [kind, kind]
    return x, edges, attributes


def ours(smiles):
    batch = batch_molecules([[featurize(parse_molecule(smiles), absent_conformer("2D"))]], {})
    tensors = batch.atom_features, batch.edge_features, batch.bond_directions
    x, edge_attr = gin_inputs("pretrain-gnns", *tensors)
    return [part[0, 0].tolist() for part in (x, batch.edge_index, edge_attr)]


def test_inputs_are_the_official_ones(shared_golden):
    with gzip.open(shared_golden / "ogb_features.jsonl.gz", "rt") as lines:
        smiles = [json.loads(line)["smiles"] for line in lines]
    known, directed = 0, 0
    for text in (*STEREO, *smiles):
        try:
            expected = official(text)
        except ValueError:  # an element, chirality or bond that it does not know
            continue
        assert ours(text) == list(map(list, expected)), text
        known += 1
        directed += any(direction for _, direction in expected[2])
    assert known > 290
    assert directed > 20


def test_what_the_tables_lack():
    """No row for a dummy atom, a dative bond or a square-planar centre: hidden, hidden, none."""
    x, _, edge_attr = ours("*C")
    assert x == [[119, 0], [5, 0]]
    x, _, edge_attr = ours("N->[Pt@SP1](Cl)(Cl)<-N")
    assert [chirality for _, chirality in x] == [0] * 5
    assert [kind for kind, _ in edge_attr] == [5, 5, 0, 0, 0, 0, 5, 5]


def convolved(weights, smiles):
    """The official levels, edge by edge: self loops of bond type 4, no ReLU at the end."""
    x, edges, attributes = official(smiles)
    h = torch.stack(
        [
            weights["x_embedding1.weight"][element] + weights["x_embedding2.weight"][chirality]
            for element, chirality in x
        ]
    )
    loops = [([i, i], [4, 0]) for i in range(len(x))]
    levels, rounds = [h], len({name.split(".")[1] for name in weights if "gnns" in name})
    for i in range(rounds):
        w = {k.removeprefix(f"gnns.{i}."): v for k, v in weights.items() if f"gnns.{i}." in k}
        total = torch.zeros_like(h)
        for (source, target), (kind, direction) in [*zip(edges, attributes, strict=True), *loops]:
            bond = w["edge_embedding1.weight"][kind] + w["edge_embedding2.weight"][direction]
            total[target] += h[source] + bond
        h = (total @ w["mlp.0.weight"].T + w["mlp.0.bias"]).relu()
        h = h @ w["mlp.2.weight"].T + w["mlp.2.bias"]
        norm = {k.split(".")[2]: v for k, v in weights.items() if f"batch_norms.{i}." in k}
        h = (h - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt()
        h = h * norm["weight"] + norm["bias"]
        h = h.relu() if i + 1 < rounds else h
        levels.append(h)
    return levels


def test_levels_from_smiles_are_the_official_ones():
    weights = pretrain_gnns()
    molecules = [featurize(parse_molecule(smiles), absent_conformer("2D")) for smiles in STEREO]
    with torch.no_grad():
        found = list(encode_molecules(molecules, load_gin(weights), [0, 1, 2]))
    for smiles, levels in zip(STEREO, found, strict=True):
        for level, expected in zip(levels.unbind(1), convolved(weights, smiles), strict=True):
            torch.testing.assert_close(level, expected)
    assert not torch.allclose(found[0], found[1])  # one molecule, written with other directions


@pytest.fixture(scope="module")
def run():
    return trained()


@pytest.fixture
def file(tmp_path):
    save_file(pretrain_gnns(width=16), tmp_path / "hu.safetensors")
    return tmp_path / "hu.safetensors"


@pytest.mark.slow
def test_prepare_train_save_and_ask(run, file, tmp_path, capsys):
    """The shards' directions reach the GIN in training, an opened checkpoint and `collamo ask`."""
    options = ["--gin", str(file), "--train_encoders=false", "--max_steps=1", "--facts_weight=0"]
    final = stages.train(run.recipe("stage1", tmp_path / "out", *options))
    model, processor = load_checkpoint(final)
    assert model.config.gin_config.flavour == "pretrain-gnns"
    loaded = load_gin(file).state_dict()
    kept = model.model.graph_encoder.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in loaded.items())
    soft = []
    for smiles in STEREO[:2]:
        inputs = processor(processor.prompt("What is it?"), [smiles], modalities=("2d",))
        soft.append(model(**inputs).molecule_hidden_states)
        beams = model.generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False)
        assert beams.shape[0] == 1
    assert not torch.equal(*soft)
    assert command(["ask", STEREO[0], "What is it?", "--checkpoint", str(final)]) == 0
    capsys.readouterr()
    tune = ["--init_from", str(final), "--max_steps=1"]
    stages.train(run.recipe("stage2", tmp_path / "two", *tune))


def test_a_converted_file_and_stored_outputs(file, tokenizer, tmp_path, capsys):
    assert command(["convert", str(file), str(tmp_path / "gin")]) == 0
    source = tmp_path / "a.smi"
    source.write_text("F/C=C/F\nCCO\n")
    prepare = ["prepare", str(source), "--out", str(tmp_path / "data"), "--workers", "1"]
    encode = ["--encode", "--encode-dtype", "float32", "--encode-layers", "2"]
    assert command([*prepare, *encode, "--gin", str(tmp_path / "gin")]) == 0
    assert "2d: levels 1, 2 of 16 channels" in capsys.readouterr().out
    llm = tiny_llama_config(len(tokenizer), hidden_size=32, num_hidden_layers=1)
    sizes = {"projector_config": SMALL["projector_config"], "gin_config.dropout": 0.1}
    pair = LlamaForCausalLM(llm), tokenizer
    model, processor = build_model(pair, sizes, preset="tiny", gin=tmp_path / "gin")
    assert (model.config.gin_config.flavour, model.config.gin_config.dropout) == (
        "pretrain-gnns",
        0.1,
    )
    model.model.graph_encoder.requires_grad_(False)
    data = PreparedData.open(tmp_path / "data")
    prompts = [processor.prompt("What is it?")] * 2
    inputs = [processor(prompts, [data.features(1), data.features(2)])]
    assert use_encoder_outputs(model, data) == ["2d"]
    inputs.append(processor(prompts, [data.features(1), data.features(2)]))
    assert [("encoded_2d" in one) for one in inputs] == [False, True]
    with torch.no_grad():
        run_encoder, stored = (model(**one).logits for one in inputs)
    torch.testing.assert_close(run_encoder, stored)


def test_a_fresh_one_trains_all_its_parts(tokenizer, inputs):
    """The flavour is a field of the configuration too, without any file."""
    model, _ = build(tokenizer, {"gin_config.flavour": "pretrain-gnns"})
    model.train()
    model(**inputs).logits.sum().backward()
    names = dict(model.model.graph_encoder.named_parameters())
    assert all(parameter.grad is not None for parameter in names.values())
    assert names["gnns.0.bond_encoder.bond_embedding_list.1.weight"].grad.any()
