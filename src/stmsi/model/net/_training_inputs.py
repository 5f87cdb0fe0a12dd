"""What the network needs around its gradient steps: statistics of targets, data over the panel."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._core.arrays_on_disk import some_of
from stmsi._core.metrics.columns import in_pieces
from stmsi._data.keys import Key
from stmsi.model.shared._persistence import CARD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._fitted_state import FittedState
    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_input import Spots

MIN_SCALE = 1e-6
"""Standard deviation from which a metabolite varies."""
_MIN_IN_SECTION = 3
"""Spots with a metabolite that its statistics in a section need."""


def target_moments(present: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each metabolite where it is present; 0 and 1 without spots, 1 where constant.

    Parameters
    ----------
    present
        Intensity where present, NaN elsewhere, shape (spots, metabolites), in memory or not.
    """
    mean, scale = in_pieces(known_moments, present)
    return mean, np.where(scale > MIN_SCALE, scale, 1.0)


def known_moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column without NaN; 0 where there is nothing else."""
    count = np.maximum((~np.isnan(values)).sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / count
    return mean, np.sqrt(np.nansum((values - mean) ** 2, axis=0) / count)


def section_moments(
    present: NDArray[np.float64],
    sample: NDArray[Any],
    rows: NDArray[np.int64],
    validation: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Moments of each metabolite in each section.

    Those of a section come from its training spots, or, where it has none, from its validation spots: these decide when
    training ends, and the pattern inside the section should, not its level. A metabolite that a section has in fewer
    than three spots, or that is constant there, has the moments of all training spots.

    Parameters
    ----------
    present
        As for :func:`target_moments`, of all spots.
    sample
        Section of all spots.
    rows, validation
        Training and validation spots.

    Returns
    -------
    Section number of all spots (0 for those of no section at hand); means and standard deviations, shape (sections,
    metabolites); whether a section has training spots.
    """
    everywhere = target_moments(some_of(present, rows))
    used = np.concatenate([rows, validation])
    names, number = np.unique(sample[used], return_inverse=True)
    code = np.zeros(len(present), np.int64)
    code[used] = number
    trained = np.isin(names, sample[rows])
    mean, scale = (np.tile(m, (len(names), 1)) for m in everywhere)
    for s in range(len(names)):
        own = rows[code[rows] == s] if trained[s] else validation[code[validation] == s]
        own_mean, own_scale = target_moments(present[own])
        enough = ((~np.isnan(present[own])).sum(axis=0) >= _MIN_IN_SECTION) & (np.nan_to_num(own_scale) != 1.0)
        mean[s, enough], scale[s, enough] = own_mean[enough], own_scale[enough]
    return code, mean, scale, trained


def panel_data(
    spots: Spots, setup: Setup, state: FittedState, names: pd.Index, genes: NDArray[np.int64] | None = None
) -> AnnData:
    """Spots over the genes of a trained model with all inputs that its setup names, as a new AnnData.

    Of the missing ones those in `genes` are filled in; `None`: all.
    """
    obs = pd.DataFrame(index=names) if spots.covariates is None else spots.covariates.set_axis(names)
    data = AnnData(spots.whole_counts(genes), obs=obs)
    data.var_names = [str(n) for n in state.panel.names["var_names"]]
    features = state.features
    if setup.cluster_key is not None:
        assert features.clusters is not None
        data.obs[setup.cluster_key] = features.clusters.labels[features.cluster_codes(spots)]
    for key, standard in features.extra.items():
        standard.transform(spots.features, key)  # refuses other columns than those of the training
        frame = spots.features[key][standard.columns]  # type: ignore[index]
        data.obsm[key] = frame.to_numpy() if isinstance(standard.columns, pd.RangeIndex) else frame.set_axis(names)
    if setup.layer is not None:
        data.layers[setup.layer] = data.X
    return data


def measured_data(data: AnnData, spots: Spots, setup: Setup, state: FittedState, **measured: Any) -> AnnData:
    """Add what training reads beside the inputs to :func:`panel_data`.

    Parameters
    ----------
    data
        Changed in place.
    spots, setup, state
        As for :func:`panel_data`.
    **measured
        ``sample``: section of each spot; ``intensity``, ``presence``: DataFrames spots x metabolites.
    """
    data.obs[setup.sample_key] = measured["sample"]
    data.obsm[setup.metabolite_key] = measured["intensity"].set_axis(data.obs_names)
    if setup.presence_key is not None:
        data.obsm[setup.presence_key] = measured["presence"].set_axis(data.obs_names)
    if spots.xy is not None:
        data.obsm[Key.obsm.SPATIAL] = spots.xy
    if setup.graph_key is not None:
        data.obsp[setup.graph_key] = spots.graph
    if setup.signature_key is not None:
        clusters = state.features.clusters
        assert clusters is not None
        data.varm[setup.signature_key] = pd.DataFrame(
            clusters.signature.T, index=data.var_names, columns=[str(c) for c in clusters.labels]
        )
    for kind, names in state.panel.names.items():
        if kind != "var_names":
            data.var[kind] = names
    return data


def setup_arguments(setup: Setup) -> dict[str, Any]:
    """Arguments of ``setup_anndata`` that make this setup."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(setup).items() if v not in (None, ())}


def some_metabolites(state: FittedState, kept: NDArray[np.bool_]) -> FittedState:
    """The state of a model that predicts some of the metabolites only, before it is calibrated."""
    return replace(state, metabolites=state.metabolites[kept], feature_table=state.feature_table.loc[kept])


def merge_calibration(old: FittedState, new: FittedState, at: NDArray[np.bool_]) -> FittedState:
    """Calibration of some metabolites (`at`, in order) from `new`, of the others as it was."""
    assert old.residuals is not None
    assert new.residuals is not None
    threshold, spread = old.threshold.copy(), old.spread.copy()
    threshold[at], spread[at] = new.threshold, new.spread
    table = old.feature_table.copy()
    table.loc[at, new.feature_table.columns] = new.feature_table.to_numpy()
    return replace(
        old,
        threshold=threshold,
        spread=spread,
        residuals=old.residuals.with_columns(at, new.residuals),
        feature_table=table,
        copula=None,  # of the old spots; fitted anew to those that calibrated
    )


def check_checkpoint(directory: str | Path | None) -> Path | None:
    """Refuse a folder that holds something else before hours of training."""
    if directory is None:
        return None
    path = Path(directory)
    if path.exists() and not (path / CARD).is_file():
        msg = f"checkpoint_dir={str(path)!r} exists and is not a model that stmsi wrote (no {CARD}); name a new folder."
        raise FileExistsError(msg)
    return path


def presence_counts(presence: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spots with, and without, each metabolite; NaN counts as neither. `presence` is in memory or not."""
    n1, n0 = in_pieces(lambda p: ((p > 0).sum(axis=0), (p == 0).sum(axis=0)), presence)
    return n1, n0
