"""What busy neighbours cost a training step, for several settings of its threads.

    python benchmarks/neighbour.py [--presets course paper] [--out FILE.json]

Each setting trains in a process of its own. The processes take turns, one step at a time, beside a
number of neighbours: processes that count without end. So whatever else the machine does meets all
settings alike: compare them with each other, and read `others`, the processors that everything
else kept busy meanwhile, beside the seconds (Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sslpdl_nb.core import environment, write_json

RESULT = Path(__file__).parent / "results" / "neighbour.json"
READ_BY_THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_")
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}
SETTINGS = {  # name -> environment, threads (0: as many as PyTorch takes)
    "as installed": ({}, 0),
    "passive": (PASSIVE, 0),
    "one thread": ({}, 1),
    "short spin": ({"GOMP_SPINCOUNT": "1000"}, 0),
    "passive, memory kept": (PASSIVE | KEEP_MEMORY, 0),
    "passive, 16 threads": (PASSIVE, 16),
}
MAIN = ["as installed", "passive", "one thread"]
CASES = {  # preset -> samples a step, settings, numbers of neighbours, rounds
    "course": (16, list(SETTINGS), (0, 1, 2, 4), 3),
    "paper": (2, MAIN, (0, 2), 2),
}
NEIGHBOUR = "while True: pass"
CHILD = """
import json, resource, sys, time
import torch
from sslpdl_nb.core import VARIABLES, get_config, set_seed
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.pretrain import Pretrain
from sslpdl_nb.train import parameter_groups, train_step

set_seed(0)
torch.set_num_threads(int(sys.argv[3]) or torch.get_num_threads())
config = get_config(sys.argv[1])
model, task = MaskedModel(config, len(VARIABLES)), Pretrain(config)
optimizer = torch.optim.AdamW(parameter_groups(model, 1e-4, 0.05))
batch = dict(x=torch.randn(int(sys.argv[2]), len(VARIABLES), *config.image_size))
for _ in sys.stdin:
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    train_step(model, task, batch, optimizer, clip_norm=1.0, step=0)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    waits = after.ru_nvcsw - before.ru_nvcsw
    print(json.dumps(dict(seconds=seconds, processor=processor, waits=waits)), flush=True)
"""


def start(preset: str, batch: int, setting: tuple) -> subprocess.Popen:
    "A process that trains one step for every line it gets."
    added, threads = setting
    clean = {k: v for k, v in os.environ.items() if not k.startswith(READ_BY_THREADS)}
    command = [sys.executable, "-c", CHILD, preset, str(batch), str(threads)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=clean | added, **pipes)


def step(process) -> dict:
    "One step: seconds, processor seconds of it, and how often a thread of it went to sleep."
    process.stdin.write("step\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        sys.exit("a training process ended: too little memory?")
    return json.loads(answer)


def busy_seconds() -> float:
    "Processor seconds that all processes together have used; NaN where it is not known."
    try:
        user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    except OSError:
        return float("nan")
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def take_turns(processes: dict, rounds: int) -> dict:
    "setting -> steps; after each step the next setting has its turn."
    steps = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            before = busy_seconds()
            taken = step(process)
            others = busy_seconds() - before - taken["processor"]
            steps[name].append(taken | dict(others=max(0.0, others / taken["seconds"])))
    return steps


def summary(preset, batch, neighbours, name, steps) -> dict:
    "One row: the seconds of every step, and medians of the rest."
    seconds = [round(s["seconds"], 2) for s in steps]
    row = dict(preset=preset, batch=batch, neighbours=neighbours, setting=name, seconds=seconds)
    for key, digits in (("processor", 2), ("waits", 0), ("others", 1)):
        row[key] = round(statistics.median(s[key] for s in steps), digits)
    print(f"{preset:7} {neighbours:2} neighbours  {name:21}", end=" ")
    print(f"median {statistics.median(seconds):6.2f} s, worst {max(seconds):6.2f} s,", end=" ")
    print(f"{row['processor']:5.2f} s of processor; others {row['others']}", flush=True)
    return row


def measure(preset: str):
    "The rows of a preset, for one number of neighbours after the other."
    batch, names, numbers, rounds = CASES[preset]
    processes = {name: start(preset, batch, SETTINGS[name]) for name in names}
    take_turns(processes, 1)  # warm up
    for n in numbers:
        neighbours = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(n)]
        try:
            steps = take_turns(processes, rounds)
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()
        yield [summary(preset, batch, n, name, s) for name, s in steps.items()]
    for process in processes.values():
        process.stdin.close()
        process.wait()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--presets", nargs="+", default=list(CASES), choices=list(CASES))
    p.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    result = dict(environment=environment(), date=time.strftime("%Y-%m-%d"), settings=SETTINGS)
    result["runs"] = []
    for preset in args.presets:
        for rows in measure(preset):
            result["runs"] += rows
            write_json(args.out, result)  # so that a run that is stopped leaves what it measured


if __name__ == "__main__":
    main()
