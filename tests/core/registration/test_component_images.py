import numpy as np
import pytest
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter, map_coordinates

from stmsi._core.registration.agreement import unbiased_information
from stmsi._core.registration.automatic import (
    Candidate,
    _widened,
    decide,
    outline_error,
    register_sections,
    resolution,
)
from stmsi._core.registration.component_images import (
    CrossModal,
    component_images,
    reference_matrices,
)
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.placements import KNOWN, Placement
from stmsi._core.registration.spatial_components import autocorrelation_factors, spatial_components
from stmsi._core.registration.tissue_masks import frame_points, pixel_raster
from stmsi._core.spatial.simulated_tissue import visium_positions

TRUTH = np.array([[-np.cos(0.7), -np.sin(0.7), 3300.0], [-np.sin(0.7), np.cos(0.7), 900.0], [0, 0, 1]])


def _disc(xy):
    return np.hypot(*(xy - 1500).T) < 1300


def _fields(n, length, rng):
    out = gaussian_filter(rng.standard_normal((n, 121, 121)), (0, length / 25, length / 25), mode="wrap")
    return out / out.std(axis=(1, 2), keepdims=True)


def _at(fields, xy):
    return np.column_stack([map_coordinates(f, xy.T[::-1] / 25, order=1, mode="nearest") for f in fields])


def _round_section(shared, seed=0):
    """A disc, which masks cannot turn, with `shared` of four patterns seen by both modalities."""
    rng = np.random.default_rng(seed)
    fields = _fields(8, 250, rng)
    raster = np.stack(np.meshgrid(np.arange(-3000, 6000, 60.0), np.arange(-3000, 6000, 60.0)), -1).reshape(-1, 2)
    raster = raster[_disc(apply_affine(TRUTH, raster))]
    moving = pixel_raster(raster, np.array([60.0, 60.0]))
    lattice = visium_positions(3000, 3000, 100.0)[0]
    on = _disc(lattice)
    fixed = frame_points(lattice[on], lattice[~on])
    genes = _at(fields[:4], lattice[on]) + rng.normal(0, 0.3, (on.sum(), 4))
    ions = _at(np.concatenate([fields[:shared], fields[4 : 8 - shared]]), apply_affine(TRUTH, raster))
    ions = -ions + rng.normal(0, 0.3, ions.shape)
    return CrossModal.build(moving, fixed, ions, genes, rng)


@pytest.fixture(scope="module")
def disc():
    return _round_section(3)


def _error(matrix, data):
    return float(np.median(np.hypot(*(apply_affine(matrix, data.moving.xy) - apply_affine(TRUTH, data.moving.xy)).T)))


def test_the_right_place_explains_most(disc):
    right = disc.explained(TRUTH)
    wrong = [disc.explained(m) for m in reference_matrices(TRUTH, disc, 20, np.random.default_rng(0))]
    assert right > 0.4
    assert max(wrong) < 0.5 * right
    far = TRUTH.copy()
    far[:2, 2] += 1e5
    assert disc.explained(far) == 0


def test_signs_are_free(disc):
    flipped = CrossModal(disc.spots, -disc.expression, disc.images, disc.moving, disc.fixed, disc.fold)
    assert flipped.explained(TRUTH) == pytest.approx(disc.explained(TRUTH))


def test_polishing_brings_a_placement_home(disc):
    off = TRUTH.copy()
    off[:2, 2] += [70, -60]
    assert _error(off, disc) > 80
    assert _error(disc.refine(off, KNOWN), disc) < 25


def test_intensities_turn_a_disc_that_masks_cannot(disc):
    with_intensities = register_sections(disc.moving, disc.fixed, disc, np.random.default_rng(0), n_perturb=4)
    assert with_intensities.decided_by == "intensities"
    assert with_intensities.polished
    assert with_intensities.rivals == []
    assert _error(with_intensities.matrix, disc) < 50, "half a spot pitch"
    assert with_intensities.resolution.median_um < 50
    assert with_intensities.draws.shape == (4, 3, 3)
    masks = register_sections(disc.moving, disc.fixed, None, np.random.default_rng(0), n_perturb=0)
    assert masks.rivals, "a disc fits any way round"
    assert np.isnan(masks.resolution.median_um)


@pytest.mark.parametrize("seed", range(3))
def test_without_shared_patterns_nothing_is_sure(seed):
    data = _round_section(0, seed)
    verdict = register_sections(data.moving, data.fixed, data, np.random.default_rng(0), n_perturb=0)
    assert verdict.rivals
    assert verdict.decided_by == "masks"
    assert not verdict.polished


def _candidates(*rows):
    return [Candidate(Placement(np.eye(3), score), 0.0, z, share) for score, z, share in rows]


def test_who_decides():
    nan = float("nan")
    assert decide(_candidates((0.95, nan, 1.0), (0.80, nan, 0.0))) == (0, [], "masks")
    assert decide(_candidates((0.95, nan, 0.97), (0.94, nan, 0.03))) == (0, [], "masks"), "near, but never better"
    assert decide(_candidates((0.95, nan, 0.7), (0.93, nan, 0.3), (0.90, nan, 0.0))) == (0, [1], "masks")
    assert decide(_candidates((0.95, nan, 0.94), *[(0.9, nan, 0.01)] * 6))[1] == [1], "the runner-up at least"
    assert decide(_candidates((0.95, 1.0, 0.6), (0.93, 9.0, 0.4))) == (1, [], "intensities")
    assert decide(_candidates((0.95, 1.0, 0.6), (0.93, 2.0, 0.4))) == (0, [1], "masks"), "no signal"
    assert decide(_candidates((0.95, 7.0, 0.6), (0.93, 6.0, 0.4))) == (0, [1], "masks"), "no lead"
    assert decide(_candidates((0.95, 1.0, 1.0), (0.80, 4.5, 0.0))) == (0, [1], "masks"), (
        "contradiction is not certainty"
    )
    assert decide(_candidates((0.95, 1.0, 1.0), (0.80, 12.0, 0.0))) == (1, [], "intensities")
    assert decide(_candidates((0.95, 0.5, 1.0))) == (0, [], "masks")


def test_shared_information_of_normal_variables_is_the_textbook_value():
    """One component of each side, of correlation r at the truth: -log(1 - r^2) / 2; and 0 of unrelated ones."""
    rng = np.random.default_rng(0)
    lattice = visium_positions(6000, 6000, 100.0)[0]
    raster = np.stack(np.meshgrid(np.arange(0, 6000, 100.0), np.arange(0, 6000, 100.0)), -1).reshape(-1, 2)
    fields = gaussian_filter(rng.standard_normal((3, 240, 240)), (0, 8, 8), mode="wrap")
    fields /= fields.std(axis=(1, 2), keepdims=True)
    moving, fixed = pixel_raster(raster, np.array([100.0, 100.0])), frame_points(lattice, lattice[:0])
    ions = _at(fields[:1], raster)
    found = []
    for r in (0.0, 0.6, 0.9):
        genes = r * _at(fields[:1], lattice) + np.sqrt(1 - r * r) * rng.standard_normal((len(lattice), 1))
        found.append(CrossModal.build(moving, fixed, ions, genes, rng).shared_information(np.eye(3)))
    assert found[0] == pytest.approx(0, abs=0.005), "less what chance makes"
    assert found[1] == pytest.approx(-0.5 * np.log(1 - 0.36), rel=0.15)
    assert found[2] == pytest.approx(-0.5 * np.log(1 - 0.81), rel=0.15)


def test_shared_information_tells_the_right_place(disc):
    right = disc.shared_information(TRUTH)
    wrong = [disc.shared_information(m) for m in reference_matrices(TRUTH, disc, 20, np.random.default_rng(0))]
    assert right > 3 * max(wrong)
    assert abs(np.median(wrong)) < 0.2 * right, "smooth maps always share a little"
    # what mixes the components of one side, or their signs, changes nothing
    mixed = disc.expression @ np.random.default_rng(1).normal(size=(4, 4)) + 3
    other = CrossModal(disc.spots, mixed, -disc.images, disc.moving, disc.fixed, disc.fold)
    assert other.shared_information(TRUTH) == pytest.approx(right)
    # uncovered spots count as 0, and too few tell nothing
    far = TRUTH.copy()
    far[:2, 2] += 1200
    assert disc.shared_information(far) < 0.3 * right
    far[:2, 2] += 1e5
    assert disc.shared_information(far) == 0
    assert disc.thinned(200).shared_information(TRUTH) == pytest.approx(right, rel=0.3)


def test_a_piece_is_found_by_intensities(disc):
    """A third of a disc fits anywhere in it."""
    kept = apply_affine(TRUTH, disc.moving.xy)[:, 0] < 1300
    moving = pixel_raster(disc.moving.xy[kept], np.array([60.0, 60.0]))
    col, row = np.round(disc.moving.index(disc.moving.xy)).astype(int).T
    ions = disc.images[:, row, col].T[kept]
    piece = CrossModal.build(moving, disc.fixed, ions, disc.expression, np.random.default_rng(0))
    verdict = register_sections(moving, disc.fixed, piece, np.random.default_rng(0), n_perturb=0)
    assert verdict.piece
    assert verdict.decided_by == "intensities"
    assert verdict.rivals == []
    assert _error(verdict.matrix, piece) < 50
    masks = register_sections(moving, disc.fixed, None, np.random.default_rng(0), n_perturb=0)
    assert masks.piece
    assert masks.rivals


def test_the_error_of_outlines_is_measured(disc):
    exact = outline_error(disc.moving, disc.fixed, TRUTH)
    off = TRUTH.copy()
    off[:2, 2] += 200
    assert exact < 45
    assert 100 < outline_error(disc.moving, disc.fixed, off) < 300


@pytest.mark.parametrize(("local_um", "expected_um"), [(100.0, 98.5), (15.0, 10.0)])
def test_refits_of_deformed_tissue_spread_further(local_um, expected_um):
    """Four parts move by `local_um` each where refits to half of all blocks move by 10: twice that is chance."""

    def shifted(um):
        return np.array([[1, 0, um], [0, 1, 0], [0, 0, 1]], float)

    class Parts:
        spots = np.random.default_rng(0).uniform(0, 2000, (80, 2))
        fold = np.arange(80) % 4

        def refine(self, matrix, freedom, weight):
            return shifted(local_um) @ matrix

    widened = _widened([shifted(10), shifted(-10)], np.eye(3), Parts())
    assert [abs(m[0, 2]) for m in widened] == pytest.approx([expected_um] * 2, abs=0.1)
    assert _widened([], np.eye(3), Parts()) == []


def test_resolution_counts_spots(disc):
    none = resolution(TRUTH, [TRUTH], disc.moving, disc.fixed)
    assert (none.median_um, none.same_spot, none.one_ring) == (0, 1, 1)
    off = TRUTH.copy()
    off[0, 2] += 100  # the next spot of the row
    moved = resolution(TRUTH, [off], disc.moving, disc.fixed)
    assert moved.median_um == pytest.approx(100)
    assert moved.same_spot < 0.1
    assert moved.one_ring > 0.9


def test_mutual_information():
    rng = np.random.default_rng(0)
    x = rng.normal(size=5000)
    assert unbiased_information(x, rng.normal(size=5000)) < 0.01
    assert unbiased_information(x, -x) == pytest.approx(np.log(12), rel=0.02)
    assert unbiased_information(x, x**2) > 0.5, "no line, but known"
    assert np.isnan(unbiased_information(x[:10], x[:10]))


def test_component_images_go_on_beyond_the_tissue(disc):
    value = disc.moving.xy[:, :1] * 1.0
    image = component_images(disc.moving, value, 30.0)[0]
    assert np.isfinite(image).all()
    col, row = np.round(disc.moving.index(disc.moving.xy)).astype(int).T
    assert np.abs(image[row, col] - value[:, 0]).max() < 60
    assert value.min() - 60 < image.min() < image.max() < value.max() + 60


def test_components_put_patterns_before_noise():
    rng = np.random.default_rng(0)
    xy = visium_positions(2000, 2000, 100.0)[0]
    pattern = np.sin(xy[:, 0] / 400) + np.cos(xy[:, 1] / 500)
    noise = rng.normal(size=(len(xy), 6)) * 5
    factors, alike = autocorrelation_factors(np.column_stack([noise, pattern + 0.2 * rng.normal(size=len(xy))]), xy, 3)
    assert abs(np.corrcoef(factors[:, 0], pattern)[0, 1]) > 0.95
    assert alike[0] > 0.9 > alike[1]
    np.testing.assert_allclose(factors.std(axis=0), 1, atol=1e-6)


def test_components_of_counts_do_not_depend_on_format_or_unit():
    rng = np.random.default_rng(0)
    xy = visium_positions(1500, 1500, 100.0)[0]
    counts = rng.poisson(np.exp(1 + np.outer(np.sin(xy[:, 0] / 300), rng.normal(size=40)))).astype(float)
    dense, _ = spatial_components(counts, xy, 4, np.random.default_rng(1))
    sparse, _ = spatial_components(sp.csc_matrix(counts), xy, 4, np.random.default_rng(1))
    np.testing.assert_allclose(dense, sparse)
    scaled, _ = spatial_components(counts * 1e6, xy, 4, np.random.default_rng(1))
    assert abs(np.corrcoef(dense[:, 0], scaled[:, 0])[0, 1]) > 0.99
    assert spatial_components(np.zeros((len(xy), 5)), xy, 4, rng)[0].shape == (len(xy), 0)
