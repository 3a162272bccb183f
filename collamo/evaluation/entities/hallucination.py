"""CHARM and RCHARM: which entities a caption makes up, and which it leaves out.

CHARM (caption hallucination assessment with relevance to molecule) is from the CoLLaMo paper (Park
et al., arXiv 2601.12256), whose formula is not public; this is our reading of descriptions of it.
With Ê the entities of the generated caption, G those of the reference caption and M those that the
molecule has, all as sets::

    CHARM  = |Ê \\ G| / |Ê|      made up: of what is said, the share that the reference does not say
    RCHARM = |G \\ Ê| / |G|      left out: of what the reference says, the share that is not said

Both are better the lower, and 0 for a caption that names the same entities. Every caption has its
own; ``charm`` and ``rcharm`` are means over captions, ``charm_pooled`` and ``rcharm_pooled`` divide
the sums over all captions instead.

A reference does not say all that is true. ``charm_molecule`` (ours) forgives what RDKit finds in
the molecule: ``|Ê \\ (G ∪ M)| / |Ê|``. It needs an extractor that knows molecules (``offline``) and
a column with them; a molecule that cannot be read forgives nothing.

The edges:

- nothing generated (Ê empty): RCHARM is 1; CHARM has no value, since nothing is made up;
- nothing to find (G empty): nothing can be compared, neither has a value;
- no entities known of one of the two (a service failed): neither has a value.

Each such caption is in a count of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from collamo.evaluation.entities.extractor import Caption, EntityExtractor
from collamo.evaluation.statistics import Sums

# What a caption can be; "not_scored" are rows of a file that no task can score.
STATUSES = ("scored", "nothing_generated", "nothing_to_find", "no_entities_known", "not_scored")
HALLUCINATION_COLUMNS = (
    "entities_generated",
    "entities_reference",
    "entities_made_up",
    "entities_left_out",
    "entities_not_in_molecule",
    "charm",
    "rcharm",
    "charm_molecule",
)


def hallucination_row(
    generated: frozenset[str] | None,
    reference: frozenset[str] | None,
    in_molecule: frozenset[str] | None = None,
) -> tuple[str, dict[str, float]]:
    """Return (status, statistics) of one caption; `in_molecule` None: not known.

    >>> status, values = hallucination_row(frozenset("abc"), frozenset("bcd"))
    >>> status, values["charm"] == values["rcharm"] == 1 / 3
    ('scored', True)
    """
    if generated is None or reference is None:
        return "no_entities_known", {}
    if not reference:
        return "nothing_to_find", {}
    made_up, left_out = generated - reference, reference - generated
    values: dict[str, float] = {
        "entities_generated": len(generated),
        "entities_reference": len(reference),
        "entities_made_up": len(made_up),
        "entities_left_out": len(left_out),
        "rcharm": len(left_out) / len(reference),
    }
    if in_molecule is not None:
        values["entities_not_in_molecule"] = len(made_up - in_molecule)
    if not generated:
        return "nothing_generated", values
    values["charm"] = len(made_up) / len(generated)
    if in_molecule is not None:
        values["charm_molecule"] = values["entities_not_in_molecule"] / len(generated)
    return "scored", values


def hallucination_rows(
    captions: Sequence[tuple[int, str, str, str | None]], extractor: EntityExtractor
) -> list[tuple[str, dict[str, float]]]:
    """Return (status, statistics) of each (row, prediction, reference, molecule or None)."""
    texts = [
        caption
        for row, prediction, reference, _ in captions
        for caption in (
            Caption(row, "prediction", prediction),
            Caption(row, "reference", reference),
        )
    ]
    entities = iter(extractor.extract(texts))
    rows = []
    for (*_, molecule), generated, reference in zip(captions, entities, entities, strict=False):
        in_molecule = None
        if molecule is not None and generated is not None and reference is not None:
            # Entities that the reference names need no check against the molecule.
            in_molecule = extractor.grounded(generated - reference, molecule)
        rows.append(hallucination_row(generated, reference, in_molecule))
    return rows


def hallucination_scores(sums: Sums) -> dict[str, float]:
    """Return the means over captions and the pooled shares; what has no value is left out."""
    scores = {name: sums.mean(name) for name in ("charm", "rcharm", "charm_molecule")}
    pooled = {
        "charm_pooled": ("entities_made_up", "entities_generated"),
        "rcharm_pooled": ("entities_left_out", "entities_reference"),
        "charm_molecule_pooled": ("entities_not_in_molecule", "entities_generated"),
    }
    for name, (part, whole) in pooled.items():
        if part in sums.totals and sums.totals.get(whole):
            scores[name] = sums.totals[part] / sums.totals[whole]
    return {name: value for name, value in scores.items() if value is not None}


def score_hallucination(
    predictions: Sequence[str],
    references: Sequence[str],
    extractor: EntityExtractor,
    molecules: Sequence[str] | None = None,
) -> tuple[dict[str, float], dict[str, int]]:
    """Return (scores, counts) of captions in memory; the counts add up to ``counts["rows"]``.

    Examples
    --------
    >>> from collamo.evaluation.entities.loading import load_extractor
    >>> with load_extractor("offline") as extractor:
    ...     scores, counts = score_hallucination(["a ketone", ""], ["an ester"] * 2, extractor)
    >>> scores["charm"], scores["rcharm"], counts["nothing_generated"]
    (1.0, 1.0, 1)
    """
    smiles: Sequence[str | None] = molecules or [None] * len(predictions)
    numbers = range(1, len(predictions) + 1)
    captions = list(zip(numbers, predictions, references, smiles, strict=True))
    sums, counts = Sums(), Counter(dict.fromkeys(STATUSES, 0))
    for status, values in hallucination_rows(captions, extractor):
        counts[status] += 1
        sums.add(values)
    return hallucination_scores(sums), {"rows": len(predictions), **counts}
