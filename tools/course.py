"""The course: facts of all lessons for teachers, and copies without solutions for students.

python tools/course.py pages              # writes course/lessons.md and course/studies.md
python tools/course.py student            # writes runs/student/*.ipynb
python tools/course.py student --out FOLDER 11_labels 12_deform

Everything is read from the notebooks, so nothing has to be kept in step by hand.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from book import BOOK, Lesson

ROOT = Path(__file__).resolve().parent.parent
COURSE = "course"  # folder

# The head of a lesson
OUTCOMES = re.compile(r"\*\*You will learn\*\*\s*\n((?:- .*\n(?:  .*\n)*)+)")
NEEDS = re.compile(r"\*\*You need\*\* (.*?)\s*(?=\*\*Time\*\*|\n\n)", re.S)
MINUTES = re.compile(r"\*\*Time\*\* (?:about )?(\d+)")
# Its exercises
EXERCISES = re.compile(r"^### Exercises\s*$", re.M)
EXERCISE = re.compile(r"^\*\*(\d+)\.\*\*(.*?)(?=^\*\*\d+\.\*\*|\Z)", re.M | re.S)
DETAILS = re.compile(r"<details.*?</details>\s*", re.S)
HAND_IN = re.compile(r'^\*Hand in\* (.*): `check\("([a-z_]+-\d+)", answer\)`\.$', re.M)


class CourseError(Exception):
    "A lesson is not what the course expects; the text says why."


@dataclass(frozen=True)
class Exercise:
    "One exercise of a lesson."

    number: int
    question: str  # markdown
    name: str  # by which `check` knows it; empty = not checked
    asks: str  # what to hand in


@dataclass(frozen=True)
class Facts:
    "What a teacher wants to know about a lesson."

    lesson: Lesson
    outcomes: tuple  # of text
    needs: str
    minutes: int
    exercises: tuple  # of Exercise


# ------------------------------------------------------------------ facts of a lesson


def find(pattern: re.Pattern, text: str, what: str, stem: str) -> str:
    "The first group of a pattern, or an error that names what is missing."
    match = pattern.search(text)
    if match is None:
        raise CourseError(f"{stem}: no {what} where it belongs")
    return match[1].strip()


def exercises_of(text: str) -> tuple:  # of Exercise
    "The exercises in the last text of a lesson, without their solutions."
    parts = EXERCISES.split(text, maxsplit=1)
    found = []
    for number, body in EXERCISE.findall(parts[1] if len(parts) > 1 else ""):
        question = DETAILS.sub("", body)
        hand_in = HAND_IN.search(question)
        asks, name = hand_in.groups() if hand_in else ("", "")
        question = HAND_IN.sub("", question).strip()
        found.append(Exercise(int(number), question, name, asks))
    return tuple(found)


def facts_of(lesson: Lesson, root: Path = ROOT) -> Facts:
    "Outcomes, prerequisites, minutes and exercises, as the notebook states them."
    notebook = nbformat.read(root / "nbs" / f"{lesson.stem}.ipynb", as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    head, stem = texts[0] + "\n", lesson.stem
    outcomes = find(OUTCOMES, head, "list of what you will learn", stem)
    bullets = re.split(r"^- ", outcomes, flags=re.M)[1:]
    return Facts(
        lesson=lesson,
        outcomes=tuple(" ".join(line.split()) for line in bullets),
        needs=" ".join(find(NEEDS, head, "prerequisites", stem).split()),
        minutes=int(find(MINUTES, head, "time in minutes", stem)),
        exercises=exercises_of(texts[-1]),
    )


def problems(facts: list, known: dict) -> list[str]:
    "Where the exercises of the lessons and those that `check` knows differ."
    found, seen = [], set()
    for fact in facts:
        lesson = fact.lesson.stem.split("_", 1)[1]
        for exercise in fact.exercises:
            if not exercise.name:
                continue
            seen.add(exercise.name)
            if exercise.name != f"{lesson}-{exercise.number}":
                found.append(f"{fact.lesson.stem}: exercise {exercise.number} is {exercise.name}")
            elif exercise.name not in known:
                found.append(f"{fact.lesson.stem}: check does not know {exercise.name}")
            elif known[exercise.name].asks != exercise.asks:
                found.append(f"{exercise.name}: lesson and check ask for different things")
    return found + [f"{name} is in no lesson" for name in known if name not in seen]


# ------------------------------------------------------------------ the list for teachers


def relink(markdown: str) -> str:
    "Links between lessons, as seen from the folder of the course."
    return re.sub(r"\]\((\d\d_\w+\.ipynb)", r"](../nbs/\1", markdown)


def overview(parts: list) -> list[str]:
    "A table with one row for each part."
    lines = ["| part | lessons | minutes | exercises | of these checked |", "|---|---|---|---|---|"]
    total = [0, 0, 0, 0]
    for number, (part, facts) in enumerate(parts):
        exercises = [exercise for fact in facts for exercise in fact.exercises]
        checked = sum(bool(exercise.name) for exercise in exercises)
        row = [len(facts), sum(fact.minutes for fact in facts), len(exercises), checked]
        total = [a + b for a, b in zip(total, row)]
        lines.append(f"| {number}. {part.title} | {' | '.join(map(str, row))} |")
    return [*lines, f"| all | {' | '.join(map(str, total))} |"]


def lesson_lines(fact: Facts) -> list[str]:
    "One lesson in the list."
    stem = fact.lesson.stem
    about = fact.lesson.about[0].upper() + fact.lesson.about[1:]
    lines = [f"### [{stem}](../nbs/{stem}.ipynb)", "", f"{about}. You learn:", ""]
    lines += [f"- {outcome.rstrip(' ,;.')}" for outcome in fact.outcomes]
    lines += ["", f"**{fact.minutes} minutes.** **Needs** {fact.needs}", ""]
    for exercise in fact.exercises:
        line = f"{exercise.number}. {exercise.question}"
        if exercise.name:
            line += f" **`{exercise.name}`**: {exercise.asks}."
        # a list item stays one item if its further lines are indented
        lines += [line.replace("\n", "\n   ")]
    return [*map(relink, lines), ""]


def lessons_page(root: Path = ROOT) -> str:  # markdown
    "The whole list."
    parts = [(part, [facts_of(lesson, root) for lesson in part.lessons]) for part in BOOK]
    lines = [
        "# The lessons, for teachers",
        "",
        "*Made from the notebooks by `python tools/course.py pages`; do not edit.*",
        "",
        "Minutes are those that the lessons state; exercises come on top.",
        "A name such as **`core-1`** means that `check` tells whether an answer is right",
        "([how](../nbs/05_check.ipynb)); what stands after it is what to hand in.",
        "",
        *overview(parts),
        "",
    ]
    for number, (part, facts) in enumerate(parts):
        lines += [f"## Part {number}. {part.title}", "", part.about, ""]
        for fact in facts:
            lines += lesson_lines(fact)
    return "\n".join(lines).rstrip() + "\n"


# ------------------------------------------------------------------ studies for projects


def hours_of(path: Path) -> tuple:  # cells, hours of one core
    "What a study has cost, by its committed records; each pre-training counts once."
    with lzma.open(path, "rt", encoding="utf-8") as file:
        runs = json.load(file)["runs"]
    seconds = sum(run.get("seconds", 0) for run in runs)
    pretrained = [run["pretrained"] for run in runs if run.get("pretrained")]
    once = {done["key"]: done["seconds"] for done in pretrained}
    return len(runs), (seconds + sum(once.values())) / 3600


def study_lines(path: Path) -> list[str]:
    "One study in the list."
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    records = path.parent / "results" / f"{path.stem}.runs.json.xz"
    cost = "not measured"
    if records.exists():
        cells, hours = hours_of(records)
        cost = f"{hours / 2:.1f} hours on two cores ({cells} cells, one thread each)"
    file = f"[{path.stem}.yaml](../experiments/{path.name})"
    return [
        f"### {study['title']}",
        "",
        " ".join(study["question"].split()),
        "",
        f"- start: `sslpdl experiment run {path.stem} --workers 2` ({file})",
        f"- measured: {cost}",
        f"- expected before it was run: {' '.join(study['expected'].split())}",
        "",
    ]


def studies_page(root: Path = ROOT) -> str:  # markdown
    "All studies that the runner can do."
    lines = [
        "# Studies that a project can begin with",
        "",
        "*Made from `experiments/` by `python tools/course.py pages`; do not edit.*",
        "",
        "Each file in `experiments/` is a study that the",
        "[runner](../nbs/73_experiments_runner.ipynb) can start, stop and resume. Hours are those",
        "of the committed records, on the machine where they were made, without the simulation of",
        "the archive; what has no record yet is *not measured*. A project changes a study or adds",
        "one; see [project](project.md).",
        "",
    ]
    for path in sorted((root / "experiments").glob("*.yaml")):
        lines += study_lines(path)
    return "\n".join(lines).rstrip() + "\n"


# ------------------------------------------------------------------ copies for students

ANSWER = """from sslpdl_nb.check import check

answer = ...  # your answer

check("{name}", answer)"""
OPEN_ANSWER = "# your answer"


def student_cells(text: str) -> list:  # notebook cells
    "The last text of a lesson: its summary, then each exercise with a cell for the answer."
    parts = EXERCISES.split(text, maxsplit=1)
    if len(parts) == 1:
        return [nbformat.v4.new_markdown_cell(DETAILS.sub("", text).strip())]
    cells = [nbformat.v4.new_markdown_cell(parts[0].rstrip() + "\n\n### Exercises")]
    for number, body in EXERCISE.findall(parts[1]):
        question = DETAILS.sub("", body).strip()
        hand_in = HAND_IN.search(question)
        answer = ANSWER.format(name=hand_in[2]) if hand_in else OPEN_ANSWER
        cells.append(nbformat.v4.new_markdown_cell(f"**{number}.** {question}"))
        cells.append(nbformat.v4.new_code_cell(answer, metadata=dict(tags=["answer"])))
    return cells


def student_copy(notebook, up: str = "../"):
    "A copy without solutions and outputs; `up` leads from its folder to that of the repository."
    kept = {key: notebook.metadata[key] for key in ("kernelspec",) if key in notebook.metadata}
    copy = nbformat.v4.new_notebook(metadata=kept)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            # all relative paths of the lessons begin with ../
            source = cell.source.replace('"../', f'"{up}')
            new = nbformat.v4.new_code_cell(source, metadata=cell.metadata)
            copy.cells.append(new)
        elif number == len(notebook.cells) - 1:
            copy.cells += student_cells(cell.source)
        else:
            source = DETAILS.sub("", cell.source)
            copy.cells.append(nbformat.v4.new_markdown_cell(source, metadata=cell.metadata))
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", f"]({up}")
    for number, cell in enumerate(copy.cells):
        cell.id = f"cell-{number}"
    return copy


def write(path: Path, text: str):
    "Write a file in one step."
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tmp.write_text(text, encoding="utf-8")
    os.replace(tmp, path)


def write_students(out: Path, names: list[str], root: Path = ROOT) -> list[Path]:
    "Copies of all lessons, or of some."
    stems = [lesson.stem for part in BOOK for lesson in part.lessons]
    unknown = sorted(set(names) - set(stems))
    if unknown:
        raise CourseError(f"no lesson {', '.join(unknown)}")
    up = os.path.relpath(root, out).replace(os.sep, "/") + "/"
    paths = []
    for stem in names or stems:
        notebook = nbformat.read(root / "nbs" / f"{stem}.ipynb", as_version=4)
        paths.append(out / f"{stem}.ipynb")
        text = json.dumps(student_copy(notebook, up), indent=1, ensure_ascii=False)
        write(paths[-1], text + "\n")
    return paths


# ------------------------------------------------------------------ the command


def pages(root: Path = ROOT) -> dict:  # file name -> markdown
    "Everything in course/ that is made by this tool."
    return {"lessons.md": lessons_page(root), "studies.md": studies_page(root)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pages", help="write the lists of lessons and studies")
    student = commands.add_parser("student", help="write copies without solutions")
    student.add_argument("names", nargs="*", help="lessons, for example 11_labels; default: all")
    student.add_argument("--out", type=Path, default=ROOT / "runs" / "student")
    args = parser.parse_args(argv)
    try:
        if args.command == "pages":
            for name, text in pages().items():
                write(ROOT / COURSE / name, text)
        else:
            names = [Path(name).name.removesuffix(".ipynb") for name in args.names]
            paths = write_students(args.out.resolve(), names)
            print(f"{len(paths)} lessons without solutions in {os.path.relpath(args.out)}")
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
