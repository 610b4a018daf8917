"""Read damaged copies of a file in a process of its own: whatever is broken, no reader may crash.

A copy is cut off, or some of its bits are flipped. Each copy must be read, or refused with an error
of this package that names the file, within a second of CPU time, and no file may stay open.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIELDS_READ = 20  # of each copy

READ_ALL = """
import os, sys, time, warnings
from importlib import import_module
from pathlib import Path

import numpy as np
from sslpdl_nb.core import SSLPDLError
from sslpdl_nb.io.fields import Source

warnings.simplefilter("ignore")
good_path, folder, reader, n = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
module, function = reader.split(":")
list_fields = getattr(import_module(module), function)
arguments = eval(sys.argv[5])  # further arguments of the reader


def read(path):
    for field in list_fields(path, *arguments)[:FIELDS_READ]:
        field.read()


def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


def damaged(content, k):
    bad = bytearray(content)
    if k % 3 == 0:
        return bad[: rng.integers(len(bad))]
    for _ in range(rng.integers(1, 4)):
        end = len(bad) if k % 3 == 1 else min(len(bad), 4000)  # anywhere, or in the headers
        bad[rng.integers(end)] ^= 1 << rng.integers(8)
    return bad


good = good_path.read_bytes()
read(good_path)  # packages are imported at the first file
rng, refused, slowest, open_before = np.random.default_rng(0), 0, 0.0, open_files()
for k in range(n):
    path = folder / f"bad{k}"
    path.write_bytes(damaged(good, k))
    begin = time.process_time()
    try:
        read(path)
    except SSLPDLError as error:
        refused += 1
        assert path.name in str(error), error
    slowest = max(slowest, time.process_time() - begin)
    path.unlink()
assert not list(folder.iterdir()), "files are left behind"
if good[:4] == b"GRIB":  # the netCDF library keeps some files open that it refused
    assert open_files() <= open_before, "files stay open"
print(refused, round(slowest, 2))
""".replace("FIELDS_READ", str(FIELDS_READ))


def fuzz(
    file,  # a good file
    folder,  # an empty folder is made here
    reader,  # "module:function" that lists the fields of a path
    n,  # number of damaged copies
    arguments="()",  # Python text of further arguments of the reader
):
    "Fail unless all damaged copies are read or refused as they should be."
    folder.mkdir()
    command = [sys.executable, "-c", READ_ALL, str(file), str(folder), reader, str(n), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, (done.returncode, done.stderr[-1500:])
    refused, slowest = done.stdout.split()[-2:]
    assert int(refused) > n // 5 and float(slowest) < 1
