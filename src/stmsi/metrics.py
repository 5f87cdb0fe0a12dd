"""Scores per metabolite: pure functions on arrays of shape (spots, metabolites).

Score each section by itself and summarise afterwards; flattened over metabolites, differences between their means pass
for skill.
"""

from stmsi._core.metrics import (
    auprc,
    auroc,
    brier,
    ece,
    f1,
    mae,
    mse,
    pearson,
    precision,
    prevalence,
    r2,
    recall,
    spearman,
)

__all__ = [
    "auprc",
    "auroc",
    "brier",
    "ece",
    "f1",
    "mae",
    "mse",
    "pearson",
    "precision",
    "prevalence",
    "r2",
    "recall",
    "spearman",
]
