"""Rules that find what lets a model see its test spots, one for each kind of leak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial import KDTree

from stmsi._core.spatial.sections import rows_of_each, spot_pitch
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, require_frame, sections_of
from stmsi.model_selection._near_copies import near_copies
from stmsi.model_selection._shared_noise import NEAR
from stmsi.model_selection._split import codes, is_whole
from stmsi.model_selection._traces import unit_genes

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi.model_selection._leaks import Finding
    from stmsi.model_selection._split import Split

_MANY = 0.75  # share of test spots beside a training spot from which a split is no split by blocks
_LEAST_GENES = 10  # spots with fewer genes than this can be equal by chance
_MOSTLY = 0.75  # share of highly variable genes from which others were dropped, but for some markers
_COUNTS = ("counts", "raw")
_AT_ONCE = 4096
"""Spots whose counts are summed up together."""
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
    sums = np.zeros((2, X.shape[0]), np.uint64)
    for start in range(0, X.shape[0], _AT_ONCE):
        pointer = X.indptr[start : start + _AT_ONCE + 1]
        own = slice(pointer[0], pointer[-1])
        bits, gene = X.data[own].astype(np.float64).view(np.uint64), X.indices[own]
        for total, w in zip(sums, weight, strict=True):
            below = np.concatenate([np.zeros(1, np.uint64), np.cumsum(bits * w[gene], dtype=np.uint64)])
            total[start : start + _AT_ONCE] = np.diff(below[pointer - pointer[0]])
    code = pd.factorize(pd.MultiIndex.from_arrays(list(sums)))[0].astype(np.int64)
    code = np.where(np.diff(X.indptr) >= _LEAST_GENES, code, -1)
    exact = list(split.leaks("copies", split.where, split.shared(code)))
    yield from exact
    if not exact:
        shares = split.shared(near_copies(X, counts=is_whole(X)))
        yield from split.leaks("near copies", split.where, shares)


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
                near += int((KDTree(xy[a]).query(xy[b])[0] <= NEAR * step).sum())
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
    if _are_chosen(adata):
        yield split.leak("genes", "var")
    if is_whole(split.matrix):
        return
    if {"mean", "std"} <= set(adata.var) or any(unit_genes(split.expression(table)) for table, _ in split.tables):
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


def _are_chosen(adata: AnnData) -> bool:
    """Whether the genes are the highly variable ones of a larger table, all or most of them."""
    chosen = adata.var.get("highly_variable")
    if chosen is not None:
        return bool(chosen.fillna(False).astype(bool).mean() > _MOSTLY)
    rank = adata.var.get("highly_variable_rank")  # genes that were not chosen have none
    return "hvg" in adata.uns or (rank is not None and bool(rank.notna().mean() > _MOSTLY))


def _counts(split: Split) -> sp.csr_matrix | None:
    """Counts that the expression may have been made of."""
    adata = split.adata
    candidates = [adata.layers[k] for k in _COUNTS if k in adata.layers and k != split.layer]
    if split.layer is not None and adata.X is not None:
        candidates.append(adata.X)
    if adata.raw is not None and adata.raw.shape[1] == adata.n_vars:
        candidates.append(adata.raw.X)
    return next((found for found in map(as_csr, candidates) if is_whole(found)), None)


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
    if split.msi is None:
        return
    record = split.msi.uns.get(Key.uns.ALIGNMENT, {})
    names = sections_of(split.adata, split.sample_key)
    fitted = [name for name, one in record.items() if _by_content(one)]
    shares = [float(np.isin(names[test].astype(str), fitted).mean()) for _, test in split.folds]
    scored = set(names[np.unique(np.concatenate([test for _, test in split.folds]))])
    where = f"uns[{Key.uns.ALIGNMENT!r}] of the MSI table"
    yield from split.leaks("alignment", where, shares, names=", ".join(repr(n) for n in fitted if n in scored))


def _by_content(record: Any) -> bool:
    """Whether an alignment was fitted to genes and ions: found or refined by them, and not by landmarks or outlines."""
    if not isinstance(record, Mapping):
        return False
    if record.get("refine") == "intensity":
        return True
    if "decided_by" in record:
        return bool(record["decided_by"] == "intensities")
    return record.get("model") != "given" and not record.get("n_landmarks", 0)


RULES_OF_DATA = (overlap, duplicates, pixels, regions, neighbours, patients, genes, alignment)
"""Rules that depend on the expression and the metabolites alone."""
RULES_OF_SETUP = (graphs, targets, labels)
"""Rules that look at the other fields that a model reads."""
