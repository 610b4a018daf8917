"Decisions: exceedance, probability thresholds, probabilities of a model, and calibration."

import copy

import numpy as np
import pytest
import torch

from sslpdl_nb.core import CLASS_EDGES, DataError
from sslpdl_nb.decide import (
    calibrate,
    decide,
    exceedance,
    predict_probabilities,
    tune_probability_thresholds,
)
from sslpdl_nb.verify import PROBABILITY_THRESHOLDS, csi, threshold_counts

RATES = np.array([0.0, 1.0, 20.0])  # mm/h, one in each class


# ------------------------------------------------------------------ thresholds


def test_decide_and_exceedance():
    pixels = [[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]]
    p = np.array(pixels).T[None, :, None]  # (sample, class, row, column)
    assert np.allclose(exceedance(p)[0, :, 0], [[0.3, 0.6, 0.8, 1], [0.1, 0.1, 0.6, 1]])
    assert decide(p, (0.5, 0.5)).tolist() == [[[0, 1, 2, 2]]]
    assert decide(p, (0.2, 0.9)).tolist() == [[[1, 1, 1, 2]]]


def test_heavy_rain_is_only_where_rain_is():
    p = np.array([0.6, 0.0, 0.4])[None, :, None, None]
    assert decide(p, (0.5, 0.3)).item() == 0  # the upper threshold alone is not enough


@pytest.mark.parametrize("thresholds", [(0.5,), (0.5, 0.5, 0.5)])
def test_one_threshold_for_each_edge(thresholds):
    with pytest.raises(DataError, match="number of probability thresholds: expected 2"):
        decide(np.full((1, 3, 2, 2), 1 / 3), thresholds)


def test_thresholds_by_brute_force():
    p = np.random.default_rng(1).dirichlet((5, 3, 1), size=(1, 4, 5)).transpose(0, 3, 1, 2)
    for q, t in zip(np.moveaxis(exceedance(p), 1, 0), tune_probability_thresholds(p)):
        expected = {u: q[q >= u].sum() / ((q >= u).sum() + q[q < u].sum()) for u in q.ravel()}
        assert np.isclose(expected[t], max(expected.values()))


def test_thresholds_need_no_observation_when_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    p = rng.dirichlet((8, 1, 0.3), size=(40, 24, 24)).transpose(0, 3, 1, 2)
    # a class drawn from the probabilities of each pixel
    drawn = (rng.random((40, 1, 24, 24)) > np.cumsum(p, 1)).sum(1)
    rain = RATES[drawn.clip(max=2)]
    for k, (edge, t) in enumerate(zip(CLASS_EDGES, tune_probability_thresholds(p))):
        candidates = np.r_[t, 0, PROBABILITY_THRESHOLDS]
        scores = csi(threshold_counts(exceedance(p)[:, k], rain >= edge, candidates))
        assert scores[0] > 0.95 * np.nanmax(scores)


def test_thresholds_of_a_certain_forecast():
    certain = np.stack([np.eye(4), 0 * np.eye(4), 1 - np.eye(4)])[None]
    dry = np.stack([np.ones((2, 2)), *np.zeros((2, 2, 2))])[None]
    assert tune_probability_thresholds(certain) == (1.0, 1.0)
    assert tune_probability_thresholds(dry) == (1.0, 1.0)
    assert not decide(dry, (1.0, 1.0)).any()


# ------------------------------------------------------------------ probabilities of a model


def test_probabilities_of_any_batch_size():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.Dropout(0.5)).train()
    data = [dict(x=torch.randn(2, 4, 5)) for _ in range(4)]
    p = predict_probabilities(model, data, batch=3)
    assert p.shape == (4, 3, 4, 5)
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert model.training  # as before; while it predicts, nothing is dropped
    assert np.allclose(p, predict_probabilities(model, data, batch=4), atol=1e-5)


def test_probabilities_of_no_samples_are_refused():
    with pytest.raises(DataError, match="samples: expected at least one, found 0"):
        predict_probabilities(torch.nn.Conv2d(2, 3, 1), [])


# ------------------------------------------------------------------ calibration


class OnlyHead(torch.nn.Module):
    "A model that only has a last layer, which passes its input on."

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x):
        return self.head(x)


def known_days(n=60, seed=0):
    "The class frequencies of some days, and rain that was drawn from them."
    g = torch.Generator().manual_seed(seed)
    frequency = (2 * torch.randn(n, 3, 24, 24, generator=g)).softmax(1)
    flat = frequency.movedim(1, -1).reshape(-1, 3)
    drawn = torch.multinomial(flat, 1, generator=g).reshape(n, 24, 24)
    rain = torch.tensor(RATES, dtype=torch.float32)[drawn]
    rain[:, :3] = torch.nan
    return frequency, rain


@pytest.mark.parametrize(
    "scale, shift", [(1.0, (0, 0, 0)), (2.0, (0, 1.6, 2.3)), (0.5, (-1, 0.5, 0))]
)
def test_calibration_finds_the_true_frequencies(scale, shift):
    model, (frequency, rain) = OnlyHead(), known_days()
    shift = torch.tensor(shift)[:, None, None]
    days = [dict(x=scale * f.log() + shift, rain=r) for f, r in zip(frequency, rain)]
    found = calibrate(model, days, CLASS_EDGES)
    assert found["scale"] == pytest.approx(1 / scale, rel=0.05)
    assert found["after"] <= found["before"]
    assert np.abs(predict_probabilities(model, days) - frequency.numpy()).max() < 0.05
    again = calibrate(model, days, CLASS_EDGES)  # nothing is left to do
    assert again["scale"] == pytest.approx(1, abs=0.01)
    assert again["before"] - again["after"] < 1e-4


def test_calibration_without_an_event_stays_finite():
    model, (frequency, rain) = OnlyHead(), known_days(8)
    days = [dict(x=f.log(), rain=r.clamp(max=1.0)) for f, r in zip(frequency, rain)]
    assert np.isfinite(calibrate(model, days, CLASS_EDGES)["shift"]).all()
    p = predict_probabilities(model, days)
    assert np.isfinite(p).all()
    assert p[:, 2].mean() < 0.05


def test_calibration_reaches_the_head_of_a_decoder():
    "A rain model has its last layer inside its decoder, a U-Net has it directly."
    frequency, rain = known_days(8)
    days = [dict(x=2 * f.log(), rain=r) for f, r in zip(frequency, rain)]
    direct, inside = OnlyHead(), torch.nn.Module()
    inside.decoder = copy.deepcopy(direct)
    inside.forward = inside.decoder.forward
    assert calibrate(direct, days, CLASS_EDGES) == calibrate(inside, days, CLASS_EDGES)
    assert torch.equal(direct.head.weight, inside.decoder.head.weight)
