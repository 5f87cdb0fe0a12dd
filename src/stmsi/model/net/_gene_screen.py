"""Which genes metabolites attend to: those that go with them inside the training sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.learning.decorrelated_screen import decorrelated_scores, scores_of_products, section_products
from stmsi._core.spatial.sections import rows_of_each
from stmsi.model.linear._context_kernels import genes_seen
from stmsi.model.linear._gene_sets import GeneBlocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots

_NOISE = 1.0
"""Deviation of scores where nothing goes with anything: less is no evidence."""


def screened_genes(
    train: Spots,
    intensity: NDArray[np.float64],
    sample: NDArray[Any],
    *,
    n_each: int,
    most: int,
    always: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Choose genes by how strongly they go with metabolites inside the sections of the training spots.

    Genes are seen in 3 % of the spots. First, the `most` whose correlation with any metabolite is largest are kept: of own
    expression or, with a graph, of the first ring. Then the correlation among these genes is taken out
    (:func:`stmsi._core.learning.decorrelated_screen.decorrelated_scores`), so that a driver stands out of its programme, and each
    metabolite chooses its own.

    Parameters
    ----------
    train
        The training spots.
    intensity
        Shape (spots, metabolites), NaN where not measured.
    sample
        Section of each spot.
    n_each
        Genes of each metabolite.
    most
        Genes of all metabolites together; those that go most with any metabolite are kept.
    always
        Panel genes that are kept before others, as far as they are seen.

    Returns
    -------
    Panel genes in order, and the scores for them, shape (metabolites, genes), in units of their standard deviation over all pairs
    (at least what noise has).
    """
    section = np.unique(sample.astype(str), return_inverse=True)[1]
    blocks = _BySection(train, section) if train.is_streamed else _Together(train)
    sums = np.abs(blocks.screen(intensity, section, np.zeros(len(section), np.int64))[0]).max(axis=(0, 2))
    favoured = np.zeros(len(sums), bool) if always is None else always[blocks.genes]
    candidates = np.sort(np.argsort(-np.where(favoured, np.inf, sums), kind="stable")[:most])
    scores = blocks.scores(candidates, intensity, section)
    scores /= np.maximum(scores.std(axis=(1, 2), keepdims=True), _NOISE)
    largest = np.abs(scores).argmax(axis=0)
    screened = np.take_along_axis(scores, largest[None], axis=0)[0].T
    size, n_each = np.abs(screened), min(n_each, len(candidates))
    chosen = favoured[candidates]
    chosen[np.argpartition(-size, n_each - 1, axis=1)[:, :n_each]] = True
    kept = np.flatnonzero(chosen)
    return blocks.genes[candidates[kept]].astype(np.int64), screened[:, kept].astype(np.float32)


class _Together(GeneBlocks):
    """Genes of training spots that are in memory."""

    def scores(
        self, genes: NDArray[np.int64], intensity: NDArray[np.float64], section: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Decorrelated scores of own expression and of the first ring, shape (blocks, genes, metabolites)."""
        features = self.features(genes)
        of_blocks = np.split(features, features.shape[1] // len(genes), axis=1)
        return np.stack([decorrelated_scores(F, intensity, section) for F in of_blocks])


class _BySection:
    """The same of spots whose expression is on disk: one section is in memory at a time, and sums over them are the same."""

    def __init__(self, train: Spots, section: NDArray[np.int64]) -> None:
        self._train, self._rows = train, list(rows_of_each(section))
        self._seen = genes_seen(train.gene_moments())
        self.genes = self._seen[0]

    def _blocks(self) -> Iterator[tuple[NDArray[np.int64], GeneBlocks]]:
        for own in self._rows:
            yield own, GeneBlocks(self._train.take(own).in_memory(), seen=self._seen)

    def screen(
        self, Y: NDArray[np.float64], section: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """As of :class:`GeneBlocks`; the spots of a section are in one group."""
        n_blocks = 1 if self._train.graph is None else 2
        out = np.zeros((int(groups.max()) + 1, n_blocks, len(self.genes), Y.shape[1]), np.float32)
        for own, blocks in self._blocks():
            out[groups[own[0]]] += blocks.screen(Y[own], section[own], np.zeros(len(own), np.int64))[0]
        return out

    def scores(
        self, genes: NDArray[np.int64], intensity: NDArray[np.float64], section: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """As of :class:`_Together`."""
        sums: list[list[NDArray[np.float32]]] = []
        for own, blocks in self._blocks():
            features = blocks.features(genes)
            of_blocks = np.split(features, features.shape[1] // len(genes), axis=1)
            found = [section_products(F, intensity[own]) for F in of_blocks]
            if not sums:
                sums = [list(pair) for pair in found]
                continue
            for total, pair in zip(sums, found, strict=True):
                for a, b in zip(total, pair, strict=True):
                    a += b
        return np.stack([scores_of_products(P, r, len(section)) for P, r in sums])
