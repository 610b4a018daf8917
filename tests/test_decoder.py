"""UPerNet and the check harness."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslpdl_nb.core import DataError, SSLPDLError
from sslpdl_nb.decoder import PyramidPooling, UPerNet, check_module, resize

CHANNELS = [4, 8, 16, 32]


def maps(b=2, h=32, w=16):
    return [torch.randn(b, c, max(h >> i, 1), max(w >> i, 1)) for i, c in enumerate(CHANNELS)]


@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("classes", [3, 16])
@pytest.mark.parametrize("h, w", [(32, 16), (8, 8), (23, 9)])
def test_shape_gradient_and_batch_of_one(b, classes, h, w):
    torch.manual_seed(0)
    check_module(
        UPerNet(CHANNELS, classes, 8, 12),
        (maps(b, h, w), (2 * h, 2 * w)),
        (b, classes, 2 * h, 2 * w),
    )


def test_deepest_map_of_one_pixel():
    net = UPerNet(CHANNELS, 3, 8, 8)
    for b in (1, 2):
        assert net(maps(b, 8, 8), (16, 16)).isfinite().all()


def test_training_and_inference_agree():
    net, features = UPerNet(CHANNELS, 3, 8, 8), maps()
    assert torch.equal(net.train()(features, (64, 32)), net.eval()(features, (64, 32)))


def test_size_of_the_papers_head():
    head = UPerNet([64, 128, 256, 512], 3, ppm_dim=512, fpn_dim=256)
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 1) == 11.2


def test_other_numbers_of_maps_and_scales():
    net = UPerNet([6, 6], 2, 4, 4, pool_scales=(1, 4))
    assert net([torch.randn(1, 6, 8, 8), torch.randn(1, 6, 4, 4)], (9, 9)).shape == (1, 2, 9, 9)
    assert len(PyramidPooling(6, 4, 4, (1, 4)).branches) == 2


def test_raw_values_are_not_probabilities():
    torch.manual_seed(0)
    out = UPerNet(CHANNELS, 3, 8, 8)(maps(), (32, 16))
    assert out.min() < 0 and not torch.allclose(out.sum(1), torch.ones(2, 32, 16))


def test_wrong_maps_are_named():
    net = UPerNet(CHANNELS, 3, 8, 8)
    with pytest.raises(DataError, match="channels of the maps"):
        net(maps()[:3], (64, 32))
    with pytest.raises(DataError, match="channels of the maps"):
        net(maps()[::-1], (64, 32))


def test_resize():
    x = torch.randn(1, 2, 4, 6)
    assert resize(x, (4, 6)) is x
    enlarged = resize(torch.full((1, 1, 3, 5), 2.5), (7, 4))
    torch.testing.assert_close(enlarged, torch.full((1, 1, 7, 4), 2.5))


def test_pyramid_by_hand():
    "Each level is the sum of its lateral map and the enlarged level below, then smoothed."
    torch.manual_seed(0)
    net, features = UPerNet(CHANNELS[:2], 3, 8, 8), maps()[:2]
    deepest = net.pool(features[1])
    below = net.laterals[0](features[0]) + resize(deepest, features[0].shape[-2:])
    finest, coarsest = net.pyramid(features)
    assert torch.equal(coarsest, deepest)
    assert torch.equal(finest, net.smooths[0](below))


class Constant(nn.Module):
    "The input times a parameter and a constant."

    def __init__(self, value):
        super().__init__()
        self.p, self.value = nn.Parameter(torch.ones(1)), value

    def forward(self, x):
        return self.p * x * self.value


@pytest.mark.parametrize(
    "module, words",
    [
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Dropout(1.0)), "gradient"),
        (Constant(float("nan")), "finite"),
        (nn.BatchNorm2d(2, track_running_stats=False), "alone"),
    ],
)
def test_check_module_catches(module, words):
    with pytest.raises(SSLPDLError, match=words):
        check_module(module, (torch.randn(3, 2, 4, 4),))


def test_check_module_shape_and_no_side_effects():
    net, x = nn.Conv2d(2, 2, 1), torch.randn(3, 2, 4, 4)
    before = net.weight.detach().clone()
    with pytest.raises(SSLPDLError, match="shape"):
        check_module(net, (x,), (3, 2, 5, 5))
    check_module(net, (x,), (3, 2, 4, 4))
    assert torch.equal(net.weight, before) and net.weight.grad is None and net.training
