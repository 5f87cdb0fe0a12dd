"""Metabolites per spot from the pixels that a spot covers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.mapping.pixel_weights import (
    Spread,
    dominant,
    effective_number,
    normalised,
    weighted_median,
    weighted_sums,
    weighted_variance,
)
from stmsi._data.checks import (
    check_choice,
    check_key,
    check_nonnegative,
    check_positive,
    check_share,
    listing,
    own_view,
    require_rows,
    require_spatialdata,
    require_unique,
)
from stmsi._data.keys import Key
from stmsi._data.tables import check_rows_of, copy_of, get_table, require_sample, values_of
from stmsi._messages import warns_once
from stmsi._settings import logger
from stmsi.pp._mapping.spot_weights import Section, check_coverage, paired_sections, weigh
from stmsi.pp._msi_table import measured_ions, raster_of, total_ion_current

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Method = Literal["area", "nearest"]
Aggregation = Literal["mean", "sum", "median", "tic"]


@warns_once
def map_to_spots(
    sdata: SpatialData,
    *,
    layer: str | None = None,
    method: Method = "area",
    agg: Aggregation = "mean",
    min_coverage: float = 0.0,
    max_distance: float | None = None,
    tic_key: str | None = None,
    replicates: bool = False,
    spread: bool = False,
    key_added: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
    copy: bool = False,
) -> SpatialData | None:
    r"""Map aligned MSI pixels to spots, bins or cells by the exact area that they share.

    The value of metabolite :math:`m` in spot :math:`i` is the area-weighted mean over the pixels :math:`p`

    .. math:: y_{im} = \sum_p A_{ip} x_{pm} / \sum_p A_{ip}

    with :math:`A_{ip}` the exact area that the spot (a circle, a square bin, or a cell of any outline) and the pixel (its
    square after alignment, also after a non-rigid one) share.

    It works in both directions. Where bins are finer than pixels, each takes the value of the pixel that it lies in, and
    **neighbouring bins share one measurement**: they are no replicates. ``obs["msi_pixel"]`` names the pixel that a bin
    has most of its value from. Count such groups, not bins, and keep them in one fold.

    Parameters
    ----------
    sdata
        After :func:`stmsi.pp.align`. Sections without MSI may be among them.
    layer
        Layer of the MSI table to map; `None`: ``X``. Dense, sparse, dask (of either) or backed by a file, then read block
        by block.
    method
        ``"area"``: every pixel counts with the area that it shares with the spot. ``"nearest"``: every pixel counts as 1
        in the nearest of *all* spots of the shapes element (also of those that the table has left out, so that the spots
        at the border of the tissue take nothing from beyond it), within `max_distance`. Spots without a pixel are NaN.
    agg
        What becomes of the pixels of a spot, weighted as `method` says:

        - ``"mean"``: as above;
        - ``"sum"``: :math:`\sum_p (A_{ip} / A_p) x_{pm}` (with ``"nearest"`` the plain sum), which grows with the area;
        - ``"median"``: the weighted median, robust against hot pixels;
        - ``"tic"``: :math:`\sum_p A_{ip} x_{pm} / \sum_p A_{ip} t_p` with the total ion current :math:`t_p`: shares of the
          total.
    min_coverage
        Share of a spot's area that pixels must cover; below it the spot counts as not covered.
    max_distance
        For ``method="nearest"``, in micrometres; `None`: half the median distance between neighbouring spots.
    tic_key
        For ``agg="tic"``: column of the MSI table's ``obs`` with the total ion current of the whole spectrum; `None`: the
        sum of the ions in the table.
    replicates
        Also write the variance between the pixels of each spot, and the values from either half of them (even and odd
        ``row + col``). The agreement of the halves bounds what any prediction can reach.
    spread
        Also write the standard deviation of the values within the error of the alignment: over the transformations that
        ``stmsi.pp.align(n_perturb=)`` has drawn.
    key_added
        Where in ``obsm`` to write.
    sample_key
        Column of ``obs`` with the section name.
    table_key, msi_table_key
        The ST and the MSI table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes into the ST table:

    - ``obsm["msi"]``: DataFrame spots x metabolites, float32; **NaN where MSI did not cover the spot** (or the section
      did not measure the ion), 0 where it did and found nothing;
    - ``obs["msi_coverage"]``: covered share of the spot's area, 0 to 1;
    - ``obs["msi_n_pixels"]``: number of pixels that contribute, and ``obs["msi_n_effective"]``: how many pixels of equal
      weight average as well, :math:`(\sum A)^2 / \sum A^2`;
    - ``obs["msi_pixel"]``: the pixel of largest weight (categorical, missing where there is none), and
      ``obs["msi_pixel_share"]``: its share of the weight, 1 where it is the only one;
    - ``uns["msi"]``: ``features`` (the metabolites: ``name``, ``mz``, ...), ``params`` and, after
      :func:`stmsi.pp.combine`, ``section_mz`` (metabolites x sections, NaN where a section did not measure the ion);
    - with `replicates` ``obsm["msi_variance"]``: the variance between pixels, weighted, NaN for spots of one pixel
      (divided by ``msi_n_effective`` it is the squared standard error of the mean); ``obsm["msi_half_1"]`` and
      ``obsm["msi_half_2"]``, NaN where a half has no pixel;
    - with `spread` ``obsm["msi_spread"]``: standard deviation over the perturbed alignments.

    With ``method="nearest"`` the MSI table gets ``obs["msi_spot"]``, the spot of each pixel. With another `key_added` all
    these names begin with it, except for ``msi_coverage``. What else an earlier mapping to the same key wrote, the
    presence called from it, and the records of what was imputed or corrected are removed.

    Raises
    ------
    ValueError
        A section is not aligned, no spot is covered, pixels overlap each other, spots and pixels are in different
        units, names of spots or pixels repeat, intensities are negative or NaN, or nothing was drawn for `spread`.
    KeyError
        Missing tables, elements, layers or columns.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata, min_coverage=0.5, replicates=True)
    >>> st = sdata.tables["st"]
    >>> st.obsm["msi"].shape
    (344, 12)
    >>> int(st.obs["msi_n_pixels"].max())
    6
    >>> sorted(key for key in st.obsm if key.startswith("msi"))
    ['msi', 'msi_half_1', 'msi_half_2', 'msi_variance']
    """
    require_spatialdata(sdata)
    check_key(key_added)
    check_choice(method, get_args(Method), "method")
    check_choice(agg, get_args(Aggregation), "agg")
    check_share(min_coverage, "min_coverage")
    check_positive(max_distance, "max_distance", "micrometres")
    if max_distance is not None and method != "nearest":
        msg = f"max_distance goes with method='nearest', found method={method!r}."
        raise ValueError(msg)
    if tic_key is not None and agg != "tic":
        msg = f"tic_key goes with agg='tic', found agg={agg!r}."
        raise ValueError(msg)
    check_rows_of(sdata, table_key, "spots")
    check_rows_of(sdata, msi_table_key, "pixels")
    st, msi = get_table(sdata, table_key), get_table(sdata, msi_table_key)
    own_view(st)
    if method == "nearest":
        own_view(msi)
    require_rows(st)
    require_rows(msi, "pixels")
    for table, what in ((st, "Spot names"), (msi, "Pixel names")):
        require_unique(table.obs_names, what, "Call .obs_names_make_unique() on the table.")
    values = values_of(msi, layer, "MSI")
    tic = None if tic_key is None else total_ion_current(msi, tic_key)
    parity = None
    if replicates:  # the colour of each pixel on a chess board
        row, col = raster_of(msi, "The halves of replicates=True are pixels of even and odd row + col.")
        parity = (row + col) % 2
    st_sample, msi_sample = require_sample(st, sample_key), require_sample(msi, sample_key)
    sections = paired_sections(sdata, st, msi, st_sample, msi_sample)
    perturbations = _perturbations(msi, sections) if spread else {}

    weights = weigh(sections, st.n_obs, msi.n_obs, method, max_distance)
    coverage, kept = check_coverage(sections, weights, min_coverage)
    aggregate = _Aggregate(values, agg, tic)
    stack = [weights.used]
    if parity is not None:
        stack += [weights.used @ sp.diags((parity == half).astype(float)) for half in (0, 1)]
    found = aggregate(sp.vstack(stack, format="csr"), weights.pixel_area, check=True)
    results = dict(zip((key_added, *Key.halves_of(key_added)), np.split(found, len(stack)), strict=False))
    if parity is not None:
        mean = results[key_added] if agg == "mean" else _Aggregate(values, "mean")(weights.used, weights.pixel_area)
        results[Key.variance_of(key_added)] = weighted_variance(weights.used, values, mean)[0]
    if spread:
        results[Key.spread_of(key_added)] = _spread_of(
            sections, perturbations, aggregate, (st.n_obs, msi.n_obs), method, weights.max_distance, min_coverage
        )
    for matrix in results.values():
        matrix[~kept] = np.nan
        for name, section in sections.items():
            matrix[np.ix_(section.spots, ~measured_ions(msi, name))] = np.nan
    columns = _columns(weights.used, kept, msi.obs_names, key_added)
    pairing = _categorical(dominant(sp.csr_matrix(weights.used.T))[0], st.obs_names)

    # from here on nothing can fail
    out = copy_of(sdata) if copy else sdata
    st, msi = get_table(out, table_key), get_table(out, msi_table_key)
    names = msi.var_names.astype(str)
    _forget(st, key_added, keep=set(results))
    for key, matrix in results.items():
        st.obsm[key] = pd.DataFrame(matrix, index=st.obs_names, columns=names)
    st.obs[Key.obs.COVERAGE] = coverage
    for key, column in columns.items():
        st.obs[key] = column
    params: dict[str, Any] = {"method": method, "agg": agg, "min_coverage": min_coverage, "layer": layer or "X"}
    params |= {"replicates": replicates, "n_perturb": max((len(p) for p in perturbations.values()), default=0)}
    if tic_key is not None:
        params["tic_key"] = tic_key
    if method == "nearest":
        params["max_distance"] = weights.max_distance
        msi.obs[Key.spot_of(key_added)] = pairing
    elif Key.spot_of(key_added) in msi.obs:
        del msi.obs[Key.spot_of(key_added)]
    if Key.uns.NORMALIZE in msi.uns:
        params["normalize_msi"] = dict(msi.uns[Key.uns.NORMALIZE]["params"])
    st.uns[key_added] = {"features": msi.var.copy(), "params": params}
    if Key.varm.SECTION_MZ in msi.varm:
        st.uns[key_added][Key.varm.SECTION_MZ] = msi.varm[Key.varm.SECTION_MZ].copy()
    return out if copy else None


class _Aggregate:
    """Turns weights into values of the spots."""

    def __init__(self, values: Any, agg: Aggregation, tic: NDArray[np.float64] | None = None) -> None:
        self.values, self.agg, self.tic = values, agg, tic

    def __call__(
        self, weights: sp.csr_matrix, pixel_area: NDArray[np.float64], *, check: bool = False
    ) -> NDArray[np.float32]:
        """Values, shape (spots, metabolites), NaN where a spot has no pixel."""
        checked = _check_block if check else None
        share = normalised(weights)
        if self.agg == "sum":
            with np.errstate(divide="ignore"):
                share = sp.csr_matrix(weights @ sp.diags(np.where(pixel_area > 0, 1 / pixel_area, 0.0)))
        if self.agg == "median":
            out = weighted_median(weights, self.values, checked)
        else:
            out = weighted_sums(share, self.values, checked)
        if self.agg == "tic":
            # the totals of the table's ions add up to the sum over its columns
            total = out.sum(axis=1, dtype=np.float64) if self.tic is None else share @ self.tic
            out *= np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)[:, None].astype(np.float32)
        out[np.diff(weights.indptr) == 0] = np.nan
        return out


def _check_block(block: Any) -> None:
    array = block.data if sp.issparse(block) else block
    if array.size and array.dtype.kind in "fiu" and array.min() >= 0 and array.max() < np.inf:
        return  # two passes without a copy; NaN fails both
    check_nonnegative(block, "MSI intensities")


def _perturbations(msi: AnnData, sections: dict[str, Section]) -> dict[str, NDArray[np.float64]]:
    """Transformations within the ST frame that each section's alignment might as well have had."""
    record = msi.uns.get(Key.uns.ALIGNMENT, {})
    found = {}
    for name in sections:
        drawn = np.asarray(record.get(name, {}).get("perturbations", np.empty((0, 3, 3))), dtype=np.float64)
        if drawn.ndim != 3 or drawn.shape[1:] != (3, 3) or not np.isfinite(drawn).all():
            msg = f"Section {name!r}: perturbations have shape (n, 3, 3) and are finite, found shape {drawn.shape}."
            raise ValueError(msg)
        if len(drawn) > 1:
            found[name] = drawn
    if not found:
        msg = "spread=True needs two perturbed alignments or more; call stmsi.pp.align with n_perturb= first."
        raise ValueError(msg)
    if missing := [name for name in sections if name not in found]:
        logger.warning("Sections %s have no perturbed alignments; their spread is NaN.", listing(missing))
    return found


def _spread_of(
    sections: dict[str, Section],
    perturbations: dict[str, NDArray[np.float64]],
    aggregate: _Aggregate,
    shape: tuple[int, int],
    method: str,
    max_distance: dict[str, float],
    min_coverage: float,
) -> NDArray[np.float32]:
    """Standard deviation of the values over perturbed alignments, shape (spots, metabolites)."""
    spread = Spread((shape[0], aggregate.values.shape[1]))
    for k in range(max(len(p) for p in perturbations.values())):
        now = {name: drawn[k] for name, drawn in perturbations.items() if k < len(drawn)}
        moved = {n: replace(sections[n], geometry=sections[n].geometry.moved(matrix)) for n, matrix in now.items()}
        weights = weigh(moved, *shape, method, max_distance)
        spread.add(aggregate(weights.used, weights.pixel_area), weights.covered(min_coverage)[1])
    return spread.std()


def _columns(used: sp.csr_matrix, kept: NDArray[np.bool_], pixels: pd.Index, key_added: str) -> dict[str, Any]:
    """Columns of ``obs`` that say which pixels a spot has its values from."""
    column, largest = dominant(used)
    found = (
        np.where(kept, np.diff(used.indptr), 0).astype(np.int32),
        np.where(kept, effective_number(used), 0.0),
        _categorical(np.where(kept, column, -1), pixels),
        np.where(kept, largest, 0.0),
    )
    return dict(zip((*Key.n_pixels_of(key_added), *Key.pixel_of(key_added)), found, strict=True))


def _categorical(position: NDArray[np.int64], names: pd.Index) -> pd.Categorical:
    """Names by position, missing where it is -1; only names in use are categories."""
    used, code = np.unique(position, return_inverse=True)
    first = int(len(used) > 0 and used[0] < 0)
    return pd.Categorical.from_codes(code - first, categories=names[used[first:]].astype(str))


def _forget(st: AnnData, key_added: str, keep: set[str]) -> None:
    """Drop what an earlier mapping to the same key wrote, and what was made from it."""
    written = (Key.variance_of(key_added), Key.spread_of(key_added), *Key.halves_of(key_added))
    for key in {*written, Key.observed_of(key_added), Key.uncorrected_of(key_added)} - keep:
        st.obsm.pop(key, None)
    ceiling = st.uns.get(Key.uns.CEILING, {})
    if ceiling.get("params", {}).get("metabolite_key") == key_added:
        del st.uns[Key.uns.CEILING]
    if st.obsm.pop(Key.presence_of(key_added), None) is not None:
        logger.info(
            "obsm[%r] was called from the earlier mapping and is removed; call stmsi.pp.call_presence again.",
            Key.presence_of(key_added),
        )
