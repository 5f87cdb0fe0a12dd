"""From spectra to a list of ions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.ids import safe_ids
from stmsi._core.peaks.calibrants import Calibrants
from stmsi._core.peaks.mass_errors import MassErrors, mass_errors, recalibrated
from stmsi._core.peaks.picking import Noise, highest_within, profile_peaks, signal_to_noise
from stmsi._core.peaks.profile_axis import (
    bin_spacing,
    common_profile,
    fill_gaps,
    looks_like_profile,
    windows_of_bins,
)
from stmsi._core.spectra.common_ions import reference_ions
from stmsi._core.spectra.extraction import spectra_of
from stmsi._core.spectra.spectrum_arrays import Unit, mz_labels, windows
from stmsi._data.checks import check_choice, check_nonnegative, check_positive, check_share, listing
from stmsi._data.keys import Key
from stmsi._data.stale import mark_stale
from stmsi._data.tables import as_csr, table_sections, table_to_change
from stmsi._imzml.extract import (
    Options,
    count_ions,
    extract,
    fill_cells,
    plan_axis,
    plan_targets,
    profile_spacing,
    spread,
)
from stmsi._imzml.file import ImzmlFile
from stmsi._imzml.traits import Kinds, check_kinds, choose_spectra, warn_of_mixtures
from stmsi._settings import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._core.peaks.profile_axis import BinSpacing
    from stmsi._core.spectra.extraction import Rows

Spectrum = Literal["mean", "skyline"]
_SAMPLE = 2000  # spectra that are searched for calibrants
_BESIDE = 0.05  # share of m/z beyond the last calibrant that its error still holds for
_COLUMNS = (Key.var.MZ, "frequency", "intensity", "snr")


class _Options(NamedTuple):
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
    options = _Options(
        spectrum, float(snr), float(tolerance), unit, float(min_frequency), profile, known, float(search), recalibrate,
        show_progress_bar,
    )  # fmt: skip
    if isinstance(data, str | Path):
        kinds = Kinds(polarity, spectrum_type, ms_level)
        check_kinds(kinds)
        return _of_file(Path(data), options, kinds)
    table, changed = table_to_change(data, table_key, copy=copy, rows="pixels")
    _reduce(table, options)
    mark_stale(data if changed is None else changed, "peaks", table_sections(table), table)
    return changed


def _of_file(path: Path, options: _Options, kinds: Kinds) -> pd.DataFrame:
    with ImzmlFile(path) as file:
        traits = file.index.traits
        chosen = choose_spectra(traits, kinds, np.arange(len(file.xyz)), path.name)
        warn_of_mixtures(traits, chosen, path.name)
        stored = traits.name("spectrum_type", chosen)
        shared = file.shared_axis(chosen)
        spacing = None
        if shared is not None:
            seen = _Statistics(len(shared[0]))
            extract(file, chosen, plan_axis(*shared), options.reading(), seen)
            spacing = _spacing_of_axis(shared[0], options, stored)
            found = _from_axis(shared[0], seen, len(chosen), options, spacing)
        else:
            spacing = profile_spacing(file, chosen, options.profile)
            found = (
                _from_centroids(file, chosen, options)
                if spacing is None
                else _from_profiles(file, chosen, options, spacing)
            )
        if spacing is not None:
            found = _with_frequency(found, file, chosen, options)
        found = options.recurring(found)
        options.require_some(found, path.name)
        frame = _with_masses(found, _calibrant_errors(file, chosen, options, found, spacing), options)
    logger.info("%s: %d ions", path.name, len(frame))
    return frame


class _Statistics:
    """Sum, largest value and number of values above 0 of each column; the rows are not kept."""

    def __init__(self, n: int) -> None:
        self.total, self.top, self.count = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)

    def append(self, rows: Rows) -> None:
        """Count the rows of the next chunk."""
        self.total += np.bincount(rows.indices, weights=rows.data, minlength=len(self.total))
        self.count += np.bincount(rows.indices, minlength=len(self.count))
        np.maximum.at(self.top, rows.indices, rows.data)

    def spectrum(self, n: int, options: _Options) -> NDArray[np.float64]:
        """The mean of `n` spectra, or their skyline."""
        return self.total / n if options.spectrum == "mean" else self.top


def _spacing_of_axis(axis: NDArray[np.float64], options: _Options, spectrum_type: str) -> BinSpacing | None:
    """Distance of the bins of a shared axis, `None` where it is a list of centroids."""
    profile = options.profile
    if profile is None:
        profile = spectrum_type == "profile" or (spectrum_type != "centroid" and looks_like_profile(axis))
    spacing = bin_spacing(axis) if profile else None
    return spacing if spacing is None or options.profile or spacing.credible else None


def _from_axis(
    axis: NDArray[np.float64], seen: _Statistics, n: int, options: _Options, spacing: BinSpacing | None
) -> pd.DataFrame:
    """Ions of spectra that share an axis; column ``bin`` has the summit. With `spacing`, they are profiles."""
    whole, frequency = seen.spectrum(n, options), seen.count / n
    if spacing is not None:
        found = _peaks_of_profile(axis, whole, options, spacing)
        return found.assign(frequency=frequency[found["bin"]])
    ratio = _recurrence_snr(whole, frequency, options)
    kept = np.flatnonzero((ratio >= options.snr) & (whole > 0))
    columns = (kept, axis[kept], frequency[kept], whole[kept], ratio[kept])
    return pd.DataFrame(dict(zip(("bin", *_COLUMNS), columns, strict=True)))


def _peaks_of_profile(
    axis: NDArray[np.float64], whole: NDArray[np.float64], options: _Options, spacing: BinSpacing
) -> pd.DataFrame:
    """Ions of one profile; column ``bin`` has the summit. Where zeros are not stored, there are bins all the same."""
    filled, place = fill_gaps(axis, spacing)
    values = np.zeros(len(filled))
    values[place] = whole
    peaks = profile_peaks(filled, values, options.tolerance, options.unit, options.snr)
    columns = (np.searchsorted(place, peaks.bin), peaks.mz, np.nan, peaks.height, peaks.snr, peaks.width)
    return pd.DataFrame(dict(zip(("bin", *_COLUMNS, Key.var.PEAK_WIDTH), columns, strict=True)))


def _recurrence_snr(
    whole: NDArray[np.float64], frequency: NDArray[np.float64], options: _Options
) -> NDArray[np.float64]:
    """Signal-to-noise ratio where the noise is what does not recur."""
    rare = whole[(frequency < options.min_frequency) & (whole > 0)]
    baseline = np.median(rare) if rare.size else 0.0
    sigma = 1.4826 * np.median(np.abs(rare - baseline)) if rare.size else 0.0
    return signal_to_noise(whole, Noise(np.full(len(whole), baseline), np.full(len(whole), sigma)))


def _from_profiles(file: ImzmlFile, chosen: NDArray[np.intp], options: _Options, spacing: BinSpacing) -> pd.DataFrame:
    """Ions of profiles that do not share an axis."""
    cells = fill_cells(file, chosen, options.reading(), spacing)
    if cells is None:
        return pd.DataFrame(columns=["bin", *_COLUMNS, Key.var.PEAK_WIDTH], dtype=np.float64)
    mean = options.spectrum == "mean"
    axis, whole = common_profile(cells, spacing, mean=mean)
    return _peaks_of_profile(axis, whole / len(chosen) if mean else whole, options, spacing)


def _with_frequency(found: pd.DataFrame, file: ImzmlFile, chosen: NDArray[np.intp], options: _Options) -> pd.DataFrame:
    """Share of the profiles in which the reader will find each ion."""
    if len(found) == 0:
        return found
    reading, counts = options.reading(), _Statistics(len(found))
    width = found[Key.var.PEAK_WIDTH].to_numpy()
    plan = plan_targets(file, chosen, found[Key.var.MZ].to_numpy(), reading, width=width, profile=True)
    extract(file, chosen, plan, reading, counts)
    return found.assign(frequency=counts.count / len(chosen))


def _from_centroids(file: ImzmlFile, chosen: NDArray[np.intp], options: _Options) -> pd.DataFrame:
    """Ions of centroided spectra: peaks that lie close together."""
    counts = count_ions(file, chosen, options.reading())
    whole = counts.intensity / len(chosen) if options.spectrum == "mean" else counts.top
    ratio = _recurrence_snr(whole, counts.spectra / len(chosen), options)
    ions, kept = reference_ions(counts, len(chosen), options.min_frequency)
    found = pd.DataFrame(
        {Key.var.MZ: ions.mz, "frequency": ions.frequency, "intensity": whole[kept], "snr": ratio[kept]}
    )
    found = found[found["snr"] >= options.snr].reset_index(drop=True)
    return _joined(found, file, chosen, options)


def _joined(found: pd.DataFrame, file: ImzmlFile, chosen: NDArray[np.intp], options: _Options) -> pd.DataFrame:
    """Ions within the tolerance of a higher one belong to it: noise beside an ion may have led to a cut through it."""
    owner = highest_within(found[Key.var.MZ], found["intensity"], options.tolerance, options.unit)
    joined = np.flatnonzero(np.bincount(owner, minlength=len(found)) > 1)
    if joined.size == 0:
        return found
    weight = np.bincount(owner, found["frequency"], len(found))
    mean = np.bincount(owner, found["frequency"] * found[Key.var.MZ], len(found)) / np.where(weight > 0, weight, 1)
    reading = options.reading("sum" if options.spectrum == "mean" else "max")
    counts = _Statistics(joined.size)
    extract(file, chosen, plan_targets(file, chosen, mean[joined], reading), reading, counts)
    whole = counts.spectrum(len(chosen), options)
    columns = [Key.var.MZ, "frequency", "intensity"]
    found.loc[joined, columns] = np.column_stack([mean[joined], counts.count / len(chosen), whole])
    return found[owner == np.arange(len(found))].reset_index(drop=True)


def _calibrant_errors(
    file: ImzmlFile, chosen: NDArray[np.intp], options: _Options, found: pd.DataFrame, spacing: BinSpacing | None
) -> MassErrors | None:
    """Errors of the calibrants in spectra spread over the acquisition, in profiles by the centres of their peaks."""
    if options.calibrants.size == 0:
        return None
    picked = spread(chosen, _SAMPLE)
    file.lengths(picked)
    parts = [picked[start : start + 64] for start in range(0, len(picked), 64)]
    low, high = windows(options.calibrants, options.search)
    near = Calibrants(options.calibrants, low, high)
    if spacing is not None:
        width = np.interp(options.calibrants, found[Key.var.MZ], found[Key.var.PEAK_WIDTH])
        near = near._replace(width=width, bins=width / spacing.at(options.calibrants))
    seen = [near.find(*spectra_of(file.chunk(part)), len(part)) for part in parts]
    errors, height = (np.vstack(values) for values in zip(*seen, strict=True))
    return mass_errors(errors, picked / max(len(file.xyz) - 1, 1), height)


def _with_masses(found: pd.DataFrame, errors: MassErrors | None, options: _Options) -> pd.DataFrame:
    """The list named by m/z, free of the calibrants' error where asked for, with their errors in ``attrs``."""
    frame = found.drop(columns="bin", errors="ignore")
    calibration: dict[str, list[float]] = {}
    if errors is not None:
        columns = (options.calibrants, errors.median, errors.spread, errors.drift, errors.found)
        names = (Key.var.MZ, "error_ppm", "spread_ppm", "drift_ppm", "spectra")
        calibration = {name: column.tolist() for name, column in zip(names, columns, strict=True)}
        _warn_of_drift(errors, options)
        if options.recalibrate:
            frame[Key.var.MEASURED_MZ] = frame[Key.var.MZ]
            frame[Key.var.MZ] = recalibrated(frame[Key.var.MZ], options.calibrants, errors.median)
            _warn_of_range(frame[Key.var.MZ].to_numpy(), errors, options)
    frame.index = pd.Index(safe_ids(mz_labels(frame[Key.var.MZ].to_numpy())))
    frame.attrs["calibration"] = calibration
    return frame


def _warn_of_drift(errors: MassErrors, options: _Options) -> None:
    if not errors.found.any():
        warnings.warn("No calibrant was found; make search= larger or name others.", stacklevel=4)
        return
    calibrants = options.calibrants
    reach = options.tolerance * (np.ones(len(calibrants)) if options.unit == "ppm" else 1e6 / calibrants)
    drift = np.abs(errors.drift)
    worst = int(np.nanargmax(np.where(np.isfinite(drift), drift - reach, -np.inf)))
    if np.isfinite(drift[worst]) and drift[worst] > reach[worst]:
        warnings.warn(
            f"The mass of m/z {calibrants[worst]:.4f} drifts by {errors.drift[worst]:.1f} ppm over the acquisition, more than "
            f"the tolerance of {reach[worst]:.1f} ppm; make tolerance= larger or recalibrate the spectra.",
            stacklevel=4,
        )


def _warn_of_range(mz: NDArray[np.float64], errors: MassErrors, options: _Options) -> None:
    """Warn of ions beyond the calibrants: their correction is a guess."""
    known = options.calibrants[np.isfinite(errors.median)]
    if known.size == 0:
        return
    outside = int(((mz < known[0] * (1 - _BESIDE)) | (mz > known[-1] * (1 + _BESIDE))).sum())
    if outside:
        reach = f"m/z {known[0]:.4f}" + (f" to {known[-1]:.4f}" if known.size > 1 else "")
        warnings.warn(
            f"{outside} of {len(mz)} ions lie outside of the calibrants that were found ({reach}) and are corrected by the error "
            "at their end. Name calibrants that span the ions.",
            stacklevel=4,
        )


def _reduce(table: AnnData, options: _Options) -> None:
    """Put ions into the place of the bins of a table."""
    if Key.var.MZ not in table.var:
        msg = f"var has no column {Key.var.MZ!r}, the m/z of each bin in Da; found {listing(table.var.columns)}."
        raise KeyError(msg)
    mz = pd.to_numeric(table.var[Key.var.MZ], errors="coerce").to_numpy(np.float64)
    if not (np.isfinite(mz) & (mz > 0)).all():
        msg = f"{int((~(mz > 0)).sum())} bins have no m/z in var[{Key.var.MZ!r}]; fill them in or leave these bins out."
        raise ValueError(msg)
    order = np.argsort(mz, kind="stable")
    X = as_csr(table.X)
    check_nonnegative(X, "MSI intensities")
    seen = _Statistics(len(mz))
    seen.total = np.asarray(X.sum(axis=0), np.float64).ravel()[order]
    seen.top = X.max(axis=0).toarray().ravel().astype(np.float64)[order]
    seen.count = np.asarray((X > 0).sum(axis=0)).ravel()[order]
    stored = [a.get("spectrum_type") for a in table.uns.get(Key.uns.MSI, {}).get("attrs", {}).values()]
    kind = str(stored[0]) if stored and len(set(stored)) == 1 else ""
    spacing = _spacing_of_axis(mz[order], options, kind)
    found = options.recurring(_from_axis(mz[order], seen, table.n_obs, options, spacing))
    options.require_some(found, "The table")
    summit, ions = found["bin"].to_numpy(np.intp), found[Key.var.MZ].to_numpy()
    errors = None
    if options.calibrants.size:  # a list knows no time, so no drift
        near = Calibrants(options.calibrants, *windows(options.calibrants, options.search))
        errors = mass_errors(
            near.find(ions, found["intensity"].to_numpy(), np.zeros(len(ions), np.intp), 1)[0], np.zeros(1)
        )
    frame = _with_masses(found, errors, options)
    # bins within the tolerance of a summit, the summit always, each in one ion at most: the nearest
    low, high = windows(ions, options.tolerance, options.unit)
    if spacing is not None:
        low, high = windows_of_bins(ions, low, high, spacing, found[Key.var.PEAK_WIDTH].to_numpy())
    nearest = np.searchsorted((ions[1:] + ions[:-1]) / 2, mz[order])
    inside = (mz[order] >= low[nearest]) & (mz[order] <= high[nearest])
    inside[summit], nearest[summit] = True, np.arange(len(summit))
    bins = np.flatnonzero(inside)
    share = sp.csr_matrix((np.ones(bins.size, np.float32), (order[bins], nearest[bins])), shape=(len(mz), len(summit)))
    reduced = {name: sp.csr_matrix(as_csr(table.layers[name]) @ share) for name in table.layers if name is not None}
    X = sp.csr_matrix(X @ share, dtype=np.float32)
    calibration = frame.attrs.pop("calibration")
    table._inplace_subset_var(order[summit])
    table.X = X
    for name, layer in reduced.items():
        table.layers[name] = layer
    table.var_names = frame.index
    table.var[Key.var.NAME] = frame.index.astype(str)
    for column in frame:
        table.var[column] = frame[column].to_numpy()
    recorded = ("spectrum", "snr", "tolerance", "unit", "min_frequency", "search", "recalibrate")
    params = {name: getattr(options, name) for name in recorded}
    table.uns[Key.uns.PEAKS] = {"params": params, "calibration": pd.DataFrame(calibration)}
    logger.info("%d bins became %d ions.", len(mz), table.n_vars)
