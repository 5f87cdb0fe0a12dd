"""Expression that is read in blocks gives what expression in memory gives."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.learning.expression_parts import ExpressionParts
from stmsi._core.learning.expression_space import held_out_distance, log_normalize, profile_distance
from stmsi._core.learning.profile_hashes import profile_hashes
from stmsi.model.shared import _streamed_parts
from stmsi.model.shared._streamed_parts import StreamedParts

SECTION = np.repeat([0, 1, 2, 3], 40)
FOLDS = [np.flatnonzero(s != SECTION) for s in range(4)]
SIZES = {"n_top_genes": 20, "n_components": 5, "seed": 0}


class Blocks:
    """A matrix that tells how much of it was asked for at once."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.n_entries, self.most = matrix, matrix.shape, matrix.nnz, 0

    def blocks(self, rows):
        return (rows[i : i + 30] for i in range(0, len(rows), 30))

    def __getitem__(self, rows):
        self.most = max(self.most, len(rows))
        assert (np.diff(rows) > 0).all()
        return self.matrix[rows]


class Kept:
    """Arrays in a folder."""

    def __init__(self, directory: Path, *, of_parts: bool = True):
        self.directory, self.of_parts, self.made = directory, of_parts, []

    def has(self, name, part):
        return (self.directory / f"{name}-{part}.npy").exists()

    def array(self, name, part, make):
        path = self.directory / f"{name}-{part}.npy"
        if not path.exists():
            self.made.append(name.split()[0])
            np.save(path, make())
        return np.load(path, mmap_mode="r")


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    mean = rng.gamma(1, 1, 50) * np.exp(rng.normal(size=(4, 50)))[SECTION]
    return sp.csr_matrix(rng.poisson(mean).astype(np.float32))


@pytest.mark.parametrize("dense", [0.0, 1.1], ids=["dense", "sparse"])
@pytest.mark.parametrize("apart", [None, SECTION], ids=["by fold", "by section"])
def test_folds_are_those_in_memory(counts, tmp_path, monkeypatch, dense, apart):
    monkeypatch.setattr(_streamed_parts, "_DENSE", dense)
    blocks, kept = Blocks(counts), Kept(tmp_path)
    streamed, whole = StreamedParts(blocks, False, FOLDS, apart, kept), ExpressionParts(counts, False, FOLDS)
    for rows in FOLDS[:2]:
        a, b = streamed.some(rows), whole.some(rows)
        moments = b.gene_moments()
        for name in ("mean", "variance", "seen"):
            np.testing.assert_allclose(getattr(a.gene_moments(), name), getattr(moments, name), rtol=1e-12)
        np.testing.assert_allclose(a.mean_shares(), b.mean_shares(), rtol=1e-12)
        one, other = a.space(a.gene_moments(), **SIZES), b.space(moments, **SIZES)
        np.testing.assert_array_equal(one.selected, other.selected)
        np.testing.assert_allclose(one.components, other.components, atol=1e-5)
        np.testing.assert_allclose(a.components(one), b.components(other), atol=1e-4)
        np.testing.assert_allclose(a.profile_distance(moments.mean), b.profile_distance(moments.mean), rtol=1e-6)
    assert blocks.most == 30
    assert kept.made.count("products") == 4
    assert not list(tmp_path.glob("components*")), "what is mapped has no name"


def test_the_expression_is_not_read_again_for_means_of_parts(counts, tmp_path, monkeypatch):
    streamed = StreamedParts(Blocks(counts), False, FOLDS, SECTION, Kept(tmp_path))
    log, rows = log_normalize(counts), FOLDS[1]
    for p in range(4):
        streamed.with_means(p)
    monkeypatch.setattr(Blocks, "__getitem__", lambda *_: pytest.fail("it is read again"))
    some = streamed.some(rows)
    mean = some.gene_moments().mean
    for other in FOLDS:  # however many means were made since
        streamed.some(other).gene_moments()
    np.testing.assert_allclose(some.profile_distance(mean.copy()), profile_distance(log[rows], mean), rtol=1e-6)
    groups = SECTION[rows]
    expected = held_out_distance(log[rows], np.unique(groups, return_inverse=True)[1])
    np.testing.assert_allclose(some.held_out_distance(groups), expected, rtol=1e-6)
    monkeypatch.undo()
    other = np.random.default_rng(0).random(50)
    np.testing.assert_allclose(some.profile_distance(other), profile_distance(log[rows], other), rtol=1e-6)
    for limit, most in (("_MOST_PARTS", 3), ("_MOST_PRODUCTS", 8 * 40 * (4 + 2) - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(_streamed_parts, limit, most)
            again = StreamedParts(Blocks(counts), False, FOLDS, SECTION, kept := Kept(tmp_path / limit)).some(rows)
            kept.directory.mkdir()
            np.testing.assert_allclose(again.held_out_distance(groups), expected, rtol=1e-6)
            assert "with" not in kept.made


def test_of_parts_that_are_read_once_only_the_sum_is_kept(counts, tmp_path):
    spaces, every = [], np.arange(160)
    for of_parts in (True, False):
        folder = tmp_path / str(of_parts)
        folder.mkdir()
        kept = Kept(folder, of_parts=of_parts)
        some = StreamedParts(Blocks(counts), False, [every], SECTION, kept).some(every)
        spaces.append(some.space(some.gene_moments(), **SIZES))
        assert kept.made.count("products") == (4 if of_parts else 1)
    np.testing.assert_array_equal(spaces[0].components, spaces[1].components)


@pytest.mark.parametrize("groups", [SECTION[40:] - 1, np.arange(120) % 2], ids=["sections", "across sections"])
def test_distances_from_the_other_groups_and_hashes(counts, tmp_path, groups):
    rows = np.random.default_rng(0).permutation(np.arange(40, 160))
    groups = groups[rows - 40]
    blocks = Blocks(counts)
    some = StreamedParts(blocks, False, [np.arange(40, 160)], SECTION, Kept(tmp_path)).some(rows)
    log = log_normalize(counts[rows])
    np.testing.assert_allclose(some.held_out_distance(groups), held_out_distance(log, groups), rtol=1e-5)
    genes = [np.arange(25), np.arange(25, 50)]
    for (a, told), (b, known) in zip(some.profile_hashes(genes), profile_hashes(counts[rows], genes), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(told, known)
    assert blocks.most == 30
    np.testing.assert_array_equal(some.values().toarray(), counts[rows].toarray())
    np.testing.assert_array_equal(some.log().toarray(), log.toarray())


def test_more_than_fits_is_not_read_at_once(counts, tmp_path, monkeypatch):
    monkeypatch.setattr(_streamed_parts, "MOST_BYTES", 100)
    some = StreamedParts(Blocks(counts), False, FOLDS, None, Kept(tmp_path)).some(FOLDS[0])
    with pytest.raises(ValueError, match="reads the whole expression of 120 spots at once"):
        some.log()


def test_another_process_begins_anew(counts, tmp_path):
    parts = StreamedParts(Blocks(counts), False, FOLDS, None, Kept(tmp_path))
    parts.gene_sums(0)
    there = pickle.loads(pickle.dumps(parts))
    np.testing.assert_array_equal(there.gene_sums(0), parts.gene_sums(0))
