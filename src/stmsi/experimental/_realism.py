"""Whether synthetic metabolite layers look like measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.learning.folds import inner_groups
from stmsi._core.metrics import realism as core
from stmsi._core.spatial.morans_i import morans_i, neighbour_means
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.measured_and_predicted import MAP_WRITES, measured_sections
from stmsi._data.tables import get_table, measured_presence, require_frame, sections_of

if TYPE_CHECKING:
    import xarray as xr
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

COLUMNS = ("statistic", "sample", "draw", "metabolite", "other", "at", "measured", "synthetic")
_BLOCKS = 10
_MOST_PAIRS = 2000
_LEAST_SPOTS = 20


def realism(
    measured: SpatialData | AnnData,
    synthetic: str | Sequence[str] | pd.DataFrame | xr.DataArray,
    *,
    metabolite_key: str = Key.obsm.MSI,
    presence_key: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    classifier: bool = True,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Compare synthetic with measured metabolites at the same spots.

    It tells whether draws have the statistics of measurements, not whether they are right spot by spot. Use sections that the
    model was not trained on.

    Parameters
    ----------
    measured
        SpatialData or its ST table. Only spots where every compared metabolite was measured count.
    synthetic
        One or several keys of ``obsm`` (``"msi_sample_0"``, or ``"msi_pred"`` to see what a mean lacks), a DataFrame spots
        x metabolites, or the DataArray that :func:`stmsi.tl.sample_metabolites` returns.
    metabolite_key
        Measured intensities in ``obsm``.
    presence_key
        Measured presence in ``obsm``; where it is 0 the intensity counts as 0. `None`: ``obsm["<metabolite_key>_presence"]`` if
        it exists, else only intensities that :func:`stmsi.pp.impute_dropout` filled in count as 0.
    sample_key, table_key
        Column of ``obs`` with the section name, and the ST table.
    classifier
        Whether to run the two-sample test, which takes most of the time.
    rng
        Seed or generator, for pairs of spots and of metabolites and for the classifier.

    Returns
    -------
    Tidy table with the columns ``statistic``, ``sample``, ``draw``, ``metabolite``, ``other``, ``at``, ``measured``,
    ``synthetic``:

    - ``"mean"``, ``"sd"``, ``"prevalence"``, ``"dynamic_range"`` (log10 of the 95th over the 5th percentile where
      present) and ``"morans_i"``: one row per section, draw and metabolite;
    - ``"quantile"``: of the intensity where present, level in ``at``;
    - ``"ks"``: distance of Kolmogorov and Smirnov between both distributions in ``synthetic`` (0 in ``measured``);
    - ``"correlation"`` between ``metabolite`` and ``other``, of at most 2,000 pairs;
    - ``"variogram"``: half the mean squared difference in units of the variance, distance in ``at``;
    - ``"auc"``: AUROC of gradient-boosted trees that tell synthetic from measured spots by their intensities and the mean of
      their six neighbours; whole spatial blocks are held out (Lopez-Paz & Oquab, ICLR 2017). Compare it with ``measured``: the
      AUROC between the first two draws, or 0.5 if there is one. Use several sections: small blocks tell any realisations apart.

    Raises
    ------
    KeyError
        A layer is not there.
    ValueError
        No metabolite or no spot in common, or fewer than 20 spots.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.sample_metabolites(sdata, "ridge", rng=0, show_progress_bar=False)
    >>> table = stmsi.experimental.realism(sdata, "msi_sample_0", classifier=False)
    >>> int((table["statistic"] == "prevalence").sum())
    36
    """
    st = get_table(measured, table_key)
    real = require_frame(st, metabolite_key, MAP_WRITES)
    presence = measured_presence(st, metabolite_key, presence_key).reindex(columns=real.columns)
    real = real.mask(presence == 0, 0)
    draws = _draws(st, synthetic)
    ids = [m for m in real.columns if m in draws[0].columns]
    if not ids:
        msg = f"No metabolite in common: {listing(real.columns[:3])} against {listing(draws[0].columns[:3])}."
        raise ValueError(msg)
    ids = [m for m in ids if real[m].notna().any()]
    real = real[ids]
    drawn = [d.reindex(index=st.obs_names, columns=ids).to_numpy(np.float64) for d in draws]
    y = real.to_numpy(np.float64)
    used = ~np.isnan(y).any(axis=1) & ~np.any([np.isnan(d).any(axis=1) for d in drawn], axis=0)
    if used.sum() < _LEAST_SPOTS:
        msg = (
            f"{int(used.sum())} spots have both all measured and all synthetic metabolites; at least {_LEAST_SPOTS} are "
            "needed. Metabolites that some sections did not measure can be left out with draws of the others only."
        )
        raise ValueError(msg)
    random = np.random.default_rng(rng)
    y, drawn = y[used], [d[used] for d in drawn]
    sample = sections_of(st, sample_key)[used]
    xy = st.obsm.get(Key.obsm.SPATIAL)
    xy = None if xy is None else np.asarray(xy, dtype=np.float64)[used, :2]
    pairs = _metabolite_pairs(len(ids), random)
    parts: list[pd.DataFrame] = []
    for name, rows in measured_sections(sample, y):
        if len(rows) >= 3:
            place = None if xy is None else xy[rows]
            parts += _section(name, ids, y[rows], [d[rows] for d in drawn], place, pairs, random)
    if classifier:
        number = np.unique(sample, return_inverse=True)[1]
        means = None if xy is None else neighbour_means(xy, number)
        groups = _blocks(sample, xy)
        seed = int(random.integers(2**31))
        # no two realisations of a smooth field are alike: two draws show how far apart equals are
        reference = core.two_sample_auc(drawn[0], drawn[1], means, groups, seed=seed) if len(drawn) > 1 else 0.5
        auc = [core.two_sample_auc(y, d, means, groups, seed=seed) for d in drawn]
        found = {"statistic": "auc", "draw": range(len(drawn)), "measured": reference, "synthetic": auc}
        parts.append(pd.DataFrame(found))
    table = pd.concat([p.reindex(columns=list(COLUMNS)) for p in parts], ignore_index=True)
    text = ["sample", "metabolite", "other"]
    table[text] = table[text].astype(object).where(table[text].notna(), "")
    return table.astype({"at": np.float64, "measured": np.float64, "synthetic": np.float64, "draw": np.int64})


def _draws(st: AnnData, synthetic: Any) -> list[pd.DataFrame]:
    """Each draw as a DataFrame spots x metabolites."""
    if isinstance(synthetic, pd.DataFrame):
        frames = [synthetic]
    elif hasattr(synthetic, "dims"):
        if set(synthetic.dims) != {"draw", "spot", "metabolite"}:
            msg = f"The draws have the dimensions {listing(synthetic.dims)}; expected draw, spot and metabolite."
            raise ValueError(msg)
        array = synthetic.transpose("draw", "spot", "metabolite")
        names = {"index": array["spot"].to_numpy(), "columns": array["metabolite"].to_numpy().astype(str)}
        frames = [pd.DataFrame(values, **names) for values in array.to_numpy()]
    else:
        keys = [synthetic] if isinstance(synthetic, str) else synthetic
        frames = [require_frame(st, key, "stmsi.tl.sample_metabolites writes draws.") for key in keys]
    if not frames:
        msg = "Name at least one synthetic layer."
        raise ValueError(msg)
    if frames[0].index.intersection(st.obs_names).empty:
        msg = f"Synthetic and measured spots have no name in common: {listing(frames[0].index[:3])}, {listing(st.obs_names[:3])}."
        raise ValueError(msg)
    return frames


def _metabolite_pairs(n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of metabolites, or a random choice of many."""
    i, j = np.triu_indices(n, 1)
    if len(i) > _MOST_PAIRS:
        chosen = np.sort(rng.choice(len(i), _MOST_PAIRS, replace=False))
        i, j = i[chosen], j[chosen]
    return i, j


def _blocks(sample: NDArray[Any], xy: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Groups of the classifier: spatial blocks of each section, without positions the sections."""
    names, number = np.unique(sample, return_inverse=True)
    if xy is None:
        if len(names) > 1:
            return number
        msg = f"The classifier holds out spatial blocks, but obsm[{Key.obsm.SPATIAL!r}] is not there; pass classifier=False."
        raise ValueError(msg)
    per_section = max(2, int(np.ceil(_BLOCKS / len(names))))
    groups = np.zeros(len(sample), np.int64)
    for s in range(len(names)):
        own = np.flatnonzero(number == s)
        one = np.zeros(len(own), dtype=object)
        block = inner_groups(one, xy[own], n_groups=per_section) if len(own) > per_section else 0
        groups[own] = s * per_section + block
    return groups


def _section(
    section: str, ids: list[str], y: NDArray[np.float64], drawn: list[NDArray[np.float64]], xy: NDArray[np.float64] | None,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]], rng: np.random.Generator,
) -> list[pd.DataFrame]:  # fmt: skip
    """All statistics of one section but the classifier's."""
    both = [y, *drawn]
    simple = [core.marginals(v) for v in both]
    lag: NDArray[np.float64] = np.empty(0)
    gamma: list[NDArray[np.float64]] = []
    if xy is not None:
        graph = neighbour_means(xy)
        if graph.nnz:
            for values, out in zip(both, simple, strict=True):
                out["morans_i"] = morans_i(graph, values)
        lag, gamma = core.variogram(np.stack(both), xy, rng)
    quantile = [core.present_quantiles(np.where(v > 0, v, np.nan), core.LEVELS) for v in both]
    correlation = [_correlations(v, pairs) for v in both]
    first, second = (np.asarray(ids, dtype=object)[p] for p in pairs)
    parts: list[pd.DataFrame] = []
    for d, one in enumerate(drawn):
        rows: list[tuple[str, dict[str, Any], Any, Any]] = [
            (name, {"metabolite": ids}, own, simple[d + 1][name]) for name, own in simple[0].items()
        ]
        rows.append(("ks", {"metabolite": ids}, 0.0, core.kolmogorov_smirnov(y, one)))
        for name, at, found in (("quantile", np.asarray(core.LEVELS), quantile), ("variogram", lag, gamma)):
            if len(at):
                cells = {"at": np.repeat(at, len(ids)), "metabolite": ids * len(at)}
                rows.append((name, cells, found[0].ravel(), found[d + 1].ravel()))
        if len(first):
            rows.append(("correlation", {"metabolite": first, "other": second}, correlation[0], correlation[d + 1]))
        for name, cells, real, fake in rows:
            values_of = {"statistic": name, **cells, "measured": real, "synthetic": fake}
            parts.append(pd.DataFrame({"sample": section, "draw": d, **values_of}))
    return parts


def _correlations(y: NDArray[np.float64], pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> NDArray[np.float64]:
    """Pearson correlation of pairs of columns; NaN where one is constant."""
    centred = y - y.mean(axis=0)
    size = np.sqrt((centred**2).sum(axis=0))
    z = centred / np.where(size > 1e-12, size, np.nan)
    return np.asarray((z.T @ z)[pairs])
