"""Two processes are one training: the same losses and weights, data of their own, one that writes.

What takes longer is in `distributed.py` (`make test-distributed`).
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import RankError, outcomes, run_ranks
from safetensors.torch import load_file
from torch import nn
from trained import trained

from collamo.errors import UsageError
from collamo.model.encoders.gin import AtomBatchNorm
from collamo.training import processes, sharding, stages
from collamo.training.facts_head import FactsHead
from collamo.training.manifest import verify_manifest
from collamo.training.trainer import training_arguments
from collamo_kernels.testing import assert_accurate

# Plain gradient descent: Adam gives a bias in front of a batch norm, whose gradient is rounding,
# full steps. Without dropout, which differs by process.
STEPS = 3
OPTIONS = ["--use_cpu=true", f"--max_steps={STEPS}", f"--save_steps={STEPS}", "--logging_steps=1"]
PLAIN = ["--optim=sgd", "--warmup_steps=0", "--learning_rate=0.01"]
NO_DROPOUT = "--model.projector_config.modality_dropout=0"


@pytest.fixture(scope="module")
def run():
    return trained()


def recorded(recipe):
    """Train; return the folder and, of each batch that this process was given, rows or tokens."""
    batches, make = [], stages.make_trainer

    def recording(*args, **options):
        trainer = make(*args, **options)
        collate = trainer.data_collator

        def collated(items):
            batches.append([getattr(item, "row", str(item)) for item in items])
            return collate(items)

        trainer.data_collator = collated
        return trainer

    stages.make_trainer = recording
    return stages.train(recipe), batches


def losses(final):
    log = (final.parent / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in log]
    names = ("loss", "grad_norm", "facts_loss")
    return [[e[name] for name in names if name in e] for e in entries if "loss" in e]


@pytest.mark.slow
def test_two_processes_are_one_training(run, tmp_path):
    """Stage 1 with the facts' loss and encoders that learn, batch norms of theirs included."""
    options = [*OPTIONS, *PLAIN, NO_DROPOUT]
    one = run.recipe("stage1", tmp_path / "one", *options, "--per_device_train_batch_size=8")
    two = run.recipe("stage1", tmp_path / "two", *options, "--per_device_train_batch_size=4")
    ((alone, batches),) = run_ranks(1, recorded, one)
    (together, first), (_, second) = run_ranks(2, recorded, two)
    assert [a + b for a, b in zip(first, second, strict=True)][:STEPS] == batches[:STEPS]
    torch.testing.assert_close(torch.tensor(losses(together)), torch.tensor(losses(alone)))
    expected, weights = (load_file(f / "model.safetensors") for f in (alone, together))
    torch.testing.assert_close(weights, expected)
    checkpoint = together.parent / f"checkpoint-{STEPS}"
    assert verify_manifest(checkpoint) is None
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {p.name for p in checkpoint.iterdir()}


def test_unconnected_processes_are_refused(run, tmp_path, monkeypatch):
    """Without a GPU nothing connects two processes that torchrun started, unless --use_cpu."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = run.recipe("tiny_lm", tmp_path / "out")
    with pytest.raises(UsageError, match=r"2 processes were started.*not connected.*--use_cpu"):
        stages.train(recipe)
    assert not (tmp_path / "out").exists()


def test_several_gpus_of_one_process_are_not_copied_to(run, tmp_path, monkeypatch, caplog):
    """`Trainer` wraps a model in DataParallel where its arguments count more than one."""
    arguments = training_arguments(run.recipe("tiny_lm", tmp_path))
    monkeypatch.setattr(arguments, "_n_gpu", 4)
    processes.check_processes(arguments)
    assert arguments.n_gpu == 1
    assert "torchrun --nproc_per_node 4" in caplog.text


def fails_first(path):
    """The first process finds the folder used, whatever the second one would find."""
    dist.init_process_group("gloo")

    def make():
        assert dist.get_rank() == 0
        raise UsageError(f"{path} is taken")

    processes.from_first(make)


def test_what_the_first_process_refuses_every_process_does(tmp_path):
    for result in outcomes(2, fails_first, tmp_path):
        assert isinstance(result, RankError)
        assert (result.kind, result.text) == ("UsageError", f"{tmp_path} is taken")


def normalised(batches):
    """`normalise` of this process's rows of each batch."""
    dist.init_process_group("gloo")
    return [normalise(rows[dist.get_rank()]) for rows in batches]


#: Of the error budget: output, input's gradient, those of weight and bias, statistics.
FACTORS = (2, 3, 5, 5, 2, 2, 2)


def normalise(x):
    """A batch norm's output, gradients and what it remembers."""
    torch.manual_seed(0)
    norm = AtomBatchNorm(x.shape[1])
    nn.init.normal_(norm.weight)
    norm.to(torch.from_numpy(x).dtype)
    x = torch.from_numpy(x).requires_grad_()
    out = norm(x)
    (out.sin() * torch.arange(1.0, x.shape[1] + 1)).sum().backward()
    averages = norm.running_mean, norm.running_var, norm.num_batches_tracked
    return [t.detach().numpy() for t in (out, x.grad, norm.weight.grad, norm.bias.grad, *averages)]


def test_batch_norms_see_the_atoms_of_all_processes():
    sizes = [(5, 3), (1, 1), (4, 0), (1, 0)]
    batches = [(3 + torch.randn(sum(size), 4)).split(size) for size in sizes]
    parts = run_ranks(2, normalised, [[x.numpy() for x in rows] for rows in batches])
    yardsticks, exact, sums = [], [], []
    for rows, first, second in zip(batches, *parts, strict=True):
        whole = torch.cat(rows).numpy()
        yardsticks.append(normalise(whole))
        exact.append(normalise(whole.astype(np.float64)))
        both = [np.concatenate(pair) for pair in zip(first[:2], second[:2], strict=True)]
        both += [a + b for a, b in zip(first[2:4], second[2:4], strict=True)]
        sums.append(both + first[4:])
        for mine, other in zip(first[4:], second[4:], strict=True):
            assert np.array_equal(mine, other)
    for *values, factor in zip(*map(joined, (sums, yardsticks, exact)), FACTORS, strict=True):
        assert_accurate(*values, factor)


def joined(batches):
    """Of each of the values `normalise` returns, the numbers of all batches as one tensor."""
    parts = zip(*batches, strict=True)
    return [torch.from_numpy(np.concatenate([np.ravel(x) for x in part])) for part in parts]


def test_what_cannot_be_put_together_is_refused():
    old = SimpleNamespace(fsdp_version=1)
    with pytest.raises(UsageError, match="fsdp_version: 2"):
        sharding.prepare_sharding(old, nn.Linear(1, 1))
    with pytest.raises(UsageError, match=r"stage language_model .* is not sharded"):
        sharding.prepare_sharding(SimpleNamespace(fsdp_version=2), nn.Linear(1, 1))
    with pytest.raises(UsageError, match="ZeRO-3"):
        sharding.check_zero(3)
    sharding.check_zero(2)


def test_the_facts_of_two_halves_weigh_as_one_batch():
    facts = torch.randn(6, 1, 5)
    facts[torch.rand(6, 1, 5) < 0.5] = torch.nan
    head, tokens = FactsHead(2, 3, [facts[:, 0].numpy()]), torch.randn(6, 1, 2, 3)
    halves = head.count(facts) / 2
    parts = [head(t, f, halves) for t, f in zip(tokens.split(2), facts.split(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum() / 2, head(tokens, facts))
