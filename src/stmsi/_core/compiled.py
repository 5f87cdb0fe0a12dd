"""Whether compiled code is used, and how functions are compiled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib.util import find_spec
from typing import Any


def use_compiled() -> bool:
    """Whether numba is there and wanted (not ``STMSI_COMPILED=0``); the kernels read little-endian numbers in place."""
    wanted = os.environ.get("STMSI_COMPILED", "1").strip().lower() not in ("0", "false", "no", "off")
    return wanted and sys.byteorder == "little" and find_spec("numba") is not None


def n_threads() -> int:
    """Threads that compiled code may use: numba's setting, which counts the cores that the process was given."""
    if not use_compiled():
        return 1
    import numba

    # not get_num_threads(), which starts a thread pool that nothing here uses
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function with numba and keep the machine code on disk, so that a new process need not compile again.

    Where nothing can be kept (no home, a folder that cannot be written, a full disk, a damaged file), each process compiles.
    """
    import numba

    if not _has_cache_folder():
        return numba.njit(nogil=True, **options)(function)  # type: ignore[no-any-return]
    try:
        dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True, **options)(function)  # type: ignore[no-any-return]
    cache: Any = getattr(dispatcher, "_cache", None)
    if hasattr(cache, "load_overload"):
        cache.load_overload = _or_none(cache.load_overload, cache.flush)  # the list of what is kept begins anew
        cache.save_overload = _or_none(cache.save_overload)
    return dispatcher  # type: ignore[no-any-return]


def _has_cache_folder() -> bool:
    """Whether numba knows of a folder of the user: without a home it would make one named ``~`` in the working directory."""
    import numba

    given = numba.config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME")  # type: ignore[attr-defined]
    return bool(given) or os.path.expanduser("~") != "~"  # noqa: PTH111 pathlib raises


def _or_none(function: Callable[..., Any], mend: Callable[[], Any] | None = None) -> Callable[..., Any]:
    """A function of a cache that returns `None` where it fails: numba lets a full disk and damaged files stop the run."""

    @wraps(function)
    def quiet(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception:  # noqa: BLE001 unpickling raises what it likes
            if mend is not None:
                with suppress(OSError):
                    mend()
            return None

    return quiet
