"""Prepare the store of the bundled sample, where it is missing or older than its files.

python tools/sample_store.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = Path("data_samples") / "tiny"


def is_current(root: Path) -> bool:
    "Whether the store is complete and newer than the files it is made of."
    manifest = root / TINY / "store.zarr" / "manifest.json"
    if not manifest.exists():
        return False
    made = manifest.stat().st_mtime
    return all(made >= (root / TINY / name).stat().st_mtime for name in ("nwp.nc", "qpe.nc"))


def make_sample_store(root: Path = ROOT):
    "Run the command that prepares the store; nothing happens if it is there."
    if is_current(root):
        return
    command = [str(Path(sys.executable).with_name("sslpdl")), "prepare", "--fresh"]
    command += ["--nwp", str(TINY / "nwp.nc"), "--qpe", str(TINY / "qpe.nc")]
    command += ["--source", "sslpdl", "--rain-regridding", "nearest"]
    command += ["--out", str(TINY / "store.zarr")]
    print("preparing the store of the bundled sample:", "sslpdl", *command[1:], flush=True)
    subprocess.run(command, cwd=root, check=True)


if __name__ == "__main__":
    make_sample_store()
