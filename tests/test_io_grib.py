"GRIB: grids, several fields in a message, unsupported codes, and damage that never crashes."

import warnings
from unittest.mock import patch

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from fuzz import fuzz
from real import real
from synthetic import (
    BUILT,
    KMA,
    constant_in_groups,
    grib2,
    lambert,
    message,
    several,
    with_octets,
    world,
)

from sslpdl_nb.core import DataError, GridError
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.types import UnstructuredGrid
from sslpdl_nb.io import grib
from sslpdl_nb.io.fields import open_file
from sslpdl_nb.io.grib import grib_fields
from sslpdl_nb.io.octets import grib_messages, section_starts

READER = "sslpdl_nb.io.grib:grib_fields"


# ------------------------------------------------------------------ headers and grids

ROTATED = dict(
    gridType="rotated_ll",
    Ni=6,
    Nj=5,
    latitudeOfFirstGridPointInDegrees=-1,
    latitudeOfLastGridPointInDegrees=3,
    longitudeOfFirstGridPointInDegrees=357,
    longitudeOfLastGridPointInDegrees=2,
    iDirectionIncrementInDegrees=1,
    jDirectionIncrementInDegrees=1,
    jScansPositively=1,
    latitudeOfSouthernPoleInDegrees=-40,
    longitudeOfSouthernPoleInDegrees=10,
)
CONE = dict(
    gridType="lambert",
    Nx=6,
    Ny=5,
    latitudeOfFirstGridPointInDegrees=30,
    longitudeOfFirstGridPointInDegrees=120,
    LoVInDegrees=126,
    DxInMetres=90000,
    DyInMetres=90000,
    Latin1InDegrees=30,
    Latin2InDegrees=60,
    jScansPositively=1,
)


@pytest.mark.parametrize(
    "sample, keys",
    [
        ("GRIB1", ROTATED),
        ("GRIB2", ROTATED),
        ("GRIB1", CONE),
        ("GRIB1", CONE | dict(earthIsOblate=1)),
        ("GRIB2", CONE | dict(LaDInDegrees=60)),
        ("GRIB2", CONE | dict(LaDInDegrees=60, DyInMetres=45000)),
        *(("GRIB2", CONE | dict(LaDInDegrees=60, shapeOfTheEarth=code)) for code in (2, 4, 5)),
    ],
)
def test_places_of_a_grib_grid_are_those_of_eccodes(tmp_path, sample, keys):
    ec = grib._eccodes("test")
    content = message(ec, sample, keys, np.arange(30.0))
    (tmp_path / "a.grib").write_bytes(content)
    lon, lat = grib_fields(tmp_path / "a.grib")[0].grid.lonlat()
    m = ec.codes_new_from_message(content)
    assert np.allclose(lat.ravel(), ec.codes_get_array(m, "latitudes"), atol=1e-5) and np.allclose(
        lon.ravel() % 360, ec.codes_get_array(m, "longitudes") % 360, atol=1e-5
    )
    ec.codes_release(m)


@pytest.mark.parametrize(
    "keys, word",
    [
        (ROTATED | dict(angleOfRotation=30), "angle of rotation"),
        (CONE | dict(shapeOfTheEarth=1, LaDInDegrees=60), "a.grib"),
    ],
)
def test_maps_that_would_be_read_wrong_are_refused(tmp_path, keys, word):
    (tmp_path / "a.grib").write_bytes(
        message(grib._eccodes("test"), "GRIB2", keys, np.arange(30.0))
    )
    with pytest.raises(GridError, match=word):
        grib_fields(tmp_path / "a.grib")


def test_several_fields_in_one_message(tmp_path):
    ec, (_, lon, lat) = grib._eccodes("test"), lambert()
    values = [lat, lon, 2 * lat]
    values[0][3, 4] = 9999
    several(ec, lambert()[0], values, tmp_path / "a.grib")
    found = grib_fields(tmp_path / "a.grib")
    assert len(grib_messages(tmp_path / "a.grib")) == 1 and [f.name for f in found] == [
        "10u",
        "10v",
        "10u",
    ]
    assert np.isnan(found[0].read()[3, 4]) and all(
        np.allclose(f.read(), v, atol=1e-3, equal_nan=True)
        for f, v in zip(found, (np.where(lat > 9000, np.nan, lat), *values[1:]))
    )
    whole = (tmp_path / "a.grib").read_bytes()
    (tmp_path / "a.grib").write_bytes(
        whole[:8] + (len(whole) - 1).to_bytes(8, "big") + whole[16:-5] + b"7777"
    )  # the last section is short of an octet
    with pytest.raises(DataError, match="none|1 of 1 fields left out: 1 damaged"):
        grib_fields(tmp_path / "a.grib")


def test_a_field_of_an_unknown_kind_does_not_take_the_file_with_it(tmp_path):
    ec, (grid, _, lat) = grib._eccodes("test"), lambert()
    good = grib2(ec, "kwbc", grid, "t", lat, ("ground", 2))
    aerosol = grib2(
        ec, "kwbc", grid, "t", lat, ("ground", 2), keys=dict(productDefinitionTemplateNumber=48)
    )
    waves = message(ec, "sh_pl_grib1", {}, np.zeros(4160))
    (tmp_path / "a.grib").write_bytes(aerosol + good + waves)
    told = "a.grib: 2 of 3 fields left out: 1 grid of kind 50, 1 product template 48"
    with pytest.warns(UserWarning, match=told):
        found = grib_fields(tmp_path / "a.grib")
    assert len(found) == 1 and np.allclose(found[0].read(), lat, atol=1e-3)


# ------------------------------------------------------------------ each message is read once


def hours(k):
    "A GRIB message of rain up to hour k."
    return grib2(
        grib._eccodes("test"), "kwbc", world()[0], "tp", np.full(684, 1.0 * k), hour=k, since=0
    )


def test_asking_again_reads_nothing(tmp_path):
    path = tmp_path / "a.grib"
    path.write_bytes(hours(1) + hours(2))
    file = open_file(path)
    first = grib_fields(file)
    with patch.object(grib, "read_messages", side_effect=AssertionError("read again")):
        again = grib_fields(path)
        assert all(a is b for a, b in zip(first, again))
        again.clear()  # the list belongs to the caller
        assert len(grib_fields(file)) == 2
        with pytest.raises(AssertionError, match="read again"):
            grib_fields(file, ["tp"])  # another question
    assert len(grib_fields(file, ["tp"])) == 2 and grib_fields(file, ["t"]) == []
    path.write_bytes(hours(3))
    assert [f.end_step for f in grib_fields(path)] == [3]


def test_a_message_is_read_once_and_its_values_one_at_a_time(tmp_path):
    (tmp_path / "a.grib").write_bytes(hours(1) + hours(2))
    with patch.object(grib, "read_messages", wraps=grib.read_messages) as listed:
        fields = grib_fields(tmp_path / "a.grib")
        assert [f.read().mean() for f in fields] == [1, 2]
        assert listed.call_count == 1


def test_the_warning_is_repeated_with_the_list(tmp_path):
    ec, (grid, _, lat) = grib._eccodes("test"), lambert()
    keys = dict(productDefinitionTemplateNumber=48)
    strange = grib2(ec, "kwbc", grid, "t", lat, ("ground", 2), keys=keys)
    (tmp_path / "a.grib").write_bytes(strange + hours(1))
    for _ in range(2):
        with pytest.warns(UserWarning, match="a.grib: 1 of 2 fields left out"):
            assert len(grib_fields(tmp_path / "a.grib")) == 1


def test_few_lists_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(grib, "_MOST_FIELDS", 3)
    for name in "abc":
        (tmp_path / name).write_bytes(hours(1) + hours(2))
        grib_fields(tmp_path / name)
        assert len(grib_fields(tmp_path / name)) == 2
    assert sum(len(one.fields) for one in grib._LISTINGS.values()) <= 3


# ------------------------------------------------------------------ scanning orders


def of_file(content) -> tuple:
    "Longitude, latitude and value of each point in the order of the file, by the library alone."
    ec = grib._eccodes("test")
    m = ec.codes_new_from_message(content)
    lat, lon, values = (ec.codes_get_array(m, key) for key in ("latitudes", "longitudes", "values"))
    ec.codes_release(m)
    return lon % 360, lat, values


def check_places(path, content, alternating=False):
    "Each value of a field is where the library says that it is; the field."
    path.write_bytes(content)
    field = grib_fields(path)[0]
    lon, lat, values = of_file(content)
    columns = field.grid.shape[-1]
    if alternating:  # the library does not turn the rows of these arrays
        values = np.array(values).reshape(-1, columns)
        values[1::2] = values[1::2, ::-1]
        values = values.ravel()
    ours_lon, ours_lat = (a.ravel() for a in field.grid.lonlat())
    order = np.lexsort([np.round(lon, 3) % 360, np.round(lat, 3)])
    ours = np.lexsort([np.round(ours_lon % 360, 3) % 360, np.round(ours_lat, 3)])
    assert np.allclose(lat[order], ours_lat[ours], atol=2e-3)
    assert np.allclose((lon[order] - ours_lon[ours] + 180) % 360, 180, atol=2e-3)
    assert np.allclose(values[order], field.read().ravel()[ours], atol=1e-3)
    return field


DEGREES = world(10.0, 10.0, 40.0, 350.0, 400.0)[0] | dict(longitudeOfLastGridPointInDegrees=40)


def scanned(keys, scanning):
    "Keys of a map whose first point lies where the scanning mode begins."
    keys = dict(keys, jScansPositively=scanning >> 6 & 1)
    swapped = []
    if keys["gridType"] == "regular_ll":
        swapped = ["latitude"] * (scanning >> 6 & 1) + ["longitude"] * (scanning >> 7 & 1)
    for name in swapped:
        a, b = (f"{name}Of{end}GridPointInDegrees" for end in ("First", "Last"))
        keys[a], keys[b] = keys[b], keys[a]
    keys |= dict(iScansNegatively=scanning >> 7 & 1, jPointsAreConsecutive=scanning >> 5 & 1)
    return keys | (dict(alternativeRowScanning=1) if scanning & 16 else {})


@pytest.mark.parametrize("scanning", range(0, 256, 32))
@pytest.mark.parametrize("sample", ["GRIB1", "GRIB2"])
def test_every_order_of_rows_and_columns(tmp_path, sample, scanning):
    keys = scanned(DEGREES, scanning)
    content = message(grib._eccodes("test"), sample, keys, np.arange(24.0))
    check_places(tmp_path / "a.grib", content)


@pytest.mark.parametrize("scanning", [16, 80, 144, 208])
def test_rows_forth_and_back(tmp_path, scanning):
    "Boustrophedonic, as the National Weather Service of the United States writes it."
    keys = scanned(DEGREES, scanning)
    content = message(grib._eccodes("test"), "GRIB2", keys, np.arange(24.0))
    check_places(tmp_path / "a.grib", content, alternating=True)


@pytest.mark.parametrize("scanning", range(0, 256, 32))
@pytest.mark.parametrize("sample", ["GRIB1", "GRIB2"])
def test_the_first_value_of_a_map_in_metres_is_at_the_first_point(tmp_path, sample, scanning):
    "By the manual: the first point of the file, and not the south-western corner of the map."
    keys = scanned(CONE, scanning) | (dict(LaDInDegrees=60) if sample == "GRIB2" else {})
    content = message(grib._eccodes("test"), sample, keys, np.arange(30.0))
    (tmp_path / "a.grib").write_bytes(content)
    field = grib_fields(tmp_path / "a.grib")[0]
    (lon, lat), values = field.grid.lonlat(), field.read().round()
    row, column = np.argwhere(values == 0)[0]
    assert np.allclose((lon[row, column], lat[row, column]), (120, 30), atol=1e-5)
    eastward, northward = -1 if scanning & 128 else 1, 1 if scanning & 64 else -1
    next_place = (row + northward, column) if scanning & 32 else (row, column + eastward)
    assert values[next_place] == 1


def test_rows_forth_and_back_are_those_of_the_iterator_of_eccodes(tmp_path):
    ec = grib._eccodes("test")
    content = message(ec, "GRIB2", scanned(CONE | dict(LaDInDegrees=60), 80), np.arange(30.0))
    (tmp_path / "a.grib").write_bytes(content)
    field = grib_fields(tmp_path / "a.grib")[0]
    m = ec.codes_new_from_message(content)
    iterator = ec.codes_grib_iterator_new(m, 0)
    points = np.array([ec.codes_grib_iterator_next(iterator) for _ in range(30)])
    ec.codes_grib_iterator_delete(iterator)
    ec.codes_release(m)
    lon, lat = field.grid.lonlat()
    assert np.allclose(points[:, 0], lat.ravel(), atol=1e-5)
    assert np.allclose(points[:, 1] % 360, lon.ravel() % 360, atol=1e-5)
    assert np.allclose(points[:, 2], field.read().ravel(), atol=1e-3)


@pytest.mark.parametrize("scanning", range(0, 256, 16))
def test_in_rows_point_by_point(scanning):
    "The rule of the WMO, walked through like a clerk."
    rows, columns = 3, 4
    walk = []
    outer, inner = (columns, rows) if scanning & 32 else (rows, columns)
    for a in range(outer):
        line = range(inner)
        for b in reversed(line) if scanning & 16 and a % 2 else line:
            j, i = (b, a) if scanning & 32 else (a, b)
            walk.append(
                (j if scanning & 64 else rows - 1 - j, columns - 1 - i if scanning & 128 else i)
            )
    placed = grib.in_rows(np.arange(12), (rows, columns), scanning)
    assert [placed[place] for place in walk] == list(range(12))


def test_shifted_rows_are_left_out(tmp_path):
    good = message(grib._eccodes("test"), "GRIB2", DEGREES, np.arange(24.0))
    at = section_starts(good)[3] + 71
    (tmp_path / "a.grib").write_bytes(with_octets(good, at, b"\x08") + good)
    with pytest.warns(UserWarning, match="1 of 2 fields left out: 1 scanning mode 8"):
        assert len(grib_fields(tmp_path / "a.grib")) == 1


# ------------------------------------------------------------------ corners and increments


def increments(step, **others):
    "A map of 5 columns and 4 rows, one degree apart, whose increments are something else."
    keys = world(1.0, 36.0, 39.0, 10.0, 14.0)[0]
    return (
        keys | dict(iDirectionIncrementInDegrees=step, jDirectionIncrementInDegrees=step) | others
    )


@pytest.mark.parametrize("sample", ["GRIB1", "GRIB2"])
@pytest.mark.parametrize("keys", [increments(1, ijDirectionIncrementGiven=0), increments(1)])
def test_increments_are_not_needed(tmp_path, sample, keys):
    content = message(grib._eccodes("test"), sample, keys, np.arange(20.0))
    (tmp_path / "a.grib").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid = grib_fields(tmp_path / "a.grib")[0].grid
    assert np.allclose(grid.x, [10, 11, 12, 13, 14]) and np.allclose(grid.y, [36, 37, 38, 39])


@pytest.mark.parametrize("sample", ["GRIB1", "GRIB2"])
def test_wrong_increments_between_certain_corners_are_told(tmp_path, sample):
    "ECMWF's files of a part of the globe often keep the increments of another grid."
    content = message(grib._eccodes("test"), sample, increments(0.5), np.arange(20.0))
    (tmp_path / "a.grib").write_bytes(content)
    with pytest.warns(UserWarning, match="increments ignored: 0.5 instead of 1 degrees"):
        grid = grib_fields(tmp_path / "a.grib")[0].grid
    assert np.allclose(grid.x, [10, 11, 12, 13, 14]) and np.allclose(grid.y, [36, 37, 38, 39])


@pytest.mark.parametrize("end, value", [("latitude", 20), ("longitude", 30)])
def test_a_wrong_corner_is_refused_with_its_numbers(tmp_path, end, value):
    keys = increments(1) | {f"{end}OfLastGridPointInDegrees": value}
    content = message(grib._eccodes("test"), "GRIB2", keys, np.arange(20.0))
    (tmp_path / "a.grib").write_bytes(content)
    with pytest.raises(GridError, match="increment of (rows|columns): expected .* found 1"):
        grib_fields(tmp_path / "a.grib")


@pytest.mark.parametrize(
    "west, east, step", [(358, 2, 1), (-180, 180, 90), (0, 288, 72), (350, 34, 11)]
)
def test_longitudes_across_greenwich_and_around_the_earth(tmp_path, west, east, step):
    keys = increments(1) | dict(
        longitudeOfFirstGridPointInDegrees=west,
        longitudeOfLastGridPointInDegrees=east,
        iDirectionIncrementInDegrees=step,
    )
    content = message(grib._eccodes("test"), "GRIB2", keys, np.arange(20.0))
    assert np.allclose(np.diff(check_grid(tmp_path, content).x), step)


def check_grid(folder, content):
    "The grid of a message, whose places are those of the library."
    (folder / "a.grib").write_bytes(content)
    grid = grib_fields(folder / "a.grib")[0].grid
    lon, lat, _ = of_file(content)
    ours = np.sort(np.round(grid.lonlat()[0], 6).ravel() % 360), np.sort(grid.lonlat()[1].ravel())
    assert np.allclose(np.sort(np.round(lon, 6) % 360), ours[0]) and np.allclose(
        np.sort(lat), ours[1]
    )
    return grid


def test_a_single_row_is_left_out_with_its_reason(tmp_path):
    keys = increments(1) | dict(Nj=1, latitudeOfLastGridPointInDegrees=39)
    content = message(grib._eccodes("test"), "GRIB2", keys, np.arange(5.0))
    (tmp_path / "a.grib").write_bytes(content)
    with pytest.raises(GridError, match="single row"):
        grib_fields(tmp_path / "a.grib")


def test_rows_that_contradict_the_scanning_mode_are_refused(tmp_path):
    keys = increments(1) | dict(jScansPositively=1)
    content = message(grib._eccodes("test"), "GRIB2", keys, np.arange(20.0))
    (tmp_path / "a.grib").write_bytes(content)
    with pytest.raises(GridError, match="contradict the scanning mode"):
        grib_fields(tmp_path / "a.grib")


# ------------------------------------------------------------------ Gaussian grids and ICON


@pytest.mark.parametrize("n", [1, 2, 16, 48, 160])
def test_gaussian_latitudes_are_the_nodes_of_numpy(n):
    sines = np.polynomial.legendre.leggauss(2 * n)[0]
    assert np.allclose(grib.gaussian_latitudes(n), np.degrees(np.arcsin(sines)), atol=1e-9)


def test_gaussian_latitudes_are_those_of_eccodes():
    ec = grib._eccodes("test")
    m = ec.codes_grib_new_from_samples("reduced_gg_pl_320_grib2")
    theirs = np.unique(ec.codes_get_array(m, "latitudes"))
    ec.codes_release(m)
    assert np.allclose(grib.gaussian_latitudes(320), theirs, atol=1e-9)


@pytest.mark.parametrize("sample", ["regular_gg_sfc_grib1", "regular_gg_sfc_grib2"])
def test_regular_gaussian_grids(tmp_path, sample):
    field = check_places(
        tmp_path / "a.grib", message(grib._eccodes("test"), sample, {}, np.arange(8192.0))
    )
    assert field.grid.shape == (64, 128) and np.array_equal(
        field.grid.y, grib.gaussian_latitudes(32)
    )


@pytest.mark.parametrize(
    "sample, points",
    [
        ("reduced_gg_sfc_grib1", 6114),
        ("reduced_gg_pl_32_grib2", 6114),
        ("reduced_ll_sfc_grib2", 313362),
    ],
)
def test_reduced_grids(tmp_path, sample, points):
    field = check_places(
        tmp_path / "a.grib", message(grib._eccodes("test"), sample, {}, np.arange(points) % 5000)
    )
    assert isinstance(field.grid, UnstructuredGrid) and field.grid.shape == (points,)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_regridding_from_a_reduced_grid(tmp_path, method):
    ec = grib._eccodes("test")
    content = message(ec, "reduced_gg_pl_32_grib2", {}, np.zeros(6114))
    lat = of_file(content)[1]
    (tmp_path / "a.grib").write_bytes(
        message(ec, "reduced_gg_pl_32_grib2", {}, np.full(6114, 7.0))
        + message(ec, "reduced_gg_pl_32_grib2", {}, lat)
    )
    constant, latitude = grib_fields(tmp_path / "a.grib")
    assert constant.grid is latitude.grid  # made once
    regridder = Regridder.between(constant.grid, KMA, method)
    assert np.allclose(regridder(constant.read()), 7, rtol=1e-12)
    error = np.abs(regridder(latitude.read()) - KMA.lonlat()[1])
    assert error.max() < (1.5 if method == "nearest" else 0.1)  # rows are 2.8 degrees apart


UUID = "a27b8de618c411e4820ab5b098c6a5c0"


def icon(points=20):
    "A GRIB 2 message on triangles."
    ec = grib._eccodes("test")
    m = ec.codes_grib_new_from_samples("GRIB2")
    ec.codes_set(m, "gridDefinitionTemplateNumber", 101)
    for key, value in dict(
        numberOfGridUsed=26, numberOfGridInReference=1, uuidOfHGrid=UUID, numberOfDataPoints=points
    ).items():
        ec.codes_set(m, key, value)
    ec.codes_set_values(m, np.arange(float(points)))
    content = ec.codes_get_message(m)
    ec.codes_release(m)
    return content


def icon_grid(path, uuid=UUID, points=20):
    "A file with the midpoints of triangles, as DWD publishes it."
    rng = np.random.default_rng(0)
    lon, lat = np.radians(rng.uniform(5, 15, points)), np.radians(rng.uniform(45, 55, points))
    dashed = "-".join([uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]])
    radian = dict(units="radian")
    ds = xr.Dataset(dict(clon=("cell", lon, radian), clat=("cell", lat, radian)))
    ds.assign_attrs(uuidOfHGrid=dashed, number_of_grid_used=26).to_netcdf(path)
    return np.degrees(lon), np.degrees(lat)


def test_triangles_of_icon_need_the_file_of_their_points(tmp_path):
    path = tmp_path / "icon.grib2"
    path.write_bytes(icon())
    icon_grid(tmp_path / "another.nc", uuid=UUID[::-1])
    told = f"ICON grid 26: needs the NetCDF file.*icon_grid_0026.*{UUID}.*{tmp_path}"
    with pytest.raises(GridError, match=told):
        grib_fields(path)
    lon, lat = icon_grid(tmp_path / "any name.nc")
    field = grib_fields(path)[0]  # asked again after the file has come
    assert np.allclose(field.grid.lon, lon) and np.allclose(field.grid.lat, lat)
    assert np.allclose(field.read(), np.arange(20))


def test_icon_grid_of_another_size_is_refused(tmp_path):
    (tmp_path / "icon.grib2").write_bytes(icon())
    icon_grid(tmp_path / "grid.nc", points=21)
    with pytest.raises(GridError, match="triangles: expected 20"):
        grib_fields(tmp_path / "icon.grib2")


def test_files_of_points_are_told_from_forecasts(tmp_path):
    icon_grid(tmp_path / "grid.nc")
    with xr.open_dataset(tmp_path / "grid.nc") as ds:
        ds.assign(t=(("time", "cell"), np.zeros((1, 20)))).to_netcdf(tmp_path / "forecast.nc")
    (tmp_path / "a.grib").write_bytes(icon())
    assert grib.is_icon_grid(tmp_path / "grid.nc")
    for other in ("forecast.nc", "a.grib", "nothing", "."):
        assert not grib.is_icon_grid(tmp_path / other)


# ------------------------------------------------------------------ one message and the others


def test_a_constant_field_in_groups_does_not_spoil_its_file(tmp_path):
    "A GFS file of 344 messages was refused because of one without any rain."
    (tmp_path / "a.grib").write_bytes(hours(1) + constant_in_groups(grib._eccodes("test"), 4.0))
    fields = grib_fields(tmp_path / "a.grib")
    assert len(fields) == 2 and np.all(fields[1].read() == 4)


def hurt(content):
    "A message with a section that is too long."
    return with_octets(content, section_starts(content)[5] + 3, b"\x16")


def test_a_damaged_message_is_left_out_unless_it_was_wanted(tmp_path):
    ec = grib._eccodes("test")
    wind = grib2(ec, "kwbc", world()[0], "u", np.ones(684), ("ground", 10))
    (tmp_path / "a.grib").write_bytes(hours(1) + hurt(wind) + hours(2))
    for names in (None, ["tp"]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(grib_fields(tmp_path / "a.grib", names)) == 2
        told = [str(one.message) for one in caught]
        reason = "a.grib: 1 of 3 fields left out: 1 damaged (lengths that do not add up)"
        assert told == [reason]  # whatever is asked for: the name may be damaged, too
    with pytest.raises(DataError, match="a.grib: message at byte .* complete GRIB"):
        grib_fields(tmp_path / "a.grib", ["10u"])


def test_a_file_of_nothing_but_damage_is_refused(tmp_path):
    (tmp_path / "a.grib").write_bytes(hurt(hours(1)) + hurt(hours(2)))
    with pytest.raises(DataError, match="2 of 2 fields left out: 2 damaged"):
        grib_fields(tmp_path / "a.grib")


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    (tmp_path / "a.grib").write_bytes(hours(1) + hours(2)[:-30])
    with pytest.raises(DataError, match="a.grib: message 2 at byte .* the file ends after"):
        grib_fields(tmp_path / "a.grib", ["t"])


def test_impossible_periods_cost_their_own_field(tmp_path):
    bad = hours(2)
    bad = with_octets(bad, section_starts(bad)[4] + 49, bytes.fromhex("ffffffe8"))
    (tmp_path / "a.grib").write_bytes(hours(1) + bad)
    with pytest.warns(UserWarning, match="1 of 2 fields left out: 1 a period of negative length"):
        assert [f.end_step for f in grib_fields(tmp_path / "a.grib")] == [1]


@pytest.mark.parametrize("year", [0, 12857])
def test_fields_without_a_valid_date_have_none(tmp_path, year):
    mask = with_octets(hours(1), 28, year.to_bytes(2, "big"))
    (tmp_path / "a.grib").write_bytes(mask)
    with pytest.warns(UserWarning, match="without a valid date, usable as constants only: tp"):
        field = grib_fields(tmp_path / "a.grib")[0]
    assert np.isnat(field.reference_time) and np.all(field.read() == 1)


# ------------------------------------------------------------------ damaged files


def wanted(path):
    "All names of a file, as the argument of the reader: damage to any of them is an error."
    return repr(({f.name for f in grib_fields(path)},))


@pytest.mark.parametrize(
    "name, n",
    [
        ("wrf-stage2-2005/stage2/ST2ml2005080712.Grb_G212", 300),
        ("hrrr/subset_20201214_hrrr.t00z.wrfsfcf12.grib2", 60),
        ("meteonet-nw/arome_PRECIP_NW_20180501000000.grib", 40),
        ("wrf-stage2-2005/wrf/wrfprs_ruc13_12.tm00_G212", 30),
    ],
)
def test_damaged_copies_never_crash(tmp_path, name, n):
    fuzz(real(name), tmp_path / "bad", READER, n, wanted(real(name)))


@pytest.mark.parametrize("name", ["era5", "gfs"])
def test_damaged_synthetic_files_never_crash(tmp_path, name):
    (tmp_path / "good").mkdir()
    BUILT[name](tmp_path / "good", grib._eccodes("test"))
    good = sorted((tmp_path / "good").iterdir())[0]
    fuzz(good, tmp_path / "bad", READER, 60, wanted(good))


def test_damaged_groups_of_complex_packing_never_crash(tmp_path):
    rain = np.abs(np.sin(np.arange(180.0))) * 20
    packing = dict(packingType="grid_complex_spatial_differencing", orderOfSpatialDifferencing=2)
    content = b""
    for k in (1, 2, 3):
        about = dict(hour=k, since=0, keys=packing)
        content += grib2(grib._eccodes("test"), "kwbc", world(20.0)[0], "tp", rain * k, **about)
    (tmp_path / "packed").write_bytes(content)
    fuzz(tmp_path / "packed", tmp_path / "bad", READER, 120, wanted(tmp_path / "packed"))


@pytest.mark.parametrize("parts, fits", [(0, True), (10**6, True), (1, False), (10**6 + 1, False)])
def test_degrees_in_parts_need_a_basic_angle(tmp_path, parts, fits):
    "Without a basic angle degrees are in millionths; ecCodes takes other parts at their word."
    grid, _, lat = world(1.0, 30, 36, 120, 127)
    keys = dict(subdivisionsOfBasicAngle=parts)
    path = tmp_path / "parts.grib2"
    path.write_bytes(grib2(grib._eccodes("test"), "kwbc", grid, "t", lat, ("ground", 2), keys=keys))
    if fits:
        assert np.allclose(grib_fields(path)[0].grid.lonlat()[1], lat[::-1])
    else:
        with pytest.raises(GridError, match=f"{parts} parts"):
            grib_fields(path)


def test_a_damaged_message_is_told_even_if_its_name_is_not_wanted(tmp_path):
    "Its header may be what was damaged: then a wanted field would vanish without a word."
    ec, (grid, _, lat) = grib._eccodes("test"), lambert()
    good = grib2(ec, "kwbc", grid, "t", lat, ("ground", 2))
    bad = bytearray(grib2(ec, "kwbc", grid, "t", lat, ("p", 85000)))
    bad[section_starts(bytes(bad))[5] + 3] += 1  # a section is said to be longer than it is
    path = tmp_path / "t.grib2"
    path.write_bytes(good + bad)
    with pytest.warns(UserWarning, match="1 of 2 fields left out: 1 damaged"):
        assert len(grib_fields(path, ["2t"])) == 1
    with pytest.raises(DataError, match="t.grib2"):
        grib_fields(path, ["t"])
