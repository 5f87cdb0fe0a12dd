"""Metabolites that ask genes: cross-attention from metabolite queries to gene tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import elu, gelu, scaled_dot_product_attention

from stmsi.model.encoders._base import Context, Encoder, Sizes

_WAVELENGTHS = (1e-3, 1e4)
"""Shortest and longest wavelength of the encoding of m/z, in Da, as in Casanovo."""
_ELEMENTS = 2**24
"""Numbers in the largest array of a prediction; more spots than fit are worked through in pieces."""

Tokens = Literal["programmes", "genes"]
Attention = Literal["softmax", "linear"]


class TransformerEncoder(Encoder):
    r"""One embedding per metabolite and spot: metabolite queries attend to gene tokens.

    **Tokens.** Token :math:`t` of a spot is :math:`x_t e_t + p_t + m_t\,u`: its expression :math:`x_t` times an embedding,
    plus a second embedding of which token it is, plus, where the spot's cluster has a signature, the share :math:`m_t` of
    the token's genes that belong to it times a learned vector. A token is a gene, or a *programme*: a learned weighted sum of
    all genes, which begins as a group of genes that rise and fall together.

    **Queries.** A metabolite asks with a learned embedding plus a linear map of sines and cosines of its m/z (after
    Casanovo) and of its descriptors. While training, learned embeddings are left out at random, so that a metabolite that was
    never measured can be asked for with what is known of it.

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
        Share of metabolites whose learned embedding is left out in a training step.
    descriptors
        Numeric columns of the feature table that describe metabolites beside their m/z.

    References
    ----------
    Yilmaz et al., Casanovo (2024); Pizurica et al., SEQUOIA (2024); Katharopoulos et al., *Transformers are RNNs* (2020).
    """

    per_metabolite = True
    uses_signature = True
    mz: torch.Tensor
    descriptors: torch.Tensor
    prior: torch.Tensor

    def __init__(
        self,
        sizes: Sizes,
        tokens: Tokens = "programmes",
        n_tokens: int | None = None,
        attention: Attention = "softmax",
        n_hidden: int = 128,
        n_heads: int = 4,
        dropout: float = 0.2,
        input_dropout: float = 0.3,
        query_dropout: float = 0.1,
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
        self.tokens, self.kernel, self.n_heads = tokens, attention, n_heads
        self.query_dropout = query_dropout
        n_tokens = sizes.n_genes if tokens == "genes" else n_tokens or min(64, sizes.n_genes)
        self.n_output = n_hidden
        # -- metabolites
        self.register_buffer("mz", torch.full((sizes.n_metabolites,), torch.nan))
        self.register_buffer("descriptors", torch.zeros(sizes.n_metabolites, len(descriptors)))
        self.register_buffer("prior", torch.zeros(sizes.n_metabolites if sizes.has_prior else 0, sizes.n_genes))
        self.learned = nn.Embedding(sizes.n_metabolites, n_hidden)
        self.from_mz = nn.Linear(n_hidden, n_hidden, bias=False)
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
        self.from_covariates = nn.Linear(sizes.n_covariates, n_hidden, bias=False) if sizes.n_covariates else None
        self.gate = nn.Linear(n_hidden, n_hidden)
        self.shift = nn.Linear(n_hidden, n_hidden)
        self.before = nn.LayerNorm(n_hidden)
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def initialise(self, loadings: torch.Tensor) -> None:
        """Let programmes begin as groups of genes; see :class:`Encoder`."""
        import os
        if self.programmes is None: return
        from sklearn.cluster import KMeans
        L = loadings.T.cpu()
        norm = L.norm(dim=1)
        how = os.environ.get("INIT", "kmeans")
        W = torch.zeros_like(self.programmes.weight).cpu()
        if how == "kmeans":
            group = KMeans(len(W), n_init=1, random_state=0).fit_predict((L / norm[:, None]).numpy())
            W[torch.as_tensor(group).long(), torch.arange(len(L))] = norm
        else:
            W[: L.shape[1]] = (L / L.norm(dim=0)).T[: len(W)]
        S = W @ L
        sd = (S.square().sum(1) + (W.square() * (1 - norm.square())).sum(1)).sqrt()
        if how == "kmeans" or how == "white":
            W = W / sd.clamp(min=1e-6)[:, None]
        else:
            W = W / sd.square().mean().sqrt()
        self.programmes.weight.copy_(W)

    @torch.no_grad()
    def describe(self, mz: torch.Tensor, descriptors: torch.Tensor, prior: torch.Tensor | None = None) -> None:
        """Set what is known of the metabolites; see :class:`Encoder`."""
        self.mz.copy_(mz)
        self.descriptors.copy_(descriptors)
        if prior is not None:
            self.prior.copy_(prior)

    def queries(self) -> torch.Tensor:
        """Queries of the metabolites of the training data, shape (metabolites, n_hidden)."""
        learned = self.learned.weight
        if self.training and self.query_dropout:
            learned = learned * (torch.rand(len(learned), 1, device=learned.device) >= self.query_dropout)
        return learned + self.known(self.mz, self.descriptors)

    def known(self, mz: torch.Tensor, descriptors: torch.Tensor) -> torch.Tensor:
        """What m/z (NaN where unknown) and descriptors add to queries, shape (metabolites, n_hidden)."""
        known = self.from_mz(encode_mz(mz, self.n_output))
        return known if self.from_descriptors is None else known + self.from_descriptors(descriptors)

    def shares(self) -> torch.Tensor:
        """What share of each token the genes make up, shape (tokens, genes); rows sum to 1."""
        if self.programmes is None:
            return torch.eye(self.prior.shape[1], device=self.value_of.device)
        weight = self.programmes.weight.abs()
        return weight / weight.sum(dim=1, keepdim=True)

    def _tokens(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Tokens of spots, shape (spots, tokens, n_hidden)."""
        amount = x if self.programmes is None else self.programmes(x)
        tokens = torch.addcmul(self.identity_of, amount.unsqueeze(-1), self.value_of)
        if mask is not None:
            part = mask if self.programmes is None else mask @ self.shares().T
            tokens = tokens + part.unsqueeze(-1) * self.in_signature
        return tokens

    def _heads(self, h: torch.Tensor) -> torch.Tensor:
        """(..., items, n_hidden) -> (..., heads, items, width of a head)."""
        return h.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)

    def forward(
        self,
        x: torch.Tensor,
        covariates: torch.Tensor,
        context: Context | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        if queries is None:
            queries = self.queries()
        tokens = self._tokens(self.input_dropout(x), mask)
        q, k, v = self._heads(self.query(queries)), self._heads(self.key(tokens)), self._heads(self.value(tokens))
        if self.kernel == "softmax":
            seen = scaled_dot_product_attention(q.expand(len(x), *q.shape), k, v)
        else:
            q, k = elu(q) + 1, elu(k) + 1
            summed = q @ (k.transpose(-1, -2) @ v)
            seen = summed / (q @ k.sum(dim=-2).unsqueeze(-1))
        seen = seen.transpose(-3, -2).flatten(-2)
        if self.from_covariates is not None:
            seen = seen + self.from_covariates(covariates).unsqueeze(1)
        h = torch.addcmul(self.shift(queries), self.before(seen), 1 + self.gate(queries))
        return self.dropout(gelu(h))


def encode_mz(mz: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of m/z, shape (metabolites, width); 0 where it is NaN."""
    shortest, longest = _WAVELENGTHS
    steps = torch.linspace(0, 1, width // 2, device=mz.device, dtype=torch.float64)
    wavelength = shortest * (longest / shortest) ** steps
    angle = 2 * pi * mz.to(torch.float64).unsqueeze(-1) / wavelength
    return torch.cat([angle.sin(), angle.cos()], dim=-1).nan_to_num(0.0).to(torch.float32)
