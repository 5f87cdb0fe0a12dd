import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model import HurdleLinear

WRITTEN = ("msi_pred", "msi_pred_presence", "msi_pred_lower", "msi_pred_upper")


@pytest.fixture(scope="module")
def model(_mapped):
    """Trained on the first two sections."""
    st = _mapped.tables["st"]
    train = st[(st.obs["sample"] != "P3S1").to_numpy()].copy()
    HurdleLinear.setup_anndata(train, presence_key="msi_presence")
    fitted = HurdleLinear(train, n_components=10, n_folds=2)
    fitted.train()
    return fitted


@pytest.fixture
def query(st) -> AnnData:
    own = st[st.obs["sample"] == "P3S1"]
    return AnnData(own.X.copy(), obs=own.obs[["sample"]].copy(), var=own.var.copy())


def test_everything_documented_is_written(mapped, model):
    assert stmsi.tl.predict_metabolites(mapped, model) is None
    st = mapped.tables["st"]
    for key in WRITTEN:
        frame = st.obsm[key]
        assert list(frame.index) == list(st.obs_names)
        assert list(frame.columns) == list(st.obsm["msi"].columns)
        assert (frame.dtypes == np.float32).all()
    record = st.uns["msi_pred"]
    assert record["params"] == {
        "coverage": 0.9, "min_genes": 0.4, "model": "HurdleLinear", "how": ["expected"], "use_measured": False
    }  # fmt: skip
    assert "use_measured" not in record
    assert record["model"]["class"] == "HurdleLinear"
    assert record["model"]["stmsi"] == stmsi.__version__
    assert record["model"]["params"]["n_components"] == 10
    assert record["missing_genes"] == 0
    features = record["features"]
    assert list(features.index) == model.metabolites
    assert {"name", "mz", "prevalence", "training_mean", "held_out_pearson", "held_out_auroc", "threshold"} <= set(
        features
    )
    np.testing.assert_array_equal(features["threshold"], model.state.threshold)


def test_the_values_are_those_of_the_model(query, model):
    stmsi.tl.predict_metabolites(query, model, coverage=0.5)
    lower, upper = model.predict_interval(query, coverage=0.5)
    for key, expected in zip(WRITTEN, (model.predict(query), model.predict_presence(query), lower, upper), strict=True):
        assert_frame_equal(query.obsm[key], expected)
    p, pred = query.obsm["msi_pred_presence"].to_numpy(), query.obsm["msi_pred"].to_numpy()
    assert (pred[p < model.state.threshold] == 0).all()
    assert (pred[p < model.state.threshold].size > 0) & (pred.max() > 0)
    assert query.uns["msi_pred"]["params"]["coverage"] == 0.5


def test_far_spots_are_marked_and_warned_of(query, model, caplog):
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(query, model)
    assert "lie outside" not in caplog.text
    usual = query.obs["msi_pred_ood"].to_numpy()
    assert usual.shape == (query.n_obs,)
    assert np.median(usual) < 1.2
    odd = query.copy()
    odd.X = np.zeros(odd.shape, np.float32)
    odd.X[:, :2] = 1000
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(odd, model)
    assert "100 % of the spots lie outside what the model was trained on (obs['msi_pred_ood'] > 1)" in caplog.text
    assert odd.obs["msi_pred_ood"].min() > usual.max()
    caplog.clear()
    first, second = (AnnData(one.X, obs=one.obs[["sample"]].copy(), var=one.var) for one in (query, odd[:5].copy()))
    second.obs["sample"] = "other tissue"
    both = ad.concat([first, second], index_unique="-")
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(both, model)
    assert "100 % of the spots of 'other tissue' lie outside" in caplog.text, "few, in a section of their own"


def test_a_copy_leaves_the_data_alone(mapped, model):
    before = mapped.tables["st"].copy()
    out = stmsi.tl.predict_metabolites(mapped, model, copy=True)
    assert "msi_pred" in out.tables["st"].obsm
    st = mapped.tables["st"]
    assert set(st.obsm) == set(before.obsm)
    assert set(st.uns) == set(before.uns)
    assert_frame_equal(st.obs, before.obs)


def test_in_place_and_copy_agree(query, model):
    out = stmsi.tl.predict_metabolites(query, model, copy=True)
    stmsi.tl.predict_metabolites(query, model)
    for key in WRITTEN:
        assert_frame_equal(out.obsm[key], query.obsm[key])


def test_a_saved_model_by_its_folder(query, model, tmp_path):
    model.save(tmp_path / "lipids")
    as_path = stmsi.tl.predict_metabolites(query, tmp_path / "lipids", copy=True)
    as_text = stmsi.tl.predict_metabolites(query, str(tmp_path / "lipids"), copy=True)
    expected = model.predict(query)
    assert_frame_equal(as_path.obsm["msi_pred"], expected)
    assert_frame_equal(as_text.obsm["msi_pred"], expected)
    assert as_path.uns["msi_pred"]["params"]["model"] == "lipids"


def test_another_key(query, model):
    stmsi.tl.predict_metabolites(query, model, key_added="lipids")
    assert set(query.obsm) == {"lipids", "lipids_presence", "lipids_lower", "lipids_upper"}
    assert "lipids_ood" in query.obs
    assert set(query.uns) == {"lipids"}


def test_another_table(mapped, model):
    mapped.tables["visium"] = mapped.tables["st"].copy()
    del mapped.tables["st"]
    stmsi.tl.predict_metabolites(mapped, model, table_key="visium")
    assert "msi_pred" in mapped.tables["visium"].obsm
    with pytest.raises(KeyError, match=r"no table 'st'; its tables: .*'visium'"):
        stmsi.tl.predict_metabolites(mapped, model)


def test_by_name_it_is_trained_on_the_spots_with_msi_and_predicts_all(st):
    frame = st.obsm["msi"].copy()
    frame.loc[(st.obs["sample"] == "P3S1").to_numpy()] = np.nan
    st.obsm["msi"] = frame
    before = set(st.uns), set(st.obs)
    stmsi.tl.predict_metabolites(st, "mean")
    assert st.obsm["msi_pred"].notna().to_numpy().all()
    features = st.uns["msi_pred"]["features"]
    np.testing.assert_allclose(features["training_mean"], frame.mean(), rtol=1e-5)
    assert st.uns["msi_pred"]["params"]["model"] == "mean"
    assert set(st.uns) - before[0] == {"msi_pred"}, "the setup of the training leaves no trace"
    assert set(st.obs) - before[1] == {"msi_pred_ood", "msi_pred_trained_on"}


def test_by_name_presence_and_signature_are_used_where_they_are(st, monkeypatch):
    seen = []
    original = HurdleLinear.setup_anndata.__func__
    monkeypatch.setattr(
        HurdleLinear, "setup_anndata", classmethod(lambda cls, a, **f: (seen.append(f), original(cls, a, **f))[1])
    )
    stmsi.tl.predict_metabolites(st, "mean", copy=True)
    stmsi.tl.predict_metabolites(st, "mean", setup={"covariate_keys": ["patient"]}, copy=True)
    del st.varm["signature"]
    stmsi.tl.predict_metabolites(st, "mean", copy=True)
    full = {"presence_key": "msi_presence", "signature_key": "signature", "cluster_key": "domain"}
    assert seen == [full, {"covariate_keys": ["patient"]}, {"presence_key": "msi_presence"}]


def test_a_mapping_holds_hyper_parameters(st):
    spec = {"model": "ridge", "presence": "prior", "n_components": 5}
    stmsi.tl.predict_metabolites(st, spec)
    assert st.uns["msi_pred"]["model"]["params"] == {
        "presence": "prior", "intensity": "ridge", "n_top_genes": 2000, "n_components": 5, "context": "diffused",
        "signature_stages": ["presence"], "prior": "penalty", "n_folds": 5, "rng": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["HurdleLinear", HurdleLinear])
def test_a_class_can_be_named(st, name):
    stmsi.tl.predict_metabolites(st, {"model": name, "presence": "prior", "intensity": "mean"})
    assert st.uns["msi_pred"]["model"]["class"] == "HurdleLinear"


@pytest.mark.parametrize("name", ["rigde", "no/such/folder"])
def test_an_unknown_model_is_refused(query, name):
    with pytest.raises(
        ValueError, match=rf"model='{name}' is neither a folder nor a family; families: auto, mean, linear"
    ):
        stmsi.tl.predict_metabolites(query, name)


def test_a_mapping_without_model_is_refused(st):
    with pytest.raises(ValueError, match=r"needs the entry 'model', found \['n_components'\]"):
        stmsi.tl.predict_metabolites(st, {"n_components": 5})


def test_a_view_is_copied_with_a_notice(st, model, caplog):
    view = st[:10]
    stmsi.tl.predict_metabolites(view, model)
    assert "was a view of another one" in caplog.text
    assert view.obsm["msi_pred"].shape[0] == 10
    assert "msi_pred" not in st.obsm


def test_something_else_is_refused(st, model):
    with pytest.raises(TypeError, match="Expected an AnnData, a SpatialData or paths of stores, found DataFrame"):
        stmsi.tl.predict_metabolites(st.obs, model)


def test_a_failure_writes_nothing(query, model):
    fewer = query[:, :20].copy()
    with pytest.raises(ValueError, match="training genes are in the data"):
        stmsi.tl.predict_metabolites(fewer, model)
    assert not len(fewer.obsm)
    assert not fewer.uns
    assert list(fewer.obs) == ["sample"]


def test_missing_genes_are_recorded(query, model):
    fewer = query[:, 12:].copy()
    stmsi.tl.predict_metabolites(fewer, model)
    assert fewer.uns["msi_pred"]["missing_genes"] == pytest.approx(model._gene_weights()[:12].sum())


def test_no_msi_to_train_on_is_refused(query):
    with pytest.raises(KeyError, match=r"obsm has no 'msi'.*map_to_spots"):
        stmsi.tl.predict_metabolites(query, "ridge")


@pytest.mark.parametrize("name", ["ridge", "mlp"])
def test_it_survives_the_disk(st, tmp_path, name):
    train = {"train": {"max_epochs": 1}, "encoder_kwargs": {"n_hidden": 8}} if name == "mlp" else {"n_components": 5}
    stmsi.tl.predict_metabolites(st, {"model": name, **train})
    st.write_h5ad(tmp_path / "st.h5ad")
    back = ad.read_h5ad(tmp_path / "st.h5ad")
    for key in WRITTEN:
        assert_frame_equal(
            back.obsm[key], st.obsm[key], check_names=False, check_index_type=False, check_column_type=False
        )
    assert back.uns["msi_pred"]["model"]["class"] == st.uns["msi_pred"]["model"]["class"]
    numbers = ["threshold", "training_mean", "prevalence"]
    a, b = (pd.DataFrame(d.uns["msi_pred"]["features"])[numbers].to_numpy(float) for d in (st, back))
    np.testing.assert_array_equal(a, b)


def test_it_survives_a_store(st, model, tmp_path):
    del st.uns["spatialdata_attrs"]  # neither the spots themselves nor the truth are written, to save time
    for key in [k for k in st.obsm if k.startswith("truth")]:
        del st.obsm[key]
    sdata = spatialdata.SpatialData(tables={"st": st})
    stmsi.tl.predict_metabolites(sdata, model)
    sdata.write(tmp_path / "s.zarr")
    back = spatialdata.read_zarr(tmp_path / "s.zarr").tables["st"]
    for key in WRITTEN:
        np.testing.assert_array_equal(back.obsm[key], st.obsm[key])
        assert list(back.obsm[key].columns) == list(st.obsm[key].columns)
    np.testing.assert_array_equal(back.obs["msi_pred_ood"], st.obs["msi_pred_ood"])
    np.testing.assert_array_equal(
        back.uns["msi_pred"]["features"]["threshold"].to_numpy(float), st.uns["msi_pred"]["features"]["threshold"]
    )


@pytest.mark.parametrize("key", ["msi", "msi_presence", "spatial", "signature"])
def test_nothing_but_a_prediction_is_replaced(st, model, key):
    before = st.copy()
    with pytest.raises(
        ValueError, match=rf"key_added='{key}' would replace (obsm|uns)\['{key}'\], which is no prediction"
    ):
        stmsi.tl.predict_metabolites(st, model, key_added=key)
    assert set(st.obsm) == set(before.obsm)
    stmsi.tl.predict_metabolites(st, model)
    stmsi.tl.predict_metabolites(st, model)  # an earlier prediction may be


@pytest.mark.parametrize("key", ["pred/ridge", "a b", ""])
def test_keys_that_no_file_can_hold(query, model, key):
    with pytest.raises(ValueError, match=f"key_added='{key}' cannot be stored"):
        stmsi.tl.predict_metabolites(query, model, key_added=key)


@pytest.mark.parametrize("option", ["coverage", "min_genes"])
@pytest.mark.parametrize("value", [50, -1, float("nan")])
def test_shares_are_looked_at_before_the_work(st, option, value):
    with pytest.raises(ValueError, match=f"{option} is a share between 0 and 1"):
        stmsi.tl.predict_metabolites(st, "mean", **{option: value})


def test_a_setup_in_the_mapping_adds_to_what_is_there(st):
    """The model that is cross-validated and the one that predicts have the same presence."""
    stmsi.tl.predict_metabolites(st, "mean")
    spec = {"model": "mean", "setup": {"graph_key": "spatial_connectivities"}}
    stmsi.tl.predict_metabolites(st, spec, key_added="with_graph")
    prevalence = [st.uns[k]["features"]["prevalence"] for k in ("msi_pred", "with_graph")]
    np.testing.assert_allclose(*prevalence)
    np.testing.assert_allclose(prevalence[0], st.obsm["msi_presence"].mean())


@pytest.mark.parametrize("what", [None, 3, 0.5])
def test_what_is_no_model(st, what):
    with pytest.raises(TypeError, match=r"A model is a family's name .*; found"):
        stmsi.tl.predict_metabolites(st, what)


def test_columns_named_by_numbers(st):
    """m/z as column names: text from the first call on."""
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].set_axis(np.arange(12) + 100.5, axis=1)
    stmsi.tl.predict_metabolites(st, "mean")
    assert list(st.obsm["msi_pred"])[:2] == ["100.5", "101.5"]
    assert len(stmsi.tl.evaluate(st)) == 3 * 12 * 2
    assert len(stmsi.tl.cross_validate(st, "mean", show_progress_bar=False)) == 3 * 12 * 2
    assert st.obsm["msi"].columns[0] == 100.5, "the user's own frame is left as it was"


def test_log_normalised_counts_are_told_and_brought_to_the_scale(query, model, caplog):
    import scanpy as sc

    expected = model.predict(query)
    sc.pp.normalize_total(query)
    sc.pp.log1p(query)
    stmsi.tl.predict_metabolites(query, model)
    assert "X is log-normalised in section 'P3S1': its numbers are not whole" in caplog.text
    assert "Put raw counts of all sections into a layer and name it with layer= (layers: none)" in caplog.text
    assert_frame_equal(query.obsm["msi_pred"], expected, rtol=1e-3, atol=1e-3)


def test_several_outputs_in_one_call(query, model):
    how = ["expected", "probability_weighted", "mask"]
    stmsi.tl.predict_metabolites(query, model, how=how)
    outputs = model.predict(query, how=how)
    assert list(outputs) == how
    for key, one in zip(("msi_pred", "msi_pred_probability_weighted", "msi_pred_mask"), how, strict=True):
        assert_frame_equal(query.obsm[key], outputs[one])
        assert_frame_equal(outputs[one], model.predict(query, how=one))
    assert query.uns["msi_pred"]["params"]["how"] == how
    # those that are not asked for again go; the evaluation reads the first
    stmsi.tl.predict_metabolites(query, model, how="mask")
    assert_frame_equal(query.obsm["msi_pred"], outputs["mask"])
    assert {k for k in query.obsm if "mask" in k or "weighted" in k} == set()


def test_a_further_output_replaces_nothing_of_others(query, model):
    query.obsm["msi_pred_mask"] = np.zeros((query.n_obs, 2))
    with pytest.raises(ValueError, match=r"would replace obsm\['msi_pred_mask'\], which is no prediction"):
        stmsi.tl.predict_metabolites(query, model, how=["expected", "mask"])
    assert "msi_pred" not in query.obsm
    stmsi.tl.predict_metabolites(query, model, how="mask")
    stmsi.tl.predict_metabolites(query, model)
    assert query.obsm["msi_pred_mask"].shape == (query.n_obs, 2)


@pytest.mark.parametrize(("how", "match"), [("mean", "how='mean' is not known"), ([], "how= names no output")])
def test_unknown_outputs(query, model, how, match):
    with pytest.raises(ValueError, match=match):
        stmsi.tl.predict_metabolites(query, model, how=how)


def test_layer_and_kind_of_the_query(query, model):
    expected = model.predict(query)
    query.layers["counts"] = query.X.copy()
    query.X = np.full(query.shape, 0.5, np.float32)
    stmsi.tl.predict_metabolites(query, model, layer="counts", input="counts")
    assert_frame_equal(query.obsm["msi_pred"], expected)
    assert query.uns["msi_pred"]["params"]["layer"] == "counts"
    assert query.uns["msi_pred"]["params"]["input"] == "counts"


def test_training_by_name_takes_layer_and_kind_into_the_setup(st):
    small = {"model": "ridge", "n_components": 8, "n_folds": 2}
    expected = stmsi.tl.predict_metabolites(st, small, copy=True)
    st.layers["counts"] = st.X.copy()
    st.X = -st.X
    stmsi.tl.predict_metabolites(st, small, layer="counts")
    assert_frame_equal(st.obsm["msi_pred"], expected.obsm["msi_pred"])
    logs = st.copy()
    logs.layers["log"] = np.log1p(st.layers["counts"].toarray()) - 1
    stmsi.tl.predict_metabolites(logs, small, layer="log", input="log")
    assert np.isfinite(logs.obsm["msi_pred"].to_numpy()).all()
    assert not np.allclose(logs.obsm["msi_pred"], expected.obsm["msi_pred"])
