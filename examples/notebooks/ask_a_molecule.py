# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ask a molecule
#
# A trained model, a molecule, and as much of how it answers as can be seen: the drawing, where its
# soft tokens look, and the conformer in 3D.

# %%
import os
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import HTML, SVG

import collamo

# %% [markdown]
# ## Load
#
# A folder left by `collamo train` or `make demo`. Without `demo/`, the model of
# [Train on your own CSV](train_your_own.md) is taken.

# %%
checkpoint = Path(os.environ.get("COLLAMO_CHECKPOINT", "demo/stage2/final"))
if not checkpoint.exists():
    checkpoint = Path(os.environ.get("RUNS", "runs")) / "two" / "final"
model = collamo.load(checkpoint)

# %% [markdown]
# ## Ask
#
# Give a SMILES, a SELFIES, a mol block or an RDKit `Mol`. Decoding is greedy, so the same question
# always gets the same answer. This model has half a million parameters and a few minutes of
# training behind it, so do not trust what it says; the code is the same for a large one.

# %%
aspirin = "CC(=O)Oc1ccccc1C(=O)O"
questions = [
    "How many rings does this molecule have?",
    "How many hydroxyl groups does this molecule have?",
    "What is the molecular weight of this molecule in g/mol?",
]
for question, answer in zip(questions, model.ask(aspirin, questions), strict=True):
    print(f"{question:56} {answer}")

# %% [markdown]
# A molecule that cannot be read raises an error that says why:

# %%
try:
    model.ask("C1CC", "How many rings?")
except collamo.errors.MoleculeError as error:
    print(error)

# %% [markdown]
# ## What it looks at
#
# In the last layer the soft tokens attend to SELFIES tokens (1D), to atoms of the graph (2D) and to
# atoms of the conformer (3D). Each disc shows the attention to one atom, 2D and 3D together, averaged
# over tokens and heads: white is none, full colour is three times the mean or more. What is left over
# goes to a zero key, that is, to nothing. All this shows where the model looks, not why it answers
# as it does.

# %%
from collamo.chem.conformer import embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.inference.web.attention import AtomAttention
from collamo.inference.web.pictures import draw

molecule = parse_molecule(aspirin)
conformer = embed_conformer(molecule)
watch = AtomAttention(model)
gaze = watch.look(featurize(molecule, conformer), ("1d", "2d", "3d"))
pictures = draw(molecule, conformer.coordinates, gaze.atoms)
SVG(pictures.svg)

# %%
fig, ax = plt.subplots(figsize=(5, 1.2), layout="constrained")
left = 0.0
for view, share in gaze.shares.items():
    ax.barh(0, share, left=left, label=f"{view.upper()} {share:.0%}")
    left += share
ax.barh(0, 1 - left, left=left, color="0.9", label=f"nothing {1 - left:.0%}")
ax.set(xlim=(0, 1), yticks=[], xlabel="share of the attention")
ax.legend(ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.7))
plt.show()

# %% [markdown]
# ## In 3D
#
# Turn it with the mouse. 3Dmol.js comes with the package, so nothing is fetched.

# %%
script = (files("collamo.inference.web") / "assets" / "3Dmol-min.js").read_text()
HTML(f"""<div id="conformer" style="position: relative; max-width: 420px; height: 320px"></div>
<script>{script}</script>
<script>
const viewer = $3Dmol.createViewer("conformer", {{backgroundColor: "white"}});
viewer.addModel(`{pictures.mol_block}`, "mol");
viewer.setStyle({{}}, {{stick: {{radius: 0.14}}, sphere: {{scale: 0.26}}}});
viewer.zoomTo();
viewer.render();
</script>""")

# %% [markdown]
# ## More at once
#
# `collamo generate` answers a file of questions, [`collamo web`](../web.md) shows all of the above
# in the browser, and [`collamo serve`](../serving.md) speaks as OpenAI's server does.
