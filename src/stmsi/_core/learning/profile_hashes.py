"""One number for the expression profile of a spot, by which the same profile is found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

Hashes: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.bool_]]

# the raw stream of a bit generator is the same in every version of numpy, and hashes are kept in files
_ODD = np.random.PCG64(1).random_raw(4).astype(np.uint64) | np.uint64(1)
_SAME = 1e-6
"""Relative difference up to which two numbers are equal. Rounding of float32 stays below it, steps between counts above."""
FEWEST = 12
"""Expressed genes below which a profile is no mark of a spot: spots with hardly any are all alike."""


def profile_hashes(expression: sp.csr_matrix, genes: Sequence[NDArray[np.int64]]) -> list[Hashes]:
    """Hash of each profile over each set of genes: which are expressed, and what falls and rises from one of them to the next.

    Counts, normalised counts and their logarithms have one hash, as the order of the genes in a spot is the same in them. The
    profile cannot be told from it.

    Parameters
    ----------
    expression
        Spots x genes.
    genes
        Sets of columns.

    Returns
    -------
    For each set the hashes, shape (spots,), and whether each profile has `FEWEST` expressed genes, so as to be told from others.
    """
    if not genes:
        return []
    columns = np.concatenate(genes)
    ends = np.cumsum([len(own) for own in genes])
    small = sp.csr_matrix(expression[:, columns])
    return [_hash_rows(small[:, end - len(own) : end], own) for own, end in zip(genes, ends, strict=True)]


def _hash_rows(part: sp.csr_matrix, genes: NDArray[np.int64]) -> Hashes:
    if not part.has_sorted_indices:
        part = part.sorted_indices()
    table = np.random.PCG64(0).random_raw(3 * len(genes)).astype(np.uint64).reshape(3, len(genes))
    kept = part.data != 0
    # row, gene and value of each entry, in order
    row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))[kept]
    gene, value = part.indices[kept], part.data[kept].astype(np.float64)
    step = np.zeros(len(value), np.int64)  # 0: the first of a spot, or equal to the one before; 1: higher; 2: lower
    change, size = np.diff(value), np.abs(value)
    moved = (np.abs(change) > _SAME * np.maximum(size[1:], size[:-1])) & (np.diff(row) == 0)
    step[1:][moved] = np.where(change[moved] > 0, 1, 2)
    count = np.bincount(row, minlength=part.shape[0])
    hashes, there = np.zeros(part.shape[0], np.uint64), count > 0
    if there.any():
        starts = (np.cumsum(count) - count)[there]
        hashes[there] = np.add.reduceat(table[step, gene], starts)  # modulo 2^64
    return hashes, count >= FEWEST


def place_hashes(names: pd.Index, section: NDArray[Any] | None, xy: NDArray[np.float64] | None) -> NDArray[np.uint64]:
    """Hash of each spot's name, section and position, as far as they are known, shape (spots,)."""
    hashes = _text_hashes(names.astype(str).to_numpy(dtype=object))
    if section is not None:
        code, sections = pd.factorize(np.array([str(s) for s in section], dtype=object))
        hashes = hashes * _ODD[0] ^ _text_hashes(sections)[code]
    if xy is not None:
        # in the single precision that files may hold; 0 added, as -0 has other bits
        place = (np.asarray(xy, np.float64)[:, :2].astype(np.float32) + 0).view(np.uint32).astype(np.uint64)
        hashes = hashes * _ODD[1] ^ (place[:, 0] * _ODD[2] ^ place[:, 1] * _ODD[3])
    return hashes


def _text_hashes(texts: NDArray[Any]) -> NDArray[np.uint64]:
    # of objects, whatever kind of text pandas has: each kind has hashes of its own
    return np.asarray(pd.util.hash_array(np.asarray(texts, dtype=object), categorize=False), dtype=np.uint64)
