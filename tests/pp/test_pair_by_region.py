"""pp.pair_by_region: pseudo-bulk of genes beside mean metabolites of the same regions."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import deepcopy

import stmsi
from stmsi.model_selection import LeaveOneSampleOut, check_leakage

REGIONS = ["cortex", "fibre tracts", "striatum", "thalamus"]


def table(n, m, prefix, samples, seed, *, dense=False):
    """Observations of `samples` with random regions, and 3 without one."""
    rng = np.random.default_rng(seed)
    X = rng.poisson(2, (n, m)).astype(np.float32)
    obs = pd.DataFrame(
        {"sample": np.repeat(samples, n // len(samples)), "area": rng.choice(REGIONS, n)},
        index=[f"{prefix}{i}" for i in range(n)],
    )
    obs.iloc[:3, 1] = None
    names = [f"{prefix}_{j}" for j in range(m)]
    return AnnData(X if dense else sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture
def st():
    return table(120, 7, "gene", ["mouse1", "mouse2"], 0)


@pytest.fixture
def msi():
    return table(240, 5, "ion", ["rat1", "rat2", "rat3"], 1)


def pair(st, msi, **options):
    return stmsi.pp.pair_by_region(st, msi, **({"region_key": "area", "min_spots": 1, "min_pixels": 1} | options))


def row(pairs, sample, region):
    return pairs[((pairs.obs["sample"] == sample) & (pairs.obs["area"] == region)).to_numpy()]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_sums_of_counts_and_means_of_intensities(st, msi, form):
    for adata in (st, msi):
        adata.X = form(adata.X.toarray())
    pairs = pair(st, msi)
    assert pairs.shape == (2 * 4, 7)
    assert pairs.obs_names.is_unique
    one = row(pairs, "mouse2", "striatum")
    own = ((st.obs["sample"] == "mouse2") & (st.obs["area"] == "striatum")).to_numpy()
    X = st.X if isinstance(st.X, np.ndarray) else st.X.toarray()
    np.testing.assert_array_equal(one.X.toarray()[0], X[own].sum(axis=0))
    assert one.obs["n_spots"].item() == own.sum()
    Y = pd.DataFrame(msi.X if isinstance(msi.X, np.ndarray) else msi.X.toarray(), msi.obs_names)
    there = (msi.obs["area"] == "striatum").to_numpy()
    each = Y[there].groupby(msi.obs["sample"].to_numpy()[there]).mean()
    np.testing.assert_allclose(one.obsm["msi"].to_numpy()[0], each.mean(), rtol=1e-6)
    assert one.obs[["msi_n_pixels", "msi_n_sections"]].to_numpy().tolist() == [[there.sum(), 3]]
    # sections of ST share the targets of a region
    np.testing.assert_array_equal(one.obsm["msi"], row(pairs, "mouse1", "striatum").obsm["msi"])


def test_sections_of_one_name(st, msi):
    msi.obs["sample"] = msi.obs["sample"].replace({"rat1": "mouse1", "rat3": "mouse2"})
    pairs = pair(st, msi, match="same")
    assert len(pairs) == 8
    assert pairs.obs["msi_n_sections"].eq(1).all()
    one = row(pairs, "mouse2", "cortex")
    own = ((msi.obs["sample"] == "mouse2") & (msi.obs["area"] == "cortex")).to_numpy()
    np.testing.assert_allclose(one.obsm["msi"].to_numpy()[0], msi.X.toarray()[own].mean(axis=0), rtol=1e-6)
    msi.obs["sample"] = "other"
    with pytest.raises(ValueError, match=r"pairs sections of one name.*'mouse1', 'mouse2'; MSI 'other'|MSI 'other'"):
        pair(st, msi, match="same")


def test_gaps_count_in_no_mean(st, msi):
    X = msi.X.toarray()
    X[::2, 0] = np.nan
    X[(msi.obs["area"] == "cortex").to_numpy(), 1] = np.nan
    msi.X = X
    pairs = pair(st, msi)
    found = row(pairs, "mouse1", "thalamus").obsm["msi"]["ion_0"].item()
    own = pd.Series(X[:, 0]).where((msi.obs["area"] == "thalamus").to_numpy())
    assert found == pytest.approx(own.groupby(msi.obs["sample"].to_numpy()).mean().mean(), rel=1e-6)
    cortex = (pairs.obs["area"] == "cortex").to_numpy()
    for key in ("msi", "msi_presence"):
        np.testing.assert_array_equal(pairs.obsm[key]["ion_1"].isna(), cortex)


def test_ions_that_a_section_did_not_measure_do_not_count(st, msi):
    msi.varm["measured"] = pd.DataFrame({"rat1": True, "rat2": False, "rat3": True}, index=msi.var_names)
    without = pair(st, msi[(msi.obs["sample"] != "rat2").to_numpy()].copy())
    np.testing.assert_allclose(pair(st, msi).obsm["msi"], without.obsm["msi"], rtol=1e-6)


def test_presence_is_a_share_of_pixels(st, msi):
    X = np.ones(msi.shape)
    X[:, 0] = 0
    X[:, 1] = np.random.default_rng(0).random(len(X)) < 0.3
    msi.X = X
    pairs = pair(st, msi)
    assert pairs.obsm["msi_presence"].to_numpy().mean(axis=0).tolist() == [0, 1, 1, 1, 1]
    assert pair(st, msi, min_detected=0.7).obsm["msi_presence"]["ion_1"].eq(0).all()
    assert pair(st, msi, min_detected=0).obsm["msi_presence"]["ion_0"].eq(0).all()


def test_small_regions_are_left_out_where_they_are_small(st, msi, caplog):
    small = ((st.obs["sample"] == "mouse1") & (st.obs["area"] == "cortex")).to_numpy()
    kept = np.flatnonzero(~small | (np.cumsum(small) <= 2))
    pairs = pair(st[kept].copy(), msi, min_spots=3)
    assert len(pairs) == 7
    assert len(row(pairs, "mouse1", "cortex")) == 0
    everywhere = (st.obs["area"] == "cortex").to_numpy()
    kept = np.flatnonzero(~everywhere | (np.cumsum(everywhere) <= 1))
    assert len(pair(st[kept].copy(), msi, min_spots=3)) == 6
    assert "Too few spots in every section (lower min_spots=): 'cortex'" in caplog.text


def test_labels_that_do_not_match_are_told(st, msi, caplog):
    msi.obs["area"] = msi.obs["area"].replace({"fibre tracts": "Fibre_Tracts", "cortex": " cortex "})
    st.obs["area"] = st.obs["area"].astype("category")
    pairs = pair(st, msi)
    assert set(pairs.obs["area"]) == {"cortex", "striatum", "thalamus"}
    assert "3 regions are shared" in caplog.text
    assert "'fibre tracts' (ST) and 'Fibre_Tracts' (MSI). Make them equal" in caplog.text
    msi.obs["area"] = msi.obs["area"].str.strip().str.upper()
    with pytest.raises(
        ValueError, match=r"share 0 regions \(none\).*Written differently.*'CORTEX' \(MSI\).*Only in ST"
    ):
        pair(st, msi)
    msi.obs["area"] = msi.obs["area"].replace({"CORTEX": "cortex", "STRIATUM": "striatum", "THALAMUS": "liver"})
    with pytest.raises(ValueError, match=r"share 2 regions.*at least 3.*Only in MSI: .*'liver'"):
        pair(st, msi)


def test_what_is_not_there(st, msi):
    with pytest.raises(KeyError, match=r"obs has no column 'region'; found 'sample', 'area'.*pass region_key="):
        stmsi.pp.pair_by_region(st, msi)
    with pytest.raises(KeyError, match="has no layer 'raw'"):
        pair(st, msi, msi_layer="raw")
    with pytest.raises(ValueError, match="match='all' is not known"):
        pair(st, msi, match="all")
    with pytest.raises(ValueError, match="min_spots must be at least 1"):
        pair(st, msi, min_spots=0)
    with pytest.raises(
        TypeError, match=r"several SpatialData, found 'AnnData'. Put several AnnData into one with anndata"
    ):
        pair([st, st], msi)
    st.X = -st.X
    with pytest.raises(ValueError, match="Gene counts contain"):
        pair(st, msi)


def test_logarithms_are_refused_with_the_layers(st, msi):
    st.X = np.random.default_rng(0).poisson(3.0, (st.n_obs, 300))[:, : st.n_vars].astype(np.float32)
    st.layers["counts"] = st.X.copy()
    total = st.X.sum(axis=1, keepdims=True)
    st.X = np.log1p(st.X / np.maximum(total, 1) * 1e4)
    with pytest.raises(ValueError, match=r"X of the ST table holds logarithms.*'mouse1'.*layer=\); layers: 'counts'"):
        pair(st, msi)
    pair(st, msi, layer="counts")


def test_counts_that_are_none_are_told(st, msi, caplog):
    st.X = st.X * 0.5
    pair(st, msi)
    assert "not whole numbers" in caplog.text


def test_inputs_do_not_change(st, msi):
    before = st.copy(), msi.copy()
    pair(st, msi)
    for adata, copy in zip((st, msi), before, strict=True):
        pd.testing.assert_frame_equal(adata.obs, copy.obs)
        assert (adata.X != copy.X).nnz == 0
        assert set(adata.uns) == set(copy.uns)


@pytest.fixture(scope="module")
def annotated(_mapped):
    """The toy sections with the domains of the nearest spots on the pixels."""
    from scipy.spatial import cKDTree

    sdata = deepcopy(_mapped)
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    for table_ in (st, msi):
        table_.obs["area"] = ""
    st.obs["area"] = st.obs["domain"].astype(str)
    for name in st.obs["sample"].cat.categories:
        spots, pixels = ((t.obs["sample"] == name).to_numpy() for t in (st, msi))
        nearest = cKDTree(st.obsm["spatial"][spots]).query(msi.obsm["truth_spatial"][pixels])[1]
        msi.obs.loc[pixels, "area"] = st.obs.loc[spots, "area"].to_numpy()[nearest]
    return sdata


def test_spatialdata_of_several_animals(annotated, tmp_path):
    pairs = stmsi.pp.pair_by_region(annotated, annotated, region_key="area", min_spots=3)
    st, msi = annotated.tables["st"], annotated.tables["msi"]
    assert set(pairs.obs["sample"]) == {"P1S1", "P2S1", "P3S1"}
    assert (pairs.obs["patient"].astype(str) == pairs.obs["sample"].astype(str).str[:2]).all()
    assert list(pairs.obsm["msi"].columns) == list(msi.var_names)
    assert pairs.uns["msi"]["params"]["normalize_msi"]["log1p"]
    assert stmsi.get.feature_table(pairs).loc["simPC_28_0", "name"] == "simPC(28:0)"
    pooled = stmsi.pp.pair_by_region(annotated, annotated, region_key="area", sample_key="patient")
    assert set(pooled.obs["sample"]) == {"P1", "P2", "P3"}
    with pytest.raises(ValueError, match=r"obs\['region'\] of the table of spots names the element.*'area'"):
        stmsi.pp.pair_by_region(annotated, annotated)
    # several SpatialData, as readers return them
    apart = [annotated.filter_by_coordinate_system([s, f"{s}_msi"]) for s in ("P1S1", "P2S1", "P3S1")]
    again = stmsi.pp.pair_by_region(apart, apart, region_key="area", min_spots=3)
    assert (again.X != pairs.X).nnz == 0
    np.testing.assert_allclose(again.obsm["msi"], pairs.obsm["msi"], rtol=1e-6)
    pairs.write_h5ad(tmp_path / "pairs.h5ad")
    back = ad.read_h5ad(tmp_path / "pairs.h5ad")
    pd.testing.assert_frame_equal(back.obsm["msi"], pairs.obsm["msi"])
    assert list(back.uns["msi"]["params"]["sections"]) == ["P1S1", "P2S1", "P3S1"]
    assert st.n_vars == pairs.n_vars


def test_models_train_on_pairs_and_regions_are_left_out(annotated, caplog):
    pairs = stmsi.pp.pair_by_region(annotated, annotated, region_key="area", min_spots=3)
    sections = check_leakage(pairs, LeaveOneSampleOut(), on_error="ignore")
    assert sections[["check", "severity"]].to_numpy().tolist() == [["region", "error"]]
    assert "LeaveOneSampleOut(sample_key='area')" in sections["message"].item()
    regions = LeaveOneSampleOut(sample_key="area")
    assert check_leakage(pairs, regions).empty
    same = stmsi.pp.pair_by_region(annotated, annotated, region_key="area", min_spots=3, match="same")
    assert check_leakage(same, LeaveOneSampleOut()).empty
    scores = stmsi.tl.cross_validate(pairs, "ridge", splitter=regions)
    assert "Leakage" not in caplog.text
    own = scores[scores["stage"] == "intensity"]
    assert own["fold"].nunique() == pairs.obs["area"].nunique()
    assert own["pearson_pooled"].notna().any()
    stmsi.tl.predict_metabolites(pairs, "ridge")
    assert set(stmsi.tl.evaluate(pairs)["metabolite"]) == set(pairs.obsm["msi"])
