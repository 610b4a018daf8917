"""Time one training step of every network on one core; write benchmarks/results/networks.json.

    python benchmarks/networks.py                       # all networks that can be imported
    python benchmarks/networks.py --names unet segformer --repeats 30

Every round gives each network one step in turn, so that a busy moment of the machine affects all
alike. The time is that of the processor, not of the clock, and the median of the rounds is kept.
Rows of networks that are not named stay as they are. To add a network, add its name to NETWORKS.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import date
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from sslpdl_nb.baselines.networks import PlaneNet, RainTask, count_parameters
from sslpdl_nb.core import VARIABLES, environment, get_config, set_seed, write_json
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.train import train_step

# name -> module, function or class, frames (0 = no window), what else is tried
NETWORKS = {
    "unet": ("finetune", "UNet", 0, ""),
    "unet, channels last": ("finetune", "UNet", 0, "channels_last"),
    "unet, compiled": ("finetune", "UNet", 0, "compile"),
    "internimage": ("finetune", "rain_model", 0, ""),
    "convlstm": ("baselines.recurrent", "ConvLSTMNet", 3, ""),
    "metnet": ("baselines.recurrent", "MetNet", 3, ""),
    "convnext_upernet": ("baselines.library", "convnext_upernet", 0, ""),
    "segformer": ("baselines.library", "segformer", 0, ""),
    "deeplab": ("baselines.library", "deeplab", 0, ""),
}
RESULTS = Path(__file__).parent / "results" / "networks.json"


class Trial:
    "A network with its optimiser and a random batch."

    def __init__(self, name, config, batch):
        module, function, frames, how = NETWORKS[name]
        set_seed(0)
        net = getattr(import_module(f"sslpdl_nb.{module}"), function)(config)
        lead = 0 if isinstance(net, MaskedModel) else 1
        self.model = PlaneNet(net, planes=lead).train()
        self.parameters = count_parameters(self.model)
        shape = (batch, *([frames] if frames else []), len(VARIABLES) + lead, *config.image_size)
        self.batch = dict(x=torch.randn(shape), rain=3 * torch.rand(batch, *config.image_size) ** 3)
        if how == "channels_last":
            self.model = self.model.to(memory_format=torch.channels_last)
            self.batch["x"] = self.batch["x"].contiguous(memory_format=torch.channels_last)
        if how == "compile":
            self.model = torch.compile(self.model)
        self.task = RainTask(config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.times = dict(step=[], step_clock=[], forward=[])

    def step(self, number):
        "One optimiser step and one forecast, timed."
        cpu, clock = time.process_time(), time.perf_counter()
        train_step(self.model, self.task, self.batch, self.optimizer, clip_norm=1.0, step=number)
        self.times["step"].append(time.process_time() - cpu)
        self.times["step_clock"].append(time.perf_counter() - clock)
        self.model.eval()
        with torch.no_grad():
            cpu = time.process_time()
            self.model(self.batch["x"])
            self.times["forward"].append(time.process_time() - cpu)
        self.model.train()

    def row(self) -> dict:
        "Medians."
        middle = {k: sorted(v)[len(v) // 2] for k, v in self.times.items()}
        return dict(
            parameters=self.parameters,
            step_seconds=round(middle["step"], 4),
            step_seconds_clock=round(middle["step_clock"], 4),
            forward_milliseconds=round(1000 * middle["forward"] / len(self.batch["x"]), 3),
        )


def main(names, repeats, batch, threads):
    torch.set_num_threads(threads)
    config, trials = get_config("small"), {}
    for name in names:
        try:
            trials[name] = Trial(name, config, batch)
            for warm_up in range(2):
                trials[name].step(warm_up)
        except (ImportError, AttributeError) as error:
            print(f"{name}: left out ({error})")
            trials.pop(name, None)
    for trial in trials.values():
        trial.times = {k: [] for k in trial.times}
    for number in range(repeats):
        for trial in trials.values():
            trial.step(number)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    about = dict(size=list(config.image_size), batch=batch, threads=threads, repeats=repeats)
    about |= dict(date=str(date.today()), torch=torch.__version__)
    rows |= {name: trial.row() | about for name, trial in trials.items()}
    rows = {name: rows[name] for name in NETWORKS if name in rows}
    write_json(RESULTS, dict(environment=environment(), rows=rows))
    print(f"{'network':20} {'parameters':>11} {'s a step':>9} {'by clock':>9} {'ms a map':>9}")
    for name, r in rows.items():
        print(f"{name:20} {r['parameters']:11,} {r['step_seconds']:9.3f}", end=" ")
        print(f"{r['step_seconds_clock']:9.3f} {r['forward_milliseconds']:9.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--names", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    main(**vars(parser.parse_args()))
