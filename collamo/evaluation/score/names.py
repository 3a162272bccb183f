"""IUPAC names: the same text, and the same structure once OPSIN has read both names back."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from collamo.errors import CollamoError
from collamo.evaluation.score.text import normalise
from collamo.evaluation.statistics import Sums

NAME_COLUMNS = ("exact", "opsin_parsed", "opsin_match")


def opsin_absent() -> str | None:
    """Return why OPSIN cannot be asked here, None where it can."""
    if importlib.util.find_spec("py2opsin") is None:
        return "reading names back needs OPSIN: pip install 'collamo[iupac]'"
    if shutil.which("java") is None:
        return (
            "OPSIN needs Java 8 or newer on the PATH; on Debian or Ubuntu: apt install default-jre"
        )
    return None


def read_names(names: Sequence[str]) -> list[str]:
    """Return the standard InChI of each IUPAC name, "" for one that OPSIN cannot read.

    One Java process for all of them (about a second to start). White space, line breaks included,
    is made one blank. Source: Lowe et al., J. Chem. Inf. Model. 2011, 51, 739.
    """
    if not names:
        return []
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # py2opsin warns of every name it cannot read; we report how many there are.
        warnings.simplefilter("ignore")
        from py2opsin import py2opsin

        asked = [normalise(name) for name in names]
        path = str(Path(folder) / "names.txt")
        inchis = py2opsin(asked, output_format="StdInChI", tmp_fpath=path)
    if not isinstance(inchis, list) or len(inchis) != len(names):
        got = len(inchis) if isinstance(inchis, list) else "no"
        raise CollamoError(f"OPSIN gave {got} answers to {len(names)} names; try it: java -version")
    return inchis


def name_rows(
    pairs: Sequence[tuple[str, str]],
) -> tuple[list[tuple[str, dict[str, float]]], dict[str, str]]:
    """Return the (status, statistics) of each (prediction, reference), and what is absent and why.

    ``exact``: the same text up to white space. ``opsin_parsed``: OPSIN reads the prediction.
    ``opsin_match``: and finds the structure of the reference; only where it reads the reference.
    """
    rows = [
        ("scored", {"exact": float(normalise(prediction) == normalise(reference))})
        for prediction, reference in pairs
    ]
    reason = opsin_absent()
    if reason is not None:
        return rows, dict.fromkeys(NAME_COLUMNS[1:], reason)
    inchis = iter(read_names([name for pair in pairs for name in pair]))
    read = []
    for (_, values), guess, true in zip(rows, inchis, inchis, strict=False):
        values["opsin_parsed"] = float(bool(guess))
        if true:
            values["opsin_match"] = float(guess == true)
        unread = [name for name, inchi in (("prediction", guess), ("reference", true)) if not inchi]
        status = f"unparsed_{unread[0]}" if unread else "scored"
        read.append((status, values))
    return read, {}


def name_scores(sums: Sums) -> dict[str, float]:
    """Return the shares of `NAME_COLUMNS`; ``opsin_match`` is of all readable references."""
    return sums.means(NAME_COLUMNS)
