import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.mapping.group_means import group_means


def test_means_and_shares_are_those_of_pandas():
    rng = np.random.default_rng(0)
    values = rng.poisson(1, (40, 6)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    group = rng.integers(-1, 4, 40)
    group[group == 2] = 1  # a group without rows
    values[group == 0, 3] = np.nan
    mean, share = group_means(sp.csr_matrix(values), group, 4)
    frame = pd.DataFrame(values.astype(float))[group >= 0].groupby(group[group >= 0])
    np.testing.assert_allclose(mean, frame.mean().reindex(range(4)))
    expected = (frame.agg(lambda v: (v > 0).sum()) / frame.count()).reindex(range(4))
    np.testing.assert_allclose(share, expected)
    assert np.isnan(mean[[0, 2, 2], [3, 0, 5]]).all()
