"Weights by name, their cards, and the wheel that carries them."

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from sslpdl_nb.checkpoint import load_checkpoint, save_checkpoint
from sslpdl_nb.core import VARIABLES, CheckpointError, DataError
from sslpdl_nb.finetune import rain_model
from sslpdl_nb.weights import (
    HUB_FILE,
    available,
    croissant,
    dataset_card,
    find_weights,
    from_pretrained,
    model_card,
)

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "data_samples" / "tiny"
NAMES = ("study-pretrained", "study-rain")
EMPTY = dict(data="nothing", how="", rows=[])


def header_of(card):
    "The YAML header of a card."
    return yaml.safe_load(card.split("---\n")[1])


# ------------------------------------------------------------------------------ from a name


def test_bundled_weights_are_there_and_small():
    assert set(NAMES) <= set(available())
    for path in available().values():
        assert path.stat().st_size < 8e6


@pytest.mark.parametrize("name", NAMES)
def test_bundled_weights_name_no_folder_of_one_machine(name):
    _, meta = load_checkpoint(find_weights(name))
    assert not re.search(r'["\s]/\w|\w:\\', json.dumps(meta))


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(find_weights("study-rain"), "study-pretrained")
    assert find_weights("study-pretrained") == Path("study-pretrained")
    assert from_pretrained("study-pretrained")[1]["kind"] == "internimage"


@pytest.mark.parametrize("name", ["study-snow", "", "sample/finetuned.safetensors", "a/b/c"])
def test_an_unknown_name_is_refused_with_the_names_that_exist(name):
    with pytest.raises(CheckpointError, match="study-pretrained.*study-rain"):
        find_weights(name)


# ------------------------------------------------------------------------------ from the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A hub of one repository, and what it was asked for."
    import huggingface_hub

    asked = []

    def fetch(repository, filename, local_files_only):
        asked.append((repository, filename, local_files_only))
        if local_files_only or repository != "someone/rain":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(find_weights("study-rain"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return asked


def test_the_hub_is_asked_only_on_demand(hub):
    with pytest.raises(CheckpointError, match="download=True.*LocalEntryNotFoundError"):
        from_pretrained("someone/rain")
    _, meta = from_pretrained("someone/rain", download=True)
    assert meta["probability_thresholds"]  # our file, unchanged
    assert hub == [("someone/rain", HUB_FILE, True), ("someone/rain", HUB_FILE, False)]
    with pytest.raises(CheckpointError, match="'someone/snow'.*LocalEntryNotFoundError"):
        find_weights("someone/snow", download=True)


def test_bundled_weights_never_ask_the_hub(hub):
    from_pretrained("study-rain", download=True)
    assert hub == []


def test_without_the_library_of_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="expected the package huggingface_hub"):
        find_weights("someone/rain", download=True)
    from_pretrained("study-rain")


# ---------------------------------------------------------------------------- from a file


def test_the_kind_decides_what_is_loaded():
    model, meta = from_pretrained("study-pretrained")
    rain, about = from_pretrained("study-rain")
    x, mask = torch.zeros(1, 16, 64, 32), torch.zeros(1, model.embed.n)
    with torch.no_grad():
        assert model.cpu()(x, mask).shape == (1, len(VARIABLES), 64, 32)
        assert rain.cpu()(x).shape == (1, len(about["config"].edges) + 1, 64, 32)
    assert not model.training and not rain.training
    assert meta["grid"] == about["grid"] and meta["standardizer"] == about["standardizer"]
    assert len(about["probability_thresholds"]) == 2 and about["pretrained"]


def test_weights_that_do_not_fit_are_refused(tmp_path):
    weights, meta = load_checkpoint(find_weights("study-pretrained"))
    model = from_pretrained("study-pretrained")[0]
    other = rain_model(from_pretrained("study-rain")[1]["config"])
    save_checkpoint(tmp_path / "shape.safetensors", other, meta)
    with pytest.raises(CheckpointError, match="a pre-training of this version"):
        from_pretrained(tmp_path / "shape.safetensors")
    for key in ("config", "standardizer", "grid"):
        save_checkpoint(tmp_path / "half.safetensors", model, meta | {key: dict(unknown=1)})
        with pytest.raises(CheckpointError, match="half.safetensors"):
            from_pretrained(tmp_path / "half.safetensors")
    save_checkpoint(tmp_path / "kind.safetensors", model, meta | dict(kind="snow"))
    with pytest.raises(CheckpointError, match="kind"):
        from_pretrained(tmp_path / "kind.safetensors")


def test_bundled_rain_weights_are_better_than_the_forecast_itself_on_the_large_test():
    rows = json.loads(find_weights("study-rain").with_suffix(".json").read_text())["rows"]
    found = {(row["forecast"], row["score"]): row for row in rows}
    for rival in ("the forecast itself", "share of rain around a pixel"):
        ours, other = found["study-rain", "CSI at 0.1 mm/h"], found[rival, "CSI at 0.1 mm/h"]
        assert ours["low"] > other["high"]
    assert found["study-rain", "Brier skill at 10 mm/h"]["low"] > 0


# ------------------------------------------------------------------------------------ cards


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_cards_are_those_of_the_weights(name):
    path = find_weights(name)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == model_card(path)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_of_a_card(name):
    card = model_card(find_weights(name))
    header = header_of(card)
    assert header["license"] == "apache-2.0" and "simulated" in header["tags"]
    (entry,) = header["model-index"]
    values = {m["type"]: m["value"] for r in entry["results"] for m in r["metrics"]}
    rows = json.loads(find_weights(name).with_suffix(".json").read_text())["rows"]
    for row in rows:
        if row["forecast"] == name:
            value, reach = map(float, values[row["score"]].split(" ± "))
            assert value == pytest.approx(row["value"], abs=6e-4)
            assert value - reach == pytest.approx(row["low"], abs=2e-3)
    assert "No skill is claimed for the real atmosphere" in card and "224" in card


def test_the_hub_reads_the_card():
    from huggingface_hub import ModelCard

    data = ModelCard(model_card(find_weights("study-rain"))).data
    assert data.license == "apache-2.0" and data.model_name == "study-rain"
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_a_card_without_scores_has_no_results(tmp_path):
    path = tmp_path / "mine.safetensors"
    shutil.copyfile(find_weights("study-rain"), path)
    card = model_card(path)
    assert "model-index" not in header_of(card) and "## Scores" not in card
    assert 'from_pretrained("mine.safetensors")' in card
    assert card == model_card(path, EMPTY)


def test_weights_of_real_weather_are_not_called_simulated(tmp_path):
    model, meta = from_pretrained("study-pretrained")
    _, plain = load_checkpoint(find_weights("study-pretrained"))
    path = tmp_path / "real.safetensors"
    save_checkpoint(path, model, plain | dict(source="GFS and radar"))
    card = model_card(path)
    assert "simulated" not in card and header_of(card)["tags"] == ["weather", "precipitation"]


def test_incomplete_scores_are_refused():
    path = find_weights("study-rain")
    with pytest.raises(DataError, match="at least .*'high'"):
        model_card(path, EMPTY | dict(rows=[dict(forecast="a", score="CSI", value=1)]))
    with pytest.raises(DataError, match="data, how and rows"):
        model_card(path, dict(rows=[]))
    undefined = dict(forecast="study-rain", score="CSI", value=0.5, low=np.nan, high=np.nan)
    card = model_card(path, EMPTY | dict(rows=[undefined]))
    assert "| CSI | study-rain | 0.500 |" in card


def test_the_card_of_the_sample():
    card = dataset_card(TINY)
    assert header_of(card)["tags"] == ["weather", "precipitation", "simulated"]
    assert "sslpdl simulate --size tiny --out tiny --seed 0 --members 16" in card
    assert "train 18, valid 6, test 6" in card
    for v in VARIABLES:
        assert f"| {v.name} |" in card


def test_other_data_get_no_card(tmp_path):
    for function in (dataset_card, croissant):
        with pytest.raises(DataError, match="expected nwp and qpe"):
            function(tmp_path)
    real = xr.Dataset({"rain": ("x", [1.0])}, attrs=dict(source="radar"))
    for name in ("nwp", "qpe"):
        real.to_netcdf(tmp_path / f"{name}.nc")
    for function in (dataset_card, croissant):
        with pytest.raises(DataError, match="a simulated archive.*'radar'"):
            function(tmp_path)


def test_croissant_names_files_fields_and_units():
    found = croissant(TINY)
    assert found == json.loads((ROOT / "data_samples/weights/tiny.croissant.json").read_text())
    files = {f["name"]: f for f in found["distribution"]}
    assert int(files["nwp.nc"]["contentSize"].split()[0]) == (TINY / "nwp.nc").stat().st_size
    fields = {f["name"]: f for f in found["recordSet"][0]["field"]}
    for v in VARIABLES:
        assert fields[v.name]["cr:annotation"]["value"] == v.units
    assert fields["t2m"]["arrayShape"].startswith("120,3,")


def test_croissant_of_a_zarr_archive_names_a_set_of_files(tmp_path):
    for name in ("nwp", "qpe", "perfect_model_ensemble"):
        with xr.open_dataset(TINY / f"{name}.nc", decode_timedelta=True) as ds:
            few = ds.isel(time=slice(0, 1)).drop_encoding()
            few.to_zarr(tmp_path / f"{name}.zarr", consolidated=False)
    files = croissant(tmp_path)["distribution"]
    assert {f["@type"] for f in files} == {"cr:FileSet"}
    assert files[0]["includes"] == "nwp.zarr/**"


def test_croissant_is_valid_by_the_reference_implementation():
    mlc = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    metadata = mlc.Dataset(jsonld=croissant(TINY)).metadata  # raises for errors
    assert not metadata.ctx.issues.errors
    assert [len(r.fields) for r in metadata.record_sets] == [16, 2, 1]


# --------------------------------------------------------------------------------- packaging


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(cited)
    assert cited["version"] == ini["DEFAULT"]["version"]
    assert [a["name"] for a in cited["authors"]] == [ini["DEFAULT"]["author"]]
    assert cited["repository-code"] == ini["DEFAULT"]["git_url"]
    papers = {i["value"] for r in cited["references"] for i in r["identifiers"]}
    assert papers == {"arXiv:2310.20187", "arXiv:2412.05825", "arXiv:2412.15917"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    "A wheel, built without a network from a copy of what it needs, and unpacked."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "settings.ini", "README.md"):
        shutil.copyfile(ROOT / name, source / name)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("sslpdl_nb", "data_samples/weights"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--wheel-dir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_a_wheel_carries_the_weights(unpacked):
    folder = unpacked / "sslpdl_nb" / "weights_data"
    for path in available().values():
        assert (folder / path.name).read_bytes() == path.read_bytes()
        assert (folder / f"{path.stem}.md").exists()


OFFLINE = """
import socket

def refuse(*args, **kwargs):
    raise AssertionError("the network was used")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import sslpdl_nb
from sslpdl_nb import from_pretrained

model, meta = from_pretrained("study-rain")
print(sslpdl_nb.__file__)
print(sum(p.numel() for p in model.parameters()), meta["kind"])
"""


def test_installed_weights_load_in_an_empty_folder_without_a_network(unpacked, tmp_path):
    environment = os.environ | dict(PYTHONPATH=str(unpacked))
    command = [sys.executable, "-c", OFFLINE]
    options = dict(capture_output=True, text=True, env=environment, cwd=tmp_path)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    where, about = done.stdout.splitlines()
    assert where.startswith(str(unpacked)) and about.endswith("internimage")
    assert not list(tmp_path.iterdir())
