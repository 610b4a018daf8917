"Regridding: exactness, order, odd sources, missing values, totals, the compiled loop, damage."

import numpy as np
import pytest
import xarray as xr

from sslpdl_nb.core import GridError, SSLPDLError
from sslpdl_nb.grids import regrid as module
from sslpdl_nb.grids.neighbours import SEARCHES, cell_areas, fibonacci_sphere
from sslpdl_nb.grids.regrid import METHODS, Regridder, regrid
from sslpdl_nb.grids.types import (
    NWP_GRID,
    QPE_GRID,
    CurvilinearGrid,
    LambertGrid,
    UnstructuredGrid,
    cf_coordinates,
    crs_attributes,
    grid_from_cf,
    lambert_from_cf,
    projected_grid,
    subgrid,
    unit_vectors,
)

SOURCE = subgrid(NWP_GRID, slice(0, 480, 12), slice(0, 320, 12))
TARGET = subgrid(QPE_GRID, slice(30, 222, 6), slice(26, 122, 6))
ON_SOURCE_MAP = dict(lon0=128.0, lat0=38.0, parallels=(35.0, 50.0))
# beyond the source on all sides
COARSE = LambertGrid(nx=30, ny=40, dx=60e3, x0=-900e3, y0=-1200e3, **ON_SOURCE_MAP)
every_method = pytest.mark.parametrize("method", METHODS)
both_searches = pytest.mark.parametrize("search", SEARCHES)


def random(shape, seed, dtype=float):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def on_sphere(rng, n, centre=(0, 0, 0), spread=1.0):
    p = rng.normal(size=(n, 3)) * spread + np.asarray(centre)
    return p / np.linalg.norm(p, axis=1, keepdims=True)


def lonlat(p):
    lon = np.degrees(np.arctan2(p[..., 1], p[..., 0]))
    return lon, np.degrees(np.arcsin(np.clip(p[..., 2], -1, 1)))


def dataset(grid, fields):
    dims = ("y", "x") if len(grid.shape) == 2 else ("point",)
    fields = {k: (dims, v) for k, v in fields.items()}
    return xr.Dataset(fields | {"crs": ((), 0, crs_attributes(grid))}, cf_coordinates(grid))


# ------------------------------------------------------------------ exactness and order


def test_linear_fields_are_exact():
    r = Regridder.between(SOURCE, TARGET)
    x, y = SOURCE.project(*TARGET.lonlat())
    f = np.add.outer(SOURCE.y / 1e5, 3 * SOURCE.x / 1e5)
    assert np.abs(r(f) - y / 1e5 - 3 * x / 1e5).max() < 1e-10
    assert r.weights.sum(1) == pytest.approx(np.ones(TARGET.nx * TARGET.ny))
    assert r.weights.data.min() > 0


@every_method
def test_constants_are_exact(method):
    r = Regridder.between(SOURCE, TARGET, method)
    assert np.allclose(r(np.full(SOURCE.shape, 273.15)), 273.15, rtol=1e-14)
    field = np.full(SOURCE.shape, 273.15, np.float32)
    assert (r(field) == np.float32(273.15)).all()


def test_touching_plane_agrees_with_the_map_to_second_order():
    x, y = np.meshgrid(SOURCE.x / 1e6, SOURCE.y / 1e6)
    f = np.sin(2 * x) * np.cos(3 * y)
    on_map, by_search = (
        Regridder.between(SOURCE, TARGET),
        Regridder(*SOURCE.lonlat(), *TARGET.lonlat()),
    )
    assert np.abs(on_map(f) - by_search(f)).max() < 1e-4


@both_searches
@pytest.mark.parametrize("poles", [False, True])
@pytest.mark.parametrize("start", [0, -180, 77.3])
def test_world_has_no_seam(poles, start, search):
    rng = np.random.default_rng(4)
    lat = np.linspace(-90, 90, 37) if poles else np.arange(-87.5, 90, 5)
    lon, lat = np.meshgrid(start + np.arange(0, 360, 5.0), lat)
    special = unit_vectors([180, -180, 0, 3], [0, 1, 90, -90])
    polar = on_sphere(rng, 300, (0, 0, 1), 0.05)
    targets = np.concatenate([on_sphere(rng, 3000), polar, special])

    def f(p):
        return 2 + p[..., 0] ** 2 - p[..., 1] ** 2

    g = Regridder(lon, lat, *lonlat(targets), search=search)(f(unit_vectors(lon, lat)))
    assert np.abs(g - f(targets)).max() < 6e-3


def test_second_order_on_a_spherical_harmonic():
    targets = on_sphere(np.random.default_rng(5), 3000)

    def f(p):
        return p[..., 0] * p[..., 1] * p[..., 2]

    error = []
    for h in (8.0, 4.0, 2.0):
        lon, lat = np.meshgrid(np.arange(0, 360, h), np.arange(-90 + h / 2, 90, h))
        g = Regridder(lon, lat, *lonlat(targets))(f(unit_vectors(lon, lat)))
        error.append(np.abs(g - f(targets)).max())
    assert 3.3 < error[0] / error[1] < 4.7 and 3.3 < error[1] / error[2] < 4.7


@every_method
def test_both_searches_lead_to_the_same_weights(method):
    sources = {"grid": CurvilinearGrid(*SOURCE.lonlat())}
    if method != "conservative":
        sources["points"] = UnstructuredGrid(*lonlat(fibonacci_sphere(20000)))
    for source in sources.values():
        tree, cells = (Regridder.between(source, TARGET, method, search=s) for s in SEARCHES)
        assert tree.weights.nnz == cells.weights.nnz > 0
        assert np.abs(tree.weights - cells.weights).max() < 1e-12


# ------------------------------------------------------------------ edges and odd sources


@both_searches
def test_targets_outside_are_missing(search):
    wide = LambertGrid(nx=9, ny=9, dx=400e3, x0=-1600e3, y0=-1600e3, **ON_SOURCE_MAP)
    x, y = SOURCE.project(*wide.lonlat())
    beyond = (x < SOURCE.x[0]) | (x > SOURCE.x[-1]) | (y < SOURCE.y[0]) | (y > SOURCE.y[-1])
    grids = (*SOURCE.lonlat(), *wide.lonlat())
    for projection in (SOURCE, None):
        g = Regridder(*grids, projection=projection, search=search)(np.ones(SOURCE.shape))
        assert np.array_equal(np.isnan(g), beyond)
    far = Regridder(*SOURCE.lonlat(), [-60.0], [-30.0], search=search)
    assert far.weights.nnz == 0 and np.isnan(far(np.ones(SOURCE.shape))).all()


def test_grid_onto_itself_is_the_identity():
    f = random(SOURCE.shape, 6)
    for method in ("bilinear", "nearest"):
        assert np.allclose(Regridder(*SOURCE.lonlat(), *SOURCE.lonlat(), method)(f), f, atol=1e-6)
    assert np.allclose(Regridder.between(SOURCE, SOURCE)(f), f, atol=1e-8)


@both_searches
def test_bow_tie_cells_and_degenerate_rows(search):
    lon, lat = np.meshgrid(np.arange(120, 130.0), np.arange(30, 38.0))
    lat = lat + np.where(np.arange(8)[:, None] % 2, -1.2, 0)  # overlapping scans
    lat[4] = lat[5]
    lon[4] = lon[5]  # two rows of one place
    target = np.meshgrid(np.arange(122, 128, 0.37), np.arange(32, 35, 0.31))
    g = Regridder(lon, lat, *target, search=search)(np.full(lon.shape, 5.0))
    assert np.allclose(g[np.isfinite(g)], 5) and np.isfinite(g).mean() > 0.9


@both_searches
def test_scattered_hull_and_points_themselves(search):
    rng = np.random.default_rng(7)
    lon, lat = rng.uniform(120, 130, 300), rng.uniform(30, 40, 300)
    target = np.append(lon, [125, 90]), np.append(lat, [35, 35])
    r = Regridder(lon, lat, *target, search=search)(0.3 * lon - lat)
    assert np.allclose(r[:300], 0.3 * lon - lat, atol=1e-6)
    assert abs(r[300] - 2.5) < 0.05 and np.isnan(r[301])


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3, 5), (1, 17)])
def test_small_sources(shape):
    lon, lat = np.meshgrid(np.arange(shape[1]) + 100.0, np.arange(shape[0]) + 20.0)
    for dtype in (np.float32, np.float64):
        f = random((3, *shape), 7, dtype)
        assert np.array_equal(Regridder(lon, lat, lon, lat, "nearest")(f), f)


@every_method
def test_a_window_of_a_large_source_is_enough(method, monkeypatch):
    lon, lat = np.meshgrid(np.arange(90, 170, 1.0), np.arange(5, 75, 1.0))
    f = random(lon.shape, 4)
    part = Regridder(lon, lat, *TARGET.lonlat(), method)(f)

    def everything(points, targets):
        return points, np.arange(points[..., 0].size), module._half_diagonal(points)

    monkeypatch.setattr(module, "_source_window", everything)
    whole = Regridder(lon, lat, *TARGET.lonlat(), method)(f)
    assert np.allclose(part, whole, atol=1e-12, equal_nan=True)


# ------------------------------------------------------------------ other maps

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
    pytest.importorskip("pyproj")
    grid = projected_grid(*MAPS[name])

    def f(lon, lat):
        p = unit_vectors(lon, lat)
        return 2 + p[..., 0] ** 2 - p[..., 1] * p[..., 2]

    truth, field = f(*QPE_GRID.lonlat()), f(*grid.lonlat())
    on_map = Regridder.between(grid, QPE_GRID)
    by_search = Regridder.between(CurvilinearGrid(*grid.lonlat()), QPE_GRID)
    for r in (on_map, by_search):
        error = np.abs(r(field) - truth)
        assert np.isfinite(error).all()
        assert error.max() < 5e-5  # h^2 / 8 times the second derivatives
        assert np.allclose(r(np.full(grid.shape, 7.5)), 7.5, rtol=1e-14)
    x, y = np.meshgrid(grid.x, grid.y)
    tx, ty = grid.project(*QPE_GRID.lonlat())
    error = np.abs(on_map(x + 2 * y) - tx - 2 * ty).max()  # linear on its own map
    assert error < 1e-10 * np.abs(tx).max()


@pytest.mark.parametrize("name", ["moved pole", "polar"])
def test_second_order_on_other_maps(name):
    pytest.importorskip("pyproj")
    proj, x, y = MAPS[name]

    def f(lon, lat):
        return np.sin(np.radians(6 * lon)) * np.cos(np.radians(5 * lat))

    error = []
    for n in (13, 25, 49):
        grid = projected_grid(proj, np.linspace(x[0], x[-1], n), np.linspace(y[0], y[-1], n))
        g = Regridder.between(grid, TARGET)(f(*grid.lonlat()))
        error.append(np.nanmax(np.abs(g - f(*TARGET.lonlat()))))
    assert 3 < error[0] / error[1] < 5 and 3 < error[1] / error[2] < 5


# ------------------------------------------------------------------ totals of rain


def total_before_and_after(source, wide):
    "The total of a random rain on the source, and after regridding to a wider grid."
    middle = unit_vectors(*wide.lonlat()).reshape(-1, 3).mean(0)
    before, after = cell_areas(source, middle), cell_areas(wide, middle)
    rain = np.random.default_rng(8).gamma(0.2, 5.0, source.shape)
    r = Regridder.between(source, wide, "conservative", min_valid=0.0)
    covered = r.weights.sum(1).reshape(wide.shape)
    return (rain * before).sum(), np.nansum(r(rain) * after * covered)


def test_conservative_total_on_a_closed_domain():
    x0, y0 = SOURCE.x0 - 100e3, SOURCE.y0 - 100e3
    wide = LambertGrid(nx=14, ny=20, dx=90e3, x0=x0, y0=y0, **ON_SOURCE_MAP)
    before, after = total_before_and_after(SOURCE, wide)
    assert after == pytest.approx(before, rel=1e-12)


def test_conservative_total_on_a_moved_pole():
    pytest.importorskip("pyproj")
    grid = projected_grid(MAPS["moved pole"][0], np.arange(-6, 6, 0.5), np.arange(-8, 8, 0.5))
    wide = LambertGrid(nx=40, ny=40, dx=90e3, x0=-1800e3, y0=-1800e3)
    before, after = total_before_and_after(grid, wide)
    assert after == pytest.approx(before, rel=1e-12)


def test_conservative_refuses_scattered_points_and_lines():
    with pytest.raises(GridError, match="scattered"):
        Regridder([0.0, 1], [0.0, 1], *TARGET.lonlat(), "conservative")
    with pytest.raises(GridError, match="2 rows"):
        Regridder([[0.0, 1]], [[0.0, 1]], *TARGET.lonlat(), "conservative")


# ------------------------------------------------------------------ missing values


def test_missing_values_and_min_valid():
    r, f = Regridder.between(SOURCE, TARGET), random(SOURCE.shape, 9)
    with_gaps = f.copy()
    with_gaps[::2] = np.nan
    known = r.weights @ np.isfinite(with_gaps).ravel()
    g = r(with_gaps).ravel()
    assert np.array_equal(np.isnan(g), known < 0.5 - 1e-9)
    assert np.nanmin(g) >= f.min() and np.nanmax(g) <= f.max()
    assert np.isnan(r(np.full(SOURCE.shape, np.nan))).all()
    one = np.zeros(SOURCE.shape)
    one[20, 13] = 1
    assert r(one).max() > 0 and r(one).min() == 0


def test_mask_is_like_missing():
    mask = np.zeros(SOURCE.shape, bool)
    mask[:, :12] = True
    f = random(SOURCE.shape, 10)
    a = Regridder.between(SOURCE, TARGET, mask=mask)(f)
    b = Regridder.between(SOURCE, TARGET)(np.where(mask, np.nan, f))
    assert np.allclose(a, b, equal_nan=True) and np.isnan(a).any()


@pytest.mark.parametrize("least", [0.0, 0.25, 0.5, 1.0])
def test_min_valid_is_kept_exactly(least):
    corners = np.meshgrid([0.0, 1.0], [0.0, 1.0])
    r = Regridder(*corners, [0.5], [0.5], min_valid=least)
    r.weights.data[:] = 0.25
    for missing in range(5):
        f = np.arange(1.0, 5)
        f[:missing] = np.nan
        known = (4 - missing) / 4
        expected = np.nanmean(f) if known > 0 and known >= least else np.nan
        assert np.array_equal(r(f.reshape(2, 2)), [expected], equal_nan=True)


# ------------------------------------------------------------------ arrays and datasets


def test_leading_dimensions_and_dtypes():
    r, f = Regridder.between(SOURCE, TARGET), random((2, 3, *SOURCE.shape), 11, np.float32)
    g = r(f)
    assert g.shape == (2, 3, *TARGET.shape) and g.dtype == np.float32
    assert np.allclose(g[1, 2], r(f[1, 2]))
    assert r(np.ones(SOURCE.shape, int)).dtype == float
    assert r(np.zeros((0, *SOURCE.shape))).shape == (0, *TARGET.shape)


def test_xarray_equals_numpy():
    r, values = Regridder.between(SOURCE, TARGET), random((4, *SOURCE.shape), 12)
    coords = dict(time=np.arange(4), y=SOURCE.y, x=SOURCE.x)
    a = xr.DataArray(values, dims=("time", "y", "x"), coords=coords, attrs=dict(units="K"))
    b = r(a)
    assert b.dims == ("time", "y", "x") and b.attrs == a.attrs
    assert np.array_equal(b.values, r(values))


def test_dask_stays_lazy():
    pytest.importorskip("dask")
    r = Regridder.between(SOURCE, TARGET)
    a = xr.DataArray(random((4, *SOURCE.shape), 13), dims=("time", "y", "x"))
    b = r(a.chunk(time=1, y=7))
    assert b.chunks is not None and np.array_equal(b.values, r(a.values))


def test_regrid_dataset():
    ds = dataset(SOURCE, dict(a=np.ones(SOURCE.shape, np.float32))).assign(t=("time", [1, 2]))
    out = regrid(ds, TARGET)
    assert lambert_from_cf(out) == TARGET and (out["a"] == 1).all()
    assert out["t"].values.tolist() == [1, 2]
    assert out["latitude"].attrs["units"] == "degrees_north" and out["y"].attrs["units"] == "m"


def test_datasets_of_any_grid():
    points = UnstructuredGrid(*(c.ravel() for c in SOURCE.lonlat()))
    swath = CurvilinearGrid(*SOURCE.lonlat())
    stations = UnstructuredGrid([127.0, 128.5], [36.0, 37.5])
    for source in (points, swath, SOURCE):
        for target in (stations, TARGET):
            out = regrid(dataset(source, dict(a=np.full(source.shape, 7.0))), target)
            assert grid_from_cf(out) == target and out["a"].shape == target.shape
            assert np.allclose(out["a"], 7, rtol=1e-14)
    with pytest.raises(GridError, match="crs"):
        regrid(dataset(SOURCE, {}).drop_vars("crs"), TARGET)


# ------------------------------------------------------------------ wrong input


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
    with pytest.raises(GridError, match="longitude and latitude"):
        Regridder(*arguments)


def test_bad_calls():
    with pytest.raises(GridError, match="cubic"):
        Regridder.between(SOURCE, TARGET, "cubic")
    with pytest.raises(GridError, match="octree"):
        Regridder.between(SOURCE, TARGET, search="octree")
    with pytest.raises(GridError, match="mask"):
        Regridder.between(SOURCE, TARGET, mask=np.zeros((2, 2)))
    with pytest.raises(GridError, match="shape"):
        Regridder.between(SOURCE, TARGET)(np.zeros((3, 4)))


# ------------------------------------------------------------------ files


def test_save_and_load(tmp_path):
    r, f = Regridder.between(SOURCE, TARGET, min_valid=0.7), random(SOURCE.shape, 14)
    r.save(tmp_path / "w.npz")
    back = Regridder.load(tmp_path / "w.npz")
    assert np.array_equal(back(f), r(f)) and back.min_valid == 0.7 and back.method == "bilinear"
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_damaged_weights(tmp_path):
    small = Regridder(*np.meshgrid([0.0, 1], [0.0, 1]), [0.5], [0.5])
    small.save(tmp_path / "w.npz")
    good, path = (tmp_path / "w.npz").read_bytes(), tmp_path / "bad.npz"
    rng = np.random.default_rng(15)
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


# ------------------------------------------------------------------ the compiled loop


def by_matrix(r, fields):
    "A second implementation: the formula with sparse products in float64, for fields (k, y, x)."
    f = fields.reshape(len(fields), -1).astype(float).T
    valid = np.isfinite(f)
    total, known = r.weights @ np.where(valid, f, 0), r.weights @ valid.astype(float)
    with np.errstate(all="ignore"):
        g = np.where((known > 0) & (known >= r.min_valid - 1e-9), total / known, np.nan)
    return g.T.reshape(len(fields), *r.target_shape)


def fields_with_everything(dtype):
    "More fields than a group of the loop, and no multiple of it, with missing and infinite values."
    f = random((21, *SOURCE.shape), 5, dtype)
    f[1].ravel()[::3] = np.nan
    f[2] = np.nan
    f[3, 0, 7] = np.inf
    f[4, 9, 9] = -np.inf
    f[20][np.random.default_rng(5).random(SOURCE.shape) < 0.5] = np.nan
    return f


@every_method
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", [TARGET, COARSE], ids=["inside", "beyond"])
def test_compiled_work_equals_the_matrix(method, dtype, target):
    r, f = Regridder.between(SOURCE, target, method), fields_with_everything(dtype)
    compiled, slow = r(f), by_matrix(r, f)
    assert compiled.dtype == dtype and np.isnan(slow).any() and np.isfinite(slow).any()
    rtol, atol = (4e-7, 1e-7) if dtype == np.float32 else (1e-13, 1e-13)
    assert np.allclose(compiled, slow, rtol=rtol, atol=atol, equal_nan=True)
    alone = np.stack([r(g) for g in f])
    assert np.array_equal(compiled, alone, equal_nan=True)  # the same bits alone and in company


@pytest.mark.parametrize("count", [1, 7, 8, 9, 18])
def test_any_number_of_fields_gives_the_same(count, monkeypatch):
    f = random((count, *SOURCE.shape), 6, np.float32)
    for cores in (1, 2, 5):
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        for method in ("bilinear", "conservative"):
            r = Regridder.between(SOURCE, COARSE, method)
            assert np.array_equal(r(f), np.stack([r(g) for g in f]), equal_nan=True)


def test_fields_of_any_layout_and_order_of_bytes():
    r, f = Regridder.between(SOURCE, TARGET), random((5, *SOURCE.shape), 8, np.float32)
    expected, locked = r(f), f.copy()
    locked.flags.writeable = False
    for g in (f.astype(">f4"), np.asfortranarray(f), np.repeat(f, 2, 0)[::2], locked):
        assert np.array_equal(r(g), expected) and r(g).dtype == g.dtype
    half = r(f.astype(np.float16))
    assert np.allclose(half, expected, atol=5e-3) and half.dtype == np.float16


def test_the_largest_numbers_do_not_overflow():
    r = Regridder.between(SOURCE, TARGET)
    for dtype in (np.float32, np.float64):
        largest = np.finfo(dtype).max
        assert np.allclose(r(np.full(SOURCE.shape, 0.9 * largest, dtype)) / largest, 0.9)
