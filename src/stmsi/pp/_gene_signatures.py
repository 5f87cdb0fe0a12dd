"""Genes that mark the spatial clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.checks import check_nonnegative, listing, require_unique
from stmsi._data.keys import Key
from stmsi._data.small_files import read_lines
from stmsi._data.tables import as_csr, require_obs, table_to_change, values_of
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

GeneSets = Mapping[str, Sequence[str]] | str | Path


def gene_signatures(
    data: SpatialData | AnnData,
    *,
    cluster_key: str = Key.obs.CLUSTER,
    gene_sets: GeneSets | None = None,
    n_genes: int = 50,
    method: Literal["t-test", "t-test_overestim_var", "wilcoxon", "logreg"] = "wilcoxon",
    layer: str | None = None,
    key_added: str = Key.varm.SIGNATURE,
    table_key: str = Key.table.ST,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Mark the genes of each spatial cluster's signature.

    The mask of a spot, which the presence stage of every model can take as input, is the column of its cluster.

    Parameters
    ----------
    data
        SpatialData or its ST table, with raw counts.
    cluster_key
        Column of ``obs`` with the clusters (for example from :func:`scanpy.tl.leiden`).
    gene_sets
        Signatures to use instead of the ones found here: a mapping from cluster to genes, or the path of a GMT file
        whose sets are named like the clusters.
    n_genes
        Genes per cluster, those ranked first by :func:`scanpy.tl.rank_genes_groups`.
    method
        Its test.
    layer
        Layer with the counts; `None`: ``X``.
    key_added
        Where in ``varm`` to write.
    table_key
        The ST table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes ``varm["signature"]`` (DataFrame genes x clusters, boolean;
    columns are safe ids) and ``uns["signature"]``: ``params`` and ``clusters``, the cluster labels in column order.

    Raises
    ------
    KeyError
        The clusters or the layer are not there, or gene sets miss a cluster.
    ValueError
        Fewer than two clusters, clusters with fewer than two spots, gene sets that share no gene with the data.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.gene_signatures(sdata, cluster_key="domain", n_genes=10)
    >>> int(sdata.tables["st"].varm["signature"].sum().iloc[0])
    10
    """
    st, changed = table_to_change(data, table_key, copy=copy)
    require_unique(st.var_names, "Gene names")
    label = require_obs(st, cluster_key, "Cluster the spots first, for example with scanpy.tl.leiden.")
    cluster = label.astype(object).where(label.notna(), None)
    names = [str(c) for c in pd.unique(cluster.dropna())]
    names = sorted(names, key=lambda n: (len(n), n)) if all(n.isdigit() for n in names) else sorted(names)
    if not names:
        msg = f"obs[{cluster_key!r}] holds no cluster: every label is missing. Cluster the spots first."
        raise ValueError(msg)
    if gene_sets is not None:
        mask = _from_sets(gene_sets, names, st.var_names)
    else:
        mask = signature_mask(st, cluster.astype("string"), names, n_genes, method, layer)
    st.varm[key_added] = pd.DataFrame(mask, index=st.var_names, columns=safe_ids(names))
    params = {"cluster_key": cluster_key, "n_genes": n_genes, "method": "gene_sets" if gene_sets else method}
    st.uns[Key.uns.SIGNATURE if key_added == Key.varm.SIGNATURE else key_added] = {
        "params": params | ({"layer": layer} if layer else {}),
        "clusters": np.array(names, dtype=object),
    }
    logger.info("Signatures of %d clusters, %d to %d genes.", len(names), mask.sum(0).min(), mask.sum(0).max())
    return changed


def signature_mask(
    st: AnnData, cluster: pd.Series, names: Sequence[str], n_genes: int, method: str, layer: str | None
) -> np.ndarray:
    """Boolean genes x clusters: the `n_genes` that rank first in each cluster against the rest."""
    import scanpy as sc
    from anndata import AnnData

    if len(names) < 2:
        msg = f"Signatures need at least two clusters, found {listing(names)}."
        raise ValueError(msg)
    count = cluster.value_counts()
    small = [n for n in names if count.get(n, 0) < 2]
    if small:
        msg = f"Clusters with fewer than two spots have no signature: {listing(small)}. Merge or drop them."
        raise ValueError(msg)
    if not 1 <= n_genes <= st.n_vars:
        msg = f"n_genes must lie between 1 and the number of genes ({st.n_vars}), found {n_genes!r}."
        raise ValueError(msg)
    known = cluster.notna().to_numpy()
    counts = as_csr(values_of(st, layer, "ST"), np.float32)
    check_nonnegative(counts, "Gene counts")
    work = AnnData(counts[known], var=pd.DataFrame(index=st.var_names))
    work.obs["cluster"] = pd.Categorical(cluster[known].astype(str).to_numpy(), categories=list(names))
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    sc.tl.rank_genes_groups(work, "cluster", method=method, n_genes=n_genes)
    ranked = work.uns["rank_genes_groups"]["names"]
    return np.column_stack([st.var_names.isin(np.asarray(ranked[n]).astype(str)) for n in names])


def _from_sets(gene_sets: GeneSets, names: Sequence[str], genes: pd.Index) -> np.ndarray:
    sets = dict(gene_sets) if isinstance(gene_sets, Mapping) else read_gmt(Path(gene_sets))
    if missing := [n for n in names if n not in sets]:
        msg = (
            f"No gene set for the clusters {listing(missing)}; sets: {listing(sets)}. Name the sets like the clusters."
        )
        raise KeyError(msg)
    mask = np.column_stack([genes.isin(list(sets[n])) for n in names])
    if empty := [n for n, hits in zip(names, mask.sum(axis=0), strict=True) if hits == 0]:
        msg = (
            f"The gene sets of {listing(empty)} share no gene with the data, whose genes look like "
            f"{listing(genes[:3])}. Use the same kind of id (symbols or Ensembl)."
        )
        raise ValueError(msg)
    return mask


def read_gmt(path: Path) -> dict[str, list[str]]:
    """Gene sets of a GMT file: name, description, genes, separated by tabs."""
    lines = read_lines(path, "a GMT file (name, description and genes)")
    rows = [line.rstrip("\n").split("\t") for line in lines if line.strip()]
    bad = [i + 1 for i, row in enumerate(rows) if len(row) < 3]
    if bad or not rows:
        msg = f"{path} is not a GMT file: expected name, description and genes separated by tabs (lines {bad[:5]})."
        raise ValueError(msg)
    return {row[0]: [g for g in row[2:] if g] for row in rows}
