"""Error against the share of spots that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from stmsi._data.checks import listing, suggest
from stmsi.pl._panels import get_axes, hand_back, label_plot
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import STYLE, ink, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_READABLE = {
    "interval": "width of the interval",
    "presence": "entropy of presence",
    "ood": "out-of-distribution score",
    "oracle": "the error itself",
    "relative_mae": "mean absolute error,\nrelative to all spots",
    "mae": "mean absolute error",
    "mse": "mean squared error",
}
_SIZE = (4.6, 3.2)


@shared_docs
def plot_abstention(
    curve: pd.DataFrame,
    *,
    metric: str = "relative_mae",
    by: str = "by",
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | SubFigure:
    """Draw how the error falls as uncertain spots are left out.

    Lines are means over metabolites (of their mean over sections), bands reach from the lower to the upper quartile. The dashed
    line is the error at the largest share.

    Parameters
    ----------
    curve
        Table of :func:`stmsi.experimental.abstention`, or of several models, joined, with a column that names them.
    metric
        ``"relative_mae"``, ``"mae"`` or ``"mse"``.
    by
        Column that makes the lines.
    %(figure)s

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        The metric has no finite value.

    Examples
    --------
    >>> import pandas as pd
    >>> import stmsi
    >>> curve = pd.DataFrame(
    ...     {
    ...         "by": "interval",
    ...         "metabolite": ["m1", "m1", "m2", "m2"],
    ...         "share": [0.5, 1.0, 0.5, 1.0],
    ...         "relative_mae": [0.6, 1.0, 0.8, 1.0],
    ...     }
    ... )
    >>> ax = stmsi.experimental.plot_abstention(curve)
    >>> ax.lines[0].get_ydata().round(2).tolist()
    [0.7, 1.0]
    """
    if not isinstance(curve, pd.DataFrame):
        msg = f"curve must be the DataFrame of stmsi.experimental.abstention, found {type(curve).__name__}."
        raise TypeError(msg)
    for name in (by, "metabolite", "share", metric):
        if name not in curve:
            msg = f"curve has no column {name!r}; found {listing(curve.columns)}.{suggest(name, curve.columns)}"
            raise KeyError(msg)
    rows = curve[np.isfinite(curve[metric].to_numpy(np.float64))]
    if len(rows) == 0:
        msg = f"curve has no finite {metric!r}: nothing to draw."
        raise ValueError(msg)
    figure, (place,) = get_axes(1, 1, ax, _SIZE, figsize)
    means = rows.groupby([by, "metabolite", "share"], observed=True, sort=False)[metric].mean()
    groups = list(dict.fromkeys(rows[by]))
    for k, group in enumerate(groups):
        values = means[group].unstack("share").sort_index(axis=1)
        colour = tone(k)
        label = _READABLE.get(str(group), str(group))
        place.plot(values.columns, values.mean(), color=colour, label=label, marker="o", markersize=3)
        low, high = values.quantile(0.25), values.quantile(0.75)
        place.fill_between(values.columns, low, high, color=colour, alpha=0.15, linewidth=0)
    at_most = means.index.get_level_values("share").max()
    everything = means.xs(at_most, level="share").groupby("metabolite").mean().mean()
    place.axhline(everything, color=ink(0.5), linestyle="--", linewidth=0.8)
    label_plot(place, "share of spots kept", _READABLE.get(metric, metric))
    place.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
    size = STYLE.tick_size
    head = "left out by" if by == "by" else by
    place.legend(frameon=False, fontsize=size, title_fontsize=size, title=head)
    out = hand_back(figure, [place], ax=ax, show=show, return_fig=return_fig, title=title)
    assert not isinstance(out, list)
    return out
