"""Tissue masks of both modalities: MSI pixels as a raster of distances, spots as labelled points.

scikit-image's Otsu threshold splits every image; :func:`coherent_tissue` adds when not to believe it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import Delaunay, cKDTree

from stmsi._core.registration.placements import turn
from stmsi._core.registration.warps import Floats

_LATTICE = 1.4
"""Spots lie on a lattice where the 90th percentile of the distance to the next one is below this many medians."""
_CUT = 0.45
"""Tissue that runs along this share of a side of its bounding box was cut there by the edge of what was measured."""
_ORDER = 0.5
"""Directions to neighbours make a lattice where they repeat with this strength; 1 for a perfect one, 0 for none."""
_CLEARLY = 1.25
_STRAY = 0.05
"""Array positions that miss the spots by more than this share of the section's spread are those of something else."""
_MARGIN = 0.2
"""Off-tissue points continue the lattice this far beyond the tissue, as a share of its extent."""
_SEPARATED = 2.8
"""Tissue and background lie so far apart, in root mean squares of their two standard deviations (Ashman's D)."""
_RATIO = 1.8
"""Tissue holds at least so many times what the background holds."""
_VALLEY = 0.12
"""At most this share of pixels lies in the middle third between both; of one normal distribution, 21 % would."""
_COHERENT = 0.9
_LEAST_TISSUE = 0.1


@dataclass(frozen=True)
class TissueRaster:
    """MSI tissue on its pixel raster.

    Signed distance to the outline in um (inside positive); `measured`, 0 beyond a side where the raster stopped within
    the tissue; position of element (0, 0) and size of a pixel, (x, y); centres of the tissue pixels, shape (n, 2).
    """

    distance: Floats
    measured: Floats
    origin: Floats
    spacing: Floats
    xy: Floats

    @property
    def pixel(self) -> float:
        """Side of a square of a pixel's area."""
        return float(np.sqrt(self.spacing.prod()))

    @property
    def area(self) -> float:
        """Area of the tissue."""
        return float(len(self.xy) * self.spacing.prod())

    def soft(self, width: float) -> Floats:
        """Membership from 0 to 1 that changes over `width` micrometres on either side of the outline."""
        return 0.5 * (1 + np.tanh(self.distance / width))

    def index(self, xy: Floats) -> Floats:
        """Positions as (col, row), not rounded."""
        return (xy - self.origin) / self.spacing

    @property
    def piece(self) -> bool:
        """Whether nothing is known beyond the tissue on any side."""
        return not (self.measured[self.distance < 0] > 0).any()

    def as_piece(self) -> TissueRaster:
        """The same tissue as a piece of a larger one: beyond its outline there may be more, which was not measured."""
        return replace(self, measured=(self.distance > 0).astype(float))

    def scaled(self, factor: float) -> TissueRaster:
        """The same tissue in another unit of length."""
        return TissueRaster(
            self.distance * factor, self.measured, self.origin * factor, self.spacing * factor, self.xy * factor
        )


@dataclass(frozen=True)
class TissuePoints:
    """ST tissue as labelled points: spots, places known to be off the tissue, and the pitch of the spots."""

    xy: Floats
    tissue: NDArray[np.bool_]
    pitch: float

    @property
    def area(self) -> float:
        """Approximate area of the tissue."""
        return float(self.tissue.sum() * self.pitch**2 * np.sqrt(3) / 2)


def point_spacing(xy: Floats) -> tuple[float, bool]:
    """Distance between neighbouring spots, and whether they lie on a lattice.

    Points without a lattice (a random subset of bins) get the side of the square that each has to itself: twice the
    mean distance to the next point of a Poisson pattern.
    """
    nearest = cKDTree(xy).query(xy, k=2)[0][:, 1]
    middle = float(np.median(nearest))
    if np.quantile(nearest, 0.9) < _LATTICE * middle:
        return middle, True
    return 2 * float(nearest.mean()), False


def pixel_raster(xy: Floats, spacing: Floats, tissue: NDArray[np.bool_] | None = None) -> TissueRaster:
    """Raster of the tissue pixels, with room around it, from the centres of all measured pixels, shape (n, 2)."""
    tissue = np.ones(len(xy), bool) if tissue is None else tissue
    col, row = np.round((xy - xy.min(axis=0)) / spacing).astype(int).T
    pad = max(6, int(0.3 * max(np.ptp(row), np.ptp(col))))
    shape = (row.max() + 1 + 2 * pad, col.max() + 1 + 2 * pad)
    on = np.zeros(shape, bool)
    on[row[tissue] + pad, col[tissue] + pad] = True
    on = _without_pinholes(on)
    sampling = (spacing[1], spacing[0])
    half = spacing.mean() / 2
    inside, outside = (ndimage.distance_transform_edt(m, sampling=sampling) for m in (on, ~on))
    distance = np.where(on, inside - half, half - outside)
    measured = np.ones(shape)
    own = xy[tissue]
    low, high = xy.min(axis=0), xy.max(axis=0)
    (left, right), (top, bottom) = cut_sides(own, low, high, float(spacing.max()))
    measured[:, : pad * left] = measured[:, shape[1] - pad * right :] = 0
    measured[: pad * top] = measured[shape[0] - pad * bottom :] = 0
    return TissueRaster(distance, measured, low - pad * spacing, spacing, own)


def _without_pinholes(on: NDArray[np.bool_], size: int = 3) -> NDArray[np.bool_]:
    """Fill holes of at most `size` pixels: lost spectra, not gaps of the tissue."""
    label, _ = ndimage.label(~on)
    small = np.bincount(label.ravel()) <= size
    small[0] = False
    return on | small[label]


def cut_sides(
    xy: Floats, low: Floats, high: Floats, pitch: float, *, lattice: bool = True
) -> tuple[tuple[bool, bool], tuple[bool, bool]]:
    """Sides (left, right), (top, bottom) of a box at which tissue was cut: it runs along much of them."""
    (left, right), (top, bottom) = _along_sides(xy, low, high, pitch, lattice=lattice) > _CUT
    return (bool(left), bool(right)), (bool(top), bool(bottom))


def _along_sides(xy: Floats, low: Floats, high: Floats, pitch: float, *, lattice: bool) -> Floats:
    """Share of each side of a box along which points lie: (left, right), (top, bottom)."""
    # points without a lattice meet a side less often
    depth, width = (0.6 * pitch, 1.5 * pitch) if lattice else (pitch, 2 * pitch)

    def along(axis: int, side: float) -> float:
        near, start = np.abs(xy[:, axis] - side) < depth, low[1 - axis]
        n = max(1, int((high[1 - axis] - start) / width))
        bins = np.clip(((xy[near, 1 - axis] - start) / width).astype(int), 0, n - 1)
        return len(np.unique(bins)) / n

    return np.array([[along(axis, low[axis]), along(axis, high[axis])] for axis in (0, 1)])


def array_turn(xy: Floats, column: Floats, row: Floats) -> float | None:
    """Turn (radians) of a capture frame whose spots have array positions; `None` where those do not belong to `xy`."""
    array = np.column_stack([column, row]).astype(float)
    array, centred = array - array.mean(axis=0), xy - xy.mean(axis=0)
    fit, _, rank, _ = np.linalg.lstsq(array, centred, rcond=None)
    if rank < 2 or np.std(centred - array @ fit) > _STRAY * np.std(centred):
        return None
    return float(np.arctan2(fit[0, 1], fit[0, 0]))


def frame_turn(xy: Floats) -> float:
    """Turn (radians, at most 45 degrees) of the capture frame, from the axes of the lattice of its spots; 0 without one.

    A square lattice has the axes of its frame. A hexagonal one has three of them, a sixth of a turn apart: the most upright
    is taken, unless tissue was cut along a clearly longer side of another.
    """
    pitch, lattice = point_spacing(xy)
    if not lattice:
        return 0.0
    pairs = cKDTree(xy).query_pairs(1.25 * pitch, output_type="ndarray")
    if len(pairs) == 0:
        return 0.0
    angle = np.arctan2(*(xy[pairs[:, 1]] - xy[pairs[:, 0]]).T[::-1])
    fold, order = max(((n, np.exp(1j * n * angle).mean()) for n in (4, 6)), key=lambda o: abs(o[1]))
    if abs(order) < _ORDER:
        return 0.0
    axis = float(np.angle(order)) / fold
    axes = [_upright(axis + k * np.pi / 3) for k in range(3 if fold == 6 else 1)]

    def longest_cut(axis: float) -> float:
        own = xy @ turn(axis)
        low, high = own.min(axis=0), own.max(axis=0)
        share = _along_sides(own, low, high, pitch, lattice=True)
        return float((np.where(share > _CUT, share, 0) * (high - low)[::-1, None]).max())

    upright, *others = sorted(axes, key=abs)
    best = max(others, key=longest_cut, default=upright)
    return best if longest_cut(best) > _CLEARLY * longest_cut(upright) else upright


def _upright(angle: float) -> float:
    """The same axes, turned by at most 45 degrees."""
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def frame_points(
    xy: Floats, off_tissue: Floats | None = None, *, crop: bool = False, axis: float | None = None
) -> TissuePoints:
    """Spots on tissue together with places off the tissue.

    Without `off_tissue` the lattice is continued around the tissue and in its holes, except beyond a side along which
    the tissue runs: there the frame ended. `axis` is the turn of the frame (radians); `None`: see :func:`frame_turn`.
    With `crop` (a piece cut out anywhere) only inside the convex hull.
    """
    pitch, lattice = point_spacing(xy)
    if off_tissue is None:
        # in the frame's own axes, in which its sides are straight; turn() of the other way round, as rows are points
        axes = turn(frame_turn(xy) if axis is None else axis)
        own = xy @ axes
        low, high = own.min(axis=0), own.max(axis=0)
        margin = max(6 * pitch, _MARGIN * float((high - low).max()))
        (left, right), (top, bottom) = cut_sides(own, low, high, pitch, lattice=lattice)
        first = low - margin * ~np.array([left, top])
        last = high + margin * ~np.array([right, bottom])
        step = pitch * (np.sqrt(np.sqrt(3) / 2) if lattice else 1.0)
        x, y = (np.arange(a, b + step / 2, step) for a, b in zip(first, last, strict=True))
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) @ axes.T
        reach = (0.9 if lattice else 1.25) * pitch
        off_tissue = grid[cKDTree(xy).query(grid)[0] > reach]
        if crop:
            off_tissue = off_tissue[Delaunay(xy).find_simplex(off_tissue) >= 0]
    tissue = np.repeat([True, False], [len(xy), len(off_tissue)])
    return TissuePoints(np.vstack([xy, off_tissue]), tissue, pitch)


def coherent_tissue(value: Floats, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pixels lie on tissue, from a summary such as the number of peaks.

    Otsu's threshold always finds two classes. They count only where they differ by a factor of two and by far more than
    their spread, with few pixels between them (Ashman et al., Astron. J. 108, 2348, 1994), both are coherent, and the
    edge of what was measured is background. Otherwise every pixel is tissue, which costs less than a lost half.
    """
    from skimage.filters import threshold_otsu

    everything = np.ones(len(value), bool)
    level = np.log1p(value)
    if not np.isfinite(level).all() or np.ptp(level) < 1e-9:
        return everything
    # single pixels scatter; the outline of the tissue does not depend on them
    shape = (row.max() - row.min() + 1, col.max() - col.min() + 1)
    at = (row - row.min(), col - col.min())
    image, weight = np.zeros(shape), np.zeros(shape)
    image[at], weight[at] = level, 1
    smooth = ndimage.uniform_filter(image, 5)[at] / ndimage.uniform_filter(weight, 5)[at]
    on = smooth > threshold_otsu(smooth)
    if not _LEAST_TISSUE < on.mean() < 0.98:
        return everything
    high, low = smooth[on], smooth[~on]
    apart = high.mean() - low.mean()
    if apart < max(np.log(_RATIO), _SEPARATED * np.sqrt((high.var() + low.var()) / 2)):
        return everything
    between = np.abs(smooth - (high.mean() + low.mean()) / 2) < apart / 6
    if between.mean() > _VALLEY:
        return everything
    mask = np.zeros(shape)
    mask[at] = on
    agree = ndimage.uniform_filter(mask, 3)[at] / ndimage.uniform_filter(weight, 3)[at]
    edge = ndimage.uniform_filter(weight, 3, mode="constant")[at] < 1 - 1e-9
    if np.where(on, agree, 1 - agree).mean() < _COHERENT or on[edge].mean() > 0.5:
        return everything
    return on
