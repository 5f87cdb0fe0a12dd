import numpy as np
import pytest

from stmsi._core.registration.displacement import agreement, estimate_flow
from stmsi._core.spatial.simulated_tissue import LatentRaster, visium_positions

SIZE = 2000.0
RASTER = LatentRaster(SIZE, SIZE)


def section(seed, size=120.0, noise=0.2):
    """Spots and pixels that see the same fields, pixels displaced by a wave."""
    rng = np.random.default_rng(seed)
    fields = RASTER.smooth_field(120, rng, 3)
    spots, _ = visium_positions(SIZE, SIZE, 100)
    x, y = np.meshgrid(np.arange(25, SIZE, 50), np.arange(25, SIZE, 50))
    true = np.column_stack([x.ravel(), y.ravel()])
    at = true + size * np.column_stack([np.sin(true[:, 1] / 600), np.cos(true[:, 0] / 700)])
    mix = rng.normal(size=(3, 5))
    st = RASTER.at(fields, spots)
    msi = -(RASTER.at(fields, true) @ mix)
    return spots, st + noise * rng.standard_normal(st.shape), at, msi + noise * rng.standard_normal(msi.shape), true


def test_a_displacement_is_undone():
    spots, st, at, msi, true = section(0)
    flow = estimate_flow(spots, st, at, msi, pitch=100, length=500)
    before, after = (np.hypot(*(p - true).T) for p in (at, flow.field(at)))
    inner = ((true > 300) & (true < SIZE - 300)).all(axis=1)
    assert np.median(before) > 100
    assert np.median(after[inner]) < 25
    assert flow.after > flow.before + 0.3
    assert flow.after == pytest.approx(agreement(spots, st, flow.field(at), msi, 75), abs=0.1)


def test_nothing_is_moved_where_nothing_agrees():
    spots, st, at, _, _ = section(1)
    other = section(2)[3]
    flow = estimate_flow(spots, st, at, other, pitch=100, length=500)
    assert flow.field is None
    assert flow.after == flow.before


def test_a_good_alignment_is_left_about_where_it_is():
    spots, st, _, msi, true = section(0, size=0.0)
    flow = estimate_flow(spots, st, true, msi, pitch=100, length=500)
    if flow.field is not None:
        assert np.median(np.hypot(*(flow.field(true) - true).T)) < 25


def test_too_little_overlap_is_no_reason_to_move():
    spots, st, at, msi, _ = section(0)
    flow = estimate_flow(spots, st, at + 1900, msi, pitch=100, length=500)
    assert flow.field is None
    assert np.isnan(flow.before)
