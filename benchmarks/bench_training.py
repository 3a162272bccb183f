"""One training step of the tiny model, kernels on against kernels off.

Real molecules with conformers and one question each: text to token ids, padding and hops included;
forward, backward and AdamW over every weight, float32. Off means `use_backend("reference")`, the
recipe's ``kernels: false``: hops, distances and attention by their definitions in plain PyTorch.
"""

from __future__ import annotations

import molecules
import pytest
import torch
from transformers import LlamaForCausalLM

from collamo.chem.conformer import embed_conformer
from collamo.chem.features import MoleculeFeatures, featurize
from collamo.chem.molecule import parse_molecule
from collamo.model import build_model, tiny_llama_config, train_tokenizer
from collamo_kernels import use_backend

QUESTION = "How many hydroxyl groups does this molecule have?"
ROUNDS = 11


def featurized(count: int) -> tuple[str, list[MoleculeFeatures]]:
    """The name of the set and the features of its first molecules."""
    name, mols = molecules.read(count)
    parsed = [parse_molecule(molecules.Chem.MolToSmiles(mol)) for mol in mols]
    return name, [featurize(molecule, embed_conformer(molecule)) for molecule in parsed]


class Training:
    """A model of the tiny preset that takes step after step on one batch of molecules."""

    def __init__(self, features: list[MoleculeFeatures], backend: str | None):
        self.features, self.backend = features, backend
        torch.manual_seed(0)
        tokenizer = train_tokenizer([f"{QUESTION} 0123456789"] * 9, 512)
        source = LlamaForCausalLM(tiny_llama_config(1024))
        self.model, self.processor = build_model((source, tokenizer), preset="tiny")
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, fused=True)
        self.prompts = [self.processor.prompt(QUESTION)] * len(features)
        self.answers = [str(number % 7) for number in range(len(features))]

    def step(self) -> torch.Tensor:
        """Take one step; modality dropout draws the same for every backend."""
        torch.manual_seed(1)
        with use_backend(self.backend):
            batch = self.processor(self.prompts, self.features, suffix=self.answers)
            loss = self.model(**batch, skip_logits=True).loss
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def checked(features: list[MoleculeFeatures]) -> tuple[Training, Training]:
    """Return training with and without the kernels once their first losses agree."""
    on, off = (Training(features, backend) for backend in (None, "reference"))
    torch.testing.assert_close(on.step(), off.step())
    return on, off


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("count", [16, 64])
def bench_step(compare, threads, count):
    """A step of 16 molecules, as the demonstration's stage 1 takes, and of 64."""
    name, features = featurized(count)
    on, off = checked(features)
    mean = sum(len(molecule.atom_features) for molecule in features) / count
    workload = f"step of {count} {name} molecules (mean {mean:.1f} atoms)"
    compare("training", workload, on.step, {"kernels off": off.step}, ROUNDS)
