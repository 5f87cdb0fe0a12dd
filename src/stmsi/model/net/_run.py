"""What one call of ``train`` works on, and the networks that come out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stmsi.model.shared._training_spots import TrainingSpots

if TYPE_CHECKING:
    from pathlib import Path

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

    def seen(self) -> TrainingSpots | None:
        """What finds the spots again that were trained, stopped or calibrated on, now and before; `None` where that is not known."""
        rows, before = np.union1d(self.rows, self.validation), None if self.start is None else self.start.state.seen
        if self.start is not None and before is None:
            return None
        of = TrainingSpots.of if before is None else before.with_others
        # a checkpoint asks again after each better epoch
        return self.spots.once(("seen", rows.tobytes()), lambda: of(self.spots, rows))
