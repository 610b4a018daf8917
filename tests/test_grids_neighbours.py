"Neighbours: brute force, linked cells against the k-d tree, weights of any quadrilateral, areas."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpdl_nb.core import GridError
from sslpdl_nb.grids.neighbours import (
    SEARCHES,
    CellList,
    KDTree,
    between,
    bilinear_weights,
    candidates,
    cell_areas,
    cell_polygons,
    conservative_weights,
    corner_weights,
    cube_face,
    fibonacci_sphere,
    inverse_bilinear,
    map_weights,
    nearest_in_cells,
    point_search,
    quad_weights,
    quadrant_neighbours,
    touching_plane,
    triangle_weights,
)
from sslpdl_nb.grids.types import (
    NWP_GRID,
    QPE_GRID,
    CurvilinearGrid,
    projected_grid,
    subgrid,
    unit_vectors,
)

SOURCE = subgrid(NWP_GRID, slice(0, 480, 12), slice(0, 320, 12))
TARGET = subgrid(QPE_GRID, slice(30, 222, 6), slice(26, 122, 6))
both_searches = pytest.mark.parametrize("search", SEARCHES)


def on_sphere(rng, n, centre=(0, 0, 0), spread=1.0):
    p = rng.normal(size=(n, 3)) * spread + np.asarray(centre)
    return p / np.linalg.norm(p, axis=1, keepdims=True)


# ------------------------------------------------------------------ search

CENTRES = [(0, 0, 0), (1, 1, 1), (-1, 1, -1), (1, 1, 0.2), (0, 0, 1), (0, 0, -1), (-1, 0, 0)]


@both_searches
@pytest.mark.parametrize("centre", CENTRES)
def test_nearest_is_brute_force(centre, search):
    rng = np.random.default_rng(1)
    spread = 0.1 if any(centre) else 1.0
    points, targets = (on_sphere(rng, n, centre, spread) for n in (3000, 2000))
    found = point_search(points, search)
    index, truth = found.nearest(targets), (targets @ points.T).argmax(1)
    close = np.linalg.norm(points[truth] - targets, axis=1) <= found.radius(4)
    assert np.array_equal(index[close], truth[close]) and (index[~close] == -1).all()
    assert close.mean() > 0.95


@pytest.mark.parametrize("seed", range(8))
def test_both_searches_agree_for_any_number_and_density(seed):
    rng = np.random.default_rng(seed)
    for _ in range(6):
        centre = on_sphere(rng, 1)[0]
        n, spread = int(10 ** rng.uniform(0.3, 3.5)), 10 ** rng.uniform(-1.5, 1.5)
        points, targets = (on_sphere(rng, k, centre, spread) for k in (n, 300))
        cells, tree = CellList(points), KDTree(points)
        assert [cells.radius(r) for r in (1, 2, 4, 8)] == [tree.radius(r) for r in (1, 2, 4, 8)]
        assert np.array_equal(cells.nearest(targets), tree.nearest(targets))
        four = quadrant_neighbours(cells, targets)
        assert np.array_equal(four, quadrant_neighbours(tree, targets))
        (corner, weight), (corner2, weight2) = (
            bilinear_weights(s, (n,), targets) for s in (cells, tree)
        )
        assert np.array_equal(corner, corner2) and np.allclose(weight, weight2, rtol=0, atol=1e-12)


def test_points_of_very_different_density():
    rng = np.random.default_rng(3)
    dense = on_sphere(rng, 700, (1, 1, 1), 0.002)
    points = np.concatenate([dense, on_sphere(rng, 40, (1, 1, 1), 0.2)])
    targets = on_sphere(rng, 500, (1, 1, 1), 0.1)
    cells, tree = CellList(points), KDTree(points)
    assert np.array_equal(cells.nearest(targets), tree.nearest(targets))
    four = quadrant_neighbours(cells, targets)
    assert np.array_equal(four, quadrant_neighbours(tree, targets)) and (four >= 0).all(1).any()


@both_searches
def test_duplicates_and_blocks(search):
    rng = np.random.default_rng(2)
    points, targets = on_sphere(rng, 500), on_sphere(rng, 999)
    found = point_search(np.concatenate([points, points]), search)
    nearest = found.points[found.nearest(targets)]
    assert np.allclose(nearest, points[(targets @ points.T).argmax(1)])
    four = quadrant_neighbours(found, targets)
    assert np.array_equal(quadrant_neighbours(found, targets, block=100), four)
    assert four.max() < 500  # of two points in one place the first


def test_linked_cells_in_blocks():
    rng = np.random.default_rng(2)
    cells, targets = CellList(on_sphere(rng, 500)), on_sphere(rng, 999)
    whole = nearest_in_cells(cells, targets)
    assert np.array_equal(nearest_in_cells(cells, targets, block=100), whole)


@both_searches
def test_one_point_and_far_targets(search):
    found = point_search(unit_vectors([127.0], [37.0]), search)
    targets = unit_vectors([127.0, -60.0], [37.0, 0.0])
    assert found.nearest(targets).tolist() == [0, -1]
    assert (quadrant_neighbours(found, targets)[1] == -1).all()
    assert found.nearest(targets[:0]).shape == (0,)
    assert quadrant_neighbours(found, targets[:0]).shape == (0, 4)


def test_unknown_search():
    with pytest.raises(GridError, match="octree"):
        point_search(unit_vectors([127.0], [37.0]), "octree")


@both_searches
def test_quadrants_are_brute_force(search):
    rng = np.random.default_rng(3)
    points, targets = on_sphere(rng, 2000), on_sphere(rng, 50)
    four = quadrant_neighbours(point_search(points, search), targets)
    for t, quad in zip(targets, four):
        pole = np.array([0, 0, 1.0]) if abs(t[2]) < 0.9 else np.array([1.0, 0, 0])
        east = np.cross(pole, t)
        east /= np.linalg.norm(east)
        x, y, d = points @ east, points @ np.cross(t, east), np.linalg.norm(points - t, axis=1)
        quadrants = [(x > 0) & (y >= 0), (x <= 0) & (y > 0), (x < 0) & (y <= 0), (x >= 0) & (y < 0)]
        for k, here in enumerate(quadrants):
            assert quad[k] == np.where((points @ t > 0) & here, d, np.inf).argmin()


@given(st.floats(-720, 720), st.floats(-90, 90))
def test_cube_face_holds_every_point(lon, lat):
    face, a, b = cube_face(unit_vectors(lon, lat))
    assert 0 <= face <= 5 and abs(a) <= 1 + 1e-12 and abs(b) <= 1 + 1e-12


def test_boxes_hold_every_point_once():
    points = fibonacci_sphere(4000)
    for per_box in (0.5, 2.0, 30.0):
        cells = CellList(points, per_box=per_box)
        assert np.array_equal(np.sort(cells.order), np.arange(4000))
        who, near = candidates(cells, points)
        assert set(np.flatnonzero(np.bincount(who[who == near]))) == set(range(4000))


# ------------------------------------------------------------------ weights


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_weights_of_any_quadrilateral_are_weights(xy):
    w = quad_weights(np.array(xy).reshape(1, 4, 2))
    assert np.isfinite(w).all() and (w >= 0).all() and np.isclose(w.sum(), 1)


def test_inverse_bilinear_knows_outside():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    points = np.array([[0.5, 0.5], [1.0, 1.0], [1.1, 0.5], [-0.1, 0.5], [0.5, 7]])
    s, t, inside = inverse_bilinear(square - points[:, None])
    assert inside.tolist() == [True, True, False, False, False] and np.allclose([s[1], t[1]], 1)


def test_inverse_bilinear_is_the_inverse():
    rng = np.random.default_rng(0)
    quads = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + rng.uniform(-0.2, 0.2, (1000, 4, 2))
    s0, t0 = rng.uniform(size=(2, 1000))
    point = np.einsum("nc,ncd->nd", corner_weights(s0, t0), quads)
    s, t, inside = inverse_bilinear(quads - point[:, None])
    assert inside.all() and np.allclose([s, t], [s0, t0], atol=1e-9)


def test_triangles_where_there_are_some():
    bow_tie = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) - [0.5, 0.25]
    line = np.array([[0, 0], [1, 0], [2, 0], [3, 0]]) - [0.5, 0.25]
    w = triangle_weights(np.array([bow_tie, line]))
    assert np.allclose(w[0] @ bow_tie, 0) and w[0].min() >= 0 and np.isnan(w[1]).all()


def test_between_on_axes_of_either_direction():
    for axis in (np.array([1.0, 2, 4, 8]), np.array([8.0, 4, 2, 1])):
        k, s, inside = between(axis, np.array([1.0, 3, 8, 9, 0.5]))
        found = axis[k] * (1 - s) + axis[k + 1] * s
        assert np.allclose(found[inside], [1, 3, 8])
        assert inside.tolist() == [True, True, True, False, False]


def test_map_weights_name_the_cell():
    x, y = SOURCE.x[3] + 0.25 * SOURCE.dx, SOURCE.y[5] + 0.5 * SOURCE.dx
    corner, weight = map_weights(SOURCE, *np.array(SOURCE.unproject(x, y))[:, None])
    j, i = np.divmod(corner[0], SOURCE.nx)
    assert j.tolist() == [5, 5, 6, 6] and i.tolist() == [3, 4, 4, 3]
    assert np.allclose(weight, [0.375, 0.125, 0.125, 0.375])
    assert (map_weights(SOURCE, [0.0], [0.0])[0] == -1).all()


@both_searches
def test_no_four_neighbours(search):
    two = point_search(unit_vectors([0.0, 1.0], [0.0, 0.0]), search)
    corner, _ = bilinear_weights(two, (2,), unit_vectors([0.5], [0.0]))
    assert (corner == -1).all()


@pytest.mark.parametrize("shape", ["grid", "scattered"])
def test_both_searches_lead_to_the_same_weights(shape):
    rng = np.random.default_rng(5)
    lon, lat = np.meshgrid(np.arange(0, 360, 4.0), np.arange(-88, 90, 4.0))
    points = unit_vectors(lon, lat).reshape(-1, 3)
    targets = np.concatenate([on_sphere(rng, 3000), on_sphere(rng, 300, (0, 0, 1), 0.05)])
    size = lon.shape if shape == "grid" else (lon.size,)
    (corner, weight), (corner2, weight2) = (
        bilinear_weights(kind(points), size, targets) for kind in (CellList, KDTree)
    )
    assert np.array_equal(corner, corner2) and np.allclose(weight, weight2, rtol=0, atol=1e-12)
    assert (corner >= 0).all() and (weight >= 0).all() and np.allclose(weight.sum(1), 1)


def test_ties_change_neighbours_but_no_values():
    lon, lat = np.meshgrid(np.arange(100, 130.0), np.arange(20, 50.0))
    points = unit_vectors(lon, lat).reshape(-1, 3)
    middles = np.meshgrid(np.arange(105.5, 120), np.arange(25.5, 40))
    edges = np.meshgrid(np.arange(105.5, 120), np.arange(25.0, 40))
    f = np.random.default_rng(6).normal(size=points.shape[0])
    for targets in (middles, edges):
        targets = unit_vectors(*targets).reshape(-1, 3)
        values = []
        for kind in (CellList, KDTree):
            corner, weight = bilinear_weights(kind(points), lon.shape, targets)
            values.append((f[corner] * weight).sum(1))
        assert np.allclose(values[0], values[1], rtol=0, atol=1e-12)


def test_touching_plane_of_the_poles():
    for pole in ((0, 0, 1.0), (0, 0, -1.0), (1.0, 0, 0)):
        near = on_sphere(np.random.default_rng(7), 50, pole, 0.05)[None]
        for equal_area in (False, True):
            xy = touching_plane(near, np.array([pole]), equal_area)
            distance = np.linalg.norm(near - np.array(pole), axis=-1)
            assert np.allclose(np.linalg.norm(xy, axis=-1), distance, rtol=0.05)


# ------------------------------------------------------------------ areas


def test_conservative_fractions_fill_their_targets():
    source, target = unit_vectors(*SOURCE.lonlat()), unit_vectors(*TARGET.lonlat())
    row, _, fraction = conservative_weights(source, target)
    assert np.allclose(np.bincount(row, fraction), 1, atol=1e-9) and fraction.min() >= 0


def test_conservative_needs_less_than_a_hemisphere():
    world = unit_vectors(*np.meshgrid(np.arange(0, 360, 30), np.arange(-75, 90, 30)))
    with pytest.raises(GridError, match="hemisphere"):
        conservative_weights(world, world)


def test_areas_of_a_cell_on_any_grid():
    lon, lat = np.meshgrid(np.arange(120, 130.0), np.arange(30, 40.0))
    degrees = projected_grid("+proj=longlat +R=6371008.77", lon[0], lat[:, 0])
    band = np.sin(np.radians(lat + 0.5)) - np.sin(np.radians(lat - 0.5))
    expected = 6371008.77**2 * np.radians(1) * band
    for grid in (degrees, CurvilinearGrid(lon, lat)):
        assert np.allclose(cell_areas(grid), expected, rtol=1e-3)
    assert cell_areas(QPE_GRID).mean() == pytest.approx(QPE_GRID.dx**2, rel=0.1)


def test_a_line_has_no_cells():
    with pytest.raises(GridError, match="2 rows"):
        cell_polygons(unit_vectors([[127.0, 128.0]], [[37.0, 37.0]]), unit_vectors(127.0, 37.0))
