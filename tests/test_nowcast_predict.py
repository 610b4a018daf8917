"From radar files to the next hour: every wrong input, filled gaps, CF files, and both methods."

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from real import real

from sslpdl_nb.checkpoint import load_checkpoint, save_checkpoint
from sslpdl_nb.core import CheckpointError, DataError
from sslpdl_nb.grids.types import LambertGrid, grid_from_cf, projected_grid
from sslpdl_nb.nowcast import predict
from sslpdl_nb.nowcast.flow import sprog
from sslpdl_nb.nowcast.frames import to_counts
from sslpdl_nb.nowcast.predict import (
    block_means,
    draw_nowcast,
    event_csi,
    event_table,
    film_nowcast,
    frame_between,
    member_share,
    next_hour,
    nowcast,
    open_frames,
    regular_times,
    resampler,
    score_event,
    write_frame,
    write_nowcast,
)
from sslpdl_nb.nowcast.tasks import FrameDataset
from sslpdl_nb.nowcast.train import get_nowcast_config, train_nowcast

GRID = LambertGrid(nx=40, ny=36, dx=2000.0, x0=0.0, y0=0.0)
START = np.datetime64("2030-07-01T10:00")
STEP = np.timedelta64(5, "m")


def bells(n, shape=GRID.shape, u=1.0, v=0.5):
    "Three bells of rain that move by (u, v) pixels in each frame (n, h, w)."
    y, x = np.mgrid[: shape[0], : shape[1]]
    rain = np.zeros((n, *shape), np.float32)
    for t in range(n):
        for x0, y0, peak in ((8, 10, 12.0), (20, 20, 5.0), (14, 28, 3.0)):
            squares = (x - x0 - u * t) ** 2 + (y - y0 - v * t) ** 2
            rain[t] += peak * np.exp(-squares / 18)
    return rain


def write(folder, rain, grid=GRID, start=START, step=STEP, name="radar"):
    "One file for each frame."
    return [
        write_frame(r, start + k * step, grid, folder / f"{name}_{k:02}.nc")
        for k, r in enumerate(rain)
    ]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    "24 frames as files."
    return write(tmp_path_factory.mktemp("radar"), bells(24))


@pytest.fixture(scope="module")
def frames(paths):
    "The first 12 frames."
    return open_frames(paths[:12])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "A network that learned for two steps."
    counts = to_counts(bells(24, (32, 32)))[None].repeat(2, 0)
    radar = (("sequence", "frame", "y", "x"), counts)
    sequences = xr.Dataset({"radar": radar}, {"x": 2.0 * np.arange(32)}, {"source": "simulated"})
    data = FrameDataset(sequences, moved=True)
    config = get_nowcast_config("small", width=4, steps=2, batch=2)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    train_nowcast(config, data, data, 0, path, progress=False)
    return path


def changed(checkpoint, path, **changes):
    "The checkpoint with another description."
    weights, meta = load_checkpoint(checkpoint)
    holder = SimpleNamespace(state_dict=lambda: {k: torch.as_tensor(v) for k, v in weights.items()})
    save_checkpoint(path, holder, meta | changes)
    return path


def test_block_means_by_hand():
    rain = np.array([[1.0, 3, 9], [np.nan, 2, 9], [9, 9, 9]])
    assert np.allclose(block_means(rain, 2), [[2.0]])
    assert np.isnan(block_means(np.array([[1.0, np.nan], [np.nan, np.nan]]), 2)).all()
    assert np.array_equal(block_means(rain, 1), rain, equal_nan=True)


@pytest.mark.parametrize("dx, side", [(1000.0, 2), (2000.0, 1), (1900.0, 1), (500.0, 4)])
def test_blocks_where_they_fit(dx, side):
    grid = LambertGrid(nx=8, ny=8, dx=dx, x0=100.0, y0=-300.0)
    new, put = resampler(grid, 2.0)
    rain = np.random.default_rng(0).gamma(1.0, 2.0, (8, 8))
    assert new.shape == (8 // side, 8 // side) and put(rain).mean() == pytest.approx(rain.mean())
    assert new.x.mean() == pytest.approx(grid.x.mean()) and new.dx == dx * side


@pytest.mark.parametrize("kind", ["metres", "degrees"])
def test_other_pixels_are_regridded(kind):
    if kind == "metres":
        grid = LambertGrid(nx=30, ny=30, dx=1300.0, x0=0.0, y0=0.0)
    else:
        x, y = 2 + 0.014 * np.arange(30), 47 + 0.01 * np.arange(40)
        grid = projected_grid("+proj=longlat +R=6371229 +no_defs", x, y)
    new, put = resampler(grid, 2.0)
    assert np.diff(new.x) == pytest.approx(2000.0) and np.diff(new.y) == pytest.approx(2000.0)
    once = put(np.full(grid.shape, 3.0))
    assert np.isfinite(once).mean() > 0.9 and np.nanmax(abs(once - 3)) < 1e-9
    lon, lat = grid.lonlat()
    north = put(lat)
    known = np.isfinite(north)
    assert abs(north - new.lonlat()[1])[known].max() < 0.01


def test_pixels_that_cannot_be_used():
    coarse = LambertGrid(nx=8, ny=8, dx=5000.0, x0=0.0, y0=0.0)
    with pytest.raises(DataError, match="at most 2 km.*5 km; say spacing=5"):
        resampler(coarse, 2.0)
    with pytest.raises(DataError, match="rows and columns"):
        resampler(SimpleNamespace(shape=(9,)), 2.0)
    odd = LambertGrid(nx=3000, ny=3000, dx=1300.0, x0=0.0, y0=0.0)
    with pytest.raises(DataError, match="cut the files out"):
        resampler(odd, 2.0)


def test_frames_come_back_as_written(frames):
    assert dict(frames.sizes) == {"time": 12, "y": 36, "x": 40}
    assert np.allclose(frames["rain_rate"], bells(12), atol=1e-5)
    assert np.array_equal(frames["time"], (START + STEP * np.arange(12)).astype("M8[ns]"))
    assert grid_from_cf(frames) == GRID and not frames["filled"].any()
    assert frames.attrs["spacing_km"] == 2 and frames.attrs["note"] == ""


def test_order_of_the_files_does_not_matter(paths, frames):
    assert open_frames(paths[:12][::-1]).equals(frames)
    assert open_frames([paths[0].parent]).sizes["time"] == 24


def test_finer_pixels_are_averaged(tmp_path):
    fine = LambertGrid(nx=40, ny=40, dx=1000.0, x0=-500.0, y0=-500.0)
    rain = bells(3, (40, 40))
    found = open_frames(write(tmp_path, rain, fine))["rain_rate"]
    means = rain.reshape(3, 20, 2, 20, 2).mean((2, 4))
    assert found.shape == (3, 20, 20) and np.allclose(found, means, atol=1e-5)
    assert found["x"].values[:2] == pytest.approx([0.0, 2000.0])


def test_missing_pixels_stay_missing(tmp_path):
    rain = bells(3)
    rain[:, :, :10] = np.nan
    found = open_frames(write(tmp_path, rain))["rain_rate"].values
    assert np.array_equal(np.isnan(found), np.isnan(rain))


@pytest.mark.parametrize(
    "keep, message",
    [
        ([], "files: expected at least one"),
        ([0], "at least 2, found 1"),
        ([0, 1, 3, 4], "2030-07-01 10:05 and 2030-07-01 10:15.*10:10; a single one can be filled"),
        ([0, 1, 4, 5], "2 missing, the first at 2030-07-01 10:10$"),
        ([0, 2, 4, 6], "every 5, found one every 10 minutes; say step_minutes=10"),
    ],
)
def test_wrong_times_name_the_frame(paths, keep, message):
    with pytest.raises(DataError, match=message):
        open_frames([paths[k] for k in keep])


def test_mixed_steps(tmp_path, paths):
    odd = write_frame(bells(1)[0], START + np.timedelta64(17, "m"), GRID, tmp_path / "odd.nc")
    with pytest.raises(DataError, match="frame of 2030-07-01 10:17: expected steps of 5, found 7"):
        open_frames([*paths[:3], odd])


def test_a_time_that_is_there_twice(tmp_path, paths):
    twice = write_frame(bells(1)[0], START + STEP, GRID, tmp_path / "twice.nc")
    with pytest.raises(DataError, match="frame of 2030-07-01 10:05: expected each time once"):
        open_frames([*paths[:4], twice])


def test_another_grid(tmp_path, paths):
    other = LambertGrid(nx=40, ny=36, dx=2000.0, x0=2000.0, y0=0.0)
    path = write_frame(bells(1)[0], START + 4 * STEP, other, tmp_path / "other.nc")
    with pytest.raises(DataError, match="other.nc: frame of 2030-07-01 10:20: expected the grid"):
        open_frames([*paths[:4], path])


def test_images_of_an_hour_are_no_frames(tmp_path, paths):
    time = START + 4 * STEP
    path = write_frame(bells(1)[0], time, GRID, tmp_path / "hour.nc", minutes=60)
    with pytest.raises(DataError, match="10:20: expected at most 5 minutes of rain.*found 60"):
        open_frames([*paths[:4], path])


@pytest.mark.parametrize("value, units", [(-7.0, "mm h-1"), (5000.0, "mm h-1"), (1.0, "K")])
def test_values_and_units_that_cannot_be(tmp_path, paths, value, units):
    rain = bells(1)[0]
    rain[3, 3] = value
    path = write_frame(rain, START + 4 * STEP, GRID, tmp_path / "bad.nc")
    with xr.open_dataset(path) as ds:
        ds = ds.load()
    ds["rain_rate"].attrs["units"] = units
    path.unlink()
    ds.to_netcdf(path)
    if value < 0 and units != "K":  # codes of missing pixels: read as NaN by the package
        found = open_frames([*paths[:4], path])["rain_rate"].values
        assert np.isnan(found[4, 3, 3]) and np.isfinite(found[4]).sum() == found[4].size - 1
        return
    with pytest.raises(DataError, match="bad.nc.*" + ("10:20.*5000" if units != "K" else "'K'")):
        open_frames([*paths[:4], path])


def test_too_small_a_map(tmp_path):
    small = LambertGrid(nx=15, ny=40, dx=2000.0, x0=0.0, y0=0.0)
    with pytest.raises(DataError, match=r"at least 16 x 16 of 2 km, found \(40, 15\)"):
        open_frames(write(tmp_path, bells(2, (40, 15)), small))


@pytest.mark.parametrize("which", ["all", "first", "last", "middle"])
def test_frames_without_a_measurement(tmp_path, which):
    rain = bells(5)
    rain[dict(all=slice(None), first=0, last=-1, middle=2)[which]] = np.nan
    files = write(tmp_path, rain)
    expected = dict(
        all="every pixel is missing",
        first="frame of 2030-07-01 10:00, the first one: expected measured pixels",
        last="frame of 2030-07-01 10:20, the last one: expected measured pixels",
        middle="1 missing, the first at 2030-07-01 10:10",
    )
    with pytest.raises(DataError, match=expected[which]):
        open_frames(files)
    if which == "middle":
        assert open_frames(files, allow_gaps=True)["filled"].values.tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("spacing, step", [(0, 5), (np.nan, 5), (2, -1), (2, np.inf)])
def test_options_that_cannot_be(paths, spacing, step):
    with pytest.raises(DataError, match="a positive number"):
        open_frames(paths, spacing, step)


def test_dry_weather_is_a_forecast(tmp_path):
    dry = open_frames(write(tmp_path, np.zeros((4, 36, 40), np.float32)))
    assert dry.attrs["note"] == "no rain in any frame"
    ds = nowcast(dry, members=2)
    assert (ds["rain_rate"] == 0).all() and (ds["probability"] == 0).all()
    assert ds["seen"].all() and ds.attrs["input_note"] == dry.attrs["note"]


def test_a_moving_picture_is_filled_exactly():
    before, middle, after = bells(3, (48, 48), u=2.0, v=1.0)
    error = abs(frame_between(before, after) - middle)
    assert np.isnan(error).mean() < 0.005  # two corners, into which air comes from both sides
    assert np.nanmax(error) < 0.05 * middle.max()
    assert np.nanmax(error) < 0.2 * abs((before + after) / 2 - middle).max()


def test_a_gap_is_filled_only_with_permission(paths):
    kept = [p for k, p in enumerate(paths[:12]) if k not in (4, 8)]
    with pytest.raises(DataError, match="allow gaps"):
        open_frames(kept)
    found = open_frames(kept, allow_gaps=True)
    assert np.flatnonzero(found["filled"]).tolist() == [4, 8]
    assert np.nanmax(abs(found["rain_rate"].values - bells(12))) < 0.6
    assert nowcast(found).attrs["filled_frames"] == 2


def test_long_gaps_are_refused_always(paths):
    kept = [p for k, p in enumerate(paths[:12]) if k not in (4, 5)]
    with pytest.raises(DataError, match="no more than one missing, found 2"):
        open_frames(kept, allow_gaps=True)


def test_regular_times_by_hand():
    when = START + STEP * np.array([0, 1, 3])
    assert np.array_equal(regular_times(when, 5, True), START + STEP * np.arange(4))


def test_s_prog_without_a_checkpoint(frames):
    ds = nowcast(frames)
    assert ds.attrs["method"] == "S-PROG" and "probability" not in ds and "exceeded" not in ds
    expected = sprog(frames["rain_rate"].values)
    assert np.array_equal(ds["rain_rate"], expected, equal_nan=True)
    assert np.array_equal(ds["seen"] > 0, np.isfinite(expected))
    assert not ds["seen"].all()


def test_probabilities_are_shares_of_members(frames):
    ds = nowcast(frames, members=4, seed=3, steps=6)
    p = ds["probability"].values
    assert p.shape == (3, 6, 36, 40) and np.nanmin(p) >= 0 and np.nanmax(p) <= 1
    assert np.isnan(p[:, ds["seen"].values == 0]).all()
    assert (np.diff(np.nan_to_num(p), axis=0) <= 0).all()  # higher thresholds are less likely
    again = nowcast(frames, members=4, seed=3, steps=6)
    assert again.drop_attrs().identical(ds.drop_attrs())
    other = nowcast(frames, members=4, seed=4, steps=6)
    assert other["rain_rate"].equals(ds["rain_rate"])
    assert not other["probability"].equals(ds["probability"])


def test_member_share_by_hand():
    members = np.array([[2.0, np.nan, np.nan], [1.0, 2.0, np.nan], [3.0, 1.0, 5.0]])
    assert np.allclose(member_share(members, 2.0), [2 / 3, 1 / 2, np.nan], equal_nan=True)


def test_the_file_is_cf_and_complete(tmp_path, frames):
    ds = nowcast(frames, members=2)
    path = write_nowcast(ds, tmp_path / "hour.nc")
    with xr.open_dataset(path, decode_timedelta=True) as found:
        for name in ds.data_vars:
            assert np.array_equal(found[name], ds[name], equal_nan=name not in ("crs",)), name
        assert found.attrs["Conventions"] == "CF-1.11" and "sslpdl_nb" in found.attrs["source"]
        assert found["rain_rate"].attrs["standard_name"] == "rainfall_rate"
        assert found["rain_rate"].attrs["units"] == "mm h-1"
        assert found["lead_time"].attrs["standard_name"] == "forecast_period"
        assert found["reference_time"].attrs["standard_name"] == "forecast_reference_time"
        assert found["reference_time"].values == np.datetime64("2030-07-01T10:55")
        assert found["valid_time"].values[-1] == np.datetime64("2030-07-01T11:55")
        assert found["lead_time"].values[0] == np.timedelta64(5, "m")
        assert found["probability"].attrs["grid_mapping"] == "crs"
        assert grid_from_cf(found) == GRID
    with xr.open_dataset(path, decode_times=False) as raw:
        assert raw["lead_time"].attrs["units"] == "minutes"


def test_a_network_forecasts_maps_of_any_size(checkpoint, frames):
    ds = nowcast(frames, checkpoint)  # 36 x 40: no multiples of 16
    assert ds["rain_rate"].shape == (12, 36, 40) and np.isfinite(ds["rain_rate"]).all()
    assert ds.attrs["method"] == "network unet" and len(ds.attrs["checkpoint_key"]) == 16
    assert "SIMULATED" in ds.attrs["comment"] and "extended" in ds.attrs["edges_of_the_map"]
    meta = load_checkpoint(checkpoint)[1]
    limit = 2.0 * np.array(meta["factors"]["leads"])[1]
    yes = ds["rain_rate"].values >= limit[:, None, None]
    assert np.array_equal(ds["exceeded"].sel(threshold=2.0) == 1, yes)
    short = nowcast(frames, checkpoint, steps=3)
    assert np.array_equal(short["rain_rate"], ds["rain_rate"][:3])


def test_pixels_that_were_never_seen_are_unknown(checkpoint, frames):
    holes = frames.copy(deep=True)
    holes["rain_rate"][:, :, :8] = np.nan
    ds = nowcast(holes, checkpoint)
    assert np.isnan(ds["rain_rate"][:, :, :8]).all() and (ds["exceeded"][..., :8] == -1).all()
    assert (ds["exceeded"][..., 8:] >= 0).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(spacing_km=1.0), "pixels, km: expected 2, found 1; say spacing=2"),
        (dict(step_minutes=10.0), "minutes between frames: expected 5, found 10"),
    ],
)
def test_frames_that_a_network_does_not_know(checkpoint, frames, change, message):
    with pytest.raises(DataError, match=message):
        nowcast(frames.assign_attrs(change), checkpoint)


def test_what_a_network_needs(checkpoint, frames, tmp_path):
    with pytest.raises(DataError, match="observed frames: expected at least 12, found 11"):
        nowcast(frames.isel(time=slice(1, None)), checkpoint)
    with pytest.raises(DataError, match="from 1 to 12, found 13"):
        nowcast(frames, checkpoint, steps=13)
    with pytest.raises(DataError, match="at least 16 x 16"):
        nowcast(frames.isel(y=slice(0, 12)), checkpoint)
    blunt = changed(checkpoint, tmp_path / "blunt.safetensors", factors=None)
    with pytest.raises(CheckpointError, match="tuned factors"):
        nowcast(frames, blunt)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps: expected a whole number"),
        (dict(steps=1.5), "steps: expected a whole number"),
        (dict(members=-1), "members: expected a whole number"),
        (dict(seed=-1), "seed: expected a whole number"),
    ],
)
def test_numbers_that_cannot_be(frames, options, message):
    with pytest.raises(DataError, match=message):
        nowcast(frames, **options)


def test_what_is_no_frames(frames):
    with pytest.raises(DataError, match="a dataset of open_frames"):
        nowcast(frames["rain_rate"])
    with pytest.raises(DataError, match="at least 3, found 2"):
        nowcast(frames.isel(time=slice(0, 2)))
    blind = frames.copy(deep=True)
    blind["rain_rate"][-1] = np.nan
    with pytest.raises(DataError, match="measured pixels in the last frame"):
        nowcast(blind)


def test_event_csi_by_hand():
    yes = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]]], bool)
    truth = np.array([[[1, 0, 1, 1]], [[0, 0, 0, 0]]], bool)
    counted = np.ones(yes.shape, bool)
    counted[..., -1] = False
    assert np.allclose(event_csi(yes, truth, counted), [1 / 3, np.nan], equal_nan=True)


def test_one_event(paths, checkpoint):
    scores = score_event(open_frames(paths), checkpoint)
    assert scores["forecast"].values.tolist() == ["persistence", "S-PROG", "network"]
    persistence, s_prog, _ = scores["csi"].sel(threshold=2.0).values[:, 5]
    assert s_prog > persistence + 0.1
    text = event_table(scores)
    assert "one event, no claim" in text and text.count("network") == 3 and "+60 min" in text
    assert (np.diff(scores["pixels"]) <= 0).all()


def test_an_event_needs_its_hour(frames):
    with pytest.raises(DataError, match="score_event: observed frames: expected at least 15"):
        score_event(frames)


def test_only_what_was_seen_is_drawn(frames):
    holes = frames.copy(deep=True)
    holes["rain_rate"][:, :5] = np.nan
    ds = nowcast(holes)
    seen = ds["seen"].values[:, 5:]
    ds["rain_rate"] = ds["rain_rate"].fillna(3.0)
    drawn = predict.to_draw(ds)
    assert drawn.sizes["y"] == 31 and np.array_equal(np.isnan(drawn["rain_rate"]), seen == 0)


def test_frames_of_a_period(paths):
    found = open_frames(paths, period=("2030-07-01T10:10", START + 5 * STEP))
    assert np.array_equal(found["time"], (START + STEP * np.arange(2, 6)).astype("M8[ns]"))
    with pytest.raises(DataError, match="2031-01-01 00:00.*frames from 2030-07-01 10:00 to"):
        open_frames(paths, period=("2031", "2032"))
    for wrong in (("yesterday", "today"), "2031", 5):
        with pytest.raises(DataError, match="two times"):
            open_frames(paths, period=wrong)


def test_pictures(frames, tmp_path):
    ds = nowcast(frames, members=2)
    assert draw_nowcast(ds, tmp_path / "map.png").read_bytes()[1:4] == b"PNG"
    film = film_nowcast(ds, tmp_path / "film.gif")
    assert film.read_bytes()[:3] == b"GIF" and film.stat().st_size <= 300_000
    with pytest.raises(DataError, match="ending"):
        draw_nowcast(ds, tmp_path / "map.jpg")


def test_everything_at_once(paths, tmp_path, capsys):
    out, film = tmp_path / "hour.nc", tmp_path / "hour.gif"
    kept = [p for k, p in enumerate(paths[:12]) if k != 5]
    ds = next_hour(kept, out, film_path=film, allow_gaps=True)
    assert out.exists() and film.exists() and ds.attrs["filled_frames"] == 1
    said = capsys.readouterr().out
    assert "12 frames until 2030-07-01 10:55 UTC, 1 of them filled" in said and str(out) in said


def test_endings_are_checked_before_anything_is_read(tmp_path):
    for options in (dict(out="a.txt"), dict(out="a.nc", map_path="a.jpg")):
        with pytest.raises(DataError, match="ending of a file"):
            next_hour([tmp_path / "nothing.nc"], **options)


def test_real_frames_of_knmi():
    files = sorted(real("knmi-radar").glob("RAD_NL25*.h5"))[36:39]
    found = open_frames(files)
    assert found["rain_rate"].shape == (3, 382, 350) and found.attrs["spacing_km"] == 2
    assert 0.6 < float(np.isnan(found["rain_rate"]).mean()) < 0.8
    assert 5 < float(found["rain_rate"].max()) < 150


def test_real_frames_of_meteonet():
    path = real("meteonet-nw/meteonet_radar_NW_201608.nc")
    with pytest.raises(DataError, match="frames between 2016-08-21 00:10 and 2016-08-21 00:55"):
        open_frames(path, source="meteonet")


def test_the_command_from_files_to_pictures(paths, tmp_path, capsys):
    from sslpdl_nb.cli import main

    out, image, film = (tmp_path / name for name in ("next.nc", "next.png", "next.gif"))
    words = [*map(str, paths[:12]), "--out", str(out), "--map", str(image), "--film", str(film)]
    assert main(["nowcast", *words, "--members", "2", "--seed", "3"]) == 0
    with xr.open_dataset(out, decode_timedelta=True) as ds:
        assert ds.sizes["lead_time"] == 12 and ds["probability"].notnull().any()
    assert image.stat().st_size > 5_000 and film.stat().st_size < 300_000
    gap = [*map(str, paths[:4]), *map(str, paths[6:12])]
    assert main(["nowcast", *gap, "--out", str(tmp_path / "no.nc"), "--allow-gaps"]) == 2
    error = capsys.readouterr().err
    assert "10:20" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "no.nc").exists()
