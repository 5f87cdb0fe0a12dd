"""Synthetic metabolite layers for any ST section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._data.checks import check_count, check_coverage, check_key, check_share, is_spatialdata, listing, own_view
from stmsi._data.keys import Key
from stmsi._data.tables import ONE_SECTION, copy_of, get_table, in_frames
from stmsi._data.training_marks import RECORD, by_section, write_marks
from stmsi._messages import warns_once
from stmsi._settings import logger
from stmsi.io._files import check_new
from stmsi.model._families import AUTO
from stmsi.model.shared._block_prediction import MIN_GENES
from stmsi.model.shared._blocks import BLOCK_SIZE
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.model.shared._prediction import How, check_how
from stmsi.model.shared._training_spots import marks_of
from stmsi.tl._models import is_named, model_record, name_of, obtain_model, setup_on
from stmsi.tl._obs_by_section import ObsBySection, refuse_obs
from stmsi.tl._partial_sections import correct_by_measured
from stmsi.tl._predict_stores import predict_stores
from stmsi.tl._predicted_store import write_prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.model.shared._stored_input import Input
    from stmsi.tl._made_from import MadeFrom

_MANY_UNUSUAL = 0.5
"""Share of the spots of a section above which it is called unlike the training data, of which 5 % are."""


@warns_once
def predict_metabolites(
    data: SpatialData | AnnData | Sequence[str | Path],
    model: HurdleModel | str | Path | Mapping[str, Any] = AUTO,
    *,
    how: How | Sequence[How] = "expected",
    layer: str | None = None,
    input: Input | None = None,
    table_key: str = Key.table.ST,
    key_added: str = Key.obsm.PRED,
    coverage: float = 0.9,
    min_genes: float = MIN_GENES,
    setup: Mapping[str, Any] | None = None,
    use_measured: bool = False,
    out: str | Path | None = None,
    block_size: int = BLOCK_SIZE,
    on_error: Literal["raise", "warn"] = "raise",
    overwrite: bool = False,
    obs: ObsBySection | None = None,
    client: Client | str | None = None,
    show_progress_bar: bool | None = None,
    copy: bool = False,
) -> SpatialData | AnnData | pd.DataFrame | None:
    """Predict presence and intensity of metabolites for every spot.

    Parameters
    ----------
    data
        ST section(s), with or without MSI. SpatialData, or AnnData of spots x genes with counts or log expression. Or paths of stores
        (``.h5ad``, ``.zarr`` of AnnData or SpatialData), which are predicted one after the other by a trained model: `out` is then the
        folder of the predictions. Without it, that of ``S1.h5ad`` is ``S1_predicted.zarr`` beside it. A prediction that is there, whole,
        and made from the same model, store and options is kept.
    model
        A trained model, the folder of a saved one, the name of a family or a mapping with its hyper-parameters. Families:
        ``"auto"`` (a stack of ridge regressions, weighted by held-out patients or sections, see
        :class:`stmsi.model.HurdleEnsemble`), ``"ridge"`` (the fast choice), ``"gene_ridge"``, ``"kernel_ridge"``,
        ``"screened_ridge"``, ``"prior_ridge"``, ``"mean"``, ``"linear"``, ``"lasso"``, ``"pls"``, ``"knn"``, ``"poisson"``,
        ``"negative_binomial"``, ``"boosting"``, the networks ``"mlp"``, ``"transformer"``, ``"graph"``, ``"deepset"``, ``"niche"``, ``"section"`` and
        ``"crossmodal"`` (encoders of :class:`stmsi.model.HurdleNet`), ``"ensemble"``, and the negative controls ``"coordinates"``,
        ``"shuffled_genes"`` and ``"toroidal_shift"``. By name, the model is trained on the spots of `data` that have MSI and predicts all; predictions of
        training spots are **not** evidence of its skill: see :func:`stmsi.tl.cross_validate`.
    how
        How presence and intensity become one number: ``"expected"``, ``"probability_weighted"`` or ``"mask"``; see
        :meth:`stmsi.model.HurdleLinear.predict`. Of several, the first is the prediction, and the others are written
        beside it. Scores of calls (``f1``, ``precision``, ...) read the zeros, which ``"probability_weighted"`` has not.
    layer
        Layer that holds the expression (``"X"``: ``X``). `None`: the layer that the model was trained on if it is there, else
        ``X``. A model that is trained by name is trained on it.
    input
        What the expression is: ``"counts"`` or ``"log"`` (log-normalised counts, log ratios). `None`: look, in each section; a
        section that is log-normalised among sections of counts is named, and brought to their scale. See
        :meth:`stmsi.model.HurdleLinear.predict_presence`.
    table_key, key_added
        The ST table, and where to write in it.
    coverage
        Chance that the interval holds the measured intensity.
    min_genes
        Share of the training genes that must be in the data; missing ones are imputed at their training mean.
    setup
        Fields for ``setup_anndata`` when training by name (``presence_key``, ``signature_key``, ...); `None`: presence
        from ``obsm["msi_presence"]`` and the signature from ``varm["signature"]`` if they exist. Stacks, kernel, screened and
        prior ridges, and networks that read one, also get the graph ``obsp["spatial_connectivities"]``, and stacks the prior ``varm["msi_prior"]``; name
        them `None` to leave them out.
    use_measured
        Correct the spots that were not measured by those of the same section that were (a raster that stopped early, few pixels):
        offset and scale, then kriged residuals, for presence too. Measured spots keep the prediction of the model. Meant for models
        that have not seen these spots; of a model that was trained on them, held-out predictions are used where it has them in
        memory, and a warning says where it has none. The corrected values hold measured data of their own section: they are **not**
        evidence of skill. Score :func:`stmsi.tl.evaluate` on predictions without this option, or on measured spots that
        were set to NaN before. See :doc:`/user_guide/partial_sections`.
    out
        Write the prediction to a new store (``"predicted.zarr"``) instead of into `data`, some spots at a time: neither the
        expression nor the prediction need fit into memory. `data` may be backed (``anndata.read_h5ad(path, backed="r")``) or lazy
        (``anndata.experimental.read_lazy(path)``), and is not changed. A model that is trained by name reads `data` whole first.
    block_size
        Spots that are predicted together. Those around them that the model sees are read with them; a model that sees whole sections
        takes these together. Numbers do not depend on it, memory does.
    on_error
        Of stores that cannot be predicted (damaged, genes missing, an output that is there): the others go on, and at the end ``"raise"``
        one error that names them all, or ``"warn"`` and return the table.
    overwrite
        Of stores: make all predictions again, also those that are kept otherwise, and those of another model. Nothing but predictions is
        replaced.
    obs
        Of stores: columns of ``obs`` by section, such as covariates that the model reads; as for :func:`stmsi.tl.train`.
    client
        Of stores: a ``dask.distributed.Client``, or the address of a scheduler, whose tasks are stores. See :doc:`/user_guide/cluster`.
    show_progress_bar, copy
        `None` follows ``stmsi.settings.progress_bar``; return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy; of stores a table with a row for each: ``store``, ``out``, ``n_spots``, ``kept`` (whether
    it was predicted before) and ``error``, empty where it is predicted. Writes into the ST table (for ``key_added="msi_pred"``):

    - ``obsm["msi_pred"]``: predicted intensity, DataFrame spots x metabolites, float32, exactly 0 where absent (but for
      ``how="probability_weighted"``);
    - ``obsm["msi_pred_<how>"]``: the same for each further `how`, such as ``obsm["msi_pred_mask"]``;
    - ``obsm["msi_pred_presence"]``: calibrated probability of presence;
    - ``obsm["msi_pred_lower"]``, ``obsm["msi_pred_upper"]``: prediction interval;
    - ``obs["msi_pred_ood"]``: out-of-distribution score; above 1, the spot is further from the training data than 95 %
      of the training spots;
    - ``obs["msi_pred_trained_on"]``: ``"yes"`` for spots that the model was trained or calibrated on, ``"no"`` for others,
      ``"unknown"`` where that cannot be told (see below);
    - ``uns["msi_pred"]``: ``params`` (``how``: the outputs in their order), ``model`` (name and version), ``features`` (feature
      table with the evidence from held-out training spots, the threshold of each metabolite and its training mean),
      ``missing_genes`` (share, by their weight in the model) and the table ``training_spots``, one row per section: ``sample``,
      ``n_spots``, ``n_trained_on``, ``n_unknown`` and ``trained_on`` (``"no"``, ``"yes"``, ``"partly"``, ``"unknown"``); with `use_measured` the table ``use_measured``, one row per corrected section and metabolite: ``sample``,
      ``metabolite``, ``n_measured`` (spots), ``offset``, ``scale``, ``smoothing`` (slope of the mean prediction around a spot),
      ``length`` (um, of the correlation of residuals, NaN where they are noise) and ``noise`` (share of their variance).

    With `out` nothing is written into `data`. The store is an AnnData of spots x metabolites, for ``anndata.read_zarr`` and
    ``read_lazy``: ``X`` holds the prediction, ``layers`` hold ``presence``, ``lower``, ``upper`` and the further `how`, all dense, float32;
    ``var`` the feature table, ``obs`` that of `data` and ``msi_pred_ood``, ``obsm["spatial"]`` positions, ``uns["msi_pred"]`` the record.
    Of stores, its entry ``made_from`` has hashes of the model, of the files of the store (names, sizes, times of change) and of the options.

    Notes
    -----
    Training spots are known by their expression: a model keeps a hash of each (65,536 at most), from which no profile can be
    told. They are found again in copies and subsets, in another order, under other names, and as counts or logarithms;
    another section with the same barcodes is not taken for them. Where genes are missing, the genes found in most spots decide;
    where these are missing too, a spot with section, name and position of a training spot is one, and of others it is unknown.
    A spot with section, name and position of a training spot and another expression (corrected, smoothed) is unknown, too, as
    are all spots for models that were saved without hashes.

    Raises
    ------
    FileExistsError
        `out` exists.
    FileNotFoundError
        There is no folder to write `out` into.
    ValueError
        `out` with `use_measured` or `copy`, or too few genes, no spot with MSI to train on, expression on another scale than that of the training data, a `key_added`
        that would replace something else, or positions that are not finite with `use_measured`.
    KeyError
        A field that the model uses is not there.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> sdata.tables["st"].obsm["msi_pred"].shape
    (344, 12)
    """
    check_count(block_size, "block_size")
    if not isinstance(data, AnnData) and not is_spatialdata(data):
        if copy or use_measured or setup is not None:
            msg = "Of stores, copy=, use_measured= and setup= have no meaning: they are not changed, and the model is trained; leave them out."
            raise ValueError(msg)
        options = {"how": check_how(how), "layer": layer, "input": input, "key_added": key_added, "coverage": coverage}
        options |= {"min_genes": min_genes}
        return predict_stores(
            _predict_table, data, model, out, options, block_size=block_size, table_key=table_key, on_error=on_error, overwrite=overwrite,
            obs=obs, client=client, show_progress_bar=show_progress_bar,
        )  # fmt: skip
    refuse_obs(obs)
    if overwrite:
        msg = "overwrite= is of stores, whose predictions are stores; pass their paths. A prediction in memory is replaced anyway."
        raise ValueError(msg)
    if client is not None:
        msg = "client= shares out stores; pass their paths. Data in memory are predicted here."
        raise ValueError(msg)
    if out is not None:
        _check_out(out, copy=copy, use_measured=use_measured)
    changed = copy_of(data) if copy else data
    _predict_table(
        get_table(changed, table_key), model, how=check_how(how), layer=layer, input=input, key_added=key_added, coverage=coverage,
        min_genes=min_genes, setup=setup, use_measured=use_measured, out=out, block_size=block_size, show_progress_bar=show_progress_bar,
    )  # fmt: skip
    return changed if copy else None


def _predict_table(
    adata: AnnData,
    model: HurdleModel | str | Path | Mapping[str, Any],
    *,
    how: Sequence[How],
    layer: str | None,
    input: Input | None,
    key_added: str,
    coverage: float,
    min_genes: float,
    block_size: int,
    show_progress_bar: bool | None,
    setup: Mapping[str, Any] | None = None,
    use_measured: bool = False,
    out: str | Path | None = None,
    made_from: MadeFrom | None = None,
    overwrite: bool = False,
) -> None:
    """Predict one table in memory, or into a store that says what it was `made_from` and may be there."""
    asked = how
    if out is None:
        own_view(adata)
        _check_target(adata, key_added, asked[1:])
    check_key(key_added)
    check_coverage(coverage)
    check_share(min_genes, "min_genes")
    fitted = obtain_model(model, adata, setup_on(adata, setup, layer, input), show_progress_bar)
    # data that the model was just trained on were looked at for training
    known = fitted.state.setup.input if is_named(model) and input is None else input
    reader = fitted._query(adata, min_genes, layer=layer, input=known)
    record = {
        "params": {
            "coverage": coverage,
            "min_genes": min_genes,
            "model": name_of(fitted if isinstance(model, Mapping) else model),
            "how": list(asked),
            "use_measured": use_measured,
        }
        | {key: value for key, value in (("layer", layer), ("input", input)) if value is not None},
        "model": model_record(fitted),
        "features": fitted.state.feature_table.assign(threshold=fitted.state.threshold),
        "missing_genes": reader.spots.missing,
    }
    obs = in_frames(adata).obs
    sections = _section_names(obs, fitted.state.setup.sample_key)
    if out is not None:
        score = write_prediction(
            out, fitted, reader, obs=obs, sections=sections, record=record, key=key_added, how=asked, coverage=coverage,
            block_size=block_size, show_progress_bar=show_progress_bar, made_from=made_from, overwrite=overwrite,
        )  # fmt: skip
        _tell_unusual(sections, score, Key.ood_of(key_added))
        return
    prediction = fitted._predict_from(reader, coverage, block_size, marked=True, show_progress_bar=show_progress_bar)
    if use_measured:
        prediction, done = correct_by_measured(adata, fitted, prediction, coverage)
        if len(done):
            record["use_measured"] = done
    _tell_unusual(sections, prediction.ood, Key.ood_of(key_added))
    lower, upper = Key.bounds_of(key_added)
    for key in _further(adata, key_added):  # of an earlier prediction
        adata.obsm.pop(key, None)
    adata.obsm[key_added] = prediction.output(asked[0])
    for one in asked[1:]:
        adata.obsm[Key.output_of(key_added, one)] = prediction.output(one)
    adata.obsm[Key.presence_of(key_added)] = prediction.presence
    adata.obsm[lower], adata.obsm[upper] = prediction.lower, prediction.upper
    adata.obs[Key.ood_of(key_added)] = prediction.ood
    assert prediction.found is not None
    marks = marks_of(prediction.found, reader.spots.sample)
    write_marks(adata, key_added, marks)
    record[RECORD] = by_section(marks, sections)
    adata.uns[key_added] = record


def _check_out(out: str | Path, *, copy: bool, use_measured: bool) -> None:
    """Refuse what cannot be done with a store, before a model is trained."""
    if copy or use_measured:
        msg = f"out= writes a store and leaves the data as they are; it does not go with {'copy' if copy else 'use_measured'}=True."
        raise ValueError(msg)
    check_new(Path(out), "store")


def _section_names(obs: pd.DataFrame, key: str) -> NDArray[Any]:
    """Section of each spot; data to predict need not name any."""
    if key not in obs:
        return np.full(len(obs), ONE_SECTION, dtype=object)
    return obs[key].astype(object).to_numpy().astype(str).astype(object)


def _tell_unusual(sections: NDArray[Any], score: NDArray[np.floating[Any]], key: str) -> None:
    """Warn of sections of which most spots are unlike the training data: one may be of another tissue, and the others not."""
    share = pd.Series(score > 1).groupby(sections).mean()
    odd = share.index[share > _MANY_UNUSUAL]
    if not len(odd):
        return
    of = "" if len(odd) == len(share) else f" of {listing(odd)}"
    percent = 100 * (score[np.isin(sections, odd)] > 1).mean()
    logger.warning(
        "%.0f %% of the spots%s lie outside what the model was trained on (obs[%r] > 1); trust them less.",
        percent,
        of,
        key,
    )


def _check_target(adata: AnnData, key: str, further: Sequence[How]) -> None:
    """Refuse to write a prediction over anything but an earlier prediction."""
    check_key(key)
    record = adata.uns.get(key)
    earlier = isinstance(record, dict) and "model" in record
    if (key in adata.obsm or key in adata.uns) and not earlier:
        where = "obsm" if key in adata.obsm else "uns"
        msg = f"key_added={key!r} would replace {where}[{key!r}], which is no prediction; choose another name."
        raise ValueError(msg)
    for other in (Key.output_of(key, how) for how in further):
        if other in adata.obsm and other not in _further(adata, key):
            msg = f"key_added={key!r} would replace obsm[{other!r}], which is no prediction; choose another name."
            raise ValueError(msg)


def _further(adata: AnnData, key: str) -> list[str]:
    """Where an earlier prediction under this name wrote its further outputs."""
    record = adata.uns.get(key)
    params = record.get("params", {}) if isinstance(record, dict) else {}
    return [Key.output_of(key, str(how)) for how in list(params.get("how", ()))[1:]]
