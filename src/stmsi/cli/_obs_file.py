"""What is known of sections and does not stand in their files: a table with one row a section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

OBS = (
    "Columns of obs by section, such as patient or batch (.csv or .tsv): the first column names the section, one row each. They stand in "
    "the place of columns that the files have under these names."
)


def read_obs(path: Path, sample_key: str, covariates: Sequence[str] = ()) -> pd.DataFrame:
    """The table, its index the sections.

    Parameters
    ----------
    path
        The file.
    sample_key
        Column of ``obs`` that names the section: no other column may have this name.
    covariates
        Columns that may hold numbers; all others are text, so that a patient ``007`` stays one.

    Raises
    ------
    FileNotFoundError
        There is no file.
    ValueError
        It is no table, has no column beside the sections, a column or a section twice, a section without a name, or the sections not in
        its first column.
    """
    from stmsi._data.checks import listing
    from stmsi._data.small_files import read_list

    what = "a table of sections"
    cells: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # a patient may be called NA
    names = list(read_list(path, what, dtype=str, header=None, nrows=1, **cells).iloc[0].astype(str))
    first = names[0]
    if len(names) < 2:
        msg = f"{path} has the column {first!r} alone; expected the section first, then columns such as 'patient' or 'batch'."
        raise ValueError(msg)
    if twice := {name for name in names if names.count(name) > 1}:
        msg = f"{path} has columns of one name: {listing(twice)}; rename or remove one of them."
        raise ValueError(msg)
    if sample_key in names[1:]:
        msg = f"{path}: {sample_key!r}, which names the section, must be the first column; found {first!r} there."
        raise ValueError(msg)
    table = read_list(path, what, dtype=str, **cells)
    if table[first].isna().any():
        row = int(table[first].isna().to_numpy().argmax()) + 2
        msg = f"{path}: row {row} has no section in the column {first!r}."
        raise ValueError(msg)
    if len(again := table[first][table[first].duplicated()].unique()):
        msg = f"{path} has several rows for section {listing(again)}; keep one row a section."
        raise ValueError(msg)
    if numbers := [name for name in covariates if name in names[1:]]:
        read = read_list(path, what, usecols=numbers, **cells)
        table = table.assign(**{name: read[name] for name in numbers})
    return table.set_index(first)


def add_known(st: AnnData, source: Path, path: Path, table: pd.DataFrame, sample_key: str) -> None:
    """Write the columns of a table into ``obs`` of the spots of one file; without section names, it is one section with the name of the file."""
    from stmsi.tl._obs_by_section import add_obs, name_section

    name_section(st, source, sample_key)
    add_obs(st, table, sample_key)
    tell_others(table, path, st.obs[sample_key].unique())


def tell_others(table: pd.DataFrame, path: Path, used: Sequence[Any]) -> None:
    """Say which rows of a table are of sections that were not read: a study may have more, and a name may be misspelt."""
    from stmsi._data.checks import listing
    from stmsi._settings import logger

    if len(others := table.index.difference([str(name) for name in used])):
        logger.info("%s has rows of sections that were not read: %s.", path, listing(others))
