"""Set the headers of GRIB messages to extremes, and compare what is read with ecCodes.

Every variant of a message is read by us and by ecCodes, which has its own formulas for places. What
time, level and grid a header means is moreover worked out here from its octets, because ecCodes
takes some missing values for numbers. A variant must be read as both say, or refused.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
from fuzz import lines_of

HERE = Path(__file__).resolve().parent
NEAR = 2e-6  # radians, 13 m: GRIB 1 writes places to 0.001 degrees
CPU_LIMIT = 5.0  # seconds

# ------------------------------------------------------------------ messages to begin with

POLAR = dict(
    gridType="polar_stereographic",
    Nx=6,
    Ny=5,
    latitudeOfFirstGridPointInDegrees=40,
    longitudeOfFirstGridPointInDegrees=250,
    orientationOfTheGridInDegrees=255,
    DxInMetres=60000,
    DyInMetres=60000,
    jScansPositively=1,
)
MERCATOR = dict(
    gridType="mercator",
    Ni=6,
    Nj=5,
    latitudeOfFirstGridPointInDegrees=10,
    longitudeOfFirstGridPointInDegrees=100,
    latitudeOfLastGridPointInDegrees=14,
    longitudeOfLastGridPointInDegrees=105,
    LaDInDegrees=20,
    DiInMetres=100000,
    DjInMetres=100000,
    jScansPositively=1,
)
CONE = dict(
    gridType="lambert",
    Nx=6,
    Ny=5,
    latitudeOfFirstGridPointInDegrees=30,
    longitudeOfFirstGridPointInDegrees=120,
    LoVInDegrees=126,
    DxInMetres=90000,
    DyInMetres=90000,
    Latin1InDegrees=30,
    Latin2InDegrees=60,
    jScansPositively=1,
)
ROTATED = dict(
    gridType="rotated_ll",
    Ni=6,
    Nj=5,
    latitudeOfFirstGridPointInDegrees=-1,
    latitudeOfLastGridPointInDegrees=3,
    longitudeOfFirstGridPointInDegrees=357,
    longitudeOfLastGridPointInDegrees=2,
    iDirectionIncrementInDegrees=1,
    jDirectionIncrementInDegrees=1,
    jScansPositively=1,
    latitudeOfSouthernPoleInDegrees=-40,
    longitudeOfSouthernPoleInDegrees=10,
)
REAL = dict(
    stage2="wrf-stage2-2005/stage2/ST2ml2005080712.Grb_G212",
    wrf2005="wrf-stage2-2005/wrf/wrfprs_ruc13_12.tm00_G212",
    hrrr="hrrr/subset_20201214_hrrr.t00z.wrfsfcf12.grib2",
    arome="meteonet-nw/arome_PRECIP_NW_20180501000000.grib",
    arpege="meteonet-nw/arpege_2m_NW_20180501000000.grib",
)


def degrees(**keys):
    "Six columns and five rows in degrees."
    about = dict(
        gridType="regular_ll",
        Ni=6,
        Nj=5,
        latitudeOfFirstGridPointInDegrees=40,
        latitudeOfLastGridPointInDegrees=32,
        longitudeOfFirstGridPointInDegrees=120,
        longitudeOfLastGridPointInDegrees=130,
        iDirectionIncrementInDegrees=2,
        jDirectionIncrementInDegrees=2,
        jScansPositively=0,
    )
    return about | keys


def gaussian_latitudes(n):
    "The 2 n latitudes of a Gaussian grid from north to south: zeros of a Legendre polynomial."
    return np.degrees(np.arcsin(np.polynomial.legendre.leggauss(2 * n)[0]))[::-1]


def gaussian():
    "All of a small Gaussian grid: 32 columns, 16 rows."
    north = float(gaussian_latitudes(8)[0])
    return dict(
        gridType="regular_gg",
        Ni=32,
        Nj=16,
        N=8,
        latitudeOfFirstGridPointInDegrees=north,
        latitudeOfLastGridPointInDegrees=-north,
        longitudeOfFirstGridPointInDegrees=0,
        longitudeOfLastGridPointInDegrees=348.75,
        iDirectionIncrementInDegrees=11.25,
        jScansPositively=0,
    )


def made_up(ec) -> dict:
    "Synthetic messages by name."
    from synthetic import message

    first = dict(dataDate=20240701, dataTime=600)
    rain1 = dict(indicatorOfParameter=61, timeRangeIndicator=4, P1=3, P2=6)
    hpa1 = dict(indicatorOfParameter=11, indicatorOfTypeOfLevel=100, level=850, P1=6)
    near1 = dict(indicatorOfParameter=33, indicatorOfTypeOfLevel=105, level=10, P1=6)
    t = dict(parameterCategory=0, parameterNumber=0, forecastTime=6)
    hpa2 = t | dict(typeOfFirstFixedSurface=100)
    hpa2 |= dict(scaleFactorOfFirstFixedSurface=0, scaledValueOfFirstFixedSurface=85000)
    near2 = t | dict(typeOfFirstFixedSurface=103)
    near2 |= dict(scaleFactorOfFirstFixedSurface=0, scaledValueOfFirstFixedSurface=2)
    rain2 = dict(parameterCategory=1, parameterNumber=8)

    def amounts(template):
        "Rain of hours 3 to 6 in a product template."
        about = dict(productDefinitionTemplateNumber=template, typeOfStatisticalProcessing=1)
        return about | rain2 | dict(stepRange="3-6")

    north = degrees(jScansPositively=1)
    north["latitudeOfFirstGridPointInDegrees"], north["latitudeOfLastGridPointInDegrees"] = 32, 40
    ensemble = dict(productDefinitionTemplateNumber=1)
    south = POLAR | dict(LaDInDegrees=-60, projectionCentreFlag=128, shapeOfTheEarth=5)
    south["latitudeOfFirstGridPointInDegrees"] = -50
    columns = dict(jPointsAreConsecutive=1, iScansNegatively=1)
    from_east = degrees(iScansNegatively=1)
    from_east["longitudeOfFirstGridPointInDegrees"] = 130
    from_east["longitudeOfLastGridPointInDegrees"] = 120
    recipes = {
        "degrees1": ("GRIB1", degrees() | hpa1),
        "rain1": ("GRIB1", north | rain1),
        "rotated1": ("GRIB1", ROTATED | near1),
        "cone1": ("GRIB1", CONE | hpa1),
        "polar1": ("GRIB1", POLAR | rain1),
        "mercator1": ("GRIB1", MERCATOR | near1),
        "gaussian1": ("GRIB1", gaussian() | hpa1),
        "degrees2": ("GRIB2", degrees() | hpa2),
        "rain2": ("GRIB2", north | amounts(8)),
        "rain2member": ("GRIB2", degrees() | amounts(11)),
        "rain2mean": ("GRIB2", degrees() | amounts(12)),
        "member2": ("GRIB2", north | ensemble | near2),
        "rotated2": ("GRIB2", ROTATED | near2),
        "cone2": ("GRIB2", CONE | dict(LaDInDegrees=60) | hpa2),
        "cone2down": ("GRIB2", CONE | dict(LaDInDegrees=60, jScansPositively=0) | near2),
        "polar2south": ("GRIB2", south | near2),
        "polar2columns": ("GRIB2", POLAR | dict(LaDInDegrees=60) | columns | near2),
        "from_east2": ("GRIB2", from_east | hpa2),
        "alternating2": ("GRIB2", degrees(alternativeRowScanning=1) | near2),
        "polar2": ("GRIB2", POLAR | dict(LaDInDegrees=60) | amounts(8)),
        "mercator2": ("GRIB2", MERCATOR | near2),
        "gaussian2": ("GRIB2", gaussian() | hpa2),
    }
    out = {}
    for name, (sample, keys) in recipes.items():
        n = 512 if "gaussian" in name else 30
        about = first | keys
        if sample == "GRIB2":
            about = dict(significanceOfReferenceTime=1) | about
        out[name] = message(ec, sample, about, 1.0 + np.arange(n))
    return out


def real_ones(ec) -> dict:
    "The first messages of real files, cut to a few points; the rest of their headers is theirs."
    from sslpdl_nb.io.samples import find_real

    out = {}
    for name, path in REAL.items():
        path = find_real(path)
        if path is None:
            continue
        with open(path, "rb") as file:
            m = ec.codes_grib_new_from_file(file)
        columns, rows = ("Nx", "Ny") if ec.codes_get(m, "gridType") == "lambert" else ("Ni", "Nj")
        if columns == "Ni":  # the corner of a smaller map
            lat, lon = (
                [ec.codes_get(m, f"{k}Of{e}GridPointInDegrees") for e in ("First", "Last")]
                for k in ("latitude", "longitude")
            )
            steps = (ec.codes_get(m, rows) - 1, ec.codes_get(m, columns) - 1)
            for k, (first, last), step, n in (
                ("latitude", lat, steps[0], 5),
                ("longitude", lon, steps[1], 6),
            ):
                end = first + (last - first) / step * (n - 1)
                ec.codes_set(m, f"{k}OfLastGridPointInDegrees", end)
        ec.codes_set(m, columns, 6)
        ec.codes_set(m, rows, 5)
        ec.codes_set(m, "bitmapPresent", 0)
        ec.codes_set(m, "bitsPerValue", 24)
        ec.codes_set_values(m, 1.0 + np.arange(30))
        out[name] = ec.codes_get_message(m)
        ec.codes_release(m)
    return out


# ------------------------------------------------------------------ variants


def integer(m, at, n):
    return int.from_bytes(m[at : at + n], "big")


def signed(m, at, n):
    "Sign and magnitude."
    value = integer(m, at, n)
    half = 1 << (8 * n - 1)
    return half - value if value & half else value


def sections(m) -> dict:
    "Number of a section -> where it begins."
    if m[7] == 1:
        return {1: 8, 2: 8 + integer(m, 8, 3)}
    out, at = {}, 16
    while at < len(m) - 4:
        out.setdefault(m[at + 4], at)
        at += integer(m, at, 4)
    return out


def places(m) -> list:
    "(section, octet number, index) of every octet of product and grid that may be changed."
    out, starts = [], sections(m)
    numbers, head, width = ((1, 2), 3, 3) if m[7] == 1 else ((1, 3, 4), 5, 4)
    for number in numbers:
        at = starts[number]
        for k in range(head, integer(m, at, width)):
            out.append((number, k + 1, at + k))
    return out


EXTREMES = (0x00, 0xFF, 0x7F, 0x80, 0x01, 0xFE)


def all_spans(m) -> list:
    "One to four octets: all zeros, all ones (missing), largest, smallest."
    found = places(m)
    out = [((number, k, at, bytes([v])),) for number, k, at in found for v in EXTREMES]
    for size in (2, 3, 4):
        for number, k, at in found:
            if (number, k + size - 1, at + size - 1) in found:
                for head in (b"\xff", b"\x7f", b"\x80", b"\x00"):
                    rest = b"\xff" if head in (b"\xff", b"\x7f") else b"\x00"
                    out.append(((number, k, at, head + rest * (size - 1)),))
    return out


def keys_of(ec, m) -> list:
    "Keys of a message that can be set; those of the values excepted."
    h, out = ec.codes_new_from_message(m), []
    iterator = ec.codes_keys_iterator_new(h)
    ec.codes_skip_read_only(iterator)
    ec.codes_skip_duplicates(iterator)
    while ec.codes_keys_iterator_next(iterator):
        out.append(ec.codes_keys_iterator_get_name(iterator))
    ec.codes_keys_iterator_delete(iterator)
    ec.codes_release(h)
    dull = "alues 7777 GRIB md5 ection acking bits ecision".split()
    return sorted(k for k in out if not any(word in k for word in dull))


KEY_VALUES = ("missing", 0, 1, -1, 2, 255, 65535, 2**31 - 1, -(2**31) + 1, 90000000, -91, 361, 0.5)


def all_keys(ec, m) -> list:
    return [((key, value),) for key in keys_of(ec, m) for value in KEY_VALUES]


def small_change(m, rng):
    "An octet or two that are changed at random, often by little: most variants stay readable."
    found, out = places(m), []
    for _ in range(rng.integers(1, 4)):
        number, k, at = found[rng.integers(len(found))]
        kind = rng.integers(4)
        old = m[at]
        if kind == 0:
            value = int(rng.integers(256))
        elif kind == 1:
            value = old ^ (1 << int(rng.integers(8)))
        elif kind == 2:
            value = (old + (1 if rng.random() < 0.5 else -1)) % 256
        else:
            value = EXTREMES[rng.integers(len(EXTREMES))]
        out.append((number, k, at, bytes([value])))
    return tuple(out)


def variants(ec, n, seed) -> list:
    "n variants: (name of the message, changes). First the systematic ones in random order."
    good = made_up(ec) | real_ones(ec)
    rng = np.random.default_rng(seed)
    systematic = []
    for name, m in good.items():
        systematic += [(name, change) for change in all_spans(m) + all_keys(ec, m)]
    order = rng.permutation(len(systematic))
    out = [systematic[k] for k in order[: n * 3 // 4]]
    keys = {name: all_keys(ec, m) for name, m in good.items()}
    spans = {name: all_spans(m) for name, m in good.items()}
    names = list(good)
    while len(out) < n:
        name = names[rng.integers(len(names))]
        kind, some = rng.integers(3), keys[name]
        if kind == 0:
            out.append((name, small_change(good[name], rng)))
        elif kind == 1:
            pair = some[rng.integers(len(some))] + some[rng.integers(len(some))]
            out.append((name, pair))
        else:
            some = spans[name]
            out.append((name, some[rng.integers(len(some))] + some[rng.integers(len(some))]))
    return [(name, change) for name, change in out], good


def changed(ec, m, changes):
    "The octets of a variant; None if ecCodes does not set a key so."
    if len(changes[0]) == 4:
        m = bytearray(m)
        for _, _, at, octets in changes:
            m[at : at + len(octets)] = octets
        return bytes(m)
    h = ec.codes_new_from_message(m)
    try:
        for key, value in changes:
            if value == "missing":
                ec.codes_set_missing(h, key)
            else:
                ec.codes_set(h, key, value)
        return ec.codes_get_message(h)
    except Exception:
        return None
    finally:
        ec.codes_release(h)


def in_words(name, changes) -> str:
    if len(changes[0]) == 4:
        told = [f"section {s} octet {k} = {octets.hex()}" for s, k, _, octets in changes]
    else:
        told = [f"{key} = {value}" for key, value in changes]
    return f"{name}: {', '.join(told)}"


# ------------------------------------------------------------------ what is read


def by_us(path):
    "A field as a dict, or why there is none."
    from sslpdl_nb.core import SSLPDLError
    from sslpdl_nb.io import grib

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = grib.grib_fields(path)
        if not found:
            told = [str(w.message) for w in caught if "left out" in str(w.message)]
            return "left out: " + (told[0].split("left out")[-1] if told else "silently")
        f = found[0]
        lon, lat = f.grid.lonlat()
        values = f.read()
    except SSLPDLError as error:
        return f"refused: {str(error).split(path.name)[-1]}"
    finally:
        getattr(grib, "_LISTINGS", {}).clear()
    return dict(
        note=" ".join(str(w.message) for w in caught),
        name=f.name,
        units=f.units,
        level_type=f.level_type,
        level=f.level,
        reference=f.reference_time,
        start=f.start_step * 60,
        end=f.end_step * 60,
        along=f.grid_relative,
        lon=np.broadcast_to(lon, values.shape).ravel(),
        lat=np.broadcast_to(lat, values.shape).ravel(),
        values=values.ravel(),
    )


def by_eccodes(ec, m, ours=None):
    "The same from the keys and the iterator of ecCodes; a text if it cannot tell."
    h = None
    try:
        h = ec.codes_new_from_message(m)

        def get(key, kind=None):
            return ec.codes_get(h, key, kind) if kind else ec.codes_get(h, key)

        if get("numberOfDataPoints") > 100_000:
            return "refused: too many points"
        ec.codes_set(h, "stepUnits", "m")
        name, units = get("shortName"), get("units")
        if name == "unknown" and get("edition") == 2:
            keys = ("discipline", "parameterCategory", "parameterNumber")
            name = ".".join(str(get(key)) for key in keys)
            units = get("parameterUnits")
        out = dict(
            name=name,
            units=units,
            level_type=get("typeOfLevel"),
            level=get("level", float),
            date=get("validityDate"),
            time=get("validityTime"),
            start=get("startStep", int),
            end=get("endStep", int),
            instant=get("stepType") == "instant",
        )
        ec.codes_set(h, "missingValue", 1e20)
        values = ec.codes_get_values(h)
        out["values"] = np.where(values > 1e19, np.nan, values)
        out["lon"], out["lat"] = places_in_file(ec, m, get, ours)
        first = [get(f"{k}OfFirstGridPointInDegrees") for k in ("longitude", "latitude")]
        out["first"] = None if get("gridType") in IN_DEGREES else first
        return out
    except Exception as error:
        return f"refused: {type(error).__name__} {error}"
    finally:
        if h is not None:
            ec.codes_release(h)


# Where the scanning mode is: kind of grid -> octet of its section
SCANNING_1 = {0: 28, 1: 28, 3: 28, 4: 28, 5: 28, 10: 28}
SCANNING_2 = {0: 72, 1: 72, 10: 60, 20: 65, 30: 65, 31: 65, 40: 72}
IN_DEGREES = ("regular_ll", "rotated_ll", "regular_gg")


def places_in_file(ec, m, get, ours):
    """Longitude and latitude of each value in the order of the file.

    The iterator of ecCodes knows the formulas of the maps. It is only asked for maps in the usual
    order: it takes the first point of maps in metres for the south-western one whatever the
    scanning mode says, and knows no alternating rows in degrees. What the scanning mode means is
    written here once more (WMO Manual on Codes 306, flag tables 8 and 3.4).
    """
    kind, scan = get("gridType"), get("scanningMode")
    rows = get("Nj" if kind in (*IN_DEGREES, "mercator") else "Ny")
    columns = get("Ni" if kind in (*IN_DEGREES, "mercator") else "Nx")
    if kind == "regular_gg":
        lon, lat = gaussian_places(get, rows, columns)
    else:
        usual = usual_order(ec, m, kind, scan, ours)
        h = ec.codes_new_from_message(usual)
        try:
            if kind == "polar_stereographic" and get("earthIsOblate"):
                lon, lat = polar_places(lambda key: ec.codes_get(h, key), rows, columns)
            else:
                lon, lat = (
                    ec.codes_get_array(h, k).reshape(rows, columns)
                    for k in ("longitudes", "latitudes")
                )
        finally:
            ec.codes_release(h)
    if kind not in IN_DEGREES:  # from the south-western point on: as the file has them
        down, left = not scan & 64, bool(scan & 128)
        lon, lat = (v[:: -1 if down else 1, :: -1 if left else 1] for v in (lon, lat))
    order = np.arange(rows * columns).reshape(rows, columns)
    if scan & 32:
        order = order.T
    lines = [line[::-1] if scan & 16 and k % 2 else line for k, line in enumerate(order)]
    order = np.concatenate(lines)
    return lon.ravel()[order], lat.ravel()[order]


def usual_order(ec, m, kind, scan, ours) -> bytes:
    "The message with rows one after the other; maps in metres from their south-western point on."
    at = sections(m)[2 if m[7] == 1 else 3]
    number = m[at + 5] if m[7] == 1 else integer(m, at + 12, 2)
    octet = (SCANNING_1 if m[7] == 1 else SCANNING_2)[number]
    m = bytearray(m)
    if kind in IN_DEGREES:  # from corner to corner, whatever the increments are
        m[at + octet - 1] = scan & 192
        m[at + (16 if m[7] == 1 else 54)] &= 127 if m[7] == 1 else 255 - 48
        return bytes(m)
    m[at + octet - 1] = 64
    if scan & 192 == 64 or not isinstance(ours, dict):
        return bytes(m)
    h = ec.codes_new_from_message(bytes(m))
    ec.codes_set(h, "latitudeOfFirstGridPointInDegrees", float(ours["lat"][0]))
    ec.codes_set(h, "longitudeOfFirstGridPointInDegrees", float(ours["lon"][0]) % 360)
    m = ec.codes_get_message(h)
    ec.codes_release(h)
    return m


def polar_places(get, rows, columns):
    """Polar stereographic on an ellipsoid, which ecCodes does not know.

    J. P. Snyder, Map Projections: A Working Manual, USGS Professional Paper 1395 (1987), page 160.
    """
    axis, minor = get("earthMajorAxisInMetres"), get("earthMinorAxisInMetres")
    e = np.sqrt(1 - (minor / axis) ** 2)
    side = -1 if get("southPoleOnProjectionPlane") else 1
    true = np.radians(abs(get("LaDInDegrees")))
    first = np.radians(side * get("latitudeOfFirstGridPointInDegrees"))
    lon0 = get("orientationOfTheGridInDegrees")
    turn = np.radians(get("longitudeOfFirstGridPointInDegrees") - lon0)

    def t(lat):
        ratio = (1 - e * np.sin(lat)) / (1 + e * np.sin(lat))
        return np.tan(np.pi / 4 - lat / 2) / ratio ** (e / 2)

    true = min(true, np.radians(89.99))  # at the pole the formula has a limit
    scale = axis * np.cos(true) / np.sqrt(1 - (e * np.sin(true)) ** 2) / t(true)
    x, y = scale * t(first) * np.sin(turn), -side * scale * t(first) * np.cos(turn)
    x, y = np.meshgrid(
        x + get("DxInMetres") * np.arange(columns), y + get("DyInMetres") * np.arange(rows)
    )
    wanted = np.hypot(x, y) / scale
    lat = np.pi / 2 - 2 * np.arctan(wanted)
    for _ in range(20):
        ratio = (1 - e * np.sin(lat)) / (1 + e * np.sin(lat))
        lat = np.pi / 2 - 2 * np.arctan(wanted * ratio ** (e / 2))
    return lon0 + np.degrees(np.arctan2(x, -side * y)), side * np.degrees(lat)


def gaussian_places(get, rows, columns):
    "Rows and columns of a Gaussian grid; ecCodes ends the process for odd ones."
    north, south, west, east = (
        get(f"{k}GridPointInDegrees")
        for k in ("latitudeOfFirst", "latitudeOfLast", "longitudeOfFirst", "longitudeOfLast")
    )
    n = get("N")
    if not 0 < n < 2000:
        raise ValueError("an odd Gaussian grid")
    lats = gaussian_latitudes(n)[:: -1 if get("jScansPositively") else 1]
    first = int(abs(lats - north).argmin())
    lats = lats[first : first + rows]
    if lats.size != rows or abs(lats[[0, -1]] - [north, south]).max() > 0.01:
        raise ValueError("rows that are not Gaussian latitudes")
    turn = -((west - east) % 360) if get("iScansNegatively") else (east - west) % 360
    return np.meshgrid(west + np.linspace(0, turn, columns), lats)


# ------------------------------------------------------------------ what the octets say

MINUTES = {0: 1, 1: 60, 2: 1440, 10: 180, 11: 360, 12: 720}
MONTHS = {3: 1, 4: 12, 5: 120, 6: 360, 7: 1200}


def date_of(*numbers):
    "A date; a text if there is no such date."
    try:
        return datetime(*numbers)
    except ValueError:
        return f"no date {numbers}"


def time_1(m, told):
    """Reference time, first and last minute of a GRIB 1 message; a text if it must be refused.

    `told` is the reference time that was read: without one, the end of a period is not compared.
    """
    century, year = m[8 + 24], m[8 + 12]
    numbers = [m[8 + k] for k in (13, 14, 15, 16)]
    reference = f"year {year} of century {century}"
    if year <= 100 and century > 0:  # 0: files of the year 2000
        reference = date_of((century - 1) * 100 + year, *numbers)
    unit, p1, p2, indicator = (m[8 + k] for k in (17, 18, 19, 20))
    if indicator == 10:
        p1 = 256 * p1 + p2
    steps = {0: (p1, p1), 1: (0, 0), 10: (p1, p1), 6: (-p1, -p2), 7: (-p1, p2), 113: (p1, p1)}
    steps |= {k: (p1, p2) for k in (2, 3, 4, 5)}
    if indicator not in steps:
        return reference, f"time range indicator {indicator}", None
    if indicator == 1 and p1:
        return reference, f"an analysis of hour {p1}", None
    start, end = steps[indicator]
    if end < start:
        return reference, f"period from {start} to {end}", None
    many = MINUTES | {254: 1 / 60, 13: 15, 14: 30}
    return reference, minutes(told, start, unit, many), minutes(told, end, unit, many)


def minutes(begin, count, unit, many):
    "A time span in minutes; months are counted in the calendar. A text if there is none."
    if count == 0:
        return 0
    if unit in many:
        return count * many[unit]
    if unit not in MONTHS or begin is None:
        return f"unit {unit} of time"
    begin = begin.astype("M8[s]").item()
    months = 12 * begin.year + begin.month - 1 + count * MONTHS[unit]
    if not 12 < months < 12 * 9999:
        return f"{count} months"
    first = datetime(begin.year, begin.month, 1)
    later = datetime(months // 12, months % 12 + 1, 1) + (begin - first)
    return (later - begin).total_seconds() / 60


# Octet of the end of the period in a product template of statistics
PERIOD = {8: 35, 9: 48, 10: 36, 11: 38, 12: 37, 13: 69, 14: 65}


def date_2(m, at):
    "Seven octets: year, month, day, hour, minute, second."
    return integer(m, at, 2), *m[at + 2 : at + 7]


def time_2(m, told):
    "The same for GRIB 2."
    starts = sections(m)
    one, four = starts[1], starts[4]
    reference = date_of(*date_2(m, one + 12))
    many = MINUTES | {13: 1 / 60}
    if m[one + 11] in (2, 4):
        return reference, f"significance {m[one + 11]} of the reference time", None
    unit, count = m[four + 17], integer(m, four + 18, 4)
    if count == 2**32 - 1:
        return reference, "no forecast time", None
    template = integer(m, four + 7, 2)
    if template in PERIOD and m[four + PERIOD[template] + 11] > 11:
        return reference, f"statistic {m[four + PERIOD[template] + 11]}", None
    start = minutes(told, signed(m, four + 18, 4), unit, many)
    if template not in PERIOD or isinstance(start, str):
        return reference, start, start
    at = four + PERIOD[template] - 1
    numbers = date_2(m, at)
    period, length_unit = integer(m, at + 15, 4), m[at + 14]
    length = f"{m[at + 7]} time ranges"
    if m[at + 7] == 1:
        length = "no length of the period"
        if period != 2**32 - 1:
            length = minutes(told, period, length_unit, many)
    if set(m[at : at + 7]) in ({0}, {255}) or told is None:
        return reference, start if not isinstance(length, str) else length, sum_of(start, length)
    last = date_of(*numbers)
    if isinstance(last, str):
        return reference, "end of the period: " + last, None
    end = (last - reference).total_seconds() / 60
    if isinstance(length, str):
        known = m[at + 7] != 1 or period == 2**32 - 1  # the end is written: no length is needed
        return (reference, start, end) if known else (reference, length, None)
    if start + length != end:
        # an old mistake: negative forecast times as two's complement
        start = minutes(told, count - 2**32, unit, many)
        if count < 2**31 or isinstance(start, str) or start + length != end:
            return reference, f"end of the period {last}, not {length} minutes long", None
    return reference, start, end


def in_seconds(m) -> bool:
    "Whether a GRIB 1 message counts its times in seconds."
    return m[7] == 1 and m[8 + 17] == 254


def start_moves(m) -> bool:
    "Whether the start moves during the period: ecCodes then takes another date than the written."
    if m[7] == 1:
        return False
    four = sections(m)[4]
    template = integer(m, four + 7, 2)
    return template in PERIOD and m[four + PERIOD[template] + 12] == 1


def in_months(m) -> bool:
    "Whether a message counts its times in months or years: for ecCodes each has 30 or 365 days."
    unit = m[8 + 17] if m[7] == 1 else m[sections(m)[4] + 17]
    return unit in MONTHS


def sum_of(start, length):
    return length if isinstance(length, str) else start + length


def level_of(m):
    "Level where it is known what the octets mean; a text if it is missing; else None."
    if m[7] == 1:
        kind, value = m[8 + 9], integer(m, 8 + 10, 2)
        if kind not in (100, 103, 105):
            return None
        return "level missing" if value == 65535 else value
    four = sections(m)[4]
    if integer(m, four + 7, 2) not in (0, 1, 2, 8, 11, 12):
        return None
    kind, second = m[four + 22], m[four + 28]
    if kind not in (100, 102, 103) or second != 255:
        return None
    factor, value = m[four + 23], integer(m, four + 24, 4)
    if factor == 255 or value == 2**32 - 1:
        return "level missing"
    return signed(m, four + 24, 4) * 10.0 ** -signed(m, four + 23, 1)


def grid_of(m):
    "Why the grid must be refused, from the numbers of the grid section; empty if not."
    if m[7] == 1:
        return grid_1(m, sections(m)[2])
    return grid_2(m, sections(m)[3])


def along_grid(m) -> bool:
    "Whether winds lie along the grid."
    if m[7] == 1:
        return bool(m[sections(m)[2] + 16] & 8)
    at = sections(m)[3]
    return bool(m[at + (54 if integer(m, at + 12, 2) in (0, 1, 40) else 46)] & 8)


def outside(lats, lons) -> str:
    "Places that are not on the Earth."
    if any(abs(v) > 90.001 for v in lats):
        return f"latitudes {lats}"
    return f"longitudes {lons}" if any(abs(v) > 360 for v in lons) else ""


def regular(first, last, n, step, turn=False):
    "Whether n points from first to last are one step apart."
    span = last - first
    if turn:
        span %= 360
    return abs(span - step * (n - 1)) <= 0.002 + 0.0005 * (n - 1)  # as exact as GRIB 1


def degree_rows(rows, columns, corners, steps, scan) -> str:
    "Why rows and columns in degrees must be refused; steps None = not given."
    lat1, lon1, lat2, lon2 = corners
    bad = outside((lat1, lat2), (lon1, lon2))
    if bad:
        return bad
    if scan & 64 and lat2 < lat1 or not scan & 64 and lat2 > lat1:
        return f"rows from {lat1} to {lat2} with scanning {scan}"
    west, east = (lon2, lon1) if scan & 128 else (lon1, lon2)
    if steps[0] is not None and not regular(west, east, columns, steps[0], True):
        return f"columns {west} to {east}, step {steps[0]}"
    south, north = sorted((lat1, lat2))
    if steps[1] is not None and not regular(south, north, rows, steps[1]):
        return f"rows {south} to {north}, step {steps[1]}"
    return ""


def grid_1(m, at) -> str:
    kind, scan, flags = m[at + 5], m[at + 27], m[at + 16]
    columns, rows = integer(m, at + 6, 2), integer(m, at + 8, 2)
    lat1, lon1 = signed(m, at + 10, 3) / 1e3, signed(m, at + 13, 3) / 1e3
    if kind in (0, 4, 10):
        corners = lat1, lon1, signed(m, at + 17, 3) / 1e3, signed(m, at + 20, 3) / 1e3
        steps = [integer(m, at + k, 2) for k in (23, 25)]
        steps = [v / 1e3 if flags & 128 and 0 < v < 65535 else None for v in steps]
        if kind == 4:
            steps[1] = None
        poles = ()
        if kind == 10:
            poles = signed(m, at + 32, 3) / 1e3, signed(m, at + 35, 3) / 1e3
        bad = outside(poles[:1], poles[1:])
        return bad or degree_rows(rows, columns, corners, steps, scan)
    others = []
    if kind == 3:
        others = [signed(m, at + 28, 3), signed(m, at + 31, 3)]
    bad = outside([lat1, *(v / 1e3 for v in others)], [lon1])
    if bad:
        return bad
    lengths = [integer(m, at + k, 3) for k in ((28, 31) if kind == 1 else (20, 23))]
    if kind in (1, 3, 5) and (0 in lengths or 2**24 - 1 in lengths):
        return f"lengths {lengths}"
    orientation = signed(m, at + 17, 3) / 1e3
    return outside((), [orientation]) if kind in (3, 5) else ""


# GRIB 2: kind of grid -> octets of latitudes, of longitudes, of lengths
PLACES_2 = {
    10: ((39, 48, 52), (43, 56), (65, 69)),
    20: ((39, 48), (43, 52), (56, 60)),
    30: ((39, 48, 66, 70), (43, 52), (56, 60)),
}


def grid_2(m, at) -> str:
    kind = integer(m, at + 12, 2)
    columns, rows = integer(m, at + 30, 4), integer(m, at + 34, 4)
    if kind in (0, 1, 40):
        if integer(m, at + 38, 4) not in (0, 2**32 - 1) or kind not in (0, 1, 40):
            return ""  # degrees in other parts: only ecCodes is asked
        corners = [integer(m, at + k, 4) for k in (46, 50, 55, 59)]
        if 2**32 - 1 in corners:
            return "corners missing"
        corners = [signed(m, at + k, 4) / 1e6 for k in (46, 50, 55, 59)]
        steps = [integer(m, at + k, 4) for k in (63, 67)]
        given = m[at + 54] & 32, m[at + 54] & 16
        steps = [v / 1e6 if g and 0 < v < 1e9 else None for v, g in zip(steps, given)]
        if kind == 40:
            steps[1] = None
        if kind == 1:
            poles = signed(m, at + 72, 4) / 1e6, signed(m, at + 76, 4) / 1e6
            bad = outside(poles[:1], poles[1:])
            if bad:
                return bad
        return degree_rows(rows, columns, corners, steps, m[at + 71])
    if kind in PLACES_2:
        lats, lons, lengths = PLACES_2[kind]
        several = [[integer(m, at + k - 1, 4) for k in some] for some in PLACES_2[kind]]
        if any(2**32 - 1 in some for some in several) or 0 in several[2]:
            return f"missing among {several}"
        return outside(
            [signed(m, at + k - 1, 4) / 1e6 for k in lats],
            [signed(m, at + k - 1, 4) / 1e6 for k in lons],
        )
    return ""


# ------------------------------------------------------------------ comparison


def on_earth(lon, lat):
    "Unit vectors."
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)


def places_differ(ours, theirs, m) -> str:
    "Values are all different: points are matched by them."
    one, two = (np.argsort(v["values"], kind="stable") for v in (ours, theirs))
    here, there = ours["values"][one], theirs["values"][two]
    if here.size != there.size or not np.allclose(here, there, equal_nan=True):
        return f"{here.size} values, not the same as {there.size}"
    if not (np.isfinite(ours["lat"]).all() and np.isfinite(ours["lon"]).all()):
        return "places that are not finite"
    if abs(ours["lat"]).max() > 90.001:
        return f"latitude {abs(ours['lat']).max()}"
    first = theirs["first"]
    if first is not None:
        k = np.flatnonzero(ours["values"] == theirs["values"][0])
        place = on_earth(ours["lon"][k], ours["lat"][k]) if k.size == 1 else on_earth(*first)
        if np.linalg.norm(place - on_earth(*first)) > 10 * NEAR:
            return "the first value is not at the first point"
    known = np.isfinite(here)
    if not known.any() or np.unique(here[known]).size < known.sum():
        return ""  # a key that changed the values
    here = on_earth(ours["lon"], ours["lat"])[one][known]
    there = on_earth(theirs["lon"], theirs["lat"])[two][known]
    far = np.linalg.norm(here - there, axis=1).max()
    near = NEAR if m[7] == 2 else 10 * NEAR
    return "" if far < near else f"places {far * 6371:.3g} km"


def difference(ours, theirs, m) -> str:
    "What is not the same; empty if nothing."
    told = None if np.isnat(ours["reference"]) else ours["reference"]
    reference, start, end = time_1(m, told) if m[7] == 1 else time_2(m, told)
    if told is not None and isinstance(reference, str):
        return f"octets: {reference}; read as {told}"
    if told is not None and (reference is None or told != np.datetime64(reference, "ns")):
        return f"octets: reference {reference}; read as {told}"
    if told is None and isinstance(reference, datetime) and 1800 <= reference.year < 2100:
        return f"octets: reference {reference}; read without a date"
    if isinstance(start, str):
        return f"octets: {start}; read as {ours['start']:g} to {ours['end']:g}"
    if isinstance(end, str):
        return f"octets: {end}; read as {ours['start']:g} to {ours['end']:g}"
    if abs(ours["start"] - start) > 1e-6 or abs(ours["end"] - end) > 1e-6:
        return f"octets: minutes {start:g} to {end:g}; read as {ours['start']:g} to {ours['end']:g}"
    level = level_of(m)
    if level is not None:
        if isinstance(level, str):
            return f"octets: {level}; read as {ours['level']}"
        factor = 0.01 if ours["level_type"] == "isobaricInhPa" and m[7] == 2 else 1
        if abs(ours["level"] - factor * level) > 1e-6 * abs(level):
            return f"octets: level {level:g}; read as {ours['level']:g} {ours['level_type']}"
    why = grid_of(m)
    if why and not ("step" in why and "increments ignored" in ours["note"]):
        return f"octets: {why}; read"
    if ours["along"] != along_grid(m):
        return f"octets: winds along the grid {along_grid(m)}; read as {ours['along']}"
    if in_seconds(m):
        return ""  # for ecCodes such times have no minutes
    if isinstance(theirs, str):
        return f"ecCodes {theirs}"
    for key in ("name", "units", "level_type", "level"):
        if ours[key] != theirs[key]:
            if key == "level" and level is not None:
                continue  # ecCodes rounds it
            return f"{key}: {ours[key]}, ecCodes {theirs[key]}"
    if told is not None and not (start_moves(m) or in_months(m)):
        valid = told + np.timedelta64(round(60 * ours["end"]), "s")
        text = str(valid.astype("datetime64[m]"))
        date = int(text[:10].replace("-", "")) if text[0] != "-" else -1
        clock = int(text[11:16].replace(":", ""))
        if (date, clock) != (theirs["date"], theirs["time"]):
            return f"valid {text}, ecCodes {theirs['date']} {theirs['time']:04}"
    return places_differ(ours, theirs, m)


def compare(ec, m, path, done=None):
    "Class of a variant, and what there is to say; calls `done` with what we read."
    path.write_bytes(m)
    try:
        ours = by_us(path)
    except Exception as error:
        return "DIFFER", f"foreign {type(error).__name__}: {error!s:.200}"
    finally:
        path.unlink()
    kind = "read"
    if isinstance(ours, str):
        kind = "left out" if ours.startswith("left") else "refused"
    if done:
        done(kind)
    theirs = by_eccodes(ec, m, ours)
    if kind != "read":
        return ("both refuse" if isinstance(theirs, str) else kind), ours
    what = difference(ours, theirs, m)
    return ("DIFFER", what) if what else ("agree", "")


# ------------------------------------------------------------------ processes


def child(n, seed, folder):
    "Compare variants, and say which is begun and what it became."
    from fuzz import in_processes, limit_memory, say

    from sslpdl_nb.io.grib import _eccodes

    warnings.simplefilter("ignore")
    ec, folder = _eccodes("fuzz"), Path(folder)
    several, good = variants(ec, n, seed)
    limit_memory()

    def work(k):
        name, changes = several[k]
        words = in_words(name, changes)

        def told(kind, what=""):
            say(json.dumps([k, words, kind, what]))

        m = changed(ec, good[name], changes)
        if m is None:
            return told("not made")
        told("begin")
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
        kind, what = compare(ec, m, folder / f"odd{k}.grib", lambda kind: told("ours " + kind))
        signal.setitimer(signal.ITIMER_PROF, 0)
        told(kind, what)

    for k, how in in_processes(work, 0, n):
        say(json.dumps([k, "", "ended", how]))


def outcomes(n, seed=0, until=None):
    "(words, class, what) of n variants."
    from fuzz import memory_folder

    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        errors = Path(folder) / "errors"
        command = [sys.executable, __file__, str(n), str(seed), folder]
        with open(errors, "wb") as error_file:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=error_file)
        words, state = "", ""
        for line in lines_of(process):
            if line is None or until is not None and time.time() > until:
                process.kill()
                break
            _, told, kind, what = line
            if kind == "begin" or kind.startswith("ours"):
                words, state = told, kind
            elif kind == "ended":
                yield words, *blame(state, what)
            else:
                yield told, kind, what
        code = process.wait()
        if code > 0:
            raise RuntimeError(errors.read_text(errors="replace")[-2000:])


def blame(state, what):
    "Class of a variant with which a process ended: in our reader, or later in ecCodes alone."
    if state in ("ours refused", "ours left out"):
        return "both refuse", f"{state}; ecCodes ends the process: {what}"
    return "DIFFER", f"process ended: {what} after {state}"


def compare_many(n, seed=0, until=None, progress=None):
    "Counts of classes, and the differences that are left."
    counts, differences = Counter(), []
    for words, kind, told in outcomes(n, seed, until):
        counts[kind] += 1
        if kind == "DIFFER":
            differences.append(f"{words}: {told}")
        if progress:
            progress()
    return counts, differences


if __name__ == "__main__":
    sys.path[0:1] = [str(HERE), str(HERE.parent)]
    child(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
