"""predict_metabolites(use_measured=True): sections of which a part was measured."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.metrics import pearson
from stmsi.model import HurdleLinear

FRAMES = ("msi_pred", "msi_pred_presence", "msi_pred_lower", "msi_pred_upper")


def _trained(st, **options):
    HurdleLinear.setup_anndata(st, **options)
    fitted = HurdleLinear(st, n_components=10, n_folds=2)
    fitted.train()
    return fitted


@pytest.fixture(scope="module")
def sections(three_patients):
    """Two sections to train on, and one of another patient; none with called presence, so that zeros are few."""
    return three_patients[three_patients.obsm["msi"].notna().all(axis=1).to_numpy()].copy()


@pytest.fixture(scope="module")
def model(sections):
    return _trained(sections[(sections.obs["patient"] != "P3").to_numpy()].copy())


@pytest.fixture
def query(sections):
    return sections[(sections.obs["patient"] == "P3").to_numpy()].copy()


def _hide(st, known):
    """Sets intensities to NaN where they are not `known`; returns those that were there."""
    full = st.obsm["msi"].copy()
    st.obsm["msi"] = full.where(pd.DataFrame(np.broadcast_to(known, full.shape), full.index, full.columns))
    return full


def _half(st):
    rng = np.random.default_rng(0)
    return (rng.random(st.n_obs) < 0.5)[:, None]


@pytest.mark.once
def test_neighbours_help_where_they_were_measured(query, model):
    known = _half(query)
    truth = _hide(query, known)
    plain = stmsi.tl.predict_metabolites(query, model, copy=True)
    alone = query.copy()
    del alone.obsm["spatial"]
    new = ~known[:, 0]
    alone = stmsi.tl.predict_metabolites(alone, model, use_measured=True, copy=True)
    stmsi.tl.predict_metabolites(query, model, use_measured=True)
    r = [np.nanmean(pearson(truth[new], d.obsm["msi_pred"][new])) for d in (plain, alone, query)]
    error = [np.nanmean(((truth - d.obsm["msi_pred"])[new] ** 2) / truth.var()) for d in (plain, alone, query)]
    assert r[2] > r[1] + 0.02
    assert r[2] > r[0] + 0.02
    assert error[2] < error[1] <= error[0] * 1.02
    lower, upper = query.obsm["msi_pred_lower"], query.obsm["msi_pred_upper"]
    assert 0.83 < float(((truth >= lower) & (truth <= upper))[new].to_numpy().mean()) < 0.96


@pytest.mark.once
def test_far_from_what_was_measured_it_does_not_hurt(query, model):
    x = query.obsm["spatial"][:, 0]
    truth = _hide(query, (x < np.quantile(x, 0.4))[:, None])
    plain = stmsi.tl.predict_metabolites(query, model, copy=True).obsm["msi_pred"]
    stmsi.tl.predict_metabolites(query, model, use_measured=True)
    far = x > np.quantile(x, 0.4) + 400
    # metabolites that the model cannot predict have no correlation to lose
    before, after = (pearson(truth[far], p[far]) for p in (plain, query.obsm["msi_pred"]))
    told = before > 0.6
    assert told.sum() >= 5
    assert after[told].mean() > before[told].mean() - 0.01


def test_measured_spots_keep_the_prediction_of_the_model(query, model):
    known = _half(query)
    _hide(query, known)
    plain = stmsi.tl.predict_metabolites(query, model, copy=True)
    stmsi.tl.predict_metabolites(query, model, use_measured=True)
    for key in FRAMES:
        a, b = plain.obsm[key].to_numpy(), query.obsm[key].to_numpy()
        np.testing.assert_array_equal(a[known[:, 0]], b[known[:, 0]])
        assert (a[~known[:, 0]] != b[~known[:, 0]]).mean() > 0.2
        assert b.dtype == np.float32
    p, pred = query.obsm["msi_pred_presence"].to_numpy(), query.obsm["msi_pred"].to_numpy()
    assert (pred[p < model.state.threshold] == 0).all()
    assert (query.obsm["msi_pred_lower"].to_numpy() <= pred).all()
    assert (query.obsm["msi_pred_upper"].to_numpy() >= pred).all()
    np.testing.assert_array_equal(plain.obs["msi_pred_ood"], query.obs["msi_pred_ood"])


def test_presence_of_neighbours_counts(query, model):
    known = _half(query)
    truth = _hide(query, known)
    plain = stmsi.tl.predict_metabolites(query, model, copy=True)
    stmsi.tl.predict_metabolites(query, model, use_measured=True)
    brier = [((d.obsm["msi_pred_presence"] - (truth > 0))[~known[:, 0]] ** 2).to_numpy().mean() for d in (plain, query)]
    assert brier[1] < brier[0]


def test_without_the_option_nothing_changes(query, model):
    _hide(query, _half(query))
    bare = query.copy()
    del bare.obsm["msi"]
    stmsi.tl.predict_metabolites(query, model)
    stmsi.tl.predict_metabolites(bare, model)
    for key in FRAMES:
        assert_frame_equal(query.obsm[key], bare.obsm[key], check_exact=True)


def test_the_record_and_the_disk(query, model, tmp_path):
    _hide(query, _half(query))
    stmsi.tl.predict_metabolites(query, model, use_measured=True)
    record = query.uns["msi_pred"]
    assert record["params"]["use_measured"] is True
    table = record["use_measured"]
    assert list(table) == ["sample", "metabolite", "n_measured", "offset", "scale", "smoothing", "length", "noise"]
    assert set(table["sample"]) == set(query.obs["sample"])
    assert list(table["metabolite"]) == list(query.obsm["msi"])
    assert (table["n_measured"] == query.obsm["msi"].notna().sum().to_numpy()).all()
    assert table["scale"].between(0, 3).all()
    assert table["noise"].between(0, 1).all()
    query.write_h5ad(tmp_path / "st.h5ad")
    back = ad.read_h5ad(tmp_path / "st.h5ad").uns["msi_pred"]["use_measured"]
    np.testing.assert_allclose(back["offset"], table["offset"])


def test_sections_that_were_not_or_wholly_measured_are_left_alone(sections, model):
    st = sections.copy()
    frame = st.obsm["msi"].copy()
    sample = st.obs["sample"].astype(str)
    part = (sample == "P3S1").to_numpy() & _half(st)[:, 0]
    frame[part] = np.nan
    frame[(sample == "P2S1").to_numpy()] = np.nan
    st.obsm["msi"] = frame
    plain = stmsi.tl.predict_metabolites(st, model, copy=True)
    stmsi.tl.predict_metabolites(st, model, use_measured=True)
    a, b = (d.obsm["msi_pred"].to_numpy() for d in (plain, st))
    np.testing.assert_array_equal(a[~part], b[~part])
    assert (a[part] != b[part]).any()
    assert set(st.uns["msi_pred"]["use_measured"]["sample"]) == {"P3S1"}


def test_metabolites_measured_in_other_spots_or_nowhere(query, model):
    frame = query.obsm["msi"].copy()
    half = _half(query)[:, 0]
    frame.iloc[half, 0], frame.iloc[~half, 1] = np.nan, np.nan
    frame.iloc[:, 2] = np.nan
    frame.iloc[half, 3], frame.iloc[~half, 3] = np.nan, 5.0  # constant
    query.obsm["msi"] = frame
    plain = stmsi.tl.predict_metabolites(query, model, copy=True).obsm["msi_pred"].to_numpy()
    stmsi.tl.predict_metabolites(query, model, use_measured=True)
    made = query.obsm["msi_pred"].to_numpy()
    assert np.isfinite(made).all()
    assert np.isfinite(query.obsm["msi_pred_upper"].to_numpy()).all()
    np.testing.assert_array_equal(made[:, 4:], plain[:, 4:])
    np.testing.assert_array_equal(made[:, 2], plain[:, 2])
    np.testing.assert_array_equal(made[~half, 0], plain[~half, 0])
    np.testing.assert_array_equal(made[half, 1], plain[half, 1])


@pytest.mark.once
@pytest.mark.parametrize("n", [1, 3])
def test_few_measured_spots_move_the_level_a_little(query, model, n):
    known = np.zeros((query.n_obs, 1), bool)
    known[:n] = True
    _hide(query, known)
    plain = stmsi.tl.predict_metabolites(query, model, copy=True).obsm["msi_pred"]
    stmsi.tl.predict_metabolites(query, model, use_measured=True)
    made, table = query.obsm["msi_pred"], query.uns["msi_pred"]["use_measured"]
    assert table["length"].isna().all()
    assert table["scale"].between(0.5, 1.5).all()
    assert np.corrcoef(made.to_numpy().ravel(), plain.to_numpy().ravel())[0, 1] > 0.9


def test_without_positions_it_is_said_once(query, model, caplog):
    _hide(query, _half(query))
    del query.obsm["spatial"]
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(query, model, use_measured=True)
    assert caplog.text.count("without positions, predictions are corrected in offset and scale alone") == 1
    assert query.uns["msi_pred"]["use_measured"]["length"].isna().all()
    assert (query.uns["msi_pred"]["use_measured"]["smoothing"] == 0).all()


def test_nothing_to_correct_is_told(query, model, caplog):
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(query, model, use_measured=True)
    assert "changes nothing: no section has obsm['msi'] in some of its spots only" in caplog.text
    assert "use_measured" not in query.uns["msi_pred"]
    del query.obsm["msi"]
    with pytest.raises(KeyError, match=r"obsm has no 'msi'.*use_measured=True needs the measured intensities"):
        stmsi.tl.predict_metabolites(query, model, use_measured=True)


def test_positions_must_be_finite(query, model):
    _hide(query, _half(query))
    query.obsm["spatial"] = query.obsm["spatial"].copy()
    query.obsm["spatial"][0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite positions"):
        stmsi.tl.predict_metabolites(query, model, use_measured=True)
    assert "msi_pred" not in query.obsm


def test_training_spots_are_corrected_by_held_out_errors(sections, monkeypatch, caplog):
    """By name, the model is trained on the measured part of the section that it corrects."""
    from stmsi.tl import _partial_sections

    st = sections.copy()
    known = _half(st) | (st.obs["patient"] != "P3").to_numpy()[:, None]
    _hide(st, known)
    fitted = _trained(st)
    seen = []
    original = _partial_sections.unseen_stages

    def spy(model, stages, *args):
        seen.append((stages, original(model, stages, *args)))
        return seen[-1][1]

    monkeypatch.setattr(_partial_sections, "unseen_stages", spy)
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(st, fitted, use_measured=True)
    assert "has no held-out predictions" not in caplog.text
    stages, unseen = seen[0]
    np.testing.assert_array_equal(unseen[:, known[:, 0]], np.maximum(fitted._held_out_stages(), 0))
    np.testing.assert_array_equal(unseen[:, ~known[:, 0]], stages[:, ~known[:, 0]])


def test_a_saved_model_that_may_have_seen_the_spots_is_told(sections, tmp_path, caplog):
    st = sections.copy()
    known = _half(st)
    _hide(st, known)
    fitted = _trained(st)
    fitted.save(tmp_path / "model")
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(st, tmp_path / "model", use_measured=True)
    assert "has no held-out predictions of their measured spots" in caplog.text
    assert "'P1S1', 'P2S1', 'P3S1'" in caplog.text


def test_other_spots_at_the_same_places_are_not_taken_for_training_spots(sections):
    from stmsi.tl._held_out import unseen_stages

    st = sections.copy()
    fitted = _trained(st)
    stages = np.zeros((2, *st.obsm["msi"].shape))
    measured, xy = st.obsm["msi"].to_numpy(float), st.obsm["spatial"]
    sample = st.obs["sample"].astype(str).to_numpy()
    assert (unseen_stages(fitted, stages, measured, sample, xy) > 0).any()
    np.testing.assert_array_equal(unseen_stages(fitted, stages, measured + 1, sample, xy), 0)
    shuffled = np.random.default_rng(0).permutation(len(sample))
    some = unseen_stages(fitted, stages, measured[shuffled], sample[shuffled], xy[shuffled])
    np.testing.assert_array_equal(some, unseen_stages(fitted, stages, measured, sample, xy)[:, shuffled])


def test_presence_is_that_of_the_model(st, caplog):
    """A model that learnt from called presence is corrected by it, and only by it."""
    fitted = _trained(st[(st.obs["sample"] != "P3S1").to_numpy()].copy(), presence_key="msi_presence")
    query = st[(st.obs["sample"] == "P3S1").to_numpy()].copy()
    _hide(query, _half(query))
    corrected = stmsi.tl.predict_metabolites(query, fitted, use_measured=True, copy=True)
    plain = stmsi.tl.predict_metabolites(query, fitted, copy=True)
    assert (corrected.obsm["msi_pred_presence"] != plain.obsm["msi_pred_presence"]).to_numpy().any()
    del query.obsm["msi_presence"]
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.predict_metabolites(query, fitted, use_measured=True)
    assert "presence is not corrected" in caplog.text
    assert_frame_equal(query.obsm["msi_pred_presence"], plain.obsm["msi_pred_presence"])
