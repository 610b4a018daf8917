"NetCDF and Zarr: reference and lead times, grids, levels, and damage that never crashes."

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")

from fuzz import fuzz
from real import real

from sslpdl_nb.core import DataError, GridError
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.io.fields import Source, open_file
from sslpdl_nb.io.netcdf import netcdf_fields, netcdf_values, open_lazy

HOUR, DAY = np.timedelta64(1, "h"), np.datetime64("2020-07-01", "ns")
REFERENCE = {"standard_name": "forecast_reference_time"}
PERIOD = {"standard_name": "forecast_period"}
T2M = Source(fields={"t2m": "t2m surface 0"})


def whole(name, dims, value, units, **coords):
    "A NetCDF dataset of one variable."
    shape = [len(coords[d][1] if isinstance(coords[d], tuple) else coords[d]) for d in dims]
    return xr.Dataset({name: (dims, np.full(shape, float(value)), {"units": units})}, coords)


def degrees(lat=(36.0, 36.5, 37.0), lon=(126.0, 127.0, 128.0)):
    return dict(
        lat=("lat", list(lat), {"units": "degrees_north"}),
        lon=("lon", list(lon), {"units": "degrees_east"}),
    )


@pytest.mark.parametrize(
    "times, dims, leads",
    [
        (
            dict(reftime=((), DAY + 6 * HOUR), time=("time", DAY + np.array([6, 9, 12]) * HOUR)),
            ("time",),
            {(6, 0), (6, 3), (6, 6)},
        ),  # THREDDS
        (
            dict(
                time=("time", DAY + np.array([6, 9, 12]) * HOUR),
                base_date=((), DAY + 6 * HOUR, REFERENCE),
            ),
            ("time",),
            {(6, 0), (6, 3), (6, 6)},
        ),
        (
            dict(
                time=("time", DAY + np.array([3, 6, 9]) * HOUR),
                forecast_period=("time", np.array([3, 6, 9]) * HOUR, PERIOD),
            ),
            ("time",),
            {(0, 3), (0, 6), (0, 9)},
        ),
        (
            dict(
                run=("run", DAY + np.array([0, 12]) * HOUR), period=("run", np.array([6, 6]) * HOUR)
            ),
            ("run",),
            {(0, 6), (12, 6)},
        ),
        (
            dict(
                time=("time", DAY + np.array([0, 12]) * HOUR, REFERENCE),
                step=("step", np.array([1, 2]) * HOUR),
                valid_time=("step", DAY + np.array([1, 2]) * HOUR),
            ),
            ("time", "step"),
            {(0, 1), (0, 2), (12, 1), (12, 2)},
        ),
    ],
)
def test_start_and_lead_time_are_found_by_what_they_mean(tmp_path, times, dims, leads):
    coords = {
        n: (
            d,
            np.asarray(v).astype(
                "datetime64[ns]" if np.asarray(v).dtype.kind == "M" else "timedelta64[ns]"
            ),
            *a,
        )
        for n, (d, v, *a) in times.items()
    }
    ds = xr.Dataset(coords=coords | degrees())
    shape = [ds.sizes[d] for d in dims]
    ds["t2m"] = (
        (*dims, "lat", "lon"),
        280.0 + np.arange(np.prod(shape)).reshape(*shape, 1, 1) * np.ones((3, 3)),
        {"units": "K"},
    )
    ds.to_netcdf(tmp_path / "a.nc")
    fields = netcdf_fields(tmp_path / "a.nc", T2M)
    assert {((f.reference_time - DAY) / HOUR, f.end_step) for f in fields} == leads and [
        f.read()[0, 0] for f in fields
    ] == [280 + k for k in range(len(leads))]


def test_lead_times_below_zero_are_refused(tmp_path):
    whole(
        "t2m",
        ("time", "lat", "lon"),
        280,
        "K",
        time=("time", DAY + np.array([0, 3]) * HOUR),
        **degrees(),
    ).assign_coords(reftime=DAY + 6 * HOUR).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match="a.nc: lead times of t2m.*-6 h"):
        netcdf_fields(tmp_path / "a.nc", T2M)


@pytest.mark.parametrize("flip", [False, True])
def test_a_map_of_any_name_is_followed(tmp_path, flip):
    grid = LambertGrid(5, 4, 12e3, -24e3, -18e3, lon0=-95.0, lat0=25.0, parallels=(25.0, 25.0))
    crs = dict(
        grid_mapping_name="lambert_conformal_conic",
        latitude_of_projection_origin=25.0,
        longitude_of_central_meridian=265.0,
        standard_parallel=25.0,
        earth_radius=grid.radius,
    )

    def axis(d, v):
        return (d, v / 1000, {"standard_name": f"projection_{d[0]}_coordinate", "units": "km"})

    ds = xr.Dataset(
        {
            "t2m": (
                ("time", "yc", "xc"),
                280 + np.arange(20.0).reshape(1, 4, 5),
                {"units": "K", "grid_mapping": "LambertConformal_Projection"},
            ),
            "LambertConformal_Projection": ((), 0, crs),
        },
        dict(time=[DAY + 6 * HOUR], reftime=DAY, yc=axis("yc", grid.y), xc=axis("xc", grid.x)),
    )
    (ds.isel(yc=slice(None, None, -1)) if flip else ds).to_netcdf(tmp_path / "a.nc")
    (f,) = netcdf_fields(tmp_path / "a.nc", T2M)
    assert f.grid == grid and f.read()[0, 0] == 280 and f.read()[-1, -1] == 299


def test_no_times_and_no_grid_are_refused(tmp_path):
    whole("t2m", ("lat", "lon"), 280, "K", **degrees()).to_netcdf(tmp_path / "timeless.nc")
    with pytest.raises(DataError, match="timeless.nc: times"):
        netcdf_fields(tmp_path / "timeless.nc", T2M)
    xr.Dataset({"t2m": (("y", "x"), np.ones((2, 2)))}).to_netcdf(tmp_path / "nowhere.nc")
    with pytest.raises(GridError, match="nowhere.nc: grid"):
        netcdf_fields(tmp_path / "nowhere.nc", T2M)


def test_a_reference_time_in_the_path(tmp_path):
    whole("t2m", ("lat", "lon"), 280, "K", **degrees()).to_netcdf(tmp_path / "20200701.06.nc")
    pattern = r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)\.(?P<hour>\d\d)\.nc"
    (f,) = netcdf_fields(tmp_path / "20200701.06.nc", Source(fields={}, path=pattern))
    assert f.reference_time == DAY + 6 * HOUR and f.end_step == 0
    with pytest.raises(DataError, match="name: expected a match"):
        netcdf_fields(tmp_path / "20200701.06.nc", Source(fields={}, path="x(?P<year>)"))


def test_zarr_and_longitudes_beyond_180(tmp_path):
    lat, lon = np.arange(30, 40, 1.0), np.r_[350:360, 0:6].astype(float)
    steps = dict(time=[DAY], step=[np.timedelta64(3600, "s").astype("timedelta64[ns]")])
    dims = ("time", "step", "lat", "lon")
    whole("t2m", dims, 17.0, "degC", **steps, **degrees(lat, lon)).to_zarr(
        tmp_path / "a.zarr", consolidated=False
    )
    assert open_file(tmp_path / "a.zarr").file_type == "Zarr"
    (f,) = netcdf_fields(tmp_path / "a.zarr", T2M)
    assert np.allclose(f.read(), 17) and (f.end_step, f.units) == (1, "degC")
    assert f.grid.lonlat()[0].min() == -10 and f.grid.shape == (10, 16)


def test_columns_before_rows(tmp_path):
    values = np.arange(9.0).reshape(3, 3)
    ds = whole("t2m", ("time", "lon", "lat"), 0, "K", time=[DAY], **degrees())
    ds["t2m"][0] = values
    ds.to_netcdf(tmp_path / "a.nc")
    (f,) = netcdf_fields(tmp_path / "a.nc", Source(fields={}, analysis=True))
    assert np.array_equal(f.read(), values.T)


def test_a_file_is_opened_once_and_again_when_it_was_written_anew(tmp_path):
    path = tmp_path / "a.nc"
    whole("t2m", ("lat", "lon"), 280, "K", **degrees()).to_netcdf(path)
    file = open_file(path)
    ds = open_lazy(file)
    assert open_lazy(path) is ds
    with open_lazy(file, keep_open=False) as other:
        assert other is not ds
    assert open_lazy(file) is ds and netcdf_values(file, "t2m").mean() == 280
    new = tmp_path / "new.nc"
    whole("t2m", ("lat", "lon"), 290, "K", **degrees()).to_netcdf(new)
    new.replace(path)
    assert open_lazy(file) is not ds and netcdf_values(file, "t2m").mean() == 290


def test_other_files_and_damage_are_refused(tmp_path):
    path = tmp_path / "a.nc"
    path.write_bytes(b"GRIB....")
    with pytest.raises(DataError, match="a.nc: expected NetCDF or Zarr, found GRIB"):
        open_lazy(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(DataError, match="a.nc: expected a complete, readable file"):
        open_lazy(path)


def test_damaged_copies_never_crash(tmp_path):
    file = real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc")
    fuzz(file, tmp_path / "bad", "sslpdl_nb.io.netcdf:netcdf_fields", 30, "(Source(fields={}),)")
