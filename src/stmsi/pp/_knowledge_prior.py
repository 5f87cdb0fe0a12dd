"""Genes that are known to make, use or carry each metabolite."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from stmsi._core.chemistry.adducts import ADDUCTS
from stmsi._core.chemistry.core_metabolites import core_metabolites
from stmsi._core.chemistry.molecule_index import Entry, EntryIndex
from stmsi._data.checks import check_choice, check_key, check_positive, listing, suggest
from stmsi._data.feature_table import find_features
from stmsi._data.keys import Key
from stmsi._data.tables import require_mapped, table_to_change
from stmsi._settings import logger
from stmsi.pp._gene_signatures import read_gmt

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Knowledge: TypeAlias = pd.DataFrame | Mapping[str, Sequence[str]] | str | Path

_IDS = ("hmdb", "kegg", "chebi")
_METABOLITE = ("metabolite", "name", "metabolite_name", "standard_metname")
_GENES = ("genes", "gene", "gene_name", "gene_symbol")
_SPLIT = re.compile(r"\s*[;|]\s*")
_TAG = re.compile(r"\[[^\]]*\]")
"""MEBOCOST's mark of what a gene is: ``GLS[Enzyme]``."""


def knowledge_prior(
    data: SpatialData | AnnData,
    table: Knowledge | None = None,
    *,
    metabolite_key: str = Key.obsm.MSI,
    gene_symbols: str | None = None,
    transporters: bool = True,
    ppm: float | None = None,
    adducts: Sequence[str] = ("[M+H]+", "[M+Na]+", "[M+K]+", "[M-H]-", "[M+Cl]-"),
    key_added: str = Key.varm.PRIOR,
    table_key: str = Key.table.ST,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Mark the genes that are known to make, use or carry each metabolite.

    Models take the mark as an optional input (``setup_anndata(prior_key="msi_prior")``). Metabolites are found in the
    table by the first of these that finds any: ids (columns ``hmdb``, ``kegg``, ``chebi`` of the feature table, also as
    ``hmdb_id``), name (columns ``name`` and the id itself; case, punctuation, D/L, "-ic acid" or "-ate" do not count, chains
    of a lipid are added up), formula and, with `ppm`, m/z. Several entries may fit, as isomers do: their genes are
    joined.

    Parameters
    ----------
    data
        SpatialData or its ST table, with mapped MSI.
    table
        What is known. `None`: :func:`stmsi.datasets.core_metabolites`, whose column ``source`` says where its genes are from. A DataFrame with the columns ``metabolite`` (or
        ``name``) and ``gene`` (or ``genes``; one or several, separated by ``;``), and optionally ``synonyms``,
        ``formula``, ``hmdb``, ``kegg``, ``chebi``, ``transporters``; MEBOCOST's tables can be given as they are. A
        mapping from metabolite to genes. The path of a GMT file whose sets are named like metabolites.
    metabolite_key
        Layer in ``obsm`` with the metabolites.
    gene_symbols
        Column of ``var`` with gene symbols; `None`: ``var_names``. Case does not count, so that human symbols find
        mouse genes of the same name (``GLS``, ``Gls``); orthologues with other names are not found.
    transporters
        Whether genes in the column ``transporters`` count.
    ppm
        Relative window for m/z; `None`: m/z is not used, since most masses fit several metabolites.
    adducts
        Ions to expect where the feature table names none: of ``"[M+H]+"``, ``"[M+Na]+"``, ``"[M+K]+"``,
        ``"[M+NH4]+"``, ``"[M+H-H2O]+"``, ``"[M]+"``, ``"[M-H]-"``, ``"[M+Cl]-"``.
    key_added
        Where in ``varm`` and ``uns`` to write.
    table_key
        The ST table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes ``varm["msi_prior"]`` (DataFrame genes x metabolites, boolean;
    columns are the metabolites' ids) and ``uns["msi_prior"]``: ``params`` and ``matches``, one row per metabolite with
    ``matched_by``, ``entries`` (names in the table) and ``n_genes`` (found among the genes of the data).

    Raises
    ------
    KeyError
        The layer, the column of gene symbols or a column of the table is not there.
    ValueError
        No metabolite is found in the table, or none of their genes in the data.
    FileNotFoundError
        No GMT file.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.pp.knowledge_prior(sdata, {"simPC(28:0)": ["SIMG0001", "SIMG0007"]})
    >>> int(sdata.tables["st"].varm["msi_prior"]["simPC_28_0"].sum())
    2
    """
    check_key(key_added)
    for adduct in adducts:
        check_choice(adduct, ADDUCTS, "adducts")
    check_positive(ppm, "ppm")
    st, changed = table_to_change(data, table_key, copy=copy)
    metabolites = require_mapped(st, metabolite_key).columns
    symbols = _symbols(st, gene_symbols)
    entries = _entries(core_metabolites() if table is None else table, transporters=transporters)
    matches = _match(_features(st, metabolite_key, metabolites), entries, ppm, adducts)

    genes = [{gene.upper() for i in found for gene in entries[i].genes} for found in matches["found"]]
    wanted = set().union(*genes)
    mask = np.column_stack([pd.Index(symbols).isin(own) for own in genes])
    _check_found(matches, entries, wanted, mask, symbols)

    st.varm[key_added] = pd.DataFrame(mask, index=st.var_names, columns=metabolites)
    names = ["; ".join(entries[i].names[0] for i in found) for found in matches["found"]]
    params: dict[str, Any] = {
        "table": "core_metabolites" if table is None else str(table) if isinstance(table, str | Path) else "given",
        "metabolite_key": metabolite_key,
        "transporters": transporters,
    }
    st.uns[key_added] = {
        "params": params | ({} if ppm is None else {"ppm": float(ppm), "adducts": list(adducts)}),
        "matches": matches[["matched_by"]].assign(entries=names, n_genes=mask.sum(axis=0)),
    }
    how = matches.loc[matches["matched_by"] != "", "matched_by"].value_counts()
    logger.info(
        "Knowledge prior: %d of %d metabolites matched (%s); %d of their %d genes are in the data.",
        how.sum(), len(metabolites), ", ".join(f"{n} by {by}" for by, n in how.items()),
        len(wanted & set(symbols)), len(wanted),
    )  # fmt: skip
    return changed


def _symbols(st: AnnData, gene_symbols: str | None) -> list[str]:
    """Symbol of each gene in upper case, empty where there is none."""
    if gene_symbols is None:
        return [str(name).upper() for name in st.var_names]
    if gene_symbols not in st.var:
        msg = f"var has no column {gene_symbols!r}; found {listing(st.var.columns)}.{suggest(gene_symbols, st.var.columns)}"
        raise KeyError(msg)
    column = st.var[gene_symbols]
    return [str(name).upper() if known else "" for name, known in zip(column, column.notna(), strict=True)]


def _features(st: AnnData, metabolite_key: str, metabolites: pd.Index) -> pd.DataFrame:
    """What the feature table says of each metabolite, its columns in lower case."""
    table = find_features(st, metabolite_key)
    if table is None:
        return pd.DataFrame(index=metabolites)
    table = table.reindex(metabolites)
    table.columns = table.columns.astype(str).str.lower()
    return table.loc[:, ~table.columns.duplicated()]


def _match(features: pd.DataFrame, entries: Sequence[Entry], ppm: float | None, adducts: Sequence[str]) -> pd.DataFrame:
    """Entries (``found``) of each metabolite and what they were found by (``matched_by``, empty where by nothing)."""
    index = EntryIndex(entries)
    found, by = [], []
    for metabolite, row in features.iterrows():
        text = {str(k): str(v).strip() for k, v in row.items() if pd.notna(v)}
        ids = {kind: text.get(kind) or text.get(f"{kind}_id", "") for kind in _IDS}
        name = text.get(Key.var.NAME, "")
        mz = float(row[Key.var.MZ]) if Key.var.MZ in text else np.nan
        ion = text.get(Key.var.ADDUCT, "")
        hits = {
            "id": index.by_id(ids),
            "name": index.by_name([name, *_SPLIT.split(name), str(metabolite)]),
            "formula": index.by_formula(text.get(Key.var.FORMULA, "")),
            "m/z": [] if ppm is None or np.isnan(mz) else index.by_mz(mz, [ion] if ion in ADDUCTS else adducts, ppm),
        }
        matched_by = next((how for how, some in hits.items() if some), "")
        by.append(matched_by)
        found.append(hits.get(matched_by, []))
    return pd.DataFrame(
        {"found": pd.Series(found, features.index, dtype=object), "matched_by": by}, index=features.index
    )


def _entries(table: Knowledge, *, transporters: bool) -> list[Entry]:
    if isinstance(table, str | Path):
        table = read_gmt(Path(table))
    if isinstance(table, Mapping):
        return [
            Entry((str(name),), _genes([genes] if isinstance(genes, str) else genes)) for name, genes in table.items()
        ]
    if not isinstance(table, pd.DataFrame):
        msg = f"table is a DataFrame, a mapping from metabolite to genes or the path of a GMT file, found {type(table).__name__}."
        raise TypeError(msg)
    columns = {str(c).strip().lower(): c for c in table.columns}
    name = next((columns[c] for c in _METABOLITE if c in columns), None)
    gene = next((columns[c] for c in _GENES if c in columns), None)
    if name is None or gene is None:
        msg = f"The table needs a column 'metabolite' and a column 'gene'; found {listing(table.columns)}. Rename them."
        raise KeyError(msg)

    def texts(*names: str) -> pd.Series:
        given = next((columns[n] for n in names if n in columns), None)
        column = pd.Series("", table.index) if given is None else table[given]
        return column.astype(object).where(column.notna(), "").astype(str).str.strip()

    genes = texts(str(gene).strip().lower())
    if transporters:
        genes = genes + ";" + texts("transporters")
    parts = pd.DataFrame({"name": texts(str(name).strip().lower()), "synonyms": texts("synonyms"), "genes": genes})
    parts["formula"] = texts("formula")
    for kind in _IDS:
        parts[kind] = texts(kind, f"{kind}_id")
    entries = []
    for title, rows in parts[parts["name"] != ""].groupby("name", sort=False):
        synonyms = [s for text in rows["synonyms"].unique() for s in _SPLIT.split(text) if s]
        ids = {kind: " ".join(rows[kind].unique()) for kind in _IDS}
        entries.append(Entry((str(title), *synonyms), _genes(rows["genes"]), ids, rows["formula"].iloc[0]))
    return entries


def _genes(cells: Iterable[Any]) -> tuple[str, ...]:
    """Symbols in cells that may hold several, without what stands in square brackets behind them."""
    parts = (_TAG.sub("", part).strip() for cell in cells for part in _SPLIT.split(str(cell)))
    return tuple(dict.fromkeys(part for part in parts if part))


def _check_found(
    matches: pd.DataFrame, entries: Sequence[Entry], wanted: set[str], mask: np.ndarray, symbols: Sequence[str]
) -> None:
    if (matches["matched_by"] == "").all():
        msg = (
            f"None of the {len(matches)} metabolites, such as {listing(matches.index[:3])}, is in the table, which has "
            f"{listing([e.names[0] for e in entries[:3]])} and others ({len(entries)} in all). Put names, formulas or ids into the feature "
            "table (columns name, formula, hmdb, kegg, chebi), or pass ppm= to match by m/z."
        )
        raise ValueError(msg)
    if not mask.any():
        msg = (
            f"None of the {len(wanted)} genes of the metabolites, such as {listing(sorted(wanted)[:3])}, is in the data, "
            f"whose genes look like {listing(symbols[:3])}. Name the column of var with gene symbols: gene_symbols=."
        )
        raise ValueError(msg)
