"""Masses of molecular formulas and their ions."""

from __future__ import annotations

import re
from collections import Counter

ELECTRON = 0.000548579909
"""Mass of an electron in Da."""
MONOISOTOPIC = {
    "H": 1.00782503207, "B": 11.0093054, "C": 12.0, "N": 14.0030740048, "O": 15.99491461956, "F": 18.99840322,
    "Na": 22.9897692809, "Mg": 23.9850417, "Si": 27.9769265325, "P": 30.97376163, "S": 31.97207100, "Cl": 34.96885268,
    "K": 38.96370668, "Ca": 39.96259098, "Mn": 54.9380451, "Fe": 55.9349375, "Co": 58.933195, "Cu": 62.9295975,
    "Zn": 63.9291422, "Se": 79.9165213, "Br": 78.9183371, "I": 126.904473,
}  # fmt: skip
"""Mass of the most abundant isotope of each element in Da."""
ADDUCTS = {
    "[M+H]+": MONOISOTOPIC["H"] - ELECTRON,
    "[M+Na]+": MONOISOTOPIC["Na"] - ELECTRON,
    "[M+K]+": MONOISOTOPIC["K"] - ELECTRON,
    "[M+NH4]+": MONOISOTOPIC["N"] + 4 * MONOISOTOPIC["H"] - ELECTRON,
    "[M+H-H2O]+": -MONOISOTOPIC["H"] - MONOISOTOPIC["O"] - ELECTRON,
    "[M]+": -ELECTRON,
    "[M-H]-": ELECTRON - MONOISOTOPIC["H"],
    "[M+Cl]-": MONOISOTOPIC["Cl"] + ELECTRON,
}
"""Adduct -> what it adds to the neutral mass, in Da; all carry one charge."""

_ELEMENT = re.compile(r"([A-Z][a-z]?)(\d*)")


def parse_formula(formula: str) -> dict[str, int]:
    """Number of atoms of each element in a formula without brackets, charges or isotopes.

    Raises
    ------
    ValueError
        Anything else than known elements and counts.

    Examples
    --------
    >>> parse_formula("C6H12O6")
    {'C': 6, 'H': 12, 'O': 6}
    """
    atoms: Counter[str] = Counter()
    parts = _ELEMENT.findall(formula)
    for element, count in parts:
        atoms[element] += int(count or 1)
    unknown = sorted(set(atoms) - set(MONOISOTOPIC))
    if not parts or unknown or "".join(e + c for e, c in parts) != formula:
        msg = f"{formula!r} is not a molecular formula such as 'C6H12O6'" + (
            f": unknown {unknown}." if unknown else "."
        )
        raise ValueError(msg)
    return dict(atoms)


def monoisotopic_mass(formula: str) -> float:
    """Mass in Da of the molecule made of the most abundant isotopes.

    Examples
    --------
    >>> round(monoisotopic_mass("C6H12O6"), 4)
    180.0634
    """
    return sum(MONOISOTOPIC[element] * count for element, count in parse_formula(formula).items())
