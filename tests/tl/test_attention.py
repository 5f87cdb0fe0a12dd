"""Attention is written where it belongs, sums to 1, and is that of the network."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stmsi
from stmsi.model import HurdleLinear, HurdleNet
from stmsi.tl import attention

SMALL = {"n_hidden": 16, "n_heads": 2, "n_tokens": 6}
KINDS = {
    "softmax": SMALL,
    "linear": {**SMALL, "attention": "linear"},
    "genes": {"n_hidden": 16, "n_heads": 2, "tokens": "genes"},
    "genes, linear": {"n_hidden": 16, "n_heads": 2, "tokens": "genes", "attention": "linear"},
}
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
            kept[name] = HurdleNet(adata, encoder="transformer", encoder_kwargs=KINDS[name])
            kept[name].train(max_epochs=2, refit=False)
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
        np.testing.assert_allclose(frame.sum(), 1, rtol=1e-5)
    share = st.obs["sample"].value_counts(normalize=True)
    mixed = sum(share[s] * m for s, m in zip(("P1S1", "P2S1", "P3S1"), maps[1:], strict=True))
    pd.testing.assert_frame_equal(mixed.astype(np.float32), maps[0], rtol=1e-4)
    own = st.obsm["msi_attention_simPC_28_0"]
    assert own.shape == (st.n_obs, 120 if name.startswith("genes") else 6)
    np.testing.assert_allclose(own.sum(axis=1), 1, rtol=1e-5)
    assert own.std().max() > 0, "spots differ"
    record = st.uns["msi_attention"]
    assert ("programmes" in record) == ("msi_attention_programmes" in st.varm) == (not name.startswith("genes"))
    if not name.startswith("genes"):
        shares = st.varm["msi_attention_programmes"]
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-5)
        np.testing.assert_allclose(record["programmes"].loc["simPC_28_0"], own.mean(), rtol=1e-4)
        pd.testing.assert_frame_equal(shares @ record["programmes"].T, maps[0], check_names=False, rtol=1e-4)
        assert record["programmes_P1S1"].shape == (3, 6)
    else:
        np.testing.assert_allclose(maps[0]["simPC_28_0"], own.mean(), rtol=1e-4)
        assert list(own) == list(st.var_names)


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_those_that_the_network_uses(models, name):
    """What the encoder sees of the values, recomputed from the weights of one head at a time."""
    encoder = models(name).module.encoder.eval()
    torch.manual_seed(0)
    x = torch.randn(5, 120)
    queries = encoder.ask()
    seen = encoder._attend(x, None, queries)
    amount = x if encoder.programmes is None else encoder.programmes(x)
    tokens = amount.unsqueeze(-1) * encoder.value_of + encoder.identity_of
    value = encoder.value(tokens)
    width = encoder.n_output // encoder.n_heads
    weights = encoder.attention(x, None, queries)
    per_head = []
    for h in range(encoder.n_heads):
        part = slice(h * width, (h + 1) * width)
        q, k = encoder.query(queries.embedding)[:, part], encoder.key(tokens)[..., part]
        if encoder.kernel == "softmax":
            w = torch.einsum("md,btd->bmt", q, k).div(width**0.5).softmax(-1)
        else:
            w = torch.einsum("md,btd->bmt", torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1)
            w = w / w.sum(-1, keepdim=True)
        torch.testing.assert_close(seen[..., part], w @ value[..., part], rtol=1e-4, atol=1e-5)
        per_head.append(w)
    torch.testing.assert_close(weights, sum(per_head) / encoder.n_heads)


def test_chosen_metabolites_and_top_genes(st, models):
    attention(st, models("softmax"), metabolites="simPC(29:1)", per_spot=["simPC_28_0"], key_added="a")
    assert list(st.varm["a"]) == ["simPC_29_1"]
    assert "a_simPC_28_0" in st.obsm
    top = st.uns["a"]["top_genes"]
    assert list(top) == ["metabolite", "rank", "gene", "attention"]
    assert top["gene"].tolist() == st.varm["a"]["simPC_29_1"].nlargest(20, keep="first").index.tolist()
    assert st.uns["a"]["metabolites"]["name"].tolist() == ["simPC(29:1)"]


def test_query_sections(st, models):
    model = models("softmax")
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
    assert part.varm["msi_attention"].drop("new").notna().all(axis=None)
    assert np.corrcoef(part.varm["msi_attention"].iloc[1:, 0], query.varm["msi_attention"].loc[part.var_names[1:]].iloc[:, 0])[0, 1] > 0.9  # fmt: skip
    with pytest.raises(ValueError, match="training genes are in the data"):
        attention(part, model, min_genes=0.9)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_it_survives_writing(st, models, tmp_path):
    attention(st, models("softmax"), groupby="domain", per_spot=["simPC_28_0"])
    for key in [k for k in st.obsm if k.startswith("truth")]:  # each column takes its time to write
        del st.obsm[key]
    st.write_h5ad(tmp_path / "st.h5ad")
    st.write_zarr(tmp_path / "st.zarr")
    for found in (ad.read_h5ad(tmp_path / "st.h5ad"), ad.read_zarr(tmp_path / "st.zarr")):
        for key in ("msi_attention", "msi_attention_domain1", "msi_attention_programmes"):
            pd.testing.assert_frame_equal(found.varm[key], st.varm[key])
        pd.testing.assert_frame_equal(found.obsm["msi_attention_simPC_28_0"], st.obsm["msi_attention_simPC_28_0"])
        record = found.uns["msi_attention"]
        pd.testing.assert_frame_equal(record["programmes"], st.uns["msi_attention"]["programmes"])
        assert record["params"]["groupby"] == "domain"
        assert list(record["groups"]["key"]) == list(st.uns["msi_attention"]["groups"]["key"])


def test_spatialdata_copies_and_saved_models(mapped, models, tmp_path):
    few(mapped.tables["st"])
    model = models("linear")
    out = attention(mapped, model, copy=True)
    assert "msi_attention" not in mapped.tables["st"].varm
    model.save(tmp_path / "model")
    again = attention(mapped, tmp_path / "model", copy=True)
    found, expected = (o.tables["st"].varm["msi_attention"] for o in (again, out))
    pd.testing.assert_frame_equal(found, expected)


def test_bad_arguments(st, models):
    model = models("softmax")
    with pytest.raises(KeyError, match="simPC_28_0"):
        attention(st, model, metabolites="simPC_28")
    with pytest.raises(KeyError, match="Did you mean 'domain'"):
        attention(st, model, groupby="domains")
    st.obs["g"] = pd.Categorical(np.where(np.arange(st.n_obs) < 9, "programmes", "b"))
    with pytest.raises(ValueError, match="would overwrite the programmes; rename it"):
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
    """Gradients reach genes through programmes, and add up to the prediction."""
    model = models("softmax")
    stmsi.tl.attribute(st, model, metabolites=["simPC_29_1", "simPC_28_0"], n_spots=30)
    record = st.uns["attribution"]
    assert record["params"]["method"] == "integrated_gradients"
    assert record["metabolites"]["integration_error"].max() < 0.05
    assert np.isfinite(st.varm["attribution"].to_numpy()).all()
