"""One bit flipped, a file cut off or taken away: in everything that is read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from trials import SAID, SAME, SILENT, UNCLEAR, Trial, altered

import collamo.files
from collamo.data.prepared import PreparedData
from collamo.data.shards import SPLITS
from collamo.errors import CollamoError
from collamo.inference.assistant import Assistant
from collamo.model import build_model, load_checkpoint
from collamo.training.manifest import find_last_valid_checkpoint

SIZES = {
    "gin_config": {"num_layers": 2, "hidden_size": 16},
    "unimol_config": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
    "projector_config": {
        "num_layers": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
    },
}
QUESTION = "How many hydroxyl groups does this molecule have?"


def damages(content: bytes, draw: random.Random, flips: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield what happens to a file: `flips` bits, five lengths it is cut to, and its absence."""
    bits = 8 * len(content)
    for place in sorted(draw.sample(range(bits), min(flips, bits))):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield f"bit {place % 8} of byte {place // 8}", bytes(changed)
    for length in sorted({0, len(content) - 1, *(draw.randrange(len(content) + 1) for _ in "123")}):
        if 0 <= length < len(content):
            yield f"cut to {length} of {len(content)} bytes", content[:length]
    yield "taken away", None


def attack(
    group: str,
    folder: Path,
    read: Callable[[], object],
    draw: random.Random,
    flips: int,
) -> Iterator[Trial]:
    """Damage each file of `folder` in turn; `read` returns what a user would get."""
    expected = read()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        for fault, content in damages(path.read_bytes(), draw, flips):
            with altered(path, content):
                collamo.files._digests.clear()
                verdict, message = _verdict(read, expected, path)
            yield Trial(group, path.name, fault, verdict, message)
    collamo.files._digests.clear()
    assert read() == expected


def _verdict(read: Callable[[], object], expected: object, path: Path) -> tuple[str, str]:
    try:
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            result = read()
    except CollamoError as error:
        text = str(error)
        return SAID if str(path.parent) in text and path.name in text else UNCLEAR, text
    except Exception as error:
        return UNCLEAR, f"{type(error).__name__}: {error}"
    return (SAME, "") if result == expected else (SILENT, "")


def answers(folder: Path) -> Callable[[], object]:
    """Return what reads a model: its weights and tokens, and an answer."""

    def read() -> object:
        model, processor = load_checkpoint(folder)
        digest = hashlib.sha256()
        for name, value in model.state_dict().items():
            digest.update(
                name.encode() + value.detach().flatten().view(torch.uint8).numpy().tobytes()
            )
        prompt = processor.prompt(QUESTION)
        tokens = processor.tokenizer(prompt)["input_ids"]
        settings = model.generation_config.to_dict(), processor.to_dict()
        text = Assistant(model, processor).ask("CC(=O)Oc1ccccc1C(=O)O", QUESTION, max_new_tokens=6)
        return digest.hexdigest(), prompt, tokens, json.dumps(settings, default=str), text

    return read


def molecules(folder: Path) -> Callable[[], object]:
    """Return what reads prepared data as training does: vocabulary, questions, features, facts."""

    def read() -> object:
        data = PreparedData.open(folder)
        questions = [question for split in SPLITS for question in data.tasks(split)]
        digest = hashlib.sha256(repr(questions).encode())
        for row in sorted({question.molecule for question in questions}):
            digest.update(repr(data.features(row)).encode())
            digest.update(np.ascontiguousarray(data.facts(row)))
        return digest.hexdigest(), data.manifest.selfies_vocabulary, data.manifest.motifs

    return read


def language_model(folder: Path) -> Callable[[], object]:
    """Return what reads a language model as stage 1 does: its weights and tokens."""

    def read() -> object:
        model, processor = build_model(str(folder), SIZES, selfies_tokens=["[C]"])
        weights = model.model.language_model.state_dict().values()
        digest = hashlib.sha256(b"".join(x.flatten().view(torch.uint8).numpy() for x in weights))
        prompt = processor.prompt(QUESTION)
        return digest.hexdigest(), prompt, processor.tokenizer(prompt)["input_ids"]

    return read


def attack_newest(group: str, newest: Path, draw: random.Random, flips: int) -> Iterator[Trial]:
    """Damage each file of the newest checkpoint: training must go on from the one before.

    Frozen weights are a file of both: then it must say so.
    """
    for path in sorted(p for p in newest.rglob("*") if p.is_file()):
        for fault, content in damages(path.read_bytes(), draw, flips):
            with altered(path, content), contextlib.redirect_stderr(None):
                verdict, message = _goes_on(newest, path)
            changed = json.loads(content) != json.loads(path.read_bytes()) if _json(content) else 1
            yield Trial(group, path.name, fault, verdict if changed else SAME, message)


def _goes_on(newest: Path, path: Path) -> tuple[str, str]:
    try:
        found = find_last_valid_checkpoint(newest.parent)
    except CollamoError as error:
        return SAID if path.name in str(error) else UNCLEAR, str(error)
    return SAME if found != newest else SILENT, f"goes on from {found}"


def _json(content: bytes | None) -> bool:
    try:
        return content is not None and json.loads(content) is not None
    except ValueError:
        return False
