# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train on your own CSV in ten minutes
#
# From a file of molecules with a measured column to a model that answers questions about them, with
# the commands as you would type them. `SHARE` says how much of the recipes' training is done;
# `SHARE = 1` takes ten minutes on two cores. The page you are reading was made with a small share, to
# be rebuilt quickly: look at how it is done, not at the scores.

# %%
import csv
import os
from pathlib import Path

from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import Crippen

SHARE = float(os.environ.get("SHARE", 0.03))
MOLECULES = max(120, int(2000 * SHARE))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
steps = {name: int(full * SHARE) for name, full in (("lm", 200), ("one", 1200), ("two", 1600))}
os.environ |= {name: str(count) for name, count in steps.items()}
steps

# %% [markdown]
# ## A file
#
# Use your own instead: any CSV with a column of SMILES will do. Here the column `refractivity` stands
# for whatever you have measured.

# %%
lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
with rdBase.BlockLogs(), open("mine.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["smiles", "refractivity"])
    parsed = ((line.split()[0], Chem.MolFromSmiles(line.split()[0])) for line in lines)
    small = [(smiles, mol) for smiles, mol in parsed if mol and 4 <= mol.GetNumAtoms() <= 14]
    for smiles, mol in small[:MOLECULES]:
        writer.writerow([smiles, f"{Crippen.MolMR(mol):.1f}"])
    writer.writerow(["C1CC", "12.0"])  # and a bad one
print(*Path("mine.csv").read_text().splitlines()[:4], sep="\n")

# %% [markdown]
# ## Prepare
#
# Molecules are read, embedded in 3D, split by scaffold and turned into questions. A row that cannot
# be used is listed with its reason, and the rest go on. `:cm^3/mol` gives the column's unit.

# %% language="bash" magic_args="-e"
# collamo prepare mine.csv --measured-columns "refractivity:cm^3/mol" --out data --force-field-steps 50
# cat data/rejected.jsonl

# %% [markdown]
# ## A language model
#
# A small one, trained from scratch on the text of the questions. `--llm` takes any model of
# transformers instead.

# %% language="bash" magic_args="-e"
# collamo train configs/tiny_lm.yaml --data data --output runs/lm --max_steps $lm --disable_tqdm true 2> lm.log
# tail -n 1 runs/lm/log.jsonl

# %% [markdown]
# ## Both stages
#
# Stage 1 teaches the projector to speak to the language model; stage 2 tunes the projector and a
# LoRA.

# %% language="bash" magic_args="-e"
# collamo train configs/stage1.yaml --data data --llm runs/lm/final --output runs/one --max_steps $one --disable_tqdm true 2> one.log
# collamo train configs/stage2.yaml --data data --init_from runs/one/final --output runs/two --max_steps $two --disable_tqdm true 2> two.log
# tail -n 1 runs/two/log.jsonl

# %% [markdown]
# ## Is it any good?
#
# `evaluate` compares the answers with the commonest answer and with answers about a wrong molecule.
# A model that beats neither has learned what answers look like and nothing about molecules, which is
# all that a training as short as this page's can give. [Evidence](../evidence.md) shows what
# `make demo` reaches, the same training in full on 5,000 molecules. Without `--no-reliance` the
# command also takes views, atoms and Φ away one by one, and asks everything again.

# %% language="bash" magic_args="-e"
# collamo evaluate runs/two/final --data data --split test --limit 20 --max-new-tokens 24 --no-reliance --out evaluation

# %% [markdown]
# ## Ask it

# %% language="bash" magic_args="-e"
# collamo ask "OCC(O)CO" "How many hydroxyl groups does this molecule have?" --checkpoint runs/two/final

# %% [markdown]
# ## From here
#
# - [Ask a molecule](ask_a_molecule.md) with drawings and its attention, or in [the browser](../web.md).
# - [Every key of a recipe](../reference/recipe.md) is an option of `collamo train`.
# - [Language models](../language_models.md): SmolLM2 on two cores, LLaMA-2 on a GPU.
