"""How cross-validation is run: nested, resumed, on a cluster; and that folds see nothing of each other."""

import errno
import os
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from sklearn.model_selection import KFold

import stmsi
from stmsi._data.keys import INTENSITY_SCORES, MAP_SCORES, PRESENCE_SCORES
from stmsi.model import HurdleLinear
from stmsi.model_selection import LeaveOneSampleOut, SpatialBlockKFold
from stmsi.tl import _cross_validate, _fold_cache
from stmsi.tl._fold_cache import FoldCache, data_fingerprint, fingerprint

SETUP = {"presence_key": "msi_presence"}
BLOCKS = SpatialBlockKFold(2, 350, 100)


@pytest.fixture
def data(st):
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3"]]
    return st


def run(data, models=("mean", "linear"), **options):
    return stmsi.tl.cross_validate(data, models, **({"setup": SETUP, "on_leakage": "ignore"} | options))


def test_edges_are_cut_at_the_border_of_a_fold(data, fits):
    fields = {"graph_key": "spatial_connectivities"}
    spec = {"ridge": {"model": "ridge", "n_components": 5}}
    run(data, spec, setup=fields, splitter=SpatialBlockKFold(2, 350, 0))
    covered = data[data.obsm["msi"].notna().any(axis=1).to_numpy()]
    graph = pd.DataFrame.sparse.from_spmatrix(
        covered.obsp["spatial_connectivities"], covered.obs_names, covered.obs_names
    )
    for fit in fits:
        inside = fit["train"]
        own = graph.loc[inside.obs_names, inside.obs_names].sparse.to_coo().toarray()
        np.testing.assert_array_equal(inside.obsp["spatial_connectivities"].toarray(), own)
        lost = graph.loc[inside.obs_names].sparse.to_coo().sum() - own.sum()
        assert lost > 0  # without a buffer there are edges to cut


@pytest.mark.once
def test_neighbour_features_are_computed_on_each_side_by_itself(data, fits):
    """A fold's predictions are those of a model that was handed the test spots alone."""
    fields = {"graph_key": "spatial_connectivities"}
    splitter = SpatialBlockKFold(2, 350, 0)
    covered = data[data.obsm["msi"].notna().any(axis=1).to_numpy()].copy()
    run(covered, {"diffused": {"model": "ridge", "n_components": 5}}, setup=fields, splitter=splitter)
    train, test = next(splitter.split(covered))
    part = covered[train].copy()
    HurdleLinear.setup_anndata(part, **fields)
    model = HurdleLinear(part, n_components=5, context="diffused")
    model.train(show_progress_bar=False)
    alone = model.predict(covered[test].copy()).to_numpy()
    # folds add up what their parts have in common: sums in another order
    np.testing.assert_allclose(fits[0]["predicted"], alone, atol=1e-6 * alone.max())
    # with the training spots beside them, the neighbourhoods of test spots are others, and so are predictions
    whole = model.predict(covered).to_numpy()[test]
    assert not np.allclose(fits[0]["predicted"], whole)


@pytest.mark.once
def test_the_choice_is_made_inside_the_training_spots(data, fits):
    models = {"mean": "mean", "ridge": {"model": "ridge", "n_components": 5}}
    scores = run(data, models, inner=LeaveOneSampleOut())
    assert scores["model"].drop_duplicates().tolist() == ["mean", "ridge", "chosen"]
    assert len(fits) == 3 * 2 + 3 * 2 * 2
    for f, fold in scores.groupby("fold"):
        own = fold[fold["model"] == "chosen"]
        best = own["chosen"].unique()
        assert best.tolist() == ["ridge"]
        same = fold[fold["model"] == best[0]]
        columns = [c for c in scores if c not in ("model", "chosen")]
        assert_frame_equal(own[columns].reset_index(drop=True), same[columns].reset_index(drop=True))
        held = own["sample"].iloc[0]
        inner = fits[6 + 4 * f : 10 + 4 * f]
        assert all(held not in set(fit["train"].obs["sample"]) for fit in inner)
        assert all(fit["train"].obs["sample"].nunique() == 1 for fit in inner)
    assert (scores.loc[scores["model"] != "chosen", "chosen"] == "").all()


def test_what_can_be_chosen(data):
    with pytest.raises(ValueError, match="the name 'chosen' is that of the model chosen"):
        run(data, {"chosen": "mean"}, inner=BLOCKS)
    with pytest.raises(ValueError, match="inner_metric='speed' is not known"):
        run(data, inner=BLOCKS, inner_metric="speed")
    with pytest.raises(TypeError, match="inner=3 is no splitter"):
        run(data, inner=3)


def test_finished_folds_are_read_again(data, fits, tmp_path):
    whole = run(data)
    fits.clear()
    first = run(data, "mean", cache_dir=tmp_path / "a" / "b")
    assert len(fits) == 3
    again = run(data, cache_dir=tmp_path / "a" / "b")
    assert [fit["spec"] for fit in fits[3:]] == ["linear"] * 3
    assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)
    assert_frame_equal(again[again["model"] == "mean"].reset_index(drop=True), first, check_exact=True)
    third = run(data, cache_dir=tmp_path / "a" / "b")
    assert len(fits) == 6
    assert_frame_equal(third, again, check_exact=True)
    # another name for the same model is the same fit
    named = run(data, {"average": "mean"}, cache_dir=tmp_path / "a" / "b")
    assert len(fits) == 6
    assert set(named["model"]) == {"average"}


@pytest.mark.once
def test_an_interrupted_run_goes_on(data, fits, tmp_path, monkeypatch):
    whole = run(data)
    fits.clear()
    real = _cross_validate._run

    def stop(*args):
        if len(fits) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(_cross_validate, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        run(data, cache_dir=tmp_path)
    monkeypatch.setattr(_cross_validate, "_run", real)
    assert len(list(tmp_path.glob("*.parquet"))) >= 3
    kept = len(list(tmp_path.glob("*.parquet")))
    fits.clear()
    found = run(data, cache_dir=tmp_path)
    assert len(fits) == 6 - kept
    assert_frame_equal(found.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)


@pytest.mark.once
def test_what_has_changed_is_computed_again(data, fits, tmp_path, monkeypatch):
    def count(adata, models="mean", **options):
        fits.clear()
        run(adata, models, cache_dir=tmp_path, **options)
        return len(fits)

    assert count(data) == 3
    assert count(data) == 0
    assert count(data, setup={}) == 3
    assert count(data, {"mean": {"model": "ridge", "n_components": 3}}) == 3
    assert count(data, splitter=BLOCKS) == 2
    assert count(data, maps=True) == 3
    changed = data.copy()
    changed.X[0, 0] += 1
    assert count(changed) == 3
    changed = data.copy()
    changed.obsm["msi"] = changed.obsm["msi"] * 1.5
    assert count(changed) == 3
    assert count(changed) == 0
    assert {"format", "stmsi", "numpy", "scipy", "torch", "scvi-tools"} <= set(_fold_cache.software())
    there = _fold_cache.version
    monkeypatch.setattr(_fold_cache, "version", lambda name: "99" if name == "torch" else there(name))
    assert count(changed) == 3


def test_damaged_files_are_computed_again(data, fits, tmp_path, caplog):
    run(data, "mean", cache_dir=tmp_path)
    for path in tmp_path.glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    fits.clear()
    run(data, "mean", cache_dir=tmp_path)
    assert len(fits) == 3
    assert "cannot be read" in caplog.text
    assert len(list(tmp_path.iterdir())) == 3


def test_a_cache_that_is_a_file(data, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; name a folder"):
        run(data, cache_dir=tmp_path / "x")


def test_nothing_is_left_of_a_table_that_could_not_be_written(tmp_path, monkeypatch, caplog):
    cache = FoldCache(tmp_path)

    def fail(self, path, **kwargs):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    for key in ("k", "l"):
        cache.put(key, pd.DataFrame({"a": [1]}))
        assert cache.get(key) is None
    assert not list(tmp_path.iterdir())
    assert caplog.text.count("cannot be kept") == 1


@pytest.mark.parametrize("where", ["full", "read-only", "no folder"])
def test_a_cache_that_cannot_be_written_stops_no_run(where, tmp_path, monkeypatch, caplog, fits, data):
    folder = Path("/dev/full/folds") if where == "no folder" else tmp_path / "folds"
    if where == "full":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", _refuse(errno.ENOSPC))
    elif where == "read-only":
        monkeypatch.setattr(Path, "mkdir", _refuse(errno.EROFS))
    found = run(data, "mean", cache_dir=folder)
    assert len(fits) == found["fold"].nunique() == 3
    assert caplog.text.count("cannot be kept in") == 1
    assert "Free some space, or name a folder" in caplog.text


def _refuse(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


def test_data_without_a_value_is_not_kept(data, tmp_path, caplog):
    data.uns["function"] = lambda: 0
    run(data, "mean", cache_dir=tmp_path)
    assert "No fold is kept" in caplog.text
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_goes(tmp_path):
    left = tmp_path / f".{'0' * 32}.0123.parquet"
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    FoldCache(tmp_path)
    assert not list(tmp_path.iterdir())


def test_counts_are_hashed_once(data, monkeypatch):
    """The newer anndata lists X among the layers; the older one does not, and both hash the same."""
    hashed = []
    feed = _fold_cache._feed
    monkeypatch.setattr(_fold_cache, "_feed", lambda digest, thing: (hashed.append(thing), feed(digest, thing))[1])
    data_fingerprint(data)
    assert sum(thing is data.X for thing in hashed) == 1
    assert not any(isinstance(thing, dict) and None in thing for thing in hashed)


def test_fingerprints_are_of_values(data):
    assert data_fingerprint(data) == data_fingerprint(data.copy())
    dense = data.copy()
    other = data.copy()
    other.obs["domain"] = other.obs["domain"].cat.reorder_categories(other.obs["domain"].cat.categories[::-1])
    assert data_fingerprint(dense) == data_fingerprint(other)  # labels are the same
    other.obs.iloc[0, other.obs.columns.get_loc("domain")] = other.obs["domain"].iloc[-1]
    things = [
        1,
        1.0,
        True,
        "1",
        None,
        [1],
        (1,),
        ["1"],
        {"1": 1},
        np.array([1]),
        np.array([1.0]),
        np.array(["1"], object),
    ]
    assert len({fingerprint(t) for t in things}) == len(things)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(pd.DataFrame({"a": [1.0, np.nan]})) == fingerprint(pd.DataFrame({"a": [1.0, np.nan]}))


@pytest.mark.once
def test_results_do_not_depend_on_processes_with_nesting_and_cache(data, tmp_path):
    one = run(data, inner=LeaveOneSampleOut()).drop(columns="seconds")
    two = run(data, inner=LeaveOneSampleOut(), cache_dir=tmp_path, n_jobs=2).drop(columns="seconds")
    assert_frame_equal(one, two, check_exact=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
# anndata switches this warning off for a moment; another thread of the cluster switches it on again
@pytest.mark.filterwarnings(r"ignore:\s*A value is trying to be set on a copy")
def test_on_a_dask_cluster(data):
    distributed = pytest.importorskip("dask.distributed")
    here = run(data).drop(columns="seconds")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        there = run(data).drop(columns="seconds")
        assert cluster.scheduler.transition_counter > 0
    assert_frame_equal(here, there, check_exact=True)


def test_leaks_are_reported(data, caplog):
    splitter = KFold(3, shuffle=True, random_state=0)
    with pytest.raises(ValueError, match="The split leaks"):
        run(data, "mean", splitter=splitter, on_leakage="raise")
    run(data, "mean", splitter=splitter, on_leakage="warn")
    assert "Leakage, neighbours" in caplog.text
    with pytest.raises(ValueError, match="on_leakage='no' is not known"):
        run(data, on_leakage="no")


def test_maps_are_scored(data):
    scores = run(data, "linear", maps=True)
    own = scores[scores["stage"] == "intensity"]
    assert own[list(MAP_SCORES)].notna().all().all()
    assert own["hotspot_jaccard"].between(0, 1).all()
    assert list(run(data, "linear")) == [c for c in scores if c not in MAP_SCORES]
    del data.obsm["spatial"]
    with pytest.raises(KeyError, match="maps=True needs the positions"):
        run(data, "mean", maps=True)


def test_scores_that_do_not_exist_say_why(data):
    rows = (data.obs["sample"] == "P1S1").to_numpy()
    first = data.obsm["msi"].columns[0]
    for key in ("msi", "msi_presence"):
        frame = data.obsm[key].copy()
        frame.loc[rows, first] = frame.loc[rows, first].where(frame.loc[rows, first].isna(), 0.0)
        data.obsm[key] = frame
    scores = run(data)
    own = scores[(scores["sample"] == "P1S1") & (scores["metabolite"] == first)].set_index(["model", "stage"])
    assert own.loc[("linear", "presence"), ["recall", "auroc", "auprc", "mcc"]].isna().all()
    assert "present nowhere" in own.loc[("linear", "presence"), "reason"]
    assert own.loc[("linear", "intensity"), ["pearson", "spearman"]].isna().all()
    assert "constant measurement" in own.loc[("linear", "intensity"), "reason"]
    mean = scores[(scores["model"] == "mean") & (scores["stage"] == "intensity")]
    assert mean["pearson"].isna().all()
    assert mean["reason"].str.contains("constant prediction").all()
    for stage, columns in (
        ("presence", PRESENCE_SCORES),
        ("intensity", INTENSITY_SCORES),
    ):
        part = scores[scores["stage"] == stage]
        np.testing.assert_array_equal(part[list(columns)].isna().any(axis=1), part["reason"] != "")


def test_folds_of_nothing(data):
    class Empty:
        def split(self, adata):
            yield np.arange(5), np.array([], int)

    with pytest.raises(ValueError, match="makes folds without training or test spots"):
        run(data, splitter=Empty())

    class Foreign:
        def split(self, adata):
            yield np.arange(5), np.array([adata.n_obs])

    with pytest.raises(ValueError, match=r"names spots beyond the \d+ that have MSI"):
        run(data, splitter=Foreign())
