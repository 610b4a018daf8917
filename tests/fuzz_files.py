"""Small good files of every format that is read, and how each is read; `fuzz` damages them.

A format has a function that writes its files into an empty folder, and one that reads a path.
"""

from functools import partial
from importlib import import_module
from typing import NamedTuple

import numpy as np
import xarray as xr

FIELDS_READ = 20  # of each file
START = np.datetime64("2024-07-01", "ns")
HOURS = np.array([1, 2], "timedelta64[h]").astype("timedelta64[ns]")


class Format(NamedTuple):
    "How a format is written and read."

    write: object  # (folder) -> None
    read: object  # (path) -> None; raises only errors of the package
    share: int = 1  # of all inputs
    hdf5: bool = False  # read by the libraries netCDF and HDF5, whose own faults are known


# ------------------------------------------------------------------ readers


def fields(module, function, path, arguments=()):
    "List the fields of a file, find their places and read them."
    list_fields = getattr(import_module(module), function)
    grids = set()
    for field in list_fields(path, *arguments)[:FIELDS_READ]:
        if field.grid not in grids:
            field.grid.lonlat()
        grids.add(field.grid)
        field.read()


def netcdf_fields(path):
    from sslpdl_nb.io.fields import Source

    fields("sslpdl_nb.io.netcdf", "netcdf_fields", path, (Source(fields={}),))


def own_form(path):
    "A forecast in our own form."
    from sslpdl_nb.io.nwp import open_nwp

    open_nwp(path).load()


def checkpoint(path):
    from sslpdl_nb.checkpoint import load_checkpoint

    load_checkpoint(path)


def store(path):
    from sslpdl_nb.store import open_store

    open_store(path)


# ------------------------------------------------------------------ GRIB


def small_world(ec, edition, hour, values, **keys):
    "A message of rain up to an hour on 7 x 12 points of the world."
    from synthetic import message, world

    about = world(30.0, east=330.0)[0] | dict(dataDate=20240701, dataTime=0)
    if edition == 2:
        about |= dict(productDefinitionTemplateNumber=8, parameterCategory=1, parameterNumber=8)
        about |= dict(typeOfStatisticalProcessing=1, stepRange=f"0-{hour}")
    else:
        about |= dict(indicatorOfParameter=61, timeRangeIndicator=4, P1=0, P2=hour)
    return message(ec, f"GRIB{edition}", about | keys, values)


def eccodes():
    from sslpdl_nb.io.grib import _eccodes

    return _eccodes("fuzz")


def grib1(folder):
    from synthetic import lambert, message

    ec, rain = eccodes(), np.abs(np.sin(np.arange(84.0))) * 20
    gaps = np.where(rain > 15, 9999, rain)
    body = small_world(ec, 1, 3, rain) + small_world(ec, 1, 6, gaps, bitmapPresent=1)
    (folder / "world.grib1").write_bytes(body)
    grid, _, lat = lambert()
    del grid["LaDInDegrees"], grid["shapeOfTheEarth"]  # keys of edition 2
    body = message(ec, "GRIB1", grid | dict(earthIsOblate=1), lat)
    (folder / "cone.grib1").write_bytes(body + small_world(ec, 1, 7, rain, packingType="grid_ieee"))


def grib2(folder):
    from synthetic import lambert, message

    ec, rain = eccodes(), np.abs(np.sin(np.arange(84.0))) * 20
    gaps = np.where(rain > 15, 9999, rain)
    difference = dict(packingType="grid_complex_spatial_differencing", orderOfSpatialDifferencing=2)
    first = small_world(ec, 2, 3, rain)
    (folder / "world.grib2").write_bytes(first + small_world(ec, 2, 6, gaps, bitmapPresent=1))
    (folder / "groups.grib2").write_bytes(small_world(ec, 2, 3, rain, **difference) + first)
    grid, lon, lat = lambert()
    cone = message(ec, "GRIB2", grid | difference, lat) + message(ec, "GRIB2", grid, lon)
    (folder / "cone.grib2").write_bytes(cone)
    for packing in ("grid_ccsds", "grid_jpeg", "grid_png", "grid_ieee"):
        try:
            body = small_world(ec, 2, 3, rain, packingType=packing)
        except ec.CodesInternalError:  # a library built without this packing
            continue
        (folder / f"{packing}.grib2").write_bytes(body + first)


# ------------------------------------------------------------------ NetCDF, HDF5, Zarr


def forecast():
    "Temperature on levels and rain of two hours, in degrees."
    from synthetic import degrees

    t = 270 + np.arange(36.0).reshape(1, 2, 2, 3, 3)
    coords = dict(time=[START], lead_time=HOURS, level=("level", [500.0, 850.0], {"units": "hPa"}))
    ds = xr.Dataset(
        dict(
            t=(("time", "lead_time", "level", "lat", "lon"), t, {"units": "K"}),
            rain=(("time", "lead_time", "lat", "lon"), t[:, :, 0] / 100, {"units": "mm"}),
        ),
        coords | degrees(),
    )
    ds["t"].encoding["_FillValue"] = -999.0
    return ds


def on_map():
    "Rain on a Lambert map."
    from synthetic import KMA

    from sslpdl_nb.grids.types import cf_coordinates, crs_attributes

    rain = np.arange(2.0 * KMA.nx * KMA.ny).reshape(2, *KMA.shape)
    data = dict(
        rain=(("lead_time", "y", "x"), rain, dict(units="mm", grid_mapping="crs")),
        crs=((), 0, crs_attributes(KMA)),
    )
    return xr.Dataset(data, dict(time=START, lead_time=HOURS) | cf_coordinates(KMA))


def netcdf(kind, folder):
    forecast().to_netcdf(folder / "degrees.nc", format=kind)
    on_map().to_netcdf(folder / "map.nc", format=kind)


def netcdf4(folder):
    netcdf("NETCDF4", folder)
    packed = dict(t=dict(dtype="int16", scale_factor=0.01, add_offset=280, zlib=True))
    forecast().to_netcdf(folder / "packed.nc", encoding=packed)


def zarr(folder):
    forecast().to_zarr(folder / "three.zarr", zarr_format=3)
    forecast().to_zarr(folder / "two.zarr", zarr_format=2)
    on_map().to_zarr(folder / "map.zarr", zarr_format=3, consolidated=False)


def wrf(folder):
    from synthetic import wrfout

    wrfout(folder, None)


def nwp(folder):
    import small_archive

    small_archive.forecast().to_netcdf(folder / "nwp.nc")
    small_archive.forecast().to_netcdf(folder / "classic.nc", format="NETCDF3_64BIT")


def knmi(folder):
    "A KNMI composite of 6 x 5 pixels of 100 km."
    import h5py

    from sslpdl_nb.grids.types import projected_grid

    params = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 +y_0=0"
    metres = params.replace("6378.14", "6378140").replace("6356.75", "6356750") + " +no_defs"
    x, y = np.arange(7) * 1e5, -3e6 - np.arange(6) * 1e5
    lon, lat = projected_grid(metres, x, y).unproject(
        x[[0, 0, -1, -1]], y[[-1, 0, 0, -1]]
    )  # from the lower left corner clockwise
    with h5py.File(folder / "knmi.h5", "w") as h:
        geo = h.create_group("geographic").attrs
        geo["geo_number_rows"], geo["geo_number_columns"] = [5], [6]
        geo["geo_column_offset"], geo["geo_row_offset"] = [0.0], [30.0]
        geo["geo_pixel_size_x"], geo["geo_pixel_size_y"] = [100.0], [-100.0]
        geo["geo_product_corners"] = np.stack([lon, lat], -1).ravel().astype("f4")
        about = h.create_group("geographic/map_projection").attrs
        about["projection_proj4_params"] = np.bytes_(params)
        times = h.create_group("overview").attrs
        times["product_datetime_start"] = np.bytes_("26-AUG-2010;00:00:00.000")
        times["product_datetime_end"] = np.bytes_("26-AUG-2010;00:05:00.000")
        counts = np.arange(30, dtype="u2").reshape(5, 6)
        h.create_dataset("image1/image_data", data=counts, compression="gzip")
        scale = h.create_group("image1/calibration").attrs
        scale["calibration_formulas"] = np.bytes_("GEO=0.010000*PV+0.000000")
        scale["calibration_missing_data"] = [65534]
        scale["calibration_out_of_image"] = [65535]


def imerg(folder):
    import h5py

    with h5py.File(folder / "imerg.HDF5", "w") as h:
        group = h.create_group("Grid")
        group["lon"], group["lat"] = np.arange(120, 121, 0.1), np.arange(30, 30.8, 0.1)
        group["time"] = np.array([1600000200, 1600002000])
        group["time"].attrs["units"] = np.bytes_("seconds since 1970-01-01 00:00:00 UTC")
        group["precipitation"] = np.arange(160, dtype="f4").reshape(2, 10, 8)
        group["precipitation"].attrs["units"] = np.bytes_("mm/hr")


def odim(folder):
    "An ODIM composite of 6 x 5 pixels of 2 km: accumulated rain of five minutes."
    import h5py

    from sslpdl_nb.grids.types import projected_grid

    projection = "+proj=stere +lat_0=90 +lon_0=10 +lat_ts=60 +a=6370040 +b=6370040 +units=m"
    x, y = 1e5 + np.arange(7) * 2e3, -4e6 - np.arange(6) * 2e3
    grid = projected_grid(projection + " +no_defs", x, y)
    with h5py.File(folder / "odim.h5", "w") as h:
        h.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_3")
        what = h.create_group("what").attrs
        what["object"], what["version"] = np.bytes_("COMP"), np.bytes_("H5rad 2.3")
        what["date"], what["time"] = np.bytes_("20240701"), np.bytes_("000500")
        what["source"] = np.bytes_("ORG:247")
        where = h.create_group("where").attrs
        where["projdef"] = np.bytes_(projection)
        where["xsize"], where["ysize"], where["xscale"], where["yscale"] = 6, 5, 2000.0, 2000.0
        for name, column, row in (("LL", 0, -1), ("UL", 0, 0), ("UR", -1, 0), ("LR", -1, -1)):
            lon, lat = grid.unproject(x[column], y[row])
            where[f"{name}_lon"], where[f"{name}_lat"] = float(lon), float(lat)
        about = h.create_group("dataset1/what").attrs
        about["product"], about["prodpar"] = np.bytes_("SURF"), 0.0
        about["startdate"], about["starttime"] = np.bytes_("20240701"), np.bytes_("000000")
        about["enddate"], about["endtime"] = np.bytes_("20240701"), np.bytes_("000500")
        scale = h.create_group("dataset1/data1/what").attrs
        scale["quantity"], scale["gain"], scale["offset"] = np.bytes_("ACRR"), 0.01, 0.0
        scale["nodata"], scale["undetect"] = 65535.0, 0.0
        counts = np.arange(30, dtype="u2").reshape(5, 6)
        h.create_dataset("dataset1/data1/data", data=counts, compression="gzip")


# ------------------------------------------------------------------ what the package writes


def checkpoints(folder):
    from torch import nn

    from sslpdl_nb.checkpoint import save_checkpoint

    meta = dict(format=1, kind="test", seed=0, lead_times=[25, 27], source="none")
    save_checkpoint(folder / "small.safetensors", nn.Linear(3, 2), meta)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    save_checkpoint(folder / "layers.safetensors", layers, meta)


def stores(folder):
    "A prepared store of two samples."
    import small_archive

    from sslpdl_nb.io.prepare import prepare

    nwp = small_archive.forecast()
    qpe = small_archive.observation(small_archive.valid_times(nwp))
    made = folder.parent / "made"
    made.mkdir()
    nwp.to_netcdf(made / "nwp.nc")
    qpe.to_netcdf(made / "qpe.nc")
    about = dict(source="sslpdl", say=str, progress=False)
    prepare(made / "nwp.nc", made / "qpe.nc", folder / "store.zarr", **about)


def rain(path):
    fields("sslpdl_nb.io.qpe", "rain_fields", path)


FORMATS = {
    "GRIB 1": Format(grib1, partial(fields, "sslpdl_nb.io.grib", "grib_fields"), 16),
    "GRIB 2": Format(grib2, partial(fields, "sslpdl_nb.io.grib", "grib_fields"), 24),
    "NetCDF classic": Format(partial(netcdf, "NETCDF3_CLASSIC"), netcdf_fields, 6, True),
    "NetCDF 64 bit": Format(partial(netcdf, "NETCDF3_64BIT"), netcdf_fields, 4, True),
    "NetCDF HDF5": Format(netcdf4, netcdf_fields, 12, True),
    "own form": Format(nwp, own_form, 2, True),
    "wrfout": Format(wrf, partial(fields, "sslpdl_nb.io.wrf", "wrf_fields"), 4, True),
    "KNMI": Format(knmi, rain, 6, True),
    "ODIM": Format(odim, rain, 6, True),
    "IMERG": Format(imerg, rain, 4, True),
    "Zarr": Format(zarr, netcdf_fields, 5),
    "checkpoint": Format(checkpoints, checkpoint, 10),
    "store": Format(stores, store, 2),
}
