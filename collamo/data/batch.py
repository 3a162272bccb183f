"""The padded batch of molecules that encoders and projector read. Hops are computed here alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import collamo_kernels
from collamo.chem.features import MoleculeFeatures
from collamo.errors import UsageError, suggest
from collamo_kernels import Relations

PAD_ID, UNKNOWN_ID = 0, 1
MODALITIES = ("1d", "2d", "3d")
NO_HOPS = 255  # unreachable or padding


@dataclass(frozen=True, eq=False)
class MoleculeBatch:
    """Molecules padded to one size: R prompts with up to M molecules each, batch first.

    L tokens, N atoms, E directed edges. `flat` gives the same molecules one after the other, the
    first two dimensions ``[R,M]`` as one ``[B]``; all other methods serve both forms. What stands
    in padding, and in the tensors of a modality that is absent, is never read.

    Attributes
    ----------
    selfies_ids
        ``[R,M,L]`` int64, 0 in padding and where 1D is absent.
    atom_features
        ``[R,M,N,9]`` int64 OGB integers, 0 in padding. Without 2D only column 0 (the element) is
        filled, without 2D and 3D none.
    atom_valid
        ``[R,M,N]`` bool, True = real atom, also where modalities are absent.
    edge_index
        ``[R,M,E,2]`` int64, atom numbers inside the molecule, -1 in padding.
    edge_features
        ``[R,M,E,3]`` int64, 0 in padding.
    bond_directions
        ``[R,M,E]`` int64: 1 up, 2 down, else 0. Only a GIN of pretrain-gnns reads them.
    hops
        ``[R,M,N,N]`` uint8 number of bonds; 255 = unreachable, padding or 2D absent.
    coordinates
        ``[R,M,N,3]`` float32 Å, 0 in padding and where 3D is absent.
    has_1d, has_2d, has_3d
        ``[R,M]`` bool, whether the molecule has the modality.
    molecule_valid
        ``[R,M]`` bool, False where a prompt has fewer than M molecules.
    encoded_2d, encoded_3d
        ``[R,M,N,L,C]`` float16 or float32: stored outputs of a frozen encoder, L levels of C
        channels, 0 in padding; they replace running it. None unless every molecule with the
        modality has them.
    """

    selfies_ids: Tensor
    atom_features: Tensor
    atom_valid: Tensor
    edge_index: Tensor
    edge_features: Tensor
    bond_directions: Tensor
    hops: Tensor
    coordinates: Tensor
    has_1d: Tensor
    has_2d: Tensor
    has_3d: Tensor
    molecule_valid: Tensor
    encoded_2d: Tensor | None = None
    encoded_3d: Tensor | None = None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor | None]) -> MoleculeBatch | None:
        """Take the molecules out of a model's inputs; None where there are none of them.

        Raises
        ------
        ValueError
            If a tensor that every batch has is missing, but not all of them.
        """
        molecules = {name: tensors.get(name) for name in MOLECULE_TENSORS}
        missing = [name for name in REQUIRED_TENSORS if molecules[name] is None]
        if len(missing) == len(REQUIRED_TENSORS):
            return None
        if missing:
            raise ValueError(f"molecule tensors are missing: {', '.join(missing)}")
        return cls(**molecules)  # type: ignore[arg-type]  # of the required ones none is None

    @classmethod
    def cat(cls, batches: Sequence[MoleculeBatch]) -> MoleculeBatch:
        """Lay batches end to end along R, each padded to the largest M, L, N and E of them.

        Raises
        ------
        ValueError
            If there is no batch, or stored outputs differ in levels or channels.
        """
        if not batches:
            raise ValueError("there is no batch to concatenate; give at least one")
        joined = {}
        for name in MOLECULE_TENSORS:
            parts = [batch._part(name, batches) for batch in batches]
            tensors = [part for part in parts if part is not None]
            if len(tensors) == len(parts):
                joined[name] = _cat_padded(name, tensors)
        return cls(**joined)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by name: what a model's `forward` takes."""
        return dict(self._items())

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> MoleculeBatch:
        """Move every tensor to `device`, and give stored outputs of encoders the `dtype`.

        Coordinates stay float32: in bfloat16 10 Å would be known to 0.03 Å.
        """

        def move(name: str, x: Tensor) -> Tensor:
            cast = dtype if name in STORED_OUTPUTS else None
            return x.to(device=device, dtype=cast, non_blocking=non_blocking)

        return self._map(move)

    def pin_memory(self) -> MoleculeBatch:
        """Return a copy in page-locked memory, from which a GPU copies without waiting."""
        return self._map(lambda _, x: x.pin_memory())

    def repeat_interleave(self, repeats: int) -> MoleculeBatch:
        """Repeat each prompt's molecules `repeats` times in a row, as beam search does."""
        return self._map(lambda _, x: x.repeat_interleave(repeats, dim=0))

    def flat(self) -> MoleculeBatch:
        """``[R,M,…]`` → ``[B,…]``, B = R·M: what encoders and projector take."""
        return self._map(lambda _, x: x.flatten(0, 1))

    def relations(self) -> Relations:
        """Return what is known about the pairs of atoms of these B (or R·M) molecules."""
        batch = self if self.molecule_valid.dim() == 1 else self.flat()
        return Relations(
            hops=batch.hops,
            coordinates=batch.coordinates,
            valid=batch.atom_valid,
            has_3d=batch.has_3d,
        )

    def narrowed_to(self, present: Tensor) -> MoleculeBatch:
        """Return the batch with no other modalities than those `present` ``[…,3]`` bool.

        Hops become 255 throughout where 2D is absent: a dropped 2D must not leak through them.
        """
        one_d, two_d, three_d = present.unbind(-1)
        hops = torch.where(two_d[..., None, None], self.hops, NO_HOPS).to(torch.uint8)
        return self._with(has_1d=one_d, has_2d=two_d, has_3d=three_d, hops=hops)

    @property
    def present(self) -> Tensor:
        """``[…,3]`` bool: which of 1D, 2D and 3D a real molecule has."""
        flags = torch.stack([self.has_1d, self.has_2d, self.has_3d], -1)
        return flags & self.molecule_valid[..., None]

    @property
    def atomic_numbers(self) -> Tensor:
        """``[…,N]`` int64; 119 is no element. OGB counts them from 0."""
        return self.atom_features[..., 0] + 1

    def valid(self, modality: str) -> Tensor:
        """``[…,L]`` or ``[…,N]`` bool: the real tokens of a modality, none where it is absent."""
        real = self.selfies_ids != PAD_ID if modality == "1d" else self.atom_valid
        return real & self.present[..., MODALITIES.index(modality), None]

    def stored_outputs(self, modality: str) -> Tensor | None:
        """``[…,N,L,C]`` of a modality's frozen encoder; None where there are none (1D: never)."""
        return getattr(self, f"encoded_{modality}", None)

    def _part(self, name: str, batches: Sequence[MoleculeBatch]) -> Tensor | None:
        """Return what this batch adds to a tensor of all `batches`.

        A batch in which no molecule has the modality needs no stored outputs: zeros stand for them.
        """
        part = getattr(self, name)
        if part is not None or name not in STORED_OUTPUTS:
            return part
        stored = [x for x in (getattr(batch, name) for batch in batches) if x is not None]
        if not stored or self.valid(STORED_OUTPUTS[name]).any():
            return None
        return stored[0].new_zeros(*self.atom_valid.shape, *stored[0].shape[-2:])

    def _items(self) -> Iterator[tuple[str, Tensor]]:
        pairs = ((name, getattr(self, name)) for name in MOLECULE_TENSORS)
        return ((name, tensor) for name, tensor in pairs if tensor is not None)

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> MoleculeBatch:
        return self._with(**{name: function(name, x) for name, x in self._items()})

    def _with(self, **tensors: Tensor) -> MoleculeBatch:
        """As `dataclasses.replace`, which torch.compile cannot look into."""
        return MoleculeBatch(**{**self.tensors(), **tensors})


#: Names of all tensors; of those that every batch has; of stored outputs, with their modality.
MOLECULE_TENSORS = tuple(field.name for field in dataclasses.fields(MoleculeBatch))
REQUIRED_TENSORS = tuple(
    field.name
    for field in dataclasses.fields(MoleculeBatch)
    if field.default is dataclasses.MISSING
)
STORED_OUTPUTS = {"encoded_2d": "2d", "encoded_3d": "3d"}


class _Layout(NamedTuple):
    """Sizes after [R,M] (a letter: padded to the longest), dtype, and what fills padding."""

    sizes: tuple[str | int, ...]
    dtype: type[np.generic]
    fill: int = 0


_LAYOUTS = {
    "selfies_ids": _Layout(("L",), np.int64, PAD_ID),
    "atom_features": _Layout(("N", 9), np.int64),
    "atom_valid": _Layout(("N",), np.bool_),
    "edge_index": _Layout(("E", 2), np.int64, -1),
    "edge_features": _Layout(("E", 3), np.int64),
    "bond_directions": _Layout(("E",), np.int64),
    "hops": _Layout(("N", "N"), np.uint8, NO_HOPS),
    "coordinates": _Layout(("N", 3), np.float32),
    "has_1d": _Layout((), np.bool_),
    "has_2d": _Layout((), np.bool_),
    "has_3d": _Layout((), np.bool_),
    "molecule_valid": _Layout((), np.bool_),
}


def _cat_padded(name: str, parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first dimension, padding all others to their largest size."""
    if name in STORED_OUTPUTS and len({part.shape[-2:] for part in parts}) > 1:
        shapes = ", ".join(str(list(part.shape[-2:])) for part in parts)
        raise ValueError(f"{name} has levels and channels {shapes}; encode with the same weights")
    fill = _LAYOUTS[name].fill if name in _LAYOUTS else 0
    sizes = [max(column) for column in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        gaps = [size - own for size, own in zip(sizes, part.shape[1:], strict=True)]
        padded.append(F.pad(part, [n for gap in reversed(gaps) for n in (0, gap)], value=fill))
    return torch.cat(padded)


def batch_molecules(
    rows: Sequence[Sequence[MoleculeFeatures]],
    vocabulary: Mapping[str, int],
    modalities: Sequence[str] = MODALITIES,
) -> MoleculeBatch:
    """Pad the molecules of R prompts (at most M each) into one batch.

    Dense and batch first, so that beam search may repeat prompts along dimension 0.

    Parameters
    ----------
    rows
        The molecules of each prompt.
    vocabulary
        SELFIES token → id; an unknown token becomes 1 ([UNK]); 0 is padding.
    modalities
        Which of "1d", "2d", "3d" to fill in; of the others nothing is there to be read. A molecule
        may lack one of them all the same.

    Raises
    ------
    UsageError
        An unknown modality.
    """
    _check_modalities(modalities)
    sizes = _sizes(rows, modalities)
    arrays = {name: _filled(layout, sizes) for name, layout in _LAYOUTS.items() if name != "hops"}
    for r, molecules in enumerate(rows):
        for m, molecule in enumerate(molecules):
            _write(arrays, (r, m), molecule, vocabulary, modalities)
    for name, modality in STORED_OUTPUTS.items():
        places = list(zip(*np.nonzero(arrays[f"has_{modality}"]), strict=True))
        outputs = [rows[r][m].encoded.get(modality) for r, m in places]
        if outputs and all(x is not None for x in outputs):
            arrays[name] = _stored_outputs(outputs, places, sizes)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return MoleculeBatch(**tensors, hops=_hops(tensors))


def _check_modalities(modalities: Sequence[str]) -> None:
    for name in modalities:
        if name not in MODALITIES:
            raise UsageError(
                f"unknown modality {name!r}{suggest(name, MODALITIES)}; use {', '.join(MODALITIES)}"
            )


def _sizes(rows: Sequence[Sequence[MoleculeFeatures]], modalities: Sequence[str]) -> dict[str, int]:
    """Return R, M, L, N and E: the sizes that hold every molecule."""
    molecules = [molecule for row in rows for molecule in row]
    tokens = [len(m.selfies) for m in molecules if m.selfies and "1d" in modalities]
    edges = [m.edge_index.shape[1] for m in molecules if "2d" in modalities]
    return {
        "R": len(rows),
        "M": max((len(row) for row in rows), default=0),
        "L": max(tokens, default=0),
        "N": max((m.num_atoms for m in molecules), default=0),
        "E": max(edges, default=0),
    }


def _filled(layout: _Layout, sizes: Mapping[str, int]) -> np.ndarray:
    lengths = [sizes[n] if isinstance(n, str) else n for n in ("R", "M", *layout.sizes)]
    return np.full(lengths, layout.fill, dtype=layout.dtype)


def _write(
    arrays: dict[str, np.ndarray],
    place: tuple[int, int],
    molecule: MoleculeFeatures,
    vocabulary: Mapping[str, int],
    modalities: Sequence[str],
) -> None:
    """Write one molecule into its place."""
    atoms = molecule.num_atoms
    arrays["molecule_valid"][place] = True
    arrays["atom_valid"][place][:atoms] = True
    if "1d" in modalities and molecule.selfies:
        arrays["has_1d"][place] = True
        ids = [vocabulary.get(token, UNKNOWN_ID) for token in molecule.selfies]
        arrays["selfies_ids"][place][: len(ids)] = ids
    if "2d" in modalities:
        arrays["has_2d"][place] = True
        edges = molecule.edge_index.shape[1]
        arrays["atom_features"][place][:atoms] = molecule.atom_features
        arrays["edge_index"][place][:edges] = molecule.edge_index.T
        arrays["edge_features"][place][:edges] = molecule.edge_features
        arrays["bond_directions"][place][:edges] = molecule.bond_directions
    if "3d" in modalities and molecule.conformer.coordinates is not None:
        arrays["has_3d"][place] = True
        arrays["atom_features"][place][:atoms, 0] = molecule.atom_features[:, 0]
        arrays["coordinates"][place][:atoms] = molecule.conformer.coordinates


def _stored_outputs(
    outputs: Sequence[Any], places: Sequence[tuple[int, int]], sizes: Mapping[str, int]
) -> np.ndarray:
    """Pad the outputs [N,L,C] of one encoder to [R,M,N,L,C]."""
    first = outputs[0]
    shape = (sizes["R"], sizes["M"], sizes["N"], *first.shape[1:])
    padded = np.zeros(shape, first.dtype)
    for place, levels in zip(places, outputs, strict=True):
        padded[place][: len(levels)] = levels
    return padded


def _hops(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return uint8 [R,M,N,N], 255 where 2D is absent; the one call of `shortest_paths`."""
    r, m, n = tensors["atom_valid"].shape
    counts = (tensors["atom_valid"].sum(-1) * tensors["has_2d"]).reshape(-1)  # [R·M]
    ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    edges = tensors["edge_index"].flatten(0, 1)  # [R·M, E, 2]
    real = edges[..., 0] >= 0
    edge_index = (edges + ptr[:-1, None, None])[real].T.contiguous()  # [2, ΣE]
    hops = collamo_kernels.shortest_paths(edge_index, ptr, max_atoms=n)
    return hops.reshape(r, m, n, n)
