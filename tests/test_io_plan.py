"How each variable is made: rain of every kind, derived quantities, contradictions."

import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("pyproj")  # first: see grib._eccodes

from real import real

from sslpdl_nb.core import DataError, GridError
from sslpdl_nb.grids.types import UnstructuredGrid, projected_grid, rotate_winds
from sslpdl_nb.io import derive
from sslpdl_nb.io.fields import Field, Source
from sslpdl_nb.io.nwp import scan
from sslpdl_nb.io.plan import EstimatedTerrain, InstantaneousRate, RainOfPeriod, Sum, evaluate, plan

START = np.datetime64("2020-07-01", "ns")
SPHERE = "+R=6371229 +no_defs"
GRID = projected_grid(f"+proj=longlat {SPHERE}", [126.0, 127.0, 128.0], [36.0, 37.0])
PRESSURE = dict(level_type="isobaricInhPa")
TWO_METRES = dict(level_type="heightAboveGround", level=2.0)
TEN_METRES = dict(level_type="heightAboveGround", level=10.0)


def raises(kind, *words):
    return pytest.raises(kind, match=".*".join(words) or None)


def toy(name, value, units="K", hours=(3.0, 3.0), **attributes):
    "A field of constant values."
    attributes = dict(level_type="surface", level=0.0, grid=GRID, file_name="toy.grib") | attributes
    return Field(
        name=name,
        reference_time=START,
        start_step=hours[0],
        end_step=hours[1],
        units=units,
        read=partial(np.full, attributes["grid"].shape, float(value)),
        **attributes,
    )


def made(fields, source, *names):
    "The values of variables at the last step, the first point of each."
    steps, _ = plan(fields, source, names)
    values = evaluate(steps[-1])[0]
    return values[0, 0, 0] if len(names) == 1 else {n: v[0, 0] for n, v in zip(names, values)}


def test_units_in_files_are_converted_or_refused():
    assert made([toy("2t", 20, "degC", **TWO_METRES)], "grib", "t2m") == pytest.approx(293.15)
    geopotential = toy("z", 5700 * 9.80665, "m**2 s**-2", **PRESSURE, level=500.0)
    assert made([geopotential], "grib", "gh500") == pytest.approx(5700)
    for units in ("furlong", "", "degF"):
        with raises(DataError, "toy.grib", "units"):
            made([toy("2t", 20, units, **TWO_METRES)], "grib", "t2m")
    with raises(DataError, "between 130"):
        made([toy("2t", 20, **TWO_METRES)], "grib", "t2m")  # the unit lies


def test_a_field_of_another_shape_is_refused():
    wrong = replace(toy("2t", 290, **TWO_METRES), read=partial(np.ones, (3, 3)))
    with raises(DataError, "toy.grib: 2t", "shape"):
        made([wrong], "grib", "t2m")


def hour(a, b, amount, units="kg m**-2", name="tp"):
    return toy(name, amount, units, hours=(float(a), float(b)))


def test_rain_of_every_kind():
    assert made([hour(0, 2, 5), hour(0, 3, 7)], "grib", "rain") == 2
    assert made([hour(0, 3, 7), hour(2, 3, 1)], "grib", "rain") == 1
    assert made([hour(0, 3, 0.006, "m")], "grib", "rain") == 2
    rate = toy("tp", 1 / 3600, "kg m**-2 s**-1")
    assert made([rate], "grib", "rain") == pytest.approx(1)
    two = Source(fields={"rain": "tp surface 0 | ncpcp surface 0 + acpcp surface 0"})
    parts = [hour(0, 3, 3, "mm", "ncpcp"), hour(0, 3, 6, "mm", "acpcp")]
    assert made(parts, two, "rain") == 3
    assert plan(parts[:1], two, ("rain",))[0] == []


def test_the_accumulation_period_is_known():
    def rain(*fields):
        return dict(plan(fields, "gfs", ("rain",))[0][-1].derivations)["rain"]

    assert rain(hour(0, 2, 5), hour(0, 3, 7)).accumulation == 1
    assert rain(hour(0, 3, 7)).accumulation == 3
    rate = rain(toy("prate", 1 / 3600, "kg m-2 s-1"))
    assert isinstance(rate, InstantaneousRate) and rate.accumulation is None
    assert rate.describe() == "instantaneous rate"
    one, three = RainOfPeriod(None, None, 1.0), RainOfPeriod(None, None, 3.0)
    assert Sum((one, three)).accumulation == 3 and Sum((one, three)).describe() == "mean of 3 h"
    assert Sum((rate, rate)).accumulation is None and Sum((rate, rate)).describe() == "sum of parts"


def test_no_difference_on_a_grid_that_moved():
    other = projected_grid(f"+proj=longlat {SPHERE}", [127.0, 128.0, 129.0], [36.0, 37.0])
    fields = [hour(0, 2, 5), replace(hour(0, 3, 7), grid=other)]
    assert [s.lead_time for s in plan(fields, "grib", ("rain",))[0]] == [2]


def test_humidity_of_0_to_1_is_no_percentage():
    for name, level in (("rh850", 850.0), ("rh500", 500.0)):
        with raises(DataError, "relative humidity in %"):
            made([toy("r", 0.8, "%", **PRESSURE, level=level)], "grib", name)
    assert made([toy("r", 0.8, "1", **PRESSURE, level=850.0)], "grib", "rh850") == 80
    stratosphere = toy("r", 0.8, "%", **PRESSURE, level=100.0)  # it is dry there
    assert made([stratosphere], "grib", "rh100") == pytest.approx(0.8)


def test_doubled_fields():
    a = toy("2t", 290, **TWO_METRES)
    b = replace(a, file_name="again.grib")
    assert made([a, b], "grib", "t2m") == 290
    with raises(DataError, "again.grib", "one field"):
        plan([a, toy("2t", 291, **TWO_METRES, file_name="again.grib")], "grib", ("t2m",))
    with raises(DataError, "toy.grib", "one field"):  # in the same file
        plan([a, toy("2t", 291, **TWO_METRES)], "grib", ("t2m",))


def test_fields_that_no_row_asks_for_may_be_doubled():
    "Two layers of one name and number, as GFS has them: neither is needed."
    layer = dict(level_type="sigmaLayer", level=0.44)
    doubled = [toy("r", 50, "%", **layer), toy("r", 60, "%", **layer)]
    late = [toy("t", 280, level_type="depthBelowLandLayer", level=0.1, hours=(6.0, 6.0))]
    steps, dropped = plan([toy("2t", 290, **TWO_METRES), *doubled, *late], "grib", ("t2m",))
    assert [s.lead_time for s in steps] == [3] and dropped == []
    on_pressure = [toy("r", value, "%", **PRESSURE, level=850.0) for value in (50, 60)]
    with raises(DataError, "one field"):
        plan(on_pressure, "grib", ("rh850",))


def test_the_same_field_is_not_read_to_compare_it():
    def unreadable(position):
        raise AssertionError(position)

    a = replace(toy("2t", 290, **TWO_METRES), file_id=("a", 1), read=partial(unreadable, 7))
    again = replace(a, read=partial(unreadable, 7))
    assert len(plan([a, again], "grib", ("t2m",))[0]) == 1
    with raises(AssertionError, "7"):  # another place in the file: both are read
        plan([a, replace(a, read=partial(unreadable, 8))], "grib", ("t2m",))


def test_humidity_is_derived():
    t, rh = 285.0, 70.0
    e = rh / 100 * derive.saturation_pressure(t)
    q = 0.622 * e / (85000 - 0.378 * e)
    at_850 = PRESSURE | dict(level=850.0)
    air = toy("t", t, **at_850)
    specific = toy("q", q, "kg kg**-1", **at_850)
    assert made([air, specific], "grib", "rh850") == pytest.approx(rh, abs=1e-3)
    assert made([air, toy("dpt", t, **at_850)], "grib", "rh850") == pytest.approx(100)
    assert plan([specific], "grib", ("rh850",))[1][0][2] == ["rh850"]


def test_wind_and_pressure_are_derived():
    speed = toy("10si", 10, "m s**-1", **TEN_METRES)
    west = toy("10wdir", 270, "degree true", **TEN_METRES)
    wind = made([speed, west], "grib", "u10", "v10")
    assert wind["u10"] == pytest.approx(10) and abs(wind["v10"]) < 1e-5
    assert plan([speed], "grib", ("u10",))[0] == []
    ground = [toy("sp", 95000, "Pa"), toy("2t", 290, **TWO_METRES), toy("orog", 550, "m")]
    assert 101000 < made(ground, "grib", "slp") < 101600


def test_the_terrain_of_another_lead_time_will_do():
    ground = [toy("sp", 95000, "Pa"), toy("2t", 290, **TWO_METRES)]
    orog = toy("orog", 550, "m", hours=(0.0, 0.0))
    steps, dropped = plan([*ground, orog], "grib", ("slp",))
    assert [s.lead_time for s in steps] == [3] and dropped == []
    by_hand = derive.sea_level_pressure(95000.0, 290.0, 550.0)
    assert evaluate(steps[0])[0][0, 0, 0] == pytest.approx(float(by_hand), abs=0.01)


@pytest.mark.parametrize("time", ["NaT", "1979-01-01", "2020-06-30T12"])
def test_the_terrain_needs_no_time_of_its_own(time):
    "A file of the height of the ground, without a date or with another one, serves all times."
    ground = [toy("sp", 95000, "Pa"), toy("2t", 290, **TWO_METRES)]
    orog = replace(toy("orog", 550, "m", hours=(0.0, 0.0)), reference_time=np.datetime64(time))
    steps, dropped = plan([*ground, orog], "grib", ("slp",))
    assert [s.lead_time for s in steps] == [3] and dropped == []
    assert not any(isinstance(p, EstimatedTerrain) for p in steps[0].derivations[0][1].walk())
    assert plan([orog], "grib", ("slp",)) == ([], [])


def test_the_terrain_of_another_grid_is_not_used():
    other = projected_grid(f"+proj=longlat {SPHERE}", [127.0, 128.0, 129.0], [36.0, 37.0])
    ground = [toy("sp", 95000, "Pa"), toy("2t", 290, **TWO_METRES)]
    orog = toy("orog", 550, "m", hours=(0.0, 0.0), grid=other)
    derivation = plan([*ground, orog], "grib", ("slp",))[0][0].derivations[0][1]
    assert any(isinstance(part, EstimatedTerrain) for part in derivation.walk())


def test_points_without_rows():
    "Winds, rain and heights of scattered points: (variable, point)."
    points = UnstructuredGrid([0.0, 120.0, 240.0, 90.0], [80.0, 10.0, -40.0, -60.0])
    fields = [
        toy("10si", 10, "m s**-1", **TEN_METRES, grid=points),
        toy("10wdir", 270, "degree true", **TEN_METRES, grid=points),
        toy("tp", 6, "kg m**-2", hours=(0.0, 3.0), grid=points),
        toy("sp", 95000, "Pa", grid=points),
        toy("2t", 290, **TWO_METRES, grid=points),
        toy("orog", 550, "m", grid=points),
    ]
    names = ("u10", "v10", "rain", "slp")
    steps, _ = plan(fields, "grib", names)
    values, _ = evaluate(steps[0])
    assert values.shape == (4, 4) and steps[0].grid == points
    by_hand = (10, 0, 2, float(derive.sea_level_pressure(95000.0, 290.0, 550.0)))
    assert np.allclose(values, np.array(by_hand)[:, None], atol=0.01)
    along = [replace(f, grid_relative=True) for f in fields]
    along += [
        toy(n, 3, "m s**-1", **TEN_METRES, grid=points, grid_relative=True) for n in ("10u", "10v")
    ]
    with raises(GridError, "winds along the grid"):
        evaluate(plan(along, "grib", ("u10", "v10"))[0][0])


def test_winds_along_a_rotated_grid_are_rotated():
    proj = f"+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 {SPHERE}"
    grid = projected_grid(proj, np.arange(-10, 10, 1.0), np.arange(-10, 10, 1.0))
    options = dict(PRESSURE, level=500.0, grid_relative=True, grid=grid)
    fields = [toy(n, v, "m s**-1", **options) for n, v in (("u", 3), ("v", 4))]
    step = plan(fields, "grib", ("u500", "v500"))[0][0]
    u, v = evaluate(step)[0]
    assert np.allclose(np.hypot(u, v), 5, atol=1e-4) and np.ptp(u) > 1
    ones = np.ones(grid.shape)
    assert np.allclose((u, v), rotate_winds(3 * ones, 4 * ones, grid), atol=1e-4)
    assert plan(fields[:1], "grib", ("u500",))[0] == []
    assert step.derivations[0][1].describe() == "rotated from the grid"


def test_different_grids_in_one_step():
    other = projected_grid(f"+proj=longlat {SPHERE}", [126.0, 127.0], [36.0, 37.0])
    fields = [toy("2t", 290, **TWO_METRES), toy("msl", 101000, "Pa", grid=other)]
    with raises(GridError, "grids"):
        plan(fields, "grib", ("t2m", "slp"))


def test_plans_travel_to_other_processes():
    file = sorted(real("wrf-stage2-2005/wrf").iterdir())[0]
    step = plan(scan(file, "wrf"), "wrf")[0][0]
    again = pickle.loads(pickle.dumps(step))
    assert np.array_equal(evaluate(again)[0], evaluate(step)[0], equal_nan=True)
