"""Tests of an attribution against what it would be by chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._core.metrics.attribution_controls import chance_of_best_rank, shuffle_within, torus_shift, within_sections
from stmsi._data.checks import check_choice, listing, suggest
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_frame
from stmsi._progress import track
from stmsi.tl._attribute import attribute, draw_spots, section_codes
from stmsi.tl._models import trained_model

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._spot_input import Spots

Check = Literal["deletion", "random_labels", "drivers", "spatial"]
CHECKS: tuple[Check, ...] = ("deletion", "random_labels", "drivers", "spatial")
COLUMNS = ["check", "metabolite", "gene", "k", "value", "baseline", "p_value"]
_N_GENES = 3
"""Genes of each metabolite that are tested in space."""


def attribution_checks(
    data: SpatialData | AnnData,
    model: HurdleModel | str | Path,
    *,
    checks: Check | Sequence[Check] | None = None,
    drivers: pd.DataFrame | None = None,
    key: str = Key.varm.ATTRIBUTION,
    n_top: Sequence[int] = (5, 10, 20),
    n_random: int = 20,
    n_models: int = 2,
    n_shifts: int = 99,
    table_key: str = Key.table.ST,
    rng: int | np.random.Generator = 0,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Put an attribution to the test.

    - ``"deletion"`` [1]_: the k genes with the largest effect on a metabolite are set to their training mean. `value` is
      the agreement of that prediction with the untouched one (Pearson within sections), `baseline` the same without k random
      genes of the model. An attribution that found what the model uses falls well below.
    - ``"random_labels"`` [2]_: the model is trained again `n_models` times on targets shuffled between the spots of each
      section, and attributed in the same way. `value` is the size of the correlation (over genes) between the true and a
      random model's attribution, `baseline` that between two random models. A value far above the baseline says that the
      attribution shows the genes' variances or the method, rather than what was learnt.
    - ``"drivers"``, for simulations and known enzymes and transporters: `value` is the rank of the first true driver among
      the genes of the model, `k` the number of drivers, `baseline` the rank expected of as many random genes, `p_value` the
      chance of such a rank or a better.
    - ``"spatial"`` [3]_: does a gene follow the *measured* metabolite more closely than smooth maps do by chance? `value` is
      the correlation within sections over the spots where stage and data define it, `baseline` the mean size over maps
      shifted on a torus (whole sections, so that neighbours stay neighbours), `p_value` the share of shifts with one as large.
      The three genes with the largest effect are tested; the p-value does not correct for that choice.

    Parameters
    ----------
    data
        The data of :func:`stmsi.tl.attribute`; for random labels and space with MSI.
    model
        The model that was attributed, or the folder of a saved one.
    checks
        Which; `None`: all that the data allow.
    drivers
        Table with the columns ``metabolite`` (id) and ``gene`` (as in ``var_names``); `None`: the truth of a simulation,
        in ``uns["truth"]``.
    key
        Where :func:`stmsi.tl.attribute` wrote.
    n_top, n_random
        Numbers of genes to delete, and random sets of genes of each number.
    n_models, n_shifts
        Models trained on shuffled targets (at least 2), and shifts in space (the smallest p-value is 1 / (`n_shifts` + 1)).
    table_key
        The ST table.
    rng
        Seed or generator.
    show_progress_bar
        `None` follows ``stmsi.settings.progress_bar``.

    Returns
    -------
    Tidy table, one row per check x metabolite (x number of genes deleted; x gene tested in space): ``check``,
    ``metabolite``, ``gene``, ``k``, ``value``, ``baseline``, ``p_value``, NaN (``gene``: empty) where a column does
    not apply. Metabolites on which no gene has an effect have no rows. `data` is not changed.

    Raises
    ------
    KeyError
        Nothing was attributed under `key`, or what a check asked for needs is missing.
    ValueError
        Unknown checks, or numbers out of range.

    References
    ----------
    .. [1] Samek et al., *Evaluating the Visualization of What a Deep Neural Network Has Learned*, IEEE TNNLS 2017,
       https://doi.org/10.1109/TNNLS.2016.2599820
    .. [2] Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, https://arxiv.org/abs/1810.03292
    .. [3] Lotwick, Silverman, *Methods for Analysing Spatial Processes of Several Types of Points*, JRSS B 44 (1982),
       406-413 (toroidal shifts)

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleLinear.setup_anndata(st)
    >>> model = stmsi.model.HurdleLinear(st, presence="prior", intensity="ridge")
    >>> model.train(show_progress_bar=False)
    >>> stmsi.tl.attribute(st, model)
    >>> table = stmsi.experimental.attribution_checks(st, model, checks=["deletion", "drivers"], n_top=[10])
    >>> deletion = table[table["check"] == "deletion"]
    >>> bool(deletion["value"].mean() < deletion["baseline"].mean())
    True
    """
    fitted, adata = trained_model(model), get_table(data, table_key)
    for name, value, least in (("n_random", n_random, 1), ("n_models", n_models, 2), ("n_shifts", n_shifts, 1)):
        if value < least:
            msg = f"{name} must be at least {least}, found {value!r}."
            raise ValueError(msg)
    if len(n_top) == 0 or min(n_top) < 1:
        msg = f"n_top needs numbers of genes of at least 1, found {list(n_top)!r}."
        raise ValueError(msg)
    case = _Case.read(adata, fitted, key, show_progress_bar)
    if drivers is None:
        drivers = adata.uns.get(Key.uns.TRUTH, {}).get("drivers")
    metabolite_key = fitted.state.setup.metabolite_key
    with_msi, msi = metabolite_key in adata.obsm, f"measured intensities in obsm[{metabolite_key!r}]"
    run: dict[Check, Callable[[np.random.Generator], list[dict[str, Any]]]] = {
        "deletion": lambda random: _deletion(case, n_top, n_random, random),
        "random_labels": lambda random: _random_labels(case, n_models, random),
        "drivers": lambda _: _drivers(case, drivers),  # type: ignore[arg-type]
        "spatial": lambda random: _spatial(case, n_shifts, random),
    }
    lacking: dict[Check, str] = {} if with_msi else {"random_labels": msi, "spatial": msi}
    lacking |= {"drivers": "drivers="} if drivers is None else {}
    if checks is None:
        chosen = [c for c in CHECKS if c not in lacking]
    else:
        chosen = [checks] if isinstance(checks, str) else list(checks)
        for c in chosen:
            check_choice(c, CHECKS, "checks")
            if c in lacking:
                msg = f"The check {c!r} needs {lacking[c]}, which is missing."
                raise KeyError(msg)
    rows: list[dict[str, Any]] = []
    for c in chosen:
        rows += run[c](rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng))
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[3:], np.float64))


@dataclass
class _Case:
    """The attribution under test, with its model and data."""

    adata: AnnData
    model: HurdleModel
    params: dict[str, Any]
    effects: pd.DataFrame  # genes used x metabolites with an effect, ids of the model
    positions: NDArray[np.int64]  # of the genes used in the panel
    show: bool | None

    @classmethod
    def read(cls, adata: AnnData, model: HurdleModel, key: str, show: bool | None) -> _Case:
        if key not in adata.varm or "params" not in adata.uns.get(key, {}):
            msg = (
                f"No attribution under {key!r}; varm holds {listing(adata.varm.keys())}. stmsi.tl.attribute writes it."
                f"{suggest(key, adata.varm.keys())}"
            )
            raise KeyError(msg)
        frame = adata.varm[key]
        # ids are made safe among the metabolites attributed, which may be some of the model's
        ids = dict(zip(safe_ids(model.metabolites), model.metabolites, strict=True)) | {m: m for m in model.metabolites}
        unknown = [c for c in frame.columns if c not in ids]
        if unknown:
            msg = f"The attribution under {key!r} has metabolites that the model does not predict: {listing(unknown)}."
            raise ValueError(msg)
        at = model.state.panel.locate(adata.var)
        panel_of = np.full(adata.n_vars, -1)
        panel_of[at[at >= 0]] = np.flatnonzero(at >= 0)
        used = frame.notna().any(axis=1).to_numpy() & (panel_of >= 0)
        effects = frame.loc[used].rename(columns=ids).astype(np.float64)
        effects = effects.loc[:, effects.abs().max() > 0]
        return cls(adata, model, dict(adata.uns[key]["params"]), effects, panel_of[used], show)

    @property
    def columns(self) -> NDArray[np.int64]:
        """Metabolites as positions among those of the model."""
        return np.asarray(self.model.state.metabolites.get_indexer(self.effects.columns))

    def best(self, k: int) -> NDArray[np.int64]:
        """Rows of the k genes with the largest effects, shape (k, metabolites)."""
        return np.argsort(-self.effects.abs().to_numpy(), axis=0, kind="stable")[:k]

    def spots(self, rng: np.random.Generator) -> tuple[Spots, NDArray[np.int64]]:
        n_spots = int(self.params["n_spots"]) if "n_spots" in self.params else None
        read = (self.params.get("layer"), self.params.get("input"))
        return draw_spots(self.model, self.adata, n_spots, float(self.params["min_genes"]), rng, *read)


def _deletion(case: _Case, n_top: Sequence[int], n_random: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    from stmsi.model.explain._attribution import stack, stage_scores, without_genes

    model, stage = case.model, case.params["stage"]
    spots, at = case.spots(rng)
    section, n_used = section_codes(model, case.adata, at), len(case.positions)
    sizes = list(dict.fromkeys(min(int(k), n_used) for k in n_top))
    plain = stage_scores(model, spots, stage)[:, case.columns]
    defined = ~np.isnan(within_sections(plain, plain, section))
    sets = {k: [*case.best(k).T, *(rng.choice(n_used, k, replace=False) for _ in range(n_random))] for k in sizes}
    tasks = [(k, i) for k in sizes for i in range(len(sets[k]))]
    agreement = {k: np.empty((len(sets[k]), len(case.columns))) for k in sizes}
    per_call = max(1, 4096 // len(spots))
    starts = range(0, len(tasks), per_call)
    for start in track(starts, "deletion", total=len(starts), show=case.show):
        some = tasks[start : start + per_call]
        without = [without_genes(model, spots, case.positions[sets[k][i]]) for k, i in some]
        scores = stage_scores(model, stack(without), stage)[:, case.columns].reshape(len(some), *plain.shape)
        for (k, i), score in zip(some, scores, strict=True):
            # a prediction that has become constant agrees with nothing
            agreement[k][i] = np.nan_to_num(within_sections(plain, score, section))
    rows = []
    for k in sizes:
        own, random = np.diag(agreement[k]), agreement[k][len(case.columns) :]
        for m, name in enumerate(case.effects.columns):
            if defined[m]:
                p = (1 + (random[:, m] <= own[m]).sum()) / (1 + n_random)
                rows.append(_row("deletion", name, k=k, value=own[m], baseline=random[:, m].mean(), p_value=p))
    return rows


def _random_labels(case: _Case, n_models: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    from stmsi.model.shared._stored_input import query_layer

    model, names = case.model, list(case.effects.columns)
    setup = model.state.setup
    measured = require_frame(case.adata, setup.metabolite_key)
    covered = np.flatnonzero(measured.notna().any(axis=1).to_numpy())
    if len(covered) == 0:
        msg = "The check 'random_labels' trains models, but no spot has MSI (all intensities are NaN)."
        raise ValueError(msg)
    section = section_codes(model, case.adata, covered)
    found = [case.effects]
    fields = {k: v for k, v in vars(setup).items() if v is not None}
    layer = query_layer(case.adata, case.params.get("layer"), setup.layer)
    fields = {k: v for k, v in fields.items() if k != "layer"} | ({} if layer is None else {"layer": layer})
    asked = ("method", "stage", "layer", "input", "n_steps", "n_repeats", "n_blocks", "min_genes")
    options: dict[str, Any] = {k: case.params[k] for k in asked if k in case.params}
    options |= {"n_spots": case.params.get("n_spots"), "metabolites": names, "rng": rng, "show_progress_bar": False}
    for _ in track(range(n_models), "random labels", total=n_models, show=case.show):
        shuffled = case.adata[covered].copy()
        for name in [k for k in shuffled.uns if k.startswith("_scvi")]:
            del shuffled.uns[name]
        order = shuffle_within(section, rng)
        for obsm_key in {setup.metabolite_key, setup.presence_key} - {None}:
            frame = require_frame(shuffled, str(obsm_key))
            shuffled.obsm[obsm_key] = frame.iloc[order].set_axis(frame.index)
        type(model).setup_anndata(shuffled, **fields)  # type: ignore[attr-defined]
        fresh: Any = type(model)(shuffled, **model._params())  # type: ignore[call-arg]
        fresh.train(show_progress_bar=False)
        attribute(shuffled, fresh, key_added="random", **options)
        effects = shuffled.varm["random"].set_axis(names, axis=1)
        found.append(effects.reindex(case.effects.index).fillna(0).astype(np.float64))
    rows = []
    for name in names:
        r = np.abs(_correlation(np.stack([f[name].to_numpy() for f in found])))
        between = r[1:, 1:][np.triu_indices(n_models, 1)]
        rows.append(_row("random_labels", name, k=n_models, value=_mean(r[0, 1:]), baseline=_mean(between)))
    return rows


def _drivers(case: _Case, drivers: pd.DataFrame) -> list[dict[str, Any]]:
    missing = {"metabolite", "gene"} - set(drivers)
    if missing:
        msg = f"drivers needs the columns 'metabolite' and 'gene'; found {listing(drivers.columns)}."
        raise KeyError(msg)
    rank = case.effects.abs().rank(ascending=False, method="min")
    rows, n = [], len(rank)
    for name, own in drivers.groupby("metabolite", sort=False):
        genes = pd.Index(own["gene"].astype(str).unique()).intersection(rank.index.astype(str))
        if name not in rank or len(genes) == 0:
            continue
        best, d = int(rank.loc[genes, name].min()), len(genes)
        gene, p = rank.loc[genes, name].idxmin(), chance_of_best_rank(best, d, n)
        rows.append(_row("drivers", str(name), gene=gene, k=d, value=best, baseline=(n + 1) / (d + 1), p_value=p))
    if not rows:
        msg = (
            f"No driver was attributed: metabolites {listing(drivers['metabolite'].unique()[:3])} against "
            f"{listing(rank.columns[:3])}, genes {listing(drivers['gene'].unique()[:3])} against {listing(rank.index[:3])}."
        )
        raise KeyError(msg)
    return rows


def _spatial(case: _Case, n_shifts: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    from stmsi.model.explain._attribution import attribution_spots
    from stmsi.model.shared._targets import read_targets

    adata, model = case.adata, case.model
    spots = attribution_spots(
        model, adata, float(case.params["min_genes"]), case.params.get("layer"), case.params.get("input")
    )
    if spots.xy is None:
        msg = f"The check 'spatial' needs positions in obsm[\"{Key.obsm.SPATIAL}\"], which the data lack."
        raise KeyError(msg)
    targets = read_targets(adata, model.state.setup)
    y = targets.where_present() if case.params["stage"] == "intensity" else targets.presence
    names = [m for m in case.effects.columns if m in targets.metabolites]
    y = y[:, targets.metabolites.get_indexer(pd.Index(names))]
    section = section_codes(model, adata)
    X = spots.log_expression()[:, case.positions].toarray().astype(np.float64)
    k = min(_N_GENES, X.shape[1])
    best = case.best(k)[:, case.effects.columns.get_indexer(pd.Index(names))]

    def scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([within_sections(values, X[:, genes], section) for genes in best])

    observed, null = scores(y), np.empty((n_shifts, k, len(names)))
    for i in track(range(n_shifts), "shifts in space", total=n_shifts, show=case.show):
        source = torus_shift(spots.xy, section, rng)
        null[i] = scores(np.where(source[:, None] >= 0, y[source], np.nan))
    # a shift in which the correlation does not exist counts against the gene
    beaten = (np.nan_to_num(np.abs(null), nan=np.inf) >= np.abs(observed)).sum(axis=0)
    p_value = (1 + beaten) / (1 + n_shifts)
    rows = []
    for m, name in enumerate(names):
        for i in [i for i in range(k) if not np.isnan(observed[i, m])]:
            gene, baseline = case.effects.index[best[i, m]], _mean(np.abs(null[:, i, m]))
            values = {"k": i + 1, "value": observed[i, m], "baseline": baseline, "p_value": p_value[i, m]}
            rows.append(_row("spatial", name, gene=gene, **values))
    return rows


def _row(check: str, metabolite: str, **values: Any) -> dict[str, Any]:
    return {"check": check, "metabolite": metabolite, "gene": "", **values}


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _correlation(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation between rows, NaN for constant ones."""
    Z = rows - rows.mean(axis=1, keepdims=True)
    size = np.sqrt((Z**2).sum(axis=1, keepdims=True))
    Z = np.where(size > 0, Z / np.where(size > 0, size, 1), np.nan)
    return Z @ Z.T
