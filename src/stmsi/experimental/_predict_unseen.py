"""Patterns of metabolites that the training data did not have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stmsi.model.shared._block_prediction import MIN_GENES
from stmsi.tl._models import trained_model

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from stmsi.model import HurdleNet
    from stmsi.model.shared._stored_input import Input


def predict_unseen(
    model: HurdleNet | str | Path,
    features: pd.DataFrame,
    adata: AnnData | None = None,
    *,
    layer: str | None = None,
    input: Input | None = None,
    min_genes: float = MIN_GENES,
) -> pd.DataFrame:
    """Predict the pattern of metabolites that training did not have, from their m/z and descriptors.

    Nothing is known of the level of such a metabolite, so it has no presence, no unit and no interval: the pattern shows only
    where there should be more and where less. Test it with metabolites left out; see the page on interpretation in the user
    guide.

    Parameters
    ----------
    model
        A trained :class:`stmsi.model.HurdleNet` with ``encoder="transformer"``, or the folder of a saved one. Train it with
        ``encoder_kwargs={"query_dropout": 0.1}`` or so: else training never asks for a metabolite by m/z alone.
    features
        One row per metabolite, its id as index: ``mz`` (Da; NaN if unknown) and the ``descriptors`` of the model.
    adata
        Spots x genes with counts or log expression; `None`: the training data.
    layer, input
        Where the expression is, and what it is; as for :func:`stmsi.tl.predict_metabolites`.
    min_genes
        Share of the training genes that must be in the data.

    Returns
    -------
    DataFrame spots x metabolites, float32: intensity given presence in standard deviations from its mean, on the scale on
    which the model learns all metabolites.

    Raises
    ------
    ValueError
        Another model or encoder, no ``query_dropout``, a model that corrects ridge, or neither m/z nor descriptors are known of
        a metabolite.
    KeyError
        A descriptor is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleNet.setup_anndata(st)
    >>> options = {"n_hidden": 16, "query_dropout": 0.1}
    >>> model = stmsi.model.HurdleNet(st, encoder="transformer", encoder_kwargs=options)
    >>> model.train(max_epochs=2, show_progress_bar=False)
    >>> stmsi.experimental.predict_unseen(model, pd.DataFrame({"mz": [760.5851]}, index=["PC(34:1)"])).shape
    (344, 1)
    """
    from stmsi.model import HurdleNet

    fitted = trained_model(model)
    if not isinstance(fitted, HurdleNet):
        msg = f'predict_unseen needs a HurdleNet with encoder="transformer", found {type(fitted).__name__}.'
        raise ValueError(msg)
    return fitted._predict_unseen(features, adata, min_genes, layer, input)
