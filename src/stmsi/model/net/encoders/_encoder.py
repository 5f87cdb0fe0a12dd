"""The interface of encoders."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

if TYPE_CHECKING:
    from stmsi.model.net.encoders._contexts import Context
    from stmsi.model.net.encoders._training_profiles import ProfileBank


@dataclass(frozen=True)
class Sizes:
    """Widths of what an encoder is given.

    Attributes
    ----------
    n_genes
        Genes of the input.
    n_covariates
        Columns of the covariates.
    n_components
        Components of spots and neighbours in the :class:`Context`; 0 without a graph.
    n_metabolites
        Metabolites of the training data.
    has_prior
        Whether it is known which genes belong to which metabolite.
    has_graph
        Whether spots have neighbours.
    has_signature
        Whether spots have the signature mask of a cluster.
    n_features
        Columns of further features, which are the last of the covariates.
    """

    n_genes: int
    n_covariates: int
    n_components: int = 0
    n_metabolites: int = 0
    has_prior: bool = False
    has_graph: bool = False
    has_signature: bool = False
    n_features: int = 0


@dataclass(frozen=True)
class Usual:
    """How an encoder is trained when the user does not say: see ``train``.

    `eps` is that of AdamW. The usual of scvi-tools, 0.01, all but stops weights whose gradients are small, such as those behind a layer
    that begins at 0.
    """

    max_epochs: int = 150
    patience: int = 20
    batch_size: int = 128
    lr: float = 3e-3
    eps: float = 0.01
    cosine: bool = False  # whether the learning rate falls to 0 as a cosine over all epochs

    def fill(self, name: str, given: Any) -> Any:
        """What was given, or the usual."""
        return getattr(self, name) if given is None else given


class Encoder(nn.Module):
    """A batch of spots in, one embedding per spot out.

    Parameters
    ----------
    sizes
        Widths of the input.

    Attributes
    ----------
    n_output
        Width of the embedding.
    uses_graph
        Whether the encoder reads the neighbourhood.
    needs_graph
        Whether it cannot do without.
    sees_genes
        Whether the :class:`Context` holds the genes of spots and neighbours, and not their components.
    uses_edges
        Whether it reads which of the neighbours share an edge.
    n_hops
        Rings of neighbours in the :class:`Context`, 1 to 3.
    n_rings
        Rings of which it sees mean genes in a :class:`GeneContext`, and no single neighbours.
    uses_section
        Whether it reads all spots of the section.
    uses_positions
        Whether it also reads where these lie.
    is_joint
        Whether both stages can only be learned at once.
    residual
        What the heads correct when the user does not say; see :class:`stmsi.model.HurdleNet`.
    most_nets, nets_without_refit
        Networks at most, one for each held-out group, when the user does not say; and with ``train(refit=False)``.
    usual
        How it is trained when the user does not say.
    correlation_weight
        Weight of one less the correlation inside a batch beside the loss of the intensity. Where it is not 0, training ends by the
        correlation inside held-out sections.
    is_grouped
        Whether each metabolite has units of the embedding of its own, which lie one group after the other.
    bank
        Training spots that an encoder with retrieval or exemplars keeps; `None` for all others.
    retrieves
        Whether predictions are means over the bank, and not those of the heads.
    has_exemplars
        Whether embeddings depend on the bank, which then is filled before each epoch.
    """

    n_output: int
    is_grouped: bool = False
    bank: ProfileBank | None
    retrieves: bool = False
    has_exemplars: bool = False
    uses_graph: ClassVar[bool] = False
    needs_graph: ClassVar[bool] = False
    sees_genes: ClassVar[bool] = False
    uses_edges: ClassVar[bool] = False
    n_hops: int = 2
    n_rings: ClassVar[int] = 0
    uses_section: ClassVar[bool] = False
    uses_positions: ClassVar[bool] = False
    is_joint: ClassVar[bool] = False
    residual: ClassVar[str | None] = "ridge"
    most_nets: ClassVar[int] = 3
    nets_without_refit: ClassVar[int] = 1
    usual: ClassVar[Usual] = Usual()
    correlation_weight: ClassVar[float] = 0.0

    def __init__(self, sizes: Sizes, **kwargs: Any) -> None:
        if kwargs:
            msg = f"{type(self).__name__} does not take {sorted(kwargs)}."
            raise TypeError(msg)
        super().__init__()
        self.bank = None

    @abstractmethod
    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots.

        Parameters
        ----------
        x
            Scaled expression, shape (spots, genes).
        covariates
            Shape (spots, covariates).
        context
            The neighbourhood, for encoders that use it.

        Returns
        -------
        Shape (spots, ``n_output``).
        """

    def auxiliary_loss(
        self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor | None:
        """A loss of the encoder's own, added to those of the two stages.

        Parameters
        ----------
        embedding
            Of the spots, as :meth:`forward` returned it.
        target
            Standardised intensity, shape (spots, metabolites), NaN where not covered.
        present
            1, 0 or NaN, likewise.

        Returns
        -------
        One number, `None` where the encoder has no such loss.
        """
        return None

    def remember(
        self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor, section: torch.Tensor | None = None
    ) -> None:
        """Put training spots into the bank, for encoders that have one.

        Parameters
        ----------
        embedding, target, present
            As for :meth:`auxiliary_loss`.
        section
            Number of the section of each spot: its spots are no exemplars of each other. `None`: all may be.
        """
