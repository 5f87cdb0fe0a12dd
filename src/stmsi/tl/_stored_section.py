"""One store with sections: what is read of it beside the expression, and what that is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._core.learning.stored_expression import StoredKind
from stmsi._data.checks import require_rows, require_unique
from stmsi._data.keys import Key
from stmsi._data.stores import content_of, opened_table, stored_matrix, table_without_matrix
from stmsi._data.tables import require_frame
from stmsi._data.whole_file import whole_file
from stmsi._messages import held_back
from stmsi._settings import logger
from stmsi.model.shared._stored_input import StoredExpression
from stmsi.tl._fold_cache import fingerprint, mark_used, software
from stmsi.tl._joined_stores import as_keys, of_metabolites
from stmsi.tl._obs_by_section import add_obs, name_section

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredSection:
    """What is read of one store: all but the expression, of the spots that have MSI.

    Attributes
    ----------
    path, key
        Where it is, and what tells whether it has changed.
    table
        The spots with MSI.
    rows
        Which rows of the store these are.
    stored
        What the expression of all spots of the store is, without its matrix.
    """

    path: Path
    key: str
    table: AnnData
    rows: NDArray[np.int64]
    stored: StoredExpression


@dataclass(frozen=True)
class Look:
    """How to look at a store."""

    fields: Mapping[str, Any]
    table_key: str
    directory: Path | None
    obs: pd.DataFrame | None


def looked_at(number: int, path: Path, look: Look) -> tuple[int, StoredSection | str, list[LogRecord]]:
    """A store, or why it cannot be used; and what was warned of."""
    given = () if look.obs is None else look.obs.columns
    with held_back() as said:
        try:
            one = _read(path, look.fields, look.table_key, look.directory, given)
            add_obs(one.table, look.obs, look.fields.get("sample_key", Key.obs.SAMPLE))
        except (ValueError, KeyError, TypeError, OSError) as error:
            return number, str(error.args[0] if isinstance(error, KeyError) and error.args else error), said
    return number, one, said


def _read(
    path: Path, fields: Mapping[str, Any], table_key: str, directory: Path | None, given: Collection[str]
) -> StoredSection:
    """Everything but the expression, and what that is; the expression is read through where this is not known."""
    sample_key, layer = fields.get("sample_key", Key.obs.SAMPLE), fields.get("layer")
    metabolite_key = fields.get("metabolite_key", Key.obsm.MSI)
    with opened_table(path, table_key) as group:
        table = table_without_matrix(group, path, wanted_of_stores(fields))
        require_rows(table)
        require_unique(table.var_names, "Gene names")
        measured = require_frame(table, metabolite_key, "stmsi.pp.map_to_spots writes it.")
        rows = np.flatnonzero(measured.notna().any(axis=1).to_numpy())
        if len(rows) == 0:
            msg = f"no spot has MSI (all of obsm[{metabolite_key!r}] is NaN); align and map the MSI first"
            raise ValueError(msg)
        name_section(table, path, sample_key)
        _require_named(table, fields, given)
        key = fingerprint(content_of(path), layer, sample_key, table_key, _versions())
        stored = _looked_up(
            path, group, table, layer, sample_key, None if directory is None else directory / f"{key}.json"
        )
    own = table[rows].copy() if len(rows) < table.n_obs else table
    return StoredSection(path.absolute(), key, own, rows, stored)  # workers on a cluster have other working directories


@cache
def _versions() -> dict[str, str]:
    return software()


def wanted_of_stores(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is read of a store beside ``obs`` and ``var``: what the setup names, and what belongs to it."""
    metabolite_key = fields.get("metabolite_key", Key.obsm.MSI)
    obsm = [Key.obsm.SPATIAL, *of_metabolites(fields), *as_keys(fields.get("feature_key"))]
    obsp = dict.fromkeys([Key.obsp.CONNECTIVITIES, fields.get("graph_key") or Key.obsp.CONNECTIVITIES])
    prior = fields.get("prior_key") or Key.varm.PRIOR
    return {"obsm": obsm, "obsp": list(obsp), "varm": [prior], "uns": [metabolite_key, prior]}


def _require_named(table: AnnData, fields: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse a store that lacks what the setup names: all would do without it. Columns of ``obs`` may be `given` beside it."""
    named = {
        "obs": [key for key in as_keys(fields.get("covariate_keys")) if key not in given],
        "obsm": [*as_keys(fields.get("presence_key")), *as_keys(fields.get("feature_key"))],
        "obsp": as_keys(fields.get("graph_key")),
        "varm": as_keys(fields.get("prior_key")),
    }
    lacking = [f"{name}[{key!r}]" for name, keys in named.items() for key in keys if key not in getattr(table, name)]
    if lacking:
        msg = f"it lacks {', '.join(lacking)}, which the setup names"
        raise ValueError(msg)


def _looked_up(
    path: Path, group: Any, table: AnnData, layer: str | None, sample_key: str, kept: Path | None
) -> StoredExpression:
    """What the expression of a store is, from where an earlier run has kept it, or from the numbers."""
    label = table.obs[sample_key]
    number, _ = pd.factorize(label.astype(object).where(label.notna(), "without a section").astype(str))
    if kept is not None and kept.exists():
        try:
            mark_used(kept)
            found = json.loads(kept.read_text(encoding="utf-8"))
            kinds = tuple(StoredKind(**kind) for kind in found.pop("kinds"))
            plain: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
            }
            return StoredExpression(matrix=None, number=number.astype(np.int64), kinds=kinds, **plain)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # not the fault of the store
            logger.warning("%s cannot be read (%s); it is made again.", kept, error)
    matrix = stored_matrix(group, path, layer)
    if matrix.shape != table.shape:
        msg = f"the expression is of shape {matrix.shape}, the table of {table.shape}; write the store again"
        raise ValueError(msg)
    whole = AnnData(
        None if layer is not None else matrix, table.obs, table.var, layers={} if layer is None else {layer: matrix}
    )
    stored = replace(StoredExpression.open(whole, layer, sample_key), matrix=None)
    if kept is not None:
        plain = {name: getattr(stored, name) for name in ("where", "layers", "names", "extremes", "n_entries")}
        text = json.dumps(plain | {"kinds": [asdict(kind) for kind in stored.kinds]})
        try:
            with whole_file(kept) as new:
                new.write_text(text, encoding="utf-8")
        except OSError as error:  # nor is this
            logger.warning("%s cannot be written (%s); another run will read %s again.", kept, error, path)
    return stored
