"""Effect of genes on the two stages of a trained model, in units that compare between genes, methods and models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import logit

from stmsi._core.learning.expression_space import ExpressionSpace
from stmsi._core.metrics.attribution_controls import gene_blocks, shuffle_within
from stmsi._progress import track
from stmsi.model.shared._spot_features import PRESENCE_COMPONENTS, root_mean_square
from stmsi.model.shared._spot_input import Spots

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi._core.learning.filled_expression import LogExpression
    from stmsi.model.linear._hurdle_linear import HurdleLinear
    from stmsi.model.net._hurdle_net import HurdleNet
    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._stored_input import Input

Stage: TypeAlias = Literal["intensity", "presence"]

LINEAR_FAMILIES = {"intensity": ("mean", "linear", "ridge", "lasso", "pls"), "presence": ("prior", "logistic", "svm")}
"""Families of `HurdleLinear` whose stage is a weighted sum of its features."""
_STACKED = 4096
"""Spots that are predicted in one call."""
_GRADIENT_BATCH = 64


@dataclass
class Attribution:
    """What a method found.

    Attributes
    ----------
    values
        Standardised effect, shape (panel genes, metabolites); NaN for genes that the model does not use.
    groups
        Mean contribution in each group of spots, likewise.
    info
        Columns about each metabolite, for the record.
    """

    values: NDArray[np.float64]
    groups: dict[str, NDArray[np.float64]]
    info: dict[str, NDArray[np.float64]]


def attribution_spots(
    model: HurdleModel, adata: AnnData, min_genes: float, layer: str | None = None, input: Input | None = None
) -> Spots:
    """The spots as the model sees them, each with its cluster fixed where the model uses signatures."""
    features, spots = model.state.features, model._query_spots(adata, min_genes, layer=layer, input=input)
    if features.clusters is not None:
        # else a change of a gene would also move spots between clusters
        spots = replace(spots, cluster=features.clusters.labels[features.cluster_codes(spots)])
    return spots


def stage_scores(model: HurdleModel, spots: Spots, stage: Stage) -> NDArray[np.float64]:
    """Intensity given presence, or log-odds of presence; shape (spots, metabolites)."""
    probability, intensity = model._stages(spots)
    if stage == "intensity":
        return np.asarray(intensity, np.float64)
    return logit(np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9))


def coefficients(
    model: HurdleLinear, spots: Spots, columns: NDArray[np.int64], stage: Stage, group: NDArray[Any] | None
) -> Attribution:
    """Weights on components mapped back to genes, times the standard deviation of each gene.

    Parameters
    ----------
    model
        Both stages must be of :data:`LINEAR_FAMILIES` where they are asked for.
    spots
        For the contributions of groups.
    columns
        Metabolites, as positions.
    stage
        Which of the two.
    group
        Group of each spot; `None`: no contributions.
    """
    n_panel = len(model.state.panel)
    values = np.full((n_panel, len(columns)), np.nan)
    values[model._used_genes()] = 0
    names = [] if group is None else list(dict.fromkeys(group))
    groups = {str(g): values.copy() for g in names}
    for space, weights, log in _gene_weights(model, spots, columns, stage):
        values[space.selected] += weights * space.scale[:, None]
        if group is not None:
            centred = space.centred(log)
            for g in names:
                groups[str(g)][space.selected] += weights * centred[group == g].mean(axis=0)[:, None]
    if model.prior_ is not None:
        _add_prior(model, spots, columns, stage, group, values, groups)
    return Attribution(values, groups, {})


def _add_prior(
    model: HurdleLinear,
    spots: Spots,
    columns: NDArray[np.int64],
    stage: Stage,
    group: NDArray[Any] | None,
    values: NDArray[np.float64],
    groups: dict[str, NDArray[np.float64]],
) -> None:
    """Add what the genes of the prior do by their own columns, which stand behind all other features."""
    prior = model.prior_
    assert prior is not None
    fitted = model.regressions_ if stage == "intensity" else model.classifiers_
    z_scores = prior.values(spots) if groups else []
    means = {g: [z[np.asarray(group, str) == g].mean(axis=0) for z in z_scores] for g in groups}
    for i, m in enumerate(columns):
        weights = _weights(fitted[m])
        if weights is None or prior.strength[stage][m] == 0:
            continue
        width = len(prior.spread[m])
        effects = prior.gene_effects(weights[-width:], stage, m)
        genes = prior.genes[prior.members[m]]
        values[genes, i] += effects.sum(axis=0)
        for g, mean in means.items():
            groups[g][genes, i] += sum(e * z[prior.members[m]] for e, z in zip(effects, mean, strict=True))


def _gene_weights(
    model: HurdleLinear, spots: Spots, columns: NDArray[np.int64], stage: Stage
) -> Iterator[tuple[ExpressionSpace, NDArray[np.float64], LogExpression]]:
    """Own and pooled expression: the space, weights of its genes (genes used, metabolites), the log expression that enters it."""
    features = model.state.features
    limit = None if stage == "intensity" else PRESENCE_COMPONENTS
    fitted = model.regressions_ if stage == "intensity" else model.classifiers_
    W = [_weights(fitted[m]) for m in columns]
    start = 0
    for space in (features.own, features.pooled):
        if space is None:
            continue
        components = space.components[:limit].astype(np.float64) / root_mean_square(space)
        stop = start + len(components)
        weights = np.stack([np.zeros(len(components)) if w is None else w[start:stop] for w in W])
        pooled = space is features.pooled and spots.graph is not None
        log = spots.pooled_log_expression() if pooled else spots.log_expression()
        yield space, (weights @ components).T, log
        start = stop


def _weights(fitted: Any) -> NDArray[np.float64] | None:
    """Weights of a regression or classifier on its features; `None` where it is constant."""
    if fitted.estimator is None:
        return None
    weights = getattr(fitted.estimator, "weights", getattr(fitted.estimator, "coef_", None))
    return np.asarray(weights, np.float64).reshape(-1) * getattr(fitted, "slope", 1.0)


def integrated_gradients(
    model: HurdleNet,
    spots: Spots,
    columns: NDArray[np.int64],
    stage: Stage,
    group: NDArray[Any] | None,
    *,
    n_steps: int,
    show: bool | None,
) -> Attribution:
    """Integrated gradients from the training mean to each spot, over standardised expression.

    Parameters
    ----------
    model, spots, columns, stage, group
        As for :func:`coefficients`.
    n_steps
        Steps of the integral.
    show
        Progress bar.
    """
    import torch
    from captum.attr import IntegratedGradients

    from stmsi.model.net._surroundings import quiet, seeded
    from stmsi.model.net.encoders import MetaboliteEncoder

    module, genes = model.module, model.state.features.own.selected
    head = "mean" if stage == "intensity" else "logit"
    assert model.platt_ is not None
    scale = module.target_scale.cpu().numpy()[model._outputs()] if stage == "intensity" else model.platt_[:, 0]

    # an encoder of one embedding per metabolite is asked for one metabolite at a time, else all others cost as much again
    alone = isinstance(module.encoder, MetaboliteEncoder)
    asked: torch.Tensor | None = None

    def forward(expression: torch.Tensor, *inputs: torch.Tensor | None) -> torch.Tensor:
        return module.generative(**module.embed(expression, *inputs, metabolites=asked))[head]

    shape = (len(genes), len(columns))
    square, along, delta2, change2 = np.zeros(shape), np.zeros(shape), np.zeros(shape[1]), np.zeros(shape[1])
    names = [] if group is None else list(dict.fromkeys(group))
    total = {str(g): np.zeros(shape) for g in names}
    frozen = [p for p in module.parameters() if p.requires_grad]
    module.eval()
    for p in frozen:
        p.requires_grad_(False)
    try:
        with quiet(), seeded(model._hyper["rng"]):
            explain = IntegratedGradients(forward)
            start = 0
            batches = model._batches(spots, _GRADIENT_BATCH)
            for tensors in track(batches, "integrated gradients", total=len(batches), show=show):
                given = {
                    k: None if v is None else v.to(module.device)
                    for k, v in module._get_inference_input(tensors).items()
                }
                x = module.expression(given.pop("x"))  # type: ignore[arg-type]
                rows = slice(start, start + len(x))
                start += len(x)
                for i, m in enumerate(columns):
                    output = int(model._outputs()[m])
                    asked = torch.tensor([output], device=module.device) if alone else None
                    # the training mean is 0 on this scale
                    part, delta = explain.attribute(
                        x, baselines=0, target=0 if alone else output, additional_forward_args=tuple(given.values()),
                        n_steps=n_steps, method="gausslegendre", return_convergence_delta=True,
                        internal_batch_size=module.encoder.largest_batch if alone else None,
                    )  # fmt: skip
                    ig = part[:, : len(genes)].cpu().numpy().astype(np.float64) * scale[m]
                    off = delta.cpu().numpy().astype(np.float64) * scale[m]
                    square[:, i] += (ig**2).sum(axis=0)
                    along[:, i] += (ig * x[:, : len(genes)].cpu().numpy()).sum(axis=0)
                    delta2[i] += (off**2).sum()
                    change2[i] += ((ig.sum(axis=1) - off) ** 2).sum()
                    for g in names:
                        total[str(g)][:, i] += ig[group[rows] == g].sum(axis=0)  # type: ignore[index]
    finally:
        for p in frozen:
            p.requires_grad_(True)

    def spread_out(values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.full((len(model.state.panel), len(columns)), np.nan)
        out[genes] = values
        return out

    values = spread_out(np.sign(along) * np.sqrt(square / len(spots)))
    groups = {str(g): spread_out(total[str(g)] / (group == g).sum()) for g in names}
    error = np.sqrt(delta2 / np.maximum(change2, 1e-300)) * (change2 > 0)
    return Attribution(values, groups, {"integration_error": error})


def permutation(
    model: HurdleModel,
    spots: Spots,
    columns: NDArray[np.int64],
    stage: Stage,
    section: NDArray[np.int64],
    *,
    n_repeats: int,
    n_blocks: int | None,
    rng: np.random.Generator,
    show: bool | None,
) -> Attribution:
    """How far predictions move when a gene (or a block) is shuffled between the spots of each section.

    Parameters
    ----------
    model, spots, columns, stage
        As for :func:`coefficients`, of any family.
    section
        Section of each spot.
    n_repeats
        Shuffles of each block.
    n_blocks
        Blocks of genes; `None`: each gene by itself.
    rng
        For the shuffles.
    show
        Progress bar.
    """
    genes = model._used_genes()
    block = gene_blocks(spots.log_expression()[:, genes].toarray(), n_blocks)
    # counts keep the library size of the spot; logarithms have none
    library = np.ones(len(spots)) if spots.input == "log" else np.asarray(spots.counts.sum(axis=1), np.float64).ravel()
    relative = sp.csc_matrix(sp.diags(1 / np.maximum(library, 1)) @ spots.counts)
    plain = stage_scores(model, spots, stage)[:, columns]
    moved = np.zeros((block.max() + 1, len(columns)))
    tasks = [(b, genes[block == b], shuffle_within(section, rng)) for b in range(len(moved)) for _ in range(n_repeats)]
    per_call = max(1, _STACKED // len(spots))
    starts = range(0, len(tasks), per_call)
    for start in track(starts, "permutation", total=len(starts), show=show):
        some = tasks[start : start + per_call]
        copies = [with_genes(spots, g, sp.diags(library) @ relative[:, g][order]) for _, g, order in some]
        scores = stage_scores(model, stack(copies), stage)[:, columns].reshape(len(some), *plain.shape)
        for (b, _, _), shuffled in zip(some, scores, strict=True):
            # the mean squared difference of two independent draws is twice the variance
            moved[b] += ((shuffled - plain) ** 2).mean(axis=0) / (2 * n_repeats)
    values = np.full((len(model.state.panel), len(columns)), np.nan)
    values[genes] = np.sqrt(moved)[block]
    return Attribution(values, {}, {})


def with_genes(spots: Spots, genes: NDArray[np.int64], counts: sp.spmatrix) -> Spots:
    """The spots with other expression of some genes, shape (spots, genes given)."""
    place = sp.csr_matrix((np.ones(len(genes)), (np.arange(len(genes)), genes)), (len(genes), spots.counts.shape[1]))
    changed = spots.counts + sp.csr_matrix(counts - spots.counts[:, genes]) @ place
    if spots.input == "counts":
        changed.data = np.maximum(changed.data, 0)  # a difference may leave a zero a rounding error below it
    return spots.with_counts(sp.csr_matrix(changed, dtype=np.float32))


def without_genes(model: HurdleModel, spots: Spots, genes: NDArray[np.int64]) -> Spots:
    """The spots with some genes at their training mean, as if a query lacked them."""
    panel = model.state.panel
    missing = np.asarray(genes, np.int64) if spots.imputed is None else np.union1d(spots.imputed.genes, genes)
    columns = np.arange(len(panel))
    columns[missing] = -1
    left = spots.with_counts(panel.align(spots.counts, columns))
    return replace(left, imputed=panel.imputation(missing, spots.input))


def stack(copies: Sequence[Spots]) -> Spots:
    """Several sets of spots as one; no edge joins two of them, and no section holds spots of two."""
    first = copies[0]
    labels = [np.zeros(len(c), np.int64) if c.sample is None else c.sample for c in copies]
    return Spots(
        names=pd.RangeIndex(sum(map(len, copies))).astype(str),
        # each may lack other genes
        expression=sp.vstack([c.whole_counts() for c in copies], format="csr"),
        graph=None if first.graph is None else sp.block_diag([c.graph for c in copies], format="csr"),
        covariates=None if first.covariates is None else pd.concat([c.covariates for c in copies], ignore_index=True),
        features=None
        if first.features is None
        else {k: pd.concat([c.features[k] for c in copies], ignore_index=True) for k in first.features},  # type: ignore[index, misc]
        cluster=None if first.cluster is None else np.concatenate([c.cluster for c in copies]),  # type: ignore[misc]
        xy=None if first.xy is None else np.vstack([c.xy for c in copies]),  # type: ignore[misc]
        input=first.input,
        sample=np.array([f"{i} {label}" for i, label_of in enumerate(labels) for label in label_of], dtype=object),
    )
