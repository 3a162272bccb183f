# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Replace the attention of a model, and see it pay
#
# A small transformer over atoms predicts a property. First it has PyTorch's own attention, which
# sees a molecule as a bag of atoms. Then `CoAttention` takes its place, and sees bonds and
# distances. Everything else stays as it is.

# %%
import random
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import AllChem, Crippen
from torch import nn

import collamo_kernels as ck

# %% [markdown]
# ## Molecules and a target
#
# Molecules of RDKit's NCI set with a conformer each. The target is Crippen's logP, which adds up
# what each atom contributes **by its neighbours**: the same carbon counts differently beside an
# oxygen. So composition tells a part of it, and not all.

# %%
MOLECULES = 320
lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
examples = []
with rdBase.BlockLogs():
    for line in lines:
        mol = Chem.MolFromSmiles(line.split()[0])
        if mol is None or not 6 <= mol.GetNumAtoms() <= 16:
            continue
        full = Chem.AddHs(mol)
        if AllChem.EmbedMolecule(full, randomSeed=1, maxAttempts=5) != 0:
            continue
        mol = Chem.RemoveHs(full)
        bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]
        one_way = torch.tensor(bonds).T
        examples.append(
            (
                torch.tensor([atom.GetAtomicNum() for atom in mol.GetAtoms()]),
                torch.cat([one_way, one_way.flip(0)], 1),  # each bond both ways
                torch.tensor(mol.GetConformer().GetPositions(), dtype=torch.float32),  # Å
                Crippen.MolLogP(mol),
            )
        )
        if len(examples) == MOLECULES:
            break
random.Random(0).shuffle(examples)
train, test = examples[: MOLECULES * 3 // 4], examples[MOLECULES * 3 // 4 :]
len(train), len(test)

# %% [markdown]
# ## A batch
#
# This is all that `CoAttention` needs to know: the bonds, where each molecule begins, and the
# coordinates. Without coordinates there is no Φ3d, without bonds no Φ2d.


# %%
def collate(chosen):
    """Return elements [B, N], the relations of the batch, targets [B]."""
    elements, bonds, places, targets = zip(*chosen, strict=True)
    ptr = torch.tensor([0, *map(len, elements)]).cumsum(0)
    shifted = [pairs + start for pairs, start in zip(bonds, ptr, strict=False)]
    relations = ck.Relations.from_graphs(torch.cat(shifted, 1), ptr, torch.cat(places))
    return nn.utils.rnn.pad_sequence(elements, batch_first=True), relations, torch.tensor(targets)


# %% [markdown]
# ## The model
#
# `block.attention` is what will be replaced. The two differ in one line of `forward`.

# %%
WIDTH, HEADS, LAYERS = 64, 8, 2


class Block(nn.Module):
    """A transformer layer, normalised first."""

    def __init__(self):
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))

    def forward(self, x, relations):
        """[B, N, C] → [B, N, C]."""
        y = self.before(x)
        if isinstance(self.attention, ck.CoAttention):
            y = self.attention(y, relations)
        else:
            y, _ = self.attention(y, y, y, key_padding_mask=~relations.valid)
        return x + y + self.feed(self.between(x + y))


class Regressor(nn.Module):
    """A number per molecule: the sum over its atoms."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(119, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))

    def forward(self, elements, relations):
        """[B, N] → [B]."""
        x = self.embed(elements)
        for block in self.blocks:
            x = block(x, relations)
        return (self.head(x).squeeze(-1) * relations.valid).sum(1)


# %% [markdown]
# ## Replace it

# %%
torch.manual_seed(0)
plain = Regressor()

torch.manual_seed(0)
ours = Regressor()
for block in ours.blocks:
    block.attention = ck.CoAttention(WIDTH, HEADS)  # bonds and distances from here on

# %% [markdown]
# ## Train both alike

# %%
STEPS, BATCH = 400, 24


def error(model, chosen):
    """Mean absolute error."""
    elements, relations, targets = collate(chosen)
    return (model(elements, relations) - targets).abs().mean()


def fit(model):
    """Train; return (step, error on the test molecules) every 20 steps."""
    optimizer, draw, curve = torch.optim.AdamW(model.parameters(), lr=2e-3), random.Random(0), []
    for step in range(STEPS + 1):
        if step % 20 == 0:
            with torch.no_grad():
                curve.append((step, error(model, test).item()))
        loss = error(model, draw.choices(train, k=BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve


curves = {"nn.MultiheadAttention": fit(plain), "CoAttention": fit(ours)}

# %%
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, curve in curves.items():
    ax.plot(*zip(*curve, strict=True), label=name)
targets = torch.tensor([target for *_, target in train])
mean = sum(abs(target - targets.mean().item()) for *_, target in test) / len(test)
ax.axhline(mean, color="grey", linestyle=":", label="mean of the training set")
ax.set(xlabel="training step", ylabel="error of logP on test molecules", ylim=(0, 2 * mean))
ax.legend(frameon=False)
plt.show()

# %%
for name, curve in curves.items():
    print(f"{name:22} {curve[-1][1]:.2f}")
print(f"{'mean':22} {mean:.2f}")

# %% [markdown]
# ## What it looks at
#
# What the first layer has learned about the number of bonds between two atoms stands in `hop_bias`,
# a row per head: red, the head looks there more; blue, less.

# %%
learned = ours.blocks[0].attention.hop_bias.detach()[:, :8]
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
image = ax.imshow(learned, cmap="RdBu_r", vmin=-learned.abs().max(), vmax=learned.abs().max())
ax.set(xlabel="bonds between two atoms", ylabel="head")
fig.colorbar(image, label="Φ2d")
plt.show()

# %% [markdown]
# ## In a model of yours
#
# Three things change: `nn.MultiheadAttention` becomes `ck.CoAttention`, its call takes `relations`
# in the place of `key_padding_mask`, and the data loader makes these. [Use the
# attention](../attention.md) has whole layers, batches without padding, PyTorch Geometric and
# Graphormer.
