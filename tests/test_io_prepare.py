"From files to a store: complete, accounted for, resumable, the same on threads and on a cluster."

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Lock
from time import sleep

import numpy as np
import pytest
import xarray as xr
from locked import another_process_writes
from real import real
from synthetic import LEVELS, grib2, icon_eu, lambert, reduced_gaussian, truth, upwards

from sslpdl_nb.cli import main
from sslpdl_nb.core import RAIN, VARIABLE_NAMES, VARIABLES, DataError, GridError, get_config
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.types import LambertGrid, UnstructuredGrid, cf_coordinates, crs_attributes
from sslpdl_nb.io import grib
from sslpdl_nb.io import prepare as module
from sslpdl_nb.io.fields import Source
from sslpdl_nb.io.lexicon import SOURCES
from sslpdl_nb.io.nwp import check_nwp, scan
from sslpdl_nb.io.prepare import forecast_on_grid, manifest, prepare, summary
from sslpdl_nb.store import Standardizer, load_splits, moments, open_store, statistics
from sslpdl_nb.verify import count_events

NWP = LambertGrid(
    nx=12, ny=14, dx=30e3, x0=-170e3, y0=-200e3, lon0=128.0, lat0=38.0, parallels=(35.0, 50.0)
)
QPE = LambertGrid(nx=6, ny=7, dx=30e3, x0=60e3, y0=-100e3)
USUAL = dict(gh100=16500, gh500=5700, gh850=1500, slp=101000, rh500=50, rh850=70)
USUAL |= dict(t2m=290, t500=260, t850=280, rain=1.0)
DAY = np.timedelta64(1, "D")
FIRST = np.datetime64("2001-06-01", "ns")


def forecast(day, leads=(6, 12), seed=0):
    "A forecast of one reference time: usual values and noise."
    rng, shape = np.random.default_rng((seed, day)), (1, len(leads), *NWP.shape)
    dims = ("time", "lead_time", "y", "x")
    data = {"crs": ((), 0, crs_attributes(NWP))}
    for v in VARIABLES:
        values = (USUAL.get(v.name, 5) + rng.uniform(0, 1, shape)).astype(np.float32)
        data[v.name] = (dims, values, {"units": v.units})
    lead_time = np.array(leads, "timedelta64[h]").astype("timedelta64[ns]")
    return xr.Dataset(data, dict(time=[FIRST + day * DAY], lead_time=lead_time) | MAP[NWP])


def observation(day, hours=(6, 12), seed=1):
    "Observed rain of a day; the southernmost row is never observed."
    rng = np.random.default_rng((seed, day))
    rain = rng.gamma(0.3, 3.0, (len(hours), *QPE.shape)).astype(np.float32)
    rain[:, 0] = np.nan
    time = FIRST + day * DAY + np.array(hours, "timedelta64[h]")
    return xr.Dataset(
        {
            "rain": (("time", "y", "x"), rain, {"units": "mm h-1"}),
            "crs": ((), 0, crs_attributes(QPE)),
        },
        dict(time=time) | MAP[QPE],
    )


MAP = {grid: cf_coordinates(grid) for grid in (NWP, QPE)}


@pytest.fixture
def archive(tmp_path):
    "Five days of forecasts and observations, one file each."
    for kind, make in (("nwp", forecast), ("qpe", observation)):
        (tmp_path / kind).mkdir()
        for day in range(5):
            make(day).to_netcdf(tmp_path / kind / f"{kind}{day}.nc")
    return tmp_path


def silent(text):
    pass


def go(archive, out="store.zarr", **options):
    "Prepare the archive."
    options = dict(source="sslpdl", say=silent, progress=False) | options
    return prepare(archive / "nwp", archive / "qpe", archive / out, **options)


# ------------------------------------------------------------------ files of many kinds


def icon_archive(tmp_path, hours=(2,)):
    "A forecast of ICON-EU, a file for each variable, and rain of some of its hours."
    (tmp_path / "nwp").mkdir()
    icon_eu(tmp_path / "nwp", grib._eccodes("test"))
    grid = LambertGrid(4, 3, 10e3, 0.0, 0.0, lon0=5.6, lat0=45.4, parallels=(45.0, 46.0))
    valid = np.datetime64("2024-07-01", "ns") + np.array(hours, "timedelta64[h]")
    rain = (("time", "y", "x"), np.ones((len(hours), *grid.shape), np.float32), {"units": "mm h-1"})
    ds = xr.Dataset({"rain": rain, "crs": ((), 0, crs_attributes(grid))}, dict(time=valid))
    ds.assign_coords(cf_coordinates(grid)).to_netcdf(tmp_path / "qpe.nc")
    return tmp_path / "nwp", tmp_path / "qpe.nc"


def test_one_file_for_each_variable_and_the_ground_without_a_time(tmp_path):
    nwp, qpe = icon_archive(tmp_path)
    cells = dict(clat=("cell", [0.8, 0.81]), clon=("cell", [0.1, 0.11]))
    xr.Dataset(cells, attrs=dict(uuidOfHGrid="a27b8de6")).to_netcdf(nwp / "icon_grid.nc")
    for file in nwp.glob("*pmsl*"):  # derived from the ground instead
        file.unlink()
    for hour in (1, 2):
        keys, lon, lat = upwards(0.0625, 45.0, 46.0, 5.0, 6.5)
        pressure = grib2(grib._eccodes("test"), "edzw", keys, "pres", 95000 + 0 * lat, hour=hour)
        (nwp / f"icon-eu_{hour}_ps.grib2").write_bytes(pressure)
    store = prepare(nwp, qpe, tmp_path / "s.zarr", source="icon-eu", say=silent, progress=False)
    assert manifest(store)["refused"] == {}
    samples = open_store(store)
    assert samples.sizes["sample"] == 1 and np.isfinite(samples["forecast"]).all()
    slp = samples["forecast"][0, list(VARIABLE_NAMES).index("slp")].values
    assert abs(slp - 95000 * (1 + 50 * 9.81 / 287 / 290)).max() < 50  # the ground is at 50 m


def test_no_sample_for_lack_of_variables_is_told_with_a_table(tmp_path):
    nwp, qpe = icon_archive(tmp_path)
    for file in nwp.glob("*_500_*"):
        file.unlink()
    with pytest.raises(DataError) as error:
        prepare(nwp, qpe, tmp_path / "s.zarr", source="icon-eu", say=silent, progress=False)
    problem, _, table = str(error.value).partition("\n\n")
    assert "lack variables" in problem and table.splitlines()[0].startswith("variable")
    assert "rh500     0/2    -> no r at 500 hPa; r is at 850, 100" in table and "ICON" in table


def test_points_without_rows_are_prepared(tmp_path, monkeypatch):
    "Samples of a forecast on a reduced Gaussian grid: constants stay what they are."
    points = UnstructuredGrid(*reduced_gaussian(24))

    def scattered(file, source):
        return [
            replace(f, grid=points, read=partial(np.full, points.shape, float(f.read().mean())))
            for f in scan(file, source)
        ]

    nwp, qpe = icon_archive(tmp_path)
    monkeypatch.setattr(module, "scan", scattered)
    for regridding in ("bilinear", "conservative", "nearest"):
        options = dict(source="icon-eu", say=silent, progress=False, regridding=regridding)
        samples = open_store(prepare(nwp, qpe, tmp_path / f"{regridding}.zarr", **options))
        fields = samples["forecast"].values[0]
        assert np.allclose(fields, fields[:, :1, :1], rtol=1e-6) and np.isfinite(fields).all()
        assert 5000 < fields[list(VARIABLE_NAMES).index("gh500"), 0, 0] < 6000


# ------------------------------------------------------------------ what is in the store


def test_samples_are_forecast_and_rain_of_one_valid_time(archive):
    samples = open_store(go(archive))
    regridder = Regridder.between(NWP, QPE)
    assert samples.sizes["sample"] == 10
    for k in range(10):
        day, lead = divmod(k, 2)
        nwp, qpe = forecast(day).isel(time=0, lead_time=lead), observation(day).isel(time=lead)
        fields = np.stack([regridder(nwp[n].values) for n in VARIABLE_NAMES])
        assert np.allclose(samples["forecast"][k], fields, atol=1e-4)
        assert np.allclose(samples["rain"][k], qpe["rain"], equal_nan=True)
        assert samples["valid_time"].values[k] == qpe["time"].values
        assert samples["lead_time"].values[k] == (6, 12)[lead]
        assert samples["reference_time"].values[k] == FIRST + day * DAY


def test_statistics_of_the_store_are_those_of_its_samples(archive):
    samples = open_store(go(archive))
    mean, std = statistics(samples["moments"].values)
    fit = Standardizer.fit(samples)
    assert np.allclose(mean, fit.mean, rtol=1e-6)
    assert np.allclose(std, fit.std, rtol=1e-4)


def test_training_reads_the_store(archive):
    store, config = go(archive), get_config(image_size=(4, 4))  # the middle of the grid
    splits, lazy = (load_splits(store, config, memory=m, gap=0) for m in (4e9, 0))
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 10
    assert lazy.train.lazy
    assert splits.train[1]["x"].shape == (16, 4, 4)
    assert np.allclose(splits.train[1]["x"], lazy.train[1]["x"], atol=1e-5)
    assert np.isfinite(splits.standardizer.mean).all()


def test_rain_of_other_hours_is_no_match(archive):
    three = Source(SOURCES["sslpdl"].fields, rain=3, amounts=("rain",))
    for day in range(5):
        ds = forecast(day)
        ds["rain"].attrs["units"] = "mm"
        ds.to_netcdf(archive / f"nwp/nwp{day}.nc")
    with pytest.raises(DataError, match=r"rain of 1 h \(files give 3 h\)"):
        go(archive, "one.zarr", source=three)
    store = go(archive, "three.zarr", source=three, accumulation=3.0, min_valid=0.3)
    samples = open_store(store)
    assert samples.sizes["sample"] == 10
    rain = samples["forecast"].values[:, RAIN]  # amounts of 1 to 2 mm in three hours
    assert 1 / 3 <= rain.min() < 2 / 3


def test_another_target_grid(archive):
    target = LambertGrid(nx=5, ny=6, dx=40e3, x0=50e3, y0=-90e3)
    ds = xr.Dataset({"crs": ((), 0, crs_attributes(target))}, cf_coordinates(target))
    ds.to_netcdf(archive / "grid.nc")
    samples = open_store(go(archive, grid=archive / "grid.nc"))
    assert samples["rain"].shape == (10, 6, 5)
    assert np.isfinite(samples["forecast"]).all()
    degrees = {"grid_mapping_name": "latitude_longitude"}
    ds = xr.Dataset({"crs": ((), 0, degrees)}, dict(x=[1.0, 2.0], y=[1.0, 2.0]))
    ds.to_netcdf(archive / "degrees.nc")
    with pytest.raises(GridError, match="Lambert"):
        go(archive, "d.zarr", grid=archive / "degrees.nc")


# ------------------------------------------------------------------ the account


def test_everything_dropped_is_counted(archive):
    damaged = archive / "nwp/nwp1.nc"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    (archive / "qpe/qpe2.nc").unlink()  # no observation
    forecast(3).drop_vars("t500").to_netcdf(archive / "nwp/nwp3.nc")  # lacks a variable
    bad = forecast(4)
    bad["t850"][0, 1] = 20.0
    bad.to_netcdf(archive / "nwp/nwp4.nc")  # nonsense at one lead time
    store = go(archive)
    account = manifest(store)
    assert account["samples"] == 3
    assert account["without_observation"] == 2
    assert [entry["reason"] for entry in account["lacking_variables"]] == ["t500"] * 2
    assert [path.endswith("nwp1.nc") for path in account["refused"]] == [True]
    (dropped,) = account["dropped"]
    assert "t850" in dropped["reason"]
    assert (dropped["reference_time"], dropped["lead_time"]) == ("2001-06-05T00:00", 12)
    assert open_store(store).sizes["sample"] == 3
    assert "3 samples from 4 runs" in summary(account)
    assert "t850" in summary(account) and "2 times: t500" in summary(account)


def test_one_of_a_thing_is_told_in_the_singular():
    one = dict(reference_time="2001-06-01T00:00", lead_time=6, reason="t500")
    account = dict(samples=1, runs=1, images=1, files=dict(forecast=1), small_negatives=1)
    account |= dict(refused={"a": "b"}, lacking_variables=[one], dropped=[one])
    text = summary(account | dict(without_observation=1, incomplete_windows=1))
    assert "1 sample from 1 run (1 forecast file, 1 image of rain)" in text
    assert "1 file or run refused" in text and "1 lead time lacks variables" in text
    assert "1 lead time without observation, 1 hour of rain" in text
    assert "1 sample dropped" in text and "1 slightly negative value of rain" in text


def test_one_odd_run_or_image_does_not_end_the_year(archive):
    forecast(3, seed=9).to_netcdf(archive / "nwp/nwp3_again.nc")  # same fields, other values
    observation(2).to_netcdf(archive / "qpe/again.nc")  # the same images twice
    foreign = observation(9).isel(x=slice(0, 4))  # another grid, first in the folder
    foreign.to_netcdf(archive / "qpe/aaa_foreign.nc")
    store = go(archive)
    account = manifest(store)
    refused = account["refused"]
    assert open_store(store).sizes["sample"] == 8
    assert set(refused) == {"run of 2001-06-04T00:00", "qpe2.nc", "aaa_foreign.nc"}
    assert "one field" in refused["run of 2001-06-04T00:00"]
    assert "overlap" in refused["qpe2.nc"]
    assert "grid" in refused["aaa_foreign.nc"]
    assert "3 files or runs refused" in summary(account)


def test_a_store_without_samples_is_not_finished(archive, monkeypatch):
    def fails(step):
        raise DataError("made-up reason")

    monkeypatch.setattr(module, "evaluate", fails)
    with pytest.raises(DataError, match="first reason: made-up reason"):
        go(archive)
    with pytest.raises(DataError, match="unfinished"):
        open_store(archive / "store.zarr")
    assert len(manifest(archive / "store.zarr")["dropped"]) == 10


def test_nothing_to_prepare(archive):
    with pytest.raises(DataError, match="rain files: expected images of rain, found none"):
        prepare(archive / "grib", archive / "nowhere", archive / "x.zarr", source="sslpdl")
    for path in (archive / "qpe").iterdir():
        path.unlink()
    observation(90).to_netcdf(archive / "qpe/late.nc")
    with pytest.raises(DataError, match="10 lead times without observation"):
        go(archive)
    assert not (archive / "store.zarr").exists()
    with pytest.raises(DataError, match="manifest"):
        manifest(archive / "store.zarr")


def test_missing_and_damaged_files_are_noted(archive):
    paths = [archive / "nwp", archive / "gone.nc"]
    store = prepare(
        paths, archive / "qpe", archive / "s.zarr", source="sslpdl", say=silent, progress=False
    )
    assert list(manifest(store)["refused"]) == [str(archive / "gone.nc")]
    (store / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest"):
        manifest(store)


# ------------------------------------------------------------------ resuming


def test_resumes_where_it_stopped(archive, monkeypatch):
    calls, evaluate = [], module.evaluate

    def dies(step):
        calls.append(step.reference_time)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(step)

    monkeypatch.setattr(module, "evaluate", dies)
    with pytest.raises(KeyboardInterrupt):
        go(archive, workers=1)
    with pytest.raises(DataError, match="unfinished"):
        open_store(archive / "store.zarr")
    done = len(list((archive / "store.zarr/notes").glob("*.json")))
    assert done == 2
    before = len(calls)
    store = go(archive, workers=1)
    assert len(calls) - before == 2 * (5 - done)
    monkeypatch.setattr(module, "evaluate", evaluate)
    resumed, other = open_store(store), open_store(go(archive, "other.zarr"))
    assert resumed.equals(other)


@pytest.mark.parametrize("moment", ["store", "notes", "plan", "rename"])
def test_killed_while_the_store_is_created_the_same_command_goes_on(archive, monkeypatch, moment):
    def dies(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        if moment == "store":  # half of the arrays are there
            import zarr

            m.setattr(zarr.Group, "create_array", dies)
        elif moment == "notes":
            m.setattr(Path, "mkdir", only_outside("notes", Path.mkdir, 0))
        elif moment == "plan":
            m.setattr(module, "write_json", dies)
        else:
            m.setattr(module.os, "replace", only_outside("store.zarr", os.replace, 1))
        with pytest.raises(KeyboardInterrupt):
            go(archive)
    assert not (archive / "store.zarr").exists()
    assert open_store(go(archive)).sizes["sample"] == 10
    assert sorted(p.name for p in archive.iterdir()) == ["nwp", "qpe", "store.zarr"]


def only_outside(name, function, number):
    "A function that stops the program where one of its arguments is a path of this name."

    def stops(*args, **options):
        if Path(args[number]).name == name:
            raise KeyboardInterrupt
        return function(*args, **options)

    return stops


def test_killed_at_random_moments_it_ends_with_the_same_arrays(tmp_path):
    "The benchmark with few kills; it ends with an error if anything is lost."
    script = Path(__file__).parent.parent / "benchmarks" / "robustness.py"
    options = ["kill", "--works", "prepare", "--times", "3", "--days", "3"]
    options += ["--out", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, "-P", script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = json.loads((tmp_path / "found.json").read_text())["kill"]["works"].values()
    assert len(found["kills"]) == 3 and found["completed"] > 0
    assert "left behind" not in done.stdout


def test_killed_while_an_old_store_is_deleted_nothing_of_it_is_taken(archive, monkeypatch):
    store = go(archive)

    def dies(path):
        (path / "forecast" / "zarr.json").unlink()  # deleting has begun
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(module.shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            go(archive, fresh=True)
    assert not store.exists()
    assert open_store(go(archive)).sizes["sample"] == 10
    assert np.isfinite(open_store(store)["forecast"]).all()
    go(archive, fresh=True)
    assert sorted(p.name for p in archive.iterdir()) == ["nwp", "qpe", "store.zarr"]


def test_pieces_that_were_cut_off_are_removed(archive):
    store = go(archive)
    next((store / "notes").glob("*.json")).unlink()
    piece = store / "forecast" / "c" / "0.12ab.partial"
    piece.write_bytes(b"half")
    go(archive)
    assert not piece.exists()


def test_every_file_is_listed_once_before_it_is_read(archive, monkeypatch):
    listed, scan = [], module.scan

    def counted(file, source):
        listed.append(file.path.name)
        return scan(file, source)

    def nothing(*args):
        return None

    monkeypatch.setattr(module, "scan", counted)
    monkeypatch.setattr(module, "_compute", nothing)
    with pytest.raises(IndexError):  # no run was read
        go(archive)
    assert sorted(listed) == [f"nwp{day}.nc" for day in range(5)]


def test_files_of_a_run_that_are_far_apart_are_paired_together(archive, monkeypatch):
    for day in range(5):
        (archive / f"nwp/nwp{day}.nc").unlink()
        for lead in (6, 12):
            forecast(day).sel(lead_time=[np.timedelta64(lead, "h")]).to_netcdf(
                archive / f"nwp/{lead:02}_{day}.nc"
            )
    together = open_store(go(archive))
    assert together.sizes["sample"] == 10
    assert manifest(archive / "store.zarr")["runs"] == 5


# ------------------------------------------------------------------ two processes, a full disk


def test_a_store_that_another_process_writes_is_refused(archive):
    with another_process_writes(archive / "store.zarr") as number:
        with pytest.raises(DataError, match=f"store.zarr.lock locked by process {number} on "):
            go(archive)
        assert not (archive / "store.zarr").exists()
    assert open_store(go(archive)).sizes["sample"] == 10


def test_a_full_disk_is_named_and_the_work_goes_on_with_more_room(archive, monkeypatch):
    import zarr

    write = zarr.Array.__setitem__
    calls = []

    def full(array, *args):
        calls.append(array)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(array, *args)

    with monkeypatch.context() as m:
        m.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(DataError, match="writing .*store.zarr: expected room.*No space left"):
            go(archive, workers=1)
    assert open_store(go(archive)).equals(open_store(go(archive, "other.zarr")))


LIMITED = """
import resource, sys
from sslpdl_nb.cli import main

if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))  # no file may be larger
sys.exit(main(sys.argv[2:]))
"""


def command(archive, store) -> list:
    "The words after `sslpdl`."
    files = ["--nwp", str(archive / "nwp"), "--qpe", str(archive / "qpe"), "--out", str(store)]
    return ["prepare", *files, "--source", "sslpdl"]


def in_the_terminal(archive, store, limit, start=()):
    "`sslpdl prepare` in a process that has no rights of an administrator and perhaps no room."
    words = [*start, sys.executable, "-c", LIMITED, limit, *command(archive, store)]
    return subprocess.run(words, capture_output=True, text=True)


def test_without_room_or_permission_the_command_names_the_store(archive):
    pytest.importorskip("resource")
    closed = archive / "closed"
    closed.mkdir(mode=0o555)
    start = []
    if os.geteuid() == 0:  # permissions bind the administrator only without these capabilities
        start = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        if shutil.which("setpriv") is None:
            pytest.skip("an administrator without setpriv")
    done = in_the_terminal(archive, closed / "store.zarr", "free", start)
    assert done.returncode == 2, done.stderr
    assert "closed/store.zarr: expected room and permission, found PermissionError" in done.stderr
    assert "Traceback" not in done.stderr and list(closed.iterdir()) == []
    store = archive / "store.zarr"
    done = in_the_terminal(archive, store, "full")
    assert done.returncode == 2, done.stderr
    assert "store.zarr: expected room and permission, found OSError" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (store / "manifest.json").exists()
    assert main(command(archive, store)) == 0  # the same command, with more room
    assert open_store(store).equals(open_store(go(archive, "other.zarr")))


def test_paths_with_spaces_and_umlauts_and_links(archive):
    folder = archive / "Größe und Ort, São Tomé"
    folder.mkdir()
    for kind in ("nwp", "qpe"):
        (archive / kind).rename(folder / kind)
    store = go(folder, "Speicher für Übung.zarr")
    assert open_store(store).sizes["sample"] == 10
    (archive / "disk").mkdir()
    (folder / "link.zarr").symlink_to(archive / "disk" / "real.zarr")
    go(folder, "link.zarr")
    assert (folder / "link.zarr").is_symlink()
    assert open_store(folder / "link.zarr").equals(open_store(store))


def test_refuses_to_mix(archive):
    store = go(archive)
    with pytest.raises(DataError, match="--fresh"):
        go(archive, min_valid=0.5)
    forecast(5).to_netcdf(archive / "nwp/nwp5.nc")
    with pytest.raises(DataError, match="--fresh"):
        go(archive)
    assert go(archive, fresh=True) == store
    (archive / "full").mkdir()
    (archive / "full/diary.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        go(archive, "full", fresh=True)
    assert (archive / "full/diary.txt").exists()


def test_changed_files_are_another_question(archive):
    file = archive / "nwp/nwp1.nc"
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))  # damaged, of the same size and date
    os.utime(file, (10**9, 10**9))
    store = go(archive)
    assert open_store(store).sizes["sample"] == 8
    next((store / "notes").glob("*.json")).unlink()
    file.write_bytes(whole)
    os.utime(file, (10**9, 10**9))
    with pytest.raises(DataError, match="files, options and samples"):
        go(archive)  # the samples would have other numbers
    go(archive, fresh=True)
    os.utime(file, (10**9 + 1, 10**9 + 1))
    with pytest.raises(DataError, match="files, options and samples"):
        go(archive)


def test_a_changed_zarr_folder_is_another_question(archive):
    (archive / "nwp/nwp1.nc").unlink()
    forecast(1).to_zarr(archive / "nwp/nwp1.zarr", consolidated=False)
    store = go(archive)
    assert open_store(store).sizes["sample"] == 10
    go(archive)  # the same question
    next((store / "notes").glob("*.json")).unlink()
    forecast(1, seed=5).to_zarr(archive / "nwp/nwp1.zarr", mode="w", consolidated=False)
    with pytest.raises(DataError, match="files, options and samples"):
        go(archive)
    store = go(archive, fresh=True)
    chunk = next(p for p in (archive / "nwp/nwp1.zarr").rglob("c/*/*") if p.is_file())
    os.utime(chunk, (2**31, 2**31))  # one piece was written again
    with pytest.raises(DataError, match="files, options and samples"):
        go(archive)


def test_only_own_stores_are_deleted(archive):
    observation(0).to_zarr(archive / "theirs.zarr", consolidated=False)
    with pytest.raises(DataError, match="something else"):
        go(archive, "theirs.zarr", fresh=True)
    assert (archive / "theirs.zarr/zarr.json").exists()
    store = go(archive)
    for path in (archive / "qpe").iterdir():
        path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="images of rain"):
        go(archive, fresh=True)
    assert open_store(store).sizes["sample"] == 10


def test_two_worker_processes(archive):
    distributed = pytest.importorskip("distributed")
    options = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with distributed.LocalCluster(**options) as cluster:
        there = open_store(go(archive, "there.zarr", scheduler=cluster.scheduler_address))
    here = open_store(go(archive, "here.zarr"))
    for name in ("forecast", "rain", "moments"):
        assert there[name].equals(here[name])


@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_when_it_has_raised_nothing_is_written_any_more(archive, monkeypatch, where):
    "The first run fails while another one still writes."
    begun, guard, another, evaluate = [], Lock(), Event(), module.evaluate

    def fails_or_is_slow(step):
        with guard:
            begun.append(step.reference_time)
        if step.reference_time == begun[0]:
            another.wait(30)
            raise OSError(errno.ENOSPC, "No space left on device")
        another.set()
        sleep(1)
        return evaluate(step)

    monkeypatch.setattr(module, "evaluate", fails_or_is_slow)
    with ExitStack() as stack:
        how = dict(workers=2)
        if where == "cluster":
            distributed = pytest.importorskip("distributed")
            options = dict(n_workers=1, threads_per_worker=2, dashboard_address=None)
            cluster = distributed.LocalCluster(processes=False, **options)
            how = dict(scheduler=stack.enter_context(cluster).scheduler_address)
        with pytest.raises(DataError, match="No space left"):
            go(archive, **how)
        done = [p.stem for p in (archive / "store.zarr/notes").glob("*.json")]
    others = {str(time)[:16].replace(":", "") for time in begun[1:]}
    assert set(done) == others and 1 <= len(others) < 4


def test_a_cluster_that_is_not_there(archive, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def impatient(address, timeout):
        return Client(address, timeout="0.2s")

    Client = distributed.Client
    monkeypatch.setattr(distributed, "Client", impatient)
    with pytest.raises(DataError, match="cluster"):
        go(archive, "nowhere.zarr", scheduler="tcp://127.0.0.1:9")


# ------------------------------------------------------------------ forecasts alone


def test_a_forecast_on_a_grid():
    nwp = check_nwp(forecast(0), "nwp")
    samples = forecast_on_grid(nwp, QPE, "nwp")
    regridder = Regridder.between(NWP, QPE)
    assert samples["lead_time"].values.tolist() == [6, 12]
    assert np.isnan(samples["rain"]).all()
    for k, name in enumerate(VARIABLE_NAMES):
        assert np.allclose(samples["forecast"][1, k], regridder(nwp[name].values[0, 1]))


def test_a_forecast_that_does_not_fit_is_refused():
    nwp = check_nwp(forecast(0), "nwp")
    far = LambertGrid(nx=6, ny=7, dx=30e3, x0=2000e3, y0=-100e3)
    with pytest.raises(GridError, match="nwp: grid.*0%"):
        forecast_on_grid(nwp, far, "nwp")
    nwp["t500"][0, 1] = np.nan
    with pytest.raises(DataError, match="nwp: t500, lead time 12 h"):
        forecast_on_grid(nwp, QPE, "nwp")


def test_moments_of_difficult_fields():
    x = np.full((16, 3, 3), 16500.0)
    x[0, 0, 0] = np.nan
    x[1] = np.nan
    n, mean, squares = moments(x)
    assert (n[0], mean[0], squares[0]) == (8, 16500, 0)
    assert n[1] == 0
    assert np.isfinite(statistics([moments(x), moments(x)])).all()


# ------------------------------------------------------------------ GRIB


def gfs_messages(ec, start):
    "GRIB 2 messages of a forecast for +3 h with the names of GFS, and the grid of KMA."
    grid, lon, lat = lambert()
    known, out = truth(lon, lat), []

    def add(name, values, where=("surface", 0), **more):
        out.append(grib2(ec, "kwbc", grid, name, values, where, hour=3, start=start, **more))

    for p in LEVELS:
        for ours, name in (("gh", "gh"), ("t", "t"), ("rh", "r"), ("u", "u"), ("v", "v")):
            add(name, known[f"{ours}{p}"], ("p", p * 100))
    add("prmsl", known["slp"], ("sea", 0))
    add("t", known["t2m"], ("ground", 2))
    add("u", known["u10"], ("ground", 10))
    add("v", known["v10"], ("ground", 10))
    add("tp", known["rain"], since=2)
    return b"".join(out)


def test_a_grib_file_of_several_reference_times_is_prepared_completely(tmp_path):
    pytest.importorskip("eccodes")
    from sslpdl_nb.io.grib import _eccodes

    ec, (grid, lon, lat) = _eccodes("test"), lambert()
    nwp = tmp_path / "two.grib2"
    nwp.write_bytes(gfs_messages(ec, "2024070100") + gfs_messages(ec, "2024070112"))
    rain = truth(lon, lat)["rain"]
    hours = [grib2(ec, "kwbc", grid, "tp", rain, hour=h, since=h - 1) for h in (3, 15)]
    qpe = tmp_path / "rain.grib2"
    qpe.write_bytes(b"".join(hours))
    options = dict(say=silent, progress=False)
    store = prepare(nwp, qpe, tmp_path / "s.zarr", source="gfs", **options)
    samples = open_store(store)
    assert samples.sizes["sample"] == 2 == manifest(store)["runs"]
    assert np.isfinite(samples["forecast"]).all()
    times = [str(t)[:13] for t in samples["valid_time"].values]
    assert times == ["2024-07-01T03", "2024-07-01T15"]
    with pytest.raises(DataError, match="without observation"):
        prepare(nwp, qpe, tmp_path / "t.zarr", source="era5", **options)


def test_real_files_on_threads_are_paired_and_have_skill(tmp_path):
    pytest.importorskip("eccodes")
    folder = real("wrf-stage2-2005")
    target = LambertGrid(
        nx=32, ny=64, dx=40e3, x0=-620e3, y0=-1260e3, lon0=-97.0, lat0=37.5, parallels=(33.0, 45.0)
    )
    store = prepare(
        folder / "wrf",
        folder / "stage2",
        tmp_path / "us.zarr",
        source="wrf",
        grid=target,
        accumulation=3.0,
        say=silent,
        progress=False,
    )
    samples = open_store(store)
    assert samples.sizes["sample"] == 5
    assert manifest(store)["refused"] == {}
    rain, predicted = samples["rain"].values, samples["forecast"].values[:, RAIN]
    known = np.isfinite(rain) & np.isfinite(predicted)
    assert known.mean() > 0.8
    c = count_events(predicted >= 0.1, rain >= 0.1, known)
    hit_rate = c.hits / (c.hits + c.misses)
    forecast_rate = (c.hits + c.false_alarms) / known.sum()
    assert c.hits > 100 and hit_rate > forecast_rate  # better than chance
