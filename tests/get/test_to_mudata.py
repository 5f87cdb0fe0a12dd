"""get.to_mudata, and what other tools make of the tables of stmsi."""

from __future__ import annotations

import importlib.util
import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import stmsi


@pytest.fixture
def predicted(mapped):
    """Sections with predictions."""
    stmsi.tl.predict_metabolites(mapped, "ridge")
    return mapped


def test_modalities_and_names(predicted) -> None:
    st = predicted.tables["st"]
    mdata = stmsi.get.to_mudata(predicted)
    assert list(mdata.mod) == ["rna", "msi", "msi_pred"]
    assert all(list(part.obs_names) == list(st.obs_names) for part in mdata.mod.values())
    assert mdata.shape == (st.n_obs, st.n_vars + 24)
    assert mdata.var_names.is_unique
    assert sp.issparse(mdata["rna"].X)
    assert (mdata["rna"].X != st.X).nnz == 0
    np.testing.assert_array_equal(mdata["msi"].X, st.obsm["msi"].to_numpy())
    np.testing.assert_array_equal(mdata["msi_pred"].X, st.obsm["msi_pred"].to_numpy())
    row = mdata["msi_pred"].var.loc["msi_pred:simPC_28_0"]
    assert (row["metabolite"], row["name"]) == ("simPC_28_0", "simPC(28:0)")
    assert row["mz"] > 0
    assert list(mdata.obs.columns) == list(st.obs.columns)
    assert (mdata.obs["sample"].astype(str) == st.obs["sample"].astype(str)).all()
    assert "spatial_connectivities" in mdata["rna"].obsp
    assert "spatial" in mdata["rna"].obsm
    assert not {"msi", "msi_presence", "msi_pred", "msi_pred_upper"} & set(mdata["rna"].obsm)


def test_is_a_copy(st) -> None:
    before = st.copy()
    mdata = stmsi.get.to_mudata(st)
    mdata["rna"].X.data[:] = 0
    mdata["msi"].X[:] = 0
    mdata.obs["sample"] = "x"
    assert (st.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(st.obs, before.obs)
    for key in ("msi", "msi_presence"):
        pd.testing.assert_frame_equal(st.obsm[key], before.obsm[key])


def test_spots_without_msi_can_be_left_out(st) -> None:
    st.obsm["msi"].iloc[:7] = np.nan
    missing = st.obsm["msi"].isna().all(axis=1).sum()
    mdata = stmsi.get.to_mudata(st, metabolite_keys="msi", genes="genes", drop_not_measured=True)
    assert mdata["msi"].n_obs == st.n_obs - missing
    assert mdata["genes"].n_obs == mdata.n_obs == st.n_obs
    assert not np.isnan(mdata["msi"].X).all(axis=1).any()
    assert (mdata.obs["domain"].astype(str) == st.obs["domain"].astype(str)).all()


def test_written_and_read(predicted, tmp_path) -> None:
    mdata = stmsi.get.to_mudata(predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata and mudata, on their own settings
        mdata.write(tmp_path / "out.h5mu")
        back = mudata.read_h5mu(tmp_path / "out.h5mu")
    np.testing.assert_array_equal(back["msi"].X, mdata["msi"].X)
    assert list(back["msi_pred"].var["name"]) == list(mdata["msi_pred"].var["name"])
    assert list(back.obs["sample"]) == list(mdata.obs["sample"])


def test_errors(st) -> None:
    with pytest.raises(ValueError, match="is the name of a layer"):
        stmsi.get.to_mudata(st, genes="msi")
    with pytest.raises(KeyError, match=r"stmsi\.tl\.predict_metabolites writes it"):
        stmsi.get.to_mudata(st, metabolite_keys=["msi_pred"])
    del st.obsm["msi"]
    with pytest.raises(ValueError, match=r"No layer of metabolites.*map_to_spots"):
        stmsi.get.to_mudata(st)


@pytest.mark.filterwarnings("ignore")  # of the other tools, on their own dependencies
def test_a_prediction_goes_into_scanpy_and_squidpy(predicted) -> None:
    import squidpy as sq

    table = stmsi.get.as_table(predicted)
    sc.pp.pca(table, n_comps=5)
    sc.pp.neighbors(table, n_neighbors=10)
    assert table.obsp["connectivities"].shape == (table.n_obs, table.n_obs)
    table.obs["domain"] = table.obs["domain"].astype("category")
    sc.tl.rank_genes_groups(table, "domain", method="wilcoxon")
    first = sc.get.rank_genes_groups_df(table, group=table.obs["domain"].cat.categories[0])
    assert set(first["names"]) == set(table.var_names)
    sq.gr.spatial_neighbors(table, library_key="sample", coord_type="generic")
    sq.gr.spatial_autocorr(table, mode="moran", n_perms=None)
    moran = table.uns["moranI"]["I"]
    assert set(moran.index) == set(table.var_names)
    assert moran.max() > 0.3, "predictions vary smoothly over the tissue"


@pytest.mark.skipif(importlib.util.find_spec("decoupler") is None, reason="decoupler is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_prediction_goes_into_decoupler(predicted) -> None:
    import decoupler as dc
    import pandas as pd

    table = stmsi.get.as_table(predicted)
    net = pd.DataFrame({"source": ["a"] * 6 + ["b"] * 6, "target": list(table.var_names), "weight": 1.0})
    dc.mt.ulm(table, net, tmin=3)
    assert table.obsm["score_ulm"].shape == (table.n_obs, 2)
