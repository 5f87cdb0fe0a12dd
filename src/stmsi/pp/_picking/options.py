"""What makes an ion in `pp.pick_peaks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from stmsi._imzml.extract import Options

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from stmsi._core.spectra.spectrum_arrays import Unit

Spectrum = Literal["mean", "skyline"]


class PickOptions(NamedTuple):
    """What makes an ion, and the calibrants (Da) to look for."""

    spectrum: Spectrum
    snr: float
    tolerance: float
    unit: Unit
    min_frequency: float
    profile: bool | None
    calibrants: NDArray[np.float64]
    search: float
    recalibrate: bool
    show: bool | None

    def reading(self, reduce: Literal["sum", "max"] = "max") -> Options:
        """The same for the reader of imzML."""
        return Options(self.tolerance, self.unit, reduce, self.min_frequency, self.show)

    def recurring(self, found: pd.DataFrame) -> pd.DataFrame:
        """Ions that occur in enough spectra."""
        return found[found["frequency"] >= self.min_frequency * (1 - 1e-9)].reset_index(drop=True)

    def require_some(self, found: pd.DataFrame, where: str) -> None:
        """Raise where there is no ion."""
        if len(found) == 0:
            msg = (
                f"{where}: no ion has a signal-to-noise ratio of {self.snr:g} and occurs in {self.min_frequency:.2%} of the "
                "spectra; lower snr or min_frequency."
            )
            raise ValueError(msg)
