"""InternImage: sizes, stages, gradients."""

from __future__ import annotations

import pytest
import timm
import torch

from sslpdl_nb.core import VARIABLES, DataError, get_config
from sslpdl_nb.decoder import check_module
from sslpdl_nb.encoder import InternImage, InternLayer, Stem, stage_numbers


def nano(**k):
    return timm.create_model("internimage_nano", **k)


def small(**k):
    return InternImage(in_chans=5, channels=8, depths=(1, 2), groups=(1, 2), **k)


@pytest.mark.parametrize("size, published", [("tiny", 30), ("small", 50), ("base", 97)])
def test_published_parameter_counts(size, published):
    with torch.device("meta"):
        model = timm.create_model(
            f"internimage_{size}", in_chans=3, stem_stride=4, num_classes=1000
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == published


@pytest.mark.parametrize("stride", [2, 4])
def test_four_maps(stride):
    model = nano(features_only=True, in_chans=len(VARIABLES), stem_stride=stride)
    maps = model(torch.randn(2, len(VARIABLES), 64, 32))
    assert [f.shape[1] for f in maps] == model.feature_info.channels() == [16, 32, 64, 128]
    reductions = [stride * 2**i for i in range(4)]
    assert [64 // f.shape[2] for f in maps] == model.feature_info.reduction() == reductions


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(post_norm=True, layer_scale=1.0),
        dict(stem_stride=4, offset_scale=2.0),
        dict(layer_scale=1e-5),
    ],
)
def test_every_parameter_gets_a_gradient(options):
    torch.manual_seed(0)
    model = small(num_classes=3, drop_path_rate=0.0, **options)
    check_module(model, (torch.randn(3, 5, 17, 12),), (3, 3))


def test_layers_are_called():
    torch.manual_seed(0)
    layer, x = InternLayer(16, 2), torch.randn(2, 5, 4, 16)
    assert not torch.allclose(layer(x), x, atol=1e-3)
    calls = []
    model = small()
    for m in model.modules():
        if isinstance(m, InternLayer):
            m.dcn.register_forward_hook(lambda *a: calls.append(1))
    model(torch.randn(1, 5, 16, 16))
    assert len(calls) == 3


def test_pre_norm_and_post_norm():
    "The residual branch by hand, once with the norm before and once with the norm after."
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, 16)
    for post_norm in (False, True):
        layer = InternLayer(16, 2, layer_scale=0.5, post_norm=post_norm)
        if post_norm:
            y = x + 0.5 * layer.norm1(layer.dcn(x))
            y = y + 0.5 * layer.norm2(layer.mlp(y))
        else:
            y = x + 0.5 * layer.dcn(layer.norm1(x))
            y = y + 0.5 * layer.mlp(layer.norm2(y))
        torch.testing.assert_close(layer(x), y)


def test_drop_probability_grows_linearly():
    model = small(drop_path_rate=0.4)
    layers = [m for m in model.modules() if isinstance(m, InternLayer)]
    assert isinstance(layers[0].drop_path, torch.nn.Identity)
    assert [m.drop_path.drop_prob for m in layers[1:]] == pytest.approx([0.2, 0.4])


def test_stage_numbers():
    assert stage_numbers(None, 3) == [0, 1, 2]
    assert stage_numbers(2, 3) == [1, 2]
    assert stage_numbers([-1, 0], 3) == [2, 0]
    for wrong in ([], [3], [-4], 0, 4):
        with pytest.raises(DataError, match="numbers from 0 to 2"):
            stage_numbers(wrong, 3)


def test_intermediates():
    model, x = small().eval(), torch.randn(1, 5, 16, 12)
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, maps[-1]) and torch.equal(last, model.forward_features(x))
    for indices, count in ((None, 2), (1, 1), (2, 2), ([0], 1), ([-1, 0], 2)):
        chosen = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert len(chosen) == count
    early = model.forward_intermediates(
        x, indices=[0], stop_early=True, intermediates_only=True, output_fmt="NHWC"
    )
    assert early[0].shape == (1, 8, 6, 8) and torch.equal(early[0].permute(0, 3, 1, 2), maps[0])


def test_pruned_pyramid_is_smaller():
    two, four = nano(features_only=True, out_indices=(0, 1)), nano(features_only=True)
    assert len(two(torch.randn(1, len(VARIABLES), 32, 32))) == 2
    size = {n: sum(p.numel() for p in m.parameters()) for n, m in (("two", two), ("four", four))}
    assert size["two"] < 0.2 * size["four"]
    for wrong in ((3, 0), (0, 1, 2, 4), (-5,), ()):
        with pytest.raises(DataError, match="numbers from 0 to 3|rising numbers"):
            nano(features_only=True, out_indices=wrong)


def test_odd_sizes_and_one_token():
    for h, w in ((63, 31), (17, 40), (16, 16)):
        assert all(
            f.isfinite().all()
            for f in nano(features_only=True)(torch.randn(1, len(VARIABLES), h, w))
        )


def test_drop_path_only_in_training():
    torch.manual_seed(0)
    model, x = nano(features_only=True, drop_path_rate=0.5), torch.randn(4, len(VARIABLES), 32, 32)
    assert not torch.equal(model.train()(x)[3], model(x)[3])
    assert torch.equal(model.eval()(x)[3], model(x)[3])


def test_same_seed_same_weights_and_round_trip():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(nano(features_only=True).eval())
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))
    other = nano(features_only=True).eval()
    assert all(n.startswith("model.") for n in other.state_dict())
    other.load_state_dict(models[0].state_dict())
    x = torch.randn(1, len(VARIABLES), 32, 32)
    assert torch.equal(other(x)[3], models[0](x)[3])


def test_configs_name_registered_encoders():
    for preset in ("small", "course", "paper"):
        assert get_config(preset).encoder in timm.list_models("internimage*")


def test_bad_input_is_named():
    with pytest.raises(DataError, match=rf"\(b, {len(VARIABLES)}, h, w\)"):
        nano()(torch.randn(1, 3, 32, 32))
    with pytest.raises(DataError, match="stem_stride"):
        Stem(len(VARIABLES), 64, 3)
    with pytest.raises(DataError, match="pretrained"):
        nano(pretrained=True)
    with pytest.raises(DataError, match="groups"):
        InternImage(channels=10, groups=(3, 3, 3, 3))
