"Sequences of the simulated radar: statistics with known answers, counts, archives, films."

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from locked import another_process_writes
from PIL import Image
from real import real

from sslpdl_nb.core import DataError
from sslpdl_nb.io.radar import knmi_fields
from sslpdl_nb.nowcast import frames as module
from sslpdl_nb.nowcast.frames import (
    EDGES,
    SIZES,
    TARGETS,
    animate,
    calibration,
    from_counts,
    lifetimes,
    make_sequences,
    open_sequences,
    sequence_seed,
    spectral_slope,
    to_counts,
    wet_shares,
)
from sslpdl_nb.nowcast.sky import RadarSky, Sky, Waves, rain_rate

SMALL = Sky(n=48, crop=24)  # 96 km; a frame in less than a millisecond
TOY = (2, 1, 2)  # sequences: with blocks of three, two blocks


@pytest.fixture(scope="module")
def radar_sky():
    return RadarSky()


@pytest.fixture(scope="module")
def case(radar_sky):
    return radar_sky.sequence([3, 0])


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 3)
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory, small_blocks):
    path = tmp_path_factory.mktemp("sky") / "toy.zarr"
    return make_sequences(path, TOY, 5, SMALL, progress=False)


def generator(seed=0):
    return np.random.default_rng(seed)


def tree(folder):
    files = [p for p in sorted(Path(folder).rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# ------------------------------------------------------------------ statistics


def test_wet_shares():
    rain = np.array([[0.0, 0.1], [2.0, np.nan]])
    assert np.allclose(wet_shares(rain, (0.1, 2.0, 5.0)), [2 / 3, 1 / 3, 0])
    for wrong in (np.array([np.nan]), np.array([1.0, -0.1])):
        with pytest.raises(DataError, match="wet_shares"):
            wet_shares(wrong)


@pytest.mark.parametrize("slope", [2.0, 3.0])
def test_spectral_slope_of_a_known_field(slope):
    sky, rng = Sky(slope=slope), generator()
    waves = Waves(sky)
    fields = np.array([waves.field(waves.start(rng))[:96, :80] for _ in range(12)])
    for band in ((8, 30), (10, 100)):
        assert abs(spectral_slope(10 ** (0.2 * fields), *band) + slope) < 0.3


def test_spectral_slope_refuses():
    for wrong in (np.full((2, 32, 32), np.nan), np.full((2, 32, 32), -1.0), np.ones((32, 32))):
        with pytest.raises(DataError, match="spectral_slope"):
            spectral_slope(wrong)
    with pytest.raises(DataError, match="at least 3 wavelengths"):
        spectral_slope(generator().random((2, 32, 32)), 8, 9)


@pytest.mark.parametrize("vector", [(2, 1), (-3, 0), (0, -4), (5, -2)])
def test_lifetimes_of_a_picture_that_only_moves(vector):
    big = rain_rate(Waves(Sky()).field(Waves(Sky()).start(generator(1))))
    frames = [
        np.roll(big, (t * vector[1], t * vector[0]), (0, 1))[48:144, 48:144] for t in range(18)
    ]
    found = lifetimes(np.array(frames)[None], leads=(1, 6))
    assert found["moving"].min() > 0.97 and found["in place"][1] < 0.9
    assert found[36].min() > 0.95
    assert list(found) == ["moving", "in place", 69, 36, 19, 10]


def test_lifetimes_refuses():
    rain = generator().random((2, 24, 32, 32))
    for wrong, message in (
        (rain[:, :20], "lifetimes: frames: expected at least 24"),
        (rain[0], "lifetimes: shape: expected 4 dimensions"),
        (np.where(rain > 0.99, np.nan, rain), "missing, negative or infinite"),
        (0 * rain, "sequences with rain: expected at least one"),
    ):
        with pytest.raises(DataError, match=message):
            lifetimes(wrong)
    dry_and_wet = lifetimes(np.stack([0 * rain[0], rain[0]]), leads=(1,), wavelengths=(10,))
    assert np.allclose(dry_and_wet["moving"], lifetimes(rain[:1], (1,), (10,))["moving"])


def test_simulated_rain_is_near_its_targets(radar_sky):
    many = np.stack([radar_sky.sequence([1, n]).radar for n in range(5)])
    found = calibration(many)
    assert list(found) == list(TARGETS)
    for name, target in TARGETS.items():
        assert np.abs(np.subtract(found[name], target)).max() < 0.3, name
    with pytest.raises(DataError, match="calibration: shape"):
        calibration(many[0])


def test_targets_are_those_of_the_real_frames():
    paths = sorted(real("knmi-radar").glob("*.h5"))[::9]
    rain = np.stack([12 * knmi_fields(p)[0].read()[200:488, 225:513] for p in paths])
    shares, (mean, spread), slopes, *_ = TARGETS.values()
    assert np.allclose(wet_shares(rain), shares, atol=0.02)
    log_rain = np.log(rain[rain >= 0.1])
    assert np.allclose([log_rain.mean(), log_rain.std()], [mean, spread], atol=0.05)
    found = [spectral_slope(rain, *band, spacing=1.0) for band in ((8, 30), (30, 120))]
    assert np.allclose(found, slopes, atol=0.15)


# ------------------------------------------------------------------ counts


def test_counts_and_back():
    rain = np.array([0.0, 0.12, 0.5, 2.0, 8.0, 100.0, np.nan])
    counts = to_counts(rain)
    assert counts.dtype == np.uint8 and counts.tolist() == [0, 19, 50, 96, 149, 249, 255]
    back = from_counts(counts)
    assert back.dtype == np.float32 and np.isnan(back[-1])
    assert np.allclose(back[:-1] + 0.2, rain[:-1] + 0.2, rtol=0.0126)
    assert to_counts(np.array(1e6)) == 254
    whole = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_counts(from_counts(whole)), whole)
    steps = np.arange(0, 400) * 0.12  # of the radar: the edges separate the same steps
    for edge in EDGES:
        assert np.array_equal(from_counts(to_counts(steps)) >= edge, steps >= edge - 1e-9)


def test_counts_refuse():
    for wrong in (-0.1, np.inf, -np.inf):
        with pytest.raises(DataError, match="to_counts: rain rates"):
            to_counts(np.array([1.0, wrong]))
    with pytest.raises(DataError, match="from_counts: type: expected uint8, found float64"):
        from_counts(np.zeros(3))


# ------------------------------------------------------------------ archives


def test_round_trip(archive):
    ds = open_sequences(archive)
    assert dict(ds.sizes) == dict(sequence=5, frame=24, lead_time=12, y=24, x=24, word=3)
    assert ds["radar"].dtype == ds["truth"].dtype == np.uint8
    assert ds["frame"].values.tolist() == [5.0 * (t - 11) for t in range(24)]
    assert ds["lead_time"].values.tolist() == [5.0 * t for t in range(1, 13)]
    assert ds["part"].values.tolist() == ["train"] * 2 + ["valid"] + ["test"] * 2
    sky, test = RadarSky(SMALL), open_sequences(archive, "test")
    assert test.sizes["sequence"] == 2
    for n, seed in enumerate(test["seed"].values):
        assert seed.tolist() == [5, 2, n] == sequence_seed(5, "test", n)
        case = sky.sequence(seed)
        assert np.array_equal(test["radar"][n], to_counts(case.radar))
        assert np.array_equal(test["truth"][n], to_counts(case.truth[12:]))
    assert json.loads(ds.attrs["sky"])["n"] == 48 and "simulated" in ds.attrs["source"]


def test_no_sequence_is_twice_in_an_archive(archive):
    radar = open_sequences(archive)["radar"].values
    assert len({frames.tobytes() for frames in radar}) == len(radar)


def test_a_small_archive_is_the_beginning_of_a_large_one(archive, tmp_path):
    make_sequences(tmp_path / "less", (1, 1, 1), 5, SMALL, progress=False)
    for part, count in zip(("train", "valid", "test"), (1, 1, 1)):
        less, more = (open_sequences(p, part)["radar"] for p in (tmp_path / "less", archive))
        assert np.array_equal(less, more[:count])


@pytest.mark.parametrize("when", ["first block", "second block", "name", "end"])
def test_an_interrupted_making_goes_on(archive, tmp_path, monkeypatch, when):
    path, made = tmp_path / "toy.zarr", []
    write, replace_, remove = module._write_block, module.os.replace, module.shutil.rmtree

    def writing(work, radar_sky, block, seeds, bar):
        made.append(block)
        if when == "first block" or (when == "second block" and block == 1):
            raise KeyboardInterrupt
        write(work, radar_sky, block, seeds, bar)

    def naming(a, b):
        if when == "name" and Path(b) == path:
            raise KeyboardInterrupt
        replace_(a, b)

    def removing(folder, **options):
        if when == "end" and path.exists():
            raise KeyboardInterrupt
        remove(folder, **options)

    monkeypatch.setattr(module, "_write_block", writing)
    monkeypatch.setattr(module.os, "replace", naming)
    monkeypatch.setattr(module.shutil, "rmtree", removing)
    with pytest.raises(KeyboardInterrupt):
        make_sequences(path, TOY, 5, SMALL, progress=False)
    assert path.exists() == (when == "end")
    monkeypatch.undo()
    monkeypatch.setattr(
        module, "_write_block", lambda *a: (made.append(("again", a[2])), write(*a))[1]
    )
    make_sequences(path, TOY, 5, SMALL, progress=False)
    again = [block[1] for block in made if isinstance(block, tuple)]
    expected = {"first block": [0, 1], "second block": [1], "name": [], "end": []}
    assert again == expected[when]
    assert tree(path) == tree(archive)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.zarr"]


def test_a_complete_archive_is_not_made_again(archive, monkeypatch):
    monkeypatch.setattr(module, "_write_block", None)
    before = tree(archive)
    assert make_sequences(archive, TOY, 5, SMALL) == archive
    assert tree(archive) == before


@pytest.mark.parametrize(
    "change", [dict(size=(2, 1, 3)), dict(seed=6), dict(sky=replace(SMALL, births=0.0))]
)
def test_other_options_are_refused(archive, change):
    options = dict(size=TOY, seed=5, sky=SMALL) | change
    with pytest.raises(DataError, match="toy.zarr exists: expected"):
        make_sequences(archive, **options)


def test_an_unfinished_archive_of_other_options_is_refused(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_block", stop)
    with pytest.raises(KeyboardInterrupt):
        make_sequences(tmp_path / "a", TOY, 5, SMALL, progress=False)
    with pytest.raises(DataError, match="holds an unfinished archive.*delete that folder"):
        make_sequences(tmp_path / "a", TOY, 6, SMALL, progress=False)


@pytest.mark.parametrize("size", ["huge", "", (1, 2), (0, 1, 1), 7, None])
def test_unknown_sizes(tmp_path, size):
    with pytest.raises(DataError, match="size: expected one of .'tiny', 'course'."):
        make_sequences(tmp_path / "a", size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 0.5, "a", [1, 2]])
def test_seeds_of_archives(tmp_path, seed):
    with pytest.raises(DataError, match="seed: expected a whole number"):
        make_sequences(tmp_path / "a", TOY, seed)


def test_unknown_parts(archive):
    for part in ("training", 0):
        with pytest.raises(DataError, match="part: expected one of .'train', 'valid', 'test'."):
            open_sequences(archive, part)
    with pytest.raises(DataError, match="part: expected one of"):
        sequence_seed(0, "all", 0)


def test_what_is_no_archive(tmp_path):
    (tmp_path / "file").write_text("rain")
    (tmp_path / "folder").mkdir()
    xr.Dataset(dict(rain=("x", [1.0]))).to_zarr(tmp_path / "other", zarr_format=2)
    for name in ("file", "folder", "other", "nothing"):
        with pytest.raises(DataError, match="expected an archive of make_sequences"):
            open_sequences(tmp_path / name)
    for name in ("file", "folder", "other"):
        before = tree(tmp_path / name)
        with pytest.raises(DataError, match="expected an archive of make_sequences"):
            make_sequences(tmp_path / name, TOY, 5, SMALL, progress=False)
        assert tree(tmp_path / name) == before


def test_one_process_writes(tmp_path):
    with another_process_writes(tmp_path / "a"):
        with pytest.raises(DataError, match="one process that writes it"):
            make_sequences(tmp_path / "a", TOY, 5, SMALL, progress=False)


def test_progress_is_shown_or_not(tmp_path, capsys):
    make_sequences(tmp_path / "a", (1, 1, 1), 0, SMALL)
    assert "sequences: 100%" in capsys.readouterr().err
    make_sequences(tmp_path / "b", (1, 1, 1), 0, SMALL, progress=False)
    assert capsys.readouterr().err == ""


def test_sizes():
    assert SIZES == dict(tiny=(120, 24, 48), course=(1200, 120, 240))


# ------------------------------------------------------------------ films


@pytest.mark.parametrize("ending", ["gif", "png"])
def test_a_film_has_its_frames_and_colours(tmp_path, ending):
    rain = np.zeros((5, 20, 30))
    for t in range(5):
        rain[t, 2, 3 + 5 * t] = 15.0  # moves to the east, near the southern edge
    rain[:, 10, 0] = np.nan
    path = animate({"one": rain, "two": rain}, tmp_path / f"film.{ending}", keep=2, scale=4)
    film = Image.open(path)
    assert film.n_frames == 5 and film.info["duration"] == 250
    for t in range(5):
        film.seek(t)
        pixels = np.asarray(film.convert("RGB"))
        row, column = module._TITLE + 4 * (19 - 2) + 1, 4 * (3 + 5 * t) + 1
        assert tuple(pixels[row, column]) == (253, 190, 111)  # 10 to 20 mm/h
        assert tuple(pixels[row, column + 4 * 30 + 6]) == (253, 190, 111)
        assert tuple(pixels[module._TITLE + 4 * 9 + 1, 1]) == (220, 220, 220)  # unknown
        assert tuple(pixels[module._TITLE + 1, 60]) == (247, 247, 247)  # dry


def test_films_are_small_and_whole(tmp_path, case):
    path = animate(case.radar, tmp_path / "film.png")
    assert path.stat().st_size < 150e3
    assert [p.name for p in tmp_path.iterdir()] == ["film.png"]


def test_films_refuse(tmp_path):
    rain = np.zeros((3, 8, 8))
    for wrong in (rain[0], np.zeros((0, 8, 8)), {}, {"a": rain, "b": rain[:2]}):
        with pytest.raises(DataError, match="animate: shape of the frames"):
            animate(wrong, tmp_path / "film.gif")
    with pytest.raises(DataError, match="animate: ending: expected .gif or .png, found film.mp4"):
        animate(rain, tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())
