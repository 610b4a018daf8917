"Scores: exact answers, identities, merging, the `scores` library as judge, and odd input."

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp
from scipy.stats import t as student

from sslpdl_nb import verify
from sslpdl_nb.core import DataError
from sslpdl_nb.verify import (
    PROBABILITY_THRESHOLDS,
    SCORES,
    Contingency,
    Reliability,
    best_probability_threshold,
    bias,
    brier,
    brier_skill,
    confusion,
    contingency,
    count_events,
    csi,
    decompose,
    effective_number,
    ets,
    f1,
    group_counts,
    hss,
    iou,
    jackknife_interval,
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


def by_hand(a, b, blocks, score, level=0.95):
    "The jackknife t interval with loops over plain lists of samples."
    names = sorted(set(blocks))

    def pooled(c, keep):
        rows = [i for i, name in enumerate(blocks) if name in keep]
        parts = (c.hits, c.misses, c.false_alarms, c.correct_negatives)
        return Contingency(*(sum(int(part[i]) for i in rows) for part in parts))

    def contrast(keep):
        return score(pooled(a, keep)) - score(pooled(b, keep))

    k, d = len(names), contrast(set(names))
    squares = [(contrast(set(names) - {name}) - d) ** 2 for name in names]
    error = (sum(squares) * (k - 1) / k) ** 0.5
    weights = []
    for name in names:
        c = pooled(a, {name})
        weights.append(c.hits + c.misses)
    effective = sum(weights) ** 2 / sum(w * w for w in weights)
    reach = student.ppf((1 + level) / 2, effective - 1) * error
    return d, d - reach, d + reach, effective


def two_forecasts(seed, samples=12):
    "Random counts per sample of two forecasts of the same pixels."
    rng = np.random.default_rng(seed)
    observed = rng.integers(5, 40, samples)
    made = []
    for _ in range(2):
        hits = rng.integers(1, observed)
        false_alarms = rng.integers(0, 30, samples)
        made.append(Contingency(hits, observed - hits, false_alarms, 100 - observed - false_alarms))
    return made


@pytest.mark.parametrize("score", [csi, bias, hss, recall])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_jackknife_interval_as_added_up_by_hand(score, level):
    blocks = ["c", "a", "b", "a", "d", "e", "c", "b", "f", "f", "d", "e"]
    for seed in range(5):
        a, b = two_forecasts(seed)
        r = jackknife_interval(a, b, blocks, score=score, level=level)
        d, low, high, effective = by_hand(a, b, blocks, score, level)
        assert np.allclose([r["difference"], r["low"], r["high"]], [d, low, high], rtol=1e-9)
        assert np.isclose(r["effective_blocks"], effective)
        assert (r["blocks"], r["level"], r["reason"]) == (6, level, "")


def test_of_equal_blocks_the_jackknife_is_the_t_interval_of_a_mean():
    hits = np.random.default_rng(2).integers(0, 50, (2, 8))
    none = np.zeros(8, int)
    a, b = (Contingency(h, 50 - h, none, none) for h in hits)
    r = jackknife_interval(a, b, np.arange(8))
    expected = ttest_1samp((hits[0] - hits[1]) / 50, 0).confidence_interval(0.95)
    assert np.allclose((r["low"], r["high"]), expected)
    assert r["effective_blocks"] == 8


def test_order_and_division_of_samples_do_not_matter():
    a, b = two_forecasts(3)
    blocks = np.repeat(np.arange(4), 3)
    r = jackknife_interval(a, b, blocks)
    order = np.random.default_rng(0).permutation(12)
    assert jackknife_interval(a[order], b[order], blocks[order]) == r
    _, whole_a = group_counts(a, blocks)
    _, whole_b = group_counts(b, blocks)
    assert jackknife_interval(whole_a, whole_b, np.arange(4)) == r
    back = jackknife_interval(b, a, blocks)
    assert np.isclose(back["low"], -r["high"]) and np.isclose(back["high"], -r["low"])
    same = jackknife_interval(a, a, blocks)
    assert same["difference"] == same["low"] == same["high"] == 0


def test_no_interval_where_nothing_can_be_said():
    a, b = two_forecasts(4)
    none = np.zeros(4, int)
    event = none + [5, 0, 0, 0]
    dry, once = Contingency(none, none, none, none + 9), Contingency(event, none, none, none)
    wrong = Contingency(none, none, none + 5, none)
    uneven = Contingency(none + [90, 4, 3, 3], none, none, none)
    for r, reason in (
        (jackknife_interval(a, b, np.zeros(12)), "only 1 of at least 3 blocks"),
        (jackknife_interval(a, b, np.arange(12) % 2), "only 2 of at least 3 blocks"),
        (jackknife_interval(dry, dry, range(4)), "a score is undefined"),
        (jackknife_interval(once, once, list("wxyz")), "a score is undefined without block w"),
        (jackknife_interval(wrong, wrong, range(4)), "no event was observed"),
        (jackknife_interval(uneven, uneven, range(4)), "one block has most of the events"),
    ):
        assert np.isnan(r["low"]) and np.isnan(r["high"])
        assert r["reason"].startswith(reason)
    assert np.isfinite(jackknife_interval(a, b, np.zeros(12))["difference"])
    three = jackknife_interval(a, b, np.arange(12) % 3)
    assert three["low"] < three["difference"] < three["high"] and not three["reason"]


def test_effective_number():
    assert effective_number([2, 2, 2, 2]) == 4
    assert effective_number([0, 7, 0]) == 1
    assert np.isclose(effective_number([4, 1, 1]), 2)
    assert np.isnan(effective_number([])) and np.isnan(effective_number([0, 0]))


def test_jackknife_needs_the_same_pixels(fields):
    f, o = fields
    with pytest.raises(DataError, match="same observed pixels"):
        jackknife_interval(
            contingency(f, o, 1.0, axis=(1, 2)),
            contingency(f[:, :-1], o[:, :-1], 1.0, axis=(1, 2)),
            np.arange(6),
        )


# ------------------------------------------------------------------ the measured coverage


@pytest.fixture(scope="module")
def coverage():
    "benchmarks/intervals.py as a module."
    path = Path(__file__).parent.parent / "benchmarks" / "intervals.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(coverage):
    return json.loads(coverage.RESULT.read_text())


def drawn_sets(coverage, measured, edge, sets, k):
    "Simulated test sets (sets, k, 5) of the first pair of forecasts."
    rows = measured["counts"][edge]
    a, b = coverage.PAIRS[0]
    model = coverage.fit(rows[a], rows[b])
    return coverage.fitted(model, np.random.default_rng(1), (sets, k))


def test_the_benchmark_measures_the_interval_of_the_module(coverage, measured):
    sets = drawn_sets(coverage, measured, "0.1", 20, 6).astype(int)
    intervals = coverage.all_intervals(np.random.default_rng(0), sets, 10)
    low, high = intervals["jackknife t, effective k - 1"]
    for c, a, b in zip(sets, low, high):
        observed, events = c[:, 4], []
        for hits, wrong in ((c[:, 0], c[:, 1]), (c[:, 2], c[:, 3])):
            false_alarms = wrong - (observed - hits)
            nothing = 10**6 - observed - false_alarms
            events.append(Contingency(hits, observed - hits, false_alarms, nothing))
        r = jackknife_interval(*events, range(6))
        assert np.allclose((r["low"], r["high"]), (a, b), equal_nan=True)


def test_bca_and_percentile_of_the_benchmark_are_those_of_scipy(coverage, measured):
    def statistic(*columns, axis=-1):
        return coverage.difference(np.stack([c.sum(axis) for c in columns], -1))

    for c in drawn_sets(coverage, measured, "0.1", 3, 8):
        intervals = coverage.all_intervals(np.random.default_rng(0), c[None], 9999)
        for method in ("BCa", "percentile"):
            options = dict(paired=True, vectorized=True, rng=np.random.default_rng(1))
            expected = bootstrap(tuple(c.T), statistic, method=method, **options)
            width = np.diff(expected.confidence_interval)[0]
            found = np.ravel(intervals[method])
            assert np.abs(found - expected.confidence_interval).max() < 0.05 * width


@pytest.mark.parametrize("population", ["fitted", "resampled"])
def test_the_interval_in_use_is_the_one_nearest_to_nominal(measured, population):
    "Common events, six and eight atmospheres, averaged over pairs."
    cells = [c for c in measured["cells"] if c["population"] == population]
    cells = [c for c in cells if c["edge"] == 0.1 and c["atmospheres"] in (6, 8)]
    names = list(cells[0]["methods"])
    off = {n: abs(np.mean([c["methods"][n]["coverage"] for c in cells]) - 0.95) for n in names}
    assert min(off, key=off.get) == "jackknife t, effective k - 1"
    assert off["jackknife t, effective k - 1"] < 0.02 < off["percentile"]
    assert measured["repetitions"] >= 2000


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
