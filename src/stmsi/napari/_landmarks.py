"""Landmarks that were clicked in napari."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import listing
from stmsi.napari._metabolite_layers import OWN

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIDES = ("msi", "st")
_TAIL = "_landmarks_"


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
