"""Training steps of two nowcast networks, each beside the way it was done before, in turns.

    python benchmarks/nowcast.py [--rounds 5] [--out FILE.json]

SmaAt-UNet with `DepthwiseConv2d` and with PyTorch's grouped convolution of the same weights, and
SpaT-SparK with nothing hidden, directly and through the sparse layers of its encoder. Eight samples
of 96 x 96 pixels, bfloat16, one core; writes benchmarks/results/nowcast.json. Also how long one
simulated sequence takes, and one forecast by the small network, moved frames included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and PyTorch are loaded

import torch
from torch import nn

from sslpdl_nb.core import environment, set_seed, write_json
from sslpdl_nb.nowcast import networks
from sslpdl_nb.nowcast.networks import DepthwiseConv2d, network
from sslpdl_nb.nowcast.sky import RadarSky
from sslpdl_nb.nowcast.sparse import lent_mask
from sslpdl_nb.nowcast.tasks import Nowcast
from sslpdl_nb.nowcast.train import build_network, forecast, get_nowcast_config

RESULT = Path(__file__).parent / "results" / "nowcast.json"
BATCH, SIDE = 8, 96  # samples; pixels along each side


def through_all(model, x, mask):
    "What `sparse_features` did before: the sparse layers, whatever the mask hides."
    with lent_mask(model.modules(), mask):
        return model(x)


PAIRS = dict(
    smaat=mock.patch.object(DepthwiseConv2d, "forward", nn.Conv2d.forward),
    spat=mock.patch.object(networks, "sparse_features", through_all),
)


def one_step(name: str):
    "A function without arguments: forward and backward pass of one batch."
    set_seed(0)
    model = network(name).train().to(memory_format=torch.channels_last)
    task = Nowcast(precision="bfloat16")
    batch = dict(x=torch.rand(BATCH, 12, SIDE, SIDE), y=torch.rand(BATCH, 12, SIDE, SIDE))

    def step():
        model.zero_grad()
        task.loss(model, batch).backward()

    return step


def seconds(function) -> float:
    "Processor time of a call."
    begin = time.process_time()
    function()
    return time.process_time() - begin


def measure(name: str, rounds: int) -> dict:
    "Processor time of both ways and their ratio."
    step, times = one_step(name), dict(now=[], before=[])
    for k in range(rounds + 1):
        now = seconds(step)
        with PAIRS[name]:
            before = seconds(step)
        if k:  # the first round warms up
            times["now"].append(round(now, 4))
            times["before"].append(round(before, 4))
    middle = {way: statistics.median(values) for way, values in times.items()}
    return dict(network=name, **times, ratio=round(middle["now"] / middle["before"], 3))


def waits(rounds: int) -> dict:
    "Seconds of a simulated sequence and of a forecast by the small network."
    sky, config = RadarSky(), get_nowcast_config("small")
    frames = sky.sequence(0).radar[:12]
    model = build_network(config).to(memory_format=torch.channels_last)
    actions = dict(
        sequence=lambda: sky.sequence(0),
        forecast=lambda: forecast(model, dict(config=config), frames),
    )
    for action in actions.values():
        action()  # warms up
    found = {}
    for name, action in actions.items():
        found[name] = round(statistics.median(seconds(action) for _ in range(rounds)), 4)
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=5, help="steps of each")
    p.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    torch.set_num_threads(1)
    about = dict(environment=environment(), date=time.strftime("%Y-%m-%d"), rows=[])
    for name in PAIRS:
        row = measure(name, args.rounds)
        about["rows"].append(row)
        write_json(args.out, about)
        print(f"{name:6} now / before {row['ratio']:.2f}")
    about["seconds"] = waits(args.rounds)
    write_json(args.out, about)
    print("seconds:", about["seconds"])


if __name__ == "__main__":
    main()
