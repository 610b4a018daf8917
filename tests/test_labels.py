"Labels: known answers, sums, missing observations, and the loss."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb.core import DataError, rain_class
from sslpdl_nb.labels import density_labels, label_loss, mixed_labels, one_hot

rates = st.lists(st.floats(0, 200, width=32), min_size=1, max_size=30)


def field(values, dtype=torch.float32):
    return torch.tensor([values], dtype=dtype)


@pytest.mark.parametrize(
    "rain, label",
    [
        (-1.0, (1, 0, 0)),
        (0.0, (1, 0, 0)),
        (0.05, (0.5, 0.5, 0)),
        (0.1, (0, 1, 0)),
        (1.0, (0, 9 / 9.9, 0.9 / 9.9)),
        (5.0, (0, 5 / 9.9, 4.9 / 9.9)),
        (9.9, (0, 0.1 / 9.9, 9.8 / 9.9)),
        (10.0, (0, 0, 1)),
        (math.inf, (0, 0, 1)),
    ],
)
def test_density_known_answers(rain, label):
    assert np.allclose(density_labels(field([rain], torch.float64))[:, 0, 0], label, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(rates, st.floats(0, 1), st.floats(0, 1))
def test_labels_are_probabilities(values, alpha, beta):
    for label in (
        one_hot(field(values)),
        density_labels(field(values), alpha=alpha),
        mixed_labels(field(values), alpha=alpha, beta=beta),
    ):
        assert label.shape == (3, 1, len(values)) and (label >= 0).all()
        assert torch.allclose(label.sum(0), torch.ones(1), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(rates)
def test_one_hot_is_the_class_of_core(values):
    expected = rain_class(field(values).numpy()).tolist()
    assert one_hot(field(values)).argmax(0).tolist() == expected
    assert mixed_labels(field(values), beta=0.75).argmax(0).tolist() == expected


def test_class_axis_stands_before_rows_and_columns():
    rain = torch.rand(2, 5, 6, 7) * 20
    assert one_hot(rain).shape == (2, 5, 3, 6, 7)
    assert density_labels(rain, edges=(0.1, 1.0, 10.0)).shape == (2, 5, 4, 6, 7)
    assert torch.equal(density_labels(rain)[1, 3], density_labels(rain[1, 3]))


def test_not_observed_gives_zeros():
    rain = torch.full((2, 3), torch.nan)
    for label in (one_hot(rain), density_labels(rain, alpha=0.5), mixed_labels(rain)):
        assert (label == 0).all()
    assert one_hot(torch.zeros(0, 2, 3)).shape == (0, 3, 2, 3)


@pytest.mark.parametrize("edges", [(), (0.0, 1.0), (1.0, 1.0), (10.0, 0.1), (float("nan"),)])
def test_bad_edges(edges):
    with pytest.raises(DataError, match="edges"):
        density_labels(torch.zeros(1, 1), edges)


@pytest.mark.parametrize(
    "kwargs", [dict(alpha=-0.1), dict(alpha=2.0), dict(beta=1.1), dict(beta=-1)]
)
def test_bad_fractions(kwargs):
    with pytest.raises(DataError):
        mixed_labels(torch.zeros(1, 1), **kwargs)


def random_case(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, 5, generator=g), 20 * torch.rand(2, 4, 5, generator=g) ** 4


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 5.0, 10.0)])
def test_loss_equals_torch(weights):
    logits, rain = random_case()
    classes, observed = torch.from_numpy(rain_class(rain)), torch.ones_like(rain, dtype=bool)
    theirs = F.cross_entropy(logits, classes, weight=torch.tensor(weights))
    ours = label_loss(logits, mixed_labels(rain, beta=1.0), observed, weights)
    assert torch.isclose(ours, theirs)


def test_mixing_labels_is_mixing_losses():
    "One normalisation: the loss of the mixed label from the two losses and their denominators."
    logits, rain = random_case(1)
    observed, weights = torch.ones_like(rain, dtype=bool), torch.tensor([1.0, 5.0, 10.0])

    def parts(labels):
        total = (weights.view(-1, 1, 1) * labels).sum()
        return label_loss(logits, labels, observed, weights) * total, total

    (hot, hot_total), (hats, hats_total) = parts(one_hot(rain)), parts(density_labels(rain))
    expected = (0.75 * hot + 0.25 * hats) / (0.75 * hot_total + 0.25 * hats_total)
    mixed = label_loss(logits, mixed_labels(rain, beta=0.75), observed, weights)
    assert torch.isclose(mixed, expected)


def test_loss_ignores_what_was_not_observed():
    logits, rain = random_case()
    gaps = rain.clone()
    gaps[:, :2] = torch.nan
    full = label_loss(logits[:, :, 2:], mixed_labels(rain[:, 2:]), torch.ones(2, 2, 5, dtype=bool))
    assert torch.isclose(label_loss(logits, mixed_labels(gaps), ~gaps.isnan()), full)
    # the mask of observed pixels alone is enough
    assert torch.isclose(label_loss(logits, mixed_labels(rain), ~gaps.isnan()), full)


def test_loss_without_any_observation_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    rain = torch.full((1, 2, 2), torch.nan)
    loss = label_loss(logits, mixed_labels(rain), ~rain.isnan())
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_loss_is_smallest_at_the_label():
    label = density_labels(torch.tensor([[[5.0]]]))
    observed, weights = torch.ones(1, 1, 1, dtype=bool), (1.0, 1.0, 1.0)
    best = label_loss((label + 1e-9).log(), label, observed, weights)
    for _ in range(20):
        other = torch.randn(1, 3, 1, 1)
        assert label_loss(other, label, observed, weights) >= best - 1e-6


def test_loss_wants_equal_shapes():
    observed = torch.ones(1, 4, 4, dtype=bool)
    with pytest.raises(DataError, match="logits"):
        label_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), observed)
