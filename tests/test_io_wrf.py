"Raw WRF output: pressure levels, staggered winds, rain, travelling grids, and damage."

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("pyproj")

from fuzz import fuzz
from real import real
from synthetic import KMA, LEVELS, wrfout

from sslpdl_nb.core import DataError
from sslpdl_nb.grids.types import ProjectedGrid
from sslpdl_nb.io.wrf import wrf_fields

KATRINA = "wrfout/ci_test_file.nc"
READER = "sslpdl_nb.io.wrf:wrf_fields"


def at(fields, **wanted):
    "The only field with these attributes, read."
    (f,) = [f for f in fields if all(getattr(f, k) == v for k, v in wanted.items())]
    return f.read()


def test_a_hurricane_is_brought_to_850_hpa():
    fields = wrf_fields(real(KATRINA))
    assert len({f.grid for f in fields}) == 4  # the nest travels with the storm
    assert all(isinstance(f.grid, ProjectedGrid) and f.grid_relative for f in fields)
    first = [f for f in fields if f.end_step == 12]
    raw = xr.open_dataset(real(KATRINA), decode_times=False)
    p = (raw["P"] + raw["PB"]).values[0, :, 20, 20]
    t = (raw["T"].values[0, :, 20, 20] + 300) * (p / 1e5) ** (2 / 7)
    by_hand = np.interp(-np.log(85000), -np.log(p), t)
    assert at(first, name="t", level=850)[20, 20] == pytest.approx(by_hand, abs=0.01)
    assert 1200 < np.nanmean(at(first, name="gh", level=850)) < 1500
    assert 0 < np.nanmax(at(first, name="r", level=850)) < 130
    wind = np.hypot(at(first, name="u", level=850), at(first, name="v", level=850))
    assert np.nanmax(wind) > 30
    amount = sum(raw[n].values[0] for n in ("RAINC", "RAINNC", "RAINSH") if n in raw)
    assert np.allclose(at(first, name="tp"), amount)
    (rain,) = [f for f in first if f.name == "tp"]
    assert (rain.start_step, rain.end_step) == (0, 12)


def test_levels_that_few_columns_reach_are_left_out():
    fields = wrf_fields(real(KATRINA))
    assert {f.level for f in fields if f.level_type == "isobaricInhPa"} == {850.0}
    assert all(np.isfinite(f.read()).mean() > 0.5 for f in fields if f.level == 850)


def test_known_values_on_all_levels(tmp_path):
    wrfout(tmp_path, None)
    fields = wrf_fields(next(tmp_path.iterdir()))
    assert {f.end_step for f in fields} == {1, 2}
    assert all(f.grid.shape == KMA.shape for f in fields)
    assert np.allclose(fields[0].grid.lonlat(), KMA.lonlat(), atol=0.02)
    for k in (1, 2):
        step = [f for f in fields if f.end_step == k]
        assert np.allclose(at(step, name="tp"), 2 * k)
        assert np.allclose(at(step, name="2t"), 290) and np.allclose(at(step, name="orog"), 50)
        for p in LEVELS:
            z = np.log(1000 / p)
            assert np.allclose(at(step, name="gh", level=p), 7000 * z + 100, atol=0.1)
            assert np.allclose(at(step, name="u", level=p), 8)
            assert np.allclose(at(step, name="v", level=p), -3)
            assert np.allclose(at(step, name="t", level=p), 288 - 30 * z, atol=0.01)
            if p > 100:
                assert np.allclose(at(step, name="r", level=p), 60, atol=0.5)


def test_a_file_without_its_variables_is_refused(tmp_path):
    wrfout(tmp_path, None)
    (path,) = tmp_path.iterdir()
    with xr.open_dataset(path, decode_times=False) as ds:
        ds.drop_vars("PB").to_netcdf(tmp_path / "poor.nc")
    with pytest.raises(DataError, match="poor.nc: expected a wrfout file with its usual variables"):
        wrf_fields(tmp_path / "poor.nc")


def test_damaged_copies_never_crash(tmp_path):
    fuzz(real(KATRINA), tmp_path / "bad", READER, 40)


def test_damaged_synthetic_files_never_crash(tmp_path):
    (tmp_path / "good").mkdir()
    wrfout(tmp_path / "good", None)
    fuzz(next((tmp_path / "good").iterdir()), tmp_path / "bad", READER, 120)
