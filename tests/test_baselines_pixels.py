"Baselines on pixels: features, fair samples, logistic regression, boosting, importance."

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

import sslpdl_nb.baselines.pixels as pixels
from sslpdl_nb.baselines.neighbourhood import gaussian_share
from sslpdl_nb.baselines.pixels import (
    Boosting,
    Constant,
    Logistic,
    feature_group,
    feature_maps,
    logit,
    other_weather,
    permutation_importance,
    pixel_features,
    platt,
    rain_features,
    sample_pixels,
    sample_rows,
    threads,
    weighted_log_loss,
)
from sslpdl_nb.baselines.protocol import check_baseline, raw_rain, toy
from sslpdl_nb.core import CLASS_EDGES, VARIABLE_NAMES, DataError
from sslpdl_nb.store import RainDataset

SMALL = dict(atmospheres=18, size=(20, 16))


@pytest.fixture(scope="module")
def humid():
    return toy("humid", **SMALL)


def changed(data, **fields):
    "A data set with other values of some variables of its samples."
    samples = data.samples.copy()
    for name, values in fields.items():
        samples[name] = (samples[name].dims, values)
    return RainDataset(samples, data.standardizer)


# ------------------------------------------------------------------ features


def test_features_by_loops():
    rng = np.random.default_rng(0)
    rain = np.maximum(0, rng.normal(0, 8, (1, 7, 6))).astype(np.float32)
    maps = rain_features(rain, spacing=15e3)
    r, c = np.mgrid[:7, :6]
    for i, j in ((0, 0), (3, 2), (6, 5)):
        d2 = ((r - i) ** 2 + (c - j) ** 2) * 15.0**2  # km2
        for sigma in (10, 40, 120, 410):
            w = np.exp(-0.5 * d2 / sigma**2)
            for t in (1, 5, 10):
                expected = (w * (rain[0] >= t)).sum() / w.sum()
                assert np.isclose(
                    maps[f"rain share {t} mm/h {sigma} km"][0, i, j], expected, atol=1e-5
                )
        near = (abs(r - i) <= 3) & (abs(c - j) <= 3)
        largest = rain[0][near].max()
        assert np.isclose(maps["rain maximum 40 km"][0, i, j], np.log1p(largest), atol=1e-5)
        w = np.exp(-0.5 * d2 / 40**2)
        mean = (w * rain[0]).sum() / w.sum()
        assert np.isclose(maps["rain mean 40 km"][0, i, j], np.log1p(mean), atol=1e-5)


def test_features_are_the_fields_and_what_surrounds_them(humid):
    maps = feature_maps(humid.train)
    assert [n for n in VARIABLE_NAMES if n not in maps] == [] and len(maps) == 39
    assert np.array_equal(maps["t850"], humid.train.inputs()[:, VARIABLE_NAMES.index("t850")])
    assert np.allclose(maps["rain"], np.log1p(raw_rain(humid.train)))
    share = gaussian_share(raw_rain(humid.train), 5.0, 5e3, 120e3)  # the grid of the toy: 5 km
    assert np.allclose(maps["rain share 5 mm/h 120 km"], share)
    assert all(m.dtype == np.float32 and np.isfinite(m).all() for m in maps.values())


def test_missing_fields_are_their_mean(humid):
    forecast = humid.train.samples["forecast"].values.copy()
    forecast[0] = np.nan
    maps = feature_maps(changed(humid.train, forecast=forecast), slice(0, 1))
    assert all(np.isfinite(m).all() for m in maps.values())
    assert np.all(maps["rh850"] == 0) and np.all(maps["rain"] == 0)
    mean = dict(zip(VARIABLE_NAMES, humid.train.standardizer.mean))
    speed = np.hypot(mean["u850"], mean["v850"])
    assert np.allclose(maps["wind850 mean 40 km"], speed, atol=1e-4)


def test_blocks_change_nothing(humid, monkeypatch):
    whole, names = pixel_features(humid.train)
    some = np.array([0, 319, 320, 4000, 7000])
    monkeypatch.setattr(pixels, "BLOCK", 700)  # two samples at a time
    parts, again = pixel_features(humid.train)
    assert names == again and np.allclose(whole, parts, atol=1e-6)
    assert np.allclose(pixel_features(humid.train, some)[0], whole[some], atol=1e-6)
    with pytest.raises(DataError, match="at least one, found 0"):
        pixel_features(humid.train, np.array([], int))


# ------------------------------------------------------------------ a fair sample


def random_rain():
    rng = np.random.default_rng(3)
    rain = np.where(rng.random((6, 40, 40)) < 0.2, rng.gamma(1, 4, (6, 40, 40)), 0.0)
    rain[:, :5] = np.nan
    return rain


@pytest.mark.parametrize("limit", [10**6, 1500, 100])
def test_weights_make_up_for_what_was_left_out(limit):
    rain = random_rain()
    places, weight = sample_pixels(rain, limit=limit, seed=1)
    values = rain.ravel()[places]
    assert np.isfinite(values).all() and (np.diff(places) > 0).all() and len(places) <= limit
    for low, high in ((0, 0.1), (0.1, 10), (10, np.inf)):
        inside = ((rain >= low) & (rain < high)).sum()
        assert np.isclose(weight[(values >= low) & (values < high)].sum(), inside)
    if limit > 1000:
        assert (values >= 10).sum() == (rain >= 10).sum()  # all heavy pixels
    again = sample_pixels(rain, limit=limit, seed=1)
    assert np.array_equal(places, again[0])
    assert not np.array_equal(places, sample_pixels(rain, limit=limit, seed=2)[0])


def test_all_wet_pixels_where_there_is_room():
    rain = random_rain()
    places, weight = sample_pixels(rain)
    assert (rain.ravel()[places] >= 0.1).sum() == (rain >= 0.1).sum()
    assert set(weight[rain.ravel()[places] >= 0.1]) == {1.0}


def test_no_observation_is_refused(humid):
    with pytest.raises(DataError, match="observed pixels: expected at least one"):
        sample_pixels(np.full((2, 3, 3), np.nan))
    empty = changed(humid.train, rain=np.full(humid.train.observed_rain().shape, np.nan))
    with pytest.raises(DataError, match="observed pixels"):
        Logistic().fit(empty, humid.valid)


def test_rows_know_their_atmosphere(humid):
    rows = sample_rows(humid.train)
    assert np.unique(rows.atmosphere).tolist() == list(range(6))
    assert rows.x.shape == (len(rows.rain), len(rows.names)) and np.isfinite(rows.rain).all()
    rain = np.expm1(rows.x[:, rows.names.index("rain")])
    humidity = rows.x[:, rows.names.index("rh850")]
    wet = rows.rain >= 0.1
    assert humidity[wet].min() > humidity[~wet].max()  # the rule of the toy
    assert np.array_equal(rows.rain >= 10, wet & (rain >= 10 - 1e-4))


# ------------------------------------------------------------------ models


@pytest.mark.parametrize("kind, at_least", [("humid", (0.85, 0.5)), ("displaced", (0.2, 0.2))])
def test_logistic_learns_the_toys(kind, at_least):
    check_baseline(Logistic, toy(kind, **SMALL), at_least)


@pytest.mark.parametrize("kind, at_least", [("humid", (0.85, 0.85)), ("displaced", (0.15, 0.15))])
def test_boosting_learns_the_toys(kind, at_least):
    check_baseline(lambda: Boosting(rounds=60), toy(kind, **SMALL), at_least)


def test_logistic_is_the_library_on_raw_features(humid):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = Logistic().fit(humid.train, humid.valid)
    rows = sample_rows(humid.train)
    weight = rows.weight * 6 / rows.weight.sum()  # six atmospheres
    for edge, linear in zip(CLASS_EDGES, model.models):
        library = LogisticRegression(C=linear.strength, max_iter=5000, tol=1e-8)
        pipe = make_pipeline(StandardScaler(), library)
        x = rows.x.astype(float)
        pipe.fit(x, rows.rain >= edge, logisticregression__sample_weight=weight)
        assert np.allclose(linear(rows.x), pipe.predict_proba(x)[:, 1], atol=5e-3)
    assert model.size == 2 * 40


def test_the_strength_is_the_best_on_validation(humid):
    losses = {}
    checks = sample_rows(humid.valid)
    for strength in Logistic.strengths:
        one = Logistic()
        one.strengths = (strength,)
        p = one.fit(humid.train, humid.valid).models[1](checks.x)
        losses[strength] = weighted_log_loss(p, checks.rain >= 10, checks.weight)
    chosen = Logistic().fit(humid.train, humid.valid).models[1].strength
    assert losses[chosen] <= min(losses.values()) * 1.02


def test_an_event_that_never_happens(humid):
    rain = np.minimum(humid.train.observed_rain().numpy(), 5.0)
    for model in (Logistic(), Boosting(rounds=5)):
        p = model.fit(changed(humid.train, rain=rain), humid.valid).predict(humid.test)
        assert isinstance(model.models[1], Constant) and p[:, 2].max() == 0
        assert np.allclose(p.sum(1), 1) and model.size > 1


def test_other_edges(humid):
    edges = (0.1, 1.0, 10.0, 15.0)
    p = Boosting(edges, rounds=5).fit(humid.train, humid.valid).predict(humid.test)
    assert p.shape[1] == 5 and p.min() > -1e-6 and np.allclose(p.sum(1), 1, atol=1e-5)


def test_seeds(humid):
    fits = [Boosting(rounds=10).fit(humid.train, humid.valid, seed) for seed in (0, 0, 1)]
    a, b, c = (fit.predict(humid.test) for fit in fits)
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    leaves = [fit.booster.trees_to_dataframe() for fit in fits[0].models]
    assert fits[0].size == sum(t["left_child"].isna().sum() for t in leaves) + 4


def test_threads():
    assert (
        threads(10**9, {"OMP_NUM_THREADS": "1"}) == threads(10**9, {"OMP_NUM_THREADS": "1,4"}) == 1
    )
    assert threads(10, {}) == threads(10**9, {"OMP_NUM_THREADS": "0"}) == 1
    assert threads(10**9, {}) == threads(10**9, {"OMP_NUM_THREADS": "many"}) >= 1


# ------------------------------------------------------------------ calibration and importance


def test_platt_recovers_the_distortion():
    rng = np.random.default_rng(0)
    f = rng.normal(-2, 2, 40_000)
    event = rng.random(f.size) < 1 / (1 + np.exp(-f))
    a, b = platt(2 * f + 1, event, np.ones(f.size))
    assert np.isclose(a, 0.5, atol=0.02) and np.isclose(b, -0.5, atol=0.05)
    twice = platt(np.repeat(f, 2), np.repeat(event, 2), np.full(2 * f.size, 0.5))
    assert np.allclose(platt(f, event, np.ones(f.size)), twice, atol=1e-4)
    assert platt(f, np.zeros(f.size, bool), np.ones(f.size)) == (1.0, 0.0)
    assert np.isfinite(logit([0.0, 1.0])).all() and np.isclose(logit(0.75), np.log(3))


def test_importance_finds_the_rule(humid):
    model = Boosting(rounds=60).fit(humid.train, humid.valid)
    lost = permutation_importance(model, humid.test, edge=0)
    mean = {group: values.mean() for group, values in lost.items()}
    assert max(mean, key=mean.get) == "humidity" and mean["humidity"] > 0.1
    assert abs(mean["lead time"]) < 0.02 and all(v.shape == (6,) for v in lost.values())


def test_groups_and_partners():
    assert feature_group("rain share 5 mm/h 40 km") == feature_group("rain mean 40 km")
    assert feature_group("rh850 mean 40 km") == "humidity" and feature_group("v10") == "wind"
    assert feature_group("rain") == "rain, pixel" and feature_group("t2m") == "temperature"
    atmosphere = np.array([0, 0, 0, 1, 2, 2])  # of different sizes
    for seed in range(5):
        assert (atmosphere[other_weather(atmosphere, seed)] != atmosphere).all()
    with pytest.raises(DataError, match="atmospheres: expected at least 2, found 1"):
        other_weather(np.zeros(3, int))
