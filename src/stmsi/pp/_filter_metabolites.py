"""Leave out ions that cannot be learnt or are not of the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.chemistry.adducts import MATRICES, Polarity, matrix_name, matrix_peaks
from stmsi._core.chemistry.mass_annotation import match_masses
from stmsi._data.checks import check_choice, check_nonnegative, check_share, listing
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, polarity_of, sections_of, table_to_change
from stmsi._settings import logger
from stmsi.pp._msi_table import measured_ions, tissue_of
from stmsi.pp._select_spatially_variable import moran_of_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def filter_metabolites(
    data: SpatialData | AnnData,
    *,
    min_prevalence: float = 0.01,
    min_intensity: float = 0.0,
    min_samples: int = 1,
    min_moran: float | None = None,
    exclude_mz: Sequence[float] | None = None,
    matrix: str | None = None,
    polarity: Polarity | None = None,
    ppm: float = 5.0,
    tissue_key: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.MSI,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Keep ions that are present in enough pixels, intense enough and not excluded.

    Parameters
    ----------
    data
        SpatialData with an MSI table, or that table. ``X`` sparse or dense.
    min_prevalence
        Share of a section's pixels above zero that an ion must reach; ions that are zero everywhere always go.
    min_intensity
        Mean of an ion's values above zero in a section that it must reach.
    min_samples
        In how many sections both must hold.
    min_moran
        Moran's I, averaged over sections, that an ion must reach: ``var["moran_i"]`` where
        :func:`stmsi.pp.select_spatially_variable` has written it, else computed with its defaults.
    exclude_mz
        m/z (Da) of matrix peaks or contaminants to leave out.
    matrix
        MALDI matrix whose own ions to leave out: ``"DHB"``, ``"CHCA"``, ``"SA"``, ``"DHAP"``, ``"9-AA"``, ``"DAN"``,
        ``"NEDC"``, ``"norharmane"`` or ``"FMP-10"``. They are clusters of up to three molecules with protons, sodium and
        potassium (Keller & Li, J. Am. Soc. Mass Spectrom. 2000, 11, 88), without fragments and adducts of the solvent:
        add what your blank shows to `exclude_mz`. A metabolite of the same mass goes too.
    polarity
        ``"positive"`` or ``"negative"``, for `matrix`; `None`: from ``uns["msi"]["attrs"]``.
    ppm
        Relative window around `exclude_mz` and the ions of `matrix`.
    tissue_key
        Boolean column of ``obs``, such as ``"on_tissue"``: other pixels do not count.
    sample_key, table_key
        Column of ``obs`` with the section name; the MSI table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Subsets the ions of the table and adds ``var["prevalence"]``, the
    share of pixels above zero in the sections that measured the ion.

    Raises
    ------
    ValueError
        Nothing would be left, parameters are out of range, or intensities are negative, infinite or NaN.
    KeyError
        m/z, raster positions or a column that an option needs are not there.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.filter_metabolites(sdata, min_prevalence=0.2)
    >>> sdata.tables["msi"].n_vars
    10
    """
    check_share(min_prevalence, "min_prevalence")
    msi, changed = table_to_change(data, table_key, copy=copy, rows="pixels")
    sample = sections_of(msi, sample_key)
    names = list(dict.fromkeys(sample))
    tissue = tissue_of(msi, tissue_key)
    if not 1 <= min_samples <= len(names):
        msg = f"min_samples must lie between 1 and the number of sections ({len(names)}), found {min_samples!r}."
        raise ValueError(msg)
    X = as_csr(msi.X)
    check_nonnegative(X, "MSI intensities")
    own = np.stack([(sample == n) & tissue for n in names])
    indicator = sp.csr_matrix(own.astype(np.float64))
    detected = (indicator @ (X > 0).astype(np.float64)).toarray()
    intense = (indicator @ X).toarray() / np.maximum(detected, 1) >= min_intensity
    n_pixels = np.maximum(own.sum(axis=1), 1)[:, None]
    keep = ((detected / n_pixels >= min_prevalence) & (detected > 0) & intense).sum(axis=0) >= min_samples
    excluded = [] if exclude_mz is None else [float(m) for m in exclude_mz]
    if matrix is not None:
        kind = matrix_name(matrix)
        check_choice(kind, MATRICES, "matrix")
        excluded += matrix_peaks(kind, polarity_of(msi, polarity)).values()
    if excluded:
        if Key.var.MZ not in msi.var:
            what = "exclude_mz" if matrix is None else "matrix"
            msg = f"{what} needs var[{Key.var.MZ!r}] with the m/z of each ion; found {listing(msi.var.columns)}."
            raise KeyError(msg)
        mz = pd.to_numeric(msi.var[Key.var.MZ]).to_numpy(dtype=float)
        keep[match_masses(mz, np.array(excluded), ppm)[0]] = False
    if min_moran is not None:
        known_moran = Key.var.MORAN in msi.var
        moran = (
            msi.var[Key.var.MORAN]
            if known_moran
            else moran_of_sections(msi, 8, None, tissue_key, sample_key)[0].mean(axis=1)
        )
        keep &= moran.to_numpy(float) >= min_moran
    if not keep.any():
        msg = (
            f"No ion passes (largest prevalence {(detected / n_pixels).max():.3g}); lower min_prevalence, "
            "min_intensity, min_samples or min_moran, or exclude less."
        )
        raise ValueError(msg)
    known = np.stack([measured_ions(msi, n) for n in names])
    msi.var[Key.var.PREVALENCE] = detected.sum(axis=0) / np.maximum((n_pixels * known).sum(axis=0), 1)
    logger.info("Keeping %d of %d ions.", int(keep.sum()), len(keep))
    msi._inplace_subset_var(keep)
    return changed
