"""Each leak is planted by itself, and found; without any, nothing is said."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from sklearn.model_selection import KFold

import stmsi
from stmsi.model_selection import LeaveOnePatientOut, LeaveOneSampleOut, SpatialBlockKFold, check_leakage

BLOCKS = SpatialBlockKFold(3, 350, 150)
SECTIONS = LeaveOneSampleOut()
RANDOM = KFold(4, shuffle=True, random_state=0)
PLAIN = {"presence_key": None}


@pytest.fixture
def clean(st):
    """Spots with MSI."""
    return st[st.obsm["msi"].notna().any(axis=1).to_numpy()].copy()


def found(adata, splitter=SECTIONS, **setup):
    before = adata.copy()
    table = check_leakage(adata, splitter, setup=setup, on_error="ignore")
    assert set(adata.uns) == set(before.uns)
    assert list(table) == ["check", "severity", "where", "folds", "share", "message"]
    return dict(zip(table["check"], table["severity"], strict=True))


@pytest.mark.parametrize("splitter", [SECTIONS, LeaveOnePatientOut(), BLOCKS])
def test_nothing_is_said_of_clean_data(clean, splitter, caplog):
    clean.obsm["histology"] = np.random.default_rng(0).gamma(2, size=(clean.n_obs, 4))
    setup = {
        "graph_key": "spatial_connectivities", "feature_key": "histology", "covariate_keys": ["msi_coverage"],
        "signature_key": "signature", "cluster_key": "domain",
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, "stmsi"):
        assert check_leakage(clean, splitter, setup=setup).empty
        assert check_leakage(clean, SECTIONS).empty
    assert not caplog.records


def test_spots_on_both_sides(clean):
    rows = np.arange(clean.n_obs)
    section = clean.obs["sample"].to_numpy() == "P1S1"
    folds = [(rows[~section], rows[section]), (rows[section], np.append(rows[~section], rows[section][:2]))]
    table = check_leakage(clean, folds, setup=PLAIN, on_error="ignore")
    own = table[table["check"] == "overlap"].iloc[0]
    assert own["severity"] == "error"
    assert own["folds"] == (1,)
    assert own["share"] == pytest.approx(2 / (2 + (~section).sum()))


@pytest.mark.parametrize("at_once", [1, 7])
def test_copies_are_found_however_many_spots_are_summed_up_together(clean, at_once, monkeypatch):
    monkeypatch.setattr("stmsi.model_selection._leakage_rules._AT_ONCE", at_once)
    section = clean.obs["sample"].to_numpy()
    one, other = np.flatnonzero(section == "P1S1")[:9], np.flatnonzero(section == "P2S1")[:9]
    assert "duplicates" not in found(clean)
    X = clean.X.toarray()
    X[other] = X[one]
    clean.X = sp.csr_matrix(X)
    table = check_leakage(clean, SECTIONS, setup=PLAIN, on_error="ignore").set_index("check")
    size = max((section == name).sum() for name in ("P1S1", "P2S1"))
    assert table.loc["duplicates", "share"] >= 9 / size


def test_a_random_split(clean):
    assert found(clean, RANDOM)["neighbours"] == "error"
    without = found(clean, SpatialBlockKFold(2, 550, 0))
    assert without["neighbours"] == "warning"
    assert "neighbours" not in found(clean, BLOCKS)
    del clean.obsm["spatial"]
    assert found(clean, RANDOM)["neighbours"] == "warning"


def test_a_section_twice_under_two_names(clean):
    copy = clean[clean.obs["sample"] == "P1S1"].copy()
    copy.obs["sample"], copy.obs["patient"] = "P9S9", "P9"
    copy.obs_names = [f"copy{i}" for i in range(copy.n_obs)]
    both = ad.concat([clean, copy])
    table = check_leakage(both, SECTIONS, setup=PLAIN, on_error="ignore")
    own = table[table["check"] == "duplicates"].iloc[0]
    assert own["share"] == 1
    assert len(own["folds"]) == 2
    changed = both.X.tolil()
    changed[-copy.n_obs :, 0] = changed[-copy.n_obs :, 0].toarray() + 1
    both.X = sp.csr_matrix(changed)
    assert found(both) == {"duplicates": "error"}
    drawn = np.random.default_rng(0).poisson(copy.X.toarray().mean(axis=0), copy.shape).astype(np.float32)
    both.X = sp.csr_matrix(sp.vstack([both.X[: -copy.n_obs], drawn]))
    assert "duplicates" not in found(both), "other spots of one tissue"


def test_oversampled_before_the_split(clean):
    table = found(stmsi.experimental.oversample(clean, cluster_key="domain"), BLOCKS)
    assert "duplicates" not in table  # repeats share their spot's position and block
    assert found(stmsi.experimental.oversample(clean, cluster_key="domain"), RANDOM)["duplicates"] == "error"


def test_one_pixel_under_several_spots(clean):
    order = np.lexsort([clean.obsm["spatial"][:, 0], clean.obs["sample"].astype(str)])
    pixel = np.empty(clean.n_obs, object)
    pixel[order] = [f"p{i // 6}" for i in range(clean.n_obs)]
    pixel[order[:5]] = None
    clean.obs["msi_pixel"] = pd.Categorical(pixel)
    assert found(clean, RANDOM)["pixel"] == "error"
    assert "pixel" not in found(clean, SECTIONS)
    assert "pixel" not in found(clean, SpatialBlockKFold(3, 350, 0))


def test_another_section_of_the_patient(clean):
    clean.obs["patient"] = clean.obs["sample"].astype(str).map({"P1S1": "A", "P2S1": "A", "P3S1": "B"})
    table = check_leakage(clean, SECTIONS, setup=PLAIN)
    assert table["check"].tolist() == ["patient"]
    assert table["folds"].tolist() == [(0, 1)]
    assert not found(clean, LeaveOnePatientOut())


def test_a_graph_between_sections(clean):
    graph = clean.obsp["spatial_connectivities"].tolil()
    graph[0, clean.n_obs - 1] = graph[clean.n_obs - 1, 0] = 1
    clean.obsp["spatial_connectivities"] = sp.csr_matrix(graph)
    assert found(clean, SECTIONS, graph_key="spatial_connectivities") == {"graph": "warning"}
    assert not found(clean, SECTIONS)


def test_genes_chosen_on_all_spots(clean):
    work = clean.copy()
    sc.pp.normalize_total(work)
    sc.pp.log1p(work)
    sc.pp.highly_variable_genes(work, n_top_genes=40)
    clean.var["highly_variable"] = work.var["highly_variable"]
    assert not found(clean)  # recorded, and not used
    assert found(clean[:, clean.var["highly_variable"]].copy())["genes"] == "error"


def test_scaled_and_normalised_expression(clean):
    clean.layers["counts"] = clean.X.copy()
    sc.pp.normalize_total(clean)
    sc.pp.log1p(clean)
    assert found(clean) == {"normalisation": "warning"}
    assert not found(clean, layer="counts")
    sc.pp.scale(clean, zero_center=False)
    assert found(clean) == {"scaling": "error"}


def test_smoothed_expression(clean):
    weight = clean.obsp["spatial_connectivities"] + sp.identity(clean.n_obs)
    clean.layers["smooth"] = sp.csr_matrix(weight @ clean.X) / 7
    assert found(clean, BLOCKS, layer="smooth")["smoothing"] == "error"
    assert found(clean, SECTIONS, layer="smooth")["smoothing"] == "warning"


def test_components_of_all_spots(clean):
    work = clean.copy()
    sc.pp.log1p(work)
    sc.pp.pca(work, n_comps=5)
    clean.obsm["X_pca"] = clean.obsm["mine"] = work.obsm["X_pca"].astype(np.float64)
    assert found(clean, feature_key="X_pca") == {"features": "error"}
    assert found(clean, feature_key="mine") == {"features": "error"}


def test_features_scaled_on_all_spots(clean):
    raw = np.random.default_rng(0).gamma(2, size=(clean.n_obs, 2)) + (clean.obs["sample"] == "P1S1").to_numpy()[:, None]
    clean.obsm["raw"], clean.obsm["scaled"] = raw, (raw - raw.mean(axis=0)) / raw.std(axis=0)
    clean.obs["depth"] = clean.obsm["scaled"][:, 0]
    assert not found(clean, feature_key="raw")
    assert found(clean, feature_key="scaled") == {"scaling": "error"}
    assert found(clean, covariate_keys=["depth"]) == {"scaling": "error"}
    sample = clean.obs["sample"].astype(str)
    table = (
        pd.DataFrame(raw, index=clean.obs_names)
        .groupby(sample.to_numpy())
        .transform(lambda v: (v - v.mean()) / v.std(ddof=0))
    )
    clean.obsm["within"] = table.to_numpy()
    assert not found(clean, feature_key="within")


def test_a_metabolite_among_the_features(clean):
    clean.obs["known"] = 3 * clean.obsm["msi"].iloc[:, 0] + 1
    assert found(clean, covariate_keys=["known"]) == {"target": "error"}


def test_predictions_as_features(clean):
    stmsi.tl.predict_metabolites(clean, "mean", setup={})
    assert found(clean, feature_key="msi_pred")["features"] == "error"


@pytest.mark.parametrize(
    ("method", "expected"), [("combat", {"batch": "error"}), ("quantile", {"batch": "error"}), ("rank", {})]
)
def test_intensities_corrected_for_batches(clean, method, expected):
    clean.uns["msi"] = dict(clean.uns["msi"]) | {"correct_batch": {"params": {"method": method, "batch_key": "sample"}}}
    assert found(clean) == expected
    assert found(clean, BLOCKS) == {"batch": "error"}


def test_intensities_filled_in(clean):
    clean.uns["msi"] = dict(clean.uns["msi"]) | {"impute_dropout": {"n_rings": 7}}
    assert not found(clean)
    assert found(clean, BLOCKS) == {"imputation": "error"}


def test_limits_of_presence(clean):
    assert found(clean, BLOCKS, presence_key="msi_presence") == {"presence": "warning"}
    assert not found(clean, SECTIONS, presence_key="msi_presence")
    stmsi.pp.call_presence(clean, threshold=1.0)
    assert not found(clean, BLOCKS, presence_key="msi_presence")


def test_metabolites_chosen_for_their_pattern(clean):
    features = clean.uns["msi"]["features"].assign(spatially_variable=True)
    clean.uns["msi"] = dict(clean.uns["msi"]) | {"features": features}
    assert found(clean) == {"metabolites": "warning"}
    features.iloc[0, -1] = False
    assert not found(clean)


@pytest.mark.once
def test_clusters_of_all_spots(clean):
    work = clean.copy()
    sc.pp.pca(work, n_comps=5)
    sc.pp.neighbors(work)
    sc.tl.leiden(work, flavor="igraph", n_iterations=2)
    clean.obs["leiden"], clean.uns["leiden"] = work.obs["leiden"], work.uns["leiden"]
    assert found(clean, cluster_key="leiden", signature_key="signature") == {"clusters": "warning"}
    assert found(clean, covariate_keys=["leiden"]) == {"clusters": "warning"}


def test_alignments_by_content(mapped):
    splitter = SpatialBlockKFold(3, 350, 150)
    setup = {"setup": PLAIN, "on_error": "ignore"}
    assert check_leakage(mapped, splitter, **setup).empty
    record = mapped.tables["msi"].uns["alignment"]
    record["P1S1"] = dict(record["P1S1"]) | {"n_landmarks": 0, "model": "affine"}
    assert check_leakage(mapped, splitter, **setup)["check"].tolist() == ["alignment"]
    whole = check_leakage(mapped, SECTIONS, **setup)
    assert whole["check"].tolist() == ["alignment"], "the section is scored on, if nothing of it is trained on"
    assert whole["folds"].tolist() == [(0,)]
    assert whole["share"].tolist() == [1.0]
    record["P1S1"]["decided_by"] = "masks"
    assert check_leakage(mapped, splitter, **setup).empty, "outlines tell nothing of intensities"
    record["P1S1"]["decided_by"] = "intensities"
    assert check_leakage(mapped, splitter, **setup)["check"].tolist() == ["alignment"]
    del record["P1S1"]["decided_by"]
    record["P1S1"]["model"] = "given"
    assert check_leakage(mapped, splitter, **setup).empty
    record["P1S1"]["refine"] = "intensity"
    assert check_leakage(mapped, splitter, **setup)["check"].tolist() == ["alignment"]


def test_what_becomes_of_findings(clean, caplog):
    with pytest.raises(
        ValueError, match=r"The split leaks:\n- neighbours \(obsm\['spatial'\], 100.0% of the test spots\)"
    ):
        check_leakage(clean, RANDOM)
    with caplog.at_level(logging.WARNING, "stmsi"):
        table = check_leakage(clean, RANDOM, on_error="warn")
    assert len(caplog.records) == len(table) > 0
    assert table["severity"].tolist() == sorted(table["severity"])
    with pytest.raises(ValueError, match="on_error='loud' is not known"):
        check_leakage(clean, RANDOM, on_error="loud")


def test_folds_that_are_none(clean):
    with pytest.raises(TypeError, match=r"Pass a splitter, or a sequence of \(training, test\) indices; found int"):
        check_leakage(clean, 5)
    with pytest.raises(ValueError, match=r"must name some of the \d+ spots"):
        check_leakage(clean, [(np.arange(5), np.array([10_000]))])
    with pytest.raises(KeyError, match="No layer 'lost'"):
        check_leakage(clean, SECTIONS, setup={"layer": "lost"})


def test_the_probe_names_what_scores_above_chance(clean):
    clean.obsm["histology"] = np.random.default_rng(0).gamma(2, size=(clean.n_obs, 3))
    setup = PLAIN | {"feature_key": "histology"}
    assert check_leakage(clean, SECTIONS, setup=setup, probe=True).empty
    clean.obsm["histology"] = clean.obsm["spatial"] + np.random.default_rng(0).normal(size=(clean.n_obs, 2))
    table = check_leakage(clean, RANDOM, setup=setup, probe=True, on_error="ignore")
    probed = table[table["check"] == "probe"]
    assert set(probed["where"]) == {"shifted metabolites", "obsm['histology']"}
    rows = np.arange(clean.n_obs)
    table = check_leakage(clean, [(rows, rows[::2])], setup=PLAIN, probe=True, on_error="ignore")
    assert "permuted metabolites" in set(table.loc[table["check"] == "probe", "where"])
