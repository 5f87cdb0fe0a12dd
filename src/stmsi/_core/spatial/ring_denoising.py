"""Measured maps denoised by what is measured and predicted around each spot."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import Bools, Floats

_PENALTY = 30.0  # in spots, as terms have unit variance; on simulated sections 30 to 100 are equally close to the truth
_COLUMNS = 64  # metabolites at a time, to bound the memory


def graph_rings(graph: sp.csr_matrix, n_rings: int) -> list[sp.csr_matrix]:
    """Adjacency of ones of the spots that are 1, 2, ... steps away, each (n, n); weights of `graph` do not count."""
    edges = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    edges.setdiag(0)
    edges.eliminate_zeros()
    edges.data[:] = 1
    seen, front, rings = sp.identity(graph.shape[0], format="csr") + edges, edges, [edges]
    for _ in range(n_rings - 1):
        reached = sp.csr_matrix(front @ edges)
        reached.data[:] = 1
        front = sp.csr_matrix(reached - reached.multiply(seen > 0))
        front.eliminate_zeros()
        seen = seen + front
        rings.append(front)
    return rings


def denoise_by_rings(
    measured: Floats, prediction: Floats, rings: list[sp.csr_matrix], *, include_self: bool = True
) -> Floats:
    r"""Denoised intensities of one section, at least 0, NaN where not measured.

    Ridge regression of each metabolite on the means of the measurement in each ring, on the prediction, and on the means of the
    prediction in each ring but the last. Each spot is predicted by coefficients fitted without it, in closed form:
    :math:`y_i - (y_i - \hat y_i) / (1 - h_{ii})`. The penalty has the weight of 30 spots for all metabolites.

    Parameters
    ----------
    measured, prediction
        Shape (spots, metabolites); the measurement is NaN where there is none, the prediction where the model makes none.
    rings
        Adjacency of each ring (:func:`graph_rings`).
    include_self
        Average the result with the spot's own measurement, which counts as much as one measured spot of the first ring.
    """
    known = ~np.isnan(measured)
    value = np.empty(measured.shape)
    for start in range(0, measured.shape[1], _COLUMNS):
        some = slice(start, start + _COLUMNS)
        terms = _terms(measured[:, some], prediction[:, some], known[:, some], rings)
        value[:, some] = _left_out(terms, measured[:, some], known[:, some])
    if include_self:
        neighbours = rings[0] @ known.astype(np.float64)
        value = (neighbours * value + measured) / (neighbours + 1)
    return np.where(known, np.maximum(value, 0), np.nan)


def _terms(measured: Floats, prediction: Floats, known: Bools, rings: list[sp.csr_matrix]) -> Floats:
    """What is regressed on, shape (terms, spots, metabolites), of mean 0 and variance 1 over the measured spots.

    0 where a ring holds no measured spot, and where there is no prediction.
    """
    there = ~np.isnan(prediction)
    layers = [(measured, known, rings), (prediction, there, rings[:-1])]
    terms = [np.where(there, prediction, np.nan)]
    for values, has, around in layers:
        filled, has = np.where(has, values, 0.0), has.astype(np.float64)
        for ring in around:
            count = ring @ has
            terms.append(np.where(count > 0, (ring @ filled) / np.maximum(count, 1), np.nan))
    stacked = np.stack(terms)
    usable = ~np.isnan(stacked) & known
    n = np.maximum(usable.sum(axis=1, keepdims=True), 1)
    filled = np.where(usable, stacked, 0.0)
    mean = filled.sum(axis=1, keepdims=True) / n
    centred = np.where(usable, stacked - mean, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / n)
    # rounding leaves a constant a spread of about 1e-16 of its size
    varies = spread > 1e-9 * np.abs(mean)
    return np.where(varies, centred / np.where(varies, spread, 1.0), 0.0)


def _left_out(terms: Floats, measured: Floats, known: Bools) -> Floats:
    """Each spot from the coefficients of the others, shape (spots, metabolites)."""
    n = np.maximum(known.sum(axis=0), 1)
    target = np.where(known, measured - np.where(known, measured, 0.0).sum(axis=0) / n, 0.0)
    gram = np.einsum("jim,kim->mjk", terms, terms, optimize=True)
    inverse = np.linalg.inv(gram + _PENALTY * np.eye(len(terms)))
    hat = np.einsum("jim,mjk->kim", terms, inverse, optimize=True)
    fitted = np.einsum("kim,km->im", hat, np.einsum("jim,im->jm", terms, target))
    leverage = np.einsum("kim,kim->im", hat, terms) + 1 / n
    # a metabolite measured in a single spot has nothing to be predicted from: it keeps its value
    rest = (target - fitted) / np.where(leverage < 1, 1 - leverage, 1.0)
    return np.asarray(measured - rest)
