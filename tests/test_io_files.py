"Real files and made-up ones: every name, level, hour, unit and grid; damage is refused and never crashes."

import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from fuzz import fuzz
from real import real
from synthetic import grib2, world

from sslpdl_nb.io import derive
from sslpdl_nb.io import grib as messages
from sslpdl_nb.core import VARIABLE_NAMES, DataError, GridError
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.io.nwp import open_nwp
from sslpdl_nb.io.qpe import open_qpe
from sslpdl_nb.store import pair
from sslpdl_nb.io.nwp import SOURCES, evaluate, plan, rain_hours, read_nwp, scan
from sslpdl_nb.io.fields import Source
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.types import (
    CurvilinearGrid,
    grid_from_cf,
    projected_grid,
    row_angle,
    rotate_winds,
)
from sslpdl_nb.io.fields import Field
from sslpdl_nb.io.qpe import knmi_fields, rain_fields, read_qpe, windows
from sslpdl_nb.verify import contingency

ROOT = Path(__file__).resolve().parent.parent
SPHERE = "+R=6371229 +no_defs"


# ------------------------------------------------------------------ every real file


def test_wrf_has_two_tp_and_the_right_one_is_taken():
    files = sorted(real("wrf-stage2-2005/wrf").iterdir())
    spans = {(f.start_step, f.end_step) for f in scan(files[0], "wrf") if f.name == "tp"}
    assert spans == {(0.0, 12.0), (9.0, 12.0)}
    nwp = open_nwp(files, "wrf")
    by_hand = (
        next(f for f in scan(files[0], "wrf") if (f.name, f.start_step) == ("tp", 9.0)).read() / 3
    )
    assert np.allclose(nwp["rain"][0, 0], by_hand, equal_nan=True) and nwp.sizes["lead_time"] == 5


def test_wrf_is_physical():
    nwp = open_nwp(real("wrf-stage2-2005/wrf"), "wrf")
    mean = {n: float(nwp[n].mean()) for n in VARIABLE_NAMES}
    assert (
        16300 < mean["gh100"] < 17000
        and 5700 < mean["gh500"] < 5950
        and 1450 < mean["gh850"] < 1600
        and 101000 < mean["slp"] < 102000
    )
    assert (
        20 < mean["rh500"] < 60
        and 285 < mean["t2m"] < 300
        and 0 < mean["rain"] < 1
        and "ESTIMATED" in nwp.attrs["note"]
    )
    dy, dx = (
        np.gradient(nwp["gh500"].values[0, 0], axis=a) / 40635 for a in (0, 1)
    )  # winds at 500 hPa follow the height contours
    lat, alpha = np.radians(nwp["latitude"].values), row_angle(grid_from_cf(nwp))
    f = 2 * 7.292e-5 * np.sin(lat)
    u, v = -9.8 / f * dy, 9.8 / f * dx
    east, north = u * np.cos(alpha) - v * np.sin(alpha), u * np.sin(alpha) + v * np.cos(alpha)
    ok = (lat > np.radians(35)) & np.isfinite(east) & np.isfinite(nwp["u500"].values[0, 0])

    def like(*uv):
        return sum(
            np.corrcoef(a[ok], nwp[n].values[0, 0][ok])[0, 1] for a, n in zip(uv, ("u500", "v500"))
        )

    wrong = u * np.cos(alpha) + v * np.sin(alpha), v * np.cos(alpha) - u * np.sin(alpha)
    assert like(east, north) > 0.9 and like(east, north) > like(u, v) > like(*wrong)


def test_wrf_against_stage2_is_paired_and_scored():
    nwp, qpe = (
        open_nwp(real("wrf-stage2-2005/wrf"), "wrf"),
        open_qpe(real("wrf-stage2-2005/stage2"), hours=3.0),
    )
    both = pair(nwp, qpe)
    assert both.sizes["sample"] == 5 and 0.2 < float(np.isfinite(both["rain"]).mean()) < 0.35
    forecast, seen = both["forecast"].values[:, -1], both["rain"].values
    known = np.isfinite(forecast) & np.isfinite(seen)
    c = contingency(np.where(known, forecast, np.nan), np.where(known, seen, np.nan), 0.1)
    assert (
        c.total == known.sum()
        and c.hits > 200
        and c.hits / (c.hits + c.misses) > (c.hits + c.false_alarms) / c.total
    )  # better than chance


def test_grib_agrees_with_the_combined_file():
    combined = xr.open_dataset(
        real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc"), decode_timedelta=True
    )
    wanted = ("t850", "rh500", "t2m", "rain")
    ours = read_nwp(real("wrf-stage2-2005/wrf"), "wrf", wanted)
    other = read_nwp(
        real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc"), "met-netcdf", wanted
    ).sel(lead_time=ours["lead_time"])
    for n in wanted:
        assert np.allclose(ours[n], other[n], atol=0.02, equal_nan=True), n
    assert np.allclose(ours["latitude"], combined["latitude"], atol=0.01)
    qpe = read_qpe(real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc"), "met-netcdf", hours=3.0)
    mine = read_qpe(real("wrf-stage2-2005/stage2"), hours=3.0)
    assert np.allclose(
        qpe["rain"].sel(time="2005-08-07T12"),
        mine["rain"].sel(time="2005-08-07T12"),
        atol=0.02,
        equal_nan=True,
    )
    with pytest.raises(DataError, match="gh100"):
        read_nwp(real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc"), "met-netcdf")


def test_hrrr_to_five_kilometres():
    file = real("hrrr/subset_20201214_hrrr.t00z.wrfsfcf12.grib2")
    one = read_nwp(file, "hrrr", ("rain",))
    assert (
        one["rain"].shape == (1, 1, 1059, 1799) and 40 < float(one["rain"].max()) < 45
    )  # of one hour: 135 in twelve
    source = grid_from_cf(one)
    lon, lat = source.lonlat()
    assert (
        isinstance(source, LambertGrid)
        and abs(lat[0, 0] - 21.138) < 0.01
        and abs(lon[0, 0] % 360 - 237.28) < 0.01
        and abs(lat[-1, -1] - 47.842) < 0.01
    )
    target = LambertGrid(149, 253, 5e3, -42 * 5e3, -135 * 5e3, lon0=-78.0, lat0=38.0)
    rain = one["rain"].values[0, 0].astype(float)
    a, b = (Regridder.between(source, target, m)(rain) for m in ("bilinear", "conservative"))
    assert (
        np.isfinite(a).all()
        and abs(np.mean(a) / np.mean(b) - 1) < 0.02
        and abs(b.max() - a.max()) < 5
    )


def test_arome_totals_become_hours():
    file = real("meteonet-nw/arome_PRECIP_NW_20180501000000.grib")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ds = read_nwp(file, "arome", ("rain",))
    total = max(scan(file, "arome"), key=lambda f: f.end_step).read()
    assert (
        ds.sizes["lead_time"] == 24
        and np.allclose(ds["rain"].sum("lead_time")[0], total, atol=0.05)
        and float(ds["rain"].min()) == 0
    )
    assert any("slightly negative" in str(w.message) for w in said) == (
        "slightly negative" in ds.attrs["note"]
    )


def test_arpege_lacks_most_and_says_which():
    folder = real("meteonet-nw")
    files = sorted(folder.glob("arpege*.grib"))
    with pytest.raises(DataError, match="gh100.*gh500.*t850"):
        open_nwp(files, "arpege")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = read_nwp(files, "arpege", ("t2m", "u10", "v10", "rain"))
    assert (
        270 < float(some["t2m"].min()) < float(some["t2m"].max()) < 295
        and abs(float(some["u10"].mean())) < 15
    )
    levels = scan(
        folder / "arpege_3D_height_NW_20180501000000.grib",
        Source({"p": "pres heightAboveGround 500"}),
    )
    assert len(levels) == 7 * 17 and 90000 < levels[0].read().mean() < 103000
    assert {
        f.name
        for f in scan(
            folder / "NW_masks.grib", Source({"orog": "h surface 0", "lsm": "lsm surface 0"})
        )
    } == {"h", "lsm"}


def test_raw_wrf_output_as_a_forecast():
    file = real("wrfout/ci_test_file.nc")
    fields = scan(file, "wrfout")
    with pytest.raises(GridError, match="one grid in all"):  # the nest travels with the storm
        read_nwp(file, "wrfout", ("t2m",))
    names = ("t2m", "u10", "v10", "t850", "gh850", "rh850", "u850", "v850", "slp", "rain")
    steps, _ = plan([f for f in fields if f.end_step == 12], "wrfout", names)
    ds = dict(zip(names, evaluate(steps[0])[0]))
    raw = xr.open_dataset(file, decode_times=False)
    amount = sum(raw[n].values[0] for n in ("RAINC", "RAINNC", "RAINSH") if n in raw)
    assert np.allclose(ds["rain"], amount / 12, atol=1e-3)
    assert 1200 < ds["gh850"].mean() < 1500 and 0 < float(ds["rh850"].max()) < 130
    assert float(np.hypot(ds["u850"], ds["v850"]).max()) > 30  # Katrina
    with pytest.raises(DataError, match="gh100"):
        open_nwp(file)


def test_meteonet_radar_to_hours():
    file = real("meteonet-nw/meteonet_radar_NW_201608.nc")
    images = rain_fields(file)
    assert (
        len(images) == 45 and images[0].start_step == -5 / 60 and images[0].grid.shape == (565, 784)
    )
    assert np.isnan(images[0].read()).mean() == pytest.approx(0.125, abs=0.001)
    table, thin = windows(images, 1.0, 0.5)
    assert [len(v) for v in table.values()] == [12, 11] and thin > 0
    rate = read_qpe(file, min_valid=0.5)
    assert (
        0 <= float(rate["rain"].min())
        and float(rate["rain"].max()) < 100
        and rate.sizes["time"] == 2
    )
    assert open_qpe(file).sizes["time"] == 1  # one whole hour
    t = sorted(table)[0]
    hand = np.sum([f.read() * 0.01 for f in table[t]], 0) / (5 * len(table[t])) * 60
    seen = np.isfinite(hand)
    assert np.allclose(rate["rain"].sel(time=t).values[seen], hand[seen], atol=1e-4)


def test_knmi_corners_and_hours():
    files = sorted(real("knmi-radar").glob("*.h5"))
    grid = knmi_fields(files[0])[0].grid  # refused unless its own corners agree
    lon, lat = grid.unproject(grid.x[0] - 500, grid.y[-1] + 500)
    assert abs(lon - 0.0) < 0.005 and abs(lat - 55.974) < 0.005
    x, y = grid.project(4.79, 52.955)  # the radar of Den Helder
    assert np.hypot(*(np.array([x, y]) - [grid.x.mean(), grid.y.mean()])) < 200e3
    ds = read_qpe(files)
    assert (
        ds.sizes["time"] == 7
        and grid_from_cf(ds) == grid
        and 0.2 < float(np.isfinite(ds["rain"]).mean()) < 0.6
    )
    assert read_qpe(files[:12] + files[13:]).sizes["time"] == 6


# ------------------------------------------------------------------ made-up files of other formats


def test_era5_netcdf(tmp_path):
    lat, lon, t = (
        np.arange(45, 30, -1.0),
        np.arange(120, 135.0),
        np.datetime64("2020-07-01T00", "ns") + np.arange(3) * np.timedelta64(3600, "s"),
    )
    d4, d3 = (
        ("valid_time", "pressure_level", "latitude", "longitude"),
        ("valid_time", "latitude", "longitude"),
    )

    def full(d, v, u):
        return (
            d,
            np.full((3, 3, 15, 15)[: len(d)] if len(d) == 4 else (3, 15, 15), v),
            {"units": u},
        )

    z = np.array([1500, 5700, 16500.0])[None, :, None, None] * 9.80665 * np.ones((3, 3, 15, 15))
    xr.Dataset(
        {
            "z": (d4, z, {"units": "m**2 s**-2"}),
            "r": full(d4, 60.0, "%"),
            "t": full(d4, 280.0, "K"),
            "u": full(d4, 5.0, "m s**-1"),
            "v": full(d4, 1.0, "m s**-1"),
            "msl": full(d3, 101000.0, "Pa"),
            "t2m": full(d3, 290.0, "K"),
            "u10": full(d3, 2.0, "m s**-1"),
            "v10": full(d3, 2.0, "m s**-1"),
            "tp": full(d3, 0.002, "m"),
        },
        dict(
            valid_time=t,
            pressure_level=("pressure_level", [850.0, 500.0, 100.0], {"units": "hPa"}),
            latitude=("latitude", lat, {"units": "degrees_north"}),
            longitude=("longitude", lon, {"units": "degrees_east"}),
        ),
    ).to_netcdf(tmp_path / "era5.nc")
    ds = open_nwp(tmp_path / "era5.nc", "era5-netcdf")
    assert (
        ds.sizes["time"] == 3
        and np.allclose(ds["gh500"], 5700)
        and np.allclose(ds["gh100"], 16500)
        and np.allclose(ds["rain"], 2)
        and np.allclose(ds["rh850"], 60)
    )
    assert ds["latitude"].values[:, 0].tolist() == list(range(31, 46)) and np.array_equal(
        ds["valid_time"][:, 0], t
    )


def komet(folder, lead, rain):
    path = Path(folder) / "202007/01/00"
    path.mkdir(parents=True, exist_ok=True)
    lat, lon = np.linspace(30, 45, 6), np.linspace(120, 135, 7)

    def p4(v):
        return (("time", "levs", "lats", "lons"), np.full((1, 22, 6, 7), v))

    def p3(v):
        return (("time", "lats", "lons"), np.full((1, 6, 7), v))

    where = dict(
        lats=("lats", lat, {"units": "degrees_north"}),
        lons=("lons", lon, {"units": "degrees_east"}),
    )
    units = dict(
        hgt="m",
        T="K",
        rh_liq="%",
        u="m/s",
        v="m/s",
        psl="Pa",
        t2m="K",
        u10m="m/s",
        v10m="m/s",
        rainc_acc="kg/m2",
        rainl_acc="kg/m2",
    )
    high = xr.Dataset(
        dict(hgt=p4(5000.0), T=p4(260.0), rh_liq=p4(50.0), u=p4(3.0), v=p4(4.0)), where
    )
    levels = np.array(SOURCES["komet-gdaps"].levels) * 100.0
    high["hgt"][:] = derive.standard_height(levels)[None, :, None, None]
    low = xr.Dataset(
        dict(
            psl=p3(101000.0),
            t2m=p3(290.0),
            u10m=p3(1.0),
            v10m=p3(1.0),
            rainc_acc=p3(rain),
            rainl_acc=p3(rain / 2),
        ),
        where,
    )
    for ds, name in ((high, "dfp"), (low, "dfs")):
        for n in ds.data_vars:
            ds[n].attrs["units"] = units[n]
        ds.to_netcdf(path / f"{name}_ft{lead:03}.nc")
    return sorted(path.glob("*.nc"))


def test_komet_gdaps(tmp_path):
    for lead, rain in ((6, 2.0), (7, 4.0)):
        files = komet(tmp_path, lead, rain)
    ds = open_nwp(files, "komet-gdaps")
    assert (
        ds["lead_time"].values.astype("timedelta64[h]").astype(int).tolist() == [6, 7]
        and np.allclose(ds["rain"][0, 1], 3)
        and np.allclose(ds["rain"][0, 0], 0.5)
    )
    assert (
        all(
            np.allclose(ds[f"gh{p}"], derive.standard_height(100.0 * p), atol=0.1)
            for p in (100, 500, 850)
        )
        and str(ds["time"].values[0])[:13] == "2020-07-01T00"
    )
    assert (
        np.allclose(ds["t850"], 260)
        and np.allclose(ds["u500"], 3)
        and np.allclose(ds["slp"], 101000)
    )


@pytest.mark.parametrize("epoch", ["1970-01-01", "1980-01-06"])  # both are in use
def test_imerg(tmp_path, epoch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "imerg.HDF5", "w") as h:
        g = h.create_group("Grid")
        g["lon"], g["lat"], g["time"] = (
            np.arange(120, 125, 0.1),
            np.arange(30, 33, 0.1),
            (
                np.array(["2020-09-13T13:00", "2020-09-13T13:30"], "datetime64[s]")
                - np.datetime64(epoch)
            ).astype(int),
        )
        g["time"].attrs["units"] = np.bytes_(f"seconds since {epoch} 00:00:00 UTC")
        rain = np.full((2, 50, 30), 2.0, "f4")
        rain[0, 3, 4] = -9999.9
        rain[1] = 4
        g["precipitation"] = rain
        g["precipitation"].attrs["units"] = np.bytes_("mm/hr")
    ds = read_qpe(tmp_path / "imerg.HDF5")
    assert (
        ds.sizes == {"time": 1, "y": 30, "x": 50}
        and str(ds["time"].values[0])[:16] == "2020-09-13T14:00"
        and np.nanmax(ds["rain"]) == 3
        and np.isnan(ds["rain"][0, 4, 3])
    )


def test_kma_style_grid_with_codes_for_missing(tmp_path):
    rain = np.full((2, 4, 5), 1.5, np.float32)
    rain[0, 1, 2] = -999
    xr.Dataset(
        {"RN": (("time", "lat", "lon"), rain, {"units": "mm"})},
        dict(
            time=np.datetime64("2020-07-01T01", "ns") + np.arange(2) * np.timedelta64(3600, "s"),
            lat=("lat", np.arange(34, 36, 0.5), {"units": "degrees_north"}),
            lon=("lon", np.arange(126, 128.5, 0.5), {"units": "degrees_east"}),
        ),
    ).to_netcdf(tmp_path / "k.nc")
    ds = open_qpe(tmp_path / "k.nc", "kma")
    assert (
        np.isnan(ds["rain"][0, 1, 2]) and float(ds["rain"].max()) == 1.5 and ds.sizes["time"] == 2
    )


# ------------------------------------------------------------------ tables and recipes

GRID = projected_grid(f"+proj=longlat {SPHERE}", [126.0, 127.0, 128.0], [36.0, 37.0])
START = np.datetime64("2020-07-01", "ns")


def toy(
    name,
    value,
    kind="surface",
    level=0.0,
    first=3.0,
    last=3.0,
    units="K",
    grid_relative=False,
    grid=GRID,
    where="toy.grib",
):
    return Field(
        name=name,
        level_type=kind,
        level=level,
        reference_time=START,
        start_step=first,
        end_step=last,
        units=units,
        file_name=where,
        grid_relative=grid_relative,
        grid=grid,
        read=lambda: np.full(grid.shape, float(value)),
    )


def made(fields, source, *names):
    steps, _ = plan(fields, source, names)
    return {n: v for n, v in zip(names, evaluate(steps[-1])[0])}


def test_units_in_files_are_converted_or_refused():
    assert made([toy("2t", 20, units="degC", kind="heightAboveGround", level=2.0)], "grib", "t2m")[
        "t2m"
    ][0, 0] == pytest.approx(293.15)
    assert made(
        [toy("z", 5700 * 9.80665, "isobaricInhPa", 500.0, units="m**2 s**-2")], "grib", "gh500"
    )["gh500"][0, 0] == pytest.approx(5700)
    for units in ("furlong", "", "degF"):
        with pytest.raises(DataError, match="toy.grib.*units"):
            made([toy("2t", 20, units=units, kind="heightAboveGround", level=2.0)], "grib", "t2m")
    with pytest.raises(DataError, match="between 130"):
        made([toy("2t", 20, kind="heightAboveGround", level=2.0)], "grib", "t2m")  # the unit lies


def test_rain_of_every_kind():
    def hour(a, b, mm, units="kg m**-2"):
        return toy("tp", mm, first=a, last=b, units=units)

    def rate(*f):
        return float(made(f, "grib", "rain")["rain"][0, 0])

    assert (
        rate(hour(0, 2, 5), hour(0, 3, 7)) == 2
        and rate(hour(0, 3, 7), hour(2, 3, 1)) == 1
        and rate(hour(0, 3, 0.006, "m")) == 2
    )
    assert rate(toy("tp", 1 / 3600, units="kg m**-2 s**-1")) == pytest.approx(1)
    two = Source({"rain": "tp surface 0 | ncpcp surface 0 + acpcp surface 0"})
    assert (
        made(
            [toy("ncpcp", 3, first=0.0, units="mm"), toy("acpcp", 6, first=0.0, units="mm")],
            two,
            "rain",
        )["rain"][0, 0]
        == 3
    )
    assert plan([toy("ncpcp", 3, first=0.0, units="mm")], two, ("rain",))[0] == []


def totals(leads, start="2024070100"):
    "GRIB messages of rain since the start, 1 mm an hour."
    return b"".join(
        grib2(
            messages._eccodes("test"),
            "kwbc",
            world(20.0)[0],
            "tp",
            np.full(180, float(h)),
            hour=h,
            since=0,
            start=start,
        )
        for h in leads
    )


def test_the_hours_that_rain_covers_are_told(tmp_path):
    (tmp_path / "late.grib2").write_bytes(totals(range(25, 31)))
    ds = read_nwp(tmp_path, "gfs", ("rain",))
    assert (
        ds["rain_hours"].dims == ("lead_time",)
        and ds["rain_hours"].values.tolist() == [25, 1, 1, 1, 1, 1]
        and np.allclose(ds["rain"], 1, atol=1e-3)
    )
    assert ds.attrs["note"] == "rain: mean of 25 h at +25 h, of 1 h elsewhere"
    rate = plan([toy("prate", 1 / 3600, units="kg m-2 s-1")], "gfs", ("rain",))[0][0].recipes[0][1]
    assert rate[0] == "moment" and rain_hours(rate) is None


def test_lead_times_that_not_every_start_has_are_named(tmp_path):
    (tmp_path / "two.grib2").write_bytes(totals((1, 2, 3)) + totals((2, 3, 4), "2024070112"))
    with pytest.warns(UserWarning, match="not every start has.*\\+1, \\+4 h"):
        ds = read_nwp(tmp_path, "gfs", ("rain",))
    assert (ds["lead_time"].values / np.timedelta64(1, "h")).tolist() == [
        2,
        3,
    ] and "left out: +1, +4 h" in ds.attrs["note"]
    assert ds["rain_hours"].values.tolist() == [
        2,
        1,
    ]  # the second start has nothing to subtract at +2 h


def column(path, sp, humid):
    "A NetCDF file of seven levels of temperature, surface pressure and 2 m temperature; perhaps humidity."
    levels = [1000.0, 850, 700, 500, 300, 200, 100]

    def full(v):
        return (("time", "step", "plev", "lat", "lon"), np.full((1, 1, 7, 3, 3), v))

    ds = xr.Dataset(
        {
            "t": full(280.0),
            "sp": (("time", "step", "lat", "lon"), np.full((1, 1, 3, 3), sp), {"units": "Pa"}),
            "t2m": (("time", "step", "lat", "lon"), np.full((1, 1, 3, 3), 285.0), {"units": "K"}),
        },
        STEPS | dict(plev=("plev", levels, {"units": "hPa"})) | degrees(),
    )
    ds["t"].attrs["units"] = "K"
    if humid:
        ds["r"] = (*full(50.0), {"units": "%"})
    path.parent.mkdir(exist_ok=True)
    ds.to_netcdf(path)


COLUMN = Source(
    {
        "gh{p}": "gh isobaricInhPa {p}",
        "t{p}": "t isobaricInhPa {p}",
        "rh{p}": "r isobaricInhPa {p}",
        "sp": "sp surface 0",
        "t2m": "t2m surface 0",
    }
)


def test_files_of_one_name_are_two_files(tmp_path):
    for name, sp in (("m1", 100000.0), ("m2", 97000.0)):
        column(tmp_path / name / "x.nc", sp, True)
    one, two = (
        read_nwp(tmp_path / n / "x.nc", COLUMN, ("gh500",))["gh500"].values for n in ("m1", "m2")
    )
    column(tmp_path / "m3/y.nc", 97000.0, True)
    assert (
        np.array_equal(two, read_nwp(tmp_path / "m3/y.nc", COLUMN, ("gh500",))["gh500"].values)
        and abs(one - two).max() < 5
    )  # both columns stand on their own ground


def test_the_note_says_what_an_estimated_terrain_and_dry_air_cost(tmp_path):
    for humid in (True, False):
        column(tmp_path / f"{humid}.nc", 97000.0, humid)
        note = read_nwp(tmp_path / f"{humid}.nc", COLUMN, ("gh500", "slp")).attrs["note"]
        assert (
            "ESTIMATED" in note
            and "slp made from it is near 1013.25 hPa" in note
            and "orog" in note
            and ("taken for dry" in note) == (not humid)
        )
    assert "slp made" not in read_nwp(tmp_path / "True.nc", COLUMN, ("gh500",)).attrs["note"]


def test_a_dictionary_is_told_what_rain_needs(tmp_path):
    whole("tp", ("time", "step", "lat", "lon"), 3, "mm", **STEPS, **degrees()).to_netcdf(
        tmp_path / "a.nc"
    )
    with pytest.raises(
        DataError, match=r"a.nc: rain: .*Source\(.*amounts=\('tp',\)\), found tp in mm"
    ):
        read_nwp(tmp_path / "a.nc", {"rain": "tp surface 0"}, ("rain",))
    assert np.allclose(
        read_nwp(
            tmp_path / "a.nc",
            Source({"rain": "tp surface 0"}, rain="total", amounts=("tp",)),
            ("rain",),
        )["rain"],
        3,
    )


def test_humidity_of_0_to_1_is_no_percentage():
    for name, level in (("rh850", 850.0), ("rh500", 500.0)):
        with pytest.raises(DataError, match="relative humidity in %"):
            made([toy("r", 0.8, "isobaricInhPa", level, units="%")], "grib", name)
    assert (
        made([toy("r", 0.8, "isobaricInhPa", 850.0, units="1")], "grib", "rh850")["rh850"][0, 0]
        == 80
    )
    assert made([toy("r", 0.8, "isobaricInhPa", 100.0, units="%")], "grib", "rh100")["rh100"][
        0, 0
    ] == pytest.approx(0.8)  # the stratosphere is dry


def test_doubled_messages():
    a, b = (
        toy("2t", 290, "heightAboveGround", 2.0),
        toy("2t", 290, "heightAboveGround", 2.0, where="again.grib"),
    )
    assert made([a, b], "grib", "t2m")["t2m"][0, 0] == 290
    with pytest.raises(DataError, match="again.grib.*one field"):
        plan([a, toy("2t", 291, "heightAboveGround", 2.0, where="again.grib")], "grib", ("t2m",))


def test_humidity_wind_and_pressure_are_derived():
    def p(n, v, units, level=850.0):
        return toy(n, v, "isobaricInhPa", level, units=units)

    t, rh = 285.0, 70.0
    e = rh / 100 * derive.saturation_pressure(t)
    q = 0.622 * e / (85000 - 0.378 * e)
    assert made([p("t", t, "K"), p("q", q, "kg kg**-1")], "grib", "rh850")["rh850"][
        0, 0
    ] == pytest.approx(rh, abs=1e-3)
    assert made([p("t", t, "K"), p("dpt", t, "K")], "grib", "rh850")["rh850"][
        0, 0
    ] == pytest.approx(100)
    wind = [
        toy("10si", 10, "heightAboveGround", 10.0, units="m s**-1"),
        toy("10wdir", 270, "heightAboveGround", 10.0, units="degree true"),
    ]
    uv = made(wind, "grib", "u10", "v10")
    assert uv["u10"][0, 0] == pytest.approx(10) and abs(uv["v10"][0, 0]) < 1e-5  # from the west
    ground = [
        toy("sp", 95000, units="Pa"),
        toy("2t", 290, "heightAboveGround", 2.0),
        toy("orog", 550, units="m"),
    ]
    assert 101000 < made(ground, "grib", "slp")["slp"][0, 0] < 101600


def test_winds_along_a_rotated_grid_are_turned():
    grid = projected_grid(
        f"+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 {SPHERE}",
        np.arange(-10, 10, 1.0),
        np.arange(-10, 10, 1.0),
    )
    f = [
        toy(n, v, "isobaricInhPa", 500.0, units="m s**-1", grid_relative=True, grid=grid)
        for n, v in (("u", 3), ("v", 4))
    ]
    uv = made(f, "grib", "u500", "v500")
    assert np.allclose(np.hypot(uv["u500"], uv["v500"]), 5, atol=1e-4) and np.ptp(uv["u500"]) > 1
    assert np.allclose(
        (uv["u500"], uv["v500"]),
        rotate_winds(3 * np.ones(grid.shape), 4 * np.ones(grid.shape), grid),
        atol=1e-4,
    )
    assert plan(f[:1], "grib", ("u500",))[0] == []


def test_different_grids_in_one_step():
    other = projected_grid(f"+proj=longlat {SPHERE}", [126.0, 127.0], [36.0, 37.0])
    with pytest.raises(GridError, match="grids"):
        plan(
            [toy("2t", 290, "heightAboveGround", 2.0), toy("msl", 101000, units="Pa", grid=other)],
            "grib",
            ("t2m", "slp"),
        )


def test_sources_name_known_quantities():
    for name, s in SOURCES.items():
        for quantity, row in s.fields.items():
            assert (
                quantity.replace("{p}", "500")
                in {*VARIABLE_NAMES, "td500", "q500", "sp", "orog", "ws10", "wd10"}
                or quantity in VARIABLE_NAMES
            ), (name, quantity)
            for part in row.replace("|", "+").split("+"):
                n, kind, level = part.split()
                float(level.replace("{p}", "500"))


def test_plans_travel_to_other_processes():
    file = sorted(real("wrf-stage2-2005/wrf").iterdir())[0]
    step = plan(scan(file, "wrf"), "wrf")[0][0]
    assert np.array_equal(
        evaluate(pickle.loads(pickle.dumps(step)))[0], evaluate(step)[0], equal_nan=True
    )


def test_lazy_equals_eager():
    files = sorted(real("wrf-stage2-2005/wrf").iterdir())[:2]
    lazy, eager = read_nwp(files, "wrf", memory=0), read_nwp(files, "wrf")
    assert lazy["gh500"].chunks and np.array_equal(lazy["gh500"], eager["gh500"], equal_nan=True)
    checked = open_nwp(files, "wrf")
    assert np.array_equal(checked["gh500"], eager["gh500"], equal_nan=True)


# ------------------------------------------------------------------ images of rain


def test_windows_account_for_every_minute():
    def image(k):
        return toy("rain", 1.0, first=k / 12, last=(k + 1) / 12, units="mm")

    all12 = [image(k) for k in range(12)]
    assert (
        {len(v) for v in windows(all12)[0].values()} == {12}
        and windows(all12[1:])[0] == {}
        and windows(all12[1:])[1] == 1
    )
    assert {len(v) for v in windows(all12[1:], 1.0, 0.9)[0].values()} == {11}
    with pytest.raises(DataError, match="overlap"):
        windows(all12 + [image(3)])
    with pytest.raises(DataError, match="spans up to 1 h"):
        windows([toy("rain", 1.0, first=0.0, last=3.0)])
    with pytest.raises(DataError, match="min_valid"):
        windows(all12, 1.0, 0.0)


# ------------------------------------------------------------------ damaged files


@pytest.mark.parametrize(
    "name, n",
    [
        ("knmi-radar/RAD_NL25_RAP_5min_201008260150.h5", 150),
        ("meteonet-nw/meteonet_radar_NW_201608.nc", 30),
    ],
)
def test_damaged_images_never_crash(tmp_path, name, n):
    fuzz(real(name), tmp_path / "bad", "sslpdl_nb.io.qpe:rain_fields", n)


def whole(name, dims, value, units, **coords):
    "A NetCDF dataset of one variable."
    shape = [len(coords[d][1] if isinstance(coords[d], tuple) else coords[d]) for d in dims]
    return xr.Dataset({name: (dims, np.full(shape, float(value)), {"units": units})}, coords)


def degrees(lat=(36.0, 36.5, 37.0), lon=(126.0, 127.0, 128.0)):
    return dict(
        lat=("lat", list(lat), {"units": "degrees_north"}),
        lon=("lon", list(lon), {"units": "degrees_east"}),
    )


STEPS = dict(time=[START], step=np.array([1], "timedelta64[h]").astype("timedelta64[ns]"))
T2M = Source({"t2m": "t2m surface 0"})
BAD = {  # file: (how it is made, who reads it, what the error must say)
    "half.grib": (
        lambda p, ec: p.write_bytes(
            grib2(ec, "kwbc", world()[0], "tp", np.arange(684.0), since=0)[:700]
        ),
        "nwp",
        "complete GRIB",
    ),
    "magic.grib": (
        lambda p, ec: p.write_bytes(
            b"GIRB" + grib2(ec, "kwbc", world()[0], "tp", np.ones(684), since=0)[4:]
        ),
        "nwp",
        "GRIB",
    ),
    "zip.grib": (lambda p, ec: p.write_bytes(b"PK\x03\x04" + bytes(99)), "nwp", "zip"),
    "empty.grib": (lambda p, ec: p.write_bytes(b""), "nwp", "empty"),
    "empty_rain.grib": (lambda p, ec: p.write_bytes(b""), "qpe", "empty"),
    "unit_lies.grib": (
        lambda p, ec: p.write_bytes(
            grib2(ec, "kwbc", world()[0], "t", np.full(684, 20.0), ("ground", 2))
        ),
        "nwp",
        "between 130",
    ),
    "half.nc": (
        lambda p, ec: (
            whole("t2m", ("time", "step", "lat", "lon"), 280, "K", **STEPS, **degrees()).to_netcdf(
                p
            ),
            p.write_bytes(p.read_bytes()[:4000]),
        ),
        "nwp",
        "readable",
    ),
    "half_rain.nc": (
        lambda p, ec: (
            whole("rain", ("time", "lat", "lon"), 1, "mm", time=[START], **degrees()).to_netcdf(p),
            p.write_bytes(p.read_bytes()[:4000]),
        ),
        "qpe",
        "readable",
    ),
    "no_columns.nc": (
        lambda p, ec: whole(
            "t2m", ("time", "step", "lat"), 280, "K", **STEPS, **degrees()
        ).to_netcdf(p),
        "nwp",
        "t2m",
    ),
    "no_columns_rain.nc": (
        lambda p, ec: whole("rain", ("time", "lat"), 1, "mm", time=[START], **degrees()).to_netcdf(
            p
        ),
        "qpe",
        "shape|rows",
    ),
    "unit_lies.nc": (
        lambda p, ec: whole(
            "t2m", ("time", "step", "lat", "lon"), 20, "K", **STEPS, **degrees()
        ).to_netcdf(p),
        "nwp",
        "between 130",
    ),
    "unit_unknown.nc": (
        lambda p, ec: whole(
            "t2m", ("time", "step", "lat", "lon"), 20, "gradus", **STEPS, **degrees()
        ).to_netcdf(p),
        "nwp",
        "gradus",
    ),
    "rain_lies.nc": (
        lambda p, ec: whole(
            "rain", ("time", "lat", "lon"), 1e4, "mm", time=[START], **degrees()
        ).to_netcdf(p),
        "qpe",
        "between 0",
    ),
    "time_twice.nc": (
        lambda p, ec: (
            d := whole(
                "t2m",
                ("time", "step", "lat", "lon"),
                280,
                "K",
                time=[START] * 2,
                step=STEPS["step"],
                **degrees(),
            ),
            d["t2m"].__setitem__(1, 290.0),
            d.to_netcdf(p),
        ),
        "nwp",
        "one field",
    ),
    "time_twice_rain.nc": (
        lambda p, ec: whole(
            "rain", ("time", "lat", "lon"), 1, "mm", time=[START] * 2, **degrees()
        ).to_netcdf(p),
        "qpe",
        "overlap",
    ),
    "no_time.nc": (
        lambda p, ec: whole("t2m", ("lat", "lon"), 280, "K", **degrees()).to_netcdf(p),
        "nwp",
        "times",
    ),
    "zero_size.nc": (
        lambda p, ec: whole(
            "t2m", ("time", "step", "lat", "lon"), 280, "K", **STEPS, **degrees(lat=())
        ).to_netcdf(p),
        "nwp",
        "grid",
    ),
    "zero_times.nc": (
        lambda p, ec: whole(
            "rain",
            ("time", "lat", "lon"),
            1,
            "mm",
            time=np.array([], "datetime64[ns]"),
            **degrees(),
        ).to_netcdf(p),
        "qpe",
        "at least one",
    ),
    "rows_jump.nc": (
        lambda p, ec: whole(
            "t2m",
            ("time", "step", "lat", "lon"),
            280,
            "K",
            **STEPS,
            **degrees(lat=(36.0, 37.0, 36.5, 39.0)),
        ).to_netcdf(p),
        "nwp",
        "increase",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name_within_a_second(tmp_path, name):
    make, reader, word = BAD[name]
    make(tmp_path / name, messages._eccodes("test"))
    read = (
        (lambda: read_nwp(tmp_path / name, T2M if name.endswith(".nc") else "gfs", ("t2m",)))
        if reader == "nwp"
        else lambda: read_qpe(tmp_path / name)
    )
    with pytest.raises((DataError, GridError), match=word) as first:
        read()  # packages are imported at the first file
    assert name in str(first.value), first.value
    begin = time.process_time()
    with pytest.raises((DataError, GridError)):
        read()
    assert time.process_time() - begin < 1  # of the processor: other programs do not count
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing left behind


def test_times_of_raw_files_may_come_in_any_order(tmp_path):
    day = np.timedelta64(1, "D")
    ds = whole(
        "t2m",
        ("time", "step", "lat", "lon"),
        280,
        "K",
        time=[START + day, START],
        step=STEPS["step"],
        **degrees(),
    )
    ds["t2m"][0] = 290.0
    ds.to_netcdf(tmp_path / "order.nc")
    out = read_nwp(tmp_path / "order.nc", T2M, ("t2m",))
    assert out["time"].values.tolist() == [
        START.astype(int),
        (START + day).astype("datetime64[ns]").astype(int),
    ] and out["t2m"].mean(("lead_time", "y", "x")).values.tolist() == [280, 290]


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "empty"),
        (b"hello", "hello"),
        (b"GRIB" + bytes(60), "GRIB 1 or 2"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "readable"),
        (b"PK\x03\x04", "zip"),
        (b"GRIB\xff\xff\xff\x01" + bytes(90), "GRIB 1 or 2"),
    ],
)
def test_wrong_content(tmp_path, content, word):
    (tmp_path / "wrong.bin").write_bytes(content)
    for read in (scan, rain_fields, open_nwp, open_qpe):
        with pytest.raises(DataError, match="wrong.bin"):
            read(tmp_path / "wrong.bin")
    with pytest.raises(DataError, match=word):
        scan(tmp_path / "wrong.bin")


def test_netcdf_with_a_missing_dimension_or_no_time(tmp_path):
    where = dict(
        lat=("lat", [30.0, 31.0], {"units": "degrees_north"}),
        lon=("lon", [120.0, 121.0], {"units": "degrees_east"}),
    )
    source = Source({"t2m": "t2m surface 0"})
    xr.Dataset({"t2m": (("lat", "lon"), np.full((2, 2), 280.0), {"units": "K"})}, where).to_netcdf(
        tmp_path / "timeless.nc"
    )
    with pytest.raises(DataError, match="timeless.nc: times"):
        read_nwp(tmp_path / "timeless.nc", source, ("t2m",))
    xr.Dataset(
        {"t2m": ("lat", [280.0, 281.0], {"units": "K"})},
        where | dict(time=START, step=np.timedelta64(3600, "s").astype("timedelta64[ns]")),
    ).to_netcdf(tmp_path / "flat.nc")
    with pytest.raises(DataError, match="flat.nc.*t2m"):
        read_nwp(tmp_path / "flat.nc", source, ("t2m",))
    xr.Dataset({"t2m": (("y", "x"), np.ones((2, 2)))}).to_netcdf(tmp_path / "nowhere.nc")
    with pytest.raises(GridError, match="nowhere.nc: grid"):
        read_nwp(tmp_path / "nowhere.nc", source, ("t2m",))


def test_points_have_no_map_but_a_place():
    swath = CurvilinearGrid(*np.meshgrid([120.0, 121, 122], [30.0, 31]))
    assert swath.shape == (2, 3) and hash(swath) == hash(CurvilinearGrid(swath.lon, swath.lat))
    with pytest.raises(GridError):
        CurvilinearGrid([1.0, 2.0], [3.0])
    with pytest.raises(GridError, match="PROJ"):
        projected_grid("+proj=nonsense", [0.0, 1.0], [0.0, 1.0]).lonlat()
