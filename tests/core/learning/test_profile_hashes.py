"""The same profile has the same hash, however it is stored and scaled; others have other ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stmsi._core.learning.profile_hashes import FEWEST, place_hashes, profile_hashes

N_SPOTS, N_GENES = 300, 60
ALL = [np.arange(N_GENES)]


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (N_SPOTS, N_GENES)).astype(np.float32))


def test_different_profiles_have_different_hashes(counts):
    ((hashes, known),) = profile_hashes(counts, ALL)
    assert known.all()
    assert len(np.unique(hashes)) == N_SPOTS
    changed = counts.copy()
    changed.data[0] += 5
    ((other, _),) = profile_hashes(changed, ALL)
    assert (other != hashes).tolist() == [True] + [False] * (N_SPOTS - 1)


def _normalised(counts):
    dense = counts.toarray()
    return sp.csr_matrix((1e4 * dense / dense.sum(axis=1, keepdims=True)).astype(np.float32))


def _unsorted(counts):
    """The entries of each spot from the last to the first."""
    at = np.concatenate(
        [np.arange(b - 1, a - 1, -1) for a, b in zip(counts.indptr[:-1], counts.indptr[1:], strict=True)]
    )
    return sp.csr_matrix((counts.data[at], counts.indices[at], counts.indptr), shape=counts.shape)


def _with_zeros(counts):
    rows, columns = np.indices(counts.shape)
    return sp.csr_matrix((counts.toarray().ravel(), (rows.ravel(), columns.ravel())), shape=counts.shape)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.astype(np.int32),
        lambda c: c.astype(np.float64) * 0.1,
        _normalised,
        lambda c: _normalised(c).log1p(),
        lambda c: _normalised(c).log1p().expm1(),
        lambda c: _normalised(c).log1p().astype(np.float64),
        _unsorted,
        _with_zeros,
    ],
)
def test_what_keeps_the_order_of_genes_in_a_spot_keeps_the_hash(counts, change):
    ((hashes, known),), ((other, still),) = profile_hashes(counts, ALL), profile_hashes(change(counts), ALL)
    np.testing.assert_array_equal(other, hashes)
    np.testing.assert_array_equal(still, known)


def test_a_hash_depends_on_its_set_of_genes_alone(counts):
    sets = [np.arange(30), np.arange(30, N_GENES)]
    both = profile_hashes(counts, sets)
    cut = counts.tolil()
    cut[:, 30:] = 0
    alone = profile_hashes(sp.csr_matrix(cut), sets)
    np.testing.assert_array_equal(alone[0][0], both[0][0])
    assert not alone[1][1].any()
    assert profile_hashes(counts, []) == []


def test_profiles_with_hardly_any_genes_are_no_marks():
    counts = np.zeros((3, N_GENES))
    counts[1, : FEWEST - 1] = counts[2, :FEWEST] = 1
    ((hashes, known),) = profile_hashes(sp.csr_matrix(counts), ALL)
    assert known.tolist() == [False, False, True]
    assert hashes[0] == 0


def test_places_know_name_section_and_position():
    names, section = pd.Index(["a", "b", "a", "a"]), np.array(["s", "s", "t", "s"], dtype=object)
    xy = np.array([[0.0, 1], [0, 1], [0, 1], [1, 0]])
    assert len(np.unique(place_hashes(names, section, xy))) == 4
    assert len(np.unique(place_hashes(names, section, None))) == 3
    assert len(np.unique(place_hashes(names, None, None))) == 2
    single = place_hashes(names.astype("category").astype(str), section, xy.astype(np.float32))
    np.testing.assert_array_equal(single, place_hashes(names, section, xy))


def test_hashes_are_those_that_saved_models_hold():
    """They are kept in files: another version must find the same."""
    ((hashes, _),) = profile_hashes(sp.csr_matrix(np.arange(1.0, 21)[None]), [np.arange(20)])
    assert hashes.tolist() == [15_290_122_374_374_759_578]
    assert place_hashes(pd.Index(["AAAC-1"]), np.array(["P1"], object), np.array([[1.5, 2.5]])).tolist() == [
        3_142_194_600_262_251_330
    ]
