"""The hurdle model as a scvi-tools module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import nn
from torch.nn.functional import one_hot

from stmsi.model.net.encoders import (
    ENCODERS,
    Context,
    GeneContext,
    LocalFirstEncoder,
    MetaboliteEncoder,
    Queries,
    SectionContext,
    Sizes,
)
from stmsi.model.net.modules._expression import log_expression
from stmsi.model.net.modules._heads import AttentionReadOut, CorrectedHead, GroupedHead, LinearPath
from stmsi.model.net.modules._losses import (
    IntensityLoss,
    PresenceLoss,
    correlation_loss,
    intensity_loss,
    presence_loss,
)
from stmsi.model.net.modules._spot_rows import CLIP, SpotRows, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


METABOLITES_KEY = "metabolites"
PRESENCE_KEY = "presence"
CLUSTER_KEY = "cluster"
FEATURES_KEY = "features"
_AT_ONCE = 4096
"""Spots that are embedded at once."""
_SIGNATURE_WIDTH = 32


class HurdleModule(SpotRows):
    """An encoder and two heads: presence and intensity, where asked for with the signature mask as an input of its own.

    What is fitted to the training spots before the gradient steps (genes used, their scaling, target statistics,
    signatures) are buffers, set by the model and saved with the weights.

    Parameters
    ----------
    n_selected
        Genes used.
    n_metabolites
        Outputs.
    n_clusters
        Clusters with a signature; 0 without.
    n_cats_per_cov
        Categories of each categorical covariate.
    n_continuous
        Numerical covariates.
    n_components
        Components of spots and neighbours, for encoders that read the neighbourhood or the section.
    encoder
        Name in the registry of encoders.
    intensity_weight
        Weight of the intensity loss beside the presence loss.
    encoder_kwargs
        Options of the encoder.
    n_features
        Columns of each further set of features.
    presence_loss, intensity_loss
        See :mod:`stmsi.model.net.modules._losses`.
    two_stage
        Whether the intensity has an encoder of its own.
    linear_path
        Whether the heads correct a linear prediction; they then begin at 0.
    signature_stages
        Heads that see the signature mask.
    has_prior
        Whether the encoder is told which genes belong to which metabolite.
    has_graph
        Whether spots have neighbours.
    logged
        Whether the expression comes as logarithms and not as counts.
    """

    def __init__(
        self,
        n_selected: int,
        n_metabolites: int,
        n_clusters: int = 0,
        n_cats_per_cov: tuple[int, ...] = (),
        n_continuous: int = 0,
        n_components: int = 0,
        encoder: str = "mlp",
        intensity_weight: float = 1.0,
        encoder_kwargs: dict[str, Any] | None = None,
        n_features: tuple[int, ...] = (),
        presence_loss: PresenceLoss = "bce",
        intensity_loss: IntensityLoss = "mse",
        two_stage: bool = False,
        linear_path: bool = False,
        signature_stages: Sequence[str] = ("presence",),
        has_prior: bool = False,
        has_graph: bool = False,
        logged: bool = False,
    ) -> None:
        super().__init__()
        self.logged = logged
        self.n_features = tuple(n_features)
        self.presence_loss, self.intensity_loss = presence_loss, intensity_loss
        self.stage: Stage = "joint"
        self.n_cats_per_cov = tuple(n_cats_per_cov)
        self.n_clusters = n_clusters
        self.intensity_weight = intensity_weight
        self.register_buffer("gene_index", torch.zeros(n_selected, dtype=torch.long))
        self.register_buffer("gene_mean", torch.zeros(n_selected))
        self.register_buffer("gene_scale", torch.ones(n_selected))
        self.register_buffer("covariate_mean", torch.zeros(n_continuous))
        self.register_buffer("covariate_scale", torch.ones(n_continuous))
        self.register_buffer("feature_mean", torch.zeros(sum(n_features)))
        self.register_buffer("feature_scale", torch.ones(sum(n_features)))
        self.register_buffer("signature", torch.zeros(max(n_clusters, 1), n_selected))
        self.register_buffer("target_mean", torch.zeros(n_metabolites))
        self.register_buffer("target_scale", torch.ones(n_metabolites))
        self.register_buffer("positive_weight", torch.ones(n_metabolites))
        rings = ENCODERS[encoder].n_rings if has_graph else 0
        self.register_buffer("ring_scale", torch.ones(rings, n_selected if rings else 0))
        self._register_rows(n_selected, n_metabolites, n_components)
        n_covariates = sum(n_cats_per_cov) + n_continuous + sum(n_features)
        sizes = Sizes(
            n_selected, n_covariates, n_components, n_metabolites, has_prior, has_graph, n_clusters > 0, sum(n_features)
        )
        self.encoder = ENCODERS[encoder](sizes, **(encoder_kwargs or {}))
        self.intensity_encoder = ENCODERS[encoder](sizes, **(encoder_kwargs or {})) if two_stage else None
        width = self.encoder.n_output
        masked = n_clusters > 0 and not isinstance(self.encoder, MetaboliteEncoder)
        self.signature_layer = nn.Linear(n_selected, _SIGNATURE_WIDTH) if masked else None
        self.signature_stages = tuple(signature_stages) if masked else ()
        seen = {s: _SIGNATURE_WIDTH if s in self.signature_stages else 0 for s in ("presence", "intensity")}
        self.presence_head: nn.Module
        self.intensity_head: nn.Module
        if isinstance(self.encoder, MetaboliteEncoder):  # whose embeddings have seen the mask
            sign = self.encoder.sign
            self.presence_head = AttentionReadOut(sign, n_metabolites, n_covariates)
            self.intensity_head = AttentionReadOut(sign, n_metabolites, n_covariates)
        elif isinstance(self.encoder, LocalFirstEncoder):
            n, hops = self.encoder.n_correction, self.encoder.n_hops
            alone = width - n - 2 * hops * n_metabolites
            self.presence_head = CorrectedHead(alone, n, hops, n_metabolites, seen["presence"])
            self.intensity_head = CorrectedHead(alone, n, hops, n_metabolites, seen["intensity"])
        elif self.encoder.is_grouped:
            self.presence_head = GroupedHead(width, n_metabolites, seen["presence"])
            self.intensity_head = GroupedHead(width, n_metabolites, seen["intensity"])
        else:
            self.presence_head = nn.Linear(width + seen["presence"], n_metabolites)
            self.intensity_head = nn.Linear(width + seen["intensity"], n_metabolites)
        self.linear_path = LinearPath(n_selected + sum(n_features), n_metabolites) if linear_path else None
        if linear_path and isinstance(self.encoder, MetaboliteEncoder):
            for head in (self.presence_head, self.intensity_head):
                head.begin_at_zero()  # type: ignore[operator]
        elif linear_path:
            for parameter in (*self.presence_head.parameters(), *self.intensity_head.parameters()):
                nn.init.zeros_(parameter)

    def set_buffers(self, **values: Any) -> None:
        """Fill buffers with statistics of the training spots."""
        for name, value in values.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.as_tensor(value, dtype=buffer.dtype))

    def set_linear_path(self, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        """Weights on genes and features, shape (inputs, 2 x metabolites), and offsets of the prediction that the heads correct."""
        assert self.linear_path is not None
        self.linear_path.weight.copy_(torch.as_tensor(weight))
        self.linear_path.bias.copy_(torch.as_tensor(bias))

    def begin(self, stage: Stage) -> None:
        """What the next gradient steps train: both stages, or one of them while the other is fixed.

        The encoder of the intensity begins as that of the presence. Of a :class:`LocalFirstEncoder` both stages are trained, first
        of spots by themselves, then their correction by the neighbourhood.
        """
        self.stage = stage
        if isinstance(self.encoder, LocalFirstEncoder):
            self._begin_local_or_correction(stage)
            return
        if self.intensity_encoder is None:
            return
        if stage == "intensity":
            self.intensity_encoder.load_state_dict(self.encoder.state_dict())
        for part in (self.intensity_encoder, self.intensity_head):
            part.requires_grad_(stage != "presence")
        presence = [self.encoder, self.presence_head, *([] if self.signature_layer is None else [self.signature_layer])]
        for part in presence:
            part.requires_grad_(stage != "intensity")

    def _begin_local_or_correction(self, stage: Stage) -> None:
        encoder = cast("LocalFirstEncoder", self.encoder)
        heads = [cast("CorrectedHead", head) for head in (self.presence_head, self.intensity_head)]
        local = [head.local for head in heads] + ([] if self.signature_layer is None else [self.signature_layer])
        for part in (encoder, *heads):
            part.requires_grad_(stage != "local")
        encoder.fix(stage == "correction")
        for part in (encoder.local, *local):  # inside those above
            part.requires_grad_(stage != "correction")
        self._set_rows(embedded=self.embedded[:0])
        if stage == "correction":  # in which what spots are by themselves does not change
            rows = torch.arange(len(self.spot_genes), device=self.spot_genes.device).split(_AT_ONCE)
            with torch.no_grad():
                self._set_rows(embedded=torch.cat([self._nodes(some) for some in rows]))

    def _get_inference_input(self, tensors: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, Any]:
        return {
            "x": tensors[REGISTRY_KEYS.X_KEY],
            "cluster": tensors.get(CLUSTER_KEY),
            "categorical": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            "continuous": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "row": tensors.get(REGISTRY_KEYS.INDICES_KEY),
            "features": self._features(tensors),
        }

    def _features(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
        parts = [tensors[f"{FEATURES_KEY}_{i}"] for i in range(len(self.n_features))]
        return torch.cat(parts, dim=1) if parts else None

    def _get_generative_input(
        self, tensors: dict[str, torch.Tensor], inference_outputs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        return inference_outputs

    @auto_move_data
    def inference(
        self,
        x: torch.Tensor,
        cluster: torch.Tensor | None = None,
        categorical: torch.Tensor | None = None,
        continuous: torch.Tensor | None = None,
        row: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """Embed spots from their expression over the panel: counts or, where the module is told so, logarithms."""
        return self.embed(self.expression(x), cluster, categorical, continuous, row, features)

    def expression(self, x: torch.Tensor) -> torch.Tensor:
        """Log expression of the genes used, standardised by the training spots: 0 is their mean."""
        return self.standardise(log_expression(x, self.gene_index, logged=self.logged))

    def standardise(self, log: torch.Tensor) -> torch.Tensor:
        """Log expression of the genes used on the scale of the training spots, shape (spots, genes used)."""
        return ((log - self.gene_mean) / self.gene_scale).clamp(-CLIP, CLIP)

    def signature_of(self, cluster: torch.Tensor) -> torch.Tensor | None:
        """Signature mask of each spot's cluster, shape (spots, genes used); `None` where the model has none."""
        return self.signature[cluster.reshape(-1).long()] if self.n_clusters else None

    def queries(self) -> Queries | None:
        """What all metabolites ask, once for many batches in which weights do not change; `None`: the encoder has no queries."""
        return self.encoder.ask() if isinstance(self.encoder, MetaboliteEncoder) else None

    def embed(
        self,
        expression: torch.Tensor,
        cluster: torch.Tensor | None = None,
        categorical: torch.Tensor | None = None,
        continuous: torch.Tensor | None = None,
        row: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        *,
        metabolites: torch.Tensor | None = None,
        queries: Queries | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """Embed spots from standardised expression; `row` names them in the context.

        Encoders of one embedding per metabolite can be asked for some `metabolites` by position, or by `queries` for others
        than those of the training data, whose positions are -1.
        """
        columns = [expression.new_zeros(len(expression), 0)]
        if categorical is not None:
            columns += [
                one_hot(categorical[:, i].long(), n).to(expression.dtype) for i, n in enumerate(self.n_cats_per_cov)
            ]
        if continuous is not None:
            columns.append((continuous - self.covariate_mean) / self.covariate_scale)
        linear = [expression]
        if features is not None:
            features = (features - self.feature_mean) / self.feature_scale
            columns.append(features)
            linear.append(features)
        context: Context | GeneContext | SectionContext | None = None
        if self.encoder.n_rings:
            context = self.gene_context(row)
        elif row is not None and self.encoder.uses_graph and self.stage != "local":
            context = self._context(row)
        elif row is not None and self.encoder.uses_section:
            context = self._section_context(row)
        covariates = torch.cat(columns, dim=1)
        mask = None if cluster is None else self.signature_of(cluster)
        if isinstance(self.encoder, MetaboliteEncoder):
            queries = queries or self.encoder.ask(metabolites)
            embedding = self.encoder(expression, covariates, context, mask=mask, queries=queries)
            outputs: dict[str, torch.Tensor | None] = {
                "embedding": embedding, "metabolites": metabolites, "known": queries.known, "covariates": covariates,
            }  # fmt: skip
        else:
            # a spot is no exemplar of itself, nor of its section, or a new section would find less than training did
            apart = self.training and row is not None and self.encoder.has_exemplars
            others = {"section": self.in_section[row.reshape(-1).long()]} if apart else {}  # type: ignore[union-attr]
            outputs = {"embedding": self.encoder(expression, covariates, context, **others), "mask": mask}
        if self.intensity_encoder is not None and self.stage != "presence":
            outputs["intensity_embedding"] = self.intensity_encoder(expression, covariates, context)
        if self.linear_path is not None:
            linear_path = self.linear_path(torch.cat(linear, dim=1))
            outputs["linear"] = linear_path if row is None else self._as_if_held_out(row, linear_path)
        return outputs

    @auto_move_data
    def generative(
        self,
        embedding: torch.Tensor,
        mask: torch.Tensor | None = None,
        intensity_embedding: torch.Tensor | None = None,
        linear: torch.Tensor | None = None,
        metabolites: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        covariates: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Both stages from the embedding: log-odds of presence, standardised intensity given presence."""
        if isinstance(self.encoder, MetaboliteEncoder):
            read = (embedding, known, covariates, metabolites)
            logit, mean = self.presence_head(*read), self.intensity_head(*read)
        else:
            logit, mean = self._read(embedding, mask, intensity_embedding)
        if linear is not None:
            linear_logit, linear_mean = linear.chunk(2, dim=1)
            if metabolites is not None:
                linear_logit, linear_mean = linear_logit[:, metabolites], linear_mean[:, metabolites]
            logit, mean = logit + linear_logit, mean + linear_mean
        return {"logit": logit, "mean": mean}

    def _read(
        self, embedding: torch.Tensor, mask: torch.Tensor | None, intensity_embedding: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both heads on one embedding per spot."""
        inputs = {"presence": embedding, "intensity": embedding if intensity_embedding is None else intensity_embedding}
        if isinstance(self.encoder, LocalFirstEncoder):
            inputs = dict(zip(inputs, self.encoder.of_stages(embedding), strict=True))
        if self.signature_layer is not None and self.signature_stages:
            signature = self.signature_layer(mask)
            inputs |= {stage: torch.cat([inputs[stage], signature], dim=1) for stage in self.signature_stages}
        return self.presence_head(inputs["presence"]), self.intensity_head(inputs["intensity"])

    def read_out(self, **outputs: Any) -> dict[str, torch.Tensor]:
        """What is predicted from embeddings: retrieved where the encoder keeps training spots, else that of the heads."""
        bank = self.encoder.bank
        if bank is None or not self.encoder.retrieves:
            return self.generative(**outputs)
        logit, mean = bank.look_up(outputs["embedding"])
        # on the scale of the head, which a class-balanced loss trains
        return {"logit": logit + self.positive_weight.log(), "mean": mean}

    def targets(self, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised intensity and presence of a batch, NaN where not covered; each of shape (spots, metabolites)."""
        measured = tensors[METABOLITES_KEY]
        if PRESENCE_KEY in tensors:
            present = torch.where(torch.isnan(measured), measured, tensors[PRESENCE_KEY])
        else:
            present = torch.where(torch.isnan(measured), measured, (measured > 0).to(measured.dtype))
        mean, scale = self.target_mean, self.target_scale
        if len(self.section):
            section = self.section[tensors[REGISTRY_KEYS.INDICES_KEY].reshape(-1).long()]
            mean, scale = self.section_mean[section], self.section_scale[section]
        return (measured - mean) / scale, present

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, torch.Tensor],
    ) -> LossOutput:
        """Presence loss plus weighted intensity loss (while one stage is trained, that of this stage), plus the encoder's own."""
        target, present = self.targets(tensors)
        # in full precision, also where the network runs in half
        logit, predicted = generative_outputs["logit"].float(), generative_outputs["mean"].float()
        presence = presence_loss(logit, present, self.positive_weight, self.presence_loss)
        intensity = intensity_loss(predicted, target, present, self.intensity_loss)
        if self.encoder.correlation_weight:
            intensity = intensity + self.encoder.correlation_weight * correlation_loss(predicted, target, present)
        weighted = self.intensity_weight * intensity
        loss = {"presence": presence, "intensity": weighted}.get(self.stage, presence + weighted)
        metrics = {"presence_loss": presence.detach(), "intensity_loss": intensity.detach()}
        auxiliary = self.encoder.auxiliary_loss(inference_outputs["embedding"], target, present)
        if auxiliary is not None:
            if self.training or self.encoder.retrieves:  # of held-out spots, what is predicted counts
                loss = loss + auxiliary
            metrics["auxiliary_loss"] = auxiliary.detach()
        return LossOutput(
            loss=loss,
            reconstruction_loss=intensity.expand(len(target)),
            n_obs_minibatch=len(target),
            extra_metrics=metrics,
        )
