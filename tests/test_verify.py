"Scores: exact answers, identities, merging, the `scores` library as judge, and odd input."

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb import verify
from sslpdl_nb.core import DataError
from sslpdl_nb.verify import (
    PROBABILITY_THRESHOLDS,
    SCORES,
    Contingency,
    Reliability,
    best_probability_threshold,
    bias,
    block_bootstrap,
    brier,
    brier_skill,
    confusion,
    contingency,
    count_events,
    csi,
    decompose,
    ets,
    f1,
    group_counts,
    iou,
    miou,
    per_lead_time,
    precision,
    recall,
    reliability,
    score_table,
    threshold_counts,
)

counts = st.builds(Contingency, *[st.integers(0, 10_000)] * 4)


@pytest.fixture(autouse=True)
def no_warnings():
    "Undefined scores are NaN, silently."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def fields():
    return np.random.default_rng(3).gamma(0.3, 4.0, (2, 6, 9, 7))


@settings(max_examples=200, deadline=None)
@given(counts, counts)
def test_identities_and_ranges(a, b):
    c = a + b
    assert c.total == a.total + b.total and c == b + a
    if c.hits:
        assert np.isclose(f1(c), 2 * csi(c) / (1 + csi(c)))
        assert np.isclose(bias(c), recall(c) / precision(c))
        assert np.isclose(csi(c), 1 / (1 / precision(c) + 1 / recall(c) - 1))
        assert ets(c) <= csi(c) + 1e-12 or np.isnan(ets(c))
    for name, low, high in (("CSI", 0, 1), ("F1", 0, 1), ("ETS", -1 / 3, 1), ("HSS", -1, 1)):
        value = SCORES[name](c)
        assert np.isnan(value) or low - 1e-9 <= value <= high + 1e-9


@pytest.mark.parametrize("threshold", [0.1, 1.0, 10.0])
def test_against_the_scores_library(fields, threshold):
    xr = pytest.importorskip("xarray")
    categorical = pytest.importorskip("scores.categorical")
    f, o = fields
    f[0, 0], o[1, 2] = np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = (
            categorical.ThresholdEventOperator(default_event_threshold=threshold)
            .make_contingency_manager(*(xr.DataArray(a, dims=("t", "y", "x")) for a in (f, o)))
            .transform()
        )
        names = dict(
            CSI="critical_success_index",
            bias="frequency_bias",
            F1="f1_score",
            precision="precision",
            recall="recall",
            ETS="equitable_threat_score",
            HSS="heidke_skill_score",
        )
        expected = {ours: float(getattr(theirs, name)()) for ours, name in names.items()}
    c = contingency(f, o, threshold)
    for name, value in expected.items():
        assert np.isclose(SCORES[name](c), value), name


def test_brier_against_the_scores_library():
    xr = pytest.importorskip("xarray")
    probability = pytest.importorskip("scores.probability")
    rng = np.random.default_rng(0)
    p, o = rng.random(500), rng.random(500) < 0.3
    theirs = probability.brier_score(
        xr.DataArray(p, dims="i"), xr.DataArray(o.astype(float), dims="i")
    )
    assert np.isclose(brier(p, o), float(theirs))


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.0, Contingency(correct_negatives=12)),
        (5.0, Contingency(hits=12)),
        (np.nan, Contingency()),
    ],
)
def test_uniform_fields(value, expected):
    c = contingency(np.full((3, 4), value), np.full((3, 4), value), 0.1)
    assert c == expected
    assert all(np.isnan(s(c)) or s(c) == 1 for s in SCORES.values())


def test_one_pixel_and_none():
    assert contingency(0.1, 0.1, 0.1) == Contingency(1)
    assert contingency(np.zeros(0), np.zeros(0), 0.1) == Contingency()
    assert contingency([10.0], [9.999], 10) == Contingency(false_alarms=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: contingency(np.zeros((2, 3)), np.zeros((3, 2)), 1),
        lambda: count_events(np.zeros(2), np.zeros(3)),
        lambda: confusion(np.zeros(2), np.zeros(3)),
        lambda: confusion([0, 3], [0, 1]),
        lambda: brier([0.5], [1, 0]),
        lambda: reliability([0.5], [1, 0]),
        lambda: reliability([1.5], [1]),
        lambda: reliability([0.5], [1], 5) + reliability([0.5], [1], 6),
        lambda: group_counts(Contingency(*np.ones((4, 3), int)), [1, 2]),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(DataError, match="expected .* found"):
        call()


def test_counts_merge(fields):
    f, o = fields
    whole = contingency(f, o, 1.0)
    each = contingency(f, o, 1.0, axis=(1, 2))
    assert each.pooled() == whole == sum((each[i] for i in range(len(f))), Contingency()).pooled()
    with pytest.raises(TypeError):
        whole + 1


def test_valid_mask_is_broadcast():
    assert count_events(np.ones((2, 3)), np.ones((2, 3)), [True, False, True]) == Contingency(4)


def test_heavy_iou_is_csi(fields):
    f, o = (np.digitize(a, (0.1, 10.0)) for a in fields)
    assert np.isclose(iou(confusion(f, o))[2], csi(contingency(*fields, 10.0)))
    assert miou(confusion(o, o)) == 1
    assert np.isnan(miou(np.zeros((3, 3))))
    assert np.isnan(iou(confusion([0], [0]))[1])
    assert confusion([-1, np.nan, 0], [0, 0, -1]).sum() == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=60))
def test_decomposition_is_exact_for_few_probabilities(cases):
    p, o = np.array([c[0] for c in cases]) / 10, np.array([c[1] for c in cases], float)
    parts = decompose(reliability(p, o, bins=11))
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    assert np.isclose(parts["brier"], brier(p, o))
    assert np.isclose(parts["brier"], total)
    assert abs(parts["within"]) < 1e-9


def test_reliabilities_merge():
    rng = np.random.default_rng(1)
    p, o = rng.random(300), rng.random(300) < 0.2
    merged = reliability(p[:100], o[:100]) + reliability(p[100:], o[100:])
    whole = reliability(p, o)
    assert isinstance(merged, Reliability)
    for name in ("count", "p_sum", "o_sum", "error_sum"):
        assert np.allclose(getattr(merged, name), getattr(whole, name))
    with pytest.raises(TypeError):
        whole + 1


def test_bounds_of_the_bins():
    assert reliability([0.0, 1.0], [0, 1], 4).count.tolist() == [1, 0, 0, 1]
    uneven = reliability([0.0, 0.005, 0.01, 1.0], [0, 0, 1, 1], [0, 0.01, 0.1, 1])
    assert uneven.count.tolist() == [2, 1, 1]
    rng = np.random.default_rng(1)
    p, o = rng.random(300), rng.random(300) < 0.2
    equal_bins = reliability(p, o, [0, 0.25, 0.5, 0.75, 1])
    assert np.array_equal(equal_bins.o_sum, reliability(p, o, 4).o_sum)


def test_undefined_and_perfect_skill():
    assert np.isnan(decompose(reliability([np.nan], [1]))["brier"])
    assert brier_skill(0.0, 0.2) == 1
    assert np.isnan(brier_skill(0.1, 0.0))


# ------------------------------------------------------------------ thresholds


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_best_threshold_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    p, o = rng.random(50).round(2), rng.random(50) < 0.3
    candidates = np.arange(1, 100) / 100
    scores = [csi(count_events(p >= t, o)) for t in candidates]
    found = best_probability_threshold(p, o, candidates)
    if np.isfinite(scores).any():
        assert csi(count_events(p >= found, o)) == np.nanmax(scores)


def test_counts_of_many_thresholds_by_brute_force():
    rng = np.random.default_rng(0)
    p, rain = rng.random((2, 5, 6)), np.where(rng.random((2, 5, 6)) < 0.3, 1.0, 0.0)
    rain[0, 0], p[1, 2, 3] = np.nan, np.nan
    thresholds = np.r_[0, PROBABILITY_THRESHOLDS, p[1, 0, 0]]  # one that is equal to a probability
    counts = threshold_counts(p, rain >= 0.1, thresholds, valid=~np.isnan(rain))
    valid = ~np.isnan(rain) & ~np.isnan(p)
    for k, t in enumerate(thresholds):
        one = count_events(p >= t, rain >= 0.1, valid)
        found = (counts.hits[k], counts.misses[k], counts.false_alarms[k])
        assert found == (one.hits, one.misses, one.false_alarms), t


def test_probability_thresholds_are_even_in_the_logarithm_of_the_odds():
    odds = PROBABILITY_THRESHOLDS / (1 - PROBABILITY_THRESHOLDS)
    assert np.allclose(np.diff(np.log(odds)), 0.1, atol=0.01)
    assert 0 < PROBABILITY_THRESHOLDS[0] < 0.001 and 0.999 < PROBABILITY_THRESHOLDS[-1] < 1


def test_the_best_threshold_ignores_the_unknown():
    p, o = np.array([0.9, 0.1, np.nan, 0.95]), np.array([1, 0, 1, 0])
    assert best_probability_threshold(p, o, valid=[True, True, True, False]) <= 0.9
    assert best_probability_threshold([np.nan], [1]) == np.inf


def test_without_an_event_the_best_threshold_is_never():
    assert best_probability_threshold(np.linspace(0, 1, 5), np.zeros(5)) == np.inf


# ------------------------------------------------------------------ groups and intervals


def test_lead_times():
    c = contingency(np.ones((4, 2, 2)), np.ones((4, 2, 2)), 0.5, axis=(1, 2))
    leads, table = per_lead_time({"a": c}, [30, 25, 30, 25])
    assert leads.tolist() == [25, 30]
    assert table["a"].tolist() == [1, 1]
    assert per_lead_time({}, [30, 25])[0].tolist() == [25, 30]
    assert "a" in score_table({"a": c.pooled()})
    assert score_table({}).strip().startswith("CSI")


def test_bootstrap(fields):
    f, o = fields
    better, worse = contingency(o, o, 1.0, axis=(1, 2)), contingency(f, o, 1.0, axis=(1, 2))
    r = block_bootstrap(better, worse, [0, 0, 1, 1, 2, 2], n=200)
    assert 0 < r["low"] <= r["difference"] <= r["high"] <= 1
    assert r["blocks"] == 3
    assert r == block_bootstrap(better, worse, [0, 0, 1, 1, 2, 2], n=200)
    one = block_bootstrap(better, worse, np.zeros(6), n=50)
    assert one["low"] == one["high"] == one["difference"]


def test_bootstrap_needs_the_same_pixels(fields):
    f, o = fields
    with pytest.raises(DataError, match="same observed pixels"):
        block_bootstrap(
            contingency(f, o, 1.0, axis=(1, 2)),
            contingency(f[:, :-1], o[:, :-1], 1.0, axis=(1, 2)),
            np.arange(6),
        )


def test_bootstrap_of_an_event_that_never_happens():
    none = contingency(np.zeros((3, 4)), np.zeros((3, 4)), 1.0, axis=1)
    assert np.isnan(block_bootstrap(none, none, [0, 1, 2], n=20)["low"])


def test_module_needs_core_only():
    lines = Path(verify.__file__).read_text().splitlines()
    ours = ("from sslpdl", "from .", "import sslpdl")
    assert {s.split()[1] for s in lines if s.startswith(ours)} == {"sslpdl_nb.core"}


def test_what_is_no_probability_and_no_decision_is_refused():
    with pytest.raises(DataError, match="from 0 to 1, found 0 to 80"):
        brier([30, 80], [0, 1])
    with pytest.raises(DataError, match="count_events: forecast.*NaN"):
        count_events([np.nan, 1], [1, 1])
    with pytest.raises(DataError, match="count_events: observed.*NaN"):
        count_events([1, 1], [np.nan, 1])
