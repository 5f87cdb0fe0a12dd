"""What the rules of leakage look at: a table, its folds, and the fields that a model reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.arrays import Floats, Ints
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, sections_of
from stmsi.model_selection._leaks import LEAKS, Finding

if TYPE_CHECKING:
    from anndata import AnnData

    Folds = Sequence[tuple[Ints, Ints]]


@dataclass
class Split:
    """A table, its folds, and the fields that a model reads."""

    adata: AnnData
    folds: Folds
    setup: Mapping[str, Any]
    msi: AnnData | None
    sample_key: str

    def __post_init__(self) -> None:
        self.metabolite_key = str(self.setup.get("metabolite_key", Key.obsm.MSI))
        record = self.adata.uns.get(self.metabolite_key)
        self.record: Mapping[str, Any] = record if isinstance(record, Mapping) else {}  # by stmsi.pp, on the targets
        self.layer = self.setup.get("layer")
        self.where = "X" if self.layer is None else f"layers[{self.layer!r}]"  # of the expression

    def keys(self, name: str) -> list[str]:
        """A field of the setup that may name one or several keys."""
        value = self.setup.get(name) or ()
        return [value] if isinstance(value, str) else [str(v) for v in value]

    @cached_property
    def sample(self) -> Ints:
        """Number of each spot's section."""
        return codes(sections_of(self.adata, self.sample_key))

    @cached_property
    def cut(self) -> tuple[int, ...]:
        """Folds in which a section lies on both sides."""
        return tuple(f for f, share in enumerate(self.shared(self.sample)) if share > 0)

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """Expression that the model reads."""
        if self.layer is not None and self.layer not in self.adata.layers:
            msg = f"No layer {self.layer!r}; layers: {listing(self.adata.layers.keys())}."
            raise KeyError(msg)
        return as_csr(self.adata.X if self.layer is None else self.adata.layers[self.layer])

    def shared(self, code: Ints) -> list[float]:
        """Share of each fold's test spots whose code a training spot has too; -1 is no code."""
        shares = []
        for train, test in self.folds:
            known = np.zeros(int(code.max(initial=-1)) + 2, bool)
            known[code[train]] = True
            known[-1] = False  # where -1 points to
            shares.append(float(known[code[test]].mean()) if len(test) else 0.0)
        return shares

    def features(self) -> Iterator[tuple[str, Floats]]:
        """Numbers beside expression that the model reads, by name."""
        for key in self.keys("feature_key"):
            if key in self.adata.obsm:
                value = self.adata.obsm[key]
                array = value.toarray() if sp.issparse(value) else np.asarray(value)
                yield f"obsm[{key!r}]", np.asarray(array, dtype=np.float64).reshape(self.adata.n_obs, -1)
        for key in self.keys("covariate_keys"):
            if key in self.adata.obs and pd.api.types.is_numeric_dtype(self.adata.obs[key]):
                yield f"obs[{key!r}]", self.adata.obs[[key]].to_numpy(np.float64)

    def leak(
        self,
        name: str,
        where: str,
        folds: Sequence[int] = (),
        share: float = np.nan,
        *,
        error: bool = False,
        **found: str,
    ) -> Finding:
        """A leak of :data:`LEAKS` in some folds, or in all; `error` makes a warning one."""
        check, severity, message = LEAKS[name]
        hit = tuple(folds or range(len(self.folds)))
        return Finding(check, "error" if error else severity, where, hit, share, message.format(**found))

    def leaks(
        self, name: str, where: str, shares: Sequence[float], *, error: bool = False, **found: str
    ) -> Iterator[Finding]:
        """The leak of the folds in which some share of the test spots is concerned."""
        hit = tuple(f for f, share in enumerate(shares) if share > 0)
        if hit:
            yield self.leak(name, where, hit, max(shares), error=error, **found)


def codes(label: Any) -> Ints:
    """Number of each label, -1 where there is none."""
    return pd.factorize(pd.Series(label).astype(object))[0].astype(np.int64)


def is_whole(matrix: sp.csr_matrix) -> bool:
    """Whether all values are whole numbers."""
    return bool((matrix.data == np.round(matrix.data)).all())
