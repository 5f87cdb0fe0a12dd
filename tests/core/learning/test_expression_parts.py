"""What folds share is what each would compute by itself."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.learning import expression_parts
from stmsi._core.learning.expression_parts import ExpressionParts, parts_of_folds
from stmsi._core.learning.expression_space import (
    ExpressionSpace,
    GeneMoments,
    held_out_distance,
    log_normalize,
    mean_shares,
    profile_distance,
    row_sums,
)

SECTION = np.repeat([0, 1, 2, 3], 40)
FOLDS = [np.flatnonzero(s != SECTION) for s in range(4)]
SIZES = {"n_top_genes": 20, "n_components": 5, "seed": 0}


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    mean = rng.gamma(1, 1, 50) * np.exp(rng.normal(size=(4, 50)))[SECTION]
    return sp.csr_matrix(rng.poisson(mean).astype(np.float32))


@pytest.fixture
def parts(counts):
    return ExpressionParts(counts, False, FOLDS)


def test_parts_are_on_one_side_of_every_fold():
    part = parts_of_folds(160, FOLDS)
    assert len(np.unique(np.column_stack([part, SECTION]), axis=0)) == 4
    assert parts_of_folds(3, []).tolist() == [0, 0, 0]
    # a spot that no fold has is a part of its own
    assert len(np.unique(parts_of_folds(4, [np.array([0, 1]), np.array([1])]))) == 3


@pytest.mark.parametrize("fold", [0, 3])
def test_a_fold_is_what_its_spots_are_alone(counts, parts, fold):
    rows = FOLDS[fold]
    some, log = parts.some(rows), log_normalize(counts[rows])
    alone = GeneMoments.of(log)
    moments = some.gene_moments()
    for name in ("mean", "variance", "seen"):
        np.testing.assert_allclose(getattr(moments, name), getattr(alone, name), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(some.mean_shares(), mean_shares(counts[rows]), rtol=1e-12)
    np.testing.assert_array_equal(some.log().toarray(), log.toarray())
    np.testing.assert_array_equal(some.values().toarray(), counts[rows].toarray())
    space, own = some.space(moments, **SIZES), ExpressionSpace.fit(log, **SIZES)
    np.testing.assert_array_equal(space.selected, own.selected)
    np.testing.assert_allclose(space.components, own.components, atol=1e-5)
    np.testing.assert_allclose(space.deviation, own.deviation, rtol=1e-6)
    np.testing.assert_allclose(some.components(space), own.transform(log), atol=1e-4)
    held = parts.some(np.flatnonzero(fold == SECTION))
    np.testing.assert_allclose(held.components(space), own.transform(log_normalize(counts[held.rows])), atol=1e-4)
    np.testing.assert_allclose(some.profile_distance(alone.mean), profile_distance(log, alone.mean), atol=1e-6)


def test_the_spots_left_out_have_no_say(counts, parts):
    other = counts.toarray()
    other[SECTION == 2] = other[SECTION == 2][:, ::-1]
    changed = ExpressionParts(sp.csr_matrix(other), False, FOLDS)
    a, b = (p.some(FOLDS[2]) for p in (parts, changed))
    np.testing.assert_array_equal(a.gene_moments().variance, b.gene_moments().variance)
    np.testing.assert_array_equal(a.mean_shares(), b.mean_shares())
    assert parts.candidates(20)[0].tolist() != changed.candidates(20)[0].tolist(), "the other folds choose other genes"
    x, y = (p.space(p.gene_moments(), **SIZES) for p in (a, b))
    np.testing.assert_array_equal(x.selected, y.selected)
    np.testing.assert_allclose(x.components, y.components, atol=1e-6)


def test_what_is_shared_is_made_once_and_only_the_last_of_it_kept(parts, monkeypatch):
    made = []
    count = lambda log: made.append(log.shape[0]) or row_sums(log)  # noqa: E731
    monkeypatch.setattr(expression_parts, "row_sums", count)
    for rows in FOLDS:
        some = parts.some(rows)
        space = some.space(some.gene_moments(), **SIZES)
        assert some.components(space).shape == (120, 5)
        some.profile_distance(some.gene_moments().mean)
    assert made == [160]
    assert parts._made["components"][0] == id(space)


@pytest.mark.parametrize("fold", [0, 2])
@pytest.mark.parametrize("own", [[0, 1, 2], [0, 1, 1]], ids=["a part each", "two parts together"])
def test_held_out_distances_follow_from_products_with_the_means_of_parts(counts, parts, fold, own, monkeypatch):
    rows = FOLDS[fold]
    groups = np.repeat(own, 40)
    expected = held_out_distance(log_normalize(counts[rows]), groups)
    np.testing.assert_allclose(parts.held_out_distance(rows, groups), expected, atol=1e-6)
    assert expected.std() > 0.01
    monkeypatch.setattr(expression_parts, "held_out_distance", lambda *_: pytest.fail("the spots are read again"))
    monkeypatch.setattr(expression_parts, "products_with", lambda *_: pytest.fail("products are made again"))
    for other in (0, 1, 2, 3):
        parts.held_out_distance(FOLDS[other], groups)
    some = parts.some(rows)
    assert some.space(some.gene_moments(), **SIZES) is not None


def test_held_out_distances_of_groups_that_cut_a_part_are_computed_alone(counts, parts, monkeypatch):
    rows, groups = FOLDS[1], np.arange(120) % 3
    expected = held_out_distance(log_normalize(counts[rows]), groups)
    np.testing.assert_array_equal(parts.held_out_distance(rows, groups), expected)
    monkeypatch.setattr(expression_parts, "_MOST_PRODUCTS", 0)
    whole = np.repeat([0, 1, 2], 40)
    np.testing.assert_array_equal(
        parts.held_out_distance(rows, whole), held_out_distance(log_normalize(counts[rows]), whole)
    )


def test_spots_that_are_no_parts_are_computed_alone(counts, parts):
    rows = np.arange(0, 160, 2)
    some = parts.some(rows)
    assert some.parts is None
    log = log_normalize(counts[rows])
    np.testing.assert_array_equal(some.gene_moments().variance, GeneMoments.of(log).variance)
    assert some.space(some.gene_moments(), **SIZES) is None
    space = ExpressionSpace.fit(log, **SIZES)
    np.testing.assert_array_equal(some.components(space), space.transform(log))
    assert parts.some(FOLDS[0]).take(np.arange(80, 120)).parts.tolist() == [parts.part[-1]]


def test_memory_is_bounded(parts, monkeypatch):
    monkeypatch.setattr(expression_parts, "MOST_BYTES", 4 * 4 * len(parts.candidates(20)[0]) ** 2)
    some = parts.some(FOLDS[0])
    assert some.space(some.gene_moments(), **SIZES) is not None
    # products of other genes find no place beside them
    assert some.space(some.gene_moments(), **(SIZES | {"n_top_genes": 30})) is None
    monkeypatch.setattr(expression_parts, "MOST_BYTES", 32 * 4 * 50 - 1)
    assert parts.some(FOLDS[0]).parts is None, "sums of genes take more"


def test_many_folds_of_few_spots_share_no_sums(counts):
    few = ExpressionParts(counts, False, [np.delete(np.arange(160), i) for i in range(160)])
    assert few.some(few.folds[0]).parts is None


@pytest.mark.parametrize("most", [0, 2**28], ids=["sparse", "dense"])
def test_genes_that_folds_choose_are_kept_dense_where_they_are_small(parts, most, monkeypatch):
    monkeypatch.setattr(expression_parts, "_MOST_DENSE", most)
    _, log = parts.candidates(20)
    assert sp.issparse(log) == (most == 0)
    some = parts.some(FOLDS[1])
    space = some.space(some.gene_moments(), **SIZES)
    np.testing.assert_allclose(some.components(space), space.transform(some.log()), atol=1e-5)


def test_a_copy_for_another_process_makes_its_own(parts):
    some = parts.some(FOLDS[0])
    space = some.space(some.gene_moments(), **SIZES)
    again = pickle.loads(pickle.dumps(parts))
    assert again._made == {}
    some = again.some(FOLDS[0])
    np.testing.assert_array_equal(some.space(some.gene_moments(), **SIZES).components, space.components)
