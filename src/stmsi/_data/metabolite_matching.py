"""One list of metabolites for sections that were measured with different ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.chemistry.ion_matching import compatible, match_ions
from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing, refuse_view, require_anndata, require_unique
from stmsi._data.keys import Key
from stmsi._data.tables import require_frame, require_sample

if TYPE_CHECKING:
    from anndata import AnnData

_POLARITY = "polarity"
_LIMITS = "detection_limit"
_KINDS = (Key.var.ADDUCT, Key.var.FORMULA, _POLARITY)
"""Columns of a feature table that must not differ between ions that are the same, where they are given."""


def match_metabolites(
    adatas: Sequence[AnnData],
    *,
    mz_tolerance: float = 5.0,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    copy: bool = False,
) -> list[AnnData] | None:
    """Give ST tables whose MSI had different m/z lists the same metabolites.

    Metabolites of different tables are the same where their m/z agree, mutual nearest first, one to one; see `combine`,
    which does so for SpatialData. Afterwards every table has the same columns in the same order, **NaN where it did not
    measure the metabolite**, so that ``anndata.concat(adatas)`` puts the tables together with any ``join`` and models
    train on the whole.

    Parameters
    ----------
    adatas
        Two or more ST tables after :func:`stmsi.pp.map_to_spots`.
    mz_tolerance
        Largest difference of m/z within one metabolite, in ppm.
    metabolite_key
        Intensities in ``obsm``; ``uns[metabolite_key]["features"]`` holds their m/z.
    sample_key
        Column of ``obs`` with the section name.
    copy
        Return changed copies instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copies. In every table:

    - ``obsm["msi"]``, and ``obsm["msi_presence"]`` where it is there: the united metabolites;
    - ``uns["msi"]["features"]``: their feature table, ids, names and m/z from the first table that has them;
    - ``uns["msi"]["section_mz"]``: metabolites x sections of all tables, the m/z in each (Da), NaN where it was not
      measured.

    - ``uns["msi"]["detection_limit"]``: likewise, where every table has it.

    They are the same in all tables: concatenate with ``uns_merge="first"`` to keep them.

    Raises
    ------
    KeyError
        Intensities, or a feature table with m/z, are not there.
    ValueError
        A metabolite that two of another table are equally near to; one table only; repeated metabolites or sections;
        sections that were normalised differently.

    Examples
    --------
    >>> import anndata, stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> one, two = (st[st.obs["sample"] == s].copy() for s in ("P1S1", "P2S1"))
    >>> one.obsm["msi"] = one.obsm["msi"].iloc[:, :8]
    >>> two.obsm["msi"] = two.obsm["msi"].iloc[:, 4:]
    >>> stmsi.pp.match_metabolites([one, two], mz_tolerance=5)
    >>> both = anndata.concat([one, two], merge="first", uns_merge="first")
    >>> both.obsm["msi"].notna().groupby(both.obs["sample"], observed=True).any().sum(axis=1).to_dict()
    {'P1S1': 8, 'P2S1': 8}
    """
    if not (np.isfinite(mz_tolerance) and mz_tolerance > 0):
        msg = f"mz_tolerance must be a positive number, found {mz_tolerance!r}."
        raise ValueError(msg)
    tables = list(adatas)
    for table in tables:
        require_anndata(table)
    if len(tables) < 2:
        msg = f"Matching needs at least two tables, found {len(tables)}."
        raise ValueError(msg)
    if copy:
        tables = [t.copy() for t in tables]
    sections = []
    for table in tables:
        refuse_view(table)
        sections.append(list(dict.fromkeys(require_sample(table, sample_key))))
    names = [s for own in sections for s in own]
    require_unique(names, "Sections", f"Give each its own name in obs[{sample_key!r}].")
    _check_scales(tables, sections, metabolite_key)
    own = [_features(t, metabolite_key) for t in tables]
    ids = united_ids(own, [", ".join(s) for s in sections], mz_tolerance)
    named = [f.set_axis(i) for f, i in zip(own, ids, strict=True)]
    united = named[0]
    for features in named[1:]:
        united = united.combine_first(features).loc[united.index.union(features.index, sort=False)]
    records = {
        record: _united_record([t.uns[metabolite_key].get(record) for t in tables], sections, own, ids, united.index)
        for record in (Key.varm.SECTION_MZ, _LIMITS)
    }
    if records[Key.varm.SECTION_MZ] is None:
        mz = []
        for table, features in zip(tables, named, strict=True):
            sample, known = require_sample(table, sample_key), require_frame(table, metabolite_key).notna().to_numpy()
            columns = {s: features[Key.var.MZ].where(known[sample == s].any(axis=0)) for s in dict.fromkeys(sample)}
            mz.append(pd.DataFrame(columns).reindex(united.index))
        records[Key.varm.SECTION_MZ] = pd.concat(mz, axis=1)
    for table, features, new in zip(tables, own, ids, strict=True):
        for key in _layers(metabolite_key):
            if key in table.obsm:
                frame = require_frame(table, key)[features.index].set_axis(new, axis=1)
                # a cast back, as pandas makes columns of NaN alone float64
                table.obsm[key] = frame.reindex(columns=united.index).astype(np.float32)
        observed = Key.observed_of(metabolite_key)
        if observed in table.obsm:
            frame = require_frame(table, observed)[features.index].set_axis(new, axis=1)
            table.obsm[observed] = frame.reindex(columns=united.index, fill_value=False).astype(bool)
        table.uns[metabolite_key] = (
            dict(table.uns[metabolite_key])
            | {"features": united.copy()}
            | {k: v.copy() for k, v in records.items() if v is not None}
        )
    return tables if copy else None


def _layers(key: str) -> tuple[str, ...]:
    """Keys of ``obsm`` with a number for each metabolite of a layer."""
    made = Key.presence_of(key), Key.variance_of(key), Key.spread_of(key), Key.uncorrected_of(key)
    return key, *made, *Key.halves_of(key)


def _features(table: AnnData, key: str) -> pd.DataFrame:
    """The feature table of a layer, rows in the order of its columns."""
    frame = require_frame(table, key, "stmsi.pp.map_to_spots writes it.")
    require_unique(frame.columns, f"Columns of obsm[{key!r}]", "Rename them.")
    record = table.uns.get(key)
    features = record.get("features") if isinstance(record, Mapping) else None
    if not isinstance(features, pd.DataFrame) or Key.var.MZ not in features:
        msg = (
            f"uns[{key!r}]['features'] has no table with the m/z of the metabolites in column {Key.var.MZ!r}; "
            "stmsi.pp.map_to_spots writes it."
        )
        raise KeyError(msg)
    missing = frame.columns[~frame.columns.isin(features.index.astype(str))]
    if len(missing):
        msg = f"uns[{key!r}]['features'] lacks metabolites of obsm[{key!r}]: {listing(missing)}."
        raise KeyError(msg)
    features = features.set_axis(features.index.astype(str)).loc[frame.columns]
    return features if Key.var.NAME in features else features.assign(**{Key.var.NAME: features.index})


def _check_scales(tables: Sequence[AnnData], sections: Sequence[Sequence[str]], key: str) -> None:
    """Refuse intensities on different scales, which no model could put together."""
    found = []
    for table in tables:
        record = table.uns.get(key)
        params = record.get("params", {}) if isinstance(record, Mapping) else {}
        found.append(str(dict(params.get(Key.uns.NORMALIZE, {}))) if params else None)
    known = {f for f in found if f is not None}
    if len(known) > 1:
        each = "; ".join(f"{', '.join(s)}: {f}" for s, f in zip(sections, found, strict=True))
        msg = f"The sections were normalised differently ({each}); normalise and map them alike first."
        raise ValueError(msg)


def _united_record(
    frames: Sequence[Any],
    sections: Sequence[Sequence[str]],
    own: Sequence[pd.DataFrame],
    ids: Sequence[list[str]],
    united: pd.Index,
) -> pd.DataFrame | None:
    """Tables metabolites x sections side by side, each with its own sections; `None` where one is missing."""
    parts = []
    for frame, names, features, new in zip(frames, sections, own, ids, strict=True):
        if not isinstance(frame, pd.DataFrame):
            return None
        if not features.index.isin(frame.index).all() or not set(names) <= set(frame.columns):
            return None
        parts.append(frame.loc[features.index, list(names)].set_axis(new).reindex(united))
    return pd.concat(parts, axis=1)


def identities_of(var: pd.DataFrame) -> list[str]:
    """What tells an ion of one section by name: a name that the section uses twice (isomers) says less than the id."""
    name = var[Key.var.NAME].astype(str)
    return [i if twice else n for i, n, twice in zip(var.index, name, name.duplicated(keep=False), strict=True)]


def united_ids(features: Sequence[pd.DataFrame], labels: Sequence[str], ppm: float) -> list[list[str]]:
    """Ids of the ions of several lists, the same where the ions are.

    Parameters
    ----------
    features
        Feature tables with ``name``, ``mz`` and, where known, ``adduct``, ``formula``, ``polarity``.
    labels
        What each list is called in messages.
    ppm
        Tolerance of m/z.

    Raises
    ------
    ValueError
        Two ions of one list are equally near to one of another, or ions of one name are farther apart.
    """
    names = [identities_of(f) for f in features]
    mz = [f[Key.var.MZ].to_numpy(dtype=np.float64) for f in features]
    groups, ties = match_ions(mz, [_kinds(f) for f in features], names, ppm)
    if ties:
        (a, i), (b, j), (c, k) = ties[0]
        msg = (
            f"Ion {names[a][i]!r} of {labels[a]} (m/z {mz[a][i]:.5f}) is as near to {names[b][j]!r} ({mz[b][j]:.5f}) as to "
            f"{names[c][k]!r} ({mz[c][k]:.5f}) of {labels[b]}, within {ppm:g} ppm ({len(ties)} such cases). Lower "
            "mz_tolerance, merge the two ions, or give the ones that are the same the same name."
        )
        raise ValueError(msg)
    first: dict[int, str] = {}
    named: dict[str, dict[int, tuple[str, ...]]] = {}
    for table, own, group in zip(features, names, groups, strict=True):
        for kind, identity, ion, g in zip(_kinds(table), own, table.index, group, strict=True):
            first.setdefault(int(g), str(ion))
            named.setdefault(identity, {}).setdefault(int(g), kind)
    # two adducts of one molecule may share its name
    torn = [n for n, own in named.items() if any(compatible(a, b) for a, b in combinations(own.values(), 2))]
    if torn:
        msg = (
            f"Ions with the same name have m/z that differ by more than {ppm:g} ppm: {listing(torn)}. Raise mz_tolerance, "
            "recalibrate the sections, or rename the ions."
        )
        raise ValueError(msg)
    ids = dict(zip(first, safe_ids(first.values()), strict=True))
    return [[ids[int(g)] for g in group] for group in groups]


def _kinds(features: pd.DataFrame) -> list[tuple[str, ...]]:
    columns = [
        features[c].astype(object).where(features[c].notna(), "").astype(str) if c in features else [""] * len(features)
        for c in _KINDS
    ]
    return list(zip(*columns, strict=True))
