"""Source tables on synthetic files, built with the published names, levels, units and hours of each model (see synthetic.py).

What comes out must be the sixteen variables in our units, each point in its place, with the right lead time and rain rate. Which
tables have met real files is said in `SOURCES[...].tried`; those files are read in test_io_files.py.
"""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from synthetic import (
    BUILT,
    KMA,
    LEVELS,
    along_grid,
    gfs,
    grib2,
    lambert,
    truth,
    wave,
    wrfout,
)

from sslpdl_nb.io import grib as messages
from sslpdl_nb.core import VARIABLE_NAMES, DataError
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.io.nwp import open_nwp
from sslpdl_nb.io.nwp import SOURCES, read_nwp, scan
from sslpdl_nb.io.fields import Source
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.types import grid_from_cf
from sslpdl_nb.io.prepare import manifest, open_samples, prepare


@pytest.fixture(scope="module", params=sorted(BUILT))
def built(request, tmp_path_factory):
    "A source, its synthetic files and what is special about them."
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, BUILT[request.param](folder, messages._eccodes("test"))


# ------------------------------------------------------------------ what comes out

TOLERANCE = dict(gh=0.5, slp=1, rh=0.05, t=0.01, u=0.01, v=0.01, rain=0.01)


def test_sixteen_variables_come_out(built):
    name, folder, special = built
    ds = open_nwp(folder, name)
    assert (ds["lead_time"].values / np.timedelta64(1, "h")).tolist() == special["leads"]
    assert [str(t)[:13] for t in ds["time"].values] == special.get("times", ["2024-07-01T00"])
    assert np.array_equal(ds["valid_time"], ds["time"].values[:, None] + ds["lead_time"].values)
    lon, lat = ds["longitude"].values, ds["latitude"].values
    assert lat[0, 0] < lat[-1, 0] and lon.min() >= -180 and lon.max() < 180.001
    known = truth(lon, lat)
    for n in VARIABLE_NAMES:
        slack = TOLERANCE[
            next(k for k in sorted(TOLERANCE, key=len, reverse=True) if n.startswith(k))
        ]
        assert np.allclose(ds[n], known[n], rtol=0, atol=slack), (
            n,
            float(np.abs(ds[n] - known[n]).max()),
        )


def test_the_general_table_knows_the_forecast_models_too(built):
    name, folder, _ = built
    if SOURCES[name].analysis:
        with pytest.raises(DataError, match="rain"):
            read_nwp(
                folder, "grib"
            )  # analysis and rain begin at other hours: the table must say so
    else:
        a, b = read_nwp(folder, "grib"), read_nwp(folder, name)
        assert all(np.array_equal(a[n], b[n]) for n in VARIABLE_NAMES)


def test_each_table_says_on_what_it_was_tried():
    said = {n for n, s in SOURCES.items() if "built" in s.tried}
    assert said == {
        *BUILT,
        "wrfout",
        "era5-netcdf",
        "komet-gdaps",
        "sslpdl",
    }  # era5-netcdf, komet-gdaps: test_files.py; sslpdl: test_prepare.py
    assert {n for n, s in SOURCES.items() if not s.tried} == {"grib"}


def test_rain_of_gfs_is_that_of_the_bucket_and_never_of_the_run(tmp_path):
    gfs(tmp_path, messages._eccodes("test"))
    fields = scan(tmp_path / "gfs.t00z.pgrb2.0p25.f008", "gfs")
    assert {(f.name, f.start_step, f.end_step) for f in fields if f.name in ("tp", "prate")} == {
        ("tp", 6, 8),
        ("tp", 0, 8),
        ("prate", 8, 8),
        ("prate", 6, 8),
    }
    only_rates = Source(SOURCES["gfs"].fields | {"rain": "prate surface 0"})
    rain = read_nwp(tmp_path, only_rates, ("rain",))["rain"]
    assert float(rain[0, 1].max()) < 4  # the mean of the span; the rate of the moment is 9 mm/s
    lon, lat = (
        read_nwp(tmp_path, only_rates, ("rain",))[c].values for c in ("longitude", "latitude")
    )
    assert np.allclose(rain[0, 1], 2 + wave(lon, lat), atol=0.01)


def test_the_world_has_no_seam(tmp_path):
    gfs(tmp_path, messages._eccodes("test"))
    ds = read_nwp(tmp_path, "gfs", ("t2m",))
    target = LambertGrid(
        20, 10, 200e3, -2000e3, -1000e3, lon0=-3.0, lat0=45.0
    )  # on both sides of Greenwich, between 350 and 0 too
    t = Regridder.between(grid_from_cf(ds), target)(ds["t2m"].values[0, 0].astype(float))
    assert np.isfinite(t).all() and np.abs(t - (290 + 3 * wave(*target.lonlat()))).max() < 1.5


def test_rain_in_parts_and_without_a_name(tmp_path):
    ec, (grid, lon, lat) = messages._eccodes("test"), lambert()
    rain = truth(lon, lat)["rain"]
    (tmp_path / "parts.gb2").write_bytes(
        b"".join(
            grib2(ec, "rksl", grid, n, share * rain * h, hour=h, since=0)
            for h in (1, 2)
            for n, share in (("ncpcp", 0.75), ("acpcp", 0.25))
        )
    )
    (tmp_path / "total.gb2").write_bytes(
        b"".join(grib2(ec, "rksl", grid, "tp", rain * h, hour=h, since=0) for h in (1, 2))
    )
    assert [f.name for f in scan(tmp_path / "total.gb2", "rdaps-kim")] == ["0.1.8"] * 2 and scan(
        tmp_path / "total.gb2", "rdaps-kim"
    )[0].units == "kg m-2"
    for file in ("parts.gb2", "total.gb2"):
        assert np.allclose(
            read_nwp(tmp_path / file, "rdaps-kim", ("rain",))["rain"], rain, atol=1e-3
        ), file
    with pytest.raises(DataError, match="parts.gb2.*rain"):
        read_nwp(tmp_path / "parts.gb2", "gfs", ("rain",))


def test_lambert_winds_are_turned_once(tmp_path):
    ec, (grid, lon, lat) = messages._eccodes("test"), lambert(along=0)
    (tmp_path / "east.gb2").write_bytes(
        b"".join(
            grib2(ec, "rksl", grid, n, v + 0 * lat, ("ground", 10))
            for n, v in (("u", 3.0), ("v", 4.0))
        )
    )
    ds = read_nwp(tmp_path / "east.gb2", "rdaps-kim", ("u10", "v10"))
    assert np.allclose(ds["u10"], 3, atol=1e-4) and np.allclose(
        ds["v10"], 4, atol=1e-4
    )  # already east and north: left alone
    assert isinstance(grid_from_cf(ds), LambertGrid) and np.allclose(ds["latitude"], lat, atol=1e-5)


def test_sixteen_variables_of_raw_wrf_output(tmp_path):
    wrfout(tmp_path, None)
    ds = open_nwp(next(tmp_path.iterdir()), "wrfout")
    assert (ds["lead_time"].values / np.timedelta64(1, "h")).tolist() == [1, 2] and np.allclose(
        ds["rain"], 2
    )
    for p in LEVELS:
        z = np.log(1000 / p)
        assert np.allclose(ds[f"gh{p}"], 7000 * z + 100, atol=0.1), p
        if p > 100:
            assert np.allclose(ds[f"t{p}"], 288 - 30 * z, atol=0.01) and np.allclose(
                ds[f"rh{p}"], 60, atol=0.5
            ), p
    east, north = along_grid(
        8.0, -3.0, -(ds["longitude"].values - 2 * 126)
    )  # the same turn, the other way
    assert np.allclose(ds["u500"][0, 0], east, atol=0.01) and np.allclose(
        ds["v500"][0, 0], north, atol=0.01
    )
    assert np.allclose(
        ds["slp"], 100500 * (1 + 0.0065 * 50 / 290) ** 5.2559, atol=2
    ) and np.allclose(ds["t2m"], 290)


def test_central_meridian_in_the_west_is_negative(tmp_path):
    grid = replace(KMA, lon0=-97.5)
    keys, lon, lat = lambert(grid)
    (tmp_path / "west.grib2").write_bytes(
        grib2(messages._eccodes("test"), "kwbc", keys, "t", 290 + 0 * lat, ("ground", 2))
    )
    found = grid_from_cf(read_nwp(tmp_path / "west.grib2", "hrrr", ("t2m",)))
    assert (
        isinstance(found, LambertGrid)
        and found.lon0 == -97.5
        and np.allclose(found.lonlat(), (lon, lat), atol=1e-5)
    )  # coastlines are looked up by it


# ------------------------------------------------------------------ several starts in one file


def test_a_grib_file_of_many_starts_is_prepared_completely(tmp_path):
    ec, (grid, lon, lat) = messages._eccodes("test"), lambert()
    q, out = truth(lon, lat), []
    for start in ("2024070100", "2024070112"):

        def add(name, values, where=("surface", 0), **k):
            return out.append(grib2(ec, "kwbc", grid, name, values, where, 3, start=start, **k))

        for p in LEVELS:
            for ours, name in (("gh", "gh"), ("t", "t"), ("rh", "r"), ("u", "u"), ("v", "v")):
                add(name, q[f"{ours}{p}"], ("p", p * 100))
        add("prmsl", q["slp"], ("sea", 0))
        add("t", q["t2m"], ("ground", 2))
        add("u", q["u10"], ("ground", 10))
        add("v", q["v10"], ("ground", 10))
        add("tp", q["rain"], since=2)
    (tmp_path / "two.grib2").write_bytes(b"".join(out))
    (tmp_path / "rain.grib2").write_bytes(
        b"".join(grib2(ec, "kwbc", grid, "tp", q["rain"], hour=h, since=h - 1) for h in (3, 15))
    )
    store = prepare(
        tmp_path / "two.grib2",
        tmp_path / "rain.grib2",
        tmp_path / "s.zarr",
        source=Source(SOURCES["gfs"].fields),
        say=lambda text: None,
    )
    samples = open_samples(store)
    assert (
        samples.sizes["sample"] == 2 == manifest(store)["runs"]
        and np.isfinite(samples["forecast"]).all()
    )
    assert [str(t)[:13] for t in samples["valid_time"].values] == ["2024-07-01T03", "2024-07-01T15"]
    with pytest.raises(DataError, match="without observation"):
        prepare(
            tmp_path / "two.grib2",
            tmp_path / "rain.grib2",
            tmp_path / "t.zarr",
            source="era5",
            say=lambda text: None,
        )
