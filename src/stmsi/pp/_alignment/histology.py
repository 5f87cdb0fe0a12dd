"""Alignment by histology: an image of the MSI section, or what MSI measured, onto the image of the ST section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.registration.histology_images import register_images
from stmsi._core.registration.spatial_components import summary_channels
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi.pp._alignment.section_fit import SectionFit
from stmsi.pp._alignment.section_input import pixel_centres, section_table, table_values

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_LEAD = 0.1
"""Share of the mutual information by which the best placement must lead the next, or it may be either."""
_SIDE = 1024
"""Pixels along the longer side that are read: registration works on far fewer."""


@dataclass(frozen=True)
class _Channel:
    """One channel of an image, and where its pixels are.

    Attributes
    ----------
    values
        Shape (rows, columns).
    spacing
        Of its pixels, in micrometres.
    to_frame
        From (column, row) times `spacing` to the frame, shape (3, 3).
    """

    values: NDArray[np.float64]
    spacing: float
    to_frame: NDArray[np.float64]


@dataclass(frozen=True)
class HistologyMethod:
    """Alignment of two images, as :func:`stmsi.pp.align` calls its methods."""

    moving: _Channel
    fixed: _Channel

    def __call__(self, rng: np.random.Generator) -> SectionFit:  # noqa: ARG002
        """Register them."""
        fit = register_images(self.moving.values, self.fixed.values, self.moving.spacing, self.fixed.spacing)
        none = np.empty(0)
        ambiguous = fit.lead < _LEAD
        message = (
            f"Placed by histology: mutual information {fit.information:.2f} nats, {fit.lead:.0%} ahead of the next."
        )
        if ambiguous:
            message = (
                f"Another turn or side of the images fits about as well (mutual information {fit.information:.2f} nats, "
                f"{fit.lead:.0%} ahead). Look at stmsi.pl.alignment, or pass three landmarks."
            )
        fields = {
            "model": "affine", "n_landmarks": 0, "residual_um": none, "tre_um": none, "ambiguous": ambiguous,
            "message": message, "decided_by": "histology", "image_information": fit.information,
        }  # fmt: skip
        return SectionFit(self.fixed.to_frame @ fit.matrix @ np.linalg.inv(self.moving.to_frame), fields)


def histology_method(
    sdata: SpatialData, name: str, images: tuple[str | None, str | None], *, table_key: str, sample_key: str
) -> HistologyMethod:
    """Read the images of a section.

    Parameters
    ----------
    sdata
        With the images.
    name
        The section.
    images
        Names of the image of the MSI section (in the MSI frame) and of that of the ST section (in the ST frame). `None`:
        ``<sample>_msi_he``, or without one the number of peaks of each pixel; ``<sample>_he``.
    table_key, sample_key
        The MSI table, and its column with the section.
    """
    moving, fixed = images
    fixed = Key.image(name) if fixed is None else fixed
    if moving is None and Key.msi_image(name) in sdata.images:
        moving = Key.msi_image(name)
    if moving is not None:
        first = _channel(sdata, moving, Key.msi_frame(name))
    else:
        first = _peaks(sdata, name, table_key, sample_key)
    return HistologyMethod(first, _channel(sdata, fixed, Key.st_frame(name)))


def _channel(sdata: SpatialData, element: str, frame: str) -> _Channel:
    """Mean of the channels of an image, read at about `_SIDE` pixels."""
    from spatialdata import get_pyramid_levels
    from spatialdata.transformations import get_transformation
    from xarray import DataTree

    if element not in sdata.images:
        msg = f"No image {element!r}; images: {listing(sdata.images)}. Name two with images=(of MSI or None, of ST)."
        raise KeyError(msg)
    image: Any = sdata.images[element]
    known = get_transformation(image, get_all=True)
    if frame not in known:
        msg = f"Image {element!r} lies in {listing(known)}, not in {frame!r}; set its transformation into it."
        raise ValueError(msg)
    to_frame = np.asarray(known[frame].to_affine_matrix(("x", "y"), ("x", "y")))
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
    values[row, col] = summary_channels(table_values(table, None, "MSI"))[:, 0]
    scale = float(np.sqrt(abs(np.linalg.det(to_msi[:2, :2]))))
    place = np.array([[1 / scale, 0, xy[:, 0].min()], [0, 1 / scale, xy[:, 1].min()], [0, 0, 1]])
    return _Channel(values, float(size[0]) * scale, to_msi @ place)
