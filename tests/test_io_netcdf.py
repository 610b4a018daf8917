"NetCDF and Zarr: reference and lead times, grids, levels, and damage that never crashes."

import warnings

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")

from fuzz import fuzz
from real import real

from sslpdl_nb.core import DataError, GridError
from sslpdl_nb.grids.types import LambertGrid, UnstructuredGrid
from sslpdl_nb.io import netcdf
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


def test_a_file_that_claims_far_more_than_it_can_hold_is_refused(tmp_path):
    import netCDF4

    for name, points in (("claims.nc", 10**11), ("zeros.nc", 10**6)):
        with netCDF4.Dataset(tmp_path / name, "w") as ds:
            ds.createDimension("x", points)
            v = ds.createVariable("v", "f8", ("x",), zlib=True, chunksizes=(10**6,))
            if name == "zeros.nc":
                v[:] = 0
    assert (tmp_path / "claims.nc").stat().st_size < 1e6  # nothing was written to it
    with pytest.raises(
        DataError, match=r"claims.nc: .*8e\+11 bytes of data in a file of \d+ bytes"
    ):
        open_lazy(tmp_path / "claims.nc")
    assert (open_lazy(tmp_path / "zeros.nc")["v"].values == 0).all()  # compressed as far as can be


def raw_file(path, values, dtype="f4", fill=None, **attrs):
    "A file whose numbers and attributes are written as they are told; 2 rows, 3 columns."
    import netCDF4

    with netCDF4.Dataset(path, "w") as ds:
        for dim, n, units, first in (("lat", 2, "north", 36.0), ("lon", 3, "east", 126.0)):
            ds.createDimension(dim, n)
            v = ds.createVariable(dim, "f8", (dim,))
            v.units = f"degrees_{units}"
            v[:] = first + np.arange(n)
        v = ds.createVariable("time", "f8", ())
        v.units = "hours since 2020-07-01"
        v[...] = 0
        v = ds.createVariable("a", dtype, ("lat", "lon"), fill_value=fill)
        v.set_auto_maskandscale(False)
        v.setncatts(dict(coordinates="time") | attrs)
        if values is not None:
            v[:] = np.asarray(values, dtype).reshape(2, 3)
    return path


ANALYSIS = Source(fields={}, analysis=True)
NAN = np.nan


@pytest.mark.parametrize(
    "told, expected",
    [
        (
            dict(values=[0, 1, 2, 3, -999, 5], missing_value=np.float32(-999)),
            [0, 1, 2, 3, NAN, 5],
        ),
        (
            dict(values=[0, 1, 2, 3, 4, 500], valid_range=np.array([1, 100], "f4")),
            [NAN, 1, 2, 3, 4, NAN],
        ),
        (dict(values=[-5, 1, 2, 3, 4, 5], valid_min=np.float32(0)), [NAN, 1, 2, 3, 4, 5]),
        (
            dict(values=[0, 1, 2, 3, 4, 5], dtype="i2", scale_factor=0.5, add_offset=10.0)
            | dict(valid_max=np.int16(4)),  # of the packed numbers
            [10, 10.5, 11, 11.5, 12, NAN],
        ),
        (
            dict(values=[0, 1, 2, 3, 4, 5], dtype="i2", scale_factor=0.5, add_offset=10.0)
            | dict(valid_max=11.5),  # of the unpacked ones
            [10, 10.5, 11, 11.5, NAN, NAN],
        ),
        (
            dict(values=[0, 1, 127, -128, -2, -1], dtype="i1", _Unsigned="true", fill=-1)
            | dict(valid_range=np.array([0, -2], "i1")),
            [0, 1, 127, 128, 254, NAN],
        ),
        (dict(values=[0, 1, 2, 3, 4, 9.96921e36]), [0, 1, 2, 3, 4, NAN]),
        (
            dict(values=[0, 1, 2, 3, 4, -32767], dtype="i2", scale_factor=0.1),
            [0, 0.1, 0.2, 0.3, 0.4, NAN],
        ),
    ],
)
def test_numbers_that_are_no_values(tmp_path, told, expected):
    path = raw_file(tmp_path / "a.nc", **told)
    (f,) = netcdf_fields(path, ANALYSIS)
    assert np.allclose(f.read().ravel(), expected, equal_nan=True)


def test_a_valid_range_that_no_value_is_in_must_be_wrong(tmp_path):
    path = raw_file(tmp_path / "a.nc", range(280, 286), valid_range=np.array([0, 1], "f4"))
    (f,) = netcdf_fields(path, ANALYSIS)
    with pytest.raises(DataError, match="a.nc: a: expected values in the valid range"):
        f.read()


@pytest.mark.parametrize("rows, columns", [(1, 3), (3, 1), (2, 3)])
def test_a_map_of_one_row_or_column_stays_a_map(tmp_path, rows, columns):
    lat, lon = np.meshgrid(36.0 + np.arange(rows), 126.0 + np.arange(columns), indexing="ij")
    values = np.arange(float(rows * columns)).reshape(1, 1, rows, columns)
    ds = xr.Dataset(
        {"a": (("time", "height", "j", "i"), values, {"coordinates": "lat lon"})},
        dict(time=[DAY], lat=(("j", "i"), lat), lon=(("j", "i"), lon)),
    )
    for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
        ds[name].attrs["units"] = units
    del ds["a"].attrs["coordinates"]
    for k, order in enumerate((("time", "height", "j", "i"), ("i", "time", "j", "height"))):
        ds.assign(a=ds["a"].transpose(*order)).to_netcdf(tmp_path / f"{k}.nc")
        (f,) = netcdf_fields(tmp_path / f"{k}.nc", ANALYSIS)
        assert f.grid.shape == (rows, columns) and np.array_equal(f.read(), values[0, 0])


@pytest.mark.parametrize("unit", ["radian", "degrees_north"])
def test_cells_of_icon_are_points_without_rows(tmp_path, unit):
    lat, lon = np.array([36.0, 37, 35, 36.5]), np.array([126.0, 127, -128, 129])
    turn = np.radians if unit == "radian" else np.asarray
    east = {"units": unit.replace("north", "east"), "standard_name": "longitude"}
    ds = xr.Dataset(
        {"t": (("time", "plev", "ncells"), np.arange(8.0).reshape(1, 2, 4), {"units": "K"})},
        dict(
            time=[DAY],
            plev=("plev", [85000.0, 50000], {"units": "Pa"}),
            clat=("ncells", turn(lat), {"units": unit, "standard_name": "latitude"}),
            clon=("ncells", turn(lon), east),
        ),
    )
    ds.to_netcdf(tmp_path / "a.nc")
    upper, lower = netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    assert isinstance(upper.grid, UnstructuredGrid) and upper.grid.shape == (4,)
    assert np.allclose(upper.grid.lonlat(), [lon, lat])
    assert (upper.level, lower.level) == (850, 500) and upper.read().tolist() == [0, 1, 2, 3]


def test_points_that_follow_the_time_are_no_grid(tmp_path):
    times = DAY + np.arange(3) * HOUR
    where = dict(
        lat=("time", [36.0, 37, 38], {"units": "degrees_north"}),
        lon=("time", [126.0, 127, 128], {"units": "degrees_east"}),
    )
    xr.Dataset({"a": ("time", np.ones(3))}, dict(time=times) | where).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(GridError, match="a.nc: .*follow the time"):
        netcdf_fields(tmp_path / "a.nc", ANALYSIS)


@pytest.mark.parametrize(
    "lon",
    [
        np.r_[170:180, -180:-170],  # a jump in the middle
        np.arange(190.0, 170, -1),  # from east to west
        np.r_[10:0:-1, 360:350:-1],  # the same across Greenwich
        np.array([0.0, 200, 300]),  # with a gap
    ],
)
def test_longitudes_with_jumps_and_in_any_direction(tmp_path, lon):
    where = degrees((37.0, 36.0), lon.astype(float))
    ds = whole("a", ("lat", "lon"), 0, "K", **where).assign_coords(time=DAY)
    ds["a"][:] = np.arange(2.0 * lon.size).reshape(2, -1)
    ds.to_netcdf(tmp_path / "a.nc")
    (f,) = netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    found = f.grid.lonlat()[0][0]
    assert np.allclose((found - lon + 180) % 360 - 180, 0)
    assert np.array_equal(f.read(), ds["a"].values[::-1])
    assert np.abs(np.diff(f.grid.x)).max() <= 200


def test_two_halves_of_era5_are_put_together(tmp_path):
    final, early = np.full((2, 3, 3), 280.0), np.full((2, 3, 3), 290.0)
    final[1], early[0] = NAN, NAN
    ds = xr.Dataset(
        {"t2m": (("valid_time", "expver", "lat", "lon"), np.stack([early, final], 1))},
        dict(valid_time=DAY + np.array([0, 1]) * HOUR, expver=["0005", "0001"], number=0)
        | degrees(),
    )
    ds.to_netcdf(tmp_path / "a.nc")
    fields = netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    assert [f.level_type for f in fields] == ["surface", "surface"]
    assert [f.read().mean() for f in fields] == [280, 290]
    ds["t2m"][:] = [[[[290.0]], [[280.0]]]]  # where both are known, the final one is taken
    ds.to_netcdf(tmp_path / "b.nc")
    assert [f.read().mean() for f in netcdf_fields(tmp_path / "b.nc", ANALYSIS)] == [280, 280]
    text = ds.isel(expver=1).assign_coords(expver=("valid_time", ["0001", "0005"]))
    text.to_netcdf(tmp_path / "c.nc")  # as the new climate data store writes it
    assert [f.level for f in netcdf_fields(tmp_path / "c.nc", ANALYSIS)] == [0, 0]


@pytest.mark.parametrize(
    "name, values, attrs, level_type, levels",
    [
        ("z", [850.0, 500], {"units": "millibar"}, "isobaricInhPa", [850, 500]),
        ("z", [500.0, 850], {"units": "hectopascal"}, "isobaricInhPa", [500, 850]),
        ("z", [85000.0, 50000], {"units": "Pascals"}, "isobaricInhPa", [850, 500]),
        ("plev", [85000.0, 50000], {}, "isobaricInhPa", [850, 500]),
        ("level", [1000, 850, 500], {}, "isobaricInhPa", [1000, 850, 500]),
        ("level", [1, 2, 3], {}, "level", [1, 2, 3]),
        ("lev", [500.0, 850], {"units": "hPa", "formula_terms": "a: a b: b"}, "lev", [500, 850]),
        ("lev", [-3.6, 500.0], {"units": "hPa"}, "lev", [-3.6, 500]),
        ("lev", [3.6, 500.0], {"units": "hPa", "title": "model level"}, "lev", [3.6, 500]),
        ("depth", [100.0, 500], {"units": "m", "positive": "down"}, "depth", [100, 500]),
        ("height", [2.0, 10], {"units": "m"}, "height", [2, 10]),
    ],
)
def test_levels_are_pressures_only_where_that_is_certain(
    tmp_path, name, values, attrs, level_type, levels
):
    ds = whole("a", (name, "lat", "lon"), 1, "K", **{name: (name, values, attrs)}, **degrees())
    ds.assign_coords(time=DAY).to_netcdf(tmp_path / "a.nc")
    fields = netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    assert [(f.level_type, f.level) for f in fields] == [(level_type, v) for v in levels]


def test_pressures_without_units_that_are_unusual_are_refused(tmp_path):
    ds = whole("a", ("plev", "lat", "lon"), 1, "K", plev=[3.3, 4.4], **degrees())
    ds.assign_coords(time=DAY).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match="a.nc: levels plev: expected units hPa or Pa"):
        netcdf_fields(tmp_path / "a.nc", ANALYSIS)


def test_bounds_are_neither_coordinates_nor_fields(tmp_path):
    ds = whole("a", ("lat", "lon"), 1, "K", **degrees()).assign_coords(time=DAY)
    for name in ("lat", "lon"):
        edges = ds[name].values[:, None] + [-0.5, 0.5]
        bounds = xr.Dataset({f"{name}_bnds": ((name, "two"), edges, ds[name].attrs)})
        ds = bounds.merge(ds)  # before the coordinates, with the same units
        ds[name].attrs["bounds"] = f"{name}_bnds"
    ds.to_netcdf(tmp_path / "a.nc")
    (f,) = netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    assert f.name == "a" and f.grid.shape == (3, 3)


LAMBERT = dict(
    grid_mapping_name="lambert_conformal_conic",
    latitude_of_projection_origin=25.0,
    longitude_of_central_meridian=265.0,
    standard_parallel=25.0,
    earth_radius=6371229.0,
)


def on_a_map(x, units, crs=LAMBERT, **coords):
    "A dataset on a map whose axes are x."
    axis = {"units": units} if units else {}
    ds = xr.Dataset(
        {"a": (("y", "x"), np.arange(9.0).reshape(3, 3), {"grid_mapping": "m"})},
        dict(time=DAY, x=("x", x, axis), y=("y", x, axis)) | coords,
    )
    ds["m"] = ((), 0, crs)
    return ds


@pytest.mark.parametrize("units", ["", "rad", "10 km"])
def test_axes_of_a_map_in_unknown_units_are_refused(tmp_path, units):
    on_a_map([0.0, 3, 6], units).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(GridError, match="a.nc: axis y of a map: expected m or km"):
        netcdf_fields(tmp_path / "a.nc", ANALYSIS)


def test_angles_of_a_satellite_become_metres(tmp_path):
    height = 35786023.0
    crs = dict(grid_mapping_name="geostationary", longitude_of_projection_origin=128.2)
    crs |= dict(
        perspective_point_height=height, sweep_angle_axis="y", latitude_of_projection_origin=0.0
    )
    crs |= dict(semi_major_axis=6378137.0, semi_minor_axis=6356752.3)
    on_a_map(np.array([0.05, 0.06, 0.07]), "rad", crs).to_netcdf(tmp_path / "a.nc")
    (f,) = netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    lon, lat = f.grid.lonlat()
    assert 15 < lat[0, 0] < 20 < lat[-1, 0] < 30 and 140 < lon[0, 0] < 160


def test_points_are_believed_more_than_a_map_that_leads_elsewhere(tmp_path):
    x = np.array([0.0, 30e3, 60e3])
    lon, lat = LambertGrid(
        3, 3, 30e3, 0.0, 0.0, lon0=-95.0, lat0=25.0, parallels=(25.0, 25.0), radius=6371229.0
    ).lonlat()
    for shift, kept in ((0.0, True), (0.2, False)):
        where = dict(
            lat=(("x", "y"), lat.T + shift, {"units": "degrees_north"}),
            lon=(("y", "x"), lon, {"units": "degrees_east"}),
        )
        on_a_map(x, "m", **where).to_netcdf(tmp_path / f"{kept}.nc")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (f,) = netcdf_fields(tmp_path / f"{kept}.nc", ANALYSIS)
        assert isinstance(f.grid, LambertGrid) == kept and (len(caught) == 0) == kept
        assert np.allclose(f.grid.lonlat()[1], lat + shift, atol=1e-6)


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF4"])
def test_paths_with_blanks_and_umlauts(tmp_path, kind):
    folder = tmp_path / "März 2024 – größer"
    folder.mkdir()
    ds = whole("a", ("lat", "lon"), 7, "K", **degrees()).assign_coords(time=DAY)
    ds.to_netcdf(folder / "Böen 1.nc", format=kind)
    (f,) = netcdf_fields(folder / "Böen 1.nc", ANALYSIS)
    assert f.read().mean() == 7
    ds.to_zarr(folder / "Böen 2.zarr", consolidated=False)
    (f,) = netcdf_fields(folder / "Böen 2.zarr", ANALYSIS)
    assert f.read().mean() == 7


def test_damaged_copies_never_crash(tmp_path):
    file = real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc")
    fuzz(file, tmp_path / "bad", "sslpdl_nb.io.netcdf:netcdf_fields", 30, "(Source(fields={}),)")


def test_an_ensemble_on_levels_and_a_file_without_steps_are_refused(tmp_path):
    dims = ("number", "plev", "lat", "lon")
    levels = ("plev", [85000.0, 50000.0], {"units": "Pa"})
    ds = whole("t", dims, 280, "K", number=[0, 1], plev=levels, **degrees())
    ds.assign_coords(time=DAY).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match="a.nc: variables: .*ensemble.*'number', 'plev'"):
        netcdf_fields(tmp_path / "a.nc", ANALYSIS)
    none = np.array([], "datetime64[ns]")
    whole("t", ("time", "lat", "lon"), 280, "K", time=none, **degrees()).to_netcdf(
        tmp_path / "b.nc"
    )
    with pytest.raises(DataError, match="b.nc: .*at least one, found none in time"):
        netcdf_fields(tmp_path / "b.nc", ANALYSIS)


# ------------------------------------------------------------------ headers of classic files


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
def test_classic_headers_of_whole_files_fit(tmp_path, form):
    import netCDF4

    path = tmp_path / "classic.nc"
    with netCDF4.Dataset(path, "w", format=form) as nc:
        nc.createDimension("time", None)
        nc.createDimension("x", 3)
        nc.title, nc.numbers = "odd length", np.arange(5, dtype="i2")
        nc.createVariable("nothing", "i1", ())
        v = nc.createVariable("v", "f4", ("time", "x"))
        v.units = "K"
        v[0:2] = 7.0
    assert (open_lazy(path)["v"].values == 7).all()


def test_a_classic_header_that_announces_too_much_is_refused(tmp_path):
    "The library would set memory aside for two thousand million entries, or end the process."
    path = tmp_path / "classic.nc"
    ds = xr.Dataset({"v": ("x", [1.0, 2.0], {"units": "K"})}, attrs=dict(title="t"))
    ds.to_netcdf(path, format="NETCDF3_CLASSIC", engine="netcdf4")
    good, refused = path.read_bytes(), 0
    for at in range(8, len(good) - 16, 4):  # each number of the header in turn
        path.write_bytes(good[:at] + b"\x7f\xff\xff\xf0" + good[at + 4 :])
        try:
            netcdf._check_header(path)
        except ValueError:
            refused += 1
            with pytest.raises(DataError, match="classic.nc"):
                open_lazy(path, keep_open=False)
    assert refused > 10
    for end in range(4, len(good) - 16, 7):
        path.write_bytes(good[:end])
        with pytest.raises(DataError, match="header"):
            open_lazy(path, keep_open=False)
