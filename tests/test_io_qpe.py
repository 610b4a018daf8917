"""Observed rain: real files and made-up ones of every format, hours that account for each minute.

Damage of any kind is refused by name and never crashes.
"""

import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")  # first: see grib._eccodes

from fuzz import fuzz
from real import real
from small_archive import observation
from synthetic import degrees, grib2, lambert, message, one_variable

from sslpdl_nb.core import DataError, GridError, SSLPDLError
from sslpdl_nb.grids.types import grid_from_cf, projected_grid
from sslpdl_nb.io.fields import Field
from sslpdl_nb.io.lexicon import RAIN_SOURCES, RainSource
from sslpdl_nb.io.qpe import (
    accumulation_windows,
    check_qpe,
    knmi_fields,
    open_qpe,
    rain_fields,
    read_qpe,
    window_mean,
)

ROOT = Path(__file__).resolve().parent.parent
START = np.datetime64("2020-07-01", "ns")
HOUR = np.timedelta64(1, "h")
GRID = projected_grid("+proj=longlat +R=6371229 +no_defs", [126.0, 127.0, 128.0], [36.0, 37.0])
COMBINED = "wrf-stage2-2005/wrf13_stage2_g212_20050807.nc"


# ------------------------------------------------------------------ real files


def test_images_of_meteonet_become_hours():
    file = real("meteonet-nw/meteonet_radar_NW_201608.nc")
    images = rain_fields(file)
    assert len(images) == 45
    assert images[0].start_step == -5 / 60
    assert images[0].grid.shape == (565, 784)
    assert np.isnan(images[0].read()).mean() == pytest.approx(0.125, abs=0.001)
    windows, incomplete = accumulation_windows(images, 1.0, 0.5)
    assert [len(v) for v in windows.values()] == [12, 11]
    assert incomplete > 0
    rain = read_qpe(file, min_valid=0.5)["rain"]
    assert rain.sizes["time"] == 2
    assert 0 <= float(rain.min()) and float(rain.max()) < 100
    assert open_qpe(file).sizes["time"] == 1  # one whole hour
    end = min(windows)
    amounts = [f.read() * 0.01 for f in windows[end]]
    by_hand = np.sum(amounts, 0) / (5 * len(amounts)) * 60
    observed = np.isfinite(by_hand)
    assert np.allclose(rain.sel(time=end).values[observed], by_hand[observed], atol=1e-4)


def test_corners_and_hours_of_knmi():
    files = sorted(real("knmi-radar").glob("*.h5"))
    grid = knmi_fields(files[0])[0].grid  # refused unless its own corners agree
    lon, lat = grid.unproject(grid.x[0] - 500, grid.y[-1] + 500)
    assert abs(lon - 0.0) < 0.005 and abs(lat - 55.974) < 0.005
    radar = np.array(grid.project(4.79, 52.955))  # Den Helder
    assert np.hypot(*(radar - [grid.x.mean(), grid.y.mean()])) < 200e3
    ds = read_qpe(files)
    assert ds.sizes["time"] == 7
    assert grid_from_cf(ds) == grid
    assert 0.2 < float(np.isfinite(ds["rain"]).mean()) < 0.6
    assert read_qpe(files[:12] + files[13:]).sizes["time"] == 6


def test_a_moved_map_of_knmi_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "moved.h5"
    path.write_bytes(sorted(real("knmi-radar").glob("*.h5"))[0].read_bytes())
    with h5py.File(path, "r+") as h:
        h["geographic"].attrs["geo_row_offset"] = np.float32([3600.0])
    with pytest.raises(GridError, match="moved.h5: corners"):
        knmi_fields(path)


def test_grib_agrees_with_the_combined_file():
    pytest.importorskip("eccodes")
    combined = read_qpe(real(COMBINED), "met-netcdf", accumulation=3.0)
    grib = read_qpe(real("wrf-stage2-2005/stage2"), accumulation=3.0)
    one, two = (ds["rain"].sel(time="2005-08-07T12") for ds in (combined, grib))
    assert np.allclose(one, two, atol=0.02, equal_nan=True)
    assert read_qpe(real(COMBINED), accumulation=3.0).equals(combined)  # recognised


def test_lazy_equals_eager():
    pytest.importorskip("eccodes")
    files = sorted(real("wrf-stage2-2005/stage2").iterdir())[:3]
    lazy, eager = read_qpe(files, memory=0), read_qpe(files)
    assert lazy["rain"].chunks
    assert lazy.compute().equals(eager)
    assert check_qpe(lazy, "lazy").compute().equals(check_qpe(eager, "eager"))


@pytest.mark.parametrize(
    "name, kind, own",
    [
        ("wrf-stage2-2005/stage2/ST2ml2005080710.Grb_G212", "GRIB", "stage"),
        ("knmi-radar/RAD_NL25_RAP_5min_201008260000.h5", "KNMI", "knmi"),
    ],
)
def test_files_that_say_everything_take_no_advice(name, kind, own):
    pytest.importorskip("eccodes")
    file, names = real(name), RAIN_SOURCES[own].names
    with pytest.raises(DataError, match=f"RainSource for {kind}"):
        rain_fields(file, RainSource(names=names, minutes=10))
    local = rain_fields(file, RainSource(names=names, utc_offset=9.0))[0]
    utc = rain_fields(file, own)[0]
    assert utc.reference_time - local.reference_time == 9 * HOUR


@pytest.mark.parametrize(
    "name, n",
    [
        ("knmi-radar/RAD_NL25_RAP_5min_201008260150.h5", 150),
        ("meteonet-nw/meteonet_radar_NW_201608.nc", 30),
    ],
)
def test_damaged_images_never_crash(tmp_path, name, n):
    fuzz(real(name), tmp_path / "bad", "sslpdl_nb.io.qpe:rain_fields", n)


# ------------------------------------------------------------------ made-up files of other formats


@pytest.mark.parametrize("epoch", ["1970-01-01", "1980-01-06"])  # both are in use
def test_imerg(tmp_path, epoch):
    h5py = pytest.importorskip("h5py")
    times = np.array(["2020-09-13T13:00", "2020-09-13T13:30"], "datetime64[s]")
    rain = np.full((2, 50, 30), 2.0, "f4")
    rain[0, 3, 4] = -9999.9
    rain[1] = 4
    with h5py.File(tmp_path / "imerg.HDF5", "w") as h:
        group = h.create_group("Grid")
        group["lon"] = np.arange(120, 125, 0.1)
        group["lat"] = np.arange(30, 33, 0.1)
        group["time"] = (times - np.datetime64(epoch)).astype(int)
        group["time"].attrs["units"] = np.bytes_(f"seconds since {epoch} 00:00:00 UTC")
        group["precipitation"] = rain
        group["precipitation"].attrs["units"] = np.bytes_("mm/hr")
    ds = read_qpe(tmp_path / "imerg.HDF5")
    assert ds.sizes == {"time": 1, "y": 30, "x": 50}
    assert str(ds["time"].values[0])[:16] == "2020-09-13T14:00"
    assert np.nanmax(ds["rain"]) == 3
    assert np.isnan(ds["rain"][0, 4, 3])


@pytest.mark.parametrize("advice", [dict(units="0.1 mm/h"), dict(missing=-99.0)])
def test_imerg_takes_no_advice_that_would_be_ignored(tmp_path, advice):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "imerg.h5", "w") as h:
        group = h.create_group("Grid")
        group["lon"], group["lat"] = np.arange(120, 121, 0.1), np.arange(30, 31, 0.1)
        group["time"] = [0]
        group["time"].attrs["units"] = np.bytes_("seconds since 2020-09-13 13:00:00 UTC")
        group["precipitation"] = np.full((1, 10, 10), 2.0, "f4")
    source = RainSource(names=("precipitation",), minutes=30, time_label="start")
    assert len(rain_fields(tmp_path / "imerg.h5", source)) == 1
    with pytest.raises(DataError, match=r"imerg.h5.*RainSource for IMERG"):
        rain_fields(tmp_path / "imerg.h5", replace(source, **advice))


def test_codes_for_missing_in_a_netcdf_grid(tmp_path):
    rain = np.full((2, 3, 3), 1.5, np.float32)
    rain[0, 1, 2] = -999
    xr.Dataset(
        {"RN": (("time", "lat", "lon"), rain, {"units": "mm"})},
        dict(time=START + np.arange(1, 3) * HOUR) | degrees(),
    ).to_netcdf(tmp_path / "k.nc")
    ds = open_qpe(tmp_path / "k.nc", "kma")
    assert np.isnan(ds["rain"][0, 1, 2])
    assert float(ds["rain"].max()) == 1.5
    assert ds.sizes["time"] == 2


@pytest.mark.parametrize("dims", [("time", "lat", "lon"), ("lon", "time", "lat")])
def test_dimensions_in_any_order(tmp_path, dims):
    rain = np.arange(24.0).reshape(2, 4, 3)
    where = degrees(lat=(37.5, 37.0, 36.5, 36.0))  # from north to south
    xr.Dataset(
        {"rain": (("time", "lat", "lon"), rain, {"units": "mm"})},
        dict(time=START + np.arange(1, 3) * HOUR) | where,
    ).transpose(*dims).to_netcdf(tmp_path / "order.nc")
    images = rain_fields(tmp_path / "order.nc")
    assert np.array_equal(images[1].read(), rain[1, ::-1])
    assert images[1].grid.shape == (4, 3)


# ------------------------------------------------------------------ the minutes of an image


def images_in(path, units, every=60, n=24, value=6.0):
    "A NetCDF file of images with the same rain in every pixel; `every` minutes one."
    minutes = np.arange(1, n + 1) * np.timedelta64(every, "m")
    path.mkdir(exist_ok=True)
    coords = dict(time=START + minutes) | degrees()
    ds = one_variable("rain", ("time", "lat", "lon"), value, units, **coords)
    ds.to_netcdf(path / "rain.nc")
    return path / "rain.nc"


@pytest.mark.parametrize(
    "units, every, hours, source, rate",
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
def test_the_minutes_of_an_image(tmp_path, units, every, hours, source, rate):
    file = images_in(tmp_path, units, every)
    source = RainSource(names=("rain",), **source) if source else None
    assert np.allclose(read_qpe(file, source, hours)["rain"], rate)


@pytest.mark.parametrize(
    "units, every, source, words",
    [
        ("mm per day", 1440, {}, "periods up to 1 h"),
        ("kg m-2 per 3 h", 180, {}, "periods up to 1 h"),
        ("mm", 360, {}, "one every 360 minutes; say RainSource"),
        ("mm", 10, {}, "one every 10 minutes"),
        ("mm per 5 min", 5, dict(minutes=10), "10 .source of rain., found 5"),
        ("mm per fortnight", 60, {}, "units"),
    ],
)
def test_the_minutes_of_an_image_are_not_guessed(tmp_path, units, every, source, words):
    file = images_in(tmp_path, units, every)
    source = RainSource(names=("rain",), **source) if source else None
    with pytest.raises(DataError, match=words):
        read_qpe(file, source)


@pytest.mark.parametrize("units", ["mm h-1", "kg m-2 s-1"])
def test_rates_every_five_minutes_ask_for_their_minutes(tmp_path, units):
    with pytest.raises(DataError, match="rain.nc.*one every 5 minutes; say RainSource"):
        rain_fields(images_in(tmp_path, units, 5))


def test_one_image_without_minutes_is_taken_for_an_hour_with_a_warning(tmp_path):
    file = images_in(tmp_path, "mm", n=1)
    with pytest.warns(UserWarning, match="one hour; say RainSource"):
        assert rain_fields(file)[0].start_step == -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rain_fields(file, RainSource(names=("rain",), minutes=10))


# ------------------------------------------------------------------ what CF says


def cf_file(path, name="rain", units="mm", every=10, n=12, bounds=None, attrs=None, value=1.0):
    "Images every some minutes, with bounds of their times: minutes before each of them."
    ends = START + np.arange(1, n + 1) * np.timedelta64(every, "m")
    coords = dict(time=ends) | degrees()
    ds = one_variable(name, ("time", "lat", "lon"), value, units, **coords)
    ds[name].attrs.update(attrs or {})
    if bounds is not None:
        ds["time"].attrs["bounds"] = "time_bnds"
        ds["time"].encoding["units"] = "minutes since 2020-07-01"
        begins = ends - np.timedelta64(bounds[0], "m")
        ends = ends + np.timedelta64(bounds[1], "m")
        ds["time_bnds"] = (("time", "n2"), np.stack([begins, ends], -1))
    ds.to_netcdf(path)
    return path


@pytest.mark.parametrize(
    "units, bounds, rate",
    [("mm", (10, 0), 6), ("mm", (0, 10), 6), ("mm", (5, 5), None), ("mm h-1", (10, 0), 1)],
)
def test_cf_bounds_say_which_minutes_an_image_covers(tmp_path, units, bounds, rate):
    file = cf_file(tmp_path / "cf.nc", units=units, bounds=bounds)
    images = rain_fields(file)
    assert all(f.end_step - f.start_step == pytest.approx(1 / 6) for f in images)
    begin = images[0].reference_time + np.timedelta64(round(images[0].start_step * 60), "m")
    assert begin == START + np.timedelta64(10 - bounds[0], "m")
    if rate is None:  # images that belong to two hours
        with pytest.raises(DataError, match="12 images of 10 minutes"):
            read_qpe(file)
    else:
        assert np.allclose(read_qpe(file)["rain"], rate)


def test_cf_bounds_are_not_contradicted(tmp_path):
    file = cf_file(tmp_path / "cf.nc", bounds=(10, 0))
    with pytest.raises(DataError, match="cf.nc: rain: minutes of an image: expected 5, found 10"):
        rain_fields(file, RainSource(names=("rain",), minutes=5))
    file = cf_file(tmp_path / "unit.nc", units="mm per 5 min", bounds=(10, 0))
    with pytest.raises(DataError, match="expected 5, found 10"):
        rain_fields(file)
    assert len(rain_fields(cf_file(tmp_path / "same.nc", units="mm per 10 min", bounds=(10, 0))))


@pytest.mark.parametrize(
    "standard_name, units, factor",
    [
        ("precipitation_flux", "kg m-2 s-1", 3600),
        ("rainfall_flux", "kg m-2 s-1", 3600),
        ("rainfall_rate", "m s-1", 3.6e6),
        ("lwe_precipitation_rate", "mm h-1", 1),
        ("lwe_thickness_of_precipitation_amount", "m", 1000),
        ("thickness_of_rainfall_amount", "mm", 1),
        ("precipitation_amount", "kg m-2", 1),
    ],
)
def test_cf_standard_names_are_known(tmp_path, standard_name, units, factor):
    about = dict(attrs=dict(standard_name=standard_name), value=5 / factor)
    file = cf_file(tmp_path / "cf.nc", "surface_rain", units, 60, **about)
    assert np.allclose(read_qpe(file)["rain"], 5, rtol=1e-6)


def test_two_variables_that_may_be_meant_are_a_question(tmp_path):
    file = cf_file(tmp_path / "one.nc", "first", attrs=dict(standard_name="rainfall_rate"))
    ds = xr.open_dataset(file).load()
    ds["second"] = ds["first"].assign_attrs(standard_name="precipitation_flux")
    ds.to_netcdf(tmp_path / "two.nc")
    with pytest.raises(DataError, match=r"two.nc: rain.*RainSource.*'first', 'second'"):
        rain_fields(tmp_path / "two.nc")
    second = RainSource(names=("second",), minutes=10)
    assert len(rain_fields(tmp_path / "two.nc", second)) == 12


def test_two_known_names_in_a_file_are_a_question(tmp_path):
    ds = xr.open_dataset(cf_file(tmp_path / "one.nc", "rain")).load()
    ds["tp"] = 10 * ds["rain"]
    ds.to_netcdf(tmp_path / "two.nc")
    with pytest.raises(DataError, match=r"two.nc: rain.*RainSource\(names=.*'rain', 'tp'"):
        rain_fields(tmp_path / "two.nc")
    values = [
        rain_fields(tmp_path / "two.nc", RainSource(names=(name,), minutes=10))[0].read().max()
        for name in ("rain", "tp")
    ]
    assert values == [1, 10]


@pytest.mark.parametrize("units", ["m", "km"])
def test_one_image_with_start_time_on_a_map(tmp_path, units):
    "The form of Australian radars: dates that are variables, a map of Albers in km."
    grid = projected_grid(
        "+proj=aea +lat_1=-18 +lat_2=-36 +lat_0=-27 +lon_0=153 +ellps=GRS80 +no_defs",
        np.arange(4) * 500.0,
        np.arange(3) * 500.0,
    )
    about = dict(
        grid_mapping_name="albers_conical_equal_area",
        standard_parallel=[-18.0, -36.0],
        longitude_of_central_meridian=153.0,
        latitude_of_projection_origin=-27.0,
        semi_major_axis=6378137.0,
        inverse_flattening=298.257222101,
    )
    amounts = np.arange(12.0).reshape(3, 4)
    axes = {
        name: (name, axis / dict(m=1, km=1000)[units], {"units": units, "standard_name": long})
        for name, axis, long in (
            ("x", grid.x, "projection_x_coordinate"),
            ("y", grid.y[::-1], "projection_y_coordinate"),
        )
    }
    rain = dict(units="kg m-2", standard_name="precipitation_amount", grid_mapping="proj")
    xr.Dataset(
        dict(
            valid_time=((), START + HOUR, {"standard_name": "time"}),
            start_time=((), START + HOUR - np.timedelta64(6, "m")),
            precipitation=(("y", "x"), amounts[::-1], rain),
            proj=((), 0, about),
        ),
        axes,
    ).to_netcdf(tmp_path / "one.nc")
    image = rain_fields(tmp_path / "one.nc")[0]
    assert image.reference_time == START + HOUR
    assert 60 * image.start_step == pytest.approx(-6)
    assert np.array_equal(image.read(), amounts)
    assert np.allclose(image.grid.lonlat(), grid.lonlat(), atol=1e-6)


def test_the_time_of_an_image_is_not_that_of_a_forecast(tmp_path):
    coords = dict(
        a_reference=((), START - HOUR, {"standard_name": "forecast_reference_time"}),
        valid=((), START + HOUR, {"standard_name": "time"}),
    )
    ds = one_variable("rain", ("lat", "lon"), 1.0, "mm", **degrees())
    ds.assign_coords(coords).to_netcdf(tmp_path / "one.nc")
    image = rain_fields(tmp_path / "one.nc", RainSource(names=("rain",), minutes=60))[0]
    assert image.reference_time == START + HOUR


# ------------------------------------------------------------------ GRIB


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("hours", [1, 6])
def test_stage_iv_amounts_of_one_and_six_hours(tmp_path, edition, hours):
    ec = pytest.importorskip("eccodes")
    file = tmp_path / f"ST4.{hours:02}h"
    rain = np.arange(12.0).reshape(3, 4)  # first row in the north
    keys = dict(Ni=4, Nj=3, latitudeOfFirstGridPointInDegrees=42.0)
    keys |= dict(latitudeOfLastGridPointInDegrees=40.0, longitudeOfFirstGridPointInDegrees=260.0)
    keys |= dict(longitudeOfLastGridPointInDegrees=263.0, jScansPositively=0)
    keys |= dict(iDirectionIncrementInDegrees=1.0, jDirectionIncrementInDegrees=1.0)
    if edition == 2:
        grid = keys | dict(gridType="regular_ll")
        content = grib2(ec, "kwbc", grid, "tp", rain, hour=hours, since=0)
    else:
        about = dict(centre="kwbc", table2Version=2, indicatorOfParameter=61, P1=0, P2=hours)
        about |= dict(timeRangeIndicator=4, dataDate=20240701, dataTime=0)
        content = message(ec, "regular_ll_sfc_grib1", keys | about, rain)
    file.write_bytes(content)
    ds = read_qpe(file, accumulation=hours)
    assert str(ds["time"].values[0])[:13] == f"2024-07-01T{hours:02}"
    assert np.allclose(ds["rain"][0], rain[::-1] / hours, atol=1e-4)
    if hours == 6:
        with pytest.raises(DataError, match="periods up to 1 h"):
            read_qpe(file)


def test_grib_of_an_instant_needs_minutes(tmp_path):
    ec = pytest.importorskip("eccodes")
    grid, lon, _ = lambert()
    content = grib2(ec, "rksl", grid, "prate", np.full(lon.shape, 1 / 3600), hour=0)
    (tmp_path / "rate.grib2").write_bytes(content)
    with pytest.raises(DataError, match=r"rate.grib2: rain.*tp, or .* MRMS, found \['prate'\]"):
        rain_fields(tmp_path / "rate.grib2")
    with pytest.raises(DataError, match="rate.grib2: prate.*minutes=.*an instant"):
        rain_fields(tmp_path / "rate.grib2", RainSource(names=("prate",)))
    hourly = RainSource(names=("prate",), minutes=60)
    assert np.allclose(read_qpe(tmp_path / "rate.grib2", hourly)["rain"], 1, atol=1e-4)


def test_only_instants_take_the_minutes_of_the_source(tmp_path):
    ec = pytest.importorskip("eccodes")
    rain = np.full((3, 4), 6.0)
    keys = dict(Ni=4, Nj=3, latitudeOfFirstGridPointInDegrees=42.0, jScansPositively=0)
    keys |= dict(latitudeOfLastGridPointInDegrees=40.0, longitudeOfFirstGridPointInDegrees=260.0)
    keys |= dict(longitudeOfLastGridPointInDegrees=263.0, iDirectionIncrementInDegrees=1.0)
    keys |= dict(jDirectionIncrementInDegrees=1.0, centre="kwbc", table2Version=2)
    keys |= dict(indicatorOfParameter=61, dataDate=20240701, dataTime=0)
    hour, instant = (  # an amount of the first hour, and another that covers no time
        message(ec, "regular_ll_sfc_grib1", keys | dict(timeRangeIndicator=4, P1=0, P2=1), rain),
        message(ec, "regular_ll_sfc_grib1", keys | dict(timeRangeIndicator=0, P1=2, P2=0), rain),
    )
    (tmp_path / "mixed.grib").write_bytes(hour + instant)
    ten = RainSource(names=("tp",), minutes=10)
    hours = [(f.start_step, f.end_step) for f in rain_fields(tmp_path / "mixed.grib", ten)]
    assert hours[0] == (0, 1)
    assert hours[1] == pytest.approx((2 - 1 / 6, 2))
    ds = read_qpe(tmp_path / "mixed.grib", ten)
    assert ds.sizes["time"] == 1 and np.allclose(ds["rain"], 6)


# ------------------------------------------------------------------ files of other kinds

OTHERS = {  # first bytes as they are in real files, and a word of the reason
    "picture.gif": (b"GIF89a\xc6\x02\x80\x02", "GIF picture"),
    "old.gif": (b"GIF87a\xc6\x02\x80\x02", "GIF picture"),
    "little.tif": (b"II*\0\x08\0\0\0", "GeoTIFF.*gdal_translate"),
    "big.tif": (b"MM\0*\0\0\0\x08", "GeoTIFF"),
    "composite.pgm": (b"P5\n# composite_area FIN\n", "PGM"),
    "radar.bufr": (b"BUFR\0\0\x10\x03", "BUFR"),
    "bulletin.bufr": (b"\x01\r\r\n123\r\r\nIUPD41 EDZW 010000\r\r\nBUFR", "BUFR"),
    "raa01-rw": (b"RW102050100000814BY1620134VS 3SW   2.13.1PR E-01INT  60GP 900x 900", "RADOLAN"),
    "level2": (b"AR2V0006.736", "polar"),
    "imerg.HDF": (b"\x0e\x03\x13\x01", "HDF4"),
    "grib.gz": (b"\x1f\x8b\x08\0", "archive: unpack"),
    "files.bz2": (b"BZh91AY", "archive: unpack"),
    "odd.bin": (b"\x1b\x00\x08\x00", "bytes"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_by_name(tmp_path, name):
    content, words = OTHERS[name]
    (tmp_path / name).write_bytes(content + bytes(200))
    with pytest.raises(DataError, match=words) as error:
        rain_fields(tmp_path / name)
    assert name in str(error.value)


def test_polar_netcdf_is_refused_by_name(tmp_path):
    coords = dict(azimuth=("azimuth", [0.5, 1.5]), range=("range", [100.0, 200.0]))
    xr.Dataset({"rain": (("azimuth", "range"), np.ones((2, 2)))}, coords).to_netcdf(
        tmp_path / "ppi.nc"
    )
    with pytest.raises(DataError, match="ppi.nc.*polar scan.*cartesian"):
        rain_fields(tmp_path / "ppi.nc")


# ------------------------------------------------------------------ local times, unknown sources


def test_times_may_be_local_or_those_of_the_start(tmp_path):
    file = images_in(tmp_path, "mm")
    about = dict(names=("rain",), minutes=60)
    utc = read_qpe(file, RainSource(**about))["time"].values
    korea = read_qpe(file, RainSource(**about, utc_offset=9.0))["time"].values
    start = read_qpe(file, RainSource(**about, time_label="start"))["time"].values
    assert (utc - korea == 9 * HOUR).all()
    assert (start - utc == HOUR).all()


def test_unknown_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match="source of rain"):
        rain_fields(images_in(tmp_path, "mm"), "no such radar")
    with pytest.raises(DataError, match="rain.nc.*RATE"):
        rain_fields(images_in(tmp_path, "mm"), RainSource(names=("RATE",)))


# ------------------------------------------------------------------ windows


def image(first, last, value=1.0, grid=GRID, file_name="toy.nc"):
    "An image of the hours from `first` to `last`, mm."
    return Field(
        name="rain",
        level_type="surface",
        level=0.0,
        reference_time=START,
        start_step=first,
        end_step=last,
        units="mm",
        file_name=file_name,
        grid=grid,
        read=lambda: np.full(grid.shape, float(value)),
    )


def test_windows_account_for_every_minute():
    twelve = [image(k / 12, (k + 1) / 12) for k in range(12)]
    assert [len(v) for v in accumulation_windows(twelve)[0].values()] == [12]
    assert accumulation_windows(twelve[1:]) == ({}, 1)
    windows, _ = accumulation_windows(twelve[1:], min_valid=0.9)
    assert [len(v) for v in windows.values()] == [11]
    with pytest.raises(DataError, match="overlap"):
        accumulation_windows(twelve + [twelve[3]])
    with pytest.raises(DataError, match="periods up to 1 h"):
        accumulation_windows([image(0.0, 3.0)])
    with pytest.raises(DataError, match="min_valid"):
        accumulation_windows(twelve, 1.0, 0.0)
    with pytest.raises(GridError, match="grid"):
        other = projected_grid("+proj=longlat +R=6371229 +no_defs", [1.0, 2.0], [3.0, 4.0])
        accumulation_windows([*twelve, image(1.0, 1.5, grid=other)])


def test_no_images_make_no_windows():
    with pytest.raises(DataError, match="images of rain: expected at least one, found none"):
        accumulation_windows([])


def test_windows_of_several_hours_slide_by_one():
    hours = [image(float(k), k + 1.0, value=k) for k in range(5)]
    windows, incomplete = accumulation_windows(hours[::-1], accumulation=3.0)
    ends = [round((t - START) / HOUR) for t in windows]
    assert ends == [3, 4, 5]
    assert incomplete == 3  # of +1, +2 and +6 h
    mean = window_mean(windows[START + 4 * HOUR], accumulation=3.0, min_valid=1.0)
    assert (mean == 2).all() and mean.dtype == np.float32


def test_missing_pixels_are_unknown_or_filled():
    half = np.full(GRID.shape, 1.0)
    half[0, 0] = np.nan
    images = [image(0.0, 0.5), image(0.5, 1.0)]
    images[1] = Field(**{**vars(images[1]), "read": lambda: half})
    whole = window_mean(images, accumulation=1.0, min_valid=1.0)
    filled = window_mean(images, accumulation=1.0, min_valid=0.5)
    assert np.isnan(whole[0, 0]) and np.isnan(whole).sum() == 1
    assert (filled == 2).all()


def test_images_left_out_are_noted(tmp_path):
    fields = rain_fields(images_in(tmp_path, "mm per hour"))
    noted = {}
    assert accumulation_windows(fields + fields[:1], refused=noted) == accumulation_windows(fields)
    assert "overlap" in noted["rain.nc"]
    halves = rain_fields(images_in(tmp_path / "half", "mm per 30 min", 60))
    with pytest.raises(DataError, match="overlap"):  # not a double, a misunderstanding
        accumulation_windows(fields + halves, refused={})


# ------------------------------------------------------------------ bad files


def write(path, dims=("time", "lat", "lon"), value=1.0, **coords):
    "A NetCDF file of rain."
    coords = dict(time=[START]) | degrees() | coords
    one_variable("rain", dims, value, "mm", **coords).to_netcdf(path)


def write_half(path):
    write(path)
    path.write_bytes(path.read_bytes()[:4000])


BAD = {  # file: how it is made, what the error must say
    "empty.grib": (lambda path: path.write_bytes(b""), "empty"),
    "words.txt": (lambda path: path.write_bytes(b"hello"), "hello"),
    "short.grib": (lambda path: path.write_bytes(b"GRIB" + bytes(60)), "GRIB 1 or 2|damaged"),
    "short.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "readable"),
    "packed.zip": (lambda path: path.write_bytes(b"PK\x03\x04"), "zip"),
    "half.nc": (write_half, "readable"),
    "no_columns.nc": (partial(write, dims=("time", "lat")), "shape|rows|grid"),
    "too_much.nc": (partial(write, value=1e4), "between 0"),
    "time_twice.nc": (partial(write, time=[START, START]), "overlap"),
    "no_times.nc": (partial(write, time=np.array([], "datetime64[ns]")), "at least one"),
    "no_dates.nc": (partial(write, time=[1.0, 2.0]), "times"),
    "two_axes.nc": (
        partial(write, dims=("time", "member", "lat", "lon"), member=[1, 2]),
        "one more",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name_within_a_second(tmp_path, name):
    pytest.importorskip("eccodes")
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises((DataError, GridError), match=words) as first:
        read_qpe(tmp_path / name)  # packages are imported at the first file
    assert name in str(first.value)
    begin = time.process_time()
    with pytest.raises((DataError, GridError), match=name):
        open_qpe(tmp_path / name)
    assert time.process_time() - begin < 1  # CPU time: other programs do not count
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing left behind


# ------------------------------------------------------------------ our own form


def test_our_form_is_read_as_it_is(tmp_path):
    valid = np.datetime64("2001-06-01", "ns") + np.arange(3) * np.timedelta64(1, "h")
    qpe = observation(valid)
    qpe["rain"][:, :, 0] = np.nan
    qpe.to_netcdf(tmp_path / "qpe.nc")
    back = open_qpe(tmp_path / "qpe.nc")
    assert np.array_equal(back["rain"], qpe["rain"], equal_nan=True)
    assert np.array_equal(back["time"], valid) and back["rain"].dtype == np.float32
    (tmp_path / "folder.nc").mkdir()
    with pytest.raises(DataError, match="folder.nc"):
        open_qpe(tmp_path / "folder.nc")


def test_damaged_files_of_our_form_raise_our_error_and_nothing_else(tmp_path):
    qpe = observation(np.datetime64("2001-06-01", "ns") + np.arange(4) * np.timedelta64(1, "h"))
    qpe.to_netcdf(tmp_path / "good.nc", encoding=dict(rain=dict(zlib=True)))
    good, refused = (tmp_path / "good.nc").read_bytes(), 0
    rng = np.random.default_rng(0)
    for k in range(60):
        bad = bytearray(good)
        if k % 2 == 0:
            bad = bad[: rng.integers(len(bad))]
        else:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        (tmp_path / "bad.nc").write_bytes(bad)
        try:
            open_qpe(tmp_path / "bad.nc")
        except SSLPDLError as error:
            refused += 1
            assert "bad.nc" in str(error)
    assert refused >= 30


def test_the_sample_cut_off(tmp_path):
    good = (ROOT / "data_samples" / "tiny" / "qpe.nc").read_bytes()
    for size in (1, 8, 100, len(good) // 3, len(good) - 1):
        (tmp_path / "cut.nc").write_bytes(good[:size])
        with pytest.raises(DataError, match="cut.nc"):
            open_qpe(tmp_path / "cut.nc")
