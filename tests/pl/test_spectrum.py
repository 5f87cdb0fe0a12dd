"""pl.spectrum."""

import numpy as np
import pytest

import stmsi


def lines_of(ax):
    segments = np.array(ax.collections[0].get_segments())
    return segments[:, 0, 0], segments[:, 1, 1]


def test_picture(mapped, same_picture):
    same_picture(stmsi.pl.spectrum(mapped, return_fig=True), "spectrum")


def test_ions_at_their_mz_as_high_as_their_mean(mapped):
    msi = mapped.tables["msi"]
    axes = stmsi.pl.spectrum(mapped)
    for ax in axes:
        mz, height = lines_of(ax)
        rows = (msi.obs["sample"] == ax.get_title()).to_numpy()
        np.testing.assert_allclose(mz, msi.var["mz"])
        np.testing.assert_allclose(height, np.asarray(msi.X[rows].mean(axis=0)).ravel(), rtol=1e-5)
    assert len({ax.get_ylim() for ax in axes}) == 1, "panels can be compared"
    labels = [text.get_text() for text in axes[0].texts]
    assert 0 < len(labels) <= 8
    assert set(labels) <= set(msi.var["name"])


def test_groups_ranges_and_labels(mapped):
    msi = mapped.tables["msi"].copy()
    axes = stmsi.pl.spectrum(msi, groupby="patient", sample=["P1S1", "P2S1"], n_labels=0)
    assert [ax.get_title() for ax in axes] == sorted(msi.obs["patient"][msi.obs["sample"] != "P3S1"].unique())
    assert not axes[0].texts
    ax = stmsi.pl.spectrum(msi, sample="P1S1", mz_range=(600, 800))
    mz, _ = lines_of(ax)
    assert ((mz >= 600) & (mz <= 800)).all()
    del msi.var["name"]
    ax = stmsi.pl.spectrum(msi, sample="P1S1", n_labels=1)
    (label,) = [text.get_text() for text in ax.texts]
    mz, height = lines_of(ax)
    assert label == f"{mz[height.argmax()]:.3f}"


def test_what_is_no_spectrum(mapped):
    with pytest.raises(ValueError, match=r"no var\['mz'\]"):
        stmsi.pl.spectrum(mapped, table_key="st")
    with pytest.raises(ValueError, match=r"No ion lies in mz_range=\(1, 2\)"):
        stmsi.pl.spectrum(mapped, mz_range=(1, 2))
    with pytest.raises(KeyError, match="no layer 'log'"):
        stmsi.pl.spectrum(mapped, layer="log")
