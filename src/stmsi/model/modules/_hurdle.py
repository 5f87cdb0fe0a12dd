"""The hurdle model as a scvi-tools module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import nn
from torch.nn.functional import one_hot

from stmsi._core.expression import TARGET_SUM
from stmsi.model.encoders import ENCODERS, Context, MetaboliteEncoder, Queries, Sizes
from stmsi.model.modules._losses import intensity_loss, presence_loss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METABOLITES_KEY = "metabolites"
PRESENCE_KEY = "presence"
CLUSTER_KEY = "cluster"
_CLIP = 10.0
_SIGNATURE_WIDTH = 32


class SharedHead(nn.Module):
    """One linear map for the embeddings of all metabolites, then a scale and a bias for each.

    Parameters
    ----------
    width
        Of the embeddings.
    n_metabolites
        Metabolites of the training data.
    """

    def __init__(self, width: int, n_metabolites: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.zeros(n_metabolites))  # less 1
        self.bias = nn.Parameter(torch.zeros(n_metabolites))

    def forward(self, embedding: torch.Tensor, metabolites: torch.Tensor | None = None) -> torch.Tensor:
        """Read embeddings, shape (spots, metabolites, width), to one value each.

        Parameters
        ----------
        embedding
            The embeddings.
        metabolites
            Position of each metabolite, -1 for those that training did not have: they get no scale and bias of their own.
            `None`: all in their order.
        """
        value = self.shared(embedding).squeeze(-1)
        if metabolites is None:
            return value * (1 + self.scale) + self.bias
        seen = (metabolites >= 0).to(value.dtype)
        return value * (1 + self.scale[metabolites] * seen) + self.bias[metabolites] * seen


class HurdleModule(BaseModuleClass):
    """An encoder and two heads: presence (with the signature mask as an input of its own) and intensity.

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
        Components of spots and neighbours, for encoders that read the neighbourhood.
    encoder
        Name in the registry of encoders.
    intensity_weight
        Weight of the intensity loss beside the presence loss.
    encoder_kwargs
        Options of the encoder.
    has_prior
        Whether the encoder is told which genes belong to which metabolite.
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
        has_prior: bool = False,
    ) -> None:
        super().__init__()
        self.n_cats_per_cov = tuple(n_cats_per_cov)
        self.n_clusters = n_clusters
        self.intensity_weight = intensity_weight
        self.register_buffer("gene_index", torch.zeros(n_selected, dtype=torch.long))
        self.register_buffer("gene_mean", torch.zeros(n_selected))
        self.register_buffer("gene_scale", torch.ones(n_selected))
        self.register_buffer("covariate_mean", torch.zeros(n_continuous))
        self.register_buffer("covariate_scale", torch.ones(n_continuous))
        self.register_buffer("signature", torch.zeros(max(n_clusters, 1), n_selected))
        self.register_buffer("target_mean", torch.zeros(n_metabolites))
        self.register_buffer("target_scale", torch.ones(n_metabolites))
        self.register_buffer("positive_weight", torch.ones(n_metabolites))
        # of the spots at hand, whoever they are: set anew for each data set and not saved
        self.register_buffer("components", torch.empty(0, n_components), persistent=False)
        self.register_buffer("neighbours", torch.empty(0, 0, dtype=torch.long), persistent=False)
        self.register_buffer("ring", torch.empty(0, 0, dtype=torch.long), persistent=False)
        self.register_buffer("offset", torch.empty(0, 0, 2), persistent=False)
        sizes = Sizes(n_selected, sum(n_cats_per_cov) + n_continuous, n_components, n_metabolites, has_prior)
        self.encoder = ENCODERS[encoder](sizes, **(encoder_kwargs or {}))
        width = self.encoder.n_output
        self.signature_layer: nn.Linear | None = None
        self.presence_head: nn.Module
        self.intensity_head: nn.Module
        if isinstance(self.encoder, MetaboliteEncoder):  # whose embeddings have seen the mask
            self.presence_head, self.intensity_head = SharedHead(width, n_metabolites), SharedHead(width, n_metabolites)
        else:
            self.signature_layer = nn.Linear(n_selected, _SIGNATURE_WIDTH) if n_clusters else None
            self.presence_head = nn.Linear(width + (_SIGNATURE_WIDTH if n_clusters else 0), n_metabolites)
            self.intensity_head = nn.Linear(width, n_metabolites)

    def set_buffers(self, **values: Any) -> None:
        """Fill buffers with statistics of the training spots."""
        for name, value in values.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.as_tensor(value, dtype=buffer.dtype))

    def set_context(
        self,
        components: NDArray[np.float32],
        neighbours: NDArray[np.int64],
        ring: NDArray[np.int64],
        offset: NDArray[np.float32],
    ) -> None:
        """The neighbourhoods of all spots that batches will name by their row.

        Parameters
        ----------
        components
            Shape (spots, components).
        neighbours, ring, offset
            Row, ring and relative position of each spot's neighbours; shapes (spots, K), (spots, K), (spots, K, 2).
        """
        for name, value in (("components", components), ("neighbours", neighbours), ("ring", ring), ("offset", offset)):
            old = getattr(self, name)
            setattr(self, name, torch.as_tensor(value, dtype=old.dtype, device=old.device))

    def _context(self, row: torch.Tensor) -> Context:
        row = row.reshape(-1).long()
        neighbours, ring = self.neighbours[row], self.ring[row]
        around = self.components[neighbours.clamp(min=0)] * (ring > 0).unsqueeze(-1)
        return Context(self.components[row], around, ring, self.offset[row])

    def _get_inference_input(self, tensors: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, Any]:
        return {
            "x": tensors[REGISTRY_KEYS.X_KEY],
            "cluster": tensors.get(CLUSTER_KEY),
            "categorical": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            "continuous": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "row": tensors.get(REGISTRY_KEYS.INDICES_KEY),
        }

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
    ) -> dict[str, torch.Tensor | None]:
        """Embed spots from raw counts over the panel."""
        return self.embed(self.expression(x), cluster, categorical, continuous, row)

    def expression(self, x: torch.Tensor) -> torch.Tensor:
        """Log-normalised expression of the genes used, standardised by the training spots: 0 is their mean."""
        library = x.sum(dim=1, keepdim=True)
        scaled = x[:, self.gene_index] * (TARGET_SUM / torch.where(library > 0, library, torch.ones_like(library)))
        return ((torch.log1p(scaled) - self.gene_mean) / self.gene_scale).clamp(-_CLIP, _CLIP)

    def signature_of(self, cluster: torch.Tensor) -> torch.Tensor | None:
        """Signature mask of each spot's cluster, shape (spots, genes used); `None` where the model has none."""
        return self.signature[cluster.reshape(-1).long()] if self.n_clusters else None

    def embed(
        self,
        expression: torch.Tensor,
        cluster: torch.Tensor | None = None,
        categorical: torch.Tensor | None = None,
        continuous: torch.Tensor | None = None,
        row: torch.Tensor | None = None,
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
        context = self._context(row) if self.encoder.uses_graph and row is not None else None
        mask = None if cluster is None else self.signature_of(cluster)
        inputs = (expression, torch.cat(columns, dim=1), context)
        if isinstance(self.encoder, MetaboliteEncoder):
            queries = queries or self.encoder.ask(metabolites)
            return {"embedding": self.encoder(*inputs, mask=mask, queries=queries), "metabolites": metabolites}
        embedding = self.encoder(*inputs)
        return {"embedding": embedding, "mask": mask}

    @auto_move_data
    def generative(
        self, embedding: torch.Tensor, mask: torch.Tensor | None = None, metabolites: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Both stages from the embedding: log-odds of presence, standardised intensity given presence."""
        if isinstance(self.encoder, MetaboliteEncoder):
            return {
                "logit": self.presence_head(embedding, metabolites),
                "mean": self.intensity_head(embedding, metabolites),
            }
        inputs = (
            embedding if self.signature_layer is None else torch.cat([embedding, self.signature_layer(mask)], dim=1)
        )
        return {"logit": self.presence_head(inputs), "mean": self.intensity_head(embedding)}

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, torch.Tensor],
    ) -> LossOutput:
        """Presence loss plus weighted intensity loss."""
        measured = tensors[METABOLITES_KEY]
        if PRESENCE_KEY in tensors:
            present = torch.where(torch.isnan(measured), measured, tensors[PRESENCE_KEY])
        else:
            present = torch.where(torch.isnan(measured), measured, (measured > 0).to(measured.dtype))
        target = (measured - self.target_mean) / self.target_scale
        presence = presence_loss(generative_outputs["logit"], present, self.positive_weight)
        intensity = intensity_loss(generative_outputs["mean"], target, present)
        return LossOutput(
            loss=presence + self.intensity_weight * intensity,
            reconstruction_loss=intensity.expand(len(measured)),
            n_obs_minibatch=len(measured),
            extra_metrics={"presence_loss": presence.detach(), "intensity_loss": intensity.detach()},
        )
