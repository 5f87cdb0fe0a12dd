"""Sections in several stores as one table, whose expression stays on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.learning.stored_expression import StoredKind
from stmsi._data.checks import check_choice, listing, require_rows, require_unique
from stmsi._data.keys import Key
from stmsi._data.stores import OpenMatrices, content_of, opened_table, stored_matrix, table_without_matrix
from stmsi._data.tables import as_csr, require_frame, some_rows
from stmsi._data.whole_file import whole_file
from stmsi._settings import logger
from stmsi.model.shared._stored_input import Input, StoredExpression
from stmsi.tl._fold_cache import fingerprint, mark_used, software
from stmsi.tl._joined_stores import as_keys, joined_tables, of_metabolites
from stmsi.tl._obs_by_section import ObsBySection, add_obs, obs_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

OnError = Literal["raise", "warn"]
Genes = Literal["same", "shared"]
_AT_ONCE = 4096
"""Spots that are read together."""
_FEW_GENES = 0.5
"""Share of the smallest gene list below which the shared genes are told."""


@dataclass(frozen=True)
class StoredSection:
    """What is read of one store: all but the expression, of the spots that have MSI.

    Attributes
    ----------
    path, key
        Where it is, and what tells whether it has changed.
    table
        The spots with MSI.
    rows
        Which rows of the store these are.
    stored
        What the expression of all spots of the store is, without its matrix.
    """

    path: Path
    key: str
    table: AnnData
    rows: NDArray[np.int64]
    stored: StoredExpression


@dataclass(frozen=True)
class StoredSections:
    """Spots with MSI of several stores.

    Attributes
    ----------
    adata
        All of them, with empty expression.
    names
        What the spots are called in their stores.
    stores
        The stores, whose tables are gone.
    store, row
        Number of the store of each spot, and of its row there.
    columns
        Where each store has the genes of `adata`.
    table_key, layer
        Where the expression is.
    input, target_sum
        What all of it is, and what a spot adds up to before the logarithm, where that is known.
    left_out
        Stores that cannot be used, and why.
    opened
        Keeps stores open between reads; `None`: each read opens its store.
    """

    adata: AnnData
    names: pd.Index
    stores: Sequence[StoredSection]
    store: NDArray[np.int64]
    row: NDArray[np.int64]
    columns: Sequence[NDArray[np.int64]]
    table_key: str
    layer: str | None
    input: Input
    target_sum: float | None
    left_out: Mapping[str, str]
    opened: OpenMatrices | None = None

    @classmethod
    def open(
        cls,
        paths: Iterable[str | Path],
        fields: Mapping[str, Any],
        *,
        table_key: str,
        genes: Genes = "same",
        on_error: OnError = "raise",
        directory: Path | None = None,
        obs: ObsBySection | None = None,
    ) -> StoredSections:
        """Look through stores, one at a time.

        Parameters
        ----------
        paths
            AnnData (``.h5ad``, ``.zarr``) or SpatialData stores, each with one or more sections.
        fields
            For ``setup_anndata``.
        table_key
            The ST table of a SpatialData.
        genes
            ``"same"``: all stores must have the genes that most of them have; ``"shared"``: those that all stores have are used.
        on_error
            What to do about stores that cannot be used: ``"raise"`` one error that names them all, or ``"warn"`` and go on.
        directory
            Folder that keeps what was found in the expression; it is there.
        obs
            Columns of ``obs`` by section, in the place of those in the stores.

        Raises
        ------
        ValueError
            No store, or one that cannot be used (with ``on_error="raise"``), sections of one name in two stores, or expression of
            kinds that do not go together.
        """
        check_choice(genes, ("same", "shared"), "genes")
        check_choice(on_error, ("raise", "warn"), "on_error")
        found, bad, known = [], {}, obs_table(obs)
        for path in _distinct(paths):
            try:
                one = _read(path, fields, table_key, directory, () if known is None else known.columns)
                add_obs(one.table, known, fields.get("sample_key", Key.obs.SAMPLE))
                found.append(one)
            except (ValueError, KeyError, TypeError, OSError) as error:
                bad[str(path)] = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        names = _genes(found, genes)
        for one in [s for s in found if not names.isin(s.table.var_names).all()]:
            lacking = names[~names.isin(one.table.var_names)]
            bad[str(one.path)] = (
                f"it lacks {len(lacking)} of the {len(names)} genes that most stores have ({listing(lacking)}); leave it out, or pass "
                "genes='shared' (--genes shared) to use the genes that all stores have"
            )
            found = [s for s in found if s is not one]
        if bad and (on_error == "raise" or not found):
            told = "; ".join(f"{path}: {why.rstrip('.')}" for path, why in list(bad.items())[:_SHOWN])
            more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            remedy = (
                ""
                if not found
                else " Repair them, leave them out, or pass on_error='warn' (--skip-bad) to go on without them."
            )
            msg = f"{len(bad)} of {len(bad) + len(found)} stores cannot be used. {told}{more}.{remedy}"
            raise ValueError(msg)
        for name, why in bad.items():
            logger.warning("%s is left out: %s", name, why)
        return cls._of(found, names, fields, table_key, bad)

    @classmethod
    def _of(
        cls,
        found: list[StoredSection],
        genes: pd.Index,
        fields: Mapping[str, Any],
        table_key: str,
        bad: Mapping[str, str],
    ) -> StoredSections:
        sample_key, layer = fields.get("sample_key", Key.obs.SAMPLE), fields.get("layer")
        _refuse_same_names(found, sample_key)
        size = [len(s.rows) for s in found]
        before = np.cumsum([0, *(len(s.stored.names) for s in found)])
        together = StoredExpression(
            None,
            found[0].stored.where,
            found[0].stored.layers,
            tuple(name for s in found for name in s.stored.names),
            np.concatenate([s.stored.number + n for s, n in zip(found, before, strict=False)]),
            tuple(kind for s in found for kind in s.stored.kinds),
            (min(s.stored.extremes[0] for s in found), max(s.stored.extremes[1] for s in found)),
            sum(s.stored.n_entries for s in found),
        )
        asked = fields.get("input")
        kind = together.told() if asked is None else asked
        target_sum = together.target_sum if kind == "log" else None
        together.tell(kind, kind, target_sum)
        return cls(
            joined_tables([s.table for s in found], genes, fields, layer),
            pd.Index(np.concatenate([s.table.obs_names for s in found]), dtype=object),
            [replace(s, table=s.table[:0].copy()) for s in found],
            np.repeat(np.arange(len(found)), size),
            np.concatenate([s.rows for s in found]),
            [s.table.var_names.get_indexer(genes) for s in found],
            table_key, layer, kind, target_sum, bad,
        )  # fmt: skip

    def fields(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Fields for ``setup_anndata`` of :attr:`adata`: those asked for, presence where all stores have it, and what the expression is."""
        presence = {"presence_key": Key.obsm.PRESENCE} if Key.obsm.PRESENCE in self.adata.obsm else {}
        return presence | dict(asked) | {"input": self.input}

    @property
    def shape(self) -> tuple[int, int]:
        """Spots with MSI, and genes."""
        return self.adata.shape

    @property
    def n_entries(self) -> int:
        """About how many numbers other than 0 there are in the expression: those of a store by its share of spots with MSI."""
        used = np.bincount(self.store, minlength=len(self.stores))
        return sum(s.stored.n_entries * int(n) // len(s.stored.number) for s, n in zip(self.stores, used, strict=True))

    def some(self, rows: NDArray[np.int64]) -> StoredSections:
        """Some of the spots, ascending, as all there are; edges to others are cut."""
        if np.array_equal(rows, np.arange(len(self.names))):
            return self
        adata = self.adata[rows].copy()
        return replace(self, adata=adata, names=self.names[rows], store=self.store[rows], row=self.row[rows])

    def kept_open(self) -> StoredSections:
        """The same, whose stores stay open until :meth:`close`."""
        return replace(self, opened=OpenMatrices(self.table_key, self.layer))

    def close(self) -> None:
        """Close stores that are kept open."""
        if self.opened is not None:
            self.opened.close()

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Ascending rows in pieces that are read together, each in one store."""
        for own in np.split(rows, np.flatnonzero(np.diff(self.store[rows])) + 1):
            yield from (own[i : i + _AT_ONCE] for i in range(0, len(own), _AT_ONCE))

    def __getitem__(self, rows: NDArray[np.int64]) -> sp.csr_matrix:
        """Counts or logarithms of ascending rows, in canonical format."""
        parts = [self._read(int(k), self.row[rows[self.store[rows] == k]]) for k in np.unique(self.store[rows])]
        return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    @contextmanager
    def _matrix(self, path: Path) -> Iterator[Any]:
        """The matrix of a store, on disk."""
        if self.opened is not None:
            with self.opened.matrix(path) as matrix:
                yield matrix
            return
        with opened_table(path, self.table_key) as group:
            yield stored_matrix(group, path, self.layer)

    def _read(self, k: int, rows: NDArray[np.int64]) -> sp.csr_matrix:
        one = self.stores[k]
        order = np.argsort(rows, kind="stable")
        with self._matrix(one.path) as on_disk:
            matrix = as_csr(some_rows(on_disk, rows[order]))
            matrix.check_format(full_check=True)  # scipy follows the indices of a damaged file without looking
        stored = replace(one.stored, matrix=matrix, number=one.stored.number[rows[order]])
        values = stored.as_counts("counts") if self.input == "counts" else stored.as_logs("log", self.target_sum)
        genes = self.columns[k]
        if not np.array_equal(genes, np.arange(values.shape[1])):
            values = values[:, genes]
            values.sort_indices()
        return values if np.array_equal(order, np.arange(len(rows))) else values[np.argsort(order, kind="stable")]


_SHOWN = 10
"""Stores that an error names."""


def _distinct(paths: Iterable[str | Path]) -> list[Path]:
    given = [Path(path) for path in paths]
    if not given:
        msg = "No store was given; name at least one .h5ad or .zarr with mapped MSI."
        raise ValueError(msg)
    twice = [str(path) for path, n in Counter(path.resolve() for path in given).items() if n > 1]
    if twice:
        msg = f"Stores are given more than once: {listing(twice)}; name each once."
        raise ValueError(msg)
    return given


def _read(
    path: Path, fields: Mapping[str, Any], table_key: str, directory: Path | None, given: Collection[str]
) -> StoredSection:
    """Everything but the expression, and what that is; the expression is read through where this is not known."""
    sample_key, layer = fields.get("sample_key", Key.obs.SAMPLE), fields.get("layer")
    metabolite_key = fields.get("metabolite_key", Key.obsm.MSI)
    with opened_table(path, table_key) as group:
        table = table_without_matrix(group, path, wanted_of_stores(fields))
        require_rows(table)
        require_unique(table.var_names, "Gene names")
        measured = require_frame(table, metabolite_key, "stmsi.pp.map_to_spots writes it.")
        rows = np.flatnonzero(measured.notna().any(axis=1).to_numpy())
        if len(rows) == 0:
            msg = f"no spot has MSI (all of obsm[{metabolite_key!r}] is NaN); align and map the MSI first"
            raise ValueError(msg)
        if sample_key not in table.obs:
            table.obs[sample_key] = path.name.removesuffix(path.suffix)
        _require_named(table, fields, given)
        key = fingerprint(content_of(path), layer, sample_key, table_key, _versions())
        stored = _looked_up(
            path, group, table, layer, sample_key, None if directory is None else directory / f"{key}.json"
        )
    own = table[rows].copy() if len(rows) < table.n_obs else table
    return StoredSection(path.absolute(), key, own, rows, stored)  # workers on a cluster have other working directories


@cache
def _versions() -> dict[str, str]:
    return software()


def wanted_of_stores(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is read of a store beside ``obs`` and ``var``: what the setup names, and what belongs to it."""
    metabolite_key = fields.get("metabolite_key", Key.obsm.MSI)
    obsm = [Key.obsm.SPATIAL, *of_metabolites(fields), *as_keys(fields.get("feature_key"))]
    obsp = dict.fromkeys([Key.obsp.CONNECTIVITIES, fields.get("graph_key") or Key.obsp.CONNECTIVITIES])
    prior = fields.get("prior_key") or Key.varm.PRIOR
    return {"obsm": obsm, "obsp": list(obsp), "varm": [prior], "uns": [metabolite_key, prior]}


def _require_named(table: AnnData, fields: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse a store that lacks what the setup names: all would do without it. Columns of ``obs`` may be `given` beside it."""
    named = {
        "obs": [key for key in as_keys(fields.get("covariate_keys")) if key not in given],
        "obsm": [*as_keys(fields.get("presence_key")), *as_keys(fields.get("feature_key"))],
        "obsp": as_keys(fields.get("graph_key")),
        "varm": as_keys(fields.get("prior_key")),
    }
    lacking = [f"{name}[{key!r}]" for name, keys in named.items() for key in keys if key not in getattr(table, name)]
    if lacking:
        msg = f"it lacks {', '.join(lacking)}, which the setup names"
        raise ValueError(msg)


def _looked_up(
    path: Path, group: Any, table: AnnData, layer: str | None, sample_key: str, kept: Path | None
) -> StoredExpression:
    """What the expression of a store is, from where an earlier run has kept it, or from the numbers."""
    label = table.obs[sample_key]
    number, _ = pd.factorize(label.astype(object).where(label.notna(), "without a section").astype(str))
    if kept is not None and kept.exists():
        try:
            mark_used(kept)
            found = json.loads(kept.read_text(encoding="utf-8"))
            kinds = tuple(StoredKind(**kind) for kind in found.pop("kinds"))
            plain: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
            }
            return StoredExpression(matrix=None, number=number.astype(np.int64), kinds=kinds, **plain)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # not the fault of the store
            logger.warning("%s cannot be read (%s); it is made again.", kept, error)
    matrix = stored_matrix(group, path, layer)
    if matrix.shape != table.shape:
        msg = f"the expression is of shape {matrix.shape}, the table of {table.shape}; write the store again"
        raise ValueError(msg)
    whole = AnnData(
        None if layer is not None else matrix, table.obs, table.var, layers={} if layer is None else {layer: matrix}
    )
    stored = replace(StoredExpression.open(whole, layer, sample_key), matrix=None)
    if kept is not None:
        plain = {name: getattr(stored, name) for name in ("where", "layers", "names", "extremes", "n_entries")}
        text = json.dumps(plain | {"kinds": [asdict(kind) for kind in stored.kinds]})
        try:
            with whole_file(kept) as new:
                new.write_text(text, encoding="utf-8")
        except OSError as error:  # nor is this
            logger.warning("%s cannot be written (%s); another run will read %s again.", kept, error, path)
    return stored


def _genes(found: Sequence[StoredSection], genes: Genes) -> pd.Index:
    """The genes that are read, in the order of the first store that has them all."""
    if not found:
        return pd.Index([])
    if genes == "shared":
        names = found[0].table.var_names
        for one in found[1:]:
            names = names[names.isin(one.table.var_names)]
        if not len(names):
            msg = f"The {len(found)} stores share no gene; are their genes named alike (symbols or Ensembl ids)?"
            raise ValueError(msg)
        fewest = min(s.table.n_vars for s in found)
        if len(names) < _FEW_GENES * fewest:
            logger.warning(
                "The stores share %d genes, %.0f %% of the smallest list; only these are used. Are they one species, with one kind of id?",
                len(names), 100 * len(names) / fewest,
            )  # fmt: skip
        least, most = (choose(found, key=lambda s: s.table.n_vars) for choose in (min, max))
        if len(names) < _FEW_GENES * most.table.n_vars and len(names) >= _FEW_GENES * fewest:
            logger.warning(
                "The stores share %d genes, and %s has %d: %s has only %d. All are trained on the shared genes; leave it out to use more.",
                len(names), most.path, most.table.n_vars, least.path, fewest,
            )  # fmt: skip
        return names
    kinds = Counter(frozenset(s.table.var_names) for s in found)
    usual, _ = kinds.most_common(1)[0]
    return next(s.table.var_names for s in found if frozenset(s.table.var_names) == usual)


def _refuse_same_names(found: Sequence[StoredSection], sample_key: str) -> None:
    """Sections are told apart by name alone: two of one name would be one."""
    of: dict[str, list[Path]] = {}
    for one in found:
        for name in one.table.obs[sample_key].astype(str).unique():
            of.setdefault(name, []).append(one.path)
    for name, paths in of.items():
        if len(paths) > 1:
            msg = f"Section {name!r} is in several stores ({listing(paths)}); give each section a name of its own in obs[{sample_key!r}]."
            raise ValueError(msg)
