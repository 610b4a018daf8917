"""Samples a second and peak memory of whole training steps; writes benchmarks/results/train.json.

    python benchmarks/train.py [--presets small course paper] [--device cuda] [--out FILE.json]

A step of pre-training and a step of fine-tuning, with deformable layers (ours) and with ConvNeXt
layers in their place (timm). Each of the four trains in a process of its own. The processes take
turns, one step at a time, so that whatever else the machine does meets all alike: compare them
with each other, and read `others`, the processors that everything else kept busy meanwhile.
Memory is what the process has taken from the system at most, or on a GPU what tensors took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from neighbour import take_turns

from sslpdl_nb.core import environment, write_json

RESULT = Path(__file__).parent / "results" / "train.json"
BATCHES = dict(small=16, course=16, paper=2)  # samples a step
TASKS = ("pretrain", "finetune")
LAYERS = ("ours", "convnext")
THREADS = {"OMP_WAIT_POLICY": "passive"}  # as the commands of the package set it
CHILD = """
import json, resource, sys, time
import torch
from sslpdl_nb.baselines.library import exchange_layers
from sslpdl_nb.baselines.networks import count_parameters
from sslpdl_nb.core import VARIABLES, get_config, set_seed
from sslpdl_nb.finetune import Finetune
from sslpdl_nb.masking import MaskedModel, prepare_layers
from sslpdl_nb.pretrain import Pretrain
from sslpdl_nb.train import Engine, join, parameter_groups, train_step

preset, batch, task, layers, device, precision, recompute = sys.argv[1:]
set_seed(0)
config, engine = get_config(preset), Engine(device, precision, recompute=recompute == "True")
outputs = len(VARIABLES) if task == "pretrain" else len(config.edges) + 1
model, task = MaskedModel(config, outputs), dict(pretrain=Pretrain, finetune=Finetune)[task](config)
if layers == "convnext":
    exchange_layers(model.encoder)
model = prepare_layers(model, engine).to(join(engine.device)).train()
where = next(model.parameters()).device
optimizer = torch.optim.AdamW(parameter_groups(model, 1e-4, 0.05))
x = torch.randn(int(batch), len(VARIABLES), *config.image_size)
batch = dict(x=x.to(where), rain=(5 * x[:, 0].clamp(min=0)).to(where))
for _ in sys.stdin:
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    train_step(model, task, batch, optimizer, clip_norm=1.0, step=0, engine=engine)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if where.type == "cuda":
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() / 1e6
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    numbers = dict(memory_mb=memory, parameters=count_parameters(model))
    print(json.dumps(numbers | dict(seconds=seconds, processor=processor)), flush=True)
"""


def start(preset: str, batch: int, task: str, layers: str, args) -> subprocess.Popen:
    "A process that trains one step for every line it gets."
    command = [sys.executable, "-c", CHILD, preset, str(batch), task, layers]
    command += [args.device, args.precision, str(args.recompute)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=THREADS | os.environ, **pipes)


def measure(preset: str, args) -> list:
    "One row for each task and kind of layers."
    batch = BATCHES[preset]
    pairs = [(task, layers) for task in TASKS for layers in LAYERS]
    processes = {pair: start(preset, batch, *pair, args) for pair in pairs}
    take_turns(processes, 1)  # warm up
    steps, rows = take_turns(processes, args.rounds), []
    for process in processes.values():
        process.stdin.close()
        process.wait()
    for (task, layers), taken in steps.items():
        middle = {k: statistics.median(s[k] for s in taken) for k in taken[0]}
        row = dict(preset=preset, batch=batch, task=task, layers=layers)
        row |= dict(parameters=int(middle["parameters"]), memory_mb=round(middle["memory_mb"]))
        row |= dict(seconds=[round(s["seconds"], 3) for s in taken])
        row |= dict(processor=round(middle["processor"], 3), others=round(middle["others"], 1))
        row["samples_a_second"] = float(f"{batch / middle['seconds']:.3g}")
        rows.append(row)
        print(f"{preset:7} {task:9} {layers:9} {row['samples_a_second']:8.3g} samples/s", end=" ")
        print(f"{row['processor']:7.2f} s of processor, {row['memory_mb']:6} MB", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--presets", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    p.add_argument("--rounds", type=int, default=3, help="steps of each")
    p.add_argument("--device", default="cpu", help="cpu | cuda")
    p.add_argument("--precision", default="float32", help="float32 | bfloat16")
    p.add_argument("--recompute", action="store_true", help="compute layers twice, to save memory")
    p.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    about = dict(device=args.device, precision=args.precision, recompute=args.recompute)
    about |= dict(environment=environment(), date=time.strftime("%Y-%m-%d"), rows=[])
    for preset in args.presets:
        about["rows"] += measure(preset, args)
        write_json(args.out, about)  # so that a run that is stopped leaves what it measured


if __name__ == "__main__":
    main()
