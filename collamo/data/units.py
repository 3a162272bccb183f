"""Units as people write them after a number, by the names that pint knows."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

#: Begins like a unit and goes on as none ("eV/ring"): nothing converts it.
UNKNOWN = "?"
#: "a.u.", which is no unit by itself: of an energy it is a Hartree, of a length a Bohr radius.
ATOMIC = "atomic_unit**1"
MOST_FACTORS = 8  # more are no unit, but a model that repeats itself

# Symbols → pint's names. A lone A is an ångström (no property of a molecule is asked in ampere),
# an atomic unit is of whatever is asked for.
_SYMBOL_TABLE = """
    Ha=hartree Eh=hartree E_h=hartree mHa=millihartree mEh=millihartree eV=electron_volt
    meV=millielectron_volt keV=kiloelectron_volt MeV=megaelectron_volt Ry=rydberg cal=calorie
    kcal=kilocalorie J=joule kJ=kilojoule mol=mole mmol=millimole µmol=micromole
    nmol=nanomole Å=angstrom A=angstrom Ang=angstrom a0=bohr a₀=bohr a_0=bohr Bohr=bohr
    nm=nanometer pm=picometer µm=micrometer mm=millimeter cm=centimeter dm=decimeter m=meter
    g=gram kg=kilogram mg=milligram µg=microgram ng=nanogram Da=dalton kDa=kilodalton
    amu=dalton u=dalton L=liter l=liter dL=deciliter mL=milliliter ml=milliliter
    µL=microliter M=molar mM=millimolar µM=micromolar nM=nanomolar pM=picomolar fM=femtomolar
    D=debye K=kelvin °C=degree_Celsius °F=degree_Fahrenheit Pa=pascal kPa=kilopascal
    MPa=megapascal bar=bar atm=atmosphere mmHg=mmHg Torr=torr torr=torr s=second
    ms=millisecond ns=nanosecond ps=picosecond h=hour min=minute V=volt mV=millivolt Hz=hertz
    MHz=megahertz GHz=gigahertz THz=terahertz %=percent a.u.=atomic_unit au=atomic_unit
"""
_SYMBOLS = dict(entry.split("=") for entry in _SYMBOL_TABLE.split())
# Names of units in any case, with prefixes and the plural.
_SAME_NAMES = (
    "hartree calorie joule mole angstrom bohr meter gram dalton liter molar debye kelvin "
    "pascal bar atmosphere torr second minute hour volt hertz rydberg particle molecule"
)
_NAMES = {name: name for name in _SAME_NAMES.split()}
_NAMES |= {"metre": "meter", "litre": "liter", "ångström": "angstrom", "ångstrom": "angstrom"}
_NAMES |= {
    "angström": "angstrom",
    "electronvolt": "electron_volt",
    "electron-volt": "electron_volt",
}
_NAMES |= {"percent": "percent", "celsius": "degree_Celsius", "fahrenheit": "degree_Fahrenheit"}
_PREFIX = re.compile("kilo|mega|giga|tera|deci|centi|milli|micro|nano|pico|femto")
# Symbols that are as often written in another case, where that cannot mean another unit.
_FOLDED = {name.lower(): _SYMBOLS[name] for name in ("eV", "meV", "kcal", "kJ", "Ha", "mol", "Da")}
_FOLDED["kda"] = _SYMBOLS["kDa"]

_LOOK_ALIKE = str.maketrans({"\u212b": "Å", "μ": "µ"})
_ASCII_MICRO = re.compile("u(?=(?:mol|M|m|g|L)$)")

_TOKEN = re.compile(
    r"""
    (?P<power>(?:square|sq\.?|cubic|cu\.?)\s+)?
    (?P<name>electron[\s-]volts?|atomic\s+mass\s+units?|(?:degrees?\s+|°\s?)[CF]?[a-z]*|%
      |[aE]_[0h](?!\w)|a\.u\.|a[0₀](?![a-zA-Z])|[^\W\d_⁰¹²³⁴⁵⁶⁷⁸⁹]+)
    (?:(?:\^|\*\*)?[({]?(?P<exponent>[+−–-]?[1-9])[)}]?(?!\d|\.\d)|(?P<raised>[⁺⁻]?[¹²³⁴⁵⁶])
      |\s+(?P<after>squared|cubed)\b)?
    """,
    re.VERBOSE,
)
_OPENING = re.compile(r"-(?=[A-Za-zÅ])|\s*(?P<bracket>[(\[])?")
# What may stand between a number and its unit: ends of brackets and Markdown, an error, a range.
_ENDS = r"(?:[)\]*`$~\"]|\s)*"
_BETWEEN = re.compile(
    rf"{_ENDS}(?:(?:±|\+/-|\\pm|[-–—−]|to\b|and\b|or\b)\s*\d[\d.,]*(?<![.,]){_ENDS})?"
)
# A unit before its number: "the gap in eV is 6.8", "gap (eV): 6.8".
_ANNOUNCED = re.compile(r"\bin\s+|[(\[]")
_ANNOUNCED_WITHIN = 40  # characters
_FILLER = re.compile(r"[)\]:=≈~\s]*(?:(?:is|was|equals|of|about|approximately)\b[:=≈~\s]*)*")
_DIVISION = re.compile(r"\s*/\s*(?P<bracket>\()?|\s+per\s+(?P<word>)")
_PRODUCT = re.compile(r"\s*[·⋅∙*×]\s*|\.(?=[a-zA-Z])|[ \u00a0\u202f](?P<blank>)")
_RAISED = str.maketrans("⁺⁻¹²³⁴⁵⁶−–", "+-123456--")


class WrittenUnit(NamedTuple):
    """A unit as pint calls it (or `UNKNOWN`), and where its text ends."""

    name: str
    end: int


def unit_beside(text: str, start: int, end: int) -> WrittenUnit | None:
    """Return the unit of the number that stands from `start` to `end`: after it, or announced.

    >>> text = "6.8 ± 0.2 eV"
    >>> unit_beside(text, 0, 3).name, unit_beside("The gap (eV): 6.8", 14, 17).name
    ('electron_volt**1', 'electron_volt**1')
    """
    if text[end - 1] == "." and text[end : end + 1].strip() == "":  # the end of a sentence
        after = None
    else:
        after = find_unit(text, end)
        between = None if after else _BETWEEN.match(text, end)
        if between and between.end() > end + 1:
            after = find_unit(text, between.end())
    return after or _announced(text, start)


def _announced(text: str, start: int) -> WrittenUnit | None:
    for match in _ANNOUNCED.finditer(text, max(0, start - _ANNOUNCED_WITHIN), start):
        unit = _find_unit(text, match.end())
        if unit and unit.end <= start and _FILLER.fullmatch(text, unit.end, start):
            return unit
    return None


def find_unit(text: str, start: int = 0) -> WrittenUnit | None:
    """Return the unit that stands at `start`, None where there is none: "3 rings", "180 in total".

    Symbols, names, their plurals and prefixes; products and quotients in every usual notation.

    >>> find_unit("156.8 kcal mol⁻¹", 5).name, find_unit("6.8 electron volts", 3).name
    ('kilocalorie**1*mole**-1', 'electron_volt**1')
    """
    opening = _OPENING.match(text, start)
    assert opening is not None  # it matches nothing, too
    unit = _find_unit(text, opening.end())
    # In brackets the unit stands alone: "6.8 (eV)", but "3 (A ring)".
    closed = opening["bracket"] is None or (unit and text[unit.end : unit.end + 1] in (")", "]"))
    return unit if closed else None


def _find_unit(text: str, start: int) -> WrittenUnit | None:
    first = _factor(text, start)
    if first is None:
        return None
    factors, end = [first[0]], first[1]
    below = bracket = False
    while True:
        division, product = _DIVISION.match(text, end), _PRODUCT.match(text, end)
        joint = division or product
        if joint is None:
            break
        further = _factor(text, joint.end(), below=bool(division) or below)
        blank = division is None and product is not None and product["blank"] is not None
        # Words follow a unit after a blank: only a negative power, or a bracket, makes one a unit.
        if blank and not bracket and "**-" not in (_factor(text, joint.end()) or ("",))[0]:
            break
        if further is None:
            if division and re.match(r"[^\W\d]", text[joint.end() :]):
                return WrittenUnit(UNKNOWN, joint.end())
            break
        if len(factors) == MOST_FACTORS:
            return WrittenUnit(UNKNOWN, further[1])
        factors.append(further[0])
        end = further[1]
        # "J/mol·K" is J/(mol·K) to whoever writes it.
        below = below or bool(division)
        bracket = bracket or bool(division and division["bracket"])
        if bracket and text[end : end + 1] == ")":
            end, bracket = end + 1, False
    return WrittenUnit("*".join(factors), end)


def _factor(text: str, start: int, below: bool = False) -> tuple[str, int] | None:
    """Return a unit with its power at `start`, and where it ends."""
    token = _TOKEN.match(text, start)
    name = _pint_name(token["name"]) if token else None
    if token is None or name is None:
        return None
    power = int((token["exponent"] or token["raised"] or "1").translate(_RAISED))
    if token["after"]:
        power = 2 if token["after"] == "squared" else 3
    if token["power"]:
        power = 3 if token["power"].startswith("cu") else 2
    return f"{name}**{-abs(power) if below else power}", token.end()


def _pint_name(word: str) -> str | None:
    """Return pint's name of one unit, None for another word."""
    word = word.translate(_LOOK_ALIKE)
    symbol = _SYMBOLS.get(_ASCII_MICRO.sub("µ", word)) or _FOLDED.get(word.lower())
    if symbol:
        return symbol
    name = " ".join(word.lower().split()).replace("electron volt", "electronvolt")
    name = re.sub("^(?:degrees? |°)", "° ", name)
    if name in ("° c", "° f"):
        return _SYMBOLS["°" + name[-1].upper()]
    name = name.removeprefix("° ")
    if name.startswith("atomic mass unit"):
        return "dalton"
    singular = name if name in _NAMES else name.removesuffix("s")
    prefix = _PREFIX.match(singular)
    if singular in _NAMES:
        return _NAMES[singular]
    rest = _NAMES.get(singular[prefix.end() :]) if prefix else None
    return f"{prefix[0]}{rest}" if prefix and rest else None


@functools.lru_cache(maxsize=256)
def unit_of(text: str | None) -> str | None:
    """Return pint's name of a text that is a unit and nothing else, None for any other.

    >>> unit_of("cal/(mol K)"), unit_of("points")
    ('calorie**1*mole**-1*kelvin**-1', None)
    """
    unit = find_unit(text) if text else None
    if unit is None or text is None or text[unit.end :].strip():
        return None
    return None if unit.name == UNKNOWN or "atomic_unit" in unit.name else unit.name
