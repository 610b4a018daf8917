"The course: lists made from the lessons, copies without solutions, slides that stand alone."

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import course
import course_slides
from book import LESSONS, Lesson
from clean_notebooks import SLIDES, clean

from sslpdl_nb.check import EXERCISES

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# toy

> A toy lesson.

**You will learn**

- one thing,
- another thing
  on two lines.

**You need** [core](01_core.ipynb) and
patience. **Time** about 7 minutes.

<!-- strip --><!-- /strip -->
"""
END = """## Summary

It was short. See [core](01_core.ipynb).

**Where this is used next:** nowhere.

### Exercises

**1.** What is one and one?

*Hand in* a number: `check("toy-1", answer)`.

<details><summary>Solution</summary>

```python
answer = 2
```
Two, **2.** of all numbers.
</details>

**2.** Why?

<details><summary>Solution</summary>

```python
print("secretword")
```
</details>
"""


@pytest.fixture
def lesson(tmp_path) -> Path:
    "The root of a repository with one small lesson."
    new = nbformat.v4
    notebook = new.new_notebook(
        cells=[
            new.new_markdown_cell(HEAD, metadata={SLIDES: {"slide_type": "slide"}}),
            new.new_code_cell(
                'data_dir = "../data_samples/tiny"', metadata={"tags": ["parameters"]}
            ),
            new.new_markdown_cell(
                "## A sum\n\nOne and $a_1 * b_1$. Two.\n\n$$ c_1 < 2 $$\n\nMore."
            ),
            new.new_code_cell("1 + 1"),
            new.new_markdown_cell(END, metadata={SLIDES: {"slide_type": "slide"}}),
        ]
    )
    notebook.cells[2].metadata[SLIDES] = {"slide_type": "slide"}
    notebook.cells[3].metadata[SLIDES] = {"slide_type": "-"}
    notebook.cells[3].outputs = [new.new_output("execute_result", {"text/plain": "2"})]
    (tmp_path / "nbs").mkdir()
    nbformat.write(notebook, tmp_path / "nbs" / "99_toy.ipynb")
    return tmp_path


# ------------------------------------------------------------------ lists


def test_facts_of_a_lesson(lesson):
    facts = course.facts_of(Lesson("99_toy", "toy", "a toy"), lesson)
    assert facts.outcomes == ("one thing,", "another thing on two lines.")
    assert facts.needs == "[core](01_core.ipynb) and patience."
    assert facts.minutes == 7
    first, second = facts.exercises
    assert (first.number, first.name, first.asks) == (1, "toy-1", "a number")
    assert first.question == "What is one and one?"
    assert (second.number, second.name, second.question) == (2, "", "Why?")


def test_a_lesson_without_time_is_named(lesson):
    path = lesson / "nbs" / "99_toy.ipynb"
    path.write_text(path.read_text().replace("**Time**", "**Hours**"))
    with pytest.raises(course.CourseError, match="99_toy: no time"):
        course.facts_of(Lesson("99_toy", "toy", "a toy"), lesson)


def test_lessons_and_check_are_compared(lesson):
    facts = [course.facts_of(Lesson("99_toy", "toy", "a toy"), lesson)]

    class Asks:
        asks = "a number"

    assert course.problems(facts, {"toy-1": Asks}) == []
    assert course.problems(facts, {}) == ["99_toy: check does not know toy-1"]
    found = course.problems(facts, {"toy-1": Asks, "toy-2": Asks})
    assert found == ["toy-2 is in no lesson"]
    Asks.asks = "a word"
    assert "different things" in course.problems(facts, {"toy-1": Asks})[0]


def test_all_lessons_agree_with_check():
    facts = [course.facts_of(lesson) for lesson in LESSONS]
    assert course.problems(facts, EXERCISES) == []


@pytest.mark.parametrize("decades", ["0", "1", "2", "5"])
def test_every_lesson_of_these_parts_has_a_checked_exercise(decades):
    for lesson in LESSONS:
        if lesson.stem[0] == decades:
            names = [exercise.name for exercise in course.facts_of(lesson).exercises]
            assert any(names), lesson.stem


@pytest.mark.parametrize("name", ["lessons.md", "studies.md"])
def test_lists_are_up_to_date(name):
    text = (ROOT / "course" / name).read_text(encoding="utf-8")
    assert text == course.pages()[name], "run `python tools/course.py pages`"


def test_links_and_names_of_the_course():
    for path in sorted((ROOT / "course").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        if path.name in ("semester.md", "day.md"):
            names = set(re.findall(r"`([a-z_]+-\d)`", text))
            assert names and names <= set(EXERCISES), path.name


def test_commands_of_projects_are_studies():
    text = (ROOT / "course" / "project.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`sslpdl experiment run (\w+)`", text))
    assert names
    for name in names:
        assert (ROOT / "experiments" / f"{name}.yaml").exists()


# ------------------------------------------------------------------ copies for students


def test_a_student_copy_has_questions_and_no_solutions(lesson):
    notebook = nbformat.read(lesson / "nbs" / "99_toy.ipynb", as_version=4)
    copy = course.student_copy(notebook, "../../")
    text = "\n".join(cell.source for cell in copy.cells)
    assert "<details" not in text and "secretword" not in text and "Two, " not in text
    assert "../../data_samples" in text
    answers = [cell.source for cell in copy.cells if "answer" in cell.metadata.get("tags", [])]
    assert 'check("toy-1", answer)' in answers[0] and "# your answer" in answers[0]
    assert answers[1] == "# your answer"
    assert all(not cell.outputs for cell in copy.cells if cell.cell_type == "code")
    assert [cell.source for cell in copy.cells][-4].startswith("**1.** What is one and one?")
    nbformat.validate(copy)


def test_a_real_student_copy_runs(tmp_path):
    out = ROOT / "runs" / f"student_test_{tmp_path.name}"
    try:
        (path,) = course.write_students(out, ["01_core"])
        notebook = nbformat.read(path, as_version=4)
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert sum('check("core-' in source for source in code) == 2
        lines = [line for source in code for line in source.splitlines()]
        lines = [line for line in lines if not line.startswith("from __future__")]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=out, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "core-1: no answer yet" in done.stdout
    finally:
        for path in out.glob("*"):
            path.unlink()
        out.rmdir()


def test_unknown_lessons_are_refused(tmp_path, capsys):
    assert course.main(["student", "--out", str(tmp_path), "77_nothing"]) == 1
    assert "no lesson 77_nothing" in capsys.readouterr().err


# ------------------------------------------------------------------ slides


def test_text_is_shortened_to_whole_sentences():
    text = "## Title\n\nFirst one. " + "Second is " + "long " * 60 + ". Third.\n\n$$ x $$\n\nRest."
    assert course_slides.shorten(text) == "## Title\n\nFirst one.\n\n$$ x $$"
    assert "You need" not in course_slides.shorten(HEAD) and "- one thing" in course_slides.shorten(
        HEAD
    )
    assert course_slides.shorten(END) == "## Summary\n\nIt was short. See [core](01_core.ipynb)."


def test_formulas_are_taken_out_of_markdown():
    text = course_slides.set_formulas("$a_1 < b_1$ and `$PATH` for $$c$$")
    assert 'data-tex="a_1 &lt; b_1" data-display="no"' in text
    assert "`$PATH`" in text and 'data-tex="c" data-display="yes"' in text


def test_pages_ask_nothing_of_the_network(lesson, tmp_path):
    reveal = tmp_path / "package"
    for name in course_slides.NEEDED:
        (reveal / name).parent.mkdir(parents=True, exist_ok=True)
        (reveal / name).write_text("")
    out = tmp_path / "slides"
    (page,) = course_slides.run([], out, reveal, lesson / "nbs")
    html = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']https?:""", html)
    assert not re.findall(r"""import [^;]* from ["']https?:""", html)
    assert html.count("<section") >= 3 and '<aside class="notes">' in html
    assert "secretword" not in html  # no solutions
    assert (out / "reveal.js" / "dist" / "reveal.js").exists()


def test_without_reveal_the_way_to_it_is_said(lesson, tmp_path):
    with pytest.raises(course_slides.SlidesError, match="npm pack reveal.js"):
        course_slides.run([], tmp_path / "slides", None, lesson / "nbs")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(course_slides.SlidesError, match="holds no reveal.js"):
        course_slides.run([], tmp_path / "slides", empty, lesson / "nbs")
    with pytest.raises(course_slides.SlidesError, match="no cells are marked"):
        course_slides.run(["01_core"], tmp_path / "slides", None, lesson / "nbs")


def test_cleaning_keeps_the_marks(lesson, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = lesson / "nbs" / "99_toy.ipynb"
    clean(path)
    notebook = nbformat.read(path, as_version=4)
    assert [course_slides.slide_type(cell) for cell in notebook.cells] == [
        "slide",
        "skip",
        "slide",
        "-",
        "slide",
    ]
