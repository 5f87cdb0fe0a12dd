"""What is read from the tables that users pass: sections, layers of metabolites, presence, ids and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._data.checks import check_choice, is_spatialdata, listing, own_view, require_rows, require_unique, suggest
from stmsi._data.keys import Key
from stmsi._data.stale import warn_if_stale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.chemistry.adducts import Polarity
    from stmsi._data.checks import Data

    Rows = Literal["spots", "pixels"]


_MZ_NAME = re.compile(r"m/?z[-_ ]*\d{2,5}(?:[._]\d+)?|\d{2,5}\.\d+", re.IGNORECASE)
"""How variables are called that are named by their m/z: ``104.107``, ``mz-104.107``."""
_GAP = 64
"""Rows that are read from disk and thrown away, rather than to read what lies around them by itself."""
ONE_SECTION = "all spots"
"""Name of the section where the data name none."""


def get_table(data: Data, table_key: str) -> AnnData:
    """The AnnData to work on: `data` itself, or its table `table_key`."""
    if isinstance(data, AnnData):
        return data
    if not is_spatialdata(data):
        msg = f"Expected an AnnData or a SpatialData, found {type(data).__name__}."
        raise TypeError(msg)
    if table_key not in data.tables:
        msg = (
            f"The SpatialData has no table {table_key!r}; its tables: {listing(data.tables)}. "
            f"Name another one, or make it with stmsi.pp.combine.{suggest(table_key, data.tables)}"
        )
        raise KeyError(msg)
    return data.tables[table_key]


def layer_names(adata: AnnData) -> list[str]:
    """The layers of a table; anndata 0.13 lists ``X`` among them, as `None`."""
    return [key for key in adata.layers if key is not None]


def require_obs(adata: AnnData, key: str, remedy: str = "") -> pd.Series:
    """A column of ``obs``."""
    if key not in adata.obs:
        found = adata.obs.columns
        msg = f"obs has no column {key!r}; found {listing(found)}. {remedy}{suggest(key, found)}"
        raise KeyError(msg.strip())
    return adata.obs[key]


def require_sample(adata: AnnData, key: str) -> NDArray[Any]:
    """The section label of each observation, as strings; no label may be missing.

    For what needs the names of sections, such as elements of a SpatialData; all else takes :func:`sections_of`.
    """
    label = require_obs(adata, key, "It names the section of each spot; set adata.obs[...] or pass sample_key=.")
    if label.isna().any():
        msg = f"obs[{key!r}] has {int(label.isna().sum())} missing values; every spot needs a section."
        raise ValueError(msg)
    # of plain strings: numpy's own would show up as np.str_('...') in messages and names of coordinate systems
    return label.astype(str).to_numpy(dtype=object)


def sections_of(adata: AnnData, key: str) -> NDArray[Any]:
    """As :func:`require_sample`, but all spots are one section where ``obs`` lacks the column that is looked for by default."""
    if key == Key.obs.SAMPLE and key not in adata.obs:
        return np.full(adata.n_obs, ONE_SECTION, dtype=object)
    return require_sample(adata, key)


def require_frame(adata: AnnData, key: str, remedy: str = "") -> pd.DataFrame:
    """A DataFrame of ``obsm``; an array is wrapped with column names ``0, 1, ...``."""
    if key not in adata.obsm:
        msg = f"obsm has no {key!r}; found {listing(adata.obsm.keys())}. {remedy}{suggest(key, adata.obsm.keys())}"
        raise KeyError(msg.strip())
    value = adata.obsm[key]
    if isinstance(value, pd.DataFrame):
        # ids are text: columns named by numbers (m/z) would match nothing that went through a file
        text = all(isinstance(c, str) for c in value.columns)
        return value if text else value.set_axis(value.columns.astype(str), axis=1)
    value = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
    return pd.DataFrame(value, index=adata.obs_names, columns=[str(j) for j in range(value.shape[1])])


def require_mapped(st: AnnData, metabolite_key: str) -> pd.DataFrame:
    """Mapped intensities, spots x metabolites, whose ids do not repeat."""
    frame = require_frame(st, metabolite_key, "stmsi.pp.map_to_spots writes it.")
    warn_if_stale(st, metabolite_key)
    require_unique(frame.columns, "Metabolite names", "Rename the columns.")
    return frame


def require_positions(st: AnnData, rows: Any = slice(None)) -> NDArray[np.float64]:
    """Spot positions, (spots, 2 or more); those of `rows` must be finite."""
    if Key.obsm.SPATIAL not in st.obsm:
        msg = f'obsm has no "spatial" with the spot positions; found {listing(st.obsm.keys())}.'
        raise KeyError(msg)
    xy = np.asarray(st.obsm[Key.obsm.SPATIAL], dtype=np.float64)
    if not np.isfinite(xy[rows]).all():
        msg = 'obsm["spatial"] contains NaN or infinite positions; drop those spots first.'
        raise ValueError(msg)
    return xy


def imputed(adata: AnnData, key: str, frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which intensities of ``obsm[key]`` were not measured but filled in, shape of `frame`; none without a record."""
    record = Key.observed_of(key)
    if record not in adata.obsm:
        return np.zeros(frame.shape, bool)
    observed = require_frame(adata, record)
    missing = [m for m in frame.columns if m not in observed.columns]
    if missing:
        msg = (
            f"obsm[{record!r}] lacks the metabolites {listing(missing)} of obsm[{key!r}]; map and impute again, or delete "
            f"obsm[{record!r}] where nothing is imputed."
        )
        raise ValueError(msg)
    return ~observed[list(frame.columns)].to_numpy(bool) & frame.notna().to_numpy()


def shared_metabolites(predicted: pd.DataFrame, measured: pd.DataFrame) -> list[str]:
    """Metabolites of both frames, in the order of the prediction."""
    ids = [m for m in predicted.columns if m in measured.columns]
    if not ids:
        msg = (
            f"Prediction and measurement share no metabolite: {listing(predicted.columns[:3])} against "
            f"{listing(measured.columns[:3])}."
        )
        raise ValueError(msg)
    return ids


def as_csr(values: Any, dtype: Any = None) -> sp.csr_matrix:
    """A matrix of an AnnData as CSR in memory, whether it is dense, sparse, dask (of either) or backed.

    A CSR matrix of the right type is returned as it is: copy before writing into it.
    """
    for load in ("to_memory", "compute"):
        if hasattr(values, load):
            values = getattr(values, load)()
    return sp.csr_matrix(values if sp.issparse(values) else np.asarray(values), dtype=dtype)


def is_dask(values: Any) -> bool:
    """Whether a matrix is a dask array, which is read when it is needed; told without importing dask."""
    return hasattr(values, "dask")


def some_rows(values: Any, rows: NDArray[np.int64]) -> Any:
    """Rows (ascending) of a matrix of an AnnData, of one on disk no more than these and small gaps between them."""
    if isinstance(values, np.ndarray) or sp.issparse(values):
        return values[rows]
    if len(rows) == 0:
        return as_csr(values[:0])
    ends = np.flatnonzero(np.diff(rows) > _GAP)
    pieces = []
    for first, last in zip(np.append(0, ends + 1), np.append(ends, len(rows) - 1), strict=True):
        start, stop = int(rows[first]), int(rows[last]) + 1
        run = as_csr(values[start:stop])
        pieces.append(run if last - first + 1 == stop - start else run[rows[first : last + 1] - start])
    return pieces[0] if len(pieces) == 1 else sp.vstack(pieces, format="csr")


def in_frames(adata: AnnData) -> AnnData:
    """An AnnData whose ``obs`` and ``var`` are DataFrames; of one that is read lazily, these are read and nothing else."""
    if isinstance(adata.obs, pd.DataFrame):
        return adata
    obs, var = (frame if isinstance(frame, pd.DataFrame) else frame.to_memory() for frame in (adata.obs, adata.var))
    obsm = {key: value.to_memory() if hasattr(value, "to_memory") else value for key, value in adata.obsm.items()}
    layers = {key: adata.layers[key] for key in layer_names(adata)}
    return AnnData(adata.X, obs, var, obsm=obsm, obsp=dict(adata.obsp), layers=layers, uns=dict(adata.uns))


def instances(table: AnnData) -> pd.Index:
    """What each observation annotates in its shapes element, from the column that the table names."""
    key = table.uns.get("spatialdata_attrs", {}).get("instance_key", Key.obs.INSTANCE)
    return pd.Index(require_obs(table, key, "The table must say which shape each observation annotates."))


def require_metabolites(names: Sequence[str], available: pd.Index, names_of: pd.Series | None = None) -> list[str]:
    """Ids of the metabolites asked for by id or by readable name."""
    by_name: dict[str, list[str]] = {}
    for key, value in () if names_of is None else names_of.items():
        by_name.setdefault(str(value), []).append(str(key))
    for name in names:
        if name not in available and len(by_name.get(name, ())) > 1:
            msg = f"Several metabolites are called {name!r}: {listing(by_name[name])}. Name one by its id."
            raise ValueError(msg)
    ids = [n if n in available else by_name.get(n, [n])[0] for n in names]
    unknown = [n for n in ids if n not in available]
    if unknown:
        hint = suggest(unknown[0], [*available, *by_name])
        msg = f"No metabolite {listing(unknown)}; available: {listing(available)}.{hint}"
        raise KeyError(msg)
    return ids


def polarity_of(msi: AnnData, polarity: Any = None) -> Polarity:
    """The polarity asked for, or else the one that all sections of an MSI table were measured in."""
    if polarity is not None:
        check_choice(polarity, ("positive", "negative"), "polarity")
        return polarity
    attrs = msi.uns.get(Key.uns.MSI, {}).get("attrs", {})
    stated = {str(one["polarity"]) for one in attrs.values() if "polarity" in one}
    if len(stated) == 1 and stated <= {"positive", "negative"}:
        return stated.pop()  # type: ignore[return-value]
    msg = f"Pass polarity='positive' or 'negative'; uns['msi']['attrs'] of the MSI table states {listing(sorted(stated))}."
    raise ValueError(msg)


def sample_names(data: Data, table_key: str = Key.table.ST, sample_key: str = Key.obs.SAMPLE) -> list[str]:
    """Sections of a table, in order of appearance."""
    return list(dict.fromkeys(require_sample(get_table(data, table_key), sample_key)))


def table_sections(table: AnnData, sample_key: str = Key.obs.SAMPLE) -> list[str]:
    """Sections of a table that may have a single one without a name, in order of appearance."""
    return list(dict.fromkeys(sections_of(table, sample_key)))


def presence_key_of(st: AnnData, metabolite_key: str, presence_key: str | None = None) -> str | None:
    """Where the presence that belongs to measured intensities is; `None` where it was not called."""
    if presence_key is None and Key.presence_of(metabolite_key) in st.obsm:
        return Key.presence_of(metabolite_key)
    return presence_key


def measured_presence(st: AnnData, metabolite_key: str, presence_key: str | None = None) -> pd.DataFrame:
    """Measured presence, spots x metabolites: 1 present, 0 absent, NaN not measured; float64.

    Presence that was called counts (of `presence_key`, else ``obsm["<metabolite_key>_presence"]``; metabolites that it does
    not know are left out). Where there is none, intensity above 0 does, and what was filled in and not measured is absent.
    """
    measured = require_frame(st, metabolite_key, "stmsi.pp.map_to_spots writes it. ")
    key = presence_key_of(st, metabolite_key, presence_key)
    if key is None:
        there = (measured > 0) & ~imputed(st, metabolite_key, measured)
    else:
        called = require_frame(st, key, "stmsi.pp.call_presence writes it. ")
        there = called[[m for m in measured.columns if m in called.columns]]
    return there.astype(np.float64).where(measured[list(there.columns)].notna())


def copy_of(data: Data) -> Data:
    """A deep copy of either container."""
    if isinstance(data, AnnData):
        return data.copy()
    from spatialdata import deepcopy

    return deepcopy(data)


def table_to_change(data: Data, table_key: str, *, copy: bool, rows: Rows = "spots") -> tuple[AnnData, Data | None]:
    """The table that a verb writes into, and what the verb returns: the changed copy, or `None` where it works in place.

    `rows` is what a verb works on; a table of the other kind is refused.
    """
    check_rows_of(data, table_key, rows)
    out = copy_of(data) if copy else data
    table = get_table(out, table_key)
    own_view(table)
    require_rows(table, rows)
    return table, out if copy else None


def check_rows_of(data: Data, table_key: str, rows: Rows) -> None:
    """Refuse a table of genes where ions are wanted, and the other way round."""
    table = get_table(data, table_key)
    ions, genes = _signs_of_ions(table), _signs_of_genes(table)
    if not ions and not genes and Key.obsm.SPATIAL in table.obsm:  # pixels have a place on a raster
        genes = [f"obsm[{Key.obsm.SPATIAL!r}] and no place on a raster"]
    wrong = genes if rows == "pixels" and not ions else ions if rows == "spots" and not genes else []
    if not wrong:
        return
    wanted, found = ("pixels x ions", "spots x genes") if rows == "pixels" else ("spots x genes", "pixels x ions")
    name = "The AnnData" if isinstance(data, AnnData) else f"Table {table_key!r}"
    remedy = f"Pass the table of {wanted}" if isinstance(data, AnnData) else f"Name that of {wanted} by its table key"
    there = "" if isinstance(data, AnnData) else f"; tables: {listing(data.tables)}"
    if rows == "pixels":
        there += (
            f". If these are ions, say so by var[{Key.var.MZ!r}], or by obs[{Key.obs.ROW!r}] and obs[{Key.obs.COL!r}]"
        )
    msg = (
        f"Expected a table of {wanted}. {name} looks like one of {found} (it has {', '.join(wrong)}). {remedy}{there}."
    )
    raise ValueError(msg)


def _signs_of_ions(table: AnnData) -> list[str]:
    """What tells that the variables of a table are ions, as far as there is something."""
    signs = []
    mz = table.var.get(Key.var.MZ)
    if mz is not None and pd.to_numeric(mz, errors="coerce").notna().any():
        signs.append(f"var[{Key.var.MZ!r}]")
    if 2 * table.var_names.str.fullmatch(_MZ_NAME).sum() > table.n_vars:
        signs.append("variables named by m/z")
    if "attrs" in table.uns.get(Key.uns.MSI, {}):
        signs.append(f"uns[{Key.uns.MSI!r}]['attrs']")
    if Key.obs.ROW in table.obs and Key.obs.COL in table.obs:
        signs.append(f"obs[{Key.obs.ROW!r}] and obs[{Key.obs.COL!r}]")
    return signs


def _signs_of_genes(table: AnnData) -> list[str]:
    """What tells that the variables of a table are genes, as far as there is something."""
    signs = [f"var[{key!r}]" for key in (Key.var.GENE_IDS, "feature_types") if key in table.var]
    signs += [f"obs[{key!r}]" for key in ("array_row", Key.obs.COVERAGE, Key.obs.IN_TISSUE) if key in table.obs]
    return signs + [f"obsm[{key!r}]" for key in (Key.obsm.MSI, Key.obsm.PRED) if key in table.obsm]


def values_of(table: AnnData, layer: str | None, what: str) -> Any:
    """``X`` or a layer, as it is stored; `what` names the table in the message."""
    if layer is None:
        return table.X
    if layer not in table.layers:
        msg = f"The {what} table has no layer {layer!r}; layers: {listing(table.layers)}."
        raise KeyError(msg)
    return table.layers[layer]
