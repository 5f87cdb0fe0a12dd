"""Bring sections to one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._core.spectra.batch_effects import BatchEffects
from stmsi._core.spectra.section_scale import distribution, section_ranks, transfer
from stmsi._data.checks import check_choice, check_nonnegative, listing
from stmsi._data.keys import Key
from stmsi._data.tables import imputed, require_frame, require_mapped, require_obs, table_to_change
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Method = Literal["combat", "quantile", "rank", "none"]
_FEWEST = 3
"""Metabolites that ComBat needs to learn what their batch effects have in common."""


def correct_batch(
    data: SpatialData | AnnData,
    *,
    method: Method = "combat",
    batch_key: str | None = None,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    r"""Take out what differs between sections as a whole.

    Zeros stay 0 (absent is absent in any batch) and NaN stay NaN, with every method. What differs between sections may
    be biology: with one section per condition, nothing tells the two apart. A correction that has seen the test section
    is none that a new section without MSI could get: say so with the scores.

    Parameters
    ----------
    data
        SpatialData after :func:`stmsi.pp.map_to_spots`, or its ST table.
    method
        - ``"combat"``: ComBat (Johnson et al. 2007) on the values above zero, for intensities on a logarithmic scale. It
          shifts and scales each metabolite in each batch, after what all metabolites of the batch have in common. How *often* a
          metabolite is found takes no part: a zero is no measurement. On values that are all above zero it is
          :func:`scanpy.pp.combat`. Values do not fall below the smallest that was measured. Metabolites with values in fewer
          than two batches, or constant in one, stay as they are; all do where there are fewer than three.
        - ``"quantile"``: each metabolite's values above zero get the same distribution in each batch, the mean of the
          batches' quantiles. The distributions are kept, so that it can be turned back.
        - ``"rank"``: rank among the values above zero of the batch, a share in (0, 1). It makes platforms comparable
          (as in UnitedMet, 2025) and gives the unit away.
        - ``"none"``: put the intensities back as they were before.
    batch_key
        Column of ``obs`` that names the batches (slide, run, patient); `None`: the sections.
    metabolite_key
        Intensities in ``obsm``.
    sample_key, table_key
        Column of ``obs`` with the section name; the ST table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Replaces ``obsm["msi"]`` and keeps what it was in
    ``obsm["msi_uncorrected"]``; called again it starts from there. Records ``uns["msi"]["correct_batch"]`` with
    ``params`` and, for ``"quantile"``, ``quantiles``: for each batch and for ``"reference"`` a table of 101 quantiles x
    metabolites. Limits of detection and presence belong to the scale before: call presence first.

    Raises
    ------
    ValueError
        One batch only, a batch with a single spot (ComBat), negative or infinite intensities, no intensity at all.
    KeyError
        Intensities or columns are not there; ``"none"`` without an earlier correction.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.pp.call_presence(sdata)
    >>> stmsi.pp.correct_batch(sdata, method="rank")
    >>> st = sdata.tables["st"]
    >>> bool((st.obsm["msi"].max() < 1).all())
    True
    """
    check_choice(method, get_args(Method), "method")
    st, changed = table_to_change(data, table_key, copy=copy)
    frame = require_mapped(st, metabolite_key)
    kept = Key.uncorrected_of(metabolite_key)
    if method == "none":  # put back what an earlier call replaced
        st.obsm[metabolite_key] = require_frame(
            st, kept, "stmsi.pp.correct_batch writes it; nothing was corrected."
        ).copy()
        del st.obsm[kept]
        st.uns[metabolite_key] = {k: v for k, v in st.uns.get(metabolite_key, {}).items() if k != "correct_batch"}
        return changed
    if kept in st.obsm:
        frame = require_frame(st, kept)
    check_nonnegative(frame.to_numpy(), f"obsm[{metabolite_key!r}]", allow_nan=True)
    if imputed(st, metabolite_key, frame).any():
        logger.info("Imputed intensities are corrected like measured ones.")
    key = sample_key if batch_key is None else batch_key
    label = require_obs(st, key, "It names the batch of each spot.")
    if label.isna().any():
        msg = f"obs[{key!r}] has {int(label.isna().sum())} missing values; every spot needs a batch."
        raise ValueError(msg)
    batch = label.astype(str).to_numpy(dtype=object)
    values = frame.to_numpy(np.float64)
    covered = np.isfinite(values).any(axis=1)
    names = list(dict.fromkeys(batch[covered]))
    if len(names) < 2:
        msg = f"A correction needs at least two batches with MSI; obs[{key!r}] has {listing(names)}."
        raise ValueError(msg)
    record: dict[str, Any] = {"params": {"method": method, "batch_key": key}}
    if method == "combat":
        corrected = _combat(values, batch, covered, names)
    else:
        corrected = values.copy()
        rows = {name: np.flatnonzero((batch == name) & covered) for name in names}
        if method == "rank":
            for own in rows.values():
                corrected[own] = section_ranks(values[own])
        else:
            quantiles = {name: distribution(values[own]) for name, own in rows.items()}
            stack = np.stack(list(quantiles.values()))
            known = np.isfinite(stack).all(axis=1).sum(axis=0)
            reference = np.where(known > 0, np.nansum(stack, axis=0) / np.maximum(known, 1), np.nan)
            for name, own in rows.items():
                corrected[own] = transfer(values[own], quantiles[name], reference)
            tables = quantiles | {"reference": reference}
            record["quantiles"] = {
                n: pd.DataFrame(q, columns=frame.columns)
                for n, q in zip(safe_ids(tables), tables.values(), strict=True)
            }
    st.obsm[kept] = frame.copy()
    st.obsm[metabolite_key] = pd.DataFrame(corrected.astype(np.float32), index=frame.index, columns=frame.columns)
    st.uns[metabolite_key] = dict(st.uns.get(metabolite_key, {})) | {"correct_batch": record}
    return changed


def _combat(
    values: NDArray[np.float64], batch: NDArray[Any], covered: NDArray[np.bool_], names: list[str]
) -> NDArray[np.float64]:
    """ComBat on the values above zero; what is not above zero stays."""
    single = [n for n in names if (batch[covered] == n).sum() < 2]
    if single:
        msg = f"ComBat needs two spots of each batch; {listing(single)} have one. Leave them out, or use method='rank'."
        raise ValueError(msg)
    above = np.where(values > 0, values, np.nan)
    rows = [np.flatnonzero((batch == name) & covered) for name in names]
    count = np.stack([np.isfinite(above[own]).sum(axis=0) for own in rows])
    varies = np.stack([np.nan_to_num(above[own]).max(axis=0) > _least(above[own]) for own in rows])
    # constant in a batch: its spread there cannot be brought to that of the others
    usable = np.flatnonzero((varies | (count < 2)).all(axis=0) & (varies.sum(axis=0) >= 2))
    corrected = values.copy()
    if len(usable) >= _FEWEST:
        effects = BatchEffects.of([above[np.ix_(own, usable)] for own in rows])
        least = _least(above[:, usable])
        for b, own in enumerate(rows):
            place = np.ix_(own, usable)
            fixed = np.maximum(effects.remove(above[place], b), least)
            corrected[place] = np.where(np.isnan(above[place]), values[place], fixed)
    else:
        usable = usable[:0]
    if left := values.shape[1] - len(usable):
        logger.warning(
            "%d metabolites stay as they are: fewer than two batches have values of them, they are constant in one, or there are "
            "fewer than %d others.", left, _FEWEST,
        )  # fmt: skip
    return corrected


def _least(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest value of each column, NaN left out; infinite without any."""
    return np.min(np.where(np.isnan(values), np.inf, values), axis=0, initial=np.inf)
