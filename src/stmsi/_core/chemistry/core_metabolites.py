"""Metabolites and the genes that make, use and carry them."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd


def core_metabolites() -> pd.DataFrame:
    """Core metabolites and lipids with the human genes that make, use or carry them.

    Written for stmsi from textbook biochemistry: central metabolism, cofactors and sterols one by one; lipids as
    species by their summed chains (``"PC 34:1"``), with the genes of their class and chains. It is no complete map: a
    gene that is not listed may well matter.

    Returns
    -------
    One row per metabolite, all columns text, empty where not known: ``name``, ``synonyms`` (separated by ``;``), ``class``,
    ``formula`` of the neutral molecule (cation where always charged, such as choline), ids ``kegg``, ``hmdb``, ``chebi``
    (none for lipid species), ``genes`` (enzymes, HGNC symbols separated by ``;``) and ``transporters`` (likewise, with
    carriers in the blood and receptors that take up the metabolite).

    Examples
    --------
    >>> import stmsi
    >>> table = stmsi.datasets.core_metabolites()
    >>> table.set_index("name").loc["glutamine", ["formula", "kegg", "hmdb"]].tolist()
    ['C5H10N2O3', 'C00064', 'HMDB0000641']
    """
    with files("stmsi._core.chemistry").joinpath("core_metabolites.tsv").open(encoding="utf-8") as file:
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
