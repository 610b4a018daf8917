"""Peak memory and speed of `sslpdl prepare` against the number of files.

    python benchmarks/prepare.py [--files 8 64 1024] [--workers 2]

Makes simulated 3 km forecasts (480 x 320 points, 16 variables, one start and lead time a file, 10 MB) and hourly rain on
the 5 km grid, prepares the first n files in a fresh process each, and prints the largest resident memory of that process;
the numbers go to benchmarks/results/prepare.json. A year of hourly files is 8760; what grows is told per file.
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

from sslpdl_nb.grids.types import NWP_GRID, QPE_GRID
from sslpdl_nb.core import VARIABLES, environment, write_json
from sslpdl_nb.grids.types import crs_attributes, cf_coordinates

USUAL = dict(
    gh100=16500,
    gh500=5700,
    gh850=1500,
    slp=101000,
    rh500=50,
    rh850=70,
    t2m=290,
    t500=260,
    t850=280,
    rain=1.0,
)
RESULT = Path(__file__).parent / "results" / "prepare.json"
CHILD = """
import resource, sys, json, time
from pathlib import Path
from sslpdl_nb.io.prepare import prepare
begin, n = time.perf_counter(), int(sys.argv[3])
first = lambda kind: sorted((Path(sys.argv[1]) / kind).iterdir())[:n]
prepare(first("nwp"), first("qpe"), sys.argv[2], source="sslpdl", workers=int(sys.argv[4]), say=lambda text: None)
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter() - begin]))
"""


def write(folder: Path, n: int):
    "An archive of n forecasts and their hours of rain: copies of one hour that differ in their time."
    import netCDF4

    rng, start, clock = (
        np.random.default_rng(0),
        np.datetime64("2001-06-01", "ns"),
        {"time": {"units": "hours since 2001-06-01", "dtype": "int64"}},
    )
    for kind in ("nwp", "qpe"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    fields = {
        v.name: (
            ("time", "lead_time", "y", "x"),
            USUAL.get(v.name, 5) + rng.random((1, 1, *NWP_GRID.shape), np.float32),
            {"units": v.units},
        )
        for v in VARIABLES
    }
    xr.Dataset(
        fields | {"crs": ((), 0, crs_attributes(NWP_GRID))},
        dict(time=[start], lead_time=[np.timedelta64(6, "h").astype("timedelta64[ns]")])
        | cf_coordinates(NWP_GRID),
    ).to_netcdf(folder / "nwp/0000.nc", encoding=clock)
    rain = rng.gamma(0.2, 3.0, (1, *QPE_GRID.shape)).astype(np.float32)
    xr.Dataset(
        {
            "rain": (("time", "y", "x"), rain, {"units": "mm h-1"}),
            "crs": ((), 0, crs_attributes(QPE_GRID)),
        },
        dict(time=[start + np.timedelta64(6, "h")]) | cf_coordinates(QPE_GRID),
    ).to_netcdf(folder / "qpe/0000.nc", encoding=clock)
    for k in range(1, n):
        for kind, first in (("nwp", 0), ("qpe", 6)):
            shutil.copyfile(folder / kind / "0000.nc", folder / f"{kind}/{k:04}.nc")
            with netCDF4.Dataset(folder / f"{kind}/{k:04}.nc", "r+") as ds:
                ds["time"][0] = first + k


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--files", type=int, nargs="+", default=[8, 64, 1024])
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args()
    rows = []
    print(f"{'files':>6} {'GB read':>8} {'peak MB':>8} {'seconds':>8} {'per file':>9}")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), max(args.files))
        size = (
            sum(next((Path(folder) / kind).iterdir()).stat().st_size for kind in ("nwp", "qpe"))
            / 1e9
        )
        for n in args.files:
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    CHILD,
                    folder,
                    f"{folder}/store{n}.zarr",
                    str(n),
                    str(args.workers),
                ],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            peak, seconds = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                dict(
                    files=n,
                    gb_read=round(n * size, 2),
                    peak_mb=round(peak),
                    seconds=round(seconds, 1),
                )
            )
            print(
                f"{n:6} {n * size:8.2f} {peak:8.0f} {seconds:8.1f} {seconds / n:9.3f}", flush=True
            )
            shutil.rmtree(f"{folder}/store{n}.zarr")
    grows = (rows[-1]["peak_mb"] - rows[0]["peak_mb"]) / max(
        1, rows[-1]["files"] - rows[0]["files"]
    )
    print(f"peak memory grows by {grows:.3f} MB per file")
    write_json(
        RESULT,
        dict(
            environment=environment(),
            date=time.strftime("%Y-%m-%d"),
            workers=args.workers,
            grid=NWP_GRID.shape,
            mb_per_file=round(grows, 4),
            runs=rows,
        ),
    )


if __name__ == "__main__":
    main()
