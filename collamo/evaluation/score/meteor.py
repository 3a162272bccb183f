"""METEOR by nltk, from a WordNet on this disk."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from collamo.errors import UsageError

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

#: METEOR of a reference's and a prediction's tokens.
Meteor: TypeAlias = Callable[[Sequence[str], Sequence[str]], float]


def load_meteor(path: Path) -> tuple[Meteor, str]:
    """Return (meteor of token lists, hash of the WordNet read)."""
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    wordnet, digest = _load_wordnet(path)
    # The same words come up thousands of times in a file of captions.
    stemmer = PorterStemmer()
    stemmer.stem = functools.lru_cache(maxsize=65536)(stemmer.stem)
    wordnet.synsets = functools.lru_cache(maxsize=65536)(wordnet.synsets)

    def meteor(reference: Sequence[str], prediction: Sequence[str]) -> float:
        return float(single_meteor_score(reference, prediction, stemmer=stemmer, wordnet=wordnet))

    return meteor, digest


def _load_wordnet(path: Path) -> tuple[WordNetCorpusReader, str]:
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import FileSystemPathPointer

    if zipfile.is_zipfile(path):
        # nltk seeks within the files, so they are unpacked to a folder that this process removes.
        unpacked = tempfile.TemporaryDirectory(prefix="collamo-wordnet-")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(unpacked.name)
        folder = Path(unpacked.name)
    else:
        unpacked, folder = None, path
    places = [folder, *(folder / name for name in ("wordnet", "corpora/wordnet"))]
    dictionary = next((place for place in places if (place / "data.noun").is_file()), None)
    if dictionary is None:
        raise UsageError(
            f"--wordnet {path}: no data.noun in it, in its wordnet/ or its corpora/wordnet/; give "
            "the folder of WordNet 3.0 in nltk's layout, or its zip file"
        )
    digest = hashlib.sha256((dictionary / "data.noun").read_bytes()).hexdigest()
    # nltk ≥ 3.10 opens only folders that its search path names; the user named this one.
    dictionary = dictionary.resolve()
    if str(dictionary) not in nltk.data.path:
        nltk.data.path.append(str(dictionary))

    class Reader(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """Do nothing: only other languages need the map to version 3.0, which is not here."""

    with warnings.catch_warnings():  # it warns of other languages that are missing
        warnings.simplefilter("ignore")
        reader = Reader(FileSystemPathPointer(str(dictionary)), None)
    reader.unpacked = unpacked  # so that the temporary folder lives as long as the reader
    return reader, digest
