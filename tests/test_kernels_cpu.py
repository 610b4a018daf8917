"""The compiled kernels on the CPU: threads, ownership, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sslpdl_nb.deform import Geometry, random_inputs
from sslpdl_nb.kernels import cpu

plain = Geometry()


def inputs(n=3, h=11, w=9, groups=4, width=16, dtype=torch.float32, seed=0):
    options = dict(groups=groups, offset_std=2.0, seed=seed, dtype=dtype)
    value, offset, mask = random_inputs(n, h, w, groups * width, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    return value, offset, mask, torch.randn(value.shape, generator=generator).to(dtype)


def both(value, offset, mask, grad, groups=4):
    out = cpu.forward(value, offset, mask, groups, plain)
    return [out, *cpu.backward(grad, value, offset, mask, groups, plain)]


@pytest.fixture
def threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "GRAIN", 1)  # threads for small fields too
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("n, groups", [(1, 4), (1, 3), (5, 1), (2, 7)])
def test_same_bits_with_any_number_of_threads(n, groups, threads):
    tensors, results = inputs(n, groups=groups), []
    for t in (1, 2, 3, 8):
        threads(t)
        results.append(both(*tensors, groups=groups))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0]))


def test_callers_in_many_threads():
    tensors = [inputs(seed=seed) for seed in range(4)]
    alone = [both(*t) for t in tensors]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda t: [both(*t) for _ in range(10)][-1], tensors))
    assert all(torch.equal(a, b) for r, s in zip(alone, together) for a, b in zip(r, s))


def test_only_the_wanted_direction_is_translated():
    cpu.translated.cache_clear()
    value, offset, mask, grad = inputs(1, 3, 3, 1, 2)
    cpu.forward(value, offset, mask, 1, plain)
    assert cpu.translated.cache_info().misses == 1
    cpu.backward(grad, value, offset, mask, 1, plain)
    assert cpu.translated.cache_info().misses == 2


def test_plain_threads_do_the_same(threads, monkeypatch):
    threads(3)
    expected = both(*inputs())
    monkeypatch.setattr(cpu, "_openmp", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(both(*inputs()), expected))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 12, 17, 31, 64])
def test_any_width_of_a_group(width):
    tensors = inputs(1, 5, 4, 2, width, torch.float64)
    value, offset, mask, grad = tensors
    out, *grads = both(*tensors, groups=2)
    for i in range(2 * width):  # channel by channel, as groups of one
        o, m = (t.unflatten(-1, (2, -1))[..., i // width, :].contiguous() for t in (offset, mask))
        one = both(value[..., i : i + 1], o, m, grad[..., i : i + 1], groups=1)
        torch.testing.assert_close(one[0], out[..., i : i + 1], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(one[1], grads[0][..., i : i + 1], atol=1e-12, rtol=1e-12)


def test_nothing_outside_is_written(monkeypatch):
    "Results lie between guards that stay untouched, and inputs do not change."
    tensors, whole = inputs(2, 7, 5), []
    before = [t.clone() for t in tensors]

    def guarded(*shape, **kwargs):
        shape = shape if isinstance(shape[0], int) else shape[0]
        whole.append(torch.full((torch.Size(shape).numel() + 128,), 7.0, **kwargs))
        return whole[-1][64:-64].view(shape)

    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *shape: guarded(*shape, dtype=self.dtype)
    )
    results = both(*tensors)
    for w, r in zip(whole, results, strict=True):
        assert r.data_ptr() == w[64:].data_ptr()
        assert (w[:64] == 7).all()
        assert (w[-64:] == 7).all()
        assert r.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


def test_read_only_folder_still_computes(tmp_path):
    "Without a place for the translated code it is translated again, and no error is raised."
    code = """
import torch
from sslpdl_nb.deform import Geometry
from sslpdl_nb.kernels import cpu

value, offset, mask = torch.ones(1, 3, 3, 2), torch.zeros(1, 3, 3, 18), torch.ones(1, 3, 3, 9)
out = cpu.forward(value, offset, mask, 1, Geometry())
assert out[0, 1, 1, 0] == 9
"""
    options = dict(env=os.environ | {"NUMBA_CACHE_DIR": "/proc/none"}, text=True)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, **options)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forked_child_computes(threads):
    "A DataLoader's worker is a fork with one thread."
    threads(2)
    expected = both(*inputs())
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        os._exit(0 if all(torch.equal(a, b) for a, b in zip(both(*inputs()), expected)) else 1)
    assert os.waitpid(pid, 0)[1] == 0
