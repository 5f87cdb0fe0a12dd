"""Give layers new values in place, with one redraw each."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi.napari._metabolite_layers import OUTSIDE, VALUE, raster

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from stmsi.pl._sections import Section

    Limits = tuple[float, float]


def is_image(layer: Any) -> bool:
    """Whether a layer draws its spots as the pixels of an image."""
    return not hasattr(layer, "face_contrast_limits")


def colour_limits(layer: Any) -> Limits:
    """Limits of the colours of a layer."""
    low, high = (layer.contrast_limits if is_image(layer) else layer.face_contrast_limits) or (0.0, 1.0)
    return float(low), float(high)


def paint(
    layer: Any,
    section: Section,
    values: NDArray[np.float64],
    limits: Limits,
    *,
    clear: bool = False,
    shown: NDArray[np.bool_] | None = None,
) -> None:
    """Colour the spots of a layer by other values.

    `clear`: spots at the lower limit are transparent. `shown`: spots to draw, of points and images; `None`: all. Call
    :func:`tell_limits` afterwards.
    """
    if is_image(layer):
        pixels = raster(section, values, limits, clear=clear)
        if shown is not None and section.lattice is not None:
            pixels[section.lattice.row[~shown], section.lattice.col[~shown]] = OUTSIDE
        if tuple(layer.contrast_limits) != limits:
            layer.contrast_limits = limits
            layer.contrast_limits_range = limits  # the ends of napari's slider
        layer.data = pixels
        return
    _paint_spots(layer, values, limits)
    show_spots(layer, shown)


def show_spots(layer: Any, shown: NDArray[np.bool_] | None) -> None:
    """Draw some of the spots of a layer of points; `None`: all."""
    if hasattr(layer, "shown"):
        wanted = np.ones(len(layer.data), bool) if shown is None else shown
        if not np.array_equal(layer.shown, wanted):
            layer.shown = wanted


def _paint_spots(layer: Any, values: NDArray[np.float64], limits: Limits) -> None:
    foreign = list(layer.features.columns) != [VALUE]
    face = getattr(layer, "_face", None)
    # limits and values each redraw all spots, and one redraw at the end is enough
    quiet = nullcontext() if face is None or foreign else face.events.blocker_all()
    with warnings.catch_warnings(), quiet:
        # the View widget of napari-spatialdata may have coloured the layer by something else
        warnings.filterwarnings("ignore", "property used for face_color dropped", RuntimeWarning)
        if colour_limits(layer) != limits:
            layer.face_contrast_limits = limits
        layer.features = {VALUE: values}
        if foreign:
            layer.face_color = VALUE
            layer.face_color_mode = "colormap"
    if face is not None and not foreign:
        layer.events.face_color()


def tell_limits(layers: Iterable[Any]) -> None:
    """Tell colour bars the limits of painted layers. After all are painted: linked layers hear of it, and follow."""
    for layer in layers:
        face = getattr(layer, "_face", None)
        if face is not None:
            face.events.contrast_limits(value=face.contrast_limits)
