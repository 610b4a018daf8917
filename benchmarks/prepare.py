"""Peak memory and speed of `sslpdl prepare` against the number of files.

    python benchmarks/prepare.py [--files 8 64 1024] [--workers 2] [--out FILE.json]

Makes simulated 3 km forecasts (480 x 320 points, 16 variables, one reference time and lead time
a file, 10 MB) and hourly rain on the 5 km grid, prepares the first n files in a fresh process each,
and prints the largest resident memory of that process. A year of hourly files is 8760; the growth
is given per file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from sslpdl_nb.core import VARIABLES, environment, write_json
from sslpdl_nb.grids.types import NWP_GRID, QPE_GRID, cf_coordinates, crs_attributes

USUAL = dict(gh100=16500, gh500=5700, gh850=1500, slp=101000, rh500=50, rh850=70)
USUAL |= dict(t2m=290, t500=260, t850=280, rain=1.0)
RESULT = Path(__file__).parent / "results" / "prepare.json"
FIRST, LEAD = np.datetime64("2001-06-01", "ns"), np.timedelta64(6, "h")
CLOCK = {"time": {"units": "hours since 2001-06-01", "dtype": "int64"}}
CHILD = """
import json, resource, sys, time
from pathlib import Path
from sslpdl_nb.io.prepare import prepare

folder, out, n, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
nwp, qpe = (sorted((folder / kind).iterdir())[:n] for kind in ("nwp", "qpe"))
begin = time.perf_counter()
prepare(nwp, qpe, out, source="sslpdl", workers=workers, say=lambda text: None, progress=False)
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(dict(peak_mb=peak, seconds=seconds)))
"""


def first_forecast(rng) -> xr.Dataset:
    "One reference and lead time: usual values and noise."
    dims, shape = ("time", "lead_time", "y", "x"), (1, 1, *NWP_GRID.shape)
    data = {"crs": ((), 0, crs_attributes(NWP_GRID))}
    for v in VARIABLES:
        values = USUAL.get(v.name, 5) + rng.random(shape, np.float32)
        data[v.name] = (dims, values, {"units": v.units})
    lead_time = [LEAD.astype("timedelta64[ns]")]
    return xr.Dataset(data, dict(time=[FIRST], lead_time=lead_time) | cf_coordinates(NWP_GRID))


def first_rain(rng) -> xr.Dataset:
    "The rain of its valid time."
    rain = rng.gamma(0.2, 3.0, (1, *QPE_GRID.shape)).astype(np.float32)
    data = {
        "rain": (("time", "y", "x"), rain, {"units": "mm h-1"}),
        "crs": ((), 0, crs_attributes(QPE_GRID)),
    }
    return xr.Dataset(data, dict(time=[FIRST + LEAD]) | cf_coordinates(QPE_GRID))


def write_archive(folder: Path, n: int):
    "n forecasts and their hours of rain: copies of one hour that differ in their time."
    import netCDF4

    rng = np.random.default_rng(0)
    for kind, hour, make in (("nwp", 0, first_forecast), ("qpe", 6, first_rain)):
        (folder / kind).mkdir(parents=True)
        first = folder / kind / "0000.nc"
        make(rng).to_netcdf(first, encoding=CLOCK)
        for k in range(1, n):
            copy = folder / kind / f"{k:04}.nc"
            shutil.copyfile(first, copy)
            with netCDF4.Dataset(copy, "r+") as ds:
                ds["time"][0] = hour + k


def measure(folder: Path, n: int, workers: int) -> dict:
    "Peak memory and seconds of a fresh process that prepares the first n files."
    store = folder / f"store{n}.zarr"
    command = [sys.executable, "-c", CHILD, str(folder), str(store), str(n), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    shutil.rmtree(store)
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(numbers: list, workers: int) -> list:
    "One row for each number of files, printed as it is measured."
    rows = []
    print(f"{'files':>6} {'GB read':>8} {'peak MB':>8} {'seconds':>8} {'per file':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_archive(folder, max(numbers))
        gb = sum((folder / kind / "0000.nc").stat().st_size for kind in ("nwp", "qpe")) / 1e9
        for n in numbers:
            found = measure(folder, n, workers)
            peak, seconds = round(found["peak_mb"]), round(found["seconds"], 1)
            rows.append(dict(files=n, gb_read=round(n * gb, 2), peak_mb=peak, seconds=seconds))
            per_file = found["seconds"] / n
            print(f"{n:6} {n * gb:8.2f} {peak:8} {seconds:8.1f} {per_file:9.3f}", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--files", type=int, nargs="+", default=[8, 64, 1024])
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    rows = measure_all(sorted(args.files), args.workers)
    first, last = rows[0], rows[-1]
    more_files = max(1, last["files"] - first["files"])
    growth = (last["peak_mb"] - first["peak_mb"]) / more_files
    print(f"peak memory grows by {growth:.3f} MB per file")
    result = dict(
        environment=environment(),
        date=time.strftime("%Y-%m-%d"),
        workers=args.workers,
        grid=NWP_GRID.shape,
        mb_per_file=round(growth, 4),
        runs=rows,
    )
    write_json(args.out, result)


if __name__ == "__main__":
    main()
