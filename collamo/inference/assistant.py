"""The front door: a trained model that is asked about molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, overload

import torch
from torch import Tensor

from collamo.chem.features import MoleculeFeatures
from collamo.chem.inputs import MoleculeInput, read_molecule
from collamo.data.batch import batch_molecules
from collamo.errors import UsageError
from collamo.inference.answers import answer, evaluation_mode
from collamo.inference.checkpoint import find_checkpoint
from collamo.inference.molecules import molecule_features, read_molecules
from collamo.model import CollamoForConditionalGeneration, CollamoProcessor, load_checkpoint

if TYPE_CHECKING:  # at run time only an adapter needs it
    from peft import PeftModel

#: One of the wordings that training has for captions.
CAPTION_QUESTION = "Describe this molecule."


class AnswerOptions(TypedDict, total=False):
    """Options of `Assistant.ask`."""

    batch_size: int
    max_new_tokens: int
    progress: Callable[[int], None] | None


def load(
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
) -> Assistant:
    """Open a trained model, ready to be asked about molecules.

    Parameters
    ----------
    folder
        A checkpoint, as `collamo train` writes it. None takes the one that the environment variable
        ``COLLAMO_CHECKPOINT`` names, else the newest that ``make demo`` left in demo/.
    dtype, device, attn_implementation
        As for `collamo.load_checkpoint`.

    Raises
    ------
    MissingDependencyError
        Where there are no trained weights.
    CollamoError
        For damaged ones.

    Examples
    --------
    >>> assistant = collamo.load("demo/stage2/final")  # doctest: +SKIP
    >>> assistant.ask("CCO", "How many hydroxyl groups does it have?")  # doctest: +SKIP
    '1'
    """
    model, processor = load_checkpoint(find_checkpoint(folder), dtype, device, attn_implementation)
    return Assistant(model, processor)


class Assistant:
    """A model that answers questions about molecules; `collamo.load` opens one.

    A molecule is a SMILES, a SELFIES or a mol block in a text, an RDKit Mol (its conformer is
    taken where it is 3D), a `Molecule` or `MoleculeFeatures`. Where a list has molecules that
    cannot be read, one `MoleculeError` says which.

    Attributes
    ----------
    model
        The model, a `PeftModel` for an adapter; its train/eval mode is left as it is.
    processor
        Makes its inputs of text and molecules.

    Examples
    --------
    >>> assistant = collamo.load("demo/stage2/final")  # doctest: +SKIP
    >>> assistant.ask("CCO", ["Is it an acid?", "How many rings does it have?"])  # doctest: +SKIP
    ['No', '0']
    >>> assistant.ask(["CCO", "c1ccccc1"], "How many rings does it have?")  # doctest: +SKIP
    ['0', '1']
    >>> assistant.caption("CCO")  # doctest: +SKIP
    'This is ethanol …'
    >>> assistant.soft_tokens(["CCO", "c1ccccc1"]).shape  # doctest: +SKIP
    torch.Size([2, 32, 256])
    """

    def __init__(
        self, model: CollamoForConditionalGeneration | PeftModel, processor: CollamoProcessor
    ):
        self.model = model
        self.processor = processor

    @overload
    def ask(  # type: ignore[overload-overlap]  # to a type checker a str is an Iterable[str]
        self, molecule: MoleculeInput, question: str, **options: Unpack[AnswerOptions]
    ) -> str: ...
    @overload
    def ask(
        self,
        molecule: MoleculeInput | Iterable[MoleculeInput],
        question: str | Iterable[str],
        **options: Unpack[AnswerOptions],
    ) -> list[str]: ...
    def ask(
        self,
        molecule,
        question,
        *,
        batch_size: int = 32,
        max_new_tokens: int = 128,
        progress: Callable[[int], None] | None = None,
    ) -> str | list[str]:
        """Answer a question about a molecule: greedily, so the same question has one answer.

        Parameters
        ----------
        molecule, question
            One of each gives one answer. A list of one with one of the other, or two lists of one
            length, give a list of answers.
        batch_size
            Questions answered together.
        max_new_tokens
            Longest answer, in tokens.
        progress
            Called with the number of answers after every batch.

        Raises
        ------
        MoleculeError
            For what is no molecule.
        UsageError
            For a question that is empty, contains `<mol>` or is longer than the language model can
            read, and for lists of different lengths.
        """
        questions = _checked_questions(question)
        molecules = self.features(molecule)
        one_molecule = isinstance(molecule, str) or not isinstance(molecule, Iterable)
        one_question = isinstance(question, str)
        if one_molecule:
            molecules *= len(questions)
        elif one_question:
            questions *= len(molecules)
        if len(molecules) != len(questions):
            raise UsageError(
                f"{len(molecules)} molecules and {len(questions)} questions; give as many of both, "
                "or one of either"
            )
        texts = answer(
            self.model,
            self.processor,
            list(zip(molecules, questions, strict=True)),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
        return texts[0] if one_molecule and one_question else texts

    @overload
    def caption(  # type: ignore[overload-overlap]  # as above
        self, molecule: MoleculeInput, **options: Unpack[AnswerOptions]
    ) -> str: ...
    @overload
    def caption(
        self, molecule: Iterable[MoleculeInput], **options: Unpack[AnswerOptions]
    ) -> list[str]: ...
    def caption(self, molecule, **options: Unpack[AnswerOptions]) -> str | list[str]:
        """Describe a molecule, or each of a list; options and errors as for `ask`."""
        return self.ask(molecule, CAPTION_QUESTION, **options)

    @torch.no_grad()
    def soft_tokens(
        self, molecules: MoleculeInput | Iterable[MoleculeInput], *, batch_size: int = 32
    ) -> Tensor:
        """Return what the language model is given in place of ``<mol>``.

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
            For an empty list.
        """
        features = self.features(molecules)
        if not features:
            raise UsageError("there are no molecules; give at least one")
        vocabulary, parts = self.processor.feature_extractor.vocabulary, []
        with evaluation_mode(self.model):
            for start in range(0, len(features), batch_size):
                rows = [[each] for each in features[start : start + batch_size]]
                batch = batch_molecules(rows, vocabulary).to(self.model.device)
                parts.append(self.model.get_molecule_features(batch)[:, 0])
        return torch.cat(parts).to(self.model.dtype)

    @torch.no_grad()
    def prompt_embeds(self, molecule: MoleculeInput, question: str) -> Tensor:
        """Return the embeddings of a whole prompt, soft tokens where the molecule stands.

        An engine that serves the language model alone, such as vLLM with ``prompt_embeds``, goes on
        from here as the model itself would.

        Returns
        -------
        Tensor
            ``[T,D]``: T tokens, D channels of the language model, in its dtype, without gradient.

        Raises
        ------
        MoleculeError
            For what is no molecule.
        ValueError
            For a question that `ask` would refuse.
        """
        (text,) = _checked_questions(question)
        (features,) = self.features([molecule])
        ids = self.processor(self.processor.prompt(text), [features])["input_ids"][0]
        ids = ids.to(self.model.device)
        embeds = self.model.get_input_embeddings()(ids)
        soft = self.soft_tokens(features).to(embeds)
        return embeds.masked_scatter((ids == self.processor.mol_token_id)[:, None], soft)

    def features(
        self, molecules: MoleculeInput | Iterable[MoleculeInput]
    ) -> list[MoleculeFeatures]:
        """Return what the encoders read of the molecules, which `ask` takes too, at less cost.

        Conformers are embedded with the seed and time limit of the processor.
        """
        if isinstance(molecules, str) or not isinstance(molecules, Iterable):
            read = [read_molecule(molecules)]
        else:
            read = read_molecules(list(molecules))
        extractor = self.processor.feature_extractor
        seconds = extractor.conformer_seconds
        return list(molecule_features(read, seed=extractor.conformer_seed, seconds=seconds))


def _checked_questions(question: str | Iterable[str]) -> list[str]:
    questions = [question] if isinstance(question, str) else list(question)
    if not all(text.strip() for text in questions):
        raise UsageError("the question is empty")
    return questions
