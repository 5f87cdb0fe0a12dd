import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData, read_h5ad

import stmsi
from stmsi._core.spectra.section_scale import section_ranks, transfer

BATCH = np.repeat(["s0", "s1", "s2"], [40, 50, 60])


def _values(seed=0, zeros=0.2):
    rng = np.random.default_rng(seed)
    values = rng.normal(5, 1, (150, 6)) + np.repeat(rng.normal(0, 0.6, (3, 6)), [40, 50, 60], axis=0)
    values[BATCH == "s1"] *= 1.5
    return np.where(rng.random((150, 6)) < zeros, 0, values.clip(0.1)).astype(np.float32)


def _table(values, batch=BATCH):
    index = [f"s{i}" for i in range(len(values))]
    frame = pd.DataFrame(values, index=index, columns=[f"m{j}" for j in range(values.shape[1])], dtype=np.float32)
    return AnnData(
        np.ones((len(values), 1), np.float32), obs=pd.DataFrame({"sample": batch}, index=index), obsm={"msi": frame}
    )


def _combat(values, batch):
    table = AnnData(
        values.astype(float), obs=pd.DataFrame({"b": pd.Categorical(batch)}, index=np.arange(len(batch)).astype(str))
    )
    return sc.pp.combat(table, key="b", inplace=False)


def test_combat_is_scanpys():
    values = _values(zeros=0)
    st = _table(values)
    stmsi.pp.correct_batch(st)
    np.testing.assert_allclose(st.obsm["msi"], np.maximum(_combat(values, BATCH), values.min(axis=0)), rtol=1e-5)
    before, after = (pd.DataFrame(v).groupby(BATCH).mean().std().mean() for v in (values, st.obsm["msi"].to_numpy()))
    assert after < 0.1 * before
    np.testing.assert_array_equal(st.obsm["msi_uncorrected"], values)


def test_combat_leaves_absent_and_unknown_as_they_are():
    values = _values()
    values[[3, 60]] = np.nan
    st = _table(values)
    stmsi.pp.correct_batch(st)
    found = st.obsm["msi"].to_numpy()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    np.testing.assert_array_equal(found == 0, values == 0)
    assert (found[values > 0] > 0).all()


def _level_by_batch(values, of):
    return np.array([values[(name == BATCH)[:, None] & (of > 0)].mean() for name in ("s0", "s1", "s2")])


def test_how_often_a_metabolite_is_found_is_no_batch_effect():
    """Batches that differ in prevalence only are left alone; a shift of the present values is taken out all the same."""
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, (150, 20)).clip(0.5)
    values[rng.random(values.shape) >= np.select([BATCH == "s0", BATCH == "s1"], [0.9, 0.2], 0.6)[:, None]] = 0
    for shift in (0.0, 1.5):
        moved = np.where((values > 0) & (BATCH == "s1")[:, None], values + shift, values)
        st = _table(moved)
        stmsi.pp.correct_batch(st)
        level = _level_by_batch(st.obsm["msi"].to_numpy(), moved)
        assert np.ptp(level) < 0.15
        # what scanpy makes of it, zeros counted
        assert np.ptp(_level_by_batch(_combat(moved, BATCH), moved)) > 1


def test_metabolites_that_one_section_did_not_measure(caplog):
    values = _values(zeros=0)
    values[BATCH == "s2", :2] = np.nan
    values[BATCH != "s0", 2] = np.nan
    st = _table(values)
    stmsi.pp.correct_batch(st)
    found = st.obsm["msi"].to_numpy()
    two = BATCH != "s2"
    before, after = (pd.DataFrame(v[two][:, :2]).groupby(BATCH[two]).mean().std() for v in (values, found))
    assert (after < 0.2 * before).all()
    assert np.isnan(found[~two][:, :2]).all()
    # of one batch
    np.testing.assert_array_equal(found[:, 2], values[:, 2])
    assert "1 metabolites stay as they are" in caplog.text


def test_few_metabolites_have_nothing_in_common(caplog):
    values = _values()[:, :2]
    st = _table(values)
    stmsi.pp.correct_batch(st)
    np.testing.assert_array_equal(st.obsm["msi"], values)
    assert "2 metabolites stay as they are" in caplog.text


def test_constant_and_silent_metabolites_stay(caplog):
    values = np.column_stack(
        [_values(zeros=0), np.full(150, 2.0), np.zeros(150), np.where(BATCH == "s0", 1.0, _values()[:, 0])]
    )
    st = _table(values)
    stmsi.pp.correct_batch(st)
    assert np.isfinite(st.obsm["msi"]).all(axis=None)
    np.testing.assert_array_equal(st.obsm["msi"].iloc[:, 6:], values[:, 6:].astype(np.float32))
    assert "3 metabolites stay as they are" in caplog.text


def test_ranks_are_taken_within_sections():
    values = _values()
    values[2] = np.nan
    st = _table(values)
    stmsi.pp.correct_batch(st, method="rank")
    for name in ("s0", "s1", "s2"):
        rows = name == BATCH
        np.testing.assert_allclose(st.obsm["msi"][rows], section_ranks(values[rows].astype(float)), rtol=1e-6)


def test_quantiles_are_the_same_afterwards_and_can_be_turned_back():
    values = _values()
    st = _table(values)
    stmsi.pp.correct_batch(st, method="quantile")
    found = st.obsm["msi"].to_numpy(float)
    middle = [
        np.median(found[s == BATCH][:, j][found[s == BATCH][:, j] > 0]) for s in ("s0", "s1", "s2") for j in (0, 1)
    ]
    assert middle[0] == pytest.approx(middle[2], rel=0.02)
    assert middle[1] == pytest.approx(middle[5], rel=0.02)
    tables = st.uns["msi"]["correct_batch"]["quantiles"]
    assert set(tables) == {"s0", "s1", "s2", "reference"}
    rows = BATCH == "s1"
    back = transfer(found[rows], tables["reference"].to_numpy(), tables["s1"].to_numpy())
    np.testing.assert_allclose(back, values[rows], rtol=1e-3)


@pytest.mark.parametrize("method", ["combat", "quantile", "rank"])
def test_called_again_it_starts_anew_and_it_can_be_undone(method):
    values = _values()
    once, twice = _table(values), _table(values)
    stmsi.pp.correct_batch(twice, method="rank")
    for st in (once, twice):
        stmsi.pp.correct_batch(st, method=method)
    pd.testing.assert_frame_equal(once.obsm["msi"], twice.obsm["msi"])
    stmsi.pp.correct_batch(once, method="none")
    np.testing.assert_array_equal(once.obsm["msi"], values)
    assert list(once.obsm) == ["msi"]
    assert once.uns["msi"] == {}


def test_other_batches_copies_and_files(tmp_path):
    st = _table(_values())
    st.obs["run"] = np.where(np.arange(150) % 2, "a/1", "b")
    out = stmsi.pp.correct_batch(st, method="quantile", batch_key="run", copy=True)
    assert list(st.obsm) == ["msi"]
    assert set(out.uns["msi"]["correct_batch"]["quantiles"]) == {"a_1", "b", "reference"}
    out.write_h5ad(tmp_path / "a.h5ad")
    back = read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(back.obsm["msi_uncorrected"], out.obsm["msi_uncorrected"])
    assert back.uns["msi"]["correct_batch"]["params"] == {"method": "quantile", "batch_key": "run"}


def test_a_new_mapping_forgets_the_correction(mapped):
    stmsi.pp.correct_batch(mapped, method="rank")
    stmsi.pp.map_to_spots(mapped)
    assert "msi_uncorrected" not in mapped.tables["st"].obsm


def _gap():
    st = _table(_values())
    st.obs["run"] = ["a", None] * 75
    return st


BAD = {
    "one section": (_table(_values(), "s0"), {}, ValueError, "at least two batches with MSI; obs.'sample'. has 's0'"),
    "a single spot": (_table(_values()[:91], BATCH[:91]), {}, ValueError, "two spots of each batch; 's2' have one"),
    "method": (
        _table(_values()),
        {"method": "combta"},
        ValueError,
        "method='combta' is not known.*Did you mean 'combat'",
    ),
    "negative": (_table(-_values(zeros=0)), {}, ValueError, "900 negative values"),
    "infinite": (_table(np.full((150, 2), np.inf)), {}, ValueError, "infinite values"),
    "nothing": (_table(np.full((150, 2), np.nan)), {}, ValueError, "at least two batches with MSI"),
    "batch_key": (_table(_values()), {"batch_key": "run"}, KeyError, "no column 'run'"),
    "gaps": (_gap(), {"batch_key": "run"}, ValueError, "75 missing values; every spot needs a batch"),
    "key": (_table(_values()), {"metabolite_key": "mis"}, KeyError, "obsm has no 'mis'"),
    "nothing to undo": (_table(_values()), {"method": "none"}, KeyError, "nothing was corrected"),
}


@pytest.mark.parametrize(("st", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(st, kwargs, error, message):
    with pytest.raises(error, match=message):
        stmsi.pp.correct_batch(st, **kwargs)
    assert list(st.obsm) == ["msi"]
    assert not st.uns
