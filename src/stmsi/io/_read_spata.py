"""Read an object of SPATA2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._core.spectra.spectrum_arrays import mz_from_names
from stmsi._data.checks import check_choice, listing
from stmsi._data.combine import combine
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_PITCH, check_sample_name
from stmsi._data.spot_scale import pitch_of
from stmsi.io._pixels import Pixels, section_of
from stmsi.io._r_objects import class_of, named_matrix, read_rds, require_slots

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Modality = Literal["st", "msi"]

_NEW, _OLD = "SPATA2", "spata2"
"""Classes of SPATA2 3 and of SPATA2 2."""
_BARCODES = "barcodes"
_PLACES = (("x_orig", "y_orig"), ("x", "y"))
_ARRAYS = (("array_row", "array_col"), ("row", "col"))
_GENES, _METABOLITES = "transcript", "metabol"
"""How the omics are called, in part."""
_COUNTS = "counts"


@dataclass(frozen=True)
class _Content:
    """What an object holds, whatever its version."""

    sample: str
    matrices: dict[str, Any]  # molecules x observations, by assay
    omics: dict[str, str]
    places: pd.DataFrame
    about: pd.DataFrame
    method: str


def read_spata(
    path: str | Path,
    *,
    sample: str | None = None,
    assay: str | None = None,
    modality: Modality | None = None,
    um_per_unit: float | None = None,
    pixel_size: float | tuple[float, float] | None = None,
) -> SpatialData:
    """Read one assay of an R object of SPATA2: spots and genes, or pixels and ions.

    Needs the extra ``spata`` (the package rdata). Histology is not read: take it from the Space Ranger folder with
    :func:`stmsi.io.read_visium`.

    Parameters
    ----------
    path
        The ``.rds`` file, as ``saveRDS`` writes it, with an object of SPATA2 version 3 (class ``SPATA2``) or 2 (``spata2``).
    sample
        Name of the section; `None`: that of the object.
    assay
        Name of the assay (version 2: of the matrix); `None`: that of the genes, else the only one.
    modality
        ``"st"`` for spots and genes, ``"msi"`` for pixels and ions; `None`: what the assay says of itself, else ``"st"``.
    um_per_unit
        Micrometres per unit of the coordinates of spots; `None`: by the rows and columns of the Visium array, else by the pitch of
        100 um where the method is Visium, else as :func:`stmsi.pp.combine` tells.
    pixel_size
        Of ``"msi"``: side of a pixel in micrometres, or ``(x, y)``; `None`: the pitch of the coordinates where it is above 1.

    Returns
    -------
    SpatialData in the data model: for ``"st"`` as :func:`stmsi.io.read_visium` (table ``st`` with the raw counts, and circles
    ``<sample>_spots``), for ``"msi"`` as :func:`stmsi.io.read_msi_table` (table ``msi``, squares ``<sample>_pixels``; m/z from the
    names of the ions). Columns of the object's observations stay in ``obs`` of ``st``.

    Raises
    ------
    ImportError
        rdata is not installed.
    ValueError
        The file holds something else, several assays and none is named, observations without a place, or pixels that lie on no
        raster, such as those that were registered.
    KeyError
        There is no such assay.

    Notes
    -----
    The classes are those of https://github.com/theMILOlab/SPATA2. The reader was tested on files made in their layout, not on
    files that R wrote.

    Examples
    --------
    >>> import stmsi
    >>> st = stmsi.io.read_spata("visium.rds", sample="s1")  # doctest: +SKIP
    >>> msi = stmsi.io.read_spata("maldi.rds", sample="s1", modality="msi", pixel_size=100)  # doctest: +SKIP
    """
    path = Path(path)
    if modality is not None:
        check_choice(modality, ("st", "msi"), "modality")
    content = _content(read_rds(path), path)
    sample = safe_ids([content.sample])[0] if sample is None else check_sample_name(sample)
    assay = _assay(content, assay)
    matrix, molecules, barcodes = named_matrix(content.matrices[assay], f"{path.name}: the assay {assay!r}")
    X = sp.csr_matrix(matrix.T, dtype=np.float32)
    places = _reindexed(content.places, barcodes, path)
    xy = _columns(places, _PLACES, path, "coordinates")
    if modality is None:
        modality = "msi" if _METABOLITES in content.omics[assay].lower() else "st"
    if modality == "msi":
        var = pd.DataFrame({Key.var.MZ: mz_from_names(pd.Index(molecules))}, index=molecules)
        pixels = Pixels(X, var, xy[:, 0], xy[:, 1], pd.DataFrame(index=pd.Index(barcodes)))
        return section_of(pixels, path, sample=sample, pixel_size=pixel_size, attrs={"format": "spata2"})
    return _spots(content, X, molecules, barcodes, places, xy, sample, um_per_unit)


def _spots(
    content: _Content,
    X: sp.csr_matrix,
    genes: list[str],
    barcodes: list[str],
    places: pd.DataFrame,
    xy: NDArray[np.float64],
    sample: str,
    um_per_unit: float | None,
) -> SpatialData:
    """A section of spots; what tells the unit goes along as Space Ranger calls it."""
    about = content.about.reindex(barcodes)
    obs = about.drop(columns=[c for c in (Key.obs.SAMPLE, _BARCODES) if c in about])
    array = next((pair for pair in _ARRAYS if set(pair) <= set(places)), None)
    if array is not None:
        for name, column in zip(_ARRAYS[0], array, strict=True):
            obs[name] = places[column].to_numpy()
    elif um_per_unit is None and content.method.lower().startswith("visium") and "hd" not in content.method.lower():
        um_per_unit = VISIUM_PITCH / pitch_of(xy)
    table = AnnData(X, obs=obs, var=pd.DataFrame(index=pd.Index(genes)), obsm={Key.obsm.SPATIAL: xy})
    return combine({sample: table}, um_per_unit=um_per_unit)


def _content(value: Any, path: Path) -> _Content:
    kind = class_of(value)
    if kind == _NEW:
        require_slots(value, ("assays", "spatial", "sample"), path.name)
        require_slots(value.spatial, ("coordinates",), f"{path.name}: the slot 'spatial'")
        assays = dict(value.assays)
        return _Content(
            str(value.sample[0]),
            {name: assay.mtr_counts for name, assay in assays.items()},
            {name: str(getattr(assay, "omic", [name])[0]) for name, assay in assays.items()},
            _by_barcode(value.spatial.coordinates),
            _by_barcode(getattr(value, "meta_obs", None)),
            str(getattr(getattr(value, "method", None), "name", [""])[0]),
        )
    if kind == _OLD:
        require_slots(value, ("data", "coordinates", "samples"), path.name)
        sample = str(value.samples[0])
        matrices = dict(value.data[sample])
        about = getattr(value, "fdata", None)
        return _Content(
            sample, matrices, dict.fromkeys(matrices, ""), _by_barcode(value.coordinates[sample]),
            _by_barcode(about.get(sample) if isinstance(about, dict) else None), "",
        )  # fmt: skip
    msg = (
        f"{path.name} holds an object of the class {kind!r}; expected {_NEW!r} or {_OLD!r}. Objects of older versions "
        "need SPATA2::updateSpataObject in R; for Seurat see the page 'Coming from'."
    )
    raise ValueError(msg)


def _assay(content: _Content, wanted: str | None) -> str:
    names = list(content.matrices)
    if wanted is not None:
        if wanted not in names:
            msg = f"The object has no assay {wanted!r}; assays: {listing(names)}."
            raise KeyError(msg)
        return wanted
    genes = [n for n in names if n == _COUNTS or _GENES in content.omics[n].lower()]
    chosen = genes if len(genes) == 1 else names
    if len(chosen) != 1:
        msg = f"The object has {len(names)} assays ({listing(names)}); name one by assay=."
        raise ValueError(msg)
    return chosen[0]


def _by_barcode(frame: Any) -> pd.DataFrame:
    """A table with the barcodes as index; an empty one where there is none."""
    if not isinstance(frame, pd.DataFrame) or _BARCODES not in frame:
        return pd.DataFrame(index=pd.Index([], dtype=object))
    return frame.set_index(pd.Index(frame[_BARCODES].astype(str), name=None))


def _reindexed(places: pd.DataFrame, barcodes: list[str], path: Path) -> pd.DataFrame:
    lost = [b for b in barcodes if b not in places.index]
    if lost:
        msg = f"{path.name}: {len(lost)} of {len(barcodes)} observations have no coordinates: {listing(lost[:3])}."
        raise ValueError(msg)
    return places.loc[barcodes]


def _columns(frame: pd.DataFrame, pairs: tuple[tuple[str, str], ...], path: Path, what: str) -> NDArray[np.float64]:
    pair = next((pair for pair in pairs if set(pair) <= set(frame)), None)
    if pair is None:
        msg = f"{path.name}: the {what} have the columns {listing(frame.columns)}; expected {listing(pairs[0])}."
        raise ValueError(msg)
    return frame[list(pair)].to_numpy(dtype=np.float64)
