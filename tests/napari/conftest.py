"""Sections with predictions in the layout of the data model."""

from __future__ import annotations

import warnings

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity


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


def lattice(n_side=71, pitch=16.0):
    """Bins without gaps, more than are drawn one by one; a corner is missing."""
    row, col = (v.ravel()[3:] for v in np.indices((n_side, n_side)))
    x, y = pitch * (col + 0.5), pitch * (row + 0.5)
    n = len(row)
    obs = pd.DataFrame(
        {"sample": "s", "region": pd.Categorical(["s_spots"] * n), "instance": np.arange(n)},
        index=[f"b{i}" for i in range(n)],
    )
    st = AnnData(np.ones((n, 2), np.float32), obs=obs, obsm={"spatial": np.stack([x, y], axis=1)})
    values = pd.DataFrame({"a": np.arange(n, dtype=np.float32), "b": 1.0}, index=st.obs_names)
    st.obsm["msi"] = values.where(values["a"] != 7)
    st.obsm["msi_pred"] = values[::-1].set_axis(values.index)
    table = TableModel.parse(st, region="s_spots", region_key="region", instance_key="instance")
    boxes = gpd.GeoDataFrame(geometry=shapely.box(x - pitch / 2, y - pitch / 2, x + pitch / 2, y + pitch / 2))
    return SpatialData(
        shapes={"s_spots": ShapesModel.parse(boxes, transformations={"s": Identity()})}, tables={"st": table}
    )


@pytest.fixture
def predicted(mapped):
    """Three mapped sections with predictions."""
    write_prediction(mapped.tables["st"])
    return mapped
