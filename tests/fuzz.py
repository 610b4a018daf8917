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
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CPU_LIMIT = 5.0  # seconds a copy; then the process is ended by SIGPROF
WALL_LIMIT = 120  # seconds without a sign of life
MEMORY = 4 * 2**30  # bytes beyond what the packages need
RESTART = 1000  # copies a process, because the netCDF library keeps some files open


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
    "The good files of a format."
    from fuzz_files import FORMATS

    good = folder / "good" / re.sub(r"\W", "_", name) / "files"
    if not good.exists():
        good.mkdir(parents=True)
        FORMATS[name].write(good)
    return sorted(good.iterdir())


def say(*words):
    print(*words, flush=True)


def limit_memory():
    "Now and 4 GB more."
    status = Path("/proc/self/status")
    if status.exists():
        used = int(re.search(r"VmSize:\s+(\d+)", status.read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def in_processes(work, first, end):
    """Call work(number) for all numbers, in a copy of this process.

    Where one ends the copy, another copy goes on: yields its number and how it ended.
    """
    with tempfile.TemporaryFile() as note:
        while first < end:
            process = os.fork()
            if process == 0:
                status = 1
                try:
                    for number in range(first, end):
                        os.pwrite(note.fileno(), f"{number:<20}".encode(), 0)
                        work(number)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            _, status = os.waitpid(process, 0)
            if status == 0:
                return
            number = int(os.pread(note.fileno(), 20, 0))
            yield number, signal_name(os.waitstatus_to_exitcode(status))
            first = number + 1


def import_all():
    "All packages that read files, once; no file is opened."
    import netCDF4  # noqa: F401
    import xarray as xr

    import sslpdl_nb.checkpoint
    import sslpdl_nb.io.nwp
    import sslpdl_nb.io.prepare
    import sslpdl_nb.io.qpe
    import sslpdl_nb.io.wrf  # noqa: F401
    from sslpdl_nb.io.grib import _eccodes

    _eccodes("fuzz")
    xr.backends.list_engines()


def child(folder, seed, jobs):
    "Read copies; jobs are (format, first number, end). Says what it begins and what came of it."
    warnings.simplefilter("ignore")
    folder = Path(folder)
    import_all()
    for name, first, end in jobs:
        for begin in range(first, end, RESTART):
            copies = Copies(name, folder, seed)
            for k, how in in_processes(copies.read, begin, min(begin + RESTART, end)):
                say(json.dumps(["ended", name, k, how, CPU_LIMIT]))


class Copies:
    "The damaged copies of a format, read one after the other."

    def __init__(self, name, folder, seed):
        from fuzz_files import FORMATS

        self.name, self.folder, self.seed, self.format = name, folder, seed, FORMATS[name]
        self.bad, self.good = folder / "bad", None

    def begin(self):
        "What a new process does first: read the good files."
        shutil.rmtree(self.bad, ignore_errors=True)
        self.bad.mkdir()
        self.good = make_good(self.name, self.folder)
        for path in self.good:
            self.format.read(path)
        forget_open_files()
        limit_memory()
        self.open_before = open_files(self.bad)

    def read(self, k):
        "Make a copy, read it, and say what came of it."
        if self.good is None:
            self.begin()
        path, kind = damaged_copy(self.good, self.bad, self.name, k, self.seed)
        say(json.dumps(["begin", self.name, k, kind]))
        begin = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
        outcome = attempt(self.format.read, path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - begin
        outcome = self.clean(path) or outcome
        say(json.dumps(["end", self.name, k, outcome, round(seconds, 3)]))

    def clean(self, path):
        "Remove a copy; what the reader left behind."
        forget_open_files()
        fault = ""
        if not self.format.hdf5 and stays_open(self.bad, self.open_before):
            fault, self.open_before = "fault: a file stays open", open_files(self.bad)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        left = [p.name for p in self.bad.iterdir()]
        if left:
            fault = f"fault: left behind {left}"
            shutil.rmtree(self.bad)
            self.bad.mkdir()
        return fault


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
    "Read all copies of some jobs; yields (format, number, damage, outcome, seconds)."
    from fuzz_files import FORMATS

    jobs, errors = list(jobs), folder / "errors"
    while jobs:
        command = [sys.executable, __file__, str(folder), str(seed), json.dumps(jobs)]
        with open(errors, "wb") as error_file:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=error_file, start_new_session=True
            )
        now, how = None, ""
        for line in lines_of(process):
            if line is None:
                how = "silence"
            elif line[0] == "begin":
                now = line[1:]
            elif line[0] == "ended":
                how = line[3]
            else:
                yield *now, line[3], line[4]
                jobs, now = unfinished(jobs, *line[1:3]), None
            if how and now is not None:
                outcome = f"fault: process ended: {how} {last_words(errors)}"
                if how == "SIGPROF" and FORMATS[now[0]].hdf5:
                    outcome = "endless: in the HDF5 library"
                yield *now, outcome, CPU_LIMIT
                jobs, now = unfinished(jobs, *now[:2]), None
                if how == "silence":
                    break
                how = ""
            if how or until and time.time() > until:
                break
        finished = process.poll() is not None
        if not finished and jobs:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if jobs and until and time.time() > until:
            return
        if jobs and how != "silence":
            raise RuntimeError(f"{how} {last_words(errors, 2000)}")


def last_words(errors, n=300):
    return errors.read_text(errors="replace").strip()[-n:]


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
