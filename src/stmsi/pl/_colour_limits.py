"""Colour maps and their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LogNorm, Normalize

from stmsi.pl._style import PERCENTILES, no_value

if TYPE_CHECKING:
    from numpy.typing import NDArray


def clipped_limits(
    values: NDArray[np.float64], percentiles: tuple[float, float] = PERCENTILES, *, positive: bool = False
) -> tuple[float, float]:
    """Colour limits at two percentiles of the finite values.

    A metabolite in less than one percent of the spots would vanish between its percentiles: it gets its full range.
    """
    finite = values[np.isfinite(values) & ((values > 0) if positive else True)]
    if len(finite) == 0:
        return (1.0, 10.0) if positive else (0.0, 1.0)
    low, high = (float(v) for v in np.percentile(finite, percentiles))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    if high <= low:
        high = low * 10 if positive else low + 1
    return low, high


def make_norm(
    values: NDArray[np.float64],
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    bounds: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
) -> Normalize:
    """A linear norm, clipped at percentiles where no limit is given."""
    low, high = clipped_limits(values, percentiles) if bounds is None else bounds
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low < high:
        if vmin is not None and vmax is not None:
            msg = f"vmin must be smaller than vmax, found {vmin!r} and {vmax!r}."
            raise ValueError(msg)
        low, high = (low, low + 1) if vmax is None else (high - 1, high)
    return Normalize(low, high)


def diverging_norm(values: NDArray[np.float64], percentile: float = PERCENTILES[1]) -> Normalize:
    """A norm with 0 in its middle."""
    finite = np.abs(values[np.isfinite(values)])
    reach = float(np.percentile(finite, percentile)) if len(finite) else 0.0
    reach = reach or float(finite.max(initial=0)) or 1.0
    return Normalize(-reach, reach)


def fill_norm(norm: Normalize, values: NDArray[np.float64], percentiles: tuple[float, float] = PERCENTILES) -> None:
    """Fill the open limits of a user's norm, as matplotlib's own autoscaling does."""
    low, high = clipped_limits(values, percentiles, positive=isinstance(norm, LogNorm))
    norm.vmin = low if norm.vmin is None else norm.vmin
    norm.vmax = high if norm.vmax is None else norm.vmax


def check_percentiles(percentiles: tuple[float, float]) -> tuple[float, float]:
    """Raise where two percentiles are no range."""
    low, high = percentiles
    if not 0 <= low < high <= 100:
        msg = f"percentiles are two rising numbers between 0 and 100, found {percentiles!r}."
        raise ValueError(msg)
    return float(low), float(high)


def get_cmap(cmap: str | Colormap | None, default: str) -> Colormap:
    """A colour map in which NaN is the grey of spots that are not covered."""
    found = cmap if isinstance(cmap, Colormap) else colormaps[cmap or default]
    return found.with_extremes(bad=no_value())
