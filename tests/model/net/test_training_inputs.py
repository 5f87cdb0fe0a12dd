"""Parts of the net that stand alone: the ridge path as weights on genes."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.arrays_on_disk import Derived, DiskArray, derived
from stmsi._core.learning.expression_space import log_normalize
from stmsi._core.learning.shared_ridge import HeldOutTruth, fit_shared_ridge
from stmsi.model.net import _linear_path
from stmsi.model.net._linear_path import linear_path
from stmsi.model.shared._spot_features import SpotFeatures
from stmsi.model.shared._spot_input import Spots


def test_the_linear_path_is_the_ridge_regression_with_its_slope():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(rng.lognormal(1, 1, 20) * rng.lognormal(0, 0.5, (120, 20))), dtype=np.float32)
    own = pd.DataFrame({"size": rng.normal(size=120)})
    spots = Spots(pd.RangeIndex(120).astype(str), counts, features={"image": own})
    features = SpotFeatures(n_top_genes=15, n_components=8).fit(spots)
    groups = units = np.repeat(np.arange(4), 30)
    log = log_normalize(counts).toarray()[:, features.own.selected].astype(np.float64)
    standard = (log - features.own.mean) / features.own.scale
    # one metabolite that genes tell, one that is noise: its slope is far below 1
    intensity = np.column_stack([standard[:, 0] + own["size"] + 0.1 * rng.normal(size=120), rng.normal(size=120)])
    presence = (intensity > 0).astype(float)
    presence[:5] = np.nan

    weight, bias, _ = linear_path(features, spots, presence, intensity, groups, units, n_slots=17)

    Z = np.hstack([features.components(spots), features.extra["image"].transform(spots.features, "image")])
    expected, slopes = [], []
    for y in (presence, intensity):
        ridge = fit_shared_ridge(Z.astype(np.float32), y, groups, units)
        slopes.append(HeldOutTruth.of(y, groups, units).slopes(ridge.held_out))
        mean = np.nanmean(y, axis=0)
        expected.append(mean + slopes[-1] * (ridge.predict(Z) - mean))
    assert slopes[1][0] > 0.9
    assert slopes[1][1] < slopes[1][0] - 0.05
    inputs = np.hstack([standard, np.zeros((120, 2)), Z[:, -1:]])
    expected = np.hstack(expected)
    expected[:, :2] = 4 * (expected[:, :2] - np.nanmean(presence, axis=0))
    np.testing.assert_allclose(inputs @ weight + bias, expected, atol=1e-4)


def test_the_ridge_regressions_of_the_path_are_the_same_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("stmsi._core.arrays_on_disk._AT_ONCE", 500)
    monkeypatch.setattr("stmsi._core.arrays_on_disk._FEWEST_ROWS", 7)
    rng = np.random.default_rng(0)
    F = rng.normal(size=(240, 6)).astype(np.float32)
    y = F[:, :5].astype(float) * [1, 2, 0.3, 1, 1] + rng.normal(size=(240, 5))
    y[:60, 1] = np.nan
    y[:, 3] = 4.0  # does not vary
    y[4:, 4] = np.nan  # known in too few
    groups = np.repeat(np.arange(4), 60)
    units = np.repeat(np.arange(8), 30)
    stored = DiskArray(tmp_path, F.shape, np.float32)
    stored[:, :] = F
    there = Derived(y.shape, lambda rows, columns: y[rows, columns])
    targets = derived(lambda values: 2 * values, there)

    found = _linear_path._shared_ridge(stored, targets, groups, units, tmp_path)
    expected = _linear_path._shared_ridge(F, 2 * y, groups, units, None)

    assert isinstance(found[-1], DiskArray)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=5e-6 * np.nanmax(np.abs(b)))
    assert not expected[0][:, 3:].any()
