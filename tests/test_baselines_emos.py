"The censored, shifted gamma distribution: by hand, by sums, by another library, by simulation."

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from sslpdl_nb.baselines.emos import (
    CSG,
    _mean_crps,
    csg_crps,
    csg_exceedance,
    csg_parameters,
    fit_csg,
    gamma_parameters,
    merge_alike,
    neighbourhood_cells,
)
from sslpdl_nb.baselines.neighbourhood import gaussian_mean, gaussian_share
from sslpdl_nb.baselines.protocol import check_baseline, raw_rain, toy
from sslpdl_nb.core import CLASS_EDGES, DataError
from sslpdl_nb.decide import exceedance
from sslpdl_nb.store import RainDataset
from sslpdl_nb.verify import brier

DISPLACED = toy("displaced", atmospheres=30)
TRUE = np.array([0.3, 0.7, 3.0, 0.6, 0.9, 2.0, 0.4])


def draw(n, seed=0, true=TRUE):
    "Observed rain, mean and share of n pixels, drawn from the model itself."
    rng = np.random.default_rng(seed)
    mean, share = rng.gamma(0.5, 4, n), rng.beta(0.3, 2, n)
    shape, scale, shift = csg_parameters(true, mean, share)
    return np.maximum(0, rng.gamma(shape, scale) - shift), mean, share


def observed_as(data, rain, n=None):
    "The same (first) samples with another observation."
    samples = data.samples.isel(sample=slice(n)).copy(deep=True)
    samples["rain"][:] = rain
    return RainDataset(samples, data.standardizer)


# ------------------------------------------------------------------ the distribution


def test_probabilities_by_hand():
    "Shape 1: exponential. Shape 2: (1 + z) exp(-z)."
    assert np.allclose(csg_exceedance([0.1, 10], 1, 5, 1), np.exp([-1.1 / 5, -11 / 5]))
    z = 12.0 / 4
    assert np.isclose(csg_exceedance(10, 2, 4, 2), (1 + z) * np.exp(-z))


def test_probabilities_by_scipy_and_by_drawing():
    rng = np.random.default_rng(0)
    shape, scale, shift = 0.4, 8.0, 0.7
    drawn = np.maximum(0, rng.gamma(shape, scale, 200_000) - shift)
    for edge in (0.1, 1, 10, 30):
        p = csg_exceedance(edge, shape, scale, shift)
        assert np.isclose(p, stats.gamma.sf(edge + shift, shape, scale=scale))
        assert np.isclose(p, (drawn >= edge).mean(), atol=0.004)


def test_mean_and_spread():
    shape, scale = gamma_parameters([6, 0.5], [3, 2])
    assert np.allclose(shape * scale, [6, 0.5]) and np.allclose(shape * scale**2, [9, 4])


@pytest.mark.parametrize("mean, sd", [(0, 1), (1, 0), (-1, 1), ([1, 2], [1, -1]), (np.nan, 1)])
def test_impossible_mean_or_spread(mean, sd):
    with pytest.raises(DataError, match="mean and sd: expected more than 0 mm/h"):
        gamma_parameters(mean, sd)


# ------------------------------------------------------------------ the score


@pytest.mark.parametrize("y", [0.0, 0.5, 7.0])
def test_crps_of_an_exponential_distribution_by_hand(y):
    "y - 2 theta (1 - exp(-y / theta)) + theta / 2."
    expected = y - 2 * 3 * (1 - np.exp(-y / 3)) + 3 / 2
    assert np.isclose(csg_crps(y, 1.0, 3.0, 0.0), expected)


CASES = [(0.7, 0.5, 0.5, 0.3), (0.0, 0.4, 8.0, 0.7), (30.0, 0.4, 8.0, 0.7), (2.0, 9.0, 0.5, 0.0)]
CASES += [(0.0, 0.002, 50.0, 0.1), (12.0, 0.002, 50.0, 0.1), (5.0, 2.0, 3.0, 4.0)]


@pytest.mark.parametrize("y, shape, scale, shift", CASES)
def test_crps_is_its_integral(y, shape, scale, shift):
    step = 0.004
    x = np.arange(step / 2, 800, step)
    cdf = 1 - csg_exceedance(x, shape, scale, shift)
    by_sum = ((cdf - (x >= y)) ** 2).sum() * step
    assert np.isclose(csg_crps(y, shape, scale, shift), by_sum, atol=3e-3)


def test_crps_of_another_library():
    "scoringrules in a process of its own, without the compiler that takes it seconds to import."
    code = "import sys, json; sys.modules['numba'] = None\nimport scoringrules\n"
    code += "f = scoringrules.crps_csg0\n"
    code += f"c = [f(y, shape=k, scale=t, shift=d, backend='numpy') for y, k, t, d in {CASES}]\n"
    code += "print(json.dumps([float(v) for v in c]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "No module named 'scoringrules'" in done.stderr:
        pytest.skip("scoringrules is not installed")
    expected = json.loads(done.stdout)
    assert np.allclose([csg_crps(*case) for case in CASES], expected, rtol=1e-6, atol=1e-9)
    assert np.isclose(expected[0], 0.5411044348806484)  # the example of its documentation


def test_who_says_what_he_believes_scores_best():
    drawn = np.maximum(0, np.random.default_rng(0).gamma(0.5, 6, 100_000) - 0.5)
    best = csg_crps(drawn, 0.5, 6.0, 0.5).mean()
    for other in [(0.6, 6.0, 0.5), (0.4, 6.0, 0.5), (0.5, 7, 0.5), (0.5, 5, 0.5), (0.5, 6, 0.1)]:
        assert csg_crps(drawn, *other).mean() > best


# ------------------------------------------------------------------ the fit


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_of_simulated_rain_are_recovered(seed):
    y, mean, share = draw(12_000, seed)
    found, crps = fit_csg(y, mean, share)
    assert np.allclose(found, TRUE, rtol=0.2, atol=0.1)
    truth = csg_crps(y, *csg_parameters(TRUE, mean, share)).mean()
    assert truth - 0.005 < crps <= truth
    p, q = (csg_exceedance(10, *csg_parameters(c, mean, share)) for c in (TRUE, found))
    assert np.abs(p - q).max() < 0.04


def test_other_numbers_too():
    true = np.array([0.05, 0.3, 8.0, 1.5, 0.2, 6.0, 0.05])
    found, _ = fit_csg(*draw(12_000, true=true))
    assert np.allclose(found[[1, 2, 3, 5]], true[[1, 2, 3, 5]], rtol=0.25, atol=0.1)


def test_the_first_guess_does_not_matter():
    y, mean, share = draw(3000)
    pair = [fit_csg(y, mean, share, start=np.full(7, s))[1] for s in (1.0, 0.2)]
    assert np.allclose(pair, fit_csg(y, mean, share)[1], rtol=1e-3)


def test_a_weight_is_a_number_of_cases():
    y, mean, share = draw(400)
    twice = [np.r_[a, a[:200]] for a in (y, mean, share)]
    weighted = fit_csg(y, mean, share, np.r_[np.full(200, 2), np.ones(200)])
    assert np.isclose(fit_csg(*twice)[1], weighted[1], atol=1e-5)


def test_slopes_are_those_of_the_score():
    y, mean, share = draw(500)
    predictors, weight = np.stack([np.ones(500), mean, share]), np.full(500, 1 / 500)
    logs = np.log([0.2, 0.6, 2.0, 0.8, 0.7, 1.5, 0.3])
    _, slopes = _mean_crps(logs, y, predictors, weight)
    for k, step in enumerate(1e-4 * np.eye(7)):
        pair = [_mean_crps(logs + s, y, predictors, weight)[0] for s in (step, -step)]
        assert np.isclose(slopes[k], (pair[0] - pair[1]) / 2e-4, rtol=1e-3, atol=1e-6)


def test_nothing_to_fit():
    with pytest.raises(DataError, match="observed pixels: expected at least one, found 0"):
        fit_csg(np.zeros(0), np.zeros(0), np.zeros(0))


# ------------------------------------------------------------------ pixels that are alike


def test_merging_keeps_numbers_and_sums():
    columns = np.stack(draw(5000)) * (np.random.default_rng(1).random(5000) < 0.5)
    cells, count = merge_alike(columns)
    assert count.sum() == 5000 and count.size < 3000
    assert np.allclose(cells @ count, columns.sum(1))
    again, counted = merge_alike(cells, count)
    assert np.allclose(again @ counted, columns.sum(1)) and counted.sum() == 5000


def test_equal_pixels_are_one_and_different_ones_are_not():
    columns = np.array([[0, 0, 5, 5], [1, 1, 1, 1], [0.2, 0.2, 0.2, 0.4]])
    cells, count = merge_alike(columns)
    assert sorted(count.tolist()) == [1, 1, 2]
    assert {tuple(c) for c in cells.T.round(6)} == {(0, 1, 0.2), (5, 1, 0.2), (5, 1, 0.4)}


def test_merging_hardly_changes_the_fit():
    y, mean, share = draw(8_000)
    cells, count = merge_alike(np.stack([y, mean, share]))
    fits = [fit_csg(y, mean, share), fit_csg(*cells, count)]
    assert np.allclose(fits[0][0], fits[1][0], rtol=0.05, atol=0.03)
    assert np.isclose(fits[0][1], fits[1][1], rtol=0.002)


def test_cells_of_a_data_set(monkeypatch):
    rain = DISPLACED.train.observed_rain().numpy().copy()
    rain[3, :7] = np.nan
    data, known = observed_as(DISPLACED.train, rain), np.isfinite(rain)
    mean = gaussian_mean(raw_rain(data), 5e3, 15e3)[known]
    share = gaussian_share(raw_rain(data), 10, 5e3, 15e3)[known]
    sums = [a.sum(dtype=float) for a in (rain[known], mean, share)]
    for block in (256, 7):
        monkeypatch.setattr("sslpdl_nb.baselines.emos.BLOCK", block)
        cells, count = neighbourhood_cells(data, sigma=15, threshold=10)
        assert count.sum() == known.sum()
        assert np.allclose(cells @ count, sums, rtol=1e-5)


# ------------------------------------------------------------------ the baseline


@pytest.fixture
def coarse(monkeypatch):
    "Fewer cells, for speed."
    monkeypatch.setattr("sslpdl_nb.baselines.emos.PER_CELL", 30)


def test_skill_on_the_toy_and_width(coarse):
    skill = check_baseline(lambda: CSG(sigmas=(10,)), DISPLACED, (0.25, 0.25))
    assert max(skill) < 0.4  # nobody can know the direction
    found = CSG(sigmas=(4, 10, 20)).fit(DISPLACED.train, DISPLACED.valid)
    assert found.sigma == 10 and found.size == 8 and found.coefficients.shape == (7,)
    assert np.argmin(found.scores) == 1


def test_rain_drawn_from_the_model_is_forecast_as_by_the_model():
    "The observation of a toy is replaced by what the model itself would draw."
    parts, rng, truth = [], np.random.default_rng(0), CSG(sigmas=(15,))
    truth.sigma, truth.coefficients = 15, TRUE
    for data in (DISPLACED.train, DISPLACED.valid, DISPLACED.test):
        shape, scale, shift = truth.parameters(data)
        parts.append(observed_as(data, np.maximum(0, rng.gamma(shape, scale) - shift)))
    found = CSG(sigmas=(15,)).fit(*parts[:2])
    # mean and share go together in a toy: their parts of the spread cannot be told apart
    others = [0, 1, 2, 3, 4, 6]
    assert np.allclose(found.coefficients[others], TRUE[others], rtol=0.35, atol=0.2)
    best, p = (exceedance(m.predict(parts[2])) for m in (truth, found))
    assert np.abs(best - p).max() < 0.05
    for k, edge in enumerate(CLASS_EDGES):
        event = parts[2].observed_rain().numpy() >= edge
        assert brier(p[:, k], event) < brier(best[:, k], event) + 0.001
        assert np.isclose(p[:, k].mean(), event.mean(), atol=0.01)


def test_probabilities_come_from_the_distribution(coarse):
    edges = (0.1, 1.0, 5.0, 20.0)
    found = CSG(sigmas=(10,), edges=edges).fit(DISPLACED.train, DISPLACED.valid)
    p = found.predict(DISPLACED.test)
    assert p.shape == (40, 5, 32, 32)
    shape, scale, shift = (
        np.broadcast_to(a, (40, 32, 32)) for a in found.parameters(DISPLACED.test)
    )
    for k, edge in enumerate(edges):
        expected = stats.gamma.sf(edge + shift[5], shape[5], scale=scale[5])
        assert np.allclose(exceedance(p)[5, k], expected, atol=1e-5)


@pytest.mark.parametrize("change", ["one atmosphere", "never heavy", "always dry"])
def test_little_to_learn_from(coarse, change):
    rain, n = DISPLACED.train.observed_rain(), None
    if change == "one atmosphere":
        n = 4
    elif change == "never heavy":
        rain = rain.clip(max=5)
    else:
        rain = rain * 0
    data = observed_as(DISPLACED.train, rain[:n], n)
    p = CSG(sigmas=(10,)).fit(data, DISPLACED.valid).predict(DISPLACED.test)
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1, atol=1e-5)
    if change == "always dry":
        assert p[:, 0].min() > 0.97


def test_nothing_observed(coarse):
    data = observed_as(DISPLACED.train, np.nan)
    with pytest.raises(DataError, match="observed pixels: expected at least one, found 0"):
        CSG(sigmas=(10,)).fit(data, DISPLACED.valid)
    found = CSG(sigmas=(10, 20)).fit(DISPLACED.train, observed_as(DISPLACED.valid, np.nan))
    assert found.sigma == 10  # without validation pixels: the first
