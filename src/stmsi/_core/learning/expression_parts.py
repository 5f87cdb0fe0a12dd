"""Expression that many fits share, each to some of the spots: what no fold changes is computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import AnyFloats, Bools, Floats, Floats32, Ints
from stmsi._core.arrays_on_disk import Matrix
from stmsi._core.learning.expression_space import (
    ExpressionSpace,
    GeneMoments,
    column_sums,
    distance_by_products,
    held_out_distance,
    log_normalize,
    mean_shares,
    products_with,
    profile_distance,
    row_sums,
    share_sums,
    variable_genes,
)
from stmsi._core.learning.principal_axes import sum_of_products
from stmsi._core.learning.profile_hashes import Hashes, profile_hashes

MOST_BYTES = 2**30
"""Memory that sums over parts may take; where they would take more, each fit makes its own."""
_MOST_DENSE = 2**28
"""Memory that the expression of the genes chosen may take as a dense matrix."""
_MOST_PRODUCTS = 2**28
"""Memory that products of all spots with the mean of each part may take."""
_CHUNK = 4096

T = TypeVar("T")


def parts_of_folds(n_spots: int, folds: Sequence[Ints]) -> Ints:
    """Number of the part of each spot, from 0: spots that all folds have, or lack, together. `folds` are rows of spots."""
    part = np.zeros(n_spots, np.int64)
    for rows in folds:
        inside = np.zeros(n_spots, np.int64)
        inside[rows] = 1
        part = np.unique(2 * part + inside, return_inverse=True)[1].ravel()
    return part


@dataclass
class ExpressionParts:
    """Expression of all spots, and sums over the parts of them that are on one side of every fold.

    A fit to some parts adds up their sums and reads no other: nothing of the spots left out is in it. Products are kept of the
    genes that any fold chooses; each fold reads those of its own choice.

    Attributes
    ----------
    values
        Counts, or logarithms, shape (spots, genes).
    logs
        Whether they are logarithms.
    folds
        Rows that the fits are made to.
    """

    values: sp.csr_matrix
    logs: bool
    folds: Sequence[Ints]
    part: Ints = field(init=False)  # of each spot
    size: Ints = field(init=False)  # spots in each part
    _made: dict[str, tuple[Hashable, Any]] = field(default_factory=dict, init=False, repr=False)
    _top_of: dict[int, int] = field(default_factory=dict, init=False, repr=False)  # by number of a space
    _lock: Any = field(default_factory=RLock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.part = parts_of_folds(self.values.shape[0], self.folds)
        self.size = np.bincount(self.part)

    @property
    def folder(self) -> Path | None:
        """Folder for what grows with the spots; `None`: they are in memory."""
        return None

    def some(self, rows: Ints) -> SomeExpression:
        """That of some spots."""
        inside = np.bincount(self.part[rows], minlength=len(self.size))
        whole = bool(((inside == 0) | (inside == self.size)).all()) and self._pays
        return SomeExpression(self, rows, np.flatnonzero(inside) if whole else None)

    def some_values(self, rows: Ints) -> sp.csr_matrix:
        """Counts or logarithms of some spots."""
        return self.values[rows]

    def some_log(self, rows: Ints) -> sp.csr_matrix:
        """Log expression of some spots."""
        return self.log()[rows]

    def log(self) -> sp.csr_matrix:
        """Log expression of all spots. Made once; not to be changed."""
        return self._once("log", None, lambda: self.values if self.logs else log_normalize(self.values))

    @property
    def is_streamed(self) -> bool:
        """Whether the expression is on disk, and read a block at a time."""
        return False

    @property
    def _pays(self) -> bool:
        """Whether sums over parts take less than the spots themselves, and fit into the memory."""
        return 2 * len(self.size) <= len(self.part) and 32 * len(self.size) * self.values.shape[1] <= MOST_BYTES

    def gene_sums(self, part: int) -> Floats:
        """:func:`stmsi._core.learning.expression_space.column_sums` of the log expression of a part."""
        return self._of_part("sums", part, lambda own: column_sums(self.log()[own]))

    def moments_of(self, parts: Ints, n_spots: int) -> GeneMoments:
        """Of the log expression of each gene over some parts, which have `n_spots` together."""
        return GeneMoments.of_sums(np.sum([self.gene_sums(int(p)) for p in parts], axis=0), n_spots)

    def share_sums(self, part: int) -> tuple[Floats, int]:
        """:func:`stmsi._core.learning.expression_space.share_sums` of a part."""
        return self._of_part("shares", part, lambda own: share_sums(self.values[own]))

    def candidates(self, n_top_genes: int) -> tuple[Ints, sp.csr_matrix | Floats32]:
        """Genes that any fold chooses, in order, and their log expression, dense where that is small."""

        def make() -> tuple[Ints, sp.csr_matrix | Floats32]:
            genes = self._chosen(n_top_genes)
            log = sp.csr_matrix(self.log()[:, genes])
            return genes, log.toarray() if 4 * log.shape[0] * len(genes) <= _MOST_DENSE else log

        return self._once(f"candidates {n_top_genes}", None, make)

    def _chosen(self, n_top_genes: int) -> Ints:
        """Genes that any fold chooses, in order."""
        chosen = [np.empty(0, np.int64)]
        for rows in self.folds:
            variance = self.some(rows).gene_moments().variance
            if (variance > 1e-12).any():  # if none varies, the fit itself will say so
                chosen.append(variable_genes(variance, n_top_genes))
        return np.unique(np.concatenate(chosen))

    def admits(self, n_top_genes: int) -> bool:
        """Whether products of the candidates fit into the memory beside those that are kept."""
        tops = {int(name.split()[1]) for name in self._made if name.startswith("products")} | {n_top_genes}
        return 4 * len(self.size) * sum(len(self.candidates(n)[0]) ** 2 for n in tops) <= MOST_BYTES

    def products(self, part: int, n_top_genes: int) -> AnyFloats:
        """Sums of products of the candidates over a part, centred there."""
        genes, log = self.candidates(n_top_genes)
        kept: dict[int, AnyFloats] = self._once(f"products {n_top_genes}", None, dict)
        with self._lock:
            if part not in kept:
                centre = (self.gene_sums(part)[0, genes] / self.size[part]).astype(np.float32)
                rows = np.flatnonzero(self.part == part)
                chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
                kept[part] = sum(sum_of_products(_dense(log[own]) - centre) for own in chunks)  # type: ignore[assignment]
            return kept[part]

    def products_of(self, part: int, genes: Ints) -> AnyFloats | None:
        """Sums of products of any genes over a part, centred there; `None` where the spots themselves are at hand."""
        del part, genes
        return None

    def products_over(self, parts: Ints, n_top_genes: int, genes: Ints | None) -> Floats:
        """Sums of products over some parts, centred in each of them; of the candidates, or of some `genes`. A new array."""

        def products(part: int) -> AnyFloats:
            of_given = None if genes is None else self.products_of(part, genes)
            return self.products(part, n_top_genes) if of_given is None else of_given

        return sum_of_parts(products(int(p)) for p in parts)

    def components(self, space: ExpressionSpace) -> Matrix | None:
        """Components of all spots in a space, shape (spots, components); `None` where it was not made from parts."""

        def make() -> tuple[ExpressionSpace, Floats32 | None]:
            if id(space) not in self._top_of:
                return space, None
            genes, log = self.candidates(self._top_of[id(space)])
            place = _places(genes, space.selected)
            if place is None:  # the number of another space
                return space, None
            axes = np.zeros((len(genes), len(space.components)), np.float32)
            axes[place] = space.components.T
            # centred before the product, as the spots alone would be: afterwards, digits are lost
            mean = np.zeros(len(genes), np.float32)
            mean[place] = space.mean
            pieces = range(0, log.shape[0], _CHUNK)
            return space, np.vstack([(_dense(log[i : i + _CHUNK]) - mean) @ axes for i in pieces])

        # the space is kept beside them: its number is taken by another one when it is gone
        return self._once("components", id(space), make)[1]

    def profile_distance(self, profile: Floats) -> Floats:
        """:func:`stmsi._core.learning.expression_space.profile_distance` of all spots."""

        def make() -> tuple[Floats, Floats]:
            return profile, profile_distance(self.log(), profile, sums=self._row_sums())

        return self._once("distance", id(profile), make)[1]

    def profile_hashes(self, rows: Ints, genes: Sequence[Ints]) -> list[Hashes]:
        """:func:`stmsi._core.learning.profile_hashes.profile_hashes` of some spots."""
        return profile_hashes(self.some_values(rows), genes)

    def held_out_distance(self, rows: Ints, groups: Ints) -> Floats:
        """:func:`stmsi._core.learning.expression_space.held_out_distance` of some spots.

        Where groups are made of parts, the mean of the other groups is a weighted mean of those of parts, and so are
        its products with the spots, which are the same in every fold.
        """
        parts = self.some(rows).parts
        owner = None if parts is None else self._groups_of_parts(parts, rows, groups)
        if parts is None or owner is None or 8 * len(self.part) * len(self.size) > _MOST_PRODUCTS:
            return held_out_distance(self.some_log(rows), groups)
        mean = self._part_means()
        products = self._once("part means of spots", None, lambda: products_with(self.log(), mean))
        sums, out = self._row_sums(), np.empty(len(rows))
        for g in np.unique(groups):
            own, weight = groups == g, self._shares(parts[owner != g])
            out[own] = distance_by_products(products[rows[own]], weight, mean @ weight, sums[:, rows[own]])
        return out

    def _groups_of_parts(self, parts: Ints, rows: Ints, groups: Ints) -> Ints | None:
        """Group of each part; `None` where one is in several."""
        lowest, highest = np.full(len(self.size), np.iinfo(np.int64).max), np.full(len(self.size), -1)
        np.minimum.at(lowest, self.part[rows], groups)
        np.maximum.at(highest, self.part[rows], groups)
        return lowest[parts] if (lowest[parts] == highest[parts]).all() else None

    def _shares(self, parts: Ints) -> Floats:
        """Share of each part in the spots of some parts together, shape (parts,)."""
        share = np.zeros(len(self.size))
        share[parts] = self.size[parts] / self.size[parts].sum()
        return share

    def _part_means(self) -> Floats:
        """Mean log expression of each part, shape (genes, parts). Made once."""
        means = (self.gene_sums(p)[0] / n for p, n in enumerate(self.size))
        return self._once("part means", None, lambda: np.column_stack(list(means)))

    def _row_sums(self) -> Floats:
        return self._once("row sums", None, lambda: row_sums(self.log()))

    def _of_part(self, name: str, part: int, make: Callable[[Bools], T]) -> T:
        kept: dict[int, T] = self._once(name, None, dict)
        with self._lock:
            if part not in kept:
                kept[part] = make(self.part == part)
            return kept[part]

    def _once(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for this key, or is now; under one name, only the last is kept."""
        with self._lock:
            if name not in self._made or self._made[name][0] != key:
                self._made.pop(name, None)
                self._made[name] = key, make()
            found: T = self._made[name][1]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}, "_top_of": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_lock": RLock()}


@dataclass(frozen=True)
class SomeExpression:
    """Expression of some spots; what their parts know is taken from there, and the rest computed.

    Attributes
    ----------
    whole
        Of all spots.
    rows
        Which these are.
    parts
        What they are made of; `None`: of none as a whole, or of too many.
    """

    whole: ExpressionParts
    rows: Ints
    parts: Ints | None

    def take(self, rows: Ints) -> SomeExpression:
        """Of some of these."""
        return self.whole.some(self.rows[rows])

    def values(self) -> sp.csr_matrix:
        """Counts or logarithms."""
        return self.whole.some_values(self.rows)

    def log(self) -> sp.csr_matrix:
        """Log expression."""
        return self.whole.some_log(self.rows)

    def gene_moments(self) -> GeneMoments:
        """Of the log expression of each gene."""
        if self.parts is None:
            return GeneMoments.of(self.log())
        return self.whole.moments_of(self.parts, len(self.rows))

    def mean_shares(self) -> Floats:
        """As :func:`stmsi._core.learning.expression_space.mean_shares`, of counts."""
        if self.parts is None:
            return mean_shares(self.values())
        sums = [self.whole.share_sums(int(p)) for p in self.parts]
        return np.asarray(sum(total for total, _ in sums)) / max(sum(n for _, n in sums), 1)

    def space(
        self, moments: GeneMoments, *, n_top_genes: int, n_components: int, seed: int, genes: Ints | None = None
    ) -> ExpressionSpace | None:
        """Components of the most variable genes, or of some others, from the products of the parts; `None` where these are not kept."""
        if self.parts is None or not (moments.variance > 1e-12).any():
            return None
        whole, given = self.whole, genes is not None
        selected = variable_genes(moments.variance, n_top_genes) if genes is None else genes
        if len(selected) > len(self.rows) or (given and not whole.is_streamed):
            return None
        place = np.arange(len(selected)) if given else _places(whole.candidates(n_top_genes)[0], selected)
        if place is None or not (given or whole.admits(n_top_genes)):
            return None

        total = whole.products_over(self.parts, n_top_genes, selected if given else None)
        total, shift = total[np.ix_(place, place)], np.empty((len(self.parts), len(selected)))
        for i, p in enumerate(self.parts):
            n = whole.size[p]
            shift[i] = np.sqrt(n) * (whole.gene_sums(int(p))[0, selected] / n - moments.mean[selected])
        # parts are centred at their own means
        total += shift.T @ shift
        space = ExpressionSpace.of_products(
            total, len(self.rows), selected, moments.mean, moments.variance,
            n_components=n_components, seed=seed,
        )  # fmt: skip
        if not given:
            whole._top_of[id(space)] = n_top_genes
        return space

    @property
    def folder(self) -> Path | None:
        """As of the whole."""
        return self.whole.folder

    def components(self, space: ExpressionSpace, some: slice = slice(None)) -> Floats32:
        """Components of all or some of the spots in a space, shape (spots, components)."""
        of_all = self.whole.components(space)
        return space.transform(self.log())[some] if of_all is None else of_all[self.rows[some]]

    def profile_distance(self, profile: Floats) -> Floats:
        """As :func:`stmsi._core.learning.expression_space.profile_distance`."""
        return self.whole.profile_distance(profile)[self.rows]

    def profile_hashes(self, genes: Sequence[Ints]) -> list[Hashes]:
        """As :func:`stmsi._core.learning.profile_hashes.profile_hashes`."""
        return self.whole.profile_hashes(self.rows, genes)

    def held_out_distance(self, groups: Ints) -> Floats:
        """As :func:`stmsi._core.learning.expression_space.held_out_distance`."""
        return self.whole.held_out_distance(self.rows, groups)


def sum_of_parts(arrays: Iterable[AnyFloats]) -> Floats:
    """Sum of arrays in double precision, one after the other; a new array."""
    several = iter(arrays)
    total = next(several).astype(np.float64)
    for one in several:
        total += one
    return total


def _places(among: Ints, wanted: Ints) -> Ints | None:
    """Positions of sorted numbers among others; `None` where one is missing."""
    place = np.searchsorted(among, wanted)
    found = len(among) > 0 and bool((among[np.minimum(place, len(among) - 1)] == wanted).all())
    return place if found else None


def _dense(log: sp.csr_matrix | Floats32) -> Floats32:
    return np.asarray(log.toarray()) if isinstance(log, sp.csr_matrix) else log
