"""How near a training step is to what the processor can do; writes benchmarks/results/floor.json.

    python benchmarks/floor.py [--presets small course paper] [--rounds 5] [--out FILE.json]

A step of pre-training with the decoder that multiplies coarse maps before it enlarges them
(`sslpdl_nb.decoder.convolve_enlarged`), and one with a decoder that enlarges them first, take
turns on one core with a product of two large matrices and a large convolution. PyTorch counts
multiplications and additions of each. `floor` is the time that those of a step would take at the
pace of the faster of the two: what remains if everything else were free and no multiplication
could be saved.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sslpdl_nb.core import VARIABLES, environment, get_config, set_seed, write_json
from sslpdl_nb.decoder import resize
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.pretrain import Pretrain
from sslpdl_nb.train import Engine, parameter_groups, train_step

RESULT = Path(__file__).parent / "results" / "floor.json"
BATCHES = dict(small=16, course=16, paper=2)  # samples a step
SIDE = 2048  # of the square matrices
CHANNELS, MAP = 256, (112, 64)  # of the convolution: one 3 x 3 convolution of the papers' decoder


def enlarge_first(x, weight, size):
    "What `convolve_enlarged` computes, in the usual order."
    return F.conv2d(resize(x, size), weight, padding=weight.shape[-1] // 2)


def one_step(preset: str, batch: int):
    "A function without arguments that trains one step."
    set_seed(0)
    config = get_config(preset)
    model, task = MaskedModel(config, len(VARIABLES)).train(), Pretrain(config)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-4, 0.05))
    x = torch.randn(batch, len(VARIABLES), *config.image_size)
    samples, engine = dict(x=x, rain=x[:, 0]), Engine()
    return lambda: train_step(model, task, samples, optimizer, clip_norm=1, step=0, engine=engine)


def flop(function) -> int:
    "Multiplications and additions of a call."
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def seconds(function) -> float:
    "Processor time of a call."
    begin = time.process_time()
    function()
    return time.process_time() - begin


def measure(preset: str, rounds: int) -> dict:
    "Multiplications and processor time of both ways, and the pace of the yardsticks."
    step = one_step(preset, BATCHES[preset])
    a, b = torch.randn(2, SIDE, SIDE)
    x, weight = torch.randn(1, CHANNELS, *MAP), torch.randn(CHANNELS, CHANNELS, 3, 3)
    yardsticks = dict(product=lambda: a @ b, convolution=lambda: F.conv2d(x, weight, padding=1))
    before = mock.patch("sslpdl_nb.decoder.convolve_enlarged", enlarge_first)
    counts = dict(multiply_first=flop(step))
    with before:
        counts["enlarge_first"] = flop(step)
    times = {name: [] for name in (*counts, *yardsticks)}
    for _ in range(rounds):
        for name, function in yardsticks.items():
            times[name].append(seconds(function))
        times["multiply_first"].append(seconds(step))
        with before:
            times["enlarge_first"].append(seconds(step))
    middle = {k: statistics.median(v) for k, v in times.items()}
    paces = {name: flop(function) / middle[name] for name, function in yardsticks.items()}
    pace, row = max(paces.values()), dict(preset=preset, batch=BATCHES[preset])
    row["gigaflop_a_second"] = {name: round(p / 1e9, 1) for name, p in paces.items()}
    for way, count in counts.items():
        row[way] = dict(
            gigaflop=round(count / 1e9, 2),
            seconds=[round(s, 3) for s in times[way]],
            floor=round(count / pace, 3),
            share_of_floor=round(count / pace / middle[way], 2),
        )
    row["ratio"] = round(middle["multiply_first"] / middle["enlarge_first"], 3)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--presets", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    p.add_argument("--rounds", type=int, default=5, help="steps of each")
    p.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    torch.set_num_threads(1)
    about = dict(environment=environment(), date=time.strftime("%Y-%m-%d"), rows=[])
    for preset in args.presets:
        row = measure(preset, args.rounds)
        about["rows"].append(row)
        write_json(args.out, about)  # so that a run that is stopped leaves what it measured
        print(f"{preset:7} multiply first / enlarge first {row['ratio']:.2f};", end=" ")
        print(f"floor {row['multiply_first']['share_of_floor']:.0%} of the step")


if __name__ == "__main__":
    main()
