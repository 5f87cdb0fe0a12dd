"""What all sections of a simulation share: gene programmes, and the metabolites that follow them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS = {"linear": 0.4, "saturating": 0.2, "product": 0.2, "unpredictable": 0.2}
"""How metabolites follow their enzymes, and the share of each kind."""
N_PROGRAMMES = 8
N_DOMAINS = 4
_ENZYMES = 3


@dataclass(frozen=True)
class Biology:
    """Genes, metabolites, and how the ones drive the others."""

    programme: NDArray[np.int64]  # of each gene, -1: none
    loading: NDArray[np.float64]  # genes x programmes
    base: NDArray[np.float64]  # log rate of each gene
    profile: NDArray[np.float64]  # domains x programmes
    var: pd.DataFrame  # of the metabolites
    enzymes: list[NDArray[np.int64]]  # genes that drive each metabolite
    weights: list[NDArray[np.float64]]
    drivers: pd.DataFrame  # the same as a table of names
    gene_names: pd.Index

    @classmethod
    def draw(
        cls, n_genes: int, n_metabolites: int, rng: np.random.Generator, *, dense: float = 0.0, n_dense_genes: int = 50
    ) -> Biology:
        """Programmes of 60 % of the genes, and metabolites of every kind; `dense` is the share with `n_dense_genes` drivers."""
        gene = np.arange(n_genes)
        programme = rng.permutation(np.where(gene < 0.6 * n_genes, gene % N_PROGRAMMES, -1))
        loading = np.zeros((n_genes, N_PROGRAMMES))
        member = np.flatnonzero(programme >= 0)
        loading[member, programme[member]] = rng.uniform(0.4, 1.0, len(member))
        counts = np.round(np.array(list(_KINDS.values())) * n_metabolites).astype(int)
        counts[0] += n_metabolites - counts.sum()
        kind = np.repeat(list(_KINDS), counts)
        name = [f"simPC({28 + i}:{i % 4})" for i in range(n_metabolites)]
        gene_names = pd.Index([f"SIMG{i + 1:04d}" for i in range(n_genes)])
        enzymes, weights = [], []
        for i, k in enumerate(kind):
            groups = rng.choice(N_PROGRAMMES, 2, replace=False)[: {"unpredictable": 0, "product": 2}.get(k, 1)]
            own = [rng.choice(np.flatnonzero(programme == g), _ENZYMES, replace=False) for g in groups]
            enzymes.append(np.concatenate(own) if own else np.empty(0, np.int64))
            sign = -1 if k == "linear" and i % 4 == 3 else 1
            weights.append(rng.uniform(0.6, 1.4, len(enzymes[-1])) * sign)
        var = pd.DataFrame(
            {
                Key.var.MZ: np.sort(rng.uniform(480, 900, n_metabolites)).round(4),
                Key.var.FORMULA: "",
                Key.var.ADDUCT: "[M+H]+",
                "kind": kind,
                "predictable": kind != "unpredictable",
                "diffused": (np.concatenate([np.arange(c) for c in counts]) % 2 == 1) & (kind != "unpredictable"),
            },
            index=pd.Index(name),
        )
        base, profile = rng.normal(0, 0.8, n_genes), rng.normal(0, 0.9, (N_DOMAINS, N_PROGRAMMES))
        is_dense = np.zeros(n_metabolites, bool)
        if dense > 0:  # drawn last, so that without it nothing changes
            predictable = np.flatnonzero(kind != "unpredictable")
            is_dense[rng.choice(predictable, round(dense * len(predictable)), replace=False)] = True
            for m in np.flatnonzero(is_dense).tolist():
                enzymes[m] = rng.choice(n_genes, n_dense_genes, replace=False)
                weights[m] = rng.uniform(0.6, 1.4, n_dense_genes) * rng.choice([-1.0, 1.0], n_dense_genes)
        var["dense"] = is_dense
        var["kind"] = np.where(is_dense, "linear", kind)
        drivers = pd.DataFrame(
            {
                "metabolite": np.repeat(safe_ids(name), [len(own) for own in enzymes]),
                "gene": gene_names[np.concatenate(enzymes)],
                "weight": np.concatenate(weights),
            }
        )
        drivers.index = drivers.index.astype(str)
        return cls(programme, loading, base, profile, var, enzymes, weights, drivers, gene_names)

    def drive_of(self, metabolite: int, expression: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """What a predictable metabolite makes of the expression of its enzymes, shape (rows, cols) each."""
        terms = [w * g for w, g in zip(self.weights[metabolite], expression, strict=True)]
        kind = self.var["kind"].iloc[metabolite]
        if kind == "product":
            first, second = (sum(terms[i : i + _ENZYMES]) for i in (0, _ENZYMES))
            return np.logaddexp(0, 0.7 * first) * np.logaddexp(0, 0.7 * second)
        drive = np.asarray(sum(terms))
        return -np.logaddexp(0, -drive) if kind == "saturating" else drive

    def log_intensity(self, drive: NDArray[np.float64]) -> NDArray[np.float64]:
        """Noiseless log intensities of a standardised drive, shape (places, metabolites).

        Level and spread of a metabolite are fixed by its position, so that sections agree.
        """
        n = len(self.var)
        level = np.linspace(2.0, 5.0, n)[np.argsort(np.sin(np.arange(n) * 12.9898))]
        return level + np.linspace(0.7, 1.0, n) * drive
