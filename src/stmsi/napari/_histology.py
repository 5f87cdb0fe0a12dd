"""The histology of a section as a layer, without napari."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import is_spatialdata
from stmsi._data.elements import matrix_to
from stmsi._data.keys import Key
from stmsi.napari._metabolite_layers import OWN, pixels_to_world
from stmsi.pl._sections import image_scales

if TYPE_CHECKING:
    from stmsi._data.checks import Data
    from stmsi.napari._metabolite_layers import LayerData

HISTOLOGY = "histology"
_IN_MEMORY = 2**28
"""Bytes up to which an image with one scale is loaded at once, so that moving about reads nothing."""


def histology_layer(data: Data, sample: str) -> LayerData | None:
    """The image ``<sample>_he`` in micrometres of the section's frame; `None` where there is none with a place in it."""
    if not is_spatialdata(data) or Key.image(sample) not in data.images:
        return None
    element = data.images[Key.image(sample)]
    matrix = matrix_to(element, Key.st_frame(sample))
    if matrix is None:
        return None
    scales = [scale.transpose("y", "x", "c").data for scale in image_scales(element)]
    rgb = scales[0].shape[-1] in (3, 4)
    pixels: list[Any] = [_drawable(scale if rgb else scale[..., 0]) for scale in scales]
    options = {
        "name": HISTOLOGY,
        "affine": pixels_to_world(matrix),
        "rgb": rgb,
        "multiscale": len(pixels) > 1,
        "metadata": {OWN: {"role": HISTOLOGY, "sample": sample}},
    }
    return (pixels if len(pixels) > 1 else pixels[0]), options, "image"


def _drawable(pixels: Any) -> Any:
    """Pixels of 8 bits or floats up to 1, which is what napari takes as colours."""
    if np.issubdtype(pixels.dtype, np.integer) and pixels.dtype != np.uint8:
        pixels = (pixels / np.iinfo(pixels.dtype).max).astype(np.float32)
    return np.asarray(pixels) if pixels.nbytes <= _IN_MEMORY else pixels
