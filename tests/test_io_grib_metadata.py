"""GRIB headers with extremes: read as ecCodes and the octets say, or refused, never guessed.

`python tools/fuzz.py --metadata 20000` compares many more of them.
"""

import numpy as np
import pytest

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from fuzz_files import small_world
from fuzz_grib import changed, compare, compare_many, made_up, polar_places, sections

from sslpdl_nb.core import SSLPDLError
from sslpdl_nb.io import grib


def test_odd_headers_are_read_as_others_read_them_or_refused():
    counts, differences = compare_many(300, seed=0)
    assert differences == []
    assert counts["agree"] > 100
    assert counts["refused"] + counts["left out"] + counts["both refuse"] > 50


@pytest.fixture(scope="module")
def good():
    "Synthetic messages by name."
    return made_up(grib._eccodes("test"))


def with_octets(m, section, octet, content):
    "A message in which octets of a section are others; octets are counted from 1."
    at = sections(m)[section] + octet - 1
    return m[:at] + content + m[at + len(content) :]


def read(path, m):
    "The only field of a message."
    path.write_bytes(m)
    (field,) = grib.grib_fields(path)
    return field


def test_all_good_messages_are_read_as_they_should_be(good, tmp_path):
    for name, m in good.items():
        assert compare(grib._eccodes("test"), m, tmp_path / "a.grib") == ("agree", ""), name


MISSING = b"\xff" * 4


@pytest.mark.parametrize(
    "name, section, octet, content, words",
    [
        # places that are not on the Earth: the library reads missing values as numbers
        ("cone2", 3, 39, MISSING, "latitudeOfFirstGridPoint of"),
        ("cone2", 3, 52, MISSING, "LoV of"),
        ("cone2", 3, 66, b"\x7f\xff\xff\xff", "Latin1 of"),
        ("polar2", 3, 48, b"\x0f\xff\xff\xff", "LaD of 268"),
        ("polar2", 3, 52, b"\x7f\xff\xff\xff", "orientationOfTheGrid of"),
        ("mercator2", 3, 43, b"\x7f\xff\xff\xff", "longitudeOfFirstGridPoint of"),
        ("degrees2", 3, 51, b"\x7f\xff\xff\xff", "longitudeOfFirstGridPoint of"),
        ("rotated2", 3, 77, b"\x7f\xff\xff\xff", "longitudeOfSouthernPole of"),
        ("cone1", 2, 18, b"\x7f\xff\xff", "LoV of"),
        # increments: missing, negative, wider than the Earth
        ("cone2", 3, 60, MISSING, "increments"),
        ("cone2", 3, 60, b"\x7f\xff\xff\xff", "increments of"),
        ("cone1", 2, 21, b"\x80\0\1", "increments"),
        ("polar2south", 3, 48, (60_000_000).to_bytes(4, "big"), "true latitude in the other"),
        # levels
        ("degrees2", 4, 24, b"\xff", "a level without a number"),
        ("degrees2", 4, 25, MISSING, "a level without a number"),
        ("near2", 4, 25, b"\x80\0\0\2", "a level without a number"),
        ("rotated1", 1, 11, b"\xff\xff", "a level without a number"),
        # times
        ("degrees2", 4, 18, b"\x0d" + MISSING, "a forecast time that is not given"),
        ("degrees2", 1, 12, b"\2", "significance of the reference time 2"),
        ("rain2", 4, 37, b"\x0d", "a period that ends on a day that does not exist"),
        ("rain2", 4, 47, b"\x7f", "statistic 127 of a period"),
        ("degrees1", 1, 21, b"\1", "an analysis with a forecast time"),
    ],
)
def test_what_is_missing_or_impossible_is_refused(
    good, tmp_path, name, section, octet, content, words
):
    m = with_octets(good["member2" if name == "near2" else name], section, octet, content)
    (tmp_path / "a.grib").write_bytes(m)
    with pytest.raises(SSLPDLError, match=words):
        grib.grib_fields(tmp_path / "a.grib")


@pytest.mark.parametrize(
    "packing, at, content",
    [
        ("grid_jpeg", 8, b"\0\0\x80\x0c"),  # columns
        ("grid_jpeg", 12, b"\0\0\4\7"),  # rows
        ("grid_jpeg", 40, b"\0\2"),  # layers
        ("grid_jpeg", 43, b"\2"),  # a pixel in two columns
        ("grid_png", 16, b"\0\0\1\0"),
        ("grid_png", 24, b"\1"),  # bits
    ],
)
def test_pictures_with_other_pixels_than_values_are_refused(tmp_path, packing, at, content):
    ec = grib._eccodes("test")
    try:
        m = small_world(ec, 2, 3, np.abs(np.sin(np.arange(84.0))) * 20, packingType=packing)
    except ec.CodesInternalError:
        pytest.skip("ecCodes was built without this packing")
    assert read(tmp_path / "a.grib", m).read().max() > 19
    at += sections(m)[7] + 5
    (tmp_path / "a.grib").write_bytes(m[:at] + content + m[at + len(content) :])
    with pytest.raises(SSLPDLError, match="lengths that do not add up"):
        grib.grib_fields(tmp_path / "a.grib")


@pytest.mark.parametrize("name", ["polar2", "cone2", "mercator2", "degrees2", "cone1", "degrees1"])
@pytest.mark.parametrize("along", [False, True])
def test_winds_along_the_grid_or_not(good, tmp_path, name, along):
    m = good[name]
    octet = {"degrees2": 55}.get(name, 17 if m[7] == 1 else 47)
    flags = m[sections(m)[2 if m[7] == 1 else 3] + octet - 1] & ~8
    m = with_octets(m, 2 if m[7] == 1 else 3, octet, bytes([flags | 8 * along]))
    assert read(tmp_path / "a.grib", m).grid_relative == along


@pytest.mark.parametrize(
    "name, factor, value, level",
    [
        ("degrees2", 0, 19464, 194.64),
        ("degrees2", 0, 85000, 850),
        ("degrees2", 0x82, 850, 850),  # 850 * 10 ** 2 Pa
        ("member2", 1, 15, 1.5),
        ("member2", 2, 1, 0.01),
        ("member2", 0, 100_000, 100_000),
    ],
)
def test_levels_are_not_rounded(good, tmp_path, name, factor, value, level):
    m = with_octets(good[name], 4, 24, bytes([factor]) + value.to_bytes(4, "big"))
    assert read(tmp_path / "a.grib", m).level == pytest.approx(level)


@pytest.mark.parametrize("date", [bytes(7), b"\xff" * 7])
def test_a_period_whose_end_is_not_given_has_a_length(good, tmp_path, date):
    f = read(tmp_path / "a.grib", with_octets(good["rain2"], 4, 35, date))
    assert (f.start_step, f.end_step) == (3, 6)


def test_polar_maps_of_an_ellipsoid_follow_the_formulas(good, tmp_path):
    ec = grib._eccodes("test")
    m = changed(ec, good["polar2"], (("shapeOfTheEarth", 5),))
    lon, lat = read(tmp_path / "a.grib", m).grid.lonlat()
    h = ec.codes_new_from_message(m)
    expected = polar_places(lambda key: ec.codes_get(h, key), *lat.shape)
    ec.codes_release(h)
    assert np.allclose((lon - expected[0] + 180) % 360, 180, atol=1e-6)
    assert np.allclose(lat, expected[1], atol=1e-6)
