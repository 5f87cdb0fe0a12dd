"""Expression that stays on disk: what fits read of it is summed up, or written to disk, a block of spots at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4
from weakref import ref

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import AnyFloats, Bools, Floats, Floats32, Ints
from stmsi._core.arrays_on_disk import DiskArray
from stmsi._core.learning.expression_parts import MOST_BYTES, ExpressionParts, parts_of_folds, sum_of_parts
from stmsi._core.learning.expression_space import (
    ExpressionSpace,
    GeneMoments,
    column_sums,
    distance_by_products,
    log_normalize,
    products_with,
    profile_distance,
    row_sums,
    share_sums,
)
from stmsi._core.learning.principal_axes import sum_of_products
from stmsi._core.learning.profile_hashes import Hashes, profile_hashes

_DENSE = 0.06
"""Share of entries from which products of dense matrices are cheaper than those of sparse ones."""
_MOMENTS = 5
"""Rows that are kept of each part: three of :func:`column_sums`, the sums of shares, and (in its first number) the spots they are over."""
_MOST_PARTS = 256
"""Parts up to which products of all spots with the mean of each part are kept on disk: 8 bytes a spot and part."""
_MOST_PRODUCTS = 2**27
"""Bytes up to which the products of the spots of a part are made: they are in memory meanwhile."""

_OF_MOMENTS = "moments"
"""Under which sums over parts are kept."""


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

    @property
    def of_parts(self) -> bool:
        """Whether what is made of a part is read again, and worth its place on disk."""

    def has(self, name: str, part: int) -> bool:
        """Whether something is kept under a name for a part."""

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
    components_by_others
        Gives the number of each part, and the components of its spots, as others make them; `None`: they are made here.
    """

    values: Rows  # type: ignore[assignment]
    apart: Ints | None = None
    kept: KeptArrays = None  # type: ignore[assignment]
    components_by_others: Callable[[ExpressionSpace], Iterable[tuple[int, Floats32]]] | None = None
    _mapped: list[Any] = field(default_factory=list, init=False, repr=False)  # references to what is mapped into memory
    _mean_of: dict[str, Any] = field(
        default_factory=dict, init=False, repr=False
    )  # of which parts (a bit each) a mean is

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
        return super().__getstate__() | {"_mapped": [], "_mean_of": {}, "components_by_others": None}

    def _log_of(self, values: sp.csr_matrix) -> sp.csr_matrix:
        return values if self.logs else log_normalize(values)

    def _log_blocks(self, rows: Ints) -> Iterator[tuple[Ints, sp.csr_matrix]]:
        for some in self.values.blocks(rows):
            yield some, self._log_of(self.values[some])

    def moments(self, part: int) -> Floats:
        """Sums over a part, of :data:`_MOMENTS` rows."""

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

        return self._of_part("moments", part, lambda _: np.array(self.kept.array(_OF_MOMENTS, part, make)))

    def has_moments(self, part: int) -> bool:
        """Whether the sums over a part are kept from before."""
        return self.kept.has(_OF_MOMENTS, part)

    def has_products(self, part: int, genes: Sequence[Ints]) -> bool:
        """Whether the products of a part are kept from before: of some genes with each other, and of its spots with means."""
        known = not self.knows_means or self.kept.has(self._of_means(), part)
        return known and all(self.kept.has(_of_products(some), part) for some in genes)

    def gene_sums(self, part: int) -> Floats:
        """As of the base class."""
        return self.moments(part)[:3]

    def share_sums(self, part: int) -> tuple[Floats, int]:
        """As of the base class."""
        *_, shares, n = self.moments(part)
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
        return self.kept.array(_of_products(genes), part, lambda: self._products(part, genes))

    def products_over(self, parts: Ints, n_top_genes: int, genes: Ints | None) -> Floats:
        """As of the base class; of parts that are read once, only the sum is kept."""
        if self.kept.of_parts:
            return super().products_over(parts, n_top_genes, genes)
        chosen = self.candidates(n_top_genes)[0] if genes is None else genes

        def make() -> Floats:
            return sum_of_parts(self._products(int(p), chosen) for p in parts)

        return np.array(self.kept.array(f"{_of_products(chosen)} {_digest(parts)}", 0, make), np.float64)

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
            if self.components_by_others is None:
                for some, log in self._log_blocks(np.arange(shape[0])):
                    out[some] = space.transform(log)
            else:
                for part, components in self.components_by_others(space):
                    out[self.part == part] = components
            return space, out

        return self._once("components", id(space), make)[1]

    def moments_of(self, parts: Ints, n_spots: int) -> GeneMoments:
        """As of the base class; the mean is known again by :meth:`profile_distance`."""
        moments = super().moments_of(parts, n_spots)
        self._mean_of[_digest(moments.mean)] = np.packbits(np.isin(np.arange(len(self.size)), parts))
        return moments

    def components_of(self, part: int, space: ExpressionSpace) -> Floats32:
        """Components of the spots of a part."""
        blocks = self._log_blocks(np.flatnonzero(self.part == part))
        return np.vstack([space.transform(log) for _, log in blocks])

    def profile_distance(self, profile: Floats) -> Floats:
        """As of the base class; the expression is not read again for the mean of some parts."""

        def make() -> tuple[Floats, Floats]:
            bits = self._mean_of.get(_digest(profile))
            out = np.empty(self.values.shape[0])
            if bits is not None and self.knows_means:
                share = self._shares(np.flatnonzero(np.unpackbits(bits, count=len(self.size))))
                for p in range(len(self.size)):
                    out[self.part == p] = self._distance_to_mean(p, share, profile)
            else:
                for some, log in self._log_blocks(np.arange(len(out))):
                    out[some] = profile_distance(log, profile)
            return profile, out

        return self._once("distance", id(profile), make)[1]

    @property
    def knows_means(self) -> bool:
        """Whether products of spots with the mean of each part are worth their place on disk."""
        n = len(self.size)
        return n <= _MOST_PARTS and 8 * int(self.size.max()) * (n + 2) <= _MOST_PRODUCTS

    def with_means(self, part: int) -> AnyFloats:
        """Products of the spots of a part with the mean of each part, and the two :func:`row_sums`; shape (spots, parts + 2), kept on disk."""

        def make() -> Floats:
            mean = self._part_means()
            blocks = self._log_blocks(np.flatnonzero(self.part == part))
            return np.vstack([np.hstack([products_with(log, mean), row_sums(log).T]) for _, log in blocks])

        return self.kept.array(self._of_means(), part, make)

    def _of_means(self) -> str:
        return self._once("name of means", None, lambda: f"with means {_digest(self._part_means())}")

    def _distance_to_mean(self, part: int, share: Floats, profile: Floats) -> Floats:
        """:func:`profile_distance` of the spots of a part from a mean of parts with these shares."""
        products = np.asarray(self.with_means(part), np.float64)
        return distance_by_products(products[:, :-2], share, profile, products[:, -2:].T)

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
        parts = self.some(rows).parts
        owner = None if parts is None else self._groups_of_parts(parts, rows, groups)
        if parts is None or owner is None or not self.knows_means:
            return self._distance_by_reading(rows, groups)
        mean, out = self._part_means(), np.empty(self.values.shape[0])
        for g in np.unique(groups):
            share = self._shares(parts[owner != g])
            profile = mean @ share
            for p in parts[owner == g]:
                out[self.part == p] = self._distance_to_mean(int(p), share, profile)
        return out[rows]

    def _distance_by_reading(self, rows: Ints, groups: Ints) -> Floats:
        """As :meth:`held_out_distance`, of any groups."""
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


def _of_products(genes: Ints) -> str:
    return f"products {_digest(np.asarray(genes, np.int64))}"


def _digest(array: Any) -> str:
    import hashlib

    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=8).hexdigest()
