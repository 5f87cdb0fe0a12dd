"""Which rooms of the core run on one of the two stacks of continuous integration."""

from __future__ import annotations

from pathlib import Path

import pytest

ONCE = {"learning", "registration", "spatial", "uncertainty"}
"""Rooms of long searches, fits and draws, on arrays alone. The rooms above call them on both stacks."""
BOTH = {"test_profile_hashes.py", "test_morans_i.py"}
"""What reads frames or sparse matrices of other packages all the same."""
_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what was not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.parent == _HERE and item.path.parent.name in ONCE and item.path.name not in BOTH:
            item.add_marker(pytest.mark.once)
