"""Metabolites and the genes that make, use and carry them."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd


def core_metabolites() -> pd.DataFrame:
    """Core metabolites and lipids with the human genes that make, use or carry them.

    Central metabolism, cofactors, hormones and fatty acids one by one; lipids as species by their summed chains (``"PC 34:1"``),
    with the genes of their class and of the chains they most often have. It is no complete map: a gene that is not listed
    may well matter.

    Each pair of a metabolite and a gene has a source. Human-GEM (CC BY 4.0) and MEBOCOST (BSD-3-Clause) name reactions of the
    metabolite, or of the pool of its lipid class. A pathway of Reactome (CC BY 4.0) is weaker: it holds the gene, and the pair
    was chosen by hand. The rest has an article, a reaction of Reactome or the EC number of the reaction. Each of these was looked up;
    ``benchmarks/core_table/evidence.tsv`` in the repository says where. Formulas and HMDB ids of part of the molecules are those of METASPACE's
    CoreMetabolome (Apache-2.0). ``benchmarks/core_table/build.py`` in the repository makes the table from these files.

    Returns
    -------
    One row per metabolite, all columns text, empty where not known: ``name``, ``synonyms`` (separated by ``;``), ``class``,
    ``formula`` of the neutral molecule (cation where always charged, such as choline), ids ``kegg``, ``hmdb``, ``chebi``
    (none for lipid species), ``genes`` (enzymes, human symbols separated by ``;``; none where no human enzyme has a source, as for
    allantoin), ``transporters`` (likewise, with carriers in the blood and receptors that take up the metabolite) and
    ``source`` (all that supports these genes, separated by ``"; "``).

    Examples
    --------
    >>> import stmsi
    >>> table = stmsi.datasets.core_metabolites()
    >>> table.set_index("name").loc["glutamine", ["formula", "kegg", "hmdb"]].tolist()
    ['C5H10N2O3', 'C00064', 'HMDB0000641']
    """
    with files("stmsi._core.chemistry").joinpath("core_metabolites.tsv").open(encoding="utf-8") as file:
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
