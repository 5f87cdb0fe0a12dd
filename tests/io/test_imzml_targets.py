"""Ions that are asked for where the file holds nothing, or too close to each other: told, and never a 0 that was not measured."""

import numpy as np
import pytest
from pyimzml.ImzMLWriter import ImzMLWriter

from stmsi._data.concatenate import concat_msi
from stmsi.io import read_imzml

pytestmark = pytest.mark.usefixtures("engine")

PROCESSED = {(x, 1): ([100.0, 200.0 + x, 300.0], [1.0, 2.0, 3.0]) for x in (1, 2, 3)}
CONTINUOUS = {(x, 1): (np.linspace(100, 300, 21), np.arange(21.0)) for x in (1, 2, 3)}


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("spectra", [PROCESSED, CONTINUOUS], ids=["processed", "continuous"])
def test_outside_of_the_acquired_range_is_not_measured(tmp_path, handmade, caplog, spectra, out):
    path = handmade(tmp_path / "a.imzML", spectra)
    store = {"out": tmp_path / "a.zarr"} if out else {}
    table = read_imzml(path, mz=[900.0, 100.0, 300.0, 50.0, 250.0], **store).tables["msi"]
    inside = [False, True, True, False, True]
    assert table.varm["measured"]["a"].tolist() == inside
    assert "holds no m/z near 2 of 5 ions" in caplog.text
    caplog.clear()
    within = read_imzml(path, mz=[100.0, 250.0]).tables["msi"]
    assert "measured" not in within.varm
    assert "WARNING" not in caplog.text


def test_between_the_bins_of_a_shared_axis_nothing_was_stored(tmp_path, caplog):
    path = tmp_path / "a.imzML"
    with ImzMLWriter(str(path), mode="continuous") as writer:
        for place, (mz, intensity) in CONTINUOUS.items():
            writer.addSpectrum(mz, intensity, place)
    table = read_imzml(path, mz=[155.0, 150.0], pixel_size=50).tables["msi"]
    assert table.varm["measured"]["a"].tolist() == [False, True]
    assert "1 of 2 ions" in caplog.text


def test_windows_that_overlap_are_told(tmp_path, handmade, caplog):
    path = handmade(tmp_path / "a.imzML", PROCESSED)
    read_imzml(path, mz=[300.001, 100.0, 300.0])
    assert "the windows of 1 pairs of ions (5 ppm to each side) overlap" in caplog.text
    assert "'mz_300.0000 and mz_300.0010'" in caplog.text
    caplog.clear()
    read_imzml(path, mz=[300.004, 100.0, 300.0])
    assert "overlap" not in caplog.text


def test_sections_together_remember_what_was_not_measured(tmp_path, handmade):
    spectra = {place: (mz[:2], values[:2]) for place, (mz, values) in PROCESSED.items()}
    tables = [
        read_imzml(handmade(tmp_path / f"{name}.imzML", content), mz=[100.0, 300.0]).tables["msi"]
        for name, content in (("short", spectra), ("long", PROCESSED))
    ]
    merged, _ = concat_msi(tables, None)
    assert merged.varm["measured"].to_numpy().tolist() == [[True, True], [False, True]]
    assert np.isnan(merged.varm["section_mz"]["short"].iloc[1])
