"""Weights that accelerate keeps elsewhere and brings for each call: of every part."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from model_helpers import build

from collamo.model import CollamoForConditionalGeneration
from collamo.model.modeling import MOLECULE_PARTS

VARIANTS = {
    "the demo's": {
        "gin_config.flavour": "ogb",
        "projector_config.sinks": True,
        "projector_config.zero_attention": True,
    },
    "the other GIN, Φ of each layer": {
        "gin_config.flavour": "pretrain-gnns",
        "projector_config.share_relation_bias": False,
    },
}
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@torch.no_grad()
def assert_same_model(offloaded, model, inputs):
    # Batch norms are not folded into weights that are elsewhere: rounding.
    expected, logits = model(**inputs).logits, offloaded(**inputs).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert torch.equal(model.generate(**inputs, **GREEDY), offloaded.generate(**inputs, **GREEDY))


@pytest.mark.parametrize("where", ["cpu", "cpu, buffers too", "disk"])
def test_every_weight_is_brought_when_it_is_read(tokenizer, inputs, tmp_path, variant, where):
    model, offloaded = (build(tokenizer, variant)[0] for _ in range(2))
    if where == "disk":
        disk_offload(offloaded, tmp_path, execution_device=torch.device("cpu"))
    else:
        options = {"offload_buffers": "buffers" in where}
        cpu_offload(offloaded, execution_device=torch.device("cpu"), **options)
    assert all(p.device.type == "meta" for p in offloaded.parameters())
    assert_same_model(offloaded, model, inputs)
    assert all(p.device.type == "meta" for p in offloaded.parameters())


@pytest.mark.parametrize("part", [*MOLECULE_PARTS, "language_model"])
def test_any_part_on_disk(tokenizer, inputs, tmp_path, variant, part):
    model, _ = build(tokenizer, variant)
    model.save_pretrained(tmp_path / "saved")
    parts = [name for name, _ in model.model.named_children()]
    places = {f"model.{name}": "disk" if name == part else "cpu" for name in parts}
    places["lm_head"] = places["model.language_model"]  # they are tied
    spread = CollamoForConditionalGeneration.from_pretrained(
        tmp_path / "saved", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    on_disk = {n for n, p in spread.named_parameters() if p.device.type == "meta"}
    assert on_disk == {n for n, _ in model.named_parameters() if n.startswith(f"model.{part}.")}
    assert_same_model(spread, model, inputs)


@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_a_map_that_accelerate_made_for_the_memory_there_is(tokenizer, inputs, tmp_path, share):
    model, _ = build(tokenizer)
    model.save_pretrained(tmp_path / "saved")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    spread = CollamoForConditionalGeneration.from_pretrained(
        tmp_path / "saved",
        device_map="auto",
        max_memory={"cpu": int(share * size)},
        offload_folder=tmp_path / "offloaded",
    )
    assert "disk" in spread.hf_device_map.values()
    assert_same_model(spread, model, inputs)
