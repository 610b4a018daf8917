"Source tables: every row follows the grammar, every quantity is known, wrong names are refused."

import pickle
import re
from dataclasses import replace

import pytest

from synthetic import BUILT

from sslpdl_nb.core import VARIABLE_NAMES, DataError
from sslpdl_nb.io.fields import Source
from sslpdl_nb.io.lexicon import (
    QUANTITY_UNITS,
    RAIN_SOURCES,
    SOURCES,
    RainSource,
    alternatives,
    names_in,
    split_quantity,
    the_rain_source,
    the_source,
)

SUPPORTING = {"td500", "q500", "sp", "orog", "ws10", "wd10"}  # from which others are computed


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_of_every_table(name):
    source = SOURCES[name]
    for row in source.fields:
        quantity = row.replace("{p}", "500")
        assert quantity in {*VARIABLE_NAMES, *SUPPORTING} or row.endswith("{p}"), quantity
        assert split_quantity(quantity)[0] in QUANTITY_UNITS
        for parts in alternatives(source, quantity):
            for field_name, level_type, level in parts:
                assert field_name in names_in(source) and level_type and level >= 0
    assert set(source.amounts) <= names_in(source)
    assert source.about and hash(source) and pickle.loads(pickle.dumps(source)) == source


def test_each_table_says_on_what_it_was_tried():
    built = {name for name, source in SOURCES.items() if "built" in source.tried}
    # icon-d2, wrfout, era5-netcdf, komet-gdaps: test_io_nwp.py; sslpdl: test_io_prepare.py
    assert built == {*BUILT, "icon-d2", "wrfout", "era5-netcdf", "komet-gdaps", "sslpdl"}
    assert {name for name, source in SOURCES.items() if not source.tried} == {"grib"}
    real = {name for name, source in RAIN_SOURCES.items() if "real" in source.tried}
    assert real == {"stage", "knmi", "meteonet", "met-netcdf"}  # read in test_io_qpe.py
    assert all(RAIN_SOURCES[name].tried == "built" for name in {*RAIN_SOURCES} - real)


def test_the_general_table_knows_all_names_of_grib():
    for name in (
        "wrf",
        "hrrr",
        "gfs",
        "arpege",
        "arome",
        "rdaps-kim",
        "era5",
        "icon-eu",
        "icon-d2",
    ):
        unknown = names_in(SOURCES[name]) - names_in(SOURCES["grib"])
        assert not unknown, (name, unknown)
        for variable in VARIABLE_NAMES:
            known = {key for parts in alternatives(SOURCES["grib"], variable) for key in parts}
            mine = {key for parts in alternatives(SOURCES[name], variable) for key in parts}
            assert mine <= known


@pytest.mark.parametrize(
    "text, name",
    [
        ("kwbc od hrrr.t00z.wrfsfcf12.grib2", "hrrr"),
        ("kwbc od gfs.t00z.pgrb2.0p25.f007", "gfs"),
        ("59 wrfprs_ruc13_12.tm00_G212", "wrf"),
        ("edzw od icon-d2_germany_regular-lat-lon_single-level_2024070100_001_2d_pmsl", "icon-d2"),
        ("edzw od icon-eu_europe_regular-lat-lon_pressure-level_2024070100_001_500_FI", "icon-eu"),
        ("lfpw od arpege_2m_NW_20180501000000.grib", "arpege"),
        ("lfpw od arome_PRECIP_NW_20180501000000.grib", "arome"),
        ("rksl od r030_v040_ne36_pres_h005.2024070100.gb2", "rdaps-kim"),
        ("ecmf ea adaptor.mars.internal.grib", "era5"),
        ("kwbc od forecast.grib2", None),
        ("ecmf od forecast.grib", None),
    ],
)
def test_signs_point_to_one_model(text, name):
    found = [n for n, source in SOURCES.items() if source.signs and re.search(source.signs, text)]
    assert [n for n in found if not n.endswith("-netcdf")] == ([name] if name else [])


def test_the_general_table_prefers_amounts_of_rain_to_rates():
    *amounts, last = alternatives(SOURCES["grib"], "rain")
    assert last == (("prate", "surface", 0.0),)
    assert amounts[0] == (("tp", "surface", 0.0),) and last not in amounts


def test_levels_above_the_top_or_outside_of_the_kept_part():
    where = SOURCES["wrfout"].elsewhere
    assert "top of the model" in where and "kept" in where and "100 hPa" not in where


def test_order_sums_and_levels():
    rain = "a surface 0 | b surface 0 + c heightAboveGround 1.5"
    source = Source(fields={"rain": rain, "t{p}": "T isobaricInhPa {p}", "t500": "T5 surface 0"})
    assert alternatives(source, "rain") == [
        (("a", "surface", 0.0),),
        (("b", "surface", 0.0), ("c", "heightAboveGround", 1.5)),
    ]
    assert alternatives(source, "t850") == [(("T", "isobaricInhPa", 850.0),)]
    assert alternatives(source, "t92.5") == [(("T", "isobaricInhPa", 92.5),)]
    assert alternatives(source, "t500") == [(("T5", "surface", 0.0),)]  # a row of its own wins
    assert alternatives(source, "slp") == []
    assert names_in(source) == {"a", "b", "c", "T", "T5"}


def test_ten_metres_are_no_pressure():
    source = Source(fields={"u{p}": "u isobaricInhPa {p}", "t{p}": "t isobaricInhPa {p}"})
    assert alternatives(source, "u10") == [] == alternatives(source, "t2m")
    assert alternatives(source, "t10") == [(("t", "isobaricInhPa", 10.0),)]
    assert alternatives(source, "u100") == [(("u", "isobaricInhPa", 100.0),)]


@pytest.mark.parametrize("row", ["t 850", "t isobaricInhPa high", "t surface 0 |", "a b 1 + ", "x"])
def test_malformed_rows_are_refused(row):
    source = Source(fields={"t850": row})
    with pytest.raises(DataError, match="row of a source table"):
        alternatives(source, "t850")
    with pytest.raises(DataError, match="row of a source table"):
        names_in(source)


@pytest.mark.parametrize("quantity", ["", "850", "temperature", "t-850", "T850", "gust10"])
def test_unknown_quantities_are_refused(quantity):
    with pytest.raises(DataError, match="quantity"):
        split_quantity(quantity)


def test_a_source_by_its_name():
    assert the_source("gfs") is SOURCES["gfs"] is the_source(SOURCES["gfs"])
    own = the_source({"rain": "tp surface 0"})
    assert own == Source(fields={"rain": "tp surface 0"})
    with pytest.raises(DataError, match="one of .*gfs.*'moon'"):
        the_source("moon")


def test_a_source_of_rain_by_its_name():
    assert the_rain_source("knmi") is RAIN_SOURCES["knmi"]
    own = replace(RAIN_SOURCES["kma"], utc_offset=9.0)
    assert the_rain_source(own) is own and isinstance(own, RainSource)
    assert {s.time_label for s in RAIN_SOURCES.values()} == {"start", "end"}
    with pytest.raises(DataError, match="source of rain.*knmi.*'moon'"):
        the_rain_source("moon")
