"""Peak memory and speed of `sslpdl prepare` against the number of files.

    python benchmarks/prepare.py [--files 4 16 64] [--workers 2]

Makes simulated 3 km forecasts (480 x 320 points, 16 variables, one start and lead time a file, 10 MB) and hourly rain on
the 5 km grid, prepares each archive in a fresh process, and prints the largest resident memory of that process.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from sslpdl_nb.core import NWP_GRID, QPE_GRID, VARIABLES
from sslpdl_nb.maps import crs_attributes, place

USUAL = dict(gh100=16500, gh500=5700, gh850=1500, slp=101000, rh500=50, rh850=70, t2m=290, t500=260, t850=280, rain=1.0)
CHILD = """
import resource, sys, json, time
from pathlib import Path
from sslpdl_nb.prepare import prepare
begin = time.perf_counter()
prepare(Path(sys.argv[1]) / "nwp", Path(sys.argv[1]) / "qpe", sys.argv[2], source="sslpdl", workers=int(sys.argv[3]), say=lambda text: None)
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter() - begin]))
"""


def write(folder: Path, n: int):
    "An archive of n forecasts and their hours of rain."
    rng, start = np.random.default_rng(0), np.datetime64("2001-06-01", "ns")
    noise = rng.random((1, 1, *NWP_GRID.shape), np.float32)
    for kind in ("nwp", "qpe"): (folder / kind).mkdir(parents=True, exist_ok=True)
    for k in range(n):
        t = start + np.timedelta64(k, "h")
        fields = {v.name: (("time", "lead_time", "y", "x"), USUAL.get(v.name, 5) + np.roll(noise, 7 * k, -1), {"units": v.units}) for v in VARIABLES}
        xr.Dataset(fields | {"crs": ((), 0, crs_attributes(NWP_GRID))}, dict(time=[t], lead_time=[np.timedelta64(6, "h").astype("timedelta64[ns]")]) | place(NWP_GRID)
                   ).to_netcdf(folder / f"nwp/{k:04}.nc")
        rain = rng.gamma(0.2, 3.0, (1, *QPE_GRID.shape)).astype(np.float32)
        xr.Dataset({"rain": (("time", "y", "x"), rain, {"units": "mm h-1"}), "crs": ((), 0, crs_attributes(QPE_GRID))}, dict(time=[t + np.timedelta64(6, "h")]) | place(QPE_GRID)
                   ).to_netcdf(folder / f"qpe/{k:04}.nc")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--files", type=int, nargs="+", default=[4, 16, 64])
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args()
    print(f"{'files':>6} {'GB read':>8} {'peak MB':>8} {'seconds':>8} {'per file':>9}")
    peaks = []
    for n in args.files:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), n)
            size = sum(f.stat().st_size for f in Path(folder).rglob("*.nc")) / 1e9
            done = subprocess.run([sys.executable, "-c", CHILD, folder, f"{folder}/store.zarr", str(args.workers)], capture_output=True, text=True)
            if done.returncode: sys.exit(done.stderr[-2000:])
            peak, seconds = json.loads(done.stdout.splitlines()[-1])
            peaks.append(peak)
            print(f"{n:6} {size:8.2f} {peak:8.0f} {seconds:8.1f} {seconds / n:9.3f}", flush=True)
    print(f"peak memory grows by {(peaks[-1] - peaks[0]) / (args.files[-1] - args.files[0]):.2f} MB per file")


if __name__ == "__main__":
    main()
