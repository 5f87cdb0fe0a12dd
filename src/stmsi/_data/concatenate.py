"""One table from those of several sections; ions of different lists are the same by their name or by their m/z."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.chemistry.ion_matching import compatible, match_ions
from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.merge_fields import concat_tables
from stmsi._data.merge_layers import join_layers
from stmsi._data.sections import feature_frame, filled_text, link_table
from stmsi._data.tables import as_csr, instances, is_dask, require_sample, sample_names
from stmsi._settings import logger

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

    from anndata import AnnData

_MZ_TOLERANCE = 20e-6
"""Relative m/z difference above which one name means two different ions."""
_FEW_GENES = 0.5
"""Share of the smallest gene list below which the shared genes are told."""
_UNKNOWN = "unknown"
"""Polarity of a file that does not tell it."""


def concat_st(tables: list[AnnData], join: Literal["inner", "outer"], renamed: Collection[str] = ()) -> AnnData:
    """Spots x genes of all sections; `join` of genes is ``"inner"`` or ``"outer"`` (missing counts are 0).

    `renamed` names sections whose ions have other ids in the whole: what was mapped from them is left out.
    """
    tables = [_with_own_keys(t) for t in tables]
    _check_genes(tables, join)
    if not pd.Index(np.concatenate([t.obs_names for t in tables])).is_unique:  # 10x barcodes repeat in every section
        for t in tables:
            t.obs_names = [f"{s}_{n}" for s, n in zip(require_sample(t, Key.obs.SAMPLE), t.obs_names, strict=True)]
    join_layers(tables, renamed)
    return _relinked(concat_tables(tables, join=join, what="ST"))


def _check_genes(tables: list[AnnData], join: str) -> None:
    """Refuse sections that share no gene, and tell where few are left."""
    shared = set.intersection(*(set(t.var_names) for t in tables))
    if not shared:
        msg = (
            "The ST sections share no gene. First names of each: "
            f"{'; '.join(listing(t.var_names[:3]) for t in tables)}. Use one kind of id (symbols or Ensembl) in all."
        )
        raise ValueError(msg)
    fewest = min(t.n_vars for t in tables)
    if len(shared) < _FEW_GENES * fewest:
        sizes = "; ".join(
            f"{', '.join(sample_names(t))}: {t.n_vars}, such as {listing(t.var_names[:2])}" for t in tables
        )
        left = "only these are kept (join='outer' keeps all)" if join == "inner" else "missing counts are 0"
        logger.warning(
            "The ST sections share %d genes, %.0f %% of the smallest list (%s); %s. Are they one species, with one kind "
            "of id?", len(shared), 100 * len(shared) / fewest, sizes, left,
        )  # fmt: skip


def concat_msi(tables: list[AnnData], mz_tolerance: float | None) -> tuple[AnnData, set[str]]:
    """Pixels x ions of all sections, and the names of those whose ions have other ids now.

    `mz_tolerance` in ppm; `None`: ions are matched by name. Where all tables are lazy, so is the whole: nothing is read.
    """
    lazy = all(is_dask(t.X) for t in tables)
    tables = [_with_own_keys(t, lazy=lazy) for t in tables]
    _check_normalised_alike(tables)
    before = [t.var_names for t in tables]
    _match_ions(tables, mz_tolerance)
    renamed = {s for t, ids in zip(tables, before, strict=True) if not t.var_names.equals(ids) for s in sample_names(t)}
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
    merged = concat_tables(tables, join="outer", what="MSI", skip=(Key.varm.MEASURED, Key.varm.SECTION_MZ))
    merged = merged[:, var.index].copy()
    merged.var = feature_frame(var)  # columns that some sections lack have gaps now
    merged.varm[Key.varm.MEASURED] = pd.DataFrame(measured)
    merged.varm[Key.varm.SECTION_MZ] = pd.DataFrame(section_mz).where(merged.varm[Key.varm.MEASURED])
    merged.uns[Key.uns.MSI] = {"attrs": attrs}
    return _relinked(merged, lazy=lazy), renamed


def _with_own_keys(table: AnnData, *, lazy: bool = False) -> AnnData:
    """A copy whose annotated element and instance stand in the columns of the data model, and with sparse X in memory unless `lazy`."""
    from spatialdata.models import TableModel

    table = table.copy()
    instance = instances(table)
    attrs = table.uns.pop(TableModel.ATTRS_KEY)  # written anew for the whole
    table.obs[Key.obs.REGION] = table.obs[attrs[TableModel.REGION_KEY_KEY]].astype(str)
    table.obs[Key.obs.INSTANCE] = instance
    if not lazy:
        table.X = as_csr(table.X)
    return table


def _relinked(table: AnnData, *, lazy: bool = False) -> AnnData:
    """A concatenated table that annotates the elements of all sections."""
    if not lazy:
        table.X = sp.csr_matrix(table.X)
    for key in (Key.obs.REGION, Key.obs.SAMPLE):
        table.obs[key] = table.obs[key].astype("category")
    link_table(table)
    return table


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
    groups: Sequence[Sequence[Hashable]] = _groups_by_name(tables) if ppm is None else _groups_by_mz(tables, ppm)
    first: dict[Hashable, str] = {}
    for table, own in zip(tables, groups, strict=True):
        for group, ion in zip(own, table.var_names, strict=True):
            first.setdefault(group, str(ion))
    ids = dict(zip(first, safe_ids(first.values()), strict=True))
    for table, own in zip(tables, groups, strict=True):
        table.var_names = [ids[group] for group in own]


def _names(var: pd.DataFrame, kinds: Sequence[tuple[str, ...]] | None = None) -> list[str]:
    """The name of each ion of a section, or its id where two (isomers) have one name (and are of one kind)."""
    name = var[Key.var.NAME].astype(str).to_list()
    count = Counter(zip(name, kinds or [()] * len(name), strict=True))
    keys = zip(name, kinds or [()] * len(name), strict=True)
    return [str(i) if count[key] > 1 else n for i, n, key in zip(var.index, name, keys, strict=True)]


def _groups_by_name(tables: list[AnnData]) -> list[list[tuple[str, int]]]:
    """Group of each ion: its name, and a number where ions of one name differ in adduct, formula or polarity."""
    members: dict[str, list[list[tuple[int, tuple[str, ...]]]]] = {}
    groups: list[list[tuple[str, int]]] = []
    for number, table in enumerate(tables):
        groups.append([])
        kinds = _kinds(table)
        for name, kind in zip(_names(table.var, kinds), kinds, strict=True):
            known = members.setdefault(name, [])
            fits = [
                n for n, own in enumerate(known) if all(owner != number and compatible(kind, k) for owner, k in own)
            ]
            group = fits[0] if fits else len(known)
            if not fits:
                known.append([])
            known[group].append((number, kind))
            groups[-1].append((name, group))
    apart = [name for name, known in members.items() if len(known) > 1]
    if apart:
        logger.info("Ions of one name but of different adduct, formula or polarity stay apart: %s.", listing(apart))
    return groups


def _groups_by_mz(tables: list[AnnData], ppm: float) -> list[list[int]]:
    """Number of each ion's group by m/z; raises where joining two ions would be a guess."""
    names = [_names(t.var) for t in tables]
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
    stated: list[set[str]] = [set() for _ in range(table.n_vars)]
    for section in sample_names(table):
        polarity = str(attrs.get(section, {}).get("polarity", _UNKNOWN))
        for ion in np.flatnonzero(_noted(table, Key.varm.MEASURED, section, True).to_numpy(bool)):
            stated[ion].add(polarity)
    polarities = [p.copy().pop() if len(p) == 1 and p != {_UNKNOWN} else "" for p in stated]
    columns = [
        filled_text(table.var[c]) if c in table.var else [""] * table.n_vars for c in (Key.var.ADDUCT, Key.var.FORMULA)
    ]
    return list(zip(*columns, polarities, strict=True))
