"""What is known of sections and does not stand in their stores, such as the patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from stmsi._data.checks import listing

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

ObsBySection: TypeAlias = pd.DataFrame | Mapping[str, Mapping[str, Any]]
"""Columns of ``obs`` by section: a table with the sections as its index, or column -> section -> value."""


def obs_table(given: ObsBySection | None) -> pd.DataFrame | None:
    """The table, its index text.

    Raises
    ------
    TypeError
        Neither a table nor a mapping of mappings.
    ValueError
        A section is named twice, or there is no column.
    """
    if given is None:
        return None
    if not isinstance(given, pd.DataFrame):
        if not isinstance(given, Mapping) or not all(isinstance(column, Mapping) for column in given.values()):
            msg = (
                "obs= takes a DataFrame whose index names the sections, or a mapping such as "
                f"{{'patient': {{'S1': 'P1', 'S2': 'P2'}}}}; found {type(given).__name__}."
            )
            raise TypeError(msg)
        given = pd.DataFrame({name: pd.Series(dict(column), dtype=object) for name, column in given.items()})
    table = given.set_axis(given.index.astype(str))
    if not len(table.columns):
        msg = "obs= has no column; name at least one, such as 'patient'."
        raise ValueError(msg)
    if not table.index.is_unique:
        msg = f"obs= names sections more than once: {listing(table.index[table.index.duplicated()].unique())}."
        raise ValueError(msg)
    return table


def add_obs(adata: AnnData, table: pd.DataFrame | None, sample_key: str) -> None:
    """Write the columns into ``obs``, in the place of what was there.

    Raises
    ------
    ValueError
        A section has no row.
    """
    if table is None:
        return
    sections = adata.obs[sample_key].astype(str)
    lacking = [name for name in sections.unique() if name not in table.index]
    if lacking:
        msg = f"obs= has no row for section {listing(lacking)}; its rows are {listing(table.index)}"
        raise ValueError(msg)
    for name, column in table.items():
        adata.obs[str(name)] = column.reindex(sections).set_axis(adata.obs_names)


def name_section(adata: AnnData, path: Path, sample_key: str) -> None:
    """A store without section names is one section, with the name of its file: written into ``obs``."""
    if sample_key not in adata.obs:
        adata.obs[sample_key] = path.name.removesuffix(path.suffix)


def refuse_obs(given: ObsBySection | None) -> None:
    """Refuse a table beside data in memory, which hold their own."""
    if given is not None:
        msg = "obs= is for stores; of data in memory, write the columns into obs of the table."
        raise ValueError(msg)
