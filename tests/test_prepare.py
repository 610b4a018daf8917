"From files to a store: complete, accounted for, resumable, the same on threads and on a cluster."
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sslpdl_nb import prepare as module
from sslpdl_nb.core import VARIABLES, DataError, GridError, LambertGrid, cf_attributes, get_config
from sslpdl_nb.data import Standardizer, check_nwp, check_qpe, load_splits, pair
from sslpdl_nb.prepare import manifest, moments, open_samples, prepare, statistics, summary
from sslpdl_nb.samples import find_real

NWP = LambertGrid(12, 14, 30e3, -170e3, -200e3, 128.0, 38.0, (35.0, 50.0))
QPE = LambertGrid(6, 7, 30e3, 60e3, -100e3)
USUAL = dict(gh100=16500, gh500=5700, gh850=1500, slp=101000, rh500=50, rh850=70, t2m=290, t500=260, t850=280, rain=1.0)


def place(grid):
    lon, lat = grid.lonlat()
    return dict(y=grid.y, x=grid.x, latitude=(("y", "x"), lat), longitude=(("y", "x"), lon))


def forecast(day, leads=(6, 12), seed=0):
    rng, shape = np.random.default_rng((seed, day)), (1, len(leads), *NWP.shape)
    fields = {v.name: (("time", "lead_time", "y", "x"), (USUAL.get(v.name, 5) + rng.uniform(0, 1, shape)).astype(np.float32), {"units": v.units}) for v in VARIABLES}
    return xr.Dataset(fields | {"crs": ((), 0, cf_attributes(NWP))}, dict(time=[np.datetime64("2001-06-01", "ns") + np.timedelta64(day, "D")],
                      lead_time=np.array(leads, "timedelta64[h]").astype("timedelta64[ns]")) | place(NWP))


def observation(day, hours=(6, 12), seed=1):
    rain = np.random.default_rng((seed, day)).gamma(0.3, 3.0, (len(hours), *QPE.shape)).astype(np.float32)
    rain[:, :, 0] = np.nan
    return xr.Dataset({"rain": (("time", "y", "x"), rain, {"units": "mm h-1"}), "crs": ((), 0, cf_attributes(QPE))},
                      dict(time=np.datetime64("2001-06-01", "ns") + np.timedelta64(day, "D") + np.array(hours, "timedelta64[h]")) | place(QPE))


@pytest.fixture
def archive(tmp_path):
    "Five days of forecasts and observations, one file each."
    for kind, make in (("nwp", forecast), ("qpe", observation)):
        (tmp_path / kind).mkdir()
        for day in range(5): make(day).to_netcdf(tmp_path / kind / f"{kind}{day}.nc")
    return tmp_path


def go(archive, out="store.zarr", **options):
    return prepare(archive / "nwp", archive / "qpe", archive / out, source="sslpdl", say=lambda text: None, **options)


def test_store_equals_pair(archive):
    samples = open_samples(go(archive))
    nwp = check_nwp(xr.concat([forecast(d) for d in range(5)], "time", data_vars="minimal"), "nwp")
    both = pair(nwp, check_qpe(xr.concat([observation(d) for d in range(5)], "time", data_vars="minimal"), "qpe"))
    assert np.allclose(samples["forecast"], both["forecast"], atol=1e-4) and np.allclose(samples["rain"], both["rain"], equal_nan=True)
    assert np.array_equal(samples["valid_time"], both["valid_time"]) and np.array_equal(samples["lead_time"], both["lead_time"]) and np.array_equal(samples["day"], both["day"])
    mean, std = statistics(samples["moments"].values)
    fit = Standardizer.fit(both)
    assert np.allclose(mean, fit.mean, rtol=1e-6) and np.allclose(std, fit.std, rtol=1e-4)


def test_training_reads_the_store(archive):
    splits = load_splits(go(archive), get_config(image_size=QPE.shape))
    lazy = load_splits(archive / "store.zarr", get_config(image_size=QPE.shape), memory=0)
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 10 and lazy.train.lazy
    assert np.allclose(splits.train[1]["x"], lazy.train[1]["x"], atol=1e-5)
    smaller = load_splits(archive / "store.zarr", get_config(image_size=(4, 4)), memory=0)
    assert smaller.train[0]["x"].shape == (16, 4, 4) and np.isfinite(smaller.standardizer.mean).all()


def test_everything_dropped_is_counted(archive):
    (archive / "nwp/nwp1.nc").write_bytes((archive / "nwp/nwp1.nc").read_bytes()[:3000])        # damaged
    (archive / "qpe/qpe2.nc").unlink()                                                          # no observation
    forecast(3).drop_vars("t500").to_netcdf(archive / "nwp/nwp3.nc")                            # lacks a variable
    bad = forecast(4); bad["t850"][0, 1] = 20.0; bad.to_netcdf(archive / "nwp/nwp4.nc")         # nonsense at one lead time
    store = go(archive)
    m = manifest(store)
    assert m["samples"] == 3 and m["without_observation"] == 2 and [x[2] for x in m["lacking_variables"]] == ["t500"] * 2
    assert len(m["refused"]) == 1 and "nwp1.nc" in next(iter(m["refused"])) and len(m["dropped"]) == 1 and "t850" in m["dropped"][0][2]
    assert open_samples(store).sizes["sample"] == 3 and "3 samples from 4 runs" in summary(m)


def test_resumes_where_it_stopped(archive, monkeypatch):
    calls, real = [], module.evaluate
    def dies(step):
        calls.append(step.start)
        if len(calls) == 5: raise KeyboardInterrupt
        return real(step)
    monkeypatch.setattr(module, "evaluate", dies)
    with pytest.raises(KeyboardInterrupt): go(archive, workers=1)
    with pytest.raises(DataError, match="unfinished"): open_samples(archive / "store.zarr")
    done = len(list((archive / "store.zarr/notes").glob("*.json")))
    assert done == 2
    before = len(calls)
    store = go(archive, workers=1)
    assert len(calls) - before == 2 * (5 - done)
    monkeypatch.setattr(module, "evaluate", real)
    assert open_samples(store).equals(open_samples(go(archive, "other.zarr")).assign_attrs(open_samples(store).attrs))


def test_refuses_to_mix(archive):
    store = go(archive)
    with pytest.raises(DataError, match="--fresh"): go(archive, min_valid=0.5)
    forecast(5).to_netcdf(archive / "nwp/nwp5.nc")
    with pytest.raises(DataError, match="--fresh"): go(archive)
    assert go(archive, fresh=True) == store
    (archive / "full").mkdir(); (archive / "full/diary.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"): go(archive, "full", fresh=True)
    assert (archive / "full/diary.txt").exists()


def test_nothing_to_prepare(archive):
    with pytest.raises(DataError, match="none"): prepare(archive / "nwp", archive / "nwp", archive / "x.zarr", source="sslpdl")
    for p in (archive / "qpe").iterdir(): p.unlink()
    observation(90).to_netcdf(archive / "qpe/late.nc")
    with pytest.raises(DataError, match="10 lead times without observation"): go(archive)
    with pytest.raises(DataError, match="store"): open_samples(archive / "nothing.zarr")
    assert not (archive / "store.zarr").exists()


def test_two_worker_processes(archive):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        there = open_samples(go(archive, "there.zarr", scheduler=cluster.scheduler_address))
    here = open_samples(go(archive, "here.zarr"))
    assert there["forecast"].equals(here["forecast"]) and there["rain"].equals(here["rain"]) and there["moments"].equals(here["moments"])
    with pytest.raises(DataError, match="cluster"): go(archive, "nowhere.zarr", scheduler="tcp://127.0.0.1:9")


def test_another_target_grid(archive):
    target = LambertGrid(5, 6, 40e3, 50e3, -90e3)
    xr.Dataset({"crs": ((), 0, cf_attributes(target))}, place(target)).to_netcdf(archive / "grid.nc")
    samples = open_samples(go(archive, grid=archive / "grid.nc"))
    assert samples["rain"].shape == (10, 6, 5) and np.isfinite(samples["forecast"]).all()
    xr.Dataset({"crs": ((), 0, {"grid_mapping_name": "latitude_longitude"})}, dict(x=[1.0, 2.0], y=[1.0, 2.0])).to_netcdf(archive / "degrees.nc")
    with pytest.raises(GridError, match="Lambert"): go(archive, "d.zarr", grid=archive / "degrees.nc")


def test_damaged_store(archive):
    store = go(archive)
    next(p for p in (store / "forecast/c").rglob("*") if p.is_file()).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="readable"): open_samples(store)
    (store / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest"): manifest(store)


def test_moments_of_difficult_fields():
    x = np.full((16, 3, 3), 16500.0); x[0, 0, 0] = np.nan; x[1] = np.nan
    n, mean, q = moments(x)
    assert n[0] == 8 and n[1] == 0 and mean[0] == 16500 and q[0] == 0
    assert np.isfinite(statistics([moments(x), moments(x)])).all()


def test_real_files_on_threads(tmp_path):
    folder = find_real("wrf-stage2-2005")
    if folder is None: pytest.skip("no real files: set SSLPDL_DATA")
    target = LambertGrid(32, 64, 40e3, -620e3, -1260e3, lon0=-97.0, lat0=37.5, parallels=(33.0, 45.0))
    store = prepare(folder / "wrf", folder / "stage2", tmp_path / "us.zarr", source="wrf", grid=target, hours=3.0, say=lambda text: None)
    samples = open_samples(store)
    assert samples.sizes["sample"] == 5 and json.loads((Path(store) / "manifest.json").read_text())["refused"] == {} and np.isfinite(samples["rain"]).mean() > 0.8
