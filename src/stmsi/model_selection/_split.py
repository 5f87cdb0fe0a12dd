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
from stmsi._data.tables import as_csr, require_frame, sections_of
from stmsi.model_selection._leaks import LEAKS, Finding
from stmsi.model_selection._shared_noise import SharedNoise, neighbour_means

if TYPE_CHECKING:
    from anndata import AnnData

    Folds = Sequence[tuple[Ints, Ints]]


@dataclass
class Split:
    """A table, its folds, and the fields that a model reads.

    `whole` is the table with the spots without MSI, on which steps before may have been fitted; `None`: there are no others.
    """

    adata: AnnData
    folds: Folds
    setup: Mapping[str, Any]
    msi: AnnData | None
    sample_key: str
    whole: AnnData | None = None

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
        return self.expression(self.adata)

    def expression(self, adata: AnnData) -> sp.csr_matrix:
        """The expression of a table that the model reads."""
        if self.layer is not None and self.layer not in adata.layers:
            msg = f"No layer {self.layer!r}; layers: {listing(adata.layers.keys())}."
            raise KeyError(msg)
        return as_csr(adata.X if self.layer is None else adata.layers[self.layer])

    def shared(self, code: Ints) -> list[float]:
        """Share of each fold's test spots whose code a training spot has too; -1 is no code."""
        shares = []
        for train, test in self.folds:
            known = np.zeros(int(code.max(initial=-1)) + 2, bool)
            known[code[train]] = True
            known[-1] = False  # where -1 points to
            shares.append(float(known[code[test]].mean()) if len(test) else 0.0)
        return shares

    @cached_property
    def tables(self) -> list[tuple[AnnData, Ints]]:
        """The tables on which steps before may have been fitted, with the number of each spot's section: all spots first."""
        others = [] if self.whole is None or self.whole.n_obs == self.adata.n_obs else [self.whole]
        return [(table, codes(sections_of(table, self.sample_key))) for table in [*others, self.adata]]

    @cached_property
    def shared_noise(self) -> SharedNoise:
        """What genes are held against to find metabolites among them."""
        targets = require_frame(self.adata, self.metabolite_key).to_numpy(np.float64)
        return SharedNoise(np.nan_to_num(targets), self.sample, self.neighbour_means)

    @cached_property
    def neighbour_means(self) -> sp.csr_matrix | None:
        """Weights that average the neighbours of each spot; `None` without positions."""
        if Key.obsm.SPATIAL not in self.adata.obsm:
            return None
        xy = np.asarray(self.adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
        return neighbour_means(xy, self.sample)

    def features(self, adata: AnnData | None = None) -> Iterator[tuple[str, Floats]]:
        """Numbers beside expression that the model reads, by name; those of `adata`, or of the spots with MSI."""
        adata = self.adata if adata is None else adata
        for key in self.keys("feature_key"):
            if key in adata.obsm:
                value = adata.obsm[key]
                array = value.toarray() if sp.issparse(value) else np.asarray(value)
                yield f"obsm[{key!r}]", np.asarray(array, dtype=np.float64).reshape(adata.n_obs, -1)
        for key in self.keys("covariate_keys"):
            if key in adata.obs and pd.api.types.is_numeric_dtype(adata.obs[key]):
                yield f"obs[{key!r}]", adata.obs[[key]].to_numpy(np.float64)

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
