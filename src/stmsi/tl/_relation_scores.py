"""Scores of what holds between metabolites, with genes and between groups of spots, for the table of `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.learning.expression_space import column_moments, log_normalize
from stmsi._core.metrics import structure as structure

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

N_GENES = 500
"""Genes of a section that take part, by their variance: correlations with genes hardly ever seen are noise."""


def score_relations(
    ids: list[str],
    sample: NDArray[np.str_],
    y: NDArray[np.float64],
    predicted: NDArray[np.float64],
    counts: sp.csr_matrix | None = None,
    group: pd.Series | None = None,
) -> pd.DataFrame:
    """One row per section with MSI and metabolite, with the scores asked for.

    Parameters
    ----------
    ids
        Metabolites.
    sample
        Section of each spot.
    y, predicted
        Measured (NaN where not measured) and predicted, shape (spots, metabolites).
    counts
        Spots x genes, for how well correlations are preserved; `None`: leave them out.
    group
        Group of each spot, for how well groups agree; `None`: leave them out.
    """
    parts = []
    for name in dict.fromkeys(sample):
        rows = np.flatnonzero((sample == name) & ~np.isnan(y).all(axis=1))
        if not len(rows):
            continue
        truth, pred = y[rows], predicted[rows]
        scores = {}
        if counts is not None:
            genes = _variable(log_normalize(counts[rows]))
            scores["correlation_preserved"] = structure.correlation_preserved(truth, pred)
            scores["gene_correlation_preserved"] = structure.gene_correlation_preserved(genes, truth, pred)
        if group is not None:
            own = group.iloc[rows].to_numpy(object)
            scores["group_agreement"] = structure.group_agreement(truth, pred, own)
            scores["differential_agreement"] = structure.differential_agreement(truth, pred, own)
        parts.append(pd.DataFrame({"sample": name, "metabolite": ids, "stage": "intensity", **scores}))
    return pd.concat(parts, ignore_index=True)


def _variable(genes: sp.csr_matrix) -> sp.csr_matrix:
    variance = column_moments(genes)[1]
    return genes[:, np.sort(np.argsort(-variance, kind="stable")[:N_GENES])]
