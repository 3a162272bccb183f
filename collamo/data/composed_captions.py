"""Captions composed from the facts of a molecule."""

from __future__ import annotations

import random

from collamo.chem.motifs import GROUP_NAMES
from collamo.data.facts import Facts, format_number


def compose_caption(facts: Facts, rng: random.Random) -> str:
    """Return 15-40 words about the molecule, every one of them true, in varied wording and order.

    The identity comes first or last; rings, groups and polarity in any order between.
    """
    about = [_rings_sentence(facts, rng), _groups_sentence(facts, rng), _polarity(facts, rng)]
    rng.shuffle(about)
    identity = _identity_sentence(facts, rng)
    parts = [identity, *about] if rng.random() < 0.75 else [*about, identity]
    return " ".join(parts)


def _identity_sentence(facts: Facts, rng: random.Random) -> str:
    if "molecular_weight" not in facts.properties:  # see `Facts.unknown`
        return f"The molecule is {facts.formula}."
    weight = format_number(facts.properties["molecular_weight"], 1)
    wording = rng.choice(
        (
            "The molecule {formula} weighs {weight} g/mol.",
            "Its formula is {formula}, {weight} g/mol.",
            "It has the formula {formula}, weighing {weight} g/mol.",
        )
    )
    return wording.format(formula=facts.formula, weight=weight)


def _rings_sentence(facts: Facts, rng: random.Random) -> str:
    rings, aromatic = int(facts.properties["ring_count"]), facts.motifs["aromatic ring"]
    if rings == 0:
        return rng.choice(("It has no rings.", "It is acyclic.", "There are no rings."))
    kind = "all aromatic" if aromatic == rings else f"{aromatic or 'none'} of them aromatic"
    if rings == 1:
        kind = "aromatic" if aromatic else "not aromatic"
        return rng.choice((f"It has one ring, {kind}.", f"Its only ring is {kind}."))
    return rng.choice((f"It has {rings} rings, {kind}.", f"There are {rings} rings, {kind}."))


def _groups_sentence(facts: Facts, rng: random.Random) -> str:
    """Name up to two groups, the larger ones first, as RDKit's file orders them."""
    present = [name for name in GROUP_NAMES.values() if facts.motifs[name]][:2]
    if not present:
        return rng.choice(
            ("It carries none of the common functional groups.", "No common group is attached.")
        )
    listed = [_counted(facts.motifs[name], name) for name in present]
    text = " and ".join(listed)
    return rng.choice((f"It carries {text}.", f"Its groups include {text}."))


def _counted(count: int, name: str) -> str:
    if count == 1:
        return f"{'an' if name[0] in 'aeioN' else 'a'} {name}"
    return f"{count} {name}s"


def _polarity(facts: Facts, rng: random.Random) -> str:
    donors = _donors(int(facts.properties["hbond_donors"]))
    if "logp" not in facts.properties:
        return f"It has {donors}."
    logp = format_number(facts.properties["logp"], 1)
    return rng.choice(
        (
            f"Its logP is {logp} with {donors}.",
            f"With {donors}, its logP is {logp}.",
            f"It has {donors} and a logP of {logp}.",
        )
    )


def _donors(count: int) -> str:
    if count == 0:
        return "no hydrogen bond donors"
    return "one hydrogen bond donor" if count == 1 else f"{count} hydrogen bond donors"
