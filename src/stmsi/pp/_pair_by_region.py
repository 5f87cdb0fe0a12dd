"""Pairs of regions: genes and metabolites of different animals that carry the same labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.learning.stored_expression import stored_kinds
from stmsi._core.mapping.group_means import group_means, membership
from stmsi._data.checks import (
    check_choice,
    check_nonnegative,
    check_share,
    is_spatialdata,
    listing,
    require_rows,
    require_unique,
)
from stmsi._data.concatenate import concat_msi, concat_st
from stmsi._data.keys import Key
from stmsi._data.sections import feature_frame
from stmsi._data.tables import as_csr, get_table, layer_names, require_obs, require_sample, values_of
from stmsi._settings import logger
from stmsi.pp._msi_table import measured_ions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    Sections: TypeAlias = SpatialData | AnnData | Iterable[SpatialData]

Match = Literal["mean", "same"]
_FEWEST = 3
"""Shared regions without which nothing can be learnt: two always lie on a line."""


def pair_by_region(
    st: Sections,
    msi: Sections,
    *,
    region_key: str = "region",
    msi_region_key: str | None = None,
    match: Match = "mean",
    min_spots: int = 10,
    min_pixels: int = 10,
    min_detected: float = 0.05,
    layer: str | None = None,
    msi_layer: str | None = None,
    mz_tolerance: float | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
) -> AnnData:
    """Pair ST and MSI of different animals by the regions of an atlas that both are annotated with.

    One observation is a region of an ST section: the summed counts of its spots (pseudo-bulk) and the mean intensities of the
    same region in MSI. Sections need not be aligned, nor come from one animal. **Such pairs show correlations between
    regions. They hold no truth at single spots**: a model trained on them has never seen how genes and metabolites vary within
    a region, and its predictions for spots cannot be checked with them.

    Several animals: with ``match="mean"`` each region of each ST section is paired with the mean over all MSI sections that hold
    the region, each of which counts once. The ST sections then share their targets. They are replicates of the genes and not
    of the metabolites, and an honest split leaves out **regions**:
    ``stmsi.model_selection.LeaveOneSampleOut(sample_key=region_key)``. With ``match="same"`` a region is paired with that of
    the MSI section of the same name, for serial sections of one animal that are not aligned; leave out sections as usual. To
    pool the sections of an animal first, name its column on both sides: ``sample_key="animal"``.

    Parameters
    ----------
    st
        ST with raw counts: AnnData, SpatialData, or several SpatialData (genes that all of them have). Sparse, dense, dask.
    msi
        MSI, the same; may be the same SpatialData. Ions that a section did not measure do not count there. Normalise first,
        with :func:`stmsi.pp.normalize_msi`: sections of different animals have different scales.
    region_key, msi_region_key
        Columns of ``obs`` with the labels of the regions, in ST and in MSI (`None`: the same). Labels must be written alike.
        In a table of a SpatialData, ``"region"`` is taken: it names the element that the table annotates.
    match
        Which MSI a region is paired with, as above.
    min_spots, min_pixels
        A region of fewer spots in an ST section, or fewer pixels in an MSI section, is left out there.
    min_detected
        Share of the pixels of a region in which an ion must be above 0 to be present there.
    layer, msi_layer
        Layers with the counts and the intensities; `None`: ``X``.
    mz_tolerance
        Which ions of several SpatialData are the same, as in :func:`stmsi.pp.combine`.
    sample_key
        Column of ``obs`` with the section (or the animal), in ST and in MSI.
    table_key, msi_table_key
        The ST and the MSI table of SpatialData.

    Returns
    -------
    AnnData of regions x genes, one observation per region and ST section that have a partner. The inputs are not changed.

    - ``X``: summed counts, float32 CSR: models normalise it as they do counts of spots;
    - ``obsm["msi"]``: mean intensity of the region, float32; NaN where no MSI section measured the ion;
    - ``obsm["msi_presence"]``: 1 where the ion is above 0 in the share `min_detected` of the pixels (mean over MSI sections),
      0 elsewhere, NaN where it was not measured;
    - ``obs``: ``sample`` (the ST section), the region under the name `region_key`, ``n_spots``, ``msi_n_pixels``,
      ``msi_n_sections`` (MSI sections in the mean) and, if it is known of the spots, ``patient``;
    - ``uns["msi"]``: ``features``, ``params`` and ``presence``, as :func:`stmsi.pp.map_to_spots` and
      :func:`stmsi.pp.call_presence` write them.

    There are no positions: nothing that asks for neighbours applies.

    Raises
    ------
    KeyError
        Tables, layers or columns are missing.
    ValueError
        Logarithms in the place of counts, which cannot be added up; fewer than three shared regions, ``"region"`` of a SpatialData, no pair of one name (``match="same"``), or counts
        and intensities that cannot be.
    TypeError
        Several sections that are not SpatialData.

    Examples
    --------
    >>> import numpy as np, pandas as pd, stmsi
    >>> from anndata import AnnData
    >>> def section(name, n, m):
    ...     obs = pd.DataFrame({"sample": name, "atlas": np.resize(["cortex", "striatum", "thalamus"], n)})
    ...     return AnnData(np.ones((n, m)), obs=obs.set_index(name + obs.index.astype(str)))
    >>> pairs = stmsi.pp.pair_by_region(section("mouse", 60, 4), section("rat", 90, 2), region_key="atlas")
    >>> pairs.obs_names.tolist()
    ['mouse_cortex', 'mouse_striatum', 'mouse_thalamus']
    >>> pairs.obs[["n_spots", "msi_n_pixels"]].iloc[0].tolist()
    [20, 30]
    """
    check_choice(match, get_args(Match), "match")
    check_share(min_detected, "min_detected")
    for name, value in (("min_spots", min_spots), ("min_pixels", min_pixels)):
        if value < 1:
            msg = f"{name} must be at least 1, found {value!r}."
            raise ValueError(msg)
    spots = _one_table(st, table_key, lambda tables: concat_st(tables, "inner"))
    pixels = _one_table(msi, msi_table_key, lambda tables: concat_msi(tables, mz_tolerance)[0])
    require_rows(spots)
    require_rows(pixels, "pixels")
    require_unique(spots.var_names, "Gene names")
    counts, intensity = as_csr(values_of(spots, layer, "ST")), as_csr(values_of(pixels, msi_layer, "MSI"))
    check_nonnegative(counts, "Gene counts")
    check_nonnegative(intensity, "MSI intensities", allow_nan=True)
    _check_counts(spots, counts, layer, sample_key)

    st_cells = _Cells.of(spots, region_key, sample_key, "spots", min_spots)
    msi_cells = _Cells.of(pixels, msi_region_key or region_key, sample_key, "pixels", min_pixels)
    _check_shared(st_cells, msi_cells)
    mean, detected = group_means(intensity, msi_cells.of_row, len(msi_cells.table))
    for section in dict.fromkeys(msi_cells.table["sample"]):
        rows = np.flatnonzero(msi_cells.table["sample"] == section)
        for values in (mean, detected):
            values[np.ix_(rows, ~measured_ions(pixels, section))] = np.nan

    partners = _partners(st_cells.table, msi_cells.table, match)
    kept = np.flatnonzero(np.diff(partners.indptr) > 0)
    if len(kept) == 0:
        own, other = (listing(dict.fromkeys(cells.table["sample"])) for cells in (st_cells, msi_cells))
        msg = (
            f"match='same' pairs sections of one name, and none have a region in common: ST {own}, MSI {other}. Rename "
            "them, or pair different animals with match='mean'."
        )
        raise ValueError(msg)
    if len(kept) < len(st_cells.table):
        logger.info("%d regions of ST sections have no MSI and are left out.", len(st_cells.table) - len(kept))
    partners = partners[kept]
    features = feature_frame(pixels.var)

    def over_sections(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over the MSI sections of each pair, NaN where none measured the ion."""
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return (partners @ np.where(known, values, 0.0)) / (partners @ known.astype(np.float64))

    share = over_sections(detected)
    out = AnnData(
        sp.csr_matrix(membership(st_cells.of_row, len(st_cells.table))[kept] @ counts, dtype=np.float32),
        obs=_obs(st_cells.table.iloc[kept], partners, msi_cells.table, region_key),
        var=spots.var.copy(),
    )
    patient = _constant(spots, Key.obs.PATIENT, st_cells)
    if patient is not None:
        out.obs[Key.obs.PATIENT] = pd.Categorical(patient[kept])
    for key, values in (
        (Key.obsm.MSI, over_sections(mean)),
        (Key.obsm.PRESENCE, np.where(np.isnan(share), np.nan, (share > 0) & (share >= min_detected))),
    ):
        out.obsm[key] = pd.DataFrame(values.astype(np.float32), index=out.obs_names, columns=features.index)
    params: dict[str, Any] = {
        "method": "regions", "agg": "mean", "region_key": region_key, "match": match, "min_spots": min_spots,
        "min_pixels": min_pixels, "min_detected": min_detected, "layer": msi_layer or "X",
        "sections": np.array(list(dict.fromkeys(msi_cells.table["sample"])), dtype=object),
    }  # fmt: skip
    if Key.uns.NORMALIZE in pixels.uns:
        params["normalize_msi"] = dict(pixels.uns[Key.uns.NORMALIZE]["params"])
    source = dict.fromkeys(dict.fromkeys(out.obs[Key.obs.SAMPLE].astype(str)), "pixels")
    out.uns[Key.uns.MSI] = {
        "features": features, "params": params, "presence": {"method": "detected", "source": source},
    }  # fmt: skip
    if Key.varm.SECTION_MZ in pixels.varm:
        out.uns[Key.uns.MSI][Key.varm.SECTION_MZ] = pixels.varm[Key.varm.SECTION_MZ].set_axis(features.index)
    return out


def _check_counts(spots: AnnData, counts: sp.csr_matrix, layer: str | None, sample_key: str) -> None:
    """Refuse logarithms, whose sums over a region are no pseudo-bulk; tell numbers that are not whole."""
    code, names = pd.factorize(pd.Series(require_sample(spots, sample_key)).astype(str))
    kinds = stored_kinds(counts, code.astype(np.int64), len(names))
    logs = [name for name, kind in zip(names, kinds, strict=True) if kind.kind == "log1p"]
    if logs:
        where = "X" if layer is None else f"layers[{layer!r}]"
        msg = (
            f"{where} of the ST table holds logarithms of normalised counts in section {listing(logs)}; regions are sums of raw counts. Name the layer "
            f"that holds counts (layer=); layers: {listing(layer_names(spots))}."
        )
        raise ValueError(msg)
    if (counts.data != np.round(counts.data)).any():
        logger.warning(
            "Gene counts are not whole numbers; sums over regions are meant for raw counts, not for logarithms (layer=)."
        )


def _one_table(data: Sections, key: str, concat: Callable[[list[AnnData]], AnnData]) -> AnnData:
    """The table of one object, or of several SpatialData together."""
    if isinstance(data, AnnData) or is_spatialdata(data):
        return get_table(data, key)  # type: ignore[arg-type]
    parts = list(data) if isinstance(data, Iterable) and not isinstance(data, str) else [data]
    if not parts or not all(is_spatialdata(part) for part in parts):
        found = listing(dict.fromkeys(type(part).__name__ for part in parts))
        msg = (
            f"Expected an AnnData, a SpatialData or several SpatialData, found {found}. Put several AnnData into one with "
            f"anndata.concat, and name their sections in obs[{Key.obs.SAMPLE!r}]."
        )
        raise TypeError(msg)
    return concat([get_table(part, key) for part in parts])


@dataclass(frozen=True)
class _Cells:
    """Regions of sections that are large enough: columns ``sample``, ``region`` and ``n``, and the cell of each row, or -1."""

    what: str
    table: pd.DataFrame
    of_row: NDArray[np.int64]
    small: list[str]  # regions that no section has enough of

    @classmethod
    def of(cls, adata: AnnData, region_key: str, sample_key: str, what: str, fewest: int) -> _Cells:
        """Read labels; rows without one belong to no region."""
        attrs = adata.uns.get("spatialdata_attrs", {})
        if attrs.get("region_key") == region_key:
            labels = [c for c in adata.obs.select_dtypes(exclude="number") if c not in (region_key, sample_key)]
            msg = (
                f"obs[{region_key!r}] of the table of {what} names the element that it annotates in a SpatialData, not a "
                f"region of the tissue. Pass the column with the labels of the atlas as region_key=; found {listing(labels)}."
            )
            raise ValueError(msg)
        label = require_obs(
            adata, region_key, "It names the region of the atlas that each belongs to; pass region_key=."
        )
        text = label.astype(object).where(label.notna(), "").astype(str).str.strip()
        sample = require_sample(adata, sample_key)
        known = (text != "").to_numpy()
        rows = pd.DataFrame({"sample": sample, "region": text.to_numpy(object)})
        n = rows[known].groupby(["sample", "region"], sort=False).size().rename("n").reset_index()
        table = n[n["n"] >= fewest].reset_index(drop=True)
        small = [r for r in dict.fromkeys(n["region"]) if r not in set(table["region"])]
        cell = pd.MultiIndex.from_frame(table[["sample", "region"]]).get_indexer(pd.MultiIndex.from_frame(rows))
        if (~known).any():
            logger.info("%d of %d %s have no region and are left out.", (~known).sum(), len(rows), what)
        return cls(what, table, np.where(known, cell, -1).astype(np.int64), small)

    @property
    def regions(self) -> list[str]:
        """Names of the regions, in order of appearance."""
        return list(dict.fromkeys(self.table["region"]))


def _check_shared(st: _Cells, msi: _Cells) -> None:
    """Tell which regions have no partner, and refuse too few pairs."""
    shared = [r for r in st.regions if r in set(msi.regions)]
    lonely = [[r for r in cells.regions if r not in shared] for cells in (st, msi)]
    notes = []
    alike = {_plain(r): r for r in lonely[1]}
    if close := [f"{r!r} (ST) and {alike[_plain(r)]!r} (MSI)" for r in lonely[0] if _plain(r) in alike]:
        notes.append(
            f"Written differently on both sides: {'; '.join(close)}. Make them equal: "
            "msi.obs[key] = msi.obs[key].astype(str).replace({'theirs': 'ours'})."
        )
    for side, names, cells in (("ST", lonely[0], st), ("MSI", lonely[1], msi)):
        if names:
            notes.append(f"Only in {side}: {listing(names)}.")
        if cells.small:
            notes.append(f"Too few {cells.what} in every section (lower min_{cells.what}=): {listing(cells.small)}.")
    if len(shared) < _FEWEST:
        msg = (
            f"ST and MSI share {len(shared)} regions ({listing(shared)}); at least {_FEWEST} are needed to pair by region. "
            f"{' '.join(notes)}"
        )
        raise ValueError(msg.strip())
    if notes:
        logger.warning("%d regions are shared and paired. %s", len(shared), " ".join(notes))


def _plain(name: str) -> str:
    """A label without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _partners(st: pd.DataFrame, msi: pd.DataFrame, match: str) -> sp.csr_matrix:
    """Which cells of MSI each cell of ST is paired with, 1 each."""
    on = ["region"] if match == "mean" else ["sample", "region"]
    numbered = [cells.assign(row=np.arange(len(cells)))[[*on, "row"]] for cells in (st, msi)]
    pairs = numbered[0].merge(numbered[1], on=on, suffixes=("_st", "_msi"))
    shape = (len(st), len(msi))
    return sp.csr_matrix((np.ones(len(pairs)), (pairs["row_st"], pairs["row_msi"])), shape=shape)


def _obs(st: pd.DataFrame, partners: sp.csr_matrix, msi: pd.DataFrame, region_key: str) -> pd.DataFrame:
    """What is known of each pair."""
    n_pixels, _ = Key.n_pixels_of(Key.obsm.MSI)
    names = [f"{s}_{r}" for s, r in zip(st["sample"], st["region"], strict=True)]
    return pd.DataFrame(
        {
            Key.obs.SAMPLE: pd.Categorical(st["sample"].astype(str)),
            region_key: pd.Categorical(st["region"].astype(str)),
            Key.obs.N_SPOTS: st["n"].to_numpy(np.int64),
            n_pixels: np.asarray(partners @ msi["n"].to_numpy(np.float64)).astype(np.int64),
            Key.n_sections_of(Key.obsm.MSI): np.diff(partners.indptr).astype(np.int64),
        },
        index=pd.Index(names),
    )


def _constant(adata: AnnData, key: str, cells: _Cells) -> NDArray[Any] | None:
    """Value of a column in each cell, where no cell holds several."""
    if key not in adata.obs or adata.obs[key].isna().any():
        return None
    inside = cells.of_row >= 0
    groups = adata.obs[key].astype(str)[inside].groupby(cells.of_row[inside])
    return groups.first().to_numpy(object) if (groups.nunique() == 1).all() else None
