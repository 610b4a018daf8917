"What `inspect` says about every kind of file, and that nothing odd stops it."

import os
import re
import shutil
import zipfile

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from real import real
from synthetic import BUILT, degrees, gfs, grib2, icon_d2, icon_eu, one_variable, world, wrfout

from sslpdl_nb.core import VARIABLE_NAMES, DataError
from sslpdl_nb.grids.types import CurvilinearGrid, LambertGrid, UnstructuredGrid, projected_grid
from sslpdl_nb.io import grib, qpe
from sslpdl_nb.io.inspect import Report, best_source, describe_grid, inspect, numbers_in_words
from sslpdl_nb.io.lexicon import SOURCES

SAMPLE = os.path.join(os.path.dirname(__file__), "..", "data_samples", "tiny")


def only(paths, **options):
    reports = inspect(paths, **options)
    assert len(reports) == 1, [str(r) for r in reports]
    return reports[0]


def line(report, label):
    return " | ".join(text for key, text in report.lines if key == label)


# ------------------------------------------------------------------ words


def test_grids_in_words():
    lambert = describe_grid(LambertGrid(nx=3, ny=2, dx=3000.0, x0=0.0, y0=0.0))
    assert lambert.startswith(
        "Lambert map, 2 rows x 3 columns, 3 x 3 km; 38.00°N 126.00°E to 38.03"
    )
    world = projected_grid("+proj=longlat +R=6371229", [0.0, 0.5, 359.5], [-90.0, 90.0])
    assert "degrees, 2 rows x 3 columns, 0.5 x 180 degrees; 90.00°S 0.00°E" in describe_grid(world)
    stere = projected_grid("+proj=stere +lat_0=90 +R=6371229", [0.0, 1e3], [-2e6, -1.9e6])
    assert "polar stereographic map, 2 rows x 2 columns, 1 x 100 km" in describe_grid(stere)
    lon, lat = np.meshgrid([10.0, 11.0], [50.0, 51.0, 52.0])
    curved = describe_grid(CurvilinearGrid(lon, lat))
    assert "3 rows x 2 columns of points without a map; 50.00°N 10.00°E to 52" in curved
    assert "3 points without rows" in describe_grid(UnstructuredGrid([0.0, 1, 2], [3.0, 4, 5]))


def test_numbers_in_words():
    assert numbers_in_words([2, 1, 1]) == "1, 2"
    assert numbers_in_words(range(0, 49, 3)) == "0 to 48 step 3"
    assert numbers_in_words([*range(9), 12]) == "0 to 12, 10 values"


# ------------------------------------------------------------------ forecasts


@pytest.mark.parametrize("name", sorted(BUILT))
def test_built_files_are_recognised_by_what_they_hold_and_who_made_them(name, tmp_path):
    special = BUILT[name](tmp_path, grib._eccodes("test"))
    report = only(tmp_path)
    assert (report.kind, report.source) == ("forecast", name) and report.missing == []
    assert f"--source {name}" in report.then[0] and report.then[0].startswith("sslpdl prepare")
    assert "16 of 16 variables" in line(report, "source")
    assert line(report, "lead times") == numbers_in_words(special["leads"]) + " h"
    assert "to" in line(report, "grid") and "hPa" in str(report)


def test_no_values_are_read(tmp_path, monkeypatch):
    gfs(tmp_path, grib._eccodes("test"))

    def read(*_):
        raise AssertionError("values were read")

    monkeypatch.setattr(grib, "_grib_values", read)
    report = only(tmp_path)
    assert report.source == "gfs" and "tp of 0-7, 0-8, 6-7, 6-8 h" in line(report, "rain")


def test_what_is_missing_and_where_it_is(tmp_path):
    icon_d2(tmp_path, grib._eccodes("test"))
    report = only(tmp_path)
    assert report.source == "icon-d2" and report.missing == ["gh100"]
    assert "highest level is 200 hPa" in line(report, "what is missing")
    assert f"--nwp {tmp_path} " in report.then[0]  # it is in no file: nothing to wait for
    assert "z is at 850, 500" in str(report) and "31 files" in report.title
    assert all(len(text) <= 100 for text in str(report).splitlines()[1:] if "next:" not in text)


def test_a_message_of_nobody_is_read_with_the_general_table(tmp_path):
    ec = grib._eccodes("test")
    keys, lon, lat = world(10.0)
    content = grib2(ec, "ecmf", keys, "t", 280 + 0 * lat, ("p", 50000))
    content += grib2(ec, "ecmf", keys, "t", 280 + 0 * lat, ("p", 85000))
    (tmp_path / "some file.grib2").write_bytes(content)
    report = only(tmp_path)
    assert report.source == "grib" and len(report.missing) == 14
    assert len(report.then) == 3 and "some file" not in " ".join(report.then)
    assert all(" FORECASTS --" in text for text in report.then[1:])  # one file is not enough


def rain_message(folder, hour, since, **grid):
    "A GRIB file with an amount of rain."
    ec, (keys, _, lat) = grib._eccodes("test"), world(**({"step": 10.0} | grid))
    content = grib2(ec, "kwbc", keys, "tp", hour + 0 * lat, hour=hour, since=since)
    (folder / f"gfs.t00z.pgrb2.f{hour:03}").write_bytes(content)


@pytest.mark.parametrize(
    "periods, option",
    [
        ([(3, 0)], "--accumulation 3 "),
        ([(3, 0), (6, 3)], "--accumulation 3 "),
        ([(1, 0), (4, 1)], ""),  # mixed: one hour is what `prepare` takes anyhow
        ([(6, 0), (9, 3)], "--accumulation 6 "),
    ],
)
def test_the_period_of_the_command(periods, option, tmp_path):
    for hour, since in periods:
        rain_message(tmp_path, hour, since)
    report = only(tmp_path)
    assert report.then[1].endswith(f"--qpe RAIN_FILES {option}--out store.zarr")


def test_rain_since_the_start_at_one_lead_time_only_gives_no_period(tmp_path):
    ec, (keys, _, lat) = grib._eccodes("test"), world(10.0)
    rain_message(tmp_path, 12, 0)
    for hour in (15, 18):
        content = grib2(ec, "kwbc", keys, "t", 280 + 0 * lat, ("ground", 2), hour)
        (tmp_path / f"gfs.t00z.pgrb2.f{hour:03}").write_bytes(content)
    report = only(tmp_path)
    assert line(report, "rain rates") == "means of 12 h" and "1/3" in str(report)
    assert "--accumulation" not in " ".join(report.then)


def test_no_command_for_several_grids(tmp_path):
    rain_message(tmp_path, 1, 0)
    rain_message(tmp_path, 2, 1, step=5.0, east=355.0)
    report = only(tmp_path)
    assert len(report.then) == 1 and report.then[0].startswith("no command for 2 grids")


def test_many_files_are_named_by_their_folder(tmp_path, monkeypatch):
    folder = tmp_path / "my radar"
    folder.mkdir()
    images = xr.open_dataset(os.path.join(SAMPLE, "qpe.nc"))
    for k in range(4):
        images.isel(time=[k]).to_netcdf(folder / f"{k}.nc")
    images.close()
    assert f"--qpe '{folder}' --out" in only(folder).then[0]
    monkeypatch.chdir(tmp_path)
    assert "--qpe 'my radar' --out" in only("my radar").then[0]
    monkeypatch.chdir(folder)
    report = only([f"{k}.nc" for k in range(4)])
    assert "--qpe . --out" in report.then[0]
    assert "--qpe 0.nc 1.nc --out" in only(["0.nc", "1.nc"]).then[0]


def test_rain_of_our_own_form(tmp_path):
    sample = os.path.join(SAMPLE, "nwp.nc")
    report = only(sample)
    assert line(report, "rain rates") == "means of 1 h" and "rain, mean of 1 h" in str(report)
    with xr.open_dataset(sample, decode_timedelta=True) as ds:
        ds = ds.isel(time=[0]).load()
    ds.attrs.pop("source")
    ds.to_netcdf(tmp_path / "unknown.nc")
    report = only(tmp_path / "unknown.nc")
    assert line(report, "rain rates").startswith("as written, of unknown hours")
    assert "rate as written" in str(report) and "instantaneous" not in str(report)
    hours = ("lead_time", [3.0, np.nan, 3.0])
    ds.assign_coords(rain_accumulation=hours).to_netcdf(tmp_path / "three.nc")
    report = only(tmp_path / "three.nc")
    assert line(report, "rain rates") == "means of 3 h" and "rain, mean of 3 h" in str(report)
    assert "--accumulation 3 " in report.then[0]


def test_two_models_in_one_folder_are_two_reports(tmp_path):
    ec = grib._eccodes("test")
    gfs(tmp_path, ec)
    icon_eu(tmp_path, ec)
    shutil.copy(os.path.join(SAMPLE, "qpe.nc"), tmp_path)
    (tmp_path / "notes.txt").write_text("not data")
    found = {(r.kind, r.source) for r in inspect(tmp_path)}
    assert found == {("forecast", "gfs"), ("forecast", "icon-eu"), ("observed rain", "")}


def test_netcdf_forecasts(tmp_path):
    wrfout(tmp_path, None)
    report = only(tmp_path)
    assert report.source == "wrfout" and report.missing == []
    assert "--source" not in report.then[1]
    own = only(os.path.join(SAMPLE, "nwp.nc"))
    assert own.source == "sslpdl" and own.missing == [] and "--source" not in own.then[1]
    assert "--source sslpdl" in own.then[0]


def test_netcdf_that_no_table_knows(tmp_path):
    times = dict(time=[np.datetime64("2020-07-01", "ns")])
    ds = one_variable("Temp_850", ("time", "lat", "lon"), 280, "K", **times, **degrees())
    ds.to_netcdf(tmp_path / "own.nc")
    report = only(tmp_path / "own.nc")
    assert report.kind == "other" and "Temp_850" in line(report, "variable")
    assert "table" in report.then[0]
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "nothing.nc")
    assert only(tmp_path / "nothing.nc").kind == "other"


def test_the_best_source_needs_signs_for_analyses():
    tried = []

    def fields_of(name):
        tried.append(name)
        raise DataError("refused")

    assert best_source(fields_of, "kwbc gfs", ("gfs", "era5")) == ("gfs", [], [])
    assert tried == ["gfs"]
    best_source(fields_of, "ecmf ea x", ("gfs", "era5"))
    assert tried[-1] == "era5"


def test_members_of_an_ensemble_are_told(tmp_path):
    ec = grib._eccodes("test")
    keys, lon, lat = world(10.0)
    members = [grib2(ec, "ecmf", keys, "t", k + 280 + 0 * lat, ("p", 50000)) for k in (0, 1)]
    (tmp_path / "two.grib").write_bytes(b"".join(members))
    report = only(tmp_path)
    assert report.kind == "forecast" and "expected one field" in line(report, "problem")
    assert "t at 500 hPa" in line(report, "levels") and not report.then


# ------------------------------------------------------------------ observed rain, our own files


def test_observed_rain(tmp_path):
    report = only(os.path.join(SAMPLE, "qpe.nc"))
    assert report.kind == "observed rain" and "60 min" in line(report, "period")
    assert "--qpe" in report.then[0] and "%" in line(report, "missing")
    ec = grib._eccodes("test")
    keys, lon, lat = world(10.0)
    rain = grib2(ec, "kwbc", keys, "tp", 1 + 0 * lat, hour=1, since=0)
    (tmp_path / "ST4.2024070101.01h.grb2").write_bytes(rain)
    assert only(tmp_path).kind == "observed rain"
    many = b"".join(grib2(ec, "kwbc", keys, "tp", h + 0 * lat, hour=h, since=0) for h in (1, 2))
    (tmp_path / "ST4.2024070101.01h.grb2").write_bytes(many)  # since the start: a forecast
    assert only(tmp_path).kind == "forecast"


def test_a_rain_image_that_cannot_be_read_is_still_described(monkeypatch):
    def unreadable(*_, **more):
        raise DataError("values: expected readable ones")

    monkeypatch.setattr(qpe, "_netcdf_image", unreadable)
    report = only(os.path.join(SAMPLE, "qpe.nc"))
    assert report.kind == "observed rain" and "expected readable" in line(report, "missing")


def test_a_store_and_a_checkpoint(tmp_path):
    import torch

    from sslpdl_nb.checkpoint import save_checkpoint
    from sslpdl_nb.store import find_store

    store = find_store(SAMPLE) if os.path.isdir(os.path.join(SAMPLE, "store.zarr")) else None
    if store is not None:
        report = only(store)
        assert report.kind == "samples" and "pretrain" in report.then[0]
    meta = dict(kind="finetuned", config=dict(image_size=[64, 32], edges=[0.1, 10]))
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, torch.nn.Linear(2, 2), meta | dict(probability_thresholds=[0.1]))
    report = only(path)
    assert report.kind == "checkpoint" and "predict" in report.then[0]
    assert "[64, 32]" in line(report, "image")
    save_checkpoint(path, torch.nn.Linear(2, 2), meta)
    assert "finetune STORE --init" in only(path).then[0]
    path.write_bytes(path.read_bytes()[:50])
    assert only(path).kind == "unreadable"


# ------------------------------------------------------------------ everything else


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"GRIB" + bytes(60), b"\x89HDF\r\n\x1a\n" + bytes(99), b"CDF\x01"]
)
def test_what_cannot_be_read_is_said(content, tmp_path):
    (tmp_path / "wrong.bin").write_bytes(content)
    report = only(tmp_path / "wrong.bin")
    assert report.kind in ("unreadable", "other") and "wrong.bin" in report.title
    assert len(str(report).splitlines()) >= 2


def test_an_archive_and_a_file_that_is_not_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("data.grib", "content")
    report = only(tmp_path / "a.zip")
    assert report.kind == "unreadable" and "zip" in str(report)
    lost = only(tmp_path / "none.nc")
    assert lost.kind == "unreadable" and "nothing there" in str(lost)
    with pytest.raises(DataError, match="at least one"):
        inspect([])


def test_a_bad_file_among_good_ones(tmp_path):
    gfs(tmp_path, grib._eccodes("test"))
    (tmp_path / "gfs.t00z.pgrb2.0p25.f009").write_bytes(b"GRIB" + bytes(60))
    reports = inspect(tmp_path)
    good = [r for r in reports if r.kind == "forecast"]
    assert len(good) == 1 and good[0].missing == []
    assert any("f009" in str(r) for r in reports)


def test_only_the_first_files_of_a_large_folder_are_opened(tmp_path):
    icon_eu(tmp_path, grib._eccodes("test"))
    report = inspect(tmp_path, most=5)[0]
    assert "the first 5 of 41 files" in line(report, "note") and "5 files" in report.title


def test_a_report_is_text():
    report = Report("a", "other", [("label", "word " * 40)])
    assert max(map(len, str(report).splitlines())) <= 100
    assert re.match("a: other\n  label: ", str(report)) and set(SOURCES) > {report.source or "gfs"}
    assert report.missing == [] and len(VARIABLE_NAMES) == 16


# ------------------------------------------------------------------ real files


def test_real_files_are_recognised():
    assert only(real("wrf-stage2-2005/wrf")).source == "wrf"
    report = only(real("wrf-stage2-2005/wrf"))
    assert report.missing == [] and "--accumulation 3" in report.then[0]
    assert only(real("wrf-stage2-2005/stage2")).kind == "observed rain"
    hrrr = only(real("hrrr/subset_20201214_hrrr.t00z.wrfsfcf12.grib2"))
    assert hrrr.source == "hrrr" and "wrfprsf" in str(hrrr)
    katrina = only(real("wrfout/ci_test_file.nc"))
    assert katrina.source == "wrfout" and "no command for 4 grids" in katrina.then[0]
    knmi = only(real("knmi-radar"), most=12)
    assert knmi.kind == "observed rain" and line(knmi, "period") == "5 min"
    kinds = {(r.kind, r.source) for r in inspect(real("meteonet-nw"))}
    assert {("forecast", "arpege"), ("forecast", "arome"), ("observed rain", "")} <= kinds
    combined = only(real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc"))
    assert combined.source == "met-netcdf"
