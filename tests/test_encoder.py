"""InternImage: sizes, stages, gradients."""

from __future__ import annotations

import pytest
import timm
import torch

import sslpdl_nb.encoder  # registers the models
from sslpdl_nb.core import DataError, get_config
from sslpdl_nb.decoder import check_module
from sslpdl_nb.encoder import InternImage, InternLayer, Stem


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
    model = nano(features_only=True, in_chans=16, stem_stride=stride)
    maps = model(torch.randn(2, 16, 64, 32))
    assert [f.shape[1] for f in maps] == model.feature_info.channels() == [16, 32, 64, 128]
    assert (
        [64 // f.shape[2] for f in maps]
        == model.feature_info.reduction()
        == [stride * 2**i for i in range(4)]
    )


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
    check_module(
        small(num_classes=3, drop_path_rate=0.0, **options), (torch.randn(3, 5, 17, 12),), (3, 3)
    )


def test_layers_are_called():
    torch.manual_seed(0)
    layer, x = InternLayer(16, 2), torch.randn(2, 5, 4, 16)
    assert not torch.allclose(layer(x), x, atol=1e-3)
    seen = []
    model = small()
    for m in model.modules():
        if isinstance(m, InternLayer):
            m.dcn.register_forward_hook(lambda *a: seen.append(1))
    model(torch.randn(1, 5, 16, 16))
    assert len(seen) == 3


def test_intermediates():
    model, x = small().eval(), torch.randn(1, 5, 16, 12)
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, maps[-1]) and torch.equal(last, model.forward_features(x))
    assert [
        len(model.forward_intermediates(x, indices=i, intermediates_only=True))
        for i in (None, 1, 2, [0], [-1, 0])
    ] == [2, 1, 2, 1, 2]
    early = model.forward_intermediates(
        x, indices=[0], stop_early=True, intermediates_only=True, output_fmt="NHWC"
    )
    assert early[0].shape == (1, 8, 6, 8) and torch.equal(early[0].permute(0, 3, 1, 2), maps[0])


def test_pruned_pyramid_is_smaller():
    two = nano(features_only=True, out_indices=(0, 1))
    assert len(two(torch.randn(1, 16, 32, 32))) == 2
    assert sum(p.numel() for p in two.parameters()) < 0.2 * sum(
        p.numel() for p in nano(features_only=True).parameters()
    )
    for wrong in ((3, 0), (0, 1, 2, 4), (-5,), ()):
        with pytest.raises(DataError, match="numbers from 0 to 3|rising numbers"):
            nano(features_only=True, out_indices=wrong)


def test_odd_sizes_and_one_token():
    for h, w in ((63, 31), (17, 40), (16, 16)):
        assert all(f.isfinite().all() for f in nano(features_only=True)(torch.randn(1, 16, h, w)))


def test_drop_path_only_in_training():
    torch.manual_seed(0)
    model, x = nano(features_only=True, drop_path_rate=0.5), torch.randn(4, 16, 32, 32)
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
    x = torch.randn(1, 16, 32, 32)
    assert torch.equal(other(x)[3], models[0](x)[3])


def test_configs_name_registered_encoders():
    for preset in ("small", "course", "paper"):
        assert get_config(preset).encoder in timm.list_models("internimage*")


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"\(b, 16, h, w\)"):
        nano()(torch.randn(1, 3, 32, 32))
    with pytest.raises(DataError, match="stem_stride"):
        Stem(16, 64, 3)
    with pytest.raises(DataError, match="pretrained"):
        nano(pretrained=True)
    with pytest.raises(DataError, match="groups"):
        InternImage(channels=10, groups=(3, 3, 3, 3))
