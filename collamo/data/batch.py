"""From molecules to one padded batch. Hops are computed here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import collamo_kernels
from collamo.chem.features import MoleculeFeatures
from collamo.errors import UsageError, suggest

PAD_ID, UNKNOWN_ID = 0, 1
MODALITIES = ("1d", "2d", "3d")
NO_HOPS = 255  # unreachable or padding


def batch_molecules(
    rows: Sequence[Sequence[MoleculeFeatures]],
    vocabulary: Mapping[str, int],
    modalities: Sequence[str] = MODALITIES,
) -> dict[str, Tensor]:
    """Pad the molecules of R prompts (at most M each) into dense tensors, batch first.

    Dense and batch first, so that beam search may repeat prompts along dimension 0.

    Parameters
    ----------
    rows
        The molecules of each prompt.
    vocabulary
        SELFIES token → id; an unknown token becomes 1 ([UNK]); 0 is padding.
    modalities
        Which of "1d", "2d", "3d" to give; a molecule may lack one of them all the same.

    Returns
    -------
    dict of Tensor
        - ``selfies_ids`` ``[R,M,L]`` int64, 0 in padding and where 1D is absent.
        - ``atom_features`` ``[R,M,N,9]`` int64 OGB integers, 0 in padding. Without 2D only column 0
          (the atomic number) is filled, without 2D and 3D none: nothing of an absent modality is
          there to be read.
        - ``atom_valid`` ``[R,M,N]`` bool, True = real atom, also where modalities are absent.
        - ``edge_index`` ``[R,M,E,2]`` int64, atom numbers inside the molecule, -1 in padding.
        - ``edge_features`` ``[R,M,E,3]`` int64, 0 in padding.
        - ``bond_directions`` ``[R,M,E]`` int64: 1 up, 2 down, else 0; only where every molecule
          has them, see `MoleculeFeatures`.
        - ``hops`` ``[R,M,N,N]`` uint8 number of bonds; 255 = unreachable, padding or 2D absent.
        - ``coordinates`` ``[R,M,N,3]`` float32 Å, 0 in padding and where 3D is absent.
        - ``encoded_2d``, ``encoded_3d`` ``[R,M,N,L,C]`` float16 or float32: L levels of what a
          frozen encoder says, 0 in padding; only where every molecule with the modality has it.
        - ``has_1d``, ``has_2d``, ``has_3d``, ``molecule_valid`` ``[R,M]`` bool.

    Raises
    ------
    UsageError
        An unknown modality.
    """
    _check_modalities(modalities)
    size = _Sizes.of(rows, modalities)
    arrays = _empty(size)
    for r, molecules in enumerate(rows):
        for m, molecule in enumerate(molecules):
            _fill(arrays, (r, m), molecule, vocabulary, modalities)
    arrays |= _bond_directions(rows, arrays)
    arrays |= _encoded(rows, size, arrays)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    batch["hops"] = _hops(batch)
    return batch


def _check_modalities(modalities: Sequence[str]) -> None:
    for name in modalities:
        if name not in MODALITIES:
            raise UsageError(
                f"unknown modality {name!r}{suggest(name, MODALITIES)}; use {', '.join(MODALITIES)}"
            )


class _Sizes(tuple):
    """(R, M, L, N, E): the shape that holds every molecule."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[MoleculeFeatures]], modalities: Sequence[str]) -> _Sizes:
        molecules = [molecule for row in rows for molecule in row]
        tokens = [len(m.selfies) for m in molecules if m.selfies and "1d" in modalities]
        edges = [m.edge_index.shape[1] for m in molecules if "2d" in modalities]
        return cls(
            (
                len(rows),
                max((len(row) for row in rows), default=0),
                max(tokens, default=0),
                max((m.num_atoms for m in molecules), default=0),
                max(edges, default=0),
            )
        )


def _empty(size: _Sizes) -> dict[str, np.ndarray]:
    r, m, tokens, atoms, edges = size
    return {
        "selfies_ids": np.full((r, m, tokens), PAD_ID, dtype=np.int64),
        "atom_features": np.zeros((r, m, atoms, 9), dtype=np.int64),
        "atom_valid": np.zeros((r, m, atoms), dtype=bool),
        "edge_index": np.full((r, m, edges, 2), -1, dtype=np.int64),
        "edge_features": np.zeros((r, m, edges, 3), dtype=np.int64),
        "coordinates": np.zeros((r, m, atoms, 3), dtype=np.float32),
        "has_1d": np.zeros((r, m), dtype=bool),
        "has_2d": np.zeros((r, m), dtype=bool),
        "has_3d": np.zeros((r, m), dtype=bool),
        "molecule_valid": np.zeros((r, m), dtype=bool),
    }


def _fill(
    arrays: dict[str, np.ndarray],
    at: tuple[int, int],
    molecule: MoleculeFeatures,
    vocabulary: Mapping[str, int],
    modalities: Sequence[str],
) -> None:
    """Write one molecule into its place."""
    atoms = molecule.num_atoms
    arrays["molecule_valid"][at] = True
    arrays["atom_valid"][at][:atoms] = True
    if "1d" in modalities and molecule.selfies:
        arrays["has_1d"][at] = True
        ids = [vocabulary.get(token, UNKNOWN_ID) for token in molecule.selfies]
        arrays["selfies_ids"][at][: len(ids)] = ids
    if "2d" in modalities:
        arrays["has_2d"][at] = True
        edges = molecule.edge_index.shape[1]
        arrays["atom_features"][at][:atoms] = molecule.atom_features
        arrays["edge_index"][at][:edges] = molecule.edge_index.T
        arrays["edge_features"][at][:edges] = molecule.edge_features
    if "3d" in modalities and molecule.conformer.coordinates is not None:
        arrays["has_3d"][at] = True
        arrays["atom_features"][at][:atoms, 0] = molecule.atom_features[:, 0]
        arrays["coordinates"][at][:atoms] = molecule.conformer.coordinates


def _bond_directions(
    rows: Sequence[Sequence[MoleculeFeatures]], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Pad the directions of bonds; where one molecule was prepared without them, they stay out."""
    padded = np.zeros(arrays["edge_index"].shape[:3], dtype=np.int64)
    for r, m in zip(*np.nonzero(arrays["has_2d"]), strict=True):
        directions = rows[r][m].bond_directions
        if directions is None:
            return {}
        padded[r, m, : len(directions)] = directions
    return {"bond_directions": padded}


def _encoded(
    rows: Sequence[Sequence[MoleculeFeatures]], size: _Sizes, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Pad the stored outputs of encoders; those of a modality that one molecule lacks stay out."""
    padded = {}
    for modality in ("2d", "3d"):
        places = list(zip(*np.nonzero(arrays[f"has_{modality}"]), strict=True))
        found = [rows[r][m].encoded.get(modality) for r, m in places]
        if not found or any(outputs is None for outputs in found):
            continue
        r, m, _, atoms, _ = size
        padded[f"encoded_{modality}"] = np.zeros((r, m, atoms, *found[0].shape[1:]), found[0].dtype)
        for at, outputs in zip(places, found, strict=True):
            padded[f"encoded_{modality}"][at][: len(outputs)] = outputs
    return padded


def _hops(batch: dict[str, Tensor]) -> Tensor:
    """Return uint8 [R,M,N,N], 255 where 2D is absent; the one call of `shortest_paths`."""
    r, m, n = batch["atom_valid"].shape
    counts = (batch["atom_valid"].sum(-1) * batch["has_2d"]).reshape(-1)  # [R·M]
    ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    edges = batch["edge_index"].flatten(0, 1)  # [R·M, E, 2]
    real = edges[..., 0] >= 0
    edge_index = (edges + ptr[:-1, None, None])[real].T.contiguous()  # [2, ΣE]
    hops = collamo_kernels.shortest_paths(edge_index, ptr, max_atoms=n)
    return hops.reshape(r, m, n, n)
