"""What every engine takes and gives: a prompt, how to go on from it, pieces of the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from collamo.chem.features import MoleculeFeatures


@dataclass(frozen=True)
class Prompt:
    """A prompt that the processor has made.

    Attributes
    ----------
    ids
        Its tokens, every `<mol>` as many times as a molecule has soft tokens.
    features
        The molecules whose soft tokens stand there, in order; none where they are text.
    modalities
        Which of "1d", "2d", "3d" the model may see.
    """

    ids: tuple[int, ...]
    features: tuple[MoleculeFeatures, ...]
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Sampling:
    """How an answer goes on.

    Attributes
    ----------
    max_tokens
        Its longest length; the positions of the language model bound it as well.
    temperature
        0 takes the likeliest token, as `collamo ask` does.
    top_p
        Of the likeliest tokens those are drawn from that have this probability together.
    seed
        Of the draws; None draws anew each time.
    stop
        Texts before which the answer ends.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A further piece of an answer.

    Attributes
    ----------
    text
        What comes behind the text before.
    tokens
        Tokens of the answer so far.
    finish
        None while it goes on; "stop" at its end, "length" where it was cut.
    """

    text: str
    tokens: int
    finish: str | None = None


class Engine(Protocol):
    """What answers prompts, several at a time."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        """Yield the pieces of an answer; closing the iterator ends the work on it."""
        ...

    def close(self) -> None:
        """End what runs and let go of the model."""
        ...
