import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stmsi

SIZE = {"n_top_genes": 100, "n_components": 10}


@pytest.fixture(scope="module")
def model(_mapped):
    st = _mapped.tables["st"].copy()
    stmsi.model.HurdleLinear.setup_anndata(st, presence_key="msi_presence")
    model = stmsi.model.HurdleLinear(st, **SIZE)
    model.train(show_progress_bar=False)
    return model


def test_writes_draws_and_their_record(mapped, model) -> None:
    stmsi.tl.sample_metabolites(mapped, model, 2, rng=0)
    st = mapped.tables["st"]
    frames = [st.obsm[f"msi_sample_{i}"] for i in range(2)]
    assert frames[0].shape == (st.n_obs, 12)
    assert (frames[0].dtypes == np.float32).all()
    assert not frames[0].equals(frames[1])
    assert (frames[0].to_numpy() >= 0).all()
    assert (frames[0].to_numpy() == 0).any()
    assert st.uns["msi_sample"]["params"] == {"n_samples": 2, "spatial": True, "min_genes": 0.4}
    assert stmsi.get.feature_table(mapped, metabolite_key="msi_sample_1").shape[0] == 12
    assert stmsi.get.as_table(mapped, metabolite_key="msi_sample_0", key_added="msi_synthetic").shape == (st.n_obs, 12)
    # fewer draws leave none of the earlier ones behind
    stmsi.tl.sample_metabolites(mapped, model, 1, rng=0)
    assert "msi_sample_1" not in st.obsm
    pd.testing.assert_frame_equal(st.obsm["msi_sample_0"], frames[0])


def test_draws_survive_a_file(mapped, model, tmp_path) -> None:
    st = mapped.tables["st"]
    stmsi.tl.sample_metabolites(st, model, rng=0)
    st.write_h5ad(tmp_path / "st.h5ad")
    again = ad.read_h5ad(tmp_path / "st.h5ad")
    pd.testing.assert_frame_equal(again.obsm["msi_sample_0"], st.obsm["msi_sample_0"])
    assert again.uns["msi_sample"]["params"]["n_samples"] == 1


def test_margins_are_those_of_the_model(st, model) -> None:
    draws = stmsi.tl.sample_metabolites(st, model, 40, rng=1, key_added=None, spatial=False)
    p = model.predict_presence(st)
    np.testing.assert_allclose((draws > 0).mean(["draw", "spot"]), p.mean(), atol=0.03)
    assert "msi_sample_0" not in st.obsm


def test_new_sections_without_msi_and_some_metabolites(st, model) -> None:
    new = st[st.obs["sample"] == "P3S1"].copy()
    for key in ("msi", "msi_presence"):
        del new.obsm[key]
    names = [model.metabolites[3], "simPC(28:0)"]
    draws = stmsi.tl.sample_metabolites(new, model, rng=0, metabolites=names, key_added=None)
    assert draws.sizes == {"draw": 1, "spot": new.n_obs, "metabolite": 2}
    assert draws["metabolite"].to_numpy().tolist() == [model.metabolites[3], "simPC_28_0"]


def test_a_saved_model_draws_the_same(st, model, tmp_path) -> None:
    model.save(tmp_path / "model")
    same = stmsi.tl.sample_metabolites(st, tmp_path / "model", rng=0, key_added=None)
    np.testing.assert_allclose(same, stmsi.tl.sample_metabolites(st, model, rng=0, key_added=None), atol=1e-5)


def test_raster_in_the_layout_of_the_msi_table(mapped, model) -> None:
    out = stmsi.tl.sample_metabolites(mapped, model, 2, rng=0, raster=40, copy=True)
    assert "msi_synthetic" not in mapped.tables
    table = out.tables["msi_synthetic"]
    assert table.n_obs > 2 * mapped.tables["st"].n_obs
    assert [name for name in table.layers if name is not None] == ["draw_1"]  # newer anndata lists X as None
    for sample, rows in table.obs.groupby("sample", observed=True):
        shapes = out.shapes[f"{sample}_synthetic_pixels"]
        assert len(shapes) == len(rows)
        assert shapes.geometry.area.round(6).eq(1600).all()
        assert not rows.duplicated(["row", "col"]).any()
        np.testing.assert_allclose(
            np.column_stack([shapes.centroid.x, shapes.centroid.y]),
            table[rows.index].obsm["spatial"],
            atol=1e-9,
        )
    # means of pixels and spots agree
    spots = stmsi.tl.sample_metabolites(mapped, model, 5, rng=0, key_added=None)
    np.testing.assert_allclose(
        np.log1p(np.asarray(table.X.mean(axis=0)).ravel()), np.log1p(spots.mean(["draw", "spot"])), atol=0.5
    )
    array = stmsi.tl.sample_metabolites(mapped.tables["st"], model, rng=0, raster=40, key_added=None)
    assert array.sizes["pixel"] == table.n_obs


def test_bad_input(mapped, model) -> None:
    st = mapped.tables["st"]
    with pytest.raises(ValueError, match="n_samples is a whole number of at least 1, found 0"):
        stmsi.tl.sample_metabolites(st, model, 0)
    with pytest.raises(ValueError, match="side of a pixel in micrometres"):
        stmsi.tl.sample_metabolites(mapped, model, raster=-1)
    with pytest.raises(ValueError, match="an AnnData has no place"):
        stmsi.tl.sample_metabolites(st, model, raster=50)
    with pytest.raises(KeyError, match="No metabolite 'nothing'"):
        stmsi.tl.sample_metabolites(st, model, metabolites="nothing")
    with pytest.raises(ValueError, match="would replace"):
        stmsi.tl.sample_metabolites(st, model, key_added="msi")
    with pytest.raises(ValueError, match="holds no draws"):
        stmsi.tl.sample_metabolites(mapped, model, raster=50, table_added="msi")
    before = list(st.obsm)
    bare = st.copy()
    del bare.obsm["spatial"]
    with pytest.raises(KeyError, match="no positions"):
        stmsi.tl.sample_metabolites(bare, model)
    assert stmsi.tl.sample_metabolites(bare, model, spatial=False, key_added=None).sizes["spot"] == st.n_obs
    assert list(st.obsm) == before


def test_a_model_without_residuals_says_so(st, model, tmp_path) -> None:
    model.save(tmp_path / "model")
    old = stmsi.model.load(tmp_path / "model")
    old.state.copula = None
    with pytest.raises(ValueError, match="holds no held-out residuals"):
        stmsi.tl.sample_metabolites(st, old)
