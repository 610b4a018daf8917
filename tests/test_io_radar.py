"""Radar images: composites of ODIM on every kind of map, KNMI, IMERG and MRMS, all made here.

Positions are compared with pyproj, values with the counts that were written.
"""

import io
import struct

import numpy as np
import pytest

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("h5py")

import h5py
import pyproj
from fuzz import fuzz

from sslpdl_nb.core import DataError, GridError
from sslpdl_nb.grids.types import grid_from_cf
from sslpdl_nb.io.lexicon import RAIN_SOURCES, RainSource
from sslpdl_nb.io.qpe import rain_fields, read_qpe
from sslpdl_nb.io.radar import (
    MRMS_PRODUCTS,
    hdf5_format,
    imerg_fields,
    knmi_fields,
    odim_fields,
    rain_from_counts,
)

COUNTS = np.array([[0, 1, 255, 30], [12, 0, 201, 7], [3, 255, 0, 9]], np.uint8)
RAIN = np.array([[0, 0.1, np.nan, 3.0], [1.2, 0, 20.1, 0.7], [0.3, np.nan, 0, 0.9]])

MAPS = {  # name: projection, x and y of the lower left corner, size of a pixel
    "opera": (
        "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84",
        (1.2e6, -2.6e6),
        (2000.0, 2000.0),
    ),
    "dwd": (
        "+proj=stere +lat_ts=60 +lat_0=90 +lon_0=10 +x_0=543196.835217764 "
        "+y_0=3622588.86144193 +a=6378137 +b=6356752.3142451802 +units=m +no_defs",
        (-500.0, -1199500.0),
        (1000.0, 1000.0),
    ),
    "belgium": (
        "+proj=lcc +lat_1=49.83333333333334 +lat_2=51.16666666666666 +lat_0=50.797815 "
        "+lon_0=4.359215833333333 +x_0=649328 +y_0=665262 +ellps=GRS80 "
        "+towgs84=0,0,0,0,0,0,0 +units=m +no_defs ",
        (300000.0, 300000.0),
        (1000.0, 500.0),
    ),
    "switzerland": (
        "+proj=somerc +lon_0=7.43958333333333 +lat_0=46.95240555 +k_0=1 +x_0=600000 "
        "+y_0=200000 +ellps=bessel +units=m +no_defs",
        (255000.0, -160000.0),
        (1000.0, 1000.0),
    ),
    "sphere": ("+proj=stere +lat_0=60 +lon_0=20 +R=6371000", (-1e5, -2e5), (4000.0, 4000.0)),
    "degrees": ("+proj=longlat +ellps=WGS84 +no_defs", (-3.5, 50.0), (0.01, 0.02)),
    "date line": ("+proj=longlat +R=6371000", (179.0, -40.0), (0.5, 0.5)),
}


def where_of(name, shape=COUNTS.shape, decimals=None):
    "The group `where` of an ODIM file; corners as pyproj computes them."
    projection, (west, south), (dx, dy) = MAPS[name]
    crs = pyproj.CRS(projection)
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    rows, columns = shape
    east, north = west + columns * dx, south + rows * dy
    where = dict(projdef=projection, xsize=columns, ysize=rows, xscale=dx, yscale=dy)
    corners = dict(LL=(west, south), UL=(west, north), UR=(east, north), LR=(east, south))
    for corner, (x, y) in corners.items():
        lon, lat = to_degrees.transform(x, y)
        lon = (lon + 180) % 360 - 180
        if decimals is not None:
            lon, lat = round(lon, decimals), round(lat, decimals)
        where |= {f"{corner}_lon": lon, f"{corner}_lat": lat}
    return where


CODES = dict(gain=0.1, offset=0.0, nodata=255.0, undetect=0.0)
HOUR = dict(startdate="20240701", starttime="110000", enddate="20240701", endtime="120000")


def odim(path, counts=COUNTS, where=None, kind="COMP", time="120000", **what):
    "An ODIM file of one image; a value None takes an attribute away."
    where = where_of("opera", counts.shape) if where is None else where
    groups = {
        "what": dict(object=kind, date="20240701", time=time),
        "where": where,
        "dataset1/what": CODES | HOUR | dict(quantity="ACRR") | what,
    }
    with h5py.File(path, "w") as h:
        h.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_3")
        for group, about in groups.items():
            for name, value in about.items():
                if value is not None:  # text of fixed length, as ODIM has it
                    text = np.bytes_(value) if isinstance(value, str) else value
                    h.require_group(group).attrs[name] = text
        h["dataset1/data1/data"] = counts
    return path


# ------------------------------------------------------------------ values


def test_odim_counts_become_rain(tmp_path):
    image = rain_fields(odim(tmp_path / "c.h5"))[0]
    assert image.units == "mm"
    assert (image.start_step, image.end_step) == (-1.0, 0.0)
    assert str(image.reference_time)[:16] == "2024-07-01T12:00"
    assert np.allclose(image.read()[::-1], RAIN, equal_nan=True)  # rows from the south


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32", "float64"])
def test_codes_are_found_in_every_kind_of_number(kind):
    codes = dict(nodata=65535, undetect=65534) if kind[0] in "ui" else {}
    codes = codes or dict(nodata=-9999.9, undetect=-8888000.0)
    counts = np.array([codes["undetect"], 5, codes["nodata"]]).astype(kind)
    rain = rain_from_counts(counts, 0.01, 0.5, **codes)
    assert np.allclose(rain, [0, 0.55, np.nan], equal_nan=True)


def test_a_pixel_with_both_codes_is_unknown():
    rain = rain_from_counts(np.array([0, 1], np.uint8), 1.0, 0.0, nodata=0, undetect=0)
    assert np.isnan(rain[0]) and rain[1] == 1


def test_decimal_numbers_may_leave_the_constants_out(tmp_path):
    rates = np.array([[0.0, 1.5], [np.nan, 4.0]], np.float32)
    bare = dict.fromkeys(CODES)
    file = odim(tmp_path / "f.h5", rates, **bare)
    assert np.array_equal(rain_fields(file)[0].read()[::-1], rates, equal_nan=True)


@pytest.mark.parametrize("absent", CODES)
def test_counts_without_their_constants_are_refused(tmp_path, absent):
    file = odim(tmp_path / "a.h5", **{absent: None})
    with pytest.raises(DataError, match=f"a.h5: what.*{absent}"):
        rain_fields(file)


def test_attributes_in_every_form_and_place(tmp_path):
    file = odim(tmp_path / "places.h5", gain=None, offset=None, quantity=None, undetect=99.0)
    with h5py.File(file, "r+") as h:
        for name in ("xsize", "ysize", "xscale", "yscale"):  # below the dataset
            h.require_group("dataset1/where").attrs[name] = h["where"].attrs[name]
            del h["where"].attrs[name]
        h["where"].attrs["projdef"] = np.bytes_(MAPS["opera"][0])
        h["what"].attrs["object"] = np.array([b"COMP"])
        h["dataset1/what"].attrs["enddate"] = np.array([b"20240701"], "S8")
        below = h.create_group("dataset1/data1/what").attrs  # prevails
        below.update(quantity=np.bytes_("ACRR"), gain=np.array([0.1]), offset=0.0, undetect=0)
        h["dataset1/data1/quality1/data"] = COUNTS
        h["dataset1/data2/data"] = COUNTS
        h.create_group("dataset1/data2/what").attrs["quantity"] = "QIND"
    (image,) = rain_fields(file)
    assert np.allclose(image.read()[::-1], RAIN, equal_nan=True)


# ------------------------------------------------------------------ where


@pytest.mark.parametrize("name", MAPS)
def test_odim_pixels_are_where_pyproj_puts_them(tmp_path, name):
    grid = rain_fields(odim(tmp_path / "m.h5", where=where_of(name)))[0].grid
    projection, (west, south), (dx, dy) = MAPS[name]
    crs = pyproj.CRS(projection)
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = grid.lonlat()
    rows, columns = COUNTS.shape
    for row in range(rows):
        for column in range(columns):
            x, y = west + (column + 0.5) * dx, south + (row + 0.5) * dy
            expected = to_degrees.transform(x, y)
            away = (lon[row, column] - expected[0] + 180) % 360 - 180
            assert abs(away) < 1e-6 and abs(lat[row, column] - expected[1]) < 1e-6


@pytest.mark.parametrize("name", ["opera", "belgium", "degrees"])
def test_the_map_survives_in_our_own_form(tmp_path, name):
    file = odim(tmp_path / "m.h5", where=where_of(name))
    grid = rain_fields(file)[0].grid
    again = grid_from_cf(read_qpe(file))
    for a, b in zip(grid.lonlat(), again.lonlat()):
        assert np.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("kilometres", ["scale", "map", "ellipsoid"])
def test_lengths_in_kilometres(tmp_path, kilometres):
    where = where_of("dwd")
    grid = rain_fields(odim(tmp_path / "m.h5", where=where))[0].grid
    where |= dict(xscale=1.0, yscale=1.0)
    if kilometres == "map":
        where["projdef"] = where["projdef"].replace("+units=m", "+units=km")
    if kilometres == "ellipsoid":
        where["projdef"] = where["projdef"].replace("6378137", "6378.137")
        where["projdef"] = where["projdef"].replace("6356752.3142451802", "6356.7523142451802")
    found = rain_fields(odim(tmp_path / "km.h5", where=where))[0].grid
    assert np.allclose(found.lonlat(), grid.lonlat(), atol=1e-9)


def test_lost_digits_of_corners_make_no_other_grid(tmp_path):
    exact, rounded = (
        rain_fields(odim(tmp_path / "m.h5", where=where_of("opera", decimals=d)))[0].grid
        for d in (None, 5)
    )
    assert exact == rounded
    rain_fields(odim(tmp_path / "m.h5", where=where_of("opera", decimals=3)))


def test_corners_one_pixel_too_close_are_told(tmp_path):
    "As in files of the Baltic countries: the other corners were counted from the first pixel."
    counts = np.ones((40, 50), np.uint8)
    grid = rain_fields(odim(tmp_path / "m.h5", counts))[0].grid
    short = where_of("opera", (39, 49)) | dict(xsize=50, ysize=40)
    with pytest.warns(UserWarning, match="one pixel too close together"):
        found = rain_fields(odim(tmp_path / "m.h5", counts, where=short))[0].grid
    assert found == grid
    with pytest.raises(GridError, match="'UL': '1'"):
        far = where_of("opera", (41, 51)) | dict(xsize=50, ysize=40)
        rain_fields(odim(tmp_path / "m.h5", counts, where=far))


WRONG = {
    "one pixel away": dict(UR_lon=lambda v: v + 2000 / 63e3),
    "another scale": dict(xscale=lambda v: 2 * v),
    "another origin": dict(LL_lat=lambda v: v + 0.1),
    "degrees for metres": dict(xscale=lambda v: 0.02, yscale=lambda v: 0.02),
    "another map": dict(projdef=lambda v: v.replace("lon_0=10", "lon_0=-40")),
    "not a number": dict(LR_lon=lambda v: np.nan),
    "feet": dict(projdef=lambda v: v.replace("units=m", "units=us-ft")),
    "no map": dict(projdef=lambda v: "+proj=nothing"),
}


@pytest.mark.parametrize("how", WRONG)
def test_maps_that_contradict_themselves_are_refused(tmp_path, how):
    counts = np.ones((40, 50), np.uint8)
    where = where_of("opera", counts.shape)
    where |= {k: change(where[k]) for k, change in WRONG[how].items()}
    with pytest.raises(GridError, match="m.h5"):
        rain_fields(odim(tmp_path / "m.h5", counts, where=where))


def test_two_corners_are_enough_and_fewer_are_not(tmp_path):
    where = where_of("opera")
    two = where | dict.fromkeys(("UL_lon", "UL_lat", "LR_lon", "LR_lat"))
    grid = rain_fields(odim(tmp_path / "m.h5", where=where))[0].grid
    assert rain_fields(odim(tmp_path / "m.h5", where=two))[0].grid == grid
    for name in ("UR_lon", "projdef", "xscale"):
        with pytest.raises(DataError, match=f"where.*{name}"):
            rain_fields(odim(tmp_path / "m.h5", where=where | {name: None}))


# ------------------------------------------------------------------ which hours


def test_odim_amounts_cover_what_they_say(tmp_path):
    file = odim(tmp_path / "a.h5", starttime="115501", endtime="115959")
    image = rain_fields(file)[0]  # a second is missing at both ends
    assert 60 * image.start_step == pytest.approx(-5)
    assert str(image.reference_time)[:19] == "2024-07-01T12:00:00"
    five = RainSource(names=("ACRR",), minutes=5)
    assert rain_fields(file, five)[0].start_step == image.start_step
    with pytest.raises(DataError, match="minutes of an image: expected 10"):
        rain_fields(file, RainSource(names=("ACRR",), minutes=10))
    with pytest.raises(DataError, match="RainSource for ODIM"):
        rain_fields(file, RainSource(names=("ACRR",), units="0.01 mm"))


def test_odim_rates_need_minutes(tmp_path):
    file = odim(tmp_path / "r.h5", quantity="RATE", starttime="115908", endtime="115928")
    with pytest.raises(DataError, match=r"r.h5: RATE.*RainSource\(names=\('RATE',\), minutes"):
        rain_fields(file)
    image = rain_fields(file, RainSource(names=("RATE",), minutes=5))[0]
    assert image.units == "mm h-1"
    assert 60 * image.start_step == -5
    assert str(image.reference_time)[:19] == "2024-07-01T12:00:00"  # the nominal time
    start = RainSource(names=("RATE",), minutes=5, time_label="start")
    assert 60 * rain_fields(file, start)[0].end_step == 5
    local = RainSource(names=("RATE",), minutes=5, utc_offset=2.0)
    assert str(rain_fields(file, local)[0].reference_time)[:16] == "2024-07-01T10:00"


def test_amounts_of_an_instant_need_minutes(tmp_path):
    file = odim(tmp_path / "i.h5", starttime="120000")
    with pytest.raises(DataError, match="ACRR.*minutes"):
        rain_fields(file)
    assert rain_fields(file, RainSource(names=("ACRR",), minutes=60))[0].start_step == -1


def test_amounts_after_the_nominal_time_may_be_forecasts(tmp_path):
    file = odim(tmp_path / "later.h5", time="110000")
    with pytest.warns(UserWarning, match="may be forecasts"):
        assert rain_fields(file)[0].start_step == -1


def test_the_form_of_switzerland(tmp_path):
    "Decimal numbers, NaN and infinity as codes, kilometres on a map in metres."
    where = where_of("switzerland", decimals=4) | dict(xscale=1.0, yscale=1.0)
    rain = np.array([[np.inf, 0.1, np.nan, 3], [1.2, np.inf, 20.1, 0.7], [0.3, np.nan, 0, 0.9]])
    codes = dict(gain=1.0, offset=0.0, nodata=np.nan, undetect=np.inf)
    image = rain_fields(odim(tmp_path / "ch.h5", rain, where=where, **codes))[0]
    assert np.allclose(image.read()[::-1], RAIN, equal_nan=True)
    assert np.abs(image.grid.x - 255500 - 1000 * np.arange(4)).max() < 20  # lost digits


def several(path, n, quantity="ACRR", **what):
    "An ODIM file of n images of five minutes, the last one until n * 5 past ten."
    file = odim(path)
    with h5py.File(file, "r+") as h:
        del h["dataset1"]
        for k in range(1, n + 1):
            begin, end = f"10{5 * (k - 1):02}00", f"10{5 * k:02}00"
            if 5 * k == 60:
                end = "110000"
            group = h.create_group(f"dataset{k}/what")
            group.attrs.update(CODES | HOUR | dict(starttime=begin, endtime=end))
            group.attrs.update(dict(quantity=quantity) | what)
            h[f"dataset{k}/data1/data"] = np.full(COUNTS.shape, k, np.uint8)
    return file


def test_several_times_in_one_file(tmp_path):
    file = several(tmp_path / "s.h5", 12)
    images = rain_fields(file)
    assert [round(10 * f.read()[0, 0]) for f in images] == list(range(1, 13))  # 10 after 9
    rain = read_qpe(file)["rain"]
    assert rain.sizes["time"] == 1
    assert str(rain["time"].values[0])[:16] == "2024-07-01T11:00"
    assert np.allclose(rain, 0.1 * 78)
    rates = several(tmp_path / "r.h5", 12, quantity="RATE")
    mean = read_qpe(rates, RainSource(names=("RATE",), minutes=5))["rain"]
    assert np.allclose(mean, 0.1 * 6.5)


def test_amounts_before_rates_unless_you_say_so(tmp_path):
    file = odim(tmp_path / "two.h5")
    with h5py.File(file, "r+") as h:
        h["dataset1/data2/data"] = COUNTS
        h.create_group("dataset1/data2/what").attrs["quantity"] = "RATE"
    assert [f.units for f in rain_fields(file)] == ["mm"]
    rates = rain_fields(file, RainSource(names=("RATE",), minutes=60))
    assert [f.units for f in rates] == ["mm h-1"]


# ------------------------------------------------------------------ refused


REFUSED = {
    "PVOL": (dict(kind="PVOL", quantity="DBZH"), "polar volume.*cartesian composite"),
    "SCAN": (dict(kind="SCAN"), "polar"),
    "XSEC": (dict(kind="XSEC"), "a map .COMP or IMAGE."),
    "DBZH": (dict(quantity="DBZH"), "reflectivity is not rain"),
    "QIND": (dict(quantity="QIND"), "ACRR or RATE, found ..QIND"),
    "unnamed": (dict(quantity=None), "ACRR or RATE"),
    "shape": (dict(counts=COUNTS[:, :3], where=where_of("opera")), r"\(3, 4\), found \(3, 3\)"),
    "time": (dict(endtime="9am"), "ODIM file.*time"),
    "gain": (dict(gain="much"), "ODIM file"),
    "size": (dict(where=where_of("opera") | dict(xsize=-4)), "pixels of positive size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_odim_refuses_by_name(tmp_path, name):
    about, words = REFUSED[name]
    with pytest.raises(DataError, match=words) as error:
        rain_fields(odim(tmp_path / f"{name}.h5", **about))
    assert f"{name}.h5" in str(error.value)


def test_reflectivity_is_refused_even_if_asked_for(tmp_path):
    file = odim(tmp_path / "z.h5", quantity="DBZH")
    with pytest.raises(DataError, match="reflectivity"):
        odim_fields(file, RainSource(names=("DBZH",), minutes=5))


def test_damaged_composites_never_crash(tmp_path):
    fuzz(odim(tmp_path / "whole.h5"), tmp_path / "bad", "sslpdl_nb.io.qpe:rain_fields", 20)


# ------------------------------------------------------------------ KNMI and IMERG


def knmi(path, formula="GEO=0.01*PV+0.0", parameter="ACCUMULATED_PRECIPITATION_[MM]"):
    "A file in KNMI's own form: 4 x 3 pixels of its map."
    projection = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a={} +b={} +x_0=0 +y_0=0"
    crs = pyproj.CRS(projection.format(6378137, 6356752))
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    x, y = [0, 0, 3000, 3000], [-3654e3, -3650e3, -3650e3, -3654e3]
    corners = np.stack(to_degrees.transform(x, y), -1)
    with h5py.File(path, "w") as h:
        geo = h.create_group("geographic").attrs
        geo.update(geo_number_rows=[4], geo_number_columns=[3], geo_pixel_size_x=[1.0])
        geo.update(geo_pixel_size_y=[-1.0], geo_column_offset=[0.0], geo_row_offset=[3650.0])
        geo["geo_product_corners"] = corners.ravel()
        of_map = h.create_group("geographic/map_projection").attrs
        of_map["projection_proj4_params"] = np.bytes_(projection.format(6378.137, 6356.752))
        times = h.create_group("overview").attrs
        times["product_datetime_start"] = np.bytes_("26-AUG-2010;00:00:00.000")
        times["product_datetime_end"] = np.bytes_("26-AUG-2010;00:05:00.000")
        h.create_group("image1").attrs["image_geo_parameter"] = np.bytes_(parameter)
        about = h.create_group("image1/calibration").attrs
        about["calibration_formulas"] = np.bytes_(formula)
        about.update(calibration_missing_data=[65535], calibration_out_of_image=[65534])
        h["image1/image_data"] = np.array(
            [[0, 1, 65535], [2, 3, 65534], [4, 5, 6], [7, 8, 9]], np.uint16
        )
    return path


@pytest.mark.parametrize("formula", ["GEO=0.01*PV+0.0", "GEO = 0.01 * PV + 0.0"])
def test_knmi(tmp_path, formula):
    image = rain_fields(knmi(tmp_path / "k.h5", formula))[0]
    values = image.read()
    assert np.allclose(values[0], [0.07, 0.08, 0.09])  # the last row is the southernmost
    assert np.isnan(values[2:, 2]).all() and np.isnan(values).sum() == 2
    assert image.grid.x.tolist() == [500, 1500, 2500]
    assert image.grid.y.tolist() == [-3653500, -3652500, -3651500, -3650500]


def test_reflectivity_of_knmi_is_refused(tmp_path):
    file = knmi(tmp_path / "z.h5", "GEO=0.5*PV+-31.5", "REFLECTIVITY_[DBZ]")
    with pytest.raises(DataError, match="z.h5: image.*REFLECTIVITY"):
        knmi_fields(file)


def imerg(path, minutes=30, name="precipitation"):
    "A file in the form of IMERG, one time."
    with h5py.File(path, "w") as h:
        group = h.create_group("Grid")
        group["lon"], group["lat"] = np.arange(120, 125, 0.1), np.arange(30, 33, 0.1)
        group["time"] = [0]
        group["time"].attrs["units"] = np.bytes_("seconds since 2020-09-13 13:00:00 UTC")
        group["time_bnds"] = [[0, 60 * minutes]]
        group[name] = np.full((1, 50, 30), 2.0, "f4")
        group[name].attrs["units"] = np.bytes_("mm/hr")
    return path


def test_a_month_of_imerg_is_not_half_an_hour(tmp_path):
    assert imerg_fields(imerg(tmp_path / "half.h5"))[0].end_step == 0.5
    with pytest.raises(DataError, match="month.h5.*minutes.*43200"):
        rain_fields(imerg(tmp_path / "month.h5", 43200))
    with pytest.raises(DataError, match="other.h5: rain.*randomError"):
        rain_fields(imerg(tmp_path / "other.h5", name="randomError"))


def with_times(path, units, times, bounds=None, calendar=None):
    "An IMERG file with other numbers for its times."
    with h5py.File(imerg(path), "r+") as h:
        group = h["Grid"]
        del group["time"], group["time_bnds"]
        group["time"] = times
        if units is not None:
            group["time"].attrs["units"] = np.bytes_(units)
        if calendar is not None:
            group["time"].attrs["calendar"] = np.bytes_(calendar)
        if bounds is not None:
            group["time_bnds"] = bounds
    return path


@pytest.mark.parametrize(
    "units, number, calendar",
    [
        ("seconds since 2020-07-01 12:00:00 UTC", 1800, None),
        ("seconds since 2020-07-01 12:00:00", 1800, "julian"),  # as real files have it
        ("seconds since 2020-07-01T12:00:00Z", 1800, "standard"),
        ("days since 2020-06-30", 1.5 + 1 / 48, None),
        ("hours since 1980-01-06 00:00:00 UTC", 354900.5, None),
        ("minutes since 2020-07-01 00:30 UTC", 720, None),
    ],
)
def test_the_clock_of_imerg_is_read_with_its_unit_and_hour(tmp_path, units, number, calendar):
    image = imerg_fields(with_times(tmp_path / "i.h5", units, [number], calendar=calendar))[0]
    assert image.reference_time == np.datetime64("2020-07-01T12:30")
    assert (image.start_step, image.end_step) == (0, 0.5)


def test_the_bounds_of_imerg_have_the_unit_of_its_times(tmp_path):
    days, bounds = [0.5, 0.5 + 1 / 48], [[0.5, 0.5 + 1 / 48], [0.5 + 1 / 48, 0.5 + 1 / 24]]
    file = with_times(tmp_path / "i.h5", "days since 2020-07-01", days, bounds)
    with h5py.File(file, "r+") as h:
        del h["Grid/precipitation"]
        h["Grid/precipitation"] = np.full((2, 50, 30), 2.0, "f4")
    assert [(f.start_step, f.end_step) for f in imerg_fields(file)] == [(0, 0.5), (0, 0.5)]
    silent = RainSource(names=("precipitation",))  # its label, the end, is not that of the file
    hour = read_qpe(file, silent)
    assert hour["time"].values.tolist() == [np.datetime64("2020-07-01T13", "ns").astype(int)]


@pytest.mark.parametrize(
    "units, number, calendar, words",
    [
        (None, 0, None, "no unit"),
        ("seconds", 0, None, "found seconds"),
        ("moons since 2020-07-01", 0, None, "found moons since"),
        ("seconds since 2020-07-01 12:00:00 KST", 0, None, "time zone.*KST"),
        ("seconds since 2020-07-01", np.nan, None, "found seconds"),
        ("seconds since 1980-01-06", 0, "noleap", "noleap"),
    ],
)
def test_clocks_of_imerg_that_are_not_understood(tmp_path, units, number, calendar, words):
    file = with_times(tmp_path / "clock.h5", units, [number], calendar=calendar)
    with pytest.raises(DataError, match=f"clock.h5: time.*{words}"):
        rain_fields(file)


def test_forms_are_told_apart(tmp_path):
    assert hdf5_format(odim(tmp_path / "o.h5")) == "ODIM"
    assert hdf5_format(knmi(tmp_path / "k.h5")) == "KNMI"
    assert hdf5_format(imerg(tmp_path / "i.h5")) == "IMERG"
    (tmp_path / "words").write_bytes(b"hello")
    assert hdf5_format(tmp_path / "words") == ""


# ------------------------------------------------------------------ MRMS

FLAGS = np.array([[-3.0, -1.0, 0.0, 0.1], [-3.0, 0.0, 2.5, 40.0]])  # first row in the north


def mrms(path, *numbers, values=FLAGS):
    "A GRIB 2 file as MRMS writes it: one message for each number of category 6."
    ec = pytest.importorskip("eccodes")
    keys = dict(centre=161, localTablesVersion=1, discipline=209, parameterCategory=6)
    keys |= dict(dataDate=20240701, dataTime=1200, productDefinitionTemplateNumber=0)
    keys |= dict(typeOfFirstFixedSurface=102, scaleFactorOfFirstFixedSurface=0)
    keys |= dict(scaledValueOfFirstFixedSurface=0, gridType="regular_ll", jScansPositively=0)
    keys |= dict(
        Ni=4,
        Nj=2,
        iDirectionIncrementInDegrees=0.01,
        jDirectionIncrementInDegrees=0.01,
        latitudeOfFirstGridPointInDegrees=54.995,
        latitudeOfLastGridPointInDegrees=54.985001,
        longitudeOfFirstGridPointInDegrees=230.005,
        longitudeOfLastGridPointInDegrees=230.034998,
        bitsPerValue=16,
    )
    with open(path, "wb") as file:
        for number in numbers:
            message = ec.codes_grib_new_from_samples("GRIB2")
            for key, value in (keys | dict(parameterNumber=number)).items():
                ec.codes_set(message, key, value)
            ec.codes_set_values(message, values.ravel())
            ec.codes_write(message, file)
            ec.codes_release(message)
    return path


@pytest.mark.parametrize(
    "number, name, hours",
    [
        (2, "RadarOnly_QPE_01H", 1),
        (9, "GaugeCorr_QPE_01H", 1),
        (30, "MultiSensor_QPE_01H_Pass1", 1),
        (37, "MultiSensor_QPE_01H_Pass2", 1),
        (32, "MultiSensor_QPE_06H_Pass1", 6),
        (6, "RadarOnly_QPE_24H", 24),
        (45, "RadarOnly_QPE_15M", 0.25),
    ],
)
def test_mrms_amounts(tmp_path, number, name, hours):
    image = rain_fields(mrms(tmp_path / "m.grib2", number))[0]
    assert (image.name, image.units) == (name, "mm")
    assert (image.start_step, image.end_step) == (-hours, 0)
    expected = np.where(FLAGS < 0, np.nan, FLAGS)[::-1]
    assert np.allclose(image.read(), expected, atol=2e-3, equal_nan=True)
    assert image.grid.lonlat()[0][0, 0] == pytest.approx(-129.995)
    assert image.grid.lonlat()[1][0, 0] == pytest.approx(54.985, abs=1e-5)


def test_mrms_becomes_hours(tmp_path):
    ds = read_qpe(mrms(tmp_path / "m.grib2", 37))
    assert str(ds["time"].values[0])[:16] == "2024-07-01T12:00"
    assert np.isnan(ds["rain"][0]).sum() == 3 and ds["rain"].max() == pytest.approx(40, abs=2e-3)


def test_mrms_rates(tmp_path):
    file = mrms(tmp_path / "m.grib2", 1)
    image = rain_fields(file)[0]
    assert (image.units, round(60 * image.start_step)) == ("mm h-1", -2)
    ten = rain_fields(file, RainSource(names=("PrecipRate",), minutes=10))[0]
    assert round(60 * ten.start_step) == -10
    with pytest.raises(DataError, match="minutes of an image"):
        source = RainSource(names=RAIN_SOURCES["mrms"].names, minutes=10)
        rain_fields(mrms(tmp_path / "a.grib2", 2), source)
    with pytest.raises(DataError, match="RainSource for MRMS"):
        rain_fields(file, RainSource(names=("PrecipRate",), units="mm"))


def packed_as_png(message):
    "A message in PNG packing as MRMS has it: tenths above -3, one number of 16 bits a pixel."
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(np.round(10 * FLAGS + 30).astype(np.uint16)).save(picture, "PNG")
    at, sections = 16, {}
    while message[at : at + 4] != b"7777":
        length = int.from_bytes(message[at : at + 4], "big")
        sections[message[at + 4]] = message[at : at + length]
        at += length
    head = struct.pack(">IBIHfHHBB", 21, 5, FLAGS.size, 41, -30.0, 0, 1, 16, 0)
    data = picture.getvalue()
    sections |= {5: head, 7: struct.pack(">IB", len(data) + 5, 7) + data}
    body = b"".join(sections[n] for n in sorted(sections)) + b"7777"
    return message[:8] + struct.pack(">Q", 16 + len(body)) + body


def test_mrms_in_the_packing_of_its_files(tmp_path):
    file = mrms(tmp_path / "m.grib2", 2)
    file.write_bytes(packed_as_png(file.read_bytes()))
    expected = np.where(FLAGS < 0, np.nan, FLAGS)[::-1]
    assert np.allclose(rain_fields(file)[0].read(), expected, equal_nan=True)


def test_the_best_of_several_products_of_mrms(tmp_path):
    file = mrms(tmp_path / "m.grib2", 1, 2, 37, 30, 31)
    assert [f.name for f in rain_fields(file, "mrms")] == ["MultiSensor_QPE_01H_Pass2"]
    asked = rain_fields(file, RainSource(names=("RadarOnly_QPE_01H",)))
    assert [f.name for f in asked] == ["RadarOnly_QPE_01H"]


def test_other_products_of_mrms_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"m.grib2: rain.*209\.6\.0"):
        rain_fields(mrms(tmp_path / "m.grib2", 0))  # the kind of precipitation


def test_tables_of_mrms_agree():
    assert set(MRMS_PRODUCTS) == set(RAIN_SOURCES["mrms"].names)
    numbers = sorted(p.number for p in MRMS_PRODUCTS.values())
    assert numbers == [*range(1, 44), 45]
