"""Relations: what the attention knows about the pairs of atoms of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from collamo_kernels.checks import check_tensors, hint_at_batch
from collamo_kernels.relations import checks
from collamo_kernels.relations.graphs import PyGData, molecules_of
from collamo_kernels.relations.layouts import PackedLayout
from collamo_kernels.relations.once import PREPARED, SOURCES, Kept, state_of, unchanged
from collamo_kernels.relations.prepared import PreparedRelations
from collamo_kernels.relations.sorted_pairs import SortedPairs
from collamo_kernels.shortest_paths import shortest_paths


@dataclass(frozen=True, eq=False, repr=False)
class Relations(PreparedRelations):
    """Pairwise relations of a batch of molecules. A relation that is None adds nothing.

    Padded layout (`cu_seqlens` is None): B molecules of N atoms. Packed layout: the T atoms of
    all molecules one after the other, ``P = Σ N_b²`` pairs, molecule after molecule and row-major
    (query atom first).

    Parameters
    ----------
    hops
        uint8 ``[B, N, N]`` or ``[P]``: bonds between two atoms; 0 on the diagonal, longer paths
        saturate at 253, 254 is a virtual node (`collamo_kernels.nn.with_virtual_node`), 255 is
        unreachable or padding.
    coordinates
        float32 (or float64) ``[B, N, 3]`` or ``[T, 3]``, Å. Gets gradients if it asks for them.
    valid
        bool ``[B, N]`` or ``[T]``, True = real atom; None means that all are.
    has_3d
        bool ``[B]``: False marks a molecule without a conformer, whose `coordinates` are never
        read as data. None means that every molecule has one (if there are coordinates at all).
    cu_seqlens
        int32 ``[B + 1]``, the running total of atoms; its presence is what makes the layout packed.
    max_seqlen
        Atoms of the largest molecule, packed layout only; worked out from `cu_seqlens` when left
        out.
    pair_types
        integer ``[B, N, N]`` or ``[P]``: one type id per pair, for a radial module with
        ``pair_types``.
    atom_types
        integer ``[B, N, 2]`` or ``[T, 2]``: the ids of an atom as query and as key; the pair (i,
        j) has the ids ``(atom_types[i, 0], atom_types[j, 1])``, whose affine terms are added.
        Never both.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device; the message names the argument and the fix.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> water = torch.tensor([[0, 1, 0, 2], [1, 0, 2, 0]]), torch.tensor([0, 3])
    >>> relations = ck.Relations.from_graphs(*water)
    >>> relations.hops[0, 1].tolist()
    [1, 0, 2]
    """

    hops: Tensor | None = None
    coordinates: Tensor | None = None
    valid: Tensor | None = None
    has_3d: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None
    pair_types: Tensor | None = None
    atom_types: Tensor | None = None

    def __post_init__(self) -> None:
        # No fields: FSDP, which casts what a layer is given, copies by `replace` of all fields.
        _set(self, num_atoms=None, num_pairs=None, **{PREPARED: False})
        tensors = self._fields()
        checks.check_types(tensors)
        if self.cu_seqlens is None:
            checks.check_padded(tensors, self.max_seqlen)
            return
        # Read from the device once, here: no layer has to wait for it again.
        sizes = checks.checked_sizes(self.cu_seqlens, self.max_seqlen)
        _set(self, **sizes._asdict())
        checks.check_packed(tensors, len(self.cu_seqlens) - 1, sizes)

    @classmethod
    def from_graphs(
        cls,
        edge_index: Tensor,
        ptr: Tensor,
        coordinates: Tensor | None = None,
        has_3d: Tensor | None = None,
        layout: str = "padded",
    ) -> Relations:
        """Build the relations of a PyG-style batch of graphs.

        Parameters
        ----------
        edge_index
            ``[2, E]`` int64, both directions of each bond, atoms numbered through the batch.
        ptr
            ``[B + 1]`` int64, the running total of atoms.
        coordinates
            ``[T, 3]`` Å, all atoms of the batch one after the other, or None.
        has_3d
            ``[B]`` bool, or None.
        layout
            ``"padded"`` or ``"packed"``: the layout of the result.
        """
        hops = shortest_paths(edge_index, ptr, layout=layout)
        cu_seqlens = ptr.to(torch.int32)
        packed = cls(hops if layout == "packed" else None, None, None, has_3d, cu_seqlens)
        if coordinates is not None:
            check_tensors(coordinates=coordinates)
            checks.check_coordinates(coordinates, dims=2)
            if len(coordinates) != packed.num_atoms:  # which the device was asked for just once
                raise ValueError(
                    f"coordinates has {len(coordinates)} rows, but ptr says {packed.num_atoms} "
                    f"atoms; give one row per atom of the batch{hint_at_batch(ptr)}"
                )
            _set(packed, coordinates=coordinates)
            checks.check_types(packed._fields())
        return packed if layout == "packed" else replace(packed.padded(), hops=hops)

    @classmethod
    def from_pyg(
        cls, data: PyGData, has_3d: Tensor | None = None, layout: str = "padded"
    ) -> Relations:
        """Build the relations of a PyTorch Geometric batch: hops of its edges, Å of its ``pos``.

        Parameters
        ----------
        data
            A ``Batch``, or one ``Data``, which is a batch of one. Of ``edge_index`` (bonds, both
            directions) and ``pos`` (Å) either may be missing.
        has_3d
            ``[B]`` bool, or None.
        layout
            ``"padded"`` or ``"packed"``: the layout of the result. Padded it is that of PyG's
            ``to_dense_batch``; packed, that of ``data.x``.

        Raises
        ------
        ValueError
            As `from_graphs` does, and where there is neither ``edge_index`` nor ``pos``.

        Examples
        --------
        >>> from torch_geometric.data import Batch, Data  # doctest: +SKIP
        >>> relations = Relations.from_pyg(Batch.from_data_list(molecules))  # doctest: +SKIP
        """
        edge_index, coordinates, ptr = molecules_of(data)
        if edge_index is not None:
            return cls.from_graphs(edge_index, ptr, coordinates, has_3d, layout)
        no_edges = ptr.new_empty(2, 0)
        packed = cls.from_graphs(no_edges, ptr, coordinates, has_3d, "packed")
        without = replace(packed, hops=None)
        return without if layout == "packed" else without.padded()

    @classmethod
    def of_equal_sizes(
        cls, molecules: int, atoms: int, device: torch.device | str | None = None
    ) -> Relations:
        """Return packed relations of molecules with as many places each, and nothing else.

        No device is asked for the sizes, so that a compiled graph can make them.

        >>> Relations.of_equal_sizes(2, 3).cu_seqlens.tolist()
        [0, 3, 6]
        """
        relations = cls()
        _set(
            relations,
            cu_seqlens=torch.arange(molecules + 1, dtype=torch.int32, device=device) * atoms,
            max_seqlen=atoms,
            num_atoms=molecules * atoms,
            num_pairs=molecules * atoms * atoms,
        )
        return relations

    def __repr__(self) -> str:
        """Shapes instead of numbers: a batch has a million of them."""
        parts = [f"{name} {list(tensor.shape)}" for name, tensor in self._tensors()]
        layout = "packed" if self.packed else "padded"
        return f"Relations({', '.join(parts) or 'none'}; {layout}, {self.device or 'no device'})"

    @property
    def packed(self) -> bool:
        """Whether the layout is packed: atoms one after the other, with `cu_seqlens`."""
        return self.cu_seqlens is not None

    @property
    def device(self) -> torch.device | None:
        """The device of the tensors, or None where there are none."""
        for name in TENSORS:  # a layer asks: no list of them is made
            tensor = getattr(self, name)
            if tensor is not None:
                return tensor.device
        return None

    def prepare(self) -> Relations:
        """Work out now what layers would otherwise wait for, and return self.

        For a data loader: `to` and `pin_memory` take along what is prepared, so that a GPU is
        never asked for a number. On a GPU itself `max_distance` is left out, which would wait for
        it: only the attention of a CPU reads that.

        A graph of `torch.compile` takes what is prepared as an input. It cannot see that a tensor
        was written to in place since: prepare again after that, or replace the tensor. Nor does
        anything see a write through ``.data`` or through NumPy.

        Returns
        -------
        Relations
            self.
        """
        if self.packed:
            _ = self.pair_start, self.tiles
        if self.hops is not None:
            _ = self.hop_offsets
        if self.coordinates is not None:
            _ = self.distances, self.farthest, self.pairs_by_distance
            if self.device is not None and self.device.type == "cpu":
                _ = self.max_distance
        _set(self, **{PREPARED: True})
        return self

    def copy_(self, other: Relations) -> Relations:
        """Copy another batch into the tensors of this one, prepared ones too, and return self.

        For a CUDA graph, which reads the tensors that it was captured with: a replay after this
        sees the other batch. Writing new coordinates into the old ones would leave it with the old
        distances. What `other` has prepared is copied; the rest is worked out, now.

        Parameters
        ----------
        other
            Of the same layout, with the same relations in the same shapes and dtypes; packed, its
            largest molecule may be smaller, but not larger.

        Raises
        ------
        ValueError
            `other` does not fit; the message names the relation.
        """
        checks.check_fits(self._fields(), other._fields())
        if (other.max_seqlen or 0) > (self.max_seqlen or 0):
            raise ValueError(
                f"other has a molecule of {other.max_seqlen} atoms, but relations were made for "
                f"{self.max_seqlen} at most; make them with a larger max_seqlen"
            )
        with torch.no_grad():
            for name, own in self._tensors():
                own.copy_(getattr(other, name))
            for key, sources in SOURCES.items():
                kept = self.__dict__.get(key)
                if kept is not None:
                    value = _copied(kept.value, getattr(other, key.removeprefix("_")))
                    _set(self, **{key: Kept(state_of(self, sources), value)})
        return self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Relations:
        """Move every tensor to `device`; dtypes stay."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Relations:
        """Pin every tensor, so that a copy to a GPU can run beside other work."""
        return self._map(lambda tensor: tensor.pin_memory())

    def padded(self) -> Relations:
        """Return the same relations in the padded layout (`self` if they are padded already)."""
        if not self.packed:
            return self
        layout = self.packed_layout()
        return Relations(
            hops=None if self.hops is None else layout.pad_pairs(self.hops, fill=255),
            coordinates=None if self.coordinates is None else layout.pad(self.coordinates),
            valid=layout.valid if self.valid is None else layout.pad(self.valid),
            has_3d=self.has_3d,
            pair_types=None if self.pair_types is None else layout.pad_pairs(self.pair_types),
            atom_types=None if self.atom_types is None else layout.pad(self.atom_types),
        )

    def packed_layout(self) -> PackedLayout:
        """Return where the atoms and pairs go in the padded layout; packed layout only."""
        if self.cu_seqlens is None or self.max_seqlen is None:
            raise ValueError("relations are padded, not packed; give them cu_seqlens")
        return PackedLayout(self.cu_seqlens, self.max_seqlen)

    def _fields(self) -> dict[str, Tensor | None]:
        """All fields that can hold a tensor."""
        return {name: getattr(self, name) for name in TENSORS}

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, x) for name, x in self._fields().items() if x is not None]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Relations:
        moved = copy.copy(self)  # already checked, so the checks' device reads are not repeated
        _set(moved, **{name: function(tensor) for name, tensor in self._tensors()})
        for key, sources in SOURCES.items():
            kept = self.__dict__.get(key)
            if kept is not None and unchanged(kept.state, self, sources):
                value = kept.value
                if isinstance(value, SortedPairs):
                    value = value.map(function)
                elif isinstance(value, Tensor):
                    value = function(value)
                _set(moved, **{key: Kept(state_of(moved, sources), value)})
        return moved


# Of the fields those that can hold a tensor.
TENSORS = tuple(field.name for field in fields(Relations) if "Tensor" in field.type)


def _copied(old: object, new: object) -> object:
    """Return the old value with the new one's numbers in its memory; a number is replaced."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.copy_(new)
    if isinstance(old, SortedPairs) and isinstance(new, SortedPairs):
        old.copy_(new)
        return old
    return new


def _set(relations: Relations, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(relations, name, value)
