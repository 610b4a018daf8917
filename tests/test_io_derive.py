"Units, bounds and formulas: known answers, and what the choice of a constant costs."

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sslpdl_nb.core import GAS_DRY_AIR, DataError
from sslpdl_nb.io import derive

LEVELS = np.array([1000.0, 925, 850, 700, 500, 300, 200, 100]) * 100


def test_each_of_our_units_is_its_own():
    for units in derive.UNITS:
        assert derive.unit_factor(units, units, "test") == (1, 0)
    for found, units, factor in (
        ("m**2 s**-2", "m", (1 / 9.80665, 0)),
        ("KELVIN", "K", (1, 0)),
        ("Degrees_Celsius", "K", (1, 273.15)),
        ("kg m^-2", "mm", (1, 0)),
    ):
        assert derive.unit_factor(found, units, "test") == factor


@pytest.mark.parametrize(
    "found, units", [("k", "K"), ("mm", "mm h-1"), ("mm/day", "mm h-1"), ("", "K"), (None, "K")]
)
def test_ambiguous_and_unknown_units_are_refused(found, units):
    with pytest.raises(DataError, match="a.nc: units.*no units" if not found else "a.nc: units"):
        derive.unit_factor(found, units, "a.nc")


@given(st.text(max_size=8))
def test_any_unit_is_converted_or_refused(text):
    field = xr.DataArray([1.0], attrs=dict(units=text))
    try:
        assert derive.to_units(field, "K", "a.nc").attrs["units"] == "K"
    except DataError as error:
        assert "a.nc: units" in str(error)


@pytest.mark.parametrize(
    "value, found, units, expected",
    [
        (1013.0, "hPa", "Pa", 101300),
        (1.0, "kg m-2 s-1", "mm h-1", 3600),
        (25.0, "degC", "K", 298.15),
        (0.5, "1", "%", 50),
        (10.0, "m s-1", "m s-1", 10),
        (9806.65, "m**2 s**-2", "m", 1000),
    ],
)
def test_known_conversions(value, found, units, expected):
    field = xr.DataArray([value], attrs=dict(units=found))
    assert float(derive.to_units(field, units, "a.nc")[0]) == pytest.approx(expected, rel=1e-12)


def test_factors_are_positive_and_offsets_are_not_negative():
    for table in derive.UNITS.values():
        for factor, offset in table.values():
            assert np.isfinite(factor) and factor > 0 and offset >= 0


def test_one_pixel_or_none():
    assert derive.check_values(np.array([[5.0]]), "rain", "a")[0].shape == (1, 1)
    with pytest.raises(DataError):
        derive.check_values(np.zeros(0), "rain", "a")


def test_attributes_survive_a_conversion():
    field = xr.DataArray([0.0], attrs=dict(units="degC", long_name="air"))
    assert derive.to_units(field, "K", "test").attrs == dict(units="K", long_name="air")


def test_bounds_of_every_variable():
    assert derive.check_values(np.array([290.0]), "t2m", "a")[0].dtype == np.float32
    for name, value in (("gh500", 57000.0), ("slp", 1013.0), ("v850", 300.0), ("rain", -0.2)):
        with pytest.raises(DataError, match="between"):
            derive.check_values(np.array([value]), name, "a")
    values, clipped = derive.check_values(np.array([-0.05, np.nan, 2.0]), "rain", "a")
    assert clipped == 1 and np.array_equal(values, np.float32([0, np.nan, 2]), equal_nan=True)
    dry = np.array([0.8])
    assert derive.check_values(dry, "rh100", "a")[1] == 0  # the stratosphere is dry
    with pytest.raises(DataError, match="fraction of 1"):
        derive.check_values(dry, "rh850", "a")


def random_columns(seed=0):
    "Temperature, humidity, surface pressure and terrain of 5 x 6 columns."
    rng = np.random.default_rng(seed)
    t = 250 + 40 * rng.random((LEVELS.size, 5, 6))
    rh = 100 * rng.random(t.shape)
    return t, rh, 6e4 + 4.5e4 * rng.random((5, 6)), 3000 * rng.random((5, 6))


def test_other_gas_constants_in_use_change_heights_by_less_than_two_metres(monkeypatch):
    t, rh, pressure, terrain = random_columns()
    ours = derive.heights(t, rh, LEVELS, pressure, terrain)
    assert GAS_DRY_AIR == derive.GAS_DRY_AIR == 287.04
    for other, most in ((287.05, 1.0), (287.06, 2.0)):
        monkeypatch.setattr(derive, "GAS_DRY_AIR", other)
        theirs = derive.heights(t, rh, LEVELS, pressure, terrain)
        assert 0 < np.abs(theirs - ours).max() < most


def test_the_ground_lies_at_the_terrain():
    t, rh, _, terrain = random_columns()
    for k, level in enumerate(LEVELS[:-1]):
        pressure = np.full((5, 6), level)
        z = derive.heights(t, rh, LEVELS, pressure, terrain)
        assert np.allclose(z[k], terrain, atol=1e-6)
        assert (np.diff(z, axis=0) > 0).all()


def test_leading_dimensions_are_kept():
    t, rh, pressure, terrain = random_columns()
    both = derive.heights(np.stack([t, t + 5]), np.stack([rh, rh]), LEVELS, pressure[None], terrain)
    assert np.array_equal(both[0], derive.heights(t, rh, LEVELS, pressure, terrain))
    assert np.array_equal(both[1], derive.heights(t + 5, rh, LEVELS, pressure, terrain))


def test_between_pressures_at_a_level_is_the_level():
    rng = np.random.default_rng(0)
    p = np.sort(rng.random((7, 4, 5)) * 9e4 + 1e4, 0)[::-1]
    p[3] = 5e4
    p[:3] += 9e4
    p[4:] = np.minimum(p[4:], 4.9e4) - 1e3 * np.arange(3)[:, None, None]
    field = rng.random(p.shape)
    assert np.allclose(derive.between_pressures(field, p, 5e4), field[3])


def by_hand(periods):
    "The shortest hours of rain that end at each lead time, by trying everything."
    found = {}
    for a, b in periods:
        ends = [b - a] + [b - d for c, d in periods if c == a and a < d < b]
        if b > a:
            found[b] = min(found.get(b, np.inf), *ends, np.inf)
    return found


def test_rain_intervals_are_the_shortest():
    rng = np.random.default_rng(0)
    for _ in range(500):
        periods = [tuple(p) for p in rng.integers(0, 7, (rng.integers(0, 7), 2)).tolist()]
        intervals = derive.rain_intervals(periods)
        assert {h: i.hours for h, i in intervals.items()} == by_hand(periods)
        for last, interval in intervals.items():
            first, end = interval.period
            assert interval.period in periods and end == last
            if interval.earlier is not None:
                assert interval.earlier in periods and interval.earlier[0] == first
