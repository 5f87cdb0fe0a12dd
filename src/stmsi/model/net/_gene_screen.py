"""Which genes metabolites attend to: those that go with them inside the training sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.learning.decorrelated_screen import decorrelated_scores
from stmsi.model.linear._gene_sets import GeneBlocks

if TYPE_CHECKING:
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
    blocks = GeneBlocks(train)
    section = np.unique(sample.astype(str), return_inverse=True)[1]
    sums = np.abs(blocks.screen(intensity, section, np.zeros(len(section), np.int64))[0]).max(axis=(0, 2))
    favoured = np.zeros(len(sums), bool) if always is None else always[blocks.genes]
    candidates = np.sort(np.argsort(-np.where(favoured, np.inf, sums), kind="stable")[:most])
    features = blocks.features(candidates)
    n_blocks = features.shape[1] // len(candidates)
    scores = np.stack([decorrelated_scores(F, intensity, section) for F in np.split(features, n_blocks, axis=1)])
    scores /= np.maximum(scores.std(axis=(1, 2), keepdims=True), _NOISE)
    largest = np.abs(scores).argmax(axis=0)
    screened = np.take_along_axis(scores, largest[None], axis=0)[0].T
    size, n_each = np.abs(screened), min(n_each, len(candidates))
    chosen = favoured[candidates]
    chosen[np.argpartition(-size, n_each - 1, axis=1)[:, :n_each]] = True
    kept = np.flatnonzero(chosen)
    return blocks.genes[candidates[kept]].astype(np.int64), screened[:, kept].astype(np.float32)
