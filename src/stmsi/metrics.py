"""Scores per metabolite: pure functions on arrays of shape (spots, metabolites).

Score each section by itself and summarise afterwards; flattened over metabolites, differences between their means pass
for skill. NaN in the truth means not measured and is left out: of imputed intensities pass
``np.where(observed, truth, np.nan)``.
"""

from stmsi._core.metrics.intensity import mae, mse, pearson, r2, spearman
from stmsi._core.metrics.maps import hotspot_jaccard, moran_gap, moran_i, ssim
from stmsi._core.metrics.presence import auprc, auroc, brier, ece, f1, mcc, precision, prevalence, recall
from stmsi._core.metrics.structure import (
    correlation_preserved,
    differential_abundance,
    differential_agreement,
    gene_correlation_preserved,
    group_agreement,
    group_means,
)

__all__ = [
    "auprc",
    "auroc",
    "brier",
    "correlation_preserved",
    "differential_abundance",
    "differential_agreement",
    "ece",
    "f1",
    "gene_correlation_preserved",
    "group_agreement",
    "group_means",
    "hotspot_jaccard",
    "mae",
    "mcc",
    "moran_gap",
    "moran_i",
    "mse",
    "pearson",
    "precision",
    "prevalence",
    "r2",
    "recall",
    "spearman",
    "ssim",
]
