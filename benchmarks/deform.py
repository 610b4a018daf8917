"""Time deformable convolution, its layer and the encoder; write benchmarks/results/<device>.json.

    python benchmarks/deform.py                 # the GPU if there is one, otherwise the CPU
    python benchmarks/deform.py --device cpu --threads 2 --repeats 15 --batch 4

Every figure is a median of runs in turn, so that a busy moment of the machine affects all alike.
Compare ratios, not machines.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm import create_model
from timm.models.convnext import ConvNeXtBlock

from sslpdl_nb.core import VARIABLES
from sslpdl_nb.deform import (
    deform_conv,
    deform_conv_grid_sample,
    deform_conv_reference,
    random_inputs,
)
from sslpdl_nb.encoder import InternLayer
from sslpdl_nb.kernels import backend
from sslpdl_nb.kernels import gpu as cuda

# rows, columns, channels, groups
STAGES = [(112, 64, 64, 4), (56, 32, 128, 8), (28, 16, 256, 16), (14, 8, 512, 32)]
# Predicted before anything ran on a GPU, for 32 images of float32 on an H200:
# channels -> (forward, backward), from and to, microseconds
PREDICTED = {
    64: ((90, 150), (250, 400)),
    128: ((45, 75), (130, 200)),
    256: ((23, 38), (65, 100)),
    512: ((12, 20), (35, 50)),
}


def published(value, offset, mask, groups):
    """The usual pure-PyTorch DCNv3.

    A padded field, a grid of all samples with the taps innermost, grid_sample, a weighted sum.
    """
    n, h, w, c = value.shape
    x = F.pad(value, (0, 0, 1, 1, 1, 1))
    hp, wp = h + 2, w + 2
    row = torch.arange(1, h + 1, device=x.device) + 0.5
    col = torch.arange(1, w + 1, device=x.device) + 0.5
    rows, cols = torch.meshgrid(row, col, indexing="ij")
    base = torch.stack([cols.reshape(-1) / wp, rows.reshape(-1) / hp], -1).reshape(1, h, w, 1, 2)
    k = torch.arange(9, device=x.device)
    taps = torch.stack([(k // 3 - 1) / wp, (k % 3 - 1) / hp], -1).reshape(9, 2)
    taps = taps.repeat(groups, 1).view(1, 1, 1, groups * 9, 2)
    size = torch.tensor([wp, hp], device=x.device).repeat(groups * 9).view(1, 1, 1, -1)
    grid = 2 * ((base + taps).repeat(n, 1, 1, 1, 1).flatten(3) + offset / size) - 1
    grid = grid.view(n, h * w, groups, 9, 2).transpose(1, 2).flatten(0, 1).to(x.dtype)
    fields = x.view(n, hp * wp, c).transpose(1, 2).reshape(n * groups, c // groups, hp, wp)
    how = dict(mode="bilinear", padding_mode="zeros", align_corners=False)
    samples = F.grid_sample(fields, grid, **how)
    m = mask.view(n, h * w, groups, 9).transpose(1, 2).reshape(n * groups, 1, h * w, 9)
    return (samples * m).sum(-1).view(n, c, h * w).transpose(1, 2).reshape(n, h, w, c).contiguous()


def inputs(n, stage, device, dtype, grad=False):
    h, w, c, groups = stage
    tensors = random_inputs(n, h, w, c, groups=groups, offset_std=2.0, dtype=dtype)
    return [t.to(device).requires_grad_(grad) for t in tensors]


def medians(functions: dict, repeats: int, device) -> dict:
    "Median milliseconds of each, run in turn after two rounds of warming up."
    times = {name: [] for name in functions}
    for i in range(repeats + 2):
        for name, f in functions.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            f()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i > 1:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(float(np.median(t)), 4) for name, t in times.items()}


def both_ways(f, *leaves):
    def go():
        out = f(*leaves)
        torch.autograd.grad(out, [t for t in leaves if t.requires_grad], torch.ones_like(out))

    return go


def without(f, *tensors):
    def go():
        with torch.no_grad():
            f(*tensors)

    return go


def copy_speed(device, megabytes=256) -> float:
    "GB/s, reading and writing."
    big = torch.empty(megabytes * 2**18, device=device)
    other = torch.empty_like(big)
    return 2 * big.nbytes / medians({"copy": lambda: other.copy_(big)}, 9, device)["copy"] / 1e6


def implementations(groups, device) -> dict:
    "name -> function of value, offset, mask."
    ours = backend.choose(device.type, torch.float32, 16, (3, 3))
    found = {
        "published": lambda *t: published(*t, groups),
        "grid_sample": lambda *t: deform_conv_grid_sample(*t, groups=groups),
    }
    if ours in backend.COMPILED:
        found[ours] = lambda *t: deform_conv(*t, groups=groups)
    return found


def compile_as_cpp(words: dict):
    "The simple CUDA kernel compiled as C++."
    shim = Path(__file__).parent.parent / "tests" / "shim"
    fast = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]
    options = ["-std=c++17", "-O3", "-march=native", *fast, "-fopenmp", "-shared", "-fPIC", "-w"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "source.cu", Path(folder) / "deform.so"
        source.write_text(cuda.SOURCE)
        defines = [f"-D{k}={v}" for k, v in words.items()] + [f'-DSOURCE_FILE="{source}"']
        command = ["g++", *options, f"-I{shim}", *defines, str(shim / "launch.cpp")]
        subprocess.run([*command, "-o", str(library)], check=True)
        return ctypes.CDLL(str(library)).run_deform_forward


def as_cpp(groups, c) -> dict:
    "The same as an implementation, where there is a g++; one lane a group, images in parallel."
    if not shutil.which("g++"):
        return {}
    words = cuda.plan(torch.float32, c // groups, (3, 3)) | {"DCN_VEC": c // groups, "DCN_RED4": 0}
    function = compile_as_cpp(words)

    def forward(value, offset, mask):
        (n, h, w, _), out = value.shape, torch.empty_like(value)
        grid = (-(-h * w * groups // 256), n, 1, 256)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (value, offset, mask, out)]
        sizes = (h, w, h, w, groups, 1, 1, 1, 1, 1, 1)
        function(*grid, *pointers, *sizes, ctypes.c_float(1.0))
        return out

    return {"cpp": forward}


def times(args, device, stage, dtype) -> dict:
    "Milliseconds of every implementation at one stage."
    *_, c, groups = stage
    tensors = inputs(args.batch, stage, device, dtype)
    leaves = inputs(args.batch, stage, device, dtype, grad=True)
    found = implementations(groups, device)
    functions = {f"{name} forward": without(f, *tensors) for name, f in found.items()}
    functions |= {f"{name} both": both_ways(f, *leaves) for name, f in found.items()}
    ms = medians(functions, args.repeats, device)
    if device.type == "cpu":  # apart: the reference empties all caches

        def reference(*t):
            return deform_conv_reference(*t, groups=groups)

        apart = {"reference": reference, **as_cpp(groups, c)}
        functions = {f"{name} forward": without(f, *tensors) for name, f in apart.items()}
        ms |= medians(functions, 3, device)
        ms |= medians({"reference both": both_ways(reference, *leaves)}, 3, device)
    return ms


def operation(args, device, speed) -> list:
    "One row for each stage and type of number."
    rows = []
    dtypes = [torch.float32]
    if device.type == "cuda":
        dtypes += [torch.float16, torch.bfloat16]
    for dtype in dtypes:
        for stage in STAGES:
            row = dict(zip(("h", "w", "c", "groups"), stage), dtype=str(dtype)[6:])
            tensors = inputs(args.batch, stage, device, dtype)
            value, every = tensors[0], sum(t.nbytes for t in tensors)
            once = every + value.nbytes  # forward: everything once
            again = 2 * every + value.nbytes  # backward: read all, write the gradients
            row |= dict(bytes_forward=once, bytes_both=once + again)
            row |= dict(flops_forward=2 * 36 * value.numel())
            row |= dict(limit_forward_ms=once / speed / 1e6)
            row |= dict(limit_both_ms=(once + again) / speed / 1e6)
            row["ms"] = times(args, device, stage, dtype)
            rows.append(row)
            show(row, args, device)
    return rows


def show(row, args, device):
    limit, both_limit, ms = row["limit_forward_ms"], row["limit_both_ms"], row["ms"]
    size = f"{args.batch} x {row['h']} x {row['w']} x {row['c']}, {row['groups']} groups"
    print(f"\n{size}, {row['dtype']}; limit {limit:.3f} / {both_limit:.3f} ms")
    for name in dict.fromkeys(n.split()[0] for n in ms):
        f, b = ms[f"{name} forward"], ms.get(f"{name} both", float("nan"))
        print(f"  {name:12} {f:9.3f} / {b:9.3f} ms", end="   ")
        print(f"{row['bytes_forward'] / f / 1e6:6.1f} GB/s", end="   ")
        print(f"{f / limit:5.1f} / {b / both_limit:5.1f} x limit", end="   ")
        faster, both_faster = ms["published forward"] / f, ms["published both"] / b
        print(f"{faster:5.1f} / {both_faster:5.1f} x faster than published")
        if device.type == "cuda" and name == "cuda" and row["dtype"] == "float32":
            (a, z), (p, q) = PREDICTED[row["c"]]
            print(f"  {'':12} predicted for 32 images on an H200:", end=" ")
            print(f"forward {a}-{z}, backward {p}-{q} us;", end=" ")
            print(f"measured {1e3 * f:.0f}, {1e3 * (b - f):.0f} us for {args.batch}")


def training(model, x):
    "A function that runs model forwards and backwards."

    def go():
        y = model(x)
        y.backward(torch.ones_like(y))

    return go


def layers(args, device) -> list:
    "A whole layer of InternImage beside a ConvNeXt block of the same width, both directions."
    rows = []
    for h, w, c, groups in STAGES:
        torch.manual_seed(0)
        ours, theirs = InternLayer(c, groups).to(device), ConvNeXtBlock(c, kernel_size=7).to(device)
        with torch.no_grad():
            for p in ours.dcn.parameters():
                p.add_(0.02 * torch.randn_like(p))  # offsets that are not zero
        x = torch.randn(args.batch, h, w, c, device=device)
        first = x.permute(0, 3, 1, 2).contiguous()
        last = first.contiguous(memory_format=torch.channels_last)
        functions = {
            "layer": training(ours, x.requires_grad_()),
            "convnext": training(theirs, last.requires_grad_()),
            "convnext channels first": training(theirs, first.requires_grad_()),
        }
        ms = medians(functions, args.repeats, device)
        rows.append(dict(h=h, w=w, c=c, groups=groups, ms=ms))
        ratio = ms["layer"] / ms["convnext"]
        print(f"  {c:4} channels: layer {ms['layer']:7.2f} ms,", end=" ")
        print(f"ConvNeXt block {ms['convnext']:7.2f}, ratio {ratio:.2f};", end=" ")
        ratio = ms["layer"] / ms["convnext channels first"]
        print(f"channels first {ms['convnext channels first']:7.2f}, ratio {ratio:.2f}")
    return rows


def encoder(args, device) -> dict:
    "InternImage-T with stem stride 4 on fields of 224 x 128, forward and backward."
    torch.manual_seed(0)
    model = create_model("internimage_tiny", features_only=True, stem_stride=4).to(device)
    x = torch.randn(2, len(VARIABLES), 224, 128, device=device)

    def train():
        model.zero_grad()
        sum(f.square().mean() for f in model(x)).backward()

    functions = {"forward": without(model, x), "both": train}
    ms = medians(functions, max(3, args.repeats // 4), device)
    print(f"InternImage-T, {tuple(x.shape)}, stem stride 4:", end=" ")
    print(f"forward {ms['forward']:.0f} ms, forward and backward {ms['both']:.0f} ms")
    return ms


FIRST_CALL = """
import time, torch
from sslpdl_nb.deform import deform_conv

value = torch.randn(1, 4, 4, 16, requires_grad=True)
offset, mask = torch.zeros(1, 4, 4, 18), torch.ones(1, 4, 4, 9)
start = time.perf_counter()
deform_conv(value, offset, mask, groups=1).sum().backward()
print(time.perf_counter() - start)
"""


def first_call() -> dict:
    "Seconds of the first call of the compiled kernels: with nothing kept, and from the disk."
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        options = dict(env=os.environ | {"NUMBA_CACHE_DIR": folder}, check=True, text=True)
        for _ in range(2):
            command = [sys.executable, "-c", FIRST_CALL]
            done = subprocess.run(command, capture_output=True, **options)
            seconds.append(float(done.stdout))
    print(f"first call {seconds[0]:.1f} s, from the disk {seconds[1]:.2f} s")
    return dict(zip(("first_call_s", "from_disk_s"), seconds))


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images; default 4 on a CPU, 32 on a GPU")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    device = torch.device(args.device)
    args.batch = args.batch or (32 if device.type == "cuda" else 4)
    torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    hardware = name if device.type == "cuda" else f"{cpu_name()}, {args.threads} threads"
    speed = copy_speed(device)
    print(f"{hardware}; torch {torch.__version__}; copy {speed:.0f} GB/s")
    result = dict(
        device=name,
        hardware=hardware,
        date=str(date.today()),
        torch=torch.__version__,
        threads=args.threads,
        batch=args.batch,
        copy_gb_s=speed,
        operation=operation(args, device, speed),
        layers=layers(args, device),
        encoder_ms=encoder(args, device),
    )
    if device.type == "cpu":
        result |= first_call()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name.lower().replace(' ', '_')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
