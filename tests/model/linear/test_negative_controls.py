import numpy as np
import pytest

import stmsi

SIZE = {"n_top_genes": 100, "n_components": 10}


@pytest.fixture(scope="module")
def scores(_mapped):
    models = {
        "ridge": {"model": "ridge", **SIZE},
        "coordinates": "coordinates",
        "shuffled_genes": {"model": "shuffled_genes", **SIZE},
        "toroidal_shift": {"model": "toroidal_shift", **SIZE},
    }
    return stmsi.tl.cross_validate(_mapped, models, setup={"presence_key": "msi_presence"}, show_progress_bar=False)


def test_controls_fail_where_a_model_does_not(scores) -> None:
    mean = scores[scores["stage"] == "intensity"].groupby("model")["pearson"].mean().fillna(0)
    assert mean["ridge"] > 0.15
    assert mean.drop("ridge").max() < mean["ridge"] - 0.1


def test_training_leaves_the_data_as_they_were(st) -> None:
    before = st.copy()
    for name in ("shuffled_genes", "toroidal_shift"):
        fitted = stmsi.tl._models.train_model(
            st, {"model": name, **SIZE}, {"presence_key": "msi_presence"}, show_progress_bar=False
        )
        assert fitted.adata is st
        assert (st.X != before.X).nnz == 0
        assert st.obsm["msi"].equals(before.obsm["msi"])
        assert f"control='{name}'" in repr(fitted)


def test_coordinates_find_their_way_inside_a_section(st, tmp_path) -> None:
    stmsi.model.HurdleLinear.setup_anndata(st)
    from stmsi.model.linear._negative_controls import CoordinatesOnly

    CoordinatesOnly.setup_anndata(st)
    model = CoordinatesOnly(st)
    covered = np.flatnonzero(st.obsm["msi"].notna().any(axis=1))
    model.train(train_idx=covered[::2], show_progress_bar=False)
    rest = st[covered[1::2]].copy()
    predicted, measured = model.predict_intensity(rest), rest.obsm["msi"]
    shuffled = rest.copy()
    shuffled.X = shuffled.X[np.random.default_rng(0).permutation(rest.n_obs)]
    # no gene is read
    np.testing.assert_array_equal(model.predict_intensity(shuffled), predicted)
    assert np.nanmean([np.corrcoef(predicted[m], measured[m])[0, 1] for m in predicted]) > 0.3
    model.save(tmp_path / "model")
    np.testing.assert_allclose(stmsi.model.load(tmp_path / "model").predict_intensity(rest), predicted, atol=1e-5)
    del rest.obsm["spatial"]
    with pytest.raises(KeyError, match="reads positions"):
        model.predict_intensity(rest)


def test_shuffled_genes_take_their_clusters_along(st) -> None:
    stmsi.pp.gene_signatures(st, cluster_key="domain")
    setup = {"signature_key": "signature", "cluster_key": "domain"}
    # present in one cluster: what knows the cluster of a spot knows it all
    first = st.obs["domain"].astype(str) == st.obs["domain"].astype(str).iloc[0]
    st.obsm["msi"].iloc[:, 0] = np.where(st.obsm["msi"].iloc[:, 0].isna(), np.nan, first.to_numpy() * 1.0)
    model = stmsi.tl._models.train_model(st, {"model": "shuffled_genes", **SIZE}, setup, show_progress_bar=False)
    assert model.state.feature_table["held_out_auroc"].iloc[0] < 0.65
    assert st.obs["domain"].dtype == "category"
