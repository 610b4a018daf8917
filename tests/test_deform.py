"""Deformable convolution, each implementation against its float64 reference and torchvision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.ops import deform_conv2d

from sslpdl_nb.core import DataError
from sslpdl_nb.deform import (
    DeformConv,
    Geometry,
    deform_conv,
    deform_conv_reference,
    out_size,
    random_inputs,
    sample_points,
    tap_softmax,
    taps,
)
from sslpdl_nb.kernels.backend import PLAIN

KERNELS = [*PLAIN, "numba"]


def inputs(n=2, h=6, w=5, groups=2, per_group=3, std=1.5, **more):
    return random_inputs(n, h, w, groups * per_group, groups=groups, offset_std=std, **more)


def output_and_gradients(f, tensors, seed=1, **kwargs):
    out = f(*tensors, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), tensors)]


geometries = st.fixed_dictionaries(
    dict(
        kernel_size=st.sampled_from([1, 2, 3, 5, (3, 1), (1, 3)]),
        stride=st.sampled_from([1, 2, (1, 2)]),
        padding=st.sampled_from([0, 1, 2, (2, 1)]),
        dilation=st.sampled_from([1, 2, (2, 1)]),
        offset_scale=st.sampled_from([0.5, 1.0, 2.0]),
    )
)


@pytest.mark.parametrize("kernel", KERNELS[1:])
@settings(max_examples=40, deadline=None)
@given(
    geometries,
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([0.3, 2.0, 12.0]),
    st.integers(0, 10**6),
)
def test_equals_reference(kernel, geometry, n, h, w, groups, per_group, std, seed):
    assume(min(out_size((h, w), Geometry.of(**geometry))) > 0)
    tensors = inputs(n, h, w, groups, per_group, std, seed=seed, grad=True, **geometry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLPDL_DEFORM", kernel)
        ours = output_and_gradients(deform_conv, tensors, groups=groups, **geometry)
    exact = output_and_gradients(deform_conv_reference, tensors, groups=groups, **geometry)
    for a, b in zip(ours, exact):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_close_to_float64(kernel, monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", kernel)
    double = inputs(2, 16, 9, 4, 16, grad=True)
    exact = output_and_gradients(deform_conv_reference, double, groups=4)
    single = inputs(2, 16, 9, 4, 16, grad=True, dtype=torch.float32)
    ours = output_and_gradients(deform_conv, single, groups=4)
    for a, b in zip(ours, exact):
        torch.testing.assert_close(a.double(), b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(kernel, monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", kernel)
    geometry = dict(kernel_size=3, stride=2, padding=1, offset_scale=1.5)
    tensors = inputs(1, 5, 4, 2, 2, grad=True, **geometry)
    assert torch.autograd.gradcheck(lambda *t: deform_conv(*t, groups=2, **geometry), tensors)


# ------------------------------------------------------------------ the formula of the paper


def hat(positions, n):
    "g(q, p) = max(0, 1 - |q - p|) of every pixel q of an axis, (..., n) (Dai et al. 2017, eq. 4)."
    return (1 - (positions[..., None] - torch.arange(n, dtype=positions.dtype)).abs()).relu()


def formula(value, offset, mask, groups, kernel_size, stride, padding, dilation, offset_scale):
    """y(p0) = sum over g and k of w_g m_gk x_g(p0 + p_k + dp_gk) (Wang et al. 2023, eq. 2; w = 1).

    Written from the paper: every tap in turn, and each sample a sum over *all* pixels of the field.
    """
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel_size, stride, padding, dilation
    (n, h, w, _), (ho, wo) = value.shape, offset.shape[1:3]
    steps = offset.reshape(n, ho, wo, groups, kw, kh, 2)  # the taps column by column
    weights = mask.reshape(n, ho, wo, groups, kw, kh)
    centre_x, centre_y = dw * (kw - 1) // 2, dh * (kh - 1) // 2
    x0 = sw * torch.arange(wo) - pw + centre_x
    y0 = sh * torch.arange(ho)[:, None] - ph + centre_y
    parts = []
    for g, field in enumerate(value.chunk(groups, -1)):
        total = 0
        for a in range(kw):
            for b in range(kh):
                x = x0 + offset_scale * (a * dw - centre_x + steps[:, :, :, g, a, b, 0])
                y = y0 + offset_scale * (b * dh - centre_y + steps[:, :, :, g, a, b, 1])
                sample = torch.einsum("nijr,nijq,nrqc->nijc", hat(y, h), hat(x, w), field)
                total = total + weights[:, :, :, g, a, b, None] * sample
        parts.append(total)
    return torch.cat(parts, -1)


PUBLISHED = dict(kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), offset_scale=1)
CASES = [  # images, rows, columns, groups, channels of a group, offset std (pixels), geometry
    (2, 7, 6, 1, 3, 1.5, dict()),
    (1, 8, 5, 2, 4, 1.5, dict()),
    (2, 6, 9, 4, 2, 0.3, dict()),
    (1, 7, 7, 3, 1, 12.0, dict()),  # nearly all samples outside
    (2, 9, 8, 2, 3, 2.0, dict(stride=(2, 2))),
    (1, 11, 7, 2, 2, 1.0, dict(stride=(3, 2), padding=(0, 1))),
    (1, 9, 9, 2, 4, 1.5, dict(dilation=(2, 2), padding=(2, 2))),
    (1, 10, 8, 1, 5, 1.5, dict(dilation=(3, 1), padding=(0, 3))),
    (1, 8, 7, 2, 3, 1.5, dict(kernel_size=(5, 5), padding=(2, 2))),
    (2, 9, 6, 1, 4, 2.5, dict(kernel_size=(5, 3), padding=(2, 1), stride=(1, 2))),
    (1, 6, 8, 2, 2, 1.5, dict(kernel_size=(1, 1), padding=(0, 0))),
    (1, 12, 9, 1, 3, 1.5, dict(kernel_size=(7, 7), padding=(3, 3), stride=(2, 2))),
    (2, 7, 6, 2, 3, 1.5, dict(offset_scale=2.0)),
    (1, 7, 8, 2, 3, 4.0, dict(offset_scale=0.5, kernel_size=(5, 5), padding=(1, 2))),
    (1, 9, 9, 2, 2, 1.5, dict(offset_scale=1.5, dilation=(2, 2), stride=(2, 1), padding=(2, 2))),
    (1, 6, 7, 2, 3, 1.0, dict(kernel_size=(2, 4), padding=(1, 2), dilation=(1, 2))),  # even
    (1, 1, 1, 2, 2, 1.0, dict()),  # one pixel
    (1, 4, 3, 1, 2, 1.0, dict(padding=(3, 4))),  # output pixels outside the field
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_equals_the_formula_of_the_paper(kernel, case, monkeypatch):
    "The output and all gradients, in double precision."
    monkeypatch.setenv("SSLPDL_DEFORM", kernel)
    n, h, w, groups, per_group, std, changes = case
    geometry = PUBLISHED | changes
    tensors = inputs(n, h, w, groups, per_group, std, grad=True, **geometry)
    theirs = output_and_gradients(formula, tensors, groups=groups, **geometry)
    ours = output_and_gradients(deform_conv, tensors, groups=groups, **geometry)
    assert theirs[0].abs().max() > 0.01 and theirs[2].abs().max() > 0.01
    for a, b in zip(ours, theirs):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_the_formula_by_hand():
    "x = 1.25, y = 2.5 in the field 0 ... 15: half way between 9.25 and 13.25."
    field = torch.arange(16.0).reshape(1, 4, 4, 1)
    offset, mask = torch.zeros(1, 4, 4, 2), torch.full((1, 4, 4, 1), 2.0)
    offset[0, 2, 1] = torch.tensor([0.25, 0.5])
    one_tap = PUBLISHED | dict(kernel_size=(1, 1), padding=(0, 0))
    assert formula(field, offset, mask, 1, **one_tap)[0, 2, 1] == 2 * 11.25


def test_size_of_the_output_is_that_of_a_convolution():
    for geometry in (
        dict(),
        dict(kernel_size=5, stride=2),
        dict(kernel_size=(2, 3), padding=(0, 2), dilation=(3, 1)),
        dict(stride=(1, 4), padding=0),
    ):
        ours = Geometry.of(**geometry)
        steps = dict(stride=ours.stride, padding=ours.padding, dilation=ours.dilation)
        field, weight = torch.zeros(1, 1, 11, 8), torch.zeros(1, 1, *ours.kernel_size)
        theirs = torch.nn.functional.conv2d(field, weight, **steps)
        assert out_size((11, 8), ours) == tuple(theirs.shape[2:])


def test_geometry_from_numbers_or_pairs():
    assert Geometry.of() == Geometry()
    assert Geometry.of(kernel_size=5, padding=[2, 0]) == Geometry((5, 5), (1, 1), (2, 0))


def test_random_inputs_stay_away_from_whole_pixels():
    for geometry in (dict(), dict(kernel_size=(2, 3), stride=2, padding=0, offset_scale=0.5)):
        value, offset, mask = random_inputs(3, 9, 8, 4, groups=2, seed=5, **geometry)
        points = torch.stack(sample_points(offset, groups=2, **geometry))
        assert (points - points.round()).abs().min() > 0.02
        assert points.shape[1:4] == (3, *out_size((9, 8), Geometry.of(**geometry)))
        again = random_inputs(3, 9, 8, 4, groups=2, seed=5, **geometry)
        other = random_inputs(3, 9, 8, 4, groups=2, seed=6, **geometry)
        assert all(torch.equal(a, b) for a, b in zip((value, offset, mask), again))
        assert not torch.equal(value, other[0])


def test_zero_offsets_are_a_mean():
    v = torch.randn(2, 7, 5, 6)
    out = deform_conv(v, torch.zeros(2, 7, 5, 36), torch.full((2, 7, 5, 18), 1 / 9), groups=2)
    mean = torch.nn.functional.avg_pool2d(v.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, mean)


@pytest.mark.parametrize("k", range(9))
def test_one_tap_shifts(k):
    v = torch.randn(1, 6, 6, 1)
    mask = torch.nn.functional.one_hot(torch.tensor(k), 9).float().expand(1, 6, 6, 9)
    out = deform_conv(v, torch.zeros(1, 6, 6, 18), mask, groups=1)
    dx, dy = (int(t[k]) for t in taps())
    assert (dx, dy) == (k // 3 - 1, k % 3 - 1)
    torch.testing.assert_close(out[:, 1:-1, 1:-1], v.roll((-dy, -dx), (1, 2))[:, 1:-1, 1:-1])


def test_whole_pixel_offsets_move_the_field():
    v = torch.randn(1, 8, 8, 2)
    # reads two columns to the right and the row before
    offset = torch.tensor([2.0, -1.0]).repeat(9).expand(1, 8, 8, 18)
    mask = torch.full((1, 8, 8, 9), 1 / 9)
    moved, still = (deform_conv(v, o, mask, groups=1) for o in (offset, torch.zeros(1, 8, 8, 18)))
    torch.testing.assert_close(moved[:, 2:-2, 1:-3], still[:, 1:-3, 3:-1])


@pytest.mark.parametrize(
    "geometry",
    [
        dict(),
        dict(kernel_size=5, stride=2, padding=3, dilation=2),
        dict(kernel_size=3, stride=(1, 2), padding=(0, 1)),
    ],
)
def test_equals_torchvision(geometry):
    value, offset, mask = inputs(2, 11, 9, 3, 4, **geometry)
    k = geometry.get("kernel_size", 3)
    n, ho, wo, _ = offset.shape
    o = offset.view(n, ho, wo, 3, k, k, 2).permute(0, 3, 5, 4, 6, 1, 2).flip(4)
    m = mask.view(n, ho, wo, 3, k, k).permute(0, 3, 5, 4, 1, 2)
    o, m = o.reshape(n, -1, ho, wo), m.reshape(n, -1, ho, wo)
    rest = {"padding": 1, **{a: b for a, b in geometry.items() if a != "kernel_size"}}
    one = torch.ones(12, 1, k, k, dtype=torch.float64)
    theirs = deform_conv2d(value.permute(0, 3, 1, 2), o, one, mask=m, **rest)
    for f in (deform_conv, deform_conv_reference):
        ours = f(value, offset, mask, groups=3, **geometry).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_far_outside_is_zero(kernel, monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", kernel)
    value, offset, mask = inputs()
    for far in (1e3, -1e3, 1e8, -1e8):
        o = torch.full_like(offset, far).requires_grad_()
        out = deform_conv(value, o, mask, groups=2)
        out.sum().backward()
        assert not out.any() and not o.grad.any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_offset_stays_where_it_is(kernel, bad, monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", kernel)
    value, offset, mask = inputs()
    offset[1, 2, 3, 1] = bad
    wrong = deform_conv(value, offset, mask, groups=2).isnan()
    assert wrong[1, 2, 3, :3].all() and wrong.sum() == 3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_value_reaches_only_its_neighbours(kernel, bad, monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", kernel)
    value, offset, mask = inputs(1, 9, 9, 1, 2)
    value[0, 0, 0, 1] = value[0, 8, 8, 1] = bad
    out = deform_conv(value, offset, mask, groups=1)
    exact = deform_conv_reference(value, offset, mask, groups=1)
    assert not exact[..., 1].isfinite().all()
    assert torch.equal(out.isfinite(), exact.isfinite())
    assert out[..., 0].isfinite().all()
    o = torch.full_like(offset, 30.0).requires_grad_()  # all outside, nearest pixel not finite
    out = deform_conv(value, o, mask, groups=1)
    out.sum().backward()
    assert not out.any() and not o.grad.any()


def test_empty_batch():
    value, offset, mask = (t[:0].requires_grad_() for t in inputs())
    out = deform_conv(value, offset, mask, groups=2)
    assert out.shape == (0, 6, 5, 6)
    out.sum().backward()
    assert value.grad.shape == value.shape


def test_one_pixel():
    value, offset = torch.full((1, 1, 1, 2), 9.0), torch.zeros(1, 1, 1, 18)
    out = deform_conv(value, offset, torch.full((1, 1, 1, 9), 1 / 9), groups=1)
    torch.testing.assert_close(out, torch.ones(1, 1, 1, 2))


def test_not_contiguous():
    value, offset, mask = inputs(2, 6, 6, 2, 3)
    expected = deform_conv(value, offset, mask, groups=2)
    # memory with channels first
    firsts = value.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    strided = torch.stack([offset, offset], -1)[..., 1]
    turned = mask.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(deform_conv(firsts, strided, turned, groups=2), expected)


def test_samples_do_not_depend_on_each_other():
    value, offset, mask = inputs(3)
    together = deform_conv(value, offset, mask, groups=2)
    alone = deform_conv(value[1:2], offset[1:2], mask[1:2], groups=2)
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_and_autocast(dtype):
    value, offset, mask = (t.to(dtype) for t in inputs())
    out = deform_conv(value, offset, mask, groups=2)
    exact = deform_conv(value.float(), offset.float(), mask.float(), groups=2)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=2e-2, rtol=2e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer = DeformConv(8, 2)
        assert layer(torch.randn(1, 4, 4, 8)).isfinite().all()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v, o, m: (v[0], o, m), "shape of value"),
        (lambda v, o, m: (v.long(), o, m), "dtype of value"),
        (lambda v, o, m: (v, o[..., :-1], m), "shape of offset"),
        (lambda v, o, m: (v, o[:, :-1], m), "shape of offset"),
        (lambda v, o, m: (v, m, o), "shape of offset"),
        (lambda v, o, m: (v, o, m[:1]), "shape of mask"),
        (lambda v, o, m: (v, o.float(), m), "dtype of offset"),
        (lambda v, o, m: (v, o, m.float()), "dtype of mask"),
        (lambda v, o, m: (v, o.to("meta"), m), "device of offset"),
        (lambda v, o, m: (v[..., :5], o, m), "groups"),
        (lambda v, o, m: (v[..., :0], o, m), "shape of value"),
    ],
)
def test_wrong_input_is_named(change, words):
    with pytest.raises(DataError, match=words):
        deform_conv(*change(*inputs()), groups=2)


def test_wrong_geometry_is_named():
    value, offset, mask = inputs()
    with pytest.raises(DataError, match="stride"):
        deform_conv(value, offset, mask, groups=2, stride=0)
    with pytest.raises(DataError, match="size of the output"):
        deform_conv(value, offset, mask, groups=2, kernel_size=9, padding=0)
    with pytest.raises(DataError, match="groups"):
        deform_conv(value, offset, mask, groups=0)


def test_too_many_elements_are_refused():
    v = torch.empty(1, 1, 1, 1, device="meta").expand(40, 3000, 3000, 1)
    o, m = (torch.empty(1, 1, 1, 1, device="meta").expand(40, 3000, 3000, k) for k in (18, 9))
    with pytest.raises(DataError, match="2\\^31"):
        deform_conv(v, o, m, groups=1)


def test_inference_mode_leaves_no_trace():
    tensors = inputs(1, 13, 3, grad=True)  # a shape no other test uses
    with torch.inference_mode():
        first = deform_conv(*tensors, groups=2)
    second = deform_conv(*tensors, groups=2)
    second.sum().backward()
    torch.testing.assert_close(first.clone(), second)


def test_layer_learns_to_look_elsewhere():
    torch.manual_seed(0)
    layer, x = DeformConv(16, 1), torch.randn(8, 10, 10, 16)
    target = x.roll((1, 2), (1, 2))  # what lies one row and two columns away
    optimiser, losses = torch.optim.Adam(layer.parameters(), lr=2e-2), []
    for _ in range(60):
        loss = (layer(x) - target)[:, 3:-3, 3:-3].square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    offset, mask = layer.offsets_and_mask(x)
    assert mask.view(8, 10, 10, 9).sum(-1).allclose(torch.ones(8, 10, 10))
    assert offset.abs().max() > 0.5


def test_groups_must_divide_channels():
    with pytest.raises(DataError, match="groups"):
        DeformConv(10, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_tap_softmax(dtype, size):
    generator = torch.Generator().manual_seed(0)
    logits = size * torch.randn(7, 5, 4 * 9, generator=generator, dtype=torch.float64)
    logits = logits.to(dtype).requires_grad_()
    near = dict(atol={8: 1e-14, 4: 1e-6, 2: 1e-2}[dtype.itemsize], rtol=0)
    weight = torch.randn(7, 5, 36, dtype=dtype)
    ours = tap_softmax(logits, 4)
    plain = logits.unflatten(-1, (4, 9)).softmax(-1).flatten(-2)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, plain, **near)
    a, b = (torch.autograd.grad((f * weight).sum(), logits)[0] for f in (ours, plain))
    torch.testing.assert_close(a, b, **near)
