"""Which parameters have a learning rate and a weight decay of their own."""

import pytest
import torch
from trained import trained

from collamo.training import stages
from collamo.training import trainer as trainer_module

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def run():
    return trained()


def groups_of(run, monkeypatch, tmp_path, stage, *options):
    """Name → (learning rate, decay) of every parameter that the stage would train."""
    made = []

    def stop(self, *args, **kwargs):
        optimizer = self.create_optimizer()
        names = {id(p): name for name, p in self.model.named_parameters()}
        made.append(
            {
                names[id(p)]: (group["lr"], group["weight_decay"])
                for group in optimizer.param_groups
                for p in group["params"]
            }
        )
        learned = {name for name, p in self.model.named_parameters() if p.requires_grad}
        assert learned == made[0].keys()  # each in a group, and none twice
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(learned)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module.StageTrainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        stages.train(run.recipe(stage, tmp_path / "out", *options))
    return made[0]


def part_rates(groups, part):
    return {rate for name, (rate, _) in groups.items() if part in name.split(".")}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_phi_learns_faster_than_the_projector(run, stage, tmp_path, monkeypatch):
    options = ["--learning_rate=1e-3", "--projector_learning_rate=1e-4"]
    options += ["--relation_rates={hop_bias: 30, radial: 5}"]
    groups = groups_of(run, monkeypatch, tmp_path, stage, *options)
    assert part_rates(groups, "hop_bias") == {30 * 1e-4}
    assert part_rates(groups, "radial") == {5 * 1e-4}
    assert part_rates(groups, "sink") == part_rates(groups, "zero_logit") == {1e-4}
    projector = {n: r for n, (r, _) in groups.items() if "mol_projector" in n.split(".")}
    assert {r for n, r in projector.items() if "relation_bias" not in n} == {1e-4}
    assert {r for n, (r, _) in groups.items() if n not in projector} == {1e-3}


def test_without_rates_of_their_own_all_learn_alike(run, tmp_path, monkeypatch):
    options = ["--learning_rate=1e-3", "--relation_rates={hop_bias: 1, radial: 1}"]
    groups = groups_of(run, monkeypatch, tmp_path, "stage1", *options)
    assert {rate for rate, _ in groups.values()} == {1e-3}


@pytest.mark.parametrize("share", [True, False])
def test_neither_phi_nor_sinks_decay(run, share, tmp_path, monkeypatch):
    share_option = f"--model.projector_config.share_relation_bias={str(share).lower()}"
    groups = groups_of(run, monkeypatch, tmp_path, "stage1", share_option, "--weight_decay=0.5")
    never = ("hop_bias", "radial", "sink", "zero_logit")
    decays = {name: decay for name, (_, decay) in groups.items()}
    kept = {name for name in decays if not set(never).isdisjoint(name.split("."))}
    assert {name.split(".")[-1] for name in kept} >= {"hop_bias", "sink", "zero_logit", "mu"}
    assert {decays[name] for name in kept} == {0}
    assert decays["model.mol_projector.layers.0.gather.attention.key.weight"] == 0.5


def first_material(run, monkeypatch, tmp_path, stage, seed):
    """What a training begins with: all weights, the order of the items, and the first of them."""
    material = []

    def stop(self, *args, **kwargs):
        first = self.data_collator([self.train_dataset[i] for i in range(4)])
        order = list(self.sampler)[:20]
        weights = torch.cat([p.flatten().float() for p in self.model.parameters()])
        material.append((weights, order, first["input_ids"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module.StageTrainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        stages.train(run.recipe(stage, tmp_path / f"{seed}", f"--seed={seed}"), resume=True)
    return material[0]


@pytest.mark.parametrize("stage", ["tiny_lm", "stage1", "stage2"])
def test_the_seed_reaches_weights_order_and_questions(run, stage, tmp_path, monkeypatch):
    one, again, other = (first_material(run, monkeypatch, tmp_path, stage, s) for s in (1, 1, 2))
    assert torch.equal(one[0], again[0])
    assert one[1] == again[1]
    assert torch.equal(one[2], again[2])
    assert not torch.equal(one[0], other[0])
    assert one[1] != other[1]
    assert one[2].shape != other[2].shape or not torch.equal(one[2], other[2])
