"""METEOR by nltk, from a WordNet on this disk."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from collamo.errors import UsageError

#: METEOR of a reference's and a prediction's tokens.
Meteor: TypeAlias = Callable[[Sequence[str], Sequence[str]], float]


def load_meteor(path: Path) -> tuple[Meteor, str]:
    """Return (meteor of token lists, hash of the WordNet read)."""
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    wordnet, digest = _load_wordnet(path)
    # A caption's words come back thousands of times.
    stemmer = PorterStemmer()
    stemmer.stem = functools.lru_cache(maxsize=65536)(stemmer.stem)
    wordnet.synsets = functools.lru_cache(maxsize=65536)(wordnet.synsets)

    def meteor(reference: Sequence[str], prediction: Sequence[str]) -> float:
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
