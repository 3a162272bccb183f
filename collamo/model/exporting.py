"""Encoders and projector without the language model, as one graph of torch.export."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from collamo.chem.conformer import absent_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.data.batch import MODALITIES, REQUIRED_TENSORS, MoleculeBatch, batch_molecules
from collamo.model.modeling import MOLECULE_PARTS, CollamoForConditionalGeneration, ReadsMolecules

#: Of each tensor the dimensions after the first, the molecules: a letter may be of any size.
SIZES = {
    "selfies_ids": "L",
    "atom_features": "N.",
    "atom_valid": "N",
    "edge_index": "E.",
    "edge_features": "E.",
    "bond_directions": "E",
    "hops": "NN",
    "coordinates": "N.",
}


class SoftTokens(ReadsMolecules, nn.Module):
    """The encoders and the projector of a model, which it shares with it."""

    def __init__(self, model: CollamoForConditionalGeneration):
        super().__init__()
        self.config = model.config
        for name in MOLECULE_PARTS:
            setattr(self, name, getattr(model.model, name))

    def forward(
        self,
        selfies_ids: Tensor,
        atom_features: Tensor,
        atom_valid: Tensor,
        edge_index: Tensor,
        edge_features: Tensor,
        bond_directions: Tensor,
        hops: Tensor,
        coordinates: Tensor,
        has_1d: Tensor,
        has_2d: Tensor,
        has_3d: Tensor,
        molecule_valid: Tensor,
    ) -> Tensor:
        """The tensors of a flat `MoleculeBatch` → soft tokens [B,b,D]."""
        tensors = (
            *(selfies_ids, atom_features, atom_valid, edge_index, edge_features, bond_directions),
            *(hops, coordinates, has_1d, has_2d, has_3d, molecule_valid),
        )
        molecules = MoleculeBatch(*(x[:, None] for x in tensors))
        return self.get_molecule_features(molecules).squeeze(1)


def export_soft_tokens(model: CollamoForConditionalGeneration) -> ExportedProgram:
    """Trace the way from a batch of molecules to their soft tokens, for any number and size.

    What comes back is saved by `torch.export.save` and opened by `torch.export.load`, which needs
    no other file, and of this project only ``import collamo_kernels``, whose operators it calls. It
    takes the tensors of a flat batch by name and keeps their padding. Weights are those of now.

    Parameters
    ----------
    model
        In evaluation mode. Its encoders run: stored outputs are not taken.

    Returns
    -------
    torch.export.ExportedProgram
        Of the sizes B, L, N and E of `MoleculeBatch` each may be any, in any batch.

    Examples
    --------
    >>> program = export_soft_tokens(model)  # doctest: +SKIP
    >>> torch.export.save(program, "soft_tokens.pt2")  # doctest: +SKIP
    >>> molecules = molecules_of(processor(prompts, smiles))  # doctest: +SKIP
    >>> program.module()(**molecules.flat().tensors())  # doctest: +SKIP
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    tensors = {name: x.to(model.device) for name, x in _example().tensors().items()}
    sizes = {letter: Dim(name) for letter, name in _NAMES.items()}
    dimensions = {
        name: {place: sizes[x] for place, x in enumerate("B" + SIZES.get(name, "")) if x != "."}
        for name in tensors
    }
    with torch.no_grad():
        # Traced by torch.compile's front end: run as plain Python, `len(x)` would be a number.
        return torch.export.export(
            SoftTokens(model), (), tensors, dynamic_shapes=dimensions, strict=True
        )


_NAMES = {"B": "molecules", "L": "tokens", "N": "atoms", "E": "edges"}


def _example() -> MoleculeBatch:
    """Two molecules: of a size 1 no graph would be made that is good for others."""
    features = [featurize(parse_molecule(x), absent_conformer("none")) for x in ("CCO", "CC=O")]
    batch = batch_molecules([[x] for x in features], {}, MODALITIES).flat()
    assert set(batch.tensors()) == set(REQUIRED_TENSORS)
    return batch
