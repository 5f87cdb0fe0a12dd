"""What a network begins with: the genes and statistics of its training spots, and the spots around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stmsi._core.arrays_on_disk import Derived, some_of
from stmsi._core.learning.folds import inner_groups, sections_or_blocks
from stmsi._core.metrics.columns import in_pieces
from stmsi._data.tables import sections_of
from stmsi.model.net._calibration import NetCalibration
from stmsi.model.net._context_genes import scale_stored_rings
from stmsi.model.net._gene_screen import screened_genes
from stmsi.model.net._linear_path import linear_path
from stmsi.model.net._neighbour_context import CONTEXT_COMPONENTS
from stmsi.model.net._training_inputs import section_moments
from stmsi.model.net.encoders import ENCODERS, LocalFirstEncoder, MetaboliteEncoder
from stmsi.model.shared._setup import read_prior
from stmsi.model.shared._spot_features import SpotFeatures
from stmsi.model.shared._targets import drop_unmeasured
from stmsi.model.shared._training_data import signature_of, start_state

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.arrays_on_disk import Matrix
    from stmsi.model.net._run import Run
    from stmsi.model.net.modules import HurdleModule
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._targets import Targets

_COMPONENTS = 50
"""Components of the space in which clusters are assigned and out-of-distribution spots found."""


class NetPreparation(NetCalibration):
    """Module and state of :class:`stmsi.model.HurdleNet` before the first step."""

    history_: dict[str, Any] | None
    is_trained_: bool
    _made_held_out: NDArray[np.float64] | None = None
    """Both stages of the training spots, each by the network without its group."""
    _new_module: Callable[..., HurdleModule]
    _set_buffers: Callable[..., None]

    def _prepare(self, run: Run, rows: NDArray[np.int64], validation: NDArray[np.int64]) -> None:
        """Module and state before the first step: fitted to the training spots, or those that training starts from."""
        assert self.adata is not None
        setup, start, all_targets = self._setup, run.start, run.targets
        sample = sections_of(self.adata, setup.sample_key)
        if start is None:
            targets, train = drop_unmeasured(all_targets, rows), run.spots.take(rows)
            keep = all_targets.metabolites.isin(targets.metabolites)
            features, screened = self._fit_features(train, targets, sample[rows])
            self.module = self._new_module(None if screened is None else screened.shape[1])
            self._set_buffers(features, targets, keep, screened)
            self.state_ = start_state(self.adata, setup, targets, features, train)
        else:
            (net,) = start.nets
            self.module = self._new_module(len(net.module.gene_index))
            self.module.load_state_dict(net.module.state_dict())
            self.state_ = replace(start.state, features=net.features) if self._sees_components else start.state
        present = all_targets.where_present()
        if self._hyper["standardise"] == "sample":
            code, mean, scale, trained = section_moments(present, sample, rows, validation)
            self.module.set_sections(code, mean, scale)
            self._set_target_moments(mean[trained], scale[trained], present, rows, fresh=start is None)
        else:
            code = np.zeros(len(present), np.int64)
            mean, scale = (b.numpy()[None] for b in (self.module.target_mean, self.module.target_scale))
        held_out = None
        if self._hyper["residual"] is not None and start is None:
            standardised = _standardised(some_of(present, rows), code[rows], mean, scale)
            make_groups = sections_or_blocks if train.xy is None else inner_groups
            groups = make_groups(sample[rows], train.xy, seed=self._hyper["rng"])
            units = np.unique(sample[rows], return_inverse=True)[1]
            weight, bias, held_out = linear_path(
                self.state.features,
                train,
                some_of(all_targets.presence, rows),
                standardised,
                groups,
                units,
                len(self.module.gene_index),
            )
            self.module.set_linear_path(weight, bias)
        if self.module.encoder.has_exemplars:
            section = np.unique(sample.astype(str), return_inverse=True)[1]
            several = len(np.unique(section[rows])) > 1
            # of a single section, a spot is no exemplar of itself
            self.module.set_own_sections(section if several else np.arange(len(section)))
        if self._uses_context:
            rest = np.setdiff1d(np.arange(self.adata.n_obs), np.concatenate([rows, validation]))
            self._set_context(self.module, run.spots, self.state.features, [rows, validation, rest])
            if start is None:
                if run.spots.is_streamed:
                    scale_stored_rings(self.module, run.spots, rows)
                else:
                    self.module.scale_rings(rows)
                if held_out is not None and isinstance(self.module.encoder, LocalFirstEncoder):
                    width = sum(of.shape[1] for of in held_out)
                    self.module.set_held_out(rows, held_out, self._for_rows(run.spots, width))
        self._several, self._made_held_out = [], None
        self.is_trained_, self.history_ = False, None

    @staticmethod
    def _for_rows(spots: Spots, width: int) -> NDArray[np.float32]:
        """An array for numbers of all spots, mapped into memory where their expression is on disk."""
        shape = len(spots), width
        out = spots.expression.whole.scratch(shape, np.float32) if spots.is_streamed else np.empty(shape, np.float32)  # type: ignore[union-attr]
        out[:] = np.nan
        return cast("NDArray[np.float32]", out)

    def _fit_features(
        self, train: Spots, targets: Targets, sample: NDArray[Any], *, screen: bool = True
    ) -> tuple[SpotFeatures, NDArray[np.float32] | None]:
        """Feature space of training spots, and, where metabolites attend to genes, how they go with the genes in it."""
        assert self.adata is not None
        many = self._uses_context or self._hyper["residual"] is not None
        n_components = CONTEXT_COMPONENTS if many else _COMPONENTS
        features, genes, screened = (
            SpotFeatures(self._hyper["n_top_genes"], n_components, self._hyper["rng"]),
            None,
            None,
        )
        if screen and issubclass(ENCODERS[self._hyper["encoder"]], MetaboliteEncoder):
            known = None
            if self._setup.prior_key is not None:
                known = np.asarray(read_prior(self.adata, self._setup.prior_key, targets.metabolites).any(axis=1))
            genes, screened = screened_genes(
                train, targets.intensity, sample, n_each=cast("MetaboliteEncoder", self.module.encoder).genes_per_metabolite,
                most=self._hyper["n_top_genes"], always=known,
            )  # fmt: skip
        return features.fit(replace(train, graph=None), *signature_of(self.adata, self._setup), genes=genes), screened

    def _set_target_moments(
        self,
        mean: NDArray[np.float64],
        scale: NDArray[np.float64],
        present: Matrix,
        rows: NDArray[np.int64],
        *,
        fresh: bool,
    ) -> None:
        """The scale of predictions: the mean over the training sections, where these have the metabolite."""
        module, known = self.module, in_pieces(lambda p: ~np.isnan(p).all(axis=0), some_of(present, rows))
        if fresh:
            module.set_buffers(target_mean=mean.mean(axis=0), target_scale=scale.mean(axis=0))
            return
        module.set_buffers(
            target_mean=np.where(known, mean.mean(axis=0), module.target_mean.numpy()),
            target_scale=np.where(known, scale.mean(axis=0), module.target_scale.numpy()),
        )


def _standardised(
    present: Matrix, code: NDArray[np.int64], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> Matrix:
    """Intensity by the statistics of each spot's section (its number in `code`), as it is in memory or not."""

    def make(rows: Any, columns: Any) -> NDArray[np.float64]:
        of = code[rows]
        at = (
            (of, columns) if of.ndim > 1 else (of[:, None], np.arange(mean.shape[1])[columns])
        )  # rows and columns may be crossed
        return (present[rows, columns] - mean[at]) / scale[at]

    return make(slice(None), slice(None)) if isinstance(present, np.ndarray) else Derived(present.shape, make)
