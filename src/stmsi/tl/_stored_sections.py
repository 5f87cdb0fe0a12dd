"""Sections in several stores as one table, whose expression stays on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._data.checks import check_choice, listing
from stmsi._data.keys import Key
from stmsi._data.stores import OpenMatrices, opened_table, stored_matrix
from stmsi._data.tables import as_csr, some_rows
from stmsi._messages import say_again
from stmsi._settings import logger
from stmsi.model.shared._stored_input import Input, StoredExpression
from stmsi.tl._joined_stores import joined_tables
from stmsi.tl._obs_by_section import ObsBySection, obs_table
from stmsi.tl._stored_section import Look, StoredSection, looked_at
from stmsi.tl._workers import HERE, Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

OnError = Literal["raise", "warn"]
Genes = Literal["same", "shared"]
_AT_ONCE = 4096
"""Spots that are read together."""
_FEW_GENES = 0.5
"""Share of the smallest gene list below which the shared genes are told."""


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
        workers: Workers = HERE,
    ) -> StoredSections:
        """Look through stores, each worker one at a time.

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
        workers
            Who looks.

        Raises
        ------
        ValueError
            No store, or one that cannot be used (with ``on_error="raise"``), sections of one name in two stores, or expression of
            kinds that do not go together.
        """
        check_choice(genes, ("same", "shared"), "genes")
        check_choice(on_error, ("raise", "warn"), "on_error")
        given, look = _distinct(paths), Look(fields, table_key, directory, obs_table(obs))
        read: dict[int, StoredSection | str] = {}
        # workers have other working directories
        here = workers.cluster is None
        calls = [(k, path if here else path.absolute()) for k, path in enumerate(given)]
        for k, one, said in workers.results(looked_at, calls, look):
            say_again(said)
            read[k] = one
        found = [one for _, one in sorted(read.items()) if isinstance(one, StoredSection)]
        bad = {str(given[k]): one for k, one in sorted(read.items()) if isinstance(one, str)}
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
