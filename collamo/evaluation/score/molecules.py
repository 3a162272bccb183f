"""Written molecules against references: the published scores next to stricter ones."""

from __future__ import annotations

from dataclasses import dataclass

from rdkit import Chem, DataStructs
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from rdkit.Chem.rdMolDescriptors import GetMACCSKeysFingerprint

from collamo.chem.molecule import drop_atom_maps, is_selfies
from collamo.chem.rejection import captured_log
from collamo.evaluation.score.bleu import bleu, ngram_statistics
from collamo.evaluation.statistics import Sums

# Counts of circular environments up to two bonds, unfolded: what MolT5 published as "Morgan".
_MORGAN = GetMorganGenerator(radius=2)
FINGERPRINTS = {
    "maccs": GetMACCSKeysFingerprint,
    "rdk": Chem.RDKFingerprint,
    "morgan": _MORGAN.GetSparseCountFingerprint,
}
MOLECULE_COLUMNS = (
    "levenshtein",
    "validity",
    "validity_strict",
    "exact_inchi",
    "exact_canonical",
    *FINGERPRINTS,
)


@dataclass(frozen=True)
class WrittenMolecule:
    """A molecule as a model wrote it: its SMILES, and what RDKit reads in it (None: nothing)."""

    text: str
    mol: Chem.Mol | None

    @classmethod
    def read(cls, text: str) -> WrittenMolecule:
        """Read SMILES or SELFIES; a SELFIES is compared as the SMILES that it decodes to.

        Atom maps are no part of a molecule and are dropped from `mol`.
        """
        text = text.strip()
        if is_selfies(text):
            import selfies

            try:
                text = selfies.decoder(text)
            except selfies.DecoderError:
                return cls(text, None)
        with captured_log():
            mol = Chem.MolFromSmiles(text) if text else None
        if mol is not None:
            drop_atom_maps(mol)
        return cls(text, mol if mol is not None and mol.GetNumAtoms() else None)


def same_structure(one: Chem.Mol, other: Chem.Mol) -> bool:
    """Return whether both have the same standard InChI (tautomers InChI knows of are the same).

    False where InChI cannot write the molecule: dummy atoms, more than 1,023 atoms.
    """
    # An InChI names every heavy atom: comparing atoms first saves the slow InChI of most wrong
    # answers.
    if _heavy_atoms(one) != _heavy_atoms(other):
        return False
    with captured_log():
        inchi = Chem.MolToInchi(one)
        return bool(inchi) and inchi == Chem.MolToInchi(other)


def _heavy_atoms(mol: Chem.Mol) -> list[int]:
    return sorted(n for atom in mol.GetAtoms() if (n := atom.GetAtomicNum()) > 1)


def molecule_row(prediction: str, reference: str) -> tuple[str, dict[str, float]]:
    """Return (status, statistics) of one row.

    Status ``scored``, or ``invalid_prediction`` when RDKit reads no molecule in the prediction:
    such a row is wrong, has no similarity, and its text still counts in character BLEU and
    Levenshtein. ``invalid_reference`` has no statistics at all.

    >>> status, values = molecule_row("OCC", "CCO")
    >>> status, values["exact_inchi"], values["levenshtein"], values["maccs"]
    ('scored', 1.0, 2.0, 1.0)
    """
    from rapidfuzz.distance import Levenshtein

    true = WrittenMolecule.read(reference)
    if true.mol is None:
        return "invalid_reference", {}
    guess = WrittenMolecule.read(prediction)
    values = ngram_statistics(list(guess.text), list(true.text))
    values["levenshtein"] = float(Levenshtein.distance(guess.text, true.text))
    values["validity"] = float(guess.mol is not None)
    values["validity_strict"] = float(guess.mol is not None and len(guess.text.split()) == 1)
    values["exact_inchi"] = values["exact_canonical"] = 0.0
    if guess.mol is None:
        return "invalid_prediction", values
    values["exact_inchi"] = float(same_structure(guess.mol, true.mol))
    values["exact_canonical"] = float(Chem.MolToSmiles(guess.mol) == Chem.MolToSmiles(true.mol))
    for name, fingerprint in FINGERPRINTS.items():
        pair = fingerprint(guess.mol), fingerprint(true.mol)
        values[name] = DataStructs.TanimotoSimilarity(*pair)
    return "scored", values


def molecule_scores(sums: Sums) -> dict[str, float]:
    """Return the scores of summed `molecule_row`s, fractions of 1 but for the distance.

    - ``bleu_char``: corpus BLEU-4 of characters; ``levenshtein``: mean edit distance [characters];
    - ``exact_inchi`` (published), ``exact_canonical``: of all rows, an unreadable one being wrong;
      atom maps make no difference;
    - ``validity``: share of predictions that RDKit reads as a molecule with at least one atom.
      It takes what follows a blank for a name ("I do not know" is an atom of iodine), and so do
      published scores; ``validity_strict`` is of predictions that are a molecule and nothing else;
    - ``maccs``, ``rdk``, ``morgan``: mean Tanimoto similarity **of valid pairs**, as published: a
      model that writes nothing when in doubt looks better. Two fingerprints without a bit have
      similarity 0, as published (`shortfalls` counts them). ``…_all``: the same sum over all rows,
      an unreadable prediction having no similarity to anything.
    """
    scores: dict[str, float | None] = {"bleu_char": bleu(sums, 4)}
    scores |= {name: sums.mean(name) for name in MOLECULE_COLUMNS}
    rows = sums.counts.get("validity", 0)
    if rows:
        scores |= {f"{name}_all": sums.totals.get(name, 0.0) / rows for name in FINGERPRINTS}
    return {name: value for name, value in scores.items() if value is not None}
