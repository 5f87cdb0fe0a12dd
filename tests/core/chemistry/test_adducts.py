import numpy as np
import pytest

from stmsi._core.chemistry.adducts import (
    ADDUCTS,
    MATRICES,
    default_adducts,
    matrix_name,
    matrix_peaks,
    parse_adduct,
)
from stmsi._core.chemistry.formulas import Formulas, monoisotopic_mass


def _mz(formula, adduct):
    return float(parse_adduct(adduct).mz(np.array([monoisotopic_mass(formula)]))[0])


# masses from the literature and from databases, not from this code
@pytest.mark.parametrize(
    ("formula", "adduct", "mz"),
    [
        ("C6H12O6", "[M+H]+", 181.0707), ("C6H12O6", "[2M+Na]+", 383.1160), ("C5H14NO", "[M]+", 104.1070),
        ("C63H88CoN14O14P", "[M+2H]2+", 678.2910), ("C6H12O6", "[M+Cl]-", 215.0328), ("C5H9NO4", "[M-H-H2O]-", 128.0353),
        # dopamine with one and two FMP-10, noradrenaline with two, GABA and serotonin with one (Shariatgorji 2019)
        ("C8H11NO2", "[M+FMP10]+", 421.1911), ("C8H11NO2", "[M+2FMP10-CH3]+", 674.2802),
        ("C8H11NO3", "[M+2FMP10-CH3]+", 690.2751), ("C4H9NO2", "[M+FMP10]+", 371.1754),
        ("C10H12N2O", "[M+FMP10]+", 444.2070),
        # shorthand of solvents and acids: glucose and caffeine
        ("C6H12O6", "[M+FA-H]-", 225.0616), ("C6H12O6", "[M+Hac-H]-", 239.0772), ("C6H12O6", "[M+TFA-H]-", 293.0490),
        ("C8H10N4O2", "[M+ACN+H]+", 236.1142), ("C8H10N4O2", "[M+DMSO+H]+", 273.1016), ("C2H3O2", "[M]-", 59.0139),
    ],
)  # fmt: skip
def test_mz_of_known_ions(formula, adduct, mz):
    assert _mz(formula, adduct) == pytest.approx(mz, abs=3e-4)


def test_notations_of_metaspace():
    assert parse_adduct("M+H", "positive") == parse_adduct("[M+H]+")
    assert parse_adduct("M-H", "negative").shift == ADDUCTS["[M-H]-"]
    assert parse_adduct(" [M+Na]+ ").polarity == "positive"


@pytest.mark.parametrize("wrong", ["", "H", "[M+Xx]+", "M+h", "[M+H]*", "[0M+H]+", "[M+H", "[M]0+"])
def test_what_is_no_adduct_is_refused(wrong):
    with pytest.raises(ValueError, match=r"is not an adduct such as|does not say its charge"):
        parse_adduct(wrong)


def test_a_charge_is_needed():
    with pytest.raises(ValueError, match="does not say its charge; write"):
        parse_adduct("M+H")


@pytest.mark.parametrize(
    ("adduct", "fits"),
    [
        # glucose, choline (a cation), methane, haem, ammonia
        ("[M+H]+", [True, False, True, True, True]),
        ("[M]+", [False, True, False, True, False]),
        ("[M+H-H2O]+", [True, False, False, True, False]),
        ("[M+FMP10]+", [True, False, False, True, True]),
        ("[M+2FMP10-CH3]+", [True, False, False, True, False]),
        ("[M-H]-", [True, False, True, True, True]),
    ],
)
def test_which_formulas_can_form_an_ion(adduct, fits):
    formulas = Formulas(["C6H12O6", "C5H14NO", "CH4", "C34H32FeN4O4", "NH3"])
    assert parse_adduct(adduct).fits(formulas).tolist() == fits


def test_formulas_as_an_array_weigh_what_single_ones_do():
    names = ["C6H12O6", "C42H82NO8P", "C5H11NO2Se", "H2O"]
    np.testing.assert_allclose(Formulas(names).masses, [monoisotopic_mass(n) for n in names], rtol=1e-12)
    assert Formulas(names).of(["O", "N"]).tolist() == [6, 9, 3, 1]


def test_ions_keep_the_sign_of_their_charge():
    # acetate, choline, an odd sum of valences without a sign, glucose
    formulas = Formulas(["C2H3O2", "C5H14NO", "C5H14NO", "C6H12O6"], [-1, 1, 0, 0])
    expected = {"[M]+": [0, 1, 1, 0], "[M]-": [1, 0, 0, 0], "[M+H]+": [0, 0, 0, 1], "[M-H]-": [0, 0, 0, 1]}
    for adduct, fits in expected.items():
        assert parse_adduct(adduct).fits(formulas).tolist() == [bool(f) for f in fits]


@pytest.mark.parametrize(
    ("adduct", "main", "added"),
    [
        ("[M+H]+", True, False), ("[M-H]-", True, False), ("[M]+", True, False), ("[M+FMP10]+", True, False),
        ("[M+Na]+", False, True), ("[M-H+2Na]+", False, True), ("[M+FA-H]-", False, True),
        ("[M+H-H2O]+", False, False), ("[2M+H]+", False, False),
    ],
)  # fmt: skip
def test_main_ions_and_additions(adduct, main, added):
    assert (parse_adduct(adduct).is_main, parse_adduct(adduct).is_added) == (main, added)


@pytest.mark.parametrize("name", ["dhb", "9AA", "FMP10", "Norharmane", "HCCA", "x"])
def test_names_of_matrices(name):
    expected = {"dhb": "DHB", "9AA": "9-AA", "FMP10": "FMP-10", "Norharmane": "NORHARMANE", "HCCA": "CHCA", "x": "x"}
    assert matrix_name(name) == expected[name]


def test_default_adducts_have_the_polarity_asked_for():
    for matrix in (None, *MATRICES):
        for polarity in ("positive", "negative"):
            assert {parse_adduct(a).polarity for a in default_adducts(polarity, matrix)} == {polarity}
    assert default_adducts("positive", "FMP-10")[0] == "[M+FMP10]+"


# well-known peaks of the blanks
@pytest.mark.parametrize(
    ("matrix", "polarity", "mz"),
    [
        ("CHCA", "positive", [172.0393, 190.0499, 212.0318, 228.0058, 379.0925, 146.0600]),
        ("DHB", "positive", [137.0233, 155.0339, 154.0261, 177.0158, 273.0394]),
        ("DHB", "negative", [153.0193]), ("9-AA", "negative", [193.0771, 387.1615]), ("9-AA", "positive", [195.0917]),
        ("FMP-10", "positive", [288.1183]),
    ],
)  # fmt: skip
def test_peaks_of_a_matrix(matrix, polarity, mz):
    peaks = np.array(list(matrix_peaks(matrix, polarity).values()))
    assert (np.abs(peaks[:, None] - mz).min(axis=0) < 5e-4).all()


@pytest.mark.parametrize("matrix", MATRICES)
def test_lists_are_short_and_their_labels_are_the_ions(matrix):
    for polarity in ("positive", "negative"):
        peaks = matrix_peaks(matrix, polarity)
        assert len(peaks) <= 130
        for label, mz in peaks.items():
            if matrix != "FMP-10" and label != "[M]+":
                assert _mz(MATRICES[matrix], label) == pytest.approx(mz, abs=1e-6), label
