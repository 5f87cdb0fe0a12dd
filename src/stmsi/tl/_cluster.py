"""Work on a dask cluster, as results come: a task whose worker dies is done again by another one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from stmsi._data.checks import listing
from stmsi._settings import logger
from stmsi.model.shared._persistence import PACKAGES

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")

_TIMEOUT = 10
"""Seconds after which a scheduler that does not answer is not there."""


@contextmanager
def connected(client: Client | str, *, wait: bool = True) -> Iterator[Client]:
    """The client of a cluster whose workers have what is needed; one made of an address is closed at the end.

    A scheduler without workers is waited for until it has one, unless `wait` is false.

    Raises
    ------
    ConnectionError
        No scheduler answers at the address within ten seconds.
    ImportError
        distributed is not installed here, or stmsi is not installed on a worker.
    TypeError
        Neither a client nor an address.
    ValueError
        A worker has another version of stmsi.
    """
    try:
        from distributed import Client
    except ImportError as error:
        msg = 'A cluster needs dask.distributed, which is not installed; run: pip install "stmsi[cluster]".'
        raise ImportError(msg) from error
    if isinstance(client, Client):
        _check_workers(client, wait=wait)
        yield client
        return
    if not isinstance(client, str):
        msg = (
            "client= takes a dask.distributed.Client or the address of a scheduler, such as 'tcp://10.0.0.1:8786'; found "
            f"{type(client).__name__}. Of a cluster, pass cluster.get_client()."
        )
        raise TypeError(msg)
    try:
        own = Client(client, timeout=_TIMEOUT)
    except (OSError, TimeoutError, ValueError) as error:
        msg = (
            f"No dask scheduler answers at {client!r} within {_TIMEOUT} seconds ({type(error).__name__}). Start one with `dask scheduler`, "
            "and pass the address that it prints."
        )
        raise ConnectionError(msg) from error
    try:
        _check_workers(own, wait=wait)
        yield own
    finally:
        own.close()


def check_scheduler(address: str) -> None:
    """Refuse a scheduler that does not answer, or whose workers cannot do the work, before a long run that needs it at its end.

    Workers may still be missing: they are waited for when there is work. Raises as :func:`connected`.
    """
    with connected(address, wait=False):
        pass


def _check_workers(client: Client, *, wait: bool = True) -> None:
    """Refuse workers without stmsi, or with another version of it, before they get work."""
    if not client.scheduler_info()["workers"]:
        if not wait:
            return
        logger.warning("The scheduler has no workers yet; waiting for the first one.")
        client.wait_for_workers(1)
    for package in PACKAGES:
        own = version(package)
        # a function of the standard library: one of stmsi could not be sent to a worker that lacks it
        found = client.run(version, package, on_error="return")
        lacking = [worker for worker, told in found.items() if isinstance(told, PackageNotFoundError)]
        other = {worker: told for worker, told in found.items() if isinstance(told, str) and told != own}
        if package == "stmsi" and lacking:
            msg = (
                f"Workers {listing(lacking)} have no stmsi. Install the same version there (pip install stmsi=={own}), in the environment "
                "that their `dask worker` is started from."
            )
            raise ImportError(msg)
        if package == "stmsi" and other:
            msg = f"Workers {listing(other)} have stmsi {listing(set(other.values()))}, here it is {own}; install one version on all."
            raise ValueError(msg)
        if other:
            logger.warning(
                "Workers %s have %s %s, here it is %s: results may differ in the last digits.",
                listing(other), package, listing(set(other.values())), own,
            )  # fmt: skip


def results(client: Client, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], shared: Any) -> Iterator[T]:
    """What ``function(*call, shared)`` returns for each call, in the order in which they are done.

    Parameters
    ----------
    client
        The cluster.
    function
        What a worker does.
    calls
        Its arguments.
    shared
        Its last argument, which is sent once to each worker that needs it, also to those that come later.

    Raises
    ------
    RuntimeError
        A call has ended several workers, of which memory is the usual cause; or what the function raises.
    """
    from distributed import KilledWorker, as_completed

    run = uuid4().hex[:8]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        # not scattered: what a task has made can be made again when its worker is gone
        there = client.submit(pickle.loads, pickle.dumps(shared), key=f"stmsi-shared-{run}")
        futures = [
            client.submit(function, *call, there, key=f"stmsi-{run}-{k}", pure=False) for k, call in enumerate(calls)
        ]
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except KilledWorker as error:
                msg = (
                    f"A task has ended the workers that it was given to ({error}). The usual cause is memory: give each worker more "
                    "(memory_limit=), or start fewer of them on a machine."
                )
                raise RuntimeError(msg) from error
            future.release()
    finally:
        client.cancel([there, *futures])
