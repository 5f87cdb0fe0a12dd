import json
import pickle
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import stmsi
from stmsi._data.metabolite_labels import label
from stmsi._data.unfinished import _LOCK
from stmsi.model import HurdleKernel, HurdleLinear, HurdleNet, HurdleScreened


@pytest.fixture(scope="module")
def saved(_mapped, tmp_path_factory):
    """A saved model; damage a copy."""
    st = _mapped.tables["st"].copy()
    HurdleLinear.setup_anndata(st, presence_key="msi_presence", covariate_keys=["patient"])
    model = HurdleLinear(st, presence="prior", intensity="mean", n_components=5)
    model.train()
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder, license="CC-BY-4.0", card={"tissue": "simulated", "pixels": 50})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit(folder, **entries):
    card = json.loads((folder / "stmsi.json").read_text())
    (folder / "stmsi.json").write_text(json.dumps(card | entries))


def test_the_card_says_what_is_inside(folder):
    card = json.loads((folder / "stmsi.json").read_text())
    assert card["class"] == "HurdleLinear"
    assert card["format"] == 6
    assert card["stmsi"] == stmsi.__version__
    assert card["params"]["intensity"] == "mean"
    assert card["params"]["rng"] == 0
    assert card["setup"] == {
        "input": "counts",
        "metabolite_key": "msi",
        "presence_key": "msi_presence",
        "sample_key": "sample",
        "covariate_keys": ["patient"],
    }
    training = card["training"]
    assert training["samples"] == ["P1S1", "P2S1", "P3S1"]
    assert training["n_patients"] == 3
    assert sum(training["spots_per_sample"].values()) == training["n_spots"] == 323
    assert training["software"]["numpy"] == np.__version__
    assert abs((datetime.now(UTC) - datetime.fromisoformat(training["date"])).total_seconds()) < 3600
    assert training["intensities"]["normalize_msi"]["log1p"] is True
    assert card["genes"]["n"] == card["genes"]["n_used"] == 120
    assert card["genes"]["ids"]["var_names"][0] == "SIMG0001"
    assert card["genes"]["species"] == "Homo sapiens"
    assert len(card["metabolites"]) == 12
    first = card["metabolites"][0]
    assert (first["id"], first["name"], first["adduct"]) == ("simPC_28_0", "simPC(28:0)", "[M+H]+")
    assert first["mz"] == pytest.approx(518.9531)
    assert 0 < first["prevalence"] < 1
    assert first["n_spots"] == 323
    assert set(card["held_out"]) == {"mean_pearson", "median_pearson", "mean_auroc", "median_auroc"}
    scores = [m["held_out_auroc"] for m in card["metabolites"] if m["held_out_auroc"] is not None]
    assert card["held_out"]["mean_auroc"] == pytest.approx(np.mean(scores))
    assert not card["contains_training_profiles"]
    assert card["license"] == "CC-BY-4.0"
    assert card["about"] == {"tissue": "simulated", "pixels": 50}


def test_the_names_of_isomers_come_back(st, tmp_path):
    features = st.uns["msi"]["features"]
    names = [f"PC({n}:0), PE({n + 3}:0)" for n in range(len(features))]
    st.uns["msi"]["features"] = features.assign(name="", molecule_names=names, n_isomers=2)
    HurdleLinear.setup_anndata(st)
    model = HurdleLinear(st, presence="prior", intensity="mean", n_components=5)
    model.train()
    model.save(tmp_path / "model")
    query = st[:20].copy()
    del query.uns["msi"], query.obsm["msi"]
    stmsi.tl.predict_metabolites(query, str(tmp_path / "model"))
    found = stmsi.get.feature_table(query, metabolite_key="msi_pred")
    assert found["molecule_names"].tolist() == names
    assert label(found, found.index[1]).name == "PC(1:0) +1"


def test_what_the_user_says_of_a_model_stays_with_it(folder, tmp_path):
    model = stmsi.model.load(folder)
    card = json.loads((folder / "stmsi.json").read_text())
    del card["files"]
    assert json.loads(json.dumps(model.card)) == card, "a loaded model has the card of the saved one"
    model.save(tmp_path / "same")
    model.save(tmp_path / "other", license="none", card="for teaching")
    same, other = (stmsi.model.load(tmp_path / name).card for name in ("same", "other"))
    assert (same["license"], same["about"]["tissue"]) == ("CC-BY-4.0", "simulated")
    assert (other["license"], other["about"]) == ("none", {"description": "for teaching"})


def test_a_card_takes_plain_values_only(folder, tmp_path):
    model = stmsi.model.load(folder)
    with pytest.raises(TypeError, match=r"license= and card= take text, numbers.*not JSON serializable"):
        model.save(tmp_path / "new", card={"model": model})
    assert not (tmp_path / "new").exists()
    assert "tissue" in model.card["about"]


@pytest.mark.parametrize(
    ("cls", "params", "warns"),
    [
        (HurdleLinear, {"intensity": "knn", "n_components": 5}, True),
        (HurdleLinear, {"intensity": "ridge", "n_components": 5}, False),
        (HurdleKernel, {"kernel": "components", "n_components": 5}, True),
        (HurdleKernel, {"kernel": "genes"}, False),
        (HurdleScreened, {}, False),
    ],
)
def test_the_card_warns_of_training_profiles(st, tmp_path, cls, params, warns):
    cls.setup_anndata(st)
    model = cls(st, presence="prior", **params)
    model.train()
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "stmsi.json").read_text())["contains_training_profiles"] == warns


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere\. Pass the folder that model\.save"):
        stmsi.model.load(tmp_path / "nowhere")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.pt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"No folder .*model\.pt"):
        stmsi.model.load(tmp_path / "model.pt")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "model.pt").write_text("x")
    with pytest.raises(
        ValueError, match=r"not a saved stmsi model: it has no stmsi\.json; found 'model\.pt'.*scvi-tools"
    ):
        stmsi.model.load(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"not a saved stmsi model: it has no stmsi\.json; found none\.$"):
        stmsi.model.load(tmp_path)


def test_a_class_reads_its_own_models_only(folder, st):
    assert isinstance(HurdleLinear.load(folder), HurdleLinear)
    with pytest.raises(ValueError, match=r"holds a HurdleLinear, not a HurdleNet; load it with stmsi\.model\.load or"):
        HurdleNet.load(folder, st)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"class": "HurdleLinear"}', '{"class": "x", "format": "new"}']
)
def test_a_damaged_card(folder, text):
    (folder / "stmsi.json").write_text(text)
    with pytest.raises(ValueError, match=r"stmsi\.json (is|cannot be read).* again"):
        stmsi.model.load(folder)


def test_a_card_that_is_no_text(folder):
    (folder / "stmsi.json").write_bytes(b"\xff\xfe\x00\x93")
    with pytest.raises(ValueError, match=r"stmsi\.json cannot be read"):
        stmsi.model.load(folder)


def test_a_newer_format(folder):
    edit(folder, format=7, stmsi="9.1.0")
    with pytest.raises(
        ValueError,
        match=r"by stmsi 9\.1\.0 in format 7; this version, .*, reads format 6\. Upgrade stmsi to 9\.1\.0 or",
    ):
        stmsi.model.load(folder)


def test_a_format_whose_classes_have_moved(folder):
    edit(folder, format=2, stmsi="0.1.0")
    with pytest.raises(
        ValueError, match=r"0\.1\.0 in format 2, whose classes have other names now\. Train the model again"
    ):
        stmsi.model.load(folder)


def test_a_format_that_pickled(folder):
    edit(folder, format=1, stmsi="0.0.9")
    with pytest.raises(
        ValueError, match=r"0\.0\.9 in format 1, whose pickled objects can run any code.*Train the model"
    ):
        stmsi.model.load(folder)


def test_an_unknown_class(folder):
    edit(folder, **{"class": "HurdleForest"})
    with pytest.raises(ValueError, match=r"holds a 'HurdleForest'.*does not know; known: 'HurdleLinear', 'HurdleNet'"):
        stmsi.model.load(folder)


@pytest.mark.parametrize("name", ["model.json", "model.npz"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_payload(folder, name, how):
    payload = folder / name
    content = payload.read_bytes()
    payload.unlink()
    if how == "cut":
        payload.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"model is damaged: {name} has \d+ of \d+ bytes; .*save the model"):
        stmsi.model.load(folder)
    edit(folder, files={})
    with pytest.raises(ValueError, match=r"model is damaged \(\w+: .*save the model again"):
        stmsi.model.load(folder)


def test_a_pickle_in_the_place_of_numbers_is_not_read(folder, tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("was_run").mkdir, ())

    edit(folder, files={})
    np.savez(folder / "model.npz", **{"0": np.array([Code()], dtype=object)}, allow_pickle=True)
    with pytest.raises(ValueError, match="model is damaged"):
        stmsi.model.load(folder)
    (folder / "model.npz").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="model is damaged"):
        stmsi.model.load(folder)
    assert not (tmp_path / "was_run").exists()


def test_estimators_of_another_scikit_learn_are_warned_of(st, tmp_path, caplog):
    HurdleLinear.setup_anndata(st)
    model = HurdleLinear(st, presence="svm", n_components=5, n_folds=2)
    model.train()
    model.save(tmp_path / "model")
    stmsi.model.load(tmp_path / "model")
    assert "scikit-learn" not in caplog.text
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps(content | {"scikit-learn": "0.9.0"}))
    edit(tmp_path / "model", files={})
    stmsi.model.load(tmp_path / "model")
    assert "estimators of scikit-learn 0.9.0, and " in caplog.text


def test_a_net_needs_what_its_setup_names_in_the_data_to_attach(st, tmp_path):
    HurdleNet.setup_anndata(st)
    model = HurdleNet(st)
    model.train(max_epochs=1)
    model.save(tmp_path / "model")
    del st.obsm["msi"]
    with pytest.raises(KeyError, match=r"obsm has no 'msi'.*map_to_spots writes it"):
        stmsi.model.load(tmp_path / "model", st)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["write", "rename"])
def test_an_interrupted_save_leaves_the_old_model(folder, monkeypatch, error, step):
    model = stmsi.model.load(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def stop(*args):
        raise error

    if step == "write":
        monkeypatch.setattr(model, "_write", stop)
    else:
        rename = Path.replace
        monkeypatch.setattr(Path, "replace", lambda p, to: stop() if p.name == "new" else rename(p, to))
    with pytest.raises(error):
        model.save(folder, overwrite=True, license="other")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert model.card["license"] == "CC-BY-4.0", "the model in memory says what was saved"


def test_a_model_that_a_killed_run_was_replacing_is_named_and_comes_back(folder):
    left = folder.parent / ".model.0123abcd.part"
    left.mkdir()
    (left / _LOCK).write_bytes(b"")
    model = stmsi.model.load(folder)
    folder.replace(left / "old")
    with pytest.raises(FileNotFoundError, match=r"the earlier model is .*\.model\.0123abcd\.part.old: move it to"):
        stmsi.model.load(folder)
    with pytest.raises(FileExistsError, match="exists already"):
        model.save(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    stmsi.model.load(folder)


def test_overwriting_deletes_no_file_of_others(folder):
    model = stmsi.model.load(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds files that are not of the model: 'notes\.txt'\. Move them"):
        model.save(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    model.save(folder, overwrite=True)


# ------------------------------------------------------------------------------------------------ with the training data


@pytest.mark.parametrize("name", ["linear", "kernel", "net", "ensemble"])
def test_a_model_saved_with_its_data_can_predict_and_train_them(make_sections, name, tmp_path):
    adata = make_sections()
    cls, params, train = {
        "linear": (HurdleLinear, {"n_components": 5}, {}),
        "kernel": (HurdleKernel, {"kernel": "genes"}, {}),
        "net": (HurdleNet, {"encoder_kwargs": {"n_hidden": 8}}, {"max_epochs": 1}),
        "ensemble": (stmsi.model.HurdleEnsemble, {"members": ["mean"], "n_folds": 2}, {}),
    }[name]
    cls.setup_anndata(adata)
    model = cls(adata, **params)
    model.train(**train)
    model.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "adata.h5ad").exists()
    model.save(tmp_path / "full", save_anndata=True)
    card = json.loads((tmp_path / "full" / "stmsi.json").read_text())
    assert card["contains_training_profiles"]
    assert card["files"]["adata.h5ad"] > 0
    loaded = stmsi.model.load(tmp_path / "full")
    np.testing.assert_allclose(loaded.predict(), model.predict(), rtol=1e-5, atol=1e-6)
    loaded.train(**train)
    np.testing.assert_allclose(loaded.predict(), model.predict(), rtol=1e-5, atol=1e-6)
    # other data are taken where they are given
    assert stmsi.model.load(tmp_path / "full", adata[:40].copy()).predict().shape == (40, 4)
    (tmp_path / "full" / "adata.h5ad").unlink()
    with pytest.raises(ValueError, match=r"is damaged: adata\.h5ad has 0 of"):
        stmsi.model.load(tmp_path / "full")


def test_without_data_there_are_none_to_save(folder, tmp_path):
    loaded = stmsi.model.load(folder)
    with pytest.raises(ValueError, match=r"loaded without data, so that save_anndata=True has none"):
        loaded.save(tmp_path / "again", save_anndata=True)
    assert not (tmp_path / "again").exists()


def test_saving_data_of_a_file_leaves_the_file_where_it_is(make_sections, tmp_path):
    import anndata as ad

    make_sections().write_h5ad(tmp_path / "spots.h5ad")
    data = ad.read_h5ad(tmp_path / "spots.h5ad", backed="r")
    HurdleLinear.setup_anndata(data)
    model = HurdleLinear(data, presence="prior", intensity="mean")
    model.train()
    model.save(tmp_path / "model", save_anndata=True)
    assert data.isbacked
    assert Path(data.filename) == tmp_path / "spots.h5ad"
    np.testing.assert_array_equal(
        ad.read_h5ad(tmp_path / "model" / "adata.h5ad").X.toarray(), data.to_memory().X.toarray()
    )
