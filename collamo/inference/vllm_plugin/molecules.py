"""Molecules as a modality of vLLM: how one is read, its key in caches, the places of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)

from collamo.chem.conformer import Conformer, absent_conformer, given_conformer
from collamo.chem.features import MoleculeFeatures, featurize
from collamo.chem.inputs import MoleculeInput
from collamo.chem.molecule import Molecule
from collamo.data.batch import MODALITIES, REQUIRED_TENSORS
from collamo.errors import UsageError, suggest
from collamo.inference.conversation import MoleculeText
from collamo.inference.molecules import molecule_features, read_molecules
from collamo.model import CollamoProcessor

MODALITY = "molecule"
#: Atoms of the molecule with which vLLM measures memory; a full batch of them is what
#: `collamo.inference.vllm_plugin.model.PAIRS` allows.
DUMMY_ATOMS = 128


@dataclass(frozen=True)
class Reading:
    """How the molecules of a request are read: its ``mm_processor_kwargs``.

    Attributes
    ----------
    modalities
        Which of "1d", "2d", "3d" the model may see.
    conformer_seed
        Of conformers that are embedded.
    """

    modalities: tuple[str, ...]
    conformer_seed: int


class ReadMolecules(ProcessorBatchItems[Molecule | MoleculeFeatures]):
    """The molecules of a prompt."""

    def __init__(self, molecules: Sequence[Molecule | MoleculeFeatures]):
        super().__init__(molecules, MODALITY)

    def get_item_for_hash(self, index: int) -> dict[str, Any]:
        """Return everything that the model's inputs depend on, but how they are read.

        Not the canonical SMILES: the 1D encoder reads atoms in the order in which they were
        written, and the conformer depends on it too. Two spellings are two entries of a cache.
        """
        molecule = self.data[index]
        embedded = False
        if isinstance(molecule, Molecule):
            own = given_conformer(molecule)
            embedded = own is None
            molecule = featurize(molecule, own or absent_conformer("embedded later"))
        return {
            "smiles": molecule.smiles,
            "selfies": molecule.selfies,
            "atoms": molecule.atom_features,
            "edges": molecule.edge_index,
            "bonds": molecule.edge_features,
            "directions": molecule.bond_directions,
            "coordinates": "embedded" if embedded else molecule.conformer.coordinates,
        }


class MoleculeParser(MultiModalDataParser):
    """Reads what a prompt gives as ``multi_modal_data``."""

    def _get_subparsers(self):
        return {MODALITY: self._read}

    def _read(
        self, data: MoleculeInput | Sequence[MoleculeInput | MoleculeText] | None
    ) -> ReadMolecules | None:
        """Read one molecule, or a list; `MoleculeError` names those that cannot be read."""
        if data is None:
            return None
        several = data if isinstance(data, list | tuple) else [cast("MoleculeInput", data)]
        return ReadMolecules(read_molecules(read(several)))


def read(molecules: Sequence[MoleculeInput | MoleculeText]) -> list[MoleculeInput]:
    """Read those that messages and tags have, which say what they are."""
    return [m.read() if isinstance(m, MoleculeText) else m for m in molecules]


class MoleculeInfo(BaseProcessingInfo):
    """What vLLM asks about the modality."""

    @cached_property
    def processor(self) -> CollamoProcessor:
        """The checkpoint's own."""
        config = self.ctx.model_config
        return CollamoProcessor.from_pretrained(config.model, revision=config.revision)

    def get_hf_processor(self, **kwargs: object) -> CollamoProcessor:
        """Return the processor; what a request says about molecules is none of its settings."""
        return self.processor

    def get_data_parser(self) -> MoleculeParser:
        """Return what reads molecules."""
        return MoleculeParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return that a prompt may have any number of molecules."""
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Return the number of soft tokens, b of every molecule."""
        return {MODALITY: self.processor.num_query_tokens}

    def reading(self, kwargs: Mapping[str, object]) -> Reading:
        """Return how molecules are read, of a request's ``mm_processor_kwargs`` and the engine's.

        Raises
        ------
        UsageError
            For one that there is not, or a value that means nothing.
        """
        given = dict(self.ctx.get_merged_mm_kwargs(kwargs))
        seed = given.pop("conformer_seed", self.processor.feature_extractor.conformer_seed)
        views = given.pop("modalities", MODALITIES)
        if given:
            name = next(iter(given))
            known = ("modalities", "conformer_seed")
            raise UsageError(
                f"mm_processor_kwargs has {name!r:.40}{suggest(name, known)}; there are "
                f"{' and '.join(known)}"
            )
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise UsageError(f"conformer_seed {seed!r:.40} must be an integer")
        if not isinstance(views, list | tuple) or not views or set(views) - set(MODALITIES):
            raise UsageError(
                f"modalities {views!r:.40} must be a list of one or more of {', '.join(MODALITIES)}"
            )
        return Reading(tuple(m for m in MODALITIES if m in views), seed)


class LargestMolecules(BaseDummyInputsBuilder[MoleculeInfo]):
    """What vLLM measures memory with: a chain of carbon atoms in all views."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return a prompt of molecules alone."""
        return self.info.processor.mol_token * mm_counts.get(MODALITY, 0)

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,
    ) -> MultiModalDataDict:
        """Return the molecules, with coordinates: none are embedded."""
        line = np.zeros((DUMMY_ATOMS, 3), np.float32)
        line[:, 0] = 1.5 * np.arange(DUMMY_ATOMS)
        chain = featurize(Molecule.from_smiles("C" * DUMMY_ATOMS), Conformer(line, "given"))
        return {MODALITY: [chain] * mm_counts.get(MODALITY, 0)}


class MoleculeProcessor(BaseMultiModalProcessor[MoleculeInfo]):
    """Makes of a prompt and its molecules what `ServedCollamo` takes."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        """Featurize: the tensors of each molecule by itself, [1,…].

        Not by vLLM's own call, which would round coordinates to the model's dtype.
        """
        reading, extractor = self.info.reading(hf_kwargs), self.info.processor.feature_extractor
        molecules = hf_data[f"{MODALITY}s"]
        if "3d" in reading.modalities:
            seconds = extractor.conformer_seconds
            molecules = list(
                molecule_features(molecules, seed=reading.conformer_seed, seconds=seconds)
            )
        # Stored outputs go: the encoders are here, and half precision would differ from them.
        each = [
            replace(extractor.featurize(molecule, reading.modalities), encoded={})
            for molecule in molecules
        ]
        batches = [extractor.batch([[one]], reading.modalities).tensors() for one in each]
        return BatchFeature(
            {name: [batch[name][0] for batch in batches] for name in REQUIRED_TENSORS}
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {name: MultiModalFieldConfig.batched(MODALITY) for name in REQUIRED_TENSORS}

    def _get_mm_hashes(self, inputs: ProcessorInputs):
        """Hash each molecule with how it is read, defaults filled in."""
        reading = asdict(self.info.reading(inputs.hf_processor_mm_kwargs))
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=reading))

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        """Widen each `<mol>` to b."""
        mol = [self.info.processor.mol_token_id]
        wide = mol * self.info.processor.num_query_tokens
        return [PromptReplacement(modality=MODALITY, target=mol, replacement=wide)]
