"""Which genes drive which metabolite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from stmsi._data.checks import check_choice, listing, own_view
from stmsi._data.keys import Key
from stmsi._data.tables import copy_of, get_table, sections_of
from stmsi._settings import logger
from stmsi.model.shared._block_prediction import MIN_GENES
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.tl._gene_maps import read_groups, write_gene_maps
from stmsi.tl._models import trained_model, wanted_metabolites

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.model.explain._attribution import Attribution, Stage
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._stored_input import Input

Method = Literal["auto", "coefficients", "integrated_gradients", "permutation"]
_CONSTANT = 1e-4
"""Log-odds by which no gene moves a probability that is called constant."""


def attribute(
    data: SpatialData | AnnData,
    model: HurdleModel | str | Path,
    *,
    metabolites: str | Sequence[str] | None = None,
    stage: Stage = "intensity",
    method: Method = "auto",
    groupby: str | None = None,
    n_spots: int | None = 300,
    n_steps: int = 32,
    n_repeats: int = 3,
    n_blocks: int | None = None,
    layer: str | None = None,
    input: Input | None = None,
    min_genes: float = MIN_GENES,
    table_key: str = Key.table.ST,
    key_added: str = Key.varm.ATTRIBUTION,
    rng: int | np.random.Generator = 0,
    show_progress_bar: bool | None = None,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    r"""Tell which genes drive the prediction of which metabolite, for any trained model.

    All methods give the **standardised effect**: how much the prediction changes with one standard deviation of the gene's
    log-normalised expression, in units of the intensity, or of log-odds for presence. On a linear model the methods agree.

    - ``"coefficients"``, for :class:`stmsi.model.HurdleLinear` with a linear family in the stage: weights mapped back to genes,
      times the standard deviation of the gene over the training spots; effects in spot and neighbourhood are added. Exact.
    - ``"integrated_gradients"`` [1]_, for :class:`stmsi.model.HurdleNet`: the difference of the prediction to that for the
      mean of the training spots, :math:`f(x) - f(\bar x) = \sum_j a_j`, is divided among the genes by integrating
      gradients along the straight line. Over the spots, :math:`\operatorname{sign}\bigl(\sum_i a_{ij} (x_{ij} -
      \bar x_j)\bigr) \sqrt{\operatorname{mean}_i a_{ij}^2}`.
    - ``"permutation"`` [2]_, for every model: the gene's share of the counts is shuffled between the spots of each
      section, and :math:`\sqrt{\operatorname{mean}_i (f_i - f_i')^2 / 2}` is how far the prediction moves. It has no sign.

    An attribution describes the model, not the tissue: see the page on interpretation in the user guide, and check it
    with :func:`stmsi.experimental.attribution_checks`.

    Parameters
    ----------
    data
        SpatialData, or AnnData of spots x genes with counts or log expression; as a rule the training data.
    model
        A trained model, or the folder of a saved one.
    metabolites
        Ids or readable names; `None`: all that the model predicts.
    stage
        ``"intensity"`` (given presence) or ``"presence"``.
    method
        See above; ``"auto"``: coefficients if the stage is linear, integrated gradients for networks, else permutation.
    groupby
        Column of ``obs`` with groups of spots: also write the mean contribution of every gene in each group, with sign,
        compared with the mean of the training spots. Not for ``"permutation"``.
    n_spots
        Spots, drawn at random, for gradients and shuffles; `None`: all. A model that reads a graph always gets all.
    n_steps, n_repeats
        Steps of the integral (Gauss-Legendre), and shuffles of each gene.
    n_blocks
        For ``"permutation"``: shuffle so many blocks of correlated genes (average linkage), whose genes share one value. It
        costs less, and no gene looks idle because others of its block stand in for it.
    layer, input
        Where the expression is, and what it is; as for :func:`stmsi.tl.predict_metabolites`.
    min_genes
        Share of the training genes that must be in the data.
    table_key, key_added
        The ST table, and where to write in it.
    rng
        Seed or generator, for drawing spots and shuffling.
    show_progress_bar, copy
        `None` follows ``stmsi.settings.progress_bar``; return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes into the ST table (for ``key_added="attribution"``):

    - ``varm["attribution"]``: DataFrame genes x metabolites (safe ids), float32; **NaN: the model does not use this
      gene; 0: it does, to no effect** (all genes of a metabolite whose stage is nearly constant);
    - ``varm["attribution_<group>"]``: likewise, mean contribution in each group of `groupby`;
    - ``uns["attribution"]``: ``params`` (with the method that was used), ``metabolites`` (``name`` and, for integrated
      gradients, ``integration_error``: the share of the change in prediction that the sum of the genes misses),
      ``top_genes`` (the 20 genes with the largest effect on each metabolite: ``metabolite``, ``rank``, ``gene``,
      ``attribution``) and, with `groupby`, ``groups`` (label and the key in ``varm``).

    Raises
    ------
    RuntimeError
        The model is not trained.
    KeyError
        Unknown metabolites, or a missing field.
    ValueError
        A method that does not fit the model, a view, numbers out of range.

    References
    ----------
    .. [1] Sundararajan, Taly, Yan, *Axiomatic Attribution for Deep Networks*, ICML 2017, https://arxiv.org/abs/1703.01365
    .. [2] Fisher, Rudin, Dominici, *All Models are Wrong, but Many are Useful*, JMLR 20 (2019),
       https://arxiv.org/abs/1801.01489

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleLinear.setup_anndata(st)
    >>> model = stmsi.model.HurdleLinear(st, intensity="ridge")
    >>> model.train(show_progress_bar=False)
    >>> stmsi.tl.attribute(st, model)
    >>> st.varm["attribution"].shape
    (120, 12)
    >>> top = st.varm["attribution"]["simPC_28_0"].abs().nlargest(10).index  # ten genes for one metabolite
    >>> len(top)
    10
    """
    check_choice(stage, ("intensity", "presence"), "stage")
    check_choice(method, get_args(Method), "method")
    for name, value in (("n_spots", n_spots), ("n_steps", n_steps), ("n_repeats", n_repeats), ("n_blocks", n_blocks)):
        if value is not None and value < 1:
            msg = f"{name} must be at least 1, found {value!r}."
            raise ValueError(msg)
    fitted = trained_model(model)
    method = choose_method(fitted, method, stage)
    if groupby is not None and method == "permutation":
        msg = "groupby needs contributions of single spots, which method='permutation' does not have; leave it out."
        raise ValueError(msg)
    out = copy_of(data) if copy else data
    adata = get_table(out, table_key)
    own_view(adata)
    ids = wanted_metabolites(fitted, metabolites)
    params: dict[str, Any] = {
        "method": method, "stage": stage, "n_spots": n_spots, "n_steps": n_steps, "n_repeats": n_repeats,
        "n_blocks": n_blocks, "groupby": groupby, "layer": layer, "input": input, "min_genes": min_genes, "rng": rng if isinstance(rng, int) else None,
    }  # fmt: skip
    found, groups = _compute(adata, fitted, ids, params, np.random.default_rng(rng), show_progress_bar)
    of_group = {label: found.groups[label] for label in groups}
    record = write_gene_maps(
        adata, fitted, ids, key_added, found.values, of_group, effect="attribution", params=params
    )  # fmt: skip
    record["metabolites"] = record["metabolites"].assign(**found.info)
    return out if copy else None


def choose_method(model: HurdleModel, method: Method, stage: Stage) -> Method:
    """The method to use, refused where it does not fit the model."""
    from stmsi.model.explain._attribution import LINEAR_FAMILIES

    kind = type(model).__name__
    family = getattr(model, stage, None) if kind == "HurdleLinear" else None
    # diffused components mix the genes of many spots: no weight of theirs belongs to a gene of the spot
    diffused = model.state.features.uses_graph and model.state.features.pooled is None
    linear = family in LINEAR_FAMILIES[stage] and not diffused
    # encoders with neighbours or sections see genes through components, which the gradients of genes do not reach
    network = (
        kind == "HurdleNet"
        and not model._uses_context  # type: ignore[attr-defined]
        and not model._several  # type: ignore[attr-defined]
        and not model._contains_training_profiles()
    )
    if method == "auto":
        return "coefficients" if linear else "integrated_gradients" if network else "permutation"
    if method == "coefficients" and not linear:
        has = (
            f"a {kind}" if family is None else f"{stage}={family!r}" + (" with context='diffused'" if diffused else "")
        )
        msg = (
            f"method='coefficients' needs a linear {stage} stage (HurdleLinear with {stage}= one of "
            f"{listing(LINEAR_FAMILIES[stage])}), but the model is {has}. Use method='permutation'."
        )
        raise ValueError(msg)
    if method == "integrated_gradients" and not network:
        if kind == "HurdleNet":
            with_graph = model.state.setup.graph_key is not None
            several = model._several  # type: ignore[attr-defined]
            other = "sections" if model._uses_context else "several networks" if several else "retrieval"  # type: ignore[attr-defined]
            kind += f" with {'a graph' if with_graph else other}"
        msg = (
            "method='integrated_gradients' needs the gradients of one HurdleNet without a graph, sections or retrieval; "
            f"for a {kind} use method='auto'."
        )
        raise ValueError(msg)
    return method


def draw_spots(
    model: HurdleModel,
    adata: AnnData,
    n_spots: int | None,
    min_genes: float,
    rng: np.random.Generator,
    layer: str | None = None,
    input: Input | None = None,
) -> tuple[Spots, NDArray[np.int64]]:
    """Spots to look at, and their rows."""
    from stmsi.model.explain._attribution import attribution_spots

    spots = attribution_spots(model, adata, min_genes, layer, input)
    rows = np.arange(len(spots))
    if n_spots is None or n_spots >= len(spots):
        return spots, rows
    if spots.graph is not None:
        logger.info("The model reads a graph: all %d spots are used, as n_spots=%d would cut it.", len(spots), n_spots)
        return spots, rows
    rows = np.sort(rng.choice(rows, n_spots, replace=False))
    return spots.take(rows), rows


def section_codes(
    model: HurdleModel, adata: AnnData, rows: NDArray[np.int64] | slice = slice(None)
) -> NDArray[np.int64]:
    """Number of the section of each spot (of some rows)."""
    sample = sections_of(adata, model.state.setup.sample_key)[rows]
    return np.unique(sample.astype(str), return_inverse=True)[1].astype(np.int64)


def _compute(
    adata: AnnData, model: Any, ids: list[str], params: dict[str, Any], rng: np.random.Generator, show: bool | None
) -> tuple[Attribution, list[str]]:
    """Call the method; also the groups in order."""
    from stmsi.model.explain import _attribution as methods

    method, stage, groupby = params["method"], params["stage"], params["groupby"]
    columns = np.asarray(model.state.metabolites.get_indexer(pd.Index(ids)))
    # weights need no spots but for groups, and then all of them are cheap
    n_spots = None if method == "coefficients" else params["n_spots"]
    spots, rows = draw_spots(model, adata, n_spots, params["min_genes"], rng, params["layer"], params["input"])
    group, groups = read_groups(adata, groupby, rows)
    if method == "coefficients":
        found = methods.coefficients(model, spots, columns, stage, group)
    elif method == "integrated_gradients":
        n_steps = params["n_steps"]
        found = methods.integrated_gradients(model, spots, columns, stage, group, n_steps=n_steps, show=show)
    else:
        section, n_repeats, n_blocks = section_codes(model, adata, rows), params["n_repeats"], params["n_blocks"]
        found = methods.permutation(
            model, spots, columns, stage, section, n_repeats=n_repeats, n_blocks=n_blocks, rng=rng, show=show
        )
    if stage == "presence":
        # where calibration found no evidence, the slope of its sigmoid is next to nothing, and the genes' order chance
        constant = np.nanmax(np.abs(found.values), axis=0) < _CONSTANT
        for values in (found.values, *found.groups.values()):
            values[:, constant] *= 0
    return found, groups
