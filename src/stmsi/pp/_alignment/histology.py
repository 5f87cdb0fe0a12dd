"""Alignment by histology: an image of the MSI section, or what MSI measured, onto the image of the ST section."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stmsi._core.registration.histology_images import register_images
from stmsi._core.registration.spatial_components import summary_channels
from stmsi._data.checks import listing
from stmsi._data.elements import frames_of, matrix_to
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr
from stmsi.pp._alignment.section_fit import WITHOUT_LANDMARKS, Method, SectionFit
from stmsi.pp._alignment.section_geometry import pixel_centres, section_table

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_LEAD = 0.1
"""Share of the mutual information by which the best placement must lead the next, or it may be either."""
_SIDE = 1024
"""Pixels along the longer side that are read: registration works on far fewer."""


class _Channel(NamedTuple):
    """One channel of an image, and where its pixels are."""

    values: NDArray[np.float64]  # (rows, columns)
    spacing: float  # of its pixels, um
    to_frame: NDArray[np.float64]  # from (column, row) times `spacing` to the frame, (3, 3)


def histology_method(
    sdata: SpatialData, name: str, images: tuple[str | None, str | None], *, table_key: str, sample_key: str
) -> Method:
    """Read the two images of a section, `None` for those with the usual names; `table_key` names the MSI table."""
    moving, fixed = images
    if moving is None and Key.msi_image(name) in sdata.images:
        moving = Key.msi_image(name)
    if moving is not None:
        first = _channel(sdata, moving, Key.msi_frame(name))
    else:
        first = _peaks(sdata, name, table_key, sample_key)
    second = _channel(sdata, Key.image(name) if fixed is None else fixed, Key.st_frame(name))
    return partial(_fit_images, first, second)


def _fit_images(moving: _Channel, fixed: _Channel, rng: np.random.Generator) -> SectionFit:  # noqa: ARG001
    fit = register_images(moving.values, fixed.values, moving.spacing, fixed.spacing)
    ambiguous = fit.lead < _LEAD
    message = f"Placed by histology: mutual information {fit.information:.2f} nats, {fit.lead:.0%} ahead of the next."
    if ambiguous:
        message = (
            f"Another turn or side of the images fits about as well (mutual information {fit.information:.2f} nats, "
            f"{fit.lead:.0%} ahead). Look at stmsi.pl.alignment, or pass three landmarks."
        )
    fields = WITHOUT_LANDMARKS | {
        "model": "affine", "ambiguous": ambiguous, "message": message, "decided_by": "histology",
        "image_information": fit.information,
    }  # fmt: skip
    return SectionFit(fixed.to_frame @ fit.matrix @ np.linalg.inv(moving.to_frame), fields)


def _channel(sdata: SpatialData, element: str, frame: str) -> _Channel:
    """Mean of the channels of an image, read at about `_SIDE` pixels."""
    from spatialdata import get_pyramid_levels
    from xarray import DataTree

    if element not in sdata.images:
        msg = f"No image {element!r}; images: {listing(sdata.images)}. Name two with images=(of MSI or None, of ST)."
        raise KeyError(msg)
    image: Any = sdata.images[element]
    to_frame = matrix_to(image, frame)
    if to_frame is None:
        msg = f"Image {element!r} lies in {frames_of(image)}, not in {frame!r}; set its transformation into it."
        raise ValueError(msg)
    full = image
    if isinstance(image, DataTree):
        levels = list(get_pyramid_levels(image))
        full = levels[0]
        image = next((level for level in reversed(levels) if max(level.sizes["y"], level.sizes["x"]) >= _SIDE), full)
    shrunk = full.sizes["x"] / image.sizes["x"]
    step = max(1, int(max(image.sizes["y"], image.sizes["x"]) / _SIDE))
    grey = image.isel(y=slice(None, None, step), x=slice(None, None, step)).mean("c").transpose("y", "x")
    values = np.asarray(grey.compute(), dtype=np.float64)
    each = shrunk * step  # pixels of the full image from one value to the next
    spacing = float(np.sqrt(abs(np.linalg.det(to_frame[:2, :2])))) * each
    # the first value is that of the middle of the first pixel (of its level), whose corner is the origin
    place = np.array([[each / spacing, 0, shrunk / 2], [0, each / spacing, shrunk / 2], [0, 0, 1]])
    return _Channel(values, spacing, to_frame @ place)


def _peaks(sdata: SpatialData, name: str, table_key: str, sample_key: str) -> _Channel:
    """Number of peaks of each pixel as an image, 0 where nothing was measured."""
    table = section_table(sdata, table_key, name, sample_key)
    xy, size, to_msi = pixel_centres(sdata, name, table)
    if not np.isclose(size[0], size[1], rtol=1e-3):
        msg = f"Section {name!r} has pixels of {size[0]:.4g} x {size[1]:.4g}; registration to histology needs squares."
        raise ValueError(msg)
    row, col = np.round((xy - xy.min(axis=0)) / size).astype(np.int64).T[::-1]
    values = np.zeros((row.max() + 1, col.max() + 1))
    values[row, col] = summary_channels(as_csr(table.X))[:, 0]
    scale = float(np.sqrt(abs(np.linalg.det(to_msi[:2, :2]))))
    place = np.array([[1 / scale, 0, xy[:, 0].min()], [0, 1 / scale, xy[:, 1].min()], [0, 0, 1]])
    return _Channel(values, float(size[0]) * scale, to_msi @ place)
