"Diagnosis: the ceiling by known answers, parts of a way, worth in atmospheres, sentences."

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from sslpdl_nb.baselines.protocol import class_probabilities, folds, toy
from sslpdl_nb.core import DataError, get_config, rain_class
from sslpdl_nb.experiments.claims import Claim
from sslpdl_nb.experiments.diagnosis import (
    adjusted,
    by_name,
    ceiling,
    ensemble_probabilities,
    gap_share,
    label_equivalents,
    name_of,
    read_ceiling,
    reading_scores,
    reading_sentence,
    spread,
    verdicts,
    way_in_words,
    worth,
)
from sslpdl_nb.experiments.runner import Study
from sslpdl_nb.experiments.scores import READINGS, judge, scores

CONFIG = get_config("small", image_size=(16, 16))
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weather():
    return toy("humid", atmospheres=30, size=(16, 16))


def write_ensemble(folder, samples, probability, **changes):
    "An ensemble file for the samples of a toy; times in another order."
    times = samples["reference_time"].values
    hours = np.unique(samples["lead_time"].values)
    field = np.full((len(times), len(hours), *probability.shape[1:]), np.nan, np.float32)
    j = np.searchsorted(hours, samples["lead_time"].values)
    field[np.arange(len(times)), j] = probability
    back = np.arange(len(times))[::-1]
    coords = dict(
        time=times[back],
        lead_time=(hours * 3600e9).astype("timedelta64[ns]"),
        edge=[0.1, 10.0],
        y=samples["y"].values,
        x=samples["x"].values,
    )
    dims = ("time", "lead_time", "edge", "y", "x")
    ds = xr.Dataset(dict(probability=(dims, field[back])), coords | changes)
    ds.to_netcdf(folder / "perfect_model_ensemble.nc")
    return ds


def exceeded(rain):
    return np.stack([rain >= 0.1, rain >= 10], 1).astype(np.float32)


# ------------------------------------------------------------------ the ceiling


def test_ensemble_that_knows_the_rain_is_perfect(tmp_path, weather):
    rain = weather.test.observed_rain().numpy()
    write_ensemble(tmp_path, weather.test.samples, exceeded(rain))
    p = ensemble_probabilities(tmp_path, weather.test.samples)
    assert np.array_equal(p.argmax(1), rain_class(rain))
    assert np.allclose(p.max(1), (128 + 1 / 3) / 129) and np.allclose(p.sum(1), 1)
    result = ceiling(tmp_path, weather, CONFIG)
    assert result.atmospheres.tolist() == list(range(10))
    for edge in CONFIG.edges:
        assert scores(result)["tuned", edge]["CSI"] == 1
        assert scores(result)["tuned", edge]["Brier skill"] == pytest.approx(1, abs=1e-3)
    observed = judge(p, rain, p, rain, np.arange(len(rain)) // 4).confusion["argmax"].sum(2)
    assert np.array_equal(result.confusion["argmax"].sum(2), observed)


def test_each_half_is_cut_as_the_other_half_says(tmp_path, weather):
    "Half by half, by hand."
    rain = weather.test.observed_rain().numpy()
    half = folds(weather.test, 2, 0)
    noise = np.random.default_rng(0).random((len(rain), 1, 16, 16)) < 0.3
    p = np.where(noise, 0.5, 0.9 * exceeded(rain)).astype(np.float32)
    p = np.minimum.accumulate(p, 1)
    write_ensemble(tmp_path, weather.test.samples, p)
    result = ceiling(tmp_path, weather, CONFIG)
    parts = []
    full = ensemble_probabilities(tmp_path, weather.test.samples)
    for k in range(2):
        other, mine = half != k, half == k
        parts.append(
            judge(full[other], rain[other], full[mine], rain[mine], np.arange(mine.sum()) // 4)
        )
    expected = sum(one.confusion["tuned"].sum(0) for one in parts)
    assert np.array_equal(result.confusion["tuned"].sum(0), expected)
    assert np.isclose(
        result.brier["calibrated"].sum(), sum(one.brier["calibrated"].sum() for one in parts)
    )


def test_ensembles_of_something_else_are_refused(tmp_path, weather):
    with pytest.raises(DataError, match="perfect_model_ensemble.zarr or .nc"):
        ensemble_probabilities(tmp_path, weather.test.samples)
    p = exceeded(weather.test.observed_rain().numpy())
    write_ensemble(tmp_path, weather.test.samples, p)
    with pytest.raises(DataError, match="time: expected also"):
        ensemble_probabilities(tmp_path, weather.valid.samples)
    with pytest.raises(DataError, match="edges, mm/h: expected .0.1, 5.0."):
        ensemble_probabilities(tmp_path, weather.test.samples, (0.1, 5.0))
    late = weather.test.samples.assign_coords(lead_time=weather.test.samples["lead_time"] + 1)
    with pytest.raises(DataError, match="lead_time: expected also 25.0"):
        ensemble_probabilities(tmp_path, late)
    moved = weather.test.samples.assign_coords(x=weather.test.samples["x"] + 15e3)
    with pytest.raises(DataError, match="x: expected the grid of the samples"):
        ensemble_probabilities(tmp_path, moved)
    p[0] = np.nan
    (tmp_path / "perfect_model_ensemble.nc").unlink()
    write_ensemble(tmp_path, weather.test.samples, p)
    with pytest.raises(DataError, match="expected of test atmospheres"):
        ensemble_probabilities(tmp_path, weather.test.samples)


def test_ensembles_of_another_seed_are_refused(tmp_path, weather):
    p = exceeded(weather.test.observed_rain().numpy())
    ds = write_ensemble(tmp_path, weather.test.samples, p)
    (tmp_path / "perfect_model_ensemble.nc").unlink()
    ds.assign_attrs(seed=1).to_netcdf(tmp_path / "perfect_model_ensemble.nc")
    with pytest.raises(DataError, match="seed of the archive: expected 0, found 1"):
        ensemble_probabilities(tmp_path, weather.test.samples.assign_attrs(seed=0))


def test_kept_ceilings_that_were_damaged(tmp_path):
    path = tmp_path / "ceiling.json"
    assert read_ceiling(path) is None
    for text in ("{", "[]", '{"result": {"edges": [1]}}'):
        path.write_text(text)
        with pytest.raises(DataError, match="what write_ceiling writes"):
            read_ceiling(path)


# ------------------------------------------------------------------ parts of a way


def steps(seed=0, groups=40):
    "Climatology, half of the way in probability, the truth."
    rain = np.random.default_rng(seed).choice([0.0, 1.0, 20.0], (groups, 4, 4), p=[0.7, 0.2, 0.1])
    truth = class_probabilities(rain_class(rain))
    usual = truth.mean((0, 2, 3)).reshape(3, 1, 1)
    found = []
    for a in (0.0, 0.5, 1.0):
        p = (usual + a * (truth - usual)).astype(np.float32)
        found.append(judge(p, rain, p, rain, np.arange(groups)))
    return found


BRIER = dict(score="Brier skill", reading="tuned uncalibrated")


def test_parts_of_a_way():
    low, half, top = steps()
    for one, expected in ((low, 0), (half, 0.75), (top, 1)):
        part = gap_share(one, low, top, **BRIER)
        assert part["value"] == pytest.approx(expected, abs=1e-4) and not part["reason"]
    part = gap_share([half, half], low, [top, top, top], **BRIER)
    assert part["low"] <= 0.75 <= part["high"] and part["blocks"] == 40
    assert way_in_words(part).startswith("0.75 of the way (0.7")


def test_no_part_of_an_uncertain_way():
    low, half, top = steps()
    for floor, ceil in ((low, low), (top, low)):
        part = gap_share(half, floor, ceil, **BRIER)
        assert np.isnan(part["value"]) and "not certain" in way_in_words(part)
    with pytest.raises(DataError, match="same observed pixels"):
        gap_share(steps(seed=1)[1], low, top)


# ------------------------------------------------------------------ worth in atmospheres


@pytest.mark.parametrize(
    "curve, value, expected",
    [
        ([0.1, 0.2, 0.3], 0.25, 48),
        ([0.1, 0.2, 0.3], 0.2, 24),
        ([0.1, 0.2, 0.3], 0.1, 6),
        ([0.1, 0.2, 0.3], 0.0, 6),
        ([0.1, 0.2, 0.3], 0.3, 96),
        ([0.1, 0.2, 0.3], 0.301, np.inf),
        ([0.1, 0.26, 0.22], 0.24, 24),  # levelled at 0.24
        ([0.1, 0.26, 0.22], 0.17, 12),
        ([0.1, 0.26, 0.22], 0.25, np.inf),
        ([0.2, 0.2, 0.2], 0.2, 6),
    ],
)
def test_label_equivalents(curve, value, expected):
    assert label_equivalents((6, 24, 96), curve, value) == pytest.approx(expected)


def test_label_equivalents_invert_a_line_in_the_logarithm():
    sizes = np.array([6, 24, 96, 384, 1536])
    curve = 0.1 * np.log(sizes)
    for n in (7.0, 100.0, 1500.0):
        assert label_equivalents(sizes, curve, 0.1 * np.log(n)) == pytest.approx(n)


@pytest.mark.parametrize(
    "sizes, curve, value",
    [([6, 6], [0, 1], 0.5), ([], [], 0.5), ([0, 6], [0, 1], 0.5), ([6, 24], [0], 0.5)]
    + [([6, 24], [0, np.nan], 0.5), ([6, 24], [0, 1], np.nan)],
)
def test_label_equivalents_of_nonsense(sizes, curve, value):
    with pytest.raises(DataError, match="label_equivalents: (sizes|scores)"):
        label_equivalents(sizes, curve, value)


def test_worth_in_words():
    args = (6, 24, 96), (0.1, 0.2, 0.3), 24
    assert worth(*args, 0.25) == "worth 48 atmospheres, 2.0 times as many"
    assert worth(*args, 0.4) == "worth more than 96 atmospheres"
    assert worth(*args, 0.05) == "worth fewer than 6 atmospheres"


# ------------------------------------------------------------------ names and sentences


def a_claim(difference=0.03, low=0.01, high=0.05, **changes):
    values = dict(a="a", b="b", score="CSI", edge=10.0, level=0.95, atmospheres=40)
    values |= dict(effective=20.0, seeds=(0.03,), p=0.01)
    values |= dict(p_permutation=0.01, p_diebold_mariano=0.01)
    return Claim(difference=difference, low=low, high=high, **values | changes)


UNSURE = dict(low=-0.01)


def test_sentences_about_two_readings():
    sure, unsure = a_claim(), a_claim(**UNSURE)
    worse = a_claim(-0.03, -0.05, -0.01)
    for pair, words in (
        ((sure, unsure), "appears by argmax and vanishes when tuned"),
        ((sure, worse), "appears by argmax and vanishes when tuned"),
        ((sure, sure), "is there by argmax and when tuned"),
        ((unsure, sure), "shows only when tuned"),
        ((worse, unsure), "is certain in neither reading"),
    ):
        assert words in reading_sentence(*pair)
    assert "CSI at 10 mm/h +0.030 by argmax, -0.030 tuned" in reading_sentence(sure, worse)
    miou = replace(sure, score="mIoU")
    assert ": mIoU +0.030 by argmax" in reading_sentence(miou, miou)


def test_verdicts_in_one_sentence():
    found = [a_claim(a="x"), a_claim(-0.1, -0.2, -0.05, a="y"), a_claim(a="z", **UNSURE)]
    text = verdicts(found)
    assert "certainly better: x; certainly worse: y; no certain difference: 1 of 3." in text
    assert "certainly better: none; no certain difference: 1 of 1." in verdicts(found[2:])
    assert "better: raw tuned;" in verdicts([a_claim(a="raw, tuned")])  # commas part the names
    with pytest.raises(DataError, match="at least one"):
        verdicts([])


def test_many_claims_are_harder_to_make():
    found = adjusted([a_claim(p=p) for p in (0.03, 0.5, 0.6, np.nan)])
    assert [c.comparisons for c in found] == [4] * 4
    assert np.allclose([c.q for c in found], [0.09, 0.6, 0.6, np.nan], equal_nan=True)
    assert found[0].verdict == "no certain difference"
    assert adjusted([a_claim(p=0.001)])[0].verdict == "better"
    assert np.isnan(adjusted([a_claim(p=np.nan)])[0].q)


def test_names_and_seeds():
    base = dict(method="unet", seed=0, loss="mixed", atmospheres=6, steps=3, archive="a")
    assert name_of(base) == "U-Net, loss mixed"
    assert name_of(base, known=("loss",)) == "U-Net"
    other = dict(method="my:Own", pretrain={"seed": 0}, hide=["u500"], class_weights=[1.0, 1.5])
    assert name_of(other) == "my:Own, pre-trained, class weights 1 1.5, hide u500"
    runs = [SimpleNamespace(cell=base | dict(seed=s), result=s) for s in (2, 0, 1)]
    assert by_name(runs) == {"U-Net, loss mixed": [0, 1, 2]}
    with pytest.raises(DataError, match="seed 2: expected 1, found more"):
        by_name([*runs, runs[0]])


def test_no_two_cells_of_a_study_share_a_name():
    for name in ("table1", "labels", "perfect", "learning_curves"):
        cells = Study.load(ROOT / "experiments" / f"{name}.yaml").cells()
        kinds = ("archive", "atmospheres", "seed")
        names = [(name_of(c), *(c.get(k) for k in kinds)) for c in cells]
        assert len(set(names)) == len(names), name


def test_spread_over_methods():
    low, half, top = steps()
    found = reading_scores({"low": low, "seeds": [top, top]}, 10.0)
    assert found["seeds"] == dict.fromkeys(READINGS, 1.0) and found["low"]["argmax"] == 0
    s = spread(found)["argmax"]
    assert (s["low"], s["high"], s["range"]) == (0, 1, 1) and s["sd"] == pytest.approx(0.5**0.5)
    with pytest.raises(DataError, match="forecasts: expected at least 2, found 1"):
        spread({"low": found["low"]})
