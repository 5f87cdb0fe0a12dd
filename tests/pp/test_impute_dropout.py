import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

import stmsi
from stmsi._core.spatial.median_filter import adaptive_median, distance_rings


def _table(values, sample=None):
    n = len(values)
    xy = np.column_stack([np.arange(n) % 6, np.arange(n) // 6]) * 100.0
    index = [f"s{i}" for i in range(n)]
    frame = pd.DataFrame(values, index=index, columns=[f"m{j}" for j in range(values.shape[1])], dtype=np.float32)
    obs = pd.DataFrame({"sample": "A" if sample is None else sample}, index=index)
    return AnnData(np.ones((n, 1), np.float32), obs=obs, obsm={"msi": frame, "spatial": xy})


def _values(seed=0, n=48):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(size=(n, 3)) * (rng.random((n, 3)) < [0.8, 0.3, 0])
    values[5] = np.nan
    values[7, 1] = np.nan
    return values.astype(np.float32)


def test_each_section_by_itself():
    values = _values()
    sample = np.repeat(["A", "B"], 24)
    st = _table(values, sample)
    stmsi.pp.impute_dropout(st, n_rings=3)
    found = st.obsm["msi"].to_numpy()
    for name in ("A", "B"):
        rows = np.flatnonzero((sample == name) & np.isfinite(values).any(axis=1))
        rings = distance_rings(st.obsm["spatial"][rows], 3)
        np.testing.assert_allclose(found[rows], adaptive_median(values[rows].astype(float), *rings), rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    np.testing.assert_array_equal(found[values > 0], values[values > 0])
    assert (found[:, :2][values[:, :2] == 0] > 0).all()
    assert (st.obsm["msi"].dtypes == np.float32).all()
    observed = st.obsm["msi_observed"]
    assert observed.dtypes.astype(str).eq("bool").all()
    np.testing.assert_array_equal(observed, values > 0)
    record = st.uns["msi"]["impute_dropout"]
    assert record["n_rings"] == 3
    assert record["imputed_share"] == pytest.approx((values[:, :2] == 0).sum() / np.isfinite(values).sum())


def test_called_again_it_starts_from_what_was_measured():
    once, twice = _table(_values()), _table(_values())
    stmsi.pp.impute_dropout(twice, n_rings=1)
    for st in (once, twice):
        stmsi.pp.impute_dropout(st, n_rings=7)
    pd.testing.assert_frame_equal(once.obsm["msi"], twice.obsm["msi"])
    pd.testing.assert_frame_equal(once.obsm["msi_observed"], twice.obsm["msi_observed"])


def test_copy_and_a_new_mapping(mapped):
    before = mapped.tables["st"].obsm["msi"].copy()
    out = stmsi.pp.impute_dropout(mapped, copy=True)
    assert "msi_observed" not in mapped.tables["st"].obsm
    pd.testing.assert_frame_equal(mapped.tables["st"].obsm["msi"], before)
    st = out.tables["st"]
    assert not (st.obsm["msi"] == 0).any(axis=None)
    stmsi.pp.map_to_spots(out, min_coverage=0.5)
    assert "msi_observed" not in st.obsm
    pd.testing.assert_frame_equal(st.obsm["msi"], before)


def test_models_learn_from_it(mapped):
    stmsi.pp.impute_dropout(mapped)
    st = mapped.tables["st"]
    stmsi.tl.predict_metabolites(st, "linear", show_progress_bar=False)
    scores = stmsi.tl.evaluate(st)
    assert scores.loc[scores["stage"] == "intensity", "mse"].notna().all()


def test_it_survives_a_file(tmp_path):
    st = _table(_values())
    stmsi.pp.impute_dropout(st)
    st.copy().write_h5ad(tmp_path / "a.h5ad")
    back = read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(back.obsm["msi_observed"], st.obsm["msi_observed"])
    assert back.obsm["msi_observed"].dtypes.astype(str).eq("bool").all()


def test_one_spot_and_silent_metabolites(caplog):
    st = _table(np.array([[0.0, 2.0, np.nan]]))
    stmsi.pp.impute_dropout(st)
    np.testing.assert_array_equal(st.obsm["msi"], [[0, 2, np.nan]])
    silent = _table(np.zeros((4, 2)))
    stmsi.pp.impute_dropout(silent)
    assert (silent.obsm["msi"] == 0).all(axis=None)
    assert "no value above zero" in caplog.text


def _without_positions():
    st = _table(_values())
    del st.obsm["spatial"]
    return st


def _lost():
    st = _table(_values())
    st.obsm["spatial"][0] = np.nan
    return st


def _corrected():
    st = _table(_values(), np.repeat(["A", "B"], 24))
    stmsi.pp.correct_batch(st, method="rank")
    st.uns.clear()
    return st


BAD = {
    "corrected": (_corrected(), {}, ValueError, "was corrected for batches.*undo it"),
    "negative": (_table(np.array([[-1.0], [1.0]])), {}, ValueError, "contain 1 negative values"),
    "infinite": (_table(np.array([[np.inf], [1.0]])), {}, ValueError, "1 infinite values"),
    "nothing": (_table(np.full((3, 2), np.nan)), {}, ValueError, "holds nothing but NaN; align and map"),
    "empty": (_table(_values())[:0].copy(), {}, ValueError, "table is empty"),
    "rings": (_table(_values()), {"n_rings": 0}, ValueError, "n_rings must be at least 1"),
    "key": (_table(_values()), {"metabolite_key": "mis"}, KeyError, "obsm has no 'mis'"),
    "no positions": (_without_positions(), {}, KeyError, 'obsm has no "spatial"'),
    "positions": (_lost(), {}, ValueError, "NaN or infinite positions"),
}


@pytest.mark.parametrize(("st", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(st, kwargs, error, message):
    keys = set(st.obsm)
    with pytest.raises(error, match=message):
        stmsi.pp.impute_dropout(st, **kwargs)
    assert set(st.obsm) == keys
    assert not st.uns
