"""Read many damaged files, and GRIB messages with odd headers; for a night, not for each commit.

    python tools/fuzz.py --inputs 100000 [--seed 0] [--minutes 60] [--keep runs/fuzz]
    python tools/fuzz.py --metadata 20000 [--seed 0] [--minutes 60]

`--inputs` damages small files of every format that is read. Each copy must be read, or refused with
an error that names it. Copies that end the process, take too long, raise another error or leave a
file open are listed and kept. `--metadata` sets the keys and octets of GRIB headers to
extremes, and compares what is read with ecCodes. Both write their counts into
benchmarks/results/fuzz.json. The exit status is 1 if there was a fault or a difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"
sys.path[0:0] = [str(ROOT / "tests"), str(ROOT)]
SHOWN = 50  # differences that are printed


def versions() -> dict:
    "Of everything that reads files."
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in "sslpdl_nb eccodes eccodeslib netCDF4 h5py zarr xarray safetensors pyproj".split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def write_result(part: str, values: dict, path: Path):
    "Replace one part of the file of results."
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole[part] = dict(date=str(date.today()), versions=versions()) | values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")


def byte_result(counts, faults, slowest, seed: int, begin: float) -> dict:
    "What is written of damaged copies."
    table = {}
    for name, count in counts.items():
        table[name] = {word: count[word] for word in ("read", "refused", "endless", "fault")}
        table[name]["slowest_cpu_seconds"] = slowest[name]
    total = sum(sum(count.values()) for count in counts.values())
    minutes = round((time.time() - begin) / 60, 1)
    return dict(inputs=total, seed=seed, minutes=minutes, formats=table, faults=faults)


def fuzz_bytes(n: int, seed: int, formats: list, keep: Path, until, out: Path) -> bool:
    "Damaged copies; whether all was well."
    from fuzz import run, shares
    from fuzz_files import FORMATS
    from tqdm import tqdm

    chosen = {name: form for name, form in FORMATS.items() if not formats or name in formats}
    jobs, begin = shares(n, chosen), time.time()
    with tqdm(total=sum(end - first for _, first, end in jobs), unit="file", mininterval=5) as bar:
        told = 0

        def progress(counts, faults, slowest):
            nonlocal told
            bar.update()
            for fault in faults[told:]:
                bar.write(str(fault))
            told = len(faults)
            if bar.n % 2000 == 0:  # what is known when somebody ends the run
                write_result("bytes", byte_result(counts, faults, slowest, seed, begin), out)

        counts, faults, slowest = run(jobs, seed, keep, until, progress)
    values = byte_result(counts, faults, slowest, seed, begin)
    write_result("bytes", values, out)
    for name, row in values["formats"].items():
        print(f"{name:16}", row)
    print(f"{values['inputs']} damaged copies, {len(faults)} faults")
    return not faults


def fuzz_metadata(n: int, seed: int, until, out: Path) -> bool:
    "Odd headers; whether there was no difference."
    from fuzz_grib import compare_many
    from tqdm import tqdm

    begin = time.time()
    with tqdm(total=n, unit="message", mininterval=5) as bar:
        counts, differences = compare_many(n, seed, until, bar.update)
    minutes = round((time.time() - begin) / 60, 1)
    total = sum(counts.values())
    values = dict(messages=total, seed=seed, minutes=minutes, counts=dict(counts))
    write_result("metadata", values | dict(differences=differences[:200]), out)
    for difference in differences[:SHOWN]:
        print(difference)
    print(f"{total} messages: {dict(counts)}")
    return not differences


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=0, help="damaged copies of files")
    parser.add_argument("--metadata", type=int, default=0, help="GRIB messages with odd headers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--formats", nargs="*", help="only these formats")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "fuzz", help="for faults")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of results")
    a = parser.parse_args(argv)
    if a.inputs < 0 or a.metadata < 0 or not (a.inputs or a.metadata):
        parser.error("give --inputs or --metadata")
    until = time.time() + 60 * a.minutes if a.minutes else None
    well = True
    if a.inputs:
        well &= fuzz_bytes(a.inputs, a.seed, a.formats, a.keep, until, a.out)
    if a.metadata:
        well &= fuzz_metadata(a.metadata, a.seed, until, a.out)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
