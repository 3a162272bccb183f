"""The encoders of molecules: ours against the official formulation and torch-geometric.

64 real molecules of at most 100 atoms, at the sizes of the published encoders, random weights,
float32, without gradients as frozen encoders run. Uni-Mol's rival is the formula on the padded
batch that the tests hold ours to; GIN's is a stack of torch-geometric's GINEConv where that is
installed, and each is handed its inputs ready-made: one flattened graph.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import memory
import molecules
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collamo.chem.conformer import absent_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import Molecule
from collamo.data.batch import batch_molecules
from collamo.model.configuration import GinConfig, UniMolConfig
from collamo.model.encoders import GinEncoder, UniMolEncoder, unimol_inputs
from collamo.model.encoders.gin import flatten_edges
from collamo_kernels.testing import assert_accurate

sys.path.append(str(Path(__file__).parents[1] / "tests" / "model"))
from unimol_reference import unimol_reference

BATCH, ROUNDS = 64, 9
RELEASE = UniMolConfig()  # 15 layers, 512 channels, 64 heads
PROJECTOR_LEVELS = [3, 6, 9, 12, 15]


def unimol_batch(count: int = BATCH) -> tuple[str, tuple[Tensor, Tensor, Tensor]]:
    """Tokens, distances and pair types of the molecules, padded to the longest."""
    name, mols = molecules.read(count)
    sizes = [mol.GetNumAtoms() for mol in mols]
    valid = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    numbers, places = torch.zeros(valid.shape, dtype=torch.long), torch.zeros(*valid.shape, 3)
    numbers[valid] = torch.tensor([a.GetAtomicNum() for mol in mols for a in mol.GetAtoms()])
    places[valid] = molecules.coordinates(mols)
    return name, unimol_inputs(numbers, places, valid)


def unimol(dtype: torch.dtype = torch.float32) -> UniMolEncoder:
    """The release's sizes, random weights."""
    torch.manual_seed(0)
    return UniMolEncoder(RELEASE).eval().requires_grad_(False).to(dtype)


def official(encoder: UniMolEncoder, inputs: tuple[Tensor, ...]) -> Callable:
    """Return a call of the formulation on the padded batch; each layer's logits may go."""

    def call() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            levels, logits = unimol_reference(encoder, *inputs, keep=False)
            return levels[-1], logits[-1].permute(0, 2, 3, 1)

    return call


def check_unimol(answer: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Hold both representations of real tokens to the error of the official formulation."""
    tokens, distance, types = inputs
    real = tokens != 0
    both = real[:, :, None] & real[:, None, :]
    plain = official(unimol(), inputs)()
    exact = official(unimol(torch.float64), (tokens, distance.double(), types))()
    for ours, theirs, truth, where in zip(answer, plain, exact, (real, both), strict=True):
        assert_accurate(ours[where], theirs[where], truth[where])


def unimol_call(contender: str) -> Callable:
    """For memory.py: one call on the batch."""
    encoder = unimol()

    def call_of(inputs: tuple[Tensor, ...]) -> Callable:
        if contender == "ours":
            return lambda: encoder(*inputs)
        if contender == "ours, levels of the projector":
            return lambda: encoder.levels(*inputs, PROJECTOR_LEVELS)
        return official(encoder, inputs)

    call_of(unimol_batch(2)[1])()
    return call_of(unimol_batch()[1])


@pytest.mark.parametrize("threads", [2], indirect=True)
def bench_unimol(compare, threads):
    """Representation and pair representation, as the official encoder returns them."""
    name, inputs = unimol_batch()
    encoder = unimol()
    padded = official(encoder, inputs)
    check_unimol(encoder(*inputs), inputs)
    half = unimol(torch.bfloat16)
    rivals = {
        "official formulation, padded": padded,
        "ours, levels of the projector": lambda: encoder.levels(*inputs, PROJECTOR_LEVELS),
        "the same in bfloat16": lambda: half.levels(*inputs, PROJECTOR_LEVELS),
    }
    mib = {
        key: memory.extra_mib("bench_model", "unimol_call", key)
        for key in ("ours", "official formulation, padded", "ours, levels of the projector")
    }
    workload = f"Uni-Mol, {BATCH} {name} molecules"
    compare("model", workload, lambda: encoder(*inputs), rivals, ROUNDS, None, mib)


class GeometricGin(nn.Module):
    """The same weights in torch-geometric's GINEConv."""

    def __init__(self, encoder: GinEncoder):
        from torch_geometric.nn import GINEConv

        super().__init__()
        self.encoder = encoder
        # GINEConv draws the weights of what it is given anew.
        drawn = (copy.deepcopy(gnn.mlp) for gnn in encoder.gnns)
        self.convs = nn.ModuleList(GINEConv(mlp, train_eps=True) for mlp in drawn)
        for conv, gnn in zip(self.convs, encoder.gnns, strict=True):
            conv.nn, conv.eps = gnn.mlp, gnn.eps

    def forward(self, x: Tensor, edges: Tensor, bonds: Tensor) -> list[Tensor]:
        """As `GinEncoder`: every level [A,C]."""
        h = looked_up(self.encoder.atom_encoder.atom_embedding_list, x)
        levels = [h]
        rounds = zip(self.convs, self.encoder.gnns, self.encoder.batch_norms, strict=True)
        for number, (conv, gnn, norm) in enumerate(rounds, start=1):
            h = norm(conv(h, edges, looked_up(gnn.bond_encoder.bond_embedding_list, bonds)))
            h = h if number == len(self.convs) else F.relu(h)
            levels.append(h)
        return levels


def looked_up(tables: nn.ModuleList, features: Tensor) -> Tensor:
    """Sum of one embedding per feature."""
    return sum(table(features[:, i]) for i, table in enumerate(tables))


def gin(dtype: torch.dtype = torch.float32) -> GinEncoder:
    """MoleculeSTM's sizes: 5 layers of 300 channels; statistics as if it had been trained."""
    torch.manual_seed(0)
    encoder = GinEncoder(GinConfig()).eval().requires_grad_(False)
    for norm in (*encoder.batch_norms, *(gnn.mlp[1] for gnn in encoder.gnns)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return encoder.to(dtype)


def graph_batch(count: int = BATCH) -> tuple[str, tuple[Tensor, Tensor, Tensor]]:
    """Features, edges and bond features of the molecules as one flattened graph."""
    name, mols = molecules.read(count)
    rows = [[featurize(Molecule.from_mol(mol), absent_conformer("not read"))] for mol in mols]
    batch = batch_molecules(rows, {}).flat()
    edges = flatten_edges(batch.edge_index, batch.edge_features, batch.atom_valid)
    return name, (batch.atom_features[batch.atom_valid], *edges)


def check_gin(answer: list[Tensor], graph: tuple[Tensor, Tensor, Tensor]) -> None:
    """Hold every level to the error that torch-geometric makes."""
    plain, exact = (GeometricGin(gin(dtype))(*graph) for dtype in (torch.float32, torch.float64))
    for ours, theirs, truth in zip(answer, plain, exact, strict=True):
        assert_accurate(ours, theirs, truth)


@pytest.mark.parametrize("threads", [2], indirect=True)
def bench_gin(compare, threads):
    """All levels of all atoms."""
    pytest.importorskip("torch_geometric")
    name, graph = graph_batch()
    encoder = gin()
    rival = GeometricGin(encoder)

    def by_geometric() -> list[Tensor]:
        with torch.inference_mode():
            return rival(*graph)

    check_gin(encoder(*graph), graph)

    def products() -> list[Tensor]:
        with torch.inference_mode():
            return [gnn.mlp[3](gnn.mlp[0](levels[0])) for gnn in encoder.gnns]

    levels = encoder(*graph)
    rivals = {"torch-geometric GINEConv": by_geometric, "its matrix products alone": products}
    workload = f"GIN, {BATCH} {name} molecules"
    compare("model", workload, lambda: encoder(*graph), rivals, 31)
