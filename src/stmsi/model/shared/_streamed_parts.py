"""Expression that stays on disk: what fits read of it is summed up, or written to disk, a block of spots at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4
from weakref import ref

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import AnyFloats, Bools, Floats, Ints
from stmsi._core.arrays_on_disk import DiskArray
from stmsi._core.learning.expression_parts import MOST_BYTES, ExpressionParts, parts_of_folds
from stmsi._core.learning.expression_space import (
    ExpressionSpace,
    column_sums,
    log_normalize,
    profile_distance,
    share_sums,
)
from stmsi._core.learning.principal_axes import sum_of_products
from stmsi._core.learning.profile_hashes import Hashes, profile_hashes

_DENSE = 0.06
"""Share of entries from which products of dense matrices are cheaper than those of sparse ones."""
_MOMENTS = 5
"""Rows that are kept of each part: three of :func:`column_sums`, the sums of shares, and (in its first number) the spots they are over."""


class Rows(Protocol):
    """Expression on disk, spots x genes."""

    @property
    def shape(self) -> tuple[int, int]:
        """Spots and genes."""

    @property
    def n_entries(self) -> int:
        """Values that are stored."""

    def blocks(self, rows: Ints) -> Iterator[Ints]:
        """Ascending rows in pieces that are read together."""

    def __getitem__(self, rows: Ints) -> sp.csr_matrix:
        """Counts or logarithms of ascending rows, in canonical format."""


def read_rows(values: Rows, rows: Ints) -> sp.csr_matrix:
    """Some rows in any order, read a block at a time."""
    order = np.argsort(rows, kind="stable")
    read = [values[some] for some in values.blocks(rows[order])]
    whole = sp.csr_matrix(sp.vstack(read, format="csr") if read else sp.csr_matrix((0, values.shape[1])))
    return whole if np.array_equal(order, np.arange(len(rows))) else whole[np.argsort(order, kind="stable")]


class KeptArrays(Protocol):
    """Arrays on disk that are found again."""

    @property
    def directory(self) -> Path:
        """Folder for what is not kept."""

    def array(self, name: str, part: int, make: Callable[[], AnyFloats]) -> AnyFloats:
        """What is kept under a name for a part, or is made now; mapped into memory, not to be changed."""


@dataclass
class StreamedParts(ExpressionParts):
    """As :class:`ExpressionParts`, of expression that is never in memory as a whole.

    Sums over a part are made in blocks and kept on disk. Components of all spots go to a file. Every fit is
    made of whole parts.

    Attributes
    ----------
    values
        The expression on disk, in the place of a matrix.
    apart
        Number of what each spot must share a part with; `None`: nothing but the folds divides the spots.
    kept
        Where sums are kept.
    """

    values: Rows  # type: ignore[assignment]
    apart: Ints | None = None
    kept: KeptArrays = None  # type: ignore[assignment]
    _mapped: list[Any] = field(default_factory=list, init=False, repr=False)  # references to what is mapped into memory

    def __post_init__(self) -> None:
        self.part = parts_of_folds(self.values.shape[0], self.folds)
        if self.apart is not None:
            both = np.column_stack([self.apart, self.part])
            self.part = np.unique(both, axis=0, return_inverse=True)[1].ravel()
        self.size = np.bincount(self.part)

    @property
    def is_streamed(self) -> bool:
        """As of the base class: yes."""
        return True

    @property
    def _pays(self) -> bool:
        return True

    def scratch(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array in a file that is mapped into memory; the file goes when nobody uses the array any more."""
        path = self.kept.directory / f"{uuid4().hex}.npy"
        out = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with suppress(OSError):  # Windows removes it with its folder
            path.unlink()  # the space is free as soon as nobody maps it
        self._mapped = [one for one in self._mapped if one() is not None] + [ref(out)]
        return out

    def forget_pages(self) -> None:
        """Let the system have the memory of what was read of mapped arrays; what is in them stays."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # Windows takes it back by itself
            return
        for array in [one() for one in self._mapped]:
            if array is not None:
                array._mmap.madvise(mmap.MADV_DONTNEED)

    def some_values(self, rows: Ints) -> sp.csr_matrix:
        """As of the base class, where they fit into the memory.

        Raises
        ------
        ValueError
            They do not.
        """
        share = 8 * self.values.n_entries * len(rows) / max(self.values.shape[0], 1)
        if share > MOST_BYTES:
            msg = (
                f"This model reads the whole expression of {len(rows):,} spots at once, which takes {share / 2**30:.1f} GB; out of "
                "stores, models are trained that read components alone, such as 'ridge' (with a graph: context='diffused')."
            )
            raise ValueError(msg)
        return read_rows(self.values, rows)

    def some_log(self, rows: Ints) -> sp.csr_matrix:
        """As of the base class; errors as for :meth:`some_values`."""
        return self._log_of(self.some_values(rows))

    def log(self) -> sp.csr_matrix:
        """As of the base class; errors as for :meth:`some_values`."""
        return self.some_log(np.arange(self.values.shape[0]))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_mapped": []}

    def _log_of(self, values: sp.csr_matrix) -> sp.csr_matrix:
        return values if self.logs else log_normalize(values)

    def _log_blocks(self, rows: Ints) -> Iterator[tuple[Ints, sp.csr_matrix]]:
        for some in self.values.blocks(rows):
            yield some, self._log_of(self.values[some])

    def _moments(self, part: int) -> Floats:
        def make() -> Floats:
            sums = np.zeros((_MOMENTS, self.values.shape[1]))
            for some in self.values.blocks(np.flatnonzero(self.part == part)):
                values = self.values[some]
                sums[:3] += column_sums(self._log_of(values))
                if not self.logs:
                    shares, n = share_sums(values)
                    sums[3] += shares
                    sums[4, 0] += n
            return sums

        return self._of_part("moments", part, lambda _: np.array(self.kept.array("moments", part, make)))

    def gene_sums(self, part: int) -> Floats:
        """As of the base class."""
        return self._moments(part)[:3]

    def share_sums(self, part: int) -> tuple[Floats, int]:
        """As of the base class."""
        *_, shares, n = self._moments(part)
        return shares, int(n[0])

    def candidates(self, n_top_genes: int) -> tuple[Ints, Any]:
        """Genes that any fold chooses, in order; their expression stays on disk."""
        return self._once(f"candidates {n_top_genes}", None, lambda: (self._chosen(n_top_genes), None))

    def admits(self, n_top_genes: int) -> bool:
        """Always: products are kept on disk."""
        return True

    def products(self, part: int, n_top_genes: int) -> AnyFloats:
        """As of the base class."""
        return self.products_of(part, self.candidates(n_top_genes)[0])

    def products_of(self, part: int, genes: Ints) -> AnyFloats:
        """As of the base class, kept on disk."""
        return self.kept.array(f"products {_digest(genes)}", part, lambda: self._products(part, genes))

    def _products(self, part: int, genes: Ints) -> AnyFloats:
        mean = self.gene_sums(part)[0, genes] / self.size[part]
        centre = mean.astype(np.float32)
        total = np.zeros((len(genes), len(genes)))
        for _, log in self._log_blocks(np.flatnonzero(self.part == part)):
            chosen = log[:, genes]
            if chosen.nnz < _DENSE * chosen.shape[0] * len(genes):
                total += _centred_products(chosen.astype(np.float64), mean)
            else:
                total += sum_of_products(chosen.toarray() - centre)
        return total.astype(np.float32)

    @property
    def folder(self) -> Path:
        """As of the base class."""
        return self.kept.directory

    def components(self, space: ExpressionSpace) -> DiskArray:
        """As of the base class, of any space, on disk."""

        def make() -> tuple[ExpressionSpace, DiskArray]:
            shape = self.values.shape[0], len(space.components)
            out = DiskArray(self.folder, shape, np.float32)
            for some, log in self._log_blocks(np.arange(shape[0])):
                out[some] = space.transform(log)
            return space, out

        return self._once("components", id(space), make)[1]

    def profile_distance(self, profile: Floats) -> Floats:
        """As of the base class."""

        def make() -> tuple[Floats, Floats]:
            out = np.empty(self.values.shape[0])
            for some, log in self._log_blocks(np.arange(len(out))):
                out[some] = profile_distance(log, profile)
            return profile, out

        return self._once("distance", id(profile), make)[1]

    def profile_hashes(self, rows: Ints, genes: Sequence[Ints]) -> list[Hashes]:
        """As of the base class."""
        order = np.argsort(rows, kind="stable")
        hashes = [np.empty(len(rows), np.uint64) for _ in genes]
        known: list[Bools] = [np.empty(len(rows), bool) for _ in genes]
        done = 0
        for some in self.values.blocks(rows[order]):
            at = order[done : done + len(some)]
            for k, found in enumerate(profile_hashes(self.values[some], genes)):
                hashes[k][at], known[k][at] = found
            done += len(some)
        return list(zip(hashes, known, strict=True))

    def held_out_distance(self, rows: Ints, groups: Ints) -> Floats:
        """As of the base class."""
        n_groups, group_of = int(groups.max()) + 1, np.full(self.values.shape[0], -1)
        group_of[rows] = groups
        order = np.sort(rows)
        sums = np.zeros((n_groups, self.values.shape[1]))
        parts = np.unique(self.part[rows])
        of_part = [np.unique(group_of[self.part == p]) for p in parts]
        if all(len(own) == 1 for own in of_part):
            for p, (own,) in zip(parts, of_part, strict=True):
                sums[own] += self.gene_sums(int(p))[0]
        else:
            for some, log in self._log_blocks(order):
                for g in np.unique(group_of[some]):
                    sums[g] += column_sums(log[group_of[some] == g])[0]
        size = np.bincount(groups, minlength=n_groups)
        out, total = np.empty(self.values.shape[0]), sums.sum(axis=0)
        for some, log in self._log_blocks(order):
            for g in np.unique(group_of[some]):
                own = group_of[some] == g
                out[some[own]] = profile_distance(log[own], (total - sums[g]) / (len(rows) - size[g]))
        return out[rows]


def _centred_products(X: sp.csr_matrix, centre: Floats) -> Floats:
    """Sums of products of columns less their centres, of few entries: the zeros are not multiplied."""
    level = np.outer(np.asarray(X.sum(axis=0)).ravel(), centre)
    return np.asarray((X.T @ X).toarray()) - level - level.T + X.shape[0] * np.outer(centre, centre)


def _digest(genes: Ints) -> str:
    import hashlib

    return hashlib.blake2b(np.ascontiguousarray(genes, np.int64).tobytes(), digest_size=8).hexdigest()
