"""Which genes a metabolite attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.checks import own_view
from stmsi._data.keys import Key
from stmsi._data.tables import copy_of, get_table
from stmsi.model.shared._block_prediction import MIN_GENES
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.tl._gene_maps import gene_frame, group_keys, read_groups, write_gene_maps
from stmsi.tl._models import trained_model, wanted_metabolites

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stmsi.model.shared._stored_input import Input


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
    r"""Write which genes each metabolite attends to, and what they contribute, for a `HurdleNet` with ``encoder="transformer"``.

    In every spot, each head of a metabolite divides its attention among genes: weights of at least 0 that sum to 1. Heads are
    averaged by the size of their slopes in the read-out. **A contribution** is attention times value (expression of the spot
    and its rings) times slope, summed over heads, in the unit of the intensity. Contributions of all genes and the ``intercept``
    of the metabolite add up to the linear part of its intensity given presence; a small network bends it. Of several networks all
    of this is the mean.

    **The control.** Training keeps how well held-out sections are predicted, and how well with attention made uniform. Attention
    passes where the first is clearly higher (by .02 at least and by two standard errors over metabolites). Where it does not pass,
    the maps mean nothing. :func:`stmsi.tl.attribute` works for every model.

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
        Metabolites whose contributions in every spot are written too.
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

    - ``varm["msi_attention"]``: DataFrame genes x metabolites (safe ids), float32, mean attention over all spots; columns sum to
      1 over the genes of the model; **NaN: the model does not use this gene**;
    - ``varm["msi_attention_effects"]``: likewise, what one standard deviation of the gene adds to the intensity: the mean of
      contribution times standardised expression, with its sign;
    - ``varm["msi_attention_<group>"]``, ``varm["msi_attention_effects_<group>"]``: mean attention and mean contribution over the
      spots of each group of `groupby`;
    - ``obsm["msi_attention_<metabolite>"]``: DataFrame spots x genes that the model uses, contributions, for `per_spot`;
    - ``uns["msi_attention"]``: ``params``, ``metabolites`` (``name``, ``intercept``, ``held_out`` and ``held_out_uniform``, the mean
      correlation inside held-out sections, and with attention made uniform), ``control`` (``held_out``, ``uniform``: means over
      metabolites, ``passed``), ``top_genes`` (the 20 genes that each metabolite attends to most: ``metabolite``, ``rank``, ``gene``,
      ``attention``); with `groupby` ``groups`` (label and key in ``varm``).

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
    >>> model = stmsi.model.HurdleNet(st, encoder="transformer", n_nets=2)
    >>> model.train(max_epochs=2, show_progress_bar=False)
    >>> stmsi.tl.attention(st, model, groupby="domain", show_progress_bar=False)
    >>> st.varm["msi_attention"].shape
    (120, 12)
    >>> sorted(st.uns["msi_attention"]["control"])
    ['held_out', 'passed', 'uniform']
    """
    fitted = trained_model(model)
    _require_attention(fitted)
    out = copy_of(data) if copy else data
    adata = get_table(out, table_key)
    own_view(adata)
    ids = wanted_metabolites(fitted, metabolites)
    shown = [] if per_spot is None else wanted_metabolites(fitted, per_spot)
    group, groups = read_groups(adata, groupby)
    effects_key = Key.effects_of(key_added)
    if effects_key in group_keys(key_added, groups):
        msg = f"A group of obs[{groupby!r}] is called 'effects', and its map would overwrite the contributions; rename it."
        raise ValueError(msg)
    from stmsi.model.explain._attention import AttentionControl, attention_maps
    from stmsi.model.explain._attribution import attribution_spots

    asked = list(dict.fromkeys([*ids, *shown]))  # those of single spots may be others
    at = np.asarray(fitted.state.metabolites.get_indexer(pd.Index(asked)))
    spots, single = attribution_spots(fitted, adata, min_genes, layer, input), [asked.index(m) for m in shown]
    maps = attention_maps(fitted, spots, at, group, single, show=show_progress_bar)  # type: ignore[arg-type]
    n = len(ids)
    params = {
        "groupby": groupby,
        "per_spot": safe_ids(shown) or None,
        "layer": layer,
        "input": input,
        "min_genes": min_genes,
    }
    of_group = {g: maps.group_weights[g][:n].T for g in groups}
    record = write_gene_maps(
        adata, fitted, ids, key_added, maps.weights[:n].T, of_group, effect="attention", params=params
    )  # fmt: skip
    columns = safe_ids(list(ids))
    effects = [maps.effects, *(maps.group_effects[g] for g in groups)]
    for key, values in zip([effects_key, *group_keys(effects_key, groups)], effects, strict=True):
        adata.varm[key] = gene_frame(adata, fitted, values[:n].T, columns)
    table = fitted.state.feature_table
    evidence = {name: table.loc[ids, name].to_numpy() for name in ("held_out_attention", "held_out_uniform")}
    record["metabolites"] = record["metabolites"].assign(
        intercept=maps.intercept[:n],
        held_out=evidence["held_out_attention"],
        held_out_uniform=evidence["held_out_uniform"],
    )
    record["control"] = asdict(AttentionControl.of(table))
    genes = fitted.state.panel.names["var_names"][maps.used].astype(str)
    for i, name in zip(single, safe_ids(shown), strict=True):
        adata.obsm[Key.group_of(key_added, name)] = pd.DataFrame(maps.spots[i], index=adata.obs_names, columns=genes)
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
