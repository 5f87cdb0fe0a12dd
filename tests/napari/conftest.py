"""Sections with predictions in the layout of the data model."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest


def napari_or_skip():
    """napari; tests are skipped where it is missing. It warns at its import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("napari.components", "napari.layers"):
            pytest.importorskip(module, reason="napari is not installed: pip install 'stmsi[napari]'")
        return pytest.importorskip("napari")


def write_prediction(st) -> None:
    """Predictions made by hand: the measurement where there is one, with bounds, presence and tiers."""
    rng = np.random.default_rng(0)
    measured = st.obsm["msi"]
    guess = measured.fillna(0.3).to_numpy() * 0.8 + 0.1 * rng.random(measured.shape)

    def frame(values):
        return pd.DataFrame(values.astype(np.float32), index=st.obs_names, columns=measured.columns)

    st.obsm["msi_pred"] = frame(guess)
    st.obsm["msi_pred_presence"] = frame(rng.random(measured.shape))
    st.obsm["msi_pred_lower"] = frame(guess * 0.5)
    st.obsm["msi_pred_upper"] = frame(guess * 2 + 0.1)
    st.obs["msi_pred_ood"] = rng.random(st.n_obs)
    features = st.uns["msi"]["features"].copy()
    tiers = pd.DataFrame({"tier": "high", "reason": "held-out correlation 0.80"}, index=features.index)
    st.uns["msi_pred"] = {
        "params": {"coverage": 0.9},
        "features": features.assign(tier=tiers["tier"]),
        "reliability": tiers,
    }


@pytest.fixture
def predicted(mapped):
    """Three mapped sections with predictions."""
    write_prediction(mapped.tables["st"])
    return mapped
