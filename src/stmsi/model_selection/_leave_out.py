"""Leave out one section, or all sections of one patient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.utils import check_consistent_length

from stmsi._core.arrays import Ints
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import require_obs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class _LeaveOneOut(LeaveOneGroupOut):
    """Leave-one-group-out with the groups in the column `key` of ``obs``."""

    key: str

    def _groups(self, X: Any, groups: ArrayLike | None) -> NDArray[Any]:
        if isinstance(X, AnnData):
            groups = self._labels(X) if groups is None else groups
        if groups is None:
            msg = f"Pass an AnnData with obs[{self.key!r}], or groups=."
            raise ValueError(msg)
        check_consistent_length(X, groups)
        found, count = np.unique(np.asarray(groups), return_counts=True)
        if len(found) < 2:
            msg = (
                f"Leaving one {self.key} out needs at least two, found {found.tolist()}. "
                "Add data, or split sections into blocks with stmsi.model_selection.SpatialBlockKFold."
            )
            raise ValueError(msg)
        # scikit-learn's own tables may hold groups of one; a section of one spot is an error
        if isinstance(X, AnnData) and (count < 2).any():
            one = listing(found[count < 2])
            msg = f"{one} in obs[{self.key!r}] has a single spot, inside which nothing can be scored; leave it out."
            raise ValueError(msg)
        return np.asarray(groups)

    def _labels(self, adata: AnnData) -> NDArray[Any]:
        remedy = f"The folds follow it; set adata.obs[{self.key!r}] or name another column."
        label = require_obs(adata, self.key, remedy)
        if label.isna().any():
            msg = f"obs[{self.key!r}] has {int(label.isna().sum())} missing values; every spot needs a label."
            raise ValueError(msg)
        return label.astype(str).to_numpy(dtype=object)

    def split(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield training and test indices.

        Parameters
        ----------
        X
            AnnData of spots, or anything with a length when `groups` is given.
        y
            Ignored.
        groups
            Group of each spot; `None` reads it from ``obs``.

        Yields
        ------
        Indices of the training and of the test spots.
        """
        label = self._groups(X, groups)
        yield from super().split(np.empty((len(label), 1)), y, label)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: ArrayLike | None = None) -> int:
        """Number of folds.

        Parameters
        ----------
        X, y, groups
            As for :meth:`split`.

        Returns
        -------
        One fold for each group.
        """
        return len(np.unique(self._groups(X, groups)))


class LeaveOneSampleOut(_LeaveOneOut):
    """Each fold tests on one section and trains on all others.

    With several sections of one patient, prefer :class:`LeaveOnePatientOut`: neighbouring sections are nearly equal.

    Parameters
    ----------
    sample_key
        Column of ``obs`` with the section name.

    Examples
    --------
    >>> import stmsi
    >>> st = stmsi.datasets.toy().tables["st"]
    >>> stmsi.model_selection.LeaveOneSampleOut().get_n_splits(st)
    3
    """

    def __init__(self, sample_key: str = Key.obs.SAMPLE) -> None:
        self.sample_key = sample_key

    @property
    def key(self) -> str:  # type: ignore[override]
        """Column of ``obs`` that the folds follow."""
        return self.sample_key


class LeaveOnePatientOut(_LeaveOneOut):
    """Each fold tests on all sections of one patient and trains on all other patients.

    Parameters
    ----------
    patient_key
        Column of ``obs`` with the patient.

    Examples
    --------
    >>> import stmsi
    >>> st = stmsi.datasets.toy().tables["st"]
    >>> train, test = next(stmsi.model_selection.LeaveOnePatientOut().split(st))
    >>> set(st.obs["patient"].iloc[test])
    {'P1'}
    """

    def __init__(self, patient_key: str = Key.obs.PATIENT) -> None:
        self.patient_key = patient_key

    @property
    def key(self) -> str:  # type: ignore[override]
        """Column of ``obs`` that the folds follow."""
        return self.patient_key
