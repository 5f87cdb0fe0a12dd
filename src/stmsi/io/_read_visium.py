"""Read a Space Ranger output folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing
from stmsi._data.containers import arrays_of, check_file, check_folder, check_unpacked, inside, reading
from stmsi._data.keys import Key
from stmsi._data.position_units import note_unit
from stmsi._data.sections import VISIUM_SPOT_DIAMETER, check_sample_name, st_section
from stmsi._data.small_files import check_image, read_json
from stmsi._data.spot_scale import BY_ARRAY, TOLERATED, array_scale, factor_scale
from stmsi._settings import logger

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_IN_TISSUE, _ARRAY_ROW, _ARRAY_COL = "in_tissue", "array_row", "array_col"
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv")
_SCALE_FACTORS = "scalefactors_json.json"
_FACTORS = ("spot_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef")
_IMAGES = ("tissue_hires_image.png", "tissue_lowres_image.png")


def read_visium(
    path: str | Path,
    *,
    sample: str | None = None,
    spot_diameter: float = VISIUM_SPOT_DIAMETER,
    images: bool = True,
    keep_off_tissue: bool = False,
    counts_file: str | None = None,
) -> SpatialData:
    """Read the spots, counts and histology of a Space Ranger ``outs`` folder (Visium, versions 1 to 3).

    Positions become micrometres by the pitch of the array: neighbouring spots lie 100 um apart, which an affine fit of the
    pixel positions to the array positions measures.

    Parameters
    ----------
    path
        Folder with ``spatial/`` and the count matrix, as ``.h5`` or as a folder with ``matrix.mtx.gz``.
    sample
        Name of the section; by default the name of the folder (of its parent where it is called ``outs``).
    spot_diameter
        In micrometres.
    images
        Whether to keep the histology (the hires image, else the lowres one).
    keep_off_tissue
        Whether to keep spots outside the tissue; then the raw matrix is preferred to the filtered one.
    counts_file
        The count matrix inside `path` where its name is not the usual one: an ``.h5`` file or a folder.

    Returns
    -------
    SpatialData with table ``st`` (spots x genes, raw counts, float32 CSR; `var`: unique gene symbols as index,
    ``gene_ids``; `obs`: ``sample``, ``in_tissue``, ``array_row``, ``array_col``), circles ``<sample>_spots`` and, where
    there is one, the image ``<sample>_he``; all in micrometres in the coordinate system ``<sample>``. ``uns["st_units"]`` of the
    table keeps the micrometres of a full-resolution pixel.

    Raises
    ------
    FileNotFoundError
        The folder, the counts, the positions or the scale factors are missing.
    ValueError
        A file is broken, barcodes have no position, or no spot lies in the tissue.

    Warns
    -----
    UserWarning
        Pitch and scale factor disagree about the size of a pixel by more than 20 %.

    Notes
    -----
    The files are read by :func:`spatialdata_io.visium`. Scale factors:
    https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/spatial-outputs

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.io.read_visium("section_1/outs", sample="section_1")  # doctest: +SKIP
    """
    return visium_section(path, sample, spot_diameter, images, keep_off_tissue, counts_file)[0]


def visium_section(
    path: str | Path,
    sample: str | None,
    spot_diameter: float,
    images: bool,
    keep_off_tissue: bool,
    counts_file: str | None,
) -> tuple[SpatialData, float]:
    """What :func:`read_visium` returns, and the micrometres of a pixel of the hires image, where others place landmarks."""
    path = _check_folder(Path(path))
    folder = path.resolve()
    name = folder.parent.name if folder.name == "outs" else folder.name
    sample = safe_ids([name])[0] if sample is None else check_sample_name(sample)
    counts = _find_counts(path, counts_file, prefer_raw=keep_off_tissue)
    scale = _scale_factors(path)
    table, elements = _read(path, counts, sample)
    xy = np.asarray(table.obsm[Key.obsm.SPATIAL], dtype=float)
    um_per_px, source = _micrometres_per_pixel(table, xy, scale, sample)
    if not keep_off_tissue:
        on_tissue = table.obs[_IN_TISSUE].to_numpy() == 1
        if not on_tissue.any():
            msg = f"No spot of {path} lies in the tissue; pass keep_off_tissue=True to read the others."
            raise ValueError(msg)
        table, xy = table[on_tissue].copy(), xy[on_tissue]
    sdata = st_section(table, xy * um_per_px, sample=sample, spot_diameter=spot_diameter)
    note_unit(sdata.tables[Key.table.ST], table, sample, um_per_px, source)
    if images:
        _add_image(sdata, elements, scale, um_per_px, sample)
    logger.info("%s: %d spots x %d genes, %.4g um per pixel", sample, *table.shape, um_per_px)
    return sdata, um_per_px / scale["tissue_hires_scalef"]


def _check_folder(path: Path) -> Path:
    check_folder(path, "the output of Space Ranger (outs)")
    if not (path / "spatial").is_dir():
        hint = f" Try {path / 'outs'}." if (path / "outs" / "spatial").is_dir() else ""
        msg = f"{path} is no Space Ranger output: it has no folder 'spatial'; found {inside(path)}.{hint}"
        raise FileNotFoundError(msg)
    if not any((path / "spatial" / name).exists() for name in _POSITIONS):
        hint = (
            " Visium HD (tissue_positions.parquet): read it with spatialdata_io.visium_hd."
            if list(path.glob("**/*.parquet"))
            else ""
        )
        msg = f"{path / 'spatial'} has none of {listing(_POSITIONS)}.{hint}"
        raise FileNotFoundError(msg)
    return path


def _find_counts(path: Path, counts_file: str | None, *, prefer_raw: bool) -> str:
    """Name of the count matrix, relative to the folder, as spatialdata-io takes it."""
    usual = [f"{kind}_feature_bc_matrix" for kind in (("raw", "filtered") if prefer_raw else ("filtered",))]
    for name in usual if counts_file is None else [counts_file]:
        if (path / name / "matrix.mtx.gz").exists():
            return f"{name}/matrix.mtx.gz"
        if (path / name).is_file():
            return name
        h5 = sorted(p.name for p in path.glob(f"*{name}.h5")) if counts_file is None else []
        if len(h5) == 1:
            return h5[0]
        if h5:
            msg = f"{path} holds several count matrices: {listing(h5)}; name one by counts_file=."
            raise ValueError(msg)
    wanted = counts_file or "filtered_feature_bc_matrix.h5 (or a folder of that name with matrix.mtx.gz)"
    msg = f"{path} has no counts {wanted}; found {inside(path)}. Name the file by counts_file=."
    raise FileNotFoundError(msg)


def _scale_factors(path: Path) -> dict[str, float]:
    file = path / "spatial" / _SCALE_FACTORS
    if not file.exists():
        msg = f"There is no {file}; Space Ranger writes it beside the tissue positions."
        raise FileNotFoundError(msg)
    scale = read_json(file, "the scale factors of Space Ranger")
    missing = [k for k in _FACTORS if k not in scale]
    if missing:
        msg = f"{file} lacks {listing(missing)}; found {listing(scale)}."
        raise ValueError(msg)
    numbers = {key: float(value) for key, value in scale.items() if isinstance(value, int | float)}
    wrong = [key for key in _FACTORS if key not in numbers]
    if wrong:
        msg = f"{file}: {listing(wrong)} must be numbers; copy the file again."
        raise ValueError(msg)
    return numbers


def _read(path: Path, counts: str, sample: str) -> tuple[AnnData, dict[str, Any]]:
    """Counts with positions in full-resolution pixels, and the images, by spatialdata-io."""
    import spatialdata_io

    _check_files(path, counts)
    what = f"Space Ranger output: the fault lies in {counts}, or in a file of the folder 'spatial'"
    with warnings.catch_warnings(), reading(path, what, "copy them again"):
        # repeated gene symbols (made unique below) and the deprecations inside scanpy, spatialdata and spatialdata-io
        warnings.simplefilter("ignore")
        sdata = spatialdata_io.visium(path, dataset_id=sample, counts_file=counts)
        source = sdata.tables["table"]
        xy = np.asarray(source.obsm[Key.obsm.SPATIAL], dtype=float)
    lost = ~np.isfinite(xy).all(axis=1)
    if lost.any():
        msg = f"{path}: {int(lost.sum())} barcodes have no tissue position: {listing(source.obs_names[lost])}."
        raise ValueError(msg)
    with reading(path, what, "copy them again"):
        obs = source.obs[[_IN_TISSUE, _ARRAY_ROW, _ARRAY_COL]].astype(int)
        table = AnnData(sp.csr_matrix(source.X, dtype=np.float32), obs=obs, var=source.var.copy())
    table.var_names_make_unique()
    table.obsm[Key.obsm.SPATIAL] = xy
    return table, dict(sdata.images)


def _check_files(path: Path, counts: str) -> None:
    """Raise where a file that spatialdata-io will open is none, or an image is damaged, which it would notice much later."""
    beside = (path / counts).parent.glob("*.gz") if counts.endswith(".mtx.gz") else ()
    positions = (path / "spatial" / name for name in _POSITIONS)
    for file in (path / counts, *beside, *(p for p in positions if p.exists())):
        check_file(file)
    if counts.endswith(".h5"):
        with reading(path / counts, "counts of Space Ranger"), h5py.File(path / counts) as file:
            check_unpacked(path / counts, arrays_of(file))
            for group in file.values():
                # scipy follows indices without looking
                n_genes, n_spots = (int(n) for n in group["shape"][:2])
                parts = tuple(group[part][:] for part in ("data", "indices", "indptr"))
                sp.csc_matrix(parts, shape=(n_genes, n_spots)).check_format(full_check=True)
    for name in _IMAGES:
        if (path / "spatial" / name).exists():
            check_image(path / "spatial" / name)


def _micrometres_per_pixel(
    table: AnnData, xy: NDArray[np.float64], scale: dict[str, float], sample: str
) -> tuple[float, str]:
    """Size of a full-resolution pixel, from the pitch of the array or else from the scale factors, and which of them."""
    by_spot, by_pitch = factor_scale(scale), array_scale(table, xy)
    if by_pitch is None:
        if by_spot is None:
            msg = (
                f"Section {sample!r}: {_SCALE_FACTORS} states a spot_diameter_fullres of "
                f"{scale['spot_diameter_fullres']!r}, and the positions do not lie on a Visium array; copy the file again."
            )
            raise ValueError(msg)
        warnings.warn(
            f"Section {sample!r}: too few spots to measure the pitch of the array; the size of a pixel comes from "
            f"spot_diameter_fullres ({by_spot:.4g} um).",
            stacklevel=4,
        )
        return by_spot, _SCALE_FACTORS
    if by_spot is not None and abs(by_spot / by_pitch - 1) > TOLERATED:
        warnings.warn(
            f"Section {sample!r}: the array pitch gives {by_pitch:.4g} um per pixel, spot_diameter_fullres "
            f"{by_spot:.4g}; the pitch is used. Check that {_SCALE_FACTORS} and the positions belong together.",
            stacklevel=4,
        )
    return by_pitch, BY_ARRAY


def _add_image(
    sdata: SpatialData, elements: dict[str, Any], scale: dict[str, float], um_per_px: float, sample: str
) -> None:
    """Add the finest histology image there is, placed in the frame of the spots."""
    from spatialdata.transformations import Scale, set_transformation

    for kind in ("hires", "lowres"):
        image = elements.get(f"{sample}_{kind}_image")
        if image is not None:
            factor = um_per_px / scale[f"tissue_{kind}_scalef"]
            set_transformation(image, {Key.st_frame(sample): Scale([factor, factor], axes=("x", "y"))}, set_all=True)
            sdata.images[Key.image(sample)] = image
            return
    logger.info("%s: no histology image in the folder", sample)
