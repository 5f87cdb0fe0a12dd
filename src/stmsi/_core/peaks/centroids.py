"""Where a profile peak stands: the maximum of a Gaussian that is fitted to its bins.

The centre of mass of a few bins is drawn to the middle of the bin that holds the summit. A Gaussian is a parabola on the
logarithmic scale, so a weighted line fit finds its maximum without iteration (Guo 2011, doi:10.1109/MSP.2011.941846).
Own code, because scipy.optimize fits one peak at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REACH = 0.66
"""How far a fit reaches from the centre in full widths at half maximum; a Gaussian has 30 % of its height there."""
_ROUNDS = 3


def gaussian_centres(
    offset: NDArray[np.float64],
    height: NDArray[np.float64],
    width: NDArray[np.float64],
    reach: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> NDArray[np.float64]:
    """Centres of many peaks, from their summits.

    `offset` (peaks x bins) is the distance of bins from the summit, `height` their height above the baseline, `width` the
    full width at half maximum (peaks,), all in the unit of `offset`; NaN marks bins that do not exist. `reach` limits
    each fit to so much left and right of the summit. A peak with fewer than three bins above the baseline, or whose fit
    has no maximum near its summit, gets its centre of mass.
    """
    scale = np.where(width > 0, width, 1.0)[:, None]
    x = offset / scale
    usable = np.isfinite(x) & np.isfinite(height) & (np.nan_to_num(height) > 0)
    if reach is not None:
        usable &= (x >= -reach[0][:, None] / scale - 1e-9) & (x <= reach[1][:, None] / scale + 1e-9)
    x, y = np.where(usable, x, 0.0), np.where(usable, height, 0.0)
    # at least the bins beside the summit, however coarse the axis
    beside = np.where(usable & (np.abs(x) > 0), np.abs(x), np.inf)
    nearest = np.sort(beside, axis=1)[:, :2]
    least = np.where(np.isfinite(nearest), nearest, 0.0).max(axis=1, initial=0.0)
    radius = np.maximum(_REACH, least * (1 + 1e-9))[:, None]
    inside = usable & (np.abs(x) <= radius)
    mass = np.where(inside, y, 0.0)
    total = mass.sum(axis=1)
    middle = np.divide((mass * x).sum(axis=1), total, out=np.zeros(len(x)), where=total > 0)
    centre, found = np.zeros(len(x)), np.zeros(len(x), bool)
    for _ in range(_ROUNDS):
        at, good = _vertex(x, y, inside)
        good &= np.abs(at) <= np.maximum(radius[:, 0], 0.5)
        centre, found = np.where(good, at, centre), found | good
        inside = usable & (np.abs(x - np.where(found, centre, 0.0)[:, None]) <= radius)
    return np.where(found, centre, middle) * scale[:, 0]


def _vertex(
    x: NDArray[np.float64], y: NDArray[np.float64], inside: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Maximum of a parabola through the logarithms of each row, weighted by the squared heights; and where there is one."""
    top = np.where(inside, y, 0.0).max(axis=1, initial=0.0)[:, None]
    share = np.divide(y, top, out=np.ones_like(y), where=inside & (top > 0))
    weight = np.where(inside, share**2, 0.0)
    log = np.log(share)
    moments = np.stack([(weight * x**power).sum(axis=1) for power in range(5)], axis=1)
    matrix = moments[:, np.add.outer(np.arange(3), np.arange(3))]
    right = np.stack([(weight * log * x**power).sum(axis=1) for power in range(3)], axis=1)
    solvable = (inside.sum(axis=1) >= 3) & (np.abs(np.linalg.det(matrix)) > 1e-12)
    matrix[~solvable] = np.eye(3)
    _, slope, bend = np.linalg.solve(matrix, right[..., None])[..., 0].T
    good = solvable & (bend < 0)
    return np.where(good, -slope / np.where(good, 2 * bend, 1.0), 0.0), good
