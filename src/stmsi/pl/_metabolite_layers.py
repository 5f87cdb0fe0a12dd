"""What is drawn on the spots: layers of metabolites, their names, labels and tiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.checks import listing, suggest
from stmsi._data.feature_table import base_key, find_features, written_by
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import DESCRIBING, label, short_labels
from stmsi._data.tables import as_csr, layer_names, require_frame, require_metabolites, sections_of
from stmsi.pl._panels import wrap
from stmsi.pl._style import INTENSITY_CMAP, PRESENT_LABEL, WIDTH_CMAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray


UNIT, LOG_UNIT = "intensity (a.u.)", "log1p intensity (a.u.)"
"""Of intensities, which are in arbitrary units."""
_OBS_UNITS = {
    Key.obs.COVERAGE: "share of the spot",
    Key.ood_of(Key.obsm.PRED): "score",
    Key.obs.TIC: UNIT,
    Key.obs.IN_TISSUE: "0 or 1",
}


@dataclass(frozen=True)
class Layer:
    """One value per spot, its title, the label of its colours, their limits where they are natural, and a default map."""

    title: str  # lines of a panel's width
    values: NDArray[np.float64]
    label: str
    bounds: tuple[float, float] | None = None
    cmap: str = INTENSITY_CMAP
    short: str = ""  # for a legend
    measured: bool = True  # whether a missing value was not measured


def table_samples(adata: AnnData, sample_key: str, sample: str | Sequence[str] | None) -> list[str]:
    """The sections asked for; `None`: all of them."""
    present = list(dict.fromkeys(map(str, sections_of(adata, sample_key))))
    if sample is None:
        return present
    wanted = [sample] if isinstance(sample, str) else [str(s) for s in sample]
    unknown = [s for s in wanted if s not in present]
    if unknown or not wanted:
        hint = suggest(unknown[0], present) if unknown else ""
        msg = f"No section {listing(unknown)}; sections: {listing(present)}.{hint}"
        raise KeyError(msg)
    return wanted


def one_section(adata: AnnData, sample_key: str, sample: str | None) -> str:
    """The section asked for, or the only one."""
    found = table_samples(adata, sample_key, sample)
    if len(found) > 1:
        msg = f"There are {len(found)} sections; name one of them with sample=: {listing(found)}."
        raise ValueError(msg)
    return found[0]


def as_list(names: str | Sequence[str], what: str = "metabolite") -> list[str]:
    """One name or several as a list."""
    out = [names] if isinstance(names, str) else [str(n) for n in names]
    if not out:
        msg = f"Name at least one {what}."
        raise ValueError(msg)
    return out


def readable_names(adata: AnnData, key: str, columns: pd.Index) -> pd.Series:
    """Readable name of each metabolite of a layer; its id where none is known."""
    names = pd.Series(columns.astype(str), index=columns.astype(str), dtype=object)
    features = find_features(adata, key)
    if features is None:
        features = find_features(adata, Key.obsm.MSI)
    if features is not None and Key.var.NAME in features:
        known = features[Key.var.NAME]
        known = known[known.notna()].astype(str)
        known = known[~known.isin(["", "nan"]) & known.index.isin(names.index)]
        names.loc[known.index] = known
    return names


def labelled_features(adata: AnnData, key: str) -> pd.DataFrame | None:
    """Feature table for labels: that of a layer, with the columns that only the table of the measurement has."""
    own, measured = find_features(adata, key), find_features(adata, Key.obsm.MSI)
    if own is None or measured is None:
        return measured if own is None else own
    more = [c for c in DESCRIBING if c in measured and c not in own]
    return own.assign(**{c: measured[c].reindex(own.index) for c in more})


def trust(adata: AnnData, key: str, metabolite: str) -> str:
    """The tier that :func:`stmsi.tl.reliability` gave a predicted metabolite, for titles; empty where there is none."""
    features = find_features(adata, key)
    if features is None or Key.var.TIER not in features or metabolite not in features.index:
        return ""
    return f"trust: {features[Key.var.TIER].loc[metabolite]!s}"


def values_of(frame: pd.DataFrame | None, metabolite: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values of a metabolite in some rows; NaN where the layer is missing or does not know it."""
    if frame is None or metabolite not in frame:
        return np.full(len(rows), np.nan)
    return frame[metabolite].to_numpy(dtype=np.float64, na_value=np.nan)[rows]


def is_presence(key: str) -> bool:
    """Whether a layer holds presence, 0 to 1."""
    return key == Key.obsm.TRUTH_PRESENCE or key.endswith(Key.presence_of(""))


def is_width(adata: AnnData, key: str) -> bool:
    """Whether a layer is the width of the interval of another."""
    return key not in adata.obsm and key.endswith(Key.width_of(""))


def layer_frame(adata: AnnData, key: str) -> pd.DataFrame:
    """A layer of ``obsm``; the width of an interval is taken from its bounds."""
    if not is_width(adata, key):
        return require_frame(adata, key, f"{written_by(key)} ")
    lower, upper = (
        require_frame(adata, k, f"{key!r} is the width of the interval: its bounds are missing. {written_by(k)} ")
        for k in Key.bounds_of(key.removesuffix(Key.width_of("")))
    )
    return upper - lower


def intensity_label(adata: AnnData, key: str) -> str:
    """What the colours of a layer mean."""
    if is_presence(key):
        # of a measurement 0 or 1, of a prediction anything between
        values = adata.obsm.get(key)
        called = isinstance(values, pd.DataFrame) and bool((values.isin([0, 1]) | values.isna()).all(axis=None))
        return PRESENT_LABEL if called or key == Key.obsm.PRESENCE else "P(present)"
    if key == Key.obsm.TRUTH_INTENSITY:
        return UNIT
    params: Any = adata.uns.get(Key.uns.MSI, {})
    for name in ("params", "normalize_msi", "log1p"):
        params = params.get(name, {}) if isinstance(params, dict) else {}
    logged = _on_scale_of_msi(adata, base_key(key)) and params not in ({}, False)
    unit = LOG_UNIT if logged else UNIT
    return f"{interval_name(adata, key)} width\n{unit}" if is_width(adata, key) else unit


def _on_scale_of_msi(adata: AnnData, key: str) -> bool:
    """Whether a layer has the scale of the mapped MSI: measured, denoised, or predicted or drawn under any key."""
    record = adata.uns.get(key, adata.uns.get(key.rstrip("0123456789").removesuffix("_")))
    made = isinstance(record, dict) and "model" in record
    return made or key in (Key.obsm.MSI, Key.obsm.PRED, Key.obsm.DENOISED)


def interval_name(adata: AnnData, key: str) -> str:
    """What a prediction interval is called, with its coverage where that is known: ``90 % interval``."""
    record = adata.uns.get(base_key(key))
    params = record.get("params", {}) if isinstance(record, dict) else {}
    coverage = params.get("coverage") if isinstance(params, dict) else None
    return "interval" if coverage is None else f"{100 * float(coverage):g} % interval"


def layers_of(adata: AnnData, names: list[str], key: str, layer: str | None = None) -> list[Layer]:
    """What to draw: metabolites of a layer in ``obsm``, columns of ``obs``, or variables (genes, ions) of the table."""
    # a table of ions has no layer of metabolites; of one of spots, names tell whether one is asked for
    own = Key.var.MZ in adata.var or all(n in adata.obs or _variable(adata, n) is not None for n in names)
    if key not in adata.obsm and own:
        return [_own_layer(adata, n, layer) for n in names]
    frame = layer_frame(adata, key)
    readable, features = readable_names(adata, key, frame.columns), labelled_features(adata, key)
    unit, bounds = intensity_label(adata, key), (0.0, 1.0) if is_presence(key) else None
    default = WIDTH_CMAP if is_width(adata, key) else INTENSITY_CMAP
    known = {*readable.index, *readable}
    out = []
    for name in names:
        if name not in known and (name in adata.obs or _variable(adata, name) is not None):
            out.append(_own_layer(adata, name, layer))
            continue
        if name not in known and not suggest(name, known):
            near = suggest(name, [*adata.obs.columns, *adata.var_names])
            if near:
                msg = f"{name!r} is neither a metabolite of obsm[{key!r}], nor a column of obs, nor a gene.{near}"
                raise KeyError(msg)
        (identifier,) = require_metabolites([name], readable.index, readable)
        title = wrap(label(features, identifier), trust(adata, key, identifier))
        values = frame[identifier].to_numpy(np.float64, na_value=np.nan)
        (short,) = short_labels(features, [identifier])
        out.append(Layer(title, values, unit, bounds, default, short))
    return out


def _own_layer(adata: AnnData, name: str, layer: str | None) -> Layer:
    """A column of ``obs``, or a variable of the table by its id or name."""
    if name in adata.obs:
        return _obs_layer(adata, name)
    at = _variable(adata, name)
    if at is None:
        names = [*adata.obs.columns, *adata.var_names, *adata.var.get(Key.var.NAME, pd.Series(dtype=str)).astype(str)]
        msg = f"{name!r} is neither a column of obs nor a variable of the table, which has {adata.n_vars:,} of them.{suggest(name, names)}"
        raise KeyError(msg)
    if layer is not None and layer not in layer_names(adata):
        msg = f"The table has no layer {layer!r}; layers: {listing(layer_names(adata))}."
        raise KeyError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    values = as_csr(matrix[:, [at]], np.float64).toarray().ravel()
    if Key.var.MZ not in adata.var:
        unit = ("counts" if _whole(values) else "expression") if layer is None else layer
        return Layer(wrap(name), values, unit, short=name, measured=False)
    unit = ion_unit(adata, layer)
    identifier = str(adata.var_names[at])
    (short,) = short_labels(adata.var, [identifier])
    return Layer(wrap(label(adata.var, identifier)), values, unit, short=short)


def ion_unit(msi: AnnData, layer: str | None) -> str:
    """The unit of the intensities in an MSI table: arbitrary ones, of which :func:`stmsi.pp.normalize_msi` may have taken logarithms."""
    params: Any = msi.uns.get(Key.uns.NORMALIZE, {})
    logged = layer is None and bool((params.get("params", params) if isinstance(params, dict) else {}).get("log1p"))
    return LOG_UNIT if logged else UNIT


def _whole(values: NDArray[np.float64]) -> bool:
    """Whether values are counts."""
    return bool(np.isfinite(values).all() and (values == np.rint(values)).all() and (values >= 0).all())


def _variable(adata: AnnData, name: str) -> int | None:
    """Position of a variable by its id or, where that is one, by its readable name or symbol; `None` where there is none."""
    at = np.flatnonzero(adata.var_names == name)
    columns = (Key.var.NAME, "gene_symbols", "gene_name", Key.var.GENE_IDS)
    for column in columns:
        if len(at) == 0 and column in adata.var:
            at = np.flatnonzero(adata.var[column].astype(str).to_numpy() == name)
    if len(at) > 1:
        msg = f"{len(at)} variables are called {name!r}: {listing(adata.var_names[at])}. Name one by its id."
        raise ValueError(msg)
    return int(at[0]) if len(at) else None


def _obs_layer(adata: AnnData, name: str) -> Layer:
    values = adata.obs[name]
    if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)):
        numeric = [c for c in adata.obs if pd.api.types.is_numeric_dtype(adata.obs[c])]
        msg = (
            f"obs[{name!r}] is not numeric ({values.dtype}); numeric columns: {listing(numeric)}. "
            "Draw categories with squidpy.pl.spatial_scatter or spatialdata-plot."
        )
        raise ValueError(msg)
    bounds = (0.0, 1.0) if name == Key.obs.COVERAGE else None
    unit = _OBS_UNITS.get(name, "value")
    return Layer(
        wrap(name), values.to_numpy(dtype=np.float64, na_value=np.nan), unit, bounds, short=name, measured=False
    )
