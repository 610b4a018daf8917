"""What the work on files withstands: being killed at any moment, and very many files.

    python benchmarks/robustness.py kill --times 200
    python benchmarks/robustness.py load --files 1000 10000

`kill` does four pieces of work of a few seconds (simulate, prepare, pretrain, finetune), each in a
process of its own that gets SIGKILL at a random moment; the same work is started again until it
ends, and what it leaves is compared with that of an undisturbed process: bytes of archives, arrays
of stores, tensors of checkpoints. After each kill, what has a final name must be whole. `load`
prepares so many small GRIB files (8 x 8 points; half of them forecasts, half rain) in a fresh
process and notes its largest resident memory. Both write to benchmarks/results/robustness.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xarray as xr

import sslpdl_nb.finetune
import sslpdl_nb.io.prepare
import sslpdl_nb.pretrain
from sslpdl_nb.checkpoint import load_checkpoint
from sslpdl_nb.core import VARIABLES, DataError, environment, get_config, write_json
from sslpdl_nb.grids.types import LambertGrid, cf_coordinates, crs_attributes
from sslpdl_nb.simulate import archive
from sslpdl_nb.store import load_splits, open_store

RESULT = Path(__file__).parent / "results" / "robustness.json"
NWP = LambertGrid(nx=8, ny=8, dx=60e3, x0=-40e3, y0=-180e3)
QPE = LambertGrid(nx=8, ny=8, dx=30e3, x0=60e3, y0=-100e3)
TRAINING = LambertGrid(nx=16, ny=16, dx=15e3, x0=60e3, y0=-100e3)
USUAL = dict(gh100=16500, gh500=5700, gh850=1500, slp=101000, rh500=50, rh850=70)
USUAL |= dict(t2m=290, t500=260, t850=280, rain=1.0)
FIRST, LEAD = np.datetime64("2001-06-01", "ns"), np.timedelta64(6, "h")
CLOCK = {"time": {"units": "hours since 2001-06-01", "dtype": "int64"}}
SIZE = archive.Size(16, 3, 1, (1, 2), *archive._window(6, 16, 8, 12), spinup=3)
CONFIG = get_config(
    image_size=(16, 16),
    pretrain_steps=10,
    pretrain_batch=4,
    finetune_steps=12,
    finetune_batch=4,
    ppm_dim=8,
    fpn_dim=8,
)


# ------------------------------------------------------------------ small files


def forecast(rng, time_=FIRST) -> xr.Dataset:
    "One reference and lead time: usual values and noise."
    dims, shape = ("time", "lead_time", "y", "x"), (1, 1, *NWP.shape)
    data = {"crs": ((), 0, crs_attributes(NWP))}
    for v in VARIABLES:
        values = USUAL.get(v.name, 5) + rng.random(shape, np.float32)
        data[v.name] = (dims, values, {"units": v.units})
    lead_time = [LEAD.astype("timedelta64[ns]")]
    return xr.Dataset(data, dict(time=[time_], lead_time=lead_time) | cf_coordinates(NWP))


def rain(rng, grid=QPE, time_=FIRST + LEAD) -> xr.Dataset:
    "The rain of one hour."
    values = rng.gamma(0.2, 3.0, (1, *grid.shape)).astype(np.float32)
    data = {
        "rain": (("time", "y", "x"), values, {"units": "mm h-1"}),
        "crs": ((), 0, crs_attributes(grid)),
    }
    return xr.Dataset(data, dict(time=[time_]) | cf_coordinates(grid))


def write_days(folder: Path, days: int, grid):
    "One forecast and its rain a day, two files each."
    rng = np.random.default_rng(0)
    for kind in ("nwp", "qpe"):
        (folder / kind).mkdir(parents=True)
    for day in range(days):
        start = FIRST + day * np.timedelta64(24, "h")
        forecast(rng, start).to_netcdf(folder / "nwp" / f"{day:02}.nc", encoding=CLOCK)
        rain(rng, grid, start + LEAD).to_netcdf(folder / "qpe" / f"{day:02}.nc", encoding=CLOCK)


def grib_hour() -> tuple:
    "One hour as GRIB: forecast, and rain from hour 2 to 3; +3 h of 2001-06-01 00 UTC."
    import pyproj  # noqa: F401  before eccodes
    import eccodes

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from synthetic import LEVELS, grib2, lambert, truth

    names = [("slp", "prmsl", ("sea", 0)), ("t2m", "t", ("ground", 2))]
    names += [(f"{wind}10", wind, ("ground", 10)) for wind in "uv"]
    for p in LEVELS:
        for ours, name in (("gh", "gh"), ("t", "t"), ("rh", "r"), ("u", "u"), ("v", "v")):
            names.append((f"{ours}{p}", name, ("p", p * 100)))
    options = dict(hour=3, start="2001060100")
    keys, lon, lat = lambert(NWP)
    known = truth(lon, lat)
    fields = [grib2(eccodes, "kwbc", keys, n, known[o], w, **options) for o, n, w in names]
    total = grib2(eccodes, "kwbc", keys, "tp", known["rain"], since=2, **options)
    keys, lon, lat = lambert(QPE)
    rain = grib2(eccodes, "kwbc", keys, "tp", truth(lon, lat)["rain"], since=2, **options)
    return b"".join([*fields, total]), rain


def octets(time_: datetime) -> bytes:
    "A time as in GRIB 2."
    return struct.pack(">HBBBBB", *time_.timetuple()[:6])


def write_hours(folder: Path, n: int):
    "n GRIB files of forecasts and n of rain, of one hour each: copies with other dates."
    start, lead = datetime(2001, 6, 1), timedelta(hours=3)
    for kind, content in zip(("nwp", "qpe"), grib_hour()):
        (folder / kind).mkdir(parents=True)
        for k in range(n):
            now = start + timedelta(hours=k)
            ends = content.split(octets(start + lead))  # of accumulation periods
            copies = [part.replace(octets(start), octets(now)) for part in ends]
            copy = octets(now + lead).join(copies)
            (folder / kind / f"{k:05}.grib2").write_bytes(copy)


# ------------------------------------------------------------------ the work, and what it leaves


class Simulate:
    "A small archive in Zarr."

    def __init__(self, inputs: Path):
        self.inputs = inputs

    def work(self, out: Path):
        archive.SIZES["course"] = SIZE
        archive.simulate("course", out / "archive", 3, progress=False, workers=2)

    def result(self, out: Path) -> dict:
        "Bytes of every file that has its final name."
        files = [p for p in (out / "archive").rglob("*") if p.is_file()]
        files = [p for p in files if not any(q.startswith(".un") for q in p.parts)]
        return {str(p.relative_to(out)): p.read_bytes() for p in sorted(files)}

    def whole(self, out: Path, reference: dict) -> bool:
        "Whatever has its final name is complete."
        found = self.result(out)
        stores = {Path(name).parts[1] for name in found if ".zarr" in name}
        wanted = {k: v for k, v in reference.items() if Path(k).parts[1] in stores}
        return {k: v for k, v in found.items() if Path(k).parts[1] in stores} == wanted


class Prepare(Simulate):
    "A store from some days of files."

    def work(self, out: Path):
        sslpdl_nb.io.prepare.prepare(
            self.inputs / "nwp",
            self.inputs / "qpe",
            out / "store.zarr",
            source="sslpdl",
            workers=2,
            say=str,
            progress=False,
        )

    def result(self, out: Path) -> dict:
        "Every array."
        samples = open_store(out / "store.zarr")
        return {str(k): (v.values.tobytes(), v.dims) for k, v in samples.variables.items()}

    def whole(self, out: Path, reference: dict) -> bool:
        "The store is refused, or complete."
        with contextlib.suppress(DataError):
            return self.result(out) == reference
        return True


class Pretrain(Simulate):
    "A few steps of masked pre-training."

    name = "pretrained"

    def work(self, out: Path):
        splits = load_splits(self.inputs / "store.zarr", CONFIG, gap=0)
        path = out / f"{self.name}.safetensors"
        sslpdl_nb.pretrain.pretrain(CONFIG, splits, 1, path, progress=False)

    def result(self, out: Path) -> dict:
        "Every tensor, and the scores on the way."
        weights, meta = load_checkpoint(out / f"{self.name}.safetensors")
        tensors = {k: v.numpy().tobytes() for k, v in weights.items()}
        return tensors | dict(history=meta["history"])

    def whole(self, out: Path, reference: dict) -> bool:
        "The checkpoint is complete, and so is the training state, if they are there."
        state = out / f"{self.name}.state"
        if state.exists():
            torch.load(state, weights_only=True)
        there = (out / f"{self.name}.safetensors").exists()
        return not there or self.result(out) == reference


class Finetune(Pretrain):
    "A few steps of fine-tuning, calibration and thresholds."

    name = "finetuned"

    def work(self, out: Path):
        splits = load_splits(self.inputs / "store.zarr", CONFIG, gap=0)
        path, init = out / f"{self.name}.safetensors", self.inputs / "pretrained.safetensors"
        sslpdl_nb.finetune.finetune(CONFIG, splits, 1, path, init=init, progress=False)


WORKS = dict(simulate=Simulate, prepare=Prepare, pretrain=Pretrain, finetune=Finetune)


# ------------------------------------------------------------------ kill


def start(function, *args, log: Path) -> int:
    "A child process that calls a function; the parent imports everything and computes nothing."
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        code = 0 if function(*args) is not False else 3
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def finish(child: int, log: Path, what: str):
    "Wait for a child that must succeed."
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        text = log.read_text() if log.exists() else "the result differs"
        sys.exit(f"{what}: exit code {code}\n{text[-3000:]}")


def run_until(child: int, seconds: float) -> bool:
    "Whether a child was killed after so many seconds; it may end before."
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def kill_until_done(work, out: Path, reference: Path, *, longest: float, rng, left: int) -> list:
    "Seconds after which the work was killed, until it was complete and equal to the reference."
    log, moments = out.with_suffix(".log"), []
    out.mkdir()

    def check(attribute):
        saved = work.result(reference)
        if attribute == "whole":
            return work.whole(out, saved)
        return work.result(out) == saved

    while True:
        seconds = rng.uniform(0, longest) if len(moments) < left else 1e9
        child = start(work.work, out, log=log)
        if not run_until(child, seconds):
            finish(child, log, f"{out} after {len(moments)} kills")
            break
        moments.append(round(seconds, 3))
        finish(start(check, "whole", log=log), log, f"{out}: half-written after {moments}")
    finish(start(check, "equal", log=log), log, f"{out}: differs after {moments}")
    leftovers = [p.name for p in out.rglob(".*") if p.name.endswith((".tmp", ".new", ".old"))]
    leftovers += [p.name for p in out.rglob("*.partial")]
    if leftovers:
        print(f"   left behind in {out.name}: {leftovers}")
    shutil.rmtree(out)
    return moments


def undisturbed(name: str, folder: Path) -> tuple:
    "A piece of work, its result without kills, and the seconds that it took."
    inputs = folder / "inputs"
    work, reference = WORKS[name](inputs), folder / f"{name}-reference"
    reference.mkdir()
    log, begin = reference / "log", time.perf_counter()
    finish(start(work.work, reference, log=log), log, f"{name} undisturbed")
    if name == "pretrain":
        shutil.copy(reference / "pretrained.safetensors", inputs)
    return work, time.perf_counter() - begin


def make_inputs(folder: Path, days: int, training: bool):
    "Files of some days, and their store if there is a training."
    write_days(folder, days, TRAINING)
    if training:
        Prepare(folder).work(folder)


def kill_again(name: str, work, row: dict, *, times: int, end: float, seed: int):
    "Kill one piece of work so many times, or until a time; what was found is written as it comes."
    rng, folder = random.Random(f"{seed} {name}"), work.inputs.parent
    while len(row["kills"]) < times and time.time() < end:
        out = folder / f"{name}-{row['completed']}"
        options = dict(longest=row["seconds"], rng=rng, left=times - len(row["kills"]))
        row["kills"] += kill_until_done(work, out, folder / f"{name}-reference", **options)
        row["completed"] += 1
        write_json(folder / f"{name}.json", row)


def kill(times: int, minutes: float, names: list, seed: int = 0, days: int = 10) -> dict:
    "Kill pieces of work so many times altogether; ends with an error if anything is lost."
    found, children = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs, log = folder / "inputs", folder / "log"
        training = "pretrain" in names or "finetune" in names
        finish(start(make_inputs, inputs, days, training, log=log), log, "inputs")
        works = {name: undisturbed(name, folder) for name in names}
        for k, (name, (work, seconds)) in enumerate(works.items()):
            print(f"{name:9} takes {seconds:.1f} s undisturbed", flush=True)
            row = dict(seconds=round(seconds, 2), completed=0, kills=[])
            share = (times + k) // len(names)
            options = dict(times=share, end=time.time() + 60 * minutes, seed=seed)
            again = partial(kill_again, name, work, row, **options)
            children[name] = start(again, log=folder / f"{name}.log"), folder / f"{name}.log"
        for name, (child, log) in children.items():
            finish(child, log, name)
            found[name] = row = json.loads((folder / f"{name}.json").read_text())
            print(f"{name:9} killed {len(row['kills'])} times,", end=" ")
            print(f"completed {row['completed']} times, all equal", flush=True)
            print(log.read_text()[-2000:], end="")
    return found


# ------------------------------------------------------------------ load

CHILD = """
import json, sys, time
from pathlib import Path
from sslpdl_nb.io.prepare import prepare

folder, out, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
nwp, qpe = (sorted((folder / kind).iterdir())[:n] for kind in ("nwp", "qpe"))
begin = time.perf_counter()
prepare(nwp, qpe, out, source="gfs", workers=2, say=lambda text: None, progress=False)
seconds = time.perf_counter() - begin
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps(dict(peak_mb=round(peak), seconds=round(seconds, 1))))
"""


def measure(folder: Path, files: int) -> dict:
    "Peak memory and seconds of a fresh process that prepares so many files."
    store = folder / f"store{files}.zarr"
    command = [sys.executable, "-c", CHILD, str(folder), str(store), str(files // 2)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    account = json.loads((store / "manifest.json").read_text())
    if account["samples"] != files // 2 or account["refused"]:
        sys.exit(f"{files} files gave {account['samples']} samples")
    shutil.rmtree(store)
    return dict(files=files) | json.loads(done.stdout.splitlines()[-1])


def load(numbers: list):
    "After each number of files, the rows until there."
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_hours(Path(name), max(numbers) // 2)
        for files in numbers:
            rows.append(measure(Path(name), files))
            print(rows[-1], flush=True)
            growth = (rows[-1]["peak_mb"] - rows[0]["peak_mb"]) / max(1, files - numbers[0])
            yield dict(runs=rows, kb_per_file=round(1000 * growth, 2))


# ------------------------------------------------------------------ the command


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = p.add_subparsers(dest="command", required=True)
    one = commands.add_parser("kill", help="kill the work at random moments")
    one.add_argument("--times", type=int, default=200)
    one.add_argument(
        "--works",
        nargs="+",
        default=list(WORKS),
        choices=WORKS,
        metavar="WORK",
        help="finetune needs pretrain",
    )
    one.add_argument("--minutes", type=float, default=60, help="start no more work after them")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--days", type=int, default=10, help="of files to prepare")
    two = commands.add_parser("load", help="prepare very many files")
    two.add_argument("--files", type=int, nargs="+", default=[1000, 10000])
    for some in (one, two):
        some.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    args = p.parse_args()
    if args.command == "kill":
        works = kill(args.times, args.minutes, args.works, args.seed, args.days)
        results = [dict(seed=args.seed, works=works)]
    else:
        results = load(sorted(args.files))
    for found in results:
        record = json.loads(args.out.read_text()) if args.out.exists() else {}
        about = dict(date=time.strftime("%Y-%m-%d"), environment=environment())
        write_json(args.out, record | {args.command: about | found})


if __name__ == "__main__":
    main()
