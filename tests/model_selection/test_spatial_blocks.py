import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_score

from stmsi.model_selection import SpatialBlockKFold

XY = 100.0 * np.argwhere(np.ones((20, 20)))


@pytest.fixture
def adata():
    xy = np.vstack([XY, XY + 17.0])
    obs = pd.DataFrame({"sample": np.repeat(["a", "b"], len(XY))}, index=[f"s{i}" for i in range(len(xy))])
    y = np.sin(xy / 300) + np.random.default_rng(0).normal(0, 0.2, xy.shape)
    return AnnData(
        np.ones((len(xy), 3), np.float32), obs=obs, obsm={"spatial": xy, "msi": pd.DataFrame(y, index=obs.index)}
    )


@pytest.mark.parametrize("options", [{}, {"block_size": 400}, {"block_size": 400, "buffer": 0}, {"buffer": 250.0}])
def test_every_spot_is_tested_once_and_the_buffer_is_kept(adata, options):
    splitter = SpatialBlockKFold(4, **options)
    folds = list(splitter.split(adata))
    assert len(folds) == splitter.get_n_splits() == 4
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(adata.n_obs))
    xy, sample = adata.obsm["spatial"], adata.obs["sample"].to_numpy()
    for train, test in folds:
        apart = np.where(sample[train][:, None] == sample[test], cdist(xy[train], xy[test]), np.inf)
        if options.get("buffer") == 0:
            assert len(train) + len(test) == adata.n_obs
            assert apart.min() == 100
        else:
            assert apart.min() > options.get("buffer", 200 if "block_size" in options else 100)
        assert 0.15 < len(test) / adata.n_obs < 0.35


def test_it_is_the_same_every_time_and_another_seed_is_another_split(adata):
    first, again = (list(SpatialBlockKFold(4, 300).split(adata)) for _ in range(2))
    for (a, b), (c, d) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    other = next(SpatialBlockKFold(4, 300, rng=1).split(adata))
    assert set(other[1]) != set(first[0][1])


def test_blocks_are_as_large_as_targets_are_correlated(adata):
    ranges = SpatialBlockKFold().correlation_ranges(adata)
    assert ranges.index.tolist() == ["a", "b"]
    assert (ranges > 400).all()
    noise = np.random.default_rng(0).normal(size=(adata.n_obs, 5))
    assert SpatialBlockKFold().correlation_ranges(adata, noise).isna().all()
    # without a pattern blocks are two spots wide
    small = next(SpatialBlockKFold(4, buffer=0).split(adata, noise))[1]
    large = next(SpatialBlockKFold(4, buffer=0).split(adata))[1]
    xy, sample = adata.obsm["spatial"], adata.obs["sample"].to_numpy()

    def border(test):
        inside = np.isin(np.arange(adata.n_obs), test)
        near = (cdist(xy, xy) < 101) & (sample[:, None] == sample)
        return (near[np.ix_(inside, ~inside)].any(axis=1)).mean()

    assert border(small) > 1.5 * border(large)


def test_correlation_beyond_the_section_is_said(adata, caplog):
    adata.obsm["msi"] = pd.DataFrame(adata.obsm["spatial"], index=adata.obs_names)
    with caplog.at_level(logging.WARNING, "stmsi"):
        folds = list(SpatialBlockKFold(4).split(adata))
    assert len(folds) == 4
    assert "targets are correlated over" in caplog.text


def test_spots_of_one_pixel_are_never_on_both_sides(adata):
    cell = (adata.obsm["spatial"] // 350).astype(int)
    pixel = pd.Series([f"p{s}{a}-{b}" for s, (a, b) in zip(adata.obs["sample"], cell, strict=True)], dtype=object)
    pixel[::17] = None
    adata.obs["msi_pixel"] = pd.Categorical(pixel)
    label = adata.obs["msi_pixel"].astype(object).to_numpy()
    shared = 0
    for splitter in (SpatialBlockKFold(4, 300, 0), SpatialBlockKFold(4, 250, 0)):
        for train, test in splitter.split(adata):
            a, b = (set(pd.Series(label[side]).dropna()) for side in (train, test))
            assert not a & b
        del adata.obs["msi_pixel"]
        for train, test in splitter.split(adata):
            a, b = (set(pd.Series(label[side]).dropna()) for side in (train, test))
            shared += len(a & b)
        adata.obs["msi_pixel"] = pd.Categorical(pixel)
    assert shared > 0  # without the column they are


def test_positions_and_scikit_learn():
    rng = np.random.default_rng(0)
    splitter = SpatialBlockKFold(3, 300, 100)
    assert len(list(splitter.split(XY))) == 3
    y = rng.normal(size=len(XY))
    assert len(cross_val_score(LinearRegression(), XY, y, cv=splitter)) == 3
    copied = clone(splitter, safe=False)
    assert (copied.n_splits, copied.block_size, copied.buffer, copied.rng) == (3, 300, 100, 0)
    assert "block_size=300" in repr(splitter)
    masks = list(splitter._iter_test_masks(XY))
    np.testing.assert_array_equal(np.sum(masks, axis=0), 1)


def test_sections_do_not_see_each_other():
    folds = list(SpatialBlockKFold(4, 900, 300).split(np.vstack([XY, XY]), groups=np.repeat([0, 1], 400)))
    both = [set(test // 400) for _, test in folds]
    assert any(len(b) == 1 for b in both) or len(folds) == 4
    # a spot right on top of a test spot, but of the other section, is trained on
    train, test = folds[0]
    own = test[test < 400]
    assert np.isin(own + 400, np.concatenate([train, test])).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_splits": 1}, "n_splits must be a whole number of at least 2, found 1"),
        ({"n_splits": 2.5}, "n_splits must be a whole number"),
        ({"block_size": 0}, "block_size must be a finite length above 0"),
        ({"block_size": np.inf}, "block_size must be a finite length above 0"),
        ({"buffer": -1}, "buffer must be a finite length at least 0"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialBlockKFold(**options)


def test_a_splitter_larger_than_the_tissue(adata):
    with pytest.raises(ValueError, match=r"block_size=5000 is larger than the tissue.*section measures 1900.*smaller"):
        next(SpatialBlockKFold(2, 5000).split(adata))
    with pytest.raises(ValueError, match=r"block_size=900 makes 8 blocks in all, which 9 folds"):
        next(SpatialBlockKFold(9, 900).split(adata))
    with pytest.raises(ValueError, match=r"buffer=3000 leaves no training spot in fold 0.*smaller buffer"):
        next(SpatialBlockKFold(4, 400, 3000).split(adata))


def test_positions_and_targets_that_are_missing(adata):
    noisy = adata.copy()
    noisy.obsm["spatial"][3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 800 positions are NaN or infinite"):
        next(SpatialBlockKFold(4, 300).split(noisy))
    lost = adata.copy()
    del lost.obsm["msi"]
    assert len(list(SpatialBlockKFold(4, 300).split(lost))) == 4
    with pytest.raises(KeyError, match=r"obsm has no 'msi'; map the MSI first, or pass block_size="):
        next(SpatialBlockKFold(4).split(lost))
    del lost.obsm["spatial"]
    with pytest.raises(KeyError, match=r'obsm has no "spatial" with the spot positions'):
        next(SpatialBlockKFold(4, 300).split(lost))
    with pytest.raises(KeyError, match="obs has no column 'slide'"):
        next(SpatialBlockKFold(4, 300, sample_key="slide").split(adata))
    with pytest.raises(ValueError, match=r"positions of shape \(spots, 2\); found an array of shape \(5, 3\)"):
        next(SpatialBlockKFold(4, 300).split(np.zeros((5, 3))))
    with pytest.raises(ValueError, match="no spots to split"):
        next(SpatialBlockKFold(4, 300).split(np.zeros((0, 2))))
