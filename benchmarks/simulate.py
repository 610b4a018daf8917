"""Speed of the simulated atmosphere, loss of forecast skill, calibration of a large archive.

    python benchmarks/simulate.py speed                   # a minute
    python benchmarks/simulate.py skill                   # some ten minutes
    python benchmarks/simulate.py archive --archive DIR   # of `sslpdl simulate --size course`

Prints tables and renews its part of benchmarks/results/simulate.json. Times are medians of
interleaved repeats on one thread.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sslpdl_nb.core import CLASS_EDGES, environment, write_json
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.simulate.archive import SIZES, Size, calibration, nearest, simulate_batch, spectrum
from sslpdl_nb.simulate.model import (
    CENTRE,
    NATURE,
    MoistQG,
    box_terrain,
    render_rain,
    resize,
    run,
    start,
    step,
)

RESULT = Path(__file__).parent / "results" / "simulate.json"


def speed(device, repeats=5):
    "Milliseconds of one step of one member, for several boxes and batches."
    cases = [(32, 4), (64, 4), (128, 1), (128, 4), (128, 16), (256, 4)]  # points, members
    states, times = {}, {}
    for n, members in cases:
        model = MoistQG(NATURE, n, 8 * max(1, n // 128), device=device)
        coarse = MoistQG(NATURE, 32, 6, device=device)
        z, _ = run(coarse, start(coarse, members, torch.Generator().manual_seed(0)), 24)
        states[n, members] = model, step(model, resize(z, n))[0]

    def wait():
        if "cuda" in device:
            torch.cuda.synchronize()

    for _ in range(repeats):
        for key, (model, z) in states.items():
            wait()
            t = time.perf_counter()
            for _ in range(4):
                z, _ = step(model, z)
            wait()
            times.setdefault(key, []).append((time.perf_counter() - t) / 4)
    return {
        f"n={n}, {m} members": dict(
            steps_per_second=1 / statistics.median(t),
            ms_per_member_step=1e3 * statistics.median(t) / m,
        )
        for (n, m), t in times.items()
    }


def skill(groups, leads=(6, 12, 24, 36, 48, 72), resamples=2000):
    "CSI of raw rain against the truth at each lead time; intervals by resampling atmospheres."
    course = SIZES["course"]
    size = Size(course.n, groups, 1, leads, nwp=course.nwp, qpe=course.qpe, atmospheres=4)

    def one(group):
        part = simulate_batch(size, 77, group)
        observed = part["truth"].numpy()
        forecast = nearest(part["forecast"]["rain"].numpy(), size.nwp, size.qpe)
        counts = []  # hits, false alarms, misses at each edge
        for edge in CLASS_EDGES:
            a, b = forecast >= edge, observed >= edge
            counts.append((a & b, a & ~b, ~a & b))
        counts = np.array(counts).sum((-1, -2))
        places = counts.reshape(2, 3, size.atmospheres, 4, len(leads))
        return places.sum(3)  # edge, count, atmosphere, lead

    with ThreadPoolExecutor(2) as pool:
        count = np.concatenate(list(pool.map(one, range(groups))), 2)

    def csi(c):
        return c[:, 0] / c.sum(1)

    rng, n = np.random.default_rng(0), count.shape[2]
    drawn = np.stack([csi(count[:, :, rng.integers(0, n, n)].sum(2)) for _ in range(resamples)])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    result = {"lead times [h]": list(leads), "forecasts": size.times, "atmospheres": n}
    for edge, v, a, b in zip(CLASS_EDGES, csi(count.sum(2)), low, high):
        result[f"CSI {edge:g} mm/h"] = dict(value=v.tolist(), low=a.tolist(), high=b.tolist())
    return result


def slope(members=12):
    "Slope of the spectrum of nature's rain on squares of 1280 km, at the spacing of `course`."
    g = torch.Generator().manual_seed(77)
    coarse = MoistQG(NATURE, 64, 6, box_terrain(64))
    nature = MoistQG(NATURE, 128, 8, box_terrain(128))
    spacing = SIZES["course"].qpe.dx
    square = LambertGrid(128, 128, spacing, CENTRE[0] - 64 * spacing, CENTRE[1] - 64 * spacing)
    z, _ = run(coarse, start(coarse, members, g), 24 * 25)
    z, P = run(nature, resize(z, 128), 24)
    return spectrum(render_rain(nature, z, P, square, g), spacing)[2]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("what", nargs="+", choices=("speed", "skill", "archive"))
    args.add_argument("--archive", help="folder of the archive to measure")
    args.add_argument("--seconds", type=float, help="wall time in which that archive was made")
    args.add_argument("--device", default="cpu")
    args.add_argument(
        "--groups", type=int, default=12, help="of four atmospheres each, for skill (default: 12)"
    )
    args = args.parse_args()
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    record["environment"] = environment()
    torch.set_num_threads(1)
    if "speed" in args.what:
        record["speed"] = speed(args.device)
        for name, row in record["speed"].items():
            per_member = row["ms_per_member_step"]
            print(f"{name:20} {row['steps_per_second']:8.1f} steps/s", end="   ")
            print(f"{per_member:7.2f} ms per member and step")
    if "skill" in args.what:
        record["skill"] = skill(args.groups)
        print(json.dumps(record["skill"], indent=1))
    if "archive" in args.what:
        record["calibration"] = calibration(args.archive) | {
            "slope of the rain spectrum, 24 to 300 km": slope()
        }
        print(json.dumps(record["calibration"], indent=1))
        if args.seconds:
            size = SIZES["course"]
            record["course"] = dict(
                seconds=args.seconds,
                samples=size.times * len(size.leads),
                samples_per_minute=60 * size.times * len(size.leads) / args.seconds,
            )
            print(record["course"])
    write_json(RESULT, record)


if __name__ == "__main__":
    main()
