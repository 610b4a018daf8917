"From files to maps: what `predict` answers, what it refuses, what it writes."

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from safetensors.torch import save_file

from sslpdl_nb import predict as rainmap
from sslpdl_nb.grids.types import NWP_GRID, QPE_GRID, LambertGrid, cf_attributes, subgrid
from sslpdl_nb.core import (
    VARIABLES,
    VARIABLE_NAMES,
    CheckpointError,
    DataError,
    GridError,
    environment,
    get_config,
)
from sslpdl_nb.store import Standardizer
from sslpdl_nb.io.nwp import open_nwp
from sslpdl_nb.io.qpe import open_qpe
from sslpdl_nb.finetune import KINDS, save_model
from sslpdl_nb.grids.types import lambert_from_cf
from sslpdl_nb.io.samples import find_real

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


def typical(name):
    return TYPICAL.get(name, TYPICAL.get(name.rstrip("0123456789m"), 0))


def forecast(starts=1, leads=(25, 27), grid=SOURCE, seed=0):
    "A small forecast in the form of `data.open_nwp`'s files."
    rng = np.random.default_rng(seed)
    time = np.datetime64("2000-06-01", "ns") + np.arange(starts) * np.timedelta64(1, "D")
    lon, lat = grid.lonlat()
    dims, shape = ("time", "lead_time", "y", "x"), (starts, len(leads), *grid.shape)
    fields = {
        v.name: (
            dims,
            (typical(v.name) + rng.random(shape)).astype(np.float32),
            dict(units=v.units),
        )
        for v in VARIABLES
    }
    return xr.Dataset(
        fields | {"crs": ((), 0, cf_attributes(grid))},
        dict(
            time=time,
            lead_time=np.array(leads, "timedelta64[h]").astype("timedelta64[ns]"),
            y=grid.y,
            x=grid.x,
            latitude=(("y", "x"), lat),
            longitude=(("y", "x"), lon),
        ),
    )


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    "A model that weighs the standardised variables, each differently; the file itself is only a name."
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
        thresholds=(0.4, 0.2),
        source="simulated, seed 0",
        lead_times=[25.0, 27.0],
    )

    def probabilities(model, dataset):
        score = np.einsum("nvyx,v->nyx", dataset.x.numpy(), np.linspace(0.1, 1, 16))
        p = np.exp(np.stack([np.zeros_like(score), score, 2 * score - 2], 1).clip(-20, 20))
        return (p / p.sum(1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(rainmap, "load_model", lambda path: (SimpleNamespace(), meta))
    monkeypatch.setattr(rainmap, "predict_probabilities", probabilities)
    return SimpleNamespace(path=tmp_path / "model.safetensors", meta=meta)


def write(ds, path):
    ds.to_netcdf(path, encoding=dict(lead_time=dict(units="hours", dtype="float64")))
    return path


# ------------------------------------------------------------------ predict


def test_result_is_complete_and_deterministic(checkpoint):
    ds = rainmap.predict(forecast(2), checkpoint.path)
    assert dict(ds.sizes) == dict(time=2, lead_time=2, **{"class": 3}, threshold=2, y=8, x=4)
    assert np.allclose(ds["probability"].sum("class"), 1, atol=1e-5)
    assert ds["probability"].dtype == np.float32 and ds["rain_class"].dtype == np.int8
    assert lambert_from_cf(ds) == TARGET and np.allclose(ds["longitude"], TARGET.lonlat()[0])
    assert (
        "SIMULATED" in ds.attrs["comment"]
        and ds.attrs["seed"] == 7
        and json.loads(ds.attrs["config"])["name"] == "small"
    )
    assert ds["valid_time"].values[1, 0] == np.datetime64("2000-06-03T01")
    over = ds["exceedance"].values
    assert (
        np.allclose(over[:, :, 0], 1 - ds["probability"].values[:, :, 0], atol=1e-6)
        and (over[:, :, 1] <= over[:, :, 0]).all()
    )
    assert np.array_equal(ds["rain_class"] == 2, over[:, :, 1] >= 0.2) and ds["exceedance"].sel(
        threshold=0.1
    ).shape == (2, 2, 8, 4)
    assert all("units" in ds[n].attrs or n == "rain_class" for n in ds.data_vars if n != "crs")
    assert rainmap.predict(forecast(2), checkpoint.path)["probability"].equals(ds["probability"])


def test_order_of_variables_and_dimensions_does_not_matter(checkpoint):
    nwp = forecast()
    other = nwp[[*reversed(VARIABLE_NAMES), "crs"]].transpose("x", "lead_time", "y", "time")
    assert rainmap.predict(other, checkpoint.path)["probability"].equals(
        rainmap.predict(nwp, checkpoint.path)["probability"]
    )


def test_files_together_equal_one_file(checkpoint, tmp_path):
    nwp = forecast(2)
    whole = rainmap.predict(write(nwp, tmp_path / "all.nc"), checkpoint.path)
    starts = [write(nwp.isel(time=[k]), tmp_path / f"start{k}.nc") for k in (1, 0)]
    assert rainmap.predict(starts, checkpoint.path)["probability"].equals(whole["probability"])
    leads = [write(nwp.isel(time=[0], lead_time=[k]), tmp_path / f"lead{k}.nc") for k in (1, 0)]
    assert rainmap.predict(leads, checkpoint.path)["probability"].equals(
        whole["probability"].isel(time=[0])
    )
    for wrong in ([starts[0], starts[0]], [starts[0], leads[0]], []):
        with pytest.raises(DataError):
            rainmap.predict(wrong, checkpoint.path)
    far = write(
        forecast(1, grid=subgrid(NWP_GRID, slice(60, 414, 24), slice(48, 252, 24))),
        tmp_path / "far.nc",
    )
    with pytest.raises(GridError, match="grids"):
        rainmap.predict([starts[0], far], checkpoint.path)


def test_pixels_outside_the_forecast_are_unknown(checkpoint):
    ds = rainmap.predict(forecast().isel(x=slice(0, 8)), checkpoint.path)
    gone = ds["probability"].isnull().all("class")
    assert 0 < float(gone.mean()) < 0.5
    assert (ds["rain_class"].values[gone.values] == -1).all() and (
        ds["rain_class"].values[~gone.values] >= 0
    ).all()
    assert (
        np.isnan(ds["exceedance"].values[:, :, 0][gone.values]).all()
        and ds.attrs["missing_input_values"] > 0
    )


def test_one_missing_variable_in_some_pixels_is_filled_and_counted(checkpoint):
    nwp = forecast()
    nwp["t850"][..., :5, :] = np.nan
    ds = rainmap.predict(nwp, checkpoint.path)
    assert ds["probability"].notnull().all() and ds.attrs["missing_input_values"] > 0


def test_a_strange_forecast_is_marked(checkpoint):
    nwp = forecast()
    nwp["t2m"] = nwp["t2m"] + 6
    assert "t2m +6" in rainmap.predict(nwp, checkpoint.path).attrs["unusual_input"]
    assert rainmap.predict(forecast(), checkpoint.path).attrs["unusual_input"] == "none"


def test_own_statistics_remove_a_foreign_climate_but_not_the_rain(checkpoint):
    nwp = forecast(2)
    far = nwp.assign(
        t2m=(3 * nwp["t2m"] - 540).assign_attrs(nwp["t2m"].attrs),
        gh500=(nwp["gh500"] + 90).assign_attrs(nwp["gh500"].attrs),
    )
    wetter = nwp.assign(rain=(nwp["rain"] * 5).assign_attrs(nwp["rain"].attrs))

    def result(ds, how):
        return rainmap.predict(ds, checkpoint.path, statistics=how)

    def change(ds, how):
        return float(np.abs(result(ds, how)["probability"] - result(nwp, how)["probability"]).max())

    own = change(far, "own")
    assert own < 1e-4 and change(far, "training") > 10 * own and change(wetter, "own") > 10 * own
    assert result(nwp, "own").attrs["input_statistics"] == "own"
    with pytest.raises(DataError, match="training.*own"):
        result(nwp, "guess")


def change(nwp, name, **how):
    return nwp.assign({name: how["field"](nwp[name])})


REFUSED = {
    "missing variable": (lambda d: d.drop_vars("slp"), DataError, "slp"),
    "unit": (
        lambda d: change(d, "t2m", field=lambda f: f.assign_attrs(units="furlong")),
        DataError,
        "furlong",
    ),
    "no unit": (lambda d: change(d, "u10", field=lambda f: f.drop_attrs()), DataError, "no units"),
    "all missing": (lambda d: change(d, "rh850", field=lambda f: f * np.nan), DataError, "missing"),
    "one lead time missing": (
        lambda d: change(
            d, "rh850", field=lambda f: f.where(f["lead_time"] < np.timedelta64(26, "h"))
        ),
        DataError,
        "27 h",
    ),
    "impossible values": (lambda d: change(d, "t2m", field=lambda f: f + 5000), DataError, "t2m"),
    "infinite": (lambda d: change(d, "t2m", field=lambda f: f + np.inf), DataError, "t2m"),
    "elsewhere": (
        lambda d: d.assign_coords(x=d["x"] + 3e6).drop_vars(["latitude", "longitude"]),
        GridError,
        "half of the model's map",
    ),
    "no projection": (lambda d: d.drop_vars("crs"), GridError, "crs"),
    "one pixel": (lambda d: d.isel(x=[0], y=[0]), GridError, None),
    "no lead time": (lambda d: d.isel(lead_time=0), DataError, None),
    "text": (lambda d: change(d, "t2m", field=lambda f: f.astype(str)), DataError, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(checkpoint, case):
    spoil, kind, word = REFUSED[case]
    with pytest.raises(kind, match=word):
        rainmap.predict(spoil(forecast()), checkpoint.path)


def test_files_that_are_damaged_or_foreign(checkpoint, tmp_path):
    whole = write(forecast(), tmp_path / "nwp.nc").read_bytes()
    for name, content in {
        "cut.nc": whole[: len(whole) // 2],
        "empty.nc": b"",
        "text.nc": b"hello",
        "grib.nc": b"GRIB" + bytes(50),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            rainmap.predict(tmp_path / name, checkpoint.path)
    with pytest.raises(DataError, match="none.nc"):
        rainmap.predict(tmp_path / "none.nc", checkpoint.path)


def test_checkpoints_that_do_not_fit(checkpoint):
    with pytest.raises(GridError, match=r"\(10, 10\)"):
        rainmap.predict(forecast(), checkpoint.path, grid=LambertGrid(10, 10, 15e3, 0.0, 0.0))
    checkpoint.meta["thresholds"] = (0.5,)
    with pytest.raises(CheckpointError, match="cuts"):
        rainmap.predict(forecast(), checkpoint.path)
    checkpoint.meta["variable_names"] = list(VARIABLE_NAMES[::-1])
    with pytest.raises(CheckpointError, match="variables"):
        rainmap.predict(forecast(), checkpoint.path)


@pytest.fixture(scope="module", params=sorted(KINDS))
def untrained(request, tmp_path_factory):
    "A real checkpoint file of each kind of model, never trained."
    config = get_config("small", image_size=(64, 32))
    grid = subgrid(QPE_GRID, slice(30, 222, 3), slice(26, 122, 3))
    train = xr.Dataset(coords=dict(lead_time=("sample", [25.0])), attrs=dict(source="simulated"))
    mean = tuple(float(typical(n)) + 0.5 for n in VARIABLE_NAMES)
    splits = SimpleNamespace(
        samples=dict(train=train), standardizer=Standardizer(mean, (1.0,) * 16), grid=grid
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / f"{request.param}.safetensors"
    save_model(
        path,
        KINDS[request.param](config),
        config,
        splits,
        3,
        thresholds=(0.3, 0.1),
        pretrained=False,
    )
    return path


def test_a_real_checkpoint(untrained):
    ds = rainmap.predict(forecast(), untrained)
    assert ds["probability"].shape == (1, 2, 3, 64, 32) and np.allclose(
        ds["probability"].sum("class"), 1, atol=1e-5
    )
    assert (
        ds.attrs["seed"] == 3
        and "not pre-trained" in ds.attrs["source"]
        and untrained.name in ds.attrs["source"]
    )
    assert rainmap.predict(forecast(), untrained)["probability"].equals(ds["probability"])


def test_a_damaged_checkpoint(untrained, tmp_path):
    content = untrained.read_bytes()
    for name, bad in {
        "cut": content[: len(content) // 2],
        "short": content[:20],
        "empty": b"",
        "text": b"hello" * 100,
    }.items():
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match=name):
            rainmap.predict(forecast(), tmp_path / name)
    save_file({"w": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="foreign"):
        rainmap.predict(forecast(), tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="nothing_there"):
        rainmap.predict(forecast(), tmp_path / "nothing_there")


# ------------------------------------------------------------------ files and figures


def test_round_trip_and_nothing_half_written(checkpoint, tmp_path, monkeypatch):
    ds = rainmap.predict(forecast(2), checkpoint.path)
    path = rainmap.write_rainmap(ds, tmp_path / "deep" / "rain.nc")
    with xr.open_dataset(path, decode_timedelta=True) as again:
        for name in (
            "probability",
            "exceedance",
            "rain_class",
            "valid_time",
            "time",
            "lead_time",
            "class",
            "threshold",
        ):
            assert again[name].equals(ds[name]), name
        assert (
            lambert_from_cf(again) == TARGET
            and again["rain_class"].attrs["flag_meanings"].split()[-1] == "heavy_rain"
        )
    before = path.read_bytes()
    monkeypatch.setattr(
        xr.Dataset, "to_netcdf", lambda self, p, **k: (Path(p).write_text("half"), 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        rainmap.write_rainmap(ds, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["rain.nc"]


def observation(ds, grid=TARGET):
    lon, lat = grid.lonlat()
    when = np.unique(ds["valid_time"].values)
    rain = np.arange(when.size * grid.nx * grid.ny, dtype=np.float32).reshape(
        when.size, *grid.shape
    )
    return xr.Dataset(
        {
            "rain": (("time", "y", "x"), rain, dict(units="mm h-1")),
            "crs": ((), 0, cf_attributes(grid)),
        },
        dict(
            time=when, y=grid.y, x=grid.x, latitude=(("y", "x"), lat), longitude=(("y", "x"), lon)
        ),
    )


def test_observation_finds_its_time_and_place(checkpoint):
    ds = rainmap.predict(forecast(2), checkpoint.path)
    qpe = observation(ds)
    seen = rainmap.observed_on(qpe, TARGET, ds["valid_time"].values)
    assert np.array_equal(seen, qpe["rain"].values)
    fine = subgrid(QPE_GRID, slice(30, 222, 12), slice(26, 122, 12))
    moved = rainmap.observed_on(observation(ds, fine), TARGET, ds["valid_time"].values)
    assert set(np.unique(moved[np.isfinite(moved)])) <= set(
        observation(ds, fine)["rain"].values.ravel()
    )
    assert np.isnan(rainmap.observed_on(qpe, TARGET, [np.datetime64("1999-01-01", "ns")])).all()


def test_figure(checkpoint):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ds = rainmap.predict(forecast(2), checkpoint.path)
    fig = rainmap.rainmap(ds, observation(ds))
    titles = [ax.get_title() for ax in fig.axes]
    assert (
        titles[:4] == ["forecast", "observed", "P(≥ 0.1 mm/h)", "P(≥ 10 mm/h)"]
        and len(fig.axes) == 2 * 4 + 2
    )
    assert len(rainmap.rainmap(ds, leads=[0]).axes) == 3 + 2
    fig.canvas.draw()
    nothing = ds.assign(exceedance=ds["exceedance"] * 0, forecast_rain=ds["forecast_rain"] * np.nan)
    rainmap.rainmap(nothing).canvas.draw()
    plt.close("all")


# ------------------------------------------------------------------ the command


def test_command_predicts_and_draws(checkpoint, tmp_path, capsys):
    nwp = write(forecast(), tmp_path / "nwp.nc")
    arguments = [
        "predict",
        str(nwp),
        "--checkpoint",
        str(checkpoint.path),
        "--out",
        str(tmp_path / "rain.nc"),
        "--map",
        str(tmp_path / "rain.png"),
    ]
    assert rainmap.main(arguments) == 0
    assert "8 x 4" in capsys.readouterr().out
    assert (tmp_path / "rain.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "rain.nc"
    ).exists()


def test_command_says_what_is_wrong_in_one_line(checkpoint, tmp_path, capsys):
    out = tmp_path / "rain.nc"
    assert (
        rainmap.main(["predict", str(tmp_path / "none.nc"), "--checkpoint", "c", "--out", str(out)])
        == 2
    )
    err = capsys.readouterr().err
    assert (
        err.startswith("sslpdl: ")
        and "none.nc" in err
        and len(err.splitlines()) == 1
        and not out.exists()
    )
    nwp = write(forecast(), tmp_path / "nwp.nc")
    assert (
        rainmap.main(
            ["predict", str(nwp), "--checkpoint", "c", "--out", str(nwp / "below" / "rain.nc")]
        )
        == 2
    )
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit) as stop:
        rainmap.main(["predict"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "options, words",
    [
        (["--observed", "none.nc"], "--map FILE.png, which they belong to"),
        (["--leads", "25"], "--map FILE.png, which they belong to"),
        (["--map", "rain.foo"], "a file name that ends in one of"),
        (["--where", "nowhere.nc"], "checkpoint, central-us or a NetCDF file"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    checkpoint, tmp_path, capsys, options, words
):
    nwp, out = write(forecast(), tmp_path / "nwp.nc"), tmp_path / "rain.nc"
    assert (
        rainmap.main(
            ["predict", str(nwp), "--checkpoint", str(checkpoint.path), "--out", str(out), *options]
        )
        == 2
    )
    assert words in capsys.readouterr().err and not out.exists()


def test_map_of_a_file_and_lead_times_outside_the_training(checkpoint, tmp_path, capsys):
    nwp, out = write(forecast(leads=(25, 90)), tmp_path / "nwp.nc"), tmp_path / "rain.nc"
    checkpoint.meta["lead_times"] = [24.0, 30.0]
    arguments = ["predict", str(nwp), "--checkpoint", str(checkpoint.path), "--out", str(out)]
    assert (
        rainmap.main(arguments) == 0
        and "lead times 90 h lie outside those of the training, 24 to 30 h"
        in capsys.readouterr().out
    )
    assert rainmap.main([*arguments[:-1], str(tmp_path / "again.nc"), "--where", str(out)]) == 0
    with xr.open_dataset(out) as a, xr.open_dataset(tmp_path / "again.nc") as b:
        assert a.probability.equals(b.probability)


def test_command_hands_simulation_to_the_laboratory(monkeypatch, tmp_path):
    archive = pytest.importorskip("sslpdl_nb.simulate.archive")
    seen = []
    monkeypatch.setattr(archive, "simulate", lambda *a, **more: seen.append(a))
    assert rainmap.main(["simulate", "--size", "tiny", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert seen == [("tiny", str(tmp_path), 3, "cpu")]


# ------------------------------------------------------------------ a real forecast

FOLDER = find_real("wrf-stage2-2005")
real = pytest.mark.skipif(
    FOLDER is None or not (FOLDER / "wrf").exists(),
    reason="no real files: set SSLPDL_DATA to the folder that holds wrf-stage2-2005",
)


@real
def test_map_from_raw_files(checkpoint):
    us = rainmap.central_us((64, 32))
    checkpoint.meta["config"] = get_config("small")
    ds = rainmap.predict(sorted((FOLDER / "wrf").iterdir()), checkpoint.path, grid=us, source="wrf")
    assert (
        ds["probability"].notnull().all()
        and ds["probability"].shape == (1, 5, 3, 64, 32)
        and "hypsometric" in ds.attrs["input_note"]
    )
    wrf, stage2 = open_nwp(FOLDER / "wrf", "wrf"), open_qpe(FOLDER / "stage2", hours=3.0)
    assert 0 < float(ds["forecast_rain"].max()) <= float(wrf["rain"].max())
    seen = rainmap.observed_on(stage2, us, ds["valid_time"].values)
    assert np.isfinite(seen).mean() > 0.5 and np.nanmax(seen) <= float(stage2["rain"].max())


@real
def test_command_from_raw_files(checkpoint, tmp_path, capsys):
    checkpoint.meta["config"] = get_config("small")
    arguments = [
        "predict",
        str(FOLDER / "wrf"),
        "--source",
        "wrf",
        "--where",
        "central-us",
        "--checkpoint",
        str(checkpoint.path),
        "--out",
        str(tmp_path / "r.nc"),
        "--map",
        str(tmp_path / "r.png"),
        "--observed",
        str(FOLDER / "stage2"),
        "--hours",
        "3",
    ]
    assert (
        rainmap.main(arguments) == 0
        and "64 x 32" in capsys.readouterr().out
        and (tmp_path / "r.png").stat().st_size > 10_000
    )

    def size():
        return Image.open(tmp_path / "r.png").size

    whole = size()
    assert (
        rainmap.main([*arguments, "--statistics", "own", "--leads", "21", "24"]) == 0
        and size()[1] < 0.6 * whole[1]
    )  # two rows, not five
    assert rainmap.main([*arguments, "--leads", "22"]) == 2 and "22" in capsys.readouterr().err


@real
def test_damaged_raw_files(checkpoint, tmp_path, capsys):
    (tmp_path / "cut.grib").write_bytes(
        sorted((FOLDER / "wrf").iterdir())[0].read_bytes()[:100_001]
    )
    assert (
        rainmap.main(
            [
                "predict",
                str(tmp_path / "cut.grib"),
                "--source",
                "wrf",
                "--checkpoint",
                "c",
                "--out",
                str(tmp_path / "r.nc"),
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert "cut.grib" in err and len(err.splitlines()) == 1 and not (tmp_path / "r.nc").exists()


def test_command_prepares(tmp_path, capsys):
    nwp = forecast(3)
    write(nwp, tmp_path / "nwp.nc")
    observation(
        nwp.assign(
            valid_time=(
                ("time", "lead_time"),
                nwp["time"].values[:, None] + nwp["lead_time"].values,
            )
        )
    ).to_netcdf(tmp_path / "qpe.nc")
    arguments = [
        "prepare",
        "--nwp",
        str(tmp_path / "nwp.nc"),
        "--qpe",
        str(tmp_path / "qpe.nc"),
        "--source",
        "sslpdl",
        "--out",
        str(tmp_path / "s.zarr"),
    ]
    assert rainmap.main(arguments) == 0 and "6 samples from 3 runs" in capsys.readouterr().out
    assert (
        rainmap.main([*arguments, "--min-valid", "0.5"]) == 2
        and "--fresh" in capsys.readouterr().err
    )
    assert rainmap.main([*arguments, "--min-valid", "0.5", "--fresh"]) == 0
