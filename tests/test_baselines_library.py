"""Networks of libraries: an exchanged layer, maps of any size, no downloads, CAMT."""

from __future__ import annotations

import socket
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, gelu, layer_norm, linear

from sslpdl_nb.baselines.library import (
    ChannelAttention,
    ConvNextLayer,
    SwinCAMT,
    camt_loss,
    convnext_upernet,
    deeplab,
    exchange_layers,
    fitting_rates,
    pad_to_multiple,
    segformer,
)
from sslpdl_nb.baselines.networks import Network
from sslpdl_nb.baselines.protocol import toy, toy_skill
from sslpdl_nb.core import DataError, get_config, set_seed
from sslpdl_nb.decoder import check_module
from sslpdl_nb.encoder import InternLayer
from sslpdl_nb.finetune import rain_model
from sslpdl_nb.labels import label_loss, mixed_labels, one_hot
from sslpdl_nb.masking import MaskedModel, random_mask

CONFIG = get_config("small")
SMALL = dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))


def swin(config, pixel=False):
    return SwinCAMT(config, pixel=pixel, **SMALL)


LIBRARY = [(segformer, 3), (deeplab, 3), (swin, 4)]


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(autouse=True)
def needs_library(request):
    if "smp" in request.keywords or "build" in request.fixturenames:
        pytest.importorskip("segmentation_models_pytorch")


# ------------------------------------------------------------------ one layer exchanged


def test_convnext_layer_written_out():
    torch.manual_seed(0)
    layer, x = ConvNextLayer(6).eval(), torch.randn(2, 8, 5, 6)
    w = dict(layer.block.named_parameters())
    y = conv2d(x.movedim(-1, 1), w["conv_dw.weight"], w["conv_dw.bias"], padding=3, groups=6)
    y = layer_norm(y.movedim(1, -1), (6,), w["norm.weight"], w["norm.bias"], 1e-6)
    y = gelu(linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    y = x + linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    assert torch.allclose(layer(x), y, atol=1e-5)


def test_only_the_layers_are_exchanged():
    ours, twin = rain_model(CONFIG), convnext_upernet(CONFIG)
    assert isinstance(twin, MaskedModel)
    layers = [n for n, m in ours.named_modules() if isinstance(m, InternLayer)]
    assert len(layers) == 10 and not any(isinstance(m, InternLayer) for m in twin.modules())

    def outside(net):
        inside = tuple(f"{name}." for name in layers)
        return {n: p.shape for n, p in net.state_dict().items() if not n.startswith(inside)}

    assert outside(ours) == outside(twin)
    for name in layers:
        before, after = ours.get_submodule(name), twin.get_submodule(name)
        rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in (before, after.block)]
        assert rates[0] == rates[1]
    assert parameters(twin) == 720_451
    assert exchange_layers(twin) == 0


@pytest.mark.parametrize("stride", [2, 4])
def test_twin_keeps_the_stride_and_its_gradients(stride):
    torch.manual_seed(0)
    config = get_config("small", stem_stride=stride)
    net = convnext_upernet(config)
    assert net.encoder.feature_info.reduction() == [stride * 2**i for i in range(4)]
    mask = random_mask(2, net.embed.n, 0.25)
    check_module(net, (torch.randn(2, 16, 64, 32), mask), (2, 3, 64, 32))


def test_encoders_of_timm():
    torch.manual_seed(0)
    net = convnext_upernet(CONFIG, "convnext_atto")
    check_module(net, (torch.randn(2, 16, 50, 23),), (2, 3, 50, 23))
    with pytest.raises(DataError, match="encoder: expected the name of an encoder in timm"):
        convnext_upernet(CONFIG, "no_such_network")


# ------------------------------------------------------------------ maps of any size


@pytest.mark.parametrize("h, w", [(64, 32), (1, 1), (33, 31), (112, 64)])
def test_padding_is_undone(h, w):
    x = torch.randn(2, 3, h, w)
    larger, inside = pad_to_multiple(x, 32)
    assert larger.shape[-2] % 32 == larger.shape[-1] % 32 == 0
    assert torch.equal(larger[inside], x)
    assert torch.equal(larger[..., 0, 0], x[..., 0, 0])  # the edge, repeated
    assert larger.shape[-2] - h < 32 and larger.shape[-1] - w < 32


@pytest.mark.parametrize("pixel", [False, True])
@pytest.mark.parametrize("build, outputs", LIBRARY)
def test_networks_of_the_library(build, outputs, pixel):
    torch.manual_seed(0)
    net = build(CONFIG, pixel=pixel)
    check_module(net, (torch.randn(2, 16, 40, 23),), (2, outputs, 40, 23))
    assert net.eval()(torch.randn(1, 16, 64, 32)).shape == (1, outputs, 64, 32)
    with pytest.raises(DataError, match="samples in a batch while training: expected at least 2"):
        net.train()(torch.randn(1, 16, 64, 32))


@pytest.mark.parametrize("build, outputs", LIBRARY)
def test_zero_head_means_zero_logits(build, outputs):
    net = build(CONFIG, pixel=True).eval()
    for p in net.head.parameters():
        nn.init.zeros_(p)
    assert not net(torch.randn(1, 16, 32, 32)).any()


def test_the_pixel_sees_itself():
    pytest.importorskip("segmentation_models_pytorch")
    net = segformer(CONFIG, pixel=True).eval()
    for p in net.net.segmentation_head.parameters():
        nn.init.zeros_(p)
    x = torch.randn(1, 16, 33, 31)
    assert torch.allclose(net(x), conv2d(x, net.pixel.weight, net.pixel.bias), atol=1e-6)


def test_sizes():
    pytest.importorskip("segmentation_models_pytorch")
    assert round(parameters(segformer(CONFIG)) / 1e6, 2) == 3.39
    assert round(parameters(deeplab(CONFIG)) / 1e6, 3) == 0.409
    with torch.device("meta"):  # shapes only
        assert parameters(SwinCAMT(CONFIG)) == 28_610_926
    four = get_config("small", edges=(0.1, 1.0, 10.0), class_weights=(1.0, 1.0, 1.0, 1.0))
    assert segformer(four).eval()(torch.randn(1, 16, 32, 32)).shape[1] == 4


def test_rates_in_proportion():
    assert fitting_rates((33, 33)) == (12, 24, 36)
    assert fitting_rates((4, 2)) == (1, 3, 4)
    assert fitting_rates((1, 1)) == (1, 1, 1)


# ------------------------------------------------------------------ the library itself


@pytest.mark.parametrize("build, outputs", LIBRARY)
def test_nothing_is_downloaded(build, outputs, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a network asked for the internet")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    build(CONFIG)


@pytest.mark.parametrize("make", [segformer, deeplab, SwinCAMT])
def test_missing_library_names_the_extra(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(DataError, match=r"pip install 'sslpdl_nb\[experiments\]'"):
        make(CONFIG)


# ------------------------------------------------------------------ CAMT


def test_channel_attention_is_its_formula():
    torch.manual_seed(0)
    net, x = ChannelAttention(32), torch.randn(2, 32, 6, 4)
    first, second = (net.weigh[k].weight[..., 0, 0] for k in (0, 2))
    assert first.shape == (2, 32)
    mean, largest = x.mean((2, 3)), x.flatten(2).max(-1).values
    a = torch.sigmoid(sum(gelu(s @ first.T) @ second.T for s in (mean, largest)))
    assert torch.allclose(net(x), x * (1 + a[..., None, None]), atol=1e-6)
    check_module(net, (x,), x.shape)


def test_camt_loss_by_hand():
    logits = torch.zeros(1, 4, 1, 3)
    logits[:, 3] = torch.tensor([0.5, np.log(3.0), 7.0])
    rain = torch.tensor([[[0.0, 2.0, float("nan")]]])
    loss = float(camt_loss(logits, rain, CONFIG))
    assert loss == pytest.approx(np.log(3) + 0.5**2 / 2, abs=1e-5)
    theirs = float(camt_loss(logits, rain, CONFIG, amount_weight=100, amount="class"))
    errors = 0.5**2 + (np.log(3) - 1) ** 2
    assert theirs == pytest.approx(np.log(3) + 100 * errors / 2, rel=1e-5)


def test_camt_loss_without_amount_is_the_weighted_entropy():
    torch.manual_seed(0)
    logits, rain = torch.randn(2, 4, 5, 6), 20 * torch.rand(2, 5, 6)
    rain[0, 0] = float("nan")
    entropy = label_loss(logits[:, :3], one_hot(rain, CONFIG.edges), ~rain.isnan())
    assert torch.allclose(camt_loss(logits, rain, CONFIG, amount_weight=0), entropy)
    unknown = torch.full_like(rain, float("nan"))
    assert camt_loss(logits, unknown, CONFIG) == 0


def test_camt_loss_counts_samples_by_their_importance():
    torch.manual_seed(0)
    logits, rain = torch.randn(2, 4, 5, 6), 20 * torch.rand(2, 5, 6)
    first = camt_loss(logits, rain, CONFIG, torch.tensor([1.0, 0.0]))
    assert torch.allclose(first, camt_loss(logits[:1], rain[:1], CONFIG))
    alike = camt_loss(logits, rain, CONFIG, torch.tensor([3.0, 3.0]))
    assert torch.allclose(alike, camt_loss(logits, rain, CONFIG))


def test_camt_loss_names_what_is_wrong():
    logits, rain = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2)
    with pytest.raises(DataError, match="channels: expected 3 logits and an amount, found 3"):
        camt_loss(logits, rain, CONFIG)
    with pytest.raises(DataError, match="amount: expected log or class, found 'mm'"):
        camt_loss(logits, rain, CONFIG, amount="mm")


# ------------------------------------------------------------------ they learn


@pytest.mark.parametrize("build, outputs", LIBRARY)
def test_can_be_trained_as_a_baseline(build, outputs):
    t = toy("displaced", atmospheres=6)
    loss = camt_loss if outputs == 4 else "mixed"
    config = get_config("small", image_size=(32, 32), finetune_batch=4)
    net = Network(build, config, steps=1, loss=loss, residual="share").fit(t.train, t.valid)
    p = net.predict(t.test)
    assert p.shape == (8, 3, 32, 32) and np.allclose(p.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("build, side, steps", [(convnext_upernet, 16, 40), (segformer, 32, 25)])
def test_learns_a_toy(build, side, steps):
    config = get_config("small", image_size=(side, side))
    t = toy("humid", size=config.image_size)
    set_seed(0)
    net, x, rain = build(config), t.train.inputs(), t.train.observed_rain()
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(steps):
        few = torch.randperm(len(x))[: 256 // side]
        labels = mixed_labels(rain[few], config.edges, 0, 1)
        loss = label_loss(net(x[few]), labels, ~rain[few].isnan(), (1, 1, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        p = net.eval()(t.test.inputs()).softmax(1).numpy()
    assert toy_skill(p, t)[0] > 0.2
