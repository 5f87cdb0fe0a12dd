"""Warnings said once per call and cause, and those of other processes brought home."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock, get_ident
from typing import Any, ParamSpec, TypeVar

import numpy as np

from stmsi._settings import logger

P = ParamSpec("P")
T = TypeVar("T")

_FIELD = re.compile(r"%[^a-zA-Z%]*[a-zA-Z]")
_NAME_OR_NUMBER = re.compile(r"'[^']*'|\d[\d.,]*")
_LITERAL = 25
"""Letters of a message beside what is filled in, below which what is filled in is its cause, too ("Section %r: %s")."""
_SHOWN, _LENGTH = 5, 60
_AGAIN = "_stmsi_again"
"""Marks the message that ends a call, which is said however often it comes."""


class _OncePerCause(logging.Filter):
    """Lets the first warning of each cause pass, and keeps what is different in the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[object, tuple[str, tuple[Any, ...]]] = {}
        self.others: dict[object, dict[str, str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or hasattr(record, _AGAIN):
            return True
        cause, text, args = _cause(record), record.getMessage(), _arguments(record)
        if cause not in self.first:
            self.first[cause] = text, args
            return True
        before, of_first = self.first[cause]
        if text != before:
            changed = [str(a) for a, b in zip(args, of_first, strict=False) if a != b]
            self.others.setdefault(cause, {})[text] = ", ".join(changed)
        return False

    def say_others(self) -> None:
        """One line for each cause that came again with something else filled in."""
        for cause, others in self.others.items():
            text = self.first[cause][0]
            start = text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."
            found = list(dict.fromkeys(filter(None, others.values())))
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            logger.warning(
                "The warning that begins %r also holds for: %s%s.",
                start, "; ".join(found[:_SHOWN]), more, extra={_AGAIN: True},
            )  # fmt: skip


_open: list[_OncePerCause] = []
_changing = Lock()


@contextmanager
def once_per_cause() -> Iterator[None]:
    """Say each warning of the package's logger once inside, and at the end what else it holds for.

    Of contexts inside one another the outermost counts. Warnings have one cause where their text is one before names and numbers
    are filled in.
    """
    if _open:
        yield
        return
    once = _OncePerCause()
    _open.append(once)
    try:
        with _asked_first(once):
            yield
    finally:
        _open.remove(once)
        once.say_others()


def warns_once(function: Callable[P, T]) -> Callable[P, T]:
    """Of a function: each call says a warning once per cause, however many sections, folds or members it holds for."""

    @wraps(function)
    def calm(*args: P.args, **kwargs: P.kwargs) -> T:
        with once_per_cause():
            return function(*args, **kwargs)

    return calm


@contextmanager
def only(level: int, *names: str) -> Iterator[None]:
    """Of the loggers named, let only messages of this level and worse ones pass."""
    logs = [logging.getLogger(name) for name in names]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(max(log.level, level))
    try:
        yield
    finally:
        for log, was in zip(logs, before, strict=True):
            log.setLevel(was)


@contextmanager
def held_back() -> Iterator[list[logging.LogRecord]]:
    """Collect warnings of this thread instead of saying them; as plain values, which another process can send home."""
    found: list[logging.LogRecord] = []
    own = get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.thread != own:
            return True
        if not isinstance(record.args, tuple):
            record.msg, record.args = record.getMessage(), ()
        record.args, record.exc_info = _arguments(record), None
        found.append(record)
        return False

    with _asked_first(keep):  # before the filter of an outer call, which would drop what came before
        yield found


@contextmanager
def _asked_first(what: Any) -> Iterator[None]:
    """Put a filter before all others of the logger; other threads may do the same meanwhile."""
    with _changing:
        logger.filters = [what, *logger.filters]
    try:
        yield
    finally:
        with _changing:
            logger.filters = [other for other in logger.filters if other is not what]


def say_again(records: Iterable[logging.LogRecord]) -> None:
    """Say warnings that were held back."""
    for record in records:
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


def _cause(record: logging.LogRecord) -> object:
    literal = _FIELD.sub("", str(record.msg)).strip()
    return _NAME_OR_NUMBER.sub("#", record.getMessage()) if len(literal) < _LITERAL else str(record.msg)


def _arguments(record: logging.LogRecord) -> tuple[Any, ...]:
    """What is filled in, as plain values that are written alike."""
    args = record.args if isinstance(record.args, tuple) else ()
    plain = (a.item() if isinstance(a, np.generic) else a for a in args)
    return tuple(a if isinstance(a, str | int | float) else str(a) for a in plain)
