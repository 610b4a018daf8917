"GRIB: grids, several fields in a message, unsupported codes, and damage that never crashes."

from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from fuzz import fuzz
from real import real
from synthetic import BUILT, grib2, lambert, message, several, world

from sslpdl_nb.core import DataError, GridError
from sslpdl_nb.io import grib
from sslpdl_nb.io.fields import open_file
from sslpdl_nb.io.grib import grib_fields
from sslpdl_nb.io.octets import grib_messages

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


# ------------------------------------------------------------------ damaged files


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
    fuzz(real(name), tmp_path / "bad", READER, n)


@pytest.mark.parametrize("name", ["era5", "gfs"])
def test_damaged_synthetic_files_never_crash(tmp_path, name):
    (tmp_path / "good").mkdir()
    BUILT[name](tmp_path / "good", grib._eccodes("test"))
    fuzz(sorted((tmp_path / "good").iterdir())[0], tmp_path / "bad", READER, 120)


def test_damaged_groups_of_complex_packing_never_crash(tmp_path):
    rain = np.abs(np.sin(np.arange(180.0))) * 20
    packing = dict(packingType="grid_complex_spatial_differencing", orderOfSpatialDifferencing=2)
    content = b""
    for k in (1, 2, 3):
        about = dict(hour=k, since=0, keys=packing)
        content += grib2(grib._eccodes("test"), "kwbc", world(20.0)[0], "tp", rain * k, **about)
    (tmp_path / "packed").write_bytes(content)
    fuzz(tmp_path / "packed", tmp_path / "bad", READER, 120)
