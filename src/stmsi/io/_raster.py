"""The raster of pixels, deduced from their coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from stmsi._data.checks import listing
from stmsi._settings import logger

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_NEAR, _FILLED = 0.1, 0.02


class Raster(NamedTuple):
    """Places of pixels: `row` and `col` from 0, `pitch` and `origin` (the smallest coordinates) as (x, y)."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    pitch: tuple[float, float]
    origin: NDArray[np.float64]


def find_raster(x: NDArray[np.float64], y: NDArray[np.float64], path: Path) -> Raster:
    """Row and column of each pixel, and the pitch of the raster.

    The pitch is the usual smallest step along each axis; gaps in the raster are fine.

    Parameters
    ----------
    x, y
        Coordinates, shape (pixels,).
    path
        The file they come from, for messages.

    Returns
    -------
    The raster, see :class:`Raster`. A single row or column has the pitch of the other axis, a single pixel 1.

    Raises
    ------
    ValueError
        Where coordinates are missing, infinite, not on a raster, or repeat.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> raster = find_raster(np.array([10.0, 60.0, 160.0]), np.zeros(3), Path("section.csv"))
    >>> raster.col.tolist(), raster.row.tolist(), raster.pitch
    ([0, 1, 3], [0, 0, 0], (50.0, 50.0))
    """
    col, pitch_x = _axis(x, f"{path.name}: x")
    row, pitch_y = _axis(y, f"{path.name}: y")
    _check_positions(x, y, row, col, path)
    pitch = (pitch_x or pitch_y or 1.0, pitch_y or pitch_x or 1.0)  # a single line tells only one of them
    return Raster(row, col, pitch, np.array([x.min(), y.min()]))


def size_from_pitch(pitch: tuple[float, float], path: Path) -> tuple[float, float]:
    """Pixel size (x, y) in micrometres that the pitch of the coordinates tells.

    Raises
    ------
    ValueError
        Where the pitch is that of raster indices.
    """
    if min(pitch) <= 1 + 1e-6:
        msg = (
            f"The coordinates of {path.name} have a pitch of {pitch[0]:.4g} x {pitch[1]:.4g}, so they are raster indices "
            "(or not micrometres) and do not tell the size of a pixel; pass pixel_size= (micrometres)."
        )
        raise ValueError(msg)
    logger.info("%s: pixels of %.4g x %.4g um, the pitch of the coordinates", path.name, *pitch)
    return pitch


def _axis(values: NDArray[np.float64], what: str) -> tuple[NDArray[np.int64], float | None]:
    """Index of each coordinate on its raster, and the pitch (`None` where all are the same)."""
    if not np.isfinite(values).all():
        msg = (
            f"{what} has {int((~np.isfinite(values)).sum())} coordinates that are missing or infinite; drop these rows."
        )
        raise ValueError(msg)
    unique, inverse = np.unique(values, return_inverse=True)
    step = np.diff(unique)
    # equal positions may differ by a rounding error of their file
    real = step > 1e-6 * max(unique[-1] - unique[0], 1e-12)
    if not real.any():
        return np.zeros(len(values), dtype=np.int64), None
    smallest = step[real].min()
    pitch = float(np.median(step[real][step[real] < 1.5 * smallest]))
    # counted step by step, so that an error of the pitch does not add up
    index = np.concatenate([[0], np.cumsum(np.where(real, np.maximum(np.rint(step / pitch), 1), 0))])
    pitch, start = np.polyfit(index, unique, 1)
    off = np.abs(unique - start - index * pitch) / pitch
    filled = (real.sum() + 1) / (index[-1] + 1)
    if off.max() > _NEAR or (filled < _FILLED and len(unique) > 1 / _FILLED):
        worst = listing(unique[np.argsort(-off)[:3]])
        msg = (
            f"{what} coordinates are not on a raster of pitch {pitch:.4g} (worst: {worst}). Rotated or registered "
            "coordinates cannot be read as pixels: use the raster coordinates, or name them by x_key= and y_key=."
        )
        raise ValueError(msg)
    return index[inverse].astype(np.int64), float(f"{pitch:.9g}")  # without the rounding errors of the fit


def _check_positions(
    x: NDArray[np.float64], y: NDArray[np.float64], row: NDArray[np.int64], col: NDArray[np.int64], path: Path
) -> None:
    repeated = pd.DataFrame({"row": row, "col": col}).duplicated().to_numpy()
    if repeated.any():
        places = listing(zip(x[repeated].tolist(), y[repeated].tolist(), strict=True))
        msg = (
            f"{path}: {int(repeated.sum())} pixels share the position (x, y) of another one: {places}. Write one file per "
            "section, or average them."
        )
        raise ValueError(msg)
