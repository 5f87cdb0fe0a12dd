"""Negative controls: models that must fail, by whose scores luck is known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from stmsi._core.learning.folds import held_out_units, inner_groups
from stmsi._core.metrics.attribution_controls import torus_shift
from stmsi._data.checks import check_choice
from stmsi._data.keys import Key
from stmsi._data.tables import require_frame, require_sample
from stmsi.model.linear._hurdle_linear import HurdleLinear
from stmsi.model.shared._blocks import some_rows
from stmsi.model.shared._plain_files import read_payload, write_payload
from stmsi.model.shared._spot_features import STAGES, SpotFeatures
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._training_data import TrainingData

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

Control: TypeAlias = Literal["shuffled_genes", "toroidal_shift"]
_NEIGHBOURS = 12


class ControlLinear(HurdleLinear):
    """A :class:`HurdleLinear` trained on data whose link between genes and metabolites is broken.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    control
        ``"shuffled_genes"``: spots of a section swap their genes, and the clusters found from them; what is left to learn
        are levels, and what further features (histology) and covariates of the setup tell. ``"toroidal_shift"``:
        the metabolites of a section are shifted on a torus, so that both keep their patterns in space, and lose each other.
    params
        Of :class:`HurdleLinear`.
    """

    _reads_matrix = True

    def __init__(self, adata: AnnData, *, control: Control = "shuffled_genes", **params: Any) -> None:
        check_choice(control, get_args(Control), "control")
        super().__init__(adata, **params)
        self.control = control

    def _fit(self, data: TrainingData, show_progress_bar: bool | None) -> None:
        """Fit both stages to the broken data; the AnnData itself is not changed."""
        broken = TrainingData.read(self._broken(data.adata), self._setup, data.rows, data.validation)
        super()._fit(replace(broken, marks=data.marks), show_progress_bar)

    def _broken(self, adata: AnnData) -> AnnData:
        setup, rng = self._setup, np.random.default_rng(self.rng)
        sample = require_sample(adata, setup.sample_key)
        out = adata.copy()
        if self.control == "shuffled_genes":
            source = np.arange(adata.n_obs)
            for name in np.unique(sample.astype(str)):
                own = np.flatnonzero(sample == name)
                source[own] = rng.permutation(own)
            if setup.layer is None:
                out.X = adata.X[source]
            else:
                out.layers[setup.layer] = adata.layers[setup.layer][source]
            if setup.cluster_key is not None:
                # clusters were found from the genes, and would tell of those that the spot had
                out.obs[setup.cluster_key] = adata.obs[setup.cluster_key].to_numpy()[source]
                if isinstance(adata.obs[setup.cluster_key].dtype, pd.CategoricalDtype):
                    out.obs[setup.cluster_key] = out.obs[setup.cluster_key].astype(adata.obs[setup.cluster_key].dtype)
            return out
        xy = _positions(adata.obsm.get(Key.obsm.SPATIAL))
        source = torus_shift(xy, np.unique(sample.astype(str), return_inverse=True)[1], rng)
        for key in filter(None, (setup.metabolite_key, setup.presence_key)):
            values = require_frame(adata, key)
            # what the shift brings in from beyond the tissue was not measured
            off = pd.Series(source < 0, index=adata.obs_names)
            out.obsm[key] = values.iloc[np.maximum(source, 0)].set_axis(adata.obs_names).mask(off, np.nan, axis=0)
        return out

    def _params(self) -> dict[str, Any]:
        return {**super()._params(), "control": self.control}


class CoordinatesOnly(HurdleLinear):
    """Predicts from positions alone: the mean over the nearest training spots, weighted by distance.

    In a section that training has seen (spatial blocks) these are the nearest spots of that section; in a new one, those
    at the same relative position in all training sections. What it reaches, a model earns without reading a gene.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`, with ``obsm["spatial"]``.
    n_folds, rng
        Of the inner folds.
    """

    def __init__(self, adata: AnnData, *, n_folds: int = 5, rng: int = 0) -> None:
        super().__init__(adata, n_folds=n_folds, rng=rng)
        self.training_: dict[str, Any] = {}

    def _fit(self, data: TrainingData, show_progress_bar: bool | None) -> None:
        """Remember the training spots, and calibrate."""
        targets, sample, xy = data.targets, data.sample, _positions(data.train.xy)
        # only the out-of-distribution score reads these
        features = SpotFeatures(n_components=2, seed=self.rng, context="diffused").fit(data.train, None, None)
        self.state_ = data.start(self._setup, features)
        self.training_ = {
            "xy": xy,
            "relative": _relative(xy, sample),
            "sample": sample,
            "presence": targets.presence,
            "intensity": targets.where_present(),
        }
        groups = inner_groups(sample, xy, n_groups=self.n_folds, seed=self.rng)
        held_out = np.full((2, *targets.presence.shape), np.nan)
        for g in np.unique(groups):
            held_out[:, groups == g] = self._smooth(xy[groups == g], sample[groups == g], groups != g)
        self.held_out_ = held_out
        units = held_out_units(sample, groups)
        self._calibrate_after(data, held_out[0], held_out[1], units, self.rng, groups=groups)

    def _smooth(self, xy: NDArray[np.float64], sample: NDArray[Any], use: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Both stages at positions, shape (2, spots, metabolites), from the training spots to be used."""
        known = self.training_
        out = np.empty((2, len(xy), known["presence"].shape[1]))
        relative = _relative(xy, sample)
        for name in np.unique(sample.astype(str)):
            own = np.flatnonzero(sample == name)
            same = np.flatnonzero(use & (known["sample"] == name))
            seen = len(same) > 0
            source = same if seen else np.flatnonzero(use)
            place, query = (known["xy"], xy) if seen else (known["relative"], relative)
            k = min(_NEIGHBOURS, len(source))
            distance, at = KDTree(place[source]).query(query[own], k=np.arange(1, k + 1))
            weight = np.exp(-0.5 * (distance / np.maximum(np.median(distance), 1e-9)) ** 2) + 1e-9
            for stage, key in enumerate(STAGES):
                values = known[key]
                # where none of the neighbours has it, the mean of all
                mean = np.nansum(values[source], axis=0) / np.maximum((~np.isnan(values[source])).sum(axis=0), 1)
                total, size = 1e-3 * mean, np.full(mean.shape, 1e-3)
                for i in range(k):
                    near = values[source[at[:, i]]]
                    there = ~np.isnan(near)
                    total = total + weight[:, [i]] * np.where(there, near, 0)
                    size = size + weight[:, [i]] * there
                out[stage, own] = total / size
        return out

    @property
    def _reach(self) -> None:
        """Where a spot lies in its section, all of the section tells."""

    def _stages(
        self, spots: Spots, at: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n = len(spots)
        sample = np.full(n, "", dtype=object) if spots.sample is None else spots.sample.astype(str).astype(object)
        everything = np.ones(len(self.training_["xy"]), dtype=bool)
        probability, intensity = self._smooth(_positions(spots.xy), sample, everything)
        return some_rows(probability, at), some_rows(intensity, at)

    def _write(self, directory: Path) -> None:
        write_payload(directory, {"params": self._params(), "state": self.state, "training": self.training_})

    @classmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> CoordinatesOnly:
        payload = read_payload(directory)
        model = cls.__new__(cls)
        for name, value in payload["params"].items():
            setattr(model, name, value)
        model.n_jobs, model.adata, model.state_ = None, adata, payload["state"]
        model._setup, model.training_, model.held_out_ = payload["state"].setup, payload["training"], None
        model.map_, model.prior_ = None, None
        return model

    def _contains_training_profiles(self) -> bool:
        return True

    def _params(self) -> dict[str, Any]:
        return {"n_folds": self.n_folds, "rng": self.rng}


def _positions(xy: Any) -> NDArray[np.float64]:
    if xy is None:
        msg = f"The control reads positions, and obsm[{Key.obsm.SPATIAL!r}] is not there."
        raise KeyError(msg)
    return np.asarray(xy, dtype=np.float64)[:, :2]


def _relative(xy: NDArray[np.float64], sample: NDArray[Any]) -> NDArray[np.float64]:
    """Positions from 0 to 1 across each section."""
    out = np.zeros_like(xy)
    for name in np.unique(sample.astype(str)):
        own = sample == name
        low, high = xy[own].min(axis=0), xy[own].max(axis=0)
        out[own] = (xy[own] - low) / np.maximum(high - low, 1e-9)
    return out
