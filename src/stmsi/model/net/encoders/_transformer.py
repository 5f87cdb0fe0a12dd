"""Metabolites that ask genes: cross-attention from metabolite queries to gene tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import elu, scaled_dot_product_attention

from stmsi.model.net.encoders._encoder import Context, MetaboliteEncoder, Queries, Sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WAVELENGTHS = (1e-3, 1e4)
"""Shortest and longest wavelength of the encoding of m/z, in Da, as in Casanovo."""
_ELEMENTS = 2**21
"""Numbers in the largest array of a prediction: larger ones leave the processor's cache and take three times as long."""

_SHY = 0.3
"""Factor on the keys' first weights: attention that hangs on single counts from the start learns their noise."""

Tokens = Literal["programmes", "genes"]
Attention = Literal["softmax", "linear"]


class TransformerEncoder(MetaboliteEncoder):
    r"""One embedding per metabolite and spot: metabolite queries attend to gene tokens.

    **Tokens.** Token :math:`t` of a spot is :math:`x_t e_t + p_t + m_t\,u`: its expression :math:`x_t` times an embedding,
    plus a second embedding of which token it is, plus, where the spot's cluster has a signature, the share :math:`m_t` of
    the token's genes that belong to it times a learned vector. A token is a gene, or a *programme*: a learned weighted sum of
    all genes, which begins as a group of genes that rise and fall together.

    **Queries.** A metabolite asks with a learned embedding plus a linear map of sines and cosines of its m/z (after
    Casanovo) and of its descriptors. With ``query_dropout``, learned embeddings are left out at random while training, so that
    a metabolite that was never measured can be asked for with what is known of it.

    **Attention.** ``"softmax"``, or ``"linear"`` (after SEQUOIA): with the kernel :math:`\phi = \mathrm{elu} + 1` the sums
    over tokens are the same for all queries, and the cost is linear in both.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    tokens
        ``"programmes"`` or ``"genes"``.
    n_tokens
        Number of programmes.
    attention
        ``"softmax"`` or ``"linear"``.
    n_hidden
        Width of the embeddings.
    n_heads
        Attention heads.
    dropout
        Share of hidden units left out while training.
    input_dropout
        Share of genes left out while training.
    query_dropout
        Share of metabolites whose learned embedding is left out in a training step. It costs some accuracy on those that
        are measured.
    descriptors
        Numeric columns of the feature table that describe metabolites beside their m/z.

    References
    ----------
    Yilmaz et al., Casanovo (2024); Pizurica et al., SEQUOIA (2024); Katharopoulos et al., *Transformers are RNNs* (2020).
    """

    mass: torch.Tensor
    descriptors: torch.Tensor
    descriptor_mean: torch.Tensor
    descriptor_scale: torch.Tensor
    prior: torch.Tensor

    def __init__(
        self,
        sizes: Sizes,
        tokens: Tokens = "programmes",
        n_tokens: int | None = None,
        attention: Attention = "linear",
        n_hidden: int = 96,
        n_heads: int = 4,
        dropout: float = 0.3,
        input_dropout: float = 0.5,
        query_dropout: float = 0.0,
        descriptors: Sequence[str] = (),
    ) -> None:
        super().__init__(sizes)
        for name, value, known in (
            ("tokens", tokens, ("programmes", "genes")),
            ("attention", attention, ("softmax", "linear")),
        ):
            if value not in known:
                msg = f"{name} must be one of {known}, found {value!r}."
                raise ValueError(msg)
        if tokens == "genes" and n_tokens is not None:
            msg = "n_tokens counts programmes; for tokens='genes' every gene is a token: choose them with n_top_genes."
            raise ValueError(msg)
        if n_hidden % (2 * n_heads):
            msg = f"n_hidden={n_hidden} must be a multiple of 2 n_heads={2 * n_heads}."
            raise ValueError(msg)
        self.tokens_are_genes, self.kernel, self.n_heads = tokens == "genes", attention, n_heads
        self.query_dropout = query_dropout
        n_tokens = sizes.n_genes if tokens == "genes" else n_tokens or min(64, sizes.n_genes)
        self.n_output = n_hidden
        self.largest_batch = max(1, _ELEMENTS // (max(n_tokens, sizes.n_metabolites) * n_hidden))
        # -- metabolites
        self.register_buffer("mass", torch.zeros(sizes.n_metabolites, n_hidden))
        self.register_buffer("descriptors", torch.zeros(sizes.n_metabolites, len(descriptors)))
        self.register_buffer("descriptor_mean", torch.zeros(len(descriptors)))
        self.register_buffer("descriptor_scale", torch.ones(len(descriptors)))
        self.register_buffer("prior", torch.zeros(sizes.n_metabolites if sizes.has_prior else 0, sizes.n_genes))
        self.learned = nn.Embedding(sizes.n_metabolites, n_hidden)
        self.from_mass = nn.Linear(n_hidden, n_hidden, bias=False)
        self.from_descriptors = nn.Linear(len(descriptors), n_hidden, bias=False) if descriptors else None
        self.prior_strength = nn.Parameter(torch.ones(())) if sizes.has_prior else None
        # -- tokens
        self.input_dropout = nn.Dropout(input_dropout)
        self.programmes = nn.Linear(sizes.n_genes, n_tokens, bias=False) if tokens == "programmes" else None
        self.value_of = nn.Parameter(torch.randn(n_tokens, n_hidden))
        self.identity_of = nn.Parameter(0.5 * torch.randn(n_tokens, n_hidden))
        self.in_signature = nn.Parameter(torch.zeros(n_hidden))
        # -- attention
        self.query = nn.Linear(n_hidden, n_hidden)
        self.key = nn.Linear(n_hidden, n_hidden, bias=False)
        self.value = nn.Linear(n_hidden, n_hidden, bias=False)
        with torch.no_grad():
            self.key.weight.mul_(_SHY)
        self.from_covariates = nn.Linear(sizes.n_covariates, n_hidden, bias=False) if sizes.n_covariates else None
        self.gate = nn.Linear(n_hidden, n_hidden)
        self.shift = nn.Linear(n_hidden, n_hidden)
        self.before = nn.LayerNorm(n_hidden)
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def initialise(self, loadings: torch.Tensor, seed: int) -> None:
        """Let programmes begin as groups of genes that rise and fall together; see :class:`MetaboliteEncoder`."""
        if self.programmes is not None:
            self.programmes.weight.zero_()
            weight = gene_groups(loadings.cpu().numpy(), len(self.programmes.weight), seed)
            self.programmes.weight[:, : weight.shape[1]] = torch.as_tensor(weight).to(self.programmes.weight)

    @torch.no_grad()
    def describe(self, mz: torch.Tensor, descriptors: torch.Tensor, prior: torch.Tensor | None = None) -> None:
        """Take what is known of the metabolites; see :class:`MetaboliteEncoder`."""
        self.mass.copy_(encode_mz(mz, self.n_output))
        known = ~descriptors.isnan()
        count = known.sum(dim=0).clamp(min=1)
        self.descriptor_mean.copy_(descriptors.nan_to_num(0).sum(dim=0) / count)
        deviation = (descriptors - self.descriptor_mean).nan_to_num(0)
        scale = (deviation.square().sum(dim=0) / count).sqrt()
        self.descriptor_scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))
        self.descriptors.copy_(descriptors)
        if prior is not None:
            self.prior.copy_(prior)

    def ask(self, metabolites: torch.Tensor | None = None) -> Queries:
        """Queries of metabolites of the training data; see :class:`MetaboliteEncoder`."""
        learned = self.learned.weight
        if self.training and self.query_dropout:
            learned = learned * (torch.rand(len(learned), 1, device=learned.device) >= self.query_dropout)
        embedding = learned + self._known(self.mass, self.descriptors)
        bias = self._bias(self.prior) if self.prior_strength is not None else None
        if metabolites is None:
            return Queries(embedding, bias)
        return Queries(embedding[metabolites], None if bias is None else bias[metabolites])

    def ask_unseen(self, mz: torch.Tensor, descriptors: torch.Tensor) -> Queries:
        """Queries of other metabolites; see :class:`MetaboliteEncoder`."""
        return Queries(self._known(encode_mz(mz, self.n_output).to(self.mass), descriptors.to(self.mass)))

    def _known(self, mass: torch.Tensor, descriptors: torch.Tensor) -> torch.Tensor:
        known = self.from_mass(mass)
        if self.from_descriptors is None:
            return known
        scaled = (descriptors - self.descriptor_mean) / self.descriptor_scale
        return known + self.from_descriptors(scaled.nan_to_num(0))

    def _bias(self, prior: torch.Tensor) -> torch.Tensor:
        """The prior of genes as one of tokens, times its strength; the token that it favours most has 1."""
        assert self.prior_strength is not None
        of_token = prior if self.programmes is None else prior @ self.shares().T
        return self.prior_strength * of_token / of_token.amax(dim=1, keepdim=True).clamp(min=1e-12)

    def shares(self) -> torch.Tensor:
        """Share of each gene in each token, shape (tokens, genes); rows sum to 1."""
        if self.programmes is None:
            return torch.eye(len(self.value_of), device=self.value_of.device)
        weight = self.programmes.weight.abs()
        return weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def _tokens(self, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Amount of each token in each spot, and the part of it that is in the signature; shapes (spots, tokens)."""
        if self.programmes is None:
            return x, mask
        return self.programmes(x), None if mask is None else mask @ self.shares().T

    def _project(self, to: nn.Linear, tokens: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        """Keys or values of tokens, shape (spots, heads, tokens, width of a head).

        A token is a sum of embeddings, so that it is enough to project those, and no spot costs a matrix product.
        """
        amount, part = tokens
        out = torch.addcmul(to(self.identity_of), amount.unsqueeze(-1), to(self.value_of))
        if part is not None:
            out = out + part.unsqueeze(-1) * to(self.in_signature)
        return self._heads(out)

    def _heads(self, items: torch.Tensor) -> torch.Tensor:
        """(..., items, n_hidden) as (..., heads, items, width of a head)."""
        return items.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)

    def attention(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, queries: Queries | None = None
    ) -> torch.Tensor:
        """Mean weights over heads, for the linear variant those of the kernel; see :class:`MetaboliteEncoder`."""
        queries = queries or self.ask()
        q, k = self._heads(self.query(queries.embedding)), self._project(self.key, self._tokens(x, mask))
        if self.kernel == "softmax":
            logit = q @ k.transpose(-1, -2) / sqrt(q.shape[-1])
            return (logit if queries.bias is None else logit + queries.bias).softmax(dim=-1).mean(dim=1)
        weight = (elu(q) + 1) @ (elu(k) + 1).transpose(-1, -2)
        if queries.bias is not None:
            weight = weight + self._extra(queries.bias)
        return (weight / weight.sum(dim=-1, keepdim=True)).mean(dim=1)

    def _extra(self, bias: torch.Tensor) -> torch.Tensor:
        """What the prior adds to the weights of the linear variant, in units of a token without any preference."""
        return bias.clamp(min=0) * (self.n_output // self.n_heads)

    def _attend(self, x: torch.Tensor, mask: torch.Tensor | None, queries: Queries) -> torch.Tensor:
        """What metabolites see, shape (spots, metabolites, n_hidden), without an array spots x metabolites x tokens."""
        tokens = self._tokens(x, mask)
        q = self._heads(self.query(queries.embedding))
        k, v = self._project(self.key, tokens), self._project(self.value, tokens)
        if self.kernel == "softmax":
            seen = scaled_dot_product_attention(q.expand(len(k), *q.shape), k, v, attn_mask=queries.bias)
        else:
            q, k = elu(q) + 1, elu(k) + 1
            seen, total = q @ (k.transpose(-1, -2) @ v), q @ k.sum(dim=-2).unsqueeze(-1)
            if queries.bias is not None:
                extra = self._extra(queries.bias)
                seen, total = seen + extra @ v, total + extra.sum(dim=-1, keepdim=True)
            seen = seen / total
        return seen.transpose(-3, -2).flatten(-2)

    def forward(
        self,
        x: torch.Tensor,
        covariates: torch.Tensor,
        context: Context | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries | None = None,
    ) -> torch.Tensor:
        """Embed spots; see :class:`MetaboliteEncoder`."""
        queries = queries or self.ask()
        seen = self._attend(self.input_dropout(x), mask, queries)
        if self.from_covariates is not None:
            seen = seen + self.from_covariates(covariates).unsqueeze(1)
        # each metabolite reads what it has seen in its own way, which follows from its query alone
        h = torch.addcmul(self.shift(queries.embedding), self.before(seen), 1 + self.gate(queries.embedding)).relu()
        # the same units for all metabolites of a spot, which is as good and costs next to nothing
        return h * self.dropout(h.new_ones(len(h), 1, self.n_output)) if self.training else h


def encode_mz(mz: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of m/z, shape (metabolites, width); 0 where it is NaN."""
    shortest, longest = _WAVELENGTHS
    # single precision leaves a tenth of the shortest wavelength undecided
    wavelength = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angle = 2 * pi * mz.to("cpu", torch.float64).unsqueeze(-1) / wavelength
    return torch.cat([angle.sin(), angle.cos()], dim=-1).nan_to_num(0.0).to(torch.float32)


def gene_groups(loadings: NDArray[np.float32], n_groups: int, seed: int) -> NDArray[np.float32]:
    """Groups of genes whose expression goes together, as weights of unit variance.

    Parameters
    ----------
    loadings
        Correlation of standardised genes with principal components, shape (components, genes).
    n_groups
        Number of groups.
    seed
        For k-means.

    Returns
    -------
    Shape (groups, genes). A gene weighs by how much the components know of it.
    """
    from sklearn.cluster import KMeans

    loadings = loadings.astype(np.float64)
    known = np.sqrt((loadings**2).sum(axis=0))
    direction = (loadings / np.maximum(known, 1e-12)).T
    weight = np.zeros((n_groups, len(known)))
    n_groups = min(n_groups, len(np.unique(direction, axis=0)))
    group = KMeans(n_groups, n_init=1, random_state=seed).fit_predict(direction)
    weight[group, np.arange(len(known))] = known
    rest = np.maximum(1 - known**2, 0)
    deviation = np.sqrt(((weight @ loadings.T) ** 2).sum(axis=1) + (weight**2) @ rest)
    return np.asarray(weight / np.maximum(deviation, 1e-12)[:, None], dtype=np.float32)
