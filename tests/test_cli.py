"The command: six steps from data to a map, one line and exit code 2 for what is wrong."

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from real import real
from small_archive import TARGET, forecast, observation, valid_times, write
from study_files import write_store, write_study

from sslpdl_nb import predict as prediction
from sslpdl_nb.cli import _predictions, _source, central_us, main, parser
from sslpdl_nb.core import VARIABLE_NAMES, DataError, get_config
from sslpdl_nb.simulate import archive
from sslpdl_nb.store import RainDataset, Standardizer, load_splits, open_store
from sslpdl_nb.verify import SCORES

COMMANDS = ("inspect", "simulate", "prepare", "pretrain", "finetune", "evaluate", "predict")
COMMANDS += ("nowcast", "experiment")
SHAPE = (32, 32)
SHORT = ["--set", "image_size=32,32", "pretrain_steps=2", "finetune_steps=2"]


def sslpdl(*words, code=0):
    "Run the command in a process of its own."
    command = [sys.executable, "-m", "sslpdl_nb.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stderr[-1500:]
    return done


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    "A simulated archive of 16 forecasts, with its store."
    grids = archive._window(3, *SHAPE, 6)
    toy = archive._size(32, 2, 2, (6, 12), grids=grids, atmospheres=1)
    folder = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(archive.SIZES, "toy", replace(toy, spinup=7))
        assert main(["simulate", "--size", "toy", "--out", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(simulated, tmp_path_factory):
    "Networks that were trained for two steps by the commands."
    folder = tmp_path_factory.mktemp("trained")
    store = simulated / "store.zarr"
    out = folder / "pretrained.safetensors"
    done = sslpdl("pretrain", store, *SHORT, "--out", out)
    assert done.stdout.splitlines()[-1] == str(out) and "step    2/2" in done.stdout
    tuned = folder / "finetuned.safetensors"
    done = sslpdl("finetune", simulated, "--init", out, "--quiet", "--out", tuned)
    assert done.stdout.strip() == str(tuned) and not done.stderr
    return SimpleNamespace(pretrained=out, finetuned=tuned)


def failure(capsys, *words):
    "The one line about what is wrong; the exit code is 2."
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if "%|" not in line]  # but for a progress bar
    assert len(lines) == 1 and lines[0].startswith("sslpdl: ")
    return lines[0]


# ------------------------------------------------------------------ the words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_can_be_typed(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    example = shlex.split(text.split("example:")[1].strip())
    assert example[:2] == ["sslpdl", name]
    assert parser().parse_args(example[1:]).command == name


def test_the_module_is_a_program():
    text = sslpdl("--help").stdout
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("words", [[], ["fly"], ["predict"], ["evaluate", "s", "--split", "x"]])
def test_words_that_are_no_command(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "usage: sslpdl" in capsys.readouterr().err


def test_an_interrupt_has_its_own_exit_code(monkeypatch, capsys, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "simulate", interrupted)
    assert main(["simulate", "--out", str(tmp_path)]) == 130
    assert "goes on" in capsys.readouterr().err


def test_a_defect_of_the_package_is_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setattr(archive, "simulate", lambda *a, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["simulate", "--out", str(tmp_path)])


# ------------------------------------------------------------------ studies


def test_a_study_from_file_to_table(tmp_path, capsys):
    write_store(tmp_path / "data" / "toy.nc")
    path = str(write_study(tmp_path, factors=dict(method=["raw", "share"], atmospheres=[2, 3])))
    assert main(["experiment", "status", path]) == 0
    assert capsys.readouterr().out.strip() == "trial: 4 cells, 4 missing"
    assert main(["experiment", "run", path, "--only", "method=raw", "atmospheres=3"]) == 0
    assert "trial: 1 cells, 1 finished" in capsys.readouterr().out
    assert main(["experiment", "run", path]) == 0
    assert main(["experiment", "table", path]) == 0
    assert "share" in capsys.readouterr().out
    assert (tmp_path / "experiments" / "results" / "trial.csv").exists()


def test_what_is_wrong_with_a_study(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "experiments/nothing.yaml" in failure(capsys, "experiment", "run", "nothing")
    path = write_study(tmp_path, factors=dict(method=["oracle"]))
    assert "found 'oracle'" in failure(capsys, "experiment", "run", "trial")
    path = write_study(tmp_path, factors=dict(method=["raw"]))
    assert "sslpdl simulate --size study" in failure(capsys, "experiment", "run", path)
    words = ("experiment", "run", path, "--only", "method")
    assert "--only: expected FIELD=VALUE" in failure(capsys, *words)
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------ threads


def libgomp_at_start(**settings):
    "What the OpenMP library of PyTorch says about its settings when a command starts."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "sslpdl_nb.cli", "--help"]
    options = dict(env=env | {"OMP_DISPLAY_ENV": "true"} | settings, text=True)
    return subprocess.run(command, capture_output=True, **options).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP library")
def test_waiting_threads_of_a_command_sleep():
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in libgomp_at_start()
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in libgomp_at_start(OMP_WAIT_POLICY="active")


def test_no_more_threads_than_usable_cores(monkeypatch, tmp_path):
    import torch

    from sslpdl_nb import cli

    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(
        archive, "simulate", lambda *a, **more: seen.append(torch.get_num_threads())
    )
    monkeypatch.setattr(cli, "usable_cores", lambda: 3)
    monkeypatch.setattr(cli, "Path", lambda path: tmp_path)
    words = ["simulate", "--out", str(tmp_path), "--no-store"]
    try:
        for threads, chosen in ((8, None), (2, None), (8, "8")):
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            if chosen:
                monkeypatch.setenv("OMP_NUM_THREADS", chosen)
            torch.set_num_threads(threads)
            assert main(words) == 0
    finally:
        torch.set_num_threads(before)
    assert seen == [3, 2, 8]


# ------------------------------------------------------------------ inspect


def test_inspect_says_what_files_are_and_what_comes_next(tmp_path, capsys):
    write(forecast(), tmp_path / "nwp.nc")
    (tmp_path / "broken.nc").write_bytes(b"no NetCDF")
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "forecast" in text and "16 of 16 variables" in text and "next: sslpdl prepare" in text
    assert "broken.nc: unreadable" in text
    assert main(["inspect", str(tmp_path / "broken.nc")]) == 2
    assert main(["inspect", str(tmp_path / "none.nc")]) == 2
    assert "nothing there" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path), "--most", "1"]) == 2  # the broken one is the first
    assert "the first 1 of 2 files" in capsys.readouterr().out


def test_an_error_about_variables_has_a_line_and_a_table(capsys, monkeypatch):
    def lacking(*_, **more):
        raise DataError("a.grib: variables: expected all,\nfound no t2m\n\ntable  of\n  lines")

    monkeypatch.setattr(prediction, "predict", lacking)
    assert main(["predict", "a.grib", "--checkpoint", "c", "--out", "o.nc"]) == 2
    told = capsys.readouterr().err
    assert told == "sslpdl: a.grib: variables: expected all, found no t2m\ntable  of\n  lines\n"


# ------------------------------------------------------------------ data


def test_simulate_hands_its_options_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(archive, "simulate", lambda *a, **more: calls.append((a, more)) or a[1])
    words = ["simulate", "--size", "tiny", "--out", str(tmp_path), "--seed", "3", "--no-store"]
    assert main([*words, "--members", "4", "--workers", "2"]) == 0
    assert calls == [(("tiny", str(tmp_path), 3, "cpu"), dict(members=4, workers=2))]


def test_simulate_makes_files_and_store(simulated):
    assert {"nwp.nc", "qpe.nc", "store.zarr"} == {p.name for p in simulated.iterdir()}
    samples = open_store(simulated / "store.zarr")
    assert samples.sizes["sample"] == 32 and "simulated" in samples.attrs["source"]


def test_simulate_refuses(capsys, tmp_path, simulated):
    assert "one of" in failure(capsys, "simulate", "--size", "huge", "--out", tmp_path)
    assert "exists" in failure(capsys, "simulate", "--size", "tiny", "--out", simulated)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Three days of forecasts and their rain as files in our own form."
    folder = tmp_path_factory.mktemp("files")
    nwp = forecast(3)
    write(nwp, folder / "nwp.nc")
    observation(valid_times(nwp)).to_netcdf(folder / "qpe.nc")
    return folder


def test_prepare(files, tmp_path, capsys):
    words = ["prepare", "--nwp", f"{files}/nwp.nc", "--qpe", f"{files}/qpe.nc"]
    words += ["--source", "sslpdl", "--out", f"{tmp_path}/s.zarr"]
    assert main(words) == 0 and "6 samples from 3 runs" in capsys.readouterr().out
    assert "--fresh" in failure(capsys, *words, "--min-valid", "0.5")
    assert main([*words, "--min-valid", "0.5", "--fresh"]) == 0
    assert open_store(tmp_path / "s.zarr").sizes["sample"] == 6
    words[2] = f"{files}/none.nc"
    assert "none.nc" in failure(capsys, *words)


def test_the_command_of_the_error_prepares_the_store(simulated, tmp_path):
    for name in ("nwp.nc", "qpe.nc"):
        shutil.copy(simulated / name, tmp_path / name)
    config = get_config("small", image_size=SHAPE)
    with pytest.raises(DataError) as refused:
        load_splits(tmp_path, config)
    command = re.search(r"prepare it by: sslpdl (.*)", str(refused.value))[1]
    assert main(shlex.split(command)) == 0
    a, b = (load_splits(folder, config) for folder in (tmp_path, simulated))
    assert all(a.samples[part]["rain"].equals(b.samples[part]["rain"]) for part in a.samples)


# ------------------------------------------------------------------ training and scores


def test_training_goes_from_store_to_checkpoint(trained):
    files = {path.name for path in trained.finetuned.parent.iterdir()}
    kinds = ("csv", "safetensors")
    assert files == {f"{name}.{kind}" for name in ("pretrained", "finetuned") for kind in kinds}
    model, meta = prediction.load_model(trained.finetuned)
    assert meta["config"].image_size == SHAPE and meta["config"].finetune_steps == 2
    assert meta["pretrained"] and "simulated" in meta["source"]


def test_evaluate_scores_network_and_forecast(trained, simulated, tmp_path):
    store, out = simulated / "store.zarr", tmp_path / "scores.json"
    words = ["evaluate", store, "--checkpoint", trained.finetuned, "--out", out]
    text = sslpdl(*words).stdout
    assert "at least 0.1 mm/h, test days" in text and "raw forecast" in text
    found = json.loads(out.read_text())
    assert found["split"] == "test" and set(found["scores"]) == {"0.1", "10"}
    for scores in found["scores"].values():
        assert set(scores) == {"raw forecast", "finetuned"}
        assert set(scores["raw forecast"]) == set(SCORES)
        assert 0 <= scores["finetuned"]["brier"] <= 1
    samples = load_splits(store, get_config("small", image_size=SHAPE)).samples["test"]
    raw, rain = samples["forecast"].values[:, -1], samples["rain"].values
    known = np.isfinite(rain)
    both, either = (raw >= 0.1) & (rain >= 0.1), (raw >= 0.1) | (rain >= 0.1)
    expected = both[known].sum() / either[known].sum()
    assert found["scores"]["0.1"]["raw forecast"]["CSI"] == pytest.approx(expected)
    assert main([*map(str, words[:-2]), "--split", "valid"]) == 0


def test_a_quiet_evaluation_has_no_progress_bar(monkeypatch):
    seen = []

    def probabilities(model, dataset, progress):
        seen.append(progress)
        return dataset

    monkeypatch.setattr("sslpdl_nb.decide.predict_probabilities", probabilities)
    monkeypatch.setattr("sslpdl_nb.decide.decide", lambda p, thresholds: p)
    meta = dict(config=None, standardizer=None, probability_thresholds=None)
    monkeypatch.setattr("sslpdl_nb.finetune.load_model", lambda path: (None, meta))
    splits = SimpleNamespace(samples=dict(test=None))
    monkeypatch.setattr("sslpdl_nb.store.load_splits", lambda *_: splits)
    monkeypatch.setattr("sslpdl_nb.store.RainDataset", lambda *_: None)
    for options in ([], ["--quiet"]):
        _predictions(parser().parse_args(["evaluate", "store", "--checkpoint", "c", *options]))
    assert seen == [True, False]


def test_finetune_from_scratch_and_the_other_network(simulated, tmp_path):
    out = tmp_path / "unet.safetensors"
    words = ["finetune", str(simulated), "--kind", "unet", "--quiet", "--out", str(out)]
    assert main([*words, "--set", "image_size=32,32", "finetune_steps=1"]) == 0
    assert prediction.load_model(out)[1]["kind"] == "unet"


@pytest.mark.parametrize(
    "options, words",
    [
        (["--preset", "huge"], "preset"),
        (["--set", "speed=3"], "speed"),
        (["--set", "pretrain_steps"], "FIELD=VALUE"),
        (["--set", "pretrain_steps=many"], "something like 360, found 'many'"),
        (["--set", "freeze_encoder=no"], "something like False, found 'no'"),
        (["--set", "edges=0.1"], "something like (0.1, 10.0), found 0.1"),
        (["--set", "class_weights=1,2,'x'"], "something like"),
        (["--set", "pretrain_steps=0"], "at least 1"),
        (["--set", "image_size=30,30"], "multiples of the patch size"),
        (["--set", "image_size=64,32"], "at least 64 x 32"),
        (["--set", "image_size=32,32", "encoder=nothing"], "nothing"),
    ],
)
def test_configurations_that_cannot_work(simulated, tmp_path, capsys, options, words):
    out = tmp_path / "p.safetensors"
    line = failure(capsys, "pretrain", simulated, *options, "--quiet", "--out", out)
    assert words in line and not list(tmp_path.iterdir())


def test_stores_and_checkpoints_that_are_not_there(trained, simulated, files, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    for command in ("pretrain", "finetune"):
        assert "none.zarr" in failure(capsys, command, tmp_path / "none.zarr", "--out", out)
        assert "sslpdl prepare --nwp" in failure(capsys, command, files, "--out", out)
    line = failure(capsys, "finetune", simulated, "--init", tmp_path / "no", "--out", out)
    assert str(tmp_path / "no") in line
    assert "unet" in failure(capsys, "finetune", simulated, *SHORT, "--kind", "magic", "--out", out)
    for checkpoint in (tmp_path / "no", trained.pretrained, simulated / "nwp.nc"):
        line = failure(capsys, "evaluate", simulated, "--checkpoint", checkpoint)
        assert checkpoint.name in line
    assert not list(tmp_path.iterdir())
    done = sslpdl("evaluate", tmp_path, "--checkpoint", trained.finetuned, code=2)
    assert done.stderr.startswith("sslpdl: ") and len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------ maps


def test_predict_takes_a_store_and_its_files(trained, simulated, tmp_path):
    words = ["--checkpoint", trained.finetuned, "--out"]
    store = ["predict", simulated / "store.zarr", *words, tmp_path / "store.nc"]
    done = sslpdl(*store, "--map", tmp_path / "store.png")
    assert "'lead_time': 2" in done.stdout and (tmp_path / "store.png").stat().st_size > 5000
    words = ["predict", simulated / "nwp.nc", *words, tmp_path / "nwp.nc"]
    assert main([str(word) for word in words]) == 0
    with xr.open_dataset(tmp_path / "store.nc") as a, xr.open_dataset(tmp_path / "nwp.nc") as b:
        assert np.allclose(a["probability"], b["probability"], atol=1e-4)
        assert "observed_rain" in a and "observed_rain" not in b
    samples = open_store(simulated / "store.zarr")
    model, meta = prediction.load_model(trained.finetuned)
    p = prediction.predict_probabilities(model, RainDataset(samples, meta["standardizer"]))
    with xr.open_dataset(tmp_path / "store.nc") as a:
        assert np.allclose(a["probability"].values.reshape(p.shape), p, atol=1e-5)


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    "A model that says nothing and takes no time; the file is only a name."
    meta = dict(
        config=get_config("small", image_size=TARGET.shape),
        variable_names=list(VARIABLE_NAMES),
        grid=TARGET,
        seed=0,
        kind="internimage",
        standardizer=Standardizer((0.0,) * 16, (1e6,) * 16),
        versions={},
        probability_thresholds=(0.4, 0.2),
        source="simulated",
        lead_times=[25.0, 27.0],
    )

    def probabilities(model, dataset, progress=False):
        rain = dataset.inputs().numpy()[:, -1] * 1e6
        p = np.stack([np.exp(-rain), 0.8 * (1 - np.exp(-rain)), 0.2 * (1 - np.exp(-rain))], 1)
        return p.astype(np.float32)

    monkeypatch.setattr(prediction, "load_model", lambda path: (None, meta))
    monkeypatch.setattr(prediction, "predict_probabilities", probabilities)
    monkeypatch.setattr("sslpdl_nb.finetune.load_model", lambda path: (None, meta))
    return SimpleNamespace(path=tmp_path / "model.safetensors", meta=meta)


def predict_words(nwp, checkpoint, out, *options):
    return ["predict", str(nwp), "--checkpoint", str(checkpoint.path), "--out", str(out), *options]


def test_predict_writes_and_draws(checkpoint, files, tmp_path, capsys):
    picture = tmp_path / "rain.png"
    words = predict_words(files / "nwp.nc", checkpoint, tmp_path / "rain.nc", "--map", str(picture))
    assert main(words) == 0
    assert "'y': 8, 'x': 4" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG") and (tmp_path / "rain.nc").exists()
    assert main([*words, "--observed", str(files / "qpe.nc"), "--leads", "27"]) == 0


def test_predict_says_what_is_wrong_in_one_line(checkpoint, files, tmp_path, capsys):
    out = tmp_path / "rain.nc"
    assert "none.nc" in failure(capsys, *predict_words("none.nc", checkpoint, out))
    failure(capsys, *predict_words(files / "nwp.nc", checkpoint, files / "nwp.nc" / "r.nc"))
    picture = tmp_path / "r.png"
    words = predict_words(files / "nwp.nc", checkpoint, out, "--map", str(picture))
    assert "[25.0, 27.0]" in failure(capsys, *words, "--leads", "22")
    assert not out.exists() and not picture.exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--observed", "none.nc"], "--map FILE.png, which they belong to"),
        (["--leads", "25"], "--map FILE.png, which they belong to"),
        (["--map", "rain.foo"], "a file name that ends in one of"),
        (["--domain", "nowhere.nc"], "checkpoint, central-us or a NetCDF file"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    checkpoint, files, tmp_path, capsys, options, words
):
    out = tmp_path / "rain.nc"
    line = failure(capsys, *predict_words(files / "nwp.nc", checkpoint, out, *options))
    assert words in line and not out.exists()


def test_domain_of_a_file_and_lead_times_outside_the_training(checkpoint, tmp_path, capsys):
    nwp, out = write(forecast(leads=(25, 90)), tmp_path / "nwp.nc"), tmp_path / "rain.nc"
    checkpoint.meta["lead_times"] = [24.0, 30.0]
    assert main(predict_words(nwp, checkpoint, out)) == 0
    expected = "lead times 90 h lie outside those of the training, 24 to 30 h"
    assert expected in capsys.readouterr().out
    again = tmp_path / "again.nc"
    assert main(predict_words(nwp, checkpoint, again, "--domain", str(out))) == 0
    with xr.open_dataset(out) as a, xr.open_dataset(again) as b:
        assert a["probability"].equals(b["probability"])


def test_central_us():
    grid = central_us((64, 32))
    lon, lat = grid.lonlat()
    assert grid.shape == (64, 32) and lon.min() < -97 < lon.max() and lat.min() < 37.5 < lat.max()


# ------------------------------------------------------------------ a real forecast


def test_predict_from_raw_files(checkpoint, tmp_path, capsys):
    folder = real("wrf-stage2-2005")
    checkpoint.meta["config"] = get_config("small")
    out, picture = tmp_path / "r.nc", tmp_path / "r.png"
    options = ["--source", "wrf", "--domain", "central-us", "--map", str(picture)]
    options += ["--observed", str(folder / "stage2"), "--accumulation", "3"]
    words = predict_words(folder / "wrf", checkpoint, out, *options)
    assert main(words) == 0 and "'y': 64, 'x': 32" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000
    whole = Image.open(picture).size
    assert main([*words, "--climatology", "own", "--leads", "21", "24"]) == 0
    assert Image.open(picture).size[1] < 0.6 * whole[1]  # two rows, not five
    assert "22" in failure(capsys, *words, "--leads", "22")


def test_damaged_raw_files(checkpoint, tmp_path, capsys):
    first = sorted((real("wrf-stage2-2005") / "wrf").iterdir())[0]
    (tmp_path / "cut.grib").write_bytes(first.read_bytes()[:100_001])
    out = tmp_path / "r.nc"
    words = predict_words(tmp_path / "cut.grib", checkpoint, out, "--source", "wrf")
    assert "cut.grib" in failure(capsys, *words) and not out.exists()


def test_analysis_changes_the_table_of_the_source(capsys, tmp_path):
    words = ["prepare", "--nwp", "a", "--qpe", "b", "--out", "c", "--source", "wrf"]
    assert _source(parser().parse_args(words)) == "wrf"
    assert _source(parser().parse_args([*words, "--analysis"])).analysis
    words = ["predict", "a.nc", "--checkpoint", "b", "--out", "c.nc", "--analysis"]
    with pytest.raises(DataError, match="--analysis: expected --source"):
        _source(parser().parse_args(words))
