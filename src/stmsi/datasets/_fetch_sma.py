"""The SMA deposit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stmsi.datasets._deposits import Deposit, unpack
from stmsi.datasets._read_sma import read_sma

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

SMA = Deposit("sma", "10.17632/w7nw4km7xd.1", "sma.zip", "stmsi.datasets.read_sma")


def fetch_sma(
    *,
    sample: str | Sequence[str] | None = None,
    matrix: str | None = None,
    folder: str | Path | None = None,
    images: bool = True,
) -> SpatialData:
    """MALDI imaging and Visium of the same sections of mouse and human brain (SMA, Vicari et al. 2024).

    Mendeley Data offers no download to programs. The first call says what to download and where to put it; the next one
    unpacks ``sma.zip`` and reads it.

    Parameters
    ----------
    sample
        Sections to read, such as ``"V11L12-109_B1"``; `None`: all.
    matrix
        MALDI matrix of the sections, ``"DHB"``, ``"9-AA"`` or ``"FMP-10"``; needed where `sample` leaves several.
    folder
        Where the files are; by default ``datasets/sma`` in ``stmsi.settings.cache_dir``.
    images
        Whether to keep the histology.

    Returns
    -------
    What :func:`stmsi.datasets.read_sma` returns: both modalities, not aligned yet.

    Raises
    ------
    FileNotFoundError
        The files are not there; the message says what to do.
    KeyError, ValueError
        As :func:`stmsi.datasets.read_sma`, and where the archive is damaged.

    Notes
    -----
    Paper: https://doi.org/10.1038/s41587-023-01937-y. Data: https://doi.org/10.17632/w7nw4km7xd.1, without a checksum.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.fetch_sma(matrix="FMP-10")  # doctest: +SKIP
    """
    where = SMA.folder(folder)
    if not any(where.rglob("*smamsi.csv")):
        archive = where / "sma.zip"
        if not archive.exists():
            where.mkdir(parents=True, exist_ok=True)
            msg = f"There are no files of SMA in {where}. {SMA.by_hand(where)}"
            raise FileNotFoundError(msg)
        unpack(archive)
    return read_sma(where, sample=sample, matrix=matrix, images=images)
