"Scores of nowcasts over sequences: known answers, second implementations, and what is refused."

import json
from pathlib import Path

import numpy as np
import pytest
from smooth_rain import BLURRED, MOVED, TRUTHS, rain, scored

from sslpdl_nb.core import DataError
from sslpdl_nb.experiments.claims import interval
from sslpdl_nb.experiments.figures import Tally, fss
from sslpdl_nb.nowcast.measures import (
    EVENT_SCORES,
    FACTORS,
    border_ratio,
)
from sslpdl_nb.nowcast.verify import (
    SUMS,
    NowcastScores,
    amounts,
    ensemble_tally,
    lead_time_diagram,
    paired,
    score_interval,
    score_sums,
    table,
    without_gaps,
)
from sslpdl_nb.verify import (
    Contingency,
    brier,
    count_events,
    csi,
    f1,
    hss,
    jackknife_interval,
)

PRINTED = Path(__file__).resolve().parent.parent / "experiments" / "printed" / "spat_spark.csv"


# ------------------------------------------------------------------ ensembles


def test_an_ensemble_of_the_right_kind():
    "Members and truth from one distribution: spread = error, and a fair score of any size."
    found = {}
    for m in (3, 12):
        parts = [rain(100 + k, 2, 24, 1.0, m + 1, spread=0.4) for k in range(30)]
        s = scored([p[1:] for p in parts], [p[0] for p in parts])
        found[m] = {n: score_interval(s, n)["value"] for n in ("fair CRPS", "spread/error", "CRPS")}
    assert np.isclose(found[3]["spread/error"], 1, atol=0.05)
    assert np.isclose(found[12]["spread/error"], 1, atol=0.05)
    assert np.isclose(found[3]["fair CRPS"], found[12]["fair CRPS"], rtol=0.04)
    assert found[3]["CRPS"] > 1.1 * found[12]["CRPS"]


def test_tally_from_counts_is_the_tally_of_probabilities():
    members, truth = rain(1, members=7), rain(2)
    s = scored([members, members], [truth, truth])
    found = ensemble_tally(s, 2.0)
    p = (members >= 2).mean(0)
    known = Tally.of(np.stack([p, p]), np.stack([truth, truth]) >= 2, [0, 1])
    for a, b in zip(found.pooled(), known.pooled()):
        assert np.allclose(a, b)
    assert np.array_equal(found.count, known.count)
    assert ensemble_tally(s, 2.0, 10).count.sum() == 2 * truth[0].size
    for wrong in (scored([truth], [truth]), s.cross_tuned()):
        with pytest.raises(DataError, match="an ensemble before tuning"):
            ensemble_tally(wrong, 2.0)


@pytest.mark.parametrize("members", [2, 5, 8])
def test_untuned_ensemble_says_yes_with_half_of_its_members(members):
    forecast, truth = rain(3, members=members), rain(4)
    c = NowcastScores.of(forecast, truth).counts(2.0).pooled()
    assert c == count_events((forecast >= 2).mean(0) >= 0.5, truth >= 2)


# ------------------------------------------------------------------ neighbourhoods


def test_fractions_skill_of_the_class():
    s = scored(MOVED, TRUTHS)
    f, o = (np.concatenate(a) >= 8 for a in (MOVED, TRUTHS))
    for km, pixels in ((10, 5), (20, 10)):
        value = score_interval(s, f"FSS {km} km")["value"]
        assert np.isclose(value, fss(f, o, [pixels]).item(), atol=1e-4)


# ------------------------------------------------------------------ borders


def test_border_ratio_of_the_class():
    means = TRUTHS[0].reshape(3, 4, 8, 4, 8).mean((2, 4)).repeat(8, 1).repeat(8, 2)
    forecast = (TRUTHS[0] + means) / 2
    s = NowcastScores.of(forecast, TRUTHS[0], block=8)
    assert score_interval(s, "border ratio")["value"] == pytest.approx(
        border_ratio(forecast, 8), rel=1e-3
    )


# ------------------------------------------------------------------ counting


def test_a_still_picture_and_persistence():
    still = TRUTHS[0][:1].repeat(4, 0)
    s = NowcastScores.of(still, still)
    for edge in s.edges:
        c = s.counts(edge).pooled()
        assert csi(c) == f1(c) == hss(c) == 1
    assert all(score_interval(s, n)["value"] == 0 for n in ("RMSE", "CRPS", "Brier"))
    assert score_interval(s, "power ratio")["value"] == 1


def test_sums_by_hand():
    s = scored(MOVED, TRUTHS)
    f, o = np.stack(MOVED).astype(float), np.stack(TRUTHS).astype(float)
    assert score_interval(s, "RMSE")["value"] == pytest.approx(
        np.sqrt(np.mean((f - o) ** 2)), rel=1e-4
    )
    log = np.mean((np.log1p(f / 0.2) - np.log1p(o / 0.2)) ** 2)
    assert score_interval(s, "log MSE")["value"] == pytest.approx(log, rel=1e-4)
    assert score_interval(s, "CRPS")["value"] == pytest.approx(np.abs(f - o).mean(), rel=1e-4)
    members = rain(9, members=5)
    one = NowcastScores.of(members, TRUTHS[0])
    for edge in one.edges:
        known = brier((members >= edge).mean(0), TRUTHS[0] >= edge)
        assert score_interval(one, "Brier", edge=edge)["value"] == pytest.approx(known, rel=1e-4)


def test_single_lead_times_and_all_together():
    s = scored(MOVED, TRUTHS)
    leads = [s.counts(2.0, t).pooled() for t in (5, 10, 15)]
    assert sum(leads, Contingency()) == s.counts(2.0).pooled()
    for k, c in enumerate(leads):
        assert c == count_events(np.stack(MOVED)[:, k] >= 2, np.stack(TRUTHS)[:, k] >= 2)
    for lead in (0, 20, 7):
        with pytest.raises(DataError, match=r"one of \[5, 10, 15\]"):
            s.counts(2.0, lead)
    with pytest.raises(DataError, match="edge, mm/h"):
        s.counts(3.0)


def test_some_of_the_lead_times():
    s = scored(MOVED, TRUTHS)
    some = s.at((5, 15))
    assert some.lead_times.tolist() == [5, 15] and some.pixels.shape == (len(MOVED), 2)
    assert some == scored(MOVED, TRUTHS, lead_times=(5, 15))
    assert some.counts(2.0, 15).pooled() == s.counts(2.0, 15).pooled()
    both = s.counts(2.0, 5).pooled() + s.counts(2.0, 15).pooled()
    assert some.counts(2.0).pooled() == both
    assert score_interval(some, "RMSE", lead_time=15) == score_interval(s, "RMSE", lead_time=15)
    assert NowcastScores.from_dict(json.loads(json.dumps(some.to_dict()))) == some
    first, same = (x.cross_tuned().counts(2.0, 5, tuned=True).pooled() for x in (some, s))
    assert first == same
    for wrong in ((), (15, 5), (5, 5), (7,)):
        with pytest.raises(DataError, match="lead time"):
            s.at(wrong)
        with pytest.raises(DataError, match="lead times, minutes"):
            scored(MOVED, TRUTHS, lead_times=wrong)
    with pytest.raises(DataError, match="lead times and cuts of the other part"):
        some.tuned(s)


def test_only_seen_and_observed_pixels():
    seen = np.zeros(TRUTHS[0].shape, bool)
    seen[:, :20] = True
    truth, forecast = TRUTHS[0].copy(), MOVED[0].copy()
    truth[:, :2] = np.nan
    forecast[:, 20:] = np.nan  # unknown, and not counted
    s = NowcastScores.of(forecast, truth, seen)
    assert s.pixels.tolist() == [[18 * 32] * 3]
    inside = np.s_[:, 2:20]
    known = count_events(MOVED[0][inside] >= 2, TRUTHS[0][inside] >= 2)
    assert s.counts(2.0).pooled() == known
    other = NowcastScores.of(np.where(seen, forecast, 99).astype(np.float32), truth, seen)
    assert other == s


def test_a_lead_time_without_any_seen_pixel():
    seen = np.ones(TRUTHS[0].shape, bool)
    seen[2] = False
    s = NowcastScores.of(MOVED[0], TRUTHS[0], seen)
    assert s.counts(2.0, 15).total == 0 and np.isnan(
        score_interval(s, "RMSE", lead_time=15)["value"]
    )
    assert s.counts(2.0) == s.counts(2.0, 5) + s.counts(2.0, 10)


def test_merging():
    a, b, c = (NowcastScores.of(MOVED[k], TRUTHS[k], sequence=k) for k in range(3))
    assert (a + b) + c == a + (b + c) == NowcastScores.join([a, b, c])
    assert (a + b).select([1]) == b and (a + b).select(np.array([True, False])) == a
    assert (a + b).select(slice(None)) == a + b != a
    with pytest.raises(DataError, match="expected each once"):
        a + a
    with pytest.raises(DataError, match="at least one"):
        NowcastScores.join([])
    knmi = NowcastScores.of(MOVED[1], TRUTHS[1], sequence=1, edges=(0.5, 2, 5, 10))
    with pytest.raises(DataError, match="edges of the parts"):
        a + knmi
    ensemble = NowcastScores.of(rain(0, members=2), TRUTHS[1], sequence=1)
    with pytest.raises(DataError, match="members of the parts"):
        a + ensemble
    short = NowcastScores.of(MOVED[1][:2], TRUTHS[1][:2], sequence=1)
    with pytest.raises(DataError, match="lead_times of the parts"):
        a + short


def test_stored_and_read_again():
    for s in (scored(MOVED, TRUTHS), scored(MOVED, TRUTHS).cross_tuned()):
        text = json.dumps(s.to_dict())
        assert NowcastScores.from_dict(json.loads(text)) == s
    sequence = scored(MOVED[:1] * 1, TRUTHS[:1]).to_dict()
    for name in ("hits", "sums", "shape", "edges", "is_tuned"):
        broken = {k: v for k, v in sequence.items() if k != name}
        with pytest.raises(DataError, match="from_dict"):
            NowcastScores.from_dict(broken)
    with pytest.raises(DataError, match="from_dict"):
        NowcastScores.from_dict(sequence | dict(hits="1 2 3"))


def test_tuned_results_are_small():
    truth = [rain(k, steps=12, size=24) for k in range(4)]
    s = scored(truth, truth)
    text = json.dumps(s.tuned(s).to_dict())
    assert len(text) < 4 * 6000 < len(json.dumps(s.to_dict()))


@pytest.mark.parametrize(
    "forecast, truth, seen, message",
    [
        (MOVED[0][:2], TRUTHS[0], None, "shape of a member"),
        (MOVED[0][0], TRUTHS[0], None, r"\(steps, h, w\) or \(members, steps, h, w\)"),
        (MOVED[0], TRUTHS[0][0], None, "truth: shape"),
        (-MOVED[0], TRUTHS[0], None, "0 mm/h or more"),
        (MOVED[0], -TRUTHS[0], None, "0 mm/h or more"),
        (MOVED[0] * np.inf, TRUTHS[0], None, "finite"),
        (MOVED[0].astype(np.uint8), TRUTHS[0], None, "counts: frames.from_counts"),
        (MOVED[0] * np.nan, TRUTHS[0], None, "3072 gaps"),
        (MOVED[0], TRUTHS[0] * np.nan, None, "pixels to count: expected at least one"),
        (MOVED[0], TRUTHS[0], np.zeros((3, 32, 32), bool), "pixels to count"),
        (MOVED[0], TRUTHS[0], np.ones((3, 32, 32)), "seen: expected bool"),
        (MOVED[0], TRUTHS[0], np.ones((32, 32), bool), "seen: expected bool"),
    ],
)
def test_what_is_no_forecast(forecast, truth, seen, message):
    with pytest.raises(DataError, match=message):
        NowcastScores.of(forecast, truth, seen)


@pytest.mark.parametrize("edges", [(), (2, 1), (0, 1), (1, 1)])
def test_impossible_edges(edges):
    with pytest.raises(DataError, match="edges, mm/h"):
        NowcastScores.of(MOVED[0], TRUTHS[0], edges=edges)


def test_gaps_are_filled_by_other_members_or_dry():
    members = rain(5, members=4)
    members[0, :, :5] = members[1, :, :5] = members[:, :, -1] = np.nan
    found = without_gaps(members)
    assert np.allclose(found[0, :, :5], members[2:, :, :5].mean(0)) and (found[:, :, -1] == 0).all()
    assert np.array_equal(found[2, :, :-1], members[2, :, :-1]) and found.dtype == np.float32
    assert (without_gaps(members[0])[:, :5] == 0).all()
    with pytest.raises(DataError, match="forecast: rain rates"):
        without_gaps(-TRUTHS[0])


# ------------------------------------------------------------------ tuning


def test_half_the_amount_is_repaired_by_half_the_threshold():
    s = scored([t / 2 for t in TRUTHS], TRUTHS)
    tuned = s.select(slice(3, 6)).tuned(s.select(slice(0, 3)))
    assert np.allclose(tuned.cuts[..., 0], 1) and np.allclose(tuned.cuts[:, :, :2, 1:], 0.5)
    for lead in (None, 5, 15):
        assert csi(tuned.counts(2.0, lead, tuned=True).pooled()) == 1
        assert csi(tuned.counts(2.0, lead).pooled()) < 0.7


def test_the_untuned_cut_stays_where_nothing_was_observed():
    dry = [np.minimum(t, 5) for t in TRUTHS]
    s = scored(dry, dry).cross_tuned()
    assert (s.cuts[:, :, 2] == 1).all()


def test_each_half_is_read_with_the_cuts_of_the_other():
    factors = [0.5, 2.0] * 3
    s = scored([t * f for t, f in zip(TRUTHS, factors)], TRUTHS)
    cross, same = s.cross_tuned(), s.tuned(s)
    assert np.allclose(cross.cuts[::2, :, 1, 2], 2) and np.allclose(cross.cuts[1::2, :, 1, 2], 0.5)
    scores = [csi(x.counts(2.0, tuned=True).pooled()) for x in (cross, same, s.tuned(s))]
    assert scores[0] < scores[1]


@pytest.mark.parametrize("edge", [0.5, 2.0, 8.0])
def test_no_cut_is_better_than_that_of_the_same_data(edge):
    noisy = [t * np.exp(rain(50 + k) / 4 - 0.5) for k, t in enumerate(TRUTHS)]
    s = scored(noisy, TRUTHS)
    same, valid = s.select([3, 4, 5]), s.select([0, 1, 2])
    for lead in (None, 5, 10, 15):
        best = csi(same.tuned(same).counts(edge, lead, tuned=True).pooled())
        assert best >= csi(same.tuned(valid).counts(edge, lead, tuned=True).pooled())
        assert best >= csi(same.counts(edge, lead).pooled())


def test_tuned_members():
    "An ensemble with rain in one member of four is right if one member is enough."
    members = [np.stack([t, 0 * t, 0 * t, 0 * t]) for t in TRUTHS]
    s = scored(members, TRUTHS).cross_tuned()
    assert csi(s.counts(2.0).pooled()) == 0
    assert csi(s.counts(2.0, tuned=True).pooled()) == 1
    assert np.allclose(s.cuts[:, :, 1], [0.5, 0.25, 0.25])


def test_tuning_that_cannot_be():
    s = scored(MOVED, TRUTHS)
    with pytest.raises(DataError, match="no tuning"):
        s.counts(2.0, tuned=True)
    with pytest.raises(DataError, match="those of an earlier tuning"):
        s.tuned(s.cross_tuned())
    with pytest.raises(DataError, match="other sequences: expected at least one"):
        s.select([0]).cross_tuned()
    with pytest.raises(DataError, match="edges, lead times and cuts of the other part"):
        s.tuned(scored([m[:2] for m in MOVED], [t[:2] for t in TRUTHS]))
    assert 1.0 in FACTORS and list(FACTORS) == sorted(FACTORS)


# ------------------------------------------------------------------ intervals and tables


def test_pairs_are_those_of_the_house():
    a, b = scored(MOVED, TRUTHS), scored(BLURRED, TRUTHS)
    found = paired(a, b, edge=2.0, lead_time=10, resamples=99)
    known = jackknife_interval(a.counts(2.0, 10), b.counts(2.0, 10), np.arange(6))
    for name in ("difference", "low", "high", "effective_blocks"):
        assert found[name] == pytest.approx(known[name])
    other = paired(b, a, edge=2.0, lead_time=10, resamples=99)
    assert other["difference"] == -found["difference"] and other["low"] == -found["high"]
    assert found["p"] == other["p"] and 0 <= found["p_permutation"] <= 1
    same = paired(a, a)
    assert same["difference"] == same["low"] == same["high"] == 0


def test_every_score_has_an_interval_and_a_pair():
    a, b = scored(MOVED, TRUTHS), scored(BLURRED, TRUTHS)
    for name in ("CSI", "F1", "bias", "precision", "recall", "accuracy", "FAR", *SUMS):
        one, pair = score_interval(a, name), paired(a, b, name, resamples=9)
        other = score_interval(b, name)
        if name != "spread/error":  # shown as a root; single forecasts have no spread
            assert np.isclose(pair["difference"], one["value"] - other["value"])
            assert one["low"] <= one["value"] <= one["high"]


def test_root_and_square():
    s = scored(MOVED, TRUTHS)
    root, square = score_interval(s, "RMSE"), score_interval(s, "MSE")
    assert root["value"] ** 2 == pytest.approx(square["value"])
    assert root["high"] ** 2 == pytest.approx(square["high"])
    sums = score_sums(s, "MSE")
    assert sums.shape == (6, 1, 2)
    assert interval(sums, None, s.pixels.sum(1))["high"] == square["high"]


def test_pairs_of_other_weather_and_unknown_scores():
    s, other = scored(MOVED, TRUTHS), scored(MOVED, TRUTHS[::-1])
    seen = np.zeros(TRUTHS[0].shape, bool)
    seen[:, :9] = True
    for b, what in ((s.select([0, 1]), "sequences"), (other, "events")):
        with pytest.raises(DataError, match=f"paired: {what}"):
            paired(s, b)
    with pytest.raises(DataError, match="paired: pixels"):
        paired(s, scored(MOVED, TRUTHS, seen))
    for wrong in (lambda: paired(s, s, "RMSE"), lambda: score_interval(s, "beauty")):
        with pytest.raises(DataError, match="score_sums: score"):
            wrong()


def test_tables():
    results = dict(
        moved=scored(MOVED, TRUTHS).cross_tuned(), blurred=scored(BLURRED, TRUTHS).cross_tuned()
    )
    tidy = table(results, tuned=True)
    assert len(tidy) == 2 * 3 * 3 and set(EVENT_SCORES) < set(tidy.columns)
    row = tidy[(tidy.method == "moved") & (tidy.edge == 2) & (tidy.lead_time == 10)].iloc[0]
    assert row.CSI == csi(results["moved"].counts(2.0, 10, tuned=True).pooled())
    assert row["CSI low"] < row.CSI < row["CSI high"] and row.FAR + row.precision == pytest.approx(
        1
    )
    pooled = table(results, per_lead=False)
    assert len(pooled) == 2 * 3 and "lead_time" not in pooled
    assert pooled.pixels.iloc[0] == 3 * tidy.pixels.iloc[0]
    amount = amounts(results)
    assert len(amount) == 2 * 3 and np.allclose(amount.pMSE, amount.RMSE**2 / 144)
    assert amount["spread/error"].isna().all()
    assert (amount["RMSE low"] <= amount.RMSE).all() and len(amounts(results, per_lead=False)) == 2
    ensemble = scored([rain(70 + k, members=3) for k in range(6)], TRUTHS)
    assert amounts(dict(e=ensemble))["spread/error"].notna().all()


def test_diagram():
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    results = dict(moved=scored(MOVED, TRUTHS), blurred=scored(BLURRED, TRUTHS))
    lead_time_diagram(ax, results, "RMSE")
    known = [score_interval(results["moved"], "RMSE", lead_time=t)["value"] for t in (5, 10, 15)]
    assert ax.lines[0].get_ydata().tolist() == known
    assert np.allclose(ax.lines[0].get_xdata(), [5, 10, 15], atol=1)
    assert [line.get_label() for line in ax.lines] == ["moved", "blurred"]
    assert len(ax.collections[0].get_segments()) == 2  # bars at 5 and 15 min
    plt.close(fig)
