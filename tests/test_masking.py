"Masking: cubes, masks, the embedding and the loss."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb.core import VARIABLES, DataError, get_config
from sslpdl_nb.masking import (
    MaskedEmbed,
    MaskedModel,
    block_mask,
    build_encoder,
    masked_loss,
    mean_baseline,
    nearest_baseline,
    patchify,
    pixel_mask,
    random_mask,
    unpatchify,
    variable_mask,
    visible_mean_baseline,
)

TINY = get_config("small", image_size=(16, 8), patch_size=4)
N_VARIABLES = len(VARIABLES)
sizes = st.integers(1, 4)


@settings(max_examples=30, deadline=None)
@given(b=st.integers(0, 3), g=sizes, i=sizes, j=sizes, t=sizes, p=sizes)
def test_unpatchify_inverts_patchify(b, g, i, j, t, p):
    x = torch.arange(float(b * g * t * i * p * j * p)).view(b, g * t, i * p, j * p)
    tokens = patchify(x, t, p)
    assert tokens.shape == (b, g * i * j, t * p * p)
    assert torch.equal(unpatchify(tokens, t, p, x.shape[1:]), x)


def test_token_order_is_group_row_column():
    x = torch.zeros(1, 8, 8, 4)
    x[0, 4:, 4:, :] = 1  # second group, lower half
    tokens = patchify(x, 4, 4).mean(-1)[0]
    assert tokens.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "shape, t, p", [((1, 15, 8, 8), 4, 4), ((1, 16, 9, 8), 4, 4), ((1, 16, 8, 6), 4, 4)]
)
def test_shapes_that_do_not_divide(shape, t, p):
    with pytest.raises(DataError, match="multiples"):
        patchify(torch.zeros(shape), t, p)


def test_unpatchify_wants_the_right_number_of_tokens():
    with pytest.raises(DataError, match="unpatchify"):
        unpatchify(torch.zeros(1, 3, 4), 1, 2, (1, 4, 4))


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 5), n=st.integers(1, 60), ratio=st.floats(0, 1))
def test_mask_counts_are_exact(b, n, ratio):
    mask = random_mask(b, n, ratio)
    assert mask.shape == (b, n) and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask.sum(1) == round(ratio * n)).all()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_impossible_ratio(ratio):
    with pytest.raises(DataError, match="ratio"):
        random_mask(1, 4, ratio)


def test_samples_get_different_masks_and_seeds_repeat_them():
    def g():
        return torch.Generator().manual_seed(3)

    mask = random_mask(8, 64, 0.5, g())
    assert len({tuple(row.tolist()) for row in mask}) == 8
    assert torch.equal(mask, random_mask(8, 64, 0.5, g()))


def test_structured_masks():
    variables = variable_mask(3, (4, 2, 5), 0.5).view(3, 4, 10)
    assert set(variables.sum(2).flatten().tolist()) == {0.0, 10.0}
    assert (variables.mean(2).sum(1) == 2).all()
    places = block_mask(3, (4, 2, 5), 0.4).view(3, 4, 10)
    assert (places == places[:, :1]).all()
    assert (places[:, 0].sum(1) == 4).all()


def test_loss_by_hand_and_blind_to_kept_tokens():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    mask = torch.tensor([[0.0, 1, 0, 0]])
    assert masked_loss(x + 2, x, mask, 1, 2) == 4
    kept = 1 - pixel_mask(mask, 1, 2, (1, 4, 4))
    assert masked_loss(x + 2 + 1e5 * kept, x, mask, 1, 2) == 4
    assert masked_loss(x + 2, x, torch.zeros(1, 4), 1, 2) == 0


def test_embedding_cannot_see_hidden_numbers():
    embed, x = MaskedEmbed(TINY), torch.randn(2, N_VARIABLES, 16, 8)
    mask = random_mask(2, embed.n, 0.75)
    hidden = pixel_mask(mask, 4, 4, x.shape[1:]).bool()
    assert torch.equal(embed(x, mask), embed(torch.where(hidden, torch.nan, x), mask))
    assert not torch.equal(embed(x, mask), embed(x, torch.zeros_like(mask)))


def test_embedding_refuses_another_size():
    with pytest.raises(DataError, match="MaskedEmbed"):
        MaskedEmbed(TINY)(torch.zeros(1, N_VARIABLES, 8, 16), torch.zeros(1, 32))
    with pytest.raises(DataError, match="multiples"):
        MaskedEmbed(get_config("small", image_size=(15, 8)))


def test_reconstruction_trains_every_parameter():
    torch.manual_seed(0)
    config = get_config("small", image_size=(32, 32), drop_path=0.0)
    model = MaskedModel(config, N_VARIABLES)
    x, mask = torch.randn(2, N_VARIABLES, 32, 32), random_mask(2, 256, 0.75)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(3):  # offsets start at zero, so some gradients only appear after the first step
        optimizer.zero_grad()
        masked_loss(model(x, mask), x, mask, 4, 4).backward()
        optimizer.step()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_one_model_two_heads():
    "The two tasks share embedding and encoder; only the last layer differs in shape."
    fields, classes = MaskedModel(TINY, N_VARIABLES).eval(), MaskedModel(TINY, 3).eval()
    x, mask = torch.randn(2, N_VARIABLES, 16, 8), random_mask(2, 32, 0.75)
    assert fields(x, mask).shape == x.shape
    assert classes(x, mask).shape == (2, 3, 16, 8)
    assert torch.equal(classes(x), classes(x, torch.zeros(2, 32)))  # no mask: nothing is masked
    ours, theirs = fields.state_dict(), classes.state_dict()
    assert list(ours) == list(theirs)
    other = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert other == ["decoder.head.weight", "decoder.head.bias"]


def test_model_is_made_in_a_fixed_order():
    "Scores of a seed depend on the order in which parameters are made."
    torch.manual_seed(0)
    model = MaskedModel(TINY, 3)
    torch.manual_seed(0)
    assert torch.equal(MaskedEmbed(TINY).project.weight, model.embed.project.weight)
    assert [name for name, _ in model.named_children()] == ["embed", "encoder", "decoder"]


def test_baselines():
    x, visible, hidden = torch.randn(2, 4, 4, 4), torch.zeros(2, 8), torch.ones(2, 8)
    assert not mean_baseline(x, visible, 2, 2).any()
    means = visible_mean_baseline(x, visible, 2, 2)
    assert torch.allclose(means[:, :, 0, 0], x.mean((2, 3)), atol=1e-6)
    assert not visible_mean_baseline(x, hidden, 2, 2).any()  # the training mean
    assert torch.equal(nearest_baseline(x, visible, 2, 2), x)
    assert not nearest_baseline(x, hidden, 2, 2).any()


def test_nearest_pixel_of_every_variable_by_brute_force():
    g = torch.Generator().manual_seed(1)
    x, mask = torch.randn(2, 4, 6, 8, generator=g), random_mask(2, 24, 0.75, g)
    hidden = pixel_mask(mask, 2, 2, (4, 6, 8)).bool()
    nearest = nearest_baseline(x, mask, 2, 2)
    for b, v, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        rows, cols = (~hidden[b, v]).nonzero(as_tuple=True)
        distance = (rows - i) ** 2 + (cols - j) ** 2
        assert nearest[b, v, i, j] in x[b, v, rows, cols][distance == distance.min()]


def test_an_unknown_encoder_is_refused_with_the_known_ones():
    config = get_config("small", encoder="internimage_nan")
    with pytest.raises(DataError, match="Config: encoder: .*internimage_nano.*'internimage_nan'"):
        build_encoder(config)
