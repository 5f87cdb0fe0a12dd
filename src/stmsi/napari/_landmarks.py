"""Layers on which landmarks are clicked, and the landmarks that were clicked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.registration.landmarks import apply_affine
from stmsi._data.checks import listing, require_spatialdata, suggest
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, get_table, instances, require_sample
from stmsi.napari._metabolite_layers import OWN, PLAIN, coloured, section_table, spot_geometry
from stmsi.pl._colour_limits import get_cmap, make_norm
from stmsi.pl._metabolite_layers import one_section
from stmsi.pl._sections import load_section
from stmsi.pl._style import INTENSITY_CMAP

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.napari._metabolite_layers import LayerData

_GAP = 0.1
"""Free space between the two sections, as a share of the width of the left one."""
_COLOUR = "#ff4fd8"
_SIDES = ("msi", "st")
_TAIL = "_landmarks_"


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
    :func:`stmsi.napari.landmarks`. Points are numbered, and start with the landmarks that the SpatialData holds.

    Parameters
    ----------
    sdata
        SpatialData with ST and MSI, aligned or not.
    sample
        The section; may be left out where there is only one.
    ion, gene
        Id of the ion that colours the pixels, and gene that colours the spots; `None`: the sum of all.
    msi_table_key, table_key, sample_key
        The MSI and the ST table, and the column of ``obs`` with the section name, in both.

    Returns
    -------
    Layer data tuples: pixels, spots and the two layers of points. Coordinates are (y, x) in micrometres of the frames
    ``<sample>_msi`` (before any alignment) and ``<sample>``; only ``translate`` moves the ST layers to the right.

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
    name = one_section(st, sample_key, sample)
    pixels = np.flatnonzero(require_sample(msi, sample_key) == name)
    if len(pixels) == 0 or Key.pixels(name) not in sdata.shapes:
        msg = f"Section {name!r} has no MSI pixels to click landmarks on; shapes: {listing(sdata.shapes)}."
        raise KeyError(msg)
    left = _pixels(sdata, msi, name, pixels, ion)
    spots = load_section(sdata, st, name, sample_key=sample_key)
    kind, places, shape = spot_geometry(spots)
    half = left[1]["size"][:, None] / 2
    low, high = (left[0] - half).min(axis=0), (left[0] + half).max(axis=0)
    # tops and left edges side by side
    offset = np.array([low[0] - spots.bounds[1], high[1] + _GAP * (high[1] - low[1]) - spots.bounds[0]])
    options = {**_coloured(f"{name} ST", st, spots.rows, gene, "gene", "magma"), **shape, "translate": offset}
    options["metadata"] = section_table(st, spots.rows) | {OWN: {"role": "st", "sample": name}}
    size = float(2 * np.median(spots.radius))
    clicks = [_clicks(sdata, name, side, size, at) for side, at in (("msi", np.zeros(2)), ("st", offset))]
    return [left, (places, options, kind), *clicks]


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
    options = _coloured(f"{name} MSI", msi, rows, ion, "ion", INTENSITY_CMAP)
    options |= {**PLAIN, "symbol": "square", "size": side, "metadata": {OWN: {"role": "msi", "sample": name}}}
    return centre[:, ::-1].copy(), options, "points"


def _coloured(
    layer: str, table: Any, rows: NDArray[np.int64], name: str | None, what: str, cmap: str
) -> dict[str, Any]:
    """Colours by one variable, or by the sum of all, on the scale log1p: outlines show that a linear scale hides."""
    if name is not None and name not in table.var_names:
        msg = f"No {what} {name!r}; available: {listing(table.var_names)}.{suggest(name, table.var_names)}"
        raise KeyError(msg)
    X = table.X[rows]
    values = np.asarray(X.sum(axis=1) if name is None else as_csr(X[:, [table.var_names.get_loc(name)]]).todense())
    values = np.log1p(np.clip(values.ravel().astype(np.float64), 0, None))
    norm = make_norm(values)
    return coloured(layer, values, get_cmap(None, cmap), (float(norm.vmin or 0.0), float(norm.vmax or 1.0)))


def _clicks(sdata: Any, name: str, side: str, size: float, offset: NDArray[np.float64]) -> LayerData:
    """The layer that takes the clicks of one side, with the landmarks that are there."""
    element = Key.landmarks(name, side)
    yx = np.empty((0, 2))
    if element in sdata.points:
        from stmsi.pp._alignment.landmark_input import points_of

        frame = Key.msi_frame(name) if side == "msi" else Key.st_frame(name)
        yx = points_of(sdata, element, frame)[:, ::-1].copy()
    options = {"name": element, "ndim": 2, "size": size, "symbol": "cross", "face_color": _COLOUR, "border_width": 0.0}
    return yx, options | {"translate": offset, "metadata": {OWN: {"landmarks": side, "sample": name}}}, "points"


def landmarks(viewer: Any, *, sample: str | None = None) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Read the landmarks clicked into a viewer, as :func:`stmsi.pp.align` takes them.

    Parameters
    ----------
    viewer
        Viewer with the layers of :func:`stmsi.napari.landmark_layers`, or with points layers of your own named
        ``<sample>_landmarks_msi`` and ``<sample>_landmarks_st`` whose data lie in the frames of that name.
    sample
        Only this section; `None`: all in the viewer.

    Returns
    -------
    For each section the places in the MSI frame and in the ST frame, arrays (n, 2) of x and y in micrometres, in the order
    of the clicks: ``stmsi.pp.align(sdata, landmarks=stmsi.napari.landmarks(viewer))``.

    Raises
    ------
    KeyError
        No such layers, or not for `sample`.
    ValueError
        The two sides of a section differ in number, or there are fewer than three pairs.

    Examples
    --------
    >>> from types import SimpleNamespace as Layer
    >>> import numpy as np
    >>> import stmsi
    >>> yx = np.array([[0.0, 10.0], [5.0, 20.0], [90.0, 30.0]])
    >>> clicked = [Layer(name=f"s1_landmarks_{side}", data=yx, metadata={}) for side in ("msi", "st")]
    >>> in_msi, in_st = stmsi.napari.landmarks(Layer(layers=clicked))["s1"]
    >>> in_msi[0]
    array([10.,  0.])
    """
    found: dict[str, dict[str, Any]] = {}
    for layer in viewer.layers:
        own = layer.metadata.get(OWN, {})
        section, _, side = layer.name.rpartition(_TAIL)
        section, side = own.get("sample", section), own.get("landmarks", side)
        if side in _SIDES and section:
            found.setdefault(str(section), {})[side] = layer
    found = {section: sides for section, sides in found.items() if sample is None or section == sample}
    if not found:
        of, names = "" if sample is None else f" of section {sample!r}", listing(layer.name for layer in viewer.layers)
        msg = f"The viewer has no layers with landmarks{of}; layers: {names}. stmsi.napari.landmark_layers makes them."
        raise KeyError(msg)
    out = {}
    for section, sides in found.items():
        missing = [side for side in _SIDES if side not in sides]
        if missing:
            msg = f"Section {section!r} has no layer {f'{section}{_TAIL}{missing[0]}'!r}; landmarks are pairs."
            raise KeyError(msg)
        msi, st = (np.asarray(sides[side].data, dtype=float).reshape(-1, 2)[:, ::-1].copy() for side in _SIDES)
        if len(msi) != len(st):
            clicked = (
                f"{len(msi)} landmarks in MSI and {len(st)} in ST; click the same places in the same order in both."
            )
            msg = f"Section {section!r} has {clicked}"
            raise ValueError(msg)
        if len(msi) < 3:
            msg = f"Section {section!r} has {len(msi)} pairs of landmarks; at least three are needed, six are better."
            raise ValueError(msg)
        out[section] = (msi, st)
    return out
