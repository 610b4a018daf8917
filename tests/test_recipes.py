"""The first mile: for each source, files as they are delivered become a store and a map.

The files are built with the published names, levels, units and hours; every value is known, so
that the store can be checked point by point. The same commands stand in the lesson on recipes.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

pytest.importorskip("pyproj")  # first: see grib._eccodes
pytest.importorskip("eccodes")

from small_archive import typical
from synthetic import era5, gfs, hrrr, icon_d2, icon_eu, komet_gdaps, rdaps_kim, truth, wrfout

from sslpdl_nb.cli import main
from sslpdl_nb.core import VARIABLE_NAMES, DataError, get_config
from sslpdl_nb.finetune import KINDS, save_model
from sslpdl_nb.grids.types import LambertGrid, cf_coordinates, crs_attributes
from sslpdl_nb.io.nwp import open_nwp
from sslpdl_nb.predict import predict
from sslpdl_nb.store import Standardizer, open_store

TARGET = LambertGrid(32, 32, 600.0, -112e3, -57e3)  # in Korea, inside most of the built files
ALPS = LambertGrid(32, 32, 600.0, -9e3, -9e3, 5.75, 45.5, (44.0, 47.0))
SWITZERLAND = LambertGrid(32, 32, 600.0, -9e3, -9e3, 8.3, 47.2, (46.0, 48.0))
HOUR = np.timedelta64(1, "h")
TOLERANCE = dict(gh=1.0, t=0.05, rh=1.0, u=0.1, v=0.1, slp=20.0, rain=0.02)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "A network that was never trained, for maps."
    config = get_config("small", image_size=TARGET.shape)
    train = xr.Dataset(coords=dict(lead_time=("sample", [6.0])), attrs=dict(source="simulated"))
    mean = tuple(float(typical(n)) for n in VARIABLE_NAMES)
    standardizer = Standardizer(mean, (1.0,) * 16)
    splits = SimpleNamespace(samples=dict(train=train), standardizer=standardizer, grid=TARGET)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "untrained.safetensors"
    model = KINDS["unet"](config)
    save_model(
        path, model, config, splits, seed=0, probability_thresholds=(0.3, 0.1), pretrained=False
    )
    return path


def write_rain(folder, grid, times):
    "Rain that was observed in the hours before some times, on the grid of the samples."
    shape = (len(times), *grid.shape)
    fields = {
        "rain": (("time", "y", "x"), np.ones(shape, np.float32), dict(units="mm h-1")),
        "crs": ((), 0, crs_attributes(grid)),
    }
    path = folder / "radar.nc"
    coordinates = dict(time=np.array(times, "datetime64[ns]")) | cf_coordinates(grid)
    xr.Dataset(fields, coordinates).to_netcdf(path)
    return path


def run(*words):
    "One of the commands, which must succeed."
    assert main([str(word) for word in words]) == 0


def valid_times(made):
    "The valid times of the files that a builder made."
    starts = made.get("times", ["2024-07-01T00"])
    hours = made["leads"]
    return [np.datetime64(start, "ns") + hour * HOUR for start in starts for hour in hours]


def usable_times(source, made):
    "Valid times at which the rain of one hour is known: not at the first time of rain since start."
    times = np.array(valid_times(made), "datetime64[ns]")
    return times[1:] if source in ("rdaps-kim", "komet-gdaps") else times


RECIPES = {  # --source: builder, grid of the samples
    "gfs": (gfs, TARGET),
    "hrrr": (hrrr, TARGET),
    "era5": (era5, TARGET),
    "rdaps-kim": (rdaps_kim, TARGET),
    "icon-eu": (icon_eu, ALPS),
    "icon-d2": (icon_d2, SWITZERLAND),
    "komet-gdaps": (komet_gdaps, TARGET),
    "wrfout": (wrfout, TARGET),
}


@pytest.mark.parametrize("source", RECIPES)
def test_from_files_to_a_store_and_a_map(source, tmp_path, checkpoint):
    import eccodes

    files = tmp_path / "forecasts of Übersee"
    files.mkdir()
    build, grid = RECIPES[source]
    made = build(files, eccodes)
    rain = write_rain(tmp_path, grid, valid_times(made))
    store, result, picture = (tmp_path / n for n in ("store.zarr", "rain.nc", "rain.png"))
    run("prepare", "--nwp", files, "--qpe", rain, "--source", source, "--out", store)
    words = ["--domain", rain, "--checkpoint", checkpoint, "--out", result, "--map", picture]
    run("predict", files, "--source", source, *words, "--quiet")
    samples = open_store(store)
    assert samples["valid_time"].values.tolist() == usable_times(source, made).tolist()
    if source not in ("wrfout", "komet-gdaps"):  # uniform, and checked with their readers
        compare_with_truth(samples, grid)
    with xr.open_dataset(result) as ds:
        assert np.allclose(ds["probability"].sum("class"), 1, atol=1e-5)
    with Image.open(picture) as image:
        assert min(image.size) > 200


def test_a_level_that_a_model_does_not_reach(tmp_path, checkpoint):
    "ICON-D2 ends below 100 hPa: the height stays missing, and everything says so."
    import eccodes

    made = icon_d2(tmp_path, eccodes)
    files = sorted(tmp_path.glob("*.grib2"))
    with pytest.raises(DataError, match="gh100"):
        open_nwp(files, "icon-eu")
    ds = open_nwp(files, "icon-d2")
    assert ds["gh100"].isnull().all() and ds["gh500"].notnull().all()
    assert "gh100: not written" in ds.attrs["note"] and ds.attrs["absent_variables"] == "gh100"
    assert ds.sizes["lead_time"] == len(made["leads"])
    own = predict(ds, checkpoint, SWITZERLAND, climatology="own")
    assert own.attrs["missing_input_values"] == 2 * 32 * 32
    assert np.isfinite(own["probability"]).all()


def compare_with_truth(samples, grid):
    "The forecasts of a store are what was written into the files, at each pixel."
    lon, lat = grid.lonlat()
    expected = truth(lon, lat)
    absent = samples.attrs.get("absent_variables", "").split()
    for k, name in enumerate(VARIABLE_NAMES):
        values = samples["forecast"].values[:, k]
        if name in absent:
            assert np.isnan(values).all(), name
            continue
        tolerance = TOLERANCE[name.rstrip("0123456789m")]
        assert np.abs(values - expected[name]).max() < tolerance, name
