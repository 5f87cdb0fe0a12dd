import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi

NAMES = ["18:1/16:0", "PC(34:1)", "18:1_16:0"]
SPOTS = [f"bc{i}" for i in range(5)]
VALUES = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 4.0], [5.0, 6.0, 0.0]])


@pytest.fixture
def st():
    X = np.random.default_rng(0).poisson(3, (5, 4)).astype(np.float32)
    return AnnData(X, obs=pd.DataFrame(index=SPOTS), obsm={"spatial": np.arange(10.0).reshape(5, 2)})


@pytest.fixture
def frame():
    # three of the spots, in another order
    return pd.DataFrame(VALUES, index=["bc3", "bc0", "bc1"], columns=NAMES)


def test_everything_that_mapping_writes(st, frame, tmp_path):
    features = pd.DataFrame({"mz": [760.585, 522.2], "adduct": ["[M+H]+", None]}, index=["PC(34:1)", "18:1/16:0"])
    before = frame.copy()
    stmsi.pp.add_metabolites(st, frame, features)
    pd.testing.assert_frame_equal(frame, before)
    table = stmsi.get.feature_table(st)
    assert table["name"].tolist() == NAMES
    assert table["mz"].fillna(0).tolist() == [522.2, 760.585, 0]
    assert table["adduct"].tolist() == ["", "[M+H]+", ""]
    st.write_h5ad(tmp_path / "a.h5ad")
    for t in (st, ad.read_h5ad(tmp_path / "a.h5ad")):
        msi, there = t.obsm["msi"], t.obsm["msi_presence"]
        assert list(msi.columns) == list(there.columns) == list(table.index)
        assert len({c.lower() for c in msi}) == 3
        np.testing.assert_array_equal(msi.loc[["bc3", "bc0", "bc1"]], VALUES)
        assert msi.loc[["bc2", "bc4"]].isna().all(axis=None)
        np.testing.assert_array_equal(there.loc[["bc3", "bc0", "bc1"]], VALUES > 0)
        assert there.loc[["bc2", "bc4"]].isna().all(axis=None)
        assert t.obs["msi_coverage"].tolist() == [1, 1, 0, 1, 0]
        assert t.uns["msi"]["params"]["method"] == "given"


@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
def test_an_anndata_of_the_same_spots(st, frame, container):
    var = pd.DataFrame({"mz": [1.0, 2.0, 3.0]}, index=NAMES)
    given = AnnData(container(VALUES), obs=pd.DataFrame(index=frame.index), var=var)
    stmsi.pp.add_metabolites(st, given)
    np.testing.assert_array_equal(st.obsm["msi"].loc[frame.index], VALUES)
    assert st.uns["msi"]["features"]["mz"].tolist() == [1, 2, 3]


def test_an_obsm_and_masses_as_names(st):
    st.obsm["mine"] = pd.DataFrame(np.ones((5, 2)), index=SPOTS, columns=[104.107, 760.585])
    stmsi.pp.add_metabolites(st, "mine")
    assert st.obsm["msi"].columns.tolist() == ["104.107", "760.585"]
    assert st.uns["msi"]["features"]["mz"].tolist() == [104.107, 760.585]


def test_a_second_measurement_of_the_section(st, frame):
    """Both polarities: each has its own spots and ions, and one name may be in both."""
    stmsi.pp.add_metabolites(st, frame, pd.DataFrame({"adduct": "[M+H]+"}, index=NAMES))
    other = pd.DataFrame({"PC(34:1)": [7.0, 8.0]}, index=["bc1", "bc2"])
    stmsi.pp.add_metabolites(st, other, pd.DataFrame({"adduct": ["[M-H]-"]}, index=["PC(34:1)"]), append=True)
    table = stmsi.get.feature_table(st)
    assert table["name"].tolist() == [*NAMES, "PC(34:1)"]
    assert table["adduct"].tolist() == ["[M+H]+"] * 3 + ["[M-H]-"]
    msi = st.obsm["msi"]
    assert list(msi.columns) == list(table.index)
    np.testing.assert_array_equal(msi.iloc[:, :3].loc[frame.index], VALUES)
    np.testing.assert_array_equal(msi.iloc[:, 3], [np.nan, 7, 8, np.nan, np.nan])
    assert st.obs["msi_coverage"].tolist() == [1, 1, 1, 1, 0]
    assert st.obsm["msi_presence"].iloc[:, 3].isna().tolist() == [True, False, False, True, True]
    stmsi.pp.add_metabolites(st, other)
    assert st.obsm["msi"].shape[1] == 1, "without append= they are replaced"


def test_beside_mapped_metabolites(mapped):
    st = mapped.tables["st"]
    before, coverage = st.obsm["msi"].copy(), st.obs["msi_coverage"].copy()
    presence = st.obsm["msi_presence"].copy()
    stmsi.pp.add_metabolites(mapped, pd.DataFrame({"a/b": 1.0}, index=st.obs_names[:9]), append=True)
    pd.testing.assert_frame_equal(st.obsm["msi"].iloc[:, :-1], before)
    assert (st.obs["msi_coverage"].iloc[:9] == 1).all()
    pd.testing.assert_series_equal(st.obs["msi_coverage"].iloc[9:], coverage.iloc[9:])
    # what was called from pixels stays called from pixels
    pd.testing.assert_frame_equal(st.obsm["msi_presence"].iloc[:, :-1], presence)
    assert st.uns["msi"]["detection_limit"].index.tolist() == st.obsm["msi"].columns.tolist()
    assert st.uns["msi"]["params"]["layer"] == "X"
    assert st.uns["msi"]["params"]["appended"] == 1
    stmsi.pp.impute_dropout(st)
    stmsi.pp.add_metabolites(st, pd.DataFrame({"a/b": 2.0}, index=st.obs_names[:9]), append=True)
    assert st.obsm["msi_observed"].columns.tolist() == st.obsm["msi"].columns.tolist()
    stmsi.tl.predict_metabolites(st, "mean")


def test_a_model_learns_from_it(st, frame):
    sdata = stmsi.datasets.toy()
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata)
    st = sdata.tables["st"].copy()
    matched = st.obsm["msi"].rename(columns=lambda c: f"{c}/x")
    for key in [k for k in st.obsm if k.startswith("msi")]:
        del st.obsm[key]
    del st.uns["msi"]
    stmsi.pp.add_metabolites(st, matched)
    stmsi.tl.predict_metabolites(st, "ridge")
    assert st.obsm["msi_pred"].shape == matched.shape


def test_normalised_on_the_spots(st, frame):
    stmsi.pp.add_metabolites(st, frame)
    before = st.obsm["msi"].copy()
    stmsi.pp.normalize_msi(st, metabolite_key="msi", log1p=False, target=1.0)
    share = before.div(before.sum(axis=1), axis=0).where(before.notna())
    pd.testing.assert_frame_equal(st.obsm["msi"], share.astype(np.float32), rtol=1e-6)
    pd.testing.assert_frame_equal(st.obsm["msi_raw"], before)
    assert "msi_presence" not in st.obsm
    assert st.uns["msi"]["params"]["normalize_msi"]["method"] == "tic"
    assert stmsi.get.feature_table(st)["name"].tolist() == NAMES
    once = st.obsm["msi"].copy()
    stmsi.pp.normalize_msi(st, metabolite_key="msi", log1p=False, target=1.0)
    pd.testing.assert_frame_equal(st.obsm["msi"], once)
    stmsi.pp.call_presence(st)


def _frame(values=VALUES, index=("bc3", "bc0", "bc1"), columns=NAMES):
    return pd.DataFrame(values, index=list(index), columns=list(columns))


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (
            _frame(index=range(3)),
            {},
            ValueError,
            "No row of the metabolites is named like a spot: '0', '1', '2' against 'bc0'",
        ),
        (_frame(VALUES[[0, 1, 2, 0, 1]], range(5)), {}, ValueError, r"call frame.set_index\(st.obs_names\)"),
        (_frame(index=["bc0", "bc0", "bc1"]), {}, ValueError, "must be unique; repeated: 'bc0'"),
        (_frame(columns=["a", "a", "b"]), {}, ValueError, "Metabolite names must be unique; repeated: 'a'"),
        (_frame(-VALUES), {}, ValueError, r"no z-scores or residuals\) contain .* negative"),
        (_frame(VALUES.astype(str)), {}, ValueError, "must be numbers; found other values in the columns '18:1/16:0'"),
        (_frame(VALUES * np.nan), {}, ValueError, "no spot is covered"),
        (_frame().iloc[:, :0], {}, ValueError, "has no columns"),
        (_frame(), {"features": pd.DataFrame({"mz": [1.0]}, index=["x"])}, ValueError, "features names none of the"),
        (_frame(), {"presence": "maybe"}, ValueError, "presence='maybe' is not known"),
        (_frame(), {"key_added": "a/b"}, ValueError, "key_added='a/b' cannot be stored"),
        ("mine", {}, KeyError, "obsm has no 'mine'; found 'spatial'"),
        (VALUES, {}, TypeError, r"Wrap an array: pd.DataFrame\(array, index=st.obs_names"),
    ],
)
def test_errors_name_the_remedy_and_change_nothing(st, given, options, error, message):
    with pytest.raises(error, match=message):
        stmsi.pp.add_metabolites(st, given, **options)
    assert list(st.obsm) == ["spatial"]
    assert not st.uns


def test_rows_that_are_no_spots_are_told(st, frame, caplog):
    stmsi.pp.add_metabolites(st, frame.rename(index={"bc3": "elsewhere"}))
    assert "1 of 3 rows are no spots and are left out: 'elsewhere'" in caplog.text
    assert int(st.obs["msi_coverage"].sum()) == 2


def test_both_polarities_of_one_section():
    """The way that pp.combine names: each measurement is aligned and mapped by itself."""
    xy = np.array([[100.0 * i + 50 * (j % 2), 86.6 * j] for j in range(3) for i in range(3)])
    st = AnnData(np.ones((9, 3)), obs=pd.DataFrame(index=[f"bc{i}" for i in range(9)]), obsm={"spatial": xy})
    row, col = (a.ravel() for a in np.indices((6, 6)))
    done = {}
    for mode, shift in (("pos", 0), ("neg", 60)):
        obs = pd.DataFrame({"row": row, "col": col}, index=[f"p{i}" for i in range(36)])
        msi = AnnData(np.full((36, 1), shift + 1.0), obs=obs, var=pd.DataFrame({"mz": [500.25]}, index=["lipid"]))
        sdata = stmsi.pp.combine({"A": st}, {"A": msi}, pixel_size=50)
        stmsi.pp.align(sdata, transformation={"A": np.array([[1, 0, shift - 30], [0, 1, -30], [0, 0, 1]])})
        stmsi.pp.map_to_spots(sdata)
        stmsi.pp.call_presence(sdata)
        done[mode] = sdata
    other = done["neg"].tables["st"].obsm["msi"]
    features = stmsi.get.feature_table(done["neg"])
    stmsi.pp.add_metabolites(done["pos"], other, features, append=True)
    both = done["pos"].tables["st"].obsm["msi"]
    assert both.columns.tolist() == ["lipid", "lipid_2"]
    assert stmsi.get.feature_table(done["pos"])["name"].tolist() == ["lipid", "lipid"]
    assert (both["lipid"].dropna() == 1).all()
    np.testing.assert_array_equal(both["lipid_2"], other["lipid"])
