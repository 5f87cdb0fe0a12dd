"""The input side of a model: spots with aligned genes and what else the setup names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.learning.expression_parts import SomeExpression
from stmsi._core.learning.expression_space import (
    ExpressionSpace,
    GeneMoments,
    held_out_distance,
    log_normalize,
    mean_shares,
    pool_counts,
    pool_logs,
    profile_distance,
)
from stmsi._core.learning.filled_expression import FilledExpression, LogExpression
from stmsi._core.learning.profile_hashes import Hashes, profile_hashes
from stmsi.model.shared._stored_input import Input, StoredExpression

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._imputation import Imputation


T = TypeVar("T")

NO_GRAPH = "The model uses neighbourhoods, but the spots have no graph."


@dataclass(frozen=True)
class Spots:
    """Inputs of n spots.

    Attributes
    ----------
    names
        ``obs_names``.
    expression
        Counts over the panel, shape (n, genes), CSR; with ``input="log"`` log expression, which may be negative. Genes
        that are missing are empty. Where other fits share it, what they share; `counts` is the matrix in either case.
    graph
        Neighbourhood graph, shape (n, n), where the model uses one.
    covariates
        Columns of ``obs``, where the model uses some.
    features
        Further features by key, each a DataFrame of n rows, where the model uses some.
    cluster
        Cluster label of each spot (`None` where unknown), where the model uses signatures.
    xy
        Positions, shape (n, 2), where known.
    sample
        Section of each spot (`None` where unknown), where the data say it.
    missing
        Share of what the model reads that was imputed: genes by their weight in the model.
    imputed
        What stands in for the missing genes, where some are.
    input
        What `expression` holds: ``"counts"`` or ``"log"``.
    target_sum
        With ``input="log"``, sum of a spot before the logarithm, where it is known.
    edge_length
        Median distance of spots that share an edge, where it is known, over all spots that were read.
    made
        What has been computed of the expression of these spots, by name, so that the members of a stack need not do it again.
    """

    names: pd.Index
    expression: sp.csr_matrix | SomeExpression
    graph: sp.csr_matrix | None = None
    covariates: pd.DataFrame | None = None
    features: dict[str, pd.DataFrame] | None = None
    cluster: NDArray[Any] | None = None
    xy: NDArray[np.float64] | None = None
    sample: NDArray[Any] | None = None
    missing: float = 0.0
    input: Input = "counts"
    target_sum: float | None = None
    imputed: Imputation | None = None
    edge_length: float | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> sp.csr_matrix:
        """Counts over the panel, or logarithms, shape (n, genes). Not to be changed."""
        shared = self.expression
        return self.once("counts", shared.values) if isinstance(shared, SomeExpression) else shared

    @property
    def folder(self) -> Path | None:
        """Folder for what grows with the spots, where their expression is on disk."""
        return self.expression.folder if isinstance(self.expression, SomeExpression) else None

    @property
    def is_streamed(self) -> bool:
        """Whether the expression is on disk, and should be read some spots at a time."""
        return isinstance(self.expression, SomeExpression) and self.expression.whole.is_streamed

    def in_memory(self) -> Spots:
        """The same spots with their expression read: for some at a time."""
        return self.with_counts(self.counts) if self.is_streamed else self

    def with_counts(self, counts: sp.csr_matrix | SomeExpression) -> Spots:
        """The same spots with other expression, of which nothing is made yet."""
        return replace(self, expression=counts, made={})

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made under this key before, or is now; not to be changed."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def whole_counts(self, needed: NDArray[np.int64] | None = None) -> sp.csr_matrix:
        """Counts (or logarithms) with entries for missing genes, all or those needed: dense columns, so for some spots at most."""
        return self.counts if self.imputed is None else self.imputed.fill(self.counts, needed)

    def log_expression(self) -> LogExpression:
        """Log expression, shape (n, genes): log-normalised counts, or logs as they are. Made once; not to be changed."""
        imputed = self.imputed
        if imputed is not None:
            return self.once("log", lambda: imputed.log_expression(self.counts))
        if isinstance(self.expression, SomeExpression):
            return self.once("log", self.expression.log)
        return self.once("log", lambda: log_normalize(self.counts) if self.input == "counts" else self.counts)

    def measured_log_expression(self) -> sp.csr_matrix:
        """Log expression of spots without missing genes, as those of training are; made once, not to be changed."""
        log = self.log_expression()
        if isinstance(log, FilledExpression):
            msg = "A model is fitted to spots that have all its genes; these lack some."
            raise TypeError(msg)
        return log

    def gene_moments(self) -> GeneMoments:
        """Of the log expression of each gene. Made once; not to be changed."""
        if isinstance(self.expression, SomeExpression):
            return self.once("moments", self.expression.gene_moments)
        return self.once("moments", lambda: GeneMoments.of(self.measured_log_expression()))

    def genes_seen(self) -> NDArray[np.int64]:
        """In how many of the spots each gene has an entry, shape (genes,)."""
        if isinstance(self.expression, SomeExpression):
            return np.rint(self.gene_moments().seen * len(self)).astype(np.int64)
        return np.bincount(self.counts.indices, minlength=self.counts.shape[1])

    def gene_shares(self) -> NDArray[np.float64] | None:
        """Mean share of each gene in the counts of a spot, over spots with counts, shape (genes,); `None` of logarithms."""
        if self.input != "counts":
            return None
        shared = self.expression
        return shared.mean_shares() if isinstance(shared, SomeExpression) else mean_shares(shared)

    def expression_space(
        self, *, n_top_genes: int, n_components: int, seed: int, genes: NDArray[np.int64] | None = None
    ) -> ExpressionSpace:
        """Principal components of the log expression of these spots, of the most variable genes or of those given.

        Made once; not to be changed.
        """

        def make() -> ExpressionSpace:
            moments, shared = self.gene_moments(), self.expression
            if isinstance(shared, SomeExpression):
                of_parts = shared.space(
                    moments, n_top_genes=n_top_genes, n_components=n_components, seed=seed, genes=genes
                )
                if of_parts is not None:
                    return of_parts
            space, components = ExpressionSpace.fit_transform(
                self.measured_log_expression(), moments.mean, moments.variance,
                n_top_genes=n_top_genes, n_components=n_components, seed=seed, genes=genes,
            )  # fmt: skip
            self.made["components", id(space)] = space, components
            return space

        return self.once(("space", n_top_genes, n_components, seed, None if genes is None else genes.tobytes()), make)

    def components(self, space: ExpressionSpace) -> NDArray[np.float32]:
        """Components of these spots in a space, shape (n, components). Made once; not to be changed."""

        def make() -> NDArray[np.float32]:
            shared = self.expression
            if isinstance(shared, SomeExpression):
                return shared.components(space)
            return space.transform(self.log_expression())

        # the space is kept beside them: its number is taken by another one when it is gone
        return self.once(("components", id(space)), lambda: (space, make()))[1]

    def some_components(self, space: ExpressionSpace, rows: slice) -> NDArray[np.float32]:
        """:meth:`components` of some of the spots; those of spots on disk stay there."""
        shared = self.expression
        if isinstance(shared, SomeExpression) and ("components", id(space)) not in self.made:
            return shared.components(space, rows)
        return self.components(space)[rows]

    def profile_distance(self, profile: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far the profile of each spot is from another over the genes that are there, shape (n,). Made once; not to be changed."""
        shared, imputed = self.expression, self.imputed

        def make() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            if isinstance(shared, SomeExpression):
                return profile, shared.profile_distance(profile)
            log = self.log_expression()
            if isinstance(log, FilledExpression) and imputed is not None:
                return profile, profile_distance(log.measured, profile, imputed.present)
            return profile, profile_distance(log, profile)

        return self.once(("distance", id(profile)), make)[1]

    def held_out_distance(self, groups: NDArray[np.int64]) -> NDArray[np.float64]:
        """How far the profile of each training spot is from the mean of the other groups (numbers from 0), shape (n,)."""
        if isinstance(self.expression, SomeExpression):
            return self.expression.held_out_distance(groups)
        return held_out_distance(self.measured_log_expression(), groups)

    def profile_hashes(self, genes: Sequence[NDArray[np.int64]]) -> list[Hashes]:
        """Hash of each profile over each set of genes, see :func:`stmsi._core.learning.profile_hashes.profile_hashes`."""
        if isinstance(self.expression, SomeExpression):
            return self.expression.profile_hashes(genes)
        return profile_hashes(self.counts, genes)

    def pooled_log_expression(self) -> LogExpression:
        """Log expression of each spot and its neighbours together, shape (n, genes). Made once; not to be changed.

        Counts are added up before they are normalised; of logs it is the mean.
        """
        graph = self.graph
        if graph is None:
            raise ValueError(NO_GRAPH)
        imputed = self.imputed
        if imputed is not None:
            return self.once("pooled log", lambda: imputed.pooled(self.counts, graph))
        if self.input == "counts":
            return self.once("pooled log", lambda: log_normalize(pool_counts(self.counts, graph)))
        return self.once("pooled log", lambda: pool_logs(self.counts, graph))

    def take(self, rows: NDArray[np.int64]) -> Spots:
        """Some of the spots; edges to the others are cut."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return replace(
            self,
            made={},
            names=self.names[rows],
            expression=self.expression.take(rows)
            if isinstance(self.expression, SomeExpression)
            else self.expression[rows],
            graph=None if self.graph is None else self.graph[rows][:, rows],
            covariates=None if self.covariates is None else self.covariates.iloc[rows],
            features=None if self.features is None else {k: v.iloc[rows] for k, v in self.features.items()},
            cluster=None if self.cluster is None else self.cluster[rows],
            xy=None if self.xy is None else self.xy[rows],
            sample=None if self.sample is None else self.sample[rows],
        )


def read_log_expression(adata: AnnData, layer: str | None, sample_key: str) -> sp.csr_matrix:
    """Log expression of all spots, from counts or logarithms, outside of any model."""
    stored = StoredExpression.open(adata, layer, sample_key)
    if stored.told() == "log":
        return stored.values
    stored.tell("counts", "counts", None)
    return log_normalize(stored.as_counts("counts"))
