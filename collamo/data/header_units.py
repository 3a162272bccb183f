"""The unit in a column's name: ``IC50, nM``, ``logS [mol/L]``, ``gap_eV``."""

from __future__ import annotations

import re

from collamo.data.units import unit_of

_FORMS = (
    re.compile(r"(?P<words>.*?\S)\s*\[(?P<unit>.+)\]"),
    re.compile(r"(?P<words>.*?\S)\s*\((?P<unit>.+)\)"),
    re.compile(r"(?P<words>.*\S)\s*[,;|]\s*(?P<unit>[^,;|]+)"),
    re.compile(r"(?P<words>.*\S)\s+in\s+(?P<unit>\S.*)"),
)
_LOGARITHM = re.compile(r"(?:-?log(?:10)?\s*)(?P<unit>\S.*)", re.IGNORECASE)
# After an underscore or a blank stand words too: "ph_min", "vitamin_K". What cannot be one counts,
# and nM, µM, mM only in this case: "ic50_nm" is as often in nM as in nm.
_SUFFIX = re.compile(r"(?P<words>.*?[^_\s])[_\s](?P<unit>(?:kcal|kj)_mol|[^_\s]+)", re.IGNORECASE)
_SUFFIXES = {"ev": "eV", "mev": "meV", "hartree": "Hartree", "ha": "Hartree", "debye": "D"}
_SUFFIXES |= {"kcal_mol": "kcal/mol", "kj_mol": "kJ/mol", "kcalmol": "kcal/mol", "bohr": "a0"}
_SUFFIXES |= {"kcal/mol": "kcal/mol", "kj/mol": "kJ/mol", "angstrom": "Å", "kelvin": "K"}


def split_unit(column: str) -> tuple[str, str | None]:
    """Return (the name without its unit, the unit as written) of a column; None for none.

    >>> split_unit("IC50, nM"), split_unit("gap_eV"), split_unit("logS:exp")
    (('IC50', 'nM'), ('gap', 'eV'), ('logS:exp', None))
    """
    for form in _FORMS:
        match = form.fullmatch(column.strip())
        if match and _is_unit(match["unit"].strip()):
            return match["words"].strip(), match["unit"].strip()
    match = _SUFFIX.fullmatch(column.strip())
    if match:
        unit = _suffix_unit(match["unit"])
        if unit is not None:
            return match["words"], unit
    return column, None


def _is_unit(text: str) -> bool:
    logarithm = _LOGARITHM.fullmatch(text)
    return unit_of(logarithm["unit"] if logarithm else text) is not None


def _suffix_unit(text: str) -> str | None:
    if text.lower() in _SUFFIXES:
        return _SUFFIXES[text.lower()]
    mixed = text not in (text.lower(), text.upper(), text.capitalize())
    return text if mixed and unit_of(text) else None
