"Networks that forecast frames: known answers, shapes, gradients, leaks and moved weights."

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sslpdl_nb.core import CheckpointError, DataError
from sslpdl_nb.decoder import check_module
from sslpdl_nb.nowcast.networks import (
    GUESSES,
    NETWORKS,
    OFFSET,
    TRANSLATIONS,
    ChannelAttention,
    ConvTranslation,
    FrameUNet,
    SmaAtUNet,
    SpaTSparK,
    SpatialAttention,
    Translation,
    WarpTranslation,
    block_statistics,
    extra_channels,
    inverse,
    network,
    network_input,
    separable_conv,
    transform,
    warp,
)
from sslpdl_nb.nowcast.sparse import SmallResNet, SparK


def parameters(net):
    "How many numbers a network learns."
    return sum(p.numel() for p in net.parameters())


def moving_rain(n=4, size=32, frames=24, seed=0):
    "Simulated bells of rain that move to the east by one pixel in two frames, mm/h."
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    rain = np.zeros((n, frames, size, size), np.float32)
    for k in range(n):
        for row, column in rng.integers(0, size, (4, 2)):
            for t in range(frames):
                east = (columns - column - t / 2 + size / 2) % size - size / 2
                rain[k, t] += 8 * np.exp(-(east**2 + (rows - row) ** 2) / 18)
    return torch.from_numpy(rain)


def small_spat(in_frames=12, extra=0, **options):
    "A SpaT-SparK that is cheap enough for a test."
    encoder = SmallResNet(in_frames + extra, (8, 16, 16, 16))
    return SpaTSparK(in_frames, encoder=encoder, width=32, extra=extra, **options)


SMALL = dict(  # every network, cheap enough for a test
    smaat=partial(SmaAtUNet, width=8, reduction=4),
    unet=partial(FrameUNet, width=8),
    spat=small_spat,
)


# ------------------------------------------------------------------ what goes in


@settings(max_examples=50)
@given(st.lists(st.floats(0, 300, width=32), min_size=1, max_size=8))
def test_inverse_undoes_transform(amounts):
    rain = torch.tensor(amounts)
    assert torch.allclose(inverse(transform(rain)), rain, rtol=1e-4, atol=1e-5)


def test_transform_has_known_values_and_keeps_missing():
    x = transform(np.array([0, OFFSET, 99 * OFFSET, np.nan]))
    assert x.dtype == torch.float32
    assert torch.allclose(x[:3], torch.tensor([1.0, 2.0, 100.0]).log())
    assert x[3].isnan()
    assert inverse(torch.tensor([-5.0, 0.0])).tolist() == [0, 0]


@pytest.mark.parametrize("value", [-0.001, -5.0, math.inf])
def test_transform_refuses_impossible_rain(value):
    with pytest.raises(DataError, match="0 mm/h or more"):
        transform(np.array([0.0, value]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_transform_refuses_whole_numbers(dtype):
    with pytest.raises(DataError, match="floating point"):
        transform(np.ones(3, dtype))


def test_network_input_puts_channels_in_order():
    rain = moving_rain(2)
    rain[0, :6, 3, 4] = torch.nan
    moved = rain[:, 12:].clone()
    moved[:, 6:, :, :5] = torch.nan
    x = network_input(rain[:, :12], moved, missing=True)
    assert x.shape[1] == 12 + extra_channels(12, moved=True, missing=True) == 26
    assert x.isfinite().all()
    assert torch.equal(x[1, :12], transform(rain[1, :12])) and (x[0, :6, 3, 4] == 0).all()
    assert torch.equal(x[:, 12:24, :, 5:], transform(moved[:, :, :, 5:]))
    mean = transform(rain[0, :12]).nanmean()
    assert torch.allclose(x[0, 18:24, :, :5], mean.expand(6, 32, 5))
    assert (x[:, 24, :, :5] == 0.5).all() and (x[:, 24, :, 5:] == 1).all()
    assert x[0, 25, 3, 4] == 0.5 and x[:, 25].sum() == 0.5
    assert torch.equal(network_input(rain[:, :12]), x[:, :12])
    assert extra_channels() == 0 and extra_channels(5, moved=True) == 6


def test_network_input_refuses_what_does_not_fit():
    rain = moving_rain(2)
    for wrong in (rain[0], rain[:, :0]):
        with pytest.raises(DataError, match="shape of rain"):
            network_input(wrong)
    for wrong in (rain[:1, 12:], rain[:, 12:, :16]):
        with pytest.raises(DataError, match="shape of moved"):
            network_input(rain[:, :12], wrong)
    rain[1] = torch.nan
    with pytest.raises(DataError, match="none in sequence 1"):
        network_input(rain)


# ------------------------------------------------------------------ parts of SmaAt-UNet


def test_separable_convolution_is_a_convolution_of_rank_one():
    pair = separable_conv(3, 5, kernels=1)
    around, mix = pair[0].weight[:, 0], pair[1].weight[:, :, 0, 0]
    whole = mix[:, :, None, None] * around[None]
    bias = pair[1].bias + mix @ pair[0].bias
    x = torch.randn(2, 3, 8, 8)
    inside = F.conv2d(x, whole, bias)
    assert torch.allclose(pair(x)[..., 1:-1, 1:-1], inside, atol=1e-5)


def test_channel_attention_weighs_whole_channels():
    attention = ChannelAttention(32)
    assert attention.mlp[0].out_features == 2 and ChannelAttention(8).mlp[0].out_features == 1
    x = torch.rand(2, 32, 6, 6) + 0.1
    ratio = attention(x) / x
    assert torch.allclose(ratio, attention.weights(x)[:, :, None, None].expand_as(x), atol=1e-6)
    shuffled = x.flatten(2)[:, :, torch.randperm(36)].reshape(x.shape)
    assert torch.allclose(attention.weights(x), attention.weights(shuffled), atol=1e-6)


def test_spatial_attention_weighs_all_channels_alike():
    attention = SpatialAttention().eval()
    x = torch.rand(2, 5, 12, 12) + 0.1
    weights = attention.weights(x)
    assert weights.shape == (2, 1, 12, 12) and 0 < weights.min() < weights.max() < 1
    assert torch.allclose(attention(x), x * weights)
    changed = x.clone()
    changed[:, :, 0, 0] += 5
    touched = (attention.weights(changed) - weights).abs()[0, 0] > 1e-7
    assert touched[:4, :4].all() and not touched[4:].any() and not touched[:, 4:].any()


# ------------------------------------------------------------------ all networks


def test_published_sizes():
    assert parameters(SmaAtUNet(12, 1)) == 4_033_537
    assert round(parameters(FrameUNet()) / 1e6, 2) == 0.86
    with torch.device("meta"):
        translation = Translation("linear", (256, 512, 1024, 2048))
    assert round(parameters(translation) / 1e6, 1) == 53.1


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_and_samples_are_independent(name):
    torch.manual_seed(0)
    check_module(SMALL[name](), (torch.rand(2, 12, 48, 32),), (2, 12, 48, 32))


@pytest.mark.parametrize("name", SMALL)
def test_other_numbers_of_frames_and_channels(name):
    net = SMALL[name](in_frames=4, out_frames=6, extra=7, guess="moved").eval()
    x = torch.rand(1, 11, 64, 32)
    assert net(x).shape == (1, 6, 64, 32)
    assert torch.equal(net(x), x[:, 4:10])


@pytest.mark.parametrize("name", SMALL)
def test_starts_as_persistence(name):
    x = torch.rand(2, 12, 32, 32)
    net = SMALL[name](guess="last").eval()
    assert torch.equal(net(x), x[:, -1:].expand(-1, 12, -1, -1))
    with torch.no_grad():
        free = SMALL[name](guess="none").eval()(x)
    assert not torch.allclose(free, x[:, -1:].expand(-1, 12, -1, -1), atol=0.1)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 12, 40, 32), (1, 12, 32, 33), (1, 13, 32, 32), (12, 32, 32)])
def test_wrong_shapes_are_refused(name, shape):
    with pytest.raises(DataError, match="shape of the input"):
        SMALL[name]()(torch.rand(shape))


@pytest.mark.parametrize("name", SMALL)
def test_missing_pixels_are_refused_and_spoil_nothing(name):
    net, x = SMALL[name]().train(), torch.rand(2, 12, 32, 32)
    x[0, 3, 5, 7] = torch.nan
    with pytest.raises(DataError, match="network_input"):
        net(x)
    assert all(b.isfinite().all() for b in net.buffers())


@pytest.mark.parametrize("name", SMALL)
def test_guesses_are_checked(name):
    with pytest.raises(DataError, match="at least 12"):
        SMALL[name](guess="moved", extra=11)
    with pytest.raises(DataError) as error:
        SMALL[name](guess="tomorrow")
    assert all(guess in str(error.value) for guess in GUESSES)


# ------------------------------------------------------------------ translation


def test_warp_moves_by_whole_and_half_cells():
    x = torch.rand(2, 3, 9, 11)
    motion = torch.zeros(2, 2, 9, 11)
    assert torch.allclose(warp(x, motion), x, atol=1e-5)
    motion[:, 0], motion[:, 1] = 3, -2  # to the east, to the south
    moved = warp(x, motion)
    assert torch.allclose(moved[..., :7, 3:], x[..., 2:, :-3], atol=1e-5)
    assert torch.allclose(moved[..., 8, 3:], x[..., 8, :-3], atol=1e-5)  # the edge goes on
    motion[:, 0], motion[:, 1] = 0.5, 0
    half = (x[..., 1:] + x[..., :-1]) / 2
    assert torch.allclose(warp(x, motion)[..., 1:], half, atol=1e-5)
    with pytest.raises(DataError, match="shape of the motion"):
        warp(x, motion[:, :1])


def test_warp_is_exact_in_half_precision():
    ramp = torch.arange(128.0).expand(1, 1, 3, 128)
    motion = torch.zeros(1, 2, 3, 128)
    motion[:, 0] = 0.5
    half = warp(ramp.bfloat16(), motion.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half[..., 1:], (ramp[..., 1:] - 0.5).bfloat16())
    assert warp(ramp.double(), motion.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", TRANSLATIONS)
def test_reach_is_what_the_gradient_says(kind):
    torch.manual_seed(0)
    net = Translation(kind, (8, 8), (2, 1))
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    maps = [torch.randn(1, 8, 13, 13, requires_grad=True) for _ in range(2)]
    for out, x, reach in zip(net(maps), maps, net.reach((1, 1))):
        (gradient,) = torch.autograd.grad(out[0, :, 6, 6].sum(), x)
        reached = gradient[0].abs().amax(0).nonzero()
        found = (reached - 6).abs().max().item()
        if kind == "warp":
            assert reach == math.inf and found > 0
        else:
            assert found == reach


@pytest.mark.parametrize("kind", ["identity", "residual", "warp"])
def test_kinds_that_begin_as_the_identity(kind):
    maps = [torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)]
    for before, after in zip(maps, Translation(kind, (8, 16), (2, 1))(maps)):
        assert torch.allclose(before, after, atol=1e-5)


def test_tanh_bounds_only_the_linear_kind():
    maps = [100 * torch.randn(2, 8, 6, 6)]
    largest = {k: Translation(k, (8,), (1,))(maps)[0].abs().max().item() for k in TRANSLATIONS}
    assert largest["linear"] <= 1 < min(v for k, v in largest.items() if k != "linear")


def test_unknown_translations_are_refused():
    with pytest.raises(DataError, match="no_tanh"):
        Translation("lstm")
    with pytest.raises(DataError, match="multiple of 4"):
        WarpTranslation(10)


def test_warp_finds_a_known_shift():
    torch.manual_seed(0)
    net = WarpTranslation(4, groups=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(120):
        x = torch.randn(4, 4, 32, 32)
        for _ in range(3):
            x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), "circular"), 5, stride=1)
        x = x / x.std()
        wrong = (net(x) - x.roll((2, -3), (2, 3)))[..., 8:-8, 8:-8].square().mean()
        optimiser.zero_grad()
        wrong.backward()
        optimiser.step()
    found = net.motion(x)[0, 0, :, 8:-8, 8:-8].mean((1, 2))
    assert wrong < 0.05
    assert torch.allclose(found, torch.tensor([-3.0, 2.0]), atol=0.3)


def test_convolutions_of_a_translation():
    one, two = ConvTranslation(8), ConvTranslation(8, times=2)
    assert parameters(two) == 2 * parameters(one) == 2 * (8 * 8 * 9 + 8)


# ------------------------------------------------------------------ SpaT-SparK


def test_published_size_of_spat_spark():
    with torch.device("meta"):
        net = network("spat", "paper")
    total, translation = parameters(net) / 1e6, parameters(net.translation) / 1e6
    assert round(total, 1) == 96.5 and round(total - translation, 1) == 43.4
    assert net.strides == [4, 8, 16, 32] and net.multiple == 32
    assert net.translation.reach(net.strides) == [8, 16, 16, 32]


@pytest.mark.parametrize("kind", TRANSLATIONS)
def test_every_parameter_learns_where_blocks_are_hidden(kind):
    torch.manual_seed(0)
    net = SMALL["spat"](translate=kind, finetune_mask=0.5)
    check_module(net, (torch.rand(2, 12, 32, 32),), (2, 12, 32, 32))
    assert all(fill.token.requires_grad for fill in net.densify)
    assert not any(fill.token.requires_grad for fill in SMALL["spat"]().densify)


def test_blocks_are_hidden_while_training_only():
    torch.manual_seed(0)
    net = SMALL["spat"](finetune_mask=0.5)
    x = torch.rand(3, 12, 64, 32)
    assert (net.train().hide(x).sum((1, 2, 3)) == 4).all()
    assert not net.eval().hide(x).any()
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        assert torch.equal(net(x), net(x, torch.zeros(3, 1, 4, 2)))
        assert not torch.equal(net.train()(x), net(x))
    with pytest.raises(DataError, match="visible blocks"):
        net(x, torch.ones(3, 1, 4, 2))
    with pytest.raises(DataError, match="mask"):
        net(x, torch.zeros(3, 12, 4, 2))


@pytest.mark.parametrize("guess", ["none", "last"])
def test_hidden_pixels_do_not_leak(guess):
    torch.manual_seed(0)
    net = SMALL["spat"](guess=guess).eval()
    nn.init.normal_(net.decoder.head.weight)
    x, mask = torch.rand(1, 12, 64, 64), torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = 1
    other = x.clone()
    other[..., 16:32, 32:48] = torch.nan
    with torch.no_grad():
        assert torch.equal(net(x, mask), net(other, mask))
        assert not torch.equal(net(x), net(x, mask))


@pytest.mark.parametrize("kind", ["mean", "block"])
def test_denormalising_leaks_and_only_there(kind):
    torch.manual_seed(0)
    net = SMALL["spat"](denormalise=kind).eval()
    x, mask = torch.rand(1, 12, 64, 64), torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = 1
    other = x.clone()
    other[..., 16:32, 32:48] *= 3
    with torch.no_grad():
        changed = (net(x, mask) != net(other, mask))[0].any(0)
    assert changed[16:32, 32:48].all() and changed.sum() == 256


def test_a_decoder_that_says_nothing_forecasts_the_means_of_blocks():
    net = SMALL["spat"](denormalise="block").eval()
    for p in (net.decoder.head.weight, net.decoder.head.bias):
        nn.init.zeros_(p)
    x = torch.rand(1, 12, 32, 32)
    forecast = net(x)
    assert torch.allclose(forecast[0, :, :16, 16:], x[0, :, :16, 16:].mean(), atol=1e-6)
    mean, spread = block_statistics(x, 16, floor=0.3)
    assert torch.allclose(forecast, mean.expand_as(forecast), atol=1e-6)
    expected = (x[0, :, 16:, :16].var(correction=0) + 0.3**2).sqrt()
    assert torch.allclose(spread[0, 0, 16:, :16], expected, atol=1e-6)


def test_choices_of_spat_spark_are_checked():
    wrong = [dict(denormalise="yes"), dict(denormalise="block", guess="last")]
    wrong += [dict(finetune_mask=1.0), dict(finetune_mask=-0.1), dict(translate="lstm")]
    for options in wrong:
        with pytest.raises(DataError, match="SpaTSparK|Translation"):
            SMALL["spat"](**options)


# ------------------------------------------------------------------ weights that move


def small_spark(frames=12, widths=(8, 16, 16, 16)):
    "A SparK that fits the small SpaT-SparK."
    return SparK(SmallResNet(frames, widths), frames=frames, size=32, width=32)


def test_without_translation_it_is_the_pretrained_network():
    torch.manual_seed(0)
    spark, net = small_spark().eval(), SMALL["spat"](translate="identity").eval()
    x = torch.rand(2, 12, 32, 32)
    mask = torch.zeros(2, 1, 2, 2)
    mask[:, 0, 0, 1] = 1
    with torch.no_grad():
        assert not torch.equal(net(x), spark(x))
        report = net.start_from(spark.state_dict())
        assert torch.equal(net(x), spark(x)) and torch.equal(net(x, mask), spark(x, mask))
    assert set(report["moved"]) == set(spark.state_dict()) and report["fresh"] == []


@pytest.mark.parametrize("guess", ["none", "last"])
def test_every_name_is_accounted_for(guess):
    torch.manual_seed(0)
    spark, net = small_spark(), SMALL["spat"](translate="residual", guess=guess)
    report = net.start_from(spark.state_dict())
    state = net.state_dict()
    assert sorted(report["moved"] + report["fresh"]) == sorted(state)
    assert all(torch.equal(state[name], spark.state_dict()[name]) for name in report["moved"])
    fresh = [name for name in report["fresh"] if not name.startswith("translation.")]
    zero = ["decoder.head.weight", "decoder.head.bias"]
    assert fresh == ([] if guess == "none" else zero)
    x = torch.rand(1, 12, 32, 32)
    if guess == "last":
        assert torch.equal(net.eval()(x), x[:, -1:].expand(-1, 12, -1, -1))


def test_weights_that_do_not_fit_are_refused_and_nothing_is_moved():
    torch.manual_seed(0)
    weights, net = small_spark().state_dict(), SMALL["spat"]()
    before = {name: w.clone() for name, w in net.state_dict().items()}
    first = next(iter(weights))
    cases = {
        f"1 missing: {first}": {n: w for n, w in weights.items() if n != first},
        "1 unknown: more": weights | {"more": torch.zeros(1)},
        f"misshapen: {first}": small_spark(widths=(16, 16, 16, 16)).state_dict(),
        "unknown: fc.encoder": {f"fc.{n}": w for n, w in weights.items()},
    }
    for message, wrong in cases.items():
        with pytest.raises(CheckpointError, match=message):
            net.start_from(wrong)
    assert all(torch.equal(w, before[name]) for name, w in net.state_dict().items())
    with pytest.raises(CheckpointError, match="misshapen: decoder.head"):
        SMALL["spat"](out_frames=6).start_from(weights)


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("name", SMALL)
def test_four_sequences_can_be_learned_by_heart(name):
    torch.manual_seed(0)
    rain = moving_rain(4)
    x, y = network_input(rain[:, :12]), transform(rain[:, 12:])
    net = SMALL[name](guess="last")
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    losses = []
    for _ in range(35):
        losses.append(F.mse_loss(net(x), y))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 3


def test_the_same_seed_makes_the_same_network():
    x = torch.rand(1, 12, 32, 32)
    for name in NETWORKS:
        answers = []
        for _ in range(2):
            torch.manual_seed(3)
            answers.append(network(name, guess="none").eval()(x))
        assert torch.equal(*answers)


def test_networks_by_name():
    assert isinstance(network("smaat", out_frames=1), SmaAtUNet)
    assert network("unet", width=8).head.in_channels == 8
    with torch.device("meta"):
        assert round(parameters(network("smaat", "paper", out_frames=1)) / 1e6, 2) == 4.03
        assert network("spat", "paper", extra=2).encoder.conv1.in_channels == 14
    for name, size in (("lstm", "small"), ("unet", "huge")):
        with pytest.raises(DataError, match="network: "):
            network(name, size)
