"""Small models that can only score above chance where something leaks: on permuted and moved metabolites, on features alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import KDTree

from stmsi._core.arrays import Floats, Ints
from stmsi._core.spatial.sections import rows_of_each
from stmsi._data.keys import Key
from stmsi._data.tables import require_frame
from stmsi.model_selection._value_rules import expression_components

if TYPE_CHECKING:
    from numpy.random import Generator

    from stmsi.model_selection._leaks import Finding
    from stmsi.model_selection._split import Folds, Split

_SEED = 0
_SHIFTS = 4  # ways to move each section
_PENALTY = 0.1  # of the ridge, relative to the number of training spots
_MOST_ROWS = 3000  # training and test spots of a fold, each
_LEAST_SPOTS = 10  # of a section in a test fold, to score it
_LEAST_SCORE = 0.1
_STANDARD_ERRORS = 4


def probe(split: Split) -> Iterator[Finding]:
    """What scores above chance and should not, or need not.

    A ridge and the nearest training spot predict metabolites from components of the expression and features. Scores are means over
    metabolites, of the correlations inside test sections. Above chance are 0.1 and more that are 4 standard errors over
    metabolites above 0.
    """
    rng = np.random.default_rng(_SEED)
    Y = np.nan_to_num(require_frame(split.adata, split.metabolite_key).to_numpy(np.float64))
    genes = expression_components(split)
    own = {where: np.nan_to_num(values, posinf=0, neginf=0) for where, values in split.features()}
    everything = np.hstack([genes, *own.values()])
    permuted = Y.copy()
    for rows in rows_of_each(split.sample):
        permuted[rows] = rng.permuted(Y[rows], axis=0)  # each metabolite by itself: chance differs between them
    score = _score(everything, permuted, split.folds, split.sample)
    if _above_chance(score):
        yield split.leak("probe permuted", "permuted metabolites", score=_text(score))
    if Key.obsm.SPATIAL in split.adata.obsm:
        xy = np.asarray(split.adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
        score = _score(everything, _moved(Y, xy, split.sample, rng), split.folds, split.sample)
        if _above_chance(score):
            yield split.leak("probe shifted", "shifted metabolites", score=_text(score))
    if own:
        of_genes = _text(_score(genes, Y, split.folds, split.sample))
        for where, values in own.items():
            score = _score(values, Y, split.folds, split.sample)
            if _above_chance(score):
                yield split.leak("probe features", where, score=_text(score), genes=of_genes)


def _moved(Y: Floats, xy: Floats, section: Ints, rng: Generator) -> Floats:
    """Metabolites moved across their section by a third to two thirds of its extent; what leaves it enters opposite.

    Each section has moves of its own, so that no model can learn a common one.
    """
    out = Y.copy()
    for rows in rows_of_each(section):
        rows = rows[np.isfinite(xy[rows]).all(axis=1)]
        if len(rows) < 2:
            continue
        low = xy[rows].min(axis=0)
        extent = np.maximum(xy[rows].max(axis=0) - low, 1e-9)
        tree = KDTree(xy[rows])
        for k in range(_SHIFTS):
            from_where = low + (xy[rows] - low + rng.uniform(1 / 3, 2 / 3, 2) * extent) % extent
            out[rows, k::_SHIFTS] = Y[rows[tree.query(from_where)[1]], k::_SHIFTS]
    return out


def _score(Z: Floats, Y: Floats, folds: Folds, section: Ints) -> Floats:
    """Correlation of each metabolite inside test sections, (m,), that of the better of both models; NaN where none varies."""
    rng = np.random.default_rng(_SEED)
    scores: tuple[list[Floats], list[Floats]] = ([], [])
    if not Z.shape[1]:
        return np.full(Y.shape[1], np.nan)
    for train, test in folds:
        if len(train) > _MOST_ROWS:
            train = rng.choice(train, _MOST_ROWS, replace=False)
        if len(test) > _MOST_ROWS:
            test = rng.choice(test, _MOST_ROWS, replace=False)
        middle, spread = Z[train].mean(axis=0), np.maximum(Z[train].std(axis=0), 1e-9)
        A, B = (Z[train] - middle) / spread, (Z[test] - middle) / spread
        gram = A.T @ A + _PENALTY * len(A) * np.identity(A.shape[1])
        ridge = B @ np.linalg.solve(gram, A.T @ (Y[train] - Y[train].mean(axis=0)))
        nearest = Y[train[KDTree(A).query(B)[1]]]
        for rows in rows_of_each(section[test]):
            if len(rows) >= _LEAST_SPOTS:
                for found, predicted in zip(scores, (ridge, nearest), strict=True):
                    found.append(_each(Y[test[rows]], predicted[rows]))
    means = [np.nanmean(found, axis=0) if found else np.full(Y.shape[1], np.nan) for found in scores]
    return max(means, key=lambda s: float(np.mean(s)))


def _each(a: Floats, b: Floats) -> Floats:
    """Correlation of each column with its own prediction, 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.where(size > 1e-12, (a * b).sum(axis=0) / np.maximum(size, 1e-12), 0.0)


def _above_chance(score: Floats) -> bool:
    """Whether the mean over metabolites is large, and beyond its scatter."""
    if len(score) < 3 or not np.isfinite(score).all():
        return False
    return bool(score.mean() > max(_LEAST_SCORE, _STANDARD_ERRORS * score.std(ddof=1) / np.sqrt(len(score))))


def _text(score: Floats) -> str:
    return f"{np.mean(score):.2f}"
