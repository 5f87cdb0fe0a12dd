"""Honest scores: every section is predicted by models that never saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd

from stmsi._keys import Key
from stmsi._progress import track
from stmsi._settings import settings
from stmsi._validate import get_table, imputed, require_frame, require_sample
from stmsi.model._registry import ModelSpec, named_models, resolve
from stmsi.model._setup import Setup
from stmsi.model_selection import LeaveOneSampleOut
from stmsi.tl._evaluate import score_sections
from stmsi.tl._predict_metabolites import default_setup, train_model

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def cross_validate(
    data: SpatialData | AnnData,
    models: ModelSpec | Sequence[str] | Mapping[str, ModelSpec] = ("mean", "ridge", "mlp"),
    *,
    splitter: Any = None,
    setup: Mapping[str, Any] | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    n_jobs: int | None = None,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Score models on sections that they were not trained on.

    Everything that is fitted is fitted inside the training fold: gene selection, scaling, components, signatures,
    regularisation, calibration and thresholds. Spots without MSI are left out.

    Parameters
    ----------
    data
        SpatialData or its ST table, with mapped MSI.
    models
        Families by name (see :func:`stmsi.tl.predict_metabolites`), or a mapping from the name to show to a family, a
        model class, or ``{"model": family or class, "setup": {...}, "train": {...}, **hyper-parameters}``.
    splitter
        Object with ``split(adata)``; `None`: :class:`stmsi.model_selection.LeaveOneSampleOut`.
    setup
        Fields for ``setup_anndata`` of all models; `None`: presence from ``obsm["msi_presence"]`` and the signature
        from ``varm["signature"]`` where they are there. Signatures found by :func:`stmsi.pp.gene_signatures` are found
        again from the training spots of each fold, and test spots are assigned to clusters by the model.
    sample_key
        Column of ``obs`` with the section name, inside which scores are computed.
    table_key
        The ST table.
    n_jobs
        Processes for folds x models; `None` follows ``stmsi.settings.n_jobs``. Results do not depend on it.
    show_progress_bar
        `None` follows ``stmsi.settings.progress_bar``.

    Returns
    -------
    Tidy table, one row per model x fold x section x metabolite x stage: ``model``, ``fold``, ``seconds`` (training
    and predicting) and the columns of :func:`stmsi.tl.evaluate`; ``coverage`` and ``interval_width`` are those of the
    90 % interval. `data` is not changed.

    Raises
    ------
    ValueError
        One section only, unknown models, no MSI.
    RuntimeError
        A model failed in a fold; the message names both.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> scores = stmsi.tl.cross_validate(sdata, ["mean", "ridge"], show_progress_bar=False)
    >>> sorted(scores["model"].unique())
    ['mean', 'ridge']
    """
    st = get_table(data, table_key)
    named = named_models(models)
    if not named:
        msg = "No model was given; name at least one, such as 'ridge'."
        raise ValueError(msg)
    for spec in named.values():
        resolve(spec)
    if splitter is not None and (
        isinstance(splitter, type) or not hasattr(splitter, "split") or isinstance(splitter, str)
    ):
        msg = (
            f"splitter={splitter!r} is no splitter; pass an object such as stmsi.model_selection.LeaveOnePatientOut() "
            "(with the brackets)."
        )
        raise TypeError(msg)
    fields = {"sample_key": sample_key} | (default_setup(st) if setup is None else dict(setup))
    measured = require_frame(st, fields.get("metabolite_key", Key.obsm.MSI), "stmsi.pp.map_to_spots writes it.")
    covered = np.flatnonzero(measured.notna().any(axis=1).to_numpy())
    if len(covered) == 0:
        msg = "No spot has MSI (all intensities are NaN); align and map the MSI first."
        raise ValueError(msg)
    adata = st[covered].copy()
    require_sample(adata, sample_key)
    splitter = LeaveOneSampleOut(sample_key) if splitter is None else splitter
    folds = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(adata)]
    tasks = [(f, name) for f in range(len(folds)) for name in named]
    jobs = (joblib.delayed(_run)(adata, *folds[f], fields, named[name], name, f, sample_key) for f, name in tasks)
    n_jobs = settings.n_jobs if n_jobs is None else n_jobs
    done = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
    parts = list(track(done, "cross-validation", total=len(tasks), show=show_progress_bar))
    return pd.concat(parts, ignore_index=True)


def _run(
    adata: AnnData,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    fields: dict[str, Any],
    spec: ModelSpec,
    name: str,
    fold: int,
    sample_key: str,
) -> pd.DataFrame:
    """Train on one side of a split, score the other."""
    from time import perf_counter

    start = perf_counter()
    inside, outside = adata[train].copy(), adata[test].copy()
    try:
        inside = _refit_signature(inside, fields)
        model = train_model(inside, spec, fields, show_progress_bar=False)
        prediction = model._predict_all(outside)
    except (ValueError, KeyError, RuntimeError, np.linalg.LinAlgError) as error:
        msg = f"Model {name!r} failed in fold {fold} ({len(train)} training spots): {error}"
        raise RuntimeError(msg) from error
    seconds = perf_counter() - start
    state = model.state
    ids = model.metabolites
    setup: Setup = state.setup
    measured = require_frame(outside, setup.metabolite_key)[ids]
    y, filled = measured.to_numpy(np.float64), imputed(outside, setup.metabolite_key, measured)
    given = setup.presence_key
    present = (y > 0) & ~filled if given is None else require_frame(outside, given)[ids].to_numpy(float)
    table = score_sections(
        ids,
        require_sample(outside, sample_key),
        y,
        np.where(np.isnan(y), np.nan, present),
        prediction.expected.to_numpy(np.float64),
        prediction.presence.to_numpy(np.float64),
        state.feature_table["training_mean"].to_numpy(np.float64),
        (prediction.lower.to_numpy(np.float64), prediction.upper.to_numpy(np.float64)),
        filled,
    )
    table.insert(0, "model", name)
    table.insert(1, "fold", fold)
    table.insert(2, "seconds", seconds)
    return table


def _refit_signature(adata: AnnData, fields: dict[str, Any]) -> AnnData:
    """The training spots with signatures found again from them, with the parameters of the first time."""
    key = fields.get("signature_key")
    params = adata.uns.get(key, {}).get("params", {}) if key else {}
    if not params or params["method"] == "gene_sets":
        return adata
    from stmsi.pp import gene_signatures

    cluster = adata.obs[str(params["cluster_key"])].astype(str)
    # a cluster of which the fold holds a single spot cannot be described from it
    adata = adata[(cluster.map(cluster.value_counts()) >= 2).to_numpy()].copy()
    gene_signatures(
        adata,
        cluster_key=str(params["cluster_key"]),
        n_genes=int(params["n_genes"]),
        method=str(params["method"]),  # type: ignore[arg-type]
        layer=params.get("layer"),
        key_added=str(key),
    )
    return adata
