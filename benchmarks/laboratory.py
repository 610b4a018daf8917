"""How fast the simulated atmosphere runs, how its forecasts lose skill, and whether a large archive is calibrated.

    python benchmarks/laboratory.py                      # speed and skill; a few minutes
    python benchmarks/laboratory.py --archive DIR        # also measure an archive, e.g. one made by `sslpdl simulate --size course`

Prints tables and writes benchmarks/results/laboratory.json. Times are medians of interleaved repeats on one thread.
"""
import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sslpdl_nb.archive import SIZES, calibration, group_seed, nearest
from sslpdl_nb.core import environment, write_json
from sslpdl_nb.laboratory import (FORECAST, NATURE, SMOOTHING, MoistQG, analysis, box_terrain, four_places, render_forecast, render_rain, resize, run,
                                  start, step, twin)

RESULT = Path(__file__).parent / "results" / "laboratory.json"


def speed(device, repeats=5):
    "Milliseconds of one step of one member, for several boxes and batches."
    cases, times = [(32, 4), (64, 4), (128, 1), (128, 4), (128, 16), (256, 4)], {}
    states = {}
    for n, members in cases:
        model = MoistQG(NATURE, n, 8 * max(1, n // 128), device=device)
        coarse = MoistQG(NATURE, 32, 6, device=device)
        z, _ = run(coarse, start(coarse, members, torch.Generator().manual_seed(0)), 24)
        states[n, members] = model, step(model, resize(z, n))[0]
    wait = torch.cuda.synchronize if "cuda" in device else lambda: None
    for _ in range(repeats):
        for key, (model, z) in states.items():
            wait(); t = time.perf_counter()
            for _ in range(4): z, _ = step(model, z)
            wait(); times.setdefault(key, []).append((time.perf_counter() - t) / 4)
    return {f"n={n}, {m} members": dict(steps_per_second=1 / statistics.median(t), ms_per_member_step=1e3 * statistics.median(t) / m)
            for (n, m), t in times.items()}


def skill(leads=(6, 12, 24, 36, 48, 72), groups=6, starts=4):
    "CSI of raw rain against the truth at each lead time, pooled over all forecasts."
    size = SIZES["tiny"]

    def one(group):
        g = torch.Generator().manual_seed(group_seed(77, group))
        coarse, nature = MoistQG(NATURE, 64, 6, box_terrain(64)), MoistQG(NATURE, 128, 8, box_terrain(128))
        worse = MoistQG(FORECAST, 128, 8, box_terrain(128, SMOOTHING))
        pool = [run(coarse, start(coarse, 1, g), 24 * 16)[0]]
        for _ in range(2): pool.append(run(coarse, pool[-1], 72)[0])
        z, pool, count = run(nature, resize(run(coarse, pool[-1], 72)[0], 128), 24)[0], four_places(resize(torch.cat(pool), 128)), np.zeros((len(leads), 2, 3))
        for _ in range(starts):
            for j, (lead, (z, P), (zf, Pf)) in enumerate(twin(nature, worse, z, analysis(z, pool, g), leads)):
                o = render_rain(nature, *four_places(z, P), size.qpe, g).numpy()
                f = nearest(render_forecast(worse, *four_places(zf, Pf), size.nwp, lead % 24, g)["rain"].numpy(), size.nwp, size.qpe)
                for i, edge in enumerate((0.1, 10)):
                    a, b = f >= edge, o >= edge
                    count[j, i] += (a & b).sum(), (a & ~b).sum(), (~a & b).sum()
        return count

    with ThreadPoolExecutor(2) as pool: count = sum(pool.map(one, range(groups)))
    csi = count[..., 0] / count.sum(-1)
    return {"lead times [h]": list(leads), "forecasts": groups * 4 * starts, "CSI 0.1 mm/h": csi[:, 0].tolist(), "CSI 10 mm/h": csi[:, 1].tolist()}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--archive", help="folder of an archive to measure")
    args.add_argument("--seconds", type=float, help="wall time in which that archive was made")
    args.add_argument("--device", default="cpu")
    args.add_argument("--skip-skill", action="store_true")
    args = args.parse_args()
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    torch.set_num_threads(1)
    record |= dict(environment=environment(), speed=speed(args.device))
    for name, row in record["speed"].items(): print(f"{name:20} {row['steps_per_second']:8.1f} steps/s   {row['ms_per_member_step']:7.2f} ms per member and step")
    if not args.skip_skill:
        record["skill"] = skill()
        print(json.dumps(record["skill"], indent=1))
    if args.archive:
        record["calibration"] = calibration(args.archive)
        print(json.dumps(record["calibration"], indent=1))
        if args.seconds:
            size = SIZES["course"]
            record["course"] = dict(seconds=args.seconds, samples=size.times * len(size.leads), samples_per_minute=60 * size.times * len(size.leads) / args.seconds)
            print(record["course"])
    write_json(RESULT, record)


if __name__ == "__main__":
    main()
