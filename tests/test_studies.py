"The files of studies: they can be read, and say how many cells they have."

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from sslpdl_nb.experiments.cells import text_of
from sslpdl_nb.experiments.runner import Study

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
NAMES = ("labels", "sensitivity", "transfer", "parts", "missing", "leads", "regions")


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_has_all_seeds(name):
    study = Study.load(FOLDER / f"{name}.yaml")
    arms = Counter()
    for cell in study.cells():
        arms[text_of({k: v for k, v in cell.items() if k != "seed"})] += 1
    assert set(arms.values()) == {len(study.parts["seeds"])} == {3}


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_version_is_small_and_bundled(name):
    study = Study.load(FOLDER / f"{name}.yaml", fast=True)
    (cell,) = study.cells()
    assert cell["atmospheres"] <= 6 and cell["steps"] <= 3
    assert {a["folder"] for a in study.parts["archive"].values()} == {"data_samples/tiny"}


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_counts_all_cells(name):
    path = FOLDER / f"{name}.yaml"
    comment = " ".join(re.findall(r"^# (.*)$", path.read_text(encoding="utf-8"), re.M))
    stated = re.findall(r"(\d+) (?:cells|of InternImage|of statistics)", comment)
    assert sum(map(int, stated)) == len(Study.load(path).cells())
    assert max(map(int, re.findall(r"(\d+) minutes on two", comment))) <= 45
