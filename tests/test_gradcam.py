"Grad-CAM: known answers, layouts, frozen parts, and nothing left behind."

import copy

import pytest
import torch
from torch import nn

from sslpdl_nb.core import DataError
from sslpdl_nb.gradcam import (
    GradCAM,
    cascading_randomisation,
    channels_first,
    class_activation_map,
    normalise,
    randomise_parameters,
    rank_correlation,
)


class Net(nn.Module):
    "A small segmentation network with one inner layer in either layout."

    def __init__(self, channels_last=False):
        super().__init__()
        self.last = channels_last
        self.encoder = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.GELU(), nn.Dropout(0.5))
        self.deep, self.head = nn.Identity(), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        z = self.encoder(x)
        if self.last:
            z = self.deep(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            z = self.deep(z)
        return nn.functional.interpolate(self.head(z), size=x.shape[-2:], mode="bilinear")


@pytest.fixture
def x():
    return torch.randn(3, 4, 16, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair():
    torch.manual_seed(0)
    first, last = Net(), Net(True)
    last.load_state_dict(first.state_dict())
    return first, last


def explain(net, layer, *args):
    with GradCAM(net, layer) as e:
        return e.cam(*args)


def test_range_shape_and_both_layouts(pair, x):
    mask = torch.ones(16, 8)
    first, last = (explain(net, "deep", x, 1, mask) for net in pair)
    assert first.shape == (3, 16, 8)
    assert first.min() >= 0 and first.max() <= 1
    assert torch.allclose(first, last, atol=1e-6)
    assert not first.requires_grad


def test_samples_do_not_see_each_other(pair, x):
    mask = torch.rand(3, 16, 8) > 0.5
    together = explain(pair[0], "deep", x, 2, mask)
    alone = torch.cat(
        [explain(pair[0], "deep", x[i : i + 1], 2, mask[i : i + 1]) for i in range(3)]
    )
    assert torch.allclose(together, alone, atol=1e-5)


def test_default_mask_is_the_predicted_class(pair, x):
    net = pair[0].eval()
    predicted = net(x).argmax(1) == 0
    assert torch.allclose(explain(net, "deep", x, 0), explain(net, "deep", x, 0, predicted))


def test_a_class_that_is_never_predicted_gives_zeros(pair, x):
    net = pair[0]
    nn.init.constant_(net.head.bias, 0.0)
    net.head.bias.data[2] = -1e6
    assert not explain(net, "deep", x, 2).any()


@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_or_not_is_the_same(pair, x, freeze):
    net, free = pair[0], copy.deepcopy(pair[0])
    net.encoder.requires_grad_(not freeze)
    assert torch.allclose(
        explain(net, "encoder", x, 1, torch.ones(16, 8)),
        explain(free, "encoder", x, 1, torch.ones(16, 8)),
    )


def test_nothing_stays_behind(pair, x):
    net = pair[0].train()
    net.encoder[2].eval()
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        explain(net, net.deep, x, 1)
    assert all(not m._forward_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert net.training and not net.encoder[2].training and net.encoder[0].training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_hook_is_removed_after_an_error(pair, x):
    net = pair[0]
    with pytest.raises(RuntimeError):
        with GradCAM(net, "deep") as e:
            e.cam(x[:, :2], 1)
    assert not net.deep._forward_hooks


def test_logits_are_unchanged_inside(pair, x):
    net = pair[0].eval()
    with GradCAM(net, "deep"):
        inside = net(x)
    assert torch.equal(inside, net(x))


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: explain(net, "depe", x, 1),
        lambda net, x: explain(net, nn.Identity(), x, 1),
        lambda net, x: explain(net, "deep", x, 3),
        lambda net, x: explain(net, "deep", x, -1),
        lambda net, x: explain(net, "deep", x, 1, torch.ones(3, 3)),
        lambda net, x: GradCAM(net, "deep").cam(x, 1),
    ],
)
def test_bad_requests_are_refused(pair, x, call):
    with pytest.raises(DataError, match="expected .* found"):
        call(pair[0], x)


def test_a_layer_that_does_not_lead_to_the_logits(x):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.side, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            self.side(x)
            return self.head(x)

    with pytest.raises(DataError, match="path from layer to logits"):
        explain(Cut(), "side", x, 0, torch.ones(16, 8))


def test_layout_of_odd_shapes():
    assert channels_first(torch.zeros(1, 128, 4, 2), (64, 32))
    assert not channels_first(torch.zeros(1, 4, 2, 128), (64, 32))
    assert not channels_first(torch.zeros(1, 14, 8, 512), (224, 128))
    assert channels_first(torch.zeros(1, 256, 28, 16), (224, 128))
    for ambiguous in ((1, 8, 8, 8), (1, 16, 8, 4)):
        with pytest.raises(DataError, match="layout"):
            channels_first(torch.zeros(ambiguous), (16, 8) if ambiguous[3] == 4 else (16, 16))


def test_the_layout_can_be_said(pair, x):
    "Maps (b, 16, 8, 4) fit the proportions 2 : 1 in both layouts."
    with GradCAM(pair[0], "deep", layout="nchw") as said, GradCAM(pair[0], "deep") as found:
        mask = torch.ones(16, 8)
        assert torch.equal(said.cam(x, 1, mask), found.cam(x, 1, mask))


def test_formula():
    a = torch.randn(2, 5, 3, 4)
    assert torch.allclose(class_activation_map(a, torch.ones_like(a)), a.sum(1).relu(), atol=1e-6)
    assert not class_activation_map(a.abs(), -torch.ones_like(a)).any()
    assert not normalise(torch.zeros(1, 2, 2)).any()
    assert not normalise(torch.full((1, 1, 1), 3.0)).any()


def test_rank_correlation_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randint(0, 4, (2, 1, 5, 6)).float()
    expected = stats.spearmanr(a.flatten(), b.flatten()).statistic
    assert abs(float(rank_correlation(a, b)) - expected) < 1e-9


def test_what_all_classes_share_changes_nothing(pair, x):
    net, mask = pair[0].eval(), torch.ones(16, 8)
    before = explain(net, "deep", x, 1, mask)
    net.head.weight.data += torch.randn(6)[:, None, None]  # the same for all classes
    assert torch.allclose(explain(net, "deep", x, 1, mask), before, atol=1e-4)


def test_empty_maps_prove_nothing(pair, x):
    net = pair[0].eval()
    for p in (net.encoder[0].weight, net.encoder[0].bias):
        nn.init.zeros_(p)  # nothing to see: all maps are zero
    with pytest.raises(DataError, match="empty maps"):
        cascading_randomisation(net, "deep", x, 1, torch.ones(3, 16, 8), parts=["head"])


def test_cascading_randomisation_leaves_the_model_alone(pair, x):
    net, mask = pair[0], torch.ones(3, 16, 8)
    before = copy.deepcopy(net.state_dict())
    parts = ["head", "encoder"]
    result = cascading_randomisation(net, "deep", x, 1, mask, parts=parts, seed=1)
    assert list(result) == parts and all(-1 <= v <= 1 for v in result.values())
    assert result == cascading_randomisation(net, "deep", x, 1, mask, parts=parts, seed=1)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_randomise_parameters_keeps_the_values():
    layer = nn.Linear(5, 4)
    values = layer.weight.detach().flatten().sort().values
    randomise_parameters(layer, torch.Generator().manual_seed(0))
    assert torch.equal(layer.weight.detach().flatten().sort().values, values)
