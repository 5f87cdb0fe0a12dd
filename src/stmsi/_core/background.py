"""Where the tissue is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SEPARABILITY = 0.75
"""Share of the variance between the two classes that a background needs; one normal distribution has 0.64, a uniform
one 0.75."""
_SHARE = 0.02
"""Share of the pixels that a background has at least: fewer are faulty pixels and no background."""
_BINS = 256
_CONTRAST = 2.0
"""How many times brighter than the background the tissue must be."""


def otsu_tissue(total: NDArray[np.float64]) -> tuple[NDArray[np.bool_], bool]:
    """Split pixels into tissue and background by Otsu's threshold on the logarithm of their total ion current.

    Otsu's threshold splits anything, so the split must be worth it: most of the variance lies between the two parts, and
    tissue is clearly brighter, and the background is more than a few faulty pixels. Pixels without any signal are no
    tissue in any case.

    Parameters
    ----------
    total
        Total ion current of each pixel of one section, at least 0.

    Returns
    -------
    Which pixels are tissue, and whether a background was found.
    """
    from skimage.filters import threshold_otsu

    tissue = total > 0
    level = np.log(total[tissue])
    if len(level) > 1 and level.max() - level.min() > np.log(_CONTRAST):
        # scikit-image returns the middle of a bin that belongs to the darker part as a whole
        half_bin = np.ptp(level) / _BINS / 2
        bright = level > threshold_otsu(level, nbins=_BINS) + half_bin
        share, apart = bright.mean(), 0.0
        if 0 < share < 1:
            apart = level[bright].mean() - level[~bright].mean()
        separate = share * (1 - share) * apart**2 >= _SEPARABILITY * level.var() and apart >= np.log(_CONTRAST)
        if separate and (~bright).sum() + (~tissue).sum() >= _SHARE * len(total):
            tissue[tissue] = bright
    return tissue, bool((~tissue).mean() >= _SHARE)
