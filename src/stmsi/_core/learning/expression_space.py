"""Log expression of spots, and its principal components fitted on training spots only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import Bools, Floats, Floats32, Ints
from stmsi._core.learning.filled_expression import LogExpression
from stmsi._core.learning.principal_axes import leading_axes, sum_of_products

TARGET_SUM = 1e4  # counts that every spot is scaled to before the logarithm
_CHUNK = 4096
_ENTRIES = 2**22
_FEW_ENTRIES = 0.08
"""Share of entries other than 0 below which a sparse product takes less time than a dense one."""


def log_normalize(counts: sp.csr_matrix, target_sum: float = TARGET_SUM) -> sp.csr_matrix:
    """``log(1 + counts / library size x target sum)``, sparse; spots without counts stay 0.

    The result shares the positions of its entries with `counts`.
    """
    if not counts.has_canonical_format:
        counts = counts.copy()
        counts.sum_duplicates()
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scale = (target_sum / np.where(library > 0, library, 1.0)).astype(np.float32)
    data = np.repeat(scale, np.diff(counts.indptr))
    data *= counts.data
    return sp.csr_matrix((np.log1p(data, out=data), counts.indices, counts.indptr), shape=counts.shape)


def mean_shares(counts: sp.csr_matrix) -> Floats:
    """Mean over spots of the share that each gene has in the counts of a spot; spots without counts are left out.

    Shape (genes,); 0 where no spot has counts.
    """
    total, n = share_sums(counts)
    return total / max(n, 1)


def share_sums(counts: sp.csr_matrix) -> tuple[Floats, int]:
    """Sum over spots of the share that each gene has in the counts of a spot, shape (genes,), and how many spots have counts."""
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    weight = np.divide(1.0, library, out=np.zeros_like(library), where=library > 0)
    return np.asarray(weight @ counts, dtype=np.float64), int((library > 0).sum())


def pool_counts(counts: sp.csr_matrix, graph: sp.csr_matrix) -> sp.csr_matrix:
    """Counts of each spot and its neighbours added up (before any normalisation)."""
    adjacency = sp.csr_matrix(graph, dtype=np.float32)
    adjacency.data = np.ones_like(adjacency.data)
    return sp.csr_matrix(counts + adjacency @ counts)


def pool_logs(log: sp.csr_matrix, graph: sp.csr_matrix) -> sp.csr_matrix:
    """Mean log expression of each spot and its neighbours: what :func:`pool_counts` is where there are no counts to add up."""
    adjacency = sp.csr_matrix(graph != 0, dtype=np.float32)
    count = 1 + np.asarray(adjacency.sum(axis=1), dtype=np.float32).ravel()
    return sp.csr_matrix(sp.diags(1 / count) @ (log + adjacency @ log), dtype=np.float32)


def neighbour_mean(values: Floats32, graph: sp.csr_matrix) -> Floats32:
    """Mean over the neighbours of each spot, itself left out; 0 where it has none. Shape as `values`."""
    adjacency = sp.csr_matrix(graph != 0, dtype=np.float32)
    count = np.asarray(adjacency.sum(axis=1), dtype=np.float32)
    return np.asarray((adjacency @ values) / np.maximum(count, 1), dtype=np.float32)


def row_sums(X: sp.csr_matrix) -> Floats:
    """Sum and sum of squares of each row, in double precision; shape (2, rows)."""
    sums = np.zeros((2, X.shape[0]))
    for start in range(0, X.shape[0], _CHUNK):
        pointer = X.indptr[start : start + _CHUNK + 1]
        data, filled = X.data[pointer[0] : pointer[-1]], np.flatnonzero(np.diff(pointer))
        if len(filled):
            begins = (pointer[:-1] - pointer[0])[filled]
            sums[0, start + filled] = np.add.reduceat(data, begins, dtype=np.float64)
            sums[1, start + filled] = np.add.reduceat(data * data, begins, dtype=np.float64)
    return sums


def profile_distance(
    log: sp.csr_matrix, profile: Floats, genes: Bools | None = None, sums: Floats | None = None
) -> Floats:
    """One less the Pearson correlation of each spot's log expression with a profile; 0 to 2.

    1 where a spot, or the profile, does not vary.

    Parameters
    ----------
    log
        Shape (spots, genes).
    profile
        Shape (genes,).
    genes
        Which genes count, the others being empty in `log`; `None`: all.
    sums
        :func:`row_sums` of `log` where they are known.
    """
    counted = np.ones(len(profile), dtype=bool) if genes is None else genes
    n = max(int(counted.sum()), 1)
    profile = np.where(counted, profile, 0)
    centred = np.where(counted, profile - profile.sum() / n, 0)
    # in the precision of `log`: a product with doubles would make doubles of the whole matrix first
    along = (log @ centred.astype(log.dtype)).astype(np.float64)
    sums = row_sums(log) if sums is None else sums
    return _one_less_correlation(along, sums, n, float((centred**2).sum()), float((profile**2).sum()))


def _one_less_correlation(along: Floats, sums: Floats, n: int, centred: float, length: float) -> Floats:
    """From the products of spots with a centred profile, :func:`row_sums`, and the squared lengths of the profile, centred and not."""
    total, square = sums
    size = np.sqrt(np.maximum(square - total**2 / n, 0) * centred)
    varies = size > 1e-9 * np.sqrt(np.maximum(square, 1e-300) * max(length, 1e-300))
    return np.asarray(1 - np.where(varies, along / np.where(varies, size, 1), 0))


def distance_by_products(products: Floats, weight: Floats, profile: Floats, sums: Floats) -> Floats:
    """:func:`profile_distance` from a profile that is a weighted sum of others whose products with the spots are known.

    Parameters
    ----------
    products
        Of the log expression with the other profiles, shape (spots, profiles).
    weight
        Of each of them, shape (profiles,).
    profile
        The weighted sum, shape (genes,).
    sums
        :func:`row_sums` of the log expression.
    """
    n = max(len(profile), 1)
    mean = profile.sum() / n
    centred = float(((profile - mean) ** 2).sum())
    return _one_less_correlation(products @ weight - mean * sums[0], sums, n, centred, float((profile**2).sum()))


def products_with(log: sp.csr_matrix, profiles: Floats) -> Floats:
    """Products of log expression with profiles (genes, profiles) in double precision, in pieces; shape (spots, profiles)."""
    pieces = range(0, log.shape[0], _CHUNK)
    return np.vstack([_sparse_piece(log, i).astype(np.float64) @ profiles for i in pieces])


def held_out_distance(log: sp.csr_matrix, groups: Ints) -> Floats:
    """:func:`profile_distance` of each spot from the mean profile of the spots of all other groups, shape (spots,).

    `groups` are their numbers, from 0, two at least.
    """
    rows = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    sums = [np.asarray(log[own].sum(axis=0), dtype=np.float64).ravel() for own in rows]
    out = np.empty(len(groups))
    for own, total in zip(rows, sums, strict=True):
        out[own] = profile_distance(log[own], (sum(sums) - total) / (len(groups) - len(own)))
    return out


@dataclass(frozen=True)
class GeneMoments:
    """Of the log expression of each gene over some spots: mean, variance, and share of the spots in which it is seen."""

    mean: Floats
    variance: Floats
    seen: Floats

    @classmethod
    def of(cls, log: sp.csr_matrix) -> GeneMoments:
        """From log expression (spots, genes)."""
        return cls.of_sums(column_sums(log), log.shape[0])

    @classmethod
    def of_sums(cls, sums: Floats, n_spots: int) -> GeneMoments:
        """From what :func:`column_sums` gives for `n_spots`, or from sums of it."""
        first, second, seen = sums / n_spots
        return cls(first, np.maximum(second - first**2, 0), seen)


def variable_genes(variance: Floats, n: int) -> Ints:
    """Columns of the `n` genes with the largest variance, in order; genes that do not vary are left out.

    Raises
    ------
    ValueError
        None varies.
    """
    usable = variance > 1e-12
    if not usable.any():
        msg = "No gene varies over the training spots; is this the expression of more than one spot?"
        raise ValueError(msg)
    # rounded: which of two equal genes comes first must not hang on the order of a sum
    order = np.argsort(-np.where(usable, variance, -1).astype(np.float32), kind="stable")
    return np.sort(order[: min(n, int(usable.sum()))])


@dataclass(frozen=True)
class ExpressionSpace:
    """Variable genes, their moments, and the principal components of the training spots."""

    selected: Ints  # columns of the genes used
    mean: Floats32  # of their log expression over the training spots
    scale: Floats32  # its standard deviation
    components: Floats32  # principal axes, shape (components, genes used)
    deviation: Floats32  # standard deviation of the training spots along each component

    @classmethod
    def fit(
        cls, log: sp.csr_matrix, *, n_top_genes: int, n_components: int, seed: int = 0, genes: Ints | None = None
    ) -> ExpressionSpace:
        """The space alone; see :meth:`fit_transform`."""
        mean, variance = column_moments(log)
        return cls.fit_transform(
            log, mean, variance, n_top_genes=n_top_genes, n_components=n_components, seed=seed, genes=genes
        )[0]

    @classmethod
    def fit_transform(
        cls,
        log: sp.csr_matrix,
        mean: Floats,
        variance: Floats,
        *,
        n_top_genes: int,
        n_components: int,
        seed: int = 0,
        genes: Ints | None = None,
    ) -> tuple[ExpressionSpace, Floats32]:
        """Choose the genes with the largest variance, and find the components of them and of the spots.

        Parameters
        ----------
        log
            Log expression of the training spots, shape (spots, genes).
        mean, variance
            Of each gene over them.
        n_top_genes, n_components
            At most.
        seed
            Of the randomised solver.
        genes
            Columns that are used in the place of the variable ones; they must vary.

        Returns
        -------
        The space, and the components of the spots, shape (spots, components).
        """
        selected = variable_genes(variance, n_top_genes) if genes is None else genes
        Z = cls._unfitted(selected, mean, variance).centred(log)
        if len(Z) >= len(selected):
            products = np.zeros((len(selected), len(selected)))
            for start in range(0, len(Z), _CHUNK):
                products += sum_of_products(Z[start : start + _CHUNK])
            space = cls.of_products(products, len(Z), selected, mean, variance, n_components=n_components, seed=seed)
        else:
            from sklearn.decomposition import PCA

            n = min(n_components, len(selected), max(1, len(Z) - 1))
            pca = PCA(n, random_state=seed, iterated_power=3).fit(Z)
            space = cls._unfitted(selected, mean, variance)._with(pca.components_, pca.explained_variance_)
        return space, Z @ space.components.T

    @classmethod
    def of_products(
        cls,
        products: Floats,
        n_spots: int,
        selected: Ints,
        mean: Floats,
        variance: Floats,
        *,
        n_components: int,
        seed: int = 0,
    ) -> ExpressionSpace:
        """From the sums of products of centred genes over at least as many spots as genes; see :func:`leading_axes`.

        Parameters
        ----------
        products
            Shape (genes used, genes used).
        n_spots
            Over which they were summed.
        selected
            Columns of the genes used.
        mean, variance
            Of every gene over the spots.
        n_components, seed
            As for :meth:`fit_transform`.
        """  # fmt: skip
        n = min(n_components, len(selected), max(1, n_spots - 1))
        values, axes = leading_axes(products, n, n_spots, seed)
        return cls._unfitted(selected, mean, variance)._with(axes, values / max(n_spots - 1, 1))

    @classmethod
    def _unfitted(cls, selected: Ints, mean: Floats, variance: Floats) -> ExpressionSpace:
        none = np.empty((0, len(selected)), np.float32)
        moments = mean[selected].astype(np.float32), np.sqrt(variance[selected]).astype(np.float32)
        return cls(selected, *moments, none, none[:, 0])

    def _with(self, axes: Floats, variance: Floats) -> ExpressionSpace:
        deviation = np.sqrt(np.maximum(variance, 1e-12)).astype(np.float32)
        return replace(self, components=axes.astype(np.float32), deviation=deviation)

    @property
    def gene_variance(self) -> Floats:
        """Variance of each gene used that the components hold, shape (genes used,)."""
        scaled = self.components.astype(np.float64) * self.deviation.astype(np.float64)[:, None]
        return np.asarray((scaled**2).sum(axis=0))

    def centred(self, log: LogExpression) -> Floats32:
        """Log expression of the genes used less its training mean; shape (spots, genes used).

        Genes are not scaled to one variance: on real ST that lifts the counting noise of weak genes.
        """
        X = (log if len(self.selected) == log.shape[1] else log[:, self.selected]).toarray()
        X -= self.mean
        return X

    def transform(self, log: LogExpression) -> Floats32:
        """Components of spots from their log expression, shape (spots, components); with few entries as they are, else in pieces."""
        if isinstance(log, sp.csr_matrix) and log.nnz < _FEW_ENTRIES * log.shape[0] * log.shape[1]:
            weights = np.zeros((log.shape[1], len(self.components)), np.float32)
            weights[self.selected] = self.components.T
            return np.asarray(log @ weights - self.mean @ self.components.T, np.float32)
        parts = [self.centred(_piece(log, i)) @ self.components.T for i in range(0, log.shape[0], _CHUNK)]
        return np.vstack(parts) if parts else np.empty((0, len(self.components)), np.float32)


def _piece(log: LogExpression, start: int) -> LogExpression:
    """Some spots."""
    return _sparse_piece(log, start) if isinstance(log, sp.csr_matrix) else log[start : start + _CHUNK]


def _sparse_piece(log: sp.csr_matrix, start: int) -> sp.csr_matrix:
    """Some spots of a sparse matrix, without a copy of its entries."""
    pointer = log.indptr[start : start + _CHUNK + 1]
    own = slice(pointer[0], pointer[-1])
    shape = len(pointer) - 1, log.shape[1]
    return sp.csr_matrix((log.data[own], log.indices[own], pointer - pointer[0]), shape=shape)


def column_moments(X: sp.csr_matrix) -> tuple[Floats, Floats]:
    """Mean and variance of every column of a sparse matrix."""
    first, second, _ = column_sums(X)
    mean = first / X.shape[0]
    return mean, np.maximum(second / X.shape[0] - mean**2, 0)


def column_sums(X: sp.csr_matrix) -> Floats:
    """Sum, sum of squares and number of entries other than 0 of each column, shape (3, columns), in pieces.

    In double precision: sums of many spots in single precision are off by as much as genes that hardly vary do.
    """
    sums = np.zeros((3, X.shape[1]))
    for start in range(0, len(X.data), _ENTRIES):
        # in the types that are counted in, or each count would make them anew
        column = X.indices[start : start + _ENTRIES].astype(np.intp)
        value = X.data[start : start + _ENTRIES].astype(np.float64)
        seen = column if value.all() else column[value != 0]
        for total, of, weight in zip(sums, (column, column, seen), (value, value**2, None), strict=True):
            total += np.bincount(of, weight, minlength=len(total))
    return sums
