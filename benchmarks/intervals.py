"""How often do intervals of a CSI difference hold the truth, with few atmospheres?

    python benchmarks/intervals.py [--run runs/sample] [--repetitions 2000] [--resamples 2000]

Test sets are simulated whose true difference is known, and five kinds of 95 % interval are computed
from each. The counts of one atmosphere (observed events, the recall and the false alarms of two
forecasts) are drawn together: logarithms of the areas and log-odds of the recalls are normal, with
the means and covariances of the twelve validation and test atmospheres of the bundled sample, so
atmospheres differ as much as there, both forecasts find the same ones difficult, and heavy rain has
a heavy tail: some atmospheres have none, some have nearly all. The pixels of an atmosphere vary
together; only their totals enter, as in the intervals themselves. The truth is the difference in a
population of two million atmospheres. This is the population `fitted`. In the population
`resampled` nothing is assumed: test sets are drawn with replacement from the twelve atmospheres,
and the truth is the difference of all twelve.

Without `--run` (a folder with the checkpoints of 18_pretrain and 21_finetune) the counts stored in
benchmarks/results/coverage.json are used again. Coverage is that of the intervals that exist; one
that is wider than all possible differences, -1 to 1, counts as missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from sslpdl_nb.core import environment, get_config, write_json
from sslpdl_nb.decide import decide, predict_probabilities
from sslpdl_nb.finetune import load_model
from sslpdl_nb.store import atmosphere_of, load_splits
from sslpdl_nb.verify import best_probability_threshold, count_events, group_counts

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "coverage.json"
OURS, SCRATCH = "ours, pre-trained", "ours, from scratch"
TUNED, RAW = "raw, tuned threshold", "raw forecast"
PAIRS = ((OURS, RAW), (OURS, TUNED), (OURS, SCRATCH))
FILES = {OURS: "finetuned", SCRATCH: "scratch"}
POPULATIONS = ("fitted", "resampled")
ATMOSPHERES = (4, 6, 8, 16, 32)
LEVEL = 0.95
PIXELS = 12 * 64 * 32  # of an atmosphere
POPULATION = 2_000_000
CHUNK = 100  # test sets at a time


# ------------------------------------------------------------------ counts of real atmospheres


def forecast_classes(run: Path, data: Path) -> dict:
    "Of each split: classes of each forecast, observed rain, where known, atmosphere."
    config = get_config("small")
    splits, found = load_splits(data, config), {}
    rates = np.geomspace(0.01, 40, 200)  # mm/h
    for split in ("valid", "test"):
        samples = splits.samples[split]
        rain, raw = samples.rain.values, samples.forecast.sel(variable="rain").values
        known = np.isfinite(rain) & np.isfinite(raw)
        if split == "valid":
            tuned = [
                best_probability_threshold(raw, rain >= edge, rates, known) for edge in config.edges
            ]
        classes = {
            RAW: (raw >= config.edges[0]).astype(int) + (raw >= config.edges[1]),
            TUNED: (raw >= tuned[0]).astype(int) + (raw >= max(tuned)),
        }
        for name, file in FILES.items():
            model, meta = load_model(run / f"{file}.safetensors")
            p = predict_probabilities(model, getattr(splits, split))
            classes[name] = decide(p, meta["probability_thresholds"])
        found[split] = (classes, rain, known, atmosphere_of(samples))
    return found


def atmosphere_counts(run: Path, data: Path) -> dict:
    "edge -> forecast -> hits, misses and false alarms of each atmosphere."
    edges, counts = get_config("small").edges, {}
    for classes, rain, known, atmosphere in forecast_classes(run, data).values():
        for i, edge in enumerate(edges):
            rows = counts.setdefault(f"{edge:g}", {})
            for name, c in classes.items():
                events = count_events(c > i, rain >= edge, known, axis=(1, 2))
                c = group_counts(events, atmosphere)[1]
                rows.setdefault(name, []).extend(
                    np.stack([c.hits, c.misses, c.false_alarms], 1).tolist()
                )
    return counts


# ------------------------------------------------------------------ drawing atmospheres


def fit(a, b) -> tuple:
    "Mean and covariance of the logarithms of two forecasts' counts, (atmospheres, 3) each."
    a, b = np.asarray(a) + 0.5, np.asarray(b) + 0.5
    columns = [np.log(a[:, 0] + a[:, 1] - 0.5)]
    columns += [np.log(c[:, 0] / c[:, 1]) for c in (a, b)]
    columns += [np.log(c[:, 2]) for c in (a, b)]
    x = np.stack(columns, 1)
    return x.mean(0), np.cov(x.T)


def fitted(model, rng, shape) -> np.ndarray:
    "Counts, shape + (5,): hits and misses + false alarms of each forecast, observed events."
    x = rng.multivariate_normal(*model, size=shape, method="eigh")
    areas = np.round(np.exp(np.minimum(x[..., [0, 3, 4]], np.log(PIXELS / 2))) - 0.5)
    areas = np.maximum(areas, 0)
    counts = []
    for i in (1, 2):
        hits = np.round(areas[..., 0] / (1 + np.exp(-x[..., i])))
        counts += [hits, areas[..., 0] - hits + areas[..., i]]
    return np.stack([*counts, areas[..., 0]], -1)


def difference(c) -> np.ndarray:
    "CSI of the first forecast minus that of the second, from counts (..., 5)."
    with np.errstate(invalid="ignore", divide="ignore"):
        return c[..., 0] / (c[..., 0] + c[..., 1]) - c[..., 2] / (c[..., 2] + c[..., 3])


def counted(a, b) -> np.ndarray:
    "The same columns from the counts of two forecasts, (atmospheres, 3) each."
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    wrong = [c[:, 1] + c[:, 2] for c in (a, b)]
    return np.stack([a[:, 0], wrong[0], b[:, 0], wrong[1], a[:, 0] + a[:, 1]], 1)


def resampled(atmospheres, rng, shape) -> np.ndarray:
    "Atmospheres drawn with replacement."
    return atmospheres[rng.integers(0, len(atmospheres), shape)]


def population(kind: str, a, b, rng) -> tuple:
    "How to draw test sets of a population, and the difference in all of it."
    if kind == "resampled":
        atmospheres = counted(a, b)
        return partial(resampled, atmospheres), float(difference(atmospheres.sum(0)))
    draw = partial(fitted, fit(a, b))
    parts = [draw(rng, POPULATION // 10).sum(0) for _ in range(10)]
    return draw, float(difference(np.sum(parts, 0)))


# ------------------------------------------------------------------ intervals


def jackknife(c) -> tuple:
    "Difference, differences without each atmosphere, and standard error; c (sets, k, 5)."
    k, total = c.shape[1], c.sum(1)
    d, without = difference(total), difference(total[:, None] - c)
    error = np.sqrt((k - 1) / k * np.sum((without - d[:, None]) ** 2, 1))
    return d, without, error


def effective_number(c) -> np.ndarray:
    "Kish's effective number of atmospheres, from the observed events."
    events = c[..., 4]
    with np.errstate(invalid="ignore"):
        return events.sum(1) ** 2 / (events**2).sum(1)


def t_interval(d, error, degrees) -> tuple:
    "d -+ t error; NaN for fewer degrees of freedom than one."
    t = student.ppf((1 + LEVEL) / 2, np.where(degrees >= 1, degrees, np.nan))
    return d - t * error, d + t * error


def bca(d, without, drawn) -> tuple:
    "Bias-corrected and accelerated (Efron 1987; Efron and Tibshirani 1993, chapter 14)."
    n = np.maximum(np.isfinite(drawn).sum(1), 1)
    below = ((drawn < d[:, None]).sum(1) + (drawn == d[:, None]).sum(1) / 2) / n
    shift = norm.ppf(np.clip(below, 0.5 / n, 1 - 0.5 / n))
    u = without.mean(1, keepdims=True) - without
    with np.errstate(invalid="ignore", divide="ignore"):
        acceleration = np.sum(u**3, 1) / (6 * np.sum(u**2, 1) ** 1.5)
    ends = []
    for z in norm.ppf(((1 - LEVEL) / 2, (1 + LEVEL) / 2)):
        p = norm.cdf(shift + (shift + z) / (1 - acceleration * (shift + z)))
        ends.append(quantiles(drawn, p))
    return tuple(ends)


def quantiles(drawn, p) -> np.ndarray:
    "The quantile p of what is known of each row, by interpolation; p (rows,)."
    ordered, last = np.sort(drawn, 1), np.isfinite(drawn).sum(1) - 1  # NaN comes last
    at = np.nan_to_num(p) * np.maximum(last, 0)
    low = at.astype(int)
    rows = np.arange(len(drawn))
    a, b = ordered[rows, low], ordered[rows, np.minimum(low + 1, np.maximum(last, 0))]
    return np.where(np.isfinite(p), a + (at - low) * (b - a), np.nan)


def studentised(c, d, error, weights, totals) -> tuple:
    "Bootstrap-t (Efron and Tibshirani 1993, chapter 12), with jackknife standard errors."
    k, ends = c.shape[1], []
    for i, w in enumerate(weights):
        drawn = difference(totals[i])
        without = np.where(w > 0, difference(totals[i][:, None] - c[i]), 0)
        own = np.sqrt((k - 1) / k * np.sum(w * (without - drawn[:, None]) ** 2, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(own > 0, (drawn - d[i]) / own, np.sign(drawn - d[i]) * 1e9)
        ratio = ratio[np.isfinite(ratio)]
        tails = (1 + LEVEL) / 2, (1 - LEVEL) / 2
        ends.append(np.quantile(ratio, tails) if ratio.size else (np.nan, np.nan))
    ends = np.array(ends)
    return d - ends[:, 0] * error, d - ends[:, 1] * error


def all_intervals(rng, c, resamples: int) -> dict:
    "Every kind of interval: name -> (low, high), from counts c (sets, k, 5)."
    sets, k, _ = c.shape
    d, without, error = jackknife(c)
    weights = rng.multinomial(k, np.full(k, 1 / k), size=(sets, resamples)).astype(float)
    totals = weights @ c
    drawn = difference(totals)
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    percentile = tuple(quantiles(drawn, np.full(sets, p)) for p in tails)
    return {
        "percentile": percentile,
        "BCa": bca(d, without, drawn),
        "studentised": studentised(c, d, error, weights, totals),
        "jackknife t, k - 1": t_interval(d, error, np.full(sets, k - 1)),
        "jackknife t, effective k - 1": t_interval(d, error, effective_number(c) - 1),
    }


# ------------------------------------------------------------------ the measurement


def measure(rng, draw, truth, shape, resamples) -> dict:
    "Coverage, median width and missing share of each kind of interval."
    (repetitions, k), parts = shape, []
    for _ in range(repetitions // CHUNK):
        parts.append(all_intervals(rng, draw(rng, (CHUNK, k)), resamples))
    result = {}
    for name in parts[0]:
        low, high = (np.concatenate([part[name][i] for part in parts]) for i in (0, 1))
        there = high - low <= 2
        low, high = low[there], high[there]
        covered = float(np.mean((low <= truth) & (truth <= high)))
        result[name] = dict(
            coverage=round(covered, 4),
            error=round(float(np.sqrt(covered * (1 - covered) / low.size)), 4),
            width=round(float(np.median(high - low)), 4),
            missing=round(float(1 - there.mean()), 4),
        )
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder with checkpoints; else stored counts")
    parser.add_argument("--repetitions", type=int, default=2000, help="simulated test sets")
    parser.add_argument("--resamples", type=int, default=2000, help="of each bootstrap")
    args = parser.parse_args()
    if args.run:
        counts = atmosphere_counts(args.run, ROOT / "data_samples" / "tiny")
    else:
        counts = json.loads(RESULT.read_text())["counts"]
    record = dict(
        environment=environment(),
        level=LEVEL,
        repetitions=args.repetitions,
        resamples=args.resamples,
        counts=counts,
        cells=[],
    )
    for kind, (edge, rows), pair in itertools.product(POPULATIONS, counts.items(), PAIRS):
        rng = np.random.default_rng(0)
        draw, truth = population(kind, *(rows[name] for name in pair), rng)
        for k in ATMOSPHERES:
            methods = measure(rng, draw, truth, (args.repetitions, k), args.resamples)
            key = dict(population=kind, edge=float(edge), pair=" - ".join(pair), atmospheres=k)
            record["cells"].append(key | dict(truth=truth, methods=methods))
            print(*key.values(), f"true difference {truth:+.3f}", sep=", ")
            for name, m in methods.items():
                numbers = f"{m['coverage']:.3f}, width {m['width']:.3f}"
                print(f"     {name:30} {numbers}, missing {m['missing']:.3f}", flush=True)
    write_json(RESULT, record)


if __name__ == "__main__":
    main()
