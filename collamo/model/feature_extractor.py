"""From molecules to the padded batch that the encoders read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transformers import FeatureExtractionMixin

from collamo.chem.conformer import absent_conformer
from collamo.chem.conformer_workers import embed_conformer_limited
from collamo.chem.features import MoleculeFeatures, featurize, unknown_to_unimol
from collamo.chem.inputs import MoleculeInput, read_molecule
from collamo.chem.rejection import RejectedMolecule
from collamo.data.batch import MODALITIES, REQUIRED_TENSORS, MoleculeBatch, batch_molecules
from collamo.model.inputs import ModelInputs
from collamo.model.selfies_vocabulary import SelfiesVocabulary

logger = logging.getLogger(__name__)


class MoleculeFeatureExtractor(FeatureExtractionMixin):
    """Molecules to padded tensors; the SELFIES vocabulary is part of its saved JSON.

    Parameters
    ----------
    selfies_tokens
        Tokens of the vocabulary (see `SelfiesVocabulary`).
    conformer_seed
        Seed of conformers embedded on the fly, for molecules given as text.
    conformer_seconds
        Time limit of one embedding; past it the conformer is absent. Our choice: 30 s, because
        RDKit can hang for minutes on cages and macrocycles.
    """

    model_input_names = list(REQUIRED_TENSORS)  # noqa: RUF012

    def __init__(
        self,
        selfies_tokens: Sequence[str] | None = None,
        conformer_seed: int = 0,
        conformer_seconds: float = 30.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.selfies_tokens = SelfiesVocabulary(selfies_tokens).tokens
        self.conformer_seed = conformer_seed
        self.conformer_seconds = conformer_seconds

    @property
    def vocabulary(self) -> SelfiesVocabulary:
        """The vocabulary of `selfies_tokens`."""
        return SelfiesVocabulary(self.selfies_tokens)

    def __call__(
        self,
        molecules: Sequence[Sequence[MoleculeInput]],
        modalities: Sequence[str] = MODALITIES,
    ) -> ModelInputs:
        """Featurize and pad: the tensors of `batch`, by name."""
        return ModelInputs(self.batch(molecules, modalities).tensors())

    def batch(
        self,
        molecules: Sequence[Sequence[MoleculeInput]],
        modalities: Sequence[str] = MODALITIES,
    ) -> MoleculeBatch:
        """Featurize and pad R prompts with up to M molecules each.

        Text and RDKit Mols are read and their conformers embedded, also where this process may
        start no others (a worker of a DataLoader); a molecule that was featurized before keeps
        what it has.

        Raises
        ------
        RejectedMolecule
            For what is no molecule, with the number of its prompt.
        ValueError
            For an unknown modality, or none.
        """
        if not modalities or set(modalities) - set(MODALITIES):
            raise ValueError(f"modalities {list(modalities)}: choose one or more of {MODALITIES}")
        rows = [self._row(row, modalities, number) for number, row in enumerate(molecules)]
        for features in (features for row in rows for features in row):
            _warn_of_nothing(features, modalities)
        return batch_molecules(rows, self.vocabulary, tuple(modalities))

    def featurize(
        self, molecule: MoleculeInput, modalities: Sequence[str] = MODALITIES
    ) -> MoleculeFeatures:
        """Return the features of one molecule; conformers cost time, so only if 3D is wanted."""
        molecule = read_molecule(molecule)
        if isinstance(molecule, MoleculeFeatures):
            return molecule
        if "3d" not in modalities:
            return featurize(molecule, absent_conformer("3D not requested"))
        conformer = embed_conformer_limited(
            molecule, seed=self.conformer_seed, seconds=self.conformer_seconds
        )
        features = featurize(molecule, conformer)
        if conformer.coordinates is not None:
            for element, atoms in unknown_to_unimol(features.atom_features).items():
                logger.warning(
                    "%s: Uni-Mol lacks %s (%d atoms): its 3D encoder reads it as [UNK]",
                    shortened(features.smiles),
                    element,
                    atoms,
                )
        return features

    def _row(
        self, molecules: Sequence[MoleculeInput], modalities: Sequence[str], number: int
    ) -> list[MoleculeFeatures]:
        try:
            return [self.featurize(molecule, modalities) for molecule in molecules]
        except RejectedMolecule as error:
            raise RejectedMolecule(error.code, f"prompt {number}: {error}") from None


def _warn_of_nothing(features: MoleculeFeatures, modalities: Sequence[str]) -> None:
    """Warn where a molecule has none of the requested modalities."""
    conformer = features.conformer
    there = {"1d": features.selfies is not None, "3d": conformer.coordinates is not None}
    if any(there.get(name, True) for name in modalities):
        return
    logger.warning(
        "%s has none of the modalities %s%s: the model answers without having read it; ask for "
        "'2d' too, which every molecule has",
        shortened(features.smiles),
        list(modalities),
        f" (no conformer: {conformer.reason})" if "3d" in modalities else "",
    )


def shortened(text: str) -> str:
    """Return `text` in quotes, at most 80 characters of it, for messages."""
    return repr(text if len(text) <= 80 else text[:77] + "…")
