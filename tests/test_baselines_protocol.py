"The protocol of baselines: folds, toys with a known answer, and the test that all must pass."

import numpy as np
import pytest
import xarray as xr

from sslpdl_nb.baselines.protocol import (
    Climatology,
    as_probabilities,
    check_baseline,
    class_probabilities,
    folds,
    raw_rain,
    toy,
    toy_skill,
)
from sslpdl_nb.core import CLASS_EDGES, RAIN, VARIABLE_NAMES, DataError, rain_class
from sslpdl_nb.decide import exceedance
from sslpdl_nb.grids.types import lambert_from_cf
from sslpdl_nb.store import RainDataset, atmosphere_of, check_store

HUMID, DISPLACED = toy("humid", atmospheres=6), toy("displaced", atmospheres=6)


class Fixed:
    "A baseline whose probabilities a test makes up."

    size = 0

    def __init__(self, make):
        self.make = make

    def fit(self, train, valid, seed=0):
        return self

    def predict(self, data):
        return self.make(data)


def perfect(data):
    return class_probabilities(rain_class(data.observed_rain().numpy()))


def climatology_of(t):
    return Climatology().fit(t.train, t.valid).predict


# ------------------------------------------------------------------ probabilities


def test_as_probabilities_undoes_exceedance():
    p = np.random.default_rng(0).dirichlet((5, 2, 1, 1), (2, 3, 4)).transpose(0, 3, 1, 2)
    assert np.allclose(as_probabilities(exceedance(p)), p)


def test_a_higher_edge_is_never_more_probable():
    p = np.random.default_rng(0).random((3, 4, 5, 6)) * 1.4 - 0.2
    q = as_probabilities(p)
    assert np.allclose(q.sum(1), 1) and q.min() >= -1e-12
    assert np.allclose(exceedance(q)[:, 0], p[:, 0].clip(0, 1))


def test_classes_as_probabilities():
    p = class_probabilities(np.array([[[0, 1], [2, -1]]]))
    assert p.dtype == np.float32 and p[0, :, 1, 0].tolist() == [0, 0, 1]
    assert p[0, :, 1, 1].tolist() == [0, 0, 0]  # an unknown class belongs to none
    assert class_probabilities(np.zeros((1, 2, 2)), 5).shape == (1, 5, 2, 2)


def test_raw_rain_is_that_of_the_file():
    samples = DISPLACED.test.samples.copy(deep=True)
    samples["forecast"][0, RAIN, 0, 0] = np.nan
    rain = raw_rain(RainDataset(samples, DISPLACED.test.standardizer))
    assert rain[0, 0, 0] == 0 and np.isfinite(rain).all()
    assert np.array_equal(rain[1:], samples["forecast"].values[1:, RAIN])


def test_climatology_counts_observed_pixels_only():
    samples = HUMID.train.samples.copy(deep=True)
    samples["rain"][:] = np.nan
    samples["rain"][0, 0, :4] = [0.0, 0.0, 3.0, 12.0]
    p = climatology_of(HUMID)(HUMID.test)
    assert p.shape == (8, 3, 32, 32) and np.allclose(p.std((0, 2, 3)), 0)
    found = Climatology().fit(RainDataset(samples, HUMID.train.standardizer), HUMID.valid)
    assert found.frequency.tolist() == [0.5, 0.25, 0.25]


# ------------------------------------------------------------------ folds


def test_folds_keep_atmospheres_together_and_are_even():
    data = toy("humid", atmospheres=30).train
    groups, fold = atmosphere_of(data.samples), folds(data, 5, seed=3)
    for g in np.unique(groups):
        assert np.unique(fold[groups == g]).size == 1
    assert np.bincount(fold).tolist() == [8] * 5
    assert np.array_equal(fold, folds(data, 5, seed=3))
    assert not np.array_equal(fold, folds(data, 5, seed=4))


def test_no_more_folds_than_atmospheres():
    assert np.unique(folds(HUMID.train, 2)).size == 2
    with pytest.raises(DataError, match="atmospheres: expected at least 3, found 2"):
        folds(HUMID.train, 3)


# ------------------------------------------------------------------ toys


@pytest.mark.parametrize("t", [HUMID, DISPLACED])
def test_a_toy_is_a_store_in_three_parts(t):
    times = [d.samples["reference_time"].values for d in (t.train, t.valid, t.test)]
    assert all(len(d) == 8 for d in (t.train, t.valid, t.test))
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()
    for data in (t.train, t.valid, t.test):
        check_store(data.samples.drop_vars("variable", errors="ignore"), "toy")
        assert np.unique(atmosphere_of(data.samples)).tolist() == [0, 1]
        assert lambert_from_cf(data.samples).shape == (32, 32)


def test_toys_depend_on_the_seed_alone():
    xr.testing.assert_identical(HUMID.test.samples, toy("humid", atmospheres=6).test.samples)
    other = toy("humid", seed=1, atmospheres=6).test.samples
    assert not np.array_equal(other["rain"], HUMID.test.samples["rain"])


def test_rule_of_the_humid_toy():
    fields = HUMID.test.samples["forecast"].values
    humid, heavy = fields[:, VARIABLE_NAMES.index("rh850")] > 0, fields[:, RAIN] >= 10
    p = class_probabilities(np.where(humid, 1 + heavy, 0))
    assert toy_skill(p, HUMID) == [1, 1]
    # and the rain of the forecast alone is of little use
    raw = class_probabilities(rain_class(fields[:, RAIN]))
    assert max(toy_skill(raw, HUMID)) < 0.3


def test_the_displaced_toy_moves_whole_maps():
    forecast, rain = raw_rain(DISPLACED.train), DISPLACED.train.observed_rain().numpy()
    assert np.allclose(np.sort(forecast.reshape(8, -1)), np.sort(rain.reshape(8, -1)))
    still = toy("displaced", atmospheres=6, spread=0.0)
    assert np.array_equal(raw_rain(still.train), still.train.observed_rain().numpy())
    assert DISPLACED.spread == 2 and HUMID.spread == 0


def test_unknown_toy():
    with pytest.raises(DataError, match="kind: expected humid or displaced, found 'wet'"):
        toy("wet")


# ------------------------------------------------------------------ the test of all baselines


def test_perfect_and_climatology():
    assert check_baseline(lambda: Fixed(perfect), HUMID, (1, 1)) == [1, 1]
    skill = toy_skill(climatology_of(HUMID)(HUMID.test), HUMID)
    assert np.allclose(skill, 0)
    # twice as wrong as the reference
    rain = HUMID.test.observed_rain().numpy()
    p = exceedance(climatology_of(HUMID)(HUMID.test))
    event = np.stack([rain >= e for e in CLASS_EDGES], 1)
    worse = event + (p - event) * 2**0.5
    assert np.allclose(
        toy_skill(np.stack([1 - worse[:, 0], worse[:, 0] - worse[:, 1], worse[:, 1]], 1), HUMID), -1
    )


def _nan(data):
    p = perfect(data)
    p[0, :, 0, 0] = np.nan
    return p


def _negative(data):
    return perfect(data) * 3 - [[[[1]], [[1]], [[0]]]]


def _large(data):
    return perfect(data) * 1.01


def _random(data):
    p = np.random.default_rng().random((len(data), 3, 32, 32))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda data: perfect(data)[:, :2], r"shape of the probabilities: expected \(8, 3, 32, 32"),
        (lambda data: perfect(data)[:-1], "shape of the probabilities"),
        (_nan, "probabilities: expected 0 to 1"),
        (_negative, "probabilities: expected 0 to 1"),
        (_large, "sums of 1, found 0 to 1.01"),
        (_random, "the same seed twice: expected the same answer"),
        (climatology_of(HUMID), "Brier skill on the toy: expected >="),
    ],
)
def test_what_check_baseline_refuses(make, message):
    with pytest.raises(DataError, match=message):
        check_baseline(lambda: Fixed(make), HUMID, (0.5, 0.5))
