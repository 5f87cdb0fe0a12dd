"""The input side of a model: spots with aligned genes and what else the setup names."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pandas.api.types import is_integer_dtype

from stmsi._core.learning.expression_parts import SomeExpression
from stmsi._core.learning.expression_space import (
    ExpressionSpace,
    GeneMoments,
    log_normalize,
    mean_shares,
    pool_counts,
    pool_logs,
    profile_distance,
)
from stmsi._core.learning.filled_expression import FilledExpression, LogExpression
from stmsi._data.checks import check_share, listing, require_anndata, require_rows, require_unique
from stmsi._data.keys import Key
from stmsi._data.tables import require_obs
from stmsi._settings import logger
from stmsi.model.shared._stored_input import Input, StoredExpression, check_input, query_layer

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._gene_panel import GenePanel
    from stmsi.model.shared._imputation import Imputation
    from stmsi.model.shared._setup import Setup


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
    made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> sp.csr_matrix:
        """Counts over the panel, or logarithms, shape (n, genes). Not to be changed."""
        shared = self.expression
        return self.once("counts", shared.values) if isinstance(shared, SomeExpression) else shared

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
            if isinstance(shared, SomeExpression) and genes is None:
                of_parts = shared.space(moments, n_top_genes=n_top_genes, n_components=n_components, seed=seed)
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
    stored = StoredExpression.read(adata, layer, sample_key)
    return log_normalize(stored.as_counts("counts")) if stored.told() == "counts" else stored.values


def read_spots(
    adata: AnnData,
    setup: Setup,
    panel: GenePanel | None = None,
    *,
    weights: NDArray[np.float64] | None = None,
    min_genes: float = 0.0,
    with_cluster: bool = True,
    layer: str | None = None,
    input: Input | None = None,
) -> Spots:
    """Inputs of all spots of an AnnData.

    Parameters
    ----------
    adata
        Training or query data.
    setup
        Names of the fields.
    panel
        The model's genes; `None` takes the genes of `adata` as they are.
    weights
        Share of each gene of the panel in what the model reads, 0 for genes that it does not use; `None`: all alike.
    min_genes
        Share of the panel that must be found, by these weights.
    with_cluster
        Whether the cluster labels may be read. Those of a query come from another clustering, whose labels mean
        something else, and are not.
    layer, input
        Of a query: where its expression is, and what it is. `None`: the layer of the training data if it is there, else
        ``X``; look. Training data are read as the setup says.

    Raises
    ------
    KeyError
        A layer, graph, covariate or feature that the model uses is not there.
    ValueError
        Too few genes, or expression on a scale that the model does not know.
    """
    require_anndata(adata)
    require_rows(adata)
    check_share(min_genes, "min_genes")
    check_input(input)
    if panel is None:
        layer, input = setup.layer, setup.input
    stored = StoredExpression.read(adata, query_layer(adata, layer, setup.layer), setup.sample_key)
    target_sum = None
    if setup.input == "counts":
        counts = stored.as_counts(input)
    else:
        target_sum = stored.target_sum if panel is None else panel.target_sum
        counts = stored.as_logs(input, target_sum)
    missing, imputed = 0.0, None
    if panel is not None:
        columns = panel.locate(adata.var, tell=True)
        missing = _missing_share(columns, weights, min_genes)
        counts, imputed = panel.align(counts, columns), panel.imputation(np.flatnonzero(columns < 0), setup.input)
    else:
        require_unique(adata.var_names, "Gene names")
    graph = None
    if setup.graph_key is not None:
        if setup.graph_key not in adata.obsp:
            msg = (
                f"The model uses the graph obsp[{setup.graph_key!r}], which the data lack; found "
                f"{listing(adata.obsp.keys())}. Call stmsi.pp.spatial_graph on them."
            )
            raise KeyError(msg)
        graph = sp.csr_matrix(adata.obsp[setup.graph_key])
    covariates = None
    if setup.covariate_keys:
        columns_of = {k: require_obs(adata, k, "The model uses it as a covariate.") for k in setup.covariate_keys}
        for key, column in columns_of.items():
            if column.isna().any():
                msg = f"Covariate obs[{key!r}] has missing values; fill them first."
                raise ValueError(msg)
        # whole numbers are the names of batches, not amounts
        covariates = pd.DataFrame(
            {k: c.astype("category") if is_integer_dtype(c) else c for k, c in columns_of.items()}
        )
    features = {key: _read_features(adata, key) for key in setup.feature_key} or None
    cluster = None
    if setup.cluster_key is not None and with_cluster and setup.cluster_key in adata.obs:
        cluster = _labels(adata.obs[setup.cluster_key])
    xy = adata.obsm.get(Key.obsm.SPATIAL)
    xy = None if xy is None else np.asarray(xy, dtype=np.float64)[:, :2]
    sample = _labels(adata.obs[setup.sample_key]) if setup.sample_key in adata.obs else None
    return Spots(
        adata.obs_names.copy(),
        counts,
        graph,
        covariates,
        features,
        cluster,
        xy,
        sample,
        missing,
        setup.input,
        target_sum,
        imputed,
    )


def _missing_share(columns: NDArray[np.int64], weights: NDArray[np.float64] | None, min_genes: float) -> float:
    """Share of what the model reads that is missing; told, and refused where too little or nothing is there."""
    weight = np.full(len(columns), 1 / max(len(columns), 1)) if weights is None else weights
    used, absent = weight > 0, columns < 0
    gone = used & absent
    if not gone.any():
        return 0.0
    share = float(weight[absent].sum() / weight.sum())
    if 1 - share < min_genes or gone.sum() == used.sum():
        msg = (
            f"Only {max(1 - share, 0):.1%} of the {used.sum():,} training genes are in the data ({(used & ~absent).sum():,} "
            f"of those that the model uses, by their weight); at least {min_genes:.0%} are needed (min_genes=), and one gene. "
            "Missing genes would be imputed at their training mean."
        )
        raise ValueError(msg)
    logger.warning(
        "%.1f %% of the training genes are missing and were imputed (by their weight in the model; %s of the %s that it uses).",
        100 * share, f"{gone.sum():,}", f"{used.sum():,}",
    )  # fmt: skip
    return share


def _labels(column: pd.Series) -> NDArray[Any]:
    """Labels as strings, `None` where there is none."""
    return column.astype(object).where(column.notna(), None).map(lambda c: c if c is None else str(c)).to_numpy()


def _read_features(adata: AnnData, key: str) -> pd.DataFrame:
    if key not in adata.obsm:
        msg = (
            f"The model uses the features obsm[{key!r}], which the data lack; found {listing(adata.obsm.keys())}. "
            "Compute them for these spots too, or train without feature_key."
        )
        raise KeyError(msg)
    values = adata.obsm[key]
    columns = values.columns.astype(str) if isinstance(values, pd.DataFrame) else None
    array = np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float64)
    frame = pd.DataFrame(array.reshape(len(array), -1), columns=columns)
    require_unique(frame.columns, f"Columns of obsm[{key!r}]", "Rename them.")
    bad = int((~np.isfinite(frame.to_numpy())).any(axis=1).sum())
    if bad:
        msg = f"Features obsm[{key!r}] are NaN or infinite in {bad} spots; fill them or leave the spots out."
        raise ValueError(msg)
    return frame
