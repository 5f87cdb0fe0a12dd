"""Landmarks in the unit that the spots had before they became micrometres, such as pixels of the full-resolution image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._data.keys import Key
from stmsi._settings import logger
from stmsi.pp._alignment.section_fit import near_and_within, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.pp._alignment.landmark_input import Unit
    from stmsi.pp._alignment.section_geometry import Geometry

PIXELS = "pixels"
"""``landmark_units`` of the ST side for the unit that the spots had."""
_INSIDE, _INSIDE_AT_LEAST = 0.8, 0.5
"""Share of landmarks in the section from which they plainly lie there, and below which they are refused."""
_SAME_SIZE = 1.1
"""Two frames in micrometres differ in scale by no more than this."""


def known_unit(unit: Unit, um_per_unit: float | None) -> Unit:
    """The unit of landmarks on the ST side, ``"pixels"`` as a number.

    Raises
    ------
    ValueError
        It is ``"pixels"``, and the spots have no earlier unit (`um_per_unit` is `None`).
    """
    if unit != PIXELS:
        return unit
    if um_per_unit is None:
        msg = (
            f"landmark_units={PIXELS!r} needs a section whose positions stmsi.pp.combine or stmsi.io.read_visium made "
            f"micrometres (uns[{Key.uns.UNITS!r}] names none for it); pass micrometres per pixel instead, (1, 0.5) for example."
        )
        raise ValueError(msg)
    return um_per_unit


def in_micrometres(
    moving: NDArray[np.float64] | None,
    fixed: NDArray[np.float64],
    geometry: Geometry,
    um_per_unit: float,
    max_scale: float,
    name: str,
) -> NDArray[np.float64]:
    """Landmarks of the ST side, converted where they are plainly in the earlier unit; a conversion is told.

    It is plain where the landmarks would be refused as micrometres, by their place or by their scale, and where after the
    conversion they lie in the section and have the scale of micrometres.

    Parameters
    ----------
    moving
        The same places in the MSI frame, (n, 2); `None` where they are in another histology, in an unknown unit.
    fixed
        In the ST frame, (n, 2), taken for micrometres so far.
    geometry
        The section.
    um_per_unit
        Micrometres per unit of the positions that the spots had.
    max_scale
        Scale of MSI to ST beyond which landmarks are refused.
    name
        Of the section, for the notice.
    """
    places = np.vstack([geometry.spots, geometry.others])
    if not len(places) or not _are_points(fixed) or not (moving is None or _are_points(moving)):
        return fixed
    converted = fixed * um_per_unit
    if _fits(moving, fixed, places, _INSIDE_AT_LEAST, max_scale):
        return fixed
    if not _fits(moving, converted, places, _INSIDE, min(max_scale, _SAME_SIZE)):
        return fixed
    logger.warning(
        "Section %r: the ST landmarks are in the unit that the spots had before (1 unit = %.4g um, uns[%r]) and were "
        "converted. Say so by landmark_units=(1, %r).", name, um_per_unit, Key.uns.UNITS, PIXELS,
    )  # fmt: skip
    return converted


def _are_points(xy: NDArray[np.float64]) -> bool:
    return xy.ndim == 2 and xy.shape[1] == 2 and len(xy) > 0 and bool(np.isfinite(xy).all())


def _fits(
    moving: NDArray[np.float64] | None,
    fixed: NDArray[np.float64],
    places: NDArray[np.float64],
    inside: float,
    max_scale: float,
) -> bool:
    """Whether enough landmarks lie in the section and both sides, where both are known, have one scale."""
    if near_and_within(fixed, places)[1].mean() < inside:
        return False
    if moving is None:
        return True
    size = spread(moving)
    return size > 0 and 1 / max_scale < spread(fixed) / size < max_scale
