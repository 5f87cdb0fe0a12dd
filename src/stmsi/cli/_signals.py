"""SIGTERM, as batch systems and containers send it: treated as Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_AGAIN = 0.5
"""Seconds after which an interrupt that something swallowed is raised again."""


@dataclass
class Stopped:
    """Whether the process was told to end."""

    terminated: bool = False


@contextmanager
def termination_as_interrupt(stopped: Stopped) -> Iterator[None]:
    """Raise a `KeyboardInterrupt`, and note it in `stopped`, where SIGTERM comes, so that all that cleans up after Ctrl-C does so.

    A second one, while that goes on, is not heard. Python swallows what is raised in a callback of an import or in a destructor, and
    libraries swallow more: the interrupt comes again until it is on its way. A handler of the program around it stays.
    """
    timed = hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL

    def interrupt(*_: Any) -> None:
        stopped.terminated = True
        if timed:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if not _on_its_way():
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    if timed:
        signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_its_way() -> bool:
    """Whether the code that a signal came into is handling an interrupt, as in a `finally` that cleans up."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
