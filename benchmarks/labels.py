"""Does pre-training help where few forecasts have observed rain?

    python benchmarks/labels.py --data data/course --pretrained runs/course/pretrained.safetensors

The network is fine-tuned from the pre-trained weights and from scratch, on the training samples of
a few simulated atmospheres only. Calibration and probability thresholds come from the validation
days, scores from the test days. Every training is recorded in benchmarks/results/labels.json as
soon as it is done, and is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Subset

from sslpdl_nb.core import environment, get_config, write_json
from sslpdl_nb.decide import decide, exceedance, predict_probabilities
from sslpdl_nb.finetune import finetune
from sslpdl_nb.store import atmosphere_of, load_splits
from sslpdl_nb.verify import brier, count_events, csi

RESULT = Path(__file__).parent / "results" / "labels.json"


def score(model, meta, splits, edges) -> dict:
    "CSI at each edge and the Brier score at the lowest one, on the test days."
    p = predict_probabilities(model, splits.test)
    rain = splits.test.observed_rain().numpy()
    known = np.isfinite(rain)
    decided = decide(p, meta["probability_thresholds"])
    scores = {}
    for k, edge in enumerate(edges):
        scores[f"CSI {edge:g}"] = csi(count_events(decided > k, rain >= edge, known))
    wet = np.where(known, rain >= edges[0], np.nan)
    scores[f"Brier {edges[0]:g}"] = brier(exceedance(p)[:, 0], wet)
    return scores


def train_and_score(config, splits, seed: int, init) -> dict:
    "One fine-tuning, with the step of its best weights and the seconds it took."
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model, meta = finetune(config, splits, seed, path, init=init, progress=False)
    evaluations = [entry for entry in meta["history"] if "valid_loss" in entry]
    best = min(evaluations, key=lambda entry: entry["valid_loss"])
    seconds = round(time.perf_counter() - began)
    scores = score(model, meta, splits, config.edges)
    return scores | dict(best_step=best["step"], seconds=seconds)


def read_arguments():
    "The options of the command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder of an archive of size course")
    parser.add_argument("--pretrained", required=True, help="pre-trained on it (.safetensors)")
    parser.add_argument("--atmospheres", type=int, nargs="+", default=[1, 4], help="with labels")
    parser.add_argument("--seeds", type=int, default=3, help="number of repetitions")
    parser.add_argument("--steps", type=int, default=120, help="of fine-tuning")
    return parser.parse_args()


def main():
    args = read_arguments()
    config = get_config("course", finetune_steps=args.steps)
    splits = load_splits(args.data, config)
    number = atmosphere_of(splits.samples["train"])
    record = json.loads(RESULT.read_text()) if RESULT.exists() else dict(runs=[])
    record |= dict(
        environment=environment(),
        data=splits.samples["train"].attrs["source"],
        atmospheres_pretrained=int(number.max() + 1),
    )
    starts = {"pre-trained": args.pretrained, "from scratch": None}
    for seed, n, start in itertools.product(range(args.seeds), args.atmospheres, starts):
        labelled = np.flatnonzero(number < n).tolist()
        few = replace(splits, train=Subset(splits.train, labelled))
        key = dict(start=start, atmospheres=n, samples=len(labelled), steps=args.steps, seed=seed)
        if any(key.items() <= run.items() for run in record["runs"]):
            continue
        record["runs"].append(key | train_and_score(config, few, seed, starts[start]))
        write_json(RESULT, record)
        print(record["runs"][-1], flush=True)


if __name__ == "__main__":
    main()
