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
from sslpdl_nb.io.fields import Source
from sslpdl_nb.io.netcdf import netcdf_fields
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
    with pytest.raises(DataError, match="poor.nc: variables: expected a wrfout file.*found no PB"):
        wrf_fields(tmp_path / "poor.nc")


def changed(tmp_path, change, name="changed.nc"):
    "The synthetic wrfout file after a change of its dataset."
    (tmp_path / "whole").mkdir(exist_ok=True)
    wrfout(tmp_path / "whole", None)
    with xr.open_dataset(next((tmp_path / "whole").iterdir()), decode_times=False) as ds:
        change(ds.load()).to_netcdf(tmp_path / name)
    return tmp_path / name


def test_what_is_missing_and_what_is_there_is_told(tmp_path):
    path = changed(tmp_path, lambda ds: ds.drop_vars(["XLAT", "PB"]))
    with pytest.raises(DataError, match="changed.nc: variables: .*found no XLAT, PB, but HGT, P, "):
        wrf_fields(path)


def test_a_cropped_file_has_the_fields_that_its_variables_make(tmp_path):
    path = changed(tmp_path, lambda ds: ds.drop_vars(["U", "QVAPOR", "T2"]))
    names = {f.name for f in wrf_fields(path)}
    assert {"t", "gh", "v", "tp"} <= names and not {"u", "r", "2t"} & names


def test_rain_in_full_buckets_is_added(tmp_path):
    def with_buckets(size):
        def change(ds):
            dims = ds["RAINNC"].dims
            ds["I_RAINC"] = (dims, np.full(ds["RAINC"].shape, 1, "i4"))
            ds["I_RAINNC"] = (dims, np.full(ds["RAINNC"].shape, 2, "i4"))
            return ds.assign_attrs(BUCKET_MM=np.float32(size))

        return change

    fields = wrf_fields(changed(tmp_path, with_buckets(100), "full.nc"))
    for k in (1, 2):
        step = [f for f in fields if f.end_step == k]
        assert np.allclose(at(step, name="tp"), 2 * k + 300)
    fields = wrf_fields(changed(tmp_path, with_buckets(-1), "none.nc"))  # WRF's default
    assert np.allclose(at([f for f in fields if f.end_step == 2], name="tp"), 4)


@pytest.mark.parametrize(
    "gone, attributes, expected",
    [
        (["RAINC"], {}, None),
        (["RAINC"], {"CU_PHYSICS": 1}, None),
        (["RAINC"], {"CU_PHYSICS": 0}, 3.0),
        (["RAINNC"], {"CU_PHYSICS": 0}, None),
        (["RAINNC"], {}, None),
        ([], {"SHCU_PHYSICS": 0}, 4.0),
        ([], {"SHCU_PHYSICS": 2}, None),  # and no RAINSH
        ([], {"BUCKET_MM": 100.0}, None),  # and no counts of buckets
        (["RAINC"], {"CU_PHYSICS": 0, "BUCKET_MM": 0.0}, 3.0),
    ],
)
def test_rain_of_which_a_part_was_cropped_is_no_rain(tmp_path, gone, attributes, expected):
    path = changed(tmp_path, lambda ds: ds.drop_vars(gone).assign_attrs(attributes))
    last = [f for f in wrf_fields(path) if f.end_step == 2]
    if expected is None:
        assert "tp" not in {f.name for f in last}
    else:
        assert np.allclose(at(last, name="tp"), expected)


@pytest.mark.parametrize("name, dim", [("U", "west_east_stag"), ("PH", "bottom_top_stag")])
def test_faces_cropped_like_cells_are_refused(tmp_path, name, dim):
    def crop(ds):
        ds[name] = ds[name].isel({dim: slice(0, -1)}).rename({dim: "cropped"})
        return ds

    with pytest.raises(DataError, match=f"changed.nc: shape of {name}: expected .*found"):
        wrf_fields(changed(tmp_path, crop))


def test_coordinates_without_times_and_a_file_of_one_time(tmp_path):
    whole = wrf_fields(changed(tmp_path, lambda ds: ds, "whole.nc"))

    def still(ds):
        for n in ("XLAT", "XLONG"):
            ds[n] = ds[n].isel(Time=0)
        return ds

    found = wrf_fields(changed(tmp_path, still, "still.nc"))
    assert [f.key for f in found] == [f.key for f in whole] and found[0].grid == whole[0].grid
    found = wrf_fields(changed(tmp_path, lambda ds: ds.isel(Time=1), "one.nc"))
    assert {f.end_step for f in found} == {2}
    assert np.array_equal(
        at(found, name="tp"), at([f for f in whole if f.end_step == 2], name="tp")
    )
    a, b = (at([f for f in x if f.end_step == 2], name="u", level=500) for x in (found, whole))
    assert np.array_equal(a, b)


def test_the_start_is_that_of_the_simulation_and_not_of_a_restart(tmp_path):
    def restart(ds):
        ds.attrs["START_DATE"] = "2024-07-01_01:00:00"
        return ds

    assert {f.end_step for f in wrf_fields(changed(tmp_path, restart, "a.nc"))} == {1, 2}

    def old(ds):
        del ds.attrs["SIMULATION_START_DATE"]
        ds["XTIME"] = ("Time", [60.0, 120.0], {"units": "minutes since 2024-07-01 00:00:00"})
        return restart(ds)

    assert {f.end_step for f in wrf_fields(changed(tmp_path, old, "b.nc"))} == {1, 2}
    path = changed(tmp_path, lambda ds: old(ds).drop_vars("XTIME"), "c.nc")
    with pytest.raises(DataError, match="c.nc: start of the simulation: expected SIMULATION_START"):
        wrf_fields(path)


def test_input_files_of_wrf_are_named_as_such(tmp_path):
    ds = xr.Dataset(
        {
            "XLAT_M": (("Time", "south_north", "west_east"), np.zeros((1, 2, 3))),
            "Times": ("Time", [b"2005-08-28_12:00:00"]),
        },
        attrs={"TITLE": "OUTPUT FROM METGRID V4.0"},
    )
    ds.to_netcdf(tmp_path / "met_em.d01.nc")
    with pytest.raises(DataError, match="met_em.d01.nc: .*WRF .OUTPUT FROM METGRID V4.0.*XLAT_M"):
        netcdf_fields(tmp_path / "met_em.d01.nc", Source(fields={}))


def test_damaged_copies_never_crash(tmp_path):
    fuzz(real(KATRINA), tmp_path / "bad", READER, 40)


def test_damaged_synthetic_files_never_crash(tmp_path):
    (tmp_path / "good").mkdir()
    wrfout(tmp_path / "good", None)
    fuzz(next((tmp_path / "good").iterdir()), tmp_path / "bad", READER, 120)
