"""Honest scores: every section is predicted by models that never saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from logging import LogRecord
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._data.checks import check_choice, is_spatialdata, listing
from stmsi._data.keys import INTENSITY_SCORES, MAP_SCORES, PRESENCE_SCORES, SECTION_MOMENTS, TRAINED_ON, Key
from stmsi._data.measured_and_predicted import MAP_WRITES
from stmsi._data.stale import forget_stale, warn_if_stale
from stmsi._data.tables import get_table, imputed, require_frame, sections_of
from stmsi._data.training_marks import HELD_OUT
from stmsi._data.training_marks import TRAINED_ON as SEEN
from stmsi._messages import held_back, say_again, warns_once
from stmsi._progress import track
from stmsi._settings import logger
from stmsi.model._families import ModelSpec, named_models, resolve
from stmsi.model.shared._setup import default_setup
from stmsi.model.shared._stored_input import Input, StoredExpression
from stmsi.model_selection import LeaveOneSampleOut
from stmsi.model_selection._check_leakage import find_leaks, msi_table, report
from stmsi.tl._across_sections import score_across
from stmsi.tl._compare_models import TO_CHOOSE_BY, best_model
from stmsi.tl._evaluate import map_positions
from stmsi.tl._fold_cache import FoldCache, UnhashedError, data_fingerprint, fingerprint, software
from stmsi.tl._kept_arrays import usable_folder
from stmsi.tl._models import setup_on, train_on
from stmsi.tl._obs_by_section import ObsBySection, refuse_obs
from stmsi.tl._section_scores import Comparison, score_sections
from stmsi.tl._shared_folds import SharedFolds, StoredFolds
from stmsi.tl._stored_models import check_stored_model, fields_of_stores, is_network, paths_of
from stmsi.tl._stored_sections import Genes, OnError, StoredSections
from stmsi.tl._workers import Workers

if TYPE_CHECKING:
    from distributed import Client
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._spot_input import Spots

CHOSEN = "chosen"
"""Name of the model that the inner folds chose."""
_LAYOUT = (TRAINED_ON, *PRESENCE_SCORES, *INTENSITY_SCORES, *MAP_SCORES, *SECTION_MOMENTS)
"""Columns of a fold's table: a fold kept by a version with other columns is computed again."""


@warns_once
def cross_validate(
    data: SpatialData | AnnData | Sequence[str | Path],
    models: ModelSpec | Sequence[str] | Mapping[str, ModelSpec] = ("mean", "ridge", "mlp"),
    *,
    splitter: Any = None,
    inner: Any = None,
    inner_metric: str = "pearson",
    setup: Mapping[str, Any] | None = None,
    layer: str | None = None,
    input: Input | None = None,
    maps: bool = False,
    on_leakage: Literal["raise", "warn", "ignore"] = "warn",
    cache_dir: str | Path | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    genes: Genes = "same",
    on_error: OnError = "raise",
    obs: ObsBySection | None = None,
    n_jobs: int | None = None,
    client: Client | str | None = None,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Score models on sections that they were not trained on.

    Everything is fitted inside the training fold: gene selection, scaling, components, signatures, regularisation,
    calibration and thresholds. Edges of graphs are cut at the border of a fold. Spots without MSI are left out. Models choose
    their own hyper-parameters by grouped folds inside the training spots; to choose between models as well, name an `inner`
    splitter. On a cluster, pass a `client`: see :doc:`/user_guide/cluster`.

    Parameters
    ----------
    data
        SpatialData or its ST table, with mapped MSI; or paths of stores (``.h5ad``, ``.zarr``) that are never in memory together, see
        :func:`stmsi.tl.train`. The leakage check leaves the expression out.
    models
        Families by name (see :func:`stmsi.tl.predict_metabolites`), or a mapping from the name to show to a family, a
        model class, or ``{"model": family or class, "setup": {...}, "train": {...}, **hyper-parameters}``.
    splitter
        Object with ``split(adata)``; `None`: :class:`stmsi.model_selection.LeaveOneSampleOut`.
    inner
        Splitter for the training spots of each fold. All models are cross-validated there, and the one with the best mean
        `inner_metric` is the choice of the fold. Its scores on the test spots are added as those of the model ``"chosen"``,
        with its name in the column ``chosen``: nested cross-validation, whose scores include the choice.
    inner_metric
        Score to choose by. A model without a score, because its prediction is constant, counts as one without skill.
    setup
        Fields for ``setup_anndata`` of all models. `None`: presence from ``obsm["msi_presence"]`` and the signature from
        ``varm["signature"]`` if they exist. Signatures of :func:`stmsi.pp.gene_signatures` are found again in each training fold.
    layer, input
        Where the expression is, and what it is, for all models; as for :func:`stmsi.tl.predict_metabolites`.
    maps
        Also compare the maps; see :func:`stmsi.tl.evaluate`.
    on_leakage
        What to do if :func:`stmsi.model_selection.check_leakage` finds something: ``"raise"`` an error, ``"warn"`` in the log, or
        ``"ignore"``, without looking.
    cache_dir
        Folder that keeps each fold as soon as it is done. A later call with the same data, model, setup, spots, `maps` and
        versions (of stmsi, NumPy, SciPy, pandas, scikit-learn, anndata, torch, Lightning and scvi-tools) reads it. Empty the folder if
        you change stmsi itself. If it cannot be written, the log says so and the run goes on.
    sample_key, table_key
        Column of ``obs`` with the section name, and the ST table.
    genes, on_error
        Of stores, as for :func:`stmsi.tl.train`. `cache_dir` then also keeps sums over their sections.
    obs
        Of stores: columns of ``obs`` by section, such as the patient, as for :func:`stmsi.tl.train`.
    n_jobs, show_progress_bar
        Processes for folds x models, and a progress bar. `None` follows ``stmsi.settings``, and :func:`joblib.parallel_config`
        if ``stmsi.settings.n_jobs`` is 1. Each fit uses one thread, so results do not depend on the processes.
    client
        A ``dask.distributed.Client``, or the address of a scheduler: its tasks are folds x models. A fold whose worker dies is
        computed again by another worker. Results are those of one process. Stores, and `cache_dir`, must be at the same paths on all machines.

    Returns
    -------
    Tidy table, one row per model x fold x section x metabolite x stage: ``model``, ``fold``, ``seconds`` (training
    and predicting) and the columns of :func:`stmsi.tl.evaluate`; ``coverage`` and ``interval_width`` are those of the
    90 % interval, and ``trained_on`` is ``"no"`` unless the splitter puts spots on both sides of a fold. ``pearson_between`` and ``pearson_pooled`` join the folds of a model: measurement and prediction
    are taken relative to ``training_mean`` and ``training_predicted_mean`` (the model's mean prediction for its training
    spots) of their fold. `data` is not changed.

    Raises
    ------
    ValueError
        One section only, unknown models, no MSI, leakage (with ``on_leakage="raise"``), or a splitter that makes no fold.
    RuntimeError
        A model failed in a fold; the message names both.
    ConnectionError
        No scheduler answers at the address `client` within ten seconds.
    ImportError
        dask.distributed is not installed, or a worker has no stmsi.

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
    named = named_models(models)
    if not named:
        msg = "No model was given; name at least one, such as 'ridge'."
        raise ValueError(msg)
    for spec in named.values():
        resolve(spec)
    _check_splitter(splitter, "splitter")
    _check_splitter(inner, "inner")
    check_choice(inner_metric, TO_CHOOSE_BY, "inner_metric")
    check_choice(on_leakage, ("raise", "warn", "ignore"), "on_leakage")
    if inner is not None and CHOSEN in named:
        msg = f"With inner= the name {CHOSEN!r} is that of the model chosen; call yours something else."
        raise ValueError(msg)
    if client is not None and n_jobs is not None:
        msg = "client= and n_jobs= are two ways to share the work; name one of them."
        raise ValueError(msg)
    with ExitStack() as until_scored:
        workers = until_scored.enter_context(Workers.found(client, n_jobs))
        stored, st, msi = None, None, None
        if isinstance(data, AnnData) or is_spatialdata(data):
            refuse_obs(obs)
            st, msi = get_table(data, table_key), msi_table(data)  # type: ignore[arg-type]
            adata, fields = _in_memory(st, setup_on(st, setup, layer, input), sample_key)
        else:
            asked = {"sample_key": sample_key} | fields_of_stores(setup, layer, input)
            for spec in named.values():
                check_stored_model(spec, asked)
            directory = until_scored.enter_context(workers.folder(usable_folder(cache_dir)))
            stored = StoredSections.open(
                paths_of(data), asked, table_key=table_key, genes=genes, on_error=on_error, directory=directory, obs=obs, workers=workers
            )  # fmt: skip
            adata, fields = stored.adata, stored.fields(asked)
        if maps:
            map_positions(adata)
        folds = _folds(LeaveOneSampleOut(sample_key) if splitter is None else splitter, adata)
        if on_leakage != "ignore":
            setups = [fields | resolve(spec)[2] for spec in named.values()]
            report(find_leaks(adata, folds, setups, msi, sample_key, st), on_leakage)
        cache = None if cache_dir is None else FoldCache(cache_dir)
        fits = [_Fit(f, name, spec, *fold) for f, fold in enumerate(folds) for name, spec in named.items()]
        if inner is not None:
            for f, (train, _) in enumerate(folds):
                within = enumerate(_folds(inner, adata[train].copy()))
                fits += [_Fit(f, n, spec, train[a], train[b], k) for k, (a, b) in within for n, spec in named.items()]
        trained = [fit.train for fit in fits]
        shared = SharedFolds(adata, trained)
        if stored is not None:
            shared = StoredFolds(stored, trained, directory, by_section=cache_dir is not None)
        task = _Task(adata, fields, sample_key, maps, shared)
        content = None if stored is None else [one.key for one in stored.stores]
        tables = _score_all(fits, task, content, cache, workers, show_progress_bar)
    scores = pd.concat([t for fit, t in zip(fits, tables, strict=True) if fit.inner is None], ignore_index=True)
    if inner is None:
        return score_across(scores)
    chosen = []
    for f in range(len(folds)):
        of_fold = [(fit, t) for fit, t in zip(fits, tables, strict=True) if fit.fold == f and fit.inner is not None]
        inside = pd.concat([table.assign(fold=fit.inner) for fit, table in of_fold], ignore_index=True)
        best = best_model(inside, metric=inner_metric)
        own = scores[(scores["fold"] == f) & (scores["model"] == best)]
        chosen.append(own.assign(model=CHOSEN, chosen=best))
        logger.info("Fold %d: the inner folds choose %r.", f, best)
    return score_across(pd.concat([scores.assign(chosen=""), *chosen], ignore_index=True))


def _in_memory(st: AnnData, setup: Mapping[str, Any] | None, sample_key: str) -> tuple[AnnData, dict[str, Any]]:
    """The spots with MSI, and fields for ``setup_anndata`` that say what their expression is."""
    fields = {"sample_key": sample_key} | (default_setup(st) if setup is None else dict(setup))
    warn_if_stale(st, fields.get("metabolite_key", Key.obsm.MSI))
    measured = require_frame(st, fields.get("metabolite_key", Key.obsm.MSI), MAP_WRITES)
    covered = np.flatnonzero(measured.notna().any(axis=1).to_numpy())
    if len(covered) == 0:
        msg = "No spot has MSI (all intensities are NaN); align and map the MSI first."
        raise ValueError(msg)
    adata = st[covered].copy()
    forget_stale(adata, fields.get("metabolite_key", Key.obsm.MSI))  # one warning is enough
    sections_of(adata, sample_key)
    if fields.get("input") is None:  # a fold is too small to tell, and all must be read alike
        fields["input"] = StoredExpression.open(adata, fields.get("layer"), sample_key).told()
    return adata, fields


@dataclass(frozen=True)
class _Fit:
    """One model in one fold; `inner` numbers the fold within the training spots of `fold`."""

    fold: int
    name: str
    spec: ModelSpec
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    inner: int | None = None

    def label(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table under the names of this run: another run may have called model and fold otherwise."""
        return table.assign(model=self.name, fold=self.fold)


@dataclass(frozen=True)
class _Task:
    """What all fits share: the spots with MSI, fields for ``setup_anndata``, how to score, and what is read once."""

    adata: AnnData
    fields: dict[str, Any]
    sample_key: str
    maps: bool
    shared: SharedFolds


def _check_splitter(splitter: Any, name: str) -> None:
    if splitter is not None and (isinstance(splitter, type | str) or not hasattr(splitter, "split")):
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


def _score_all(
    fits: Sequence[_Fit],
    task: _Task,
    stores: Sequence[str] | None,
    cache: FoldCache | None,
    workers: Workers,
    show_progress_bar: bool | None,
) -> list[pd.DataFrame]:
    """Score tables of all fits in their order: from the cache, or computed and put there one by one.

    `stores` tell whether the expression has changed that is not in the task.
    """
    tables: dict[int, pd.DataFrame] = {}
    keys: list[str] = []
    if cache is not None:
        settled = (task.fields, task.sample_key, task.maps, _LAYOUT, software())
        try:
            common = fingerprint(data_fingerprint(task.adata), *settled, *(stores or ()))
            keys = [fingerprint(common, fit.spec, fit.train, fit.test) for fit in fits]
        except UnhashedError as error:
            logger.warning("No fold is kept in %s: %s.", cache.directory, error)
            cache = None
    if cache is not None:
        found = {i: cache.get(key) for i, key in enumerate(keys)}
        tables = {i: fits[i].label(table) for i, table in found.items() if table is not None}
        logger.info("%d of %d model fits are read from %s.", len(tables), len(fits), cache.directory)
    calls = [(i, fit) for i, fit in enumerate(fits) if i not in tables]
    task.shared.prepare([fit.spec for _, fit in calls], workers, show_progress_bar)
    done = workers.results(_run, calls, task)
    for i, table, said in track(done, "cross-validation", total=len(calls), show=show_progress_bar):
        say_again(said)
        if cache is not None:
            cache.put(keys[i], table)
        tables[i] = fits[i].label(table)
    return [tables[i] for i in range(len(fits))]


def _run(number: int, fit: _Fit, task: _Task) -> tuple[int, pd.DataFrame, list[LogRecord]]:
    """Train on one side of a split and score the other, in one thread: rounding depends on the number of threads.

    Also what was warned of, which another process would say by itself.
    """
    from threadpoolctl import threadpool_limits

    resolve(fit.spec)  # loads the libraries whose threads are limited
    with threadpool_limits(1), held_back() as said:
        table = _train_and_score(fit, task)
    return number, table, said


def _train_and_score(fit: _Fit, task: _Task) -> pd.DataFrame:
    start = perf_counter()
    # what was told of the layer of all models does not hold of another one
    own = resolve(fit.spec)[2]
    same = own.get("layer", task.fields.get("layer")) == task.fields.get("layer")
    fields = {k: v for k, v in task.fields.items() if k != "input" or same}
    shared = (
        task.shared
        if task.shared.serves(fit.spec, fields | own) and not _refits_signature(task.adata, fields)
        else None
    )
    if shared is None:
        inside, outside = task.adata[fit.train].copy(), task.adata[fit.test].copy()
    else:
        layer = (fields | own).get("layer")
        inside, outside = (shared.without_expression(rows, layer) for rows in (fit.train, fit.test))
    try:
        inside = _refit_signature(inside, fields)
        read = None if shared is None else partial(shared.spots, rows=fit.train)
        stored = shared.stored_input(fit.train) if shared is not None and is_network(resolve(fit.spec)[0]) else None
        model, spots = train_on(
            inside, fit.spec, fields, show_progress_bar=False, read=read, stored=stored, marks=False
        )
        prediction = (
            model._predict_all(outside, input=model.state.setup.input)
            if shared is None
            else model._predict_spots(shared.query(model.state.setup, fit.test))
        )
    except Exception as error:  # whatever it is, it must say of whom
        msg = f"Model {fit.name!r} failed in fold {fit.fold} ({len(fit.train)} training spots): {error}"
        raise RuntimeError(msg) from error
    seconds = perf_counter() - start
    ids, setup = model.metabolites, model.state.setup
    measured = require_frame(outside, setup.metabolite_key)[ids]
    y, filled = measured.to_numpy(np.float64), imputed(outside, setup.metabolite_key, measured)
    called = setup.presence_key
    present = (y > 0) & ~filled if called is None else require_frame(outside, called)[ids].to_numpy(np.float64)
    expected, probability, lower, upper = (
        getattr(prediction, name).to_numpy(np.float64) for name in ("expected", "presence", "lower", "upper")
    )
    comparison = Comparison(
        ids, sections_of(outside, task.sample_key), y, np.where(np.isnan(y), np.nan, present), expected, probability,
        training_mean=model.state.feature_table["training_mean"].to_numpy(np.float64), bounds=(lower, upper),
        filled=filled, training_predicted_mean=_mean_prediction(model, inside, spots),
        xy=map_positions(outside) if task.maps else None,
        trained_on=np.where(np.isin(fit.test, fit.train), SEEN, HELD_OUT).astype(object),
    )  # fmt: skip
    table = score_sections(comparison)
    first = pd.DataFrame({"model": fit.name, "fold": fit.fold, "seconds": seconds}, index=table.index)
    return pd.concat([first, table], axis=1)


def _mean_prediction(model: HurdleModel, adata: AnnData, spots: Spots | None) -> NDArray[np.float64]:
    """What a model predicts for each metabolite on average of the training spots that measured it."""
    measured = require_frame(adata, model.state.setup.metabolite_key)[model.metabolites]
    if spots is None:
        spots = model._query_spots(adata, 0, input=model.state.setup.input)
    said = model._predict_spots(spots).expected.to_numpy(np.float64)
    return pd.DataFrame(np.where(measured.notna(), said, np.nan)).mean().to_numpy(np.float64)


def _refits_signature(adata: AnnData, fields: dict[str, Any]) -> bool:
    """Whether signatures that models read were found from the spots."""
    key = fields.get("signature_key")
    params = adata.uns.get(key, {}).get("params", {}) if key else {}
    return bool(params) and params["method"] != "gene_sets"


def _refit_signature(adata: AnnData, fields: dict[str, Any]) -> AnnData:
    """The training spots with signatures found again from them, with the parameters of the first time."""
    if not _refits_signature(adata, fields):
        return adata
    from stmsi.pp import gene_signatures

    key = fields["signature_key"]
    params = adata.uns[key]["params"]
    cluster_key = str(params["cluster_key"])
    cluster = adata.obs[cluster_key].astype(str)
    # a cluster with a single spot in the fold cannot be described
    adata = adata[(cluster.map(cluster.value_counts()) >= 2).to_numpy()].copy()
    method, layer = str(params["method"]), params.get("layer")
    gene_signatures(
        adata, cluster_key=cluster_key, n_genes=int(params["n_genes"]), method=method, layer=layer, key_added=str(key)  # type: ignore[arg-type]
    )  # fmt: skip
    return adata
