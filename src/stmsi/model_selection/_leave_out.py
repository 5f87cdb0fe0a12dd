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
    """Leave-one-group-out with the groups in a column of ``obs``."""

    _argument: str  # name of the argument that names the column

    @property
    def key(self) -> str:
        """Column of ``obs`` that the folds follow."""
        return str(getattr(self, self._argument))

    def _groups(self, X: Any, groups: ArrayLike | None) -> NDArray[Any]:
        column = f"obs[{self.key!r}]"
        if groups is None:
            if not isinstance(X, AnnData):
                msg = f"Pass an AnnData with {column}, or groups=."
                raise ValueError(msg)
            label = require_obs(X, self.key, f"The folds follow it; set adata.{column} or name another column.")
            if label.isna().any():
                msg = f"{column} has {int(label.isna().sum())} missing values; every spot needs a label."
                raise ValueError(msg)
            groups = label.astype(str).to_numpy(dtype=object)
        check_consistent_length(X, groups)
        found, count = np.unique(np.asarray(groups), return_counts=True)
        if len(found) < 2:
            msg = (
                f"Leaving one {self.key} out needs at least two, found {found.tolist()}. "
                "Add data, or split sections into blocks with stmsi.model_selection.SpatialBlockKFold."
            )
            raise ValueError(msg)
        # scikit-learn's own tables may hold groups of one, and so do sections of bulk data; a stray spot is an error
        if isinstance(X, AnnData) and (count < 2).any() and (count > 1).any():
            one = listing(found[count < 2])
            msg = f"{one} in {column} has a single spot, inside which nothing can be scored; leave it out."
            raise ValueError(msg)
        return np.asarray(groups)

    def split(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield training and test indices into `X`: AnnData of spots, or anything with a length where `groups` are given.

        Groups of `None` are those in ``obs``; `y` is ignored.
        """
        label = self._groups(X, groups)
        yield from super().split(np.empty((len(label), 1)), y, label)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: ArrayLike | None = None) -> int:
        """Number of folds, one for each group; arguments as for ``split``."""
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

    _argument = "sample_key"

    def __init__(self, sample_key: str = Key.obs.SAMPLE) -> None:
        self.sample_key = sample_key


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

    _argument = "patient_key"

    def __init__(self, patient_key: str = Key.obs.PATIENT) -> None:
        self.patient_key = patient_key
