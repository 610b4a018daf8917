"""ConvLSTM and MetNet: memory cells, axial attention, frames, and how far a network looks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from sslpdl_nb.baselines.protocol import toy, toy_skill
from sslpdl_nb.baselines.recurrent import (
    AxialAttention,
    AxialBlock,
    ConvLSTM,
    ConvLSTMNet,
    MetNet,
    as_frames,
    influence,
    influence_radius,
    lstm_step,
    relative_positions,
    similarity,
)
from sslpdl_nb.core import DataError, get_config, set_seed
from sslpdl_nb.decoder import check_module
from sslpdl_nb.labels import label_loss, mixed_labels

CONFIG = get_config("small")
NETS = (ConvLSTMNet, MetNet)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def without_norms(module):
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, nn.Identity())
        else:
            without_norms(child)
    return module


# ------------------------------------------------------------------ the memory


def test_cell_is_the_lstm_of_torch():
    torch.manual_seed(0)
    theirs, film = nn.LSTMCell(4, 3), torch.randn(5, 2, 4)
    h, c = torch.zeros(2, 3), torch.zeros(2, 3)
    shown, state = h[..., None, None], c[..., None, None]
    for x in film:
        weighted = x @ theirs.weight_ih.T + theirs.bias_ih + theirs.bias_hh
        weighted = weighted + shown[..., 0, 0] @ theirs.weight_hh.T
        i, f, g, o = weighted.chunk(4, 1)
        gates = torch.cat([i, f, o, g], 1)[..., None, None]
        shown, state = lstm_step(gates, state, torch.zeros(3, 1, 1))
        h, c = theirs(x, (h, c))
    assert torch.allclose(shown[..., 0, 0], h, atol=1e-6)
    assert torch.allclose(state[..., 0, 0], c, atol=1e-6)


def test_peephole_by_hand():
    gates = torch.tensor([0.3, -0.2, 0.5, 0.7]).reshape(1, 4, 1, 1)
    i, f, o, g = gates.flatten()
    c, p = torch.tensor(1.5), torch.tensor(0.4)
    new = torch.sigmoid(f + p * c) * c + torch.sigmoid(i + p * c) * torch.tanh(g)
    shown = torch.sigmoid(o + p * new) * torch.tanh(new)  # the gate that shows sees the new state
    out, state = lstm_step(gates, c.reshape(1, 1, 1, 1), p.reshape(1, 1, 1))
    assert torch.allclose(state.flatten(), new) and torch.allclose(out.flatten(), shown)


def test_layers_by_hand():
    "Two layers, two frames, written out."
    torch.manual_seed(0)
    net, film = ConvLSTM(2, 4, layers=2), torch.randn(1, 2, 2, 5, 4)
    low, high = net.cells
    h1 = low(film[:, 0])
    h2 = high(h1[0])
    h1 = low(film[:, 1], h1)
    assert torch.equal(net(film), high(h1[0], h2)[0])


@pytest.mark.parametrize("t", [1, 3])
def test_every_parameter_of_a_cell_learns_even_with_one_frame(t):
    torch.manual_seed(0)
    check_module(ConvLSTM(3, 4), (torch.randn(2, t, 3, 6, 5),), (2, 4, 6, 5))


def test_rain_that_moves_moves_the_answer():
    "Without norms and biases a shift of the film shifts the answer, away from the edges."
    torch.manual_seed(0)
    net = without_norms(ConvLSTM(2, 4))
    for cell in net.cells:
        nn.init.zeros_(cell.conv.bias)
    blob = torch.randn(1, 2, 2, 5, 5)
    here, there = net(pad(blob, (10, 14, 10, 14))), net(pad(blob, (12, 12, 13, 11)))
    assert here.abs().max() > 1e-3
    assert torch.allclose(torch.roll(here, (3, 2), (-2, -1)), there, atol=1e-6)


def test_order_of_the_frames_matters():
    torch.manual_seed(0)
    film = torch.randn(1, 3, 16, 12, 8)
    for build in NETS:
        net = build(CONFIG).eval()
        assert (net(film) - net(film.flip(1))).abs().max() > 1e-3


# ------------------------------------------------------------------ attention


def test_similarity_is_its_formula():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 3, 4, 2)
    rq, rk, scale = torch.randn(4, 4, 2), torch.randn(4, 4, 2), torch.randn(3, 2)
    s = similarity(q, k, (rq, rk), scale)
    for g, row, i, j in ((0, 0, 0, 3), (1, 2, 2, 1), (1, 0, 3, 3)):
        qi, kj = q[0, g, row, i], k[0, g, row, j]
        reasons = torch.stack([qi @ kj, qi @ rq[i, j], kj @ rk[i, j]])
        assert torch.allclose(s[0, g, row, i, j], (scale[:, g] * reasons).sum(), atol=1e-5)


def test_positions_belong_to_distances_and_end_at_the_last():
    table = torch.arange(-3.0, 4)[:, None]
    r = relative_positions(table, 9)[..., 0]
    i, j = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    assert torch.equal(r, (j - i).clamp(-3, 3).float())


def test_hand_set_layer_copies_the_pixel_above():
    "Only the distance -1 along the height is wanted; values are the map itself."
    layer = without_norms(AxialAttention(8, 2, span=6, axis="height"))
    with torch.no_grad():
        layer.qkv.weight.zero_()
        for head in range(2):  # in each head 2 questions, 2 labels, 4 values
            for value in range(4):
                layer.qkv.weight[8 * head + 4 + value, 4 * head + value] = 1
            layer.qkv.weight[8 * head, 4 * head] = 1  # the question is the first channel
        layer.position.zero_()
        layer.position[5 - 1, 0] = 99  # ... and is answered by the pixel above
    x = torch.randn(1, 8, 6, 3)
    x[:, [0, 4]] = 1
    assert torch.allclose(layer(x)[..., 1:, :], x[..., :-1, :], atol=1e-5)
    assert torch.allclose(layer(x)[..., 0, :], x.mean(-2), atol=1e-5)  # the first has none


def test_same_as_plain_attention_without_positions():
    torch.manual_seed(0)
    layer = without_norms(AxialAttention(8, 2, span=5, axis="width"))
    nn.init.zeros_(layer.position)
    x = torch.randn(2, 8, 3, 5)
    q, k, v = layer.qkv(x).unflatten(1, (2, 8)).permute(0, 3, 1, 4, 2).split((2, 2, 4), -1)
    theirs = nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    theirs = theirs.permute(0, 2, 4, 1, 3).flatten(1, 2)
    assert torch.allclose(layer(x), theirs, atol=1e-5)


def test_attention_turns_and_is_mirrored_with_the_map():
    torch.manual_seed(0)
    high = AxialAttention(16, 4, span=7, axis="height")
    wide = AxialAttention(16, 4, span=7, axis="width")
    wide.load_state_dict(high.state_dict())
    x = torch.randn(2, 16, 7, 5)
    assert torch.allclose(wide(x.mT), high(x).mT, atol=1e-5)
    mirrored = AxialAttention(16, 4, span=7, axis="height")
    mirrored.load_state_dict(high.state_dict() | {"position": high.position.flip(0)})
    assert torch.allclose(mirrored(x.flip(-2)), high(x).flip(-2), atol=1e-5)


def test_all_reasons_and_positions_learn():
    torch.manual_seed(0)
    check_module(AxialBlock(8, 16, 4, (7, 5)), (torch.randn(2, 8, 7, 5),), (2, 8, 7, 5))


def test_wrong_axis_and_channels_are_named():
    with pytest.raises(DataError, match="axis: expected height or width, found 'time'"):
        AxialAttention(8, 2, 4, "time")
    with pytest.raises(DataError, match="a multiple of 8, twice the heads, found 12"):
        AxialAttention(12, 4, 4, "width")


# ------------------------------------------------------------------ the networks


def test_sizes_of_the_benchmark():
    assert parameters(ConvLSTMNet(CONFIG)) == 56_067
    assert parameters(MetNet(CONFIG)) == 283_603
    course = get_config("course")  # the tables of positions are longer, nothing else
    assert parameters(MetNet(course)) - 283_603 == 2 * 8 * 2 * (24 + 16)
    assert parameters(ConvLSTMNet(course)) == 56_067


@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("t, h, w", [(1, 12, 8), (3, 11, 7), (2, 50, 65)])
def test_any_map_any_number_of_frames(build, t, h, w):
    torch.manual_seed(0)
    net = build(CONFIG)
    assert net(torch.randn(1, t, 16, h, w)).shape == (1, 3, h, w)
    film = torch.randn(2, t, 16, 12, 7)
    check_module(net, (film,), (2, 3, 12, 7))
    assert torch.equal(net.eval()(film), net.eval()(film.flatten(1, 2)))


@pytest.mark.parametrize("build", NETS)
def test_training_and_inference_agree_and_samples_are_independent(build):
    torch.manual_seed(0)
    net, x = build(CONFIG), torch.randn(3, 16, 16, 12)
    assert torch.equal(net.train()(x), net.eval()(x))
    other = torch.cat([x[:1], 9 * torch.randn(2, 16, 16, 12)])
    assert torch.allclose(net(x)[0], net(other)[0], atol=1e-5)


def test_other_numbers_of_classes_and_channels():
    config = get_config("small", edges=(0.1, 1.0, 10.0), class_weights=(1.0, 1.0, 1.0, 1.0))
    for build in NETS:
        assert build(config, channels=5)(torch.randn(1, 10, 8, 8)).shape == (1, 4, 8, 8)


def test_fields_that_make_no_frames_are_named():
    for shape in ((2, 17, 4, 4), (2, 3, 17, 4, 4), (16, 4, 4)):
        with pytest.raises(DataError, match="frames: shape: expected"):
            as_frames(torch.zeros(shape), 16)
    assert as_frames(torch.zeros(2, 32, 4, 4), 16).shape == (2, 2, 16, 4, 4)


@pytest.mark.parametrize("build, steps, least", [(ConvLSTMNet, 40, (0.6, 0.4)), (MetNet, 40, 0.15)])
def test_learns_a_toy(build, steps, least):
    t = toy("humid", size=(16, 16))
    set_seed(0)
    net, x, rain = build(CONFIG), t.train.inputs(), t.train.observed_rain()
    optimiser = torch.optim.AdamW(net.parameters(), 4e-3)
    for _ in range(steps):
        few = torch.randperm(len(x))[:16]
        labels = mixed_labels(rain[few], CONFIG.edges, 0, 1)
        loss = label_loss(net(x[few]), labels, ~rain[few].isnan(), (1, 1, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        skill = toy_skill(net.eval()(t.test.inputs()).softmax(1).numpy(), t)
    if isinstance(least, tuple):
        assert skill[0] > least[0] and skill[1] > least[1]
    else:
        assert skill[0] > least


# ------------------------------------------------------------------ how far a network looks


def test_influence_of_known_networks():
    box = nn.Conv2d(3, 2, 5, padding=2)
    nn.init.ones_(box.weight)
    share = influence(box, torch.randn(2, 3, 11, 9))
    assert torch.allclose(
        share[3:8, 2:7], torch.full((5, 5), 1 / 25)
    ) and share.sum() == pytest.approx(1)
    assert influence_radius(share, 1000.0, 0.99) == pytest.approx(1000 * 8**0.5)
    corner = influence(box, torch.randn(2, 3, 11, 9), pixel=(0, 0))
    assert int((corner > 0).sum()) == 9 and corner[0, 0] > 0
    point = influence(nn.Conv2d(3, 1, 1), torch.randn(1, 3, 5, 5))
    assert point[2, 2] == 1 and influence_radius(point, 15.0) == 0


def test_reach_of_the_convlstm_is_its_convolutions():
    "Three layers reach 3 pixels; an earlier frame is read once more on its way through a state."
    torch.manual_seed(0)
    net = without_norms(ConvLSTMNet(CONFIG))
    film = torch.randn(1, 2, 16, 21, 21)
    rows = (influence(net, film[:, 1:]) > 0).any(1)
    assert int(rows.sum()) == 7
    film.requires_grad_()
    net(film)[0, -1, 10, 10].backward()
    reached = (film.grad.abs().amax(2)[0] > 0).any(-1).sum(-1)
    assert reached.tolist() == [9, 7]


def test_influence_leaves_the_model_as_it_was():
    net = ConvLSTMNet(CONFIG).train()
    influence(net, torch.randn(1, 16, 8, 8))
    assert net.training and all(p.grad is None for p in net.parameters())


def test_a_network_that_ignores_its_fields_is_named():
    net = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(net.weight)
    with pytest.raises(DataError, match="influence: expected a forecast that depends on its"):
        influence(net, torch.randn(1, 3, 5, 5))


def test_even_influence_has_the_radius_of_its_area():
    even = torch.full((101, 101), 1 / 101**2)
    assert influence_radius(even, 1.0, 0.5) == pytest.approx(
        101 * (0.5 / torch.pi) ** 0.5, rel=0.02
    )
