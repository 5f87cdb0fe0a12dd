"""Names for m/z."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.chemistry.adducts import (
    MATRICES,
    Adduct,
    Polarity,
    default_adducts,
    matrix_name,
    parse_adduct,
)
from stmsi._core.chemistry.formulas import Formulas, protonated, valid_formulas
from stmsi._core.chemistry.mass_annotation import match_masses
from stmsi._core.chemistry.mass_evidence import NEAR_TIE, search_masses
from stmsi._data.checks import check_choice, check_positive, check_share, listing
from stmsi._data.keys import Key
from stmsi._data.stale import mark_stale
from stmsi._data.tables import polarity_of, table_sections, table_to_change
from stmsi._settings import logger
from stmsi.pp import _molecule_tables as mol

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_CORE = "stmsi core metabolites"
_LEVELS = (0.05, 0.1, 0.2, 0.5)
"""False-discovery rates that differ, those of METASPACE."""
_CANDIDATES = ["ion", "mz", "rank", "name", "id", "class", "formula", "adduct", "ion_mz", "ppm_error", "fdr"]


def annotate_mz(
    data: SpatialData | AnnData,
    database: str | Path | pd.DataFrame | None = None,
    *,
    polarity: Polarity | None = None,
    matrix: str | None = None,
    adducts: Sequence[str] | None = None,
    ppm: float = 5.0,
    max_fdr: float | None = None,
    key_added: str = Key.uns.ANNOTATION,
    table_key: str = Key.table.MSI,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    r"""Find the molecules and ions whose m/z agrees with that of each measured ion.

    Each formula of `database` with each adduct has the m/z

    .. math:: (n M + s) / |z|

    with the monoisotopic mass :math:`M` and :math:`n`, :math:`s`, :math:`z` of the adduct. All that lie within `ppm` are
    candidates. **A mass is not an identification**: isomers have the same, and isobars nearly so. Confirm what matters by
    MS/MS or standards (level 2 or 1 of the Metabolomics Standards Initiative).

    Parameters
    ----------
    data
        SpatialData with an MSI table, or that table; ``var["mz"]`` in Da. Ions without m/z (NaN) get no candidates.
    database
        Table of molecules, or the path of one (csv, tsv, parquet): a column with formulas, and optionally names, ids and
        classes, named as by stmsi, METASPACE's CoreMetabolome, LipidMaps or HMDB. Rows whose formula cannot be read are
        left out, and counted in the log. An export of annotations from METASPACE keeps its ions, m/z and false-discovery
        rates (from isotope patterns and images, so better than the ones below). `None`:
        :func:`stmsi.datasets.core_metabolites`.
    polarity
        ``"positive"`` or ``"negative"``; `None`: that of the `adducts` or of an export of METASPACE, else of
        ``uns["msi"]["attrs"]``.
    matrix
        MALDI matrix, which decides about the default adducts; those of :func:`stmsi.pp.filter_metabolites`. With
        ``"FMP-10"`` amines and phenols carry one or two groups of 268.1121 Da (Shariatgorji et al. 2019).
    adducts
        Ions to expect instead, such as ``["[M+H]+", "[2M+Na]+", "[M+2H]2+", "[M+FMP10]+"]``, the likeliest first.
        ``"[M]+"`` stands for molecules that are cations already (``C5H14NO+``, or an odd sum of valences without a sign) and for
        complexes of iron, cobalt, copper and manganese; ``"[M]-"`` for anions (``C18H33O2-``). Of several negative charges
        (``C10H12N5O13P3-4``) protons take all but one. Shorthand is read: ``"[M+FA-H]-"``, ``"[M+ACN+H]+"``.
    ppm
        Half the width of the window.
    max_fdr
        Highest false-discovery rate of annotations in ``var``. All candidates stay in the table.
    key_added
        Where in ``uns`` to write the candidates.
    table_key
        The MSI table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes

    - ``uns["annotation"]["candidates"]``: a row per ion x molecule x adduct: ``ion``, ``mz``, ``rank`` (1 is the best),
      ``name``, ``id``, ``class``, ``formula``, ``adduct``, ``ion_mz`` (computed), ``ppm_error`` (measured less
      computed), ``fdr``;
    - ``var``: ``name``, ``formula``, ``adduct``, ``class``, ``ppm_error`` and ``fdr`` of the best (ions without one keep
      what was known of them), ``n_candidates`` (molecules x adducts) and ``isobaric`` (they have several formulas);
    - ``uns["annotation"]["params"]``, with the median error of the best ones, ``median_ppm_error``.

    The best has the smallest error. Errors within a fifth of `ppm` of the smallest are equal: then an ion that no other
    explanation contradicts is the best, then the one of the lower false-discovery rate (0.05, 0.1, 0.2, 0.5 or more), then the
    adduct that stands first, the smaller error, and the molecule that stands first.

    Raises
    ------
    KeyError
        No m/z, or no column with formulas.
    ValueError
        No ion has an m/z above zero; an unknown matrix, polarity or adduct, adducts of both polarities or none; a
        database without a formula that can be read.
    FileNotFoundError
        There is no file at the path.

    Notes
    -----
    The false-discovery rate holds where the ions without an entry are **real molecules**, whose masses lie as close to those
    of the table as molecules do. The main ion of a formula (protonated, deprotonated, derivatised or charged by itself) is
    compared with its own m/z two to five windows away. It is no candidate (rate 1) where another measured ion lies lower by
    the difference to an adduct, or where an adduct of the table or of kin to it agrees better. Other adducts whose main ion was
    measured as well are compared with moved pairs, and alone with the same adducts of formulas that the table lacks (H2, CH2,
    O or C2H4 more or less). Ions of one formula share their lowest rate. With fewer than ten ions of a kind the rate cannot fall
    to 0.1. On half of CoreMetabolome with molecules of the other half as unknown ions, the share of false annotations
    exceeds the stated rate by 0.03 at most, and by 0.06 where all unknown ions are [M+Na]+ (``benchmarks/accuracy/peaks.py``). Only masses count, no isotope pattern and no image (as
    in METASPACE: Palmer et al. 2017, doi:10.1038/nmeth.4072), and isomers are not told apart. A median error far from 0 points to a
    calibration that is off.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> sdata.tables["msi"].var["mz"] = [132.0768, 147.0764, *[400.0 + i for i in range(10)]]
    >>> stmsi.pp.annotate_mz(sdata, polarity="positive", ppm=5)
    >>> sdata.tables["msi"].var["name"].tolist()[:2]
    ['creatine', 'glutamine']
    """
    check_positive(ppm, "ppm")
    if max_fdr is not None:
        check_share(max_fdr, "max_fdr")
    if polarity is not None:
        check_choice(polarity, ("positive", "negative"), "polarity")
    kind = None if matrix is None else matrix_name(matrix)
    if kind is not None:
        check_choice(kind, MATRICES, "matrix")
    msi, changed = table_to_change(data, table_key, copy=copy, rows="pixels")
    mz = _masses(msi)
    molecules = _molecules(database, polarity)
    if mol.ADDUCT in molecules:
        expected, molecules = _of_export(molecules, polarity, adducts)
        candidates = _search_export(mz, molecules, expected, ppm)
    else:
        expected = _adducts(msi, polarity, kind, adducts)
        candidates = _search(mz, molecules, expected, ppm)
    candidates.insert(0, "ion", msi.var_names[candidates["_position"]].astype(str))
    params = {
        "database": _CORE if database is None else "a table" if isinstance(database, pd.DataFrame) else str(database),
        "polarity": expected[0].polarity, "adducts": [a.name for a in expected], "ppm": float(ppm),
    } | ({} if kind is None else {"matrix": kind}) | ({} if max_fdr is None else {"max_fdr": float(max_fdr)})  # fmt: skip
    _write(msi, candidates, params, ppm, max_fdr, key_added)
    mark_stale(data if changed is None else changed, "annotation", table_sections(msi), msi)
    return changed


def _masses(msi: AnnData) -> NDArray[np.float64]:
    """m/z of the ions."""
    if Key.var.MZ not in msi.var:
        msg = f"var has no {Key.var.MZ!r} with the m/z of each ion (Da); found {listing(msi.var.columns)}."
        raise KeyError(msg)
    mz = pd.to_numeric(msi.var[Key.var.MZ], errors="coerce").to_numpy(np.float64)
    if not np.isfinite(mz).any():
        msg = f"var[{Key.var.MZ!r}] holds no number; it needs the m/z of each ion (Da)."
        raise ValueError(msg)
    if (mz <= 0).any() or np.isinf(mz).any():
        msg = f"var[{Key.var.MZ!r}] must hold m/z above 0 (Da), NaN where unknown."
        raise ValueError(msg)
    return mz


def _adducts(
    msi: AnnData, polarity: Polarity | None, matrix: str | None, adducts: Sequence[str] | None
) -> list[Adduct]:
    """The ions to expect, all of one polarity."""
    if adducts is None:
        return [parse_adduct(a) for a in default_adducts(polarity_of(msi, polarity), matrix)]
    if isinstance(adducts, str):
        adducts = [adducts]
    if len(adducts) == 0:
        msg = "adducts is empty; name at least one, such as '[M+H]+', or leave it out for the usual ones."
        raise ValueError(msg)
    expected = list({a.name: a for a in (parse_adduct(text, polarity) for text in adducts)}.values())
    found = {a.polarity for a in expected}
    if len(found) > 1 or (polarity is not None and found != {polarity}):
        wanted = "one polarity" if polarity is None else f"polarity={polarity!r}"
        msg = (
            f"The adducts {listing(a.name for a in expected)} do not go with {wanted}; a spectrum has ions of one sign."
        )
        raise ValueError(msg)
    return expected


def _of_export(
    molecules: pd.DataFrame, polarity: Polarity | None, adducts: Sequence[str] | None
) -> tuple[list[Adduct], pd.DataFrame]:
    """The ions of an export of METASPACE that are asked for."""
    held = [parse_adduct(a) for a in dict.fromkeys(molecules[mol.ADDUCT])]
    wanted = None if adducts is None else {parse_adduct(a, polarity).name for a in adducts}
    expected = [a for a in held if polarity in (None, a.polarity) and (wanted is None or a.name in wanted)]
    if not expected or len({a.polarity for a in expected}) > 1:
        msg = f"The annotations hold the ions {listing(a.name for a in held)}; ask for one polarity and adducts among them."
        raise ValueError(msg)
    return expected, molecules[molecules[mol.ADDUCT].isin([a.name for a in expected])].reset_index(drop=True)


def _molecules(database: str | Path | pd.DataFrame | None, polarity: Polarity | None) -> pd.DataFrame:
    """Molecules with formulas that can be read, charges cut off (``C5H14NO+``)."""
    if database is None:
        from stmsi._core.chemistry.core_metabolites import core_metabolites

        database = core_metabolites()
    table = mol.read_molecules(database, polarity)
    if len(table) == 0:
        msg = "The table of molecules has no row with a formula."
        raise ValueError(msg)
    split = [mol.charge_of(formula) for formula in table[mol.FORMULA]]
    table[mol.FORMULA] = [formula for formula, _ in split]
    table[mol.SIGN] = np.sign([charge for _, charge in split]).astype(np.int64)
    _, bad = valid_formulas(table[mol.FORMULA])
    if bad:
        keep = ~table[mol.FORMULA].isin(bad)
        if not keep.any():
            msg = f"None of the formulas can be read, such as {listing(bad[:3])}; write them like 'C6H12O6'."
            raise ValueError(msg)
        logger.warning(
            "%d of %d molecules are left out, since their formula cannot be read: %s",
            int((~keep).sum()), len(table), listing(bad),
        )  # fmt: skip
        table = table[keep].reset_index(drop=True)
        split = [one for one, kept in zip(split, keep, strict=True) if kept]
    # protons take all negative charges but one: this is the ion that is seen
    table[mol.FORMULA] = [protonated(f, -charge - 1) if charge < -1 else f for f, charge in split]
    return table


def _search(mz: NDArray[np.float64], molecules: pd.DataFrame, expected: list[Adduct], ppm: float) -> pd.DataFrame:
    """All candidates: every formula with every adduct that it can form."""
    ions = molecules[[mol.FORMULA, mol.SIGN]].drop_duplicates().reset_index(drop=True)
    formulas = Formulas(ions[mol.FORMULA].tolist(), ions[mol.SIGN].tolist())
    parts = []
    for order, (adduct, hits) in enumerate(zip(expected, search_masses(mz, formulas, expected, ppm), strict=True)):
        parts.append(
            pd.DataFrame(
                {
                    "_position": hits.measured, "mz": mz[hits.measured], "_order": order, "_formula": hits.formula,
                    "adduct": adduct.name, "ion_mz": adduct.mz(formulas.masses[hits.formula]), "ppm_error": hits.error,
                    "fdr": hits.rate, "_rival": hits.rival,
                }
            )
        )  # fmt: skip
    hits_of_all = pd.concat(parts, ignore_index=True)
    entries = molecules.assign(_row=np.arange(len(molecules))).merge(
        ions.assign(_formula=np.arange(len(ions))), on=[mol.FORMULA, mol.SIGN]
    )
    return hits_of_all.merge(entries, on="_formula", how="inner")


def _search_export(
    mz: NDArray[np.float64], molecules: pd.DataFrame, expected: list[Adduct], ppm: float
) -> pd.DataFrame:
    """All candidates among ions that were annotated already."""
    ions = molecules.drop_duplicates([mol.FORMULA, mol.ADDUCT]).reset_index(drop=True)
    first = {a.name: i for i, a in enumerate(expected)}
    position, ion, error = match_masses(mz, ions[mol.MZ].to_numpy(np.float64), ppm)
    found = ions.loc[ion, [mol.FORMULA, mol.ADDUCT, mol.MZ, mol.FDR]].reset_index(drop=True)
    hits = pd.DataFrame(
        {
            "_position": position, "mz": mz[position],
            "_order": found[mol.ADDUCT].map(first).fillna(len(first)).to_numpy(np.int64),
            "formula": found[mol.FORMULA], "adduct": found[mol.ADDUCT], "ion_mz": found[mol.MZ],
            "ppm_error": error, "fdr": found[mol.FDR], "_rival": False,
        }
    )  # fmt: skip
    entries = molecules.drop(columns=[mol.MZ, mol.FDR]).assign(_row=np.arange(len(molecules)))
    return hits.merge(entries, on=["formula", "adduct"], how="inner")


def _write(
    msi: AnnData, candidates: pd.DataFrame, params: dict[str, Any], ppm: float, max_fdr: float | None, key_added: str
) -> None:
    """Rank the candidates of each ion; write table, best ones and parameters."""
    # equal to a millionth of a ppm: rounding does not decide between isomers
    error = candidates["ppm_error"].abs().round(6)
    worse = error > error.groupby(candidates["_position"]).transform("min") + NEAR_TIE * ppm
    level = np.searchsorted(_LEVELS, candidates["fdr"].fillna(1.0))
    ranking = ["_position", "_worse", "_rival", "_level", "_order", "_error", "_row"]
    # beyond a near tie, the error decides
    candidates = candidates.assign(_error=error, _worse=np.where(worse, error, 0.0), _level=level)
    candidates = candidates.sort_values(ranking, kind="stable")
    candidates["rank"] = candidates.groupby("_position").cumcount() + 1
    best = candidates.drop_duplicates("_position")
    if max_fdr is not None:
        best = best[best["fdr"] <= max_fdr]
    at, n = best["_position"].to_numpy(np.int64), msi.n_vars
    own = msi.var_names.astype(str).to_numpy(object)
    record = msi.uns.get(key_added)
    earlier = record.get("candidates") if isinstance(record, dict) else None
    name = msi.var[Key.var.NAME].astype(object).to_numpy() if Key.var.NAME in msi.var else own
    others = np.ones(n, bool)  # ions of which another source may know something
    others[at] = False
    if isinstance(earlier, pd.DataFrame):  # what an earlier call gave is taken back
        first = earlier[earlier["rank"] == 1].drop_duplicates("ion").set_index("ion")["name"].astype(object)
        given = first.reindex(own)
        name = np.where(name == given.where(given.notna(), None).to_numpy(object), own, name)
        others &= ~np.isin(own, earlier["ion"].astype(str))
    name = name.astype(object)
    name[at] = best["name"].to_numpy(object)
    msi.var[Key.var.NAME] = ["" if pd.isna(v) else str(v) for v in name]
    for column in (Key.var.FORMULA, Key.var.ADDUCT, Key.var.CLASS, Key.var.PPM_ERROR, Key.var.FDR):
        number = column in (Key.var.PPM_ERROR, Key.var.FDR)
        new = np.full(n, np.nan) if number else np.full(n, "", object)
        if column in msi.var:
            known = msi.var[column]
            known = pd.to_numeric(known, errors="coerce") if number else known.astype(object).where(known.notna(), "")
            new[others] = known.to_numpy(new.dtype)[others]
        new[at] = best[column].to_numpy(new.dtype)
        msi.var[column] = new
    msi.var[Key.var.N_CANDIDATES] = np.bincount(candidates["_position"], minlength=n)
    several = candidates.groupby("_position")["formula"].nunique()
    isobaric = np.zeros(n, bool)
    isobaric[several.index[several > 1]] = True
    msi.var[Key.var.ISOBARIC] = isobaric
    if len(best):
        params["median_ppm_error"] = float(best["ppm_error"].median())
        if len(best) >= 10 and abs(params["median_ppm_error"]) > ppm / 2:
            logger.warning(
                "The median error of the annotations is %.2g ppm, more than half the window of %g ppm: the m/z may be "
                "off calibration.", params["median_ppm_error"], ppm,
            )  # fmt: skip
    else:
        logger.warning("No ion was annotated; check polarity, adducts and ppm (%g).", ppm)
    logger.info("%d of %d ions are annotated, %d of them isobaric.", len(best), n, int(isobaric.sum()))
    table = candidates[_CANDIDATES].reset_index(drop=True)
    table.index = table.index.astype(str)
    text_columns = ["ion", "name", "id", "class", "formula", "adduct"]
    table[text_columns] = table[text_columns].astype(str)
    msi.uns[key_added] = {"candidates": table, "params": params}
