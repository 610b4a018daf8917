"Readers refuse what is wrong, pairs match in time, splits do not leak, missing values follow their policy."

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sslpdl_nb.core import VARIABLE_NAMES, VARIABLES, DataError, GridError, SSLPDLError, get_config
from sslpdl_nb.grids.types import LambertGrid, cf_attributes
from sslpdl_nb.store import RainDataset, Standardizer, crop, load_splits, pair, rainy, split_days
from sslpdl_nb.io.nwp import check_nwp, find_data, open_nwp
from sslpdl_nb.io.qpe import check_qpe, open_qpe
from sslpdl_nb.io.derive import UNITS, check_values, to_units
from sslpdl_nb.grids.regrid import Regridder
from sslpdl_nb.grids.types import lambert_from_cf

NWP = LambertGrid(14, 16, 30e3, -200e3, -230e3, 128.0, 38.0, (35.0, 50.0))
QPE = LambertGrid(8, 9, 30e3, -60e3 + 170e3, -120e3)
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
ROOT = Path(__file__).resolve().parent.parent


def cf_coordinates(grid):
    lon, lat = grid.lonlat()
    return dict(y=grid.y, x=grid.x, latitude=(("y", "x"), lat), longitude=(("y", "x"), lon))


def make_nwp(days=10, leads=(25, 27, 30), seed=0):
    rng, shape = np.random.default_rng(seed), (days, len(leads), *NWP.shape)
    fields = {
        v.name: (
            ("time", "lead_time", "y", "x"),
            (USUAL.get(v.name, 5) + rng.uniform(0, 1, shape)).astype(np.float32),
            {"units": v.units},
        )
        for v in VARIABLES
    }
    coords = dict(
        time=np.datetime64("2001-06-01", "ns") + np.arange(days) * np.timedelta64(1, "D"),
        lead_time=np.array(leads, "timedelta64[h]").astype("timedelta64[ns]"),
    )
    return xr.Dataset(fields | {"crs": ((), 0, cf_attributes(NWP))}, coords | cf_coordinates(NWP))


def make_qpe(nwp, seed=1):
    times = np.unique((nwp["time"].values[:, None] + nwp["lead_time"].values).ravel())
    rain = np.random.default_rng(seed).gamma(0.3, 3.0, (times.size, *QPE.shape)).astype(np.float32)
    rain[:, :, 0] = np.nan
    return xr.Dataset(
        {
            "rain": (("time", "y", "x"), rain, {"units": "mm h-1"}),
            "crs": ((), 0, cf_attributes(QPE)),
        },
        dict(time=times) | cf_coordinates(QPE),
    )


@pytest.fixture(scope="module")
def samples():
    nwp = make_nwp()
    return pair(check_nwp(nwp, "nwp"), check_qpe(make_qpe(nwp), "qpe"))


def raises(kind, *words):
    return pytest.raises(kind, match=".*".join(words) or None)


# opening


def test_round_trip_through_a_file(tmp_path):
    nwp = make_nwp(2)
    nwp.to_netcdf(
        tmp_path / "nwp.nc", encoding={"lead_time": {"units": "hours", "dtype": "float64"}}
    )
    back = open_nwp(tmp_path / "nwp.nc")
    assert (
        np.array_equal(back["t850"], nwp["t850"])
        and lambert_from_cf(back) == NWP
        and back["slp"].dtype == np.float32
    )
    make_qpe(nwp).to_netcdf(tmp_path / "qpe.nc")
    assert np.isnan(open_qpe(tmp_path / "qpe.nc")["rain"][:, :, 0]).all()


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "an empty file"),
        (b"GRIB\x00\x00\x00\x01", "GRIB"),
        (b"hello world", "hello"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "readable"),
        (b"CDF\x01" + bytes(40), "variables"),
    ],
)
def test_not_netcdf(tmp_path, content, word):
    (tmp_path / "nwp.nc").write_bytes(content)
    with raises(DataError, "nwp.nc", word):
        open_nwp(tmp_path / "nwp.nc")


def test_absent_files(tmp_path):
    for name in ("none.nc", "none.zarr"):
        with raises(DataError, "none", "nothing there"):
            open_nwp(tmp_path / name)
    (tmp_path / "folder.nc").mkdir()
    with raises(DataError, "folder.nc"):
        open_qpe(tmp_path / "folder.nc")
    with raises(DataError, "sslpdl simulate"):
        find_data(tmp_path)


def test_zarr_round_trip(tmp_path):
    pytest.importorskip("zarr")
    nwp = make_nwp(2)
    nwp.to_zarr(tmp_path / "nwp.zarr")
    assert np.array_equal(open_nwp(tmp_path / "nwp.zarr")["t850"], nwp["t850"])


def _with(name, change):
    return lambda d: d.assign({name: change(d[name])})


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (lambda d: d.drop_vars(["t2m", "u10"]), DataError, ("all but", "t2m", "u10")),
        (_with("slp", lambda a: a.assign_attrs(units="atm")), DataError, ("slp", "units", "'atm'")),
        (_with("slp", lambda a: a.drop_attrs()), DataError, ("slp", "no units")),
        (_with("rain", lambda a: a.assign_attrs(units="mm")), DataError, ("rain", "'mm'")),
        (_with("rain", lambda a: a.assign_attrs(units="mm/day")), DataError, ("rain", "mm/day")),
        (_with("t500", lambda a: a - 200), DataError, ("t500", "130")),
        (_with("gh500", lambda a: a * 9.8), DataError, ("gh500", "4000")),
        (_with("rain", lambda a: a - 9999), DataError, ("rain", "0 and 1000")),
        (_with("v850", lambda a: a * np.nan), DataError, ("v850", "missing")),
        (_with("v850", lambda a: a.where(a != a[0, 0, 0, 0], np.inf)), DataError, ("v850", "inf")),
        (_with("u10", lambda a: a.isel(lead_time=0)), DataError, ("u10", "dimensions")),
        (_with("u10", lambda a: a.astype(str)), DataError, ("u10", "numbers")),
        (lambda d: d.isel(time=[1, 0, 2]), DataError, ("time", "increase")),
        (lambda d: d.isel(time=[0, 0, 1]), DataError, ("time", "increase")),
        (lambda d: d.isel(time=[]), DataError, ("time", "increase")),
        (lambda d: d.assign_coords(time=[1, 2, 3]), DataError, ("time", "dates")),
        (
            lambda d: d.assign_coords(lead_time=[25.0, 27, 30]),
            DataError,
            ("lead_time", "durations"),
        ),
        (lambda d: d.drop_vars("lead_time"), DataError, ("lead_time",)),
        (lambda d: d.drop_vars("crs"), GridError, ("crs",)),
        (lambda d: d.assign_coords(x=d["x"] + 5e3), GridError, ("longitude",)),
        (lambda d: d.isel(x=[0, 2, 3]), GridError, ("regular",)),
    ],
)
def test_wrong_forecasts(change, kind, words):
    nwp = make_nwp(3)
    with raises(kind, "bad.nc", *words):
        changed = change(nwp)
        for name in changed.data_vars:
            if name in VARIABLE_NAMES and "units" not in changed[name].attrs and name != "slp":
                changed[name].attrs["units"] = nwp[name].attrs["units"]
        check_nwp(changed, "bad.nc")


def test_order_of_dimensions_and_rows_does_not_matter():
    nwp = make_nwp(2)
    turned = check_nwp(
        nwp.isel(y=slice(None, None, -1)).transpose("x", "lead_time", "y", "time"), "turned"
    )
    xr.testing.assert_allclose(turned, check_nwp(nwp, "straight"))


def test_longitudes_of_0_to_360_are_the_same():
    nwp = make_nwp(2)
    check_nwp(nwp.assign_coords(longitude=nwp["longitude"] - 360), "west")


def test_small_negative_rain_is_counted():
    nwp = make_nwp(2)
    nwp["rain"][0, 0, 0, :3] = -0.004
    checked = check_nwp(nwp, "a")
    assert float(checked["rain"].min()) == 0 and "3 slightly negative" in checked.attrs["note"]


@pytest.mark.parametrize(
    "units, factor, offset", [(u, *f) for u in UNITS for f in UNITS[u].values()]
)
def test_unit_table_is_sane(units, factor, offset):
    assert np.isfinite(factor) and factor > 0 and offset >= 0


@given(st.text(max_size=8))
def test_any_unit_is_converted_or_refused(text):
    try:
        assert to_units(xr.DataArray([1.0], attrs={"units": text}), "K", "f").attrs["units"] == "K"
    except DataError as error:
        assert "f: units" in str(error)


def test_known_conversions():
    def one(v, u):
        return xr.DataArray([v], attrs={"units": u})

    assert (
        to_units(one(1013.0, "hPa"), "Pa", "") == 101300
        and to_units(one(1.0, "kg m-2 s-1"), "mm h-1", "") == 3600
    )
    assert to_units(one(25.0, "degC"), "K", "") == 298.15 and to_units(one(0.5, "1"), "%", "") == 50
    assert to_units(one(10.0, "m.s-1".replace(".", " ")), "m s-1", "") == 10 and to_units(
        one(9806.65, "m**2 s**-2"), "m", ""
    ) == pytest.approx(1000)


def test_single_pixel_values():
    assert check_values(np.array([[5.0]]), "rain", "")[0].shape == (1, 1)
    with raises(DataError):
        check_values(np.zeros((0,)), "rain", "empty")


# damaged files


def damaged_copies(good, rng, n):
    for k in range(n):
        bad = bytearray(good)
        if k % 2 == 0:
            yield bytes(bad[: rng.integers(len(bad))])
        else:
            for _ in range(rng.integers(1, 4)):
                bad[rng.integers(len(bad) if k % 4 == 1 else min(len(bad), 20_000))] ^= (
                    1 << rng.integers(8)
                )
            yield bytes(bad)


@pytest.mark.parametrize("which", ["nwp", "qpe"])
def test_damaged_files_raise_our_error_and_nothing_else(tmp_path, which):
    source = make_nwp(2) if which == "nwp" else make_qpe(make_nwp(2))
    packed = {n: dict(zlib=True) for n in source.data_vars if source[n].ndim > 2}
    source.to_netcdf(tmp_path / "good.nc", encoding=packed)
    path, opener, refused = tmp_path / "bad.nc", open_nwp if which == "nwp" else open_qpe, 0
    for bad in damaged_copies((tmp_path / "good.nc").read_bytes(), np.random.default_rng(0), 80):
        path.write_bytes(bad)
        try:
            opener(path)
        except SSLPDLError as error:
            refused += 1
            assert "bad.nc" in str(error)
    assert refused >= 40


def test_truncated_sample(tmp_path):
    nwp, qpe = find_data(ROOT / "data_samples/tiny")
    for path, opener in ((nwp, open_nwp), (qpe, open_qpe)):
        good = path.read_bytes()
        for size in (1, 8, 100, len(good) // 3, len(good) - 1):
            (tmp_path / "cut.nc").write_bytes(good[:size])
            with raises(DataError, "cut.nc"):
                opener(tmp_path / "cut.nc")


# pairing


def test_pairs_have_the_same_hour(samples):
    hours = (samples["valid_time"].values - samples["init_time"].values) / np.timedelta64(1, "h")
    assert (
        np.array_equal(hours, samples["lead_time"])
        and (np.diff(samples["valid_time"]) >= np.timedelta64(0)).all()
    )
    qpe = make_qpe(make_nwp())
    for k in (0, 7, 29):
        assert np.array_equal(
            samples["rain"][k], qpe["rain"].sel(time=samples["valid_time"][k]), equal_nan=True
        )


def test_forecast_is_regridded_from_its_own_run(samples):
    nwp, k = check_nwp(make_nwp(), "nwp"), 11
    own = (
        nwp["t850"]
        .sel(
            time=samples["init_time"][k],
            lead_time=np.timedelta64(int(samples["lead_time"][k]), "h"),
        )
        .values
    )
    assert np.array_equal(
        samples["forecast"][k, VARIABLE_NAMES.index("t850")], Regridder.between(NWP, QPE)(own)
    )


def test_unpaired_times_are_left_out():
    nwp = make_nwp(4)
    qpe = make_qpe(nwp)
    assert pair(nwp, qpe.isel(time=[1, 5])).sizes["sample"] == 2
    late = qpe.assign_coords(time=qpe["time"] + np.timedelta64(1000, "D"))
    with raises(DataError, "2001-06-02T01", "observations of 2004"):
        pair(nwp, late)


def test_grids_that_do_not_meet():
    nwp = make_nwp(2)
    qpe = make_qpe(nwp)
    with raises(GridError, "covers"):
        pair(nwp, qpe, Regridder(*NWP.lonlat(), *np.add(QPE.lonlat(), [[[60.0]], [[0.0]]])))
    with raises(GridError, "target"):
        pair(nwp, qpe, Regridder.between(NWP, NWP))


def test_rainy_needs_observed_pixels(samples):
    s = samples.copy(deep=True)
    s["rain"][:] = 0.0
    s["rain"][0] = np.nan
    s["rain"][1, 0, 0] = 0.1
    assert (
        rainy(s, 1e-6)["sample"].size == 1 and rainy(s, 0.0)["sample"].size == s["sample"].size - 1
    )


# splits


@given(st.integers(3, 60), st.integers(0, 2**31))
def test_no_day_in_two_splits(n, seed):
    days = np.datetime64("2001-01-01") + np.random.default_rng(seed).integers(0, 90, n).astype(
        "timedelta64[D]"
    )
    s = xr.Dataset(
        {"a": ("sample", np.arange(n))}, {"day": ("sample", days.astype("datetime64[ns]"))}
    )
    try:
        parts = split_days(s)
    except DataError:
        return
    sets = [set(p["day"].values.tolist()) for p in parts.values()]
    assert (
        max(sets[0]) < min(sets[1]) <= max(sets[1]) < min(sets[2])
        and sum(p["sample"].size for p in parts.values()) == n
    )


def test_gap_and_bad_fractions(samples):
    assert split_days(samples, (0.5, 0.3, 0.2), gap=1)["test"].sizes["sample"] == 3
    for bad in ((0.5, 0.5), (0.9, 0.2, 0.2), (1.0, 0.0, 0.0)):
        with raises(DataError, "fractions"):
            split_days(samples, bad)
    with raises(DataError, "at least one"):
        split_days(samples.isel(sample=slice(0, 3)))


def test_statistics_do_not_see_the_test(samples):
    other = samples.copy(deep=True)
    other["forecast"][np.isin(samples["day"], split_days(samples)["test"]["day"])] = 777
    assert Standardizer.fit(split_days(other)["train"]) == Standardizer.fit(
        split_days(samples)["train"]
    )


def test_days_between_the_splits(tmp_path):
    nwp = make_nwp(20)
    nwp.to_netcdf(tmp_path / "nwp.nc")
    make_qpe(nwp).to_netcdf(tmp_path / "qpe.nc")
    config, between = (
        get_config(image_size=QPE.shape),
        lambda s: [
            int((b["day"].values.min() - a["day"].values.max()) / np.timedelta64(1, "D"))
            for a, b in zip([s["train"], s["valid"]], [s["valid"], s["test"]])
        ],
    )
    assert between(load_splits(tmp_path, config).samples) == [2, 2] and between(
        load_splits(tmp_path, config, gap=0).samples
    ) == [1, 1]
    a, b = (
        load_splits("../data_samples/tiny", get_config("small"), gap=g) for g in (0, 1)
    )  # two days apart by themselves
    assert all(a.samples[k].identical(b.samples[k]) for k in a.samples)


# standardising


@pytest.mark.parametrize("transform", ["log1p", "none"])
def test_standardizer(samples, transform):
    s = Standardizer.fit(samples, transform)
    x = samples["forecast"].values
    z = s.transform(x)
    assert (
        z.dtype == np.float32
        and np.abs(z.mean((0, 2, 3))).max() < 2e-2
        and np.allclose(z.std((0, 2, 3)), 1, atol=2e-2)
    )
    assert np.allclose(s.inverse(z), x, rtol=1e-4, atol=1e-2)
    t = s.transform(torch.from_numpy(x))
    assert (
        t.dtype == torch.float32
        and np.allclose(t.numpy(), z, atol=1e-4)
        and np.allclose(s.inverse(t).numpy(), x, rtol=1e-4, atol=1e-2)
    )
    assert np.allclose(s.transform(x[0]), z[0]) and Standardizer.from_dict(s.to_dict()) == s


def test_standardizer_of_difficult_fields(samples):
    s = samples.copy(deep=True)
    s["forecast"][:, 3] = 100000.0  # constant
    s["forecast"][:2, 5] = np.nan  # with holes
    fit = Standardizer.fit(s)
    assert fit.std[3] == 1 and np.isfinite(fit.mean).all()
    z = fit.transform(s["forecast"].values)
    assert (
        np.isfinite(z).all()
        and (z[:2, 5] == 0).all()
        and np.isnan(fit.transform(s["forecast"].values, missing=np.nan)).any()
    )
    s["forecast"][:, 5] = np.nan
    with raises(DataError, "training samples"):
        Standardizer.fit(s)
    with raises(DataError, "training samples"):
        Standardizer.fit(s.isel(sample=[]))
    with raises(DataError, "rain_transform"):
        Standardizer.fit(samples, "cube")


def test_dataset(samples):
    s = samples.copy(deep=True)
    s["forecast"][0, 6, 0, 0] = np.nan
    data = RainDataset(s, Standardizer.fit(s))
    item = data[0]
    assert (
        len(data) == 30
        and item["x"].shape == (16, *QPE.shape)
        and item["x"][6, 0, 0] == 0
        and data.filled["t2m"] == 1
    )
    assert (
        torch.isnan(item["rain"][:, 0]).all() and item["lead_time"] == 25.0 and item["index"] == 0
    )
    assert set(next(iter(torch.utils.data.DataLoader(data, 3)))) == {
        "x",
        "rain",
        "lead_time",
        "index",
    }


# the whole way


def test_load_splits_on_the_sample():
    config = get_config("small")
    a = load_splits("../data_samples/tiny", config)
    assert a.grid.shape == config.image_size and min(len(a.train), len(a.valid), len(a.test)) > 0
    assert all(torch.isfinite(d.x).all() for d in (a.train, a.valid, a.test))
    assert Standardizer.fit(a.samples["train"]) == a.standardizer
    b = load_splits(ROOT / "data_samples/tiny", config, min_fraction=0.3)
    assert len(b.train) < len(a.train) and len(b.test) == len(a.test)


def test_image_size(tmp_path):
    nwp = make_nwp(20)
    nwp.to_netcdf(tmp_path / "nwp.nc")
    make_qpe(nwp).to_netcdf(tmp_path / "qpe.nc")
    splits = load_splits(tmp_path, get_config(image_size=(7, 4)))
    assert (
        splits.grid.shape == (7, 4)
        and splits.grid.x0 == QPE.x0 + 2 * QPE.dx
        and splits.train[0]["x"].shape == (16, 7, 4)
    )
    with raises(DataError, "64 x 32", "9 x 8"):
        load_splits(tmp_path, get_config())
    with raises(DataError):
        crop(make_qpe(nwp), (10, 4))


def test_missing_input_is_filled_or_refused(tmp_path):
    nwp = make_nwp(20)
    nwp["t500"][3, 0] = np.nan
    nwp.to_netcdf(tmp_path / "nwp.nc")
    make_qpe(nwp).to_netcdf(tmp_path / "qpe.nc")
    config = get_config(image_size=QPE.shape)
    splits = load_splits(tmp_path, config)
    assert splits.train.filled["t500"] == QPE.nx * QPE.ny and sum(splits.test.filled.values()) == 0
    with raises(DataError, "no missing values"):
        load_splits(tmp_path, config, missing="refuse")


# more than fits into memory


def test_on_disk_equals_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLPDL_CACHE", str(tmp_path / "cache"))
    nwp = make_nwp(20)
    nwp["t500"][3, 0, 6:] = np.nan
    nwp.to_zarr(tmp_path / "nwp.zarr")
    make_qpe(nwp).to_zarr(tmp_path / "qpe.zarr")
    config = get_config(image_size=(7, 4))
    a, b = load_splits(tmp_path, config), load_splits(tmp_path, config, memory=1)
    assert b.train.lazy and not a.train.lazy and len(a.train) == len(b.train) and a.grid == b.grid
    assert np.allclose(a.standardizer.mean, b.standardizer.mean, rtol=1e-12) and np.allclose(
        a.standardizer.std, b.standardizer.std, rtol=1e-9
    )
    for part in ("train", "valid", "test", "pretrain"):
        x, y = getattr(a, part), getattr(b, part)
        assert (
            torch.allclose(x.x, y.x, atol=1e-4)
            and torch.equal(x.rain.nan_to_num(-1), y.rain.nan_to_num(-1))
            and x.filled == y.filled
            and x.lead_time == y.lead_time
        )
    again = load_splits(tmp_path, config, memory=1, min_fraction=0.45)
    assert len(again.train) < len(b.train) and len(list((tmp_path / "cache").iterdir())) == 1
    assert len(load_splits(tmp_path, config, memory=1, min_fraction=0.45).train) == len(
        load_splits(tmp_path, config, min_fraction=0.45).train
    )
    with raises(DataError, "no missing values"):
        load_splits(tmp_path, config, memory=1, missing="refuse")


def test_on_disk_with_worker_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLPDL_CACHE", str(tmp_path / "cache"))
    nwp = make_nwp(12)
    nwp.to_zarr(tmp_path / "nwp.zarr")
    make_qpe(nwp).to_zarr(tmp_path / "qpe.zarr")
    train = load_splits(tmp_path, get_config(image_size=(7, 4)), memory=1).train
    alone, helped = (
        [b["x"] for b in torch.utils.data.DataLoader(train, 4, num_workers=n)] for n in (0, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(alone, helped))


def test_a_large_forecast_is_checked_when_it_is_read(tmp_path, monkeypatch):
    from sslpdl_nb import store as data

    monkeypatch.setattr(data._read_dataset, "__defaults__", (1,))
    nwp = make_nwp(3)
    nwp.to_zarr(tmp_path / "nwp.zarr")
    lazy = open_nwp(tmp_path / "nwp.zarr")
    assert lazy["t850"].chunks and np.array_equal(lazy["t850"], nwp["t850"])
    nwp.assign(t850=nwp["t850"] - 250).assign(
        t850=lambda d: d["t850"].assign_attrs(units="K")
    ).to_zarr(tmp_path / "cold.zarr")
    with raises(DataError, "t850", "130"):
        open_nwp(tmp_path / "cold.zarr")["t850"].values


# samples by name


def test_a_forged_sample_is_never_handed_out(tmp_path, monkeypatch):
    import hashlib
    from sslpdl_nb.io.samples import SAMPLES, fetch_sample

    monkeypatch.setenv("SSLPDL_DATA", str(tmp_path))
    monkeypatch.setitem(
        SAMPLES,
        "toy",
        (".", "http://localhost:9/", "none", {"a.grib": hashlib.sha256(b"right").hexdigest()}),
    )
    for content, date in ((b"wrong", 10**9), (b"right", 10**9 + 1), (b"wrong", 10**9 + 2)):
        (tmp_path / "a.grib").write_bytes(content)
        os.utime(tmp_path / "a.grib", (date, date))
        if content == b"right":
            assert fetch_sample("toy") == [tmp_path / "a.grib"]
            continue
        with raises(DataError, "a.grib: sha256", hashlib.sha256(b"wrong").hexdigest()):
            fetch_sample("toy")


# other people's files


def test_raw_files_need_a_name_or_a_source(tmp_path):
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "strange.nc")
    with raises(DataError, "strange.nc: variables", "source"):
        open_nwp(tmp_path / "strange.nc")
    with raises(DataError, "hrrr", "moon"):
        open_nwp(tmp_path / "strange.nc", source="moon")
    with raises(DataError, "at least one"):
        open_nwp([])


def test_a_forecast_in_degrees(tmp_path):
    lat, lon = np.arange(31, 45, 0.5), np.arange(120, 138, 0.5)
    nwp = make_nwp(2)
    fields = {
        v.name: (
            ("time", "lead_time", "lat", "lon"),
            np.full((2, 3, lat.size, lon.size), float(USUAL.get(v.name, 5)), np.float32),
            {"units": v.units},
        )
        for v in VARIABLES
    }
    ds = xr.Dataset(
        fields,
        dict(
            time=nwp["time"],
            lead_time=nwp["lead_time"],
            lat=("lat", lat[::-1], {"units": "degrees_north"}),
            lon=("lon", lon, {"units": "degrees_east"}),
        ),
    )
    ds.to_netcdf(tmp_path / "world.nc")
    read = open_nwp(tmp_path / "world.nc", source="sslpdl")
    both = pair(read, check_qpe(make_qpe(nwp), "qpe"))
    assert both.sizes["sample"] == 6 and np.allclose(
        both["forecast"][:, VARIABLE_NAMES.index("t850")], 280
    )
