"Lambert grids: known answers and a second projection."

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb.core import GridError
from sslpdl_nb.grids.types import (
    EARTH_RADIUS,
    NWP_GRID,
    QPE_GRID,
    LambertGrid,
    cf_attributes,
    lambert_cone,
    subgrid,
)

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
    pyproj = pytest.importorskip("pyproj")
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
    assert np.allclose(
        QPE_GRID.project(130.0, 35.0), QPE_GRID.project(130.0 - 360, 35.0), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("parallels", [(30, 60), (45, 45), (-30, -60)])
def test_lengths_are_true_on_the_standard_parallels(parallels):
    where = dict(nx=1, ny=1, dx=1.0, x0=0.0, y0=0.0)
    grid = LambertGrid(**where, lat0=np.sign(parallels[0]) * 38, parallels=parallels)
    for lat in parallels:
        x, y = np.diff(grid.project([126, 126 + 1e-4], [lat, lat]))[:, 0]
        on_the_sphere = grid.radius * np.cos(np.radians(lat)) * np.radians(1e-4)
        assert np.hypot(x, y) == pytest.approx(on_the_sphere, rel=1e-6)


def test_touching_cone_is_the_limit_of_a_cutting_one():
    assert np.allclose(
        lambert_cone((45.0, 45.0), 38.0), lambert_cone((45 - 1e-3, 45 + 1e-3), 38.0), rtol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.integers(0, 9), st.integers(1, 4)
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


def test_cf_attributes_are_understood_by_pyproj():
    pyproj = pytest.importorskip("pyproj")
    for grid in (QPE_GRID, NWP_GRID):
        crs = pyproj.CRS.from_cf(cf_attributes(grid))
        assert np.allclose(
            pyproj.Proj(crs)(127.0, 36.0), grid.project(127.0, 36.0), rtol=0, atol=1e-3
        )
