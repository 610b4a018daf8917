"""Make data_samples/weights: the bundled weights, their scores and their cards.

    sslpdl simulate --size study --out runs/data/study --seed 0 --members 16
    sslpdl prepare --nwp runs/data/study/nwp.zarr --qpe runs/data/study/qpe.zarr \
        --source sslpdl --rain-regridding nearest --out runs/data/study/store.zarr
    OMP_NUM_THREADS=1 python tools/make_weights.py            # everything
    python tools/make_weights.py --cards                      # the cards alone

What runs/weights holds already is not made again; a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sslpdl_nb.baselines.neighbourhood import NeighbourhoodShare, Raw
from sslpdl_nb.core import CLASS_EDGES, atomic_path, ensure, get_config, write_json
from sslpdl_nb.decide import predict_probabilities
from sslpdl_nb.experiments.cells import LeanDataset, load_cell, nested_subset
from sslpdl_nb.experiments.claims import interval, score_interval
from sslpdl_nb.experiments.scores import judge
from sslpdl_nb.finetune import finetune
from sslpdl_nb.masking import masked_sums, mean_baseline, nearest_baseline, random_mask
from sslpdl_nb.pretrain import pretrain
from sslpdl_nb.store import Splits, atmosphere_of
from sslpdl_nb.weights import croissant, dataset_card, from_pretrained, model_card

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
CONFIG = get_config("small", pretrain_steps=6000, finetune_steps=1200)
DATA = "the test part of the archive study: {} simulated atmospheres, {} samples"
RAIN = (
    "Classes by probability thresholds tuned on the validation atmospheres, those of the forecast"
    " itself by its rain; the share is that of forecast rain around a pixel, with 384 atmospheres"
    " to learn from (nbs/61_baselines_neighbourhood.ipynb); the Brier skill is that over the"
    " climatology; ± is the 95 % interval over whole atmospheres (jackknife)."
)
HIDDEN = (
    "Mean square error of the hidden tokens (75 %, one random mask for each sample), in units of"
    " each variable's variance; ± is the 95 % interval over whole atmospheres (jackknife)."
)


def thinned(data: LeanDataset, number: int) -> LeanDataset:
    "Evenly spaced samples."
    rows = np.unique(np.linspace(0, len(data) - 1, number).round().astype(int))
    return LeanDataset(data.samples.isel(sample=rows), data.standardizer)


def study(archive: Path) -> Splits:
    "All atmospheres of the study archive."
    return load_cell(dict(archive="study", seed=SEED), {"study": archive})


# ------------------------------------------------------------------------------- trainings


def make_pretrained(splits: Splits, path: Path):
    "Masked reconstruction of all training atmospheres."
    few = replace(splits, valid=thinned(splits.valid, 512))
    pretrain(CONFIG, few, SEED, path, progress=False)


def make_rain(splits: Splits, path: Path, init: Path):
    "Rain classes from the pre-trained encoder; calibrated on validation atmospheres."
    few = replace(splits, valid=thinned(splits.valid, 768))
    finetune(CONFIG, few, SEED, path, init=init, progress=False)


# ---------------------------------------------------------------------------------- scores


def row(forecast: str, score: str, found: dict) -> dict:
    "One score with its interval."
    value = found.get("value", found.get("difference"))
    return dict(forecast=forecast, score=score, value=value, low=found["low"], high=found["high"])


def rain_rows(forecast: str, p_valid, p_test, splits: Splits, reading: str = "tuned") -> list:
    "The scores of rain probabilities."
    rain = [part.observed_rain().numpy() for part in (splits.valid, splits.test)]
    result = judge(p_valid, rain[0], p_test, rain[1], atmosphere_of(splits.test.samples))
    rows = []
    for edge in CLASS_EDGES:
        for score in ("CSI", "bias", "Brier skill"):
            found = score_interval(result, score=score, edge=edge, reading=reading)
            rows.append(row(forecast, f"{score} at {edge:g} mm/h", found))
    return rows


def score_rain(splits: Splits, path: Path) -> dict:
    "The scores of the rain network, beside those of two simpler forecasts."
    model, _ = from_pretrained(path)
    parts = splits.valid, splits.test
    rows = rain_rows(path.stem, *(predict_probabilities(model, p) for p in parts), splits)
    some = nested_subset(splits.train.samples, 384, SEED)
    few = LeanDataset(some, splits.standardizer)
    share = NeighbourhoodShare().fit(few, splits.valid, seed=SEED)
    rows += rain_rows("share of rain around a pixel", *map(share.predict, parts), splits)
    raw = map(Raw().predict, parts)
    rows += rain_rows("the forecast itself", *raw, splits, reading="argmax")
    return dict(data=about_test(splits), how=RAIN, rows=rows)


@torch.no_grad()
def score_reconstruction(splits: Splits, path: Path) -> dict:
    "The masked loss of the pre-trained network, beside those of two simple guesses."
    model, meta = from_pretrained(path)
    cubes = meta["config"].token_variables, meta["config"].patch_size
    generator = torch.Generator().manual_seed(SEED)
    sums = {path.stem: [], "the nearest visible pixel": [], "the mean": []}
    for k in range(len(splits.test)):
        x = splits.test[k]["x"][None]
        mask = random_mask(1, model.embed.n, meta["config"].pretrain_mask_ratio, generator)
        guesses = model(x, mask), nearest_baseline(x, mask, *cubes), mean_baseline(x, mask, *cubes)
        for parts, guess in zip(sums.values(), guesses):
            parts.append([float(s) for s in masked_sums(guess, x, mask, *cubes)])
    group = atmosphere_of(splits.test.samples)
    rows = []
    for name, parts in sums.items():
        by_group = [np.bincount(group, weights=column) for column in np.array(parts).T]
        pairs = np.stack(by_group, -1)[:, None]  # (atmospheres, 1, 2): sums, tokens
        rows.append(row(name, "masked loss", interval(pairs, None, by_group[1])))
    return dict(data=about_test(splits), how=HIDDEN, rows=rows)


def about_test(splits: Splits) -> str:
    "What the scores were measured on."
    number = len(np.unique(atmosphere_of(splits.test.samples)))
    return DATA.format(number, len(splits.test))


# ----------------------------------------------------------------------------------- cards


def write_text(path: Path, text: str):
    "Write a text, whole or not at all."
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_cards(out: Path):
    "The card of each file of weights, and two descriptions of the sample."
    for path in sorted(out.glob("*.safetensors")):
        write_text(path.with_suffix(".md"), model_card(path))
    tiny = ROOT / "data_samples" / "tiny"
    write_text(out / "tiny.md", dataset_card(tiny))
    write_json(out / "tiny.croissant.json", croissant(tiny))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--archive", type=Path, default=ROOT / "runs/data/study")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/weights")
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples/weights")
    parser.add_argument("--cards", action="store_true", help="write the cards alone")
    given = parser.parse_args()
    if not given.cards:
        splits = study(given.archive)
        pretrained = given.work / "study-pretrained.safetensors"
        ensure(pretrained, lambda path: make_pretrained(splits, path))
        rain = given.work / "study-rain.safetensors"
        ensure(rain, lambda path: make_rain(splits, path, pretrained))
        for path, score in ((pretrained, score_reconstruction), (rain, score_rain)):
            with atomic_path(given.out / path.name) as tmp:
                tmp.write_bytes(path.read_bytes())
            scores = given.out / f"{path.stem}.json"
            ensure(scores, lambda target: write_json(target, score(splits, path)))
    write_cards(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
