"""Outputs of frozen encoders beside the shards: the same numbers, resumable, never of others."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trained import trained

from collamo.cli import run
from collamo.data.batch import batch_molecules
from collamo.data.encoder_outputs import EncoderOutputs, OutputsByRow
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.errors import CollamoError, UsageError
from collamo.model import GinConfig, UniMolConfig, build_model, load_checkpoint, precompute
from collamo.model.encoders import GinEncoder, UniMolEncoder
from collamo.model.precompute import encoder_digest, store_encoder_outputs, use_encoder_outputs
from collamo.training import stages

UNIMOL = {"num_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
# Two rejected rows, one molecule without a conformer, a single atom, a salt, an unknown element.
SMILES = ("CCO", "C1CC", "[He]", "[Na+].[Cl-]", "", "c1ccccc1O", "[U]", "CCN", "C1C#C1")
SOURCE = "smiles,name\n" + "".join(f"{smiles},x\n" for smiles in SMILES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of a Uni-Mol and a GIN in the published layouts."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("weights")
    gin = GinEncoder(GinConfig(num_layers=2, hidden_size=16))
    for norm in gin.batch_norms:
        norm.running_mean.normal_()
    torch.save(UniMolEncoder(UniMolConfig(**UNIMOL)).state_dict(), folder / "unimol.pt")
    save_file(gin.state_dict(), folder / "gin.safetensors")
    return {"unimol": folder / "unimol.pt", "gin": folder / "gin.safetensors"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.csv").write_text(SOURCE)
    prepare(
        tmp_path / "a.csv",
        tmp_path / "data",
        PrepareOptions(shard_size=4),
        workers=1,
        max_reject_rate=0.5,
    )
    return tmp_path / "data"


def opened(folder, **stored):
    data = PreparedData.open(folder)
    for modality, outputs in stored.items():
        data.add_encoded(modality[1:], OutputsByRow(data, outputs))
    return data


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stored_outputs_are_the_encoders(folder, weights, dtype):
    stored = store_encoder_outputs(folder, **weights, layers=2, dtype=dtype)
    assert stored["2d"].origin.levels == [1, 2]
    assert stored["3d"].origin.levels == [0, 1]
    data = opened(folder, _2d=stored["2d"], _3d=stored["3d"])
    loaded = {
        "2d": precompute.load_gin(weights["gin"]),
        "3d": precompute.load_unimol(weights["unimol"]),
    }
    rows = [1, 3, 4, 6, 7, 8, 9]
    without = 0
    for row in rows:
        features = data.features(row)
        present = features.conformer.coordinates is not None
        without += not present
        assert set(features.encoded) == ({"2d", "3d"} if present else {"2d"})
        for modality, found in features.encoded.items():
            numbers = stored[modality].origin.levels
            (alone,) = precompute.encode_molecules([features], loaded[modality], numbers)
            assert found.shape == (features.num_atoms, 2, 16)
            assert found.dtype == dtype
            # Encoded in a batch and alone: float32 rounding, then that of the disk (11 bits).
            rtol = 2**-11 if dtype == "float16" else 0
            torch.testing.assert_close(
                torch.tensor(found).float(), alone.detach(), atol=3e-6, rtol=rtol
            )
    assert without == 1
    with pytest.raises(KeyError, match="rejected"):
        data.features(2)


def test_a_batch_carries_them_only_if_every_molecule_does(folder, weights):
    stored = store_encoder_outputs(folder, **weights, layers=1)
    data = opened(folder, _2d=stored["2d"], _3d=stored["3d"])
    rows = [[data.features(1), data.features(9)], [data.features(4)]]
    batch = batch_molecules(rows, {})
    assert batch.encoded_2d.shape == (2, 2, 3, 1, 16)
    assert batch.encoded_2d.dtype == torch.float16
    assert torch.equal(batch.encoded_2d[0, 0], torch.tensor(data.features(1).encoded["2d"]))
    assert not batch.encoded_2d[1, 0, 2:].any()
    assert not batch.encoded_2d[1, 1].any()
    assert batch_molecules(rows, {}, ("1d", "2d")).encoded_3d is None
    plain = PreparedData.open(folder).features(6)
    mixed = batch_molecules([*rows, [plain]], {})
    assert mixed.encoded_2d is None
    assert mixed.encoded_3d is None


def test_a_killed_run_goes_on(folder, weights, monkeypatch):
    whole = store_encoder_outputs(folder, gin=weights["gin"])["2d"]
    files = {path.name: path.read_bytes() for path in folder.glob("encoded-*")}
    assert sorted(files) == [
        f"encoded-2d{end}" for end in ("-00000.npy", "-00001.npy", "-00002.npy", ".json")
    ]
    # killed in the middle: one file is not in the list yet, one is cut short
    index = json.loads((folder / "encoded-2d.json").read_text())
    del index["files"]["encoded-2d-00002.npy"]
    (folder / "encoded-2d.json").write_text(json.dumps(index))
    path = folder / "encoded-2d-00001.npy"
    path.write_bytes(path.read_bytes()[:-1])
    done, original = [], precompute._encode_shard
    monkeypatch.setattr(
        precompute,
        "_encode_shard",
        lambda data, shard, *rest: (done.append(shard), original(data, shard, *rest))[1],
    )
    assert store_encoder_outputs(folder, gin=weights["gin"])["2d"] == whole
    assert done == [1, 2]
    assert {path.name: path.read_bytes() for path in folder.glob("encoded-*")} == files
    store_encoder_outputs(folder, gin=weights["gin"], dtype="float32")
    assert done == [1, 2, 0, 1, 2]


def test_altered_files_and_other_molecules_are_refused(folder, weights):
    stored = store_encoder_outputs(folder, gin=weights["gin"])["2d"]
    path = folder / "encoded-2d-00000.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CollamoError, match=r"encoded-2d-00000\.npy is missing, altered.*--encode"):
        opened(folder, _2d=stored).features(1)
    stored = store_encoder_outputs(folder, gin=weights["gin"])["2d"]  # mends it
    opened(folder, _2d=stored).features(1)
    index = json.loads((folder / "encoded-2d.json").read_text())
    index["files"]["encoded-2d-00000.npy"]["shard_sha256"] = "0" * 64  # a shard made anew
    (folder / "encoded-2d.json").write_text(json.dumps(index))
    with pytest.raises(CollamoError, match=r"of other molecules than molecules-00000\.parquet"):
        opened(folder, _2d=EncoderOutputs.read(folder, "2d")).features(1)
    (folder / "encoded-2d.json").write_text('{"format_version": 9, "encoding": {}, "files": {}}')
    with pytest.raises(CollamoError, match="damaged"):
        EncoderOutputs.read(folder, "2d")
    index = {"format_version": 9, "encoding": vars(stored.origin), "files": {}}
    (folder / "encoded-2d.json").write_text(json.dumps(index))
    with pytest.raises(CollamoError, match="format 9"):
        EncoderOutputs.read(folder, "2d")


def test_bad_requests(folder, weights, monkeypatch):
    with pytest.raises(UsageError, match="nothing to encode with"):
        store_encoder_outputs(folder)
    with pytest.raises(UsageError, match="'int8' is not one of"):
        store_encoder_outputs(folder, gin=weights["gin"], dtype="int8")
    with pytest.raises(UsageError, match="layers is 0"):
        store_encoder_outputs(folder, gin=weights["gin"], layers=0)
    huge = torch.full((3, 5, 16), 1e5)
    monkeypatch.setattr(
        precompute, "encode_molecules", lambda molecules, *_: [huge] * len(molecules)
    )
    with pytest.raises(CollamoError, match=r"row \d: the gin encoder gives 100000.*float32"):
        store_encoder_outputs(folder, gin=weights["gin"])


def test_the_digest_is_of_the_weights(weights):
    gin = precompute.load_gin(weights["gin"])
    digest = encoder_digest(gin)
    assert encoder_digest(precompute.load_gin(weights["gin"]).bfloat16()) == digest
    gin.config.dropout = 0.5
    assert encoder_digest(gin) == digest
    with torch.no_grad():
        gin.batch_norms[0].running_mean[3] += 0.1
    assert encoder_digest(gin) != digest


# --- training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(tmp_path_factory, weights):
    """(A folder with stored outputs, options of a stage 1 that freezes these encoders)."""
    folder = tmp_path_factory.mktemp("encoded") / "data"
    prepare("nci", folder, PrepareOptions(limit=60), workers=1)
    store_encoder_outputs(folder, **weights, layers=1, dtype="float32")
    options = [f"--{name}={path}" for name, path in weights.items()]
    options += ["--train_encoders=false", "--facts_weight=0", "--max_steps=3"]
    return folder, [*options, f"--data={folder}"]


def losses_of(recipe):
    stages.train(recipe)
    states = sorted(Path(recipe.output).glob("checkpoint-*/trainer_state.json"))
    return [
        entry["loss"]
        for entry in json.loads(states[-1].read_text())["log_history"]
        if "loss" in entry
    ]


@pytest.mark.slow
def test_training_skips_the_encoders_and_learns_the_same(training, tmp_path, monkeypatch):
    _, options = training
    options = [*options, "--logging_steps=1", "--save_steps=3"]
    run_encoders = losses_of(
        trained().recipe("stage1", tmp_path / "run", *options, "--encoded=false")
    )

    def never(*_, **__):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(GinEncoder, "levels", never)
    monkeypatch.setattr(UniMolEncoder, "levels", never)
    skipped = losses_of(trained().recipe("stage1", tmp_path / "skip", *options))
    assert len(skipped) == 3
    # Rounding of a batch against another batching, through three steps.
    np.testing.assert_allclose(skipped, run_encoders, rtol=1e-4)
    with pytest.raises(AssertionError, match="the encoder ran"):
        losses_of(trained().recipe("stage1", tmp_path / "off", *options, "--encoded=false"))


def test_other_weights_are_refused_with_the_way_out(training, weights, tmp_path):
    torch.manual_seed(6)
    save_file(
        GinEncoder(GinConfig(num_layers=2, hidden_size=16)).state_dict(),
        tmp_path / "other.safetensors",
    )
    _, options = training
    options = [option for option in options if not option.startswith("--gin")]
    recipe = trained().recipe(
        "stage1", tmp_path / "out", *options, f"--gin={tmp_path / 'other.safetensors'}"
    )
    with pytest.raises(
        UsageError,
        match=r"other weights \(gin\..*other\.safetensors.*--encode --gin FILE",
    ):
        stages.train(recipe)
    options = [*training[1], "--model.projector_config.num_layers=2"]
    with pytest.raises(
        UsageError,
        match=r"levels 2, .* reads 1, 2: encode again with --encode-layers 2",
    ):
        stages.train(trained().recipe("stage1", tmp_path / "deep", *options))


def test_encoders_that_train_are_run(training, tmp_path, caplog):
    _, options = training
    options = [option for option in options if option != "--train_encoders=false"]
    recipe = trained().recipe("stage1", tmp_path / "out", *options, "--train_encoders=true")
    with caplog.at_level(logging.INFO, "collamo"):
        stages.train(recipe)
    assert "the 3d encoder trains: its stored outputs are left alone" in caplog.text


@pytest.mark.slow
def test_tuning_skips_an_encoder_that_alignment_trained(tmp_path, monkeypatch):
    """Its weights come out of a checkpoint and under PEFT; the digest knows them again."""
    start = trained().folder / "stage1" / "final"
    gin = load_checkpoint(start)[0].model.graph_encoder
    save_file(gin.state_dict(), tmp_path / "gin.safetensors")
    prepare("nci", tmp_path / "data", PrepareOptions(limit=60), workers=1)
    store_encoder_outputs(tmp_path / "data", gin=tmp_path / "gin.safetensors", layers=1)
    monkeypatch.delattr(GinEncoder, "levels")
    options = [f"--data={tmp_path / 'data'}", "--max_steps=1"]
    assert stages.train(trained().recipe("stage2", tmp_path / "out", *options)).is_dir()


def test_the_same_answer_with_and_without(training, tokenizer, weights):
    """Through the processor and the whole model, two beams included."""
    from model_helpers import SMALL
    from transformers import LlamaForCausalLM

    from collamo.model import tiny_llama_config

    folder, _ = training
    llm = LlamaForCausalLM(tiny_llama_config(len(tokenizer), hidden_size=32, num_hidden_layers=1))
    sizes = {"projector_config": {**SMALL["projector_config"], "num_layers": 1}}
    model, processor = build_model((llm, tokenizer), sizes, preset="tiny", **weights)
    model.model.graph_encoder.requires_grad_(False)
    model.model.conformer_encoder.requires_grad_(False)
    data = PreparedData.open(folder)
    plain = [data.features(row) for row in (1, 2, 3)]
    assert use_encoder_outputs(model, data) == ["2d", "3d"]
    prompts = [processor.prompt("What is it?")] * 3
    inputs = [
        processor(prompts, molecules)
        for molecules in (plain, [data.features(row) for row in (1, 2, 3)])
    ]
    assert "encoded_3d" not in inputs[0]
    assert inputs[1]["encoded_3d"].shape[3:] == (1, 16)
    with torch.no_grad():
        run_encoders, skipped = (model(**x).logits for x in inputs)
    torch.testing.assert_close(skipped, run_encoders, atol=1e-5, rtol=0)
    inputs[0]["encoded_3d"] = inputs[1]["encoded_3d"][..., :5]
    with pytest.raises(ValueError, match=r"encoded_3d has shape .* must be \[1, 16\]"):
        model(**inputs[0])
    options = {"num_beams": 2, "max_new_tokens": 3, "do_sample": False}
    del inputs[0]["encoded_3d"]
    one, two = (model.generate(**x, **options) for x in inputs)
    assert torch.equal(one, two)


def test_the_command(tmp_path, weights, capsys):
    out = tmp_path / "data"
    arguments = ["prepare", "nci", "--out", str(out), "--limit", "5", "--workers", "1"]
    files = [part for name, path in weights.items() for part in (f"--{name}", str(path))]
    assert run([*arguments, "--encode"]) == 2
    assert "give --unimol FILE, --gin FILE or both" in capsys.readouterr().err
    assert run([*arguments, *files]) == 2
    assert "need --encode" in capsys.readouterr().err
    assert run([*arguments, "--encode", *files]) == 0
    printed = capsys.readouterr().out
    assert "2d: levels 0, 1, 2 of 16 channels in float16, 0.0 MiB, weights " in printed
    assert "3d: levels 0, 1 of 16 channels in float16" in printed
