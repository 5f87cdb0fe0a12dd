"""Layers on which landmarks are clicked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.registration.landmarks import apply_affine
from stmsi._data.checks import listing, require_spatialdata, suggest
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, instances, require_sample
from stmsi.napari._metabolite_layers import OWN, VALUE, napari_colormap, section_table, spot_geometry
from stmsi.pl._colour_limits import get_cmap, make_norm
from stmsi.pl._metabolite_layers import table_samples
from stmsi.pl._sections import load_section
from stmsi.pl._style import INTENSITY_CMAP

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.napari._metabolite_layers import LayerData

_GAP = 0.1
"""Free space between the two sections, as a share of the width of the left one."""
_COLOUR = "#ff4fd8"


def landmark_layers(
    sdata: SpatialData,
    *,
    sample: str | None = None,
    ion: str | None = None,
    gene: str | None = None,
    msi_table_key: str = Key.table.MSI,
    table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
) -> list[LayerData]:
    """Layers for clicking the landmarks of a section: MSI pixels on the left, spots on the right.

    Needs neither napari nor Qt. Add them with :func:`stmsi.napari.add_layers`, click the same places in the same order
    into the layers ``"<sample>_landmarks_msi"`` and ``"<sample>_landmarks_st"``, and read them with
    :func:`stmsi.napari.landmarks`. Points are numbered. Landmarks that the SpatialData holds already are there from the
    start.

    Parameters
    ----------
    sdata
        SpatialData with ST and MSI, aligned or not.
    sample
        The section; may be left out where there is only one.
    ion
        Id of the ion that colours the pixels; `None`: the sum of all.
    gene
        Gene that colours the spots; `None`: the sum of all.
    msi_table_key, table_key
        The MSI and the ST table.
    sample_key
        Column of ``obs`` with the section name, in both.

    Returns
    -------
    Layer data tuples: pixels, spots and the two layers of points. Coordinates are (y, x) in micrometres of the frames
    ``<sample>_msi`` (before any alignment) and ``<sample>``; the ST layers are moved to the right by ``translate`` only,
    so that data coordinates stay those of their frame.

    Raises
    ------
    KeyError
        An unknown section, table, ion or gene.
    ValueError
        Several sections and none named.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> layers = stmsi.napari.landmark_layers(sdata, sample="P1S1")
    >>> [options["name"] for _, options, _ in layers]
    ['P1S1 MSI', 'P1S1 ST', 'P1S1_landmarks_msi', 'P1S1_landmarks_st']
    """
    require_spatialdata(sdata)
    st, msi = get_table(sdata, table_key), get_table(sdata, msi_table_key)
    found = table_samples(st, sample_key, sample)
    if len(found) > 1:
        msg = f"There are {len(found)} sections; name one of them with sample=: {listing(found)}."
        raise ValueError(msg)
    name = found[0]
    pixels = np.flatnonzero(require_sample(msi, sample_key) == name)
    if len(pixels) == 0 or Key.pixels(name) not in sdata.shapes:
        msg = f"Section {name!r} has no MSI pixels to click landmarks on; shapes: {listing(sdata.shapes)}."
        raise KeyError(msg)
    left = _pixels(sdata, msi, name, pixels, ion)
    spots = load_section(sdata, st, name, sample_key=sample_key)
    kind, places, shape = spot_geometry(spots)
    left_edges, right_edges = _edges(left), spots.bounds
    # tops and left edges side by side
    offset = np.array(
        [left_edges[1] - right_edges[1], left_edges[2] + _GAP * (left_edges[2] - left_edges[0]) - right_edges[0]]
    )
    counts = _total(st, spots.rows, gene, "gene")
    metadata = {"metadata": section_table(st, spots.rows) | {OWN: {"role": "st", "sample": name}}}
    right = (places, {**_options(f"{name} ST", counts, "magma"), **shape, **metadata, "translate": offset}, kind)
    size = float(2 * np.median(spots.radius))
    return [left, right, _clicks(sdata, name, "msi", size, np.zeros(2)), _clicks(sdata, name, "st", size, offset)]


def _pixels(sdata: Any, msi: Any, name: str, rows: NDArray[np.int64], ion: str | None) -> LayerData:
    """The pixels of a section in the MSI frame, as squares."""
    import shapely
    from spatialdata.transformations import get_transformation

    element = sdata.shapes[Key.pixels(name)]
    at = element.index.get_indexer(instances(msi)[rows])
    geometry = element.geometry.to_numpy()[at]
    known = get_transformation(element, get_all=True)
    frame = Key.msi_frame(name)
    matrix = known[frame].to_affine_matrix(("x", "y"), ("x", "y")) if frame in known else np.eye(3)
    centre = apply_affine(matrix, shapely.get_coordinates(shapely.centroid(geometry)))
    side = np.sqrt(shapely.area(geometry) * abs(np.linalg.det(matrix[:2, :2])))
    options = _options(f"{name} MSI", _total(msi, rows, ion, "ion"), INTENSITY_CMAP)
    shape = {"symbol": "square", "size": side, "border_width": 0.0, "border_color": "transparent"}
    return centre[:, ::-1].copy(), {**options, **shape, "metadata": {OWN: {"role": "msi", "sample": name}}}, "points"


def _edges(layer: LayerData) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of squares."""
    yx, half = layer[0], layer[1]["size"][:, None] / 2
    (top, left), (bottom, right) = (yx - half).min(axis=0), (yx + half).max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _total(table: Any, rows: NDArray[np.int64], name: str | None, what: str) -> NDArray[np.float64]:
    """One variable, or the sum of all, on the scale log1p: outlines show that a linear scale hides."""
    if name is not None and name not in table.var_names:
        msg = f"No {what} {name!r}; available: {listing(table.var_names)}.{suggest(name, table.var_names)}"
        raise KeyError(msg)
    if name is None:
        values = np.asarray(table.X[rows].sum(axis=1)).ravel()
    else:
        column = table.X[rows][:, [table.var_names.get_loc(name)]]
        values = np.asarray(column.todense() if hasattr(column, "todense") else column).ravel()
    return np.log1p(np.clip(values.astype(np.float64), 0, None))


def _options(name: str, values: NDArray[np.float64], cmap: str) -> dict[str, Any]:
    norm = make_norm(values)
    return {
        "name": name,
        "features": {VALUE: values},
        "face_color": VALUE,
        "face_colormap": napari_colormap(get_cmap(None, cmap)),
        "face_contrast_limits": (float(norm.vmin or 0.0), float(norm.vmax or 1.0)),
    }


def _clicks(sdata: Any, name: str, side: str, size: float, offset: NDArray[np.float64]) -> LayerData:
    """The layer that takes the clicks of one side, with the landmarks that are there."""
    element = Key.landmarks(name, side)
    yx = np.empty((0, 2))
    if element in sdata.points:
        from stmsi.pp._alignment.landmark_input import _of_element

        frame = Key.msi_frame(name) if side == "msi" else Key.st_frame(name)
        yx = _of_element(sdata, element, frame)[:, ::-1].copy()
    options = {
        "name": element,
        "ndim": 2,
        "size": size,
        "symbol": "cross",
        "face_color": _COLOUR,
        "border_width": 0.0,
        "translate": offset,
        "metadata": {OWN: {"landmarks": side, "sample": name}},
    }
    return yx, options, "points"
