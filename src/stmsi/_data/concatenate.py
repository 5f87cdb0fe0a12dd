"""One table from those of several sections; ions of different lists are the same by their name or by their m/z."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.chemistry.ion_matching import compatible, match_ions
from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.sections import feature_frame, filled_text, link_table
from stmsi._data.tables import as_csr, instances, layer_names, require_sample, sample_names
from stmsi._settings import logger

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from anndata import AnnData

_MZ_TOLERANCE = 20e-6
"""Relative m/z difference above which one name means two different ions."""
_UNKNOWN = "unknown"
"""Polarity of a file that does not tell it."""


def concat_st(tables: list[AnnData], join: str) -> AnnData:
    """Spots x genes of all sections; `join` of genes is ``"inner"`` or ``"outer"`` (missing counts are 0)."""
    tables = [_with_own_keys(t) for t in tables]
    _keep_shared_layers(tables, "ST")
    if not set.intersection(*(set(t.var_names) for t in tables)):
        msg = (
            "The ST sections share no gene. First names of each: "
            f"{'; '.join(listing(t.var_names[:3]) for t in tables)}. Use one kind of id (symbols or Ensembl) in all."
        )
        raise ValueError(msg)
    if not pd.Index(np.concatenate([t.obs_names for t in tables])).is_unique:  # 10x barcodes repeat in every section
        for t in tables:
            t.obs_names = [f"{s}_{n}" for s, n in zip(require_sample(t, Key.obs.SAMPLE), t.obs_names, strict=True)]
    return _relinked(ad.concat(tables, join=join, merge="first", uns_merge="first", fill_value=0))


def concat_msi(tables: list[AnnData], mz_tolerance: float | None) -> AnnData:
    """Pixels x ions of all sections; `mz_tolerance` in ppm, `None`: ions are matched by name."""
    tables = [_with_own_keys(t) for t in tables]
    _keep_shared_layers(tables, "MSI")
    _check_normalised_alike(tables)
    _match_ions(tables, mz_tolerance)
    var = tables[0].var
    for t in tables[1:]:
        shared = var.index.intersection(t.var_names)
        mz, other = var.loc[shared, Key.var.MZ], t.var.loc[shared, Key.var.MZ]
        apart = shared[((mz - other).abs() > _MZ_TOLERANCE * mz).to_numpy()]
        if mz_tolerance is None and len(apart):
            msg = (
                f"Ions with the same name have different m/z in different sections: {listing(apart)}. "
                "Rename them, read all sections with one list of m/z, or match ions by m/z (mz_tolerance=)."
            )
            raise ValueError(msg)
        var = var.combine_first(t.var).loc[var.index.union(t.var_names, sort=False)]
    sections = [(t, s) for t in tables for s in sample_names(t)]
    measured = {
        s: _noted(t, Key.varm.MEASURED, s, True).astype(bool).reindex(var.index, fill_value=False) for t, s in sections
    }
    section_mz = {s: _noted(t, Key.varm.SECTION_MZ, s, t.var[Key.var.MZ]).reindex(var.index) for t, s in sections}
    attrs = {k: v for t in tables for k, v in t.uns.get(Key.uns.MSI, {}).get("attrs", {}).items()}
    merged = ad.concat(tables, join="outer", fill_value=0, merge="unique", uns_merge="unique")[:, var.index].copy()
    merged.var = feature_frame(var)  # columns that some sections lack have gaps now
    merged.varm[Key.varm.MEASURED] = pd.DataFrame(measured)
    merged.varm[Key.varm.SECTION_MZ] = pd.DataFrame(section_mz).where(merged.varm[Key.varm.MEASURED])
    merged.uns[Key.uns.MSI] = {"attrs": attrs}
    return _relinked(merged)


def _with_own_keys(table: AnnData) -> AnnData:
    """A copy whose annotated element and instance stand in the columns of the data model, and with sparse X."""
    from spatialdata.models import TableModel

    table = table.copy()
    attrs = table.uns[TableModel.ATTRS_KEY]
    table.obs[Key.obs.REGION] = table.obs[attrs[TableModel.REGION_KEY_KEY]].astype(str)
    table.obs[Key.obs.INSTANCE] = instances(table)
    table.X = as_csr(table.X)
    return table


def _relinked(table: AnnData) -> AnnData:
    """A concatenated table that annotates the elements of all sections."""
    table.X = sp.csr_matrix(table.X)
    for key in (Key.obs.REGION, Key.obs.SAMPLE):
        table.obs[key] = table.obs[key].astype("category")
    link_table(table)
    return table


def _keep_shared_layers(tables: list[AnnData], what: str) -> None:
    """Drop layers that some sections lack, which a concatenation would fill with zeros that nobody measured."""
    layers: list[set[object]] = [set(layer_names(t)) for t in tables]
    lost = sorted(map(str, set.union(*layers) - set.intersection(*layers)))
    if lost:
        logger.warning("Layers that only some %s sections have are left out: %s", what, listing(lost))
    for table in tables:
        for key in lost:
            table.layers.pop(key, None)


def _check_normalised_alike(tables: list[AnnData]) -> None:
    """Refuse to put intensities on different scales into one matrix."""
    params = [t.uns.get(Key.uns.NORMALIZE, {}).get("params") for t in tables]
    if any(str(p) != str(params[0]) for p in params):
        names = [", ".join(sample_names(t)) for t in tables]
        found = "; ".join(f"{n}: {'as measured' if p is None else p}" for n, p in zip(names, params, strict=True))
        msg = (
            f"The MSI sections were normalised differently ({found}). Combine the sections as measured (their "
            'layers["raw"], where it is kept) and call stmsi.pp.normalize_msi on the whole.'
        )
        raise ValueError(msg)


def _noted(table: AnnData, key: str, sample: str, default: Any) -> pd.Series:
    """What an earlier combination noted of the ions of a section in ``varm[key]``, else `default`."""
    known = table.varm.get(key)
    own = known[sample] if isinstance(known, pd.DataFrame) and sample in known else pd.Series(default, table.var_names)
    return own.set_axis(table.var_names)


def _match_ions(tables: list[AnnData], ppm: float | None) -> None:
    """Give ions of several sections that are the same one id, and those that are not, different ones.

    Ids are made section by section, and two names can have the same one: ``18:1/16:0`` and ``18:1_16:0``.
    """
    names = [_names(t.var) for t in tables]
    groups: Sequence[Sequence[Hashable]] = names if ppm is None else _groups_by_mz(tables, names, ppm)
    first: dict[Hashable, str] = {}
    for table, own in zip(tables, groups, strict=True):
        for group, ion in zip(own, table.var_names, strict=True):
            first.setdefault(group, str(ion))
    ids = dict(zip(first, safe_ids(first.values()), strict=True))
    for table, own in zip(tables, groups, strict=True):
        table.var_names = [ids[group] for group in own]


def _names(var: pd.DataFrame) -> list[str]:
    """The name of each ion of a section, or its id where two (isomers) have one name."""
    name = var[Key.var.NAME].astype(str)
    return [i if twice else n for i, n, twice in zip(var.index, name, name.duplicated(keep=False), strict=True)]


def _groups_by_mz(tables: list[AnnData], names: list[list[str]], ppm: float) -> list[list[int]]:
    """Number of each ion's group by m/z; raises where joining two ions would be a guess."""
    mz = [t.var[Key.var.MZ].to_numpy(dtype=np.float64) for t in tables]
    kinds = [_kinds(t) for t in tables]
    groups, ties = match_ions(mz, kinds, names, ppm)
    if ties:
        (a, i), (b, j), (c, k) = ties[0]
        one, other = (", ".join(sample_names(tables[t])) for t in (a, b))
        msg = (
            f"Ion {names[a][i]!r} of {one} (m/z {mz[a][i]:.5f}) is as near to {names[b][j]!r} ({mz[b][j]:.5f}) as to "
            f"{names[c][k]!r} ({mz[c][k]:.5f}) of {other}, within {ppm:g} ppm ({len(ties)} such cases). Lower "
            "mz_tolerance, merge the two ions, or give the ones that are the same the same name."
        )
        raise ValueError(msg)
    named: dict[str, dict[int, tuple[str, ...]]] = {}
    for kind, own, group in zip(kinds, names, groups, strict=True):
        for ion_kind, name, g in zip(kind, own, group.tolist(), strict=True):
            named.setdefault(name, {}).setdefault(g, ion_kind)
    # two adducts of one molecule may share its name
    torn = [name for name, own in named.items() if any(compatible(a, b) for a, b in combinations(own.values(), 2))]
    if torn:
        msg = (
            f"Ions with the same name have m/z that differ by more than {ppm:g} ppm: {listing(torn)}. Raise mz_tolerance, "
            "recalibrate the sections, or rename the ions."
        )
        raise ValueError(msg)
    return [group.tolist() for group in groups]


def _kinds(table: AnnData) -> list[tuple[str, ...]]:
    """Adduct, formula and polarity of each ion, empty where unknown: ions that differ in them are not the same."""
    attrs = table.uns.get(Key.uns.MSI, {}).get("attrs", {})
    stated = {str(attrs.get(s, {}).get("polarity", _UNKNOWN)) for s in sample_names(table)}
    polarity = stated.pop() if len(stated) == 1 and stated != {_UNKNOWN} else ""
    columns = [
        filled_text(table.var[c]) if c in table.var else [""] * table.n_vars for c in (Key.var.ADDUCT, Key.var.FORMULA)
    ]
    return [(*kind, polarity) for kind in zip(*columns, strict=True)]
