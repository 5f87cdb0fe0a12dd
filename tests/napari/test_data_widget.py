"""What the widgets share."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("qtpy.QtWidgets", reason="Qt is not installed", exc_type=ImportError)

from stmsi.napari._data_widget import silent, with_ending


@pytest.mark.parametrize(
    ("typed", "path"), [("a", "a.png"), ("a.png", "a.png"), ("mz 104.107", "mz 104.107.png"), ("b/s.1", "b/s.1.png")]
)
def test_an_ending_replaces_no_part_of_a_name(typed: str, path: str) -> None:
    assert with_ending(typed, ".png") == Path(path)


def test_signals_come_back_after_an_error() -> None:
    class Box:
        blocked = False

        def blockSignals(self, block: bool) -> bool:  # noqa: N802  Qt calls it so
            before, self.blocked = self.blocked, block
            return before

    box = Box()
    with pytest.raises(ValueError, match="wrong"), silent(box):
        raise ValueError("wrong")
    assert not box.blocked
