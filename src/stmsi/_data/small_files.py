"""Small files of others, read whole: JSON, lines, lists as csv, parquet tables, pictures; each error names the file."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pandas as pd

from stmsi._data.containers import AGAIN, check_file, check_unpacked, reading

if TYPE_CHECKING:
    from pathlib import Path


def read_parquet(path: Path) -> pd.DataFrame:
    """The table of a parquet file.

    Raises
    ------
    FileNotFoundError
        There is no file.
    ValueError
        It is damaged or something else, or unpacks to more memory than its size allows.
    """
    import pyarrow.parquet as pq

    with reading(check_file(path), "a parquet file"):
        about = pq.read_metadata(path)
        check_unpacked(path, [("its columns", about.num_rows * about.num_columns, path.stat().st_size)])
        return pd.read_parquet(path)


def read_json(path: Path, what: str, remedy: str = AGAIN) -> dict[str, Any]:
    """The entries of a JSON file.

    Raises
    ------
    FileNotFoundError
        There is no file.
    ValueError
        It is no JSON in UTF-8, or holds no entries.
    """
    with reading(check_file(path), what, remedy):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        msg = f"{path} is not {what}: it holds {type(content).__name__}, not entries with names; {remedy}."
        raise ValueError(msg)
    return content


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte-order mark.

    Raises
    ------
    FileNotFoundError
        There is no file.
    ValueError
        It is no text in UTF-8.
    """
    with reading(check_file(path), what, "save it as text in UTF-8"):
        return path.read_text(encoding="utf-8-sig").splitlines()


def read_list(
    path: Path, what: str, *, separators: str = ",;\t", heading: str | None = None, **options: Any
) -> pd.DataFrame:
    """A small text table that a person or a database wrote: landmarks, ions, molecules.

    Parameters
    ----------
    path
        The file, in UTF-8.
    what
        What it should be, for errors.
    separators
        Of which the one that the first line holds most often is taken. Where that is a semicolon, commas may stand for the
        decimal point.
    heading
        Start of lines to leave out before the column names; `None`: there are none.
    options
        Of :func:`pandas.read_csv`.

    Raises
    ------
    FileNotFoundError
        There is no file.
    ValueError
        It is no text table in UTF-8.
    """
    with reading(check_file(path), what, "save it as csv or tsv in UTF-8"):
        lead, first = 0, ""
        with path.open(encoding="utf-8-sig", errors="replace") as file:  # spreadsheets put a mark first
            for lead, line in enumerate(file):  # noqa: B007
                if heading is None or (line.strip() and not line.startswith(heading)):
                    first = line
                    break
        if "\0" in first:
            msg = f"{path} is not text: its first line holds zero bytes; it should be {what}, saved as csv or tsv in UTF-8."
            raise ValueError(msg)
        separator = max(separators, key=first.count)
        options = {"decimal": "," if separator == ";" else ".", "skiprows": lead, "encoding": "utf-8-sig"} | options
        return pd.read_csv(path, sep=separator, iterator=False, chunksize=None, **options)


def check_image(path: Path) -> None:
    """Raise where an image file is damaged; readers open it much later, far from any message that names it."""
    from skimage.io import imread

    with (
        reading(check_file(path), "an image", "copy it again, or remove it from the folder"),
        warnings.catch_warnings(),
        path.open("rb") as file,  # what is opened for the decoder stays open where it fails
    ):
        warnings.filterwarnings("error", message=".*decompression bomb.*")
        imread(file)
