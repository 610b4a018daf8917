"Moved rain: known motions, exact advection, a cascade that adds up, S-PROG and STEPS."

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from sslpdl_nb.core import DataError
from sslpdl_nb.nowcast.flow import (
    DRY,
    _blocks,
    _shifted,
    advect,
    ar2,
    ar2_noise,
    band_weights,
    cascade,
    cross_correlation,
    eulerian,
    hill_top,
    interpolate,
    lag_correlations,
    lagrangian,
    match_distribution,
    mean_motion,
    motion,
    moving_cascades,
    noise_amplitudes,
    origins,
    seen,
    sprog,
    steps_ensemble,
    to_db,
)
from sslpdl_nb.nowcast.sky import RadarSky
from sslpdl_nb.verify import contingency, csi


def travelling(u, v, n=4, shape=(96, 96), seed=0):
    "Rain (n, h, w) that moves by (u, v) pixels per frame, known between the pixels."
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    field = np.zeros((n, *shape))
    for wavelength in np.geomspace(10, 120, 30):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        for t in range(n):
            along = (x - u * t) * np.cos(angle) + (y - v * t) * np.sin(angle)
            field[t] += wavelength / 80 * np.cos(2 * np.pi * along / wavelength + phase)
    return np.maximum(np.exp(field / 3) - 0.9, 0)


def uniform(u, v, shape=(40, 50)):
    "The same motion everywhere."
    return np.stack([np.full(shape, float(u)), np.full(shape, float(v))])


def fading(n=12, size=64, seed=0, mean=-8):  # mean: dB
    "Rain that stays where it is and changes, small scales faster than large ones."
    rng = np.random.default_rng(seed)
    decay = np.array([0.999, 0.99, 0.96, 0.9, 0.7, 0.3])[:, None, None]
    scale = np.array([3, 3, 2, 1.5, 1, 0.7])[:, None, None]

    def fresh():
        levels = cascade(rng.standard_normal((size, size)))
        return scale * levels / levels.std((1, 2), keepdims=True)

    x, frames = fresh(), []
    for _ in range(n):
        x = decay * x + np.sqrt(1 - decay**2) * fresh()
        frames.append(10 ** ((x.sum(0) + mean) / 10))
    frames = np.stack(frames)
    return np.where(frames < 0.1, 0, frames)


FADING = fading()
DRY_FRAMES = np.zeros((12, 48, 40))

# ------------------------------------------------------------------ what is refused

NEED = {eulerian: 1, mean_motion: 2, motion: 2, lagrangian: 2, sprog: 3}
FORECASTS = [*NEED, lambda frames: steps_ensemble(frames, 2)]


@pytest.mark.parametrize("forecast", FORECASTS)
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x.astype(np.uint8), "type: expected rain rates, float, found uint8"),
        (lambda x: x.astype(complex), "found complex128"),
        (lambda x: x[0], r"shape: expected \(frames, h, w\)"),
        (lambda x: x[:0], "shape"),
        (lambda x: x[:, :7], "shape"),
        (lambda x: x - 9.0, "mm/h: expected 0 or more, NaN = missing, found -9"),
        (lambda x: np.where(x == x.max(), np.inf, x), "mm/h"),
        (lambda x: np.where(np.arange(12)[:, None, None] == 11, np.nan, x), "the last one"),
    ],
)
def test_unfit_frames(forecast, change, message):
    with pytest.raises(DataError, match=message):
        forecast(change(FADING))


@pytest.mark.parametrize("forecast, least", NEED.items())
def test_too_few_frames(forecast, least):
    assert np.isfinite(forecast(FADING[-least:])).any()
    if least > 1:
        with pytest.raises(DataError, match=rf"at least \({least}, 8, 8\)"):
            forecast(FADING[-least + 1 :])


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "12"])
@pytest.mark.parametrize("forecast", [eulerian, lagrangian, sprog])
def test_unfit_steps(forecast, steps):
    with pytest.raises(DataError, match="steps: expected a whole number of at least 1"):
        forecast(FADING, steps)


def test_unfit_motion():
    with pytest.raises(DataError, match=r"motion: shape: expected \(2, 40, 50\)"):
        advect(np.ones((40, 50)), uniform(1, 1, (50, 40)), 3)
    with pytest.raises(DataError, match="motion: expected finite numbers"):
        seen(uniform(np.nan, 0), 3)
    with pytest.raises(DataError, match="motion: shape"):
        sprog(FADING, flow=uniform(1, 1))
    for shape in ((7,), (1, 7), (3, 4, 5)):
        with pytest.raises(DataError, match=r"field to be moved: shape: expected \(h, w\)"):
            advect(np.ones(shape), uniform(1, 1), 3)


# ------------------------------------------------------------------ nothing moves


def test_persistence_repeats_the_last_frame():
    frames = FADING.copy()
    frames[-1, 3, 4] = np.nan
    forecast = eulerian(frames, 5)
    assert forecast.shape == (5, 64, 64) and forecast.dtype == np.float32
    for picture in forecast:
        assert np.array_equal(picture, frames[-1].astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("forecast", [eulerian, lagrangian, sprog])
def test_a_still_picture_scores_one(forecast):
    still = np.repeat(travelling(0, 0, n=1), 12, axis=0)
    for edge in (0.5, 2.0):
        score = csi(contingency(forecast(still), still, edge))
        assert score == 1 if forecast is eulerian else score > 0.995


def test_decibels():
    rain = np.array([0, 0.0999, 0.1, 1, 100, np.nan])
    assert np.allclose(to_db(rain), [-15, -15, -10, 0, 20, np.nan], equal_nan=True)
    assert to_db(rain).dtype == np.float32


# ------------------------------------------------------------------ motion


@pytest.mark.parametrize("shape, pairs", [((20, 20), 1), ((17, 24), 3)])
def test_correlation_by_loops(shape, pairs):
    rng = np.random.default_rng(1)
    before, after = rng.gamma(0.5, 3, (2, pairs, *shape))
    before[rng.random(before.shape) < 0.1] = np.nan
    after[:, :5, :6] = np.nan
    rho, shared = cross_correlation(before, after, 4)
    h, w = shape
    for v in range(-4, 5):
        for u in range(-4, 5):
            here = before[:, max(-v, 0) : h - max(v, 0), max(-u, 0) : w - max(u, 0)]
            there = after[:, max(v, 0) : h + min(v, 0), max(u, 0) : w + min(u, 0)]
            both = np.isfinite(here) & np.isfinite(there)
            assert shared[4 + v, 4 + u] == both.sum()
            expected = np.corrcoef(here[both], there[both])[0, 1]
            assert np.isclose(rho[4 + v, 4 + u], expected, atol=2e-4)


def test_nothing_to_correlate():
    flat, varied = np.full((1, 16, 16), 3.0), np.random.default_rng(0).random((1, 16, 16))
    for pair in ((flat, flat), (flat, varied), (varied, 0 * flat)):
        assert (cross_correlation(*pair, 4)[0] == 0).all()


def test_top_of_a_hill():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:2, -1:2]
    for _ in range(50):
        top, root = rng.uniform(-0.5, 0.5, 2), rng.standard_normal((2, 2))
        bend = root @ root.T + 0.1 * np.eye(2)
        d = np.stack([x - top[0], y - top[1]])
        assert np.allclose(hill_top(7 - np.einsum("iyx,ij,jyx->yx", d, bend, d)), top, atol=1e-6)
    assert hill_top((x + y) * 1.0).tolist() == [0, 0]
    assert hill_top((x**2 + y**2) * 1.0).tolist() == [0, 0]  # a hollow
    assert hill_top((x**2 - y**2) * 1.0).tolist() == [0, 0]  # a saddle


@pytest.mark.parametrize("u, v", [(3, 0), (0, 3), (-3, 0), (0, -4), (5, -2), (-7, 6)])
def test_whole_pixels(u, v):
    "A window on a large picture: rain enters on one side and leaves on the other."
    large = travelling(0, 0, n=1, shape=(300, 300))[0]
    frames = []
    for t in range(12):
        row, column = 100 - v * t, 100 - u * t
        frames.append(large[row : row + 96, column : column + 96])
    assert np.abs(mean_motion(np.stack(frames)) - (u, v)).max() < 0.02


@pytest.mark.parametrize("u, v", [(0.5, 0), (0, -0.5), (2.5, 1.5), (-0.25, 3.3), (1.7, -2.6)])
def test_parts_of_pixels(u, v):
    for seed in range(3):
        frames = travelling(u, v, seed=seed)
        assert np.abs(mean_motion(frames) - (u, v)).max() < 0.05
        field = motion(frames)
        assert np.abs(field.mean((1, 2)) - (u, v)).max() < 0.05
        assert np.abs(field - np.reshape((u, v), (2, 1, 1))).max() < 0.15


def test_signs():
    "One storm that goes to larger columns, then one that goes to larger rows."
    y, x = np.indices((60, 60))
    for axis, to in enumerate((x, y)):
        across = (y, x)[axis]
        frames = [
            20 * np.exp(-((to - 15 - 2 * t) ** 2 + (across - 30) ** 2) / 30) for t in range(12)
        ]
        expected = [0, 0]
        expected[axis] = 2
        assert np.abs(mean_motion(np.stack(frames)) - expected).max() < 0.1


def test_motion_reverses_with_time():
    frames = travelling(2.2, -1.4)
    assert np.allclose(mean_motion(frames[::-1]), -mean_motion(frames), atol=0.03)


def test_missing_pixels_do_not_move():
    frames = travelling(3, -2)
    frames[:, :40, :30] = np.nan  # an obstacle that stays where it is
    frames[1, 60:] = np.nan
    assert np.abs(mean_motion(frames) - (3, -2)).max() < 0.05
    assert np.isfinite(motion(frames)).all()


def test_only_the_last_frames_count():
    frames = travelling(1, 2, n=12)
    frames[:8] = FADING[0, 0, 0]
    assert np.abs(mean_motion(frames) - (1, 2)).max() < 0.05
    for n in (2, 3):
        assert np.abs(motion(travelling(1, 2)[-n:]).mean((1, 2)) - (1, 2)).max() < 0.1


def few_wet(n):
    frames = DRY_FRAMES.copy()
    for t in range(12):
        frames[t, 20, 10 + t : 10 + t + n] = 2.0
    return frames


@pytest.mark.parametrize(
    "frames",
    [
        DRY_FRAMES,
        DRY_FRAMES + 1.0,
        few_wet(1),
        few_wet(4),
        np.random.default_rng(0).gamma(0.5, 2, (12, 48, 40)),
        np.where(np.arange(12)[:, None, None] < 11, np.nan, FADING),
    ],
    ids=["dry", "the same everywhere", "one wet pixel", "four", "noise", "one frame known"],
)
def test_nothing_to_follow(frames):
    assert (motion(frames) == 0).all()
    assert np.array_equal(lagrangian(frames), eulerian(frames))
    forecast = sprog(frames)
    assert np.isfinite(forecast).all() and forecast.min() >= 0
    assert np.isfinite(steps_ensemble(frames, 2)).all()


@pytest.mark.parametrize("shape", [(8, 8), (96, 40), (33, 71)])
def test_any_shape(shape):
    frames = travelling(0.5, 0.5, shape=shape)
    field = motion(frames)
    assert field.shape == (2, *shape) and field.dtype == np.float32 and np.isfinite(field).all()
    for forecast in (lagrangian(frames, 3), sprog(frames, 3), steps_ensemble(frames, 1, 3)[0]):
        assert forecast.shape == (3, *shape) and forecast.dtype == np.float32


def test_two_winds():
    lower, upper = travelling(1, 0.5), travelling(-1, 0.5, seed=1)
    field = motion(np.concatenate([lower[:, :48], upper[:, 48:]], axis=1))
    assert field[0, 5].mean() > 0.5 and field[0, 90].mean() < -0.5
    assert np.abs(np.diff(field, axis=1)).max() < 0.1  # smooth


def test_the_mean_holds_where_it_is_dry():
    frames = travelling(0, 2)
    frames[:, :, 40:] = 0
    field, mean = motion(frames), mean_motion(frames)
    assert np.abs(mean - (0, 2)).max() < 0.1
    assert np.abs(field[:, :, -1] - mean[:, None]).max() < 0.05


@pytest.mark.parametrize("h, w, size", [(96, 96, 48), (144, 100, 48), (20, 30, 48), (49, 95, 48)])
def test_blocks_cover_the_picture(h, w, size):
    count, blocks = np.zeros((h, w), int), list(_blocks(h, w, min(size, h, w)))
    for rows, columns in blocks:
        count[rows, columns] += 1
        assert rows.stop <= h and columns.stop <= w
    assert count.min() >= 1 and len(set(map(str, blocks))) == len(blocks)


@pytest.mark.parametrize("u, v", [(0, 0), (2, -1), (-3, 4)])
def test_shift_and_back(u, v):
    field = np.random.default_rng(0).random((9, 11))
    back = _shifted(_shifted(field, u, v), -u, -v)
    assert np.array_equal(back[np.isfinite(back)], field[np.isfinite(back)])
    assert np.isfinite(back).sum() == (11 - abs(u)) * (9 - abs(v))


# ------------------------------------------------------------------ advection


@pytest.mark.parametrize("u, v", [(1, 0), (0, -2), (3, 2), (-4, 1)])
def test_whole_pixels_are_moved_exactly(u, v):
    field = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    moved = advect(field, uniform(u, v), 4)
    for k in range(1, 5):
        expected = _shifted(field, -u * k, -v * k)
        assert np.array_equal(moved[k - 1], expected, equal_nan=True)


def test_a_ramp_is_moved_exactly():
    y, x = np.indices((40, 50))
    moved = advect(2.0 * x - 3.0 * y, uniform(0.7, -0.3), 9)
    for k, picture in enumerate(moved, 1):
        expected = 2 * (x - 0.7 * k) - 3 * (y + 0.3 * k)
        known = np.isfinite(picture)
        assert known.sum() == (50 - np.ceil(0.7 * k)) * (40 - np.ceil(0.3 * k))
        assert np.allclose(picture[known], expected[known], atol=1e-4)


def test_constants_stay_and_nothing_is_invented():
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 2, (2, 40, 50))
    assert np.nanmax(np.abs(advect(np.full((40, 50), 7.0), flow, 6) - 7)) < 1e-5
    field = rng.random((40, 50))
    moved = advect(field, flow, 6)
    assert np.nanmin(moved) >= field.min() - 1e-6 and np.nanmax(moved) <= field.max() + 1e-6


def test_seen_is_where_advection_gives_a_value():
    flow = np.random.default_rng(0).normal(1, 2, (2, 40, 50))
    assert np.array_equal(seen(flow, 6), np.isfinite(advect(np.ones((40, 50)), flow, 6)))
    assert seen(uniform(0, 0), 3).all() and not seen(uniform(99, 0), 1).any()
    assert seen(uniform(2, -1), 5).sum((1, 2)).tolist() == [
        (50 - 2 * k) * (40 - k) for k in range(1, 6)
    ]


def test_missing_pixels_move_along():
    field = np.ones((40, 50))
    field[10, 20] = np.nan
    whole = np.isnan(advect(field, uniform(2, 1), 3)[2])
    assert whole[13, 26] and whole[3:, 6:].sum() == 1
    half = np.isnan(advect(field, uniform(0.5, 0), 1)[0])
    assert np.argwhere(half[:, 1:]).tolist() == [[10, 19], [10, 20]]


def test_paths_follow_a_vortex():
    y, x = np.indices((61, 61)) - 30.0
    places = origins(0.1 * np.stack([-y, x]), 20)
    radius = np.hypot(places[:, 0] - 30, places[:, 1] - 30)
    inner = np.hypot(x, y) < 25
    assert np.abs(radius - np.hypot(x, y))[:, inner].max() < 0.3
    angle = np.arctan2(places[:, 0] - 30, places[:, 1] - 30)[:, 30, 40]
    assert np.allclose(angle, -0.1 * np.arange(1, 21), atol=0.01)  # backwards


def test_interpolation_at_pixels_gives_the_pixels():
    field = np.random.default_rng(0).random((9, 11)).astype(np.float32)
    assert np.array_equal(interpolate(field, np.indices((9, 11))), field)


def test_moved_rain_arrives():
    frames = travelling(2.3, -1.6, n=24)
    forecast, known = lagrangian(frames[:12]), seen(motion(frames[:12]), 12)
    assert np.array_equal(np.isfinite(forecast), known)
    for edge in (0.5, 2):
        assert csi(contingency(forecast[-1], frames[-1], edge)) > 0.9
        assert csi(contingency(eulerian(frames[:12])[-1], frames[-1], edge)) < 0.6


# ------------------------------------------------------------------ cascade


@pytest.mark.parametrize("shape, levels", [((96, 96), 6), ((40, 57), 4), ((8, 8), 2), ((64, 9), 9)])
def test_levels_add_up(shape, levels):
    field = 5 + np.random.default_rng(0).standard_normal(shape)
    parts = cascade(field, levels)
    assert parts.shape == (levels, *shape)
    assert np.allclose(parts.sum(0), field, atol=1e-5)
    assert np.allclose(parts.mean((1, 2)), [field.mean(), *[0] * (levels - 1)], atol=1e-5)
    weights = band_weights(shape, levels)
    assert np.allclose(weights.sum(0), 1, atol=1e-6) and weights.min() >= 0
    assert (weights > 0).sum(0).max() <= 2  # no wave is in more than two levels


@pytest.mark.parametrize("level", range(6))
@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_at_the_centre_of_a_level(level, axis):
    wave = np.cos(2 * np.pi * (np.arange(96) + 0.5) * 2**level / 96)
    field = np.repeat(np.expand_dims(wave, 1 - axis), 96, 1 - axis)
    parts = cascade(field)
    assert np.allclose(parts[level], field, atol=1e-5)
    assert np.abs(np.delete(parts, level, 0)).max() < 1e-5


def test_many_fields_at_once():
    fields = np.random.default_rng(0).random((2, 3, 16, 20))
    parts = cascade(fields, 3)
    assert parts.shape == (2, 3, 3, 16, 20)
    assert np.allclose(parts[1, 2], cascade(fields[1, 2], 3), atol=1e-6)


def test_unfit_fields():
    gap = np.ones((16, 16))
    gap[3, 3] = np.nan
    with pytest.raises(DataError, match="a value in every pixel"):
        cascade(gap)
    with pytest.raises(DataError, match="shape"):
        cascade(np.ones(16))
    with pytest.raises(DataError, match="levels: expected a whole number of at least 2"):
        cascade(np.ones((16, 16)), 1)


# ------------------------------------------------------------------ AR(2)


@pytest.mark.parametrize("phi", [(1.2, -0.35), (0.9, 0.05), (0.3, 0.1), (1.9, -0.9025)])
def test_coefficients_come_back(phi):
    r1 = phi[0] / (1 - phi[1])
    r2 = phi[0] * r1 + phi[1]
    assert np.allclose(ar2(r1, r2), phi, atol=1e-3)


def test_a_process_keeps_its_variance():
    rng = np.random.default_rng(0)
    phi = ar2(0.9, 0.75)
    x = [np.zeros(20_000), np.zeros(20_000)]
    for _ in range(80):
        x.append(phi @ np.stack([x[-1], x[-2]]) + ar2_noise(phi) * rng.standard_normal(20_000))
    assert abs(x[-1].std() - 1) < 0.02
    r = [np.corrcoef(x[-1], x[-1 - lag])[0, 1] for lag in (1, 2)]
    assert np.allclose(r, [0.9, 0.75], atol=0.02) and np.allclose(ar2(*r), phi, atol=0.05)


def test_whatever_is_estimated_fades():
    r1, r2 = np.meshgrid(*[np.linspace(-1, 1, 41)] * 2)
    phi = ar2(r1, r2)
    roots = phi[0] ** 2 + 4 * phi[1]
    assert (roots > -1e-9).all()  # real: no swing
    largest = (phi[0] + np.sqrt(np.maximum(roots, 0))) / 2
    assert (largest < 1).all() and (ar2_noise(phi) <= 1 + 1e-9).all() and (phi[0] > 0).all()


# ------------------------------------------------------------------ S-PROG


def test_known_pixels_of_moved_frames():
    frames = travelling(2, 0)
    cascades, known = moving_cascades(frames, uniform(2, 0, (96, 96)))
    assert known[:, 4:].all() and not known[:, :4].any()
    assert np.allclose(cascades.sum(1)[:, :, 10:], to_db(frames[-1])[:, 10:], atol=0.5)
    r = lag_correlations(cascades, known)
    assert (r[:, :4] > 0.99).all()  # nothing changes but the place


def test_missing_pixels_of_older_frames_leave_the_correlations_alone():
    still = uniform(0, 0, (64, 64))
    whole = lag_correlations(*moving_cascades(FADING, still))
    gaps = FADING.copy()
    gaps[-2, :16], gaps[-3, :, :8] = np.nan, np.nan
    cascades, known = moving_cascades(gaps, still)
    assert known.sum() == 48 * 56
    assert np.abs(lag_correlations(cascades, known) - whole)[:, 1:].max() < 0.1


def test_correlations_by_corrcoef():
    x = np.random.default_rng(0).random((3, 2, 8, 9)).cumsum(0)
    known = np.random.default_rng(1).random((8, 9)) < 0.7
    r = lag_correlations(x, known)
    for lag in (1, 2):
        for level in range(2):
            pair = x[2, level][known], x[2 - lag, level][known]
            assert np.isclose(r[lag - 1, level], np.corrcoef(*pair)[0, 1], atol=1e-6)
    assert (lag_correlations(np.ones((3, 2, 8, 9)), known) == 0).all()
    assert (lag_correlations(x, np.zeros((8, 9), bool)) == 0).all()


def test_rates_of_one_picture_in_the_order_of_another():
    rng = np.random.default_rng(0)
    field, rain = rng.standard_normal((20, 30)), rng.gamma(0.3, 3, (20, 30)).astype(np.float32)
    rain[:5] = np.nan
    matched = match_distribution(field, rain)
    assert np.isnan(matched[:5]).all()
    assert np.array_equal(np.sort(matched[5:], None), np.sort(rain[5:], None))
    order = np.argsort(field[5:], None)
    assert (np.diff(matched[5:].ravel()[order]) >= 0).all()


def test_sprog_has_the_rates_of_the_last_frame():
    forecast = sprog(FADING, flow=uniform(0, 0, (64, 64)))
    expected = np.sort(FADING[-1].astype(np.float32), None)
    for picture in forecast:
        assert np.allclose(np.sort(picture, None), expected)


def test_sprog_becomes_smoother():
    forecast = sprog(FADING, 24, flow=uniform(0, 0, (64, 64)))
    small = cascade(to_db(np.concatenate([FADING[-1:], forecast])))[:, 4:].sum(1).var((1, 2))
    assert (np.diff(small[[0, 1, 3, 6]]) < 0).all() and small[-1] < 0.5 * small[0]
    large = cascade(to_db(np.stack([FADING[-1], forecast[-1]])))[:, 0]
    assert np.corrcoef(large[0].ravel(), large[1].ravel())[0, 1] > 0.95


def test_sprog_is_better_than_persistence_where_scales_fade():
    errors = {"persistence": [], "S-PROG": []}
    still = uniform(0, 0, (64, 64))
    for seed in range(6):
        frames = fading(n=18, seed=seed)
        truth = to_db(frames[-1])
        errors["persistence"].append(((to_db(frames[11]) - truth) ** 2).mean())
        errors["S-PROG"].append(
            ((to_db(sprog(frames[:12], 6, flow=still)[-1]) - truth) ** 2).mean()
        )
    persistence, smooth = (np.array(e) for e in errors.values())
    assert (smooth < persistence).all()


def test_sprog_of_dry_and_missing():
    assert (sprog(DRY_FRAMES) == 0).all()
    frames = FADING.copy()
    frames[:, 20:30, 10:20] = np.nan
    forecast = sprog(frames, flow=uniform(0, 0, (64, 64)))
    missing = np.zeros((64, 64), bool)
    missing[20:30, 10:20] = True
    assert np.array_equal(np.isnan(forecast), np.broadcast_to(missing, forecast.shape))


def test_sprog_moves_with_the_motion():
    still, moving = (sprog(FADING, 4, flow=uniform(u, 0, (64, 64))) for u in (0, 3))
    assert np.array_equal(np.isfinite(moving), seen(uniform(3, 0, (64, 64)), 4))
    assert np.isfinite(still).all()


def test_given_motion_is_used():
    flow = motion(FADING)
    for function in (sprog, lambda x, flow: steps_ensemble(x, 2, flow=flow)):
        assert np.array_equal(
            function(FADING, flow=flow), function(FADING, flow=None), equal_nan=True
        )


# ------------------------------------------------------------------ STEPS


def test_noise_has_the_variance_and_spectrum_of_each_level():
    levels = cascade(to_db(FADING[-1]))
    amplitudes = noise_amplitudes(levels)
    rng = np.random.default_rng(0)
    white = np.fft.rfft2(rng.standard_normal((300, 1, 64, 64)))
    made = np.fft.irfft2(amplitudes * white, (64, 64))
    assert np.allclose(np.sqrt((made**2).mean((0, 2, 3))), levels.std((1, 2)), rtol=0.1)
    assert np.abs(made.mean((2, 3))).max() < 1e-6  # noise does not change the mean
    for k in range(1, 5):  # most of the noise of a level is in the level and its neighbours
        inside = cascade(made[0, k])[max(k - 1, 0) : k + 2].sum(0).var()
        assert inside > 0.9 * made[0, k].var()


def test_flat_levels_have_no_noise():
    assert (noise_amplitudes(np.zeros((3, 16, 16))) == 0).all()


def test_seeds_and_members():
    ensemble = steps_ensemble(FADING, 5, 3, seed=4)
    assert ensemble.shape == (5, 3, 64, 64) and ensemble.dtype == np.float32
    assert np.array_equal(steps_ensemble(FADING, 5, 3, seed=4), ensemble, equal_nan=True)
    assert np.array_equal(steps_ensemble(FADING, 2, 3, seed=4), ensemble[:2], equal_nan=True)
    assert np.array_equal(steps_ensemble(FADING, 2, 2, seed=4), ensemble[:2, :2], equal_nan=True)
    assert not np.array_equal(steps_ensemble(FADING, 5, 3, seed=5), ensemble, equal_nan=True)
    for a in range(5):
        for b in range(a):
            assert not np.array_equal(ensemble[a], ensemble[b], equal_nan=True)


def test_the_random_state_of_others_is_left_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    steps_ensemble(FADING, 1, 2)
    assert np.array_equal(np.random.get_state()[1], before)


def test_without_noise_it_is_sprog():
    ensemble = steps_ensemble(FADING, 2, noise=0.0, motion_spread=0.0)
    for member in ensemble:
        assert np.array_equal(member, sprog(FADING), equal_nan=True)


def test_motion_spread_moves_whole_pictures():
    frames = travelling(4, 0)
    ensemble = steps_ensemble(frames, 8, 6, noise=0.0, motion_spread=0.3)
    columns = np.isnan(ensemble[:, -1]).all(1).sum(1)  # unseen columns at the left
    assert columns.min() < 24 < columns.max()


def test_members_spread_around_sprog():
    still = uniform(0, 0, (64, 64))
    ensemble = np.log1p(steps_ensemble(FADING, 24, flow=still) / 0.2)
    smooth = np.log1p(sprog(FADING, flow=still) / 0.2)
    mean, spread = ensemble.mean(0), ensemble.std(0).mean((1, 2))
    assert (np.diff(spread[[0, 2, 5, 11]]) > 0).all()
    for k in (0, 5, 11):
        assert np.corrcoef(mean[k].ravel(), smooth[k].ravel())[0, 1] > 0.95
        to_mean = np.abs(mean[k] - smooth[k]).mean()
        assert to_mean < 0.6 * np.abs(ensemble[:, k] - smooth[k]).mean()
        assert abs(mean[k].mean() - smooth[k].mean()) < 0.02  # same rates, another order


def test_members_have_texture():
    frames, still = fading(mean=6), uniform(0, 0, (64, 64))  # hardly a dry pixel
    member = steps_ensemble(frames, 1, flow=still)[0]
    smooth = sprog(frames, flow=still)
    assert np.allclose(np.sort(member[3], None), np.sort(frames[-1], None))
    small = [cascade(to_db(x))[3:].sum(0).var() for x in (frames[-1], member[-1], smooth[-1])]
    assert 0.75 * small[0] < small[1] < 1.3 * small[0] and small[2] < 0.5 * small[0]


@pytest.mark.parametrize("members, seed", [(0, 0), (2.5, 0), (True, 0), (2, -1), (2, 0.5)])
def test_unfit_members_and_seeds(members, seed):
    with pytest.raises(DataError, match="steps_ensemble: (members|seed): expected a whole number"):
        steps_ensemble(FADING, members, seed=seed)


@pytest.mark.parametrize("option", ["noise", "motion_spread"])
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_unfit_spread(option, value):
    with pytest.raises(DataError, match=f"steps_ensemble: {option}: expected a number from 0 on"):
        steps_ensemble(FADING, 1, **{option: value})


# ------------------------------------------------------------------ simulated radar


def simulated(count) -> tuple:
    "Observed frames and true rain of simulated radar."
    sky = RadarSky()
    made = [sky.sequence([81, n]) for n in range(count)]
    return [s.radar[:12] for s in made], np.stack([s.truth[12:] for s in made])


def scores(forecasts, truths, known) -> np.ndarray:
    "CSI (edges, steps) of all sequences together where all forecasts have a value."
    truths = np.where(known, truths, np.nan)
    counts = [contingency(forecasts, truths, edge, axis=(0, 2, 3)) for edge in (0.5, 2.0)]
    return np.stack([csi(c) for c in counts])


def test_moved_rain_beats_still_rain():
    frames, truths = simulated(6)
    flows = [motion(f) for f in frames]
    moved = np.stack([advect(f[-1], v, 12) for f, v in zip(frames, flows)])
    smooth = np.stack([sprog(f, flow=v) for f, v in zip(frames, flows)])
    still = np.stack([eulerian(f) for f in frames])
    known = np.isfinite(moved)
    assert np.array_equal(known, np.isfinite(smooth))
    still, moved, smooth = (scores(f, truths, known) for f in (still, moved, smooth))
    assert (moved > still).all() and (smooth[:, 1:] > moved[:, 1:]).all()


PYSTEPS = """
import contextlib, io, sys
import numpy as np
with contextlib.redirect_stdout(io.StringIO()):
    from pysteps import extrapolation, motion, nowcasts
    from pysteps.utils import transformation
    lucas_kanade = motion.get_method("LK")
    extrapolate = extrapolation.get_method("semilagrangian")
    sprog = nowcasts.get_method("sprog")
    moved, smooth = [], []
    for rain in np.load(sys.argv[1]):
        decibels = transformation.dB_transform(rain, threshold=0.1, zerovalue=-15)[0]
        flow = lucas_kanade(decibels[-3:])
        moved.append(extrapolate(rain[-1], flow, 12))
        f = sprog(decibels[-3:], flow, 12, precip_thr=-10.0, n_cascade_levels=6)
        smooth.append(transformation.dB_transform(f, threshold=-10.0, inverse=True)[0])
np.savez(sys.argv[2], moved=moved, smooth=smooth)
"""


def test_against_pysteps(tmp_path):
    "In a process of its own: its libraries may change the arithmetic of the whole process."
    if not all(importlib.util.find_spec(name) for name in ("pysteps", "cv2")):
        pytest.skip("pysteps and opencv-python-headless are not installed")
    frames, truths = simulated(20)
    np.save(tmp_path / "frames.npy", np.stack(frames))
    paths = str(tmp_path / "frames.npy"), str(tmp_path / "theirs.npz")
    subprocess.run([sys.executable, "-W", "ignore", "-c", PYSTEPS, *paths], check=True)
    with np.load(paths[1]) as theirs:
        their_moved, their_smooth = theirs["moved"], theirs["smooth"]
    moved = np.stack([lagrangian(f) for f in frames])
    smooth = np.stack([sprog(f) for f in frames])
    known = np.isfinite(moved) & np.isfinite(their_moved) & np.isfinite(their_smooth)
    difference = scores(moved, truths, known) - scores(their_moved, truths, known)
    assert np.abs(difference).max() < 0.015
    assert (scores(smooth, truths, known) > scores(their_smooth, truths, known) - 0.015).all()


def test_dry_is_dry():
    assert to_db(np.zeros(1)).item() == DRY
