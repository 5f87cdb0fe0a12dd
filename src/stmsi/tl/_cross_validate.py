"""Honest scores: every section is predicted by models that never saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import joblib
import numpy as np
import pandas as pd

from stmsi._data.checks import check_choice, listing
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, imputed, require_frame, require_sample
from stmsi._progress import track
from stmsi._settings import logger, settings
from stmsi.model._families import ModelSpec, named_models, resolve
from stmsi.model.shared._setup import Setup, default_setup
from stmsi.model_selection import LeaveOneSampleOut
from stmsi.model_selection._check_leakage import find_leaks, msi_table, report
from stmsi.tl._choose import NO_SKILL, choose
from stmsi.tl._evaluate import map_positions, score_sections
from stmsi.tl._fold_cache import FoldCache, data_fingerprint, fingerprint
from stmsi.tl._predict_metabolites import train_model

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

CHOSEN = "chosen"
"""Name of the model that the inner folds chose."""


def cross_validate(
    data: SpatialData | AnnData,
    models: ModelSpec | Sequence[str] | Mapping[str, ModelSpec] = ("mean", "ridge", "mlp"),
    *,
    splitter: Any = None,
    inner: Any = None,
    inner_metric: str = "pearson",
    setup: Mapping[str, Any] | None = None,
    maps: bool = False,
    on_leakage: Literal["raise", "warn", "ignore"] = "warn",
    cache_dir: str | Path | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    n_jobs: int | None = None,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Score models on sections that they were not trained on.

    Everything that is fitted is fitted inside the training fold: gene selection, scaling, components, signatures,
    regularisation, calibration and thresholds. Edges of graphs are cut at the border of a fold, and what models compute
    from neighbours is computed on either side by itself. Spots without MSI are left out.

    Models choose their own hyper-parameters (penalties, numbers of components, epochs) by grouped folds inside the
    training spots. To choose between models as well, name an `inner` splitter.

    On a cluster, run it inside ``joblib.parallel_config("dask")`` with a ``dask.distributed.Client``, or any other
    backend of joblib.

    Parameters
    ----------
    data
        SpatialData or its ST table, with mapped MSI.
    models
        Families by name (see :func:`stmsi.tl.predict_metabolites`), or a mapping from the name to show to a family, a
        model class, or ``{"model": family or class, "setup": {...}, "train": {...}, **hyper-parameters}``.
    splitter
        Object with ``split(adata)``; `None`: :class:`stmsi.model_selection.LeaveOneSampleOut`.
    inner
        Splitter for the training spots of each fold. All models are cross-validated there, the best by `inner_metric`
        (:func:`stmsi.model_selection.choose`) is the fold's choice, and its scores on the fold's test spots are added as
        those of the model ``"chosen"``, with its name in the column ``chosen``. Nested cross-validation: the scores of
        ``"chosen"`` are those of the whole procedure, choice included.
    inner_metric
        Score to choose by.
    setup
        Fields for ``setup_anndata`` of all models; `None`: presence from ``obsm["msi_presence"]`` and the signature
        from ``varm["signature"]`` where they are there. Signatures found by :func:`stmsi.pp.gene_signatures` are found
        again from the training spots of each fold, and test spots are assigned to clusters by the model.
    maps
        Also compare the maps; see :func:`stmsi.tl.evaluate`.
    on_leakage
        What to do where :func:`stmsi.model_selection.check_leakage` finds something: ``"raise"`` an error, ``"warn"`` in
        the log, or ``"ignore"``, without looking.
    cache_dir
        Folder in which finished folds are kept, each as soon as it is done. Called again, after an interrupt or with more
        models, it reads what is there. A fold is the same where data, model, setup, training and test spots, `maps` and the
        version of stmsi are; empty the folder when you change stmsi itself.
    sample_key
        Column of ``obs`` with the section name, inside which scores are computed.
    table_key
        The ST table.
    n_jobs
        Processes for folds x models; `None` follows ``stmsi.settings.n_jobs``, and :func:`joblib.parallel_config` where
        that is 1. Each fit uses one thread, so that results do not depend on it: take as many processes as there are cores.
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
        One section only, unknown models, no MSI, leakage (with ``on_leakage="raise"``), or a splitter that makes no fold.
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
    _check_splitter(splitter, "splitter")
    _check_splitter(inner, "inner")
    check_choice(inner_metric, NO_SKILL, "inner_metric")
    check_choice(on_leakage, ("raise", "warn", "ignore"), "on_leakage")
    if inner is not None and CHOSEN in named:
        msg = f"With inner= the name {CHOSEN!r} is that of the model chosen; call yours something else."
        raise ValueError(msg)
    fields = {"sample_key": sample_key} | (default_setup(st) if setup is None else dict(setup))
    measured = require_frame(st, fields.get("metabolite_key", Key.obsm.MSI), "stmsi.pp.map_to_spots writes it.")
    covered = np.flatnonzero(measured.notna().any(axis=1).to_numpy())
    if len(covered) == 0:
        msg = "No spot has MSI (all intensities are NaN); align and map the MSI first."
        raise ValueError(msg)
    adata = st[covered].copy()
    require_sample(adata, sample_key)
    if maps:
        map_positions(adata)
    splitter = LeaveOneSampleOut(sample_key) if splitter is None else splitter
    folds = _folds(splitter, adata)
    if on_leakage != "ignore":
        setups = [fields | resolve(spec)[2] for spec in named.values()]
        report(find_leaks(adata, folds, setups, msi_table(data), sample_key), on_leakage)
    cache = None if cache_dir is None else FoldCache(cache_dir)
    tasks = [_Task(f, name, *folds[f]) for f in range(len(folds)) for name in named]
    if inner is not None:
        for f, (train, _) in enumerate(folds):
            within = _folds(inner, adata[train].copy())
            tasks += [_Task(f, name, train[a], train[b], k) for k, (a, b) in enumerate(within) for name in named]
    tables = _compute(tasks, adata, fields, named, sample_key, maps, cache, n_jobs, show_progress_bar)
    outer = [table for task, table in zip(tasks, tables, strict=True) if task.inner is None]
    scores = pd.concat(outer, ignore_index=True)
    if inner is None:
        return scores
    chosen = []
    for f in range(len(folds)):
        inside = [
            table.assign(fold=task.inner)
            for task, table in zip(tasks, tables, strict=True)
            if task.fold == f and task.inner is not None
        ]
        best = choose(pd.concat(inside, ignore_index=True), metric=inner_metric)
        own = scores[(scores["fold"] == f) & (scores["model"] == best)]
        chosen.append(own.assign(model=CHOSEN, chosen=best))
        logger.info("Fold %d: the inner folds choose %r.", f, best)
    return pd.concat([scores.assign(chosen=""), *chosen], ignore_index=True)


@dataclass(frozen=True)
class _Task:
    """One model in one fold; `inner` numbers the fold within the training spots of `fold`."""

    fold: int
    name: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    inner: int | None = None


def _check_splitter(splitter: Any, name: str) -> None:
    if splitter is not None and (
        isinstance(splitter, type) or not hasattr(splitter, "split") or isinstance(splitter, str)
    ):
        msg = (
            f"{name}={splitter!r} is no splitter; pass an object such as stmsi.model_selection.LeaveOnePatientOut() "
            "(with the brackets)."
        )
        raise TypeError(msg)


def _folds(splitter: Any, adata: AnnData) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    folds = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(adata)]
    if not folds or any(len(train) == 0 or len(test) == 0 for train, test in folds):
        sizes = listing(f"{len(train)} / {len(test)}" for train, test in folds)
        msg = f"{splitter!r} makes folds without training or test spots (training / test spots: {sizes})."
        raise ValueError(msg)
    if max(max(train.max(), test.max()) for train, test in folds) >= adata.n_obs:
        msg = f"{splitter!r} names spots beyond the {adata.n_obs} that have MSI; it must split the table that it is given."
        raise ValueError(msg)
    return folds


def _compute(
    tasks: Sequence[_Task],
    adata: AnnData,
    fields: dict[str, Any],
    named: Mapping[str, ModelSpec],
    sample_key: str,
    maps: bool,
    cache: FoldCache | None,
    n_jobs: int | None,
    show_progress_bar: bool | None,
) -> list[pd.DataFrame]:
    """Score tables of all tasks in their order: from the cache, or else computed and put there as each is finished."""
    tables: dict[int, pd.DataFrame] = {}
    keys: list[str] = []
    if cache is not None:
        common = fingerprint(data_fingerprint(adata), fields, sample_key, maps, version("stmsi"))
        keys = [fingerprint(common, named[task.name], task.train, task.test) for task in tasks]
        found = {i: cache.get(key) for i, key in enumerate(keys)}
        tables = {i: _labelled(table, tasks[i]) for i, table in found.items() if table is not None}
        logger.info("%d of %d model fits are read from %s.", len(tables), len(tasks), cache.directory)
    left = [i for i in range(len(tasks)) if i not in tables]
    jobs = (
        joblib.delayed(_run_numbered)(
            i, adata, tasks[i].train, tasks[i].test, fields, named[tasks[i].name], tasks[i].name, tasks[i].fold, sample_key, maps
        )
        for i in left
    )  # fmt: skip
    n_jobs = settings.n_jobs if n_jobs is None else n_jobs
    # None lets joblib.parallel_config say which backend to use, and how much of it
    parallel = joblib.Parallel(n_jobs=None if n_jobs == 1 else n_jobs, return_as="generator_unordered")
    for i, table in track(parallel(jobs), "cross-validation", total=len(left), show=show_progress_bar):
        if cache is not None:
            cache.put(keys[i], table)
        tables[i] = _labelled(table, tasks[i])
    return [tables[i] for i in range(len(tasks))]


def _labelled(table: pd.DataFrame, task: _Task) -> pd.DataFrame:
    """A table under the names of this run: another run may have called model and fold otherwise."""
    return table.assign(model=task.name, fold=task.fold)


def _run_numbered(number: int, *args: Any) -> tuple[int, pd.DataFrame]:
    return number, _run(*args)


def _run(
    adata: AnnData,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    fields: dict[str, Any],
    spec: ModelSpec,
    name: str,
    fold: int,
    sample_key: str,
    maps: bool,
) -> pd.DataFrame:
    """Train on one side of a split, score the other.

    On one thread: how many a library takes depends on the number of processes, and rounding depends on it.
    """
    from threadpoolctl import threadpool_limits

    resolve(spec)  # loads the libraries whose threads are limited
    with threadpool_limits(1):
        return _train_and_score(adata, train, test, fields, spec, name, fold, sample_key, maps)


def _train_and_score(
    adata: AnnData,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    fields: dict[str, Any],
    spec: ModelSpec,
    name: str,
    fold: int,
    sample_key: str,
    maps: bool,
) -> pd.DataFrame:
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
        map_positions(outside) if maps else None,
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
