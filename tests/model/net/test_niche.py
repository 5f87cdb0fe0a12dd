"""The mechanism of the niche encoder: tokens of genes, rings, drawn neighbours, gated units, hidden units of each metabolite."""

import pytest
import torch
from torch.nn.functional import gelu, leaky_relu

from stmsi.model.net.encoders import Context, NicheEncoder, Sizes

SIZES = Sizes(n_genes=6, n_covariates=2, n_metabolites=3)
WIDTH = 8


def make(**options):
    torch.manual_seed(0)
    encoder = NicheEncoder(SIZES, **{"n_hidden": WIDTH, "n_heads": 2, "n_own": 5, **options}).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


def one_spot(rings, genes=None):
    """A spot with neighbours of these rings, each a spot of its own."""
    k = len(rings)
    values = torch.randn(1 + k, 6, generator=torch.Generator().manual_seed(1)) if genes is None else genes
    place = torch.arange(1, 1 + k).unsqueeze(0)
    return Context(values, torch.tensor([0]), place, torch.tensor([rings]), torch.zeros(1, k, 2))


def run(encoder, context):
    with torch.no_grad():
        return encoder(torch.zeros(1, 6), torch.tensor([[0.5, -1.0]]), context)


def test_every_step_written_out():
    encoder, rings = make(), [1, 1, 1, 1, 1, 2]
    context = one_spot(rings)
    tokens = encoder.spot(context.values) + encoder.kind.weight[[0, *rings]]
    attention, normed = encoder.attention, encoder.before(tokens)
    q, k, v = (normed @ w.T + b for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True))  # fmt: skip
    # five spots of ring 1 count as the four that a training step draws
    weighed = torch.tensor([1.0, *[4 / 5] * 5, 1.0])
    answer = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        weight = weighed * (q[0, part] @ k[:, part].T / 2).exp()
        answer.append(weight @ v[:, part] / weight.sum())
    token = tokens[0] + attention.out_proj(torch.cat(answer))
    value, gate = encoder.gate(token).chunk(2)
    token = torch.cat([token + encoder.back(value * gelu(gate)), torch.tensor([0.5, -1.0])])
    own = [leaky_relu(token @ encoder.own[m] + encoder.own_bias[m]) for m in range(3)]
    torch.testing.assert_close(run(encoder, context)[0], torch.cat(own).detach(), rtol=1e-4, atol=1e-5)


def test_the_token_of_the_ring_counts():
    # one spot in a ring counts alike in both: nothing differs but the token
    encoder = make()
    assert not torch.allclose(run(encoder, one_spot([1])), run(encoder, one_spot([2])), atol=1e-4)


def test_a_ring_counts_as_many_as_a_training_step_draws():
    encoder = make(n_drawn=2)
    genes = torch.randn(2, 6)
    few, many = (run(encoder, one_spot([1] * k, genes[[0, *[1] * k]])) for k in (2, 7))
    torch.testing.assert_close(few, many)
    alone = run(encoder, one_spot([1], genes))
    assert not torch.allclose(alone, many, atol=1e-4), "no more than there are"


@pytest.mark.parametrize(
    ("share", "options"), [(0.7, {}), (1.0, {"neighbour_dropout": 0.0}), (0.1, {"neighbour_dropout": 0.9})]
)
def test_neighbours_are_drawn_and_dropped(share, options):
    encoder = make(**options).train()
    rings = [1] * 6 + [2] * 2 + [0]
    n = 600
    context = Context(
        torch.zeros(10, 6), torch.zeros(n, dtype=torch.long), torch.arange(1, 10).expand(n, 9),
        torch.tensor(rings).expand(n, 9), torch.zeros(n, 9, 2),
    )  # fmt: skip
    torch.manual_seed(0)
    neighbour, ring, logit = encoder._drawn(context)
    for number, most in ((1, 4), (2, 2)):
        of_ring = ring == number
        assert of_ring.sum(dim=1).max() <= most
        assert float(of_ring.sum() / (most * n)) == pytest.approx(share, abs=0.04)
        assert set(neighbour[of_ring].tolist()) == {i for i, r in enumerate(rings, start=1) if r == number}, (
            "all in turn"
        )
    assert (logit == -torch.inf).eq(ring == 0).all()
    assert (neighbour[ring == 0] == 0).all(), "the spot itself stands where there is none"


def test_metabolites_have_hidden_units_of_their_own():
    encoder = make()
    out = encoder(torch.zeros(1, 6), torch.zeros(1, 2), one_spot([1, 2])).unflatten(1, (3, 5))
    (gradient,) = torch.autograd.grad(out[:, 1].sum(), encoder.own)
    assert gradient[1].abs().sum() > 0
    assert gradient[[0, 2]].abs().sum() == 0
