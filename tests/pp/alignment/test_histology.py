"""Alignment of images, as pp.align offers it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

import stmsi
from stmsi._core.registration.landmarks import apply_affine


def _with_images(sdata, name, scale_factors=None):
    """Histology of both sections of a simulated one: tissue with texture, seen at other sizes and in other colours."""
    rng = np.random.default_rng(0)
    truth = np.asarray(sdata.tables["st"].uns["truth"]["transformation"][name])  # MSI frame -> ST frame
    xy = sdata.tables["st"].obsm["spatial"][(sdata.tables["st"].obs["sample"] == name).to_numpy()]
    size = 10.0
    shape = tuple(np.ceil((xy.max(axis=0)[::-1] + 200) / size).astype(int))
    y, x = np.indices(shape) * size
    middle, reach = xy.mean(axis=0), np.ptp(xy, axis=0) / 2
    angle = np.arctan2(y - middle[1], x - middle[0])
    radius = np.hypot((x - middle[0]) / reach[0], (y - middle[1]) / reach[1])
    inside = radius < 0.9 + 0.15 * np.cos(angle - 1) + 0.1 * np.sin(3 * angle)
    texture = gaussian_filter(rng.standard_normal(shape), 8)
    tissue = np.where(inside, 0.4 + 0.2 * texture / texture.std(), 1.5)
    pixels = sdata.tables["msi"].obsm["spatial"][(sdata.tables["msi"].obs["sample"] == name).to_numpy()]
    own = tuple(np.ceil((pixels.max(axis=0)[::-1] + 100) / 20.0).astype(int))
    v, u = (np.indices(own) + 0.5) * 20.0
    at = apply_affine(truth, np.column_stack([u.ravel(), v.ravel()])) / size - 0.5
    msi = map_coordinates(tissue, at.T[::-1], order=1, mode="nearest").reshape(own)
    for element, values, unit, frame in (
        (f"{name}_he", tissue, size, name), (f"{name}_msi_he", 3 * (1.6 - msi) ** 2, 20.0, f"{name}_msi"),
    ):  # fmt: skip
        colours = np.stack([values, 0.8 * values, 0.9 * values])
        sdata.images[element] = Image2DModel.parse(
            colours,
            dims=("c", "y", "x"),
            scale_factors=scale_factors,
            transformations={frame: Scale([unit, unit], ("x", "y"))},
        )
    return truth, pixels


@pytest.fixture(scope="module")
def section():
    return stmsi.datasets.simulate(n_patients=1, sections_per_patient=1, n_genes=60, n_metabolites=10, size=2400, rng=1)


@pytest.mark.parametrize("scale_factors", [None, [2]])
def test_histology_of_both_sections(section, scale_factors):
    truth, pixels = _with_images(section, "P1S1", scale_factors)
    stmsi.pp.align(section, method="histology")
    record = section.tables["msi"].uns["alignment"]["P1S1"]
    assert record["method"] == "histology"
    error = np.hypot(*(apply_affine(record["matrix"], pixels) - apply_affine(truth, pixels)).T)
    assert np.median(error) < 40
    assert not record["ambiguous"]
    assert stmsi.pp.alignment_report(section).loc["P1S1", "method"] == "histology"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": ("x", None)}, KeyError, "No image 'x'; images: .*Name two with images="),
        ({"images": ("P1S1_he", None)}, ValueError, "'P1S1_he' lies in 'P1S1', not in 'P1S1_msi'"),
        ({"images": (None, None), "method": "auto"}, ValueError, "images= goes with method"),
        ({"images": (None, None), "landmarks": {}}, ValueError, "images= goes with method"),
    ],
)
def test_what_is_refused(section, options, error, message):
    _with_images(section, "P1S1")
    with pytest.raises(error, match=message):
        stmsi.pp.align(section, **options)
