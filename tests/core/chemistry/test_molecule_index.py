import pytest

from stmsi._core.chemistry.molecule_index import Entry, EntryIndex, normal_name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("L-Glutamic acid", "glutamate"), ("D-Glucose", "glucose"), ("(S)-Lactate", "lactic acid"), ("GABA", "gaba"),
        ("PC(34:1)", "PC 34:1"), ("PC(16:0/18:1)", "PC 34:1"), ("PC(16:0/18:1(9Z))", "PC 34:1"), ("PC 16:0_18:1", "PC 34:1"),
        ("PE(P-16:0/22:6)", "PE P-38:6"), ("PE(O-38:5)", "PE O-38:5"), ("SM(d18:1/16:0)", "SM d34:1"), ("TG(16:0/18:1/18:1)", "TG 52:2"),
        ("LPC 16:0/0:0", "LPC 16:0"), ("5'-Methylthioadenosine", "5-methylthioadenosine"),
    ],
)  # fmt: skip
def test_names_that_mean_the_same(one, other):
    assert normal_name(one) == normal_name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("PC 34:1", "PC 34:2"), ("PC O-34:1", "PC 34:1"), ("SM d34:1", "SM 34:1"), ("LPC 16:0", "PC 16:0"), ("leucine", "isoleucine"),
        ("2-phosphoglycerate", "3-phosphoglycerate"), ("lactate", "acetate"), ("NAD", "NADH"), ("dopamine", "opamine"),
    ],
)  # fmt: skip
def test_names_that_do_not(one, other):
    assert normal_name(one) != normal_name(other)


@pytest.fixture
def index():
    return EntryIndex(
        [
            Entry(("leucine",), ("BCAT1",), {"hmdb": "HMDB0000687", "kegg": "C00123"}, "C6H13NO2"),
            Entry(("isoleucine",), ("BCAT2",), {"hmdb": "HMDB0000172", "chebi": "CHEBI:17191"}, "C6H13NO2"),
            Entry(("Leucine", "H-Leu"), ("LARS1",)),
        ]
    )


def test_ids_in_any_spelling(index):
    assert index.by_id({"hmdb": "HMDB00687"}) == [0]
    assert index.by_id({"hmdb": "HMDB0000172, HMDB0000687"}) == [1, 0]
    assert index.by_id({"chebi": "17191"}) == [1]
    assert index.by_id({"kegg": "C99999", "hmdb": ""}) == []


def test_a_name_as_it_is_goes_before_its_normal_form(index):
    assert index.by_name(["leucine"]) == [0]
    assert index.by_name(["L-leucine"]) == [0, 2]
    assert index.by_name(["", "unknown"]) == []


def test_isomers_are_all_found(index):
    assert index.by_formula("C6H13NO2") == [0, 1]
    assert index.by_formula("H13C6NO2") == [0, 1]
    assert index.by_formula("not known") == []
    assert index.by_mz(132.1019, ["[M+H]+"], ppm=5) == [0, 1]
    assert index.by_mz(132.1019, ["[M+Na]+"], ppm=5) == []
    assert index.by_mz(132.1119, ["[M+H]+"], ppm=5) == []
