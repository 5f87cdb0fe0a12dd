"""What the readers of published layouts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from stmsi._data.checks import listing, suggest
from stmsi._settings import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def chosen(available: Sequence[str], wanted: str | Sequence[str] | None, what: str) -> list[str]:
    """The sections asked for, in the order asked; `None`: all.

    Raises
    ------
    KeyError
        Where one is not there.
    """
    if wanted is None:
        return list(available)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in names if name not in available]
    if unknown:
        msg = f"No section {listing(unknown)} in {what}; found {listing(available)}.{suggest(unknown[0], available)}"
        raise KeyError(msg)
    return names


def measured_pixels(X: Any, *, keep_empty: bool, what: str) -> NDArray[np.bool_]:
    """Which pixels to keep: exports of a whole rectangle fill what was not measured with zeros.

    Raises
    ------
    ValueError
        Where no pixel holds any intensity.
    """
    matrix = sp.csr_matrix(X)
    matrix.eliminate_zeros()
    filled = np.diff(matrix.indptr) > 0
    if not filled.any():
        msg = f"{what} holds no intensity above 0."
        raise ValueError(msg)
    if keep_empty:
        return np.ones(len(filled), dtype=bool)
    if not filled.all():
        logger.info("%s: %d of %d pixels hold no ion and are left out", what, int((~filled).sum()), len(filled))
    return filled
