"""Many stores are predicted by one call; those that cannot be are named, and the others go on."""

import anndata as ad
import numpy as np
import pytest
import zarr

import stmsi

FEW = {"model": "ridge", "n_top_genes": 40, "n_components": 8}


@pytest.fixture(scope="module")
def table(_mapped):
    st = _mapped.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3"]]
    return st


@pytest.fixture(scope="module")
def model(table):
    return stmsi.tl.train(table, FEW, show_progress_bar=False)


@pytest.fixture
def stores(table, tmp_path):
    """An h5ad, a SpatialData, and a damaged file between them."""
    sections = [table[table.obs["sample"] == name].copy() for name in table.obs["sample"].unique()[:2]]
    paths = [tmp_path / "S0.h5ad", tmp_path / "broken.h5ad", tmp_path / "S1.zarr"]
    sections[0].write_h5ad(paths[0])
    paths[1].write_bytes(b"nothing")
    group = zarr.open_group(str(paths[2]), mode="w", zarr_format=3)
    ad.io.write_elem(group.create_group("tables"), "st", sections[1])
    return paths, sections


def predict(data, model, **options):
    return stmsi.tl.predict_metabolites(data, model, show_progress_bar=False, **options)


def same(store, section, model):
    found = ad.read_zarr(store)
    expected = predict(section, model, copy=True)
    np.testing.assert_allclose(found.to_df(), expected.obsm["msi_pred"], rtol=1e-6)
    assert list(found.obs["sample"]) == list(section.obs["sample"])
    assert set(found.uns["msi_pred"]["training_spots"]["trained_on"]) == {"partly"}, (
        "spots without MSI were not trained on"
    )


def test_the_others_go_on_and_the_bad_one_is_named(stores, model, tmp_path, caplog):
    paths, sections = stores
    table = predict(paths, model, out=tmp_path / "out", on_error="warn")
    assert list(table["error"] == "") == [True, False, True]
    assert list(table["n_spots"]) == [sections[0].n_obs, 0, sections[1].n_obs]
    assert "broken.h5ad is not predicted" in caplog.text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["S0.zarr", "S1.zarr"]
    for name, section in zip(("S0", "S1"), sections, strict=True):
        same(tmp_path / "out" / f"{name}.zarr", section, model)
    with pytest.raises(ValueError, match=r"3 of 3 stores cannot be predicted.*S0.zarr"):
        predict(paths, model, out=tmp_path / "out")  # what is there is not replaced


def test_without_a_folder_each_lies_beside_its_store(stores, model, tmp_path):
    paths, sections = stores
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"1 of 3 stores cannot be predicted; the others are\. .*broken"):
        predict(paths, tmp_path / "model")
    same(tmp_path / "S0_predicted.zarr", sections[0], model)
    same(tmp_path / "S1_predicted.zarr", sections[1], model)


def test_what_makes_no_sense_is_refused(stores, model, table, tmp_path):
    paths, _ = stores
    with pytest.raises(ValueError, match="Stores are predicted by a trained model"):
        predict(paths, "ridge")
    with pytest.raises(ValueError, match="is the folder of the predictions"):
        predict(paths, model, out=tmp_path / "out.zarr")
    with pytest.raises(ValueError, match="Of stores, copy="):
        predict(paths, model, use_measured=True)
    with pytest.raises(ValueError, match="client= shares out stores"):
        predict(table.copy(), model, client="tcp://127.0.0.1:1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "S0.h5ad").write_bytes(paths[0].read_bytes())
    with pytest.raises(ValueError, match=r"Several stores would be written to .S0\.zarr"):
        predict([paths[0], tmp_path / "other" / "S0.h5ad"], model, out=tmp_path / "out")


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_predict_the_same(stores, model, tmp_path):
    distributed = pytest.importorskip("distributed")
    paths, sections = stores
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        table = predict(paths, model, out=tmp_path / "out", on_error="warn", client=cluster.scheduler_address)
    assert list(table["error"] == "") == [True, False, True]
    same(tmp_path / "out" / "S0.zarr", sections[0], model)
