"""get.as_table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel

import stmsi

if TYPE_CHECKING:
    from pathlib import Path


def test_values_names_and_places(mapped: SpatialData) -> None:
    st = mapped.tables["st"]
    table = stmsi.get.as_table(mapped, metabolite_key="msi")
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X, st.obsm["msi"].to_numpy())
    assert np.isnan(table.X).any()
    assert table.var.loc["simPC_28_0", "name"] == "simPC(28:0)"
    np.testing.assert_array_equal(table.obsm["spatial"], st.obsm["spatial"])
    assert table.obs.equals(st.obs)
    assert table.uns[TableModel.ATTRS_KEY] == dict(st.uns[TableModel.ATTRS_KEY])
    assert set(mapped.tables) == {"st", "msi"}


def test_is_a_copy(st) -> None:
    before = st.obsm["msi"].copy()
    table = stmsi.get.as_table(st, metabolite_key="msi")
    table.X[:] = 1
    table.obs["sample"] = "other"
    table.uns[TableModel.ATTRS_KEY]["region"].append("x")
    assert st.obsm["msi"].equals(before)
    assert "other" not in set(st.obs["sample"])
    assert "x" not in st.uns[TableModel.ATTRS_KEY]["region"]


def test_prediction_is_the_default(st) -> None:
    st.obsm["msi_pred"] = st.obsm["msi"].iloc[:, :4]
    st.uns["msi_pred"] = {"features": st.uns["msi"]["features"].iloc[::-1]}
    table = stmsi.get.as_table(st)
    assert list(table.var_names) == list(st.obsm["msi_pred"].columns)


def test_stored_written_and_read(mapped: SpatialData, tmp_path: Path) -> None:
    table = stmsi.get.as_table(mapped, metabolite_key="msi", key_added="metabolites")
    assert mapped.tables["metabolites"] is table
    stmsi.get.as_table(mapped, metabolite_key="msi_presence", key_added="metabolites")  # replaces it without a warning
    np.testing.assert_array_equal(mapped.tables["metabolites"].X, mapped.tables["st"].obsm["msi_presence"].to_numpy())
    small = SpatialData(
        shapes={name: mapped.shapes[name] for name in mapped.shapes if name.endswith("_spots")},
        tables={"metabolites": mapped.tables["metabolites"]},
    )
    small.write(tmp_path / "out.zarr")
    back = read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(back.tables["metabolites"].X, small.tables["metabolites"].X)
    assert list(back.tables["metabolites"].var["name"]) == list(small.tables["metabolites"].var["name"])


@pytest.mark.parametrize("name", ["st", "msi"])
def test_refuses_to_replace_the_sources(mapped: SpatialData, name: str) -> None:
    with pytest.raises(ValueError, match="would replace"):
        stmsi.get.as_table(mapped, metabolite_key="msi", key_added=name)


def test_errors(st) -> None:
    with pytest.raises(TypeError, match="needs a SpatialData"):
        stmsi.get.as_table(st, metabolite_key="msi", key_added="metabolites")
    with pytest.raises(KeyError, match=r"stmsi\.tl\.predict_metabolites writes it"):
        stmsi.get.as_table(st)
    st.obsm["msi_pred"] = st.obsm["msi"]
    with pytest.raises(KeyError, match=r"No feature table for 'msi_pred'.*'msi'"):
        stmsi.get.as_table(st)
    st.uns["msi_pred"] = {"features": st.uns["msi"]["features"].iloc[1:]}
    with pytest.raises(ValueError, match="lacks 'simPC_28_0'"):
        stmsi.get.as_table(st)


def test_what_describes_a_layer_has_its_feature_table(toy):
    stmsi.pp.align(toy)
    stmsi.pp.map_to_spots(toy, replicates=True)
    expected = toy.tables["st"].uns["msi"]["features"].index
    for key in ("msi_half_1", "msi_half_2", "msi_variance"):
        assert list(stmsi.get.feature_table(toy, metabolite_key=key).index) == list(expected)
    stmsi.tl.sample_metabolites(toy, "ridge", key_added="zz", show_progress_bar=False)
    stmsi.get.as_table(toy, metabolite_key="zz_0", key_added="draw")
    assert toy.tables["draw"].n_vars == len(expected)
