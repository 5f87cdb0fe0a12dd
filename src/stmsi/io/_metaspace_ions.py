"""The ions of METASPACE: annotations with all their candidates, and the images that belong to them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.chemistry.adducts import Polarity, parse_adduct
from stmsi._core.chemistry.formulas import ELECTRON, monoisotopic_mass
from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.sections import filled_text
from stmsi._settings import logger
from stmsi.io._text_table import check_numbers

if TYPE_CHECKING:
    from pathlib import Path

FORMULA, ADDUCT, MZ = "formula", "adduct", "mz"
ION, _NAMES, _IDS, _ISOMERS, _FDR = "ion", "moleculeNames", "moleculeIds", "isomers", "fdr"
_MOD, _LOSS, _ION_FORMULA = "chemMod", "neutralLoss", "mol_formula"
EXPORTED = "exported_adduct"
"""The adduct as it was exported, by which images are looked up."""
MODIFIED = "modified"
"""Whether an annotation has a modification or a neutral loss, so that formula and adduct alone do not tell its image."""
_NOTED = ("group", "datasetName", "datasetId", "isotopeImages", "index", "colocCoeff")
"""Columns about the dataset, and those that hold objects."""
_SPLIT = re.compile(r",\s*")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WHOLE = re.compile(r"\[(\d*)M([^\]]*)\](\d*[+-]?)")
_PART = re.compile(r"([+-])(\d*)([A-Z][A-Za-z0-9]*)")
_POLARITY_OF: dict[str, Polarity] = {"+": "positive", "-": "negative"}
_SIGN_OF: dict[str, str] = {polarity: sign for sign, polarity in _POLARITY_OF.items()}
_CHARGE = dict.fromkeys(("H", "Li", "Na", "K", "Rb", "Cs", "Ag", "NH4"), 1) | dict.fromkeys(
    ("F", "Cl", "Br", "I", "OH", "CN", "NO3", "HCOO", "HCO2", "CHO2", "CHOO", "CH3COO", "CH3CO2", "C2H3O2", "CF3COO",
     "CF3CO2", "C2F3O2", "HCO3", "CHO3", "HSO4", "HO4S", "H2PO4", "H2O4P"), -1,
)  # fmt: skip
"""Charge of what an adduct adds, for exports that tell neither the ion nor a formula that fits its m/z."""
_SAME = 1e-6
"""Relative difference of m/z up to which two exports of one ion may be rounded apart."""


def ion_table(frame: pd.DataFrame, path: Path, polarity: str = "") -> pd.DataFrame:
    """The ions of an export in the columns of the data model; the index holds the names of the ions.

    `polarity` is that of the dataset, where it is known; else the ion, its mass or its adduct tell the sign.
    """
    check_numbers(frame[[MZ]], path)
    mz = frame[MZ].to_numpy(dtype=np.float64)
    if not (np.isfinite(mz).all() and (mz > 0).all()):
        msg = f"{path}: mz must hold positive numbers (Da); found {listing(frame[MZ][~(mz > 0)])}."
        raise ValueError(msg)
    text = {key: _text(frame, key) for key in (FORMULA, ADDUCT, ION, _NAMES, _IDS, _MOD, _LOSS, _ION_FORMULA)}
    names, ids = text[_NAMES].map(_flat), text[_IDS].map(_flat)
    text[_MOD], text[_LOSS] = (
        text[_MOD].map(lambda part: _signed(part, "+")),
        text[_LOSS].map(lambda part: _signed(part, "-")),
    )
    sign = text[ION].str.extract(r"([+-])$")[0].fillna(_SIGN_OF.get(polarity, ""))
    told = (*(text[key] for key in (ADDUCT, _MOD, _LOSS)), sign, text[FORMULA], text[_ION_FORMULA], mz)
    adduct = pd.Series([_adduct(*parts) for parts in zip(*told, strict=True)], index=frame.index)
    n_ids = ids.map(lambda value: len(_SPLIT.split(value)) if value else 0)
    stated = pd.to_numeric(frame[_ISOMERS], errors="coerce") if _ISOMERS in frame else pd.Series(np.nan, frame.index)
    n_isomers = stated.fillna(n_ids).astype(np.int64)
    bare = text[FORMULA].where(text[FORMULA] != "", text[_ION_FORMULA])
    ion = bare + " " + adduct
    out = pd.DataFrame(
        {
            Key.var.NAME: names.where((n_isomers == 1) & (names != ""), ion),
            Key.var.MZ: mz,
            Key.var.FORMULA: text[FORMULA],
            Key.var.ADDUCT: adduct,
            Key.var.FDR: pd.to_numeric(frame[_FDR], errors="coerce") if _FDR in frame else np.nan,
            Key.var.MOLECULES: names,
            "molecule_ids": ids,
            Key.var.N_ISOMERS: n_isomers,
            EXPORTED: text[ADDUCT],
            MODIFIED: (text[_MOD] != "") | (text[_LOSS] != ""),
        }
    )
    taken = {FORMULA, ADDUCT, MZ, _FDR, _NAMES, _IDS, _ISOMERS, *_NOTED}
    for column in frame.columns.difference(list(taken), sort=False):
        key = safe_ids([_CAMEL.sub("_", str(column)).lower()])[0]
        values = frame[column]
        if values.isna().all() or key in out:
            continue
        out[key] = values if pd.api.types.is_numeric_dtype(values) else filled_text(values)  # truth values are numeric
    label = text[ION].where(text[ION] != "", ion)
    if label.duplicated().any():
        # one ion in several databases, or formulas that differ by a loss alone
        label = label + np.where(label.duplicated(keep=False), " " + ids, "")
    out.index = pd.Index(_distinct(label))
    return out


def annotated(images: pd.DataFrame, annotations: pd.DataFrame, files: tuple[Path, Path]) -> pd.DataFrame:
    """The ions of the images with what the annotations say of them, in the order of the images."""
    place = np.full(len(images), -1)
    known, mz = annotations[Key.var.MZ].to_numpy(), images[Key.var.MZ].to_numpy()
    # an export of intensities tells the adduct alone, without what the molecule was modified by or lost
    adducts, exported = (np.array([_plain(a) for a in annotations[key]]) for key in (Key.var.ADDUCT, EXPORTED))
    molecules = [_ids(text) for text in annotations["molecule_ids"]]
    for i, (adduct, ids) in enumerate(zip(images[Key.var.ADDUCT], images["molecule_ids"], strict=True)):
        fits = (adducts == _plain(adduct)) | (exported == _plain(adduct))
        near = np.flatnonzero((np.abs(known - mz[i]) <= _SAME * mz[i]) & fits).tolist()
        if len(near) > 1:
            near = [j for j in near if molecules[j] == _ids(ids)]
            if len(near) != 1:
                msg = (
                    f"{files[0]}: several annotations of {files[1].name} go with the image of {images.index[i]!r} (m/z "
                    f"{mz[i]:.4f}). Export both with the same database and filters."
                )
                raise ValueError(msg)
        if near:
            place[i] = near[0]
    if (place < 0).all():
        msg = (
            f"No image of {files[0]} belongs to an annotation of {files[1]}: m/z {listing(mz[:3].round(4))} against "
            f"{listing(known[:3].round(4))}. Export both from one dataset."
        )
        raise ValueError(msg)
    alone = place < 0
    if alone.any():
        logger.warning(
            "%s: %d of %d images have no annotation in %s and are kept without FDR: %s",
            files[0].name, int(alone.sum()), len(images), files[1].name, listing(images.index[alone]),
        )  # fmt: skip
    missing = len(annotations) - len(set(place[~alone].tolist()))
    if missing:
        logger.info("%s: %d of %d annotations have no image", files[1].name, missing, len(annotations))
    out = annotations.iloc[np.where(alone, 0, place)].copy()
    if alone.any():
        for column in out:
            blank = np.nan if pd.api.types.is_numeric_dtype(out[column]) else ""
            own = images[column].to_numpy() if column in images else blank
            out[column] = np.where(alone, own, out[column].to_numpy())
    out.index = pd.Index(_distinct(pd.Series(np.where(alone, images.index, out.index))))
    return out


def _text(frame: pd.DataFrame, column: str) -> pd.Series:
    if column not in frame:
        return pd.Series("", index=frame.index)
    return filled_text(frame[column]).str.strip()


def _flat(value: str) -> str:
    """Names or ids as the web site writes them; metaspace-converter writes lists as JSON."""
    if not value.startswith("["):
        return value
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return value
    return ", ".join(map(str, parsed)) if isinstance(parsed, list) else value


def _signed(part: str, sign: str) -> str:
    """A modification or a loss with its sign."""
    return part if not part or part[0] in "+-" else sign + part


def _adduct(adduct: str, modification: str, loss: str, sign: str, formula: str, ion_formula: str, mz: float) -> str:
    """``M+H`` or ``+H`` as ``[M+H]+``, with modification and loss; a charge that the adduct tells itself stays."""
    if not adduct:
        return adduct
    whole = _WHOLE.fullmatch(adduct)
    molecules, added, charge = ("", adduct.removeprefix("M"), sign) if whole is None else whole.groups()
    if whole is None and added in ("+", "-"):  # METASPACE writes the charge of the bare ion alone
        added, charge = "", added
    # a whole adduct may hold them already
    terms = set() if whole is None else set(_PART.findall(added))
    parts = "".join(part for part in (modification, loss) if not part or not set(_PART.findall(part)) < terms)
    body = f"[{molecules}M{parts}{added}]"
    return body + (charge or sign or _sign_by_mass(body, formula, ion_formula, mz) or _sign_by_parts(added))


def _sign_by_mass(body: str, formula: str, ion_formula: str, mz: float) -> str:
    """The sign that the m/z tells: an ion weighs an electron less or more than its atoms; empty where it does not fit."""
    off: dict[str, list[float]] = {"+": [], "-": []}
    for sign, polarity in _POLARITY_OF.items():
        # the formula in an export of intensities is that of the whole ion
        for atoms, notation in ((ion_formula, "[M]"), (formula, body)):
            try:
                mass = np.array([monoisotopic_mass(atoms)])
                off[sign].append(float(np.abs(parse_adduct(notation, polarity).mz(mass)[0] - mz)))
            except ValueError:
                continue
    nearest = {sign: min(values, default=np.inf) for sign, values in off.items()}
    best = min(nearest, key=lambda sign: nearest[sign])
    return best if nearest[best] < ELECTRON / 2 else ""


def _sign_by_parts(added: str) -> str:
    """The sign of the sum of the charges that come and go; positive where none is known."""
    terms = [(sign, int(count or 1), part) for sign, count, part in _PART.findall(added)]
    charge = sum((1 if sign == "+" else -1) * n * _CHARGE.get(part, 0) for sign, n, part in terms)
    return "-" if charge < 0 else "+"


def _plain(adduct: str) -> str:
    """An adduct without brackets and charge, so that exports compare whatever they tell."""
    bare = re.sub(r"\][0-9]*[+-]?$", "", adduct).lstrip("[")
    return bare if "M" in bare[:2] else "M" + bare


def _ids(text: str) -> frozenset[str]:
    return frozenset(_SPLIT.split(text))


def _distinct(labels: pd.Series) -> list[str]:
    """Labels with a running number where they repeat."""
    number = labels.groupby(labels).cumcount() + 1
    return [f"{label} ({n})" if n > 1 else str(label) for label, n in zip(labels, number, strict=True)]
