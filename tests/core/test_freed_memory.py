"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import numpy as np
import pytest

from stmsi._core.freed_memory import release_freed


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_lies_below_memory_in_use_is_given_back():
    release_freed()
    arrays = [np.ones(12_000) for _ in range(1000)]  # 96 kB each: below what is mapped by itself
    last = np.ones(12_000)
    full = resident()
    arrays.clear()
    kept = resident()
    release_freed()
    assert full - resident() > 0.8 * 1000 * 96_000 / 4096
    assert kept > resident() + 1000, "it would not have gone by itself"
    assert last.sum() == 12_000
