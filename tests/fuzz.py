"""Damage files, read them in a process of its own, and see that no reader crashes.

Every damaged copy must be read, or refused with an error of this package that names the file,
within seconds of CPU time and 4 GB of memory, and may leave no file open. Each copy follows from
the seed, the format and its number, so that one which ended the process can be made again.

Two faults of the libraries below cannot be mended here. The netCDF library leaves some files open
that it refused. The HDF5 library never comes to an end with a few damaged lists of attributes;
such copies are called endless and counted apart.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CPU_LIMIT = 5.0  # seconds a copy; then the process is ended by SIGPROF
WALL_LIMIT = 120  # seconds without a sign of life
MEMORY = 4 * 2**30  # bytes beyond what the packages need
RESTART = 2000  # copies a process, because the netCDF library keeps some files open


# ------------------------------------------------------------------ damage


def cut(bad, rng, other):
    return bad[: rng.integers(len(bad))]


def flip(bad, rng, other, end=None):
    for _ in range(rng.integers(1, 4)):
        bad[rng.integers(end or len(bad))] ^= 1 << rng.integers(8)
    return bad


def flip_in_the_header(bad, rng, other):
    return flip(bad, rng, other, min(len(bad), 4000))


def block(content, rng):
    "A part of some octets to a quarter of the content."
    size = int(rng.integers(1, max(2, min(len(content) // 4, 4096))))
    begin = int(rng.integers(max(1, len(content) - size)))
    return slice(begin, begin + size)


def overwrite(bad, rng, other):
    "A block of zeros, of ones, or of noise."
    where = block(bad, rng)
    size = len(bad[where])
    bad[where] = (bytes(size), b"\xff" * size, rng.bytes(size))[rng.integers(3)]
    return bad


def splice(bad, rng, other):
    "The beginning of a file and the end of another."
    here = rng.integers(len(bad))
    there = here if rng.random() < 0.5 else rng.integers(len(other))
    return bad[:here] + other[min(there, len(other)) :]


def duplicate(bad, rng, other):
    where = block(bad, rng)
    return bad[: where.stop] + bad[where] + bad[where.stop :]


def remove(bad, rng, other):
    where = block(bad, rng)
    return bad[: where.start] + bad[where.stop :]


def exchange(bad, rng, other):
    "A block of another file, or of another place."
    source = other if rng.random() < 0.5 else bad
    where, there = block(bad, rng), block(source, rng)
    bad[where] = source[there.start : there.start + len(bad[where])]
    return bad


def rewrite(bad, rng, other):
    "Another number or word in a text, such as the index of a Zarr store."
    found = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"]*"|null|true|false', bytes(bad)))
    if not found:
        return flip(bad, rng, other)
    words = [b"-1", b"0", b"1e30", b"NaN", b"9223372036854775808", b'""', b"null", b"[]", b"{}"]
    words += [found[rng.integers(len(found))][0], b'"<f8"', b'"\xff"']
    one = found[rng.integers(len(found))]
    return bad[: one.start()] + words[rng.integers(len(words))] + bad[one.end() :]


BINARY = (cut, flip, flip_in_the_header, overwrite, splice, duplicate, remove, exchange)
TEXT = (cut, flip, splice, duplicate, remove, rewrite, rewrite, rewrite)


def damaged(content, rng, other):
    "A damaged copy of a content, and the name of the damage."
    is_text = content[:1] in (b"{", b"[")
    has_text = is_text or b'{"' in content[:16]  # a header in JSON
    kinds = TEXT if is_text else BINARY + (rewrite,) * 2 * has_text
    kind = kinds[rng.integers(len(kinds))]
    return bytes(kind(bytearray(content), rng, other)), kind.__name__


def files_below(path):
    "A file, or the files in a folder."
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def damaged_copy(good, folder, name, k, seed, put=os.link):
    "Copy number k of the good files of a format, in an empty folder; its path and damage."
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), k])
    original = good[rng.integers(len(good))]
    path = folder / f"bad{k}{original.suffix}"
    parts = files_below(original)
    part = parts[rng.integers(len(parts))]
    others = files_below(good[rng.integers(len(good))])
    other = others[rng.integers(len(others))].read_bytes()
    content, kind = damaged(part.read_bytes() or b"\0", rng, other)
    if original == part:
        path.write_bytes(content)
        return path, kind
    for one in parts:  # of a folder only one part is damaged; the others are the same files
        there = path / one.relative_to(original)
        there.parent.mkdir(parents=True, exist_ok=True)
        if one != part:
            put(one, there)
        elif rng.random() < 0.95:
            there.write_bytes(content)
        else:
            kind = "missing"
    return path, f"{kind} {part.name}"


# ------------------------------------------------------------------ the process that reads


def open_files(folder):
    "Files of a folder that are open, deleted ones among them."
    if not os.path.exists("/proc/self/fd"):
        return 0
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{number}").startswith(str(folder))
        except OSError:  # that of listdir itself
            pass
    return count


def stays_open(folder, before):
    "Whether more files are open than before; threads of Zarr get a second to end."
    for _ in range(20):
        if open_files(folder) <= before:
            return False
        time.sleep(0.05)
    return True


def attempt(read, path):
    "What a reader makes of a file: read, refused, or a fault."
    from sslpdl_nb.core import SSLPDLError

    try:
        read(path)
        return "read"
    except SSLPDLError as error:
        return "refused" if path.name in str(error) else f"fault: nameless {error!s:.200}"
    except BaseException as error:
        trace, last = error.__traceback__, ""
        while trace:
            code = trace.tb_frame.f_code
            if "sslpdl_nb" in code.co_filename:
                last = f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}"
            trace = trace.tb_next
        return f"fault: {type(error).__name__} in {last}: {error!s:.200}"


def forget_open_files():
    "Close the files that our readers keep open on purpose."
    netcdf = sys.modules.get("sslpdl_nb.io.netcdf")
    if netcdf:
        while netcdf._OPEN:
            netcdf._OPEN.popitem()[1][1].close()


def make_good(name, folder):
    "The good files of a format, all of which are read."
    from fuzz_files import FORMATS

    good = folder / "good" / re.sub(r"\W", "_", name) / "files"
    if not good.exists():
        good.mkdir(parents=True)
        FORMATS[name].write(good)
        for path in sorted(good.iterdir()):
            FORMATS[name].read(path)
    return sorted(good.iterdir())


def say(*words):
    print(*words, flush=True)


def limit_memory():
    "Now and 4 GB more."
    status = Path("/proc/self/status")
    if status.exists():
        used = int(re.search(r"VmSize:\s+(\d+)", status.read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def child(folder, seed, jobs):
    "Read copies; jobs are (format, first number, end). Says what it begins and what came of it."
    from fuzz_files import FORMATS

    warnings.simplefilter("ignore")
    folder = Path(folder)
    bad = folder / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    bad.mkdir()
    for name, first, end in jobs:
        good, form = make_good(name, folder), FORMATS[name]
        for path in good:
            form.read(path)
        forget_open_files()
        limit_memory()
        before = open_files(bad)
        for k in range(first, end):
            path, kind = damaged_copy(good, bad, name, k, seed)
            say(json.dumps(["begin", name, k, kind]))
            begin = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
            outcome = attempt(form.read, path)
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds = time.process_time() - begin
            forget_open_files()
            if not form.hdf5 and stays_open(bad, before):
                outcome, before = "fault: a file stays open", open_files(bad)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            left = [p.name for p in bad.iterdir()]
            if left:
                outcome = f"fault: left behind {left}"
                shutil.rmtree(bad)
                bad.mkdir()
            say(json.dumps(["end", name, k, outcome, round(seconds, 3)]))


# ------------------------------------------------------------------ the process that watches


def lines_of(process):
    "Lines of a process as they come; None if it was silent for too long."
    rest = b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], WALL_LIMIT)
        got = os.read(process.stdout.fileno(), 65536) if ready else None
        if not ready:
            yield None
            return
        if not got:
            return
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            if line.startswith(b"["):  # libraries print, too
                yield json.loads(line)


def watch(jobs, seed, folder, until=None):
    "Run children until all jobs are done; yields (format, number, damage, outcome, seconds)."
    from fuzz_files import FORMATS

    jobs, errors = list(jobs), folder / "errors"
    failures = 0
    while jobs and not (until and time.time() > until):
        name, first, end = jobs.pop(0)
        batch = [(name, first, min(end, first + RESTART))]
        if first + RESTART < end:
            jobs.insert(0, (name, first + RESTART, end))
        while jobs and sum(e - f for _, f, e in [*batch, jobs[0]]) <= RESTART:
            batch.append(jobs.pop(0))
        command = [sys.executable, __file__, str(folder), str(seed), json.dumps(batch)]
        with open(errors, "wb") as error_file:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=error_file)
        now, silent = None, False
        for line in lines_of(process):
            if line is None:
                silent = True
                process.kill()
            elif line[0] == "begin":
                now = line[1:]
            else:
                yield *now, line[3], line[4]
                done, now = line[1:3], None
                batch = unfinished(batch, *done)
        code = process.wait()
        if now is not None:  # it ended while it read a copy
            why = "silent" if silent else signal_name(code)
            last = errors.read_text(errors="replace").strip()[-300:]
            outcome = f"fault: process ended: {why} {last}"
            if why == "SIGPROF" and FORMATS[now[0]].hdf5:
                outcome = "endless: in the HDF5 library"
            yield *now, outcome, CPU_LIMIT
            batch = unfinished(batch, *now[:2])
            failures = 0
        elif code:
            failures += 1
            if failures > 2:
                raise RuntimeError(errors.read_text(errors="replace")[-2000:])
        jobs = batch + jobs


def unfinished(batch, name, k):
    "The rest of a batch after a copy."
    (_, _, end), rest = batch[0], batch[1:]
    while rest and batch[0][0] != name:
        batch, rest = rest, rest[1:]
        end = batch[0][2]
    return ([(name, k + 1, end)] if k + 1 < end else []) + list(rest)


def signal_name(code):
    "How a process ended."
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit {code}"


def shares(n, formats):
    "Jobs of n copies in all, each format by its share; they take turns, so that all begin soon."
    total, rounds = sum(form.share for form in formats.values()), -(-n // RESTART)
    jobs = []
    for turn in range(rounds):
        for name, form in formats.items():
            many = max(1, round(n * form.share / total))
            first, end = many * turn // rounds, many * (turn + 1) // rounds
            if end > first:
                jobs.append((name, first, end))
    return jobs


def run(jobs, seed=0, keep=None, until=None, progress=None):
    """Read damaged copies; for each format counts of what came of them, all faults, and the
    CPU seconds of the slowest copy. A copy that showed a fault is kept in the folder `keep`.
    """
    counts, faults, slowest = {}, [], Counter()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        folder = Path(folder)
        for name, k, kind, outcome, seconds in watch(jobs, seed, folder, until):
            word = outcome.split(":")[0]
            counts.setdefault(name, Counter())[word] += 1
            slowest[name] = max(slowest[name], seconds)
            if word not in ("read", "refused"):
                if word == "fault":
                    faults.append(dict(format=name, number=k, damage=kind, what=outcome[7:]))
                if keep:
                    good = sorted((folder / "good" / re.sub(r"\W", "_", name) / "files").iterdir())
                    there = Path(keep) / re.sub(r"\W", "_", name)
                    shutil.rmtree(there / f"bad{k}", ignore_errors=True)
                    (there / f"bad{k}").mkdir(parents=True)
                    damaged_copy(good, there / f"bad{k}", name, k, seed, shutil.copyfile)
            if progress:
                progress(counts, faults, slowest)
    return counts, faults, dict(slowest)


def memory_folder():
    "A folder in memory, where there is one."
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# ------------------------------------------------------------------ one file, for other tests


def fuzz(
    file,  # a good file
    folder,  # an empty folder is made here
    reader,  # "module:function" that lists the fields of a path
    n,  # number of damaged copies
    arguments="()",  # Python text of further arguments of the reader
):
    "Fail unless all damaged copies are read or refused as they should be."
    folder.mkdir()
    command = [sys.executable, __file__, "one", str(file), str(folder), reader, str(n), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.returncode, done.stderr[-1500:])
    refused = int(done.stdout.split()[-1])
    assert refused > n // 5


def one_file(file, folder, reader, n, arguments):
    "The process of `fuzz`."
    from fuzz_files import fields

    from sslpdl_nb.io.fields import Source

    warnings.simplefilter("ignore")
    module, function = reader.split(":")
    more = eval(arguments, dict(Source=Source))
    good, folder, refused = Path(file), Path(folder), 0
    fields(module, function, good, more)  # packages are imported at the first file
    limit_memory()
    before = open_files(folder)
    for k in range(int(n)):
        path, kind = damaged_copy([good], folder, good.name, k, 0)
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
        outcome = attempt(lambda path: fields(module, function, path, more), path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.unlink()
        assert outcome in ("read", "refused"), (k, kind, outcome)
        refused += outcome == "refused"
        if good.open("rb").read(4) == b"GRIB":  # the netCDF library keeps some files open
            assert open_files(folder) == before, (k, kind, "a file stays open")
    assert not list(folder.iterdir()), "files are left behind"
    print(refused)


if __name__ == "__main__":
    sys.path[0:1] = [str(HERE), str(HERE.parent)]
    if sys.argv[1] == "one":
        one_file(*sys.argv[2:])
    else:
        child(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
