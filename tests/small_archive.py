"A small archive for tests: forecasts and rain of a few days in our own form, and their files."

import numpy as np
import xarray as xr

from sslpdl_nb.core import VARIABLES
from sslpdl_nb.grids.types import NWP_GRID, QPE_GRID, cf_coordinates, crs_attributes, subgrid

SOURCE = subgrid(NWP_GRID, slice(60, 414, 18), slice(48, 252, 18))
TARGET = subgrid(QPE_GRID, slice(30, 222, 24), slice(26, 122, 24))  # 8 x 4
TYPICAL = {
    "gh100": 16500,
    "gh500": 5800,
    "gh850": 1500,
    "slp": 101000,
    "rh": 60,
    "t": 280,
    "u": 0,
    "v": 0,
    "rain": 1,
}
DAY = np.timedelta64(1, "D")


def typical(name):
    "A usual value of a variable."
    return TYPICAL.get(name, TYPICAL.get(name.rstrip("0123456789m"), 0))


def forecast(days=1, leads=(25, 27), grid=SOURCE, seed=0):
    "A small forecast in our own form, one reference time a day."
    rng = np.random.default_rng(seed)
    dims, shape = ("time", "lead_time", "y", "x"), (days, len(leads), *grid.shape)
    fields = {"crs": ((), 0, crs_attributes(grid))}
    for v in VARIABLES:
        values = (typical(v.name) + rng.random(shape)).astype(np.float32)
        fields[v.name] = (dims, values, dict(units=v.units))
    coords = dict(
        time=np.datetime64("2000-06-01", "ns") + np.arange(days) * DAY,
        lead_time=np.array(leads, "timedelta64[h]").astype("timedelta64[ns]"),
    )
    return xr.Dataset(fields, coords | cf_coordinates(grid))


def observation(valid_times, grid=TARGET):
    "Rain of some hours, every pixel another value."
    when = np.unique(valid_times)
    rain = np.arange(when.size * grid.nx * grid.ny, dtype=np.float32) / 50
    fields = {
        "rain": (("time", "y", "x"), rain.reshape(-1, *grid.shape), dict(units="mm h-1")),
        "crs": ((), 0, crs_attributes(grid)),
    }
    return xr.Dataset(fields, dict(time=when) | cf_coordinates(grid))


def valid_times(nwp):
    "Valid times of a forecast, (time, lead_time)."
    return nwp["time"].values[:, None] + nwp["lead_time"].values


def write(ds, path):
    "A forecast as a NetCDF file."
    ds.to_netcdf(path, encoding=dict(lead_time=dict(units="hours", dtype="float64")))
    return path


WAYS = {"slp": ("prmsl", ("sea", 0)), "t2m": ("t", ("ground", 2)), "rain": ("tp", ("surface", 0))}
WAYS |= {f"{n}10": (n, ("ground", 10)) for n in "uv"}


def write_reduced(path):
    """A forecast as GRIB on a reduced Gaussian grid: each variable has one value everywhere.

    Returns these values in our units.
    """
    from synthetic import PARAMETERS, SURFACES, message

    from sslpdl_nb.io.grib import _eccodes

    ec, content, values = _eccodes("test"), b"", {}
    for k, v in enumerate(VARIABLES):
        values[v.name] = float(typical(v.name) + 1 + 0.25 * k)
        short = v.name.rstrip("0123456789")
        if v.name in WAYS:
            name, (surface, level) = WAYS[v.name]
        else:
            name, surface, level = short.replace("rh", "r"), "p", 100 * int(v.name[len(short) :])
        keys = dict(dataDate=20000601, dataTime=0, discipline=0)
        keys |= dict(productDefinitionTemplateNumber=8 if v.name == "rain" else 0)
        keys |= dict(zip(("parameterCategory", "parameterNumber"), PARAMETERS[name]))
        keys |= dict(typeOfFirstFixedSurface=SURFACES[surface])
        keys |= dict(scaleFactorOfFirstFixedSurface=0, scaledValueOfFirstFixedSurface=level)
        keys |= dict(typeOfStatisticalProcessing=1) if v.name == "rain" else {}
        keys |= dict(stepRange="24-25" if v.name == "rain" else "25")
        content += message(ec, "reduced_gg_pl_32_grib2", keys, np.full(6114, values[v.name]))
    path.write_bytes(content)
    return values
