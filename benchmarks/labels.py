"""Does pre-training help where few forecasts have observed rain? Fine-tuning with labels of a few atmospheres only.

    python benchmarks/labels.py --data runs/data/course --pretrained runs/course/pretrained.safetensors

The network is fine-tuned from the pre-trained weights and from scratch, on the training samples of the first so many
simulated atmospheres, for so many steps. Calibration and thresholds come from the validation days, scores from the test days. What is done
is written after every training, and is not done again. Keeps benchmarks/results/labels.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Subset

from sslpdl_nb.simulate.archive import atmosphere_of
from sslpdl_nb.core import environment, get_config, write_json
from sslpdl_nb.store import load_splits
from sslpdl_nb.finetune import decide, exceedance, finetune, predict_probabilities
from sslpdl_nb.verify import brier, count_events, csi

RESULT = Path(__file__).parent / "results" / "labels.json"


def score(model, meta, splits, edges):
    "CSI at both edges and Brier score at the lower one, on the test days."
    p, rain = predict_probabilities(model, splits.test), splits.test.rain.numpy()
    known, decided = np.isfinite(rain), decide(p, meta["thresholds"])
    wet = np.where(known, rain >= edges[0], np.nan)
    return {
        f"CSI {edge:g}": csi(count_events(decided > k, rain >= edge, known))
        for k, edge in enumerate(edges)
    } | {"Brier 0.1": brier(exceedance(p)[:, 0], wet)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder of an archive of size course")
    parser.add_argument("--pretrained", required=True, help="pre-trained on it (.safetensors)")
    parser.add_argument("--atmospheres", type=int, nargs="+", default=[1, 4], help="with labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    config = get_config("course", finetune_steps=args.steps)
    splits = load_splits(args.data, config)
    number, init = (
        atmosphere_of(splits.samples["train"]),
        {"pre-trained": args.pretrained, "from scratch": None},
    )
    record = json.loads(RESULT.read_text()) if RESULT.exists() else dict(runs=[])
    record |= dict(
        environment=environment(),
        data=splits.samples["train"].attrs["source"],
        atmospheres_pretrained=int(number.max() + 1),
    )
    for seed in range(args.seeds):
        for n in args.atmospheres:
            few = replace(splits, train=Subset(splits.train, np.flatnonzero(number < n).tolist()))
            for name, path in init.items():
                key = dict(
                    start=name, atmospheres=n, samples=len(few.train), steps=args.steps, seed=seed
                )
                if any(key.items() <= run.items() for run in record["runs"]):
                    continue
                began = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    model, meta = finetune(
                        config,
                        few,
                        seed,
                        Path(folder) / "model.safetensors",
                        init=path,
                        progress=False,
                    )
                best = min(
                    (e for e in meta["history"] if "valid_loss" in e), key=lambda e: e["valid_loss"]
                )["step"]
                record["runs"].append(
                    key
                    | score(model, meta, splits, config.edges)
                    | dict(best_step=best, seconds=round(time.perf_counter() - began))
                )
                write_json(RESULT, record)
                print(record["runs"][-1], flush=True)


if __name__ == "__main__":
    main()
