"""Regridding: cost against the number of points, weights for a 3 km model, application against memory bandwidth.

    python benchmarks/grid.py [weights] [application] [search] [--largest 1e7] [--repeats 9]

Prints tables and renews its parts of benchmarks/results/grid.json. Compared with scipy: cKDTree for the search,
RegularGridInterpolator on the projected grid for the application. Medians of interleaved repeats; the HRRR grid is built from
its published numbers, no file is needed.

Application, in bytes: per field 4 for every source cell that has a weight (each counted once) and 4 for every target. That is
what must move, and no more; weights, results in between and the rest of the touched cache lines are not counted. Beside it, in
the same turns: a copy with two threads of arrays far larger than any cache (read and written bytes counted, scaled to the
same number of bytes), and the *floor*: reading one number of each cache line that holds such a cell and filling a new array with
as many numbers as there are targets, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import njit
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.core import environment, write_json
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.neighbours import Buckets, nearest

RESULT = Path(__file__).parent / "results" / "grid.json"
HRRR = LambertGrid(
    1799,
    1059,
    3000.0,
    -2697520.1,
    -1587306.2,
    lon0=262.5,
    lat0=38.5,
    parallels=(38.499, 38.501),
    radius=6371229.0,
)
TARGET = LambertGrid(149, 253, 5000.0, -42 * 5000.0, -135 * 5000.0, lon0=-97.0, lat0=38.0)


def timed(f):
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


def search(largest: float, repeats: int) -> dict:
    print(
        f"search: N points on the sphere, N targets\n{'N':>10} {'linked cells':>13} {'us/point':>9} {'cKDTree':>9} {'us/point':>9}"
    )
    rng, sizes, found = (
        np.random.default_rng(0),
        [n for n in (10**4, 10**5, 10**6, 10**7) if n <= largest],
        {},
    )
    for n in sizes:
        p, q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, n, 3)))
        t = interleaved(
            {"cells": lambda: nearest(Buckets(p), q), "tree": lambda: cKDTree(p).query(q)},
            repeats if n < 10**6 else 1,
        )
        found[n] = t
        print(
            f"{n:10} {t['cells']:12.3f}s {t['cells'] / n * 1e6:9.2f} {t['tree']:8.3f}s {t['tree'] / n * 1e6:9.2f}",
            flush=True,
        )
    slope = float(np.polyfit(np.log(sizes), np.log([t["cells"] for t in found.values()]), 1)[0])
    print(f"linked cells grow as N^{slope:.2f}")
    return {"seconds": found, "exponent of N": slope}


def weights(repeats: int) -> dict:
    lon, lat = HRRR.lonlat()
    tlon, tlat = TARGET.lonlat()
    tree_points = np.stack(HRRR.project(lon.ravel(), lat.ravel()), -1)
    t = interleaved(
        {
            "on the map": lambda: Regridder(lon, lat, tlon, tlat, projection=HRRR),
            "by search": lambda: Regridder(lon, lat, tlon, tlat),
            "nearest": lambda: Regridder(lon, lat, tlon, tlat, "nearest"),
            "conservative": lambda: Regridder(lon, lat, tlon, tlat, "conservative"),
            "cKDTree alone": lambda: cKDTree(tree_points).query(
                np.stack(HRRR.project(tlon.ravel(), tlat.ravel()), -1), k=4
            ),
        },
        repeats,
    )
    print(
        f"weights: HRRR {HRRR.shape} to {TARGET.shape}",
        *(f"{n:>14}: {s:.3f} s" for n, s in t.items()),
        sep="\n",
    )
    return {"seconds": t}


def in_two(f, n: int):
    "f(part) with the two halves of range(n), in two threads."
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(f, (slice(0, n // 2), slice(n // 2, n))))


@njit(nogil=True)
def touch(fields, places):
    "One number from each place in each field."
    total = np.float32(0)
    for k in range(fields.shape[0]):
        for p in places:
            total += fields[k, p]
    return total


def application(repeats: int) -> dict:
    r, n = Regridder.between(HRRR, TARGET), 16 * 24
    fields = np.random.default_rng(0).random((n, *HRRR.shape), np.float32)
    flat, m = fields.reshape(n, -1), TARGET.nx * TARGET.ny
    lines = np.unique(r.weights.indices // 16).astype(np.uint64) * np.uint64(16)
    moved = 4 * n * (np.unique(r.weights.indices).size + m)
    x, y = HRRR.project(*TARGET.lonlat())
    a, b = np.ones((8, 50_000_000), np.float32), np.zeros((8, 50_000_000), np.float32)

    def floor():
        out = np.empty((n, m), np.float32)

        def half(part):
            touch(flat[part], lines)
            out[part] = 1

        in_two(half, n)

    holed = fields[:32].copy()
    holed[:, ::5, ::7] = np.nan
    cases = {
        "copy": lambda: in_two(lambda part: np.copyto(b[part], a[part]), 8),
        "ours": lambda: r(fields),
        "floor": floor,
        "whole, 32 fields": lambda: r(fields[:32]),
        "with gaps, 32 fields": lambda: r(holed),
        "one field": lambda: r(fields[0]),
        "scipy": lambda: [
            RegularGridInterpolator((HRRR.y, HRRR.x), f)((y, x)) for f in fields[:16]
        ],
    }
    first = timed(cases["one field"])
    for name in ("ours", "floor"):
        cases[name]()
    t = interleaved(cases, repeats)
    t["scipy"] *= n / 16
    copy = 2 * a.nbytes / t["copy"]
    share = {name: moved / t[name] / copy for name in ("ours", "floor")}
    print(
        f"application: {n} fields of {HRRR.shape} to {TARGET.shape}, {moved / 1e6:.0f} MB must move; copy with two threads {copy / 1e9:.1f} GB/s",
        *(
            f"{name:>22}: {t[name] * 1e3:8.1f} ms = {moved / t[name] / 1e9:5.1f} GB/s = {share[name]:.0%} of the copy"
            for name in share
        ),
        *(f"{name:>22}: {t[name] * 1e3:8.1f} ms" for name in t if name not in ("copy", *share)),
        f"{'first call':>22}: {first:8.2f} s",
        sep="\n",
    )
    return {
        "seconds": t,
        "first call, seconds": first,
        "bytes": moved,
        "copy, GB/s": copy / 1e9,
        "share of the copy": share,
        "ours / floor": t["ours"] / t["floor"],
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "what", nargs="*", metavar="weights | application | search", help="default: all three"
    )
    p.add_argument("--largest", type=float, default=1e7)
    p.add_argument("--repeats", type=int, default=9)
    args = p.parse_args()
    parts = {
        "weights": lambda: weights(args.repeats),
        "application": lambda: application(args.repeats),
        "search": lambda: search(args.largest, args.repeats),
    }
    if unknown := set(args.what) - set(parts):
        p.error(f"one of {', '.join(parts)} expected, found {', '.join(unknown)}")
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    record["environment"] = environment()
    for name in args.what or parts:
        record[name] = parts[name]()
        write_json(RESULT, record)
        print()


if __name__ == "__main__":
    main()
