"Studies of nowcasts: what a cell means, what it may not be, and that its record says everything."

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sslpdl_nb.core import DataError
from sslpdl_nb.experiments.runner import Study, results, run, table
from sslpdl_nb.nowcast.flow import lagrangian
from sslpdl_nb.nowcast.frames import OBSERVED, from_counts, make_sequences, open_sequences
from sslpdl_nb.nowcast.sky import PURE, RadarSky, Sky
from sslpdl_nb.nowcast.study import (
    NOWCASTS,
    SIMPLE,
    choose,
    compare,
    configuration,
    hidden_weather,
    judge_sequences,
    motions,
    mean_score,
    nowcast_options,
    pretraining,
    share_texts,
    simple_forecast,
    sky_of,
    unshare_texts,
    wind_speeds,
)
from sslpdl_nb.nowcast.verify import paired, score_interval

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
SMALL = Sky(n=64, crop=32)
SPAT = dict(method="spat", moved=False, guess="last", width=32, block=8)
TINY = dict(steps=2, batch=2, width=8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("sky") / "sky.zarr"
    return make_sequences(path, (12, 3, 4), 5, SMALL, progress=False)


@pytest.fixture(scope="module")
def test(archive):
    return open_sequences(archive, "test")


def study_of(folder, archive, text):
    path = folder / "some.yaml"
    head = f"""
trial: sslpdl_nb.nowcast.study:NOWCASTS
title: Some
question: Which?
expected: None.
archive: {{sky: {archive}}}
base: {{archive: sky, seed: 0}}
"""
    path.write_text(head + text)
    return Study.load(path)


@pytest.fixture(scope="module")
def finished(archive, tmp_path_factory):
    "A study of all kinds of cells, run."
    study = study_of(
        tmp_path_factory.mktemp("study"),
        archive,
        """
budget: {steps: 2, batch: 2, width: 8, sequences: 6}
methods: {spat: {moved: false, guess: last, width: 32, block: 8}}
cells:
  - {method: lagrangian}
  - {method: ideal, members: 3}
  - {method: unet}
  - {method: unet, privileged: true}
  - {method: spat, test_mask: 0.5}
  - {method: spat, pretrain: {task: future, sequences: 8, steps: 1}}
  - {method: spat, pretrain: {task: forecast, sequences: 8, steps: 1}}
""",
    )
    run(study)
    return study


# ------------------------------------------------------------------ cells


def test_options_belong_to_their_method():
    assert set(nowcast_options("sprog")) == {"method", "archive", "seed", "members"}
    assert {"steps", "pretrain", "privileged", "loss"} <= set(nowcast_options("unet"))
    assert not {"name", "network", "hints"} & set(nowcast_options("unet"))
    with pytest.raises(DataError, match="nowcast study: method: expected one of"):
        nowcast_options("convlstm")


def test_configuration_of_a_cell():
    config = configuration(dict(method="unet", steps=7, betas=[0.9, 0.95], privileged=True))
    assert (config.network, config.steps, config.betas, config.hints) == ("unet", 7, (0.9, 0.95), 3)
    with pytest.raises(DataError, match="NowcastConfig: steps"):
        configuration(dict(method="unet", steps=0))


@pytest.mark.parametrize(
    "change",
    [
        dict(seed="0"),
        dict(sequences=2.5),
        dict(filter="wet"),
        dict(test_mask=1.0),
        dict(method="unet", moved=True, guess="moved", test_mask=0.5),
        dict(pretrain=dict(task="colour")),
        dict(pretrain=dict(epochs=3)),
        dict(pretrain=dict(task="order", steps=0)),
    ],
    ids=str,
)
def test_cells_that_cannot_be(change):
    with pytest.raises(DataError):
        NOWCASTS.check(dict(archive="sky", seed=0, **SPAT) | change)
    NOWCASTS.check(dict(archive="sky", seed=0, **SPAT))


def test_a_pretraining_is_like_its_cell_but_for_its_length():
    cell = dict(archive="sky", seed=3, sequences=60, steps=9, lr=0.1, translate="warp", **SPAT)
    own = pretraining(cell | dict(pretrain=dict(sequences=600, steps=5)))
    assert own["sequences"] == 600 and own["pretrain_steps"] == 5 and own["seed"] == 3
    assert "steps" not in own and "lr" not in own and own["translate"] == "warp"
    forecast = pretraining(cell | dict(pretrain=dict(task="forecast", steps=5)))
    assert forecast["steps"] == 5 and forecast["sequences"] == 60


# ------------------------------------------------------------------ data


def test_smaller_sets_are_part_of_larger_ones(archive):
    train = open_sequences(archive, "train")
    sets = [set(choose(train, n, 1)["seed"].values[:, 2].tolist()) for n in (2, 5, None)]
    assert sets[0] < sets[1] < sets[2] == set(range(12))
    for wrong in (0, 13, 2.0):
        with pytest.raises(DataError, match="choose: sequences"):
            choose(train, wrong)


def test_filtered_sequences_keep_their_order(archive):
    train = open_sequences(archive, "train")
    wet = choose(train, filter="input")
    share = (from_counts(wet["radar"].values[:, OBSERVED - 1]) >= 0.1).mean((1, 2))
    assert (share >= 0.5).all() and 0 < wet.sizes["sequence"] < 12
    few = choose(train, 1, filter="input")["seed"].values[0, 2]
    order = np.random.default_rng(0).permutation(12).tolist()
    passed = wet["seed"].values[:, 2].tolist()
    assert few == min(passed, key=order.index)


def test_rain_falls_where_the_hidden_field_says(tmp_path):
    sky = replace(PURE, n=64, crop=32, noise=0.0)
    ds = open_sequences(make_sequences(tmp_path / "a.zarr", (2, 1, 1), 0, sky, False), "train")
    fields, rain = hidden_weather(ds), from_counts(ds["radar"].values[:, OBSERVED - 1])
    assert fields.shape == (2, 3, 32, 32) and fields.dtype == np.float32
    assert not fields[:, 2].any(), "no cells in this sky"
    for field, now in zip(fields[:, 0], rain):
        assert np.diff(now.ravel()[np.argsort(field, axis=None)]).min() > -0.13
    assert sky_of(ds) == sky


def test_the_drive_is_ahead_of_the_field(tmp_path):
    sky = replace(PURE, n=64, crop=32, speed=0.01, noise=0.0)  # air that hardly moves
    ds = open_sequences(make_sequences(tmp_path / "a.zarr", (6, 1, 1), 0, sky, False), "train")
    field, drive, _ = np.moveaxis(hidden_weather(ds), 1, 0)
    change = ds["radar"].values[:, OBSERVED + 5].astype(float) - ds["radar"].values[:, OBSERVED - 1]
    wet = ds["radar"].values[:, OBSERVED - 1] > 40
    assert np.corrcoef((drive - field)[wet], change[wet])[0, 1] > 0.2


# ------------------------------------------------------------------ forecasts and counts


def test_simple_forecasts(test):
    observed = from_counts(test["radar"].values[0, :OBSERVED])
    seed, radar_sky = test["seed"].values[0].tolist(), RadarSky(SMALL)
    made = {m: simple_forecast(m, observed, seed, radar_sky, members=2) for m in SIMPLE}
    for method, rain in made.items():
        expected = (2, 12, 32, 32) if method in ("steps", "ideal") else (12, 32, 32)
        assert rain.shape == expected and np.isfinite(rain).all() and (rain >= 0).all(), method
    assert np.array_equal(made["lagrangian"], np.nan_to_num(lagrangian(observed)))
    again = simple_forecast("ideal", observed, seed, radar_sky, members=2)
    assert np.array_equal(made["ideal"], again)
    with pytest.raises(DataError, match="simple_forecast: expected one of"):
        simple_forecast("optical flow", observed, seed, radar_sky)


def test_perfect_and_dry_forecasts(test):
    truth = from_counts(test["truth"].values)
    perfect = judge_sequences(truth.__getitem__, test)
    assert perfect.lead_times.tolist() == [5, 15, 30, 60]
    assert score_interval(perfect, edge=0.5, lead_time=30)["value"] == 1
    assert score_interval(perfect, "log RMSE", lead_time=60)["value"] == 0
    dry = judge_sequences(np.zeros_like(truth).__getitem__, test)
    assert score_interval(dry, edge=0.5, lead_time=30)["value"] == 0


def test_speeds_of_a_known_wind(tmp_path):
    sky = replace(PURE, n=64, crop=32, speed=10.0, speed_spread=0.0, noise=0.0)
    ds = open_sequences(make_sequences(tmp_path / "a.zarr", (4, 1, 1), 0, sky, False), "train")
    assert np.median(wind_speeds(motions(ds), 2.0)) == pytest.approx(36, rel=0.2)  # 10 m/s


# ------------------------------------------------------------------ records


def test_every_kind_of_cell_runs_and_is_run_once(finished):
    found = results(finished)
    assert len(found) == 7
    learned = [one for one in found if one.cell["method"] in ("unet", "spat")]
    assert all(one.record["parameters"] > 0 for one in learned)
    assert [len(one.record["speeds"]) for one in found] == [4] * 7
    before = [row["record"]["finished"] for row in run(finished)]
    assert before == [row["record"]["finished"] for row in run(finished)]
    assert not list(finished.folder.glob("*.state")) + list(finished.folder.glob("*.safetensors"))
    frame = table(finished, write=False)
    assert len(frame) == 7 * 3 * 4
    assert frame[frame["edge"] == 0.5]["CSI"].between(0, 1).all()
    assert "lagrangian" in NOWCASTS.summary(frame) and "CSI at 2" in NOWCASTS.summary(frame)


def test_hidden_tests_differ_from_plain_ones(archive, tmp_path, finished):
    hidden = next(one for one in results(finished) if "test_mask" in one.cell)
    cell = {k: v for k, v in hidden.cell.items() if k != "test_mask"}
    plain = NOWCASTS.run(cell, dict(sky=archive), tmp_path / "cells")
    assert NOWCASTS.result(NOWCASTS.compact(plain)) != hidden.result


def test_the_same_cell_gives_the_same_counts(archive, tmp_path, finished):
    one = next(x for x in results(finished) if x.cell["method"] == "unet")
    again = NOWCASTS.run(one.cell, dict(sky=archive), tmp_path / "cells")
    assert NOWCASTS.result(NOWCASTS.compact(again)) == one.result


def test_a_cell_that_was_stopped_goes_on(archive, tmp_path, monkeypatch):
    from sslpdl_nb.nowcast import study

    cell = dict(archive="sky", seed=0, method="unet", **TINY)
    whole = NOWCASTS.run(cell, dict(sky=archive), tmp_path / "a")

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "judge_sequences", stop)
        with pytest.raises(KeyboardInterrupt):
            NOWCASTS.run(cell, dict(sky=archive), tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.json"))
    again = NOWCASTS.run(cell, dict(sky=archive), tmp_path / "b")
    assert again["result"] == whole["result"]


def test_identity_knows_cell_archive_and_code(archive, tmp_path):
    cell = dict(archive="sky", seed=0, method="unet", sequences=6)
    name = NOWCASTS.identity(cell, dict(sky=archive))["name"]
    assert name != NOWCASTS.identity(cell | dict(seed=1), dict(sky=archive))["name"]
    other = make_sequences(tmp_path / "b.zarr", (12, 3, 4), 6, SMALL, progress=False)
    assert name != NOWCASTS.identity(cell, dict(sky=other))["name"]
    assert {"nowcast.study", "nowcast.sky", "train"} <= set(NOWCASTS.code(cell)["modules"])
    for wrong in (dict(sequences=13), dict(pretrain=dict(sequences=13), **SPAT)):
        with pytest.raises(DataError, match="training sequences of"):
            NOWCASTS.identity(cell | wrong, dict(sky=archive))


def test_a_missing_archive_comes_with_a_command_that_makes_it(tmp_path):
    command = NOWCASTS.command(dict(folder=tmp_path / "sky", size=[2, 1, 1], seed=3))
    code = re.fullmatch(r'python -c "(.*)"', command)[1]
    exec(code.replace("seed=3)", "seed=3, progress=False)"), {})
    ds = open_sequences(tmp_path / "sky")
    assert ds.attrs["sequences"] == [2, 1, 1] and ds.attrs["seed"] == 3


def test_committed_records_are_whole(finished):
    records = [one.record for one in results(finished)]
    content = json.loads(json.dumps(share_texts(records)))
    assert unshare_texts(content) == records
    results_of = [r["result"] | r["result"]["sums"] for r in records]
    kept = sum(len(v) for r in results_of for v in r.values() if isinstance(v, str))
    assert len("".join(content["texts"])) < kept


# ------------------------------------------------------------------ comparisons


def test_comparisons_of_single_seeds_are_those_of_verify(finished):
    a, b = (one.result for one in results(finished)[:2])
    for score, options in (("CSI", dict(edge=0.5, lead_time=30)), ("log MSE", dict(lead_time=60))):
        found, known = (
            compare([a], [b], score, **options),
            paired(a, b, score, **options, tuned=True),
        )
        for name in ("difference", "low", "high"):
            assert found[name] == pytest.approx(known[name], nan_ok=True)
        assert found["seeds"] == pytest.approx((known["difference"],))


def test_seeds_are_averaged_before_sequences_are_compared(finished):
    a, b, c = (one.result for one in results(finished)[:3])
    both, same = compare([a, b], [c]), compare([a, a], [c])
    assert same["difference"] == pytest.approx(compare([a], [c])["difference"])
    assert len(both["seeds"]) == 2
    assert compare([c], [a, b])["difference"] == pytest.approx(-both["difference"])
    with pytest.raises(DataError, match="compare: seeds of both"):
        compare([a, b], [b, c, a])
    with pytest.raises(DataError, match="compare: sequences of both"):
        compare([a], [b.select([0, 1, 2])])


def test_means_of_a_single_seed_are_its_scores(finished):
    one = results(finished)[0].result
    for score in ("CSI", "log RMSE", "power ratio"):
        found = mean_score([one], score, edge=0.5, lead_time=15)
        known = score_interval(one, score, edge=0.5, lead_time=15, tuned=True)
        for name in ("value", "low", "high"):
            assert found[name] == pytest.approx(known[name], nan_ok=True)
        assert found["seeds"] == pytest.approx((known["value"],))
    two = mean_score([one, results(finished)[2].result], "log RMSE", lead_time=15)
    assert min(two["seeds"]) <= two["value"] <= max(two["seeds"])


# ------------------------------------------------------------------ the files


FILES = sorted(FOLDER.glob("nowcast_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_study_can_be_read_and_learns_with_three_seeds(path):
    study = Study.load(path)
    arms = {}
    for cell in study.cells():
        arm = json.dumps({k: v for k, v in cell.items() if k != "seed"}, sort_keys=True)
        by_heart = cell.get("steps") == 6000 and cell["sequences"] == 1200
        once = cell["method"] in SIMPLE or by_heart
        arms.setdefault((once, arm), set()).add(cell["seed"])
    assert all(seeds == ({0} if once else {0, 1, 2}) for (once, _), seeds in arms.items())
    assert len(arms) > 2
    (fast,) = Study.load(path, fast=True).cells()
    assert fast.get("steps", 0) <= 3 and fast.get("sequences", 0) <= 8
