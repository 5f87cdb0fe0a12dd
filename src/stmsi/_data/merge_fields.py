"""What tables hold beside their matrix, when several become one: columns, arrays, graphs and notes.

Nothing is filled with numbers that nobody measured: what a section does not have is missing (NaN), in types that survive
writing; what cannot be put together is left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._data.tables import layer_names
from stmsi._settings import logger

if TYPE_CHECKING:
    from typing import Literal

_OWN_NOTES = "_stmsi"
"""Notes of stmsi about one object; they mean nothing for several."""


def concat_tables(
    tables: Sequence[AnnData],
    *,
    join: Literal["inner", "outer"],
    what: str,
    skip: Sequence[str] = (),
    uns: Callable[[Sequence[Mapping[str, Any]], list[str]], dict[str, Any]] | None = None,
) -> AnnData:
    """Observations of several tables in one; `join` of variables. What is left out is named in one warning.

    Parameters
    ----------
    tables
        Names of their observations do not repeat. Not changed.
    join
        Of variables: those of all tables (``"inner"``) or of any (``"outer"``, where ``X`` has 0 for the missing ones).
    what
        Names the tables in the warning.
    skip
        Fields of ``obsm`` and ``varm`` that are left out without a word, as others make them anew.
    uns
        Joins ``uns`` and appends to the second argument what it leaves out; `None`: :func:`join_notes`.
    """
    lost: list[str] = []
    every = [set(layer_names(t)) for t in tables]
    layers = set.intersection(*every)
    lost += [f"layers[{key!r}]" for key in _in_order(layer_names(t) for t in tables) if key not in layers]
    raw = [t.raw is not None for t in tables]
    if any(raw) and not all(raw):
        lost.append("raw")
    merged = ad.concat([_bare(t, layers, keep_raw=all(raw)) for t in tables], join=join, fill_value=0)
    merged.obs = join_frames([t.obs for t in tables], [t.n_obs for t in tables], merged.obs_names)
    merged.var = _join_var([t.var for t in tables], merged.var_names, lost)
    for key in _in_order(t.obsm for t in tables):
        if key not in skip:
            value = _join_arrays([t.obsm.get(key) for t in tables], [t.n_obs for t in tables], merged.obs_names)
            _put(merged.obsm, key, value, f"obsm[{key!r}]", lost)
    for key in _in_order(t.obsp for t in tables):
        graphs = [t.obsp.get(key) for t in tables]
        whole = None if any(g is None for g in graphs) else sp.block_diag(graphs, format="csr")
        _put(merged.obsp, key, whole, f"obsp[{key!r}]", lost)
    for key in _in_order(t.varm for t in tables):
        if key not in skip:
            _put(merged.varm, key, _one_for_all(tables, key, merged.var_names), f"varm[{key!r}]", lost)
    lost += [f"varp[{key!r}]" for key in _in_order(t.varp for t in tables) if len(tables) > 1]
    if len(tables) == 1:
        merged.varp.update(tables[0].varp)
    merged.uns = (join_notes if uns is None else uns)([t.uns for t in tables], lost)
    if lost:
        logger.warning(
            "What only some %s sections have, or have differently, is left out: %s. Make it again on the whole.",
            what, ", ".join(lost),
        )  # fmt: skip
    return merged


def _bare(table: AnnData, layers: set[Any], *, keep_raw: bool) -> AnnData:
    """``X`` and some layers with nothing but names."""
    bare = AnnData(
        table.X,
        obs=pd.DataFrame(index=table.obs_names),
        var=pd.DataFrame(index=table.var_names),
        layers={key: table.layers[key] for key in layers},
    )
    if keep_raw:
        bare.raw = table.raw.to_adata()
    return bare


def _in_order(names: Any) -> list[Any]:
    """Each name once, in order of appearance."""
    return list(dict.fromkeys(name for own in names for name in own))


def _put(fields: Any, key: str, value: Any, name: str, lost: list[str]) -> None:
    if value is None:
        lost.append(name)
    else:
        fields[key] = value


# ------------------------------------------------------------------------------------------------------------- columns


def join_frames(frames: Sequence[pd.DataFrame | None], sizes: Sequence[int], index: pd.Index) -> pd.DataFrame:
    """Rows of several frames under each other, all columns; `None` stands for a frame of `sizes` rows without columns."""
    columns = _in_order(f.columns for f in frames if f is not None)
    found = {c: join_columns([None if f is None or c not in f else f[c] for f in frames], sizes) for c in columns}
    return pd.DataFrame({c: pd.Series(v, index=index) for c, v in found.items()}, index=index, columns=columns)


def join_columns(columns: Sequence[pd.Series | None], sizes: Sequence[int]) -> Any:
    """Values of several columns under each other, missing where a table lacks the column (`None`, of `sizes` rows).

    Text with gaps becomes categorical, truth values with gaps become ``boolean``, whole numbers with gaps become floats:
    all of them survive writing as what they are. Numbers beside text become text.
    """
    kinds = {kind for c in columns if c is not None and (kind := _kind(c))}
    gaps = any(c is None or c.isna().any() for c in columns)
    if kinds == {"number"}:
        return np.concatenate([_numbers(c, n, gaps) for c, n in zip(columns, sizes, strict=True)])
    if not kinds <= {"text", "truth", "number"} and len(kinds) == 1:
        parts = [
            pd.Series(np.nan, index=range(n), dtype=object) if c is None else c
            for c, n in zip(columns, sizes, strict=True)
        ]
        return pd.concat(parts, ignore_index=True).array
    values = np.concatenate([_objects(c, n) for c, n in zip(columns, sizes, strict=True)])
    if kinds == {"truth"}:
        return pd.array(values, dtype="boolean") if gaps else values.astype(bool)
    if not kinds:
        return np.full(len(values), np.nan)
    given = [c for c in columns if c is not None]
    labels = [c.cat.categories for c in given if isinstance(c.dtype, pd.CategoricalDtype)]
    labelled = len(labels) == len(given)
    if not (labelled and one_value([c.inferred_type for c in labels])):  # labels of one kind stay what they are
        values = np.array([None if v is None else str(v) for v in values], dtype=object)
        labels = [c.astype(str) for c in labels]
    if not gaps and not labels:
        return values
    present = [v for v in dict.fromkeys(values) if v is not None]
    ordered = labelled and all(c.cat.ordered for c in given) and one_value([tuple(c) for c in labels])
    return pd.Categorical(values, categories=_in_order([*labels, present]), ordered=ordered)


def _kind(column: pd.Series) -> str:
    """What a column holds: ``"text"``, ``"truth"``, ``"number"``, another type by its name, or nothing at all."""
    if not column.notna().any():
        return ""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "text"
    if pd.api.types.is_bool_dtype(column):
        return "truth"
    if pd.api.types.is_numeric_dtype(column):
        return "number"
    if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
        kind = pd.api.types.infer_dtype(column, skipna=True)
        return {"boolean": "truth", "integer": "number", "floating": "number", "mixed-integer-float": "number"}.get(
            kind, "text"
        )
    return str(column.dtype)


def _numbers(column: pd.Series | None, n: int, gaps: bool) -> Any:
    if column is None:
        return np.full(n, np.nan, np.float32)  # the narrowest: it widens no other column
    dtype = column.dtype if isinstance(column.dtype, np.dtype) and column.dtype != object else np.dtype(np.float64)
    if gaps and dtype.kind != "f":
        dtype = np.dtype(np.float64)
    if not gaps and not isinstance(column.dtype, np.dtype):
        dtype = column.to_numpy().dtype  # nullable numbers without gaps
    return column.to_numpy(dtype=dtype, na_value=np.nan) if gaps else column.to_numpy(dtype=dtype)


def _objects(column: pd.Series | None, n: int) -> Any:
    if column is None:
        return np.full(n, None, object)
    return column.astype(object).where(column.notna(), None).to_numpy(object)


def _join_var(frames: Sequence[pd.DataFrame], index: pd.Index, lost: list[str]) -> pd.DataFrame:
    """Columns of the variables: of each, the value of the first table that has one.

    Numbers that differ (counts or moments of single sections) say nothing of the whole and are left out.
    """
    found = {}
    for column in _in_order(f.columns for f in frames):
        own = [f[column] for f in frames if column in f]
        long = pd.Series(join_columns(own, [len(c) for c in own]), index=np.concatenate([c.index for c in own]))
        long = long[long.notna().to_numpy()]
        first = long[~long.index.duplicated()]
        differ = (long.to_numpy(object) != first.reindex(long.index).to_numpy(object)).any()
        if differ and _kind(long) != "text":
            lost.append(f"var[{column!r}]")
            continue
        if differ:
            logger.warning("var[%r] differs between sections for some variables; the first section's is kept.", column)
        whole = first.reindex(index)
        found[column] = pd.Series(join_columns([whole], [len(whole)]), index=index)
    return pd.DataFrame(found, index=index)


# -------------------------------------------------------------------------------------------------------------- arrays


def _join_arrays(values: Sequence[Any], sizes: Sequence[int], index: pd.Index) -> Any | None:
    """Rows of several arrays or frames under each other, NaN where one is not there; `None` where they do not fit."""
    given = [v for v in values if v is not None]
    if all(isinstance(v, pd.DataFrame) for v in given):
        return join_frames(values, sizes, index)
    if any(isinstance(v, pd.DataFrame) for v in given) or len({v.shape[1:] for v in given}) > 1:
        return None
    if any(sp.issparse(v) for v in given):
        whole = len(given) == len(values) and all(sp.issparse(v) for v in given)
        return sp.vstack(given, format="csr") if whole else None  # sparse arrays cannot say that a row is unknown
    if any(np.asarray(v).dtype.kind not in "biuf" for v in given):
        return np.concatenate([np.asarray(v) for v in given]) if len(given) == len(values) else None
    shape = given[0].shape[1:]
    parts = [
        np.full((n, *shape), np.nan, np.float32) if v is None else np.asarray(v)
        for v, n in zip(values, sizes, strict=True)
    ]
    return np.concatenate(parts)


def _one_for_all(tables: Sequence[AnnData], key: str, variables: pd.Index) -> Any | None:
    """What ``varm[key]`` says of all variables, where the tables that have it agree; `None` where they do not."""
    found = None
    for table in tables:
        if key not in table.varm or not variables.isin(table.var_names).all():
            continue
        value = table.varm[key]
        rows = table.var_names.get_indexer(variables)
        own = value.iloc[rows] if isinstance(value, pd.DataFrame) else value[rows]
        if found is not None and not same(found, own):
            return None
        found = own if found is None else found
    return found


# --------------------------------------------------------------------------------------------------------------- notes


def join_notes(notes: Sequence[Mapping[str, Any]], lost: list[str], name: str = "uns") -> dict[str, Any]:
    """Entries of ``uns`` that do not contradict each other; the others are appended to `lost`."""
    out: dict[str, Any] = {}
    for key in _in_order(notes):
        own = [n[key] for n in notes if key in n]
        if all(isinstance(v, Mapping) for v in own):
            out[key] = join_notes(own, lost, f"{name}[{key!r}]")
        elif all(same(own[0], v) for v in own[1:]):
            out[key] = own[0]
        elif not str(key).startswith(_OWN_NOTES):
            lost.append(f"{name}[{key!r}]")
    return out


def same(a: Any, b: Any) -> bool:
    """Whether two values of a table are equal, missing ones too."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, pd.DataFrame | pd.Series | pd.Index) or isinstance(b, pd.DataFrame | pd.Series | pd.Index):
        return type(a) is type(b) and a.equals(b)
    if sp.issparse(a) or sp.issparse(b):
        return sp.issparse(a) and sp.issparse(b) and a.shape == b.shape and (a != b).nnz == 0
    left, right = np.asarray(a), np.asarray(b)
    if left.shape != right.shape:
        return False
    number = left.dtype.kind in "fc" and right.dtype.kind in "fc"
    return bool(np.array_equal(left, right, equal_nan=number))


def one_value(values: Sequence[Hashable]) -> bool:
    """Whether all values are one."""
    return len(set(values)) <= 1
