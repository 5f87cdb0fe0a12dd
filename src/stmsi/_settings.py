"""Package-wide settings, and the one logger of the package."""

import getpass
import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger("stmsi")
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)


def _cache_dir() -> Path:
    """Where downloads and caches are kept; some containers run programs as a user without a home."""
    given = os.environ.get("STMSI_CACHE")
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "stmsi"
    except RuntimeError:
        user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
        return Path(tempfile.gettempdir()) / f"stmsi-{user}"


class Settings:
    """Settings of this Python session.

    Examples
    --------
    >>> import stmsi
    >>> stmsi.settings.progress_bar = False
    >>> stmsi.settings.n_jobs = 2
    """

    def __init__(self) -> None:
        self._progress_bar = True
        self._n_jobs = 1
        self._cache_dir = _cache_dir()

    @property
    def verbosity(self) -> int:
        """Level of the package logger, as in :mod:`logging` (a name such as ``"DEBUG"`` may be set)."""
        return logger.level

    @verbosity.setter
    def verbosity(self, level: int | str) -> None:
        known = logging.getLevelNamesMapping()
        if isinstance(level, str) and level.upper() not in known:
            msg = f"verbosity={level!r} is not known; choose one of {', '.join(known)} or a number."
            raise ValueError(msg)
        logger.setLevel(level.upper() if isinstance(level, str) else level)

    @property
    def progress_bar(self) -> bool:
        """Whether long work shows a progress bar when a function is not told otherwise."""
        return self._progress_bar

    @progress_bar.setter
    def progress_bar(self, show: bool) -> None:
        self._progress_bar = bool(show)

    @property
    def n_jobs(self) -> int:
        """Processes that a function may use when it is not told otherwise (-1: all cores)."""
        return self._n_jobs

    @n_jobs.setter
    def n_jobs(self, n: int) -> None:
        if n == 0 or not isinstance(n, int):
            msg = f"n_jobs must be a non-zero integer (-1: all cores), found {n!r}."
            raise ValueError(msg)
        self._n_jobs = n

    @property
    def cache_dir(self) -> Path:
        """Folder for downloads and caches (environment variable ``STMSI_CACHE``; without a home, one among temporary files)."""
        return self._cache_dir

    @cache_dir.setter
    def cache_dir(self, path: str | Path) -> None:
        self._cache_dir = Path(path).expanduser()

    def __repr__(self) -> str:
        names = ("verbosity", "progress_bar", "n_jobs", "cache_dir")
        return "\n".join(f"{name} = {getattr(self, name)!r}" for name in names)


settings = Settings()
