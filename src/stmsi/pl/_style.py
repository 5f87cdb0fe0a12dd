"""Sizes and colours of all plots."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib import rcParams
from matplotlib.colors import to_hex, to_rgb

INTENSITY_CMAP = "viridis"
RESIDUAL_CMAP = "RdBu_r"
WIDTH_CMAP = "plasma"
PERCENTILES = (1.0, 99.0)
PRESENT_LABEL = "present"
"""Colour bar of measured presence, which is 0 or 1 and nothing between."""


@dataclass(frozen=True)
class Style:
    """How a panel looks."""

    title_size: float = 9
    label_size: float = 8
    tick_size: float = 7
    title_width: int = 34
    margin: float = 0.03
    """Free border, as a share of the section's longer side."""
    foot: float = 0.11
    """Free strip under the section, where the scale bar covers no spot."""
    panel_height: float = 2.5
    """In inches."""


STYLE = Style()


def paper() -> str:
    """The background of the current style: dark after ``plt.style.use("dark_background")``."""
    found = [rcParams[key] for key in ("axes.facecolor", "figure.facecolor") if rcParams[key] not in ("none", "None")]
    return to_hex(found[0] if found else "white")


def ink(strength: float = 1.0) -> str:
    """The colour of text in the current style, mixed with the background below a strength of 1: grey that is visible in every style."""
    text, back = to_rgb(rcParams["text.color"]), to_rgb(paper())
    red, green, blue = (strength * t + (1 - strength) * b for t, b in zip(text, back, strict=True))
    return to_hex((red, green, blue))


def no_value() -> str:
    """The colour of spots without a value: light grey on white, dark grey on black."""
    return ink(35 / 255)


PALETTE = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#949494", "#ece133", "#56b4e9", "#d55e00", "#fbafe4")
"""seaborn's "colorblind"; :func:`tone` gives them as they can be seen in the current style."""


def tone(number: int) -> str:
    """The colour of a model, group or label by its number, in the current style: lighter on a dark background."""
    colour = PALETTE[number % len(PALETTE)]
    dark = sum(to_rgb(paper())) < 1.5
    red, green, blue = (0.65 * c + 0.35 for c in to_rgb(colour))
    return to_hex((red, green, blue)) if dark else colour
