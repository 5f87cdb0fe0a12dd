"""Leaks without a name, planted where some spots have no MSI: each is found by what it does to the numbers."""

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import rankdata
from sklearn.decomposition import PCA

import stmsi
from stmsi.model_selection import LeaveOnePatientOut, SpatialBlockKFold, check_leakage
from stmsi.model_selection._shared_noise import neighbour_means

PATIENTS = LeaveOnePatientOut()


@cache
def simulated(seed):
    sdata = stmsi.datasets.simulate(
        n_patients=2, sections_per_patient=2, size=1300, n_genes=100, n_metabolites=16, rng=seed
    )
    stmsi.pp.normalize_msi(sdata, tic_key="tic")
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.call_presence(sdata)
    return sdata.tables["st"]


@pytest.fixture
def mapped_st():
    """Spots with and without MSI."""
    st = simulated(5).copy()
    assert st.obsm["msi"].isna().all(axis=1).any()
    return st


def found(st, splitter=PATIENTS, **setup):
    return set(check_leakage(st, splitter, setup={"presence_key": None} | setup, on_error="ignore")["check"])


def intensities(st):
    return st.obsm["msi"].fillna(0).to_numpy(np.float64)


def log_counts(st):
    return np.log1p(st.X.toarray())


def means(st):
    section = pd.factorize(st.obs["sample"].astype(str))[0]
    return neighbour_means(np.asarray(st.obsm["spatial"], dtype=np.float64), section)


def turned(st):
    y = intensities(st)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(y.shape[1], y.shape[1])))[0]
    return (y / y.std(axis=0)) @ turn


@pytest.mark.once
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_no_alarm_on_clean_data(seed):
    st = simulated(seed).copy()
    rng = np.random.default_rng(seed)
    domain = pd.get_dummies(st.obs["domain"]).to_numpy(np.float64)
    smooth = means(st) @ domain + rng.normal(0, 0.2, domain.shape)
    st.obsm["histology"] = np.hstack([smooth, rng.gamma(2, size=(st.n_obs, 4))])
    st.obsm["histology"][:5, 0] = np.nan
    st.obsm["genes"] = log_counts(st) @ rng.gamma(1, size=(st.n_vars, 6))
    setup = {"feature_key": "histology", "covariate_keys": ["msi_coverage"]}
    assert not found(st, **setup)
    assert not found(st, feature_key="genes"), "a feature may tell what genes tell"
    assert not found(st, SpatialBlockKFold(3, 350, 150), **setup)


@pytest.mark.once
def test_spots_with_more_cells_have_more_of_everything(mapped_st):
    """What genes and metabolites share from spot to spot in real tissue is not made of each other, unless other genes do not share it."""
    rng = np.random.default_rng(0)
    cells = rng.lognormal(0, 0.5, mapped_st.n_obs)
    mapped_st.X = sp.csr_matrix(rng.poisson(mapped_st.X.toarray() * cells[:, None] * 3).astype(np.float32))
    mapped_st.obsm["msi"] = mapped_st.obsm["msi"] * cells[:, None]
    assert not found(mapped_st)
    ion = rng.poisson(intensities(mapped_st)[:, :1] / intensities(mapped_st)[:, 0].max() * 100)
    names = [*mapped_st.var_names, "ion"]
    X = sp.csr_matrix(sp.hstack([mapped_st.X, ion]))
    both = ad.AnnData(X, obs=mapped_st.obs, var=pd.DataFrame(index=names), obsm=dict(mapped_st.obsm))
    table = check_leakage(both, PATIENTS, setup={}, on_error="ignore")
    assert table["check"].tolist() == ["target"]
    assert "'ion'" in table.loc[0, "message"]


@pytest.mark.realdata
def test_no_alarm_on_breast_tumours(data_dir):
    """ST of two patients with features of its histology in the place of metabolites, which nothing was made of."""
    he = pd.read_csv(data_dir / "her2st" / "he_features_6sections.csv", index_col="spot")
    adata = ad.read_h5ad(data_dir / "her2st" / "her2st_36_sections.h5ad")[he.index].copy()
    adata.obsm["msi"] = he.drop(columns=["section", "patient"]).clip(lower=0).astype(np.float32)
    adata.obs["sample"] = adata.obs["section"].astype(str)
    assert not found(adata)


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda st: (log_counts(st)[:, :5] - log_counts(st)[:, :5].mean(axis=0)) / log_counts(st)[:, :5].std(axis=0), "scaling"),
        (lambda st: PCA(8, random_state=0).fit_transform(log_counts(st)), "features"),
        (lambda st: np.log1p(50 * intensities(st)[:, :1] / intensities(st)[:, 0].max()), "target"),
        (lambda st: (intensities(st)[:, 5:6] - np.median(intensities(st)[:, 5])) ** 2, "target"),
        (turned, "target"),
        (lambda st: turned(st) + 0.5 * np.random.default_rng(1).normal(size=turned(st).shape), "target"),
        (lambda st: means(st) @ intensities(st)[:, :2], "target"),
    ],
    ids=["scaled", "components", "logarithm", "square", "turned", "noisy", "neighbours"],
)  # fmt: skip
def test_features_made_of_all_spots_or_of_metabolites(mapped_st, make, check):
    mapped_st.obsm["f"] = make(mapped_st)
    assert found(mapped_st, feature_key="f") == {check}


@pytest.mark.parametrize("thin", [1.0, 0.2])
def test_ions_among_the_genes(mapped_st, thin):
    y = intensities(mapped_st)
    counts = np.random.default_rng(0).binomial(np.round(y / y.max() * 200).astype(int), thin)
    names = [*mapped_st.var_names, *(f"ion{k}" for k in range(y.shape[1]))]
    X = sp.csr_matrix(sp.hstack([mapped_st.X, counts]))
    both = ad.AnnData(X, obs=mapped_st.obs, var=pd.DataFrame(index=names), obsm=dict(mapped_st.obsm))
    table = check_leakage(both, PATIENTS, setup={}, on_error="ignore")
    assert table["check"].tolist() == ["target"]
    assert "ion" in table.loc[0, "message"]


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_near_copies_of_another_patient(mapped_st, share):
    first = mapped_st[mapped_st.obs["patient"] == mapped_st.obs["patient"].unique()[0]]
    copy = first[first.obsm["msi"].notna().any(axis=1).to_numpy()][:40].copy()
    X = np.random.default_rng(0).binomial(copy.X.toarray().astype(int), share)
    X[:, 0] += 1
    copy.X = sp.csr_matrix(X.astype(np.float32))
    copy.obs["patient"], copy.obs["sample"] = "P9", "P9S1"
    copy.obs_names = [f"c{k}" for k in range(40)]
    both = ad.concat([mapped_st, copy], merge="same", uns_merge="first")
    assert found(both) == {"duplicates"}


def test_markers_beside_highly_variable_genes(mapped_st):
    mapped_st.var["highly_variable"] = [True] * 95 + [False] * 5
    assert found(mapped_st) == {"genes"}
    mapped_st.var["highly_variable"] = [True] * 30 + [False] * 70
    assert not found(mapped_st)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda y: (y - y.mean()) / y.std(), "scaling"),
        (lambda y: y / y.max(), "scaling"),
        (lambda y: y.apply(rankdata, nan_policy="omit"), "scaling"),
    ],
    ids=["deviations", "largest", "ranks"],
)
def test_metabolites_scaled_or_ranked_over_sections(mapped_st, change, check):
    y, section = mapped_st.obsm["msi"], mapped_st.obs["sample"].astype(str).to_numpy()
    mapped_st.obsm["msi"] = change(y)
    assert found(mapped_st) == {check}
    mapped_st.obsm["msi"] = y.groupby(section, group_keys=False).apply(change).loc[y.index]
    assert not found(mapped_st), "each section by itself"


def test_metabolites_smoothed_or_rebuilt(mapped_st):
    st = mapped_st[mapped_st.obsm["msi"].notna().all(axis=1).to_numpy()].copy()
    y = st.obsm["msi"]
    st.obsm["msi"] = pd.DataFrame((means(st) @ y.to_numpy() + y.to_numpy()) / 2, index=y.index, columns=y.columns)
    assert found(st) == {"smoothing"}
    pca = PCA(4, random_state=0)
    rebuilt = pca.inverse_transform(pca.fit_transform(y.to_numpy(np.float64)))
    st.obsm["msi"] = pd.DataFrame(rebuilt, index=y.index, columns=y.columns)
    assert found(st) == {"smoothing"}
