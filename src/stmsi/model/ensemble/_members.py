"""Members of an ensemble: how each is made, and what it predicts for spots that it was not trained on."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from threadpoolctl import threadpool_limits

from stmsi._core.freed_memory import release_freed
from stmsi._data.keys import Key
from stmsi._messages import only
from stmsi._settings import logger
from stmsi.model._families import ModelSpec, named_models, resolve
from stmsi.model.shared._spot_features import STAGES
from stmsi.model.shared._spot_model import SpotModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._training_data import TrainingData


@dataclass(frozen=True)
class Member:
    """How to make one member."""

    name: str
    cls: type[Any]
    params: dict[str, Any]
    fields: dict[str, Any]
    train: dict[str, Any]

    @classmethod
    def create(cls, name: str, spec: ModelSpec, setup: Setup, seed: int, n_folds: int) -> Member:
        """Check a specification, and fill in what the ensemble decides."""
        with named(f"Member {name!r} cannot be made"):
            model, params, off, train = resolve(spec)
        fields = dict(vars(setup))
        for key, value in off.items():
            if key == "covariate_keys":
                kept = set([value] if isinstance(value, str) else value or ()) <= set(setup.covariate_keys)
            else:
                kept = key in fields and value in (None, fields[key])
            if not kept:
                msg = (
                    f"Member {name!r} has setup {key}={value!r}, which is not part of the ensemble's: set the ensemble "
                    "up with every input; members can only switch inputs off (None)."
                )
                raise ValueError(msg)
            fields[key] = value
        if not model._reads_graph(params):
            fields["graph_key"] = None
        if not model._reads_prior(params):
            del fields["prior_key"]
        # several networks are trained without the groups that weigh the members
        several = {"n_nets": n_folds} if "n_nets" in inspect.signature(model).parameters else {}
        return cls(name, model, {"rng": seed} | several | params, fields, train)

    def fit(self, data: TrainingData | AnnData, *, n_jobs: int = 1) -> HurdleModel:
        """Train on all spots of an AnnData, which gets the marks of the setup, or of what was read of one, which is left as it is."""
        shares = not isinstance(data, AnnData) and issubclass(self.cls, SpotModel) and not self.train
        adata = data if isinstance(data, AnnData) else data.adata if shares else data.adata.copy()
        takes_jobs = "n_jobs" in inspect.signature(self.cls).parameters
        params = ({"n_jobs": n_jobs} if takes_jobs else {}) | self.params
        with named(f"Member {self.name!r} failed on {adata.n_obs} training spots"), only(logging.ERROR, logger.name):
            self.cls.setup_anndata(adata, **self.fields)
            model: Any = self.cls(adata, **params)
            shared = data.of_setup(model._setup) if shares else None  # type: ignore[union-attr]
            if shared is None:
                model.train(show_progress_bar=False, **self.train)
            else:
                model._fit(shared, show_progress_bar=False)
        trained: HurdleModel = model
        return trained

    def once(self, data: TrainingData, group: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Both stages of a group of spots by one network that is trained without it, shape (2, spots, metabolites)."""
        adata, rows = data.adata.copy(), np.flatnonzero(group)
        with (
            named(f"Member {self.name!r} failed on a first group of {len(rows)} spots"),
            only(logging.ERROR, logger.name),
        ):
            self.cls.setup_anndata(adata, **self.fields)
            model = self.cls(adata, **(self.params | {"n_nets": 1}))
            model.train(~group, rows, show_progress_bar=False, **self.train)
            return stages_of(model, data.train.take(rows), data.targets.metabolites)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Whatever error is raised inside says of whom it is; of its own class, where that takes a text."""
    try:
        yield
    except Exception as error:
        # a KeyError puts its text into quotes
        reason = error.args[0] if error.args else error
        msg = f"{what}: {reason or type(error).__name__}"
        try:
            again: Exception = type(error)(msg)
        except Exception:  # noqa: BLE001  a class that takes something else
            again = RuntimeError(msg)
        raise (again if msg in map(str, again.args) else RuntimeError(msg)) from error


def members_by_name(members: Sequence[ModelSpec] | Mapping[str, ModelSpec]) -> dict[str, ModelSpec]:
    """Members by name, as plain values; those of a sequence are called by their family, numbered where it repeats."""
    if isinstance(members, str) or (isinstance(members, Mapping) and "model" in members):
        members = [members]
    if isinstance(members, Mapping):
        named = named_models(members)
    else:
        named = {}
        for spec in members:
            family = spec if isinstance(spec, str) else spec.get("model", "member")
            name = family = family.__name__ if isinstance(family, type) else str(family)
            while name in named:
                name = f"{family}_{len(named) + 1}"
            named[name] = spec
    if not named:
        msg = "An ensemble needs at least one member."
        raise ValueError(msg)
    plain: dict[str, ModelSpec] = {
        name: spec if isinstance(spec, str) else {k: v.__name__ if isinstance(v, type) else v for k, v in spec.items()}
        for name, spec in named.items()
    }
    try:
        json.dumps(plain)
    except TypeError as error:
        msg = f"Options of members must be plain values, so that the model can be saved ({error})."
        raise ValueError(msg) from error
    return plain


def reduced_adata(adata: AnnData, setup: Setup, train: Spots, rows: NDArray[np.int64]) -> AnnData:
    """The training spots with what the setup names and nothing else, so that the user's object is left alone."""
    named = {n for v in vars(setup).values() for n in ([v] if isinstance(v, str) else v or ())} | {Key.obs.PATIENT}
    recorded = named | {Key.uns.MSI}
    obs = adata.obs.iloc[rows][[c for c in adata.obs if c in named]].copy()
    # names may repeat, of which anndata would warn at every copy
    obs.index = pd.RangeIndex(len(rows)).astype(str)
    own = AnnData(
        X=train.counts if setup.layer is None else None,
        obs=obs,
        var=adata.var,
        uns={k: v for k, v in adata.uns.items() if k in recorded},
        varm={k: v for k, v in adata.varm.items() if k in named},
        layers={} if setup.layer is None else {setup.layer: train.counts},
    )
    for key, value in adata.obsm.items():
        if key in named | {Key.obsm.SPATIAL}:
            own.obsm[key] = value.iloc[rows].set_axis(obs.index) if isinstance(value, pd.DataFrame) else value[rows]
    if setup.graph_key is not None:
        own.obsp[setup.graph_key] = train.graph
    return own


def predict_group(
    member: Member, own: AnnData, train: Spots, group: NDArray[np.bool_], metabolites: pd.Index
) -> NDArray[np.float64]:
    """Both stages for the spots of one group by a member trained on the others, shape (2, spots, metabolites)."""
    inside = np.flatnonzero(~group)
    model = member.fit(own[inside].copy())
    held_out = train.take(np.flatnonzero(group))
    covariates = held_out.covariates
    if covariates is not None:
        covariates = covariates.copy()
        for name, known in model.state.features.categories.items():
            if not isinstance(known, tuple):
                # A category of this group alone (a batch, say) would be refused: the most frequent other one stands in
                values, usual = covariates[name].astype(str), own.obs[name].iloc[inside].astype(str).mode()[0]
                covariates[name] = values.where(values.isin(known), usual)
    # clusters are assigned, as they are in new data
    held_out = replace(held_out, covariates=covariates, cluster=None)
    with (
        named(f"Member {member.name!r} failed to predict {len(held_out)} held-out spots"),
        only(logging.ERROR, logger.name),
    ):
        return stages_of(model, held_out, metabolites)


def stages_of(
    model: HurdleModel, spots: Spots, metabolites: pd.Index, at: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Both stages of a member, shape (2, spots, metabolites), NaN for metabolites that it leaves out; `at`: of some spots."""
    made = np.stack(model._stages(spots, at))
    if model.state.metabolites.equals(metabolites):
        return made.astype(np.float64, copy=False)
    return of_metabolites(made, model.state.metabolites, metabolites)


def take_together(
    members: Sequence[int],
    n_threads: Sequence[int],
    make: Callable[[int], NDArray[np.float64]],
    add: Callable[[int, NDArray[np.float64]], None],
) -> None:
    """Make the stages of each member and add them up: members without threads first, whatever the threads, as sums depend on the order.

    Where a member uses several threads, the others are made on one beside it; it leaves cores idle while it prepares its batches.

    Parameters
    ----------
    members
        Their numbers.
    n_threads
        Threads that each can use, 0 for those that use none.
    make, add
        Predict one, and take what it predicts.
    """
    last = [k for k, n in zip(members, n_threads, strict=True) if n]
    first = [k for k in members if k not in last]

    def one_by_one() -> None:
        for k in first:
            add(k, make(k))
            release_freed()

    if max(n_threads, default=0) < 2 or not first:
        one_by_one()
        for k in last:
            add(k, make(k))
        return
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(1) as pool:
        done = pool.submit(one_by_one)
        made = [make(k) for k in last]
        done.result()
    for k, stages in zip(last, made, strict=True):
        add(k, stages)


def of_metabolites(made: NDArray[np.float64], own: pd.Index, metabolites: pd.Index) -> NDArray[np.float64]:
    """Both stages (2, spots, own metabolites) in the order of others, NaN where there is none."""
    stages = np.full((len(STAGES), made.shape[1], len(metabolites)), np.nan)
    place(stages, made, own, metabolites)
    return stages


def place(into: NDArray[np.float64], stages: NDArray[np.float64], own: pd.Index, metabolites: pd.Index) -> None:
    """Put the columns of a member's metabolites where they belong among all."""
    at = own.get_indexer(metabolites)
    into[:, :, at >= 0] = stages[:, :, at[at >= 0]]
