"Words, grids, configuration and small helpers: known answers, a second projection, files that are whole or not there."

import json
import os
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb import core
from sslpdl_nb.grids import types
from sslpdl_nb.core import (
    CLASS_EDGES,
    CLASS_NAMES,
    PRESETS,
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
from sslpdl_nb.grids.types import (
    NWP_GRID,
    QPE_GRID,
    LambertGrid,
    cf_attributes,
    lambert_cone,
    subgrid,
)


# ------------------------------------------------------------------ words


def test_sixteen_variables_in_four_groups_of_four():
    assert VARIABLE_NAMES == (
        "gh100",
        "gh500",
        "gh850",
        "slp",
        "rh500",
        "rh850",
        "t2m",
        "t500",
        "t850",
        "u10",
        "u500",
        "u850",
        "v10",
        "v500",
        "v850",
        "rain",
    )
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
        assert v.units == units[v.standard_name] and digits(v.name) == digits(v.level)


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
    assert (
        rain_class(rain) == expected
        and rain_class(np.full((2, 3), rain)).tolist() == [[expected] * 3] * 2
    )


def test_rain_class_of_other_input():
    assert rain_class(torch.tensor([0.0, 5.0])).tolist() == [0, 1] and rain_class([]).shape == (0,)
    assert (
        rain_class([29.9, 30.0], edges=(0.1, 10.0, 30.0)).tolist() == [2, 3]
        and len(CLASS_NAMES) == len(CLASS_EDGES) + 1
    )


def test_errors_have_one_parent_and_one_sentence():
    for kind in (DataError, GridError, CheckpointError):
        with pytest.raises(SSLPDLError, match="^f.nc: expected K, found degC$"):
            raise kind(mismatch("f.nc", "K", "degC"))
    assert not issubclass(DataError, GridError) and not issubclass(
        SSLPDLError, (ValueError, OSError)
    )


# ------------------------------------------------------------------ grids

grids = st.builds(
    LambertGrid,
    nx=st.integers(1, 9),
    ny=st.integers(1, 9),
    dx=st.sampled_from([3e3, 15e3]),
    x0=st.floats(-6e5, 5e5),
    y0=st.floats(-6e5, 5e5),
    lon0=st.sampled_from([126.0, -97.0, 179.0]),
    lat0=st.sampled_from([38.0, 30.0]),
    parallels=st.sampled_from([(30.0, 60.0), (60.0, 30.0), (45.0, 45.0), (20.0, 21.0)]),
    radius=st.sampled_from([types.EARTH_RADIUS, 6370e3]),
)


def southern(grid):
    return replace(grid, lat0=-grid.lat0, parallels=tuple(-p for p in grid.parallels))


def by_pyproj(grid):
    pyproj = pytest.importorskip("pyproj")
    return pyproj.Proj(
        proj="lcc",
        lat_1=grid.parallels[0],
        lat_2=grid.parallels[1],
        lat_0=grid.lat0,
        lon_0=grid.lon0,
        R=grid.radius,
    )


@settings(max_examples=60, deadline=None)
@given(grids, st.booleans())
def test_projection_equals_pyproj_both_ways(grid, south):
    grid = southern(grid) if south else grid
    theirs, (x, y) = by_pyproj(grid), np.meshgrid(grid.x, grid.y)
    lon, lat = grid.lonlat()
    assert lon.shape == lat.shape == grid.shape == (grid.ny, grid.nx)
    lon2, lat2 = theirs(x, y, inverse=True)
    assert np.abs((lon - lon2 + 180) % 360 - 180).max() < 1e-9 and np.abs(lat - lat2).max() < 1e-9
    assert np.allclose(theirs(lon, lat), (x, y), rtol=0, atol=1e-3) and np.allclose(
        grid.project(lon, lat), (x, y), rtol=0, atol=1e-3
    )


def test_longitudes_may_be_counted_either_way():
    assert np.allclose(
        QPE_GRID.project(130.0, 35.0), QPE_GRID.project(130.0 - 360, 35.0), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("parallels", [(30, 60), (45, 45), (-30, -60)])
def test_lengths_are_true_on_the_standard_parallels(parallels):
    grid = LambertGrid(1, 1, 1.0, 0.0, 0.0, lat0=np.sign(parallels[0]) * 38, parallels=parallels)
    for lat in parallels:
        x, y = np.diff(grid.project([126, 126 + 1e-4], [lat, lat]))[:, 0]
        assert (
            abs(np.hypot(x, y) / (grid.radius * np.cos(np.radians(lat)) * np.radians(1e-4)) - 1)
            < 1e-6
        )


def test_touching_cone_is_the_limit_of_a_cutting_one():
    assert np.allclose(
        lambert_cone((45.0, 45.0), 38.0), lambert_cone((45 - 1e-3, 45 + 1e-3), 38.0), rtol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.integers(0, 9), st.integers(1, 4)
)
def test_a_window_of_a_grid_has_its_points(ny, nx, r0, c0, step):
    large = LambertGrid(nx + c0, ny + r0, 5e3, -1e5, -2e5)
    rows, columns = slice(r0, None, step), slice(c0, None, step)
    part = subgrid(large, rows, columns)
    assert (
        np.allclose(part.lonlat(), [a[rows, columns] for a in large.lonlat()], rtol=0, atol=1e-9)
        and part.dx == step * large.dx
    )


def test_one_stride_for_both_axes():
    with pytest.raises(GridError, match="stride"):
        subgrid(QPE_GRID, slice(0, 8, 2), slice(0, 8))


def test_cf_attributes_are_understood_by_pyproj():
    pyproj = pytest.importorskip("pyproj")
    for grid in (QPE_GRID, NWP_GRID):
        crs = pyproj.CRS.from_cf(cf_attributes(grid))
        assert np.allclose(
            pyproj.Proj(crs)(127.0, 36.0), grid.project(127.0, 36.0), rtol=0, atol=1e-3
        )


# ------------------------------------------------------------------ configuration


def test_nothing_changes_a_configuration_in_place():
    with pytest.raises(FrozenInstanceError):
        PRESETS["small"].patch_size = 8


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_fast_cuts_the_steps_and_nothing_else(preset):
    whole, fast = get_config(preset), get_config(preset, fast=True)
    different = {f.name for f in fields(Config) if getattr(whole, f.name) != getattr(fast, f.name)}
    assert (
        different == {"pretrain_steps", "finetune_steps"}
        and fast.pretrain_steps == fast.finetune_steps == 30
    )
    assert (
        get_config(preset, fast=True, pretrain_steps=2).pretrain_steps == 2 and whole.name == preset
    )


def test_images_can_be_cut_into_tokens():
    for c in PRESETS.values():
        assert (
            not [n for n in c.image_size if n % c.patch_size]
            and len(VARIABLES) % c.token_variables == 0
        )
        assert (
            len(c.class_weights) == len(c.edges) + 1
            and 0 < c.finetune_mask_ratio < c.pretrain_mask_ratio < 1
        )


def test_wrong_names_are_named():
    with pytest.raises(DataError, match="'tiny'"):
        get_config("tiny")
    with pytest.raises(DataError, match="batch_sise"):
        get_config("small", batch_sise=3)


@pytest.mark.parametrize("config", PRESETS.values(), ids=lambda c: c.name)
def test_configurations_survive_json(config):
    again = config_from_json(config_to_json(config))
    assert again == config and hash(again) == hash(config)  # lists would not hash


# ------------------------------------------------------------------ helpers


def test_seeds_of_three_libraries():
    def draw(seed):
        g = set_seed(seed)
        return (
            random.random(),
            float(np.random.rand()),
            float(torch.rand(1)),
            float(torch.rand(1, generator=g)),
        )

    assert draw(3) == draw(3)
    assert all(a != b for a, b in zip(draw(3), draw(4)))
    set_seed(2**40)  # more than NumPy takes


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as tmp:
        tmp.write_text("old")
        assert not path.exists() and tmp.parent == path.parent  # a rename must not leave the disk
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as tmp:
        tmp.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file.txt"]
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass  # nothing was written
    assert path.read_text() == "old"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"csi": 0.5})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"csi": object()})
    assert (
        json.loads((tmp_path / "a.json").read_text()) == {"csi": 0.5}
        and len(os.listdir(tmp_path)) == 1
    )


def test_ensure_makes_what_is_missing_once(tmp_path):
    made = []

    def make(path):
        made.append(path)
        path.write_text("x")

    assert ensure(str(tmp_path / "a"), make) == ensure(
        tmp_path / "a", make
    ) == tmp_path / "a" and made == [tmp_path / "a"]


def test_environment_names_what_made_a_result(monkeypatch):
    env = environment()
    assert env["torch"] == torch.__version__.split("+")[0] or env["torch"] == torch.__version__
    assert (
        env["cores"] == os.cpu_count()
        and env["python"] == sys.version.split()[0]
        and json.dumps(env)
    )

    def missing(name):
        raise core.PackageNotFoundError(name)

    monkeypatch.setattr(core, "version", missing)
    assert environment()["timm"] == "not installed"


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == torch.device("cuda") and device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device() == torch.device("cpu")


def test_core_needs_only_numpy_and_torch():
    "Everything imports core, so it must be quick to import."
    code = "import sys, sslpdl_nb.core; print(sorted({'xarray', 'scipy', 'matplotlib', 'cartopy', 'pyproj', 'timm', 'numba', 'pandas'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


# ------------------------------------------------------------------ a configuration checks itself


@pytest.mark.parametrize(
    "changes, field",
    [
        (dict(edges=(10.0, 0.1)), "edges"),
        (dict(edges=(0.0, 10.0)), "edges"),
        (dict(edges=(0.1, 10.0, 30.0)), "class_weights"),
        (dict(class_weights=(1.0, 5.0)), "class_weights"),
        (dict(class_weights=(0.0, 5.0, 10.0)), "class_weights"),
        (dict(image_size=(64, 30)), "image_size"),
        (dict(token_variables=3), "token_variables"),
        (dict(pretrain_mask_ratio=1.5), "pretrain_mask_ratio"),
        (dict(finetune_mask_ratio=-0.1), "finetune_mask_ratio"),
        (dict(beta=2.0), "beta"),
        (dict(warmup=1.1), "warmup"),
        (dict(rain_transform="sqrt"), "rain_transform"),
        (dict(stem_stride=3), "stem_stride"),
        (dict(encoder=""), "encoder"),
        (dict(pretrain_steps=0), "pretrain_steps"),
    ],
)
def test_config_names_the_field_that_does_not_fit(changes, field):
    with pytest.raises(DataError, match=f"Config: {field}: expected"):
        get_config("small", **changes)
    with pytest.raises(DataError, match=f"Config: {field}: expected"):
        replace(PRESETS["small"], **changes)


def test_a_fourth_class_fits_with_a_fourth_weight():
    four = get_config("small", edges=(0.1, 10.0, 30.0), class_weights=(1, 5, 10, 20))
    assert len(four.class_weights) == len(four.edges) + 1
