"""The front door: a trained model that is asked about molecules, or makes prompts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import torch

from collamo.chem.inputs import MoleculeInput
from collamo.data.batch import MODALITIES
from collamo.errors import UsageError
from collamo.inference.answers import answer, evaluation_mode, generated
from collamo.inference.checkpoint import find_checkpoint
from collamo.inference.prompt_encoder import PromptEncoder
from collamo.model import CollamoForConditionalGeneration, CollamoProcessor, load_checkpoint
from collamo.model.checkpoints import load_molecule_parts

if TYPE_CHECKING:  # at run time only an adapter needs it
    from peft import PeftModel

#: One of the wordings that training has for captions.
CAPTION_QUESTION = "Describe this molecule."


class AnswerOptions(TypedDict, total=False):
    """Options of `Assistant.ask`."""

    batch_size: int
    max_new_tokens: int
    modalities: Sequence[str]
    progress: Callable[[int], None] | None


@overload
def load(
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    language_model: Literal[True] = True,
) -> Assistant: ...
@overload
def load(
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: None = None,
    language_model: Literal[False],
) -> PromptEncoder: ...
def load(
    folder=None, *, dtype=None, device=None, attn_implementation=None, language_model=True
) -> PromptEncoder:
    """Open a trained model, ready to be asked about molecules.

    Parameters
    ----------
    folder
        A checkpoint, as `collamo train` writes it. None takes the one that the environment variable
        ``COLLAMO_CHECKPOINT`` names, else the newest that ``make demo`` left in demo/.
    dtype, device, attn_implementation
        As for `collamo.load_checkpoint`.
    language_model
        False opens what stands beside the language model, and its table of tokens: a
        `PromptEncoder`, which makes prompts for an engine that has the language model.

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
    found = find_checkpoint(folder)
    if language_model:
        return Assistant(*load_checkpoint(found, dtype, device, attn_implementation))
    if attn_implementation is not None:
        raise UsageError("attn_implementation is the language model's, which is not loaded")
    return PromptEncoder(*load_molecule_parts(found, dtype, device))


class Assistant(PromptEncoder):
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
        super().__init__(model, processor)
        self.model: CollamoForConditionalGeneration | PeftModel = model

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
        modalities: Sequence[str] = MODALITIES,
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
        modalities
            Which of "1d", "2d", "3d" the model may see.
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
            modalities=modalities,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
        return texts[0] if one_molecule and one_question else texts

    def reply(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        molecules: MoleculeInput | Iterable[MoleculeInput] = (),
        *,
        max_new_tokens: int = 128,
        modalities: Sequence[str] = MODALITIES,
    ) -> str:
        """Answer the last message of a conversation, greedily.

        Arguments and errors are those of `prompt_embeds`; a single question about a molecule is
        answered as `ask` does.

        Examples
        --------
        >>> assistant.reply("Which of them is an acid?", ["CCO", "CC(=O)O"])  # doctest: +SKIP
        'The second.'
        """
        features, inputs = self.prepared(messages, molecules, modalities)
        names = [", ".join(each.smiles for each in features)]
        with evaluation_mode(self.model):
            (text,) = generated(self.model, self.processor, inputs, names, max_new_tokens)
        return text

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


def _checked_questions(question: str | Iterable[str]) -> list[str]:
    questions = [question] if isinstance(question, str) else list(question)
    if not all(text.strip() for text in questions):
        raise UsageError("the question is empty")
    return questions
