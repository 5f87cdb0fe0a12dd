"""Genes known to belong to a metabolite, as inputs of its own estimators in `HurdleLinear`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np

from stmsi._core.learning.expression_space import neighbour_mean
from stmsi._core.metrics.presence import auroc
from stmsi.model.linear._intensity import IntensityFamily, Regression, fit_regression, within_units
from stmsi.model.linear._presence import Classifier, PresenceFamily, fit_classifier

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots

PriorUse: TypeAlias = Literal["penalty", "features"]

STRENGTHS = (0.0, 1.0, 3.0, 10.0)
"""Weights of the prior columns to choose from, in units of the average spread of the other features; 0: off."""
_GAIN = 0.02
"""AUROC or correlation on held-out spots that a prior must bring to be used. What random genes bring by chance when the
best of several strengths is taken is mostly less."""
_Fitted = TypeVar("_Fitted", Classifier, Regression)


@dataclass
class GenePrior:
    """Columns that each metabolite's estimators see beside the shared features.

    A column times w has its penalty divided by w squared, so that the strength of a prior is how much less its genes
    are shrunk than everything else.

    Attributes
    ----------
    use
        ``"penalty"``: one column for each prior gene; ``"features"``: their mean as one column. With a graph, the same
        again averaged over the neighbours.
    genes
        Panel genes that any metabolite needs.
    members
        Those of each metabolite, as positions in `genes`.
    mean, scale
        Of the log-normalised expression of `genes` over the training spots.
    spread
        Standard deviation over the training spots of each column of each metabolite.
    strength
        Stage -> weight of the columns of each metabolite, chosen in the inner folds; 0: not used.
    """

    use: PriorUse
    genes: NDArray[np.int64]
    members: list[NDArray[np.int64]]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    spread: list[NDArray[np.float64]] = field(default_factory=list)
    strength: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def fit(cls, spots: Spots, mask: NDArray[np.bool_], use: PriorUse) -> GenePrior:
        """Moments over training spots; `mask` has shape (panel genes, metabolites). Genes that do not vary are left out."""
        moments = spots.gene_moments()
        mean, variance = moments.mean, moments.variance
        mask = mask & (variance > 1e-12)[:, None]
        genes = np.flatnonzero(mask.any(axis=1))
        members = [np.flatnonzero(column) for column in mask[genes].T]
        prior = cls(use, genes, members, mean[genes], np.sqrt(variance[genes]))
        values = prior.values(spots)
        prior.spread = [np.ones(0)] * len(members)
        for m in range(len(members)):
            spread = prior._blocks(values, m).std(axis=0)
            prior.spread[m] = np.where(spread > 1e-6, spread, np.inf)
        return prior

    def values(self, spots: Spots) -> list[NDArray[np.float32]]:
        """Z-scored expression of `genes` in the spots and, with a graph, its mean over their neighbours."""
        expression = spots.log_expression()[:, self.genes].toarray()
        own = ((expression - self.mean) / self.scale).astype(np.float32)
        return [own] if spots.graph is None else [own, neighbour_mean(own, spots.graph)]

    def columns(self, values: list[NDArray[np.float32]], m: int) -> NDArray[np.float64]:
        """Columns of a metabolite, of variance 1 over the training spots; shape (spots, columns)."""
        return self._blocks(values, m) / self.spread[m]

    def _blocks(self, values: list[NDArray[np.float32]], m: int) -> NDArray[np.float64]:
        blocks = [v[:, self.members[m]].astype(np.float64) for v in values]
        if self.use == "features" and len(self.members[m]):
            blocks = [b.mean(axis=1, keepdims=True) for b in blocks]
        return np.hstack(blocks)

    def extend(
        self, F: NDArray[np.float64], values: list[NDArray[np.float32]], stage: str, m: int
    ) -> NDArray[np.float64]:
        """The features that the estimator of a metabolite was fitted on."""
        strength = self.strength[stage][m]
        return np.hstack([F, strength * self.columns(values, m)]) if strength > 0 else F

    def gene_effects(self, weights: NDArray[np.float64], stage: str, m: int) -> NDArray[np.float64]:
        """Effect of one standard deviation of each member, own and then of its neighbours' mean; shape (blocks, members).

        `weights` are those of the estimator on the columns of the metabolite.
        """
        k = len(self.members[m])
        per_column = (weights * self.strength[stage][m] / self.spread[m]).reshape(-1, k if self.use == "penalty" else 1)
        return per_column if self.use == "penalty" else np.repeat(per_column / k, k, axis=1)


def fit_classifier_with(
    F: NDArray[np.float64],
    columns: NDArray[np.float64],
    present: NDArray[np.float64],
    groups: NDArray[np.int64],
    family: PresenceFamily,
    seed: int,
) -> tuple[Classifier, float]:
    """As :func:`stmsi.model.linear._presence.fit_classifier`, with prior columns of the strength that ranks held-out spots best."""

    def score(fits: list[Classifier]) -> NDArray[np.float64]:
        held_out = np.column_stack([f.held_out for f in fits])
        return auroc(np.repeat(present[:, None], len(fits), axis=1), held_out)

    return _choose(lambda X: fit_classifier(X, present, groups, family, seed), score, F, columns, off=family == "prior")


def fit_regression_with(
    F: NDArray[np.float64],
    columns: NDArray[np.float64],
    y: NDArray[np.float64],
    groups: NDArray[np.int64],
    family: IntensityFamily,
    seed: int,
    units: NDArray[np.int64],
) -> tuple[Regression, float]:
    """As :func:`stmsi.model.linear._intensity.fit_regression`, with prior columns of the strength that follows held-out spots best."""

    def score(fits: list[Regression]) -> NDArray[np.float64]:
        return within_units(y, np.column_stack([f.held_out for f in fits]), units)

    return _choose(lambda X: fit_regression(X, y, groups, family, seed, units), score, F, columns, off=family == "mean")


def _choose(
    fit: Callable[[NDArray[np.float64]], _Fitted],
    score: Callable[[list[_Fitted]], NDArray[np.float64]],
    F: NDArray[np.float64],
    columns: NDArray[np.float64],
    *,
    off: bool,
) -> tuple[_Fitted, float]:
    without = fit(F)
    if off or without.estimator is None or columns.shape[1] == 0:
        return without, 0.0
    unit = max(float(np.sqrt(F.var(axis=0).mean())), 1e-12)
    strengths: list[float] = [s * unit for s in STRENGTHS]
    fits: list[_Fitted] = [without]
    fits += [fit(np.hstack([F, s * columns])) for s in strengths[1:]]
    quality = np.nan_to_num(score(fits), nan=-np.inf)
    best = int(np.argmax(quality))
    if not quality[best] > quality[0] + _GAIN or fits[best].estimator is None:
        best = 0
    return fits[best], strengths[best]
