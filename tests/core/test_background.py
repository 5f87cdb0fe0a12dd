import numpy as np
import pytest

from stmsi._core.background import otsu_tissue


def test_a_dark_background_is_found():
    rng = np.random.default_rng(0)
    total = np.concatenate([rng.lognormal(3, 0.4, 300), rng.lognormal(6, 0.5, 700), [0.0]])
    tissue, background = otsu_tissue(total)
    assert background
    assert (tissue[:300].mean(), tissue[300:1000].mean()) == pytest.approx((0, 1), abs=0.02)
    assert not tissue[-1]


@pytest.mark.parametrize("kind", ["normal", "uniform", "constant", "two close regions", "one pixel"])
def test_tissue_alone_is_not_split(kind):
    rng = np.random.default_rng(1)
    total = {
        "normal": rng.lognormal(5, 0.8, 2000),
        "uniform": rng.uniform(50, 150, 2000),
        "constant": np.full(50, 7.0),
        "two close regions": np.concatenate([rng.normal(100, 5, 500), rng.normal(150, 5, 500)]),
        "one pixel": np.array([3.0]),
    }[kind]
    tissue, background = otsu_tissue(total)
    assert tissue.all()
    assert not background


def test_silent_pixels_are_background_in_any_case():
    tissue, background = otsu_tissue(np.array([0.0, 5.0, 5.1, 5.2]))
    assert tissue.tolist() == [False, True, True, True]
    assert background


def test_a_few_faulty_pixels_are_no_background():
    total = np.random.default_rng(2).lognormal(5, 0.1, 1000)
    total[:5] = 1.0
    total[5:8] = 0.0
    tissue, background = otsu_tissue(total)
    assert not background
    assert tissue.tolist() == [True] * 5 + [False] * 3 + [True] * 992


def test_no_signal_at_all_is_no_tissue():
    assert not otsu_tissue(np.zeros(5))[0].any()
