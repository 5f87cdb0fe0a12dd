"""SIGTERM, as batch systems and containers send it: treated as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Stopped:
    """Whether the process was told to end."""

    terminated: bool = False


@contextmanager
def termination_as_interrupt(stopped: Stopped) -> Iterator[None]:
    """Raise a `KeyboardInterrupt`, and note it in `stopped`, where SIGTERM comes, so that all that cleans up after Ctrl-C does so.

    A second one, while that goes on, is not heard. A handler of the program around it stays.
    """

    def interrupt(*_: Any) -> None:
        if not stopped.terminated:
            stopped.terminated = True
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
