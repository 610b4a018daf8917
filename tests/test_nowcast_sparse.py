"Sparse convolution by its definition, holes that stay holes, and a loss of hidden blocks only."

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from sslpdl_nb.core import DataError
from sslpdl_nb.decoder import check_module
from sslpdl_nb.nowcast.sparse import (
    Densify,
    LightDecoder,
    ResidualBlock,
    SmallResNet,
    SparK,
    SparseAvgPool2d,
    SparseBatchNorm2d,
    SparseConv2d,
    SparseMaxPool2d,
    block_normalise,
    from_blocks,
    hidden_loss,
    hide_blocks,
    lent_mask,
    sparse_features,
    sparsify,
    to_blocks,
    visible_cells,
)

FRAMES, SIDE, BLOCK = 4, 48, 8


def random(seed, *shape):
    "Normal numbers."
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask_of(b, cells=(6, 6), ratio=0.6, seed=0, frames=1):
    "A mask that is the same in each run."
    return hide_blocks(b, cells, ratio, torch.Generator().manual_seed(seed), frames)


def tiny(seed=0, **options):
    "A small model for frames of 48 x 48."
    torch.manual_seed(seed)
    settings = dict(frames=FRAMES, size=SIDE, block=BLOCK, width=32) | options
    return SparK(SmallResNet(FRAMES, (8, 16, 32)), **settings)


def showers(seed=0, n=2):
    "Standardised frames of round showers that move steadily."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    t = np.arange(FRAMES)[:, None, None]
    frames = np.zeros((n, FRAMES, SIDE, SIDE))
    for k in range(n):
        for _ in range(4):
            (y0, x0), (v, u) = rng.uniform(0, SIDE, 2), rng.normal(size=2)
            frames[k] += np.exp(-((y - y0 - v * t) ** 2 + (x - x0 - u * t) ** 2) / 72)
    return torch.from_numpy((frames - frames.mean()) / frames.std()).float()


def gather(x, weight, bias, visible, stride=1):
    "Sparse convolution of one sample (c, h, w) by lists of cells; visible at both resolutions."
    seen, wanted = visible
    half = weight.shape[-1] // 2
    cells = set(map(tuple, seen.nonzero().tolist()))
    out = x.new_zeros(len(weight), *wanted.shape)
    for i, j in wanted.nonzero().tolist():
        out[:, i, j] = bias
        for di in range(-half, half + 1):
            for dj in range(-half, half + 1):
                at = (stride * i + di, stride * j + dj)
                if at in cells:
                    out[:, i, j] += weight[:, :, half + di, half + dj] @ x[:, at[0], at[1]]
    return out


# ------------------------------------------------------------------ masks


def test_blocks_are_exact_fair_and_repeatable():
    assert torch.equal(mask_of(3), mask_of(3)) and not torch.equal(mask_of(3), mask_of(3, seed=1))
    many = mask_of(4000, (3, 4), 0.5)
    assert many.shape == (4000, 1, 3, 4) and set(many.unique().tolist()) == {0, 1}
    assert (many.sum((1, 2, 3)) == 6).all()
    assert (many.mean(0) - 0.5).abs().max() < 0.04
    assert mask_of(2, ratio=0).sum() == 0 and mask_of(2, ratio=1).mean() == 1


def test_the_paper_keeps_57_or_32_of_81_blocks():
    for ratio, kept in ((0.3, 57), (0.6, 32)):
        assert ((1 - mask_of(2, (9, 9), ratio)).sum((1, 2, 3)) == kept).all()


def test_other_blocks_in_each_frame():
    mask = mask_of(50, frames=12)
    assert mask.shape == (50, 12, 6, 6) and (mask.sum((2, 3)) == 22).all()
    assert (mask[:, 1:] != mask[:, :1]).flatten(1).any(1).all()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 60])
def test_impossible_ratios(ratio):
    with pytest.raises(DataError, match="ratio: expected a number from 0 to 1"):
        hide_blocks(1, (6, 6), ratio)


def test_cells_by_loops():
    mask = mask_of(3, (4, 6))
    fine, coarse = visible_cells(mask, (8, 24)), visible_cells(mask, (2, 2))
    for n, i, j in np.ndindex(3, 8, 24):
        assert fine[n, 0, i, j] == (mask[n, 0, i // 2, j // 4] == 0)
    for n, i, j in np.ndindex(3, 2, 2):
        below = mask[n, 0, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
        assert coarse[n, 0, i, j] == (below == 0).any()
    assert torch.equal(visible_cells(mask, (4, 6)), mask == 0)
    with pytest.raises(DataError, match="multiple or a divisor of its 4 blocks, found 6"):
        visible_cells(mask, (6, 6))


# ------------------------------------------------------------------ single layers


@pytest.mark.parametrize("k, stride", [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_masked_convolution_is_sparse_convolution(k, stride):
    torch.manual_seed(k)
    layer = SparseConv2d(3, 5, k, stride, padding=k // 2).double()
    x, mask = random(0, 2, 3, 12, 12).double(), mask_of(2)
    size = 12 // stride
    with torch.no_grad():
        found = sparse_features(layer, x, mask)
        for n in range(2):
            visible = [visible_cells(mask, (s, s))[n, 0] for s in (12, size)]
            expected = gather(x[n], layer.weight, layer.bias, visible, stride)
            assert torch.allclose(found[n], expected, atol=1e-12)


def test_a_dense_layer_between_would_leak():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]
    x, mask = random(0, 1, 3, 12, 12), mask_of(1)
    visible = visible_cells(mask, (12, 12))
    dense = nn.Sequential(*layers)(x * visible)
    sparse = sparse_features(sparsify(nn.Sequential(*layers)), x, mask)
    assert ((dense - sparse).abs() * visible).max() > 1e-2


def test_statistics_are_those_of_visible_cells():
    x, mask = 3 + random(0, 4, 5, 12, 12), mask_of(4)
    norm = SparseBatchNorm2d(5, momentum=0.3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    out = sparse_features(norm, x, mask)
    seen = visible_cells(mask, (12, 12))[:, 0].numpy()
    cells = x.movedim(1, -1).numpy()[seen].astype(float)
    mean, variance = cells.mean(0), cells.var(0)
    expected = (cells - mean) / np.sqrt(variance + norm.eps)
    expected = expected * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    found = out.detach().movedim(1, -1).numpy()
    assert np.allclose(found[seen], expected, atol=1e-5) and (found[~seen] == 0).all()
    assert np.allclose(norm.running_mean, 0.3 * mean, atol=1e-6)
    assert np.allclose(norm.running_var, 0.7 + 0.3 * cells.var(0, ddof=1), atol=1e-6)


def test_few_visible_cells():
    norm, x = SparseBatchNorm2d(2, eps=1e-9, momentum=1.0), random(0, 1, 2, 6, 6)
    two, one = torch.ones(1, 1, 6, 6), torch.ones(1, 1, 6, 6)
    two[..., 0, :2] = one[..., 3, 3] = 0
    pair = sparse_features(norm, x, two)[0, :, 0, :2]
    assert torch.allclose(pair.abs(), torch.ones(2, 2), atol=1e-3)  # two numbers: -1 and 1
    assert torch.allclose(norm.running_mean, x[0, :, 0, :2].mean(1))
    stored = norm.running_mean.clone()
    with pytest.raises(DataError, match="visible cells of a batch in training: expected at least"):
        sparse_features(norm, x, one)
    assert torch.equal(norm.running_mean, stored)
    alone = sparse_features(norm.eval(), x, one)
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)[..., 3, 3]
    assert torch.allclose(alone[..., 3, 3], expected) and alone.count_nonzero() == 2


@pytest.mark.parametrize(
    "layer",
    [
        SparseMaxPool2d(3, 2, 1),
        SparseMaxPool2d(2),
        SparseAvgPool2d(2),
        SparseAvgPool2d(3, 2, 1),
        SparseAvgPool2d(2, ceil_mode=True, count_include_pad=False),
    ],
)
def test_pooling_by_loops(layer):
    x, k, p = random(0, 2, 3, 12, 12) - 5, layer.kernel_size, layer.padding  # a zero would win
    for blocks in ((6, 6), (12, 12)):  # windows within blocks, windows that see several blocks
        mask = mask_of(2, blocks)
        found = sparse_features(layer, x, mask)
        seen, wanted = (visible_cells(mask, (s, s))[:, 0] for s in (12, 6))
        for n, i, j in np.ndindex(2, 6, 6):
            rows = slice(max(2 * i - p, 0), 2 * i - p + k)
            columns = slice(max(2 * j - p, 0), 2 * j - p + k)
            inside = seen[n, rows, columns]
            cells = x[n, :, rows, columns][:, inside]
            if not wanted[n, i, j]:
                assert (found[n, :, i, j] == 0).all()
            elif isinstance(layer, nn.MaxPool2d):
                assert torch.equal(found[n, :, i, j], cells.amax(1))
            else:  # padding counts as zeros, as in the ordinary layer
                expected = cells.mean(1) * inside.numel() / k**2
                assert torch.allclose(found[n, :, i, j], expected)
    with lent_mask(layer.modules(), torch.zeros(2, 1, 6, 6)):
        through_all = layer(x)
    assert torch.allclose(through_all, layer(x))


# ------------------------------------------------------------------ networks


NETWORKS = {
    "small": lambda: SmallResNet(FRAMES, (8, 16, 32), depth=2),
    "resnet10t": lambda: timm.create_model("resnet10t", features_only=True, in_chans=FRAMES),
    "resnet18": lambda: timm.create_model("resnet18", features_only=True, in_chans=FRAMES),
}


@pytest.fixture(params=NETWORKS)
def pair(request):
    "A dense network with lived-in statistics, and its sparse form."
    torch.manual_seed(0)
    dense = NETWORKS[request.param]().double()
    with torch.no_grad():
        dense(random(5, 3, FRAMES, 64, 64).double())
    return dense, sparsify(copy.deepcopy(dense))


def test_all_visible_is_the_dense_network(pair):
    dense, sparse = pair
    x, nothing = random(0, 2, FRAMES, 64, 64).double(), torch.zeros(2, 1, 2, 2)
    for training in (False, True):
        dense.train(training)
        sparse.train(training)
        with lent_mask(sparse.modules(), nothing):
            through_all = sparse(x)
        for a, b in zip(dense(x), through_all, strict=True):
            assert (a - b).abs().max() < 1e-6
    for a, b in zip(dense.buffers(), sparse.buffers(), strict=True):
        assert torch.allclose(a, b)


def test_without_a_mask_nothing_has_changed(pair):
    x = random(0, 2, FRAMES, 64, 64).double()
    for training in (False, True):
        dense, sparse = (network.train(training) for network in pair)
        assert all(map(torch.equal, dense(x), sparse(x)))


def test_all_visible_in_single_precision():
    torch.manual_seed(0)
    dense = SmallResNet().eval()
    sparse = sparsify(copy.deepcopy(dense))
    x = random(0, 2, 12, 96, 96)
    nothing = torch.zeros(2, 1, 6, 6)
    with torch.no_grad(), lent_mask(sparse.modules(), nothing):
        through_all = sparse(x)
        assert max((a - b).abs().max() for a, b in zip(dense(x), through_all)) < 1e-6


def test_the_detour_is_left_out_if_nothing_is_hidden():
    network = sparsify(SmallResNet(FRAMES, (8,)))
    seen, x = [], random(0, 2, FRAMES, 48, 48)
    network.stages[0].register_forward_hook(lambda m, *_: seen.append(m[0].conv1.mask is None))
    one = torch.zeros(2, 1, 3, 3)
    one[1, 0, 0, 0] = 1
    for mask in (torch.zeros(2, 1, 3, 3), one):
        sparse_features(network.eval(), x, mask)
    assert seen == [True, False]


def test_hidden_pixels_are_never_read(pair):
    sparse = pair[1]
    x, mask = random(0, 2, FRAMES, 64, 64).double(), mask_of(2, (2, 2), 0.5)
    hidden = ~visible_cells(mask, (64, 64))
    for training in (False, True):
        sparse.train(training)
        state = copy.deepcopy(sparse.state_dict())
        maps = sparse_features(sparse, x, mask)
        after = copy.deepcopy(sparse.state_dict())
        for other in (1e3, torch.nan, torch.inf):
            sparse.load_state_dict(state)
            changed = sparse_features(sparse, x.masked_fill(hidden, other), mask)
            assert all(map(torch.equal, maps, changed))
            assert all(torch.equal(after[k], v) for k, v in sparse.state_dict().items())
        for m in maps:
            visible = visible_cells(mask, m.shape[-2:])
            assert (m * ~visible == 0).all() and m.isfinite().all() and (m * visible != 0).any()


def test_visible_cells_far_from_a_change_do_not_move():
    "A change inside of one visible block stays inside of its connected visible region."
    sparse = sparsify(SmallResNet(FRAMES, (8, 16, 32), depth=2)).eval()
    mask = torch.ones(1, 1, 6, 6)
    mask[..., 0, 0] = mask[..., 0, 2] = mask[..., 5, 5] = 0  # three islands
    x = random(0, 1, FRAMES, 48, 48)
    other = x.clone()
    other[..., :8, :8] += 1
    for a, b in zip(sparse_features(sparse, x, mask), sparse_features(sparse, other, mask)):
        k = a.shape[-1] // 6
        assert torch.equal(a[..., 2 * k :], b[..., 2 * k :]) and not torch.equal(a, b)


def test_weights_move_strictly_and_completely(pair):
    dense, sparse = pair
    assert list(dense.state_dict()) == list(sparse.state_dict())
    for source, target in ((sparse, dense), (dense, sparse)):
        with torch.no_grad():
            for p in source.parameters():
                p.add_(1)
        target.load_state_dict(source.state_dict(), strict=True)
        moved = target.state_dict()
        assert all(torch.equal(v, moved[k]) for k, v in source.state_dict().items())


def test_other_names_are_not_loaded_silently():
    model, other = tiny(), tiny(seed=1)
    weights = model.encoder.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(weights)
    other.encoder.load_state_dict(weights)
    x = showers()
    maps = [m.eval().encode(x)[0] for m in (model, other)]
    assert all(map(torch.equal, *maps))


def test_two_networks_do_not_share_their_mask():
    first, second = (sparsify(SmallResNet(FRAMES, (8,))) for _ in range(2))
    x, mask = random(0, 2, FRAMES, 48, 48), mask_of(2)
    outer = {}

    def look(module, inputs, output):
        outer["dense"] = torch.equal(second(x)[0], copy.deepcopy(second)(x)[0])
        outer["masks"] = {type(m.mask) for m in second.modules() if hasattr(m, "mask")}

    first.stages[0].register_forward_hook(look)
    sparse_features(first, x, mask)
    assert outer == dict(dense=True, masks={type(None)})
    assert all(m.mask is None for m in first.modules() if hasattr(m, "mask"))


def test_the_mask_goes_back_after_an_error():
    network = sparsify(SmallResNet(FRAMES, (8,)))
    with pytest.raises(RuntimeError):
        sparse_features(network, torch.zeros(1, FRAMES + 1, 48, 48), mask_of(1))
    assert all(m.mask is None for m in network.modules() if hasattr(m, "mask"))


@pytest.mark.parametrize(
    "network, layer, kind",
    [
        (lambda: timm.create_model("convnext_atto", features_only=True), "stem_1", "LayerNorm2d"),
        (lambda: timm.create_model("seresnet18", features_only=True), "layer1.0.se", "SEModule"),
        (lambda: timm.create_model("resnet18"), "global_pool", "SelectAdaptivePool2d"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid()), "1", "Sigmoid"),
        (lambda: nn.Sequential(nn.ReLU(), nn.MultiheadAttention(8, 2)), "1", "MultiheadAttention"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm(4)), "1", "LayerNorm"),
        (lambda: nn.Sequential(nn.MaxPool2d(1, 2)), "0", "MaxPool2d"),
        (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1, dilation=2)), "0", "MaxPool2d"),
        (lambda: nn.Sequential(nn.AvgPool2d(3, 3, 1)), "0", "AvgPool2d"),
    ],
)
def test_layers_without_a_sparse_form(network, layer, kind):
    network = network()
    before = [type(m) for m in network.modules()]
    with pytest.raises(DataError, match=f"layer '{layer}': expected .*, found {kind}"):
        sparsify(network)
    assert [type(m) for m in network.modules()] == before


def test_own_containers_are_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    with pytest.raises(DataError, match="layer '': expected .*, found Twice"):
        sparsify(Twice())
    out = sparse_features(sparsify(Twice(), (Twice,)), random(0, 1, 2, 12, 12), mask_of(1))
    assert (out * ~visible_cells(mask_of(1), (12, 12)) == 0).all()


def test_features_need_sparse_layers_and_one_mask():
    x = torch.zeros(2, FRAMES, 48, 48)
    with pytest.raises(DataError, match="expected sparse layers .*, found SmallResNet"):
        sparse_features(SmallResNet(FRAMES), x, mask_of(2))
    network = sparsify(SmallResNet(FRAMES, (8,)))
    for mask in (mask_of(2, frames=FRAMES), mask_of(1), mask_of(2)[:, 0]):
        with pytest.raises(DataError, match="the same blocks in all frames"):
            sparse_features(network, x, mask)


# ------------------------------------------------------------------ densify, decode


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_shortcut_is_a_strided_convolution_in_any_layout(layout):
    block = ResidualBlock(12, 32, stride=2).eval()
    x = random(0, 2, 12, 96, 96)
    inner = F.relu(block.norm1(block.conv1(x)))
    strided = F.conv2d(x, block.shortcut[0].weight, stride=2)
    expected = F.relu(block.norm2(block.conv2(inner)) + block.shortcut[1](strided))
    block = block.to(memory_format=layout)
    out = block(x.contiguous(memory_format=layout))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.square().mean().backward()  # a layer with this stride wrote outside its memory here
    assert block.shortcut[0].weight.grad.abs().sum() > 0


def test_tokens_fill_holes():
    densify, x, mask = Densify(5, 7, kernel=1), random(0, 2, 5, 12, 12), mask_of(2)
    hidden = ~visible_cells(mask, (12, 12))[:, 0]
    out = densify(x, mask)
    token = densify.project(densify.token[None])[0, :, 0, 0]
    assert torch.allclose(out.movedim(1, -1)[hidden], token, atol=1e-6)
    check_module(Densify(5, 7, kernel=3), (x, mask), (2, 7, 12, 12), batch=False)


def test_decoder_sizes():
    decoder = LightDecoder(64, 4, 5)
    assert decoder.widths == [64, 32, 16, 8, 4]
    maps = [random(k, 2, w, s, s) for k, (w, s) in enumerate(((8, 24), (16, 12), (32, 6), (64, 3)))]
    check_module(decoder, (maps,), (2, 5, 48, 48))
    out = decoder.eval()(maps)
    for k in range(4):  # every level is used
        others = [m + 1 if i == k else m for i, m in enumerate(maps)]
        assert not torch.equal(decoder(others), out)
    with pytest.raises(DataError, match="width: expected a multiple of 16"):
        LightDecoder(40, 4, 5)


# ------------------------------------------------------------------ the loss


def test_blocks_round_trip():
    x = random(0, 2, 6, 8, 12)
    for t in (1, 2, 6):
        blocks = to_blocks(x, t, 4)
        assert blocks.shape == (2, 6 // t, 2, 3, t * 16)
        assert torch.equal(from_blocks(blocks, 4), x)
        inside = x[1, :t, 4:8, 8:12].flatten()
        assert torch.equal(blocks[1, 0, 1, 2], inside)
    for t, p in ((4, 4), (6, 5)):
        with pytest.raises(DataError, match="to_blocks"):
            to_blocks(x, t, p)


def test_normalised_blocks():
    blocks = random(0, 3, 50) * torch.tensor([[1.0], [10], [0]]) + 4
    blocks[0, :10] = torch.nan
    normal, mean, spread = block_normalise(blocks, 0.5)
    assert torch.allclose(mean[:, 0], blocks.nanmean(1))
    variance = torch.tensor([blocks[0, 10:].var(correction=0), blocks[1].var(correction=0), 0])
    assert torch.allclose(spread[:, 0], (variance + 0.25).sqrt())
    assert torch.allclose(normal * spread + mean, blocks, equal_nan=True)
    assert (normal[2] == 0).all()  # a dry block is not blown up


@pytest.mark.parametrize("floor", [None, 0.1])
@pytest.mark.parametrize("frames", [1, FRAMES])
def test_loss_by_loops(floor, frames):
    x, pred = random(0, 2, FRAMES, 48, 48), random(1, 2, FRAMES, 48, 48)
    x[random(2, *x.shape) > 1] = torch.nan
    mask, t = mask_of(2, frames=frames), FRAMES // frames
    x[0, :, :8, :8], mask[0, :, 0, 0] = torch.nan, 1  # nothing measured: does not count
    errors = []
    for n, f, i, j in np.argwhere(mask.numpy()):
        place = (n, slice(f * t, f * t + t), slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8))
        truth, guess = x[place].numpy().astype(float), pred[place].numpy()
        if np.isnan(truth).all():
            continue
        if floor is not None:
            truth = (truth - np.nanmean(truth)) / np.sqrt(np.nanvar(truth) + floor**2)
        errors.append(np.nanmean((guess - truth) ** 2))
    assert len(errors) == mask.sum() - frames
    assert np.isclose(hidden_loss(pred, x, mask, 8, floor), np.mean(errors), rtol=1e-5)


def test_only_hidden_measured_pixels_enter_the_loss():
    x, pred, mask = random(0, 2, FRAMES, 48, 48), random(1, 2, FRAMES, 48, 48), mask_of(2)
    gaps = random(2, *x.shape) > 1
    hidden = (~visible_cells(mask, (48, 48))).expand_as(x)
    holey = x.masked_fill(gaps, torch.nan)
    pred.requires_grad_()
    loss = hidden_loss(pred, holey, mask, 8, 0.1)
    loss.backward()
    assert torch.equal(pred.grad != 0, hidden & ~gaps)
    assert hidden_loss(pred, torch.where(hidden, holey, 99.0), mask, 8, 0.1) == loss
    assert hidden_loss(pred, torch.where(hidden, holey + 1, holey), mask, 8, None) != loss
    seen = hidden_loss(pred, torch.where(hidden, torch.nan, x), 1 - mask, 8, 0.1)
    assert seen.isfinite()
    with pytest.raises(DataError, match="hidden blocks with a measurement"):
        hidden_loss(pred, torch.where(hidden, torch.nan, x), mask, 8, 0.1)


# ------------------------------------------------------------------ SparK


@pytest.mark.parametrize("options", [{}, dict(block=4), dict(block=16, floor=None)])
def test_spark_is_a_sound_module(options):
    model = tiny(**options)
    x, mask = showers(n=3), mask_of(3, model.cells)
    check_module(model, (x, mask), (3, FRAMES, SIDE, SIDE))
    model.train().loss(x, mask).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.densify.parameters())
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x, mask), model(x, mask))
        assert model.loss(x, mask) == model.loss(x, mask)
        assert model(x).shape == x.shape  # nothing is hidden


def test_prediction_never_sees_hidden_pixels():
    model, x, mask = tiny(), showers(), mask_of(2)
    hidden = ~visible_cells(mask, (SIDE, SIDE))
    for training in (False, True):
        models = [copy.deepcopy(model).train(training) for _ in range(3)]
        expected = models[0](x, mask)
        assert torch.equal(models[1](torch.where(hidden, 50.0, x), mask), expected)
        assert torch.equal(models[2](torch.where(hidden, torch.nan, x), mask), expected)
        assert not torch.equal(model(torch.where(hidden, x, x + 1), mask), expected)


def test_unmeasured_pixels_are_the_mean_and_unmeasured_blocks_are_hidden():
    model, x, mask = tiny().eval(), showers(), mask_of(2)
    gaps = random(0, *x.shape) > 1.5
    filled, missing = x.masked_fill(gaps, 0), x.masked_fill(gaps, torch.nan)
    assert torch.equal(model(missing, mask), model(filled, mask))
    kept = (mask[0, 0] == 0).nonzero()[0].tolist()
    more = mask.clone()
    more[0, 0, kept[0], kept[1]] = 1
    rows, columns = (slice(8 * k, 8 * k + 8) for k in kept)
    unseen = x.clone()
    unseen[0, :, rows, columns] = torch.nan
    assert torch.equal(model.hidden(unseen, mask), more)
    assert torch.equal(model(unseen, mask), model(x, more))
    assert model.loss(unseen, mask).isfinite()


def test_impossible_masks_and_frames():
    model, x, mask = tiny(), showers(), mask_of(2)
    one_empty, one_full = mask.clone(), mask.clone()
    one_empty[1], one_full[1] = 0, 1
    for bad in (one_full, torch.ones_like(mask)):
        with pytest.raises(DataError, match="visible blocks .* in each sample: expected at least"):
            model(x, bad)
    for bad in (one_empty, torch.zeros_like(mask)):
        with pytest.raises(DataError, match="hidden blocks of each sample: expected at least one"):
            model.loss(x, bad)
    unseen = x.clone()
    unseen[0] = torch.nan
    with pytest.raises(DataError, match="visible blocks with a measurement"):
        model(unseen)
    for bad, what in (
        (x[:, :2], r"expected float \(b, 4, 48, 48\)"),
        (x[..., :40], r"expected float \(b, 4, 48, 48\)"),
        (x.int(), "expected float"),
        (x.masked_fill(x > 1, torch.inf), "expected finite numbers or NaN"),
    ):
        with pytest.raises(DataError, match=what):
            model(bad, mask)
    for bad, what in (
        (mask[:1], r"mask: expected \(2, 1, 6, 6\)"),
        (mask_of(2, (3, 3)), r"mask: expected \(2, 1, 6, 6\)"),
        (mask * 0.5, "expected 0 = kept or 1 = masked"),
    ):
        with pytest.raises(DataError, match=what):
            model(x, bad)


def test_masks_of_single_frames_cannot_be_sparse():
    x, mask = showers(), mask_of(2, frames=FRAMES)
    with pytest.raises(DataError, match="the same blocks in all frames, .* or sparse=False"):
        tiny().loss(x, mask)
    model = tiny(sparse=False).eval()
    hidden = ~visible_cells(mask, (SIDE, SIDE))
    expected = model(x, mask)
    assert torch.equal(model(x.masked_fill(hidden, 77.0), mask), expected)
    assert not torch.equal(model(x, mask_of(2, frames=FRAMES, seed=1)), expected)
    mask[:, 0] = 1 - mask[:, 1]  # each block is seen in one of these frames: no tokens
    expected = model(x, mask)
    with torch.no_grad():
        for fill in model.densify:
            fill.token.add_(1)
    assert torch.equal(model(x, mask), expected)
    model.train().loss(x, mask).backward()
    assert not any(isinstance(m, SparseConv2d) for m in model.encoder.modules())


def test_encoders_that_do_not_fit():
    with pytest.raises(DataError, match="size: expected a multiple of 7 pixels"):
        tiny(block=7)
    levels = dict(features_only=True, in_chans=FRAMES, out_indices=(1, 3))
    with pytest.raises(DataError, match="strides of the encoder: expected .* found"):
        SparK(timm.create_model("resnet10t", **levels), frames=FRAMES)


def test_rectangular_frames_and_any_resnet():
    levels = dict(features_only=True, in_chans=FRAMES, out_indices=(2, 3, 4))
    encoder = timm.create_model("resnet10t", **levels)
    model = SparK(encoder, frames=FRAMES, size=(64, 96), block=32, width=32)
    assert (model.cells, model.strides) == ((2, 3), [8, 16, 32])
    x, mask = random(0, 2, FRAMES, 64, 96), mask_of(2, (2, 3), 0.5)
    check_module(model, (x, mask), x.shape)


def test_learning_by_heart():
    x, losses = showers(), []
    model, mask = tiny(), mask_of(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = model.loss(x, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_low_precision_and_copies():
    model, x, mask = tiny(), showers(), mask_of(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, mask)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(x, mask), model.eval()(x, mask))


def test_sizes_of_the_paper():
    model = SparK.paper()
    sizes = [
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (model.encoder, model.densify, model.decoder, model)
    ]
    assert [round(s, 1) for s in sizes] == [14.0, 6.2, 23.2, 43.4]
    assert model.cells == (9, 9) and model.channels == [256, 512, 1024, 2048]
    assert model.decoder.widths == [768, 384, 192, 96, 48, 24]
