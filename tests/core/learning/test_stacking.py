import numpy as np
import pytest
from scipy.optimize import minimize

from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._core.learning.stacking import selected_weights, simplex_weights, stacking_weights


def members(truth, errors, seed=0):
    """Held-out predictions of members that err with the given standard deviations."""
    rng = np.random.default_rng(seed)
    return np.stack([truth + sd * rng.normal(size=truth.shape) for sd in errors])


@pytest.fixture
def truth():
    return np.random.default_rng(1).normal(size=(600, 8))


@pytest.fixture
def groups():
    return np.repeat(np.arange(4), 150)


def test_the_solution_is_that_of_a_general_solver():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 5, 4))
    E = A.transpose(0, 2, 1) @ A
    prior, strength = np.array([0.1, 0.2, 0.3, 0.4]), rng.uniform(0, 5, 20)
    got = simplex_weights(E, prior, strength)

    def objective(w, e, s):
        return w @ e @ w + s * ((w - prior) ** 2).sum()

    for w, e, s in zip(got, E, strength, strict=True):
        best = minimize(
            objective,
            prior,
            (e, s),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda v: v.sum() - 1},
            options={"ftol": 1e-12},
        )
        assert objective(w, e, s) <= best.fun + 1e-8
        np.testing.assert_allclose(w, best.x, atol=1e-4)
    assert (got == 0).any(), "no solution on the edge: the test shows little"


def test_infinite_strength_is_the_prior():
    prior = np.array([0.7, 0.3])
    np.testing.assert_array_equal(simplex_weights(np.eye(2)[None], prior, np.array([np.inf]))[0], prior)


def test_no_error_at_all_is_the_prior():
    prior = np.array([0.7, 0.3])
    np.testing.assert_array_equal(simplex_weights(np.zeros((1, 2, 2)), prior, np.zeros(1))[0], prior)


def test_weights_are_not_negative_and_sum_to_1(truth, groups):
    w = stacking_weights(truth, members(truth, [0.5, 1, 2]), groups)
    assert w.shape == (3, 8)
    assert (w >= 0).all()
    np.testing.assert_allclose(w.sum(axis=0), 1)


def test_noise_has_no_weight(truth, groups):
    noise = np.random.default_rng(5).normal(size=truth.shape)
    w = stacking_weights(truth, np.stack([*members(truth, [0.3]), noise]), groups)
    # what an error of 0.3 and one of sqrt(2) are worth: inverse variances 1 / 0.09 to 1 / 2
    assert (w[1] < 0.09).all()


def test_independent_errors_weigh_by_their_inverse_variance(truth, groups):
    w = stacking_weights(truth, members(truth, [0.5, 1.0]), groups)
    np.testing.assert_allclose(w.mean(axis=1), [0.8, 0.2], atol=0.05)


def test_members_that_agree_share_their_weight(truth, groups):
    one = members(truth, [0.5])[0]
    np.testing.assert_allclose(stacking_weights(truth, np.stack([one, one]), groups), 0.5, atol=1e-6)


def test_a_metabolite_has_its_own_weights_where_the_evidence_is_clear(truth, groups):
    rng = np.random.default_rng(2)
    good, bad = truth + 0.2 * rng.normal(size=truth.shape), rng.normal(size=truth.shape)
    first = np.arange(8) < 4
    w = stacking_weights(truth, np.stack([np.where(first, good, bad), np.where(first, bad, good)]), groups)
    assert (w[0, first] > 0.85).all()
    assert (w[0, ~first] < 0.15).all()


def test_a_metabolite_with_few_spots_leans_on_the_others(truth, groups):
    """One metabolite prefers the other member: with 600 spots it is believed, with 6 only in part."""
    predictions = members(truth, [0.3, 1.0])
    predictions[:, :, 0] = predictions[::-1, :, 0]
    sparse = truth.copy()
    sparse[np.arange(600) % 100 > 0, 0] = np.nan
    few, many = stacking_weights(sparse, predictions, groups), stacking_weights(truth, predictions, groups)
    assert many[0, 0] < 0.15
    assert few[0, 0] > many[0, 0] + 0.15
    assert (few[0, 1:] > 0.8).all()


def test_the_scale_of_a_metabolite_does_not_matter(truth, groups):
    predictions = members(truth, [0.5, 1, 2])
    scale = 10.0 ** np.arange(-4, 4)
    np.testing.assert_allclose(
        stacking_weights(truth * scale, predictions * scale, groups),
        stacking_weights(truth, predictions, groups),
        atol=1e-6,
    )


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_without_evidence_the_weights_of_all_metabolites_hold(truth, groups, value):
    predictions = members(truth, [0.5, 1.0])
    truth[:, 2] = value
    w = stacking_weights(truth, predictions, groups)
    assert np.isfinite(w).all()
    assert w[0, 2] == pytest.approx(0.8, abs=0.05)
    assert w[:, 2].sum() == pytest.approx(1)


def test_nothing_at_all_gives_equal_weights(groups):
    w = stacking_weights(np.full((600, 2), np.nan), np.full((3, 600, 2), np.nan), groups)
    np.testing.assert_allclose(w, 1 / 3)


def test_members_that_leave_a_metabolite_out(truth, groups):
    predictions = members(truth, [1.0, 0.5, 0.5])
    predictions[1, :, 0] = np.nan
    eligible = np.ones((3, 8), bool)
    eligible[1, 0] = eligible[:2, 1] = eligible[:, 2] = False
    w = stacking_weights(truth, predictions, groups, eligible)
    assert w[1, 0] == 0
    np.testing.assert_allclose(w[[0, 2], 0], [0.2, 0.8], atol=0.06)
    np.testing.assert_allclose(w[:, 1], [0, 0, 1])
    np.testing.assert_array_equal(w[:, 2], 0)
    np.testing.assert_allclose(w[:, 3:].sum(axis=0), 1)


def test_a_member_without_held_out_predictions_is_used_where_there_is_no_other(truth, groups):
    predictions = members(truth, [1.0, 0.5])
    predictions[0, :, 0] = np.nan
    w = stacking_weights(truth, predictions, groups)
    np.testing.assert_allclose(w[:, 0], [0, 1])
    alone = stacking_weights(truth, predictions, groups, np.array([[True] * 8, [False] + [True] * 7]))
    np.testing.assert_allclose(alone[:, 0], [1, 0])


def test_spots_that_a_member_missed_do_not_count(truth, groups):
    """A fold that could not be predicted must not make a member look better, or worse."""
    predictions = members(truth, [1.0, 0.5])
    predictions[0, groups == 0] = np.nan
    other = predictions.copy()
    other[1, groups == 0] += 100
    np.testing.assert_array_equal(stacking_weights(truth, predictions, groups), stacking_weights(truth, other, groups))


def test_one_group_is_enough(truth):
    w = stacking_weights(truth, members(truth, [0.5, 1.0]), np.zeros(600, int))
    np.testing.assert_allclose(w, np.array([[0.8], [0.2]]) * np.ones(8), atol=0.05)


# ------------------------------------------------------------------------------------------------------------ selection


def selected(truth, maps, groups, eligible=None, units=None):
    eligible = np.ones((len(maps), truth.shape[1]), bool) if eligible is None else eligible
    return selected_weights(HeldOutTruth.of(truth, groups, groups if units is None else units), maps, eligible)


def test_selected_weights_are_not_negative_and_sum_to_1(truth, groups):
    w = selected(truth, members(truth, [0.5, 1, 2, 2]), groups)
    assert w.shape == (4, 8)
    assert (w >= 0).all()
    np.testing.assert_allclose(w.sum(axis=0), 1)


@pytest.mark.parametrize("at", [0, 2])
def test_a_perfect_map_is_all_that_is_selected(truth, groups, at):
    maps = list(members(truth, [1.0, 2.0]))
    maps.insert(at, truth.copy())
    # of 600 spots, equal weights keep 3 in a hundred
    np.testing.assert_allclose(selected(truth, np.stack(maps), groups)[at], 1, atol=0.03)


def test_of_equal_maps_any_sum_serves(truth, groups):
    one = members(truth, [0.5])[0]
    maps = np.stack([one, one, one])
    w = selected(truth, maps, groups)
    np.testing.assert_allclose(w.sum(axis=0), 1)
    np.testing.assert_allclose(np.einsum("km,ksm->sm", w, maps), one)


def test_maps_that_err_apart_are_averaged(truth, groups):
    maps = members(truth, [1.0, 1.0, 1.0])
    w = selected(truth, maps, groups)
    judge = HeldOutTruth.of(truth, groups, groups)
    mean = np.einsum("km,ksm->sm", w, maps)
    assert judge.score(mean) > max(judge.score(m) for m in maps) + 0.02
    # half of the shared weight stays with the best map alone
    assert w.max(axis=0).min() > 0.5
    assert w.min(axis=0).min() > 0.1


def test_a_map_of_noise_is_not_selected(truth, groups):
    noise = np.random.default_rng(5).normal(size=truth.shape)
    w = selected(truth, np.stack([noise, *members(truth, [0.5])]), groups)
    assert (w[0] < 0.05).all()


def test_of_a_few_spots_maps_are_averaged():
    """What sixteen cell lines prefer among maps that err alike is chance."""
    rng, groups = np.random.default_rng(3), np.arange(16)
    weights = []
    for _ in range(10):
        truth = rng.normal(size=(16, 30))
        maps = truth + 2 * rng.normal(size=(4, 16, 30))
        weights.append(selected(truth, maps, groups, units=np.zeros(16, int)))
        np.testing.assert_allclose(weights[-1].sum(axis=0), 1)
    assert np.min(weights) > 0.1
    assert np.max(weights) < 0.65


def test_weights_of_its_own_need_many_spots():
    """One of eight metabolites prefers the other map: with 20,000 spots it is believed, with 200 hardly."""
    rng = np.random.default_rng(2)
    own = []
    for n in (200, 20_000):
        truth = rng.normal(size=(n, 8))
        good, bad = truth + 0.2 * rng.normal(size=truth.shape), rng.normal(size=truth.shape)
        maps = np.stack([good, bad])
        maps[:, :, 0] = maps[::-1, :, 0]
        own.append(selected(truth, maps, np.arange(n) % 4))
    few, many = own
    assert few[0, 0] > 0.85
    assert many[0, 0] < 0.2
    assert (few[0, 1:] > 0.95).all()
    assert (many[0, 1:] > 0.99).all()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_the_scale_of_a_target_does_not_matter_for_selection(truth, groups, order):
    maps = members(truth, [0.5, 1, 2])[order]
    scale = 10.0 ** np.arange(-4, 4)
    np.testing.assert_allclose(selected(truth * scale, maps * scale, groups), selected(truth, maps, groups), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.7, np.nan])
def test_without_evidence_the_selection_of_all_targets_holds(truth, groups, value):
    maps = members(truth, [2.0, 0.3])
    truth[:, 2] = value
    w = selected(truth, maps, groups)
    assert np.isfinite(w).all()
    np.testing.assert_allclose(w.sum(axis=0), 1)
    assert (w[1] > 0.8).all()


def test_nothing_to_select_by_is_finite(groups):
    w = selected(np.full((600, 2), np.nan), np.full((3, 600, 2), np.nan), groups)
    np.testing.assert_allclose(w.sum(axis=0), 1)


def test_only_eligible_maps_are_selected(truth, groups):
    maps = members(truth, [1.0, 0.3, 0.5])
    maps[1, :, 0] = np.nan
    eligible = np.ones((3, 8), bool)
    eligible[1, 0] = eligible[:2, 1] = eligible[:, 2] = False
    w = selected(truth, maps, groups, eligible)
    assert w[1, 0] == 0
    np.testing.assert_allclose(w[:, 0].sum(), 1)
    np.testing.assert_allclose(w[:, 1], [0, 0, 1])
    np.testing.assert_array_equal(w[:, 2], 0)
    assert (w[1, 3:] > 0.5).all()


def test_spots_that_a_map_lacks_are_filled_with_the_others(truth, groups):
    maps = members(truth, [1.0, 0.3])
    maps[1, groups == 0] = np.nan
    w = selected(truth, maps, groups)
    assert np.isfinite(w).all()
    np.testing.assert_allclose(w.sum(axis=0), 1)
    assert (w[1] > 0.5).all()


def test_selection_sees_sections_and_the_level_between_them(truth, groups):
    """One map knows the level of each section and nothing inside, one the pattern and not the level: neither alone."""
    rng = np.random.default_rng(3)
    level = np.array([3.0, -3, 1, -1])[groups][:, None]
    whole = truth + level
    maps = np.stack([truth + 0.5 * rng.normal(size=truth.shape), level + 0.5 * rng.normal(size=truth.shape)])
    w = selected(whole, maps, groups)
    assert w.min() > 0.05


def test_maps_are_not_changed(truth, groups):
    maps = members(truth, [1.0, 0.3])
    maps[0, 0] = np.nan
    before = maps.copy()
    selected(truth, maps, groups)
    np.testing.assert_array_equal(maps, before)
