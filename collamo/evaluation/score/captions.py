"""Texts against references, as the field scores captions: BLEU-1…4, ROUGE-1/2/L, METEOR.

nltk and rouge-score do the counting; here the counts of single texts are kept, so that a file of
any length is scored in a stream and a bootstrap needs no second look at the texts.
"""

from __future__ import annotations

import functools
import hashlib
import math
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

from collamo.errors import UsageError
from collamo.evaluation.score.tokenisation import Tokenisation
from collamo.evaluation.statistics import Sums

ROUGE = ("rouge1", "rouge2", "rougeL")
ORDERS = (1, 2, 3, 4)
BLEU_COLUMNS = (
    *(f"bleu_match{n}" for n in ORDERS),
    *(f"bleu_total{n}" for n in ORDERS),
    "bleu_length",
    "bleu_reference",
)
NO_WORDNET = "METEOR needs WordNet, and nothing is downloaded: give --wordnet PATH"


def ngram_statistics(prediction: Sequence[str], reference: Sequence[str]) -> dict[str, int]:
    """Return what corpus BLEU sums: matched and possible n-grams (n = 1…4) and both lengths.

    As nltk counts: a match counts at most as often as in the reference, and a prediction shorter
    than n words still has one possible n-gram.

    >>> counts = ngram_statistics(["a", "b", "b"], ["a", "b", "c"])
    >>> counts["bleu_match1"], counts["bleu_total1"], counts["bleu_match2"], counts["bleu_total2"]
    (2, 3, 1, 2)
    """
    from nltk.translate.bleu_score import modified_precision

    counts = {}
    for order in ORDERS:
        precision = modified_precision([reference], prediction, order)
        counts[f"bleu_match{order}"] = precision.numerator
        counts[f"bleu_total{order}"] = precision.denominator
    counts["bleu_length"], counts["bleu_reference"] = len(prediction), len(reference)
    return counts


def bleu(sums: Sums, order: int) -> float | None:
    """Return corpus BLEU of the given order (a fraction), None where no row has been added.

    ``exp(min(0, 1 − r/c)) · Π_{n ≤ order} (Σ matches_n / Σ possible_n)^(1/order)`` with r and c the
    summed lengths of references and predictions; no smoothing, so no match at all gives 0 (Papineni
    et al. 2002; ``nltk.translate.bleu_score.corpus_bleu``).
    """
    totals = sums.totals
    if not totals.get("bleu_reference"):
        return None
    if not all(totals[f"bleu_match{n}"] for n in ORDERS[:order]):
        return 0.0
    logs = [math.log(totals[f"bleu_match{n}"] / totals[f"bleu_total{n}"]) for n in ORDERS[:order]]
    shortness = min(0.0, 1 - totals["bleu_reference"] / totals["bleu_length"])
    return math.exp(shortness + sum(logs) / order)


class TextScorer:
    """Statistics of a prediction against its one reference.

    Parameters
    ----------
    tokenisation
        Cuts texts for BLEU and METEOR. ROUGE has its own rule (lower-cased runs of letters and
        digits, no stemmer), which all published scores share.
    wordnet
        WordNet 3.0 in nltk's layout for METEOR: the folder with ``data.noun``, a folder above it
        (``.``, ``corpora``) or its zip file. None: no METEOR, and `absent` says so.

    Examples
    --------
    >>> from collamo.evaluation.score.tokenisation import load_tokenisation
    >>> TextScorer(load_tokenisation("whitespace")).row("a ketone", "a ketone")["rouge1"]
    1.0
    """

    def __init__(self, tokenisation: Tokenisation, wordnet: Path | None = None):
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        self.tokenisation = tokenisation
        self.absent: dict[str, str] = {} if wordnet else {"meteor": NO_WORDNET}
        self.about = {"tokenizer": tokenisation.name, "tokenizer_sha256": tokenisation.sha256}
        self._rouge_tokens = DefaultTokenizer(use_stemmer=False).tokenize
        # Its tables of longest common subsequences are Python lists: half of the whole run.
        self._rouge = RougeScorer(ROUGE[:2], tokenizer=DefaultTokenizer(use_stemmer=False))
        self._meteor = None
        if wordnet:
            self._meteor, self.about["wordnet_sha256"] = _load_meteor(Path(wordnet))

    def row(self, prediction: str, reference: str) -> dict[str, float]:
        """Return the statistics of one row; an empty prediction scores 0 everywhere."""
        tokens, reference_tokens = map(self.tokenisation.tokens, (prediction, reference))
        values: dict[str, float] = ngram_statistics(tokens, reference_tokens)
        rouge = self._rouge.score(reference, prediction)
        values.update((name, rouge[name].fmeasure) for name in rouge)
        values["rougeL"] = self._rouge_l(prediction, reference)
        if self._meteor:
            values["meteor"] = self._meteor(reference_tokens, tokens)
        return values

    def _rouge_l(self, prediction: str, reference: str) -> float:
        """Return the F1 of the longest common subsequence of words, as rouge-score defines it."""
        from rapidfuzz.distance import LCSseq

        words, reference_words = map(self._rouge_tokens, (prediction, reference))
        total = len(words) + len(reference_words)
        return 2 * LCSseq.similarity(words, reference_words) / total if total else 0.0


def text_scores(sums: Sums) -> dict[str, float]:
    """Return BLEU-1…4, ROUGE-1/2/L (F1) and METEOR, fractions of 1; what was not counted is left
    out."""
    scores = {f"bleu{order}": bleu(sums, order) for order in ORDERS}
    scores.update((name, sums.mean(name)) for name in (*ROUGE, "meteor"))
    return {name: value for name, value in scores.items() if value is not None}


def _load_meteor(path: Path):
    """Return (meteor of token lists, hash of the WordNet read)."""
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    wordnet, digest = _load_wordnet(path)
    # A caption's words come back thousands of times.
    stemmer = PorterStemmer()
    stemmer.stem = functools.lru_cache(maxsize=65536)(stemmer.stem)
    wordnet.synsets = functools.lru_cache(maxsize=65536)(wordnet.synsets)

    def meteor(reference: list[str], prediction: list[str]) -> float:
        return float(single_meteor_score(reference, prediction, stemmer=stemmer, wordnet=wordnet))

    return meteor, digest


def _load_wordnet(path: Path):
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import FileSystemPathPointer

    if zipfile.is_zipfile(path):
        # nltk seeks within the files; they are read from a folder that goes with this process.
        unpacked = tempfile.TemporaryDirectory(prefix="collamo-wordnet-")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(unpacked.name)
        folder = Path(unpacked.name)
    else:
        unpacked, folder = None, path
    places = [folder, *(folder / name for name in ("wordnet", "corpora/wordnet"))]
    found = next((place for place in places if (place / "data.noun").is_file()), None)
    if found is None:
        raise UsageError(
            f"--wordnet {path}: no data.noun in it, in its wordnet/ or its corpora/wordnet/; give "
            "the folder of WordNet 3.0 in nltk's layout, or its zip file"
        )
    digest = hashlib.sha256((found / "data.noun").read_bytes()).hexdigest()
    # nltk ≥ 3.10 opens only folders that its search path names; the user named this one.
    found = found.resolve()
    if str(found) not in nltk.data.path:
        nltk.data.path.append(str(found))

    class Reader(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):
            """Other languages alone need the map to version 3.0, for which nltk would search."""

    with warnings.catch_warnings():  # that other languages are not there: only English is asked for
        warnings.simplefilter("ignore")
        reader = Reader(FileSystemPathPointer(str(found)), None)
    reader.unpacked = unpacked  # keeps the temporary folder as long as the reader
    return reader, digest
