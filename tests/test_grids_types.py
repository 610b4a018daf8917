"Grids: projections against PROJ, windows, CF attributes there and back, winds, wrong descriptions."

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb.core import DataError, GridError
from sslpdl_nb.grids import types
from sslpdl_nb.grids.types import (
    EARTH_RADIUS,
    NWP_GRID,
    QPE_GRID,
    CurvilinearGrid,
    LambertGrid,
    UnstructuredGrid,
    cf_attributes,
    cf_coordinates,
    crs_attributes,
    grid_from_cf,
    is_flattened,
    lambert_cone,
    lambert_from_cf,
    projected_grid,
    rotate_winds,
    row_angle,
    subgrid,
    unit_vectors,
)

pyproj = pytest.importorskip("pyproj")

TARGET = subgrid(QPE_GRID, slice(30, 222, 6), slice(26, 122, 6))
SPHERE = "+R=6371229 +no_defs"


def described(grid):
    "A dataset that has a grid and nothing else."
    return xr.Dataset({"crs": ((), 0, crs_attributes(grid))}, cf_coordinates(grid))


def test_grids_need_only_core():
    code = (
        "import sys, sslpdl_nb.grids.types\n"
        "names = [n for n in sys.modules if n.startswith('sslpdl_nb.')]\n"
        "print(*sorted(set(names) - {'sslpdl_nb.grids'}))\n"
        "assert 'pyproj' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sslpdl_nb.core", "sslpdl_nb.grids.types"]


# ------------------------------------------------------------------ the Lambert map

grids = st.builds(
    LambertGrid,
    nx=st.integers(1, 9),
    ny=st.integers(1, 9),
    dx=st.sampled_from([3e3, 15e3]),
    x0=st.floats(-6e5, 5e5),
    y0=st.floats(-6e5, 5e5),
    lon0=st.sampled_from([126.0, -97.0, 179.0]),
    lat0=st.sampled_from([38.0, 30.0]),
    parallels=st.sampled_from([(30.0, 60.0), (60.0, 30.0), (45.0, 45.0), (20.0, 21.0)]),
    radius=st.sampled_from([EARTH_RADIUS, 6370e3]),
)


def southern(grid):
    return replace(grid, lat0=-grid.lat0, parallels=tuple(-p for p in grid.parallels))


def by_pyproj(grid):
    return pyproj.Proj(
        proj="lcc",
        lat_1=grid.parallels[0],
        lat_2=grid.parallels[1],
        lat_0=grid.lat0,
        lon_0=grid.lon0,
        R=grid.radius,
    )


@settings(max_examples=60, deadline=None)
@given(grids, st.booleans())
def test_projection_equals_pyproj_both_ways(grid, south):
    grid = southern(grid) if south else grid
    theirs, (x, y) = by_pyproj(grid), np.meshgrid(grid.x, grid.y)
    lon, lat = grid.lonlat()
    assert lon.shape == lat.shape == grid.shape == (grid.ny, grid.nx)
    lon2, lat2 = theirs(x, y, inverse=True)
    assert np.abs((lon - lon2 + 180) % 360 - 180).max() < 1e-9
    assert np.abs(lat - lat2).max() < 1e-9
    assert np.allclose(theirs(lon, lat), (x, y), rtol=0, atol=1e-3)
    assert np.allclose(grid.project(lon, lat), (x, y), rtol=0, atol=1e-3)


def test_longitudes_may_be_counted_either_way():
    east, west = QPE_GRID.project(130.0, 35.0), QPE_GRID.project(130.0 - 360, 35.0)
    assert np.allclose(east, west, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parallels", [(30, 60), (45, 45), (-30, -60)])
def test_lengths_are_true_on_the_standard_parallels(parallels):
    lat0 = np.sign(parallels[0]) * 38
    grid = LambertGrid(nx=1, ny=1, dx=1.0, x0=0.0, y0=0.0, lat0=lat0, parallels=parallels)
    for lat in parallels:
        x, y = np.diff(grid.project([126, 126 + 1e-4], [lat, lat]))[:, 0]
        true = grid.radius * np.cos(np.radians(lat)) * np.radians(1e-4)
        assert abs(np.hypot(x, y) / true - 1) < 1e-6


def test_touching_cone_is_the_limit_of_a_cutting_one():
    touching, cutting = lambert_cone((45.0, 45.0), 38.0), lambert_cone((44.999, 45.001), 38.0)
    assert np.allclose(touching, cutting, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    ny=st.integers(1, 40),
    nx=st.integers(1, 40),
    r0=st.integers(0, 9),
    c0=st.integers(0, 9),
    step=st.integers(1, 4),
)
def test_a_window_of_a_grid_has_its_points(ny, nx, r0, c0, step):
    large = LambertGrid(nx=nx + c0, ny=ny + r0, dx=5e3, x0=-1e5, y0=-2e5)
    rows, columns = slice(r0, None, step), slice(c0, None, step)
    part = subgrid(large, rows, columns)
    expected = [a[rows, columns] for a in large.lonlat()]
    assert np.allclose(part.lonlat(), expected, rtol=0, atol=1e-9)
    assert part.dx == step * large.dx


def test_one_stride_for_both_axes():
    with pytest.raises(GridError, match="stride"):
        subgrid(QPE_GRID, slice(0, 8, 2), slice(0, 8))


def test_unit_vectors_know_no_seam():
    assert np.allclose(unit_vectors(180, 12), unit_vectors(-180, 12))
    assert np.allclose(unit_vectors([0, 77], [90, 90]), [[0, 0, 1], [0, 0, 1]])
    assert unit_vectors(np.zeros((2, 3)), np.zeros((2, 3))).shape == (2, 3, 3)


# ------------------------------------------------------------------ maps of PROJ, and points

MAPS = {
    "degrees": (f"+proj=longlat {SPHERE}", np.arange(0, 360, 5.0), np.arange(-85, 90, 5.0)),
    "from 180 W": (f"+proj=longlat {SPHERE}", np.arange(-180, 180, 5.0), np.arange(85, -90, -5.0)),
    "moved pole": (
        f"+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=52 +lon_0=127 {SPHERE}",
        np.arange(-12, 12, 0.5),
        np.arange(-12, 12, 0.5),
    ),
    "polar": (
        f"+proj=stere +lat_0=90 +lat_ts=60 +lon_0=127 {SPHERE}",
        np.arange(-14e5, 14e5, 5e4),
        np.arange(-72e5, -46e5, 5e4),
    ),
    "ellipsoid": ("EPSG:5179", np.arange(8e5, 13e5, 5e4), np.arange(15e5, 21e5, 5e4)),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_there_and_back(name):
    grid = projected_grid(*MAPS[name])
    lon, lat = grid.lonlat()
    assert lon.shape == grid.shape == (len(grid.y), len(grid.x))
    x, y = grid.project(lon, lat)
    size = np.ptp(grid.x)
    assert np.abs(x - grid.x).max() < 1e-9 * size
    assert np.abs(y - grid.y[:, None]).max() < 1e-9 * size
    shifted = grid.project(lon + 360, lat)
    assert np.allclose(shifted, (x, y), rtol=0, atol=1e-9 * size)
    assert grid_from_cf(described(grid)) == grid


def test_a_lambert_map_of_proj_is_ours():
    p = QPE_GRID
    proj = f"+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=126 +R={p.radius} +no_defs"
    theirs = projected_grid(proj, p.x, p.y)
    assert np.abs(np.subtract(theirs.lonlat(), p.lonlat())).max() < 1e-9
    assert np.abs(row_angle(theirs) - row_angle(p)).max() < 1e-5


@pytest.mark.parametrize(
    "proj, x, y, word",
    [
        ("+proj=longlat", [0.0], [0.0, 1.0], "axis x"),
        ("+proj=longlat", [0.0, 1.0], [0.0, 1.0, 0.5], "axis y"),
        ("+proj=longlat", [0.0, np.nan], [0.0, 1.0], "axis x"),
        ("+proj=longlat", [[0.0, 1.0]], [0.0, 1.0], "axis x"),
        ("+proj=nothing", [0.0, 1.0], [0.0, 1.0], "map projection"),
        ("+proj=ortho +lat_0=90 +R=6371229", [0.0, 1e7], [0.0, 1e7], "corners"),
    ],
)
def test_grids_that_are_none(proj, x, y, word):
    with pytest.raises(GridError, match=word):
        projected_grid(proj, x, y)


def test_proj_is_not_loaded_after_eccodes(monkeypatch):
    monkeypatch.setitem(sys.modules, "eccodes", object())
    monkeypatch.delitem(sys.modules, "pyproj")
    with pytest.raises(DataError, match="order of imports"):
        types._pyproj()


def test_points_without_a_map():
    lon, lat = np.meshgrid([120.0, 121, 122], [30.0, 31])
    swath, stations = CurvilinearGrid(lon, lat), UnstructuredGrid([127.0], [37.0])
    assert swath.shape == (2, 3) and stations.shape == (1,)
    assert swath == CurvilinearGrid(lon, lat) and hash(swath) == hash(CurvilinearGrid(lon, lat))
    assert swath != CurvilinearGrid(lon + 1, lat) and swath != stations
    for grid in (swath, stations):
        assert grid_from_cf(described(grid)) == grid
        assert not {"x", "y"} & set(described(grid).coords)


@pytest.mark.parametrize(
    "kind, lon, lat",
    [
        (CurvilinearGrid, [1.0, 2.0], [3.0, 4.0]),
        (UnstructuredGrid, [1.0, 2.0], [3.0]),
        (UnstructuredGrid, [1.0], [91.0]),
        (UnstructuredGrid, [np.nan], [0.0]),
    ],
)
def test_points_that_are_none(kind, lon, lat):
    with pytest.raises(GridError, match="longitude and latitude"):
        kind(lon, lat)


# ------------------------------------------------------------------ CF attributes


def test_cf_attributes_are_understood_by_pyproj():
    for grid in (QPE_GRID, NWP_GRID):
        crs = pyproj.CRS.from_cf(cf_attributes(grid))
        expected = grid.project(127.0, 36.0)
        assert np.allclose(pyproj.Proj(crs)(127.0, 36.0), expected, rtol=0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(grids.filter(lambda g: min(g.shape) > 1), st.booleans())
def test_lambert_grids_survive_cf(grid, south):
    grid = southern(grid) if south else grid
    back = lambert_from_cf(described(grid))
    assert back == replace(grid, dx=back.dx) and abs(back.dx / grid.dx - 1) < 1e-9
    assert grid_from_cf(described(grid)) == back


def test_axes_in_kilometres_and_longitudes_beyond_180():
    ds = described(TARGET)
    for name in ("x", "y"):
        ds[name] = (name, ds[name].values / 1000, dict(ds[name].attrs, units="km"))
    ds["crs"].attrs["longitude_of_central_meridian"] = 126.0 + 360
    found = lambert_from_cf(ds)
    assert found.lon0 == 126 and np.allclose(found.x, TARGET.x) and np.allclose(found.y, TARGET.y)


BAD_CF = {
    "no crs": (lambda d: d.drop_vars("crs"), "crs"),
    "no x": (lambda d: d.drop_vars("x"), "x and y"),
    "mercator": (
        lambda d: d.assign(crs=d.crs.assign_attrs(grid_mapping_name="mercator")),
        "mercator",
    ),
    "north first": (lambda d: d.isel(y=slice(None, None, -1)), "increase"),
    "one column": (lambda d: d.isel(x=slice(0, 1)), "coordinate x"),
    "irregular": (lambda d: d.isel(x=[0, 1, 4]), "regular"),
    "two spacings": (lambda d: d.isel(x=slice(None, None, 2)), "spacing"),
    "no attributes": (
        lambda d: d.assign(crs=((), 0, {"grid_mapping_name": "lambert_conformal_conic"})),
        "attributes",
    ),
}


@pytest.mark.parametrize("name", BAD_CF)
def test_bad_cf(name):
    change, word = BAD_CF[name]
    with pytest.raises(GridError, match=word):
        lambert_from_cf(change(described(TARGET)))


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda d: d.drop_vars("crs"), "crs"),
        (lambda d: d.drop_vars(["x", "y"]), "coordinates x and y"),
        (lambda d: d.assign(crs=((), 0, {"grid_mapping_name": "flat_earth"})), "flat_earth"),
        (lambda d: d.assign(crs=((), 0, {})), "attributes of crs"),
    ],
)
def test_bad_cf_of_any_grid(change, word):
    with pytest.raises(GridError, match=word):
        grid_from_cf(change(described(TARGET)))


def test_touching_cone():
    ds = described(TARGET)
    ds["crs"].attrs["standard_parallel"] = 45.0
    lon, lat = np.meshgrid([120, 126, 133.0], [30, 38, 45.0])
    second = pyproj.Proj(proj="lcc", lat_1=45, lat_0=38, lon_0=126, R=TARGET.radius)(lon, lat)
    assert np.abs(np.subtract(lambert_from_cf(ds).project(lon, lat), second)).max() < 0.1


def test_the_shape_of_the_earth():
    wgs84 = pyproj.CRS.from_epsg(4326).to_wkt()
    assert is_flattened({"crs_wkt": wgs84}) and not is_flattened({})
    assert not is_flattened(dict(semi_major_axis=6371229.0, semi_minor_axis=6371229.0))
    for wrong in (dict(inverse_flattening="much"), dict(semi_minor_axis=1.0)):
        with pytest.raises(GridError, match="axes of the Earth"):
            is_flattened(wrong)


@pytest.mark.parametrize(
    "earth",
    [
        dict(semi_major_axis=6378137.0, inverse_flattening=298.257223563),
        dict(semi_major_axis=6378137.0, semi_minor_axis=6356752.314),
    ],
)
def test_a_flattened_earth_is_no_sphere(earth):
    ds = described(TARGET)
    crs = {k: v for k, v in ds["crs"].attrs.items() if k != "earth_radius"}
    ds["crs"] = ((), 0, crs | earth)
    with pytest.raises(GridError, match="shape of the Earth.*ellipsoid"):
        lambert_from_cf(ds)
    second = pyproj.Proj(
        proj="lcc",
        lat_1=TARGET.parallels[0],
        lat_2=TARGET.parallels[1],
        lat_0=TARGET.lat0,
        lon_0=TARGET.lon0,
        a=6378137.0,
        b=6356752.314245,
    )
    found = grid_from_cf(ds)
    expected = second(*np.meshgrid(TARGET.x, TARGET.y), inverse=True)
    assert np.abs(np.subtract(found.lonlat(), expected)).max() < 1e-7
    taken_for_a_sphere = np.abs(np.subtract(found.lonlat(), TARGET.lonlat())).max()
    assert taken_for_a_sphere > 0.01  # degrees
    assert grid_from_cf(described(found)) == found


# ------------------------------------------------------------------ winds


@pytest.mark.parametrize("name", ["moved pole", "polar"])
def test_winds_along_a_grid(name):
    grid = projected_grid(*MAPS[name])
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 3, *grid.shape))
    east, north = rotate_winds(u, v, grid)
    assert east.shape == u.shape and np.allclose(np.hypot(east, north), np.hypot(u, v))
    lon, lat = grid.lonlat()
    step = np.subtract(grid.project(lon, lat + 1e-4), grid.project(lon, lat))
    east, north = rotate_winds(*step / np.hypot(*step), grid)
    assert np.abs(east).max() < 2e-2 and np.abs(north - 1).max() < 1e-3


def test_winds_need_rows():
    with pytest.raises(GridError, match="scattered"):
        rotate_winds(np.zeros(1), np.zeros(1), UnstructuredGrid([127.0], [37.0]))
    two_columns = CurvilinearGrid(*np.meshgrid([126.0, 127.0], [36.0, 37.0]))
    assert np.abs(row_angle(two_columns)).max() < 0.01
