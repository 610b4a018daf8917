"Claims: ratios of sums, intervals, sign flips, Diebold and Mariano, many comparisons, sentences."

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from sslpdl_nb.core import CLASS_EDGES, DataError
from sslpdl_nb.experiments.claims import (
    RATIOS,
    Claim,
    claim,
    claims,
    diebold_mariano_p,
    interval,
    permutation_p,
    ratio_sums,
    score_interval,
)
from sslpdl_nb.experiments.scores import (
    READINGS,
    Calibration,
    Reader,
    Result,
    contingency,
    scores,
)
from sslpdl_nb.verify import csi, f1, jackknife_interval

READER = Reader(Calibration(1.0, (0.0, 0.0, 0.0), 1.0, 1.0), {"tuned": (0.5, 0.5)})
CONTRARY = {"better": "worse", "worse": "better"}


def some_result(seed, *, skill=0.3, atmospheres=20, weather=0):
    "Counts of a forecast; the observed classes depend on `weather` alone."
    rng = np.random.default_rng(weather)
    size = rng.lognormal(0, 1.2, (atmospheres, 1))
    observed = (np.array([2000, 300, 40]) * np.minimum(size, 8)).astype(int) + 1
    rng, tables = np.random.default_rng(1000 + seed), {}
    for reading in READINGS:
        table = np.zeros((atmospheres, 3, 3), dtype=np.int64)
        for g, i in itertools.product(range(atmospheres), range(3)):
            p = (1 - skill) * np.array([0.8, 0.15, 0.05]) + skill * np.eye(3)[i]
            p = np.clip(p + rng.normal(0, 0.02, 3), 0.001, None)
            table[g, i] = rng.multinomial(observed[g, i], p / p.sum())
        tables[reading] = table
    n = observed.sum(1, keepdims=True)
    noise = rng.uniform(0.9, 1.1, (atmospheres, 2))
    errors = (1 - skill) * n * np.array([0.09, 0.015]) * noise
    return Result(
        edges=CLASS_EDGES,
        atmospheres=np.arange(atmospheres),
        confusion=tables,
        brier=dict(raw=errors.round(4), calibrated=(errors * 0.9).round(4)),
        climate=(0.1, 0.01),
        reader=READER,
    )


def sums_of(hits, total):
    return np.stack([hits, total], -1)[:, None].astype(float)


# ------------------------------------------------------------------ ratios


@pytest.mark.parametrize("reading", READINGS)
def test_ratios_are_the_scores(reading):
    r = some_result(0)
    known = scores(r)
    for edge in CLASS_EDGES:
        for name in (*RATIOS, "Brier skill", "mIoU"):
            value = score_interval(r, score=name, edge=edge, reading=reading)["value"]
            assert value == pytest.approx(known[reading, edge][name], abs=1e-12)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(score="ETS"), "score of a claim"),
        (dict(edge=5.0), "edge of a claim"),
        (dict(reading="best"), "reading of a claim"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        ratio_sums(some_result(0), **options)


# ------------------------------------------------------------------ intervals


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("score, name", [(csi, "CSI"), (f1, "F1")])
def test_interval_is_that_of_verify(seed, score, name):
    a, b = some_result(seed), some_result(seed + 50, skill=0.25)
    for k, edge in enumerate(CLASS_EDGES):
        found = interval(*(ratio_sums(r, name, edge) for r in (a, b)), a.events(k))
        counts = [contingency(r.confusion["tuned"], k) for r in (a, b)]
        known = jackknife_interval(*counts, a.atmospheres, score=score)
        for key in ("difference", "low", "high", "effective_blocks"):
            assert found[key] == pytest.approx(known[key], rel=1e-9, abs=1e-12)
        assert found["reason"] == known["reason"]


def test_interval_of_means_by_hand():
    "With equal totals a score is a mean, and the interval that of Student."
    rng = np.random.default_rng(0)
    hits, total = rng.integers(10, 90, (2, 12)), np.full(12, 100)
    found = interval(sums_of(hits[0], total), sums_of(hits[1], total), total)
    known = ttest_1samp((hits[0] - hits[1]) / 100, 0)
    limits = known.confidence_interval(0.95)
    assert found["p"] == pytest.approx(known.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((limits.low, limits.high))
    assert diebold_mariano_p(sums_of(hits[0], total), sums_of(hits[1], total)) == pytest.approx(
        known.pvalue
    )


def test_brier_skill_by_leaving_out():
    a, b = some_result(1), some_result(2)
    found = interval(*(ratio_sums(r, "Brier skill", 0.1) for r in (a, b)), a.events(0))

    def skill(r, keep):
        return 1 - r.brier["calibrated"][keep, 0].sum() / r.climate_brier()[keep, 0].sum()

    everything, n = np.arange(20), 20
    d = skill(a, everything) - skill(b, everything)
    without = [skill(a, everything != g) - skill(b, everything != g) for g in everything]
    error = np.sqrt((n - 1) / n * np.sum((np.array(without) - d) ** 2))
    assert found["difference"] == pytest.approx(d)
    assert interval(*(ratio_sums(r, "Brier skill", 0.1) for r in (a, b)), np.ones(n))[
        "high"
    ] == pytest.approx(d + 2.0930240544 * error)


def test_no_interval_has_no_p():
    one = sums_of(np.array([5, 0, 0]), np.array([9, 1, 1]))
    found = interval(one, one * 0.5, np.array([100, 0, 0]))
    assert np.isnan([found["low"], found["p"]]).all() and "one block" in found["reason"]
    c = claim(some_result(0, atmospheres=2), some_result(1, atmospheres=2))
    assert c.verdict == "no certain difference" and "only 2 of at least 3" in str(c)


def test_identical_forecasts():
    a = some_result(0)
    c = claim(a, a)
    assert (c.difference, c.low, c.high, c.p) == (0, 0, 0, 1)
    assert c.p_permutation == c.p_diebold_mariano == 1
    assert c.verdict == "no certain difference"


def test_undefined_scores_do_not_decide():
    "A forecast that never says yes has no precision."
    r = some_result(0)
    tables = {k: t.copy() for k, t in r.confusion.items()}
    for t in tables.values():
        t[:, :, 0], t[:, :, 1:] = t.sum(2), 0
    never = replace(r, confusion=tables)
    c = claim(r, never, score="precision")
    assert np.isnan([c.difference, c.p, c.p_diebold_mariano, c.p_permutation]).all()
    assert c.verdict == "no certain difference" and "undefined" in str(c)
    assert claim(r, never, score="CSI").verdict == "better"


# ------------------------------------------------------------------ permutations


def test_permutations_by_enumeration():
    rng = np.random.default_rng(3)
    hits, totals = rng.integers(1, 50, (2, 6)), rng.integers(50, 90, (2, 6))
    a, b = (sums_of(h, t) for h, t in zip(hits, totals))
    seen, drawn = hits[0].sum() / totals[0].sum() - hits[1].sum() / totals[1].sum(), []
    for swap in itertools.product((0, 1), repeat=6):
        first, second = np.array(swap), 1 - np.array(swap)
        x, y = (hits[s, range(6)].sum() / totals[s, range(6)].sum() for s in (first, second))
        drawn.append(x - y)
    drawn = np.array(drawn)
    smaller = min(np.mean(drawn >= seen - 1e-12), np.mean(drawn <= seen + 1e-12))
    assert permutation_p(a, b) == pytest.approx(min(1, 2 * smaller))


def test_permutations_repeat():
    a, b = (ratio_sums(some_result(s), "mIoU") for s in (0, 1))
    assert permutation_p(a, b) == permutation_p(a, b)
    assert abs(permutation_p(a, b) - permutation_p(b, a)) < 0.05


# ------------------------------------------------------------------ claims


def test_claims_of_known_answers():
    good, poor = some_result(0, skill=0.5), some_result(1, skill=0.2)
    for score in ("CSI", "F1", "mIoU", "Brier skill", "recall"):
        c, back = claim(good, poor, score=score), claim(poor, good, score=score)
        assert c.verdict == "better" and back.verdict == CONTRARY[c.verdict]
        assert (back.low, back.high) == pytest.approx((-c.high, -c.low))
    assert claim(some_result(2), some_result(3)).verdict == "no certain difference"


def test_sentence():
    c = claim(some_result(0, skill=0.5), some_result(1, skill=0.2), names=("ours", "raw"))
    text = str(c)
    assert text.startswith(f"Ours is better than raw: CSI at 10 mm/h {c.difference:+.3f}, 95 %")
    assert f"from {c.low:+.3f} to {c.high:+.3f}; 20 atmospheres worth" in text
    doubt = replace(c, p_permutation=0.2)
    assert "sign flips disagree, p = 0.2" in str(doubt) and "disagree" not in text
    unsure = replace(c, low=-1.0, p=0.3, p_permutation=0.3, p_diebold_mariano=0.3)
    assert str(unsure).startswith("No certain difference between ours and raw: CSI")


def test_seeds_that_disagree_are_no_certain_difference():
    c = claim([some_result(s, skill=0.5) for s in (0, 2)], some_result(1, skill=0.2))
    assert c.verdict == "better" and c.low > 0
    doubt = replace(c, seeds=(c.difference, -0.001))
    assert doubt.verdict == "no certain difference" and "2 seeds from -0.001" in str(doubt)


def test_a_table_can_take_a_claim_back():
    c = claim(some_result(0, skill=0.5), some_result(1, skill=0.2))
    assert replace(c, q=0.2, comparisons=9).verdict == "no certain difference"
    assert replace(c, q=0.01, comparisons=9).verdict == "better"
    assert replace(c, q=np.nan, comparisons=9).verdict == "no certain difference"


def test_each_side_may_have_its_reading():
    a, b = some_result(0), some_result(1)
    c = claim(a, b, reading=("tuned", "argmax"))
    known = [csi(contingency(r.confusion[k].sum(0), 1)) for r, k in ((a, "tuned"), (b, "argmax"))]
    assert c.difference == pytest.approx(known[0] - known[1])


def test_seeds_are_averaged_and_shown():
    a, b = [some_result(s, skill=0.4) for s in range(3)], some_result(9, skill=0.2)
    c = claim(a, b)
    counts = sum(r.confusion["tuned"].sum(0) for r in a)
    known = [csi(contingency(t, 1)) for t in (counts, b.confusion["tuned"].sum(0))]
    assert c.difference == pytest.approx(known[0] - known[1])
    assert c.seeds == pytest.approx([claim(r, b).difference for r in a])
    assert "3 seeds from" in str(c) and "seeds" not in str(claim(a[0], b))
    pairs = claim(a, [some_result(s, skill=0.2) for s in range(5, 8)])
    assert len(pairs.seeds) == 3
    assert len(score_interval(a)["seeds"]) == 3
    with pytest.raises(DataError, match="seeds of both"):
        claim(a, a[:2])


def test_other_weather_is_refused():
    a = some_result(0)
    for other in (some_result(0, weather=1), some_result(0, atmospheres=19)):
        with pytest.raises(DataError, match="the same observed pixels"):
            claim(a, other)
    with pytest.raises(DataError, match="the same observed pixels"):
        claim([a, some_result(0, weather=1)], a)
    with pytest.raises(DataError, match="at least one"):
        claim([], [])
    with pytest.raises(DataError, match="one that is better when larger"):
        claim(a, a, score="bias")


def test_many_claims_are_adjusted():
    results = {f"method {s}": some_result(s) for s in range(6)} | dict(
        best=some_result(9, skill=0.6)
    )
    found = claims(results, "method 0", resamples=99)
    assert len(found) == 6 * 2 * 2 and all(c.comparisons == 24 for c in found)
    p, q = np.array([c.p for c in found]), np.array([c.q for c in found])
    order = np.argsort(p)
    known = np.minimum.accumulate((p[order] * 24 / np.arange(1, 25))[::-1])[::-1]
    assert np.allclose(q[order], np.minimum(known, 1))
    assert {c.verdict for c in found if c.a == "best"} == {"better"}
    assert f"in {24} comparisons" in str(found[0])
    with pytest.raises(DataError, match="claims: reference"):
        claims(results, "raw")


def test_a_table_without_any_interval():
    results = {name: some_result(s, atmospheres=2) for s, name in enumerate(("a", "b"))}
    found = claims(results, "b", resamples=9)
    assert all(np.isnan(c.q) and c.verdict == "no certain difference" for c in found)


def test_readings_of_a_table():
    results = dict(raw=some_result(0), ours=some_result(1))
    found = claims(results, "raw", readings=dict(raw="argmax"), edges=(10.0,), score_names=("CSI",))
    known = claim(results["ours"], results["raw"], reading=("tuned", "argmax"))
    assert len(found) == 1 and found[0].difference == known.difference
    assert isinstance(found[0], Claim)


# ------------------------------------------------------------------ coverage


def test_intervals_hold_the_truth():
    "Uneven atmospheres of two equally good forecasts: at least 90 of 100 at 5 %."
    held, trials = 0, 300
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        events = np.ceil(rng.lognormal(3, 1.2, 60))
        rate = np.clip(rng.normal(0.5, 0.1, (60, 1)) + rng.normal(0, 0.1, (60, 2)), 0.05, 0.95)
        a, b = (sums_of(rng.binomial(events.astype(int), r), events) for r in rate.T)
        found = interval(a, b, events)
        held += found["low"] <= 0 <= found["high"]
    assert 0.90 <= held / trials <= 0.99
