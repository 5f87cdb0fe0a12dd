"""Several models as one: stacked on predictions of spots that they were not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._core.learning.stacking import selected_weights, stacking_weights
from stmsi._data.checks import check_count, check_jobs, check_seed, listing
from stmsi._progress import track
from stmsi._settings import logger, settings
from stmsi.model._families import ModelSpec
from stmsi.model._load import load
from stmsi.model.ensemble._members import (
    Member,
    members_by_name,
    named,
    of_metabolites,
    place,
    predict_group,
    reduced_adata,
    stages_of,
    take_together,
)
from stmsi.model.ensemble._weighted_maps import WORTH, WeightedMean, gain, weighted_mean
from stmsi.model.linear._hurdle_linear import HurdleLinear
from stmsi.model.shared._inner_folds import InnerFolds
from stmsi.model.shared._map_scale import MapScale
from stmsi.model.shared._persistence import save_model
from stmsi.model.shared._plain_files import read_payload, write_payload
from stmsi.model.shared._setup import Setup, graph_where_there, prior_where_there
from stmsi.model.shared._spot_features import STAGES, SpotFeatures
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._spot_model import SpotModel
from stmsi.model.shared._targets import Targets
from stmsi.model.shared._training_data import TrainingData, signature_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stmsi.model.shared._hurdle_model import HurdleModel

MEMBERS = "members"
AUTO_MEMBERS: dict[str, ModelSpec] = {
    # known genes have a member of their own: here, each metabolite would choose a penalty on the folds that weigh the members
    "two-stage ridge": {"model": "ridge", "setup": {"prior_key": None}},
    "gene ridge": {"model": "gene_ridge", "presence": "prior"},
    "gene ridge, z-scored": {"model": "gene_ridge", "unit_variance": True, "presence": "prior"},
    "kernel ridge": {"model": "kernel_ridge", "presence": "prior"},
    "screened ridge": {"model": "screened_ridge", "presence": "prior"},
}
"""Members that differ in what they see. Presence would be the same in all, and is fitted once."""
PRIOR_MEMBER: dict[str, ModelSpec] = {"prior ridge": {"model": "prior_ridge", "presence": "prior"}}
"""The same where a knowledge prior is set up."""
NET_MEMBER: dict[str, ModelSpec] = {"gene attention": "transformer"}
"""The same with spots enough, if it is worth its cost."""
_FEWEST_FOR_NETS = 1000


class HurdleEnsemble(SpotModel):
    """Several models, stacked: for each metabolite a weighted mean of their probabilities, and one of their maps.

    The training spots are split into groups: whole patients where ``obs["patient"]`` names three or more, else sections,
    else spatial blocks, else at random. Every member predicts each group without having been trained on it. Members of
    :class:`HurdleLinear`, :class:`HurdleKernel` and :class:`HurdleScreened` have made such predictions in their inner folds;
    the others are trained once more for every group. Weights of presence minimise the squared error of the calibrated
    probability (Brier score). Weights of the maps are found by selection: members are added one by one, each as often as it
    raises the held-out correlation, within sections and pooled, most. Weights are not negative and sum to 1. Those of a
    metabolite are pulled to those of all metabolites together, the more the fewer spots they rest on. The intensity given
    presence is the map over the probability. Thresholds, intervals and the evidence in the feature table come from the
    stacked predictions of the groups, so that they rest on every training section.

    ``print(model)`` and ``model.card["training"]["chosen"]`` say what was chosen, in words.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    members
        Families by name, or mappings ``{"model": family or class, "train": {...}, **hyper-parameters}``, as a sequence
        or as a mapping from the name to show. The entry ``"setup"`` of a member can switch inputs of the ensemble off:
        ``{"model": "ridge", "setup": {"graph_key": None}}``. Members that cannot read a graph are given none. `None`, the
        model ``"auto"``: two-stage ridge (without a prior), gene ridge, gene ridge z-scored, kernel ridge, screened ridge, where a
        knowledge prior is set up prior ridge, and with 1,000 spots gene attention (``"transformer"``), if a first group of
        spots gains by it and then all groups do. One of these that fails is left out, with a warning; one that you named raises its error.
    nested
        Train every member once more for each group. The inner folds of members have chosen penalties and calibrated with
        the spots that they then predict, and components and landmarks have seen their genes; nested predictions are free of
        that, for several times the cost.
    n_folds
        Groups at most (of blocks, a few more where they do not divide among the sections).
    n_jobs
        Processes for groups x members; `None` follows ``stmsi.settings.n_jobs``. Results do not depend on it.
    rng
        Seed of the blocks, and of members that are not given one.

    Raises
    ------
    ValueError
        No or unknown members, an ensemble as a member, options that cannot be saved, or an AnnData that is not set up.

    Notes
    -----
    A metabolite that a member leaves out is predicted by the others. A metabolite without held-out evidence (measured
    in one group only), or that never varies (constant, always or never present), has the weights of all metabolites. If
    no held-out spot can be predicted, its threshold and interval are those of the member with the largest weight.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleEnsemble.setup_anndata(st)
    >>> members = ["mean", {"model": "ridge", "n_components": 10, "n_folds": 2}]
    >>> model = stmsi.model.HurdleEnsemble(st, members=members, n_folds=2)
    >>> model.train(show_progress_bar=False)
    >>> model.predict().shape
    (344, 12)
    >>> model.weights.columns.tolist()
    ['metabolite', 'stage', 'member', 'weight']
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        members: Sequence[ModelSpec] | Mapping[str, ModelSpec] | None = None,
        nested: bool = False,
        n_folds: int = 5,
        n_jobs: int | None = None,
        rng: int = 0,
    ) -> None:
        check_count(n_folds, "n_folds", 2)
        check_jobs(n_jobs)
        check_seed(rng)
        self.adata: AnnData | None = adata
        self._setup = Setup.read(adata, type(self).__name__)
        self.automatic = members is None
        self.members = self._default_members() if members is None else members_by_name(members)
        self.nested, self.n_folds, self.n_jobs, self.rng = nested, n_folds, n_jobs, rng
        self._make_members()  # bad ones are refused before training begins
        self.models_: list[HurdleModel] = []
        self.stack_: dict[str, NDArray[np.float64]] = {}
        self.scale_: MapScale | None = None
        self.failed_: dict[str, str] = {}
        self.dropped_: dict[str, float] = {}

    # the same fields for every member
    setup_anndata = HurdleLinear.setup_anndata

    @classmethod
    def _default_fields(cls, adata: AnnData, params: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        return graph_where_there(adata) | prior_where_there(adata)

    @property
    def _reach(self) -> int | None:
        reaches = [model._reach for model in self.models_]
        known = [reach for reach in reaches if reach is not None]
        return max(known, default=0) if len(known) == len(reaches) else None

    def _used_genes(self) -> NDArray[np.int64]:
        return np.unique(np.concatenate([model._used_genes() for model in self.models_]))

    def _gene_weights(self) -> NDArray[np.float64]:
        # each member by its weight in the stack, over metabolites and stages
        share = np.mean([self.stack_[stage].mean(axis=1) for stage in STAGES], axis=0)
        weights = sum(s * model._gene_weights() for s, model in zip(share, self.models_, strict=True))
        return np.asarray(weights) / max(float(share.sum()), 1e-12)

    @property
    def weights(self) -> pd.DataFrame:
        """Weight of each member: tidy table with ``metabolite``, ``stage``, ``member``, ``weight``.

        Of the stage ``"intensity"``, weights of the maps.

        Raises
        ------
        RuntimeError
            The model is not trained.
        """
        index = pd.MultiIndex.from_product(
            [self.metabolites, STAGES, self.members], names=["metabolite", "stage", "member"]
        )
        values = np.stack([self.stack_[stage] for stage in STAGES]).transpose(2, 0, 1)
        return pd.DataFrame({"weight": values.ravel()}, index=index).reset_index()

    def _fit(self, data: TrainingData, show_progress_bar: bool | None) -> None:
        setup = self._setup
        train, targets = data.train, data.targets
        labels, signature = signature_of(data.adata, setup)
        features = SpotFeatures(seed=self.rng, context="diffused").fit(train, labels, signature)
        state = data.start(setup, features)
        folds = InnerFolds.of(data, n_folds=self.n_folds, seed=self.rng)
        groups, units = folds.groups, folds.units

        own = reduced_adata(data.adata, setup, train, data.rows)
        n_jobs = settings.n_jobs if self.n_jobs is None else self.n_jobs
        models = self._fit_members(data.alone(own), folds, n_jobs, show_progress_bar)
        held_out = self._held_out(models, own, train, targets.metabolites, groups, n_jobs, show_progress_bar)

        predicted = np.stack([targets.metabolites.isin(m.metabolites) for m in models])
        kept = np.asarray(predicted.any(axis=0))
        if not kept.all():
            logger.warning("Metabolites that no member predicts are left out: %s", listing(targets.metabolites[~kept]))
            targets = Targets(targets.intensity[:, kept], targets.presence[:, kept], targets.metabolites[kept])
            data = replace(data, targets=targets)
            held_out, predicted = held_out[..., kept], predicted[:, kept]
            state.metabolites, state.feature_table = targets.metabolites, state.feature_table.loc[kept]
        maps = held_out[0] * held_out[1]
        truth = HeldOutTruth.of(targets.intensity, groups, units)
        kept = self._worth_their_cost(truth, maps, predicted)
        models = [model for model, own in zip(models, kept, strict=True) if own]
        held_out, maps, predicted = held_out[:, kept], maps[kept], predicted[kept]
        self.models_, self.state_ = models, state
        self.stack_ = {
            "presence": stacking_weights(targets.presence, held_out[0], groups, predicted),
            "intensity": selected_weights(truth, maps, predicted),
        }
        probability, expected = (
            weighted_mean(held_out[0], self.stack_["presence"]),
            weighted_mean(maps, self.stack_["intensity"]),
        )
        self.scale_ = MapScale.fit(targets.intensity, expected, truth)
        intensity = self.scale_.given_presence(expected, probability, truth)
        state.training["chosen"] = self._in_words(maps, expected, truth, folds)
        without = np.asarray((np.isnan(probability) | np.isnan(targets.presence)).all(axis=0))
        self._calibrate_after(data, probability, intensity, units, self.rng, without, groups=groups)
        if data.validation is None:
            self._borrow_calibration(without)

    def _default_members(self, n_spots: int = 0) -> dict[str, ModelSpec]:
        members = AUTO_MEMBERS if self._setup.prior_key is None else AUTO_MEMBERS | PRIOR_MEMBER
        if n_spots >= _FEWEST_FOR_NETS:
            members = members | NET_MEMBER
        return members_by_name(members)

    def _fit_members(
        self, data: TrainingData, folds: InnerFolds, n_jobs: int, show_progress_bar: bool | None
    ) -> list[HurdleModel]:
        """Train all members. One of the default's that fails is left out, and told; one that the user named is an error."""
        models: list[HurdleModel] = []
        kept: dict[str, ModelSpec] = {}
        self.failed_, self.dropped_ = {}, {}
        if self.automatic:  # what failed once may not fail again
            self.members = self._default_members(len(data.rows))
        todo = track(self._make_members(), "members", total=len(self.members), show=show_progress_bar)
        for member in todo:
            try:
                if self.automatic and member.name in NET_MEMBER:
                    added = self._adds(member, models, data, folds)
                    if added < WORTH:
                        self.dropped_[member.name] = added
                        continue
                models.append(member.fit(data, n_jobs=n_jobs))
                kept[member.name] = self.members[member.name]
            except Exception as error:  # told by name, whatever it is
                if not self.automatic:
                    raise
                self.failed_[member.name] = str(error.args[0] if error.args else error)
                logger.warning("%s. It is left out of the stack.", self.failed_[member.name].rstrip("."))
        if not models:
            msg = f"No member could be trained. {next(iter(self.failed_.values()))}"
            raise ValueError(msg)
        self.members = kept
        for model in models:  # the stack knows its spots, and its folder holds them once
            model.state.seen = None
        return models

    def _adds(self, member: Member, models: Sequence[HurdleModel], data: TrainingData, folds: InnerFolds) -> float:
        """What a member adds to the held-out correlation of the others on the first group, trained once without it."""
        group = folds.groups == 0
        made = [m._held_out_stages() for m in models]
        maps = [
            of_metabolites(stages, m.state.metabolites, data.targets.metabolites).prod(axis=0)
            for m, stages in zip(models, made, strict=True)
            if stages is not None
        ]
        own = np.full(data.targets.intensity.shape, np.nan)
        own[group] = member.once(data, group).prod(axis=0)
        # only the first group is judged: what is known of the level is its own mean
        truth = HeldOutTruth.of(np.where(group[:, None], data.targets.intensity, np.nan), folds.groups, folds.units)
        stacked = np.stack([*maps, own])
        return gain(truth, stacked, np.isfinite(stacked).any(axis=1), len(maps))

    def _worth_their_cost(
        self, truth: HeldOutTruth, maps: NDArray[np.float64], predicted: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which members are kept: costly ones of the default must add as much on all groups as they had to on the first."""
        kept = np.ones(len(maps), bool)
        for k, name in enumerate(list(self.members)):
            if self.automatic and name in NET_MEMBER and (added := gain(truth, maps, predicted, k)) < WORTH:
                self.dropped_[name] = added
                kept[k] = False
                del self.members[name]
        return kept

    def _in_words(
        self, maps: NDArray[np.float64], expected: NDArray[np.float64], truth: HeldOutTruth, folds: InnerFolds
    ) -> str:
        """What was chosen, and why."""
        share = self.stack_["intensity"].mean(axis=1)
        order = np.argsort(-share, kind="stable")
        names = list(self.members)
        used = ", ".join(f"{names[k]} {share[k]:.0%}" for k in order if share[k] >= 0.005)
        scores = {name: truth.score(m) for name, m in zip(names, maps, strict=True)}
        best = max(scores, key=lambda name: scores[name])
        text = (
            f"Weighted by {int(folds.groups.max()) + 1} groups of held-out {folds.kind}: {used}. Held-out correlation "
            f"{truth.score(expected):.3f}, of the best member alone ({best}) {scores[best]:.3f}."
        )
        if self.dropped_:
            text += f" Left out because held-out spots did not gain by them: {', '.join(self.dropped_)}."
        if self.failed_:
            text += f" Left out because they failed: {', '.join(self.failed_)}."
        return text

    def _make_members(self) -> list[Member]:
        members = [
            Member.create(name, spec, self._setup, self.rng, self.n_folds) for name, spec in self.members.items()
        ]
        for member in members:
            if issubclass(member.cls, HurdleEnsemble):
                msg = f"Member {member.name!r} is an ensemble itself; list its members instead."
                raise ValueError(msg)
        return members

    def _held_out(
        self,
        models: Sequence[HurdleModel],
        own: AnnData,
        train: Spots,
        metabolites: pd.Index,
        groups: NDArray[np.int64],
        n_jobs: int,
        show_progress_bar: bool | None,
    ) -> NDArray[np.float64]:
        """Predictions of every training spot by members trained without its group.

        Of shape (stages, members, spots, metabolites), NaN where a member predicts none.
        """
        held_out = np.full((len(STAGES), len(models), len(train), len(metabolites)), np.nan)
        missing = []
        for k, model in enumerate(models):
            made = None if self.nested else model._held_out_stages()
            if made is None or made.shape[1] != len(train):  # a member may be told to train on part of the spots
                missing.append(k)
                continue
            place(held_out[:, k], made, model.state.metabolites, metabolites)
        members = self._make_members()
        tasks = [(k, g) for g in np.unique(groups) for k in missing]
        if not tasks:
            return held_out
        jobs = (joblib.delayed(predict_group)(members[k], own, train, groups == g, metabolites) for k, g in tasks)
        done = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
        parts = track(done, "held-out predictions", total=len(tasks), show=show_progress_bar)
        for (k, g), part in zip(tasks, parts, strict=True):
            held_out[:, k, groups == g] = part
        return held_out

    def _borrow_calibration(self, columns: NDArray[np.bool_]) -> None:
        """Threshold, interval and spread of some metabolites from the member with the largest weight."""
        state = self.state
        if not columns.any():
            return
        assert state.residuals is not None
        for m, metabolite in zip(np.flatnonzero(columns), state.metabolites[columns], strict=True):
            member = self.models_[int(self.stack_["intensity"][:, m].argmax())].state
            assert member.residuals is not None
            at = member.metabolites.get_indexer(pd.Index([metabolite]))
            state.threshold[m], state.spread[m] = member.threshold[at[0]], member.spread[at[0]]
            state.residuals = state.residuals.with_columns(np.array([m]), member.residuals.take(at))

    @contextmanager
    def _in_batches(self, batch_size: int | None) -> Iterator[None]:
        with ExitStack() as stack:
            for model in self.models_:
                stack.enter_context(model._in_batches(batch_size))
            yield

    def _stages(
        self, spots: Spots, at: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert self.scale_ is not None
        used = np.flatnonzero(sum(weights.any(axis=1) for weights in self.stack_.values()))
        n = len(spots) if at is None else len(at)
        names, shape = list(self.members), (n, len(self.state.metabolites))
        presence, maps = WeightedMean(shape), WeightedMean(shape)  # as arrays of all members would fill the memory

        def made_by(k: int) -> NDArray[np.float64]:
            with named(f"Member {names[k]!r} failed to predict"):
                return stages_of(self.models_[k], spots, self.state.metabolites, at)

        def add(k: int, stages: NDArray[np.float64]) -> None:
            probability, intensity = stages
            presence.add(probability, self.stack_["presence"][k])
            maps.add(probability * intensity, self.stack_["intensity"][k])

        take_together(used.tolist(), [self.models_[k]._n_threads for k in used], made_by, add)
        probability, expected = np.clip(presence.value(), 0, 1), maps.value()
        return probability, self.scale_.given_presence(expected, probability)

    def _write(self, directory: Path) -> None:
        write_payload(
            directory, {"params": self._params(), "state": self.state, "stack": self.stack_, "scale": self.scale_}
        )
        for k, model in enumerate(self.models_):  # by number: names may hold anything
            save_model(model, directory / MEMBERS / str(k), overwrite=False)

    @classmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> HurdleEnsemble:
        payload = read_payload(directory)
        model = cls.__new__(cls)
        for name, value in payload["params"].items():
            setattr(model, name, value)
        model.n_jobs, model.adata, model.state_ = None, adata, payload["state"]
        model._setup, model.stack_, model.scale_ = payload["state"].setup, payload["stack"], payload["scale"]
        model.automatic, model.failed_, model.dropped_ = False, {}, {}
        model.models_ = [load(directory / MEMBERS / str(k)) for k in range(len(model.members))]
        return model

    def _contains_training_profiles(self) -> bool:
        return any(m._contains_training_profiles() for m in self.models_)

    def __repr__(self) -> str:
        text = super().__repr__()
        return text if self.state_ is None else f"{text}\n{self.state_.training['chosen']}"

    def _params(self) -> dict[str, Any]:
        return {"members": self.members, "nested": self.nested, "n_folds": self.n_folds, "rng": self.rng}
