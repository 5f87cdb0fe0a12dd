"""Scores of maps: the pattern of a metabolite in space."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.spatial import KDTree

from stmsi._core.arrays import AnyFloats, Bools, Floats, Ints
from stmsi._core.metrics.columns import number, paired, ratio
from stmsi._core.metrics.score_docs import documented
from stmsi._core.spatial.morans_i import morans_i
from stmsi._core.spatial.sections import spot_pitch

_WINDOW = 7
_MOST_PIXELS = 4_000_000  # of a raster: wrong positions would ask for billions


@documented("1 for the same map, NaN where the measured map is constant or smaller than the window of 7 x 7 pixels")
def ssim(truth: ArrayLike, prediction: ArrayLike, xy: ArrayLike) -> Floats:
    """Structural similarity of the maps of each metabolite, after putting the spots on a raster.

    A pixel of the raster is as large as the distance between spots and takes the value of the nearest spot. Both maps
    are scaled by the range of the measured one. Outside of the tissue both have the measured mean. The similarity is
    averaged over the pixels of measured spots.

    Raises
    ------
    ValueError
        Positions are NaN, or so far apart that they make no raster.

    References
    ----------
    Wang et al., IEEE Transactions on Image Processing 13, 2004, https://doi.org/10.1109/TIP.2003.819861;
    :func:`skimage.metrics.structural_similarity`

    Examples
    --------
    >>> import numpy as np
    >>> from stmsi.metrics import ssim
    >>> xy = np.argwhere(np.ones((10, 10)))
    >>> truth = np.sin(xy[:, :1])
    >>> ssim(truth, truth, xy).round(6), bool(ssim(truth, truth[::-1], xy)[0] < 0.9)
    (array([1.]), True)
    """
    from skimage.metrics import structural_similarity

    y, p = paired(truth, prediction)
    at = np.asarray(xy, dtype=np.float64)
    if at.shape != (len(y), 2) or not np.isfinite(at).all():
        msg = f"Positions must be finite numbers of shape ({len(y)}, 2), found shape {at.shape}."
        raise ValueError(msg)
    score = np.full(y.shape[1], np.nan)
    known = ~np.isnan(y)
    if not known.any():
        return score
    spot, inside = _raster(at)
    if min(spot.shape) < _WINDOW:
        return score
    mean = np.where(known, y, 0).sum(axis=0) / np.maximum(number(y), 1)
    size = np.max(np.where(known, y, -np.inf), axis=0) - np.min(np.where(known, y, np.inf), axis=0)
    for m in np.flatnonzero(size > 1e-12 * np.abs(mean)):
        there = inside & known[spot, m]
        first, second = (np.where(there, v[spot, m], mean[m]) / size[m] for v in (y, p))
        similarity = structural_similarity(first, second, win_size=_WINDOW, data_range=1.0, full=True)[1]
        score[m] = similarity[there].mean()
    return score


@documented("NaN where a metabolite is constant or the graph has no edge")
def moran_i(values: ArrayLike, graph: sp.spmatrix | AnyFloats) -> Floats:
    """Moran's I of each metabolite, with the values of :func:`squidpy.gr.spatial_autocorr`.

    Spots with NaN are left out with their edges.

    Raises
    ------
    ValueError
        The graph has another number of spots.

    Examples
    --------
    >>> import numpy as np
    >>> from stmsi.metrics import moran_i
    >>> chain = np.eye(6, k=1) + np.eye(6, k=-1)
    >>> moran_i(np.array([[0.0, 0], [1, 1], [0, 2], [1, 3], [0, 4], [1, 5]]), chain).round(2)
    array([-1.  ,  0.71])
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    edges = _edges(graph, len(x))
    if not np.isnan(x.sum(axis=0)).any():
        return morans_i(edges, x)
    score = np.empty(x.shape[1])
    patterns, of = np.unique(np.packbits(~np.isnan(x), axis=0), axis=1, return_inverse=True)
    for k in range(patterns.shape[1]):
        columns = np.flatnonzero(of.ravel() == k)  # with NaN in the same rows
        rows = np.flatnonzero(~np.isnan(x[:, columns[0]]))
        if len(rows) == len(x):
            score[columns] = morans_i(edges, x[:, columns])
        else:
            score[columns] = morans_i(edges[rows][:, rows], x[np.ix_(rows, columns)])
    return score


@documented("0 where it is preserved, NaN where either map is constant")
def moran_gap(truth: ArrayLike, prediction: ArrayLike, graph: sp.spmatrix | AnyFloats) -> Floats:
    """Moran's I of the prediction less that of the measurement: is spatial structure preserved?

    Above 0 the prediction is smoother. Noise lowers the value of the measurement, so a perfect prediction of the mean
    is smoother too.

    Examples
    --------
    >>> import numpy as np
    >>> from stmsi.metrics import moran_gap
    >>> chain = np.eye(6, k=1) + np.eye(6, k=-1)
    >>> moran_gap([0.0, 1, 0, 1, 0, 1], [0.0, 1, 2, 3, 4, 5], chain).round(2)
    array([1.71])
    """
    y, p = paired(truth, prediction)
    both = moran_i(np.hstack([y, p]), graph)
    return both[y.shape[1] :] - both[: y.shape[1]]


@documented("1 for the same hot spots, NaN where measurement or prediction is constant")
def hotspot_jaccard(
    truth: ArrayLike, prediction: ArrayLike, share: float = 0.1, graph: sp.spmatrix | AnyFloats | None = None
) -> Floats:
    """Overlap of the hot spots of both maps: shared spots over spots of either.

    Spots with the highest values are hot, ties included, but never a spot at the lowest value. With a `graph`, values are
    first averaged over each spot and its neighbours, so that regions count instead of single spots. Without skill the
    overlap is about ``share / (2 - share)``: 0.05 for a tenth.

    Raises
    ------
    ValueError
        `share` is not between 0 and 1, or the graph has another number of spots.

    Examples
    --------
    >>> from stmsi.metrics import hotspot_jaccard
    >>> hotspot_jaccard([0.0, 1, 2, 3], [0.0, 3, 1, 2], share=0.5).round(3)
    array([0.333])
    """
    if not 0 < share < 1:
        msg = f"share is a share of the spots between 0 and 1, found {share!r}."
        raise ValueError(msg)
    y, p = paired(truth, prediction)
    if graph is not None:
        known = ~np.isnan(y)
        weight = _edges(graph, len(y)) + sp.identity(len(y), format="csr")
        n = np.where(known, weight @ known.astype(np.float64), 1)
        y, p = (np.where(known, (weight @ np.where(known, v, 0)) / n, np.nan) for v in (y, p))
    hot, varies = zip(*(_hot(v, share) for v in (y, p)), strict=True)
    overlap = ratio((hot[0] & hot[1]).sum(axis=0), (hot[0] | hot[1]).sum(axis=0))
    return np.where(varies[0] & varies[1], overlap, np.nan)


def near_graph(xy: Floats) -> sp.csr_matrix:
    """Graph of spots within one and a half times their distance: 6 neighbours on a hexagon, 8 on a square."""
    pairs = KDTree(xy).query_pairs(1.5 * spot_pitch(xy), output_type="ndarray") if len(xy) else np.empty((0, 2), int)
    i, j = np.vstack([pairs, pairs[:, ::-1]]).T
    return sp.csr_matrix((np.ones(len(i)), (i, j)), shape=(len(xy), len(xy)))


def _hot(values: Floats, share: float) -> tuple[Bools, Bools]:
    """Hot spots of each column, and whether it has any."""
    known, n = ~np.isnan(values), number(values)
    if len(values) == 0:
        return known, n > 0
    ordered = np.sort(values, axis=0)  # NaN last
    last = np.clip(n - np.maximum(np.round(share * n).astype(np.int64), 1), 0, len(values) - 1)
    limit = np.take_along_axis(ordered, last[None], axis=0)
    lowest = ordered[:1]
    highest = np.take_along_axis(ordered, np.maximum(n - 1, 0)[None], axis=0)
    # rounding gives the averages of a constant map a spread
    varies = (highest - lowest > 1e-9 * np.abs(highest))[0]
    return known & (values >= limit) & (values > lowest), varies


def _raster(xy: Floats) -> tuple[Ints, Bools]:
    """Nearest spot of each pixel of a raster over the section, and whether it is near enough to count."""
    pitch = spot_pitch(xy)
    if pitch == 0:
        return np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    low, shape = xy.min(axis=0), np.round(np.ptp(xy, axis=0) / pitch).astype(np.int64) + 1
    if float(shape[0]) * float(shape[1]) > _MOST_PIXELS:
        msg = (
            f"The spots, {pitch:.3g} apart, would make a raster of {shape[0]} x {shape[1]} pixels; check the positions."
        )
        raise ValueError(msg)
    grid = np.stack(np.meshgrid(*(np.arange(k) for k in shape), indexing="ij"), axis=-1) * pitch + low
    distance, spot = KDTree(xy).query(grid.reshape(-1, 2))
    return spot.reshape(shape), (distance <= 0.75 * pitch).reshape(shape)


def _edges(graph: sp.spmatrix | AnyFloats, n: int) -> sp.csr_matrix:
    edges = sp.csr_matrix(graph, dtype=np.float64)
    if edges.shape != (n, n):
        msg = f"The graph is of shape {edges.shape}, but there are {n} spots; take the rows and columns of these spots."
        raise ValueError(msg)
    return edges
