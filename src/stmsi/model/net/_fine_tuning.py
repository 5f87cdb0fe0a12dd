"""Going on with a trained network on new sections."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._data.checks import (
    listing,
    require_unique,
)
from stmsi._data.tables import sections_of
from stmsi._messages import warns_once
from stmsi._settings import logger
from stmsi.model.net._module_start import ModuleStart
from stmsi.model.net._surroundings import quiet
from stmsi.model.net._training_inputs import measured_data, panel_data, setup_arguments
from stmsi.model.shared._block_prediction import MIN_GENES
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.model.shared._targets import read_targets

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from stmsi.model.shared._stored_input import Input


class FineTuning(ModuleStart):
    """Fine-tuning of :class:`stmsi.model.HurdleNet`."""

    @warns_once
    def fine_tune(
        self,
        adata: AnnData,
        train_idx: ArrayLike | None = None,
        validation_idx: ArrayLike | None = None,
        *,
        lr: float = 3e-4,
        max_epochs: int = 50,
        patience: int = 10,
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        **train_kwargs: Any,
    ) -> Self:
        """Go on training on new sections that have MSI, as a new model; this one stays as it is.

        The new model has the genes, scaling and metabolites of this one, and begins with its weights. It is trained and
        calibrated on the new spots alone: early stopping, thresholds and intervals come from held-out sections or blocks of
        them. If no step makes the held-out loss lower, the weights stay. Metabolites that the new sections lack are
        still predicted, with the calibration that they had; those that this model does not know are left out.

        Parameters
        ----------
        adata
            Spots x genes with the fields that the model was set up with (signatures and clusters are those of this model).
            Genes and metabolites are found by name; missing genes are imputed, missing metabolites do not count. It is
            not changed, and the new model keeps a copy of what it needs.
        train_idx, validation_idx
            As for :meth:`train`.
        lr, max_epochs, patience
            As for :meth:`train`, with smaller steps and fewer of them.
        layer, input
            Where the expression of the new sections is, and what it is; as for :meth:`predict`.
        min_genes
            Share of the training genes that must be there.
        **train_kwargs
            Further arguments of :meth:`train`.

        Returns
        -------
        The new model. Its model card says from how many spots and which sections it started (``fine_tuned_from``).

        Raises
        ------
        RuntimeError
            This model is not trained.
        ValueError
            No metabolite or too few genes in common, repeated spot names, or no spot with MSI.
        KeyError
            A field of the setup is not there.

        Examples
        --------
        >>> import stmsi
        >>> sdata = stmsi.datasets.toy()
        >>> stmsi.pp.align(sdata)
        >>> stmsi.pp.map_to_spots(sdata)
        >>> st = sdata.tables["st"]
        >>> old, new = st[st.obs["sample"] != "P3S1"].copy(), st[st.obs["sample"] == "P3S1"].copy()
        >>> stmsi.model.HurdleNet.setup_anndata(old)
        >>> model = stmsi.model.HurdleNet(old)
        >>> model.train(max_epochs=2, show_progress_bar=False)
        >>> tuned = model.fine_tune(new, max_epochs=2, show_progress_bar=False)
        >>> tuned.state.training["fine_tuned_from"]["samples"]
        ['P1S1', 'P2S1']
        """
        state, setup = self.state, self._setup
        spots = SpotReader.open(
            adata, setup, state.panel, weights=self._gene_weights(),
            min_genes=min_genes, with_cluster=False, layer=layer, input=input,
        ).read()  # fmt: skip
        require_unique(spots.names, "Names of spots", "Call adata.obs_names_make_unique().")
        # signatures and prior are those of the model
        replace(setup, layer=None, signature_key=None, cluster_key=None, prior_key=None)._check(adata)
        targets = read_targets(adata, setup)
        known = targets.metabolites.isin(state.metabolites)
        if not known.any():
            msg = (
                f"The data share no metabolite with the model. It predicts {listing(state.metabolites)}; "
                f"obsm[{setup.metabolite_key!r}] has {listing(targets.metabolites)}. Ids must be the same."
            )
            raise ValueError(msg)
        if not known.all():
            logger.warning(
                "Metabolites that the model does not know are left out: %s", listing(targets.metabolites[~known])
            )
        columns = self._registered_metabolites()
        at = targets.metabolites.get_indexer(columns)
        at[~columns.isin(state.metabolites)] = -1
        intensity, presence = (
            pd.DataFrame(np.where(at >= 0, values[:, at], np.nan).astype(np.float32), columns=columns)
            for values in (targets.intensity, targets.presence)
        )
        data = panel_data(spots, setup, state, spots.names)
        measured_data(
            data,
            spots,
            setup,
            state,
            sample=sections_of(adata, setup.sample_key),
            intensity=intensity,
            presence=presence,
        )
        if setup.prior_key is not None:
            data.varm[setup.prior_key] = self._known_genes(data.var_names)
        type(self).setup_anndata(data, **setup_arguments(setup), source_registry=self.registry_)
        with quiet():
            model = type(self)(data, **self._hyper)
        model._adopt([replace(net, module=deepcopy(net.module)) for net in self._nets])
        origin = {k: state.training[k] for k in ("n_spots", "samples")}
        model.state_ = replace(state, training={**state.training, "refit": False, "fine_tuned_from": origin})
        model.platt_ = self.platt_
        model.train(
            train_idx, validation_idx, lr=lr, max_epochs=max_epochs, patience=patience, warm_start=True, **train_kwargs
        )
        return model
