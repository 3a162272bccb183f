"""Put CoAttention where a transformer has nn.MultiheadAttention, and see what it is worth.

    python examples/drop_in.py --data gdb1k.sdf

Two regressors, equal but for it, learn what adds up over atoms: ``<data>_atomization_energy.csv``
[kcal/mol] beside the SDF or, without data, the molar refractivity [cm³/mol] of RDKit's molecules.
"""

import argparse
import csv
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import AllChem, Crippen
from torch import Tensor, nn

import collamo_kernels as ck

WIDTH, HEADS, FEED, LAYERS, BATCH = 64, 8, 128, 3, 32


def example(mol: Chem.Mol, target: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Elements ``[N]``, bonds both ways ``[2, E]``, coordinates ``[N, 3]`` in Å, and the target."""
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    one_way = torch.tensor(bonds, dtype=torch.int64).reshape(-1, 2).t()
    elements = torch.tensor([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    coordinates = torch.tensor(mol.GetConformer().GetPositions(), dtype=torch.float32)
    return elements, torch.cat([one_way, one_way.flip(0)], 1), coordinates, target


def read(sdf: Path) -> list[tuple]:
    """Molecules of an SDF; the energies follow the order of those that RDKit can parse."""
    with sdf.with_name(f"{sdf.stem}_atomization_energy.csv").open() as file:
        targets = [float(row["atomization_energy"]) for row in csv.DictReader(file)]
    mols = [mol for mol in Chem.SDMolSupplier(str(sdf), removeHs=False) if mol is not None]
    return [example(mol, target) for mol, target in zip(mols, targets, strict=True)]


def from_rdkit(count: int) -> list[tuple]:
    """Small molecules of RDKit's NCI set, embedded here."""
    lines = (Path(RDConfig.RDDataDir) / "NCI/first_5K.smi").read_text().splitlines()
    mols = (Chem.MolFromSmiles(line.split()[0]) for line in lines)
    small = (Chem.AddHs(mol) for mol in mols if mol is not None and 2 < mol.GetNumAtoms() < 15)
    embedded = (mol for mol in small if AllChem.EmbedMolecule(mol, randomSeed=0) == 0)
    return [example(mol, Crippen.MolMR(mol)) for mol in itertools.islice(embedded, count)]


def collate(examples: list[tuple]) -> tuple[Tensor, ck.Relations, Tensor]:
    """Elements ``[B, N]``, the relations of the batch, targets ``[B]``."""
    elements, bonds, coordinates, targets = zip(*examples, strict=True)
    ptr = torch.tensor([0, *map(len, elements)]).cumsum(0)
    bonds = torch.cat([pairs + start for pairs, start in zip(bonds, ptr[:-1], strict=True)], 1)
    relations = ck.Relations.from_graphs(bonds, ptr, torch.cat(coordinates))
    return nn.utils.rnn.pad_sequence(elements, batch_first=True), relations, torch.tensor(targets)


ATTENTIONS = {
    "nn.MultiheadAttention": lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
    "CoAttention": lambda: ck.CoAttention(WIDTH, HEADS),
}


class Block(nn.Module):
    """A transformer layer, normalised first."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, FEED), nn.GELU(), nn.Linear(FEED, WIDTH))

    def forward(self, x: Tensor, relations: ck.Relations) -> Tensor:
        """``[B, N, C] → [B, N, C]``."""
        y = self.before(x)
        if isinstance(self.attention, ck.CoAttention):
            y = self.attention(y, relations)
        else:
            y, _ = self.attention(y, y, y, key_padding_mask=~relations.valid, need_weights=False)
        return x + y + self.feed(self.between(x + y))


class Regressor(nn.Module):
    """A sum over atoms; the targets of `examples`, per atom, set where it starts."""

    def __init__(self, attention: Callable[[], nn.Module], examples: list[tuple]):
        super().__init__()
        per_atom = torch.tensor([target / len(elements) for elements, *_, target in examples])
        self.shift, self.scale = per_atom.mean().item(), per_atom.std().item()
        self.embed = nn.Embedding(119, WIDTH)  # elements
        self.blocks = nn.ModuleList(Block(attention()) for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))

    def forward(self, elements: Tensor, relations: ck.Relations) -> Tensor:
        """``[B, N] → [B]``."""
        x = self.embed(elements)
        for block in self.blocks:
            x = block(x, relations)
        per_atom = self.shift + self.scale * self.head(x).squeeze(-1)
        return (per_atom * relations.valid).sum(1)


def loss_of(model: Regressor, examples: list[tuple]) -> Tensor:
    """Mean absolute error, in the unit of the target."""
    *inputs, target = collate(examples)
    return (model(*inputs) - target).abs().mean()


def train(model: Regressor, examples: list[tuple], steps: int) -> float:
    """Return the seconds it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw, start = random.Random(0), time.perf_counter()
    for _ in range(steps):
        loss = loss_of(model, draw.choices(examples, k=BATCH)) / model.scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train both, print and return the mean absolute errors on the last fifth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="SDF")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--molecules", type=int, default=1000, help="of RDKit's, without data")
    options = parser.parse_args(arguments)
    with rdBase.BlockLogs():  # the SDF has nine nitrogens of valence 4, which RDKit refuses
        examples = read(options.data) if options.data else from_rdkit(options.molecules)
    random.Random(0).shuffle(examples)
    cut = len(examples) * 4 // 5
    targets = torch.tensor([target for *_, target in examples])
    errors = {"mean": (targets[cut:] - targets[:cut].mean()).abs().mean().item()}
    print(f"{'mean of the training set':<26}MAE {errors['mean']:8.2f}")
    for name, attention in ATTENTIONS.items():
        torch.manual_seed(0)
        model = Regressor(attention, examples[:cut])
        seconds = train(model, examples[:cut], options.steps)
        errors[name] = loss_of(model.eval(), examples[cut:]).item()
        print(f"{name:<26}MAE {errors[name]:8.2f}   {seconds:5.1f} s for {options.steps} steps")
    return errors


if __name__ == "__main__":
    main()
