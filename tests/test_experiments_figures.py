"Figures of comparisons: what they show is checked against a second implementation or by hand."

import numpy as np
import pytest

pytest.importorskip("scores")
pytest.importorskip("model_diagnostics")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import xarray as xr  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from scipy.ndimage import uniform_filter  # noqa: E402

from sslpdl_nb.core import DataError  # noqa: E402
from sslpdl_nb.experiments import figures  # noqa: E402
from sslpdl_nb.experiments.figures import (  # noqa: E402
    LEVELS,
    METHOD_NAMES,
    RATIOS,
    THETAS,
    Tally,
    corp,
    economic_value,
    forest_plot,
    fss,
    heat_map,
    learning_curve,
    method_style,
    murphy,
    murphy_diagram,
    performance_diagram,
    reliability_curve,
    reliability_diagram,
    scale_diagram,
    styles,
    value_diagram,
)
from sslpdl_nb.verify import Contingency, brier, csi  # noqa: E402


@pytest.fixture
def ax():
    fig, axis = plt.subplots()
    yield axis
    plt.close(fig)


@pytest.fixture(scope="module")
def chances():
    "Probabilities of 12 atmospheres, outcomes that follow them too rarely, and labels."
    rng = np.random.default_rng(3)
    p = rng.beta(0.4, 2.0, (60, 50))
    o = (rng.random(p.shape) < p**1.3).astype(float)
    return p, o, np.repeat(np.arange(12), 5)


# ------------------------------------------------------------------ one look for each method

# matrices of Machado, Oliveira and Fernandes 2009 for linear RGB, full deficiency
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def lab(color, blindness):
    "CIELAB of a colour as an eye sees it."
    c = np.array(to_rgb(color))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    linear = np.clip(BLINDNESS[blindness] @ linear, 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    t = np.array(to_xyz) @ linear / np.array([0.95047, 1, 1.08883])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_methods_of_one_family_differ_in_colour_for_every_eye(blindness):
    looks = [method_style(name) for name in METHOD_NAMES if name != "raw tuned"]
    for i, a in enumerate(looks):
        for b in looks[:i]:
            if (a["linestyle"], a["linewidth"]) == (b["linestyle"], b["linewidth"]):
                far = np.linalg.norm(lab(a["color"], blindness) - lab(b["color"], blindness))
                assert far > 10, (a["label"], b["label"], far)


def test_every_method_can_be_told_without_colour():
    looks = [method_style(name) for name in METHOD_NAMES]
    marks = {(k["marker"], k["markerfacecolor"] == "white") for k in looks}
    assert len(marks) == len(looks) == len({k["label"] for k in looks})


@pytest.mark.parametrize(
    "name, written",
    [
        ("raw", "raw forecast"),
        ("raw", "Raw"),
        ("raw tuned", "raw, tuned threshold"),
        ("raw tuned", "RawTuned"),
        ("share", "NeighbourhoodShare"),
        ("emos", "CSG"),
        ("boosting", "LightGBM"),
        ("unet", "U-Net"),
        ("convnext", "ConvNeXt + UPerNet"),
        ("camt", "SwinCAMT"),
        ("deeplab", "DeepLabV3+"),
        ("scratch", "InternImage, from scratch"),
        ("pretrained", "InternImage, pre-trained (ours)"),
        ("perfect model", "perfect-model ensemble (ceiling)"),
    ],
)
def test_titles_of_other_lessons_mean_the_same_method(name, written):
    assert method_style(written) == method_style(name)


def test_every_baseline_of_the_registry_has_a_look():
    from sslpdl_nb.baselines.registry import BASELINES

    for name, entry in BASELINES.items():
        assert method_style(name) == method_style(entry.title), name


def test_free_colours_stay_away_from_methods_in_the_same_figure():
    found = styles(["unet", "pretrained", "a", "b", "c"])
    colors = [look["color"] for look in found.values()]
    assert len(set(colors)) == 5 and list(found) == ["unet", "pretrained", "a", "b", "c"]


def test_unknown_names():
    with pytest.raises(DataError, match="one of .*'raw'"):
        method_style("oracle")
    found = styles(["dice", "raw", "focal"])
    assert found["raw"] == method_style("raw")
    assert found["dice"]["color"] != found["focal"]["color"]
    assert found["dice"] == styles(["dice"])["dice"]


def test_a_style_cannot_be_changed_by_its_user():
    method_style("raw")["color"] = "red"
    styles(["raw"])["raw"]["label"] = "x"
    assert method_style("raw")["color"] == "#000000"
    assert method_style("raw")["label"] == "raw forecast"


# ------------------------------------------------------------------ performance diagram


def test_performance_of_known_forecasts(ax):
    rows = {
        "perfect": Contingency(50, 0, 0, 50),
        "dry": Contingency(0, 50, 0, 50),
        "shifted": Contingency(25, 25, 25, 25),
    }
    points = performance_diagram(ax, rows)
    assert points["perfect"] == (1, 1) and points["shifted"] == (0.5, 0.5)
    assert np.isnan(points["dry"][0]) and points["dry"][1] == 0
    labels = ax.get_legend_handles_labels()[1]
    assert "dry (never forecast)" in labels


def test_performance_background_is_the_identity(ax):
    performance_diagram(ax, {})
    curves = [line.get_xydata() for line in ax.lines if line.get_linestyle() == "-"]
    for level, curve in zip((0.02, 0.05, 0.1), curves):
        hits = 1e9
        p, r = curve[200]
        c = Contingency(hits, hits / r - hits, hits / p - hits, 0)
        assert np.isclose(csi(c), level)


def test_performance_intervals_come_from_atmospheres(ax):
    rng = np.random.default_rng(0)
    hits, misses, false_alarms = rng.integers(20, 40, (3, 10))
    rows = {"unet": Contingency(hits, misses, false_alarms, 0 * hits + 100)}
    before = len(ax.lines)
    performance_diagram(ax, rows, intervals=("unet",))
    flat, upright = (line.get_xydata() for line in ax.lines[-2:])
    x, y = hits.sum() / (hits + false_alarms).sum(), hits.sum() / (hits + misses).sum()
    assert flat[0, 0] < x < flat[1, 0] and upright[0, 1] < y < upright[1, 1]
    # the error of a ratio by linearisation
    n = (hits + misses).astype(float)
    error = np.sqrt(10 / 9 * ((hits - y * n) ** 2).sum()) / n.sum()
    assert np.isclose(upright[1, 1] - upright[0, 1], 2 * 2.27 * error, rtol=0.1)
    assert before == 0


# ------------------------------------------------------------------ fractions skill


def test_fss_of_a_displaced_line():
    line = np.zeros((2, 31, 31), bool)
    line[:, :, 15] = True
    widths = np.array([1, 3, 7, 11])
    assert np.allclose(fss(np.roll(line, 2, 2), line, widths), np.maximum(0, 1 - 2 / widths))
    assert np.allclose(fss(line, line, widths), 1) and np.allclose(
        fss(~line & line, line, widths), 0
    )


def test_fss_sums_before_dividing_and_matches_a_second_implementation():
    rng = np.random.default_rng(1)
    f, o = rng.random((2, 5, 20, 16)) < rng.random((5, 1, 1)) / 2
    f[4] = o[4] = False  # a dry field adds nothing
    known = rng.random(f.shape) > 0.1
    for width in (1, 3, 5):
        edge = width // 2
        inside = (slice(None), slice(edge, 20 - edge), slice(edge, 16 - edge))
        share = [
            uniform_filter((a & known).astype(float), (0, width, width))[inside] for a in (f, o)
        ]
        expected = 1 - ((share[0] - share[1]) ** 2).sum() / sum((s**2).sum() for s in share)
        assert np.isclose(fss(f, o, [width], known)[0], expected)


def test_fss_refuses_and_knows_nothing():
    a = np.zeros((1, 8, 8), bool)
    assert np.isnan(fss(a, a, [1, 3])).all()
    with pytest.raises(DataError, match="width of the window"):
        fss(a, a, [9])
    with pytest.raises(DataError, match="shape"):
        fss(a, a[:, :4], [1])


# ------------------------------------------------------------------ tallies


def test_tally_keeps_the_brier_score_and_the_counts(chances):
    p, o, groups = chances
    t = Tally.of(p, o, groups)
    level, cases, events = t.pooled()
    score = (events * (1 - level) ** 2 + (cases - events) * level**2).sum() / cases.sum()
    assert np.isclose(score, brier(p, o), rtol=1e-4)
    assert t.count.sum(1).tolist() == [250] * 12 and np.isclose(t.base_rate, o.mean())
    assert np.allclose(t.events.sum(1), [o[groups == g].sum() for g in range(12)])


def test_tally_leaves_out_what_is_unknown():
    p = np.array([[0.2, np.nan], [0.4, 1.0]])
    o = np.array([[1.0, 1.0], [np.nan, 0.0]])
    level, cases, events = Tally.of(p, o, [7, 3]).pooled()
    assert np.allclose(level, [0.2, 1]) and cases.tolist() == [1, 1] and events.tolist() == [1, 0]


def test_tally_keeps_stated_probabilities_exactly():
    for value in (0.0, 1e-5, 0.2, 0.999999, 1.0):
        level, cases, _ = Tally.of(np.full((3, 4), value), np.zeros((3, 4))).pooled()
        assert np.allclose(level, [value], rtol=1e-12) and cases.tolist() == [12]
    assert (np.diff(LEVELS) > 0).all()


def test_tally_refuses():
    with pytest.raises(DataError, match="shape"):
        Tally.of(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(DataError, match="0 to 1"):
        Tally.of(np.full((2, 3), 1.2), np.zeros((2, 3)))
    with pytest.raises(DataError, match="labels"):
        Tally.of(np.zeros((2, 3)), np.zeros((2, 3)), [1, 2, 3])


# ------------------------------------------------------------------ reliability


def test_corp_equals_the_library_on_single_pixels(chances):
    from model_diagnostics.scoring import SquaredError, decompose

    p, o, groups = chances
    parts = corp(Tally.of(p, o, groups))
    table = decompose(o.ravel(), p.ravel(), scoring_function=SquaredError())
    for name in ("miscalibration", "discrimination", "uncertainty"):
        assert np.isclose(parts[name], table[name][0], atol=3e-4)
    assert np.isclose(parts["brier"], table["score"][0], atol=1e-5)


def test_corp_of_known_forecasts():
    o = np.array([[1.0, 0, 0, 0, 0]] * 4)
    parts = corp(Tally.of(o, o))
    assert np.isclose(parts["discrimination"], 0.16) and parts["miscalibration"] < 1e-12
    parts = corp(Tally.of(np.full(o.shape, 0.2), o))
    assert abs(parts["discrimination"]) < 1e-12 and abs(parts["miscalibration"]) < 1e-12
    parts = corp(Tally.of(0 * o, o))
    assert np.isclose(parts["miscalibration"], 0.04) and abs(parts["discrimination"]) < 1e-12
    parts = corp(Tally.of(np.roll(o, 1, 1), o))
    assert np.isclose(parts["brier"], 0.4) and np.isclose(parts["uncertainty"], 0.16)


def test_reliability_curve_is_the_isotonic_fit_of_the_library(chances):
    from scores.probability import isotonic_fit

    p, o, groups = chances
    t = Tally.of(p, o, groups)
    x, fit, low, high = reliability_curve(t)
    of_pixels = isotonic_fit(p.ravel(), o.ravel())["regression_func"]
    assert np.abs(fit - of_pixels(x)).mean() < 0.01
    level, cases, events = t.pooled()
    of_table = isotonic_fit(level, events / cases, weight=cases.astype(float))
    assert np.allclose(fit, of_table["regression_values"])
    assert (np.diff(fit) >= 0).all() and (low <= fit).all() and (fit <= high).all()


def test_reliability_band_needs_atmospheres(chances):
    p, o, _ = chances
    assert np.isnan(reliability_curve(Tally.of(p, o))[2]).all()
    alone = np.zeros_like(o)
    alone[0] = 1  # all events in one of three groups
    t = Tally.of(p[:30], alone[:30], np.repeat([0, 1, 2], 10))
    assert np.isnan(reliability_curve(t)[3]).all()


def test_reliability_band_sees_what_pixels_share():
    "Pixels that are copies of each other are no evidence."
    rng = np.random.default_rng(2)
    p = np.repeat(rng.choice([0.2, 0.5, 0.8], (30, 1)), 40, axis=1)
    o = np.repeat((rng.random((30, 1)) < p[:, :1]).astype(float), 40, axis=1)
    together = reliability_curve(Tally.of(p, o, np.arange(30)))
    few = reliability_curve(Tally.of(p[:, :1], o[:, :1], np.arange(30)))
    for a, b in zip(together, few):
        assert np.allclose(a, b)


# ------------------------------------------------------------------ economic value, Murphy


def test_economic_value_equals_the_library_on_single_pixels(chances):
    from scores.probability import relative_economic_value

    p, o, groups = chances
    ratios = [0.05, 0.2, 0.5, 0.9]
    f, obs = (xr.DataArray(a.ravel(), dims="x") for a in (p, o))
    options = dict(cost_loss_ratios=ratios, probability_thresholds=ratios)
    library = relative_economic_value(f, obs, **options)
    library = library.transpose("cost_loss_ratio", ...).values.diagonal()
    assert np.allclose(economic_value(Tally.of(p, o, groups), ratios), library, atol=0.01)


def test_economic_value_of_known_forecasts():
    o = np.array([[1.0, 0, 0, 0, 0]] * 4)
    ratios = np.array([0.1, 0.2, 0.5])
    assert np.allclose(economic_value(Tally.of(o, o), ratios), 1)
    assert np.allclose(economic_value(Tally.of(np.full(o.shape, 0.2), o), ratios), 0)
    never = economic_value(Tally.of(0 * o, o), ratios)
    assert np.isclose(never[0], (0.1 - 0.2) / (0.1 - 0.1 * 0.2)) and np.allclose(never[1:], 0)
    shifted = economic_value(Tally.of(np.roll(o, 1, 1), o), ratios)
    assert np.isclose(shifted[1], 0 - 1 / 4)  # hit rate minus false alarm rate


def test_murphy_equals_the_library_on_single_pixels(chances):
    from scores.probability import murphy_score

    p, o, groups = chances
    thetas = [0.04, 0.21, 0.47, 0.83]
    f, obs = (xr.DataArray(a.ravel(), dims="x") for a in (p, o))
    library = murphy_score(f, obs, thetas, functional="expectile", alpha=0.5).total
    assert np.allclose(murphy(Tally.of(p, o, groups), thetas), library, atol=5e-4)


def test_murphy_integrates_to_the_brier_score(chances):
    p, o, groups = chances
    thetas = (np.arange(2000) + 0.5) / 2000
    area = murphy(Tally.of(p, o, groups), thetas).mean()
    assert np.isclose(4 * area, brier(p, o), rtol=1e-3)


def test_murphy_of_known_forecasts():
    o = np.array([[1.0, 0, 0, 0, 0]] * 4)
    thetas = np.array([0.1, 0.5, 0.9])
    assert np.allclose(murphy(Tally.of(o, o), thetas), 0)
    assert np.allclose(murphy(Tally.of(0 * o, o), thetas), 0.2 * (1 - thetas) / 2)
    climate = murphy(Tally.of(np.full(o.shape, 0.2), o), thetas)
    assert np.allclose(climate, [0.1 * 0.8 / 2, 0.2 * 0.5 / 2, 0.2 * 0.1 / 2])


# ------------------------------------------------------------------ differences, curves, surfaces


def test_forest_plot_fills_only_what_is_certain(ax):
    rows = {
        "unet": dict(difference=0.1, low=0.05, high=0.15),
        "share": dict(difference=-0.1, low=-0.2, high=0.01),
        "raw": dict(difference=-0.1, low=-0.2, high=-0.01),
        "metnet": dict(difference=0.3, low=np.nan, high=np.nan, reason="only 2 of 3 blocks (a)"),
    }
    forest_plot(ax, rows, "difference of CSI")
    points = [line for line in ax.lines if len(line.get_xdata()) == 1]
    fills = [line.get_markerfacecolor() == "white" for line in points]
    assert fills == [False, True, False, True] and points[3].get_marker() == "x"
    assert [float(line.get_ydata()[0]) for line in points] == [0, -1, -2, -3]
    assert ax.texts[-1].get_text().endswith("(no interval: only 2 of 3 blocks)")
    assert [t.get_text() for t in ax.get_yticklabels()][0] == "U-Net"


def test_a_forest_row_is_hollow_where_seeds_disagree(ax):
    sure = dict(difference=0.1, low=0.05, high=0.15)
    rows = dict(unet=sure | dict(seeds=(0.05, 0.15)), share=sure | dict(seeds=(-0.01, 0.21)))
    forest_plot(ax, rows, "difference of CSI")
    points = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() == "white" for line in points] == [False, True]


def test_learning_curve_draws_the_numbers(ax):
    y = np.array([0.1, np.nan, 0.3])
    rows = {"unet": (y, y - 0.1, y + 0.1), "share": y}
    learning_curve(
        ax, [6, 24, 96], rows, xlabel="atmospheres", ylabel="CSI", references={"raw": 0.2}
    )
    assert ax.get_xscale() == "log"
    assert np.array_equal(ax.lines[0].get_ydata(), y, equal_nan=True)
    assert ax.lines[2].get_ydata()[0] == 0.2 and ax.texts[0].get_text() == "raw forecast"
    assert len(ax.collections) == 1
    assert ax.get_legend_handles_labels()[1] == ["U-Net", "neighbourhood share"]


def test_heat_map_marks_the_best_and_its_equals(ax):
    values = np.array([[0.30, 0.31], [np.nan, 0.40], [0.39, 0.2]])
    names = dict(xlabel="a", ylabel="b", label="CSI")
    image = heat_map(ax, values, [1, 2, 3], ["x", "y"], spread=0.02, decimals=2, **names)
    frames = {(p.get_x() + 0.46, p.get_y() + 0.46): p.get_linewidth() for p in ax.patches}
    frames = {tuple(round(float(v)) for v in k): w for k, w in frames.items()}
    assert frames == {(1, 1): 3, (0, 2): 1.2}
    assert [t.get_text() for t in ax.texts] == ["0.30", "0.31", "–", "0.40", "0.39", "0.20"]
    assert image.get_clim() == (0.2, 0.4)
    with pytest.raises(DataError, match="shape"):
        heat_map(ax, values, [1, 2], ["x", "y"], **names)


def test_every_axis_has_a_name(chances):
    p, o, groups = chances
    t = Tally.of(p, o, groups)
    fig, axes = plt.subplots(2, 4)
    performance_diagram(axes[0, 0], {"unet": Contingency(1, 1, 1, 1)})
    scale_diagram(axes[0, 1], [1, 3], {"unet": [0.2, 0.3]}, 0.1, spacing=15e3)
    reliability_diagram(axes[0, 2], {"unet": t}, bands=("unet",), start=1e-3, below=axes[1, 2])
    value_diagram(axes[0, 3], {"unet": t})
    murphy_diagram(axes[1, 0], {"unet": t}, log=True)
    forest_plot(axes[1, 1], {"unet": dict(difference=0, low=-1, high=1)}, "difference of CSI")
    learning_curve(axes[1, 3], [1, 2], {"unet": [1, 2]}, xlabel="hours (h)", ylabel="CSI")
    assert axes[0, 1].get_xlabel() == "width of the window (km)"
    assert [t.get_text() for t in axes[0, 1].get_xticklabels()] == ["15", "45"]
    for ax in axes.flat:
        assert ax.get_ylabel() or ax is axes[1, 1]
        assert ax.get_xlabel() or ax is axes[0, 2]
    plt.close(fig)


def test_defaults_are_rising():
    assert (np.diff(RATIOS) > 0).all() and (np.diff(THETAS) > 0).all()
    assert set(figures.__all__) >= {"METHOD_NAMES", "Tally", "fss", "heat_map", "murphy"}
