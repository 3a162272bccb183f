"""BLEU from the counts of single texts, so that it adds up over a stream of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence

from collamo.evaluation.statistics import Sums

ORDERS = (1, 2, 3, 4)
BLEU_COLUMNS = (
    *(f"bleu_match{n}" for n in ORDERS),
    *(f"bleu_total{n}" for n in ORDERS),
    "bleu_length",
    "bleu_reference",
)


def ngram_statistics(prediction: Sequence[str], reference: Sequence[str]) -> dict[str, float]:
    """Return what corpus BLEU sums: matched and possible n-grams (n = 1…4) and both lengths.

    As nltk counts: a match counts at most as often as in the reference, and a prediction shorter
    than n words still has one possible n-gram.

    >>> counts = ngram_statistics(["a", "b", "b"], ["a", "b", "c"])
    >>> counts["bleu_match1"], counts["bleu_total1"], counts["bleu_match2"], counts["bleu_total2"]
    (2, 3, 1, 2)
    """
    from nltk.translate.bleu_score import modified_precision

    counts: dict[str, float] = {}
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
