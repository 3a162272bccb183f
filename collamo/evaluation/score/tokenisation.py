"""The tokens of a text for BLEU and METEOR: a rule by name, pinned by a hash, read from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collamo.errors import MissingDependencyError, UsageError, suggest

KINDS = ("scibert", "llm", "13a", "whitespace")
SCIBERT_HUB = "allenai/scibert_scivocab_uncased"
# MolT5 cuts at BERT's 512 positions, two of which are for [CLS] and [SEP].
SCIBERT_TOKENS = 510


@dataclass(frozen=True)
class Tokenisation:
    """`tokens` of a text by the rule `name`; `sha256` of the vocabulary (None without one).

    Scores of two tokenisations cannot be compared: white space instead of SciBERT moves the BLEU-4
    of captions by six points.
    """

    name: str
    tokens: Callable[[str], list[str]]
    sha256: str | None = None


def load_tokenisation(spec: str) -> Tokenisation:
    """Return the tokenisation that `spec` names. Nothing is ever downloaded.

    - ``whitespace``: split at white space, case kept;
    - ``13a``: mteval-v13a's, sacrebleu's default: punctuation apart, case kept;
    - ``scibert:VOCABULARY``: WordPiece, lower-cased, the first 510 tokens, from a vocabulary file
      with one token a line; or ``scibert:HUB_NAME`` from the local cache of the hub (``scibert``
      alone: allenai/scibert_scivocab_uncased). What MolT5 and ChEBI-20 captions are scored with;
    - ``llm:FOLDER`` or ``llm:HUB_NAME``: the tokenizer of a language model, as MolCA, 3D-MoLM and
      LLaMo use it.

    Raises
    ------
    UsageError
        For another word, or ``llm`` without a place.
    MissingDependencyError
        When the vocabulary is neither a file nor in the local cache.

    Examples
    --------
    >>> load_tokenisation("whitespace").tokens("The molecule is a ketone.")
    ['The', 'molecule', 'is', 'a', 'ketone.']
    """
    kind, _, place = spec.partition(":")
    if kind == "whitespace" and not place:
        return Tokenisation("whitespace", str.split)
    if kind == "13a" and not place:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

        cut = Tokenizer13a()
        return Tokenisation("13a", lambda text: cut(text).split())
    if kind == "scibert":
        place = place or SCIBERT_HUB
        return _wordpiece(Path(place)) if Path(place).is_file() else _cached(kind, place)
    if kind == "llm" and place:
        return _cached(kind, place)
    raise UsageError(
        f"tokenizer {spec!r} is none of whitespace, 13a, scibert:VOCABULARY, llm:FOLDER_OR_HUB_NAME"
        f"{suggest(kind, KINDS)}"
    )


def _wordpiece(path: Path) -> Tokenisation:
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def tokens(text: str) -> list[str]:
        return tokenizer.encode(text, add_special_tokens=False).tokens[:SCIBERT_TOKENS]

    return Tokenisation("scibert", tokens, digest)


def _cached(kind: str, place: str) -> Tokenisation:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingDependencyError(
            f"tokenizer {kind}:{place} is neither a file, a folder nor in the local cache of the "
            f"hub (nothing is downloaded); give --tokenizer {kind}:PATH ({type(error).__name__})"
        ) from None
    vocabulary = "\n".join(f"{word}\t{i}" for word, i in sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass")).hexdigest()
    limit = SCIBERT_TOKENS if kind == "scibert" else None
    name = kind if kind == "scibert" else f"{kind}:{place}"
    return Tokenisation(name, lambda text: tokenizer.tokenize(text)[:limit], digest)
