"""Damaged copies of files of every format are read or refused; what watches over them sees faults.

`python tools/fuzz.py` reads many more of them.
"""

import importlib.util
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")
pytest.importorskip("h5py")
pytest.importorskip("netCDF4")

import fuzz
from fuzz_files import FORMATS

from sslpdl_nb.core import DataError

TOOL = Path(__file__).parent.parent / "tools" / "fuzz.py"


def tool():
    "The module of tools/, which has the name of another one."
    spec = importlib.util.spec_from_file_location("tools_fuzz", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_copies_of_every_format(tmp_path):
    jobs = fuzz.shares(2000, FORMATS)
    counts, faults, _ = fuzz.run(jobs, seed=0, keep=tmp_path)
    assert faults == []
    assert set(counts) == set(FORMATS)
    assert sum(sum(count.values()) for count in counts.values()) == sum(e - f for _, f, e in jobs)
    assert all(count["refused"] for count in counts.values())


# ------------------------------------------------------------------ faults are seen


def ended(work, n=6):
    "Which numbers ended a process, and how."
    return list(fuzz.in_processes(work, 0, n))


def test_a_process_that_ends_is_noticed_and_the_others_go_on(tmp_path):
    def work(k):
        if k in (2, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / str(k)).touch()

    assert ended(work) == [(2, "SIGKILL"), (3, "SIGKILL")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "4", "5"]


def test_a_loop_without_end_is_noticed():
    def work(k):
        signal.setitimer(signal.ITIMER_PROF, 0.1)
        while k == 1:
            pass
        signal.setitimer(signal.ITIMER_PROF, 0)

    assert ended(work, 3) == [(1, "SIGPROF")]


@pytest.mark.parametrize(
    "error, outcome",
    [
        (DataError("bad.nc: expected this, found that"), "refused"),
        (DataError("expected this, found that"), "fault: nameless"),
        (KeyError("x"), "fault: KeyError"),
        (SystemExit(1), "fault: SystemExit"),
        (MemoryError(), "fault: MemoryError"),
    ],
)
def test_only_errors_that_name_the_file_are_refusals(error, outcome):
    def read(path):
        raise error

    assert fuzz.attempt(read, Path("bad.nc")).startswith(outcome)
    assert fuzz.attempt(str, Path("bad.nc")) == "read"


def test_an_open_file_is_seen(tmp_path):
    before = fuzz.open_files(tmp_path)
    with open(tmp_path / "a", "w"):
        assert fuzz.open_files(tmp_path) == before + 1
    assert not fuzz.stays_open(tmp_path, before)


# ------------------------------------------------------------------ copies and jobs


def test_a_copy_follows_from_its_number(tmp_path):
    good = tmp_path / "good.bin"
    good.write_bytes(bytes(range(256)) * 20)
    kinds = Counter()
    for k in range(200):
        contents = []
        for _ in range(2):
            path, kind = fuzz.damaged_copy([good], tmp_path, "any", k, 0)
            contents.append(path.read_bytes())
            path.unlink()
        assert contents[0] == contents[1]
        kinds[kind.split()[0]] += 1
    assert {"cut", "flip", "splice", "overwrite", "duplicate", "remove"} <= set(kinds)
    assert len(kinds) > 6


def test_of_a_folder_one_part_is_damaged(tmp_path):
    good = tmp_path / "good.zarr"
    (good / "a").mkdir(parents=True)
    for name in ("zarr.json", "a/zarr.json", "a/0"):
        (good / name).write_text('{"shape": [3], "name": "rain", "fill_value": null}')
    changed = 0
    for k in range(50):
        path, _ = fuzz.damaged_copy([good], tmp_path, "any", k, 0)
        there = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
        same = [n for n, content in there.items() if content == (good / n).read_bytes()]
        assert len(same) >= 2
        changed += len(same) == 2
    assert changed > 25


@pytest.mark.parametrize("n", [13, 2000, 10_000])
def test_formats_take_turns(n):
    jobs = fuzz.shares(n, FORMATS)
    assert {name for name, _, _ in jobs[: len(FORMATS)]} <= set(FORMATS)
    for name in FORMATS:
        own = [(first, end) for other, first, end in jobs if other == name]
        assert own[0][0] == 0
        assert all(a[1] == b[0] for a, b in zip(own, own[1:]))
    assert sum(e - f for _, f, e in jobs) == pytest.approx(n, abs=len(FORMATS))


def test_the_rest_of_the_jobs():
    jobs = [["a", 0, 3], ["b", 0, 2], ["c", 0, 2]]
    assert fuzz.unfinished(jobs, "a", 1)[0] == ("a", 2, 3)
    assert fuzz.unfinished(jobs, "a", 2) == [["b", 0, 2], ["c", 0, 2]]
    assert fuzz.unfinished(jobs, "b", 0) == [("b", 1, 2), ["c", 0, 2]]


def test_results_of_both_kinds_share_a_file(tmp_path):
    out, tools_fuzz = tmp_path / "fuzz.json", tool()
    counts = {"GRIB 1": Counter(read=3, refused=2)}
    values = tools_fuzz.byte_result(counts, [], {"GRIB 1": 0.01}, 0, time.time())
    tools_fuzz.write_result("bytes", values, out)
    tools_fuzz.write_result("metadata", dict(messages=7), out)
    whole = json.loads(out.read_text())
    assert whole["bytes"]["inputs"] == 5
    assert whole["bytes"]["formats"]["GRIB 1"]["refused"] == 2
    assert whole["metadata"]["messages"] == 7
    assert whole["metadata"]["versions"]["eccodes"] != "none"
    with pytest.raises(SystemExit):
        tools_fuzz.main([])
