"""Rules that look into features, expression and metabolites for what was made of test spots, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD

from stmsi._core.arrays import Floats, Ints
from stmsi._core.learning.expression_space import log_normalize
from stmsi._core.metrics.structure import correlations
from stmsi._core.spatial.sections import rows_of_each
from stmsi._data.checks import listing
from stmsi._data.tables import require_frame
from stmsi.model_selection._split import is_whole
from stmsi.model_selection._traces import equal_scales, few_components, opened, orthogonal, ranked, scaled

if TYPE_CHECKING:
    from stmsi.model_selection._leaks import Finding
    from stmsi.model_selection._split import Split

_COPY = 0.999
_EMBEDDINGS = ("pca", "umap", "tsne", "diffmap", "draw_graph", "scvi", "scanvi", "harmony", "scanorama", "nmf")
_MOST_SCREENED = 300  # genes most like some metabolite, of which all that can share its noise are some
_COMPONENTS = 20
_MOST_GENES = 500
_MOST_FEATURES = 2000


def features(split: Split) -> Iterator[Finding]:
    """Features fitted on all spots, or made of the targets."""
    targets = require_frame(split.adata, split.metabolite_key).to_numpy(np.float64)
    named = set()
    for key in split.keys("feature_key"):
        record, where = split.adata.uns.get(key), f"obsm[{key!r}]"
        if isinstance(record, Mapping) and "model" in record and "params" in record:
            yield split.leak("predictions", where)
        elif key.startswith("X_") and any(name in key.lower() for name in _EMBEDDINGS):
            named.add(where)
            yield split.leak("embedding", where)
    tables = [(dict(split.features(table)), section) for table, section in split.tables]
    held = None
    for where, values in split.features():
        finite = np.isfinite(values)
        copied = np.abs(correlations(np.where(finite, values, np.nan), targets)) > _COPY
        seen = [(all_spots[where], section) for all_spots, section in tables]
        seen = [(v[ok], section[ok]) for v, section in seen if (ok := np.isfinite(v).all(axis=1)).any()]
        if copied.any():
            yield split.leak("target", where)
        elif any(scaled(v, section) for v, section in seen):
            yield split.leak("scaled features", where)
        elif where not in named and any(orthogonal(v) for v, _ in seen):
            yield split.leak("components", where)
        if copied.any() or where in named or not finite.any() or not split.shared_noise.enough:
            continue
        held = held or replace(split.shared_noise, known=expression_components(split), genes=False)
        filled = np.where(finite, values, np.nanmean(np.where(finite, values, np.nan), axis=0, where=finite))
        filled = np.nan_to_num(filled)[:, :_MOST_FEATURES]
        score = held.of_columns(filled)
        if score.max(initial=0) >= 1:
            hit = np.flatnonzero(score >= 1)
            columns = f" (columns {listing(hit)})" if len(score) > 1 else ""
            yield split.leak("made of targets", where, columns=columns)
        elif held.of_all(filled) >= 1:
            yield split.leak("made of targets", where, columns=" together")


def expression_components(split: Split, without: Ints | None = None) -> Floats:
    """Depth of spots with MSI (where there are counts), and components of the expression of all genes but some, (n, k)."""
    X = split.matrix
    counts = is_whole(X) and X.data.min(initial=0) >= 0
    depth = _depth(X) if counts else np.zeros((X.shape[0], 0))
    X = log_normalize(X) if counts else X
    X = X if without is None else X[:, np.setdiff1d(np.arange(X.shape[1]), without)]
    n = min(X.shape)
    mean = np.asarray(X.mean(axis=0)).ravel()
    spread = np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2
    X = X[:, np.sort(np.argsort(-spread, kind="stable")[:_MOST_GENES])]
    k = min(_COMPONENTS, X.shape[1] - 1, n // 20)
    if k < 1:
        return depth
    rows = split.shared_noise.rows
    return np.hstack([depth, TruncatedSVD(k, n_iter=3, random_state=0).fit(X[rows]).transform(X)]).astype(np.float64)


def _depth(X: sp.csr_matrix) -> Floats:
    """Counts of each spot, and the mean of the logarithms of its genes, to which a few ions among them add little, (n, 3)."""
    total = np.asarray(X.sum(axis=1), dtype=np.float64)
    return np.hstack([np.log1p(total), np.sqrt(total), np.asarray(X.log1p().mean(axis=1), dtype=np.float64)])


def ions(split: Split) -> Iterator[Finding]:
    """Metabolites among the genes, by name or by what they share with the targets."""
    frame = require_frame(split.adata, split.metabolite_key)
    names = split.adata.var_names
    same = names[names.isin(frame.columns)]
    held = split.shared_noise
    hit = _like_ions(split) if held.enough else np.empty(0, np.int64)
    found = list(dict.fromkeys([*same, *names[hit]]))
    if found:
        yield split.leak("ions among genes", split.where, genes=listing(found))


def _like_ions(split: Split) -> Ints:
    """Genes that follow metabolites as copies do, rising.

    A spot has more or less of all transcripts, and of a cell type, than its neighbours. Metabolites and histology may follow this, and
    then hundreds of genes do. So genes that look like copies are looked at again, beyond what all other genes tell.
    """
    held, frame = split.shared_noise, require_frame(split.adata, split.metabolite_key)
    X = split.matrix[held.rows].astype(np.float64)
    X.data = np.log1p(np.maximum(X.data, 0))
    Y = np.log1p(np.nan_to_num(frame.to_numpy(np.float64)[held.rows]).clip(0))
    for own in rows_of_each(split.sample[held.rows]):
        Y[own] -= Y[own].mean(axis=0)
    size = np.sqrt((Y**2).sum(axis=0))
    mean = np.asarray(X.mean(axis=0)).ravel()
    spread = np.sqrt(np.maximum(np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2, 0))
    like = np.abs(X.T @ (Y / np.maximum(size, 1e-12))).max(axis=1, initial=0) / np.maximum(spread, 1e-12)
    near = np.sort(np.argsort(-like, kind="stable")[:_MOST_SCREENED])
    columns = split.matrix[:, near].toarray().astype(np.float64)
    columns = np.log1p(np.maximum(columns, 0))
    suspect = np.flatnonzero(held.of_columns(columns) >= 1)
    if not suspect.size:
        return near[suspect]
    beyond = replace(held, known=expression_components(split, near[suspect]))
    return near[suspect[beyond.of_columns(columns[:, suspect]) >= 1]]


def values(split: Split) -> Iterator[Finding]:
    """Targets scaled, ranked or smoothed over all sections."""
    frame = require_frame(split.adata, split.metabolite_key).to_numpy(np.float64)
    where, smoothed = f"obsm[{split.metabolite_key!r}]", "impute_dropout" in split.record
    if ranked(frame, split.sample):
        yield split.leak("ranked targets", where)
    elif equal_scales(frame, split.sample):
        yield split.leak("scaled targets", where)
    if few_components(frame):
        yield split.leak("rebuilt targets", where)
    elif split.neighbour_means is not None and not smoothed and opened(np.nan_to_num(frame), split.neighbour_means):
        yield split.leak("smoothed targets", where, split.cut, error=bool(split.cut))
