"""Few folds of many groups: leaving out hundreds of patients one by one would train hundreds of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stmsi._data.tables import require_obs

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi._core.arrays import Ints


class GroupFolds:
    """Folds of whole groups, of about the same number of spots; each group is left out once.

    Parameters
    ----------
    key
        Column of ``obs`` that names the group of a spot: patient or section.
    most
        Number of folds; with fewer groups, each is a fold.
    """

    def __init__(self, key: str, most: int) -> None:
        self.key, self.most = key, most

    def __repr__(self) -> str:
        return f"GroupFolds({self.key!r}, {self.most})"

    def split(self, X: AnnData) -> Iterator[tuple[Ints, Ints]]:
        """Yield training and test indices of spots."""
        from sklearn.model_selection import GroupKFold

        groups = require_obs(X, self.key, "The folds follow it.").astype(str).to_numpy(dtype=object)
        yield from GroupKFold(min(self.most, len(set(groups)))).split(groups, groups=groups)
