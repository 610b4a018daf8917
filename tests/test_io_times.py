"Times of NetCDF files: calendars, units, contradictions, and the hours of amounts."

import warnings

import numpy as np
import pytest
import xarray as xr
from synthetic import degrees, one_variable

from sslpdl_nb.core import DataError
from sslpdl_nb.io.fields import Source
from sslpdl_nb.io.netcdf import netcdf_fields, open_lazy
from sslpdl_nb.io.times import decode_times, is_static, real_dates, time_dimensions, time_steps

ANY, ANALYSIS = Source(fields={}), Source(fields={}, analysis=True)
DAY, HOUR = np.datetime64("2024-07-01", "ns"), np.timedelta64(1, "h")


def saved(path, values, units, calendar=None, name="time", dtype="f8", **attrs):
    "A file of one variable t2m along one coordinate, written as it is told."
    import netCDF4

    fill = attrs.pop("fill", None)
    with netCDF4.Dataset(path, "w") as ds:
        for dim, n in ((name, len(values)), ("lat", 3), ("lon", 3)):
            ds.createDimension(dim, n)
        for dim, first in (("lat", 36.0), ("lon", 126.0)):
            v = ds.createVariable(dim, "f8", (dim,))
            v.units = f"degrees_{'north' if dim == 'lat' else 'east'}"
            v[:] = first + np.arange(3)
        v = ds.createVariable(name, dtype, (name,), fill_value=fill)
        told = dict(units=units, calendar=calendar) | attrs
        v.setncatts({key: text for key, text in told.items() if text is not None})
        v[:] = values
        v = ds.createVariable("t2m", "f4", (name, "lat", "lon"))
        v.units = "K"
        v[:] = 280.0 + np.arange(len(values))[:, None, None]
    return path


def valid_times(path, source=ANALYSIS):
    fields = netcdf_fields(path, source)
    return [str(f.reference_time + np.timedelta64(round(f.end_step * 3600), "s")) for f in fields]


def test_dates_alone_need_the_word_analysis(tmp_path):
    path = saved(tmp_path / "a.nc", [0, 6], "hours since 2024-07-01")
    with pytest.raises(DataError, match=r"a.nc: .*only time.*analysis=True.*--analysis"):
        netcdf_fields(path, ANY)
    assert [t[:13] for t in valid_times(path)] == ["2024-07-01T00", "2024-07-01T06"]
    fields = netcdf_fields(path, ANALYSIS)
    assert [f.read()[0, 0] for f in fields] == [280, 281] and {f.end_step for f in fields} == {0}
    still = one_variable("t2m", ("lat", "lon"), 280, "K", **degrees()).assign_coords(time=DAY)
    still.to_netcdf(tmp_path / "one.nc")
    assert [t[:13] for t in valid_times(tmp_path / "one.nc")] == ["2024-07-01T00"]


@pytest.mark.parametrize(
    "values, units, calendar, expected",
    [
        ([0, 1], "months since 2024-01-15", None, ["2024-01-15", "2024-02-15"]),
        ([0, 2], "years since 2023-3-1", None, ["2023-03-01", "2025-03-01"]),
        ([0, 1], "common_years since 2023-03-01", "noleap", ["2023-03-01", "2024-03-01"]),
        ([58, 59], "days since 2024-01-01", "noleap", ["2024-02-28", "2024-03-01"]),
        ([0, 30], "days since 2024-01-16", "360_day", ["2024-01-16", "2024-02-16"]),
        ([0.0, 1 / 3], "hours since 2024-1-1 0:0:0.0", None, ["2024-01-01", "2024-01-01T00:20"]),
        ([0, 3600], "seconds since 1970-01-01T00:00:00Z", None, ["1970-01-01", "1970-01-01T01"]),
        ([20240701.25, 20240702], "day as %Y%m%d.%f", None, ["2024-07-01T06", "2024-07-02"]),
        ([9], "hours since 2024-07-01 00:00:00 +09:00", None, ["2024-07-01"]),
    ],
)
def test_units_and_calendars_of_dates(tmp_path, values, units, calendar, expected):
    path = saved(tmp_path / "a.nc", values, units, calendar)
    found = np.array(valid_times(path), "datetime64[s]")
    assert np.array_equal(found, np.array(expected, "datetime64[s]"))


@pytest.mark.parametrize(
    "values, units, calendar, reason",
    [
        ([59], "days since 2024-01-01", "360_day", "2024-02-30 .*360_day, which is none"),
        ([0.5], "months since 2024-01-01", None, "months since"),
        ([0], "months since 2024-01-31", None, "months since"),
        ([0], "days since 0001-01-01", None, "1678 to 2261, found 0001"),
        ([0], "days since 2024-01-01", "julian", "julian"),
        ([0], "hours since 2024-01-01 09:00 KST", None, "time zone: expected UTC"),
        ([20240701.25], "day as %Y%m%d", None, "day as %Y%m%d"),
        ([20241301], "day as %Y%m%d.%f", None, "day as"),
        ([0], "hours since analysis", None, "hours since analysis"),
        ([0], None, None, "time in units ''"),
    ],
)
def test_dates_that_would_have_to_be_guessed_are_refused(tmp_path, values, units, calendar, reason):
    path = saved(tmp_path / "a.nc", values, units, calendar)
    with pytest.raises(DataError, match=f"a.nc: .*{reason}"):
        netcdf_fields(path, ANALYSIS)


def test_a_32_bit_date_of_icon_is_too_coarse(tmp_path):
    path = saved(tmp_path / "a.nc", [20240701.0], "day as %Y%m%d.%f", dtype="f4")
    with pytest.raises(DataError, match="day as"):
        netcdf_fields(path, ANALYSIS)


def test_missing_dates_are_left_out_with_a_warning(tmp_path):
    values = np.ma.masked_values([0, -999, 2], -999)
    path = saved(tmp_path / "a.nc", values, "hours since 2024-07-01", dtype="i4", fill=-999)
    with pytest.warns(UserWarning, match="1 of 3 times are missing"):
        fields = netcdf_fields(path, ANALYSIS)
    assert [f.read()[0, 0] for f in fields] == [280, 282]


@pytest.mark.parametrize("units", ["hours", "hour", "h", "hr"])
def test_lead_times_in_any_spelling_of_hours(tmp_path, units):
    path = saved(tmp_path / "a.nc", [6, 9], units, name="step", dtype="i4", long_name="forecast")
    with xr.open_dataset(path, decode_times=False) as ds:
        ds.load().assign_coords(time=DAY).to_netcdf(tmp_path / "b.nc")
    fields = netcdf_fields(tmp_path / "b.nc", ANY)
    assert [(f.reference_time, f.end_step) for f in fields] == [(DAY, 6), (DAY, 9)]


def test_lead_times_without_units_are_refused(tmp_path):
    path = saved(tmp_path / "a.nc", [6, 9], None, name="step", dtype="i4")
    with xr.open_dataset(path) as ds:
        ds.load().assign_coords(time=DAY).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(DataError, match=r"b.nc: .*step without units \(hours\?\)"):
        netcdf_fields(tmp_path / "b.nc", ANY)


def test_each_variable_has_the_times_of_its_own_dimension(tmp_path):
    ds = xr.Dataset(
        {
            "t2m": (("time", "lat", "lon"), np.full((2, 3, 3), 280.0)),
            "tp": (("time1", "lat", "lon"), np.full((3, 3, 3), 1.0)),
            "orog": (("lat", "lon"), np.full((3, 3), 50.0)),
        },
        dict(time=DAY + np.array([1, 2]) * HOUR, time1=DAY + np.array([3, 4, 5]) * HOUR)
        | dict(reftime=DAY)
        | degrees(),
    )
    ds.to_netcdf(tmp_path / "a.nc")
    fields = netcdf_fields(tmp_path / "a.nc", ANY)
    hours = {n: sorted(f.end_step for f in fields if f.name == n) for n in ("t2m", "tp", "orog")}
    assert hours == {"t2m": [1, 2], "tp": [3, 4, 5], "orog": [1, 2, 3, 4, 5]}
    assert {f.level_type for f in fields} == {"surface"}
    ds = open_lazy(tmp_path / "a.nc")
    assert is_static(ds, "orog") and not is_static(ds, "tp")
    assert time_dimensions(ds) == {"time", "time1"}


def forecast(start, lead_time, valid_time):
    ds = one_variable("t2m", ("step", "lat", "lon"), 280, "K", step=[0], **degrees())
    reference = {"standard_name": "forecast_reference_time"}
    return ds.assign_coords(
        init=((), start, reference), step=[lead_time], valid_time=("step", [valid_time])
    )


def test_three_times_must_agree(tmp_path):
    forecast(DAY, 6 * HOUR, DAY + 6 * HOUR).to_netcdf(tmp_path / "good.nc")
    (f,) = netcdf_fields(tmp_path / "good.nc", ANY)
    assert (f.reference_time, f.end_step) == (DAY, 6)
    forecast(DAY, 6 * HOUR, DAY + 18 * HOUR).to_netcdf(tmp_path / "bad.nc")
    with pytest.raises(DataError, match=r"bad.nc: .*expected 2024-07-01T18.*T00:00 \+ 6 h"):
        netcdf_fields(tmp_path / "bad.nc", ANY)


def test_a_forecast_over_a_leap_day_that_its_calendar_lacks(tmp_path):
    def model(first):
        begin = xr.date_range(first, periods=1, calendar="noleap", use_cftime=True)
        ds = one_variable(
            "t2m", ("init", "step", "lat", "lon"), 280, "K", init=[0], step=[0], **degrees()
        )
        return ds.assign_coords(init=begin, step=[24 * HOUR])

    model("2024-02-27").to_netcdf(tmp_path / "a.nc")
    assert [t[:10] for t in valid_times(tmp_path / "a.nc", ANY)] == ["2024-02-28"]
    model("2024-02-28").to_netcdf(tmp_path / "b.nc")
    with pytest.raises(DataError, match="b.nc: .*2024-02-29.*2024-03-01 00:00 in calendar noleap"):
        netcdf_fields(tmp_path / "b.nc", ANY)


@pytest.mark.parametrize("label", [0, 30, 60])
def test_bounds_tell_the_hours_of_an_amount(tmp_path, label):
    edges = DAY + np.array([[0, 1], [1, 2]]) * HOUR
    times = edges[:, 0] + np.timedelta64(label, "m")
    ds = one_variable("pr", ("time", "lat", "lon"), 1, "mm", time=times, **degrees())
    ds["pr"].attrs["cell_methods"] = "area: mean time: sum"
    ds["time"].attrs["bounds"] = "time_bnds"
    ds["time_bnds"] = (("time", "two"), edges)
    ds.to_netcdf(tmp_path / "a.nc")
    fields = netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    ends = [f.reference_time + np.timedelta64(round(60 * f.end_step), "m") for f in fields]
    assert ends == list(edges[:, 1]) and [f.end_step - f.start_step for f in fields] == [1, 1]


def test_equal_times_with_other_values_are_a_contradiction(tmp_path):
    from sslpdl_nb.io.nwp import read_nwp

    path = saved(tmp_path / "a.nc", [6, 6], "hours since 2024-07-01")
    with pytest.raises(DataError, match="a.nc: t2m surface 0, .*expected one field, found another"):
        read_nwp(path, Source(fields={"t2m": "t2m surface 0"}, analysis=True), ("t2m",))


def test_amounts_without_hours_are_refused_with_what_to_say(tmp_path):
    from sslpdl_nb.io.nwp import read_nwp

    path = tmp_path / "a.nc"
    one_variable("pr", ("time", "lat", "lon"), 3, "mm", time=[DAY], **degrees()).to_netcdf(path)
    rows = {"rain": "pr surface 0"}
    with pytest.raises(DataError, match='a.nc: rain: .*rain="total" or hours'):
        read_nwp(path, Source(fields=rows, analysis=True), ("rain",))
    told = Source(fields=rows, analysis=True, rain=3, amounts=("pr",))
    assert np.allclose(read_nwp(path, told, ("rain",))["rain"], 1)


def test_a_date_as_32_bit_number_is_rounded_to_the_second():
    late = np.array(["2024-07-01T17:09:59.990"], "datetime64[ns]")
    assert real_dates(late, "")[0] == np.datetime64("2024-07-01T17:10", "ns")


def test_what_is_no_time_is_left_alone():
    ds = xr.Dataset(dict(period=("x", [1.0, 2.0], {"units": "s"}), a=("x", ["u", "v"])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_times(ds)["period"].dtype == float
    with pytest.raises(DataError, match="a.nc: times"):
        time_steps(ds, None, ANY, "a.nc")


@pytest.mark.parametrize(
    "kind, expected",
    [
        (1, [(DAY, 0), (DAY, 6)]),
        (3, [(DAY, 0), (DAY, 6)]),
        (2, [(DAY, 0), (DAY + 6 * HOUR, 0)]),
        (0, "only time"),
    ],
)
def test_wgrib2_tells_the_start_in_attributes(tmp_path, kind, expected):
    seconds = float(DAY.astype("datetime64[s]").astype(int))
    about = dict(reference_time=seconds, reference_time_type=np.int32(kind))
    units = "seconds since 1970-01-01 00:00:00.0 0:00"
    path = saved(tmp_path / "a.nc", [seconds, seconds + 21600], units, **about)
    if kind:
        found = [(f.reference_time, f.end_step) for f in netcdf_fields(path, ANY)]
        assert found == expected
        return
    with pytest.raises(DataError, match=expected):
        netcdf_fields(path, ANY)


def test_a_path_that_is_a_text_is_searched_and_named():
    pattern = r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)(?P<hour>\d\d)_(?P<lead>\d+)"
    source = Source(fields={}, path=pattern)
    (step,) = time_steps(xr.Dataset(), None, source, "runs/2024070106_12.nc")
    assert (step.reference_time, step.lead_time) == (DAY + 6 * HOUR, 12)
    with pytest.raises(DataError, match="runs/a.nc: name: expected a match of .*, found a.nc"):
        time_steps(xr.Dataset(), None, source, "runs/a.nc")


def with_starts(path, times, starts, name="start_time", **attrs):
    "A file with two dates along time, in hours of a day; the one that is no axis comes first."
    coords = {name: ("time", DAY + np.array(starts) * HOUR, attrs)}
    coords["time"] = DAY + np.array(times) * HOUR
    ds = one_variable("pr", ("time", "lat", "lon"), 1, "mm", **coords, **degrees())
    ds.to_netcdf(path)
    return path


@pytest.mark.parametrize(
    "times, starts, name",
    [
        ([1, 2, 3], [0, 1, 2], "start_time"),
        ([1], [0], "start_time"),
        ([744, 1440], [0, 744], "start"),  # months are not equally long
        ([0, 1], [1, 2], "base_time"),
    ],
)
def test_the_begin_of_an_accumulation_is_no_reference_time(tmp_path, times, starts, name):
    path = with_starts(tmp_path / "a.nc", times, starts, name)
    expected = f"forecast_reference_time, if {name} is it.*only time.*analysis=True"
    with pytest.raises(DataError, match=f"a.nc: .*{expected}"):
        netcdf_fields(path, ANY)
    found = [(f.reference_time, f.end_step) for f in netcdf_fields(path, ANALYSIS)]
    assert found == [(DAY + hour * HOUR, 0) for hour in times]


def test_starts_that_are_told_to_be_reference_times_or_are_one_forecast(tmp_path):
    def leads(path):
        fields = netcdf_fields(path, ANY)
        return [((f.reference_time - DAY) / HOUR, f.end_step) for f in fields]

    told = dict(standard_name="forecast_reference_time")
    assert leads(with_starts(tmp_path / "a.nc", [1, 2], [0, 1], **told)) == [(0, 1), (1, 1)]
    path = with_starts(tmp_path / "b.nc", [1, 2], [0, 1], name="init_time")
    assert leads(path) == [(0, 1), (1, 1)]
    path = with_starts(tmp_path / "c.nc", [1, 2, 3], [0, 0, 0])
    assert leads(path) == [(0, 1), (0, 2), (0, 3)]
