"""The text of an answer that grows token by token, with nothing sent that would be taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What stands in a decoded text for bytes of a character that is not complete yet.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Decodes an answer as `collamo ask` does, a piece at a time.

    White space at both ends is left out, and nothing behind a stop text is sent. The pieces joined
    are the stripped text of all tokens, whatever the tokenizer does between two of them.

    Parameters
    ----------
    decode
        Token ids → text.
    stop
        Texts before which the answer ends.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self.ids: list[int] = []
        self.stopped = False
        self._decode = decode
        self._stop = stop
        self._sent = ""

    def add(self, token: int) -> str:
        """Take a token; return what can be sent now, often nothing."""
        self.ids.append(token)
        text = self._decode(self.ids).lstrip()
        ends = [text.find(stop) for stop in self._stop if stop in text]
        if ends:
            self.stopped = True
            return self._rest(text[: min(ends)].rstrip())
        text = text.rstrip(_INCOMPLETE)
        return self._rest(text[: len(text) - self._held_back(text)].rstrip())

    def end(self) -> str:
        """Return what was held back."""
        return "" if self.stopped else self._rest(self._decode(self.ids).strip())

    def _held_back(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _rest(self, text: str) -> str:
        """Return what `text` has behind what was sent; nothing where a tokenizer rewrites that."""
        if not text.startswith(self._sent):
            return ""
        rest, self._sent = text[len(self._sent) :], text
        return rest
