"""Which ions have a spatial pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

from stmsi._core.spatial.morans_i import moran_scores, morans_i, raster_graph
from stmsi._data.checks import check_choice, check_nonnegative, check_share
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, sections_of, table_to_change, values_of
from stmsi._settings import logger
from stmsi.pp._msi_table import measured_ions, raster_of, tissue_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def select_spatially_variable(
    data: SpatialData | AnnData,
    *,
    n_top: int | None = None,
    fdr: float = 0.05,
    n_neighs: Literal[4, 8] = 8,
    layer: str | None = None,
    tissue_key: str | None = None,
    subset: bool = False,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.MSI,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    r"""Rank ions by Moran's I, section by section, averaged over sections.

    With :math:`z` the ion's intensities less their mean and :math:`w` the neighbours of each pixel, weights summing to 1,

    .. math:: I = \frac{n}{W} \frac{\sum_{ij} w_{ij} z_i z_j}{\sum_i z_i^2}

    The values are those of :func:`squidpy.gr.spatial_autocorr`, from one sparse product per section. SEPAL chooses its
    targets by the mean over sections (Mejia et al. 2023, arXiv:2309.01036).

    An I above 0 says little: half of the ions that are noise have one. So I is compared with what it would be if the values of
    the section were put on its pixels in random order (mean and variance in closed form, Cliff and Ord 1981), the scores of the
    sections are added up (Stouffer), and the p-values of all ions become false-discovery rates (Benjamini and Hochberg).

    Parameters
    ----------
    data
        SpatialData with an MSI table, or that table. ``X`` sparse or dense; raster position in ``obs["row"]``,
        ``obs["col"]``.
    n_top
        How many ions to mark, those of the largest I; `None`: all whose I chance does not explain (`fdr`).
    fdr
        Share of ions without any pattern to expect among those marked.
    n_neighs
        Neighbours of a pixel: 4 (sides) or 8 (corners as well).
    layer
        Layer to use; `None`: ``X``.
    tissue_key
        Boolean column of ``obs``, such as ``"on_tissue"``: other pixels are left out. With them, every ion that is
        brighter on tissue than off it counts as spatially variable.
    subset
        Keep the marked ions only.
    sample_key, table_key
        Column of ``obs`` with the section name; the MSI table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes ``var["moran_i"]`` (mean over the sections that measured the
    ion and in which it is not constant; NaN without any), ``var["moran_fdr"]`` (false-discovery rate), ``var["spatially_variable"]``, and
    ``uns["select_spatially_variable"]`` with ``params`` and ``moran_i`` (ions x sections).

    Raises
    ------
    KeyError
        No raster positions, layer or column.
    ValueError
        Negative, infinite or NaN intensities; no ion has a pattern that could be scored (a single pixel, constant ions).

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.select_spatially_variable(sdata, n_top=5)
    >>> int(sdata.tables["msi"].var["spatially_variable"].sum())
    5
    """
    check_choice(n_neighs, (4, 8), "n_neighs")
    if n_top is not None and n_top < 1:
        msg = f"n_top must be at least 1, found {n_top!r}."
        raise ValueError(msg)
    msi, changed = table_to_change(data, table_key, copy=copy, rows="pixels")
    if n_top is not None and n_top > msi.n_vars:
        msg = f"n_top={n_top} ions were asked for, but the table has {msi.n_vars}."
        raise ValueError(msg)
    check_share(fdr, "fdr")
    scores, above_chance = moran_of_sections(msi, n_neighs, layer, tissue_key, sample_key)
    known = scores.notna().sum(axis=1)
    mean = (scores.sum(axis=1) / known.where(known > 0)).to_numpy(np.float64)
    if not np.isfinite(mean).any():
        msg = "Moran's I exists for no ion: all are constant, or no pixel has a neighbour."
        raise ValueError(msg)
    rate = _false_discovery_rates(above_chance)
    chosen = (mean > 0) & (rate <= fdr)
    if n_top is not None:
        best = np.argsort(-np.nan_to_num(mean, nan=-np.inf), kind="stable")[:n_top]
        chosen = np.isin(np.arange(len(mean)), best[np.isfinite(mean[best])])
        if chosen.sum() < n_top:
            logger.warning("Only %d ions have a Moran's I; n_top=%d were asked for.", int(chosen.sum()), n_top)
        elif by_chance := int((chosen & ~(rate <= fdr)).sum()):
            logger.warning(
                "%d of the n_top=%d ions have no more pattern than chance gives (var[%r] above %g).",
                by_chance, n_top, Key.var.MORAN_FDR, fdr,
            )  # fmt: skip
    msi.var[Key.var.MORAN] = mean
    msi.var[Key.var.MORAN_FDR] = rate
    msi.var[Key.var.SPATIALLY_VARIABLE] = chosen
    params = {"n_top": n_top, "fdr": fdr, "n_neighs": n_neighs, "layer": layer, "tissue_key": tissue_key}
    msi.uns[Key.uns.VARIABLE] = {"params": {k: v for k, v in params.items() if v is not None}, Key.var.MORAN: scores}
    if subset:
        msi._inplace_subset_var(chosen)
    return changed


def moran_of_sections(
    msi: AnnData, n_neighs: int, layer: str | None, tissue_key: str | None, sample_key: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Moran's I of each ion (rows) in each section (columns), and how far it lies above chance; NaN where it does not exist."""
    X = as_csr(values_of(msi, layer, "MSI"))
    check_nonnegative(X, "MSI intensities")
    row, col = raster_of(msi, "Moran's I needs the raster position of each pixel.")
    sample = sections_of(msi, sample_key)
    tissue = tissue_of(msi, tissue_key)
    scores, above_chance = {}, {}
    for name in dict.fromkeys(sample):
        pixels = np.flatnonzero((sample == name) & tissue)
        if pd.MultiIndex.from_arrays([row[pixels], col[pixels]]).has_duplicates:
            msg = f"Several pixels of section {name!r} share a position (row, col)."
            raise ValueError(msg)
        graph, values = raster_graph(row[pixels], col[pixels], n_neighs), X[pixels]
        score = morans_i(graph, values)
        measured = measured_ions(msi, name)
        scores[name] = np.where(measured, score, np.nan)
        above_chance[name] = np.where(measured, moran_scores(graph, values, score), np.nan)
    return pd.DataFrame(scores, index=msi.var_names), pd.DataFrame(above_chance, index=msi.var_names)


def _false_discovery_rates(above_chance: pd.DataFrame) -> NDArray[np.float64]:
    """Of each ion, from its scores in the sections; NaN without any."""
    known = above_chance.notna().sum(axis=1).to_numpy()
    p = norm.sf(above_chance.sum(axis=1).to_numpy() / np.sqrt(np.maximum(known, 1)))
    rate = np.full(len(p), np.nan)
    if (known > 0).any():
        rate[known > 0] = false_discovery_control(p[known > 0])
    return rate
