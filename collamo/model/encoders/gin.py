"""The 2D encoder: a graph isomorphism network over atoms and bonds (Hu et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from collamo.chem.features import ATOM_FEATURE_SIZES, BOND_FEATURE_SIZES
from collamo.data.batch import MoleculeBatch
from collamo.model.configuration import GinConfig
from collamo.model.encoders.embeddings import all_rows
from collamo.model.encoders.packing import frozen_mode, in_frozen_mode, stays_padded
from collamo_kernels import neighbour_sum
from collamo_kernels.bare import is_bare

#: Rows of pretrain-gnns' tables: element (118, one unused, mask), chirality; bond type (4, self
#: loop, mask), direction.
PRETRAIN_GNNS_ATOM_SIZES = (120, 3)
PRETRAIN_GNNS_BOND_SIZES = (6, 3)
SELF_LOOP = 4
#: What pre-training put in place of a hidden element or bond type.
MASKED_ATOM, MASKED_BOND = 119, 5


def gin_inputs(
    flavour: str, atom_features: Tensor, edge_features: Tensor, bond_directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the atom and edge features that a GIN of this flavour reads.

    "ogb" reads OGB's as they are; "pretrain-gnns" element and chirality, bond type and direction.
    Its own featuriser raises an error where its tables have no row. Here an atom that is no
    element, and a bond that is not single, double, triple or aromatic, is read as the hidden
    element or bond of its pre-training; a chirality that is not tetrahedral as none.

    Parameters
    ----------
    flavour
        "ogb" or "pretrain-gnns".
    atom_features
        [...,9] int64 OGB atom features.
    edge_features
        [...,3] int64 OGB bond features.
    bond_directions
        [...] int64: 1 up, 2 down, else 0; "ogb" does not read them.

    Returns
    -------
    (Tensor, Tensor)
        The two OGB tensors, or [...,2] and [...,2] int64.
    """
    if flavour == "ogb":
        return atom_features, edge_features
    element, chirality, kind = atom_features[..., 0], atom_features[..., 1], edge_features[..., 0]
    element = torch.where(element < 118, element, MASKED_ATOM)
    chirality = torch.where(chirality < PRETRAIN_GNNS_ATOM_SIZES[1], chirality, 0)
    kind = torch.where(kind < SELF_LOOP, kind, MASKED_BOND)
    return torch.stack([element, chirality], -1), torch.stack([kind, bond_directions], -1)


class GinEncoder(nn.Module):
    """GIN in either published form; parameter names follow MoleculeSTM's and OGB's.

    With a ReLU after every round but the last, ``flavour="ogb"``::

        h⁽⁰⁾ᵢ = Σ_f AtomEmbedding_f(xᵢ)
        h⁽ˡ⁺¹⁾ᵢ = BatchNorm(MLP((1+ε) h⁽ˡ⁾ᵢ + Σ_j ReLU(h⁽ˡ⁾ⱼ + BondEmbedding(eᵢⱼ))))

    and ``flavour="pretrain-gnns"`` (Hu et al.), whose atoms are their own neighbours over a bond of
    type 4::

        h⁽ˡ⁺¹⁾ᵢ = BatchNorm(MLP(Σ_{j, i itself} (h⁽ˡ⁾ⱼ + BondEmbedding(eᵢⱼ))))
    """

    def __init__(self, config: GinConfig):
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        atoms, conv = {
            "ogb": (ATOM_FEATURE_SIZES, GinConv),
            "pretrain-gnns": (PRETRAIN_GNNS_ATOM_SIZES, SelfLoopGinConv),
        }[config.flavour]
        self.atom_encoder = AtomEncoder(config.hidden_size, atoms)
        self.gnns = nn.ModuleList(conv(config.hidden_size) for _ in range(config.num_layers))
        self.batch_norms = nn.ModuleList(
            AtomBatchNorm(config.hidden_size) for _ in range(config.num_layers)
        )

    def encode(
        self, molecules: MoleculeBatch, numbers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the levels of these numbers (None: all) of flat `molecules`: see `levels`."""
        x, edge_attr = gin_inputs(
            self.config.flavour,
            molecules.atom_features,
            molecules.edge_features,
            molecules.bond_directions,
        )
        return self.levels(x, molecules.edge_index, edge_attr, molecules.valid("2d"), numbers)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> list[Tensor]:
        """Encode the atoms of one graph, which may hold many molecules (as in torch-geometric).

        Parameters
        ----------
        x
            [A,9] int64 OGB atom features; for pretrain-gnns [A,2], element and chirality.
        edge_index
            [2,E] int64 directed edges, source and target.
        edge_attr
            [E,3] int64 OGB bond features; for pretrain-gnns [E,2], bond type and direction.

        Returns
        -------
        list of Tensor
            Levels 0 (embedding) to num_layers (output), each [A,C].
        """
        with frozen_mode(self):
            levels, classes = self._levels(x, edge_index, edge_attr)
        if classes is not None:
            levels = [h.index_select(0, rows) for h, rows in zip(levels, classes, strict=True)]
        # Ordinary tensors again, which autograd may save.
        return [level.clone() if level.is_inference() else level for level in levels]

    def levels(
        self,
        atom_features: Tensor,
        edge_index: Tensor,
        edge_features: Tensor,
        valid: Tensor,
        numbers: Collection[int] | None = None,
    ) -> dict[int, Tensor]:
        """Encode a padded batch of molecules.

        It is flattened to one graph of its real atoms: padding costs nothing, and batch statistics
        never see it. In a compiled graph padding is there and passed over: see `stays_padded`.

        Parameters
        ----------
        atom_features
            [B,N,F] int64 atom features, as `gin_inputs` gives them for this flavour.
        edge_index
            [B,E,2] int64 directed edges (source, target), atom numbers inside the molecule, -1 in
            padding.
        edge_features
            [B,E,F] int64 bond features, likewise.
        valid
            [B,N] bool, True = real atom. Edges that touch another atom are ignored.
        numbers
            Levels to return; None returns all.

        Returns
        -------
        dict of int to Tensor
            Levels 0 (embedding) to num_layers (output), each [B,N,C], zero in padding.
        """
        if stays_padded():
            return self._padded_levels(atom_features, edge_index, edge_features, valid, numbers)
        with frozen_mode(self):
            edges, bonds = flatten_edges(edge_index, edge_features, valid)
            levels, classes = self._levels(atom_features[valid], edges, bonds)
        numbers = range(len(levels)) if numbers is None else numbers
        rows = {number: levels[number] for number in numbers}
        if classes is not None:
            rows = {number: h.index_select(0, classes[number]) for number, h in rows.items()}
        return {number: unflatten(h, valid) for number, h in rows.items()}

    def _padded_levels(
        self,
        atom_features: Tensor,
        edge_index: Tensor,
        edge_features: Tensor,
        valid: Tensor,
        numbers: Collection[int] | None,
    ) -> dict[int, Tensor]:
        """As `levels`, of a graph that holds the padding too, and one atom more.

        Edges of padding run from that atom to itself. All these rows are zero after every round,
        so that nothing grows in them that a gradient could not stand.
        """
        with frozen_mode(self):
            edges, bonds = padded_edges(edge_index, edge_features, valid)
            x = torch.where(valid[..., None], atom_features, 0).flatten(0, 1)
            real = F.pad(valid.flatten(), (0, 1))
            levels, _ = self._levels(F.pad(x, (0, 0, 0, 1)), edges, bonds, real)
        numbers = range(len(levels)) if numbers is None else numbers
        inside = {number: levels[number][:-1].unflatten(0, valid.shape) for number in numbers}
        return {number: torch.where(valid[..., None], h, 0.0) for number, h in inside.items()}

    def _levels(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, real: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Every level [A,C]; or, a frozen one, [K,C] with the row [A] int64 of each atom.

        Atoms that are equal so far are then computed once. Of 1,807 atoms of 64 PubChem molecules
        71 differ at first, and 585, 1,088, 1,346, 1,464 and 1,541 after as many rounds.

        With `real` [A] bool rows of padding are among them, in a compiled graph.
        """
        bonds = cast("GinConv | SelfLoopGinConv", self.gnns[0]).bond_encoder
        edges = Edges.sorted_by_target(edge_index, bonds.kinds(edge_attr), len(x))
        edges = edges._replace(real=real)
        # In training mode atoms have dropout of their own, and count in the statistics. On a GPU
        # finding classes would ask the device for numbers.
        frozen = real is None and in_frozen_mode()
        frozen = frozen and not any(m.training for m in self.modules())
        if not frozen or not len(x) or x.device.type != "cpu":
            levels = [self.atom_encoder(x)]
            for number in range(len(self.gnns)):
                levels.append(self._round(number, levels[-1], edges))
            return levels, None
        classes = equal_atoms(x, edges, len(self.gnns))
        levels = [self.atom_encoder(x.index_select(0, representatives(classes[0])))]
        for number, (before, after) in enumerate(pairwise(classes)):
            levels.append(self._round(number, levels[-1], edges.into(before, after)))
        return levels, classes

    def _round(self, number: int, h: Tensor, edges: Edges) -> Tensor:
        relu, norm = number + 1 < len(self.gnns), cast("AtomBatchNorm", self.batch_norms[number])
        affine = norm.as_affine()
        h = self.gnns[number](h, edges, affine, relu)
        if affine is None:
            h = norm(h, edges.real)
            h = F.relu(h) if relu else h
        if edges.real is not None:
            h = torch.where(edges.real[:, None], h, 0.0)
        return F.dropout(h, self.dropout, self.training)


def equal_atoms(x: Tensor, edges: Edges, rounds: int) -> list[Tensor]:
    """Number atoms so that those a round cannot tell apart share a number (Weisfeiler and Leman).

    At first those of equal features; after a round those that were equal, with equal bonds to
    equal neighbours. Numbers are compared themselves, not hashes of them.

    [A,F] int64 features → ``rounds + 1`` tensors [A] int64, numbers from 0 without gaps.
    """
    degree = edges.ptr.diff()
    longest = int(degree.max())
    target = torch.arange(len(x)).repeat_interleave(degree)
    slot = torch.arange(len(target)) - edges.ptr.index_select(0, target)
    place = target * longest + slot
    kinds = int(edges.kind.max()) + 1 if len(edges.kind) else 1
    classes = [number_rows(x)]
    for _ in range(rounds):
        before = classes[-1]
        around = before.new_zeros(len(x), longest)  # 0: fewer neighbours than that
        around.view(-1)[place] = 1 + before.index_select(0, edges.source) * kinds + edges.kind
        classes.append(number_rows(torch.cat([before[:, None], around.sort(1).values], 1)))
    return classes


def number_rows(table: Tensor) -> Tensor:
    """[A,F] int64, not negative → [A] int64: equal rows get equal numbers, from 0 without gaps."""
    number, span = table.new_zeros(len(table)), 1
    if not len(table):
        return number
    for column, size in zip(table.unbind(1), (table.amax(0) + 1).tolist(), strict=True):
        if span * size >= 2**63:
            number = number.unique(return_inverse=True)[1]
            span = int(number.max()) + 1
        number, span = number * size + column, span * size
    return number.unique(return_inverse=True)[1]


def representatives(classes: Tensor) -> Tensor:
    """[A] int64 as `number_rows` gives them → of each class one member, [K] int64."""
    count = int(classes.max()) + 1 if len(classes) else 0
    members = torch.arange(len(classes), device=classes.device)
    return classes.new_empty(count).scatter_reduce(0, classes, members, "amin", include_self=False)


class Edges(NamedTuple):
    """The edges of a graph sorted by their target, as `collamo_kernels.neighbour_sum` takes them.

    `source` and `kind` [E] int64; `ptr` [A+1] int64, the running total of edges into each atom.
    With `receiver` [A] int64 sources and receivers are rows of fewer atoms than edges lead to.
    With `real` [A] bool some rows are padding, which no statistics may see.
    """

    source: Tensor
    kind: Tensor
    ptr: Tensor
    receiver: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def sorted_by_target(cls, edge_index: Tensor, kind: Tensor, num_atoms: int) -> Edges:
        """[2,E] int64 (source, target), [E] int64."""
        source, target = edge_index
        target, order = target.sort(stable=True)
        ptr = torch.searchsorted(target, torch.arange(num_atoms + 1, device=target.device))
        return cls(source.index_select(0, order), kind.index_select(0, order), ptr)

    def into(self, before: Tensor, after: Tensor) -> Edges:
        """Return the edges from classes `before` into one atom of each class `after`, [A] each."""
        atoms = representatives(after)
        degree = self.ptr.diff().index_select(0, atoms)
        ptr = F.pad(degree.cumsum(0), (1, 0))
        edge = (self.ptr.index_select(0, atoms) - ptr[:-1]).repeat_interleave(degree)
        edge += torch.arange(len(edge))
        source = before.index_select(0, self.source.index_select(0, edge))
        kind, receiver = self.kind.index_select(0, edge), before.index_select(0, atoms)
        return Edges(source, kind, ptr, receiver)


class GinConv(nn.Module):
    """One round: the atom and the sum of its neighbours' messages through an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width),
            AtomBatchNorm(2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
        )
        self.eps = nn.Parameter(torch.zeros(1))
        self.bond_encoder = BondEncoder(width, BOND_FEATURE_SIZES)

    def reset_parameters(self) -> None:
        """Start from ε = 0, the plain sum."""
        nn.init.zeros_(self.eps)

    def forward(self, h: Tensor, edges: Edges, affine: Affine | None, relu: bool) -> Tensor:
        """[A,C] atoms → [A,C], of the atoms that `edges` lead to; see `mapped`."""
        source, kind, ptr, receiver, real = edges
        bonds = self.bond_encoder()
        z = neighbour_sum(h, bonds, source, kind, ptr, receiver=receiver, scale=1 + self.eps)
        modules = cast("tuple[nn.Linear, AtomBatchNorm, nn.ReLU, nn.Linear]", tuple(self.mlp))
        first, inner_norm, _, second = modules
        inner = inner_norm.as_affine()
        z = mapped(first, inner, z, relu=True)
        return mapped(second, affine, F.relu(inner_norm(z, real)) if inner is None else z, relu)


class SelfLoopGinConv(nn.Module):
    """A round of pretrain-gnns: no ε, no ReLU on messages, the atom itself by a bond of type 4."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.bond_encoder = BondEncoder(width, PRETRAIN_GNNS_BOND_SIZES)

    def forward(self, h: Tensor, edges: Edges, affine: Affine | None, relu: bool) -> Tensor:
        """[A,C] atoms → [A,C], of the atoms that `edges` lead to; see `mapped`."""
        source, kind, ptr, receiver, _ = edges
        bonds, one = self.bond_encoder(), h.new_ones(1)
        z = neighbour_sum(h, bonds, source, kind, ptr, receiver=receiver, scale=one, relu=False)
        z = (z + bonds[SELF_LOOP * PRETRAIN_GNNS_BOND_SIZES[1]]).to(h.dtype)
        first, _, second = cast("tuple[nn.Linear, nn.ReLU, nn.Linear]", tuple(self.mlp))
        return mapped(second, affine, F.relu(first(z)), relu)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient.contiguous())


def _sum_over_processes(x: Tensor) -> Tensor:
    """A tensor summed over processes; what each of them makes of the sum has a gradient here."""
    return cast("Tensor", _SumOverProcesses.apply(x))


class Affine(NamedTuple):
    """x → (x - mean)·gain + shift, each [C]: tensors, because accelerate moves a call's arguments
    to another device, where a module would go too."""

    gain: Tensor
    mean: Tensor
    shift: Tensor


class AtomBatchNorm(nn.BatchNorm1d):
    """Batch normalisation by its running statistics, unless it learns and sees two rows or more.

    A training batch that holds a single atom has no variance; nn.BatchNorm1d raises there. A frozen
    one must not drift while adapters around it train: an adapter's file has no statistics. Where
    several processes train one model, the batch is that of all of them.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @property
    def learns(self) -> bool:
        """Whether it normalises by the batch, and remembers it."""
        return self.training and self.weight.requires_grad

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """[A,C] → [A,C]; of the rows that are `real` [A] bool, where some are padding."""
        several = dist.is_initialized() and dist.get_world_size() > 1
        if self.learns and (several or real is not None):
            return self._over_all(x, real, _sum_over_processes if several else None)
        if self.training and (x.shape[0] < 2 or not self.learns):
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)

    def _over_all(
        self, x: Tensor, real: Tensor | None, add_up: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Normalise by the `real` rows alone, of all processes where `add_up` sums over them.

        No layer of torch's passes rows over, and nn.SyncBatchNorm runs on GPUs alone. Mean first,
        then the squares around it, so that nothing cancels; in float64, as torch's own on a CPU,
        because two rows that hardly differ are a difference of large numbers.
        """
        add_up = add_up or (lambda sums: sums)
        inside = x.new_ones(len(x), 1, dtype=torch.bool) if real is None else real[:, None]
        rows = torch.where(inside, x.double(), 0.0)
        sums = add_up(torch.cat([inside.sum().double()[None], rows.sum(0)]))
        count, total = sums.split([1, x.shape[1]])
        known = (count > 1).to(self.running_mean.dtype)  # 0: a single atom, which has no variance
        mean = torch.where(count > 1, total / count.clamp(min=1), self.running_mean)
        centred = torch.where(inside, rows - mean, 0.0)
        variance = add_up(centred.square().sum(0)) / count.clamp(min=1)
        with torch.no_grad():
            step = known * cast("float", self.momentum)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), step)
            self.num_batches_tracked += known[0].long()
        variance = torch.where(count > 1, variance, self.running_var)
        scaled = (centred * torch.rsqrt(variance + self.eps)).to(self.weight.dtype)
        return (scaled * self.weight + self.bias).to(x.dtype)

    def as_affine(self) -> Affine | None:
        """What it does to a row, where it does not learn and may be read past its `forward`."""
        if self.learns or not is_bare(self, AtomBatchNorm):
            return None
        gain = self.weight * torch.rsqrt(self.running_var + self.eps)
        return Affine(gain, self.running_mean, self.bias)


def mapped(linear: nn.Linear, affine: Affine | None, x: Tensor, relu: bool) -> Tensor:
    """linear(x), or `affine` of it (and rectified) as one linear map, one pass over the rows."""
    if affine is None:
        return linear(x)
    if is_bare(linear, nn.Linear):
        bias = (linear.bias - affine.mean) * affine.gain + affine.shift
        weight = linear.weight * affine.gain[:, None]
        onednn = _onednn_linear(x)
        if onednn is not None:
            return onednn(x, weight, bias, "relu" if relu else "none", [], "")
        h = F.linear(x, weight, bias)
    else:
        h = (linear(x) - affine.mean) * affine.gain + affine.shift
    return F.relu(h) if relu else h


def _onednn_linear(x: Tensor) -> Callable[..., Tensor] | None:
    """Return oneDNN's linear layer with a ReLU behind it, or None where it cannot serve `x`.

    It is what torch's own compiler makes of a frozen linear layer and a ReLU: the bias is added and
    a row rectified while it is at hand. It knows no gradients.

    The choice is made here, beside `collamo_kernels.backends`: it is between two ways through torch
    itself, and neither ``backend=`` nor ``use_backend`` concerns it.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and len(x) > 0
    frozen = in_frozen_mode() and not torch.is_autocast_enabled("cpu")
    if not (plain and frozen and torch.backends.mkldnn.is_available()):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class AtomEncoder(nn.Module):
    """Sum of one embedding per atom feature: [A,F] int64 → [A,C]."""

    def __init__(self, width: int, sizes: tuple[int, ...]):
        super().__init__()
        self.atom_embedding_list = _tables(sizes, width)

    def forward(self, features: Tensor) -> Tensor:
        """Look up and sum."""
        tables = _rows(self.atom_embedding_list)
        starts = [0, *accumulate(len(table) for table in tables)][:-1]
        rows = features + torch.tensor(starts, device=features.device)
        return F.embedding_bag(rows, torch.cat(tables), mode="sum")


class BondEncoder(nn.Module):
    """A vector for each kind of bond, the sum of one embedding per bond feature.

    There are fewer kinds (5·6·2) than bonds: their sums are computed once.
    """

    def __init__(self, width: int, sizes: tuple[int, ...]):
        super().__init__()
        self.bond_embedding_list = _tables(sizes, width)

    def forward(self) -> Tensor:
        """[K,C], K the product of the sizes."""
        first, *others = _rows(self.bond_embedding_list)
        for rows in others:
            first = (first[:, None] + rows).flatten(0, 1)
        return first

    def kinds(self, features: Tensor) -> Tensor:
        """[E,F] int64 → [E] int64, the row of each bond."""
        kind = features.new_zeros(len(features))
        for i, table in enumerate(self.bond_embedding_list):
            kind = kind * len(cast("nn.Embedding", table).weight) + features[:, i]
        return kind


def _tables(sizes: tuple[int, ...], width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Embedding(size, width) for size in sizes)


def _rows(tables: nn.ModuleList) -> list[Tensor]:
    return [all_rows(cast("nn.Embedding", table)) for table in tables]


def flatten_edges(
    edge_index: Tensor, edge_features: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Renumber the edges between real atoms by their place among all real atoms of the batch.

    [B,E,2], [B,E,3], [B,N] bool → edges [2,E'] int64, features [E',3]. Padding (-1) and edges of
    atoms that are not real fall away.
    """
    num_atoms = valid.shape[1]
    number = (valid.flatten().cumsum(0) - 1).view_as(valid)  # place among the real atoms
    inside = (edge_index >= 0) & (edge_index < num_atoms)
    if num_atoms == 0:
        return edge_index.new_zeros(2, 0), edge_features.new_zeros(0, edge_features.shape[-1])
    safe = edge_index.clamp(0, num_atoms - 1)
    rows = torch.arange(valid.shape[0], device=valid.device)[:, None, None].expand_as(safe)
    real = (inside & valid[rows, safe]).all(-1)  # [B, E]
    return number[rows, safe][real].T, edge_features[real]


def padded_edges(edge_index: Tensor, edge_features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Renumber the edges by the places [B·N] of their atoms, padding counted.

    [B,E,2], [B,E,3], [B,N] bool → edges [2,B·E] int64, features [B·E,3]. Padding, and edges of
    atoms that are not real, become edges of features 0 from atom B·N, which is none, to itself.
    """
    batch, num_atoms = valid.shape
    inside = (edge_index >= 0) & (edge_index < num_atoms)
    safe = torch.where(inside, edge_index, num_atoms)  # a column more, of no atoms
    rows = torch.arange(batch, device=valid.device)[:, None, None].expand_as(safe)
    real = F.pad(valid, (0, 1))[rows, safe].all(-1, keepdim=True)  # [B, E, 1]
    edges = torch.where(real, rows * num_atoms + safe, batch * num_atoms)
    return edges.flatten(0, 1).T, torch.where(real, edge_features, 0).flatten(0, 1)


def unflatten(h: Tensor, valid: Tensor) -> Tensor:
    """[A,C] real atoms → [B,N,C], zero in padding."""
    return h.new_zeros(*valid.shape, h.shape[-1]).masked_scatter(valid[..., None], h)
