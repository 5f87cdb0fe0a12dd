"""Parameters that several plots describe in the same words."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

_PARTS = {
    "grid": """
sample
    Sections to draw; `None`: all.
%(tables)s
ncols
    Panels in a row.
norm
    A norm for all panels; its open limits are filled from all that is drawn. Not with `vmin` or `vmax`.""",
    "tables": """
table_key
    The ST table of a SpatialData.
sample_key
    Column of ``obs`` with the section name.""",
    "colours": """
percentiles
    Percentiles at which colours are clipped, so that a few hot spots do not hide the rest.
share_norm
    Whether all sections share the norm of a panel, so that they can be compared.""",
    "spots": """
spot_diameter
    In micrometres; `None`: the size in ``shapes["<sample>_spots"]``, and 55 um for an AnnData. Pixels of an MSI table are squares.
image
    Whether to draw the histology ``images["<sample>_he"]`` behind the spots.
alpha
    Opacity of the spots.
scalebar
    Whether to draw a scale bar. There is none where the unit of the positions is not known.""",
    "measured": """
pred_key
    Predictions in ``obsm``; presence and bounds are looked up beside it (``"msi_pred_presence"``, ``"msi_pred_lower"``,
    ``"msi_pred_upper"``).
metabolite_key
    Measured intensities in ``obsm``.
presence_key
    Measured presence in ``obsm``; `None`: ``obsm["<metabolite_key>_presence"]`` where it is there, else intensity
    above 0 (what :func:`stmsi.pp.impute_dropout` filled in counts as absent).""",
    "figure": """
title
    Titles instead of those that the plot makes, one for each panel; ``""``: no titles.
figsize
    Width and height of a new figure in inches; `None`: what the panels need.
ax
    Axes to draw into, one per panel; `None`: a new figure.
show
    `True` calls :func:`matplotlib.pyplot.show`, unless `ax` is given. `None` leaves it to matplotlib.
return_fig
    Whether to return the figure instead of the axes.

Returns
-------
The axes, or a list of them where there are several panels; with `return_fig` the figure.""",
}


def shared_docs(function: F) -> F:
    """Put the shared parameters, and what plots return, where the docstring says ``%(name)s``."""
    doc = cleandoc(function.__doc__ or "")
    for name, text in _PARTS.items():
        doc = doc.replace(f"%({name})s", text.strip())
    function.__doc__ = doc
    return function
