import numpy as np
import pytest
from scipy.special import ndtr

from stmsi._core.spatial.coregionalization import Coregionalization, impute_censored
from stmsi._core.spatial.morans_i import neighbour_means
from stmsi._core.spatial.random_fields import FieldSampler
from stmsi._core.spatial.sections import spacing
from stmsi._core.uncertainty.copula import HurdleCopula, ResidualTable

N, M = 900, 6


@pytest.fixture(scope="module")
def world():
    """A hurdle model with known probability and intensity, whose residuals follow a known Gaussian field."""
    rng = np.random.default_rng(0)
    xy = np.column_stack([v.ravel() for v in np.meshgrid(np.arange(30), np.arange(30))]) * 100.0
    section = np.repeat([0, 1, 2], N // 3)
    loading = np.array([0.9, 0.9, 0.9, -0.9, 0.0, 0.0])
    factor = FieldSampler.build(xy, section, 400.0)(rng.standard_normal((N, 1), dtype=np.float32))
    z = factor * loading + rng.standard_normal((N, M)) * np.sqrt(1 - loading**2)
    p = np.broadcast_to(np.array([0.95, 0.7, 0.4, 0.7, 0.5, 0.9]), (N, M)) + rng.uniform(-0.04, 0.04, (N, M))
    mean = rng.uniform(2, 4, (N, M))
    u = ndtr(z)
    there = u > 1 - p
    level = np.where(there, (u - 1 + p) / p, np.nan)
    return {
        "xy": xy, "section": section, "p": p, "mean": mean, "presence": there.astype(float), "loading": loading,
        "intensity": np.where(there, mean - 1 + 2 * level, 0),
    }  # fmt: skip


@pytest.fixture(scope="module")
def copula(world) -> HurdleCopula:
    names = np.array([f"m{i}" for i in range(M)], dtype=object)
    return HurdleCopula.fit(
        names, world["intensity"], world["presence"], world["p"], world["mean"], world["section"], world["xy"]
    )


def test_quantiles_and_levels_are_inverse() -> None:
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 5, (800, 1))
    y = mean + rng.gamma(2, 0.2 + 0.2 * mean)
    table = ResidualTable.fit(y, mean)
    level = table.level(y, mean, rng)
    below, part = table.place(mean)
    column = np.zeros(mean.shape, int)
    again = table.quantile(level, mean, column, below, part)
    assert np.abs(again - y).mean() < 0.02
    # where the error grows with the prediction, so does the spread of the levels' residuals
    wide = table.residual[0, :, -5] - table.residual[0, :, 5]
    assert wide[-1] > 2 * wide[0]
    assert np.histogram(level, 10, (0, 1))[0].min() > 40


def test_a_metabolite_without_residuals_keeps_its_prediction() -> None:
    table = ResidualTable.fit(np.full((5, 1), np.nan), np.ones((5, 1)))
    below, part = table.place(np.full((1, 1), 3.0))
    assert table.quantile(np.full((1, 1), 0.9), np.full((1, 1), 3.0), np.zeros((1, 1), int), below, part)[0, 0] == 3


def test_the_correlation_is_found_also_of_rare_metabolites(world, copula) -> None:
    total = sum(copula.fields.covariance(s) for s in range(5))
    np.testing.assert_allclose(np.diag(total), 1, atol=1e-6)
    assert total[0, 1] == pytest.approx(0.81, abs=0.12)
    assert total[1, 2] == pytest.approx(0.81, abs=0.2)
    assert total[0, 3] == pytest.approx(-0.81, abs=0.12)
    assert np.abs(total[4:, :4]).max() < 0.2
    in_space = sum(copula.fields.covariance(s) for s in (1, 2, 3, 4))
    assert np.diag(in_space)[:4].min() > 0.5
    assert np.diag(in_space)[4:].max() < 0.3


def test_margins_are_those_of_the_model(world, copula) -> None:
    draws = np.stack(
        list(copula.draw(world["p"], world["mean"], world["xy"], world["section"], 60, np.random.default_rng(3)))
    )
    # spots of a draw are alike, so the error is that of 60 draws rather than of 54,000 values
    np.testing.assert_allclose((draws > 0).mean(axis=(0, 1)), world["p"].mean(axis=0), atol=0.04)
    present = np.where(draws > 0, draws - world["mean"], np.nan)
    assert np.nanmean(present) == pytest.approx(0, abs=0.05)
    assert np.nanstd(present) == pytest.approx(2 / np.sqrt(12), abs=0.06)


def test_neighbours_are_alike_only_with_space(world, copula) -> None:
    W = neighbour_means(world["xy"], world["section"])

    def along(spatial: bool) -> float:
        draw = next(
            copula.draw(
                world["p"], world["mean"], world["xy"], world["section"], 1, np.random.default_rng(0), spatial=spatial
            )
        )
        there = (draw[:, 1] > 0).astype(float)
        return float(np.corrcoef(there, W @ there)[0, 1])

    assert along(True) > 0.25
    assert abs(along(False)) < 0.12


def test_draws_do_not_depend_on_their_number(world, copula) -> None:
    def draws(n: int) -> list:
        return list(copula.draw(world["p"], world["mean"], world["xy"], world["section"], n, np.random.default_rng(5)))

    np.testing.assert_array_equal(draws(1)[0], draws(3)[0])


def test_censored_scores_stay_below_their_limit_and_learn_from_their_partner() -> None:
    rng = np.random.default_rng(0)
    z = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 1500)
    limit = np.full(z.shape, np.nan)
    limit[:, 1] = np.where(z[:, 1] < 0.5, 0.5, np.nan)
    start = z.copy()
    hidden = ~np.isnan(limit[:, 1])
    start[hidden, 1] = rng.uniform(-3, 0.5, hidden.sum())
    start[0, 0] = np.nan
    found = impute_censored(start, limit, None, rng)
    assert (found[hidden, 1] <= 0.5).all()
    np.testing.assert_array_equal(found[1:, 0], z[1:, 0])
    assert found[0, 0] == 0
    assert np.corrcoef(found[1:].T)[0, 1] > 0.82


def test_without_positions_there_is_no_structure_in_space() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((200, 3))
    fields = Coregionalization.fit(z, np.ones(z.shape, bool), None, np.zeros(200, int), rng)
    total = sum(fields.covariance(s) for s in range(5))
    np.testing.assert_allclose(np.diag(total), 1)
    assert np.isnan(spacing(np.zeros((1, 2)), np.zeros(1, int)))


def test_levels_learnt_from_few_sections_are_pulled_to_their_mean_and_raised() -> None:
    """By chance the levels of the second variable hardly differed; those of the others are shared."""
    loadings = np.zeros((5, 3, 1))
    loadings[-1, :, 0] = np.sqrt([0.2, 0.0, 0.2])
    specific = np.zeros((5, 3))
    specific[0] = [0.8, 1.0, 0.8]
    fields = Coregionalization(np.array([1.0, 2.0, 3.0]), loadings, specific)
    few, many = fields.of_few_sections(4), fields.of_few_sections(400)
    for found in (few, many):
        np.testing.assert_allclose(np.diag(sum(found.covariance(s) for s in range(5))), 1)
    level = np.diag(few.covariance(-1))
    assert (level[[0, 2]] > 0.25).all()
    assert level[1] > 0.1
    shared = few.covariance(-1)[0, 2] / level[0]
    assert shared == pytest.approx(1)
    np.testing.assert_allclose(np.diag(many.covariance(-1)), [0.2, 0, 0.2], atol=0.01)
    assert fields.of_few_sections(1) is fields
