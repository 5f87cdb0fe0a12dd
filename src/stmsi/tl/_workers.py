"""Who does independent tasks: this process, processes beside it, or the workers of a cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import joblib

from stmsi._settings import settings
from stmsi.tl._cluster import connected, results

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Who does independent tasks.

    Attributes
    ----------
    cluster
        Client of a cluster; `None`: joblib.
    n_jobs
        Processes of joblib; `None` follows ``joblib.parallel_config``, and is one where that says nothing.
    """

    cluster: Client | None = None
    n_jobs: int | None = None

    @classmethod
    @contextmanager
    def found(cls, client: Client | str | None, n_jobs: int | None = None) -> Iterator[Workers]:
        """The workers of a cluster, or (without a client) `n_jobs` processes, of which `None` follows the settings.

        Raises as :func:`stmsi.tl._cluster.connected`.
        """
        if client is None:
            n_jobs = settings.n_jobs if n_jobs is None else n_jobs
            # None lets joblib.parallel_config say which backend to use, and how much of it
            yield cls(n_jobs=None if n_jobs == 1 else n_jobs)
            return
        with connected(client) as cluster:
            yield cls(cluster)

    @property
    def several(self) -> bool:
        """Whether tasks are done anywhere but here."""
        return self.cluster is not None or joblib.effective_n_jobs(self.n_jobs) > 1

    @contextmanager
    def folder(self, kept: Path | None) -> Iterator[Path | None]:
        """A folder in which workers find what others have written: the one given, or one that is gone at the end.

        `None` where only this process works, or where a worker does not see this machine's temporary folder.
        """
        if kept is not None or not self.several:
            yield kept
            return
        with tempfile.TemporaryDirectory(prefix="stmsi-", ignore_cleanup_errors=True) as name:
            seen = self.cluster is None or all(self.cluster.run(os.path.isdir, name).values())
            yield Path(name) if seen else None

    def results(self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], shared: Any) -> Iterable[T]:
        """What ``function(*call, shared)`` returns for each call, as it is done; errors as :func:`stmsi.tl._cluster.results`."""
        if self.cluster is not None:
            return results(self.cluster, function, calls, shared)
        parallel = joblib.Parallel(n_jobs=self.n_jobs, return_as="generator_unordered")
        done: Iterable[T] = parallel(joblib.delayed(function)(*call, shared) for call in calls)
        return done


HERE = Workers(n_jobs=1)
"""This process alone."""
