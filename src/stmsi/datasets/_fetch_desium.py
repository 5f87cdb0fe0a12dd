"""The DESIUM deposit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stmsi._core.ids import safe_ids
from stmsi._data.checks import chosen, listing
from stmsi._settings import logger
from stmsi.datasets._deposits import Deposit, download, files_of, unpack
from stmsi.datasets._read_desium import read_desium

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

DESIUM = Deposit("desium", "10.7910/DVN/GZFCWC", "the .h5ad files of the sections", "stmsi.datasets.read_desium")


def fetch_desium(
    *,
    sample: str | Sequence[str] | None = None,
    folder: str | Path | None = None,
    show_progress_bar: bool | None = None,
) -> SpatialData:
    """DESI-MSI and Visium of human breast and lung tumours (DESIUM, Godfrey et al. 2025).

    The files are downloaded from Harvard Dataverse by pooch, checked against the checksums that it states, and kept.

    Parameters
    ----------
    sample
        Sections to download and read, such as ``"LC_091"``; `None`: all.
    folder
        Where the files are kept; by default ``datasets/desium`` in ``stmsi.settings.cache_dir``.
    show_progress_bar
        Whether to show progress; `None` follows ``stmsi.settings.progress_bar``.

    Returns
    -------
    What :func:`stmsi.datasets.read_desium` returns: MSI at the spots, aligned.

    Raises
    ------
    ConnectionError
        The files asked for are neither there nor reachable; the message says what to do.
    KeyError
        The deposit has no such section.

    Notes
    -----
    Paper: https://doi.org/10.1002/anie.202502028. Data: https://doi.org/10.7910/DVN/GZFCWC. Where the deposit holds archives
    (``.zip``) instead of sections, they are downloaded whole.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.fetch_desium(sample="LC_091")  # doctest: +SKIP
    """
    where = DESIUM.folder(folder)
    wanted = None if sample is None else [sample] if isinstance(sample, str) else list(sample)
    local = _local(where)
    if wanted is None or not set(wanted) <= set(local):
        try:
            local |= _downloaded(where, wanted, show_progress_bar)
        except ConnectionError as error:
            if wanted is not None or not local:
                raise
            logger.warning("%s Read instead, from %s: %s", error, where, listing(local))
    names = list(local) if wanted is None else wanted
    return read_desium([local[name] for name in names], sample=names)


def _local(where: Path) -> dict[str, Path]:
    """Sections that are there, by their names."""
    files = sorted(where.rglob("*.h5ad"))
    return dict(zip(safe_ids(file.stem for file in files), files, strict=True))


def _downloaded(where: Path, wanted: list[str] | None, show: bool | None) -> dict[str, Path]:
    """Sections that were downloaded: those wanted, or all."""
    manager = files_of(DESIUM, where)
    remote = {safe_ids([Path(file).stem])[0]: file for file in manager.registry_files if file.endswith(".h5ad")}
    for file in manager.registry_files if not remote else ():
        if file.endswith(".zip"):
            archive = download(DESIUM, manager, file, show)
            if not archive.with_suffix("").is_dir():
                unpack(archive)
    sections = list(remote or _local(where))
    if not sections:
        msg = f"doi:{DESIUM.doi} holds no .h5ad; its files: {listing(manager.registry_files)}. {DESIUM.by_hand(where)}"
        raise ConnectionError(msg)
    chosen(sections, wanted, "DESIUM")
    return (
        {name: download(DESIUM, manager, remote[name], show) for name in wanted or remote} if remote else _local(where)
    )
