"Checked exercises: right answers, what is said about wrong ones, and nothing given away."

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from sslpdl_nb import check as lesson
from sslpdl_nb.check import EXERCISES, Numbers, Property, Words, check, mark, marks_of, numbers_of
from sslpdl_nb.core import DataError

JUNK = (
    "abc",
    "",
    [],
    {},
    -123.456,
    [float("nan")] * 4,
    float("inf"),
    10**400,
    np.zeros((3, 3)),
    [None, 1],
    {"zzz"},
    print,
    object,
    1 + 2j,
    np.datetime64("2020-01-01"),
)


@pytest.fixture
def toy(monkeypatch):
    "An exercise toy-1 with the answer 7.25 and -300."
    exercise = Numbers("two numbers", 0.01, marks_of("toy-1", [7.25, -300.0]))
    monkeypatch.setitem(EXERCISES, "toy-1", exercise)
    monkeypatch.setattr(lesson, "_SOLVED", set())
    return exercise


def test_a_mark_depends_on_all_its_parts():
    marks = {mark("a-1", 0, 5), mark("a-1", 1, 5), mark("a-1", 0, 6), mark("a-2", 0, 5)}
    assert len(marks) == 4 and all(re.fullmatch("[0-9a-f]{8}", m) for m in marks)


@pytest.mark.parametrize("answer", ([7.25, -300], (7.2599, -300.0), np.array([7.2401, -300])))
def test_right_answers_in_any_form(toy, answer):
    assert check("toy-1", answer)
    assert check("toy-1", torch.tensor(np.array(answer), requires_grad=True))
    assert check("toy-1", dict(zip("ab", answer)))


@pytest.mark.parametrize(
    "answer, hint",
    [
        ([-7.25, -300], "number 1 of 2: the sign"),
        ([7.25, -0.3], "number 2 of 2: the order of magnitude is too small"),
        ([7.25, -3e5], "order of magnitude is too large"),
        ([725, -300], "a fraction is expected"),
        ([0.0725, -300], "per cent are expected"),
        ([-6.25, -300], "one minus"),
        ([1 / 7.25, -300], "one divided by"),
        ([7.25 + 273.15, -300], "kelvin"),
        ([np.degrees(7.25), -300], "radians"),
        ([14.5, -300], "twice"),
        ([7.28, -300], "close"),
        ([-300, 7.25], "another order"),
        ([7.25], "how many numbers: expected 2, found 1"),
        ([7.25, float("nan")], "not finite"),
        ([99.0, -300], "it is not right"),
        ("7.25", "expected numbers, found str"),
    ],
)
def test_hints_name_the_slip_and_not_the_value(toy, answer, hint, capsys):
    assert not check("toy-1", answer)
    said = capsys.readouterr().out
    assert hint.lower() in said.lower()
    assert "7.25" not in said and "-300" not in said


def test_an_error_as_large_as_the_step_is_refused(toy):
    assert toy.hint("toy-1", [7.2599, -300]) == ""
    assert toy.hint("toy-1", [7.2701, -300])


def test_marks_of_another_exercise_do_not_fit(toy):
    assert toy.hint("toy-2", [7.25, -300])


def test_words_in_any_order_and_case():
    colours = Words("colours", marks_of("toy-3", ["Red", "blue"]))
    assert colours.hint("toy-3", ["BLUE", " red"]) == "" == colours.hint("toy-3", {"red", "blue"})
    assert colours.hint("toy-3", "red") == "1 of 1 right; expected in all: 2"
    assert colours.hint("toy-3", ["red", "blue", "green"]).startswith("2 of 3")
    assert "found int" in colours.hint("toy-3", 3)
    assert colours.hint("toy-3", [])


def test_numbers_of_keeps_the_order_and_refuses_the_rest():
    nested = [1, {"a": (2, np.array([[3], [4]]))}, torch.tensor(5), True]
    assert numbers_of(nested).tolist() == [1, 2, 3, 4, 5, 1]
    for wrong in ("1", None, [1, "2"], 1j, np.datetime64("2020-01-01"), {1}):
        with pytest.raises(DataError, match="numbers"):
            numbers_of(wrong)


def test_a_property_that_raises_is_a_hint():
    def fragile(answer):
        return "" if 1 / answer == 2 else "wrong"

    exercise = Property("a half", fragile)
    assert exercise.hint("toy-4", 0.5) == "" and exercise.hint("toy-4", 1) == "wrong"
    assert exercise.hint("toy-4", 0).startswith("ZeroDivisionError")


def test_solved_ones_are_remembered_and_listed(toy, capsys):
    check("toy-1")
    assert "no answer yet. Hand in two numbers." in capsys.readouterr().out
    check()
    assert re.search(r"^toy +1$", capsys.readouterr().out, re.M)
    check("toy-1", [7.25, -300])
    check()
    said = capsys.readouterr().out
    assert re.search(r"^toy +1\*$", said, re.M)
    assert f"1 of {len(EXERCISES)} solved" in said


def test_unknown_names_bring_near_ones():
    with pytest.raises(DataError, match="core-1"):
        check("cor-1", 3)
    with pytest.raises(DataError, match="check\\(\\) lists"):
        check("zzzzzzzz", 3)


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_no_exercise_accepts_junk_or_breaks(name):
    for answer in JUNK:
        hint = EXERCISES[name].hint(name, answer)
        assert isinstance(hint, str) and hint, f"{name} accepts {answer!r}"


def test_every_exercise_says_what_to_hand_in():
    for name, exercise in EXERCISES.items():
        assert re.fullmatch(r"[a-z_]+-[1-9]", name)
        assert exercise.asks and not exercise.asks.endswith(".")


def test_marks_are_unique_and_of_one_length():
    marks = [m for e in EXERCISES.values() for m in getattr(e, "marks", "").split()]
    assert len(marks) == len(set(marks)) > 100
    assert {len(m) for m in marks} == {8}


def test_a_spoilt_mean():
    values = np.random.default_rng(0).normal(285, 10, 5000)
    before, values[7] = values.mean(), 1e6
    assert check("store-2", [values.mean() - before, values.std()])
    assert not check("store-2", [values.mean(), values.std()])


def test_a_proper_loss_passes_and_an_improper_one_does_not():
    def log_loss(logits, rain, config, importance=None):
        event = torch.bucketize(rain, torch.tensor(config.edges, dtype=rain.dtype), right=True)
        return torch.nn.functional.cross_entropy(logits, event)

    def hopeful(logits, rain, config, importance=None):
        return -logits.softmax(1)[:, 2].mean()

    assert check("baselines_losses-1", log_loss)
    assert not check("baselines_losses-1", hopeful)


def test_a_forecast_that_always_says_rain():
    assert check("results-2", [0.25, 4.0])
    assert not check("results-2", [4.0, 0.25])
    assert not check("results-2", [0.25, 1.0])
