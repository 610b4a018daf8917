"From files to a store: complete, accounted for, resumable, the same on threads and on a cluster."

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sslpdl_nb.io import prepare as module
from sslpdl_nb.core import VARIABLES, DataError, GridError, get_config
from sslpdl_nb.grids.types import LambertGrid, cf_attributes
from sslpdl_nb.store import Standardizer, load_splits, pair
from sslpdl_nb.io.nwp import check_nwp, open_nwp
from sslpdl_nb.io.qpe import check_qpe
from sslpdl_nb.io.nwp import SOURCES
from sslpdl_nb.io.fields import Source
from sslpdl_nb.io.prepare import manifest, moments, open_samples, prepare, statistics, summary
from sslpdl_nb.io.qpe import RADARS, Radar, rain_fields, read_qpe, windows
from sslpdl_nb.io.samples import find_real

NWP = LambertGrid(12, 14, 30e3, -170e3, -200e3, 128.0, 38.0, (35.0, 50.0))
QPE = LambertGrid(6, 7, 30e3, 60e3, -100e3)
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


def cf_coordinates(grid):
    lon, lat = grid.lonlat()
    return dict(y=grid.y, x=grid.x, latitude=(("y", "x"), lat), longitude=(("y", "x"), lon))


def forecast(day, leads=(6, 12), seed=0):
    rng, shape = np.random.default_rng((seed, day)), (1, len(leads), *NWP.shape)
    fields = {
        v.name: (
            ("time", "lead_time", "y", "x"),
            (USUAL.get(v.name, 5) + rng.uniform(0, 1, shape)).astype(np.float32),
            {"units": v.units},
        )
        for v in VARIABLES
    }
    return xr.Dataset(
        fields | {"crs": ((), 0, cf_attributes(NWP))},
        dict(
            time=[np.datetime64("2001-06-01", "ns") + np.timedelta64(day, "D")],
            lead_time=np.array(leads, "timedelta64[h]").astype("timedelta64[ns]"),
        )
        | cf_coordinates(NWP),
    )


def observation(day, hours=(6, 12), seed=1):
    rain = (
        np.random.default_rng((seed, day))
        .gamma(0.3, 3.0, (len(hours), *QPE.shape))
        .astype(np.float32)
    )
    rain[:, :, 0] = np.nan
    return xr.Dataset(
        {
            "rain": (("time", "y", "x"), rain, {"units": "mm h-1"}),
            "crs": ((), 0, cf_attributes(QPE)),
        },
        dict(
            time=np.datetime64("2001-06-01", "ns")
            + np.timedelta64(day, "D")
            + np.array(hours, "timedelta64[h]")
        )
        | cf_coordinates(QPE),
    )


@pytest.fixture
def archive(tmp_path):
    "Five days of forecasts and observations, one file each."
    for kind, make in (("nwp", forecast), ("qpe", observation)):
        (tmp_path / kind).mkdir()
        for day in range(5):
            make(day).to_netcdf(tmp_path / kind / f"{kind}{day}.nc")
    return tmp_path


def go(archive, out="store.zarr", **options):
    return prepare(
        archive / "nwp",
        archive / "qpe",
        archive / out,
        source="sslpdl",
        say=lambda text: None,
        **options,
    )


def test_store_equals_pair(archive):
    samples = open_samples(go(archive))
    nwp = check_nwp(xr.concat([forecast(d) for d in range(5)], "time", data_vars="minimal"), "nwp")
    both = pair(
        nwp,
        check_qpe(
            xr.concat([observation(d) for d in range(5)], "time", data_vars="minimal"), "qpe"
        ),
    )
    assert np.allclose(samples["forecast"], both["forecast"], atol=1e-4) and np.allclose(
        samples["rain"], both["rain"], equal_nan=True
    )
    assert (
        np.array_equal(samples["valid_time"], both["valid_time"])
        and np.array_equal(samples["lead_time"], both["lead_time"])
        and np.array_equal(samples["day"], both["day"])
    )
    mean, std = statistics(samples["moments"].values)
    fit = Standardizer.fit(both)
    assert np.allclose(mean, fit.mean, rtol=1e-6) and np.allclose(std, fit.std, rtol=1e-4)


def test_training_reads_the_store(archive):
    splits = load_splits(go(archive), get_config(image_size=QPE.shape), gap=0)
    lazy = load_splits(archive / "store.zarr", get_config(image_size=QPE.shape), memory=0, gap=0)
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 10 and lazy.train.lazy
    assert np.allclose(splits.train[1]["x"], lazy.train[1]["x"], atol=1e-5)
    smaller = load_splits(archive / "store.zarr", get_config(image_size=(4, 4)), memory=0, gap=0)
    assert (
        smaller.train[0]["x"].shape == (16, 4, 4) and np.isfinite(smaller.standardizer.mean).all()
    )
    for part in splits.samples.values():
        assert {"day", "init_time", "valid_time", "lead_time", "latitude", "longitude"} <= set(
            part.coords
        ) and {"forecast", "rain", "crs"} <= set(part)
        assert (
            part["valid_time"].values
            == part["init_time"].values + (part["lead_time"].values * 3600).astype("timedelta64[s]")
        ).all()


def test_the_folder_of_a_store_will_do(archive):
    go(archive)
    (archive / "data").mkdir()
    (archive / "store.zarr").rename(archive / "data/mine.zarr")
    splits = load_splits(archive / "data", get_config(image_size=QPE.shape), gap=0)
    assert len(splits.train) == 6 and splits.grid == QPE
    with pytest.raises(DataError, match="at least one each"):
        load_splits(
            archive / "data", get_config(image_size=QPE.shape)
        )  # neighbours of the split are too near
    go(archive, "data/other.zarr")
    with pytest.raises(DataError, match="mine.zarr.*other.zarr|other.zarr.*mine.zarr"):
        load_splits(archive / "data", get_config(image_size=QPE.shape))


def test_everything_dropped_is_counted(archive):
    (archive / "nwp/nwp1.nc").write_bytes((archive / "nwp/nwp1.nc").read_bytes()[:3000])  # damaged
    (archive / "qpe/qpe2.nc").unlink()  # no observation
    forecast(3).drop_vars("t500").to_netcdf(archive / "nwp/nwp3.nc")  # lacks a variable
    bad = forecast(4)
    bad["t850"][0, 1] = 20.0
    bad.to_netcdf(archive / "nwp/nwp4.nc")  # nonsense at one lead time
    store = go(archive)
    m = manifest(store)
    assert (
        m["samples"] == 3
        and m["without_observation"] == 2
        and [x[2] for x in m["lacking_variables"]] == ["t500"] * 2
    )
    assert (
        len(m["refused"]) == 1
        and "nwp1.nc" in next(iter(m["refused"]))
        and len(m["dropped"]) == 1
        and "t850" in m["dropped"][0][2]
    )
    assert open_samples(store).sizes["sample"] == 3 and "3 samples from 4 runs" in summary(m)


def test_resumes_where_it_stopped(archive, monkeypatch):
    calls, real = [], module.evaluate

    def dies(step):
        calls.append(step.reference_time)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(step)

    monkeypatch.setattr(module, "evaluate", dies)
    with pytest.raises(KeyboardInterrupt):
        go(archive, workers=1)
    with pytest.raises(DataError, match="unfinished"):
        open_samples(archive / "store.zarr")
    done = len(list((archive / "store.zarr/notes").glob("*.json")))
    assert done == 2
    before = len(calls)
    store = go(archive, workers=1)
    assert len(calls) - before == 2 * (5 - done)
    monkeypatch.setattr(module, "evaluate", real)
    assert open_samples(store).equals(
        open_samples(go(archive, "other.zarr")).assign_attrs(open_samples(store).attrs)
    )


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
    file, whole = archive / "nwp/nwp1.nc", (archive / "nwp/nwp1.nc").read_bytes()
    file.write_bytes(bytes(len(whole)))
    os.utime(file, (10**9, 10**9))  # damaged, of the same size and date
    store = go(archive)
    assert open_samples(store).sizes["sample"] == 8
    next((store / "notes").glob("*.json")).unlink()
    file.write_bytes(whole)
    os.utime(file, (10**9, 10**9))
    with pytest.raises(DataError, match="files, options and samples"):
        go(archive)  # the samples would have other numbers
    go(archive, fresh=True)
    os.utime(file, (10**9 + 1, 10**9 + 1))
    with pytest.raises(DataError, match="files, options and samples"):
        go(archive)


def test_only_own_stores_are_deleted(archive):
    observation(0).to_zarr(archive / "theirs.zarr", consolidated=False)
    with pytest.raises(DataError, match="something else"):
        go(archive, "theirs.zarr", fresh=True)
    assert (archive / "theirs.zarr/zarr.json").exists()
    store = go(archive)
    for p in (archive / "qpe").iterdir():
        p.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="images of rain"):
        go(archive, fresh=True)
    assert open_samples(store).sizes["sample"] == 10


def test_rain_of_other_hours_is_no_match(archive):
    three = Source(SOURCES["sslpdl"].fields, rain=3, amounts=("rain",))
    for day in range(5):
        ds = forecast(day)
        ds["rain"].attrs["units"] = "mm"
        ds.to_netcdf(archive / f"nwp/nwp{day}.nc")

    def make(out, **o):
        return prepare(
            archive / "nwp",
            archive / "qpe",
            archive / out,
            source=three,
            say=lambda text: None,
            **o,
        )

    with pytest.raises(DataError, match=r"rain of 1 h \(files give 3 h\)"):
        make("one.zarr")
    samples = open_samples(make("three.zarr", hours=3.0, min_valid=0.3))
    assert (
        samples.sizes["sample"] == 10 and 1 / 3 <= float(samples["forecast"][0, -1].min()) < 2 / 3
    )
    nwp = open_nwp(archive / "nwp/nwp0.nc", three)
    assert nwp["rain_hours"].values.tolist() == [3, 3]
    with pytest.raises(DataError, match="that of 1 h.*rain of 3 h"):
        pair(nwp, check_qpe(read_qpe(archive / "qpe/qpe0.nc"), "qpe"))
    assert (
        pair(
            nwp, check_qpe(read_qpe(archive / "qpe/qpe0.nc", hours=3.0, min_valid=0.3), "qpe")
        ).sizes["sample"]
        == 2
    )


def test_one_odd_run_or_image_does_not_end_the_year(archive):
    forecast(3, seed=9).to_netcdf(
        archive / "nwp/nwp3_again.nc"
    )  # the same fields with other values
    observation(2).to_netcdf(archive / "qpe/again.nc")  # the same images twice
    observation(9).isel(x=slice(0, 4)).to_netcdf(
        archive / "qpe/aaa_foreign.nc"
    )  # another grid, first in the folder
    store = go(archive)
    refused = manifest(store)["refused"]
    assert open_samples(store).sizes["sample"] == 8 and set(refused) == {
        "run of 2001-06-04T00:00",
        "qpe2.nc",
        "aaa_foreign.nc",
    }
    assert (
        "one field" in refused["run of 2001-06-04T00:00"]
        and "overlap" in refused["qpe2.nc"]
        and "grid" in refused["aaa_foreign.nc"]
    )
    assert "3 files or runs refused" in summary(manifest(store))


def test_a_store_without_samples_is_not_finished(archive, monkeypatch):
    def fails(step):
        raise DataError("made-up reason")

    monkeypatch.setattr(module, "evaluate", fails)
    with pytest.raises(DataError, match="first reason: made-up reason"):
        go(archive)
    with pytest.raises(DataError, match="unfinished"):
        open_samples(archive / "store.zarr")
    assert len(manifest(archive / "store.zarr")["dropped"]) == 10


def test_nothing_to_prepare(archive):
    with pytest.raises(DataError, match="none"):
        prepare(archive / "nwp", archive / "nwp", archive / "x.zarr", source="sslpdl")
    for p in (archive / "qpe").iterdir():
        p.unlink()
    observation(90).to_netcdf(archive / "qpe/late.nc")
    with pytest.raises(DataError, match="10 lead times without observation"):
        go(archive)
    with pytest.raises(DataError, match="store"):
        open_samples(archive / "nothing.zarr")
    assert not (archive / "store.zarr").exists()


def test_two_worker_processes(archive):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        there = open_samples(go(archive, "there.zarr", scheduler=cluster.scheduler_address))
    here = open_samples(go(archive, "here.zarr"))
    assert (
        there["forecast"].equals(here["forecast"])
        and there["rain"].equals(here["rain"])
        and there["moments"].equals(here["moments"])
    )
    with pytest.raises(DataError, match="cluster"):
        go(archive, "nowhere.zarr", scheduler="tcp://127.0.0.1:9")


def test_another_target_grid(archive):
    target = LambertGrid(5, 6, 40e3, 50e3, -90e3)
    xr.Dataset({"crs": ((), 0, cf_attributes(target))}, cf_coordinates(target)).to_netcdf(
        archive / "grid.nc"
    )
    samples = open_samples(go(archive, grid=archive / "grid.nc"))
    assert samples["rain"].shape == (10, 6, 5) and np.isfinite(samples["forecast"]).all()
    xr.Dataset(
        {"crs": ((), 0, {"grid_mapping_name": "latitude_longitude"})},
        dict(x=[1.0, 2.0], y=[1.0, 2.0]),
    ).to_netcdf(archive / "degrees.nc")
    with pytest.raises(GridError, match="Lambert"):
        go(archive, "d.zarr", grid=archive / "degrees.nc")


def test_damaged_store(archive):
    store = go(archive)
    next(p for p in (store / "forecast/c").rglob("*") if p.is_file()).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="readable"):
        open_samples(store)
    (store / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest"):
        manifest(store)


def test_moments_of_difficult_fields():
    x = np.full((16, 3, 3), 16500.0)
    x[0, 0, 0] = np.nan
    x[1] = np.nan
    n, mean, q = moments(x)
    assert n[0] == 8 and n[1] == 0 and mean[0] == 16500 and q[0] == 0
    assert np.isfinite(statistics([moments(x), moments(x)])).all()


def test_real_files_on_threads(tmp_path):
    folder = find_real("wrf-stage2-2005")
    if folder is None:
        pytest.skip("no real files: set SSLPDL_DATA")
    target = LambertGrid(
        32, 64, 40e3, -620e3, -1260e3, lon0=-97.0, lat0=37.5, parallels=(33.0, 45.0)
    )
    store = prepare(
        folder / "wrf",
        folder / "stage2",
        tmp_path / "us.zarr",
        source="wrf",
        grid=target,
        hours=3.0,
        say=lambda text: None,
    )
    samples = open_samples(store)
    assert (
        samples.sizes["sample"] == 5
        and json.loads((Path(store) / "manifest.json").read_text())["refused"] == {}
        and np.isfinite(samples["rain"]).mean() > 0.8
    )


# ------------------------------------------------------------------ images of rain in plain NetCDF


def images(path, units, every=60, n=24, value=6.0, **radar):
    "Images of the same rain in every pixel, and what is read from them."
    ds = xr.Dataset(
        {"rain": (("time", "lat", "lon"), np.full((n, 2, 3), value), {"units": units})},
        dict(
            time=np.datetime64("2020-07-01T00", "ns")
            + np.arange(1, n + 1) * np.timedelta64(every * 60, "s"),
            lat=("lat", [34.0, 34.5], {"units": "degrees_north"}),
            lon=("lon", [126.0, 126.5, 127.0], {"units": "degrees_east"}),
        ),
    )
    path.mkdir(exist_ok=True)
    ds.to_netcdf(path / "rain.nc")
    return lambda hours=1.0: read_qpe(
        path / "rain.nc", Radar(("rain",), **radar) if radar else None, hours
    )


@pytest.mark.parametrize(
    "units, every, hours, radar, rate",
    [
        ("mm per hour", 60, 1, {}, 6),
        ("mm per hour", 5, 1, dict(minutes=5), 6),
        ("kg m-2 per 1 h", 60, 1, {}, 6),
        ("mm h-1", 60, 1, {}, 6),
        ("mm", 60, 1, {}, 6),
        ("mm per 5 min", 5, 1, {}, 72),
        ("mm per 5 minutes", 5, 1, dict(minutes=5), 72),
        ("mm per 60 min", 60, 1, {}, 6),
        ("kg m-2 per 3 h", 180, 3, {}, 2),
        ("mm per day", 1440, 24, {}, 0.25),
        ("mm", 360, 6, dict(minutes=360), 1),
        ("mm", 10, 1, dict(minutes=10), 36),
    ],
)
def test_the_span_of_an_image(tmp_path, units, every, hours, radar, rate):
    assert np.allclose(images(tmp_path, units, every, **radar)(hours)["rain"], rate)


@pytest.mark.parametrize(
    "units, every, radar, words",
    [
        ("mm per day", 1440, {}, "spans up to 1 h"),
        ("kg m-2 per 3 h", 180, {}, "spans up to 1 h"),
        ("mm", 360, {}, "one every 360 minutes; say Radar"),
        ("mm", 10, {}, "one every 10 minutes"),
        ("mm per 5 min", 5, dict(minutes=10), "10 .Radar., found 5"),
        ("mm per fortnight", 60, {}, "units"),
    ],
)
def test_the_span_of_an_image_is_not_guessed(tmp_path, units, every, radar, words):
    with pytest.raises(DataError, match=words):
        images(tmp_path, units, every, **radar)()


def test_local_time(tmp_path):
    utc, korea = (
        images(tmp_path / str(h), "mm", minutes=60, offset=h)()["time"].values for h in (0.0, 9.0)
    )
    assert (utc - korea == np.timedelta64(9, "h")).all()


def test_images_left_out_are_noted(tmp_path):
    images(tmp_path, "mm per hour")
    fields, noted = rain_fields(tmp_path / "rain.nc"), {}
    assert (
        windows(fields + fields[:1], refused=noted) == windows(fields)
        and "overlap" in noted["rain.nc"]
    )
    images(
        tmp_path / "half", "mm per 30 min", 60
    )  # half of each hour again: not a double, a misunderstanding
    with pytest.raises(DataError, match="overlap"):
        windows(fields + rain_fields(tmp_path / "half/rain.nc"), refused={})


def test_files_that_say_all_themselves_take_no_advice():
    for name, kind in (
        ("wrf-stage2-2005/stage2/ST2ml2005080710.Grb_G212", "GRIB"),
        ("knmi-radar/RAD_NL25_RAP_5min_201008260000.h5", "KNMI"),
    ):
        file = find_real(name)
        if file is None:
            pytest.skip("no real files: set SSLPDL_DATA")
        own = RADARS["stage" if kind == "GRIB" else "knmi"]
        with pytest.raises(DataError, match=f"Radar for {kind}"):
            rain_fields(file, Radar(own.names, minutes=10))
        early, late = (
            rain_fields(file, Radar(own.names, offset=9.0))[0].reference_time,
            rain_fields(file, own)[0].reference_time,
        )
        assert late - early == np.timedelta64(9, "h")
