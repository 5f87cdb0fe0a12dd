"""Attention is written where it belongs, sums to 1, and its contributions are the prediction."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stmsi
from stmsi.model import HurdleLinear, HurdleNet
from stmsi.model.explain._attention import AttentionControl
from stmsi.model.explain._attribution import attribution_spots
from stmsi.tl import attention

SMALL = {"n_hidden": 8}
KINDS = {"one": {"n_nets": 1}, "several": {"n_nets": 2}}
FIELDS = {"presence_key": "msi_presence", "signature_key": "signature", "cluster_key": "domain"}


def few(adata):
    for key in ("msi", "msi_presence"):
        adata.obsm[key] = adata.obsm[key].iloc[:, :3]
    return adata


@pytest.fixture
def st(st):
    return few(st)


@pytest.fixture(scope="module")
def models(_mapped):
    kept = {}

    def get(name):
        if name not in kept:
            adata = few(_mapped.tables["st"].copy())
            HurdleNet.setup_anndata(adata, **FIELDS)
            kept[name] = HurdleNet(adata, encoder="transformer", encoder_kwargs=SMALL, **KINDS[name])
            kept[name].train(max_epochs=4, refit=False, show_progress_bar=False)
        return kept[name]

    return get


@pytest.mark.parametrize("name", KINDS)
def test_weights_sum_to_one(st, models, name):
    assert attention(st, models(name), groupby="sample", per_spot="simPC(28:0)") is None
    maps = [st.varm["msi_attention"], *(st.varm[f"msi_attention_{s}"] for s in ("P1S1", "P2S1", "P3S1"))]
    for frame in maps:
        assert frame.shape == (120, 3)
        assert (frame.dtypes == np.float32).all()
        assert frame.min(axis=None) >= 0
        np.testing.assert_allclose(frame.sum(), 1, rtol=1e-4)
    share = st.obs["sample"].value_counts(normalize=True)
    mixed = sum(share[s] * m for s, m in zip(("P1S1", "P2S1", "P3S1"), maps[1:], strict=True))
    pd.testing.assert_frame_equal(mixed.astype(np.float32), maps[0], rtol=1e-3, atol=1e-6)
    # contributions: those of single spots, averaged over groups
    own = st.obsm["msi_attention_simPC_28_0"]
    used = st.varm["msi_attention"].dropna().index
    assert list(own) == list(used)
    for s in ("P1S1", "P2S1", "P3S1"):
        mean = own[(st.obs["sample"] == s).to_numpy()].mean()
        np.testing.assert_allclose(st.varm[f"msi_attention_effects_{s}"].loc[used, "simPC_28_0"], mean, atol=2e-4)


@pytest.mark.once
@pytest.mark.parametrize("name", KINDS)
def test_contributions_add_up_to_the_prediction(st, models, name):
    """Without the bend, the intensity is the intercept and the contributions of all genes."""
    model = models(name)
    heads = [net.module.intensity_head.bend[2] for net in model._nets]
    before = [{k: v.clone() for k, v in head.state_dict().items()} for head in heads]
    with torch.no_grad():
        for head in heads:
            head.weight.zero_(), head.bias.zero_()
    try:
        attention(st, model, per_spot=["simPC_29_1", "simPC_28_0"])
        _, intensity = model._forward(attribution_spots(model, st, 0.5))
    finally:
        for head, state in zip(heads, before, strict=True):
            head.load_state_dict(state)
    table = st.uns["msi_attention"]["metabolites"]
    for m in ("simPC_28_0", "simPC_29_1"):
        total = table.loc[m, "intercept"] + st.obsm[f"msi_attention_{m}"].sum(axis=1)
        found = intensity[:, model.state.metabolites.get_loc(m)]
        np.testing.assert_allclose(total, found, rtol=1e-3, atol=1e-3)


@pytest.mark.once
def test_the_effect_of_a_gene_is_that_of_one_standard_deviation(st, models):
    model = models("one")
    attention(st, model, per_spot="simPC_28_0")
    own = st.obsm["msi_attention_simPC_28_0"]
    space = model.state.features.own
    log = attribution_spots(model, st, 0.5).log_expression()[:, space.selected].toarray()
    z = np.clip((log - space.mean) / space.scale, -10, 10)
    expected = pd.Series((own.to_numpy() * z).mean(axis=0), index=list(own))
    found = st.varm["msi_attention_effects"].loc[expected.index, "simPC_28_0"]
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.once
def test_the_control(st, models):
    attention(st, models("several"))
    record = st.uns["msi_attention"]
    control = record["control"]
    assert control["held_out"] == pytest.approx(record["metabolites"]["held_out"].mean())
    assert control["uniform"] == pytest.approx(record["metabolites"]["held_out_uniform"].mean())
    table = pd.DataFrame({"held_out_attention": [0.5, 0.6, 0.7], "held_out_uniform": [0.1, 0.0, 0.2]})
    assert AttentionControl.of(table).passed
    assert not AttentionControl.of(table.assign(held_out_uniform=[0.49, 0.6, 0.71])).passed
    assert not AttentionControl.of(table.assign(held_out_uniform=[0.0, 0.9, 0.1])).passed, "not over all metabolites"
    assert not AttentionControl.of(table.assign(held_out_attention=np.nan)).passed


def test_chosen_metabolites_and_top_genes(st, models):
    attention(st, models("one"), metabolites="simPC(29:1)", per_spot=["simPC_28_0"], key_added="a")
    assert list(st.varm["a"]) == ["simPC_29_1"]
    assert "a_simPC_28_0" in st.obsm
    top = st.uns["a"]["top_genes"]
    assert list(top) == ["metabolite", "rank", "gene", "attention"]
    assert top["gene"].tolist() == st.varm["a"]["simPC_29_1"].nlargest(20, keep="first").index.tolist()
    assert st.uns["a"]["metabolites"]["name"].tolist() == ["simPC(29:1)"]


def test_query_sections(st, models):
    model = models("one")
    query = st[st.obs["sample"] == "P2S1", st.var_names[::-1]].copy()
    for key in list(query.obsm):
        if key.startswith("msi"):
            del query.obsm[key]
    # other data may know other clusters, so that their own labels are not read
    del query.obs["domain"], query.varm["signature"]
    attention(query, model)
    # every third gene is missing, and one is new
    part = query[:, np.arange(query.n_vars) % 3 > 0].copy()
    part.var_names = ["new", *part.var_names[1:]]
    part.var["gene_ids"] = ["ENSG0", *part.var["gene_ids"][1:]]
    attention(part, model)
    assert part.varm["msi_attention"].loc["new"].isna().all()
    both = part.varm["msi_attention"].iloc[1:, 0].dropna()
    assert len(both) > 10
    assert np.corrcoef(both, query.varm["msi_attention"].loc[both.index].iloc[:, 0])[0, 1] > 0.9
    with pytest.raises(ValueError, match="training genes are in the data"):
        attention(part, model, min_genes=0.9)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_it_survives_writing(st, models, tmp_path):
    attention(st, models("one"), groupby="domain", per_spot=["simPC_28_0"])
    for key in [k for k in st.obsm if k.startswith("truth")]:  # each column takes its time to write
        del st.obsm[key]
    st.write_h5ad(tmp_path / "st.h5ad")
    st.write_zarr(tmp_path / "st.zarr")
    for found in (ad.read_h5ad(tmp_path / "st.h5ad"), ad.read_zarr(tmp_path / "st.zarr")):
        for key in ("msi_attention", "msi_attention_domain1", "msi_attention_effects"):
            pd.testing.assert_frame_equal(found.varm[key], st.varm[key])
        pd.testing.assert_frame_equal(found.obsm["msi_attention_simPC_28_0"], st.obsm["msi_attention_simPC_28_0"])
        record = found.uns["msi_attention"]
        assert bool(record["control"]["passed"]) == st.uns["msi_attention"]["control"]["passed"]
        assert record["params"]["groupby"] == "domain"
        assert list(record["groups"]["key"]) == list(st.uns["msi_attention"]["groups"]["key"])


def test_spatialdata_copies_and_saved_models(mapped, models, tmp_path):
    few(mapped.tables["st"])
    model = models("several")
    out = attention(mapped, model, copy=True)
    assert "msi_attention" not in mapped.tables["st"].varm
    model.save(tmp_path / "model")
    again = attention(mapped, tmp_path / "model", copy=True)
    found, expected = (o.tables["st"].varm["msi_attention"] for o in (again, out))
    pd.testing.assert_frame_equal(found, expected)


def test_bad_arguments(st, models):
    model = models("one")
    with pytest.raises(KeyError, match="simPC_28_0"):
        attention(st, model, metabolites="simPC_28")
    with pytest.raises(KeyError, match="Did you mean 'domain'"):
        attention(st, model, groupby="domains")
    st.obs["g"] = pd.Categorical(np.where(np.arange(st.n_obs) < 9, "effects", "b"))
    with pytest.raises(ValueError, match="would overwrite the contributions; rename it"):
        attention(st, model, groupby="g")
    st.obs.loc[st.obs_names[0], "g"] = np.nan
    with pytest.raises(ValueError, match="1 missing values"):
        attention(st, model, groupby="g")
    assert "msi_attention" not in st.varm


def test_other_models_are_sent_to_attribute(st):
    HurdleNet.setup_anndata(st)
    mlp = HurdleNet(st, encoder_kwargs={"n_hidden": 8})
    with pytest.raises(RuntimeError, match=r"call \.train"):
        attention(st, mlp)
    mlp.train(max_epochs=1, refit=False)
    with pytest.raises(ValueError, match=r"HurdleNet with encoder='mlp'; use stmsi\.tl\.attribute"):
        attention(st, mlp)
    HurdleLinear.setup_anndata(st)
    linear = HurdleLinear(st, presence="prior", n_components=5)
    linear.train()
    with pytest.raises(ValueError, match=r"the model is a HurdleLinear; use stmsi\.tl\.attribute"):
        attention(st, linear)


def test_attributions_of_the_transformer(st, models):
    """Gradients reach genes through attention, and add up to the prediction."""
    model = models("one")
    stmsi.tl.attribute(st, model, metabolites=["simPC_29_1", "simPC_28_0"], n_spots=30)
    record = st.uns["attribution"]
    assert record["params"]["method"] == "integrated_gradients"
    assert record["metabolites"]["integration_error"].max() < 0.05
    used = model.state.features.own.selected
    assert st.varm["attribution"].notna().to_numpy().nonzero()[0].tolist() == np.repeat(used, 2).tolist()
