"""What a molecule becomes when it is ionised, and what the matrix adds of its own.

Atomic masses are molmass's; it reads no notation such as ``[2M+Na]+`` or ``[M+FA-H]-`` and knows no MALDI matrices.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stmsi._core.chemistry.formulas import ELECTRON, Formulas, atom_mass, monoisotopic_mass, parse_formula

Polarity = Literal["positive", "negative"]

_GROUPS = {"FMP10": "C20H14N"}
"""Groups that derivatisation adds. FMP-10 (4-(anthracen-9-yl)-2-fluoro-1-methylpyridin-1-ium, C20H15FN+) replaces the
hydrogen of an amine or a phenol and loses its fluorine: C20H15N comes in, H goes. Shariatgorji et al., Nature Methods
2019, doi:10.1038/s41592-019-0551-3 (protocol: 10.1038/s41596-021-00538-w); two groups lose a methyl cation and so leave a single charge."""
_SHORTHAND = {
    "FA": "CH2O2", "Hac": "C2H4O2", "HAc": "C2H4O2", "HOAc": "C2H4O2", "TFA": "C2HF3O2", "ACN": "C2H3N", "DMSO": "C2H6OS",
    "MeOH": "CH4O", "IsoProp": "C3H8O", "IPA": "C3H8O",
} | _GROUPS  # fmt: skip
"""Names of solvents and acids in adducts, as tables of adducts of LC-MS write them."""
_NOTATION = re.compile(r"\[?(\d*)M((?:[+-]\d*[A-Z][A-Za-z0-9]*)*)\]?(\d*)([+-]?)")
_TERM = re.compile(r"([+-])(\d*)([A-Z][A-Za-z0-9]*)")

MATRICES = {
    "DHB": "C7H6O4", "CHCA": "C10H7NO3", "SA": "C11H12O5", "DHAP": "C8H8O3", "9-AA": "C13H10N2", "DAN": "C10H10N2",
    "NEDC": "C12H14N2", "NORHARMANE": "C11H8N2", "FMP-10": "C20H15FN",
}  # fmt: skip
"""Formula of each MALDI matrix as the neutral molecule; FMP-10 as its cation."""
_ACIDS = ("DHB", "CHCA", "SA", "DHAP")
_DEFAULTS: dict[tuple[str, Polarity], tuple[str, ...]] = {
    ("", "positive"): ("[M+H]+", "[M+Na]+", "[M+K]+", "[M]+"),
    ("", "negative"): ("[M-H]-", "[M+Cl]-", "[M]-"),
    ("DHB", "positive"): ("[M+H]+", "[M+Na]+", "[M+K]+", "[M]+", "[M+H-H2O]+"),
    ("CHCA", "positive"): ("[M+H]+", "[M+Na]+", "[M+K]+", "[M]+", "[M+H-H2O]+"),
    ("DHB", "negative"): ("[M-H]-", "[M]-"),
    ("9-AA", "negative"): ("[M-H]-", "[M+Cl]-", "[M]-", "[M-H-H2O]-"),
    ("FMP-10", "positive"): ("[M+FMP10]+", "[M+2FMP10-CH3]+"),
}


@dataclass(frozen=True)
class Adduct:
    """An ion type; its m/z is (`molecules` x mass + `shift`) over the size of `charge`."""

    name: str
    molecules: int
    shift: float
    charge: int
    atoms: tuple[tuple[str, int], ...] = ()
    """Net atoms that come (positive) and go (negative)."""
    derivatised: int = 0
    """How many groups of the molecule are derivatised."""

    @property
    def polarity(self) -> Polarity:
        """Of the ion."""
        return "positive" if self.charge > 0 else "negative"

    @property
    def is_main(self) -> bool:
        """Whether a molecule becomes this ion by protons alone, by its own charge, or because it is derivatised."""
        return self.molecules == 1 and (self.derivatised > 0 or all(element == "H" for element, _ in self.atoms))

    @property
    def is_added(self) -> bool:
        """Whether something but protons comes to one molecule and nothing but protons goes, with a single charge."""
        others = [net for element, net in self.atoms if element != "H"]
        single = self.molecules == 1 and abs(self.charge) == 1 and not self.derivatised
        return single and bool(others) and min(others) > 0

    def mz(self, masses: NDArray[np.float64]) -> NDArray[np.float64]:
        """m/z of molecules of these monoisotopic masses (Da)."""
        return (self.molecules * masses + self.shift) / abs(self.charge)

    def fits(self, formulas: Formulas) -> NDArray[np.bool_]:
        """Which formulas can form the ion, by sums of atoms: no structure is known.

        An ion takes no further charge and keeps its sign, a neutral molecule gets none by itself, what goes must be there,
        and each derivatised group needs a nitrogen or oxygen.
        """
        by_itself = formulas.may_be_cation if self.charge > 0 else formulas.anion
        fit = (~formulas.charged if self.atoms else by_itself).copy()
        for element, net in self.atoms:
            if net < 0:
                fit &= self.molecules * formulas.of([element]) >= -net
        if self.derivatised:
            fit &= formulas.of(["N", "O"]) >= self.derivatised
        return fit


@cache
def parse_adduct(text: str, polarity: Polarity | None = None) -> Adduct:
    """Read an adduct in the notation ``[nM+X-Y]z+``, or as METASPACE writes it (``M+H``, with `polarity`)."""
    found = _NOTATION.fullmatch(text.strip())
    terms = _TERM.findall(found[2]) if found else []
    atoms: Counter[str] = Counter()
    derivatised = 0
    try:
        for sign, count, part in terms:
            number = int(count or 1) * (1 if sign == "+" else -1)
            derivatised += number if part in _GROUPS else 0
            for element, n in parse_formula(_SHORTHAND.get(part, part)).items():
                atoms[element] += number * n
    except ValueError:
        found = None
    if found is None or found[1] == "0" or found[3] == "0":
        msg = f"{text!r} is not an adduct such as '[M+H]+', '[M-H]-', '[2M+Na]+' or '[M+2H]2+'."
        raise ValueError(msg)
    sign = found[4] or {"positive": "+", "negative": "-", None: ""}[polarity]
    if not sign:
        msg = f"Adduct {text!r} does not say its charge; write '[M+H]+', or pass polarity='positive' or 'negative'."
        raise ValueError(msg)
    charge = int(found[3] or 1) * (1 if sign == "+" else -1)
    shift = sum(atom_mass(e) * n for e, n in atoms.items()) - charge * ELECTRON
    name = f"[{found[1]}M{found[2]}]{found[3]}{sign}"
    net = tuple((e, n) for e, n in atoms.items() if n)
    return Adduct(name, int(found[1] or 1), shift, charge, net, max(derivatised, 0))


ADDUCTS = {
    name: parse_adduct(name).shift
    for name in ("[M+H]+", "[M+Na]+", "[M+K]+", "[M+NH4]+", "[M+H-H2O]+", "[M]+", "[M-H]-", "[M+Cl]-")
}
"""Common adduct -> what it adds to the neutral mass, in Da; all carry one charge."""


def matrix_name(matrix: str) -> str:
    """The matrix meant, whatever its case, hyphens and blanks; `matrix` itself where it is not known."""
    plain = {re.sub(r"[^A-Z0-9]", "", name.upper()): name for name in MATRICES} | {"HCCA": "CHCA", "NOR": "NORHARMANE"}
    return plain.get(re.sub(r"[^A-Z0-9]", "", matrix.upper()), matrix)


def default_adducts(polarity: Polarity, matrix: str | None = None) -> tuple[str, ...]:
    """Adducts to expect; those of METASPACE (and the bare cation) where the matrix has none of its own."""
    return _DEFAULTS.get((matrix or "", polarity), _DEFAULTS["", polarity])


def matrix_peaks(matrix: str, polarity: Polarity) -> dict[str, float]:
    """Name and m/z of the ions that a matrix forms by itself.

    Clusters :math:`nM - xH + yNa + zK` with :math:`y + z = x + 1` after Keller & Li (J. Am. Soc. Mass Spectrom. 2000,
    11, 88), n up to 3, also less water for acids; the molecular ion; CHCA less carbon dioxide. Negative ions have one
    proton less, or chloride. FMP-10: its cation and the pyridone that it hydrolyses to.
    """
    mass, e = monoisotopic_mass(MATRICES[matrix]), ELECTRON
    if matrix == "FMP-10":
        return {"[M]+": mass - e, "[M-F+OH+H]+": monoisotopic_mass("C20H16NO") - e} if polarity == "positive" else {}
    h, na, k, water = atom_mass("H"), atom_mass("Na"), atom_mass("K"), monoisotopic_mass("H2O")
    sign, end = (1, "+") if polarity == "positive" else (-1, "-")
    peaks = {"[M]+": mass - e} if sign > 0 else {}
    if matrix == "CHCA":
        carbonyl = mass - monoisotopic_mass("CO2")
        peaks[f"[M-CO2{end}H]{end}"] = carbonyl + sign * (h - e)
    for n in (1, 2, 3):
        for lost in range(n + 1 if matrix in _ACIDS else 1):
            core = n * mass - lost * water
            label = f"{n if n > 1 else ''}M" + (f"-{lost if lost > 1 else ''}H2O" if lost else "")
            if sign > 0:
                peaks[f"[{label}+H]+"] = core + h - e
            else:
                peaks[f"[{label}+Cl]-"] = core + atom_mass("Cl") + e
            # metals that replaced protons: x of them gone, x + 1 metals in a cation, x - 1 in an anion
            fewest = 0 if sign > 0 else 1
            for x in range(fewest, (n if matrix in _ACIDS else fewest) + 1):
                for sodium in range(x + sign + 1):
                    potassium = x + sign - sodium
                    salt = "".join(f"+{c if c > 1 else ''}{m}" for m, c in (("Na", sodium), ("K", potassium)) if c)
                    gone = f"-{x if x > 1 else ''}H" if x else ""
                    peaks[f"[{label}{gone}{salt}]{end}"] = core - x * h + sodium * na + potassium * k - sign * e
    return peaks
