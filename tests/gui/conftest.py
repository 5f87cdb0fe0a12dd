"""A real window, on a display that may be virtual: xvfb-run -a pytest tests/gui."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pytest
from spatialdata import deepcopy
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale
from tests.napari.conftest import napari_or_skip, write_prediction


@pytest.fixture(scope="session")
def napari():
    """napari with a display; the tests are skipped where one of the two is missing."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        pytest.skip("no display; run the tests under xvfb-run -a")
    found = napari_or_skip()
    from loguru import logger

    logger.disable("napari_spatialdata")  # it tells every step
    return found


@pytest.fixture(scope="module")
def sections(_mapped):
    """Three sections with predictions, the first with a histology image."""
    sdata = deepcopy(_mapped)
    write_prediction(sdata.tables["st"])
    pixels = np.full((3, 150, 160), 200, np.uint8)
    sdata.images["P1S1_he"] = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"P1S1": Scale([10, 10], axes=("x", "y"))},
    )
    return sdata


@pytest.fixture(scope="session")
def settle(napari):
    """Lets Qt do what it has been told."""

    def process(rounds: int = 5) -> None:
        from qtpy.QtWidgets import QApplication

        for _ in range(rounds):
            QApplication.processEvents()
            time.sleep(0.02)

    return process
