"Stores keep their form, splits do not leak, missing values follow their policy."

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from sslpdl_nb.core import RAIN, VARIABLE_NAMES, DataError, GridError, SSLPDLError, get_config
from sslpdl_nb.grids.types import LambertGrid, cf_coordinates, crs_attributes, lambert_from_cf
from sslpdl_nb.store import (
    DIMENSIONS,
    RainDataset,
    Standardizer,
    atmosphere_of,
    blocks_of,
    check_store,
    create_store,
    crop,
    find_store,
    in_memory,
    is_store,
    load_splits,
    moments,
    open_store,
    split_days,
    statistics,
    wet_samples,
)

TINY = Path(__file__).resolve().parent.parent / "data_samples" / "tiny"
GRID = LambertGrid(nx=8, ny=9, dx=30e3, x0=110e3, y0=-120e3)
USUAL = dict(
    gh100=16500,
    gh500=5700,
    gh850=1500,
    slp=101000,
    rh500=50,
    rh850=70,
    t2m=290,
    t500=260,
    t850=280,
    rain=1.0,
)
T2M, T500 = (VARIABLE_NAMES.index(name) for name in ("t2m", "t500"))
PARTS = ("train", "valid", "test")


def make_samples(days=10, leads=(25, 27, 30), seed=0, grid=GRID):
    "Samples of daily forecasts: usual values with noise, rain with a column that nobody observed."
    rng = np.random.default_rng(seed)
    n = days * len(leads)
    usual = np.array([USUAL.get(name, 5) for name in VARIABLE_NAMES], np.float32)
    noise = rng.uniform(0, 1, (n, len(VARIABLE_NAMES), *grid.shape)).astype(np.float32)
    rain = rng.gamma(0.3, 3.0, (n, *grid.shape)).astype(np.float32)
    rain[:, :, 0] = np.nan
    hours = np.tile(np.array(leads, float), days)
    start = np.datetime64("2001-06-01", "ns")
    reference = start + np.repeat(np.arange(days), len(leads)) * np.timedelta64(1, "D")
    valid = reference + (hours * 3600).astype("timedelta64[s]")
    coords = dict(
        reference_time=("sample", reference),
        valid_time=("sample", valid),
        lead_time=("sample", hours),
        day=("sample", valid.astype("datetime64[D]").astype("datetime64[ns]")),
        variable=list(VARIABLE_NAMES),
    )
    fields = {
        "forecast": (DIMENSIONS["forecast"], usual[:, None, None] + noise),
        "rain": (DIMENSIONS["rain"], rain),
        "crs": ((), 0, crs_attributes(grid)),
    }
    return xr.Dataset(fields, coords | cf_coordinates(grid), dict(source="synthetic"))


def write_store(samples, path, kept=None):
    "Samples as a finished Zarr store, one after the other, as `sslpdl prepare` writes it."
    times = samples["reference_time"].values, samples["lead_time"].values
    table = list(zip(*times, samples["valid_time"].values))
    create_store(path, lambert_from_cf(samples), table, dict(samples.attrs, complete=0))
    group = zarr.open_group(str(path), mode="r+")
    for k in range(len(table)):
        group["forecast"][k] = samples["forecast"].values[k]
        group["rain"][k] = samples["rain"].values[k]
        group["moments"][k] = moments(samples["forecast"].values[k])
    group["kept"][:] = np.ones(len(table), np.int8) if kept is None else kept
    group.attrs["complete"] = 1
    return path


@pytest.fixture(scope="module")
def samples():
    return make_samples()


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    "Twenty days on disk; two lead times of one day lack a variable in some rows."
    samples = make_samples(20)
    samples["forecast"][9:11, T500, 6:] = np.nan
    return write_store(samples, tmp_path_factory.mktemp("twenty") / "store.zarr")


def raises(kind, *words):
    return pytest.raises(kind, match=".*".join(words) or None)


def same(a, b):
    return torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


# ------------------------------------------------------------------ the form


def _with(name, change):
    return lambda d: d.assign({name: change(d[name])})


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (lambda d: d.drop_vars("rain"), DataError, ("variable rain",)),
        (lambda d: d.drop_vars("valid_time"), DataError, ("variable valid_time",)),
        (lambda d: d.transpose("variable", ...), DataError, ("dimensions of forecast",)),
        (lambda d: d.isel(sample=0), DataError, ("dimensions of forecast",)),
        (lambda d: d.isel(variable=slice(3)), DataError, ("variables", "16", "3")),
        (
            _with("valid_time", lambda t: t + np.timedelta64(1, "h")),
            DataError,
            ("reference_time .+ lead_time",),
        ),
        (lambda d: d.drop_vars("crs"), GridError, ("crs",)),
        (lambda d: d.isel(x=[0, 2, 3]), GridError, ("regular",)),
    ],
)
def test_another_form_is_refused(samples, change, kind, words):
    check_store(samples, "good")
    changed = change(samples)
    with raises(kind, "bad", *words):
        check_store(changed, "bad")


def test_both_formats_hold_the_same(samples, tmp_path):
    stored = samples.drop_vars(["day", "variable"])
    stored.to_netcdf(tmp_path / "store.nc")
    write_store(samples, tmp_path / "store.zarr")
    for name in ("store.nc", "store.zarr"):
        back = open_store(tmp_path / name)
        for variable in ("forecast", "rain", "reference_time", "valid_time", "lead_time", "day"):
            assert np.array_equal(back[variable], samples[variable], equal_nan=variable == "rain")
        assert lambert_from_cf(back) == GRID and back.attrs["source"] == "synthetic"
        assert in_memory(back) and is_store(back) and is_store(tmp_path / name)
        lazy = open_store(tmp_path / name, memory=1)
        assert not in_memory(lazy) and np.array_equal(lazy["forecast"], samples["forecast"])


def test_what_is_no_store(samples, tmp_path):
    (tmp_path / "text.nc").write_text("hello")
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "other.nc")
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "other.zarr")
    for name in ("text.nc", "other.nc", "other.zarr", "none.zarr", "."):
        assert not is_store(tmp_path / name)
        with raises(DataError):
            open_store(tmp_path / name)
    assert not is_store(samples.drop_vars("forecast"))


def test_samples_that_were_not_written_are_left_out(samples, tmp_path):
    kept = np.ones(30, np.int8)
    kept[[3, 17]] = 0
    back = open_store(write_store(samples, tmp_path / "store.zarr", kept))
    assert back.sizes["sample"] == 28
    assert np.array_equal(back["rain"], samples["rain"][kept.astype(bool)], equal_nan=True)


def test_an_unfinished_store_is_refused(samples, tmp_path):
    path = write_store(samples, tmp_path / "store.zarr")
    zarr.open_group(str(path), mode="r+").attrs["complete"] = 0
    with raises(DataError, "a finished store", "sslpdl prepare"):
        open_store(path)
    assert is_store(path)


def damaged_copies(good, rng, n):
    for k in range(n):
        bad = bytearray(good)
        if k % 2 == 0:
            bad = bad[: rng.integers(len(bad))]
        else:
            for _ in range(rng.integers(1, 4)):
                bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        yield bytes(bad)


def test_damaged_stores_raise_our_error_and_nothing_else(tmp_path):
    path = write_store(make_samples(1), tmp_path / "store.zarr")
    rng, refused = np.random.default_rng(0), 0
    names = ["zarr.json", "forecast/zarr.json", "kept/c/0", "valid_time/c/0", "forecast/c/0/0/0/0"]
    for name in names:
        good = (path / name).read_bytes()
        for bad in damaged_copies(good, rng, 12):
            (path / name).write_bytes(bad)
            try:
                open_store(path)
            except SSLPDLError as error:
                refused += 1
                assert "store.zarr" in str(error)
        (path / name).write_bytes(good)
    open_store(path)
    assert refused > 20


def test_damaged_netcdf_stores(tmp_path):
    stored = make_samples(1).drop_vars(["day", "variable"])
    stored.to_netcdf(tmp_path / "good.nc", encoding=dict(forecast=dict(zlib=True)))
    good, refused = (tmp_path / "good.nc").read_bytes(), 0
    for bad in damaged_copies(good, np.random.default_rng(1), 40):
        (tmp_path / "bad.nc").write_bytes(bad)
        try:
            open_store(tmp_path / "bad.nc")
        except SSLPDLError as error:
            refused += 1
            assert "bad.nc" in str(error)
    assert refused >= 20


# ------------------------------------------------------------------ finding a store


def test_a_folder_with_one_store_will_do(samples, tmp_path):
    path = write_store(samples, tmp_path / "a.zarr")
    assert find_store(path) == path
    with raises(DataError, "none", "sslpdl prepare", "sslpdl simulate"):
        find_store(tmp_path)  # without a manifest it is not known to be finished
    (path / "manifest.json").write_text("{}")
    assert find_store(tmp_path) == path
    shutil.copytree(path, tmp_path / "b.zarr")
    with raises(DataError, "one of them", "a.zarr", "b.zarr"):
        find_store(tmp_path)
    with raises(DataError, "nowhere"):
        find_store(tmp_path / "nowhere")


def test_nothing_is_prepared_behind_the_back_of_the_user(tmp_path):
    for name in ("nwp.nc", "qpe.nc"):
        shutil.copy(TINY / name, tmp_path / name)
    command = "sslpdl prepare --nwp .*nwp.nc --qpe .*qpe.nc .*--out .*store.zarr"
    with raises(DataError, "a store of samples", command):
        load_splits(tmp_path, get_config("small"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nwp.nc", "qpe.nc"]


# ------------------------------------------------------------------ splits


def test_wet_samples_need_observed_pixels(samples):
    s = samples.copy(deep=True)
    s["rain"][:] = 0.0
    s["rain"][0] = np.nan
    s["rain"][1, 0, 0] = 0.1
    assert wet_samples(s, 1e-6).sizes["sample"] == 1
    assert wet_samples(s, 0.0).sizes["sample"] == s.sizes["sample"] - 1


@given(st.integers(3, 60), st.integers(0, 2**31))
def test_no_day_in_two_splits(n, seed):
    numbers = np.random.default_rng(seed).integers(0, 90, n)
    days = np.datetime64("2001-01-01", "ns") + numbers * np.timedelta64(1, "D")
    s = xr.Dataset({"a": ("sample", np.arange(n))}, {"day": ("sample", days)})
    try:
        parts = split_days(s)
    except DataError:
        return
    train, valid, test = (set(parts[p]["day"].values.tolist()) for p in PARTS)
    assert max(train) < min(valid) <= max(valid) < min(test)
    assert sum(p.sizes["sample"] for p in parts.values()) == n


def test_gap_and_bad_fractions(samples):
    assert split_days(samples, (0.5, 0.3, 0.2), gap=1)["test"].sizes["sample"] == 3
    for bad in ((0.5, 0.5), (0.9, 0.2, 0.2), (1.0, 0.0, 0.0)):
        with raises(DataError, "fractions"):
            split_days(samples, bad)
    with raises(DataError, "at least one"):
        split_days(samples.isel(sample=slice(0, 3)))


def test_days_between_the_splits(twenty):
    config = get_config(image_size=(8, 8))

    def between(splits):
        days = [splits.samples[p]["day"].values for p in PARTS]
        pauses = [b.min() - a.max() for a, b in zip(days, days[1:])]
        return [int(pause / np.timedelta64(1, "D")) for pause in pauses]

    assert between(load_splits(twenty, config)) == [2, 2]
    assert between(load_splits(twenty, config, gap=0)) == [1, 1]
    a, b = (load_splits(TINY, get_config("small"), gap=g) for g in (0, 1))  # already two days apart
    assert all(a.samples[k].identical(b.samples[k]) for k in a.samples)


def test_statistics_do_not_see_the_test(samples):
    other = samples.copy(deep=True)
    other["forecast"][np.isin(samples["day"], split_days(samples)["test"]["day"])] = 777
    trained = [Standardizer.fit(split_days(s)["train"]) for s in (other, samples)]
    assert trained[0] == trained[1]


def test_atmospheres_are_counted(samples):
    assert np.unique(atmosphere_of(samples)).size == 10  # the day is the unit
    shared = samples.assign_attrs(times_per_atmosphere=5)
    assert np.bincount(atmosphere_of(shared)).tolist() == [15, 15]


# ------------------------------------------------------------------ standardising


@pytest.mark.parametrize("transform", ["log1p", "none"])
def test_standardizer(samples, transform):
    s = Standardizer.fit(samples, transform)
    x = samples["forecast"].values
    z = s.transform(x)
    assert z.dtype == np.float32 and np.abs(z.mean((0, 2, 3))).max() < 2e-2
    assert np.allclose(z.std((0, 2, 3)), 1, atol=2e-2)
    assert np.allclose(s.inverse(z), x, rtol=1e-4, atol=1e-2)
    t = s.transform(torch.from_numpy(x))
    assert t.dtype == torch.float32 and np.allclose(t.numpy(), z, atol=1e-4)
    assert np.allclose(s.inverse(t).numpy(), x, rtol=1e-4, atol=1e-2)
    assert np.allclose(s.transform(x[0]), z[0])
    assert Standardizer.from_dict(s.to_dict()) == s


def test_standardizer_of_difficult_fields(samples):
    s = samples.copy(deep=True)
    s["forecast"][:, 3] = 100000.0  # constant
    s["forecast"][:2, 5] = np.nan
    fit = Standardizer.fit(s)
    assert fit.std[3] == 1 and np.isfinite(fit.mean).all()
    z = fit.transform(s["forecast"].values)
    assert np.isfinite(z).all() and (z[:2, 5] == 0).all()
    assert np.isnan(fit.transform(s["forecast"].values, missing=np.nan)).any()
    s["forecast"][:, 5] = np.nan
    for bad in (s, s.isel(sample=[])):
        with raises(DataError, "training samples"):
            Standardizer.fit(bad)
    with raises(DataError, "rain_transform"):
        Standardizer.fit(samples, "cube")


def test_moments_of_missing_and_negative_values(samples):
    x = samples["forecast"].values.copy()
    x[:, RAIN] -= 0.2  # some of it negative
    x[0, T2M] = np.nan
    x[1, T2M, 0] = np.nan
    mean, std = statistics([moments(one) for one in x])
    expected = x.astype(float)
    expected[:, RAIN] = np.log1p(np.maximum(expected[:, RAIN], 0))
    assert np.allclose(mean, np.nanmean(expected, (0, 2, 3)), rtol=1e-12)
    assert np.allclose(std, np.nanstd(expected, (0, 2, 3)), rtol=1e-9)


# ------------------------------------------------------------------ datasets


def test_dataset(samples):
    s = samples.copy(deep=True)
    s["forecast"][0, T2M, 0, 0] = np.nan
    data = RainDataset(s, Standardizer.fit(s))
    item = data[0]
    assert len(data) == 30 and item["x"].shape == (16, *GRID.shape)
    assert item["x"][T2M, 0, 0] == 0 and data.missing_values()["t2m"] == 1
    assert torch.isnan(item["rain"][:, 0]).all()
    assert item["lead_time"] == 25.0 and item["index"] == 0
    batch = next(iter(torch.utils.data.DataLoader(data, 3)))
    assert set(batch) == {"x", "rain", "lead_time", "index"}
    assert torch.equal(data.inputs()[:3], batch["x"])
    assert same(data.observed_rain()[:3], batch["rain"])


# ------------------------------------------------------------------ the whole way


def test_load_splits_on_the_sample():
    config = get_config("small")
    a = load_splits(TINY, config)
    assert a.grid.shape == config.image_size and min(len(a.train), len(a.valid), len(a.test)) > 0
    assert all(torch.isfinite(d.inputs()).all() for d in (a.train, a.valid, a.test))
    assert Standardizer.fit(a.samples["train"]) == a.standardizer
    b = load_splits(TINY / "store.zarr", config, min_fraction=0.3)
    assert len(b.train) < len(a.train) and len(b.test) == len(a.test)
    assert len(b.pretrain) == len(a.train)


def test_image_size(twenty):
    splits = load_splits(twenty, get_config(image_size=(8, 4)))
    assert splits.grid.shape == (8, 4) and splits.train[0]["x"].shape == (16, 8, 4)
    assert splits.grid.x0 == GRID.x0 + 2 * GRID.dx
    with raises(DataError, "64 x 32", "9 x 8"):
        load_splits(twenty, get_config())
    with raises(DataError, "10 x 4"):
        crop(make_samples(1), (10, 4))
    whole = open_store(twenty)
    assert crop(whole, GRID.shape) is whole and "moments" in whole
    assert "moments" not in crop(whole, (8, 4))  # they are those of the whole image


def test_missing_input_is_filled_or_refused(twenty):
    config = get_config(image_size=(8, 8))
    splits = load_splits(twenty, config)
    assert splits.train.missing_values()["t500"] == 2 * 2 * GRID.nx  # two of three rows remain
    assert sum(splits.test.missing_values().values()) == 0
    for memory in (4e9, 1):
        with raises(DataError, "no missing values"):
            load_splits(twenty, config, missing="refuse", memory=memory)


# ------------------------------------------------------------------ more than fits into memory


@pytest.mark.parametrize("size", [(8, 4), (8, 8)])
def test_on_disk_equals_in_memory(twenty, size):
    config = get_config(image_size=size)
    a, b = load_splits(twenty, config), load_splits(twenty, config, memory=1)
    assert b.train.lazy and not a.train.lazy and len(a.train) == len(b.train) and a.grid == b.grid
    assert np.allclose(a.standardizer.mean, b.standardizer.mean, rtol=1e-12)
    assert np.allclose(a.standardizer.std, b.standardizer.std, rtol=1e-9)
    for part in (*PARTS, "pretrain"):
        x, y = getattr(a, part), getattr(b, part)
        assert torch.allclose(x.inputs(), y.inputs(), atol=1e-4)
        assert same(x.observed_rain(), y.observed_rain())
        assert x.missing_values() == y.missing_values() and x.lead_time == y.lead_time
    lazy, eager = (load_splits(twenty, config, memory=m, min_fraction=0.65) for m in (1, 4e9))
    assert len(lazy.train) == len(eager.train) < len(b.train)


def test_statistics_of_untransformed_rain_on_disk(twenty):
    config = get_config(image_size=(8, 8), rain_transform="none")
    a, b = (load_splits(twenty, config, memory=m).standardizer for m in (4e9, 1))
    assert np.allclose(a.mean, b.mean, rtol=1e-6) and np.allclose(a.std, b.std, rtol=1e-5)


def test_blocks(twenty):
    lazy = open_store(twenty, memory=1)
    sizes = [block.sizes["sample"] for block in blocks_of(lazy, 25)]
    assert sizes == [25, 25, 10] and len(blocks_of(open_store(twenty))) == 1


def test_on_disk_with_worker_processes(twenty):
    train = load_splits(twenty, get_config(image_size=(8, 4)), memory=1).train
    loaders = [torch.utils.data.DataLoader(train, 4, num_workers=n) for n in (0, 2)]
    alone, helped = ([batch["x"] for batch in loader] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(alone, helped))


# ------------------------------------------------------------------ variables that a model lacks


@pytest.mark.parametrize("memory", [4e9, 1.0])
def test_absent_variables_must_be_named(samples, tmp_path, memory):
    without = samples.copy(deep=True)
    without["forecast"][:, 0] = np.nan
    write_store(without, tmp_path / "silent.zarr")
    with raises(DataError, "gh100"):
        Standardizer.fit(open_store(tmp_path / "silent.zarr", memory))
    without.attrs["absent_variables"] = "gh100"
    write_store(without, tmp_path / "said.zarr")
    standardizer = Standardizer.fit(open_store(tmp_path / "said.zarr", memory))
    assert standardizer.mean[0] == 0 and standardizer.std[0] == 1
    z = standardizer.transform(without["forecast"].values)
    assert (z[:, 0] == 0).all() and np.isfinite(z).all()
