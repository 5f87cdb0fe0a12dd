import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import stmsi
from stmsi._core.metrics.realism import present_quantiles, two_sample_auc


@pytest.fixture
def drawn(st):
    """Measured values, and a copy of them with a little noise."""
    rng = np.random.default_rng(0)
    measured = st.obsm["msi"].fillna(0)
    noisy = (measured * np.exp(0.01 * rng.standard_normal(measured.shape))).where(st.obsm["msi_presence"] > 0, 0)
    st.obsm["msi_sample_0"] = noisy
    st.obsm["flat"] = measured * 0 + measured.mean()
    return st


def test_a_copy_is_real_and_a_mean_is_not(drawn) -> None:
    same = stmsi.experimental.realism(drawn, "msi_sample_0")
    flat = stmsi.experimental.realism(drawn, "flat")
    auc = [t.loc[t["statistic"] == "auc", "synthetic"].item() for t in (same, flat)]
    assert auc[0] < 0.65
    assert auc[1] > 0.95
    close = same[~same["statistic"].isin(["auc", "ks"])]
    np.testing.assert_allclose(close["measured"], close["synthetic"], rtol=0.2, atol=0.1)
    assert flat.loc[flat["statistic"] == "morans_i", "synthetic"].isna().all()


def test_the_table_is_tidy(drawn) -> None:
    table = stmsi.experimental.realism(drawn, ["msi_sample_0", "flat"], classifier=False)
    assert list(table) == ["statistic", "sample", "draw", "metabolite", "other", "at", "measured", "synthetic"]
    assert set(table["draw"]) == {0, 1}
    size = table[table["draw"] == 0].groupby("statistic").size()
    assert size["prevalence"] == 3 * 12
    assert size["correlation"] == 3 * 66
    assert size["quantile"] == 3 * 12 * 10
    one = table[(table["sample"] == "P1S1") & (table["draw"] == 0) & (table["statistic"] == "prevalence")]
    rows = (drawn.obs["sample"] == "P1S1") & drawn.obsm["msi"].notna().all(axis=1)
    expected = (drawn.obsm["msi_presence"][rows] > 0).mean()
    np.testing.assert_allclose(one["measured"], expected[one["metabolite"]])


def test_frames_and_arrays_are_read_by_name(drawn) -> None:
    import xarray as xr

    frame = drawn.obsm["msi_sample_0"].iloc[::-1, ::-1]
    array = xr.DataArray(
        frame.to_numpy()[None],
        dims=("draw", "spot", "metabolite"),
        coords={"spot": frame.index, "metabolite": frame.columns},
    )
    expected = stmsi.experimental.realism(drawn, "msi_sample_0", classifier=False)
    for given in (frame, array):
        pd.testing.assert_frame_equal(stmsi.experimental.realism(drawn, given, classifier=False), expected)


def test_bad_input(drawn) -> None:
    with pytest.raises(ValueError, match="No metabolite in common"):
        stmsi.experimental.realism(drawn, drawn.obsm["msi_sample_0"].add_prefix("x"))
    with pytest.raises(ValueError, match="no name in common"):
        stmsi.experimental.realism(drawn, drawn.obsm["msi_sample_0"].add_prefix("x", axis=0))
    with pytest.raises(ValueError, match="3 spots have both"):
        stmsi.experimental.realism(drawn, drawn.obsm["msi_sample_0"][drawn.obsm["msi"].notna().all(axis=1)].iloc[:3])
    with pytest.raises(KeyError, match=r"sample_metabolites writes draws"):
        stmsi.experimental.realism(drawn, "nothing")
    with pytest.raises(ValueError, match="at least one synthetic"):
        stmsi.experimental.realism(drawn, [])


def test_auc_of_shifted_and_of_equal_values() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((300, 4)), rng.standard_normal((300, 4))
    groups = np.arange(300) // 30
    assert two_sample_auc(real, fake, None, groups) == pytest.approx(0.5, abs=0.1)
    shifted = two_sample_auc(real, fake + np.array([0.8, 0, 0, 0]), None, groups)
    best = roc_auc_score(np.repeat([0, 1], 300), np.concatenate([real[:, 0], fake[:, 0] + 0.8]))
    assert 0.6 < shifted <= best + 0.02


def test_quantiles_without_nan() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((50, 3))
    values[values < 0.3] = np.nan
    values[:, 2] = np.nan
    found = present_quantiles(values, (0.1, 0.5))
    np.testing.assert_allclose(found[:, :2], np.nanquantile(values[:, :2], (0.1, 0.5), axis=0))
    assert np.isnan(found[:, 2]).all()
