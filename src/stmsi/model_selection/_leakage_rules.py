"""Rules that find what lets a model see its test spots, one for each kind of leak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial import KDTree

from stmsi._core.arrays import Floats
from stmsi._core.metrics.structure import correlations
from stmsi._core.spatial.sections import rows_of_each, spot_pitch
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, require_frame, sections_of
from stmsi.model_selection._split import codes, is_whole

if TYPE_CHECKING:
    from stmsi.model_selection._leaks import Finding
    from stmsi.model_selection._split import Split

_NEAR = 1.5  # neighbours are up to this many times the spots' distance away: 6 on a hexagon, 8 on a square
_MANY = 0.75  # share of test spots beside a training spot from which a split is no split by blocks
_LEAST_GENES = 10  # spots with fewer genes than this can be equal by chance
_COPY = 0.999
_EMBEDDINGS = ("pca", "umap", "tsne", "diffmap", "draw_graph", "scvi", "scanvi", "harmony", "scanorama", "nmf")
_COUNTS = ("counts", "raw")
_OWN_LIMITS = ("threshold", "detected")
"""Ways to call presence that fit nothing."""


def overlap(split: Split) -> Iterator[Finding]:
    """Spots on both sides."""
    yield from split.leaks("overlap", "folds", split.shared(np.arange(split.adata.n_obs)))


def duplicates(split: Split) -> Iterator[Finding]:
    """Copies of a spot on either side, by name or by counts."""
    if Key.obs.OVERSAMPLED in split.adata.obs:
        origin = split.adata.obs[Key.obs.OVERSAMPLED].astype(str)
        yield from split.leaks("repeats", f"obs[{Key.obs.OVERSAMPLED!r}]", split.shared(codes(origin)))
        return
    X = split.matrix.copy()
    X.eliminate_zeros()
    X.sort_indices()
    # exact sums modulo 2^64 of the bits of each value times a random number of its gene
    weight = np.random.default_rng(0).integers(1, 2**63, (2, X.shape[1]), dtype=np.uint64) | np.uint64(1)
    bits = X.data.astype(np.float64).view(np.uint64)
    sums = [
        np.diff(np.concatenate([np.zeros(1, np.uint64), np.cumsum(bits * w[X.indices], dtype=np.uint64)])[X.indptr])
        for w in weight
    ]
    code = pd.factorize(pd.MultiIndex.from_arrays(sums))[0].astype(np.int64)
    code = np.where(np.diff(X.indptr) >= _LEAST_GENES, code, -1)
    yield from split.leaks("copies", split.where, split.shared(code))


def pixels(split: Split) -> Iterator[Finding]:
    """One MSI pixel measured for spots on either side."""
    name = Key.pixel_of(split.metabolite_key)[0]
    if name in split.adata.obs:
        label = split.adata.obs[name].astype(object)
        pair = pd.Series(list(zip(split.sample, label, strict=True)), dtype=object).where(label.notna().to_numpy())
        yield from split.leaks("pixel", f"obs[{name!r}]", split.shared(codes(pair)))


def regions(split: Split) -> Iterator[Finding]:
    """One mean of a region of MSI on either side."""
    params = split.record.get("params", {})
    if _of_regions(split) and params.get("match") == "mean":  # sections share the targets of a region
        key = str(params["region_key"])
        yield from split.leaks("region", f"obs[{key!r}]", split.shared(codes(split.adata.obs[key])), key=key)


def _of_regions(split: Split) -> bool:
    """Whether observations are those of stmsi.pp.pair_by_region, which have no place."""
    return split.record.get("params", {}).get("method") == "regions"


def neighbours(split: Split) -> Iterator[Finding]:
    """Test spots beside training spots, as a random split leaves them."""
    if not split.cut or _of_regions(split):
        return
    if Key.obsm.SPATIAL not in split.adata.obsm:
        yield split.leak("no positions", "obsm", split.cut)
        return
    xy = np.asarray(split.adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
    sections = [own[np.isfinite(xy[own]).all(axis=1)] for own in rows_of_each(split.sample)]
    pitch = [spot_pitch(xy[own]) for own in sections]
    shares = []
    for train, test in split.folds:
        near = 0
        for own, step in zip(sections, pitch, strict=True):
            a, b = np.intersect1d(own, train), np.intersect1d(own, test)
            if len(a) and len(b):
                near += int((KDTree(xy[a]).query(xy[b])[0] <= _NEAR * step).sum())
        shares.append(near / max(len(test), 1))
    yield from split.leaks("neighbours", f"obsm[{Key.obsm.SPATIAL!r}]", shares, error=max(shares) > _MANY)


def patients(split: Split) -> Iterator[Finding]:
    """Sections of one patient on either side."""
    if not split.cut and Key.obs.PATIENT in split.adata.obs:
        shares = split.shared(codes(split.adata.obs[Key.obs.PATIENT]))
        yield from split.leaks("patient", f"obs[{Key.obs.PATIENT!r}]", shares)


def graphs(split: Split) -> Iterator[Finding]:
    """Edges between training and test spots."""
    for key in split.keys("graph_key"):
        if key not in split.adata.obsp:
            continue
        edges = sp.csr_matrix(split.adata.obsp[key]).astype(bool)
        shares = []
        for train, test in split.folds:
            side = np.zeros(split.adata.n_obs)
            side[train] = 1
            shares.append(float(((edges @ side)[test] > 0).mean()))
        yield from split.leaks("graph", f"obsp[{key!r}]", shares)


def genes(split: Split) -> Iterator[Finding]:
    """Genes chosen, or expression changed, by looking at all spots."""
    adata = split.adata
    chosen = adata.var.get("highly_variable")
    if (chosen is not None and chosen.astype(bool).all()) or (chosen is None and "hvg" in adata.uns):
        yield split.leak("genes", "var")
    if is_whole(split.matrix):
        return
    if {"mean", "std"} <= set(adata.var):
        yield split.leak("scaled genes", split.where)
        return
    reference = _counts(split)
    if reference is not None:
        moved = (split.matrix != 0) > (reference != 0)
        share = float((moved.sum(axis=1) > 0).mean())
        if share > 0:
            yield split.leak("smoothing", split.where, split.cut, share, error=bool(split.cut))
            return
    log = " after scanpy's log1p" if "log1p" in adata.uns else ""
    yield split.leak("normalisation", split.where, log=log)


def _counts(split: Split) -> sp.csr_matrix | None:
    """Counts that the expression may have been made of."""
    adata = split.adata
    candidates = [adata.layers[k] for k in _COUNTS if k in adata.layers and k != split.layer]
    if split.layer is not None and adata.X is not None:
        candidates.append(adata.X)
    if adata.raw is not None and adata.raw.shape[1] == adata.n_vars:
        candidates.append(adata.raw.X)
    return next((found for found in map(as_csr, candidates) if is_whole(found)), None)


def features(split: Split) -> Iterator[Finding]:
    """Features fitted on all spots, or made of the targets."""
    targets = require_frame(split.adata, split.metabolite_key).to_numpy(np.float64)
    for key in split.keys("feature_key"):
        record = split.adata.uns.get(key)
        if isinstance(record, Mapping) and "model" in record and "params" in record:
            yield split.leak("predictions", f"obsm[{key!r}]")
        elif key.startswith("X_") and any(name in key.lower() for name in _EMBEDDINGS):
            yield split.leak("embedding", f"obsm[{key!r}]")
    named = {f"obsm[{key!r}]" for key in split.keys("feature_key") if key.startswith("X_")}
    for where, values in split.features():
        if not np.isfinite(values).all():
            continue
        if (np.abs(correlations(values, targets)) > _COPY).any():
            yield split.leak("target", where)
        elif _standardised(values) and not all(_standardised(values[own]) for own in rows_of_each(split.sample)):
            yield split.leak("scaled features", where)
        elif _orthogonal(values) and where not in named:
            yield split.leak("components", where)


def _standardised(values: Floats) -> bool:
    """Whether all columns that vary have mean 0 and deviation 1."""
    mean, spread = values.mean(axis=0), values.std(axis=0)
    near = (np.abs(mean) < 1e-3) & (np.abs(spread - 1) < 5 / len(values))
    return bool((spread > 0).any() and near[spread > 0].all())


def _orthogonal(values: Floats) -> bool:
    """Whether columns, three at least, have mean 0 and are uncorrelated beyond chance."""
    own = values[:, values.std(axis=0) > 0]
    if own.shape[1] < 3 or len(own) <= own.shape[1]:
        return False
    if (np.abs(own.mean(axis=0)) > 1e-4 * own.std(axis=0)).any():
        return False
    table = np.abs(np.corrcoef(own.T))
    np.fill_diagonal(table, 0)
    return bool(table.max() < 1e-3)


def targets(split: Split) -> Iterator[Finding]:
    """Targets changed or chosen by looking at test spots."""
    record, key = split.record, split.metabolite_key
    corrected = record.get("correct_batch")
    if corrected is not None:
        params = corrected.get("params", {})
        method = str(params.get("method"))
        batches = split.adata.obs.get(str(params.get("batch_key")))
        if method != "rank" or batches is None or max(split.shared(codes(batches))) > 0:
            yield split.leak("batch", f"uns[{key!r}]['correct_batch']", method=method)
    if "impute_dropout" in record and split.cut:
        yield split.leak("imputation", f"uns[{key!r}]['impute_dropout']", split.cut)
    method = str(record.get("presence", {}).get("method", _OWN_LIMITS[0]))
    if split.keys("presence_key") and method not in _OWN_LIMITS and split.cut:
        yield split.leak("presence", f"uns[{key!r}]['detection_limit']", split.cut, method=method)
    table = record.get("features")
    if isinstance(table, pd.DataFrame):
        chosen = table.reindex(require_frame(split.adata, key).columns).get("spatially_variable")
        if chosen is not None and chosen.notna().all() and chosen.astype(bool).all():
            yield split.leak("metabolites", f"uns[{key!r}]['features']")


def labels(split: Split) -> Iterator[Finding]:
    """Clusters found on all spots."""
    for key in [*split.keys("cluster_key"), *split.keys("covariate_keys")]:
        record = split.adata.uns.get(key)
        params = record.get("params", ()) if isinstance(record, Mapping) else ()
        if {"resolution", "random_state"} & set(params):
            yield split.leak("clusters", f"obs[{key!r}]")


def alignment(split: Split) -> Iterator[Finding]:
    """Alignments that were fitted to what the test spots hold."""
    if split.msi is None or not split.cut:
        return
    record = split.msi.uns.get(Key.uns.ALIGNMENT, {})
    names = set(sections_of(split.adata, split.sample_key))
    fitted = [repr(name) for name, one in record.items() if name in names and _by_content(one)]
    if fitted:
        where = f"uns[{Key.uns.ALIGNMENT!r}] of the MSI table"
        yield split.leak("alignment", where, split.cut, names=", ".join(fitted))


def _by_content(record: Any) -> bool:
    """Whether an alignment was fitted to genes and ions: found or refined by them, and not by landmarks or outlines."""
    if not isinstance(record, Mapping):
        return False
    if record.get("refine") == "intensity":
        return True
    if "decided_by" in record:
        return bool(record["decided_by"] == "intensities")
    return record.get("model") != "given" and not record.get("n_landmarks", 0)


RULES = (
    overlap,
    duplicates,
    pixels,
    regions,
    neighbours,
    patients,
    graphs,
    genes,
    features,
    targets,
    labels,
    alignment,
)
