"Drawing: right numbers in, right picture out, and no crash on odd input."

import importlib.util
import io
import json
import socket
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb import viz
from sslpdl_nb.core import (
    CLASS_EDGES,
    VARIABLE_NAMES,
    VARIABLES,
    DataError,
    GridError,
    rain_class,
)
from sslpdl_nb.grids.types import NWP_GRID, QPE_GRID, LambertGrid

GRID = LambertGrid(nx=4, ny=6, dx=60e3, x0=-100e3, y0=-200e3)
MAKER = Path(__file__).parent.parent / "data_samples" / "make_coastlines.py"


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("a figure asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_maps_draw_without_network(no_network, tmp_path):
    fig, axes = viz.maps(1, 2, QPE_GRID, size=1)
    viz.colorbar(fig, viz.draw_rain(axes[0, 0], np.ones(QPE_GRID.shape), QPE_GRID), axes)
    path = viz.save(fig, tmp_path, "map")
    assert path == tmp_path / "figures" / "map.png" and path.stat().st_size > 1000
    assert [p.name for p in path.parent.iterdir()] == ["map.png"]


@pytest.mark.parametrize(
    "field",
    [
        np.full(GRID.shape, np.nan),
        np.zeros(GRID.shape),
        np.full(GRID.shape, 1e6),
        -np.ones(GRID.shape),
    ],
)
def test_odd_fields_draw(field):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig, axes = viz.maps(1, 3, GRID)
        for ax, draw in zip(axes[0], (viz.draw_rain, viz.draw_classes, viz.draw_probability)):
            viz.colorbar(fig, draw(ax, field, GRID), ax)
        viz.variable_panel([field] * len(VARIABLES), size=2)
        fig.canvas.draw()


@pytest.mark.parametrize("south", [False, True])
def test_maps_of_both_hemispheres_are_whole(south):
    from shapely import MultiPoint, Polygon

    sign = -1 if south else 1
    grid = LambertGrid(
        nx=60,
        ny=60,
        dx=60e3,
        x0=-1800e3,
        y0=-1800e3,
        lon0=135.0,
        lat0=sign * 25.0,
        parallels=(sign * 20.0, sign * 40.0),
    )
    west, east, low, high = viz.grid_extent(grid)
    corners = MultiPoint([(x, y) for x in (west, east) for y in (low, high)])
    assert Polygon(viz.projection(grid).boundary.coords).contains(corners)


def test_standardised_colours_say_that_values_go_beyond():
    fig, axes = viz.panels(1, 2)
    for ax, standardised, extend in zip(axes[0], (True, False), ("both", "neither")):
        image = viz.draw_variable(ax, np.full((4, 4), 7.0), "t850", standardised=standardised)
        assert viz.colorbar(fig, image, ax).extend == extend


def test_one_pixel():
    fig, axes = viz.panels(1, 1)
    assert viz.draw_rain(axes[0, 0], np.array([[3.0]])).get_array().shape == (1, 1)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (1, 6, 4), (0, 0)])
def test_wrong_shape_is_refused(shape):
    fig, axes = viz.panels(1, 1)
    with pytest.raises(GridError, match="expected"):
        viz.draw_rain(axes[0, 0], np.zeros(shape), GRID)


def test_variable_names_and_counts_are_checked():
    fig, axes = viz.panels(1, 1)
    with pytest.raises(DataError, match="gh100"):
        viz.draw_variable(axes[0, 0], np.zeros((2, 2)), "temperature")
    with pytest.raises(DataError, match=f"number of fields: expected {len(VARIABLES)}, found 3"):
        viz.variable_panel(np.zeros((3, 2, 2)))


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 500))
def test_the_hue_says_the_class(rain):
    color = viz._RAIN_CMAP(viz._RAIN_NORM(rain))
    step = viz.RAIN_COLORS.index(matplotlib.colors.to_hex(color))
    first = [viz.RAIN_LEVELS.index(edge) for edge in CLASS_EDGES]
    assert np.digitize(step, first) == rain_class(rain)


def test_pixels_without_a_class_stay_empty():
    fig, axes = viz.panels(1, 1)
    shown = viz.draw_classes(axes[0, 0], rain_class([[np.nan, 0.0], [1.0, 20.0]])).get_array()
    assert shown.mask.tolist() == [[True, False], [False, False]]
    assert shown.compressed().tolist() == [0, 1, 2]


def test_figures_for_notebooks_are_small():
    fig, axes = viz.maps(1, 2, QPE_GRID)
    for ax in axes.flat:
        viz.draw_rain(ax, np.random.default_rng(0).gamma(0.3, 5, QPE_GRID.shape), QPE_GRID)
    usual = io.BytesIO()
    fig.savefig(usual, format="png", dpi=fig.dpi, bbox_inches="tight")
    assert len(viz._png(fig)) < 0.5 * len(usual.getvalue())


def test_another_grid_is_drawn_where_it_belongs():
    fig, axes = viz.maps(1, 1, QPE_GRID, size=1)
    mesh = viz.draw_field(axes[0, 0], np.zeros(NWP_GRID.shape), NWP_GRID)
    on_screen = mesh.get_transform().transform(mesh.get_coordinates()[0, 0])
    there = axes[0, 0].transData.inverted().transform(on_screen)
    half = NWP_GRID.dx / 2
    lon, lat = NWP_GRID.unproject(NWP_GRID.x[0] - half, NWP_GRID.y[0] - half)
    assert np.allclose(there, QPE_GRID.project(lon, lat), atol=1)


def test_wind_keeps_its_speed():
    u, v = np.random.default_rng(0).normal(size=(2, *GRID.shape))
    assert np.allclose(np.hypot(*viz.map_wind(u, v, GRID)), np.hypot(u, v))


def test_curves_with_bands_and_bars():
    fig, axes = viz.panels(1, 2)
    viz.curves(axes[0, 0], [1, 2], {"a": ([1, 2], [0, 1], [2, 3]), "b": [2, 1]}, "x (h)", "y (1)")
    viz.bars(axes[0, 1], [25, 27], {"a": [1, 2]}, "x (h)", "y (1)")
    viz.curves(axes[0, 0], [], {}, "x (h)", "y (1)")
    assert len(axes[0, 0].lines) == 2
    assert len(axes[0, 0].collections) == 1
    assert len(axes[0, 1].patches) == 2


@pytest.mark.parametrize("content", [None, b"", b"not a zip file"])
def test_damaged_coastlines_warn_once(tmp_path, content):
    path = tmp_path / "lines.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="without coastlines") as caught:
        assert viz.natural_earth(str(path)) == {} == viz.natural_earth(str(path))
    assert len(caught) == 1


def test_map_without_coastlines(monkeypatch):
    monkeypatch.setattr(viz, "natural_earth", lambda: {})
    viz.nearby_lines.cache_clear()
    fig, axes = viz.maps(1, 1, GRID, size=1)
    fig.canvas.draw()
    viz.nearby_lines.cache_clear()


def test_bundled_lines():
    with np.load(viz.files("sslpdl_nb") / "natural_earth.npz", allow_pickle=False) as f:
        assert all(f[k].dtype == ("int32" if k.endswith("offsets") else "float32") for k in f.files)
        assert all(f[f"{k}_offsets"][-1] == len(f[k]) for k in f.files if not k.endswith("offsets"))
    assert Path(str(viz.files("sslpdl_nb") / "natural_earth.npz")).stat().st_size < 3e6


def test_the_maker_tells_coast_from_border(tmp_path, monkeypatch):
    "Two unit squares that share one side: that side is a border, the rest is coast."
    spec = importlib.util.spec_from_file_location("make_coastlines", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    shared = [[1, 0], [0, 1]]
    left = [[1, 1], [-1, 0], [0, -1], [1, 0]]
    right = [[1, 0], [1, 0], [0, 1], [-1, 0]]
    polygon = dict(type="Polygon", arcs=[[0, 1]])
    multipolygon = dict(type="MultiPolygon", arcs=[[[~0, 2]]])
    topology = dict(
        transform=dict(scale=[0.5, 0.5], translate=[10, 20]),
        arcs=[shared, left, right],
        objects=dict(countries=dict(geometries=[polygon, multipolygon])),
    )
    for resolution in maker.RESOLUTIONS:
        (tmp_path / f"countries-{resolution}.json").write_text(json.dumps(topology))
    arrays = maker.make(tmp_path)
    assert arrays["border_50m"].tolist() == [[10.5, 20.0], [10.5, 20.5]]
    assert arrays["coast_50m_offsets"].tolist() == [0, 4, 8]
    outs = []
    for name in ("a.npz", "b.npz"):
        monkeypatch.setattr("sys.argv", ["make", str(tmp_path), "--out", str(tmp_path / name)])
        maker.main()
        outs.append((tmp_path / name).read_bytes())
    assert outs[0] == outs[1]


def test_date_line_and_pole_are_no_coast():
    spec = importlib.util.spec_from_file_location("make_coastlines", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    line = np.array([[179.0, 10], [180, 11], [180, 20], [178, 21], [177, 20]])
    assert [len(p) for p in maker.without_seams(line)] == [2, 3]


def test_sixteen_panels():
    fields = np.random.default_rng(0).normal(size=(len(VARIABLES), *GRID.shape))
    fig, axes = viz.variable_panel(fields, GRID, standardised=True, size=0.6)
    assert axes.shape == (2, 8)
    assert [a.get_title() for a in axes.flat] == list(VARIABLE_NAMES)
