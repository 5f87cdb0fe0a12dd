"""Attention of metabolites to genes, as a trained network uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stmsi._progress import track
from stmsi.model.net._surroundings import quiet, seeded
from stmsi.model.net.encoders import MetaboliteEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.net._hurdle_net import HurdleNet
    from stmsi.model.shared._spot_input import Spots

_ELEMENTS = 2**24
"""Weights that are held at once."""


@dataclass(frozen=True)
class AttentionMaps:
    """Mean weights over heads.

    Attributes
    ----------
    tokens
        Mean over all spots, shape (metabolites, tokens); rows sum to 1.
    groups
        Mean over the spots of each group, likewise.
    spots
        Weights of single spots by metabolite (position among those asked for), each of shape (spots, tokens).
    shares
        Share of each panel gene in each token, shape (tokens, panel genes); NaN for genes that the model does not use.
    are_genes
        Whether tokens are genes, and not programmes.
    """

    tokens: NDArray[np.float64]
    groups: dict[str, NDArray[np.float64]]
    spots: dict[int, NDArray[np.float32]]
    shares: NDArray[np.float32]
    are_genes: bool

    def genes(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of tokens divided among their genes, shape (panel genes, metabolites)."""
        return (weights @ self.shares).T


def attention_maps(
    model: HurdleNet,
    spots: Spots,
    columns: NDArray[np.int64],
    group: NDArray[Any] | None,
    single: list[int],
    *,
    show: bool | None,
) -> AttentionMaps:
    """Attention of some metabolites, averaged over spots.

    Parameters
    ----------
    model
        With an encoder of one embedding per metabolite.
    spots
        To average over.
    columns
        Metabolites, as positions among those that the model predicts.
    group
        Group of each spot; `None`: only the mean over all.
    single
        Positions in `columns` of the metabolites whose weights are kept for every spot.
    show
        Progress bar.
    """
    module = model.module
    encoder = module.encoder
    assert isinstance(encoder, MetaboliteEncoder)
    module.eval()
    with torch.inference_mode(), quiet(), seeded(model._hyper["rng"]):
        queries = encoder.ask(torch.as_tensor(model._outputs()[columns], device=module.device))
        selected = model.state.features.own.selected
        shares = encoder.shares().cpu().numpy()[:, : len(selected)]
        if encoder.tokens_are_genes:  # places left over where fewer genes vary than n_top_genes
            shares = shares[: len(selected)]
        shape = (len(columns), len(shares))
        total = np.zeros(shape)
        names = [] if group is None else list(dict.fromkeys(group))
        of_group = {str(g): np.zeros(shape) for g in names}
        kept: dict[int, list[NDArray[np.float32]]] = {i: [] for i in single}
        size = max(1, min(encoder.largest_batch, _ELEMENTS // (shape[0] * shape[1] * encoder.n_heads)))
        batches = model._batches(spots, size)
        start = 0
        for tensors in track(batches, "attention", total=len(batches), show=show):
            given = {k: v for k, v in module._get_inference_input(tensors).items() if v is not None}
            x = module.expression(given["x"].to(module.device))
            mask = module.signature_of(given["cluster"].to(module.device)) if "cluster" in given else None
            weight = encoder.attention(x, mask, queries).cpu().numpy()[..., : len(shares)]
            weight /= weight.sum(axis=-1, keepdims=True)
            total += weight.sum(axis=0, dtype=np.float64)
            for g in names:
                inside = group[start : start + len(x)] == g  # type: ignore[index]
                of_group[str(g)] += weight[inside].sum(axis=0, dtype=np.float64)
            for i in single:
                kept[i].append(weight[:, i].astype(np.float32))
            start += len(x)
    full = np.full((len(shares), len(model.state.panel)), np.nan, dtype=np.float32)
    full[:, selected] = shares
    return AttentionMaps(
        total / start,
        {g: v / np.count_nonzero(group == g) for g, v in of_group.items()},
        {i: np.vstack(parts) for i, parts in kept.items()},
        full,
        encoder.tokens_are_genes,
    )
