"""Folds of spatial blocks with a buffer between training and test spots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_consistent_length

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.spatial.blocks import correlation_range, correlogram, grid_blocks, near_any, spread_blocks
from stmsi._core.spatial.sections import rows_of_each, spot_pitch
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import require_frame, sections_of
from stmsi._settings import logger
from stmsi.model_selection._split import codes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_BUFFER_SHARE = 0.5
_FEW_LEFT = 0.2


class _Spots(NamedTuple):
    xy: Floats
    names: list[Any]
    section: Ints
    targets: Floats | None
    pixel: Ints | None


class SpatialBlockKFold(BaseCrossValidator):
    """Each fold tests on some spatial blocks and trains on the spots that are far enough from them.

    Neighbouring spots resemble each other, so a random split tests a model on near copies of its training spots. Here a
    square grid cuts each section into blocks as large as the range of the targets' correlation. Blocks are dealt out to
    the folds, and training spots within `buffer` of a test spot are left out of the fold. Spots with values from one MSI
    pixel (``obs["msi_pixel"]`` of :func:`stmsi.pp.map_to_spots`) stay in one block.

    For one or two sections. Scores tell how well a model fills in a section that it knows in part; for new sections see
    :class:`LeaveOneSampleOut` and :class:`LeaveOnePatientOut`.

    Parameters
    ----------
    n_splits
        Number of folds, at least 2.
    block_size
        Least side of a block, in the unit of the positions (um). `None`: in each section the range of the targets'
        correlation (:meth:`correlation_ranges`), between two spots and the largest that leaves enough blocks.
    buffer
        Distance from a test spot within which spots are left out of training; `None`: half the block size.
    metabolite_key
        Targets in ``obsm``, for the block size.
    sample_key
        Column of ``obs`` with the section name.
    rng
        Seed that deals out the blocks.

    References
    ----------
    Roberts et al., *Cross-validation strategies for data with temporal, spatial, hierarchical, or phylogenetic
    structure*, Ecography 40, 2017, https://doi.org/10.1111/ecog.02881

    Examples
    --------
    >>> import stmsi
    >>> st = stmsi.datasets.toy().tables["st"]
    >>> splitter = stmsi.model_selection.SpatialBlockKFold(4, block_size=300, buffer=150)
    >>> train, test = next(splitter.split(st))
    >>> splitter.get_n_splits(), len(train) + len(test) < st.n_obs
    (4, True)
    """

    def __init__(
        self,
        n_splits: int = 5,
        block_size: float | None = None,
        buffer: float | None = None,
        *,
        metabolite_key: str = Key.obsm.MSI,
        sample_key: str = Key.obs.SAMPLE,
        rng: int = 0,
    ) -> None:
        if isinstance(n_splits, bool) or not isinstance(n_splits, int | np.integer) or n_splits < 2:
            msg = f"n_splits must be a whole number of at least 2, found {n_splits!r}."
            raise ValueError(msg)
        for name, value, least in (("block_size", block_size, "above"), ("buffer", buffer, "at least")):
            if value is not None and not (np.isfinite(value) and (value > 0 or (value == 0 and least == "at least"))):
                msg = f"{name} must be a finite length {least} 0, found {value!r}."
                raise ValueError(msg)
        self.n_splits, self.block_size, self.buffer = n_splits, block_size, buffer
        self.metabolite_key, self.sample_key, self.rng = metabolite_key, sample_key, rng

    def get_n_splits(self, X: Any = None, y: Any = None, groups: ArrayLike | None = None) -> int:
        """Number of folds; the arguments are ignored."""
        return int(self.n_splits)

    def correlation_ranges(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> pd.Series:
        """Range of the targets' correlation in each section; arguments and KeyError as for ``split``.

        The median over targets of the distance at which an exponential, fitted to the correlogram, has fallen to 5 %. NaN
        where no target has a pattern, infinite where correlations do not fall within the section.
        """
        return self._ranges(self._read(X, y, groups))

    def split(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield training and test indices.

        Parameters
        ----------
        X
            AnnData of spots with positions in ``obsm["spatial"]``, or an array of positions, shape (spots, 2).
        y
            Targets for the block size, shape (spots,) or (spots, metabolites); `None`: ``obsm[metabolite_key]``.
        groups
            Section of each spot; `None`: ``obs[sample_key]`` of an AnnData, one section for positions.

        Yields
        ------
        Indices of the training and of the test spots. Every spot is tested once.

        Raises
        ------
        KeyError
            Positions, sections or targets are missing.
        ValueError
            Positions are NaN, blocks larger than the tissue or fewer than folds, or the buffer leaves no training spot.
        """
        spots = self._read(X, y, groups)
        fold, buffer = self._folds(spots)
        for k in range(self.n_splits):
            held = fold == k
            near = held.copy()
            for own, width in zip(rows_of_each(spots.section), buffer, strict=True):
                near[own] = near_any(spots.xy[own], spots.section[own], held[own], width)
            train = np.flatnonzero(~near)
            if len(train) == 0:
                msg = (
                    f"buffer={self._shown(buffer)} leaves no training spot in fold {k}; take a smaller buffer or smaller "
                    "blocks, or more folds."
                )
                raise ValueError(msg)
            if len(train) < _FEW_LEFT * len(fold):
                logger.warning(
                    "Fold %d trains on %d of %d spots, the others are tested or lie in the buffer.",
                    k, len(train), len(fold),
                )  # fmt: skip
            yield train, np.flatnonzero(held)

    def _iter_test_masks(self, X: Any = None, y: Any = None, groups: ArrayLike | None = None) -> Iterator[Bools]:
        """Test spots of each fold, which scikit-learn's base class asks for."""
        fold, _ = self._folds(self._read(X, y, groups))
        yield from (fold == k for k in range(self.n_splits))

    def _read(self, X: Any, y: Any, groups: ArrayLike | None) -> _Spots:
        pixel = None
        if isinstance(X, AnnData):
            if Key.obsm.SPATIAL not in X.obsm:
                found = listing(X.obsm.keys())
                msg = f'obsm has no "{Key.obsm.SPATIAL}" with the spot positions, which spatial blocks need; found {found}.'
                raise KeyError(msg)
            xy = np.asarray(X.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
            groups = sections_of(X, self.sample_key) if groups is None else groups
            if y is None and self.metabolite_key in X.obsm:
                y = require_frame(X, self.metabolite_key).to_numpy(np.float64)
            name = Key.pixel_of(self.metabolite_key)[0]
            if name in X.obs:
                # spots without a pixel are each their own
                code = codes(X.obs[name])
                pixel = np.where(code >= 0, code, code.max(initial=-1) + 1 + np.arange(len(code)))
        else:
            xy = np.asarray(X, dtype=np.float64)
            if xy.ndim != 2 or xy.shape[1] != 2:
                msg = f"Pass an AnnData, or positions of shape (spots, 2); found an array of shape {xy.shape}."
                raise ValueError(msg)
        groups = np.zeros(len(xy)) if groups is None else groups
        check_consistent_length(xy, groups)
        bad = int((~np.isfinite(xy)).any(axis=1).sum())
        if bad:
            msg = f"{bad} of {len(xy)} positions are NaN or infinite; place those spots or leave them out."
            raise ValueError(msg)
        if len(xy) == 0:
            msg = "There are no spots to split."
            raise ValueError(msg)
        section, names = pd.factorize(np.asarray(groups, dtype=object))
        if y is not None:
            check_consistent_length(xy, y)
            y = np.asarray(y, dtype=np.float64).reshape(len(xy), -1)
        return _Spots(xy, list(names), section.astype(np.int64), y, pixel)

    def _ranges(self, spots: _Spots) -> pd.Series:
        if spots.targets is None:
            msg = (
                f"The block size follows the targets, and obsm has no {self.metabolite_key!r}; map the MSI first, or pass "
                "block_size=."
            )
            raise KeyError(msg)
        ranges = []
        for own in rows_of_each(spots.section):
            each = correlation_range(correlogram(spots.xy[own], spots.targets[own], seed=self.rng))
            each = each[~np.isnan(each)]
            ranges.append(float(np.median(each)) if len(each) else np.nan)
        return pd.Series(ranges, index=spots.names, name="range", dtype=np.float64)

    def _sizes(self, spots: _Spots) -> list[float]:
        """Block size in each section."""
        if self.block_size is not None:
            return [float(self.block_size)] * len(spots.names)
        sizes = []
        for name, own, found in zip(spots.names, rows_of_each(spots.section), self._ranges(spots), strict=True):
            xy = spots.xy[own]
            least = 2 * spot_pitch(xy) or 1.0
            most = max(float(np.ptp(xy, axis=0).max()) / np.ceil(np.sqrt(self.n_splits)), least)
            sizes.append(least if np.isnan(found) else float(np.clip(found, least, most)))
            if found > most:
                logger.warning(
                    "Section %r: targets are correlated over %.4g, further than blocks for %d folds can be (%.4g): its "
                    "scores tell how well a section is filled in, not what a new one gives.",
                    str(name), found, self.n_splits, most,
                )  # fmt: skip
        return sizes

    def _folds(self, spots: _Spots) -> tuple[Ints, list[float]]:
        """Fold of each spot, buffer in each section."""
        sizes, sections = self._sizes(spots), rows_of_each(spots.section)
        block, number = np.zeros(len(spots.xy), np.int64), 0
        for own, size in zip(sections, sizes, strict=True):
            code, _ = grid_blocks(spots.xy[own], size, None if spots.pixel is None else spots.pixel[own])
            block[own] = code + number
            number += int(code.max()) + 1
        if number == len(sizes) or number < self.n_splits:
            extent = max(float(np.ptp(spots.xy[own], axis=0).max()) for own in sections)
            what = "is larger than the tissue" if number == len(sizes) else f"makes {number} blocks in all"
            msg = (
                f"block_size={self._shown(sizes)} {what}, which {self.n_splits} folds cannot be made of; the largest "
                f"section measures {extent:.4g}. Take smaller blocks or fewer folds, or leave out whole sections."
            )
            raise ValueError(msg)
        fold = spread_blocks(spots.section, block, self.n_splits, np.random.default_rng(self.rng))
        buffer = [_BUFFER_SHARE * size if self.buffer is None else float(self.buffer) for size in sizes]
        return fold, buffer

    @staticmethod
    def _shown(lengths: list[float]) -> str:
        low, high = min(lengths), max(lengths)
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
