"""Conversion of units by pint.

An amount of substance is a number of particles: kcal/mol and g/mol become kcal and g of one
particle by Avogadro's constant (exact since 2019), so that energies per mole, eV and Hartree
convert. pint's constants are CODATA's.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from collamo.data.units import UNKNOWN

if TYPE_CHECKING:
    import pint

HARTREE = "hartree**1"
ELECTRONVOLT = "electron_volt**1"
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
    import pint

    registry = _registry()
    units = [registry.parse_units(unit) for unit in (written, expected)]
    dimensions = registry.get_dimensionality(units[0] / units[1])
    amount = int(dimensions.get("[substance]", 0))  # type: ignore[arg-type]  # never complex

    def convert(number: float) -> float:
        quantity = registry.Quantity(number, units[0])
        if amount:
            quantity = quantity * registry.Quantity(1.0, "avogadro_constant") ** amount
        return float(quantity.to(units[1]).magnitude)

    try:
        zero, one = convert(0.0), convert(1.0)
    except pint.PintError:  # other dimensions, or a power of °C
        return None
    factor = float(f"{one - zero:.15g}")
    macroscopic = amount and not 1 / MACROSCOPIC < factor < MACROSCOPIC
    return None if macroscopic else Conversion(factor, zero)


@functools.cache
def _registry() -> pint.UnitRegistry:
    import pint

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
