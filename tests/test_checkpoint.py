"Checkpoints: whole or not at all, self-describing, and refused where they are damaged or foreign."

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import xarray as xr
from safetensors.torch import save_file
from torch import nn

from sslpdl_nb.checkpoint import describe, load_checkpoint, save_checkpoint
from sslpdl_nb.core import VARIABLE_NAMES, CheckpointError, config_from_json, get_config
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.store import Standardizer


def test_round_trip(tmp_path):
    model, path = nn.Linear(3, 2), tmp_path / "m.safetensors"
    save_checkpoint(path, model, {"a": [1, None, "é"]})
    weights, meta = load_checkpoint(path)
    assert meta == {"a": [1, None, "é"]}
    assert set(weights) == set(model.state_dict())
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_loaded_weights_do_not_depend_on_the_file(tmp_path):
    model, path = nn.Linear(3, 2), tmp_path / "m.safetensors"
    save_checkpoint(path, model, {})
    weights, _ = load_checkpoint(path)
    with open(path, "r+b") as f:
        f.write(bytes(path.stat().st_size))  # zeros, in place
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, nn.Linear(3, 2), {})
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"PK" + whole):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="m.safetensors"):
            load_checkpoint(path)


def test_missing_and_foreign_files_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="none.safetensors.*no such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path)  # a folder
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="foreign.safetensors.*this package"):
        load_checkpoint(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("text", ['{"a": 1', "{'a': 1}", "3", "[1, 2]", ""])
def test_a_damaged_description_is_refused_by_name(tmp_path, text):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={"sslpdl": text})
    with pytest.raises(CheckpointError, match="m.safetensors: expected a description in JSON"):
        load_checkpoint(path)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path, model = tmp_path / "m.safetensors", nn.Linear(3, 2)
    save_checkpoint(path, model, {"seed": 1})
    with pytest.raises(TypeError):
        save_checkpoint(path, model, {"not json": object()})
    assert load_checkpoint(path)[1] == {"seed": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def test_weights_that_are_not_contiguous_are_saved(tmp_path):
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.arange(6.0).view(3, 2).T)
    save_checkpoint(tmp_path / "m.safetensors", model, {})
    weights, _ = load_checkpoint(tmp_path / "m.safetensors")
    assert torch.equal(weights["weight"], model.weight.detach())


@pytest.mark.parametrize("attrs", [dict(source="simulated for a test"), {}])
def test_description_is_complete(attrs):
    n = len(VARIABLE_NAMES)
    lead_times = xr.Dataset(coords=dict(lead_time=("sample", [27.0, 25.0, 27.0])), attrs=attrs)
    splits = SimpleNamespace(
        samples=dict(train=lead_times),
        standardizer=Standardizer((0.0,) * n, (1.0,) * n, "none"),
        grid=LambertGrid(nx=16, ny=16, dx=1e4, x0=0.0, y0=0.0),
    )
    config = get_config("small")
    meta = json.loads(json.dumps(describe(config, splits, seed=3, kind="test")))
    assert config_from_json(json.dumps(meta["config"])) == config
    assert Standardizer.from_dict(meta["standardizer"]) == splits.standardizer
    assert meta["variable_names"] == list(VARIABLE_NAMES)
    assert meta["grid"]["nx"] == 16 and set(meta["grid"]) == set(asdict(splits.grid))
    assert meta["lead_times"] == [25.0, 27.0]
    assert meta["source"] == attrs.get("source", "")
    assert (meta["kind"], meta["seed"], meta["format"]) == ("test", 3, 1)
    assert {"torch", "sslpdl_nb"} <= set(meta["versions"])
