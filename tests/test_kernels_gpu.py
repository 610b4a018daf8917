"""The CUDA text without a GPU: its arithmetic as C++, its translation by NVRTC, its launches."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from sslpdl_nb.core import DataError
from sslpdl_nb.deform import Geometry, deform_conv_reference, random_inputs
from sslpdl_nb.kernels import gpu as cuda

SHIM = Path(__file__).parent / "shim"
GXX = shutil.which("g++")
BUILDS = Path(tempfile.gettempdir()) / f"sslpdl_shim_{os.getpid()}"
C_TYPES = {"__half": "_Float16", "__nv_bfloat16": "__bf16"}
FAST_MATH = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]
FAST = ["-O3", "-march=native", *FAST_MATH, "-fopenmp"]
needs_gxx = pytest.mark.skipif(GXX is None, reason="g++ is not installed")


@pytest.fixture(scope="session", autouse=True)
def remove_builds():
    yield
    shutil.rmtree(BUILDS, ignore_errors=True)


@lru_cache(None)
def shim(words: tuple, fibers: bool = True, flags: tuple = ()):
    "The CUDA text as a library of this machine."
    BUILDS.mkdir(exist_ok=True)
    source = BUILDS / "source.cu"
    source.write_text(cuda.SOURCE)
    name = hashlib.sha1(repr((words, fibers, flags)).encode()).hexdigest()[:12]
    library = BUILDS / f"{name}.so"
    left_out = ("DCN_HEADER", "DCN_RED4")
    defines = [f"-D{k}={C_TYPES.get(v, v)}" for k, v in words if k not in left_out]
    defines += ["-DDCN_RED4=0", f'-DSOURCE_FILE="{source}"']
    command = [GXX, "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas"]
    command += ["-Wno-unused", f"-I{SHIM}", *defines]
    command += ["-DFIBERS", "-O1"] if fibers else FAST
    command += [*flags, str(SHIM / "launch.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "__bf16" in done.stderr and done.returncode:
        pytest.skip("this g++ has no arithmetic for bfloat16")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


C_ARGUMENTS = {
    np.uint64: ctypes.c_void_p,
    np.int32: ctypes.c_int,
    np.float32: ctypes.c_float,
    np.float64: ctypes.c_double,
}


def run(name, words, device, grid, threads, arguments, **build):
    "What cuda._launch does, on the CPU."
    function = getattr(shim(tuple(words.items()), **build), f"run_{name}")
    sizes = [ctypes.c_uint(n) for n in (*(*grid, 1, 1)[:3], threads)]
    bad = function(*sizes, *(C_ARGUMENTS[type(a)](a.item()) for a in arguments))
    assert bad == 0, "barriers differ"


@pytest.fixture
def on_shim(monkeypatch):
    "Launches go to the shim; the names of the kernels are kept."
    names = []

    def launch(name, *rest):
        names.append(name)
        run(name, *rest)

    monkeypatch.setattr(cuda, "_launch", launch)
    return names


def simple_grid(words, n, h, w, groups):
    "Of the kernels without tiles."
    lanes = words["DCN_CG"] // words["DCN_VEC"]
    return (-(-h * w * groups * lanes // 256), n)


def inputs(n=2, h=9, w=11, groups=2, width=16, dtype=torch.float64, std=1.5, seed=0, **geometry):
    options = dict(groups=groups, offset_std=std, seed=seed, dtype=dtype, **geometry)
    value, offset, mask = random_inputs(n, h, w, groups * width, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (*offset.shape[:3], groups * width)
    grad = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return [value, offset, mask, grad.to(dtype)]


def truth(value, offset, mask, grad, groups, **geometry):
    "Output and gradients of the reference, in double precision."
    leaves = [t.double().requires_grad_() for t in (value, offset, mask)]
    out = deform_conv_reference(*leaves, groups=groups, **geometry)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def both(value, offset, mask, grad, groups, **geometry):
    "Output and gradients of the kernels."
    geometry = Geometry.of(**geometry)
    out = cuda.forward(value, offset, mask, groups, geometry)
    return [out, *cuda.backward(grad, value, offset, mask, groups, geometry)]


CASES = [
    dict(),
    dict(std=12.0),
    dict(n=1, h=8, w=8, groups=1),
    dict(h=17, w=3, groups=3),
    dict(width=8, groups=5),
    dict(width=32, groups=1),
    dict(width=4, groups=3),
    dict(width=12),
    dict(width=1),
    dict(width=17),
    dict(width=64, groups=1),
    dict(kernel_size=5, padding=2),
    dict(kernel_size=(1, 3), padding=(0, 1), offset_scale=2.0),
    dict(stride=(2, 1)),
    dict(dilation=2, padding=2, offset_scale=0.5),
]


def groups_and_geometry(case):
    "What of a case describes the operation."
    geometry = {k: v for k, v in case.items() if k in Geometry._fields}
    return dict(groups=case.get("groups", 2), **geometry)


def name_of(case):
    return ",".join(f"{k}={v}" for k, v in case.items()) or "plain"


@needs_gxx
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_arithmetic_in_double_precision(case, on_shim):
    tensors, options = inputs(**case), groups_and_geometry(case)
    for ours, exact in zip(both(*tensors, **options), truth(*tensors, **options)):
        torch.testing.assert_close(ours, exact, atol=1e-11, rtol=1e-11)


@needs_gxx
@pytest.mark.parametrize(
    "dtype, near", [(torch.float32, 2e-4), (torch.float16, 3e-2), (torch.bfloat16, 2e-1)]
)
def test_other_types(dtype, near, on_shim):
    "Lanes, tiles and window as on a GPU; the reference is exact, for the same rounded input."
    tensors = inputs(2, 19, 10, 3, 16, dtype)
    for ours, exact in zip(both(*tensors, 3), truth(*tensors, 3)):
        error = (ours.double() - exact).abs() / (1 + exact.abs())
        assert ours.dtype == dtype and error.quantile(0.99) < near
    assert on_shim == ["deform_forward_tile", "deform_backward_tile"]


@needs_gxx
def test_simple_kernels_with_lanes(monkeypatch):
    "The kernels without tiles, four lanes a group, shuffles included."

    def launch(name, words, device, grid, threads, arguments):
        grid = simple_grid(words, 2, 9, 11, 2)
        run(name.removesuffix("_tile"), words, device, grid, 256, arguments)

    monkeypatch.setattr(cuda, "_launch", launch)
    tensors = inputs(2, 9, 11, 2, 16, torch.float32)
    for ours, exact in zip(both(*tensors, 2), truth(*tensors, 2)):
        torch.testing.assert_close(ours.double(), exact, atol=2e-4, rtol=2e-4)


@needs_gxx
def test_fast_shim_without_barriers(monkeypatch):
    "One lane a group: no barrier, images in parallel, vectorised by the compiler."
    plan = cuda.plan
    monkeypatch.setattr(cuda, "plan", lambda *a: plan(*a) | {"DCN_VEC": a[1]})

    def launch(name, words, device, grid, threads, arguments):
        grid = simple_grid(words, 2, 9, 11, 2)
        run(name.removesuffix("_tile"), words, device, grid, 256, arguments, fibers=False)

    monkeypatch.setattr(cuda, "_launch", launch)
    tensors = inputs(2, 9, 11, 2, 16, torch.float32)
    for ours, exact in zip(both(*tensors, 2), truth(*tensors, 2)):
        torch.testing.assert_close(ours.double(), exact, atol=2e-4, rtol=2e-4)


@needs_gxx
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deterministic_mode(dtype, on_shim):
    tensors = inputs(2, 9, 11, 2, 16, dtype, std=5.0)
    torch.use_deterministic_algorithms(True)
    try:
        ours = both(*tensors, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    near = 2e-4 if dtype == torch.float32 else 1e-11
    for a, b in zip(ours, truth(*tensors, 2)):
        torch.testing.assert_close(a.double(), b, atol=near, rtol=near)


@needs_gxx
def test_deterministic_mode_does_not_lose_nan(on_shim):
    torch.use_deterministic_algorithms(True)
    try:
        for i in (1, 2, 3):
            tensors = inputs()
            tensors[i].view(-1)[7] = float("nan")
            assert cuda.backward(tensors[3], *tensors[:3], 2, Geometry())[0].isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


@needs_gxx
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(bad, on_shim):
    value, offset, mask, grad = inputs(1, 9, 9, 1, 16)
    offset[0, 2, 3, 1] = bad
    out, grad_value, *_ = both(value, offset, mask, grad, 1)
    assert out[0, 2, 3].isnan().all() and out.isnan().sum() == 16
    assert grad_value.isnan().any()  # not lost
    value[0, 0, 0] = value[0, 8, 8] = bad
    far = torch.full_like(offset, 30.0)  # all outside, nearest pixel not finite
    assert not cuda.forward(value, far, mask, 1, Geometry()).any()


@needs_gxx
def test_empty_and_misaligned(on_shim):
    empty = [t[:0] for t in inputs()]
    assert [t.shape[0] for t in both(*empty, 2)] == [0] * 4 and not on_shim
    tensors = inputs()
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors]
    assert all(t.data_ptr() % 16 for t in shifted)
    for a, b in zip(both(*shifted, 2), both(*tensors, 2)):
        assert torch.equal(a, b)
    many = [torch.zeros(1, 1, 1, c).expand(65536, 1, 1, c) for c in (1, 18, 9)]
    with pytest.raises(DataError, match="65535"):
        cuda.forward(*many, 1, Geometry())


def runtime_library(name):
    "The path of a library that g++ brings."
    command = [GXX, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@needs_gxx
def test_sanitizers():
    "Address and undefined-behaviour sanitizers: all four kernels, ragged tiles, far offsets."
    # the C++ runtime behind the sanitizer: extensions that torch imports throw exceptions
    libraries = [runtime_library("libasan.so"), runtime_library("libstdc++.so.6")]
    if not Path(libraries[0]).is_file():
        pytest.skip("g++ has no address sanitizer")
    code = f"""
import sys; sys.path.insert(0, {str(SHIM.parent)!r})
import torch, test_kernels_gpu as t
flags = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-g")
for tile in (True, False):
    def launch(name, words, device, grid, threads, arguments):
        if not tile:
            name, grid = name.removesuffix("_tile"), t.simple_grid(words, 2, 9, 11, 2)
            threads = 256
        t.run(name, words, device, grid, threads, arguments, flags=flags)
    t.cuda._launch = launch
    for dtype in (torch.float32, torch.float64):
        tensors = t.inputs(2, 9, 11, 2, 16, dtype, std=8.0)
        tensors[1][0, 0, 0, :4] = torch.tensor([1e30, -1e30, float("nan"), float("inf")])
        out = t.both(*tensors, 2)
t.shutil.rmtree(t.BUILDS); print("clean")
"""
    options = dict(
        LD_PRELOAD=" ".join(path for path in libraries if Path(path).is_file()),
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0",
        OMP_NUM_THREADS="1",
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | options, capture_output=True, text=True
    )
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-3000:]


# ------------------------------------------------------------------ NVRTC


def first_match(roots: list, patterns: tuple, without: str = "builtins"):
    "The first file that fits a pattern below a folder, or None."
    for root in roots:
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                if without not in path.name:
                    return path
    return None


def nvrtc_files():
    "The library and the folder of its headers, from wheels or an installed toolkit."
    wheels = find_spec("nvidia")
    roots = [Path(p) for p in (wheels.submodule_search_locations if wheels else [])]
    roots.append(Path("/usr/local/cuda"))
    library = first_match(roots, ("*/lib/libnvrtc.so.*", "lib64/libnvrtc.so.*"))
    header = first_match(roots, ("*/include/cuda_fp16.h", "include/cuda_fp16.h"))
    return library, header.parent if header else None


LIBRARY, INCLUDE = nvrtc_files()
needs_nvrtc = pytest.mark.skipif(
    not (LIBRARY and INCLUDE),
    reason="no libnvrtc with headers (wheels nvidia-cuda-nvrtc, nvidia-cuda-runtime)",
)


def translate(words: dict, arch: str) -> str:
    "What NVRTC says about the text for one GPU; fails where it does."
    lib, program = ctypes.CDLL(str(LIBRARY)), ctypes.c_void_p()
    source = cuda.SOURCE.encode()
    bad = lib.nvrtcCreateProgram(ctypes.byref(program), source, b"deform.cu", 0, None, None)
    assert bad == 0
    options = [f"--gpu-architecture={arch}", "--std=c++17", f"-I{INCLUDE}", "--ptxas-options=-v"]
    options += [f"-D{k}={v}" for k, v in words.items()]
    encoded = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed = lib.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    return log.value.decode()


def architectures():
    if not (LIBRARY and INCLUDE):
        return ["sm_80", "sm_90"]
    lib, n = ctypes.CDLL(str(LIBRARY)), ctypes.c_int()
    lib.nvrtcGetNumSupportedArchs(ctypes.byref(n))
    found = (ctypes.c_int * n.value)()
    lib.nvrtcGetSupportedArchs(found)
    return [f"sm_{a}" for a in found if a >= 80]


@needs_nvrtc
@pytest.mark.parametrize("arch", architectures())
@pytest.mark.parametrize("dtype", list(cuda.NUMBERS), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_translates_without_spills(arch, dtype, exact):
    words = cuda.plan(dtype, 16, (3, 3), exact, (int(arch[3:-1]), int(arch[-1])))
    log = translate(words, arch)
    pattern = r"\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    spills = re.findall(pattern, log)
    assert spills == [("0", "0")] * 4, log


@needs_nvrtc
@pytest.mark.parametrize(
    "width, kernel",
    [
        (1, (3, 3)),
        (8, (3, 3)),
        (12, (3, 3)),
        (32, (3, 3)),
        (64, (3, 3)),
        (16, (5, 5)),
        (16, (7, 7)),
        (512, (3, 3)),
    ],
)
def test_other_sizes_translate(width, kernel):
    for dtype in cuda.NUMBERS:
        translate(cuda.plan(dtype, width, kernel), "sm_80")


# ------------------------------------------------------------------ the plan, and what is missing


@pytest.mark.parametrize("width", [1, 2, 3, 12, 16, 17, 24, 64, 512])
@pytest.mark.parametrize("dtype", list(cuda.NUMBERS), ids=lambda d: str(d)[6:])
def test_plan_keeps_the_limits_of_a_block(dtype, width):
    words = cuda.plan(dtype, width, (3, 3))
    lanes, pixels = width // words["DCN_VEC"], words["DCN_TH"] * words["DCN_TW"]
    assert width % words["DCN_VEC"] == 0
    assert lanes & (lanes - 1) == 0 and lanes <= 32
    assert pixels * lanes <= 256 or pixels == 1
    if lanes > 1:
        assert words["DCN_VEC"] * dtype.itemsize >= 16


def test_missing_cupy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda._cupy_problem.cache_clear()
    try:
        assert "pip install cupy-cuda" in cuda.problem("cuda", torch.float32, 16, (3, 3))
    finally:
        cuda._cupy_problem.cache_clear()
    assert "not on a CUDA device" in cuda.problem("cpu", torch.float32, 16, (3, 3))
    assert "int64" in cuda.problem("cuda", torch.int64, 16, (3, 3))


gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(cuda._cupy_problem()),
    reason="no GPU, or no CuPy",
)


@gpu
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize(
    "dtype, near",
    [(torch.float64, 1e-10), (torch.float32, 3e-4), (torch.float16, 3e-2), (torch.bfloat16, 2e-1)],
)
def test_on_a_gpu(dtype, near, exact):
    for case in CASES:
        tensors, options = inputs(**case | dict(dtype=dtype)), groups_and_geometry(case)
        on_device = [t.cuda() for t in tensors]
        torch.use_deterministic_algorithms(exact)
        try:
            ours, again = both(*on_device, **options), both(*on_device, **options)
        finally:
            torch.use_deterministic_algorithms(False)
        for a, b, c in zip(ours, truth(*tensors, **options), again):
            error = (a.cpu().double() - b).abs() / (1 + b.abs())
            assert error.quantile(0.99) < near, case
            assert not exact or torch.equal(a, c), case
