"""What a metabolite is called in plots, in the viewer and in reports."""

import numpy as np
import pandas as pd
import pytest

from stmsi._data.metabolite_labels import Label, label, short_labels

FEATURES = pd.DataFrame(
    {
        "name": ["PC 34:1", "PC 34:1; PC(16:0/18:1); PC(18:1/16:0)", np.nan, "nan", "C8H8O [M+H]+", "", "glucose, D-", "PC 34:1"],
        "adduct": ["[M+H]+", "", "[M+Na]+", "", "[M+H]+", "[M-H]-", "", "[M+Na]+"],
        "mz": [760.5851, 760.5851, 1.0, np.nan, 121.0648, 104.107, 181.0707, 782.5670],
        "formula": ["", "", "", "", "C8H8O", "", "", ""],
        "molecule_names": ["", "", "", "", "tolualdehyde, acetophenone, phthalane", "", "", ""],
        "n_isomers": [1, 1, 1, 1, 3, 0, 1, 1],
    },
    index=["a", "b", "c", "d", "e", "mz_104_107", "g", "h"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("metabolite", "text"),
    [
        ("a", "PC 34:1 [M+H]+ (m/z 760.5851)"),
        ("b", "PC 34:1 +2 (m/z 760.5851)"),
        ("c", "c [M+Na]+ (m/z 1.0000)"),
        ("d", "d"),
        ("e", "tolualdehyde +2 [M+H]+ (m/z 121.0648)"),
        ("mz_104_107", "m/z 104.1070 [M-H]-"),
        ("g", "glucose, D- (m/z 181.0707)"),
        ("not in the table", "not in the table"),
    ],
)
def test_name_adduct_and_mz(metabolite, text):
    assert str(label(FEATURES, metabolite)) == text
    assert str(label(FEATURES.loc[[]], metabolite)) == metabolite
    assert str(label(None, metabolite)) == metabolite


def test_lists_are_shortened():
    names = "; ".join(["PC 34:1", *(f"isomer {i}" for i in range(36))])
    assert label(pd.DataFrame({"name": [names]}, index=["a"]), "a").short == "PC 34:1 +36"


def test_short_labels_tell_all_apart():
    features = pd.concat([FEATURES, FEATURES.loc[["a"]].rename({"a": "twin"}).assign(mz=500.0)])
    found = short_labels(features, ["a", "b", "c", "h", "twin", "mz_104_107"])
    assert found == [
        "PC 34:1 [M+H]+ (m/z 760.5851)", "PC 34:1 +2", "c", "PC 34:1 [M+Na]+", "PC 34:1 [M+H]+ (m/z 500.0000)", "m/z 104.1070",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "lines"),
    [
        (Label("PC 34:1", "[M+H]+", 760.5851), ["PC 34:1 [M+H]+", "m/z 760.5851"]),
        (Label("PC(16:0/18:1(9Z))/PE(18:0/20:4)", "[M+H]+", 1.0), ["PC(16:0/18:1(9Z))/", "PE(18:0/20:4)", "[M+H]+, m/z 1.0000"]),
        (Label("a name-with-hyphens and spaces", "", 1.0), ["a name-with-hyphen…", "m/z 1.0000"]),
        (Label("", "[M+H]+", 1.0), ["m/z 1.0000 [M+H]+"]),
        (Label("C7H6/O2"), ["C7H6/O2"]),
    ],
)  # fmt: skip
def test_lines_break_only_behind_a_slash(one, lines):
    assert one.lines(19) == lines
    assert all(len(line) <= 19 for line in lines)
