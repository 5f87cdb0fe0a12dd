"""Read the input folders of MAGPIE: Visium, MSI and the landmarks between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.sections import msi_section
from stmsi._settings import logger
from stmsi.io._deposit_layout import chosen
from stmsi.io._raster import find_raster, size_from_pitch
from stmsi.io._read_msi_table import pixels_from_frame
from stmsi.io._read_visium import visium_section
from stmsi.io._text_table import (
    check_file,
    check_folder,
    check_intensities,
    check_numbers,
    read_text_table,
    require_columns,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dask.dataframe import DataFrame as DaskDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.io._raster import Raster

_VISIUM, _MSI = "visium", "msi"
_INTENSITIES, _METADATA, _MODIFIED = "MSI_intensities.csv", "MSI_metadata.csv", "MSI_metadata_modified.csv"
_DIRECT, _TO_HE, _HE_TO_HE = "landmarks_noHE.csv", "landmarks_MSI2HE.csv", "landmarks_HE2HE.csv"
_SPOT, _X, _Y = "spot_id", "x", "y"
_LEFT, _RIGHT = ["X_left", "Y_left"], ["X_right", "Y_right"]
_LAYOUT = "folders <sample>/visium and <sample>/msi (MSI_intensities.csv, MSI_metadata.csv)"
_RESERVED = [Key.obs.SAMPLE, Key.obs.ROW, Key.obs.COL, Key.obs.REGION, Key.obs.INSTANCE]


class _Pairs(NamedTuple):
    """Landmarks: in the coordinates of the MSI metadata, and in pixels of the hires image of Visium."""

    msi: NDArray[np.float64]
    visium: NDArray[np.float64]


def read_magpie(
    path: str | Path,
    *,
    sample: str | Sequence[str] | None = None,
    pixel_size: float | tuple[float, float] | None = None,
    images: bool = True,
) -> SpatialData:
    """Read the input folder of the MAGPIE pipeline, with the landmarks that were set in its app.

    Parameters
    ----------
    path
        The folder ``input`` with one folder a sample, or the folder of one sample: ``visium/`` (Space Ranger),
        ``msi/MSI_intensities.csv`` (``spot_id``, then one column an ion), ``msi/MSI_metadata.csv`` (``spot_id``, ``x``,
        ``y``, further columns) and the landmarks. Where the app has turned or mirrored the MSI, its
        ``MSI_metadata_modified.csv`` holds the places, as in MAGPIE.
    sample
        Samples to read; `None`: all folders with ``msi/``, less those in ``exclude.txt`` or only those in
        ``selected.txt``, where there is such a file.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``. By default the pitch of the places where it is above 1; places with
        a pitch of 1 are raster indices, which do not tell the size.
    images
        Whether to keep the histology of Visium.

    Returns
    -------
    SpatialData as made by :func:`stmsi.pp.combine`: tables ``st`` and ``msi``, circles ``<sample>_spots`` and the image
    ``<sample>_he`` in the coordinate system ``<sample>``, squares ``<sample>_pixels`` in ``<sample>_msi``, all in
    micrometres. Landmarks are the points ``<sample>_landmarks_msi`` and ``<sample>_landmarks_st``, each in its own
    coordinate system, which :func:`stmsi.pp.align` takes by itself. They come from

    - ``landmarks_MSI2HE.csv`` and ``landmarks_HE2HE.csv``, the two steps over a histology of the MSI section, where both
      are there and ``msi/`` holds that image (``MSI_HE.*``) or there is no other file; the second step is fitted as an
      affine transformation;
    - else ``landmarks_noHE.csv``.

    Samples without landmarks get none. ``uns["msi"]["attrs"][<sample>]`` holds ``pixel_size``, ``file``, ``landmarks`` (the
    files used), and ``origin`` and ``pitch`` of the places.

    Raises
    ------
    FileNotFoundError
        Where a folder or file is missing.
    KeyError
        Where `sample` names a sample that is not there.
    ValueError
        Where the two tables of MSI hold different pixels, a table is not as described, the pixel size is unknown, or
        landmarks are incomplete, too few or on a line.

    Notes
    -----
    Williams et al. 2025, MAGPIE, https://doi.org/10.1038/s41467-025-68003-w; layout:
    https://core-bioinformatics.github.io/magpie. Landmarks of MSI are in the ``x`` and ``y`` of its metadata (the centres
    of pixels), those of Visium in pixels of ``tissue_hires_image.png``.

    Examples
    --------
    >>> from stmsi.io import read_magpie
    >>> sdata = read_magpie("input", pixel_size=100)  # doctest: +SKIP
    >>> stmsi.pp.align(sdata)  # by the landmarks of the folder  # doctest: +SKIP
    """
    from stmsi.pp import combine

    folders = _folders(check_folder(Path(path), _LAYOUT))
    names = chosen(list(folders), sample, str(path))
    st, msi, points = {}, {}, {}
    for name in names:
        folder = folders[name]
        msi[name], raster, size, pairs = _msi(folder, name, pixel_size)
        st[name], um_per_px = visium_section(folder / _VISIUM, sample=name, images=images)
        if pairs is not None:
            in_msi = ((pairs.msi - raster.origin) / raster.pitch + 0.5) * size
            points[Key.landmarks(name, "msi")] = _points(in_msi, Key.msi_frame(name))
            points[Key.landmarks(name, "st")] = _points(pairs.visium * um_per_px, Key.st_frame(name))
    sdata = combine(st, msi)
    for key, element in points.items():
        sdata.points[key] = element
    without = [name for name in names if Key.landmarks(name, "msi") not in points]
    if without:
        logger.warning(
            "Samples without landmarks: %s; pass landmarks= or transformation= to pp.align", listing(without)
        )
    return sdata


def _folders(root: Path) -> dict[str, Path]:
    """Folder of each sample, by its safe name."""
    if (root / _MSI).is_dir():
        return {safe_ids([root.resolve().name])[0]: root}
    found = {p.name: p for p in sorted(root.iterdir()) if (p / _MSI).is_dir()}
    if not found:
        inside = listing(sorted(p.name for p in root.iterdir()))
        msg = f"{root} is no input of MAGPIE: expected {_LAYOUT}; found {inside}."
        raise FileNotFoundError(msg)
    listed = {key: _names(root / f"{key}.txt") for key in ("selected", "exclude")}
    keep = [name for name in found if name in (listed["selected"] or found) and name not in (listed["exclude"] or ())]
    if not keep:
        msg = f"selected.txt and exclude.txt of {root} leave no sample of {listing(found)}."
        raise ValueError(msg)
    return dict(zip(safe_ids(keep), [found[name] for name in keep], strict=True))


def _names(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()] if file.exists() else []


def _msi(
    folder: Path, sample: str, pixel_size: float | tuple[float, float] | None
) -> tuple[SpatialData, Raster, NDArray[np.float64], _Pairs | None]:
    file = folder / _MSI / _INTENSITIES
    places_file = folder / _MSI / _MODIFIED
    if not places_file.exists():
        places_file = folder / _MSI / _METADATA
    frame, places = (_by_spot(check_file(f)) for f in (file, places_file))
    require_columns(places, (_X, _Y), places_file, "The metadata must hold the place of each pixel.")
    lost, extra = places.index.difference(frame.index), frame.index.difference(places.index)
    if len(lost) or len(extra):
        msg = (
            f"{file.name} and {places_file.name} of {folder} hold different pixels: {len(lost)} without intensities "
            f"({listing(lost[:3])}), {len(extra)} without a place ({listing(extra[:3])}). Their spot_id must be the same."
        )
        raise ValueError(msg)
    twice = frame.columns.intersection([_X, _Y])
    pixels = pixels_from_frame(frame.drop(columns=twice).loc[places.index].assign(**places[[_X, _Y]]), file, fixed=True)
    check_intensities(pixels.X, pixels.var.index, file)
    raster = find_raster(pixels.x, pixels.y, places_file)
    size = np.broadcast_to(
        np.asarray(size_from_pitch(raster.pitch, places_file) if pixel_size is None else pixel_size), 2
    )
    pairs, used = _landmarks(folder)
    obs = places.drop(columns=[_X, _Y, *places.columns.intersection(_RESERVED)])
    obs.columns = pd.Index(safe_ids(obs.columns))
    attrs = {
        "format": "magpie",
        "file": file.name,
        "landmarks": used,
        "origin": raster.origin,
        "pitch": np.array(raster.pitch),
    }
    sdata = msi_section(
        sp.csr_matrix(pixels.X),
        pixels.var,
        raster.row,
        raster.col,
        sample=sample,
        pixel_size=(float(size[0]), float(size[1])),
        obs=_storable(obs).reset_index(),
        attrs=attrs,
    )
    return sdata, raster, size, pairs


def _by_spot(file: Path) -> pd.DataFrame:
    frame = read_text_table(file)
    require_columns(frame, (_SPOT,), file, "It names each pixel, alike in both tables.")
    frame = frame.set_index(frame[_SPOT].astype(str).rename(_SPOT)).drop(columns=_SPOT)
    if not frame.index.is_unique:
        msg = f"{file} repeats spot_id: {listing(frame.index[frame.index.duplicated()].unique())}."
        raise ValueError(msg)
    return frame


def _storable(obs: pd.DataFrame) -> pd.DataFrame:
    """Text with gaps would not survive a write."""
    out = obs.copy()
    for column in out:
        if not pd.api.types.is_numeric_dtype(out[column]):
            out[column] = out[column].astype(object).where(out[column].notna(), "").astype(str)
    return out


def _landmarks(folder: Path) -> tuple[_Pairs | None, str]:
    """The landmarks of a sample and the files they come from."""
    two_steps = (folder / _TO_HE).exists() and (folder / _HE_TO_HE).exists()
    direct = (folder / _DIRECT).exists()
    if two_steps and (not direct or any((folder / _MSI).glob("MSI_HE.*"))):
        to_he, he_to_he = _pairs(folder / _TO_HE), _pairs(folder / _HE_TO_HE)
        return _Pairs(to_he.msi, _affine(he_to_he, folder / _HE_TO_HE)(to_he.visium)), f"{_TO_HE}, {_HE_TO_HE}"
    if direct:
        return _pairs(folder / _DIRECT), _DIRECT
    if (folder / _TO_HE).exists() != (folder / _HE_TO_HE).exists():
        msg = f"{folder} holds one of {_TO_HE} and {_HE_TO_HE}; they lead to Visium only together, or set {_DIRECT}."
        raise ValueError(msg)
    return None, "none"


def _pairs(file: Path) -> _Pairs:
    frame = read_text_table(file)
    require_columns(frame, (*_LEFT, *_RIGHT), file, "Landmarks of MAGPIE have these four columns.")
    frame = frame[[*_LEFT, *_RIGHT]]
    check_numbers(frame, file)
    left, right = (int(frame[side].notna().all(axis=1).sum()) for side in (_LEFT, _RIGHT))
    if frame.isna().any(axis=None):
        msg = f"{file} has {left} landmarks on the left and {right} on the right; every one needs its partner."
        raise ValueError(msg)
    if len(frame) < 3:
        msg = f"{file} has {len(frame)} landmarks; at least 3 are needed."
        raise ValueError(msg)
    return _Pairs(frame[_LEFT].to_numpy(dtype=np.float64), frame[_RIGHT].to_numpy(dtype=np.float64))


def _affine(pairs: _Pairs, file: Path) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The affine transformation that takes the left points to the right ones, as MAGPIE fits it."""
    from stmsi._core.registration.landmarks import apply_affine, fit_landmarks

    try:
        matrix = fit_landmarks(pairs.msi, pairs.visium, "affine").matrix
    except ValueError as error:
        msg = f"{file}: {error}"
        raise ValueError(msg) from error
    return lambda xy: apply_affine(matrix, xy)


def _points(xy: NDArray[np.float64], frame: str) -> DaskDataFrame:
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    return PointsModel.parse(xy, transformations={frame: Identity()})
