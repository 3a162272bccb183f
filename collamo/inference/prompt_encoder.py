"""From messages and molecules to the embeddings that a language model reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collamo.chem.features import MoleculeFeatures
from collamo.chem.inputs import MoleculeInput, read_molecule
from collamo.data.batch import MODALITIES, batch_molecules
from collamo.errors import UsageError
from collamo.inference.answers import evaluation_mode
from collamo.inference.conversation import MoleculeText, prompt_of, read_conversation
from collamo.inference.molecules import molecule_features, read_molecules

if TYPE_CHECKING:  # at run time only an adapter needs it
    from peft import PeftModel

    from collamo.model import CollamoForConditionalGeneration, CollamoProcessor
    from collamo.model.inputs import ModelInputs
    from collamo.model.molecule_parts import MoleculeParts


class PromptEncoder:
    """Makes the prompts of a trained model, for an engine that has its language model.

    ``collamo.load(folder, language_model=False)`` opens one without the language model; `Assistant`
    is one too.

    Attributes
    ----------
    model
        `MoleculeParts`, or a whole model.
    processor
        Makes its inputs of text and molecules.

    Examples
    --------
    >>> encoder = collamo.load("demo/stage2/final", language_model=False)  # doctest: +SKIP
    >>> encoder.prompt_embeds("Is it an acid?", ["CCO"]).shape  # doctest: +SKIP
    torch.Size([16, 128])
    """

    def __init__(
        self,
        model: MoleculeParts | CollamoForConditionalGeneration | PeftModel,
        processor: CollamoProcessor,
    ):
        self.model = model
        self.processor = processor

    @torch.no_grad()
    def soft_tokens(
        self,
        molecules: MoleculeInput | Iterable[MoleculeInput],
        *,
        batch_size: int = 32,
        modalities: Sequence[str] = MODALITIES,
    ) -> Tensor:
        """Return what the language model is given in place of ``<mol>``.

        Parameters
        ----------
        molecules
            One, or several.
        batch_size
            Molecules encoded together.
        modalities
            Which of "1d", "2d", "3d" the model may see.

        Returns
        -------
        Tensor
            ``[n,b,D]`` in the model's dtype and on its device, without gradient: row i belongs to
            ``molecules[i]``, b soft tokens each, D channels of the language model. A single
            molecule is a row too.

        Raises
        ------
        MoleculeError
            For what is no molecule.
        UsageError
            For an empty list, or an unknown modality.
        """
        features = self.features(molecules)
        if not features:
            raise UsageError("there are no molecules; give at least one")
        vocabulary, parts = self.processor.feature_extractor.vocabulary, []
        with evaluation_mode(self.model):
            for start in range(0, len(features), batch_size):
                rows = [[each] for each in features[start : start + batch_size]]
                batch = batch_molecules(rows, vocabulary, modalities).to(self.model.device)
                parts.append(self.model.get_molecule_features(batch)[:, 0])
        return torch.cat(parts).to(self.model.dtype)

    def prompt_embeds(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        molecules: MoleculeInput | Iterable[MoleculeInput] = (),
        *,
        modalities: Sequence[str] = MODALITIES,
    ) -> Tensor:
        """Return the embeddings of a whole prompt, soft tokens where the molecules stand.

        An engine that serves the language model alone, such as vLLM with ``prompt_embeds``, goes on
        from here as the model itself would.

        Parameters
        ----------
        messages
            A question about the molecules, or messages as `read_conversation` takes them.
        molecules
            What stands before the question, or where a message's part of type "molecule" is bare.
        modalities
            Which of "1d", "2d", "3d" the model may see.

        Returns
        -------
        Tensor
            ``[T,D]``: T tokens, D channels of the language model, in its dtype, without gradient.

        Raises
        ------
        MoleculeError
            For what is no molecule.
        ValueError
            For messages that are no conversation, contain `<mol>` or are longer than the language
            model can read.

        Examples
        --------
        >>> encoder.prompt_embeds("Which is the acid?", ["CCO", "CC(=O)O"])  # doctest: +SKIP
        """
        features, inputs = self.prepared(messages, molecules, modalities)
        soft = self.soft_tokens(features, modalities=modalities) if features else None
        return self.spliced(inputs["input_ids"][0], soft)

    def prepared(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        molecules: MoleculeInput | Iterable[MoleculeInput],
        modalities: Sequence[str],
    ) -> tuple[list[MoleculeFeatures], ModelInputs]:
        """Return the molecules of a conversation and what the model takes for it.

        Arguments and errors are those of `prompt_embeds`.
        """
        if isinstance(molecules, str) or not isinstance(molecules, Iterable):
            molecules = [molecules]
        conversation = read_conversation(messages, molecules)
        found = [m.read() if isinstance(m, MoleculeText) else m for m in conversation.molecules]
        features = self.features(found)
        prompt = prompt_of(self.processor, conversation.messages)
        rows = [features] if features else None
        return features, self.processor(prompt, rows, modalities=modalities)

    @torch.no_grad()
    def spliced(self, ids: Tensor, soft: Tensor | None) -> Tensor:
        """Return the embeddings ``[T,D]`` of `ids` ``[T]``, ``[M,b,D]`` where `<mol>` stands."""
        ids = ids.to(self.model.device)
        embeds = self.model.get_input_embeddings()(ids)
        if soft is None:
            return embeds
        where = (ids == self.processor.mol_token_id)[:, None]
        return embeds.masked_scatter(where, soft.to(embeds))

    def features(
        self, molecules: MoleculeInput | Iterable[MoleculeInput]
    ) -> list[MoleculeFeatures]:
        """Return what the encoders read of the molecules, which other methods take at less cost.

        Conformers are embedded with the seed and time limit of the processor.
        """
        if isinstance(molecules, str) or not isinstance(molecules, Iterable):
            read = [read_molecule(molecules)]
        else:
            read = read_molecules(list(molecules))
        extractor = self.processor.feature_extractor
        seconds = extractor.conformer_seconds
        return list(molecule_features(read, seed=extractor.conformer_seed, seconds=seconds))
