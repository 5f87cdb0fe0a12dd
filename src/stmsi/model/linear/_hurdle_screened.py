"""One-stage ridge regression of each metabolite on a few genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from threadpoolctl import threadpool_limits

from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._data.checks import check_choice
from stmsi.model.linear._context_kernels import genes_seen
from stmsi.model.linear._gene_sets import GeneBlocks, GeneSetRidge, fit_gene_sets, screened_sets
from stmsi.model.linear._hurdle_linear import HurdleLinear
from stmsi.model.linear._one_stage import MapPresence, OneStage
from stmsi.model.shared._setup import read_prior

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._inner_folds import InnerFolds
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._training_data import TrainingData

Genes: TypeAlias = Literal["screened", "prior"]


class HurdleScreened(OneStage):
    """Each metabolite by ridge regression on its own genes, of a spot and, with a graph, of its first ring.

    Where a few genes drive a metabolite, components of all genes drown them. Screened genes are those with the largest sum
    over training sections of the correlation inside the section, of own or of ring expression; 10, 30, 100 or 300 of them, as
    held-out groups prefer for each metabolite. They are found again inside every inner fold. All metabolites share one
    penalty. Covariates and further features of the setup stand beside the genes. The map is predicted as it is, zeros included;
    presence as in :class:`HurdleKernel`.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    genes
        ``"screened"``, or ``"prior"``: the genes that the knowledge prior of the setup names; metabolites for which it
        names none are left out.
    presence
        ``"ridge"`` (logistic regressions, with the penalty of a ridge regression), or ``"prior"``: the share of the training
        spots, everywhere.
    n_folds
        Inner folds at most.
    rng
        Seed of blocks and components.

    Raises
    ------
    ValueError
        Unknown options, an AnnData that is not set up, or ``genes="prior"`` without a prior.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleScreened.setup_anndata(st)
    >>> model = stmsi.model.HurdleScreened(st)
    >>> model.train()
    >>> model.predict().shape
    (344, 12)
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        genes: Genes = "screened",
        presence: MapPresence = "ridge",
        n_folds: int = 5,
        rng: int = 0,
    ) -> None:
        check_choice(genes, get_args(Genes), "genes")
        super().__init__(adata, presence=presence, n_folds=n_folds, rng=rng)
        if genes == "prior" and self._setup.prior_key is None:
            msg = "genes='prior' needs a knowledge prior: call stmsi.pp.knowledge_prior and set up with prior_key=."
            raise ValueError(msg)
        self.genes = genes
        self.ridge_: GeneSetRidge | None = None

    setup_anndata = HurdleLinear.setup_anndata

    def _eligible(self, data: TrainingData) -> NDArray[np.bool_]:
        if self.genes != "prior":
            return super()._eligible(data)
        return np.asarray(self._prior(data).any(axis=0))

    def _prior(self, data: TrainingData) -> NDArray[np.bool_]:
        """Genes of each metabolite that vary over the training spots, shape (panel genes, metabolites)."""
        assert self._setup.prior_key is not None
        known = read_prior(data.adata, self._setup.prior_key, data.targets.metabolites)
        seen = np.zeros(len(known), bool)
        seen[genes_seen(data.train.gene_moments())[0]] = True
        return known & seen[:, None]

    def _fit_map(self, data: TrainingData, folds: InnerFolds, features: SpotFeatures) -> NDArray[np.float32]:
        Y, train = data.targets.intensity, data.train
        blocks = GeneBlocks(train, features.further(train))
        section = np.unique(folds.units, return_inverse=True)[1]
        if self.genes == "prior":
            place = np.full(train.counts.shape[1], -1)
            place[blocks.genes] = np.arange(len(blocks.genes))
            sets = [[[place[np.flatnonzero(known)]]] for known in self._prior(data).T]
        else:
            sets = list(screened_sets(blocks, Y, section, folds.groups))
        with threadpool_limits(1):
            truth = HeldOutTruth.of(Y, folds.groups, folds.units)
            self.ridge_, held_out = fit_gene_sets(blocks, Y, sets, folds.groups, truth)
            for columns, own in folds.apart:
                # measured in one fold only: folds of its own, of the spots that have it
                groups, part = np.maximum(own, 0), Y[:, columns]
                units = np.unique(folds.units * (int(own.max()) + 2) + own + 1, return_inverse=True)[1]
                again = (
                    [sets[m] for m in columns]
                    if self.genes == "prior"
                    else list(screened_sets(blocks, part, units, groups))
                )
                alone = HeldOutTruth.of(part, groups, units)
                other, predicted = fit_gene_sets(blocks, part, again, groups, alone)
                self.ridge_ = self.ridge_.with_columns(columns, other)
                held_out[:, columns] = np.where((own >= 0)[:, None], predicted, np.nan)
        return held_out

    def _map(self, spots: Spots, at: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        assert self.ridge_ is not None
        return self.ridge_.predict(spots.log_expression(), spots.graph, self.state.features.further(spots), at)

    def _map_weights(self) -> NDArray[np.float64]:
        assert self.ridge_ is not None
        squared = (self.ridge_.weights.astype(np.float64) ** 2).sum(axis=0)
        return self._effects(self.ridge_.genes[self.ridge_.gene], squared)

    def _used_genes(self) -> NDArray[np.int64]:
        assert self.ridge_ is not None
        return np.union1d(super()._used_genes(), self.ridge_.genes)

    @classmethod
    def _reads_prior(cls, params: Mapping[str, Any]) -> bool:
        return params.get("genes") == "prior"

    def _params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("genes", "presence", "n_folds", "rng")}
