"""What several reports say alike."""

from __future__ import annotations

import pandas as pd

SIMULATED = (
    "SIMULATED.",
    "Expression and metabolites were made by a program that lets metabolites follow genes. Good scores show that the "
    "software works. They say nothing about how well metabolites of real tissue can be predicted.",
)
COLUMNS = {"auroc": "AUROC", "auprc": "AUPRC", "prevalence": "(base)", "f1": "F1", "pearson": "Pearson", "r2": "R²"}
READING = (
    "Without skill AUROC is 0.5, AUPRC the prevalence (base), Pearson 0. R² is 0 for the mean of the training spots, and "
    "below 0 for what is worse."
)
CONSTANT = "The correlation of a prediction that is constant counts as 0."
MAX_ROWS = 500
_GUIDE = "https://stmsi.readthedocs.io/en/latest/user_guide"
_PAGES = {
    "reading_msi": "Read MSI and ST of your own",
    "two_stages": "How the two stages work",
    "choosing_a_model": "Choose a model",
    "alignment": "Align two sections",
    "cohort": "A cohort",
    "evaluation": "Evaluate without leakage",
    "limits": "Limits",
}


def links(*pages: str) -> dict[str, str]:
    """Pages of the user guide, by what they say."""
    return {_PAGES[page]: f"{_GUIDE}/{page}.html" for page in pages}


def number(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if pd.isna(value) else f"{value:.{digits}f}"
