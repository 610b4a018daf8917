"Training of nowcasts: samples, losses by hand, tasks, checkpoints, and trainings that go on."

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sslpdl_nb import train as loop
from sslpdl_nb.checkpoint import load_checkpoint, save_checkpoint
from sslpdl_nb.core import CheckpointError, DataError, set_seed
from sslpdl_nb.nowcast.flow import lagrangian
from sslpdl_nb.nowcast.frames import MISSING, from_counts, to_counts
from sslpdl_nb.nowcast.networks import (
    FrameUNet,
    extra_channels,
    network,
    network_input,
    transform,
)
from sslpdl_nb.nowcast.sparse import SmallResNet, SparK, hidden_loss
from sslpdl_nb.nowcast.train import (
    HEAVIER,
    LOSSES,
    NOWCAST_PRESETS,
    WEIGHTS,
    FrameDataset,
    FrameOrder,
    Nowcast,
    NowcastConfig,
    Order,
    Reconstruct,
    build_network,
    build_spark,
    count_input,
    decode,
    forecast,
    forecast_frames,
    frame_loss,
    get_nowcast_config,
    last_seen,
    load_nowcast,
    nearest_pixel,
    nl_filter,
    pretrain_frames,
    run_network,
    simple_guesses,
    train_nowcast,
    tune_factors,
    wet_share,
)
from sslpdl_nb.train import evaluate, fit, loaders, parameter_groups

SIZE = 32
TINY = get_nowcast_config("small", width=8, steps=4, batch=2, pretrain_steps=4, pretrain_batch=2)
SPAT = replace(TINY, network="spat", width=32, moved=False, guess="none")


def moving_rain(n=4, seed=0, size=SIZE):
    "Sequences of bells of rain that move to the east by one pixel in two frames."
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    rain = np.zeros((n, 24, size, size), np.float32)
    for k in range(n):
        for row, column in rng.integers(0, size, (4, 2)):
            for t in range(24):
                east = (columns - column - t / 2 + size / 2) % size - size / 2
                rain[k, t] += 8 * np.exp(-(east**2 + (rows - row) ** 2) / 18)
    return sequences_of(to_counts(rain))


def sequences_of(counts):
    coords = dict(part=("sequence", ["train"] * len(counts)), x=("x", 2.0 * np.arange(SIZE)))
    coords = coords if counts.shape[-1] == SIZE else {}
    variables = {"radar": (("sequence", "frame", "y", "x"), counts)}
    return xr.Dataset(variables, coords, dict(source="a test"))


@pytest.fixture(scope="module")
def rain():
    return moving_rain()


@pytest.fixture(scope="module")
def data(rain):
    return FrameDataset(rain, moved=True)


@pytest.fixture(scope="module")
def plain(rain):
    return FrameDataset(rain)


def small_spark(**options):
    set_seed(0)
    return SparK(SmallResNet(12, (8, 16, 16, 16)), size=SIZE, block=8, width=32, **options)


def equal(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# ------------------------------------------------------------------ samples


def test_the_table_is_the_transform_of_all_counts():
    counts = np.arange(256, dtype=np.uint8).reshape(4, 64)
    expected = transform(from_counts(counts))
    assert torch.allclose(decode(counts), expected, equal_nan=True, atol=1e-6)
    assert decode(counts).isnan().sum() == 1
    assert decode(counts).dtype == torch.float32


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_input_is_network_input_of_the_decoded_frames(moved, missing):
    counts = np.random.default_rng(0).integers(0, 256, (2, 12, 7, 5)).astype(np.uint8)
    counts[:, :, 2, 3] = MISSING
    guess = counts[1] if moved else None
    ours = count_input(counts[0], guess, missing)
    moved_rain = None if guess is None else from_counts(guess)[None]
    theirs = network_input(from_counts(counts[0])[None], moved_rain, missing)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert len(ours) == 12 + extra_channels(12, moved, missing)


def test_dataset_equals_network_input_of_the_decoded_frames(rain, data):
    for i in (0, 3):
        frames = from_counts(rain["radar"].values[i, :12])
        moved = from_counts(to_counts(lagrangian(frames)))
        sample = data[i]
        expected = network_input(frames[None], moved[None])[0]
        assert torch.allclose(sample["x"], expected, atol=1e-5)
        future = transform(from_counts(rain["radar"].values[i, 12:]))
        assert torch.allclose(sample["y"], future, atol=1e-6)
        assert sample["index"] == i


def test_fewer_frames_are_those_around_now(rain):
    data = FrameDataset(rain, frames=(3, 5))
    sample = data[1]
    assert sample["x"].shape == (3, SIZE, SIZE) and sample["y"].shape == (5, SIZE, SIZE)
    assert torch.equal(sample["x"], decode(rain["radar"].values[1, 9:12]))
    assert torch.equal(sample["y"], decode(rain["radar"].values[1, 12:17]))


def test_gaps_stay_gaps_only_where_they_are_wanted(rain):
    counts = rain["radar"].values.copy()
    counts[0, 4, :3] = MISSING
    counts[0, 20, :2] = MISSING
    data = FrameDataset(sequences_of(counts), missing=True)
    filled, gaps = data[0], data.with_gaps()[0]
    assert filled["x"].isfinite().all() and filled["x"].shape[0] == 13
    assert torch.allclose(filled["x"][12, :3], torch.tensor(1 / 12))
    assert gaps["x"].shape[0] == 12 and gaps["x"].isnan().sum() == 3 * SIZE
    assert filled["y"].isnan().sum() == 2 * SIZE
    assert not data.gaps  # the first one is as it was


def test_subsets_are_nested_and_depend_on_the_seed(data):
    big = FrameDataset(moving_rain(12, size=8))
    sets = [set(big.few(n, 5).numbers.tolist()) for n in range(1, 13)]
    assert all(a < b for a, b in zip(sets, sets[1:]))
    assert sets[5] == set(big.few(6, 5).numbers.tolist())
    assert any(sets[5] != set(big.few(6, s).numbers.tolist()) for s in range(3))
    few = data.few(2, 1)
    for k, number in enumerate(few.numbers):
        original, sample = data[number], few[k]
        assert sample["index"] == number
        assert torch.equal(sample["x"], original["x"]) and torch.equal(sample["y"], original["y"])
    assert len(data) == 4


@pytest.mark.parametrize("n", [0, 5, 1.0, -1])
def test_few_refuses(data, n):
    with pytest.raises(DataError, match="few: sequences: expected a whole number from 1 to 4"):
        data.few(n)


def test_hints_are_the_last_channels_and_go_with_their_sequences(data, plain):
    hints = np.arange(4 * 2 * SIZE**2, dtype=np.float32).reshape(4, 2, SIZE, SIZE)
    told = data.with_hints(hints)
    assert torch.equal(told[1]["x"][:-2], data[1]["x"]) and data.hints is None
    few = told.few(2, seed=3)
    for k, number in enumerate(few.numbers):
        assert np.array_equal(few[k]["x"][-2:], hints[number])
    assert len(plain.with_hints(hints).with_gaps()[0]["x"]) == 12
    wrongs = (hints[:3], hints[..., :5], hints.astype(float), hints * np.nan, [1.0])
    for wrong in wrongs:
        with pytest.raises(DataError, match="with_hints: hints"):
            data.with_hints(wrong)


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


def test_description_knows_source_and_content(data, rain):
    about = data.describe()
    assert about["source"] == "a test" and about["part"] == ["train"] and about["km"] == 2.0
    assert about["sequences"] == 4 and about["pixels"] == [SIZE, SIZE]
    assert about == FrameDataset(rain).describe()
    counts = rain["radar"].values.copy()
    counts[3, 23, 5, 5] += 1
    assert FrameDataset(sequences_of(counts)).describe()["checksum"] != about["checksum"]
    assert data.few(3).describe()["checksum"] != about["checksum"]
    json.dumps(about)


def test_dataset_refuses_what_it_cannot_read(rain):
    with pytest.raises(DataError, match="no variable radar"):
        FrameDataset(rain.rename(radar="rain"))
    with pytest.raises(DataError, match="uint8 counts .* found float64"):
        FrameDataset(rain.astype(float))
    with pytest.raises(DataError, match="24 frames"):
        FrameDataset(rain.isel(frame=slice(20)))
    with pytest.raises(DataError, match="at least one sequence"):
        FrameDataset(rain.isel(sequence=slice(0)))
    with pytest.raises(DataError, match="FrameDataset: frames"):
        FrameDataset(rain, frames=(12, 13))


@pytest.mark.parametrize("frames, what", [([11], "last observed"), (range(12, 24), "future")])
def test_dataset_names_sequences_without_measurements(rain, frames, what):
    counts = rain["radar"].values.copy()
    for frame in frames:
        counts[2, frame] = MISSING
    with pytest.raises(DataError, match=rf"{what}.*none in \[2\]"):
        FrameDataset(sequences_of(counts))


# ------------------------------------------------------------------ NL-50


def toy_sequences():
    "Wet shares now and at the end: 2/4 and 1/4; 0 and 4/4; 0 and 1/1 of the measured pixels."
    counts = np.zeros((3, 24, 2, 2), np.uint8)
    counts[0, 11], counts[0, 23] = [[50, 0], [0, 30]], [[0, 0], [0, 30]]
    counts[1, 23] = [[50, 60], [20, 50]]
    counts[2, 23] = [[255, 255], [255, 40]]
    counts[:, 12:23] = 200  # what happens between does not matter
    return sequences_of(counts).assign_coords(number=("sequence", [1, 2, 3]))


@pytest.mark.parametrize(
    "share, on, kept", [(0.5, "target", [2, 3]), (0.5, "input", [1]), (0.25, "target", [1, 2, 3])]
)
def test_filter_by_hand(share, on, kept):
    assert nl_filter(toy_sequences(), share, on)["number"].values.tolist() == kept


def test_drizzle_below_a_tenth_of_a_millimetre_is_dry():
    counts = np.array([[[16, 17, 255, 0]]], np.uint8)
    assert from_counts(counts)[0, 0, 0] < 0.1 < from_counts(counts)[0, 0, 1]
    assert wet_share(counts) == 1 / 3
    assert np.isnan(wet_share(np.full((1, 2, 2), MISSING, np.uint8)))


def test_filter_refuses():
    toy = toy_sequences()
    with pytest.raises(DataError, match="at least one with 60% .* at most 50%"):
        nl_filter(toy, 0.6, "input")
    with pytest.raises(DataError, match="nl_filter: on"):
        nl_filter(toy, 0.5, "future")
    with pytest.raises(DataError, match="nl_filter: share"):
        nl_filter(toy, 50)


# ------------------------------------------------------------------ losses


def frames_of(*rain):
    return transform(torch.tensor(rain)).reshape(1, 1, 1, -1)


BY_HAND = dict(
    log_mse=2 * math.log(2) ** 2 / 3, mse=(0.2**2 + 5**2) / 3, weighted_mae=(0.2 + 25) / 3
)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_by_hand(loss):
    y = frames_of(0.0, 1.8, 9.8, torch.nan)
    for unseen in (0.0, 50.0):
        f = frames_of(0.2, 1.8, 4.8, unseen)
        assert float(frame_loss(f, y, loss)) == pytest.approx(BY_HAND[loss], rel=1e-5)


def test_weights_change_at_their_edges():
    for k, (edge, weight) in enumerate(zip(HEAVIER, WEIGHTS[1:])):
        below, above = (float(frame_loss(frames_of(0.0), frames_of(r), "weighted_mae")) / r
                        for r in (edge * 0.999, edge * 1.001))  # fmt: skip
        assert below == pytest.approx(WEIGHTS[k], rel=1e-4)
        assert above == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_missing_pixels_have_no_gradient(loss):
    y = frames_of(0.0, 1.8, torch.nan)
    f = frames_of(3.0, 0.1, 7.0).requires_grad_()
    frame_loss(f, y, loss).backward()
    gradient = f.grad.flatten()
    assert gradient.isfinite().all() and gradient[2] == 0 and (gradient[:2] != 0).all()


def test_a_forecast_below_zero_can_learn_to_rise():
    for loss in LOSSES:
        f = torch.full((1, 1, 1, 1), -0.5, requires_grad=True)
        frame_loss(f, frames_of(3.0), loss).backward()
        assert f.grad.item() < 0


def test_loss_refuses():
    with pytest.raises(DataError, match="measured pixels"):
        frame_loss(frames_of(1.0), frames_of(torch.nan))
    with pytest.raises(DataError, match="one of"):
        frame_loss(frames_of(1.0), frames_of(1.0), "mae")
    for wrong in (dict(loss="mae"), dict(precision="float16")):
        with pytest.raises(DataError, match="Nowcast"):
            Nowcast(**wrong)
    with pytest.raises(DataError, match="precision"):
        run_network(nn.Identity(), torch.zeros(1, 1, 2, 2), precision="half")


# ------------------------------------------------------------------ the task of forecasting


def test_scores_are_those_of_all_pixels_together(data):
    task, model = Nowcast(), build_network(TINY).eval()
    batches = [data[i] for i in range(4)]
    y = torch.stack([b["y"] for b in batches])
    x = torch.stack([b["x"] for b in batches])
    y[0, :, :20] = torch.nan
    f = x[:, 12:24].clone()  # an untrained network says what it was given
    with torch.no_grad():
        found = task.scores(model, [dict(x=x[:1], y=y[:1]), dict(x=x[1:], y=y[1:])])
    measured = y.isfinite()
    assert found["valid_loss"] == pytest.approx(float((f - y)[measured].square().mean()), rel=1e-4)
    for minutes, k in ((30, 5), (60, 11)):
        error = (f - y)[:, k][measured[:, k]]
        assert found[f"rmse_{minutes}"] == pytest.approx(float(error.square().mean().sqrt()), 1e-4)
    a, b = ((z[:, 5][measured[:, 5]] >= math.log(11)) for z in (f, y))
    assert found["csi"] == pytest.approx(int((a & b).sum()) / int((a | b).sum()))


def test_scores_of_short_forecasts_and_of_dry_weather():
    model = nn.Identity()
    batch = dict(x=torch.zeros(2, 7, 4, 4), y=torch.zeros(2, 7, 4, 4))
    scores = Nowcast().scores(model, [batch])
    assert scores == dict(valid_loss=0.0, rmse_30=0.0, csi=0.0)
    short = {k: v[:, :3] for k, v in batch.items()}
    assert Nowcast().scores(model, [short]) == dict(valid_loss=0.0)


def test_negative_output_is_no_rain_in_the_scores():
    f, y = torch.full((1, 12, 4, 4), -3.0), torch.zeros(1, 12, 4, 4)
    assert Nowcast().scores(nn.Identity(), [dict(x=f, y=y)])["rmse_60"] == 0


def test_four_sequences_are_learned_by_heart(data):
    set_seed(0)
    net = FrameUNet(width=8, extra=13, guess="moved")
    both = loaders(data, data, 4, 0)
    before = evaluate(net, Nowcast(), both[1])["valid_loss"]
    options = dict(steps=60, eval_every=60, progress=False)
    history = fit(net, Nowcast(), *both, groups=parameter_groups(net, 1e-2, 0.0), **options)
    assert history[-1]["valid_loss"] < before / 3


def test_both_precisions_learn_the_same(data):
    curves = {}
    for precision in ("float32", "bfloat16"):
        set_seed(0)
        net = FrameUNet(width=8, extra=13, guess="moved").to(memory_format=torch.channels_last)
        options = dict(steps=16, eval_every=4, progress=False)
        options["groups"] = parameter_groups(net, 3e-3, 0.0)
        task = Nowcast(precision=precision)
        history = fit(net, task, *loaders(data, data, 4, 0), **options)
        curves[precision] = np.array([e["loss"] for e in history])
        assert all(p.dtype == torch.float32 for p in net.parameters())
    assert np.allclose(*curves.values(), rtol=0.03)
    assert not np.array_equal(*curves.values())


def test_half_precision_is_used_and_the_answer_is_whole():
    seen = []

    class Spy(nn.Conv2d):
        def forward(self, x):
            seen.append(super().forward(x))
            return seen[-1]

    x = torch.rand(1, 2, 4, 4)
    answer = run_network(Spy(2, 3, 1), x, precision="bfloat16")
    assert seen[0].dtype == torch.bfloat16 and answer.dtype == torch.float32
    run_network(Spy(2, 3, 1), x)
    assert seen[1].dtype == torch.float32


# ------------------------------------------------------------------ the task of reconstruction


def test_guesses_by_hand():
    x = torch.tensor([[1.0, 3, 4, 8], [1, 3, 4, 8]])[None, None]
    mask = torch.tensor([0.0, 1]).reshape(1, 1, 1, 2)
    guesses = simple_guesses(x, mask)
    assert guesses["mean"].unique().tolist() == [2] and "last_seen" not in guesses
    assert guesses["nearest"][0, 0, 0].tolist() == [1, 3, 3, 3]
    errors = {k: float(hidden_loss(g, x, mask, 2, None)) for k, g in guesses.items()}
    assert errors == dict(mean=20.0, nearest=13.0)


def test_guesses_do_not_know_what_is_hidden_or_missing():
    set_seed(0)
    x = torch.rand(2, 3, 16, 16)
    x[0, 1, :4] = torch.nan
    mask = Reconstruct(0.5, each_frame=True).mask(small_like(3), 2)
    hidden = mask.repeat_interleave(8, 2).repeat_interleave(8, 3) > 0
    other = torch.where(hidden, x + 100, x)
    for a, b in zip(simple_guesses(x, mask).values(), simple_guesses(other, mask).values()):
        assert torch.equal(a, b) and a.isfinite().all()


def small_like(frames):
    "What `Reconstruct.mask` asks of a model."

    class Cells:
        cells = (2, 2)

    Cells.frames = frames
    return Cells


def test_pixels_of_other_frames_by_hand():
    nan = torch.nan
    pixel = torch.tensor([nan, 2, nan, nan, 5]).reshape(1, 5, 1, 1)
    assert last_seen(pixel).flatten().tolist() == [2, 2, 2, 2, 5]
    assert last_seen(torch.full((1, 3, 1, 1), nan)).isnan().all()
    frames = torch.tensor([[[1.0, nan, nan, 4]], [[nan, nan, nan, nan]]])[None]
    filled = nearest_pixel(frames)
    assert filled[0, 0, 0].tolist() == [1, 1, 4, 4] and filled[0, 1].isnan().all()
    assert frames[0, 0, 0, 1].isnan()  # the argument is as it was


def test_masks_are_fresh_in_training_and_fixed_in_scores(plain):
    task, model = Reconstruct(0.5, seed=3), small_spark()
    set_seed(0)
    first = [task.mask(model, 2) for _ in range(2)]
    set_seed(0)
    again = [task.mask(model, 2) for _ in range(2)]
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (2, 1, 4, 4) and first[0].sum() == 2 * 8
    loader = loaders(plain.with_gaps(), plain.with_gaps(), 4, 0)[1]
    scores = evaluate(model, task, loader)
    assert scores == evaluate(model, task, loader)
    assert scores != evaluate(model, Reconstruct(0.5, seed=4), loader)


@torch.no_grad()
def test_the_later_half_can_be_hidden_as_a_whole(plain):
    task, model = Reconstruct(future=True), small_spark(sparse=False).eval()
    mask = task.mask(model, 2)
    assert mask.shape == (2, 12, 4, 4) and not mask[:, :6].any() and mask[:, 6:].all()
    x = plain.with_gaps()[0]["x"][None]
    changed = x.clone()
    changed[:, 6:] += 5
    with torch.no_grad():
        a, b = (run_network(model, z, mask[:1]) for z in (x, changed))
    assert torch.equal(a, b), "hidden frames never enter"
    guesses = simple_guesses(x, mask[:1])
    assert torch.equal(guesses["last_seen"][:, 6:], x[:, 5:6].expand(-1, 6, -1, -1))


def test_a_guess_without_pattern_has_the_loss_of_zero(plain):
    model, task = small_spark(), Reconstruct(0.5)
    x = torch.stack([plain.with_gaps()[i]["x"] for i in range(4)])
    scores = task.scores(model.eval(), [dict(x=x)])
    mask = task.mask(model, 4, torch.Generator().manual_seed(0))
    zero = float(hidden_loss(torch.zeros_like(x), x, mask, 8, model.floor))
    assert scores["mean"] == pytest.approx(zero, rel=1e-5)
    raw = small_spark(floor=None).eval()
    mean = task.scores(raw, [dict(x=x)])["mean"]
    assert mean == pytest.approx(
        float(hidden_loss(simple_guesses(x, mask)["mean"], x, mask, 8, None))
    )


def test_hidden_pixels_and_gaps_do_not_enter_the_network(plain):
    model, task = small_spark().eval(), Reconstruct(0.5)
    x = plain.with_gaps()[0]["x"][None].clone()
    x[:, 3, :5, :5] = torch.nan
    mask = task.mask(model, 1, torch.Generator().manual_seed(0))
    hidden = mask.repeat_interleave(8, 2).repeat_interleave(8, 3) > 0
    with torch.no_grad():
        a, b = (run_network(model, z, mask) for z in (x, torch.where(hidden, x + 9, x)))
    assert torch.equal(a, b) and a.isfinite().all()


def test_order_by_hand():
    frames = torch.arange(5.0).expand(4, 5)[:, :, None, None]
    shuffled, answer = Order().shuffle(frames, torch.Generator().manual_seed(0))
    assert answer.tolist() == [0, 1, 0, 1]
    assert torch.equal(shuffled[::2], frames[::2])
    for k in (1, 3):
        assert sorted(shuffled[k].flatten().tolist()) == list(range(5))
        assert not torch.equal(shuffled[k], frames[k])


def test_order_can_be_learned_and_its_scores_are_fixed(plain):
    set_seed(0)
    model, data = FrameOrder(small_spark()), plain.with_gaps()
    both = loaders(data, data, 4, 0)
    before = evaluate(model, Order(), both[1])
    assert before == evaluate(model, Order(), both[1])
    options = dict(steps=30, eval_every=30, progress=False)
    after = fit(model, Order(), *both, groups=parameter_groups(model, 3e-3, 0.0), **options)[-1]
    assert after["order_loss"] < 0.8 * before["order_loss"]
    assert after["accuracy"] >= 0.75


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
