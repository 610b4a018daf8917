"""Synthetic forecast files with the published names, levels, units and hours of each model.

Every value is known: a field is base + amplitude * wave(lon, lat), so that a point in the wrong
place shows. No model was run for them.
"""

from pathlib import Path

import numpy as np
import xarray as xr

from sslpdl_nb.io import derive
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.io.lexicon import SOURCES

LEVELS = {
    100: (16400.0, 210.0, 10.0, 25.0),
    500: (5700.0, 260.0, 55.0, 15.0),
    850: (1480.0, 283.0, 75.0, 8.0),
}  # hPa: gh m, t K, rh %, u m/s
KMA = LambertGrid(12, 9, 3000.0, -120e3, -60e3)  # 126 E, 38 N, parallels 30 and 60


def wave(lon, lat):
    return np.sin(np.radians(5 * lat)) * np.cos(np.radians(3 * lon))


def truth(lon, lat):
    "The sixteen variables in our units (and a few more at 100 hPa), winds towards east and north."
    w = wave(lon, lat)
    out = {}
    for p, (gh, t, rh, u) in LEVELS.items():
        out |= {
            f"gh{p}": gh + 50 * w,
            f"t{p}": t + 2 * w,
            f"rh{p}": rh + 5 * w,
            f"u{p}": u + 3 * w,
            f"v{p}": 0.5 * u - 2 * w,
        }
    return out | dict(slp=101300 + 300 * w, t2m=290 + 3 * w, u10=4 + w, v10=-2 + w, rain=2 + w)


def message(ec, sample, keys, values):
    "One GRIB message; values from the first row that the file writes."
    m = ec.codes_grib_new_from_samples(sample)
    for key, value in keys.items():
        ec.codes_set(m, key, value)
    ec.codes_set(m, "bitsPerValue", 24)
    ec.codes_set_values(m, np.asarray(values, float).ravel())
    content = ec.codes_get_message(m)
    ec.codes_release(m)
    return content


PARAMETERS = dict(
    gh=(3, 5),
    z=(3, 4),
    t=(0, 0),
    r=(1, 1),
    q=(1, 0),
    dpt=(0, 6),
    u=(2, 2),
    v=(2, 3),
    prmsl=(3, 1),
    pres=(3, 0),
    mslma=(3, 198),
    tp=(1, 8),
    prate=(1, 7),
    ncpcp=(1, 9),
    acpcp=(1, 10),
    tot_prec=(1, 52),
    hsurf=(3, 6),
)  # WMO's tables: category, number; 198 is NCEP's own
SURFACES = dict(p=100, ground=103, sea=101, surface=1)


def grib2(
    ec,
    centre,
    grid,
    name,
    values,
    where=("surface", 0),
    hour=6,
    since=None,
    mean=False,
    start="2024070100",
    keys=None,
):
    "One GRIB 2 message of a quantity by its numbers: instantaneous, or from hour `since`."
    category, number = PARAMETERS[name]
    surface, level = where
    factor = 1 if level % 1 else 0
    level = round(10**factor * level)
    about = dict(
        centre=centre,
        significanceOfReferenceTime=1,
        dataDate=int(start[:8]),
        dataTime=100 * int(start[8:]),
        productDefinitionTemplateNumber=0 if since is None else 8,
        discipline=0,
        parameterCategory=category,
        parameterNumber=number,
        typeOfFirstFixedSurface=SURFACES[surface],
        scaleFactorOfFirstFixedSurface=factor,
        scaledValueOfFirstFixedSurface=level,
    )
    if since is not None:
        about |= dict(typeOfStatisticalProcessing=0 if mean else 1)
    about |= grid | dict(stepRange=str(hour) if since is None else f"{since}-{hour}")
    return message(ec, "GRIB2", about | (keys or {}), values)


def world(step=10.0, south=-90.0, north=90.0, west=0.0, east=350.0):
    "Keys of a map in degrees, from north to south; its longitudes and latitudes as written."
    lon = np.arange(west, east + step / 2, step)
    lat = np.arange(north, south - step / 2, -step)
    keys = dict(
        gridType="regular_ll",
        Ni=lon.size,
        Nj=lat.size,
        latitudeOfFirstGridPointInDegrees=north,
        latitudeOfLastGridPointInDegrees=float(lat[-1]),
        longitudeOfFirstGridPointInDegrees=west,
        longitudeOfLastGridPointInDegrees=float(lon[-1]),
        iDirectionIncrementInDegrees=step,
        jDirectionIncrementInDegrees=step,
        jScansPositively=0,
    )
    return keys, *np.meshgrid(lon, lat)


def reduced_gaussian(n):
    """Longitudes and latitudes of an octahedral reduced Gaussian grid of 2 n rows.

    Row k from either pole has 16 + 4 k points; latitudes are the zeros of a Legendre polynomial.
    """
    rows = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(2 * n)[0]))[::-1]
    lon, lat = [], []
    for k, row in enumerate(rows):
        points = 20 + 4 * min(k, 2 * n - 1 - k)
        lon.append(np.arange(points) * 360 / points)
        lat.append(np.full(points, row))
    return np.concatenate(lon), np.concatenate(lat)


def with_octets(content, at, octets):
    "A message in which some octets are others."
    return content[:at] + octets + content[at + len(octets) :]


def several(ec, grid, values, path):
    "One GRIB 2 message with a field for each array of values, as RAP and NAM write it."
    m = ec.codes_grib_multi_new()
    for k, v in enumerate(values):
        keys = dict(bitmapPresent=1)
        one = ec.codes_new_from_message(
            grib2(ec, "kwbc", grid, "uv"[k % 2], v, ("ground", 10), keys=keys)
        )
        ec.codes_grib_multi_append(one, 4, m)
        ec.codes_release(one)
    with open(path, "wb") as file:
        ec.codes_grib_multi_write(m, file)
    ec.codes_grib_multi_release(m)
    return path.read_bytes()


def constant_in_groups(ec, value, groups=0, missing=0, order=2):
    "A field that is the same everywhere, as NCEP packs it: without bits, perhaps without groups."
    keys = dict(packingType="grid_complex_spatial_differencing", orderOfSpatialDifferencing=order)
    values = np.full(180, value)
    m = grib2(ec, "kwbc", world(20.0)[0], "tp", values, hour=6, since=0, keys=keys)
    at, sections = 16, {}
    while at < len(m) - 4:
        length = int.from_bytes(m[at : at + 4], "big")
        sections[m[at + 4]] = m[at : at + length]
        at += length
    packing = bytearray(sections[5])
    packing[19], packing[22] = 0, missing  # bits of a value; kinds of missing values
    packing[31:47] = groups.to_bytes(4, "big") + bytes(7) + values.size.to_bytes(4, "big") + b"\0"
    packing[47], packing[48] = order, 0  # octets of the first values
    sections |= {5: bytes(packing), 7: b"\0\0\0\5\7"}
    body = b"".join(sections[k] for k in sorted(sections)) + b"7777"
    return m[:8] + (16 + len(body)).to_bytes(8, "big") + body


def lambert(grid=KMA, along=1):
    "Keys of a Lambert map, from south to north; its longitudes and latitudes."
    lon, lat = grid.lonlat()
    keys = dict(
        gridType="lambert",
        shapeOfTheEarth=6,
        Nx=grid.nx,
        Ny=grid.ny,
        latitudeOfFirstGridPointInDegrees=float(lat[0, 0]),
        longitudeOfFirstGridPointInDegrees=float(lon[0, 0]) % 360,
        LaDInDegrees=grid.parallels[1],
        LoVInDegrees=grid.lon0 % 360,
        DxInMetres=grid.dx,
        DyInMetres=grid.dx,
        Latin1InDegrees=grid.parallels[0],
        Latin2InDegrees=grid.parallels[1],
        jScansPositively=1,
        uvRelativeToGrid=along,
    )
    return keys, lon, lat


def along_grid(u, v, lon, grid=KMA):
    "East and north winds as components along a Lambert grid: rotated by cone * (lon - lon0)."
    a, b = np.radians(grid.parallels)
    cone = np.log(np.cos(a) / np.cos(b)) / np.log(
        np.tan(np.pi / 4 + b / 2) / np.tan(np.pi / 4 + a / 2)
    )
    turn = cone * np.radians(lon - grid.lon0)
    return u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)


def specific(t, rh, p):
    "Specific humidity, kg/kg, from relative humidity."
    e = rh / 100 * derive.saturation_pressure(t)
    return 0.622 * e / (p - 0.378 * e)


def dew_point(t, rh):
    "The temperature at which the air would be saturated, by Newton steps."
    e = rh / 100 * derive.saturation_pressure(t)
    td = np.array(t)
    for _ in range(40):
        td = td - (derive.saturation_pressure(td) - e) / (
            derive.saturation_pressure(td + 0.5) - derive.saturation_pressure(td - 0.5)
        )
    return td


# ------------------------------------------------------------------ the files


def gfs(folder, ec):
    "pgrb2: the whole world from north to south; rain since 0 and since 6, both tp; two prate."
    grid, lon, lat = world()
    q = truth(lon, lat)
    out = []
    for hour in (7, 8):

        def add(name, values, where, **k):
            return out.append(grib2(ec, "kwbc", grid, name, values, where, hour, **k))

        for p in LEVELS:
            for ours, name in (("gh", "gh"), ("t", "t"), ("rh", "r"), ("u", "u"), ("v", "v")):
                add(name, q[f"{ours}{p}"], ("p", p * 100))
            add(
                "q", specific(q[f"t{p}"], 1.0, p * 100), ("p", p * 100)
            )  # never asked for: the file has r
        add("prmsl", q["slp"], ("sea", 0))
        add("t", q["t2m"], ("ground", 2))
        add("u", q["u10"], ("ground", 10))
        add("v", q["v10"], ("ground", 10))
        add("r", 0 * lat + 60, ("ground", 2))
        add("tp", q["rain"] * (hour - 6), ("surface", 0), since=6)
        add("tp", q["rain"] * (hour - 6) + 30, ("surface", 0), since=0)
        add("prate", 9 + 0 * lat, ("surface", 0))
        add("prate", q["rain"] / 3600, ("surface", 0), since=6, mean=True)
    (folder / "gfs.t00z.pgrb2.0p25.f007").write_bytes(b"".join(out[: len(out) // 2]))
    (folder / "gfs.t00z.pgrb2.0p25.f008").write_bytes(b"".join(out[len(out) // 2 :]))
    return dict(leads=[7, 8])


def rdaps_kim(folder, ec):
    """Korea's Lambert map: a file of pressure levels and one of the surface for each hour.

    Rain since the start has no name, and the pressure at sea level is a plain pressure.
    """
    grid, lon, lat = lambert()
    q = truth(lon, lat)
    for hour in (5, 6):

        def add(name, values, where, **k):
            return grib2(ec, "rksl", grid, name, values, where, hour, **k)

        def wind(level, where):
            return [
                add(n, v, where)
                for n, v in zip("uv", along_grid(q[f"u{level}"], q[f"v{level}"], lon))
            ]

        high = [
            m
            for p in LEVELS
            for m in (
                add("gh", q[f"gh{p}"], ("p", p * 100)),
                add("t", q[f"t{p}"], ("p", p * 100)),
                add("r", q[f"rh{p}"], ("p", p * 100)),
                *wind(p, ("p", p * 100)),
            )
        ]
        low = [
            add("pres", q["slp"], ("sea", 0)),
            add("t", q["t2m"], ("ground", 1.5 if hour == 5 else 2)),
            *wind(10, ("ground", 10)),
            add("tp", q["rain"] * hour, ("surface", 0), since=0),
        ]
        (folder / f"r030_v040_ne36_pres_h{hour:03}.2024070100.gb2").write_bytes(b"".join(high))
        (folder / f"r030_v040_ne36_unis_h{hour:03}.2024070100.gb2").write_bytes(b"".join(low))
    return dict(leads=[5, 6])


def hrrr(folder, ec):
    """Lambert, winds along the grid, dew points instead of humidity, NCEP's own sea-level pressure.

    Rain since the start and of the last hour.
    """
    grid, lon, lat = lambert()
    q = truth(lon, lat)
    out = []

    def add(name, values, where, **k):
        return out.append(grib2(ec, "kwbc", grid, name, values, where, 12, **k))

    for level, where in [*((p, ("p", p * 100)) for p in LEVELS), (10, ("ground", 10))]:
        for n, v in zip("uv", along_grid(q[f"u{level}"], q[f"v{level}"], lon)):
            add(n, v, where)
    for p in LEVELS:
        add("gh", q[f"gh{p}"], ("p", p * 100))
        add("t", q[f"t{p}"], ("p", p * 100))
        add("dpt", dew_point(q[f"t{p}"], q[f"rh{p}"]), ("p", p * 100))
    add("mslma", q["slp"], ("sea", 0))
    add("t", q["t2m"], ("ground", 2))
    add("tp", q["rain"] * 12 + 5, ("surface", 0), since=0)
    add("tp", q["rain"], ("surface", 0), since=11)
    (folder / "hrrr.t00z.wrfprsf12.grib2").write_bytes(b"".join(out))
    return dict(leads=[12])


def arpege(folder, ec):
    "A window in degrees across Greenwich, geopotential, rain since the start in every hour."
    grid, lon, lat = world(0.5, 46.0, 52.0, 355.0, 362.0)
    grid["longitudeOfLastGridPointInDegrees"] = 2.0
    q = truth(lon, lat)
    out = []
    for hour in (1, 2, 3):

        def add(name, values, where, **k):
            return out.append(grib2(ec, "lfpw", grid, name, values, where, hour, **k))

        for p in LEVELS:
            add("z", q[f"gh{p}"] * 9.80665, ("p", p * 100))
            for ours, name in (("t", "t"), ("rh", "r"), ("u", "u"), ("v", "v")):
                add(name, q[f"{ours}{p}"], ("p", p * 100))
        add("prmsl", q["slp"], ("sea", 0))
        add("t", q["t2m"], ("ground", 2))
        add("u", q["u10"], ("ground", 10))
        add("v", q["v10"], ("ground", 10))
        out.append(grib2(ec, "kwbc", grid, "tp", q["rain"] * hour, ("surface", 0), hour, since=0))
    (folder / "arpege.grib").write_bytes(b"".join(out))
    return dict(leads=[1, 2, 3])


def era5(folder, ec):
    """GRIB 1 with ECMWF's local section: analyses at 00 and 01 UTC.

    Rain of each hour, in metres, is from the forecast of 18 UTC the day before.
    """
    grid, lon, lat = world(0.25, 33.0, 39.0, 124.0, 131.0)
    q = truth(lon, lat)
    high, low = [], []
    base = dict(setLocalDefinition=1, localDefinitionNumber=1)
    base |= grid | {"class": "ea", "stream": "oper", "expver": "0001"}
    for hour in (0, 1):
        an = base | dict(type="an", dataDate=20240701, dataTime=100 * hour)
        for p in LEVELS:
            for pid, v in (
                (129, q[f"gh{p}"] * 9.80665),
                (130, q[f"t{p}"]),
                (131, q[f"u{p}"]),
                (132, q[f"v{p}"]),
                (133, specific(q[f"t{p}"], q[f"rh{p}"], 100 * p)),
            ):
                high.append(message(ec, "regular_ll_pl_grib1", an | dict(paramId=pid, level=p), v))
        for pid, v in (
            (151, q["slp"]),
            (167, q["t2m"]),
            (165, q["u10"]),
            (166, q["v10"]),
            (129, 100 * 9.80665 + 0 * lat),
            (134, 100000 + 0 * lat),
        ):
            low.append(message(ec, "regular_ll_sfc_grib1", an | dict(paramId=pid), v))
        hours = (
            dict(timeRangeIndicator=4, P1=5 + hour, P2=6 + hour)
            if hour
            else dict(timeRangeIndicator=0, P1=6, P2=0)
        )  # both ways of writing it
        low.append(
            message(
                ec,
                "regular_ll_sfc_grib1",
                base | dict(type="fc", dataDate=20240630, dataTime=1800, paramId=228) | hours,
                q["rain"] / 1000,
            )
        )
    (folder / "pressure-levels.grib").write_bytes(b"".join(high))
    (folder / "single-levels.grib").write_bytes(b"".join(low))
    return dict(leads=[0], times=["2024-07-01T00", "2024-07-01T01"])


def wrfout(folder, ec):
    "Raw WRF at hours 1 and 2: 30 levels up to 50 hPa, winds on the faces of cells, two rains."
    lon, lat = KMA.lonlat()
    edges = np.geomspace(101000, 5000, 31)[:, None, None] * np.ones((31, *KMA.shape))
    p = np.sqrt(edges[:-1] * edges[1:])
    z = np.log(1e5 / p)  # temperature and height are linear in it: exact between levels
    t, rh = 288 - 30 * z, 60.0 + 0 * z
    q = specific(t, rh, p)
    n = np.array([0.0, 1.0])[:, None, None, None]
    heights = 7000 * np.log(1e5 / edges) + 100
    d = ("Time", "bottom_top", "south_north", "west_east")

    def two(a):
        return np.stack([a, a])

    def flat(v):
        return (("Time", "south_north", "west_east"), two(v + 0 * lat))

    ds = xr.Dataset(
        dict(
            Times=("Time", np.array([b"2024-07-01_01:00:00", b"2024-07-01_02:00:00"])),
            XLAT=flat(lat),
            XLONG=flat(lon),
            P=(d, two(p - 9e4)),
            PB=(d, two(0 * p + 9e4)),
            T=(d, two(t * (1e5 / p) ** (2 / 7) - 300)),
            QVAPOR=(d, two(q / (1 - q))),
            PH=((d[0], "bottom_top_stag", *d[2:]), two(0.1 * heights * 9.80665)),
            PHB=((d[0], "bottom_top_stag", *d[2:]), two(0.9 * heights * 9.80665)),
            U=((*d[:3], "west_east_stag"), two(np.concatenate([8 + 0 * z, 8 + 0 * z[..., :1]], 2))),
            V=(
                (*d[:2], "south_north_stag", "west_east"),
                two(np.concatenate([-3 + 0 * z, -3 + 0 * z[:, :1]], 1)),
            ),
            T2=flat(290.0),
            U10=flat(4.0),
            V10=flat(-2.0),
            PSFC=flat(100500.0),
            HGT=flat(50.0),
            RAINC=(("Time", *d[2:]), (n[:, 0] + 1) * (0.5 + 0 * lat)),
            RAINNC=(("Time", *d[2:]), (n[:, 0] + 1) * (1.5 + 0 * lat)),
        ),
        attrs=dict(
            SIMULATION_START_DATE="2024-07-01_00:00:00",
            MAP_PROJ=1,
            TRUELAT1=30.0,
            TRUELAT2=60.0,
            STAND_LON=126.0,
            MOAD_CEN_LAT=38.0,
        ),
    )
    for name, unit in dict(
        T2="K", U10="m s-1", V10="m s-1", PSFC="Pa", HGT="m", RAINNC="mm", RAINC="mm"
    ).items():
        ds[name].attrs["units"] = unit
    ds.to_netcdf(folder / "wrfout_d01_2024-07-01_01:00:00")
    return dict(leads=[1, 2])


def upwards(step, south, north, west, east):
    "Keys of a map in degrees, from south to north as DWD writes it; its longitudes and latitudes."
    keys, lon, lat = world(step, south, north, west, east)
    first, last = "latitudeOfFirstGridPointInDegrees", "latitudeOfLastGridPointInDegrees"
    keys |= {first: south, last: north, "jScansPositively": 1}
    return keys, lon[::-1], lat[::-1]


def icon(folder, ec, model, area, levels, hours=(1, 2)):
    """One file for each variable, level and hour, named as on DWD's server; rain since the start.

    The height of the ground has a file of its own, in hour 0, on a surface with no type of level.
    """
    grid, lon, lat = area
    q = truth(lon, lat)

    def write(kind, hour, name, number, values, where, **more):
        content = grib2(ec, "edzw", grid, number, values, where, hour, **more)
        (folder / f"{model}_regular-lat-lon_{kind}_2024070100_{name}.grib2").write_bytes(content)

    for hour in hours:
        for p in levels:
            where = ("p", 100 * p)
            for name, number, ours in (("t", "t", "t"), ("relhum", "r", "rh"), ("u", "u", "u")):
                file = f"{hour:03}_{p}_{name}"
                write("pressure-level", hour, file, number, q[f"{ours}{p}"], where)
            write("pressure-level", hour, f"{hour:03}_{p}_v", "v", q[f"v{p}"], where)
            heights = q[f"gh{p}"] * 9.80665
            write("pressure-level", hour, f"{hour:03}_{p}_fi", "z", heights, where)
        for name, number, ours, where in (
            ("pmsl", "prmsl", "slp", ("sea", 0)),
            ("t_2m", "t", "t2m", ("ground", 2)),
            ("u_10m", "u", "u10", ("ground", 10)),
            ("v_10m", "v", "v10", ("ground", 10)),
        ):
            write("single-level", hour, f"{hour:03}_2d_{name}", number, q[ours], where)
        rain, file = q["rain"] * hour, f"{hour:03}_2d_tot_prec"
        write("single-level", hour, file, "tot_prec", rain, ("surface", 0), since=0)
    ground = dict(typeOfSecondFixedSurface=101)
    more = dict(keys=ground)
    write("time-invariant", 0, "000_0_hsurf", "hsurf", 50 + 0 * lat, ("surface", 0), **more)
    return dict(leads=list(hours))


def icon_eu(folder, ec):
    "ICON-EU, with the levels that we need."
    return icon(folder, ec, "icon-eu_europe", upwards(0.0625, 45.0, 46.0, 5.0, 6.5), LEVELS)


def icon_d2(folder, ec):
    "ICON-D2: no level of 100 hPa."
    return icon(folder, ec, "icon-d2_germany", upwards(0.02, 47.0, 47.4, 8.0, 8.6), (500, 850))


BUILT = {"gfs": gfs, "rdaps-kim": rdaps_kim, "hrrr": hrrr, "arpege": arpege, "era5": era5}
BUILT |= {"icon-eu": icon_eu}


KOMET_UNITS = dict(hgt="m", T="K", rh_liq="%", u="m/s", v="m/s", psl="Pa", t2m="K")
KOMET_UNITS |= dict(u10m="m/s", v10m="m/s", rainc_acc="kg/m2", rainl_acc="kg/m2")


def komet(folder, lead, rain):
    "Two files of a lead time as the KoMet reader writes them: levels by number, time in the path."
    path = Path(folder) / "202007/01/00"
    path.mkdir(parents=True, exist_ok=True)
    where = dict(
        lats=("lats", np.linspace(30, 45, 6), {"units": "degrees_north"}),
        lons=("lons", np.linspace(120, 135, 7), {"units": "degrees_east"}),
    )
    high, low = {}, {}
    for name, value in dict(hgt=0.0, T=260.0, rh_liq=50.0, u=3.0, v=4.0).items():
        high[name] = (("time", "levs", "lats", "lons"), np.full((1, 22, 6, 7), value))
    pressures = np.array(SOURCES["komet-gdaps"].levels) * 100.0
    high["hgt"][1][:] = derive.standard_height(pressures)[None, :, None, None]
    surface = dict(psl=101000.0, t2m=290.0, u10m=1.0, v10m=1.0)
    for name, value in (surface | dict(rainc_acc=rain, rainl_acc=rain / 2)).items():
        low[name] = (("time", "lats", "lons"), np.full((1, 6, 7), value))
    for data, kind in ((high, "dfp"), (low, "dfs")):
        ds = xr.Dataset({n: (*v, {"units": KOMET_UNITS[n]}) for n, v in data.items()}, where)
        ds.to_netcdf(path / f"{kind}_ft{lead:03}.nc")
    return sorted(path.glob("*.nc"))


def komet_gdaps(folder, ec):
    "Two lead times of GDAPS as the KoMet reader writes them."
    for lead, rain in ((6, 2.0), (7, 4.0)):
        komet(folder, lead, rain)
    return dict(leads=[6, 7], times=["2020-07-01T00"])


# ------------------------------------------------------------------ small NetCDF files


def degrees(lat=(36.0, 36.5, 37.0), lon=(126.0, 127.0, 128.0)):
    "Coordinates lat and lon."
    return dict(
        lat=("lat", list(lat), {"units": "degrees_north"}),
        lon=("lon", list(lon), {"units": "degrees_east"}),
    )


def one_variable(name, dims, value, units, **coords):
    "A dataset of one variable that is the same everywhere."
    shape = [len(coords[d][1] if isinstance(coords[d], tuple) else coords[d]) for d in dims]
    return xr.Dataset({name: (dims, np.full(shape, float(value)), {"units": units})}, coords)
