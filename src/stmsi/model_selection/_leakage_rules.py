"""What lets a model see its test spots: one rule each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial import KDTree

from stmsi._core.metrics.structure import correlations
from stmsi._core.spatial.sections import spot_pitch
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, require_frame, require_sample

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    Folds = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]

_NEAR = 1.5
"""Neighbours are up to this many times the spots' distance away: 6 on a hexagon, 8 on a square."""
_MANY = 0.75
"""Share of test spots beside a training spot from which a split is no split by blocks."""
_LEAST_GENES = 10
"""Spots with fewer genes than this can be equal by chance."""
_COPY = 0.999
_EMBEDDINGS = ("pca", "umap", "tsne", "diffmap", "draw_graph", "scvi", "scanvi", "harmony", "scanorama", "nmf")
_COUNTS = ("counts", "raw")
_OWN_LIMITS = ("threshold", "detected")
"""Ways to call presence that fit nothing."""


class Finding(NamedTuple):
    """One way in which test spots could be known; `share` of the test spots (NaN where it concerns all)."""

    check: str
    severity: Literal["error", "warning"]
    where: str
    folds: tuple[int, ...]
    share: float
    message: str


@dataclass
class Split:
    """A table, its folds, and the fields that a model reads."""

    adata: AnnData
    folds: Folds
    setup: Mapping[str, Any]
    msi: AnnData | None
    sample_key: str

    def keys(self, name: str) -> list[str]:
        """A field of the setup that may name one or several keys."""
        value = self.setup.get(name) or ()
        return [value] if isinstance(value, str) else [str(v) for v in value]

    @property
    def metabolite_key(self) -> str:
        """Where the targets are."""
        return str(self.setup.get("metabolite_key", Key.obsm.MSI))

    @property
    def record(self) -> Mapping[str, Any]:
        """What stmsi.pp wrote about the targets."""
        found = self.adata.uns.get(self.metabolite_key, {})
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def sample(self) -> NDArray[np.int64]:
        """Number of each spot's section."""
        return pd.factorize(require_sample(self.adata, self.sample_key))[0].astype(np.int64)

    @cached_property
    def cut(self) -> tuple[int, ...]:
        """Folds in which a section lies on both sides."""
        return tuple(f for f, share in enumerate(self.shared(self.sample)) if share > 0)

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """Expression that the model reads."""
        layer = self.setup.get("layer")
        if layer is not None and layer not in self.adata.layers:
            msg = f"No layer {layer!r}; layers: {listing(self.adata.layers.keys())}."
            raise KeyError(msg)
        return as_csr(self.adata.X if layer is None else self.adata.layers[layer])

    @cached_property
    def whole(self) -> bool:
        """Whether it holds counts."""
        return bool((self.matrix.data == np.round(self.matrix.data)).all())

    @property
    def where(self) -> str:
        """Name of the expression."""
        layer = self.setup.get("layer")
        return "X" if layer is None else f"layers[{layer!r}]"

    def shared(self, code: NDArray[np.int64]) -> list[float]:
        """Share of each fold's test spots whose code a training spot has too; -1 is no code."""
        shares = []
        for train, test in self.folds:
            known = np.zeros(int(code.max(initial=-1)) + 2, bool)
            known[code[train]] = True
            known[-1] = False  # where -1 points to
            shares.append(float(known[code[test]].mean()) if len(test) else 0.0)
        return shares

    def features(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Numbers beside expression that the model reads, by name."""
        for key in self.keys("feature_key"):
            if key in self.adata.obsm:
                value = self.adata.obsm[key]
                array = value.toarray() if sp.issparse(value) else np.asarray(value)
                yield f"obsm[{key!r}]", np.asarray(array, dtype=np.float64).reshape(self.adata.n_obs, -1)
        for key in self.keys("covariate_keys"):
            if key in self.adata.obs and pd.api.types.is_numeric_dtype(self.adata.obs[key]):
                yield f"obs[{key!r}]", self.adata.obs[[key]].to_numpy(np.float64)


def _in_folds(
    shares: Sequence[float], check: str, severity: Literal["error", "warning"], where: str, message: str
) -> Iterator[Finding]:
    hit = tuple(f for f, share in enumerate(shares) if share > 0)
    if hit:
        yield Finding(check, severity, where, hit, max(shares), message)


def overlap(split: Split) -> Iterator[Finding]:
    """Spots on both sides."""
    shares = split.shared(np.arange(split.adata.n_obs))
    yield from _in_folds(
        shares, "overlap", "error", "folds", "Test spots are also training spots; repair the splitter."
    )


def duplicates(split: Split) -> Iterator[Finding]:
    """Copies of a spot on either side, by name or by counts."""
    adata = split.adata
    if Key.obs.OVERSAMPLED in adata.obs:
        origin = adata.obs[Key.obs.OVERSAMPLED].astype(str).to_numpy()
        yield from _in_folds(
            split.shared(pd.factorize(origin)[0].astype(np.int64)), "duplicates", "error",
            f"obs[{Key.obs.OVERSAMPLED!r}]",
            "Repeats of test spots are trained on. Split first, then call stmsi.experimental.oversample on the training spots.",
        )  # fmt: skip
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
    shares = split.shared(code)
    if Key.obs.OVERSAMPLED not in adata.obs:
        yield from _in_folds(
            shares, "duplicates", "error", split.where,
            "Test spots have the very counts of training spots: a section or spots are in the data twice. Drop the copies.",
        )  # fmt: skip


def pixels(split: Split) -> Iterator[Finding]:
    """One MSI pixel measured for spots on either side."""
    name = Key.pixel_of(split.metabolite_key)[0]
    if name in split.adata.obs:
        label = split.adata.obs[name].astype(object)
        pair = pd.Series(list(zip(split.sample, label, strict=True)), dtype=object).where(label.notna().to_numpy())
        yield from _in_folds(
            split.shared(pd.factorize(pair)[0].astype(np.int64)), "pixel", "error", f"obs[{name!r}]",
            "Test spots have their values from the MSI pixel of a training spot; "
            "stmsi.model_selection.SpatialBlockKFold keeps them together.",
        )  # fmt: skip


def neighbours(split: Split) -> Iterator[Finding]:
    """Test spots beside training spots, as a random split leaves them."""
    if not split.cut:
        return
    if Key.obsm.SPATIAL not in split.adata.obsm:
        yield Finding(
            "neighbours", "warning", "obsm", split.cut, np.nan,
            "Sections lie on both sides, and without positions nobody can tell how far training and test spots are apart.",
        )  # fmt: skip
        return
    xy = np.asarray(split.adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
    sections = [
        np.flatnonzero((split.sample == s) & np.isfinite(xy).all(axis=1)) for s in range(split.sample.max() + 1)
    ]
    pitch = [spot_pitch(xy[own]) for own in sections]
    shares = []
    for train, test in split.folds:
        near = 0
        for own, step in zip(sections, pitch, strict=True):
            a, b = np.intersect1d(own, train), np.intersect1d(own, test)
            if len(a) and len(b):
                near += int((KDTree(xy[a]).query(xy[b])[0] <= _NEAR * step).sum())
        shares.append(near / max(len(test), 1))
    severity: Literal["error", "warning"] = "error" if max(shares) > _MANY else "warning"
    yield from _in_folds(
        shares, "neighbours", severity, f"obsm[{Key.obsm.SPATIAL!r}]",
        "Test spots lie beside training spots, which resemble them. Leave out whole sections, or take "
        "stmsi.model_selection.SpatialBlockKFold with a buffer.",
    )  # fmt: skip


def patients(split: Split) -> Iterator[Finding]:
    """Sections of one patient on either side."""
    if split.cut or Key.obs.PATIENT not in split.adata.obs:
        return
    code = pd.factorize(split.adata.obs[Key.obs.PATIENT].astype(object))[0].astype(np.int64)
    yield from _in_folds(
        split.shared(code), "patient", "warning", f"obs[{Key.obs.PATIENT!r}]",
        "Other sections of the test patients are trained on; stmsi.model_selection.LeaveOnePatientOut tells what to expect "
        "from a new patient.",
    )  # fmt: skip


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
        yield from _in_folds(
            shares, "graph", "warning", f"obsp[{key!r}]",
            "Edges lead from test to training spots. stmsi.tl.cross_validate cuts them; elsewhere cut them yourself. A buffer "
            "or whole sections leave none.",
        )  # fmt: skip


def genes(split: Split) -> Iterator[Finding]:
    """Genes chosen, or expression changed, by looking at all spots."""
    adata, everywhere = split.adata, tuple(range(len(split.folds)))
    chosen = adata.var.get("highly_variable")
    if (chosen is not None and chosen.astype(bool).all()) or (chosen is None and "hvg" in adata.uns):
        yield Finding(
            "genes", "error", "var", everywhere, np.nan,
            "The table holds only genes that were chosen as highly variable on all spots, test spots included. Keep all "
            "genes; models choose inside the training spots.",
        )  # fmt: skip
    if not split.whole and {"mean", "std"} <= set(adata.var):
        yield Finding(
            "scaling", "error", split.where, everywhere, np.nan,
            "Genes were scaled by means and deviations of all spots (var['mean'], var['std']). Pass the raw counts.",
        )  # fmt: skip
        return
    if split.whole:
        return
    reference = _counts(split)
    if reference is not None:
        before = reference.copy()
        before.data = np.ones(len(before.data))
        new = split.matrix.copy()
        new.data = (new.data != 0).astype(np.float64)
        moved = new - new.multiply(before)
        share = float((np.asarray(moved.sum(axis=1)).ravel() > 0).mean())
        if share > 0:
            yield Finding(
                "smoothing", "error" if split.cut else "warning", split.where, split.cut or everywhere, share,
                "Spots express genes of which they have no counts: values were taken over from other spots (smoothing, "
                "imputation, batch correction), on all spots together. Pass the raw counts; context= pools neighbours "
                "inside each side of a fold.",
            )  # fmt: skip
            return
    log = " after scanpy's log1p" if "log1p" in adata.uns else ""
    yield Finding(
        "normalisation", "warning", split.where, everywhere, np.nan,
        f"Expression is not counts{log}. Normalising to the median of all spots looks at test spots, and smoothing cannot be "
        "told from it without counts. Pass the raw counts; models normalise.",
    )  # fmt: skip


def _counts(split: Split) -> sp.csr_matrix | None:
    """Counts that the expression may have been made of."""
    adata = split.adata
    candidates = [adata.layers[k] for k in _COUNTS if k in adata.layers and k != split.setup.get("layer")]
    if split.setup.get("layer") is not None and adata.X is not None:
        candidates.append(adata.X)
    if adata.raw is not None and adata.raw.shape[1] == adata.n_vars:
        candidates.append(adata.raw.X)
    for value in candidates:
        found = as_csr(value)
        if (found.data == np.round(found.data)).all():
            found = found.copy()
            found.eliminate_zeros()
            return found
    return None


def features(split: Split) -> Iterator[Finding]:
    """Features fitted on all spots, or made of the targets."""
    adata, everywhere = split.adata, tuple(range(len(split.folds)))
    targets = require_frame(adata, split.metabolite_key).to_numpy(np.float64)
    for key in split.keys("feature_key"):
        record = adata.uns.get(key)
        if isinstance(record, Mapping) and "model" in record and "params" in record:
            yield Finding(
                "features", "error", f"obsm[{key!r}]", everywhere, np.nan,
                "The features are predictions of a model that may have been trained on the test spots. Use "
                "stmsi.model.HurdleEnsemble, which stacks held-out predictions.",
            )  # fmt: skip
        elif key.startswith("X_") and any(name in key.lower() for name in _EMBEDDINGS):
            yield Finding(
                "features", "error", f"obsm[{key!r}]", everywhere, np.nan,
                "The embedding was fitted on all spots, test spots included. Leave it to the model, which fits its own "
                "components inside the training spots.",
            )  # fmt: skip
    named = {f"obsm[{key!r}]" for key in split.keys("feature_key") if key.startswith("X_")}
    for where, values in split.features():
        if not np.isfinite(values).all():
            continue
        correlation = np.abs(correlations(values, targets))
        if (correlation > _COPY).any():
            yield Finding(
                "target", "error", where, everywhere, np.nan,
                "A feature is a metabolite that the model shall predict, or a copy of it. Leave it out.",
            )  # fmt: skip
        elif _standardised(values) and not all(
            _standardised(values[split.sample == s]) for s in np.unique(split.sample)
        ):
            yield Finding(
                "scaling", "error", where, everywhere, np.nan,
                "The features have mean 0 and deviation 1 over all spots: they were scaled with the test spots. Pass them as "
                "they were measured; models scale inside the training spots.",
            )  # fmt: skip
        elif _orthogonal(values) and where not in named:
            yield Finding(
                "features", "error", where, everywhere, np.nan,
                "The features have mean 0 and are uncorrelated over all spots, as components that were fitted on all of them "
                "are. Pass what they were made of.",
            )  # fmt: skip


def _standardised(values: NDArray[np.float64]) -> bool:
    """Whether all columns that vary have mean 0 and deviation 1."""
    spread = values.std(axis=0)
    own = spread > 0
    return bool(
        own.any()
        and (np.abs(values.mean(axis=0)[own]) < 1e-3).all()
        and (np.abs(spread[own] - 1) < 5 / len(values)).all()
    )


def _orthogonal(values: NDArray[np.float64]) -> bool:
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
    record, key, everywhere = split.record, split.metabolite_key, tuple(range(len(split.folds)))
    corrected = record.get("correct_batch")
    if corrected is not None:
        params = corrected.get("params", {})
        method, batch_key = str(params.get("method")), str(params.get("batch_key"))
        batches = split.adata.obs.get(batch_key)
        across = method != "rank" or batches is None
        if not across:
            across = max(split.shared(pd.factorize(batches.astype(object))[0].astype(np.int64))) > 0
        if across:
            yield Finding(
                "batch", "error", f"uns[{key!r}]['correct_batch']", everywhere, np.nan,
                f"Intensities were corrected for batches ({method}) on all sections together; a new section without MSI could "
                "get no such correction. Undo it with stmsi.pp.correct_batch(data, method='none'), or correct the training "
                "sections alone.",
            )  # fmt: skip
    if "impute_dropout" in record and split.cut:
        yield Finding(
            "imputation", "error", f"uns[{key!r}]['impute_dropout']", split.cut, np.nan,
            "Zeros were replaced by the median of surroundings that reach over the border of the folds. Leave out whole "
            "sections, or impute after splitting.",
        )  # fmt: skip
    method = str(record.get("presence", {}).get("method", _OWN_LIMITS[0]))
    if split.keys("presence_key") and method not in _OWN_LIMITS and split.cut:
        yield Finding(
            "presence", "warning", f"uns[{key!r}]['detection_limit']", split.cut, np.nan,
            f"Limits of presence ({method}) were found from whole sections, test spots included. Pass "
            "stmsi.pp.call_presence(threshold=) limits from elsewhere, or leave out whole sections.",
        )  # fmt: skip
    table = record.get("features")
    if isinstance(table, pd.DataFrame):
        own = table.reindex(require_frame(split.adata, key).columns)
        chosen = own.get("spatially_variable")
        if chosen is not None and chosen.notna().all() and chosen.astype(bool).all():
            yield Finding(
                "metabolites", "warning", f"uns[{key!r}]['features']", everywhere, np.nan,
                "All metabolites are ones chosen for their spatial pattern in all sections, test sections included: scores "
                "hold for metabolites known to have one.",
            )  # fmt: skip


def labels(split: Split) -> Iterator[Finding]:
    """Clusters found on all spots."""
    for key in [*split.keys("cluster_key"), *split.keys("covariate_keys")]:
        record = split.adata.uns.get(key)
        if (
            isinstance(record, Mapping)
            and "params" in record
            and {"resolution", "random_state"} & set(record["params"])
        ):
            yield Finding(
                "clusters", "warning", f"obs[{key!r}]", tuple(range(len(split.folds))), np.nan,
                "The clusters were found on all spots, test spots included. Use annotations, or cluster the training spots.",
            )  # fmt: skip


def alignment(split: Split) -> Iterator[Finding]:
    """Alignments that were fitted to what the test spots hold."""
    if split.msi is None or not split.cut:
        return
    record = split.msi.uns.get(Key.uns.ALIGNMENT, {})
    names = set(require_sample(split.adata, split.sample_key))
    fitted = [name for name, one in record.items() if name in names and _by_content(one)]
    if fitted:
        yield Finding(
            "alignment", "warning", f"uns[{Key.uns.ALIGNMENT!r}] of the MSI table", split.cut, np.nan,
            f"Sections {', '.join(map(repr, fitted))} were aligned by their content, test spots included, and lie on both "
            "sides. Align by landmarks, or leave out whole sections.",
        )  # fmt: skip


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
    overlap, duplicates, pixels, neighbours, patients, graphs, genes, features, targets, labels, alignment,
)  # fmt: skip
