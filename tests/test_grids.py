"Regridding: agreement with brute force and second opinions, exactness, order, edge cases, damaged files."

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb.grids.types import NWP_GRID, QPE_GRID, LambertGrid, cf_attributes, subgrid
from sslpdl_nb.core import GridError, SSLPDLError
from sslpdl_nb.grids.regrid import Regridder, regrid
from sslpdl_nb.grids.types import lambert_from_cf
from sslpdl_nb.grids.neighbours import (
    Buckets,
    between,
    bilinear_weights,
    cell_areas,
    conservative_weights,
    cube_face,
    inverse_bilinear,
    nearest,
    quad_weights,
    surrounding,
)
from sslpdl_nb.grids.types import unit_vectors

SOURCE = subgrid(NWP_GRID, slice(0, 480, 12), slice(0, 320, 12))
TARGET = subgrid(QPE_GRID, slice(30, 222, 6), slice(26, 122, 6))


def on_sphere(rng, n, centre=None, spread=1.0):
    p = rng.normal(size=(n, 3)) * spread + (0 if centre is None else np.asarray(centre))
    return p / np.linalg.norm(p, axis=1, keepdims=True)


def lonlat(p):
    return np.degrees(np.arctan2(p[..., 1], p[..., 0])), np.degrees(
        np.arcsin(np.clip(p[..., 2], -1, 1))
    )


def dataset(grid, fields):
    lon, lat = grid.lonlat()
    coords = dict(x=grid.x, y=grid.y, longitude=(("y", "x"), lon), latitude=(("y", "x"), lat))
    return xr.Dataset(
        {k: (("y", "x"), v) for k, v in fields.items()} | {"crs": ((), 0, cf_attributes(grid))},
        coords,
    )


# neighbours


@pytest.mark.parametrize(
    "centre", [None, (1, 1, 1), (-1, 1, -1), (1, 1, 0.2), (0, 0, 1), (0, 0, -1), (-1, 0, 0)]
)
def test_nearest_is_brute_force(centre):
    rng = np.random.default_rng(1)
    spread = 1.0 if centre is None else 0.1
    points, targets = (on_sphere(rng, n, centre, spread) for n in (3000, 2000))
    buckets = Buckets(points)
    found, truth = nearest(buckets, targets), (targets @ points.T).argmax(1)
    close = np.linalg.norm(points[truth] - targets, axis=1) <= buckets.radius(4)
    assert np.array_equal(found[close], truth[close]) and (found[~close] == -1).all()
    assert close.mean() > 0.95


def test_nearest_in_blocks_and_with_duplicates():
    rng = np.random.default_rng(2)
    points, targets = on_sphere(rng, 500), on_sphere(rng, 999)
    b = Buckets(np.concatenate([points, points]))
    assert np.array_equal(nearest(b, targets, block=100), nearest(b, targets))
    assert np.allclose(b.points[nearest(b, targets)], points[(targets @ points.T).argmax(1)])


def test_one_point_and_far_targets():
    b = Buckets(unit_vectors([127.0], [37.0]))
    assert nearest(b, unit_vectors([127.0, -60.0], [37.0, 0.0])).tolist() == [0, -1]


@given(st.floats(-720, 720), st.floats(-90, 90))
def test_cube_face_holds_every_point(lon, lat):
    face, a, b = cube_face(unit_vectors(lon, lat))
    assert 0 <= face <= 5 and abs(a) <= 1 + 1e-12 and abs(b) <= 1 + 1e-12


def test_surrounding_is_brute_force():
    rng = np.random.default_rng(3)
    points, targets = on_sphere(rng, 2000), on_sphere(rng, 50)
    four = surrounding(Buckets(points), targets)
    for t, quad in zip(targets, four):
        pole = np.array([0, 0, 1.0]) if abs(t[2]) < 0.9 else np.array([1.0, 0, 0])
        east = np.cross(pole, t)
        east /= np.linalg.norm(east)
        front = points @ t > 0
        x, y, d = points @ east, points @ np.cross(t, east), np.linalg.norm(points - t, axis=1)
        for k, here in enumerate(
            [(x > 0) & (y >= 0), (x <= 0) & (y > 0), (x < 0) & (y <= 0), (x >= 0) & (y < 0)]
        ):
            assert quad[k] == np.where(front & here, d, np.inf).argmin()


# weights


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_weights_of_any_quadrilateral_are_weights(xy):
    w = quad_weights(np.array(xy).reshape(1, 4, 2))
    assert np.isfinite(w).all() and (w >= 0).all() and np.isclose(w.sum(), 1)


def test_inverse_bilinear_knows_outside():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    points = np.array([[0.5, 0.5], [1.0, 1.0], [1.1, 0.5], [-0.1, 0.5], [0.5, 7]])
    s, t, inside = inverse_bilinear(square - points[:, None])
    assert inside.tolist() == [True, True, False, False, False] and np.allclose([s[1], t[1]], 1)


def test_linear_fields_are_exact():
    r = Regridder.between(SOURCE, TARGET)
    x, y = SOURCE.project(*TARGET.lonlat())
    f = np.add.outer(SOURCE.y / 1e5, 3 * SOURCE.x / 1e5)
    assert np.abs(r(f) - y / 1e5 - 3 * x / 1e5).max() < 1e-10
    assert (
        r.weights.sum(1) == pytest.approx(np.ones(TARGET.nx * TARGET.ny))
        and r.weights.data.min() > 0
    )


@pytest.mark.parametrize("method", ["bilinear", "nearest", "conservative"])
def test_constants_are_exact(method):
    r = Regridder.between(SOURCE, TARGET, method)
    assert np.allclose(r(np.full(SOURCE.shape, 273.15)), 273.15, rtol=1e-14)


def test_touching_plane_agrees_with_the_map_to_second_order():
    x, y = np.meshgrid(SOURCE.x / 1e6, SOURCE.y / 1e6)
    f = np.sin(2 * x) * np.cos(3 * y)
    a, b = Regridder.between(SOURCE, TARGET)(f), Regridder(*SOURCE.lonlat(), *TARGET.lonlat())(f)
    assert np.abs(a - b).max() < 1e-4


@pytest.mark.parametrize("poles", [False, True])
@pytest.mark.parametrize("start", [0, -180, 77.3])
def test_world_has_no_seam(poles, start):
    rng = np.random.default_rng(4)
    lat = np.linspace(-90, 90, 37) if poles else np.arange(-87.5, 90, 5)
    lon, lat = np.meshgrid(start + np.arange(0, 360, 5.0), lat)
    targets = np.concatenate(
        [
            on_sphere(rng, 3000),
            on_sphere(rng, 300, (0, 0, 1), 0.05),
            unit_vectors([180, -180, 0, 3], [0, 1, 90, -90]),
        ]
    )

    def f(p):
        return 2 + p[..., 0] ** 2 - p[..., 1] ** 2

    g = Regridder(lon, lat, *lonlat(targets))(f(unit_vectors(lon, lat)))
    assert np.abs(g - f(targets)).max() < 6e-3


def test_second_order_on_a_spherical_harmonic():
    rng = np.random.default_rng(5)
    targets = on_sphere(rng, 3000)
    error = []
    for h in (8.0, 4.0, 2.0):
        lon, lat = np.meshgrid(np.arange(0, 360, h), np.arange(-90 + h / 2, 90, h))

        def f(p):
            return p[..., 0] * p[..., 1] * p[..., 2]

        error.append(
            np.abs(
                Regridder(lon, lat, *lonlat(targets))(f(unit_vectors(lon, lat))) - f(targets)
            ).max()
        )
    assert 3.3 < error[0] / error[1] < 4.7 and 3.3 < error[1] / error[2] < 4.7


def test_targets_outside_are_missing():
    wide = LambertGrid(9, 9, 400e3, -1600e3, -1600e3, 128.0, 38.0, (35.0, 50.0))
    x, y = SOURCE.project(*wide.lonlat())
    beyond = (x < SOURCE.x[0]) | (x > SOURCE.x[-1]) | (y < SOURCE.y[0]) | (y > SOURCE.y[-1])
    for projection in (SOURCE, None):
        g = Regridder(*SOURCE.lonlat(), *wide.lonlat(), projection=projection)(
            np.ones(SOURCE.shape)
        )
        assert np.array_equal(np.isnan(g), beyond)
    far = Regridder(*SOURCE.lonlat(), [-60.0], [-30.0])
    assert far.weights.nnz == 0 and np.isnan(far(np.ones(SOURCE.shape))).all()


def test_grid_onto_itself_is_the_identity():
    f = np.random.default_rng(6).normal(size=SOURCE.shape)
    for method in ("bilinear", "nearest"):
        assert np.allclose(Regridder(*SOURCE.lonlat(), *SOURCE.lonlat(), method)(f), f, atol=1e-6)
    assert np.allclose(Regridder.between(SOURCE, SOURCE)(f), f, atol=1e-8)


def test_bow_tie_cells_and_degenerate_rows():
    lon, lat = np.meshgrid(np.arange(120, 130.0), np.arange(30, 38.0))
    lat = lat + np.where(np.arange(8)[:, None] % 2, -1.2, 0)  # overlapping scans
    lat[4] = lat[5]
    lon[4] = lon[5]  # two rows of one place
    g = Regridder(lon, lat, *np.meshgrid(np.arange(122, 128, 0.37), np.arange(32, 35, 0.31)))(
        np.full(lon.shape, 5.0)
    )
    assert np.allclose(g[np.isfinite(g)], 5) and np.isfinite(g).mean() > 0.9


def test_scattered_hull_and_points_themselves():
    rng = np.random.default_rng(7)
    lon, lat = rng.uniform(120, 130, 300), rng.uniform(30, 40, 300)
    f = 0.3 * lon - lat
    r = Regridder(lon, lat, np.append(lon, [125, 90]), np.append(lat, [35, 35]))(f)
    assert np.allclose(r[:300], f, atol=1e-6) and abs(r[300] - 2.5) < 0.05 and np.isnan(r[301])


def test_no_four_neighbours():
    corner, _ = bilinear_weights(
        Buckets(unit_vectors([0.0, 1.0], [0.0, 0.0])), (2,), unit_vectors([0.5], [0.0])
    )
    assert (corner == -1).all()


# rain totals


def test_conservative_total_on_a_closed_domain():
    fine, wide = (
        SOURCE,
        LambertGrid(14, 20, 90e3, SOURCE.x0 - 100e3, SOURCE.y0 - 100e3, 128.0, 38.0, (35.0, 50.0)),
    )
    middle = unit_vectors(*wide.lonlat()).reshape(-1, 3).mean(0)
    before, after = cell_areas(fine, middle), cell_areas(wide, middle)
    rain = np.random.default_rng(8).gamma(0.2, 5.0, fine.shape)
    r = Regridder.between(fine, wide, "conservative", min_valid=0.0)
    total = np.nansum(r(rain).ravel() * after.ravel() * r.weights.sum(1))
    assert total == pytest.approx((rain * before).sum(), rel=1e-12)


def test_conservative_shares_fill_their_targets():
    row, _, share = conservative_weights(
        unit_vectors(*SOURCE.lonlat()), unit_vectors(*TARGET.lonlat())
    )
    assert np.allclose(np.bincount(row, share), 1, atol=1e-9) and share.min() >= 0


def test_conservative_refuses_scattered_points_and_lines():
    with pytest.raises(GridError):
        Regridder([0.0, 1], [0.0, 1], *TARGET.lonlat(), "conservative")
    with pytest.raises(GridError):
        Regridder([[0.0, 1]], [[0.0, 1]], *TARGET.lonlat(), "conservative")


# application


def test_missing_values_and_threshold():
    r = Regridder.between(SOURCE, TARGET)
    f = np.random.default_rng(9).normal(size=SOURCE.shape)
    hole = f.copy()
    hole[::2] = np.nan
    share = r.weights @ np.isfinite(hole).ravel()
    g = r(hole).ravel()
    assert (
        np.array_equal(np.isnan(g), share < 0.5 - 1e-9)
        and np.nanmin(g) >= f.min()
        and np.nanmax(g) <= f.max()
    )
    assert np.isnan(r(np.full(SOURCE.shape, np.nan))).all()
    one = np.zeros(SOURCE.shape)
    one[20, 13] = 1
    assert r(one).max() > 0 and r(one).min() == 0


def test_mask_is_like_missing():
    mask = np.zeros(SOURCE.shape, bool)
    mask[:, :12] = True
    f = np.random.default_rng(10).normal(size=SOURCE.shape)
    a = Regridder.between(SOURCE, TARGET, mask=mask)(f)
    b = Regridder.between(SOURCE, TARGET)(np.where(mask, np.nan, f))
    assert np.allclose(a, b, equal_nan=True) and np.isnan(a).any()


def test_leading_dimensions_and_dtypes():
    r = Regridder.between(SOURCE, TARGET)
    f = np.random.default_rng(11).normal(size=(2, 3, *SOURCE.shape)).astype(np.float32)
    g = r(f)
    assert (
        g.shape == (2, 3, *TARGET.shape)
        and g.dtype == np.float32
        and np.allclose(g[1, 2], r(f[1, 2]))
    )
    assert r(np.ones(SOURCE.shape, int)).dtype == float
    assert r(np.zeros((0, *SOURCE.shape))).shape == (0, *TARGET.shape)


def test_xarray_equals_numpy():
    r = Regridder.between(SOURCE, TARGET)
    a = xr.DataArray(
        np.random.default_rng(12).normal(size=(4, *SOURCE.shape)),
        dims=("time", "y", "x"),
        coords=dict(time=np.arange(4), y=SOURCE.y, x=SOURCE.x),
        attrs=dict(units="K"),
    )
    b = r(a)
    assert (
        b.dims == ("time", "y", "x")
        and b.attrs == a.attrs
        and np.array_equal(b.values, r(a.values))
    )


def test_dask_stays_lazy():
    pytest.importorskip("dask")
    r = Regridder.between(SOURCE, TARGET)
    a = xr.DataArray(
        np.random.default_rng(13).normal(size=(4, *SOURCE.shape)), dims=("time", "y", "x")
    )
    b = r(a.chunk(time=1, y=7))
    assert b.chunks is not None and np.array_equal(b.values, r(a.values))


def test_regrid_dataset():
    ds = dataset(SOURCE, dict(a=np.ones(SOURCE.shape, np.float32))).assign(t=("time", [1, 2]))
    out = regrid(ds, TARGET)
    assert (
        lambert_from_cf(out) == TARGET
        and (out["a"] == 1).all()
        and out["t"].values.tolist() == [1, 2]
    )


# bad input


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda d: d.drop_vars("crs"), "crs"),
        (lambda d: d.drop_vars("x"), "x and y"),
        (lambda d: d.assign(crs=d.crs.assign_attrs(grid_mapping_name="mercator")), "mercator"),
        (lambda d: d.isel(y=slice(None, None, -1)), "increase"),
        (lambda d: d.isel(x=slice(0, 1)), "coordinate x"),
        (lambda d: d.isel(x=[0, 1, 4]), "regular"),
        (lambda d: d.isel(x=slice(None, None, 2)), "spacing"),
        (
            lambda d: d.assign(crs=((), 0, {"grid_mapping_name": "lambert_conformal_conic"})),
            "attributes",
        ),
    ],
)
def test_bad_cf(change, word):
    with pytest.raises(GridError, match=word):
        lambert_from_cf(change(dataset(TARGET, {})))


def test_touching_cone():
    ds = dataset(TARGET, {})
    ds["crs"].attrs["standard_parallel"] = 45.0
    lon, lat = np.meshgrid([120, 126, 133.0], [30, 38, 45.0])
    pyproj = pytest.importorskip("pyproj")
    second = pyproj.Proj(proj="lcc", lat_1=45, lat_0=38, lon_0=126, R=TARGET.radius)(lon, lat)
    assert np.abs(np.subtract(lambert_from_cf(ds).project(lon, lat), second)).max() < 0.1


@pytest.mark.parametrize(
    "earth",
    [
        dict(semi_major_axis=6378137.0, inverse_flattening=298.257223563),
        dict(semi_major_axis=6378137.0, semi_minor_axis=6356752.314),
    ],
)
def test_a_flattened_earth_is_no_sphere(earth):
    pyproj, maps = pytest.importorskip("pyproj"), pytest.importorskip("sslpdl_nb.grids.types")
    ds = dataset(TARGET, {})
    crs = {
        k: v
        for k, v in ds["crs"].attrs.items()
        if k not in ("earth_radius", "semi_major_axis", "semi_minor_axis", "inverse_flattening")
    }
    ds["crs"] = ((), 0, crs | earth)
    with pytest.raises(GridError, match="shape of the Earth.*ellipsoid"):
        lambert_from_cf(ds)
    p = TARGET.parallels
    second = pyproj.Proj(
        proj="lcc",
        lat_1=p[0],
        lat_2=p[1],
        lat_0=TARGET.lat0,
        lon_0=TARGET.lon0,
        a=6378137.0,
        b=6356752.314245,
    )
    found = maps.grid_from_cf(ds)
    assert (
        np.abs(
            np.subtract(found.lonlat(), second(*np.meshgrid(TARGET.x, TARGET.y), inverse=True))
        ).max()
        < 1e-7
    )
    assert (
        np.abs(np.subtract(found.lonlat(), TARGET.lonlat())).max() > 0.01
    )  # what taking it for a sphere would cost
    assert (
        maps.grid_from_cf(
            xr.Dataset({"crs": ((), 0, maps.crs_attributes(found))}, maps.cf_coordinates(found))
        )
        == found
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ([0.0, 1], [0.0], [0.0], [0.0]),
        ([], [], [0.0], [0.0]),
        ([np.nan], [0.0], [0.0], [0.0]),
        ([0.0], [91.0], [0.0], [0.0]),
        ([0.0], [0.0], [[[0.0]]], [[[0.0]]]),
    ],
)
def test_bad_coordinates(arguments):
    with pytest.raises(GridError):
        Regridder(*arguments)


def test_bad_calls():
    with pytest.raises(GridError, match="cubic"):
        Regridder.between(SOURCE, TARGET, "cubic")
    with pytest.raises(GridError, match="mask"):
        Regridder.between(SOURCE, TARGET, mask=np.zeros((2, 2)))
    with pytest.raises(GridError, match="shape"):
        Regridder.between(SOURCE, TARGET)(np.zeros((3, 4)))


# files


def test_save_and_load(tmp_path):
    r = Regridder.between(SOURCE, TARGET, min_valid=0.7)
    r.save(tmp_path / "w.npz")
    back = Regridder.load(tmp_path / "w.npz")
    f = np.random.default_rng(14).normal(size=SOURCE.shape)
    assert (
        np.array_equal(back(f), r(f))
        and back.min_valid == 0.7
        and [p.name for p in tmp_path.iterdir()] == ["w.npz"]
    )


def test_damaged_weights(tmp_path):
    small = Regridder(*np.meshgrid([0.0, 1], [0.0, 1]), [0.5], [0.5])
    small.save(tmp_path / "w.npz")
    good, rng, path = (
        (tmp_path / "w.npz").read_bytes(),
        np.random.default_rng(15),
        tmp_path / "bad.npz",
    )
    for k in range(200):
        bad = bytearray(good)
        if k % 2:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        else:
            bad = bad[: rng.integers(len(bad))]
        path.write_bytes(bad)
        try:
            Regridder.load(path)(np.zeros((2, 2)))
        except SSLPDLError:
            pass
    with pytest.raises(GridError):
        Regridder.load(tmp_path / "absent.npz")


# other maps, windows of the source, the compiled loop

SPHERE = "+R=6371229 +no_defs"
MAPS = {
    "degrees": (f"+proj=longlat {SPHERE}", np.arange(118, 142, 0.5), np.arange(28, 48, 0.5)),
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
    "mercator": (
        f"+proj=merc +lon_0=127 {SPHERE}",
        np.arange(-14e5, 14e5, 5e4),
        np.arange(31e5, 60e5, 5e4),
    ),
    "gaussian rows": (
        f"+proj=longlat {SPHERE}",
        np.arange(118, 142, 0.5),
        np.degrees(np.arcsin(np.linspace(0.46, 0.75, 50))),
    ),
    "north first": (f"+proj=longlat {SPHERE}", np.arange(118, 142, 0.5), np.arange(48, 28, -0.5)),
}


@pytest.mark.parametrize("name", MAPS)
def test_every_map_regrids_to_ours(name):
    from sslpdl_nb.grids.types import (
        CurvilinearGrid,
        crs_attributes,
        grid_from_cf,
        projected_grid,
        cf_coordinates,
    )

    grid = projected_grid(*MAPS[name])

    def f(lon, lat):
        return 2 + (p := unit_vectors(lon, lat))[..., 0] ** 2 - p[..., 1] * p[..., 2]

    truth = f(*QPE_GRID.lonlat())
    on_map, by_search = (
        Regridder.between(g, QPE_GRID) for g in (grid, CurvilinearGrid(*grid.lonlat()))
    )
    for r in (on_map, by_search):
        assert (
            np.nanmax(np.abs(r(f(*grid.lonlat())) - truth)) < 5e-5
        )  # h^2 / 8 times the second derivatives
        assert np.isnan(r(f(*grid.lonlat()))).sum() == 0
        assert np.allclose(r(np.full(grid.shape, 7.5)), 7.5, rtol=1e-14)
    x, y = np.meshgrid(grid.x, grid.y)
    tx, ty = grid.project(*QPE_GRID.lonlat())
    assert (
        np.abs(on_map(x + 2 * y) - tx - 2 * ty).max() < 1e-10 * np.abs(tx).max()
    )  # linear on its own map
    assert grid_from_cf(xr.Dataset({"crs": ((), 0, crs_attributes(grid))}, cf_coordinates(grid))) == grid


@pytest.mark.parametrize("name", ["moved pole", "polar"])
def test_second_order_on_other_maps(name):
    from sslpdl_nb.grids.types import projected_grid

    proj, x, y = MAPS[name]
    error = []
    for n in (13, 25, 49):
        grid = projected_grid(proj, np.linspace(x[0], x[-1], n), np.linspace(y[0], y[-1], n))

        def f(lon, lat):
            return np.sin(np.radians(6 * lon)) * np.cos(np.radians(5 * lat))

        error.append(
            np.nanmax(
                np.abs(Regridder.between(grid, TARGET)(f(*grid.lonlat())) - f(*TARGET.lonlat()))
            )
        )
    assert 3 < error[0] / error[1] < 5 and 3 < error[1] / error[2] < 5


def test_conservative_total_on_a_moved_pole():
    from sslpdl_nb.grids.types import projected_grid

    grid = projected_grid(MAPS["moved pole"][0], np.arange(-6, 6, 0.5), np.arange(-8, 8, 0.5))
    wide = LambertGrid(40, 40, 90e3, -1800e3, -1800e3)
    middle = unit_vectors(*wide.lonlat()).reshape(-1, 3).mean(0)
    before, after = cell_areas(grid_like(grid), middle), cell_areas(wide, middle)
    rain = np.random.default_rng(3).gamma(0.2, 5.0, grid.shape)
    r = Regridder.between(grid, wide, "conservative", min_valid=0.0)
    share = r.weights.sum(1).reshape(wide.shape)
    assert np.nansum(r(rain) * after * share) == pytest.approx((rain * before).sum(), rel=1e-12)


def grid_like(grid):
    "Any grid with the radius that cell_areas asks for."
    from types import SimpleNamespace

    return SimpleNamespace(lonlat=grid.lonlat, shape=grid.shape, radius=6371008.77)


@pytest.mark.parametrize("method", ["bilinear", "nearest", "conservative"])
def test_a_window_of_a_large_source_is_enough(method, monkeypatch):
    from sslpdl_nb.grids import regrid as module

    lon, lat = np.meshgrid(np.arange(90, 170, 1.0), np.arange(5, 75, 1.0))
    f = np.random.default_rng(4).normal(size=lon.shape)
    part = Regridder(lon, lat, *TARGET.lonlat(), method)(f)
    monkeypatch.setattr(
        module,
        "_part",
        lambda p, targets: (p, np.arange(p[..., 0].size), module._half_diagonal(p, p.shape[:-1])),
    )
    assert np.allclose(
        part, Regridder(lon, lat, *TARGET.lonlat(), method)(f), atol=1e-12, equal_nan=True
    )


def by_matrix(r, fields):
    "A second implementation: the formula with sparse products in float64, for fields (k, y, x)."
    f = fields.reshape(len(fields), -1).astype(float).T
    valid = np.isfinite(f)
    total, share = r.weights @ np.where(valid, f, 0), r.weights @ valid.astype(float)
    with np.errstate(all="ignore"):
        return np.where(
            (share > 0) & (share >= r.min_valid - 1e-9), total / share, np.nan
        ).T.reshape(len(fields), *r.target_shape)


COARSE = LambertGrid(
    30, 40, 60e3, -900e3, -1200e3, 128.0, 38.0, (35.0, 50.0)
)  # beyond the source on all sides


@pytest.mark.parametrize("method", ["bilinear", "nearest", "conservative"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", [TARGET, COARSE], ids=["inside", "beyond"])
def test_compiled_work_equals_the_matrix(method, dtype, target):
    rng = np.random.default_rng(5)
    r = Regridder.between(SOURCE, target, method)
    f = rng.normal(size=(21, *SOURCE.shape)).astype(
        dtype
    )  # more than a batch, and no multiple of it
    f[1].ravel()[::3], f[2], f[3, 0, 7], f[4, 9, 9], f[20][rng.random(SOURCE.shape) < 0.5] = (
        np.nan,
        np.nan,
        np.inf,
        -np.inf,
        np.nan,
    )
    fast, slow = r(f), by_matrix(r, f)
    assert fast.dtype == dtype and np.isnan(slow).any() and np.isfinite(slow).any()
    assert np.allclose(
        fast,
        slow,
        rtol=4e-7 if dtype == np.float32 else 1e-13,
        atol=1e-7 if dtype == np.float32 else 1e-13,
        equal_nan=True,
    )
    assert np.array_equal(
        fast, np.stack([r(g) for g in f]), equal_nan=True
    )  # the same bits alone and in company


@pytest.mark.parametrize("least", [0.0, 0.25, 0.5, 1.0])
def test_threshold_is_kept_exactly(least):
    r = Regridder([[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]], [0.5], [0.5], min_valid=least)
    r.weights.data[:] = 0.25
    for gaps in range(5):
        f = np.arange(1.0, 5)
        f[:gaps] = np.nan
        known = (4 - gaps) / 4
        expected = np.nanmean(f) if known > 0 and known >= least else np.nan
        assert np.array_equal(r(f.reshape(2, 2)), [expected], equal_nan=True)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 18])
def test_any_number_of_fields_gives_the_same(count, monkeypatch):
    f = np.random.default_rng(6).normal(size=(count, *SOURCE.shape)).astype(np.float32)
    for cores in (1, 2, 5):
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        for method in ("bilinear", "conservative"):
            r = Regridder.between(SOURCE, COARSE, method)
            assert np.array_equal(r(f), np.stack([r(g) for g in f]), equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3, 5), (1, 17)])
def test_small_sources(shape):
    lon, lat = np.meshgrid(np.arange(shape[1]) + 100.0, np.arange(shape[0]) + 20.0)
    for dtype in (np.float32, np.float64):
        f = np.random.default_rng(7).normal(size=(3, *shape)).astype(dtype)
        assert np.array_equal(Regridder(lon, lat, lon, lat, "nearest")(f), f)


def test_fields_of_any_layout_and_order_of_bytes():
    r = Regridder.between(SOURCE, TARGET)
    f = np.random.default_rng(8).normal(size=(5, *SOURCE.shape)).astype(np.float32)
    expected, locked = r(f), f.copy()
    locked.flags.writeable = False
    for g in (f.astype(">f4"), np.asfortranarray(f), np.repeat(f, 2, 0)[::2], locked):
        assert np.array_equal(r(g), expected) and r(g).dtype == g.dtype
    assert (
        np.allclose(r(f.astype(np.float16)), expected, atol=5e-3)
        and r(f.astype(np.float16)).dtype == np.float16
    )


def test_the_largest_numbers_do_not_overflow():
    r = Regridder.between(SOURCE, TARGET)
    for dtype in (np.float32, np.float64):
        assert np.allclose(
            r(np.full(SOURCE.shape, 0.9 * np.finfo(dtype).max, dtype)) / np.finfo(dtype).max, 0.9
        )


def test_between_on_axes_of_either_direction():
    for axis in (np.array([1.0, 2, 4, 8]), np.array([8.0, 4, 2, 1])):
        k, s, inside = between(axis, np.array([1.0, 3, 8, 9, 0.5]))
        assert np.allclose(
            (axis[k] * (1 - s) + axis[k + 1] * s)[inside], [1, 3, 8]
        ) and inside.tolist() == [True, True, True, False, False]
