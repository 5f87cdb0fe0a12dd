"""Gene attention: metabolites that ask genes, and are told nothing but the expression of the genes that they attend to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import pi
from typing import Any, Literal

import torch
from torch import nn

from stmsi._data.checks import check_choice
from stmsi.model.net.encoders._contexts import GeneContext
from stmsi.model.net.encoders._encoder import Sizes, Usual
from stmsi.model.net.encoders._metabolite_encoder import Evidence, MetaboliteEncoder, Queries
from stmsi.model.net.encoders._programmes import ProgrammeLayers
from stmsi.model.net.encoders._sparse_softmax import entmax15

WAVELENGTHS = (1e-3, 1e4)
"""Shortest and longest wavelength of the encoding of m/z, in Da, as in Casanovo."""
_MASS_WIDTH = 32
"""Sines and cosines of m/z."""
_ELEMENTS = 2**19
"""Spots times genes of a batch in prediction: larger arrays leave the processor's cache."""
_SHARPNESS, _LIFT, _KEY = 1.5, 0.1, 0.1
"""Where training begins: factor on the screened correlation, on the expression of a spot, size of queries and keys."""
_OWN = 0.7
"""Weight of own expression beside that of the rings, where training begins."""
_SCALE, _LEAST_NORM = 0.5, 1e-3
"""Of activities: a mean of many genes varies less than one gene, and sharp and broad attention should begin alike."""
_LARGEST_LIFT = 30.0
_FARTHEST = 3.0
"""Standard deviations beyond which the expression of a gene draws no more attention."""


class TransformerEncoder(MetaboliteEncoder):
    r"""Metabolite queries attend to genes; **nothing reaches a prediction but attended gene values**.

    **Attention.** Head :math:`h` of metabolite :math:`m` attends to gene :math:`g` in spot :math:`i` with the softmax over genes of

    .. math::
        \tau_{mh} s_h C_{mg} + \pi K_{mg} + \sigma_h S_{c(i)g} + q_{mh} \cdot k_g + \beta_h z_{ig}.

    :math:`C` is how strongly the gene goes with the metabolite inside the training sections. The sign :math:`s_h` is 1 in every
    first and -1 in every second head, which so attend to genes that go with the metabolite, and against it. :math:`K` are genes
    known to belong to it, :math:`S` is the signature mask of the spot's cluster, and :math:`z` standardised expression. The query
    :math:`q` is a learned embedding plus a linear map of sines and cosines of m/z (after Casanovo) and of descriptors; the key
    :math:`k` begins as the loadings of the gene on the principal components. All other Greek letters are learned.

    **Values** are the expression of the spot and, with a graph, of its first and second ring, with a learned weight for each
    metabolite and head. The output is the attended value of each head.

    The logit is a sum of one term of metabolite and gene, and one of spot and gene, so that the softmax is a quotient of two
    matrix products. That is exact, and its cost is linear in spots, genes and metabolites.

    **Options.** With `n_layers`, gene programmes of the spot attend to each other first, and add :math:`r_{ih} \cdot k_g` to the
    logit: they direct attention, and still nothing but attended values reaches a prediction. With ``attention="entmax"``, the
    term of metabolite and gene goes through 1.5-entmax, which leaves most genes out, before the spot lifts some of the others.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_heads
        Attention heads, an even number.
    n_hidden
        Width of queries and keys.
    query_dropout
        Share of metabolites that a training step knows by m/z and descriptors alone. It costs some accuracy on those that are
        measured.
    descriptors
        Numeric columns of the feature table that describe metabolites beside their m/z.
    genes_per_metabolite
        Genes that each metabolite chooses before training; all metabolites attend to those that any has chosen.
    n_layers
        Blocks of self-attention among gene programmes.
    temperature
        What all logits are divided by: below 1, attention begins sharper.
    attention
        ``"softmax"`` or ``"entmax"``.

    References
    ----------
    Yilmaz et al., Casanovo (2024); Pizurica et al., SEQUOIA (2024); Peters et al., entmax (2019).
    """

    uses_graph = True
    n_rings = 2
    most_nets = nets_without_refit = 6
    usual = Usual(max_epochs=100, patience=8, batch_size=256, lr=1e-2, eps=1e-8)
    correlation_weight = 0.5
    mass: torch.Tensor
    descriptors: torch.Tensor
    descriptor_mean: torch.Tensor
    descriptor_scale: torch.Tensor
    prior: torch.Tensor
    screened: torch.Tensor
    sign: torch.Tensor

    def __init__(
        self,
        sizes: Sizes,
        n_heads: int = 2,
        n_hidden: int = 32,
        query_dropout: float = 0.0,
        descriptors: Sequence[str] = (),
        genes_per_metabolite: int = 40,
        n_layers: int = 0,
        temperature: float = 1.0,
        attention: Literal["softmax", "entmax"] = "softmax",
    ) -> None:
        super().__init__(sizes)
        check_choice(attention, ("softmax", "entmax"), "attention")
        if genes_per_metabolite < 1:
            msg = f"genes_per_metabolite must be at least 1, found {genes_per_metabolite!r}."
            raise ValueError(msg)
        if n_heads < 2 or n_heads % 2:
            msg = f"n_heads={n_heads} must be an even number: half of the heads attend to genes that go against a metabolite."
            raise ValueError(msg)
        n, n_genes = sizes.n_metabolites, sizes.n_genes
        self.n_heads = self.n_output = n_heads
        self.query_dropout, self._uniform = query_dropout, False
        self.genes_per_metabolite = genes_per_metabolite
        self.temperature, self.attention = temperature, attention
        self.largest_batch = max(1, _ELEMENTS // max(n_genes, 1))
        self.register_buffer("mass", torch.zeros(n, _MASS_WIDTH))
        self.register_buffer("descriptors", torch.zeros(n, len(descriptors)))
        self.register_buffer("descriptor_mean", torch.zeros(len(descriptors)))
        self.register_buffer("descriptor_scale", torch.ones(len(descriptors)))
        self.register_buffer("prior", torch.zeros(n if sizes.has_prior else 0, n_genes))
        self.register_buffer("screened", torch.zeros(n, n_genes))
        self.register_buffer("sign", torch.tensor([1.0, -1.0]).repeat(n_heads // 2), persistent=False)
        # -- logits
        self.sharpness = nn.Parameter(torch.full((n, n_heads), _SHARPNESS))
        self.learned = nn.Parameter(_KEY * torch.randn(n, n_heads, n_hidden))
        self.from_mass = nn.Linear(_MASS_WIDTH, n_heads * n_hidden, bias=False)
        self.from_descriptors = nn.Linear(len(descriptors), n_heads * n_hidden, bias=False) if descriptors else None
        for layer in (self.from_mass, self.from_descriptors):
            if layer is not None:
                nn.init.normal_(layer.weight, std=_KEY * max(layer.in_features, 1) ** -0.5)
        self.key = nn.Parameter(_KEY * torch.randn(n_genes, n_hidden))
        self.programmes = ProgrammeLayers(n_genes, n_layers, n_heads, n_hidden) if n_layers else None
        self.lift = nn.Parameter(torch.full((n_heads,), _LIFT))
        self.prior_strength = nn.Parameter(torch.ones(())) if sizes.has_prior else None
        self.signature_strength = nn.Parameter(torch.full((n_heads,), _LIFT)) if sizes.has_signature else None
        # -- values
        n_values = 1 + (self.n_rings if sizes.has_graph else 0)
        first = torch.tensor([1.0] if n_values == 1 else [_OWN, *[(1 - _OWN) / self.n_rings] * self.n_rings])
        self.mix = nn.Parameter(first.repeat(n_heads, 1))
        self.mix_of = nn.Parameter(torch.zeros(n, n_heads, n_values))

    @torch.no_grad()
    def describe(self, evidence: Evidence, seed: int) -> None:
        """Begin from what is known; see :class:`MetaboliteEncoder`."""
        self.mass.copy_(encode_mz(evidence.mz, _MASS_WIDTH))
        known = ~evidence.descriptors.isnan()
        count = known.sum(dim=0).clamp(min=1)
        self.descriptor_mean.copy_(evidence.descriptors.nan_to_num(0).sum(dim=0) / count)
        deviation = (evidence.descriptors - self.descriptor_mean).nan_to_num(0)
        scale = (deviation.square().sum(dim=0) / count).sqrt()
        self.descriptor_scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))
        self.descriptors.copy_(evidence.descriptors)
        if evidence.prior is not None:
            self.prior.copy_(evidence.prior)
        self.screened.copy_(evidence.screened)
        generator = torch.Generator().manual_seed(seed)
        self.key.copy_(_KEY * torch.randn(self.key.shape, generator=generator))
        n = min(len(evidence.loadings), self.key.shape[1])
        self.key[:, :n] = evidence.loadings[:n].T.to(self.key)
        if self.programmes is not None:
            self.programmes.describe(evidence.loadings)

    @contextmanager
    def made_uniform(self) -> Iterator[None]:
        """Every metabolite attends to all genes alike inside; see :class:`MetaboliteEncoder`."""
        self._uniform = True
        try:
            yield
        finally:
            self._uniform = False

    def ask(self, metabolites: torch.Tensor | None = None) -> Queries:
        """Queries of metabolites of the training data; see :class:`MetaboliteEncoder`."""
        known = self.screened.new_ones(len(self.learned))
        if self.training and self.query_dropout:
            known = (torch.rand(len(known), device=known.device) >= self.query_dropout).to(known)
        each = known[:, None, None]
        embedding = self.learned * each + self._described(self.mass, self.descriptors)
        bias = (self.sharpness * self.sign).unsqueeze(-1) * self.screened.unsqueeze(1) * each
        if self.prior_strength is not None:
            bias = bias + (self.prior_strength * self.prior).unsqueeze(1)
        queries = Queries(embedding, bias, self.mix + self.mix_of * each, known)
        return queries if metabolites is None else queries.some(metabolites)

    def ask_unseen(self, mz: torch.Tensor, descriptors: torch.Tensor) -> Queries:
        """Queries of other metabolites; see :class:`MetaboliteEncoder`."""
        embedding = self._described(encode_mz(mz, _MASS_WIDTH).to(self.mass), descriptors.to(self.mass))
        n = len(embedding)
        bias = embedding.new_zeros(n, self.n_heads, len(self.key))
        return Queries(embedding, bias, self.mix.expand(n, -1, -1), embedding.new_zeros(n))

    def _described(self, mass: torch.Tensor, descriptors: torch.Tensor) -> torch.Tensor:
        """The part of queries that follows from m/z and descriptors, shape (metabolites, heads, width)."""
        out = self.from_mass(mass)
        if self.from_descriptors is not None:
            scaled = (descriptors - self.descriptor_mean) / self.descriptor_scale
            out = out + self.from_descriptors(scaled.nan_to_num(0))
        return out.unflatten(1, (self.n_heads, -1))

    def weights(self, queries: Queries) -> torch.Tensor:
        """Attention before a spot is looked at, shape (metabolites, heads, genes); sums to 1 over genes."""
        logit = queries.bias + torch.einsum("mhd,gd->mhg", queries.embedding, self.key)
        if self._uniform:
            logit = torch.zeros_like(logit)
        logit = logit / self.temperature
        return entmax15(logit) if self.attention == "entmax" else logit.softmax(dim=-1)

    def lifts(self, x: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
        """For each head, the factor that a spot puts on the attention to each gene, shape (spots, genes)."""
        if self._uniform:
            return [torch.ones_like(x)] * self.n_heads
        near = x.clamp(-_FARTHEST, _FARTHEST)
        logits = [beta * near for beta in self.lift]
        if self.programmes is not None:
            asked = self.programmes(near)
            logits = [logit + asked[:, h] @ self.key.T for h, logit in enumerate(logits)]
        if mask is not None and self.signature_strength is not None:
            logits = [logit + strength * mask for logit, strength in zip(logits, self.signature_strength, strict=True)]
        # not beyond what a quotient of sums can hold in single precision
        if not torch.is_grad_enabled():  # in place: new arrays of this size take longer than what fills them
            return [logit.div_(self.temperature).clamp_(-_LARGEST_LIFT, _LARGEST_LIFT).exp_() for logit in logits]
        return [(logit / self.temperature).clamp(-_LARGEST_LIFT, _LARGEST_LIFT).exp() for logit in logits]

    def scale(self, weights: torch.Tensor) -> torch.Tensor:
        """Factor on the attended values, by which heads of every sharpness vary alike; shape (metabolites, heads)."""
        return _SCALE / weights.square().sum(dim=-1).sqrt().detach().clamp(min=_LEAST_NORM)

    @staticmethod
    def values(x: torch.Tensor, context: GeneContext | None) -> list[torch.Tensor]:
        """Expression of the spots and of their rings, each of shape (spots, genes)."""
        return [x] if context is None else [x, *context.rings.unbind(dim=1)]

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        covariates: torch.Tensor,
        context: GeneContext | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries | None = None,
    ) -> torch.Tensor:
        """Attend; see :class:`MetaboliteEncoder`."""
        queries = queries or self.ask()
        if not queries.made:
            queries.made.update(self._factors(queries))
        values, heads = self.values(x, context), []
        lifted = None if torch.is_grad_enabled() else torch.empty_like(x)
        for own, mixed, lift in zip(queries.made["own"], queries.made["mixed"], self.lifts(x, mask), strict=True):
            attended = sum(
                torch.mul(lift, value, out=lifted) @ by_metabolite
                for value, by_metabolite in zip(values, mixed, strict=False)
            )
            heads.append(attended / (lift @ own))
        return torch.stack(heads, dim=-1) * queries.made["scale"]

    def _factors(self, queries: Queries) -> dict[str, Any]:
        """What all spots are multiplied with: for each head the attention to genes, and that times the weight of each ring."""
        weights = self.weights(queries)
        own = [head.T for head in weights.unbind(dim=1)]
        mixed = [[w * mix for mix in queries.mix[:, h].unbind(dim=1)] for h, w in enumerate(own)]
        return {"own": own, "mixed": mixed, "scale": self.scale(weights)}

    def contributions(
        self,
        x: torch.Tensor,
        slope: torch.Tensor,
        context: GeneContext | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention makes of each gene in single spots; see :class:`MetaboliteEncoder`."""
        weights, values = self.weights(queries), self.values(x, context)
        scaled = slope * self.scale(weights)
        size = slope.abs()
        share = size / size.sum(dim=1, keepdim=True).clamp(min=1e-12)
        attended = x.new_zeros(len(x), *weights.shape[::2])
        made = torch.zeros_like(attended)
        for h, lift in enumerate(self.lifts(x, mask)):
            own = lift.unsqueeze(1) * weights[:, h]
            own = own / own.sum(dim=-1, keepdim=True)
            value = sum(queries.mix[:, h, j, None] * v.unsqueeze(1) for j, v in enumerate(values))
            attended += own * share[:, h, None]
            made += own * value * scaled[:, h, None]
        return attended, made

    def summed(
        self,
        x: torch.Tensor,
        slope: torch.Tensor,
        membership: torch.Tensor,
        context: GeneContext | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums of contributions over groups of spots; see :class:`MetaboliteEncoder`."""
        weights, values = self.weights(queries), self.values(x, context)
        scaled, size = slope * self.scale(weights), slope.abs()
        share = size / size.sum(dim=1, keepdim=True).clamp(min=1e-12)
        n_groups = membership.shape[1]
        attended = x.new_zeros(n_groups, len(slope), x.shape[1])
        made, along = torch.zeros_like(attended), torch.zeros_like(attended[0])
        for h, lift in enumerate(self.lifts(x, mask)):
            own = weights[:, h]
            inverse = 1 / (lift @ own.T)
            of_group = [(inverse * membership[:, k, None]).T for k in range(n_groups)]
            attended += torch.stack([m @ lift for m in of_group]) * own * share[:, h, None]
            for j, value in enumerate(values):
                factor = own * (scaled[:, h] * queries.mix[:, h, j]).unsqueeze(-1)
                made += torch.stack([m @ (lift * value) for m in of_group]) * factor
                along += (inverse.T @ (lift * value * x)) * factor
        return attended, made, along


def encode_mz(mz: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of m/z, shape (metabolites, width); 0 where it is NaN."""
    shortest, longest = WAVELENGTHS
    # single precision leaves a tenth of the shortest wavelength undecided
    wavelength = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angle = 2 * pi * mz.to("cpu", torch.float64).unsqueeze(-1) / wavelength
    return torch.cat([angle.sin(), angle.cos()], dim=-1).nan_to_num(0.0).to(torch.float32)
