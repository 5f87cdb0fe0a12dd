import numpy as np
import pytest
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi
from stmsi._data.keys import INTENSITY_SCORES, PRESENCE_SCORES, SECTION_MOMENTS
from stmsi.model import HurdleLinear

METABOLITES = ["simPC_28_0", "simPC_31_3", "simPC_36_0"]
PRESENCE = {"presence_key": "msi_presence"}
RIDGE = {"ridge": {"model": "ridge", "n_components": 8}}


@pytest.fixture
def data(st) -> AnnData:
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][METABOLITES]
    return st


def test_the_table_is_tidy(data):
    table = stmsi.tl.cross_validate(data, ["mean", "linear"], setup=PRESENCE)
    assert list(table)[:7] == ["model", "fold", "seconds", "sample", "metabolite", "stage", "n"]
    assert list(table)[7:] == ["trained_on", *PRESENCE_SCORES, *INTENSITY_SCORES, *SECTION_MOMENTS, "reason"]
    assert len(table) == 2 * 3 * 3 * 2
    assert not table.duplicated(["model", "fold", "sample", "metabolite", "stage"]).any()
    assert table["model"].drop_duplicates().tolist() == ["mean", "linear"]
    assert (table["seconds"] > 0).all()
    assert table.groupby("fold")["sample"].nunique().eq(1).all()
    assert set(table["sample"]) == {"P1S1", "P2S1", "P3S1"}
    intensity = table[table["stage"] == "intensity"]
    assert intensity["coverage"].between(0, 1).all()
    assert intensity["coverage"].mean() > 0.7
    assert (intensity["interval_width"] > 0).all()
    presence = table[table["stage"] == "presence"]
    assert presence["brier"].between(0, 1).all()
    assert presence["ece"].between(0, 1).all()


def test_no_test_section_is_ever_trained_on(data, fits):
    stmsi.tl.cross_validate(data, RIDGE, setup=PRESENCE)
    assert len(fits) == 3
    for fold in fits:
        assert len(set(fold["test"])) == 1
        assert not set(fold["train"].obs["sample"]) & set(fold["test"])
        assert fold["train"].obs["sample"].nunique() == 2
        assert fold["model"].state.training["samples"] == sorted(set(fold["train"].obs["sample"]))
    assert {fold["test"][0] for fold in fits} == {"P1S1", "P2S1", "P3S1"}


def test_the_measurements_of_the_test_section_have_no_say(data, fits):
    """Turned around, they change its scores but not one bit of its predictions."""
    base = stmsi.tl.cross_validate(data, RIDGE, setup=PRESENCE)
    rows = (data.obs["sample"] == "P3S1").to_numpy()
    for key in ("msi", "msi_presence"):
        frame = data.obsm[key].copy()
        known = rows & frame.notna().all(axis=1).to_numpy()
        frame.loc[known] = frame.loc[known].to_numpy()[::-1]
        data.obsm[key] = frame
    other = stmsi.tl.cross_validate(data, RIDGE, setup=PRESENCE)
    assert fits[2]["test"][0] == fits[5]["test"][0] == "P3S1"
    np.testing.assert_array_equal(fits[2]["predicted"], fits[5]["predicted"])
    np.testing.assert_array_equal(fits[2]["training_mean"], fits[5]["training_mean"])
    own = base["sample"] == "P3S1"
    assert (base.loc[own, "pearson"].dropna() != other.loc[own, "pearson"].dropna()).all()


def test_the_genes_of_the_test_section_have_no_say_in_training(data, fits):
    stmsi.tl.cross_validate(data, RIDGE, setup=PRESENCE)
    X = data.X.toarray()
    rows = (data.obs["sample"] == "P3S1").to_numpy()
    X[rows] = X[rows][:, ::-1]
    data.X = X
    stmsi.tl.cross_validate(data, RIDGE, setup=PRESENCE)
    a, b = fits[2]["model"].state, fits[5]["model"].state
    np.testing.assert_array_equal(a.panel.mean_log, b.panel.mean_log)
    np.testing.assert_array_equal(a.features.own.components, b.features.own.components)
    np.testing.assert_array_equal(a.threshold, b.threshold)


def test_signatures_are_found_again_in_each_fold(data, fits):
    stmsi.tl.cross_validate(data, RIDGE)
    whole = np.asarray(data.varm["signature"])
    for fold in fits:
        part = data[data.obs_names.isin(fold["train"].obs_names)].copy()
        stmsi.pp.gene_signatures(part, cluster_key="domain", n_genes=10)
        np.testing.assert_array_equal(np.asarray(fold["train"].varm["signature"]), np.asarray(part.varm["signature"]))
        assert fold["model"].state.features.clusters is not None
    assert any((np.asarray(fold["train"].varm["signature"]) != whole).any() for fold in fits)


def test_signatures_from_gene_sets_stay(data, fits):
    sets = {str(c): list(data.var_names[i * 5 : i * 5 + 5]) for i, c in enumerate(data.obs["domain"].cat.categories)}
    stmsi.pp.gene_signatures(data, gene_sets=sets, cluster_key="domain")
    stmsi.tl.cross_validate(data, RIDGE)
    for fold in fits:
        np.testing.assert_array_equal(np.asarray(fold["train"].varm["signature"]), np.asarray(data.varm["signature"]))


def test_scores_are_those_of_a_model_trained_by_hand(data):
    table = stmsi.tl.cross_validate(data, {"m": {"model": "ridge", "n_components": 8}}, setup={})
    rest = data[(data.obs["sample"] != "P3S1").to_numpy() & data.obsm["msi"].notna().any(axis=1).to_numpy()].copy()
    HurdleLinear.setup_anndata(rest)
    model = HurdleLinear(rest, n_components=8)
    model.train()
    held = data[data.obs["sample"] == "P3S1"].copy()
    stmsi.tl.predict_metabolites(held, model)
    del held.obsm["msi_presence"]
    expected = stmsi.tl.evaluate(held)
    got = table[table["sample"] == "P3S1"].reset_index(drop=True)
    apart = [
        "pearson_between",
        "pearson_pooled",
        "training_predicted_mean",
        "reason",
    ]  # of all folds, and of the training
    assert_frame_equal(got[list(expected)].drop(columns=apart), expected.drop(columns=apart), rtol=1e-4, atol=1e-6)
    said = model.predict(rest).where(rest.obsm["msi"].notna()).mean()
    own = got[got["stage"] == "intensity"].set_index("metabolite")["training_predicted_mean"]
    np.testing.assert_allclose(own, said[own.index], rtol=1e-5)


def test_leave_one_patient_out(data, fits):
    data.obs["patient"] = data.obs["sample"].astype(str).map({"P1S1": "A", "P2S1": "A", "P3S1": "B"})
    splitter = stmsi.model_selection.LeaveOnePatientOut()
    table = stmsi.tl.cross_validate(data, "mean", splitter=splitter)
    assert table.groupby("fold")["sample"].unique().map(sorted).to_dict() == {0: ["P1S1", "P2S1"], 1: ["P3S1"]}
    assert [set(f["train"].obs["patient"]) for f in fits] == [{"B"}, {"A"}]


def test_spots_without_msi_are_neither_trained_on_nor_scored(data, fits):
    frame = data.obsm["msi"].copy()
    frame.loc[(data.obs["sample"] == "P2S1").to_numpy()] = np.nan
    data.obsm["msi"] = frame
    table = stmsi.tl.cross_validate(data, "mean")
    assert set(table["sample"]) == {"P1S1", "P3S1"}
    assert all(set(f["train"].obs["sample"]) <= {"P1S1", "P3S1"} for f in fits)


@pytest.mark.once
def test_results_do_not_depend_on_the_number_of_processes(data):
    one, two = (stmsi.tl.cross_validate(data, RIDGE, setup={}, n_jobs=n).drop(columns="seconds") for n in (1, 2))
    assert_frame_equal(one, two, check_exact=True)


def test_the_data_are_not_changed(mapped):
    before = mapped.tables["st"].copy()
    stmsi.tl.cross_validate(mapped, "mean")
    st = mapped.tables["st"]
    assert set(st.uns) == set(before.uns)
    assert set(st.obsm) == set(before.obsm)
    assert_frame_equal(st.obs, before.obs)
    assert (st.X != before.X).nnz == 0
    np.testing.assert_array_equal(np.asarray(st.varm["signature"]), np.asarray(before.varm["signature"]))


def test_models_by_mapping_have_the_names_shown(data):
    models = {
        "prior": {"model": "mean"},
        "of class": {"model": HurdleLinear, "presence": "prior", "intensity": "mean"},
        "own setup": {"model": "mean", "setup": {"covariate_keys": ["msi_coverage"]}},
    }
    table = stmsi.tl.cross_validate(data, models, setup=PRESENCE)
    assert table["model"].drop_duplicates().tolist() == list(models)
    same = [table[table["model"] == m].drop(columns=["model", "seconds"]).reset_index(drop=True) for m in models]
    assert_frame_equal(same[0], same[1])


@pytest.mark.once
def test_the_net_answers_too(data):
    spec = {"model": "mlp", "train": {"max_epochs": 1, "refit": False}, "encoder_kwargs": {"n_hidden": 8}}
    table = stmsi.tl.cross_validate(data, {"net": spec})
    assert len(table) == 3 * 3 * 2
    assert table.loc[table["stage"] == "intensity", "mse"].notna().all()


def test_a_failure_names_model_and_fold(data):
    del data.obsm["spatial"]
    with pytest.raises(RuntimeError, match=r"Model 'coordinates' failed in fold 0 \(\d+ training spots\): .*spatial"):
        stmsi.tl.cross_validate(data, "coordinates")


def test_a_failure_while_predicting_names_model_and_fold(data):
    data.obs["batch"] = data.obs["sample"].astype(str)
    with pytest.raises(RuntimeError, match=r"Model 'mean' failed in fold 0 .*Covariate 'batch' has categories"):
        stmsi.tl.cross_validate(data, "mean", setup={"covariate_keys": ["batch"]})


def test_unknown_models_are_refused_before_any_is_trained(data, fits):
    with pytest.raises(ValueError, match=r"model='rigde' is not known; choose one of .*Did you mean 'ridge'"):
        stmsi.tl.cross_validate(data, ["mean", "rigde"])
    assert not fits


def test_one_section_is_refused(data):
    one = data[data.obs["sample"] == "P1S1"].copy()
    with pytest.raises(ValueError, match=r"Leaving one sample out needs at least two, found \['P1S1'\]"):
        stmsi.tl.cross_validate(one, "mean")


def test_no_msi_is_refused(data):
    data.obsm["msi"] = data.obsm["msi"] * np.nan
    with pytest.raises(ValueError, match=r"No spot has MSI.*align and map"):
        stmsi.tl.cross_validate(data, "mean")
    del data.obsm["msi"]
    with pytest.raises(KeyError, match=r"obsm has no 'msi'.*map_to_spots writes it"):
        stmsi.tl.cross_validate(data, "mean")


def test_a_wrong_sample_key_is_refused(data):
    with pytest.raises(KeyError, match="obs has no column 'slide'"):
        stmsi.tl.cross_validate(data, "mean", sample_key="slide")


def test_another_sample_key(data):
    data.obs = data.obs.rename(columns={"sample": "slide"})
    table = stmsi.tl.cross_validate(data, "mean", sample_key="slide")
    assert set(table["sample"]) == {"P1S1", "P2S1", "P3S1"}


@pytest.mark.once
def test_scores_show_what_was_learnt(data):
    table = stmsi.tl.cross_validate(data, {"mean": "mean", **RIDGE}, setup=PRESENCE)
    presence = table[table["stage"] == "presence"].groupby("model")["auroc"].mean()
    assert presence["ridge"] > presence["mean"] + 0.1
    assert presence["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize("splitter", ["patient", stmsi.model_selection.LeaveOnePatientOut, 5])
def test_what_is_no_splitter(st, splitter):
    with pytest.raises(TypeError, match="is no splitter; pass an object such as"):
        stmsi.tl.cross_validate(st, "mean", splitter=splitter)


def test_no_model_at_all(st):
    with pytest.raises(ValueError, match="No model was given; name at least one"):
        stmsi.tl.cross_validate(st, [])


def test_imputed_intensities_are_no_truth(data):
    measured = data.obsm["msi"].copy()
    del data.obsm["msi_presence"]
    stmsi.pp.impute_dropout(data)
    table = stmsi.tl.cross_validate(data, ["mean"])
    n = table.set_index(["sample", "metabolite", "stage"])["n"].unstack()
    sample = data.obs["sample"].astype(str).to_numpy()
    for (name, metabolite), counts in n.iterrows():
        own = measured.loc[sample == name, metabolite]
        assert counts["intensity"] == (own > 0).sum()
        assert counts["presence"] == own.notna().sum()
    prevalence = table[table["stage"] == "presence"].set_index(["sample", "metabolite"])["prevalence"]
    for (name, metabolite), share in prevalence.items():
        own = measured.loc[sample == name, metabolite].dropna()
        assert share == pytest.approx((own > 0).mean())
