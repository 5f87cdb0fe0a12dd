"""Tables of molecules from anywhere, in one form."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from stmsi._core.chemistry.adducts import Polarity, parse_adduct
from stmsi._data.checks import listing
from stmsi._data.small_files import read_list, read_parquet

NAME, ID, FORMULA, CLASS, ADDUCT, MZ, FDR = "name", "id", "formula", "class", "adduct", "mz", "fdr"
SIGN = "_sign"
_ALIASES = {
    NAME: ("name", "mol_name", "common_name", "metabolite", "compound", "molecule", "systematic_name"),
    ID: ("id", "mol_id", "hmdb", "lm_id", "accession", "hmdb_id", "kegg", "chebi"),
    FORMULA: ("formula", "chemical_formula", "molecular_formula"),
    CLASS: ("class", "main_class", "super_class", "category", "kingdom"),
}
"""Columns by what they hold, the first of each that a table has is taken: stmsi, METASPACE, LipidMaps, HMDB."""
_METASPACE = ("moleculeNames", "moleculeIds", "ion", "fdr", "mz", "adduct", "formula")
_CHARGE = re.compile(r"(.*?)([+-])(\d*)")
"""Formula, sign and size of a charge: ``C5H14NO+``, ``C10H12N5O13P3-4``. A number before the sign counts atoms."""


def read_molecules(source: str | Path | pd.DataFrame, polarity: Polarity | None) -> pd.DataFrame:
    """One row per molecule (and ion, for an export of METASPACE): ``name``, ``id``, ``formula``, ``class``.

    An export of METASPACE also has ``adduct``, ``mz`` and ``fdr``. Rows without a formula are left out.
    """
    table = source.copy() if isinstance(source, pd.DataFrame) else _read(Path(source))
    if set(_METASPACE) <= set(table.columns):
        return _from_metaspace(table, polarity)
    lower = {str(c).strip().lower().replace(" ", "_"): c for c in reversed(list(table.columns))}
    columns = {role: next((lower[a] for a in names if a in lower), None) for role, names in _ALIASES.items()}
    if columns[FORMULA] is None:
        where = "" if isinstance(source, pd.DataFrame) else f" {source}"
        msg = (
            f"The table of molecules{where} has no column with formulas ({', '.join(_ALIASES[FORMULA])}); found "
            f"{listing(table.columns)}."
        )
        raise KeyError(msg)
    if columns[NAME] is None:
        columns[NAME] = columns[ID] if columns[ID] is not None else columns[FORMULA]
    found = {role: _text(table[c]) if c is not None else "" for role, c in columns.items()}
    out = pd.DataFrame(found, index=range(len(table)))
    if columns[ID] is not None:
        # a table of several databases names some molecules in one, some in another
        for alias in _ALIASES[ID]:
            if alias in lower:
                out[ID] = out[ID].where(out[ID] != "", _text(table[lower[alias]]))
    return out[out[FORMULA] != ""].reset_index(drop=True)


def charge_of(formula: str) -> tuple[str, int]:
    """A formula without its charge, and the charge (0: none is stated)."""
    found = _CHARGE.fullmatch(formula)
    if found is None:
        return formula, 0
    return found[1], int(found[3] or 1) * (1 if found[2] == "+" else -1)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    # METASPACE heads its exports with comments; elsewhere '#' may be part of a name
    text = {"dtype": str, "keep_default_na": False}
    return read_list(path, "a table of molecules", separators="\t,;", heading="#", **text)


def _text(column: pd.Series) -> list[str]:
    return ["" if pd.isna(v) else str(v).strip() for v in column]


def _from_metaspace(table: pd.DataFrame, polarity: Polarity | None) -> pd.DataFrame:
    """Annotations of METASPACE, a row per name; of an ion in several data sets the one with the lowest rate."""
    ions = pd.Series(_text(table["ion"]))
    out = pd.DataFrame({FORMULA: _text(table["formula"]), ADDUCT: _text(table["adduct"])})
    out[MZ] = pd.to_numeric(pd.Series(_text(table["mz"])), errors="coerce").to_numpy(float)
    out[FDR] = pd.to_numeric(pd.Series(_text(table["fdr"])), errors="coerce").to_numpy(float)
    ends = ions.str[-1:].map({"+": "positive", "-": "negative"})
    own = ends.where(ends.notna(), polarity)
    names = {(a, p): parse_adduct(a, p).name for a, p in set(zip(out[ADDUCT], own, strict=True))}
    out[ADDUCT] = [names[key] for key in zip(out[ADDUCT], own, strict=True)]
    out["_names"], out["_ids"] = _text(table["moleculeNames"]), _text(table["moleculeIds"])
    out = out.sort_values(FDR, kind="stable").drop_duplicates([FORMULA, ADDUCT])
    several = [_split(n, i) for n, i in zip(out["_names"], out["_ids"], strict=True)]
    out[NAME] = [n for n, _ in several]
    out[ID] = [i for _, i in several]
    out = out.drop(columns=["_names", "_ids"]).explode([NAME, ID], ignore_index=True)
    return out.assign(**{CLASS: ""})


def _split(names: str, ids: str) -> tuple[list[str], list[str]]:
    """Names and ids of the isomers of a row; names have commas of their own, so their number must agree."""
    one, other = names.split(", "), ids.split(", ")
    return (one, other) if len(one) == len(other) else ([names], [ids])
