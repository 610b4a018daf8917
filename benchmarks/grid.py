"""Regridding: the search for neighbours, weights for a 3 km model, application against memory.

    python benchmarks/grid.py [weights] [application] [search] [--largest 1e7] [--repeats 9] [--dry]

Prints tables and renews its parts of benchmarks/results/grid.json. `search` compares the two
searches of grids.neighbours, the k-d tree (in use) and linked cells, in turns. `weights` and
`application` use a grid of 1799 x 1059 points built from the published numbers of the HRRR model;
no file is needed. Times are medians of interleaved repeats.

Application, in bytes: for each field 4 for every source cell that has a weight (each counted once)
and 4 for every target. That is what must move, and no more; weights, results in between and the
rest of the touched cache lines are not counted. Beside it, in the same turns: a copy with two
threads of arrays far larger than any cache (read and written bytes counted, scaled to the same
number of bytes), and the *floor*: reading one number of each cache line that holds such a cell and
filling a new array with as many numbers as there are targets, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numba import njit
from scipy.interpolate import RegularGridInterpolator

from sslpdl_nb.core import environment, write_json
from sslpdl_nb.grids.neighbours import SEARCHES, point_search
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.types import LambertGrid

RESULT = Path(__file__).parent / "results" / "grid.json"
HRRR = LambertGrid(
    nx=1799,
    ny=1059,
    dx=3000.0,
    x0=-2697520.1,
    y0=-1587306.2,
    lon0=262.5,
    lat0=38.5,
    parallels=(38.499, 38.501),
    radius=6371229.0,
)
TARGET = LambertGrid(
    nx=149, ny=253, dx=5000.0, x0=-42 * 5000.0, y0=-135 * 5000.0, lon0=-97.0, lat0=38.0
)
FIELDS_OF_A_DAY = 16 * 24  # sixteen variables every hour


def timed(f) -> float:
    "Seconds of one call."
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def interleaved(functions: dict, repeats: int) -> dict:
    "Median seconds of each function, run in turns."
    spent = {n: [] for n in functions}
    for _ in range(repeats):
        for n, f in functions.items():
            spent[n].append(timed(f))
    return {n: float(np.median(v)) for n, v in spent.items()}


# ------------------------------------------------------------------ search


def find(search: str, points, targets):
    "Sort the points and look up the targets."
    return point_search(points, search).nearest(targets)


def search(largest: float, repeats: int) -> dict:
    "Both searches for 10^4 points and targets, 10^5 ... up to the largest."
    print("search: N points on the sphere, N targets")
    print(f"{'N':>10} {'k-d tree':>10} {'us/point':>9} {'cells':>10} {'us/point':>9} {'ratio':>6}")
    rng, found = np.random.default_rng(0), {}
    sizes = [n for n in (10**4, 10**5, 10**6, 10**7) if n <= largest]
    for n in sizes:
        p, q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, n, 3)))
        cases = {name: partial(find, name, p, q) for name in SEARCHES}
        if n <= 10**5:
            different = np.count_nonzero(cases["kdtree"]() != cases["cells"]())
            assert different == 0, f"the searches differ for {different} targets"
        t = found[n] = interleaved(cases, repeats if n < 10**6 else min(repeats, 3))
        columns = [f"{t[name]:9.3f}s {t[name] / n * 1e6:9.2f}" for name in SEARCHES]
        print(f"{n:10}", *columns, f"{t['cells'] / t['kdtree']:6.1f}", flush=True)
    exponents = {}
    if len(sizes) > 1:
        for name in SEARCHES:
            seconds = [t[name] for t in found.values()]
            exponents[name] = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
            print(f"{name} grows as N^{exponents[name]:.2f}")
    return {"seconds": found, "exponent of N": exponents}


# ------------------------------------------------------------------ weights


def weights(repeats: int) -> dict:
    "Making the weights with each method."
    grids = (*HRRR.lonlat(), *TARGET.lonlat())
    cases = {
        "on the map": partial(Regridder, *grids, projection=HRRR),
        "by k-d tree": partial(Regridder, *grids),
        "by linked cells": partial(Regridder, *grids, search="cells"),
        "nearest": partial(Regridder, *grids, "nearest"),
        "nearest, cells": partial(Regridder, *grids, "nearest", search="cells"),
        "conservative": partial(Regridder, *grids, "conservative"),
    }
    t = interleaved(cases, repeats)
    print(f"weights: HRRR {HRRR.shape} to {TARGET.shape}")
    for name, seconds in t.items():
        print(f"{name:>16}: {seconds:.3f} s")
    return {"seconds": t}


# ------------------------------------------------------------------ application


def in_two(f, n: int):
    "f(part) with the two halves of range(n), in two threads."
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(f, (slice(0, n // 2), slice(n // 2, n))))


@njit(nogil=True)
def touch(fields, points):
    "One number from each point in each field."
    total = np.float32(0)
    for k in range(fields.shape[0]):
        for p in points:
            total += fields[k, p]
    return total


def application_cases(r: Regridder, fields: np.ndarray) -> dict:
    "What is timed: the regridder, the floor below it, and scipy."
    n, m = len(fields), TARGET.nx * TARGET.ny
    flat = fields.reshape(n, -1)
    lines = np.unique(r.weights.indices // 16).astype(np.uint64) * np.uint64(16)
    x, y = HRRR.project(*TARGET.lonlat())
    with_gaps = fields[:32].copy()
    with_gaps[:, ::5, ::7] = np.nan

    def floor():
        out = np.empty((n, m), np.float32)

        def half(part):
            touch(flat[part], lines)
            out[part] = 1

        in_two(half, n)

    def by_scipy():
        for f in fields[:16]:
            RegularGridInterpolator((HRRR.y, HRRR.x), f)((y, x))

    return {
        "ours": partial(r, fields),
        "floor": floor,
        "whole, 32 fields": partial(r, fields[:32]),
        "with gaps, 32 fields": partial(r, with_gaps),
        "one field": partial(r, fields[0]),
        "scipy": by_scipy,
    }


def application(repeats: int) -> dict:
    "Applying the weights to a day of fields."
    r, n = Regridder.between(HRRR, TARGET), FIELDS_OF_A_DAY
    fields = np.random.default_rng(0).random((n, *HRRR.shape), np.float32)
    cases = application_cases(r, fields)
    moved = 4 * n * (np.unique(r.weights.indices).size + TARGET.nx * TARGET.ny)
    a, b = np.ones((8, 50_000_000), np.float32), np.zeros((8, 50_000_000), np.float32)

    def copy_half(part):
        np.copyto(b[part], a[part])

    cases["copy"] = partial(in_two, copy_half, 8)
    first = timed(cases["one field"])
    for name in ("ours", "floor"):
        cases[name]()
    t = interleaved(cases, repeats)
    t["scipy"] *= n / 16
    copy = 2 * a.nbytes / t["copy"]
    fraction = {name: moved / t[name] / copy for name in ("ours", "floor")}
    print(
        f"application: {n} fields of {HRRR.shape} to {TARGET.shape}, {moved / 1e6:.0f} MB must move"
    )
    print(f"copy with two threads: {copy / 1e9:.1f} GB/s")
    for name, seconds in t.items():
        line = f"{name:>22}: {seconds * 1e3:8.1f} ms"
        if name in fraction:
            line += f" = {moved / seconds / 1e9:5.1f} GB/s = {fraction[name]:.0%} of the copy"
        print(line)
    print(f"{'first call':>22}: {first:8.2f} s")
    return {
        "seconds": t,
        "first call, seconds": first,
        "bytes": moved,
        "copy, GB/s": copy / 1e9,
        "fraction of the copy": fraction,
        "ours / floor": t["ours"] / t["floor"],
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = "weights | application | search"
    p.add_argument("what", nargs="*", metavar=choices, help="default: all three")
    p.add_argument("--largest", type=float, default=1e7, help="number of points")
    p.add_argument("--repeats", type=int, default=9)
    p.add_argument("--dry", action="store_true", help="print only, do not renew the results")
    args = p.parse_args()
    parts = {
        "weights": partial(weights, args.repeats),
        "application": partial(application, args.repeats),
        "search": partial(search, args.largest, args.repeats),
    }
    unknown = set(args.what) - set(parts)
    if unknown:
        p.error(f"one of {', '.join(parts)} expected, found {', '.join(unknown)}")
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    record["environment"] = environment()
    for name in args.what or parts:
        record[name] = parts[name]()
        if not args.dry:
            write_json(RESULT, record)
        print()


if __name__ == "__main__":
    main()
