import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stmsi
from stmsi._core.chemistry.formulas import monoisotopic_mass

H, NA, CL, E = 1.00782503, 22.98976928, 34.96885268, 0.00054858
MOLECULES = pd.DataFrame(
    {
        "name": ["glucose", "fructose", "choline", "PC 34:1", "oddity"],
        "id": ["a", "b", "c", "d", "e"],
        "formula": ["C6H12O6", "C6H12O6", "C5H14NO", "C42H82NO8P", "C8H12O2S"],
        "class": ["sugar", "sugar", "amine", "lipid", ""],
    }
)


def _m(formula):
    return monoisotopic_mass(formula)


def _table(mz, names=None):
    var = pd.DataFrame({"mz": mz}, index=[f"ion{j}" for j in range(len(mz))])
    if names is not None:
        var["name"] = names
    X = np.ones((3, len(mz)), np.float32)
    return AnnData(X, obs=pd.DataFrame({"sample": "s"}, index=list("abc")), var=var)


def test_candidates_by_hand():
    glucose, choline = _m("C6H12O6") + NA - E, _m("C5H14NO") - E
    table = _table([glucose * (1 + 2e-6), choline, 500.0, np.nan])
    stmsi.pp.annotate_mz(table, MOLECULES, polarity="positive", ppm=5)
    var = table.var
    assert var["name"].tolist() == ["glucose", "choline", "ion2", "ion3"]
    assert var["formula"].tolist() == ["C6H12O6", "C5H14NO", "", ""]
    assert var["adduct"].tolist() == ["[M+Na]+", "[M]+", "", ""]
    assert var["class"].tolist() == ["sugar", "amine", "", ""]
    assert var["ppm_error"].tolist() == pytest.approx([2, 0, np.nan, np.nan], abs=0.01, nan_ok=True)
    assert var["n_candidates"].tolist() == [2, 1, 0, 0]
    assert not var["isobaric"].any(), "isomers are not isobars"
    candidates = table.uns["annotation"]["candidates"]
    assert candidates["ion"].tolist() == ["ion0", "ion0", "ion1"]
    assert candidates["name"].tolist() == ["glucose", "fructose", "choline"]
    assert candidates["id"].tolist() == ["a", "b", "c"]
    assert candidates["rank"].tolist() == [1, 2, 1]
    assert candidates["ion_mz"].tolist() == pytest.approx([glucose, glucose, choline], abs=1e-6)
    assert candidates["fdr"].between(0, 1).all()
    params = table.uns["annotation"]["params"]
    assert params["adducts"] == ["[M+H]+", "[M+Na]+", "[M+K]+", "[M]+"]
    assert params["median_ppm_error"] == pytest.approx(1, abs=0.01)


def test_isobars_are_flagged_and_the_nearest_is_the_best():
    # SH4 against C3: 3.4 mDa
    molecules = pd.DataFrame({"name": ["thio", "aryl"], "formula": ["C8H12O2S", "C11H8O2"]})
    table = _table([_m("C8H12O2S") + H - E])
    stmsi.pp.annotate_mz(table, molecules.iloc[::-1], adducts=["[M+H]+"], ppm=30)
    assert table.var["name"].tolist() == ["thio"]
    assert table.var["isobaric"].tolist() == [True]
    assert table.var["n_candidates"].tolist() == [2]


def test_the_adduct_that_stands_first_wins_a_tie():
    molecules = pd.DataFrame({"name": ["a", "b"], "formula": ["C6H10O5", "C6H12O6"]})
    mz = _m("C6H12O6") + H - E
    for adducts, best in ((["[M+H]+", "[M+H3O]+"], "b"), (["[M+H3O]+", "[M+H]+"], "a")):
        table = _table([mz])
        stmsi.pp.annotate_mz(table, molecules, adducts=adducts)
        assert table.var["name"].tolist() == [best]
        assert table.var["n_candidates"].tolist() == [2]


def test_near_ties_go_by_the_order_of_adducts():
    # the other way round by 0.3 ppm, which nobody measures
    molecules = pd.DataFrame({"name": ["a", "b"], "formula": ["C6H10O5", "C6H12O6"]})
    mz = _m("C6H12O6") + H - E
    for adducts, best in ((["[M+H]+", "[M+H3O]+"], "b"), (["[M+H3O]+", "[M+H]+"], "a")):
        table = _table([mz * (1 + 0.3e-6)])
        stmsi.pp.annotate_mz(table, molecules, adducts=adducts)
        assert table.var["name"].tolist() == [best]
    lipids = pd.DataFrame({"name": ["PC 34:1", "PC 36:4"], "formula": ["C42H82NO8P", "C44H80NO8P"]})
    table = _table([_m("C42H82NO8P") + NA - E])
    stmsi.pp.annotate_mz(table, lipids, adducts=["[M+H]+", "[M+Na]+"])
    assert table.var["adduct"].tolist() == ["[M+Na]+"], "3 ppm are no near tie"


def test_anions_are_not_cations():
    molecules = pd.DataFrame(
        {"name": ["oleate", "choline", "ATP"], "formula": ["C18H33O2-", "C5H14NO+", "C10H12N5O13P3-4"]}
    )
    cations = _table([_m("C18H33O2") - E, _m("C5H14NO") - E])
    stmsi.pp.annotate_mz(cations, molecules, polarity="positive")
    assert cations.var["name"].tolist() == ["ion0", "choline"]
    anions = _table([281.2486, 505.9885, _m("C5H14NO") + E])  # oleate, ATP with three protons
    stmsi.pp.annotate_mz(anions, molecules, polarity="negative")
    assert anions.var["name"].tolist() == ["oleate", "ATP", "ion2"]
    assert anions.var["adduct"].tolist() == ["[M]-", "[M]-", ""]
    assert anions.var["formula"].tolist() == ["C18H33O2", "C10H15N5O13P3", ""]


def test_polarity_comes_from_the_file_or_the_adducts():
    mz = [_m("C6H12O6") - H + E, _m("C6H12O6") + CL + E]
    table = _table(mz)
    table.uns["msi"] = {"attrs": {"s": {"polarity": "negative"}}}
    stmsi.pp.annotate_mz(table, MOLECULES)
    assert table.var["adduct"].tolist() == ["[M-H]-", "[M+Cl]-"]
    other = _table(mz)
    stmsi.pp.annotate_mz(other, MOLECULES, adducts="[M-H]-")
    assert other.var["adduct"].tolist() == ["[M-H]-", ""]
    assert other.uns["annotation"]["params"]["polarity"] == "negative"


def test_derivatised_amines():
    table = _table([421.1911, 674.2802, 371.1754])
    stmsi.pp.annotate_mz(table, polarity="positive", matrix="fmp10", ppm=3)
    assert table.var["name"].tolist() == ["dopamine", "dopamine", "4-aminobutyrate"]
    assert table.var["adduct"].tolist() == ["[M+FMP10]+", "[M+2FMP10-CH3]+", "[M+FMP10]+"]
    assert table.uns["annotation"]["params"]["matrix"] == "FMP-10"


def test_the_default_is_the_core_table(toy):
    toy.tables["msi"].var["mz"] = [132.0768, 147.0764, *[400.0 + i for i in range(10)]]
    out = stmsi.pp.annotate_mz(toy, polarity="positive", copy=True)
    assert out.tables["msi"].var["name"].tolist()[:2] == ["creatine", "glutamine"]
    assert "annotation" not in toy.tables["msi"].uns


@pytest.mark.parametrize(
    ("columns", "sep", "suffix"),
    [
        ({"mol_id": "id", "mol_name": "name", "formula": "formula"}, ",", "csv"),
        ({"LM_ID": "id", "COMMON_NAME": "name", "FORMULA": "formula", "MAIN_CLASS": "class"}, "\t", "tsv"),
        ({"accession": "id", "name": "name", "chemical_formula": "formula", "super_class": "class"}, ";", "csv"),
        ({"Molecular Formula": "formula", "Name": "name"}, "\t", "txt"),
    ],
)
def test_tables_of_others(tmp_path, columns, sep, suffix):
    path = tmp_path / f"table.{suffix}"
    pd.DataFrame({there: MOLECULES[here] for there, here in columns.items()}).to_csv(path, sep=sep)
    table = _table([_m("C42H82NO8P") + H - E])
    stmsi.pp.annotate_mz(table, path, polarity="positive")
    assert table.var["name"].tolist() == ["PC 34:1"]
    assert table.var["class"].tolist() == ["lipid" if "class" in columns.values() else ""]
    assert table.uns["annotation"]["candidates"]["id"].tolist() == ["d" if "id" in columns.values() else ""]


def _export():
    return pd.DataFrame(
        {
            "datasetName": ["x", "x", "y"], "formula": ["C6H12O6", "C42H82NO8P", "C6H12O6"],
            "adduct": ["M+Na", "M+H", "M+Na"], "ion": ["C6H12O6+Na+", "C42H82NO8P+H+", "C6H12O6+Na+"],
            "mz": [203.05261, 760.58508, 203.05261], "msm": [0.9, 0.8, 0.3], "fdr": [0.05, 0.1, 0.5],
            "moleculeNames": ["D-Glucose, 2,5-anhydro thing", "PC(16:0/18:1), PC(18:1/16:0)", "D-Glucose"],
            "moleculeIds": ["HMDB1", "HMDB2, HMDB3", "HMDB1"],
        }
    )  # fmt: skip


def test_exports_of_metaspace_are_taken_as_they_are(tmp_path):
    path = tmp_path / "annotations.csv"
    path.write_text("# Generated\n# URL: https://metaspace2020.eu\n" + _export().to_csv(index=False))
    table = _table([203.0526, 760.5851])
    stmsi.pp.annotate_mz(table, path)
    assert table.var["adduct"].tolist() == ["[M+Na]+", "[M+H]+"]
    assert table.var["fdr"].tolist() == [0.05, 0.1]
    assert table.uns["annotation"]["params"]["polarity"] == "positive"
    # names with commas of their own are not torn
    names = ["D-Glucose, 2,5-anhydro thing", "PC(16:0/18:1)", "PC(18:1/16:0)"]
    assert table.uns["annotation"]["candidates"]["name"].tolist() == names
    stmsi.pp.annotate_mz(table, path, adducts=["[M+H]+"])
    assert table.var["adduct"].tolist() == ["", "[M+H]+"]
    with pytest.raises(ValueError, match=r"hold the ions '.*ask for one polarity"):
        stmsi.pp.annotate_mz(table, path, polarity="negative")


def test_weak_annotations_stay_out_of_var():
    table = _table([_m("C6H12O6") + H - E, _m("C42H82NO8P") + H - E + 0.003])
    stmsi.pp.annotate_mz(table, MOLECULES, adducts=["[M+H]+"])
    assert (table.var["formula"] != "").all()
    rate = table.var["fdr"].to_numpy()
    stmsi.pp.annotate_mz(table, MOLECULES, adducts=["[M+H]+"], max_fdr=float(rate.min()))
    assert (table.var["formula"] != "").tolist() == (rate <= rate.min()).tolist()
    assert len(table.uns["annotation"]["candidates"]) == 3


def test_called_again_nothing_of_the_first_call_stays():
    mz = [_m("C6H12O6") + NA - E, _m("C42H82NO8P") + H - E]
    table = _table(mz, names=["my sugar", "my lipid"])
    stmsi.pp.annotate_mz(table, MOLECULES.iloc[:1], polarity="positive")
    assert table.var["name"].tolist() == ["glucose", "my lipid"]
    stmsi.pp.annotate_mz(table, MOLECULES.iloc[3:4], polarity="positive")
    assert table.var["name"].tolist() == ["ion0", "PC 34:1"]
    assert table.var["adduct"].tolist() == ["", "[M+H]+"]


def test_nothing_found_is_told(caplog):
    table = _table([150.5, 160.5])
    stmsi.pp.annotate_mz(table, MOLECULES, polarity="positive")
    assert "No ion was annotated" in caplog.text
    assert table.var["name"].tolist() == ["ion0", "ion1"]
    assert len(table.uns["annotation"]["candidates"]) == 0


def test_a_calibration_that_is_off_is_told(caplog):
    core = stmsi.datasets.core_metabolites()["formula"].iloc[:40]
    table = _table([(_m(f) + H - E) * (1 + 4e-6) for f in dict.fromkeys(core)])
    stmsi.pp.annotate_mz(table, adducts=["[M+H]+"], ppm=5)
    assert "off calibration" in caplog.text


def test_formulas_that_cannot_be_read_are_counted(caplog):
    molecules = pd.DataFrame({"name": list("abcd"), "formula": ["C6H12O6", "C5H14NO+", "(C2H4)n", None]})
    table = _table([_m("C6H12O6") + H - E, _m("C5H14NO") - E])
    stmsi.pp.annotate_mz(table, molecules, polarity="positive")
    assert table.var["name"].tolist() == ["a", "b"]
    assert "1 of 3 molecules are left out" in caplog.text


# anndata < 0.13 announces that it will write another version of zarr
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("mz", [[203.0526, 760.5851, 300.0], [300.0]], ids=["found", "nothing found"])
def test_it_survives_files(mz, tmp_path):
    table = _table(mz)
    stmsi.pp.annotate_mz(table, MOLECULES, polarity="positive", matrix="DHB", max_fdr=0.9)
    expected = table.uns["annotation"]
    table.copy().write_h5ad(tmp_path / "a.h5ad")
    table.copy().write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        found = back.uns["annotation"]
        assert set(found) == {"candidates", "params"}
        assert found["candidates"].shape == expected["candidates"].shape
        for column in expected["candidates"]:
            assert found["candidates"][column].tolist() == expected["candidates"][column].tolist()
        assert list(found["params"]["adducts"]) == expected["params"]["adducts"]
        assert back.var["name"].astype(str).tolist() == table.var["name"].tolist()
        assert back.var["isobaric"].dtype == bool
        stmsi.pp.annotate_mz(back, MOLECULES, polarity="positive")


BAD = {
    "no mz": (lambda t: t.var.drop(columns="mz", inplace=True), {}, KeyError, "var has no 'mz'"),
    "mz of nan": (lambda t: t.var.assign(mz=np.nan), {}, ValueError, "holds no number"),
    "negative mz": (lambda t: t.var.assign(mz=-5.0), {}, ValueError, "must hold m/z above 0"),
    "polarity": (None, {"polarity": "plus"}, ValueError, "polarity='plus' is not known"),
    "no polarity": (None, {"polarity": None}, ValueError, "Pass polarity='positive' or 'negative'"),
    "matrix": (None, {"matrix": "sugar"}, ValueError, "matrix='sugar' is not known; choose one of 'DHB'"),
    "adduct": (None, {"adducts": ["[M+Xy]+"]}, ValueError, r"'\[M\+Xy\]\+' is not an adduct such as"),
    "no adducts": (None, {"adducts": []}, ValueError, "adducts is empty"),
    "two polarities": (None, {"adducts": ["[M+H]+", "[M-H]-"]}, ValueError, "ions of one sign"),
    "other polarity": (None, {"adducts": ["[M-H]-"]}, ValueError, "do not go with polarity='positive'"),
    "ppm": (None, {"ppm": 0}, ValueError, "ppm must be a positive number, found 0"),
    "max_fdr": (None, {"max_fdr": 5}, ValueError, "max_fdr is a share"),
    "no formulas": (None, {"database": MOLECULES[["name"]]}, KeyError, "no column with formulas"),
    "no molecules": (None, {"database": MOLECULES[:0]}, ValueError, "no row with a formula"),
    "wrong formulas": (None, {"database": MOLECULES.assign(formula="glucose")}, ValueError, "None of the formulas"),
    "no file": (None, {"database": "nowhere.csv"}, FileNotFoundError, "There is no file nowhere.csv"),
}


@pytest.mark.parametrize(("change", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(change, kwargs, error, message):
    table = _table([203.0526, 760.5851])
    if change is not None:
        var = change(table)
        table.var = table.var if var is None else var
    before = table.var.copy()
    with pytest.raises(error, match=message):
        stmsi.pp.annotate_mz(table, **({"database": MOLECULES, "polarity": "positive"} | kwargs))
    pd.testing.assert_frame_equal(table.var, before)
    assert not table.uns


def test_files_that_are_no_tables(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        stmsi.pp.annotate_mz(_table([203.0526]), empty, polarity="positive")
    with pytest.raises(ValueError, match="is a directory; pass one file"):
        stmsi.pp.annotate_mz(_table([203.0526]), tmp_path, polarity="positive")


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="Expected an AnnData or a SpatialData"):
        stmsi.pp.annotate_mz(MOLECULES, polarity="positive")
    with pytest.raises(ValueError, match="table is empty"):
        stmsi.pp.annotate_mz(_table([]), polarity="positive")


@pytest.fixture
def bladder(data_dir):
    table = ad.read_h5ad(data_dir / "msi_bladder" / "bladder_msi.h5ad")
    table.var["mz"] = table.var["raw_mz"].astype(float)
    table.obs["sample"], table.obs["row"], table.obs["col"] = "bladder", table.obs["y_coord"], table.obs["x_coord"]
    return table


@pytest.mark.realdata
def test_bladder_lipids_are_those_of_the_deposit(bladder):
    stmsi.pp.annotate_mz(bladder, polarity="positive", ppm=5)
    var = bladder.var[bladder.var["formula"] != ""]
    assert len(var) >= 30
    published = [
        f in [p.strip() for p in str(all_of_it).split(";")]
        for f, all_of_it in zip(var["formula"], var["all_Formulas"], strict=True)
    ]
    assert np.mean(published) > 0.85
    muscle = bladder.var.loc[(bladder.var["mz"] - 741.5306).abs() < 0.002, ["name", "adduct"]]
    assert muscle.to_numpy().tolist() == [["SM 34:1", "[M+K]+"]]


@pytest.mark.realdata
@pytest.mark.parametrize("file", ["CoreMetabolome-v3.csv", "metaspace_annotations_HMDB.csv"])
def test_tables_of_metaspace(bladder, data_dir, file):
    stmsi.pp.annotate_mz(bladder, data_dir / "annotation" / file, polarity="positive", ppm=5)
    assert (bladder.var["formula"] != "").sum() >= 25
    assert bladder.var["isobaric"].any()
    candidates = bladder.uns["annotation"]["candidates"]
    assert candidates["ppm_error"].abs().max() <= 5
    assert candidates["fdr"].between(0, 1).all()


def test_what_others_said_of_ions_without_candidates_stays(toy):
    var = toy.tables["msi"].var
    var["mz"] = var["mz"] + 0.3  # no molecule weighs that
    var["formula"], var["adduct"], var["fdr"] = "C6H12O6", "[M+H]+", 0.05
    stmsi.pp.annotate_mz(toy, polarity="positive")
    var = toy.tables["msi"].var
    assert (var["n_candidates"] == 0).all()
    assert (var["formula"] == "C6H12O6").all()
    assert (var["adduct"] == "[M+H]+").all()
    np.testing.assert_array_equal(var["fdr"], 0.05)
