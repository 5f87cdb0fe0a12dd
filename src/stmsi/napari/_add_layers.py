"""Layer data tuples into a viewer."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi.napari._metabolite_layers import OWN
from stmsi.napari._metabolite_maps import MEASURED, PREDICTED
from stmsi.napari._requirements import require_napari

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stmsi.napari._metabolite_layers import LayerData

_LINKED = ("blending", "antialiasing", "shading", "canvas_size_limits", "contrast_limits", "colormap", "gamma")


def add_layers(viewer: Any, layers: Sequence[LayerData]) -> list[Any]:
    """Add the layers of :func:`stmsi.napari.metabolite_layers` or :func:`stmsi.napari.landmark_layers` to a viewer.

    Measured and predicted are linked: colour limits and drawing of the spots change in both. World coordinates are
    micrometres.

    Parameters
    ----------
    viewer
        ``napari.Viewer``, or ``napari.components.ViewerModel``, which needs neither Qt nor a display.
    layers
        Layer data tuples, the lowest first.

    Returns
    -------
    The layers that were added.

    Raises
    ------
    ImportError
        napari is not installed.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> layers = stmsi.napari.metabolite_layers(sdata, "simPC(28:0)", sample="P1S1")
    >>> from napari.components import ViewerModel  # doctest: +SKIP
    >>> viewer = ViewerModel()  # doctest: +SKIP
    >>> stmsi.napari.add_layers(viewer, layers)  # doctest: +SKIP
    [<Points layer 'measured' at ...>]
    """
    require_napari()
    from napari.layers import Layer

    added = []
    for data, options, kind in layers:
        layer = Layer.create(data, options, kind)
        layer.units = "um"
        clicked = "landmarks" in layer.metadata.get(OWN, {})
        if clicked:
            _number(layer)
        added.append(viewer.add_layer(layer))
        layer.editable = clicked  # spots must not be moved by a slip of the pointer
    _link([layer for layer in added if layer.metadata.get(OWN, {}).get("role") in (MEASURED, PREDICTED)])
    return added


def _number(layer: Any) -> None:
    """Number the points of a layer in the order of the clicks."""

    def set_numbers() -> None:
        layer.features = {"number": np.arange(1, len(layer.data) + 1)}

    set_numbers()
    layer.text = {"string": "{number}", "size": 12, "color": "white", "anchor": "upper_left"}
    layer.events.data.connect(set_numbers)


def _link(layers: list[Any]) -> None:
    """Link how spots are drawn."""
    from napari.experimental import link_layers

    if len(layers) < 2:
        return
    shared = [a for a in _LINKED if all(hasattr(layer.events, a) for layer in layers)]
    if shared:
        link_layers(layers, shared)
    for one, other in permutations(layers, 2):
        # limits are known to the colours of a layer, and napari's own linking does not hear of them
        colours = getattr(one, "_face", None)
        if colours is not None:
            colours.events.contrast_limits.connect(_follow(one, other))


def _follow(leader: Any, follower: Any) -> Any:
    def set_limits() -> None:
        if follower.face_contrast_limits != leader.face_contrast_limits:
            follower.face_contrast_limits = leader.face_contrast_limits

    return set_limits
