"""Read the DESIUM deposit: DESI-MSI that is matched to the spots of Visium already."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.spatial import cKDTree

from stmsi._core.ids import safe_ids
from stmsi._core.spectra.spectrum_arrays import mz_from_names, mz_labels
from stmsi._data.checks import check_nonnegative, chosen, listing
from stmsi._data.containers import check_file, inside, open_h5ad
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_PITCH, VISIUM_SPOT_DIAMETER, msi_section, pixel_squares, st_section
from stmsi._data.tables import as_csr
from stmsi._settings import logger
from stmsi.io._text_table import check_intensities

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

_MSI, _MZ, _LOG = "msi", "mz_features", "log1p"
_ARRAY = ("array_row", "array_col")
_PATIENT = re.compile(r"^([A-Za-z]+_?\d+)")
_WHOLE = 0.05


def read_desium(
    path: str | Path | Iterable[str | Path],
    *,
    sample: str | Sequence[str] | None = None,
    patient: Mapping[str, str] | None = None,
    um_per_unit: float | None = None,
    spot_diameter: float = VISIUM_SPOT_DIAMETER,
) -> SpatialData:
    """Read sections of the DESIUM deposit: one h5ad a section, with MSI at the spots of Visium.

    Parameters
    ----------
    path
        One ``.h5ad``, several, or the folder that holds them. A file holds spots x genes, ``uns["msi"]`` (spots x ions),
        ``uns["mz_features"]`` (m/z of the ions, Da) and ``obsm["spatial"]``.
    sample
        Sections to read, by the names of their files; `None`: all.
    patient
        Patient of each section. By default the start of its name: ``BC_515_Section_1`` is of ``BC_515``.
    um_per_unit
        Micrometres per unit of ``obsm["spatial"]``. By default neighbouring spots lie 100 um apart, as on every Visium array.
    spot_diameter
        In micrometres.

    Returns
    -------
    SpatialData as made by :func:`stmsi.pp.combine`, in the coordinate system ``<sample>`` (micrometres). The deposit has
    brought the MSI to the spots: ``<sample>_pixels`` are squares of the width of a spot, one at each spot that has MSI, and
    aligned already. :func:`stmsi.pp.map_to_spots` gives every spot its own values. In the table ``st``, ``obs["patient"]``
    names the patient, and ``X`` holds counts: those of the file, else recovered from log1p of scaled counts, where the
    smallest value of a spot is one count. ``uns["msi"]["attrs"][<sample>]`` holds ``file``, ``um_per_unit`` and ``counts``
    (where they come from).

    Raises
    ------
    FileNotFoundError
        A file is missing, or a folder holds none.
    KeyError
        `sample` names a section that is not there, or a file lacks MSI, m/z or positions.
    ValueError
        Sizes do not go together, intensities are negative or partly NaN, or there are neither counts nor log1p.

    Warns
    -----
    UserWarning
        Counts cannot be recovered, so that expm1 of ``layers["log1p"]`` stands in for them.

    Notes
    -----
    Godfrey et al. 2025, https://doi.org/10.1002/anie.202502028; data https://doi.org/10.7910/DVN/GZFCWC. A spot whose
    MSI is all NaN was not covered: it gets no square, and so NaN.

    Examples
    --------
    >>> import tempfile, numpy as np, stmsi
    >>> from anndata import AnnData
    >>> xy = np.array([[0.0, 0.0], [200.0, 0.0], [100.0, 173.2]])
    >>> adata = AnnData(np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 4.0]]), obsm={"spatial": xy})
    >>> adata.uns["msi"] = np.array([[5.0, 0.0], [6.0, 1.0], [7.0, 2.0]])
    >>> adata.uns["mz_features"] = np.array([255.2330, 281.2486])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adata.write_h5ad(f"{folder}/LC_091.h5ad")
    ...     sdata = stmsi.datasets.read_desium(folder)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> sdata.tables["st"].obsm["msi"].to_numpy().round(3).tolist()
    [[5.0, 0.0], [6.0, 1.0], [7.0, 2.0]]
    """
    from stmsi.pp import align, combine

    files = _files(path)
    names = chosen(list(files), sample, "the files")
    st, msi = {}, {}
    for name in names:
        st[name], msi[name] = _section(files[name], name, patient or {}, um_per_unit, spot_diameter)
    sdata = combine(st, msi)
    align(sdata, transformation={name: np.eye(3) for name in names})
    return sdata


def _files(path: str | Path | Iterable[str | Path]) -> dict[str, Path]:
    """File of each section, by its safe name."""
    if isinstance(path, str | Path):
        given = Path(path)
        files = sorted(given.rglob("*.h5ad")) if given.is_dir() else [given]
        if not files:
            msg = f"{given} holds no .h5ad; found {inside(given)}."
            raise FileNotFoundError(msg)
    else:
        files = [Path(p) for p in path]
    names = [file.stem for file in files]
    if not files or len(set(names)) < len(names):
        msg = f"Every section needs one file with its own name; found {listing(files)}."
        raise ValueError(msg)
    return dict(zip(safe_ids(names), [check_file(file) for file in files], strict=True))


def _section(
    file: Path, name: str, patient: Mapping[str, str], um_per_unit: float | None, spot_diameter: float
) -> tuple[SpatialData, SpatialData]:
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    adata = open_h5ad(file)
    intensities, var = _ions(adata, file)
    xy, scale = _micrometres(adata, file, um_per_unit)
    counts, origin = _counts(adata, file)
    table = AnnData(counts, obs=adata.obs.copy(), var=adata.var.copy())
    table.obs.columns, table.var.columns = (pd.Index(safe_ids(f.columns)) for f in (table.obs, table.var))
    table.var_names_make_unique()
    found = _PATIENT.match(name)
    table.obs[Key.obs.PATIENT] = pd.Categorical([patient.get(name, found[1] if found else name)] * table.n_obs)
    st = st_section(table, xy, sample=name, spot_diameter=spot_diameter)

    covered = np.asarray(~np.isnan(intensities).all(axis=1))
    check_intensities(intensities[covered], var.index, file)
    row, col = np.zeros(len(xy), dtype=np.int64), np.arange(len(xy))  # counted through where the array is not told
    if all(key in adata.obs for key in _ARRAY) and not adata.obs.duplicated(list(_ARRAY)).any():
        row, col = (adata.obs[key].to_numpy(dtype=np.int64) for key in _ARRAY)
    attrs = {"format": "desium", "file": file.name, "um_per_unit": scale, "counts": origin, "frame": Key.st_frame(name)}
    msi = msi_section(
        intensities[covered], var, row[covered], col[covered], sample=name, pixel_size=spot_diameter, attrs=attrs
    )
    # squares at the spots instead of on a raster: the deposit holds no pixels
    corner = (xy[covered] - spot_diameter / 2) / spot_diameter
    squares = pixel_squares(corner[:, 1], corner[:, 0], spot_diameter)
    msi.shapes[Key.pixels(name)] = ShapesModel.parse(squares, transformations={Key.msi_frame(name): Identity()})
    msi.tables[Key.table.MSI].obsm[Key.obsm.SPATIAL] = xy[covered]
    return st, msi


def _ions(adata: AnnData, file: Path) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Intensities, shape (spots, ions), and the ions."""
    absent = [key for key in (_MSI, _MZ) if key not in adata.uns]
    if absent:
        msg = f"{file}: uns has no {listing(absent)}; found {listing(adata.uns)}. Is it a section of DESIUM?"
        raise KeyError(msg)
    value: Any = adata.uns[_MSI]
    values = np.asarray(value.toarray() if sp.issparse(value) else value, dtype=np.float64)
    names = np.asarray(adata.uns[_MZ]).ravel()
    if values.shape != (adata.n_obs, len(names)):
        msg = (
            f"{file}: uns['msi'] has the shape {values.shape}; expected ({adata.n_obs}, {len(names)}), the spots x the m/z "
            "of uns['mz_features']."
        )
        raise ValueError(msg)
    mz = mz_from_names(names) if names.dtype.kind in "OUST" else names.astype(np.float64)
    if not (np.isfinite(mz).all() and (mz > 0).all()):
        wrong = listing(names[~(np.isfinite(mz) & (mz > 0))])
        msg = f"{file}: uns['mz_features'] must hold m/z in Da, found {wrong}."
        raise ValueError(msg)
    return values, pd.DataFrame({Key.var.MZ: mz}, index=pd.Index(mz_labels(mz)))


def _micrometres(adata: AnnData, file: Path, um_per_unit: float | None) -> tuple[NDArray[np.float64], float]:
    if Key.obsm.SPATIAL not in adata.obsm:
        msg = f"{file} has no obsm['spatial'], the places of the spots; found {listing(adata.obsm.keys())}."
        raise KeyError(msg)
    xy = np.asarray(adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        msg = f"{file}: obsm['spatial'] must hold finite x and y of every spot, found shape {xy.shape}."
        raise ValueError(msg)
    if um_per_unit is None:
        pitch = float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])) if len(xy) > 1 else 0.0
        if not (np.isfinite(pitch) and pitch > 0):
            msg = f"{file}: the places of the spots do not tell their scale; pass um_per_unit=."
            raise ValueError(msg)
        um_per_unit = VISIUM_PITCH / pitch
        logger.info("%s: %.4g um per unit, from neighbouring spots %.4g units apart", file.name, um_per_unit, pitch)
    return xy * um_per_unit, float(um_per_unit)


def _counts(adata: AnnData, file: Path) -> tuple[sp.csr_matrix, str]:
    """Raw counts, and where they come from."""
    for where, values in (("X", adata.X), (f"layers[{_LOG!r}]", adata.layers.get(_LOG))):
        if values is None:
            continue
        matrix = as_csr(values, np.float32)
        check_nonnegative(matrix, f"Gene expression of {file} ({where})")
        if np.array_equal(matrix.data, np.rint(matrix.data)):
            return matrix, where
        counts = counts_of_log1p(matrix)
        if counts is not None:
            logger.info("%s: counts recovered from the log1p values of %s", file.name, where)
            return counts, f"{where}, recovered from log1p"
    if _LOG not in adata.layers:
        msg = (
            f"{file} holds no counts: X is neither whole numbers nor log1p of counts scaled spot by spot, and there is no "
            f"layer 'log1p'; layers: {listing(adata.layers)}."
        )
        raise ValueError(msg)
    text = f"{file.name}: the counts cannot be recovered from layers['log1p']; expm1 of it stands in for them."
    warnings.warn(text, stacklevel=4)
    return as_csr(adata.layers[_LOG], np.float32).expm1(), f"layers[{_LOG!r}], expm1"


def counts_of_log1p(values: sp.csr_matrix) -> sp.csr_matrix | None:
    """Counts of which `values` are log1p after each row was scaled, or `None` where they are not.

    The smallest value above 0 of a row is taken for one count; then all others must be whole numbers.
    """
    matrix = sp.csr_matrix(values, dtype=np.float64)
    matrix.eliminate_zeros()
    plain = np.expm1(matrix.data)
    size = np.diff(matrix.indptr)
    one = np.ones(len(size))
    full = size > 0
    if full.any():
        one[full] = np.minimum.reduceat(plain, matrix.indptr[:-1][full])
    ratio = plain / np.repeat(one, size)
    if not np.isfinite(ratio).all() or (np.abs(ratio - np.rint(ratio)) > _WHOLE).any():
        return None
    return sp.csr_matrix((np.rint(ratio).astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
