"""The mechanism of the cross-modal encoder: hidden elements, weights of retrieval, exemplars, the falling learning rate."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from stmsi.model import HurdleNet
from stmsi.model import load as load_model
from stmsi.model.net.encoders import CrossModalEncoder, Sizes
from stmsi.model.net.encoders._exemplars import ExemplarBridge
from stmsi.model.net.encoders._reconstruction import MASKED, N_TOKENS, Reconstruction
from stmsi.model.net.encoders._training_profiles import ProfileBank

WIDTH = 16


@pytest.fixture(scope="module")
def reconstruction():
    torch.manual_seed(0)
    return Reconstruction(6, WIDTH, dropout=0.1).eval()


def test_half_of_the_elements_are_hidden(reconstruction):
    profile, genes, seen = torch.randn(200, 6), torch.randn(200, WIDTH), []
    hook = reconstruction.first.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        reconstruction(profile, genes)
    hook.remove()
    query, key, value = seen[0]
    assert query.shape == key.shape == (200, N_TOKENS, WIDTH) == (200, 8, WIDTH)
    assert float((query == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert MASKED == 0.5
    assert key is value
    assert float((key == 0).float().mean()) < 0.01, "nothing of the genes is hidden"


def test_genes_and_metabolites_take_part(reconstruction):
    profile, genes = torch.randn(5, 6), torch.randn(5, WIDTH)

    def out(profile, genes):
        torch.manual_seed(0)
        with torch.no_grad():
            return reconstruction(profile, genes)

    base = out(profile, genes)
    assert base.shape == (5, WIDTH)
    assert not torch.allclose(out(profile, genes.flip(0)), base, atol=1e-3)
    assert not torch.allclose(out(profile.flip(0), genes), base, atol=1e-3)


def test_retrieval_weighted_by_similarity():
    rng = np.random.default_rng(0)
    kept, asked, y = (torch.tensor(rng.normal(size=s)) for s in ((9, 4), (3, 4), (9, 2)))
    bank = ProfileBank(5, "similarity", 1.0)
    bank.fill(kept, y, torch.ones_like(y))
    _, mean = bank.look_up(asked)
    cosine = torch.nn.functional.cosine_similarity(asked.unsqueeze(1), kept, dim=2)
    for i, row in enumerate(cosine):
        nearest = row.argsort(descending=True)[:5]
        weight = row[nearest].clamp(min=1e-6)
        expected = (weight / weight.sum() * 5) @ y[nearest] / 6  # the training mean counts as one neighbour
        torch.testing.assert_close(mean[i], expected)


@pytest.mark.parametrize(("weighting", "n"), [("uniform", 50), ("softmax", 50), ("similarity", 200)])
def test_spots_that_are_retrieved(weighting, n):
    sizes = Sizes(n_genes=3, n_covariates=0, n_metabolites=2)
    assert CrossModalEncoder(sizes, "retrieval", WIDTH, weighting=weighting).bank.n_neighbours == n


# ---------------------------------------------------------------------------------------------------------- exemplars


def test_exemplars_are_the_nearest_of_other_sections():
    torch.manual_seed(0)
    bank = ProfileBank(4, "uniform", 1.0)
    embedding, section = torch.randn(12, 4), torch.arange(12) % 3
    y = torch.arange(12.0).unsqueeze(1)
    bank.fill(embedding, y, torch.ones_like(y), section)
    found = bank.exemplars(embedding, section)
    numbers = found.profile[..., 3].long()
    assert (numbers % 3 != section.unsqueeze(1)).all()
    cosine = torch.nn.functional.cosine_similarity(embedding.unsqueeze(1), embedding, dim=2)
    expected = cosine.masked_fill(section.unsqueeze(1) == section, -2).topk(4, dim=1).indices
    assert (numbers == expected).all()
    assert (bank.exemplars(embedding).profile[:, 0, 3] == y[:, 0]).all(), "a spot is its own where none is passed over"
    few = bank.exemplars(embedding[:2], torch.tensor([0, 1])).there
    bank.section = torch.zeros(12, dtype=torch.long)
    assert few.all()
    assert not bank.exemplars(embedding[:2], torch.zeros(2, dtype=torch.long)).there.any()


@pytest.mark.once
def test_what_exemplars_hold_carries_the_answer():
    """Trained to tell what was measured at like spots, the bridge is lost when their profiles are shuffled."""
    torch.manual_seed(0)
    centre = torch.nn.functional.normalize(torch.randn(20, WIDTH), dim=1)
    level = torch.randn(20, 1)  # of each kind of spot: no function of the embedding that 20 kinds could teach
    kind = torch.arange(20).repeat(6)
    embedding = (centre[kind] + 0.05 * torch.randn(120, WIDTH)) * WIDTH**0.5
    bank = ProfileBank(4, "uniform", 1.0)
    bank.fill(embedding[:80], level[kind[:80]], torch.ones(80, 1), torch.arange(80))
    bridge = ExemplarBridge(WIDTH, 4)
    head = torch.nn.Linear(WIDTH, 1)
    optimizer = torch.optim.Adam([*bridge.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        answer = head(bridge(embedding[:80], bank.exemplars(embedding[:80], torch.arange(80))))
        (answer - level[kind[:80]]).square().mean().backward()
        optimizer.step()
    bridge.eval()

    def error():
        with torch.no_grad():
            answer = head(bridge(embedding[80:], bank.exemplars(embedding[80:])))
        return float((answer - level[kind[80:]]).square().mean())

    right = error()
    bank.profile = bank.profile[torch.randperm(80)]
    assert right < 0.1
    assert error() > 5 * right
    with torch.no_grad():
        alone = bridge(embedding[:2], bank.exemplars(embedding[:2], torch.zeros(2, dtype=torch.long)))
    assert torch.isfinite(alone).all()


@pytest.fixture(scope="module")
def of_exemplars(_mapped):
    """A net with exemplars, and its data; not to be trained again."""
    st = _mapped.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].iloc[:, :4]
    HurdleNet.setup_anndata(st, presence_key="msi_presence")
    options = {"output": "exemplars", "n_hidden": WIDTH, "n_neighbours": 5}
    model = HurdleNet(st, encoder="crossmodal", residual=None, n_nets=1, encoder_kwargs=options)
    rates = Rates()
    model.train(max_epochs=3, lr=0.01, callbacks=rates)
    return model, rates


class Rates(Callback):
    """Learning rates of the epochs."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_net_with_exemplars(of_exemplars, tmp_path):
    model, _ = of_exemplars
    query = model.adata[model.adata.obs["sample"] == "P3S1"].copy()
    bank = model.module.encoder.bank
    assert len(bank) == model.adata.obsm["msi"].notna().any(axis=1).sum(), "of all training spots after the refit"
    assert model._contains_training_profiles()
    found = model.predict_intensity(query)
    assert np.isfinite(found.to_numpy()).all()
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_intensity(query), found)
    other = again.module.encoder.bank
    other.profile = other.profile.flip(0)
    assert (again.predict_intensity(query) != found).to_numpy().mean() > 0.9


def test_the_learning_rate_falls_as_a_cosine(of_exemplars):
    _, rates = of_exemplars
    expected = 0.005 * (1 + np.cos(np.pi * np.arange(3) / 3))
    np.testing.assert_allclose(rates.seen[:3], expected)
    # the training on all spots goes down the same way, and ends earlier
    np.testing.assert_allclose(rates.seen[3:], expected[: len(rates.seen) - 3])
