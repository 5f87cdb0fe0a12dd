import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

from stmsi._core.mapping import pixel_weights as module
from stmsi._core.mapping.pixel_weights import (
    Spread,
    blocks,
    dominant,
    effective_number,
    normalised,
    weighted_median,
    weighted_sums,
    weighted_variance,
)

FORMATS = [
    "dense", "csr", "csc", "coo", "array", "dask", "dask of csr", "dask of columns", "h5", "h5 csr", "h5 csc",
]  # fmt: skip


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return (rng.lognormal(2, 1, (60, 7)) * (rng.random((60, 7)) < 0.6)).astype(np.float32)


@pytest.fixture
def weights():
    """Twenty spots of none to many pixels."""
    rng = np.random.default_rng(1)
    dense = rng.random((20, 60)) * (rng.random((20, 60)) < np.linspace(0.02, 0.5, 20)[:, None])
    dense[3] = 0
    dense[4] = np.eye(60)[17]
    return sp.csr_matrix(dense)


@pytest.fixture
def stored(values, tmp_path):
    """The values in any format."""
    file = h5py.File(tmp_path / "x.h5", "w")

    def make(kind):
        if kind.startswith("h5 "):
            write_elem(file, "x", sp.csr_matrix(values) if kind == "h5 csr" else sp.csc_matrix(values))
            return sparse_dataset(file["x"])
        return {
            "dense": lambda: values,
            "csr": lambda: sp.csr_matrix(values),
            "csc": lambda: sp.csc_matrix(values),
            "coo": lambda: sp.coo_matrix(values),
            "array": lambda: sp.csr_array(values),
            "dask": lambda: da.from_array(values, chunks=(13, 3)),
            "dask of csr": lambda: da.from_array(values, chunks=(13, -1)).map_blocks(sp.csr_matrix),
            "dask of columns": lambda: da.from_array(values, chunks=(-1, 2)),
            "h5": lambda: file.create_dataset("x", data=values, chunks=(8, 4)),
        }[kind]()

    yield make
    file.close()


@pytest.fixture(params=["one block", "many blocks"])
def budget(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(module, "_BUDGET", 300)


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_tile_the_matrix(kind, stored, values, budget):
    seen = np.zeros(values.shape, dtype=int)
    for rows, cols, block in blocks(stored(kind)):
        dense = block.toarray() if sp.issparse(block) else block
        assert not sp.issparse(block) or block.format == "csr"
        np.testing.assert_array_equal(dense, values[rows, cols])
        seen[rows, cols] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_sums(kind, stored, values, weights, budget):
    found = weighted_sums(weights, stored(kind))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, weights.toarray() @ values, rtol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_variance(kind, stored, values, weights, budget):
    x = stored(kind)
    found, effective = weighted_variance(weights, x, weighted_sums(normalised(weights), x))
    w = weights.toarray()
    for i in range(len(w)):
        if (w[i] > 0).sum() < 2:
            assert np.isnan(found[i]).all()
            continue
        share = w[i] / w[i].sum()
        deviation = values - share @ values
        np.testing.assert_allclose(found[i], share @ deviation**2 / (1 - (share**2).sum()), rtol=1e-4)
        assert effective[i] == pytest.approx(1 / (share**2).sum())
    assert effective[3] == 0
    assert effective[4] == 1


def test_equal_weights_give_the_usual_variance(values):
    w = sp.csr_matrix(np.ones((1, 60)))
    found, effective = weighted_variance(w, values, weighted_sums(normalised(w), values))
    np.testing.assert_allclose(found[0], values.var(axis=0, ddof=1), rtol=1e-5)
    assert effective[0] == 60


def test_a_small_variance_on_a_high_level():
    values = np.float32(1e4) + np.tile([0, 1], 30).astype(np.float32)[:, None]
    w = sp.csr_matrix(np.ones((1, 60)))
    found, _ = weighted_variance(w, values, weighted_sums(normalised(w), values))
    np.testing.assert_allclose(found, values.astype(float).var(ddof=1), rtol=1e-3)


@pytest.mark.parametrize("kind", FORMATS)
def test_median(kind, stored, values, weights, budget):
    found = weighted_median(weights, stored(kind))
    for i, w in enumerate(weights.toarray()):
        for m in range(values.shape[1]):
            assert found[i, m] == pytest.approx(_median(values[w > 0, m], w[w > 0]))


def _median(x, w):
    """The value that leaves at most half of the weight on either side."""
    if len(x) == 0:
        return 0
    fits = [v for v in x if w[x < v].sum() <= w.sum() / 2 + 1e-12 and w[x > v].sum() <= w.sum() / 2 + 1e-12]
    return (min(fits) + max(fits)) / 2


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_equal_weights_give_the_usual_median(values, n):
    w = sp.csr_matrix(np.where(np.arange(60) < n, 0.3, 0)[None])
    np.testing.assert_allclose(weighted_median(w, values)[0], np.median(values[:n], axis=0), rtol=1e-6)


@pytest.mark.parametrize("function", [weighted_sums, weighted_median])
def test_every_block_is_checked_also_those_without_weight(function, values, monkeypatch):
    monkeypatch.setattr(module, "_BUDGET", 300)
    seen = []
    function(sp.csr_matrix((2, 60)), da.from_array(values, chunks=(20, -1)), lambda block: seen.append(len(block)))
    assert seen == [20, 20, 20]


def test_effective_number():
    w = sp.csr_matrix([[1.0, 1, 1, 1], [5, 0, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0]])
    np.testing.assert_allclose(effective_number(w), [4, 1, 0, 16 / 10])


def test_dominant():
    w = sp.csr_matrix([[1.0, 3, 0, 0], [0, 0, 0, 0], [0, 2, 0, 2], [0, 0, 0, 5]])
    column, share = dominant(w)
    assert column.tolist() == [1, -1, 1, 3]
    np.testing.assert_allclose(share, [0.75, 0, 0.5, 1])


def test_spread():
    rng = np.random.default_rng(2)
    stack = (100 + rng.standard_normal((9, 5, 3))).astype(np.float32)
    rows = rng.random((9, 5)) < 0.7
    rows[:, 1], rows[:, 2] = False, np.arange(9) == 4
    spread = Spread((5, 3))
    for values, own in zip(stack, rows, strict=True):
        spread.add(np.where(own[:, None], values, np.nan), own)
    found = spread.std()
    assert np.isnan(found[[1, 2]]).all()
    for i in (0, 3, 4):
        np.testing.assert_allclose(found[i], stack[rows[:, i], i].std(axis=0, ddof=1), rtol=1e-3)
