"""Progress bars."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from stmsi._settings import settings

T = TypeVar("T")


def track(items: Iterable[T], description: str, *, total: int | None = None, show: bool | None = None) -> Iterator[T]:
    """Iterate with a progress bar; `show=None` follows ``stmsi.settings.progress_bar``."""
    from tqdm.auto import tqdm

    visible = settings.progress_bar if show is None else show
    yield from tqdm(items, desc=description, total=total, disable=not visible, leave=False)
