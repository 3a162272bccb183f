"""Published encoders: what loads, what it computes, and what is refused, with its reason."""

import argparse
import hashlib
import json
import logging
import os

import numpy as np
import pytest
import torch
from model_helpers import SMALL, pretrain_gnns
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from collamo.chem.conformer import absent_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.cli import run
from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.model import (
    GinConfig,
    UniMolConfig,
    build_model,
    convert_encoder,
    load_gin,
    load_unimol,
    tiny_llama_config,
)
from collamo.model.encoders import GinEncoder, UniMolEncoder
from collamo.model.precompute import encode_molecules
from collamo.model.weight_files import read_weights

HEADS = {
    "lm_head.weight": torch.zeros(31, 16),
    "pair2coord_proj.linear1.weight": torch.zeros(2, 2),
    "dist_head.dense.bias": torch.zeros(2),
    "encoder.final_head_layer_norm.weight": torch.ones(2),
}


@pytest.fixture
def unimol():
    """A small Uni-Mol; 3 heads are what the tensors of its attention do not tell."""
    sizes = {"num_layers": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 3}
    return UniMolEncoder(UniMolConfig(**sizes, num_gaussians=8)).eval()


@pytest.fixture
def gin():
    encoder = GinEncoder(GinConfig(num_layers=2, hidden_size=12)).eval()
    for norm in encoder.batch_norms:
        norm.running_mean.normal_()
    return encoder


def moleculestm(gin, rows=5):
    """The state dict of `gin` as MoleculeSTM saves it."""
    named = {f"molecule_node_model.{k}": v.clone() for k, v in gin.state_dict().items()}
    table = "molecule_node_model.atom_encoder.atom_embedding_list.1.weight"
    named[table] = named[table][:rows].clone()
    return {**named, "graph_pred_linear.weight": torch.zeros(1, 12)}


def unimol_inputs():
    tokens = torch.tensor([[1, 4, 5, 6, 2], [1, 4, 2, 0, 0]])
    distance = torch.rand(2, 5, 5) * 5
    return tokens, distance, torch.randint(0, 961, (2, 5, 5))


GRAPH = (
    torch.tensor([[5, 0, 4, 5, 3, 0, 2, 0, 0], [7, 3, 2, 5, 1, 0, 2, 0, 0]]),
    torch.tensor([[0, 1], [1, 0]]),
    torch.tensor([[0, 0, 0], [0, 0, 0]]),
)


# --- official outputs ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["padded", "nopad"])
def test_unimol_file_gives_the_official_numbers(shared_golden, name):
    encoder = load_unimol(shared_golden / "unimol_checkpoint.safetensors")
    config = encoder.config
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (3, 64, 128)
    assert (config.num_heads, config.num_gaussians, config.vocab_size) == (8, 128, 31)
    data = load_file(shared_golden / f"unimol_{name}.safetensors")
    inputs = [data[f"in.src_{key}"] for key in ("tokens", "distance", "edge_type")]
    with torch.no_grad():
        levels = encoder.levels(*inputs)
        carried = note_carried_logits(encoder)
        representation, pair = encoder(*inputs)
    real = inputs[0] != 0
    both = real[:, :, None] & real[:, None, :]
    # Tolerances of the golden set's README.
    assert list(levels) == [0, 1, 2, 3]
    for number in range(3):
        official = data[f"mid.layer{number - 1}.x" if number else "mid.layer_input"]
        torch.testing.assert_close(levels[number][real], official[real], **within(2e-5))
    assert torch.equal(levels[3], representation)
    torch.testing.assert_close(representation[real], data["out.encoder_rep"][real], **within(1e-5))
    torch.testing.assert_close(pair[both], data["out.encoder_pair_rep"][both], **within(3e-5))
    names = ["mid.attn_bias_initial", *(f"mid.layer{number}.pair" for number in range(3))]
    for logits, official in zip([*carried, pair[both]], names, strict=True):
        official = data[official].permute(0, 2, 3, 1)[both]
        torch.testing.assert_close(logits, official, **within(3e-5))


def within(tolerance):
    return {"atol": tolerance, "rtol": 0}


def note_carried_logits(encoder):
    """Return a list that calls of `encoder` fill with the bias each layer is given, [P,H]."""
    found = []

    def note(_, arguments):
        found.append(arguments[1].t().clone())

    for layer in encoder.encoder.layers:
        layer.self_attn.register_forward_pre_hook(note)
    return found


def test_unimol_gaussians_are_the_official_ones(shared_golden):
    encoder = load_unimol(shared_golden / "unimol_checkpoint.safetensors")
    data = load_file(shared_golden / "unimol_padded.safetensors")
    with torch.no_grad():
        psi = encoder.gbf(data["in.src_distance"], data["in.src_edge_type"])
        heads = encoder.gbf_proj(psi)
    torch.testing.assert_close(psi, data["mid.gbf"], **within(1e-5))
    torch.testing.assert_close(heads, data["mid.gbf_proj"], **within(2e-5))


@pytest.mark.parametrize("rows", ["ogb135", "ogb136"])
def test_the_official_numbers_from_smiles(shared_golden, rows):
    """Through our own featuriser and batch: salts, metals, stereo, single atoms."""
    gin = load_gin(shared_golden / f"gin_checkpoint_{rows}.safetensors")
    molecules = json.loads((shared_golden / "gin.json").read_text())["molecules"]
    data = load_file(shared_golden / "gin_io.safetensors")
    features = [featurize(parse_molecule(m["smiles"]), absent_conformer("2D")) for m in molecules]
    with torch.no_grad():
        found = encode_molecules(features, gin, list(range(6)))
    for number, level in enumerate(torch.cat(list(found)).unbind(1)):
        torch.testing.assert_close(level, data[f"mid.h{number}"], **within(1e-5))


@pytest.mark.parametrize("rows", ["ogb135", "ogb136"])
def test_gin_files_give_the_official_numbers(shared_golden, rows):
    gin = load_gin(shared_golden / f"gin_checkpoint_{rows}.safetensors")
    data = load_file(shared_golden / "gin_io.safetensors")
    with torch.no_grad():
        levels = gin(*(data[f"in.{name}"] for name in ("x", "edge_index", "edge_attr")))
    assert len(levels) == 6
    # Three times what the official code in float32 is off from itself in float64, 2.9e-6.
    for number, level in enumerate(levels):
        torch.testing.assert_close(level, data[f"mid.h{number}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(levels[-1], data["out.node_representation"], atol=1e-5, rtol=0)


def test_misc_chirality(shared_golden):
    data = load_file(shared_golden / "gin_io_misc_chirality.safetensors")
    inputs = [data[f"in.{name}"] for name in ("x", "edge_index", "edge_attr")]
    assert (inputs[0][:, 1] == 4).any()
    new, old = (load_gin(shared_golden / f"gin_checkpoint_ogb13{i}.safetensors") for i in (6, 5))
    with torch.no_grad():
        levels = new(*inputs)
        # As above: three times the official code's own error.
        torch.testing.assert_close(levels[-1], data["mid.h5"], atol=1e-5, rtol=0)
        # Without a row of its own misc is what CHI_OTHER is.
        other = inputs[0].clone()
        other[:, 1][other[:, 1] == 4] = 3
        assert torch.equal(old(*inputs)[-1], old(other, *inputs[1:])[-1])


# --- what loads ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dict", "safetensors", "pt", "pth", "wrapped", "prefixed"])
def test_unimol_loads_from_anything(unimol, tmp_path, kind):
    """Sizes come from the tensors, heads are left out, the numbers are the same."""
    weights = {**unimol.state_dict(), **HEADS}
    source = tmp_path / f"weights.{kind}"
    if kind == "dict":
        source = weights
    elif kind == "safetensors":
        save_file(weights, source)
    elif kind == "prefixed":
        source = {f"module.{name}": value for name, value in weights.items()}
    else:
        options = argparse.Namespace(encoder_layers=2)  # as Uni-Core saves its own
        source = tmp_path / "weights.pt" if kind == "wrapped" else source
        torch.save({"model": weights, "args": options} if kind == "wrapped" else weights, source)
    loaded = load_unimol(source, dropout=0.25)
    assert not loaded.training
    assert loaded.config.num_heads == 3
    assert loaded.config.dropout == 0.25
    inputs = unimol_inputs()
    for ours, theirs in zip(loaded(*inputs), unimol(*inputs), strict=True):
        assert torch.equal(ours, theirs)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_loading_copies(unimol):
    weights = unimol.state_dict()
    loaded = load_unimol(weights)
    with torch.no_grad():
        loaded.embed_tokens.weight.zero_()
    assert weights["embed_tokens.weight"].any()


def test_half_precision_is_widened(gin):
    half = {
        name: value.half() if value.is_floating_point() else value
        for name, value in moleculestm(gin).items()
    }
    assert {p.dtype for p in load_gin(half).parameters()} == {torch.float32}


@pytest.mark.parametrize("rows", [4, 5])
def test_chirality_rows(gin, rows, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load_gin(moleculestm(gin, rows))
    table = loaded.atom_encoder.atom_embedding_list[1].weight
    original = gin.atom_encoder.atom_embedding_list[1].weight
    assert torch.equal(table[:4], original[:4])
    assert torch.equal(table[4], original[4] if rows == 5 else original[3])
    assert ("chirality" in caplog.text) == (rows == 4)
    assert all(map(torch.equal, loaded(*GRAPH), gin(*GRAPH)))


def test_pretrain_gnns_is_its_formula():
    """Self loops of bond type 4, no ReLU on messages, no ReLU after the last round."""
    w = pretrain_gnns()
    x, edges = torch.tensor([[5, 0], [7, 1], [7, 0]]), [(0, 1), (1, 0)]
    bonds = torch.tensor([[1, 2], [1, 2]])
    h = w["x_embedding1.weight"][x[:, 0]] + w["x_embedding2.weight"][x[:, 1]]
    levels = [h]
    for i in range(2):
        first, second = (w[f"gnns.{i}.edge_embedding{j}.weight"] for j in (1, 2))
        total = h + first[4] + second[0]
        for (source, target), (kind, direction) in zip(edges, bonds, strict=True):
            total = total.clone()
            total[target] += h[source] + first[kind] + second[direction]
        mlp = [(w[f"gnns.{i}.mlp.{j}.weight"], w[f"gnns.{i}.mlp.{j}.bias"]) for j in (0, 2)]
        h = (total @ mlp[0][0].T + mlp[0][1]).relu() @ mlp[1][0].T + mlp[1][1]
        mean, var = (w[f"batch_norms.{i}.running_{name}"] for name in ("mean", "var"))
        h = (h - mean) / (var + 1e-5).sqrt() * w[f"batch_norms.{i}.weight"]
        h = h + w[f"batch_norms.{i}.bias"]
        h = h.relu() if i == 0 else h
        levels.append(h)
    with torch.no_grad():
        loaded = load_gin(w)(x, torch.tensor(edges).T, bonds)
    assert len(loaded) == 3
    for ours, theirs in zip(loaded, levels, strict=True):
        torch.testing.assert_close(ours, theirs)


# --- what is refused -------------------------------------------------------------------------


def test_every_problem_in_one_message(unimol):
    weights = unimol.state_dict()
    del weights["gbf_proj.linear2.weight"], weights["encoder.layers.0.fc1.bias"]
    weights["encoder.layers.1.fc2.bias"] = torch.zeros(25)
    weights["embed_tokens.weight"] = torch.zeros(31, 23)
    weights["encoder.surprise"] = torch.zeros(1)
    with pytest.raises(UsageError) as caught:
        load_unimol(weights)
    message = str(caught.value)
    assert "2 missing: encoder.layers.0.fc1.bias, gbf_proj.linear2.weight" in message
    assert "1 unexpected: encoder.surprise" in message
    assert "encoder.layers.1.fc2.bias is [25], expected [24]" in message
    assert "embed_tokens.weight is [31, 23], expected [31, 24]" in message


def test_names_of_the_file_in_messages():
    weights = {f"gnn.{name}": value for name, value in pretrain_gnns().items()}
    del weights["gnn.gnns.1.edge_embedding2.weight"]
    with pytest.raises(UsageError, match=r"1 missing: gnn\.gnns\.1\.edge_embedding2\.weight$"):
        load_gin(weights)


def test_the_other_architecture_is_recognised(unimol, gin):
    with pytest.raises(UsageError, match=r"not Uni-Mol: it looks like an OGB-style GIN.*--gin"):
        load_unimol(moleculestm(gin))
    with pytest.raises(UsageError, match=r"not an OGB-style GIN: it looks like Uni-Mol.*--unimol"):
        load_gin(unimol.state_dict())
    with pytest.raises(UsageError, match=r"it holds lm\.weight$"):
        load_gin({"lm.weight": torch.zeros(2, 2)})


def test_a_whole_model_is_no_encoder(gin):
    weights = {f"model.graph_encoder.{k}": v for k, v in gin.state_dict().items()}
    weights["model.mol_projector.norm.bias"] = torch.zeros(1)
    with pytest.raises(UsageError, match=r"is a whole CoLLaMo model, not an OGB-style GIN"):
        load_gin(weights)


def test_overrides_are_checked(unimol):
    with pytest.raises(UsageError, match=r"'dropuot' .*did you mean 'dropout'"):
        load_unimol(unimol.state_dict(), dropuot=0.1)
    with pytest.raises(UsageError, match=r"misshapen: .*gbf_proj\.linear2\.weight is \[3, 8\]"):
        load_unimol(unimol.state_dict(), num_heads=4)
    with pytest.raises(UsageError, match=r"not one of auto, ogb, pretrain-gnns"):
        load_gin(pretrain_gnns(), flavour="gcn")


class Trap:
    """What an attacker pickles: opening it with pickle makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(unimol, tmp_path, zipped, wrapped):
    place, file = tmp_path / "made", tmp_path / "evil.pth"
    content = {"model": unimol.state_dict(), "args": Trap(place)} if wrapped else Trap(place)
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CollamoError, match=r"mkdir.*nothing was executed"):
        load_unimol(file)
    assert not place.exists()
    assert run(["convert", str(file), str(tmp_path / "out")]) == 1
    assert not place.exists()
    torch.load(file, weights_only=False)  # the trap does work
    assert place.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files(unimol, tmp_path, suffix, share):
    file = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(unimol.state_dict(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CollamoError, match=r"truncated or damaged"):
        load_unimol(file)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_flipped_bits(unimol, tmp_path, suffix):
    """Every flip in a converted or zipped file is seen."""
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(unimol.state_dict(), file)
    else:
        save_file(unimol.state_dict(), tmp_path / "plain.safetensors")
        convert_encoder(tmp_path / "plain.safetensors", tmp_path / "out")
        file = tmp_path / "out" / "model.safetensors"
    content = bytearray(file.read_bytes())
    stored = unimol.encoder.layers[1].fc1.weight.detach().numpy().tobytes()
    start = bytes(content).index(stored)
    for byte in range(start, start + len(stored), 401):
        content[byte] ^= 1
        file.write_bytes(content)
        with pytest.raises(CollamoError, match=r"is damaged"):
            load_unimol(file)
        content[byte] ^= 1
    file.write_bytes(content)
    load_unimol(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_absurd_values(gin, value):
    weights = moleculestm(gin)
    weights["molecule_node_model.batch_norms.1.bias"][3] = value
    with pytest.raises(CollamoError, match=r"beyond 1e\+08 in molecule_node_model\.batch_norms"):
        load_gin(weights)


def test_no_file_another_kind_and_no_tensors(tmp_path):
    with pytest.raises(MissingDependencyError, match=r"does not exist"):
        load_unimol(tmp_path / "no.pt")
    (tmp_path / "a.ckpt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"must end in"):
        load_unimol(tmp_path / "a.ckpt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UsageError, match=r"holds list, not a dictionary"):
        load_unimol(tmp_path / "list.pt")
    with pytest.raises(UsageError, match=r"more than tensors: step"):
        load_unimol({"a": torch.zeros(1), "step": 3})


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 181\n",
            "is a Git LFS pointer, not weights: run `git lfs pull`",
        ),
        (b"<!DOCTYPE html>\n<html lang='en'>Log in</html>", "is an HTML page, not weights"),
        (b"\n <html><body>quota exceeded</body></html>", "is an HTML page, not weights"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is an XML page, not weights"),
        (b'{"error": "Repository not found"}', "is JSON text, not weights"),
        (b"\x1f\x8b\x08\x08A1hi packed", "is a gzip file, not weights: unpack it"),
    ],
)
def test_what_is_no_weights_is_called_what_it_is(tmp_path, suffix, content, words):
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(content)
    for load in (load_unimol, load_gin, read_weights):
        with pytest.raises(UsageError) as caught:
            load(file)
        assert words in str(caught.value)


@pytest.mark.parametrize("length", [0x7B20, 0x5B0A20, 0x088B1F, 0x227B20])
def test_the_length_of_a_header_is_not_taken_for_text(tmp_path, length):
    """It is what safetensors begins with, and may look like ``{`` or the mark of gzip."""
    tensors = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(tensors).encode().ljust(length)
    file = tmp_path / "long.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert read_weights(file)["a"].tolist() == [0.0]


@pytest.mark.parametrize(
    "content", [b"weights\n", b"\x80\x02}q\x00", bytes(range(1, 256)), b"vOOps", b"\x80\x05."]
)
def test_no_message_advises_to_unpickle_without_limits(tmp_path, content, capsys):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    assert run(["convert", str(file), str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "truncated or damaged" in told
    assert "weights_only" not in told
    assert "torch.load" not in told


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_weights_are_read(unimol, tmp_path, zipped):
    extras = {
        "best": np.float64(0.31),
        "epoch": np.int64(7),
        "better": np.bool_(True),
        "history": np.arange(4, dtype=np.float32),
        "name": np.str_("run 2"),
    }
    file = tmp_path / "best.pt"
    content = {"model_state_dict": unimol.state_dict(), **extras}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    loaded = load_unimol(file).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in unimol.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_heads_of_a_fine_tuned_unimol_are_left_out_by_name(unimol, tmp_path, caplog, prefix):
    heads = {
        "classification_head.dense.weight": torch.zeros(5, 24),
        "classification_head.out_proj.bias": torch.zeros(1),
        "classification_heads.toxicity.dense.bias": torch.zeros(5),
        "solubility_head.weight": torch.zeros(1, 24),
    }
    weights = {prefix + key: value for key, value in {**unimol.state_dict(), **heads}.items()}
    torch.save({"model_state_dict": weights}, tmp_path / "tuned.pth")
    loaded = load_unimol(tmp_path / "tuned.pth").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in unimol.state_dict().items())
    assert "classification_head, classification_heads, solubility_head left out" in caplog.text
    with pytest.raises(UsageError, match=r"1 unexpected: pocket\.weight"):
        load_unimol({**unimol.state_dict(), "pocket.weight": torch.zeros(1)})


# --- convert, and the whole model ------------------------------------------------------------


@pytest.mark.parametrize("which", ["unimol", "gin", "pretrain-gnns"])
def test_convert(unimol, gin, tmp_path, which, capsys):
    weights = {
        "unimol": {**unimol.state_dict(), **HEADS},
        "gin": moleculestm(gin, 4),
        "pretrain-gnns": pretrain_gnns(),
    }[which]
    torch.save(weights, tmp_path / "source.pth")
    assert run(["convert", str(tmp_path / "source.pth"), str(tmp_path / "out")]) == 0
    assert "2 layers" in capsys.readouterr().out
    load = load_unimol if which == "unimol" else load_gin
    one, two = load(tmp_path / "source.pth"), load(tmp_path / "out")
    assert one.config.to_dict() == two.config.to_dict()
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(one.state_dict()[k], v) for k, v in two.state_dict().items())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as content:
        assert content.metadata()["source"] == "source.pth"
        assert len(content.metadata()["source_sha256"]) == 64
    assert not any("lm_head" in name for name in read_weights(tmp_path / "out/model.safetensors"))
    assert run(["convert", str(tmp_path / "source.pth"), str(tmp_path / "out")]) == 2


def test_a_converted_folder_of_the_other_kind(unimol, tmp_path):
    torch.save(unimol.state_dict(), tmp_path / "source.pt")
    convert_encoder(tmp_path / "source.pt", tmp_path / "out")
    with pytest.raises(UsageError, match=r"'collamo_unimol', 'collamo_gin' is needed"):
        load_gin(tmp_path / "out")


def test_a_model_on_published_encoders(unimol, gin, tokenizer, tmp_path, inputs):
    torch.save(unimol.state_dict(), tmp_path / "unimol.pt")
    save_file(moleculestm(gin), tmp_path / "gin.safetensors")
    llm = tiny_llama_config(len(tokenizer), hidden_size=32, num_hidden_layers=1)
    source = (LlamaForCausalLM(llm), tokenizer)
    files = {"unimol": tmp_path / "unimol.pt", "gin": tmp_path / "gin.safetensors"}
    sizes = {"projector_config": SMALL["projector_config"]}
    model, _ = build_model(source, sizes, preset="tiny", **files)
    state = model.model.state_dict()
    for part, encoder in (("conformer_encoder", unimol), ("graph_encoder", gin)):
        for name, value in encoder.state_dict().items():
            assert torch.equal(state[f"{part}.{name}"], value), name
    assert set(model.config.sources) == {"llm", "unimol", "gin"}
    assert len(model.config.sources["unimol"]["sha256"]) == 64
    model.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"SHA-256 `{hashlib.sha256(files['unimol'].read_bytes()).hexdigest()}`" in card
    assert "| projector_config.num_query_tokens | 3 | set for this model (ours: 32) |" in card
    assert "| unimol_config.num_heads | 3 | the published encoder's |" in card
    assert "| projector_config.phi3d | True | the paper's |" in card
    again = type(model).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
