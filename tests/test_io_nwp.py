"Sixteen variables from any model: real files, files built for the purpose, and damaged ones."

import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from real import real
from synthetic import (
    BUILT,
    KMA,
    LEVELS,
    along_grid,
    degrees,
    era5,
    gfs,
    grib2,
    komet,
    hrrr,
    icon_eu,
    lambert,
    one_variable,
    rdaps_kim,
    reduced_gaussian,
    truth,
    wave,
    world,
    wrfout,
)

from sslpdl_nb.core import VARIABLE_NAMES, VARIABLES, DataError, GridError, SSLPDLError
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.types import (
    QPE_GRID,
    LambertGrid,
    UnstructuredGrid,
    cf_coordinates,
    crs_attributes,
    grid_from_cf,
    lambert_from_cf,
    row_angle,
)
from sslpdl_nb.io import derive, grib, nwp
from sslpdl_nb.io.fields import Field, Source, open_file
from sslpdl_nb.io.lexicon import SOURCES, alternatives
from sslpdl_nb.io.nwp import account, check_nwp, is_our_form, open_nwp, read_nwp, scan
from sslpdl_nb.io.prepare import forecast_on_grid
from sslpdl_nb.io.plan import EstimatedTerrain, TakenAsDry, evaluate, plan

ROOT = Path(__file__).resolve().parent.parent
SPHERE = "+R=6371229 +no_defs"
HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")
START = np.datetime64("2020-07-01", "ns")
STEPS = dict(time=[START], step=np.array([1], "timedelta64[h]").astype("timedelta64[ns]"))
DIMS = ("time", "step", "lat", "lon")
T2M = Source(fields={"t2m": "t2m surface 0"})


def raises(kind, *words):
    return pytest.raises(kind, match=".*".join(words) or None)


def lead_hours(ds):
    return (ds["lead_time"].values / HOUR).tolist()


# ------------------------------------------------------------------ real files


def test_wrf_has_two_tp_and_the_right_one_is_taken():
    files = sorted(real("wrf-stage2-2005/wrf").iterdir())
    rain = {(f.start_step, f.end_step): f for f in scan(files[0], "wrf") if f.name == "tp"}
    assert set(rain) == {(0.0, 12.0), (9.0, 12.0)}
    ds = open_nwp(files, "wrf")
    assert np.allclose(ds["rain"][0, 0], rain[9.0, 12.0].read() / 3, equal_nan=True)
    assert ds.sizes["lead_time"] == 5 and ds["rain_accumulation"].values.tolist() == [3] * 5


def test_wrf_is_physical():
    ds = open_nwp(real("wrf-stage2-2005/wrf"), "wrf")
    mean = {n: float(ds[n].mean()) for n in VARIABLE_NAMES}
    assert 16300 < mean["gh100"] < 17000
    assert 5700 < mean["gh500"] < 5950
    assert 1450 < mean["gh850"] < 1600
    assert 101000 < mean["slp"] < 102000
    assert 20 < mean["rh500"] < 60
    assert 285 < mean["t2m"] < 300
    assert 0 < mean["rain"] < 1
    assert "ESTIMATED" in ds.attrs["note"]


def test_winds_of_wrf_follow_the_heights():
    "At 500 hPa winds blow along the height contours, if they are rotated to the right side."
    ds = open_nwp(real("wrf-stage2-2005/wrf"), "wrf")
    heights = ds["gh500"].values[0, 0]
    dy, dx = (np.gradient(heights, axis=a) / 40635 for a in (0, 1))
    lat, alpha = np.radians(ds["latitude"].values), row_angle(grid_from_cf(ds))
    coriolis = 2 * 7.292e-5 * np.sin(lat)
    u, v = -9.8 / coriolis * dy, 9.8 / coriolis * dx
    rotated = u * np.cos(alpha) - v * np.sin(alpha), u * np.sin(alpha) + v * np.cos(alpha)
    other_side = u * np.cos(alpha) + v * np.sin(alpha), v * np.cos(alpha) - u * np.sin(alpha)
    known = np.isfinite(rotated[0]) & np.isfinite(ds["u500"].values[0, 0])
    known &= lat > np.radians(35)

    def similarity(winds):
        pairs = zip(winds, ("u500", "v500"))
        return sum(np.corrcoef(w[known], ds[n].values[0, 0][known])[0, 1] for w, n in pairs)

    assert similarity(rotated) > 0.9
    assert similarity(rotated) > similarity((u, v)) > similarity(other_side)


def test_grib_agrees_with_the_combined_file():
    combined = real("wrf-stage2-2005/wrf13_stage2_g212_20050807.nc")
    wanted = ("t850", "rh500", "t2m", "rain")
    ours = read_nwp(real("wrf-stage2-2005/wrf"), "wrf", wanted)
    other = read_nwp(combined, "met-netcdf", wanted).sel(lead_time=ours["lead_time"])
    for n in wanted:
        assert np.allclose(ours[n], other[n], atol=0.02, equal_nan=True), n
    with xr.open_dataset(combined, decode_timedelta=True) as ds:
        assert np.allclose(ours["latitude"], ds["latitude"], atol=0.01)
    with raises(DataError, "gh100"):
        read_nwp(combined, "met-netcdf")


def test_hrrr_to_five_kilometres():
    file = real("hrrr/subset_20201214_hrrr.t00z.wrfsfcf12.grib2")
    ds = read_nwp(file, "hrrr", ("rain",))
    assert ds["rain"].shape == (1, 1, 1059, 1799)
    assert 40 < float(ds["rain"].max()) < 45  # of one hour: 135 in twelve
    source = grid_from_cf(ds)
    lon, lat = source.lonlat()
    assert isinstance(source, LambertGrid) and abs(lon[0, 0] % 360 - 237.28) < 0.01
    assert abs(lat[0, 0] - 21.138) < 0.01 and abs(lat[-1, -1] - 47.842) < 0.01
    target = replace(QPE_GRID, lon0=-78.0, lat0=38.0)
    rain = ds["rain"].values[0, 0].astype(float)
    a, b = (Regridder.between(source, target, m)(rain) for m in ("bilinear", "conservative"))
    assert np.isfinite(a).all() and abs(np.mean(a) / np.mean(b) - 1) < 0.02
    assert abs(b.max() - a.max()) < 5


def test_arome_totals_become_hours():
    file = real("meteonet-nw/arome_PRECIP_NW_20180501000000.grib")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = read_nwp(file, "arome", ("rain",))
    total = max(scan(file, "arome"), key=lambda f: f.end_step).read()
    assert ds.sizes["lead_time"] == 24 and float(ds["rain"].min()) == 0
    assert np.allclose(ds["rain"].sum("lead_time")[0], total, atol=0.05)
    warned = any("slightly negative" in str(w.message) for w in caught)
    assert warned == ("slightly negative" in ds.attrs["note"])


def test_arpege_lacks_most_and_says_which():
    folder = real("meteonet-nw")
    files = sorted(folder.glob("arpege*.grib"))
    with raises(DataError, "gh100", "gh500", "t850"):
        open_nwp(files, "arpege")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = read_nwp(files, "arpege", ("t2m", "u10", "v10", "rain"))
    assert 270 < float(some["t2m"].min()) < float(some["t2m"].max()) < 295
    assert abs(float(some["u10"].mean())) < 15
    pressure = Source(fields={"sp": "pres heightAboveGround 500"})
    levels = scan(folder / "arpege_3D_height_NW_20180501000000.grib", pressure)
    assert len(levels) == 7 * 17 and 90000 < levels[0].read().mean() < 103000
    masks = Source(fields={"orog": "h surface 0", "lsm": "lsm surface 0"})
    assert {f.name for f in scan(folder / "NW_masks.grib", masks)} == {"h", "lsm"}


def test_raw_wrf_output_as_a_forecast():
    file = real("wrfout/ci_test_file.nc")
    with raises(GridError, "one grid in all"):  # the nest travels with the storm
        read_nwp(file, "wrfout", ("t2m",))
    names = ("t2m", "u10", "v10", "t850", "gh850", "rh850", "u850", "v850", "slp", "rain")
    fields = [f for f in scan(file, "wrfout") if f.end_step == 12]
    steps, _ = plan(fields, "wrfout", names)
    values = dict(zip(names, evaluate(steps[0])[0]))
    with xr.open_dataset(file, decode_times=False) as raw:
        total = sum(raw[n].values[0] for n in ("RAINC", "RAINNC", "RAINSH") if n in raw)
    assert np.allclose(values["rain"], total / 12, atol=1e-3)
    assert 1200 < values["gh850"].mean() < 1500 and 0 < float(values["rh850"].max()) < 130
    assert float(np.hypot(values["u850"], values["v850"]).max()) > 30  # Katrina
    with raises(DataError, "gh100"):
        open_nwp(file)


def test_lazy_equals_eager():
    files = sorted(real("wrf-stage2-2005/wrf").iterdir())[:2]
    lazy, eager = read_nwp(files, "wrf", memory=0), read_nwp(files, "wrf")
    assert lazy["gh500"].chunks
    for ds in (lazy, open_nwp(files, "wrf")):
        assert np.array_equal(ds["gh500"], eager["gh500"], equal_nan=True)


# ------------------------------------------------------------------ built files: what comes out


@pytest.fixture(scope="module", params=sorted(BUILT))
def built(request, tmp_path_factory):
    "A source, its synthetic files and what is special about them."
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, BUILT[request.param](folder, grib._eccodes("test"))


TOLERANCE = dict(gh=0.5, slp=1, rh=0.05, t=0.01, u=0.01, v=0.01, rain=0.01)


def test_sixteen_variables_come_out(built):
    name, folder, special = built
    ds = open_nwp(folder, name)
    assert lead_hours(ds) == special["leads"]
    assert [str(t)[:13] for t in ds["time"].values] == special.get("times", ["2024-07-01T00"])
    assert np.array_equal(ds["valid_time"], ds["time"].values[:, None] + ds["lead_time"].values)
    lon, lat = ds["longitude"].values, ds["latitude"].values
    assert lat[0, 0] < lat[-1, 0] and lon.min() >= -180 and lon.max() < 180.001
    known = truth(lon, lat)
    longest_first = sorted(TOLERANCE, key=len, reverse=True)
    for n in VARIABLE_NAMES:
        slack = TOLERANCE[next(k for k in longest_first if n.startswith(k))]
        worst = float(np.abs(ds[n] - known[n]).max())
        assert worst <= slack, (n, worst)


def test_the_general_table_knows_the_forecast_models_too(built):
    name, folder, _ = built
    if SOURCES[name].analysis:
        with raises(DataError, "rain"):  # analysis and rain begin at other hours
            read_nwp(folder, "grib")
        return
    a, b = read_nwp(folder, "grib"), read_nwp(folder, name)
    assert all(np.array_equal(a[n], b[n]) for n in VARIABLE_NAMES)


def test_rain_of_gfs_is_that_of_the_last_hours_and_never_of_the_run(tmp_path):
    gfs(tmp_path, grib._eccodes("test"))
    fields = scan(tmp_path / "gfs.t00z.pgrb2.0p25.f008", "gfs")
    rain = {(f.name, f.start_step, f.end_step) for f in fields if f.name in ("tp", "prate")}
    assert rain == {("tp", 6, 8), ("tp", 0, 8), ("prate", 8, 8), ("prate", 6, 8)}
    only_rates = Source(fields=SOURCES["gfs"].fields | {"rain": "prate surface 0"})
    ds = read_nwp(tmp_path, only_rates, ("rain",))
    assert float(ds["rain"][0, 1].max()) < 4  # the mean; the instantaneous rate is 9 mm/s
    expected = 2 + wave(ds["longitude"].values, ds["latitude"].values)
    assert np.allclose(ds["rain"][0, 1], expected, atol=0.01)


def test_the_world_has_no_seam(tmp_path):
    gfs(tmp_path, grib._eccodes("test"))
    ds = read_nwp(tmp_path, "gfs", ("t2m",))
    # on both sides of Greenwich, between 350 and 0 degrees too
    target = LambertGrid(nx=20, ny=10, dx=200e3, x0=-2000e3, y0=-1000e3, lon0=-3.0, lat0=45.0)
    t = Regridder.between(grid_from_cf(ds), target)(ds["t2m"].values[0, 0].astype(float))
    assert np.isfinite(t).all()
    assert np.abs(t - (290 + 3 * wave(*target.lonlat()))).max() < 1.5


def test_rain_in_parts_and_without_a_name(tmp_path):
    ec = grib._eccodes("test")
    grid, lon, lat = lambert()
    rain = truth(lon, lat)["rain"]
    parts, total = b"", b""
    for hour in (1, 2):
        for name, fraction in (("ncpcp", 0.75), ("acpcp", 0.25)):
            parts += grib2(ec, "rksl", grid, name, fraction * rain * hour, hour=hour, since=0)
        total += grib2(ec, "rksl", grid, "tp", rain * hour, hour=hour, since=0)
    (tmp_path / "parts.gb2").write_bytes(parts)
    (tmp_path / "total.gb2").write_bytes(total)
    fields = scan(tmp_path / "total.gb2", "rdaps-kim")
    assert [f.name for f in fields] == ["0.1.8"] * 2 and fields[0].units == "kg m-2"
    for file in ("parts.gb2", "total.gb2"):
        ds = read_nwp(tmp_path / file, "rdaps-kim", ("rain",))
        assert np.allclose(ds["rain"], rain, atol=1e-3), file
        assert ds["rain_accumulation"].values.tolist() == [1, 1], file
    with raises(DataError, "parts.gb2", "rain"):
        read_nwp(tmp_path / "parts.gb2", "gfs", ("rain",))


def test_lambert_winds_are_rotated_once(tmp_path):
    ec = grib._eccodes("test")
    grid, _, lat = lambert(along=0)  # already east and north
    winds = [
        grib2(ec, "rksl", grid, n, v + 0 * lat, ("ground", 10)) for n, v in (("u", 3), ("v", 4))
    ]
    (tmp_path / "east.gb2").write_bytes(b"".join(winds))
    ds = read_nwp(tmp_path / "east.gb2", "rdaps-kim", ("u10", "v10"))
    assert np.allclose(ds["u10"], 3, atol=1e-4) and np.allclose(ds["v10"], 4, atol=1e-4)
    assert isinstance(grid_from_cf(ds), LambertGrid)
    assert np.allclose(ds["latitude"], lat, atol=1e-5)


def test_sixteen_variables_of_raw_wrf_output(tmp_path):
    wrfout(tmp_path, None)
    ds = open_nwp(next(tmp_path.iterdir()), "wrfout")
    assert lead_hours(ds) == [1, 2] and np.allclose(ds["rain"], 2)
    for p in LEVELS:
        z = np.log(1000 / p)
        assert np.allclose(ds[f"gh{p}"], 7000 * z + 100, atol=0.1), p
        if p > 100:
            assert np.allclose(ds[f"t{p}"], 288 - 30 * z, atol=0.01), p
            assert np.allclose(ds[f"rh{p}"], 60, atol=0.5), p
    # the same rotation, the other way
    east, north = along_grid(8.0, -3.0, -(ds["longitude"].values - 2 * 126))
    assert np.allclose(ds["u500"][0, 0], east, atol=0.01)
    assert np.allclose(ds["v500"][0, 0], north, atol=0.01)
    assert np.allclose(ds["slp"], 100500 * (1 + 0.0065 * 50 / 290) ** 5.2559, atol=2)
    assert np.allclose(ds["t2m"], 290)


def test_central_meridian_in_the_west_is_negative(tmp_path):
    keys, lon, lat = lambert(replace(KMA, lon0=-97.5))
    content = grib2(grib._eccodes("test"), "kwbc", keys, "t", 290 + 0 * lat, ("ground", 2))
    (tmp_path / "west.grib2").write_bytes(content)
    found = grid_from_cf(read_nwp(tmp_path / "west.grib2", "hrrr", ("t2m",)))
    assert isinstance(found, LambertGrid)
    assert found.lon0 == -97.5  # coastlines are looked up by it
    assert np.allclose(found.lonlat(), (lon, lat), atol=1e-5)


def test_era5_netcdf(tmp_path):
    lat, lon = np.arange(45, 30, -1.0), np.arange(120, 135.0)
    times = np.datetime64("2020-07-01T00", "ns") + np.arange(3) * HOUR
    on_levels = ("valid_time", "pressure_level", "latitude", "longitude")
    heights = np.array([1500, 5700, 16500.0])[None, :, None, None]
    data = {"z": (on_levels, heights * 9.80665 * np.ones((3, 3, 15, 15)), {"units": "m**2 s**-2"})}
    for name, value, units in (
        ("r", 60.0, "%"),
        ("t", 280.0, "K"),
        ("u", 5.0, "m s**-1"),
        ("v", 1.0, "m s**-1"),
    ):
        data[name] = (on_levels, np.full((3, 3, 15, 15), value), {"units": units})
    for name, value, units in (
        ("msl", 101000.0, "Pa"),
        ("t2m", 290.0, "K"),
        ("u10", 2.0, "m s**-1"),
        ("v10", 2.0, "m s**-1"),
        ("tp", 0.002, "m"),
    ):
        dims = ("valid_time", "latitude", "longitude")
        data[name] = (dims, np.full((3, 15, 15), value), {"units": units})
    coordinates = dict(
        valid_time=times,
        pressure_level=("pressure_level", [850.0, 500.0, 100.0], {"units": "hPa"}),
        latitude=("latitude", lat, {"units": "degrees_north"}),
        longitude=("longitude", lon, {"units": "degrees_east"}),
    )
    xr.Dataset(data, coordinates).to_netcdf(tmp_path / "era5.nc")
    ds = open_nwp(tmp_path / "era5.nc", "era5-netcdf")
    assert ds.sizes["time"] == 3 and np.array_equal(ds["valid_time"][:, 0], times)
    for name, value in dict(gh500=5700, gh100=16500, rain=2, rh850=60).items():
        assert np.allclose(ds[name], value), name
    assert ds["latitude"].values[:, 0].tolist() == list(range(31, 46))


def test_komet_gdaps(tmp_path):
    for lead, rain in ((6, 2.0), (7, 4.0)):
        files = komet(tmp_path, lead, rain)
    ds = open_nwp(files, "komet-gdaps")
    assert lead_hours(ds) == [6, 7] and str(ds["time"].values[0])[:13] == "2020-07-01T00"
    assert np.allclose(ds["rain"][0, 1], 3) and np.allclose(ds["rain"][0, 0], 0.5)
    for p in (100, 500, 850):
        assert np.allclose(ds[f"gh{p}"], derive.standard_height(100.0 * p), atol=0.1)
    for name, value in dict(t850=260, u500=3, slp=101000).items():
        assert np.allclose(ds[name], value), name


# ------------------------------------------------------------------ what a file lacks


def toy(name, value, units="K", hours=(3.0, 3.0), **attributes):
    "A field of constant values."
    attributes = dict(level_type="surface", level=0.0, grid=KMA, file_name="toy.grib") | attributes
    return Field(
        name=name,
        reference_time=START,
        start_step=hours[0],
        end_step=hours[1],
        units=units,
        read=partial(np.full, attributes["grid"].shape, float(value)),
        **attributes,
    )


def lines_of(error):
    "The first line of an error, and the lines of its table by variable."
    first, empty, *table = str(error.value).splitlines()
    assert empty == "" and table[0].startswith("variable")
    assert max(map(len, table)) <= 100
    return first, {line.split()[0]: line for line in table[1:] if line[0] != " "}, table


LACKING = {  # source: (how its files are built, which of them are read, what is missing, where)
    "hrrr": (
        hrrr,
        lambda f: f.level not in (100.0, 500.0),
        "gh100, gh500, rh500, t500, u500, v500",
        "wrfprsf",
    ),
    "gfs": (gfs, lambda f: f.level_type != "isobaricInhPa" or f.level == 500, "gh850", "pgrb2"),
    "era5": (era5, "single-levels", "gh100, gh500, gh850, rh500, rh850", "era5-pressure-levels"),
    "rdaps-kim": (rdaps_kim, "pres", "slp, t2m, u10, v10, rain", "_unis_h"),
    "icon-eu": (icon_eu, "single-level", "gh100, gh500, gh850, rh500, rh850", "relhum"),
}


@pytest.mark.parametrize("name", LACKING)
def test_an_error_says_what_is_missing_and_in_which_file_it_is(name, tmp_path):
    build, which, missing, where = LACKING[name]
    build(tmp_path, grib._eccodes("test"))
    files = sorted(tmp_path.iterdir())
    fields = [f for file in files for f in scan(file, name)]
    if isinstance(which, str):
        files = [file for file in files if which in file.name]
        with pytest.raises(DataError) as error:
            open_nwp(files, name)
    else:
        with pytest.raises(DataError) as error:
            raise nwp._nothing_found(
                list(filter(which, fields)), SOURCES[name], VARIABLE_NAMES, "some.grib"
            )
    first, table, lines = lines_of(error)
    assert "expected one lead time with all variables" in first and missing.split(",")[0] in first
    for variable in VARIABLE_NAMES:
        is_missing = "-> no" in table[variable]
        assert is_missing == (f" {variable}," in first + ","), variable
    for variable in missing.split(", "):
        assert "->" in table[variable], variable
    assert where in " ".join(lines[-2:]), lines[-2:]


def test_a_table_says_what_else_would_do():
    at_850 = dict(level_type="isobaricInhPa", level=850.0)
    fields = [toy("t", 280, level_type="isobaricInhPa", level=500.0), toy("dpt", 270, **at_850)]
    fields += [toy("tp", 1, "mm", hours=(0.0, 2.0)), toy("10u", 1, "m/s", level=10.0)]
    fields[-1] = replace(fields[-1], level_type="heightAboveGround", grid_relative=True)
    fields += [toy("2t", 290, level_type="heightAboveGround", level=2.0)]
    fields = [replace(f, grid=KMA) for f in fields]
    found = {f.variable: f for f in account(fields, "grib")}
    assert (
        "t is at 500" in found["t850"].how and "td850 is there, but no t850" in found["rh850"].how
    )
    assert "neither there" in found["rh500"].how and found["t500"].how == "t at 500 hPa"
    assert "can only be rotated" in found["u10"].how and "no 10u" not in found["u10"].how
    assert found["rain"].how == "tp of 0-2 h" and (found["rain"].found, found["rain"].times) == (
        1,
        2,
    )
    assert "no sp, orog" in found["slp"].how and "speed" not in found["u500"].how
    assert account([], "grib")[0].times == 0
    with raises(DataError, "never together"):
        raise nwp._nothing_found(fields, SOURCES["grib"], ("rain", "t500"), "a.grib")


def test_no_rain_at_hour_0_is_no_lack_of_words_about_hours():
    fields = [toy("tp", 0, "kg m-2", hours=(0.0, 0.0))]
    with raises(DataError, "found no rain"):
        raise nwp._nothing_found(fields, SOURCES["gfs"], ("rain",), "gfs.f000")
    assert account(fields, "gfs", ("rain",))[0].how.endswith("tp is there for hours 0")


# ------------------------------------------------------------------ points without rows

POINTS = UnstructuredGrid(*reduced_gaussian(24))


def constant_fields(grid):
    "Each of the sixteen variables with a value of its own, everywhere the same."
    fields, values = [], {}
    for k, v in enumerate(VARIABLES):
        values[v.name] = float(USUAL.get(v.name, 5) + 0.25 * k)
        for (name, level_type, level), *_ in alternatives(SOURCES["grib"], v.name)[:1]:
            where = dict(level_type=level_type, level=level, grid=grid)
            hours = (3.0, 3.0)
            if v.name == "rain":
                hours, values["rain"] = (2.0, 3.0), 4.75
            units = "mm" if v.name == "rain" else v.units
            fields.append(toy(name, values[v.name], units, hours=hours, **where))
    return fields, values


def test_points_become_a_dataset_and_are_regridded(monkeypatch, tmp_path):
    "From fields on a reduced Gaussian grid to samples on a map: constants stay what they are."
    fields, values = constant_fields(POINTS)
    monkeypatch.setattr(nwp, "scan", lambda file, source: fields)
    (tmp_path / "a.grib").write_bytes(message(since=0))
    ds = open_nwp(tmp_path / "a.grib", "grib")
    assert ds["t850"].dims == ("time", "lead_time", "point") and grid_from_cf(ds) == POINTS
    assert ds.sizes["point"] == POINTS.lon.size
    samples = forecast_on_grid(ds, OWN_GRID, "a.grib")["forecast"].values
    for k, v in enumerate(VARIABLES):
        assert np.allclose(ds[v.name], values[v.name], rtol=1e-6), v.name
        assert np.allclose(samples[0, k], values[v.name], rtol=1e-6), v.name
    hours = {"lead_time": {"units": "hours", "dtype": "float64"}}
    ds.to_netcdf(tmp_path / "points.nc", encoding=hours)
    again = open_nwp(tmp_path / "points.nc")
    assert again["rain"].equals(ds["rain"]) and grid_from_cf(again) == POINTS
    lazy = read_nwp(tmp_path / "a.grib", "grib", memory=0)
    assert lazy["t850"].chunks and np.array_equal(lazy["t850"], ds["t850"])
    assert check_nwp(ds.transpose("point", ...), "turned").equals(ds)


def test_conservative_regridding_needs_cells():
    with raises(GridError, "scattered points"):
        Regridder.between(POINTS, OWN_GRID, "conservative")
    ones = np.ones(POINTS.shape)
    for method in ("bilinear", "nearest"):
        assert np.allclose(Regridder.between(POINTS, OWN_GRID, method)(ones), 1, rtol=1e-12)


# ------------------------------------------------------------------ datasets and notes


def totals(leads, start="2024070100"):
    "GRIB messages of rain since the start, 1 mm an hour."
    ec, keys = grib._eccodes("test"), world(20.0, east=340.0)[0]
    options = dict(since=0, start=start)
    return b"".join(
        grib2(ec, "kwbc", keys, "tp", np.full(180, float(h)), hour=h, **options) for h in leads
    )


def test_the_hours_that_rain_covers_are_told(tmp_path):
    (tmp_path / "late.grib2").write_bytes(totals(range(25, 31)))
    ds = read_nwp(tmp_path, "gfs", ("rain",))
    assert ds["rain_accumulation"].dims == ("lead_time",)
    assert ds["rain_accumulation"].values.tolist() == [25, 1, 1, 1, 1, 1]
    assert np.allclose(ds["rain"], 1, atol=1e-3)
    assert ds.attrs["note"] == "rain: mean of 25 h at +25 h, of 1 h elsewhere"


def test_lead_times_that_not_every_reference_time_has_are_named(tmp_path):
    (tmp_path / "two.grib2").write_bytes(totals((1, 2, 3)) + totals((2, 3, 4), "2024070112"))
    with pytest.warns(UserWarning, match=r"not every reference time has.*\+1, \+4 h"):
        ds = read_nwp(tmp_path, "gfs", ("rain",))
    assert lead_hours(ds) == [2, 3] and "left out: +1, +4 h" in ds.attrs["note"]
    # the second reference time has nothing to subtract at +2 h
    assert ds["rain_accumulation"].values.tolist() == [2, 1]
    (tmp_path / "two.grib2").write_bytes(totals((1, 2)) + totals((3, 4), "2024070112"))
    with raises(DataError, "two.grib2: lead times"):
        read_nwp(tmp_path, "gfs", ("rain",))


def write_column(path, surface_pressure, humid, extra=()):
    "Seven levels of temperature, surface pressure and 2 m temperature; perhaps humidity."
    levels = [1000.0, 850, 700, 500, 300, 200, 100]
    on_levels = ("time", "step", "plev", "lat", "lon")
    data = {
        "t": (on_levels, np.full((1, 1, 7, 3, 3), 280.0), {"units": "K"}),
        "sp": (DIMS, np.full((1, 1, 3, 3), surface_pressure), {"units": "Pa"}),
        "t2m": (DIMS, np.full((1, 1, 3, 3), 285.0), {"units": "K"}),
    }
    if humid:
        data["r"] = (on_levels, np.full((1, 1, 7, 3, 3), 50.0), {"units": "%"})
    for name, value, units in extra:
        data[name] = (DIMS, np.full((1, 1, 3, 3), value), {"units": units})
    path.parent.mkdir(exist_ok=True)
    coordinates = STEPS | dict(plev=("plev", levels, {"units": "hPa"})) | degrees()
    xr.Dataset(data, coordinates).to_netcdf(path)


COLUMN = Source(
    fields={
        "gh{p}": "gh isobaricInhPa {p}",
        "t{p}": "t isobaricInhPa {p}",
        "rh{p}": "r isobaricInhPa {p}",
        "sp": "sp surface 0",
        "t2m": "t2m surface 0",
        "orog": "orog surface 0",
    }
)


def test_heights_and_pressure_from_a_column(tmp_path):
    write_column(tmp_path / "a.nc", 97000.0, True, [("orog", 350.0, "m")])
    ds = read_nwp(tmp_path / "a.nc", COLUMN, ("gh500", "gh850", "slp"))
    levels = np.array([1000.0, 850, 700, 500, 300, 200, 100]) * 100
    t, rh = np.full((7, 1, 1), 280.0), np.full((7, 1, 1), 50.0)
    by_hand = derive.heights(t, rh, levels, np.full((1, 1), 97000.0), np.full((1, 1), 350.0))
    assert np.allclose(ds["gh850"], by_hand[1, 0, 0], atol=0.01)
    assert np.allclose(ds["gh500"], by_hand[3, 0, 0], atol=0.01)
    assert np.allclose(ds["slp"], derive.sea_level_pressure(97000.0, 285.0, 350.0))
    assert "ESTIMATED" not in ds.attrs["note"]


def test_a_column_is_integrated_once(tmp_path, monkeypatch):
    write_column(tmp_path / "a.nc", 97000.0, True, [("orog", 350.0, "m")])
    calls, heights = [], derive.heights

    def counted(*args):
        calls.append(args)
        return heights(*args)

    monkeypatch.setattr(derive, "heights", counted)
    steps, _ = plan(scan(tmp_path / "a.nc", COLUMN), COLUMN, ("gh100", "gh500", "gh850"))
    evaluate(steps[0])
    assert len(calls) == 1


def test_files_of_one_name_are_two_files(tmp_path):
    found = []
    for name, pressure in (("m1/x.nc", 100000.0), ("m2/x.nc", 97000.0), ("m3/y.nc", 97000.0)):
        write_column(tmp_path / name, pressure, True)
        found.append(read_nwp(tmp_path / name, COLUMN, ("gh500",))["gh500"].values)
    assert np.array_equal(found[1], found[2])  # nothing of the first file was remembered
    assert abs(found[0] - found[1]).max() < 5  # both columns stand on their own ground


def test_the_note_says_what_an_estimated_terrain_and_dry_air_cost(tmp_path):
    for humid in (True, False):
        write_column(tmp_path / f"{humid}.nc", 97000.0, humid)
        note = read_nwp(tmp_path / f"{humid}.nc", COLUMN, ("gh500", "slp")).attrs["note"]
        assert "ESTIMATED" in note and "slp made from it is near 1013.25 hPa" in note
        assert "orog" in note and ("taken as dry" in note) == (not humid)
    assert "slp made" not in read_nwp(tmp_path / "True.nc", COLUMN, ("gh500",)).attrs["note"]


def test_a_derivation_tells_all_that_it_needs(tmp_path):
    write_column(tmp_path / "a.nc", 97000.0, False)
    steps, _ = plan(scan(tmp_path / "a.nc", COLUMN), COLUMN, ("gh500",))
    height = steps[0].derivations[0][1]
    assert len(set(height.needs())) == 7 + 1  # temperatures and surface pressure
    kinds = {type(part) for part in height.walk()}
    assert {EstimatedTerrain, TakenAsDry} < kinds
    assert height.describe() == "hypsometric equation" and height.accumulation is None


def test_a_dictionary_is_told_what_rain_needs(tmp_path):
    one_variable("tp", DIMS, 3, "mm", **STEPS, **degrees()).to_netcdf(tmp_path / "a.nc")
    told = r"a.nc: rain: .*Source\(.*amounts=\('tp',\)\), found tp in mm"
    with raises(DataError, told):
        read_nwp(tmp_path / "a.nc", {"rain": "tp surface 0"}, ("rain",))
    source = Source(fields={"rain": "tp surface 0"}, rain="total", amounts=("tp",))
    assert np.allclose(read_nwp(tmp_path / "a.nc", source, ("rain",))["rain"], 3)


def test_a_file_is_opened_once(tmp_path, monkeypatch):
    one_variable("t2m", DIMS, 280, "K", **STEPS, **degrees()).to_netcdf(tmp_path / "a.nc")
    seen, original = [], nwp.open_file

    def counted(path):
        seen.append(path)
        return original(path)

    for module in ("nwp", "fields"):
        monkeypatch.setattr(f"sslpdl_nb.io.{module}.open_file", counted)
    read_nwp(tmp_path / "a.nc", T2M, ("t2m",))
    assert seen == [tmp_path / "a.nc"]
    file = open_file(tmp_path / "a.nc")
    assert [f.name for f in scan(file, T2M)] == ["t2m"] and len(seen) == 1


# ------------------------------------------------------------------ files that must be refused


def message(name="tp", values=1.0, where=("surface", 0), **options):
    "One GRIB message on a world of ten degrees."
    ec = grib._eccodes("test")
    return grib2(ec, "kwbc", world()[0], name, np.full(684, values), where, **options)


def t2m_file(value=280.0, units="K", dims=DIMS, **coordinates):
    return one_variable("t2m", dims, value, units, **(STEPS | degrees() | coordinates))


def half_a_message(path):
    path.write_bytes(message(values=np.arange(684.0), since=0)[:700])


def half_a_file(path):
    t2m_file().to_netcdf(path)
    path.write_bytes(path.read_bytes()[:4000])


def two_of_one_time(path):
    ds = t2m_file(time=[START] * 2)
    ds["t2m"][1] = 290.0
    ds.to_netcdf(path)


def without_time(path):
    one_variable("t2m", ("lat", "lon"), 280, "K", **degrees()).to_netcdf(path)


def jumping_rows(path):
    t2m_file(**degrees(lat=(36.0, 37.0, 36.5, 39.0))).to_netcdf(path)


BAD = {  # file: (how it is made, what the error must say)
    "half.grib": (half_a_message, "complete GRIB"),
    "magic.grib": (lambda p: p.write_bytes(b"GIRB" + message(since=0)[4:]), "GRIB"),
    "zip.grib": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "zip"),
    "empty.grib": (lambda p: p.write_bytes(b""), "empty"),
    "unit_lies.grib": (
        lambda p: p.write_bytes(message("t", 20.0, ("ground", 2))),
        "between 130",
    ),
    "half.nc": (half_a_file, "readable"),
    "no_columns.nc": (lambda p: t2m_file(dims=DIMS[:3]).to_netcdf(p), "t2m"),
    "unit_lies.nc": (lambda p: t2m_file(20).to_netcdf(p), "between 130"),
    "unit_unknown.nc": (lambda p: t2m_file(20, "gradus").to_netcdf(p), "gradus"),
    "time_twice.nc": (two_of_one_time, "one field"),
    "no_time.nc": (without_time, "times"),
    "zero_size.nc": (lambda p: t2m_file(**degrees(lat=())).to_netcdf(p), "grid"),
    "rows_jump.nc": (jumping_rows, "increase"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name_within_a_second(tmp_path, name):
    make, word = BAD[name]
    make(tmp_path / name)
    source = T2M if name.endswith(".nc") else "gfs"
    with raises((DataError, GridError), word) as first:
        read_nwp(tmp_path / name, source, ("t2m",))  # packages are imported at the first file
    assert name in str(first.value), first.value
    begin = time.process_time()
    with raises((DataError, GridError)):
        read_nwp(tmp_path / name, source, ("t2m",))
    assert time.process_time() - begin < 1  # of CPU time: other programs do not count
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing left behind


def test_times_of_raw_files_may_come_in_any_order(tmp_path):
    ds = t2m_file(time=[START + DAY, START])
    ds["t2m"][0] = 290.0
    ds.to_netcdf(tmp_path / "order.nc")
    out = read_nwp(tmp_path / "order.nc", T2M, ("t2m",))
    assert (out["time"].values == [START, START + DAY]).all()
    assert out["t2m"].mean(("lead_time", "y", "x")).values.tolist() == [280, 290]


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "empty"),
        (b"hello", "hello"),
        (b"GRIB" + bytes(60), "damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "readable"),
        (b"PK\x03\x04", "zip"),
        (b"GRIB\xff\xff\xff\x01" + bytes(90), "GRIB 1 or 2"),
        (b"CDF\x01" + bytes(40), "wrong.bin"),
    ],
)
def test_wrong_content(tmp_path, content, word):
    (tmp_path / "wrong.bin").write_bytes(content)
    for read in (scan, open_nwp, read_nwp):
        with raises(SSLPDLError, "wrong.bin"):
            read(tmp_path / "wrong.bin")
    with raises(SSLPDLError, word):
        scan(tmp_path / "wrong.bin")


def test_netcdf_with_a_missing_dimension_or_no_grid(tmp_path):
    where = degrees(lat=[30.0, 31.0], lon=[120.0, 121.0])
    times = dict(time=START, step=np.timedelta64(3600, "s").astype("timedelta64[ns]"))
    flat = xr.Dataset({"t2m": ("lat", [280.0, 281.0], {"units": "K"})}, where | times)
    flat.to_netcdf(tmp_path / "flat.nc")
    with raises(DataError, "flat.nc", "t2m"):
        read_nwp(tmp_path / "flat.nc", T2M, ("t2m",))
    xr.Dataset({"t2m": (("y", "x"), np.ones((2, 2)))}).to_netcdf(tmp_path / "nowhere.nc")
    with raises(GridError, "nowhere.nc: grid"):
        read_nwp(tmp_path / "nowhere.nc", T2M, ("t2m",))


def test_raw_files_need_a_name_or_a_source(tmp_path):
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "strange.nc")
    with raises(DataError, "strange.nc: variables", "source"):
        open_nwp(tmp_path / "strange.nc")
    with raises(DataError, "hrrr", "moon"):
        open_nwp(tmp_path / "strange.nc", source="moon")
    with raises(DataError, "at least one"):
        open_nwp([])


def icon_grid_file(path):
    "A file of ICON's triangles, as DWD publishes it: no field, no time."
    n = 20
    cells = dict(
        clat=("cell", np.linspace(0.8, 0.9, n), {"units": "radian"}),
        clon=("cell", np.linspace(0.1, 0.2, n), {"units": "radian"}),
        cell_area=("cell", np.ones(n), {"units": "m2"}),
        vertex_of_cell=(("nv", "cell"), np.zeros((3, n), np.int32)),
    )
    about = dict(uuidOfHGrid="a27b8de6-18c4-11e4-820a-b5b098c6a5c0", number_of_grid_used=26)
    xr.Dataset(cells, attrs=about).to_netcdf(path)


def test_a_file_of_icons_grid_has_no_fields(tmp_path):
    icon_eu(tmp_path, grib._eccodes("test"))
    expected = open_nwp(tmp_path, "icon-eu")
    icon_grid_file(tmp_path / "icon_grid_0026_R03B07_G.nc")
    icon_grid_file(tmp_path / "a_grid.nc")  # also as the first one
    assert scan(tmp_path / "a_grid.nc", "icon-eu") == []
    for source in ("icon-eu", None):
        assert open_nwp(tmp_path, source)["gh500"].equals(expected["gh500"])
    ds = t2m_file()  # ICON's output names the grid too, and is no grid file
    ds = ds.assign(clat=("n", [0.8]), clon=("n", [0.1])).assign_attrs(uuidOfHGrid="a27b")
    ds.to_netcdf(tmp_path / "output.nc")
    assert len(scan(tmp_path / "output.nc", T2M)) == 1


# ------------------------------------------------------------------ our own form

OWN_GRID = LambertGrid(
    nx=14, ny=16, dx=30e3, x0=-200e3, y0=-230e3, lon0=128.0, lat0=38.0, parallels=(35.0, 50.0)
)
USUAL = dict(gh100=16500, gh500=5700, gh850=1500, slp=101000, rh500=50, rh850=70)
USUAL |= dict(t2m=290, t500=260, t850=280, rain=1.0)


def make_nwp(days=3, leads=(25, 27, 30)):
    "A forecast of random numbers in our own form."
    rng, shape = np.random.default_rng(0), (days, len(leads), *OWN_GRID.shape)
    data = {"crs": ((), 0, crs_attributes(OWN_GRID))}
    for v in VARIABLES:
        values = (USUAL.get(v.name, 5) + rng.uniform(0, 1, shape)).astype(np.float32)
        data[v.name] = (("time", "lead_time", "y", "x"), values, {"units": v.units})
    coordinates = dict(
        time=np.datetime64("2001-06-01", "ns") + np.arange(days) * DAY,
        lead_time=np.array(leads, "timedelta64[h]").astype("timedelta64[ns]"),
    )
    return xr.Dataset(data, coordinates | cf_coordinates(OWN_GRID))


def test_round_trip_through_files(tmp_path):
    ds = make_nwp()
    hours = {"lead_time": {"units": "hours", "dtype": "float64"}}
    ds.to_netcdf(tmp_path / "nwp.nc", encoding=hours)
    ds.to_zarr(tmp_path / "nwp.zarr")
    for name in ("nwp.nc", "nwp.zarr"):
        back = open_nwp(tmp_path / name)
        assert np.array_equal(back["t850"], ds["t850"]) and back["slp"].dtype == np.float32
        assert lambert_from_cf(back) == OWN_GRID
        assert is_our_form(tmp_path / name, VARIABLE_NAMES)


def test_what_is_our_form(tmp_path):
    make_nwp(1).drop_vars("crs").to_netcdf(tmp_path / "lead_times.nc")
    make_nwp(1)[["t2m", "u10"]].to_netcdf(tmp_path / "two.nc")
    t2m_file().to_netcdf(tmp_path / "other.nc")
    (tmp_path / "a.grib").write_bytes(message(since=0))
    assert is_our_form(open_file(tmp_path / "lead_times.nc"), VARIABLE_NAMES)
    assert is_our_form(tmp_path / "two.nc", ("t2m",))
    for name in ("two.nc", "other.nc", "a.grib", "none.nc", "."):
        assert not is_our_form(tmp_path / name, VARIABLE_NAMES), name


def test_a_folder_with_one_file_of_our_form(tmp_path):
    make_nwp().to_netcdf(tmp_path / "nwp.nc")
    assert open_nwp(tmp_path).equals(open_nwp([tmp_path / "nwp.nc"]))


def test_absent_files(tmp_path):
    for name in ("none.nc", "none.zarr"):
        with raises(DataError, "none", "nothing there"):
            open_nwp(tmp_path / name)
    (tmp_path / "folder.nc").mkdir()
    with raises(DataError, "folder.nc"):
        open_nwp(tmp_path / "folder.nc")


def _with(name, change):
    return lambda d: d.assign({name: change(d[name])})


def _units(name, text):
    return _with(name, lambda a: a.assign_attrs(units=text))


def _values(name, change):
    return _with(name, lambda a: change(a).assign_attrs(a.attrs))


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (lambda d: d.drop_vars(["t2m", "u10"]), DataError, ("all but", "t2m", "u10")),
        (_units("slp", "atm"), DataError, ("slp", "units", "'atm'")),
        (_with("slp", lambda a: a.drop_attrs()), DataError, ("slp", "no units")),
        (_units("rain", "mm"), DataError, ("rain", "'mm'")),
        (_units("rain", "mm/day"), DataError, ("rain", "mm/day")),
        (_values("t500", lambda a: a - 200), DataError, ("t500", "130")),
        (_values("gh500", lambda a: a * 9.8), DataError, ("gh500", "4000")),
        (_values("rain", lambda a: a - 9999), DataError, ("rain", "0 and 1000")),
        (_values("v850", lambda a: a * np.nan), DataError, ("v850", "missing")),
        (
            _values("v850", lambda a: a.where(a != a[0, 0, 0, 0], np.inf)),
            DataError,
            ("v850", "inf"),
        ),
        (_values("u10", lambda a: a.isel(lead_time=0)), DataError, ("u10", "dimensions")),
        (_values("u10", lambda a: a.astype(str)), DataError, ("u10", "numbers")),
        (lambda d: d.isel(time=[1, 0, 2]), DataError, ("time", "increase")),
        (lambda d: d.isel(time=[0, 0, 1]), DataError, ("time", "increase")),
        (lambda d: d.isel(time=[]), DataError, ("time", "increase")),
        (lambda d: d.assign_coords(time=[1, 2, 3]), DataError, ("time", "dates")),
        (
            lambda d: d.assign_coords(lead_time=[25.0, 27, 30]),
            DataError,
            ("lead_time", "durations"),
        ),
        (lambda d: d.drop_vars("lead_time"), DataError, ("lead_time",)),
        (lambda d: d.drop_vars("crs"), GridError, ("crs",)),
        (lambda d: d.assign_coords(x=d["x"] + 5e3), GridError, ("longitude",)),
        (lambda d: d.isel(x=[0, 2, 3]), GridError, ("regular",)),
    ],
)
def test_wrong_forecasts(change, kind, words):
    with raises(kind, "bad.nc", *words):
        check_nwp(change(make_nwp()), "bad.nc")


def test_order_of_dimensions_and_rows_does_not_matter():
    ds = make_nwp()
    other = ds.isel(y=slice(None, None, -1)).transpose("x", "lead_time", "y", "time")
    xr.testing.assert_allclose(check_nwp(other, "other"), check_nwp(ds, "ds"))


def test_longitudes_of_0_to_360_are_the_same():
    ds = make_nwp()
    check_nwp(ds.assign_coords(longitude=ds["longitude"] - 360), "west")


def test_small_negative_rain_is_counted():
    ds = make_nwp()
    ds["rain"][0, 0, 0, :3] = -0.004
    checked = check_nwp(ds.assign_attrs(note="before"), "a")
    assert float(checked["rain"].min()) == 0
    assert checked.attrs["note"] == "before; 3 slightly negative values of rain set to 0"


def damaged_copies(good, n):
    "Copies that are cut off, or with one to three bits flipped."
    rng = np.random.default_rng(0)
    for k in range(n):
        bad = bytearray(good)
        if k % 2 == 0:
            bad = bad[: rng.integers(len(bad))]
        else:
            end = len(bad) if k % 4 == 1 else min(len(bad), 20_000)
            for _ in range(rng.integers(1, 4)):
                bad[rng.integers(end)] ^= 1 << rng.integers(8)
        yield bytes(bad)


def test_damaged_files_raise_our_error_and_nothing_else(tmp_path):
    ds = make_nwp(2)
    packed = {n: dict(zlib=True) for n in VARIABLE_NAMES}
    ds.to_netcdf(tmp_path / "good.nc", encoding=packed)
    path, refused = tmp_path / "bad.nc", 0
    for bad in damaged_copies((tmp_path / "good.nc").read_bytes(), 80):
        path.write_bytes(bad)
        try:
            open_nwp(path)
        except SSLPDLError as error:
            refused += 1
            assert "bad.nc" in str(error)
    assert refused >= 40


def test_the_sample_cut_off(tmp_path):
    good = (ROOT / "data_samples/tiny/nwp.nc").read_bytes()
    for size in (1, 8, 100, len(good) // 3, len(good) - 1):
        (tmp_path / "cut.nc").write_bytes(good[:size])
        with raises(DataError, "cut.nc"):
            open_nwp(tmp_path / "cut.nc")


def test_a_large_forecast_is_checked_when_it_is_read(tmp_path, monkeypatch):
    small_memory = partial(nwp.read_dataset, memory=1)
    monkeypatch.setattr(nwp, "read_dataset", small_memory)
    ds = make_nwp()
    ds.to_zarr(tmp_path / "nwp.zarr")
    lazy = open_nwp(tmp_path / "nwp.zarr")
    assert lazy["t850"].chunks and np.array_equal(lazy["t850"], ds["t850"])
    cold = (ds["t850"] - 250).assign_attrs(units="K")
    ds.assign(t850=cold).to_zarr(tmp_path / "cold.zarr")
    with raises(DataError, "t850", "130"):
        open_nwp(tmp_path / "cold.zarr")["t850"].values
