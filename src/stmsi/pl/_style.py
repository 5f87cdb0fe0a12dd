"""Sizes and colours of all plots."""

from __future__ import annotations

from dataclasses import dataclass

INTENSITY_CMAP = "viridis"
RESIDUAL_CMAP = "RdBu_r"
WIDTH_CMAP = "plasma"
PERCENTILES = (1.0, 99.0)
PRESENT_LABEL = "present"
"""Colour bar of measured presence, which is 0 or 1 and nothing between."""


@dataclass(frozen=True)
class Style:
    """How a panel looks."""

    not_covered: str = "#dcdcdc"
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
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#949494", "#ece133", "#56b4e9", "#d55e00", "#fbafe4")
"""seaborn's "colorblind"."""
