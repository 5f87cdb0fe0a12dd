import json

import pytest

import stmsi
from stmsi.model import HurdleLinear, HurdleNet


@pytest.fixture(scope="module")
def saved(_mapped, tmp_path_factory):
    """A saved model; damage a copy."""
    st = _mapped.tables["st"].copy()
    HurdleLinear.setup_anndata(st, presence_key="msi_presence", covariate_keys=["patient"])
    model = HurdleLinear(st, presence="prior", intensity="mean", n_components=5)
    model.train()
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    import shutil

    return shutil.copytree(saved, tmp_path / "model")


def edit(folder, **entries):
    card = json.loads((folder / "stmsi.json").read_text())
    (folder / "stmsi.json").write_text(json.dumps(card | entries))


def test_the_card_says_what_is_inside(folder):
    card = json.loads((folder / "stmsi.json").read_text())
    assert card["class"] == "HurdleLinear"
    assert card["format"] == 1
    assert card["stmsi"] == stmsi.__version__
    assert card["params"]["intensity"] == "mean"
    assert card["setup"] == {
        "metabolite_key": "msi",
        "presence_key": "msi_presence",
        "sample_key": "sample",
        "covariate_keys": ["patient"],
    }
    assert card["training"]["samples"] == ["P1S1", "P2S1", "P3S1"]
    assert len(card["metabolites"]) == 12
    assert set(card["held_out"]) == {"median_pearson", "median_auroc"}
    assert not card["contains_training_profiles"]
    assert "trust" in card["note"]


@pytest.mark.parametrize("intensity", ["kernel_ridge", "knn"])
def test_the_card_warns_of_training_profiles(st, tmp_path, intensity):
    HurdleLinear.setup_anndata(st)
    model = HurdleLinear(st, presence="prior", intensity=intensity, n_components=5)
    model.train()
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "stmsi.json").read_text())["contains_training_profiles"]


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere\. Pass the folder that model\.save"):
        stmsi.model.load(tmp_path / "nowhere")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.pt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"No folder .*model\.pt"):
        stmsi.model.load(tmp_path / "model.pt")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "model.pt").write_text("x")
    with pytest.raises(ValueError, match=r"not a saved stmsi model: it has no stmsi\.json; found 'model\.pt'"):
        stmsi.model.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"class": "HurdleLinear"}', '{"class": "x", "format": "new"}']
)
def test_a_damaged_card(folder, text):
    (folder / "stmsi.json").write_text(text)
    with pytest.raises(ValueError, match=r"stmsi\.json is damaged \(.*\); save the model again"):
        stmsi.model.load(folder)


def test_a_card_that_is_no_text(folder):
    (folder / "stmsi.json").write_bytes(b"\xff\xfe\x00\x93")
    with pytest.raises(ValueError, match=r"stmsi\.json is damaged"):
        stmsi.model.load(folder)


def test_a_newer_format(folder):
    edit(folder, format=2, stmsi="9.1.0")
    with pytest.raises(ValueError, match=r"written by stmsi 9\.1\.0, which is newer than .*; upgrade stmsi"):
        stmsi.model.load(folder)


def test_an_unknown_class(folder):
    edit(folder, **{"class": "HurdleForest"})
    with pytest.raises(ValueError, match=r"holds a 'HurdleForest'.*does not know; known: 'HurdleLinear', 'HurdleNet'"):
        stmsi.model.load(folder)


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_payload(folder, how):
    payload = folder / "estimators.joblib"
    content = payload.read_bytes()
    payload.unlink()
    if how == "cut":
        payload.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"model is damaged: estimators\.joblib has \d+ of \d+ bytes; .*save the model"
    ):
        stmsi.model.load(folder)


def test_a_net_needs_what_its_setup_names_in_the_data_to_attach(st, tmp_path):
    HurdleNet.setup_anndata(st)
    model = HurdleNet(st)
    model.train(max_epochs=1)
    model.save(tmp_path / "model")
    del st.obsm["msi"]
    with pytest.raises(KeyError, match=r"obsm has no 'msi'.*map_to_spots writes it"):
        stmsi.model.load(tmp_path / "model", st)
