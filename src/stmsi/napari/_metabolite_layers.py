"""napari layers of a metabolite, without napari."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import check_share
from stmsi._data.keys import TRAINED_ON, Key
from stmsi._data.tables import instances
from stmsi.napari._metabolite_maps import (
    BLEND,
    CHANCE,
    MEASURED,
    MODES,
    PREDICTED,
    RESIDUAL,
    ROLES,
    WIDTH,
    MetaboliteMaps,
)
from stmsi.pl._colour_limits import get_cmap
from stmsi.pl._style import INTENSITY_CMAP, PERCENTILES, RESIDUAL_CMAP, WIDTH_CMAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.colors import Colormap
    from numpy.typing import NDArray

    from stmsi._data.checks import Data
    from stmsi.pl._sections import Section

    LayerData = tuple[Any, dict[str, Any], str]

OWN = "stmsi"
"""Where layers keep what they show, in their metadata."""
VALUE = "value"
"""The feature by which spots are coloured; napari shows it under the pointer."""
_CHANCE_CMAP = "cividis"
INTENSITIES = (MEASURED, PREDICTED, BLEND)
"""Layers whose zero is a metabolite that is absent."""
OUTSIDE = np.float32(-1e30)
"""Pixel of an image in which there is no bin: below all limits, and so transparent."""
_ABOVE = 1e-6
"""Share of the limits' range by which the lowest values of an image lie above the lower limit, and so are drawn."""
PLAIN: dict[str, Any] = {"border_width": 0.0, "border_color": "transparent"}


@dataclass(frozen=True)
class Look:
    """How layers are coloured, as the user asked for it."""

    vmin: float | None = None
    vmax: float | None = None
    percentiles: tuple[float, float] = PERCENTILES
    cmap: str | Colormap | None = None
    residual_cmap: str | Colormap | None = None
    opacity: float = 1.0
    transparent_zeros: bool = False


def metabolite_layers(
    data: Data,
    metabolite: str,
    *,
    sample: str | None = None,
    mode: str = "compare",
    threshold: float = 0.0,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
    vmin: float | None = None,
    vmax: float | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    cmap: str | Colormap | None = None,
    residual_cmap: str | Colormap | None = None,
    spot_diameter: float | None = None,
    opacity: float = 1.0,
    transparent_zeros: bool = False,
) -> list[LayerData]:
    """Layers of a metabolite in one section, as napari takes them.

    Needs neither napari nor Qt. :func:`stmsi.napari.add_layers` adds the layers to a viewer; :func:`stmsi.napari.overlay`
    does so with a widget and the histology.

    Parameters
    ----------
    data
        SpatialData or AnnData with measured metabolites, predicted ones or both.
    metabolite
        Id or readable name.
    sample
        The section; may be left out where there is only one.
    mode
        Which layers are visible: ``"compare"`` (measured and predicted), ``"residual"``, ``"uncertainty"`` (width of the
        prediction interval) or ``"presence"``.
    threshold
        Spots whose predicted probability of presence is lower count as absent: they are predicted as 0.
    pred_key, metabolite_key
        Predicted and measured intensities in ``obsm``; presence and bounds are looked up beside the predictions.
    table_key, sample_key
        The ST table of a SpatialData, and the column of ``obs`` with the section name.
    vmin, vmax, percentiles
        Colour limits of measured and predicted; `None`: `percentiles` of both together.
    cmap, residual_cmap
        Colour maps of measured and predicted (`None`: viridis), and of the residual (`None`: RdBu_r).
    spot_diameter
        In micrometres; `None`: the size in ``shapes["<sample>_spots"]``, and 55 um for an AnnData.
    opacity
        Opacity of the layers.
    transparent_zeros
        Whether spots without the metabolite are left transparent in measured and predicted, for layers over histology.
        Their lower limit then is 0 where `vmin` does not set it.

    Returns
    -------
    Layer data tuples (data, options, type), the lowest first: ``"measured"``, ``"predicted"``, ``"predicted - measured"``,
    ``"interval width"`` and ``"P(present)"``, as far as the section has data. Coordinates are (y, x) in micrometres, spots
    are true to size: circles and squares are points, 5,000 and more bins without gaps an image, other outlines shapes. The
    values of points and shapes are in the feature ``"value"``, those of an image in its pixels. NaN, not covered by MSI, is
    grey. Measured and predicted share colour map and limits. ``metadata["stmsi"]`` names section, metabolite and role, and
    says whether the model was trained on the section (``trained_on``: ``"no"``, ``"yes"``, ``"partly"``, ``"unknown"``; empty
    where no model of stmsi has predicted); ``metadata["adata"]`` is the section's table for the *View* widget of
    napari-spatialdata.

    Raises
    ------
    KeyError
        An unknown metabolite (near names are suggested), section or table; no metabolites; a `mode` that needs predictions
        without any (the message names the call that makes them).
    ValueError
        Several sections and none named, an unknown mode, or a threshold that is no share.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> layers = stmsi.napari.metabolite_layers(sdata, "simPC(28:0)", sample="P1S1")
    >>> [options["name"] for _, options, _ in layers if options["visible"]]
    ['measured', 'predicted']
    """
    source = MetaboliteMaps(
        data, pred_key=pred_key, metabolite_key=metabolite_key, table_key=table_key, sample_key=sample_key
    )
    section = source.section(sample, spot_diameter=spot_diameter)
    look = Look(vmin, vmax, percentiles, cmap, residual_cmap, opacity, transparent_zeros)
    return build_layers(source, section, source.resolve(metabolite), look, mode=mode, threshold=threshold)


def build_layers(
    source: MetaboliteMaps,
    section: Section,
    metabolite: str,
    look: Look,
    *,
    mode: str = "compare",
    threshold: float = 0.0,
) -> list[LayerData]:
    """The layers of a section whose spots are known."""
    source.check_mode(mode)
    check_share(look.opacity, "opacity")
    maps = source.maps(metabolite, section.rows, threshold)
    # a threshold must not move the colours of the spots that stay
    limits = limits_of(source, source.maps(metabolite, section.rows), look)
    there = source.roles(section.rows)
    table = section_table(source.adata, section.rows)
    trained_on = source.trained_on(section.rows)
    out: list[LayerData] = []
    for role in (r for r in ROLES if r in there):
        data, options, kind = build_layer(section, role, maps[role], limits[role], look)
        own = {"role": role, "sample": section.name, "metabolite": metabolite, TRAINED_ON: trained_on}
        out.append((data, options | {"visible": role in MODES[mode], "metadata": {OWN: own, **table}}, kind))
    return out


def limits_of(
    source: MetaboliteMaps, maps: dict[str, NDArray[np.float64]], look: Look
) -> dict[str, tuple[float, float]]:
    """Limits of the colours of every layer."""
    pair = np.concatenate([maps[MEASURED], maps[PREDICTED]])
    start = look.vmin
    if look.transparent_zeros and start is None and np.nanmin(pair, initial=0.0) >= 0:
        start = 0.0  # whatever lies at the lower limit is transparent, and that must be absence alone
    out = source.limits(maps, start, look.vmax, look.percentiles)
    return out | {BLEND: out[MEASURED]}


def build_layer(
    section: Section, role: str, values: NDArray[np.float64], limits: tuple[float, float], look: Look
) -> LayerData:
    """One layer over the spots of a section."""
    palette = {
        RESIDUAL: get_cmap(look.residual_cmap, RESIDUAL_CMAP),
        WIDTH: get_cmap(None, WIDTH_CMAP),
        CHANCE: get_cmap(None, _CHANCE_CMAP),
    }.get(role) or get_cmap(look.cmap, INTENSITY_CMAP)
    clear = look.transparent_zeros and role in INTENSITIES
    plain: dict[str, Any] = {"opacity": look.opacity, "blending": "translucent"}
    lattice = section.lattice
    if lattice is not None:
        options: dict[str, Any] = {"name": role, "colormap": _colormap(palette, clear=True), "contrast_limits": limits}
        options |= {"interpolation2d": "nearest", "affine": pixels_to_world(lattice.matrix), **plain}
        return raster(section, values, limits, clear=clear), options, "image"
    kind, places, shape = spot_geometry(section)
    return places, {**coloured(role, values, palette, limits, clear=clear), **plain, **shape}, kind


def raster(
    section: Section, values: NDArray[np.float64], limits: tuple[float, float], *, clear: bool = False
) -> NDArray[np.float32]:
    """Bins that fill a lattice as the pixels of an image. `clear`: those at the lower limit are transparent."""
    lattice = section.lattice
    if lattice is None:
        msg = f"The spots of section {section.name!r} do not fill a lattice."
        raise ValueError(msg)
    out = np.full(lattice.shape, OUTSIDE)
    # the colours know only one value that is drawn as nothing: the lower limit and what lies below
    least = limits[0] if clear else limits[0] + _ABOVE * (limits[1] - limits[0])
    out[lattice.row, lattice.col] = values if clear else np.where(values < least, least, values)
    return out


def pixels_to_world(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine in (row, column) of the centres of pixels from one in (x, y) of their corners, both to micrometres."""
    swap = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    centre = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    return np.asarray(swap @ matrix @ swap @ centre)


def coloured(
    name: str, values: NDArray[np.float64], cmap: Colormap, limits: tuple[float, float], *, clear: bool = False
) -> dict[str, Any]:
    """Options of a layer whose spots are coloured by a value. `clear`: those at the lower limit are transparent."""
    return {
        "name": name,
        "features": {VALUE: values},
        "face_color": VALUE,
        "face_colormap": _colormap(cmap, clear=clear),
        "face_contrast_limits": limits,
    }


def _colormap(cmap: Colormap, *, clear: bool) -> dict[str, Any]:
    """A colour map as napari takes it; NaN is the grey of spots that are not covered."""
    nan = tuple(float(v) for v in cmap.get_bad())
    out = {"colors": cmap(np.linspace(0, 1, 256)), "name": f"{OWN} {cmap.name}", "nan_color": nan}
    return out | {"low_color": (0.0, 0.0, 0.0, 0.0)} if clear else out


def spot_geometry(section: Section) -> tuple[str, Any, dict[str, Any]]:
    """Spots as napari draws them fastest: type of the layer, its data in (y, x) and options."""
    if section.outlines is None:
        return "points", section.xy[:, ::-1].copy(), {**PLAIN, "symbol": "disc", "size": 2 * section.radius}
    squares = _squares(list(section.outlines))
    if squares is not None:
        return "points", squares[0][:, ::-1].copy(), {**PLAIN, "symbol": "square", "size": squares[1]}
    outlines = [o[:, ::-1].copy() for o in section.outlines]
    return "shapes", outlines, {"shape_type": "polygon", "edge_width": 0.0, "edge_color": "transparent"}


def _squares(outlines: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Centres and sides where all outlines are upright squares (bins), which points draw a hundred times faster."""
    if {len(o) for o in outlines} != {5}:
        return None
    ring = np.asarray(outlines)[:, :4]
    low, high = ring.min(axis=1), ring.max(axis=1)
    side = high - low
    slack = 1e-6 * side.max()
    at_corner = np.minimum(np.abs(ring - low[:, None]), np.abs(ring - high[:, None])) <= slack
    if not at_corner.all() or (np.abs(side[:, 0] - side[:, 1]) > slack).any():
        return None
    return (low + high) / 2, side[:, 0]


def section_table(adata: AnnData, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What the View widget of napari-spatialdata needs to colour the spots by genes, annotations and predictions."""
    attrs = adata.uns.get("spatialdata_attrs")
    if attrs is None:
        return {}
    keys = {key: attrs[key] for key in ("region_key", "instance_key")}
    return {"adata": adata[rows], **keys, "indices": instances(adata)[rows].to_list()}
