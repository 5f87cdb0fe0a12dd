"""Batches of spots whose expression is on disk: windows of a few thousand are read, shuffled and trained on, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from stmsi.model.net._scvi_fields import NetDataManager, OrderedRows
from stmsi.model.shared._streamed_parts import Rows, read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_input import Spots

WINDOW = 8192
"""Spots that are in memory together."""
BLOCK = 256
"""Consecutive spots of a store that come into a window together."""
_ALONE = ("multiprocessing_context", "num_workers", "persistent_workers", "prefetch_factor", "timeout")


@dataclass
class StoredInput:
    """Where a network finds spots whose expression is not in its AnnData.

    Attributes
    ----------
    expression
        The expression of the spots of the AnnData, on disk.
    read
        Gives these spots for a setup, when told the rows that will be summed up together.
    close
        Closes the stores, which stay open between windows; they are opened again when they are read.
    """

    expression: Rows
    read: Callable[[Setup, Sequence[NDArray[np.int64]]], Spots]
    close: Callable[[], None]
    _forget: Callable[[], None] | None = None

    def spots(self, setup: Setup, folds: Sequence[NDArray[np.int64]]) -> Spots:
        """The spots; `folds` are the rows that features are fitted to."""
        spots = self.read(setup, folds)
        self._forget = spots.expression.whole.forget_pages  # type: ignore[union-attr]
        return spots

    def forget_pages(self) -> None:
        """Let the system have the memory of what was read of mapped arrays."""
        if self._forget is not None:
            self._forget()


class StoredRows(OrderedRows):
    """Spots by position, whose expression is read from stores: that of the window which is held, or now."""

    def __init__(self, manager: NetDataManager, stored: StoredInput, **options: Any) -> None:
        super().__init__(manager, **options)
        self._stored = stored
        self._at: NDArray[np.int64] | None = None
        self._held: Any = None

    def hold(self, rows: NDArray[np.int64] | None) -> None:
        """Read these spots in the place of those that were held; `None`: hold none."""
        self._at = self._held = None
        self._stored.forget_pages()
        if rows is not None:
            self._at = np.sort(rows)
            self._held = read_rows(self._stored.expression, self._at)

    def __getitem__(self, indexes: Any) -> dict[str, Any]:
        """Tensors of some spots by registry key."""
        tensors = super().__getitem__(indexes)
        if REGISTRY_KEYS.X_KEY in tensors:
            dtype = self.keys_and_dtypes[REGISTRY_KEYS.X_KEY]
            tensors[REGISTRY_KEYS.X_KEY] = self._expression(np.atleast_1d(indexes)).toarray().astype(dtype, copy=False)
        return tensors

    def _expression(self, rows: NDArray[np.int64]) -> Any:
        if self._at is not None:
            place = np.minimum(np.searchsorted(self._at, rows), len(self._at) - 1)
            if np.array_equal(self._at[place], rows):
                return self._held[place]
        return read_rows(self._stored.expression, rows)


class Windows(Sampler[list[int]]):
    """Batches of spots, window by window.

    Shuffled, the blocks of all stores are put in a random order, cut into windows, and the spots of each window are shuffled: a
    batch has spots of some thirty places, and the disk is read in runs.

    Parameters
    ----------
    dataset
        Holds the spots of a window.
    rows
        The spots, ascending.
    batch_size
        Spots in a batch.
    shuffle
        By torch's global generator, anew in each epoch; else in order.
    drop_last
        Leave out a last batch that is smaller.
    """

    def __init__(
        self, dataset: StoredRows, rows: NDArray[np.int64], batch_size: int, *, shuffle: bool, drop_last: bool = False
    ) -> None:
        self._dataset, self._rows, self._batch = dataset, np.asarray(rows), batch_size
        self._shuffle, self._drop_last = shuffle, drop_last

    def __len__(self) -> int:
        n, size = len(self._rows), self._batch
        return n // size if self._drop_last else -(-n // size)

    def __iter__(self) -> Iterator[list[int]]:
        order, rng = self._rows, None
        if self._shuffle:
            rng = np.random.default_rng(int(torch.empty((), dtype=torch.int64).random_().item()))
            runs = [
                run[start : start + BLOCK]
                for run in self._dataset._stored.expression.blocks(order)
                for start in range(0, len(run), BLOCK)
            ]
            order = np.concatenate([runs[k] for k in rng.permutation(len(runs))])
        size = max(WINDOW // self._batch, 1) * self._batch
        left = len(self)
        for start in range(0, len(order), size):
            window = order[start : start + size]
            self._dataset.hold(window)
            if rng is not None:
                window = rng.permutation(window)
            for first in range(0, len(window), self._batch):
                if left:
                    left -= 1
                    yield window[first : first + self._batch].tolist()
        self._dataset.hold(None)


class StoredSplitter(DataSplitter):
    """Loaders of training and validation spots whose expression is on disk."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled windows of the training spots."""
        return self._loader(self.train_idx, shuffle=True, drop_last=self.drop_last)

    def val_dataloader(self) -> DataLoader[Any] | None:
        """Windows of the validation spots, in order."""
        return self._loader(self.val_idx, shuffle=False) if len(self.val_idx) else None

    def _loader(self, rows: NDArray[np.int64], **how: bool) -> DataLoader[Any]:
        dataset = self.adata_manager.create_torch_dataset()
        batches = Windows(dataset, rows, self.data_loader_kwargs["batch_size"], **how)
        return DataLoader(dataset, sampler=batches, batch_size=None, pin_memory=self.pin_memory)


def check_stored_loader(options: dict[str, Any]) -> None:
    """Refuse options of loaders in other processes, which would not find the window that is held.

    Raises
    ------
    ValueError
        There is one.
    """
    found = [name for name in _ALONE if name in options]
    if found:
        msg = (
            f"datasplitter_kwargs names {', '.join(found)}, but batches of stores are read in this process, a window of {WINDOW:,} spots "
            "at a time; leave it out."
        )
        raise ValueError(msg)
