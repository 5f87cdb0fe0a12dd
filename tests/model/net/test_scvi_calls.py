"""What scvi-tools' models offer: answered, or refused with what to do instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from scvi.model.base import BaseModelClass, UnsupervisedTrainingMixin

import stmsi
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet
from stmsi.model.net.encoders import ENCODERS

GRAPH = "spatial_connectivities"
HONOURED = {
    "adata", "adata_manager", "data_registry", "deregister_manager", "device", "get_anndata_manager", "get_from_registry",
    "get_setup_arg", "get_state_registry", "get_var_names", "history", "is_trained", "load", "register_manager", "registry",
    "run_id", "run_name", "save", "setup_anndata", "summary_string", "test_indices", "to_device", "train", "train_indices",
    "transfer_fields", "validation_indices", "view_anndata_setup",
}  # fmt: skip
REFUSED = {
    "convert_legacy_save", "differential_abundance", "get_normalized_expression", "load_registry", "setup_annbatch",
    "update_setup_method_args", "view_registry", "view_setup_args", "view_setup_method_args",
}  # fmt: skip


def fit(adata, encoder: str = "mlp", params: dict[str, Any] | None = None, **train: Any) -> HurdleNet:
    HurdleNet.setup_anndata(adata, graph_key=GRAPH if ENCODERS[encoder].uses_graph else None)
    net = HurdleNet(adata, encoder=encoder, **(params or {}))
    net.train(**{"max_epochs": 1, "refit": False, **train})
    return net


@pytest.fixture(scope="module", params=ENCODERS)
def of_encoder(request, make_sections):
    return fit(make_sections(), request.param)


@pytest.fixture(scope="module")
def net(make_sections):
    return fit(make_sections())


# ------------------------------------------------------------------------------------------------ inherited from scvi


def test_every_inherited_call_has_a_decision():
    inherited = {n for n in {*dir(BaseModelClass), *dir(UnsupervisedTrainingMixin)} if not n.startswith("_")}
    assert inherited - {"get_normalized_function_name"} <= HONOURED | REFUSED
    assert not HONOURED & REFUSED


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_calls_without_a_meaning_say_what_to_do(net, name):
    with pytest.raises(NotImplementedError, match=rf"HurdleNet has no {name}: .{{20,}}\.$"):
        getattr(net, name)("folder")
    assert not hasattr(net, "get_normalized_function_name")


def test_class_calls_are_refused_without_a_model():
    for name in ("load_registry", "view_setup_args", "convert_legacy_save", "setup_annbatch"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(HurdleNet, name)("folder")


def test_the_others_answer(net, capsys):
    adata = net.adata
    assert net.get_anndata_manager(adata) is net.adata_manager
    assert net.get_from_registry(adata, "metabolites").shape == (90, 4)
    assert net.data_registry("X").shape == (90, 30)
    assert net.get_setup_arg("metabolite_key") == "msi"
    assert list(net.get_state_registry("metabolites")["column_names"]) == list(adata.obsm["msi"].columns)
    assert list(net.get_var_names()) == list(adata.var_names)
    assert net.registry["model_name"] == "HurdleNet"
    assert str(net.device) == "cpu"
    assert net.run_name.startswith("run_")
    net.to_device("cpu")
    net.transfer_fields(adata[:10].copy())
    assert sorted([*net.train_indices, *net.validation_indices]) == list(range(90))
    assert net.summary_string == repr(net)
    assert "trained on" in net.summary_string
    net.view_anndata_setup()
    assert "metabolite_key" in capsys.readouterr().out


def test_without_data_the_setup_is_read_from_the_registry(net, tmp_path):
    net.save(tmp_path / "model")
    loaded = HurdleNet.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"loaded without data; model\.registry\['setup_args'\]"):
        loaded.view_anndata_setup()
    assert loaded.registry["setup_args"]["metabolite_key"] == "msi"


# ------------------------------------------------------------------------------------------------------- SpatialData


@pytest.mark.parametrize("cls", [HurdleNet, HurdleLinear, HurdleEnsemble])
def test_setup_from_spatialdata(mapped, cls):
    cls.setup_spatialdata(mapped, presence_key=None)
    model = cls(mapped.tables["st"])
    assert model._setup.metabolite_key == "msi"
    mapped.tables["other"] = mapped.tables["st"].copy()
    cls.setup_spatialdata(mapped, table_key="other", sample_key="patient")
    assert cls(mapped.tables["other"])._setup.sample_key == "patient"
    with pytest.raises(KeyError, match="no table 'sst'"):
        cls.setup_spatialdata(mapped, table_key="sst")
    with pytest.raises(TypeError, match="Expected a SpatialData, found AnnData"):
        cls.setup_spatialdata(mapped.tables["st"])
    with pytest.raises(TypeError, match=r'Pass its table: sdata\.tables\["st"\]'):
        cls(mapped)


# ------------------------------------------------------------------------------------------------------------- latent


def test_the_latent_representation_of_every_encoder(of_encoder):
    latent = of_encoder.get_latent_representation()
    assert latent.shape[0] == 90
    assert latent.shape[1] > 1
    assert latent.dtype == np.float32
    assert np.isfinite(latent).all()
    assert latent.std(axis=0).max() > 0, "spots differ"
    again = of_encoder.get_latent_representation(of_encoder.adata, batch_size=7)
    np.testing.assert_allclose(again, latent, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_encoder.get_latent_representation(indices=[3, 1]), latent[[3, 1]])
    mask = np.arange(90) < 5
    np.testing.assert_array_equal(of_encoder.get_latent_representation(indices=mask), latent[:5])


def test_the_heads_predict_from_the_latent_representation(make_sections):
    import torch

    net = fit(make_sections(), params={"residual": None})
    mean = net.module.intensity_head(torch.tensor(net.get_latent_representation())).detach().numpy()
    expected = mean * net.module.target_scale.numpy() + net.module.target_mean.numpy()
    np.testing.assert_allclose(net.predict_intensity(), np.maximum(expected, 0), rtol=1e-4, atol=1e-4)


def test_a_latent_representation_needs_training_and_data(make_sections, net, tmp_path):
    adata = make_sections()
    HurdleNet.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="not trained"):
        HurdleNet(adata).get_latent_representation()
    net.save(tmp_path / "model")
    loaded = HurdleNet.load(tmp_path / "model")
    with pytest.raises(ValueError, match="loaded without data"):
        loaded.get_latent_representation()
    np.testing.assert_allclose(
        loaded.get_latent_representation(adata), net.get_latent_representation(adata), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        net.get_latent_representation(batch_size=0)


# -------------------------------------------------------------------------------------------- batches of a prediction


def seen_batches(monkeypatch) -> list[int]:
    from stmsi.model.net._prediction import NetPrediction

    seen, real = [], NetPrediction._batches

    def batches(self, spots, batch_size, *rows):
        seen.append(batch_size)
        return real(self, spots, batch_size, *rows)

    monkeypatch.setattr(NetPrediction, "_batches", batches)
    return seen


@pytest.mark.once
def test_predictions_do_not_depend_on_the_batch_size(of_encoder, monkeypatch):
    """90 spots in batches of 40, 40 and 10."""
    usual = [of_encoder.predict(), of_encoder.predict_presence(), *of_encoder.predict_interval()]
    seen = seen_batches(monkeypatch)
    small = [
        of_encoder.predict(batch_size=40),
        of_encoder.predict_presence(batch_size=40),
        *of_encoder.predict_interval(batch_size=40),
    ]
    assert set(seen) == {40}
    for a, b in zip(usual, small, strict=True):
        assert_frame_equal(a, b, rtol=1e-3, atol=1e-4)
    of_encoder.predict_intensity()
    assert seen[-1] > 40, "of one call only"


@pytest.mark.once
def test_predictions_do_not_depend_on_how_many_rings_are_in_memory(make_sections, monkeypatch):
    from stmsi.model.net import _prediction

    adata = make_sections()
    HurdleNet.setup_anndata(adata, graph_key="spatial_connectivities")
    model = HurdleNet(adata, encoder="transformer", n_nets=1)
    model.train(max_epochs=2)
    usual = model.predict()
    monkeypatch.setattr(_prediction, "_RINGS_AT_ONCE", 25)
    seen, real = [], _prediction.set_gene_rings

    def rings(modules, spots, graph, rows):
        seen.append(len(spots))
        real(modules, spots, graph, rows)

    monkeypatch.setattr(_prediction, "set_gene_rings", rings)
    assert_frame_equal(model.predict(), usual, rtol=1e-4, atol=1e-5)
    assert len(seen) == -(-adata.n_obs // 25)
    assert max(seen) < adata.n_obs


@pytest.mark.once
def test_networks_in_a_stack_get_the_batch_size(make_sections, monkeypatch):
    adata = make_sections()
    HurdleEnsemble.setup_anndata(adata)
    stack = HurdleEnsemble(adata, members=[{"model": "mlp", "train": {"max_epochs": 1}}], n_folds=2)
    stack.train()
    seen = seen_batches(monkeypatch)
    stack.predict(batch_size=11)
    assert seen == [11]
    stack.predict()
    assert seen[1] > 11


# ----------------------------------------------------------------------------------------------------- data on a disk


def test_training_on_a_file_gives_the_same_bits(make_sections, tmp_path):
    """Files are read row by row; the order of a batch, and with it dropout, stays that of memory."""
    import anndata as ad

    adata = make_sections()
    adata.write_h5ad(tmp_path / "spots.h5ad")
    predictions = []
    for backed in (None, "r"):
        data = ad.read_h5ad(tmp_path / "spots.h5ad", backed=backed)
        assert data.isbacked == (backed is not None)
        net = fit(data, max_epochs=3, refit=True, params={"encoder_kwargs": {"dropout": 0.5}})
        predictions.append((net.predict(), net.predict_presence()))
    for a, b in zip(*predictions, strict=True):
        assert_frame_equal(a, b, check_exact=True)


def test_rows_of_a_file_come_in_the_order_asked_for(make_sections, tmp_path):
    import anndata as ad

    make_sections().write_h5ad(tmp_path / "spots.h5ad")
    data = ad.read_h5ad(tmp_path / "spots.h5ad", backed="r")
    HurdleNet.setup_anndata(data)
    manager = HurdleNet(data).adata_manager
    wanted = [5, 80, 0, 33]
    tensors = manager.create_torch_dataset()[wanted]
    np.testing.assert_array_equal(np.ravel(tensors["ind_x"]), wanted)
    np.testing.assert_array_equal(tensors["X"], data.to_memory().X.toarray()[wanted])
    part = manager.create_torch_dataset(indices=np.arange(10, 90))[wanted[:1]]
    np.testing.assert_array_equal(np.ravel(part["ind_x"]), [15])


def test_stmsi_load_gives_the_class_back(net, tmp_path):
    net.save(tmp_path / "model")
    assert isinstance(stmsi.model.load(tmp_path / "model"), HurdleNet)
