"Words, configuration and small helpers: known answers, and files that are whole or not there."

import json
import os
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from sslpdl_nb import core
from sslpdl_nb.core import (
    CLASS_EDGES,
    CLASS_NAMES,
    GAS_DRY_AIR,
    GRAVITY,
    PRESETS,
    RAIN,
    VARIABLE_NAMES,
    VARIABLES,
    CheckpointError,
    Config,
    DataError,
    GridError,
    SSLPDLError,
    atomic_path,
    config_from_json,
    config_to_json,
    device,
    ensure,
    environment,
    get_config,
    mismatch,
    rain_class,
    set_seed,
    write_json,
)

# ------------------------------------------------------------------ words


def test_sixteen_variables_in_four_groups_of_four():
    groups = (
        ("gh100", "gh500", "gh850", "slp"),
        ("rh500", "rh850", "t2m", "t500"),
        ("t850", "u10", "u500", "u850"),
        ("v10", "v500", "v850", "rain"),
    )
    assert VARIABLE_NAMES == sum(groups, ())
    assert VARIABLE_NAMES[RAIN] == "rain"


def test_units_and_levels_of_the_variables():
    units = dict(
        geopotential_height="m",
        air_pressure_at_mean_sea_level="Pa",
        relative_humidity="%",
        air_temperature="K",
        eastward_wind="m s-1",
        northward_wind="m s-1",
        lwe_precipitation_rate="mm h-1",
    )

    def digits(text):
        return "".join(filter(str.isdigit, text))

    for v in VARIABLES:
        assert v.units == units[v.standard_name]
        assert digits(v.name) == digits(v.level)


def test_constants():
    assert GRAVITY == 9.80665  # the standard of 1901
    assert GAS_DRY_AIR == pytest.approx(8.31446 / 0.0289652, rel=1e-4)


@pytest.mark.parametrize(
    "rain, expected",
    [
        (0.0, 0),
        (np.nextafter(0.1, 0), 0),
        (0.1, 1),
        (np.nextafter(10.0, 0), 1),
        (10.0, 2),
        (np.inf, 2),
        (-1.0, 0),
        (np.nan, -1),
    ],
)
def test_rain_class_on_its_edges(rain, expected):
    assert rain_class(rain) == expected
    assert rain_class(np.full((2, 3), rain)).tolist() == [[expected] * 3] * 2


def test_rain_class_of_other_input():
    assert rain_class(torch.tensor([0.0, 5.0])).tolist() == [0, 1]
    assert rain_class([]).shape == (0,)
    assert rain_class([29.9, 30.0], edges=(0.1, 10.0, 30.0)).tolist() == [2, 3]
    assert len(CLASS_NAMES) == len(CLASS_EDGES) + 1


def test_errors_have_one_parent_and_one_sentence():
    for kind in (DataError, GridError, CheckpointError):
        with pytest.raises(SSLPDLError, match="^f.nc: expected K, found degC$"):
            raise kind(mismatch("f.nc", "K", "degC"))
    assert not issubclass(DataError, GridError)
    assert not issubclass(SSLPDLError, (ValueError, OSError))


# ------------------------------------------------------------------ configuration


def test_nothing_changes_a_configuration_in_place():
    with pytest.raises(FrozenInstanceError):
        PRESETS["small"].patch_size = 8


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_fast_cuts_the_steps_and_nothing_else(preset):
    whole, fast = get_config(preset), get_config(preset, fast=True)
    different = {f.name for f in fields(Config) if getattr(whole, f.name) != getattr(fast, f.name)}
    assert different == {"pretrain_steps", "finetune_steps"}
    assert fast.pretrain_steps == fast.finetune_steps == 30
    assert get_config(preset, fast=True, pretrain_steps=2).pretrain_steps == 2
    assert whole.name == preset


@pytest.mark.parametrize("c", PRESETS.values(), ids=lambda c: c.name)
def test_presets_fit_their_images_and_classes(c):
    assert not [n for n in c.image_size if n % c.patch_size]
    assert len(VARIABLES) % c.token_variables == 0
    assert len(c.class_weights) == len(c.edges) + 1
    assert 0 < c.finetune_mask_ratio < c.pretrain_mask_ratio < 1


def test_wrong_names_are_named():
    with pytest.raises(DataError, match="'tiny'"):
        get_config("tiny")
    with pytest.raises(DataError, match="batch_sise"):
        get_config("small", batch_sise=3)


@pytest.mark.parametrize("config", PRESETS.values(), ids=lambda c: c.name)
def test_configurations_survive_json(config):
    again = config_from_json(config_to_json(config))
    assert again == config
    assert hash(again) == hash(config)  # lists would not hash


@pytest.mark.parametrize(
    "changes, field",
    [
        (dict(edges=()), "edges"),
        (dict(edges=(10.0, 0.1)), "edges"),
        (dict(edges=(0.0, 10.0)), "edges"),
        (dict(edges=(0.1, float("nan"))), "edges"),
        (dict(edges=(0.1, 10.0, 30.0)), "class_weights"),
        (dict(class_weights=()), "class_weights"),
        (dict(class_weights=(1.0, 5.0)), "class_weights"),
        (dict(class_weights=(0.0, 5.0, 10.0)), "class_weights"),
        (dict(class_weights=(1.0, 5.0, float("nan"))), "class_weights"),
        (dict(image_size=(64, 30)), "image_size"),
        (dict(image_size=(62, 32)), "image_size"),
        (dict(image_size=(0, 32)), "image_size"),
        (dict(image_size=(64,)), "image_size"),
        (dict(image_size=(64.0, 32.0)), "image_size"),
        (dict(token_variables=3), "token_variables"),
        (dict(token_variables=0), "token_variables"),
        (dict(patch_size=0), "patch_size"),
        (dict(patch_size=2.5), "patch_size"),
        (dict(pretrain_mask_ratio=1.5), "pretrain_mask_ratio"),
        (dict(pretrain_mask_ratio="0.75"), "pretrain_mask_ratio"),
        (dict(finetune_mask_ratio=-0.1), "finetune_mask_ratio"),
        (dict(finetune_mask_ratio=float("nan")), "finetune_mask_ratio"),
        (dict(drop_path=1.1), "drop_path"),
        (dict(alpha=-1), "alpha"),
        (dict(beta=2.0), "beta"),
        (dict(warmup=1.1), "warmup"),
        (dict(rain_transform="sqrt"), "rain_transform"),
        (dict(stem_stride=3), "stem_stride"),
        (dict(encoder=""), "encoder"),
        (dict(encoder="internimage nano"), "encoder"),
        (dict(encoder=None), "encoder"),
        (dict(pretrain_steps=0), "pretrain_steps"),
        (dict(finetune_batch=-1), "finetune_batch"),
        (dict(pretrain_lr=0.0), "pretrain_lr"),
        (dict(encoder_lr=float("inf")), "encoder_lr"),
        (dict(clip_norm=-1.0), "clip_norm"),
    ],
)
def test_a_configuration_names_the_field_that_does_not_fit(changes, field):
    with pytest.raises(DataError, match=f"Config: {field}: expected"):
        get_config("small", **changes)
    with pytest.raises(DataError, match=f"Config: {field}: expected"):
        replace(PRESETS["small"], **changes)


def test_a_damaged_configuration_in_a_checkpoint_is_refused():
    text = config_to_json(PRESETS["small"]).replace('"beta": 0.75', '"beta": 75')
    with pytest.raises(DataError, match="Config: beta"):
        config_from_json(text)


def test_what_fits_together_is_accepted():
    four = get_config("small", edges=(0.1, 10.0, 30.0), class_weights=(1, 5, 10, 20))
    assert len(four.class_weights) == len(four.edges) + 1
    assert get_config("small", alpha=0, beta=1, drop_path=1.0, warmup=0).beta == 1
    assert get_config("small", encoder="resnet18", token_variables=16).encoder == "resnet18"


# ------------------------------------------------------------------ helpers


def test_seeds_of_three_libraries():
    def draw(seed):
        g = set_seed(seed)
        ours = torch.rand(1, generator=g)
        return random.random(), float(np.random.rand()), float(torch.rand(1)), float(ours)

    assert draw(3) == draw(3)
    assert all(a != b for a, b in zip(draw(3), draw(4)))
    set_seed(2**40)  # more than NumPy takes


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as tmp:
        tmp.write_text("old")
        assert not path.exists()
        assert tmp.parent == path.parent  # a rename must not leave the disk
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as tmp:
        tmp.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file.txt"]
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass  # nothing was written
    assert path.read_text() == "old"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"csi": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"csi": object()})
    assert json.loads(path.read_text()) == {"csi": 0.5}
    assert os.listdir(tmp_path) == ["a.json"]


def test_ensure_makes_what_is_missing_once(tmp_path):
    path, made = tmp_path / "a", []

    def make(path):
        made.append(path)
        path.write_text("x")

    assert ensure(str(path), make) == path
    assert ensure(path, make) == path
    assert made == [path]


def test_environment_names_what_made_a_result(monkeypatch):
    env = environment()
    assert torch.__version__.split("+")[0] == env["torch"].split("+")[0]
    assert env["cores"] == os.cpu_count()
    assert env["python"] == sys.version.split()[0]
    assert json.dumps(env)

    def missing(name):
        raise core.PackageNotFoundError(name)

    monkeypatch.setattr(core, "version", missing)
    assert environment()["timm"] == "not installed"


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == torch.device("cuda")
    assert device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device() == torch.device("cpu")


def test_core_needs_only_numpy_and_torch():
    "Everything imports core, so it must be quick to import."
    heavy = ("xarray", "scipy", "matplotlib", "cartopy", "pyproj", "timm", "numba", "pandas")
    code = f"import sys, sslpdl_nb.core; print(sorted(set({heavy}) & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name, value",
    [
        ("edges", "abc"),
        ("image_size", 64),
        ("pretrain_betas", ("a", "b")),
        ("class_weights", None),
        ("freeze_encoder", "no"),
        ("token_norm", 1),
    ],
)
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(DataError, match=f"Config: {name}: expected"):
        get_config(**{name: value})
