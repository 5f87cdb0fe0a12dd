import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stmsi._core.registration.tissue_masks import (
    array_turn,
    coherent_tissue,
    cut_sides,
    frame_points,
    frame_turn,
    pixel_raster,
    point_spacing,
)
from stmsi._core.spatial.simulated_tissue import visium_positions


def _grid(n_col, n_row, step=50.0):
    return np.stack(np.meshgrid(np.arange(n_col), np.arange(n_row)), -1).reshape(-1, 2) * step


def test_the_distance_is_zero_at_the_outline():
    raster = pixel_raster(_grid(20, 10), np.array([50.0, 50.0]))
    edge = raster.index(np.array([[-25.0, 225.0]]))[0]
    col, row = int(np.floor(edge[0])), round(edge[1])
    assert raster.distance[row, col] == pytest.approx(-25)
    assert raster.distance[row, col + 1] == pytest.approx(25)
    assert raster.distance.max() == pytest.approx(225)
    assert raster.area == 20 * 10 * 50**2
    np.testing.assert_allclose(raster.scaled(2).soft(50), raster.soft(25))


def test_lost_pixels_are_filled_and_holes_stay():
    xy = _grid(30, 30)
    hole = (np.abs(xy - 1000) < 201).all(axis=1)
    lost = (xy == 250).all(axis=1)
    raster = pixel_raster(xy[~hole & ~lost], np.array([50.0, 50.0]))
    col, row = np.round(raster.index(np.array([[250.0, 250.0], [1000.0, 1000.0]]))).astype(int).T
    inside = raster.distance[row, col] > 0
    assert inside.tolist() == [True, False]


def test_a_raster_that_stopped_within_the_tissue_knows_nothing_beyond():
    xy = _grid(40, 40) - 975
    disc = xy[np.hypot(*xy.T) < 960]
    assert (pixel_raster(disc, np.array([50.0, 50.0])).measured == 1).all()
    half = pixel_raster(disc[disc[:, 1] < 100], np.array([50.0, 50.0]))
    below = half.index(np.array([[0.0, 300.0]]))[0].round().astype(int)
    above = half.index(np.array([[0.0, -1200.0]]))[0].round().astype(int)
    assert half.measured[below[1], below[0]] == 0
    assert half.measured[above[1], above[0]] == 1


def test_cut_sides_of_a_box():
    xy = _grid(30, 20)
    assert cut_sides(xy, xy.min(0), xy.max(0), 50) == ((True, True), (True, True))
    triangle = xy[xy[:, 0] / 30 + xy[:, 1] / 20 <= 50]
    assert cut_sides(triangle, triangle.min(0), triangle.max(0), 50) == ((True, False), (True, False))


def test_pitch_of_a_lattice_and_of_scattered_bins():
    hexagon = visium_positions(2000, 2000, 100.0)[0]
    assert point_spacing(hexagon) == (pytest.approx(100), True)
    scattered = np.random.default_rng(0).uniform(0, 2000, (400, 2))
    pitch, lattice = point_spacing(scattered)
    assert not lattice
    assert pitch == pytest.approx(100, rel=0.1), "each has 100 x 100 um to itself"


def test_places_off_the_tissue():
    spots = visium_positions(3000, 3000, 100.0)[0]
    radius = np.hypot(*(spots - 1500).T)
    ring = spots[(radius < 1300) & (radius > 500)]
    given = frame_points(ring, spots[radius >= 1300])
    assert given.tissue.sum() == len(ring)
    around, crop = frame_points(ring), frame_points(ring, crop=True)
    for points in (around, crop):
        off = np.hypot(*(points.xy[~points.tissue] - 1500).T)
        assert ((off < 500) | (off > 1290)).all()
        assert (off < 400).any(), "the hole"
    assert np.hypot(*(around.xy[~around.tissue] - 1500).T).max() > 1800
    assert np.hypot(*(crop.xy[~crop.tissue] - 1500).T).max() < 1400
    # the frame cut the tissue at the left, so that nothing is known there
    cut = frame_points(ring[ring[:, 0] > 1400])
    assert cut.xy[:, 0].min() > 1350


@pytest.mark.parametrize("degrees", [0.0, 1.5, 30.0, 44.0, 75.0, 90.0])
def test_a_turned_frame_is_found(degrees):
    """Tissue that the frame cut at the left is known to be cut there, however the slide lies."""
    xy = visium_positions(3000, 3000, 100.0)[0]
    cut = xy[(np.hypot(*(xy - 1500).T) < 1300) & (xy[:, 0] > 1000)]
    a = np.radians(degrees)
    slide = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    turned = cut @ slide.T
    axis = frame_turn(turned)
    assert (np.degrees(axis) - degrees + 45) % 90 - 45 == pytest.approx(0, abs=0.01)
    points = frame_points(turned)
    beyond = (points.xy @ slide)[:, 0].min()
    assert beyond > 950, "nothing is known beyond the side at which the frame ended"
    assert (~points.tissue).sum() > 100
    row, col = np.round(cut[:, 1] / (50 * np.sqrt(3))), np.round(cut[:, 0] / 50)
    assert np.degrees(array_turn(turned, col, row)) == pytest.approx(degrees, abs=0.01)


def test_axes_of_other_arrangements():
    square = _grid(20, 15)
    a = np.radians(20)
    assert np.degrees(frame_turn(square @ [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])) == pytest.approx(20)
    scattered = np.random.default_rng(0).uniform(0, 2000, (400, 2))
    assert frame_turn(scattered) == 0, "no lattice, no axes"
    assert array_turn(scattered, np.arange(400), np.arange(400) % 20) is None, "positions of something else"
    assert array_turn(square, square[:, 0], np.zeros(len(square))) is None, "on a line"


def test_background_is_found_where_there_is_one():
    rng = np.random.default_rng(0)
    row, col = (v.ravel() for v in np.indices((40, 50)))
    tissue = np.hypot(row - 20, (col - 25) * 0.8) < 15
    peaks = rng.poisson(np.where(tissue, 400, 60)).astype(float)
    on = coherent_tissue(peaks, row, col)
    assert (on == tissue).mean() > 0.96
    # noise alone, a smooth gradient, and a bright core without background are no reason to drop pixels
    assert coherent_tissue(rng.poisson(400, row.size).astype(float), row, col).all()
    assert coherent_tissue(100 + 5.0 * row, row, col).all()
    assert coherent_tissue(np.zeros(row.size), row, col).all()
    assert coherent_tissue(rng.poisson(np.where(tissue, 60, 400)).astype(float), row, col).all(), (
        "dark core, bright rim"
    )


@pytest.mark.parametrize("length", [3, 6, 12])
def test_rich_and_poor_regions_are_all_tissue(length):
    rng = np.random.default_rng(length)
    row, col = (v.ravel() for v in np.indices((40, 50)))
    disc = np.hypot(row - 20, (col - 25) * 0.8) < 19
    field = gaussian_filter(rng.standard_normal((40, 50)), length).ravel()[disc]
    peaks = rng.poisson(25 * np.exp(0.7 * field / field.std())).astype(float)
    assert coherent_tissue(peaks, row[disc], col[disc]).all()
