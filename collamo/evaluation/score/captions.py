"""Texts against references, as the field scores captions: BLEU-1…4, ROUGE-1/2/L, METEOR.

nltk and rouge-score do the counting; here the counts of single texts are kept, so that a file of
any length is scored in a stream and a bootstrap needs no second look at the texts.
"""

from __future__ import annotations

from pathlib import Path

from collamo.evaluation.score.bleu import ORDERS, bleu, ngram_statistics
from collamo.evaluation.score.meteor import load_meteor
from collamo.evaluation.score.tokenisation import Tokenisation
from collamo.evaluation.statistics import Sums

ROUGE = ("rouge1", "rouge2", "rougeL")
NO_WORDNET = "METEOR needs WordNet, and nothing is downloaded: give --wordnet PATH"


class TextScorer:
    """Statistics of a prediction against its one reference.

    Parameters
    ----------
    tokenisation
        Cuts texts for BLEU and METEOR. ROUGE has its own rule (lower-cased runs of letters and
        digits, no stemmer), which all published scores share.
    wordnet
        WordNet 3.0 in nltk's layout for METEOR: the folder with ``data.noun``, a folder above it
        (``.``, ``corpora``) or its zip file. None: no METEOR, and `absent` names it.

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
        # Without rougeL: its tables of longest common subsequences are Python lists, and took half
        # of the whole run. `_rouge_l` computes the same by rapidfuzz.
        self._rouge = RougeScorer(ROUGE[:2], tokenizer=DefaultTokenizer(use_stemmer=False))
        self._meteor = None
        if wordnet:
            self._meteor, self.about["wordnet_sha256"] = load_meteor(Path(wordnet))

    def row(self, prediction: str, reference: str) -> dict[str, float]:
        """Return the statistics of one row; an empty prediction scores 0 everywhere."""
        tokens, reference_tokens = map(self.tokenisation.tokens, (prediction, reference))
        values = ngram_statistics(tokens, reference_tokens)
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
