"""Which genes a metabolite attends to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.checks import own_view
from stmsi._data.keys import Key
from stmsi._data.tables import copy_of, get_table
from stmsi.model.shared._hurdle_model import MIN_GENES, HurdleModel
from stmsi.tl._gene_maps import gene_frame, group_keys, read_groups, write_gene_maps
from stmsi.tl._models import trained_model, wanted_metabolites

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stmsi.model.shared._stored_input import Input

PROGRAMMES = "programmes"


def attention(
    data: SpatialData | AnnData,
    model: HurdleModel | str | Path,
    *,
    metabolites: str | Sequence[str] | None = None,
    groupby: str | None = None,
    per_spot: str | Sequence[str] | None = None,
    layer: str | None = None,
    input: Input | None = None,
    min_genes: float = MIN_GENES,
    table_key: str = Key.table.ST,
    key_added: str = Key.varm.ATTENTION,
    show_progress_bar: bool | None = None,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    r"""Write which genes and programmes each metabolite attends to, for a `HurdleNet` with ``encoder="transformer"``.

    In every spot, each metabolite divides its attention among tokens: weights of at least 0 that sum to 1, here the mean
    over heads. Tokens are genes, or programmes. The weight :math:`a_{mt}` of a programme is divided among its genes by their
    share of it: :math:`a_{mj} = \sum_t a_{mt}\,|w_{tj}| / \sum_{j'} |w_{tj'}|`. With ``attention="linear"`` the weights are
    those of the kernel, over their sum.

    **Attention shows where the network looks, not what it makes of it**: it has no sign, and the network may ignore a gene
    that it looks at. :func:`stmsi.tl.attribute` tells what moves the prediction.

    Parameters
    ----------
    data
        SpatialData, or AnnData of spots x genes with counts or log expression: the training data or others.
    model
        A trained model, or the folder of a saved one.
    metabolites
        Ids or readable names; `None`: all that the model predicts.
    groupby
        Column of ``obs`` with groups of spots: also write the mean over the spots of each group.
    per_spot
        Metabolites whose attention in every spot is written too.
    layer, input
        Where the expression is, and what it is; as for :func:`stmsi.tl.predict_metabolites`.
    min_genes
        Share of the training genes that must be in the data.
    table_key, key_added
        The ST table, and where to write in it.
    show_progress_bar, copy
        `None` follows ``stmsi.settings.progress_bar``; return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes into the ST table (for ``key_added="msi_attention"``):

    - ``varm["msi_attention"]``: DataFrame genes x metabolites (safe ids), float32, mean over all spots; columns sum to 1
      over the genes of the model; **NaN: the model does not use this gene**;
    - ``varm["msi_attention_<group>"]``: likewise, mean over the spots of each group of `groupby`;
    - ``varm["msi_attention_programmes"]`` (if tokens are programmes): DataFrame genes x programmes, share of each gene in
      each programme;
    - ``obsm["msi_attention_<metabolite>"]``: DataFrame spots x programmes (or genes), for `per_spot`;
    - ``uns["msi_attention"]``: ``params``, ``metabolites`` (``name``), ``top_genes`` (the 20 genes that each metabolite
      attends to most: ``metabolite``, ``rank``, ``gene``, ``attention``); with programmes ``programmes`` (DataFrame
      metabolites x programmes, mean over all spots); with `groupby` ``groups`` (label and key in ``varm``) and
      ``programmes_<group>``.

    Raises
    ------
    RuntimeError
        The model is not trained.
    KeyError
        Unknown metabolites, or a missing field.
    ValueError
        A model without attention of metabolites to genes, a view, keys that coincide.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleNet.setup_anndata(st)
    >>> model = stmsi.model.HurdleNet(st, encoder="transformer", encoder_kwargs={"n_hidden": 16, "n_tokens": 10})
    >>> model.train(max_epochs=2, show_progress_bar=False)
    >>> stmsi.tl.attention(st, model, groupby="domain", show_progress_bar=False)
    >>> st.varm["msi_attention"].shape
    (120, 12)
    >>> st.uns["msi_attention"]["programmes"].shape
    (12, 10)
    """
    fitted = trained_model(model)
    _require_attention(fitted)
    out = copy_of(data) if copy else data
    adata = get_table(out, table_key)
    own_view(adata)
    ids = wanted_metabolites(fitted, metabolites)
    shown = [] if per_spot is None else wanted_metabolites(fitted, per_spot)
    group, groups = read_groups(adata, groupby)
    programmes_key = Key.programmes_of(key_added)
    if programmes_key in group_keys(key_added, groups):
        msg = f"A group of obs[{groupby!r}] is called {PROGRAMMES!r}, and its map would overwrite the programmes; rename it."
        raise ValueError(msg)
    from stmsi.model.explain._attention import attention_maps
    from stmsi.model.explain._attribution import attribution_spots

    asked = list(dict.fromkeys([*ids, *shown]))  # those of single spots may be others
    at = np.asarray(fitted.state.metabolites.get_indexer(pd.Index(asked)))
    spots, single = attribution_spots(fitted, adata, min_genes, layer, input), [asked.index(m) for m in shown]
    maps = attention_maps(fitted, spots, at, group, single, show=show_progress_bar)  # type: ignore[arg-type]
    # metabolites x tokens: over all spots, and of each group
    weights = [values[: len(ids)] for values in (maps.tokens, *(maps.groups[g] for g in groups))]
    mean, *of_group = (maps.genes(values) for values in weights)
    params = {
        "groupby": groupby,
        "per_spot": safe_ids(shown) or None,
        "layer": layer,
        "input": input,
        "min_genes": min_genes,
    }
    record = write_gene_maps(
        adata, fitted, ids, key_added, mean, dict(zip(groups, of_group, strict=True)), effect="attention", params=params
    )  # fmt: skip
    tokens = _token_names(fitted, maps.are_genes, len(maps.shares))
    if not maps.are_genes:
        adata.varm[programmes_key] = gene_frame(adata, fitted, maps.shares.T, tokens)
        keys = [PROGRAMMES, *group_keys(PROGRAMMES, groups)]
        for key, values in zip(keys, weights, strict=True):
            record[key] = pd.DataFrame(values.astype(np.float32), index=safe_ids(ids), columns=tokens)
    for i, name in zip(single, safe_ids(shown), strict=True):
        adata.obsm[Key.group_of(key_added, name)] = pd.DataFrame(maps.spots[i], index=adata.obs_names, columns=tokens)
    return out if copy else None


def _require_attention(model: HurdleModel) -> None:
    """Refuse models in which no metabolite attends to genes."""
    from stmsi.model.net._hurdle_net import HurdleNet
    from stmsi.model.net.encoders import MetaboliteEncoder

    if isinstance(model, HurdleNet) and isinstance(model.module.encoder, MetaboliteEncoder):
        return
    kind = type(model).__name__
    if isinstance(model, HurdleNet):
        kind += f" with encoder={model._hyper['encoder']!r}"
    msg = (
        f'Attention of metabolites to genes is what HurdleNet(encoder="transformer") has, but the model is a {kind}; '
        "use stmsi.tl.attribute, which works for every model."
    )
    raise ValueError(msg)


def _token_names(model: HurdleModel, are_genes: bool, n: int) -> list[str]:
    """Names of the tokens: genes as the panel calls them, or numbered programmes."""
    if not are_genes:
        width = len(str(n))
        return [f"programme{i + 1:0{width}d}" for i in range(n)]
    panel = model.state.panel.names["var_names"]
    return [str(panel[i]) for i in model.state.features.own.selected]
