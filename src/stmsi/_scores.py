"""Names of the scores that :func:`stmsi.tl.evaluate` writes, by stage and by what they need."""

PRESENCE_SCORES = ("precision", "recall", "f1", "mcc", "auroc", "auprc", "prevalence", "brier", "ece")
INTENSITY_SCORES = ("mse", "mae", "r2", "pearson", "spearman", "pearson_present", "coverage", "interval_width")
MAP_SCORES = ("ssim", "moran_measured", "moran_predicted", "hotspot_jaccard")
RELATION_SCORES = ("correlation_preserved", "gene_correlation_preserved")
GROUP_SCORES = ("group_agreement", "differential_agreement")
