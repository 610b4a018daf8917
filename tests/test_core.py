"Words, configuration and small helpers: known answers, and files that are whole or not there."

import errno
import json
import os
import platform
import random
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from locked import another_process_writes
import torch
from safetensors import SafetensorError

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
    disk_errors,
    ensure,
    environment,
    exclusive,
    get_config,
    mismatch,
    rain_class,
    set_seed,
    usable_cores,
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
    with pytest.raises(DataError, match="writing .*file.txt"), atomic_path(path):
        pass  # nothing was written
    assert path.read_text() == "old"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"csi": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"csi": object()})
    assert json.loads(path.read_text()) == {"csi": 0.5}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("NetCDF: HDF error"),
        SafetensorError("I/O error: No space left on device"),
    ],
)
def test_what_libraries_raise_on_a_full_disk_names_the_file(tmp_path, error):
    path = tmp_path / "Größe und Ort.nc"
    with pytest.raises(DataError, match="Größe und Ort.nc: expected room.*GB free"):
        with atomic_path(path) as tmp:
            tmp.write_text("half")
            raise error
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), atomic_path(path):
        raise ZeroDivisionError  # a mistake of the program is no fault of the disk
    with pytest.raises(RuntimeError), disk_errors(path):
        raise RuntimeError


def test_the_output_of_another_process_is_refused(tmp_path):
    path = tmp_path / "a b ü.zarr"
    with another_process_writes(path) as number:
        holds = f"a b ü.zarr.lock locked by process {number} on {platform.node()} since"
        with pytest.raises(DataError, match=re.escape(holds)), exclusive(path):
            raise AssertionError("two writers")
    (tmp_path / ".a b ü.zarr.12345.tmp").write_text("half")
    (tmp_path / ".another.12345.tmp").write_text("of somebody else")
    with exclusive(path):  # the system has released the lock; what was left is removed
        pass
    assert os.listdir(tmp_path) == [".another.12345.tmp"]


def test_the_lock_of_a_folder_that_does_not_exist(tmp_path):
    with exclusive(tmp_path / "new" / "out.state"):
        pass
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="file/out.state: expected room and permission"):
        with exclusive(tmp_path / "file" / "out.state"):
            pass


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch, xarray
from safetensors.torch import save_file
from sslpdl_nb.core import DataError, atomic_path, write_json

resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))  # no file may be larger
folder, big = Path(sys.argv[1]), torch.rand(5000)
writers = dict(
    torch=lambda path: torch.save(dict(a=big), path),
    safetensors=lambda path: save_file(dict(a=big), path),
    netcdf=lambda path: xarray.Dataset(dict(a=("x", big.numpy()))).to_netcdf(path),
    text=lambda path: path.write_text(str(big.tolist())),
)
for name, write in writers.items():
    try:
        with atomic_path(folder / f"{name}.ü") as tmp:
            write(tmp)
    except DataError as error:
        assert f"{name}.ü: expected room and permission" in str(error)
        print(name)
"""


def test_every_library_that_runs_out_of_room_is_heard(tmp_path):
    pytest.importorskip("resource")
    for name in ("torch", "netcdf"):
        (tmp_path / f"{name}.ü").write_text("old")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["torch", "safetensors", "netcdf", "text"], done.stderr
    assert sorted(os.listdir(tmp_path)) == ["netcdf.ü", "torch.ü"]
    assert (tmp_path / "netcdf.ü").read_text() == "old"


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


def limits(folder, files, groups=None):
    "A tree with the files of an operating system: path -> text."
    for path, text in files.items():
        file = folder / "sys" / "fs" / "cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if groups is not None:
        (folder / "proc" / "self").mkdir(parents=True)
        (folder / "proc" / "self" / "cgroup").write_text(groups)
    return folder


@pytest.mark.parametrize(
    "files, groups, cores",
    [
        ({}, None, 64),  # not Linux
        ({}, "0::/\n", 64),
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),  # inside a container
        ({"cpu.max": "max 100000\n"}, "0::/\n", 64),
        ({"cpu.max": "150000 100000\n"}, None, 2),  # one and a half
        ({"cpu.max": "1000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "9900000 100000\n"}, "0::/\n", 64),  # more than there are
        ({"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "max 100000\n"}, "0::/a/b\n", 3),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, "0::/a/b\n", 3),
        ({"other/cpu.max": "100000 100000\n"}, "0::/a/b\n", 64),
        (
            {"cpu/a/cpu.cfs_quota_us": "400000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            "5:memory:/m\n4:cpu,cpuacct:/a\n1:name=systemd:/x\n0::/\n",
            4,
        ),
        (
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            "4:cpuacct,cpu:/docker/0123\n",  # a path that the container does not see
            2,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:cpu:/\n", 64),
        ({"cpu.max": "what is this\n"}, "0::/\n", 64),
        ({"cpu.max": ""}, "0::/\n", 64),
    ],
)
def test_usable_cores_in_a_container(files, groups, cores, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert usable_cores(limits(tmp_path, files, groups)) == cores


def test_usable_cores_are_those_of_the_affinity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert usable_cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path) == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1
