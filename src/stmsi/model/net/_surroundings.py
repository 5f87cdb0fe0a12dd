"""Surroundings of the network: logs, threads, interrupts and seeds as they were, whatever happens inside."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stmsi._messages import only


@contextmanager
def quiet() -> Iterator[None]:
    """Without scvi-tools' and Lightning's notes on columns, workers and accelerators, which ask nothing of a user."""
    with only(logging.ERROR, "scvi", "lightning.pytorch"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message="Category .* has fewer than")
        # said of every query that holds few spots of a cluster, which does no harm
        warnings.filterwarnings("ignore", message=".*has fewer than 3 cells")
        # of a handful of training spots
        warnings.filterwarnings("ignore", message="Last batch will have a small size")
        # pandas 3 hands out read-only arrays; nothing here writes into a batch
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        yield


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """An interrupt stays a `KeyboardInterrupt`; Lightning ignores all further ones and leaves Python."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Torch limited to some threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators seeded inside, as they were outside."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
