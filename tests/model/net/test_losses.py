"""Losses of the network against plain numpy, and their gradients."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from stmsi.model.net.modules._losses import INTENSITY_LOSSES, PRESENCE_LOSSES, intensity_loss, presence_loss

N, M = 30, 5


@pytest.fixture
def batch():
    """Predictions, targets and presence; the last metabolite is present in two spots, the one before is constant."""
    rng = np.random.default_rng(0)
    present = rng.choice([0.0, 1.0, np.nan], (N, M), p=[0.4, 0.4, 0.2])
    present[:, 4] = 0
    present[:2, 4] = 1
    target = np.where(np.isnan(present), np.nan, rng.normal(size=(N, M)))
    target[:, 3] = np.where(np.isnan(present[:, 3]), np.nan, 2.0)
    return rng.normal(size=(N, M)), target, present


def tensors(*arrays):
    return [torch.tensor(a, dtype=torch.float64) for a in arrays]


def similarities(mean, target, present, centre):
    """Of the metabolites with enough spots that differ."""
    values = []
    for m in range(3):
        a, b = mean[present[:, m] == 1, m], target[present[:, m] == 1, m]
        a, b = (a - a.mean() * centre, b - b.mean() * centre)
        values.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    return values


def test_the_focal_loss_against_numpy(batch):
    logit, _, present = batch
    weight = np.array([1, 0.2, 5, 20, 0.05])
    p = np.where(present == 1, expit(logit), 1 - expit(logit))
    entry = -((1 - p) ** 2) * np.log(p) * np.where(present == 1, weight, 1) * 2 / (1 + weight)
    expected = entry[~np.isnan(present)].mean()
    assert float(presence_loss(*tensors(logit, present, weight), "focal")) == pytest.approx(expected)


def test_the_huber_loss_against_numpy(batch):
    mean, target, present = batch
    r = np.abs(3 * mean - target)[present == 1]
    expected = np.where(r < 1, r**2 / 2, r - 0.5).mean()
    assert float(intensity_loss(*tensors(3 * mean, target, present), "huber")) == pytest.approx(expected)


def test_the_pearson_loss_against_numpy(batch):
    mean, target, present = batch
    squared = ((mean - target)[present == 1] ** 2).mean()
    expected = 1 - np.mean(similarities(mean, target, present, centre=True)) + 0.1 * squared
    assert float(intensity_loss(*tensors(mean, target, present), "pearson")) == pytest.approx(expected, rel=1e-4)


def test_the_cosine_loss_against_numpy(batch):
    mean, target, present = batch
    target[:, 3] = np.where(np.isnan(target[:, 3]), np.nan, 0.0)  # constant at its mean: no direction
    squared = ((mean - target)[present == 1] ** 2).mean()
    expected = 1 - np.mean(similarities(mean, target, present, centre=False)) + 0.1 * squared
    assert float(intensity_loss(*tensors(mean, target, present), "cosine")) == pytest.approx(expected, rel=1e-4)


def test_a_correlation_knows_no_level_and_the_loss_does(batch):
    mean, target, present = (torch.tensor(a) for a in batch)
    far, near = (intensity_loss(mean + shift, target, present, "pearson") for shift in (3.0, 0.0))
    assert float(far - near) == pytest.approx(
        0.1 * float(intensity_loss(mean + 3, target, present) - intensity_loss(mean, target, present)), rel=1e-6
    )


@pytest.mark.parametrize("kind", INTENSITY_LOSSES)
def test_what_is_absent_or_not_measured_has_no_gradient(batch, kind):
    values, target, present = batch
    mean = torch.tensor(values, requires_grad=True)
    intensity_loss(mean, *tensors(target, present), kind).backward()
    assert torch.isfinite(mean.grad).all()
    assert ((mean.grad != 0) == torch.tensor(present == 1)).all()


@pytest.mark.parametrize("kind", PRESENCE_LOSSES)
def test_spots_without_msi_have_no_gradient(batch, kind):
    values, _, present = batch
    logit = torch.tensor(values, requires_grad=True)
    presence_loss(logit, *tensors(present, np.ones(M)), kind).backward()
    assert ((logit.grad != 0) == torch.tensor(~np.isnan(present))).all()


@pytest.mark.parametrize("kind", INTENSITY_LOSSES)
@pytest.mark.parametrize("case", ["one spot", "constant prediction", "constant target", "absent", "nothing measured"])
def test_batches_that_tell_little_have_finite_gradients(batch, kind, case):
    mean, target, present = (a.copy() for a in batch)
    if case == "one spot":
        mean, target, present = mean[:1], target[:1], present[:1]
    elif case == "constant prediction":
        mean[:] = 0
    elif case == "constant target":
        target = np.where(np.isnan(target), np.nan, 0.0)
    elif case == "absent":
        present = np.where(np.isnan(present), np.nan, 0.0)
    else:
        target[:], present[:] = np.nan, np.nan
    # in single precision, as in training
    prediction = torch.tensor(mean, dtype=torch.float32, requires_grad=True)
    loss = intensity_loss(prediction, torch.tensor(target).float(), torch.tensor(present).float(), kind)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()
