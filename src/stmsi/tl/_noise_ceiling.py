"""The best score that the noise of the measurement allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from stmsi._core.metrics import intensity as metrics
from stmsi._core.metrics.reliability import fisher_bounds, spearman_brown
from stmsi._core.spatial.sections import spacing
from stmsi._data.checks import check_choice, check_key, listing, own_view
from stmsi._data.keys import Key
from stmsi._data.measured_and_predicted import MAP_WRITES, measured_sections
from stmsi._data.tables import copy_of, get_table, require_frame, sections_of
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

COLUMNS = (
    "sample", "metabolite", "method", "n", "agreement", "reliability", "ceiling", "ceiling_lower", "ceiling_upper",
)  # fmt: skip
_LEAST = 10


def noise_ceiling(
    data: SpatialData | AnnData,
    *,
    method: Literal["halves", "adjacent"] | None = None,
    adjacent: Sequence[tuple[str, str]] | None = None,
    max_distance: float | None = None,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    key_added: str | None = Key.uns.CEILING,
    copy: bool = False,
) -> pd.DataFrame | SpatialData | AnnData:
    r"""Estimate how high a correlation with the measured intensities can be.

    Even the true intensity correlates with its noisy measurement by no more than :math:`\sqrt\rho`. The reliability
    :math:`\rho` is the share of the variance between spots that is not noise, and the ceiling of R2.

    Parameters
    ----------
    data
        SpatialData or its ST table, after ``stmsi.pp.map_to_spots(replicates=True)``.
    method
        ``"halves"``: the correlation :math:`r` between the two halves of the pixels of each spot, stepped up to all
        pixels by the formula of Spearman and Brown, :math:`\rho = 2r / (1 + r)`. ``"adjacent"``: :math:`\rho` is the correlation
        between the nearest spots of two neighbouring sections of one piece of tissue. `None`: halves if they exist, else
        adjacent sections if they are named.
    adjacent, max_distance
        Pairs of neighbouring sections, registered to each other, and the largest distance of nearest spots in micrometres
        (`None`: half the distance between spots).
    metabolite_key
        Measured intensities in ``obsm``; the halves are found by its name.
    sample_key, table_key
        Column of ``obs`` with the section name, and the ST table.
    key_added
        Where in ``uns`` to write the table; `None`: only return it.
    copy
        Return a changed copy of the data instead of the table.

    Returns
    -------
    One row per section and metabolite: ``sample``, ``metabolite``, ``method``, ``n`` (spots compared), ``agreement``
    (:math:`r`), ``reliability`` (:math:`\rho`), ``ceiling`` (:math:`\sqrt\rho`) and its 95 % bounds ``ceiling_lower``,
    ``ceiling_upper``, as of independent spots. NaN where fewer than 10 spots can be compared or a half is constant. With
    `key_added` it is also written to ``uns["msi_noise_ceiling"]["table"]``.

    Halves share misalignment, matrix effects, batches and blur over neighbouring pixels, so their ceiling is rather too high.
    Tissue changes between adjacent sections, so theirs is too low.

    Raises
    ------
    KeyError
        No measured intensities, no halves and no adjacent sections named.
    ValueError
        No spot has pixels in both halves, or sections that are not there or do not overlap.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata, replicates=True)
    >>> ceiling = stmsi.tl.noise_ceiling(sdata)
    >>> bool((ceiling["ceiling"].dropna() <= 1).all())
    True
    """
    copy = copy and key_added is not None  # else nothing is changed
    changed = copy_of(data) if copy else data
    st = get_table(changed, table_key)
    if key_added is not None:
        check_key(key_added)
        own_view(st)
    if method is not None:
        check_choice(method, ("halves", "adjacent"), "method")
    measured = require_frame(st, metabolite_key, MAP_WRITES)
    sample = sections_of(st, sample_key)
    halves = Key.halves_of(metabolite_key)
    has_halves = all(key in st.obsm for key in halves)
    if method is None:
        method = "adjacent" if not has_halves and adjacent is not None else "halves"
    if method == "halves":
        if not has_halves:
            msg = (
                f"obsm has no {listing(halves)}: map with stmsi.pp.map_to_spots(sdata, replicates=True), or name "
                "neighbouring sections (adjacent=[('A1', 'A2')])."
            )
            raise KeyError(msg)
        first, second = (st.obsm[key].reindex(columns=measured.columns).to_numpy(np.float64) for key in halves)
        parts = [
            _row_block(name, measured.columns, "halves", first[rows], second[rows])
            for name, rows in measured_sections(sample, first + second)
        ]
        if not parts:
            msg = (
                "No spot has pixels in both halves: where a spot takes one pixel only there are no replicates. Name "
                "adjacent sections instead (adjacent=[('A1', 'A2')])."
            )
            raise ValueError(msg)
    else:
        parts = _from_adjacent(st, measured, sample, adjacent, max_distance)
    table = pd.concat(parts, ignore_index=True)
    if table["ceiling"].isna().all():
        msg = (
            "No metabolite has a ceiling: fewer than 10 spots of a section have pixels in both halves, or all values are "
            "constant. Where spots are no larger than a pixel there are no replicates; name adjacent sections instead."
        )
        raise ValueError(msg)
    missing = int(table["ceiling"].isna().sum())
    if missing:
        logger.warning(
            "%d of %d ceilings do not exist (too few spots, or constant values) and are NaN.", missing, len(table)
        )
    if key_added is not None:
        st.uns[key_added] = {
            "table": table.copy(),
            "params": {"method": method, "metabolite_key": metabolite_key, "sample_key": sample_key},
        }
    return changed if copy else table


def _row_block(name: str, ids: pd.Index, method: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> pd.DataFrame:
    """Ceilings from two measurements of the same spots."""
    known = ~np.isnan(a) & ~np.isnan(b)
    n = known.sum(axis=0)
    r = metrics.pearson(np.where(known, a, np.nan), np.where(known, b, np.nan))
    r = np.where(n >= _LEAST, r, np.nan)
    bounds = fisher_bounds(r, n)
    rho = [spearman_brown(v) if method == "halves" else np.maximum(v, 0) for v in (r, *bounds)]
    values = (name, ids.astype(str), method, n, r, rho[0], *(np.sqrt(v) for v in rho))
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))


def _from_adjacent(
    st: AnnData,
    measured: pd.DataFrame,
    sample: NDArray[np.object_],
    adjacent: Sequence[tuple[str, str]] | None,
    max_distance: float | None,
) -> list[pd.DataFrame]:
    """Each section against its neighbour; a section of several pairs has a row for each."""
    if not adjacent:
        msg = "method='adjacent' needs the pairs of neighbouring sections, such as adjacent=[('A1', 'A2')]."
        raise ValueError(msg)
    xy = require_frame(st, Key.obsm.SPATIAL, "It holds the spot centres.").to_numpy(np.float64)[:, :2]
    y, parts = measured.to_numpy(np.float64), []
    for one, other in adjacent:
        unknown = [s for s in (one, other) if s not in set(sample)]
        if unknown:
            msg = f"No section {listing(unknown)}; sections: {listing(dict.fromkeys(sample))}."
            raise ValueError(msg)
        rows, partners = np.flatnonzero(sample == one), np.flatnonzero(sample == other)
        reach = max_distance
        if reach is None:
            reach = 0.5 * spacing(xy[rows], np.zeros(len(rows), np.int64))
        distance, at = KDTree(xy[partners]).query(xy[rows])
        near = distance <= reach
        if near.sum() < _LEAST:
            msg = (
                f"Only {int(near.sum())} spots of {one!r} have a spot of {other!r} within {reach:.3g}; at least {_LEAST} are "
                "needed. Register the sections to each other, or raise max_distance."
            )
            raise ValueError(msg)
        found = _row_block(one, measured.columns, "adjacent", y[rows[near]], y[partners[at[near]]])
        parts += [found, found.assign(sample=other)]
    return parts
