"What nowcasts learn from: samples, losses by hand, and tasks."

import json
import math

import numpy as np
import pytest
import torch
from moving_rain import SIZE, moving_rain, sequences_of
from torch import nn

from sslpdl_nb.core import DataError, set_seed
from sslpdl_nb.nowcast.flow import lagrangian
from sslpdl_nb.nowcast.frames import MISSING, from_counts, to_counts
from sslpdl_nb.nowcast.networks import (
    FrameUNet,
    extra_channels,
    network_input,
    transform,
)
from sslpdl_nb.nowcast.sparse import SmallResNet, SparK, hidden_loss
from sslpdl_nb.nowcast.tasks import (
    HEAVIER,
    LOSSES,
    WEIGHTS,
    FrameDataset,
    FrameOrder,
    Nowcast,
    Order,
    Reconstruct,
    count_input,
    decode,
    frame_loss,
    last_seen,
    nearest_pixel,
    nl_filter,
    run_network,
    simple_guesses,
    wet_share,
)
from sslpdl_nb.train import evaluate, fit, loaders, parameter_groups


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
    task, model = Nowcast(), FrameUNet(width=8, extra=13, guess="moved").eval()
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
