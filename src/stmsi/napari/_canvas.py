"""What napari draws over and around the layers: title, colour bars, scale bar, boxes side by side."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BAR_SIZE = (16, 260)
"""Width and height of a colour bar, in pixels; on a shorter one napari may write fewer than three labels."""
_CORNER = "bottom_right"
"""Of colour bars, so that the title has the whole width above."""
MARGIN = 0.12
"""Free border around a section, as a share of the canvas, for title and colour bars."""
_UNDER_BARS, _TITLE_HEIGHT = 50, 80
"""Pixels for the names under the colour bars, and for the title."""
_SPACING = 6
"""Pixels between two boxes."""


def canvas_overlay(viewer: Any, name: str) -> Any:
    """The scale bar or the text of a viewer; from napari 0.9 they belong to its canvas."""
    overlays = getattr(getattr(viewer, "canvas", None), "overlays", None)
    if overlays is not None and hasattr(overlays, name):
        return getattr(overlays, name)
    return {"text": lambda: viewer.text_overlay, "scale_bar": lambda: viewer.scale_bar}[name]()


def write_title(viewer: Any, text: str, *, box: bool = True) -> None:
    """Text above the sections; none hides it. `box`: on a ground of the canvas' colour, which napari draws slowly."""
    title = canvas_overlay(viewer, "text")
    _set_box(title, box)
    title.text, title.position, title.visible = text, "top_left", bool(text)


def show_scale_bar(viewer: Any) -> None:
    """A scale bar in micrometres."""
    bar = canvas_overlay(viewer, "scale_bar")
    bar.visible = True
    if not hasattr(getattr(viewer, "canvas", None), "overlays"):  # later, the units of the layers decide
        bar.unit = "um"


def place_scale_bar(viewer: Any, *, beside: bool) -> None:
    """In a corner of its own: the names of layers side by side take the whole width below."""
    canvas_overlay(viewer, "scale_bar").position = "top_right" if beside else "bottom_left"


def colour_bar(layer: Any, *, visible: bool, box: bool = True) -> None:
    """Show or hide the colour bar of a layer; those of points came with napari 0.9. `box`: as for :func:`write_title`.

    Hiding a bar whose layer is hidden is neither needed (napari does it) nor wise: shown before its layer has its box
    again, it would raise.
    """
    bar = getattr(layer, "face_colorbar", None) or getattr(layer, "colorbar", None)
    if bar is None or not hasattr(bar, "tick_length"):
        return
    _set_box(bar, box)
    if bar.visible == visible:
        return
    bar.position, bar.size, bar.font_size, bar.visible = _CORNER, BAR_SIZE, 9, visible


def _set_box(overlay: Any, box: bool) -> None:
    """The ground under an overlay, from napari 0.9. Every change of its size makes a new shader."""
    if hasattr(overlay, "box") and overlay.box != box:
        overlay.box = box


def name_on_canvas(layer: Any, *, visible: bool) -> None:
    """Write the name of a layer beside its colour bar, from napari 0.9."""
    name = getattr(layer, "name_overlay", None)
    if name is not None and name.visible != visible:
        name.position, name.font_size, name.visible = _CORNER, 9, visible


def canvas_grid(viewer: Any) -> Any:
    """The boxes of a canvas."""
    canvas = getattr(viewer, "canvas", None)
    return getattr(canvas, "grid", None) or viewer.grid


def at_once(viewer: Any) -> AbstractContextManager[None]:
    """Many layers come and go: the scene is put together once, at the end; from napari 0.9. Does not nest."""
    return getattr(viewer.layers, "batched_update", nullcontext)()


def arrange(viewer: Any, boxes: Sequence[Sequence[Any]], *, beside: bool) -> None:
    """Order the layers, the lowest first; `beside`: each group in a box of its own, all with the same camera.

    Groups side by side have the same number of layers, and follow one another.
    """
    grid, layers = canvas_grid(viewer), viewer.layers
    ours = [layer for box in boxes for layer in box if layer in layers]
    wanted = [*ours, *(layer for layer in layers if layer not in ours)]
    if wanted != list(layers) or not beside:
        grid.enabled = False  # on the way there, boxes would hold anything
    for i, layer in enumerate(wanted):
        if layers[i] is not layer:
            layers.move(layers.index(layer), i)
    if not beside:
        return
    with suppress(ValueError):  # settings of an older napari may not know spacing
        grid.spacing = _SPACING
    grid.stride, grid.shape, grid.enabled = len(boxes[0]), (1, -1), True


def fit_view(viewer: Any, *, bars: bool = True) -> None:
    """The whole section in every box, with room for the title; in a box taller than wide also for the colour bars, from napari 0.9."""
    viewer.reset_view(margin=MARGIN)
    size = getattr(getattr(viewer, "canvas", None), "size", None)
    if size is None or not bars or not len(viewer.layers):
        return
    camera = getattr(viewer, "scene", viewer).camera
    low, high = viewer.layers.extent.world
    free = (size[0] - (high - low)[-2] * camera.zoom) / 2
    up = min(max(BAR_SIZE[1] + _UNDER_BARS - free, 0), max(free - _TITLE_HEIGHT, 0))
    *rest, y, x = camera.center
    camera.center = (*rest, y + up / camera.zoom, x)
