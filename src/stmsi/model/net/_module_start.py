"""A module as it is before the first step: its sizes, and statistics of the training spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from stmsi.model.net._metabolite_descriptors import training_metabolites
from stmsi.model.net._neighbour_context import CONTEXT_COMPONENTS
from stmsi.model.net._surroundings import seeded
from stmsi.model.net._training import NetTraining
from stmsi.model.net._training_inputs import presence_counts, target_moments
from stmsi.model.net.encoders import Evidence, MetaboliteEncoder
from stmsi.model.net.modules import HurdleModule
from stmsi.model.net.modules._hurdle import CLUSTER_KEY, FEATURES_KEY, METABOLITES_KEY
from stmsi.model.shared._setup import read_prior
from stmsi.model.shared._spot_features import SpotFeatures
from stmsi.model.shared._targets import Targets
from stmsi.model.shared._training_data import signature_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ModuleStart(NetTraining):
    """New modules of :class:`stmsi.model.HurdleNet`."""

    _module_cls = HurdleModule

    def _new_module(self, n_selected: int | None = None) -> HurdleModule:
        """A module of so many genes with fresh weights, the same for the same seed."""
        stats = self.summary_stats
        covariates = self.registry_["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
        with seeded(self._hyper["rng"]):
            return self._module_cls(
                n_selected=min(self._hyper["n_top_genes"], stats.n_vars) if n_selected is None else n_selected,
                n_metabolites=stats[f"n_{METABOLITES_KEY}"],
                n_clusters=int(stats.get(f"n_{CLUSTER_KEY}", 0)),
                n_cats_per_cov=tuple(int(n) for n in covariates.get("n_cats_per_key", ())),
                n_continuous=int(stats.get("n_extra_continuous_covs", 0)),
                n_components=CONTEXT_COMPONENTS if self._sees_components else 0,
                encoder=self._hyper["encoder"],
                intensity_weight=self._hyper["intensity_weight"],
                encoder_kwargs=self._hyper["encoder_kwargs"],
                n_features=self._feature_widths(),
                presence_loss=self._hyper["presence_loss"],
                intensity_loss=self._hyper["intensity_loss"],
                two_stage=self._hyper["training"] == "two_stage",
                linear_path=self._hyper["residual"] is not None,
                signature_stages=self._hyper["signature_stages"],
                has_prior=self.registry_["setup_args"].get("prior_key") is not None,
                has_graph=self.registry_["setup_args"].get("graph_key") is not None,
                logged=self.registry_["setup_args"].get("input") == "log",
            )

    def _feature_widths(self) -> tuple[int, ...]:
        """Columns of each further set of features."""
        names = (f"n_{FEATURES_KEY}_{i}" for i in range(len(self.registry_["field_registries"])))
        return tuple(int(self.summary_stats[n]) for n in names if n in self.summary_stats)

    def _set_buffers(
        self,
        features: SpotFeatures,
        targets: Targets,
        keep: NDArray[np.bool_],
        screened: NDArray[np.float32] | None = None,
    ) -> None:
        """Statistics of the training spots that the module normalises with.

        `keep` are the outputs that `targets` have values for; `screened` says how these go with genes.
        """
        assert self.adata is not None
        module = self.module
        labels, signature = signature_of(self.adata, self._setup)
        mean, scale = target_moments(targets.where_present())
        n1, n0 = presence_counts(targets.presence)
        full = {name: np.full(len(keep), fill) for name, fill in (("mean", 0.0), ("scale", 1.0), ("weight", 1.0))}
        full["mean"][keep], full["scale"][keep] = mean, scale
        full["weight"][keep] = np.where((n1 > 0) & (n0 > 0), np.clip(n0 / np.maximum(n1, 1), 0.05, 20), 1.0)
        index = np.zeros(len(module.gene_index), np.int64)
        gene_mean, gene_scale = np.zeros(len(index)), np.full(len(index), 1e6)  # slots left over stay near 0
        n = len(features.own.selected)
        index[:n], gene_mean[:n], gene_scale[:n] = features.own.selected, features.own.mean, features.own.scale
        values = {
            "gene_index": index, "gene_mean": gene_mean, "gene_scale": gene_scale,
            "target_mean": full["mean"], "target_scale": full["scale"], "positive_weight": full["weight"],
        }  # fmt: skip
        numbers = [v for v in features.categories.values() if isinstance(v, tuple)]
        if numbers:
            values |= {"covariate_mean": np.array([v[0] for v in numbers])}
            values |= {"covariate_scale": np.array([v[1] for v in numbers])}
        if features.extra:
            values |= {"feature_mean": np.concatenate([e.mean for e in features.extra.values()])}
            values |= {"feature_scale": np.concatenate([e.scale for e in features.extra.values()])}
        if labels is not None and signature is not None:
            order = [list(labels).index(str(c)) for c in self._cluster_categories()]
            mask = signature[order][:, index].astype(np.float32)
            mask[:, n:] = 0
            values["signature"] = mask
        module.set_buffers(**values)
        if isinstance(module.encoder, MetaboliteEncoder):
            assert screened is not None
            full_screen = np.zeros((len(keep), screened.shape[1]), np.float32)
            full_screen[keep] = screened
            module.encoder.describe(self._evidence_of(features, full_screen), self._hyper["rng"])

    def _evidence_of(self, features: SpotFeatures, screened: NDArray[np.float32]) -> Evidence:
        """What an encoder that attends to genes starts from."""
        assert self.adata is not None
        known = training_metabolites(self.adata, self._setup, self._descriptors)
        prior = None
        if self._setup.prior_key is not None:
            metabolites = self.adata.obsm[self._setup.metabolite_key].columns
            prior = torch.tensor(read_prior(self.adata, self._setup.prior_key, metabolites)[features.own.selected].T)
        space = features.own
        loadings = space.components * space.deviation[:, None] / space.scale
        # copies: columns of pandas 3 are read-only
        return Evidence(
            torch.tensor(known.mz),
            torch.tensor(known.descriptors),
            torch.tensor(screened),
            torch.tensor(loadings),
            prior,
        )

    def _known_genes(self, genes: pd.Index) -> pd.DataFrame:
        """The prior as the encoder keeps it, over the genes of the panel."""
        known = np.zeros((len(genes), len(self._registered_metabolites())), bool)
        for net in self._nets:
            known[net.module.gene_index.cpu().numpy()] |= net.module.encoder.prior.cpu().numpy().T > 0  # type: ignore[union-attr, operator]
        return pd.DataFrame(known, index=genes, columns=self._registered_metabolites())

    def _cluster_categories(self) -> list[str]:
        state = self.registry_["field_registries"][CLUSTER_KEY]["state_registry"]
        return [str(c) for c in state["categorical_mapping"]]
