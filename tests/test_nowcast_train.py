"Training of nowcasts: configurations, checkpoints, and trainings that go on."

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from moving_rain import SIZE, moving_rain, sequences_of
from torch import nn

from sslpdl_nb import train as loop
from sslpdl_nb.checkpoint import load_checkpoint, save_checkpoint
from sslpdl_nb.core import CheckpointError, DataError
from sslpdl_nb.nowcast.frames import MISSING, from_counts
from sslpdl_nb.nowcast.networks import (
    network,
)
from sslpdl_nb.nowcast.tasks import (
    FrameDataset,
    Nowcast,
)
from sslpdl_nb.nowcast.train import (
    NOWCAST_PRESETS,
    NowcastConfig,
    build_network,
    build_spark,
    forecast,
    forecast_frames,
    get_nowcast_config,
    load_nowcast,
    pretrain_frames,
    train_nowcast,
    tune_factors,
)
from sslpdl_nb.train import evaluate, loaders

TINY = get_nowcast_config("small", width=8, steps=4, batch=2, pretrain_steps=4, pretrain_batch=2)
SPAT = replace(TINY, network="spat", width=32, moved=False, guess="none")


@pytest.fixture(scope="module")
def rain():
    return moving_rain()


@pytest.fixture(scope="module")
def data(rain):
    return FrameDataset(rain, moved=True)


@pytest.fixture(scope="module")
def plain(rain):
    return FrameDataset(rain)


def equal(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# ------------------------------------------------------------------ configuration


def test_presets_describe_networks():
    sizes = {}
    for name, config in NOWCAST_PRESETS.items():
        with torch.device("meta"):
            net = build_network(config)
        sizes[name] = sum(p.numel() for p in net.parameters())
        assert (net.in_frames, net.out_frames) == config.frames and config.name == name
    assert sizes["small"] < sizes["course"] < 1e6
    assert sizes["paper"] == pytest.approx(96.5e6, rel=0.01)
    assert get_nowcast_config("course", fast=True).steps == 8


def test_paper_has_the_lengths_of_the_paper():
    paper = get_nowcast_config("paper")
    assert paper.steps == 1600 * 30 and paper.pretrain_steps == 1600 * 45
    assert paper.batch * 30 >= 5734 > paper.batch * 29
    assert paper.pretrain_batch * 45 >= 5734 > paper.pretrain_batch * 44
    assert paper.lr == pytest.approx(2e-4 * paper.batch / 256)
    assert paper.pretrain_lr == pytest.approx(2e-4 * paper.pretrain_batch / 256)


WRONG = [
    dict(network="convlstm"),
    dict(loss="mae"),
    dict(precision="float16"),
    dict(moved=1),
    dict(steps=0),
    dict(batch=2.0),
    dict(lr=0.0),
    dict(lr=float("nan")),
    dict(warmup=1.0),
    dict(mask_ratio=0),
    dict(mask_ratio=1.0),
    dict(frames=(12, 13)),
    dict(frames=(0, 12)),
    dict(frames=[12, 12]),
    dict(betas=(0.9,)),
    dict(width=-1),
    dict(pretext="colour"),
    dict(moved=False),  # the first guess needs moved frames
    dict(network="spat", denormalise="mean"),  # with a first guess
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_configuration_refuses(changes):
    with pytest.raises(DataError, match=f"NowcastConfig: {'|'.join([*changes, 'guess'])}"):
        get_nowcast_config("small", **changes)


def test_configuration_refuses_unknown_names():
    with pytest.raises(DataError, match="momentum"):
        get_nowcast_config("small", momentum=0.9)
    with pytest.raises(DataError, match="nowcast preset"):
        get_nowcast_config("medium")


def test_networks_of_a_configuration_fit_the_data(rain):
    for changes in (dict(missing=True), dict(frames=(4, 6)), dict(moved=False, guess="last")):
        config = replace(TINY, **changes)
        data = FrameDataset(rain, config.moved, missing=config.missing, frames=config.frames)
        x = data[0]["x"][None]
        assert build_network(config).eval()(x).shape == (1, config.frames[1], SIZE, SIZE)


# ------------------------------------------------------------------ training to a file


def test_nothing_of_a_checkpoint_is_lost(tmp_path, data):
    path = tmp_path / "nowcast.safetensors"
    model, meta = train_nowcast(TINY, data, data, 3, path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["nowcast.safetensors"]
    again, read = load_nowcast(path)
    assert read == meta and equal(again, model) and not again.training
    assert meta["config"] == TINY and meta["kind"] == "nowcast" and meta["seed"] == 3
    assert meta["data"] == dict(train=data.describe(), valid=data.describe())
    assert meta["history"][-1]["step"] == TINY.steps and "torch" in meta["versions"]
    assert meta["init"] is None
    best = min(e["valid_loss"] for e in meta["history"])
    now = evaluate(again, Nowcast(), loaders(data, data, 2, 0)[1])["valid_loss"]
    assert now == pytest.approx(best, rel=1e-5)


def power_cut(monkeypatch, after):
    "Let the training loop fail in a step."
    real, calls = loop.train_step, []

    def step(*args, **kwargs):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)


def pretrain(config, data, path, seed=0):
    return pretrain_frames(config, data, data, seed, path, progress=False)


def train(config, data, path, seed=0):
    return train_nowcast(config, data, data, seed, path, progress=False)


@pytest.mark.parametrize(
    "run, changes",
    [
        (train, dict()),
        (train, dict(precision="bfloat16", loss="weighted_mae")),
        (train, dict(finetune_mask=0.5, network="spat", moved=False, guess="last", width=32)),
        (pretrain, dict(asdict(SPAT))),
        (pretrain, dict(asdict(SPAT), pretext="order")),
    ],
)
def test_a_stopped_training_goes_on_bit_by_bit(tmp_path, monkeypatch, data, plain, run, changes):
    config = replace(TINY, **changes)
    data = data if config.moved else plain
    whole, meta = run(config, data, tmp_path / "whole.safetensors")
    path = tmp_path / "stopped.safetensors"
    with monkeypatch.context() as m:
        power_cut(m, 3)
        with pytest.raises(KeyboardInterrupt):
            run(config, data, path)
    assert not path.exists() and path.with_suffix(".state").exists()
    with pytest.raises(CheckpointError, match="training it belongs to"):
        run(replace(config, weight_decay=0.5), data, path)
    with pytest.raises(CheckpointError, match="training it belongs to"):
        run(config, data.few(3), path)
    resumed, told = run(config, data, path)
    assert equal(resumed, whole) and told == meta
    assert not path.with_suffix(".state").exists()


def test_same_seed_same_network_other_seed_another(tmp_path, data):
    config = replace(TINY, steps=2)
    models = [train(config, data, tmp_path / "a.safetensors", seed)[0] for seed in (0, 0, 1)]
    assert equal(models[0], models[1]) and not equal(models[0], models[2])


@pytest.mark.parametrize(
    "changes", [{}, dict(mask_each_frame=True), dict(pretext="order"), dict(pretext="future")]
)
def test_pretraining_moves_every_weight(tmp_path, plain, changes):
    config = replace(SPAT, pretrain_steps=1, **changes)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    spark, meta = pretrain(config, plain, first)
    assert meta["kind"] == "nowcast_pretrained" and meta["config"] == config
    net = build_network(config)
    report = net.start_from(load_checkpoint(first)[0])
    assert len(report["moved"]) == len(spark.state_dict())
    assert all(name.startswith("translation.") for name in report["fresh"])
    tiny_lr = replace(config, lr=1e-12, weight_decay=0.0, steps=1)
    model, told = train_nowcast(tiny_lr, plain, plain, 0, second, init=first, progress=False)
    assert told["init"]["kind"] == "nowcast_pretrained" and told["init"]["seed"] == 0
    after = model.state_dict()
    for name, value in spark.state_dict().items():
        if value.is_floating_point() and "running" not in name:
            assert torch.allclose(after[name], value, atol=1e-6), name


def test_a_trained_network_can_be_the_beginning(tmp_path, data):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    begin, _ = train(TINY, data, first)
    config = replace(TINY, lr=1e-12, weight_decay=0.0, steps=1)
    model, meta = train_nowcast(config, data, data, 0, second, init=first, progress=False)
    assert meta["init"]["kind"] == "nowcast"
    for (name, a), b in zip(model.named_parameters(), begin.parameters()):
        assert torch.allclose(a, b, atol=1e-6), name
    with pytest.raises(CheckpointError, match="those of the network"):
        train_nowcast(replace(TINY, width=16), data, data, 0, second, init=first, progress=False)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path, data, plain):
    pretrained, other = tmp_path / "pretrained.safetensors", tmp_path / "other.safetensors"
    pretrain(replace(SPAT, pretrain_steps=1), plain, pretrained)
    save_checkpoint(other, nn.Linear(1, 1), dict(kind="unet"))
    for path in (pretrained, other):
        with pytest.raises(CheckpointError, match="kind: expected 'nowcast', found"):
            load_nowcast(path)
        with pytest.raises(CheckpointError, match="kind, to begin a FrameUNet with"):
            train_nowcast(TINY, data, data, 0, tmp_path / "x", init=path, progress=False)
    with pytest.raises(CheckpointError, match="kind, to begin a SpaTSparK with"):
        train_nowcast(SPAT, plain, plain, 0, tmp_path / "x", init=other, progress=False)
    with pytest.raises(CheckpointError, match="no such file"):
        load_nowcast(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("change", ["unknown field", "no config", "wrong value", "weights"])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change):
    path, net = tmp_path / "a.safetensors", build_network(TINY)
    config = asdict(TINY)
    if change == "unknown field":
        config["momentum"] = 0.9
    elif change == "wrong value":
        config["loss"] = "mae"
    elif change == "weights":
        net = network("unet", width=8)
    meta = dict(kind="nowcast") if change == "no config" else dict(kind="nowcast", config=config)
    save_checkpoint(path, net, meta)
    with pytest.raises(CheckpointError):
        load_nowcast(path)


def test_hints_need_a_network_for_them_and_forbid_real_forecasts(tmp_path, data):
    told = data.with_hints(np.ones((4, 1, SIZE, SIZE), np.float32))
    config = replace(TINY, hints=1, steps=1)
    model, meta = train(config, told, tmp_path / "a.safetensors")
    assert forecast_frames(model, config, told).shape == (4, 12, SIZE, SIZE)
    with pytest.raises(DataError, match="which no radar gives"):
        forecast(model, meta, from_counts(data.observed[0]))
    with pytest.raises(DataError, match="training data, by its configuration"):
        train(config, data, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match="no hints"):
        build_spark(replace(SPAT, hints=1), (SIZE, SIZE))


def test_training_refuses_data_of_another_configuration(tmp_path, data, plain, rain):
    path = tmp_path / "a.safetensors"
    for wrong in (plain, FrameDataset(rain, frames=(12, 6)), FrameDataset(rain, missing=True)):
        with pytest.raises(DataError, match="training data, by its configuration"):
            train(TINY, wrong, path)
    with pytest.raises(DataError, match="a FrameDataset, found Dataset"):
        train(TINY, rain, path)
    with pytest.raises(DataError, match="pre-training: configuration"):
        pretrain(TINY, data, path)
    with pytest.raises(DataError, match="pre-training: configuration"):
        build_spark(replace(SPAT, missing=True), (SIZE, SIZE))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ forecasts


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "nowcast.safetensors"
    return train(replace(TINY, missing=True), with_share(data), path)


def with_share(data):
    return FrameDataset(moving_rain(), moved=True, missing=True)


def test_a_forecast_is_that_of_the_data_set(trained, data):
    model, meta = trained
    together = forecast_frames(model, meta["config"], with_share(data), batch=3)
    assert together.shape == (4, 12, SIZE, SIZE) and (together >= 0).all()
    for i in (0, 2):
        alone = forecast(model, meta, from_counts(data.observed[i]))
        assert alone.dtype == np.float32
        assert np.allclose(alone, together[i], rtol=1e-3, atol=1e-4)


def test_an_untrained_network_forecasts_persistence(data):
    config = replace(TINY, moved=False, guess="last")
    frames = from_counts(data.observed[0])
    hour = forecast(build_network(config), dict(config=config), frames)
    assert np.allclose(hour, frames[-1][None].repeat(12, 0), rtol=1e-4, atol=1e-5)


def test_no_forecast_where_nothing_was_ever_measured(trained, data):
    frames = from_counts(data.observed[0])
    frames[:, :4, :6] = np.nan
    frames[:8, 20] = np.nan  # but measured later
    hour = forecast(*trained, frames)
    assert np.isnan(hour).sum() == 12 * 24 and np.isnan(hour[:, :4, :6]).all()


def test_forecast_refuses(trained, data):
    frames = from_counts(data.observed[0])
    empty = np.where(np.arange(12)[:, None, None] == 11, np.float32(np.nan), frames)
    wrongs = {
        "float, mm/h": [frames[:11], frames[0], data.observed[0], frames[None]],
        "from 0 on": [-frames - 1, np.where(frames > 1, np.float32(np.inf), frames)],
        "last frame": [empty],
        "multiples of 16": [frames[:, :30]],
    }
    for match, some in wrongs.items():
        for wrong in some:
            with pytest.raises(DataError, match=match):
                forecast(*trained, wrong)


def test_factors_by_hand(data):
    rain = from_counts(data.future)
    for share in (0.5, 1.0, 0.25):
        factors = tune_factors(rain * np.float32(share), data)
        assert factors["edges"] == [0.5, 2.0, 8.0]
        assert factors["all"][:2] == [share, share]
        assert np.array_equal(np.array(factors["leads"])[:2], np.full((2, 12), share))


def test_factors_are_one_where_nothing_can_be_hit(data):
    factors = tune_factors(np.zeros_like(from_counts(data.future)), data)
    assert set(factors["all"]) == {1.0} and set(np.ravel(factors["leads"])) == {1.0}


def test_factors_ignore_missing_pixels_and_air_from_outside(rain):
    counts = rain["radar"].values.copy()
    counts[:, 12:, 10:20, 10:20] = MISSING
    data = FrameDataset(sequences_of(counts))
    f = from_counts(rain["radar"].values[:, 12:])
    f[:, :, 10:20, 10:20] = 99  # not measured
    f[:, 6:, :, :2] = 99  # air that was not in view by then: it moves to the east
    factors = tune_factors(f, data)
    assert factors["all"][:2] == [1.0, 1.0]


def test_configurations_are_frozen_and_compared_by_value():
    assert NowcastConfig() == get_nowcast_config("small")
    with pytest.raises(AttributeError):
        NowcastConfig().steps = 3
