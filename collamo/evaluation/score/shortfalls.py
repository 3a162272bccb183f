"""Right answers that score less than 1, because the published definitions have it so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from collamo.evaluation.report.page import Section
from collamo.evaluation.score.bleu import ORDERS
from collamo.evaluation.score.molecules import FINGERPRINTS
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.score.text import normalise

#: Score → why a right answer may get less than 1.
REASONS = {
    **dict.fromkeys(
        (f"bleu{order}" for order in ORDERS),
        "a text of fewer tokens than the n-grams have is counted as a miss",
    ),
    "bleu_char": "a SMILES of fewer than four characters is counted as a miss",
    **dict.fromkeys(
        ("rouge1", "rouge2", "rougeL"),
        "ROUGE sees words of a to z and 0 to 9 only; without any, or without two of them in a row, "
        "it is 0",
    ),
    "meteor": "its penalty for breaks is never 0: 1 − 0.5 / tokens³",
    "validity_strict": "the SMILES has a name behind it",
    "exact_inchi": "InChI cannot write it: dummy atoms, or more than 1,023 atoms",
    **dict.fromkeys(
        FINGERPRINTS,
        "no bit is set in its fingerprint (no bonds: salts of single atoms, noble gases), and "
        "two empty fingerprints have similarity 0",
    ),
    "opsin_parsed": "OPSIN cannot read the name",
}
#: As in report.json: score → how many right answers get less than 1 (``rows``), and the `reason`.
Shortfalls: TypeAlias = dict[str, dict[str, int | str]]


def shortfalls(row: PredictionRow) -> list[str]:
    """Return the scores of a right answer that are less than 1, none for any other row.

    Right is the text of the reference, white space aside, or the same canonical SMILES.
    """
    values = row.values
    same = normalise(row.prediction) == normalise(row.reference)
    if not values or not (same or values.get("exact_canonical")):
        return []
    names = [name for name in REASONS if values.get(name, 1) < 1]
    if same and "bleu_total1" in values:
        misses = [n for n in ORDERS if values[f"bleu_match{n}"] < values[f"bleu_total{n}"]]
        if misses:
            molecule = "levenshtein" in values
            names += ["bleu_char"] if molecule else [f"bleu{n}" for n in ORDERS[misses[0] - 1 :]]
    return names


def count_shortfalls(rows: Iterable[PredictionRow]) -> Counter[str]:
    """Return how many right answers get less than 1 in each score."""
    return Counter(name for row in rows for name in shortfalls(row))


def explained(counts: Mapping[str, int]) -> Shortfalls:
    """Return the counts with their reasons, in the order of `REASONS`."""
    return {
        name: {"rows": counts[name], "reason": reason}
        for name, reason in REASONS.items()
        if counts.get(name)
    }


def shortfalls_section(counted: Mapping[str, Shortfalls]) -> list[Section]:
    """Return the section of a report about right answers below 1 (by task), if there are any."""
    rows = [
        [task, name, str(entry["rows"]), str(entry["reason"])]
        for task, entries in counted.items()
        for name, entry in entries.items()
    ]
    header = ["task", "score", "right answers below 1", "by its published definition"]
    title = "Right answers that score less than 1"
    return [Section(title, header=header, rows=rows)] if rows else []
