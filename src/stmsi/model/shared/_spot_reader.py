"""How a model reads spots: all of an AnnData at once, or some at a time from one that lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pandas.api.types import is_integer_dtype

from stmsi._core.spatial.neighbourhoods import edge_length
from stmsi._data.checks import check_share, listing, require_anndata, require_rows, require_unique
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, in_frames, require_obs
from stmsi._settings import logger
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._stored_input import Input, StoredExpression, check_input, query_layer

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._gene_panel import GenePanel
    from stmsi.model.shared._imputation import Imputation
    from stmsi.model.shared._setup import Setup


@dataclass(frozen=True)
class SpotReader:
    """Inputs of all spots of an AnnData; what is checked and told of them is checked and told once, whatever is read.

    Attributes
    ----------
    spots
        Everything but the expression, which is empty.
    stored
        The expression as it is stored.
    input
        What the expression was said to be; `None`: look.
    panel, columns, imputed
        The model's genes, where the data have them, and what stands in for those that are missing.
    """

    spots: Spots
    stored: StoredExpression
    input: Input | None
    panel: GenePanel | None
    columns: NDArray[np.int64] | None
    imputed: Imputation | None

    @classmethod
    def open(
        cls,
        adata: AnnData,
        setup: Setup,
        panel: GenePanel | None = None,
        *,
        weights: NDArray[np.float64] | None = None,
        min_genes: float = 0.0,
        with_cluster: bool = True,
        layer: str | None = None,
        input: Input | None = None,
    ) -> SpotReader:
        """Check, and read everything but the expression.

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
        adata = in_frames(adata)
        if panel is None:
            layer, input = setup.layer, setup.input
        stored = StoredExpression.open(adata, query_layer(adata, layer, setup.layer), setup.sample_key)
        target_sum = None
        if setup.input == "log":
            target_sum = stored.target_sum if panel is None else panel.target_sum
        stored.tell(setup.input, input, target_sum)
        missing, columns, imputed = 0.0, None, None
        if panel is not None:
            columns = panel.locate(adata.var, tell=True)
            missing = _missing_share(columns, weights, min_genes)
            imputed = panel.imputation(np.flatnonzero(columns < 0), setup.input)
        else:
            require_unique(adata.var_names, "Gene names")
        graph, xy, pitch = _graph(adata, setup), adata.obsm.get(Key.obsm.SPATIAL), None
        xy = None if xy is None else np.asarray(xy, dtype=np.float64)[:, :2]
        if graph is not None and xy is not None and np.isfinite(xy).all():
            pitch = edge_length(graph, xy)
        cluster = None
        if setup.cluster_key is not None and with_cluster and setup.cluster_key in adata.obs:
            cluster = _labels(adata.obs[setup.cluster_key])
        sample = _labels(adata.obs[setup.sample_key]) if setup.sample_key in adata.obs else None
        spots = Spots(
            adata.obs_names.copy(),
            sp.csr_matrix((adata.n_obs, 0), dtype=np.float32),
            graph,
            _covariates(adata, setup),
            {key: _read_features(adata, key) for key in setup.feature_key} or None,
            cluster,
            xy,
            sample,
            missing,
            setup.input,
            target_sum,
            imputed,
            pitch,
        )
        return cls(spots, stored, input, panel, columns, imputed)

    def __len__(self) -> int:
        return len(self.spots)

    def read(self, rows: NDArray[np.int64] | None = None) -> Spots:
        """Spots with their expression; edges to others are cut. `rows` ascend; `None`: all."""
        stored = self.stored.take(rows)
        spots = self.spots if rows is None else self.spots.take(rows)
        if spots.input == "counts":
            values = stored.as_counts(self.input)
        else:
            values = stored.as_logs(self.input, spots.target_sum)
        if self.panel is not None and self.columns is not None:
            values = self.panel.align(values, self.columns)
        return spots.with_counts(values)


def _graph(adata: AnnData, setup: Setup) -> sp.csr_matrix | None:
    if setup.graph_key is None:
        return None
    if setup.graph_key not in adata.obsp:
        msg = (
            f"The model uses the graph obsp[{setup.graph_key!r}], which the data lack; found "
            f"{listing(adata.obsp.keys())}. Call stmsi.pp.spatial_graph on them."
        )
        raise KeyError(msg)
    return as_csr(adata.obsp[setup.graph_key])


def _covariates(adata: AnnData, setup: Setup) -> pd.DataFrame | None:
    if not setup.covariate_keys:
        return None
    columns_of = {k: require_obs(adata, k, "The model uses it as a covariate.") for k in setup.covariate_keys}
    for key, column in columns_of.items():
        if column.isna().any():
            msg = f"Covariate obs[{key!r}] has missing values; fill them first."
            raise ValueError(msg)
    # whole numbers are the names of batches, not amounts
    return pd.DataFrame({k: c.astype("category") if is_integer_dtype(c) else c for k, c in columns_of.items()})


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
