import numpy as np
import pytest

from stmsi._core.chemistry.adducts import parse_adduct
from stmsi._core.chemistry.formulas import Formulas
from stmsi._core.chemistry.mass_annotation import match_masses
from stmsi._core.chemistry.mass_evidence import search_masses

ADDUCTS = [parse_adduct(a) for a in ("[M+H]+", "[M+Na]+", "[M+K]+")]


def _lipids():
    """Formulas on a lattice as dense as that of lipids: chains, double bonds and head groups."""
    heads = [("", 0, 2), ("N", 1, 4), ("NO6P", 1, 8), ("O8P", 0, 8), ("N2O6P", 2, 6)]
    names = []
    for head, nitrogen, oxygen in heads:
        for carbon in range(16, 48):
            for unsaturated in range(0, 14, 2):
                hydrogen = 2 * carbon + nitrogen % 2 + ("P" in head) - unsaturated
                names.append(f"C{carbon}H{hydrogen + (hydrogen + nitrogen + ('P' in head)) % 2}"
                             + (f"N{nitrogen}" if nitrogen else "") + f"O{oxygen}" + ("P" if "P" in head else ""))  # fmt: skip
    return np.array(list(dict.fromkeys(names)))


@pytest.mark.parametrize(("n_known", "ion"), [(30, 0), (120, 0), (60, 1)], ids=["few known", "many known", "sodium"])
def test_the_rate_is_honest_for_unknown_molecules(n_known, ion):
    """The unknown ions are molecules that the table lacks, as [M+H]+ or as [M+Na]+."""
    names, kept, false = _lipids(), 0, 0
    masses = dict(zip(names, Formulas(list(names)).masses, strict=True))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        order = rng.permutation(names)
        table, rest = order[: len(order) // 2], order[len(order) // 2 :]
        true, unknown = rng.choice(table, n_known, replace=False), rng.choice(rest, 150, replace=False)
        mz = np.append(
            ADDUCTS[0].mz(np.array([masses[f] for f in true])), ADDUCTS[ion].mz(np.array([masses[f] for f in unknown]))
        )
        mz *= 1 + rng.normal(0, 1, len(mz)) * 1e-6
        right = np.append(true, unknown)
        for hits in search_masses(mz, Formulas(list(table)), ADDUCTS, 5.0):
            good = hits.rate <= 0.1
            kept += good.sum()
            false += (table[hits.formula[good]] != right[hits.measured[good]]).sum()
    assert kept >= 4 * n_known * (0.5 if ion == 0 and n_known > 100 else 0)
    assert false <= 0.15 * max(kept, 1)


def test_all_pairs_are_found_whatever_their_rate():
    rng = np.random.default_rng(0)
    formulas = Formulas(list(_lipids()[:100]))
    mz = np.append(ADDUCTS[1].mz(formulas.masses[:20]), [np.nan, 500.0]) * (1 + rng.normal(0, 1, 22) * 1e-6)
    for adduct, hits in zip(ADDUCTS, search_masses(mz, formulas, ADDUCTS, 5.0), strict=True):
        measured, ion, error = match_masses(mz, adduct.mz(formulas.masses), 5.0)
        assert set(zip(hits.measured, hits.formula, strict=True)) == set(zip(measured, ion, strict=True))
        np.testing.assert_allclose(np.sort(hits.error), np.sort(error))
        assert ((hits.rate > 0) & (hits.rate <= 1)).all()


def test_an_adduct_of_a_measured_ion_is_not_the_main_ion_of_another():
    # [M+Na]+ of PC 34:1 and [M+H]+ of PC 36:4 are 3 ppm apart
    formulas = Formulas(["C42H82NO8P", "C44H80NO8P"])
    main, sodium = (a.mz(formulas.masses)[0] for a in ADDUCTS[:2])
    together, _, _ = search_masses(np.array([main, sodium]), formulas, ADDUCTS, 5.0)
    assert together.rival[together.formula == 1].tolist() == [True]
    assert together.rate[together.formula == 1].tolist() == [1.0]
    neighbour = ADDUCTS[0].mz(formulas.masses)[1]
    alone, _, _ = search_masses(np.array([neighbour]), formulas, ADDUCTS, 5.0)
    assert not alone.rival.any()
