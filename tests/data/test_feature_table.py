"""get.feature_table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pytest

import stmsi

if TYPE_CHECKING:
    from spatialdata import SpatialData


def test_ids_names_and_masses(mapped: SpatialData) -> None:
    features = stmsi.get.feature_table(mapped)
    st = mapped.tables["st"]
    assert list(features.columns[:2]) == ["name", "mz"]
    assert list(features.index) == list(st.obsm["msi"].columns)
    assert features.loc["simPC_28_0", "name"] == "simPC(28:0)"
    pd.testing.assert_frame_equal(features, stmsi.get.feature_table(st))


def test_is_a_copy(st) -> None:
    features = stmsi.get.feature_table(st)
    features["name"] = "changed"
    assert "changed" not in set(st.uns["msi"]["features"]["name"])


@pytest.mark.parametrize("key", ["msi_presence", "truth_intensity", "truth_presence"])
def test_layers_of_the_measurement(st, key: str) -> None:
    pd.testing.assert_frame_equal(stmsi.get.feature_table(st, metabolite_key=key), stmsi.get.feature_table(st))


@pytest.mark.parametrize("key", ["msi_pred", "msi_pred_presence", "msi_pred_lower", "msi_pred_upper"])
def test_layers_of_a_prediction(st, key: str) -> None:
    st.uns["msi_pred"] = {"features": st.uns["msi"]["features"].iloc[:3].drop(columns="name")}
    features = stmsi.get.feature_table(st, metabolite_key=key)
    assert len(features) == 3
    assert list(features["name"]) == list(features.index)


@pytest.mark.parametrize(
    ("key", "call"), [("msi", r"pp\.map_to_spots"), ("msi_pred", r"tl\.predict_metabolites"), ("other", r"key_added")]
)
def test_missing_tells_the_call(st, key: str, call: str) -> None:
    del st.uns["msi"]
    with pytest.raises(KeyError, match=call):
        stmsi.get.feature_table(st, metabolite_key=key)


def test_missing_table(mapped: SpatialData) -> None:
    with pytest.raises(KeyError, match="no table 'sta'"):
        stmsi.get.feature_table(mapped, table_key="sta")
