"""The deep-set encoder: spot, inner set and neighbours by one function."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from stmsi.model import HurdleNet
from stmsi.model.net.encoders import Context, DeepSetEncoder, Sizes
from stmsi.model.net.encoders._deepset import median

N, K, WIDTH = 5, 4, 6


def make(n_features=0, **options):
    torch.manual_seed(1)
    sizes = Sizes(n_genes=7, n_covariates=1 + n_features, n_components=WIDTH, n_features=n_features)
    return DeepSetEncoder(sizes, **{"n_hidden": 4, "n_phi": 3, "n_rho": 2} | options).eval()


@pytest.fixture
def context():
    """Neighbours that several spots share; the last spot has none."""
    generator = torch.Generator().manual_seed(0)
    ring = torch.tensor([[1, 1, 2, 0]] * (N - 1) + [[0] * K])
    place = torch.randint(0, 9, (N, K), generator=generator)
    return Context(torch.randn(9, WIDTH, generator=generator), torch.arange(N), place, ring, torch.zeros(N, K, 2))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10])
def test_the_median_of_the_functions_counts(n):
    members = torch.randn(6, n, 3)
    np.testing.assert_allclose(median(members), np.median(members.numpy(), axis=1), rtol=1e-6)


@pytest.mark.parametrize("n_inner", [0, 3])
def test_the_sets_against_loops(n_inner, context):
    encoder = make(2 * n_inner, n_inner=n_inner)
    covariates = torch.randn(N, 1 + 2 * n_inner)

    def phi(values):
        made = encoder.phi(values).detach().numpy().reshape(3, 4)
        return np.median(made, axis=0)

    rows = []
    for i in range(N):
        around = [phi(context.values[context.neighbour[i, k]]) for k in range(K) if context.ring[i, k] > 0]
        sets = [phi(context.values[i]), np.max(around, axis=0) if around else np.zeros(4)]
        if n_inner:
            members = covariates[i, 1:].reshape(3, 2)
            sets.append(sum(phi(encoder.inner(m)) for m in members) / 3**0.5)
        joined = torch.tensor(np.concatenate([*sets, covariates[i].numpy()]), dtype=torch.float32)
        rows.append(encoder.rho(joined).detach().numpy().reshape(2, 4).mean(axis=0))
    found = encoder(torch.zeros(N, 7), covariates, context).detach()
    np.testing.assert_allclose(found, np.stack(rows), rtol=1e-4, atol=1e-5)


def test_neighbours_that_are_not_there_have_no_say(context):
    encoder, x, covariates = make(), torch.zeros(N, 7), torch.zeros(N, 1)
    base = encoder(x, covariates, context)
    other = torch.where(context.ring > 0, context.neighbour, (context.neighbour + 3) % 9)
    assert (other != context.neighbour).any()
    torch.testing.assert_close(encoder(x, covariates, replace(context, neighbour=other)), base)
    alone = encoder(x, covariates, replace(context, ring=torch.zeros_like(context.ring)))
    assert ((alone - base).abs().amax(dim=1)[:-1] > 1e-5).all()
    torch.testing.assert_close(alone[-1], base[-1])


def test_the_order_inside_a_spot_does_not_count_but_what_is_there_does(context):
    encoder = make(6, n_inner=3)
    covariates = torch.randn(N, 7)
    members = covariates[:, 1:].reshape(N, 3, 2)

    def inner(values):
        return encoder.embed_inner(values.flatten(1))

    torch.testing.assert_close(inner(members[:, [2, 0, 1]]), inner(members))
    assert ((inner(members + torch.randn(N, 3, 2)) - inner(members)).abs().amax(dim=1) > 1e-5).all()
    programmes = make(3, n_inner=3)
    amount = torch.rand(N, 3)
    torch.testing.assert_close(programmes.embed_inner(2 * amount), 2 * programmes.embed_inner(amount))
    assert not torch.allclose(programmes.embed_inner(amount[:, [2, 0, 1]]), programmes.embed_inner(amount))


@pytest.mark.parametrize(
    ("n_features", "options", "match"),
    [
        (0, {"n_phi": 0}, "n_phi and n_rho must be at least 1, found 0 and 2"),
        (0, {"n_inner": 2}, "n_inner=2 members stand side by side in the columns of feature_key, which are 0"),
        (7, {"n_inner": 2}, "columns of feature_key, which are 7"),
    ],
)
def test_sets_that_do_not_fit(n_features, options, match):
    with pytest.raises(ValueError, match=match):
        make(n_features, **options)


@pytest.mark.once
def test_bins_inside_spots_tell_what_their_mean_does_not():
    """The metabolite is the spread of four bins, about which the genes and the mean of the bins say nothing."""
    rng = np.random.default_rng(0)
    sections = pd.DataFrame(
        {"sample": np.repeat(["S0", "S1", "S2", "S3"], 48)}, index=[f"spot {i}" for i in range(192)]
    )
    st = ad.AnnData(rng.poisson(20, (192, 6)).astype(np.float32), obs=sections)
    st.obsp["spatial_connectivities"] = sp.csr_matrix((st.n_obs, st.n_obs))
    bins = rng.normal(size=(st.n_obs, 4, 2))
    bins[..., 0] -= bins[..., 0].mean(axis=1, keepdims=True)
    st.obsm["bins"] = bins.reshape(st.n_obs, 8)
    value = np.abs(bins[..., 0]).sum(axis=1)
    st.obsm["msi"] = pd.DataFrame({"a": value, "b": 2 * value}, st.obs_names).astype(np.float32)
    last = (st.obs["sample"] == "S3").to_numpy()
    train, test = st[~last].copy(), st[last].copy()

    def follows(options):
        HurdleNet.setup_anndata(train, graph_key="spatial_connectivities", feature_key="bins")
        small = {"n_hidden": 16, "n_phi": 2, "n_rho": 2, "dropout": 0.0}
        model = HurdleNet(train, encoder="deepset", residual=None, encoder_kwargs=small | options)
        model.train(refit=False, lr=1e-2, max_epochs=40, batch_size=64, patience=40)
        return np.corrcoef(model.predict_intensity(test)["a"], test.obsm["msi"]["a"])[0, 1]

    assert follows({"n_inner": 4}) > 0.6
