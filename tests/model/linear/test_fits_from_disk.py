"""Fits to features on disk are those to features in memory, and hold nothing that grows with the spots."""

import errno
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from stmsi._core import arrays_on_disk
from stmsi._core.arrays_on_disk import Derived, DiskArray, array_like, derived, new_array, some_of, write_into
from stmsi._core.learning.folds import inner_groups
from stmsi._core.metrics import columns
from stmsi.model.linear import _fits_from_disk as from_disk
from stmsi.model.linear._intensity import fit_ridges
from stmsi.model.linear._presence import fit_shared_classifiers
from stmsi.model.shared._inner_folds import InnerFolds


def problem(n, *, lacking=False, n_sections=6, n_features=12, n_metabolites=5, seed=0):
    """Features, intensities and presence of sections; the last metabolite is everywhere, and some lack others."""
    rng = np.random.default_rng(seed)
    sample = np.repeat([f"S{k}" for k in range(n_sections)], -(-n // n_sections))[:n]
    F = (rng.normal(size=(n, n_features)) * np.logspace(0, -1.5, n_features)).astype(np.float32)
    score = F @ rng.normal(size=(n_features, n_metabolites)) + rng.normal(size=(n, n_metabolites))
    presence = (score > rng.normal(size=n_metabolites)).astype(float)
    presence[:, -1] = 1
    intensity = np.where(presence > 0, np.exp(0.3 * score), 0).astype(np.float32).astype(float)
    if lacking:
        intensity[sample == "S0", 0] = np.nan
        intensity[sample != "S2", 1] = np.nan  # in one group only
        presence[np.isnan(intensity)] = np.nan
    groups = inner_groups(sample, None)
    xy = np.column_stack([np.arange(n) % 20, np.arange(n) // 20]).astype(float)
    apart = []
    if lacking:
        own = np.full(n, -1)
        own[sample == "S2"] = inner_groups(sample[sample == "S2"], xy[sample == "S2"])
        apart = [(np.array([1]), own)]
    return F, intensity, presence, InnerFolds(groups, np.unique(sample, return_inverse=True)[1], "sections", apart)


def on_disk(values, folder):
    out = DiskArray(folder, values.shape, values.dtype)
    out[:, :] = values
    return out


def largest_difference(a, b):
    """In units of the largest number."""
    return np.nanmax(np.abs(a - b)) / np.nanmax(np.abs(b))


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("at_once", [2**20, 1000])
def test_both_stages_are_those_in_memory(tmp_path, monkeypatch, lacking, at_once):
    monkeypatch.setattr(arrays_on_disk, "_AT_ONCE", at_once)  # all spots, or 83
    F, intensity, presence, folds = problem(900, lacking=lacking)
    stored = on_disk(F, tmp_path)
    lines = fit_shared_classifiers(F, presence, folds)
    others, probability = from_disk.fit_classifiers_from_disk(stored, presence, folds, tmp_path)
    for m, (a, b) in enumerate(zip(lines, others, strict=True)):
        assert (a.estimator is None) == (b.estimator is None)
        assert b.prior == a.prior
        np.testing.assert_allclose(probability[:, m], a.held_out, atol=1e-6)
        np.testing.assert_allclose(b.predict(F), a.predict(F), atol=1e-6)
    assert lines[-1].estimator is None, "a metabolite that is everywhere"
    ridges = fit_ridges(F, intensity, presence, folds)
    again, held_out = from_disk.fit_ridges_from_disk(stored, intensity, presence, folds, tmp_path)
    # in single precision, sums over all spots and sums of sums differ in the last digits
    allowed = 1e-6 if at_once > 1000 else 3e-6
    for m, (a, b) in enumerate(zip(ridges, again, strict=True)):
        assert largest_difference(held_out[:, m], a.held_out) < allowed
        assert largest_difference(b.predict(F), a.predict(F)) < allowed
        assert b.strength == a.strength


@pytest.mark.parametrize("stage", ["presence", "intensity"])
def test_nothing_in_memory_grows_with_spots_and_metabolites(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(arrays_on_disk, "_AT_ONCE", 2**15)
    monkeypatch.setattr(columns, "_AT_ONCE", 2**15)

    def peak(n):
        F, intensity, presence, folds = problem(n, n_features=20, n_metabolites=40)
        F, intensity, presence = (on_disk(v, tmp_path) for v in (F, intensity, presence))
        tracemalloc.start()
        try:
            if stage == "presence":
                kept = from_disk.fit_classifiers_from_disk(F, presence, folds, tmp_path)
            else:
                kept = from_disk.fit_ridges_from_disk(F, intensity, presence, folds, tmp_path)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(kept[1], DiskArray)
        return most

    peak(600)  # what is imported once
    few, many = peak(4_000), peak(8_000)
    # 40 metabolites in double precision would be 320 bytes a spot, and 20 features 80
    assert (many - few) / 4_000 < 60


def test_an_array_on_disk_is_gone_with_its_object(tmp_path):
    values = np.arange(12.0).reshape(4, 3)
    for by_column in (False, True):
        stored = DiskArray(tmp_path, values.shape, np.float32, by_column=by_column)
        assert not stored[:, :].any()
        stored[1:3] = values[1:3]
        stored[np.ix_([0, 3], [2])] = values[[0, 3]][:, [2]]
        np.testing.assert_array_equal(stored[[2, 1], 1:], values[[2, 1], 1:])
        np.testing.assert_array_equal(stored[..., 2], values[:, 2])
        assert stored[1:3].flags.c_contiguous
        copy = pickle.loads(pickle.dumps(stored))
        assert type(copy) is np.ndarray
        np.testing.assert_array_equal(copy, np.asarray(stored))
    assert DiskArray(tmp_path, (4, 0), float)[1:3].shape == (2, 0)
    del stored
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="asks the system for the space first")
def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        DiskArray(tmp_path, (4, 3), float)


def test_a_derived_array_is_read_in_pieces():
    values = np.arange(12.0).reshape(4, 3)
    made = Derived(values.shape, lambda rows, columns: 2 * values[rows, columns])
    np.testing.assert_array_equal(made[1:3], 2 * values[1:3])
    np.testing.assert_array_equal(made[..., 1:], 2 * values[:, 1:])
    np.testing.assert_array_equal(np.asarray(made), 2 * values)


def test_some_of_what_is_not_in_memory_is_read_when_asked(tmp_path):
    values = np.arange(30.0).reshape(6, 5)
    stored = on_disk(values, tmp_path)
    rows, columns = np.array([4, 1, 3, 0]), np.array([0, 2, 3])
    twice = derived(lambda a, b: a + b, stored, values)
    assert isinstance(twice, Derived)
    for of, expected in ((stored, values), (twice, 2 * values), (values, values)):
        some, expected = some_of(some_of(of, rows), columns=columns), expected[np.ix_(rows, columns)]
        assert some.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(some), expected)
        for at in (np.s_[1:3], np.s_[..., 1:], np.s_[:, 2], np.s_[1:, np.array([2, 0])], np.s_[np.array([3, 0])]):
            np.testing.assert_array_equal(some[at], expected[at])
        np.testing.assert_array_equal(some[np.ix_([2, 0], [1, 2])], expected[np.ix_([2, 0], [1, 2])])
    assert some_of(stored, np.arange(6), np.arange(5)) is stored
    assert some_of(stored, rows).folder == tmp_path
    assert isinstance(array_like(some_of(stored, rows), np.float32), DiskArray)
    np.testing.assert_array_equal(derived(lambda a: -a, values), -values)


def test_numbers_are_written_into_part_of_an_array(tmp_path):
    for folder in (None, tmp_path):
        out = new_array(folder, (5, 4), float, np.nan)
        assert isinstance(out, np.ndarray if folder is None else DiskArray)
        assert np.isnan(out[:, :]).all()
        write_into(out, (np.array([3, 1]), np.array([0, 2])), np.array([[1.0, 2], [3, 4]]))
        np.testing.assert_array_equal(out[np.ix_([3, 1], [0, 2])], [[1, 2], [3, 4]])
        assert np.isnan(out[:, :]).sum() == 16
