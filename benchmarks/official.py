"""A training step beside the published code, repaired; writes benchmarks/results/official.json.

    python benchmarks/official.py --code FOLDER [--batch 2] [--rounds 5] [--out FILE.json]

FOLDER is a checkout of github.com/joonha425/SSLPDL. Its layers return their input unchanged; here
they are given the forward pass of InternImage, with the modules that the published code makes and
does not use. Both networks pre-train at the papers' size with the same optimiser on the same
fields, one step each in turns, on one core. What the published code does otherwise stays as it is
(a fourth down-sampler that nothing uses, batch norm, log-softmax). Anomaly detection, which it
switches on for debugging, stays off.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from floor import one_step, seconds

from sslpdl_nb.core import VARIABLES, environment, get_config, set_seed, write_json

RESULT = Path(__file__).parent / "results" / "official.json"


def layer_forward(layer, x):
    "The residual branches of an InternImage layer (norm first), which the published code skips."
    x = x + layer.drop_path(layer.gamma1 * layer.dcn(layer.norm1(x)))
    return x + layer.drop_path(layer.gamma2 * layer.mlp(layer.norm2(x)))


def published_step(code: Path, batch: int):
    "A function without arguments that trains the published network for one step."
    sys.path.insert(0, str(code))
    import encoder
    import run

    encoder.InternImageLayer.forward = layer_forward
    set_seed(0)
    model = encoder.Encoder(run.Config().parser.parse_args([])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(batch, 1, len(VARIABLES), *get_config("paper").image_size)

    def step():
        optimizer.zero_grad()
        loss, _ = model(x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--code", type=Path, required=True, help="folder of the published code")
    p.add_argument("--batch", type=int, default=2, help="samples a step")
    p.add_argument("--rounds", type=int, default=5, help="steps of each")
    p.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    torch.set_num_threads(1)
    steps = dict(
        ours=one_step("paper", args.batch), published=published_step(args.code, args.batch)
    )
    for step in steps.values():
        step()  # warm up
    times = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(round(seconds(step), 3))
    ratio = statistics.median(times["ours"]) / statistics.median(times["published"])
    about = dict(environment=environment(), date=time.strftime("%Y-%m-%d"), batch=args.batch)
    write_json(args.out, about | dict(seconds=times, ratio=round(ratio, 3)))
    print(f"ours / published code, repaired: {ratio:.2f}")


if __name__ == "__main__":
    main()
