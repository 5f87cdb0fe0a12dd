"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """`malloc_trim` of the C library, `None` where it has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def release_freed() -> None:
    """Give the system memory back that was freed; glibc keeps that of each thread for the next array, which may be of another size."""
    trim = _trim()
    if trim is not None:
        trim(0)
