"""How many of the ions that agree with a table of formulas do so by chance, when the unknown ions are real molecules.

Masses of molecules lie on a lattice: [M+Na]+ of one lipid is 2.4 mDa from [M+H]+ of its neighbour with two carbons more.
Elements that form no adducts, the decoys of METASPACE, leave that lattice and find too little by mass alone. The decoys
here stay near it, and adducts are judged in the company of other ions. Own code: pyMSpec and metaspace score isotope patterns
and images, not lists of m/z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stmsi._core.chemistry.formulas import monoisotopic_mass
from stmsi._core.chemistry.mass_annotation import false_discovery_rate, match_masses, nearest_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stmsi._core.chemistry.adducts import Adduct
    from stmsi._core.chemistry.formulas import Formulas

_MOVED = np.array([-5.0, -4.0, -3.0, -2.0, 2.0, 3.0, 4.0, 5.0])
"""Decoys of likely ions: the same ions so many windows away."""
_KIN = np.array([sign * monoisotopic_mass(f) for f in ("H2", "CH2", "O", "C2H4") for sign in (1, -1)])
"""Decoys of other ions: formulas that differ by these masses (Da) and are not in the table."""
_KIN_OF_KIN = np.unique(np.round(np.append(0.0, np.concatenate([_KIN, np.add.outer(_KIN, _KIN).ravel()])), 6))
_SAME = 1e-4  # Da; masses this close are one formula
NEAR_TIE = 0.2
"""Share of the window within which two errors are equally good."""


class Hits(NamedTuple):
    """Measured m/z and formulas that agree for one adduct: positions of both, error (ppm), false-discovery rate.

    `rival` marks those that another explanation of the same m/z contradicts; their rate is 1.
    """

    measured: NDArray[np.int64]
    formula: NDArray[np.int64]
    error: NDArray[np.float64]
    rate: NDArray[np.float64]
    rival: NDArray[np.bool_]


def search_masses(mz: NDArray[np.float64], formulas: Formulas, adducts: Sequence[Adduct], ppm: float) -> list[Hits]:
    """All formulas and adducts within `ppm` of the measured `mz` (Da; NaN: unknown), one result an adduct.

    Each formula has a main ion, the first of `adducts` that does no more than add or take protons (or derivatise).

    - Main ions are compared with themselves two to five windows away. A measured m/z is taken for no main ion where another
      was measured that lies lower by the difference to an adduct, or where an adduct of the table or its kin agrees better.
    - Other ions whose main ion was measured as well are compared with pairs that are moved together.
    - Other ions alone are compared with the same adducts of kin: formulas with H2, CH2, O or C2H4 more or less, or two of
      these.

    Ions of one formula vouch for each other: all have the lowest rate among them.
    """
    search = _Search(mz, formulas, adducts, ppm)
    found = [search.hits(order) for order in range(len(adducts))]
    lowest = np.ones(len(formulas.names))
    for hits in found:
        np.fmin.at(lowest, hits.formula, hits.rate)
    return [hits._replace(rate=np.where(hits.rival, hits.rate, lowest[hits.formula])) for hits in found]


class _Search:
    """One list of m/z and one table of formulas."""

    def __init__(self, mz: NDArray[np.float64], formulas: Formulas, adducts: Sequence[Adduct], ppm: float) -> None:
        self.mz, self.adducts, self.ppm = mz, adducts, ppm
        self.masses = formulas.masses
        self.fits = [adduct.fits(formulas) for adduct in adducts]
        self.main = np.full(len(self.masses), -1)
        self.main_mz = np.full(len(self.masses), -1.0)  # where nothing is measured
        for order, adduct in reversed(list(enumerate(adducts))):
            if adduct.is_main:
                own = self.fits[order]
                self.main[own], self.main_mz[own] = order, adduct.mz(self.masses[own])
        self.neutral = self.masses[~formulas.charged]
        self.added = [adduct for adduct in adducts if adduct.is_added]

    def hits(self, order: int) -> Hits:
        """What agrees for one adduct."""
        is_main = self.main == order
        groups = (self._main_hits(order, np.flatnonzero(self.fits[order] & is_main)),
                  self._other_hits(order, np.flatnonzero(self.fits[order] & ~is_main)))  # fmt: skip
        return Hits(*(np.concatenate(parts) for parts in zip(*groups, strict=True)))

    def _main_hits(self, order: int, able: NDArray[np.intp]) -> Hits:
        adduct = self.adducts[order]
        ions = adduct.mz(self.masses[able])
        measured, ion, error = match_masses(self.mz, ions, self.ppm)
        explained = self._explained(adduct)
        rival = explained[measured] | (np.abs(error) > self._rival_error()[measured] + NEAR_TIE * self.ppm)
        best = _best(ion[~rival], error[~rival], len(ions))
        decoy = nearest_error(np.where(explained, np.nan, self.mz), self._moved(ions).ravel(), self.ppm)
        rate = _rates(best, decoy, len(ions), len(_MOVED) * len(ions))
        return Hits(measured, able[ion], error, np.where(rival, 1.0, rate[ion]), rival)

    def _other_hits(self, order: int, able: NDArray[np.intp]) -> Hits:
        adduct, main_mz = self.adducts[order], self.main_mz[able]
        ions = adduct.mz(self.masses[able])
        measured, ion, error = match_masses(self.mz, ions, self.ppm)
        best, rate = _best(ion, error, len(ions)), np.full(len(ions), np.nan)
        joined = np.isfinite(nearest_error(self.mz, main_mz, self.ppm))
        pair, of_pair = (nearest_error(self.mz, self._moved(m).ravel(), self.ppm) for m in (ions, main_mz))
        kin = self.masses[able][:, None] + _KIN
        new = (kin > 0) & (_distance(self.masses, kin) > _SAME)
        main = [self.adducts[k] for k in np.unique(self.main[able]) if k >= 0]
        with_main = np.zeros(kin.shape, bool)
        for other in main:
            own = self.main[able] == self.adducts.index(other)
            with_main[own] = np.isfinite(nearest_error(self.mz, other.mz(kin[own]).ravel(), self.ppm)).reshape(
                -1, len(_KIN)
            )
        of_kin = np.where(new, nearest_error(self.mz, adduct.mz(kin).ravel(), self.ppm).reshape(kin.shape), np.inf)
        rate[~joined] = _rates(best[~joined], of_kin[~with_main], len(ions), int(new.sum()))
        # pairs are often few: they are at least as good as all together
        pairs = _rates(best[joined], pair[np.isfinite(of_pair)], len(ions), len(_MOVED) * len(ions))
        rate[joined] = np.fmin(pairs, _rates(best, of_kin.ravel(), len(ions), int(new.sum()))[joined])
        return Hits(measured, able[ion], error, rate[ion], np.zeros(len(ion), bool))

    def _moved(self, ions: NDArray[np.float64]) -> NDArray[np.float64]:
        return ions[:, None] * (1 + _MOVED * self.ppm * 1e-6)

    def _explained(self, adduct: Adduct) -> NDArray[np.bool_]:
        """Which m/z lie above another measured one by the difference of a further adduct to this one."""
        out = np.zeros(len(self.mz), bool)
        for other in self.added:
            below = self.mz - (other.shift - adduct.shift) / abs(adduct.charge)
            out |= _distance(self.mz, below) <= self.ppm * 1e-6 * self.mz
        return out

    def _rival_error(self) -> NDArray[np.float64]:
        """Smallest error (ppm) of each m/z as another ion of the formulas and their kin."""
        out = np.full(len(self.mz), np.inf)
        if self.added:
            kin = np.unique(np.round(self.neutral[:, None] + _KIN_OF_KIN, 5))
            for adduct in self.added:
                out = np.fmin(out, _distance(adduct.mz(kin[kin > 0]), self.mz) / self.mz * 1e6)
        return out


def _distance(among: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each value to the nearest of others (NaN: none of them), infinite without any."""
    known = np.sort(among[np.isfinite(among)])
    if known.size == 0:
        return np.full(np.shape(values), np.inf)
    above = np.clip(np.searchsorted(known, values), 1, max(len(known) - 1, 1))
    upper = known[np.minimum(above, len(known) - 1)]
    return np.minimum(np.abs(upper - values), np.abs(known[above - 1] - values))


def _best(ion: NDArray[np.int64], error: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Smallest error of each of `n` ions, infinite without a hit."""
    best = np.full(n, np.inf)
    np.minimum.at(best, ion, np.abs(error))
    return best


def _rates(best: NDArray[np.float64], decoy: NDArray[np.float64], n_ions: int, n_decoys: int) -> NDArray[np.float64]:
    """Rates of ions by their smallest errors, NaN without a hit; decoys without a hit are infinite."""
    rate, hit = np.full(len(best), np.nan), np.isfinite(best)
    rate[hit] = false_discovery_rate(best[hit], decoy[np.isfinite(decoy)], n_ions, n_decoys)
    return rate
