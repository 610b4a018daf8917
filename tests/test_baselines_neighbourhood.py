"Raw, tuned, mapped and smoothed forecasts: known answers and second implementations."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from sslpdl_nb.baselines.neighbourhood import (
    LEVELS,
    NeighbourhoodShare,
    QuantileMapping,
    Raw,
    RawTuned,
    cross_validated_csi,
    gaussian_mean,
    gaussian_share,
    gaussian_weights,
    isotonic_curve,
    level_counts,
    quantile_pairs,
    to_levels,
)
from sslpdl_nb.baselines.protocol import (
    as_probabilities,
    check_baseline,
    raw_rain,
    toy,
    toy_skill,
)
from sslpdl_nb.core import CLASS_EDGES, DataError, rain_class
from sslpdl_nb.store import RainDataset
from sslpdl_nb.verify import csi, threshold_counts

DISPLACED = toy("displaced", atmospheres=60)
SIGMAS = (3.5, 5, 7, 10, 14, 20, 40)  # km; the toy's storms are displaced by 10


def known_best(t):
    "Brier skill of the share smoothed with the true spread on the periodic map."
    rain, width = raw_rain(t.test), (0, t.spread, t.spread)
    p = [gaussian_filter((rain >= e) * 1.0, width, mode="wrap") for e in CLASS_EDGES]
    return np.array(toy_skill(as_probabilities(np.stack(p, 1)), t))


def few(data, n=None, rain=None):
    "The first samples of a data set, or the same samples with another observation."
    samples = data.samples.isel(sample=slice(n)).copy(deep=True)
    if rain is not None:
        samples["rain"][:] = rain
    return RainDataset(samples, data.standardizer)


# ------------------------------------------------------------------ levels and curves


def test_levels_are_steps_of_one_percent():
    x = 0.01 * np.exp(np.arange(LEVELS - 1) / 100 + 0.005)
    assert np.array_equal(to_levels(x, 0.01), np.arange(1, LEVELS))
    assert to_levels(np.array([0, 0.0099, 1e9]), 0.01).tolist() == [0, 0, LEVELS - 1]
    assert to_levels(np.zeros((2, 3), np.float32), 0.01).shape == (2, 3)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_isotonic_curve_is_the_best_increasing_one(counts):
    events, others = np.array(counts).T
    pixels = events + others
    if not pixels.sum():
        return
    curve, n = isotonic_curve(events, pixels, least=1), pixels.sum()
    assert (np.diff(curve) >= -1e-12).all() and curve.min() > 0 and curve.max() < 1
    # the formula of minima and maxima: max over i <= k of min over j >= k of the mean of i to j
    seen = np.flatnonzero(pixels)
    e, w = events[seen], pixels[seen]
    for k, at in enumerate(seen):
        means = [
            min(e[i : j + 1].sum() / w[i : j + 1].sum() for j in range(k, len(seen)))
            for i in range(k + 1)
        ]
        assert np.isclose(curve[at], np.clip(max(means), 0.5 / n, 1 - 0.5 / n))


def test_the_highest_probability_rests_on_enough_pixels():
    events, pixels = np.zeros(20, int), np.full(20, 1000)
    pixels[15:], events[15:] = 1, 1  # five single pixels, all of them events
    events[14] = 100
    assert np.allclose(isotonic_curve(events, pixels, least=1)[15:], 1, atol=1e-4)
    assert np.allclose(isotonic_curve(events, pixels)[14:], 105 / 1005)
    few_pixels = isotonic_curve(np.array([0, 1]), np.array([3, 1]))  # fewer than 100 in all
    assert np.allclose(few_pixels, 1 / 4)


def test_never_observed_is_not_impossible():
    p = isotonic_curve(np.zeros(5, int), np.full(5, 100))
    assert np.allclose(p, 0.5 / 500)


def test_level_counts_by_loops():
    rng = np.random.default_rng(0)
    levels, rain = rng.integers(0, 9, (6, 4, 5)), rng.gamma(0.3, 10, (6, 4, 5))
    rain[rng.random(rain.shape) < 0.2] = np.nan
    fold = np.array([0, 2, 1, 0, 2, 2])
    counts = level_counts(levels, rain, (0.1, 2, 10), fold, 3)
    assert counts.shape == (4, 3, LEVELS)
    expected = np.zeros_like(counts)
    for s, y, x in np.ndindex(rain.shape):
        if np.isfinite(rain[s, y, x]):
            expected[0, fold[s], levels[s, y, x]] += 1
            for e, edge in enumerate((0.1, 2, 10)):
                expected[1 + e, fold[s], levels[s, y, x]] += rain[s, y, x] >= edge
    assert np.array_equal(counts, expected)
    assert np.array_equal(level_counts(levels, rain, (0.1, 2, 10))[:, 0], expected.sum(1))


# ------------------------------------------------------------------ raw and tuned


def test_raw_is_the_class_of_the_forecast():
    p = Raw().fit(None, None).predict(DISPLACED.test)
    assert np.array_equal(p.argmax(1), rain_class(raw_rain(DISPLACED.test)))
    assert set(np.unique(p)) == {0, 1}
    assert Raw((0.1, 1, 2, 5)).predict(DISPLACED.test).shape[1] == 5


def test_tuned_raw_knows_what_it_can():
    "Where nothing moves, the raw amount tells everything; elsewhere, a part."
    still = toy("displaced", atmospheres=12, spread=0.0)
    assert min(check_baseline(RawTuned, still, (0.98, 0.98))) < 1
    skill = check_baseline(RawTuned, DISPLACED, (0.2, 0.2))
    assert (known_best(DISPLACED) - skill > 0.04).all()


def test_tuned_raw_frequencies():
    found = RawTuned().fit(DISPLACED.train, DISPLACED.valid)
    p, rain = found.predict(DISPLACED.train), DISPLACED.train.observed_rain().numpy()
    for k, edge in enumerate(CLASS_EDGES):
        event = rain >= edge
        q = p[:, k + 1 :].sum(1)
        assert np.isclose(q.mean(), event.mean(), atol=2e-3)  # isotonic regression keeps the mean
        likely = q > np.median(q)
        assert np.isclose(q[likely].mean(), event[likely].mean(), atol=0.02)


# ------------------------------------------------------------------ quantile mapping


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_monotone_transform_of_the_truth_is_recovered(power):
    data = DISPLACED.train
    truth = data.observed_rain().numpy()
    samples = data.samples.copy(deep=True)
    samples["forecast"][:, -1] = 3 * truth**power
    changed = RainDataset(samples, data.standardizer)
    found = QuantileMapping().fit(changed, changed)
    assert np.allclose(found.map(raw_rain(changed)), truth, atol=0.05)
    found_class, raw_class = found.predict(changed).argmax(1), rain_class(raw_rain(changed))
    assert (
        (found_class != rain_class(truth)).mean() < 1e-3 < (raw_class != rain_class(truth)).mean()
    )


def test_mapped_amounts_have_the_distribution_of_the_observed():
    rng = np.random.default_rng(0)
    observed = np.where(rng.random(40000) < 0.2, rng.gamma(0.5, 10, 40000), 0)
    forecast = np.where(rng.random(40000) < 0.5, rng.gamma(1.0, 2, 40000), 0)
    mapping = QuantileMapping()
    mapping.pairs = quantile_pairs(forecast, observed)
    mapped = mapping.map(forecast)
    for edge in (0.1, 1, 5, 10, 20, 40):
        assert np.isclose((mapped >= edge).sum(), (observed >= edge).sum(), rtol=0.02, atol=2)
    assert (np.diff(mapping.map(np.linspace(0, 50, 999))) >= 0).all()
    assert mapping.map(np.array([1e6])) == observed.max()


def test_dry_stays_dry_where_the_forecast_rains_too_rarely():
    forecast, observed = np.zeros(1000), np.zeros(1000)
    forecast[:100] = np.linspace(1, 5, 100)
    observed[:300] = np.linspace(1, 20, 300)
    mapping = QuantileMapping()
    mapping.pairs = quantile_pairs(forecast, observed)
    assert mapping.map(np.zeros(1)) == 0
    assert np.allclose(mapping.map(forecast[:100]), observed[200:300], atol=1e-6)


def test_all_dry_and_unobserved():
    mapping = QuantileMapping()
    mapping.pairs = quantile_pairs(np.zeros(10), np.zeros(10))
    assert mapping.map(np.array([0.0, 5.0])).tolist() == [0, 0]
    unknown = np.full(10, np.nan)
    with pytest.raises(DataError, match="observed pixels: expected at least one"):
        quantile_pairs(np.zeros(10), unknown)
    pairs = quantile_pairs(np.r_[1.0, 2, 3, 99], np.r_[4.0, 5, 6, np.nan])
    assert [a.tolist() for a in pairs] == [[1, 2, 3], [4, 5, 6]]


# ------------------------------------------------------------------ smoothing


@pytest.mark.parametrize("shape, sigma", [((3, 20, 33), 12e3), ((2, 64, 32), 40e3), ((5, 7), 3e3)])
def test_smoothing_is_the_weighted_mean(shape, sigma):
    field = np.random.default_rng(0).random(shape)
    y, x = np.mgrid[: shape[-2], : shape[-1]] * 5e3
    found = gaussian_mean(field, 5e3, sigma)
    assert found.shape == shape
    for i, j in [(0, 0), (2, 3), (shape[-2] - 1, shape[-1] // 2)]:
        w = np.exp(-((y - y[i, j]) ** 2 + (x - x[i, j]) ** 2) / (2 * sigma**2))
        expected = (field * w).sum((-1, -2)) / w.sum()
        assert np.allclose(found[..., i, j], expected, rtol=1e-5)


def test_smoothing_as_scipy_does_it():
    field = np.random.default_rng(0).random((2, 60, 50))
    inside = gaussian_filter(field, (0, 3, 3), mode="constant", truncate=8)
    weight = gaussian_filter(np.ones((60, 50)), 3, mode="constant", truncate=8)
    assert np.allclose(gaussian_mean(field, 5e3, 15e3), inside / weight, rtol=1e-5)


def test_extremes_of_the_width():
    rain = np.random.default_rng(0).gamma(0.3, 10, (3, 8, 9))
    narrow, wide = (gaussian_share(rain, 5, 10e3, s) for s in (1.0, 1e9))
    assert np.array_equal(narrow, rain >= 5)
    assert np.allclose(wide, (rain >= 5).mean((1, 2), keepdims=True), atol=1e-6)
    assert gaussian_share(np.full((2, 4, 4), np.nan), 1, 5e3, 5e3).max() == 0
    share = gaussian_share(np.full((1, 64, 64), 9.0), 1, 5e3, 33e3)
    assert share.max() <= 1 and np.allclose(share, 1)


@pytest.mark.parametrize("spacing, sigma", [(5e3, 0), (5e3, -1), (0, 5e3), (5e3, np.nan)])
def test_impossible_widths(spacing, sigma):
    with pytest.raises(DataError, match="sigma and spacing: expected more than 0 m"):
        gaussian_weights(4, spacing, sigma)


# ------------------------------------------------------------------ choice by cross-validation


def test_cross_validated_csi_by_sorting():
    "The same from the values themselves, with the counts of `verify`."
    rng = np.random.default_rng(0)
    fold, levels = rng.integers(0, 4, 3000), rng.integers(0, 30, 3000)
    event = rng.random(3000) < levels / 60
    counts = [np.zeros((4, 30), int) for _ in range(2)]
    np.add.at(counts[0], (fold[event], levels[event]), 1)
    np.add.at(counts[1], (fold, levels), 1)
    hits = misses = false_alarms = 0
    for k in range(4):
        others = threshold_counts(levels[fold != k], event[fold != k], np.arange(30))
        cut = np.argmax(csi(others))
        warned, happened = levels[fold == k] >= cut, event[fold == k]
        hits += (warned & happened).sum()
        misses += (~warned & happened).sum()
        false_alarms += (warned & ~happened).sum()
    expected = hits / (hits + misses + false_alarms)
    assert np.isclose(cross_validated_csi(*counts), expected)


def test_cross_validation_punishes_what_is_only_chance():
    events = np.array([[0, 0, 9, 0], [0, 9, 0, 0]])  # in one level here, in another there
    pixels = np.array([[50, 0, 9, 0], [50, 9, 0, 50]])
    assert cross_validated_csi(events[:1], pixels[:1]) == 1
    assert cross_validated_csi(events, pixels) < 0.5


def test_no_event_at_all():
    assert cross_validated_csi(np.zeros((3, 5), int), np.full((3, 5), 7)) == 0


# ------------------------------------------------------------------ neighbourhood share


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_share_reaches_what_is_possible(seed):
    t = toy("displaced", seed, atmospheres=60)

    def make():
        return NeighbourhoodShare(sigmas=SIGMAS)

    best = known_best(t)
    skill = check_baseline(make, t, tuple(best - 0.03))
    assert (skill <= best + 0.01).all()
    found = make().fit(t.train, t.valid)
    assert all(7 <= sigma <= 14 for sigma, _ in found.chosen)
    assert [threshold for _, threshold in found.chosen] == list(CLASS_EDGES)


@pytest.mark.parametrize("spread, width", [(1.0, (3.5, 7)), (4.0, (14, 40))])
def test_width_follows_the_displacement(spread, width):
    t = toy("displaced", atmospheres=60, spread=spread)
    found = NeighbourhoodShare(sigmas=SIGMAS).fit(t.train, t.valid)
    assert all(width[0] <= sigma <= width[1] for sigma, _ in found.chosen)


def test_width_is_in_km_on_any_grid():
    "The same pixels, twice as far apart."
    parts = []
    for data in (DISPLACED.train, DISPLACED.test):
        samples = data.samples.assign_coords(x=2 * data.samples.x, y=2 * data.samples.y)
        parts.append(RainDataset(samples, data.standardizer))
    near = NeighbourhoodShare(sigmas=(7, 10, 20)).fit(DISPLACED.train, DISPLACED.valid)
    far = NeighbourhoodShare(sigmas=(14, 20, 40)).fit(parts[0], parts[0])
    assert [2 * sigma for sigma, _ in near.chosen] == [sigma for sigma, _ in far.chosen]
    assert np.allclose(near.predict(DISPLACED.test), far.predict(parts[1]), atol=1e-5)


def test_blocks_and_unobserved_pixels_change_nothing(monkeypatch):
    rain = DISPLACED.train.observed_rain().numpy().copy()
    rain[:, ::2] = np.nan
    data = few(DISPLACED.train, rain=rain)
    make = NeighbourhoodShare(sigmas=(10, 20), thresholds=(1, 10))
    p = make.fit(data, data).predict(DISPLACED.test)
    monkeypatch.setattr("sslpdl_nb.baselines.neighbourhood.BLOCK", 7)
    assert np.array_equal(make.fit(data, data).predict(DISPLACED.test), p)
    assert min(toy_skill(p, DISPLACED)) > 0.25


@pytest.mark.parametrize("n", [4, 8])  # one atmosphere, two
def test_few_atmospheres_are_enough(n):
    data = few(DISPLACED.train, n)
    p = NeighbourhoodShare().fit(data, data).predict(DISPLACED.test)
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1, atol=1e-5)
    assert (p[:, 1] > 0.009 * (p[:, 1] + p[:, 2])).all()  # rain need not be heavy


def test_heavy_rain_never_observed():
    data = few(DISPLACED.train, rain=DISPLACED.train.observed_rain().clip(max=5))
    p = NeighbourhoodShare().fit(data, data).predict(DISPLACED.test)
    assert np.isfinite(p).all() and 0 <= p[:, 2].max() < 1e-4


def test_nothing_observed():
    data = few(DISPLACED.train, rain=np.nan)
    for baseline in (RawTuned(), QuantileMapping(), NeighbourhoodShare()):
        with pytest.raises(DataError, match="observed pixels: expected at least one, found 0"):
            baseline.fit(data, data)


def test_more_edges():
    edges = (0.1, 1, 2, 5, 10, 20)
    for baseline in (
        Raw(edges),
        RawTuned(edges),
        QuantileMapping(edges),
        NeighbourhoodShare(edges=edges),
    ):
        p = baseline.fit(DISPLACED.train, DISPLACED.valid).predict(DISPLACED.test)
        assert p.shape == (80, 7, 32, 32) and np.allclose(p.sum(1), 1, atol=1e-5)
        assert p.min() >= -1e-6
