"""Features of spots for models on fixed features, fitted on training spots only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from stmsi._core.arrays_on_disk import DiskArray, row_pieces
from stmsi._core.learning.expression_space import ExpressionSpace, neighbour_mean
from stmsi._data.checks import check_choice, listing
from stmsi.model.shared._blocks import some_rows
from stmsi.model.shared._spot_input import NO_GRAPH

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots

Context: TypeAlias = Literal["pooled", "diffused"]
SignatureStage: TypeAlias = Literal["presence", "intensity"]
STAGES: tuple[SignatureStage, SignatureStage] = ("presence", "intensity")

_DIFFUSION_STEPS = 2
_OOD_COMPONENTS = 30
_LEAST_KNOWN = 0.01
"""Share of the genes from which the out-of-distribution score rises no further."""
PRESENCE_COMPONENTS = 64
"""Components of each kind that the presence stage sees."""


@dataclass(frozen=True)
class Clusters:
    """Signatures of the training clusters, and the centroids by which other spots are assigned.

    Attributes
    ----------
    labels
        Cluster labels.
    signature
        Boolean, shape (clusters, panel genes).
    centroids
        In whitened component space, shape (clusters, components).
    """

    labels: NDArray[Any]
    signature: NDArray[np.bool_]
    centroids: NDArray[np.float64]

    @classmethod
    def fit(
        cls, labels: NDArray[Any], signature: NDArray[np.bool_], cluster: NDArray[Any], Z: NDArray[Any]
    ) -> Clusters:
        """Centroids of the clusters that occur among the training spots."""
        present = np.array([bool((cluster == c).any()) for c in labels])
        if present.sum() < 1:
            msg = "No training spot belongs to a cluster of the signature; call stmsi.pp.gene_signatures on these data."
            raise ValueError(msg)
        labels, signature = labels[present], signature[present]
        return cls(labels, signature, np.stack([Z[cluster == c].mean(axis=0) for c in labels]))

    def assign(self, Z: NDArray[Any], cluster: NDArray[Any] | None) -> NDArray[np.int64]:
        """Cluster number of each spot: its label where known, else the nearest centroid."""
        distance = ((Z[:, None, :] - self.centroids[None]) ** 2).sum(axis=2)
        code = distance.argmin(axis=1)
        if cluster is not None:
            known = pd.Index(self.labels).get_indexer(pd.Index(cluster))
            code = np.where(known >= 0, known, code)
        return code


@dataclass(frozen=True)
class Standardisation:
    """Mean and scale of the columns of further features over the training spots."""

    columns: pd.Index
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, frame: pd.DataFrame) -> Standardisation:
        """Moments of the training spots; columns that do not vary become 0."""
        values = frame.to_numpy()
        scale = values.std(axis=0)
        return cls(frame.columns, values.mean(axis=0), np.where(scale > 1e-12, scale, np.inf))

    def transform(self, features: dict[str, pd.DataFrame] | None, key: str) -> NDArray[np.float32]:
        """Z-scores of the features `key`, columns found by name."""
        frame = (features or {})[key]
        lacking = self.columns.difference(frame.columns, sort=False)
        if len(lacking) or (isinstance(self.columns, pd.RangeIndex) and len(frame.columns) != len(self.columns)):
            msg = (
                f"Features obsm[{key!r}] had {len(self.columns)} columns in training, found {len(frame.columns)}; "
                f"missing: {listing(lacking)}."
            )
            raise ValueError(msg)
        return ((frame[self.columns].to_numpy() - self.mean) / self.scale).astype(np.float32)


@dataclass
class SpotFeatures:
    """Principal components of a spot and of its neighbourhood, its signature mask, covariates and further features.

    Own and pooled expression are two inputs: neighbours add information, they do not replace the spot's own.

    Parameters
    ----------
    n_top_genes
        Variable genes kept.
    n_components
        Principal components, of the spot and again of its neighbourhood.
    seed
        For the randomised solver.
    context
        What of the neighbourhood, where spots have a graph: components of its pooled expression, or the spots' own
        components averaged over neighbours once and twice (diffused).
    signature_stages
        Stages that see the signature mask.
    """

    n_top_genes: int = 2000
    n_components: int = 128
    seed: int = 0
    context: Context = "pooled"
    signature_stages: tuple[SignatureStage, ...] = ("presence",)
    own: ExpressionSpace = field(init=False)
    pooled: ExpressionSpace | None = field(init=False, default=None)
    clusters: Clusters | None = field(init=False, default=None)
    categories: dict[str, NDArray[Any] | tuple[float, float]] = field(init=False, default_factory=dict)
    extra: dict[str, Standardisation] = field(init=False, default_factory=dict)
    uses_graph: bool = field(init=False, default=False)
    profile: NDArray[np.float64] = field(init=False)
    gene_variance: NDArray[np.float64] = field(init=False, default_factory=lambda: np.empty(0))
    usual_distances: NDArray[np.float64] = field(init=False, default_factory=lambda: np.ones(3))

    def fit(
        self,
        spots: Spots,
        labels: NDArray[Any] | None = None,
        signature: NDArray[np.bool_] | None = None,
        genes: NDArray[np.int64] | None = None,
    ) -> SpotFeatures:
        """Fit on training spots; `labels` and `signature` (clusters x genes) where the mask is an input.

        `genes` are used in the place of the variable ones.
        """
        sizes: dict[str, Any] = {"n_top_genes": self.n_top_genes, "n_components": self.n_components, "seed": self.seed}
        self.own = spots.expression_space(genes=genes, **sizes)
        self.uses_graph = spots.graph is not None
        if spots.graph is not None and self.context == "pooled":
            self.pooled = ExpressionSpace.fit(spots.pooled_log_expression(), **sizes)
        if spots.covariates is not None:
            for name, column in spots.covariates.items():
                if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
                    values = column.to_numpy(dtype=float)
                    self.categories[str(name)] = (float(values.mean()), float(values.std()) or 1.0)
                else:
                    self.categories[str(name)] = np.unique(column.astype(str).to_numpy().astype(str))
        self.extra = {key: Standardisation.fit(frame) for key, frame in (spots.features or {}).items()}
        if labels is not None and signature is not None and spots.cluster is not None:
            self.clusters = Clusters.fit(labels, signature, spots.cluster, self._white(spots.components(self.own)))
        self.profile, self.gene_variance = spots.gene_moments().mean, spots.gene_moments().variance
        parts = self._distances(spots)
        usual = _positive(np.quantile(parts, 0.95, axis=0))
        self.usual_distances = np.append(usual, _positive(np.quantile((parts / usual).max(axis=1), 0.95)))
        return self

    def _white(self, components: NDArray[Any]) -> NDArray[np.float64]:
        k = min(_OOD_COMPONENTS, components.shape[1])
        return components[:, :k] / self.own.deviation[:k].astype(np.float64)

    def gene_weights(self, n_genes: int) -> NDArray[np.float64]:
        """Share of each of `n_genes` in what the components hold, by its standard deviation there; they add up to 1."""
        weight = np.zeros(n_genes)
        for space in (self.own, self.pooled):
            if space is not None:
                weight[space.selected] += space.gene_variance
        return np.sqrt(weight) / _positive(np.sqrt(weight).sum())

    def _distances(self, spots: Spots) -> NDArray[np.float64]:
        within = np.concatenate([np.sqrt((white**2).mean(axis=1)) for _, white in self._some_white(spots)])
        return np.column_stack([within, spots.profile_distance(self.profile)])

    def _some_white(self, spots: Spots) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Components of some spots at a time."""
        for rows in row_pieces(len(spots), len(self.own.components)):
            yield rows, self._white(spots.some_components(self.own, rows))

    def ood(self, spots: Spots) -> NDArray[np.float64]:
        """Out-of-distribution score: how far a spot is from the training spots, in units of their 95 % quantile.

        The larger of two distances, each in units of its own quantile: from the mean of the components, in units of
        their standard deviation, and of the profile of all genes from the mean profile (one less their correlation).
        Components alone miss spots that vary along none of them: to scramble the genes of a spot moves it little there.

        Where genes are missing, both distances are over the genes that are there, in units of what training spots would
        have over these. Their root mean square is then divided by the square root of the share of genes that are there,
        by their weight in the model: the fewer there are, the less it is known where a spot lies.
        """
        parts = self._distances(spots)
        *usual, overall = self.usual_distances
        if spots.imputed is None:
            return (parts / usual).max(axis=1) / overall
        present = spots.imputed.present
        shrunk = np.array([self._components_left(present), self._profile_left(present)])
        known = max(1 - spots.missing, _LEAST_KNOWN)
        return (parts / shrunk / usual).max(axis=1) / overall / np.sqrt(known)

    def held_out_ood(self, spots: Spots, groups: NDArray[Any]) -> NDArray[np.float64]:
        """The score of training spots, each for the spots of the other groups: what a new section would have.

        Components stay those of all spots; their mean and deviation, and the mean profile, are those of the others. With one group,
        it is :meth:`ood`.
        """
        group = np.unique(groups, return_inverse=True)[1]
        if group.max(initial=0) == 0:
            return self.ood(spots)
        n = np.bincount(group).astype(np.float64)[:, None]
        sums, squares = np.zeros((2, len(n), min(_OOD_COMPONENTS, len(self.own.components))))
        for rows, white in self._some_white(spots):
            for g in np.unique(group[rows]):
                own = white[group[rows] == g].astype(np.float64)
                sums[g] += own.sum(axis=0)
                squares[g] += (own**2).sum(axis=0)
        # of the other groups; the components of all spots have the mean 0, so that no digits are lost
        mean, square = ((v.sum(axis=0) - v) / (n.sum() - n) for v in (sums, squares))
        deviation = _positive(np.sqrt(np.maximum(square - mean**2, 0)))
        parts = np.empty((len(group), 2))
        parts[:, 1] = spots.held_out_distance(group)
        for rows, white in self._some_white(spots):
            z = (white - mean[group[rows]]) / deviation[group[rows]]
            parts[rows, 0] = np.sqrt((z**2).mean(axis=1))
        *usual, overall = self.usual_distances
        return (parts / usual).max(axis=1) / overall

    def _components_left(self, present: NDArray[np.bool_]) -> float:
        """Distance from the mean of the components over the genes that are there, as a factor on that over all.

        Of training spots, by probabilistic PCA (Tipping and Bishop 1999): components, and noise of one variance beside them.
        """
        space, k = self.own, min(_OOD_COMPONENTS, len(self.own.components))
        loadings = space.components[:, present[space.selected]].astype(np.float64)
        variance = space.deviation.astype(np.float64) ** 2
        kept = loadings @ loadings.T
        beside = float((space.scale.astype(np.float64) ** 2).sum() - variance.sum())
        noise = max(beside, 0.0) / max(len(space.selected) - len(variance), 1)
        left = np.diag((kept * variance) @ kept.T + noise * (kept - kept @ kept))[:k] / variance[:k]
        return float(_positive(np.sqrt(np.maximum(left, 0).mean())))

    def _profile_left(self, present: NDArray[np.bool_]) -> float:
        """Distance from the mean profile over the genes that are there, as a factor on that over all."""
        if len(self.gene_variance) == 0:
            return 1.0  # a model of an older version

        def expected(genes: NDArray[np.bool_]) -> float:
            between = self.profile[genes].var()
            return float(1 - np.sqrt(between / max(between + self.gene_variance[genes].mean(), 1e-300)))

        every = expected(np.ones_like(present))
        return expected(present) / every if present.any() and every > 1e-9 and expected(present) > 1e-9 else 1.0

    def cluster_codes(self, spots: Spots) -> NDArray[np.int64]:
        """Cluster number of each spot."""
        if self.clusters is None:
            return np.zeros(len(spots), np.int64)
        return self.clusters.assign(self._white(spots.components(self.own)), spots.cluster)

    def covariates(self, spots: Spots) -> NDArray[np.float32]:
        """Covariates as columns: numbers z-scored, categories one-hot; shape (spots, columns)."""
        columns: list[NDArray[Any]] = []
        for name, known in self.categories.items():
            column = spots.covariates[name]  # type: ignore[index]
            if isinstance(known, tuple):
                columns.append((column.to_numpy(dtype=float)[:, None] - known[0]) / known[1])
                continue
            values = column.astype(str).to_numpy().astype(str)
            unknown = sorted(set(values) - set(known))
            if unknown:
                msg = (
                    f"Covariate {name!r} has categories that training did not: {listing(unknown)}; known: {listing(known)}. "
                    f"Set obs[{name!r}] of these spots to a known one, or train without this covariate."
                )
                raise ValueError(msg)
            columns.append(values[:, None] == known[None])
        return np.hstack([*columns, np.empty((len(spots), 0))]).astype(np.float32)

    def further(self, spots: Spots) -> NDArray[np.float32]:
        """What the setup names beside genes: covariates and further features, shape (spots, columns)."""
        return np.hstack([self.covariates(spots), *(e.transform(spots.features, key) for key, e in self.extra.items())])

    def components(self, spots: Spots) -> NDArray[np.float32]:
        """Components of the spots' own expression, scaled by one number to a mean square of 1."""
        return spots.components(self.own) / np.float32(root_mean_square(self.own))

    def transform(
        self, spots: Spots, at: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Features of both stages; `at`: of some of the spots, which the others surround.

        Returns
        -------
        For the intensity stage, shape (spots, features), and for the presence stage; the signature mask behind them in
        those that see it. Both scaled by one number, so that the components keep their relative weight under a penalty.
        """
        blocks = [some_rows(block, at) for block in self._component_blocks(spots)]
        further = some_rows(self.further(spots), at)
        intensity = np.hstack([*blocks, further]).astype(np.float64)
        # the cost of a classifier grows with the square of its features, and presence needs fewer
        presence = np.hstack([*(b[:, :PRESENCE_COMPONENTS] for b in blocks), further]).astype(np.float64)
        if self.clusters is None or not self.signature_stages:
            return intensity, presence
        # A mask takes one value per cluster, so its columns span at most as many dimensions: their SVD holds all of it
        mask = self.clusters.signature[:, self.own.selected].astype(np.float64)
        u, s, _ = np.linalg.svd(mask - mask.mean(axis=0), full_matrices=False)
        embedded = (u * s)[some_rows(self.cluster_codes(spots), at)]
        embedded /= max(float(np.sqrt(((u * s) ** 2).mean())), 1e-12)
        with_mask = [
            np.hstack([F, embedded]) if stage in self.signature_stages else F
            for stage, F in (("intensity", intensity), ("presence", presence))
        ]
        return with_mask[0], with_mask[1]

    def transform_to_disk(self, spots: Spots, folder: Path) -> tuple[DiskArray, DiskArray]:
        """As :meth:`transform`, in single precision; for spots without signatures, whose neighbourhood is that of components."""
        further, k = self.further(spots), len(self.own.components)
        n_blocks = 1 + _DIFFUSION_STEPS * self.uses_graph
        F = DiskArray(folder, (len(spots), n_blocks * k + further.shape[1]), np.float32)
        kept = [b * k + np.arange(min(k, PRESENCE_COMPONENTS)) for b in range(n_blocks)]
        columns = np.concatenate([*kept, np.arange(n_blocks * k, F.shape[1])])
        presence = DiskArray(folder, (len(spots), len(columns)), np.float32)
        pieces = row_pieces(*F.shape)
        for rows in pieces:
            F[rows, :k] = spots.some_components(self.own, rows) / np.float32(root_mean_square(self.own))
            F[rows, n_blocks * k :] = further[rows]
        for b in range(1, n_blocks):
            if spots.graph is None:
                raise ValueError(NO_GRAPH)
            for rows in pieces:
                edges = spots.graph[rows]
                near = slice(int(edges.indices.min(initial=rows.start)), int(edges.indices.max(initial=rows.start)) + 1)
                F[rows, b * k : (b + 1) * k] = neighbour_mean(F[near, (b - 1) * k : b * k], edges[:, near])
        for rows in pieces:
            presence[rows] = F[rows][:, columns]
        return F, presence

    @property
    def widths(self) -> list[int]:
        """Widths of the blocks of components that the intensity stage's features begin with."""
        own = [len(self.own.components)]
        if not self.uses_graph:
            return own
        return own * (1 + _DIFFUSION_STEPS) if self.pooled is None else [*own, len(self.pooled.components)]

    def _component_blocks(self, spots: Spots) -> list[NDArray[np.float32]]:
        blocks = [self.components(spots)]
        if not self.uses_graph:
            return blocks
        if self.pooled is not None:
            return [*blocks, self.pooled.transform(spots.pooled_log_expression()) / root_mean_square(self.pooled)]
        if spots.graph is None:
            raise ValueError(NO_GRAPH)
        for _ in range(_DIFFUSION_STEPS):
            blocks.append(neighbour_mean(blocks[-1], spots.graph))
        return blocks


def check_stages(stages: Sequence[SignatureStage]) -> tuple[SignatureStage, ...]:
    """The stages that see the signature mask, each once."""
    given = [stages] if isinstance(stages, str) else list(stages)
    for stage in given:
        check_choice(stage, get_args(SignatureStage), "signature_stages")
    return tuple(stage for stage in get_args(SignatureStage) if stage in given)


def root_mean_square(space: ExpressionSpace) -> float:
    return float(np.sqrt((space.deviation**2).mean()))


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values to divide by, 1 where there is nothing to measure with."""
    return np.where(values > 1e-9, values, 1.0)
