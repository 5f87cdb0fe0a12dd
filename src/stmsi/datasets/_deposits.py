"""Public deposits: where they are, where they are kept, and what a person must download."""

from __future__ import annotations

import errno
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stmsi._data.containers import check_file, reading
from stmsi._data.unfinished import unfinished
from stmsi._settings import logger, settings
from stmsi.io._files import check_new

if TYPE_CHECKING:
    import pooch


@dataclass(frozen=True)
class Deposit:
    """A public deposit."""

    name: str
    doi: str
    files: str
    """What to download, and how it lies in the folder."""
    reader: str

    def folder(self, given: str | Path | None) -> Path:
        """Where its files are kept: the folder given, else one in the cache directory."""
        return settings.cache_dir / "datasets" / self.name if given is None else Path(given)

    def by_hand(self, folder: Path) -> str:
        """What to do without a download."""
        return (
            f"Open https://doi.org/{self.doi}, download {self.files} into {folder.absolute()} and call this function "
            f"again, or read the files with {self.reader}."
        )


def files_of(deposit: Deposit, folder: Path) -> pooch.Pooch:
    """The list of files of a deposit with their checksums, as the archive states them."""
    import pooch

    manager = pooch.create(path=folder, base_url=f"doi:{deposit.doi}/", registry=None)
    try:
        manager.load_registry_from_doi()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:  # requests' errors are OSErrors
        msg = f"The list of files of {deposit.name} (doi:{deposit.doi}) cannot be read ({error}). {deposit.by_hand(folder)}"
        raise ConnectionError(msg) from error
    return manager


def download(deposit: Deposit, manager: pooch.Pooch, file: str, show_progress_bar: bool | None) -> Path:
    """One file of a deposit, from the folder where it is there and its checksum holds."""
    visible = settings.progress_bar if show_progress_bar is None else show_progress_bar
    try:
        return Path(manager.fetch(file, progressbar=visible))
    except (OSError, ValueError) as error:  # a ValueError where the checksum does not hold
        msg = f"{file} of doi:{deposit.doi} cannot be downloaded ({error}). {deposit.by_hand(manager.abspath)}"
        raise ConnectionError(msg) from error


def unpack(archive: Path) -> None:
    """Unpack a zip file beside itself; what is there after an interrupt is never half of it.

    Raises
    ------
    FileExistsError
        What it would be unpacked to is there already.
    OSError
        The disk has no room for what the archive says that it holds.
    ValueError
        The archive is damaged.
    """
    target = check_new(archive.with_suffix(""), "folder")
    logger.info("Unpacking %s", archive)
    with unfinished(target) as part:
        with reading(check_file(archive), "a zip archive", "download it again"), zipfile.ZipFile(archive) as file:
            size = sum(item.file_size for item in file.infolist())
            if size > shutil.disk_usage(part).free:
                raise OSError(errno.ENOSPC, f"{archive} unpacks to {size} bytes; free some space", str(target))
            file.extractall(part / target.name)
        (part / target.name).rename(target)
