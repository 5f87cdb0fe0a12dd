"""Training spots in which rare tissue states weigh as much as common ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._data.checks import require_rows, require_unique
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_frame, require_obs, sections_of
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData


def oversample(
    data: SpatialData | AnnData,
    *,
    cluster_key: str,
    train_idx: ArrayLike | None = None,
    sample_key: str = Key.obs.SAMPLE,
    metabolite_key: str = Key.obsm.MSI,
    table_key: str = Key.table.ST,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Repeat spots until every cluster is as large as the largest.

    A rare tissue state is otherwise outvoted while a model trains. The idea is DeepSpot's [1]_. Every training spot
    is kept, and those of smaller clusters are drawn again, with replacement; each section gives as large a share of
    the repeats as it holds of the cluster.

    Train on the result; predict and score on the spots as they are: thresholds, probabilities and held-out evidence of the
    model refer to the balanced mixture. Do not split the result by hand: give the training spots as `train_idx`.

    Parameters
    ----------
    data
        SpatialData or its ST table.
    cluster_key
        Column of ``obs`` with the tissue states.
    train_idx
        Training spots (positions or mask), the only ones in the result; `None`: all with MSI if ``obsm[metabolite_key]``
        exists, else all.
    sample_key
        Column of ``obs`` with the section name.
    metabolite_key
        Measured intensities in ``obsm``.
    table_key
        The ST table.
    rng
        Seed or generator; the same seed draws the same spots.

    Returns
    -------
    New AnnData, `data` is not changed: the training spots in their order, then the repeats, cluster by cluster.

    - ``obs_names``: unique; a repeat is called ``<spot>-repeat<n>``.
    - ``obs["oversampled_from"]``: name of the spot in `data`.
    - ``obsp``: the row of a repeat is that of its spot, and leads to training spots, never to repeats: sums over neighbours
      are those of the spot, but the matrices are **not symmetric** any more.
    - The links to a SpatialData and to scvi-tools' registries in ``uns`` are dropped: the table is for training.

    Raises
    ------
    KeyError
        A column is not there.
    ValueError
        A training spot without cluster, positions that are out of range, an empty table.

    References
    ----------
    .. [1] Nonchev et al., *DeepSpot*, medRxiv 2025, https://doi.org/10.1101/2025.02.09.25321567

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> balanced = stmsi.experimental.oversample(sdata, cluster_key="domain")
    >>> balanced.obs["domain"].value_counts().nunique()
    1
    >>> stmsi.model.HurdleLinear.setup_anndata(balanced)
    >>> model = stmsi.model.HurdleLinear(balanced)
    """
    from stmsi.model.shared._targets import resolve_rows

    adata = get_table(data, table_key)
    require_rows(adata)
    require_unique(adata.obs_names, "Spot names", "Call .obs_names_make_unique().")
    cluster = require_obs(adata, cluster_key, "cluster_key= names the tissue states.")
    sample = sections_of(adata, sample_key)
    rows = resolve_rows(train_idx, adata.n_obs, "train_idx")
    if rows is None and metabolite_key in adata.obsm:
        rows = np.flatnonzero(require_frame(adata, metabolite_key).notna().any(axis=1).to_numpy())
    rows = np.arange(adata.n_obs) if rows is None else rows
    if len(rows) == 0:
        msg = "No spot has MSI (all intensities are NaN); align and map the MSI first, or pass train_idx."
        raise ValueError(msg)
    missing = int(cluster.iloc[rows].isna().sum())
    if missing:
        msg = f"obs[{cluster_key!r}] has {missing} missing values; every training spot needs a cluster."
        raise ValueError(msg)
    labels = cluster.iloc[rows].astype(str).to_numpy(dtype=object)
    repeats = _draw(labels, sample[rows], np.random.default_rng(rng))
    source = np.concatenate([rows, rows[repeats]])
    logger.info("%d training spots and %d repeats.", len(rows), len(repeats))

    out = _take(adata, source)
    origin = adata.obs_names[source].astype(str)
    number = pd.Series(source).groupby(source).cumcount().to_numpy()
    out.obs_names = _repeat_names(origin, number, set(adata.obs_names.astype(str)))
    out.obs[Key.obs.OVERSAMPLED] = origin.to_numpy(dtype=object)
    for key, values in adata.obsp.items():
        out.obsp[key] = _rows_of_spots(values, source, len(rows))
    return out


def _draw(cluster: NDArray[Any], sample: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions drawn again, so that all clusters are of one size."""
    names, size = np.unique(cluster, return_counts=True)
    drawn = [np.empty(0, np.int64)]
    for name, n in zip(names, size, strict=True):
        own = np.flatnonzero(cluster == name)
        sections, held = np.unique(sample[own], return_counts=True)
        share = (size.max() - n) * held / n
        extra = np.floor(share).astype(int)
        # what is left over goes to the largest remainders
        extra[np.argsort(extra - share, kind="stable")[: size.max() - n - extra.sum()]] += 1
        for section, k in zip(sections, extra, strict=True):
            drawn.append(rng.choice(own[sample[own] == section], k))
    return np.concatenate(drawn)


def _take(adata: AnnData, rows: NDArray[np.int64]) -> AnnData:
    """The rows of an AnnData, which may repeat, without graphs and without links to other objects."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique")  # until they are named
        out = adata[rows].to_memory() if adata.isbacked else adata[rows].copy()
    for key in list(out.obsp):
        del out.obsp[key]
    foreign = [k for k in out.uns if k == "spatialdata_attrs" or k.startswith("_scvi")]
    for key in foreign:
        del out.uns[key]
    return out


def _repeat_names(origin: pd.Index, number: NDArray[Any], taken: set[str]) -> list[str]:
    """``<spot>-repeat<n>``, with as many ``_`` behind it as a name that is not taken needs."""
    names = []
    for name, n in zip(origin, number, strict=True):
        new = name if n == 0 else f"{name}-repeat{n}"
        while n and new in taken:
            new += "_"
        taken.add(new)
        names.append(new)
    return names


def _rows_of_spots(values: object, source: NDArray[np.int64], n_spots: int) -> object:
    """Rows for spots and repeats, whose entries lie in the columns of the spots."""
    matrix = sp.csr_matrix(values)[source][:, source[:n_spots]]
    wide = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), (len(source), len(source)))
    return wide if sp.issparse(values) else wide.toarray()
