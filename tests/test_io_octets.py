"The frame of GRIB messages: sections, damage, codes and times."

import numpy as np
import pytest

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from real import real
from synthetic import constant_in_groups, grib2, lambert, message, several, with_octets, world

from sslpdl_nb.core import DataError
from sslpdl_nb.io import octets
from sslpdl_nb.io.grib import _eccodes
from sslpdl_nb.io.octets import (
    Message,
    field_times,
    grib_messages,
    integer,
    read_messages,
    section_starts,
    sections,
    signed_integer,
    single_fields,
    unpack_bits,
    unsupported,
)

EC = _eccodes("test")


def rain(hour=6, since=0, keys=None):
    "One GRIB 2 message of rain."
    return grib2(
        EC, "kwbc", world(20.0)[0], "tp", np.arange(180.0), hour=hour, since=since, keys=keys
    )


# ------------------------------------------------------------------ integers and sections


@pytest.mark.parametrize(
    "hexadecimal, plain, signed", [("80000006", 2**31 + 6, -6), ("0005", 5, 5), ("ff", 255, -127)]
)
def test_integers_with_and_without_sign(hexadecimal, plain, signed):
    m = b"x" + bytes.fromhex(hexadecimal)
    assert integer(m, 1, len(m) - 1) == plain and signed_integer(m, 1, len(m) - 1) == signed


def test_bits_of_any_width():
    rng = np.random.default_rng(0)
    for width in (1, 3, 7, 8, 12, 25):
        numbers = rng.integers(0, 2**width, 40)
        text = "".join(f"{k:0{width}b}" for k in numbers)
        packed = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
        assert np.array_equal(unpack_bits(b"ab" + packed, 2, 40, width), numbers)
    assert not unpack_bits(b"", 0, 5, 0).any()


def test_sections_of_a_message_of_eccodes():
    m = rain()
    at = section_starts(m)
    assert [k for k, _ in sections(m)] == sorted(at) == [1, 3, 4, 5, 6, 7]
    assert b"".join(octets for _, octets in sections(m)) == m[16:-4]
    assert single_fields(m) == [m] and sections(m[:-1]) == []


def test_fields_of_one_message_are_split(tmp_path):
    values = [np.full((9, 12), k) for k in (1.0, 2.0, 3.0)]
    whole = several(EC, lambert()[0], values, tmp_path / "a")
    parts = single_fields(whole)
    assert len(parts) == 3 and all(len(single_fields(part)) == 1 for part in parts)
    for part, v in zip(parts, values):
        m = EC.codes_new_from_message(part)
        assert np.allclose(EC.codes_get_values(m), v.ravel())
        EC.codes_release(m)
    short = whole[:8] + (len(whole) - 1).to_bytes(8, "big") + whole[16:-5] + b"7777"
    assert single_fields(short) == []  # the last section is short of an octet


# ------------------------------------------------------------------ complex packing


@pytest.mark.parametrize("groups, missing", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("order", [1, 2])
def test_a_constant_field_in_groups_needs_no_octets(groups, missing, order):
    "NCEP's packing of a field that is the same everywhere: no bits, no octets for differences."
    content = constant_in_groups(EC, 100.0, groups=groups, missing=missing, order=order)
    assert octets._sections_agree(content)
    m = EC.codes_new_from_message(content)
    assert np.allclose(EC.codes_get_values(m), 100)
    EC.codes_release(m)


def test_groups_that_promise_more_than_there_is_are_refused():
    keys = dict(packingType="grid_complex_spatial_differencing", orderOfSpatialDifferencing=2)
    good = rain(keys=keys)
    at = section_starts(good)
    assert octets._sections_agree(good)
    for where, what in ((35, b"\x20"), (31, b"\0\0\1\0"), (48, b"\x05"), (47, b"\x03")):
        assert not octets._sections_agree(with_octets(good, at[5] + where, what))


def test_values_of_48_bits():
    m = EC.codes_new_from_message(message(EC, "GRIB1", world(20.0)[0], np.arange(180.0)))
    EC.codes_set(m, "bitsPerValue", 48)
    assert octets._sections_agree(EC.codes_get_message(m))
    EC.codes_release(m)


@pytest.mark.parametrize("sample", ["reduced_gg_sfc_grib1", "reduced_gg_pl_32_grib2"])
def test_rows_of_unequal_length_are_added_up(sample):
    good = message(EC, sample, {}, np.arange(6114.0))
    assert octets._sections_agree(good) and unsupported(good) == ""
    if sample.endswith("1"):
        grid = 8 + integer(good, 8, 3)
        assert octets._points_1(good, grid) == 6114
        assert not octets._sections_agree(with_octets(good, grid + 8, b"\0\x3f"))  # a row less


# ------------------------------------------------------------------ messages of a file


def test_padding_between_messages(tmp_path):
    good = real("wrf-stage2-2005/stage2/ST2ml2005080712.Grb_G212").read_bytes()
    (tmp_path / "padded").write_bytes(b"\r\r\nJUNK\n" + good + bytes(20) + good + b"\0\0\0")
    assert len(grib_messages(tmp_path / "padded")) == 2


def test_letters_across_the_parts_that_are_read(tmp_path):
    good = rain()
    for padding in range(65530, 65540):
        (tmp_path / "a").write_bytes(good + bytes(padding) + good)
        assert grib_messages(tmp_path / "a")[1] == (len(good) + padding, len(good))


def test_half_a_message_and_wrong_letters_are_refused(tmp_path):
    good, bad = rain(), tmp_path / "bad.grib"
    for content in (
        good[: len(good) // 2],
        b"GRIB" + bytes(60),
        b"GRIB\xff\xff\xff\x01" + bytes(90),
    ):
        bad.write_bytes(content)
        with pytest.raises(DataError, match="bad.grib: message 1 at byte 0.*GRIB 1 or 2"):
            grib_messages(bad)
    bad.write_bytes(b"GIRB" + good[4:])
    with pytest.raises(DataError, match="bad.grib: expected GRIB messages, found none"):
        grib_messages(bad)


def test_a_file_that_ends_too_early_is_refused_after_its_whole_messages(tmp_path):
    good = rain()
    for left in (3, 4, 10, 16, 60, len(good) - 1):
        (tmp_path / "cut").write_bytes(good + good[:left])
        reading = read_messages(tmp_path / "cut")
        assert next(reading) == Message(0, good)
        if left < 4:  # not even the letters: padding
            assert list(reading) == []
            continue
        with pytest.raises(DataError, match="message 2 at byte.*the file ends after"):
            next(reading)


def test_reading_goes_on_after_a_damaged_message(tmp_path):
    good = rain()
    inside = with_octets(good, section_starts(good)[5] + 3, b"\x16")  # a section is too long
    no_end = good[:-4] + b"xxxx"
    longer = with_octets(good, 15, bytes([good[15] + 8]))
    shorter = with_octets(good, 15, bytes([good[15] - 8]))
    for bad in (inside, no_end, longer, shorter, with_octets(good, 7, b"\x09")):
        (tmp_path / "a").write_bytes(good + bad + good)
        found = list(read_messages(tmp_path / "a"))
        assert [bool(message.damage) for message in found] == [False, True, False]
        assert [message.octets for message in found] == [good, bad, good]
        with pytest.raises(DataError, match="a: message 2 at byte"):
            grib_messages(tmp_path / "a")


def test_letters_inside_a_damaged_message_are_not_believed(tmp_path):
    good = rain()
    false = with_octets(good[:-4] + b"xxxx", len(good) - 60, b"GRIB\0\0\x30\x01")
    (tmp_path / "a").write_bytes(false + good)
    found = list(read_messages(tmp_path / "a"))
    assert [(message.offset, bool(message.damage)) for message in found] == [
        (0, True),
        (len(good), False),
    ]


# ------------------------------------------------------------------ codes


def test_products_that_are_no_values_of_their_quantity_are_named():
    for keys, why in (
        (dict(productDefinitionTemplateNumber=9), "a probability"),
        (dict(productDefinitionTemplateNumber=10, percentileValue=90), "a percentile other"),
        (dict(productDefinitionTemplateNumber=10, percentileValue=50), ""),
        (dict(productDefinitionTemplateNumber=12, derivedForecast=4), "a statistic of an ensemble"),
        (dict(productDefinitionTemplateNumber=12, derivedForecast=0), ""),
        (dict(productDefinitionTemplateNumber=11, perturbationNumber=3), ""),
    ):
        found = unsupported(rain(keys=keys))
        assert found.startswith(why) and bool(found) == bool(why), keys
    aerosols = rain(since=None, keys=dict(productDefinitionTemplateNumber=48))
    assert unsupported(aerosols) == "product template 48"


def test_coordinates_of_levels_do_no_harm():
    "ECMWF writes them into every message of a model level."
    m = EC.codes_new_from_message(rain(since=None))
    EC.codes_set(m, "PVPresent", 1)
    EC.codes_set_array(m, "pv", np.arange(20.0))
    content = EC.codes_get_message(m)
    EC.codes_release(m)
    assert octets._sections_agree(content) and unsupported(content) == ""
    product = section_starts(content)[4]
    assert not octets._sections_agree(with_octets(content, product + 5, b"\1\0"))  # too many


# ------------------------------------------------------------------ times


def of_library(content) -> tuple:
    "Date, and first and last hour, as the library reads them."
    m = EC.codes_new_from_message(content)
    date, time = EC.codes_get(m, "dataDate"), EC.codes_get(m, "dataTime")
    EC.codes_set(m, "stepUnits", "s")
    hours = [EC.codes_get(m, f"{end}Step", int) / 3600 for end in ("start", "end")]
    EC.codes_release(m)
    text = f"{date // 10000}-{date // 100 % 100:02}-{date % 100:02}T{time // 100:02}"
    return np.datetime64(text, "ns"), *hours


@pytest.mark.parametrize("unit", [0, 1, 2, 10, 11, 12, 13])
def test_units_of_edition_2(unit):
    content = rain(since=None, keys=dict(indicatorOfUnitOfTimeRange=unit))
    content = with_octets(content, section_starts(content)[4] + 18, b"\0\0\0\x03")
    assert field_times(content) == of_library(content)


@pytest.mark.parametrize("unit", [0, 1, 2, 10, 11, 12, 13, 14, 254])
@pytest.mark.parametrize("indicator", [0, 4, 10])
def test_units_of_edition_1(unit, indicator):
    content = message(EC, "GRIB1", world(20.0)[0], np.arange(180.0))
    content = with_octets(content, 25, bytes([unit, 0, 3, indicator]))
    assert unsupported(content) == "" and field_times(content) == of_library(content)


@pytest.mark.parametrize(
    "indicator, begin, end",
    [(0, 6, 6), (2, 6, 9), (5, 6, 9), (6, -6, -9), (7, -6, 9), (10, 1545, 1545)],
)
def test_time_ranges_of_edition_1(indicator, begin, end):
    content = message(EC, "GRIB1", world(20.0)[0], np.arange(180.0))
    content = with_octets(content, 25, bytes([1, 6, 9, indicator]))
    if indicator == 6:  # from 6 hours before to 9 hours before: the other way round
        with pytest.raises(DataError, match="ends before it begins"):
            field_times(content)
        return
    assert field_times(content)[1:] == (begin, end)


def test_an_analysis_has_no_forecast_time():
    content = message(EC, "GRIB1", world(20.0)[0], np.arange(180.0))
    analysis = with_octets(content, 25, bytes([1, 0, 9, 1]))
    assert field_times(analysis)[1:] == (0, 0)
    with pytest.raises(DataError, match="an analysis with a forecast time"):
        field_times(with_octets(content, 25, bytes([1, 6, 9, 1])))


def test_months_go_by_the_calendar():
    content = message(EC, "GRIB1", world(20.0)[0] | dict(dataDate=20240131), np.arange(180.0))
    content = with_octets(content, 25, bytes([3, 1, 2, 4]))  # from month 1 to month 2
    begin, end = field_times(content)[1:]  # 31 January, 30 days into the month
    assert (begin / 24, end / 24) == (31, 60)  # February 2024 has 29 days


@pytest.mark.parametrize("template", [8, 9, 10, 11, 12, 13, 14, 61])
def test_periods_of_all_templates(template):
    content = rain(hour=9, since=3, keys=dict(productDefinitionTemplateNumber=template))
    m = EC.codes_new_from_message(content)
    EC.codes_set(m, "stepRange", "3-9")
    content = EC.codes_get_message(m)
    EC.codes_release(m)
    assert octets._sections_agree(content)
    assert field_times(content) == of_library(content)
    assert field_times(content)[1:] == (3, 9)


def with_hours(content, hexadecimal):
    "A message whose forecast time is these octets."
    return with_octets(content, section_starts(content)[4] + 18, bytes.fromhex(hexadecimal))


def test_negative_hours_have_a_sign_bit():
    content = with_hours(rain(since=None), "80000006")
    assert field_times(content) == of_library(content)
    assert field_times(content)[1:] == (-6, -6)
    with pytest.raises(DataError, match="more than 100 years"):
        field_times(with_hours(rain(since=None), "fffffffa"))  # two's complement, unproven


def test_the_end_of_a_period_proves_the_other_form_of_negative_hours():
    period = rain(hour=0, since=-6)
    assert field_times(period)[1:] == (-6, 0) == of_library(period)[1:]
    assert field_times(with_hours(period, "fffffffa"))[1:] == (-6, 0)
    with pytest.raises(DataError, match="contradict|100 years"):
        field_times(with_hours(period, "fffffff9"))


def test_periods_that_cannot_be_are_refused():
    "Canadian analyses of precipitation have a forecast time of 24 and a length of -24 hours."
    period = rain(hour=24, since=0)
    length = section_starts(period)[4] + 49
    for octets_of_length in ("ffffffe8", "80000018"):
        with pytest.raises(DataError, match="a period of negative length"):
            field_times(with_octets(period, length, bytes.fromhex(octets_of_length)))
    with pytest.raises(DataError, match="contradict each other"):
        field_times(with_octets(period, length + 3, b"\x0c"))  # 12 hours, but the end after 24
    with pytest.raises(DataError, match="without an end"):
        no_date = with_octets(period, length - 15, bytes(7))
        field_times(with_octets(no_date, length, b"\xff" * 4))
    product = message(EC, "GRIB1", world(20.0)[0], np.arange(180.0))
    with pytest.raises(DataError, match="ends before it begins"):
        field_times(with_octets(product, 25, bytes([1, 24, 12, 4])))


def test_times_too_far_away_are_refused():
    with pytest.raises(DataError, match="more than 100 years"):
        field_times(with_hours(rain(since=None), "7fffffff"))
    late = rain(since=None, keys=dict(dataDate=20900101, indicatorOfUnitOfTimeRange=4))
    with pytest.raises(DataError, match="from now"):
        field_times(with_hours(late, "00000050"))


@pytest.mark.parametrize(
    "date",
    [(0, 1, 1, 0), (12857, 1, 1, 0), (1754, 1, 1, 0), (2024, 0, 1, 0), (2023, 2, 29, 0)]
    + [(2024, 7, 1, 24), (65535, 255, 255, 255)],
)
def test_impossible_dates_are_no_time(date):
    content = with_octets(rain(since=None), 16 + 12, date[0].to_bytes(2, "big") + bytes(date[1:]))
    reference_time, begin, end = field_times(content)
    assert np.isnat(reference_time) and begin == end == 6


def test_a_year_that_is_missing_in_edition_1():
    content = message(EC, "GRIB1", world(20.0)[0], np.arange(180.0))
    assert np.isnat(field_times(with_octets(content, 20, b"\xff\xff\xff"))[0])


def test_a_century_has_a_hundred_years_in_edition_1():
    m = EC.codes_grib_new_from_samples("regular_ll_sfc_grib1")
    content = bytearray(EC.codes_get_message(m))
    EC.codes_release(m)
    content[20], content[32] = 26, 21  # year and century
    assert str(field_times(bytes(content))[0])[:4] == "2026"
    content[20] = 126
    assert np.isnat(field_times(bytes(content))[0])
