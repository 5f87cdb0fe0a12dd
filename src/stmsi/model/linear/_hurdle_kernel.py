"""One-stage ridge regression on a kernel between spots and their neighbourhoods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from stmsi._core.learning.shared_ridge import fit_shared_ridge
from stmsi._data.checks import check_choice, check_count
from stmsi.model.linear._context_kernels import ComponentKernel, GeneKernel
from stmsi.model.linear._hurdle_linear import HurdleLinear
from stmsi.model.linear._one_stage import MapPresence, OneStage
from stmsi.model.shared._blocks import some_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._inner_folds import InnerFolds
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._training_data import TrainingData

Kernel: TypeAlias = Literal["genes", "components"]


class HurdleKernel(OneStage):
    """All metabolites by one kernel ridge regression with one penalty, from a spot and, with a graph, its two rings.

    The regression is of the map itself, zeros included. Presence is a logistic regression of its own, with Platt's sigmoid for
    each metabolite, and the intensity given presence is the map over the probability. Covariates and further features of the
    setup stand beside the kernel in both, under the same penalty. The penalty is the one whose held-out predictions follow the measured maps best, as the mean of the correlation inside sections and of the pooled one, which
    also sees the level of sections. Everything is fitted on the training spots.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    kernel
        ``"genes"``: linear, of all genes seen in 3 % of the spots; a weight for each gene and ring. ``"components"``:
        Gaussian, of principal components; follows what is not linear, and keeps the profiles of landmark spots.
    unit_variance
        Of the kernel ``"genes"``: whether genes are z-scored, so that all count the same.
    presence
        ``"ridge"`` (logistic regressions, with the penalty of a ridge regression), or ``"prior"``: the share of the training
        spots, everywhere.
    n_components
        Of the kernel ``"components"``.
    n_landmarks
        Training spots at most that span the kernel; with no more spots it is exact.
    n_folds
        Inner folds at most.
    rng
        Seed of landmarks and components.

    Raises
    ------
    ValueError
        Unknown options, or an AnnData that is not set up.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleKernel.setup_anndata(st)
    >>> model = stmsi.model.HurdleKernel(st, kernel="genes")
    >>> model.train()
    >>> model.predict().shape
    (344, 12)
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        kernel: Kernel = "components",
        unit_variance: bool = False,
        presence: MapPresence = "ridge",
        n_components: int = 128,
        n_landmarks: int = 1500,
        n_folds: int = 5,
        rng: int = 0,
    ) -> None:
        check_choice(kernel, get_args(Kernel), "kernel")
        check_count(n_components, "n_components")
        check_count(n_landmarks, "n_landmarks")
        super().__init__(adata, presence=presence, n_folds=n_folds, rng=rng)
        self.kernel, self.unit_variance = kernel, unit_variance
        self.n_components, self.n_landmarks = n_components, n_landmarks
        self.kernel_: GeneKernel | ComponentKernel | None = None
        self.beside_: NDArray[np.float32] = np.empty((0, 0), np.float32)

    setup_anndata = HurdleLinear.setup_anndata

    def _fit_map(self, data: TrainingData, folds: InnerFolds, features: SpotFeatures) -> NDArray[np.float32]:
        kernel: GeneKernel | ComponentKernel = (
            GeneKernel(self.unit_variance, self.n_landmarks, self.rng)
            if self.kernel == "genes"
            else ComponentKernel(self.n_components, self.n_landmarks, self.rng)
        )
        F = kernel.fit_transform(data.train)
        beside = features.further(data.train)
        both = np.hstack([F, beside]) if beside.shape[1] else F
        fitted = fit_shared_ridge(both, data.targets.intensity, folds.groups, folds.units, folds.apart)
        kernel.keep(fitted.weights[: F.shape[1]], fitted.offset)
        self.kernel_, self.beside_ = kernel, fitted.weights[F.shape[1] :]
        return fitted.held_out

    def _map(self, spots: Spots, at: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        assert self.kernel_ is not None
        genes = self.kernel_.predict(spots, at)
        if not len(self.beside_):
            return genes
        beside = some_rows(self.state.features.further(spots), at) @ self.beside_
        return np.asarray(genes + beside, dtype=np.float32)

    def _map_weights(self) -> NDArray[np.float64]:
        kernel = self.kernel_
        if isinstance(kernel, GeneKernel):
            return self._effects(kernel.genes, (kernel.weights.astype(np.float64) ** 2).sum(axis=(0, 2)))
        assert kernel is not None
        spread = np.sqrt(kernel.space.gene_variance)
        weights = np.bincount(kernel.space.selected, spread, minlength=len(self.state.panel))
        return weights / max(float(weights.sum()), 1e-300)

    def _used_genes(self) -> NDArray[np.int64]:
        assert self.kernel_ is not None
        return np.union1d(super()._used_genes(), self.kernel_.used)

    def _contains_training_profiles(self) -> bool:
        return self.kernel == "components"

    @classmethod
    def _reads_prior(cls, params: Mapping[str, Any]) -> bool:  # noqa: ARG003
        return False

    def _params(self) -> dict[str, Any]:
        names = ("kernel", "unit_variance", "presence", "n_components", "n_landmarks", "n_folds", "rng")
        return {name: getattr(self, name) for name in names}
