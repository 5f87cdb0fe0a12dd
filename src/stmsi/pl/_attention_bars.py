"""Contributions of genes to a single metabolite, as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from stmsi.pl._panels import get_axes, label_plot
from stmsi.pl._style import STYLE, ink, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

_WIDE, _BAR, _AROUND = 3.6, 0.17, 1.1
"""Inches: width of a panel, height of a bar, and height of title and axis together."""
_MORE, _LESS = 0, 8
"""Numbers of the colours above and below zero."""


def draw_bars(
    values: Sequence[pd.Series],
    known: NDArray[np.bool_],
    titles: Sequence[str],
    unit: str,
    *,
    ordered: bool,
    ax: Axes | Sequence[Axes] | None,
    figsize: tuple[float, float] | None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """A panel for each group of spots, a bar for each gene, in one order and to one scale.

    `values` are indexed by gene, alike in all groups; dots mark the genes that are `known`. With `ordered` the largest
    are on top, those below zero at the bottom.
    """
    genes = values[0].index
    mean = np.mean([v.to_numpy() for v in values], axis=0)
    order = np.argsort(-mean, kind="stable") if ordered else np.arange(len(genes))
    figure, axes = get_axes(len(values), 2, ax, (_WIDE, _AROUND + _BAR * len(genes)), figsize)
    ends = np.concatenate([v.to_numpy() for v in values])
    low, high = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
    margin = 0.05 * ((high - low) or 1.0)
    dot: dict[str, Any] = {"marker": "o", "markersize": 4, "color": "white", "linestyle": "none"}
    dot |= {"markeredgecolor": "black", "markeredgewidth": 0.6}
    at = np.arange(len(genes))
    for place, own, title in zip(axes, values, titles, strict=True):
        length, marked = own.to_numpy()[order], known[order]
        place.barh(at, length, height=0.8, color=np.where(length >= 0, tone(_MORE), tone(_LESS)))
        place.plot(length[marked], at[marked], **dot)
        place.axvline(0, color=ink(0.6), linewidth=0.8)
        label_plot(place, unit, "", title)
        place.set_yticks(at, [str(g) for g in genes[order]], fontsize=STYLE.tick_size)
        place.tick_params(axis="y", length=0)
        place.spines["left"].set_visible(False)
        place.set(ylim=(len(genes) - 0.4, -0.6), xlim=(low - margin * (low < 0), high + margin))
    if known.any():
        axes[-1].legend(
            handles=[Line2D([], [], label="known gene", **dot)],
            loc="lower right",
            frameon=False,
            fontsize=STYLE.tick_size,
        )
    return figure, axes
