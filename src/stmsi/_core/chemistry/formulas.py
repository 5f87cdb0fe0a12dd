"""Atoms and masses of molecular formulas.

The masses are molmass's; own code reads many formulas into one array, and refuses isotopes, charges and groups.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from molmass import ELECTRON as _ELECTRON
from molmass import ELEMENTS
from numpy.typing import NDArray

ELECTRON: float = _ELECTRON.mass
"""Mass of an electron in Da."""
_ELEMENT = re.compile(r"([A-Z][a-z]?)(\d*)")
_ODD_VALENCE = ("H", "D", "N", "P", "F", "Cl", "Br", "I", "Na", "K", "Li", "B", "Al", "Ag")
_SEVERAL_VALENCES = ("Fe", "Co", "Cu", "Mn")


@cache
def atom_mass(element: str) -> float:
    """Mass of the most abundant isotope of an element, in Da."""
    return float(max(ELEMENTS[element].isotopes.values(), key=lambda isotope: isotope.abundance).mass)


@cache
def _parse(formula: str) -> tuple[tuple[str, int], ...]:
    atoms: Counter[str] = Counter()
    parts = _ELEMENT.findall(formula)
    for element, count in parts:
        atoms[element] += int(count or 1)
    unknown = sorted(element for element in atoms if element not in ELEMENTS)
    if not parts or unknown or "".join(e + c for e, c in parts) != formula:
        msg = f"{formula!r} is not a molecular formula such as 'C6H12O6'{f': unknown {unknown}' if unknown else ''}."
        raise ValueError(msg)
    return tuple(atoms.items())


def parse_formula(formula: str) -> dict[str, int]:
    """Atoms of each element in a formula without brackets, charges or isotopes; a `ValueError` for anything else."""
    return dict(_parse(formula))


def monoisotopic_mass(formula: str) -> float:
    """Mass in Da of the molecule made of the most abundant isotopes."""
    return sum(atom_mass(element) * count for element, count in _parse(formula))


def protonated(formula: str, n: int) -> str:
    """A formula with `n` hydrogens more, the order of its elements kept."""
    atoms = dict(_parse(formula))
    atoms["H"] = atoms.get("H", 0) + n
    return "".join(f"{element}{count if count > 1 else ''}" for element, count in atoms.items())


class Formulas:
    """Atoms of many formulas as one array, so that rules and masses are array operations.

    `signs` are those of their charges: 1, -1, or 0 where nothing is stated.
    """

    def __init__(self, formulas: Sequence[str], signs: Sequence[int] | None = None) -> None:
        parsed = [_parse(f) for f in formulas]
        self.names = list(formulas)
        self.signs = np.zeros(len(parsed), np.int64) if signs is None else np.asarray(signs, np.int64)
        self.elements = sorted({element for atoms in parsed for element, _ in atoms})
        column = {element: j for j, element in enumerate(self.elements)}
        self.counts = np.zeros((len(parsed), len(self.elements)), np.int64)
        for i, atoms in enumerate(parsed):
            for element, count in atoms:
                self.counts[i, column[element]] = count

    @property
    def masses(self) -> NDArray[np.float64]:
        """Monoisotopic masses in Da, shape (formulas,)."""
        return np.asarray(self.counts @ np.array([atom_mass(e) for e in self.elements]), dtype=np.float64)

    def of(self, elements: Iterable[str]) -> NDArray[np.int64]:
        """Number of atoms of these elements together, shape (formulas,)."""
        return self.counts[:, [e in set(elements) for e in self.elements]].sum(axis=1)

    @property
    def charged(self) -> NDArray[np.bool_]:
        """Which formulas are those of an ion."""
        return self.anion | self._cation

    @property
    def anion(self) -> NDArray[np.bool_]:
        """Which formulas are stated to be negative."""
        return self.signs < 0

    @property
    def _cation(self) -> NDArray[np.bool_]:
        # an odd sum of valences leaves a neutral molecule an open shell: without a sign, it is taken for a cation
        return (self.signs > 0) | ((self.signs == 0) & (self.of(_ODD_VALENCE) % 2 == 1))

    @property
    def may_be_cation(self) -> NDArray[np.bool_]:
        """Cations, and complexes of metals that change their valence (haem is seen as the cation of its iron(III))."""
        return self._cation | ((self.signs == 0) & (self.of(_SEVERAL_VALENCES) > 0))


def valid_formulas(formulas: Iterable[str]) -> tuple[list[str], list[str]]:
    """The distinct formulas that can be read, in order of appearance, and those that cannot."""
    good, bad = [], []
    for formula in dict.fromkeys(formulas):
        try:
            _parse(formula)
        except ValueError:
            bad.append(formula)
        else:
            good.append(formula)
    return good, bad
