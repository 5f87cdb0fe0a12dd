"""What training leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.uncertainty.conformal import GroupConformal
    from stmsi._core.uncertainty.copula import HurdleCopula
    from stmsi.model.shared._gene_panel import GenePanel
    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._training_spots import TrainingSpots


@dataclass
class FittedState:
    """Everything that training leaves behind beside the estimators themselves.

    Attributes
    ----------
    setup, panel, features
        Names of the fields, genes, and the feature space.
    metabolites
        Ids of the metabolites that are predicted.
    feature_table
        Their rows of the feature table, with the evidence from held-out training spots: ``prevalence``,
        ``training_mean``, ``n_spots``, ``held_out_pearson`` and ``held_out_auroc`` (means over the held-out sections, or blocks,
        of the scores inside them), their lower bounds ``held_out_pearson_lower`` and ``held_out_auroc_lower`` (one-sided 90 %),
        ``held_out_units`` (number of these sections; 0: no section has five spots, and all spots are scored together), and
        ``held_out_coverage`` and ``held_out_coverage_lowest`` (share of the spots inside 90 % intervals that know nothing of their
        section: mean and lowest of the sections).
    threshold
        Probability from which each metabolite is called present.
    residuals
        Quantiles of held-out residuals of the prediction, in units of the hurdle model's standard deviation.
    spread
        Standard deviation of held-out residuals of the intensity where present.
    training
        Summary of the training data: numbers of spots and genes, sections.
    seen
        Hashes of the spots that it was trained on; `None` in models saved by a version that kept none.
    copula
        How held-out residuals hang together in space and between metabolites; fitted when first asked for.
    """

    setup: Setup
    panel: GenePanel
    features: SpotFeatures
    metabolites: pd.Index
    feature_table: pd.DataFrame = field(default_factory=pd.DataFrame)
    threshold: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    residuals: GroupConformal | None = None
    spread: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    training: dict[str, Any] = field(default_factory=dict)
    copula: HurdleCopula | None = None
    seen: TrainingSpots | None = None
