"""Whether compiled code is used, and how functions are compiled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
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
    """Compile a function with numba and keep the machine code on disk, so that a new process need not compile again."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True, **options)(function)  # type: ignore[no-any-return]
