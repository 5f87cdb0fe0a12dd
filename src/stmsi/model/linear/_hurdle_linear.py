"""Two-stage prediction with one estimator per metabolite and stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from stmsi._data.checks import check_choice, check_count, check_jobs, check_seed
from stmsi._data.keys import Key
from stmsi._progress import track
from stmsi._settings import logger, settings
from stmsi.model.linear._fits_from_disk import fit_classifiers_from_disk, fit_ridges_from_disk
from stmsi.model.linear._gene_prior import GenePrior, PriorUse
from stmsi.model.linear._intensity import IntensityFamily, Regression, fit_ridges, predict_intensity
from stmsi.model.linear._presence import (
    Classifier,
    PresenceFamily,
    fit_shared_classifiers,
    predict_presence,
)
from stmsi.model.linear._similarity import NeighbourMap
from stmsi.model.linear._single_fits import (
    Folds,
    fit_intensity,
    fit_intensity_to_disk,
    fit_presence,
    fit_presence_to_disk,
    gathered,
)
from stmsi.model.shared._blocks import some_rows
from stmsi.model.shared._inner_folds import InnerFolds
from stmsi.model.shared._plain_files import read_payload, write_payload
from stmsi.model.shared._setup import Setup, read_prior
from stmsi.model.shared._spot_features import STAGES, Context, SignatureStage, SpotFeatures, check_stages
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._spot_model import SpotModel
from stmsi.model.shared._training_data import TrainingData, signature_of

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._fitted_state import FittedState
    from stmsi.model.shared._stored_input import Input


class HurdleLinear(SpotModel):
    """Presence, then intensity, each by one estimator per metabolite, most of them of scikit-learn.

    Genes become the principal components of the most variable ones (with a graph, a spot's neighbourhood is a second
    input; features named at setup are appended); the presence stage also sees the signature mask of the spot's cluster.
    Everything is fitted on the training spots. Regularisation is chosen by inner cross-validation over whole patients (three
    or more in ``obs["patient"]``), else sections, else spatial blocks, else at random: for presence the best AUROC, for
    intensity the best mean correlation within the held-out sections. All logistic regressions, and all ridge regressions
    without a prior, share one penalty, chosen by the correlation within held-out sections and the pooled one. The same held-out
    predictions calibrate the probabilities, set each metabolite's threshold (by F1, lowered until zeros cost little) and
    give the prediction intervals.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    presence
        First stage: ``"prior"`` (training prevalence), ``"logistic"``, ``"svm"`` (linear) or ``"mlp"`` (a network with
        one output), with balanced classes and Platt-calibrated probabilities. The logistic regressions of all metabolites
        are solved together and share one penalty, unless a prior is set up.
    intensity
        Second stage, fitted where the metabolite is present: ``"mean"``, ``"linear"`` (least squares), ``"ridge"``,
        ``"lasso"``, ``"pls"``, ``"knn"`` (mean of the most similar training spots, weighted by similarity), ``"poisson"`` and
        ``"negative_binomial"`` (log link), ``"boosting"`` (histogram gradient boosting) or ``"mlp"``. All metabolites share
        the penalty of ``"ridge"``, unless a prior is set up. For kernel ridge see :class:`HurdleKernel`. A saved ``"knn"`` contains training spots.
    n_top_genes
        Most variable genes that are used.
    n_components
        Principal components of the spot's own expression, and again of its neighbourhood's.
    context
        What of the neighbourhood, where a graph is set up: ``"pooled"`` (components of the counts of a spot and its
        neighbours added up) or ``"diffused"`` (the components averaged over the neighbours, and over theirs).
    signature_stages
        Stages that see the signature mask, where a signature is set up: of ``"presence"`` and ``"intensity"``.
    prior
        How the genes that a knowledge prior names for a metabolite enter its two estimators, where a prior is set up:
        ``"penalty"`` (each gene as a column of its own, with a smaller penalty than the components have) or
        ``"features"`` (their mean as one column); with a graph, their mean over the neighbours as well. How much
        smaller is chosen in the inner folds, for each metabolite and stage, and the prior is left out where it does not
        raise the held-out AUROC or correlation by 0.02. Families without a penalty see the columns or do not.
    n_folds
        Inner folds at most.
    n_jobs
        Processes; `None` follows ``stmsi.settings.n_jobs``. Results do not depend on it.
    rng
        Seed of the solvers that draw.

    Raises
    ------
    ValueError
        Unknown families, an AnnData that is not set up, or ``intensity="knn"`` with a prior.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleLinear.setup_anndata(st)
    >>> model = stmsi.model.HurdleLinear(st, intensity="ridge", n_components=20)
    >>> model.train(show_progress_bar=False)
    >>> model.predict().shape
    (344, 12)
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        presence: PresenceFamily = "logistic",
        intensity: IntensityFamily = "ridge",
        n_top_genes: int = 2000,
        n_components: int = 128,
        context: Context = "pooled",
        signature_stages: Sequence[SignatureStage] = ("presence",),
        prior: PriorUse = "penalty",
        n_folds: int = 5,
        n_jobs: int | None = None,
        rng: int = 0,
    ) -> None:
        check_choice(presence, get_args(PresenceFamily), "presence")
        check_choice(intensity, get_args(IntensityFamily), "intensity")
        check_choice(context, get_args(Context), "context")
        check_choice(prior, get_args(PriorUse), "prior")
        self.signature_stages = check_stages(signature_stages)
        check_count(n_top_genes, "n_top_genes")
        check_count(n_components, "n_components")
        check_count(n_folds, "n_folds", 2)
        check_jobs(n_jobs)
        check_seed(rng)
        self.presence, self.intensity = presence, intensity
        self.n_top_genes, self.n_components, self.n_folds = n_top_genes, n_components, n_folds
        self.context, self.n_jobs, self.rng = context, n_jobs, rng
        self.prior = prior
        self.adata: AnnData | None = adata
        self._setup = Setup.read(adata, type(self).__name__)
        if self._setup.prior_key is not None and not self._reads_prior({"intensity": intensity}):
            msg = f"intensity={intensity!r} compares whole spots and reads no prior; set up without prior_key."
            raise ValueError(msg)
        self.classifiers_: list[Classifier] = []
        self.regressions_: list[Regression] = []
        self.map_: NeighbourMap | None = None
        self.held_out_: NDArray[np.float64] | None = None
        self.prior_: GenePrior | None = None

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        input: Input | None = None,
        metabolite_key: str = Key.obsm.MSI,
        presence_key: str | None = None,
        signature_key: str | None = None,
        cluster_key: str | None = None,
        sample_key: str = Key.obs.SAMPLE,
        graph_key: str | None = None,
        covariate_keys: Sequence[str] | None = None,
        feature_key: str | Sequence[str] | None = None,
        prior_key: str | None = None,
    ) -> None:
        """Say which fields of an AnnData the model uses.

        Parameters
        ----------
        adata
            Spots x genes.
        layer
            Layer with the expression; `None`: ``X``.
        input
            What the expression is: ``"counts"``, which the model normalises, or ``"log"``, taken as it is (log-normalised
            counts, log ratios; negative numbers are allowed). `None`: look, in each section, and say what was found.
        metabolite_key
            Intensities in ``obsm`` (DataFrame; NaN where not covered).
        presence_key
            Presence in ``obsm``; `None`: present where the intensity is above 0.
        signature_key, cluster_key
            Signature in ``varm`` and clusters in ``obs``, as :func:`stmsi.pp.gene_signatures` writes them. Spots of
            other data are assigned to the nearest training cluster.
        sample_key
            Section of each spot in ``obs``.
        graph_key
            Neighbourhood graph in ``obsp``, as :func:`stmsi.pp.spatial_graph` writes it; used for features of the
            neighbourhood.
        covariate_keys
            Columns of ``obs``: decimal numbers are z-scored; whole numbers (batches), texts and categories become
            indicators.
        feature_key
            Features to append to the genes, such as those of the histology image: keys of ``obsm`` (array or
            DataFrame), z-scored on the training spots. Spots to be predicted need them too.
        prior_key
            Genes known to belong to each metabolite, in ``varm``, as :func:`stmsi.pp.knowledge_prior` writes them.

        Returns
        -------
        `None`. Writes the names into ``uns["_stmsi_setup"]``.

        Raises
        ------
        KeyError
            A field is not there.
        ValueError
            A view, an empty table, duplicate names, negative or infinite intensities, counts in some sections and
            logarithms on an unknown scale in others.
        """
        Setup.create(
            adata, layer=layer, input=input, metabolite_key=metabolite_key, presence_key=presence_key, signature_key=signature_key,
            cluster_key=cluster_key, sample_key=sample_key, graph_key=graph_key, covariate_keys=covariate_keys,
            feature_key=feature_key, prior_key=prior_key,
        )  # fmt: skip

    def _fit(self, data: TrainingData, show_progress_bar: bool | None) -> None:
        setup = self._setup
        train, targets, sample = data.train, data.targets, data.sample
        labels, signature = signature_of(data.adata, setup)
        features = SpotFeatures(self.n_top_genes, self.n_components, self.rng, self.context, self.signature_stages).fit(
            train, labels, signature
        )
        state = data.start(setup, features)
        inner = InnerFolds.of(data, n_folds=self.n_folds, seed=self.rng)
        if data.folder is not None:
            self._fit_from_disk(data, state, inner, show_progress_bar)
            return
        for_intensity, for_presence = features.transform(train)
        shared = NeighbourMap.fit(for_intensity, features.widths) if self.intensity == "knn" else None
        folds = Folds.of_inner(inner, len(targets.metabolites), sample)
        inputs = [for_intensity if shared is None else shared.held_out(for_intensity, own) for own, _ in folds.kinds]
        prior, values = None, []
        if setup.prior_key is not None:
            known = read_prior(data.adata, setup.prior_key, data.all_targets.metabolites)
            prior = GenePrior.fit(train, known[:, data.all_targets.metabolites.isin(targets.metabolites)], self.prior)
            values = prior.values(train)
        n_jobs = settings.n_jobs if self.n_jobs is None else self.n_jobs
        columns = [None if prior is None else prior.columns(values, m) for m in range(len(folds.of))]
        # estimators of a metabolite with columns of its own have nothing in common with others
        first_together, second_together = (
            prior is None and family == shared_family
            for family, shared_family in ((self.presence, "logistic"), (self.intensity, "ridge"))
        )
        # what is solved together is solved in single precision
        if first_together:
            for_presence = for_presence.astype(np.float32)
        if second_together:
            for_intensity, inputs = for_intensity.astype(np.float32), []
        parts = [] if first_together else folds.parts(1)
        present = None if second_together else targets.where_present()
        jobs = [
            joblib.delayed(fit_presence)(
                for_presence, targets.presence[:, own], folds.kinds[k][0], self.presence, self.rng, columns[own[0]]
            )
            for k, own in parts
        ] + [
            joblib.delayed(fit_intensity)(
                inputs[k], present[:, m], *folds.kinds[k], self.intensity, self.rng, columns[m]
            )
            for m, k in enumerate(folds.of)
            if present is not None
        ]
        fitted = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
        description = f"{self.presence} + {self.intensity}"
        done = list(track(fitted, description, total=len(jobs), show=show_progress_bar))
        place = np.argsort(np.concatenate([own for _, own in parts])) if parts else ()
        classifiers, regressions = (
            [one for part in some for one in part] for some in (done[: len(parts)], done[len(parts) :])
        )
        stages = [classifiers[i] for i in place], regressions
        # the fits are small: threads would cost more than they bring, and sums would depend on their number
        with threadpool_limits(1):
            if first_together:
                stages = [(c, 0.0) for c in fit_shared_classifiers(for_presence, targets.presence, inner)], stages[1]
            if second_together:
                ridges = fit_ridges(for_intensity, targets.intensity, targets.presence, inner)
                stages = stages[0], [(r, 0.0) for r in ridges]
        self.classifiers_, self.regressions_ = ([one for one, _ in stage] for stage in stages)
        self.map_, self.prior_ = shared, prior
        if prior is not None:
            prior.strength = {
                name: np.array([strength for _, strength in stage]) for name, stage in zip(STAGES, stages, strict=True)
            }
            logger.info(
                "The prior is used for presence of %d and intensity of %d of %d metabolites.",
                *((prior.strength[stage] > 0).sum() for stage in STAGES), len(columns),
            )  # fmt: skip
        self.state_ = state
        probability, intensity = self.held_out_ = gathered(self.classifiers_, self.regressions_)
        self._calibrate_after(data, probability, intensity, inner.units, self.rng, groups=inner.groups)

    @property
    def _fits_from_disk(self) -> bool:
        setup = self._setup
        # retrieval keeps its training spots
        alike = setup.prior_key is None and setup.signature_key is None and self.intensity != "knn"
        return alike and (setup.graph_key is None or self.context == "diffused")

    def _fit_from_disk(
        self, data: TrainingData, state: FittedState, inner: InnerFolds, show_progress_bar: bool | None
    ) -> None:
        """The rest of the fit, where what grows with the spots stays on disk.

        Estimators that are fitted to one metabolite after the other have the features in memory.
        """
        targets, folder = data.targets, data.folder
        assert folder is not None
        for_intensity, for_presence = state.features.transform_to_disk(data.train, folder)
        folds = Folds.of_inner(inner, len(targets.metabolites), data.sample)
        options: dict[str, Any] = {
            "folder": folder, "n_jobs": settings.n_jobs if self.n_jobs is None else self.n_jobs, "show": show_progress_bar
        }  # fmt: skip
        with threadpool_limits(1):
            if self.presence == "logistic":
                fitted = fit_classifiers_from_disk(for_presence, targets.presence, inner, folder)
            else:
                fitted = fit_presence_to_disk(for_presence, targets.presence, folds, self.presence, self.rng, **options)
            self.classifiers_, probability = fitted
            if self.intensity == "ridge":
                found = fit_ridges_from_disk(for_intensity, targets.intensity, targets.presence, inner, folder)
            else:
                present = targets.where_present()
                found = fit_intensity_to_disk(for_intensity, present, folds, self.intensity, self.rng, **options)
            self.regressions_, intensity = found
        self.map_, self.prior_, self.held_out_, self.state_ = None, None, None, state
        held_out: list[Any] = [probability, intensity]
        self._calibrate_after(data, held_out[0], held_out[1], inner.units, self.rng, groups=inner.groups)

    def _stages(
        self, spots: Spots, at: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        for_intensity, for_presence = self.state.features.transform(spots, at)
        if self.map_ is not None:
            for_intensity = self.map_.transform(for_intensity)
        prior = self.prior_
        if prior is None:
            probability = predict_presence(self.classifiers_, for_presence)
            return probability, predict_intensity(self.regressions_, for_intensity)
        values = [some_rows(value, at) for value in prior.values(spots)]
        classifiers, regressions = enumerate(self.classifiers_), enumerate(self.regressions_)
        return (
            np.column_stack([c.predict(prior.extend(for_presence, values, STAGES[0], m)) for m, c in classifiers]),
            np.column_stack([r.predict(prior.extend(for_intensity, values, STAGES[1], m)) for m, r in regressions]),
        )

    def _used_genes(self) -> NDArray[np.int64]:
        genes = super()._used_genes()
        return genes if self.prior_ is None else np.union1d(genes, self.prior_.genes)

    def _gene_weights(self) -> NDArray[np.float64]:
        weights = super()._gene_weights()
        if self.prior_ is None:
            return weights
        # a metabolite with a prior reads its genes beside the components
        chosen = self.prior_.uses(len(weights))
        return (weights + chosen / max(len(self.metabolites), 1)) / (1 + chosen.sum() / max(len(self.metabolites), 1))

    def _held_out_stages(self) -> NDArray[np.float64] | None:
        return self.held_out_

    def _write(self, directory: Path) -> None:
        nothing = np.empty(0)
        payload = {
            "params": self._params(),
            "state": self.state,
            "classifiers": [replace(c, held_out=nothing) for c in self.classifiers_],
            "regressions": [replace(r, held_out=nothing) for r in self.regressions_],
            "map": self.map_,
            "prior": self.prior_,
        }
        write_payload(directory, payload)

    @classmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> HurdleLinear:
        payload = read_payload(directory)
        model = cls.__new__(cls)
        for name, value in payload["params"].items():
            setattr(model, name, value)
        model.n_jobs, model.adata, model.state_ = None, adata, payload["state"]
        model._setup = payload["state"].setup
        model.classifiers_, model.regressions_ = payload["classifiers"], payload["regressions"]
        model.map_, model.prior_, model.held_out_ = payload["map"], payload["prior"], None
        return model

    def _contains_training_profiles(self) -> bool:
        return self.map_ is not None

    @classmethod
    def _reads_prior(cls, params: Mapping[str, Any]) -> bool:
        # retrieval looks up whole spots: a column more has no place in it
        return params.get("intensity", "ridge") != "knn"

    def _params(self) -> dict[str, Any]:
        names = (
            "presence", "intensity", "n_top_genes", "n_components", "context", "signature_stages", "prior", "n_folds", "rng"
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}
