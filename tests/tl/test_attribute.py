"""Drivers that were planted are found, genes that do nothing are not."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy.ndimage import gaussian_filter
from spatialdata import deepcopy

import stmsi
from stmsi.experimental import _attribution_checks
from stmsi.model import HurdleNet

N, G = 11, 40
A, B, NOISE = "A", "B", "noise"
SMALL = {"n_hidden": 64, "dropout": 0.1, "input_dropout": 0.1}


def _smooth(rng):
    field = gaussian_filter(rng.normal(size=(N, N)), 1.5).ravel()
    return (field - field.mean()) / field.std()


def _planted():
    """A rises with g0 and falls with g1; B is present where g2 is high; nothing drives `noise`."""
    rng = np.random.default_rng(0)
    parts, y, low = [], [], []
    for _ in range(3):
        log_rate = rng.normal(0, 0.15, (N * N, G))
        fields = np.column_stack([_smooth(rng) for _ in range(5)])
        log_rate[:, :5] += 0.6 * fields  # g3 and g4 vary as much and do nothing
        parts.append(rng.poisson(np.exp(log_rate + 4.5)))
        presence = fields[:, 2] + 0.3 * rng.normal(size=N * N) > 0
        low.append(fields[:, 0] < 0)
        y.append(
            np.column_stack(
                [
                    10 + 1.5 * fields[:, 0] - 1.0 * fields[:, 1] + 0.3 * rng.normal(size=N * N),
                    np.where(presence, 5 + rng.normal(size=N * N), 0),
                    8 + rng.normal(size=N * N),
                ]
            )
        )
    names = [f"s{i}" for i in range(3 * N * N)]
    adata = AnnData(sp.csr_matrix(np.vstack(parts).astype(np.float32)))
    adata.obs_names, adata.var_names = names, [f"g{i}" for i in range(G)]
    adata.obs["sample"] = pd.Categorical(np.repeat(["P1", "P2", "P3"], N * N))
    adata.obs["cluster"] = pd.Categorical(np.where(np.concatenate(low), "low/g0", "high"))
    grid = np.stack(np.meshgrid(np.arange(N), np.arange(N)), axis=-1).reshape(-1, 2) * 100.0
    adata.obsm["spatial"] = np.vstack([grid] * 3)
    adata.obsm["msi"] = pd.DataFrame(np.maximum(np.vstack(y), 0).astype(np.float32), names, [A, B, NOISE])
    return adata


@pytest.fixture(scope="module")
def planted():
    return _planted()


@pytest.fixture(scope="module")
def models(planted):
    """Trained models by name, each fitted once."""
    kept = {}

    def get(name):
        if name not in kept:
            if name == "net":
                stmsi.model.HurdleNet.setup_anndata(planted)
                kept[name] = stmsi.model.HurdleNet(planted, encoder_kwargs=SMALL)
                kept[name].train(max_epochs=30, refit=False)
            elif name == "kernel_ridge":
                stmsi.model.HurdleKernel.setup_anndata(planted)
                kept[name] = stmsi.model.HurdleKernel(planted, presence="prior")
                kept[name].train()
            else:
                presence, intensity = name.split("+")
                stmsi.model.HurdleLinear.setup_anndata(planted)
                kept[name] = stmsi.model.HurdleLinear(planted, presence=presence, intensity=intensity)
                kept[name].train()
        return kept[name]

    return get


def _attributed(planted, model, **kwargs):
    adata = planted.copy()
    assert stmsi.tl.attribute(adata, model, **kwargs) is None
    return adata


INTENSITY = [
    ("prior+linear", "coefficients"),
    ("prior+ridge", "coefficients"),
    ("prior+lasso", "coefficients"),
    ("prior+pls", "coefficients"),
    ("kernel_ridge", "permutation"),
    ("net", "integrated_gradients"),
]


@pytest.mark.once
@pytest.mark.parametrize(("name", "method"), INTENSITY)
def test_planted_drivers_of_intensity(planted, models, name, method):
    adata = _attributed(planted, models(name), n_spots=100, n_repeats=1)
    assert adata.uns["attribution"]["params"]["method"] == method
    effect = adata.varm["attribution"][A]
    assert list(effect.abs().nlargest(2).index) == ["g0", "g1"]
    assert effect.abs().drop(["g0", "g1"]).max() < 0.5 * abs(effect["g1"])
    if method == "permutation":
        assert effect.min() >= 0
    else:
        assert effect["g0"] > 0 > effect["g1"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "method"),
    [("logistic+mean", "coefficients"), ("svm+mean", "coefficients"), ("mlp+mean", "permutation"), ("net", "integrated_gradients")],
)  # fmt: skip
def test_planted_driver_of_presence(planted, models, name, method):
    adata = _attributed(planted, models(name), stage="presence", n_spots=100, n_repeats=1, metabolites=B)
    assert adata.uns["attribution"]["params"]["method"] == method
    effect = adata.varm["attribution"][B].abs()
    assert effect.idxmax() == "g2"
    assert effect.drop("g2").max() < 0.6 * effect["g2"]


def test_three_methods_speak_one_unit(planted, models):
    model = models("logistic+ridge")
    for stage in ("intensity", "presence"):
        adata = _attributed(planted, model, stage=stage, metabolites=[A, B])
        stmsi.tl.attribute(
            adata,
            model,
            stage=stage,
            metabolites=[A, B],
            method="permutation",
            n_spots=None,
            n_repeats=5,
            key_added="p",
        )
        m = A if stage == "intensity" else B
        exact, shuffled = adata.varm["attribution"][m].abs(), adata.varm["p"][m]
        assert np.corrcoef(exact, shuffled)[0, 1] > 0.99
        assert (exact @ shuffled) / (exact @ exact) == pytest.approx(1, abs=0.1)


@pytest.mark.once
@pytest.mark.parametrize("name", ["prior+ridge", "net"])
def test_contributions_of_groups_add_up_to_the_prediction(planted, models, name):
    model = models(name)
    adata = _attributed(planted, model, groupby="cluster", n_spots=None, n_steps=32)
    keys = adata.uns["attribution"]["groups"].set_index("label")["key"]
    assert dict(keys) == {"high": "attribution_high", "low/g0": "attribution_low_g0"}
    total = [adata.varm[keys[g]].sum() for g in ("high", "low/g0")]
    # above 0 everywhere, so that predictions are not cut
    predicted = model.predict_intensity().groupby(adata.obs["cluster"].to_numpy()).mean()
    difference = predicted.loc["high"] - predicted.loc["low/g0"]
    np.testing.assert_allclose(total[0] - total[1], difference, rtol=0.02, atol=0.02)
    assert difference[A] > 1


@pytest.mark.once
def test_effects_around_the_spot_count(st):
    stmsi.model.HurdleLinear.setup_anndata(st, graph_key="spatial_connectivities")
    model = stmsi.model.HurdleLinear(st, presence="prior", intensity="linear", n_components=10)
    model.train()
    stmsi.tl.attribute(st, model, groupby="sample")
    predicted = pd.DataFrame(model._stages(_spots(model, st))[1], st.obs_names, model.metabolites)
    mean = predicted.groupby(st.obs["sample"].to_numpy()).mean()
    found = [st.varm[f"attribution_{s}"].sum() for s in ("P1S1", "P2S1")]
    np.testing.assert_allclose(found[0] - found[1], mean.loc["P1S1"] - mean.loc["P2S1"], rtol=1e-3, atol=1e-3)


def _spots(model, adata):
    from stmsi.model.explain._attribution import attribution_spots

    return attribution_spots(model, adata, 0.5)


@pytest.mark.once
def test_gradients_add_up(planted, models):
    adata = _attributed(planted, models("net"), n_spots=60, n_steps=32)
    assert adata.uns["attribution"]["metabolites"]["integration_error"].max() < 0.02


def test_genes_that_the_model_does_not_use_are_nan(planted):
    stmsi.model.HurdleLinear.setup_anndata(planted)
    model = stmsi.model.HurdleLinear(planted, presence="prior", n_top_genes=10)
    model.train()
    adata = _attributed(planted, model)
    stmsi.tl.attribute(adata, model, method="permutation", n_spots=50, n_repeats=1, key_added="p")
    for key in ("attribution", "p"):
        assert adata.varm[key].notna().sum().tolist() == [10] * 3
        assert adata.varm[key].loc[["g0", "g1", "g2", "g3", "g4"]].notna().all(axis=None)
    assert (adata.varm["attribution"].dtypes == np.float32).all()


def test_genes_are_found_by_name(planted, models):
    query = planted[:50, ::-1].copy()
    extra = AnnData(sp.csr_matrix((50, 1), dtype=np.float32), obs=query.obs[[]], var=pd.DataFrame(index=["new"]))
    query = ad.concat([extra, query], axis=1)
    query.obs = planted.obs[:50]
    stmsi.tl.attribute(query, models("prior+ridge"))
    expected = _attributed(planted, models("prior+ridge")).varm["attribution"]
    found = query.varm["attribution"]
    pd.testing.assert_frame_equal(found.loc[expected.index], expected)
    assert found.loc["new"].isna().all()


def test_genes_that_the_data_lack_are_left_out(planted, models, caplog):
    query = planted[:, 5:].copy()
    stmsi.tl.attribute(query, models("prior+ridge"), method="permutation", n_spots=20, n_repeats=1)
    assert query.varm["attribution"].notna().all(axis=None)
    assert "of the training genes are missing and were imputed" in caplog.text


def test_constant_stages_have_no_drivers(planted, models):
    adata = _attributed(planted, models("logistic+mean"), n_repeats=1)
    assert (adata.varm["attribution"] == 0).all(axis=None)
    assert len(adata.uns["attribution"]["top_genes"]) == 0
    stmsi.tl.attribute(adata, models("logistic+mean"), stage="presence")  # A and noise are always present
    assert (adata.varm["attribution"].abs().max() > 0).to_dict() == {A: False, B: True, NOISE: False}


@pytest.mark.parametrize("method", ["integrated_gradients", "permutation"])
def test_a_probability_that_is_all_but_constant_has_no_drivers(planted, models, method):
    adata = _attributed(planted, models("net"), stage="presence", method=method, n_spots=20, n_steps=4, n_repeats=1)
    assert (adata.varm["attribution"].abs().max() > 0).to_dict() == {A: False, B: True, NOISE: False}


def test_blocks_share_their_value(planted, models):
    model = models("prior+ridge")
    adata = _attributed(planted, model, method="permutation", n_blocks=15, n_spots=80, n_repeats=1)
    effect = adata.varm["attribution"][A]
    assert 2 <= effect.nunique() <= 15
    again = _attributed(planted, model, method="permutation", n_blocks=15, n_spots=80, n_repeats=1)
    pd.testing.assert_frame_equal(again.varm["attribution"], adata.varm["attribution"])


def test_the_top_genes_are_those_of_the_table(planted, models):
    adata = _attributed(planted, models("prior+ridge"))
    top = adata.uns["attribution"]["top_genes"]
    assert list(top) == ["metabolite", "rank", "gene", "attribution"]
    own = top[top["metabolite"] == A]
    assert own["rank"].tolist() == list(range(1, 21))
    assert own["gene"].tolist() == adata.varm["attribution"][A].abs().nlargest(20).index.tolist()


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_it_survives_writing(mapped, tmp_path):
    st = mapped.tables["st"]
    for key in list(st.obsm):  # each column takes its time to write
        if key in ("msi", "msi_presence"):
            st.obsm[key] = st.obsm[key].iloc[:, :2]
        elif key.startswith("truth"):
            del st.obsm[key]
    stmsi.model.HurdleLinear.setup_anndata(st)
    model = stmsi.model.HurdleLinear(st, presence="prior")
    model.train()
    stmsi.tl.attribute(mapped, model, metabolites=["simPC(28:0)", "simPC_29_1"], groupby="domain")
    expected = st.varm["attribution"]
    assert list(expected) == ["simPC_28_0", "simPC_29_1"]
    st.write_h5ad(tmp_path / "st.h5ad")
    st.write_zarr(tmp_path / "st.zarr")
    for found in (ad.read_h5ad(tmp_path / "st.h5ad"), ad.read_zarr(tmp_path / "st.zarr")):
        for key in ("attribution", "attribution_domain1"):
            np.testing.assert_array_equal(found.varm[key], st.varm[key])
            assert list(found.varm[key]) == list(expected)
        record = found.uns["attribution"]
        assert record["params"]["method"] == "coefficients"
        assert list(record["metabolites"]["name"]) == ["simPC(28:0)", "simPC(29:1)"]
        table = stmsi.experimental.attribution_checks(
            found, model, checks=["deletion", "drivers"], n_top=[5], n_random=2
        )
        assert set(table["check"]) == {"deletion", "drivers"}


def test_copies_and_saved_models(planted, models, tmp_path):
    model = models("prior+ridge")
    out = stmsi.tl.attribute(planted, model, copy=True)
    assert "attribution" not in planted.varm
    model.save(tmp_path / "model")
    again = stmsi.tl.attribute(planted, tmp_path / "model", copy=True)
    pd.testing.assert_frame_equal(again.varm["attribution"], out.varm["attribution"])


def test_spatialdata_in_and_out(mapped):
    st = mapped.tables["st"].copy()
    stmsi.model.HurdleLinear.setup_anndata(st)
    model = stmsi.model.HurdleLinear(st, presence="prior", n_components=5)
    model.train()
    out = stmsi.tl.attribute(deepcopy(mapped), model, key_added="why", copy=True)
    assert out.tables["st"].varm["why"].shape == (120, 12)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"metabolites": ["noize"]}, KeyError, "Did you mean 'noise'"),
        ({"stage": "intensities"}, ValueError, "Did you mean 'intensity'"),
        ({"method": "coefficient"}, ValueError, "Did you mean 'coefficients'"),
        ({"method": "integrated_gradients"}, ValueError, "needs the gradients of one HurdleNet"),
        ({"groupby": "clusters"}, KeyError, "Did you mean 'cluster'"),
        ({"groupby": "cluster", "method": "permutation"}, ValueError, "leave it out"),
        ({"n_steps": 0}, ValueError, "n_steps must be at least 1"),
    ],
)
def test_bad_arguments(planted, models, kwargs, error, match):
    with pytest.raises(error, match=match):
        stmsi.tl.attribute(planted.copy(), models("prior+ridge"), **kwargs)


def test_bad_models(planted, models, tmp_path):
    with pytest.raises(ValueError, match="but the model is a HurdleKernel"):
        stmsi.tl.attribute(planted.copy(), models("kernel_ridge"), method="coefficients")
    with pytest.raises(ValueError, match="but the model is a HurdleNet"):
        stmsi.tl.attribute(planted.copy(), models("net"), method="coefficients")
    stmsi.model.HurdleLinear.setup_anndata(planted)
    with pytest.raises(RuntimeError, match=r"call \.train"):
        stmsi.tl.attribute(planted, stmsi.model.HurdleLinear(planted))
    with pytest.raises(TypeError, match="Expected a trained model"):
        stmsi.tl.attribute(planted, 3)
    with pytest.raises(ValueError, match="is not a folder"):
        stmsi.tl.attribute(planted, tmp_path / "nothing")


# -- checks -------------------------------------------------------------------


@pytest.fixture
def explained(planted, models):
    return _attributed(planted, models("prior+ridge"), n_spots=150)


def _check(adata, model, name, **kwargs):
    before = adata.obsm["msi"].copy()
    table = stmsi.experimental.attribution_checks(adata, model, checks=name, **kwargs)
    pd.testing.assert_frame_equal(adata.obsm["msi"], before)
    assert list(table) == ["check", "metabolite", "gene", "k", "value", "baseline", "p_value"]
    assert set(table["check"]) == {name}
    return table[table["metabolite"] == A]


@pytest.mark.once
def test_deletion_hurts_where_the_attribution_is_right(explained, models):
    own = _check(explained, models("prior+ridge"), "deletion", n_top=[2, 5])
    assert (own["value"] < own["baseline"] - 0.3).all()
    assert own["k"].tolist() == [2, 5]
    assert (own["p_value"] < 0.1).all()


@pytest.mark.once
def test_deletion_does_not_hurt_where_it_is_wrong(explained, models):
    effects = explained.varm["attribution"]
    explained.varm["attribution"] = (1 / effects.abs().clip(lower=1e-6)).astype(np.float32)
    own = _check(explained, models("prior+ridge"), "deletion", n_top=[2, 5])
    assert (own["value"] > own["baseline"] - 0.05).all()
    assert (own["p_value"] > 0.3).all()


@pytest.mark.once
@pytest.mark.parametrize("name", ["net", "kernel_ridge"])
def test_deletion_works_for_any_model(planted, models, name):
    adata = _attributed(planted, models(name), metabolites=A, n_spots=60, n_repeats=1, n_steps=8)
    own = _check(adata, models(name), "deletion", n_top=[2], n_random=5)
    assert own["value"].item() < own["baseline"].item() - 0.2


@pytest.mark.once
def test_random_labels_leave_nothing(explained, models, monkeypatch):
    own = _check(explained, models("prior+ridge"), "random_labels")
    assert own["value"].item() < 0.5
    # labels that are not shuffled are the control: the same attribution comes back
    monkeypatch.setattr(_attribution_checks, "shuffle_within", lambda section, rng: np.arange(len(section)))
    own = _check(explained, models("prior+ridge"), "random_labels")
    assert own["value"].item() > 0.99


@pytest.mark.once
def test_random_labels_retrain_networks(planted, models):
    adata = _attributed(planted, models("net"), n_spots=40, n_steps=4)
    short = stmsi.model.HurdleNet
    train, calls = short.train, []

    def brief(self, **kwargs):
        calls.append(self)
        train(self, max_epochs=2, refit=False, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short, "train", brief)
        own = _check(adata, models("net"), "random_labels")
    assert len(calls) == 2
    assert 0 <= own["value"].item() < 0.9


@pytest.mark.once
def test_true_drivers_rank_first(explained, models):
    drivers = pd.DataFrame({"metabolite": [A, A], "gene": ["g1", "g0"]})
    own = _check(explained, models("prior+ridge"), "drivers", drivers=drivers)
    assert own[["gene", "k", "value"]].to_numpy().tolist() == [["g0", 2, 1]]
    assert own["p_value"].item() == pytest.approx(2 / G)
    wrong = pd.DataFrame({"metabolite": [A], "gene": ["g9"]})
    assert _check(explained, models("prior+ridge"), "drivers", drivers=wrong)["p_value"].item() > 0.05


@pytest.mark.once
def test_space_knows_chance(explained, models):
    own = _check(explained, models("prior+ridge"), "spatial", n_shifts=49)
    assert own["gene"].tolist()[:2] == ["g0", "g1"]
    assert own["value"].iloc[0] > 0.5
    assert own["value"].iloc[1] < -0.3
    assert (own["p_value"].iloc[:2] <= 0.08).all()
    # g3 and g4 are as smooth, and have nothing to do with it
    effects = explained.varm["attribution"]
    effects.loc[["g3", "g4"], A] = 100
    own = _check(explained, models("prior+ridge"), "spatial", n_shifts=49)
    assert own["gene"].tolist()[:2] == ["g3", "g4"]
    assert (own["p_value"].iloc[:2] > 0.1).all()


def test_checks_that_the_data_allow(explained, models):
    del explained.obsm["msi"]
    table = stmsi.experimental.attribution_checks(explained, models("prior+ridge"), n_top=[3], n_random=2)
    assert set(table["check"]) == {"deletion"}
    for name, match in (("drivers", "needs drivers="), ("spatial", "needs measured intensities")):
        with pytest.raises(KeyError, match=match):
            stmsi.experimental.attribution_checks(explained, models("prior+ridge"), checks=name)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"key": "atribution"}, KeyError, "Did you mean 'attribution'"),
        ({"checks": ["deletions"]}, ValueError, "Did you mean 'deletion'"),
        ({"n_models": 1}, ValueError, "n_models must be at least 2"),
        ({"n_top": []}, ValueError, "n_top"),
        ({"checks": "drivers", "drivers": pd.DataFrame({"gene": ["g0"]})}, KeyError, "columns 'metabolite' and 'gene'"),
        (
            {"checks": "drivers", "drivers": pd.DataFrame({"metabolite": ["x"], "gene": ["y"]})},
            KeyError,
            "No driver was attributed",
        ),
    ],
)
def test_bad_arguments_of_checks(explained, models, kwargs, error, match):
    with pytest.raises(error, match=match):
        stmsi.experimental.attribution_checks(explained, models("prior+ridge"), **kwargs)


@pytest.mark.once
def test_a_network_with_neighbours_is_permuted(st):
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].iloc[:, :2]
    HurdleNet.setup_anndata(st, presence_key="msi_presence", graph_key="spatial_connectivities")
    model = HurdleNet(st, encoder="graph", encoder_kwargs={"n_hidden": 16, "n_graph": 8})
    model.train(max_epochs=1, show_progress_bar=False)
    with pytest.raises(
        ValueError, match=r"HurdleNet without a graph, .*; for a HurdleNet with a graph use method='auto'"
    ):
        stmsi.tl.attribute(st, model, method="integrated_gradients")
    stmsi.tl.attribute(st, model, n_repeats=1, n_blocks=5, show_progress_bar=False)
    assert st.uns["attribution"]["params"]["method"] == "permutation"
    assert np.isfinite(st.varm["attribution"].to_numpy()).any()
