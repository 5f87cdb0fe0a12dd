"""Make pixels comparable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.spectra.pixel_statistics import otsu_tissue, pixel_factors, section_quantiles
from stmsi._data.checks import check_choice, check_nonnegative, check_positive
from stmsi._data.feature_table import find_features
from stmsi._data.keys import Key
from stmsi._data.merge_fields import same
from stmsi._data.stale import mark_stale
from stmsi._data.tables import (
    as_csr,
    require_frame,
    require_mapped,
    require_metabolites,
    sections_of,
    table_sections,
    table_to_change,
)
from stmsi._messages import warns_once
from stmsi._settings import logger
from stmsi.pp._msi_table import tissue_of, total_ion_current

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Method = Literal["tic", "rms", "median", "reference", "none"]
_OTSU = "otsu"


@warns_once
def normalize_msi(
    data: SpatialData | AnnData,
    *,
    method: Method = "tic",
    reference: str | None = None,
    log1p: bool = True,
    winsorize: float | None = None,
    target: float | None = None,
    tic_key: str | None = None,
    tissue: str | None = None,
    metabolite_key: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str | None = None,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Normalise the ion intensities of each pixel, or of each spot.

    Parameters
    ----------
    data
        SpatialData with an MSI table, or that table. ``X`` sparse or dense. With `metabolite_key` the ST table.
    method
        What a pixel is divided by: its total ion current (``"tic"``), the root mean square (``"rms"``) or the median
        (``"median"``) of its ions above zero, one ion (``"reference"``), or nothing (``"none"``).
    reference
        Id or name of the ion to divide by, such as a sprayed standard, with ``method="reference"``. Pixels without it
        become 0.
    log1p
        Whether to take ``log(1 + x)`` afterwards.
    winsorize
        Quantile (such as 0.99) of each ion's values above zero in each section at which hot spots are capped before.
    target
        What normalised pixels are scaled to; `None`: the mean over sections of the median factor, so that intensities
        keep their order of magnitude and sections share one scale.
    tic_key
        Column of ``obs`` with the total ion current of the *whole* spectrum, for ``method="tic"``; `None`: the sum of
        the ions in the table. Give it where the table holds few ions: their sum makes each depend on all others
        (closure), and an ion without a pattern takes on the inverse of theirs.
    tissue
        Which pixels are tissue: a boolean column of ``obs``, or ``"otsu"`` for Otsu's threshold on the logarithm of the
        total ion current (``obs["tic"]``, else the sum of the table) in each section. A section without a clearly
        darker background (of at least 2 % of it) counts as tissue altogether, which is logged: where the matrix is as
        bright as the tissue, a column must say. `None`: all pixels. Pixels outside the tissue become 0 in ``X`` and
        count neither for caps nor for scale; ``layers["raw"]`` keeps them.
    metabolite_key
        Intensities of spots in ``obsm`` to normalise instead of pixels, for data that come matched
        (:func:`stmsi.pp.add_metabolites`). Where pixels are at hand, normalise them, and map afterwards.
    sample_key, table_key
        Column of ``obs`` with the section name (all is one section where it is missing); the table, `None`: the MSI table,
        with `metabolite_key` the ST table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Replaces ``X`` (float32 CSR), keeps the measured values in
    ``layers["raw"]`` and records ``uns["normalize_msi"]["params"]``. Writes ``obs["msi_scale"]``, what each pixel was
    multiplied with (0 without signal), and with `tissue` ``obs["on_tissue"]``. Called again it starts from
    ``layers["raw"]``. Pixels without any signal stay 0.

    With `metabolite_key` it replaces ``obsm["msi"]`` (NaN stay NaN), keeps the values before in ``obsm["msi_raw"]`` and
    records ``uns["msi"]["params"]["normalize_msi"]``. Presence that was called before is removed.

    Raises
    ------
    ValueError
        Negative, infinite or NaN intensities, an unknown method, a section without tissue, a table of genes.
    KeyError
        The reference ion or a column is not there.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.normalize_msi(sdata, method="tic")
    >>> sdata.tables["msi"].uns["normalize_msi"]["params"]["method"]
    'tic'
    """
    what: dict[str, Any] = {
        "method": method, "reference": reference, "log1p": log1p, "winsorize": winsorize, "target": target,
        "tic_key": tic_key, "tissue": tissue,
    }  # fmt: skip
    check_choice(method, get_args(Method), "method")
    if winsorize is not None and not 0 < winsorize <= 1:
        msg = f"winsorize is a quantile in (0, 1], found {winsorize!r}."
        raise ValueError(msg)
    if tic_key is not None and method != "tic":
        msg = f"tic_key goes with method='tic', found method={method!r}."
        raise ValueError(msg)
    if (reference is not None) != (method == "reference"):
        msg = f"reference= names the ion for method='reference'; found method={method!r}, reference={reference!r}."
        raise ValueError(msg)
    check_positive(target, "target")
    if metabolite_key is not None:
        st, changed = table_to_change(data, table_key or Key.table.ST, copy=copy)
        _normalize_spots(st, metabolite_key, sample_key, what)
        return changed
    msi, changed = table_to_change(data, table_key or Key.table.MSI, copy=copy, rows="pixels")
    before = msi.X
    _normalize(msi, sample_key=sample_key, **what)
    if not same(as_csr(before, np.float32), msi.X):
        mark_stale(data if changed is None else changed, "normalisation", table_sections(msi, sample_key), msi)
    return changed


def _normalize_spots(st: AnnData, key: str, sample_key: str, what: dict[str, Any]) -> None:
    """Normalise the intensities of ``obsm[key]``, of the spots that have some."""
    frame = require_mapped(st, key)
    kept = Key.raw_of(key)
    if kept in st.obsm and list(require_frame(st, kept).columns) == list(frame.columns):
        frame = require_frame(st, kept)
    values = frame.to_numpy(np.float32)
    check_nonnegative(values, f"obsm[{key!r}]", allow_nan=True)
    covered = np.isfinite(values).any(axis=1)
    if not covered.any():
        msg = f"obsm[{key!r}] holds nothing but NaN; there is nothing to normalise."
        raise ValueError(msg)
    features = find_features(st, key)
    var = pd.DataFrame(index=frame.columns) if features is None else features.reindex(frame.columns)
    spots = AnnData(np.nan_to_num(values[covered]), obs=st.obs[covered], var=var)
    _normalize(spots, sample_key=sample_key, **what)
    out = np.full(values.shape, np.nan, np.float32)
    out[covered] = spots.X.toarray()
    st.obsm[kept] = frame.copy()
    st.obsm[key] = pd.DataFrame(np.where(np.isnan(values), np.nan, out), index=frame.index, columns=frame.columns)
    record = dict(st.uns.get(key, {}))
    params = dict(record.get("params", {})) | {"normalize_msi": spots.uns[Key.uns.NORMALIZE]["params"]}
    st.uns[key] = {k: v for k, v in record.items() if k not in ("presence", "detection_limit")} | {"params": params}
    if st.obsm.pop(Key.presence_of(key), None) is not None:
        logger.info(
            "obsm[%r] was called on the scale before and is removed; call stmsi.pp.call_presence again.",
            Key.presence_of(key),
        )


def _normalize(
    msi: AnnData,
    *,
    method: Method,
    reference: str | None,
    log1p: bool,
    winsorize: float | None,
    target: float | None,
    tic_key: str | None,
    tissue: str | None,
    sample_key: str,
) -> None:
    """Normalise ``X`` in place and record it; the options are those of :func:`normalize_msi`."""
    raw = as_csr(msi.layers.get(Key.layers.RAW, msi.X), np.float32)
    check_nonnegative(raw, "MSI intensities")
    sample = sections_of(msi, sample_key)
    names = list(dict.fromkeys(sample))
    on_tissue = np.ones(msi.n_obs, bool) if tissue is None else _tissue(msi, raw, sample, tissue)
    X = raw.astype(np.float64)
    if winsorize is not None:
        cap = np.stack([section_quantiles(X[(sample == name) & on_tissue].tocsc(), winsorize) for name in names])
        section = pd.Index(names).get_indexer(sample)
        # an ion that no pixel of the tissue has is not capped
        cap[cap == 0] = np.inf
        X.data = np.minimum(X.data, cap[np.repeat(section, np.diff(X.indptr)), X.indices])
    if method == "reference":
        ion = require_metabolites([str(reference)], msi.var_names, msi.var.get(Key.var.NAME))[0]
        factor = X[:, [msi.var_names.get_loc(ion)]].toarray().ravel()
    else:
        factor = pixel_factors(X, method) if tic_key is None else total_ion_current(msi, tic_key)
    used = (factor > 0) & on_tissue
    scale = on_tissue.astype(np.float64)
    if method != "none":
        if not used.any():
            msg = "No pixel has any signal." if reference is None else f"No pixel has any signal of {reference!r}."
            raise ValueError(msg)
        if (on_tissue & ~used).any():
            logger.info("%d pixels have no signal; they stay 0.", int((on_tissue & ~used).sum()))
        if target is None:
            own = [used & (sample == s) for s in names]
            target = float(np.mean([np.median(factor[rows]) for rows in own if rows.any()]))
        scale = np.where(used, target / np.where(used, factor, 1.0), 0.0)
    if method != "none" or tissue is not None:
        X = sp.csr_matrix(sp.diags(scale) @ X)
        X.eliminate_zeros()
    if log1p:
        X = X.log1p()
    msi.layers[Key.layers.RAW] = raw
    msi.X = sp.csr_matrix(X, dtype=np.float32)
    msi.obs[Key.obs.SCALE] = scale
    if tissue is not None:
        msi.obs[Key.obs.TISSUE] = on_tissue
    params = {
        "method": method, "reference": reference, "log1p": log1p, "winsorize": winsorize, "target": target,
        "tic_key": tic_key, "tissue": tissue,
    }  # fmt: skip
    msi.uns[Key.uns.NORMALIZE] = {"params": {k: v for k, v in params.items() if v is not None}}


def _tissue(msi: AnnData, raw: sp.csr_matrix, sample: NDArray[Any], tissue: str) -> NDArray[np.bool_]:
    """Which pixels are tissue, by threshold or from ``obs``."""
    if tissue != _OTSU:
        return tissue_of(msi, tissue)
    total = total_ion_current(msi, Key.obs.TIC) if Key.obs.TIC in msi.obs else pixel_factors(raw, "tic")
    found = np.ones(msi.n_obs, bool)
    for name in dict.fromkeys(sample):
        rows = sample == name
        found[rows], background = otsu_tissue(total[rows])
        if not found[rows].any():
            msg = f"Section {name!r} has no pixel with any signal, and so no tissue."
            raise ValueError(msg)
        if background:
            logger.info("Section %r: %.0f %% of the pixels are tissue.", name, 100 * found[rows].mean())
        else:
            logger.warning(
                "Section %r has no background that is clearly darker than the rest; all of it counts as tissue. Pass "
                "a boolean column of obs as tissue= where you know better.", name,
            )  # fmt: skip
    return found
