"Results of forecasts: four readings, counts of each atmosphere, exact text, scores."

import json

import numpy as np
import pytest
import torch

from sslpdl_nb import decide as deciding
from sslpdl_nb.baselines.protocol import Climatology, class_probabilities, toy
from sslpdl_nb.core import CLASS_EDGES, DataError, rain_class
from sslpdl_nb.experiments import scores as module
from sslpdl_nb.experiments.scores import (
    READINGS,
    Calibration,
    Reader,
    Result,
    contingency,
    grouped_confusion,
    judge,
    read,
    scores,
)
from sslpdl_nb.verify import brier, confusion, count_events, csi, miou

RATES = np.array([0.0, 1.0, 20.0])  # mm/h, one in each class
SHAPE = (12, 8, 10)  # samples, rows, columns


def some_forecast(seed, concentration=(8, 3, 1), weights=(1, 1, 1)):
    "Probabilities, and rain that was drawn from them; a few pixels are unknown."
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(concentration, size=SHAPE).transpose(0, 3, 1, 2)
    drawn = (rng.random((SHAPE[0], 1, *SHAPE[1:])) > np.cumsum(p, 1)).sum(1).clip(max=2)
    rain = np.where(rng.random(SHAPE) < 0.05, np.nan, RATES[drawn])
    p = p * np.reshape(weights, (3, 1, 1))
    return (p / p.sum(1, keepdims=True)).astype(np.float32), rain


def some_result(seed=0, groups=None):
    valid, test = some_forecast(seed), some_forecast(seed + 100)
    groups = np.arange(SHAPE[0]) // 3 if groups is None else groups
    return judge(*valid, *test, groups), test


# ------------------------------------------------------------------ calibration


def test_calibration_is_that_of_decide():
    "A last layer with the factor and shifts, and the log-probabilities, give the same."
    p, rain = some_forecast(0, weights=(1, 5, 30))

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Conv2d(3, 3, 1)
            self.head.weight.data = torch.eye(3)[:, :, None, None]
            self.head.bias.data.zero_()

        def forward(self, x):
            return self.head(x)

    model = Head()
    logs = torch.from_numpy(np.log(np.maximum(p, 1e-12)))
    found = deciding.calibrate(model, [dict(x=x, rain=r) for x, r in zip(logs, rain)], CLASS_EDGES)
    here = Calibration.fit(p, rain_class(rain))
    assert here.scale == pytest.approx(found["scale"], abs=1e-3)
    assert np.allclose(here.shift, found["shift"], atol=1e-3)
    changed = model(logs).softmax(1).detach().numpy()
    assert np.allclose(here.apply(p), changed, atol=1e-4)


def test_calibration_undoes_class_weights():
    p, rain = some_forecast(1, weights=(1, 5, 30))
    calibration = Calibration.fit(p, rain_class(rain))
    shift = np.array(calibration.shift) - calibration.shift[0]
    assert calibration.scale == pytest.approx(1, abs=0.2)
    assert np.allclose(shift, -np.log([1, 5, 30]), atol=0.6)
    assert calibration.after < calibration.before


def test_calibration_of_a_part_of_the_pixels(monkeypatch):
    p, rain = some_forecast(2)
    whole = Calibration.fit(p, rain_class(rain))
    monkeypatch.setattr(module, "PIXELS", 320)
    part = Calibration.fit(p, rain_class(rain))
    assert np.abs(whole.apply(p) - part.apply(p)).max() < 0.1
    assert module._stride(960, 10) == 3
    assert module._stride(640, 10) == 3  # two would leave out every other column
    assert module._stride(320, 10) == 1


def test_calibration_of_certain_and_of_borrowed_probabilities():
    "Zeros and ones stay finite; a broadcast array of doubles is neither changed nor refused."
    classes = rain_class(some_forecast(3)[1])
    certain = class_probabilities(np.maximum(classes, 0))
    assert np.isfinite(Calibration.fit(certain, classes).apply(certain)).all()
    row = np.broadcast_to(np.reshape([0.7, 0.2, 0.1], (1, 3, 1, 1)), (12, 3, 8, 10))
    same = Calibration.fit(row, classes).apply(row)
    frequency = np.bincount(classes[classes >= 0]) / (classes >= 0).sum()
    assert np.allclose(same[0, :, 0, 0], frequency, atol=0.01)


def test_calibration_without_observation_is_refused():
    with pytest.raises(DataError, match="observed pixels: expected at least one"):
        Calibration.fit(np.full((1, 3, 2, 2), 1 / 3), np.full((1, 2, 2), -1))


# ------------------------------------------------------------------ readings


def test_readings_by_their_definitions():
    (p, rain), (q, _) = some_forecast(4, weights=(1, 3, 9)), some_forecast(5, weights=(1, 3, 9))
    found, reader = read(p, rain, q), Reader.fit(p, rain)
    assert tuple(found) == READINGS
    calibrated = reader.calibration.apply(q)
    assert np.array_equal(found["argmax"], q.argmax(1))
    assert np.array_equal(found["argmax calibrated"], calibrated.argmax(1))
    expected = deciding.tune_probability_thresholds(reader.calibration.apply(p))
    assert np.array_equal(found["tuned"], deciding.decide(calibrated, expected))


def test_observed_thresholds_by_brute_force():
    p, rain = some_forecast(6)
    chosen = Reader.fit(p, rain).thresholds["tuned uncalibrated"]
    known = np.isfinite(rain)
    for q, edge, t in zip(np.moveaxis(deciding.exceedance(p), 1, 0), CLASS_EDGES, chosen):
        tried = {u: csi(count_events(q >= u, rain >= edge, known)) for u in np.arange(0, 1, 0.01)}
        assert csi(count_events(q >= t, rain >= edge, known)) > max(tried.values()) - 0.01


def test_an_event_that_never_happened_before():
    p, rain = some_forecast(7)
    reader = Reader.fit(p, np.minimum(rain, 1.0))
    assert all(0 < t <= 1 for pair in reader.thresholds.values() for t in pair)
    assert not (reader.classes(p)["tuned uncalibrated"] == 2).any()
    json.loads(json.dumps(reader.thresholds, allow_nan=False))


def test_nothing_is_learned_from_the_samples_that_are_read():
    valid, (q, _) = some_forecast(8), some_forecast(9)
    whole, half = read(*valid, q), read(*valid, q[:5])
    assert all(np.array_equal(whole[r][:5], half[r]) for r in READINGS)


def test_weights_change_argmax_and_nothing_else():
    "The probabilities of a rare event, as they are and with the weights 1, 5, 30."
    plain = [some_forecast(s, (20, 4, 1)) for s in (10, 11)]
    heavy = [some_forecast(s, (20, 4, 1), (1, 5, 30)) for s in (10, 11)]
    a, b = (read(*v, t[0]) for v, t in (plain, heavy))
    assert (a["argmax"] != b["argmax"]).mean() > 0.2
    for reading in ("tuned", "argmax calibrated"):
        assert (a[reading] != b[reading]).mean() < 0.01


# ------------------------------------------------------------------ counts


def test_counts_of_groups_are_those_of_verify():
    rng = np.random.default_rng(0)
    forecast, observed = rng.integers(0, 3, (12, 4, 5)), rng.integers(-1, 3, (12, 4, 5))
    groups = np.array([3, 3, 0, 0, 0, 2, 2, 3, 3, 3, 0, 2])  # 1 is empty
    tables = grouped_confusion(forecast, observed, groups)
    assert tables.shape == (4, 3, 3) and tables[1].sum() == 0
    for g in range(4):
        assert np.array_equal(tables[g], confusion(forecast[groups == g], observed[groups == g]))


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_counts_at_each_edge(n_classes):
    rng = np.random.default_rng(1)
    forecast, observed = rng.integers(0, n_classes, (2, 6, 7, 8))
    observed[0, 0] = -1
    tables = grouped_confusion(forecast, observed, np.arange(6) // 2, n_classes)
    for k in range(n_classes - 1):
        found = contingency(tables, k)
        assert found.hits.shape == (3,)
        assert found.pooled() == count_events(forecast > k, observed > k, observed >= 0)
        assert contingency(tables.sum(0), k) == found.pooled()
    for k in (-1, n_classes - 1):
        with pytest.raises(DataError, match="number of the edge"):
            contingency(tables, k)


# ------------------------------------------------------------------ results


def test_result_by_hand():
    "Two atmospheres of one sample with two pixels; everything can be counted."
    p = np.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]])
    p = p.reshape(2, 1, 2, 3).transpose(0, 3, 1, 2)
    rain = np.array([[[1.0, 20.0]], [[np.nan, 0.0]]])
    result = judge(p, rain, p, rain, np.array([7, 4]), climate=(0.5, 0.25))
    assert result.atmospheres.tolist() == [4, 7]
    assert result.confusion["argmax"][0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert result.confusion["argmax"][1].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert result.pixels.tolist() == [1, 2]
    assert result.events(0).tolist() == [0, 2] and result.events(1).tolist() == [0, 1]
    assert np.allclose(result.brier["raw"], [[0.16, 0.01], [0.01 + 0.49, 0.01 + 0.81]])
    assert np.allclose(result.climate_brier(), [[0.25, 0.0625], [0.5, 0.0625 + 0.5625]])
    row = scores(result)["argmax", 0.1]
    assert (row["CSI"], row["bias"], row["precision"], row["recall"]) == (0.5, 0.5, 1, 0.5)
    assert row["Brier"] == pytest.approx(0.66 / 3)
    assert row["Brier skill"] == pytest.approx(1 - 0.66 / 0.75)
    assert row["mIoU"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_scores_are_those_of_the_fields():
    result, (q, rain) = some_result(20)
    classes = read(*some_forecast(20), q)
    calibrated = deciding.exceedance(result.reader.calibration.apply(q))
    known = np.isfinite(rain)
    for (reading, edge), row in scores(result).items():
        k = CLASS_EDGES.index(edge)
        c = count_events(classes[reading] > k, rain >= edge, known)
        assert row["CSI"] == csi(c)
        assert row["mIoU"] == miou(confusion(classes[reading], rain_class(rain)))
        kind = calibrated if reading in ("tuned", "argmax calibrated") else deciding.exceedance(q)
        seen = np.where(known, rain >= edge, np.nan)
        assert row["Brier"] == pytest.approx(brier(kind[:, k], seen), abs=1e-6)


def test_climatology_has_no_skill_and_certainty_all_of_it():
    t = toy("humid", atmospheres=9, size=(16, 16))
    rain = [d.observed_rain().numpy() for d in (t.valid, t.test)]
    mean = Climatology().fit(t.valid, t.valid)
    p = [mean.predict(d) for d in (t.valid, t.test)]
    groups = np.arange(len(t.test)) // 4
    for row in scores(judge(p[0], rain[0], p[1], rain[1], groups)).values():
        assert row["Brier skill"] == pytest.approx(0, abs=1e-4)
    p = [class_probabilities(rain_class(r)) for r in rain]
    for row in scores(judge(p[0], rain[0], p[1], rain[1], groups)).values():
        assert row["CSI"] == row["mIoU"] == 1 and row["Brier skill"] > 0.999


def test_the_order_of_samples_does_not_matter():
    valid, (q, rain) = some_forecast(30), some_forecast(31)
    groups = np.arange(SHAPE[0]) // 3
    shuffled = np.random.default_rng(0).permutation(SHAPE[0])
    a = judge(*valid, q, rain, groups)
    assert a == judge(*valid, q[shuffled], rain[shuffled], groups[shuffled])


def test_unknown_pixels_change_nothing():
    valid, (q, rain) = some_forecast(32), some_forecast(33)
    groups, other = np.arange(SHAPE[0]) // 3, q.copy()
    other[np.repeat(np.isnan(rain)[:, None], 3, axis=1)] = 1 / 3
    assert judge(*valid, q, rain, groups) == judge(*valid, other, rain, groups)


# ------------------------------------------------------------------ as text


@pytest.mark.parametrize("seed", range(5))
def test_text_and_back_is_exact(seed):
    result, _ = some_result(seed)
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = Result.from_dict(json.loads(text))
    assert again == result and json.dumps(again.to_dict()) == text
    assert str(scores(again)) == str(scores(result))  # NaN is not equal to itself
    assert again != some_result(seed + 50)[0]
    for name in result.brier:
        assert np.array_equal(result.brier[name], again.brier[name])


def test_a_large_result_stays_small():
    result, _ = some_result(0)
    many = {name: np.tile(t, (56, 1, 1)) * 97 for name, t in result.confusion.items()}
    sums = {name: np.tile(s, (56, 1)) * 97 for name, s in result.brier.items()}
    values = dict(edges=result.edges, climate=result.climate, reader=result.reader)
    large = Result(atmospheres=np.arange(224), confusion=many, brier=sums, **values)
    assert len(json.dumps(large.to_dict())) < 70_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("reader"),
        lambda d: d.pop("edges"),
        lambda d: d["confusion"].pop("argmax"),
        lambda d: d["confusion"].update(argmax="1 2 3"),
        lambda d: d["confusion"].update(tuned=d["confusion"]["tuned"].replace(" ", " x", 1)),
        lambda d: d["confusion"].update(other=d["confusion"]["tuned"]),
        lambda d: d["brier"].update(raw=""),
        lambda d: d["brier"].update(raw=None),
        lambda d: d["brier"].pop("raw"),
        lambda d: d.update(climate=[0.1]),
        lambda d: d["reader"]["calibration"].update(more=1),
        lambda d: d.update(atmospheres="0 1 2"),
        lambda d: d.update(confusion=[]),
    ],
)
def test_damaged_text_is_refused(damage):
    d = some_result(0)[0].to_dict()
    damage(d)
    with pytest.raises(DataError):
        Result.from_dict(d)


def test_readings_of_other_rain_are_refused():
    d = some_result(0)[0].to_dict()
    numbers = d["confusion"]["tuned"].split()
    numbers[0] = str(int(numbers[0]) + 1)
    d["confusion"]["tuned"] = " ".join(numbers)
    with pytest.raises(DataError, match="tuned: observed pixels of each class"):
        Result.from_dict(d)


def test_frame_has_all_counts():
    result, _ = some_result(1)
    frame = result.to_frame()
    assert len(frame) == 4 * 4 and set(frame.reading) == set(READINGS)
    tuned = frame[frame.reading == "tuned"]
    assert np.array_equal(tuned.atmosphere, result.atmospheres)
    assert np.array_equal(tuned.o2f1, result.confusion["tuned"][:, 2, 1])
    assert np.array_equal(tuned.brier_10, result.brier["calibrated"][:, 1])
    cells = [f"o{i}f{j}" for i in range(3) for j in range(3)]
    assert np.array_equal(frame[cells].sum(axis=1), frame.pixels)


# ------------------------------------------------------------------ bad input


def with_nan(p):
    p = p.copy()
    p[0, 0, 0, 0] = np.nan
    return p


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(p_test=lambda p: p[:, :2]), "test probabilities: shape"),
        (dict(p_test=lambda p: p[:5]), "test probabilities: shape"),
        (dict(p_valid=lambda p: p[..., :4]), "validation probabilities: shape"),
        (dict(p_test=with_nan), "test probabilities: expected 0 to 1"),
        (dict(p_valid=lambda p: p * 1.5), "validation probabilities"),
        (dict(p_valid=lambda p: p * 0.5), "validation probabilities: sum"),
        (dict(p_test=lambda p: -p), "test probabilities: expected 0 to 1"),
        (dict(rain_test=lambda r: r * np.nan), "test rain: observed pixels"),
        (dict(rain_valid=lambda r: r[0]), "validation rain: shape"),
        (dict(atmosphere=lambda g: g[:4]), "judge: atmospheres: expected one of 12 samples"),
    ],
)
def test_bad_input_is_refused(change, message):
    (p, rain), (q, seen) = some_forecast(0), some_forecast(1)
    values = dict(p_valid=p, rain_valid=rain, p_test=q, rain_test=seen, atmosphere=np.arange(12))
    for name, how in change.items():
        values[name] = how(values[name])
    with pytest.raises(DataError, match=message):
        judge(**values)
