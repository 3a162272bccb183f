"""What the projector's attention did while it read one molecule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from collamo.data.batch import MoleculeBatch
from collamo.model.configuration import MODALITIES
from collamo.model.projector import BranchBlock, CoProjector, CoProjectorLayer, CrossAttention
from collamo_kernels import Relations

if TYPE_CHECKING:
    from collamo.model import CollamoForConditionalGeneration


@dataclass
class Observation:
    """The attention weights of one molecule by layer, and which modalities it has.

    Attributes
    ----------
    present
        Modalities that the molecule has and the model reads.
    lengths
        Modality → number of its tokens T.
    branches
        ``[layer][modality]`` → [H,T,T].
    gathered
        ``[layer]`` → [H,b,T of all modalities together], one more with a zero key.
    """

    present: set[str]
    lengths: dict[str, int] = field(default_factory=dict)
    branches: list[dict[str, Tensor]] = field(default_factory=list)
    gathered: list[Tensor] = field(default_factory=list)


def projector_in_use(
    model: CollamoForConditionalGeneration, molecule: MoleculeBatch
) -> CoProjector:
    """Return the projector that is used: a model with an adapter holds the one before it too."""
    used: list[CoProjector] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: used.append(module))
        for module in model.modules()
        if isinstance(module, CoProjector)
    ]
    model.get_molecule_features(molecule)
    for hook in hooks:
        hook.remove()
    return used[0]


def layers_of(projector: CoProjector) -> list[CoProjectorLayer]:
    """Return the layers by their type, which a `ModuleList` does not know."""
    return [layer for layer in projector.layers if isinstance(layer, CoProjectorLayer)]


def branches_of(layer: CoProjectorLayer) -> dict[str, BranchBlock]:
    """Return the branches of a layer by modality, by their type."""
    return {m: block for m, block in layer.branches.items() if isinstance(block, BranchBlock)}


def observe(
    model: CollamoForConditionalGeneration, projector: CoProjector, molecule: MoleculeBatch
) -> Observation:
    """Return what the attention does while the model reads a molecule."""
    present = zip(MODALITIES, molecule.present.flatten().tolist(), strict=True)
    seen = Observation({m for m, there in present if there and m in model.config.modalities})
    with _watched(projector, seen):
        model.get_molecule_features(molecule)
    return seen


@contextmanager
def _watched(projector: CoProjector, seen: Observation) -> Iterator[None]:
    """Keep the attention weights of every layer in `seen` while the projector runs."""

    def branch(layer: int, modality: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            # `forward`, not a call: the hook would see itself.
            weights = module.forward(*args, **kwargs, need_weights=True)[1]  # [H, T·T], packed
            length = len(args[0])
            seen.branches[layer][modality] = weights.float().unflatten(-1, (length, length))
            seen.lengths[modality] = length

        return hook

    def gather(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        assert isinstance(module, CrossAttention)
        seen.gathered.append(module.weights(*args)[0].float())

    hooks = []
    for number, layer in enumerate(layers_of(projector)):
        seen.branches.append({})
        hooks += [
            block.attention.register_forward_hook(branch(number, m), with_kwargs=True)
            for m, block in branches_of(layer).items()
        ]
        hooks.append(layer.gather.attention.register_forward_hook(gather))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class MoleculeRelations(NamedTuple):
    """The relations of one molecule, as both branches of atoms get them.

    `hops` [N,N] and `coordinates` [N,3] are those of `relations`, whose batch has one molecule.
    """

    relations: Relations
    hops: Tensor
    coordinates: Tensor
    has_3d: bool

    @property
    def off_diagonal(self) -> Tensor:
        """Return bool [N,N]: pairs of different atoms."""
        return ~torch.eye(len(self.hops), dtype=torch.bool, device=self.hops.device)


def relations_of(molecule: MoleculeBatch) -> MoleculeRelations:
    """Return the relations of a batch of one molecule."""
    relations = molecule.relations()
    hops, coordinates, has_3d = relations.hops, relations.coordinates, relations.has_3d
    assert hops is not None
    assert coordinates is not None
    assert has_3d is not None
    return MoleculeRelations(relations, hops[0], coordinates[0], bool(has_3d[0]))
