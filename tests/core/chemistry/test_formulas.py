import pytest

from stmsi._core.chemistry.adducts import ADDUCTS
from stmsi._core.chemistry.formulas import monoisotopic_mass, parse_formula


@pytest.mark.parametrize(
    ("formula", "atoms"),
    [("C6H12O6", {"C": 6, "H": 12, "O": 6}), ("NaCl", {"Na": 1, "Cl": 1}), ("C2H5OH", {"C": 2, "H": 6, "O": 1})],
)
def test_parse(formula, atoms):
    assert parse_formula(formula) == atoms


@pytest.mark.parametrize("wrong", ["", "glucose", "C6H12O6+", "C6(H12)O6", "Xx2", "C6 H12", "[13C]6", "c6h12o6"])
def test_what_is_not_a_formula_is_refused(wrong):
    with pytest.raises(ValueError, match="not a molecular formula"):
        parse_formula(wrong)


@pytest.mark.parametrize(
    ("formula", "adduct", "mz"),
    [
        ("C6H12O6", "[M+H]+", 181.0707), ("C6H12O6", "[M+Na]+", 203.0526), ("C6H12O6", "[M+K]+", 219.0266),
        ("C5H9NO4", "[M-H]-", 146.0459), ("C42H82NO8P", "[M+H]+", 760.5851), ("C27H46O", "[M+H-H2O]+", 369.3516),
        ("C6H12O6", "[M+Cl]-", 215.0328), ("C55H102O6", "[M+NH4]+", 876.8015), ("C5H14NO", "[M]+", 104.1070),
    ],
)  # fmt: skip
def test_ions(formula, adduct, mz):
    assert monoisotopic_mass(formula) + ADDUCTS[adduct] == pytest.approx(mz, abs=2e-4)
