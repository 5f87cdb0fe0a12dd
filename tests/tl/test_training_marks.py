"""Predictions carry which spots their model was trained on, whatever becomes of the model and of the data."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stmsi
from stmsi._data.training_marks import by_section, of_scores, read_marks, together
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet

TRAINED = ["P1S1", "P2S1"]


@pytest.fixture(scope="module")
def data(_mapped):
    """Three sections; the model below is trained on two of them."""
    return _mapped.tables["st"].copy()


@pytest.fixture(scope="module")
def inside(data):
    inside = data[data.obs["sample"].isin(TRAINED)].copy()
    HurdleLinear.setup_anndata(inside)
    return inside


@pytest.fixture(scope="module")
def model(inside):
    made = HurdleLinear(inside, n_components=5, n_folds=2)
    made.train(show_progress_bar=False)
    return made


def marks_of(model, adata, key="msi_pred"):
    return read_marks(stmsi.tl.predict_metabolites(adata, model, copy=True, key_added=key), key)


def expected(data, trained=tuple(TRAINED)):
    """Spots with MSI of the sections that were trained on."""
    seen = data.obs["sample"].isin(trained).to_numpy() & data.obsm["msi"].notna().any(axis=1).to_numpy()
    return np.where(seen, "yes", "no").astype(object)


def test_spots_and_sections_are_marked_on_disk_too(model, data, tmp_path):
    model.save(tmp_path / "model")
    out = stmsi.tl.predict_metabolites(data, tmp_path / "model", copy=True)
    out.write_h5ad(tmp_path / "p.h5ad")
    out = ad.read_h5ad(tmp_path / "p.h5ad")
    assert out.obs["msi_pred_trained_on"].astype(str).tolist() == expected(data).tolist()
    table = out.uns["msi_pred"]["training_spots"]
    table = table.set_index("sample")
    assert table["trained_on"].to_dict() == {"P1S1": "partly", "P2S1": "partly", "P3S1": "no"}, "no spot without MSI"
    assert table["n_trained_on"].sum() == (expected(data) == "yes").sum()
    assert (table["n_unknown"] == 0).all()


def test_subsets_views_and_copies(model, data):
    assert marks_of(model, data[::3]).tolist() == expected(data)[::3].tolist()
    renamed = data[::-1].copy()
    renamed.obs_names = [f"spot {i}" for i in range(data.n_obs)]
    renamed.obs["sample"] = "another"
    assert marks_of(model, renamed).tolist() == expected(data)[::-1].tolist()


def test_marks_do_not_depend_on_the_block(model, data, tmp_path):
    """Spots with hardly any expression may have blocks of their own, or stand among spots of other sections."""
    mixed = data[np.random.default_rng(0).permutation(data.n_obs)].copy()
    empty = np.arange(mixed.n_obs) % 7 == 0
    counts = mixed.X.tolil()
    counts[empty] = 0
    mixed.X = counts.tocsr()
    whole = stmsi.tl.predict_metabolites(mixed, model, copy=True)
    marks, table = read_marks(whole, "msi_pred"), whole.uns["msi_pred"]["training_spots"]
    assert set(marks[empty & (mixed.obs["sample"] == "P3S1").to_numpy()]) == {"no"}
    assert "unknown" in marks[empty], "of a section that was trained on in part"
    stmsi.tl.predict_metabolites(mixed, model, out=tmp_path / "p", block_size=90, show_progress_bar=False)
    parts = [stmsi.tl.predict_metabolites(mixed, model, block_size=size, copy=True) for size in (7, 20, 61)]
    for part in (*parts, ad.read_zarr(tmp_path / "p")):
        assert read_marks(part, "msi_pred").tolist() == marks.tolist()
        pd.testing.assert_frame_equal(part.uns["msi_pred"]["training_spots"], table)


def test_a_prediction_by_name_is_of_training_spots(data):
    out = stmsi.tl.predict_metabolites(data, "mean", copy=True)
    assert read_marks(out, "msi_pred").tolist() == expected(data, tuple(data.obs["sample"].unique())).tolist()


def test_spots_that_calibrate_count(inside, data):
    made = HurdleLinear(inside, n_components=5, n_folds=2)
    covered = np.flatnonzero(inside.obsm["msi"].notna().any(axis=1).to_numpy())
    made.train(train_idx=covered[:100], validation_idx=covered[100:150])
    assert (marks_of(made, inside) == "yes").nonzero()[0].tolist() == covered[:150].tolist()


def test_a_model_of_an_older_version_is_not_known(model, data):
    old = HurdleLinear.__new__(HurdleLinear)
    old.__dict__ = vars(model) | {"state_": replace(model.state, seen=None)}
    out = stmsi.tl.predict_metabolites(data, old, copy=True)
    assert set(read_marks(out, "msi_pred")) == {"unknown"}
    assert set(out.uns["msi_pred"]["training_spots"]["trained_on"]) == {"unknown"}
    assert set(stmsi.tl.evaluate(out)["trained_on"]) == {"unknown"}


def test_a_stack_keeps_them_once(inside, data, tmp_path):
    HurdleEnsemble.setup_anndata(inside)
    made = HurdleEnsemble(inside, members=["mean", {"model": "ridge", "n_components": 5}], n_folds=2)
    made.train(show_progress_bar=False)
    made.save(tmp_path / "stack")
    loaded = stmsi.model.load(tmp_path / "stack")
    assert marks_of(loaded, data).tolist() == expected(data).tolist()
    assert [member.state.seen for member in loaded.models_] == [None, None]


@pytest.mark.once
def test_a_network_and_one_that_is_fine_tuned(inside, data, tmp_path):
    first, second = (inside[inside.obs["sample"] == name].copy() for name in TRAINED)
    HurdleNet.setup_anndata(first)
    net = HurdleNet(first, residual=None)
    net.train(max_epochs=1, show_progress_bar=False)
    net.save(tmp_path / "net")
    shared = stmsi.model.load(tmp_path / "net")
    assert marks_of(shared, data).tolist() == expected(data, ("P1S1",)).tolist()
    tuned = shared.fine_tune(second, max_epochs=1, show_progress_bar=False)
    assert marks_of(tuned, data).tolist() == expected(data).tolist()
    assert marks_of(shared, data).tolist() == expected(data, ("P1S1",)).tolist()
    shared.state.seen = None
    unknown = shared.fine_tune(second, max_epochs=1, show_progress_bar=False)
    assert set(marks_of(unknown, data)) == {"unknown"}, "what it has seen before is not known"


def test_evaluate_says_it_once_and_in_each_row(model, data, caplog):
    out = stmsi.tl.predict_metabolites(data, model, copy=True)
    caplog.clear()
    scores = stmsi.tl.evaluate(out)
    assert of_scores(scores) == {"P1S1": "yes", "P2S1": "yes", "P3S1": "no"}, "spots without MSI are not scored"
    (said,) = [r.getMessage() for r in caplog.records if "trained on" in r.getMessage()]
    assert "2 of 3 sections ('P1S1', 'P2S1')" in said
    caplog.clear()
    held_out = stmsi.tl.evaluate(out[out.obs["sample"] == "P3S1"].copy())
    assert set(held_out["trained_on"]) == {"no"}
    assert "trained on" not in caplog.text
    del out.obs["msi_pred_trained_on"]
    assert set(stmsi.tl.evaluate(out)["trained_on"]) == {"unknown"}


def test_each_metabolite_counts_its_own_spots(model, data):
    out = stmsi.tl.predict_metabolites(data, model, copy=True)
    first, second, third, fourth = out.obsm["msi"].columns[:4]
    seen = read_marks(out, "msi_pred") == "yes"
    section = (out.obs["sample"] == "P1S1").to_numpy()
    out.obs["sample"] = "one"
    out.obsm["msi"].loc[~seen, first] = np.nan
    out.obsm["msi"].loc[seen, second] = np.nan
    found = stmsi.tl.evaluate(out).drop_duplicates("metabolite").set_index("metabolite")["trained_on"]
    assert found[[first, second, third]].tolist() == ["yes", "no", "partly"]
    out.obs["msi_pred_trained_on"] = np.where(section, None, out.obs["msi_pred_trained_on"].astype(object))
    out.obsm["msi"].loc[~section, fourth] = np.nan
    found = stmsi.tl.evaluate(out).drop_duplicates("metabolite").set_index("metabolite")["trained_on"]
    assert found[[second, third, fourth]].tolist() == ["no", "partly", "unknown"]


def test_cross_validation_is_held_out(inside):
    scores = stmsi.tl.cross_validate(inside, "mean", on_leakage="ignore", show_progress_bar=False)
    assert set(scores["trained_on"]) == {"no"}

    class Both:
        """Puts the first spots on both sides."""

        def split(self, adata):
            rows = np.arange(adata.n_obs)
            yield rows, rows[:20]
            yield rows[20:], rows[:20]

    scores = stmsi.tl.cross_validate(inside, "mean", splitter=Both(), on_leakage="ignore", show_progress_bar=False)
    assert scores.groupby("fold")["trained_on"].unique().map(list).tolist() == [["yes"], ["no"]]


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        ([], "unknown"), (["no", "no"], "no"), (["yes"], "yes"), (["yes", "no"], "partly"), (["no", "unknown"], "unknown"),
        (["yes", "unknown"], "partly"), (["partly", "no"], "partly"),
    ],
)  # fmt: skip
def test_what_marks_say_together(marks, said):
    assert together(marks) == said


def test_sections_are_counted():
    table = by_section(np.array(["yes", "no", "unknown"], object), np.array(["b", "b", "a"], object))
    wanted = pd.DataFrame({"sample": ["b", "a"], "n_spots": [2, 1], "n_trained_on": [1, 0], "n_unknown": [0, 1]})
    pd.testing.assert_frame_equal(table, wanted.assign(trained_on=["partly", "unknown"]), check_dtype=False)
