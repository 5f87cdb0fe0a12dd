"""Synthetic sections: draws from a fitted model that look like measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from stmsi._core.spatial.sections import spacing
from stmsi._data.checks import check_key, check_share, is_spatialdata, refuse_view
from stmsi._data.keys import Key
from stmsi._data.tables import copy_of, get_table, require_metabolites
from stmsi.model.shared._hurdle_model import MIN_GENES, HurdleModel
from stmsi.tl._predict_metabolites import _obtain, _plain

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_NEAREST = 4
"""Spots from which the maps are interpolated to a pixel."""
_REACH = 0.6
"""A pixel belongs to the tissue if a spot is nearer than this, in units of the distance between spots: on a hexagon the
corners of a spot's cell lie at 0.58."""


@dataclass(frozen=True)
class _Places:
    """Where to draw: names, positions, sections, and both stages there."""

    names: list[str]
    xy: NDArray[np.float64] | None
    sample: NDArray[Any]
    probability: NDArray[np.float32]
    intensity: NDArray[np.float32]
    row: NDArray[np.int64] | None = None
    col: NDArray[np.int64] | None = None


def sample_metabolites(
    data: SpatialData | AnnData,
    model: HurdleModel | str | Path | Mapping[str, Any],
    n_samples: int = 1,
    *,
    rng: int | np.random.Generator | None = None,
    spatial: bool = True,
    metabolites: str | Sequence[str] | None = None,
    raster: float | None = None,
    table_key: str = Key.table.ST,
    key_added: str | None = Key.obsm.SAMPLE,
    table_added: str = Key.table.SYNTHETIC,
    min_genes: float = MIN_GENES,
    setup: Mapping[str, Any] | None = None,
    show_progress_bar: bool | None = None,
    copy: bool = False,
) -> SpatialData | AnnData | xr.DataArray | None:
    r"""Draw synthetic metabolite layers for measured or new sections.

    A prediction is a mean, and smoother than any measurement. A draw adds what the model does not know, with the structure
    that it has: residuals of held-out training spots are alike in neighbouring spots, in spots of one section, and in
    related metabolites.

    The value of a spot has the distribution :math:`F(y) = 1 - p + p\,G(y)`: present with the calibrated probability
    :math:`p`, then with the distribution :math:`G` of the intensity, which is the prediction plus the quantiles of
    held-out residuals of spots with a like prediction. A Gaussian field :math:`z` (one for each metabolite) picks the
    quantile: absent where :math:`\Phi(z) < 1 - p`, else :math:`G^{-1}((\Phi(z) - 1 + p)/p)`. The margins are therefore
    those of the model, whatever the correlation. The covariance of :math:`z` is a linear model of coregionalization
    [Goulard1992]_ with a nugget, three Matern structures and one for the whole section, each with its own correlation
    between metabolites (20 factors, and what each metabolite has for itself), fitted to normal scores of held-out
    residuals; scores of absent metabolites are drawn below their limit, given neighbours and other metabolites. Fields
    are drawn with Vecchia's approximation [Katzfuss2021]_, at a cost that is linear in the number of spots.

    Parameters
    ----------
    data
        ST section(s), with or without MSI. SpatialData, or AnnData of spots x genes with raw counts.
    model
        A trained model, the folder of a saved one, or the name of a family, which is then trained on the spots of `data`
        with MSI.
    n_samples
        Number of draws.
    rng
        Seed or generator. The first draws of a seed do not depend on `n_samples`.
    spatial
        `False`: spots are drawn independently of each other, metabolites of a spot are not.
    metabolites
        Ids or readable names; `None`: all that the model predicts.
    raster
        Side of a pixel in micrometres: draw on a raster over the tissue instead of on the spots. Both stages are
        interpolated to the pixels first; the nugget (what neighbouring spots do not share) is drawn for each pixel.
    table_key
        The ST table.
    key_added
        Where to write; `None`: write nothing and return the draws.
    table_added
        Name of the table of pixels, for `raster`.
    min_genes
        Share of the training genes that must be in the data.
    setup
        Fields for ``setup_anndata`` when training by name, as for :func:`stmsi.tl.predict_metabolites`.
    show_progress_bar
        For models that are trained here; `None` follows ``stmsi.settings.progress_bar``.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    With ``key_added=None`` a DataArray, float32, with the dimensions ``draw``, ``spot`` (or ``pixel``) and
    ``metabolite``, and the coordinate ``sample``. Otherwise `None` (the copy with ``copy=True``). On spots it writes into
    the ST table:

    - ``obsm["msi_sample_0"]``, ``obsm["msi_sample_1"]``, ...: one DataFrame spots x metabolites for each draw;
    - ``uns["msi_sample"]``: ``features``, ``params`` and ``model``.

    ``stmsi.get.as_table(sdata, key="msi_sample_0", key_added="msi_synthetic")`` makes a table of a draw. With `raster` it
    writes into the SpatialData:

    - ``tables["msi_synthetic"]``: pixels x metabolites, float32 CSR, in the layout of the MSI table (``obs``: ``sample``,
      ``row``, ``col``); ``X`` is the first draw, ``layers["draw_1"]``, ... the others;
    - ``shapes["<sample>_synthetic_pixels"]`` in the section's frame.

    ``stmsi.io.write_imzml(sdata, path, table_key="msi_synthetic", sample=..., pixel_size=...)`` writes it as imzML.

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
        refuse_view(adata)
        _check_target(data, adata, key_added if raster is None else table_added, table=raster is not None)
    random = np.random.default_rng(rng)
    fitted = model if isinstance(model, HurdleModel) else _obtain(model, adata, setup, show_progress_bar)
    state = fitted.state
    ids = state.metabolites
    if metabolites is not None:
        names = [metabolites] if isinstance(metabolites, str) else list(metabolites)
        ids = pd.Index(require_metabolites(names, ids, state.feature_table.get(Key.var.NAME)))
    copula = fitted._copula(ids)
    spots = fitted._query_spots(adata, min_genes)
    if (spatial or raster is not None) and spots.xy is None:
        msg = (
            f"The spots have no positions in obsm[{Key.obsm.SPATIAL!r}], along which residuals hang together; write them "
            "there (micrometres), or pass spatial=False."
        )
        raise KeyError(msg)
    columns = state.metabolites.get_indexer(ids)
    probability, intensity = (np.asarray(v, dtype=np.float32)[:, columns] for v in fitted._stages(spots))
    sample = np.full(len(spots), "", dtype=object) if spots.sample is None else spots.sample.astype(str).astype(object)
    places = _Places(list(spots.names), spots.xy, sample, probability, intensity)
    if raster is not None:
        places = _on_raster(places, float(raster))
    number = np.unique(places.sample.astype(str), return_inverse=True)[1]
    drawn = copula.draw(
        places.probability, places.intensity, places.xy, number, n_samples, random, spatial=spatial
    )  # fmt: skip
    if key_added is None:
        return _as_array(drawn, places, ids, n_samples)
    out = copy_of(data) if copy else data
    params = {"n_samples": n_samples, "spatial": spatial, "min_genes": min_genes}
    record = {
        "params": params,
        "model": {"class": type(fitted).__name__, "stmsi": version("stmsi"), "params": _plain(fitted._params())},
    }
    features = state.feature_table.iloc[columns]
    if raster is not None:
        _write_pixels(out, drawn, places, features, float(raster), record, table_added)
        return out if copy else None
    target = get_table(out, table_key)
    frames = {
        Key.draw_of(key_added, i): pd.DataFrame(values, index=target.obs_names, columns=ids)
        for i, values in enumerate(drawn)
    }
    for key in _draws(target, key_added):
        del target.obsm[key]
    for key, frame in frames.items():
        target.obsm[key] = frame
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


def _as_array(drawn: Any, places: _Places, ids: pd.Index, n_samples: int) -> xr.DataArray:
    """All draws in one array."""
    import xarray as xr

    values = np.empty((n_samples, len(places.names), len(ids)), np.float32)
    for i, draw in enumerate(drawn):
        values[i] = draw
    place = "spot" if places.row is None else "pixel"
    coords: dict[str, Any] = {
        place: places.names,
        "metabolite": [str(m) for m in ids],
        Key.obs.SAMPLE: (place, places.sample.astype(str)),
    }
    if places.row is not None:
        assert places.xy is not None
        coords |= {
            Key.obs.ROW: (place, places.row),
            Key.obs.COL: (place, places.col),
            "x": (place, places.xy[:, 0]),
            "y": (place, places.xy[:, 1]),
        }
    return xr.DataArray(values, dims=("draw", place, "metabolite"), coords=coords, name="intensity")


def _on_raster(spots: _Places, size: float) -> _Places:
    """Pixels over the spots of each section, with both stages interpolated."""
    assert spots.xy is not None
    number = np.unique(spots.sample.astype(str), return_inverse=True)[1]
    pitch = spacing(spots.xy, number)
    if not np.isfinite(pitch):
        msg = "No section has two spots at different positions, between which a raster could be laid."
        raise ValueError(msg)
    parts: list[tuple[Any, ...]] = []
    for s in np.unique(number):
        own = np.flatnonzero(number == s)
        low = spots.xy[own].min(axis=0) - _REACH * pitch
        n_col, n_row = np.ceil((spots.xy[own].max(axis=0) + _REACH * pitch - low) / size).astype(int)
        row, col = (v.ravel() for v in np.indices((n_row, n_col)))
        xy = low + (np.column_stack([col, row]) + 0.5) * size
        k = min(_NEAREST, len(own))
        distance, at = KDTree(spots.xy[own]).query(xy, k=np.arange(1, k + 1))
        keep = distance[:, 0] <= max(_REACH * pitch, size / 2)
        weight = 1 / np.maximum(distance[keep], 0.05 * pitch) ** 2
        weight = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
        at = own[at[keep]]
        stages = [sum(weight[:, [i]] * v[at[:, i]] for i in range(k)) for v in (spots.probability, spots.intensity)]
        name = spots.sample[own[0]]
        parts.append((xy[keep], np.full(int(keep.sum()), name, dtype=object), *stages, row[keep], col[keep]))
    xy, sample, probability, intensity, row, col = (np.concatenate(v) for v in zip(*parts, strict=True))
    names = [f"{s}_{r}_{c}" for s, r, c in zip(sample, row, col, strict=True)]
    return _Places(names, xy, sample, probability, intensity, row, col)


def _write_pixels(
    sdata: Any,
    drawn: Any,
    places: _Places,
    features: pd.DataFrame,
    size: float,
    record: dict[str, Any],
    table_added: str,
) -> None:
    """The table of pixels and its squares."""
    import geopandas as gpd
    import scipy.sparse as sp
    import shapely
    from anndata import AnnData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    assert places.xy is not None
    draws = [sp.csr_matrix(values) for values in drawn]
    obs = pd.DataFrame(
        {Key.obs.SAMPLE: pd.Categorical(places.sample.astype(str)), Key.obs.ROW: places.row, Key.obs.COL: places.col},
        index=pd.Index(places.names),
    )
    table = AnnData(
        draws[0], obs=obs, var=features.copy(), layers={f"draw_{i}": d for i, d in enumerate(draws) if i > 0}
    )
    table.obsm[Key.obsm.SPATIAL] = places.xy
    shapes, names = {}, list(dict.fromkeys(places.sample.astype(str)))
    instance = np.empty(len(obs), np.int64)
    for name in names:
        own = np.flatnonzero(places.sample.astype(str) == name)
        x, y = (places.xy[own] - size / 2).T
        squares = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + size, y + size))
        shapes[Key.synthetic_pixels(name)] = ShapesModel.parse(
            squares, transformations={Key.st_frame(name): Identity()}
        )
        instance[own] = np.arange(len(own))
    table.obs[Key.obs.REGION] = pd.Categorical([Key.synthetic_pixels(s) for s in places.sample.astype(str)])
    table.obs[Key.obs.INSTANCE] = instance
    table.uns[Key.uns.MSI] = {
        "attrs": {name: {"pixel_size": np.array([size, size]), "synthetic": True} for name in names}
    }
    table.uns[Key.obsm.SAMPLE] = record
    table = TableModel.parse(
        table, region=list(shapes), region_key=Key.obs.REGION, instance_key=Key.obs.INSTANCE
    )  # fmt: skip
    if table_added in sdata.tables:
        del sdata.tables[table_added]
    for name, element in shapes.items():
        if name in sdata.shapes:
            del sdata.shapes[name]
        sdata.shapes[name] = element
    sdata.tables[table_added] = table
