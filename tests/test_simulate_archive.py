"Archives: reproducible bytes, interruptions, refusals, packing, the committed sample."

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from locked import another_process_writes
import torch
import xarray as xr

from sslpdl_nb.simulate import archive
from sslpdl_nb.simulate.archive import (
    PACKING,
    SIZES,
    TARGETS,
    Size,
    calibration,
    streams,
    perfect_model_ensemble,
    simulate_batch,
    simulate,
    spectrum,
)
from sslpdl_nb.core import VARIABLES, DataError
from sslpdl_nb.simulate.model import NATURE, MoistQG, run, start

TINY = Path(__file__).parent.parent / "data_samples" / "tiny"
TOY = Size(32, 3, 2, (6, 12), *archive._window(6, 16, 8, 12), spinup=4)
PROGRAM = """
import sys
from sslpdl_nb.simulate import archive
from sslpdl_nb.simulate.archive import Size, simulate
archive.SIZES["course"] = Size(32, 3, 2, (6, 12), *archive._window(6, 16, 8, 12), spinup=4)
simulate("course", sys.argv[1], 3, members=1, progress=False, workers=1)
"""


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def program(folder):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive") / "whole"
    p = program(folder)
    assert p.wait() == 0, p.stderr.read()
    return folder


def test_killed_at_any_moment_it_ends_with_the_same_bytes(undisturbed, tmp_path):
    rng, kills, folder = np.random.default_rng(0), 0, tmp_path / "killed"
    for _ in range(6):
        p = program(folder)
        wait = time.time() + rng.uniform(0.0, 1.5)
        while p.poll() is None and not (folder / ".unfinished").exists():
            time.sleep(0.02)  # imports are over
        while p.poll() is None and time.time() < wait + 2:
            time.sleep(0.01)
        if p.poll() is not None:
            break
        p.send_signal(signal.SIGKILL)
        p.wait()
        kills += 1
        assert not (folder / "nwp.zarr").exists() or (folder / "nwp.zarr" / ".zmetadata").exists()
    p = program(folder)
    assert p.wait() == 0, p.stderr.read()
    assert kills > 0
    assert tree(folder) == tree(undisturbed)


@pytest.mark.parametrize("when", ["rename", "cleanup"])
def test_killed_while_finishing(undisturbed, tmp_path, monkeypatch, when):
    monkeypatch.setitem(archive.SIZES, "course", TOY)
    real = os.replace
    if when == "rename":

        def broken(a, b):
            if str(b).endswith("qpe.zarr"):
                raise KeyboardInterrupt
            return real(a, b)

        monkeypatch.setattr(archive.os, "replace", broken)
    else:
        monkeypatch.setattr(
            archive.shutil,
            "rmtree",
            lambda path, **_: (
                (Path(path) / "plan.json").unlink(missing_ok=True)
                or (_ for _ in ()).throw(KeyboardInterrupt())
            ),
        )
    with pytest.raises(KeyboardInterrupt):
        simulate("course", tmp_path / "x", 3, members=1, progress=False)
    monkeypatch.undo()
    monkeypatch.setitem(archive.SIZES, "course", TOY)
    simulate("course", tmp_path / "x", 3, members=1, progress=False)
    assert tree(tmp_path / "x") == tree(undisturbed)


def test_zarr_is_consolidated_cf(undisturbed):
    ds = xr.open_zarr(undisturbed / "nwp.zarr", consolidated=True)
    assert ds.sizes["time"] == TOY.times and set(v.name for v in VARIABLES) <= set(ds.data_vars)
    assert ds.attrs["Conventions"].startswith("CF") and "simulated" in ds.attrs["source"]
    assert (
        ds.rain.attrs["units"] == "mm h-1"
        and ds.crs.attrs["grid_mapping_name"] == "lambert_conformal_conic"
    )
    assert (np.diff(ds.time.values) > np.timedelta64(0)).all()
    assert (ds.valid_time - ds.time == ds.lead_time).all()
    assert np.isfinite(ds.t850.values).all()


def test_what_is_written_is_what_was_simulated(undisturbed):
    part = simulate_batch(TOY, 3, 2, members=1)
    ds = xr.open_zarr(undisturbed / "nwp.zarr").isel(time=slice(16, 24))
    for v in VARIABLES:
        step = PACKING.get(v.name, archive.WIND)[0]
        assert np.abs(ds[v.name].values - part["forecast"][v.name].numpy()).max() <= 0.51 * step
    seen = xr.open_zarr(undisturbed / "qpe.zarr").rain.values[32:].reshape(part["observed"].shape)
    assert (
        np.array_equal(np.isnan(seen), np.isnan(part["observed"].numpy()))
        and np.nanmax(np.abs(seen - part["observed"].numpy())) < 0.011
    )
    p = xr.open_zarr(undisturbed / "perfect_model_ensemble.zarr").probability.values
    best = part["perfect_model_ensemble"].numpy()
    assert np.isnan(p[:16]).all() and np.abs(p[16:] - best).max() < 0.003


def test_netcdf_has_the_same_bytes_twice(tmp_path):
    for name in "ab":
        simulate(TOY, tmp_path / name, 1, members=1, progress=False)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") and set(tree(tmp_path / "a")) == {
        "nwp.nc",
        "qpe.nc",
        "perfect_model_ensemble.nc",
    }


def test_groups_have_seeds_of_their_own():
    assert (
        len({r.initial_seed() for s in range(20) for g in range(20) for r in streams(s, g)}) == 1200
    )
    assert not torch.equal(simulate_batch(TOY, 0, 0)["truth"], simulate_batch(TOY, 0, 1)["truth"])


def test_no_atmosphere_is_in_two_splits():
    from sslpdl_nb.store import split_days

    for size in SIZES.values():
        days = np.arange(size.times).repeat(len(size.leads))
        samples = xr.Dataset({"day": ("sample", days.astype("datetime64[D]"))})
        blocks = split_days(samples, size.split)
        groups = [
            set(b["day"].values.astype("datetime64[D]").astype(int) // size.per_group)
            for b in blocks.values()
        ]
        assert all(groups) and sum(map(len, groups)) == len(set.union(*groups)) == size.groups


def test_the_ideal_ensemble_changes_nothing_else():
    one, two = simulate_batch(TOY, 0, 0), simulate_batch(TOY, 0, 0, members=1)
    assert "perfect_model_ensemble" in two and torch.equal(one["observed"], two["observed"])
    assert all(torch.equal(one["forecast"][v.name], two["forecast"][v.name]) for v in VARIABLES)


def test_other_data_are_not_touched(tmp_path):
    simulate(TOY, tmp_path, 1, progress=False)
    before = tree(tmp_path)
    with pytest.raises(DataError, match="seed"):
        simulate(TOY, tmp_path, 2, progress=False)
    assert tree(tmp_path) == before
    assert simulate(TOY, tmp_path, 1, progress=False) == tmp_path and tree(tmp_path) == before
    (tmp_path / "other" / ".unfinished").mkdir(parents=True)
    (tmp_path / "other" / ".unfinished" / "plan.json").write_text(json.dumps({"size": "paper"}))
    with pytest.raises(DataError, match="unfinished"):
        simulate(TOY, tmp_path / "other", 1, progress=False)


def test_own_sizes_are_told_apart(tmp_path):
    simulate(TOY, tmp_path, 1, progress=False)
    before = tree(tmp_path)
    with pytest.raises(DataError, match="exists"):
        simulate(replace(TOY, leads=(25, 30)), tmp_path, 1, progress=False)
    assert tree(tmp_path) == before
    assert {"heavy", "bias"} <= {
        word for name in calibration(tmp_path) for word in name.split()
    }  # of any grid


def test_calibration_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="nwp.nc or nwp.zarr"):
        calibration(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "wrong", [dict(leads=(30, 25)), dict(leads=(-1, 6)), dict(leads=()), dict(spinup=2)]
)
def test_sizes_that_cannot_be(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        replace(TOY, **wrong)


def test_long_forecasts_have_valid_times_of_their_own(tmp_path):
    size = replace(TOY, groups=2, leads=(24, 72), spinup=3)
    assert size.days == 4 and SIZES["leads"].days == 4 and SIZES["course"].days == 2
    with xr.open_dataset(simulate(size, tmp_path, 0, progress=False) / "qpe.nc") as qpe:
        times = qpe.time.values
    assert len(set(times)) == len(times) == size.times * 2


def test_a_group_of_the_largest_size_fits_in_memory():
    for size in SIZES.values():
        assert (
            4 * size.per_group * len(size.leads) * len(VARIABLES) * np.prod(size.nwp.shape) < 4.5e9
        )


def test_after_a_full_disk_only_the_rest_needs_room(tmp_path, monkeypatch):
    real, calls, need = (
        archive._write_batch,
        [],
        TOY.times * 2 * (2 * len(VARIABLES) * np.prod(TOY.nwp.shape) + 2 * np.prod(TOY.qpe.shape)),
    )

    def quota(*a):
        calls.append(a)
        if len(calls) == 3:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real(*a)

    with monkeypatch.context() as m:
        m.setattr(archive, "_write_batch", quota)
        with pytest.raises(DataError, match="room and permission.*quota exceeded"):
            simulate(TOY, tmp_path, progress=False, workers=1)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, int(0.4 * need))
    )
    simulate(TOY, tmp_path, progress=False)
    assert (tmp_path / "nwp.nc").exists()


def test_a_folder_into_which_another_process_simulates_is_refused(tmp_path):
    with another_process_writes(tmp_path / "simulate") as number:
        with pytest.raises(DataError, match=f"simulate.lock locked by process {number} on "):
            simulate(TOY, tmp_path, 1, progress=False)
        assert [p.name for p in tmp_path.iterdir()] == [".simulate.lock"]


def test_bad_size_and_full_disk(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="tiny.*course.*paper"):
        simulate("enormous", tmp_path)
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(DataError, match="free space"):
            simulate(TOY, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as m:

        def full(*a):
            raise OSError(28, "No space left on device")

        m.setattr(archive, "_write_batch", full)
        with pytest.raises(DataError, match="room and permission.*No space left"):
            simulate(TOY, tmp_path, progress=False)
    simulate(TOY, tmp_path, progress=False)  # and it goes on
    assert (tmp_path / "nwp.nc").exists()


def test_perfect_model_ensemble_is_certain_without_analysis_error():
    model = MoistQG(NATURE, 32, 6)
    z, _ = run(model, start(model, 2, torch.Generator().manual_seed(0)), 24 * 6)
    same = z[:1].repeat(3, 1, 1, 1)  # a pool without differences
    options = dict(grid=TOY.qpe, generator=torch.Generator().manual_seed(0), members=2, cells=3)
    p = perfect_model_ensemble(model, z, same, (3,), **options)
    assert p.shape == (8, 1, 2, 16, 8)
    dry = p[:, :, 0] == 0
    assert 0.05 < dry.float().mean() < 1 and (p[:, :, 1][dry] == 0).all()


def test_spectrum_of_known_noise():
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(128, 10.0), np.fft.fftfreq(128, 10.0)))
    amplitude = np.where(k > 0, np.where(k > 0, k, 1) ** -1.5, 0)  # 2-D power k^-3, 1-D k^-2
    noise = np.fft.ifft2(
        np.fft.fft2(np.random.default_rng(0).normal(size=(40, 128, 128))) * amplitude
    ).real
    assert abs(spectrum(torch.as_tensor(noise), 10e3)[2] + 2) < 0.1


def test_the_committed_sample_is_calibrated():
    measured = calibration(TINY)
    for name, value in measured.items():
        low, high = TARGETS[name]
        assert low <= value <= high, (name, value)


def test_the_committed_sample_is_what_the_size_says():
    size = SIZES["tiny"]
    with (
        xr.open_dataset(TINY / "nwp.nc") as nwp,
        xr.open_dataset(TINY / "qpe.nc") as qpe,
        xr.open_dataset(TINY / "perfect_model_ensemble.nc") as best,
    ):
        assert nwp.sizes["time"] == size.times and qpe.sizes["time"] == size.times * len(size.leads)
        assert nwp.attrs["size"] == "tiny" and (qpe.y.size, qpe.x.size) == size.qpe.shape
        assert (
            "simulated" in nwp.attrs["source"]
            and best.probability.notnull().any(("y", "x", "edge", "lead_time")).sum()
            == round(size.groups / 5) * size.per_group
        )
    assert sum(f.stat().st_size for f in TINY.iterdir()) < 8e6


def test_later_atmospheres_of_a_run_change_nothing_in_the_first():
    size = replace(TOY, starts=1, atmospheres=2, later=2)
    alone = simulate_batch(replace(size, later=0), 5, 1)
    chain = simulate_batch(size, 5, 1)
    n = size.atmospheres * size.times_per_atmosphere
    assert len(chain["truth"]) == size.per_group == 3 * n
    for name in ("truth", "observed"):
        assert torch.equal(chain[name][:n].nan_to_num(-1), alone[name].nan_to_num(-1))
    for name, field in alone["forecast"].items():
        assert torch.equal(chain["forecast"][name][:n], field)
    maps = chain["forecast"]["gh500"].reshape(3, n, -1)
    maps = maps - maps.mean((0, 1))
    between = torch.corrcoef(torch.stack([maps[0].ravel(), maps[2].ravel()]))[0, 1]
    assert abs(between) < 0.5


def test_later_atmospheres_have_one_start_each():
    with pytest.raises(DataError, match="starts"):
        replace(TOY, starts=2, later=1)


def test_archive_with_its_own_split(tmp_path):
    from sslpdl_nb.core import Config
    from sslpdl_nb.io.prepare import prepare
    from sslpdl_nb.store import atmosphere_of, load_splits

    size = replace(TOY, starts=1, groups=4, later=1, split=(0.5, 0.25, 0.25))
    folder = simulate(size, tmp_path / "own", 1, members=1, progress=False)
    nwp, qpe = folder / "nwp.nc", folder / "qpe.nc"
    prepare(nwp, qpe, folder / "store.zarr", source="sslpdl", rain_regridding="nearest")
    splits = load_splits(folder, Config(image_size=(16, 8)))
    atmospheres = {k: np.unique(atmosphere_of(s)).size for k, s in splits.samples.items()}
    assert atmospheres == dict(train=4, valid=2, test=2)
    ensemble = xr.open_dataset(folder / "perfect_model_ensemble.nc").probability
    known = np.isfinite(ensemble.values).all((1, 2, 3, 4))
    test = splits.samples["test"].reference_time.values
    assert np.array_equal(ensemble.time.values[known], np.unique(test))
