"""A real window, on a display that may be virtual: xvfb-run -a pytest tests/gui."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale
from tests.napari.conftest import napari_or_skip, write_prediction


@pytest.fixture(scope="session")
def napari():
    """napari with a display; the tests are skipped where one of the two is missing."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        pytest.skip("no display; run the tests under xvfb-run -a")
    return napari_or_skip()


@pytest.fixture
def sections(mapped):
    """Three sections with predictions, the first with a histology image."""
    write_prediction(mapped.tables["st"])
    pixels = np.full((3, 150, 160), 200, np.uint8)
    mapped.images["P1S1_he"] = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"P1S1": Scale([10, 10], axes=("x", "y"))},
    )
    return mapped


@pytest.fixture
def settle(napari):
    """Lets Qt do what it has been told."""

    def process(seconds: float = 0.3) -> None:
        from qtpy.QtWidgets import QApplication

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            QApplication.processEvents()
            time.sleep(0.01)

    return process


@pytest.fixture
def opened(napari):
    """Closes the windows of a test."""

    @contextmanager
    def closing():
        windows = []
        yield windows
        for viewer in windows:
            viewer.close()

    with closing() as windows:
        yield windows
