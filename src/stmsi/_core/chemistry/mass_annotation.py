"""Which ions an m/z can be, and how many of the answers to expect by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def match_masses(
    mz: NDArray[np.float64], ions: NDArray[np.float64], ppm: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """All pairs of a measured m/z (NaN: unknown) and an ion within `ppm`: both positions, and the error in ppm."""
    order = np.argsort(mz, kind="stable")
    order = order[np.isfinite(mz[order])]
    known = mz[order]
    first = np.searchsorted(known, ions * (1 - ppm * 1e-6), side="left")
    count = np.searchsorted(known, ions * (1 + ppm * 1e-6), side="right") - first
    ion = np.repeat(np.arange(len(ions)), count)
    measured = order[np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[ion]]
    return measured, ion, (mz[measured] - ions[ion]) / ions[ion] * 1e6


def nearest_error(mz: NDArray[np.float64], ions: NDArray[np.float64], ppm: float) -> NDArray[np.float64]:
    """Distance of each ion to the nearest measured m/z (ppm), infinite beyond `ppm`."""
    _, ion, error = match_masses(mz, ions, ppm)
    best = np.full(len(ions), np.inf)
    np.minimum.at(best, ion, np.abs(error))
    return best


def false_discovery_rate(
    target: NDArray[np.float64], decoy: NDArray[np.float64], n_target: int, n_decoy: int
) -> NDArray[np.float64]:
    r"""Expected share of false annotations among those as good as each, from errors (ppm) of targets and decoys.

    .. math:: q(e) = \min_{t \ge e} \frac{D(t)\, n_\text{target} / n_\text{decoy} + 1}{T(t)}

    with the targets :math:`T(t)` and decoys :math:`D(t)` of error :math:`t` or less. The 1 keeps the rate honest though the
    best error is chosen (Barber & Candès 2015, doi:10.1214/15-AOS1337): fewer than ten targets never have a rate of 0.1.
    """
    if n_decoy == 0 or len(target) == 0:
        return np.full(len(target), np.nan)
    order = np.argsort(target, kind="stable")
    # equal errors share one rate: count all that are as good
    error = target[order]
    found = np.searchsorted(error, error, side="right")
    chance = np.searchsorted(np.sort(decoy), error, side="right") * (n_target / n_decoy) + 1
    rate = np.minimum.accumulate(np.minimum(chance / found, 1.0)[::-1])[::-1]
    out = np.empty(len(target))
    out[order] = rate
    return out
