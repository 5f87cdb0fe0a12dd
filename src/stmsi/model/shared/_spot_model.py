"""Models that are trained by one fit to what was read of the data."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from stmsi._messages import warns_once
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.model.shared._training_data import TrainingData
from stmsi.model.shared._whole_training import whole_or_as_before

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from stmsi.model.shared._setup import Setup


class SpotModel(HurdleModel):
    """Training is to read the data, and to fit; the members of a stack are fitted to what was read once for all of them."""

    _setup: Setup
    _reads_matrix: ClassVar[bool] = False
    """Whether fitting reads the expression in the AnnData, and not what was read of it alone."""

    @property
    def _fits_from_disk(self) -> bool:
        """Whether fitting can leave on disk what grows with the spots."""
        return False

    @property
    def is_trained(self) -> bool:
        """Whether ``train`` has been called."""
        return self.state_ is not None

    @warns_once
    @whole_or_as_before
    def train(
        self,
        train_idx: ArrayLike | None = None,
        validation_idx: ArrayLike | None = None,
        *,
        show_progress_bar: bool | None = None,
    ) -> None:
        """Train on the spots that have MSI.

        Parameters
        ----------
        train_idx
            Spots to train on (positions or mask); `None`: all with MSI that are not in `validation_idx`.
        validation_idx
            Spots that set thresholds and intervals; `None`: the held-out predictions of the inner folds do.
        show_progress_bar
            `None` follows ``stmsi.settings.progress_bar``.

        Raises
        ------
        ValueError
            No training spot has MSI, or too few spots or positions for inner folds. A member of a stack that fails is
            named.

        Notes
        -----
        When training fails or is interrupted, the model is what it was before.
        """
        self._fit(TrainingData.read(self.adata, self._setup, train_idx, validation_idx), show_progress_bar)

    @abstractmethod
    def _fit(self, data: TrainingData, show_progress_bar: bool | None) -> None:
        """Fit to what was read of the data."""
