"""Tokens and molecules a second, and MFU, from what the steps were seen to read."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from collamo.training import throughput as module
from collamo.training.roofline import Peak, rates
from collamo.training.throughput import Throughput

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    return clock


def batch():
    """Two prompts of 3 and 5 tokens, of which 1 and 2 are scored; 7 atoms."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, -100, -100, 4], [-100, -100, -100, 5, 6]])
    return {"attention_mask": mask, "labels": labels, "atom_valid": torch.ones(2, 1, 7).tril() > 0}


def measure(clock, peak=None):
    arguments = SimpleNamespace(bf16=False, fp16=False, device=torch.device("cpu"))
    throughput = Throughput(arguments)
    throughput._peak = peak
    model = LlamaForCausalLM(CONFIG)
    throughput.on_train_begin(None, None, None, model=model)
    for _ in range(2):
        throughput.add(batch(), molecules=2)
        clock.now += 2
        throughput.on_step_end(None, None, None)
        clock.now += 50  # a checkpoint
        throughput.on_save(None, None, None)
    logs = {"loss": 1.0}
    throughput.report(logs, lambda counts: torch.cat([counts, counts]))  # of two processes
    return logs, model, throughput


def test_padding_is_no_token_and_a_checkpoint_no_training(clock):
    logs, _, throughput = measure(clock)
    assert logs == {"loss": 1.0, "tokens_per_second": 8.0, "molecules_per_second": 2.0}
    again = {"loss": 1.0}
    throughput.report(again, lambda counts: counts)
    assert again == {"loss": 1.0}  # nothing was read since


def test_mfu_is_of_all_the_gpus(clock):
    peak = Peak(1e6, 1.0, 1.0)  # a slow one, so that the log's four decimals say something
    logs, model, _ = measure(clock, peak)
    atoms = batch()["atom_valid"].sum().item()
    needed = 4 * rates(model, CONFIG).flops(8, 3, 3**2 + 5**2, atoms)
    assert logs["mfu"] == pytest.approx(needed / (4 * 2 * peak.flops), abs=1e-4)
    assert logs["mfu"] > 0.01


def test_text_has_no_molecules(clock):
    throughput = Throughput(SimpleNamespace(bf16=True, fp16=False, device=torch.device("cpu")))
    throughput.on_train_begin(None, None, None, model=LlamaForCausalLM(CONFIG))
    throughput.add({"labels": torch.ones(2, 5, dtype=torch.long)}, molecules=0)
    clock.now += 5
    logs = {"loss": 0.0}
    throughput.report(logs, lambda counts: counts)
    assert logs == {"loss": 0.0, "tokens_per_second": 2.0}
