"""Attention of metabolites to genes, and what it makes of them, as a trained network uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stmsi._progress import track
from stmsi.model.net._surroundings import quiet, seeded
from stmsi.model.net.encoders import GeneContext, MetaboliteEncoder

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from stmsi.model.net._hurdle_net import HurdleNet
    from stmsi.model.net._run import Net
    from stmsi.model.net.encoders import Queries
    from stmsi.model.shared._spot_input import Spots

_ELEMENTS = 2**24
"""Contributions that are held at once."""
_CLEARLY = 0.02
"""By how much the held-out correlation must exceed that of uniform attention."""
_DEVIATIONS = 2.0
"""Standard errors, over metabolites, by which it must exceed it."""


@dataclass(frozen=True)
class AttentionControl:
    """Whether attention carries the prediction: mean correlation inside held-out sections, and with attention made uniform."""

    held_out: float
    uniform: float
    passed: bool

    @classmethod
    def of(cls, table: pd.DataFrame) -> AttentionControl:
        """From the feature table of a trained model. It passes where real less uniform is clearly above 0."""
        scores = table[["held_out_attention", "held_out_uniform"]].dropna().to_numpy(np.float64)
        if not len(scores):
            return cls(float("nan"), float("nan"), passed=False)
        gain = scores[:, 0] - scores[:, 1]
        error = float(gain.std(ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
        real, uniform = scores.mean(axis=0)
        passed = real > 0 and real - max(uniform, 0) > max(_CLEARLY, _DEVIATIONS * error)
        return cls(float(real), float(uniform), bool(passed))


@dataclass(frozen=True)
class AttentionMaps:
    """Means over the networks of a model, NaN for genes that none of them uses.

    Attributes
    ----------
    weights
        Mean attention over spots, and over heads by the size of their slopes, shape (metabolites, panel genes); rows sum to 1.
    effects
        Mean contribution times standardised expression: what one standard deviation of the gene adds, in the unit of the
        intensity; likewise.
    group_weights, group_effects
        Mean attention, and mean contribution, in each group of spots, likewise.
    intercept
        What contributions are added to, shape (metabolites,).
    spots
        Contributions in single spots by metabolite (position among those asked for), each of shape (spots, genes used).
    used
        Panel genes that any network uses.
    """

    weights: NDArray[np.float64]
    effects: NDArray[np.float64]
    group_weights: dict[str, NDArray[np.float64]]
    group_effects: dict[str, NDArray[np.float64]]
    intercept: NDArray[np.float64]
    spots: dict[int, NDArray[np.float32]]
    used: NDArray[np.int64]


def attention_maps(
    model: HurdleNet,
    spots: Spots,
    columns: NDArray[np.int64],
    group: NDArray[Any] | None,
    single: list[int],
    *,
    show: bool | None,
) -> AttentionMaps:
    """Attention of some metabolites and what it contributes to their intensity.

    Parameters
    ----------
    model
        With an encoder that attends to genes.
    spots
        To average over.
    columns
        Metabolites, as positions among those that the model predicts.
    group
        Group of each spot; `None`: only the mean over all.
    single
        Positions in `columns` of the metabolites whose contributions are kept for every spot.
    show
        Progress bar.
    """
    outputs = model._outputs()[columns]
    names = [] if group is None else [str(g) for g in dict.fromkeys(group)]
    label = np.zeros((len(spots), 0)) if group is None else np.asarray(group, str)[:, None] == np.array(names)[None]
    membership = np.column_stack([np.ones(len(spots)), label])
    used = np.unique(np.concatenate([net.module.gene_index.cpu().numpy() for net in model._nets])).astype(np.int64)
    n, shape = len(model.state.panel), (len(columns), len(model.state.panel))
    weights, made = (np.zeros((membership.shape[1], *shape)) for _ in range(2))
    effects, intercept = np.zeros(shape), np.zeros(len(columns))
    kept = {i: np.zeros((len(spots), len(used)), np.float32) for i in single}
    known = np.stack([model.state.metabolites[columns].isin(net.metabolites) for net in model._nets])
    share = known / np.maximum(known.sum(axis=0), 1)
    with torch.inference_mode(), quiet(), seeded(model._hyper["rng"]):
        size = max(1, min(model._predict_batch, _ELEMENTS // (n * max(len(single), 1))))
        batches, start = model._batches(spots, size), 0
        for tensors in track(batches, "attention", total=len(batches), show=show):
            rows = slice(start, start + len(next(iter(tensors.values()))))
            start = rows.stop
            for net, own in zip(model._nets, share, strict=True):
                part = _Part.of(net, tensors, torch.as_tensor(outputs))
                index = net.module.gene_index.cpu().numpy()
                some = part.sums(torch.as_tensor(membership[rows], dtype=torch.float32))
                for total, value in zip((weights, made), some[:2], strict=True):
                    total[..., index] += value * own[:, None]
                effects[:, index] += some[2] * own[:, None]
                at = np.searchsorted(used, index)
                for i in single:
                    kept[i][rows.start : rows.stop, at] += part.contributions(i) * own[i]
    for net, own in zip(model._nets, share, strict=True):
        intercept += own * _intercept(net, outputs)
    count = membership.sum(axis=0)
    for total in (weights, made):
        total /= np.maximum(count, 1)[:, None, None]
    effects /= max(len(spots), 1)
    unused = np.setdiff1d(np.arange(n), used)
    for values in (weights, made, effects):
        values[..., unused] = np.nan
    return AttentionMaps(
        weights[0], effects, dict(zip(names, weights[1:], strict=True)), dict(zip(names, made[1:], strict=True)), intercept,
        kept, used,
    )  # fmt: skip


def _intercept(net: Net, outputs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intensity where every gene contributes nothing and the read-out does not bend."""
    module = net.module
    level = module.intensity_head.level * module.target_scale + module.target_mean  # type: ignore[operator]
    return level.detach().cpu().numpy().astype(np.float64)[outputs]


@dataclass(frozen=True)
class _Part:
    """A batch of spots as one network sees it."""

    encoder: MetaboliteEncoder
    x: torch.Tensor
    mask: torch.Tensor | None
    context: GeneContext | None
    queries: Queries
    slope: torch.Tensor  # of each metabolite and head, in the unit of the intensity

    @classmethod
    def of(cls, net: Net, tensors: dict[str, torch.Tensor], outputs: torch.Tensor) -> _Part:
        module, encoder = net.module.eval(), net.module.encoder
        assert isinstance(encoder, MetaboliteEncoder)
        given = module._get_inference_input(tensors)
        x = module.expression(given["x"].to(module.device))
        mask = None if given["cluster"] is None else module.signature_of(given["cluster"].to(module.device))
        outputs = outputs.to(module.device)
        queries = encoder.ask(outputs)
        slope = module.intensity_head.slopes(queries.known, outputs)  # type: ignore[operator]
        scale = module.target_scale[outputs].unsqueeze(-1)
        return cls(encoder, x, mask, module.gene_context(given["row"]), queries, slope * scale)

    def sums(self, membership: torch.Tensor) -> tuple[NDArray[np.float64], ...]:
        """Sums of attention and of contributions over each group, and of contributions times expression over all spots."""
        attended, made, along = self.encoder.summed(
            self.x, self.slope, membership.to(self.x), self.context, mask=self.mask, queries=self.queries
        )
        return tuple(v.double().cpu().numpy() for v in (attended, made, along))

    def contributions(self, metabolite: int) -> NDArray[np.float32]:
        """What each gene contributes to one metabolite in every spot, shape (spots, genes)."""
        at = torch.tensor([metabolite], device=self.x.device)
        queries = self.queries.some(at)
        _, made = self.encoder.contributions(self.x, self.slope[at], self.context, mask=self.mask, queries=queries)
        return made[:, 0].cpu().numpy()
