import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from skimage.filters import threshold_otsu

import stmsi


def _table(frame, sample=None):
    frame = pd.DataFrame(frame, dtype=np.float32)
    frame.index, frame.columns = [f"s{i}" for i in range(len(frame))], [f"m{j}" for j in range(frame.shape[1])]
    obs = pd.DataFrame({"sample": "A" if sample is None else sample}, index=frame.index)
    return AnnData(np.ones((len(frame), 1), np.float32), obs=obs, obsm={"msi": frame})


def _limits(st):
    return st.uns["msi"]["detection_limit"]


def test_nan_absent_and_present_are_three_things(mapped):
    st = mapped.tables["st"]
    msi, presence = st.obsm["msi"].to_numpy(), st.obsm["msi_presence"]
    assert (presence.dtypes == np.float32).all()
    assert presence.index.equals(st.obs_names)
    np.testing.assert_array_equal(presence.isna(), np.isnan(msi))
    values = presence.to_numpy()
    assert set(np.unique(values[~np.isnan(values)])) == {0.0, 1.0}
    assert (values[msi == 0] == 0).all()
    limit = _limits(st)[st.obs["sample"].astype(str)].T.to_numpy()
    np.testing.assert_array_equal(values == 1, msi > limit)


def test_calls_agree_with_the_simulated_truth(mapped):
    st = mapped.tables["st"]
    truth, presence = st.obsm["truth_presence"], st.obsm["msi_presence"]
    known = presence.notna().to_numpy()
    agree = (truth.to_numpy() == presence.to_numpy())[known]
    assert agree.mean() > 0.85


def test_the_detection_limit_is_seen_in_the_pixels(mapped):
    st, msi = mapped.tables["st"], mapped.tables["msi"]
    for sample in ("P1S1", "P2S1"):
        X = msi.X[(msi.obs["sample"] == sample).to_numpy()].toarray()
        for j, name in enumerate(msi.var_names):
            above = X[:, j][X[:, j] > 0]
            expected = 0.0 if len(above) >= 0.98 * len(X) or not len(above) else np.quantile(above.astype(float), 0.01)
            assert _limits(st).loc[name, sample] == pytest.approx(expected, rel=1e-6)


def test_without_pixels_the_limit_is_seen_in_the_spots():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((200, 2)) < 0.5, 0, 3 + rng.lognormal(size=(200, 2)))
    values[:, 1] += 1  # detected everywhere
    values[:3] = np.nan
    st = _table(values)
    stmsi.pp.call_presence(st)
    column = st.obsm["msi"]["m0"].to_numpy(dtype=float)
    assert _limits(st).loc["m0", "A"] == pytest.approx(np.quantile(column[column > 0], 0.01))
    assert _limits(st).loc["m1", "A"] == 0
    assert st.obsm["msi_presence"]["m1"][3:].eq(1).all()


def test_a_value_at_the_limit_is_present_where_all_values_are_the_same():
    st = _table([[0.0], [0.0], [2.0], [2.0]])
    stmsi.pp.call_presence(st)
    assert st.obsm["msi_presence"]["m0"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("container", ["dense", "csc", "dask", "dask of csr"])
def test_containers(mapped, container):
    expected = mapped.tables["st"].obsm["msi_presence"].copy()
    X = mapped.tables["msi"].X
    mapped.tables["msi"].X = {
        "dense": lambda: X.toarray(),
        "csc": X.tocsc,
        "dask": lambda: da.from_array(X.toarray(), chunks=(100, -1)),
        "dask of csr": lambda: da.from_array(X.toarray(), chunks=(100, -1)).map_blocks(sp.csr_matrix),
    }[container]()
    stmsi.pp.call_presence(mapped)
    pd.testing.assert_frame_equal(mapped.tables["st"].obsm["msi_presence"], expected)


def test_detected():
    st = _table([[0.0, 1e-6, np.nan], [5.0, 0.0, 1.0]])
    stmsi.pp.call_presence(st, method="detected")
    np.testing.assert_array_equal(st.obsm["msi_presence"], [[0, 1, np.nan], [1, 0, 1]])
    assert st.uns["msi"]["presence"]["method"] == "detected"


def test_otsu_is_scikit_images_per_section():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((80, 3)) < 0.4, rng.normal(2, 0.3, (80, 3)), rng.normal(8, 1, (80, 3))).clip(0)
    values[5, 0] = np.nan
    sample = np.repeat(["A", "B"], 40)
    values[40:] *= 10
    st = _table(values, sample)
    stmsi.pp.call_presence(st, method="otsu")
    for name in ("A", "B"):
        own = st.obsm["msi"].to_numpy()[sample == name].astype(float)
        expected = [threshold_otsu(c[np.isfinite(c)]) for c in own.T]
        np.testing.assert_allclose(_limits(st)[name], expected)
    assert np.isnan(st.obsm["msi_presence"].iloc[5, 0])


def test_a_majority_of_the_measured_area_has_to_detect(mapped):
    """Half of the pixels of each spot are silenced for one ion, two thirds for another; a spot of one pixel keeps what it has."""
    st, msi = mapped.tables["st"], mapped.tables["msi"]
    stmsi.pp.call_presence(mapped, method="majority")
    presence = st.obsm["msi_presence"]
    weights = stmsi.pp._mapping.spot_weights
    sample = [table.obs["sample"].astype(str).to_numpy() for table in (st, msi)]
    areas = weights.weigh(weights.paired_sections(mapped, st, msi, *sample), st.n_obs, msi.n_obs, "area", None).used
    share = (areas @ (msi.X.toarray() > 0)) / np.maximum(np.asarray(areas.sum(axis=1)), 1e-12)
    clear = np.abs(share - 0.5) > 1e-3
    covered = st.obsm["msi"].notna().to_numpy()
    np.testing.assert_array_equal((share > 0.5)[covered & clear], (presence == 1).to_numpy()[covered & clear])
    assert presence.isna().to_numpy()[~covered].all()
    assert 0 < (presence == 1).to_numpy().sum() < (st.obsm["msi"] > 0).to_numpy().sum()
    assert (_limits(st) == 0).to_numpy().all()


def test_a_majority_needs_the_pixels(mapped):
    with pytest.raises(
        ValueError, match=r"method='majority' looks at the pixels.*pass the SpatialData.*method='detected'"
    ):
        stmsi.pp.call_presence(mapped.tables["st"], method="majority")


def _off_tissue(sdata, scale=1.0):
    """The simulated sections with blank pixels of known noise, normalised and mapped again."""
    msi = sdata.tables["msi"]
    X = msi.layers["raw"].toarray() if "raw" in msi.layers else msi.X.toarray()
    rng = np.random.default_rng(0)
    blank = rng.permutation(msi.n_obs)[:120]
    X[blank] = rng.uniform(0, 2, (120, msi.n_vars)) * scale
    X[:, 0] = np.where(np.isin(np.arange(msi.n_obs), blank), 0, X[:, 0])
    msi.layers["raw"] = sp.csr_matrix(X.astype(np.float32))
    msi.obs["mine"] = ~np.isin(np.arange(msi.n_obs), blank)
    return blank


def test_limits_of_detection_come_from_blank_pixels(mapped):
    blank = _off_tissue(mapped)
    msi, st = mapped.tables["msi"], mapped.tables["st"]
    stmsi.pp.normalize_msi(mapped, tissue="mine")
    stmsi.pp.map_to_spots(mapped)
    stmsi.pp.call_presence(mapped)
    raw, sample = msi.layers["raw"].toarray().astype(float), msi.obs["sample"].astype(str).to_numpy()
    for name in dict.fromkeys(sample):
        rows = np.intersect1d(blank, np.flatnonzero(sample == name))
        scale = np.median(msi.obs["msi_scale"].to_numpy()[(sample == name) & msi.obs["mine"].to_numpy()])
        expected = np.log1p((raw[rows].mean(0) + 3 * raw[rows].std(0)) * scale)
        np.testing.assert_allclose(_limits(st)[name].iloc[1:], expected[1:], rtol=1e-5)
        assert st.uns["msi"]["presence"]["source"][name] == "off tissue"
        # an ion that no blank pixel has falls back to its noise floor
        above = msi.X[sample == name].toarray()[:, 0].astype(float)
        assert _limits(st)[name].iloc[0] == pytest.approx(np.quantile(above[above > 0], 0.01), rel=1e-6)


def test_a_raw_layer_is_compared_with_raw_limits(mapped):
    blank = _off_tissue(mapped)
    msi, st = mapped.tables["msi"], mapped.tables["st"]
    stmsi.pp.normalize_msi(mapped, tissue="mine")
    stmsi.pp.map_to_spots(mapped, layer="raw")
    stmsi.pp.call_presence(mapped)
    sample = msi.obs["sample"].astype(str).to_numpy()
    raw = msi.layers["raw"].toarray()[np.intersect1d(blank, np.flatnonzero(sample == "P1S1"))].astype(float)
    np.testing.assert_allclose(_limits(st)["P1S1"].iloc[1:], (raw.mean(0) + 3 * raw.std(0))[1:], rtol=1e-5)


def test_what_was_imputed_is_absent(mapped):
    st = mapped.tables["st"]
    expected = st.obsm["msi_presence"].copy()
    stmsi.pp.impute_dropout(mapped)
    stmsi.pp.call_presence(mapped)
    pd.testing.assert_frame_equal(st.obsm["msi_presence"], expected)


@pytest.mark.parametrize("method", ["lod", "detected", "otsu"])
def test_flat_silent_and_uncovered_columns_and_sections(method):
    values = np.array([[2.0, 0, np.nan], [2.0, 0, np.nan], [np.nan] * 3, [np.nan] * 3])
    st = _table(values, ["A", "A", "B", "B"])
    stmsi.pp.call_presence(st, method=method)
    presence = st.obsm["msi_presence"].to_numpy()
    np.testing.assert_array_equal(presence[:2], [[1, 0, np.nan]] * 2)
    assert np.isnan(presence[2:]).all()
    assert _limits(st).to_numpy().max() <= 2


@pytest.mark.parametrize("threshold", [1.0, {"m0": 1.0, "m1": 4.0}])
def test_given_thresholds(threshold):
    st = _table([[1.0, 1.0], [1.5, 4.5], [np.nan, 0.0]])
    stmsi.pp.call_presence(st, threshold=threshold)
    np.testing.assert_array_equal(st.obsm["msi_presence"], [[0, 0], [1, 1], [np.nan, 0]])
    assert _limits(st)["A"].tolist() == ([1, 4] if isinstance(threshold, dict) else [1, 1])
    assert st.uns["msi"]["presence"]["method"] == "threshold"


def test_keys_and_records(mapped):
    st = mapped.tables["st"]
    features = st.uns["msi"]["features"].copy()
    st.obsm["other"] = st.obsm["msi"].to_numpy()
    stmsi.pp.call_presence(st, metabolite_key="other", key_added="other_presence", method="detected")
    assert st.obsm["other_presence"].columns.tolist() == [str(j) for j in range(12)]
    pd.testing.assert_frame_equal(st.uns["msi"]["features"], features)
    assert "params" in st.uns["msi"]


def _duplicated():
    st = _table([[1.0, 2.0]])
    st.obsm["msi"].columns = ["m0", "m0"]
    return st


BAD = {
    "negative": (_table([[-1.0, np.nan]]), {}, ValueError, "Metabolite intensities contain 1 negative values"),
    "infinite": (_table([[np.inf, 1.0]]), {}, ValueError, "1 infinite values; remove or cap"),
    "empty": (_table([[1.0]])[:0].copy(), {}, ValueError, r"table is empty \(0 spots"),
    "duplicate": (_duplicated(), {}, ValueError, "Metabolite names must be unique; repeated: 'm0'. Rename the columns"),
    "method": (_table([[1.0]]), {"method": "lods"}, ValueError, "method='lods' is not known.*Did you mean 'lod'"),
    "threshold names": (_table([[1.0]]), {"threshold": {"x": 1.0}}, ValueError, "unknown 'x', missing 'm0'"),
    "threshold nan": (_table([[1.0]]), {"threshold": np.nan}, ValueError, "must be finite and not negative: 'm0'"),
    "threshold negative": (
        _table([[1.0]]),
        {"threshold": {"m0": -1}},
        ValueError,
        "must be finite and not negative: 'm0'",
    ),
    "key": (
        _table([[1.0]]),
        {"metabolite_key": "mis"},
        KeyError,
        "obsm has no 'mis'; found 'msi'. stmsi.pp.map_to_spots writes it",
    ),
    "sample_key": (_table([[1.0]]), {"sample_key": "x"}, KeyError, "no column 'x'; found 'sample'"),
}


@pytest.mark.parametrize(("st", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(st, kwargs, error, message):
    with pytest.raises(error, match=message):
        stmsi.pp.call_presence(st, **kwargs)
    assert list(st.obsm) == ["msi"]
    assert not st.uns


def test_a_correction_does_not_move_intensities_past_their_limits(mapped):
    before = mapped.tables["st"].obsm["msi_presence"].copy()
    stmsi.pp.correct_batch(mapped, method="rank")
    stmsi.pp.call_presence(mapped)
    pd.testing.assert_frame_equal(mapped.tables["st"].obsm["msi_presence"], before)


def test_presence_of_another_layer_has_its_own_name(mapped):
    st = mapped.tables["st"]
    before = st.obsm["msi_presence"].copy()
    stmsi.pp.map_to_spots(mapped, method="nearest", key_added="nn")
    stmsi.pp.call_presence(mapped, metabolite_key="nn", method="otsu")
    pd.testing.assert_frame_equal(st.obsm["msi_presence"], before)
    assert st.obsm["nn_presence"].stack().dropna().isin([0, 1]).all()
    stmsi.pp.map_to_spots(mapped, method="nearest", key_added="nn")
    assert "nn_presence" not in st.obsm, "called from the earlier mapping"
