"""Conversion of units by pint.

An amount of substance is a number of particles: kcal/mol and g/mol become kcal and g of one
particle by Avogadro's constant (exact since 2019), so that energies per mole, eV and Hartree
convert. pint's constants are CODATA's.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from collamo.data.units import ATOMIC, UNKNOWN

if TYPE_CHECKING:
    import pint

HARTREE = "hartree**1"
ELECTRONVOLT = "electron_volt**1"
#: Of energies, lengths and their powers (polarizabilities), dipole moments.
ATOMIC_UNITS = ("hartree", "bohr", "bohr**2", "bohr**3", "elementary_charge*bohr")
# Nobody writes a molecule's energy in J or its mass in g: "180 g" for g/mol is a slip, not 10²⁶.
MACROSCOPIC = 1e12


class Conversion(NamedTuple):
    """A number in one unit is ``factor · number + offset`` in another one."""

    factor: float
    offset: float

    def __call__(self, number: float) -> float:
        """Return a number in the other unit."""
        # A product of doubles is no more exact than 15 digits: 6800 meV are 6.8 eV.
        return float(f"{number * self.factor + self.offset:.15g}")


@functools.lru_cache(maxsize=4096)
def conversion(written: str, expected: str) -> Conversion | None:
    """Return how to convert between two of pint's units, None where they measure different things.

    >>> conversion("kilocalorie*mole**-1", "hartree")(1000)
    1.59360143764104
    """
    if UNKNOWN in (written, expected):
        return None
    if written == expected:
        return Conversion(1.0, 0.0)
    if written == ATOMIC:
        conversions = (conversion(unit, expected) for unit in ATOMIC_UNITS)
        return next(filter(None, conversions), None)
    import pint

    try:
        amount = _amount(written, expected)
        zero, one = (_convert(number, written, expected, amount) for number in (0.0, 1.0))
    except pint.PintError:  # other dimensions, a power of °C
        return None
    factor = float(f"{one - zero:.15g}")
    macroscopic = amount and not 1 / MACROSCOPIC < factor < MACROSCOPIC
    return None if macroscopic else Conversion(factor, zero)


def _amount(written: str, expected: str) -> int:
    """Return the power of an amount of substance that `written` has and `expected` lacks."""
    registry = _registry()
    quotient = registry.parse_units(written) / registry.parse_units(expected)
    power = registry.get_dimensionality(quotient).get("[substance]", 0)
    return int(power)  # type: ignore[arg-type]  # never complex


def _convert(number: float, written: str, expected: str, amount: int) -> float:
    registry = _registry()
    quantity = registry.Quantity(number, registry.parse_units(written))
    if amount:
        quantity = quantity * registry.Quantity(1.0, "avogadro_constant") ** amount
    return float(quantity.to(registry.parse_units(expected)).magnitude)


@functools.cache
def _registry() -> pint.UnitRegistry:
    import pint

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
