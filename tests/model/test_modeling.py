import json
from itertools import product

import pytest
import torch
from model_helpers import SMALL, build, molecules_of
from transformers import AttentionInterface, AutoModel, AutoModelForMultimodalLM, AutoProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from collamo.data.batch import MOLECULE_TENSORS
from collamo.model import CollamoForConditionalGeneration, CollamoModel
from collamo.model.checksums import CHECKSUMS, write_checksums
from collamo.model.transformers_versions import CACHE

GREEDY = {"max_new_tokens": 6, "do_sample": False}
SUBSETS = [
    tuple(m for m, on in zip(("1d", "2d", "3d"), bits, strict=True) if on)
    for bits in product([False, True], repeat=3)
    if any(bits)
]


def answers(model, inputs, **options):
    """Generated tokens alone."""
    out = model.generate(**inputs, **{**GREEDY, **options})
    start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return out[:, start:]


# --- forward ---------------------------------------------------------------------------------


@torch.no_grad()
def test_batch_equals_singles(model, processor, features, inputs):
    together = model(**inputs).logits
    for row, molecule in enumerate(features.values()):
        prompt = processor.prompt("What is it?" + " Tell me." * row)
        single = processor(prompt, [molecule])
        alone = model(**single).logits[0]
        # 1e-5 of logits near 1: padded shapes make BLAS and softmax sum in another order, a few
        # float32 roundings; a leak from padding or a neighbour is far above that.
        torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_left_and_right_padding_agree(model, processor, features):
    prompts = [processor.prompt("What?" + " Why?" * i) for i in range(len(features))]
    molecules = list(features.values())
    left = processor(prompts, molecules, padding_side="left")
    right = processor(prompts, molecules, padding_side="right")
    a, b = model(**left).logits, model(**right).logits
    torch.testing.assert_close(
        a[left["attention_mask"].bool()], b[right["attention_mask"].bool()], atol=1e-5, rtol=0
    )


@torch.no_grad()
@pytest.mark.parametrize("modalities", SUBSETS)
def test_any_subset_of_modalities(model, processor, features, modalities):
    prompts = [processor.prompt("What?")] * len(features)
    batch = processor(prompts, list(features.values()), modalities=modalities)
    logits = model(**batch).logits
    assert logits.isfinite().all()
    full = processor(prompts, list(features.values()))
    for name in {"1d", "2d", "3d"} - set(modalities):
        full[f"has_{name}"].zero_()
    # Marked absent while its tensors are still there: not one bit of them is read, and where the
    # shapes agree the arithmetic does too.
    torch.testing.assert_close(logits, model(**full).logits, atol=1e-5, rtol=0)


def mixed(processor, features, **options):
    """One batch in which every row has another subset of the same molecule."""
    prompts = [processor.prompt("What?")] * len(SUBSETS)
    batch = processor(prompts, [features["CC(=O)Oc1ccccc1C(=O)O"]] * len(SUBSETS), **options)
    for name in ("1d", "2d", "3d"):
        batch[f"has_{name}"] = torch.tensor([[name in subset] for subset in SUBSETS])
    return batch


@torch.no_grad()
def test_every_subset_in_one_batch(model, processor, features):
    batch = mixed(processor, features)
    logits, told = model(**batch).logits, answers(model, batch)
    for row, modalities in enumerate(SUBSETS):
        molecule = features["CC(=O)Oc1ccccc1C(=O)O"]
        single = processor(processor.prompt("What?"), [molecule], modalities=modalities)
        torch.testing.assert_close(logits[row], model(**single).logits[0], atol=1e-5, rtol=0)
        assert torch.equal(told[row], answers(model, single)[0])
    assert len(logits[:, -1].unique(dim=0)) == len(SUBSETS)


def test_every_subset_in_one_training_batch(tokenizer, processor, features):
    """Nothing of an absent modality reaches the loss or a gradient, whatever its tensors hold."""
    batch = mixed(processor, features, suffix=["alpha"] * len(SUBSETS))
    results = []
    for garbage in (False, True):
        model, _ = build(tokenizer, {"projector_config.modality_dropout": 0.0})
        if garbage:
            no_1d, no_2d, no_3d = (~batch[f"has_{name}"][:, 0] for name in ("1d", "2d", "3d"))
            batch["coordinates"][no_3d] = torch.nan
            batch["atom_features"][no_2d, ..., 1:] = 1
            batch["edge_features"][no_2d] = 1
            batch["hops"][no_2d] = 2
            batch["selfies_ids"][no_1d] = 3
        torch.manual_seed(0)
        loss = model.train()(**batch).loss
        loss.backward()
        results.append({"loss": loss} | {n: p.grad for n, p in model.named_parameters()})
    for name, value in results[0].items():
        assert value.isfinite().all()
        assert torch.equal(value, results[1][name]), name
    # P_m is added only for what is present: rows with 1D alone move nothing else.
    alone = {name: tensor[SUBSETS.index(("1d",))][None] for name, tensor in batch.items()}
    model.zero_grad()
    model(**alone).loss.backward()
    moved = model.model.mol_projector.queries.modality.grad.flatten(1).any(1)
    assert moved.tolist() == [True, False, False]


@torch.no_grad()
def test_absent_conformer_is_the_modality_switched_off(model, processor, features, flat_features):
    prompts = [processor.prompt("What?")] * len(features)
    flat = processor(prompts, list(flat_features.values()))
    off = processor(prompts, list(features.values()), modalities=("1d", "2d"))
    assert not flat["has_3d"].any()
    assert torch.equal(model(**flat).logits, model(**off).logits)


@torch.no_grad()
def test_the_molecule_matters(model, processor, features):
    prompt = processor.prompt("What?")
    ethanol, methane = (model(**processor(prompt, [features[s]])).logits for s in ("CCO", "C"))
    assert not torch.allclose(ethanol[0, -1], methane[0, -1], atol=1e-3)


@torch.no_grad()
def test_garbage_in_padding_changes_nothing(model, inputs):
    clean = model(**inputs).logits
    dirty = {name: tensor.clone() for name, tensor in inputs.items()}
    padding = ~dirty["atom_valid"]
    dirty["atom_features"][padding] = 1
    dirty["coordinates"][padding] = torch.nan
    dirty["hops"][padding] = 2
    dirty["hops"].transpose(-1, -2)[padding] = 2
    assert torch.equal(clean, model(**dirty).logits)


@torch.no_grad()
def test_two_molecules_in_a_prompt_keep_their_order(model, processor, features):
    a, b = features["CCO"], features["C"]
    text = "<mol> and <mol>"
    batch = processor([text, "<mol>", "none"], [[a, b], [b], []])
    assert batch["molecule_valid"].tolist() == [[True, True], [True, False], [False, False]]
    out = model(**batch)
    assert out.logits.isfinite().all()
    assert not out.molecule_hidden_states[~batch["molecule_valid"]].any()
    single = model(**processor(text, [a, b])).logits[0]
    torch.testing.assert_close(out.logits[0, -len(single) :], single, atol=1e-5, rtol=0)
    swapped = model(**processor(text, [b, a])).logits[0]
    assert not torch.allclose(single, swapped, atol=1e-3)


@torch.no_grad()
def test_rotation_and_translation_change_nothing(model, inputs):
    turn, _ = torch.linalg.qr(torch.randn(3, 3))
    moved = {**inputs, "coordinates": inputs["coordinates"] @ turn.T + 4}
    torch.testing.assert_close(model(**inputs).logits, model(**moved).logits, atol=1e-4, rtol=0)


def test_modality_dropout_is_for_training_only(tokenizer, processor, inputs):
    model, _ = build(tokenizer, {"projector_config.modality_dropout": 1.0})
    seen = []
    model.model.mol_projector.register_forward_hook(
        lambda module, args, out: seen.append(args[-1].present), always_call=True
    )
    model.train()(**inputs)
    assert torch.equal(seen[-1].sum(1), torch.ones(len(seen[-1]), dtype=torch.long))
    model.eval()(**inputs)
    assert seen[-1].all()


@pytest.mark.parametrize("modality", ["1d", "2d", "3d"])
def test_a_single_modality_as_configuration(tokenizer, inputs, modality):
    """The same model, told to read one modality, and given molecules that have only that one."""
    model, _ = build(tokenizer)
    alone, _ = build(tokenizer, {"modalities": [modality]})
    only = {f"has_{m}": inputs[f"has_{m}"] & (m == modality) for m in ("1d", "2d", "3d")}
    with torch.no_grad():
        expected = model(**{**inputs, **only}).logits
        assert torch.equal(alone(**inputs).logits, expected)
        assert not torch.equal(model(**inputs).logits, expected)


# --- refusing --------------------------------------------------------------------------------


def test_placeholders_without_molecules_raise(model, inputs):
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="no molecules were given"):
        model(**text)
    with pytest.raises(ValueError, match="no molecules were given"):
        model.generate(**text, **GREEDY)
    embeds = model.get_input_embeddings()(text["input_ids"])
    with pytest.raises(ValueError, match="no molecules were given"):
        model(inputs_embeds=embeds)


def test_a_wrong_number_of_placeholders_names_the_prompt(model, inputs):
    ids = inputs["input_ids"].clone()
    column = (ids[2] == model.config.mol_token_id).nonzero()[0]
    ids[2, column] = 5
    # The total may even be right: row 3 has the one that row 2 lacks.
    ids[3, -1] = model.config.mol_token_id
    with pytest.raises(ValueError, match="prompt 2 has 2 <mol> tokens"):
        model(**{**inputs, "input_ids": ids})


@pytest.mark.parametrize("lost", ["hops", "bond_directions"])
def test_missing_molecule_tensors_are_named(model, inputs, lost):
    partial = {name: tensor for name, tensor in inputs.items() if name != lost}
    with pytest.raises(ValueError, match=f"missing: {lost}"):
        model(**partial)


# --- generate --------------------------------------------------------------------------------


def test_generation_variants_agree(model, inputs):
    expected = answers(model, inputs)
    assert torch.equal(expected, answers(model, inputs, use_cache=False))
    assert torch.equal(expected, answers(model, inputs, cache_implementation="static"))
    assert torch.equal(expected, answers(model, inputs, num_beams=1, num_return_sequences=1))
    assert len(expected.unique(dim=0)) > 1  # else an answer that ignores its prompt would agree
    for start in embedded(model, inputs):
        for use_cache in (True, False):
            assert torch.equal(expected, answers(model, start, use_cache=use_cache))


@torch.no_grad()
def embedded(model, inputs):
    """The same prompts as embeddings, with the molecules yet to be spliced in, and without."""
    rest = {name: t for name, t in inputs.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    soft = model.get_molecule_features(molecules_of(inputs))
    where = inputs["input_ids"] == model.config.mol_token_id
    merged = embeds.masked_scatter(where[..., None], soft[inputs["molecule_valid"]])
    yield {**rest, "inputs_embeds": embeds}
    yield {"inputs_embeds": merged, "attention_mask": inputs["attention_mask"]}


def test_beams_and_several_answers(model, inputs):
    options = {"num_beams": 3, "num_return_sequences": 2}
    beams = answers(model, inputs, **options)
    assert len(beams) == 2 * len(inputs["input_ids"])
    assert len(beams.unique(dim=0)) > 2
    assert torch.equal(beams, answers(model, inputs, use_cache=False, **options))
    assert torch.equal(beams, answers(model, inputs, cache_implementation="static", **options))
    for start in embedded(model, inputs):
        for use_cache in (True, False):
            assert torch.equal(beams, answers(model, start, use_cache=use_cache, **options))
    samples = {"do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    sampled = answers(model, inputs, **samples)
    assert len(sampled) == 3 * len(inputs["input_ids"])
    for start in embedded(model, inputs):
        torch.manual_seed(0)
        assert torch.equal(sampled, answers(model, start, use_cache=False, **samples))


def test_each_row_of_a_generated_batch_is_its_single(model, processor, features, inputs):
    together = answers(model, inputs)
    for row, molecule in enumerate(features.values()):
        prompt = processor.prompt("What is it?" + " Tell me." * row)
        alone = answers(model, processor(prompt, [molecule]))[0]
        assert torch.equal(together[row, : len(alone)], alone)


def test_molecules_are_encoded_once(model, inputs):
    """transformers forwards molecule tensors on every step unless told otherwise."""
    calls = []
    hook = model.model.mol_projector.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**inputs, **GREEDY, min_new_tokens=6)
    hook.remove()
    assert len(calls) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_goes_by_both_of_its_names(model, inputs, name):
    """transformers 5.24 calls it cache, earlier ones past_key_values."""
    first = model(**inputs, use_cache=True)
    ids = first.logits[:, -1:].argmax(-1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids)], dim=1)
    steps = {"input_ids": ids, "attention_mask": mask}
    following = model(**steps, **{name: first[CACHE]}).logits[:, -1]
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], ids], 1)}
    expected = model(**{**whole, "attention_mask": mask}).logits[:, -1]
    # Without its cache the next token would have nothing but itself to look at.
    torch.testing.assert_close(following, expected, atol=1e-5, rtol=0)


def test_the_placeholder_is_never_an_answer(tokenizer, inputs):
    model, _ = build(tokenizer, tie_word_embeddings=False)
    mol = model.config.mol_token_id
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[mol] = model.model.language_model.norm.weight
    assert mol not in answers(model, inputs)


# --- saving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tokenizer, inputs, tmp_path, tied):
    model, processor = build(tokenizer, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert isinstance(again, CollamoForConditionalGeneration)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    table = again.get_input_embeddings().weight
    assert (again.lm_head.weight.data_ptr() == table.data_ptr()) == tied
    assert torch.equal(answers(model, inputs), answers(again, inputs))
    assert isinstance(AutoModel.from_pretrained(tmp_path), CollamoModel)
    reopened = AutoProcessor.from_pretrained(tmp_path)
    prompt = processor.prompt("What is it?")
    assert reopened.prompt("What is it?") == prompt
    one, two = (p(prompt, ["CCO"], modalities=("1d", "2d")) for p in (processor, reopened))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_of_before_sinks_gives_the_same_bits(tokenizer, inputs, tmp_path):
    """Its configuration does not say whether it has any: it has none."""
    model, _ = build(tokenizer)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    assert values["projector_config"].pop("sinks") is False
    file.write_text(json.dumps(values))
    (tmp_path / CHECKSUMS).unlink()
    again = CollamoForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(answers(model, inputs), answers(again, inputs))


def test_sinks_are_saved_and_not_drawn_again(tokenizer, inputs, tmp_path):
    model, _ = build(tokenizer, {"projector_config": {**SMALL["projector_config"], "sinks": True}})
    layer = model.model.mol_projector.layers[0]
    sink, zero_logit = layer.branches["2d"].attention.sink, layer.gather.attention.zero_logit
    assert sink.tolist() == pytest.approx([0, 1, 2, 3])
    assert zero_logit.tolist() == pytest.approx([1, 7 / 3, 11 / 3, 5])
    with torch.no_grad():
        sink.add_(1), zero_logit.sub_(2)
    model.save_pretrained(tmp_path)
    again = CollamoForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    assert torch.equal(answers(model, inputs), answers(again, inputs))


# --- devices ---------------------------------------------------------------------------------


def second_layer_on_disk(model):
    """A map of every module that is not to be split further."""
    parts = {f"model.{name}": "cpu" for name, _ in model.model.named_children()}
    del parts["model.language_model"]
    for name in ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"):
        parts[f"model.language_model.{name}"] = "disk" if name == "layers.1" else "cpu"
    return parts | {"lm_head": "cpu"}


@pytest.mark.parametrize("where", ["cpu", "auto", "disk"])
def test_device_map(tokenizer, inputs, tmp_path, where):
    model, _ = build(tokenizer)
    model.save_pretrained(tmp_path / "saved")
    device_map = second_layer_on_disk(model) if where == "disk" else where
    spread = CollamoForConditionalGeneration.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert torch.equal(answers(model, inputs), answers(spread, inputs))
    on_disk = [n for n, p in spread.named_parameters() if p.device.type == "meta"]
    assert all(".layers.1." in name for name in on_disk)
    assert bool(on_disk) == (where == "disk")


def test_no_block_is_split_between_devices(tokenizer):
    """A residual connection inside a block would meet tensors of two devices."""
    from accelerate import infer_auto_device_map

    model, _ = build(tokenizer)
    whole = {"LlamaDecoderLayer", "UniMolLayer", "GinConv", "CoProjectorLayer"}
    assert whole <= set(model._no_split_modules)
    blocks = [n for n, m in model.named_modules() if type(m).__name__ in whole]
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = dict.fromkeys(range(3), size // 3) | {"cpu": size}
    placed = infer_auto_device_map(
        model, memory, no_split_module_classes=list(model._no_split_modules)
    )
    assert len(set(placed.values())) > 2
    for block in blocks:
        assert not [name for name in placed if name.startswith(f"{block}.")], block


def test_weights_that_are_missing_are_drawn_not_left_empty(tokenizer, tmp_path):
    """from_pretrained builds on the meta device; whatever it does not find must be drawn."""
    from safetensors.torch import load_file, save_file

    model, _ = build(tokenizer)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "language_model" in k or "lm_head" in k}
    save_file(kept, file, metadata={"format": "pt"})
    write_checksums(tmp_path)
    _check_start(CollamoForConditionalGeneration.from_pretrained(tmp_path))
    _check_start(model)


def _check_start(again):
    assert all(p.isfinite().all() for p in again.parameters())
    queries = again.model.mol_projector.queries.base
    assert 0.5 < queries.std() < 2
    radial = again.model.mol_projector.relation_bias.radial
    gbf = again.model.conformer_encoder.gbf
    for name, values in {"mu": radial.mu, "means": gbf.means.weight}.items():
        assert 0 <= values.min() < values.max() <= 3, name  # not N(0, 0.02) on top of each other
    assert torch.equal(gbf.mul.weight, torch.ones_like(gbf.mul.weight))


def test_parts_held_wider_do_not_widen_the_checkpoint(tokenizer, tmp_path):
    """A float32 projector beside 7B parameters in bfloat16 would make 27 GB of them all."""
    model, _ = build(tokenizer)
    model.to(torch.bfloat16).model.mol_projector.float()
    model.model.selfies_encoder.float()
    assert model.dtype == model.model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    for kind in (CollamoModel, CollamoForConditionalGeneration):
        again = kind.from_pretrained(tmp_path)
        assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


# --- training --------------------------------------------------------------------------------


def labelled(processor, features):
    prompts = [processor.prompt("What?")] * len(features)
    return processor(prompts, list(features.values()), suffix=["alpha"] * len(features))


def test_loss_scores_the_answer_alone(model, processor, features):
    batch = labelled(processor, features)
    with torch.no_grad():
        out = model(**batch)
    logits, labels = out.logits[:, :-1], batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, expected)


def test_the_loss_without_logits_is_the_same(model, processor, features):
    batch = labelled(processor, features)
    for extra in ({}, {"num_items_in_batch": 7}):
        with torch.no_grad():
            whole, scored = model(**batch, **extra), model(**batch, **extra, skip_logits=True)
        assert scored.logits is None
        torch.testing.assert_close(scored.loss, whole.loss)
    with torch.no_grad():
        assert model(**{**batch, "labels": None}, skip_logits=True).logits is not None


def test_gradient_reaches_everything(tokenizer, processor, features):
    model, _ = build(tokenizer)
    model.train()
    batch = labelled(processor, features)
    for _ in range(3):  # modality dropout hides some in one step
        model(**batch).loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer, processor, features):
    batch = labelled(processor, features)
    gradients = []
    for checkpointing in (False, True):
        model, _ = build(tokenizer, {"projector_config.modality_dropout": 0.0})
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model.train()(**batch).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_frozen_encoders_stay_frozen(tokenizer, inputs):
    """Batch statistics and dropout of a frozen encoder do not move in training mode."""
    model, _ = build(tokenizer, {"unimol_config.dropout": 0.5})
    model.model.graph_encoder.requires_grad_(False)
    model.model.conformer_encoder.requires_grad_(False)
    before = {k: v.clone() for k, v in model.model.graph_encoder.state_dict().items()}
    model.train()(**inputs)
    assert not model.model.graph_encoder.training
    assert not model.model.conformer_encoder.training
    assert model.model.selfies_encoder.training
    after = model.model.graph_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bfloat16(tokenizer, inputs):
    model, _ = build(tokenizer)
    with torch.no_grad():
        exact = model(**inputs).logits
        half = model.to(torch.bfloat16)(**inputs).logits
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    # bf16 keeps 8 bits, the logits are sums over two layers: a few per cent of their spread.
    assert (half.float() - exact).abs().mean() < 0.1 * exact.std()


# --- attention implementations of the language model --------------------------------------------


@torch.no_grad()
def test_custom_attention_needs_its_mask_too(tokenizer, inputs):
    """Registered alone, an attention function silently gets no mask for a left-padded batch."""
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    model, _ = build(tokenizer)
    expected = model(**inputs).logits
    AttentionInterface.register("collamo_test_attention", sdpa_attention_forward)
    AttentionMaskInterface.register("collamo_test_attention", sdpa_mask)
    model.set_attn_implementation("collamo_test_attention")
    assert model.model.language_model.config._attn_implementation == "collamo_test_attention"
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], expected[real], atol=1e-5, rtol=0)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs).logits[real], expected[real], atol=1e-5, rtol=0)


def test_names_the_forward_takes():
    import inspect

    outermost = inspect.signature(CollamoForConditionalGeneration.forward).parameters
    assert set(MOLECULE_TENSORS) <= set(outermost)
    inner = inspect.signature(CollamoModel.forward).parameters
    assert "molecules" in inner
    assert not set(MOLECULE_TENSORS) & set(inner)


def test_the_model_under_the_output_layer_takes_molecules_by_name(model, inputs):
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
        hidden = model.model(**inputs).last_hidden_state
    assert torch.equal(hidden, expected)
