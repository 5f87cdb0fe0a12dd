"""Synthetic sections: draws from a fitted model that look like measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.checks import check_key, check_share, is_spatialdata, own_view
from stmsi._data.keys import Key
from stmsi._data.tables import copy_of, get_table
from stmsi._messages import warns_once
from stmsi.model.shared._block_prediction import MIN_GENES
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.tl._models import is_named, model_record, obtain_model, setup_on, wanted_metabolites
from stmsi.tl._raster_draws import Places, on_raster, write_pixels

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from anndata import AnnData
    from spatialdata import SpatialData

    from stmsi.model.shared._stored_input import Input


@warns_once
def sample_metabolites(
    data: SpatialData | AnnData,
    model: HurdleModel | str | Path | Mapping[str, Any],
    n_samples: int = 1,
    *,
    rng: int | np.random.Generator | None = None,
    spatial: bool = True,
    metabolites: str | Sequence[str] | None = None,
    raster: float | None = None,
    layer: str | None = None,
    input: Input | None = None,
    table_key: str = Key.table.ST,
    key_added: str | None = Key.obsm.SAMPLE,
    table_added: str = Key.table.SYNTHETIC,
    min_genes: float = MIN_GENES,
    setup: Mapping[str, Any] | None = None,
    show_progress_bar: bool | None = None,
    copy: bool = False,
) -> SpatialData | AnnData | xr.DataArray | None:
    r"""Draw synthetic metabolite layers for measured or new sections.

    A prediction is a mean, and smoother than any measurement. A draw adds what the model does not know: residuals, which are
    alike in neighbouring spots, in spots of one section, and in related metabolites.

    The value of a spot has the distribution :math:`F(y) = 1 - p + p\,G(y)`: present with the calibrated probability
    :math:`p`, then with the intensity :math:`G`, the prediction plus held-out residuals of spots with a similar prediction. A
    Gaussian field :math:`z` for each metabolite picks the quantile: absent where :math:`\Phi(z) < 1 - p`, else
    :math:`G^{-1}((\Phi(z) - 1 + p)/p)`. The covariance of :math:`z` is a linear model of coregionalization [Goulard1992]_ (a
    nugget, three Matern structures and one for the whole section, each with its own correlation between metabolites), fitted
    to normal scores of held-out residuals. Fields are drawn with Vecchia's approximation [Katzfuss2021]_.

    Parameters
    ----------
    data
        ST section(s), with or without MSI. SpatialData, or AnnData of spots x genes with counts or log expression.
    model
        A trained model, the folder of a saved one, or the name of a family, which is then trained on the spots with MSI.
    n_samples, rng
        Number of draws, and seed or generator: the first draws of a seed do not depend on the number.
    spatial
        `False`: spots are drawn independently of each other, metabolites of a spot are not.
    metabolites
        Ids or readable names; `None`: all that the model predicts.
    raster
        Side of a pixel in micrometres: draw on a raster over the tissue instead of on the spots. Both stages are
        interpolated to the pixels first; the nugget (what neighbouring spots do not share) is drawn for each pixel.
    layer, input
        Where the expression is, and what it is; as for :func:`stmsi.tl.predict_metabolites`.
    table_key
        The ST table.
    key_added, table_added
        Where to write (`None`: only return the draws), and the name of the table of pixels, for `raster`.
    min_genes, setup
        As for :func:`stmsi.tl.predict_metabolites`.
    show_progress_bar, copy
        `None` follows ``stmsi.settings.progress_bar``; return a changed copy instead of working in place.

    Returns
    -------
    With ``key_added=None`` a DataArray, float32, with the dimensions ``draw``, ``spot`` (or ``pixel``) and
    ``metabolite``, and the coordinate ``sample``. Otherwise `None` (the copy with ``copy=True``). On spots it writes into
    the ST table:

    - ``obsm["msi_sample_0"]``, ``obsm["msi_sample_1"]``, ...: one DataFrame spots x metabolites for each draw;
    - ``uns["msi_sample"]``: ``features``, ``params`` and ``model``.

    With `raster` it writes into the SpatialData:

    - ``tables["msi_synthetic"]``: pixels x metabolites, float32 CSR, in the layout of the MSI table (``obs``: ``sample``,
      ``row``, ``col``); ``X`` is the first draw, ``layers["draw_1"]``, ... the others;
    - ``shapes["<sample>_synthetic_pixels"]`` in the section's frame.

    Raises
    ------
    ValueError
        Fewer than one draw, a model without held-out residuals, a pixel size that is not positive, `raster` on an AnnData
        without ``key_added=None``, or a `key_added` that would replace something else.
    KeyError
        No positions, or a field that the model uses is not there.

    References
    ----------
    .. [Goulard1992] Goulard & Voltz, Mathematical Geology 24 (1992) 269-286.
    .. [Katzfuss2021] Katzfuss & Guinness, Statistical Science 36 (2021) 124-141.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> draws = stmsi.tl.sample_metabolites(sdata, "ridge", 3, rng=0, key_added=None, show_progress_bar=False)
    >>> dict(draws.sizes)
    {'draw': 3, 'spot': 344, 'metabolite': 12}
    """
    _check(data, n_samples, raster, key_added)
    check_share(min_genes, "min_genes")
    adata = get_table(data, table_key)
    if key_added is not None:
        own_view(adata)
        _check_target(data, adata, key_added if raster is None else table_added, table=raster is not None)
    random = np.random.default_rng(rng)
    fitted = obtain_model(model, adata, setup_on(adata, setup, layer, input), show_progress_bar)
    # data that the model was just trained on were looked at for training
    known = fitted.state.setup.input if is_named(model) and input is None else input
    state, ids = fitted.state, pd.Index(wanted_metabolites(fitted, metabolites))
    copula = fitted._copula(ids)
    spots = fitted._query_spots(adata, min_genes, layer=layer, input=known)
    if (spatial or raster is not None) and spots.xy is None:
        msg = (
            f"The spots have no positions in obsm[{Key.obsm.SPATIAL!r}], along which residuals hang together; write them "
            "there (micrometres), or pass spatial=False."
        )
        raise KeyError(msg)
    columns = state.metabolites.get_indexer(ids)
    probability, intensity = (np.asarray(v, dtype=np.float32)[:, columns] for v in fitted._stages(spots))
    sample = np.full(len(spots), "") if spots.sample is None else spots.sample
    places = Places(list(spots.names), spots.xy, sample.astype(str), probability, intensity)
    if raster is not None:
        places = on_raster(places, float(raster))
    number = np.unique(places.sample, return_inverse=True)[1]
    drawn = copula.draw(places.probability, places.intensity, places.xy, number, n_samples, random, spatial=spatial)
    if key_added is None:
        return _as_array(drawn, places, ids, n_samples)
    out = copy_of(data) if copy else data
    params: dict[str, Any] = {"n_samples": n_samples, "spatial": spatial, "min_genes": min_genes}
    params |= {key: value for key, value in (("layer", layer), ("input", input)) if value is not None}
    record = {"params": params, "model": model_record(fitted)}
    features = state.feature_table.iloc[columns]
    if raster is not None:
        write_pixels(out, drawn, places, features, float(raster), record, table_added)
        return out if copy else None
    target = get_table(out, table_key)
    frames = [pd.DataFrame(values, index=target.obs_names, columns=ids) for values in drawn]
    for key in _draws(target, key_added):
        del target.obsm[key]
    for i, frame in enumerate(frames):
        target.obsm[Key.draw_of(key_added, i)] = frame
    target.uns[key_added] = {**record, "features": features.copy()}
    return out if copy else None


def _check(data: object, n_samples: int, raster: float | None, key_added: str | None) -> None:
    if not isinstance(n_samples, int | np.integer) or n_samples < 1:
        msg = f"n_samples is a whole number of at least 1, found {n_samples!r}."
        raise ValueError(msg)
    if raster is None:
        return
    if not (np.isfinite(raster) and raster > 0):
        msg = f"raster is the side of a pixel in micrometres, above 0, found {raster!r}."
        raise ValueError(msg)
    if key_added is not None and not is_spatialdata(data):
        msg = (
            "A raster is a table of its own, for which an AnnData has no place; pass the SpatialData or key_added=None."
        )
        raise ValueError(msg)


def _check_target(data: Any, adata: AnnData, key: str, *, table: bool) -> None:
    """Refuse to write draws over anything but earlier draws."""
    check_key(key, "table_added" if table else "key_added")
    if table:
        earlier = key in data.tables and "params" in data.tables[key].uns.get(Key.obsm.SAMPLE, {})
        if key in data.tables and not earlier:
            msg = f"table_added={key!r} would replace a table that holds no draws; choose another name."
            raise ValueError(msg)
        return
    record = adata.uns.get(key)
    earlier = isinstance(record, Mapping) and "n_samples" in record.get("params", {})
    if not earlier and (record is not None or _draws(adata, key)):
        msg = f"key_added={key!r} would replace uns[{key!r}] or obsm fields that are no draws; choose another name."
        raise ValueError(msg)


def _draws(adata: AnnData, key: str) -> list[str]:
    """Keys of earlier draws."""
    start = Key.draw_of(key, 0)[:-1]
    return [k for k in adata.obsm if k.startswith(start) and k.removeprefix(start).isdigit()]


def _as_array(drawn: Any, places: Places, ids: pd.Index, n_samples: int) -> xr.DataArray:
    """All draws in one array."""
    import xarray as xr

    values = np.empty((n_samples, len(places.names), len(ids)), np.float32)
    for i, draw in enumerate(drawn):
        values[i] = draw
    place = "spot" if places.row is None else "pixel"
    coords: dict[str, Any] = {place: places.names, "metabolite": [str(m) for m in ids]}
    coords[Key.obs.SAMPLE] = place, places.sample
    if places.row is not None:
        assert places.xy is not None
        x, y = places.xy.T
        coords |= {Key.obs.ROW: (place, places.row), Key.obs.COL: (place, places.col), "x": (place, x), "y": (place, y)}
    return xr.DataArray(values, dims=("draw", place, "metabolite"), coords=coords, name="intensity")
