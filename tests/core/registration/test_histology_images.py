import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from stmsi._core.registration.histology_images import register_images
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.placements import inverse


def _tissue(rng):
    """A section with structure, on a bright slide, at 20 um; and where it is."""
    x, y = np.meshgrid(np.arange(180), np.arange(160))
    angle = np.arctan2(y - 80, x - 90)
    inside = np.hypot(x - 90, y - 80) < 58 + 9 * np.cos(angle - 1) + 6 * np.cos(2 * angle) + 4 * np.sin(3 * angle)
    texture = gaussian_filter(rng.standard_normal(x.shape), 6)
    return np.where(inside, 0.4 + 0.25 * texture / texture.std(), 1.6)


@pytest.mark.parametrize(("degrees", "mirror"), [(35, False), (-140, True)])
def test_images_of_other_contrast_find_each_other(degrees, mirror):
    rng = np.random.default_rng(0)
    fixed = _tissue(rng)
    a, hand = np.radians(degrees), -1.0 if mirror else 1.0
    truth = np.eye(3)  # moving -> fixed, um
    truth[:2, :2] = [[hand * np.cos(a), -np.sin(a)], [hand * np.sin(a), np.cos(a)]]
    size = 40.0
    corners = np.array([[0.0, 0], [3600, 0], [0, 3200], [3600, 3200]])
    truth[:2, 2] = -(corners @ truth[:2, :2]).min(axis=0) @ -truth[:2, :2].T
    shape = tuple(np.ceil(np.ptp(corners @ truth[:2, :2], axis=0)[::-1] / size).astype(int))
    rows, cols = np.indices(shape)
    at = apply_affine(truth, np.column_stack([cols.ravel(), rows.ravel()]) * size) / 20
    moving = map_coordinates(fixed, at.T[::-1], order=1, mode="nearest").reshape(shape)
    moving = 3 * (1.6 - moving) ** 2 + rng.normal(0, 0.1, shape)  # bright tissue on a dark slide
    fit = register_images(moving, fixed, size, 20.0)
    probe = corners / 2 + [900, 800]
    distance = np.hypot(*(apply_affine(fit.matrix, apply_affine(inverse(truth), probe)) - probe).T)
    assert distance.max() < 60, "one and a half pixels"
    assert fit.information > 0.3
    assert fit.lead > 0.1


def test_what_cannot_be_registered_is_refused():
    with pytest.raises(ValueError, match="moving image must be one finite channel"):
        register_images(np.zeros((20, 20)), np.eye(20), 1, 1)
    with pytest.raises(ValueError, match=r"fixed image.*found shape \(20, 20, 3\)"):
        register_images(np.eye(20), np.ones((20, 20, 3)), 1, 1)
