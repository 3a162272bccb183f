"""What is timed: each operation on a batch of molecules, and its rivals; answers are checked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from collamo.chem.conformer_workers import embed_conformers
from collamo.chem.molecule import Molecule
from collamo.data.molecule_column import MOLECULE_READERS
from collamo.data.sources import EMBEDDED, Source, open_source
from collamo.errors import MoleculeError, UsageError
from collamo.progress import progress_bar

if TYPE_CHECKING:  # at run time where they are used: reading molecules needs no torch
    from torch import Tensor

    from collamo_kernels.testing import Inputs

# Bytes that the formula beside ours takes for a pair of a padded batch, a head or Gaussian: 7 were
# measured in float32 with gradients; its check in float64 doubles them, and half again for luck.
BYTES = 24
HOP_BUCKETS = 64


@dataclass(frozen=True)
class Shape:
    """The sizes of an attention: `heads` of `width` channels, Φ3d of `gaussians` with an MLP."""

    heads: int = 32
    width: int = 24
    gaussians: int = 128

    def __str__(self) -> str:
        return f"{self.heads} heads of {self.width}"


class Molecules(NamedTuple):
    """A batch: molecules, bonds [2, E] both ways, ptr [B + 1], coordinates [T, 3] Å, has_3d [B]."""

    name: str
    molecules: list[Molecule]
    edges: Tensor
    ptr: Tensor
    coordinates: Tensor
    has_3d: Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        """The atoms of each molecule, without hydrogens."""
        return tuple(self.ptr.diff().tolist())

    def __str__(self) -> str:
        mean = np.mean(self.sizes)
        return f"{len(self.molecules)} molecules of {self.name} (mean {mean:.1f} atoms)"


class Workload(NamedTuple):
    """Ours and its rivals, functions without arguments; a rival that cannot run is a reason."""

    operation: str
    name: str
    ours: Callable[[], Any]
    rivals: Mapping[str, Callable[[], Any] | str]


def read_molecules(file: str | os.PathLike[str] | None, count: int) -> tuple[Molecules, list[str]]:
    """Return the first `count` molecules of a file that can be read, and why others were left out.

    Any file that `collamo prepare` reads; None takes the NCI molecules inside RDKit. Hydrogens are
    left out, as in the model. A molecule without 3D coordinates gets a conformer; where none can
    be embedded it is in the batch without Φ3d.

    Raises UsageError where the file cannot be opened or no molecule of it can be read.
    """
    import torch

    source = open_source(EMBEDDED if file is None else os.fspath(file), guess_columns=False)
    found, complaints = _first(source, count)
    if not found:
        first = f"; the first: {complaints[0]}" if complaints else ""
        raise UsageError(f"{source.name} has no molecule that can be read{first}")
    places, has_3d = [], []
    with progress_bar("conformers", len(found)) as advance:
        for molecule, conformer in zip(found, embed_conformers(found), strict=True):
            x = conformer.coordinates
            has_3d.append(x is not None)
            places.append(np.zeros((molecule.mol.GetNumAtoms(), 3)) if x is None else x)
            advance(1)
    ptr = np.cumsum([0, *(len(x) for x in places)])
    edges = [_edges(molecule) + start for molecule, start in zip(found, ptr, strict=False)]
    batch = Molecules(
        source.name,
        found,
        torch.from_numpy(np.concatenate(edges, 1)),
        torch.from_numpy(ptr),
        torch.from_numpy(np.concatenate(places)).float(),
        torch.tensor(has_3d),
    )
    return batch, complaints


def _first(source: Source, count: int) -> tuple[list[Molecule], list[str]]:
    found: list[Molecule] = []
    complaints = []
    for row in source:
        if len(found) == count:
            break
        try:
            if row.problem is not None:
                raise MoleculeError(row.problem[1])
            found.append(MOLECULE_READERS[row.kind](row.text))
        except MoleculeError as error:
            complaints.append(f"record {row.number}: {error}")
    return found, complaints


def _edges(molecule: Molecule) -> np.ndarray:
    """Both directions of each bond, [2, E] int64."""
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.mol.GetBonds()]
    one_way = np.array(bonds, dtype=np.int64).reshape(-1, 2).T
    return np.concatenate([one_way, one_way[::-1]], axis=1)


def workloads_of(batch: Molecules, shape: Shape, *, compiled: bool = False) -> Iterator[Workload]:
    """Yield one workload after the other: attention (both passes), hops, distances.

    `compiled` takes in the rivals that torch.compile makes, a minute each.

    Raises UsageError where the formula that ours is checked against would not fit into memory, and
    AssertionError where an answer is wrong.
    """
    _check_memory(batch, shape)
    for backward in (False, True):
        yield _attention(batch, shape, backward, compiled)
    yield _hops(batch)
    for backward in (False, True):
        yield _distances(batch, backward)


def _check_memory(batch: Molecules, shape: Shape) -> None:
    largest, memory = max(batch.sizes), _memory()
    each = BYTES * largest**2 * (shape.heads + shape.gaussians)
    fits = int(memory // each)
    if len(batch.sizes) > fits:
        out = f"say --molecules {fits}" if fits else f"leave out what has {largest} atoms"
        raise UsageError(
            f"{batch.name}: the formula that ours is checked against needs {_gb(each)} for each of "
            f"{len(batch.sizes)} molecules of up to {largest} atoms; {_gb(memory)} are free; {out}"
        )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2g} GB"


def _memory() -> float:
    """Return the bytes of memory that are free; without a way to ask, no limit."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError):  # Windows; macOS knows no such name
        return float("inf")


def _inputs(batch: Molecules, shape: Shape) -> Inputs:
    """Return the attention's arguments: the molecules' relations; q, k, v and tables are drawn."""
    import collamo_kernels as ck
    from collamo_kernels.testing import Case, make_inputs

    sizes = dataclasses.asdict(shape) | {"hop_buckets": HOP_BUCKETS, "head": "mlp"}
    inputs = make_inputs(Case("molecules", batch.sizes, **sizes))
    x = batch.coordinates.requires_grad_()
    has_3d = None if bool(batch.has_3d.all()) else batch.has_3d
    relations = ck.Relations.from_graphs(batch.edges, batch.ptr, x, has_3d, layout="packed")
    return dataclasses.replace(inputs, relations=relations)


def _attention(batch: Molecules, shape: Shape, backward: bool, compiled: bool) -> Workload:
    from collamo_kernels.rivals import COMPILED, checked, ours_of, rivals_of
    from collamo_kernels.testing import (
        assert_all_accurate,
        attend,
        attend_eagerly,
        with_gradients,
    )

    inputs = _inputs(batch, shape)
    yardstick = with_gradients(attend_eagerly, inputs)
    exact = with_gradients(lambda x: attend(x, "packed", backend="reference"), inputs.double())
    assert_all_accurate(with_gradients(lambda x: attend(x, "packed"), inputs), yardstick, exact)
    rivals = rivals_of(inputs, backward)
    if not compiled:
        rivals = {name: rival for name, rival in rivals.items() if name not in COMPILED}
    calls = checked(rivals, yardstick["out"], exact["out"])
    name = f"{batch}, {shape}, " + ("forward + backward" if backward else "forward")
    return Workload("coattention", name, ours_of(inputs, backward), calls)


def _hops(batch: Molecules) -> Workload:
    import torch
    from rdkit import Chem

    import collamo_kernels as ck

    def ours() -> Tensor:
        return ck.shortest_paths(batch.edges, batch.ptr, layout="packed")

    def by_rdkit() -> list[np.ndarray]:
        return [Chem.GetDistanceMatrix(each.mol, force=True) for each in batch.molecules]

    flat = np.concatenate([matrix.ravel() for matrix in by_rdkit()])
    expected = torch.from_numpy(np.where(flat > 253, 255, flat).astype(np.uint8))
    assert torch.equal(expected, ours()), "shortest_paths: RDKit finds other hops"
    rivals: dict[str, Callable[[], Any] | str] = {"RDKit": by_rdkit, "SciPy": _scipy(batch)}
    return Workload("shortest_paths", str(batch), ours, rivals)


def _scipy(batch: Molecules) -> Callable[[], Any] | str:
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import shortest_path
    except ImportError:
        return "not installed: pip install scipy"
    matrices = []
    for molecule in batch.molecules:
        edges, atoms = _edges(molecule), molecule.mol.GetNumAtoms()
        ones = np.ones(edges.shape[1])
        matrices.append(csr_array((ones, (edges[0], edges[1])), shape=(atoms, atoms)))
    return lambda: [shortest_path(matrix, unweighted=True) for matrix in matrices]


def _distances(batch: Molecules, backward: bool) -> Workload:
    import torch

    import collamo_kernels as ck

    relations = ck.Relations.from_graphs(batch.edges, batch.ptr, batch.coordinates)
    assert relations.coordinates is not None
    x, valid = relations.coordinates.detach().requires_grad_(backward), relations.valid
    cotangent = torch.randn(*x.shape[:2], x.shape[1], generator=torch.Generator().manual_seed(0))

    def timed(distances: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            out = distances()
            return torch.autograd.grad(out, x, cotangent)[0] if backward else out

        return run

    def by(backend: str | None) -> Callable[[], Tensor]:
        return timed(lambda: ck.pairwise_distances(x, valid, backend=backend))

    calls = {"ours": by(None), "reference": by("reference")}
    answers = (call().detach() for call in calls.values())
    torch.testing.assert_close(*answers, msg=lambda text: f"pairwise_distances: {text}")
    rivals: dict[str, Callable[[], Any] | str] = {"reference": calls["reference"]}
    if not backward:  # it has no gradient where two atoms are in one place, and padding is
        rivals["torch.cdist"] = lambda: torch.cdist(x, x)
    name = f"{batch}, padded, " + ("forward + backward" if backward else "forward")
    return Workload("pairwise_distances", name, calls["ours"], rivals)
