"""What one call of ``train`` works on, and the networks that come out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from stmsi.model.net.modules import HurdleModule
    from stmsi.model.shared._fitted_state import FittedState
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._targets import Targets


@dataclass(frozen=True)
class Net:
    """One of the networks whose predictions are averaged.

    Attributes
    ----------
    module
        The network.
    features
        The space in which it sees other spots.
    metabolites
        What it can predict: those that its training spots have.
    """

    module: HurdleModule
    features: SpotFeatures
    metabolites: pd.Index


@dataclass(frozen=True)
class Start:
    """Where a warm start begins: weights of each network, and what they were trained to."""

    nets: list[Net]
    state: FittedState
    platt: NDArray[np.float64] | None


@dataclass(frozen=True)
class Run:
    """What one call of ``train`` works on: all spots and targets, the rows used, the start, the folder for checkpoints."""

    spots: Spots
    targets: Targets
    rows: NDArray[np.int64]
    validation: NDArray[np.int64]
    start: Start | None
    directory: Path | None
