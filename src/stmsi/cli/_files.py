"""Files of the command line: read what was named, write whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmsi._data.h5ad_files import write_h5ad
from stmsi._data.unfinished import unfinished

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""The last four: the same in full width, which spreadsheets in East Asian languages take for them."""


def read_data(path: Path) -> SpatialData | AnnData:
    """A SpatialData or AnnData from disk, told by the suffix."""
    from stmsi._data.containers import open_h5ad, open_store

    if not path.exists():
        msg = f"No such file or folder: {path}"
        raise FileNotFoundError(msg)
    if path.suffix == ".h5ad":
        return open_h5ad(path)
    if path.suffix == ".zarr" and path.is_dir():
        return open_store(path, selection=None)
    msg = f"Expected a SpatialData store (.zarr) or an AnnData file (.h5ad), found {path.name!r}."
    raise ValueError(msg)


def read_card(folder: Path) -> dict[str, Any]:
    """The model card of a saved model."""
    from stmsi._data.small_files import read_json

    path = folder / "stmsi.json"
    if not path.exists():
        msg = f"{folder} is not a saved stmsi model: it has no stmsi.json; pass the folder that model.save wrote."
        raise FileNotFoundError(msg)
    return read_json(path, "a model card")


def check_output(out: Path, source: Path, suffix: str | None = None) -> None:
    """Refuse outputs that would overwrite something, before the work is done."""
    if suffix is None and out.suffix != source.suffix:
        msg = f"The output must be of the same kind as the input ({source.suffix}), found {out.name!r}."
        raise ValueError(msg)
    if suffix is not None and out.suffix != suffix:
        msg = f"The output must end in {suffix}, found {out.name!r}."
        raise ValueError(msg)
    check_new(out, source)


def check_new(out: Path, source: Path) -> None:
    """Refuse an output that exists, or lies inside the input."""
    if source.resolve() in out.resolve().parents:
        msg = f"{out} lies inside the input {source}; name an output elsewhere."
        raise ValueError(msg)
    if out.exists():
        msg = f"{out} exists already; name another output."
        raise FileExistsError(msg)


def write_data(content: Any, out: Path) -> None:
    """Write a SpatialData or AnnData, whole or not at all."""
    with _whole(out) as scratch:
        if out.suffix == ".h5ad":
            write_h5ad(content, scratch)
        else:
            content.write(scratch)


def write_csv(table: pd.DataFrame, out: Path) -> None:
    """Write a csv, whole or not at all, that is safe to open in a spreadsheet.

    Text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break would run as a formula there: it gets a ``'`` in
    front. Numbers stay as they are.
    """
    with _whole(out) as scratch:
        safe_cells(table).to_csv(scratch, index=False, errors="backslashreplace")


def safe_cells(table: pd.DataFrame) -> pd.DataFrame:
    """A copy of a table in which no text, and no column name, is a formula to a spreadsheet."""
    import pandas as pd

    out = table.rename(columns=_safe_cell)
    for place, dtype in enumerate(table.dtypes):
        if dtype.kind not in "biufcmM":
            values = table.iloc[:, place]
            # as objects: strings of pandas 3 cannot hold halves of characters
            cells = pd.Series([_safe_cell(value) for value in values], index=out.index, dtype=object)
            out.isetitem(place, cells)  # type: ignore[arg-type]  # pandas-stubs forget Series
    return out


def _safe_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def write_text(text: str, out: Path) -> None:
    """Write a text, whole or not at all."""
    with _whole(out) as scratch:
        # names in damaged files may hold halves of characters
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """The same name in a folder beside the output; it takes the place of the output when all went well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(out) as folder:
        yield folder / out.name
        (folder / out.name).replace(out)
