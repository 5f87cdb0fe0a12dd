"""Many stores are predicted by one call; those that cannot be are named, and the others go on."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
import zarr

import stmsi
from stmsi.tl import _predict_stores, _predicted_store
from stmsi.tl._models import trained_model

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


def written(folder):
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_does_what_is_missing(stores, model, tmp_path, caplog):
    paths, sections = stores
    good, out = [paths[0], paths[2]], tmp_path / "out"
    assert not predict(good, model, out=out)["kept"].any()
    shutil.rmtree(out / "S1.zarr")
    before = written(out)
    caplog.set_level("INFO")
    model.save(tmp_path / "model")  # the folder counts as the same model
    table = predict(good, tmp_path / "model", out=out, block_size=7)
    assert list(table["kept"]) == [True, False]
    assert list(table["n_spots"]) == [section.n_obs for section in sections]
    assert "1 of 2 stores were predicted before" in caplog.text
    assert {path: written(out)[path] for path in before} == before, "what was done is not touched"
    same(out / "S1.zarr", sections[1], model)


def _chunk(array):
    return next(path for path in sorted((array / "c").rglob("*")) if path.is_file())


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_is_not_whole_is_made_again(stores, model, tmp_path, caplog, damage):
    paths, sections = stores
    predict(paths[:1], model, out=tmp_path / "out")
    chunk = _chunk(tmp_path / "out" / "S0.zarr" / "layers" / "lower")
    if damage == "cut":
        chunk.write_bytes(chunk.read_bytes()[:-1])
    else:
        shutil.rmtree(tmp_path / "out" / "S0.zarr" / "obs" / "sample")
    assert list(predict(paths[:1], model, out=tmp_path / "out")["kept"]) == [False]
    assert "S0.zarr is not whole any more" in caplog.text
    same(tmp_path / "out" / "S0.zarr", sections[0], model)


def test_what_was_made_from_something_else_is_an_error(stores, model, table, tmp_path):
    paths, sections = stores
    one, out = paths[:1], tmp_path / "out"
    predict(one, model, out=out)
    before = written(out)
    other = stmsi.tl.train(table, FEW | {"n_components": 7}, show_progress_bar=False)

    def why(*args, **options):
        return predict(*args, out=out, on_error="warn", **options)["error"].item()

    assert "was made from another model; pass overwrite=True" in why(one, other)
    assert "was made from other options;" in why(one, model, coverage=0.8)
    sections[0][::2].copy().write_h5ad(paths[0])
    assert "was made from another input (its size or time of change differs);" in why(one, model)
    assert "another model, another input" in why(one, other, coverage=0.9)
    assert written(out) == before
    assert not predict(one, other, out=out, overwrite=True)["kept"].any()
    same_other = ad.read_zarr(out / "S0.zarr")
    np.testing.assert_allclose(
        same_other.to_df(), predict(sections[0][::2].copy(), other, copy=True).obsm["msi_pred"], rtol=1e-6
    )
    assert predict(one, other, out=out)["kept"].all()
    assert [path.name for path in out.iterdir()] == ["S0.zarr"], "nothing is left beside it"


def test_no_prediction_is_replaced_by_none(stores, model, table, tmp_path):
    paths, sections = stores
    out = tmp_path / "out"
    shutil.copytree(paths[2] / "tables" / "st", out / "S0.zarr")  # a section, as an AnnData
    before = written(out)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"S0\.zarr exists and is no prediction that can be read"):
            predict(paths[:1], model, out=out, overwrite=overwrite)
    assert written(out) == before
    shutil.rmtree(out / "S0.zarr")
    predict(sections[0], model, out=out / "S0.zarr")  # of data in memory: nobody knows what became of them
    with pytest.raises(
        ValueError, match=r"S0\.zarr exists and does not say what it was made from; pass overwrite=True"
    ):
        predict(paths[:1], model, out=out)
    predict(paths[:1], model, out=out, overwrite=True)
    with pytest.raises(ValueError, match="overwrite= is of stores"):
        predict(table.copy(), model, overwrite=True)


def test_what_is_wrong_with_a_store_is_told_as_it_is(stores, model, table, tmp_path):
    paths, sections = stores
    other = sections[0].copy()
    other.var = other.var[[]].set_axis("x" + other.var_names)
    other.write_h5ad(tmp_path / "genes.h5ad")
    sections[1][:1].copy().write_h5ad(tmp_path / "spot.h5ad")
    asked = [tmp_path / f"{name}.h5ad" for name in ("genes", "none", "spot")]
    found = predict([*asked, paths[1]], model, out=tmp_path / "out", on_error="warn")
    genes, none, spot, broken = found["error"]
    assert genes.startswith("The data share no gene with the training panel")
    assert none.startswith(f"There is no file {asked[1]}")
    assert "cannot be read as an h5ad file" in broken
    assert spot == ""
    expected = predict(sections[1][:1].copy(), model, copy=True).obsm["msi_pred"]
    np.testing.assert_allclose(ad.read_zarr(tmp_path / "out" / "spot.zarr").to_df(), expected, rtol=1e-6)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_ends_the_run_which_is_taken_up(stores, model, tmp_path, monkeypatch, code):
    paths, _ = stores
    good, out, finished = [paths[0], paths[2]], tmp_path / "out", _predicted_store._finished

    def full(folder, *args):
        if folder.name.startswith(".S1.zarr"):
            raise OSError(code, os.strerror(code))
        return finished(folder, *args)

    monkeypatch.setattr(_predicted_store, "_finished", full)
    with pytest.raises(OSError, match=os.strerror(code)):
        predict(good, model, out=out)
    assert [path.name for path in out.iterdir()] == ["S0.zarr"]
    monkeypatch.undo()
    assert list(predict(good, model, out=out)["kept"]) == [True, False]


KILLED = """
import os, signal, sys
import stmsi
from stmsi.tl import _predict_stores, _predicted_store
from stmsi.tl._models import trained_model

finished, calls = _predicted_store._finished, []

def killed(*args):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return finished(*args)

_predicted_store._finished = killed
stmsi.tl.predict_metabolites(sys.argv[3:], sys.argv[1], out=sys.argv[2], show_progress_bar=False)
"""


def test_a_killed_run_is_taken_up(stores, model, tmp_path):
    paths, sections = stores
    good, out = [paths[0], paths[2]], tmp_path / "out"
    model.save(tmp_path / "model")
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "model", out, *good], check=False, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert (out / "S0.zarr").exists()
    assert [path.name for path in out.iterdir() if path.name.startswith(".S1.zarr")], (
        "it was killed while it wrote the second"
    )
    before = written(out / "S0.zarr")
    table = predict(good, tmp_path / "model", out=out)
    assert list(table["kept"]) == [True, False]
    assert written(out / "S0.zarr") == before
    assert sorted(path.name for path in out.iterdir()) == ["S0.zarr", "S1.zarr"]
    same(out / "S1.zarr", sections[1], model)


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
def test_workers_predict_the_same(stores, model, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    paths, sections = stores
    monkeypatch.chdir(tmp_path)
    names = [path.name for path in paths]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        with cluster.get_client() as client:
            client.run(os.chdir, "/")  # as workers on other machines
        first = predict(names[:1], model, out="out", client=cluster.scheduler_address)
        table = predict(names, model, out="out", on_error="warn", client=cluster.scheduler_address)
    assert not first["kept"].any()
    assert list(table["error"] == "") == [True, False, True]
    assert list(table["kept"]) == [True, False, False]
    assert list(table["store"]) == names
    same(tmp_path / "out" / "S0.zarr", sections[0], model)


def test_columns_by_section_beside_the_stores(stores, table, tmp_path):
    paths, sections = stores
    good, out = [paths[0], paths[2]], tmp_path / "out"
    age = {name: 50.0 + 10 * k for k, name in enumerate(table.obs["sample"].unique())}
    old = table.copy()
    old.obs["age"] = old.obs["sample"].map(age).astype(float)
    model = stmsi.tl.train(old, FEW | {"setup": {"covariate_keys": ["age"]}}, show_progress_bar=False)
    with pytest.raises(ValueError, match="age"):
        predict(good, model, out=out)
    known = {name: age[name] for name in (sections[0].obs["sample"].iloc[0], sections[1].obs["sample"].iloc[0])}
    predict(good, model, out=out, obs={"age": known})
    for name, section in zip(("S0", "S1"), sections, strict=True):
        own = section.copy()
        own.obs["age"] = own.obs["sample"].map(age).astype(float)
        expected = predict(own, model, copy=True).obsm["msi_pred"]
        np.testing.assert_allclose(ad.read_zarr(out / f"{name}.zarr").to_df(), expected, rtol=1e-6)
    kept = predict(good, model, out=out, obs={"age": known | {"another section": 3.0}})
    assert kept["kept"].all(), "rows of other sections do not matter"
    first = next(iter(known))
    again = predict(good, model, out=out, obs={"age": known | {first: 1.0}}, on_error="warn")
    assert "was made" in again["error"].iloc[0] or "other options" in again["error"].iloc[0]
    assert list(again["kept"]) == [False, True]
    lacking = predict(good, model, out=tmp_path / "new", obs={"age": {first: 1.0}}, on_error="warn")
    assert list(lacking["error"] == "") == [True, False]
    assert "has no row for section" in lacking["error"].iloc[1]
    with pytest.raises(ValueError, match="obs= is for stores"):
        predict(sections[0], model, obs={"age": known})


def test_a_worker_loads_the_model_once(stores, model, tmp_path, monkeypatch):
    model.save(tmp_path / "m")
    loads = []
    monkeypatch.setattr(_predict_stores, "trained_model", lambda of: loads.append(of) or trained_model(of))
    paths, _ = stores
    shared = _predict_stores._Shared(
        predict=lambda *_, **__: None, model=tmp_path / "m", fingerprint="f", table_key="st", options={}, block_size=100,
        overwrite=False, sample_key="sample", obs=None,
    )  # fmt: skip
    for k in (0, 2):
        assert _predict_stores._predict(k, paths[k], tmp_path / f"o{k}.zarr", shared).error == ""
    assert len(loads) == 1
    _predict_stores._loaded.cache_clear()
