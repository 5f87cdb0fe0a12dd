"""napari layers of a metabolite, without napari."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import check_share
from stmsi._data.keys import Key
from stmsi._data.tables import instances
from stmsi.napari._metabolite_maps import CHANCE, MEASURED, MODES, PREDICTED, RESIDUAL, ROLES, WIDTH, MetaboliteMaps
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
CHANCE_CMAP = "cividis"


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
    pred_key
        Predictions in ``obsm``; presence and bounds are looked up beside them.
    metabolite_key
        Measured intensities in ``obsm``.
    table_key
        The ST table of a SpatialData.
    sample_key
        Column of ``obs`` with the section name.
    vmin, vmax
        Colour limits of measured and predicted; `None`: `percentiles` of both together.
    percentiles
        Percentiles at which colours are clipped.
    cmap
        Colour map of measured and predicted; `None`: viridis.
    residual_cmap
        Colour map of the residual, which diverges around 0; `None`: RdBu_r.
    spot_diameter
        In micrometres; `None`: the size in ``shapes["<sample>_spots"]``, and 55 um for an AnnData.
    opacity
        Opacity of the layers.

    Returns
    -------
    Layer data tuples (data, options, type), the lowest first: ``"measured"``, ``"predicted"``, ``"predicted - measured"``,
    ``"interval width"`` and ``"P(present)"``, as far as there are data. Coordinates are (y, x) in micrometres, spots are
    true to size: circles and squares are points, other outlines shapes. The values are in the feature ``"value"``; spots
    that MSI did not cover are NaN and drawn in grey, never as 0. Measured and predicted have one colour map and the same
    limits. ``metadata["stmsi"]`` names section, metabolite and role; ``metadata["adata"]`` is the section's table, which
    the *View* widget of napari-spatialdata lists.

    Raises
    ------
    KeyError
        An unknown metabolite (near names are suggested), section or table; neither measured nor predicted metabolites;
        a `mode` that needs predictions without any (the message names the call that makes them).
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
    >>> [options["name"] for _, options, _ in layers]
    ['measured', 'predicted', 'predicted - measured', 'interval width', 'P(present)']
    >>> [options["name"] for _, options, _ in layers if options["visible"]]
    ['measured', 'predicted']
    >>> layers[0][1]["face_contrast_limits"] == layers[1][1]["face_contrast_limits"]
    True
    """
    source = MetaboliteMaps(
        data, pred_key=pred_key, metabolite_key=metabolite_key, table_key=table_key, sample_key=sample_key
    )
    return build_layers(
        source,
        source.section(source.section_name(sample), spot_diameter=spot_diameter),
        source.resolve(metabolite),
        mode=mode,
        threshold=threshold,
        limits={"vmin": vmin, "vmax": vmax, "percentiles": percentiles},
        cmap=cmap,
        residual_cmap=residual_cmap,
        opacity=opacity,
    )


def build_layers(
    source: MetaboliteMaps,
    section: Section,
    metabolite: str,
    *,
    mode: str = "compare",
    threshold: float = 0.0,
    limits: dict[str, Any] | None = None,
    cmap: str | Colormap | None = None,
    residual_cmap: str | Colormap | None = None,
    opacity: float = 1.0,
) -> list[LayerData]:
    """The layers of a section whose spots are known."""
    source.check_mode(mode)
    check_share(opacity, "opacity")
    maps = source.maps(metabolite, section.rows, threshold)
    # a threshold must not move the colours of the spots that stay
    found = source.limits(source.maps(metabolite, section.rows), **(limits or {}))
    palettes = {
        MEASURED: get_cmap(cmap, INTENSITY_CMAP),
        PREDICTED: get_cmap(cmap, INTENSITY_CMAP),
        RESIDUAL: get_cmap(residual_cmap, RESIDUAL_CMAP),
        WIDTH: get_cmap(None, WIDTH_CMAP),
        CHANCE: get_cmap(None, CHANCE_CMAP),
    }
    kind, places, shape = spot_geometry(section)
    table = section_table(source.adata, section.rows)
    out: list[LayerData] = []
    for role in roles_of(source):
        options: dict[str, Any] = {
            "name": role,
            "features": {VALUE: maps[role]},
            "face_color": VALUE,
            "face_colormap": napari_colormap(palettes[role]),
            "face_contrast_limits": found[role],
            "opacity": opacity,
            "blending": "translucent",
            "visible": role in MODES[mode],
            "metadata": {OWN: {"role": role, "sample": section.name, "metabolite": metabolite}, **table},
            **shape,
        }
        out.append((places, options, kind))
    return out


def roles_of(source: MetaboliteMaps) -> list[str]:
    """Layers for which there are data."""
    of_mode = {"compare": [r for r in (MEASURED, PREDICTED) if r in source.frames]}
    shown = [role for mode in source.modes for role in of_mode.get(mode, MODES[mode])]
    return [role for role in ROLES if role in shown]


def spot_geometry(section: Section) -> tuple[str, Any, dict[str, Any]]:
    """Spots as napari draws them fastest: type of the layer, its data in (y, x) and options."""
    points = {"border_width": 0.0, "border_color": "transparent"}
    if section.outlines is None:
        return "points", section.xy[:, ::-1].copy(), {**points, "symbol": "disc", "size": 2 * section.radius}
    squares = _squares(list(section.outlines))
    if squares is not None:
        centre, side = squares
        return "points", centre[:, ::-1].copy(), {**points, "symbol": "square", "size": side}
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


def napari_colormap(cmap: Colormap) -> dict[str, Any]:
    """A colour map as napari takes it, in which NaN is the grey of spots that are not covered."""
    return {
        "colors": cmap(np.linspace(0, 1, 256)),
        "name": f"{OWN} {cmap.name}",
        "nan_color": tuple(float(v) for v in cmap.get_bad()),
    }


def section_table(adata: AnnData, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What the View widget of napari-spatialdata needs to colour the spots by genes, annotations and predictions."""
    attrs = adata.uns.get("spatialdata_attrs")
    if attrs is None:
        return {}
    return {
        "adata": adata[rows],
        "region_key": attrs["region_key"],
        "instance_key": attrs["instance_key"],
        "indices": instances(adata)[rows].to_list(),
    }
