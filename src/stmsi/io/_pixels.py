"""The pixels of a table: their intensities, the raster that their coordinates tell, and the section they make."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.spectra.spectrum_arrays import mz_from_names
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.sections import msi_section
from stmsi._settings import logger
from stmsi.io._text_table import check_intensities, check_numbers, require_columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from spatialdata import SpatialData

RESERVED = (Key.obs.SAMPLE, Key.obs.ROW, Key.obs.COL, Key.obs.REGION, Key.obs.INSTANCE)
"""Columns of ``obs`` that stmsi writes itself."""
_NEAR, _FILLED = 0.1, 0.02
"""Largest distance of a coordinate from its raster, in pitches; smallest share of rows and columns that hold pixels."""


class Pixels(NamedTuple):
    """What a file holds, whatever its format."""

    X: NDArray[np.float64] | sp.csr_matrix
    var: pd.DataFrame
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    obs: pd.DataFrame


class Raster(NamedTuple):
    """Places of pixels: `row` and `col` from 0, `pitch` and `origin` (the smallest coordinates) as (x, y)."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    pitch: tuple[float, float]
    origin: NDArray[np.float64]


def pixels_from_frame(
    frame: pd.DataFrame,
    path: Path,
    x_key: str = "x",
    y_key: str = "y",
    obs_keys: Sequence[str] = (),
    *,
    fixed: bool = False,
) -> Pixels:
    """Intensities, ions and places of a wide table; `fixed`: the layout is given, so that errors name no options."""
    frame = frame.rename(columns=lambda name: str(name).strip())
    if len(frame) == 0:
        msg = f"{path} has a header but no pixels."
        raise ValueError(msg)
    require_columns(
        frame, (x_key, y_key, *obs_keys), path, "" if fixed else "Name the coordinates by x_key= and y_key=."
    )
    taken = [key for key in obs_keys if key in RESERVED]
    if taken:
        msg = f"obs_keys names {listing(taken)}, which stmsi writes itself; rename the column in {path.name}."
        raise ValueError(msg)
    ions = frame.drop(columns=list({x_key, y_key, *obs_keys}))
    if ions.shape[1] == 0:
        msg = f"{path} has no ion: its only columns are {listing(frame.columns)}."
        raise ValueError(msg)
    remedies = {"decimal": "pass decimal=','", "keep": ", or pass obs_keys= where the column is no ion"}
    for part in (frame[[x_key, y_key]], ions):
        check_numbers(part, path, **({} if fixed else remedies))
    var = pd.DataFrame({Key.var.MZ: mz_from_names(ions.columns)}, index=ions.columns)
    no_mz = var[Key.var.MZ].isna()
    if 0 < no_mz.sum() < len(var) / 2:
        warnings.warn(
            f"{path.name}: most columns are m/z, but {listing(var.index[no_mz])} are not; they are read as ions."
            + ("" if fixed else " Pass obs_keys= where they are not."),
            stacklevel=3,
        )
    x, y = (frame[key].to_numpy(dtype=np.float64) for key in (x_key, y_key))
    return Pixels(ions.to_numpy(dtype=np.float64), var, x, y, frame[list(obs_keys)])


def section_of(
    pixels: Pixels,
    path: Path,
    *,
    sample: str,
    pixel_size: float | tuple[float, float] | None,
    attrs: dict[str, Any],
    keep_empty: bool | None = None,
    places: Path | None = None,
) -> SpatialData:
    """The section that pixels make.

    `pixel_size` `None`: the pitch of the coordinates. `keep_empty`: whether to keep pixels without any ion; `None` does not
    look. `places` is the file of the coordinates where that is another one than `path`.
    """
    check_intensities(pixels.X, pixels.var.index, path)
    raster = find_raster(pixels.x, pixels.y, places or path)
    if pixel_size is None:
        pixel_size = _size_from(raster.pitch, places or path)
    X = sp.csr_matrix(pixels.X, dtype=np.float32)
    keep = slice(None) if keep_empty is None else measured_pixels(X, what=path.name, keep_empty=keep_empty)
    attrs = {"file": path.name, **attrs, "origin": raster.origin, "pitch": np.array(raster.pitch)}
    return msi_section(
        X[keep], pixels.var, raster.row[keep], raster.col[keep], sample=sample, pixel_size=pixel_size,
        obs=pixels.obs[keep], attrs=attrs,
    )  # fmt: skip


def measured_pixels(X: Any, *, what: str, keep_empty: bool) -> NDArray[np.bool_]:
    """Which pixels to keep: exports of a whole rectangle fill what was not measured with zeros."""
    matrix = sp.csr_matrix(X)
    matrix.eliminate_zeros()
    filled = np.diff(matrix.indptr) > 0
    if not filled.any():
        msg = f"{what} holds no intensity above 0."
        raise ValueError(msg)
    if keep_empty:
        return np.ones(len(filled), dtype=bool)
    if not filled.all():
        logger.info("%s: %d of %d pixels hold no ion and are left out", what, int((~filled).sum()), len(filled))
    return filled


def find_raster(x: NDArray[np.float64], y: NDArray[np.float64], path: Path) -> Raster:
    """Row and column of each pixel, and the pitch: the usual smallest step along each axis. Gaps in the raster are fine.

    A single row or column has the pitch of the other axis, a single pixel 1. `path` is named in errors.
    """
    col, pitch_x = _axis(x, f"{path.name}: x")
    row, pitch_y = _axis(y, f"{path.name}: y")
    repeated = pd.DataFrame({"row": row, "col": col}).duplicated().to_numpy()
    if repeated.any():
        places = listing(zip(x[repeated].tolist(), y[repeated].tolist(), strict=True))
        msg = (
            f"{path}: {int(repeated.sum())} pixels share the position (x, y) of another one: {places}. Write one file per "
            "section, or average them."
        )
        raise ValueError(msg)
    pitch = (pitch_x or pitch_y or 1.0, pitch_y or pitch_x or 1.0)  # a single line tells only one of them
    return Raster(row, col, pitch, np.array([x.min(), y.min()]))


def _size_from(pitch: tuple[float, float], path: Path) -> tuple[float, float]:
    """Pixel size (x, y) in micrometres; raises where the pitch is that of raster indices."""
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
    lost = ~np.isfinite(values)
    if lost.any():
        msg = f"{what} has {int(lost.sum())} coordinates that are missing or infinite; drop these rows."
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
