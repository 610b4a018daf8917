"Measures of a nowcast: known answers, second implementations, and what is refused."

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smooth_rain import BLURRED, TRUTHS, rain

from sslpdl_nb.core import DataError
from sslpdl_nb.experiments.figures import fss
from sslpdl_nb.nowcast.measures import (
    EVENT_SCORES,
    LOG_RAIN,
    accuracy,
    base_rate,
    border_ratio,
    crps,
    false_alarm_ratio,
    fss_sums,
    half_hss,
    ladder_counts,
    power_ratio,
    power_spectrum,
    taper,
    window_means,
)
from sslpdl_nb.verify import Contingency, count_events, hss, precision, recall

PRINTED = Path(__file__).resolve().parent.parent / "experiments" / "printed" / "spat_spark.csv"


# ------------------------------------------------------------------ yes and no


def test_scores_that_papers_print():
    rng = np.random.default_rng(0)
    c = Contingency(*rng.integers(1, 500, (4, 200)))
    assert np.allclose(accuracy(c), (c.hits + c.correct_negatives) / c.total)
    assert np.allclose(base_rate(c) + (c.false_alarms + c.correct_negatives) / c.total, 1)
    assert np.allclose(false_alarm_ratio(c) + precision(c), 1)
    assert np.allclose(2 * half_hss(c), hss(c))
    p, q = precision(c), recall(c)
    implied = (1 - accuracy(c)) / ((1 - q) + q * (1 - p) / p)
    assert np.allclose(implied, base_rate(c))


def test_always_dry_is_as_accurate_as_it_rarely_rains():
    c = Contingency(0, 30, 0, 70)
    values = {name: score(c) for name, score in EVENT_SCORES.items()}
    assert values["accuracy"] == 1 - values["base rate"] == 0.7
    assert values["CSI"] == values["HSS"] == values["bias"] == 0
    assert np.isnan(values["FAR"])


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.floats(0.1, 9), min_size=1, max_size=6, unique=True))
def test_ladder_counts_by_single_cuts(seed, cuts):
    rng, cuts = np.random.default_rng(seed), np.sort(cuts)
    value = rng.choice([0, *cuts, 4.0], (3, 5, 4))
    event, counted = rng.random((2, 3, 5, 4)) < 0.5
    hits, false_alarms = ladder_counts(value, event, counted, cuts)
    for k, cut in enumerate(cuts):
        c = count_events(value >= cut, event, counted, axis=(1, 2))
        assert hits[:, k].tolist() == c.hits.tolist()
        assert false_alarms[:, k].tolist() == c.false_alarms.tolist()


# ------------------------------------------------------------------ ensembles


@pytest.mark.parametrize("members", [2, 3, 11])
def test_crps_as_scoringrules_has_it(members):
    scoringrules = pytest.importorskip("scoringrules")
    rng = np.random.default_rng(members)
    x, y = rng.gamma(0.5, 2, (members, 40)), rng.gamma(0.5, 2, 40)
    for fair, estimator in ((False, "nrg"), (True, "fair")):
        known = scoringrules.crps_ensemble(y, x, m_axis=0, estimator=estimator, backend="numpy")
        assert np.allclose(crps(x, y, fair), known)


def test_crps_by_double_loop_and_invariances():
    rng = np.random.default_rng(0)
    x, y = rng.random((5, 7)), rng.random(7)
    spread = np.mean([np.abs(a - b) for a in x for b in x], 0)
    assert np.allclose(crps(x, y, fair=False), np.abs(x - y).mean(0) - spread / 2)
    assert np.allclose(crps(x[::-1], y), crps(x, y))
    assert np.allclose(crps(x + 3, y + 3), crps(x, y))
    assert np.allclose(crps(x[:1], y, fair=False), np.abs(x[0] - y))
    assert np.allclose(crps(np.stack([y] * 4), y), 0)
    for few, fair in ((x[:1], True), (x[:0], False)):
        with pytest.raises(DataError, match="number of members"):
            crps(few, y, fair)


# ------------------------------------------------------------------ neighbourhoods


def test_window_means_by_loops():
    field = np.random.default_rng(0).random((2, 6, 7))
    found = window_means(field, 3)
    assert found.shape == (2, 4, 5)
    for i, j in np.ndindex(4, 5):
        assert np.allclose(found[:, i, j], field[:, i : i + 3, j : j + 3].mean((1, 2)))
    for width in (0, 7):
        with pytest.raises(DataError, match=f"expected 1 to 6, found {width}"):
            window_means(field, width)


@pytest.mark.parametrize("width", [1, 4, 5, 20])
def test_fractions_skill_as_the_library_has_it(width):
    f, o = rain(1) >= 2, rain(2) >= 2
    error, reference = fss_sums(f, o, width)
    assert np.isclose(1 - error.sum() / reference.sum(), fss(f, o, [width]).item())
    assert fss_sums(o, o, width)[0].max() == 0


# ------------------------------------------------------------------ roughness


@pytest.mark.parametrize("amplitude", [0.1, 0.5, 1.0, 1.5])
def test_power_goes_with_the_square_of_the_amplitude(amplitude):
    waves = np.cos(2 * np.pi * np.arange(48) * 2 / 12)[None, None]
    truth, forecast = (
        np.broadcast_to(LOG_RAIN * np.expm1(2 + a * waves), (2, 48, 48)) for a in (1, amplitude)
    )
    assert np.allclose(power_ratio(forecast, truth, 2.0), amplitude**2, rtol=2e-3)


def test_power_of_known_pictures():
    truth, rough = TRUTHS[0], TRUTHS[0] * np.exp(np.random.default_rng(0).random((3, 32, 32)))
    assert np.allclose(power_ratio(truth, truth, 2.0), 1)
    assert np.allclose(power_ratio(np.stack([truth, truth]), truth, 2.0), 1)
    assert (power_ratio(BLURRED[0], truth, 2.0) < 0.7).all()
    assert (power_ratio(rough, truth, 2.0, band=(4, 8)) > 2).all()
    assert np.allclose(power_ratio(truth[:, ::-1], truth, 2.0), 1)  # a mirror is as rough
    assert np.isnan(power_ratio(truth, 0 * truth, 2.0)).all()


def test_power_where_it_was_seen():
    "What lies outside changes nothing, and a blur within is found."
    truth, seen = TRUTHS[0], np.zeros((3, 32, 32), bool)
    seen[:, 4:, :28] = True
    other = np.where(seen, BLURRED[0], 77).astype(np.float32)
    inside = power_ratio(BLURRED[0], truth, 2.0, seen=seen)
    assert np.allclose(power_ratio(other, truth, 2.0, seen=seen), inside)
    gaps = np.where(seen, truth, np.nan)
    assert np.allclose(power_ratio(BLURRED[0], gaps, 2.0), inside)
    assert (inside < 0.7).all()


def test_taper():
    inside = np.ones((30, 40), bool)
    weight = taper(inside)
    assert weight.min() > 0 and weight.max() == 1
    assert np.allclose(weight, weight[::-1]) and (weight[10:20, 10:30] == 1).all()
    inside[:, :20] = False
    assert (taper(inside)[:, :20] == 0).all() and taper(np.stack([inside, inside])).shape == (
        2,
        30,
        40,
    )


@pytest.mark.parametrize("km", [8, 12, 16, 24])
def test_spectrum_has_its_peak_at_the_wavelength(km):
    wave = LOG_RAIN * np.expm1(2 + np.cos(2 * np.pi * np.arange(48) * 2 / km))
    wavelength, power = power_spectrum(np.tile(wave, (2, 48, 1)), 2.0)
    assert power.shape == (2, len(wavelength)) and (np.diff(wavelength) < 0).all()
    assert wavelength[power[0].argmax()] == pytest.approx(km)


@pytest.mark.parametrize("band", [(16, 8), (1, 8), (8, 8)])
def test_impossible_bands(band):
    with pytest.raises(DataError, match="band"):
        power_ratio(TRUTHS[0], TRUTHS[0], 2.0, band)


# ------------------------------------------------------------------ borders


def test_border_ratio_by_hand():
    ramp = np.array([0.0, 1, 2, 3, 6, 7, 8, 9])
    for picture in (np.tile(ramp, (8, 1)), np.tile(ramp[:, None], (1, 8))):
        assert border_ratio(picture, 4) == 3
        assert border_ratio(5 * picture, 4) == pytest.approx(3)
    assert border_ratio(np.tile(np.arange(9.0), (9, 1)), 3) == pytest.approx(1)
    assert np.isnan(border_ratio(np.kron(np.eye(2), np.ones((4, 4))), 4))  # nothing within


def test_border_ratio_ignores_gaps():
    picture = np.tile(np.array([0.0, 1, 2, 3, 6, 7, 8, 9]), (8, 1))
    picture[2] = np.nan
    picture[5, 4] = np.nan
    assert 2.5 < border_ratio(picture, 4) < 3.5
    assert 0.8 < border_ratio(np.stack(TRUTHS), 8) < 1.2


@pytest.mark.parametrize("block", [1, 8, 100])
def test_blocks_without_borders(block):
    with pytest.raises(DataError, match="border_ratio: block"):
        border_ratio(np.zeros((8, 8)), block)


# ------------------------------------------------------------------ the printed table


def test_printed_rows():
    printed = pd.read_csv(PRINTED)
    rows = printed.pivot(index=["row", "method"], columns="score", values="printed")
    assert rows.shape == (5, 8) and not rows.isna().any().any()
    assert np.allclose(rows.precision + rows.FAR, 0.999)  # digits were dropped, not rounded
    assert np.allclose(2 * rows.CSI / (1 + rows.CSI), rows.F1, atol=0.001)
    assert printed.groupby("row")["column"].apply(list).map(lambda c: c == list(range(1, 9))).all()
