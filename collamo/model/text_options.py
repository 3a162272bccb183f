"""The arguments of tokenizers that a processor takes: how rows of tokens are padded and cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from collamo.errors import UsageError, suggest

PADDING = (True, False, "longest", "max_length", "do_not_pad")
TRUNCATION = (True, False, None, "longest_first", "only_first", "do_not_truncate")
ENDLESS = 10**9  # a tokenizer that states no length says 10³⁰


@dataclass(frozen=True)
class TextOptions:
    """Padding, truncation and special tokens, as transformers' tokenizers take them.

    Raises
    ------
    UsageError
        A value that there is not, or a `max_length` that would do nothing.
    """

    padding: bool | str = True
    padding_side: str | None = None
    truncation: bool | str | None = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("padding", PADDING), ("truncation", TRUNCATION)):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise UsageError(f"{name} is {getattr(self, name)!r}; use one of {choices}")
        for name in ("max_length", "pad_to_multiple_of"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}; it must be at least 1")
        if self.max_length is not None and not (self.cuts or self.padding == "max_length"):
            raise UsageError(
                "max_length does nothing here; pass truncation=True or padding='max_length' as well"
            )

    @classmethod
    def merged(cls, text_kwargs: Mapping[str, Any] | None, **arguments: Any) -> TextOptions:
        """Return the arguments, those of `text_kwargs` before the others.

        Raises
        ------
        UsageError
            `text_kwargs` has something else.
        """
        for name in text_kwargs or {}:
            if name not in arguments:
                raise UsageError(
                    f"text_kwargs has {name!r}{suggest(name, arguments)}; the processor takes "
                    f"{', '.join(arguments)}"
                )
        return cls(**(arguments | dict(text_kwargs or {})))

    @property
    def cuts(self) -> bool:
        """Whether rows are cut."""
        return self.truncation not in (False, None, "do_not_truncate")

    @property
    def pads(self) -> bool:
        """Whether rows get one length."""
        return self.padding not in (False, "do_not_pad")

    def limit(self, model_max_length: int) -> int:
        """Return the length of "max_length" and of a cut.

        Raises
        ------
        UsageError
            Neither the caller nor the tokenizer has one.
        """
        limit = model_max_length if self.max_length is None else self.max_length
        if limit > ENDLESS:
            raise UsageError("the tokenizer states no length; pass max_length")
        return limit

    def length(self, lengths: Iterable[int], model_max_length: int) -> int:
        """Return the length that rows are padded to, 0 without padding.

        Raises
        ------
        UsageError
            A row is longer than the `max_length` it should be padded to.
        """
        if not self.pads:
            return 0
        length = max(lengths, default=0)
        if self.padding == "max_length":
            limit = self.limit(model_max_length)
            if length > limit:
                raise UsageError(
                    f"a row has {length} tokens, more than max_length {limit}; pass "
                    "truncation=True or a larger one"
                )
            length = limit
        multiple = self.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple
