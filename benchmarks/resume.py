"""A training of the paper's size is stopped by SIGKILL and goes on: are its weights the same?

    python benchmarks/resume.py [--preset paper] [--steps 10] [--kill 7] [--batch 1]

Random fields instead of weather: the question is whether a run is repeated bit for bit, whatever
it learns. The result goes to benchmarks/results/resume.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sslpdl_nb.core import environment, write_json

RESULT = Path(__file__).parent / "results" / "resume.json"
CHILD = """
import os, signal, sys
import torch
from sslpdl_nb.core import VARIABLES, get_config, set_seed
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.pretrain import Pretrain
from sslpdl_nb.train import fit, loaders, parameter_groups

preset, steps, kill, batch, folder = sys.argv[1:]
config, calls = get_config(preset), []


class Task(Pretrain):
    def loss(self, model, batch):
        calls.append(1)
        if len(calls) == int(kill):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)

    def scores(self, model, loader):
        return {}


generator = set_seed(0)
shape = (len(VARIABLES), *config.image_size)
data = [dict(x=torch.randn(shape, generator=generator)) for _ in range(2 * int(batch))]
model = MaskedModel(config, len(VARIABLES))
groups = parameter_groups(model, config.pretrain_lr, config.pretrain_weight_decay)
options = dict(betas=config.pretrain_betas, warmup=config.warmup, clip_norm=config.clip_norm)
options |= dict(steps=int(steps), groups=groups, eval_every=5, progress=False)
both = loaders(data, data, int(batch), 0)
history = fit(model, Task(config), *both, state=f"{folder}/run.state", **options)
torch.save(dict(weights=model.state_dict(), history=history), f"{folder}/result.pt")
"""


def run(args, kill: int, folder: str) -> int:
    "One process; its return code."
    words = [args.preset, args.steps, kill, args.batch, folder]
    return subprocess.run([sys.executable, "-c", CHILD, *map(str, words)]).returncode


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--preset", default="paper", help="small | course | paper")
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--kill", type=int, default=7, help="in this step")
    p.add_argument("--batch", type=int, default=1, help="samples a step")
    p.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    begin, found = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as stopped:
        codes = [run(args, 0, whole), run(args, args.kill, stopped), run(args, 0, stopped)]
        for name, folder in dict(whole=whole, stopped=stopped).items():
            found[name] = torch.load(Path(folder, "result.pt"), weights_only=True)
    a, b = (found[name]["weights"] for name in ("whole", "stopped"))
    equal = all(torch.equal(a[k], b[k]) for k in a)
    equal = equal and found["whole"]["history"] == found["stopped"]["history"]
    row = dict(preset=args.preset, steps=args.steps, kill=args.kill, batch=args.batch)
    row |= dict(parameters=sum(v.numel() for v in a.values()), return_codes=codes, equal=equal)
    row |= dict(seconds=round(time.perf_counter() - begin), date=time.strftime("%Y-%m-%d"))
    write_json(args.out, dict(environment=environment(), **row))
    print(row)
    sys.exit(not equal)


if __name__ == "__main__":
    main()
