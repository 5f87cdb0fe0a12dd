"""Read the input folders of MAGPIE: Visium, MSI and the landmarks between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._core.registration.landmarks import apply_affine, fit_landmarks
from stmsi._core.registration.warps import homogeneous
from stmsi._data.checks import chosen, listing
from stmsi._data.containers import check_file, check_folder, inside
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_SPOT_DIAMETER, filled_text
from stmsi._data.small_files import read_lines
from stmsi._settings import logger
from stmsi.io._pixels import RESERVED, pixels_from_frame, section_of
from stmsi.io._read_visium import visium_section
from stmsi.io._text_table import check_numbers, check_repeats, read_text_table, require_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

_VISIUM, _MSI = "visium", "msi"
_INTENSITIES, _METADATA, _MODIFIED = "MSI_intensities.csv", "MSI_metadata.csv", "MSI_metadata_modified.csv"
_DIRECT, _TO_HE, _HE_TO_HE = "landmarks_noHE.csv", "landmarks_MSI2HE.csv", "landmarks_HE2HE.csv"
_SPOT, _X, _Y = "spot_id", "x", "y"
_LEFT, _RIGHT = ["X_left", "Y_left"], ["X_right", "Y_right"]
_LAYOUT = "folders <sample>/visium and <sample>/msi (MSI_intensities.csv, MSI_metadata.csv)"


class _Pairs(NamedTuple):
    """Landmarks: in the coordinates of the MSI metadata, and in pixels of the hires image of Visium."""

    msi: NDArray[np.float64]
    visium: NDArray[np.float64]
    affine: NDArray[np.float64]  # what MAGPIE fits them with, step by step, (3, 3)


def read_magpie(
    path: str | Path,
    *,
    sample: str | Sequence[str] | None = None,
    pixel_size: float | tuple[float, float] | None = None,
    images: bool = True,
    keep_off_tissue: bool = True,
) -> SpatialData:
    """Read the input folder of the MAGPIE pipeline, with the landmarks that were set in its app.

    Parameters
    ----------
    path
        The folder ``input`` with one folder a sample, or the folder of one sample: ``visium/`` (Space Ranger),
        ``msi/MSI_intensities.csv`` (``spot_id``, then one column an ion), ``msi/MSI_metadata.csv`` (``spot_id``, ``x``,
        ``y``, further columns; ``MSI_metadata_modified.csv`` of the app goes first) and the landmarks.
    sample
        Samples to read; `None`: all folders with ``msi/``, as ``selected.txt`` and ``exclude.txt`` say.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``. By default the pitch of the places where it is above 1; places with
        a pitch of 1 are raster indices, which do not tell the size.
    images
        Whether to keep the histology of Visium.
    keep_off_tissue
        Whether to keep spots outside the tissue, as MAGPIE does by default; their counts are in the raw matrix of Space
        Ranger, if that is there. ``obs["in_tissue"]`` marks them, so that they can be left out before a model is trained.

    Returns
    -------
    SpatialData as made by :func:`stmsi.pp.combine`, with the landmarks as points ``<sample>_landmarks_msi`` and
    ``<sample>_landmarks_st``, which :func:`stmsi.pp.align` takes by itself. They come from ``landmarks_MSI2HE.csv`` and
    ``landmarks_HE2HE.csv``, the two steps over a histology of the MSI section, where ``msi/`` holds that image (``MSI_HE.*``)
    or there is no other file (the second step is fitted as an affine transformation); else from ``landmarks_noHE.csv``.
    ``uns["msi"]["attrs"][<sample>]`` holds ``pixel_size``, ``file``, ``landmarks`` (the files used), ``origin`` and
    ``pitch`` of the places, and ``affine``: the transformation that MAGPIE fits (MSI frame to ST frame, micrometres, shape
    (3, 3)), which puts pixels on the spots that it matched them to. :func:`stmsi.pp.align` fits a similarity by default.

    Raises
    ------
    FileNotFoundError
        A folder or file is missing.
    KeyError
        `sample` names a sample that is not there.
    ValueError
        The two tables of MSI hold different pixels, a table is not as described, the pixel size is unknown, or landmarks
        are incomplete, too few or on a line.

    Notes
    -----
    Williams et al. 2026, https://doi.org/10.1038/s41467-025-68003-w; layout: https://core-bioinformatics.github.io/magpie.
    Landmarks of MSI are in the ``x`` and ``y`` of its metadata (the centres of pixels), those of Visium in pixels of
    ``tissue_hires_image.png``.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.read_magpie("input", pixel_size=100)  # doctest: +SKIP

    As MAGPIE aligns it:

    >>> attrs = sdata.tables["msi"].uns["msi"]["attrs"]  # doctest: +SKIP
    >>> stmsi.pp.align(sdata, transformation={name: a["affine"] for name, a in attrs.items()})  # doctest: +SKIP
    """
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    from stmsi.pp import combine

    folders = _folders(check_folder(Path(path), _LAYOUT))
    names = chosen(list(folders), sample, str(path))
    st, msi, points, without = {}, {}, {}, []
    for name in names:
        pairs, used = _landmarks(folders[name])
        msi[name] = _msi(folders[name], name, pixel_size, used)
        st[name], um_per_px = visium_section(
            folders[name] / _VISIUM, name, VISIUM_SPOT_DIAMETER, images, keep_off_tissue, None
        )
        if keep_off_tissue and (st[name].tables[Key.table.ST].obs[Key.obs.IN_TISSUE] != 0).all():
            logger.info("%s: no counts of spots off the tissue, which MAGPIE matches too (raw_feature_bc_matrix)", name)
        if pairs is None:
            without.append(name)
            continue
        raster = msi[name].tables[Key.table.MSI].uns[Key.uns.MSI]["attrs"][name]
        to_um = np.asarray(raster["pixel_size"]) / raster["pitch"]
        in_msi = (pairs.msi - raster["origin"]) * to_um + 0.5 * np.asarray(raster["pixel_size"])
        into_frame = homogeneous(np.diag(to_um), (0.5 * np.asarray(raster["pitch"]) - raster["origin"]) * to_um)
        raster["affine"] = np.diag([um_per_px, um_per_px, 1.0]) @ pairs.affine @ np.linalg.inv(into_frame)
        for modality, xy, frame in (
            ("msi", in_msi, Key.msi_frame(name)),
            ("st", pairs.visium * um_per_px, Key.st_frame(name)),
        ):
            points[Key.landmarks(name, modality)] = PointsModel.parse(xy, transformations={frame: Identity()})
    sdata = combine(st, msi)
    for key, element in points.items():
        sdata.points[key] = element
    if without:
        remedy = "pass landmarks= or transformation= to pp.align"
        logger.warning("Samples without landmarks: %s; %s", listing(without), remedy)
    return sdata


def _folders(root: Path) -> dict[str, Path]:
    """Folder of each sample, by its safe name."""
    if (root / _MSI).is_dir():
        return {safe_ids([root.resolve().name])[0]: root}
    found = {p.name: p for p in sorted(root.iterdir()) if (p / _MSI).is_dir()}
    if not found:
        msg = f"{root} is no input of MAGPIE: expected {_LAYOUT}; found {inside(root)}."
        raise FileNotFoundError(msg)
    files = [root / "selected.txt", root / "exclude.txt"]
    selected, excluded = (
        {line.strip() for line in read_lines(f, "a list of samples")} if f.exists() else set() for f in files
    )
    keep = [name for name in found if name in (selected - {""} or found) and name not in excluded]
    if not keep:
        msg = f"selected.txt and exclude.txt of {root} leave no sample of {listing(found)}."
        raise ValueError(msg)
    return dict(zip(safe_ids(keep), [found[name] for name in keep], strict=True))


def _msi(folder: Path, sample: str, pixel_size: float | tuple[float, float] | None, landmarks: str) -> SpatialData:
    """The MSI of a sample: intensities of one file at the places of another."""
    file, places_file = folder / _MSI / _INTENSITIES, folder / _MSI / _MODIFIED
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
    ions = frame.drop(columns=frame.columns.intersection([_X, _Y])).loc[places.index]
    obs = places.drop(columns=[_X, _Y, *places.columns.intersection(list(RESERVED))])
    obs = obs.assign(**{str(c): filled_text(obs[c]) for c in obs.select_dtypes(exclude=["number", "bool"])})
    obs.columns = pd.Index(safe_ids(obs.columns))
    pixels = pixels_from_frame(ions.assign(**places[[_X, _Y]]), file, fixed=True)._replace(obs=obs.reset_index())
    attrs = {"format": "magpie", "landmarks": landmarks}
    return section_of(pixels, file, sample=sample, pixel_size=pixel_size, attrs=attrs, places=places_file)


def _by_spot(file: Path) -> pd.DataFrame:
    frame = read_text_table(file)
    require_columns(frame, (_SPOT,), file, "It names each pixel, alike in both tables.")
    frame = frame.set_index(frame[_SPOT].astype(str).rename(_SPOT)).drop(columns=_SPOT)
    check_repeats(frame.index, file, _SPOT)
    return frame


def _landmarks(folder: Path) -> tuple[_Pairs | None, str]:
    """The landmarks of a sample and the files they come from."""
    two_steps = (folder / _TO_HE).exists() and (folder / _HE_TO_HE).exists()
    direct = (folder / _DIRECT).exists()
    if two_steps and (not direct or any((folder / _MSI).glob("MSI_HE.*"))):
        first, second = _pairs(folder / _TO_HE), _pairs(folder / _HE_TO_HE)
        pairs = _Pairs(first.msi, apply_affine(second.affine, first.visium), second.affine @ first.affine)
        return pairs, f"{_TO_HE}, {_HE_TO_HE}"
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
    here, there = (frame[side].to_numpy(dtype=np.float64) for side in (_LEFT, _RIGHT))
    try:
        return _Pairs(here, there, fit_landmarks(here, there, "affine").matrix)
    except ValueError as error:
        msg = f"{file}: {error}"
        raise ValueError(msg) from error
