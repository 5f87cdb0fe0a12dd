import numpy as np
import pandas as pd
import pytest

import stmsi
from stmsi._core.metrics.reliability import fisher_bounds, mean_and_error, spearman_brown


@pytest.fixture
def halves(st):
    """Halves with as much noise as signal: a reliability of 2/3 of their mean, a ceiling of 0.816."""
    rng = np.random.default_rng(0)
    truth = rng.normal(5, 1, (st.n_obs, 3))
    names = ["a", "b", "c"]
    parts = [pd.DataFrame(truth + rng.normal(0, 1, truth.shape), st.obs_names, names) for _ in range(2)]
    st.obsm["msi_half_1"], st.obsm["msi_half_2"] = parts
    st.obsm["msi"] = (parts[0] + parts[1]) / 2
    st.uns["truth"] = truth
    return st


@pytest.mark.once
def test_the_ceiling_is_what_the_truth_reaches(halves) -> None:
    table = stmsi.tl.noise_ceiling(halves)
    assert len(table) == 9
    assert table["ceiling"].mean() == pytest.approx(np.sqrt(2 / 3), abs=0.03)
    reached = [np.corrcoef(halves.uns["truth"][:, m], halves.obsm["msi"].iloc[:, m])[0, 1] for m in range(3)]
    assert np.mean(reached) == pytest.approx(table["ceiling"].mean(), abs=0.03)
    assert (table["ceiling_lower"] < table["ceiling"]).all()
    assert (table["ceiling"] < table["ceiling_upper"]).all()
    pd.testing.assert_frame_equal(halves.uns["msi_noise_ceiling"]["table"], table)


def test_constant_metabolites_and_lone_pixels_have_none(halves) -> None:
    for key in ("msi_half_1", "msi_half_2"):
        halves.obsm[key]["a"] = 0.0
    halves.obsm["msi_half_2"].loc[(halves.obs["sample"] == "P1S1").to_numpy(), "b"] = np.nan
    table = stmsi.tl.noise_ceiling(halves, key_added=None).set_index(["sample", "metabolite"])
    assert table.xs("a", level="metabolite")["ceiling"].isna().all()
    assert np.isnan(table.loc[("P1S1", "b"), "ceiling"])
    assert table.loc[("P1S1", "b"), "n"] == 0
    assert table.loc[("P2S1", "b"), "ceiling"] > 0.6


def test_bad_input(halves) -> None:
    before = dict(halves.uns)
    bare = halves.copy()
    del bare.obsm["msi_half_1"]
    with pytest.raises(KeyError, match="replicates=True"):
        stmsi.tl.noise_ceiling(bare)
    halves.obsm["msi_half_2"][:] = np.nan
    with pytest.raises(ValueError, match="takes one pixel only"):
        stmsi.tl.noise_ceiling(halves)
    with pytest.raises(ValueError, match="needs the pairs"):
        stmsi.tl.noise_ceiling(halves, method="adjacent")
    with pytest.raises(ValueError, match="No section 'X'"):
        stmsi.tl.noise_ceiling(halves, method="adjacent", adjacent=[("P1S1", "X")])
    assert set(halves.uns) == set(before)


def test_adjacent_sections(halves) -> None:
    one = halves[halves.obs["sample"] == "P1S1"].copy()
    rng = np.random.default_rng(1)
    truth = rng.normal(5, 1, one.n_obs)
    parts = []
    for name in ("A1", "A2"):
        part = one.copy()
        part.obs["sample"] = name
        part.obs_names = [f"{name}_{i}" for i in range(one.n_obs)]
        part.obsm = {
            "spatial": one.obsm["spatial"] + rng.normal(0, 5, (one.n_obs, 2)),
            "msi": pd.DataFrame({"a": truth + rng.normal(0, 1, one.n_obs)}, index=part.obs_names),
        }
        parts.append(part)
    import anndata as ad

    both = ad.concat(parts)
    table = stmsi.tl.noise_ceiling(both, adjacent=[("A1", "A2")])
    assert table["sample"].tolist() == ["A1", "A2"]
    assert table["reliability"].iloc[0] == pytest.approx(0.5, abs=0.2)
    both.obsm["spatial"][(both.obs["sample"] == "A2").to_numpy()] += 1e6
    with pytest.raises(ValueError, match="Register the sections"):
        stmsi.tl.noise_ceiling(both, adjacent=[("A1", "A2")])


def test_a_copy_leaves_the_data_alone(halves) -> None:
    out = stmsi.tl.noise_ceiling(halves, copy=True)
    assert "msi_noise_ceiling" not in halves.uns
    table = stmsi.tl.noise_ceiling(halves, key_added=None)
    pd.testing.assert_frame_equal(out.uns["msi_noise_ceiling"]["table"], table)
    pd.testing.assert_frame_equal(stmsi.tl.noise_ceiling(halves, key_added=None, copy=True), table)


def test_formulas() -> None:
    np.testing.assert_allclose(spearman_brown(np.array([0.5, -0.2, 1.0])), [2 / 3, 0, 1])
    low, high = fisher_bounds(np.array([0.5]), np.array([103]))
    np.testing.assert_allclose([low[0], high[0]], [0.3393, 0.6323], atol=1e-3)
    mean, error, k, lower = mean_and_error(np.array([[1.0, 2.0], [3.0, np.nan]]))
    np.testing.assert_allclose(mean, [2, 2])
    np.testing.assert_allclose(error, [1, np.nan])
    assert k.tolist() == [2, 1]
    assert lower[0] == pytest.approx(2 - 3.0777, abs=1e-3)


def test_a_ceiling_goes_with_the_mapping_it_came_from(toy):
    stmsi.pp.align(toy)
    stmsi.pp.map_to_spots(toy, replicates=True)
    stmsi.tl.noise_ceiling(toy)
    stmsi.pp.map_to_spots(toy, key_added="other")
    assert "msi_noise_ceiling" in toy.tables["st"].uns
    stmsi.pp.map_to_spots(toy, agg="median")
    assert "msi_noise_ceiling" not in toy.tables["st"].uns
