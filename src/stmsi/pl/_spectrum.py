"""The mean spectrum of MSI sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.checks import check_count, listing, require_rows
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import label
from stmsi._data.tables import get_table, layer_names, require_obs
from stmsi.pl._metabolite_layers import ion_unit, table_samples
from stmsi.pl._panels import cut, get_axes, hand_back, label_plot
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import STYLE, tone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from stmsi._data.checks import Data

_SIZE = (7.0, 2.4)
_ROOM = 1.6
"""Height of the axes over that of the highest peak: its name needs room."""
_WORTH = 0.02
"""Share of the highest peak below which a peak is not labelled."""
_FAR = 0.02
"""Share of the axis by which labels of peaks must lie apart."""


@shared_docs
def spectrum(
    data: Data,
    *,
    groupby: str | None = None,
    sample: str | Sequence[str] | None = None,
    layer: str | None = None,
    n_labels: int = 8,
    mz_range: tuple[float, float] | None = None,
    table_key: str = Key.table.MSI,
    sample_key: str = Key.obs.SAMPLE,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw the mean spectrum: each ion at its m/z, as high as its mean intensity over the pixels.

    One panel per section, or per group of pixels, with shared axes. The highest peaks carry their name, else their m/z.

    Parameters
    ----------
    data
        SpatialData with an MSI table, or the table itself. It holds the ions that were read or picked; for the profile of a whole file
        pick peaks first (:func:`stmsi.pp.pick_peaks`).
    groupby
        Column of ``obs`` of the MSI table, such as a region or a cluster; `None`: the section.
    sample
        Sections whose pixels count; `None`: all.
    layer
        Layer with the intensities; `None`: ``X``. After :func:`stmsi.pp.normalize_msi`, ``X`` holds logarithms and ``"raw"`` what was measured.
    n_labels
        Peaks of each panel that are labelled.
    mz_range
        Lowest and highest m/z drawn; `None`: all.
    %(tables)s
    %(figure)s

    Raises
    ------
    KeyError
        No such table, section, layer or column.
    ValueError
        The ions have no ``var["mz"]``, none lies in `mz_range`, or the number of axes is not the number of panels.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> axes = stmsi.pl.spectrum(sdata)
    >>> [ax.get_title() for ax in axes]
    ['P1S1', 'P2S1', 'P3S1']
    """
    check_count(n_labels, "n_labels", 0)
    msi = get_table(data, table_key)
    require_rows(msi)
    mz, shown = _masses(msi, mz_range)
    if layer is not None and layer not in layer_names(msi):
        msg = f"The table has no layer {layer!r}; layers: {listing(layer_names(msi))}."
        raise KeyError(msg)
    matrix = msi.X if layer is None else msi.layers[layer]
    samples = table_samples(msi, sample_key, sample)
    section = require_obs(msi, sample_key).astype(str).to_numpy()
    labels = (
        pd.Series(section) if groupby is None else require_obs(msi, groupby).astype("object").reset_index(drop=True)
    )
    labels = labels.where(np.isin(section, samples))
    found = list(dict.fromkeys(labels.dropna()))
    groups = found if groupby is None else sorted(found, key=str)
    unit = ion_unit(msi, layer)
    figure, axes = get_axes(len(groups), 1, ax, _SIZE, figsize)
    highest = 0.0
    for number, (place, group) in enumerate(zip(axes, groups, strict=True)):
        rows = np.flatnonzero((labels == group).to_numpy())
        height = np.asarray(matrix[rows].mean(axis=0), dtype=np.float64).ravel()[shown]
        highest = max(highest, float(height.max(initial=0)))
        place.vlines(mz[shown], 0, height, color=tone(number), linewidth=0.9)
        last = number == len(groups) - 1
        label_plot(place, "m/z (Da)" if last else "", f"mean {unit}", str(group))
        _name_peaks(place, mz[shown], height, lambda peak: _peak_label(msi, shown[peak]), n_labels)
    for place in axes:
        place.set_ylim(0, _ROOM * highest or 1.0)
        place.set_xlim(*_range(mz[shown]))
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _masses(msi: AnnData, mz_range: tuple[float, float] | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """m/z of all ions, and positions of those drawn."""
    if Key.var.MZ not in msi.var:
        msg = f"The table has no var['mz']; it holds {listing(msi.var.columns)}. A spectrum is drawn of an MSI table (table_key=)."
        raise ValueError(msg)
    mz = msi.var[Key.var.MZ].to_numpy(np.float64, na_value=np.nan)
    low, high = (-np.inf, np.inf) if mz_range is None else mz_range
    shown = np.flatnonzero((mz >= low) & (mz <= high))
    if len(shown) == 0:
        found = f"{np.nanmin(mz):.4f} to {np.nanmax(mz):.4f}" if np.isfinite(mz).any() else "no m/z"
        msg = f"No ion lies in mz_range={mz_range!r}; the table has {found}."
        raise ValueError(msg)
    return mz, shown


def _peak_label(msi: AnnData, ion: int) -> str:
    """Name of an ion, or its m/z where it has none."""
    one = label(msi.var, str(msi.var_names[ion]))
    return cut(one.name, STYLE.title_width // 2) if one.named else f"{one.mz:.3f}"


def _name_peaks(
    ax: Axes, mz: NDArray[np.float64], height: NDArray[np.float64], name: Callable[[int], str], n: int
) -> None:
    """Label the highest peaks, of neighbours only the highest."""
    apart = _FAR * (np.ptp(mz) or 1.0)
    placed: list[float] = []
    for peak in np.argsort(-height, kind="stable"):
        if len(placed) == n or not height[peak] > _WORTH * height.max():
            return
        if all(abs(mz[peak] - other) > apart for other in placed):
            placed.append(mz[peak])
            ax.annotate(
                name(peak), (mz[peak], height[peak]), (1, 2), textcoords="offset points", ha="left", va="bottom",
                rotation=45, rotation_mode="anchor", fontsize=STYLE.tick_size,
            )  # fmt: skip


def _range(mz: NDArray[np.float64]) -> tuple[float, float]:
    margin = 0.03 * (np.ptp(mz) or 10.0)
    return float(mz.min() - margin), float(mz.max() + margin)
