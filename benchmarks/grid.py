"""Regridding: cost against the number of points, weights for a 3 km model, application against memory bandwidth.

    python benchmarks/grid.py [--largest 1e7] [--repeats 5]

Compared with scipy: cKDTree for the search, RegularGridInterpolator on the projected grid for the application. Medians of
interleaved repeats; the HRRR grid is built from its published numbers, no file is needed.
"""
from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from sslpdl_nb.core import LambertGrid
from sslpdl_nb.grid import Buckets, Regridder, nearest

HRRR = LambertGrid(1799, 1059, 3000.0, -2697520.1, -1587306.2, lon0=262.5, lat0=38.5, parallels=(38.499, 38.501), radius=6371229.0)
TARGET = LambertGrid(149, 253, 5000.0, -42 * 5000.0, -135 * 5000.0, lon0=-97.0, lat0=38.0)


def timed(f):
    begin = time.perf_counter(); f()
    return time.perf_counter() - begin


def interleaved(functions: dict, repeats: int) -> dict:
    "Median seconds of each function, run in turns."
    spent = {n: [] for n in functions}
    for _ in range(repeats):
        for n, f in functions.items(): spent[n].append(timed(f))
    return {n: float(np.median(v)) for n, v in spent.items()}


def search(largest: float, repeats: int):
    print(f"search: N points on the sphere, N targets\n{'N':>10} {'linked cells':>13} {'us/point':>9} {'cKDTree':>9} {'us/point':>9}")
    rng, sizes, ours = np.random.default_rng(0), [n for n in (10**4, 10**5, 10**6, 10**7) if n <= largest], []
    for n in sizes:
        p, q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, n, 3)))
        t = interleaved({"cells": lambda: nearest(Buckets(p), q), "tree": lambda: cKDTree(p).query(q)}, repeats if n < 10**6 else 1)
        ours.append(t["cells"])
        print(f"{n:10} {t['cells']:12.3f}s {t['cells'] / n * 1e6:9.2f} {t['tree']:8.3f}s {t['tree'] / n * 1e6:9.2f}", flush=True)
    slope = np.polyfit(np.log(sizes), np.log(ours), 1)[0]
    print(f"linked cells grow as N^{slope:.2f}")


def weights(repeats: int):
    lon, lat = HRRR.lonlat()
    tlon, tlat = TARGET.lonlat()
    tree_points = np.stack(HRRR.project(lon.ravel(), lat.ravel()), -1)
    t = interleaved({"on the map": lambda: Regridder(lon, lat, tlon, tlat, projection=HRRR), "by search": lambda: Regridder(lon, lat, tlon, tlat),
                     "nearest": lambda: Regridder(lon, lat, tlon, tlat, "nearest"), "conservative": lambda: Regridder(lon, lat, tlon, tlat, "conservative"),
                     "cKDTree alone": lambda: cKDTree(tree_points).query(np.stack(HRRR.project(tlon.ravel(), tlat.ravel()), -1), k=4)}, repeats)
    print(f"\nweights: HRRR {HRRR.shape} to {TARGET.shape}", *(f"{n:>14}: {s:.3f} s" for n, s in t.items()), sep="\n")


def bandwidth() -> float:
    "Bytes per second of a copy with two threads, read and write counted."
    a, b = np.ones((2, 200_000_000 // 8)), np.empty((2, 200_000_000 // 8))
    def copy():
        with ThreadPoolExecutor(2) as pool: list(pool.map(lambda k: np.copyto(b[k], a[k]), range(2)))
    copy()
    return 2 * a.nbytes / min(timed(copy) for _ in range(5))


def application(repeats: int):
    r, n = Regridder.between(HRRR, TARGET), 16 * 24
    fields = np.random.default_rng(0).random((n, *HRRR.shape), np.float32)
    x, y = HRRR.project(*TARGET.lonlat())
    r(fields[:2 * 16])
    scipy = lambda: [RegularGridInterpolator((HRRR.y, HRRR.x), f)((y, x)) for f in fields[:16]]
    t = interleaved({"ours": lambda: r(fields), "scipy": scipy}, repeats)
    lines = np.unique(r.weights.indices // 16).size * 64 * n + n * TARGET.nx * TARGET.ny * 4
    speed = bandwidth()
    print(f"\napplication: {n} fields of {HRRR.shape} to {TARGET.shape}\n  ours {t['ours']:.3f} s, RegularGridInterpolator {t['scipy'] * n / 16:.2f} s (from 16 fields)"
          f"\n  {lines / 1e6:.0f} MB of cache lines must move: {lines / t['ours'] / 1e9:.1f} GB/s, copy {speed / 1e9:.1f} GB/s: {lines / t['ours'] / speed:.0%} of the bandwidth")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--largest", type=float, default=1e7)
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    weights(args.repeats)
    application(args.repeats)
    print()
    search(args.largest, args.repeats)


if __name__ == "__main__":
    main()
