"From files and stores to maps: what `predict` answers, what it refuses, what it writes."

import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr
from real import real
from safetensors.torch import save_file
from small_archive import (
    TARGET,
    forecast,
    observation,
    typical,
    valid_times,
    write,
    write_reduced,
)

from sslpdl_nb import predict as module
from sslpdl_nb.cli import central_us
from sslpdl_nb.core import (
    VARIABLE_NAMES,
    CheckpointError,
    DataError,
    GridError,
    environment,
    get_config,
)
from sslpdl_nb.finetune import KINDS, save_model
from sslpdl_nb.grids.types import NWP_GRID, QPE_GRID, LambertGrid, lambert_from_cf, subgrid
from sslpdl_nb.io.nwp import open_nwp
from sslpdl_nb.io.prepare import prepare
from sslpdl_nb.io.qpe import open_qpe
from sslpdl_nb.predict import observed_on, predict, rainmap, write_rainmap
from sslpdl_nb.store import Standardizer, open_store

matplotlib.use("Agg")


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    "A model that weighs each standardised variable differently; the file is only a name."
    mean = tuple(float(typical(n)) + 0.5 for n in VARIABLE_NAMES[:-1]) + (0.9,)
    meta = dict(
        config=get_config("small", image_size=TARGET.shape),
        variable_names=list(VARIABLE_NAMES),
        grid=TARGET,
        seed=7,
        kind="internimage",
        standardizer=Standardizer(mean, (1.0,) * 16, "log1p"),
        versions=environment(),
        pretrained=True,
        probability_thresholds=(0.4, 0.2),
        source="simulated, seed 0",
        lead_times=[25.0, 27.0],
    )

    def probabilities(model, dataset, progress=False):
        score = np.einsum("nvyx,v->nyx", dataset.inputs().numpy(), np.linspace(0.1, 1, 16))
        logits = np.stack([np.zeros_like(score), score, 2 * score - 2], 1)
        p = np.exp(logits.clip(-20, 20))
        return (p / p.sum(1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(module, "load_model", lambda path: (SimpleNamespace(), meta))
    monkeypatch.setattr(module, "predict_probabilities", probabilities)
    return SimpleNamespace(path=tmp_path / "model.safetensors", meta=meta)


def test_a_forecast_on_a_reduced_gaussian_grid(checkpoint, tmp_path):
    "From GRIB without rows of equal length to a prediction: constants are kept exactly."
    for package in ("pyproj", "eccodes"):  # in this order
        pytest.importorskip(package)
    values = write_reduced(tmp_path / "reduced.grib2")
    nwp = open_nwp(tmp_path / "reduced.grib2")
    assert nwp["t850"].dims == ("time", "lead_time", "point") and nwp.sizes["point"] == 6114
    for name, value in values.items():
        assert np.allclose(nwp[name], value, rtol=1e-6), name
    ds = predict(tmp_path / "reduced.grib2", checkpoint.path, TARGET)
    assert np.allclose(ds["forecast_rain"], values["rain"], rtol=1e-6)
    score = np.dot(
        checkpoint.meta["standardizer"].transform(
            np.array([values[n] for n in VARIABLE_NAMES], np.float32)[None, :, None, None]
        )[0, :, 0, 0],
        np.linspace(0.1, 1, 16),
    )
    p = np.exp(np.clip([0, score, 2 * score - 2], -20, 20))
    expected = (p / p.sum())[:, None, None]
    assert np.allclose(ds["probability"][0, 0], expected, atol=1e-4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    "Three days of forecasts, the rain of all hours but one, and their store."
    folder = tmp_path_factory.mktemp("archive")
    nwp = forecast(3)
    qpe = observation(valid_times(nwp)).isel(time=slice(0, -1))
    write(nwp, folder / "nwp.nc")
    qpe.to_netcdf(folder / "qpe.nc")
    files = folder / "nwp.nc", folder / "qpe.nc", folder / "store.zarr"
    prepare(*files, source="sslpdl", say=lambda text: None, progress=False)
    return folder


# ------------------------------------------------------------------ predict


def test_result_is_complete_and_deterministic(checkpoint):
    ds = predict(forecast(2), checkpoint.path)
    sizes = dict(time=2, lead_time=2, threshold=2, y=8, x=4)
    assert dict(ds.sizes) == sizes | {"class": 3}
    assert np.allclose(ds["probability"].sum("class"), 1, atol=1e-5)
    assert ds["probability"].dtype == np.float32 and ds["rain_class"].dtype == np.int8
    assert lambert_from_cf(ds) == TARGET and np.allclose(ds["longitude"], TARGET.lonlat()[0])
    assert "SIMULATED" in ds.attrs["comment"] and ds.attrs["seed"] == 7
    assert json.loads(ds.attrs["config"])["name"] == "small"
    assert ds["valid_time"].values[1, 0] == np.datetime64("2000-06-03T01")
    over = ds["exceedance"].values
    assert np.allclose(over[:, :, 0], 1 - ds["probability"].values[:, :, 0], atol=1e-6)
    assert (over[:, :, 1] <= over[:, :, 0]).all()
    assert np.array_equal(ds["rain_class"] == 2, over[:, :, 1] >= 0.2)
    assert ds["exceedance"].sel(threshold=0.1).shape == (2, 2, 8, 4)
    assert all("units" in ds[n].attrs or n == "rain_class" for n in ds.data_vars if n != "crs")
    assert "observed_rain" not in ds  # nobody observed it yet
    assert predict(forecast(2), checkpoint.path)["probability"].equals(ds["probability"])


def test_order_of_variables_and_dimensions_does_not_matter(checkpoint):
    nwp = forecast()
    other = nwp[[*reversed(VARIABLE_NAMES), "crs"]].transpose("x", "lead_time", "y", "time")
    a, b = (predict(ds, checkpoint.path)["probability"] for ds in (nwp, other))
    assert a.equals(b)


def test_lead_times_of_minutes(checkpoint):
    nwp = forecast(leads=(1, 2))
    nwp = nwp.assign_coords(lead_time=nwp["lead_time"] / 3)  # 20 and 40 minutes
    ds = predict(nwp, checkpoint.path)
    assert ds["lead_time"].values.tolist() == nwp["lead_time"].values.tolist()


def test_files_together_equal_one_file(checkpoint, tmp_path):
    nwp = forecast(2)
    whole = predict(write(nwp, tmp_path / "all.nc"), checkpoint.path)
    days = [write(nwp.isel(time=[k]), tmp_path / f"day{k}.nc") for k in (1, 0)]
    assert predict(days, checkpoint.path)["probability"].equals(whole["probability"])
    leads = [write(nwp.isel(time=[0], lead_time=[k]), tmp_path / f"lead{k}.nc") for k in (1, 0)]
    first_day = whole["probability"].isel(time=[0])
    assert predict(leads, checkpoint.path)["probability"].equals(first_day)
    for wrong in ([days[0], days[0]], [days[0], leads[0]], []):
        with pytest.raises(DataError):
            predict(wrong, checkpoint.path)
    coarse = subgrid(NWP_GRID, slice(60, 414, 24), slice(48, 252, 24))
    other = write(forecast(1, grid=coarse), tmp_path / "coarse.nc")
    with pytest.raises(GridError, match="grids"):
        predict([days[0], other], checkpoint.path)


def test_pixels_outside_the_forecast_are_unknown(checkpoint):
    ds = predict(forecast().isel(x=slice(0, 8)), checkpoint.path)
    gone = ds["probability"].isnull().all("class").values
    assert 0 < gone.mean() < 0.5
    classes = ds["rain_class"].values
    assert (classes[gone] == -1).all() and (classes[~gone] >= 0).all()
    assert np.isnan(ds["exceedance"].values[:, :, 0][gone]).all()
    assert ds.attrs["missing_input_values"] > 0


def test_one_missing_variable_in_some_pixels_is_filled_and_counted(checkpoint):
    nwp = forecast()
    nwp["t850"][..., :5, :] = np.nan
    ds = predict(nwp, checkpoint.path)
    assert ds["probability"].notnull().all() and ds.attrs["missing_input_values"] > 0


def test_input_out_of_distribution_is_marked(checkpoint):
    nwp = forecast()
    nwp["t2m"] = nwp["t2m"] + 6
    assert "t2m +6" in predict(nwp, checkpoint.path).attrs["out_of_distribution"]
    assert predict(forecast(), checkpoint.path).attrs["out_of_distribution"] == "none"


def test_own_climatology_removes_a_foreign_climate_but_not_the_rain(checkpoint):
    nwp = forecast(2)
    far = nwp.assign(
        t2m=(3 * nwp["t2m"] - 540).assign_attrs(nwp["t2m"].attrs),
        gh500=(nwp["gh500"] + 90).assign_attrs(nwp["gh500"].attrs),
    )
    wetter = nwp.assign(rain=(nwp["rain"] * 5).assign_attrs(nwp["rain"].attrs))

    def result(ds, climatology):
        return predict(ds, checkpoint.path, climatology=climatology)

    def change(ds, climatology):
        a, b = (result(d, climatology)["probability"] for d in (ds, nwp))
        return float(np.abs(a - b).max())

    own = change(far, "own")
    assert own < 1e-4 and change(far, "training") > 10 * own and change(wetter, "own") > 10 * own
    assert result(nwp, "own").attrs["normalised_by"] == "own climatology"
    with pytest.raises(DataError, match="training.*own"):
        result(nwp, "someone's")


# ------------------------------------------------------------------ stores


def test_a_store_gives_what_its_files_give(checkpoint, archive):
    from_file = predict(archive / "nwp.nc", checkpoint.path)
    path = archive / "store.zarr"
    ds = predict(path, checkpoint.path)
    assert ds.sizes == from_file.sizes and ds["valid_time"].equals(from_file["valid_time"])
    there = np.ones((3, 2), bool)
    there[2, 1] = False  # of this hour there is no observation, and so no sample
    for name in ("probability", "exceedance", "forecast_rain"):
        a, b = ds[name].values, from_file[name].values
        assert np.allclose(a[there], b[there], atol=1e-5) and np.isnan(a[~there]).all()
    assert (ds["rain_class"].values[~there] == -1).all()
    rain = xr.open_dataset(archive / "qpe.nc")["rain"].values
    assert np.allclose(ds["observed_rain"].values[there], rain)
    assert predict(open_store(path, memory=1), checkpoint.path)["probability"].equals(
        ds["probability"]
    )
    assert predict([str(path)], checkpoint.path)["probability"].equals(ds["probability"])


def test_a_store_as_netcdf_and_some_of_its_samples(checkpoint, archive, tmp_path):
    whole = predict(archive / "store.zarr", checkpoint.path)
    samples = open_store(archive / "store.zarr")
    samples.drop_vars(["day", "variable"]).to_netcdf(tmp_path / "store.nc")
    assert predict(tmp_path / "store.nc", checkpoint.path)["probability"].equals(
        whole["probability"]
    )
    one = predict(samples.isel(sample=[2]), checkpoint.path)
    assert one.sizes["time"] == one.sizes["lead_time"] == 1
    assert np.allclose(one["probability"][0, 0], whole["probability"][1, 0], atol=1e-6)


def test_a_larger_store_is_cut_to_the_image(checkpoint, archive):
    samples = open_store(archive / "store.zarr")
    checkpoint.meta["config"] = get_config("small", image_size=(4, 4))
    ds = predict(samples, checkpoint.path)
    assert ds.sizes["y"] == 4 and lambert_from_cf(ds).y0 == TARGET.y0 + 2 * TARGET.dx
    own = predict(samples, checkpoint.path, climatology="own")
    assert own.attrs["normalised_by"] == "own climatology"


def test_stores_that_do_not_fit(checkpoint, archive, tmp_path):
    samples = open_store(archive / "store.zarr")
    with pytest.raises(GridError, match="only forecasts can be moved"):
        predict(samples, checkpoint.path, grid=LambertGrid(4, 8, 15e3, 0.0, 0.0))
    assert predict(samples, checkpoint.path, grid=TARGET).sizes["y"] == 8
    with pytest.raises(DataError, match="the same pair twice"):
        predict(samples.isel(sample=[0, 1, 1]), checkpoint.path)
    with pytest.raises(DataError, match="variable rain"):
        predict(samples.drop_vars("rain"), checkpoint.path)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="empty.zarr"):
        predict(tmp_path / "empty.zarr", checkpoint.path)
    checkpoint.meta["config"] = get_config("small", image_size=(16, 8), patch_size=4)
    with pytest.raises(DataError, match="at least 16 x 8"):
        predict(samples, checkpoint.path)


# ------------------------------------------------------------------ what is refused


def with_field(name, change):
    return lambda d: d.assign({name: change(d[name])})


REFUSED = {
    "missing variable": (lambda d: d.drop_vars("slp"), DataError, "slp"),
    "unit": (with_field("t2m", lambda f: f.assign_attrs(units="furlong")), DataError, "furlong"),
    "no unit": (with_field("u10", lambda f: f.drop_attrs()), DataError, "no units"),
    "all missing": (with_field("rh850", lambda f: f * np.nan), DataError, "missing"),
    "one lead time missing": (
        with_field("rh850", lambda f: f.where(f["lead_time"] < np.timedelta64(26, "h"))),
        DataError,
        "27 h",
    ),
    "impossible values": (with_field("t2m", lambda f: f + 5000), DataError, "t2m"),
    "infinite": (with_field("t2m", lambda f: f + np.inf), DataError, "t2m"),
    "elsewhere": (
        lambda d: d.assign_coords(x=d["x"] + 3e6).drop_vars(["latitude", "longitude"]),
        GridError,
        "half of the model's grid",
    ),
    "no projection": (lambda d: d.drop_vars("crs"), GridError, "crs"),
    "one pixel": (lambda d: d.isel(x=[0], y=[0]), GridError, None),
    "no lead time": (lambda d: d.isel(lead_time=0), DataError, None),
    "text": (with_field("t2m", lambda f: f.astype(str)), DataError, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(checkpoint, case):
    spoil, kind, word = REFUSED[case]
    with pytest.raises(kind, match=word):
        predict(spoil(forecast()), checkpoint.path)


def test_files_that_are_damaged_or_foreign(checkpoint, tmp_path):
    whole = write(forecast(), tmp_path / "nwp.nc").read_bytes()
    contents = {
        "cut.nc": whole[: len(whole) // 2],
        "empty.nc": b"",
        "text.nc": b"hello",
        "grib.nc": b"GRIB" + bytes(50),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for files in (tmp_path / name, [tmp_path / "nwp.nc", tmp_path / name]):
            with pytest.raises(DataError, match=name if files == tmp_path / name else None):
                predict(files, checkpoint.path)
    with pytest.raises(DataError, match="none.nc"):
        predict(tmp_path / "none.nc", checkpoint.path)


def test_checkpoints_that_do_not_fit(checkpoint):
    with pytest.raises(GridError, match=r"\(10, 10\)"):
        predict(forecast(), checkpoint.path, grid=LambertGrid(10, 10, 15e3, 0.0, 0.0))
    checkpoint.meta["probability_thresholds"] = (0.5,)
    with pytest.raises(CheckpointError, match="probability thresholds"):
        predict(forecast(), checkpoint.path)
    checkpoint.meta["variable_names"] = list(VARIABLE_NAMES[::-1])
    with pytest.raises(CheckpointError, match="variables"):
        predict(forecast(), checkpoint.path)


@pytest.fixture(scope="module", params=sorted(KINDS))
def untrained(request, tmp_path_factory):
    "A real checkpoint file of each kind of model, never trained."
    config = get_config("small", image_size=(64, 32))
    grid = subgrid(QPE_GRID, slice(30, 222, 3), slice(26, 122, 3))
    train = xr.Dataset(coords=dict(lead_time=("sample", [25.0])), attrs=dict(source="simulated"))
    mean = tuple(float(typical(n)) + 0.5 for n in VARIABLE_NAMES)
    standardizer = Standardizer(mean, (1.0,) * 16)
    splits = SimpleNamespace(samples=dict(train=train), standardizer=standardizer, grid=grid)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / f"{request.param}.safetensors"
    model = KINDS[request.param](config)
    more = dict(probability_thresholds=(0.3, 0.1), pretrained=False)
    save_model(path, model, config, splits, seed=3, **more)
    return path


def test_a_real_checkpoint(untrained):
    ds = predict(forecast(), untrained)
    assert ds["probability"].shape == (1, 2, 3, 64, 32)
    assert np.allclose(ds["probability"].sum("class"), 1, atol=1e-5)
    source = ds.attrs["source"]
    assert ds.attrs["seed"] == 3 and "not pre-trained" in source and untrained.name in source
    assert predict(forecast(), untrained)["probability"].equals(ds["probability"])


def test_a_damaged_checkpoint(untrained, tmp_path):
    content = untrained.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "short": content[:20],
        "empty": b"",
        "text": b"hello" * 100,
    }
    for name, bad in damaged.items():
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match=name):
            predict(forecast(), tmp_path / name)
    save_file({"w": torch.ones(2)}, tmp_path / "foreign")
    for name in ("foreign", "nothing_there"):
        with pytest.raises(CheckpointError, match=name):
            predict(forecast(), tmp_path / name)


# ------------------------------------------------------------------ files and figures


def test_round_trip_and_nothing_half_written(checkpoint, archive, tmp_path, monkeypatch):
    ds = predict(archive / "store.zarr", checkpoint.path)
    path = write_rainmap(ds, tmp_path / "deep" / "rain.nc")
    with xr.open_dataset(path, decode_timedelta=True) as again:
        for name in ds.variables:
            assert again[name].equals(ds[name]), name
        assert lambert_from_cf(again) == TARGET
        assert again["rain_class"].attrs["flag_meanings"].split()[-1] == "heavy_rain"
    before = path.read_bytes()

    def fails(self, path, **options):
        Path(path).write_text("half")
        raise ZeroDivisionError

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fails)
    with pytest.raises(ZeroDivisionError):
        write_rainmap(ds, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["rain.nc"]


def test_observation_finds_its_time_and_place(checkpoint):
    ds = predict(forecast(2), checkpoint.path)
    when = ds["valid_time"].values
    qpe = observation(when)
    assert np.array_equal(observed_on(qpe, TARGET, when), qpe["rain"].values)
    fine = observation(when, subgrid(QPE_GRID, slice(30, 222, 12), slice(26, 122, 12)))
    moved = observed_on(fine, TARGET, when)
    assert set(np.unique(moved[np.isfinite(moved)])) <= set(fine["rain"].values.ravel())
    assert np.isnan(observed_on(qpe, TARGET, [np.datetime64("1999-01-01", "ns")])).all()


def titles(fig):
    return [ax.get_title() for ax in fig.axes if ax.get_title()]


def test_figure(checkpoint):
    import matplotlib.pyplot as plt

    ds = predict(forecast(2), checkpoint.path)
    fig = rainmap(ds, observation(ds["valid_time"].values))
    assert titles(fig) == ["forecast", "observed", "P(≥ 0.1 mm/h)", "P(≥ 10 mm/h)"]
    assert len(fig.axes) == 2 * 4 + 2
    assert len(rainmap(ds, leads=[0]).axes) == 3 + 2
    fig.canvas.draw()
    nothing = ds.assign(exceedance=ds["exceedance"] * 0, forecast_rain=ds["forecast_rain"] * np.nan)
    rainmap(nothing).canvas.draw()
    plt.close("all")


def test_figure_of_a_store(checkpoint, archive):
    import matplotlib.pyplot as plt

    ds = predict(archive / "store.zarr", checkpoint.path)
    fig = rainmap(ds, time=0)
    assert "observed" in titles(fig) and len(fig.axes) == 2 * 4 + 2
    assert len(rainmap(ds).axes) == 1 * 4 + 2  # of the last forecast one sample is missing
    rainmap(ds, leads=[0, 1]).canvas.draw()
    with pytest.raises(DataError, match="at least one"):
        rainmap(ds.assign(exceedance=ds["exceedance"] * np.nan))
    plt.close("all")


# ------------------------------------------------------------------ a real forecast


def test_map_from_raw_files(checkpoint):
    folder = real("wrf-stage2-2005")
    us = central_us((64, 32))
    checkpoint.meta["config"] = get_config("small")
    ds = predict(sorted((folder / "wrf").iterdir()), checkpoint.path, grid=us, source="wrf")
    assert ds["probability"].notnull().all() and ds["probability"].shape == (1, 5, 3, 64, 32)
    assert "hypsometric" in ds.attrs["input_note"]
    wrf, stage2 = open_nwp(folder / "wrf", "wrf"), open_qpe(folder / "stage2", accumulation=3.0)
    assert 0 < float(ds["forecast_rain"].max()) <= float(wrf["rain"].max())
    observed = observed_on(stage2, us, ds["valid_time"].values)
    assert np.isfinite(observed).mean() > 0.5
    assert np.nanmax(observed) <= float(stage2["rain"].max())
