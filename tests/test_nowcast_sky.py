"The simulated radar: exact steps, known answers, the ideal ensemble."

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import expm, solve_continuous_lyapunov

from sslpdl_nb.core import DataError
from sslpdl_nb.nowcast.sky import (
    CELL,
    PURE,
    RadarSky,
    Sky,
    Waves,
    amplitudes,
    at_labels,
    born_cells,
    cell_path,
    labels,
    lift,
    measured,
    memory,
    new_cells,
    older_cells,
    rain_rate,
    ridge_slope,
    triangular_root,
    upslope,
    wavelengths,
)

SMALL = Sky(n=48, crop=24)  # 96 km; a frame in less than a millisecond


@pytest.fixture(scope="module")
def radar_sky():
    return RadarSky()


@pytest.fixture(scope="module")
def case(radar_sky):
    return radar_sky.sequence([3, 0])


def generator(seed=0):
    return np.random.default_rng(seed)


# ------------------------------------------------------------------ one wave


@pytest.mark.parametrize(
    "tau1, tau2, minutes", [(30, 15, 5), (400, 200, 5), (3, 1.5, 5), (9, 1, 2)]
)
def test_memory_solves_the_differential_equation(tau1, tau2, minutes):
    A, P, Q = memory(tau1, tau2, minutes)
    M = np.array([[-1 / tau1, 0], [1 / tau2, -1 / tau2]])
    chance = np.array([[2 / tau1, 0], [0, 0]])
    assert np.allclose(A, expm(M * minutes))
    assert np.allclose(P, solve_continuous_lyapunov(M, -chance))
    s = (np.arange(2000) + 0.5) / 2000 * minutes  # Q by the integral of its definition
    parts = [expm(M * t) @ chance @ expm(M * t).T for t in s]
    assert np.allclose(Q, np.mean(parts, 0) * minutes, rtol=1e-4)
    assert np.allclose(A @ P @ A.T + Q, P)


@pytest.mark.parametrize("tau1, tau2", [(10, 10), (5, 10), (10, 0), (10, -1), (np.nan, 1)])
def test_memory_needs_two_times_in_order(tau1, tau2):
    with pytest.raises(DataError, match="expected 0 < tau2 < tau1"):
        memory(tau1, tau2, 5)


def test_triangular_root():
    covariance = np.array([[2.0, 0.7], [0.7, 1.0]])
    assert np.allclose(triangular_root(covariance), np.linalg.cholesky(covariance))
    many = np.stack([covariance, 3 * covariance], -1)
    assert np.allclose(triangular_root(many)[..., 1], np.linalg.cholesky(3 * covariance))
    with pytest.raises(DataError, match="positive definite"):
        triangular_root(np.array([[1.0, 2.0], [2.0, 1.0]]))


# ------------------------------------------------------------------ all waves


@pytest.mark.parametrize("sky", [Sky(), PURE, SMALL, Sky(inertia=0.9), Sky(spacing=1.0, inner=2.0)])
def test_noise_is_possible_and_variance_one_for_each_wave(sky):
    length = wavelengths(sky.n, sky.spacing)
    tau1 = sky.life * np.minimum(length, 3 * sky.outer) / (1 + sky.inertia)
    A, P, Q = memory(tau1, sky.inertia * tau1, sky.minutes)
    assert (Q[0, 0] > 0).all() and (Q[0, 0] * Q[1, 1] > Q[0, 1] ** 2).all()
    waves = Waves(sky)
    single = np.einsum("ij...,kj...->ik...", waves.first, waves.first)
    after = np.einsum("ij...,jk...,lk...->il...", waves.transition, single, waves.transition)
    after += np.einsum("ij...,kj...->ik...", waves.chance, waves.chance)
    assert np.allclose(after, single, atol=2e-6)  # stays as it is
    twice = np.full(length.shape, 2.0)
    twice[:, [0, -1]] = 1
    g_squared = (twice * waves.strength**2 * single[1, 1]).sum() / sky.n**2
    assert np.isclose(g_squared, 1, rtol=1e-4)


def test_wavelengths_and_amplitudes():
    length = wavelengths(8, 2.0)
    assert np.allclose(length[0], [16, 16, 8, 16 / 3, 4])
    assert np.isclose(length[1, 1], 16 / np.sqrt(2)) and length.shape == (8, 5)
    sky = Sky()
    length = wavelengths(sky.n, sky.spacing)
    power = amplitudes(sky, length).astype(float) ** 2
    assert power[0, 0] == 0 and (power[length < sky.inner] == 0).all()
    ratio = power[0, 8] / power[0, 16]  # 48 and 24 km: half the wavelength
    assert np.isclose(ratio, 2**sky.slope, rtol=1e-3)
    assert np.isclose(power[0, 1], power[1, 0]) and np.isclose(power[0, 1], power[0, 1].max())


def test_correlation_of_a_wave_is_that_of_the_formula():
    A, P, _ = memory(30.0, 15.0, 5.0)
    for steps in (1, 3, 12):
        t = 5.0 * steps
        found = (np.linalg.matrix_power(A, steps) @ P)[1, 1] / P[1, 1]
        assert np.isclose(found, (30 * np.exp(-t / 30) - 15 * np.exp(-t / 15)) / 15)


def test_fields_are_real_and_have_variance_one():
    waves, rng = Waves(Sky()), generator()
    fields = np.array([waves.field(waves.start(rng)) for _ in range(30)])
    assert fields.dtype == np.float32 and abs(fields.var() - 1) < 0.15
    z = waves.start(rng)
    large = waves.large_scales(z)
    assert 0.2 < large.var() < waves.field(z).var() + 0.3
    assert abs(np.fft.rfft2(large))[wavelengths(192, 2.0) < 60].max() < 1e-2


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(inertia=1.0), "inertia: expected between 0 and 1"),
        (dict(n=191), "n: expected an even whole number"),
        (dict(crop=200), "crop: expected a whole number from 8"),
        (dict(spacing=0.0), "spacing: expected more than 0"),
        (dict(births=-1.0), "births: expected 0 or more"),
        (dict(children=1.0), "children: expected from 0"),
        (dict(inner=3.0), "inner: expected at least two points"),
        (dict(outer=3.0), "outer: expected more than inner"),
        (dict(speed=np.nan), "speed: expected a finite number"),
        (dict(speed="fast"), "speed: expected a finite number, found fast"),
    ],
)
def test_skies_that_cannot_be(changes, message):
    with pytest.raises(DataError, match=message):
        Sky(**changes)


# ------------------------------------------------------------------ labels, cells, ridge, rain


def test_labels_move_a_field_exactly():
    field = generator().standard_normal((32, 32))
    x, y = np.meshgrid(np.arange(32.0), np.arange(32.0))
    assert np.allclose(at_labels(field, x - 3, y + 5), np.roll(field, (-5, 3), (0, 1)))
    assert np.allclose(at_labels(field, x - 32, y + 64), field)  # periodic


def test_life_of_a_cell():
    cells = new_cells(np.array([40.0] * 500), np.array([40.0] * 500), generator())
    assert (cells["age"] == 0).all() and abs(np.log(cells["radius"] / 4)).mean() < 0.4
    assert np.allclose(cells["life"], 45 * (cells["radius"] / 4) ** 0.7)
    one, axis = cells[:1].copy(), np.arange(0, 96, 2.0)
    heights = []
    for part in np.linspace(0, 1, 21):
        one["age"] = part * one["life"]
        heights.append(lift(one, axis, 96.0).max())
    assert np.isclose(max(heights), one["peak"][0]) and np.argmax(heights) == 10
    assert max(heights[0], heights[-1]) < 1e-12


def test_a_cell_at_the_border_of_the_box_is_seen_on_both_sides():
    cell = new_cells(np.array([0.0]), np.array([48.0]), generator())
    cell["age"] = cell["life"] / 2
    lifted = lift(cell, np.arange(0, 96, 2.0), 96.0)
    assert np.isclose(lifted[24, 1], lifted[24, -1]) and lifted[24, 24] < 1e-6
    assert lift(np.zeros(0, CELL), np.arange(0, 96, 2.0), 96.0).max() == 0


def test_children_on_the_right_flank():
    sky = Sky(children=0.99)
    cells = new_cells(np.full(2000, 200.0), np.full(2000, 200.0), generator())
    cells["age"] = 0.6 * cells["life"] - 1
    path = cell_path(sky, np.array([0.0, 10.0]))  # a south wind; cells veer to the east
    assert path[0] > 0 and np.isclose(np.hypot(*path), 0.8 * 3.0)
    older = older_cells(sky, cells, path, generator())
    children = older[older["age"] == 0]
    assert abs(len(children) / 2000 - 0.99) < 0.01
    away = np.stack([children["x"] - 200 - path[0], children["y"] - 200 - path[1]])
    right = np.array([path[1], -path[0]]) / np.hypot(*path)
    assert np.allclose(right @ away, 2.2 * children["radius"])
    assert np.allclose(path @ away, 0, atol=1e-9)
    assert len(older_cells(sky, children, path, generator())) == len(children)  # too young


def test_births_follow_the_large_scales():
    flat, side = np.zeros((100, 100)), 200.0
    sky = Sky(n=100, crop=50)
    born = [born_cells(sky, 6.0, flat, np.zeros(2), generator(s)) for s in range(200)]
    expected = 6.0 * (side / 100) ** 2 / 12 * np.exp(-(sky.cluster**2) / 4)
    assert np.isclose(np.mean([len(b) for b in born]), expected, rtol=0.15)
    wet = [born_cells(sky, 6.0, flat + 1, np.zeros(2), generator(s)) for s in range(200)]
    ratio = sum(map(len, wet)) / sum(map(len, born))
    assert np.isclose(ratio, np.exp(sky.cluster), rtol=0.15)
    moved = born_cells(sky, 6.0, flat + 2.5, np.array([190.0, 30.0]), generator())
    assert (moved["x"] < side).all() and (moved["x"] >= 0).all()


def test_ridge_rains_on_the_windward_side():
    slope = ridge_slope(Sky())
    west = upslope(Sky(), slope, np.array([10.0, 0.0]))
    assert west.max() > 0.3 and west.min() < -0.3 and np.abs(west).max() <= 0.7
    columns = np.arange(96)
    windward = (np.maximum(west, 0) * columns).sum() / np.maximum(west, 0).sum()
    lee = (np.maximum(-west, 0) * columns).sum() / np.maximum(-west, 0).sum()
    assert windward < lee
    assert np.abs(upslope(PURE, slope, np.array([30.0, 5.0]))).max() == 0


def test_quantile_map():
    rain = rain_rate(np.array([-0.202, 0.613, 1.563, 3.54]), 1e-3)
    assert np.allclose(rain, [0.1, 0.5, 2, 10], rtol=2e-3) and rain.dtype == np.float32
    hidden = generator().standard_normal(400_000)
    shares = [(rain_rate(hidden) >= edge).mean() for edge in (0.1, 0.5, 2, 10)]
    assert np.allclose(shares, [0.58, 0.27, 0.059, 0.0002], atol=0.002)
    steps = rain_rate(np.linspace(-5, 6, 500))
    assert (np.diff(steps) >= 0).all() and steps[0] == 0 and np.isfinite(steps).all()
    assert steps[steps > 0].min() >= 0.1


def test_radar_measures_in_steps_and_without_bias():
    rain = np.full(200_000, 3.0)
    seen = measured(Sky(), rain, generator())
    assert np.allclose(seen / 0.12, np.round(seen / 0.12), atol=1e-3)
    assert np.isclose(np.log(seen).std(), 0.10, atol=0.01) and abs(seen.mean() - 3.015) < 0.01
    assert measured(Sky(), np.zeros(10), generator()).max() == 0
    exact = replace(Sky(), noise=0.0)
    assert np.allclose(measured(exact, np.array([0.05, 0.10, 0.19]), generator()), [0, 0.12, 0.24])


# ------------------------------------------------------------------ sequences


def test_same_seed_same_bits(case):
    again = RadarSky().sequence([3, 0])
    assert np.array_equal(again.radar, case.radar) and np.array_equal(again.truth, case.truth)
    assert np.array_equal(again.state.waves, case.state.waves)
    assert np.array_equal(again.state.cells, case.state.cells)
    other = RadarSky().sequence([3, 1])
    assert not np.array_equal(other.truth, case.truth)
    small = RadarSky(SMALL)
    assert np.array_equal(small.sequence(7).truth, small.sequence([7]).truth)


def test_form_of_a_sequence(case):
    assert case.radar.shape == case.truth.shape == (24, 96, 96)
    assert case.radar.dtype == case.truth.dtype == np.float32
    assert case.truth.min() == 0 and np.isfinite(case.truth).all()
    assert case.state.minutes == 0 and case.state.cells.dtype == CELL


def test_a_shorter_sequence_is_the_beginning_of_a_longer_one():
    small = RadarSky(SMALL)
    long, short = small.sequence(1), small.sequence(1, frames=12)
    assert np.array_equal(long.truth[:12], short.truth)
    assert np.array_equal(long.state.waves, short.state.waves)
    assert np.array_equal(long.radar[:12], short.radar)


def test_the_radar_does_not_change_the_weather():
    noisy = RadarSky(replace(SMALL, noise=0.5, quantum=1.0)).sequence(1)
    clean = RadarSky(SMALL).sequence(1)
    assert np.array_equal(noisy.truth, clean.truth)
    assert not np.array_equal(noisy.radar, clean.radar)


@pytest.mark.parametrize("seed", [-1, 0.5, "a", None, [0, -2]])
def test_what_cannot_be_a_seed(seed):
    with pytest.raises(DataError, match="seed: expected whole numbers from 0 on"):
        RadarSky(SMALL).sequence(seed)


@pytest.mark.parametrize("frames, keep", [(12, 12), (24, -1), (0, 0)])
def test_keep_is_one_of_the_frames(frames, keep):
    with pytest.raises(DataError, match="sequence: keep"):
        RadarSky(SMALL).sequence(0, frames, keep)


def test_motion_is_where_labels_go(radar_sky, case):
    state, sky = case.state, radar_sky.sky
    later = radar_sky.step(state, generator())
    move = sky.spacing * radar_sky.motion(state)
    before = labels(sky, state, radar_sky.x, radar_sky.y)
    after = labels(sky, later, radar_sky.x + move[0], radar_sky.y + move[1])
    assert np.allclose(before, after, atol=0.05)
    assert np.allclose(
        radar_sky.wind(state) * 0.15, radar_sky.motion(state).mean((1, 2)), atol=0.15
    )
    still = labels(sky, later, radar_sky.x, radar_sky.y)
    assert np.abs(np.subtract(before, still)).max() > 0.5  # or nothing was tested


def test_the_wind_turns(radar_sky, case):
    state = replace(case.state, toward=0.0, turning=np.deg2rad(30), speed=10.0)
    for _ in range(12):
        state = radar_sky.step(state, generator())
    assert state.minutes == 60
    assert np.allclose(state.wind, 10 * np.array([np.cos(np.pi / 6), 0.5]))


def test_pure_has_steady_motion_only():
    pure = RadarSky(replace(PURE, n=48, crop=24))
    state = pure.sequence(4).state
    later = pure.step(state, generator())
    assert len(state.cells) == len(later.cells) == 0
    assert np.array_equal(state.wind, later.wind)
    assert np.ptp(pure.motion(state), axis=(1, 2)).max() == 0
    full = RadarSky(SMALL).sequence(4).state
    assert len(full.cells) and np.ptp(RadarSky(SMALL).motion(full), axis=(1, 2)).max() > 0


def test_without_decay_pure_moves_one_picture():
    steady = dict(speed=20 / 3, speed_spread=0.0, toward=90.0, toward_spread=0.0)  # 1 pixel north
    sky = RadarSky(replace(PURE, n=96, crop=48, life=1000.0, **steady))
    truth = sky.sequence(2, frames=6, keep=2).truth
    assert truth.max() > 0.5
    assert np.allclose(truth[5][5:], truth[0][:-5], atol=0.01 * truth.max())


def test_cells_are_in_balance():
    sky = RadarSky(replace(SMALL, births=20.0, births_spread=0.0, cluster=0.0))
    counts = []
    for seed in range(12):
        state = sky.start(generator(seed))
        first = len(state.cells)
        for _ in range(12):
            state = sky.step(state, generator(seed + 100))
        counts.append((first, len(state.cells)))
    life = 45 * np.exp((0.7 * 0.3) ** 2 / 2) / 60  # hours, mean
    expected = 20 * 0.96**2 * life / (1 - sky.sky.children)  # each cell has 0.6 children
    assert np.allclose(np.mean(counts, 0), expected, rtol=0.15)


# ------------------------------------------------------------------ the ideal ensemble


def test_futures_differ_and_come_back():
    sky = RadarSky(SMALL)
    state = sky.sequence(0).state
    waves, cells = state.waves.copy(), state.cells.copy()
    futures = sky.futures(state, 3, frames=4, seed=1)
    assert futures.shape == (3, 4, 24, 24) and futures.dtype == np.float32
    assert np.array_equal(futures, sky.futures(state, 3, frames=4, seed=1))
    assert np.array_equal(futures[:2, :2], sky.futures(state, 2, frames=2, seed=1))
    other = sky.futures(state, 3, frames=4, seed=2)
    for a in range(3):
        assert not any(np.array_equal(futures[a], f) for f in other)
    assert not np.array_equal(futures[0], futures[1])
    assert np.array_equal(state.waves, waves) and np.array_equal(state.cells, cells)


def test_futures_of_another_box_are_refused():
    state = RadarSky(SMALL).sequence(0).state
    with pytest.raises(DataError, match="futures: state: expected 192 x 192 points"):
        RadarSky().futures(state, 1)
    for wrong in (dict(members=0), dict(members=1, frames=0)):
        with pytest.raises(DataError, match="at least one of each"):
            RadarSky(SMALL).futures(state, **wrong)


def rank_error(cases, change):
    "How far the ranks of the truth among five futures are from uniform (0 = uniform)."
    sky, ranks = RadarSky(replace(SMALL, n=32, crop=32)), []
    for n, case in enumerate(cases):
        futures = sky.futures(change(case.state), 5, 2, seed=[9, n])[:, -1]
        for part in (np.s_[:16, :16], np.s_[16:, 16:]):
            f, truth = (
                np.log1p(r[..., *part] / 0.2).mean((-1, -2)) for r in (futures, case.truth[-1])
            )
            ranks.append((f < truth).sum())
    shares = np.bincount(np.array(ranks) // 2, minlength=3) / len(ranks)
    return np.abs(shares - 1 / 3).max()


def test_the_ideal_ensemble_is_reliable():
    sky = RadarSky(replace(SMALL, n=32, crop=32))
    cases = [sky.sequence([8, n], frames=3, keep=0) for n in range(60)]
    right = rank_error(cases, lambda state: state)
    too_wet = rank_error(cases, lambda state: replace(state, wetness=state.wetness + 0.4))
    assert right < 0.15 < 0.3 < too_wet
