"""Choosing a kernel, and the compiled kernels as one operation of PyTorch."""

from __future__ import annotations

import pytest
import torch

from sslpdl_nb.core import DataError
from sslpdl_nb.deform import deform_conv, deform_conv_reference, random_inputs
from sslpdl_nb.kernels import gpu
from sslpdl_nb.kernels.backend import COMPILED, PLAIN, aggregate, choose, compiled

KERNELS = [*PLAIN, "numba"]


def output_and_gradients(f, tensors, **kwargs):
    out = f(*tensors, **kwargs)
    weight = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).sin()
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), tensors)]


@pytest.fixture
def auto(monkeypatch):
    monkeypatch.delenv("SSLPDL_DEFORM", raising=False)


# ------------------------------------------------------------------ choice


@pytest.mark.parametrize(
    "case, name",
    [
        (("cpu", torch.float32, 16, (3, 3)), "numba"),
        (("cpu", torch.float64, 128, (17, 17)), "numba"),
        (("cpu", torch.float32, 129, (3, 3)), "grid_sample"),
        (("cpu", torch.float32, 16, (19, 19)), "grid_sample"),
        (("cpu", torch.bfloat16, 16, (3, 3)), "grid_sample"),
        (("mps", torch.float32, 16, (3, 3)), "grid_sample"),
    ],
)
def test_choice(case, name, auto):
    assert choose(*case) == name


@pytest.mark.parametrize("groups, width, k", [(1, 128, 3), (1, 130, 3), (40, 1, 3), (2, 3, 17)])
def test_limits_of_the_compiled_kernel(groups, width, k, auto):
    "Inside its limits it computes, beyond them another one does, with the same result."
    geometry = dict(groups=groups, kernel_size=k, padding=k // 2)
    tensors = random_inputs(1, 20, 20, groups * width, grad=True, **geometry)
    ours = output_and_gradients(deform_conv, tensors, **geometry)
    exact = output_and_gradients(deform_conv_reference, tensors, **geometry)
    for a, b in zip(ours, exact):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_forced_kernel_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", "numba")
    value, offset, mask = (torch.zeros(1, 3, 3, c) for c in (200, 18, 9))
    with pytest.raises(DataError, match="128"):
        deform_conv(value, offset, mask, groups=1)


def test_forced_cuda_on_the_cpu_is_refused(monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", "cuda")
    with pytest.raises(DataError, match="not on a CUDA device"):
        choose("cpu", torch.float32, 16, (3, 3))


def test_unknown_name_is_refused(monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", "magic")
    with pytest.raises(DataError, match="SSLPDL_DEFORM"):
        deform_conv(*random_inputs(), groups=2)


def test_slower_choice_on_a_gpu_warns(auto, monkeypatch):
    monkeypatch.setattr(gpu, "_cupy_problem", lambda: "CuPy is on holiday")
    with pytest.warns(UserWarning, match="holiday"):
        assert choose("cuda", torch.float32, 16, (3, 3)) == "grid_sample"


def test_module_that_cannot_be_imported_is_an_answer(auto, monkeypatch):
    monkeypatch.setitem(COMPILED, "numba", "sslpdl_nb.kernels.not_there")
    compiled.cache_clear()
    try:
        assert isinstance(compiled("numba"), ImportError)
        assert choose("cpu", torch.float32, 16, (3, 3)) == "grid_sample"
    finally:
        compiled.cache_clear()


# ------------------------------------------------------------------ one operation


def test_operation_passes_the_check_of_pytorch():
    tensors = random_inputs(2, 6, 5, 6, grad=True)
    settings = 2, [3, 3], [1, 1], [1, 1], [1, 1], 1.0, "numba"
    torch.library.opcheck(aggregate, (*tensors, *settings))
    turned = [t.detach().transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    torch.library.opcheck(aggregate, (*turned, *settings))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_compiles_as_one_graph(kernel, monkeypatch):
    monkeypatch.setenv("SSLPDL_DEFORM", kernel)
    torch._dynamo.reset()

    def f(v, o, m):
        return deform_conv(2 * v, o, m.exp(), groups=2).relu()

    tensors = random_inputs(2, 6, 5, 6, grad=True)
    compiled_f = torch.compile(f, fullgraph=True, backend="aot_eager")
    ours, plain = output_and_gradients(compiled_f, tensors), output_and_gradients(f, tensors)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b)
