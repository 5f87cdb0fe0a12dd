"""Put MSI pixels into the frame of the ST section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from stmsi._core.registration import Fit, TransformModel, fit_landmarks
from stmsi._keys import Key
from stmsi._logging import logger
from stmsi._validate import get_table, listing, require_spatialdata, sample_names

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData
    from spatialdata.transformations import BaseTransformation

    Landmarks: TypeAlias = tuple[ArrayLike | str, ArrayLike | str]

_USUAL_SCALE = 1.1


def align(
    sdata: SpatialData,
    *,
    landmarks: Landmarks | Mapping[str, Landmarks] | None = None,
    transformation: ArrayLike | BaseTransformation | Mapping[str, ArrayLike | BaseTransformation] | None = None,
    model: TransformModel = "similarity",
    sample: str | Sequence[str] | None = None,
    max_scale: float = 3.0,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.MSI,
) -> None:
    """Align the MSI pixels of one or more sections to their ST section.

    The transformation goes from the MSI frame (micrometres on the raster, ``<sample>_msi``) to the ST frame
    (micrometres, ``<sample>``). Mirrored sections are recognised from the landmarks.

    Parameters
    ----------
    sdata
        As made by :func:`stmsi.pp.combine`.
    landmarks
        Pairs of points that show the same place: ``(in the MSI frame, in the ST frame)``, each an array of shape
        (n, 2) in micrometres or the name of a points element, for one section; or a mapping from section to such a
        pair. `None` (and no `transformation`) takes the points ``<sample>_landmarks_msi`` and
        ``<sample>_landmarks_st``.
    transformation
        A known transformation instead: matrix of shape (3, 3) or (2, 3), or a SpatialData transformation, for one
        section or a mapping from section to it.
    model
        What landmarks are fitted with: ``"rigid"``, ``"similarity"`` or ``"affine"``.
    sample
        Sections to align; `None`: those that `landmarks` or `transformation` name, else all with MSI.
    max_scale
        Both frames are in micrometres, so a scale beyond this factor (either way) means mixed-up units and is refused.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The MSI table.

    Returns
    -------
    `None`. Sets the transformation of ``shapes["<sample>_pixels"]`` into the coordinate system ``<sample>`` and writes
    ``tables["msi"].uns["alignment"][<sample>]``: ``matrix`` (3 x 3), ``model``, ``mirrored``, ``scale``,
    ``n_landmarks``, ``residual_um`` and ``tre_um`` (leave-one-landmark-out) per landmark. When one section fails,
    nothing is changed in any.

    Raises
    ------
    ValueError
        Too few, unequal, collinear or duplicate landmarks, NaN, a scale that shows mixed-up units, a singular matrix.
    KeyError
        Unknown sections, or landmarks that are not there.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> bool(stmsi.pp.alignment_report(sdata).loc["P2S1", "mirrored"])
    True
    """
    from spatialdata.transformations import Affine, set_transformation

    require_spatialdata(sdata)
    table = get_table(sdata, table_key)
    available = sample_names(sdata, table_key, sample_key)
    if landmarks is not None and transformation is not None:
        msg = "Pass landmarks or transformation, not both."
        raise ValueError(msg)
    given = landmarks if landmarks is not None else transformation
    samples = _samples(sample, given, available)
    fits: dict[str, tuple[Fit, str]] = {}
    to_msi: dict[str, NDArray[np.float64]] = {}
    for name in samples:
        own = given[name] if isinstance(given, Mapping) else given
        try:
            if transformation is not None:
                fits[name] = _given(own), "given"
            else:
                fits[name] = fit_landmarks(*_landmark_arrays(sdata, name, own), model), model
            _check_scale(fits[name][0].matrix, max_scale)
            to_msi[name] = _to_msi_frame(sdata, name)
        except ValueError as error:
            msg = f"Section {name!r}: {error}"
            raise ValueError(msg) from error

    record = dict(table.uns.get(Key.uns.ALIGNMENT, {}))
    for name, (fit, used) in fits.items():
        pixels_to_st = Affine(fit.matrix @ to_msi[name], input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(sdata.shapes[Key.pixels(name)], pixels_to_st, to_coordinate_system=Key.st_frame(name))
        scale = _scale(fit.matrix)
        record[name] = {
            "matrix": fit.matrix,
            "model": used,
            "mirrored": fit.mirrored,
            "scale": scale,
            "n_landmarks": len(fit.residual),
            "residual_um": fit.residual,
            "tre_um": fit.tre,
        }
        if not 1 / _USUAL_SCALE < scale < _USUAL_SCALE:
            logger.warning("Section %r: the alignment scales by %.3g; is its pixel size right?", name, scale)
    table.uns[Key.uns.ALIGNMENT] = record


def alignment_report(
    sdata: SpatialData,
    *,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.MSI,
    st_table_key: str = Key.table.ST,
) -> pd.DataFrame:
    """How well each section is aligned.

    Parameters
    ----------
    sdata
        After :func:`stmsi.pp.align`.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The MSI table.
    st_table_key
        The ST table.

    Returns
    -------
    One row per section with MSI: ``aligned``, ``model``, ``n_landmarks``, ``mirrored``, ``rotation_deg``, ``scale``,
    ``rmse_um`` (at the landmarks), ``tre_um`` and ``tre_max_um`` (median and maximum of the leave-one-landmark-out
    target registration error), ``spots_covered`` (share of spots, after :func:`stmsi.pp.map_to_spots`).

    Raises
    ------
    KeyError
        The tables do not exist.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata, model="affine")
    >>> stmsi.pp.alignment_report(sdata)["n_landmarks"].tolist()
    [8, 8, 8]
    """
    require_spatialdata(sdata)
    record = get_table(sdata, table_key).uns.get(Key.uns.ALIGNMENT, {})
    st = get_table(sdata, st_table_key)
    rows = {}
    for name in sample_names(sdata, table_key, sample_key):
        row: dict[str, Any] = {"aligned": name in record}
        if name in record:
            r = record[name]
            tre = np.asarray(r["tre_um"], dtype=float)
            known = np.isfinite(tre).any()
            a = np.asarray(r["matrix"])
            row |= {
                "model": r["model"],
                "n_landmarks": int(r["n_landmarks"]),
                "mirrored": bool(r["mirrored"]),
                # of the matrix after undoing the mirror in x
                "rotation_deg": float(np.degrees(np.arctan2(-a[0, 1], a[1, 1]))),
                "scale": float(r["scale"]),
                "rmse_um": float(np.sqrt(np.mean(np.square(r["residual_um"])))) if r["n_landmarks"] else np.nan,
                "tre_um": float(np.nanmedian(tre)) if known else np.nan,
                "tre_max_um": float(np.nanmax(tre)) if known else np.nan,
            }
        if Key.obs.COVERAGE in st.obs:
            own = (st.obs[sample_key].astype(str) == name).to_numpy()
            row["spots_covered"] = float((st.obs.loc[own, Key.obs.COVERAGE] > 0).mean())
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(Key.obs.SAMPLE)


def _samples(sample: str | Sequence[str] | None, given: Any, available: list[str]) -> list[str]:
    if isinstance(sample, str):
        sample = [sample]
    if sample is None:
        if isinstance(given, Mapping):
            sample = list(given)
        elif given is not None and len(available) > 1:
            msg = f"There are several sections ({listing(available)}): pass a mapping from section, or sample=."
            raise ValueError(msg)
        else:
            sample = available
    unknown = [s for s in sample if s not in available or (isinstance(given, Mapping) and s not in given)]
    if unknown:
        known = [s for s in available if not isinstance(given, Mapping) or s in given]
        msg = f"Sections {listing(unknown)} have no MSI or nothing to align them with; known: {listing(known)}."
        raise KeyError(msg)
    return list(sample)


def _given(transformation: Any) -> Fit:
    if hasattr(transformation, "to_affine_matrix"):
        matrix = transformation.to_affine_matrix(("x", "y"), ("x", "y"))
    else:
        matrix = np.asarray(transformation, dtype=float)
        if matrix.shape == (2, 3):
            matrix = np.vstack([matrix, [0, 0, 1]])
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1]):
        msg = f"A transformation is a finite affine matrix of shape (3, 3) or (2, 3), found shape {matrix.shape}."
        raise ValueError(msg)
    determinant = float(np.linalg.det(matrix[:2, :2]))
    if abs(determinant) < 1e-12:
        msg = "The transformation is singular: it maps the section onto a line."
        raise ValueError(msg)
    return Fit(matrix, np.empty(0), np.empty(0), determinant < 0)


def _landmark_arrays(sdata: SpatialData, name: str, pair: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from spatialdata import transform
    from spatialdata.transformations import get_transformation

    if pair is None:
        pair = Key.landmarks(name, "msi"), Key.landmarks(name, "st")
    if len(pair) != 2:
        msg = f"Landmarks are a pair (in the MSI frame, in the ST frame), found {len(pair)} items."
        raise ValueError(msg)
    arrays = []
    for side, frame in zip(pair, (Key.msi_frame(name), Key.st_frame(name)), strict=True):
        if not isinstance(side, str):
            arrays.append(np.asarray(side, dtype=float))
            continue
        if side not in sdata.points:
            msg = (
                f"No points {side!r}; points elements: {listing(sdata.points)}. "
                "Pass landmarks={section: (msi_xy, st_xy)} or transformation=."
            )
            raise KeyError(msg)
        frames = get_transformation(sdata.points[side], get_all=True)
        if frame not in frames:
            msg = f"points {side!r} lie in {listing(frames)}, not in {frame!r}; landmarks are (in the MSI, in the ST frame)."
            raise ValueError(msg)
        element = transform(sdata.points[side], to_coordinate_system=frame)
        arrays.append(element[["x", "y"]].compute().to_numpy(dtype=float))
    return arrays[0], arrays[1]


def _to_msi_frame(sdata: SpatialData, name: str) -> NDArray[np.float64]:
    """Matrix from the pixel element to the MSI frame."""
    from spatialdata.transformations import get_transformation

    if Key.pixels(name) not in sdata.shapes:
        msg = f"No shapes {Key.pixels(name)!r}; shapes elements: {listing(sdata.shapes)}."
        raise KeyError(msg)
    known = get_transformation(sdata.shapes[Key.pixels(name)], get_all=True)
    if Key.msi_frame(name) not in known:
        return np.eye(3)
    return np.asarray(known[Key.msi_frame(name)].to_affine_matrix(("x", "y"), ("x", "y")))


def _scale(matrix: NDArray[np.float64]) -> float:
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _check_scale(matrix: NDArray[np.float64], max_scale: float) -> None:
    scale = _scale(matrix)
    if not 1 / max_scale < scale < max_scale:
        msg = (
            f"the transformation scales by {scale:.4g}, but both frames are in micrometres. Are the landmarks (or the "
            "pixel size) in another unit, pixels for example? Convert them, or raise max_scale."
        )
        raise ValueError(msg)
