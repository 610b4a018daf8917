"""Time deformable convolution, its layer and the encoder on this machine; write benchmarks/results/<device>.json.

    python benchmarks/deform.py                 # the processor, or the graphics processor if there is one
    python benchmarks/deform.py --device cpu --threads 2 --repeats 15 --batch 4

Every figure is a median of runs in turn, so that a busy moment of the machine hits all alike. Compare ratios, not machines.
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

import sslpdl_nb.encoder
from sslpdl_nb import deform as layer
from sslpdl_nb.kernels import backend
from sslpdl_nb.kernels import gpu as cuda
from sslpdl_nb.deform import deform_conv_grid_sample, deform_conv_reference, random_inputs
from sslpdl_nb.encoder import InternLayer

STAGES = [
    (112, 64, 64, 4),
    (56, 32, 128, 8),
    (28, 16, 256, 16),
    (14, 8, 512, 32),
]  # h, w, channels, groups
GEOMETRY = dict(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), scale=1.0)
# Predicted before anything ran on a graphics processor: (forward, backward) microseconds, 32 images, float32, of an H200.
PREDICTED = {
    64: ((90, 150), (250, 400)),
    128: ((45, 75), (130, 200)),
    256: ((23, 38), (65, 100)),
    512: ((12, 20), (35, 50)),
}


def published(value, offset, mask, groups):
    "The usual pure-PyTorch DCNv3: a padded field, a grid of all samples taps innermost, grid_sample, a weighted sum."
    n, h, w, c = value.shape
    x = F.pad(value, (0, 0, 1, 1, 1, 1))
    hp, wp = h + 2, w + 2
    rows, cols = torch.meshgrid(
        torch.arange(1, h + 1, device=x.device) + 0.5,
        torch.arange(1, w + 1, device=x.device) + 0.5,
        indexing="ij",
    )
    base = torch.stack([cols.reshape(-1) / wp, rows.reshape(-1) / hp], -1).reshape(1, h, w, 1, 2)
    k = torch.arange(9, device=x.device)
    taps = (
        torch.stack([(k // 3 - 1) / wp, (k % 3 - 1) / hp], -1)
        .reshape(9, 2)
        .repeat(groups, 1)
        .view(1, 1, 1, groups * 9, 2)
    )
    size = torch.tensor([wp, hp], device=x.device).repeat(groups * 9).view(1, 1, 1, -1)
    grid = 2 * ((base + taps).repeat(n, 1, 1, 1, 1).flatten(3) + offset / size) - 1
    grid = grid.view(n, h * w, groups, 9, 2).transpose(1, 2).flatten(0, 1).to(x.dtype)
    fields = x.view(n, hp * wp, c).transpose(1, 2).reshape(n * groups, c // groups, hp, wp)
    samples = F.grid_sample(
        fields, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    m = mask.view(n, h * w, groups, 9).transpose(1, 2).reshape(n * groups, 1, h * w, 9)
    return (samples * m).sum(-1).view(n, c, h * w).transpose(1, 2).reshape(n, h, w, c).contiguous()


def inputs(n, h, w, c, groups, device, dtype, grad=False):
    return [
        t.to(device).requires_grad_(grad)
        for t in random_inputs(n, h, w, c, groups=groups, spread=2.0, dtype=dtype)
    ]


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
        "grid_sample": lambda *t: deform_conv_grid_sample(*t, groups, *GEOMETRY.values()),
    }
    if ours in backend.COMPILED:
        found[ours] = lambda *t: layer.deform_conv(*t, groups=groups)
    return found


def as_cpp(groups, c) -> dict:
    "The simple CUDA kernel compiled as C++, where there is a g++; one lane a group, images in parallel."
    compiler, shim = shutil.which("g++"), Path(__file__).parent.parent / "tests" / "shim"
    if not compiler:
        return {}
    words = cuda.plan(torch.float32, c // groups, (3, 3)) | {"DCN_VEC": c // groups, "DCN_RED4": 0}
    folder = Path(tempfile.mkdtemp())
    (folder / "source.cu").write_text(cuda.SOURCE)
    options = [
        "-std=c++17",
        "-O3",
        "-march=native",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fno-signed-zeros",
        "-fassociative-math",
        "-fopenmp",
        "-shared",
        "-fPIC",
        "-w",
    ]
    subprocess.run(
        [
            compiler,
            *options,
            f"-I{shim}",
            *(f"-D{k}={v}" for k, v in words.items()),
            f'-DSOURCE_FILE="{folder / "source.cu"}"',
            str(shim / "launch.cpp"),
            "-o",
            str(folder / "deform.so"),
        ],
        check=True,
    )
    function = ctypes.CDLL(str(folder / "deform.so")).run_deform_forward
    shutil.rmtree(folder)

    def forward(value, offset, mask):
        (n, h, w, _), out = value.shape, torch.empty_like(value)
        sizes = (h, w, h, w, groups, 1, 1, 1, 1, 1, 1)
        function(
            -(-h * w * groups // 256),
            n,
            1,
            256,
            *(ctypes.c_void_p(t.data_ptr()) for t in (value, offset, mask, out)),
            *sizes,
            ctypes.c_float(1.0),
        )
        return out

    return {"cpp": forward}


def operation(args, device, speed) -> list:
    "One row for each stage and type of number."
    rows = []
    dtypes = (
        [torch.float32] if device.type == "cpu" else [torch.float32, torch.float16, torch.bfloat16]
    )
    for dtype in dtypes:
        for h, w, c, groups in STAGES:
            tensors, leaves = (
                inputs(args.batch, h, w, c, groups, device, dtype, grad) for grad in (False, True)
            )
            found = implementations(groups, device)
            ms = medians(
                {f"{name} forward": without(f, *tensors) for name, f in found.items()}
                | {f"{name} both": both_ways(f, *leaves) for name, f in found.items()},
                args.repeats,
                device,
            )
            if device.type == "cpu":  # apart: the reference empties all caches
                apart = {
                    "reference": lambda *t, g=groups: deform_conv_reference(*t, groups=g)
                } | as_cpp(groups, c)
                ms |= medians(
                    {f"{name} forward": without(f, *tensors) for name, f in apart.items()},
                    3,
                    device,
                )
                ms |= medians({"reference both": both_ways(apart["reference"], *leaves)}, 3, device)
            once = sum(t.nbytes for t in tensors) + tensors[0].nbytes  # forward: everything once
            again = (
                2 * sum(t.nbytes for t in tensors) + tensors[0].nbytes
            )  # backward: read all, write gradients
            flops = 2 * 36 * tensors[0].numel()
            rows.append(
                dict(
                    h=h,
                    w=w,
                    c=c,
                    groups=groups,
                    dtype=str(dtype)[6:],
                    bytes_forward=once,
                    bytes_both=once + again,
                    flops_forward=flops,
                    limit_forward_ms=once / speed / 1e6,
                    limit_both_ms=(once + again) / speed / 1e6,
                    ms=ms,
                )
            )
            show(rows[-1], args, device)
    return rows


def show(row, args, device):
    print(
        f"\n{args.batch} x {row['h']} x {row['w']} x {row['c']}, {row['groups']} groups, {row['dtype']}; "
        f"limit {row['limit_forward_ms']:.3f} / {row['limit_both_ms']:.3f} ms"
    )
    for name in dict.fromkeys(n.split()[0] for n in row["ms"]):
        f, b = row["ms"][f"{name} forward"], row["ms"].get(f"{name} both", float("nan"))
        print(
            f"  {name:12} {f:9.3f} / {b:9.3f} ms   {row['bytes_forward'] / f / 1e6:6.1f} GB/s   {f / row['limit_forward_ms']:5.1f} / {b / row['limit_both_ms']:5.1f} x limit   "
            f"{row['ms']['published forward'] / f:5.1f} / {row['ms']['published both'] / b:5.1f} x faster than published"
        )
        if device.type == "cuda" and name == "cuda" and row["dtype"] == "float32":
            (a, z), (p, q) = PREDICTED[row["c"]]
            print(
                f"  {'':12} predicted for 32 images on an H200: forward {a}-{z}, backward {p}-{q} us; measured {1e3 * f:.0f}, {1e3 * (b - f):.0f} us for {args.batch}"
            )


def layers(args, device) -> list:
    "A whole layer of InternImage beside a ConvNeXt block of the same width, forward and backward."
    rows = []
    for h, w, c, groups in STAGES:
        torch.manual_seed(0)
        ours, theirs = InternLayer(c, groups).to(device), ConvNeXtBlock(c, kernel_size=7).to(device)
        with torch.no_grad():
            for p in ours.dcn.parameters():
                p.add_(0.02 * torch.randn_like(p))  # offsets that are not zero
        x = torch.randn(args.batch, h, w, c, device=device, requires_grad=True)
        last = (
            x.detach()
            .permute(0, 3, 1, 2)
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_()
        )
        first = x.detach().permute(0, 3, 1, 2).contiguous().requires_grad_()

        def train(model, t):
            def go():
                y = model(t)
                y.backward(torch.ones_like(y))

            return go

        ms = medians(
            {
                "layer": train(ours, x),
                "convnext": train(theirs, last),
                "convnext channels first": train(theirs, first),
            },
            args.repeats,
            device,
        )
        rows.append(dict(h=h, w=w, c=c, groups=groups, ms=ms))
        print(
            f"  {c:4} channels: layer {ms['layer']:7.2f} ms, ConvNeXt block {ms['convnext']:7.2f} (channels first {ms['convnext channels first']:7.2f}), "
            f"ratio {ms['layer'] / ms['convnext']:.2f} ({ms['layer'] / ms['convnext channels first']:.2f})"
        )
    return rows


def encoder(args, device) -> dict:
    "InternImage-T with stem stride 4 on fields of 224 x 128, forward and backward."
    torch.manual_seed(0)
    model = create_model("internimage_tiny", features_only=True, stem_stride=4).to(device)
    x = torch.randn(2, 16, 224, 128, device=device)

    def train():
        model.zero_grad()
        sum(f.square().mean() for f in model(x)).backward()

    ms = medians({"forward": without(model, x), "both": train}, max(3, args.repeats // 4), device)
    print(
        f"InternImage-T, 2 x 16 x 224 x 128, stem stride 4: forward {ms['forward']:.0f} ms, forward and backward {ms['both']:.0f} ms"
    )
    return ms


def first_call() -> dict:
    "Seconds of the first call of the compiled kernels in a new process: nothing kept, and from the disk."
    code = (
        "import time, torch; from sslpdl_nb.deform import deform_conv; v, o, m = torch.randn(1, 4, 4, 16, requires_grad=True), torch.zeros(1, 4, 4, 18), torch.ones(1, 4, 4, 9);"
        "t = time.perf_counter(); deform_conv(v, o, m, groups=1).sum().backward(); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code],
                    env=os.environ | {"NUMBA_CACHE_DIR": folder},
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for _ in range(2)
        ]
    print(f"first call {seconds[0]:.1f} s, from the disk {seconds[1]:.2f} s")
    return dict(zip(("first_call_s", "from_disk_s"), seconds))


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batch", type=int, help="images; default 4 on the processor, 32 on a graphics processor"
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    device = torch.device(args.device)
    args.batch = args.batch or (32 if device.type == "cuda" else 4)
    torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    hardware = name if device.type == "cuda" else f"{processor()}, {args.threads} threads"
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
