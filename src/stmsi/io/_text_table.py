"""Text tables as instruments, R and spreadsheets write them, with errors that say what is wrong."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from contextlib import suppress
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix

from stmsi._data.checks import listing, suggest
from stmsi._data.containers import check_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import scipy.sparse as sp
    from numpy.typing import NDArray

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_DECIMAL_COMMA = re.compile(r"^\s*-?\d*,\d+\s*$")
_COMMENT = "#"


def read_text_table(
    path: Path, *, separator: str | None = None, decimal: str = ".", default: str | None = None
) -> pd.DataFrame:
    """A text table with its columns as they are called in the file, without blanks at their ends.

    Lines that start with ``#`` before the column names are left out, and so is a column without name at either end: the
    index that pandas and R write, and what follows a separator at the end of every line.

    `path` is plain or compressed by gzip, in UTF-8. `separator` `None`: `default`, or what the column names hold where there
    is none or after comment lines, as SCiLS Lab writes them. `default` is given where the caller has an option to change it.
    """
    check_file(path)
    # by its first bytes, because a gzip file is not always called so
    with path.open("rb") as handle:
        compression: Literal["gzip"] | None = "gzip" if handle.read(2) == b"\x1f\x8b" else None
    if compression is None and path.suffix.lower() == ".gz":
        msg = f"{path} is called .gz but is not compressed by gzip; rename or copy it again."
        raise ValueError(msg)
    try:
        comments, header, row = _first_lines(path, compressed=compression is not None)
        separator = separator or (_found_in(header) if comments or default is None else default)
        options: dict[str, Any] = {"sep": separator, "compression": compression, "encoding": "utf-8-sig"}
        options["skiprows"] = comments
        # the first row too, because pandas takes a first field without a name for an index, silently; here it is an error
        alike = True
        if row.endswith(separator) and row.count(separator) == header.count(separator) + 1:
            # rows, but not the names, end with a separator
            options["index_col"], alike = False, False
        names = _names(path, header, row if alike else "", separator, options)
        _check_columns(names, path, separator)
        frame = pd.read_csv(path, low_memory=False, decimal=decimal, **options)
    except pd.errors.EmptyDataError as error:
        msg = f"{path} holds no table; copy or export it again."
        raise ValueError(msg) from error
    except pd.errors.ParserError as error:
        remedy = "another separator, and decimal=','" if default else "decimal points instead"
        msg = (
            f"{path} has rows of unequal length ({str(error).strip()}). Check the separator ({separator!r}) and that every "
            f"column has a name; numbers with a decimal comma need {remedy}."
        )
        raise ValueError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path} is not a text table in UTF-8 ({error}); say its format by table_format=."
        raise ValueError(msg) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        msg = f"{path} is truncated or damaged ({error}); copy it again."
        raise ValueError(msg) from error
    except (csv.Error, MemoryError, OverflowError) as error:
        msg = f"{path} is not a text table ({error}); copy or export it again."
        raise ValueError(msg) from error
    if not names[0].strip():
        frame, names = frame.iloc[:, 1:], names[1:]
    if not names[-1].strip() and frame.iloc[:, -1].isna().all():
        frame = frame.iloc[:, :-1]
    return frame.rename(columns=lambda name: str(name).strip())


def read_wide_table(
    path: Path, is_wide: Callable[[str], bool]
) -> tuple[pd.DataFrame, list[str], NDArray[np.float64] | None]:
    """A text table that ends with very many columns of numbers, such as one a pixel.

    pandas spends a series on every column; here each row becomes one array. What does not fit, such as text among the
    numbers, goes to :func:`read_text_table`, whose errors tell more.

    Returns the columns before, the names of the wide ones, and their numbers, shape (rows, wide columns), or `None` where the
    frame holds them.
    """
    check_file(path)
    with suppress(ValueError, csv.Error, OSError, EOFError, zlib.error):
        parsed = _wide_rows(path, is_wide)
        if parsed is not None:
            return parsed
    frame = read_text_table(path)
    return frame, [name for name in frame.columns if is_wide(name)], None


def _wide_rows(
    path: Path, is_wide: Callable[[str], bool]
) -> tuple[pd.DataFrame, list[str], NDArray[np.float64]] | None:
    compressed = path.suffix.lower() == ".gz"
    comments, header, _ = _first_lines(path, compressed=compressed)
    with _opened(path, compressed=compressed) as handle:
        rows = csv.reader(islice(handle, comments, None), delimiter=_found_in(header))
        names = [name.strip() for name in next(rows, [])]
        n_lead = next((i for i, name in enumerate(names) if is_wide(name)), len(names))
        wide = names[n_lead:]
        if not wide or not all(map(is_wide, wide)) or len(set(names)) < len(names):
            return None
        lead, values = [], []
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                return None
            lead.append(row[:n_lead])
            values.append(np.array(row[n_lead:], dtype=np.float64))
    if not values:
        return None
    frame = pd.DataFrame(lead, columns=names[:n_lead], dtype=object).replace("", np.nan)
    for name in frame:
        number = pd.to_numeric(frame[name], errors="coerce")
        if number.notna().equals(frame[name].notna()):
            frame[name] = number
    return frame, wide, np.stack(values)


def require_columns(frame: pd.DataFrame, names: Sequence[str], path: Path, remedy: str = "") -> None:
    """Raise where a table lacks columns."""
    absent = [name for name in names if name not in frame]
    if absent:
        msg = f"{path} has no column {listing(absent)}; found {listing(frame.columns)}. {remedy}"
        raise ValueError(msg.strip() + suggest(absent[0], frame.columns))
    if len(frame) == 0:
        msg = f"{path} has a header but no rows; export it again."
        raise ValueError(msg)


def check_repeats(names: Iterable[Any], path: Path, what: str, remedy: str = "") -> None:
    """Raise where names repeat; `what` they are."""
    index = pd.Index(names)
    if not index.is_unique:
        msg = f"{path} repeats {what}: {listing(index[index.duplicated()].unique())}{remedy}."
        raise ValueError(msg)


def check_numbers(frame: pd.DataFrame, path: Path, *, decimal: str = "", keep: str = "") -> None:
    """Raise with the first column that holds something else than numbers, and what it holds.

    `decimal` and `keep` say what to do about decimal commas and about columns of text, as far as the caller can.
    """
    # by their types first: ion images have a column a pixel
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]]:
        column = frame[name]
        text = column[column.notna()].astype(str)
        bad = text[pd.to_numeric(text, errors="coerce").isna()]
        if len(bad) == 0 and not pd.api.types.is_datetime64_any_dtype(column):
            msg = f"{path}: column {name!r} has type {column.dtype}, not a number; convert it first."
        elif bad.str.match(_DECIMAL_COMMA).any():
            remedy = decimal or "write it with decimal points"
            msg = f"{path}: column {name!r} has decimal commas ({listing(bad[:3])}); {remedy}."
        else:
            msg = (
                f"{path}: column {name!r} must hold numbers; in {len(bad)} rows it holds text: {listing(bad[:3])}. "
                f"Correct them{keep}."
            )
        raise ValueError(msg)


def check_intensities(X: NDArray[np.float64] | sp.spmatrix, ions: pd.Index, path: Path) -> None:
    """Raise where intensities cannot be: name the ions."""
    values = coo_matrix(X)
    names = np.asarray(ions.astype(str))
    for what, wrong, remedy in (
        ("NaN", np.isnan(values.data), "fill them with 0 if they mean absent, else drop these pixels"),
        ("infinite", np.isinf(values.data), "remove them"),
        ("negative", np.less(values.data, 0), "clip them at 0; log or scaled values must be turned back"),
    ):
        if wrong.any():
            which = listing(names[np.unique(values.col[wrong])])
            msg = f"{path}: {int(wrong.sum())} intensities are {what}, in {which}; {remedy}."
            raise ValueError(msg)


def _first_lines(path: Path, *, compressed: bool) -> tuple[int, str, str]:
    """How many lines of comments come first (blank ones among them too), the column names, and the first row."""
    with _opened(path, compressed=compressed) as handle:
        skipped, comments = 0, False
        for line in handle:
            if line.startswith(_COMMENT):
                comments = True
            elif line.strip() or not comments:
                break
            skipped += 1
        else:
            line = ""
        return (skipped if comments else 0), line.rstrip("\r\n"), next(handle, "").rstrip("\r\n")


def _names(path: Path, header: str, row: str, separator: str, options: dict[str, Any]) -> list[str]:
    """The column names; raises where the first row has more fields."""
    if len(separator) > 1 or header.count('"') % 2 or row.count('"') % 2:
        # names or values on several lines, which pandas puts together
        head = pd.read_csv(path, header=None, nrows=2 if row else 1, dtype=str, keep_default_na=False, **options)
        return [str(name) for name in head.iloc[0]]
    # by csv, because pandas makes a series of every column: seconds for fifty thousand ions
    if not header.strip():
        msg = "No columns to parse from file"
        raise pd.errors.EmptyDataError(msg)
    names, *values = csv.reader([line for line in (header, row) if line], delimiter=separator)
    if values and len(values[0]) > len(names):
        msg = f"Expected {len(names)} fields in the first row, saw {len(values[0])}"
        raise pd.errors.ParserError(msg)
    return names


def _opened(path: Path, *, compressed: bool) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8-sig") if compressed else path.open(encoding="utf-8-sig")


def _found_in(header: str) -> str:
    """The separator that the column names hold most often."""
    counts = {separator: header.count(separator) for separator in _SEPARATORS}
    best = max(counts, key=lambda separator: counts[separator])
    return best if counts[best] else ","


def _check_columns(names: list[str], path: Path, separator: str) -> None:
    if len(names) == 1:
        other = [s for s in _SEPARATORS if s != separator and s in names[0]]
        hint = f"Its header holds a {_SEPARATORS[other[0]]}: pass separator={other[0]!r}." if other else ""
        msg = f"{path} has only one column with the separator {separator!r} ({names[0][:60]!r}). {hint}".strip()
        raise ValueError(msg)
    check_repeats([str(name).strip() for name in names], path, "columns", "; every ion needs its own name")
