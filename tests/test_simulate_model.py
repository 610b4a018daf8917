"The simulated atmosphere obeys its equations: budgets, linear theory, interpolation, seeds."

from dataclasses import replace

import numpy as np
import pytest
import torch

from sslpdl_nb.core import DataError
from sslpdl_nb.simulate import model as simulated
from sslpdl_nb.simulate.model import (
    CENTRE,
    DOMAIN,
    FORECAST,
    LENGTH,
    NATURE,
    SMOOTHING,
    MoistQG,
    Rain,
    analysis,
    at_levels,
    box_terrain,
    rain_at_points,
    random_field,
    rates,
    resize,
    run,
    start,
    step,
    terrain,
    complex_times_real,
    to_points,
    twin,
    orographic_enhancement,
)

DRY = replace(NATURE, heating=0.0, evaporation=0.0, drag=0.0)


def dry(z):
    "So dry that it cannot rain."
    z[:, 2, 0, 0] = -1e3 * z.shape[-2] ** 2
    return z


def eddies(model, members=2, seed=0, amplitude=8.0):
    return amplitude * start(model, members, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weather():
    "A spun-up moist atmosphere in double precision, with rain."
    model = MoistQG(NATURE, 32, 6, box_terrain(32), dtype=torch.float64)
    z, P = run(model, start(model, 3, torch.Generator().manual_seed(1)), 24 * 12)
    assert P.max() > 0.1
    return model, z


def test_moisture_budget_of_a_step(weather):
    model, z = MoistQG(NATURE, 32, 6, dtype=torch.float64), weather[1]
    after, P = step(model, z)

    def mean(s):
        return model.grid(s[:, 2]).mean((-1, -2))

    change, sources = mean(after) - mean(z), model.dt * (NATURE.evaporation - P.mean((-1, -2)))
    assert torch.allclose(change, sources, atol=1e-13)


def test_mountains_move_moisture_but_make_none_by_themselves(weather):
    model, z = weather
    lift = (
        rates(model, z)[0][:, 2, 0, 0]
        - rates(MoistQG(NATURE, 32, 6, dtype=torch.float64), z)[0][:, 2, 0, 0]
    )
    wind, slope = rates(model, z)[1]["u"], model.slope
    flow = NATURE.lift * (wind[:, 1] * slope[0] + rates(model, z)[1]["v"][:, 1] * slope[1])
    assert torch.allclose(lift.real, flow.sum((-1, -2)), atol=1e-8)


def test_mass_is_conserved(weather):
    model, z = weather
    after, _ = run(model, z, 2)
    assert torch.allclose(after[:, :2, 0, 0], z[:, :2, 0, 0], atol=1e-8 * 32**2)


def test_energy_and_potential_enstrophy_without_sources():
    model = MoistQG(replace(DRY, shear=0.0), 64, 8, dtype=torch.float64, damping=0.0)
    z = dry(eddies(model))
    z[:, :2] *= model.kept[..., 0]

    def invariants(z):
        q, psi = model.grid(z[:, :2]), model.grid(model.invert(z[:, :2]))
        return torch.stack([-(psi * q).mean((1, 2, 3)), (q**2).mean((1, 2, 3))])

    before, first = invariants(z), z
    for _ in range(100):
        z, P = step(model, z)
    assert P.max() == 0
    assert (z - first).abs().max() > 0.3 * first[:, :2].abs().max()  # something happened
    assert ((invariants(z) - before) / before).abs().max() < 1e-4


@pytest.mark.parametrize("wave, beta", [(1, 0.0), (2, 0.0), (2, 0.2)])
@pytest.mark.parametrize("drag", [0.0, 0.2])
def test_growth_rate_of_baroclinic_waves(wave, beta, drag):
    "Phillips: two layers, a shear, and beta; the growing mode grows as the eigenvalue says."
    p = replace(DRY, drag=drag, beta=beta)
    model = MoistQG(p, 32, 12, dtype=torch.float64)
    k = 2 * np.pi / DOMAIN * wave
    A = np.array([[-(k**2 + 0.5), 0.5], [0.5, -(k**2 + 0.5)]])
    U, Q = np.diag([p.mean_wind + 0.5, p.mean_wind - 0.5]), np.diag([p.beta + 0.5, p.beta - 0.5])
    theory = np.linalg.eigvals(
        np.linalg.solve(A, -1j * k * (U @ A + Q) + np.diag([0, drag * k**2]))
    ).real.max()
    z = torch.zeros(1, 4, 32, 17, dtype=torch.complex128)
    z[0, :2, 0, wave] = torch.tensor([1e-6, 1e-6j])
    z, _ = run(model, dry(z), 140)
    after, _ = run(model, z, 28)
    grown = np.log((after[0, 0, 0, wave].abs() / z[0, 0, 0, wave].abs()).item()) / (28 / 7)
    assert theory > 0.05 and abs(grown / theory - 1) < 0.02


def test_float32_and_float64_agree_for_fifty_steps(weather):
    model, z = weather
    single, x = MoistQG(NATURE, 32, 6, box_terrain(32)), z.to(torch.complex64)
    for _ in range(50):
        (z, P), (x, p) = step(model, z), step(single, x)
    assert (p.double() - P).abs().max() < 1e-3 * P.abs().max()
    assert (x[:, :2].to(torch.complex128) - z[:, :2]).abs().max() < 1e-4 * z[:, :2].abs().max()


def test_members_do_not_mix(weather):
    model, z = weather
    together, alone = rates(model, z)[0], rates(model, z[1:2])[0]
    assert torch.allclose(together[1:2], alone, rtol=1e-12, atol=1e-12)


def test_same_seed_same_numbers():
    def once():
        model = MoistQG(NATURE, 32, 6)
        return run(model, start(model, 2, torch.Generator().manual_seed(5)), 6)[0]

    assert torch.equal(once(), once())


def test_instability_is_an_error():
    model = MoistQG(NATURE, 32, 1, damping=0.0)
    with pytest.raises(DataError, match="unstable"):
        run(model, eddies(model, amplitude=4e3), 30)


def test_where_steps_are_too_long_they_are_halved():
    coarse, fast = MoistQG(NATURE, 32, 4), MoistQG(NATURE, 64, 1)
    z, _ = run(coarse, start(coarse, 2, torch.Generator().manual_seed(0)), 240)
    z = resize(z, 64)
    assert not torch.isfinite(simulated._whole_hours(fast, z, 24)[1]).all()
    halved, whole = run(fast, z, 24), run(simulated.with_steps(fast, 2), z, 24)
    assert all(torch.equal(a, b) for a, b in zip(halved, whole))
    slow = MoistQG(NATURE, 64, 2)
    assert torch.allclose(slow.filter, simulated.with_steps(fast, 2).filter, atol=1e-6)
    assert slow.dt == simulated.with_steps(fast, 2).dt and simulated.with_steps(fast, 1) is fast


def test_time_runs_forward():
    model = MoistQG(NATURE, 16)
    with pytest.raises(DataError, match="0 or more"):
        run(model, eddies(model), -24)


def test_times_and_inversion():
    model = MoistQG(NATURE, 16, dtype=torch.float64)
    a = torch.randn(2, 2, 16, 9, dtype=torch.complex128)
    assert torch.allclose(complex_times_real(a, model.k2), a * model.k2[..., 0])
    psi = model.invert(a)
    q = torch.stack(
        [
            -complex_times_real(psi[:, 0], model.k2) - (psi[:, 0] - psi[:, 1]) / 2,
            -complex_times_real(psi[:, 1], model.k2) + (psi[:, 0] - psi[:, 1]) / 2,
        ],
        1,
    )
    assert torch.allclose(q[..., 1:, :], a[..., 1:, :]) and torch.allclose(q[..., 1:], a[..., 1:])


def test_interpolation_is_exact_on_the_box_points():
    field = torch.rand(2, 16, 16, dtype=torch.float64)
    c = (np.arange(16) / 16 - 0.5) * DOMAIN * LENGTH
    assert torch.allclose(
        to_points(field, *np.meshgrid(c + CENTRE[0], c + CENTRE[1])), field, atol=1e-9
    )
    one = to_points(torch.ones(1, 16, 16), np.array([[1e7, -3e6]]), np.array([[2e7, 5e6]]))
    assert torch.allclose(one, torch.ones(1, 1, 2), atol=1e-5)


def test_forecast_terrain_is_smoother_and_no_smaller():
    x, y = np.meshgrid(
        np.linspace(-8e5, 8e5, 161) + CENTRE[0], np.linspace(-1.2e6, 1.2e6, 241) + CENTRE[1]
    )
    rough, smooth = terrain(x, y), terrain(x, y, SMOOTHING)
    assert smooth.max() < 0.8 * rough.max() and abs(smooth.sum() / rough.sum() - 1) < 0.02


def test_analysis_error_has_the_right_size():
    g = torch.Generator().manual_seed(0)
    pool = torch.randn(40, 4, 8, 5, generator=g, dtype=torch.complex64)
    z = torch.zeros(400, 4, 8, 5, dtype=torch.complex64)
    error = analysis(z, pool, g, 0.2)
    assert (
        abs(error[..., 1:].abs().pow(2).mean().sqrt().item() / 0.2 - 1) < 0.05
        and (error[..., 0, 0] == 0).all()
    )


def test_perfect_model_and_analysis_give_a_perfect_forecast(weather):
    model, z = weather
    for _, (a, P), (b, Q) in twin(model, model, z, z.clone(), (3, 6)):
        assert torch.equal(a, b) and torch.equal(P, Q)


def test_worse_model_is_worse(weather):
    model, z = weather
    worse = MoistQG(FORECAST, 32, 6, box_terrain(32, SMOOTHING), dtype=torch.float64)
    ((_, (a, P), (b, Q)),) = twin(model, worse, z, z.clone(), (24,))
    assert 0.05 < (P - Q).pow(2).mean().sqrt() / P.std() < 2


def test_winds_are_nearly_geostrophic(weather):
    model, z = weather
    x, y = np.meshgrid(np.arange(-20, 20) * 2e4 + CENTRE[0], np.arange(-20, 20) * 2e4 + CENTRE[1])
    f = at_levels(model, z, x, y)
    for level in ("850", "500"):
        dy, dx = torch.gradient(f["psi" + level], spacing=2e4, dim=(1, 2))
        geostrophic, wind = (
            torch.stack([-dy, dx])[..., 1:-1, 1:-1],
            torch.stack([f["u" + level], f["v" + level]])[..., 1:-1, 1:-1],
        )
        assert np.corrcoef(geostrophic.flatten(), wind.flatten())[0, 1] > 0.9


def test_cells_keep_the_mean_and_have_no_grid_noise():
    g = random_field((64, 64), 10e3, 40e3, 300e3, torch.Generator().manual_seed(0), members=200)
    power = torch.fft.rfft2(g).abs().pow(2).mean(0)
    k = np.hypot(np.fft.fftfreq(64, 10e3)[:, None], np.fft.rfftfreq(64, 10e3)[None])
    assert power[k > 1 / 38e3].max() < 1e-6 * power.max()
    assert abs(torch.exp(g - 0.5).mean().item() - 1) < 0.06


def test_a_field_without_waves_is_refused():
    with pytest.raises(DataError, match="wavelengths"):
        random_field((8, 8), 60e3, 180e3, 150e3, torch.Generator())


def test_rain_on_windward_slopes():
    x, y = np.meshgrid(np.linspace(-5e4, 5e4, 11) + CENTRE[0], np.array([CENTRE[1]]))
    up = orographic_enhancement(torch.full((1, 1, 11), 10.0), torch.zeros(1, 1, 11), x, y, 0.0)
    down = orographic_enhancement(torch.full((1, 1, 11), -10.0), torch.zeros(1, 1, 11), x, y, 0.0)
    assert torch.allclose(up * down, torch.ones_like(up), atol=1e-5) and up.max() > 1.02
    rain = rain_at_points(
        torch.zeros(1, 32, 32),
        *torch.zeros(2, 1, 32, 32),
        *np.meshgrid(np.arange(32) * 1e4, np.arange(32) * 1e4),
        1e4,
        Rain(1, 1, 0, 0.1),
        torch.Generator(),
    )
    assert (rain == 0).all()


def test_resize_there_and_back():
    model = MoistQG(NATURE, 32)
    z = eddies(model)
    assert torch.allclose(resize(resize(z, 64), 32), z, atol=1e-4)
    big = MoistQG(NATURE, 64)
    assert torch.allclose(
        big.grid(resize(z, 64)[:, 0])[:, ::2, ::2], model.grid(z[:, 0]), atol=1e-4
    )
