"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from stmsi._settings import settings

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
_displays: list[Progress] = []
"""The display of the command line, while one is open: two that redraw the same terminal would garble each other."""


@contextmanager
def shared_display(progress: Progress) -> Iterator[None]:
    """Show all progress bars inside one display, as long as the context lasts."""
    _displays.append(progress)
    try:
        with progress:
            yield
    finally:
        _displays.pop()


def current_display() -> Progress | None:
    """The display that is open, if any."""
    return _displays[-1] if _displays else None


def track(items: Iterable[T], description: str, *, total: int | None = None, show: bool | None = None) -> Iterator[T]:
    """Iterate with a progress bar; `show=None` follows ``stmsi.settings.progress_bar``."""
    visible = settings.progress_bar if show is None else show
    display = current_display()
    if display is None or not visible:
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=description, total=total, disable=not visible, leave=False)
        return
    task = display.add_task(description, total=len(items) if total is None and isinstance(items, Sized) else total)
    display.advance(task, 0)  # the estimate of the time left starts here, and not with the first step
    try:
        for item in items:
            yield item
            display.advance(task)
    finally:
        display.remove_task(task)
