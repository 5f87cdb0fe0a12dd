"""From spectra to a list of ions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from stmsi._core.spectra.spectrum_arrays import Unit
from stmsi._data.checks import check_choice, check_positive, check_share, listing
from stmsi._data.keys import Key
from stmsi._data.stale import mark_stale
from stmsi._data.tables import table_sections, table_to_change
from stmsi._imzml.traits import Kinds, check_kinds
from stmsi.pp._picking.imzml_ions import ions_of_file
from stmsi.pp._picking.options import PickOptions, Spectrum
from stmsi.pp._picking.table_ions import reduce_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


def pick_peaks(
    data: SpatialData | AnnData | str | Path,
    *,
    spectrum: Spectrum = "mean",
    snr: float = 3.0,
    tolerance: float = 5.0,
    unit: Unit = "ppm",
    min_frequency: float = 0.01,
    profile: bool | None = None,
    calibrants: Sequence[float] | None = None,
    search: float = 20.0,
    recalibrate: bool = False,
    polarity: Literal["positive", "negative"] | None = None,
    spectrum_type: Literal["profile", "centroid"] | None = None,
    ms_level: int | None = None,
    table_key: str = Key.table.MSI,
    copy: bool = False,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame | SpatialData | AnnData | None:
    r"""List the ions of an imzML file, or reduce the bins of an MSI table to them.

    All spectra become one: their mean, or the skyline (the largest intensity at each m/z, which also shows ions of a few
    pixels). In profiles, ions are summits with a height above the baseline and a prominence of `snr` times the noise, which is
    measured by medians around each summit. They are no narrower than half the other peaks, and higher than noise gets in a
    spectrum of so many bins. Their m/z is the maximum of a Gaussian. Profiles that do not share an axis are brought to one,
    so that the ions do not depend on how a file stores them. In centroided spectra, peaks no further apart than `tolerance`
    are one ion, and the noise is that of the peaks that do not recur.

    .. math:: \mathrm{noise} = 1.4826\ \mathrm{median}(|I - \mathrm{median}(I)|)

    Parameters
    ----------
    data
        Path of an imzML file; or a SpatialData with an MSI table, or that table, with m/z in ``var["mz"]``.
    spectrum
        ``"mean"`` or ``"skyline"``.
    snr
        Smallest signal-to-noise ratio.
    tolerance
        Half width of an ion in `unit`: summits closer than this are one. Bins of profiles belong to an ion within this, within
        half the width of its peak, or next to its m/z, whichever is more.
    unit
        ``"ppm"`` or ``"Da"``.
    min_frequency
        Share of the spectra, 0 to 1, that must hold an intensity above 0 there.
    profile
        Whether the spectra are profiles; `None`: what the file says, or whether their m/z are dense and evenly spaced.
    calibrants
        Exact m/z (Da) of ions that are known to be there, whose mass error and drift over the acquisition are measured; in
        profiles by the centres of their peaks, as for all ions.
    search
        How far from a calibrant its peak is looked for, in ppm.
    recalibrate
        Whether to free the m/z from the error of the calibrants: constant, or with three or more a straight line.
    polarity, spectrum_type, ms_level
        Which spectra of a file to look at, as in :func:`stmsi.io.read_imzml`; `None`: all.
    table_key
        The MSI table.
    copy
        Return a changed copy instead of working in place.
    show_progress_bar
        Whether to show progress; `None` follows ``stmsi.settings.progress_bar``.

    Returns
    -------
    For a path: a DataFrame of ions, ascending, that :func:`stmsi.io.read_imzml` takes as ``mz=``. Columns ``mz`` (Da),
    ``frequency``, ``intensity`` (of the mean spectrum or skyline), ``snr``; of profiles ``peak_width`` (full width at half
    maximum, Da), which the reader takes at least; with `recalibrate` also ``mz_measured``, where the reader looks. ``attrs["calibration"]`` holds the errors of the calibrants.

    For a table: `None`, or with ``copy=True`` the changed copy. Ions take the place of the bins, in ``X`` and all layers;
    ``var`` gets the columns above and is named by m/z; ``uns["pick_peaks"]`` holds ``params`` and ``calibration``.

    Raises
    ------
    KeyError
        The table has no m/z.
    ValueError
        No ion is found, parameters are out of range, or the file is broken.

    Warns
    -----
    UserWarning
        Where the masses drift by more than `tolerance`, or no calibrant is found, or `recalibrate` corrects ions outside of the
        calibrants, or spectra of several kinds are looked at together.

    Notes
    -----
    Summits, prominences and widths: scipy.signal. Centres: Guo 2011, https://doi.org/10.1109/MSP.2011.941846.
    Noise by the median absolute deviation: Rousseeuw & Croux 1993, https://doi.org/10.1080/01621459.1993.10476408.

    Examples
    --------
    >>> import tempfile, stmsi
    >>> from pyimzml.ImzMLWriter import ImzMLWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ImzMLWriter(f"{folder}/section.imzML", mode="processed") as writer:
    ...         for x in range(1, 9):
    ...             writer.addSpectrum([104.1071, 500.0 + x, 760.5850], [5.0, 1.0, 9.0], (x, 1))
    ...     ions = stmsi.pp.pick_peaks(f"{folder}/section.imzML", min_frequency=0.5)
    >>> ions["mz"].round(4).tolist()
    [104.1071, 760.585]
    """
    check_choice(spectrum, get_args(Spectrum), "spectrum")
    check_choice(unit, get_args(Unit), "unit")
    check_share(min_frequency, "min_frequency")
    check_positive(tolerance, "tolerance")
    check_positive(snr, "snr")
    check_positive(search, "search", "ppm")
    known = np.sort(np.asarray([] if calibrants is None else list(calibrants), dtype=np.float64))
    if known.size == 0 and recalibrate:
        msg = "recalibrate=True needs calibrants=, the exact m/z (Da) of ions that are known to be there."
        raise ValueError(msg)
    if not (np.isfinite(known).all() and (known > 0).all()):
        msg = f"calibrants must be positive m/z in Da, found {listing(known[~(known > 0)])}."
        raise ValueError(msg)
    options = PickOptions(
        spectrum, float(snr), float(tolerance), unit, float(min_frequency), profile, known, float(search), recalibrate,
        show_progress_bar,
    )  # fmt: skip
    if isinstance(data, str | Path):
        kinds = Kinds(polarity, spectrum_type, ms_level)
        check_kinds(kinds)
        return ions_of_file(Path(data), options, kinds)
    table, changed = table_to_change(data, table_key, copy=copy, rows="pixels")
    reduce_table(table, options)
    mark_stale(data if changed is None else changed, "peaks", table_sections(table), table)
    return changed
