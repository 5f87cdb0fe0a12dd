"""Error against the share of spots for which a prediction is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from stmsi._core.metrics.reliability import binary_entropy, kept_errors
from stmsi._data.checks import check_choice, listing
from stmsi._data.keys import Key
from stmsi._data.measured_and_predicted import PREDICT_WRITES, MeasuredAndPredicted, measured_sections, values_of
from stmsi._data.tables import get_table, require_frame, require_obs, sections_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Uncertainty: TypeAlias = Literal["interval", "presence", "ood", "oracle"]


def abstention(
    data: SpatialData | AnnData,
    by: Uncertainty | Sequence[Uncertainty] = ("interval", "presence", "ood"),
    *,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
) -> pd.DataFrame:
    """Error of the predictions that remain when the most uncertain spots are left out.

    In each section and for each metabolite the spots are ordered by their uncertainty. A useful uncertainty lowers the error
    as fewer spots are kept; it tells about new tissue only if the model did not see the section while training.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.predict_metabolites`, with measured metabolites.
    by
        One or several uncertainties: ``"interval"`` (width of the prediction interval), ``"presence"`` (entropy of the
        probability of presence), ``"ood"`` (out-of-distribution score, the same for all metabolites of a spot) and
        ``"oracle"`` (the error itself: no uncertainty can do better).
    shares
        Shares of the covered spots to keep, above 0 and up to 1.
    pred_key, metabolite_key
        Prediction and measured intensities in ``obsm``.
    sample_key, table_key
        Column of ``obs`` with the section name, and the ST table.

    Returns
    -------
    One row per section x uncertainty x metabolite x share: ``sample``, ``by``, ``metabolite``, ``share``, ``n`` (spots
    kept), ``mae`` and ``mse`` (mean absolute and squared error of the spots kept), ``relative_mae`` (in units of the
    ``mae`` of all spots; NaN where that is 0). Metabolites that a section lacks have no rows.

    Raises
    ------
    KeyError
        Prediction, uncertainty or measurement is not there.
    ValueError
        Unknown uncertainty, shares out of range, no metabolite in common, or no section with MSI.

    Notes
    -----
    Where little is predicted, errors are small and intervals narrow. Part of the gain is therefore that the spots that are
    kept have low intensities.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> curve = stmsi.experimental.abstention(sdata, "interval", shares=[0.5, 1])
    >>> error = curve.groupby("share")["relative_mae"].mean()
    >>> bool(error[0.5] < error[1.0])
    True
    """
    st = get_table(data, table_key)
    names = [by] if isinstance(by, str) else list(by)
    if not names:
        msg = f"Name at least one uncertainty: {listing(get_args(Uncertainty))}."
        raise ValueError(msg)
    for name in names:
        check_choice(name, get_args(Uncertainty), "by")
    wanted = np.asarray(shares, dtype=np.float64).reshape(-1)
    if len(wanted) == 0 or not ((wanted > 0) & (wanted <= 1)).all():
        msg = f"shares lie above 0 and up to 1, at least one; found {listing(wanted)}."
        raise ValueError(msg)
    pair = MeasuredAndPredicted.read(st, metabolite_key, pred_key)
    difference = pair.predicted - pair.measured
    uncertain = {name: _uncertainty(st, name, pred_key, pair.ids, difference) for name in names}
    parts = []
    for section, rows in measured_sections(sections_of(st, sample_key), difference):
        error = difference[rows]
        for name, values in uncertain.items():
            n, mae = kept_errors(np.abs(error), values[rows], wanted)
            _, mse = kept_errors(error**2, values[rows], wanted)
            _, of_all = kept_errors(np.abs(error), values[rows], np.ones(1))
            relative = np.where(of_all > 0, mae / np.where(of_all > 0, of_all, 1), np.nan)
            columns = {"metabolite": np.repeat(pair.ids, len(wanted)), "share": np.tile(wanted, len(pair.ids))}
            columns |= {k: v.T.ravel() for k, v in (("n", n), ("mae", mae), ("mse", mse), ("relative_mae", relative))}
            parts.append(pd.DataFrame({"sample": section, "by": name, **columns}))
    if not parts:
        msg = "No section has MSI to compare with: all measured intensities are NaN."
        raise ValueError(msg)
    table = pd.concat(parts, ignore_index=True)
    return table.loc[table["n"] > 0].reset_index(drop=True)


def _uncertainty(
    st: AnnData, name: str, pred_key: str, ids: list[str], difference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Uncertainty of each spot and metabolite."""
    if name == "oracle":
        return np.abs(difference)
    if name == "ood":
        score = require_obs(st, Key.ood_of(pred_key), PREDICT_WRITES).to_numpy(np.float64)
        return np.broadcast_to(score[:, None], difference.shape)
    keys = Key.bounds_of(pred_key) if name == "interval" else (Key.presence_of(pred_key),)
    values = [values_of(require_frame(st, key, PREDICT_WRITES), ids, key) for key in keys]
    return values[1] - values[0] if name == "interval" else binary_entropy(values[0])
