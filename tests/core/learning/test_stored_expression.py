"""What stored numbers are, on counts whose history is known."""

import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.learning.expression_space import log_normalize
from stmsi._core.learning.stored_expression import StoredKind, stored_kinds


@pytest.fixture
def counts() -> np.ndarray:
    """60 spots x 200 genes, depths that differ, a few genes above 100."""
    rng = np.random.default_rng(0)
    rate = rng.lognormal(0, 1.5, 200) * rng.lognormal(0, 0.5, (60, 200)) * rng.lognormal(0, 0.5, (60, 1))
    return rng.poisson(rate).astype(np.float64)


def kind(values) -> StoredKind:
    (found,) = stored_kinds(sp.csr_matrix(values, dtype=np.float32), np.zeros(values.shape[0], np.int64), 1)
    return found


def soupx(counts: np.ndarray) -> np.ndarray:
    """Ambient RNA taken off, as SoupX and DecontX do: no longer whole."""
    ambient = counts.sum(axis=0) / counts.sum()
    return np.maximum(counts - 0.1 * counts.sum(axis=1, keepdims=True) * ambient, 0)


def log(counts: np.ndarray, total: float = 1e4) -> np.ndarray:
    return log_normalize(sp.csr_matrix(counts, dtype=np.float32), total).toarray()


def test_whole_numbers_are_counts_whatever_their_type(counts):
    for dtype in (np.int64, np.float32, np.float64):
        assert kind(counts.astype(dtype)).kind == "counts"
    assert kind(np.minimum(counts, 3)).kind == "counts", "also small ones"


@pytest.mark.parametrize("depth", [1.0, 0.1])
def test_counts_corrected_for_ambient_rna_are_no_logarithms(counts, depth):
    """Neither deep ones nor such that no number is larger than a logarithm may be."""
    thinned = np.random.default_rng(1).binomial(counts.astype(int), depth).astype(float)
    thinned = thinned[thinned.sum(axis=1) > 0]
    assert (thinned.max() <= 20) == (depth < 1)
    assert kind(soupx(thinned)).kind == "corrected"


@pytest.mark.parametrize("total", [1e4, 1e6, 37.5])
def test_log_normalised_counts_are_known_with_their_sum(counts, total):
    found = kind(log(counts, total))
    assert found.kind == "log1p"
    assert found.is_log
    assert found.total == pytest.approx(total, rel=1e-4)


def test_single_spots_may_stray(counts):
    values = log(counts)
    values[3] *= 0.9
    assert kind(values).kind == "log1p"


def test_logarithms_of_another_kind(counts):
    assert kind(log(counts)[:, :30]).kind == "log", "genes left out"
    assert kind(np.log2(1 + 1e6 * counts / counts.sum(axis=1, keepdims=True))).kind == "log"
    assert kind(log(counts) - log(counts).mean(axis=0)).kind == "log", "log ratios"
    assert kind(1.5 * log(counts) + 3).kind == "log", "no zeros, as from a microarray"


def test_normalised_counts_without_a_logarithm(counts):
    found = kind(1e6 * counts / counts.sum(axis=1, keepdims=True))
    assert found == StoredKind("normalised", pytest.approx(1e6))
    assert not found.is_log


def test_nothing_and_negative_counts(counts):
    assert kind(np.zeros((5, 4))).kind == "empty"
    counts[3, 3] = -1
    assert kind(counts).kind == "counts", "refused as counts: whole numbers are no log ratios"


def test_spots_without_counts_tell_nothing(counts):
    values = log(counts)
    values[:20] = 0
    assert kind(values).kind == "log1p"


def test_every_group_is_looked_at(counts):
    values = np.vstack([counts[:20], log(counts[20:40]), soupx(counts[40:]), np.zeros((3, 200)), log(counts[:20]) - 1])
    group = np.repeat(np.arange(5), [20, 20, 20, 3, 20])
    order = np.random.default_rng(0).permutation(len(values))
    found = stored_kinds(sp.csr_matrix(values[order], dtype=np.float32), group[order], 5)
    assert [one.kind for one in found] == ["counts", "log1p", "corrected", "empty", "log"]


def test_groups_of_few_spots_are_judged_together(counts):
    """Of one spot every sum is constant: a sample a line must not pass for log-normalised."""
    group = np.arange(60)
    assert {k.kind for k in stored_kinds(sp.csr_matrix(soupx(counts)), group, 60)} == {"corrected"}
    assert {k.kind for k in stored_kinds(sp.csr_matrix(log(counts)), group, 60)} == {"log1p"}
    assert {k.kind for k in stored_kinds(sp.csr_matrix(log(counts)[:, :30]), group, 60)} == {"log"}
    one = stored_kinds(sp.csr_matrix(log(counts)[:1]), np.zeros(1, np.int64), 1)
    assert one == [StoredKind("log")]


def test_looking_in_pieces_is_the_same(counts, monkeypatch):
    whole = kind(log(counts))
    monkeypatch.setattr("stmsi._core.learning.stored_expression._CHUNK", 7)
    assert kind(log(counts)) == whole
